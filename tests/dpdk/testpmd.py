#!/usr/bin/env python3
"""dpdk-testpmd: ports, packets, and rte_flow by script; each refusal's type, cause and message."""

import re
import subprocess

from common import Process, Testpmd, Wire, check, eal, ipv4, main, tcp, udp, until

# Commands that are refused, with the error's type and a part of its message.
REFUSED = [
    ("flow validate 0 ingress pattern eth / ipv4 / sctp / end actions queue index 3 / end", 15, "queue 3 of 2"),
    ("flow validate 0 ingress pattern ipv4 / eth / end actions drop / end", 13, "ETH comes after another header"),
    ("flow validate 0 ingress pattern eth / udp / end actions drop / end", 13, "UDP needs IPV4 or IPV6"),
    ("flow validate 0 ingress pattern eth / ipv4 / icmp6 / end actions drop / end", 13, "ICMP6 needs IPV6"),
    ("flow validate 0 ingress pattern eth type is 0x86dd / ipv4 / end actions drop / end", 10, "asks for type 0x86dd"),
    ("flow validate 0 ingress pattern eth / ipv4 / udp src spec 10 src last 20 src mask 0xffff / end actions drop / end", 11, "range"),
    ("flow validate 0 ingress pattern eth / ipv4 packet_id is 7 / end actions drop / end", 12, "byte 4 of IPV4"),
    ("flow validate 0 ingress pattern eth / ipv4 version_ihl is 0x46 / end actions drop / end", 10, "without options"),
    ("flow validate 0 ingress pattern eth / ipv4 / udp / vxlan / end actions drop / end", 13, "type 14"),
    ("flow validate 0 ingress pattern eth / ipv6 proto is 60 / end actions drop / end", 13, "ipv6.proto is not seen"),
    ("flow validate 0 egress pattern eth / end actions drop / end", 6, "pass no tables"),
    ("flow validate 0 pattern eth / end actions drop / end", 5, "neither ingress nor transfer"),
    ("flow validate 0 priority 65536 ingress pattern eth / end actions drop / end", 4, "0 to 65535"),
    ("flow validate 0 group 2147483648 ingress pattern eth / end actions drop / end", 3, "groups are 0 to"),
    ("flow validate 0 ingress pattern eth / end actions count / end", 16, "where packets go"),
    ("flow validate 0 ingress pattern eth / end actions drop / port_id id 1 / end", 16, "DROP beside"),
    ("flow validate 0 ingress pattern eth / end actions port_id id 9 / end", 15, "port 9 is not a port of this NIC"),
    ("flow validate 0 ingress pattern eth / end actions set_ipv4_src ipv4_addr 1.2.3.4 / port_id id 1 / end", 16, "needs an item"),
    ("flow validate 0 ingress pattern eth / end actions of_set_vlan_vid vlan_vid 5 / port_id id 1 / end", 16, "OF_PUSH_VLAN"),
    ("flow validate 0 ingress pattern eth / end actions of_push_vlan ethertype 0x9100 / port_id id 1 / end", 15, "0x9100"),
    ("flow validate 0 ingress pattern eth / end actions jump group 0 / end", 15, "group 0"),
    ("flow validate 0 ingress pattern eth / end actions passthru / end", 16, "type 2"),
    ("flow validate 0 ingress pattern eth / vlan / vlan / vlan / end actions drop / end", 13, "a third VLAN item"),
    ("flow validate 0 ingress pattern eth / vlan dei is 1 / end actions drop / end", 12, "drop-eligible"),
    ("flow validate 0 ingress pattern eth type spec 0x0800 type mask 0xff00 / end actions drop / end", 12, "in all its bits or not at all"),
    ("flow validate 0 ingress pattern eth dst spec 02:00:00:00:00:01 dst last 02:00:00:00:00:09 dst mask ff:ff:ff:ff:ff:ff / end actions drop / end", 11, "range of ETH"),
    ("flow validate 0 ingress pattern eth / vlan vid spec 5 vid last 9 vid mask 0xfff / end actions drop / end", 11, "range of VLAN"),
    ("flow validate 0 ingress pattern eth / ipv4 src spec 10.0.0.1 src last 10.0.0.9 src mask 255.255.255.255 / end actions drop / end", 11, "range of IPV4"),
    ("flow validate 0 ingress pattern eth / ipv6 hop spec 5 hop last 9 hop mask 255 / end actions drop / end", 11, "range of IPV6"),
    ("flow validate 0 ingress pattern eth / ipv4 / tcp dst spec 1 dst last 9 dst mask 0xffff / end actions drop / end", 11, "range of TCP"),
    ("flow validate 0 ingress pattern eth / ipv6 has_frag_ext is 1 / end actions drop / end", 10, "extension headers are not seen"),
    ("flow validate 0 ingress pattern eth / ipv4 / arp_eth_ipv4 / end actions drop / end", 13, "ARP_ETH_IPV4 comes after a network header"),
    ("flow validate 0 ingress pattern eth / ipv4 / tcp / udp / end actions drop / end", 13, "UDP comes after a transport header"),
    ("flow validate 0 ingress pattern eth / ipv4 proto is 6 / sctp / end actions drop / end", 13, "protocol 132, but the network header asks for 6"),
    ("flow validate 0 ingress pattern eth / ipv4 / sctp cksum is 1 / end actions drop / end", 12, "byte 8 of SCTP"),
    ("flow validate 0 ingress pattern eth / ipv4 / icmp ident is 5 / end actions drop / end", 12, "byte 4 of ICMP"),
    ("flow validate 0 ingress pattern eth / end actions represented_port ethdev_port_id 9 / end", 15, "port 9 is not a port of this NIC"),
    ("flow validate 0 ingress pattern eth / end actions mark id 1 / jump group 1 / end", 16, "JUMP beside MARK"),
    ("flow validate 0 ingress pattern eth / end actions flag / drop / end", 16, "DROP beside"),
    ("flow validate 0 ingress pattern eth / end actions rss queues 0 9 end / end", 15, "queue 9 of 2"),
    ("flow validate 0 ingress pattern eth / end actions queue index 0 / queue index 1 / end", 16, "not two"),
    ("flow validate 0 ingress pattern eth / ipv4 / end actions set_tp_src port 7 / port_id id 1 / end", 16, "needs an item"),
    ("flow validate 0 ingress pattern eth / end actions of_pop_vlan / port_id id 1 / end", 16, "needs an exact vlan"),
    ("flow validate 0 ingress pattern eth / end actions vxlan_encap / port_id id 1 / end", 16, "action tnl_push is not an action"),
    ("flow validate 0 ingress pattern eth / end actions raw_encap index 0 / port_id id 1 / end", 15, "50 bytes in all, not 42"),
    ("flow validate 0 ingress pattern eth / ipv4 / udp / end actions vxlan_decap / port_id id 1 / end", 16, "VXLAN_DECAP"),
    ("flow validate 0 ingress pattern eth / end actions raw_decap index 0 / port_id id 1 / end", 16, "RAW_DECAP"),
    ("flow validate 0 ingress pattern eth / ipv6 src is ::1 / end actions set_ttl ttl_value 3 / dec_ttl / port_id id 1 / end", 16, "change of the TTL"),
]

