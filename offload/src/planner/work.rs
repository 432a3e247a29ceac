//! Planning one flow, and the updates that come of it; placement rounds.

use super::places::Place;
use super::slot::{After, Op};
use super::{FlowId, FlowSource, Planner, Reason};
use crate::lower::{Excluded, lower_ranked};
use crate::placement::Candidate;
use crate::raise::{Lengths, check};
use crate::refusal::{Cause, Limit, RecircCause, Refusal, TableRef};
use flowlift_driver::nic::{
    Entry, EntryCounters, EntryId, Nic, NicError, TableId, UpdateResult, UpdateStatus,
};
use flowlift_flow::Flow;
use smallvec::SmallVec;
use std::ops::Bound;

/// Candidates of each kind that a placement round looks at, per table.
const CANDIDATES: usize = 8192;

/// An update's cookie: flow, generation of the flow's operation, part of the flow.
pub(super) fn cookie(id: FlowId, generation: u16, part: usize) -> u64 {
    u64::from(id.0) | u64::from(generation) << 32 | (part as u64 & 0xffff) << 48
}

/// Parts of a cookie.
pub(super) fn parts_of(cookie: u64) -> (FlowId, u16, u32) {
    (FlowId(cookie as u32), (cookie >> 32) as u16, (cookie >> 48) as u32)
}

/// A flow that was lowered, encoded and compared; its bytes are the outbox's draft.
struct Ready {
    table: TableId,
    /// Lengths of its entries' bytes.
    lengths: Lengths,
    /// Fingerprints, see [`Prints::of`](super::prints::Prints::of).
    prints: (u64, u64),
}

impl Ready {
    /// Its entries; `None` if the bytes mean none, which was looked at before.
    fn entries(&self, mut bytes: &[u8], nic: &dyn Nic) -> Option<Vec<Entry>> {
        let next = |len: &usize| {
            let (entry, rest) = bytes.split_at_checked(*len)?;
            bytes = rest;
            nic.decode(self.table, entry).ok()
        };
        self.lengths.iter().map(next).collect()
    }
}

impl Planner {
    fn table_ref(&self, table: TableId) -> TableRef {
        let unknown = TableRef { id: table, stage: flowlift_driver::nic::Stage(0), tcam: false };
        self.pipeline.table(table).map_or(unknown, TableRef::from)
    }

    /// Brings a flow nearer to where it should be.
    pub(super) fn plan(&mut self, id: FlowId, nic: &mut dyn Nic, source: &dyn FlowSource) {
        let Some(slot) = self.slot_mut(id) else { return };
        slot.queued = false;
        if slot.op != Op::None {
            slot.again = true;
            return;
        }
        slot.again = false;
        if !slot.wanted {
            return if slot.installed != 0 { self.delete(id, After::Plan) } else { self.finish_removal(id) };
        }
        if slot.rewrite && slot.installed != 0 {
            slot.set_reason(Reason::Rewriting);
            return self.delete(id, After::Plan);
        }
        slot.rewrite = false;
        let mut flow = self.flow.take().unwrap_or_default();
        if source.read(id, &mut flow) {
            self.plan_flow(id, &flow, source, nic);
        } else {
            self.keep_in_software(id, Reason::NoFlow, None);
        }
        self.flow = Some(flow);
    }

