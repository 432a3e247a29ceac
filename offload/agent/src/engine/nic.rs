//! NIC and softpath together: a NIC behind its driver, the planner between them.
//!
//! The NIC's slow path and the planner take turns in one thread: what left the NIC, then everything that it gave to the slow
//! queues, then completions and events. A packet of a capture is through before the next one goes in; what a failed device
//! did not take, or was given and did not send, goes the softpath's way. What is around the NIC, a simulation in this thread
//! or wires of this host and real time, is a [`Harness`].
//!
//! A device outside is out of sight: a packet is through when the counters of the flows and the slow queues together have
//! it, and at the end its flows are deleted, since an answer to that has a flow's last counters.

use super::harness::{Harness, Injected};
use super::{Arrival, FlowTotals, Out, PacketCounts, Run, metadata, to_ms};
use crate::ledger::{Ledger, Outlet};
use anyhow::{Context, Result, anyhow, bail};
use flowlift_driver::nic::{Nic, NicCaps, NicError, NicPort, NicState, SlowTx, Stage};
use flowlift_flow::{Flow, Metadata, PortNo};
use flowlift_offload::planner::{self, FlowSource, Planner, Reason, State};
use flowlift_offload::ports::PortMap;
use flowlift_offload::recirc;
use flowlift_port::PortError;
use flowlift_softpath::{Batch, Datapath, FlowId, Sink, Upcall, Worker};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Packets between two audits, entries read back in each, counters compared in each, and turns that it may take.
const AUDIT_PACKETS: u64 = 64;
const AUDIT_ENTRIES: usize = 4;
const AUDIT_COUNTERS: u32 = 32;
const AUDIT_TURNS: u32 = 4096;

/// Batches from the slow queues in one turn.
const SLOW_BATCHES: u32 = 16;
/// Packets of the slow path that wait for room in a TX ring of a device outside; what comes beyond is lost, and counted.
const UNSENT_MAX: usize = 4096;
/// Packets in a row that may get lost on their way to a device outside before the wires are said to be no way.
const LOST_MAX: u32 = 3;
/// How long nothing may leave a device outside before nothing more is expected.
const QUIET: Duration = Duration::from_millis(20);
/// The longest that a NIC is waited for before it is let go of, while packets keep coming.
const RELEASE: Duration = Duration::from_millis(200);
/// Time between two looks at whether a live run is to stop.
const LOOK: Duration = Duration::from_millis(1);
/// Turns of a live run without any packet before it waits for an interrupt.
const SPIN_TURNS: u32 = 256;

/// What a run with a NIC needs.
pub struct NicSetup<N = Box<dyn Nic>, H = Box<dyn Harness>> {
    // The driver stops the device before its surroundings go.
    /// The NIC's driver.
    pub nic: N,
    /// What is around it.
    pub harness: H,
    /// Datapath ports that are the NIC's.
    pub ports: PortMap,
    /// Flows may be where the NIC does not count their packets.
    pub uncounted: bool,
}

impl<N: Nic + 'static, H: Harness + 'static> NicSetup<N, H> {
    /// The same, whatever NIC it is.
    pub fn boxed(self) -> NicSetup {
        NicSetup {
            nic: Box::new(self.nic),
            harness: Box::new(self.harness),
            ports: self.ports,
            uncounted: self.uncounted,
        }
    }
}

/// What there is to say of the NIC after a run.
#[derive(Debug, Clone)]
pub struct NicSummary {
    /// State of the device.
    pub state: NicState,
    /// Violations of the device's protocol: a bug of the driver if not 0. `None`: the device does not tell.
    pub violations: Option<u32>,
    /// Faults that were injected, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the audits found.
    pub audit: Audit,
    /// The planner's counts.
    pub planner: planner::Stats,
    /// Packets that were sent to a device outside and of which nothing was seen again.
    pub lost: u64,
    /// Packets of the slow path that a device outside did not send: a port without link, or a ring that stays full.
    pub unsent: u64,
    /// The host asked for the device back.
    pub given_back: bool,
}

/// Counters as the device gives them in bulk, against those that it keeps in host memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audit {
    /// Entries compared.
    pub counters: u64,
    /// Entries whose counters disagreed.
    pub disagree: u64,
}

