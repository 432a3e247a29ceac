#!/usr/bin/env python3
"""Debian's Open vSwitch with DPDK, with two ports of a simulated NIC and hw-offload: what it lifts, what it does not, and that
nobody but its own dump can tell the difference."""

import os
import re
import time

from common import Process, Wire, check, ether, keep_logs, main, output, plugin, tcp, udp, until

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class Switch:
    """ovsdb-server and ovs-vswitchd-dpdk with a bridge of two ports: of a simulated NIC with a profile, or of the one named."""

    def __init__(self, folder, profile="standard", nic=None, wires=None):
        self.folder = folder
        self.wires = wires or [Wire(folder, "p0"), Wire(folder, "p1")]
        database, socket = folder / "conf.db", f"unix:{folder}/db.sock"
        self.socket = socket
        output("ovsdb-tool", "create", str(database), SCHEMA)
        # The loader's path leads to the plugin.
        env = {"OVS_RUNDIR": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]}
        self.env = env
        self.database = Process(
            folder, "ovsdb-server", "ovsdb-server", str(database), f"--remote=p{socket}", f"--unixctl={folder}/db.ctl", env=env
        )
        until(60, "ovsdb-server", (folder / "db.sock").exists)
        simulated = [f"nic=sim,profile={profile},{wire.devargs}" for wire in self.wires]
        arguments = [f"{f'nic={nic}' if nic else simulated[n]},port={n}" for n in range(2)]
        # The first port is there as DPDK starts, the second comes by hotplug.
        extra = (
            "--no-huge --legacy-mem -m 1024 --no-pci --no-shconf --no-telemetry -l 0 "
            f"-d {plugin()} --vdev=net_flowlift0,{arguments[0]}"
        )
        self.vsctl("--no-wait", "init")
        self.vsctl(
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:hw-offload=true",
            "other_config:pmd-cpu-mask=0x2",
            "other_config:max-idle=600000",
            f'other_config:dpdk-extra="{extra}"',
        )
        self.daemon = Process(
            folder,
            "vswitchd",
            # In a network of its own, so that its bridges' devices and addresses are nobody else's.
            "unshare",
            "--net",
            VSWITCHD,
            socket,
            f"--unixctl={folder}/vswitchd.ctl",
            f"--log-file={folder}/vswitchd.log",
            "-vconsole:off",
            "-vnetdev_offload_dpdk:file:dbg",
            env=env,
        )
        until(60, lambda: f"ovs-vswitchd-dpdk: {self.daemon.text()}", lambda: (folder / "vswitchd.ctl").exists())
        self.vsctl("add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow13")
        self.arguments = arguments
        for n in range(2):
            self.port("br0", n)

    def port(self, bridge, n):
        """Adds a port of the NIC to a bridge; all but the first one come by hotplug."""
        name, devargs = f"p{n}", f"net_flowlift{n}" if n == 0 else f"net_flowlift{n},{self.arguments[n]}"
        interface = ["type=dpdk", f"ofport_request={n + 1}", f'options:dpdk-devargs="{devargs}"']
        self.vsctl("add-port", bridge, name, "--", "set", "Interface", name, *interface)
        error = self.vsctl("get", "Interface", name, "error").strip()
        check(error == "[]", f"port {name}: {error}")

    def vsctl(self, *arguments):
        return output("ovs-vsctl", "--timeout=60", f"--db={self.socket}", *arguments, env=self.env)

    def appctl(self, *arguments):
        return output("ovs-appctl", "--timeout=60", f"--target={self.folder}/vswitchd.ctl", *arguments, env=self.env)

    def ip(self, *arguments):
        """`ip` in the daemon's network."""
        return output("nsenter", "--net", f"--target={self.daemon.process.pid}", "ip", *arguments)

    def rules(self, *rules, bridge="br0"):
        """Replaces all OpenFlow rules, and the datapath's flows with them."""
        text = "\n".join(rules) + "\n"
        output("ovs-ofctl", "-OOpenFlow13", "--timeout=60", "del-flows", bridge, env=self.env)
        output("ovs-ofctl", "-OOpenFlow13", "--timeout=60", "add-flows", bridge, "-", input=text, env=self.env)
        self.appctl("revalidator/purge")
        self.lowered()

    def offloads(self):
        """Offloads that wait in Open vSwitch, and that are made."""
        total = self.appctl("dpctl/offload-stats-show").split("Total")[-1]
        return tuple(int(re.search(rf"{what} offloads:\s*(\d+)", total)[1]) for what in ("Enqueued", "Inserted"))

    def lowered(self):
        """Waits until no flow is in hardware. Open vSwitch's offload thread sleeps between its looks at the queue, and so long a
        flow that the dump has no more still forwards packets in hardware, unseen."""
        until(60, lambda: f"offloads that wait, and made: {self.offloads()}", lambda: self.offloads() == (0, 0))

    def flows(self, kind="all"):
        """The datapath's flows: each line of the dump."""
        return [line for line in self.appctl("dpctl/dump-flows", "-m", f"type={kind}").splitlines() if "ufid" in line]

    def flow(self, part, kind="all"):
        found = [line for line in self.flows(kind) if part in line]
        return found[0] if found else None

    def offloaded(self, part, state="offloaded:yes, dp:dpdk"):
        def there():
            line = self.flow(part)
            return line if line and state in line else None

        return until(60, lambda: f"{state} of {part}: {self.flows()}", there)

    def stop(self):
        self.daemon.stop()
        self.database.stop()


