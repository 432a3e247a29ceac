//! Meters whose buckets tables and slow path share (FL1.md section 2, "The meter window"): set and charged by registers, which answer
//! at once, and counted in a page of host memory.

use super::regs::{self, Regs};
use crate::nic::{MeterBucket, MeterConfig, MeterCounts, NicError};
use flowlift_bus::DmaMem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Length of a meter page record in bytes.
pub(crate) const METER_RECORD: usize = 64;
/// Meters that a charge can name.
pub(crate) const METERS_MAX: u32 = 1 << (32 - LENGTH_BITS);
const LENGTH_BITS: u32 = 20;
/// METER_CTRL.
const SET: u32 = 1;
const REMOVE: u32 = 2;
const PACKETS: u32 = 1 << 8;
/// METER_CHARGE, read.
const PASSED: u32 = 1;
const DROPPED: u32 = 2;
/// Words of a record.
const LEVEL: usize = 4;
const TOUCHED: usize = 5;
const NS_PER_MS: u64 = 1_000_000;

/// The window and the page, as the driver and all buckets have them.
#[derive(Debug)]
pub(crate) struct Window {
    regs: Arc<Regs>,
    page: DmaMem,
    /// Offset of the page.
    at: usize,
    /// Resets: a bucket of an earlier life is not there any more.
    life: AtomicU32,
    /// A charge is a write and a read.
    charge: Mutex<()>,
}

/// A bucket in the device.
#[derive(Debug)]
struct Bucket {
    window: Arc<Window>,
    meter: u32,
    life: u32,
    rate: u64,
    /// Size in thousandths of a packet, or bits.
    capacity: u64,
    /// Device time of its setting, in nanoseconds.
    set_ns: u64,
}

impl Window {
    pub(crate) fn new(regs: Arc<Regs>, page: DmaMem, at: usize) -> Self {
        Self { regs, page, at, life: AtomicU32::new(0), charge: Mutex::new(()) }
    }

    /// The device forgot its meters.
    pub(crate) fn end_life(&self) {
        self.life.fetch_add(1, Ordering::AcqRel);
    }

    /// One of a record's words; 0 outside of the page.
    fn word(&self, meter: u32, n: usize) -> u64 {
        self.page.load_u64(self.at + meter as usize * METER_RECORD + n * 8, Ordering::Acquire).unwrap_or(0)
    }

    pub(crate) fn set(
        self: &Arc<Self>,
        meter: u32,
        c: &MeterConfig,
    ) -> Result<Arc<dyn MeterBucket>, NicError> {
        let capacity = u64::from(c.burst) * 1000;
        if meter >= METERS_MAX || c.rate == 0 || c.burst == 0 || c.level > capacity {
            return Err(NicError::Invalid(format!("meter {meter}, {c:?}")));
        }
        self.regs.set(regs::METER_ID, meter)?;
        self.regs.set(regs::METER_RATE, c.rate)?;
        self.regs.set(regs::METER_BURST, c.burst)?;
        self.regs.set64(regs::METER_LEVEL_LO, c.level)?;
        self.regs.set(regs::METER_CTRL, SET | if c.packets { PACKETS } else { 0 })?;
        Ok(Arc::new(Bucket {
            meter,
            life: self.life.load(Ordering::Acquire),
            rate: c.rate.into(),
            capacity,
            set_ns: self.word(meter, TOUCHED),
            window: Arc::clone(self),
        }))
    }

    pub(crate) fn remove(&self, meter: u32) -> Result<(), NicError> {
        self.regs.set(regs::METER_ID, meter)?;
        self.regs.set(regs::METER_CTRL, REMOVE)
    }
}

impl MeterBucket for Bucket {
    fn charge(&self, bytes: u32) -> Option<bool> {
        let w = &*self.window;
        if w.life.load(Ordering::Acquire) != self.life {
            return None;
        }
        let _turn = w.charge.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = (1 << LENGTH_BITS) - 1;
        w.regs.set(regs::METER_CHARGE, self.meter << LENGTH_BITS | bytes.min(longest)).ok()?;
        match w.regs.get(regs::METER_CHARGE) {
            Ok(PASSED) => Some(true),
            Ok(DROPPED) => Some(false),
            _ => None,
        }
    }

    fn counts(&self) -> MeterCounts {
        let word = |n| self.window.word(self.meter, n);
        let (packets, dropped_packets) = (word(0), word(2));
        let any = packets != 0 || dropped_packets != 0;
        MeterCounts {
            packets,
            bytes: word(1),
            dropped_packets,
            dropped_bytes: word(3),
            used_ms: any.then(|| (word(TOUCHED) / NS_PER_MS).saturating_sub(self.set_ns / NS_PER_MS)),
        }
    }

    fn level(&self) -> u64 {
        let (level, touched) = (self.window.word(self.meter, LEVEL), self.window.word(self.meter, TOUCHED));
        // The clock outlives resets; of a device that is gone, nothing came in since.
        let now = self.window.regs.get64(regs::CLOCK_LO).unwrap_or(touched);
        let ms = (now / NS_PER_MS).saturating_sub(touched / NS_PER_MS);
        level.saturating_add(ms.saturating_mul(self.rate)).min(self.capacity)
    }
}