    fn plan_flow(&mut self, id: FlowId, flow: &Flow, source: &dyn FlowSource, nic: &mut dyn Nic) {
        let rank = source.rank(id);
        self.ask_meters(id, &flow.actions, source);
        let Some(slot) = self.slot(id) else { return };
        let (mut excluded, recirc) = (Excluded(slot.excluded), slot.recirc_id);
        // What the device said of a table that it would not take this flow into.
        let mut full = slot.reason().filter(|r| matches!(r, Reason::TableFull(_) | Reason::MasksFull(_)));
        loop {
            let ready = match self.prepare(flow, recirc, rank, excluded, &*nic) {
                Ok(ready) => ready,
                Err(Refusal { cause: Cause::Limit(Limit::Full), .. }) if full.is_some() => {
                    let reason = full.unwrap_or(Reason::Queued);
                    let table = match reason {
                        Reason::TableFull(t) | Reason::MasksFull(t) => Some(t.id),
                        _ => None,
                    };
                    return self.keep_in_software(id, reason, table);
                }
                Err(refusal) => {
                    self.stats.lowering_bugs += u64::from(matches!(refusal.cause, Cause::LoweringBug(_)));
                    return self.keep_in_software(id, Reason::Refused(refusal), None);
                }
            };
            if let Err(refusal) = self.lend_meters(id, nic, source) {
                return self.keep_in_software(id, Reason::Refused(refusal), None);
            }
            if self.slot(id).is_some_and(|s| s.installed != 0) {
                return self.change(id, &ready, nic);
            }
            match self.take_places(id, &ready) {
                Some(places) => return self.insert(id, &ready, &places, nic),
                None => {
                    full = Some(Reason::TableFull(self.table_ref(ready.table)));
                    if !excluded.insert(&self.pipeline, ready.table) {
                        return self.keep_in_software(id, full.unwrap_or(Reason::Queued), Some(ready.table));
                    }
                    if let Some(slot) = self.slot_mut(id) {
                        slot.excluded = excluded.0;
                    }
                }
            }
        }
    }

    /// Lowers a flow, and encodes and compares what came of it. The bytes are the outbox's draft.
    fn prepare(
        &mut self,
        flow: &Flow,
        recirc: u32,
        rank: u16,
        excluded: Excluded,
        nic: &dyn Nic,
    ) -> Result<Ready, Refusal> {
        let bytes = self.outbox.draft();
        if let Some(plan) = self.forms.plan(flow, rank, excluded, nic, bytes) {
            let bytes = self.outbox.drafted();
            let lengths = Lengths::from_buf([bytes.len()]);
            return Ok(Ready { table: plan.table, lengths, prints: self.prints.of(plan, bytes) });
        }
        let plan = lower_ranked(&self.pipeline, &self.graph, flow, rank, excluded)?;
        if recirc != 0 && !self.ways.contains_key(&recirc) {
            return Err(Refusal::of_nic(Cause::Recirc { id: recirc, why: RecircCause::NoParent }));
        }
        let lengths = check(&self.pipeline, nic, flow, &plan, self.outbox.draft())?;
        self.forms.learn(&self.pipeline, flow, rank, excluded, &plan);
        Ok(Ready { table: plan.table, lengths, prints: self.prints.of(&plan, self.outbox.drafted()) })
    }

    /// The flow is in hardware: its entries stay, change in one step, or go.
    fn change(&mut self, id: FlowId, ready: &Ready, nic: &dyn Nic) {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        let (matched, whole) = ready.prints;
        let same_places = slot.matched == matched
            && slot.table == ready.table
            && slot.places.as_slice().len() == ready.lengths.len();
        if same_places && slot.whole == whole {
            return self.set_leads(id, true);
        }
        let entries = ready.entries(self.outbox.drafted(), nic);
        let Some(entries) = entries.filter(|_| same_places) else {
            slot.set_reason(Reason::Rewriting);
            return self.delete(id, After::Plan);
        };
        slot.whole = whole;
        slot.op = Op::Replace;
        self.under_way += 1;
        slot.generation = slot.generation.wrapping_add(1);
        (slot.pending, slot.failed) = (slot.installed, None);
        let (table, generation) = (slot.table, slot.generation);
        let places = slot.places.as_slice().iter().zip(entries).enumerate();
        for (part, (index, entry)) in places {
            let entry_id = EntryId { table, index: *index };
            self.outbox.replace(cookie(id, generation, part), entry_id, entry);
        }
    }

    fn take_places(&mut self, id: FlowId, plan: &Ready) -> Option<SmallVec<[Place; 1]>> {
        let mut taken = SmallVec::new();
        for _ in &plan.lengths {
            match self.places.take(plan.table, id) {
                Some(place) => taken.push(place),
                None => {
                    for Place { index, left } in taken {
                        self.places.give(EntryId { table: plan.table, index }, left);
                    }
                    return None;
                }
            }
        }
        Some(taken)
    }

