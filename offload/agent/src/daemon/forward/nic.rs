//! The NIC: its slow path, and the planner that fills its tables.
//!
//! One datapath has the NIC: the first one that gets a port of it, for as long as it has one. Its flows are offered to the
//! planner, which names them by numbers of its own, since a number is in use until the NIC has let go of the flow.

use super::route::Exits;
use flowlift_driver::nic::{Nic, NicPort, NicState};
use flowlift_flow::{Flow, Metadata, PortNo};
use flowlift_offload::planner::{self, Counters, FlowSource, Planner, Reason, State};
use flowlift_offload::ports::PortMap;
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::{Batch, FlowId, Worker};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Packets taken from the slow queues in a turn.
const SLOW_BURST: usize = flowlift_softpath::BATCH;
/// How long a delete waits for the NIC, so that its last packets are counted. A NIC that works takes microseconds.
const DELETE_WAIT: Duration = Duration::from_millis(2);

/// What the NIC says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InNic {
    /// Where the flow is.
    pub state: State,
    /// Why it is not in hardware.
    pub reason: Option<Reason>,
    /// Packets, bytes and TCP flags that hardware counted.
    pub counters: Counters,
    /// When hardware saw the last packet, in milliseconds of CLOCK_MONOTONIC; never goes back.
    pub used_ms: Option<u64>,
}

/// What the planner and slow path counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlowCounters {
    /// Packets that the tables did not finish.
    pub rx: u64,
    /// Packets given back to be sent.
    pub tx: u64,
    /// Packets from ports that no datapath has.
    pub no_port: u64,
    /// Calls of the driver that failed.
    pub errors: u64,
}

/// A flow that the planner knows.
#[derive(Debug, Clone, Copy)]
struct Planned {
    /// The softpath's name of it; `None` while it is being removed.
    flow: Option<FlowId>,
    used_ms: u64,
}

/// See the module's head.
pub struct NicSide {
    nic: Box<dyn Nic>,
    planner: Planner,
    dp: Option<DpIndex>,
    ports: PortMap,
    /// By the planner's number.
    planned: Vec<Option<Planned>>,
    /// The planner's numbers by the softpath's slots.
    by_slot: BTreeMap<u32, planner::FlowId>,
    free: Vec<u32>,
    /// Host time minus device time in nanoseconds: the least difference seen between a counter's time and its reading.
    device_offset_ns: u64,
    counters: SlowCounters,
    state: NicState,
}

/// The softpath's flows, as the planner reads them.
struct Source<'a> {
    worker: RefCell<&'a mut Worker>,
    planned: &'a [Option<Planned>],
}

impl Source<'_> {
    fn id(&self, id: planner::FlowId) -> Option<FlowId> {
        self.planned.get(id.0 as usize).copied().flatten()?.flow
    }
}

impl FlowSource for Source<'_> {
    fn flow(&self, id: planner::FlowId) -> Option<Flow> {
        self.worker.borrow_mut().flow(self.id(id)?)
    }

    fn packets(&self, id: planner::FlowId) -> u64 {
        self.id(id).map_or(0, |id| self.worker.borrow_mut().packets(id))
    }
}

