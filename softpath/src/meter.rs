//! Meters: token buckets that drop what comes too fast.
//!
//! A meter is as the kernel's datapath has it (net/openvswitch/meter.c): each of its bands has a bucket that fills with `rate`, holds
//! `burst` at most and begins full. A packet takes its bits (or itself) out of every bucket that has enough; of the bands that do not,
//! the one with the highest rate drops it. Time is in whole milliseconds, and that of the packets.
//!
//! Workers share a meter without a lock. A band's level is not stored: a bucket that nobody takes from holds
//! `burst + rate * time`, and what is stored is how far the bucket is below that, so that filling is nobody's work and taking is
//! one compare-and-swap.

mod lend;

pub use lend::{LentBucket, LentCounts, MeterHandle};

use crate::table::rcu::{Domain, Slots, View};
use lend::Lent;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use thiserror::Error;

/// Meters that a datapath has at most; their IDs are below this.
pub const MAX_METERS: u32 = 1 << 18;
/// Bands that a meter has at most.
pub const MAX_BANDS: usize = 8;

/// What a meter measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeterUnit {
    /// Rates in kilobits (1,000 bits) per second, bursts in kilobits. Of a frame, all bytes from the Ethernet header on.
    Kbps,
    /// Rates in packets per second, bursts in packets. A packet that is yet to be segmented is one, as in the kernel.
    Pktps,
}

/// A band: it drops packets beyond its rate, which is the only thing that a band can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeterBand {
    /// Rate, in the meter's unit. A band with rate 0 drops nothing.
    pub rate: u32,
    /// Size of the bucket, in the meter's unit.
    pub burst: u32,
}

/// A meter, as it is set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MeterConfig {
    /// What it measures.
    pub unit: MeterUnit,
    /// Its bands, at most [`MAX_BANDS`]. Without any, it counts.
    pub bands: Vec<MeterBand>,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeterCount {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl MeterCount {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

/// What a meter counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeterStats {
    /// All packets.
    pub total: MeterCount,
    /// Packets that each band dropped.
    pub bands: Vec<MeterCount>,
    /// When it last had a packet, in milliseconds of the packets' clock; `None` before the first.
    pub used: Option<u64>,
}

/// Why a meter cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MeterError {
    /// The ID is too large.
    #[error("meter {0}: IDs are below {MAX_METERS}")]
    Id(u32),
    /// Too many bands.
    #[error("{0} bands, a meter has at most {MAX_BANDS}")]
    Bands(usize),
}

/// Checks what a meter may be.
pub fn check(id: u32, config: &MeterConfig) -> Result<(), MeterError> {
    if id >= MAX_METERS {
        return Err(MeterError::Id(id));
    }
    if config.bands.len() > MAX_BANDS {
        return Err(MeterError::Bands(config.bands.len()));
    }
    Ok(())
}

impl MeterUnit {
    /// What a packet takes from a bucket: bits, or thousandths of a packet. A rate times milliseconds, and a burst times 1000,
    /// are the same units.
    pub(crate) fn cost(self, bytes: usize) -> u64 {
        match self {
            Self::Kbps => bytes as u64 * 8,
            Self::Pktps => 1000,
        }
    }
}

#[derive(Debug, Default)]
struct SharedCount {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl SharedCount {
    fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn add_all(&self, count: MeterCount) {
        self.packets.fetch_add(count.packets, Relaxed);
        self.bytes.fetch_add(count.bytes, Relaxed);
    }

    fn load(&self) -> MeterCount {
        MeterCount { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }
}

#[derive(Debug)]
struct Band {
    rate: u64,
    /// Size of the bucket.
    capacity: u64,
    /// How far the bucket is below `capacity + rate * time`, modulo 2^64.
    below: AtomicU64,
    dropped: SharedCount,
}

/// A meter of a datapath, shared by its workers.
#[derive(Debug)]
pub(crate) struct Meter {
    config: MeterConfig,
    /// Time of the latest packet plus 1; 0 before the first.
    used: AtomicU64,
    total: SharedCount,
    bands: Box<[Band]>,
    /// The first band's bucket is lent.
    is_lent: AtomicBool,
    lent: Mutex<Option<Lent>>,
}

impl Meter {
    fn new(config: MeterConfig) -> Self {
        let band = |b: &MeterBand| Band {
            rate: b.rate.into(),
            capacity: u64::from(b.burst) * 1000,
            below: AtomicU64::new(0),
            dropped: SharedCount::default(),
        };
        let bands = config.bands.iter().map(band).collect();
        Self {
            config,
            used: AtomicU64::new(0),
            total: SharedCount::default(),
            bands,
            is_lent: AtomicBool::new(false),
            lent: Mutex::new(None),
        }
    }

