//! The device's clock, injectable so that a run can be replayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Source of the device clock.
pub trait Clock: Send {
    /// Nanoseconds since some fixed start; never goes back.
    fn now_ns(&self) -> u64;
}

/// A clock that stands still until its owner moves it. Clones share the time.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    ns: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that shows `ns`.
    pub fn new(ns: u64) -> Self {
        Self { ns: Arc::new(AtomicU64::new(ns)) }
    }
    /// Moves the clock forward.
    pub fn advance(&self, ns: u64) {
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }
    /// Sets the clock to `ns`, unless that would move it back.
    pub fn set(&self, ns: u64) {
        self.ns.fetch_max(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
}

/// The host's monotonic clock, starting at 0.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    start: Instant,
}

impl Default for HostClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
