//! Driver of FL1, the reference NIC, written from fixtures/device/FL1.md.
//!
//! The device is not believed. Whatever it says is checked where it comes in: capability records in `caps`, completions
//! and events in `turn`, records read back in `readback`, packets in `slow`; a vanished device is noticed in one place,
//! `regs::Regs::get`. An impossible answer is counted and left alone, and past a bound the device has failed.
//!
//! The fate of every update is known before it is reported. A completion that does not come is lost after so many
//! heartbeats; the command is then sent again under its generation, which makes it idempotent: an INSERT that had been
//! done answers ENTRY_IN_USE with our generation, a REPLACE does the same once more, and a DELETE that had been done
//! answers NOT_FOUND, while its last counters are in the counter page. That holds because an entry has at most one
//! update in flight: `submit` takes no second one before the first is answered.
//!
//! Nothing waits in a loop but bring-up, which ends at a deadline. Time and waiting come from [`Platform`], so that a
//! test can supply both.

mod admin;
mod bringup;
mod caps;
mod codec;
#[doc(hidden)]
pub mod fuzz;
mod meter;
mod order;
mod readback;
mod regs;
mod seen;
mod slow;
mod turn;
mod wire;

pub use crate::nic::PortCounters;
pub use crate::platform::{Machine, Platform};

use crate::dma::{Arena, FilledRing, Offset};
use crate::nic::{
    Entry, EntryCounters, EntryId, MeterBucket, MeterConfig, Nic, NicCaps, NicError, NicEvent, NicPort,
    NicState, SlowRx, SlowTx, Snapshot, TableId, Update, UpdateResult, UpdateStatus,
};
use crate::standing::{Checkup, Standing};
use admin::{Admin, Task};
use caps::{Identity, TableInfo};
use flowlift_bus::{BusError, PciFunction};
use nix::sys::eventfd::EventFd;
use order::Order;
use readback::ReadBack;
use regs::Regs;
use seen::Seen;
use slow::path::Slow;
pub use slow::path::{SlowBurst, SlowPath};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wire::COMMAND_MAX;

/// Vendor and device ID of an FL1.
pub const PCI_ID: (u16, u16) = (regs::VENDOR as u16, regs::DEVICE as u16);

/// How the driver uses the device. Ring sizes are rounded up to a power of two from 16 to 65,536.
#[derive(Clone)]
pub struct Fl1Config {
    /// Time and waiting.
    pub platform: Arc<dyn Platform>,
    /// Slots of the admin ring; an insert takes 3 to 6.
    pub admin_slots: u32,
    /// Elements of the event ring.
    pub event_ring: u32,
    /// Elements of each slow queue's rings; more where the longest frame needs them.
    pub slow_ring: u32,
    /// Time between two looks at the device's health while it is polled.
    pub check_interval: Duration,
    /// A device without a heartbeat for so long hangs.
    pub hang_deadline: Duration,
    /// Updates that make no progress for so long mean a failed device, as does a bring-up that takes longer.
    pub deadline: Duration,
    /// Keep each flow's order between the tables and the slow path, if the device can. Then [`Nic::slow_done`] must be
    /// called, or the flows that the slow path has had stop.
    pub order: bool,
}

impl Default for Fl1Config {
    fn default() -> Self {
        Self {
            platform: Arc::new(Machine::default()),
            admin_slots: 8192,
            event_ring: 1024,
            // With this, what a device of tens of thousands of entries can reach stays below 8 MiB: all that an ordinary user
            // may lock, unless told otherwise.
            slow_ring: 256,
            check_interval: Duration::from_millis(1),
            hang_deadline: Duration::from_secs(1),
            deadline: Duration::from_secs(5),
            order: false,
        }
    }
}

