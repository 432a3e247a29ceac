//! What a port itself counts. The device has counters of its own ([`crate::link::LinkStats`]).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Shared by a port and its senders; each field is a sum over all of them.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) rx_frames: AtomicU64,
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) rx_overruns: AtomicU64,
    pub(crate) rx_giants: AtomicU64,
    pub(crate) rx_runts: AtomicU64,
    pub(crate) rx_malformed: AtomicU64,
    pub(crate) tx_frames: AtomicU64,
    pub(crate) tx_bytes: AtomicU64,
    pub(crate) tx_full: AtomicU64,
    pub(crate) tx_too_long: AtomicU64,
    pub(crate) tx_errors: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Relaxed);
    }
}

/// A port's counters. A frame that is still to be segmented counts once, with all its bytes, as in Linux.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received and lent.
    pub rx_frames: u64,
    /// Their bytes, without frame check sequence.
    pub rx_bytes: u64,
    /// Frames that the system dropped since they were not taken fast enough.
    pub rx_overruns: u64,
    /// Frames dropped since they are longer than [`crate::MAX_RECEIVED`].
    pub rx_giants: u64,
    /// Frames dropped since they are shorter than an Ethernet header.
    pub rx_runts: u64,
    /// Frames dropped since what is to be done on them is not known or contradicts them.
    pub rx_malformed: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames dropped since the device took no more.
    pub tx_full: u64,
    /// Frames dropped since they are longer than the device's MTU allows.
    pub tx_too_long: u64,
    /// Frames dropped for any other reason: the device is down or gone, or would not take them.
    pub tx_errors: u64,
}

impl Shared {
    pub(crate) fn load(&self) -> PortStats {
        PortStats {
            rx_frames: self.rx_frames.load(Relaxed),
            rx_bytes: self.rx_bytes.load(Relaxed),
            rx_overruns: self.rx_overruns.load(Relaxed),
            rx_giants: self.rx_giants.load(Relaxed),
            rx_runts: self.rx_runts.load(Relaxed),
            rx_malformed: self.rx_malformed.load(Relaxed),
            tx_frames: self.tx_frames.load(Relaxed),
            tx_bytes: self.tx_bytes.load(Relaxed),
            tx_full: self.tx_full.load(Relaxed),
            tx_too_long: self.tx_too_long.load(Relaxed),
            tx_errors: self.tx_errors.load(Relaxed),
        }
    }
}
