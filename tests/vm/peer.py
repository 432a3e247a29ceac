#!/usr/bin/env python3
"""The host's side of the NIC's wires: peer.py FOLDER REPORT

Sends frames into port 1 (datagram socket FOLDER/p0) until it is told to end (SIGTERM): one to 10.0.0.2, which the guest's
flows send out of port 2 in hardware, and one to 10.0.0.3, which they send back in software. Counts what comes back from
both ports and writes the counts to REPORT.
"""
import os
import signal
import socket
import struct
import sys

folder, report = sys.argv[1:]


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def frame(last):
    """An Ethernet frame with IPv4 and UDP to 10.0.0.LAST."""
    udp = struct.pack("!4H", 1000, 2000, 8 + 32, 0) + bytes(32)
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, last])
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0, 64, 17)
    header = start + struct.pack("!H", checksum(start + b"\0\0" + addresses)) + addresses
    return bytes.fromhex("020000000002020000000001") + b"\x08\x00" + header + udp


def wire(number):
    path = f"{folder}/p{number}.peer"
    if os.path.exists(path):
        os.unlink(path)
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(path)
    s.settimeout(0.002)
    return s


hardware, slow = frame(2), frame(3)
first, second = wire(0), wire(1)
counts = {"sent": 0, "forward": 0, "back": 0, "other": 0}
expected = {(second, hardware): "forward", (first, slow): "back"}
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
while not ended:
    for f in (hardware, slow):
        try:
            first.sendto(f, f"{folder}/p0")
            counts["sent"] += 1
        except OSError:
            pass  # The NIC is not there yet, or takes nothing now.
    for s in (first, second):
        try:
            while True:
                counts[expected.get((s, s.recv(65536)), "other")] += 1
        except OSError:
            pass
with open(report, "w") as out:
    print(*(f"{name}={count}" for name, count in counts.items()), file=out)
