//! The operations of a port: `struct eth_dev_ops`.

use super::{Adapter, adapter, close, stats};
use crate::guard::guarded;
use crate::nic::Start;
use crate::nic::port::{Pool, RxQueue, TxQueue, address_bits};
use crate::{EINVAL, EIO, ENODEV, flow, sys};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Queues of each direction that a port may have, and packets that they may hold.
const QUEUES: u16 = 64;
const RING: (u16, u16, u16) = (64, 16384, 1024);
/// Ethernet header with two tags.
const OVERHEAD: u32 = 22;
/// Ethernet header and FCS: what DPDK counts as overhead of a frame.
const DPDK_OVERHEAD: u32 = 18;
/// The least MTU (RFC 791).
const MIN_MTU: u16 = 68;

/// The operations. What is left out is not supported, and DPDK says so.
// SAFETY: of a record of function pointers zero is the empty one.
pub(super) static OPS: sys::eth_dev_ops = sys::eth_dev_ops {
    dev_configure: Some(configure),
    dev_start: Some(start),
    dev_stop: Some(stop),
    dev_close: Some(dev_close),
    dev_infos_get: Some(infos_get),
    link_update: Some(link_update),
    is_removed: Some(is_removed),
    promiscuous_enable: Some(promiscuous_enable),
    promiscuous_disable: Some(promiscuous_disable),
    allmulticast_enable: Some(allmulticast_enable),
    allmulticast_disable: Some(allmulticast_disable),
    mac_addr_set: Some(mac_addr_set),
    mtu_set: Some(mtu_set),
    rx_queue_setup: Some(rx_queue_setup),
    tx_queue_setup: Some(tx_queue_setup),
    rx_queue_release: Some(rx_queue_release),
    tx_queue_release: Some(tx_queue_release),
    stats_get: Some(stats::get),
    stats_reset: Some(stats::reset),
    xstats_get: Some(stats::extended),
    xstats_get_names: Some(stats::names),
    xstats_reset: Some(stats::reset),
    fw_version_get: Some(fw_version_get),
    flow_ops_get: Some(flow_ops_get),
    ..NO_OPS
};

/// No operation at all.
// SAFETY: every field is an optional function pointer, and zero is none.
const NO_OPS: sys::eth_dev_ops = unsafe { std::mem::zeroed() };

/// Longest frame for an MTU.
pub(super) fn frame_of(mtu: u16) -> u32 {
    u32::from(mtu) + OVERHEAD
}

/// Runs an operation on an open port; `ENODEV` on one that is closed.
///
/// # Safety
/// As for [`adapter`].
unsafe fn on_port(
    what: &'static str,
    dev: *mut sys::rte_eth_dev,
    body: impl FnOnce(&Adapter) -> c_int,
) -> c_int {
    guarded(what, EIO, || {
        // SAFETY: by the caller.
        unsafe { adapter(dev) }.map_or(ENODEV, body)
    })
}

/// Tells DPDK the link as it was last seen.
///
/// # Safety
/// As for [`adapter`].
pub(super) unsafe fn set_link(dev: *mut sys::rte_eth_dev) -> bool {
    // SAFETY: by the caller.
    unsafe { adapter(dev).is_some_and(|a| sys::flowlift_set_link(dev, a.port.link.load(Ordering::Acquire))) }
}

unsafe extern "C" fn configure(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: DPDK calls with an open port of this driver; this holds for all operations below.
    unsafe { on_port("configure", dev, |_| 0) }
}

unsafe extern "C" fn start(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("start", dev, |a| {
            let queues = a.queues();
            let rx: Vec<_> = queues.rx.iter().flatten().cloned().collect();
            let tx: Vec<_> = queues.tx.iter().flatten().cloned().collect();
            drop(queues);
            a.nic.start(Start { port: Arc::clone(&a.port), rx, tx });
            set_link(dev);
            set_queue_states(dev, sys::RTE_ETH_QUEUE_STATE_STARTED);
            0
        })
    }
}

unsafe extern "C" fn stop(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("stop", dev, |a| {
            a.nic.stop(&a.port);
            let queues = a.queues();
            queues.rx.iter().flatten().for_each(|q| q.empty());
            queues.tx.iter().flatten().for_each(|q| q.empty());
            set_queue_states(dev, sys::RTE_ETH_QUEUE_STATE_STOPPED);
            0
        })
    }
}

