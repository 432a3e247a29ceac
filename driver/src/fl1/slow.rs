//! Slow queues (FL1.md section 8): packets that the tables did not finish, and packets from the slow path.
//!
//! Receive buffers are fixed, one per ring element, so posting one again is a doorbell and no descriptor. Transmit
//! frames lie in a ring of bytes, because frames up to 64 KiB in fixed buffers would pin memory that nobody uses.

pub(crate) mod path;

use super::Memory;
use super::caps::Identity;
use super::regs::{DB_RX_TAIL, DB_TX_TAIL, Regs};
use super::wire::{RX_MORE, RxBuffer, RxCompletion, TX_PIPELINE, TxDescriptor, parse};
use crate::dma::{Arena, FilledRing, Layout, Offset};
use crate::nic::{NicError, NicPort, SlowRx, SlowTx, Stage};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Bytes of a receive buffer: the least that the device takes.
const BUFFER: usize = 2048;
/// Where a frame's bytes may begin in the ring of bytes: on a cache line of its own.
const ALIGN: u64 = 64;
/// Shortest frame that can be sent: an Ethernet header.
const FRAME_MIN: usize = 14;

/// Receive half of a slow queue.
pub(crate) struct RxQueue {
    pub(crate) buffer_ring: Offset,
    pub(crate) completions: FilledRing,
    buffers: Offset,
    posted: u32,
}

impl RxQueue {
    pub(crate) fn new(to_device: &mut Layout, from_device: &mut Layout, elements: u32) -> Self {
        Self {
            buffer_ring: to_device.add(elements as usize * size_of::<RxBuffer>()),
            completions: FilledRing::new(from_device, elements, size_of::<RxCompletion>(), 56),
            buffers: from_device.add(elements as usize * BUFFER),
            posted: 0,
        }
    }

    /// Ring elements that a device with frames of this length needs.
    pub(crate) fn elements_for(max_frame: u32) -> u32 {
        (2 * max_frame).div_ceil(BUFFER as u32).next_power_of_two().max(16)
    }

    /// Writes all descriptors and forgets what was received.
    pub(crate) fn restart(&mut self, to_device: &Arena, from_device: &Arena) -> Result<(), NicError> {
        self.posted = 0;
        for i in 0..self.completions.elements {
            let buffer = RxBuffer {
                iova: from_device.iova(self.buffers + i as usize * BUFFER).into(),
                len: (BUFFER as u32).into(),
                id: i.into(),
            };
            let at = self.buffer_ring + i as usize * size_of::<RxBuffer>();
            to_device.mem().write_bytes(at, buffer.as_bytes())?;
        }
        Ok(self.completions.restart(from_device)?)
    }

    /// Completions taken since the queue was enabled; wraps.
    pub(crate) fn received(&self) -> u32 {
        self.completions.head
    }

    /// Posts every buffer that is free.
    pub(crate) fn post(&mut self, regs: &Regs, queue: u32) -> Result<(), NicError> {
        let all = self.completions.head.wrapping_add(self.completions.elements);
        if self.posted != all {
            self.posted = all;
            regs.ring(DB_RX_TAIL.of(queue), all)?;
        }
        Ok(())
    }

