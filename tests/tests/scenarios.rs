//! Every recorded pair of flows and packets through softpath alone, NIC and softpath, and the linear reference, on every
//! profile: the same packets, the same order per flow, the same counters.

use clap::Parser;
use flowlift_agent::cli::{Cli, Command};
use flowlift_agent::command::replay::{Report, replay};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// Captures that belong to a flow dump: (capture, dump, ports).
fn pairs() -> Vec<(PathBuf, PathBuf, String)> {
    let mut pairs = Vec::new();
    let mut captures: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("packets")).unwrap().map(|entry| entry.unwrap().path()).collect();
    captures.sort();
    for capture in captures.into_iter().filter(|path| path.is_file()) {
        let name = capture.file_name().unwrap().to_string_lossy().into_owned();
        let scenario = name.split('.').next().unwrap();
        let dump = fixtures().join(format!("flows/{scenario}.txt"));
        if !dump.exists() {
            continue;
        }
        let ports = std::fs::read_to_string(dump.with_extension("ports")).unwrap();
        pairs.push((capture, dump, ports.lines().collect::<Vec<_>>().join(",")));
    }
    assert!(pairs.len() >= 10, "only {} pairs of flows and packets", pairs.len());
    pairs
}

fn check(capture: &Path, dump: &Path, ports: &str, profile: &str) -> Report {
    let (capture, dump) = (capture.to_str().unwrap(), dump.to_str().unwrap());
    let input = ["--flows", dump, "--pcap", capture, "--ports", ports, "--in-port", "2"];
    let line = [&["flowlift", "replay", "--check", "--json", "--profile", profile][..], &input].concat();
    let Command::Replay(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not a replay") };
    let report = replay(&args).unwrap_or_else(|error| panic!("{capture}: {error:#}"));
    let check = report.check.as_ref().unwrap();
    assert_eq!(check.differences, 0, "{capture} on {profile}:\n{}", check.details.join("\n"));
    assert_eq!(check.compared, ["softpath", "NIC and softpath"], "{capture}");
    let nic = report.nic.as_ref().unwrap();
    assert_eq!(
        (nic.violations, nic.lowering_bugs, nic.resets),
        (Some(0), 0, 0),
        "{capture} on {profile}: {nic:?}"
    );
    for flow in &report.flow_table {
        assert!(
            flow.state == "hardware" || flow.reason.is_some(),
            "{capture}: line {} has no reason",
            flow.line
        );
    }
    report
}

#[test]
fn every_recorded_scenario_gives_the_same_answer_three_ways() {
    let mut hardware = 0;
    for (capture, dump, ports) in pairs() {
        for profile in ["tiny", "standard", "large"] {
            hardware += check(&capture, &dump, &ports, profile).packets.hardware;
        }
    }
    assert!(hardware > 5_000, "only {hardware} packets were handled by hardware");
}

#[test]
fn the_bundled_scenario_counts_each_packet_as_open_vswitch_did() {
    // The recording asserts that each packet of the capture is counted by one flow (fixtures/README.md): `packets` of the
    // dump, and one more for the packet that made the flow.
    let (capture, dump, ports) = pairs().into_iter().find(|(c, ..)| c.ends_with("bundled.pcapng")).unwrap();
    let report = check(&capture, &dump, &ports, "standard");
    let text = std::fs::read_to_string(&dump).unwrap();
    let counted: Vec<u64> = text
        .lines()
        .map(|line| {
            line.split("packets:").nth(1).map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
        })
        .collect();
    let mut compared = 0;
    for flow in report.flow_table.iter().filter(|flow| flow.flow.contains("recirc_id(0)")) {
        let want = counted[flow.line as usize - 1] + 1;
        assert_eq!(flow.totals().packets, want, "line {}: {}", flow.line, flow.flow);
        compared += 1;
    }
    assert!(compared > 50, "only {compared} flows compared");
    assert_eq!(report.packets.missed, 0);
}
