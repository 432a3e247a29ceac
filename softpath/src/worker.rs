//! The packet loop: one [`Worker`] per thread, a batch at a time.
//!
//! Tiers, and what each costs a packet (measured figures: ARCHITECTURE.md):
//! 1. Key extraction: constant offsets for plain IPv4.
//! 2. Microflow cache ([`crate::cache`]): one hash over the bits that flows look at, one cache line, then one compare with
//!    the flow. The same whatever the number of flows and masks.
//! 3. Classifier ([`crate::classifier`]): a hash and a probe per mask until the flow is found.
//! 4. Upcall: the sink's affair.
//!
//! Each step is taken for all packets of the batch before the next one, so that one packet's cache misses overlap with
//! another's work. Actions run in the order of arrival, and a recirculated packet goes its whole way before the next
//! packet: the order per flow, and between flows, is that of arrival.
//!
//! Locks: none. A batch is one section of the table's [`crate::table::rcu::Domain`], and counters have one writer.

use crate::actions::{self, ActionUpcall, Context, DropReason, Program, PsampleRecord, execute};
use crate::cache::MicroflowCache;
use crate::classifier::{Relevant, SearchOrder};
use crate::datapath::{Shared, WorkerShared};
use crate::extract::{KeyBuf, Layers, extract_into, extract_packet};
use crate::isa::{Isa, Job};
use crate::meter::{MeterHandle, MeterView};
use crate::packet::{Outgoing, Packet, finish};
use crate::recursion::{LONGEST_CHAIN, Recursion};
use crate::stats::Counters;
use crate::table::index::tag_of;
use crate::table::rcu::{Guard, Reader, View, prefetch};
use crate::table::shape::LookupKey;
use crate::table::{FlowId, FlowRecord, TableShared};
use flowlift_flow::{Flow, Key, Metadata, PortNo};
use std::sync::Arc;

/// Packets in a batch.
pub const BATCH: usize = 32;

/// A packet for the user.
#[derive(Debug, Clone, Copy)]
pub enum Upcall<'a> {
    /// No flow matched.
    Miss {
        /// The key that was looked up (R5).
        key: &'a Key,
        /// The packet.
        packet: &'a Packet,
    },
    /// An action asked for it.
    Action(ActionUpcall<'a>),
}

/// Why a packet's way ended without being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// The flow's actions ended it.
    Action(DropReason),
    /// It was recirculated too often.
    RecircLimit,
}

/// Where a worker's results go.
pub trait Sink {
    /// Sends `packet` to `port`.
    fn output(&mut self, port: PortNo, packet: &[u8]);

    /// As [`Sink::output`], a packet of which more is to be told than its bytes. By default nothing else is told, and what is left to do
    /// on it is done in software.
    #[cold]
    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        packet.finish(|whole| self.output(port, whole));
    }

    /// Hands a packet to the user; what is left to do on it has been done, and each of its segments comes by itself. False if it
    /// could not be taken: that is counted as lost (R4).
    fn upcall(&mut self, upcall: Upcall<'_>) -> bool;

    /// A packet (a recirculated one anew each time) matched a flow; its actions are next.
    #[inline(always)]
    fn matched(&mut self, id: FlowId, key: &Key) {
        let _ = (id, key);
    }

    /// Records a packet sample.
    fn psample(&mut self, record: PsampleRecord<'_>) {
        let _ = record;
    }

    /// A packet, or a copy, was dropped on purpose.
    #[inline(always)]
    fn dropped(&mut self, why: Dropped) {
        let _ = why;
    }
}

/// Packets to process together, in buffers that are used again and again.
#[derive(Debug)]
pub struct Batch {
    packets: Box<[Packet]>,
    len: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch with room for [`BATCH`] packets.
    pub fn new() -> Self {
        Self { packets: (0..BATCH).map(|_| Packet::new()).collect(), len: 0 }
    }

    /// The next packet's buffer, to be filled; `None` if the batch is full.
    #[inline]
    pub fn next_packet(&mut self) -> Option<&mut Packet> {
        let packet = self.packets.get_mut(self.len)?;
        self.len += 1;
        Some(packet)
    }

