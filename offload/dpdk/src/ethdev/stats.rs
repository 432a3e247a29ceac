//! Counters: `stats` are the application's packets, `xstats` tell hardware and slow path apart.

use super::{Adapter, adapter};
use crate::guard::guarded;
use crate::{EINVAL, EIO, ENODEV, sys};
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names of the extended counters, in order. `hw_` is what the NIC says of its wire and, for the whole NIC, of its tables.
const NAMES: [&str; 20] = [
    "hw_rx_packets",
    "hw_rx_bytes",
    "hw_tx_packets",
    "hw_tx_bytes",
    "hw_rx_to_slow_path",
    "hw_tx_port_down",
    "slow_rx_packets",
    "slow_rx_bytes",
    "slow_tx_packets",
    "slow_tx_bytes",
    "slow_rx_marked",
    "slow_rx_other_address",
    "slow_rx_isolated",
    "slow_rx_oversize",
    "nic_entries_inserted",
    "nic_entries_replaced",
    "nic_entries_deleted",
    "nic_updates_failed",
    "nic_completions",
    "nic_violations",
];

/// Sums over a port's queues: packets and bytes received and sent, and what was lost.
#[derive(Default)]
struct Sums {
    rx: (u64, u64),
    tx: (u64, u64),
    missed: u64,
    no_buffer: u64,
    tx_errors: u64,
}

fn sums(a: &Adapter) -> Sums {
    let mut s = Sums::default();
    let queues = a.queues();
    for q in queues.rx.iter().flatten() {
        let (packets, bytes) = q.traffic.get();
        s.rx = (s.rx.0 + packets, s.rx.1 + bytes);
        s.missed += q.missed.load(Ordering::Relaxed);
        s.no_buffer += q.no_buffer.load(Ordering::Relaxed);
    }
    for q in queues.tx.iter().flatten() {
        let (packets, bytes) = q.traffic.get();
        s.tx = (s.tx.0 + packets, s.tx.1 + bytes);
        s.tx_errors += q.errors.load(Ordering::Relaxed);
    }
    s
}

pub(super) unsafe extern "C" fn get(dev: *mut sys::rte_eth_dev, out: *mut sys::rte_eth_stats) -> c_int {
    guarded("stats_get", EIO, || {
        // SAFETY: DPDK calls with an open port and a record to fill.
        let (Some(a), Some(out)) = (unsafe { adapter(dev) }, unsafe { out.as_mut() }) else { return ENODEV };
        let s = sums(a);
        (out.ipackets, out.ibytes) = s.rx;
        (out.opackets, out.obytes) = s.tx;
        (out.imissed, out.rx_nombuf, out.oerrors) = (s.missed, s.no_buffer, s.tx_errors);
        out.ierrors = a.port.counts.oversize.load(Ordering::Relaxed);
        let queues = a.queues();
        for (n, q) in queues.rx.iter().enumerate().take(out.q_ipackets.len()) {
            if let Some(q) = q {
                (out.q_ipackets[n], out.q_ibytes[n]) = q.traffic.get();
            }
        }
        for (n, q) in queues.tx.iter().enumerate().take(out.q_opackets.len()) {
            if let Some(q) = q {
                (out.q_opackets[n], out.q_obytes[n]) = q.traffic.get();
            }
        }
        0
    })
}

pub(super) unsafe extern "C" fn reset(dev: *mut sys::rte_eth_dev) -> c_int {
    guarded("stats_reset", EIO, || {
        // SAFETY: DPDK calls with an open port.
        let Some(a) = (unsafe { adapter(dev) }) else { return ENODEV };
        let queues = a.queues();
        for q in queues.rx.iter().flatten() {
            q.traffic.reset();
            q.missed.store(0, Ordering::Relaxed);
            q.no_buffer.store(0, Ordering::Relaxed);
        }
        for q in queues.tx.iter().flatten() {
            q.traffic.reset();
            q.errors.store(0, Ordering::Relaxed);
        }
        a.port.counts.reset();
        0
    })
}

/// Values in the order of [`NAMES`]. The NIC's own count since it was brought up, and are not reset.
fn values(a: &Adapter) -> [u64; NAMES.len()] {
    let hw = a.nic.port_counters(a.port.nic_port).unwrap_or_default();
    let s = sums(a);
    let planner = a.nic.planner_stats();
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let slow = &a.port.counts;
    [
        hw.rx_packets,
        hw.rx_bytes,
        hw.tx_packets,
        hw.tx_bytes,
        hw.rx_slow,
        hw.tx_dropped,
        s.rx.0,
        s.rx.1,
        s.tx.0,
        s.tx.1,
        count(&slow.marked),
        count(&slow.filtered),
        count(&slow.isolated),
        count(&slow.oversize),
        planner.inserted,
        planner.replaced,
        planner.deleted,
        planner.failed,
        a.nic.completions(),
        a.nic.violations(),
    ]
}

pub(super) unsafe extern "C" fn extended(
    dev: *mut sys::rte_eth_dev,
    out: *mut sys::rte_eth_xstat,
    count: c_uint,
) -> c_int {
    guarded("xstats_get", EIO, || {
        // SAFETY: DPDK calls with an open port.
        let Some(a) = (unsafe { adapter(dev) }) else { return ENODEV };
        if out.is_null() || (count as usize) < NAMES.len() {
            return NAMES.len() as c_int;
        }
        for (n, value) in values(a).into_iter().enumerate() {
            // SAFETY: the caller gives room for `count` records, and `n` is less.
            unsafe { *out.add(n) = sys::rte_eth_xstat { id: n as u64, value } };
        }
        NAMES.len() as c_int
    })
}

pub(super) unsafe extern "C" fn names(
    dev: *mut sys::rte_eth_dev,
    out: *mut sys::rte_eth_xstat_name,
    count: c_uint,
) -> c_int {
    guarded("xstats_get_names", EIO, || {
        if dev.is_null() {
            return EINVAL;
        }
        if out.is_null() || (count as usize) < NAMES.len() {
            return NAMES.len() as c_int;
        }
        for (n, name) in NAMES.iter().enumerate() {
            // SAFETY: the caller gives room for `count` records, and `n` is less.
            let place = unsafe { &mut *out.add(n) };
            place.name.fill(0);
            // One byte less: the name ends with a zero.
            let room = place.name.len() - 1;
            place.name.iter_mut().take(room).zip(name.bytes()).for_each(|(to, from)| *to = from as _);
        }
        NAMES.len() as c_int
    })
}
