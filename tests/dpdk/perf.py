#!/usr/bin/env python3
"""How many rules of Ethernet and IPv4 to a queue are created and destroyed in a second, beside a driver that does nothing.

`perf.py [RULES]`: first by dpdk-test-flow-perf, then by tests/dpdk/rate, which waits until the NIC has confirmed every rule and
says what each thread spent: twice, as the first rules find memory that the host has yet to give."""

import os
import re
import sys

from common import ROOT, check, eal, main, output

RULES = 200_000
# Rules per second of the creating thread's CPU time that any machine reaches; the figures are docs/benchmarks.md's.
FLOOR = 20_000
DPDK = ROOT / "target/dpdk/22.11"
RATE = ROOT / "tests/dpdk/rate"
# A NIC has its memory from the start.
FLOWLIFT = "--vdev=net_flowlift0,nic=sim,profile=large,populate={}"


def build():
    """The driver that does nothing, and the programs; where they are."""
    out = DPDK / "rate"
    out.mkdir(exist_ok=True)
    include = [f"-I/usr/include/{path}" for path in ("dpdk", "x86_64-linux-gnu/dpdk")] + [f"-I{DPDK / 'source'}"]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", *include, "-include", "rte_config.h", "-march=corei7"]
    flags += ["-DALLOW_EXPERIMENTAL_API", "-DALLOW_INTERNAL_API"]
    libraries = ["-lrte_ethdev", "-lrte_eal", "-lrte_bus_vdev", "-lrte_mempool", "-lrte_mbuf"]
    output("cc", *flags, "-shared", "-fPIC", "-o", str(out / "librte_net_noop.so"), str(RATE / "noop.c"), *libraries)
    for program in ("rate", "bursts"):
        output("cc", *flags, "-o", str(out / program), str(RATE / f"{program}.c"), *libraries)
    return out


def arguments(*vdevs):
    return eal("-d", "librte_net_noop.so", *vdevs, memory=512)


def by_dpdk(rules):
    """dpdk-test-flow-perf on both drivers: thousand rules per second, created and destroyed, by driver."""
    which = ["--ingress", "--ether", "--ipv4", "--queue", f"--rules-count={rules}", "--deletion-rate"]
    text = output("dpdk-test-flow-perf", *arguments("--vdev=net_noop0", FLOWLIFT.format(rules)), "--", *which)
    check("rror" not in text, f"an error: {text[-2000:]}")
    rates = {}
    for port, name in enumerate(("net_noop", "net_flowlift")):
        total = rf"Throughput \| {{}}\] All Cores :: Port {port} :: Total .* rate -> ([0-9.]+) K"
        made = re.search(total.format("Insertion"), text)
        gone = re.search(total.format("Deletion"), text)
        check(made and gone, f"no rates of port {port}: {text[-2000:]}")
        rates[name] = float(made[1]), float(gone[1])
    return rates


def until_confirmed(out, rules):
    """tests/dpdk/rate on both drivers: what it says of the first round and of the second, by driver."""
    text = output(str(out / "rate"), *arguments("--vdev=net_noop0", FLOWLIFT.format(rules)), "--", str(rules), "2")
    rounds = ({}, {})
    for line in text.splitlines():
        if line.startswith("port="):
            pairs = dict(word.split("=", 1) for word in line.split())
            name = pairs["name"].rstrip("0123456789")
            rounds[name in rounds[0]][name] = pairs
    return rounds


def test(_):
    rules = int(sys.argv[1]) if len(sys.argv) > 1 else RULES
    out = build()
    os.environ["LD_LIBRARY_PATH"] = f"{os.environ['LD_LIBRARY_PATH']}:{out}"
    rates = by_dpdk(rules)
    noop, ours = rates["net_noop"], rates["net_flowlift"]
    print(f"  dpdk-test-flow-perf, {rules} rules      created/s  destroyed/s")
    for name, (made, gone) in rates.items():
        print(f"    {name:33}{made * 1e3:12.0f} {gone * 1e3:12.0f}")
    print(f"    {'ratio':33}{ours[0] / noop[0]:12.3f} {ours[1] / noop[1]:12.3f}")

    print("  until the NIC has confirmed them      created/s    in the NIC/s  destroyed/s  out of the NIC/s")
    for n, said in enumerate(until_confirmed(out, rules)):
        confirmed(rules, n + 1, said)


def confirmed(rules, n, said):
    """What a round came to: `n` of them have been."""
    ours = said["net_flowlift"]
    count = {name: int(value) for name, value in ours.items() if name.startswith("nic_")}
    check(count["nic_entries_inserted"] == n * rules, f"rules that the NIC confirmed: {ours}")
    check(count["nic_entries_deleted"] == n * rules, f"rules that the NIC let go: {ours}")
    check(count["nic_updates_failed"] == count["nic_violations"] == 0, f"failures and violations: {ours}")
    check(count["nic_completions"] >= 2 * n * rules, f"completions: {ours}")
    for name, pairs in said.items():
        rate = lambda what: f"{rules / float(pairs[what]) * 1e6:.0f}" if what in pairs else "-"
        row = "".join(f"{rate(what):>14}" for what in ("create", "inserted", "destroy", "deleted"))
        print(f"    {f'{name}, round {n}':33}{row}")
    print(f"      confirmed: {rules} in, {rules} out; 0 failed, 0 violations")
    for phase in ("create", "destroy"):
        spent = {key.split(":")[1]: float(us) for key, us in ours.items() if key.startswith(f"{phase}:")}
        parts = ", ".join(f"{thread} {us / rules:.2f}" for thread, us in sorted(spent.items(), key=lambda item: -item[1]))
        print(f"      CPU time to {phase} a rule, us: {sum(spent.values()) / rules:.2f} ({parts})")
    creating = float(ours["create:rate"])
    check(rules / creating * 1e6 > FLOOR, f"{rules / creating * 1e6:.0f} rules per CPU second of the creating thread")


if __name__ == "__main__":
    main(test)
