//! What becomes of each flow: a state, a reason, entries in the NIC, counters that nothing loses.
//!
//! The caller says what flows there are ([`Planner::put`], [`Planner::remove`]) and lets the planner work
//! ([`Planner::pump`]); everything else follows from completions and events. The software copy of a flow is the truth
//! and the fallback, so that every way out of hardware is safe: a flow whose entry is not there is only slow.
//!
//! - `put` and `remove` only take notes. `pump` polls the device, plans what changed, and queues updates, in batches.
//! - A change of actions is one atomic replace. A change of match or table deletes first, and inserts when the delete is
//!   done: packets are software's in between, with the new flow.
//! - Entries are not kept: a flow is lowered anew from [`FlowSource`] whenever one is needed. What is installed is known
//!   by fingerprint.
//! - Places in tables are given back only by a completed delete or a lost table, so that no entry is ever overwritten.
//! - No decision depends on the order of a hash map or on a clock of its own: a run replays from its inputs.

mod complete;
mod meters;
mod outbox;
mod places;
mod prints;
mod reconcile;
mod slot;
mod work;

pub use slot::{Counters, FlowId, Reason, State};

use crate::form::Forms;
use crate::meter::Meter;
use crate::pipeline::Pipeline;
use crate::placement::{Busiest, Placement};
use crate::ports::PortMap;
use crate::recirc::{Hop, RecircGraph, hop, recirc_id};
use flowlift_driver::nic::{
    EntryCounters, EntryId, MeterBucket, Nic, NicCaps, NicError, NicEvent, NicState, TableId, UpdateResult,
};
use flowlift_flow::Flow;
use meters::Meters;
use outbox::Outbox;
use places::PlaceMap;
use prints::Prints;
use slot::{Op, Slot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Where flows are kept: the software path's table.
pub trait FlowSource {
    /// The flow as it is now.
    fn flow(&self, id: FlowId) -> Option<Flow>;
    /// Writes the flow as it is now over another one, whose memory it takes; false if there is none.
    fn read(&self, id: FlowId, over: &mut Flow) -> bool {
        self.flow(id).map(|flow| *over = flow).is_some()
    }
    /// Its rank: where several flows match a packet, the one of the lowest rank has it; 0 where flows do not overlap.
    fn rank(&self, id: FlowId) -> u16 {
        let _ = id;
        0
    }
    /// A meter as it is now; `None` if there is none, or if meters are not for the NIC.
    fn meter(&self, meter: u32) -> Option<Meter> {
        let _ = meter;
        None
    }
    /// Lends a meter's bucket to the NIC by `to`, and draws on what that gives from now on. One that is lent stays so, without `to`.
    ///
    /// # Errors
    /// Those of `to`, or [`NicError::Invalid`] if there is no such meter; nothing is lent then.
    fn lend_meter(&self, meter: u32, to: &mut LendMeter<'_>) -> Result<(), NicError> {
        let _ = to;
        Err(NicError::Invalid(format!("meter {meter}")))
    }
    /// Takes a meter's bucket back, if it is lent.
    fn take_meter_back(&self, meter: u32) {
        let _ = meter;
    }
    /// Packets that software handled for it: how busy a flow is that waits for a place.
    fn packets(&self, id: FlowId) -> u64 {
        let _ = id;
        0
    }
}

/// Puts a bucket that is lent into the NIC: the meter that it is of, and what is in it, as [`MeterConfig::level`].
///
/// [`MeterConfig::level`]: flowlift_driver::nic::MeterConfig::level
pub type LendMeter<'a> = dyn FnMut(&Meter, u64) -> Result<Arc<dyn MeterBucket>, NicError> + 'a;

/// What the planner counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inserts, replaces and deletes that the device confirmed.
    pub inserted: u64,
    /// See above.
    pub replaced: u64,
    /// See above.
    pub deleted: u64,
    /// Updates that the device refused, for whatever reason.
    pub failed: u64,
    /// Flows whose half-done inserts were taken back.
    pub rolled_back: u64,
    /// Flows that gave their place to a busier one.
    pub evicted: u64,
    /// Entries found damaged, by the device or by read-back, and written anew.
    pub repaired: u64,
    /// Read-backs that found what should be there.
    pub verified: u64,
    /// Entries that the device had lost without saying so.
    pub vanished: u64,
    /// Plans that raise-and-compare refused: bugs.
    pub lowering_bugs: u64,
    /// Completions and events that belong to nothing.
    pub spurious: u64,
    /// Updates that the device never answered, or answered by a reset.
    pub unanswered: u64,
    /// Times that the device's tables were lost.
    pub tables_lost: u64,
    /// Resets that the planner asked for.
    pub resets: u64,
    /// Calls of the driver that failed.
    pub errors: u64,
}

