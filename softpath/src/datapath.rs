//! A datapath: a flow table, its workers, and the counters of both.
//!
//! [`Datapath`] is the writer's handle; there is one per flow table, and several stand side by side without knowing each
//! other (R1). [`Datapath::worker`] makes a reader for a thread of its own.

use crate::meter::{MeterConfig, MeterError, MeterSlots, MeterStats, Meters};
use crate::reference::Reference;
use crate::stats::{Counters, FlowCounters, FlowStats, SharedCounters};
use crate::table::{FlowId, FlowRecord, FlowTable, Overlap, Put, PutError, PutMode, TableShared};
use crate::worker::Worker;
use flowlift_flow::{Action, Flow, Key, Match, Ufid};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a datapath is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Flows that the table takes.
    pub max_flows: u32,
    /// Entries that a worker's microflow cache may grow to, 8 bytes each; 0 switches it off.
    pub cache_entries: usize,
    /// Makes hashes and sampling repeatable. Without it they are secret, which hostile traffic calls for.
    pub seed: Option<u64>,
    /// Leaves out instructions that only some CPUs have: for tests and measurements of the portable code.
    pub any_cpu: bool,
    /// How long a delete waits for packets in flight, so that their counts are in the flow's last statistics.
    pub delete_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_flows: 8 << 20,
            cache_entries: 128 << 10,
            seed: None,
            any_cpu: false,
            delete_wait: Duration::from_millis(1),
        }
    }
}

/// One worker's counters, on cache lines that no other worker writes.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct WorkerShared {
    pub(crate) flows: FlowCounters,
    pub(crate) counters: SharedCounters,
}

/// What workers and writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: Arc<TableShared>,
    pub(crate) config: Config,
    pub(crate) meters: Arc<MeterSlots>,
    workers: Mutex<Workers>,
}

#[derive(Debug, Default)]
struct Workers {
    all: Vec<Arc<WorkerShared>>,
    /// Those whose worker is gone; the next worker counts on.
    idle: Vec<Arc<WorkerShared>>,
}

impl Shared {
    /// The list is valid between any two statements, so a panic elsewhere does not spoil it.
    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters for a new worker.
    fn adopt(&self) -> Arc<WorkerShared> {
        let idle = self.workers().idle.pop();
        idle.unwrap_or_else(|| self.fresh())
    }

    /// Counters at zero.
    fn fresh(&self) -> Arc<WorkerShared> {
        let fresh = Arc::new(WorkerShared {
            flows: FlowCounters::new(self.config.max_flows),
            counters: SharedCounters::default(),
        });
        self.workers().all.push(Arc::clone(&fresh));
        fresh
    }

    /// Takes the counters of a worker that ends.
    pub(crate) fn abandon(&self, worker: &Arc<WorkerShared>) {
        self.workers().idle.push(Arc::clone(worker));
    }

    fn flow_stats(&self, slot: u32, stats_generation: u32) -> FlowStats {
        let mut sum = FlowStats::default();
        for w in &self.workers().all {
            sum.merge(&w.flows.get(slot, stats_generation));
        }
        sum
    }
}

/// A flow that was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Its last statistics.
    pub stats: FlowStats,
    /// False if a worker was still busy with packets of before the delete when the wait was over: their counts are lost.
    pub complete: bool,
}

/// One line of a dump.
#[derive(Debug)]
pub struct DumpedFlow<'a> {
    /// Its name.
    pub id: FlowId,
    /// The flow.
    pub record: &'a FlowRecord,
    /// Its statistics.
    pub stats: FlowStats,
}

/// See the module's head.
#[derive(Debug)]
pub struct Datapath {
    table: FlowTable,
    meters: Meters,
    shared: Arc<Shared>,
    /// What flows had seen before they came here, counted like a worker's packets.
    carried: Option<Arc<WorkerShared>>,
}

impl Datapath {
    /// An empty datapath.
    pub fn new(config: Config) -> Self {
        let table = FlowTable::new(config.max_flows, config.seed);
        let meters = Meters::new(&table.shared().domain);
        let shared = Shared {
            table: Arc::clone(table.shared()),
            config,
            meters: Arc::clone(meters.slots()),
            workers: Mutex::default(),
        };
        Self { table, meters, shared: Arc::new(shared), carried: None }
    }

    /// A worker, for a thread of its own.
    pub fn worker(&self) -> Worker {
        Worker::new(Arc::clone(&self.shared), self.shared.adopt())
    }

    /// Adds a flow or replaces the actions of the one with the same UFID or match. See [`FlowTable::put`].
    pub fn put(&mut self, flow: &Flow) -> Result<Put, PutError> {
        self.table.put(flow, PutMode::ANY)
    }

    /// As [`Self::put`], restricted.
    pub fn put_with(&mut self, flow: &Flow, mode: PutMode) -> Result<Put, PutError> {
        self.table.put(flow, mode)
    }

    /// Replaces a flow's actions in one step.
    pub fn set_actions(&mut self, id: FlowId, actions: &[Action]) -> Result<(), PutError> {
        self.table.set_actions(id, actions)
    }

    /// Sets a flow's statistics to zero (U2); false if there is no such flow.
    pub fn clear_stats(&mut self, id: FlowId) -> bool {
        self.table.clear_stats(id)
    }

