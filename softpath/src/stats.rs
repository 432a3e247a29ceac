//! Counters: one writer each, many readers, no lock and no shared cache line between workers.
//!
//! Each worker has its own entry for every flow that it has counted, so counting is a few plain loads and stores. A
//! reader adds the workers' entries up. An entry belongs to a flow by its statistics generation, not by its slot alone:
//! when a slot is given to another flow, or a flow's counters are cleared, the flow has a new generation, and the
//! worker's next packet starts the entry anew. So nobody but the worker ever writes an entry.

use crate::table::chunks::Chunks;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use zerocopy::FromZeros;

/// What a flow's packets added up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// Bytes from the Ethernet header on, without frame check sequence, as the packet was when it was matched.
    pub bytes: u64,
    /// Time of the last packet on the caller's clock, in milliseconds; `None` until one was seen (U3).
    pub used: Option<u64>,
    /// All TCP flags seen, of TCP packets only (U3).
    pub tcp_flags: u16,
}

impl FlowStats {
    /// Counts one packet.
    pub fn count(&mut self, bytes: u64, now: u64, tcp_flags: u16) {
        self.merge(&Self { packets: 1, bytes, used: Some(now), tcp_flags });
    }
}

impl FlowStats {
    /// Adds what others counted for the same flow: another worker, or hardware.
    pub fn merge(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.used = self.used.max(other.used);
        self.tcp_flags |= other.tcp_flags;
    }
}

/// Generation of an entry that is being started anew. Flows never have it.
const BUSY: u32 = 0;

/// One flow's counters of one worker: half a cache line.
#[derive(Debug, FromZeros)]
#[repr(C, align(32))]
pub struct FlowEntry {
    /// Statistics generation in the upper, TCP flags in the lower half.
    owner: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    used: AtomicU64,
}

/// A worker's counters of all flows, by slot. Memory comes with the first packet of a range of slots.
#[derive(Debug)]
pub struct FlowCounters(Chunks<FlowEntry>);

impl FlowCounters {
    /// For slots 0 to `max`.
    pub fn new(max: u32) -> Self {
        Self(Chunks::new(max))
    }

    /// The counters of the flows that have this slot, one after the other. Only the owning worker counts in them.
    #[inline(always)]
    pub fn entry(&self, slot: u32) -> Option<&FlowEntry> {
        self.0.get_or_grow(slot)
    }

    /// Counters of the flow of this generation.
    pub fn get(&self, slot: u32, generation: u32) -> FlowStats {
        let Some(e) = self.0.get(slot) else { return FlowStats::default() };
        e.read(generation).unwrap_or_default()
    }
}

impl FlowEntry {
    /// Counts one packet of the flow. A generation older than the entry's is that of a flow that was deleted or cleared
    /// after the packet was looked up; it has no counters any more.
    #[inline(always)]
    pub fn count(&self, generation: u32, bytes: u64, now: u64, tcp_flags: u16) {
        let owner = self.owner.load(Ordering::Relaxed);
        if (owner >> 32) as u32 != generation && !self.restart(owner, generation) {
            return;
        }
        let add = |c: &AtomicU64, n| c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        add(&self.packets, 1);
        add(&self.bytes, bytes);
        self.used.store(now, Ordering::Relaxed);
        if tcp_flags != 0 {
            let owner = self.owner.load(Ordering::Relaxed);
            self.owner.store(owner | u64::from(tcp_flags), Ordering::Release);
        }
    }

    /// Sets the flow's counters.
    pub fn set(&self, generation: u32, stats: &FlowStats) {
        let owner = self.owner.load(Ordering::Relaxed);
        if (owner >> 32) as u32 != generation && !self.restart(owner, generation) {
            return;
        }
        self.packets.store(stats.packets, Ordering::Relaxed);
        self.bytes.store(stats.bytes, Ordering::Relaxed);
        self.used.store(stats.used.unwrap_or(0), Ordering::Relaxed);
        self.owner.store(u64::from(generation) << 32 | u64::from(stats.tcp_flags), Ordering::Release);
    }

