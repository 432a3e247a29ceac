"""Writes a flow dump of five-tuple flows under a few dozen masks, and a capture with a packet for each flow.

    generate.py FLOWS PACKETS DIRECTORY     DIRECTORY/flows.txt, DIRECTORY/packets.pcap

The dump looks like `ovs-appctl dpctl/dump-flows -m --no-names` of Open vSwitch's user-space datapath. Flows of one mask
differ in the source's network, flows of different masks in the destination's, so none overlap. Flows of the last mask
push an MPLS label, which no NIC profile does: they stay in software. Everything follows from the two numbers.
"""

import os
import struct
import sys

MASKS = 32
# Flow n is number n // MASKS of mask n % MASKS. A mask is a prefix length of the source, one of the destination, and
# masks of both ports.
SHAPES = [
    (src, dst, ports)
    for src in (32, 28, 24, 22)
    for dst in (32, 24)
    for ports in ((0, 0), (0, 0xFFFF), (0xFFFF, 0xFFFF), (0, 0xF000))
]
METADATA = "skb_priority(0/0),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),recirc_id(0),dp_hash(0/0)"
ETH = "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:fe)"


def ip(n):
    return f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"


def masked(value, mask):
    return str(value) if mask == 0xFFFF else f"{value}/{mask:#x}"


def prefix(length):
    return 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF


def flow(n):
    """Addresses, protocol and ports of a packet of flow n."""
    shape, number = n % MASKS, n // MASKS
    src_length, _, _ = SHAPES[shape]
    src = 0x40000000 | number << (32 - src_length) | (1 if src_length < 32 else 0)
    dst = 10 << 24 | shape << 16 | number & 0xFFFF
    proto = 6 if number % 3 else 17
    return shape, src, dst, proto, 1024 + n * 7919 % 60000, 1 + n * 31 % 1000


def write_flows(path, count):
    with open(path, "w", encoding="ascii", newline="\n", buffering=1 << 20) as out:
        out.write("flow-dump from the main thread:\n")
        for n in range(count):
            shape, src, dst, proto, sport, dport = flow(n)
            src_length, dst_length, (sport_mask, dport_mask) = SHAPES[shape]
            name = "tcp" if proto == 6 else "udp"
            ufid = f"{n * 2654435761 & 0xFFFFFFFF:08x}-{n & 0xFFFF:04x}-4{n >> 16 & 0xFFF:03x}-8000-{n:012x}"
            src_text = ip(src) if src_length == 32 else f"{ip(src)}/{ip(prefix(src_length))}"
            dst_text = ip(dst) if dst_length == 32 else f"{ip(dst)}/{ip(prefix(dst_length))}"
            out_port = 2 + n % 7
            actions = f"push_vlan(vid={10 + n % 100},pcp=0),{out_port}" if n % 5 == 0 else str(out_port)
            if shape == MASKS - 1:
                actions = f"push_mpls(label=17,tc=0,ttl=64,bos=1,eth_type=0x8847),{out_port}"
            out.write(
                f"ufid:{ufid}, {METADATA},in_port(1),packet_type(ns=0,id=0),{ETH},eth_type(0x0800),"
                f"ipv4(src={src_text},dst={dst_text},proto={proto},tos=0/0,ttl=64/0,frag=no),"
                f"{name}(src={masked(sport, sport_mask)},dst={masked(dport, dport_mask)}), "
                f"packets:0, bytes:0, used:never, dp:ovs, actions:{actions}\n"
            )


def checksum(header):
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def write_packets(path, flows, count):
    # A step that shares no factor with the number of flows visits each flow once before any twice.
    step = 611_953
    while flows % step == 0:
        step += 2
    eth = bytes.fromhex("0200000000fe0200000000010800")
    with open(path, "wb", buffering=1 << 20) as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for n in range(count):
            _, src, dst, proto, sport, dport = flow(n * step % flows)
            if proto == 6:
                payload = struct.pack(">HHIIBBHHH6x", sport, dport, n, 0, 0x50, 0x10, 8192, 0, 0)
            else:
                payload = struct.pack(">HHHH18x", sport, dport, 26, 0)
            fields = [0x45, 0, 20 + len(payload), n & 0xFFFF, 0x4000, 64, proto, 0, src, dst]
            header = struct.pack(">BBHHHBBHII", *fields)
            fields[7] = checksum(header)
            frame = eth + struct.pack(">BBHHHBBHII", *fields) + payload
            out.write(struct.pack("<IIII", 1_700_000_000 + n // 1_000_000, n % 1_000_000, len(frame), len(frame)) + frame)


def main():
    flows, packets, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    assert flows // MASKS < 1 << 16, "flows of a mask are told apart by 16 bits"
    os.makedirs(directory, exist_ok=True)
    write_flows(os.path.join(directory, "flows.txt"), flows)
    write_packets(os.path.join(directory, "packets.pcap"), flows, packets)


main()
