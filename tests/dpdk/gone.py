#!/usr/bin/env python3
"""A NIC in another process, by vfio-user: rules and packets go there as to any other; when that process is killed under its rules,
the program that loaded the driver lives on and is told."""

import os
import re
import signal
import subprocess
import time

from common import Process, Wire, check, eal, main, tcp, udp, until


class Device:
    """flowlift-sim with two wires."""

    def __init__(self, folder):
        self.socket = folder / "nic.sock"
        self.wires = [Wire(folder, f"p{n}") for n in range(2)]
        wires = [f"--wire=p{n}=unix:{wire.nic},{wire.host}" for n, wire in enumerate(self.wires)]
        self.process = Process(folder, "flowlift-sim", os.environ["FLOWLIFT_SIM"], f"--socket={self.socket}", *wires)
        until(30, lambda: f"flowlift-sim: {self.process.text()}", self.socket.exists)

    def kill(self):
        self.process.process.send_signal(signal.SIGKILL)
        self.process.process.wait()


class Testpmd:
    """dpdk-testpmd, asked one command at a time."""

    def __init__(self, folder, name, *vdevs):
        arguments = [*eal(*vdevs), "--", "-i", "--total-num-mbufs=8192"]
        self.process = Process(folder, name, "stdbuf", "-o0", "dpdk-testpmd", *arguments, stdin=subprocess.PIPE)
        self.prompts = 0
        self.wait()

    def wait(self):
        self.prompts += 1
        until(60, self.process.text, lambda: self.process.text().count("testpmd> ") >= self.prompts or not self.process.alive())
        check(self.process.alive(), f"testpmd: {self.process.text()[-3000:]}")

    def ask(self, command):
        before = len(self.process.text())
        self.process.process.stdin.write(command.encode() + b"\n")
        self.process.process.stdin.flush()
        self.wait()
        return self.process.text()[before:]

    def quit(self):
        self.process.process.stdin.write(b"quit\n")
        self.process.process.stdin.close()
        code = self.process.process.wait(60)
        check(code == 0, f"testpmd ended with {code}: {self.process.text()[-3000:]}")


def test(folder):
    device = Device(folder)
    vdevs = [f"--vdev=net_flowlift{n},nic=vfio-user:{device.socket},port={n}" for n in range(2)]
    testpmd = Testpmd(folder, "testpmd", *vdevs)
    p0, p1 = device.wires
    frame, other = udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100), tcp("10.0.0.1", "10.0.0.2", 5, 80)
    testpmd.ask("set fwd rxonly")
    testpmd.ask("start")
    rule = "flow create 0 ingress pattern eth / ipv4 / {} / end actions count / {} / end"
    check("Flow rule #0 created" in testpmd.ask(rule.format("udp", "port_id id 1")), "a rule to the other port")
    check("Flow rule #1 created" in testpmd.ask(rule.format("tcp", "mark id 5 / queue index 0")), "a rule to the host")
    time.sleep(0.5)
    for _ in range(300):
        p0.send(frame)
    check(p1.expect(300) == [frame] * 300, "through the NIC in the other process")
    for _ in range(200):
        p0.send(other)

    def hits(rule):
        return tuple(map(int, re.search(r"hits: (\d+)\s+bytes: (\d+)", testpmd.ask(f"flow query 0 {rule} count")).groups()))

    until(20, lambda: f"counters: {hits(0)}, {hits(1)}", lambda: hits(0) == (300, 300 * len(frame)) and hits(1) == (200, 200 * len(other)))
    until(20, "packets to the host", lambda: "slow_rx_marked: 200" in testpmd.ask("show port xstats 0"))

    # Killed while packets are on their way.
    for _ in range(100):
        p0.send(other)
    device.kill()
    until(30, testpmd.process.text, lambda: testpmd.process.text().count("the NIC is gone") >= 2)
    time.sleep(1)
    check(testpmd.process.alive(), "testpmd survives its NIC")
    lines = [line for line in testpmd.process.text().splitlines() if "net_flowlift:" in line]
    check(len(lines) == 2 and all("the NIC is gone" in line for line in lines), f"one line per port: {lines}")
    events = testpmd.process.text()
    check("link state change event" in events and "device removal event" in events, f"events of both kinds: {events[-2000:]}")
    testpmd.ask("")
    for command in (rule.format("sctp", "drop"), "flow flush 0", "flow query 0 0 count", "show port info 0", "show port stats 0", "stop"):
        testpmd.ask(command)
        check(testpmd.process.alive(), f"testpmd survives {command}")
    testpmd.quit()
    text = testpmd.process.text()
    check("a bug" not in text and "panicked" not in text, text[-3000:])

    # A new one serves the next program.
    again = folder / "again"
    again.mkdir()
    device = Device(again)
    vdevs = [f"--vdev=net_flowlift{n},nic=vfio-user:{device.socket},port={n}" for n in range(2)]
    testpmd = Testpmd(folder, "again.testpmd", *vdevs)
    check("Flow rule #0 created" in testpmd.ask(rule.format("udp", "drop")), "a rule in a new NIC")
    testpmd.quit()
    device.process.stop()


if __name__ == "__main__":
    main(test)
