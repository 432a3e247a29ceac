//! NIC and softpath together: the simulated NIC behind the real driver, the planner between them.
//!
//! The device, its slow path and the planner take turns in one thread, so that a run replays from its seed: a device
//! step, then everything that it gave to the slow queues, then completions and events. A packet is through before the
//! next one goes in; what a failed device did not take, or was given and did not send, goes the softpath's way.

use super::{Arrival, FlowTotals, Out, PacketCounts, Run, metadata, to_ms};
use crate::ledger::{Ledger, Outlet};
use crate::open::STEP_NS;
use anyhow::{Context, Result, bail};
use flowlift_driver::fl1::Fl1;
use flowlift_driver::inproc::InProc;
use flowlift_driver::nic::{Nic, NicCaps, NicPort, NicState, SlowTx};
use flowlift_flow::{Flow, Metadata, PortNo};
use flowlift_offload::planner::{self, FlowSource, Planner, Reason, State};
use flowlift_offload::ports::PortMap;
use flowlift_sim::{Clock, ManualClock, MemoryWire};
use flowlift_softpath::{Batch, Datapath, FlowId, Sink, Upcall, Worker};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Device time of a step in which nothing went on: what waits for a deadline gets there.
const IDLE_STEP_NS: u64 = 1_000_000;
/// Idle steps after which the run gives up: a hundred times the longest deadline of the driver.
const IDLE_STEPS_MAX: u32 = 1_000_000;

/// Packets between two audits, entries read back in each, counters compared in each, and turns that it may take.
const AUDIT_PACKETS: u64 = 64;
const AUDIT_ENTRIES: usize = 4;
const AUDIT_COUNTERS: u32 = 32;
const AUDIT_TURNS: u32 = 4096;

/// What a run with a NIC needs.
pub struct NicSetup {
    /// The simulated device behind its in-process function.
    pub function: Arc<InProc<flowlift_sim::Fl1>>,
    /// Its driver.
    pub nic: Fl1,
    /// The clock that device and driver share.
    pub clock: ManualClock,
    /// Wires by NIC port.
    pub wires: BTreeMap<NicPort, MemoryWire>,
    /// Datapath ports that are the NIC's.
    pub ports: PortMap,
}

/// What there is to say of the NIC after a run.
#[derive(Debug, Clone)]
pub struct NicSummary {
    /// State of the device.
    pub state: NicState,
    /// Violations of the device's protocol: a bug of the driver if not 0.
    pub violations: u32,
    /// Faults that were injected, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the audits found.
    pub audit: Audit,
    /// The planner's counts.
    pub planner: planner::Stats,
}

/// Counters as the device gives them in bulk, against those that it keeps in host memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audit {
    /// Entries compared.
    pub counters: u64,
    /// Entries whose counters disagreed.
    pub disagree: u64,
}

/// See the module's head.
pub struct NicRun {
    function: Arc<InProc<flowlift_sim::Fl1>>,
    nic: Fl1,
    clock: ManualClock,
    wires: BTreeMap<NicPort, MemoryWire>,
    planner: Planner,
    datapath: RefCell<Datapath>,
    worker: Worker,
    batch: Batch,
    flows: Vec<FlowId>,
    route: Route,
    total: u64,
    slow: u64,
    audit: Audit,
}

/// Where the softpath's packets go: into the ledger, or into the NIC's TX queue by way of `unsent`.
struct Route {
    out: Out,
    ports: PortMap,
    /// No NIC any more: its ports' packets leave by other means.
    nic_gone: bool,
    unsent: VecDeque<(SlowTx, Vec<u8>)>,
}

impl Sink for Route {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        match self.ports.nic(port) {
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
        let NicSetup { function, nic, clock, wires, ports } = setup;
        let mut worker = datapath.worker();
        worker.reseed(seed);
        let planner = Planner::new(nic.caps(), &ports);
        let route = Route { out: Out::new(ledger), ports, nic_gone: false, unsent: VecDeque::new() };
        let (datapath, batch) = (RefCell::new(datapath), Batch::new());
        let mut run = Self {
            function,
            nic,
            clock,
            wires,
            planner,
            datapath,
            worker,
            batch,
            flows,
            route,
            total: 0,
            slow: 0,
            audit: Audit::default(),
        };
        for n in 0..run.flows.len() {
            let flow = run
                .datapath
                .borrow_mut()
                .flow(run.flows[n])
                .context("a flow vanished while it was offered")?;
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
        self.nic.caps()
    }

