//! One turn of the driver: completions, events, records read back, and the device's health.

use super::admin::{Answer, Pending, Resent, Task};
use super::regs::{self, DB_ACQ_HEAD, DB_EVQ_HEAD};
use super::wire::{Completion, Event, SLOT, event, parse, status};
use super::{Fl1, Table};
use crate::nic::{EntryCounters, EntryId, NicError, NicEvent, NicPort, TableId, UpdateResult, UpdateStatus};
use crate::standing::Checkup;

/// Answers that cannot be, after which the device is not believed any more.
const IMPOSSIBLE_MAX: u64 = 64;
/// Looks without a heartbeat before a device is said to hang, whatever the clock says: an in-process device that nobody
/// stepped for a while does not hang.
const BEAT_CHECKS: u32 = 64;

impl Fl1 {
    pub(crate) fn turn(&mut self) -> Result<(), NicError> {
        if let Some(met) = self.slow.take_fault() {
            return Err(met);
        }
        self.take_completions()?;
        self.take_events()?;
        self.send_reads()?;
        self.order.advance(&self.regs, &self.slow)?;
        let now = self.config.platform.now_ns();
        let due = self.health.checkup.is_due(now, self.config.check_interval);
        if due { self.check_health() } else { Ok(()) }
    }

    fn impossible(&mut self, what: impl FnOnce() -> String) -> Result<(), NicError> {
        self.stats.impossible += 1;
        let text = what();
        tracing::debug!(nic = self.regs.name(), "{text}");
        if self.stats.impossible > IMPOSSIBLE_MAX { Err(self.lies(text)) } else { Ok(()) }
    }

    /// At most one ring's worth, so that a device that never stops writing does not keep us here.
    fn take_completions(&mut self) -> Result<(), NicError> {
        let mut taken = 0;
        let ignored = self.stats.duplicates + self.stats.impossible;
        let mut bytes = [0; SLOT];
        while taken < self.admin.cq.elements && self.admin.cq.peek(&self.memory.from_device, 0, &mut bytes)? {
            self.admin.cq.head = self.admin.cq.head.wrapping_add(1);
            taken += 1;
            if let Some(c) = parse::<Completion>(&bytes) {
                self.complete(&c)?;
            }
        }
        if taken > 0 {
            self.stats.completions += u64::from(taken);
            // A flood of completions that answer nothing is no progress.
            if u64::from(taken) > self.stats.duplicates + self.stats.impossible - ignored {
                self.health.progress_at = self.config.platform.now_ns();
            }
            self.regs.ring(DB_ACQ_HEAD, self.admin.cq.head)?;
        }
        Ok(())
    }

    fn complete(&mut self, c: &Completion) -> Result<(), NicError> {
        let cookie = c.cookie.get();
        let p = match self.admin.find(cookie) {
            Answer::Open(p) if p.opcode == c.opcode => p,
            Answer::Duplicate => {
                self.stats.duplicates += 1;
                return Ok(());
            }
            Answer::Open(_) | Answer::Unknown => {
                return self.impossible(|| format!("completion of no command: {c:?}"));
            }
        };
        match p.task {
            Task::Insert(id, _) | Task::Replace(id, _) | Task::Delete(id) => self.complete_update(&p, id, c),
            Task::Read { .. } | Task::Counters { .. } => {
                self.admin.close(cookie);
                self.complete_read(&p, c)
            }
            Task::Setup => {
                self.admin.close(cookie);
                self.setup_answer = Some(*c);
                Ok(())
            }
        }
    }