impl NicSide {
    /// A NIC that was just opened: its tables are empty.
    pub fn new(nic: Box<dyn Nic>) -> Self {
        let ports = PortMap::new();
        let state = nic.state();
        Self {
            planner: Planner::new(nic.caps(), &ports),
            nic,
            dp: None,
            ports,
            planned: Vec::new(),
            by_slot: BTreeMap::new(),
            free: Vec::new(),
            device_offset_ns: u64::MAX,
            counters: SlowCounters::default(),
            state,
        }
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Nic {
        &*self.nic
    }

    /// The planner.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// The datapath that has the NIC.
    pub fn datapath(&self) -> Option<DpIndex> {
        self.dp
    }

    /// Which ports are the NIC's.
    pub fn ports(&self) -> &PortMap {
        &self.ports
    }

    /// What was counted.
    pub fn counters(&self) -> SlowCounters {
        self.counters
    }

    /// Gives a port of the NIC to a datapath. False if another datapath has the NIC.
    pub fn attach(&mut self, dp: DpIndex, port: PortNo, nic: NicPort) -> bool {
        if self.dp.is_some_and(|own| own != dp) {
            return false;
        }
        self.dp = Some(dp);
        self.ports.insert(port, nic);
        self.planner.set_ports(&self.ports);
        true
    }

    /// Takes a port from its datapath.
    pub fn detach(&mut self, dp: DpIndex, port: PortNo) {
        if self.dp != Some(dp) || self.ports.nic(port).is_none() {
            return;
        }
        self.ports.remove(port);
        self.planner.set_ports(&self.ports);
        if self.ports.iter().next().is_none() {
            self.forget_all();
            self.dp = None;
        }
    }

    /// Takes note of a new or changed flow.
    pub fn put(&mut self, worker: &mut Worker, id: FlowId) {
        let Some(flow) = worker.flow(id) else { return };
        let known = self.by_slot.get(&id.slot).copied().filter(|known| self.softpath_id(*known) == Some(id));
        let number = known.unwrap_or_else(|| {
            // The slot was another flow's, whose removal was said before.
            self.forget(id.slot);
            let number = self.free.pop().unwrap_or_else(|| {
                self.planned.push(None);
                u32::try_from(self.planned.len() - 1).unwrap_or(u32::MAX)
            });
            self.planned[number as usize] = Some(Planned { flow: Some(id), used_ms: 0 });
            self.by_slot.insert(id.slot, planner::FlowId(number));
            planner::FlowId(number)
        });
        self.planner.put(number, &flow);
    }

    /// Takes note that flows are no more, and gives their last counters: the NIC is given a moment to let go of them.
    pub fn remove(&mut self, worker: &mut Worker, ids: &[FlowId], now_ns: u64) -> Vec<Counters> {
        let numbers: Vec<Option<planner::FlowId>> = ids.iter().map(|id| self.number(*id)).collect();
        let mut last: BTreeMap<planner::FlowId, Counters> = BTreeMap::new();
        let mut waiting = 0;
        for number in numbers.iter().flatten() {
            let in_nic = self.planner.entries(*number).next().is_some();
            last.insert(*number, self.planner.counters(*number, &*self.nic));
            waiting += usize::from(in_nic);
        }
        for id in ids {
            self.forget(id.slot);
        }
        let start = Instant::now();
        loop {
            self.pump(worker, now_ns);
            for (number, counters) in self.take_removed() {
                if let Some(entry) = last.get_mut(&number) {
                    *entry = counters;
                    waiting = waiting.saturating_sub(1);
                }
            }
            if waiting == 0 || self.nic.state() != NicState::Ready || start.elapsed() >= DELETE_WAIT {
                break;
            }
            std::hint::spin_loop();
        }
        numbers.into_iter().map(|n| n.and_then(|n| last.get(&n).copied()).unwrap_or_default()).collect()
    }

    /// Takes note that all flows are no more.
    pub fn forget_all(&mut self) {
        let slots: Vec<u32> = self.by_slot.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.forget(slot));
    }

    /// Where a flow is and what hardware counted for it; `None` for a flow that was not offered to the NIC.
    pub fn look(&mut self, id: FlowId, now_ns: u64) -> Option<InNic> {
        let number = self.number(id)?;
        let (state, reason) = self.planner.state(number)?;
        let counters = self.planner.counters(number, &*self.nic);
        let used_ms = (counters.used_ns != 0).then(|| {
            self.device_offset_ns = self.device_offset_ns.min(now_ns.saturating_sub(counters.used_ns));
            counters.used_ns.saturating_add(self.device_offset_ns) / 1_000_000
        });
        let planned = self.planned.get_mut(number.0 as usize)?.as_mut()?;
        planned.used_ms = planned.used_ms.max(used_ms.unwrap_or(0));
        Some(InNic { state, reason, counters, used_ms: used_ms.map(|_| planned.used_ms) })
    }

