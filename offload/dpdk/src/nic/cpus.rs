//! Where the NIC's own threads run: on every CPU that the process was given.
//!
//! DPDK pins the thread that probes to the main lcore, and threads inherit that: the service thread would share the CPU of the
//! application's main thread, whatever others there are.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::OnceLock;

/// What the process had before DPDK pinned any thread.
static GIVEN: OnceLock<CpuSet> = OnceLock::new();

/// Notes the CPUs that the process has; to be said as the driver is loaded.
pub fn note() {
    if let Ok(cpus) = sched_getaffinity(None) {
        GIVEN.get_or_init(|| cpus);
    }
}

/// Lets the calling thread, which is one of ours, run on all of them.
pub fn use_all() {
    if let Some(cpus) = GIVEN.get()
        && let Err(error) = sched_setaffinity(None, cpus)
    {
        tracing::debug!(%error, "the CPUs of a thread");
    }
}
