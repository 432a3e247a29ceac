//! The reference datapath: every flow is compared with every packet, one packet at a time.
//!
//! It is what `--check` and the property tests hold the fast one against, so it shares as little as possible with it: no
//! subtables, hashes, caches or batches, its own recirculation and its own counters. Key extraction and the execution of
//! single actions are shared; they are compared with Open vSwitch itself elsewhere.

use crate::actions::{
    self, ActionUpcall, Context, DropReason, Program, PsampleRecord, Unsupported, compile, execute,
};
use crate::extract::{KeyBuf, extract_packet};
use crate::meter::{self, MeterConfig, MeterError};
use crate::packet::{Outgoing, Packet};
use crate::recursion::Recursion;
use crate::stats::{Counters, FlowStats};
use crate::table::FlowId;
use crate::worker::{Dropped, Sink, Upcall, upcall_miss};
use flowlift_flow::{Flow, Match, PortNo, Ufid};
use std::collections::BTreeMap;

/// A flow of the reference datapath.
#[derive(Debug)]
pub struct ReferenceFlow {
    /// The flow as installed.
    pub flow: Flow,
    /// Its statistics.
    pub stats: FlowStats,
    /// Its number, counted from 0 in the order of installation: the slot of the [`FlowId`] that sinks see.
    pub number: u32,
    program: Program,
}

/// A meter, with the level of each band's bucket.
#[derive(Debug)]
struct ReferenceMeter {
    config: MeterConfig,
    levels: Vec<u64>,
    used: u64,
}

impl ReferenceMeter {
    fn exceeded(&mut self, bytes: usize, now: u64) -> bool {
        let idle = now.saturating_sub(self.used);
        self.used = self.used.max(now);
        let cost = self.config.unit.cost(bytes);
        let mut exceeded = false;
        for (band, level) in self.config.bands.iter().zip(&mut self.levels) {
            let filled = level.saturating_add(idle.saturating_mul(band.rate.into()));
            *level = filled.min(u64::from(band.burst) * 1000);
            match level.checked_sub(cost) {
                Some(rest) => *level = rest,
                None => exceeded |= band.rate > 0,
            }
        }
        exceeded
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Reference {
    flows: Vec<ReferenceFlow>,
    meters: BTreeMap<u32, ReferenceMeter>,
    next_number: u32,
    counters: Counters,
    context: Context,
}

/// True if the two match the same packets by the same mask.
fn same_match(a: &Match, b: &Match) -> bool {
    a.mask == b.mask && a.mask.matches(&a.key, &b.key)
}

impl Reference {
    /// An empty datapath. With the same seed, sample actions decide as a [`crate::Worker`]'s do.
    pub fn new(seed: u64) -> Self {
        let (flows, counters, context) = (Vec::new(), Counters::default(), Context::new(seed));
        Self { flows, meters: BTreeMap::new(), next_number: 0, counters, context }
    }

    /// Adds or replaces a meter.
    pub fn set_meter(&mut self, id: u32, config: MeterConfig) -> Result<(), MeterError> {
        meter::check(id, &config)?;
        let levels = config.bands.iter().map(|band| u64::from(band.burst) * 1000).collect();
        self.meters.insert(id, ReferenceMeter { config, levels, used: 0 });
        Ok(())
    }

    /// Starts the sequence of sample decisions anew.
    pub fn reseed(&mut self, seed: u64) {
        self.context.reseed(seed);
    }

    /// Adds a flow, or replaces the actions of the one with the same match.
    pub fn put(&mut self, flow: &Flow) -> Result<(), Unsupported> {
        let program = compile(&flow.actions)?;
        match self.flows.iter_mut().find(|f| same_match(&f.flow.matching, &flow.matching)) {
            Some(old) => {
                old.flow.actions.clone_from(&flow.actions);
                old.program = program;
            }
            None => {
                let (flow, stats, number) = (flow.clone(), FlowStats::default(), self.next_number);
                self.next_number += 1;
                self.flows.push(ReferenceFlow { flow, stats, number, program });
            }
        }
        Ok(())
    }

    /// Deletes the flow with this match; gives its last statistics.
    pub fn delete(&mut self, matching: &Match) -> Option<FlowStats> {
        let at = self.flows.iter().position(|f| same_match(&f.flow.matching, matching))?;
        Some(self.flows.remove(at).stats)
    }

    /// Deletes all flows.
    pub fn flush(&mut self) {
        self.flows.clear();
    }

    /// The flows, in the order of installation.
    pub fn flows(&self) -> &[ReferenceFlow] {
        &self.flows
    }

    /// The flow with this UFID.
    pub fn find_ufid(&self, ufid: &Ufid) -> Option<&ReferenceFlow> {
        self.flows.iter().find(|f| f.flow.ufid.as_ref() == Some(ufid))
    }

    /// The flow with this mask and masked key.
    pub fn find_match(&self, matching: &Match) -> Option<&ReferenceFlow> {
        self.flows.iter().find(|f| same_match(&f.flow.matching, matching))
    }

    /// Counters. Those of caches and subtables stay zero.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Processes one packet, which is used up.
    pub fn process(&mut self, packet: &mut Packet, now: u64, sink: &mut impl Sink) {
        self.counters.packets += 1;
        let Self { flows, meters, counters, context, .. } = self;
        let mut pass = Pass { flows, meters, counters, now, recursion: Recursion::default(), sink };
        pass.look_up(packet, context);
    }
}

/// A packet's way.
struct Pass<'r, S> {
    flows: &'r mut [ReferenceFlow],
    meters: &'r mut BTreeMap<u32, ReferenceMeter>,
    counters: &'r mut Counters,
    now: u64,
    /// Recirculations that are still allowed.
    recursion: Recursion,
    sink: &'r mut S,
}

impl<S: Sink> Pass<'_, S> {
    fn look_up(&mut self, packet: &mut Packet, context: &mut Context) {
        let mut buf = KeyBuf::new();
        let layers = extract_packet(packet, &mut buf);
        let key = buf.key();
        let found = self.flows.iter_mut().find(|f| f.flow.matching.mask.matches(&f.flow.matching.key, key));
        let Some(found) = found else {
            self.counters.misses += 1;
            if !upcall_miss(self.sink, key, packet) {
                self.counters.lost += 1;
            }
            return;
        };
        self.counters.hits += 1;
        found.stats.count(packet.len() as u64, self.now, key.tcp_flags.get());
        self.sink.matched(FlowId { slot: found.number, generation: 0 }, key);
        let program = found.program.clone();
        execute(&program, packet, key, &layers, context, self);
    }
}

impl<S: Sink> actions::Sink for Pass<'_, S> {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.sink.output(port, packet);
    }

    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        self.sink.output_with(port, packet);
    }

    fn upcall(&mut self, upcall: ActionUpcall<'_>) {
        if !self.sink.upcall(Upcall::Action(upcall)) {
            self.counters.lost += 1;
        }
    }

    fn recirc(&mut self, context: &mut Context, packet: &mut Packet) {
        if !self.recursion.enter() {
            self.counters.recirc_limit += 1;
            return self.sink.dropped(Dropped::RecircLimit);
        }
        self.counters.recirculations += 1;
        self.look_up(packet, context);
        self.recursion.leave();
    }

    fn meter(&mut self, id: u32, bytes: usize) -> bool {
        self.meters.get_mut(&id).is_some_and(|meter| meter.exceeded(bytes, self.now))
    }

    fn psample(&mut self, record: PsampleRecord<'_>) {
        self.sink.psample(record);
    }

    fn dropped(&mut self, reason: DropReason) {
        self.sink.dropped(Dropped::Action(reason));
    }
}