/// What the driver counted. All of it is zero, but for the first three, with a device that works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fl1Stats {
    /// Doorbells of the admin ring.
    pub doorbells: u64,
    /// Updates given to the device.
    pub updates: u64,
    /// Completions taken.
    pub completions: u64,
    /// Commands sent again because their completion was lost, or their DMA blocked.
    pub resent: u64,
    /// Completions for commands that were answered before.
    pub duplicates: u64,
    /// Completions and events that cannot be: for no command, or with values that no command asked for.
    pub impossible: u64,
    /// Records with another command's sequence number or another generation.
    pub stale_records: u64,
    /// Records with a wrong CRC.
    pub flipped_records: u64,
    /// Resets by this driver.
    pub resets: u64,
}

/// What the device's violation registers hold (FL1.md section 3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Violations {
    /// Since power-on.
    pub total: u32,
    /// Since the last reset.
    pub count: u32,
    /// Code of the first since the last reset.
    pub code: u32,
    /// Its details.
    pub info: u64,
}

/// A table as the driver keeps it.
struct Table {
    info: TableInfo,
    /// Counter page in `pages`.
    page: Offset,
    /// Generation of each installed entry; 0: none.
    generations: Vec<u32>,
    /// A bit per entry: an update is in flight.
    busy: Vec<u64>,
    /// Entries installed.
    used: u32,
    /// Counters as last read.
    seen: Seen,
}

impl Table {
    fn new(info: TableInfo, page: Offset) -> Self {
        let n = info.caps.max_entries as usize;
        Self {
            info,
            page,
            generations: vec![0; n],
            busy: vec![0; n.div_ceil(64)],
            used: 0,
            seen: Seen::new(n),
        }
    }
    fn is_busy(&self, index: u32) -> bool {
        self.busy.get(index as usize / 64).is_some_and(|w| w & 1 << (index % 64) != 0)
    }
    fn set_busy(&mut self, index: u32, busy: bool) {
        if let Some(w) = self.busy.get_mut(index as usize / 64) {
            *w = *w & !(1 << (index % 64)) | u64::from(busy) << (index % 64);
        }
    }
    fn generation(&self, index: u32) -> u32 {
        self.generations.get(index as usize).copied().unwrap_or(0)
    }
    fn set_generation(&mut self, index: u32, generation: u32) {
        if let Some(g) = self.generations.get_mut(index as usize) {
            self.used =
                self.used + u32::from(*g == 0 && generation != 0) - u32::from(*g != 0 && generation == 0);
            *g = generation;
        }
    }
}

/// Memory that the device reads, memory that it writes: it gets no more rights than it needs.
struct Memory {
    to_device: Arena,
    from_device: Arena,
}

/// Heartbeat and progress as last seen.
#[derive(Default)]
struct Health {
    /// When bring-up began: all of it has one deadline.
    began_at: u64,
    checkup: Checkup,
    beat: u32,
    beat_at: u64,
    beat_checks: u32,
    progress_at: u64,
    /// RESET_COUNT since bring-up.
    resets: u32,
    /// EVENTS_LOST as last seen.
    events_lost: u32,
}

/// An FL1 that was brought up. Dropping it stops the device before its memory is unmapped.
pub struct Fl1 {
    // Fields drop in order: the device is stopped by `Drop`, then its memory goes.
    function: Arc<dyn PciFunction>,
    regs: Arc<Regs>,
    config: Fl1Config,
    id: Identity,
    caps: NicCaps,
    tables: Vec<Table>,
    admin: Admin,
    event_ring: FilledRing,
    slow: Arc<Slow>,
    /// Threads beside this may not send.
    slow_closed: bool,
    memory: Arc<Memory>,
    pages: Option<Arena>,
    /// The meter window, and where the meter page lies in `pages`.
    meters: Option<(Arc<meter::Window>, Offset)>,
    caps_at: Offset,
    read_back: ReadBack,
    setup_answer: Option<wire::Completion>,
    standing: Standing,
    health: Health,
    stats: Fl1Stats,
    link: Vec<bool>,
    /// Ports that are to take and send nothing.
    disabled: Vec<bool>,
    next_generation: u32,
    command: Box<[u8; COMMAND_MAX]>,
    order: Order,
    results: Vec<UpdateResult>,
    events: Vec<NicEvent>,
    unsent: Vec<(SlowTx, Vec<u8>)>,
    interrupt: EventFd,
}

