//! Records that the device writes on request: entries read back, and counters in bulk (FL1.md section 5).
//!
//! Each record has the command's sequence number, the entry's generation and a CRC. A stale or flipped one is asked for
//! again, a bounded number of times.

use super::admin::{Pending, Task};
use super::codec::{self, Raw};
use super::wire::{
    CRC32C, CommandHeader, Completion, CounterRecord, EntryRecord, RECORD_VALID, buffer_command, crc_without,
    op, parse, status,
};
use super::{Fl1, Table};
use crate::dma::{Layout, Offset};
use crate::nic::{Entry, EntryCounters, EntryId, NicError, NicEvent, Snapshot, TableId};
use std::collections::VecDeque;
use zerocopy::FromZeros;

/// Entries read back at a time, and room for one: the longest key, mask and action list.
const BUFFERS: u8 = 16;
const BUFFER: usize = 32 + 2 * crate::nic::KEY_MAX + 255 * 16;
/// Counter records in one command.
const SNAPSHOT: u32 = 256;
/// Times that a record is asked for.
const READS: u8 = 16;

/// Read-backs wanted, under way and done.
pub(crate) struct ReadBack {
    buffers: Offset,
    free: u16,
    /// Entries wanted, in the order in which they were asked for.
    pub(crate) wanted: VecDeque<EntryId>,
    under_way: Vec<EntryId>,
    /// Answers.
    pub(crate) entries: VecDeque<(EntryId, Option<Entry>)>,
    snapshot: Offset,
    snapshot_busy: bool,
    snapshots_wanted: VecDeque<(TableId, u32, u32)>,
    pub(crate) snapshots: VecDeque<Snapshot>,
    next_sequence: u32,
}

impl ReadBack {
    pub(crate) fn new(from_device: &mut Layout) -> Self {
        Self {
            buffers: from_device.add(usize::from(BUFFERS) * BUFFER),
            free: u16::MAX,
            wanted: VecDeque::new(),
            under_way: vec![],
            entries: VecDeque::new(),
            snapshot: from_device.add(SNAPSHOT as usize * size_of::<CounterRecord>()),
            snapshot_busy: false,
            snapshots_wanted: VecDeque::new(),
            snapshots: VecDeque::new(),
            next_sequence: 1,
        }
    }

    /// The device's tables are empty or gone, which answers everything that was asked.
    pub(crate) fn abort(&mut self) {
        let unanswered = self.under_way.drain(..).chain(self.wanted.drain(..));
        self.entries.extend(unanswered.map(|id| (id, None)));
        self.free = u16::MAX;
        self.snapshot_busy = false;
        self.snapshots_wanted.clear();
    }

    fn sequence(&mut self) -> u32 {
        let s = self.next_sequence;
        self.next_sequence = s.checked_add(1).unwrap_or(1);
        s
    }
}

/// What is wrong with a record.
enum Bad {
    Stale,
    Flipped,
}

impl Fl1 {
    /// Wants the counters of `count` places from `first` on, by DMA and not from the counter page.
    pub(crate) fn want_snapshot(&mut self, table: TableId, first: u32, count: u32) -> Result<(), NicError> {
        let last = count.checked_sub(1).and_then(|n| first.checked_add(n));
        let index = last.ok_or_else(|| NicError::Invalid(format!("{count} counters from {first}")))?;
        self.entry_table(EntryId { table, index })?;
        self.read_back.snapshots_wanted.push_back((table, first, count));
        Ok(())
    }

    /// Starts what is wanted and has a buffer and room in the ring.
    pub(crate) fn send_reads(&mut self) -> Result<(), NicError> {
        if self.read_back.wanted.is_empty() && self.read_back.snapshots_wanted.is_empty() {
            return Ok(());
        }
        while self.read_back.free != 0 && self.admin.room() > 0 {
            let Some(id) = self.read_back.wanted.pop_front() else { break };
            let buffer = self.read_back.free.trailing_zeros() as u8;
            self.read_back.free &= !(1 << buffer);
            self.read_back.under_way.push(id);
            self.send_read(id, buffer, 0)?;
        }
        if !self.read_back.snapshot_busy
            && self.admin.room() > 0
            && let Some((table, first, count)) = self.read_back.snapshots_wanted.pop_front()
        {
            let now = count.min(SNAPSHOT);
            if count > now {
                self.read_back.snapshots_wanted.push_front((table, first + now, count - now));
            }
            self.read_back.snapshot_busy = true;
            self.send_counters(table, first, now, 0)?;
        }
        self.admin.ring(&self.regs)
    }

    fn send_read(&mut self, id: EntryId, buffer: u8, attempts: u8) -> Result<(), NicError> {
        let sequence = self.read_back.sequence();
        let header = CommandHeader {
            opcode: op::READ_ENTRY,
            table: id.table.0.into(),
            entry: id.index.into(),
            generation: sequence.into(),
            ..CommandHeader::new_zeroed()
        };
        let at = self.read_back.buffers + usize::from(buffer) * BUFFER;
        let command = buffer_command(header, self.memory.from_device.iova(at), BUFFER as u32);
        self.push_read(command, Task::Read { id, buffer, sequence, attempts })
    }

    fn send_counters(
        &mut self,
        table: TableId,
        first: u32,
        count: u32,
        attempts: u8,
    ) -> Result<(), NicError> {
        let sequence = self.read_back.sequence();
        let header = CommandHeader {
            opcode: op::COUNTERS,
            table: table.0.into(),
            entry: first.into(),
            generation: sequence.into(),
            count: count.into(),
            ..CommandHeader::new_zeroed()
        };
        let iova = self.memory.from_device.iova(self.read_back.snapshot);
        let command = buffer_command(header, iova, count * size_of::<CounterRecord>() as u32);
        self.push_read(command, Task::Counters { table, first, count, sequence, attempts })
    }