/// Notes the state of all queues where DPDK looks for it.
///
/// # Safety
/// `dev` is an open port.
unsafe fn set_queue_states(dev: *mut sys::rte_eth_dev, state: u32) {
    // SAFETY: by the caller.
    let data = unsafe { &mut *(*dev).data };
    let state = u8::try_from(state).unwrap_or(0);
    data.rx_queue_state.iter_mut().take(data.nb_rx_queues.into()).for_each(|s| *s = state);
    data.tx_queue_state.iter_mut().take(data.nb_tx_queues.into()).for_each(|s| *s = state);
}

unsafe extern "C" fn dev_close(dev: *mut sys::rte_eth_dev) -> c_int {
    guarded("close", EIO, || {
        // SAFETY: DPDK closes a port that is stopped and that nobody uses.
        unsafe { close(dev) };
        0
    })
}

unsafe extern "C" fn infos_get(dev: *mut sys::rte_eth_dev, info: *mut sys::rte_eth_dev_info) -> c_int {
    // SAFETY: see `configure`; DPDK gives a record to fill.
    unsafe {
        on_port("infos_get", dev, |a| {
            let Some(info) = info.as_mut() else { return EINVAL };
            let frame = a.nic.caps().ports.iter().map(|p| p.max_frame).max().unwrap_or(1518);
            let largest = frame.saturating_sub(OVERHEAD).min(u32::from(u16::MAX) - DPDK_OVERHEAD);
            (info.min_mtu, info.max_mtu) = (MIN_MTU, u16::try_from(largest).unwrap_or(u16::MAX));
            (info.min_rx_bufsize, info.max_rx_pktlen) = (256, largest + DPDK_OVERHEAD);
            (info.max_rx_queues, info.max_tx_queues, info.max_mac_addrs) = (QUEUES, QUEUES, 1);
            info.flow_type_rss_offloads = sys::flowlift_rss_types();
            (info.rx_offload_capa, info.tx_offload_capa) =
                (sys::flowlift_rx_offloads(), sys::flowlift_tx_offloads());
            for limits in [&mut info.rx_desc_lim, &mut info.tx_desc_lim] {
                (limits.nb_min, limits.nb_max, limits.nb_align) = (RING.0, RING.1, 1);
            }
            for defaults in [&mut info.default_rxportconf, &mut info.default_txportconf] {
                (defaults.burst_size, defaults.ring_size, defaults.nb_queues) = (32, RING.2, 1);
            }
            0
        })
    }
}

unsafe extern "C" fn link_update(dev: *mut sys::rte_eth_dev, _wait: c_int) -> c_int {
    // SAFETY: see `configure`.
    unsafe { on_port("link_update", dev, |_| if set_link(dev) { 0 } else { -1 }) }
}

unsafe extern "C" fn is_removed(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe { on_port("is_removed", dev, |a| a.nic.is_gone().into()) }
}

unsafe extern "C" fn promiscuous_enable(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("promiscuous_enable", dev, |a| {
            a.port.promiscuous.store(true, Ordering::Relaxed);
            0
        })
    }
}

unsafe extern "C" fn promiscuous_disable(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("promiscuous_disable", dev, |a| {
            a.port.promiscuous.store(false, Ordering::Relaxed);
            0
        })
    }
}

unsafe extern "C" fn allmulticast_enable(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("allmulticast_enable", dev, |a| {
            a.port.all_multicast.store(true, Ordering::Relaxed);
            0
        })
    }
}

unsafe extern "C" fn allmulticast_disable(dev: *mut sys::rte_eth_dev) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("allmulticast_disable", dev, |a| {
            a.port.all_multicast.store(false, Ordering::Relaxed);
            0
        })
    }
}

unsafe extern "C" fn mac_addr_set(dev: *mut sys::rte_eth_dev, address: *mut sys::rte_ether_addr) -> c_int {
    // SAFETY: see `configure`; DPDK gives an address, and stores it itself.
    unsafe {
        on_port("mac_addr_set", dev, |a| {
            let Some(address) = address.as_ref() else { return EINVAL };
            let bytes = std::ptr::read_unaligned(&raw const address.addr_bytes);
            a.port.address.store(address_bits(bytes), Ordering::Relaxed);
            0
        })
    }
}

