"""What the tests with real DPDK programs share: places, frames, wires, processes, and a count of what was checked."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = 0


def check(good, what):
    """Counts a check; one that fails ends the run and says what is wrong."""
    global CHECKS
    CHECKS += 1
    if not good:
        raise AssertionError(what)


def until(seconds, what, test, pause=0.05):
    """Waits for `test` to give something; what it gives."""
    end = time.monotonic() + seconds
    while True:
        found = test()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(pause)


def output(*command, **more):
    """What a command prints; its failure is ours."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **more)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def mac(n):
    return bytes([2, 0, 0, 0, 0, n])


def checksum(data):
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(payload, ethertype, tags=()):
    head = mac(2) + mac(1)
    for tpid, tci in tags:
        head += tpid.to_bytes(2, "big") + tci.to_bytes(2, "big")
    return (head + ethertype.to_bytes(2, "big") + payload).ljust(60, b"\0")


def ipv4(src, dst, proto, payload):
    head = bytearray(20)
    head[0], head[8], head[9] = 0x45, 64, proto
    head[2:4] = (20 + len(payload)).to_bytes(2, "big")
    head[12:16], head[16:20] = socket.inet_aton(src), socket.inet_aton(dst)
    head[10:12] = checksum(head).to_bytes(2, "big")
    return bytes(head) + payload


def udp(src, dst, sport, dport, payload=b"", tags=()):
    body = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    return ether(ipv4(src, dst, 17, body), 0x0800, tags)


def tcp(src, dst, sport, dport, flags=0x10, tags=()):
    body = bytearray(20)
    body[0:2], body[2:4], body[12], body[13] = sport.to_bytes(2, "big"), dport.to_bytes(2, "big"), 0x50, flags
    return ether(ipv4(src, dst, 6, bytes(body)), 0x0800, tags)


class Wire:
    """The outside of a simulated NIC's port: Unix datagrams."""

    def __init__(self, folder, name):
        self.nic, self.host = folder / f"{name}.nic", folder / f"{name}.host"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self.socket.bind(str(self.host))
        self.socket.setblocking(False)

    @property
    def devargs(self):
        return f"wire=unix:{self.nic};{self.host}"

    def send(self, frame):
        end = time.monotonic() + 60
        while True:
            try:
                return self.socket.sendto(frame, str(self.nic))
            except (BlockingIOError, OSError) as error:
                if time.monotonic() > end:
                    raise AssertionError(f"{self.nic} takes no frame: {error}") from error
                time.sleep(0.001)

    def received(self):
        frames = []
        while True:
            try:
                frames.append(self.socket.recv(65536))
            except BlockingIOError:
                return frames

    def expect(self, count, seconds=60):
        frames = []

        def enough():
            frames.extend(self.received())
            return len(frames) >= count

        until(seconds, lambda: f"{self.host.name}: {len(frames)} of {count} frames", enough, 0.005)
        return frames


class Process:
    """A program that ends with this value; its output goes to a file."""

    def __init__(self, folder, name, *command, **more):
        self.log = folder / f"{name}.out"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **more)

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.log.name}: it does not end") from None

    def text(self):
        return self.log.read_text(errors="replace")


def plugin():
    """The driver, as tests/dpdk/build left it."""
    path = os.environ.get("FLOWLIFT_PLUGIN")
    if not path:
        sys.exit("FLOWLIFT_PLUGIN is not set: tests/dpdk/run sets it")
    return path


def eal(*more, lcores="0,1", memory=256):
    """Arguments of DPDK's environment for a machine without huge pages."""
    return ["--no-huge", "-m", str(memory), "--no-pci", "--no-shconf", "--no-telemetry", "--lcores", lcores, "-d", plugin(), *more]


class Testpmd:
    """dpdk-testpmd, asked one command at a time."""

    def __init__(self, folder, name, *vdevs, queues=1, ring=0, mbufs=8192, lcores="0,1", more=()):
        arguments = [*eal(*vdevs, lcores=lcores), "--", "-i", f"--total-num-mbufs={mbufs}", f"--rxq={queues}", f"--txq={queues}", *more]
        # 0: what the driver suggests.
        arguments += [f"--rxd={ring}", f"--txd={ring}"] if ring else []
        self.process = Process(folder, name, "stdbuf", "-o0", "dpdk-testpmd", *arguments, stdin=subprocess.PIPE)
        self.prompts = 0
        self.wait()

    def wait(self):
        self.prompts += 1
        until(120, self.process.text, lambda: self.process.text().count("testpmd> ") >= self.prompts or not self.process.alive())
        check(self.process.alive(), f"testpmd: {self.process.text()[-3000:]}")

    def ask(self, command):
        before = len(self.process.text())
        self.process.process.stdin.write(command.encode() + b"\n")
        self.process.process.stdin.flush()
        self.wait()
        return self.process.text()[before:]

    def pid(self):
        return self.process.process.pid

    def hits(self, rule, *want):
        """Waits until a rule of port 0 has counted this many packets and bytes."""

        def counted():
            found = re.search(r"hits: (\d+)\s+bytes: (\d+)", self.ask(f"flow query 0 {rule} count"))
            return tuple(map(int, found.groups()))

        until(60, lambda: f"rule {rule} counts {counted()}, not {want}", lambda: counted() == want)
        check(counted() == want, f"rule {rule} counts on: {counted()}, not {want}")

    def counts(self, **want):
        """Waits until port 0's extended counters have these values."""

        def counters():
            found = dict(re.findall(r"^(\w+): (\d+)$", self.ask("show port xstats 0"), re.M))
            return {name: int(found.get(name, -1)) for name in want}

        until(60, lambda: f"{counters()}, not {want}", lambda: counters() == want)
        check(counters() == want, f"counted on: {counters()}, not {want}")

    def quit(self):
        self.process.process.stdin.write(b"quit\n")
        self.process.process.stdin.close()
        code = self.process.process.wait(60)
        check(code == 0, f"testpmd ended with {code}: {self.process.text()[-3000:]}")
        return self.process.text()


def keep_logs(folder):
    """Puts the logs of a part's folder where `main` looks for them."""
    for log in sorted(folder.glob("*.out")) + sorted(folder.glob("*.log")):
        log.rename(folder.parent / f"{folder.name}.{log.name}")


def main(test):
    """Runs a test in a folder of its own, and says how it went."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="flowlift-dpdk.", dir="/run"))
    try:
        test(folder)
    except Exception as error:
        for log in sorted(folder.glob("*.out")) + sorted(folder.glob("*.log")):
            # dpctl looks for a kernel datapath each time, which is not there.
            lines = [line for line in log.read_text(errors="replace").splitlines() if "enumerate system" not in line]
            print(f"--- {log.name}", *lines[-60:], sep="\n")
        print(f"{Path(sys.argv[0]).name}: FAILED: {error}")
        raise SystemExit(1) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{Path(sys.argv[0]).name}: {CHECKS} checks passed")