ACCEPTED = [
    "flow validate 0 ingress pattern eth / vlan vid is 5 / vlan vid is 6 / ipv6 / tcp dst is 80 / end actions count / drop / end",
    "flow validate 0 ingress pattern eth type is 0x88a8 / vlan / end actions of_pop_vlan / port_id id 1 / end",
    "flow validate 0 transfer pattern eth / ipv4 / icmp type is 8 / end actions port_id original 1 / end",
    "flow validate 0 transfer pattern eth / ipv6 / icmp6 type is 128 / end actions represented_port ethdev_port_id 1 / end",
    "flow validate 0 ingress pattern eth / arp_eth_ipv4 spa is 10.0.0.1 / end actions mark id 3 / rss queues 0 1 end / end",
    "flow validate 0 priority 7 ingress pattern eth / ipv4 / sctp src is 5 / end actions mark id 1 / queue index 1 / end",
    "flow validate 0 ingress pattern eth / ipv4 / udp / end actions set_mac_src mac_addr 02:00:00:00:00:07 / set_tp_dst port 7 / port_id id 1 / end",
    "flow validate 0 ingress pattern eth / ipv4 / end actions dec_ttl / of_push_vlan ethertype 0x8100 / of_set_vlan_vid vlan_vid 5 / of_set_vlan_pcp vlan_pcp 3 / port_id id 1 / port_id original 1 / end",
    "flow validate 0 ingress pattern eth / ipv4 / udp src spec 10 src last 10 src mask 0xffff / end actions drop / end",
    "flow validate 0 ingress pattern end actions drop / end",
    "flow validate 0 ingress pattern eth has_vlan is 1 / vlan has_more_vlan is 0 / end actions drop / end",
    "flow validate 0 ingress pattern eth type is 0x88a8 / vlan vid is 5 inner_type is 0x8100 / vlan vid is 6 / ipv4 / end actions of_pop_vlan / of_pop_vlan / port_id id 1 / end",
    "flow validate 0 ingress pattern eth dst spec 02:00:00:00:00:00 dst mask ff:ff:ff:00:00:00 / ipv4 src spec 10.0.0.0 src prefix 8 / end actions drop / end",
    "flow validate 0 ingress pattern eth / ipv4 / tcp flags is 2 / end actions flag / queue index 1 / end",
    "flow validate 0 ingress pattern eth / ipv4 / end actions flag / rss / end",
    "flow validate 0 ingress pattern eth / ipv4 / udp / end actions port_id id 1 / set_ipv4_dst ipv4_addr 10.0.0.9 / set_mac_dst mac_addr 02:00:00:00:00:09 / represented_port ethdev_port_id 1 / port_id id 0 / end",
    "flow validate 0 ingress pattern eth / ipv6 / tcp / end actions set_ipv6_src ipv6_addr ::9 / set_tp_src port 9 / port_id id 1 / end",
    "flow validate 0 group 1 ingress pattern eth / ipv4 / end actions drop / end",
    "flow validate 0 ingress pattern eth / ipv4 / end actions jump group 1 / end",
]