def packets(line):
    return int(re.search(r"packets:(\d+)", line)[1])


def octets(line):
    return int(re.search(r"bytes:(\d+)", line)[1])


def full(switch):
    """A flow that the NIC takes whole: counters are exact, and the packets do not come to the host."""
    p0, p1 = switch.wires
    switch.rules("in_port=1,udp,tp_dst=53 actions=set_field:02:00:00:00:00:99->eth_dst,output:2", "in_port=2 actions=output:1")
    frame = udp("10.0.0.1", "10.0.0.2", 1000, 53, b"hello")
    expected = bytes.fromhex("020000000099") + frame[6:]
    p0.send(frame)
    check(p1.expect(1) == [expected], "the first packet goes through software, changed")
    switch.offloaded("in_port(p0)")
    count = 2000
    for _ in range(count):
        p0.send(frame)
    check(p1.expect(count) == [expected] * count, "all the others go through hardware, changed")
    line = until(60, lambda: f"counters: {switch.flows()}", lambda: (f := switch.flow("in_port(p0)")) and packets(f) >= count and f)
    # Open vSwitch does not count the packet of the upcall as a hit.
    check(packets(line) == count and octets(line) == count * len(frame), f"exact counters: {line}")
    slow = int(switch.vsctl("get", "Interface", "p0", "statistics:rx_packets"))
    check(slow < count, f"{slow} of {count + 1} packets came to the host")
    check(len(switch.flows("offloaded")) == 1, f"type=offloaded: {switch.flows('offloaded')}")


