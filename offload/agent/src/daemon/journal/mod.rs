//! What the next daemon needs to go on with flows and meters: a log of their changes, in the folder of the saved datapaths.
//!
//! The plane says what it does and goes on; a thread of its own writes. So a daemon that is killed leaves all but what it did in
//! its last moment, a file whose records have checksums, and whatever part of them is whole. Counters are written when they are
//! shown to somebody, in a dump: what ovs-vswitchd was told never goes back.
//!
//! A flow that was deleted in the last moment comes back with the next daemon; ovs-vswitchd finds it in its next dump and deletes
//! it again, as it does with any flow that it does not know.
//!
//! What waits for the disk is bounded ([`queue`]). A disk that is full, or too slow for what changes, makes the file useless: it is
//! taken away, and when the disk is there again, the thread asks the plane for everything, a slice at a time, and writes a new one.

mod log;
mod queue;
mod record;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

pub use queue::{JournalStatus, Position};
pub use record::Subject;

use flowlift_flow::Flow;
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::{FlowId, FlowStats, MeterConfig};
use queue::{Order, Queue};
use record::{Record, decode_flow, encode_flow};
use shared::Shared;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use writer::Writer;

/// Bytes that wait for the disk at most; the thread may have as many in its hands.
const WAITING: usize = 32 << 20;

/// Asks the plane to tell everything from there on. It does not wait.
pub type Ask = Box<dyn Fn(Position) + Send>;

/// The journal that this daemon writes.
#[derive(Debug)]
pub struct Journal {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

/// What the daemon before left of one datapath.
#[derive(Debug, Default, PartialEq)]
pub struct SavedFlows {
    /// Flows with what they had seen.
    pub flows: Vec<(Flow, FlowStats)>,
    /// Meters.
    pub meters: Vec<(u32, MeterConfig)>,
    /// What the datapath, its ports and its meters had counted.
    pub totals: BTreeMap<Subject, Vec<u64>>,
}

impl Journal {
    /// Begins `owner`'s journal. It takes the place of the one at `path` with [`Self::publish`]. `ask` is asked for everything
    /// when the journal has to begin anew.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: &Path, owner: &str, ask: Ask) -> io::Result<Self> {
        Self::with_limit(path, owner, ask, WAITING)
    }

    fn with_limit(path: &Path, owner: &str, ask: Ask, limit: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(limit));
        let writer = Writer::new(path, owner, Arc::clone(&queue), ask);
        let thread = Builder::new().name("journal".into()).spawn(move || writer.run())?;
        Ok(Self { queue, thread })
    }

    fn tell(&self, record: Record) {
        self.queue.push(Order::Write(record));
    }

    /// All that was there is in the journal: the one of the daemon before is of no use any more.
    pub fn publish(&self) {
        self.queue.push(Order::Publish);
    }

    /// What was asked for is told up to `position`; `None` for all of it.
    pub fn told(&self, asked: Position, position: Option<(DpIndex, u64)>) {
        let beginning = asked.beginning;
        let next = position.map(|(dp, slot)| Position { beginning, dp, slot });
        self.queue.push(Order::Told(beginning, next));
    }

    /// Something that the next daemon needs could not be saved elsewhere: everything has to be saved anew.
    pub fn fail(&self, why: String) {
        self.queue.fail(why);
    }

    /// How it does.
    pub fn status(&self) -> JournalStatus {
        self.queue.status()
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

    /// A meter is set, and has counted nothing; `None` if it is no more.
    pub fn meter(&self, dp: DpIndex, id: u32, config: Option<MeterConfig>) {
        self.tell(match config {
            Some(config) => Record::Meter(dp, id, config),
            None => Record::MeterGone(dp, id),
        });
    }

    /// What the subject has counted in all; nothing if it is no more.
    pub fn totals(&self, dp: DpIndex, subject: Subject, totals: Vec<u64>) {
        self.tell(Record::Totals(dp, subject, totals));
    }

    /// Waits until all is written.
    pub fn close(self) {
        self.queue.close();
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
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
    let mut shared = Shared::default();
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
        Record::Meter(..) | Record::MeterGone(..) | Record::Totals(..) => {
            shared.take(&record);
        }
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
    for ((dp, id), config) in shared.meters {
        saved.entry(dp).or_default().meters.push((id, config));
    }
    for ((dp, subject), all) in shared.totals {
        saved.entry(dp).or_default().totals.insert(subject, all);
    }
    saved
}
