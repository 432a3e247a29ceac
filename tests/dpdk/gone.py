#!/usr/bin/env python3
"""A NIC in another process, by vfio-user: rules and packets go there as to any other; when that process is killed under its rules,
the program that loaded the driver lives on and is told."""

import os
import signal
import time

from common import Process, Testpmd, Wire, check, keep_logs, main, tcp, udp, until
from vswitch import Switch


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


def testpmd_lives(folder):
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
    testpmd.counts(nic_entries_inserted=2)
    for _ in range(300):
        p0.send(frame)
    check(p1.expect(300) == [frame] * 300, "through the NIC in the other process")
    for _ in range(200):
        p0.send(other)

    testpmd.hits(0, 300, 300 * len(frame))
    testpmd.hits(1, 200, 200 * len(other))
    testpmd.counts(slow_rx_marked=200)

    # Killed while packets are on their way.
    for _ in range(100):
        p0.send(other)
    device.kill()
    until(60, testpmd.process.text, lambda: testpmd.process.text().count("the NIC is gone") >= 2)
    events = ("link state change event", "device removal event")
    until(60, lambda: f"events of both kinds: {testpmd.process.text()[-2000:]}", lambda: all(e in testpmd.process.text() for e in events))
    time.sleep(1)
    check(testpmd.process.alive(), "testpmd survives its NIC")
    lines = [line for line in testpmd.process.text().splitlines() if "net_flowlift:" in line]
    check(len(lines) == 2 and all("the NIC is gone" in line for line in lines), f"one line per port: {lines}")
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


def vswitchd_lives(folder):
    device = Device(folder)
    switch = Switch(folder, nic=f"vfio-user:{device.socket}", wires=device.wires)
    try:
        p0, p1 = device.wires
        switch.rules("in_port=1 actions=output:2", "in_port=2 actions=output:1")
        frame = udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100)
        p0.send(frame)
        check(p1.expect(1) == [frame], "through software")
        switch.offloaded("in_port(p0)")
        for _ in range(100):
            p0.send(frame)
        check(p1.expect(100) == [frame] * 100, "through the NIC in the other process")
        device.kill()
        log = switch.folder / "vswitchd.log"
        until(30, "a line in the log", lambda: "the NIC is gone" in log.read_text() + switch.daemon.text())
        time.sleep(2)
        check(switch.daemon.alive(), "ovs-vswitchd survives its NIC")
        # Its flows are asked for, taken out, and asked for again; its ports are taken out.
        switch.flows()
        switch.rules("in_port=1 actions=drop")
        switch.vsctl("del-port", "br0", "p1")
        switch.vsctl("del-port", "br0", "p0")
        check(switch.daemon.alive() and not switch.flows(), f"ovs-vswitchd goes on without its ports: {switch.flows()}")
    finally:
        switch.stop()
    text = log.read_text()
    for word in ("a bug", "panicked", "|EMER|"):
        check(word not in text, f"{word} in ovs-vswitchd's log")


def test(folder):
    for part in (testpmd_lives, vswitchd_lives):
        place = folder / part.__name__
        place.mkdir()
        try:
            part(place)
        except Exception:
            keep_logs(place)
            raise
        print(f"  {part.__name__}: ok")


if __name__ == "__main__":
    main(test)
