"""One ovs-vswitchd with DPDK, its PMD thread on one core, forwarding a capture from memory to a null port.

Frames come from DPDK's net_pcap driver, which keeps the whole capture in memory and copies each frame into a new buffer
(infinite_rx), and go to net_null, which frees them. No huge pages, no PCI devices, no network: run it in namespaces of
its own.
"""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DATAPATH = "netdev@ovs-netdev"

# Settings to look for its best with, by name: the probability of an insertion into the exact-match cache (1 in n, 0 for
# never), whether the signature-match cache is on, and the implementations of subtable lookup and datapath.
CONFIGURATIONS = {
    "emc": ("100", "false", "generic", "dpif_scalar"),
    "smc": ("0", "true", "generic", "dpif_scalar"),
    "emc+smc": ("100", "true", "generic", "dpif_scalar"),
    "no cache": ("0", "false", "generic", "dpif_scalar"),
    "avx512": ("0", "true", "avx512_gather", "dpif_avx512"),
}


class Failed(Exception):
    """Open vSwitch did not do what it was told."""


def output(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    if result.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


class Switch:
    """A running ovs-vswitchd. Use as a context manager: it is stopped at the end."""

    def __init__(self, folder, main_core, pmd_core):
        self.folder, self.main_core, self.pmd_core = pathlib.Path(folder), main_core, pmd_core
        self.environment = dict(os.environ, OVS_RUNDIR=str(folder), OVS_LOGDIR=str(folder), OVS_DBDIR=str(folder))
        self.database = f"unix:{folder}/db.sock"
        self.processes = []

    def __enter__(self):
        self.folder.mkdir(parents=True)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        folder = self.folder
        output("ovsdb-tool", "create", folder / "conf.db", SCHEMA, env=self.environment)
        self.spawn("ovsdb-server", folder / "conf.db", f"--remote=punix:{folder}/db.sock", name="db")
        self.wait_for(folder / "db.sock")
        self.vsctl("--no-wait", "init")
        self.vsctl(
            "--no-wait", "set", "Open_vSwitch", ".",
            "other_config:dpdk-init=true",
            f"other_config:dpdk-lcore-mask={1 << self.main_core:#x}",
            f"other_config:pmd-cpu-mask={1 << self.pmd_core:#x}",
            f"other_config:dpdk-extra=--no-huge --legacy-mem -m 2048 --no-pci --file-prefix=flowlift{os.getpid()}",
            # Megaflows stay, and the threads beside the PMD are few.
            "other_config:max-idle=600000", "other_config:max-revalidator=10000",
            "other_config:n-handler-threads=1", "other_config:n-revalidator-threads=1",
        )
        self.spawn("taskset", "-c", str(self.main_core), VSWITCHD, self.database, name="vs")
        self.wait_for(folder / "vs.ctl")
        self.vsctl("add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev", "fail-mode=secure")

    def spawn(self, *command, name):
        files = [f"--unixctl={self.folder}/{name}.ctl", f"--log-file={self.folder}/{name}.log"]
        quiet = subprocess.DEVNULL
        arguments = [*map(str, command), *files, "--no-chdir"]
        process = subprocess.Popen(arguments, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet)
        self.processes.append(process)
        return process

    def wait_for(self, path):
        end = time.monotonic() + 60
        while not path.exists():
            if time.monotonic() > end or any(p.poll() is not None for p in self.processes):
                logs = "".join(log.read_text()[-2000:] for log in self.folder.glob("*.log"))
                raise Failed(f"{path} did not appear\n{logs}")
            time.sleep(0.05)

    def __exit__(self, *_):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def vsctl(self, *arguments):
        return output("ovs-vsctl", f"--db={self.database}", "--timeout=60", *arguments, env=self.environment)

    def appctl(self, *arguments):
        command = ["ovs-appctl", "--timeout=60", "-t", f"{self.folder}/vs.ctl", *arguments]
        return output(*command, env=self.environment)

    def rules_text(self, text):
        """Replaces the OpenFlow rules by these."""
        path = self.folder / "rules"
        path.write_text(text)
        self.rules(path)

    def rules(self, path):
        """Replaces the OpenFlow rules by those in a file."""
        bridge = f"unix:{self.folder}/br0.mgmt"
        arguments = ["ovs-ofctl", "-OOpenFlow13", "--timeout=60"]
        output(*arguments, "del-flows", bridge, env=self.environment)
        output(*arguments, "--bundle", "add-flows", bridge, str(path), env=self.environment)

    def ports(self, capture):
        """Output port 2, a null device; and port 1, the capture."""
        self.port("p1", 2, "net_null0,no-rx=1")
        self.port("p0", 1, f"net_pcap0,rx_pcap={capture},infinite_rx=1")

    def port(self, name, number, device):
        interface = ["set", "Interface", name, "type=dpdk", f"options:dpdk-devargs={device}"]
        self.vsctl("add-port", "br0", name, "--", *interface, f"ofport_request={number}")
        error = self.vsctl("get", "Interface", name, "error").strip()
        if error != "[]":
            raise Failed(f"port {name}: {error}")

    def configure(self, name):
        """Sets a configuration and forgets all flows; False if this build does not have it."""
        insertion, signatures, lookup, datapath = CONFIGURATIONS[name]
        if datapath not in self.appctl("dpif-netdev/dpif-impl-get"):
            return False
        self.vsctl(
            "set", "Open_vSwitch", ".",
            f"other_config:emc-insert-inv-prob={insertion}", f"other_config:smc-enable={signatures}",
        )
        try:
            for implementation in ("generic", "avx512_gather"):
                if implementation == "generic" or lookup == implementation:
                    priority = "5" if implementation == lookup else "1"
                    self.appctl("dpif-netdev/subtable-lookup-prio-set", implementation, priority)
            self.appctl("dpif-netdev/dpif-impl-set", datapath)
        except Failed:
            return False
        self.appctl("dpctl/del-flows", DATAPATH)
        # Else the daemon believes that it has installed them.
        self.appctl("revalidator/purge")
        return True

    def settle(self, seconds):
        """Waits until the megaflows are all there, and then for `seconds`."""
        last, end = -1, time.monotonic() + 60
        while time.monotonic() < end:
            number = len(self.megaflows())
            if number == last and number > 0:
                break
            last = number
            time.sleep(0.3)
        time.sleep(seconds)

    def megaflows(self):
        """The datapath's flows, a line each."""
        return [line for line in self.appctl("dpctl/dump-flows", DATAPATH).splitlines() if "actions:" in line]

    def sample(self):
        """Packets received by the PMD thread so far, and CPU nanoseconds that it took."""
        stats = self.appctl("dpif-netdev/pmd-stats-show")
        thread = re.search(rf"core_id {self.pmd_core}:(.*?)(?=\n\S|\Z)", stats, re.S)
        if not thread:
            raise Failed(f"no PMD thread on core {self.pmd_core}:\n{stats}")
        packets = int(re.search(r"packets received: (\d+)", thread[1])[1])
        return packets, self.cpu_time()

    def cpu_time(self):
        for task in pathlib.Path(f"/proc/{self.processes[-1].pid}/task").iterdir():
            if (task / "comm").read_text().startswith("pmd-c"):
                return int((task / "schedstat").read_text().split()[0])
        raise Failed("no PMD thread")

    def measure(self, seconds):
        """Mpps per CPU second of the PMD thread."""
        packets, spent = self.sample()
        time.sleep(seconds)
        more_packets, more_spent = self.sample()
        if more_packets == packets:
            raise Failed("the PMD thread received no packet")
        return (more_packets - packets) * 1e3 / (more_spent - spent)

    def pause(self):
        """Stops all its threads: the core is another's."""
        self.processes[-1].send_signal(signal.SIGSTOP)

    def resume(self):
        self.processes[-1].send_signal(signal.SIGCONT)