    /// Copies a frame in; false if the batch is full.
    #[inline]
    pub fn push(&mut self, frame: &[u8], metadata: Metadata) -> bool {
        self.next_packet().map(|p| p.fill(frame, metadata)).is_some()
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without packets.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if no packet can be added.
    pub fn is_full(&self) -> bool {
        self.len == self.packets.len()
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

/// What a thread needs to look packets up: its cache, its search order, its counters.
#[derive(Debug)]
struct Lookup {
    cache: MicroflowCache,
    order: SearchOrder,
    counters: Counters,
}

/// The table, as it is within one section.
#[derive(Clone, Copy)]
struct Section<'g> {
    table: &'g TableShared,
    guard: &'g Guard<'g>,
    /// As of the section's begin: the cache is asked by these bits.
    relevant: &'g Relevant,
    view: View<'g, FlowRecord>,
    meters: MeterView<'g>,
}

type Found<'g> = Option<(u32, &'g FlowRecord)>;

impl<'g> Section<'g> {
    fn new(shared: &'g Shared, guard: &'g Guard<'g>) -> Self {
        let table = &*shared.table;
        let (relevant, view) = (&table.subtables.load(guard).relevant, table.slots.view(guard));
        Self { table, guard, relevant, view, meters: shared.meters.view(guard) }
    }

    /// Where the cache is asked for a key.
    #[inline(always)]
    fn tag(&self, key: LookupKey<'_>) -> u32 {
        tag_of(self.relevant.hash(&self.table.seeds, key))
    }
}

impl Lookup {
    /// The second tier, for a packet that the cache did not answer. Subtables are those of this moment, since an upcall of
    /// an earlier packet of the batch may have been answered with the flow that this packet wants too.
    #[inline(never)]
    fn classify<'g>(&mut self, s: &Section<'g>, tag: u32, key: LookupKey<'_>) -> Found<'g> {
        let subtables = s.table.subtables.load(s.guard);
        self.order.follow(subtables);
        let before = self.order.searched;
        let found = self.order.lookup(s.guard, subtables, s.view, &s.table.seeds, key);
        self.counters.masks_searched += self.order.searched - before;
        if let Some((slot, _)) = found {
            self.cache.insert(tag, slot);
        }
        found
    }

    /// Both tiers, for a single packet.
    fn find<'g>(&mut self, s: &Section<'g>, key: LookupKey<'_>) -> Found<'g> {
        let tag = s.tag(key);
        if let Some(slot) = self.cache.get(tag)
            && let Some(record) = s.view.get(slot).filter(|r| r.matches(key))
        {
            self.counters.cache_hits += 1;
            return Some((slot, record));
        }
        self.classify(s, tag, key)
    }
}

/// One packet of a batch between two steps.
#[derive(Clone, Copy)]
struct Lane<'g> {
    layers: Layers,
    tag: u32,
    slot: u32,
    /// The flow that the cache proposes.
    proposed: Option<&'g FlowRecord>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    own: Arc<WorkerShared>,
    reader: Reader,
    lookup: Lookup,
    keys: Box<[KeyBuf]>,
    /// Keys of recirculated packets, by depth.
    spare_keys: Vec<KeyBuf>,
    context: Context,
    isa: Isa,
}

/// A batch on its way, as work that is compiled for several sets of instructions.
struct Process<'w, S> {
    worker: &'w mut Worker,
    packets: &'w mut [Packet],
    now: u64,
    sink: &'w mut S,
}

