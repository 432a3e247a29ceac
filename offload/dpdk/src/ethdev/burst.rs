//! Receive and transmit: a ring each, no lock, no system call, no panic that could be.

use crate::nic::port::{RxQueue, TxQueue};
use crate::sys;
use std::ffi::c_void;

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
    queue.ring.take(out) as u16
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
    queue.ring.put(items) as u16
}

/// `rte_eth_rx_queue_count`.
pub(super) unsafe extern "C" fn waiting(queue: *mut c_void) -> u32 {
    // SAFETY: as in `receive`.
    unsafe { queue.cast::<RxQueue>().as_ref() }.map_or(0, |queue| queue.ring.len())
}
