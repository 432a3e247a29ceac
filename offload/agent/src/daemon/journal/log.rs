//! The journal's file: appended to, and rewritten when most of it is of no use any more.
//!
//! Who appends remembers where each living flow's record is, so a rewrite copies from file to file and asks nobody.

use super::record::{COUNTED_MAX, Record};
use super::shared::Shared;
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::{FlowId, FlowStats};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file is rewritten when it is this much longer than twice what lives in it, in bytes.
const SLACK: u64 = 4 << 20;
/// Bytes that a rewrite copies at a time.
const COPY: usize = 1 << 20;

/// A flow that lives.
#[derive(Debug, Clone, Copy)]
struct Living {
    generation: u32,
    /// Where its record is, and how long it is.
    at: u64,
    len: u32,
    stats: FlowStats,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    owner: String,
    file: File,
    len: u64,
    /// The file has its name; before, the one of the daemon before has.
    published: bool,
    /// Records that are not in the file yet; they follow its end.
    pending: Vec<u8>,
    flows: HashMap<(DpIndex, u32), Living>,
    shared: Shared,
    /// Bytes of the living flows' records.
    living: u64,
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Log {
    /// A journal that gets the name `path` with [`Self::publish`], of this owner.
    pub(super) fn create(path: &Path, owner: &str) -> io::Result<Self> {
        let file = create(&path.with_extension("new"))?;
        let mut log = Self {
            path: path.to_path_buf(),
            owner: owner.to_owned(),
            file,
            len: 0,
            published: false,
            pending: Vec::new(),
            flows: HashMap::new(),
            shared: Shared::default(),
            living: 0,
        };
        Record::Header(owner.to_owned()).encode(&mut log.pending);
        Ok(log)
    }

    /// Puts the file in the place of the one of the daemon before.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        self.write()?;
        if self.published {
            return Ok(());
        }
        fs::rename(self.path.with_extension("new"), &self.path)?;
        self.published = true;
        Ok(())
    }

    /// Bytes that wait for [`Self::write`].
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes a record.
    pub(super) fn take(&mut self, record: Record) {
        match record {
            Record::Put(dp, id, _) => return self.put(dp, id, &record),
            Record::Delete(dp, id) => match self.flows.remove(&(dp, id.slot)) {
                Some(gone) => self.living -= u64::from(gone.len),
                None => return,
            },
            Record::Forget(dp) => {
                let mut gone = 0;
                self.flows.retain(|(of, _), flow| {
                    let stays = *of != dp;
                    gone += if stays { 0 } else { u64::from(flow.len) };
                    stays
                });
                self.living -= gone;
            }
            Record::Counted(dp, all) => return self.counted(dp, all),
            Record::Meter(..) | Record::MeterGone(..) | Record::Totals(..) => {
                if !self.shared.take(&record) {
                    return;
                }
            }
            Record::Header(_) => {}
        }
        record.encode(&mut self.pending);
    }

    fn put(&mut self, dp: DpIndex, id: FlowId, record: &Record) {
        let start = self.pending.len();
        record.encode(&mut self.pending);
        let len = (self.pending.len() - start) as u32;
        let at = self.len + start as u64;
        let mut flow = Living { generation: id.generation, at, len, stats: FlowStats::default() };
        self.living += u64::from(len);
        if let Some(before) = self.flows.get(&(dp, id.slot)) {
            self.living -= u64::from(before.len);
            if before.generation == id.generation {
                // New actions leave what was counted.
                flow.stats = before.stats;
            }
        }
        self.flows.insert((dp, id.slot), flow);
    }

    fn counted(&mut self, dp: DpIndex, mut all: Vec<(FlowId, FlowStats)>) {
        // Most flows of a dump have seen nothing since the last one.
        all.retain(|(id, stats)| match self.flows.get_mut(&(dp, id.slot)) {
            Some(flow) if flow.generation == id.generation && flow.stats != *stats => {
                flow.stats = *stats;
                true
            }
            _ => false,
        });
        for some in all.chunks(COUNTED_MAX) {
            Record::Counted(dp, some.to_vec()).encode(&mut self.pending);
        }
    }

    /// Writes what was taken.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.len += self.pending.len() as u64;
        self.pending.clear();
        if self.published && self.len > 2 * self.living + SLACK { self.rewrite() } else { Ok(()) }
    }

    /// Replaces the file by one with what lives alone, in one step.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut new = Self::create(&self.path, &self.owner)?;
        let mut order: Vec<(&(DpIndex, u32), &Living)> = self.flows.iter().collect();
        order.sort_unstable_by_key(|(_, flow)| flow.at);
        for (name, flow) in &order {
            let at = new.len + new.pending.len() as u64;
            let start = new.pending.len();
            new.pending.resize(start + flow.len as usize, 0);
            self.file.read_exact_at(&mut new.pending[start..], flow.at)?;
            new.living += u64::from(flow.len);
            new.flows.insert(**name, Living { at, ..**flow });
            if new.pending.len() >= COPY {
                new.write()?;
            }
        }
        let mut counted: BTreeMap<DpIndex, Vec<(FlowId, FlowStats)>> = BTreeMap::new();
        for ((dp, slot), flow) in order {
            if flow.stats != FlowStats::default() {
                let id = FlowId { slot: *slot, generation: flow.generation };
                counted.entry(*dp).or_default().push((id, flow.stats));
            }
        }
        for (dp, all) in counted {
            for some in all.chunks(COUNTED_MAX) {
                Record::Counted(dp, some.to_vec()).encode(&mut new.pending);
            }
        }
        for ((dp, id), config) in &self.shared.meters {
            new.take(Record::Meter(*dp, *id, config.clone()));
        }
        for ((dp, subject), all) in &self.shared.totals {
            new.take(Record::Totals(*dp, *subject, all.clone()));
        }
        new.publish()?;
        *self = new;
        Ok(())
    }
}