    /// Where a flow is, and why it is not in hardware.
    pub fn state(&self, flow: usize) -> (State, Option<Reason>) {
        self.planner.state(planned(flow)).unwrap_or((State::Software, Some(Reason::NoFlow)))
    }

    /// What hardware counted for a flow.
    pub fn hardware(&self, flow: usize) -> FlowTotals {
        let counted = self.planner.counters(planned(flow), &self.nic);
        FlowTotals { packets: counted.packets, bytes: counted.bytes, tcp_flags: counted.tcp_flags }
    }

    /// What software counted for a flow.
    pub fn software(&self, flow: usize) -> FlowTotals {
        let stats = self.flows.get(flow).and_then(|id| self.datapath.borrow_mut().stats(*id));
        stats.map(FlowTotals::from).unwrap_or_default()
    }

    /// What there is to say of the NIC.
    pub fn summary(&self) -> NicSummary {
        let device = self.function.model();
        let mut faults = BTreeMap::new();
        for fault in device.fault_log() {
            *faults.entry(fault.kind.name()).or_insert(0) += 1;
        }
        NicSummary {
            state: self.nic.state(),
            violations: device.violations_total(),
            faults,
            audit: self.audit,
            planner: self.planner.stats(),
        }
    }

    /// Turns until nothing is under way.
    fn settle(&mut self) -> Result<()> {
        let mut idle = 0;
        while self.busy() {
            if self.turn() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > IDLE_STEPS_MAX {
                bail!("the NIC makes no progress, and neither answers nor fails: a bug");
            }
            if idle > 2 {
                self.clock.advance(IDLE_STEP_NS);
            }
        }
        Ok(())
    }

    /// Reads some entries back, which the planner compares with its flows, and compares some counters.
    fn audit(&mut self) -> Result<()> {
        if self.nic.state() != NicState::Ready {
            return Ok(());
        }
        // What an earlier audit asked for and a reset delayed would be compared with later counters.
        while self.nic.take_snapshot().is_some() {}
        self.planner.verify(&mut self.nic, AUDIT_ENTRIES);
        let tables = &self.nic.caps().tables;
        let turn = usize::try_from(self.total / AUDIT_PACKETS).unwrap_or(0);
        let Some(table) = tables.get(turn % tables.len().max(1)) else { return Ok(()) };
        let count = AUDIT_COUNTERS.min(table.max_entries);
        if let Err(error) = self.nic.snapshot(table.id, 0, count) {
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
                self.clock.advance(IDLE_STEP_NS);
            }
            while let Some((id, counters)) = self.nic.take_snapshot() {
                left = left.saturating_sub(1);
                let Some(counters) = counters else { continue };
                self.audit.counters += 1;
                self.audit.disagree += u64::from(counters != self.nic.counters(id));
            }
        }
        self.settle()
    }

    fn busy(&self) -> bool {
        !self.planner.is_idle()
            || !self.route.unsent.is_empty()
            || self.nic.tx_pending() > 0
            || self.wires.values().any(|wire| wire.pending() > 0)
    }

    /// One turn of device, slow path and planner. True if a packet moved.
    fn turn(&mut self) -> bool {
        self.clock.advance(STEP_NS);
        self.function.model().step();
        let mut moved = self.collect();
        moved |= self.slow_path();
        let table = Table { datapath: &self.datapath, flows: &self.flows };
        self.planner.pump(&mut self.nic, &table, self.clock.now_ns());
        // What a failed device was given and did not send comes first again, and by now it may have been reset.
        for packet in self.nic.take_unsent().into_iter().rev() {
            self.route.unsent.push_front(packet);
        }
        if self.nic.state() == NicState::Gone {
            moved |= self.survive();
        } else {
            moved |= self.transmit();
        }
        moved
    }

