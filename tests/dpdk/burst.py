#!/usr/bin/env python3
"""`burst.py [FLOWS]`: a burst of new flows in Open vSwitch with DPDK, and how long the last of them takes to be in the NIC."""

import sys
import time

from common import check, main, udp, until
from vswitch import Switch

FLOWS = 5_000
# Frames on their way at most: the NIC's receive ring and Open vSwitch's poll are shorter than the burst.
WINDOW = 512
# From the last packet of the burst to no backlog. The goal is a second, and the time is told; this is for a machine that is held up.
PATIENCE = 120


class Burst:
    def __init__(self, switch, flows):
        self.switch, self.source, self.sink = switch, *switch.wires
        frame = udp("10.0.0.1", "10.0.0.2", 1000, 53, b"burst")
        self.frames = [frame[:6] + b"\2\0" + n.to_bytes(4, "big") + frame[12:] for n in range(flows)]

    def send(self):
        """Sends each frame once; the seconds until all came out of the other port."""
        start, came = time.monotonic(), 0
        for n, frame in enumerate(self.frames):
            self.source.send(frame)
            while n + 1 - came >= WINDOW:
                came += len(self.sink.received())
                if time.monotonic() - start > 300:
                    raise AssertionError(f"{came} of {n + 1} frames came through")
        came += len(self.sink.expect(len(self.frames) - came, 60))
        check(came == len(self.frames), f"{came} of {len(self.frames)} frames")
        return time.monotonic() - start

    def slow(self):
        """Packets that the NIC gave to Open vSwitch."""
        return int(self.switch.vsctl("get", "Interface", "p0", "statistics:rx_packets"))


def test(folder):
    flows = int(sys.argv[1]) if len(sys.argv) > 1 else FLOWS
    switch = Switch(folder, "large")
    try:
        # A line per flow would be most of the work. Open vSwitch admits more flows only by and by, and throws some out when it
        # finds itself slow at looking after them: that is not asked here, so it looks seldom.
        switch.appctl("vlog/set", "netdev_offload_dpdk:file:info")
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:max-revalidator=120000")
        switch.appctl("upcall/set-flow-limit", str(4 * flows))
        # The rule that no packet matches has Open vSwitch look at the source address: a flow for each.
        switch.rules("priority=40000,in_port=1,dl_src=02:ff:ff:ff:ff:ff actions=drop", "in_port=1,udp actions=output:2")
        burst = Burst(switch, flows)
        seconds = burst.send()
        end = time.monotonic()
        waiting = []

        def done():
            waiting.append(switch.offloads())
            return waiting[-1] == (0, flows)

        until(PATIENCE, lambda: f"offloads that wait, and made, of {flows}: {waiting[-1]}", done, 0.02)
        after = time.monotonic() - end
        # What is in hardware is not Open vSwitch's any more: no packet comes to the host a second time. Statistics are seconds old.
        slow = lambda: f"{burst.slow()} packets came to the host, of {flows} flows"
        until(60, slow, lambda: burst.slow() >= flows, 0.5)
        again = burst.send()
        time.sleep(6)
        check(burst.slow() == flows, slow())
        print(f"  {flows} new flows in {seconds:.2f} s ({flows / seconds:.0f}/s); all in the NIC {after:.2f} s after the last packet")
        print(f"  the same packets again, by the NIC alone: {again:.2f} s, none of them to the host")
        check(switch.daemon.alive(), "ovs-vswitchd lives")
    finally:
        switch.stop()
    log = (folder / "vswitchd.log").read_text()
    for word in ("violations", "a bug", "|EMER|"):
        check(word not in log, f"{word} in ovs-vswitchd's log")


if __name__ == "__main__":
    main(test)
