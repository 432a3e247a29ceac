//! Packets between the host and the device's ports (the programming guide: "CPU Packet Processing").
//!
//! Each port has a ring for either way. Received frames land in buffers of the driver's own; of the fields that the device
//! writes only the length is believed, and only as far as the buffer goes.

use super::regs::Regs;
use super::ring::Ring;
use super::tlv::{Fields, number};
use super::wire::{rx, status, tx};
use crate::dma::{Arena, Layout, Offset};
use crate::nic::NicError;
use std::collections::VecDeque;

/// Shortest frame: an Ethernet header.
pub(crate) const FRAME_MIN: usize = 14;
/// Bytes of a descriptor's buffer.
const FIELDS: u16 = 128;

/// Three kinds of memory: what both sides write, what the device reads, and what it writes.
pub(crate) struct Memory {
    pub(crate) rings: Arena,
    pub(crate) to_device: Arena,
    pub(crate) from_device: Arena,
}

/// The layouts of [`Memory`], while it is being planned.
#[derive(Default)]
pub(crate) struct Layouts {
    pub(crate) rings: Layout,
    pub(crate) to_device: Layout,
    pub(crate) from_device: Layout,
}

/// The rings of a port.
pub(crate) struct PortRings {
    tx: Ring,
    rx: Ring,
    sent: Offset,
    received: Offset,
    frame_max: usize,
    /// Lengths of the frames in the TX ring, oldest first.
    lengths: VecDeque<usize>,
}

/// A frame that was received, as a place in memory.
pub(crate) struct Received {
    at: Offset,
    pub(crate) len: usize,
}

impl PortRings {
    /// For port number `port`.
    pub(crate) fn new(layouts: &mut Layouts, port: u32, elements: u32, frame_max: u32) -> Self {
        let bytes = elements as usize * frame_max as usize;
        Self {
            tx: Ring::new(&mut layouts.rings, 2 * port, elements, FIELDS),
            rx: Ring::new(&mut layouts.rings, 2 * port + 1, elements, FIELDS),
            sent: layouts.to_device.add(bytes),
            received: layouts.from_device.add(bytes),
            frame_max: frame_max as usize,
            lengths: VecDeque::with_capacity(elements as usize),
        }
    }

    /// Starts anew with empty rings, and gives the device buffers for packets.
    pub(crate) fn restart(&mut self, regs: &Regs, memory: &Memory) -> Result<(), NicError> {
        self.lengths.clear();
        self.tx.restart(regs, &memory.rings)?;
        self.rx.restart(regs, &memory.rings)?;
        self.post(regs, memory)
    }

    /// Gives the device all buffers that are free.
    pub(crate) fn post(&mut self, regs: &Regs, memory: &Memory) -> Result<(), NicError> {
        while let Some(place) = self.rx.free() {
            let mut f = Fields::new();
            f.u64(rx::FRAG_ADDR, memory.from_device.iova(self.received + place * self.frame_max));
            f.u16(rx::FRAG_MAX_LEN, self.frame_max as u16);
            self.rx.push(&memory.rings, f.bytes())?;
        }
        self.rx.tell(regs).map(|_| ())
    }

    /// The next frame that came in: `Some(None)` for one that the device could not deliver. The error says what cannot be.
    pub(crate) fn receive(&mut self, memory: &Memory) -> Result<Option<Option<Received>>, String> {
        let Some(done) = self.rx.take(&memory.rings)? else { return Ok(None) };
        if done.status != status::OK {
            return Ok(Some(None));
        }
        let fields = self.rx.fields(&memory.rings, &done).map_err(|e| e.to_string())?;
        let len = number::<2>(&fields, rx::FRAG_LEN).map_or(0, |n| n as usize);
        if !(FRAME_MIN..=self.frame_max).contains(&len) {
            return Err(format!("a packet of {len} bytes in a buffer of {}", self.frame_max));
        }
        Ok(Some(Some(Received { at: self.received + done.place * self.frame_max, len })))
    }

    /// Copies a received frame out, before its buffer is given back.
    pub(crate) fn copy<'a>(
        &self,
        memory: &Memory,
        frame: &Received,
        out: &'a mut [u8],
    ) -> Result<&'a [u8], NicError> {
        let out = out.get_mut(..frame.len).unwrap_or_default();
        memory.from_device.mem().read_bytes(frame.at, out)?;
        Ok(out)
    }

    /// Queues a frame and tells the device. `Ok(false)`: no room.
    pub(crate) fn send(&mut self, regs: &Regs, memory: &Memory, frame: &[u8]) -> Result<bool, NicError> {
        let Some(place) = self.tx.free() else { return Ok(false) };
        let at = self.sent + place * self.frame_max;
        memory.to_device.mem().write_bytes(at, frame)?;
        let (mut attributes, mut fragment, mut f) = (Fields::new(), Fields::new(), Fields::new());
        attributes.u64(tx::FRAG_ADDR, memory.to_device.iova(at)).u16(tx::FRAG_LEN, frame.len() as u16);
        fragment.nest(tx::FRAG, &attributes);
        f.nest(tx::FRAGS, &fragment);
        self.tx.push(&memory.rings, f.bytes())?;
        self.lengths.push_back(frame.len());
        self.tx.tell(regs)?;
        Ok(true)
    }

    /// Frees what the device has sent; how many of these it could not send.
    pub(crate) fn reap(&mut self, memory: &Memory) -> Result<u64, String> {
        let mut failed = 0;
        while let Some(done) = self.tx.take(&memory.rings)? {
            self.lengths.pop_front();
            failed += u64::from(done.status != status::OK);
        }
        Ok(failed)
    }

    /// Frames that the device has not sent, as far as its memory says.
    pub(crate) fn pending(&self, memory: &Memory) -> usize {
        (0..self.tx.outstanding()).filter(|n| !self.tx.is_done(&memory.rings, *n)).count()
    }

    /// Takes back what the device is not known to have sent; it does not work any more.
    pub(crate) fn take_unsent(&mut self, memory: &Memory, mut each: impl FnMut(Vec<u8>)) {
        let _ = self.reap(memory);
        let left = self.lengths.len();
        let newest = self.tx.free().unwrap_or(0);
        let elements = self.tx.elements() as usize;
        for (n, len) in self.lengths.drain(..).enumerate() {
            let place = (newest + elements - (left - n)) % elements;
            let mut frame = vec![0; len];
            if memory.to_device.mem().read_bytes(self.sent + place * self.frame_max, &mut frame).is_ok() {
                each(frame);
            }
        }
    }
}
