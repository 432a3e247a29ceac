//! `flowlift replay`.

use super::{Outcome, print_json};
use crate::check::CheckReport;
use crate::cli::ReplayArgs;
use crate::engine::{Arrival, FlowTotals, NicRun, PacketCounts, ReferenceRun, Run, SoftRun};
use crate::input::{self, Flows, Packets};
use crate::ledger::{Ledger, Outlet};
use crate::open;
use crate::progress::Progress;
use crate::report::{self, FlowLine, Reasons};
use anyhow::{Context, Result, bail};
use flowlift_driver::nic::NicState;
use flowlift_offload::planner::State;
use flowlift_softpath::{Config, Datapath, FlowId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

/// Packets handed to a run at once.
const CHUNK: usize = 32;
/// Flows that a person is shown.
const FLOWS_SHOWN: usize = 40;

/// Everything that `--json` prints. All but `speed` is the same in every run with the same input and seed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many flows are where.
    pub flows: FlowCounts,
    /// What became of the packets.
    pub packets: PacketCounts,
    /// What `--check` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckReport>,
    /// The NIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicReport>,
    /// Why there was no NIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_nic: Option<String>,
    /// What left, by port.
    pub outputs: Vec<OutputReport>,
    /// A number that two runs share only if they sent the same number of frames and bytes by each outlet and, with
    /// `--check`, the same frames in the same order per flow.
    pub digest: String,
    /// Why flows are not in hardware, the most frequent reason first.
    pub reasons: Vec<report::ReasonCount>,
    /// The flows, in the order of the dump.
    pub flow_table: Vec<FlowLine>,
    /// Flows of the dump that are not in the datapath.
    pub refused: Vec<report::RefusedLine>,
    /// Flows that stand in the dump more than once; they count once.
    pub repeated: u64,
    /// Where and why the capture ended before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// How long it took.
    pub speed: Speed,
}

/// How many flows are where.
#[derive(Debug, Serialize)]
pub struct FlowCounts {
    /// Flows of the dump.
    pub total: u64,
    /// In hardware.
    pub hardware: u64,
    /// In software only.
    pub software: u64,
    /// Not in the datapath.
    pub refused: u64,
}

/// What there is to say of the NIC.
#[derive(Debug, Serialize)]
pub struct NicReport {
    /// Device family.
    pub device: String,
    /// Model or profile.
    pub model: String,
    /// `ready`, `failed` or `gone`.
    pub state: &'static str,
    /// Seed of the faults.
    pub seed: u64,
    /// Breaches of the device's protocol: bugs of the driver.
    pub violations: u32,
    /// Injected faults by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Resets by the planner.
    pub resets: u64,
    /// Inserts that the device confirmed.
    pub inserted: u64,
    /// Replaces, likewise.
    pub replaced: u64,
    /// Deletes, likewise.
    pub deleted: u64,
    /// Flows that gave their place to a busier one.
    pub evicted: u64,
    /// Entries found damaged and written anew.
    pub repaired: u64,
    /// Entries read back that were as they should be.
    pub verified: u64,
    /// Counters compared between bulk snapshots and host memory.
    pub audited_counters: u64,
    /// Those that disagreed.
    pub disagreeing_counters: u64,
    /// Updates that the device never answered, or answered by a reset.
    pub unanswered: u64,
    /// Plans that raise-and-compare refused.
    pub lowering_bugs: u64,
}

/// What left by one port.
#[derive(Debug, Serialize)]
pub struct OutputReport {
    /// Port, or `(userspace)`, `(miss)`.
    pub to: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How long it took.
#[derive(Debug, Default, Serialize)]
pub struct Speed {
    /// Reading the flows.
    pub load_seconds: f64,
    /// Flows read per second.
    pub flows_per_second: f64,
    /// Offering the flows to the NIC until each had its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_seconds: Option<f64>,
    /// Replaying the packets.
    pub replay_seconds: f64,
    /// Packets replayed per second.
    pub packets_per_second: f64,
    /// Megabits replayed per second.
    pub megabits_per_second: f64,
}

/// The run that is reported.
enum Main {
    Soft(Box<SoftRun>),
    Nic(Box<NicRun>),
}

impl Main {
    fn run(&mut self) -> &mut dyn Run {
        match self {
            Self::Soft(run) => run.as_mut(),
            Self::Nic(run) => run.as_mut(),
        }
    }

