//! Three ways to run the same packets: softpath alone, NIC and softpath, and the linear reference.
//!
//! Each is a [`Run`]. Time is the capture's, given with each packet, so that a run depends on its inputs and seed alone.

mod harness;
mod nic;
mod reference;
mod soft;

pub use harness::{Harness, Injected, Outside, Simulated};
pub use nic::{Audit, NicRun, NicSetup, NicSummary};
pub use reference::ReferenceRun;
pub use soft::SoftRun;

use crate::ledger::{Ledger, Outlet};
use anyhow::Result;
use flowlift_flow::{Flow, Metadata, PortNo};
use flowlift_softpath::{Sink, Upcall};
use serde::Serialize;

/// A packet on its way in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Ingress port.
    pub port: PortNo,
    /// The frame.
    pub frame: &'a [u8],
    /// When it arrives, in nanoseconds on the capture's clock.
    pub now_ns: u64,
}

/// What became of the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PacketCounts {
    /// Packets that arrived.
    pub total: u64,
    /// Handled by the NIC's tables from end to end.
    pub hardware: u64,
    /// Handled by the softpath, wholly or from some stage on.
    pub software: u64,
    /// Matched no flow, at first or after a recirculation: counted and dropped, as there is no user to ask.
    pub missed: u64,
}

/// What a flow's packets added up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FlowTotals {
    /// Packets.
    pub packets: u64,
    /// L2 bytes, without FCS, of the packets as they matched.
    pub bytes: u64,
    /// OR of the TCP flags seen.
    pub tcp_flags: u16,
}

impl FlowTotals {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            tcp_flags: self.tcp_flags | other.tcp_flags,
        }
    }
}

impl From<flowlift_softpath::FlowStats> for FlowTotals {
    fn from(stats: flowlift_softpath::FlowStats) -> Self {
        Self { packets: stats.packets, bytes: stats.bytes, tcp_flags: stats.tcp_flags }
    }
}

/// A way to run packets.
pub trait Run {
    /// Takes packets, in this order.
    ///
    /// # Errors
    /// When the run cannot go on at all; a NIC that fails is no such case.
    fn arrive(&mut self, arrivals: &[Arrival<'_>]) -> Result<()>;
    /// What became of the packets.
    fn counts(&self) -> PacketCounts;
    /// Counters of the flow that was loaded as number `flow`, hardware and software together.
    fn totals(&mut self, flow: usize) -> FlowTotals;
    /// False if [`Run::totals`] of a flow may miss packets, because a NIC handled them that does not count.
    fn is_counted(&self, _flow: usize) -> bool {
        true
    }
    /// The flow that was loaded as number `flow`.
    fn flow(&mut self, flow: usize) -> Option<Flow>;
    /// True if what leaves by a port is seen here, and not only by a NIC.
    fn sees(&self, _port: PortNo) -> bool {
        true
    }
    /// Everything that left.
    fn ledger(&mut self) -> &mut Ledger;
}

/// Where a run without a NIC sends everything: straight into the ledger.
struct Out {
    ledger: Ledger,
    now_ns: u64,
    misses: u64,
}

impl Out {
    fn new(ledger: Ledger) -> Self {
        Self { ledger, now_ns: 0, misses: 0 }
    }

    /// What became of `total` packets.
    fn counts(&self, total: u64) -> PacketCounts {
        PacketCounts { total, hardware: 0, software: total.saturating_sub(self.misses), missed: self.misses }
    }

    /// Records a packet for the user; true if it was an action's and so is taken. There is no user to take misses (R4).
    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        match upcall {
            Upcall::Miss { packet, .. } => {
                self.misses += 1;
                self.ledger.record(Outlet::Miss, packet.bytes(), self.now_ns);
                false
            }
            Upcall::Action(upcall) => {
                self.ledger.record(Outlet::Userspace, upcall.packet, self.now_ns);
                true
            }
        }
    }
}

impl Sink for Out {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.ledger.record(Outlet::Port(port), packet, self.now_ns);
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        Out::upcall(self, upcall)
    }
}

fn metadata(arrival: &Arrival<'_>) -> Metadata {
    Metadata { in_port: arrival.port.0, ..Metadata::default() }
}

fn to_ms(ns: u64) -> u64 {
    ns / 1_000_000
}