    fn insert(&mut self, id: FlowId, plan: &Ready, places: &[Place], nic: &dyn Nic) {
        self.set_waits(id, false);
        let counted = self.pipeline.table(plan.table).is_some_and(|t| t.counters.complete());
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        slot.uncounted |= !counted;
        slot.op = Op::Insert;
        self.under_way += 1;
        slot.generation = slot.generation.wrapping_add(1);
        slot.pending = (0..plan.lengths.len()).fold(0, |bits, n| bits | 1 << n);
        (slot.failed, slot.evicted, slot.table) = (None, false, plan.table);
        (slot.matched, slot.whole) = plan.prints;
        // A reason of before, such as a full table, still says why software has it.
        if let Some(Reason::Refused(_)) = slot.reason() {
            slot.set_reason(Reason::Queued);
        }
        slot.places = places.iter().map(|place| place.index).collect();
        let generation = slot.generation;
        for (part, (place, len)) in places.iter().zip(&plan.lengths).enumerate() {
            let entry_id = EntryId { table: plan.table, index: place.index };
            // The device is not asked without need: that memory is its own, and far away.
            let left = if place.left { nic.counters(entry_id) } else { EntryCounters::default() };
            if left != EntryCounters::default() {
                self.leftovers.insert(entry_id, left);
            }
            self.outbox.insert(cookie(id, generation, part), entry_id, *len);
        }
    }

    /// Takes a flow's entries out of the device. The reason, if it is to stay out, is stored already.
    pub(super) fn delete(&mut self, id: FlowId, after: After) {
        self.set_leads(id, false);
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        slot.op = Op::Delete;
        self.under_way += 1;
        slot.after = after;
        slot.generation = slot.generation.wrapping_add(1);
        (slot.pending, slot.failed) = (slot.installed, None);
        let (table, generation, installed) = (slot.table, slot.generation, slot.installed);
        for (part, index) in
            slot.places.as_slice().iter().enumerate().filter(|(n, _)| installed >> n & 1 != 0)
        {
            let entry_id = EntryId { table, index: *index };
            self.outbox.delete(cookie(id, generation, part), entry_id);
        }
    }

    /// The flow stays in software, or goes there; with `table` it waits for room in it.
    pub(super) fn keep_in_software(&mut self, id: FlowId, reason: Reason, table: Option<TableId>) {
        self.set_waits(id, false);
        let Some(slot) = self.slot_mut(id) else { return };
        slot.set_reason(reason);
        if slot.installed != 0 {
            return self.delete(id, if table.is_some() { After::Wait } else { After::Stay });
        }
        slot.evicted = false;
        if let Some(table) = table {
            slot.table = table;
            self.set_waits(id, true);
        }
        self.settle_meters(id);
    }

    /// The flow is gone from hardware for good; its slot is free.
    pub(super) fn finish_removal(&mut self, id: FlowId) {
        self.set_waits(id, false);
        let Some(slot) = self.slot_mut(id).filter(|s| s.present) else { return };
        let generation = slot.generation;
        let base = slot.base;
        *slot = super::slot::Slot { generation, ..Default::default() };
        self.removed.push((id, base));
        self.settle_meters(id);
    }

    /// Hands queued updates to the device. False if it took no more.
    pub(super) fn submit(&mut self, nic: &mut dyn Nic) -> bool {
        let mut any = false;
        while !self.outbox.is_empty() {
            match self.outbox.submit(nic) {
                Ok(true) => any = true,
                Ok(false) => break,
                Err(NicError::Invalid(why)) => {
                    self.error(NicError::Invalid(why));
                    let Some(cookie) = self.outbox.pop() else { break };
                    let status = UpdateStatus::Rejected(u16::MAX);
                    self.completed(UpdateResult { cookie, status, counters: None }, nic, self.round_due_ns);
                }
                Err(error) => {
                    self.error(error);
                    return false;
                }
            }
        }
        if any && let Err(error) = nic.kick() {
            self.error(error);
            return false;
        }
        self.outbox.is_empty()
    }