    /// Turns a completion into the update's result, unless it is one that the command cannot have: then the command
    /// stays open, and is sent again as if this had been lost.
    fn complete_update(&mut self, p: &Pending, id: EntryId, c: &Completion) -> Result<(), NicError> {
        if c.status.get() == status::DMA_FAULT {
            // The counter page could not be written, and nothing else happened.
            return match self.admin.resend(&self.memory.to_device, c.cookie.get())? {
                Resent::TooOften(p) => self.give_up(&p),
                Resent::Yes | Resent::NoRoom => {
                    self.stats.resent += 1;
                    self.admin.ring(&self.regs)
                }
            };
        }
        let known = self.table(id.table).map_or(0, |t| t.generation(id.index));
        let (code, generation) = (c.status.get(), c.generation.get());
        let ok = code == status::OK;
        let (result, now_holds) = match p.task {
            Task::Insert(_, ours) if ok && generation == ours => (UpdateStatus::Ok, Some(ours)),
            // An earlier sending of this command had been carried out.
            Task::Insert(_, ours) if code == status::ENTRY_IN_USE && generation == ours => {
                (UpdateStatus::Ok, Some(ours))
            }
            Task::Replace(_, ours) if ok && generation == ours => (UpdateStatus::Ok, Some(ours)),
            Task::Delete(_) if ok && (generation == known || known == 0) => (UpdateStatus::Ok, Some(0)),
            Task::Delete(_) if code == status::NOT_FOUND && p.attempts > 0 && known != 0 => {
                (UpdateStatus::Ok, Some(0))
            }
            Task::Delete(_) if code == status::NOT_FOUND => (UpdateStatus::NotFound, Some(0)),
            // A damaged entry keeps what an earlier sending gave it: the event about it names that generation.
            Task::Replace(_, ours) if code == status::PARITY && generation == ours => {
                (refusal(code), Some(ours))
            }
            _ if ok => return self.impossible(|| format!("completion of another generation: {c:?}")),
            _ => (refusal(code), None),
        };
        let counters = (matches!(p.task, Task::Delete(_)) && result == UpdateStatus::Ok).then(|| {
            if ok {
                let last = EntryCounters {
                    packets: c.packets.get(),
                    bytes: c.bytes.get(),
                    used_ns: c.used_ns.get(),
                    tcp_flags: c.tcp_flags.get(),
                };
                match self.table(id.table) {
                    Some(t) if known != 0 => t.seen.check(id.index, last),
                    _ => last,
                }
            } else {
                // The page keeps an entry's last counters after its deletion.
                self.page_counters(id).unwrap_or_default()
            }
        });
        self.admin.close(c.cookie.get());
        if let Some(t) = self.table_mut(id.table) {
            t.set_busy(id.index, false);
            if let Some(generation) = now_holds {
                t.set_generation(id.index, generation);
                if matches!(p.task, Task::Insert(..)) {
                    t.seen.restart(id.index);
                }
            }
        }
        self.results.push(UpdateResult { cookie: p.cookie, status: result, counters });
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), NicError> {
        let mut taken = 0;
        let mut bytes = [0; size_of::<Event>()];
        while taken < self.event_ring.elements
            && self.event_ring.peek(&self.memory.from_device, 0, &mut bytes)?
        {
            self.event_ring.head = self.event_ring.head.wrapping_add(1);
            taken += 1;
            if let Some(e) = parse::<Event>(&bytes) {
                self.take_event(&e)?;
            }
        }
        if taken > 0 {
            self.regs.ring(DB_EVQ_HEAD, self.event_ring.head)?;
        }
        Ok(())
    }

    fn take_event(&mut self, e: &Event) -> Result<(), NicError> {
        let table = TableId(e.subject.get());
        let index = e.entry.get();
        let known = |t: &&Table| index < t.info.caps.max_entries;
        match e.kind.get() {
            event::LINK if (1..=self.id.ports).contains(&e.subject.get().into()) && e.detail.get() <= 1 => {
                self.set_link(NicPort(e.subject.get()), e.detail.get() == 1);
            }
            event::PARITY if self.table(table).filter(known).is_some() => {
                // An event about an entry that was deleted since is old; one about an entry whose insert is in flight
                // may be about either, and a needless repair does no harm.
                let current = self
                    .table(table)
                    .is_some_and(|t| t.is_busy(index) || t.generation(index) == e.generation.get());
                if current {
                    self.events.push(NicEvent::ParityError(EntryId { table, index }));
                }
            }
            event::PRESSURE if self.table(table).is_some() => {
                let used = self.table(table).map_or(0, |t| t.used);
                self.events.push(NicEvent::TablePressure { table, used });
            }
            event::FATAL => return self.check_health(),
            // Entries are inserted without an ageing time.
            event::AGED if self.table(table).filter(known).is_some() => {}
            _ => return self.impossible(|| format!("event about nothing: {e:?}")),
        }
        Ok(())
    }