    /// Has a flow's statistics begin with what it has seen elsewhere; false if there is no such flow.
    pub fn carry_stats(&mut self, id: FlowId, stats: &FlowStats) -> bool {
        let Some(generation) = self.table.with(id, FlowRecord::stats_generation) else { return false };
        let carried = self.carried.get_or_insert_with(|| self.shared.fresh());
        let Some(entry) = carried.flows.entry(id.slot) else { return false };
        entry.set(generation, stats);
        true
    }

    /// Deletes a flow; `None` if there is no such flow. Packets that workers have looked up already are waited for
    /// ([`Config::delete_wait`]), so that their counts are not lost.
    pub fn delete(&mut self, id: FlowId) -> Option<Deleted> {
        let stats_generation = self.table.remove(id)?;
        let complete = self.wait();
        Some(Deleted { stats: self.shared.flow_stats(id.slot, stats_generation), complete })
    }

    /// Deletes many flows with one wait.
    pub fn delete_all(&mut self, ids: &[FlowId]) -> Vec<Option<Deleted>> {
        let removed: Vec<Option<u32>> = ids.iter().map(|id| self.table.remove(*id)).collect();
        let complete = self.wait();
        let stats = |(id, g): (&FlowId, Option<u32>)| {
            Some(Deleted { stats: self.shared.flow_stats(id.slot, g?), complete })
        };
        ids.iter().zip(removed).map(stats).collect()
    }

    fn wait(&self) -> bool {
        self.shared.table.domain.wait(self.shared.config.delete_wait)
    }

    /// Deletes all flows.
    pub fn flush(&mut self) {
        self.table.flush();
    }

    /// The flow as installed.
    pub fn flow(&mut self, id: FlowId) -> Option<Flow> {
        self.table.flow(id)
    }

    /// The flow's statistics.
    pub fn stats(&mut self, id: FlowId) -> Option<FlowStats> {
        let stats_generation = self.table.with(id, FlowRecord::stats_generation)?;
        Some(self.shared.flow_stats(id.slot, stats_generation))
    }

    /// The flow with this UFID.
    pub fn find_ufid(&mut self, ufid: &Ufid) -> Option<FlowId> {
        self.table.find_ufid(ufid)
    }

    /// The flow with this mask and masked key.
    pub fn find_match(&mut self, matching: &Match) -> Option<FlowId> {
        self.table.find_match(matching)
    }

    /// The flow that a packet with this key matches.
    pub fn lookup(&mut self, key: &Key) -> Option<FlowId> {
        self.table.lookup(key)
    }

    /// Shows flows to `look`, in the order of slots, from `start` on until it returns false; gives the slot to go on
    /// from, `None` after the last. Flows may change between two calls.
    pub fn dump(&mut self, start: u32, mut look: impl FnMut(DumpedFlow<'_>) -> bool) -> Option<u32> {
        let shared = &self.shared;
        self.table.scan(start, |id, record| {
            let stats = shared.flow_stats(id.slot, record.stats_generation());
            look(DumpedFlow { id, record, stats })
        })
    }

    /// Sets a meter: a new one, or in place of the one with this ID, whose last statistics are given; its buckets are full and its
    /// counts zero.
    pub fn set_meter(&mut self, id: u32, config: MeterConfig) -> Result<Option<MeterStats>, MeterError> {
        self.meters.set(id, config)
    }

    /// A meter as it was set, and what it counted.
    pub fn meter(&self, id: u32) -> Option<(&MeterConfig, MeterStats)> {
        self.meters.get(id)
    }

    /// Has a meter that was just set go on counting where it was: what it counted in another process. False if there is none.
    pub fn carry_meter_stats(&mut self, id: u32, stats: &MeterStats) -> bool {
        self.meters.carry(id, stats)
    }

    /// The IDs of all meters, in order.
    pub fn meter_ids(&self) -> impl Iterator<Item = u32> {
        self.meters.ids()
    }

    /// Deletes a meter and gives its last statistics; `None` if there is none. Flows that name it pass on what it would have dropped.
    pub fn delete_meter(&mut self, id: u32) -> Option<MeterStats> {
        self.meters.delete(id)
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True without flows.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Number of masks.
    pub fn mask_count(&self) -> usize {
        self.table.mask_count()
    }

    /// Counters of all workers, those that ended included. A worker publishes after each batch.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for w in &self.shared.workers().all {
            sum += w.counters.load();
        }
        sum
    }

    /// Pairs of flows that overlap (R22), at most `limit`. For a file's loader: a put does not look for them.
    pub fn find_overlaps(&mut self, limit: usize) -> Vec<Overlap> {
        self.table.find_overlaps(limit)
    }

    /// Bytes held for flows by the table, without the allocator's own and without counters (32 bytes for each worker
    /// that has seen the flow's range of slots).
    pub fn table_bytes(&mut self) -> usize {
        self.table.bytes()
    }

    /// A linear datapath with the same flows and no packets counted, to compare with.
    pub fn reference(&mut self) -> Reference {
        let mut reference = Reference::new(self.shared.config.seed.unwrap_or(0));
        self.table.scan(0, |_, record| {
            // Compiled once already, so it compiles again.
            reference.put(&record.flow()).is_ok()
        });
        reference
    }
}