    /// The next whole frame, copied to the start of `frame` (at least `max_frame` bytes). The error says what the
    /// device wrote that cannot be.
    pub(crate) fn next(
        &mut self,
        from_device: &Arena,
        id: &Identity,
        frame: &mut [u8],
    ) -> Result<Option<SlowRx>, String> {
        let mut total = 0;
        let mut first: Option<RxCompletion> = None;
        for n in 0..self.completions.elements {
            let mut bytes = [0; size_of::<RxCompletion>()];
            let there = self.completions.peek(from_device, n, &mut bytes).map_err(|e| e.to_string())?;
            let Some(c) = there.then(|| parse::<RxCompletion>(&bytes)).flatten() else { return Ok(None) };
            let lie = |what: &str| Err(format!("receive completion with {what}: {c:?}"));
            let expected = self.completions.head.wrapping_add(n) & (self.completions.elements - 1);
            let len = c.len.get() as usize;
            if c.buffer.get() != expected {
                return lie("another buffer than the next");
            }
            if len == 0 || len > BUFFER {
                return lie("an impossible length");
            }
            let port = u32::from(c.port.get());
            if port == 0 || port > id.ports || u32::from(c.stage) >= id.stages {
                return lie("an impossible port or stage");
            }
            if c.flags.get() & !RX_MORE != 0 || c.frame_len.get() > id.max_frame {
                return lie("impossible flags or frame length");
            }
            let start = *first.get_or_insert(c);
            if (start.port, start.stage, start.metadata, start.frame_len)
                != (c.port, c.stage, c.metadata, c.frame_len)
            {
                return lie("other values than the frame's first");
            }
            let Some(room) = frame.get_mut(total..total + len) else {
                return lie("more bytes than a frame has");
            };
            let at = self.buffers + expected as usize * BUFFER;
            from_device.mem().read_bytes(at, room).map_err(|e| e.to_string())?;
            total += len;
            if c.flags.get() & RX_MORE != 0 {
                continue;
            }
            if total != c.frame_len.get() as usize {
                return lie("a frame length that is not the sum");
            }
            self.completions.head = self.completions.head.wrapping_add(n + 1);
            return Ok(Some(SlowRx {
                port: NicPort(c.port.get()),
                metadata: c.metadata.get(),
                stage: Stage(c.stage),
                len: total as u32,
            }));
        }
        Err("a frame that fills the whole receive ring and goes on".into())
    }
}

/// A frame in the transmit ring.
struct Sent {
    to: SlowTx,
    /// Place in the byte ring, free-running; its length.
    start: u64,
    len: usize,
}

/// Transmit half of a slow queue.
pub(crate) struct TxQueue {
    pub(crate) descriptors: Offset,
    pub(crate) elements: u32,
    /// The device's consumer index, in the from-device arena.
    pub(crate) written_back: Offset,
    data: Offset,
    data_len: u64,
    /// Consumer and producer index.
    head: u32,
    tail: u32,
    /// Producer index as the device was told.
    told: u32,
    /// Frames between head and tail, oldest first.
    frames: VecDeque<Sent>,
    data_tail: u64,
}

impl TxQueue {
    pub(crate) fn new(
        to_device: &mut Layout,
        from_device: &mut Layout,
        elements: u32,
        max_frame: u32,
    ) -> Self {
        let data_len = (4 * max_frame as usize).next_multiple_of(ALIGN as usize);
        Self {
            descriptors: to_device.add(elements as usize * size_of::<TxDescriptor>()),
            elements,
            written_back: from_device.add(8),
            data: to_device.add(data_len),
            data_len: data_len as u64,
            head: 0,
            tail: 0,
            told: 0,
            frames: VecDeque::with_capacity(elements as usize),
            data_tail: 0,
        }
    }

    /// Frames that the device says it has sent, of those in the ring.
    fn sent(&self, from_device: &Arena) -> Result<usize, String> {
        let word =
            from_device.mem().load_u64(self.written_back, Ordering::Acquire).map_err(|e| e.to_string())?;
        let sent = (word as u32).wrapping_sub(self.head);
        if word > u64::from(u32::MAX) || sent > self.tail.wrapping_sub(self.head) {
            return Err(format!("transmit index {word:#x} outside {:#x}..={:#x}", self.head, self.tail));
        }
        Ok(sent as usize)
    }

    /// Frames queued since the queue was enabled; wraps.
    pub(crate) fn queued(&self) -> u32 {
        self.tail
    }

    /// True if everything was sent that was in the ring when [`Self::queued`] was `queued`. An index that cannot be is
    /// dealt with when the ring is next used.
    pub(crate) fn has_sent(&self, from_device: &Arena, queued: u32) -> bool {
        let behind = queued.wrapping_sub(self.head);
        // A mark before `head` was reaped, and so sent.
        behind > self.elements || self.sent(from_device).is_ok_and(|sent| sent >= behind as usize)
    }

    /// Frees what the device has sent, but for the last frame: a device that fails while it sends one takes its index
    /// back, and then the frame is ours again.
    fn reap(&mut self, from_device: &Arena) -> Result<(), String> {
        let surely = self.sent(from_device)?.saturating_sub(1);
        self.frames.drain(..surely);
        self.head = self.head.wrapping_add(surely as u32);
        Ok(())
    }

    /// Frames that the device is not known to have sent.
    pub(crate) fn pending(&self, from_device: &Arena) -> usize {
        // An index that cannot be is dealt with when the ring is next used.
        self.frames.len() - self.sent(from_device).unwrap_or(0)
    }

