//! Receive and transmit: the calling thread moves the packets itself. It waits for nobody, and makes no system call but to wake the
//! service thread for packets that it has to leave behind.

use crate::guard::guarded;
use crate::nic::port::{RxQueue, TxQueue};
use crate::sys;
use std::ffi::c_void;

/// Packets that a poll takes in at least, if they are there: other queues want some of them.
const BATCH: usize = 32;

/// `rte_eth_rx_burst`.
pub(super) unsafe extern "C" fn receive(
    queue: *mut c_void,
    packets: *mut *mut sys::rte_mbuf,
    count: u16,
) -> u16 {
    // SAFETY: DPDK hands back what `rx_queue_setup` stored, or null: a queue that lives until it is released, which the
    // application does only once it polls no more.
    let Some(queue) = (unsafe { queue.cast::<RxQueue>().as_ref() }) else { return 0 };
    if packets.is_null() {
        return 0;
    }
    // SAFETY: the application gives room for `count` pointers; they are written before they are read.
    let out = unsafe { std::slice::from_raw_parts_mut(packets, count.into()) };
    let had = queue.ring.take(out);
    let Some(room @ [_, ..]) = out.get_mut(had..) else { return had as u16 };
    let more = guarded("rx_burst", 0, || {
        if queue.packets.poll(room.len().max(BATCH)) { queue.ring.take(room) } else { 0 }
    });
    (had + more) as u16
}

/// `rte_eth_tx_burst`.
pub(super) unsafe extern "C" fn transmit(
    queue: *mut c_void,
    packets: *mut *mut sys::rte_mbuf,
    count: u16,
) -> u16 {
    // SAFETY: as in `receive`, by `tx_queue_setup`.
    let Some(queue) = (unsafe { queue.cast::<TxQueue>().as_ref() }) else { return 0 };
    if packets.is_null() {
        return 0;
    }
    // SAFETY: the application gives `count` packets.
    let items = unsafe { std::slice::from_raw_parts(packets, count.into()) };
    guarded("tx_burst", 0, || queue.packets.send(queue, items)) as u16
}

/// `rte_eth_rx_queue_count`.
pub(super) unsafe extern "C" fn waiting(queue: *mut c_void) -> u32 {
    // SAFETY: as in `receive`.
    let Some(queue) = (unsafe { queue.cast::<RxQueue>().as_ref() }) else { return 0 };
    if queue.ring.is_empty() {
        guarded("rx_queue_count", false, || queue.packets.poll(BATCH));
    }
    queue.ring.len()
}
