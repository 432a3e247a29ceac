//! The NIC under faults, each alone and all together: the answer stays the same, no flow is lost, every flow that is not
//! in hardware says why, and the same seed gives the same run, byte for byte.
//!
//! `FLOWLIFT_FAULT_SEEDS` says how many seeds; `tests/run faults` takes 200, in release.

use clap::Parser;
use flowlift_agent::cli::{Cli, Command};
use flowlift_agent::command::replay::{Report, replay};
use flowlift_sim::FaultKind;
use serde_json::Value;
use std::collections::BTreeMap;

/// Seeds when nothing else is asked for.
const SEEDS: u64 = 4;
/// Seeds among which every fault must strike.
const ENOUGH_SEEDS: u64 = 100;

fn seeds() -> u64 {
    match std::env::var("FLOWLIFT_FAULT_SEEDS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("FLOWLIFT_FAULT_SEEDS={text} is not a number")),
        Err(_) => SEEDS,
    }
}

fn run(seed: u64, faults: &str, profile: &str) -> Report {
    let seed = seed.to_string();
    let line = [
        "flowlift",
        "replay",
        "--check",
        "--seed",
        &seed,
        "--faults",
        faults,
        "--profile",
        profile,
        "--json",
    ];
    let Command::Replay(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not a replay") };
    replay(&args).unwrap_or_else(|error| panic!("{}: {error:#}", line.join(" ")))
}

/// Everything but how long it took.
fn comparable(report: &Report) -> Value {
    let mut value = serde_json::to_value(report).unwrap();
    value.as_object_mut().unwrap().remove("speed");
    value
}

/// Checks one run; gives how often each fault struck.
fn check(seed: u64, faults: &str, profile: &str) -> BTreeMap<&'static str, u64> {
    let report = run(seed, faults, profile);
    let again = format!("flowlift replay --check --seed {seed} --faults {faults} --profile {profile}");
    let check = report.check.as_ref().unwrap();
    assert_eq!(check.differences, 0, "{again}\n{}", check.details.join("\n"));
    assert_eq!(check.packets, report.packets.total, "{again}");
    let counts = report.packets;
    assert_eq!(counts.hardware + counts.software + counts.missed, counts.total, "{again}");
    assert_eq!(
        report.flow_table.len() as u64 + report.flows.refused,
        report.flows.total,
        "{again}: a flow is lost"
    );
    for flow in &report.flow_table {
        let explained = flow.reason.as_ref().is_some_and(|reason| !reason.is_empty());
        let in_hardware = matches!(flow.state, "hardware" | "pending-replace");
        assert!(
            in_hardware || explained,
            "{again}: line {} is in {} without a reason",
            flow.line,
            flow.state
        );
    }
    report.nic.map(|nic| nic.faults).unwrap_or_default()
}

/// Runs every seed, on as many threads as there are cores.
fn every_seed(faults: &str, profile: &str) -> BTreeMap<&'static str, u64> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut total = BTreeMap::new();
    std::thread::scope(|scope| {
        let share = |thread| {
            move || {
                (thread..seeds()).step_by(threads as usize).map(|seed| check(seed, faults, profile)).collect()
            }
        };
        let shares: Vec<_> = (0..threads).map(|thread| scope.spawn(share(thread))).collect();
        for share in shares {
            let counts: Vec<BTreeMap<&'static str, u64>> =
                share.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            for (name, count) in counts.into_iter().flatten() {
                *total.entry(name).or_default() += count;
            }
        }
    });
    total
}

#[test]
fn each_fault_alone_changes_no_answer() {
    let mut any = 0;
    for kind in FaultKind::ALL {
        let struck = every_seed(kind.name(), "standard");
        assert!(
            seeds() < ENOUGH_SEEDS || struck.get(kind.name()).is_some_and(|count| *count > 0),
            "{} never struck in {} seeds, so nothing was tested",
            kind.name(),
            seeds()
        );
        any += struck.values().sum::<u64>();
        assert!(struck.len() <= 1, "only {} was asked for: {struck:?}", kind.name());
    }
    assert!(any > 0, "no fault struck");
}

#[test]
fn all_faults_together_change_no_answer() {
    for profile in ["tiny", "standard", "large"] {
        let struck = every_seed("all", profile);
        assert!(struck.len() > FaultKind::ALL.len() / 2, "few faults struck: {struck:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run_byte_for_byte() {
    for seed in 0..seeds().div_ceil(4) {
        let (first, second) = (run(seed, "all", "standard"), run(seed, "all", "standard"));
        assert_eq!(comparable(&first), comparable(&second), "seed {seed}");
    }
    let (one, other) = (run(1, "all", "standard"), run(2, "all", "standard"));
    assert_ne!(comparable(&one), comparable(&other), "the seed changes nothing");
}

#[test]
fn without_faults_every_audit_agrees() {
    let report = run(0, "link_flap=0", "standard");
    let nic = report.nic.unwrap();
    assert!(nic.verified > 0 && nic.audited_counters > 0, "nothing was audited: {nic:?}");
    assert_eq!(
        (nic.violations, nic.disagreeing_counters, nic.repaired, nic.resets),
        (Some(0), 0, 0, 0),
        "{nic:?}"
    );
    assert_eq!(report.check.unwrap().differences, 0);
}
