//! One turn of the driver: answers to commands, events, and the device's health.

use super::tlv::{Fields, find, number};
use super::wire::{event, status};
use super::{GroupIds, Rocker, Step, Task, regs};
use crate::nic::{EntryCounters, NicError, NicPort, UpdateResult, UpdateStatus};
use crate::standing::Checkup;

/// Events that cannot be, after which the device is not believed any more.
const IMPOSSIBLE_MAX: u64 = 64;

impl Rocker {
    pub(crate) fn turn(&mut self) -> Result<(), NicError> {
        self.take_answers()?;
        self.tell()?;
        self.take_events()?;
        let now = self.config.platform.now_ns();
        let due = self.health.checkup.is_due(now, self.config.check_interval);
        if due { self.check_health(now) } else { Ok(()) }
    }

    /// At most one ring's worth, so that a device that never stops writing does not keep us here.
    fn take_answers(&mut self) -> Result<(), NicError> {
        for _ in 0..self.commands.elements() {
            let taken = self.commands.take(&self.memory.rings);
            let Some(done) = taken.map_err(|what| self.lies(what))? else { break };
            let Some(step) = self.in_flight.pop_front() else { break };
            self.stats.completions += 1;
            self.health.progress_at = self.config.platform.now_ns();
            match step {
                Step::Setup if done.status == status::OK => {}
                Step::Setup => {
                    let why = format!("it refuses a command that every rocker takes, with {}", done.status);
                    return Err(self.failed(why));
                }
                Step::Flow { index } => self.note_refusal(index, done.status),
                Step::Last { index } => {
                    self.note_refusal(index, done.status);
                    self.finish(index)?;
                }
            }
        }
        Ok(())
    }

    fn note_refusal(&mut self, index: u32, status: u16) {
        if let Some(place) = self.entries.get_mut(index as usize).filter(|_| status != status::OK) {
            place.refused.get_or_insert(status);
        }
    }

    /// All commands of an update are answered.
    fn finish(&mut self, index: u32) -> Result<(), NicError> {
        let Some(place) = self.entries.get_mut(index as usize) else { return Ok(()) };
        let Some((cookie, task)) = place.update.take() else { return Ok(()) };
        let refused = place.refused.take();
        let (status, goes): (UpdateStatus, GroupIds) = match (task, refused) {
            (Task::Insert, None) => (UpdateStatus::Ok, GroupIds::new()),
            (Task::Replace, None) => (UpdateStatus::Ok, std::mem::take(&mut place.old_groups)),
            (Task::Delete, None) => {
                place.entry = None;
                (UpdateStatus::Ok, std::mem::take(&mut place.groups))
            }
            // The device has the rest of the update, or something else in its place: only a reset makes it known.
            (_, Some(code)) if code != status::NO_SPACE || task != Task::Insert => {
                self.results.push(UpdateResult { cookie, status: UpdateStatus::Aborted, counters: None });
                return Err(self.failed(match code {
                    status::NO_ENTRY => "it does not have an entry that it was given".to_string(),
                    code => format!("it refuses an update of its tables, with {code}"),
                }));
            }
            (_, Some(_)) => return self.take_back(index, cookie),
        };
        let counters = (task == Task::Delete).then(EntryCounters::default);
        self.results.push(UpdateResult { cookie, status, counters });
        self.release(goes)
    }

    /// Removes groups that nobody uses any more.
    fn release(&mut self, ids: GroupIds) -> Result<(), NicError> {
        let mut commands: Vec<Fields> = Vec::new();
        ids.iter().for_each(|id| self.groups.release(*id, &mut commands));
        self.queue.extend(commands.into_iter().map(|c| (c, Step::Setup)));
        self.tell()
    }

    /// The device has no room for an entry.
    fn take_back(&mut self, index: u32, cookie: u64) -> Result<(), NicError> {
        let Some(place) = self.entries.get_mut(index as usize) else { return Ok(()) };
        let groups = std::mem::take(&mut place.groups);
        if groups.len() > 1 || groups.iter().any(|id| *id != 0) {
            // Which of its commands were carried out is not known.
            self.results.push(UpdateResult { cookie, status: UpdateStatus::Aborted, counters: None });
            return Err(self.failed("it has no room for an entry, and has part of it"));
        }
        if let Some(entry) = place.entry.take() {
            self.matches.remove(&super::match_key(&entry));
        }
        self.results.push(UpdateResult { cookie, status: UpdateStatus::TableFull, counters: None });
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), NicError> {
        let mut taken = 0;
        while taken < self.event_ring.elements() {
            let event = self.event_ring.take(&self.memory.rings);
            let Some(done) = event.map_err(|what| self.lies(what))? else { break };
            taken += 1;
            let fields = self.event_ring.fields(&self.memory.rings, &done)?;
            self.take_event(&fields)?;
        }
        if taken > 0 { self.post_events() } else { Ok(()) }
    }

    fn take_event(&mut self, fields: &[u8]) -> Result<(), NicError> {
        let info = find(fields, event::INFO).unwrap_or_default();
        let port = number::<4>(info, event::PPORT).and_then(|p| u16::try_from(p).ok());
        let port = port.filter(|p| (1..=self.ports.len()).contains(&usize::from(*p))).map(NicPort);
        match (number::<2>(fields, event::TYPE), port, number::<1>(info, event::LINK_UP)) {
            (Some(event::LINK_CHANGED), Some(port), Some(up @ 0..=1)) => self.set_link(port, up == 1),
            (Some(event::MAC_VLAN_SEEN), Some(_), _) => self.stats.learned += 1,
            _ => {
                self.stats.impossible += 1;
                if self.stats.impossible > IMPOSSIBLE_MAX {
                    return Err(self.lies(format!("event about nothing: {fields:02x?}")));
                }
            }
        }
        Ok(())
    }

    /// Looks at the registers: gone, reset by somebody else, or commands without an answer.
    fn check_health(&mut self, now: u64) -> Result<(), NicError> {
        self.health.checkup = Checkup::done(now);
        let bogus = self.regs.get(regs::BOGUS)?;
        if bogus != regs::BOGUS_VALUE {
            return Err(self.lies(format!("register 0 reads {bogus:#x}")));
        }
        if self.regs.get64(regs::PORT_PHYS_ENABLE)? != self.health.enabled {
            return Err(self.failed("it was reset, and not by us"));
        }
        let mut lost = 0;
        for rings in &mut self.ports {
            match rings.reap(&self.memory) {
                Ok(n) => lost += n,
                Err(what) => return Err(NicError::Lies { device: self.regs.name().into(), what }),
            }
        }
        self.stats.lost_packets += lost;
        let waits = u128::from(now.saturating_sub(self.health.progress_at));
        if !self.in_flight.is_empty() && waits >= self.config.deadline.as_nanos() {
            return Err(self.failed(format!("no answer to a command for {:?}", self.config.deadline)));
        }
        Ok(())
    }
}