    /// A place in the byte ring for a frame that must not wrap.
    fn place(&self, len: u64) -> Option<u64> {
        let mut start = self.data_tail.next_multiple_of(ALIGN);
        if start % self.data_len + len > self.data_len {
            start = start.next_multiple_of(self.data_len);
        }
        let oldest = self.frames.front().map_or(start, |f| f.start);
        (start + len - oldest <= self.data_len).then_some(start)
    }

    /// Queues a frame, of which the device learns by [`Self::ring`]. `Ok(false)`: no room.
    pub(crate) fn queue(
        &mut self,
        device: &str,
        memory: &Memory,
        to: SlowTx,
        frame: &[u8],
    ) -> Result<bool, NicError> {
        let Memory { to_device, from_device } = memory;
        if self.frames.len() >= self.elements as usize || self.place(frame.len() as u64).is_none() {
            self.reap(from_device).map_err(|what| NicError::Lies { device: device.into(), what })?;
        }
        let place = self.place(frame.len() as u64).filter(|_| self.frames.len() < self.elements as usize);
        let Some(start) = place else { return Ok(false) };
        let at = self.data + (start % self.data_len) as usize;
        to_device.mem().write_bytes(at, frame)?;
        let (port, flags) = match to {
            SlowTx::Port(p) => (p, 0),
            SlowTx::Pipeline(p) => (p, TX_PIPELINE),
        };
        let descriptor = TxDescriptor {
            iova: to_device.iova(at).into(),
            len: (frame.len() as u32).into(),
            port: port.0.into(),
            flags,
            stage: 0,
            metadata: 0.into(),
            reserved: 0.into(),
            cookie: 0.into(),
        };
        let element = (self.tail & (self.elements - 1)) as usize;
        to_device
            .mem()
            .write_bytes(self.descriptors + element * size_of::<TxDescriptor>(), descriptor.as_bytes())?;
        self.frames.push_back(Sent { to, start, len: frame.len() });
        self.data_tail = start + frame.len() as u64;
        self.tail = self.tail.wrapping_add(1);
        Ok(true)
    }

    /// Tells the device of the frames that were queued.
    pub(crate) fn ring(&mut self, regs: &Regs, queue: u32) -> Result<(), NicError> {
        if self.told != self.tail {
            self.told = self.tail;
            regs.ring(DB_TX_TAIL.of(queue), self.tail)?;
        }
        Ok(())
    }

    /// Takes back the frames that the device has not sent. If its index cannot be believed, all that are not known to be
    /// sent.
    pub(crate) fn take_unsent(
        &mut self,
        to_device: &Arena,
        from_device: &Arena,
        out: &mut Vec<(SlowTx, Vec<u8>)>,
    ) -> Result<(), NicError> {
        let sent = self.sent(from_device).unwrap_or(0);
        for f in self.frames.drain(..).skip(sent) {
            let mut frame = vec![0; f.len];
            to_device.mem().read_bytes(self.data + (f.start % self.data_len) as usize, &mut frame)?;
            out.push((f.to, frame));
        }
        self.head = self.tail;
        self.told = self.tail;
        Ok(())
    }

    /// Starts anew; frames still in it are forgotten.
    pub(crate) fn restart(&mut self, from_device: &Arena) -> Result<(), NicError> {
        (self.head, self.tail, self.told, self.data_tail) = (0, 0, 0, 0);
        self.frames.clear();
        Ok(from_device.mem().store_u64(self.written_back, 0, Ordering::Release)?)
    }
}

/// Refuses a frame or port that the device would refuse.
pub(crate) fn check_tx(id: &Identity, to: SlowTx, frame: &[u8]) -> Result<NicPort, NicError> {
    let (SlowTx::Port(port) | SlowTx::Pipeline(port)) = to;
    if port.0 == 0 || u32::from(port.0) > id.ports {
        return Err(NicError::Invalid(format!("port {} of {}", port.0, id.ports)));
    }
    if frame.len() < FRAME_MIN || frame.len() > id.max_frame as usize {
        return Err(NicError::Invalid(format!(
            "a frame of {} bytes, not {FRAME_MIN}..={}",
            frame.len(),
            id.max_frame
        )));
    }
    Ok(port)
}
