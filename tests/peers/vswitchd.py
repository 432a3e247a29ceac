"""How ovs-vswitchd is served: by flowlift's softpath, by flowlift with the simulated NIC, and by its own user-space datapath.

  run --vswitchd [--rounds N] [--short] [--write] [--json FILE]

The three take turns with the same hosts on the same kinds of veth devices (hosts.py). Measured, with the goals in GOALS:

  iperf3       TCP between the hosts, default segments, NORMAL switching
  tunnel       the same to a third host by VXLAN, with UDP checksums and without; Linux at the other end
  first packet one packet of a new five-tuple at a time: from its sending until it arrives
  set-up       always new five-tuples, 64 first packets under way at a time: megaflows installed per second, and CPU time of each
  to the NIC   at 1,000 new five-tuples a second, from a first packet's sending until its megaflow is in the NIC's tables, by the
               time that `flowlift flows` tells (the clock is the host's)
  dump         all those megaflows by `ovs-appctl dpctl/dump-flows`
  idle         CPU time of the daemon, the simulated NIC in it, when there is no flow and no packet

Every five-tuple has a megaflow of its own, because the OpenFlow rules look at all of its fields. With --short everything is
smaller, and what is checked are bounds that a slow machine keeps too.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import hosts
import ovs
import report

BEGIN, END = "<!-- tests/peers/run --vswitchd: begin -->", "<!-- tests/peers/run --vswitchd: end -->"
PACKAGES = ["openvswitch-switch", "iperf3", "ethtool", "iproute2"]
# Sizes of the measurements: ordinary, and with --short. The rate is that of new five-tuples per second on their way to the NIC.
SIZES = {"iperf": (4, 1), "first": (2000, 200), "flows": (100_000, 3000), "dumps": (3, 1), "paced": (5, 2), "rate": (1000, 200), "idle": (10, 3)}
MEASURED = ["iperf", "tunnel", "first", "paced", "flows", "idle"]
FLOW = re.compile(r"ipv4\(src=([0-9.]+).*udp\(src=(\d+)")

# Measure: what it is, unit, how it is printed, and whether more is better.
MEASURES = {
    "iperf": ("iperf3", "Gbit/s", "{:.2f}", True),
    "tunnel": ("iperf3 by VXLAN with UDP checksums", "Gbit/s", "{:.2f}", True),
    "tunnel_cpu": ("CPU time of a gigabyte, of ovs-vswitchd and daemon", "s", "{:.2f}", False),
    "tunnel_plain": ("iperf3 by VXLAN without UDP checksums", "Gbit/s", "{:.2f}", True),
    "tunnel_plain_cpu": ("CPU time of a gigabyte, of ovs-vswitchd and daemon", "s", "{:.2f}", False),
    "set_up": ("new five-tuples set up", "per second", "{:,.0f}", True),
    "set_up_cpu": ("CPU time of each, of ovs-vswitchd and daemon", "us", "{:.1f}", False),
    "first_median": ("first packet, median", "us", "{:,.0f}", False),
    "first_p99": ("first packet, 99th percentile", "us", "{:,.0f}", False),
    "nic_median": ("first packet to active in the NIC, median", "ms", "{:.2f}", False),
    "nic_p99": ("first packet to active in the NIC, 99th percentile", "ms", "{:.2f}", False),
    "dump": ("dump of all flows", "s", "{:.2f}", False),
    "idle": ("idle CPU of the daemon", "% of a core", "{:.2f}", False),
}
# Measure, whose, and what it is held to: a multiple of OVS's, or a figure of its own. With --short, the second pair.
GOALS = [
    ("iperf", "softpath", "ratio", 1.0, 0.5),
    ("iperf", "NIC", "ratio", 0.5, 0.1),
    ("tunnel", "softpath", "ratio", 1.0, 0.5),
    ("tunnel_plain", "softpath", "ratio", 1.0, 0.5),
    ("set_up", "softpath", "ratio", 1.0, 0.05),
    ("set_up", "NIC", "ratio", 1.0, 0.05),
    ("first_median", "softpath", "ratio", 2.0, 20.0),
    ("first_median", "NIC", "ratio", 2.0, 20.0),
    ("nic_median", "NIC", "limit", 5.0, 250.0),
    ("nic_p99", "NIC", "limit", 20.0, 1000.0),
    ("dump", "softpath", "ratio", 1.0, 50.0),
    ("dump", "NIC", "ratio", 1.0, 50.0),
    ("idle", "softpath", "limit", 1.0, 10.0),
    ("idle", "NIC", "limit", 1.0, 10.0),
]


def arguments():
    parser = argparse.ArgumentParser(prog="run --vswitchd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vswitchd", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the median counts (%(default)s)")
    parser.add_argument("--short", action="store_true", help="small and lenient: a check that all of it works")
    parser.add_argument("--configurations", default=",".join(hosts.CONFIGURATIONS), help="which take part (%(default)s)")
    parser.add_argument("--measures", default=",".join(MEASURED), help="what is measured (%(default)s)")
    parser.add_argument("--flowlift", type=pathlib.Path, help="the binary (built from the tree unless given)")
    parser.add_argument("--json", type=pathlib.Path, help="also write all figures here")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    args = parser.parse_args()
    args.configurations, args.measures = args.configurations.split(","), args.measures.split(",")
    for name in args.measures:
        if name not in MEASURED:
            parser.error(f"no measure '{name}'; there are {', '.join(MEASURED)}")
    for name in args.configurations:
        if name not in hosts.CONFIGURATIONS:
            parser.error(f"no configuration '{name}'; there are {', '.join(hosts.CONFIGURATIONS)}")
    if args.rounds < 1:
        parser.error("--rounds must be positive")
    return args


def percentile(values, share):
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def iperf(lab, host, address, seconds):
    """Gbit/s by TCP from host a to this one, and the switch's CPU seconds for a gigabyte."""
    before = lab.switch_cpu_seconds()
    server = subprocess.Popen(["ip", "netns", "exec", host, "iperf3", "--server", "--one-off"], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while "5201" not in lab.run_on(host, "ss", "--listening", "--tcp", "--numeric") and time.monotonic() < end:
            time.sleep(0.05)
        result = json.loads(lab.run_on("a", "iperf3", "--client", address, "--time", str(seconds), "--json"))
    finally:
        server.terminate()
        server.wait()
    received = result["end"]["sum_received"]
    return received["bits_per_second"] / 1e9, (lab.switch_cpu_seconds() - before) / (received["bytes"] / 1e9)


def tunnels(lab, seconds):
    result = {}
    for name, checksum in (("tunnel", True), ("tunnel_plain", False)):
        lab.tunnel(checksum)
        result[name], result[f"{name}_cpu"] = iperf(lab, "c", "10.1.0.3", seconds)
    lab.vsctl("del-port", "br0", "t0")
    return result


def first_packets(lab, count):
    with hosts.Tuples(lab) as tuples:
        tuples.latencies(20)
        times = tuples.latencies(count)
    arrived = [t for t in times if t is not None]
    if len(arrived) < count * 0.9:
        raise ovs.Failed(f"{lab.name}: {count - len(arrived)} of {count} first packets were lost")
    return {"first_median": statistics.median(arrived), "first_p99": percentile(arrived, 0.99), "first_lost": count - len(arrived)}


def many_flows(lab, count, dumps):
    """The rate at which megaflows are set up, and the time of a dump of all of them."""
    with hosts.Tuples(lab) as tuples:
        if count > 8000:
            lab.allow_flows(count * 1.1, tuples)
        before = lab.switch_cpu_seconds()
        seconds, arrived = tuples.set_up(count)
        spent = lab.switch_cpu_seconds() - before
    flows = lab.flows()
    if flows < count * 0.1:
        raise ovs.Failed(f"{lab.name}: {flows} megaflows of {count}, {arrived} packets arrived")
    times = []
    for _ in range(dumps):
        start = time.monotonic()
        shown = lab.appctl("dpctl/dump-flows", lab.datapath).count("actions:")
        # As long as for all of them.
        times.append((time.monotonic() - start) * count / max(shown, 1))
    return {"set_up": flows / seconds, "set_up_cpu": spent * 1e6 / flows, "dump": statistics.median(times), "flows": flows, "set_up_arrived": arrived}


def to_the_nic(lab, seconds, rate):
    with hosts.Tuples(lab) as tuples:
        sent = tuples.paced(rate, seconds)
        names = {tuples.name(n): at for n, at in sent.items()}
    times, deadline = [], time.monotonic() + 10
    while len(times) < len(sent) and time.monotonic() < deadline:
        time.sleep(0.5)
        # From the sending of its first packet, in milliseconds.
        times = [(since - names[name] / 1e3) / 1e3 for name, since in in_the_nic(lab) if name in names]
    if len(times) < len(sent) * 0.5:
        raise ovs.Failed(f"{len(times)} of {len(sent)} new flows are in the NIC's tables")
    return {"nic_median": statistics.median(times), "nic_p99": percentile(times, 0.99), "nic_missing": len(sent) - len(times)}


def in_the_nic(lab):
    """The five-tuples in the NIC's tables, by name, with the microsecond since when."""
    for flow in lab.ask("flows", "--hardware"):
        match = FLOW.search(flow["flow"])
        if match and flow["in_hardware_since_us"] is not None:
            yield (match[1], int(match[2])), flow["in_hardware_since_us"]


def idle(lab, seconds):
    process = lab.daemon or lab.vswitchd
    deadline = time.monotonic() + 20
    while lab.flows() + lab.known_flows() > 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    before, start = hosts.cpu_seconds(process), time.monotonic()
    time.sleep(seconds)
    return {"idle": 100 * (hosts.cpu_seconds(process) - before) / (time.monotonic() - start)}


def measure(lab, args, size):
    """All figures of one configuration. What fails is told and left out; the small run does not go on then."""
    lab.run_on("a", "ping", "-c", "3", "-i", "0.2", "-W", "2", "10.1.0.2")
    parts = {
        "iperf": lambda: {"iperf": iperf(lab, "b", "10.1.0.2", size["iperf"])[0]},
        "tunnel": lambda: tunnels(lab, size["iperf"]),
        "first": lambda: first_packets(lab, size["first"]),
        "paced": lambda: to_the_nic(lab, size["paced"], size["rate"]) if lab.name == "NIC" else {},
        "flows": lambda: many_flows(lab, size["flows"], size["dumps"]),
        "idle": lambda: idle(lab, size["idle"]),
    }
    result = {}
    for part in (name for name in parts if name in args.measures):
        if part not in ("iperf", "tunnel"):
            lab.rules_by_five_tuple()
        try:
            result |= parts[part]()
        except (ovs.Failed, OSError, ValueError, subprocess.SubprocessError) as error:
            if args.short:
                raise
            print(f"{lab.name}, {part}: {error}", file=sys.stderr)
    return result


def medians(rounds):
    names = {name for one in rounds for name in one}
    return {name: statistics.median(one[name] for one in rounds if name in one) for name in names}


def judge(figures, short):
    """For each goal whose figures are there: measure, whose, what it comes to, the goal as text, and whether it is met."""
    verdicts = []
    for measure, whose, kind, goal, lenient in GOALS:
        value, theirs = figures.get(whose, {}).get(measure), figures.get("OVS", {}).get(measure)
        if value is None or (kind == "ratio" and theirs is None):
            continue
        bound = lenient if short else goal
        more = MEASURES[measure][3]
        reached = value / theirs if kind == "ratio" else value
        met = reached >= bound if more else reached <= bound
        word = "at least" if more else "at most"
        unit = " times OVS's" if kind == "ratio" else f" {MEASURES[measure][1]}"
        verdicts.append((measure, whose, reached, f"{word} {bound:g}{unit}", met))
    return verdicts


def table(figures, verdicts):
    lines = ["| | softpath | simulated NIC | OVS user space | softpath / OVS | NIC / OVS | goal |", "|---|---|---|---|---|---|---|"]
    for name, (what, unit, form, _) in MEASURES.items():
        values = [figures.get(whose, {}).get(name) for whose in ("softpath", "NIC", "OVS")]
        cells = [form.format(v) if v is not None else "-" for v in values]
        ratios = [f"{v / values[2]:.2f}" if v is not None and values[2] else "-" for v in values[:2]]
        goals = [f"{whose}: {goal}, {'met' if met else '**missed**'}" for m, whose, _, goal, met in verdicts if m == name]
        lines.append(f"| {what}, {unit} | {' | '.join(cells + ratios)} | {'; '.join(goals)} |")
    return "\n".join(lines)


def section(results, command, text):
    machine, versions = results["machine"], results["versions"]
    flows = {whose: f"{values['flows']:,.0f}" for whose, values in results["figures"].items() if "flows" in values}
    return "\n".join([
        BEGIN,
        f"`{command}` on {results['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {versions['ovs']}; "
        f"{versions['flowlift']}, {versions['rustc']}. Medians of {results['rounds']} rounds; flows of set-up and dump: "
        f"{', '.join(f'{whose} {n}' for whose, n in flows.items())}.",
        "",
        text,
        END,
    ])


def main(prepare, machine, version, root):
    """`prepare` gives the binary and the namespaces, `machine` and `version` describe things, `root` is the tree."""
    args = arguments()
    binary = prepare(args, PACKAGES, ["flowlift", "flowlift-preload"])
    size = {name: both[args.short] for name, both in SIZES.items()}
    hosts.private_names()
    results = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "rounds": args.rounds, "short": args.short,
        "versions": {"ovs": version("ovs-vswitchd", "--version"), "flowlift": version(str(binary), "--version"),
                     "rustc": version("rustc", "--version")},
        "runs": {name: [] for name in args.configurations},
    }
    with tempfile.TemporaryDirectory(prefix="flowlift-peers-") as folder:
        for number in range(args.rounds):
            for name in args.configurations:
                with hosts.Lab(pathlib.Path(folder) / "lab", name, binary) as lab:
                    one = measure(lab, args, size)
                results["runs"][name].append(one)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in one.items())
                print(f"{name} {number + 1}/{args.rounds}: {shown}", file=sys.stderr)
    results["figures"] = {name: medians(runs) for name, runs in results["runs"].items()}
    verdicts = judge(results["figures"], args.short)
    results["goals"] = [dict(zip(("measure", "whose", "reached", "goal", "met"), verdict)) for verdict in verdicts]
    text = table(results["figures"], verdicts)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if args.write:
        command = " ".join(["tests/peers/run", *sys.argv[1:]])
        report.update(root / "docs" / "benchmarks.md", section(results, command, text))
    missed = [f"{MEASURES[m][0]}, {whose}: {reached:.3g}, {goal}" for m, whose, reached, goal, met in verdicts if not met]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    # The ordinary run reports; the short one is a test.
    return 1 if missed and args.short else 0