/// A flow at the end of its life in a device outside.
#[derive(Debug, Clone)]
struct Last {
    state: (State, Option<Reason>),
    totals: FlowTotals,
    counted: bool,
}

/// What the flows say of where their packets go on: see [`NicRun::is_accounted`].
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Its packets come from a wire, not from another flow.
    first: bool,
    /// Its packets go on to another flow.
    hop: bool,
}

/// Packets from the slow queues.
#[derive(Debug, Clone, Copy, Default)]
struct SlowCount {
    /// Those that no flow in hardware had.
    first: u64,
    /// Those that came out of a later stage.
    later: u64,
    /// Those that never were in the NIC.
    around: u64,
}

impl SlowCount {
    fn all(self) -> u64 {
        self.first + self.later + self.around
    }
}

/// See the module's head.
pub struct NicRun {
    // In this order: the driver stops the device before its surroundings go.
    nic: Option<Box<dyn Nic>>,
    harness: Box<dyn Harness>,
    caps: NicCaps,
    state: NicState,
    planner: Planner,
    datapath: RefCell<Datapath>,
    worker: Worker,
    batch: Batch,
    flows: Vec<FlowId>,
    ways: Vec<Way>,
    route: Route,
    total: u64,
    slow: SlowCount,
    /// Packets given to a device outside, less those that got lost on the way, and the last of them if it is on a wire.
    entered: u64,
    on_wire: Option<(NicPort, Vec<u8>)>,
    lost: u64,
    lost_in_a_row: u32,
    /// Why the wire did not take the last packet.
    refused: Option<PortError>,
    live: bool,
    given_back: bool,
    /// What is known of a device that was let go of.
    violations: Option<u32>,
    stats: Option<planner::Stats>,
    last: Vec<Last>,
    audit: Audit,
}

/// Where the softpath's packets go: into the ledger, or into the NIC's TX queue by way of `unsent`.
struct Route {
    out: Out,
    ports: PortMap,
    /// No NIC any more: its ports' packets leave by other means.
    nic_gone: bool,
    unsent: VecDeque<(SlowTx, Vec<u8>)>,
    /// How many may wait there.
    unsent_max: usize,
    dropped: u64,
}

impl Sink for Route {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        match self.ports.nic(port) {
            Some(_) if !self.nic_gone && self.unsent.len() >= self.unsent_max => self.dropped += 1,
            Some(nic) if !self.nic_gone => self.unsent.push_back((SlowTx::Port(nic), packet.to_vec())),
            _ => self.out.output(port, packet),
        }
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        self.out.upcall(upcall)
    }
}

/// The softpath's table as the planner reads it.
struct Table<'a> {
    datapath: &'a RefCell<Datapath>,
    flows: &'a [FlowId],
}

impl Table<'_> {
    fn id(&self, id: planner::FlowId) -> Option<FlowId> {
        self.flows.get(id.0 as usize).copied()
    }
}

impl FlowSource for Table<'_> {
    fn flow(&self, id: planner::FlowId) -> Option<Flow> {
        self.datapath.borrow_mut().flow(self.id(id)?)
    }

    fn packets(&self, id: planner::FlowId) -> u64 {
        self.id(id).and_then(|id| self.datapath.borrow_mut().stats(id)).map_or(0, |stats| stats.packets)
    }
}

/// The planner's name of the flow that was loaded as number `flow`.
fn planned(flow: usize) -> planner::FlowId {
    planner::FlowId(u32::try_from(flow).unwrap_or(u32::MAX))
}

impl From<planner::Counters> for FlowTotals {
    fn from(counted: planner::Counters) -> Self {
        Self { packets: counted.packets, bytes: counted.bytes, tcp_flags: counted.tcp_flags }
    }
}

