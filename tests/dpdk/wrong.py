#!/usr/bin/env python3
"""What a wrong use gets: one line that says why, and no port; never a crash."""

import contextlib
import os
import subprocess
from pathlib import Path

from common import Process, check, eal, main, output, plugin, until

CASES = [
    ("", "is missing"),
    ("nic=simulator", "neither sim"),
    ("nic=sim,port=99", "its ports are 0 to 15"),
    ("nic=sim,profile=huge", "neither tiny, standard nor large"),
    ("nic=sim,wire=udp:1", "is not one"),
    ("nic=sim,wire=packet:no-such-device", "p0, packet:no-such-device: No such device"),
    ("nic=vfio-user:/nowhere", "/nowhere"),
    ("nic=0000:ff:1f.7", "0000:ff:1f.7"),
    ("nic=sim,colour=red", "unknown argument"),
] + [
    # Any function of this machine's, as none of them is handed over.
    (f"nic={function.name}", f"{function.name}: a function that is not bound to vfio-pci")
    for function in sorted(Path("/sys/bus/pci/devices").glob("*"))[:1]
    if (function / "driver").resolve().name != "vfio-pci"
]


def probe(*vdevs):
    command = ["dpdk-testpmd", *eal(*vdevs), "--", "--total-num-mbufs=2048", "--auto-start", "--stats-period=0"]
    done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
# Makes room for huge pages: on a machine that has built all day, memory is in pieces, and full of files.
DROP_CACHES, COMPACT = Path("/proc/sys/vm/drop_caches"), Path("/proc/sys/vm/compact_memory")


@contextlib.contextmanager
def huge_pages(folder, count):
    """A mount of huge pages: processes of one DPDK application share no other memory."""
    mount, before = folder / "huge", int(HUGE_PAGES.read_text())
    mount.mkdir()
    output("mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(mount))
    try:
        def got():
            HUGE_PAGES.write_text(str(before + count))
            given = int(HUGE_PAGES.read_text()) - before
            if given < count:
                DROP_CACHES.write_text("3")
                COMPACT.write_text("1")
            return given >= count

        until(60, lambda: f"the kernel gives {int(HUGE_PAGES.read_text()) - before} of {count} huge pages of 2 MiB", got, 1)
        yield mount
    finally:
        # What others have taken or given back meanwhile stays so.
        HUGE_PAGES.write_text(str(max(0, int(HUGE_PAGES.read_text()) - count)))
        output("umount", str(mount))


def secondary(folder):
    """A secondary process is refused port by port, with a line each; the primary goes on as before."""
    with huge_pages(folder, 192) as mount:
        shared = ["--huge-dir", str(mount), "--no-pci", "--no-telemetry", "--file-prefix", f"flowlift{os.getpid()}", "-l", "0,1", "-d", plugin()]
        ports = ["--", "-i", "--total-num-mbufs=2048"]
        command = ["stdbuf", "-o0", "dpdk-testpmd", "-m", "256", *shared, "--vdev=net_flowlift0,nic=sim", *ports]
        primary = Process(folder, "primary", *command, stdin=subprocess.PIPE)
        until(120, primary.text, lambda: "testpmd>" in primary.text() or not primary.alive())
        command = ["dpdk-testpmd", "--proc-type=secondary", *shared, "--vdev=net_flowlift1,nic=sim", *ports, "--num-procs=2", "--proc-id=1"]
        done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=300)
        text = done.stdout + done.stderr
        check(done.returncode >= 0, f"a secondary process is killed by signal {-done.returncode}: {text[-2000:]}")
        for name in ("net_flowlift0", "net_flowlift1"):
            lines = [line for line in text.splitlines() if f"net_flowlift: {name}" in line]
            check(len(lines) == 1 and "secondary processes are not supported" in lines[0], f"{name}: {lines}: {text[-2000:]}")
        # Even after that one has ended, nothing of the primary's has changed.
        commands = b"flow create 0 ingress pattern eth / ipv4 / end actions count / drop / end\nflow query 0 0 count\nshow port info 0\nquit\n"
        before = len(primary.text())
        primary.process.stdin.write(commands)
        primary.process.stdin.close()
        check(primary.process.wait(120) == 0, primary.text()[-2000:])
        after = primary.text()[before:]
        for part in ("Flow rule #0 created", "hits: 0", "Driver name: net_flowlift"):
            check(part in after, f"{part}: {after}")


def test(folder):
    secondary(folder)
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
