#!/usr/bin/python3
"""Writes the captures and OpenFlow rules of the side-by-side benchmark into a folder.

    traffic.py FOLDER [--packets N]

  a1.pcap      one flow
  b1k.pcap     1,000 flows that differ in source address and port, drawn evenly
  c100k.pcap   Zipf 1.0 over 100,000 flows in 64 classes (N packets, 240,000 unless told)
  a1.rules     one rule on the destination network, for a1 and b1k
  b1kx.rules   a rule for each of b1k's sources
  c100k.rules  64 classes by destination /16; in class 8a+b the rules match a /(17+a) of the source and the upper 1+b
               bits of the destination port, so that the megaflows have 64 masks

Every frame is 60 bytes (64 with FCS): Ethernet, IPv4 with a right header checksum, UDP without checksum, zeros. The same
seed is used always, so the files are the same everywhere.
"""
import argparse
import pathlib
import random
import struct

ETHERNET = bytes.fromhex("020000000001020000000002") + struct.pack("!H", 0x0800)


def address(a, b, c, d):
    return a << 24 | b << 16 | c << 8 | d


def dotted(value):
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def frame(source, destination, source_port, destination_port):
    words = [0x4500, 46, 1, 0, 64 << 8 | 17, 0, source >> 16, source & 0xFFFF, destination >> 16, destination & 0xFFFF]
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    words[5] = 0xFFFF ^ total
    udp = struct.pack("!4H", source_port, destination_port, 26, 0)
    return ETHERNET + struct.pack("!10H", *words) + udp + bytes(18)


def write_capture(path, frames):
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, 1))
        for data in frames:
            out.write(struct.pack("<4I", 0, 0, len(data), len(data)) + data)


def one_flow(folder):
    only = frame(address(192, 168, 0, 1), address(10, 0, 0, 1), 1000, 2000)
    write_capture(folder / "a1.pcap", [only] * 2048)
    (folder / "a1.rules").write_text("priority=10,udp,nw_dst=10.0.0.0/8,actions=output:2\n")


def thousand_flows(folder, rng):
    sources = [address(192, 168, i >> 8, i & 255) for i in range(1000)]
    frames = [frame(s, address(10, 0, 0, 1), 1000 + i, 2000) for i, s in enumerate(sources)]
    write_capture(folder / "b1k.pcap", [rng.choice(frames) for _ in range(8192)])
    (folder / "b1kx.rules").write_text(
        "".join(f"priority=10,udp,nw_src={dotted(s)},nw_dst=10.0.0.1,actions=output:2\n" for s in sources)
    )


def hundred_thousand_flows(folder, rng, packets):
    flows, rules = {}, [set() for _ in range(64)]
    while len(flows) < 100_000:
        group = rng.randrange(64)
        a, b = divmod(group, 8)
        source = address(192, 168, rng.randrange(8) << 5, rng.randrange(256))
        destination = address(10, group, rng.randrange(256), rng.randrange(256))
        ports = rng.randrange(1024, 65536), rng.randrange(8) << 13 | rng.randrange(32)
        flow = (source, destination, *ports)
        if flow in flows:
            continue
        flows[flow] = None
        source_mask = 0xFFFFFFFF << (15 - a) & 0xFFFFFFFF
        port_mask = 0xFFFF << (15 - b) & 0xFFFF
        rules[group].add((source & source_mask, 17 + a, ports[1] & port_mask, port_mask))
    with open(folder / "c100k.rules", "w") as out:
        for group in range(64):
            out.write(f"table=0,priority=10,udp,nw_dst=10.{group}.0.0/16,actions=goto_table:{group + 1}\n")
            for source, length, port, mask in sorted(rules[group]):
                match = f"nw_src={dotted(source)}/{length},tp_dst={port:#x}/{mask:#x}"
                out.write(f"table={group + 1},priority=10,udp,{match},actions=output:2\n")
    flows = list(flows)
    drawn = rng.choices(range(len(flows)), weights=[1 / (i + 1) for i in range(len(flows))], k=packets)
    frames = {i: frame(*flows[i]) for i in set(drawn)}
    write_capture(folder / "c100k.pcap", [frames[i] for i in drawn])
    print(f"c100k: {sum(map(len, rules))} rules, {len(frames)} of {len(flows)} flows in {packets} packets")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--packets", type=int, default=240_000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    one_flow(arguments.folder)
    thousand_flows(arguments.folder, rng)
    hundred_thousand_flows(arguments.folder, rng, arguments.packets)


if __name__ == "__main__":
    main()