impl NicRun {
    /// Offers every flow to the NIC; `flows` are the datapath's in the order of loading. Returns when each has an answer.
    ///
    /// # Errors
    /// The device makes no progress at all.
    pub fn new(
        setup: NicSetup,
        datapath: Datapath,
        flows: Vec<FlowId>,
        seed: u64,
        ledger: Ledger,
        mut progress: impl FnMut(u64),
    ) -> Result<Self> {
        let NicSetup { nic, harness, ports, uncounted } = setup;
        let mut worker = datapath.worker();
        worker.reseed(seed);
        let mut planner = Planner::new(nic.caps(), &ports);
        if uncounted {
            planner.accept_uncounted();
        }
        let route = Route {
            out: Out::new(ledger),
            ports,
            nic_gone: false,
            unsent: VecDeque::new(),
            unsent_max: if harness.is_outside() { UNSENT_MAX } else { usize::MAX },
            dropped: 0,
        };
        let mut run = Self {
            caps: nic.caps().clone(),
            state: nic.state(),
            nic: Some(nic),
            harness,
            planner,
            datapath: RefCell::new(datapath),
            worker,
            batch: Batch::new(),
            ways: Vec::with_capacity(flows.len()),
            flows,
            route,
            total: 0,
            slow: SlowCount::default(),
            entered: 0,
            on_wire: None,
            lost: 0,
            lost_in_a_row: 0,
            refused: None,
            live: false,
            given_back: false,
            violations: None,
            stats: None,
            last: Vec::new(),
            audit: Audit::default(),
        };
        for n in 0..run.flows.len() {
            let flow = run
                .datapath
                .borrow_mut()
                .flow(run.flows[n])
                .context("a flow vanished while it was offered")?;
            run.ways.push(Way { first: recirc::recirc_id(&flow) == 0, hop: recirc::hop(&flow).is_some() });
            run.planner.put(planned(n), &flow);
            if n % 4096 == 4095 {
                run.turn();
                progress(n as u64 + 1);
            }
        }
        run.settle()?;
        progress(run.flows.len() as u64);
        Ok(run)
    }

    /// What the NIC said of itself.
    pub fn caps(&self) -> &NicCaps {
        &self.caps
    }

    /// Every table of the NIC counts packets. If not, it is not known of each packet when it is through, and a live run does
    /// not know how many the NIC handled.
    pub fn counts_packets(&self) -> bool {
        self.caps.tables.iter().all(|table| table.counters.traffic)
    }

    /// False for a flow some of whose packets the NIC may have handled without counting.
    pub fn is_counted(&self, flow: usize) -> bool {
        self.last.get(flow).map_or_else(|| self.planner.is_counted(planned(flow)), |last| last.counted)
    }

    /// Datapath ports that are the NIC's.
    pub fn ports(&self) -> &PortMap {
        &self.route.ports
    }

    /// Where a flow is, and why it is not in hardware.
    pub fn state(&self, flow: usize) -> (State, Option<Reason>) {
        match self.last.get(flow) {
            Some(last) => last.state,
            None => self.planner.state(planned(flow)).unwrap_or((State::Software, Some(Reason::NoFlow))),
        }
    }

    /// What hardware counted for a flow.
    pub fn hardware_totals(&self, flow: usize) -> FlowTotals {
        match (self.last.get(flow), &self.nic) {
            (Some(last), _) => last.totals,
            (None, Some(nic)) => self.planner.counters(planned(flow), nic.as_ref()).into(),
            (None, None) => FlowTotals::default(),
        }
    }

    /// What software counted for a flow.
    pub fn software_totals(&self, flow: usize) -> FlowTotals {
        let stats = self.flows.get(flow).and_then(|id| self.datapath.borrow_mut().stats(*id));
        stats.map(FlowTotals::from).unwrap_or_default()
    }

    /// What there is to say of the NIC.
    pub fn summary(&self) -> NicSummary {
        NicSummary {
            state: self.nic.as_ref().map_or(self.state, |nic| nic.state()),
            violations: self.violations.or_else(|| self.harness.violations(self.nic.as_deref())),
            faults: self.harness.faults(),
            audit: self.audit,
            planner: self.stats.unwrap_or_else(|| self.planner.stats()),
            lost: self.lost,
            unsent: self.route.dropped,
            given_back: self.given_back,
        }
    }

