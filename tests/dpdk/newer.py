#!/usr/bin/env python3
"""DPDK 24.11 by the same code: built against trixie's packages, unpacked beside the system, and loaded by their testpmd."""

import os
import subprocess

from common import ROOT, check, main, output

ROOTFS = ROOT / "target/dpdk/24.11/root"
COMMANDS = """flow create 0 ingress pattern eth / ipv4 / udp dst is 53 / end actions count / port_id id 1 / end
flow create 0 ingress pattern eth / udp / end actions drop / end
flow query 0 0 count
show port info 0
quit
"""


def run(plugin, *vdevs):
    # The packages' own loader and libraries, nothing of the system's.
    library = ROOTFS / "usr/lib/x86_64-linux-gnu"
    loader = [str(library / "ld-linux-x86-64.so.2"), "--library-path", str(library), str(ROOTFS / "usr/bin/dpdk-testpmd")]
    eal = ["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", "-l", "0,1", "-d", plugin]
    command = [*loader, *eal, *vdevs, "--", "-i", "--total-num-mbufs=4096"]
    done = subprocess.run(command, input=COMMANDS, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test(_):
    plugin = output(str(ROOT / "tests/dpdk/build"), "24.11").splitlines()[-1]
    vdevs = [f"--vdev=net_flowlift{n},nic=sim,port={n},wire=memory:cable" for n in range(2)]
    code, text = run(plugin, *vdevs)
    check(code == 0, f"testpmd of 24.11 ended with {code}: {text[-3000:]}")
    for part in ("Flow rule #0 created", "UDP needs IPV4 or IPV6", "Driver name: net_flowlift", "hits: 0"):
        check(part in text, f"{part}: {text[-3000:]}")
    # The driver of 22.11 in a program of 24.11.
    code, text = run(os.environ["FLOWLIFT_PLUGIN"], *vdevs)
    check(code > 0 and "librte_ethdev.so.23" in text, f"another DPDK's driver: {code}: {text[-2000:]}")


if __name__ == "__main__":
    main(test)
