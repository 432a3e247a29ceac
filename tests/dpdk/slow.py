#!/usr/bin/env python3
"""`slow.py [SECONDS]`: the slow path, packets that go round between two ports of a simulated NIC on one cable.

First that none is lost: while the NIC fails again and again, and while two threads poll and send by queues of their own.
Then by tests/dpdk/rate's `bursts`: the CPU time of a thread that receives and sends, without its waiting. By testpmd, which polls
without pause: packets per second by the clock, and what each thread of the process spends meanwhile."""

import re
import subprocess
import sys
import time
from pathlib import Path

from common import Testpmd, check, eal, main, until
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


def bursts(program, seconds, *vdevs):
    """What `bursts` prints, and how often the NIC failed meanwhile; none if it failed as it was brought up."""
    command = [str(program), *eal(*vdevs, lcores="0"), "--", str(PACKETS), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    text = done.stdout + done.stderr
    failures = text.count("the NIC failed")
    if failures and "failed to initialize" in text:
        return None
    check(done.returncode == 0, text[-3000:])
    line = next(line for line in done.stdout.splitlines() if line.startswith("received="))
    said = {name: float(value) for name, value in re.findall(r"(\w+)=(-?[0-9.]+)", line)}
    check(said["lost"] == 0 and said["nic_violations"] == 0, f"lost, violations: {said}, {failures} failures")
    check(said["received"] > 0, f"nothing went round: {said}")
    return said, failures


def through_failures(program):
    """DMA that is blocked at a time, at each of which the NIC is reset and brought up again."""
    failures = 0
    for seed in range(1, 100):
        said = bursts(program, 1, f"{VDEVS[0]},seed={seed},faults=dma_fault=0.000004", VDEVS[1])
        failures += said[1] if said else 0
        if failures >= 3:
            print(f"  through {failures} failures of the NIC: no packet lost")
            return
    check(False, f"the NIC failed {failures} times only")


def by_two_threads(folder, seconds):
    """Two threads, each with a queue of each port: a port's queues share one of the NIC's."""
    more = ["--nb-cores=2", "--txonly-multi-flow"]
    testpmd = Testpmd(folder, "threads", *VDEVS, queues=2, ring=4096, mbufs=32768, lcores="0@0,1@0,2@1", more=more)
    testpmd.ask("set fwd io")
    testpmd.ask("start tx_first 16")
    time.sleep(seconds)
    before = counted(testpmd)
    until(60, "packets that still go round", lambda: counted(testpmd)[0] > before[0] + 10_000)
    text = testpmd.ask("stop") + testpmd.ask("show port stats all")
    for what in ("RX-dropped", "TX-dropped", "RX-missed", "RX-errors", "RX-nombuf", "TX-errors"):
        check(set(re.findall(rf"{what}:\s*(\d+)", text)) == {"0"}, f"{what}: {text}")
    testpmd.counts(nic_violations=0)
    testpmd.quit()
    print("  two threads: no packet lost")


def by_bursts(program, seconds):
    said, _ = bursts(program, seconds, *VDEVS)
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
    program = build() / "bursts"
    through_failures(program)
    by_two_threads(folder, 1)
    by_bursts(program, seconds)
    by_testpmd(folder, seconds)


if __name__ == "__main__":
    main(test)