/// How many flows are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// In software, refused or waiting.
    pub software: u32,
    /// In hardware, or being replaced there.
    pub hardware: u32,
    /// On their way in or out.
    pub pending: u32,
    /// In software, having given their place to another.
    pub evicted: u32,
}

/// Updates that are queued at most before the device is asked to take them.
const BATCH: usize = 1024;
/// Flows that one `pump` plans at most, so that it stays short.
const PLANS_PER_PUMP: usize = 16 * 1024;
/// Time between attempts to reset a device that failed.
const RESET_INTERVAL_NS: u64 = 100_000_000;
/// How long updates may stay unanswered by a device that calls itself ready, before it is reset.
const UNKNOWN_MAX_NS: u64 = 1_000_000_000;

/// The planner. See the module's head.
pub struct Planner {
    pipeline: Pipeline,
    graph: RecircGraph,
    slots: Vec<Slot>,
    /// Flows to plan.
    queue: VecDeque<FlowId>,
    places: PlaceMap,
    /// Updates that the device has not taken yet.
    outbox: Outbox,
    /// Flows by the recirculation ID that they match, if not 0, and by the one that they give.
    by_recirc: BTreeMap<u32, BTreeSet<FlowId>>,
    by_hop: BTreeMap<u32, BTreeSet<FlowId>>,
    /// Flows in hardware that lead to a recirculation ID.
    ways: BTreeMap<u32, u32>,
    /// Flows with an operation under way.
    under_way: u32,
    /// Flows that wait for room, by table.
    waiting: BTreeSet<(TableId, FlowId)>,
    /// Who takes the place of a flow that is being evicted.
    promoted: BTreeMap<FlowId, FlowId>,
    removed: Vec<(FlowId, Counters)>,
    /// What the last entry had counted in places that an unanswered insert may have begun to use: if the tables are lost
    /// before the answer, counters that are still these are not the new entry's.
    leftovers: BTreeMap<EntryId, EntryCounters>,
    placement: Box<dyn Placement>,
    round_due_ns: u64,
    wait_cursor: (TableId, FlowId),
    verify_cursor: EntryId,
    verifying: BTreeMap<EntryId, (FlowId, u16)>,
    /// Since when some update is known to stay unanswered.
    unknown_since: Option<u64>,
    reset_wanted: bool,
    reset_due_ns: u64,
    gone: bool,
    stats: Stats,
    last_error: Option<NicError>,
    results: Vec<UpdateResult>,
    events: Vec<NicEvent>,
    prints: Prints,
    /// Forms of the flows that were planned of late.
    forms: Forms,
    meters: Meters,
    /// The flow that was planned last: the next one takes its memory.
    flow: Option<Box<Flow>>,
}

impl Planner {
    /// A planner for a NIC with these records, which shares these ports with the datapath. The NIC's tables are empty.
    pub fn new(caps: &NicCaps, ports: &PortMap) -> Self {
        Self::over(Pipeline::new(caps, ports))
    }

    /// A planner for the NIC of this pipeline. The NIC's tables are empty.
    pub fn over(pipeline: Pipeline) -> Self {
        Self {
            graph: RecircGraph::new(pipeline.last_stage()),
            slots: Vec::new(),
            queue: VecDeque::new(),
            places: PlaceMap::new(pipeline.caps()),
            outbox: Outbox::default(),
            by_recirc: BTreeMap::new(),
            by_hop: BTreeMap::new(),
            ways: BTreeMap::new(),
            under_way: 0,
            waiting: BTreeSet::new(),
            promoted: BTreeMap::new(),
            removed: Vec::new(),
            leftovers: BTreeMap::new(),
            placement: Box::new(Busiest::default()),
            round_due_ns: 0,
            wait_cursor: (TableId(0), FlowId(0)),
            verify_cursor: EntryId { table: TableId(0), index: 0 },
            verifying: BTreeMap::new(),
            unknown_since: None,
            reset_wanted: false,
            reset_due_ns: 0,
            gone: false,
            stats: Stats::default(),
            last_error: None,
            results: Vec::new(),
            events: Vec::new(),
            prints: Prints::default(),
            forms: Forms::default(),
            meters: Meters::default(),
            flow: None,
            pipeline,
        }
    }

    /// Lets flows into tables whose entries do not count everything; to be said before the first flow is put. What such
    /// a flow's packets came to in hardware is not known, see [`Planner::is_counted`].
    pub fn accept_uncounted(&mut self) {
        self.pipeline = self.pipeline.clone().with_uncounted(true);
        self.forms.clear();
    }

    /// False for a flow that hardware handles, or has handled, without counting.
    pub fn is_counted(&self, id: FlowId) -> bool {
        self.slot(id).is_none_or(|s| !s.uncounted)
    }

    /// Takes another placement policy.
    pub fn set_placement(&mut self, placement: Box<dyn Placement>) {
        self.placement = placement;
        self.round_due_ns = 0;
    }

