"""Two hosts behind one ovs-vswitchd, whose datapath is flowlift or Open vSwitch's own in user space.

The hosts are network namespaces with real stacks, each with one end of a veth pair whose other end is a port of bridge br0.
Run it in network, mount and process namespaces of its own: what is started here ends with them.
"""
import ctypes
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import time

import ovs

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
ETH_P_IP = 0x0800
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; Python does not name it
HOSTS = {"a": 1, "b": 2}
# No host has this address, so that no stack answers the packets that are sent there.
NOBODY = bytes.fromhex("020000000099")
SENDER = bytes.fromhex("020000000001")
FRAME = 60
NUMBER = struct.Struct("!Q")
AT_NUMBER = 42
WIRES = [argument for name, n in HOSTS.items() for argument in ("--wire", f"p{n - 1}=packet:v{n}")]
# By name: the datapath_type of the bridge, and the daemon's NIC if the datapath is flowlift.
CONFIGURATIONS = {"softpath": ("system", ["--nic", "none"]), "NIC": ("system", ["--nic", "sim", *WIRES]), "OVS": ("netdev", None)}
OURS = ("softpath", "NIC")


def ip(*arguments):
    return ovs.output("ip", *arguments)


def private_names():
    """Names of network namespaces of this mount namespace alone."""
    pathlib.Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    ip("link", "set", "lo", "up")


