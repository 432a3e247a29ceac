//! The admin queue: fetches commands, runs them, and gives completions (FL1.md, section 5).

use crate::action::{UNIT, validate};
use crate::bytes::{le64, put};
use crate::checksum::crc32c;
use crate::command::{COMPLETION, Command, CommandError, Completion, Opcode, SLOT, Status, decode_command};
use crate::device::{FatalCode, Fl1, VECTOR_ADMIN};
use crate::fault::FaultKind;
use crate::meter::{METER_RECORD, Meter, MeterConfig};
use crate::profile::MAX_SLOTS;
use crate::table::{Counters, Entry, NewEntry, TableError};
use crate::violation::Violation;
use flowlift_bus::DmaFault;
use std::collections::{BTreeSet, HashMap};

/// Slots fetched at once.
const BATCH: u32 = 256;
/// Length of a counter or meter record.
const RECORD: usize = 48;
/// Length of an entry record's header.
const ENTRY_HEADER: usize = 32;
/// Length of a counter page's record.
pub(crate) const PAGE_RECORD: u64 = 32;
/// Counter records written by one DMA access.
const RECORDS_AT_ONCE: u32 = 1024;
/// Longest delay of a completion, in heartbeats.
const LONGEST_DELAY: u64 = 128;

const VALID: u8 = 1;
const PARITY: u8 = 2;

/// An entry whose age is watched: when to look next, table, entry, and when it was installed.
type Ageing = (u64, u16, u32, u64);

/// State of the admin queue besides its rings.
#[derive(Default)]
pub(crate) struct Admin {
    /// Slots fetched; kept to spare allocations.
    fetched: Vec<u8>,
    /// Completions that come late, with the step they are due.
    delayed: Vec<(u64, Completion)>,
    /// A completion that its successor overtakes.
    overtaken: Option<Completion>,
    pub(crate) ageing: BTreeSet<Ageing>,
    /// What an earlier snapshot showed, for stale records; empty unless such faults are on.
    old_counters: HashMap<(u16, u32), [u8; RECORD]>,
    old_entries: HashMap<(u16, u32), Vec<u8>>,
}

impl Admin {
    fn withheld(&self) -> usize {
        self.delayed.len() + usize::from(self.overtaken.is_some())
    }
}

/// How a command ended, besides what it left in the completion: status and detail of a refusal.
type Outcome = Result<(), (Status, u32)>;

fn refused(e: TableError, max_entries: u32, key_bytes: usize) -> (Status, u32, u32) {
    match e {
        TableError::BadEntry => (Status::BadEntry, max_entries, 0),
        TableError::InUse { generation } => (Status::EntryInUse, 0, generation),
        TableError::NotFound => (Status::NotFound, 0, 0),
        TableError::MasksFull => (Status::MasksFull, 0, 0),
        TableError::Duplicate { entry, generation } => (Status::Duplicate, entry, generation),
        TableError::BadMask { field } => (Status::BadMask, u32::from(field), 0),
        TableError::BadKey { field } => (Status::BadKey, u32::from(field), 0),
        TableError::Parity { generation } => (Status::Parity, 0, generation),
        TableError::BadKeyLen => (Status::BadKeyLen, key_bytes as u32, 0),
        TableError::BadPriority => (Status::BadPriority, 0, 0),
    }
}

impl Fl1 {
    /// Runs up to `budget` commands; gives how many.
    pub(crate) fn run_admin(&mut self, budget: u32) -> u32 {
        let mut done = 0;
        self.release_completions();
        while done < budget && self.fatal.is_none() {
            let n = self.asq.available().min(BATCH);
            if n == 0 || !self.asq.enabled || !self.acq.enabled {
                break;
            }
            let mut slots = std::mem::take(&mut self.admin.fetched);
            slots.resize(n as usize * SLOT, 0);
            let ran = match self.fetch_slots(&mut slots) {
                Ok(()) => {
                    self.touch(&slots);
                    self.run_batch(&slots, budget - done)
                }
                Err(fault) => {
                    self.die_of(FatalCode::AdminFetch, fault);
                    0
                }
            };
            self.admin.fetched = slots;
            done += ran;
            if ran == 0 {
                break;
            }
        }
        done
    }