    /// Looks at the full tables when it is time, and lets busy flows change places with idle ones.
    pub(super) fn place(&mut self, nic: &dyn Nic, source: &dyn FlowSource, now_ns: u64) {
        if now_ns < self.round_due_ns || self.waiting.is_empty() || self.gone {
            return;
        }
        self.round_due_ns = now_ns.saturating_add(self.placement.interval_ns());
        let mut tables: Vec<TableId> = self.waiting.iter().map(|(t, _)| *t).collect();
        tables.dedup();
        for table in tables {
            let installed = self.installed_in(table, nic, source, now_ns);
            let waiting = self.waiting_for(table, nic, source, now_ns);
            let t = self.table_ref(table);
            for swap in self.placement.choose(t, &installed, &waiting) {
                let movable = self
                    .slot(swap.out.id)
                    .is_some_and(|s| s.op == Op::None && s.wanted && s.installed != 0 && s.table == table)
                    && self.slot(swap.into.id).is_some_and(|s| s.waits && s.table == table);
                if !movable || self.promoted.contains_key(&swap.out.id) {
                    continue;
                }
                self.stats.evicted += 1;
                self.promoted.insert(swap.out.id, swap.into.id);
                if let Some(slot) = self.slot_mut(swap.out.id) {
                    slot.set_reason(Reason::Evicted { table: t, rate: swap.out.rate, by: swap.into.rate });
                    slot.since_ns = now_ns;
                }
                self.delete(swap.out.id, After::Wait);
            }
        }
    }

    fn candidate(
        &mut self,
        id: FlowId,
        nic: &dyn Nic,
        source: &dyn FlowSource,
        now_ns: u64,
    ) -> Option<Candidate> {
        let packets = self.counters(id, nic).packets.wrapping_add(source.packets(id));
        let slot = self.slot_mut(id)?;
        let (before, then) = (slot.seen_packets, slot.seen_ns);
        (slot.seen_packets, slot.seen_ns) = (packets, now_ns);
        // The first look only takes note.
        let span = now_ns.checked_sub(then).filter(|ns| *ns > 0 && then > 0)?;
        let rate = u128::from(packets.saturating_sub(before)) * 1_000_000_000 / u128::from(span);
        let stay_ns = now_ns.saturating_sub(slot.since_ns);
        Some(Candidate { id, rate: u64::try_from(rate).unwrap_or(u64::MAX), stay_ns })
    }

    fn installed_in(
        &mut self,
        table: TableId,
        nic: &dyn Nic,
        source: &dyn FlowSource,
        now_ns: u64,
    ) -> Vec<Candidate> {
        let mut flows = Vec::new();
        let mut at = EntryId { table, index: 0 };
        while let Some((found, id)) = self.places.next_owner(at).filter(|_| flows.len() < CANDIDATES) {
            // A flow of several entries is met at its first one only.
            if self
                .slot(id)
                .is_some_and(|s| s.op == Op::None && s.places.as_slice().first() == Some(&found.index))
            {
                flows.push(id);
            }
            let Some(next) = found.index.checked_add(1) else { break };
            at.index = next;
        }
        flows.into_iter().filter_map(|id| self.candidate(id, nic, source, now_ns)).collect()
    }

    /// Waiting flows of a table, a window of them in each round.
    fn waiting_for(
        &mut self,
        table: TableId,
        nic: &dyn Nic,
        source: &dyn FlowSource,
        now_ns: u64,
    ) -> Vec<Candidate> {
        let last = (table, FlowId(u32::MAX));
        let from = if self.wait_cursor.0 == table { self.wait_cursor } else { (table, FlowId(0)) };
        let mut flows: Vec<FlowId> =
            self.waiting.range(from..=last).take(CANDIDATES).map(|(_, id)| *id).collect();
        let room = CANDIDATES - flows.len();
        let before = (Bound::Included((table, FlowId(0))), Bound::Excluded(from));
        flows.extend(self.waiting.range(before).take(room).map(|(_, id)| *id));
        if let Some(id) = flows.last() {
            self.wait_cursor = (table, FlowId(id.0.wrapping_add(1)));
        }
        flows.into_iter().filter_map(|id| self.candidate(id, nic, source, now_ns)).collect()
    }
}
