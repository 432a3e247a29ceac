//! What is told of flows, in text and JSON alike.

use crate::engine::FlowTotals;
use crate::flows::Loaded;
use flowlift_flow::Flow;
use flowlift_flow::text::{ActionsText, MatchText, PortNames, PrintOptions};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

/// Reasons that a person is shown before "and so on".
const REASONS_SHOWN: usize = 12;
/// Longest reason that is printed in one line, so that it fits 120 columns.
const REASON_WIDTH: usize = 108;

/// One flow.
#[derive(Debug, Clone, Serialize)]
pub struct FlowLine {
    /// Line of the dump, from 1.
    pub line: u64,
    /// UFID in hex, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ufid: Option<String>,
    /// Match, as Open vSwitch prints it.
    pub flow: String,
    /// Actions, likewise.
    pub actions: String,
    /// Where it is.
    pub state: &'static str,
    /// Why it is not in hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the NIC counted for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<FlowTotals>,
    /// The NIC may have handled packets of it that it did not count: there are at least those that are told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub uncounted: bool,
    /// What the softpath counted for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub software: Option<FlowTotals>,
}

impl FlowLine {
    /// A flow without counters.
    pub fn new(
        line: u64,
        flow: &Flow,
        state: &'static str,
        reason: Option<String>,
        names: Option<&dyn PortNames>,
    ) -> Self {
        let options = PrintOptions { names, verbose: false };
        Self {
            line,
            ufid: flow.ufid.map(|ufid| ufid.as_bytes().iter().map(|b| format!("{b:02x}")).collect()),
            flow: MatchText { matching: &flow.matching, order: None, options }.to_string(),
            actions: ActionsText { actions: &flow.actions, names }.to_string(),
            state,
            reason,
            hardware: None,
            uncounted: false,
            software: None,
        }
    }

    /// Packets and bytes of both sides.
    pub fn totals(&self) -> FlowTotals {
        self.hardware.unwrap_or_default().plus(self.software.unwrap_or_default())
    }
}

/// A flow of the dump that is not in the datapath.
#[derive(Debug, Clone, Serialize)]
pub struct RefusedLine {
    /// Line of the dump, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// The refused flows of a dump.
pub fn refused_lines(loaded: &Loaded) -> Vec<RefusedLine> {
    loaded.refused.iter().map(|flow| RefusedLine { line: flow.line, reason: flow.reason.clone() }).collect()
}

/// A reason and how many flows have it.
#[derive(Debug, Clone, Serialize)]
pub struct ReasonCount {
    /// Reason.
    pub reason: String,
    /// Flows.
    pub flows: u64,
}

/// Counts reasons.
#[derive(Debug, Default)]
pub struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    /// Counts one.
    pub fn add(&mut self, reason: &str) {
        *self.0.entry(reason.to_owned()).or_default() += 1;
    }

    /// The most frequent first.
    pub fn sorted(self) -> Vec<ReasonCount> {
        let mut reasons: Vec<_> =
            self.0.into_iter().map(|(reason, flows)| ReasonCount { reason, flows }).collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.flows));
        reasons
    }
}

/// Prints the most frequent reasons, in lines of a terminal's width where the words allow it.
///
/// # Errors
/// `out` cannot be written.
pub fn print_reasons(out: &mut impl Write, reasons: &[ReasonCount]) -> anyhow::Result<()> {
    for reason in reasons.iter().take(REASONS_SHOWN) {
        // What a flow lacks, then what would lift it.
        match reason.reason.split_once("; ").filter(|_| reason.reason.len() > REASON_WIDTH) {
            Some((lack, lift)) => writeln!(out, "  {:>7}  {lack};\n{:11}{lift}", reason.flows, "")?,
            None => writeln!(out, "  {:>7}  {}", reason.flows, reason.reason)?,
        }
    }
    if let Some(rest) = reasons.len().checked_sub(REASONS_SHOWN).filter(|rest| *rest > 0) {
        writeln!(out, "{:11}and {rest} more reasons (--json has all)", "")?;
    }
    Ok(())
}
