//! Lowering: a flow and capability records to entries of a table, or a refusal.
//!
//! A false hit in hardware is the worst bug there is, a miss is only slow. So everything here narrows or refuses, and
//! [`crate::raise`] compares the outcome with the flow before anything is installed.

pub(crate) mod actions;
pub(crate) mod matching;

use crate::pipeline::{Pipeline, all_bits, field_of, takes, write};
use crate::refusal::{Cause, FieldCause, Limit, RecircCause, Refusal};
use flowlift_driver::nic::{Entry, Field, NicPort, Stage, TableCaps, TableId, TableKind};
use flowlift_flow::Flow;
use matching::{InPort, Wants};
use smallvec::SmallVec;

/// Largest number of entries of one flow: a flow that takes packets from several ports needs one per port where the
/// NIC has ports that are not the datapath's.
pub const MAX_ENTRIES: usize = 16;

/// What a flow becomes on the NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Table of all its entries.
    pub table: TableId,
    /// The table's stage.
    pub stage: Stage,
    /// Entries, one per ingress port if several; never empty.
    pub entries: SmallVec<[Entry; 1]>,
    /// Recirculation ID and stage where a matching packet goes on, if it does.
    pub goto: Option<(u32, Stage)>,
}

/// Tables that are not to be used, as bits by their place in [`Pipeline::caps`]; tables past the 64th never are excluded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Excluded(pub u64);

impl Excluded {
    fn bit(pipeline: &Pipeline, table: TableId) -> u64 {
        let place = pipeline.caps().tables.iter().position(|t| t.id == table);
        place.and_then(|n| 1u64.checked_shl(u32::try_from(n).unwrap_or(64))).unwrap_or(0)
    }

    /// Excludes a table; false if it was excluded already, or cannot be.
    pub fn insert(&mut self, pipeline: &Pipeline, table: TableId) -> bool {
        let bit = Self::bit(pipeline, table);
        let new = self.0 & bit != bit;
        self.0 |= bit;
        new
    }

    /// True if the table is excluded.
    pub fn contains(self, pipeline: &Pipeline, table: TableId) -> bool {
        self.0 & Self::bit(pipeline, table) != 0
    }
}

/// Where flows with a recirculation ID live: see [`crate::recirc`].
pub trait RecircStages {
    /// The stage of flows with this ID, or why they have none. ID 0 is stage 0.
    fn stage(&self, recirc_id: u32) -> Result<Stage, RecircCause>;
}

struct Stages<'a>(&'a dyn RecircStages);

impl actions::Stages for Stages<'_> {
    fn stage_of(&self, recirc_id: u32) -> Option<Stage> {
        self.0.stage(recirc_id).ok()
    }
}

/// Lowers a flow to the first table that takes it, hash tables before TCAMs, leaving out the excluded ones.
pub fn lower(
    pipeline: &Pipeline,
    recirc: &dyn RecircStages,
    flow: &Flow,
    excluded: Excluded,
) -> Result<Plan, Refusal> {
    lower_ranked(pipeline, recirc, flow, 0, excluded)
}

/// [`lower`] for a flow that gives way to others: where two flows match a packet, the one of lower rank has it.
///
/// Flows of rank 0 go anywhere, all others into TCAMs alone. Since a stage's hash tables are searched before its TCAMs and
/// hold nothing but rank 0, and a TCAM goes by priority, the order of ranks is the order of the lookup.
pub fn lower_ranked(
    pipeline: &Pipeline,
    recirc: &dyn RecircStages,
    flow: &Flow,
    rank: u16,
    excluded: Excluded,
) -> Result<Plan, Refusal> {
    let wants = matching::wants(&flow.matching, pipeline.caps().parser).map_err(Refusal::of_nic)?;
    let id = wants.recirc_id;
    let stage = recirc.stage(id).map_err(|why| Refusal::of_nic(Cause::Recirc { id, why }))?;
    let ports = ingress(pipeline, &wants, stage).map_err(Refusal::of_nic)?;
    let mut best: Option<Refusal> = None;
    let mut full = false;
    for table in pipeline.tables_of(stage) {
        if excluded.contains(pipeline, table.id) {
            full = true;
            continue;
        }
        let planned = if rank != 0 && table.kind != TableKind::Tcam {
            Err(Cause::Limit(Limit::NoRanks))
        } else {
            on_table(pipeline, recirc, flow, &wants, &ports, table)
        };
        match planned {
            Ok(mut plan) => {
                if table.kind == TableKind::Tcam {
                    plan.entries.iter_mut().for_each(|entry| entry.priority = u16::MAX - rank);
                }
                return Ok(plan);
            }
            Err(cause) => {
                let refusal = Refusal::by(cause, table.into());
                // The later of equals: a TCAM says more than a hash table.
                if best.is_none_or(|b| b.progress() <= refusal.progress()) {
                    best = Some(refusal);
                }
            }
        }
    }
    let none = if full { Limit::Full } else { Limit::NoTable(stage) };
    match best {
        Some(refusal) if !full => Err(refusal),
        _ => Err(Refusal::of_nic(Cause::Limit(none))),
    }
}

