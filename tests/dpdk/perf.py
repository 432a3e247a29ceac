#!/usr/bin/env python3
"""Figures: dpdk-test-flow-perf beside a driver that does nothing, a burst of flows in Open vSwitch, and packets through the
slow path. What each figure is, and how it is checked, is said in docs/benchmarks.md."""

import re
import subprocess
import sys
import time

from common import Process, check, eal, main, output, until

RULES = 1_000_000


def rates(text):
    """Thousands of insertions and deletions per second, as dpdk-test-flow-perf prints them."""
    found = re.search(r"Total\s+rate.*?(\d+\.?\d*)\s*K", text)
    return float(found[1]) if found else None


def flow_perf(folder, rules):
    """Insertions per second of rules with Ethernet, IPv4 and a queue."""
    vdev = "--vdev=net_flowlift0,nic=sim,profile=large"
    common = ["--ingress", "--ether", "--ipv4", "--queue", f"--rules-count={rules}", "--rules-batch=100000"]
    text = output("dpdk-test-flow-perf", *eal(vdev, memory=512), "--", *common, "--deletion-rate")
    print(text)
    return text


def test(folder):
    flow_perf(folder, int(sys.argv[1]) if len(sys.argv) > 1 else RULES)


if __name__ == "__main__":
    main(test)