impl Fl1 {
    /// Identifies the device, resets it, and brings it up with empty tables and all ports enabled.
    ///
    /// Errors: [`NicError::Invalid`] if the function is no FL1 of a known version, [`NicError::Lies`] if it says
    /// something of itself that cannot be, [`NicError::Failed`] if it does not answer within the deadline.
    pub fn open(function: Arc<dyn PciFunction>, config: Fl1Config) -> Result<Self, NicError> {
        bringup::open(function, config)
    }

    /// What the driver counted.
    pub fn stats(&self) -> Fl1Stats {
        Fl1Stats { doorbells: self.admin.doorbells, ..self.stats }
    }

    /// Why the device is in [`NicState::Failed`].
    pub fn failure(&self) -> Option<&str> {
        self.standing.failure()
    }

    /// Protocol violations that the device noticed: bugs of this driver.
    pub fn violations(&self) -> Result<Violations, NicError> {
        Ok(Violations {
            total: self.regs.get(regs::VIOL_TOTAL)?,
            count: self.regs.get(regs::VIOL_COUNT)?,
            code: self.regs.get(regs::VIOL_CODE)?,
            info: self.regs.get64(regs::VIOL_INFO_LO)?,
        })
    }

    /// What a port counted since the last reset, by its registers: a handful of slow reads.
    pub fn port_counters(&self, port: NicPort) -> Result<PortCounters, NicError> {
        let n = self.port_number(port)?;
        Ok(PortCounters {
            rx_packets: self.regs.get64(regs::PORT_RX_PACKETS_LO.of(n))?,
            rx_bytes: self.regs.get64(regs::PORT_RX_BYTES_LO.of(n))?,
            tx_packets: self.regs.get64(regs::PORT_TX_PACKETS_LO.of(n))?,
            tx_bytes: self.regs.get64(regs::PORT_TX_BYTES_LO.of(n))?,
            rx_slow: self.regs.get64(regs::PORT_RX_SLOW_LO.of(n))?,
            tx_dropped: self.regs.get64(regs::PORT_TX_DROPPED_LO.of(n))?,
        })
    }

    /// A port's Ethernet address, as the device has it.
    pub fn port_address(&self, port: NicPort) -> Result<[u8; 6], NicError> {
        let bits = self.regs.get64(regs::PORT_MAC_LO.of(self.port_number(port)?))?;
        let [.., a, b, c, d, e, f] = bits.to_be_bytes();
        Ok([a, b, c, d, e, f])
    }

    fn port_number(&self, port: NicPort) -> Result<u32, NicError> {
        let n = u32::from(port.0);
        if n == 0 || n > self.id.ports {
            return Err(NicError::Invalid(format!("port {n} of {}", self.id.ports)));
        }
        Ok(n)
    }

    /// The slow queues for threads beside this driver, which go on being its own as well. Where the device keeps order
    /// ([`Nic::slow_done`]), they are done with what they received before the driver's owner says so.
    pub fn slow_path(&self) -> SlowPath {
        SlowPath(Arc::clone(&self.slow))
    }

    /// Lets threads with a [`SlowPath`] send again after a reset: what [`Nic::take_unsent`] gave was sent, or will not be.
    pub fn resume_slow_path(&mut self) {
        if self.slow_closed && self.standing.state() == NicState::Ready && self.unsent.is_empty() {
            self.slow.resume();
            self.slow_closed = false;
        }
    }

    fn table_index(&self, id: TableId) -> Option<usize> {
        self.tables.binary_search_by_key(&id, |t| t.info.caps.id).ok()
    }

    fn table(&self, id: TableId) -> Option<&Table> {
        self.table_index(id).and_then(|i| self.tables.get(i))
    }

    fn table_mut(&mut self, id: TableId) -> Option<&mut Table> {
        let i = self.table_index(id)?;
        self.tables.get_mut(i)
    }