    fn nic(&self) -> Option<&NicRun> {
        match self {
            Self::Soft(_) => None,
            Self::Nic(run) => Some(run),
        }
    }
}

/// Replays a capture and tells who handled what. [`Outcome::Bad`] if `--check` found a difference.
///
/// # Errors
/// Input that cannot be used at all.
pub fn run(args: &ReplayArgs) -> Result<Outcome> {
    let report = replay(args)?;
    if args.json {
        print_json(&report)?;
    } else {
        super::print_text(|out| print_text(out, &report))?;
    }
    if let Some(damage) = &report.damage {
        eprintln!("flowlift: {damage}; the {} packets before it were replayed", report.packets.total);
        return Ok(Outcome::Damaged);
    }
    let differs = report.check.as_ref().is_some_and(|check| check.differences > 0);
    Ok(if differs { Outcome::Bad } else { Outcome::Good })
}

/// Replays a capture.
///
/// # Errors
/// Input that cannot be used at all.
pub fn replay(args: &ReplayArgs) -> Result<Report> {
    match (&args.flows.flows, &args.pcap) {
        (Some(flows), None) => bail!(
            "--flows {0} has no packets to replay: name a capture by --pcap FILE, or see what a NIC would take by `flowlift explain --flows {0}`",
            flows.display()
        ),
        (None, Some(pcap)) => bail!(
            "--pcap {} has no flows: name a dump by --flows FILE (`ovs-appctl dpctl/dump-flows` prints one)",
            pcap.display()
        ),
        _ => {}
    }
    let faults = open::faults(args.faults.as_deref())?;
    let progress = Progress::new(!args.json);
    let mut speed = Speed::default();

    let start = Instant::now();
    progress.start("loading flows", None);
    let mut input = input::read_flows(&args.flows, args.seed)?;
    speed.load_seconds = start.elapsed().as_secs_f64();
    speed.flows_per_second = input.loaded.flows.len() as f64 / speed.load_seconds;
    let packets = input::read_packets(args.pcap.as_deref(), args.in_port.as_deref(), &input.ports)?;

    let mut compared = if args.check { comparisons(args, &mut input)? } else { Vec::new() };
    for (name, run) in &mut compared {
        drive(run.as_mut(), &packets, &progress, name)?;
    }

    let mut ledger = if args.check { Ledger::comparable() } else { Ledger::counting() };
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        ledger = ledger.with_captures(folder, input.ports.by_number());
    }
    let ids: Vec<FlowId> = input.loaded.flows.iter().map(|flow| flow.id).collect();
    let datapath = std::mem::replace(&mut input.datapath, Datapath::new(Config::default()));
    let mut no_nic = args.no_nic.then(|| "no NIC was asked for (--no-nic)".to_owned());
    let mut main = if no_nic.is_some() {
        Main::Soft(Box::new(SoftRun::new(datapath, ids, args.seed, ledger)))
    } else {
        let ports = input::nic_ports(&input, &packets.ports());
        match open::open(open::profile(args.profile), args.seed, faults, &ports, packets.start_ns()) {
            Ok(setup) => {
                progress.start("offloading flows", Some(ids.len() as u64));
                let start = Instant::now();
                let run = NicRun::new(setup, datapath, ids, args.seed, ledger, |done| progress.at(done))?;
                speed.offload_seconds = Some(start.elapsed().as_secs_f64());
                Main::Nic(Box::new(run))
            }
            // A dead NIC loses nothing: the softpath has every flow.
            Err(error) => {
                no_nic = Some(format!("{error:#}"));
                Main::Soft(Box::new(SoftRun::new(datapath, ids, args.seed, ledger)))
            }
        }
    };
    speed.replay_seconds = drive(main.run(), &packets, &progress, "replaying packets")?;
    speed.packets_per_second = packets.len() as f64 / speed.replay_seconds;
    speed.megabits_per_second = packets.bytes() as f64 * 8e-6 / speed.replay_seconds;
    progress.finish();

    let check = args.check.then(|| judge(&mut compared, &mut main, input.loaded.flows.len()));
    main.run().ledger().finish()?;
    Ok(report(args, &input, &packets, &mut main, check, no_nic, speed))
}

/// The runs that `--check` compares with: the linear reference and, beside a NIC, the softpath alone.
fn comparisons(args: &ReplayArgs, input: &mut Flows) -> Result<Vec<(&'static str, Box<dyn Run>)>> {
    let ids: Vec<FlowId> = input.loaded.flows.iter().map(|flow| flow.id).collect();
    let flows: Vec<_> = ids.iter().filter_map(|id| input.datapath.flow(*id)).collect();
    let reference = ReferenceRun::new(flows.iter().cloned(), args.seed, Ledger::comparable())?;
    let mut runs: Vec<(_, Box<dyn Run>)> = vec![("linear reference", Box::new(reference))];
    if !args.no_nic {
        let mut datapath = Datapath::new(Config { seed: Some(args.seed), ..Config::default() });
        let ids = flows.iter().map(|flow| datapath.put(flow).map(|put| put.id)).collect::<Result<_, _>>()?;
        let soft = SoftRun::new(datapath, ids, args.seed, Ledger::comparable());
        runs.push(("softpath", Box::new(soft)));
    }
    Ok(runs)
}