    /// The NIC as the planner sees it.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Takes other ports: the datapath has got a port of the NIC, or lost one. All flows are planned again; those that this
    /// does not concern stay as they are in hardware.
    pub fn set_ports(&mut self, ports: &PortMap) {
        self.pipeline = Pipeline::new(self.pipeline.caps(), ports).with_meters_of(&self.pipeline);
        self.forms.clear();
        self.all_meters_changed();
        for n in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            self.enqueue(FlowId(n));
        }
    }

    /// Takes note of a new or changed flow. A slot is free for another flow once its removal was reported by
    /// [`Planner::take_removed`]; a `put` before that is a change of the flow, and its counters go on.
    pub fn put(&mut self, id: FlowId, flow: &Flow) {
        self.put_leading(id, recirc_id(flow), hop(flow));
    }

    /// [`Planner::put`] for a caller that knows what matters of the flow until it is planned: its recirculation ID, and
    /// the hop that its actions end with.
    pub fn put_leading(&mut self, id: FlowId, recirc: u32, hop: Option<Hop>) {
        let n = id.0 as usize;
        if self.slots.len() <= n {
            self.slots.resize_with(n + 1, Slot::default);
        }
        self.unlink(id);
        let next = hop.filter(|h| !self.pipeline.resumes_in_software(h.to));
        let slot = &mut self.slots[n];
        (slot.wanted, slot.present) = (true, true);
        (slot.recirc_id, slot.hop_to) = (recirc, next.map(|h| h.to));
        if slot.installed == 0 && slot.op == Op::None {
            slot.excluded = 0;
        }
        if recirc != 0 {
            self.by_recirc.entry(recirc).or_default().insert(id);
        }
        if let Some(h) = next {
            self.graph.add(h);
            self.by_hop.entry(h.to).or_default().insert(id);
        }
        self.enqueue(id);
    }

    /// Takes note that a flow is no more. Its last counters come by [`Planner::take_removed`], after the hardware has
    /// let go of it.
    pub fn remove(&mut self, id: FlowId) {
        if !self.slot(id).is_some_and(|s| s.wanted) {
            return;
        }
        self.unlink(id);
        if let Some(slot) = self.slot_mut(id) {
            slot.wanted = false;
        }
        self.enqueue(id);
    }

    /// Flows whose removal is complete, with what hardware counted for them.
    pub fn take_removed(&mut self) -> Vec<(FlowId, Counters)> {
        std::mem::take(&mut self.removed)
    }

    /// Where a flow is, and why it is not in hardware; `None` for a flow that is not known.
    pub fn state(&self, id: FlowId) -> Option<(State, Option<Reason>)> {
        let slot = self.slot(id).filter(|s| s.present)?;
        let state = slot.state();
        let reason = match state {
            State::Hardware | State::PendingReplace => None,
            _ => slot.reason().or(Some(Reason::Queued)),
        };
        Some((state, reason))
    }

    /// Since when a flow is in hardware, by the clock of [`Planner::pump`]; `None` if it is not.
    pub fn in_hardware_since_ns(&self, id: FlowId) -> Option<u64> {
        let slot = self.slot(id).filter(|s| s.present)?;
        matches!(slot.state(), State::Hardware | State::PendingReplace).then_some(slot.since_ns)
    }

    /// Table and places of a flow's entries in hardware.
    pub fn entries(&self, id: FlowId) -> impl Iterator<Item = EntryId> + '_ {
        let slot = self.slot(id);
        let places = slot.map_or(&[][..], |s| s.places.as_slice());
        let installed = slot.map_or(0, |s| s.installed);
        let table = slot.map_or(TableId(0), |s| s.table);
        places
            .iter()
            .enumerate()
            .filter(move |(n, _)| installed >> n & 1 != 0)
            .map(move |(_, index)| EntryId { table, index: *index })
    }

    /// The flow whose entry lies in a place.
    pub fn owner(&self, id: EntryId) -> Option<FlowId> {
        self.places.owner(id)
    }

    /// What hardware counted for a flow since it was first put, over all its entries, resets and repairs.
    pub fn counters<N: Nic + ?Sized>(&self, id: FlowId, nic: &N) -> Counters {
        let mut sum = self.slot(id).map_or_else(Counters::default, |s| s.base);
        self.entries(id).for_each(|e| sum.add(&nic.counters(e)));
        sum
    }

    /// How many flows are in each state. Walks all flows.
    pub fn tally(&self) -> Tally {
        let mut t = Tally::default();
        for slot in self.slots.iter().filter(|s| s.present) {
            match slot.state() {
                State::Software => t.software += 1,
                State::Hardware | State::PendingReplace => t.hardware += 1,
                State::PendingInsert | State::PendingDelete => t.pending += 1,
                State::Evicted => t.evicted += 1,
            }
        }
        t
    }

    /// Entries in use of a table.
    pub fn used(&self, table: TableId) -> u32 {
        self.places.used(table)
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The last error of the driver, once.
    pub fn take_error(&mut self) -> Option<NicError> {
        self.last_error.take()
    }

    /// True if nothing is queued and no answer is awaited.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.outbox.is_empty() && self.unknown_since.is_none() && self.under_way == 0
    }

    /// Flows that wait to be planned, and updates that the device has not taken yet.
    pub fn backlog(&self) -> usize {
        self.queue.len() + self.outbox.len()
    }

    /// Takes completions and events, plans what changed, hands updates to the device. Never blocks; call it often.
    /// `now_ns` is any clock that does not go back.
    pub fn pump(&mut self, nic: &mut dyn Nic, source: &dyn FlowSource, now_ns: u64) {
        self.poll(nic, now_ns);
        self.care_for_device(nic, now_ns);
        self.take_read_backs(nic, source);
        for id in self.graph.update() {
            self.stage_moved(id);
        }
        self.place(nic, source, now_ns);
        self.tend_meters(nic, source);
        if self.gone {
            return self.plan_without_device();
        }
        let mut plans = PLANS_PER_PUMP;
        // An update that stays unanswered means that the tables are about to be lost: nothing may get in between.
        while nic.state() == NicState::Ready && self.unknown_since.is_none() {
            while plans > 0 && self.outbox.len() < BATCH {
                let Some(id) = self.queue.pop_front() else { break };
                plans -= 1;
                self.plan(id, nic, source);
            }
            if self.outbox.is_empty() || !self.submit(nic) || plans == 0 {
                break;
            }
        }
        self.release_meters(nic, source);
    }

    fn slot(&self, id: FlowId) -> Option<&Slot> {
        self.slots.get(id.0 as usize)
    }

    fn slot_mut(&mut self, id: FlowId) -> Option<&mut Slot> {
        self.slots.get_mut(id.0 as usize)
    }

    fn error(&mut self, error: NicError) {
        self.stats.errors += 1;
        self.last_error = Some(error);
    }

    /// Has a flow planned, now or when what is under way for it is done.
    fn enqueue(&mut self, id: FlowId) {
        let Some(slot) = self.slot_mut(id).filter(|s| s.present) else { return };
        if slot.op != Op::None {
            slot.again = true;
        } else if !slot.queued {
            slot.queued = true;
            self.queue.push_back(id);
        }
    }

    /// Forgets what a flow said of recirculation, and that it waits.
    fn unlink(&mut self, id: FlowId) {
        self.set_leads(id, false);
        self.set_waits(id, false);
        let Some(slot) = self.slot_mut(id).filter(|s| s.wanted) else { return };
        let (from, to) = (slot.recirc_id, slot.hop_to.take());
        let drop_from = |map: &mut BTreeMap<u32, BTreeSet<FlowId>>, key| {
            if let Some(flows) = map.get_mut(&key) {
                flows.remove(&id);
                if flows.is_empty() {
                    map.remove(&key);
                }
            }
        };
        drop_from(&mut self.by_recirc, from);
        if let Some(to) = to {
            drop_from(&mut self.by_hop, to);
            self.graph.remove(Hop { from, to });
        }
    }

    /// Says whether a flow in hardware leads to its recirculation ID. The first and the last one that does concern the
    /// flows with that ID.
    fn set_leads(&mut self, id: FlowId, leads: bool) {
        let Some(slot) = self.slot_mut(id) else { return };
        let Some(to) = slot.hop_to.filter(|_| slot.leads != leads) else { return };
        slot.leads = leads;
        let ways = self.ways.entry(to).or_insert(0);
        let turned = if leads {
            *ways += 1;
            *ways == 1
        } else {
            *ways = ways.saturating_sub(1);
            *ways == 0
        };
        if turned {
            if !leads {
                self.ways.remove(&to);
            }
            self.enqueue_all(self.by_recirc.get(&to).cloned());
        }
    }

    fn enqueue_all(&mut self, flows: Option<BTreeSet<FlowId>>) {
        flows.into_iter().flatten().for_each(|id| self.enqueue(id));
    }

    /// The stage of a recirculation ID changed: its flows move, and those that lead to it go elsewhere.
    fn stage_moved(&mut self, recirc: u32) {
        self.enqueue_all(self.by_recirc.get(&recirc).cloned());
        self.enqueue_all(self.by_hop.get(&recirc).cloned());
    }

    fn set_waits(&mut self, id: FlowId, waits: bool) {
        let Some(slot) = self.slot_mut(id).filter(|s| s.waits != waits) else { return };
        slot.waits = waits;
        let key = (slot.table, id);
        if waits {
            self.waiting.insert(key);
        } else {
            self.waiting.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
