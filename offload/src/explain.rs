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
        scratch.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortMap;
    use crate::testing::{caps, flow, ports};
    use flowlift_driver::nic::{NicPort, PortCaps};
    use flowlift_flow::PortNo;
    use flowlift_flow::text::{DumpReader, NoNames};

    #[test]
    fn room_is_used_up_in_order_and_children_come_after_their_parents() {
        let child = "recirc_id(0x1),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)";
        let arp = |n| format!("recirc_id(0),in_port(1),eth(),eth_type(0x0806),arp(sip=10.0.0.{n},op=1)");
        let flows = [
            flow(child, "2"),
            flow(&arp(1), "2"),
            flow(&arp(2), "recirc(0x1)"),
            flow(&arp(3), "2"),
            flow(&arp(4), "9"),
        ];
        let flows: Vec<&Flow> = flows.iter().collect();
        let e = explain(&Pipeline::new(&caps(4, 2), &ports()), &flows, None);
        assert!(matches!(e.verdicts[0], Verdict::Hardware { stage: Stage(1), .. }));
        assert!(matches!(e.verdicts[2], Verdict::Hardware { table: TableId(1), entries: 1, .. }));
        assert_eq!(e.verdicts[3], Verdict::NoRoom { table: TableId(1) });
        assert!(matches!(e.verdicts[4], Verdict::Refused(_)));
        assert_eq!((e.hardware(), e.expressible()), (3, 4));
        assert_eq!((e.tables[1].entries, e.tables[1].max_entries, e.tables[1].max_masks), (2, 2, None));
        assert!((e.percent() - 60.0).abs() < 1e-9);

        let without_parent = explain(&Pipeline::new(&caps(4, 2), &ports()), &flows[..2], None);
        assert!(matches!(without_parent.verdicts[0], Verdict::Refused(_)));
        assert!((explain(&Pipeline::new(&caps(4, 2), &ports()), &[], None).percent() - 100.0).abs() < 1e-9);
    }

    /// Real flows of a real switch: the ones that stay in software do so for reasons that a person can check.
    #[test]
    fn the_bundled_dump_is_explained() {
        let mut reader = DumpReader::new(&NoNames);
        let dump = include_str!("../../fixtures/flows/bundled.txt");
        let flows: Vec<Flow> =
            dump.lines().filter_map(|l| reader.line(l).unwrap().map(|d| d.flow.clone())).collect();
        assert!(flows.len() > 50, "{} flows", flows.len());
        let mut c = caps(4096, 1024);
        c.ports = (1..=6)
            .map(|n| PortCaps { port: NicPort(n), virtual_function: n > 2, max_frame: 9000 })
            .collect();
        // br0 is port 1, p1 to p6 are ports 2 to 7.
        let ports: PortMap = (1..=6).map(|n| (PortNo(n + 1), NicPort(n as u16))).collect();
        let flows: Vec<&Flow> = flows.iter().collect();
        let e = explain(&Pipeline::new(&c, &ports), &flows, None);
        let mut reasons = BTreeMap::new();
        for v in &e.verdicts {
            if let Verdict::Refused(r) = v {
                *reasons.entry(r.to_string()).or_insert(0) += 1;
            }
        }
        let known = [
            "asks for type 0x05ff, which",
            "asks for type 0x8847, which",
            "ip.frag is not seen",
            "is for software only",
            "port 1, which is not on the NIC",
            "icmpv6",
            "is reached by no flow in hardware",
        ];
        for (reason, n) in &reasons {
            assert!(known.iter().any(|k| reason.contains(k)), "{n} flows: {reason}");
        }
        assert!(e.percent() > 50.0, "{} of {}: {reasons:#?}", e.hardware(), flows.len());
    }
}