# For RAW_ENCAP and RAW_DECAP: outer headers that are no VXLAN.
HEADERS = [
    "set raw_encap 0 eth src is 02:00:00:00:01:01 dst is 02:00:00:00:09:09 / ipv4 src is 192.0.2.1 dst is 192.0.2.9 / udp src is 1 dst is 4789 / end_set",
    "set raw_decap 0 eth / ipv4 / udp / end_set",
]


def test(folder):
    for part in (script, traffic, tunnels, ports, hotplug):
        part(folder)
        print(f"  {part.__name__}: ok")


def run(folder, name, commands, *vdevs, rxq=2):
    """Gives testpmd a script; what it printed."""
    arguments = ["stdbuf", "-o0", "dpdk-testpmd", *eal(*vdevs), "--", "-i", "--total-num-mbufs=8192", f"--rxq={rxq}", f"--txq={rxq}"]
    process = Process(folder, name, *arguments, stdin=subprocess.PIPE)
    until(120, lambda: process.text(), lambda: "testpmd>" in process.text() or not process.alive())
    stdin = process.process.stdin
    for command in commands:
        stdin.write(command.encode() + b"\n")
        stdin.flush()
    stdin.write(b"quit\n")
    stdin.close()
    check(process.process.wait(120) == 0, f"{name}: {process.process.returncode}: {process.text()[-3000:]}")
    return process.text()


def script(folder):
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n}" for n in range(2)]
    # One at a time, so that each answer belongs to its command.
    text = run(folder, "refused", HEADERS + [command for command, *_ in REFUSED], *vdevs)
    errors = re.findall(r"Caught PMD error type (\d+) \([^)]*\): (?:cause: \S+, )?(.*)", text)
    check(len(errors) == len(REFUSED), f"{len(errors)} refusals of {len(REFUSED)}: {text}")
    for (command, kind, part), (got, message) in zip(REFUSED, errors):
        check(int(got) == kind and part in message, f"{command}: type {got}: {message}")
    text = run(folder, "accepted", ACCEPTED, *vdevs)
    check(text.count("Flow rule validated") == len(ACCEPTED), f"{text[-3000:]}")
    check("Caught PMD error" not in text, text[-3000:])
    # One rule twice; a flush; a rule that is not there.
    rule = "flow create 0 ingress pattern eth / ipv4 / udp dst is 9 / end actions count / drop / end"
    text = run(folder, "twice", [rule, rule, "flow flush 0", rule, "flow query 0 0 count", "flow destroy 0 rule 0"], *vdevs)
    check(text.count("Flow rule #") >= 2, f"create after flush: {text[-2000:]}")
    check("a rule with the same pattern and priority is there: File exists" in text, f"twice: {text[-2000:]}")


