//! Descriptor rings (the programming guide: "DMA Operations").
//!
//! A ring of N elements holds N - 1; each element has its own buffer, which never moves. The device is done with elements
//! in order. What it writes back is copied once and checked: an element that comes back as another, or says that it holds
//! more than its buffer, is a lie.

use super::regs::{RING_BASE, RING_HEAD, RING_SIZE, Regs};
use super::wire::{DESCRIPTOR, DONE, Descriptor};
use crate::dma::{Arena, Layout, Offset};
use crate::nic::NicError;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

/// An element that the device is done with.
pub(crate) struct Done {
    /// Its place in the ring.
    pub(crate) place: usize,
    /// How it ended.
    pub(crate) status: u16,
    /// Bytes of its buffer that hold fields.
    pub(crate) used: usize,
}

/// A ring and its buffers.
pub(crate) struct Ring {
    /// Number of the ring on the device.
    number: u32,
    descriptors: Offset,
    buffers: Offset,
    elements: u32,
    /// Bytes of a buffer, a multiple of 8.
    size: u16,
    /// Next element to fill, next one to come back, and where the device was told to go.
    head: u32,
    tail: u32,
    told: u32,
    /// Elements given to the device so far; each one's cookie.
    given: u64,
}

impl Ring {
    pub(crate) fn new(layout: &mut Layout, number: u32, elements: u32, size: u16) -> Self {
        Self {
            number,
            descriptors: layout.add(elements as usize * DESCRIPTOR),
            buffers: layout.add(elements as usize * usize::from(size)),
            elements,
            size,
            head: 0,
            tail: 0,
            told: 0,
            given: 0,
        }
    }

    /// Tells the device where the ring is, and empties it.
    pub(crate) fn restart(&mut self, regs: &Regs, arena: &Arena) -> Result<(), NicError> {
        (self.head, self.tail, self.told) = (0, 0, 0);
        arena.zero(self.descriptors, self.elements as usize * DESCRIPTOR)?;
        regs.set64(RING_BASE.of(self.number), arena.iova(self.descriptors))?;
        regs.set(RING_SIZE.of(self.number), self.elements)
    }

    fn next(&self, index: u32) -> u32 {
        (index + 1) & (self.elements - 1)
    }

    /// Place of the next element, if there is room for it.
    pub(crate) fn free(&self) -> Option<usize> {
        (self.next(self.head) != self.tail).then_some(self.head as usize)
    }

    /// Elements that have not come back.
    pub(crate) fn outstanding(&self) -> u32 {
        self.head.wrapping_sub(self.tail) & (self.elements - 1)
    }

    /// Elements there are.
    pub(crate) fn elements(&self) -> u32 {
        self.elements
    }

    /// Fills the next element, if there is room. Fields longer than a buffer are the driver's mistake.
    pub(crate) fn push(&mut self, arena: &Arena, fields: &[u8]) -> Result<bool, NicError> {
        let Some(place) = self.free() else { return Ok(false) };
        let used = u16::try_from(fields.len()).ok().filter(|n| *n <= self.size);
        let Some(used) = used else {
            return Err(NicError::Inexpressible(
                "its actions take more room than a command of the device has",
            ));
        };
        let buffer = self.buffers + place * usize::from(self.size);
        arena.mem().write_bytes(buffer, fields)?;
        let descriptor = Descriptor {
            buffer: arena.iova(buffer).into(),
            cookie: self.given.into(),
            size: self.size.into(),
            used: used.into(),
            reserved: [0; 10],
            status: 0.into(),
        };
        arena.mem().write_bytes(self.descriptors + place * DESCRIPTOR, descriptor.as_bytes())?;
        // Far from the uppermost bit, which is reserved.
        self.given += 1;
        self.head = self.next(self.head);
        Ok(true)
    }

    /// Tells the device of everything filled, by at most one register write. True if there was something to tell.
    pub(crate) fn tell(&mut self, regs: &Regs) -> Result<bool, NicError> {
        if self.told == self.head {
            return Ok(false);
        }
        regs.set(RING_HEAD.of(self.number), self.head)?;
        self.told = self.head;
        Ok(true)
    }

    /// True if the device is done with the element `ahead` places after the oldest one that it has.
    pub(crate) fn is_done(&self, arena: &Arena, ahead: u32) -> bool {
        let place = (self.tail.wrapping_add(ahead) & (self.elements - 1)) as usize;
        // The status is the last of the four numbers in the descriptor's last word, which is stored as a whole.
        let last = arena.mem().load_u64(self.descriptors + place * DESCRIPTOR + 24, Ordering::Acquire);
        ahead < self.outstanding() && last.is_ok_and(|word| (word >> 48) as u16 & DONE != 0)
    }

    /// Takes the oldest element, if the device is done with it. The error says what cannot be.
    pub(crate) fn take(&mut self, arena: &Arena) -> Result<Option<Done>, String> {
        if !self.is_done(arena, 0) {
            return Ok(None);
        }
        let place = self.tail as usize;
        let mut bytes = [0; DESCRIPTOR];
        let at = self.descriptors + place * DESCRIPTOR;
        arena.mem().read_bytes(at, &mut bytes).map_err(|e| e.to_string())?;
        let d = Descriptor::read_from_bytes(&bytes).map_err(|_| "a descriptor is cut off".to_string())?;
        let oldest = self.given - u64::from(self.outstanding());
        let buffer = arena.iova(self.buffers + place * usize::from(self.size));
        if (d.cookie.get(), d.buffer.get()) != (oldest, buffer) || d.used.get() > self.size {
            return Err(format!("ring {} returns an element that it was not given: {d:?}", self.number));
        }
        self.tail = self.next(self.tail);
        Ok(Some(Done { place, status: d.status.get() & !DONE, used: d.used.get().into() }))
    }

    /// The fields in the buffer of an element that came back.
    pub(crate) fn fields(&self, arena: &Arena, done: &Done) -> Result<Vec<u8>, NicError> {
        let mut fields = vec![0; done.used.min(usize::from(self.size))];
        arena.mem().read_bytes(self.buffers + done.place * usize::from(self.size), &mut fields)?;
        Ok(fields)
    }
}
