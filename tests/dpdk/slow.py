#!/usr/bin/env python3
"""`slow.py [SECONDS]`: the slow path, packets that go round between two ports of a simulated NIC on one cable.

By tests/dpdk/rate's `bursts`: the CPU time of a thread that receives and sends, without its waiting. By testpmd, which polls
without pause: packets per second by the clock, and what each thread of the process spends meanwhile."""

import re
import sys
import time
from pathlib import Path

from common import Testpmd, check, eal, main, output
from perf import build

SECONDS = 5
# Packets that go round, fewer than a queue holds.
PACKETS = 4000
# Bursts of 32 packets that testpmd sends round on each port.
BURSTS = 64
# Packets per second of a thread's CPU time, both ways: any machine reaches that.
FLOOR = 200_000
VDEVS = [f"--vdev=net_flowlift{n},nic=sim,port={n},wire=memory:cable" for n in range(2)]


def spent(pid):
    """Microseconds of CPU time of each thread."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(t / "comm").read_text().strip(): int((t / "schedstat").read_text().split()[0]) / 1e3 for t in tasks}


def by_bursts(seconds):
    text = output(str(build() / "bursts"), *eal(*VDEVS, lcores="0"), "--", str(PACKETS), str(seconds))
    said = {name: float(value) for name, value in re.findall(r"(\w+)=(-?[0-9.]+)", text.splitlines()[-1])}
    check(said["lost"] == 0 and said["nic_violations"] == 0, f"lost, violations: {said}")
    receive, send = said["receive"] / said["received"], said["send"] / said["sent"]
    print(f"  per CPU second of the thread that moves them, in bursts of {said['received'] / said['receive_bursts']:.0f}:")
    for what, ns in (("received", receive), ("sent", send), ("received and sent", receive + send)):
        print(f"    {what:17} {1e3 / ns:8.2f} Mpps ({ns:4.0f} ns per packet)")
    check(1e9 / (receive + send) > FLOOR, "the application's rate")


def counted(testpmd):
    """Packets received and sent by all ports."""
    text = testpmd.ask("show port stats all")
    return [sum(int(n) for n in re.findall(rf"{what}-packets:\s*(\d+)", text)) for what in ("RX", "TX")]


def by_testpmd(folder, seconds):
    testpmd = Testpmd(folder, "testpmd", *VDEVS, ring=4096, mbufs=32768)
    testpmd.ask("set fwd io")
    testpmd.ask(f"start tx_first {BURSTS}")
    time.sleep(1)
    before, cpu, start = counted(testpmd), spent(testpmd.pid()), time.monotonic()
    time.sleep(seconds)
    after, then, end = counted(testpmd), spent(testpmd.pid()), time.monotonic()
    testpmd.ask("stop")
    testpmd.counts(nic_violations=0)
    testpmd.quit()
    rx, tx = (b - a for a, b in zip(before, after))
    check(rx > 0 and tx > 0, f"{rx} packets received, {tx} sent")
    print(f"  each way, by the clock: {rx / (end - start) / 1e6:.3f} Mpps received, {tx / (end - start) / 1e6:.3f} sent")
    for thread in ("rte-worker-1", "flowlift-nic", "flowlift-device"):
        us = then[thread] - cpu[thread]
        share = us / (end - start) / 1e4
        print(f"    {thread:16} {rx / us:8.3f} Mpps each way per CPU second ({us * 1e3 / rx:6.0f} ns per packet; {share:3.0f} % of a CPU)")


def test(folder):
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    by_bursts(seconds)
    by_testpmd(folder, seconds)


if __name__ == "__main__":
    main(test)