impl<S: Sink> Job for Process<'_, S> {
    #[inline(always)]
    fn run(self) {
        self.worker.process_packets(self.packets, self.now, self.sink);
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, own: Arc<WorkerShared>) -> Self {
        let config = &shared.config;
        let lookup = Lookup {
            cache: MicroflowCache::new(config.cache_entries),
            order: SearchOrder::default(),
            counters: own.counters.load(),
        };
        Self {
            reader: shared.table.domain.reader(),
            lookup,
            keys: vec![KeyBuf::new(); BATCH].into(),
            spare_keys: vec![KeyBuf::new(); LONGEST_CHAIN],
            context: Context::new(config.seed.unwrap_or_else(|| shared.table.seeds.start())),
            isa: if config.any_cpu { Isa::base() } else { Isa::detect() },
            own,
            shared,
        }
    }

    /// Starts the sequence of sample decisions anew, so that a run can be replayed from any packet.
    pub fn reseed(&mut self, seed: u64) {
        self.context.reseed(seed);
    }

    /// Processes the batch and empties it. `now`, in milliseconds, becomes the matched flows' time of last use.
    pub fn process(&mut self, batch: &mut Batch, now: u64, sink: &mut impl Sink) {
        let n = std::mem::take(&mut batch.len);
        self.isa.run(Process { worker: self, packets: &mut batch.packets[..n], now, sink });
    }

    /// Processes one packet: for the slow path, which may set `recirc_id` in its metadata to resume where hardware or
    /// an earlier pass stopped. The packet is used up.
    pub fn process_one(&mut self, packet: &mut Packet, now: u64, sink: &mut impl Sink) {
        self.isa.run(Process { worker: self, packets: std::slice::from_mut(packet), now, sink });
    }

    /// Does actions to a packet that the user gives, which uses it up. No flow counts it unless it is recirculated; meters do.
    pub fn execute(&mut self, program: &Program, packet: &mut Packet, now: u64, sink: &mut impl Sink) {
        let guard = self.reader.enter();
        let section = Section::new(&self.shared, &guard);
        let mut key = KeyBuf::new();
        let layers = extract_packet(packet, &mut key);
        let (own, spare_keys, lookup) = (&self.own, &mut self.spare_keys, &mut self.lookup);
        let recursion = Recursion::default();
        let mut run = Run { section, lookup, own, spare_keys, recursion, now, sink };
        execute(program, packet, key.key(), &layers, &mut self.context, &mut run);
        self.own.counters.store(&self.lookup.counters);
    }

    /// At most [`BATCH`] packets.
    #[inline(always)]
    fn process_packets<S: Sink>(&mut self, packets: &mut [Packet], now: u64, sink: &mut S) {
        let guard = self.reader.enter();
        let section = Section::new(&self.shared, &guard);
        let idle = Lane { layers: Layers::default(), tag: 0, slot: 0, proposed: None };
        let mut lanes = [idle; BATCH];
        let lookup = &mut self.lookup;
        for ((packet, key), lane) in packets.iter().zip(&mut self.keys).zip(&mut lanes) {
            extract_into(packet, key, &mut lane.layers);
        }
        // Not in the loop before: a vector load of words that were stored one by one just now would wait for all of them.
        for (key, lane) in self.keys.iter().zip(&mut lanes).take(packets.len()) {
            lane.tag = section.tag(LookupKey::of(key));
            lookup.cache.prefetch(lane.tag);
        }
        for lane in lanes.iter_mut().take(packets.len()) {
            if let Some(slot) = lookup.cache.get(lane.tag)
                && let Some(record) = section.view.get(slot)
            {
                lane.slot = slot;
                lane.proposed = Some(record);
                prefetch(record);
                if let Some(entry) = self.own.flows.entry(slot) {
                    prefetch(entry);
                }
            }
        }
        lookup.counters.packets += packets.len().min(BATCH) as u64;
        let (own, spare_keys) = (&self.own, &mut self.spare_keys);
        let recursion = Recursion::default();
        let mut run = Run { section, lookup, own, spare_keys, recursion, now, sink };
        for ((packet, key), lane) in packets.iter_mut().zip(&self.keys).zip(&lanes) {
            let lookup_key = LookupKey::of(key);
            let found = match lane.proposed {
                Some(record) if record.matches(lookup_key) => {
                    run.lookup.counters.cache_hits += 1;
                    Some((lane.slot, record))
                }
                _ => run.lookup.classify(&section, lane.tag, lookup_key),
            };
            run.recursion = Recursion::default();
            run.act(found, key, &lane.layers, packet, &mut self.context);
        }
        self.own.counters.store(&self.lookup.counters);
    }

    /// The flow that a packet with this key matches.
    pub fn lookup(&mut self, key: &Key) -> Option<FlowId> {
        let guard = self.reader.enter();
        let section = Section::new(&self.shared, &guard);
        let found = self.lookup.find(&section, LookupKey::new(key));
        found.map(|(slot, r)| FlowId { slot, generation: r.generation() })
    }

    /// A flow as installed, if it is there still.
    pub fn flow(&mut self, id: FlowId) -> Option<Flow> {
        self.with_record(id, |_, record| record.flow())
    }

    /// Packets that this worker has counted for a flow.
    pub fn packets(&mut self, id: FlowId) -> u64 {
        let count = |own: &WorkerShared, record: &FlowRecord| {
            own.flows.get(id.slot, record.stats_generation()).packets
        };
        self.with_record(id, count).unwrap_or(0)
    }

    /// A meter, if it is there still.
    pub fn meter(&mut self, id: u32) -> Option<MeterHandle> {
        let guard = self.reader.enter();
        self.shared.meters.view(&guard).get(id).map(|meter| MeterHandle(Arc::clone(meter)))
    }

    fn with_record<R>(
        &mut self,
        id: FlowId,
        look: impl FnOnce(&WorkerShared, &FlowRecord) -> R,
    ) -> Option<R> {
        let guard = self.reader.enter();
        let record = self.shared.table.slots.view(&guard).get(id.slot)?;
        (record.generation() == id.generation).then(|| look(&self.own, record))
    }

    /// This worker's counters.
    pub fn counters(&self) -> Counters {
        self.lookup.counters
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.own.counters.store(&self.lookup.counters);
        self.shared.abandon(&self.own);
    }
}

