//! The NIC: its slow path, and the planner that fills its tables.
//!
//! Flows of each datapath that has a port of the NIC are offered to the planner, which names them by numbers of its own, since a
//! number is in use until the NIC has let go of the flow. How datapaths share the NIC is [`Share`]'s matter.

use super::Lane;
use super::meter::{Lent, planned};
use super::offload::OffloadClock;
use super::representor::Representor;
use super::route::Exits;
use super::share::Share;
use flowlift_driver::nic::{Nic, NicError, NicPort, NicState, PortCounters};
use flowlift_flow::{Flow, Metadata, PortNo};
use flowlift_offload::meter::Meter;
use flowlift_offload::planner::{self, Counters, FlowSource, LendMeter, Planner, Reason, State};
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::{FlowId, LentBucket, MeterHandle};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets taken from the slow queues in a turn.
const SLOW_BURST: usize = flowlift_softpath::BATCH;
/// How long a delete waits for the NIC, so that its last packets are counted. A NIC that works takes microseconds.
const DELETE_WAIT: Duration = Duration::from_millis(2);

/// The datapaths' packets and flows.
type Lanes = BTreeMap<DpIndex, Lane>;

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
    /// Since when it is in hardware, in nanoseconds of CLOCK_MONOTONIC.
    pub since_ns: Option<u64>,
}

/// What tables and slow path counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlowCounters {
    /// Packets that the tables did not finish.
    pub rx: u64,
    /// Packets given back to be sent.
    pub tx: u64,
    /// Packets and bytes that the tables finished, by the counters of all flows there were.
    pub table_packets: u64,
    /// See above.
    pub table_bytes: u64,
    /// Packets from ports that no datapath has.
    pub no_port: u64,
    /// Calls of the driver that failed.
    pub errors: u64,
}

/// A flow that the planner knows.
#[derive(Debug, Clone, Copy)]
struct Planned {
    /// Its datapath.
    dp: DpIndex,
    /// The softpath's name of it; `None` while it is being removed.
    flow: Option<FlowId>,
    used_ms: u64,
}

/// A port's counters over the device's lives: a reset takes its registers back to 0.
#[derive(Debug, Clone, Copy, Default)]
struct Lives {
    /// Of earlier lives, as last read in each.
    earlier: PortCounters,
    /// Of this life, as last read.
    now: PortCounters,
    /// How often tables had been lost then.
    life: u64,
}

/// See the module's head.
pub struct NicSide {
    nic: Box<dyn Nic>,
    planner: Planner,
    share: Share,
    representors: BTreeMap<NicPort, Representor>,
    port_counters: BTreeMap<NicPort, Lives>,
    /// By the planner's number.
    planned: Vec<Option<Planned>>,
    /// The planner's numbers by the softpath's slots.
    by_slot: BTreeMap<(DpIndex, u32), planner::FlowId>,
    free: Vec<u32>,
    /// Host time minus device time in nanoseconds: the least difference seen between a counter's time and its reading.
    device_offset_ns: u64,
    counters: SlowCounters,
    state: NicState,
    offload: OffloadClock,
}

/// The softpath's flows, as the planner reads them.
struct Source<'a> {
    lanes: RefCell<&'a mut Lanes>,
    planned: &'a [Option<Planned>],
    share: &'a Share,
    now_ms: u64,
}

impl Source<'_> {
    fn id(&self, id: planner::FlowId) -> Option<(DpIndex, FlowId)> {
        let planned = self.planned.get(id.0 as usize).copied().flatten()?;
        Some((planned.dp, planned.flow?))
    }

    fn meter_handle(&self, number: u32) -> Option<MeterHandle> {
        let (dp, id) = self.share.meter_owner(number)?;
        self.lanes.borrow_mut().get_mut(&dp)?.worker.meter(id)
    }
}

impl FlowSource for Source<'_> {
    fn flow(&self, id: planner::FlowId) -> Option<Flow> {
        let (dp, id) = self.id(id)?;
        let flow = self.lanes.borrow_mut().get_mut(&dp)?.worker.flow(id)?;
        Some(self.share.planned(dp, flow))
    }

    fn meter(&self, meter: u32) -> Option<Meter> {
        self.meter_handle(meter).map(|handle| planned(handle.config()))
    }

    fn lend_meter(&self, meter: u32, to: &mut LendMeter<'_>) -> Result<(), NicError> {
        let handle = self
            .meter_handle(meter)
            .ok_or_else(|| NicError::Invalid(format!("there is no meter {meter}")))?;
        // No packet is at work: this thread is the one that moves them.
        handle.lend(self.now_ms, |level| {
            let bucket: Arc<dyn LentBucket> = Arc::new(Lent(to(&planned(handle.config()), level)?));
            Ok(bucket)
        })
    }

    fn take_meter_back(&self, meter: u32) {
        if let Some(handle) = self.meter_handle(meter) {
            handle.take_back(self.now_ms);
        }
    }

    fn packets(&self, id: planner::FlowId) -> u64 {
        let packets = |(dp, id)| Some(self.lanes.borrow_mut().get_mut(&dp)?.worker.packets(id));
        self.id(id).and_then(packets).unwrap_or(0)
    }
}