    /// Serves what arrives on the NIC's wires for `time`, until `stop` is readable, the NIC is gone, or the host wants it
    /// back.
    pub fn serve(&mut self, time: Duration, stop: Option<BorrowedFd<'_>>) {
        self.live = true;
        let start = Instant::now();
        let mut idle = 0u32;
        let mut looked = start;
        while start.elapsed() < time && !self.route.nic_gone {
            self.given_back = self.harness.is_wanted_back();
            if self.given_back {
                break;
            }
            // By the clock, since packets may keep coming.
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if stop.is_some_and(|stop| super::harness::readable(&[stop], 0u8.into())) {
                    break;
                }
            }
            self.route.out.now_ns = self.harness.now_ns();
            if self.turn() {
                idle = 0;
                continue;
            }
            idle = idle.saturating_add(1);
            if idle >= SPIN_TURNS {
                self.rest(stop);
            }
        }
    }

    /// Waits for an interrupt, unless something came since the last one.
    fn rest(&mut self, stop: Option<BorrowedFd<'_>>) {
        // Cleared before the rings are looked at, so that what comes after the look ends the wait.
        if let Some(interrupt) = self.nic.as_ref().and_then(|nic| nic.interrupt()) {
            // It may well be clear.
            let _ = nix::unistd::read(interrupt, &mut [0; 8]);
        }
        if !self.turn() {
            self.harness.wait(self.nic.as_ref().and_then(|nic| nic.interrupt()), stop);
        }
    }

    /// Lets go of a NIC outside: takes its last packets and counters, empties its tables and closes it. What arrives later
    /// is the softpath's.
    ///
    /// # Errors
    /// The device makes no progress at all.
    pub fn release(&mut self) -> Result<()> {
        if !self.harness.is_outside() || self.nic.is_none() {
            return Ok(());
        }
        let states: Vec<_> =
            (0..self.flows.len()).map(|flow| (self.state(flow), self.is_counted(flow))).collect();
        self.stats = Some(self.planner.stats());
        (0..self.flows.len()).for_each(|flow| self.planner.remove(planned(flow)));
        let mut totals = vec![FlowTotals::default(); self.flows.len()];
        let mut left = self.flows.len();
        let removed = self.turn_while(|run| {
            for (flow, counters) in run.planner.take_removed() {
                left = left.saturating_sub(1);
                if let Some(totals) = totals.get_mut(flow.0 as usize) {
                    *totals = counters.into();
                }
            }
            left > 0
        });
        if !removed {
            bail!("the NIC does not let go of its flows: {left} are left");
        }
        // What the device sent before its answers is on its way, at the most.
        // Without flows in the tables all that arrives comes here, and that need not end: then the NIC is left in the middle.
        let start = Instant::now();
        let mut quiet = start;
        while quiet.elapsed() < QUIET && start.elapsed() < RELEASE && !self.route.nic_gone {
            if self.turn() {
                quiet = Instant::now();
            }
        }
        self.drain();
        self.violations = self.harness.violations(self.nic.as_deref());
        let last = states.into_iter().zip(totals);
        self.last = last.map(|((state, counted), totals)| Last { state, totals, counted }).collect();
        if self.live {
            let hits = self.last.iter().zip(&self.ways).filter(|(_, way)| way.first);
            self.total = self.slow.first + hits.map(|(last, _)| last.totals.packets).sum::<u64>();
        }
        if let Some(nic) = self.nic.take() {
            self.state = nic.state();
            self.route.dropped += (self.route.unsent.drain(..).len() + nic.tx_pending()) as u64;
        }
        self.route.nic_gone = true;
        Ok(())
    }

    /// Sends what was taken from the NIC, and takes nothing more.
    fn drain(&mut self) {
        let mut idle = 0;
        while !self.route.unsent.is_empty() || self.nic.as_ref().is_some_and(|nic| nic.tx_pending() > 0) {
            self.pump();
            if self.collect() | self.transmit() {
                idle = 0;
                continue;
            }
            idle += 1;
            if self.route.nic_gone || !self.harness.idle(idle, false) {
                break;
            }
        }
    }

    /// Turns until nothing is under way.
    fn settle(&mut self) -> Result<()> {
        if self.turn_while(|run| run.is_busy()) {
            self.on_wire = None;
            self.lost_in_a_row = 0;
            return Ok(());
        }
        self.stuck()
    }

    /// Turns while `busy`, but not for ever: false if nothing comes of it.
    fn turn_while(&mut self, mut busy: impl FnMut(&mut Self) -> bool) -> bool {
        let (mut idle, mut answers) = (0, 0);
        while busy(self) {
            let stats = self.planner.stats();
            let now = stats.inserted + stats.replaced + stats.deleted;
            if self.turn() || (self.harness.is_outside() && now != answers) {
                (idle, answers) = (0, now);
                continue;
            }
            idle += 1;
            if !self.harness.idle(idle, !self.planner.is_idle()) {
                return false;
            }
        }
        true
    }

    /// What it means that nothing moves although something is under way.
    fn stuck(&mut self) -> Result<()> {
        if !self.harness.is_outside() || !self.planner.is_idle() {
            bail!("the NIC makes no progress, and neither answers nor fails: a bug");
        }
        let held = self.route.unsent.len() + self.nic.as_ref().map_or(0, |nic| nic.tx_pending());
        if held > 0 {
            bail!("the NIC does not send {held} packets that the softpath gave it: has each port link?");
        }
        let port = self.on_wire.take().map_or(0, |(port, _)| port.0);
        if let Some(error) = self.refused.take() {
            return Err(
                anyhow!(error).context(format!("cannot send on the wire of port p{}", port.wrapping_sub(1)))
            );
        }
        self.lost += 1;
        self.entered = self.entered.saturating_sub(1);
        self.lost_in_a_row += 1;
        if self.lost_in_a_row >= LOST_MAX {
            bail!(
                "nothing was seen of {LOST_MAX} packets in a row: is what --wire names the other end of the wires of the NIC's ports, and have all of them link?"
            );
        }
        Ok(())
    }

    /// Reads some entries back, which the planner compares with its flows, and compares some counters.
    fn audit(&mut self) -> Result<()> {
        let Some(nic) = self.nic.as_deref_mut().filter(|nic| nic.state() == NicState::Ready) else {
            return Ok(());
        };
        // What an earlier audit asked for and a reset delayed would be compared with later counters.
        while nic.take_snapshot().is_some() {}
        self.planner.verify(nic, AUDIT_ENTRIES);
        if self.harness.is_outside() {
            // Somebody else may be sending, so that counters move between two looks.
            return Ok(());
        }
        let tables = &self.caps.tables;
        let turn = usize::try_from(self.total / AUDIT_PACKETS).unwrap_or(0);
        let Some(table) = tables.get(turn % tables.len().max(1)) else { return Ok(()) };
        let count = AUDIT_COUNTERS.min(table.max_entries);
        if let Err(error) = nic.snapshot(table.id, 0, count) {
            tracing::debug!(%error, "counter snapshot");
            return Ok(());
        }
        let losses = self.planner.stats().tables_lost;
        let (mut left, mut turns) = (count, 0);
        // A reset meanwhile leaves the rest out. An answer that got lost takes until the driver asks again.
        while left > 0 && turns < AUDIT_TURNS && self.planner.stats().tables_lost == losses {
            self.turn();
            turns += 1;
            if turns > AUDIT_TURNS / 2 {
                self.harness.idle(turns, true);
            }
            let Some(nic) = self.nic.as_deref_mut() else { break };
            while let Some((id, counters)) = nic.take_snapshot() {
                left = left.saturating_sub(1);
                let Some(counters) = counters else { continue };
                self.audit.counters += 1;
                self.audit.disagree += u64::from(counters != nic.counters(id));
            }
        }
        self.settle()
    }

    fn is_busy(&self) -> bool {
        !self.planner.is_idle()
            || !self.route.unsent.is_empty()
            || self.nic.as_ref().is_some_and(|nic| nic.tx_pending() > 0)
            || self.harness.is_loaded()
            || !self.route.nic_gone && !self.is_accounted()
    }

    /// Every packet that went out of sight was seen again: it hit a flow in hardware or came to a slow queue, and if the
    /// flow passed it on, so it did in the next stage.
    fn is_accounted(&self) -> bool {
        let Some(nic) = self.nic.as_deref().filter(|_| self.entered > 0 && self.counts_packets()) else {
            return true;
        };
        let (mut first, mut later, mut hops) = (self.slow.first, self.slow.later, 0);
        for (flow, way) in self.ways.iter().enumerate() {
            let packets = self.planner.counters(planned(flow), nic).packets;
            *(if way.first { &mut first } else { &mut later }) += packets;
            hops += if way.hop { packets } else { 0 };
        }
        first >= self.entered && later >= hops
    }

    /// One turn of device, slow path and planner. True if a packet moved.
    fn turn(&mut self) -> bool {
        self.harness.step();
        let mut moved = self.collect();
        moved |= self.slow_path();
        self.pump();
        if self.nic.as_ref().is_some_and(|nic| nic.state() == NicState::Gone) {
            moved |= self.survive();
        } else {
            moved |= self.transmit();
        }
        moved
    }

    /// Completions, events, updates; and what a failed device did not send.
    fn pump(&mut self) {
        let Some(nic) = self.nic.as_deref_mut() else { return };
        let table = Table { datapath: &self.datapath, flows: &self.flows };
        self.planner.pump(nic, &table, self.harness.now_ns());
        // What a failed device was given and did not send comes first again, and by now it may have been reset.
        for packet in nic.take_unsent().into_iter().rev() {
            self.route.unsent.push_front(packet);
        }
    }

    /// Takes what left the NIC.
    fn collect(&mut self) -> bool {
        let route = &mut self.route;
        self.harness.collect(&mut |nic_port, frame| {
            if let Some(port) = route.ports.dp(nic_port) {
                route.out.ledger.record(Outlet::Port(port), frame, route.out.now_ns);
            }
        })
    }

    /// Runs what the NIC's tables did not finish.
    fn slow_path(&mut self) -> bool {
        let mut any = false;
        for _ in 0..SLOW_BATCHES {
            let Some(nic) = self.nic.as_deref_mut() else { break };
            let (batch, ports, slow) = (&mut self.batch, &self.route.ports, &mut self.slow);
            let room = flowlift_softpath::BATCH;
            let received = nic.rx(room, &mut |packet, frame| {
                // A port of the NIC that the datapath does not have.
                let Some(PortNo(in_port)) = ports.dp(packet.port) else { return };
                *(if packet.stage == Stage(0) { &mut slow.first } else { &mut slow.later }) += 1;
                batch.push(frame, Metadata { in_port, recirc_id: packet.metadata, ..Metadata::default() });
            });
            if let Err(error) = &received {
                tracing::debug!(%error, "slow queues");
            }
            // What came before an error is in the batch.
            if !self.batch.is_empty() {
                any = true;
                self.software_batch();
            } else if received.unwrap_or(0) == 0 {
                break;
            }
        }
        any
    }

    fn software_batch(&mut self) {
        self.worker.process(&mut self.batch, to_ms(self.route.out.now_ns), &mut self.route);
        self.batch.clear();
    }

    /// Runs a packet that no NIC takes.
    fn software(&mut self, in_port: u32, frame: &[u8]) {
        self.slow.around += 1;
        self.batch.push(frame, Metadata { in_port, ..Metadata::default() });
        self.software_batch();
    }

    /// Hands the softpath's packets to the NIC.
    fn transmit(&mut self) -> bool {
        let (mut any, mut refused) = (false, Vec::new());
        let outside = self.harness.is_outside();
        let Some(nic) = self.nic.as_deref_mut() else { return false };
        while let Some((to, frame)) = self.route.unsent.pop_front() {
            // It would wait for the link, and everything behind it.
            if outside && matches!(to, SlowTx::Port(port) if !nic.link(port)) {
                self.route.dropped += 1;
                continue;
            }
            match nic.tx(to, &frame) {
                Ok(true) => any = true,
                // No frame for a NIC: too short or too long.
                Err(NicError::Invalid(why)) => {
                    tracing::debug!(why, "a frame that the NIC does not send");
                    refused.push((to, frame));
                }
                other => {
                    if let Err(error) = other {
                        tracing::debug!(%error, "transmit");
                    }
                    self.route.unsent.push_front((to, frame));
                    break;
                }
            }
        }
        // All that the slow queues gave is with the NIC again, or done.
        if self.route.unsent.is_empty()
            && let Err(error) = nic.slow_done()
        {
            tracing::debug!(%error, "slow queues");
        }
        for (to, frame) in refused {
            any = true;
            self.by_other_means(to, &frame);
        }
        any
    }

    /// What the NIC was to do with a packet, without it.
    fn by_other_means(&mut self, to: SlowTx, frame: &[u8]) {
        let (SlowTx::Port(nic_port) | SlowTx::Pipeline(nic_port)) = to;
        let port = self.route.ports.dp(nic_port);
        match (to, port) {
            (SlowTx::Port(_), Some(port)) => self.route.out.output(port, frame),
            (SlowTx::Port(_), None) => {}
            (SlowTx::Pipeline(_), port) => {
                self.entered = self.entered.saturating_sub(1);
                self.software(port.map_or(u32::MAX, |port| port.0), frame);
            }
        }
    }

    /// Without a NIC: what it had sent and not sent leaves, then what it gave up and what it had not taken goes through the
    /// softpath.
    fn survive(&mut self) -> bool {
        let mut any = self.collect();
        self.route.nic_gone = true;
        let (sent, entering): (Vec<_>, Vec<_>) =
            self.route.unsent.drain(..).partition(|(to, _)| matches!(to, SlowTx::Port(_)));
        for (to, frame) in sent {
            any = true;
            self.by_other_means(to, &frame);
        }
        any |= self.slow_path();
        for (to, frame) in entering {
            any = true;
            self.by_other_means(to, &frame);
        }
        let mut left = self.harness.take_back();
        if let Some(on_wire) = self.on_wire.take()
            && !self.is_accounted()
        {
            self.entered = self.entered.saturating_sub(1);
            left.push(on_wire);
        }
        self.refused = None;
        for (nic_port, frame) in left {
            any = true;
            let in_port = self.route.ports.dp(nic_port).map_or(u32::MAX, |port| port.0);
            self.software(in_port, &frame);
        }
        any
    }

    /// Gives a packet to the NIC: by the port's wire, or where that ends elsewhere, into the pipeline.
    fn enter(&mut self, port: NicPort, frame: &[u8]) -> Result<()> {
        match self.harness.inject(port, frame) {
            Injected::InSight => return Ok(()),
            Injected::NoWire => {
                self.route.unsent.push_back((SlowTx::Pipeline(port), frame.to_vec()));
            }
            Injected::OutOfSight => self.on_wire = Some((port, frame.to_vec())),
            Injected::Refused(_) if !self.harness.is_outside() => {
                bail!("a wire of the NIC is full although every packet before was through: a bug");
            }
            // If that is because the NIC is gone, it will soon be known.
            Injected::Refused(error) => {
                self.refused = Some(error);
                self.on_wire = Some((port, frame.to_vec()));
            }
        }
        self.entered += 1;
        Ok(())
    }
}