def traffic(folder):
    """What rules do to packets: output, mark, flag, drop by priority; and who counts what."""
    wires = [Wire(folder, "p0"), Wire(folder, "p1")]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n},{wire.devargs}" for n, wire in enumerate(wires)]
    frame, other = udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100), tcp("10.0.0.1", "10.0.0.2", 5, 80)
    third = tcp("10.0.0.3", "10.0.0.2", 5, 80)
    testpmd = Testpmd(folder, "traffic", *vdevs, queues=2)
    for command in (
        "set fwd rxonly",
        "set verbose 1",
        "start",
        "flow create 0 ingress priority 1 pattern eth / ipv4 / udp dst is 53 / end actions count / port_id id 1 / end",
        "flow create 0 ingress pattern eth / ipv4 src is 10.0.0.1 / tcp / end actions count / mark id 0xabcd / queue index 1 / end",
        "flow create 0 ingress pattern eth / ipv4 src is 10.0.0.3 / tcp / end actions count / flag / queue index 0 / end",
    ):
        testpmd.ask(command)
    testpmd.counts(nic_entries_inserted=3)
    for packet, count in ((frame, 500), (other, 300), (third, 20)):
        for _ in range(count):
            wires[0].send(packet)
    check(len(wires[1].expect(500)) == 500, "by the rule to the other wire")
    for rule, packet, count in ((0, frame, 500), (1, other, 300), (2, third, 20)):
        testpmd.hits(rule, count, count * len(packet))
    testpmd.ask("flow create 0 ingress priority 0 pattern eth / ipv4 src is 10.0.0.1 / udp / end actions count / drop / end")
    testpmd.counts(nic_entries_inserted=4)
    for _ in range(40):
        wires[0].send(frame)
    testpmd.hits(3, 40, 40 * len(frame))
    check(not wires[1].received(), "the rule of the lower number has the packets: dropped")
    testpmd.counts(
        hw_rx_packets=860,
        hw_rx_to_slow_path=320,
        slow_rx_packets=320,
        slow_rx_marked=320,
        nic_entries_inserted=4,
        nic_updates_failed=0,
    )
    text = testpmd.quit()
    check(len(re.findall(r"FDIR matched ID=0xabcd", text)) == 300, f"marks: {text.count('FDIR matched ID=0xabcd')} of 300")
    flagged = len(re.findall(r"RTE_MBUF_F_RX_FDIR(?!_)", text))
    check(flagged == 320, f"flags: {flagged}, not those of 300 marks and 20 flags")
    check(len(re.findall(r"port 0/queue 1: received", text)) > 0, "on the queue that the rule says")


def tunnels(folder):
    """VXLAN_ENCAP and RAW_ENCAP put on what they say, with lengths and checksum, on a NIC that can."""
    wires = [Wire(folder, "e0"), Wire(folder, "e1")]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,profile=large,port={n},{wire.devargs}" for n, wire in enumerate(wires)]
    frames = [udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100), tcp("10.0.0.1", "10.0.0.2", 5, 80)]

    def outer(inner, vni, source):
        head = b"\0\0\0".join([b"\x08", vni.to_bytes(3, "big") + b"\0"])
        body = source.to_bytes(2, "big") + (4789).to_bytes(2, "big") + (16 + len(inner)).to_bytes(2, "big") + b"\0\0" + head + inner
        return bytes.fromhex("020000000909020000000101" "0800") + ipv4("192.0.2.1", "192.0.2.9", 17, body)

    testpmd = Testpmd(folder, "tunnels", *vdevs, queues=2)
    for command in (
        "start",
        "set vxlan ip-version ipv4 vni 4660 udp-src 49153 udp-dst 4789 ip-src 192.0.2.1 ip-dst 192.0.2.9 eth-src 02:00:00:00:01:01 eth-dst 02:00:00:00:09:09",
        HEADERS[0].replace("src is 1 dst", "src is 50000 dst").replace("/ end_set", "/ vxlan vni is 7 / end_set"),
        "flow create 0 ingress pattern eth / ipv4 / udp / end actions count / vxlan_encap / port_id id 1 / end",
        "flow create 0 ingress pattern eth / ipv4 / tcp / end actions count / raw_encap index 0 / port_id id 1 / end",
    ):
        testpmd.ask(command)
    text = testpmd.ask(
        "flow validate 0 ingress pattern eth / ipv4 / tcp / end actions raw_encap index 0 / set_ipv4_src ipv4_addr 1.2.3.4 / port_id id 1 / end"
    )
    check("action set(ipv4) comes after tnl_push" in text, text)
    testpmd.counts(nic_entries_inserted=2)
    for rule, (frame, vni, source) in enumerate([(frames[0], 4660, 49153), (frames[1], 7, 50000)]):
        for _ in range(50):
            wires[0].send(frame)
        got = wires[1].expect(50)
        check(got == [outer(frame, vni, source)] * 50, f"{got[0].hex()} is not {outer(frame, vni, source).hex()}")
        # What came in is what counts.
        testpmd.hits(rule, 50, 50 * len(frame))
    testpmd.quit()