    /// The table of an entry, if there is such an entry.
    fn entry_table(&self, id: EntryId) -> Result<usize, NicError> {
        self.table_index(id.table)
            .filter(|&i| self.tables.get(i).is_some_and(|t| id.index < t.info.caps.max_entries))
            .ok_or_else(|| NicError::Invalid(format!("entry {} of table {}", id.index, id.table.0)))
    }

    fn usable(&self) -> Result<(), NicError> {
        self.standing.usable(self.regs.name())
    }

    fn lies(&self, what: impl Into<String>) -> NicError {
        NicError::Lies { device: self.regs.name().into(), what: what.into() }
    }

    fn failed(&self, why: impl Into<String>) -> NicError {
        NicError::Failed { device: self.regs.name().into(), why: why.into() }
    }

    /// Every error of the device passes here: it changes the state, once.
    fn note<T>(&mut self, result: Result<T, NicError>) -> Result<T, NicError> {
        if self.standing.note(self.regs.name(), &result) {
            self.harvest();
            self.events.push(NicEvent::Gone);
        }
        result
    }

    /// Saves what a device that stopped leaves behind: answers every update, takes back what was not sent, and keeps
    /// what was received. No DMA happens any more.
    fn harvest(&mut self) {
        if let Some((window, _)) = &self.meters {
            window.end_life();
        }
        let (results, tables) = (&mut self.results, &mut self.tables);
        self.admin.abort(|p| match p.task {
            Task::Insert(id, _) | Task::Replace(id, _) | Task::Delete(id) => {
                let table = tables.iter_mut().find(|t| t.info.caps.id == id.table);
                if let Some(t) = table {
                    t.set_busy(id.index, false);
                }
                results.push(UpdateResult {
                    cookie: p.cookie,
                    status: UpdateStatus::Aborted,
                    counters: None,
                });
            }
            Task::Read { .. } | Task::Counters { .. } | Task::Setup => {}
        });
        self.read_back.abort();
        for t in &mut self.tables {
            t.generations.fill(0);
            t.used = 0;
        }
        self.slow.harvest(&mut self.unsent);
        self.slow_closed = true;
    }

    /// Encodes one update into the ring. `Ok(false)`: no room, or its entry has an update in flight.
    fn submit_one(&mut self, update: &Update) -> Result<bool, NicError> {
        let (Update::Insert { cookie, id, .. }
        | Update::Replace { cookie, id, .. }
        | Update::Delete { cookie, id }) = update;
        let (cookie, id) = (*cookie, *id);
        let at = self.entry_table(id)?;
        let Some(table) = self.tables.get(at) else { return Ok(false) };
        if self.admin.room() == 0 || table.is_busy(id.index) {
            return Ok(false);
        }
        let place = (id.index, self.next_generation);
        let (task, encoded) = match update {
            Update::Insert { entry, .. } => (
                Task::Insert(id, place.1),
                codec::encode_insert(&table.info, &self.id, place, entry, &mut self.command[..]),
            ),
            Update::Replace { entry, .. } => (
                Task::Replace(id, place.1),
                codec::encode_replace(&table.info, &self.id, place, entry, &mut self.command),
            ),
            Update::Delete { .. } => {
                let command = wire::delete_command(id.table.0, id.index);
                self.command[..command.len()].copy_from_slice(&command);
                (Task::Delete(id), Ok(command.len()))
            }
        };
        let len = encoded.map_err(NicError::Invalid)?;
        let was_open = self.admin.open() > 0;
        if !self.admin.push(&self.memory.to_device, &mut self.command[..len], task, cookie, 0)? {
            return Ok(false);
        }
        self.submitted(at, id.index, was_open);
        Ok(true)
    }