    /// Takes what left the NIC.
    fn collect(&mut self) -> bool {
        let mut any = false;
        for (nic_port, wire) in &self.wires {
            let Some(port) = self.route.ports.dp(*nic_port) else { continue };
            while let Some(frame) = wire.receive() {
                self.route.out.ledger.record(Outlet::Port(port), &frame, self.route.out.now_ns);
                any = true;
            }
        }
        any
    }

    /// Runs what the NIC's tables did not finish.
    fn slow_path(&mut self) -> bool {
        let mut any = false;
        loop {
            let (batch, ports) = (&mut self.batch, &self.route.ports);
            let room = flowlift_softpath::BATCH;
            let received = self.nic.rx(room, &mut |packet, frame| {
                // A port that the datapath does not have gets nothing in, so every packet's port is known.
                let in_port = ports.dp(packet.port).map_or(u32::MAX, |port| port.0);
                batch.push(frame, Metadata { in_port, recirc_id: packet.metadata, ..Metadata::default() });
            });
            if let Err(error) = received {
                tracing::debug!(%error, "slow queues");
            }
            // What came before an error is in the batch.
            if self.batch.is_empty() {
                return any;
            }
            any = true;
            self.slow += self.batch.len() as u64;
            self.software_batch();
        }
    }

    fn software_batch(&mut self) {
        self.worker.process(&mut self.batch, to_ms(self.route.out.now_ns), &mut self.route);
        self.batch.clear();
    }

    /// Hands the softpath's packets to the NIC.
    fn transmit(&mut self) -> bool {
        let mut any = false;
        while let Some((to, frame)) = self.route.unsent.pop_front() {
            match self.nic.tx(to, &frame) {
                Ok(true) => any = true,
                refused => {
                    if let Err(error) = refused {
                        tracing::debug!(%error, "transmit");
                    }
                    self.route.unsent.push_front((to, frame));
                    break;
                }
            }
        }
        any
    }

    /// Without a NIC: what it had not sent leaves, then what it had not taken goes through the softpath.
    fn survive(&mut self) -> bool {
        self.route.nic_gone = true;
        let mut any = false;
        while let Some((to, frame)) = self.route.unsent.pop_front() {
            any = true;
            let (SlowTx::Port(nic_port) | SlowTx::Pipeline(nic_port)) = to;
            if let Some(port) = self.route.ports.dp(nic_port) {
                self.route.out.output(port, &frame);
            }
        }
        let mut left = Vec::new();
        for (nic_port, wire) in &self.wires {
            let in_port = self.route.ports.dp(*nic_port).map_or(u32::MAX, |port| port.0);
            left.extend(wire.take_back().into_iter().map(|frame| (in_port, frame)));
        }
        for (in_port, frame) in left {
            any = true;
            self.slow += 1;
            self.batch.push(&frame, Metadata { in_port, ..Metadata::default() });
            self.software_batch();
        }
        any
    }
}

impl Run for NicRun {
    fn arrive(&mut self, arrivals: &[Arrival<'_>]) -> Result<()> {
        for arrival in arrivals {
            self.total += 1;
            self.route.out.now_ns = arrival.now_ns;
            self.clock.set(arrival.now_ns);
            let wire = self.route.ports.nic(arrival.port).and_then(|port| self.wires.get(&port));
            match wire {
                Some(wire) if !self.route.nic_gone => {
                    if wire.inject(arrival.frame.to_vec()).is_err() {
                        bail!("a wire of the NIC is full although every packet before was through: a bug");
                    }
                }
                _ => {
                    self.slow += 1;
                    self.batch.push(arrival.frame, metadata(arrival));
                    self.software_batch();
                }
            }
            self.settle()?;
            if self.total.is_multiple_of(AUDIT_PACKETS) {
                self.audit()?;
            }
        }
        Ok(())
    }

    fn counts(&self) -> PacketCounts {
        let missed = self.route.out.misses;
        PacketCounts {
            total: self.total,
            hardware: self.total.saturating_sub(self.slow),
            software: self.slow.saturating_sub(missed),
            missed,
        }
    }

    fn totals(&mut self, flow: usize) -> FlowTotals {
        self.hardware(flow).plus(self.software(flow))
    }

    fn flow(&mut self, flow: usize) -> Option<Flow> {
        self.datapath.borrow_mut().flow(*self.flows.get(flow)?)
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.route.out.ledger
    }
}