    /// Reads slots from the ring, in two pieces where it ends in between.
    fn fetch_slots(&mut self, slots: &mut [u8]) -> Result<(), DmaFault> {
        let size = self.asq.size().max(1);
        let to_end = (size - (self.asq.index & (size - 1))) as usize * SLOT;
        let (first, second) = slots.split_at_mut(to_end.min(slots.len()));
        let at = self.asq.element(0, self.asq.index, SLOT as u32);
        self.host.read(&mut self.faults, at, first)?;
        if !second.is_empty() {
            self.host.read(&mut self.faults, self.asq.base(0), second)?;
        }
        Ok(())
    }

    /// Reads the table memory that the commands in `slots` are about to use. It changes nothing; but what one after the
    /// other would wait for, these reads wait for together.
    fn touch(&self, slots: &[u8]) {
        let mut hashes = [(0u16, 0u32); BATCH as usize];
        let mut number = 0;
        let mut rest = slots;
        while let (Ok(c), Some(place)) = (decode_command(rest), hashes.get_mut(number)) {
            rest = rest.get(usize::from(c.slots) * SLOT..).unwrap_or(&[]);
            let Some(table) = self.tables.get(usize::from(c.table)) else { continue };
            let hash = match c.opcode {
                Opcode::Insert => table.touch_new(c.entry, c.key, c.mask),
                Opcode::Delete | Opcode::Replace => table.touch_entry(c.entry),
                _ => continue,
            };
            *place = (c.table, hash);
            number += 1;
        }
        let read = hashes
            .iter()
            .take(number)
            .filter_map(|&(table, hash)| Some(self.tables.get(usize::from(table))?.touch_hash(hash)));
        std::hint::black_box(read.fold(0, std::ops::BitXor::bitxor));
    }

    /// Runs the commands in `slots`, fetched from the device's index on; gives how many.
    fn run_batch(&mut self, slots: &[u8], budget: u32) -> u32 {
        let mut rest = slots;
        let mut done = 0;
        while done < budget && !rest.is_empty() && self.fatal.is_none() {
            // Room for this command's completion, beside those still owed.
            if self.acq.outstanding() as usize + self.admin.withheld() >= self.acq.size() as usize {
                break;
            }
            // A command cut off by the fetch, not by the driver, is for the next fetch.
            let cut = (rest[1] as usize) * SLOT > rest.len() && rest[1] <= MAX_SLOTS;
            if cut && (self.asq.available() as usize) * SLOT > rest.len() {
                break;
            }
            let (taken, completion) = match decode_command(rest) {
                Ok(c) => {
                    if c.fence && !self.fence() {
                        break;
                    }
                    (c.slots, self.execute(&c))
                }
                Err(CommandError::Refused { violation, slots }) => (slots, self.refuse(rest, violation)),
                Err(CommandError::FramingLost(violation)) => {
                    self.violate(self.at_index(violation));
                    self.desync();
                    break;
                }
            };
            rest = rest.get(usize::from(taken) * SLOT..).unwrap_or(&[]);
            self.asq.index = self.asq.index.wrapping_add(u32::from(taken));
            done += 1;
            self.complete(completion);
        }
        done
    }

    /// A violation with the ring index in its upper half.
    fn at_index(&self, mut v: Violation) -> Violation {
        let place = self.asq.index & self.asq.size().wrapping_sub(1);
        v.info |= u64::from(place) << 32;
        v
    }

    fn refuse(&mut self, head: &[u8], violation: Violation) -> Completion {
        let v = self.at_index(violation);
        self.violate(v);
        Completion::new(head[0], le64(head, 8), Status::BadCommand, v.code as u32)
    }

