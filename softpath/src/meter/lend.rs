//! Lending a meter's bucket: whoever has it handles some of the meter's packets by itself, and is asked about the others. There is one
//! bucket at any time, so that the meter lets through what it says, wherever its packets are.

use super::{Meter, MeterConfig, MeterCount};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, MutexGuard, PoisonError};

/// What a lent bucket's holder counted of the packets that it handled by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LentCounts {
    /// Packets that it let through.
    pub passed: MeterCount,
    /// Packets that it dropped.
    pub dropped: MeterCount,
    /// When it last had a packet, in milliseconds since it was lent; `None` before the first.
    pub used: Option<u64>,
}

/// A lent bucket. Levels are in thousandths of a packet, or bits.
pub trait LentBucket: Send + Sync + std::fmt::Debug {
    /// Takes a packet of this many bytes out of the bucket; false, and nothing taken, if it has less. `None`: the bucket is lost.
    fn take(&self, bytes: usize) -> Option<bool>;
    /// What was counted. Packets of [`LentBucket::take`] are not in it.
    fn counts(&self) -> LentCounts;
    /// What is in the bucket, or was when it was last heard of.
    fn level(&self) -> u64;
}

/// A bucket that was lent, and when.
#[derive(Debug)]
pub(super) struct Lent {
    bucket: Arc<dyn LentBucket>,
    at: u64,
}

impl Lent {
    /// What was counted, and when it was used, by the packets' clock.
    pub(super) fn counts(&self) -> LentCounts {
        let counts = self.bucket.counts();
        LentCounts { used: counts.used.map(|ms| self.at.saturating_add(ms)), ..counts }
    }
}

/// A datapath's meter, for lending its bucket.
#[derive(Debug, Clone)]
pub struct MeterHandle(pub(crate) Arc<Meter>);

impl MeterHandle {
    /// As it was set.
    pub fn config(&self) -> &MeterConfig {
        &self.0.config
    }

    /// Lends the bucket of the first band, `to` being told what is in it at `now`. One that is lent stays where it is. No worker may be
    /// at work meanwhile: what it takes would be lost.
    ///
    /// # Errors
    /// Those of `to`: nothing is lent.
    pub fn lend<E>(&self, now: u64, to: impl FnOnce(u64) -> Result<Arc<dyn LentBucket>, E>) -> Result<(), E> {
        if self.0.is_lent.load(Acquire) {
            return Ok(());
        }
        let before = self.0.used.load(Relaxed).saturating_sub(1);
        let at = now.max(before);
        let level = self.0.bands.first().map_or(0, |band| band.level(at, at - before));
        let bucket = to(level)?;
        *self.0.lender() = Some(Lent { bucket, at });
        self.0.is_lent.store(true, Release);
        Ok(())
    }

    /// Takes the bucket back, as it is, with what was counted. Nothing happens if it is not lent.
    pub fn take_back(&self, now: u64) {
        self.0.take_back(now);
    }
}

impl Meter {
    pub(super) fn lender(&self) -> MutexGuard<'_, Option<Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Meter::exceeded`], by the lent bucket; `None` if it is not lent any more.
    #[cold]
    pub(super) fn exceeded_elsewhere(&self, bytes: usize, now: u64) -> Option<bool> {
        let bucket = Arc::clone(&self.lender().as_ref()?.bucket);
        let Some(passes) = bucket.take(bytes) else {
            self.take_back(now);
            return None;
        };
        self.used.fetch_max(now.saturating_add(1), Relaxed);
        self.total.add(bytes);
        if let Some(band) = self.bands.first().filter(|_| !passes) {
            band.dropped.add(bytes);
        }
        Some(!passes)
    }

    fn take_back(&self, now: u64) {
        if !self.is_lent.swap(false, AcqRel) {
            return;
        }
        // Whoever reads statistics sees the counts on one side or on the other.
        let mut lender = self.lender();
        let Some(lent) = lender.take() else { return };
        let LentCounts { passed, dropped, used } = lent.counts();
        self.total.add_all(passed);
        self.total.add_all(dropped);
        if let Some(used) = used {
            self.used.fetch_max(used.saturating_add(1), AcqRel);
        }
        if let Some(band) = self.bands.first() {
            band.dropped.add_all(dropped);
            let now = now.max(self.used.load(Acquire).saturating_sub(1));
            band.set_level(lent.bucket.level(), now);
        }
    }
}