impl NicSide {
    /// A NIC that was just opened: its tables are empty.
    pub fn new(nic: Box<dyn Nic>) -> Self {
        let share = Share::default();
        let state = nic.state();
        Self {
            planner: Planner::new(nic.caps(), share.ports()),
            nic,
            share,
            representors: BTreeMap::new(),
            port_counters: BTreeMap::new(),
            planned: Vec::new(),
            by_slot: BTreeMap::new(),
            free: Vec::new(),
            device_offset_ns: u64::MAX,
            counters: SlowCounters::default(),
            state,
            offload: OffloadClock::default(),
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

    /// The datapaths that have ports of it.
    pub fn datapaths(&self) -> impl Iterator<Item = DpIndex> + '_ {
        self.share.datapaths()
    }

    /// True if a datapath has a port of it.
    pub fn serves(&self, dp: DpIndex) -> bool {
        self.share.has(dp)
    }

    /// What was counted.
    pub fn counters(&self) -> SlowCounters {
        let mut all = self.counters;
        for number in self.by_slot.values() {
            let Counters { packets, bytes, .. } = self.planner.counters(*number, &*self.nic);
            all.table_packets += packets;
            all.table_bytes += bytes;
        }
        all
    }

    /// What a port counted; what a device that was reset or is gone had counted when it was last asked stays.
    pub fn port_counters(&mut self, port: NicPort) -> PortCounters {
        let life = self.planner.stats().tables_lost;
        let read = self.nic.port_counters(port);
        let lives = self.port_counters.entry(port).or_default();
        if lives.life != life {
            *lives = Lives { earlier: lives.earlier.plus(lives.now), now: PortCounters::default(), life };
        }
        if let Ok(read) = read {
            lives.now = read;
        }
        lives.earlier.plus(lives.now)
    }

    /// Lets a port take and send packets, or not.
    pub fn set_port_enabled(&mut self, port: NicPort, enabled: bool) {
        let set = self.nic.set_port_enabled(port, enabled);
        self.succeeded(set, "enabling a port");
    }

    /// Gives a port its representor.
    pub fn add_representor(&mut self, representor: Representor) {
        self.representors.insert(representor.port(), representor);
    }

    /// A port's representor.
    pub fn representor(&mut self, port: NicPort) -> Option<&mut Representor> {
        self.representors.get_mut(&port)
    }

    /// Takes a port's representor away.
    pub fn remove_representor(&mut self, port: NicPort) -> Option<Representor> {
        self.representors.remove(&port)
    }

    /// Gives a port of the NIC to a datapath. False if another one has it.
    pub(super) fn attach(&mut self, lanes: &mut Lanes, dp: DpIndex, port: PortNo, nic: NicPort) -> bool {
        let attached = self.share.attach(dp, port, nic);
        if attached {
            self.plan_anew(lanes);
        }
        attached
    }

    /// Takes a port from its datapath, and the flows that concern it out of the NIC: it is given a moment to let go of them, so
    /// that the next owner of the port does not meet them.
    pub(super) fn detach(&mut self, lanes: &mut Lanes, dp: DpIndex, port: PortNo, now_ns: u64) {
        if !self.share.detach(dp, port) {
            return;
        }
        if !self.share.has(dp) {
            self.forget_all(dp);
        }
        self.plan_anew(lanes);
        self.pump_until(lanes, now_ns, |nic| {
            nic.take_removed();
            nic.planner.is_idle()
        });
    }

    /// Takes all ports from a datapath.
    pub(super) fn detach_all(&mut self, lanes: &mut Lanes, dp: DpIndex, now_ns: u64) {
        self.share.ports_of(dp).into_iter().for_each(|port| self.detach(lanes, dp, port, now_ns));
    }

    /// Plans every flow for the ports as they are now.
    fn plan_anew(&mut self, lanes: &mut Lanes) {
        self.planner.set_ports(self.share.ports());
        let (planned, share) = (&self.planned, &self.share);
        let source = Source { lanes: RefCell::new(lanes), planned, share, now_ms: 0 };
        for number in self.by_slot.values() {
            if let Some(flow) = source.flow(*number) {
                self.planner.put(*number, &flow);
            }
        }
    }

    /// Lets the planner work until `done`, but no longer than a delete may take, and not with a NIC that does not work.
    fn pump_until(&mut self, lanes: &mut Lanes, now_ns: u64, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        loop {
            self.pump(lanes, now_ns);
            if done(self) || self.nic.state() != NicState::Ready || start.elapsed() >= DELETE_WAIT {
                return;
            }
            // The device may be a process that has nowhere else to run.
            std::thread::yield_now();
        }
    }

    /// How long flows took into the NIC.
    pub fn offload(&self) -> &OffloadClock {
        &self.offload
    }

    /// Takes note of a flow that is new or changed since `at_ns`.
    pub(super) fn put(&mut self, lanes: &mut Lanes, dp: DpIndex, id: FlowId, at_ns: u64) {
        let Some(flow) = lanes.get_mut(&dp).and_then(|lane| lane.worker.flow(id)) else { return };
        let number = self.number(dp, id).unwrap_or_else(|| {
            // The slot was another flow's, whose removal was said before.
            self.forget(dp, id.slot);
            let number = self.free.pop().unwrap_or_else(|| {
                self.planned.push(None);
                u32::try_from(self.planned.len() - 1).unwrap_or(u32::MAX)
            });
            self.planned[number as usize] = Some(Planned { dp, flow: Some(id), used_ms: 0 });
            self.by_slot.insert((dp, id.slot), planner::FlowId(number));
            self.offload.start(planner::FlowId(number), at_ns);
            planner::FlowId(number)
        });
        self.planner.put(number, &self.share.planned(dp, flow));
    }

    /// Takes note that flows are no more, and gives their last counters: the NIC is given a moment to let go of them.
    pub(super) fn remove(
        &mut self,
        lanes: &mut Lanes,
        dp: DpIndex,
        ids: &[FlowId],
        now_ns: u64,
    ) -> Vec<Counters> {
        let numbers: Vec<Option<planner::FlowId>> = ids.iter().map(|id| self.number(dp, *id)).collect();
        let mut last: BTreeMap<planner::FlowId, Counters> = BTreeMap::new();
        let mut waiting = 0;
        for number in numbers.iter().flatten() {
            let in_nic = self.planner.entries(*number).next().is_some();
            last.insert(*number, self.planner.counters(*number, &*self.nic));
            waiting += usize::from(in_nic);
        }
        for id in ids {
            self.forget(dp, id.slot);
        }
        self.pump_until(lanes, now_ns, |nic| {
            for (number, counters) in nic.take_removed() {
                if let Some(entry) = last.get_mut(&number) {
                    *entry = counters;
                    waiting = waiting.saturating_sub(1);
                }
            }
            waiting == 0
        });
        numbers.into_iter().map(|n| n.and_then(|n| last.get(&n).copied()).unwrap_or_default()).collect()
    }

    /// Takes note that a meter was set or deleted.
    pub(super) fn meter_changed(&mut self, dp: DpIndex, id: u32) {
        if let Some(number) = self.share.meter(dp, id) {
            self.planner.meter_changed(number);
        }
    }

    /// Takes note that all flows of a datapath are no more.
    pub(super) fn forget_all(&mut self, dp: DpIndex) {
        let slots: Vec<u32> =
            self.by_slot.range((dp, 0)..=(dp, u32::MAX)).map(|((_, slot), _)| *slot).collect();
        slots.into_iter().for_each(|slot| self.forget(dp, slot));
    }

    /// Where a flow is and what hardware counted for it; `None` for a flow that was not offered to the NIC.
    pub(super) fn look(&mut self, dp: DpIndex, id: FlowId, now_ns: u64) -> Option<InNic> {
        let number = self.number(dp, id)?;
        let (state, reason) = self.planner.state(number)?;
        let counters = self.planner.counters(number, &*self.nic);
        let used_ms = (counters.used_ns != 0).then(|| {
            self.device_offset_ns = self.device_offset_ns.min(now_ns.saturating_sub(counters.used_ns));
            counters.used_ns.saturating_add(self.device_offset_ns) / 1_000_000
        });
        let planned = self.planned.get_mut(number.0 as usize)?.as_mut()?;
        planned.used_ms = planned.used_ms.max(used_ms.unwrap_or(0));
        let reason = reason.map(|reason| self.share.own(reason));
        let since_ns = self.planner.in_hardware_since_ns(number);
        Some(InNic { state, reason, counters, used_ms: used_ms.map(|_| planned.used_ms), since_ns })
    }

    /// A turn of slow path and planner; how many packets came and went.
    pub(super) fn turn(&mut self, lanes: &mut Lanes, exits: &mut Exits, now_ns: u64) -> usize {
        let (share, counters, representors) = (&self.share, &mut self.counters, &mut self.representors);
        let received = self.nic.rx(SLOW_BURST, &mut |packet, frame| {
            let representor = representors.get_mut(&packet.port);
            let lane = share.owner(packet.port).and_then(|(dp, port)| Some((port, lanes.get_mut(&dp)?)));
            match &lane {
                None if representor.is_none() => counters.no_port += 1,
                _ => counters.rx += 1,
            }
            if let Some(representor) = representor {
                representor.show(frame);
            }
            if let Some((port, lane)) = lane {
                lane.batch.push(
                    frame,
                    Metadata { in_port: port.0, recirc_id: packet.metadata, ..Metadata::default() },
                );
            }
        });
        let mut moved = self.succeeded(received, "slow queues").unwrap_or(0);
        for (dp, lane) in lanes.iter_mut().filter(|(_, lane)| !lane.batch.is_empty()) {
            lane.process(*dp, exits, now_ns / 1_000_000);
            lane.outlets.flush();
        }
        // Packets that others wait for go before flows, for which nobody waits.
        exits.upcalls.flush();
        moved += self.transmit(exits);
        self.pump(lanes, now_ns);
        self.take_removed();
        self.offload.look(&self.planner);
        for packet in self.nic.take_unsent().into_iter().rev() {
            exits.nic.push_front(packet);
        }
        moved += self.transmit(exits);
        if exits.nic.is_empty() {
            let done = self.nic.slow_done();
            self.succeeded(done, "slow_done");
        }
        for (port, representor) in &mut self.representors {
            representor.set_carrier(self.nic.link(*port));
        }
        self.tell_state();
        moved
    }

    /// True while the NIC owes an answer.
    pub fn is_busy(&self) -> bool {
        !self.planner.is_idle() || self.nic.tx_pending() > 0
    }

    fn pump(&mut self, lanes: &mut Lanes, now_ns: u64) {
        let source = Source {
            lanes: RefCell::new(lanes),
            planned: &self.planned,
            share: &self.share,
            now_ms: now_ns / 1_000_000,
        };
        self.planner.pump(&mut *self.nic, &source, now_ns);
    }

    fn take_removed(&mut self) -> Vec<(planner::FlowId, Counters)> {
        let removed = self.planner.take_removed();
        for (number, counters) in &removed {
            self.counters.table_packets += counters.packets;
            self.counters.table_bytes += counters.bytes;
            if let Some(place) = self.planned.get_mut(number.0 as usize) {
                *place = None;
                self.free.push(number.0);
            }
        }
        removed
    }

    /// Hands the softpath's packets to the NIC; how many it took.
    fn transmit(&mut self, exits: &mut Exits) -> usize {
        let before = self.counters.tx;
        while let Some((to, frame)) = exits.nic.pop_front() {
            let taken = self.nic.tx(to, &frame);
            match self.succeeded(taken, "transmit") {
                Some(true) => {
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
        usize::try_from(self.counters.tx - before).unwrap_or(usize::MAX)
    }

    fn softpath_id(&self, number: planner::FlowId) -> Option<FlowId> {
        self.planned.get(number.0 as usize).copied().flatten()?.flow
    }

    fn number(&self, dp: DpIndex, id: FlowId) -> Option<planner::FlowId> {
        self.by_slot.get(&(dp, id.slot)).copied().filter(|number| self.softpath_id(*number) == Some(id))
    }

    fn forget(&mut self, dp: DpIndex, slot: u32) {
        let Some(number) = self.by_slot.remove(&(dp, slot)) else { return };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Harness, NicSetup};
    use crate::open;
    use flowlift_sim::{FaultPlan, Profile};

    #[test]
    fn a_ports_counters_go_on_over_a_reset() {
        let NicSetup { nic, mut harness, .. } =
            open::open(Profile::tiny(), 1, FaultPlan::default(), &[], 1_000_000).unwrap();
        let (mut side, mut lanes) = (NicSide::new(Box::new(nic)), Lanes::new());
        let mut pass = |side: &mut NicSide| {
            harness.inject(NicPort(2), &[0; 60]);
            (0..10).for_each(|_| harness.step());
            side.pump(&mut lanes, 0);
            let counted = side.port_counters(NicPort(2));
            (counted.rx_packets, counted.rx_bytes, counted.rx_slow)
        };
        assert_eq!(pass(&mut side), (1, 60, 1));
        assert_eq!(pass(&mut side), (2, 120, 2));
        side.nic.reset().unwrap();
        assert_eq!(pass(&mut side), (3, 180, 3));
        assert_eq!(side.port_counters(NicPort(1)).rx_packets, 0);
    }
}
