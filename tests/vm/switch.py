#!/usr/bin/env python3
"""The host's side of a switch's wires: switch.py FOLDER REPORT

Sends one frame of each kind after the other into the ports of rocker (datagram sockets FOLDER/s0 to s2), and checks byte for
byte what comes out of which port: what the flows of flows/switch say, whoever handles the frame. Which of them the switch
handled itself is asked of the device (QMP, FOLDER/switch.qmp): each frame hits one flow of the ACL policy table, an entry's
or, on its way to the host, one of the driver's own below priority 16. Writes counts to REPORT.
"""
import json
import os
import socket
import struct
import sys
import time

folder, report = sys.argv[1:]
# The guest's run must last for them, on a slow machine, too.
ROUNDS = 6


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(dport, fragment=0):
    udp = struct.pack("!4H", 1000, dport, 8 + 32, 0) + bytes(range(32))
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 7, fragment, 64, 17)
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    header = start + struct.pack("!H", checksum(start + b"\0\0" + addresses)) + addresses
    return b"\x08\x00" + header + udp


IPV6 = b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 16, 59, 64) + bytes(range(48))
ARP = b"\x08\x06" + bytes(range(46))
# A fragment, and a header that is cut off: the switch handles them as its flow says, for that does not look there.
ODD = [ipv4(53, 0x2000), b"\x08\x00\x4f" + bytes(60)]


def mac(text):
    return bytes.fromhex("0200000000" + text) if len(text) == 2 else bytes.fromhex("02000000" + text)


def tag(tci):
    return b"\x81\x00" + struct.pack("!H", tci)


X = mac("ee")
A, B = mac("0a"), mac("0b")
# Name, ingress port, frame, what comes out of which port, in the switch.
KINDS = [
    ("bridged", 0, mac("0101") + X + ipv4(53), [(1, mac("0101") + X + ipv4(53))], True),
    ("fragment", 0, mac("0101") + X + ODD[0], [(1, mac("0101") + X + ODD[0])], True),
    ("cut off", 0, mac("0101") + X + ODD[1], [(1, mac("0101") + X + ODD[1])], True),
    ("vlan", 0, mac("0102") + X + tag(0xF00A) + ipv4(53), [(1, mac("0102") + X + tag(0xF00A) + ipv4(53))], True),
    ("popped", 0, mac("0103") + X + tag(0xA00A) + IPV6, [(2, mac("0103") + X + IPV6)], True),
    ("pushed", 0, mac("0104") + X + ipv4(53), [(1, mac("0104") + X + tag(0x6014) + ipv4(53))], True),
    ("flooded", 0, b"\xff" * 6 + X + ARP, [(1, b"\xff" * 6 + X + ARP), (2, b"\xff" * 6 + X + ARP)], True),
    ("dropped", 1, X + mac("0201") + ipv4(53), [], True),
    ("dropped with tag", 1, X + mac("0202") + tag(0x001E) + ipv4(53), [], True),
    ("rewritten", 2, mac("0301") + X + ipv4(53), [(0, B + A + ipv4(53)), (1, B + A + ipv4(53))], True),
    ("by port", 1, X + mac("0203") + ipv4(53), [(0, X + mac("0203") + ipv4(53))], False),
    ("by other port", 1, X + mac("0203") + ipv4(54), [], False),
    ("no fragment", 1, X + mac("0204") + ipv4(53), [(2, X + mac("0204") + ipv4(53))], False),
    ("fragment, unlike", 1, X + mac("0204") + ODD[0], [], False),
    ("retagged", 0, mac("0105") + X + tag(0x000B) + ipv4(53), [(1, mac("0105") + X + tag(0x000C) + ipv4(53))], False),
    ("turned back", 2, mac("0302") + X + ipv4(53), [(2, mac("0302") + X + ipv4(53))], False),
    ("priority only", 0, mac("0101") + X + tag(0xE000) + ipv4(53), [], False),
    ("priority 0", 0, mac("0101") + X + tag(0) + ipv4(53), [], False),
    ("no flow", 0, mac("0999") + X + ipv4(53), [], False),
]


class Qmp:
    """QEMU's control socket."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(f"{folder}/switch.qmp")
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer.get("return")

    def hits(self):
        """Hits of entries' flows, and of the driver's own."""
        flows = self.ask("query-rocker-of-dpa-flows", name="sw1", **{"tbl-id": 60}) or []
        entries = sum(f["hits"] for f in flows if f["key"]["priority"] >= 16)
        return entries, sum(f["hits"] for f in flows if f["key"]["priority"] < 16)


def wire(number):
    path = f"{folder}/s{number}.peer"
    if os.path.exists(path):
        os.unlink(path)
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(path)
    return s


wires = [wire(n) for n in range(3)]


def send(port, frame):
    try:
        wires[port].settimeout(0.5)
        wires[port].sendto(frame, f"{folder}/s{port}")
        return True
    except OSError:
        return False


def take(port, wait):
    wires[port].settimeout(wait)
    try:
        return wires[port].recv(65536)
    except OSError:
        return None


def rest(wait=0.001):
    """What comes out unasked, until nothing does for so long."""
    frames = []
    for port in range(3):
        while (frame := take(port, wait)) is not None:
            frames.append((port, frame))
    return frames


# Until the run with entries: the frame for which only the softpath has a flow comes back, and one for an entry hits it.
probe, hit = next(k for k in KINDS if k[0] == "by port"), KINDS[0]
qmp, ready = None, False
while not ready:
    time.sleep(0.1)
    try:
        qmp = qmp or Qmp()
        before = qmp.hits()[0]
        send(probe[1], probe[2])
        came = take(0, 1)
        send(hit[1], hit[2])
        take(1, 1)
        ready = came == probe[2] and qmp.hits()[0] > before
    except (OSError, ValueError, TypeError):
        qmp = None
rest(1)
counts = {"sent": 0, "right": 0, "wrong": 0, "switch": 0, "host": 0}
start = qmp.hits()
for _ in range(ROUNDS):
    for name, port, frame, outputs, in_switch in KINDS:
        counts["switch" if in_switch else "host"] += 1
        counts["sent"] += send(port, frame)
        got = [(out, take(out, 10)) for out, _ in outputs]
        if not outputs:
            time.sleep(0.005)
        got += rest()
        if got == outputs:
            counts["right"] += 1
        else:
            counts["wrong"] += 1
            print(f"{name}: {[(p, f and f.hex()) for p, f in got]}, not {[(p, f.hex()) for p, f in outputs]}", flush=True)
end = qmp.hits()
counts["hits"] = end[0] - start[0]
counts["misses"] = end[1] - start[1]
with open(report, "w") as out:
    print(*(f"{name}={count}" for name, count in counts.items()), file=out)
