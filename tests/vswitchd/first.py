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

ETH_TYPE = 0x88B5  # IEEE 802: local experiments
TO = bytes.fromhex("020000000002")


def frame(kind, number):
    source = struct.pack("!BBI", 2, kind, number)
    return (TO + source + struct.pack("!HBI", ETH_TYPE, kind, number)).ljust(60, b"\0")


def open_device(name):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_TYPE))
    sock.bind((name, ETH_TYPE))
    return sock


def storm(sock, seconds):
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            try:
                sock.send(frame(1, number))
            except OSError:
                pass
            number += 1
        time.sleep(0.002)
    print(json.dumps({"sent": number}))


def send(sock, count, rate):
    for number in range(count):
        sock.send(frame(3, number))
        time.sleep(1 / rate)


def count(sock, total, seconds):
    seen, end = set(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and len(seen) < total:
        sock.settimeout(left)
        try:
            data = sock.recv(2048)
        except TimeoutError:
            break
        kind, number = struct.unpack_from("!BI", data, 14)
        if kind == 3:
            seen.add(number)
    print(json.dumps({"received": len(seen)}))


device = open_device(sys.argv[2])
if sys.argv[1] == "storm":
    storm(device, float(sys.argv[3]))
elif sys.argv[1] == "send":
    send(device, int(sys.argv[3]), float(sys.argv[4]))
else:
    count(device, int(sys.argv[3]), float(sys.argv[4]))
