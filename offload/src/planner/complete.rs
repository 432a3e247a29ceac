//! Completions and events.

use super::slot::{After, Op, Places};
use super::work::parts_of;
use super::{FlowId, Planner, Reason};
use crate::lower::Excluded;
use crate::refusal::TableRef;
use flowlift_driver::nic::{
    EntryCounters, EntryId, Nic, NicEvent, Stage, TableId, UpdateResult, UpdateStatus,
};

impl Planner {
    /// Takes what the device reports.
    pub(super) fn poll(&mut self, nic: &mut dyn Nic, now_ns: u64) {
        let (mut results, mut events) = (std::mem::take(&mut self.results), std::mem::take(&mut self.events));
        if let Err(error) = nic.poll(&mut results, &mut events) {
            self.error(error);
        }
        // Answers come before the loss of the tables that they may announce.
        results.drain(..).for_each(|r| self.completed(r, nic, now_ns));
        events.drain(..).for_each(|e| self.happened(e, nic));
        (self.results, self.events) = (results, events);
    }

    /// One update was answered.
    pub(super) fn completed(&mut self, result: UpdateResult, nic: &dyn Nic, now_ns: u64) {
        let (id, generation, part) = parts_of(result.cookie);
        let bit = 1u16.checked_shl(part).unwrap_or(0);
        let awaited =
            |s: &&mut super::Slot| s.op != Op::None && s.generation == generation && s.pending & bit != 0;
        let Some(slot) = self.slots.get_mut(id.0 as usize).filter(awaited) else {
            self.stats.spurious += 1;
            return;
        };
        let Some(index) = slot.places.as_slice().get(part as usize) else { return };
        let entry = EntryId { table: slot.table, index: *index };
        if matches!(result.status, UpdateStatus::Aborted | UpdateStatus::TimedOut) {
            // Nothing is known of the entry until the device says that its tables are lost, or goes.
            self.stats.unanswered += 1;
            self.unknown_since.get_or_insert(now_ns);
            return;
        }
        slot.pending &= !bit;
        self.leftovers.remove(&entry);
        if result.status != UpdateStatus::Ok {
            self.stats.failed += 1;
        }
        match (slot.op, result.status) {
            (Op::Insert, UpdateStatus::Ok) => {
                slot.installed |= bit;
                self.stats.inserted += 1;
            }
            (Op::Insert, status) => {
                slot.failed.get_or_insert(status);
                self.places.give(entry, true);
            }
            (Op::Replace, UpdateStatus::Ok) => self.stats.replaced += 1,
            (Op::Delete, UpdateStatus::Ok) => {
                slot.installed &= !bit;
                let last = result.counters.unwrap_or_else(|| nic.counters(entry));
                slot.base.add(&last);
                self.places.give(entry, last != EntryCounters::default());
                self.stats.deleted += 1;
            }
            (Op::Replace | Op::Delete, UpdateStatus::NotFound) => {
                // The device lost the entry without a word; what it had counted stays counted.
                slot.installed &= !bit;
                slot.base.add(&nic.counters(entry));
                slot.failed.get_or_insert(UpdateStatus::NotFound);
                self.places.give(entry, true);
                self.stats.vanished += 1;
            }
            (_, status) => {
                slot.failed.get_or_insert(status);
            }
        }
        if slot.pending == 0 {
            self.finish(id, now_ns);
            self.settle_meters(id);
        }
    }

    /// All parts of what was under way for a flow are answered.
    fn finish(&mut self, id: FlowId, now_ns: u64) {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        let op = std::mem::take(&mut slot.op);
        let again = std::mem::take(&mut slot.again) || !slot.wanted;
        let failed = slot.failed;
        self.under_way = self.under_way.saturating_sub(1);
        match (op, failed) {
            (Op::Insert, None) => {
                slot.clear_reason();
                slot.since_ns = now_ns;
                self.set_leads(id, true);
            }
            (Op::Replace, None) => {
                slot.clear_reason();
                self.set_leads(id, true);
            }
            (Op::Insert, Some(status)) => return self.insert_failed(id, status, again),
            (Op::Replace, Some(status)) => return self.replace_failed(id, status, again),
            (Op::Delete, failed) => return self.deleted(id, failed, again),
            (Op::None, _) => {}
        }
        if again {
            self.enqueue(id);
        }
    }