    fn push_read(&mut self, mut command: [u8; 64], task: Task) -> Result<(), NicError> {
        if self.admin.open() == 0 {
            self.health.progress_at = self.config.platform.now_ns();
        }
        // The caller saw room, or has just freed the slot of the command before.
        if !self.admin.push(&self.memory.to_device, &mut command, task, 0, 0)? {
            return Err(self.failed("no room in the admin ring for a read"));
        }
        self.admin.ring(&self.regs)
    }

    pub(crate) fn complete_read(&mut self, p: &Pending, c: &Completion) -> Result<(), NicError> {
        match p.task {
            Task::Read { id, buffer, sequence, attempts } => {
                let entry = match c.status.get() {
                    status::NOT_FOUND => Ok(None),
                    status::OK | status::PARITY => self.entry_record(id, buffer, sequence),
                    _ => Err(Bad::Flipped),
                };
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(bad) => {
                        self.count_bad(bad);
                        if attempts + 1 >= READS {
                            return Err(self.lies(format!("entry {id:?} cannot be read back, however often")));
                        }
                        return self.send_read(id, buffer, attempts + 1);
                    }
                };
                if c.status.get() == status::PARITY {
                    self.events.push(NicEvent::ParityError(id));
                }
                self.read_back.free |= 1 << buffer;
                if let Some(at) = self.read_back.under_way.iter().position(|u| *u == id) {
                    self.read_back.under_way.swap_remove(at);
                }
                self.read_back.entries.push_back((id, entry));
            }
            Task::Counters { table, first, count, sequence, attempts } => {
                let mut good = 0;
                while c.status.get() == status::OK && good < count {
                    let id = EntryId { table, index: first + good };
                    match self.counter_record(id, good, sequence)? {
                        Ok(counters) => self.read_back.snapshots.push_back((id, counters)),
                        Err(bad) => {
                            self.count_bad(bad);
                            break;
                        }
                    }
                    good += 1;
                }
                if good < count {
                    if good == 0 && attempts + 1 >= READS {
                        return Err(self.lies(format!("counters of {table:?} from {first} cannot be read")));
                    }
                    let attempts = if good == 0 { attempts + 1 } else { 0 };
                    return self.send_counters(table, first + good, count - good, attempts);
                }
                self.read_back.snapshot_busy = false;
            }
            _ => {}
        }
        Ok(())
    }

    fn count_bad(&mut self, bad: Bad) {
        match bad {
            Bad::Stale => self.stats.stale_records += 1,
            Bad::Flipped => self.stats.flipped_records += 1,
        }
    }

    /// The entry in a buffer, copied once and then checked.
    fn entry_record(&self, id: EntryId, buffer: u8, sequence: u32) -> Result<Option<Entry>, Bad> {
        let Some(table) = self.table(id.table) else { return Err(Bad::Flipped) };
        let mut bytes = [0; BUFFER];
        let at = self.read_back.buffers + usize::from(buffer) * BUFFER;
        self.memory.from_device.mem().read_bytes(at, &mut bytes).map_err(|_| Bad::Flipped)?;
        let r = parse::<EntryRecord>(&bytes).ok_or(Bad::Flipped)?;
        if r.sequence.get() != sequence {
            return Err(Bad::Stale);
        }
        let len = size_of::<EntryRecord>() + 2 * usize::from(r.key_len.get()) + 16 * usize::from(r.units);
        let record = bytes.get(..len).ok_or(Bad::Flipped)?;
        if crc_without(record, 20) != Some(r.crc.get())
            || (r.table.get(), r.entry.get()) != (id.table.0, id.index)
            || r.flags & RECORD_VALID == 0
        {
            return Err(Bad::Flipped);
        }
        if !generation_fits(table, id.index, r.generation.get()) {
            return Err(Bad::Stale);
        }
        let raw = Raw {
            priority: r.priority.get(),
            key_len: r.key_len.get(),
            units: r.units,
            payload: &record[size_of::<EntryRecord>()..],
        };
        codec::decode(&table.info, &raw).map(Some).map_err(|_| Bad::Flipped)
    }

    fn counter_record(
        &self,
        id: EntryId,
        place: u32,
        sequence: u32,
    ) -> Result<Result<Option<EntryCounters>, Bad>, NicError> {
        let mut bytes = [0; size_of::<CounterRecord>()];
        let at = self.read_back.snapshot + place as usize * bytes.len();
        self.memory.from_device.mem().read_bytes(at, &mut bytes)?;
        let Some(r) = parse::<CounterRecord>(&bytes) else { return Ok(Err(Bad::Flipped)) };
        if r.sequence.get() != sequence {
            return Ok(Err(Bad::Stale));
        }
        if CRC32C.checksum(&bytes[..44]) != r.crc.get() || r.entry.get() != id.index {
            return Ok(Err(Bad::Flipped));
        }
        if r.flags.get() & u16::from(RECORD_VALID) == 0 {
            return Ok(Ok(None));
        }
        if !self.table(id.table).is_some_and(|t| generation_fits(t, id.index, r.generation.get())) {
            return Ok(Err(Bad::Stale));
        }
        Ok(Ok(Some(EntryCounters {
            packets: r.packets.get(),
            bytes: r.bytes.get(),
            used_ns: r.used_ns.get(),
            tcp_flags: r.tcp_flags.get(),
        })))
    }
}

/// While an update is in flight a record may be of before or after it.
fn generation_fits(table: &Table, index: u32, generation: u32) -> bool {
    table.is_busy(index) || table.generation(index) == generation
}
