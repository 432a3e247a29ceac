//! What the next daemon needs to go on with flows and meters: a log of their changes, in the folder of the saved datapaths.
//!
//! The plane says what it does and goes on; a thread of its own writes. So a daemon that is killed leaves all but what it did in
//! its last moment, a file whose records have checksums, and whatever part of them is whole. Counters are written when they are
//! shown to somebody, in a dump: what ovs-vswitchd was told never goes back.
//!
//! A flow that was deleted in the last moment comes back with the next daemon; ovs-vswitchd finds it in its next dump and deletes
//! it again, as it does with any flow that it does not know.

mod log;
mod record;
#[cfg(test)]
mod tests;

use flowlift_flow::Flow;
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::{FlowId, FlowStats, MeterConfig};
use log::Log;
use record::{Record, decode_flow, encode_flow};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Bytes that are gathered for one write.
const GATHER: usize = 256 << 10;
/// Time between two writes at least: while flows come and go without end, the thread is woken once for all of that time.
const INTERVAL: Duration = Duration::from_millis(2);

/// What the writing thread is told.
#[derive(Debug)]
enum Order {
    Write(Record),
    Publish,
}

/// The journal that this daemon writes.
#[derive(Debug)]
pub struct Journal {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

/// What the daemon before left of one datapath.
#[derive(Debug, Default, PartialEq)]
pub struct SavedFlows {
    /// Flows with what they had seen.
    pub flows: Vec<(Flow, FlowStats)>,
    /// Meters.
    pub meters: Vec<(u32, MeterConfig)>,
}

impl Journal {
    /// Begins `owner`'s journal. It takes the place of the one at `path` with [`Self::publish`].
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn start(path: &Path, owner: &str) -> io::Result<Self> {
        let log = Log::create(path, owner)?;
        let (orders, inbox) = channel();
        let thread = Builder::new().name("journal".into()).spawn(move || write(log, &inbox))?;
        Ok(Self { orders, thread })
    }

    fn tell(&self, record: Record) {
        // Without its thread there is no journal, which was told.
        let _ = self.orders.send(Order::Write(record));
    }

    /// All that was there is in the journal: the one of the daemon before is of no use any more.
    pub fn publish(&self) {
        let _ = self.orders.send(Order::Publish);
    }

    /// A flow is there, or has new actions.
    pub fn put(&self, dp: DpIndex, id: FlowId, flow: &Flow) {
        if let Some(bytes) = encode_flow(flow) {
            self.tell(Record::Put(dp, id, bytes));
        }
    }

    /// A flow is no more.
    pub fn delete(&self, dp: DpIndex, id: FlowId) {
        self.tell(Record::Delete(dp, id));
    }

    /// All flows of a datapath are no more.
    pub fn forget(&self, dp: DpIndex) {
        self.tell(Record::Forget(dp));
    }

    /// What flows have seen in all; those that are not in the journal are passed over.
    pub fn counted(&self, dp: DpIndex, flows: Vec<(FlowId, FlowStats)>) {
        self.tell(Record::Counted(dp, flows));
    }

    /// A meter is set; `None` if it is no more.
    pub fn meter(&self, dp: DpIndex, id: u32, config: Option<MeterConfig>) {
        self.tell(match config {
            Some(config) => Record::Meter(dp, id, config),
            None => Record::MeterGone(dp, id),
        });
    }

    /// Waits until all is written.
    pub fn close(self) {
        drop(self.orders);
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
    }
}

/// The writing thread: all that waits is one write.
fn write(mut log: Log, orders: &Receiver<Order>) {
    let mut last: Option<Instant> = None;
    while let Ok(first) = orders.recv() {
        if let Some(rest) = last.and_then(|last| INTERVAL.checked_sub(last.elapsed())) {
            sleep(rest);
        }
        let mut order = Some(first);
        let mut result = Ok(());
        while let Some(next) = order.take() {
            match next {
                Order::Write(record) => log.take(record),
                Order::Publish => result = log.publish(),
            }
            if log.pending() < GATHER && result.is_ok() {
                order = orders.try_recv().ok();
            }
        }
        if let Err(error) = result.and_then(|()| log.write()) {
            tracing::warn!(%error, "flows are not saved for the next daemon any more");
            if let Err(error) = log.remove() {
                tracing::warn!(%error, "the journal of flows stays as it is");
            }
            return;
        }
        last = Some(Instant::now());
    }
}

/// What the daemon before left at `path`, by datapath, if it was the same `owner`'s. What cannot be read is told and left out.
pub fn read(path: &Path, owner: &str) -> BTreeMap<DpIndex, SavedFlows> {
    match fs::read(path) {
        Ok(bytes) => collect(&bytes, owner, path),
        Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the flows of the daemon before cannot be read");
            BTreeMap::new()
        }
    }
}

/// The state that a journal's records lead to.
fn collect(bytes: &[u8], owner: &str, path: &Path) -> BTreeMap<DpIndex, SavedFlows> {
    let mut flows: BTreeMap<(DpIndex, u32), (u32, Vec<u8>, FlowStats)> = BTreeMap::new();
    let mut meters: BTreeMap<(DpIndex, u32), MeterConfig> = BTreeMap::new();
    let result = record::read(bytes, owner, |record| match record {
        Record::Header(_) => {}
        Record::Put(dp, id, flow) => {
            let place = flows.entry((dp, id.slot)).or_default();
            let stats = if place.0 == id.generation { place.2 } else { FlowStats::default() };
            *place = (id.generation, flow, stats);
        }
        Record::Delete(dp, id) => drop(flows.remove(&(dp, id.slot))),
        Record::Forget(dp) => flows.retain(|(of, _), _| *of != dp),
        Record::Counted(dp, all) => {
            for (id, stats) in all {
                if let Some(flow) = flows.get_mut(&(dp, id.slot)).filter(|flow| flow.0 == id.generation) {
                    flow.2 = stats;
                }
            }
        }
        Record::Meter(dp, id, config) => drop(meters.insert((dp, id), config)),
        Record::MeterGone(dp, id) => drop(meters.remove(&(dp, id))),
    });
    if let Err(damage) = result {
        let (path, flows) = (path.display(), flows.len());
        tracing::warn!(%path, %damage, flows, "the journal of flows is read up to there");
    }
    let mut saved: BTreeMap<DpIndex, SavedFlows> = BTreeMap::new();
    let (mut unreadable, mut reason) = (0, String::new());
    for ((dp, _), (_, bytes, stats)) in flows {
        match decode_flow(&bytes) {
            Ok(flow) => saved.entry(dp).or_default().flows.push((flow, stats)),
            Err(error) => (unreadable, reason) = (unreadable + 1, error),
        }
    }
    if unreadable > 0 {
        tracing::warn!(path = %path.display(), flows = unreadable, reason, "flows of the journal make no sense");
    }
    for ((dp, id), config) in meters {
        saved.entry(dp).or_default().meters.push((id, config));
    }
    saved
}
