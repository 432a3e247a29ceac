//! A started port's packets from the NIC: which queue gets one, and in which buffer.

use crate::nic::delivery::{Deliveries, spread};
use crate::nic::port::{Port, RxQueue, free};
use crate::rule::FIRST_DELIVERY;
use crate::sys;
use flowlift_driver::nic::SlowRx;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Buffers that a receive queue's pool is asked for at once.
const SPARE: usize = 32;

/// A receive queue as it is filled.
struct Filling {
    queue: Arc<RxQueue>,
    /// Fresh buffers.
    spare: Vec<*mut sys::rte_mbuf>,
    /// Packets of this burst.
    filled: Vec<*mut sys::rte_mbuf>,
    bytes: u64,
}

/// A started port.
pub(super) struct Intake {
    port: Arc<Port>,
    queues: Vec<Filling>,
}

// SAFETY: the raw pointers are packets that came out of a pool for this record, and nobody else has.
unsafe impl Send for Intake {}

impl Drop for Intake {
    fn drop(&mut self) {
        for queue in &mut self.queues {
            free(&queue.spare);
            free(&queue.filled);
        }
    }
}

/// Gives a packet to its port.
pub(super) fn sort(intakes: &mut [Intake], info: SlowRx, frame: &[u8], deliveries: &Deliveries) {
    if let Some(intake) = intakes.iter_mut().find(|intake| intake.port.nic_port == info.port) {
        intake.take_in(info, frame, deliveries);
    }
}

impl Intake {
    pub(super) fn new(port: Arc<Port>, queues: Vec<Arc<RxQueue>>) -> Self {
        let filling = |queue| Filling {
            queue,
            spare: Vec::with_capacity(SPARE),
            filled: Vec::with_capacity(super::RX_BATCH),
            bytes: 0,
        };
        Self { port, queues: queues.into_iter().map(filling).collect() }
    }

    pub(super) fn is_of(&self, port: &Arc<Port>) -> bool {
        Arc::ptr_eq(&self.port, port)
    }

    fn take_in(&mut self, info: SlowRx, frame: &[u8], deliveries: &Deliveries) {
        let delivery = (info.metadata >= FIRST_DELIVERY).then(|| deliveries.get(info.metadata)).flatten();
        let port = &self.port;
        if delivery.is_none() && port.isolated.load(Ordering::Relaxed) {
            port.counts.isolated.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if frame.len() as u64 > port.max_frame.load(Ordering::Relaxed) {
            port.counts.oversize.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let destination = frame.first_chunk().copied().unwrap_or_default();
        if !port.accepts(destination) {
            port.counts.filtered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let queue = match delivery.map(|d| d.queues.as_slice()) {
            Some([]) | None => spread(frame, self.queues.len()),
            Some(queues) => queues.get(spread(frame, queues.len())).copied().unwrap_or(0).into(),
        };
        let mark = delivery.and_then(|d| d.mark);
        let flagged = mark.is_some() || delivery.is_some_and(|d| d.flag);
        if flagged {
            port.counts.marked.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(rx) = self.queues.get_mut(queue) {
            rx.fill(frame, port.id, flagged, mark);
        }
    }

    /// Hands the packets of this burst to the queues' threads.
    pub(super) fn flush(&mut self) {
        self.queues.iter_mut().for_each(Filling::flush);
    }
}

impl Filling {
    fn buffer(&mut self) -> Option<*mut sys::rte_mbuf> {
        if self.spare.is_empty() {
            let mut fresh = [null_mut(); SPARE];
            if self.queue.pool.take(&mut fresh) {
                self.spare.extend(fresh);
            } else {
                // Not so many, but perhaps one.
                let mut one = [null_mut()];
                if self.queue.pool.take(&mut one) {
                    self.spare.extend(one);
                }
            }
        }
        self.spare.pop()
    }

    /// Copies a frame into buffers.
    fn fill(&mut self, frame: &[u8], port: u16, flagged: bool, mark: Option<u32>) {
        let Some(head) = self.buffer() else {
            self.queue.no_buffer.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (mut last, mut next, mut rest) = (head, head, frame);
        loop {
            let mut room = 0;
            // SAFETY: `next` is a fresh buffer that is this thread's alone, and `room` a place for a number.
            let to = unsafe { sys::flowlift_mbuf_room(next, &mut room) };
            let len = rest.len().min(room.into());
            // SAFETY: the buffer has room for `room` bytes at `to`, and `len` is no more; a frame lies in no buffer of the
            // pool, so that the two do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), to.cast::<u8>(), len) };
            // SAFETY: `head`, `last` and `next` are this thread's alone; `last` is the end of `head`'s chain.
            unsafe { sys::flowlift_mbuf_chain(head, last, next, u16::try_from(len).unwrap_or(room)) };
            last = next;
            rest = rest.get(len..).unwrap_or(&[]);
            if rest.is_empty() {
                break;
            }
            match self.buffer().filter(|_| room > 0) {
                Some(buffer) => next = buffer,
                None => {
                    free(&[head]);
                    self.queue.no_buffer.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
        // SAFETY: as above.
        unsafe { sys::flowlift_mbuf_received(head, port, flagged, mark.is_some(), mark.unwrap_or(0)) };
        self.filled.push(head);
        self.bytes += frame.len() as u64;
    }

    /// Hands the packets of this burst to the application.
    fn flush(&mut self) {
        if self.filled.is_empty() {
            return;
        }
        let put = self.queue.ring.put(&self.filled);
        let missed = self.filled.len() - put;
        if let Some(rest) = self.filled.get_mut(put..).filter(|rest| !rest.is_empty()) {
            self.queue.missed.fetch_add(missed as u64, Ordering::Relaxed);
            // SAFETY: these packets are still this thread's.
            let lost: u64 = rest.iter().map(|m| u64::from(unsafe { sys::flowlift_mbuf_len(*m) })).sum();
            self.bytes = self.bytes.saturating_sub(lost);
            free(rest);
        }
        self.queue.traffic.add(put as u64, self.bytes);
        (self.bytes, _) = (0, self.filled.clear());
    }
}
