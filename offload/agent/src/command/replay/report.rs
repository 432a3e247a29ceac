//! What `flowlift replay` tells of a run, as JSON and as text.

use super::Main;
use crate::check::CheckReport;
use crate::cli::ReplayArgs;
use crate::engine::{FlowTotals, NicRun, PacketCounts, Run};
use crate::input::{Flows, Packets};
use crate::ledger::Outlet;
use crate::report::{self, FlowLine, Reasons};
use anyhow::Result;
use flowlift_driver::nic::{NicPort, NicState};
use flowlift_flow::PortNo;
use flowlift_offload::planner::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

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
    /// Breaches of the device's protocol: bugs of the driver. `null`: the device does not tell, or not any more.
    pub violations: Option<u32>,
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
    /// Of a NIC outside of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<OutsideReport>,
}

/// What there is to say of a NIC because it is outside of this process.
#[derive(Debug, Serialize)]
pub struct OutsideReport {
    /// Where it is, as on the command line.
    pub at: String,
    /// Its ports that are the datapath's.
    pub ports: Vec<PluggedPort>,
    /// It counts packets. If not, those that it handled are not in the counters of the flows, and not in a live run's packets.
    pub counts_packets: bool,
    /// Packets of which nothing was seen after they were sent to it.
    pub lost: u64,
    /// Packets of the softpath that it did not send: to a port without link, or more than it takes.
    pub unsent: u64,
    /// The run ended its use early because the host asked for it back.
    pub given_back: bool,
}

/// A port of a NIC outside.
#[derive(Debug, Serialize)]
pub struct PluggedPort {
    /// The datapath's name or number of it.
    pub port: String,
    /// The NIC's, `pN` from 0.
    pub nic: String,
    /// Its wire ends here: what leaves by it is counted in the outputs.
    pub seen: bool,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_seconds: Option<f64>,
    /// Serving what arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_seconds: Option<f64>,
    /// Packets replayed or served per second.
    pub packets_per_second: f64,
    /// Megabits replayed per second.
    pub megabits_per_second: f64,
}

pub(super) fn report(
    args: &ReplayArgs,
    input: &Flows,
    packets: Option<&Packets>,
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
        nic: main.nic().map(|nic| nic_report(nic, args, &names)),
        no_nic,
        reasons: reasons.sorted(),
        flow_table,
        refused,
        repeated: input.loaded.repeated,
        damage: packets.and_then(Packets::damage),
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
                hardware: Some(nic.hardware_totals(flow)).filter(|_| nic.is_counted(flow)),
                uncounted: !nic.is_counted(flow),
                software: Some(nic.software_totals(flow)),
                ..FlowLine::new(line, &installed, state.name(), reason, names)
            }
        }
    })
}

fn nic_report(nic: &NicRun, args: &ReplayArgs, names: &BTreeMap<PortNo, String>) -> NicReport {
    let plugged = |(port, nic_port): (PortNo, NicPort)| PluggedPort {
        port: names.get(&port).cloned().unwrap_or_else(|| port.0.to_string()),
        nic: format!("p{}", nic_port.0.wrapping_sub(1)),
        seen: nic.sees(port),
    };
    let outside = args.nic.as_ref().map(|at| OutsideReport {
        at: at.to_string(),
        ports: nic.ports().iter().map(plugged).collect(),
        counts_packets: nic.counts_packets(),
        lost: nic.summary().lost,
        unsent: nic.summary().unsent,
        given_back: nic.summary().given_back,
    });
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
        seed: args.seed,
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
        outside,
    }
}

fn print_outside(out: &mut impl Write, outside: &OutsideReport) -> Result<()> {
    let ports = outside.ports.iter().map(|port| {
        format!(
            "{} is {}{}",
            port.port,
            port.nic,
            if port.seen { "" } else { " (what leaves by it is not seen)" }
        )
    });
    writeln!(out, "         {}: {}", outside.at, ports.collect::<Vec<_>>().join(", "))?;
    if !outside.counts_packets {
        writeln!(
            out,
            "         it does not count packets: those that it handled are not in the flows' counters"
        )?;
    }
    if outside.given_back {
        writeln!(out, "         the host asked for it back, and got it")?;
    }
    for (number, what) in [
        (outside.lost, "nothing was seen of after they were sent to it"),
        (outside.unsent, "it did not send"),
    ] {
        if number > 0 {
            writeln!(out, "         {number} packets {what}")?;
        }
    }
    Ok(())
}

pub(super) fn print_text(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(out, "{:>9} {:>12}  {:<9} flow", "packets", "bytes", "state")?;
    let mut table: Vec<&FlowLine> = report.flow_table.iter().collect();
    table.sort_by_key(|flow| std::cmp::Reverse(flow.totals().packets));
    for flow in table {
        let totals = flow.totals();
        // At least so many: the rest was not counted.
        let number = |n: u64| if flow.uncounted { format!("{n}+") } else { n.to_string() };
        writeln!(
            out,
            "{:>9} {:>12}  {:<9} {}, actions:{}",
            number(totals.packets),
            number(totals.bytes),
            flow.state,
            flow.flow,
            flow.actions
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
            "NIC      {} {}: {}, {} resets{}",
            nic.device,
            nic.model,
            nic.state,
            nic.resets,
            nic.violations.map_or_else(String::new, |violations| format!(", {violations} violations"))
        )?;
        if let Some(outside) = &nic.outside {
            print_outside(out, outside)?;
        }
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
    if let Some(seconds) = speed.replay_seconds {
        writeln!(
            out,
            "         packets replayed in {seconds:.2} s ({:.0} packets/s, {:.0} Mbit/s)",
            speed.packets_per_second, speed.megabits_per_second
        )?;
    }
    if let Some(seconds) = speed.live_seconds {
        writeln!(out, "         served for {seconds:.2} s ({:.0} packets/s)", speed.packets_per_second)?;
    }
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
