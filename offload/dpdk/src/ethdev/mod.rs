//! The ethdev: what DPDK calls to probe, configure, start, ask and close a port.
//!
//! `dev_private` of a port holds a pointer to its [`Adapter`], which lives from probe to close. DPDK serialises control calls
//! of one port; the rest of what they touch is behind locks.

mod burst;
mod control;
mod stats;

use crate::devargs::Devargs;
use crate::flow::table::FlowTable;
use crate::guard::{self, guarded};
use crate::nic::SharedNic;
use crate::nic::port::{Device, Port, RxQueue, TxQueue};
use crate::{DRIVER, EINVAL, EIO, ENODEV, ENOMEM, ENOTSUP, sys};
use std::ffi::{CStr, c_int};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The driver's name: devices are `net_flowlift0` and so on.
const NAME: &CStr = c"net_flowlift";

/// A DPDK port: what belongs to it, and to nobody else.
pub struct Adapter {
    /// The NIC.
    pub nic: Arc<SharedNic>,
    /// Its port.
    pub port: Arc<Port>,
    /// Its rules.
    pub flows: Mutex<FlowTable>,
    queues: Mutex<Queues>,
    /// The address that `data->mac_addrs` points at.
    address: Box<sys::rte_ether_addr>,
}

/// Queues that were set up, by number.
#[derive(Default)]
struct Queues {
    rx: Vec<Option<Arc<RxQueue>>>,
    tx: Vec<Option<Arc<TxQueue>>>,
}

impl Adapter {
    /// The port's rules.
    pub fn flows(&self) -> MutexGuard<'_, FlowTable> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receive queues that there are.
    pub fn rx_queues(&self) -> u16 {
        u16::try_from(self.queues().rx.iter().flatten().count()).unwrap_or(u16::MAX)
    }

    /// Takes all rules out.
    pub fn flush(&self) {
        let rules = self.flows().take_all();
        rules.into_iter().for_each(|rule| crate::flow::let_go(self, rule));
    }
}

/// Registers the driver with DPDK's virtual bus.
pub(crate) fn register() {
    // SAFETY: an all-zero record is an empty one, as a static one in C would be.
    let mut driver: Box<sys::rte_vdev_driver> = Box::new(unsafe { std::mem::zeroed() });
    driver.driver.name = NAME.as_ptr();
    driver.probe = Some(probe);
    driver.remove = Some(remove);
    let driver = Box::into_raw(driver);
    DRIVER.store(driver, Ordering::Release);
    // SAFETY: the record lives for ever and is in no list yet.
    unsafe { sys::rte_vdev_register(driver) };
}

/// The adapter of a port; `None` once it is closed.
///
/// # Safety
/// `dev` is null, or a port of this driver that is not being closed by another thread.
pub(crate) unsafe fn adapter<'a>(dev: *mut sys::rte_eth_dev) -> Option<&'a Adapter> {
    // SAFETY: by the caller, `dev` is null or a port's record; DPDK's records and their data stay as long as DPDK calls a
    // driver for them. `dev_private` is null or what `attach` made: memory with a pointer, null or an adapter's.
    unsafe {
        let private = dev.as_ref()?.data.as_ref()?.dev_private;
        private.cast::<*const Adapter>().as_ref()?.as_ref()
    }
}

/// The name and arguments of a device on the bus.
///
/// # Safety
/// `dev` is a device that the bus has handed over.
unsafe fn text_of(dev: *mut sys::rte_vdev_device) -> Option<(String, String)> {
    // SAFETY: by the caller; the bus gives each device a name, and arguments or null.
    unsafe {
        let device = &dev.as_ref()?.device;
        let text = |s: *const std::ffi::c_char| {
            if s.is_null() { String::new() } else { CStr::from_ptr(s).to_string_lossy().into_owned() }
        };
        let args = sys::flowlift_vdev_args(dev);
        Some((text(device.name), text(args)))
    }
}

unsafe extern "C" fn probe(dev: *mut sys::rte_vdev_device) -> c_int {
    guarded("probe", EIO, || {
        // SAFETY: the bus calls with a device of its own.
        let Some((name, args)) = (unsafe { text_of(dev) }) else { return EINVAL };
        // SAFETY: DPDK answers that at any time after its start, and it has started.
        if unsafe { sys::rte_eal_process_type() } != sys::RTE_PROC_PRIMARY {
            guard::error(&format!("{name}: secondary processes are not supported: the NIC is the primary's"));
            return ENOTSUP;
        }
        let args = match Devargs::parse(&args) {
            Ok(args) => args,
            Err(error) => {
                guard::error(&format!("{name}: {error}"));
                return EINVAL;
            }
        };
        let (nic, nic_port) = match SharedNic::join(&args) {
            Ok(joined) => joined,
            Err(error) => {
                guard::error(&format!("{name}: {error}"));
                return ENODEV;
            }
        };
        // SAFETY: `dev` as above. The private memory is for one pointer.
        let device = unsafe { sys::rte_eth_vdev_allocate(dev, size_of::<*const Adapter>()) };
        if device.is_null() {
            guard::error(&format!("{name}: DPDK has no room for another port"));
            nic.leave_if_unused();
            return ENOMEM;
        }
        // SAFETY: the port was just allocated for us.
        unsafe { attach(device, nic, nic_port) };
        0
    })
}