    /// Whether the completions of all earlier commands are visible.
    fn fence(&mut self) -> bool {
        if let Some(c) = self.admin.overtaken.take() {
            self.write_completion(c);
        }
        self.admin.delayed.is_empty() && self.fatal.is_none()
    }

    /// Gives completions that were withheld long enough.
    fn release_completions(&mut self) {
        if let Some(c) = self.admin.overtaken.take() {
            self.write_completion(c);
        }
        let now = self.faults.step;
        let mut i = 0;
        while i < self.admin.delayed.len() {
            if self.admin.delayed[i].0 <= now {
                let (_, c) = self.admin.delayed.remove(i);
                self.write_completion(c);
            } else {
                i += 1;
            }
        }
    }

    /// Gives a completion, or does to it what the fault layer wants.
    fn complete(&mut self, c: Completion) {
        if self.faults.strike(FaultKind::LostCompletion, c.cookie) {
            return;
        }
        if self.faults.strike(FaultKind::SlowCompletion, c.cookie) {
            let delay = 1 + self.faults.pick(FaultKind::SlowCompletion, LONGEST_DELAY);
            self.admin.delayed.push((self.faults.step + delay, c));
            return;
        }
        if self.admin.overtaken.is_none() && self.faults.strike(FaultKind::ReorderedCompletion, c.cookie) {
            self.admin.overtaken = Some(c);
            return;
        }
        self.write_completion(c);
        if let Some(earlier) = self.admin.overtaken.take() {
            self.write_completion(earlier);
        }
        let room = (self.acq.outstanding() as usize + self.admin.withheld()) < self.acq.size() as usize;
        if room && self.faults.strike(FaultKind::DuplicatedCompletion, c.cookie) {
            self.write_completion(c);
        }
    }

    fn write_completion(&mut self, c: Completion) {
        let index = self.acq.index;
        let bytes = c.encode(self.asq.index, index.wrapping_add(1));
        let at = self.acq.element(0, index, COMPLETION as u32);
        match self.host.write_element(&mut self.faults, at, &bytes) {
            Ok(()) => {
                self.acq.index = index.wrapping_add(1);
                self.host.notify(VECTOR_ADMIN);
            }
            Err(fault) => self.die_of(FatalCode::AdminCompletion, fault),
        }
    }

    fn execute(&mut self, c: &Command<'_>) -> Completion {
        let mut done = Completion::new(c.opcode as u8, c.cookie, Status::Ok, 0);
        let outcome = match c.opcode {
            Opcode::Nop => Ok(()),
            Opcode::MeterSet => self.meter_set(c),
            Opcode::MeterRead => self.meter_read(c, &mut done),
            Opcode::MeterPage => self.meter_page(c),
            Opcode::Caps => self.capabilities(c, &mut done),
            _ if usize::from(c.table) >= self.tables.len() => Err((Status::BadTable, 0)),
            Opcode::Insert => self.insert(c, &mut done),
            Opcode::Replace => self.replace(c, &mut done),
            Opcode::Delete => self.delete(c, &mut done),
            Opcode::ReadEntry => self.read_entry(c, &mut done),
            Opcode::Counters => self.counters(c, &mut done),
            Opcode::FlushTable => {
                done.result = self.tables[usize::from(c.table)].flush();
                self.watch_pressure(usize::from(c.table));
                Ok(())
            }
            Opcode::CounterPage => self.counter_page(c),
        };
        if let Err((status, detail)) = outcome {
            (done.status, done.detail) = (status, detail);
        }
        done
    }

    /// A table's refusal, with the generation that goes into the completion.
    fn refusal(&self, table: u16, e: TableError, done: &mut Completion) -> (Status, u32) {
        let spec = &self.tables[usize::from(table)].spec;
        let (status, detail, generation) = refused(e, spec.max_entries, spec.key_bytes);
        done.generation = generation;
        (status, detail)
    }

    fn check_actions(&self, c: &Command<'_>) -> Result<(), (Status, u32)> {
        let spec = &self.tables[usize::from(c.table)].spec;
        let meter = |id: u32| self.meters.get(id as usize).is_some_and(Option::is_some);
        validate(c.actions, spec, self.profile.ports(), meter).map_err(|unit| (Status::BadAction, unit))
    }

