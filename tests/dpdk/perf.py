#!/usr/bin/env python3
"""dpdk-test-flow-perf: how many rules of Ethernet and IPv4 to a queue are created and destroyed in a second."""

import re
import sys

from common import check, eal, main, output

RULES = 200_000


def test(_):
    rules = int(sys.argv[1]) if len(sys.argv) > 1 else RULES
    vdev = "--vdev=net_flowlift0,nic=sim,profile=large"
    arguments = ["--ingress", "--ether", "--ipv4", "--queue", f"--rules-count={rules}", "--deletion-rate"]
    text = output("dpdk-test-flow-perf", *eal(vdev, memory=512), "--", *arguments)
    made = re.search(r"Total flows insertion rate -> ([0-9.]+) K", text)
    gone = re.search(r"Total deletion rate -> ([0-9.]+) K", text)
    check(made and gone, f"no rates: {text[-2000:]}")
    check("rror" not in text, f"an error: {text[-2000:]}")
    print(f"  {rules} rules: {made[1]} thousand created, {gone[1]} thousand destroyed in a second")


if __name__ == "__main__":
    main(test)
