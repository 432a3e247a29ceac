#!/usr/bin/env python3
"""Ethernet frames that no flow knows: each has a source address of its own.

  first.py storm DEVICE SECONDS       as many as go, then tells how many as JSON
  first.py send DEVICE COUNT RATE     COUNT numbered ones, RATE per second
  first.py count DEVICE COUNT SECONDS which of COUNT numbered ones come in SECONDS, as JSON
"""
import json
import socket
import struct
import sys
import time

# IEEE 802: local experiments, 1 and 2. The storm has one of its own, so that the socket that counts the others has room for them.
NUMBERED, STORM = 0x88B5, 0x88B6
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; Python does not name it
TO = bytes.fromhex("020000000002")


def frame(eth_type, number):
    source = struct.pack("!BBI", 2, eth_type & 0xFF, number)
    return (TO + source + struct.pack("!HI", eth_type, number)).ljust(60, b"\0")


def open_device(name, eth_type):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(eth_type))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.bind((name, eth_type))
    return sock


def storm(sock, seconds):
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            try:
                sock.send(frame(STORM, number))
            except OSError:
                pass
            number += 1
        time.sleep(0.002)
    print(json.dumps({"sent": number}))


def send(sock, count, rate):
    for number in range(count):
        sock.send(frame(NUMBERED, number))
        time.sleep(1 / rate)


def count(sock, total, seconds):
    seen, end = set(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and len(seen) < total:
        sock.settimeout(left)
        try:
            data = sock.recv(2048)
        except TimeoutError:
            break
        seen.add(struct.unpack_from("!I", data, 14)[0])
    print(json.dumps({"received": len(seen)}))


device = open_device(sys.argv[2], STORM if sys.argv[1] == "storm" else NUMBERED)
if sys.argv[1] == "storm":
    storm(device, float(sys.argv[3]))
elif sys.argv[1] == "send":
    send(device, int(sys.argv[3]), float(sys.argv[4]))
else:
    count(device, int(sys.argv[3]), float(sys.argv[4]))
