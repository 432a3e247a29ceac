#!/usr/bin/env python3
"""DPDK 24.11 by the same code: built against trixie's packages, unpacked beside the system, and loaded by their testpmd; and each
DPDK's driver in the other one's program. Its argument is 24.11's driver."""

import os
import subprocess
import sys
from pathlib import Path

from common import ROOT, Wire, check, eal, main

ROOTFS = ROOT / "target/dpdk/24.11/root"
LIBRARIES = ROOTFS / "usr/lib/x86_64-linux-gnu"
# Where EAL would load the packages' drivers from, were they installed; testpmd needs one for its buffers.
DRIVERS = LIBRARIES / "dpdk/pmds-25.0"
COMMANDS = """start
flow create 0 ingress pattern eth / ipv4 / udp dst is 53 / end actions count / port_id id 1 / end
flow create 0 ingress pattern eth / udp / end actions drop / end
flow create 0 transfer pattern eth / ipv6 / end actions count / represented_port ethdev_port_id 1 / end
flow query 0 0 count
show port info 0
show port xstats 0
flow flush 0
flow destroy 0 rule 0
quit
"""


def newer(driver, *vdevs):
    """24.11's testpmd with the packages' own loader and libraries; the system's are found where these have none."""
    path = ":".join(map(str, [Path(driver).parent, LIBRARIES, DRIVERS]))
    loader = [str(LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", path, str(ROOTFS / "usr/bin/dpdk-testpmd")]
    arguments = ["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", "-l", "0,1"]
    drivers = ["-d", "librte_mempool_ring.so.25", "-d", Path(driver).name]
    return ended([*loader, *arguments, *drivers, *vdevs, "--", "-i", "--total-num-mbufs=4096"])


def ended(command, **more):
    done = subprocess.run(command, input=COMMANDS, capture_output=True, text=True, timeout=600, **more)
    return done.returncode, done.stdout + done.stderr


def test(folder):
    built = sys.argv[1]
    wires = [Wire(folder, f"p{n}") for n in range(2)]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,profile=large,port={n},{wire.devargs}" for n, wire in enumerate(wires)]
    code, text = newer(built, *vdevs)
    check(code == 0, f"testpmd of 24.11 ended with {code}: {text[-3000:]}")
    for part in (
        "Flow rule #0 created",
        "Flow rule #1 created",
        "UDP needs IPV4 or IPV6",
        "Driver name: net_flowlift",
        "hits: 0",
        "slow_rx_packets: 0",
        "MTU: 1500",
    ):
        check(part in text, f"{part}: {text[-3000:]}")
    check("bug" not in text and "violations of" not in text, text[-3000:])

    # 22.11's driver in 24.11's program, which finds 22.11's libraries beside its own.
    older = next(path / os.environ["FLOWLIFT_PLUGIN"] for path in map(Path, os.environ["LD_LIBRARY_PATH"].split(":")))
    code, text = newer(older, *vdevs)
    lines = [line for line in text.splitlines() if "net_flowlift:" in line]
    check(code > 0 and len(lines) == 1, f"22.11's driver in 24.11: {code}: {lines}: {text[-2000:]}")
    check("built for DPDK 22.11, but this process runs DPDK 24.11" in lines[0], lines[0])
    # And the other way round, where 24.11's libraries are not to be had.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(built).parent)}
    arguments = eal(*vdevs)
    code, text = ended(["dpdk-testpmd", *arguments, "--", "-i", "--total-num-mbufs=4096"], env=environment)
    check(code > 0 and "librte_ethdev.so.25: cannot open" in text, f"24.11's driver in 22.11: {code}: {text[-2000:]}")


if __name__ == "__main__":
    main(test)
