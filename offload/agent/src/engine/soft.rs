//! The softpath alone.

use super::{Arrival, FlowTotals, Out, PacketCounts, Run, metadata, to_ms};
use crate::ledger::Ledger;
use anyhow::Result;
use flowlift_flow::Flow;
use flowlift_softpath::{Batch, Datapath, FlowId, Worker};

/// See the module's head.
pub struct SoftRun {
    datapath: Datapath,
    worker: Worker,
    batch: Batch,
    flows: Vec<FlowId>,
    out: Out,
    total: u64,
}

impl SoftRun {
    /// Runs packets through `datapath`; `flows` are its flows in the order of loading.
    pub fn new(datapath: Datapath, flows: Vec<FlowId>, seed: u64, ledger: Ledger) -> Self {
        let mut worker = datapath.worker();
        worker.reseed(seed);
        Self { datapath, worker, batch: Batch::new(), flows, out: Out::new(ledger), total: 0 }
    }

    fn flush(&mut self) {
        self.worker.process(&mut self.batch, to_ms(self.out.now_ns), &mut self.out);
        self.batch.clear();
    }
}

impl Run for SoftRun {
    fn arrive(&mut self, arrivals: &[Arrival<'_>]) -> Result<()> {
        for arrival in arrivals {
            // A batch is one moment to flows and captures.
            let moment = if self.out.ledger.has_captures() {
                arrival.now_ns == self.out.now_ns
            } else {
                to_ms(arrival.now_ns) == to_ms(self.out.now_ns)
            };
            if self.batch.is_full() || (!moment && !self.batch.is_empty()) {
                self.flush();
            }
            self.total += 1;
            self.out.now_ns = arrival.now_ns;
            self.batch.push(arrival.frame, metadata(arrival));
        }
        self.flush();
        Ok(())
    }

    fn counts(&self) -> PacketCounts {
        self.out.counts(self.total)
    }

    fn totals(&mut self, flow: usize) -> FlowTotals {
        let stats = self.flows.get(flow).and_then(|id| self.datapath.stats(*id));
        stats.map(FlowTotals::from).unwrap_or_default()
    }

    fn flow(&mut self, flow: usize) -> Option<Flow> {
        self.datapath.flow(*self.flows.get(flow)?)
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.out.ledger
    }
}
