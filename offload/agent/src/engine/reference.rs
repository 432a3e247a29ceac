//! The linear reference: every packet against every flow.

use super::{Arrival, FlowTotals, Out, PacketCounts, Run, metadata, to_ms};
use crate::ledger::Ledger;
use anyhow::Result;
use flowlift_flow::Flow;
use flowlift_softpath::{Packet, Reference};

/// See the module's head.
pub struct ReferenceRun {
    reference: Reference,
    packet: Packet,
    out: Out,
    total: u64,
}

impl ReferenceRun {
    /// A reference with these flows, in the order of loading.
    ///
    /// # Errors
    /// A flow whose actions the softpath does not run.
    pub fn new(flows: impl Iterator<Item = Flow>, seed: u64, ledger: Ledger) -> Result<Self> {
        let mut reference = Reference::new(seed);
        for flow in flows {
            reference.put(&flow)?;
        }
        Ok(Self { reference, packet: Packet::new(), out: Out::new(ledger), total: 0 })
    }
}

impl Run for ReferenceRun {
    fn arrive(&mut self, arrivals: &[Arrival<'_>]) -> Result<()> {
        for arrival in arrivals {
            self.total += 1;
            self.out.now_ns = arrival.now_ns;
            self.packet.fill(arrival.frame, metadata(arrival));
            self.reference.process(&mut self.packet, to_ms(arrival.now_ns), &mut self.out);
        }
        Ok(())
    }

    fn counts(&self) -> PacketCounts {
        self.out.counts(self.total)
    }

    fn totals(&mut self, flow: usize) -> FlowTotals {
        self.reference.flows().get(flow).map(|flow| flow.stats.into()).unwrap_or_default()
    }

    fn flow(&mut self, flow: usize) -> Option<Flow> {
        Some(self.reference.flows().get(flow)?.flow.clone())
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.out.ledger
    }
}