def ports(folder):
    """What a port lets in: promiscuous, address, MTU, isolated."""
    wires = [Wire(folder, "q0"), Wire(folder, "q1")]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n},{wire.devargs}" for n, wire in enumerate(wires)]
    frame = udp("10.0.0.1", "10.0.0.2", 5, 6, b"x" * 100)
    long = udp("10.0.0.1", "10.0.0.2", 5, 6, b"x" * 1600)
    testpmd = Testpmd(folder, "ports", *vdevs)

    def after(commands, frame, count, **want):
        testpmd.ask("clear port xstats 0")
        for command in commands:
            testpmd.ask(command)
        for _ in range(count):
            wires[0].send(frame)
        zero = dict.fromkeys(("slow_rx_packets", "slow_rx_other_address", "slow_rx_oversize", "slow_rx_isolated"), 0)
        testpmd.counts(**{**zero, **want})

    after(["set fwd rxonly", "start"], frame, 10, slow_rx_packets=10)
    after(["set promisc 0 off"], frame, 20, slow_rx_other_address=20)
    after(["mac_addr set 0 02:00:00:00:00:02"], frame, 30, slow_rx_packets=30)
    after([], long, 5, slow_rx_oversize=5)
    after(["stop", "port stop 0", "port config mtu 0 2000", "port start 0", "start"], long, 6, slow_rx_packets=6)
    info = testpmd.ask("show port info 0")
    for part in ("MTU: 2000", "Promiscuous mode: disabled", "MAC address: 02:00:00:00:00:02", "Link status: up"):
        check(part in info, f"{part}: {info}")
    rule = "flow create 0 ingress pattern eth / ipv4 / udp src is 9 / end actions queue index 0 / end"
    isolated = ["stop", "port stop 0", "flow isolate 0 1", "port start 0", "start", rule]
    after(isolated, frame, 7, slow_rx_isolated=7)
    after([], udp("10.0.0.1", "10.0.0.2", 9, 6), 8, slow_rx_packets=8)
    after(["flow isolate 0 0"], frame, 9, slow_rx_packets=9)
    testpmd.quit()


def hotplug(folder):
    """Ports come and go while testpmd runs, and leave no rule behind on the NIC that stays."""
    wire = Wire(folder, "h0")
    rule = "flow create {} ingress pattern eth / ipv4 / udp dst is 9 / end actions count / queue index 0 / end"
    attach = f"port attach net_flowlift7,nic=sim,port=3,{wire.devargs}"
    commands = [
        "port attach net_flowlift7,nic=sim,port=99",
        attach,
        "port start 1",
        rule.format(1),
        "port stop 1",
        "port detach 1",
        "show port xstats 0",
        attach,
        "port start 1",
        rule.format(1),
        "flow query 1 0 count",
    ]
    text = run(folder, "hotplug", commands, "--vdev=net_flowlift0,nic=sim,port=0", rxq=1)
    check("its ports are 0 to" in text, text[-3000:])
    check(text.count("Flow rule #0 created") == 2 and "hits: 0" in text and "is there: File exists" not in text, text[-4000:])
    # testpmd closes without asking for counters, so that this is of the script.
    seen = re.findall(r"^nic_entries_(?:inserted|deleted): (\d+)", text, re.M)
    # A rule that goes before the NIC was given it never gets there.
    check(seen in (["1", "1"], ["0", "0"]), f"entries inserted and deleted with the port: {seen}")
    check("in use" not in text and "a bug" not in text and "violations of" not in text, text[-4000:])


if __name__ == "__main__":
    main(test)
