#!/usr/bin/env python3
"""report.py FOLDER KNOWN MODE...: the results of tests/ovs-suite/run, by group, and what has to be explained.
report.py --unexplained FOLDER KNOWN MODE: the numbers of the tests that fail without an explanation.
report.py --needs-kernel KNOWN: passes on the tests that KNOWN says need something of the kernel.

Explained must be each test that fails with flowlift, and each that is skipped with flowlift and passes on Open vSwitch's
user-space datapath. KNOWN does so: lines of four fields separated by tabs,

    MODES   NAME   LACKS   CAUSE

MODES are separated by commas, `*` is every one; NAME is the test's, with shell wildcards; with a type of device in LACKS the
line holds only on a kernel without that type, `-` is any kernel. A test that is not explained is an error; so is one that passes
although a line explains it. A line whose NAME has a wildcard explains only the tests that do not pass.
"""
import collections
import fnmatch
import pathlib
import re
import sys

PASSED = {"ok"}
SKIPPED = {"skipped", "expected failure"}
Test = collections.namedtuple("Test", "number group verdict detail table_packets slow_packets again")
Known = collections.namedtuple("Known", "modes name lacks cause")


def groups_of(script):
    """The suite's own groups, by test number."""
    titles, groups = {}, {}
    text = script.read_text(errors="replace")
    for number, title in re.findall(r'^at_banner_text_(\d+)="(.*)"$', text, re.M):
        titles[number] = title
    for test, banner in re.findall(r'^at_fn_group_banner (\d+) \'[^\n]*\n.*" (\d+)$', text, re.M):
        groups[test] = titles.get(banner) or "other"
    return groups


def read(folder, mode):
    suite = "system-userspace-testsuite" if mode == "userspace" else "system-kmod-testsuite"
    groups, tests = groups_of(folder / "src" / "tests" / suite), {}
    for file in (f"{mode}.tsv", f"{mode}-again.tsv"):
        lines = (folder / file).read_text().splitlines() if (folder / file).exists() else []
        for line in lines:
            number, name, verdict, detail, table_packets, slow_packets = line.split("\t")
            group = groups.get(number, "other")
            packets = int(table_packets), int(slow_packets)
            tests[name] = Test(number, group, verdict, detail, *packets, name in tests)
    return tests


def lacks_of(folder, mode):
    """What the kernel lacks that the mode ran on."""
    return (folder / ("vm.lacks" if mode == "vm" else "host.lacks")).read_text().split()


def read_known(path):
    known = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) != 4:
                sys.exit(f"{path}:{number}: not MODES, NAME, LACKS, CAUSE separated by tabs")
            known.append(Known(fields[0].split(","), *fields[1:]))
    return known


def kind(verdict):
    return "passed" if verdict in PASSED else "skipped" if verdict in SKIPPED else "failed"


def table(results):
    groups = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
    for mode, tests in results.items():
        for test in tests.values():
            groups[test.group][mode][kind(test.verdict)] += 1
            groups["all"][mode][kind(test.verdict)] += 1
    width = max(len(group) for group in groups)
    print(" " * width + "".join(f"  {mode:>24}" for mode in results))
    for group in sorted(groups, key=lambda g: (g == "all", g)):
        cells = []
        for mode in results:
            count = groups[group][mode]
            cells.append(f"{count['passed']:>4} ok {count['failed']:>3} fail {count['skipped']:>3} skip")
        print(f"{group:<{width}}" + "".join(f"  {cell:>24}" for cell in cells))


def explanation(mode, name, known, lacks):
    """The line of KNOWN that explains that a test does not pass."""
    for line in known:
        if {mode, "*"} & set(line.modes) and fnmatch.fnmatchcase(name, line.name) and line.lacks in ("-", *lacks):
            return line
    return None


def explain(mode, tests, theirs, known, lacks):
    """What has to be explained, by cause; and the number of errors."""
    causes, bad = collections.defaultdict(list), 0
    for name, test in sorted(tests.items()):
        line = explanation(mode, name, known, lacks)
        verdict = kind(test.verdict)
        they_pass = name in theirs and kind(theirs[name].verdict) == "passed"
        if verdict == "passed":
            if test.again:
                print(f"{mode}: passed at its second try: {name}")
            if line and "*" not in line.name:
                print(f"{mode}: passes, take it out of known.txt: {name}")
                bad += 1
        elif verdict == "failed" or they_pass:
            also = ", passes on the user-space datapath" if they_pass else ""
            if line:
                causes[line.cause].append(f"{name}{also}")
            else:
                where = f"{test.verdict} at {test.detail}" if test.detail else test.verdict
                print(f"{mode}: not explained: [{test.group}] {name}: {where}{also}")
                bad += 1
    return causes, bad


def unexplained(folder, known_path, mode):
    """Numbers of the tests that fail and have no explanation."""
    known, lacks = read_known(known_path), lacks_of(folder, mode)
    failed = [(n, t) for n, t in read(folder, mode).items() if kind(t.verdict) == "failed"]
    return [test.number for name, test in failed if mode != "userspace" and not explanation(mode, name, known, lacks)]


def needs_kernel(known_path, tests):
    """Those of the tests, a number and a name each, that a kernel which lacks something cannot run."""
    names = {k.name for k in read_known(known_path) if k.lacks != "-"}
    return [line for line in tests if any(fnmatch.fnmatchcase(line.rstrip().partition(" ")[2], name) for name in names)]


def main():
    if sys.argv[1] == "--needs-kernel":
        sys.stdout.writelines(needs_kernel(pathlib.Path(sys.argv[2]), sys.stdin))
        return 0
    if sys.argv[1] == "--unexplained":
        print(*unexplained(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4]), sep="\n")
        return 0
    folder, known_path, modes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    results = {mode: read(folder, mode) for mode in modes}
    known = read_known(known_path)
    table(results)

    bad = 0
    for mode, tests in results.items():
        if mode == "userspace":
            continue
        lacks = lacks_of(folder, mode)
        print(f"\n{mode}: on a kernel without", ", ".join(lacks) or "nothing: it has all that the suite uses")
        causes, errors = explain(mode, tests, results.get("userspace", {}), known, lacks)
        bad += errors
        for cause, names in sorted(causes.items()):
            print(f"{mode}: {cause}:")
            for name in names:
                print(f"    {name}")
        with_nic = [test for test in tests.values() if test.table_packets]
        if mode == "nic":
            print(f"nic: the NIC's tables finished {sum(t.table_packets for t in with_nic)} packets in {len(with_nic)} of"
                  f" {len(tests)} tests; {sum(t.slow_packets for t in tests.values())} went to its slow path")
            if not with_nic:
                print("nic: no packet was handled by the NIC's tables")
                bad += 1
    return 1 if bad else 0


sys.exit(main())
