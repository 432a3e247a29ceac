//! The microflow cache: one worker's first tier, from the hash of a packet's relevant bits to a slot.
//!
//! An entry is a hint, 8 bytes of it. Whoever gets a slot from here compares the packet with the flow that is in the slot
//! at that moment, under the flow's mask; so a stale entry (the flow was deleted, its slot went to another) or a collision
//! can cost a compare, and can never give a packet a flow that does not match it. That is why entries carry no epoch, and
//! nothing is flushed when flows change. When a new mask makes more bits relevant, hashes change, and the old entries are
//! overwritten in time.
//!
//! The cache starts small, to leave the first-level cache to others, and doubles when its entries are pushed out.

/// Entries in a bucket: a cache line.
const WAYS: usize = 8;
/// Buckets at first: 16 KiB.
const MIN_BUCKETS: usize = 256;
/// The cache doubles when one in so many of its buckets has pushed an entry out. An entry that is missed costs a search of
/// all masks, so there is no waiting for many of them.
const GROW_AFTER: usize = 4;

/// Tags and slots, a cache line together. A tag is the hash's upper half.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u32; WAYS],
    slots: [u32; WAYS],
}

/// In an empty way: no flow has it ([`crate::table::index::MAX_SLOT`]).
const NO_SLOT: u32 = u32::MAX;

const EMPTY: Bucket = Bucket { tags: [0; WAYS], slots: [NO_SLOT; WAYS] };

/// See the module's head.
#[derive(Debug)]
pub struct MicroflowCache {
    buckets: Box<[Bucket]>,
    max_buckets: usize,
    /// Way that the next entry without room overwrites.
    victim: usize,
    /// Entries pushed out since the cache last grew.
    evictions: usize,
}

impl MicroflowCache {
    /// A cache that grows to at most this many entries, rounded up to a power of two; 0 keeps it empty.
    pub fn new(max_entries: usize) -> Self {
        let max_buckets = match max_entries {
            0 => 0,
            n => n.div_ceil(WAYS).next_power_of_two(),
        };
        let buckets = vec![EMPTY; MIN_BUCKETS.min(max_buckets).max(1)].into();
        Self { buckets, max_buckets, victim: 0, evictions: 0 }
    }

    #[inline(always)]
    fn bucket(&self, tag: u32) -> &Bucket {
        &self.buckets[tag as usize & (self.buckets.len() - 1)]
    }

    /// Asks for the cache line of a tag.
    #[inline(always)]
    pub fn prefetch(&self, tag: u32) {
        crate::table::rcu::prefetch(self.bucket(tag));
    }

    /// The slot that was entered under this tag.
    #[inline(always)]
    pub fn get(&self, tag: u32) -> Option<u32> {
        let b = self.bucket(tag);
        let way = crate::isa::first_equal(&b.tags, tag);
        b.slots.get(way).copied().filter(|slot| *slot != NO_SLOT)
    }

    /// Remembers where a packet with this tag found its flow. An older entry of the tag is stale, or collides with
    /// this one, which 32 bits make rare: it is overwritten.
    pub fn insert(&mut self, tag: u32, slot: u32) {
        if self.max_buckets == 0 {
            return;
        }
        let mask = self.buckets.len() - 1;
        let b = &mut self.buckets[tag as usize & mask];
        let place = (0..WAYS)
            .find(|&i| b.tags[i] == tag && b.slots[i] != NO_SLOT)
            .or_else(|| b.slots.iter().position(|s| *s == NO_SLOT));
        let place = place.unwrap_or_else(|| {
            self.evictions += 1;
            self.victim = (self.victim + 1) % WAYS;
            self.victim
        });
        b.tags[place] = tag;
        b.slots[place] = slot;
        if self.evictions > self.buckets.len() / GROW_AFTER && self.buckets.len() < self.max_buckets {
            self.grow();
        }
    }

    /// Doubles; each entry finds its place by its tag.
    #[cold]
    fn grow(&mut self) {
        let larger = vec![EMPTY; self.buckets.len() * 2].into();
        let old = std::mem::replace(&mut self.buckets, larger);
        let mask = self.buckets.len() - 1;
        for b in &old {
            for (&tag, &slot) in b.tags.iter().zip(&b.slots).filter(|(_, s)| **s != NO_SLOT) {
                let new = &mut self.buckets[tag as usize & mask];
                if let Some(place) = new.slots.iter().position(|s| *s == NO_SLOT) {
                    new.tags[place] = tag;
                    new.slots[place] = slot;
                }
            }
        }
        self.evictions = 0;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(EMPTY);
    }

    /// Entries that fit.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_its_entries_up_to_its_limit_and_keeps_them() {
        let mut c = MicroflowCache::new(16_384);
        let tag = |n: u32| n.wrapping_mul(0x9e37_79b9);
        for round in 0..2 {
            for n in 0..8_000 {
                c.insert(tag(n), n);
            }
            let kept = (0..8_000).filter(|n| c.get(tag(*n)) == Some(*n)).count();
            assert!(round == 0 || kept > 7_900, "{kept} of 8,000 kept with room for {}", c.capacity());
        }
        for n in 0..100_000 {
            c.insert(tag(n), n);
        }
        assert_eq!(c.capacity(), 16_384);
    }

    #[test]
    fn a_cache_of_size_zero_stays_empty() {
        let mut c = MicroflowCache::new(0);
        c.insert(1, 1);
        assert_eq!(c.get(1), None);
    }

    #[test]
    fn a_stale_entry_is_overwritten() {
        let mut c = MicroflowCache::new(64);
        c.insert(7, 1);
        c.insert(7, 2);
        assert_eq!(c.get(7), Some(2));
        c.clear();
        assert_eq!(c.get(7), None);
    }

    #[test]
    fn tag_zero_is_not_found_in_an_empty_cache() {
        let mut c = MicroflowCache::new(64);
        assert_eq!(c.get(0), None);
        c.insert(0, 0);
        assert_eq!(c.get(0), Some(0));
    }
}
