//! The softpath's meters for the planner: what they are, and their buckets in the NIC.

use flowlift_driver::nic::{MeterBucket, MeterCounts};
use flowlift_offload::meter::Meter;
use flowlift_softpath::{LentBucket, LentCounts, MeterConfig, MeterCount, MeterUnit};
use std::sync::Arc;

/// A bucket in the NIC, as the softpath draws on it. Both count levels in thousandths of a packet, or bits.
#[derive(Debug)]
pub(super) struct Lent(pub(super) Arc<dyn MeterBucket>);

impl LentBucket for Lent {
    fn take(&self, bytes: usize) -> Option<bool> {
        self.0.charge(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    fn counts(&self) -> LentCounts {
        let MeterCounts { packets, bytes, dropped_packets, dropped_bytes, used_ms } = self.0.counts();
        LentCounts {
            passed: MeterCount { packets, bytes },
            dropped: MeterCount { packets: dropped_packets, bytes: dropped_bytes },
            used: used_ms,
        }
    }

    fn level(&self) -> u64 {
        self.0.level()
    }
}

/// A meter in the planner's terms.
pub(super) fn planned(config: &MeterConfig) -> Meter {
    Meter {
        packets: config.unit == MeterUnit::Pktps,
        bands: config.bands.iter().map(|band| (band.rate, band.burst)).collect(),
    }
}