/// Compares every run with the linear reference.
fn judge(compared: &mut [(&'static str, Box<dyn Run>)], main: &mut Main, flows: usize) -> CheckReport {
    let mut check = CheckReport::default();
    if let Some(((_, reference), others)) = compared.split_first_mut() {
        for (name, run) in others {
            check.compare(name, reference.as_mut(), run.as_mut(), flows);
        }
        let name = if main.nic().is_some() { "NIC and softpath" } else { "softpath" };
        check.compare(name, reference.as_mut(), main.run(), flows);
    }
    if let Some(nic) = main.nic() {
        check.nic(&nic.summary());
    }
    check
}

/// Sends all packets through `run`; gives the seconds that it took.
fn drive(run: &mut dyn Run, packets: &Packets, progress: &Progress, what: &'static str) -> Result<f64> {
    progress.start(what, Some(packets.len() as u64));
    let start = Instant::now();
    let mut chunk: Vec<Arrival<'_>> = Vec::with_capacity(CHUNK);
    for (n, arrival) in packets.arrivals().enumerate() {
        chunk.push(arrival);
        if chunk.len() == CHUNK {
            run.arrive(&chunk)?;
            chunk.clear();
            if n % 4096 < CHUNK {
                progress.at(n as u64);
            }
        }
    }
    run.arrive(&chunk)?;
    Ok(start.elapsed().as_secs_f64())
}

fn report(
    args: &ReplayArgs,
    input: &Flows,
    packets: &Packets,
    main: &mut Main,
    check: Option<CheckReport>,
    no_nic: Option<String>,
    speed: Speed,
) -> Report {
    let count = input.loaded.flows.len();
    let totals: Vec<FlowTotals> = (0..count).map(|flow| main.run().totals(flow)).collect();
    let mut shown: Vec<usize> = (0..count).collect();
    if !args.json {
        shown.sort_by_key(|flow| std::cmp::Reverse(totals[*flow].packets));
        shown.truncate(FLOWS_SHOWN);
    }
    let mut reasons = Reasons::default();
    let mut hardware = 0;
    for flow in 0..count {
        match main.nic().map(|nic| nic.state(flow)) {
            Some((State::Hardware | State::PendingReplace, _)) => hardware += 1,
            Some((_, Some(reason))) => reasons.add(&reason.to_string()),
            Some((_, None)) => {}
            None => reasons.add(no_nic.as_deref().unwrap_or_default()),
        }
    }
    let flow_table =
        shown.into_iter().filter_map(|flow| flow_line(flow, input, main, no_nic.as_deref())).collect();
    let refused = report::refused_lines(&input.loaded);
    let names = input.ports.by_number();
    let ledger = main.run().ledger();
    let outputs = ledger.outlets().map(|(outlet, packets, bytes)| {
        let to = match outlet {
            Outlet::Port(port) => names.get(&port).cloned().unwrap_or_else(|| port.0.to_string()),
            Outlet::Userspace => "(userspace)".into(),
            Outlet::Miss => "(miss)".into(),
        };
        OutputReport { to, packets, bytes }
    });
    Report {
        outputs: outputs.collect(),
        digest: format!("{:016x}", ledger.digest()),
        flows: FlowCounts {
            total: (count + refused.len()) as u64,
            hardware,
            software: count as u64 - hardware,
            refused: refused.len() as u64,
        },
        packets: main.run().counts(),
        check,
        nic: main.nic().map(|nic| nic_report(nic, args.seed)),
        no_nic,
        reasons: reasons.sorted(),
        flow_table,
        refused,
        repeated: input.loaded.repeated,
        damage: packets.damage(),
        speed,
    }
}

fn flow_line(flow: usize, input: &Flows, main: &mut Main, no_nic: Option<&str>) -> Option<FlowLine> {
    let installed = main.run().flow(flow)?;
    let software = main.run().totals(flow);
    let line = input.loaded.flows.get(flow)?.line;
    let names = input.names();
    Some(match main.nic() {
        None => {
            let reason = no_nic.map(str::to_owned);
            FlowLine {
                software: Some(software),
                ..FlowLine::new(line, &installed, "software", reason, names)
            }
        }
        Some(nic) => {
            let (state, reason) = nic.state(flow);
            let reason = reason.map(|reason| reason.to_string());
            FlowLine {
                hardware: Some(nic.hardware(flow)),
                software: Some(nic.software(flow)),
                ..FlowLine::new(line, &installed, state.name(), reason, names)
            }
        }
    })
}

fn nic_report(nic: &NicRun, seed: u64) -> NicReport {
    let summary = nic.summary();
    let planner = summary.planner;
    NicReport {
        device: nic.caps().device.clone(),
        model: nic.caps().model.clone(),
        state: match summary.state {
            NicState::Ready => "ready",
            NicState::Failed => "failed",
            NicState::Gone => "gone",
        },
        seed,
        violations: summary.violations,
        faults: summary.faults,
        resets: planner.resets,
        inserted: planner.inserted,
        replaced: planner.replaced,
        deleted: planner.deleted,
        evicted: planner.evicted,
        repaired: planner.repaired,
        verified: planner.verified,
        audited_counters: summary.audit.counters,
        disagreeing_counters: summary.audit.disagree,
        unanswered: planner.unanswered,
        lowering_bugs: planner.lowering_bugs,
    }
}

fn print_text(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(out, "{:>9} {:>12}  {:<9} flow", "packets", "bytes", "state")?;
    let mut table: Vec<&FlowLine> = report.flow_table.iter().collect();
    table.sort_by_key(|flow| std::cmp::Reverse(flow.totals().packets));
    for flow in table {
        let totals = flow.totals();
        writeln!(
            out,
            "{:>9} {:>12}  {:<9} {}, actions:{}",
            totals.packets, totals.bytes, flow.state, flow.flow, flow.actions
        )?;
        if let Some(reason) = &flow.reason
            && report.nic.is_some()
        {
            writeln!(out, "{:>33} why: {reason}", "")?;
        }
    }
    let loaded = report.flows.hardware + report.flows.software;
    if let Some(rest) = loaded.checked_sub(FLOWS_SHOWN as u64).filter(|rest| *rest > 0) {
        writeln!(out, "{:>9} more flows (--json has all)", rest)?;
    }
    for refused in report.refused.iter().take(FLOWS_SHOWN) {
        writeln!(out, "{:>23}  refused   line {}: {}", "", refused.line, refused.reason)?;
    }
    writeln!(out)?;
    if let Some(nic) = &report.nic {
        writeln!(
            out,
            "NIC      {} {}: {}, {} resets, {} violations",
            nic.device, nic.model, nic.state, nic.resets, nic.violations
        )?;
        if !nic.faults.is_empty() {
            let faults: Vec<String> = nic.faults.iter().map(|(name, n)| format!("{name} {n}")).collect();
            writeln!(out, "faults   {} (seed {})", faults.join(", "), nic.seed)?;
        }
    }
    if let Some(why) = &report.no_nic {
        writeln!(out, "NIC      none: {why}")?;
    }
    let flows = &report.flows;
    writeln!(
        out,
        "flows    {} in all: {} in hardware, {} in software, {} refused",
        flows.total, flows.hardware, flows.software, flows.refused
    )?;
    if report.nic.is_some() {
        report::print_reasons(out, &report.reasons)?;
    }
    let packets = &report.packets;
    writeln!(
        out,
        "packets  {} in all: {} by hardware, {} by software, {} missed",
        packets.total, packets.hardware, packets.software, packets.missed
    )?;
    for output in &report.outputs {
        writeln!(out, "  to {:<16} {:>9} packets {:>12} bytes", output.to, output.packets, output.bytes)?;
    }
    let speed = &report.speed;
    writeln!(
        out,
        "speed    flows loaded in {:.2} s ({:.0} flows/s)",
        speed.load_seconds, speed.flows_per_second
    )?;
    if let Some(seconds) = speed.offload_seconds {
        writeln!(out, "         offloaded in {seconds:.2} s ({:.0} flows/s)", loaded as f64 / seconds)?;
    }
    writeln!(
        out,
        "         packets replayed in {:.2} s ({:.0} packets/s, {:.0} Mbit/s)",
        speed.replay_seconds, speed.packets_per_second, speed.megabits_per_second
    )?;
    if let Some(check) = &report.check {
        writeln!(
            out,
            "check    {} packets against the linear reference ({}): {} differences",
            check.packets,
            check.compared.join(", "),
            check.differences
        )?;
        for detail in &check.details {
            writeln!(out, "  {detail}")?;
        }
    }
    Ok(())
}
