//! A burst of the application on its way into the NIC.

use super::Packets;
use crate::nic::port::{TxQueue, free};
use crate::sys;
use flowlift_driver::fl1::SlowBurst;
use flowlift_driver::nic::SlowTx;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

/// Packets taken out of a queue's ring at once.
const BATCH: usize = 64;

/// What became of the packets that waited in a queue; of several queues, the greatest says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// Nothing waited.
    Nothing,
    /// Some were sent, and perhaps all.
    Some,
    /// The NIC takes none now.
    Stuck,
}

impl Packets {
    /// Sends a burst, as the queue's own thread. Gives how many packets were taken, in order: sent, refused as impossible, or kept
    /// until the NIC has room.
    pub fn send(&self, queue: &TxQueue, packets: &[*mut sys::rte_mbuf]) -> usize {
        let mut done = 0;
        if let Some(mut burst) = self.slow.try_tx(queue.port)
            && empty_into(queue, &mut burst) != Sent::Stuck
        {
            done = give(queue, &mut burst, packets);
        }
        let (sent, rest) = packets.split_at(done.min(packets.len()));
        free(sent);
        if rest.is_empty() {
            return done;
        }
        let kept = queue.ring.put(rest);
        // This thread may not come again.
        self.service.wake();
        done + kept
    }

    /// Sends what waits in a queue, as the service thread.
    pub fn send_waiting(&self, queue: &TxQueue) -> Sent {
        if queue.ring.is_empty() {
            return Sent::Nothing;
        }
        match self.slow.try_tx(queue.port) {
            Some(mut burst) => empty_into(queue, &mut burst),
            None => Sent::Stuck,
        }
    }
}

/// Sends what waits in a queue. Not stuck: nothing waits any more.
fn empty_into(queue: &TxQueue, burst: &mut SlowBurst<'_>) -> Sent {
    let mut outcome = Sent::Nothing;
    let mut packets = [null_mut(); BATCH];
    loop {
        let there = queue.ring.look(&mut packets);
        if there == 0 {
            return outcome;
        }
        let waiting = packets.get(..there).unwrap_or_default();
        let done = give(queue, burst, waiting);
        queue.ring.skip(done);
        free(waiting.get(..done).unwrap_or_default());
        if done < there {
            return Sent::Stuck;
        }
        outcome = Sent::Some;
    }
}

/// Gives packets to the NIC; how many of them are done with, as sent or as impossible.
fn give(queue: &TxQueue, burst: &mut SlowBurst<'_>, packets: &[*mut sys::rte_mbuf]) -> usize {
    let to = SlowTx::Port(queue.port);
    let (mut done, mut sent, mut bytes) = (0, 0, 0);
    let mut gathered = Vec::new();
    for packet in packets {
        let frame = frame_of(*packet, &mut gathered);
        match burst.send(to, frame) {
            Ok(true) => {
                sent += 1;
                bytes += frame.len() as u64;
            }
            Ok(false) => break,
            // A packet that the NIC cannot send.
            Err(_) => {
                queue.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        done += 1;
    }
    queue.traffic.add(sent, bytes);
    done
}

/// A packet's bytes; gathered in `gathered` if they lie in several segments.
fn frame_of(packet: *mut sys::rte_mbuf, gathered: &mut Vec<u8>) -> &[u8] {
    let segment = |m: *mut sys::rte_mbuf| {
        let (mut len, mut next) = (0, null_mut());
        // SAFETY: the packet is the application's own of this burst or waited in the queue, so that it is this thread's until it is
        // freed; its segments are a list that ends with null.
        let data = unsafe { sys::flowlift_mbuf_segment(m, &mut len, &mut next) };
        // SAFETY: a segment has `len` bytes at `data`, which nobody changes while the packet is ours.
        (unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len.into()) }, next)
    };
    let (first, mut next) = segment(packet);
    if next.is_null() {
        return first;
    }
    gathered.clear();
    gathered.extend_from_slice(first);
    while !next.is_null() {
        let (bytes, after) = segment(next);
        gathered.extend_from_slice(bytes);
        next = after;
    }
    gathered
}
