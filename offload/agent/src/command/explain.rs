//! `flowlift explain`: a dry run.

use super::{Outcome, print_json};
use crate::cli::ExplainArgs;
use crate::failure::Tell;
use crate::input::{self, Flows};
use crate::open;
use crate::report::{self, FlowLine};
use anyhow::{Result, anyhow};
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::Nic;
use flowlift_offload::explain::{Verdict, explain};
use flowlift_offload::pipeline::Pipeline;
use flowlift_offload::raise::Codec;
use flowlift_sim::FaultPlan;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::Write;

/// What a NIC of this profile would do with the flows.
#[derive(Debug, Serialize)]
struct Explained {
    flows: ExplainedFlows,
    /// Share of all flows that could be offloaded, in percent.
    percent: f64,
    tables: Vec<ExplainedTable>,
    reasons: Vec<report::ReasonCount>,
    flow_table: Vec<FlowLine>,
    refused: Vec<report::RefusedLine>,
}

#[derive(Debug, Serialize)]
struct ExplainedFlows {
    total: u64,
    hardware: u64,
    software: u64,
    refused: u64,
}

#[derive(Debug, Serialize)]
struct ExplainedTable {
    table: u16,
    entries: u32,
    max_entries: u32,
    masks: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_masks: Option<u32>,
}

/// Says for each flow whether the NIC could take it; [`Outcome::Bad`] if fewer than `--require` percent.
///
/// # Errors
/// Flows that cannot be loaded, a percentage that is none.
pub fn run(args: &ExplainArgs) -> Result<Outcome> {
    if let Some(require) = args.require
        && !(0.0..=100.0).contains(&require)
    {
        return Err(anyhow!("this is no percentage"))
            .at(format_args!("--require {require}"))
            .remedy("a number from 0 to 100 is wanted");
    }
    let mut input = input::read_flows(&args.flows, 0)?;
    let ports = input::nic_ports(&input, &BTreeSet::new());
    let setup = open::open(args.profile.profile(), 0, FaultPlan::default(), &ports, 0)?;
    let explained = explain_flows(&mut input, setup)?;
    if args.json {
        print_json(&explained)?;
    } else {
        super::print_text(|out| print_text(out, &explained))?;
    }
    let enough = args.require.is_none_or(|require| explained.percent >= require);
    Ok(if enough { Outcome::Good } else { Outcome::Bad })
}

fn explain_flows<H>(input: &mut Flows, setup: crate::engine::NicSetup<Fl1, H>) -> Result<Explained> {
    let pipeline = Pipeline::new(setup.nic.caps(), &setup.ports);
    let flows: Vec<_> =
        input.loaded.flows.iter().filter_map(|loaded| input.datapath.flow(loaded.id)).collect();
    let references: Vec<_> = flows.iter().collect();
    let explanation = explain(&pipeline, &references, Some(&setup.nic as &dyn Codec));

    let mut reasons = report::Reasons::default();
    let mut flow_table = Vec::with_capacity(flows.len());
    for ((flow, loaded), verdict) in flows.iter().zip(&input.loaded.flows).zip(&explanation.verdicts) {
        let (state, reason) = match verdict {
            Verdict::Hardware { .. } => ("hardware", None),
            Verdict::NoRoom { table } => {
                ("software", Some(format!("table {} is full; a larger profile would lift it", table.0)))
            }
            Verdict::Refused(refusal) => ("software", Some(refusal.to_string())),
        };
        if let Some(reason) = &reason {
            reasons.add(reason);
        }
        flow_table.push(FlowLine::new(loaded.line, flow, state, reason, input.names()));
    }
    let total = (flow_table.len() + input.loaded.refused.len()) as u64;
    let hardware = explanation.hardware() as u64;
    let refused = input.loaded.refused.len() as u64;
    let percent = hardware as f64 * 100.0 / total as f64;
    let tables = explanation
        .tables
        .iter()
        .map(|table| ExplainedTable {
            table: table.table.0,
            entries: table.entries,
            max_entries: table.max_entries,
            masks: table.masks,
            max_masks: table.max_masks,
        })
        .collect();
    Ok(Explained {
        flows: ExplainedFlows { total, hardware, software: total - hardware - refused, refused },
        percent,
        tables,
        reasons: reasons.sorted(),
        flow_table,
        refused: report::refused_lines(&input.loaded),
    })
}

fn print_text(out: &mut impl Write, explained: &Explained) -> Result<()> {
    for flow in &explained.flow_table {
        writeln!(out, "{:>7}  {:<8}  {}", format!("line {}", flow.line), flow.state, flow.flow)?;
        if let Some(reason) = &flow.reason {
            writeln!(out, "{:19}  why: {reason}", "")?;
        }
    }
    for refused in &explained.refused {
        writeln!(out, "{:>7}  refused   {}", format!("line {}", refused.line), refused.reason)?;
    }
    writeln!(out)?;
    for table in &explained.tables {
        let masks = table.max_masks.map_or(String::new(), |max| format!(", {} of {max} masks", table.masks));
        writeln!(out, "table {}: {} of {} entries{masks}", table.table, table.entries, table.max_entries)?;
    }
    let flows = &explained.flows;
    writeln!(
        out,
        "{} flows: {} offloadable, {} stay in software, {} refused: {:.1} %",
        flows.total, flows.hardware, flows.software, flows.refused, explained.percent
    )?;
    report::print_reasons(out, &explained.reasons)
}