def several(switch):
    """Tags, outputs, drops and IPv4 TCP with flags."""
    p0, p1 = switch.wires
    switch.rules(
        "in_port=1,udp,tp_dst=80 actions=push_vlan:0x8100,set_field:4103->vlan_vid,set_field:3->vlan_pcp,output:2",
        "in_port=1,udp,dl_vlan=9 actions=pop_vlan,output:2",
        "in_port=1,udp,tp_dst=81 actions=output:2,set_field:10.9.9.9->ip_src,output:in_port",
        "in_port=1,tcp actions=drop",
        "in_port=2,tcp actions=set_field:9->nw_ttl,set_field:4242->tcp_dst,output:1",
    )
    cases = [
        (p0, udp("10.0.0.1", "10.0.0.2", 1, 80), "push_vlan", [p1]),
        (p0, udp("10.0.0.1", "10.0.0.2", 1, 82, tags=[(0x8100, 9)]), "pop_vlan", [p1]),
        (p0, udp("10.0.0.1", "10.0.0.2", 1, 81), "ipv4(src=10.9.9.9", [p1, p0]),
        (p1, tcp("10.0.0.3", "10.0.0.4", 5, 6), "ttl=9", [p0]),
    ]
    for source, frame, part, targets in cases:
        source.send(frame)
        first = [wire.expect(1) for wire in targets]
        switch.offloaded(part)
        source.send(frame)
        second = [wire.expect(1) for wire in targets]
        check(first == second, f"{part}: software sends {first}, hardware {second}")
        check(not any(wire.received() for wire in switch.wires), f"{part}: nothing else leaves")
    p0.send(tcp("10.0.0.1", "10.0.0.2", 7, 8))
    switch.offloaded("actions:drop")
    for _ in range(50):
        p0.send(tcp("10.0.0.1", "10.0.0.2", 7, 8))
    until(60, lambda: f"drops: {switch.flows()}", lambda: packets(switch.flow("actions:drop")) == 50)
    check(not p1.received(), "nothing leaves")


def partial_and_refused(switch):
    """What the NIC cannot do whole is forwarded all the same."""
    p0, p1 = switch.wires
    # The bridge's own port is not on the NIC: Open vSwitch falls back to MARK and RSS.
    switch.rules("in_port=1,udp actions=output:LOCAL,output:2", "in_port=1,ipv6,nw_proto=59 actions=output:2")
    frame = udp("10.1.0.1", "10.1.0.2", 1, 2)
    p0.send(frame)
    check(p1.expect(1) == [frame], "partly offloaded, the first packet")
    switch.offloaded("eth_type(0x0800)", "offloaded:partial, dp:ovs")
    for _ in range(100):
        p0.send(frame)
    check(p1.expect(100) == [frame] * 100, "partly offloaded, the others")
    until(60, lambda: f"counters: {switch.flows()}", lambda: packets(switch.flow("eth_type(0x0800)")) == 100)
    # A next header that the NIC's parser may take for an extension: refused, and refused again with MARK and RSS.
    frame = ether(bytes.fromhex("60000000" "0000" "3b40") + bytes(15) + b"\1" + bytes(15) + b"\2", 0x86DD)
    for _ in range(20):
        p0.send(frame)
    check(p1.expect(20) == [frame] * 20, "refused, and forwarded")
    line = switch.flow("proto=59")
    check(line and "dp:ovs" in line and "offloaded" not in line, f"refused: {line}")
    reason = "field ipv6.proto is not seen by the NIC's parser"
    until(60, "the refusal's reason in ovs-vswitchd's log", lambda: reason in (switch.folder / "vswitchd.log").read_text())


def ageing(switch):
    """Flows that Open vSwitch forgets leave the NIC; flows whose port goes away do no harm."""
    p0, p1 = switch.wires
    switch.rules("in_port=1,udp actions=output:2")
    switch.vsctl("set", "Open_vSwitch", ".", "other_config:max-idle=3000")
    frame = udp("10.2.0.1", "10.2.0.2", 1, 2)

    def through():
        """One frame, and out again: what is left in the wire would be taken for later ones."""
        p0.send(frame)
        check(p1.expect(1) == [frame], "each frame leaves once")

    def hit():
        through()
        return switch.flow("in_port(p0)", "offloaded")

    until(60, lambda: f"offloaded: {switch.flows()}", hit, 0.1)
    # Hardware hits keep it alive.
    end = time.monotonic() + 7
    while time.monotonic() < end:
        through()
        time.sleep(0.1)
    check(switch.flow("in_port(p0)", "offloaded"), "hits in hardware keep a flow")
    until(60, lambda: f"idle: {switch.flows()}", lambda: not switch.flows())
    switch.lowered()
    switch.vsctl("set", "Open_vSwitch", ".", "other_config:max-idle=600000")
    through()
    switch.offloaded("in_port(p0)")
    # The target of the flow goes first, and comes back.
    switch.vsctl("del-port", "br0", "p1")
    for _ in range(10):
        p0.send(frame)
    time.sleep(0.5)
    check(switch.daemon.alive(), "ovs-vswitchd survives a port that goes away under its flows")