def cpu_seconds(*processes):
    """CPU time of all threads of processes so far."""
    tasks = [task for process in processes for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Lab(ovs.Switch):
    """The hosts and their switch. Use as a context manager: all of it goes at the end."""

    def __init__(self, folder, name, flowlift):
        super().__init__(folder, 0, 0)
        self.name, self.flowlift = name, flowlift
        self.datapath_type, self.daemon_arguments = CONFIGURATIONS[name]
        self.environment["FLOWLIFT_RUNDIR"] = str(folder)
        self.ours = self.daemon_arguments is not None
        self.datapath = "system@ovs-system" if self.ours else ovs.DATAPATH
        self.daemon = None
        self.made = []

    def start(self):
        folder = self.folder
        for host, n in HOSTS.items():
            ip("netns", "add", host)
            self.made.append(host)
            ip("link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", host)
            # Nothing but the measurement's packets: no router solicitations, no multicast listeners.
            for where in ([], ["netns", "exec", host]):
                device = f"v{n}" if not where else "eth0"
                setting = f"net.ipv6.conf.{device}.disable_ipv6=1"
                ovs.output(*(["ip", *where] if where else []), "sysctl", "-qw", setting)
            ip("link", "set", f"v{n}", "up")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", "eth0", "address", f"02:00:00:00:00:0{n}", "up")
            ip("-n", host, "addr", "add", f"10.1.0.{n}/24", "dev", "eth0")
            if not self.ours:
                # It cannot send what the hosts leave to their devices.
                self.run_on(host, "ethtool", "-K", "eth0", "tx", "off")
        ovs.output("ovsdb-tool", "create", folder / "conf.db", ovs.SCHEMA, env=self.environment)
        self.spawn("ovsdb-server", folder / "conf.db", f"--remote=punix:{folder}/db.sock", name="db")
        self.wait_for(folder / "db.sock")
        self.vsctl("--no-wait", "init")
        # Flows stay, however many, until they are taken away.
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:max-idle=600000",
                   "other_config:flow-limit=500000")
        command = ["ovs-vswitchd", self.database]
        if self.ours:
            self.start_daemon()
            command = [self.flowlift, "ovs-run", "--", *command]
        self.vswitchd = self.spawn(*command, name="vs")
        self.wait_for(folder / "vs.ctl")
        self.vsctl("add-br", "br0", "--", "set", "Bridge", "br0", f"datapath_type={self.datapath_type}")
        for n in HOSTS.values():
            self.vsctl("add-port", "br0", f"v{n}", "--", "set", "Interface", f"v{n}", f"ofport_request={n}")

    def tunnel(self, checksum):
        """A VXLAN tunnel, with UDP checksums or without, from br0 to a third host whose end of it is a device of Linux."""
        if "c" not in self.made:
            ip("netns", "add", "c")
            self.made.append("c")
            # Wide enough for what the hosts send.
            ip("link", "add", "u0", "mtu", "1600", "type", "veth", "peer", "name", "u0", "mtu", "1600", "netns", "c")
            for device in ("lo", "u0"):
                ip("-n", "c", "link", "set", device, "up")
            ip("link", "set", "u0", "up")
            ip("-n", "c", "addr", "add", "192.0.2.2/24", "dev", "u0")
            underlay = "u0"
            if not self.ours:
                underlay = "br-phy"
                self.run_on("c", "ethtool", "-K", "u0", "tx", "off")
                self.vsctl("add-br", underlay, "--", "set", "Bridge", underlay, "datapath_type=netdev", "--",
                           "add-port", underlay, "u0", "--", "set", "Interface", underlay, "mtu_request=1600")
            ip("addr", "add", "192.0.2.1/24", "dev", underlay)
            ip("link", "set", underlay, "up")
        subprocess.run(["ip", "-n", "c", "link", "del", "vx0"], capture_output=True)
        ip("-n", "c", "link", "add", "vx0", "address", "02:00:00:00:00:03", "type", "vxlan", "id", "7", "remote", "192.0.2.1",
           "dstport", "4789", "dev", "u0", "udpcsum" if checksum else "noudpcsum")
        ip("-n", "c", "link", "set", "vx0", "mtu", "1500", "up")
        ip("-n", "c", "addr", "add", "10.1.0.3/24", "dev", "vx0")
        self.vsctl("--if-exists", "del-port", "br0", "t0", "--", "add-port", "br0", "t0", "--", "set", "Interface", "t0",
                   "type=vxlan", "ofport_request=3", "options:remote_ip=192.0.2.2", "options:key=7",
                   f"options:csum={'true' if checksum else 'false'}")
        self.run_on("a", "ping", "-c", "3", "-i", "0.2", "-W", "5", "10.1.0.3")

    def start_daemon(self):
        log = open(self.folder / "daemon.log", "w")
        command = [self.flowlift, "daemon", *self.daemon_arguments]
        self.daemon = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(self.daemon)
        self.wait_for(self.folder / "flowlift.ctl")

    def __exit__(self, *error):
        super().__exit__(*error)
        for host in self.made:
            ip("netns", "del", host)
        for n in HOSTS.values():
            subprocess.run(["ip", "link", "del", f"v{n}"], capture_output=True)
        # A datapath of Open vSwitch's own leaves TAP devices behind when it is stopped.
        for device in ("br0", "br-phy", "ovs-netdev", "ovs-system"):
            subprocess.run(["ip", "link", "del", device], capture_output=True)

    def run_on(self, host, *command, **options):
        return ovs.output("ip", "netns", "exec", host, *command, **options)

    def switch_cpu_seconds(self):
        """CPU time of ovs-vswitchd, and of the daemon if there is one."""
        return cpu_seconds(self.vswitchd, *([self.daemon] if self.daemon else []))

    def ask(self, *command):
        """What the daemon answers, as JSON."""
        return json.loads(ovs.output(self.flowlift, *command, "--json", env=self.environment))

    def packet_socket(self, host):
        """A packet socket on a host's device."""
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{host}", os.O_RDONLY)
        try:
            if libc.setns(there, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {host}")
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            sock.bind(("eth0", ETH_P_IP))
            return sock
        finally:
            libc.setns(here, CLONE_NEWNET)
            os.close(here)
            os.close(there)

    def rules_by_five_tuple(self):
        """Rules by which every five-tuple is a megaflow of its own: they look at each of its fields."""
        looks = "move:NXM_OF_IP_SRC[]->NXM_NX_REG0[],move:NXM_OF_IP_DST[]->NXM_NX_REG1[],"
        looks += "move:NXM_OF_UDP_SRC[]->NXM_NX_REG2[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG2[16..31]"
        self.rules_text(f"priority=10,in_port=1,udp,actions={looks},output:2\npriority=1,actions=NORMAL\n")
        self.forget_flows()

    def forget_flows(self):
        """Empties the datapath, and tells the daemon that believes it has installed flows."""
        self.appctl("dpctl/del-flows", self.datapath)
        self.appctl("revalidator/purge")

    def allow_flows(self, count, tuples):
        """Has ovs-vswitchd allow so many megaflows: it begins with 10,000 and adds 1,000 with each round of its revalidators
        that finds many flows quickly."""
        self.vsctl("set", "Open_vSwitch", ".", "other_config:max-revalidator=100")
        tuples.set_up(8000)
        deadline = time.monotonic() + 40
        while int(re.search(r"\(limit (\d+)\)", self.appctl("upcall/show"))[1]) < count:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        # From now on they seldom look: one that looks at too many flows at once takes some away.
        self.vsctl("set", "Open_vSwitch", ".", "other_config:max-revalidator=20000")
        self.forget_flows()

    def flows(self):
        """Number of megaflows."""
        for line in self.appctl("dpctl/show", self.datapath).splitlines():
            if line.strip().startswith("flows:"):
                return int(line.split(":")[1])
        raise ovs.Failed("dpctl/show does not say how many flows there are")

    def known_flows(self):
        """Number of megaflows that ovs-vswitchd believes to be installed: it asks for each that is gone, one by one."""
        return sum(int(n) for n in re.findall(r"\(keys (\d+)\)", self.appctl("upcall/show")))


class Tuples:
    """Packets of always new five-tuples from host a, which host b sees arrive."""

    def __init__(self, lab):
        self.sender, self.receiver = lab.packet_socket("a"), lab.packet_socket("b")
        self.next = 0
        self.headers = {}

    def close(self):
        self.sender.close()
        self.receiver.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def header(self, high):
        """Ethernet and IPv4 header of the five-tuples whose number has these upper bits."""
        if high not in self.headers:
            source = bytes([10, 1, 1 + (high >> 8), high & 255])
            ipv4 = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, FRAME - 14, 0, 0, 64, 17, 0, source, bytes([10, 1, 0, 9])))
            total = sum(struct.unpack("!10H", ipv4))
            total = (total & 0xFFFF) + (total >> 16)
            struct.pack_into("!H", ipv4, 10, 0xFFFF ^ (total & 0xFFFF) + (total >> 16))
            self.headers[high] = NOBODY + SENDER + struct.pack("!H", ETH_P_IP) + bytes(ipv4)
        return self.headers[high]

    def send(self):
        """The first packet of the next five-tuple; its number."""
        n = self.next
        self.next += 1
        udp = struct.pack("!4HQ", n & 0xFFFF, 2000, FRAME - 34, 0, n)
        self.sender.send(self.header(n >> 16) + udp + bytes(FRAME - 50))
        return n

    @staticmethod
    def name(n):
        """A five-tuple as `source address, source port`, which tell it from all others."""
        high = n >> 16
        return f"10.1.{1 + (high >> 8)}.{high & 255}", n & 0xFFFF

    def receive(self, seconds):
        """The number of a packet that arrived; None if none does for so long."""
        self.receiver.settimeout(seconds)
        try:
            while True:
                frame = self.receiver.recv(2048)
                if len(frame) == FRAME and frame[:6] == NOBODY:
                    return NUMBER.unpack_from(frame, AT_NUMBER)[0]
        except (TimeoutError, BlockingIOError):
            return None

    def latencies(self, count, pause=0.001):
        """Microseconds that the first packets of so many five-tuples take, one by one; None for one that is lost."""
        times = []
        for _ in range(count):
            start = time.monotonic_ns()
            n = self.send()
            while (arrived := self.receive(1)) not in (None, n):
                pass
            times.append((time.monotonic_ns() - start) / 1e3 if arrived is not None else None)
            time.sleep(pause)
        return times

    def set_up(self, count, window=64):
        """Sends the first packets of `count` five-tuples, `window` of them under way at a time; seconds and how many arrived."""
        start = last = time.monotonic()
        sent = arrived = lost = silences = 0
        while arrived + lost < count and silences < 10:
            while sent < count and sent - arrived - lost < window:
                self.send()
                sent += 1
            # All that are there; the first of them is waited for.
            got = self.receive(0.2)
            if got is None:
                lost, silences = sent - arrived, silences + 1
                continue
            while got is not None:
                arrived += 1
                got = self.receive(0)
            last = time.monotonic()
        return last - start, arrived

    def paced(self, rate, seconds):
        """Sends first packets at a rate per second; when each was sent, in nanoseconds of CLOCK_MONOTONIC, by its number."""
        sent, start = {}, time.monotonic()
        total = int(rate * seconds)
        while len(sent) < total:
            due = min(total, int((time.monotonic() - start) * rate) + 1)
            while len(sent) < due:
                now = time.monotonic_ns()
                sent[self.send()] = now
            time.sleep(0.5 / rate)
        return sent