/// Ingress ports that need an entry each; a single `None`: any port.
pub(crate) type Ingress = SmallVec<[Option<NicPort>; 1]>;

fn ingress(pipeline: &Pipeline, wants: &Wants, stage: Stage) -> Result<Ingress, Cause> {
    let refuse = |why| Err(Cause::Field { name: "in_port", why });
    let (value, bits) = match wants.in_port {
        InPort::Exact(port) => {
            return match pipeline.ports().nic(port) {
                Some(nic) => Ok(SmallVec::from_iter([Some(nic)])),
                None => refuse(FieldCause::PortNotOnNic(port)),
            };
        }
        // Later stages are reached from ports of the datapath only.
        InPort::Any if pipeline.every_port_mapped() || stage > Stage(0) => {
            return Ok(SmallVec::from_iter([None]));
        }
        InPort::Any => (0, 0),
        InPort::Masked(value, bits) => (value, bits),
    };
    let ports: Ingress =
        pipeline.ports().iter().filter(|(p, _)| p.0 & bits == value).map(|(_, nic)| Some(nic)).collect();
    match ports.len() {
        0 => refuse(FieldCause::NeverFromNic),
        n if n > MAX_ENTRIES => refuse(FieldCause::TooManyPorts(u16::try_from(n).unwrap_or(u16::MAX))),
        _ => Ok(ports),
    }
}

fn on_table(
    pipeline: &Pipeline,
    recirc: &dyn RecircStages,
    flow: &Flow,
    wants: &Wants,
    ports: &Ingress,
    table: &TableCaps,
) -> Result<Plan, Cause> {
    let len = usize::from(table.key_len);
    let mut key: SmallVec<[u8; 64]> = SmallVec::from_elem(0, len);
    let mut mask: SmallVec<[u8; 64]> = SmallVec::from_elem(0, len);
    matching::fit(table, &wants.fields, &mut key, &mut mask)?;
    if table.stage > Stage(0) {
        exactly(table, Field::Metadata, "recirc_id", wants.recirc_id.into(), &mut key, &mut mask)?;
    }
    let (actions, goto) = actions::lower(pipeline, table, (wants, ports), &flow.actions, &Stages(recirc))?;
    if !table.counters.complete() && !pipeline.uncounted() {
        return Err(Cause::Limit(Limit::Uncounted));
    }
    let mut entries = SmallVec::new();
    for port in ports {
        // A slice is copied whole, a clone byte by byte.
        let copy = |bytes: &[u8]| SmallVec::from_slice(bytes);
        let mut entry = Entry { priority: 0, key: copy(&key), mask: copy(&mask), actions: actions.clone() };
        if let Some(nic) = port {
            exactly(table, Field::InPort, "in_port", nic.0.into(), &mut entry.key, &mut entry.mask)?;
        }
        entries.push(entry);
    }
    Ok(Plan { table: table.id, stage: table.stage, entries, goto })
}

/// Matches all bits of a field.
fn exactly(
    table: &TableCaps,
    field: Field,
    name: &'static str,
    value: u128,
    key: &mut [u8],
    mask: &mut [u8],
) -> Result<(), Cause> {
    let refuse = Err(Cause::Field { name, why: FieldCause::NotInTable(field) });
    let Some(caps) = field_of(table, field) else { return refuse };
    let all = all_bits(caps.width);
    let fits = value & !all == 0 && takes(caps.kind, caps.width, all);
    if fits && write(key, caps, value) && write(mask, caps, all) { Ok(()) } else { refuse }
}

#[cfg(test)]
mod tests;