/// The last step of a batch: counts, actions, recirculation.
struct Run<'r, 'g, S> {
    section: Section<'g>,
    lookup: &'r mut Lookup,
    own: &'r WorkerShared,
    /// One for each recirculation that a packet is not within.
    spare_keys: &'r mut Vec<KeyBuf>,
    /// Of the packet that is being processed.
    recursion: Recursion,
    now: u64,
    sink: &'r mut S,
}

impl<S: Sink> Run<'_, '_, S> {
    #[inline(always)]
    fn act(
        &mut self,
        found: Found<'_>,
        key: &KeyBuf,
        layers: &Layers,
        packet: &mut Packet,
        context: &mut Context,
    ) {
        match found {
            Some((slot, record)) => self.hit(slot, record, key, layers, packet, context),
            None => self.miss(key, packet),
        }
    }

    #[inline(always)]
    fn hit(
        &mut self,
        slot: u32,
        record: &FlowRecord,
        key: &KeyBuf,
        layers: &Layers,
        packet: &mut Packet,
        context: &mut Context,
    ) {
        self.lookup.counters.hits += 1;
        let (bytes, flags) = (packet.len() as u64, key.key().tcp_flags.get());
        if let Some(entry) = self.own.flows.entry(slot) {
            entry.count(record.stats_generation(), bytes, self.now, flags);
        }
        self.sink.matched(FlowId { slot, generation: record.generation() }, key.key());
        execute(record.program(), packet, key.key(), layers, context, self);
    }

    #[cold]
    fn miss(&mut self, key: &KeyBuf, packet: &Packet) {
        self.lookup.counters.misses += 1;
        if !upcall_miss(self.sink, key.key(), packet) {
            self.lookup.counters.lost += 1;
        }
    }
}

/// Hands a missed packet, finished, to the user. A packet of several segments is one miss, and lost once if any of them is.
pub(crate) fn upcall_miss(sink: &mut impl Sink, key: &Key, packet: &Packet) -> bool {
    if packet.offload.is_none() {
        return sink.upcall(Upcall::Miss { key, packet });
    }
    let mut segment = packet.clone();
    let mut taken = true;
    finish(packet.bytes(), packet.offload, |whole| {
        segment.fill(whole, packet.metadata);
        segment.packet_type = packet.packet_type;
        taken &= sink.upcall(Upcall::Miss { key, packet: &segment });
    });
    taken
}

impl<S: Sink> actions::Sink for Run<'_, '_, S> {
    #[inline(always)]
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.sink.output(port, packet);
    }

    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        self.sink.output_with(port, packet);
    }

    fn upcall(&mut self, upcall: ActionUpcall<'_>) {
        if !self.sink.upcall(Upcall::Action(upcall)) {
            self.lookup.counters.lost += 1;
        }
    }

    fn recirc(&mut self, context: &mut Context, packet: &mut Packet) {
        if !self.recursion.enter() {
            self.lookup.counters.recirc_limit += 1;
            return self.sink.dropped(Dropped::RecircLimit);
        }
        // There are as many as the longest chain takes.
        let mut key = self.spare_keys.pop().unwrap_or_default();
        self.lookup.counters.recirculations += 1;
        let layers = extract_packet(packet, &mut key);
        let section = self.section;
        let found = self.lookup.find(&section, LookupKey::of(&key));
        self.act(found, &key, &layers, packet, context);
        self.spare_keys.push(key);
        self.recursion.leave();
    }

    fn meter(&mut self, id: u32, bytes: usize) -> bool {
        self.section.meters.get(id).is_some_and(|meter| meter.exceeded(bytes, self.now))
    }

    fn psample(&mut self, record: PsampleRecord<'_>) {
        self.sink.psample(record);
    }

    fn dropped(&mut self, reason: DropReason) {
        self.sink.dropped(Dropped::Action(reason));
    }
}