impl Run for NicRun {
    fn arrive(&mut self, arrivals: &[Arrival<'_>]) -> Result<()> {
        for arrival in arrivals {
            self.total += 1;
            self.route.out.now_ns = arrival.now_ns;
            self.harness.arrive_at(arrival.now_ns);
            match self.route.ports.nic(arrival.port) {
                Some(port) if !self.route.nic_gone => self.enter(port, arrival.frame)?,
                _ => self.software(metadata(arrival).in_port, arrival.frame),
            }
            self.settle()?;
            if self.total.is_multiple_of(AUDIT_PACKETS) {
                self.audit()?;
            }
            if self.nic.is_some() && self.harness.is_wanted_back() {
                self.given_back = true;
                self.release()?;
            }
        }
        Ok(())
    }

    fn counts(&self) -> PacketCounts {
        let (slow, missed) = (self.slow.all(), self.route.out.misses);
        PacketCounts {
            total: self.total,
            hardware: self.total.saturating_sub(slow + self.lost),
            software: slow.saturating_sub(missed),
            missed,
        }
    }

    fn is_counted(&self, flow: usize) -> bool {
        NicRun::is_counted(self, flow)
    }

    fn totals(&mut self, flow: usize) -> FlowTotals {
        self.hardware_totals(flow).plus(self.software_totals(flow))
    }

    fn flow(&mut self, flow: usize) -> Option<Flow> {
        self.datapath.borrow_mut().flow(*self.flows.get(flow)?)
    }

    fn sees(&self, port: PortNo) -> bool {
        self.route.ports.nic(port).is_none_or(|nic| self.harness.sees(nic))
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.route.out.ledger
    }
}