    fn check_units(&self, c: &Command<'_>) -> Result<(), (Status, u32)> {
        let max = u32::from(self.tables[usize::from(c.table)].spec.max_units);
        if c.actions.len() / UNIT > max as usize { Err((Status::TooManyActions, max)) } else { Ok(()) }
    }

    fn insert(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let now = self.now;
        let at = usize::from(c.table);
        let new = NewEntry {
            priority: c.priority,
            generation: c.generation,
            age_ms: c.count,
            now,
            key: c.key,
            mask: c.mask,
            actions: c.actions,
        };
        self.tables[at].check_insert(c.entry, &new).map_err(|e| self.refusal(c.table, e, done))?;
        self.check_units(c)?;
        let matched = self.tables[at].check_match(&new).map_err(|e| self.refusal(c.table, e, done))?;
        self.check_actions(c)?;
        self.tables[at].check_room(&matched, &new).map_err(|e| self.refusal(c.table, e, done))?;
        if self.faults.strike(FaultKind::TableFull, u64::from(c.entry)) {
            return Err((Status::TableFull, 0));
        }
        if let Some(page) = self.tables[at].page {
            let record = Counters::default().page_record(c.generation);
            let iova = page.wrapping_add(u64::from(c.entry) * PAGE_RECORD);
            self.host.write(&mut self.faults, iova, &record).map_err(|_| (Status::DmaFault, 0))?;
        }
        self.tables[at].insert(c.entry, &new, &matched);
        if c.count != 0 {
            let due = now.saturating_add(u64::from(c.count) * 1_000_000);
            self.admin.ageing.insert((due, c.table, c.entry, now));
        }
        self.watch_pressure(at);
        done.generation = c.generation;
        Ok(())
    }

    fn replace(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let at = usize::from(c.table);
        let e = self.tables[at].existing(c.entry).map_err(|e| self.refusal(c.table, e, done))?;
        if e.damaged() {
            let e = TableError::Parity { generation: e.generation };
            return Err(self.refusal(c.table, e, done));
        }
        self.check_units(c)?;
        self.check_actions(c)?;
        self.tables[at].replace(c.entry, c.generation, c.actions);
        done.generation = c.generation;
        Ok(())
    }

    fn delete(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let at = usize::from(c.table);
        self.tables[at].check_id(c.entry).map_err(|e| self.refusal(c.table, e, done))?;
        let e = self.tables[at].delete(c.entry).ok_or((Status::NotFound, 0))?;
        self.watch_pressure(at);
        (done.counters, done.generation) = (e.counters, e.generation);
        Ok(())
    }

    /// Checks a host buffer.
    fn buffer(c: &Command<'_>, needed: usize) -> Result<(), (Status, u32)> {
        if !c.iova.is_multiple_of(8) {
            return Err((Status::BadArgument, 32));
        }
        if (c.len as usize) < needed { Err((Status::BufferTooSmall, needed as u32)) } else { Ok(()) }
    }

    fn write_buffer(&mut self, iova: u64, data: &[u8]) -> Result<(), (Status, u32)> {
        self.host.write(&mut self.faults, iova, data).map_err(|_| (Status::DmaFault, 0))
    }

    fn read_entry(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let table = &self.tables[usize::from(c.table)];
        let entry = table.existing(c.entry).map_err(|e| self.refusal(c.table, e, done))?;
        let (generation, damaged) = (entry.generation, entry.damaged());
        let (key, mask) = table.blobs(c.entry, entry);
        let mut record = entry_record(c, entry, &key, &mask, table.actions(c.entry));
        Self::buffer(c, record.len())?;
        let id = (c.table, c.entry);
        if self.faults.enabled(FaultKind::StaleEntry) {
            let old = self.admin.old_entries.insert(id, record.clone());
            if self.faults.strike(FaultKind::StaleEntry, u64::from(c.entry)) {
                record = match old.filter(|o| o.len() <= c.len as usize) {
                    Some(old) => old,
                    None => aged_entry_record(record, c.generation),
                };
            }
        }
        if self.faults.strike(FaultKind::FlippedEntry, u64::from(c.entry)) {
            self.flip(FaultKind::FlippedEntry, &mut record);
        }
        self.write_buffer(c.iova, &record)?;
        (done.generation, done.result) = (generation, record.len() as u32);
        if damaged { Err((Status::Parity, 0)) } else { Ok(()) }
    }

