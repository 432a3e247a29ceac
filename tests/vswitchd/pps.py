#!/usr/bin/env python3
"""Numbered UDP packets at a steady rate, and which of them arrive.

  pps.py send ADDRESS RATE SECONDS    sends RATE * SECONDS packets, then tells how many, and which errors the stack answered, as
                                      JSON; held up itself, it does not make up for it in a burst, which no queue on the way
                                      would hold
  pps.py count ADDRESS TOTAL SECONDS  receives on ADDRESS until SECONDS pass without a packet, one when the last one has come;
                                      prints, of TOTAL packets, how many were received, lost, doubled and reordered, the first
                                      one's number, the longest gap in milliseconds, and the holes: how many, and the longest
                                      one's first number and length, as JSON
"""
import collections
import errno
import json
import re
import socket
import struct
import sys
import time

PORT = 7000
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; Python does not name it
LENGTH = 64
BURST = 100  # packets at once, at most


def send(address, rate, seconds):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, PORT))
    total, start = int(rate * seconds), time.monotonic()
    number, errors = 0, collections.Counter()
    while number < total:
        due = min(total, int((time.monotonic() - start) * rate) + 1)
        if due - number > BURST:
            start += (due - number - BURST) / rate
            due = number + BURST
        while number < due:
            try:
                sock.send(struct.pack("!Q", number).ljust(LENGTH, b"\0"))
            except OSError as error:
                # A full queue of the device, a neighbour that does not answer: this packet is lost like any other.
                errors[errno.errorcode[error.errno]] += 1
            number += 1
        time.sleep(0.0002)
    print(json.dumps({"sent": number, "errors": errors}))


def count(address, total, seconds):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    sock.bind((address, PORT))
    sock.settimeout(60)
    seen = bytearray(total)
    doubled, reordered, highest, gap, last, first = 0, 0, -1, 0.0, None, None
    try:
        while True:
            (number,) = struct.unpack("!Q", sock.recv(LENGTH)[:8])
            now = time.monotonic()
            sock.settimeout(1 if seen[-1] or number == total - 1 else seconds)
            doubled += seen[number]
            seen[number] = 1
            if number < highest:
                reordered += 1
            highest = max(highest, number)
            if last is None:
                first = number
            else:
                gap = max(gap, now - last)
            last = now
    except TimeoutError:
        pass
    received, holes = sum(seen), [m.span() for m in re.finditer(b"\0+", seen)]
    start, end = max(holes, key=lambda hole: hole[1] - hole[0], default=(0, 0))
    print(json.dumps({"received": received, "lost": total - received, "doubled": doubled, "reordered": reordered,
                      "first": first, "gap_ms": round(gap * 1000, 1),
                      "holes": {"count": len(holes), "longest": end - start, "at": start}}))


if sys.argv[1] == "send":
    send(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
else:
    count(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
