//! A port of the NIC as DPDK sees it, and its queues: what the application's threads and the service thread share.
//!
//! A receive queue is a ring of packets from whichever thread takes them in to the one that polls the queue. A transmit queue is a
//! ring of packets that wait for the NIC; see [`Packets`] for both.

use super::packets::Packets;
use crate::ring::Ring;
use crate::sys;
use flowlift_driver::nic::NicPort;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Frames and bytes, L2 without FCS.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames.
    pub packets: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
}

impl Traffic {
    /// Adds.
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Both numbers.
    pub fn get(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Back to 0.
    pub fn reset(&self) {
        self.packets.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// A pool of buffers, which the application keeps for as long as a queue uses it (`rte_eth_rx_queue_setup`).
#[derive(Debug, Clone, Copy)]
pub struct Pool(*mut sys::rte_mempool);

// SAFETY: a mempool is made for use by several threads; the pointer is never read through here, only handed to DPDK.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The pool that the application gave.
    pub fn new(pool: *mut sys::rte_mempool) -> Self {
        Self(pool)
    }

    /// Takes `out.len()` fresh buffers; false: there are not so many, and none was taken.
    pub fn take(self, out: &mut [*mut sys::rte_mbuf]) -> bool {
        let Ok(count) = u32::try_from(out.len()) else { return false };
        // SAFETY: the pool lives as long as the queue that it was given to, and `out` has room for `count` pointers.
        unsafe { sys::rte_pktmbuf_alloc_bulk(self.0, out.as_mut_ptr(), count) == 0 }
    }
}

/// Gives buffers back to their pools.
pub fn free(buffers: &[*mut sys::rte_mbuf]) {
    if let Ok(count) = u32::try_from(buffers.len())
        && count > 0
    {
        // SAFETY: whoever calls owns these packets, as they came from the application, out of a ring or a pool, and uses them no
        // more. DPDK only reads the list.
        unsafe { sys::rte_pktmbuf_free_bulk(buffers.as_ptr().cast_mut(), count) };
    }
}

/// A receive queue.
pub struct RxQueue {
    /// Packets on their way to the application.
    pub ring: Ring<sys::rte_mbuf>,
    /// Where their buffers come from.
    pub pool: Pool,
    /// The way from the NIC.
    pub packets: Arc<Packets>,
    /// Packets that the application was given.
    pub traffic: Traffic,
    /// Packets for which the ring had no room.
    pub missed: AtomicU64,
    /// Packets for which the pool had no buffer.
    pub no_buffer: AtomicU64,
}

/// A transmit queue.
pub struct TxQueue {
    /// The NIC's port.
    pub port: NicPort,
    /// The way to the NIC.
    pub packets: Arc<Packets>,
    /// Packets that wait for room in the NIC. Whoever takes them has the NIC's queue for this port.
    pub ring: Ring<sys::rte_mbuf>,
    /// Packets that the NIC was given.
    pub traffic: Traffic,
    /// Packets that the NIC cannot take: too short, too long, or it is gone.
    pub errors: AtomicU64,
}

/// Drops what is in a ring; how many packets.
fn empty(ring: &Ring<sys::rte_mbuf>) -> u64 {
    let mut buffers = [std::ptr::null_mut(); 64];
    let mut dropped = 0;
    loop {
        let taken = ring.take(&mut buffers);
        if taken == 0 {
            return dropped;
        }
        dropped += taken as u64;
        free(&buffers[..taken]);
    }
}

impl RxQueue {
    /// A queue that holds at least `size` packets.
    pub fn new(size: u16, pool: Pool, packets: Arc<Packets>) -> Self {
        Self {
            ring: Ring::new(size.into()),
            pool,
            packets,
            traffic: Traffic::default(),
            missed: AtomicU64::new(0),
            no_buffer: AtomicU64::new(0),
        }
    }

    /// Drops what is in it. Neither end may be in use.
    pub fn empty(&self) {
        empty(&self.ring);
    }
}

impl TxQueue {
    /// A queue of `port` that holds at least `size` packets.
    pub fn new(size: u16, port: NicPort, packets: Arc<Packets>) -> Self {
        Self {
            port,
            packets,
            ring: Ring::new(size.into()),
            traffic: Traffic::default(),
            errors: AtomicU64::new(0),
        }
    }

    /// Drops what waits for a NIC that is gone, and counts it.
    pub fn refuse_waiting(&self) {
        let dropped = empty(&self.ring);
        self.errors.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Drops what is in it. Neither end may be in use.
    pub fn empty(&self) {
        empty(&self.ring);
    }
}

/// Counts of packets that came to a port's slow path and were not given to the application, or were in a special way.
#[derive(Debug, Default)]
pub struct SlowCounts {
    /// Given with a mark.
    pub marked: AtomicU64,
    /// For another address, while the port is not promiscuous.
    pub filtered: AtomicU64,
    /// Matched no rule while the port is isolated.
    pub isolated: AtomicU64,
    /// Longer than the port's MTU allows.
    pub oversize: AtomicU64,
}

impl SlowCounts {
    /// Back to 0.
    pub fn reset(&self) {
        for count in [&self.marked, &self.filtered, &self.isolated, &self.oversize] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// DPDK's own record of the port.
#[derive(Clone, Copy)]
pub struct Device(pub *mut sys::rte_eth_dev);

// SAFETY: the record is static in DPDK; the pointer is handed to DPDK's functions, which take it from any thread.
unsafe impl Send for Device {}

/// A port of the NIC with a DPDK port.
pub struct Port {
    /// The NIC's number of it.
    pub nic_port: NicPort,
    /// DPDK's number of it.
    pub id: u16,
    /// DPDK's record; `None` once the port is being closed. Held while DPDK's callbacks run.
    pub device: Mutex<Option<Device>>,
    /// It was started: packets come and go.
    pub started: AtomicBool,
    /// Packets for any address are given to the application.
    pub promiscuous: AtomicBool,
    /// Packets for any group address are.
    pub all_multicast: AtomicBool,
    /// Packets that no rule gives to the application are dropped (`rte_flow_isolate`).
    pub isolated: AtomicBool,
    /// The link, as last told.
    pub link: AtomicBool,
    /// The port's own address: 48 bits.
    pub address: AtomicU64,
    /// Longest frame that the application takes, in bytes.
    pub max_frame: AtomicU64,
    /// Further counts of its slow path.
    pub counts: SlowCounts,
}

impl Port {
    /// A port that was just probed: stopped, with no link told.
    pub fn new(nic_port: NicPort, id: u16, device: Device, address: [u8; 6]) -> Self {
        Self {
            nic_port,
            id,
            device: Mutex::new(Some(device)),
            started: AtomicBool::new(false),
            promiscuous: AtomicBool::new(false),
            all_multicast: AtomicBool::new(false),
            isolated: AtomicBool::new(false),
            link: AtomicBool::new(false),
            address: AtomicU64::new(address_bits(address)),
            max_frame: AtomicU64::new(0),
            counts: SlowCounts::default(),
        }
    }

    /// True if the port's address filter lets a frame to this address in.
    pub fn accepts(&self, destination: [u8; 6]) -> bool {
        let group = destination[0] & 1 != 0;
        self.promiscuous.load(Ordering::Relaxed)
            || destination == [0xff; 6]
            || group && self.all_multicast.load(Ordering::Relaxed)
            || address_bits(destination) == self.address.load(Ordering::Relaxed)
    }

    /// DPDK's record, if the port is not being closed.
    pub fn device(&self) -> std::sync::MutexGuard<'_, Option<Device>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address as a number.
pub fn address_bits(address: [u8; 6]) -> u64 {
    address.iter().fold(0, |v, b| v << 8 | u64::from(*b))
}
