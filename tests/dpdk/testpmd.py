#!/usr/bin/env python3
"""dpdk-testpmd: ports, packets, and rte_flow by script; each refusal's type, cause and message."""

import re
import subprocess
import time

from common import Process, Wire, check, eal, main, tcp, udp, until

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
]


def counters(text):
    found = re.findall(r"^(\w+): (\d+)$", text, re.M)
    return {name: int(value) for name, value in found}


def test(folder):
    script(folder)
    traffic(folder)


def run(folder, name, commands, *vdevs, rxq=2, pause=()):
    """Gives testpmd a script; what it printed. `pause`: (number of commands before it, what happens meanwhile)."""
    arguments = ["stdbuf", "-o0", "dpdk-testpmd", *eal(*vdevs), "--", "-i", "--total-num-mbufs=8192", f"--rxq={rxq}", f"--txq={rxq}"]
    process = Process(folder, name, *arguments, stdin=subprocess.PIPE)
    until(60, lambda: process.text(), lambda: "testpmd>" in process.text() or not process.alive())
    stdin = process.process.stdin
    pauses = dict(pause)
    for n, command in enumerate(commands):
        if n in pauses:
            time.sleep(0.5)
            pauses[n](process)
        stdin.write(command.encode() + b"\n")
        stdin.flush()
    if len(commands) in pauses:
        time.sleep(0.5)
        pauses[len(commands)](process)
    stdin.write(b"quit\n")
    stdin.close()
    check(process.process.wait(60) == 0, f"{name}: {process.process.returncode}: {process.text()[-3000:]}")
    return process.text()


def script(folder):
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n}" for n in range(2)]
    # One at a time, so that each answer belongs to its command.
    text = run(folder, "refused", [command for command, *_ in REFUSED], *vdevs)
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
    wires = [Wire(folder, "p0"), Wire(folder, "p1")]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n},{wire.devargs}" for n, wire in enumerate(wires)]
    frame, other = udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100), tcp("10.0.0.1", "10.0.0.2", 5, 80)

    def send(_):
        for _ in range(500):
            wires[0].send(frame)
        for _ in range(300):
            wires[0].send(other)
        check(len(wires[1].expect(500)) == 500, "by the rule to the other wire")

    def low(_):
        for _ in range(40):
            wires[0].send(frame)
        time.sleep(0.5)
        check(not wires[1].received(), "the rule of the lower number has the packets: dropped")

    commands = [
        "set fwd rxonly",
        "set verbose 1",
        "start",
        "flow create 0 ingress priority 1 pattern eth / ipv4 / udp dst is 53 / end actions count / port_id id 1 / end",
        "flow create 0 ingress pattern eth / ipv4 / tcp / end actions count / mark id 0xabcd / queue index 1 / end",
        "flow query 0 0 count",
        "flow query 0 1 count",
        "flow create 0 ingress priority 0 pattern eth / ipv4 src is 10.0.0.1 / udp / end actions count / drop / end",
        "flow query 0 2 count",
        "stop",
        "show port xstats 0",
        "port stop 0",
        "port start 0",
        "port config mtu 0 9000",
        "flow isolate 0 1",
        "set promisc 0 off",
        "show port info 0",
    ]
    text = run(folder, "traffic", commands, *vdevs, pause=[(5, send), (8, low)])
    hits = re.findall(r"hits: (\d+)\s+bytes: (\d+)", text)
    sizes = [(500, 500 * len(frame)), (300, 300 * len(other)), (40, 40 * len(frame))]
    check([(int(h), int(b)) for h, b in hits] == sizes, f"counters {hits}, not {sizes}")
    check(len(re.findall(r"FDIR matched ID=0xabcd", text)) == 300, f"marks: {text.count('FDIR matched ID=0xabcd')} of 300")
    check(len(re.findall(r"port 0/queue 1: received", text)) > 0, "on the queue that the rule says")
    xstats = counters(text)
    for name, value in [("hw_rx_packets", 840), ("hw_rx_to_slow_path", 300), ("slow_rx_packets", 300), ("slow_rx_marked", 300), ("nic_entries_inserted", 3), ("nic_updates_failed", 0)]:
        check(xstats.get(name) == value, f"{name}: {xstats.get(name)}, not {value}")
    check("MTU: 9000" in text and "Promiscuous mode: disabled" in text and "Link status: up" in text, f"port info: {text[-2500:]}")


if __name__ == "__main__":
    main(test)
