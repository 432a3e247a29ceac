#!/usr/bin/env python3
"""What a wrong use gets: one line that says why, and no port; never a crash."""

import subprocess

from common import check, eal, main

CASES = [
    ("", "is missing"),
    ("nic=simulator", "neither sim"),
    ("nic=sim,port=99", "its ports are 0 to 15"),
    ("nic=sim,profile=huge", "neither tiny, standard nor large"),
    ("nic=sim,wire=udp:1", "is not one"),
    ("nic=sim,wire=packet:no-such-device", "no-such-device"),
    ("nic=vfio-user:/nowhere", "/nowhere"),
    ("nic=0000:ff:1f.7", "0000:ff:1f.7"),
    ("nic=sim,colour=red", "unknown argument"),
]


def probe(*vdevs):
    command = ["dpdk-testpmd", *eal(*vdevs), "--", "--total-num-mbufs=2048", "--auto-start", "--stats-period=0"]
    done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test(_):
    for arguments, part in CASES:
        code, text = probe(f"--vdev=net_flowlift0,{arguments}".rstrip(","))
        lines = [line for line in text.splitlines() if "net_flowlift:" in line]
        check(code >= 0, f"{arguments}: killed by signal {-code}: {text[-1000:]}")
        check(len(lines) == 1 and part in lines[0], f"{arguments}: {lines}: {text[-1000:]}")
    # Two ports that do not go together: the second one is refused, the first one stays.
    for second, part in [("nic=sim,port=0", "is in use"), ("nic=sim,port=1,profile=large", "another profile")]:
        code, text = probe("--vdev=net_flowlift0,nic=sim,port=0,profile=tiny", f"--vdev=net_flowlift1,{second}")
        check(code >= 0 and part in text, f"{second}: {text[-1000:]}")


if __name__ == "__main__":
    main(test)
