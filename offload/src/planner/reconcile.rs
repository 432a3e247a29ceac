//! When the device fails, loses its tables or goes; and whether what it holds is what it was given.

use super::slot::{Op, Places};
use super::{FlowId, FlowSource, Planner, RESET_INTERVAL_NS, Reason, UNKNOWN_MAX_NS};
use crate::lower::{Excluded, lower_ranked};
use flowlift_driver::nic::{Entry, EntryId, Nic, NicState, TableId};
use flowlift_flow::Flow;

impl Planner {
    /// The device's tables are empty, or gone with it: what they counted is kept, and the flows are planned again.
    pub(super) fn tables_lost(&mut self, nic: &dyn Nic, gone: bool) {
        self.stats.tables_lost += 1;
        self.gone |= gone;
        self.unknown_since = None;
        self.reset_wanted = false;
        self.under_way = 0;
        self.outbox.clear();
        self.promoted.clear();
        self.waiting.clear();
        self.ways.clear();
        self.verifying.clear();
        let leftovers = std::mem::take(&mut self.leftovers);
        for n in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let id = FlowId(n);
            let entries: Vec<EntryId> = self.entries(id).collect();
            let Some(slot) = self.slot_mut(id).filter(|s| s.present) else { continue };
            // An insert that was never answered has counted too, if it was carried out.
            let (table, pending) = (slot.table, if slot.op == Op::Insert { slot.pending } else { 0 });
            let unanswered = slot.places.as_slice().iter().enumerate().filter(|(n, _)| pending >> n & 1 != 0);
            let unanswered: Vec<EntryId> = unanswered.map(|(_, i)| EntryId { table, index: *i }).collect();
            entries.iter().for_each(|e| slot.base.add(&nic.counters(*e)));
            for e in &unanswered {
                let counters = nic.counters(*e);
                if leftovers.get(e) != Some(&counters) {
                    slot.base.add(&counters);
                }
            }
            (slot.op, slot.pending, slot.installed, slot.failed) = (Op::None, 0, 0, None);
            slot.generation = slot.generation.wrapping_add(1);
            (slot.places, slot.matched, slot.whole, slot.excluded) = (Places::None, 0, 0, 0);
            (slot.rewrite, slot.leads, slot.waits, slot.evicted, slot.again) =
                (false, false, false, false, false);
            if gone {
                slot.set_reason(Reason::DeviceGone);
            } else if !entries.is_empty() || !unanswered.is_empty() {
                slot.set_reason(Reason::DeviceFailed);
            }
            if slot.wanted {
                self.enqueue(id);
            } else {
                self.finish_removal(id);
            }
        }
        self.places.clear();
        self.meters_lost();
    }

    /// Without a device every flow is software's, and removals are done at once.
    pub(super) fn plan_without_device(&mut self) {
        while let Some(id) = self.queue.pop_front() {
            let Some(slot) = self.slot_mut(id) else { continue };
            slot.queued = false;
            if slot.wanted {
                slot.set_reason(Reason::DeviceGone);
            } else {
                self.finish_removal(id);
            }
        }
    }

    /// Resets a device that failed, that does not let go of an entry, or that leaves updates unanswered.
    pub(super) fn care_for_device(&mut self, nic: &mut dyn Nic, now_ns: u64) {
        match nic.state() {
            NicState::Gone if !self.gone => return self.tables_lost(nic, true),
            NicState::Gone => return,
            NicState::Failed | NicState::Ready => {}
        }
        let silent = self.unknown_since.is_some_and(|t| now_ns.saturating_sub(t) >= UNKNOWN_MAX_NS);
        if !(nic.state() == NicState::Failed || self.reset_wanted || silent) || now_ns < self.reset_due_ns {
            return;
        }
        self.reset_due_ns = now_ns.saturating_add(RESET_INTERVAL_NS);
        self.stats.resets += 1;
        if let Err(error) = nic.reset() {
            self.error(error);
            return;
        }
        // The loss of the tables is reported by the next poll; until then nothing may be submitted.
        self.unknown_since.get_or_insert(now_ns);
        self.poll(nic, now_ns);
    }

    /// Starts reading back up to `count` entries, the next ones in turn; what comes back is compared by `pump`, and an
    /// entry that differs is written anew. Returns how many were started: none on a NIC that has no read-back.
    pub fn verify(&mut self, nic: &mut dyn Nic, count: usize) -> usize {
        if !self.pipeline.caps().read_back {
            return 0;
        }
        let tables: Vec<TableId> = self.pipeline.caps().tables.iter().map(|t| t.id).collect();
        let mut started = 0;
        let mut tables_left = tables.len() + 1;
        while started < count && tables_left > 0 && nic.state() == NicState::Ready {
            let Some((entry, id)) = self.places.next_owner(self.verify_cursor) else {
                let after = tables.iter().position(|t| *t > self.verify_cursor.table).unwrap_or(0);
                let Some(table) = tables.get(after) else { break };
                self.verify_cursor = EntryId { table: *table, index: 0 };
                tables_left -= 1;
                continue;
            };
            self.verify_cursor = EntryId { index: entry.index.saturating_add(1), ..entry };
            let Some(slot) = self.slot(id).filter(|s| s.op == Op::None) else { continue };
            let generation = slot.generation;
            if self.verifying.contains_key(&entry) {
                continue;
            }
            if let Err(error) = nic.read_back(entry) {
                self.error(error);
                break;
            }
            self.verifying.insert(entry, (id, generation));
            started += 1;
        }
        started
    }

    pub(super) fn take_read_backs(&mut self, nic: &mut dyn Nic, source: &dyn FlowSource) {
        while let Some((entry_id, entry)) = nic.take_read_back() {
            let Some((id, generation)) = self.verifying.remove(&entry_id) else {
                self.stats.spurious += 1;
                continue;
            };
            // What changed since it was asked for says nothing.
            let steady =
                |s: &&super::Slot| s.op == Op::None && s.generation == generation && s.wanted && !s.queued;
            let Some(slot) = self.slot(id).filter(steady) else { continue };
            let excluded = Excluded(slot.excluded);
            let part = slot.places.as_slice().iter().position(|p| *p == entry_id.index);
            let lowered =
                |f: Flow| lower_ranked(&self.pipeline, &self.graph, &f, source.rank(id), excluded).ok();
            let expected = source.flow(id).and_then(lowered);
            let same = |plan: &crate::lower::Plan, entry: &Entry| {
                plan.table == entry_id.table && part.and_then(|n| plan.entries.get(n)) == Some(entry)
            };
            match (expected, entry) {
                (Some(plan), Some(entry)) if same(&plan, &entry) => self.stats.verified += 1,
                (None, _) => {}
                _ => {
                    self.stats.repaired += 1;
                    self.rewrite(id);
                }
            }
        }
    }
}