    /// Puts an insert that is encoded into the ring; as [`Fl1::submit_one`].
    fn insert_encoded(&mut self, cookie: u64, id: EntryId, bytes: &mut [u8]) -> Result<bool, NicError> {
        let at = self.entry_table(id)?;
        let Some(table) = self.tables.get(at) else { return Ok(false) };
        if self.admin.room() == 0 || table.is_busy(id.index) {
            return Ok(false);
        }
        let generation = self.next_generation;
        codec::complete_insert(&table.info, (id.index, generation), bytes).map_err(NicError::Invalid)?;
        let was_open = self.admin.open() > 0;
        let task = Task::Insert(id, generation);
        if !self.admin.push(&self.memory.to_device, bytes, task, cookie, 0)? {
            return Ok(false);
        }
        self.submitted(at, id.index, was_open);
        Ok(true)
    }

    /// The window by which a meter is set and removed.
    fn meter_window(&self, meter: u32) -> Result<&Arc<meter::Window>, NicError> {
        match &self.meters {
            Some((window, _)) if meter < self.id.meters => Ok(window),
            _ => Err(NicError::Invalid(format!("meter {meter} of {}", self.id.meters))),
        }
    }

    /// Notes that an update is in the ring.
    fn submitted(&mut self, table: usize, index: u32, was_open: bool) {
        if !was_open {
            self.health.progress_at = self.config.platform.now_ns();
        }
        if let Some(table) = self.tables.get_mut(table) {
            table.set_busy(index, true);
        }
        // 0 means "no entry", so it is no generation.
        self.next_generation = self.next_generation.checked_add(1).unwrap_or(1);
        self.stats.updates += 1;
    }
}

impl Nic for Fl1 {
    fn caps(&self) -> &NicCaps {
        &self.caps
    }

    fn state(&self) -> NicState {
        self.standing.state()
    }

    fn submit(&mut self, updates: &[Update]) -> Result<usize, NicError> {
        self.usable()?;
        for (taken, u) in updates.iter().enumerate() {
            match self.submit_one(u) {
                Ok(true) => {}
                Ok(false) => return Ok(taken),
                // What was taken is taken; the caller meets the error when it comes back with the rest.
                Err(NicError::Invalid(_)) if taken > 0 => return Ok(taken),
                Err(e) => return self.note(Err(e)),
            }
        }
        Ok(updates.len())
    }

    fn submit_encoded(&mut self, cookie: u64, id: EntryId, bytes: &mut [u8]) -> Result<bool, NicError> {
        self.usable()?;
        let taken = self.insert_encoded(cookie, id, bytes);
        self.note(taken)
    }

    fn kick(&mut self) -> Result<(), NicError> {
        self.usable()?;
        let rung = self.admin.ring(&self.regs);
        self.note(rung)
    }

    fn poll(&mut self, results: &mut Vec<UpdateResult>, events: &mut Vec<NicEvent>) -> Result<(), NicError> {
        let turned = if self.standing.state() == NicState::Ready { self.turn() } else { Ok(()) };
        let noted = match self.note(turned) {
            // The event says it.
            Err(NicError::Gone(_) | NicError::Bus(BusError::Gone(_))) => Ok(()),
            other => other,
        };
        results.append(&mut self.results);
        events.append(&mut self.events);
        noted
    }

    fn counters(&self, id: EntryId) -> EntryCounters {
        self.page_counters(id).unwrap_or_default()
    }

    fn read_back(&mut self, id: EntryId) -> Result<(), NicError> {
        self.usable()?;
        self.entry_table(id)?;
        self.read_back.wanted.push_back(id);
        Ok(())
    }

