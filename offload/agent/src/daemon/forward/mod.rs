//! The thread that moves packets: ports, softpath, the NIC's slow path and planner.
//!
//! It owns them all, so that packets of a flow stay in order whichever way they take, and nothing on a packet's way is locked.
//! Others change ports and flows by its mailbox. It sleeps when there is nothing to do, but looks again at once for a moment
//! after a burst of packets ([`SPIN`]), which saves a wake-up per batch while they come.

mod meter;
mod nic;
mod offload;
mod port;
mod representor;
mod route;
mod share;
#[cfg(test)]
mod tests;
mod tunnel;
mod upcall;

pub use nic::{InNic, NicSide, SlowCounters};
pub use offload::{OffloadClock, OffloadTimes};
pub use port::DevicePort;
pub use representor::Representor;
pub use route::{Exits, Outlet, RouteCounters};
pub use tunnel::{TunnelInlet, TunnelOutlet};
pub use upcall::{Targets, Upcalls};

use super::mailbox::Inbox;
use flowlift_driver::nic::{NicPort, PortCounters};
use flowlift_flow::{Metadata, PortNo};
use flowlift_ovs::backend::DpIndex;
use flowlift_port::{Burst, LinkState, PortError, PortStats};
use flowlift_softpath::actions::Program;
use flowlift_softpath::packet::PacketType;
use flowlift_softpath::{Batch, FlowId, Packet, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use route::{Outlets, Route};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Jobs done between two looks at the ports.
const JOBS: usize = 256;
/// Descriptors that are looked at in a turn.
const EVENTS: usize = 64;
/// How long the thread looks again at once after the last [`BURST`].
const SPIN: Duration = Duration::from_micros(50);
/// Packets of a turn that make it likely that more are there before a sleep had paid. After fewer, others have better use for
/// the core: a packet's upcall is answered by two more threads.
const BURST: usize = 8;
/// Sleep at most, in milliseconds: while something waits for room or an answer, and otherwise, to see to the NIC's health.
const NAP_MS: u8 = 1;
const REST_MS: u8 = 200;
/// Descriptors' names that are no port's.
const INBOX: u64 = u64::MAX;
const INTERRUPT: u64 = u64::MAX - 1;
/// Added to the NIC's number of a port: the descriptor of its representor.
const REPRESENTORS: u64 = 1 << 32;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    // The clock is always there.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// One datapath's packets.
struct Lane {
    worker: Worker,
    batch: Batch,
    outlets: Outlets,
}

impl Lane {
    /// Processes the batch.
    fn process(&mut self, dp: DpIndex, exits: &mut Exits, now_ms: u64) {
        if self.batch.is_empty() {
            return;
        }
        let mut route = Route { dp, outlets: &mut self.outlets, exits };
        self.worker.process(&mut self.batch, now_ms, &mut route);
    }
}

/// A packet from the user, with what is to be done to it.
#[derive(Debug)]
pub struct GivenPacket {
    /// The packet with its metadata.
    pub packet: Packet,
    /// Who gets its upcalls, if not whom dispatch chooses.
    pub upcall_pid: Option<u32>,
    /// What to do.
    pub program: Program,
}

/// A port where packets come in.
struct Inlet {
    dp: DpIndex,
    port: PortNo,
    source: DevicePort,
}

/// See the module's head.
pub struct Forwarder {
    epoll: Epoll,
    lanes: BTreeMap<DpIndex, Lane>,
    inlets: Vec<Option<Inlet>>,
    nic: Option<NicSide>,
    exits: Exits,
    burst: Burst,
    /// Hears of ports whose device is gone.
    lost: Box<dyn Fn(DpIndex, PortNo) + Send>,
    begun: bool,
    running: bool,
}

impl Forwarder {
    /// Without ports and datapaths. `lost` hears of ports whose device is gone; it does not wait.
    ///
    /// # Errors
    /// The system gives no epoll descriptor.
    pub fn new(
        nic: Option<NicSide>,
        upcalls: Upcalls,
        lost: Box<dyn Fn(DpIndex, PortNo) + Send>,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(interrupt) = nic.as_ref().and_then(|nic| nic.driver().interrupt()) {
            epoll.add(interrupt, EpollEvent::new(EpollFlags::EPOLLIN, INTERRUPT))?;
        }
        Ok(Self {
            epoll,
            lanes: BTreeMap::new(),
            inlets: Vec::new(),
            nic,
            exits: Exits::new(upcalls),
            burst: Burst::new(),
            lost,
            begun: false,
            running: true,
        })
    }

    /// Moves packets from [`Self::begin`] on until it is told to stop.
    ///
    /// # Errors
    /// The system refuses to wait.
    pub fn run(mut self, inbox: &Inbox<Self>) -> nix::Result<()> {
        while self.running && !self.begun {
            match poll(&mut [PollFd::new(inbox.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => inbox.run(&mut self, JOBS),
                Err(error) => return Err(error),
            };
        }
        self.epoll.add(inbox, EpollEvent::new(EpollFlags::EPOLLIN, INBOX))?;
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut last_burst = Instant::now();
        while self.running {
            let jobs = inbox.run(&mut self, JOBS);
            // Upcalls go first, since each of them has a packet waiting.
            self.exits.upcalls.flush();
            let mut packets = self.nic_turn();
            let worked = jobs + packets > 0;
            let sent_all = self.exits.upcalls.flush();
            let nic_busy = self.nic.as_ref().is_some_and(NicSide::is_busy) || !self.exits.nic.is_empty();
            let timeout = if worked || last_burst.elapsed() < SPIN {
                EpollTimeout::ZERO
            } else if nic_busy || !sent_all {
                NAP_MS.into()
            } else if self.nic.is_some() {
                REST_MS.into()
            } else {
                EpollTimeout::NONE
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error),
            };
            for event in &events[..count] {
                match event.data() {
                    INBOX => {}
                    INTERRUPT => self.clear_interrupt(),
                    n if n >= REPRESENTORS => packets += self.receive_from_host(n - REPRESENTORS),
                    n => packets += self.receive(usize::try_from(n).unwrap_or(usize::MAX)),
                }
            }
            // What waits for Open vSwitch's answer says nothing of more packets, and that answer needs the core.
            if packets.saturating_sub(self.exits.upcalls.waiting()) >= BURST {
                last_burst = Instant::now();
            } else if !worked && timeout == EpollTimeout::ZERO {
                // Whoever is to answer may have nowhere else to run.
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Takes packets from now on: the ports that the daemon before had are all there, so what waits in one of them finds the others.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Has [`Self::run`] return.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// Adds a datapath.
    pub fn add_datapath(&mut self, dp: DpIndex, worker: Worker) {
        let lane = Lane { worker, batch: Batch::new(), outlets: Outlets::default() };
        self.lanes.insert(dp, lane);
    }

    /// Takes a datapath away with its ports.
    pub fn remove_datapath(&mut self, dp: DpIndex) {
        let ports: Vec<PortNo> =
            self.inlets.iter().flatten().filter(|i| i.dp == dp).map(|i| i.port).collect();
        for port in ports {
            self.remove_port(dp, port);
        }
        if let Some(nic) = &mut self.nic {
            nic.detach_all(&mut self.lanes, dp, now_ns());
        }
        self.lanes.remove(&dp);
        self.exits.upcalls.set_targets(dp, None);
    }

    /// Adds a port of the host.
    ///
    /// # Errors
    /// The system does not watch the port.
    pub fn add_host_port(&mut self, dp: DpIndex, port: PortNo, source: DevicePort) -> nix::Result<()> {
        let n = self.inlets.iter().position(Option::is_none).unwrap_or(self.inlets.len());
        self.epoll.add(source.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, n as u64))?;
        if let Some(lane) = self.lanes.get_mut(&dp) {
            lane.outlets.set(port, Some(source.outlet()));
        }
        let inlet = Some(Inlet { dp, port, source });
        match self.inlets.get_mut(n) {
            Some(place) => *place = inlet,
            None => self.inlets.push(inlet),
        }
        Ok(())
    }

    /// Gives a port of the NIC to a datapath, and offers its flows, which `flows` lists, if it is its first one. False if the
    /// port is another datapath's.
    pub fn add_nic_port(&mut self, dp: DpIndex, port: PortNo, nic_port: NicPort, flows: &[FlowId]) -> bool {
        let Self { nic: Some(nic), lanes, .. } = self else { return false };
        let first = !nic.serves(dp);
        if !lanes.contains_key(&dp) || !nic.attach(lanes, dp, port, nic_port) {
            return false;
        }
        if let Some(lane) = lanes.get_mut(&dp) {
            lane.outlets.set(port, Some(Outlet::Nic(nic_port)));
        }
        if first {
            let now = now_ns();
            flows.iter().for_each(|id| nic.put(lanes, dp, *id, now));
        }
        true
    }

    /// Gives a port of the NIC its representor.
    ///
    /// # Errors
    /// The system does not watch the device.
    pub fn add_representor(&mut self, representor: Representor) -> nix::Result<()> {
        let Some(nic) = &mut self.nic else { return Ok(()) };
        let name = REPRESENTORS + u64::from(representor.port().0);
        self.epoll.add(representor.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, name))?;
        nic.add_representor(representor);
        Ok(())
    }

    /// Lets a port of the NIC take and send packets, or not.
    pub fn set_nic_port_enabled(&mut self, port: NicPort, enabled: bool) {
        if let Some(nic) = &mut self.nic {
            nic.set_port_enabled(port, enabled);
        }
    }

    /// Queues what the host sent by a representor for the port that it stands for; how many packets it was.
    fn receive_from_host(&mut self, n: u64) -> usize {
        let Self { nic: Some(nic), exits, burst, epoll, .. } = self else { return 0 };
        let port = NicPort(u16::try_from(n).unwrap_or(0));
        let Some(representor) = nic.representor(port) else { return 0 };
        let taken = representor.receive(burst, &mut |port, packet| exits.queue_for_nic(port, packet));
        if taken.is_none() {
            // Whoever watches the host's devices makes another one.
            if let Some(gone) = nic.remove_representor(port) {
                let _ = epoll.delete(gone.as_fd());
            }
        }
        taken.unwrap_or(0)
    }

    /// Takes a port away; what was queued for it is lost.
    pub fn remove_port(&mut self, dp: DpIndex, port: PortNo) -> Option<DevicePort> {
        if let Some(lane) = self.lanes.get_mut(&dp) {
            lane.outlets.set(port, None);
        }
        if let Some(nic) = &mut self.nic {
            nic.detach(&mut self.lanes, dp, port, now_ns());
        }
        let is_it = |inlet: &Option<Inlet>| inlet.as_ref().is_some_and(|i| (i.dp, i.port) == (dp, port));
        let inlet = self.inlets.iter().position(is_it).and_then(|n| self.inlets.get_mut(n)?.take())?;
        // A device that is gone may have left by itself.
        let _ = self.epoll.delete(inlet.source.as_fd());
        Some(inlet.source)
    }

    /// Says who gets a datapath's upcalls.
    pub fn set_targets(&mut self, dp: DpIndex, targets: Targets) {
        self.exits.upcalls.set_targets(dp, Some(targets));
    }

    fn inlet(&self, dp: DpIndex, port: PortNo) -> Option<&Inlet> {
        self.inlets.iter().flatten().find(|inlet| (inlet.dp, inlet.port) == (dp, port))
    }

    /// What a port of the host counted, and its upcalls sent and lost.
    pub fn port_counters(&self, dp: DpIndex, port: PortNo) -> (Option<PortStats>, (u64, u64)) {
        let stats = self.inlet(dp, port).map(|inlet| inlet.source.stats());
        (stats, self.exits.upcalls.counters(dp, port))
    }

    /// True if a port of the host has its device, wherever that is, or is none of the host.
    pub fn has_device(&self, dp: DpIndex, port: PortNo) -> bool {
        self.inlet(dp, port).is_none_or(|inlet| inlet.source.has_device())
    }

    /// True if a port of the NIC has a representor whose device is there, wherever that is.
    pub fn has_representor(&mut self, port: NicPort) -> bool {
        let representor = self.nic.as_mut().and_then(|nic| nic.representor(port));
        representor.is_some_and(|representor| representor.has_device())
    }

    /// Upcalls of a datapath that the softpath does not know to be lost.
    pub fn upcalls_lost_later(&self, dp: DpIndex) -> u64 {
        self.exits.upcalls.lost_later(dp)
    }

    /// Tells a port its device's MTU.
    pub fn set_mtu(&self, dp: DpIndex, port: PortNo, mtu: u32) {
        if let Some(inlet) = self.inlet(dp, port) {
            inlet.source.set_mtu(mtu);
        }
    }

    /// What was counted on the way out.
    pub fn route_counters(&self) -> RouteCounters {
        self.exits.counters
    }

    /// The NIC.
    pub fn nic(&self) -> Option<&NicSide> {
        self.nic.as_ref()
    }

    /// What a port of the NIC counted.
    pub fn nic_port_counters(&mut self, port: NicPort) -> Option<PortCounters> {
        Some(self.nic.as_mut()?.port_counters(port))
    }

    /// Offers a flow that is new or changed since `at_ns` to the NIC, if its datapath has a port of it.
    pub fn flow_put(&mut self, dp: DpIndex, id: FlowId, at_ns: u64) {
        if let Some(nic) = self.nic.as_mut().filter(|nic| nic.serves(dp)) {
            nic.put(&mut self.lanes, dp, id, at_ns);
        }
    }

    /// Takes flows out of the NIC, and gives what it counted for each.
    pub fn flow_remove(&mut self, dp: DpIndex, ids: &[FlowId]) -> Vec<flowlift_offload::planner::Counters> {
        match self.nic.as_mut().filter(|nic| nic.serves(dp)) {
            Some(nic) => nic.remove(&mut self.lanes, dp, ids, now_ns()),
            None => vec![Default::default(); ids.len()],
        }
    }

    /// Takes note that a meter was set or deleted.
    pub fn meter_changed(&mut self, dp: DpIndex, id: u32) {
        if let Some(nic) = &mut self.nic {
            nic.meter_changed(dp, id);
        }
    }

    /// Takes all flows of a datapath out of the NIC.
    pub fn flow_flush(&mut self, dp: DpIndex) {
        if let Some(nic) = &mut self.nic {
            nic.forget_all(dp);
        }
    }

    /// Where flows are, and what hardware counted.
    pub fn look(&mut self, dp: DpIndex, ids: &[FlowId]) -> Vec<Option<InNic>> {
        match self.nic.as_mut().filter(|nic| nic.serves(dp)) {
            Some(nic) => {
                let now = now_ns();
                ids.iter().map(|id| nic.look(dp, *id, now)).collect()
            }
            None => vec![None; ids.len()],
        }
    }

    /// Does actions to a packet from the user.
    pub fn execute(&mut self, dp: DpIndex, mut given: GivenPacket) {
        let Some(lane) = self.lanes.get_mut(&dp) else { return };
        let Lane { worker, outlets, .. } = lane;
        self.exits.upcalls.set_asker(given.upcall_pid);
        let mut route = Route { dp, outlets, exits: &mut self.exits };
        worker.execute(&given.program, &mut given.packet, now_ns() / 1_000_000, &mut route);
        self.exits.upcalls.set_asker(None);
        lane.outlets.flush();
    }

    /// Takes a burst from a port; how many packets it was.
    fn receive(&mut self, n: usize) -> usize {
        let Self { inlets, lanes, exits, burst, epoll, lost, .. } = self;
        let Some(Some(inlet)) = inlets.get_mut(n) else { return 0 };
        let (dp, port) = (inlet.dp, inlet.port);
        let Some(lane) = lanes.get_mut(&dp) else { return 0 };
        let now_ms = now_ns() / 1_000_000;
        let metadata = Metadata { in_port: port.0, ..Metadata::default() };
        let received = inlet.source.receive(burst, &mut |frame, tunnel| {
            if lane.batch.is_full() {
                lane.process(dp, exits, now_ms);
            }
            if let Some(packet) = lane.batch.next_packet() {
                packet.fill(frame.data, metadata);
                packet.offload = frame.offload;
                if let Some(tunnel) = tunnel {
                    packet.set_tunnel(tunnel);
                    packet.packet_type = PacketType(tunnel.packet_type.get());
                }
            }
        });
        lane.process(dp, exits, now_ms);
        lane.outlets.flush();
        match received {
            Ok(count) => count,
            Err(PortError::Link(LinkState::Gone)) => {
                // It stays readable for ever. Whoever watches the host's devices takes the port away; a device that went in
                // another namespace nobody watches.
                let _ = epoll.delete(inlet.source.as_fd());
                lost(dp, port);
                0
            }
            Err(error) => {
                tracing::debug!(port = port.0, %error, "receive");
                0
            }
        }
    }

    /// A turn of the NIC; how many packets moved.
    fn nic_turn(&mut self) -> usize {
        let Self { nic: Some(nic), lanes, exits, .. } = self else { return 0 };
        nic.turn(lanes, exits, now_ns())
    }

    fn clear_interrupt(&self) {
        if let Some(interrupt) = self.nic.as_ref().and_then(|nic| nic.driver().interrupt()) {
            let mut count = [0; 8];
            // The count does not matter, only that it is 0 afterwards.
            let _ = nix::unistd::read(interrupt, &mut count);
        }
    }
}