    /// Flips a bit of a record.
    fn flip(&mut self, kind: FaultKind, record: &mut [u8]) {
        let bit = self.faults.pick(kind, record.len() as u64 * 8);
        if let Some(b) = record.get_mut((bit / 8) as usize) {
            *b ^= 1 << (bit % 8);
        }
    }

    fn counters(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let max = self.tables[usize::from(c.table)].spec.max_entries;
        if c.entry >= max {
            return Err((Status::BadEntry, max));
        }
        if c.count == 0 || c.count > max - c.entry {
            return Err((Status::BadArgument, 24));
        }
        Self::buffer(c, (c.count as usize).saturating_mul(RECORD))?;
        let mut written = 0;
        while written < c.count {
            let n = (c.count - written).min(RECORDS_AT_ONCE);
            let first = c.entry + written;
            let mut chunk = Vec::with_capacity(n as usize * RECORD);
            for id in first..first + n {
                chunk.extend_from_slice(&self.counter_record(c, id));
            }
            let iova = c.iova.wrapping_add(u64::from(written) * RECORD as u64);
            self.write_buffer(iova, &chunk)?;
            written += n;
        }
        done.result = written;
        Ok(())
    }

    /// A counter record as this device gives it: true, or as the fault layer wants it.
    fn counter_record(&mut self, c: &Command<'_>, id: u32) -> [u8; RECORD] {
        let entry = self.tables[usize::from(c.table)].entry(id);
        let mut record = counter_record(entry, id, c.generation);
        if entry.is_none() {
            return record;
        }
        if self.faults.enabled(FaultKind::StaleCounter) {
            let old = self.admin.old_counters.insert((c.table, id), record);
            if self.faults.strike(FaultKind::StaleCounter, u64::from(id)) {
                record = old.unwrap_or_else(|| counter_record(None, id, c.generation.wrapping_sub(1)));
            }
        }
        if self.faults.strike(FaultKind::FlippedCounter, u64::from(id)) {
            self.flip(FaultKind::FlippedCounter, &mut record);
        }
        record
    }

    fn counter_page(&mut self, c: &Command<'_>) -> Outcome {
        let needed = u64::from(self.tables[usize::from(c.table)].spec.max_entries) * PAGE_RECORD;
        let remove = c.iova == 0 && c.len == 0;
        if !remove {
            Self::buffer(c, needed as usize)?;
        }
        let table = &mut self.tables[usize::from(c.table)];
        if table.used() != 0 {
            return Err((Status::EntryInUse, 0));
        }
        table.page = (!remove).then_some(c.iova);
        Ok(())
    }

    fn capabilities(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        Self::buffer(c, self.caps.len())?;
        let blob = std::mem::take(&mut self.caps);
        let written = self.write_buffer(c.iova, &blob);
        self.caps = blob;
        written?;
        done.result = self.caps.len() as u32;
        Ok(())
    }

    fn meter_set(&mut self, c: &Command<'_>) -> Outcome {
        let (now, max) = (self.now, self.profile.meters);
        if c.entry >= max {
            return Err((Status::BadEntry, max));
        }
        let set = match (c.rate, c.burst) {
            (0, 0) => None,
            (0, _) => return Err((Status::BadArgument, 32)),
            (_, 0) => return Err((Status::BadArgument, 40)),
            (rate, burst) => {
                let config = MeterConfig { rate, burst, packets: c.meter_packets, whole_ms: false };
                let meter = Meter::new(config, now);
                self.write_meter_record(c.entry, &meter).map_err(|_| (Status::DmaFault, 0))?;
                Some(meter)
            }
        };
        self.meters[c.entry as usize] = set;
        Ok(())
    }