def tunnel(switch):
    """A VXLAN port over the second port: what hardware puts on is what Open vSwitch puts on, but for the source port of UDP."""
    p0, p1 = switch.wires
    switch.vsctl("--", "del-port", "br0", "p0", "--", "add-br", "br1", "--", "set", "Bridge", "br1", "datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow13")
    switch.port("br1", 0)
    switch.vsctl("add-port", "br1", "vx", "--", "set", "Interface", "vx", "type=vxlan", "ofport_request=7", "options:remote_ip=192.0.2.9", "options:key=4660")
    switch.ip("addr", "add", "192.0.2.1/24", "dev", "br0")
    switch.ip("link", "set", "br0", "up")
    switch.rules("in_port=LOCAL actions=output:2", "in_port=2 actions=LOCAL")
    switch.rules("in_port=1 actions=output:7", bridge="br1")
    until(60, "a route", lambda: "192.0.2.0/24" in switch.appctl("ovs/route/show"))
    switch.appctl("tnl/neigh/set", "br0", "192.0.2.9", "02:00:00:00:09:09")
    inner = udp("10.0.0.1", "10.0.0.2", 5, 53, b"x" * 100)

    def outer(count):
        """The next frames of the tunnel; others, such as neighbour discovery, are Open vSwitch's own."""
        frames = []

        def enough():
            frames.extend(frame for frame in p1.received() if frame[36:38] == (4789).to_bytes(2, "big"))
            return len(frames) >= count

        until(60, lambda: f"{len(frames)} of {count} frames: {switch.flows()}", enough)
        return frames

    p0.send(inner)
    (software,) = outer(1)
    check(software[50:] == inner and software[46:49] == (4660).to_bytes(3, "big"), f"by software: {software.hex()}")
    switch.offloaded("tnl_push")
    for _ in range(500):
        p0.send(inner)
    hardware = outer(500)
    ports = {frame[34:36] for frame in hardware}
    check(len(hardware) == 500 and len(ports) == 1, f"{len(hardware)} frames, source ports {ports}")
    for frame in hardware:
        check(frame[:34] + frame[36:] == software[:34] + software[36:], f"hardware {frame.hex()}, software {software.hex()}")
    line = until(60, lambda: f"counters: {switch.flows()}", lambda: (f := switch.flow("tnl_push")) and packets(f) >= 500 and f)
    check(packets(line) == 500 and octets(line) == 500 * len(inner), f"exact counters: {line}")
    slow = int(switch.vsctl("get", "Interface", "p0", "statistics:rx_packets"))
    check(slow < 100, f"{slow} of 501 packets came to the host")


def served(folder, profile, parts):
    folder.mkdir()
    switch = Switch(folder, profile)
    try:
        for part in parts:
            part(switch)
            check(switch.daemon.alive(), "ovs-vswitchd lives")
            print(f"  {part.__name__}: ok")
    except Exception:
        keep_logs(folder)
        raise
    finally:
        switch.stop()
    log = (folder / "vswitchd.log").read_text()
    for word in ("violations", "a bug", "|EMER|"):
        check(word not in log, f"{word} in ovs-vswitchd's log")


def test(folder):
    served(folder / "standard", "standard", (full, several, partial_and_refused, ageing))
    served(folder / "large", "large", (tunnel,))


if __name__ == "__main__":
    main(test)
