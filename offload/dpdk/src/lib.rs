//! `librte_net_flowlift.so`: each port of a NIC as a DPDK port with rte_flow, for programs that load DPDK drivers, such as
//! `ovs-vswitchd-dpdk` and `dpdk-testpmd`.
//!
//! What is loaded is a driver of the virtual bus, `net_flowlift`: `--vdev=net_flowlift0,nic=sim,port=0`. Ports that name the
//! same NIC share it. A packet of the application goes out of the NIC's port and what the NIC's tables do not finish comes in;
//! rules of rte_flow become flows ([`rule`]), and the planner decides which of them the NIC's tables take.
//!
//! - [`ethdev`] and [`flow`] are what DPDK calls: they read and write its structures, and hold nothing.
//! - [`nic`] is a NIC with the thread that serves it.
//! - [`rule`] and [`devargs`] know nothing of DPDK's memory.
//!
//! `unsafe` is where DPDK's memory is: [`ethdev`], [`flow`], [`nic::port`], `nic/engine.rs`, `guard.rs` and this file. No panic
//! gets across to C ([`guard`]).

pub mod devargs;
pub mod ethdev;
pub mod flow;
pub mod guard;
pub mod nic;
pub mod ring;
pub mod rule;
pub mod sys;

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Runs as the plugin is loaded, which DPDK's EAL does before it probes devices.
#[used]
// SAFETY: the loader calls what stands in this section as functions without arguments, once, before anything else of the
// plugin runs; `load` is one.
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;

extern "C" fn load() {
    guard::guarded("loading", (), || {
        guard::register_log();
        if let Err(why) = same_dpdk() {
            guard::error(&why);
            return;
        }
        let filter = tracing_subscriber::EnvFilter::try_from_env("FLOWLIFT_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
        // Another plugin of this project may have set it already.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        nic::cpus::note();
        ethdev::register();
    });
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

/// Refuses a process with another DPDK than the one that this was built for. The loader does so too where that one's
/// libraries are missing; where both are installed, it would load them beside the process's own, and a driver that
/// registers there is never found.
fn same_dpdk() -> Result<(), String> {
    // SAFETY: the handle null is the process's own search order; the name is a C string.
    let found = unsafe { dlsym(std::ptr::null_mut(), c"rte_version".as_ptr()) };
    // SAFETY: `rte_version` gives a static C string in every DPDK.
    let ours = unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy();
    let theirs = if found.is_null() {
        ours.clone()
    } else {
        // SAFETY: the symbol is DPDK's `const char *rte_version(void)`, in every version of it.
        let version: extern "C" fn() -> *const c_char = unsafe { std::mem::transmute(found) };
        // SAFETY: as above.
        unsafe { CStr::from_ptr(version()) }.to_string_lossy()
    };
    let major = |version: &str| {
        version.split_whitespace().last().map(|v| v.split('.').take(2).collect::<Vec<_>>().join("."))
    };
    let built = format!("{}.{:02}", sys::RTE_VER_YEAR, sys::RTE_VER_MONTH);
    for version in [&ours, &theirs] {
        if major(version).as_deref() != Some(built.as_str()) {
            return Err(format!("built for DPDK {built}, but this process runs {version}: not registered"));
        }
    }
    Ok(())
}

/// DPDK's errors are negative numbers.
pub(crate) const ENODEV: i32 = -19;
pub(crate) const EINVAL: i32 = -22;
pub(crate) const ENOMEM: i32 = -12;
pub(crate) const ENOTSUP: i32 = -95;
pub(crate) const EIO: i32 = -5;

/// The driver's record in DPDK, made once and never freed: DPDK keeps the pointer.
pub(crate) static DRIVER: AtomicPtr<sys::rte_vdev_driver> = AtomicPtr::new(std::ptr::null_mut());

/// True once the driver is registered.
pub fn is_registered() -> bool {
    !DRIVER.load(Ordering::Acquire).is_null()
}