    fn meter_page(&mut self, c: &Command<'_>) -> Outcome {
        let remove = c.iova == 0 && c.len == 0;
        if !remove {
            Self::buffer(c, self.profile.meters as usize * METER_RECORD as usize)?;
        }
        if self.meters.iter().any(Option::is_some) {
            return Err((Status::EntryInUse, 0));
        }
        self.meter_page = (!remove).then_some(c.iova);
        Ok(())
    }

    fn meter_read(&mut self, c: &Command<'_>, done: &mut Completion) -> Outcome {
        let Some(meter) = self.meters.get(c.entry as usize) else {
            return Err((Status::BadEntry, self.profile.meters));
        };
        let m = meter.ok_or((Status::NotFound, 0))?;
        Self::buffer(c, RECORD)?;
        let mut r = [0; RECORD];
        for (at, v) in [m.passed.0, m.passed.1, m.dropped.0, m.dropped.1].into_iter().enumerate() {
            put(&mut r, at * 8, &v.to_le_bytes());
        }
        put(&mut r, 32, &c.entry.to_le_bytes());
        put(&mut r, 36, &c.generation.to_le_bytes());
        seal_record(&mut r);
        self.write_buffer(c.iova, &r)?;
        done.result = RECORD as u32;
        Ok(())
    }
}

fn seal_record(r: &mut [u8; RECORD]) {
    let crc = crc32c(&r[..44]);
    put(r, 44, &crc.to_le_bytes());
}

fn counter_record(entry: Option<&Entry>, id: u32, sequence: u32) -> [u8; RECORD] {
    let mut r = [0; RECORD];
    if let Some(e) = entry {
        put(&mut r, 0, &e.counters.packets.to_le_bytes());
        put(&mut r, 8, &e.counters.bytes.to_le_bytes());
        put(&mut r, 16, &e.counters.last_used.to_le_bytes());
        put(&mut r, 24, &e.generation.to_le_bytes());
        put(&mut r, 28, &e.counters.tcp_flags.to_le_bytes());
        put(&mut r, 30, &[VALID | if e.damaged() { PARITY } else { 0 }]);
    }
    put(&mut r, 32, &id.to_le_bytes());
    put(&mut r, 36, &sequence.to_le_bytes());
    seal_record(&mut r);
    r
}

fn seal_entry(r: &mut [u8]) {
    put(r, 20, &[0; 4]);
    let crc = crc32c(r);
    put(r, 20, &crc.to_le_bytes());
}

fn entry_record(c: &Command<'_>, e: &Entry, key: &[u8], mask: &[u8], actions: &[u8]) -> Vec<u8> {
    let mut r = vec![0; ENTRY_HEADER];
    put(&mut r, 0, &c.table.to_le_bytes());
    put(&mut r, 2, &e.priority.to_le_bytes());
    put(&mut r, 4, &c.entry.to_le_bytes());
    put(&mut r, 8, &e.generation.to_le_bytes());
    put(&mut r, 12, &(key.len() as u16).to_le_bytes());
    put(&mut r, 14, &[(actions.len() / UNIT) as u8, VALID | if e.damaged() { PARITY } else { 0 }]);
    put(&mut r, 16, &c.generation.to_le_bytes());
    put(&mut r, 24, &e.age_ms.to_le_bytes());
    r.extend_from_slice(key);
    r.extend_from_slice(mask);
    r.extend_from_slice(actions);
    seal_entry(&mut r);
    r
}

/// The record as an earlier read would have shown it, where there was none.
fn aged_entry_record(mut r: Vec<u8>, sequence: u32) -> Vec<u8> {
    put(&mut r, 16, &sequence.wrapping_sub(1).to_le_bytes());
    seal_entry(&mut r);
    r
}
