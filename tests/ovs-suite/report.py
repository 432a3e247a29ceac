#!/usr/bin/env python3
"""report.py FOLDER KNOWN MODE...: the results of tests/ovs-suite/run, by group, and where they differ.

KNOWN lists tests that pass on Open vSwitch's user-space datapath and not here, each with its cause:
lines `mode<TAB>name<TAB>cause`, `*` for every mode. A failure that is not listed is an error; so is a listed test that passes.
"""
import collections
import pathlib
import re
import sys

PASSED = {"ok"}
SKIPPED = {"skipped", "expected failure"}


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
    for line in (folder / f"{mode}.tsv").read_text().splitlines():
        number, name, verdict, detail = line.split("\t")
        tests[name] = (groups.get(number, "other"), verdict, detail)
    return tests


def kind(verdict):
    return "passed" if verdict in PASSED else "skipped" if verdict in SKIPPED else "failed"


def main():
    folder, known_path, modes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    results = {mode: read(folder, mode) for mode in modes}
    groups = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
    for mode, tests in results.items():
        for group, verdict, _ in tests.values():
            groups[group][mode][kind(verdict)] += 1
            groups["all"][mode][kind(verdict)] += 1
    width = max(len(group) for group in groups)
    print(" " * width + "".join(f"  {mode:>24}" for mode in modes))
    for group in sorted(groups, key=lambda g: (g == "all", g)):
        cells = []
        for mode in modes:
            count = groups[group][mode]
            cells.append(f"{count['passed']:>4} ok {count['failed']:>3} fail {count['skipped']:>3} skip")
        print(f"{group:<{width}}" + "".join(f"  {cell:>24}" for cell in cells))

    known = {}
    for line in known_path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            mode, name, cause = line.split("\t")
            known[(mode, name)] = cause
    theirs = results.get("userspace", {})
    bad = 0
    for mode in modes:
        if mode == "userspace":
            continue
        for name, (group, verdict, detail) in sorted(results[mode].items()):
            cause = known.get((mode, name)) or known.get(("*", name))
            passes = kind(verdict) == "passed"
            if passes and cause:
                print(f"{mode}: passes although known.txt lists it: {name}")
                bad += 1
            expected = kind(theirs.get(name, ("", "FAILED", ""))[1]) == "passed"
            if expected and not passes:
                print(f"{mode}: {verdict} ({detail}), passes on the user-space datapath: [{group}] {name}"
                      + (f": {cause}" if cause else ""))
                bad += not cause
    return 1 if bad else 0


sys.exit(main())
