//! Meters: token buckets in integer arithmetic (FL1.md, section 7), and the window by which the slow path uses them (section 2, "The meter
//! window").

use crate::bytes::put;
use crate::device::{FatalCode, Fl1};
use crate::violation::ViolationCode;
use flowlift_bus::DmaFault;

/// What METER_SET or the window gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeterConfig {
    /// Packets or kilobits per second.
    pub(crate) rate: u64,
    /// Packets or kilobits.
    pub(crate) burst: u64,
    /// Counts packets, not bits.
    pub(crate) packets: bool,
    /// Time passes in whole milliseconds.
    pub(crate) whole_ms: bool,
}

/// A meter and what it counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meter {
    config: MeterConfig,
    /// In 1e-9 packet or 1e-6 bit.
    level: u128,
    filled_at: u64,
    /// Of the last packet, or of the setting: as it is, where `filled_at` may be a whole millisecond.
    touched: u64,
    pub(crate) passed: (u64, u64),
    pub(crate) dropped: (u64, u64),
}

/// Bucket units per packet.
const PER_PACKET: u128 = 1_000_000_000;
/// Bucket units per bit.
const PER_BIT: u128 = 1_000_000;
/// Bucket units in one of the window's: a bit, or a thousandth of a packet.
const PER_WINDOW: u128 = 1_000_000;
const MS: u64 = 1_000_000;

/// METER_CTRL: set, remove; and what is measured.
const SET: u32 = 1;
const REMOVE: u32 = 2;
const PACKETS: u32 = 1 << 8;
/// METER_CHARGE: bits of the frame's length; the meter is above.
const LENGTH_BITS: u32 = 20;
/// What METER_CHARGE reads.
const NO_METER: u32 = 0;
const PASSED: u32 = 1;
const DROPPED: u32 = 2;
/// Length of a meter page record.
pub(crate) const METER_RECORD: u64 = 64;

/// The registers of the window, as last written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    pub(crate) id: u32,
    pub(crate) rate: u32,
    pub(crate) burst: u32,
    pub(crate) level: u64,
    /// What METER_CHARGE reads.
    pub(crate) answer: u32,
}

impl Meter {
    pub(crate) fn new(config: MeterConfig, now: u64) -> Self {
        let mut m = Self { config, level: 0, filled_at: 0, touched: now, passed: (0, 0), dropped: (0, 0) };
        m.level = m.capacity();
        m.filled_at = m.time(now);
        m
    }

    /// A clock's time as the bucket has it.
    fn time(&self, now: u64) -> u64 {
        if self.config.whole_ms { now - now % MS } else { now }
    }

    /// Fills the bucket.
    fn fill(&mut self, now: u64) {
        let now = self.time(now);
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = now.max(self.filled_at);
        let filled = self.level.saturating_add(u128::from(elapsed) * u128::from(self.config.rate));
        self.level = filled.min(self.capacity());
    }

    /// Takes a packet of `len` bytes out of the bucket; false if it has less.
    fn take(&mut self, len: usize, now: u64) -> bool {
        self.fill(now);
        self.touched = self.touched.max(now);
        let cost = if self.config.packets { PER_PACKET } else { len as u128 * 8 * PER_BIT };
        let pass = self.level >= cost;
        if pass {
            self.level -= cost;
        }
        pass
    }

    /// Its record in the meter page.
    pub(crate) fn page_record(&self) -> [u8; METER_RECORD as usize] {
        let mut r = [0; METER_RECORD as usize];
        let level = u64::try_from(self.level / PER_WINDOW).unwrap_or(u64::MAX);
        let words = [self.passed.0, self.passed.1, self.dropped.0, self.dropped.1, level, self.touched];
        for (n, word) in words.into_iter().enumerate() {
            put(&mut r, n * 8, &word.to_le_bytes());
        }
        r
    }

    fn capacity(&self) -> u128 {
        // A kilobit is 1000 bits: both come to 1e9 units.
        u128::from(self.config.burst) * PER_PACKET
    }

    /// Charges a packet of `len` bytes and counts it; false drops it.
    pub(crate) fn charge(&mut self, len: usize, now: u64) -> bool {
        let pass = self.take(len, now);
        let count = if pass { &mut self.passed } else { &mut self.dropped };
        count.0 += 1;
        count.1 += len as u64;
        pass
    }
}

