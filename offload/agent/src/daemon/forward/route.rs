//! Where packets go from the softpath: ports of the host, ports of the NIC, and up to the user.

use super::tunnel::TunnelOutlet;
use super::upcall::Upcalls;
use flowlift_driver::nic::{NicPort, SlowTx};
use flowlift_flow::{Key, PortNo};
use flowlift_ovs::backend::DpIndex;
use flowlift_port::{Frame, FrameSink};
use flowlift_softpath::packet::PacketType;
use flowlift_softpath::{Dropped, Outgoing, Sink, Upcall};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets that wait for room in the NIC's TX queues; more are lost, and counted.
const NIC_BACKLOG: usize = 4096;

/// Time between two messages about the same trouble.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A port as packets leave by it.
pub enum Outlet {
    /// A device of the host.
    Host(Box<dyn FrameSink + Send>),
    /// A tunnel.
    Tunnel(Box<TunnelOutlet>),
    /// A port of the NIC.
    Nic(NicPort),
}

/// The ports of a datapath by number.
#[derive(Default)]
pub(super) struct Outlets {
    by_port: Vec<Option<Outlet>>,
    /// Ports whose sender keeps frames to send many together.
    unflushed: Vec<PortNo>,
}

impl Outlets {
    /// Adds, replaces or takes away a port.
    pub(super) fn set(&mut self, port: PortNo, outlet: Option<Outlet>) {
        let n = port.0 as usize;
        if self.by_port.len() <= n {
            self.by_port.resize_with(n + 1, || None);
        }
        self.by_port[n] = outlet;
    }

    /// A port's sender may keep frames until [`Self::flush`].
    fn has_kept(&mut self, port: PortNo) {
        if self.unflushed.last() != Some(&port) {
            self.unflushed.push(port);
        }
    }

    /// Sends what senders keep.
    pub(super) fn flush(&mut self) {
        for port in self.unflushed.drain(..) {
            match self.by_port.get_mut(port.0 as usize) {
                // The port has counted what it lost.
                Some(Some(Outlet::Host(sender))) => drop(sender.flush()),
                Some(Some(Outlet::Tunnel(sender))) => sender.flush(),
                _ => {}
            }
        }
    }
}

/// What was counted on the way out, of all datapaths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteCounters {
    /// Packets for ports that there are not.
    pub no_port: u64,
    /// Packets lost since the NIC's TX queues were full for too long.
    pub nic_full: u64,
    /// Packets dropped on purpose.
    pub dropped: u64,
    /// Packets without an Ethernet header for ports that carry frames only.
    pub no_ethernet: u64,
}

/// What all datapaths share on the way out.
pub struct Exits {
    /// Packets for the NIC's TX queues, in order.
    pub nic: VecDeque<(SlowTx, Vec<u8>)>,
    /// Buffers of packets that the NIC has taken.
    pub spare: Vec<Vec<u8>>,
    /// Packets for the user.
    pub upcalls: Upcalls,
    /// See there.
    pub counters: RouteCounters,
    /// When it was told that packets are recirculated too often.
    told: Option<Instant>,
}

impl Exits {
    /// Nothing under way.
    pub fn new(upcalls: Upcalls) -> Self {
        Self {
            nic: VecDeque::new(),
            spare: Vec::new(),
            upcalls,
            counters: RouteCounters::default(),
            told: None,
        }
    }
}

impl Exits {
    /// Tells that the actions of a datapath's flows are a loop; the softpath counts the packets that are dropped for it.
    #[cold]
    fn tell_recirc_limit(&mut self, dp: DpIndex) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(
                datapath = dp.0,
                "packets are recirculated too often and dropped: probably a loop of flows"
            );
        }
    }

    /// Queues a packet for a port of the NIC.
    pub(super) fn queue_for_nic(&mut self, port: NicPort, packet: &[u8]) {
        if self.nic.len() >= NIC_BACKLOG {
            self.counters.nic_full += 1;
            return;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.nic.push_back((SlowTx::Port(port), buffer));
    }
}

/// One datapath's way out.
pub(super) struct Route<'a> {
    /// The datapath.
    pub dp: DpIndex,
    /// Its ports.
    pub outlets: &'a mut Outlets,
    /// What it shares with others.
    pub exits: &'a mut Exits,
}

impl Route<'_> {
    /// The tunnel with which a packet would leave by a port, if that is a tunnel.
    fn egress(
        &mut self,
        port: PortNo,
        packet: &[u8],
        packet_type: PacketType,
        tunnel: &Key,
    ) -> Option<Box<Key>> {
        match self.outlets.by_port.get_mut(port.0 as usize) {
            Some(Some(Outlet::Tunnel(outlet))) => outlet.egress(packet, packet_type, tunnel),
            _ => None,
        }
    }
}

impl Sink for Route<'_> {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.output_with(port, Outgoing::frame(packet));
    }

    /// Sends to a port of the host, or queues for one of the NIC, which takes whole packets only. As in the kernel's datapath, a packet
    /// without an Ethernet header leaves by a tunnel that carries such packets, or not at all.
    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        let Outgoing { bytes, packet_type, offload, tunnel } = packet;
        match self.outlets.by_port.get_mut(port.0 as usize) {
            Some(Some(Outlet::Tunnel(sender))) => {
                sender.send(bytes, packet_type, offload, tunnel);
                self.outlets.has_kept(port);
            }
            Some(Some(_)) if !packet_type.is_ethernet() => self.exits.counters.no_ethernet += 1,
            Some(Some(Outlet::Host(sender))) => {
                // The port has counted what it did not take.
                let _ = sender.send(Frame { offload, ..Frame::new(bytes) });
                self.outlets.has_kept(port);
            }
            Some(Some(Outlet::Nic(port))) => packet.finish(|whole| self.exits.queue_for_nic(*port, whole)),
            Some(None) | None => self.exits.counters.no_port += 1,
        }
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        let (packet, egress) = match &upcall {
            Upcall::Miss { packet, .. } => (packet.bytes(), None),
            Upcall::Action(action) => {
                let egress = action.userspace.tunnel_out_port.zip(action.egress_tunnel);
                let packet_type = PacketType(action.key.packet_type.get());
                let egress =
                    egress.and_then(|(port, tunnel)| self.egress(port, action.packet, packet_type, tunnel));
                (action.packet, egress)
            }
        };
        self.exits.upcalls.push(self.dp, &upcall, packet, egress.as_deref())
    }

    fn dropped(&mut self, why: Dropped) {
        match why {
            Dropped::Action(_) => self.exits.counters.dropped += 1,
            Dropped::RecircLimit => self.exits.tell_recirc_limit(self.dp),
        }
    }
}