unsafe extern "C" fn mtu_set(dev: *mut sys::rte_eth_dev, mtu: u16) -> c_int {
    // SAFETY: see `configure`.
    unsafe {
        on_port("mtu_set", dev, |a| {
            a.port.max_frame.store(frame_of(mtu).into(), Ordering::Relaxed);
            0
        })
    }
}

/// Stores a queue under its number.
fn store<T>(queues: &mut Vec<Option<Arc<T>>>, number: u16, queue: Option<Arc<T>>) {
    let at = usize::from(number);
    if queues.len() <= at {
        queues.resize_with(at + 1, || None);
    }
    if let Some(place) = queues.get_mut(at) {
        *place = queue;
    }
}

unsafe extern "C" fn rx_queue_setup(
    dev: *mut sys::rte_eth_dev,
    number: u16,
    size: u16,
    _socket: c_uint,
    _conf: *const sys::rte_eth_rxconf,
    pool: *mut sys::rte_mempool,
) -> c_int {
    // SAFETY: see `configure`; the number is one that was configured, so that it lies within `rx_queues`.
    unsafe {
        on_port("rx_queue_setup", dev, |a| {
            if pool.is_null() {
                return EINVAL;
            }
            let queue = Arc::new(RxQueue::new(size, Pool::new(pool), Arc::clone(a.nic.packets())));
            *(*(*dev).data).rx_queues.add(number.into()) = Arc::as_ptr(&queue).cast_mut().cast::<c_void>();
            store(&mut a.queues().rx, number, Some(queue));
            0
        })
    }
}

unsafe extern "C" fn tx_queue_setup(
    dev: *mut sys::rte_eth_dev,
    number: u16,
    size: u16,
    _socket: c_uint,
    _conf: *const sys::rte_eth_txconf,
) -> c_int {
    // SAFETY: as in `rx_queue_setup`.
    unsafe {
        on_port("tx_queue_setup", dev, |a| {
            let queue = Arc::new(TxQueue::new(size, a.port.nic_port, Arc::clone(a.nic.packets())));
            *(*(*dev).data).tx_queues.add(number.into()) = Arc::as_ptr(&queue).cast_mut().cast::<c_void>();
            store(&mut a.queues().tx, number, Some(queue));
            0
        })
    }
}

unsafe extern "C" fn rx_queue_release(dev: *mut sys::rte_eth_dev, number: u16) {
    // SAFETY: as in `rx_queue_setup`; the application polls the queue no more.
    unsafe {
        on_port("rx_queue_release", dev, |a| {
            *(*(*dev).data).rx_queues.add(number.into()) = null_mut();
            let mut queues = a.queues();
            if let Some(Some(queue)) = queues.rx.get(usize::from(number)) {
                queue.empty();
            }
            store(&mut queues.rx, number, None);
            0
        });
    }
}

unsafe extern "C" fn tx_queue_release(dev: *mut sys::rte_eth_dev, number: u16) {
    // SAFETY: as in `rx_queue_release`.
    unsafe {
        on_port("tx_queue_release", dev, |a| {
            *(*(*dev).data).tx_queues.add(number.into()) = null_mut();
            let mut queues = a.queues();
            if let Some(Some(queue)) = queues.tx.get(usize::from(number)) {
                queue.empty();
            }
            store(&mut queues.tx, number, None);
            0
        });
    }
}

unsafe extern "C" fn fw_version_get(dev: *mut sys::rte_eth_dev, text: *mut c_char, size: usize) -> c_int {
    // SAFETY: see `configure`; the application gives room for `size` characters.
    unsafe {
        on_port("fw_version_get", dev, |a| {
            let caps = a.nic.caps();
            let version = format!("{} {}\0", caps.device, caps.model);
            if text.is_null() || size < version.len() {
                return c_int::try_from(version.len()).unwrap_or(EINVAL);
            }
            std::ptr::copy_nonoverlapping(version.as_ptr(), text.cast::<u8>(), version.len());
            0
        })
    }
}

unsafe extern "C" fn flow_ops_get(dev: *mut sys::rte_eth_dev, ops: *mut *const sys::rte_flow_ops) -> c_int {
    // SAFETY: see `configure`; DPDK gives a place for the pointer.
    unsafe {
        on_port("flow_ops_get", dev, |_| {
            let Some(ops) = ops.as_mut() else { return EINVAL };
            *ops = &raw const flow::OPS;
            0
        })
    }
}
