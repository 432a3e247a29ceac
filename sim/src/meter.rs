//! Meters: token buckets in integer arithmetic (FL1.md, section 7).

/// What METER_SET gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeterConfig {
    /// Packets or kilobits per second.
    pub(crate) rate: u64,
    /// Packets or kilobits.
    pub(crate) burst: u64,
    /// Counts packets, not bits.
    pub(crate) packets: bool,
}

/// A meter and what it counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meter {
    config: MeterConfig,
    /// In 1e-9 packet or 1e-6 bit.
    level: u128,
    filled_at: u64,
    pub(crate) passed: (u64, u64),
    pub(crate) dropped: (u64, u64),
}

/// Bucket units per packet.
const PER_PACKET: u128 = 1_000_000_000;
/// Bucket units per bit.
const PER_BIT: u128 = 1_000_000;

impl Meter {
    pub(crate) fn new(config: MeterConfig, now: u64) -> Self {
        let mut m = Self { config, level: 0, filled_at: now, passed: (0, 0), dropped: (0, 0) };
        m.level = m.capacity();
        m
    }

    fn capacity(&self) -> u128 {
        // A kilobit is 1000 bits: both come to 1e9 units.
        u128::from(self.config.burst) * PER_PACKET
    }

    /// Charges a packet of `len` bytes; false drops it.
    pub(crate) fn charge(&mut self, len: usize, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = now.max(self.filled_at);
        let filled = self.level.saturating_add(u128::from(elapsed) * u128::from(self.config.rate));
        self.level = filled.min(self.capacity());
        let cost = if self.config.packets { PER_PACKET } else { len as u128 * 8 * PER_BIT };
        let pass = self.level >= cost;
        let count = if pass { &mut self.passed } else { &mut self.dropped };
        count.0 += 1;
        count.1 += len as u64;
        if pass {
            self.level -= cost;
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_meter_passes_the_burst_then_the_rate() {
        let mut m = Meter::new(MeterConfig { rate: 10, burst: 3, packets: true }, 0);
        let pass: Vec<bool> = (0..4).map(|_| m.charge(60, 0)).collect();
        assert_eq!(pass, [true, true, true, false]);
        assert!(!m.charge(60, 99_999_999), "one packet takes 100 ms to earn");
        assert!(m.charge(60, 100_000_000));
        assert_eq!((m.passed, m.dropped), ((4, 240), (2, 120)));
    }

    #[test]
    fn bit_meter_counts_l2_bytes() {
        let mut m = Meter::new(MeterConfig { rate: 8, burst: 8, packets: false }, 0);
        assert!(m.charge(1000, 0), "8 kilobit are 1000 bytes");
        assert!(!m.charge(1, 0));
        assert!(m.charge(500, 500_000_000));
        assert!(!m.charge(1, 500_000_000));
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let mut m = Meter::new(MeterConfig { rate: u64::MAX, burst: u64::MAX, packets: false }, 0);
        assert!(m.charge(usize::MAX, u64::MAX));
    }
}