    /// A turn of slow path and planner. True if something moved.
    pub fn turn(
        &mut self,
        worker: &mut Worker,
        batch: &mut Batch,
        exits: &mut Exits,
        now_ns: u64,
        mut process: impl FnMut(&mut Worker, &mut Batch, &mut Exits),
    ) -> bool {
        let (ports, counters) = (&self.ports, &mut self.counters);
        let received = self.nic.rx(SLOW_BURST, &mut |packet, frame| match ports.dp(packet.port) {
            Some(port) => {
                counters.rx += 1;
                batch.push(
                    frame,
                    Metadata { in_port: port.0, recirc_id: packet.metadata, ..Metadata::default() },
                );
            }
            None => counters.no_port += 1,
        });
        let mut moved = self.succeeded(received, "slow queues").is_some_and(|n| n > 0);
        if !batch.is_empty() {
            process(worker, batch, exits);
            batch.clear();
        }
        self.pump(worker, now_ns);
        self.take_removed();
        for packet in self.nic.take_unsent().into_iter().rev() {
            exits.nic.push_front(packet);
        }
        moved |= self.transmit(exits);
        if exits.nic.is_empty() {
            let done = self.nic.slow_done();
            self.succeeded(done, "slow_done");
        }
        self.tell_state();
        moved
    }

    /// True while the NIC owes an answer.
    pub fn is_busy(&self) -> bool {
        !self.planner.is_idle() || self.nic.tx_pending() > 0
    }

    fn pump(&mut self, worker: &mut Worker, now_ns: u64) {
        let source = Source { worker: RefCell::new(worker), planned: &self.planned };
        self.planner.pump(&mut *self.nic, &source, now_ns);
    }

    fn take_removed(&mut self) -> Vec<(planner::FlowId, Counters)> {
        let removed = self.planner.take_removed();
        for (number, _) in &removed {
            if let Some(place) = self.planned.get_mut(number.0 as usize) {
                *place = None;
                self.free.push(number.0);
            }
        }
        removed
    }

    /// Hands the softpath's packets to the NIC.
    fn transmit(&mut self, exits: &mut Exits) -> bool {
        let mut any = false;
        while let Some((to, frame)) = exits.nic.pop_front() {
            let taken = self.nic.tx(to, &frame);
            match self.succeeded(taken, "transmit") {
                Some(true) => {
                    any = true;
                    self.counters.tx += 1;
                    exits.spare.push(frame);
                }
                _ if self.nic.state() == NicState::Gone => exits.counters.nic_full += 1,
                _ => {
                    exits.nic.push_front((to, frame));
                    break;
                }
            }
        }
        any
    }

    fn softpath_id(&self, number: planner::FlowId) -> Option<FlowId> {
        self.planned.get(number.0 as usize).copied().flatten()?.flow
    }

    fn number(&self, id: FlowId) -> Option<planner::FlowId> {
        self.by_slot.get(&id.slot).copied().filter(|number| self.softpath_id(*number) == Some(id))
    }

    fn forget(&mut self, slot: u32) {
        let Some(number) = self.by_slot.remove(&slot) else { return };
        if let Some(Some(planned)) = self.planned.get_mut(number.0 as usize) {
            planned.flow = None;
        }
        self.planner.remove(number);
    }

    /// The result, or a note of the error: the planner and the device's state say what is to be done about it.
    fn succeeded<T, E: std::fmt::Display>(&mut self, result: Result<T, E>, what: &str) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.counters.errors += 1;
                tracing::debug!(%error, what, "NIC");
                None
            }
        }
    }

    /// Says when the NIC's state changes.
    fn tell_state(&mut self) {
        let state = self.nic.state();
        if state == self.state {
            return;
        }
        self.state = state;
        match state {
            NicState::Ready => tracing::info!("the NIC works again"),
            NicState::Failed => {
                tracing::warn!("the NIC failed and is being reset; packets take the softpath")
            }
            NicState::Gone => tracing::warn!("the NIC is gone; its ports are dead"),
        }
    }
}
