#!/usr/bin/env python3
"""`slow.py [SECONDS]`: the slow path by testpmd, packets that go round between two ports of a simulated NIC on one cable, and what
each thread spends on them."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from common import check, eal, main

SECONDS = 5
# Bursts of 32 packets that go round on each port.
BURSTS = 64
# Packets per second of the service thread's CPU time, both ways: any machine reaches that.
FLOOR = 50_000


def spent(pid):
    """Microseconds of CPU time of each thread."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(t / "comm").read_text().strip(): int((t / "schedstat").read_text().split()[0]) / 1e3 for t in tasks}


class Testpmd:
    def __init__(self):
        vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n},wire=memory:cable" for n in range(2)]
        command = ["stdbuf", "-oL", "dpdk-testpmd", *eal(*vdevs), "--", "-i", "--total-num-mbufs=32768", "--rxd=4096", "--txd=4096"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.until("testpmd> ")

    def until(self, mark):
        text = ""
        while not re.search(mark, text):
            part = os.read(self.process.stdout.fileno(), 65536).decode(errors="replace")
            if not part:
                raise AssertionError(f"testpmd ended: {text[-2000:]}")
            text += part
        return text

    def say(self, command, mark):
        """What it prints after a command, up to a mark."""
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        return self.until(mark)

    def counted(self):
        """Packets received and sent by all ports."""
        text = self.say("show port stats all", r"(?s)port 1  ##.*Tx-bps")
        total = lambda what: sum(int(n) for n in re.findall(rf"{what}-packets:\s*(\d+)", text))
        return total("RX"), total("TX")


def test(_):
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    testpmd = Testpmd()
    try:
        testpmd.say("set fwd io", "Set io packet")
        testpmd.say(f"start tx_first {BURSTS}", "TX RS bit")
        time.sleep(1)
        before, cpu, start = testpmd.counted(), spent(testpmd.process.pid), time.monotonic()
        time.sleep(seconds)
        after, then, end = testpmd.counted(), spent(testpmd.process.pid), time.monotonic()
        testpmd.say("stop", "Done")
        xstats = testpmd.say("show port xstats 0", r"nic_violations: \d+")
        check("nic_violations: 0" in xstats, f"violations: {xstats}")
    finally:
        testpmd.process.stdin.close()
        testpmd.process.wait(60)
    rx, tx = (b - a for a, b in zip(before, after))
    check(rx > 0 and tx > 0, f"{rx} packets received, {tx} sent")
    print(f"  each way, by the clock: {rx / (end - start) / 1e6:.3f} Mpps received, {tx / (end - start) / 1e6:.3f} sent")
    for thread in ("flowlift-nic", "flowlift-device", "rte-worker-1"):
        us = then[thread] - cpu[thread]
        share = us / (end - start) / 1e4
        print(f"    {thread:16} {rx / us:8.3f} Mpps each way per CPU second ({us * 1e3 / rx:6.0f} ns per packet; {share:3.0f} % of a CPU)")
    check(rx / (then["flowlift-nic"] - cpu["flowlift-nic"]) * 1e6 > FLOOR, "the service thread's rate")


if __name__ == "__main__":
    main(test)
