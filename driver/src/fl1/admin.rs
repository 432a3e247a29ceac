//! The admin ring (FL1.md section 5): commands in flight, and which of them a completion answers.
//!
//! A command's bytes stay in the ring until it is answered, so a lost one is sent again from there, without a copy kept
//! aside. Cookies on the wire are sequence numbers of commands and never repeat: a completion is for an open command,
//! for one that was answered before (duplicate or late), or for one that was never sent.

use super::regs::{DB_ASQ_TAIL, Regs};
use super::wire::{COMMAND_MAX, SLOT};
use crate::dma::{Arena, FilledRing, Layout, Offset};
use crate::nic::{EntryId, NicError, TableId};

/// Heartbeats after which a fetched command's completion is lost: 256 by the spec, and some for the time between two
/// looks at the register.
const LOST_AFTER: u32 = 256 + 8;
/// Times that a command is sent before the device is given up.
const ATTEMPTS: u8 = 12;

/// What a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// INSERT, with the entry's generation.
    Insert(EntryId, u32),
    /// REPLACE, with the new generation.
    Replace(EntryId, u32),
    /// DELETE.
    Delete(EntryId),
    /// READ_ENTRY into buffer `buffer`.
    Read { id: EntryId, buffer: u8, sequence: u32, attempts: u8 },
    /// COUNTERS of `count` entries from `first` on.
    Counters { table: TableId, first: u32, count: u32, sequence: u32, attempts: u8 },
    /// A command that bring-up waits for.
    Setup,
}

/// A command that was put into the ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    /// The caller's cookie.
    pub(crate) cookie: u64,
    /// What it is for.
    pub(crate) task: Task,
    /// Opcode, which its completion repeats.
    pub(crate) opcode: u8,
    /// Times sent before this one.
    pub(crate) attempts: u8,
    slots: u8,
    open: bool,
    slot: u32,
    /// Heartbeat at which the device was first seen to have fetched it.
    fetched: Option<u32>,
}

/// What a completion's cookie says.
pub(crate) enum Answer {
    /// For this open command.
    Open(Pending),
    /// For a command that was answered or sent again.
    Duplicate,
    /// For no command.
    Unknown,
}

/// What became of a command that was to be sent again.
pub(crate) enum Resent {
    /// It is in the ring.
    Yes,
    /// There is no room now. It stays open, and is tried again when it counts as lost.
    NoRoom,
    /// It was sent too often already, and is closed.
    TooOften(Pending),
}

/// Submission ring, completion ring, and the commands between them.
pub(crate) struct Admin {
    /// Submission ring in the to-device arena.
    pub(crate) sq: Offset,
    /// Slots, a power of two; also the number of completions.
    pub(crate) slots: u32,
    /// Completions.
    pub(crate) cq: FilledRing,
    tail: u32,
    rung: u32,
    pending: Vec<Pending>,
    /// Oldest open command; all before it are answered.
    base: u64,
    next: u64,
    /// Doorbells rung.
    pub(crate) doorbells: u64,
}

impl Admin {
    pub(crate) fn new(to_device: &mut Layout, from_device: &mut Layout, slots: u32) -> Self {
        let none = Pending {
            cookie: 0,
            task: Task::Setup,
            opcode: 0,
            attempts: 0,
            slots: 0,
            open: false,
            slot: 0,
            fetched: None,
        };
        Self {
            sq: to_device.add(slots as usize * SLOT),
            slots,
            cq: FilledRing::new(from_device, slots, SLOT, 56),
            tail: 0,
            rung: 0,
            pending: vec![none; slots as usize],
            base: 0,
            next: 0,
            doorbells: 0,
        }
    }

    fn place(&self, seq: u64) -> usize {
        (seq & u64::from(self.slots - 1)) as usize
    }

    /// Index of the first slot that is not free.
    fn oldest_slot(&self) -> u32 {
        if self.base == self.next { self.tail } else { self.pending[self.place(self.base)].slot }
    }

    /// Free slots.
    pub(crate) fn room(&self) -> u32 {
        self.slots - self.tail.wrapping_sub(self.oldest_slot())
    }

    /// Commands without an answer: an upper bound that is 0 only if there are none.
    pub(crate) fn open(&self) -> u64 {
        self.next - self.base
    }

