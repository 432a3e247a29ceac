//! Where packets go from the softpath: ports of the host, ports of the NIC, and up to the user.

use super::upcall::Upcalls;
use crate::daemon::offload::Original;
use flowlift_driver::nic::{NicPort, SlowTx};
use flowlift_flow::PortNo;
use flowlift_ovs::backend::DpIndex;
use flowlift_port::{Frame, FrameSink};
use flowlift_softpath::{Dropped, Sink, Upcall};
use std::collections::VecDeque;

/// Packets that wait for room in the NIC's TX queues; more are lost, and counted.
const NIC_BACKLOG: usize = 4096;

/// A port as packets leave by it.
pub enum Outlet {
    /// A device of the host.
    Host(Box<dyn FrameSink + Send>),
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

    /// Sends what senders keep.
    pub(super) fn flush(&mut self) {
        for port in self.unflushed.drain(..) {
            if let Some(Some(Outlet::Host(sender))) = self.by_port.get_mut(port.0 as usize) {
                // The port has counted what it lost.
                let _ = sender.flush();
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
    /// Unfinished packets that nobody can finish.
    pub unfinished: u64,
    /// Packets dropped on purpose.
    pub dropped: u64,
}

/// What all datapaths share on the way out.
pub struct Exits {
    /// Packets for the NIC's TX queues, in order.
    pub nic: VecDeque<(SlowTx, Vec<u8>)>,
    /// Buffers of packets that the NIC has taken.
    pub spare: Vec<Vec<u8>>,
    /// Packets for the user.
    pub upcalls: Upcalls,
    /// The packet under way as it came in.
    pub original: Original,
    /// See there.
    pub counters: RouteCounters,
    /// Segments of unfinished frames.
    pub scratch: Vec<u8>,
}

impl Exits {
    /// Nothing under way.
    pub fn new(upcalls: Upcalls) -> Self {
        Self {
            nic: VecDeque::new(),
            spare: Vec::new(),
            upcalls,
            original: Original::default(),
            counters: RouteCounters::default(),
            scratch: Vec::new(),
        }
    }
}

/// A buffer of frames for the NIC.
fn queue(
    nic: &mut VecDeque<(SlowTx, Vec<u8>)>,
    spare: &mut Vec<Vec<u8>>,
    counters: &mut RouteCounters,
    port: NicPort,
    frame: &[u8],
) {
    if nic.len() >= NIC_BACKLOG {
        counters.nic_full += 1;
        return;
    }
    let mut buffer = spare.pop().unwrap_or_default();
    buffer.clear();
    buffer.extend_from_slice(frame);
    nic.push_back((SlowTx::Port(port), buffer));
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

impl Sink for Route<'_> {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        let Exits { nic, spare, original, counters, scratch, .. } = &mut *self.exits;
        let Some(Some(outlet)) = self.outlets.by_port.get_mut(port.0 as usize) else {
            counters.no_port += 1;
            return;
        };
        let (packet, offload) = original.outgoing(packet);
        match outlet {
            Outlet::Host(sender) => {
                // The port has counted what it did not take.
                let _ = sender.send(Frame { offload, ..Frame::new(packet) });
                if self.outlets.unflushed.last() != Some(&port) {
                    self.outlets.unflushed.push(port);
                }
            }
            Outlet::Nic(port) => match offload {
                None => queue(nic, spare, counters, *port, packet),
                Some(offload) => {
                    let mut each = |segment: &[u8]| queue(nic, spare, counters, *port, segment);
                    if flowlift_port::offload::finish(packet, &offload, scratch, &mut each).is_err() {
                        counters.unfinished += 1;
                    }
                }
            },
        }
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        let Exits { upcalls, original, scratch, counters, .. } = &mut *self.exits;
        let packet = match &upcall {
            Upcall::Miss { packet, .. } => packet.bytes(),
            Upcall::Action(action) => action.packet,
        };
        let (packet, offload) = original.outgoing(packet);
        let Some(offload) = offload else { return upcalls.push(self.dp, &upcall, packet) };
        // The user gets packets as they would be on a wire, each segment by itself.
        let mut taken = true;
        let mut each = |segment: &[u8]| taken &= upcalls.push(self.dp, &upcall, segment);
        if flowlift_port::offload::finish(packet, &offload, scratch, &mut each).is_err() {
            counters.unfinished += 1;
            return false;
        }
        taken
    }

    fn dropped(&mut self, _: Dropped) {
        self.exits.counters.dropped += 1;
    }
}