    /// Looks at the registers: gone, fatal, reset by itself, hanging, or commands without an answer.
    pub(crate) fn check_health(&mut self) -> Result<(), NicError> {
        let now = self.config.platform.now_ns();
        self.health.checkup = Checkup::done(now);
        let status = self.regs.get(regs::STATUS)?;
        if status & regs::STATUS_FATAL != 0 {
            let (code, at) = (self.regs.get(regs::FATAL_CODE)?, self.regs.get64(regs::FATAL_ADDR_LO)?);
            return Err(self.failed(format!("fatal error {code} at {at:#x}")));
        }
        if self.regs.get(regs::RESET_COUNT)? != self.health.resets || status & regs::STATUS_ENABLED == 0 {
            return Err(self.failed("it was reset, and not by us"));
        }
        let beat = self.regs.get(regs::HEARTBEAT)?;
        if beat != self.health.beat {
            (self.health.beat, self.health.beat_at, self.health.beat_checks) = (beat, now, 0);
        }
        self.health.beat_checks = self.health.beat_checks.saturating_add(1);
        let still = u128::from(now.saturating_sub(self.health.beat_at));
        if still >= self.config.hang_deadline.as_nanos() && self.health.beat_checks > BEAT_CHECKS {
            return Err(self.failed("it hangs: no heartbeat"));
        }
        for n in 0..self.tables.len() {
            let Some((t, index)) = self.tables.get(n).and_then(|t| Some((t, t.seen.take_backwards()?)))
            else {
                continue;
            };
            let table = t.info.caps.id.0;
            self.impossible(|| format!("counters of entry {index} of table {table} ran backwards"))?;
        }
        let lost = self.regs.get(regs::EVENTS_LOST)?;
        if lost != self.health.events_lost {
            self.health.events_lost = lost;
            self.read_links()?;
        }
        if self.admin.open() > 0 { self.check_commands(now, beat) } else { Ok(()) }
    }

    fn check_commands(&mut self, now: u64, beat: u32) -> Result<(), NicError> {
        let head = self.regs.get(regs::ASQ_HEAD)?;
        if !self.admin.plausible_head(head) {
            return Err(self.lies(format!("its admin ring index is {head:#x}")));
        }
        let (resent, hopeless) = self.admin.resend_lost(&self.memory.to_device, head, beat)?;
        if resent > 0 {
            self.stats.resent += resent;
            self.admin.ring(&self.regs)?;
        }
        if let Some(p) = hopeless {
            return self.give_up(&p);
        }
        if u128::from(now.saturating_sub(self.health.progress_at)) >= self.config.deadline.as_nanos() {
            return Err(self.failed(format!("no completion for {:?}", self.config.deadline)));
        }
        Ok(())
    }
}

impl Fl1 {
    /// The device does not carry a command out, however often it is sent: what it knows is not known any more.
    fn give_up(&mut self, p: &Pending) -> Result<(), NicError> {
        if let Task::Insert(id, _) | Task::Replace(id, _) | Task::Delete(id) = p.task
            && let Some(t) = self.table_mut(id.table)
        {
            t.set_busy(id.index, false);
        }
        if !matches!(p.task, Task::Read { .. } | Task::Counters { .. } | Task::Setup) {
            let status = UpdateStatus::TimedOut;
            self.results.push(UpdateResult { cookie: p.cookie, status, counters: None });
        }
        Err(self.failed("it does not carry out a command, however often it is sent"))
    }
}

/// What a refusal means to the planner.
fn refusal(code: u16) -> UpdateStatus {
    match code {
        status::NOT_FOUND => UpdateStatus::NotFound,
        status::TABLE_FULL => UpdateStatus::TableFull,
        status::MASKS_FULL => UpdateStatus::MasksFull,
        status::DUPLICATE => UpdateStatus::Duplicate,
        other => UpdateStatus::Rejected(other),
    }
}
