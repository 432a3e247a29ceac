"""Turns the figures of `run` into a table, a page's section and a plot."""
import statistics

GOALS = {"a1": 1.5, "b1k": 1.5, "b1kx": 1.5, "c100k": 3.0}
BEGIN, END = "<!-- tests/peers/run: begin -->", "<!-- tests/peers/run: end -->"


def spread(values):
    """Highest less lowest, as a part of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def summary(case):
    """What counts of one case: its best configuration's median, flowlift's, and their ratio."""
    medians = {name: statistics.median(values) for name, values in case["ovs"].items()}
    best = max(medians, key=medians.get)
    ours = statistics.median(case["flowlift"])
    return {
        "best": best,
        "ovs": medians[best],
        "ovs_spread": spread(case["ovs"][best]),
        "flowlift": ours,
        "flowlift_spread": spread(case["flowlift"]),
        "ratio": ours / medians[best],
    }


def table(results):
    """The cases as a Markdown table."""
    lines = [
        "| case | flows, masks | OVS's best (configuration) | spread | flowlift | spread | ratio | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in results["cases"].items():
        s = summary(case)
        lines.append(
            f"| {name} | {case['megaflows']}, {case['masks']} | {s['ovs']:.2f} ({s['best']}) | {s['ovs_spread']:.0%} "
            f"| {s['flowlift']:.2f} | {s['flowlift_spread']:.0%} | **{s['ratio']:.2f}** | {GOALS[name]:.1f} |"
        )
    return "\n".join(lines)


def details(results):
    """Every configuration's median, and what flowlift's packets took."""
    names = [name for name in next(iter(results["cases"].values()))["ovs"]]
    for case in results["cases"].values():
        names += [name for name in case["ovs"] if name not in names]
    ours = ["flowlift, frames 2 KiB apart", "flowlift, cycles per packet", "its cache, table"]
    lines = [f"| case | {' | '.join(names + ours)} |", "|---" * (len(names) + len(ours) + 1) + "|"]
    for name, case in results["cases"].items():
        cells = [f"{statistics.median(case['ovs'][n]):.2f}" if n in case["ovs"] else "-" for n in names]
        cells.append(f"{statistics.median(case['flowlift_spaced']):.2f}")
        cycles = [run["cycles_per_packet"] for run in case["flowlift_runs"]]
        cells.append(f"{statistics.median(cycles):.0f}" if None not in cycles else "-")
        shares = [statistics.median(run[part] for run in case["flowlift_runs"]) for part in ("cache_share", "table_share")]
        cells.append(", ".join(f"{share:.1%}" for share in shares))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section(results, command):
    """The generated part of docs/benchmarks.md."""
    machine = results["machine"]
    return "\n".join([
        BEGIN,
        f"`{command}` on {results['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; "
        f"{results['versions']['ovs']}; {results['versions']['dpdk']}; {results['versions']['flowlift']}, "
        f"{results['versions']['rustc']}. {results['rounds']} rounds of {results['seconds']:g} s each, in turn, on core "
        f"{results['core']}; medians in Mpps per CPU second; spread is highest less lowest over the median.",
        "",
        table(results),
        "",
        "![Mpps per CPU second of both](benchmarks.svg)",
        "",
        "Every configuration of OVS's; flowlift with its source frames as far apart as DPDK's buffers; and for its frames one "
        "behind the other, cycles of the time stamp counter and which tier found the flow:",
        "",
        details(results),
        END,
    ])


def update(page, text):
    """Puts the generated part, whose first and last lines are its marks, into the page in place of the one before."""
    content, marks = page.read_text(), text.splitlines()
    before, _, rest = content.partition(marks[0])
    _, end, after = rest.partition(marks[-1])
    if not end:
        raise ValueError(f"{page} lacks the marks {marks[0]} and {marks[-1]}")
    page.write_text(before + text + after)


def plot(results):
    """Two bars for each case, as SVG."""
    cases = {name: (summary(case), case) for name, case in results["cases"].items()}
    top = 1.15 * max(max(max(case["flowlift"]), s["ovs"]) for s, case in cases.values())
    width, height, base = 90 + 150 * len(cases), 320, 270
    scale = (base - 40) / top
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="10" y="20">Mpps per CPU second, one core (line: lowest to highest round)</text>',
    ]
    step = max(1, round(top / 6))
    for value in range(0, int(top) + 1, step):
        y = base - value * scale
        out.append(f'<line x1="45" y1="{y:.1f}" x2="{width - 10}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="38" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for number, (name, (s, case)) in enumerate(cases.items()):
        x = 70 + 150 * number
        bars = [("#9aa5b1", s["ovs"], case["ovs"][s["best"]]), ("#1f77b4", s["flowlift"], case["flowlift"])]
        for place, (colour, value, values) in enumerate(bars):
            left, y = x + 48 * place, base - value * scale
            out.append(f'<rect x="{left}" y="{y:.1f}" width="44" height="{value * scale:.1f}" fill="{colour}"/>')
            low, high = base - min(values) * scale, base - max(values) * scale
            out.append(f'<line x1="{left + 22}" y1="{low:.1f}" x2="{left + 22}" y2="{high:.1f}" stroke="black"/>')
            out.append(f'<text x="{left + 22}" y="{high - 5:.1f}" text-anchor="middle">{value:.1f}</text>')
        out.append(f'<text x="{x + 46}" y="{base + 16}" text-anchor="middle">{name}: {s["ratio"]:.2f} times</text>')
        out.append(f'<text x="{x + 46}" y="{base + 30}" text-anchor="middle" fill="#666">OVS: {s["best"]}</text>')
    out.append(f'<rect x="{width - 150}" y="10" width="10" height="10" fill="#9aa5b1"/>')
    out.append(f'<text x="{width - 136}" y="19">OVS</text>')
    out.append(f'<rect x="{width - 90}" y="10" width="10" height="10" fill="#1f77b4"/>')
    out.append(f'<text x="{width - 76}" y="19">flowlift</text>')
    out.append("</svg>\n")
    return "\n".join(out)