    fn take_read_back(&mut self) -> Option<(EntryId, Option<Entry>)> {
        self.read_back.entries.pop_front()
    }

    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        let t = self.table(table).ok_or_else(|| NicError::Invalid(format!("table {}", table.0)))?;
        let at = out.len();
        out.resize(at + codec::insert_room(entry), 0);
        let encoded = codec::encode_insert(&t.info, &self.id, (0, 0), entry, &mut out[at..]);
        out.truncate(at + encoded.as_ref().map_or(0, |len| *len));
        encoded.map(|_| ()).map_err(NicError::Invalid)
    }

    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        let t = self.table(table).ok_or_else(|| NicError::Invalid(format!("table {}", table.0)))?;
        codec::decode_insert(&t.info, bytes).map_err(NicError::Invalid)
    }

    fn rx(&mut self, max: usize, packet: &mut dyn FnMut(SlowRx, &[u8])) -> Result<usize, NicError> {
        let received = self.slow.receive(self.standing.state() == NicState::Ready, max, packet);
        self.note(received)
    }

    fn tx(&mut self, to: SlowTx, frame: &[u8]) -> Result<bool, NicError> {
        self.usable()?;
        let sent = self.slow.send(to, frame);
        self.note(sent)
    }

    fn keeps_order(&self) -> bool {
        self.config.order && self.id.order
    }

    fn slow_done(&mut self) -> Result<(), NicError> {
        self.usable()?;
        if !self.keeps_order() {
            return Ok(());
        }
        self.order.done(&self.slow);
        let told = self.order.advance(&self.regs, &self.slow);
        self.note(told)
    }

    fn tx_pending(&self) -> usize {
        self.slow.pending()
    }

    fn take_unsent(&mut self) -> Vec<(SlowTx, Vec<u8>)> {
        std::mem::take(&mut self.unsent)
    }

    fn reset(&mut self) -> Result<(), NicError> {
        if self.standing.state() == NicState::Gone {
            return self.usable();
        }
        let up = self.reset_and_bring_up();
        self.note(up)
    }

    fn link(&self, port: NicPort) -> bool {
        usize::from(port.0).checked_sub(1).and_then(|p| self.link.get(p)).copied().unwrap_or(false)
    }

    fn set_port_enabled(&mut self, port: NicPort, enabled: bool) -> Result<(), NicError> {
        let n = self.port_number(port)?;
        if let Some(disabled) = self.disabled.get_mut(n as usize - 1) {
            *disabled = !enabled;
        }
        self.usable()?;
        let told = self.regs.set(regs::PORT_CTRL.of(n), if enabled { regs::ENABLE } else { 0 });
        self.note(told)
    }

    fn port_counters(&self, port: NicPort) -> Result<PortCounters, NicError> {
        Fl1::port_counters(self, port)
    }

    fn port_address(&self, port: NicPort) -> Result<[u8; 6], NicError> {
        Fl1::port_address(self, port)
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        Some(self.interrupt.as_fd())
    }

    fn snapshot(&mut self, table: TableId, first: u32, count: u32) -> Result<(), NicError> {
        self.usable()?;
        self.want_snapshot(table, first, count)
    }

    fn take_snapshot(&mut self) -> Option<Snapshot> {
        self.read_back.snapshots.pop_front()
    }

    fn set_meter(&mut self, meter: u32, config: &MeterConfig) -> Result<Arc<dyn MeterBucket>, NicError> {
        self.usable()?;
        let set = self.meter_window(meter).and_then(|window| window.set(meter, config));
        self.note(set)
    }

    fn remove_meter(&mut self, meter: u32) -> Result<(), NicError> {
        self.usable()?;
        let removed = self.meter_window(meter).and_then(|window| window.remove(meter));
        self.note(removed)
    }

    fn violation_count(&self) -> Option<u32> {
        self.violations().ok().map(|violations| violations.total)
    }
}

impl Fl1 {
    /// Counters of an entry in the counter page.
    fn page_counters(&self, id: EntryId) -> Option<EntryCounters> {
        let t = self.table(id.table).filter(|t| id.index < t.info.caps.max_entries)?;
        let at = t.page + id.index as usize * bringup::PAGE_RECORD;
        let mem = self.pages.as_ref()?.mem();
        let word = |n: usize| mem.load_u64(at + n * 8, Ordering::Acquire).ok();
        let said = EntryCounters {
            packets: word(0)?,
            bytes: word(1)?,
            used_ns: word(2)?,
            tcp_flags: word(3)? as u16,
        };
        // While an update is in flight they may be of the entry before or after it.
        let installed = t.generation(id.index) != 0 && !t.is_busy(id.index);
        Some(if installed { t.seen.check(id.index, said) } else { said })
    }
}