/// Fills a fresh port.
///
/// # Safety
/// `dev` is a port that was just allocated with private memory for a pointer, and that nobody else knows yet.
unsafe fn attach(dev: *mut sys::rte_eth_dev, nic: Arc<SharedNic>, nic_port: flowlift_driver::nic::NicPort) {
    // SAFETY: by the caller.
    let (record, data) = unsafe { (&mut *dev, &mut *(*dev).data) };
    let mut address = Box::new(sys::rte_ether_addr::default());
    match nic.address(nic_port) {
        Some(known) => address.addr_bytes = known,
        // SAFETY: six bytes are written.
        None => unsafe { sys::rte_eth_random_addr(address.addr_bytes.as_mut_ptr()) },
    }
    let port = Arc::new(Port::new(nic_port, data.port_id, Device(dev), address.addr_bytes));
    port.max_frame.store(u64::from(control::frame_of(1500)), Ordering::Relaxed);
    nic.attach(&port);
    data.mac_addrs = &raw mut *address;
    data.dev_flags |= sys::FLOWLIFT_DEVICE_FLAGS;
    let adapter = Box::new(Adapter { nic, port, flows: Mutex::default(), queues: Mutex::default(), address });
    // SAFETY: the private memory has room for a pointer.
    unsafe { *data.dev_private.cast::<*const Adapter>() = Box::into_raw(adapter) };
    record.dev_ops = &raw const control::OPS;
    record.rx_pkt_burst = Some(burst::receive);
    record.tx_pkt_burst = Some(burst::transmit);
    record.rx_queue_count = Some(burst::waiting);
    // SAFETY: the port is complete.
    unsafe {
        control::set_link(dev);
        sys::rte_eth_dev_probing_finish(dev);
    }
}

unsafe extern "C" fn remove(dev: *mut sys::rte_vdev_device) -> c_int {
    guarded("remove", EIO, || {
        // SAFETY: the bus calls with a device of its own; a name that DPDK does not know gives null.
        unsafe {
            let Some(device) = dev.as_ref().map(|d| &d.device) else { return EINVAL };
            let port = sys::rte_eth_dev_allocated(device.name);
            // Closed already: then DPDK has forgotten the port.
            if port.is_null() {
                return 0;
            }
            close(port);
            sys::rte_eth_dev_release_port(port)
        }
    })
}

/// Takes the port's rules out, and lets the NIC go.
///
/// # Safety
/// `dev` is a port of this driver that no other thread uses.
unsafe fn close(dev: *mut sys::rte_eth_dev) {
    // SAFETY: by the caller; see `adapter`.
    let Some(private) = (unsafe { (*(*dev).data).dev_private.cast::<*mut Adapter>().as_mut() }) else {
        return;
    };
    let pointer = std::mem::replace(private, null_mut());
    if pointer.is_null() {
        return;
    }
    // SAFETY: the pointer came from `Box::into_raw` in `attach`, and was taken out just now.
    let adapter = unsafe { Box::from_raw(pointer) };
    adapter.nic.stop(&adapter.port);
    adapter.flush();
    adapter.nic.detach(&adapter.port);
    // SAFETY: by the caller. DPDK frees what is not null, and the address is the adapter's. Queues go with the adapter.
    unsafe {
        let data = &mut *(*dev).data;
        data.mac_addrs = null_mut();
        for n in 0..data.nb_rx_queues {
            *data.rx_queues.add(n.into()) = null_mut();
        }
        for n in 0..data.nb_tx_queues {
            *data.tx_queues.add(n.into()) = null_mut();
        }
        (*dev).dev_ops = null();
    }
    debug_assert!(adapter.address.addr_bytes.len() == 6);
}

/// Tells DPDK of a link that changed.
pub(crate) fn tell_link(port: &Port) {
    let device = port.device();
    if let Some(Device(dev)) = *device {
        // SAFETY: a port is not closed while its record is held.
        unsafe {
            control::set_link(dev);
            sys::rte_eth_dev_callback_process(dev, sys::RTE_ETH_EVENT_INTR_LSC, null_mut());
        }
    }
}

/// Tells DPDK that the NIC is gone.
pub(crate) fn tell_gone(port: &Port) {
    guard::error(&format!("port {}: the NIC is gone", port.id));
    let device = port.device();
    if let Some(Device(dev)) = *device {
        // SAFETY: a port is not closed while its record is held.
        unsafe { sys::rte_eth_dev_callback_process(dev, sys::RTE_ETH_EVENT_INTR_RMV, null_mut()) };
    }
}