impl Fl1 {
    /// Where a meter's record lies in the meter page.
    pub(crate) fn meter_record_at(&self, id: u32) -> Option<u64> {
        Some(self.meter_page?.wrapping_add(u64::from(id) * METER_RECORD))
    }

    /// Writes a meter's record, if there is a meter page.
    pub(crate) fn write_meter_record(&mut self, id: u32, meter: &Meter) -> Result<(), DmaFault> {
        match self.meter_record_at(id) {
            Some(at) => self.host.write(&mut self.faults, at, &meter.page_record()),
            None => Ok(()),
        }
    }

    /// True if the device is at work, so that the window's registers do something.
    fn meters_work(&self) -> bool {
        self.enable && self.bus_master && !self.hung && self.fatal.is_none()
    }

    /// METER_CTRL was written.
    pub(crate) fn control_meter(&mut self, v: u32) -> Result<(), ViolationCode> {
        let Window { id, rate, burst, level, .. } = self.window;
        if id as usize >= self.meters.len() {
            return Err(ViolationCode::BadValue);
        }
        if v & !(SET | REMOVE | PACKETS) != 0 {
            return Err(ViolationCode::ReservedBits);
        }
        let set = match (v & (SET | REMOVE), v & PACKETS != 0) {
            (REMOVE, false) => None,
            (SET, packets) if rate != 0 && burst != 0 && level <= u64::from(burst) * 1000 => {
                let (rate, burst) = (rate.into(), burst.into());
                let now = self.clock.now_ns();
                let mut meter = Meter::new(MeterConfig { rate, burst, packets, whole_ms: true }, now);
                meter.level = u128::from(level) * PER_WINDOW;
                Some(meter)
            }
            _ => return Err(ViolationCode::BadValue),
        };
        if self.meters_work() {
            match set.map(|meter| self.write_meter_record(id, &meter)) {
                Some(Err(fault)) => self.die_of(FatalCode::CounterPage, fault),
                _ => self.meters[id as usize] = set,
            }
        }
        Ok(())
    }

    /// METER_CHARGE was written: the slow path's packet takes from the bucket, and is not counted.
    pub(crate) fn charge_meter(&mut self, v: u32) {
        let (id, len) = (v >> LENGTH_BITS, v & ((1 << LENGTH_BITS) - 1));
        self.window.answer = NO_METER;
        let meter = self.meters.get(id as usize).copied().flatten();
        let Some(mut meter) = meter.filter(|_| self.meters_work()) else { return };
        let pass = meter.take(len as usize, self.clock.now_ns());
        match self.write_meter_record(id, &meter) {
            Ok(()) => {
                self.meters[id as usize] = Some(meter);
                self.window.answer = if pass { PASSED } else { DROPPED };
            }
            Err(fault) => self.die_of(FatalCode::CounterPage, fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_meter_passes_the_burst_then_the_rate() {
        let mut m = Meter::new(MeterConfig { rate: 10, burst: 3, packets: true, whole_ms: false }, 0);
        let pass: Vec<bool> = (0..4).map(|_| m.charge(60, 0)).collect();
        assert_eq!(pass, [true, true, true, false]);
        assert!(!m.charge(60, 99_999_999), "one packet takes 100 ms to earn");
        assert!(m.charge(60, 100_000_000));
        assert_eq!((m.passed, m.dropped), ((4, 240), (2, 120)));
    }

    #[test]
    fn whole_milliseconds_fill_the_bucket_at_their_ends() {
        let config = MeterConfig { rate: 1000, burst: 1, packets: true, whole_ms: true };
        let mut m = Meter::new(config, 500_000);
        assert!(m.charge(60, 700_000) && !m.charge(60, 999_999));
        assert!(m.charge(60, 1_000_000) && !m.charge(60, 1_999_999) && m.charge(60, 2_000_000));
    }

    #[test]
    fn bit_meter_counts_l2_bytes() {
        let mut m = Meter::new(MeterConfig { rate: 8, burst: 8, packets: false, whole_ms: false }, 0);
        assert!(m.charge(1000, 0), "8 kilobit are 1000 bytes");
        assert!(!m.charge(1, 0));
        assert!(m.charge(500, 500_000_000));
        assert!(!m.charge(1, 500_000_000));
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let mut m =
            Meter::new(MeterConfig { rate: u64::MAX, burst: u64::MAX, packets: false, whole_ms: false }, 0);
        assert!(m.charge(usize::MAX, u64::MAX));
    }
}