    /// Hands the entry over to a newer generation; false if `generation` is the older one.
    #[cold]
    fn restart(&self, owner: u64, generation: u32) -> bool {
        let current = (owner >> 32) as u32;
        if current != BUSY && (generation.wrapping_sub(current) as i32) < 0 {
            return false;
        }
        self.owner.store(u64::from(BUSY) << 32, Ordering::Relaxed);
        fence(Ordering::Release);
        for c in [&self.packets, &self.bytes, &self.used] {
            c.store(0, Ordering::Relaxed);
        }
        self.owner.store(u64::from(generation) << 32, Ordering::Release);
        true
    }

    /// The counters, if they are `generation`'s before and after the read.
    fn read(&self, generation: u32) -> Option<FlowStats> {
        let owner = self.owner.load(Ordering::Acquire);
        if (owner >> 32) as u32 != generation {
            return None;
        }
        let [packets, bytes, used] =
            [&self.packets, &self.bytes, &self.used].map(|c| c.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.owner.load(Ordering::Relaxed);
        let used = (packets != 0).then_some(used);
        ((after >> 32) as u32 == generation).then_some(FlowStats {
            packets,
            bytes,
            used,
            tcp_flags: after as u16,
        })
    }
}

/// Declares the counters of a datapath once: as plain numbers, and as a worker's atomics.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a datapath, of all its workers together.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)*
            }
        }

        impl Counters {
            /// Names and values, for reports.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Counters of these values, in the order of [`Self::iter`]; what is not there is 0.
            pub fn of_values(values: impl IntoIterator<Item = u64>) -> Self {
                let mut values = values.into_iter();
                Self { $($name: values.next().unwrap_or(0),)* }
            }
        }

        /// One worker's published [`Counters`].
        #[derive(Debug, Default)]
        pub(crate) struct SharedCounters {
            $($name: AtomicU64,)*
        }

        impl SharedCounters {
            /// Publishes the worker's values.
            pub(crate) fn store(&self, from: &Counters) {
                $(self.$name.store(from.$name, Ordering::Relaxed);)*
            }

            /// The values published last.
            pub(crate) fn load(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Packets received.
    packets,
    /// Lookups that found a flow, recirculated packets included.
    hits,
    /// Hits in the microflow cache.
    cache_hits,
    /// Lookups without a flow: upcalls (R4).
    misses,
    /// Upcalls that nobody took (R4).
    lost,
    /// Subtables searched by lookups that the cache did not answer.
    masks_searched,
    /// Packets looked up again.
    recirculations,
    /// Packets dropped because they were recirculated too often ([`crate::recursion`]).
    recirc_limit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u2_a_new_generation_starts_from_zero() {
        let c = FlowCounters::new(100);
        c.entry(3).unwrap().count(1, 100, 5, 0x12);
        c.entry(3).unwrap().count(1, 60, 6, 0x01);
        let first = FlowStats { packets: 2, bytes: 160, used: Some(6), tcp_flags: 0x13 };
        assert_eq!(c.get(3, 1), first);
        assert_eq!(c.get(3, 2), FlowStats::default(), "nothing of another generation");
        c.entry(3).unwrap().count(2, 60, 7, 0);
        assert_eq!(c.get(3, 2), FlowStats { packets: 1, bytes: 60, used: Some(7), tcp_flags: 0 });
        assert_eq!(c.get(3, 1), FlowStats::default());
        c.entry(3).unwrap().count(1, 60, 8, 0);
        assert_eq!(
            c.get(3, 2).packets,
            1,
            "a late packet of the old generation does not count for the new one"
        );
    }

    #[test]
    fn generations_wrap_around() {
        let c = FlowCounters::new(100);
        c.entry(0).unwrap().count(u32::MAX, 1, 1, 0);
        c.entry(0).unwrap().count(1, 1, 1, 0);
        assert_eq!(c.get(0, 1).packets, 1);
        assert_eq!(c.get(0, u32::MAX).packets, 0);
    }

    #[test]
    fn u3_used_only_once_a_packet_was_seen() {
        let c = FlowCounters::new(100);
        assert_eq!(c.get(9, 1).used, None);
        c.entry(9).unwrap().count(1, 60, 0, 0);
        assert_eq!(c.get(9, 1).used, Some(0), "time 0 is a time");
    }
}