    fn insert_failed(&mut self, id: FlowId, status: UpdateStatus, again: bool) {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        let table = slot.table;
        let t = self
            .pipeline
            .table(table)
            .map_or(TableRef { id: table, stage: Stage(0), tcam: false }, TableRef::from);
        let several = slot.places.as_slice().len() > 1;
        let mut full = false;
        slot.set_reason(match status {
            UpdateStatus::TableFull | UpdateStatus::MasksFull => {
                full = true;
                if status == UpdateStatus::TableFull { Reason::TableFull(t) } else { Reason::MasksFull(t) }
            }
            UpdateStatus::Rejected(code) => Reason::Rejected { table, code },
            _ if several => Reason::RolledBack { table, first: status, second: None },
            UpdateStatus::Duplicate => Reason::Duplicate(t),
            _ => Reason::Rejected { table, code: u16::MAX },
        });
        if full {
            let mut excluded = Excluded(slot.excluded);
            excluded.insert(&self.pipeline, table);
            slot.excluded = excluded.0;
        }
        if slot.installed != 0 {
            self.stats.rolled_back += 1;
            if several && !full {
                slot.set_reason(Reason::RolledBack { table, first: status, second: None });
            }
            slot.again = again;
            return self.delete(id, if full { After::Plan } else { After::Wait });
        }
        slot.places = Places::None;
        if full || again {
            return self.enqueue(id);
        }
        if status == UpdateStatus::Duplicate {
            self.set_waits(id, true);
        }
    }

    /// Some entries have the new actions and some the old ones, or none: they all go, and software has the flow.
    fn replace_failed(&mut self, id: FlowId, status: UpdateStatus, again: bool) {
        let Some(slot) = self.slot_mut(id) else { return };
        let (table, again) = (slot.table, again || status == UpdateStatus::NotFound);
        slot.set_reason(match status {
            UpdateStatus::NotFound => Reason::Rewriting,
            UpdateStatus::Rejected(code) => Reason::Rejected { table, code },
            _ => Reason::RolledBack { table, first: status, second: None },
        });
        if slot.installed != 0 {
            return self.delete(id, if again { After::Plan } else { After::Stay });
        }
        self.set_leads(id, false);
        if let Some(slot) = self.slot_mut(id) {
            slot.places = Places::None;
        }
        self.enqueue(id);
    }

    fn deleted(&mut self, id: FlowId, failed: Option<UpdateStatus>, again: bool) {
        let Some(slot) = self.slot_mut(id) else { return };
        if let (Some(status), Some(Reason::RolledBack { table, first, second: None })) =
            (failed, slot.reason())
        {
            slot.set_reason(Reason::RolledBack { table, first, second: Some(status) });
        }
        if slot.installed != 0 {
            // A device that does not let go of an entry would go on acting on it.
            self.reset_wanted = true;
            return;
        }
        let (table, after, wanted) = (slot.table, slot.after, slot.wanted);
        slot.places = Places::None;
        (slot.matched, slot.whole, slot.failed) = (0, 0, None);
        let evicted = matches!(slot.reason(), Some(Reason::Evicted { .. }));
        slot.evicted = evicted && after == After::Wait;
        let into = self.promoted.remove(&id);
        if wanted && (again || after == After::Plan) {
            self.enqueue(id);
        } else if wanted && after == After::Wait {
            self.set_waits(id, true);
        }
        if !wanted {
            self.finish_removal(id);
        }
        self.room_in(table, into, id);
    }

    /// A place became free: for the flow that it was made for, or the first that waits.
    fn room_in(&mut self, table: TableId, into: Option<FlowId>, left: FlowId) {
        let waits = |p: &Self, id: FlowId| p.slot(id).is_some_and(|s| s.waits && s.table == table);
        let next = into.filter(|id| waits(self, *id)).or_else(|| {
            let range = (table, FlowId(0))..=(table, FlowId(u32::MAX));
            self.waiting.range(range).map(|(_, id)| *id).find(|id| *id != left)
        });
        if let Some(id) = next {
            self.set_waits(id, false);
            if let Some(slot) = self.slot_mut(id) {
                slot.excluded = 0;
            }
            self.enqueue(id);
        }
    }

    /// Something happened on the device.
    fn happened(&mut self, event: NicEvent, nic: &dyn Nic) {
        match event {
            NicEvent::ParityError(entry) => match self.owner(entry) {
                Some(id) => {
                    self.stats.repaired += 1;
                    self.rewrite(id);
                }
                None => self.stats.spurious += 1,
            },
            NicEvent::TablesLost => self.tables_lost(nic, false),
            NicEvent::Gone => self.tables_lost(nic, true),
            // Links concern the slow path; a table that fills up is known from its places.
            _ => {}
        }
    }

    /// A flow's entries cannot be trusted: they are deleted, with their counters, and inserted again.
    pub(super) fn rewrite(&mut self, id: FlowId) {
        if let Some(slot) = self.slot_mut(id) {
            slot.rewrite = true;
        }
        self.enqueue(id);
    }
}