    /// Counts a packet of this many bytes at `now`, in milliseconds. True if it is to be dropped.
    pub(crate) fn exceeded(&self, bytes: usize, now: u64) -> bool {
        if self.is_lent.load(Acquire)
            && let Some(exceeded) = self.exceeded_elsewhere(bytes, now)
        {
            return exceeded;
        }
        // A worker's clock may be behind another's; a meter's time never goes back.
        let before = self.used.fetch_max(now.saturating_add(1), Relaxed).saturating_sub(1);
        let now = now.max(before);
        self.total.add(bytes);
        let cost = self.config.unit.cost(bytes);
        let mut worst: Option<&Band> = None;
        for band in &self.bands {
            if !band.take(cost, now, now - before) && band.rate > worst.map_or(0, |worst| worst.rate) {
                worst = Some(band);
            }
        }
        if let Some(band) = worst {
            band.dropped.add(bytes);
        }
        worst.is_some()
    }

    fn stats(&self) -> MeterStats {
        let lender = self.lender();
        let mut stats = MeterStats {
            total: self.total.load(),
            bands: self.bands.iter().map(|b| b.dropped.load()).collect(),
            used: self.used.load(Relaxed).checked_sub(1),
        };
        if let Some(lent) = &*lender {
            let LentCounts { passed, dropped, used } = lent.counts();
            stats.total = stats.total.plus(passed).plus(dropped);
            if let Some(band) = stats.bands.first_mut() {
                *band = band.plus(dropped);
            }
            stats.used = stats.used.max(used);
        }
        stats
    }
}

impl Band {
    /// What a bucket that is `capacity + rate * time` when nobody takes from it has: `most` is that, `below` what is stored.
    fn held(&self, most: u64, below: u64) -> u64 {
        // Less than nothing: another worker's packet was later than this one.
        most.wrapping_sub(below).cast_signed().max(0).cast_unsigned().min(self.capacity)
    }

    /// So long ago that what is stored might have wrapped: the bucket is full.
    fn is_full(&self, idle: u64) -> bool {
        idle.saturating_mul(self.rate) >= self.capacity
    }

    /// What is in the bucket. The last packet was `idle` milliseconds ago.
    fn level(&self, now: u64, idle: u64) -> u64 {
        if self.is_full(idle) {
            return self.capacity;
        }
        self.held(self.capacity.wrapping_add(self.rate.wrapping_mul(now)), self.below.load(Relaxed))
    }

    /// Has the bucket hold this much.
    fn set_level(&self, level: u64, now: u64) {
        let most = self.capacity.wrapping_add(self.rate.wrapping_mul(now));
        self.below.store(most.wrapping_sub(level.min(self.capacity)), Relaxed);
    }

    /// Takes `cost` out of the bucket; false, and nothing taken, if it has less. The last packet was `idle` milliseconds ago.
    fn take(&self, cost: u64, now: u64, idle: u64) -> bool {
        let most = self.capacity.wrapping_add(self.rate.wrapping_mul(now));
        let full = self.is_full(idle);
        let mut below = self.below.load(Relaxed);
        loop {
            let level = if full { self.capacity } else { self.held(most, below) };
            let rest = level.checked_sub(cost);
            // What is stored has wrapped if the bucket is full by its idle time, so it is set right even for nothing taken.
            if rest.is_none() && !full {
                return false;
            }
            let new = most.wrapping_sub(rest.unwrap_or(level));
            match self.below.compare_exchange_weak(below, new, Relaxed, Relaxed) {
                Ok(_) => return rest.is_some(),
                Err(other) => below = other,
            }
        }
    }
}

/// The meters that workers see.
pub(crate) type MeterSlots = Slots<Arc<Meter>>;
/// The same within a section.
pub(crate) type MeterView<'g> = View<'g, Arc<Meter>>;

/// A datapath's meters: the writer's side.
#[derive(Debug)]
pub(crate) struct Meters {
    slots: Arc<MeterSlots>,
    all: BTreeMap<u32, Arc<Meter>>,
}

impl Meters {
    pub(crate) fn new(domain: &Arc<Domain>) -> Self {
        Self { slots: Arc::new(Slots::new(domain, MAX_METERS)), all: BTreeMap::new() }
    }

    pub(crate) fn slots(&self) -> &Arc<MeterSlots> {
        &self.slots
    }

    pub(crate) fn set(&mut self, id: u32, config: MeterConfig) -> Result<Option<MeterStats>, MeterError> {
        check(id, &config)?;
        let meter = Arc::new(Meter::new(config));
        self.slots.replace(id, Some(Box::new(Arc::clone(&meter))));
        Ok(self.all.insert(id, meter).map(|old| old.stats()))
    }

    pub(crate) fn get(&self, id: u32) -> Option<(&MeterConfig, MeterStats)> {
        self.all.get(&id).map(|meter| (&meter.config, meter.stats()))
    }

    /// Adds what the meter counted before; false if there is none. Its buckets are full, as they are when nothing came for a while.
    pub(crate) fn carry(&self, id: u32, before: &MeterStats) -> bool {
        let Some(meter) = self.all.get(&id) else { return false };
        meter.total.add_all(before.total);
        meter.bands.iter().zip(&before.bands).for_each(|(band, count)| band.dropped.add_all(*count));
        if let Some(used) = before.used {
            meter.used.fetch_max(used.saturating_add(1), Relaxed);
        }
        true
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.all.keys().copied()
    }

    pub(crate) fn delete(&mut self, id: u32) -> Option<MeterStats> {
        let meter = self.all.remove(&id)?;
        self.slots.replace(id, None);
        Some(meter.stats())
    }
}
