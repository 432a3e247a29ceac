//! A dry run: what a NIC would do with a set of flows, from its capability records alone.

use crate::lower::{Excluded, Plan, lower};
use crate::pipeline::Pipeline;
use crate::raise::{Codec, check};
use crate::recirc::{RecircGraph, hop, recirc_id};
use crate::refusal::{Cause, RecircCause, Refusal};
use flowlift_driver::nic::{Stage, TableId, TableKind};
use flowlift_flow::Flow;
use std::collections::BTreeMap;

/// What a NIC would do with one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes into hardware.
    Hardware {
        /// Table.
        table: TableId,
        /// Its stage.
        stage: Stage,
        /// Entries that it takes.
        entries: u8,
    },
    /// The NIC could express it, but the flows before it took the room.
    NoRoom {
        /// The table it would be in.
        table: TableId,
    },
    /// The NIC cannot express it.
    Refused(Refusal),
}

/// How full a table would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableUse {
    /// Table.
    pub table: TableId,
    /// Entries in use.
    pub entries: u32,
    /// Entries that there are.
    pub max_entries: u32,
    /// Different masks in use; in a TCAM each entry has its own.
    pub masks: u32,
    /// Different masks that a hash table holds; `None` for a TCAM.
    pub max_masks: Option<u32>,
}

/// What a NIC would do with a set of flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Per flow, in the order given.
    pub verdicts: Vec<Verdict>,
    /// Per table, in the device's order.
    pub tables: Vec<TableUse>,
}

impl Explanation {
    /// Flows that go into hardware.
    pub fn hardware(&self) -> usize {
        self.verdicts.iter().filter(|v| matches!(v, Verdict::Hardware { .. })).count()
    }

    /// Flows that the NIC can express, room or not.
    pub fn expressible(&self) -> usize {
        self.verdicts.iter().filter(|v| !matches!(v, Verdict::Refused(_))).count()
    }

    /// Share of the flows that go into hardware, in percent; of no flows it is 100.
    pub fn percent(&self) -> f64 {
        if self.verdicts.is_empty() {
            return 100.0;
        }
        self.hardware() as f64 * 100.0 / self.verdicts.len() as f64
    }
}

/// Room in the tables as it is used up.
struct Room<'a> {
    pipeline: &'a Pipeline,
    tables: BTreeMap<TableId, (u32, BTreeMap<Vec<u8>, u32>)>,
}

impl Room<'_> {
    fn take(&mut self, plan: &Plan) -> bool {
        let Some(caps) = self.pipeline.table(plan.table) else { return false };
        let (entries, masks) = self.tables.entry(plan.table).or_default();
        let need = u32::try_from(plan.entries.len()).unwrap_or(u32::MAX);
        let Some(after) = entries.checked_add(need).filter(|n| *n <= caps.max_entries) else { return false };
        // The entries of one plan differ in the ingress port's value, not in the mask.
        let Some(mask) = plan.entries.first().map(|e| e.mask.to_vec()) else { return false };
        if let TableKind::Hash { max_masks } = caps.kind {
            if !masks.contains_key(&mask) && masks.len() >= max_masks as usize {
                return false;
            }
            *masks.entry(mask).or_insert(0) += 1;
        }
        *entries = after;
        true
    }
}

/// Says what the NIC of `pipeline` would do with `flows`, given to it in this order: recirculated flows after those
/// that lead to them. With a `codec`, each plan is also encoded, raised and compared.
pub fn explain(pipeline: &Pipeline, flows: &[&Flow], codec: Option<&dyn Codec>) -> Explanation {
    let mut graph = RecircGraph::new(pipeline.last_stage());
    flows.iter().filter_map(|f| hop(f)).for_each(|h| graph.add(h));
    graph.update();
    let stage =
        |n: usize| crate::lower::RecircStages::stage(&graph, recirc_id(flows[n])).map_or(u8::MAX, |s| s.0);
    let mut order: Vec<usize> = (0..flows.len()).collect();
    order.sort_by_key(|n| (stage(*n), *n));

    let mut verdicts = vec![None; flows.len()];
    let mut room = Room { pipeline, tables: BTreeMap::new() };
    let mut reached = std::collections::BTreeSet::from([0]);
    let mut scratch = Vec::new();
    for n in order {
        let verdict = one(pipeline, &graph, flows[n], &reached, &mut room, codec, &mut scratch);
        if let (Verdict::Hardware { .. }, Some(h)) = (verdict, hop(flows[n])) {
            reached.insert(h.to);
        }
        verdicts[n] = Some(verdict);
    }
    let tables = pipeline
        .caps()
        .tables
        .iter()
        .map(|t| {
            let (entries, masks) = room.tables.remove(&t.id).unwrap_or_default();
            let max_masks = match t.kind {
                TableKind::Hash { max_masks } => Some(max_masks),
                TableKind::Tcam => None,
            };
            let masks = max_masks.map_or(entries, |_| u32::try_from(masks.len()).unwrap_or(u32::MAX));
            TableUse { table: t.id, entries, max_entries: t.max_entries, masks, max_masks }
        })
        .collect();
    Explanation { verdicts: verdicts.into_iter().flatten().collect(), tables }
}

fn one(
    pipeline: &Pipeline,
    graph: &RecircGraph,
    flow: &Flow,
    reached: &std::collections::BTreeSet<u32>,
    room: &mut Room<'_>,
    codec: Option<&dyn Codec>,
    scratch: &mut Vec<u8>,
) -> Verdict {
    let mut excluded = Excluded::default();
    let mut first = None;
    loop {
        let plan = match (lower(pipeline, graph, flow, excluded), first) {
            (Ok(plan), _) => plan,
            (Err(_), Some(table)) => return Verdict::NoRoom { table },
            (Err(refusal), None) => return Verdict::Refused(refusal),
        };
        let id = recirc_id(flow);
        if !reached.contains(&id) {
            return Verdict::Refused(Refusal::of_nic(Cause::Recirc { id, why: RecircCause::NoParent }));
        }
        if let Some(Err(refusal)) = codec.map(|c| check(pipeline, c, flow, &plan, scratch)) {
            return Verdict::Refused(refusal);
        }
        if room.take(&plan) {
            let entries = u8::try_from(plan.entries.len()).unwrap_or(u8::MAX);
            return Verdict::Hardware { table: plan.table, stage: plan.stage, entries };
        }
        first = first.or(Some(plan.table));
        if !excluded.insert(pipeline, plan.table) {
            return Verdict::NoRoom { table: plan.table };
        }
    }
}