    /// Puts a command (whole slots) into the ring, if there is room.
    pub(crate) fn push(
        &mut self,
        arena: &Arena,
        command: &mut [u8],
        task: Task,
        cookie: u64,
        attempts: u8,
    ) -> Result<bool, NicError> {
        let slots = (command.len() / SLOT) as u32;
        if slots > self.room() {
            return Ok(false);
        }
        let Some(place) = command.get_mut(8..16) else { return Ok(false) };
        place.copy_from_slice(&self.next.to_le_bytes());
        let first = (self.tail & (self.slots - 1)) as usize * SLOT;
        let (head, wrapped) = command.split_at(command.len().min(self.slots as usize * SLOT - first));
        arena.mem().write_bytes(self.sq + first, head)?;
        arena.mem().write_bytes(self.sq, wrapped)?;
        let at = self.place(self.next);
        self.pending[at] = Pending {
            cookie,
            task,
            opcode: command[0],
            attempts,
            slots: slots as u8,
            open: true,
            slot: self.tail,
            fetched: None,
        };
        self.next += 1;
        self.tail = self.tail.wrapping_add(slots);
        Ok(true)
    }

    /// Tells the device about everything in the ring, by at most one doorbell.
    pub(crate) fn ring(&mut self, regs: &Regs) -> Result<(), NicError> {
        if self.rung != self.tail {
            regs.ring(DB_ASQ_TAIL, self.tail)?;
            self.rung = self.tail;
            self.doorbells += 1;
        }
        Ok(())
    }

    /// Whom a completion's cookie is for.
    pub(crate) fn find(&self, cookie: u64) -> Answer {
        if cookie >= self.next {
            return Answer::Unknown;
        }
        let p = &self.pending[self.place(cookie)];
        if cookie < self.base || !p.open { Answer::Duplicate } else { Answer::Open(*p) }
    }

    /// The open command of this cookie is answered; its slots become free once those before it are.
    pub(crate) fn close(&mut self, cookie: u64) {
        let at = self.place(cookie);
        self.pending[at].open = false;
        while self.base < self.next && !self.pending[self.place(self.base)].open {
            self.base += 1;
        }
    }

    /// Whether a consumer index that the device states is one that it can have.
    pub(crate) fn plausible_head(&self, head: u32) -> bool {
        head.wrapping_sub(self.oldest_slot()) <= self.rung.wrapping_sub(self.oldest_slot())
    }

    /// Sends an open command again under a new cookie.
    pub(crate) fn resend(&mut self, arena: &Arena, cookie: u64) -> Result<Resent, NicError> {
        let p = self.pending[self.place(cookie)];
        if p.attempts + 1 >= ATTEMPTS {
            self.close(cookie);
            return Ok(Resent::TooOften(p));
        }
        // The oldest one makes its own room.
        if cookie != self.base && u32::from(p.slots) > self.room() {
            return Ok(Resent::NoRoom);
        }
        let mut bytes = [0; COMMAND_MAX];
        let command = &mut bytes[..usize::from(p.slots) * SLOT];
        let first = (p.slot & (self.slots - 1)) as usize * SLOT;
        let (head, wrapped) = command.split_at_mut(command.len().min(self.slots as usize * SLOT - first));
        arena.mem().read_bytes(self.sq + first, head)?;
        arena.mem().read_bytes(self.sq, wrapped)?;
        self.close(cookie);
        Ok(if self.push(arena, command, p.task, p.cookie, p.attempts + 1)? {
            Resent::Yes
        } else {
            Resent::TooOften(p)
        })
    }

    /// Sends again what the device fetched so long ago that its completion is lost. `head` is the device's consumer
    /// index, `beat` its heartbeat. Returns how many were sent again, and the first command that was sent too often.
    pub(crate) fn resend_lost(
        &mut self,
        arena: &Arena,
        head: u32,
        beat: u32,
    ) -> Result<(u64, Option<Pending>), NicError> {
        let oldest = self.oldest_slot();
        let fetched = head.wrapping_sub(oldest);
        let mut resent = 0;
        for seq in self.base..self.next {
            let at = self.place(seq);
            let p = self.pending[at];
            if p.slot.wrapping_sub(oldest) >= fetched {
                break;
            }
            match p.fetched {
                _ if !p.open => {}
                None => self.pending[at].fetched = Some(beat),
                Some(since) if beat.wrapping_sub(since) > LOST_AFTER => match self.resend(arena, seq)? {
                    Resent::Yes => resent += 1,
                    Resent::NoRoom => {}
                    Resent::TooOften(p) => return Ok((resent, Some(p))),
                },
                Some(_) => {}
            }
        }
        Ok((resent, None))
    }

    /// Takes every open command out, oldest first: the device will not answer any more.
    pub(crate) fn abort(&mut self, mut each: impl FnMut(Pending)) {
        for seq in self.base..self.next {
            let at = self.place(seq);
            if std::mem::take(&mut self.pending[at].open) {
                each(self.pending[at]);
            }
        }
        self.base = self.next;
    }

    /// Starts anew with empty rings; cookies go on.
    pub(crate) fn restart(&mut self, from_device: &Arena) -> Result<(), NicError> {
        (self.tail, self.rung) = (0, 0);
        Ok(self.cq.restart(from_device)?)
    }
}
