//! A simulated NIC on a thread of its own, its driver, and entries for its largest hash table.

use super::cpu;
use super::forward::Frames;
use anyhow::{Context, Result, bail, ensure};
use flowlift_bus::PciFunction;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{
    ActionKind, Entry, EntryId, Field, NicAction, NicEvent, NicPort, TableCaps, TableId, TableKind, Update,
    UpdateResult, UpdateStatus,
};
use flowlift_sim::{HostClock, Profile, Wire};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// An update that has no answer for so long will not get one.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A simulated NIC and its driver.
pub(super) struct Card {
    pub(super) function: Arc<InProc<flowlift_sim::Fl1>>,
    pub(super) stop: AtomicBool,
    /// CPU time in nanoseconds of the steps in which [`Self::work`] found something to do.
    pub(super) busy_ns: AtomicU64,
    /// Frames that these steps took from wires.
    pub(super) frames: AtomicU64,
}

impl Card {
    pub(super) fn new() -> Result<Self> {
        let config = flowlift_sim::Config {
            seed: 1,
            faults: Default::default(),
            clock: Box::new(HostClock::default()),
        };
        let device = flowlift_sim::Fl1::new(Profile::large(), config);
        let config = InProcConfig { name: "simulated FL1".into(), ..InProcConfig::default() };
        Ok(Self {
            function: InProc::new(device, config)?,
            stop: AtomicBool::new(false),
            busy_ns: AtomicU64::new(0),
            frames: AtomicU64::new(0),
        })
    }

    /// Runs `drive` on the first core while the device works on the second.
    pub(super) fn driven<T>(&self, cores: &[usize], drive: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The figures of a device that is not alone on its core are lower, not wrong.
                let _ = cpu::pin(cores[1]);
                self.work();
            });
            let done = cpu::pin(cores[0]).and_then(|()| drive());
            self.stop.store(true, Ordering::Relaxed);
            done
        })
    }

    /// The device, until [`Self::stop`] is set.
    pub(super) fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let start = cpu::thread_time();
            let report = self.function.model().step();
            if report.is_idle() {
                std::hint::spin_loop();
            } else {
                let spent = (cpu::thread_time() - start).as_nanos() as u64;
                self.busy_ns.fetch_add(spent, Ordering::Relaxed);
                self.frames.fetch_add(report.frames.into(), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn open(&self) -> Result<Fl1> {
        let function: Arc<dyn PciFunction> = Arc::clone(&self.function) as Arc<dyn PciFunction>;
        Fl1::open(function, Fl1Config::default()).context("cannot bring the simulated NIC up")
    }
}

/// A wire on which frames come in a circle as fast as the device takes them, and that counts those that leave.
pub(super) struct CircleWire {
    frames: Frames,
    next: usize,
    sent: Arc<AtomicU64>,
}

impl CircleWire {
    /// With these frames, or none; the count of frames that leave.
    pub(super) fn new(frames: Frames) -> (Self, Arc<AtomicU64>) {
        let sent = Arc::new(AtomicU64::new(0));
        (Self { frames, next: 0, sent: Arc::clone(&sent) }, sent)
    }
}

impl Wire for CircleWire {
    fn front(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let any = self.next < self.frames.len();
        if any {
            frame.extend_from_slice(self.frames.get(self.next));
        }
        any
    }

    fn pop(&mut self) {
        self.next = (self.next + 1) % self.frames.len().max(1);
    }

    fn send(&mut self, _: &[u8]) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    fn link_up(&self) -> bool {
        true
    }
}

/// Entries of five-tuples, made from a template.
pub(super) struct Entries {
    pub(super) table: TableId,
    template: Entry,
    /// Places of the source address and port in the key.
    src: usize,
    sport: usize,
}

impl Entries {
    /// For the largest hash table of the first stage.
    pub(super) fn new(tables: &[TableCaps]) -> Result<Self> {
        let hashes = tables.iter().filter(|t| matches!(t.kind, TableKind::Hash { .. }) && t.stage.0 == 0);
        let caps = hashes.max_by_key(|t| t.max_entries).context("the NIC has no hash table")?;
        ensure!(caps.actions.has(ActionKind::Output), "the NIC's hash table cannot output");
        let len = usize::from(caps.key_len);
        let mut template = Entry {
            priority: 0,
            key: std::iter::repeat_n(0, len).collect(),
            mask: std::iter::repeat_n(0, len).collect(),
            actions: [NicAction::Output(NicPort(1))].into_iter().collect(),
        };
        let place = |field: Field| -> Result<std::ops::Range<usize>> {
            let caps = caps.fields.iter().find(|f| f.field == field);
            let caps = caps.with_context(|| format!("the NIC's hash table has no {}", field.name()))?;
            let start = usize::from(caps.offset);
            Ok(start..start + usize::from(caps.width.div_ceil(8)))
        };
        let values: [(Field, &[u8]); 7] = [
            (Field::InPort, &[0, 1]),
            (Field::EthType, &[8, 0]),
            (Field::IpProto, &[17]),
            (Field::Ipv4Src, &[0; 4]),
            (Field::Ipv4Dst, &[11, 0, 0, 1]),
            (Field::L4Src, &[0; 2]),
            (Field::L4Dst, &[7, 208]),
        ];
        for (field, value) in values {
            let range = place(field)?;
            template.mask.get_mut(range.clone()).context("a field past the key's end")?.fill(0xff);
            template.key.get_mut(range).context("a field past the key's end")?.copy_from_slice(value);
        }
        Ok(Self {
            table: caps.id,
            template,
            src: place(Field::Ipv4Src)?.start,
            sport: place(Field::L4Src)?.start,
        })
    }

    fn id(&self, n: u32) -> EntryId {
        EntryId { table: self.table, index: n }
    }

    /// Entry number `n`, with output to `port`.
    fn entry(&self, n: u32, port: u16) -> Entry {
        let mut entry = self.template.clone();
        entry.key[self.src..self.src + 4].copy_from_slice(&(0x0a00_0000 | n).to_be_bytes());
        entry.key[self.sport..self.sport + 2].copy_from_slice(&(n as u16).to_be_bytes());
        entry.actions[0] = NicAction::Output(NicPort(port));
        entry
    }

    pub(super) fn insert(&self, n: u32) -> Update {
        Update::Insert { cookie: n.into(), id: self.id(n), entry: self.entry(n, 2) }
    }

    pub(super) fn replace(&self, n: u32) -> Update {
        Update::Replace { cookie: n.into(), id: self.id(n), entry: self.entry(n, 3) }
    }

    pub(super) fn delete(&self, n: u32) -> Update {
        Update::Delete { cookie: n.into(), id: self.id(n) }
    }
}

/// Checks one answer; gives the number of its update.
pub(super) fn check(result: &UpdateResult, number: usize) -> Result<usize> {
    ensure!(result.status == UpdateStatus::Ok, "update {}: {:?}", result.cookie, result.status);
    let n = usize::try_from(result.cookie).ok().filter(|n| *n < number);
    n.with_context(|| format!("an answer for update {}, which there was not", result.cookie))
}

/// Fails if the device reported anything that a run without faults does not have. Table pressure is none of that.
pub(super) fn unexpected(events: &mut Vec<NicEvent>) -> Result<()> {
    for event in events.drain(..) {
        if !matches!(event, NicEvent::TablePressure { .. } | NicEvent::Link { .. }) {
            bail!("the device reports {event:?}");
        }
    }
    Ok(())
}
