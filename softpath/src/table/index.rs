//! An open-addressing table from hash to slot that one writer changes in place while readers probe it.
//!
//! An entry is one atomic word: 32 bits of the hash and the slot, so a reader sees an entry whole or not at all. Entries
//! never move within an array, so a reader cannot miss one that stays; a growing table is built anew and swapped in. The
//! index gives candidates only: the caller looks at the record in the slot and compares.

use super::rcu::{Cell, Domain, Guard, huge_pages, prefetch};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromZeros;

/// The low half of an entry is the slot plus [`SLOT_BASE`], or one of these. Empty ends a probe, a tombstone does not.
const EMPTY: u64 = 0;
const TOMBSTONE: u64 = 1;
const SLOT_BASE: u64 = 2;
/// Largest slot number that an entry can hold.
pub const MAX_SLOT: u32 = u32::MAX - SLOT_BASE as u32;

/// The part of a hash that an index keeps. Position and tag come from the same 32 bits, so that a table can grow without
/// hashing its records again.
#[inline(always)]
pub fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[derive(Debug)]
struct Array {
    entries: Box<[AtomicU64]>,
}

/// Entries from which an array has huge pages, if the system has them.
const HUGE: usize = 1 << 19;

impl Array {
    fn new(len: usize) -> Self {
        // Zero bytes are EMPTY, and fresh memory is zero: it is not written before it is used.
        let mut entries = <[AtomicU64]>::new_box_zeroed_with_elems(len)
            .unwrap_or_else(|_| (0..len).map(|_| AtomicU64::new(EMPTY)).collect());
        if len >= HUGE {
            huge_pages(&mut entries);
        }
        Self { entries }
    }

    /// Places in probing order: each once.
    #[inline(always)]
    fn probe(&self, tag: u32) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.entries.len() - 1;
        (0..self.entries.len()).map(move |n| &self.entries[(tag as usize + n) & mask])
    }

    /// Slots of the entries with this tag.
    #[inline(always)]
    fn candidates(&self, tag: u32) -> impl Iterator<Item = u32> {
        self.probe(tag)
            .map(|e| e.load(Ordering::Acquire))
            .take_while(|e| *e != EMPTY)
            .filter(move |e| (e >> 32) as u32 == tag && *e as u32 > TOMBSTONE as u32)
            .map(|e| e as u32 - SLOT_BASE as u32)
    }
}

/// The table. Methods with `&mut self` are the writer's.
#[derive(Debug)]
pub struct Index {
    array: Arc<Cell<Array>>,
    /// Entries in use.
    len: usize,
    /// Entries in use and tombstones.
    filled: usize,
    capacity: usize,
}

/// A reader's handle to an [`Index`].
#[derive(Debug, Clone)]
pub struct IndexReader(Arc<Cell<Array>>);

impl IndexReader {
    /// Candidate slots for a tag.
    #[inline(always)]
    pub fn candidates<'g>(&'g self, guard: &'g Guard<'_>, tag: u32) -> impl Iterator<Item = u32> + 'g {
        self.0.load(guard).candidates(tag)
    }
}

impl Index {
    /// Smallest array.
    const MIN: usize = 8;

    /// An empty index.
    pub fn new(domain: &Arc<Domain>) -> Self {
        let array = Arc::new(Cell::new(domain, Array::new(Self::MIN)));
        Self { array, len: 0, filled: 0, capacity: Self::MIN }
    }

    /// A handle for readers.
    pub fn reader(&self) -> IndexReader {
        IndexReader(Arc::clone(&self.array))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the array.
    pub fn bytes(&self) -> usize {
        self.capacity * size_of::<AtomicU64>()
    }

    /// Adds an entry. Its record must be in place already: readers may find it at once.
    pub fn insert(&mut self, guard: &Guard<'_>, tag: u32, slot: u32) {
        // At most three quarters full, so that a probe soon meets an empty entry.
        if (self.filled + 1) * 4 > self.capacity * 3 {
            self.rebuild(guard);
        }
        let entry = (u64::from(tag) << 32) | (u64::from(slot) + SLOT_BASE);
        if let Some(place) =
            self.array.load(guard).probe(tag).find(|e| e.load(Ordering::Relaxed) as u32 <= TOMBSTONE as u32)
        {
            if place.load(Ordering::Relaxed) == EMPTY {
                self.filled += 1;
            }
            place.store(entry, Ordering::Release);
            self.len += 1;
        }
    }

    /// Takes an entry out; false if there was none.
    pub fn remove(&mut self, guard: &Guard<'_>, tag: u32, slot: u32) -> bool {
        let entry = (u64::from(tag) << 32) | (u64::from(slot) + SLOT_BASE);
        let array = self.array.load(guard);
        let found = array
            .probe(tag)
            .enumerate()
            .take_while(|(_, e)| e.load(Ordering::Relaxed) != EMPTY)
            .find(|(_, e)| e.load(Ordering::Relaxed) == entry);
        let Some((n, place)) = found else { return false };
        self.len -= 1;
        // At the end of a run no probe needs to go on from here.
        let mask = array.entries.len() - 1;
        let at = (tag as usize + n) & mask;
        if array.entries[(at + 1) & mask].load(Ordering::Relaxed) == EMPTY {
            place.store(EMPTY, Ordering::Release);
            self.filled -= 1;
        } else {
            place.store(TOMBSTONE, Ordering::Release);
        }
        true
    }

    /// Copies the entries into an array that is at most half full.
    fn rebuild(&mut self, guard: &Guard<'_>) {
        let capacity = ((self.len + 1) * 2).next_power_of_two().max(Self::MIN);
        let new = Array::new(capacity);
        for e in &self.array.load(guard).entries {
            let e = e.load(Ordering::Relaxed);
            if e as u32 > TOMBSTONE as u32
                && let Some(place) = new.probe((e >> 32) as u32).find(|p| p.load(Ordering::Relaxed) == EMPTY)
            {
                place.store(e, Ordering::Relaxed);
            }
        }
        self.array.replace(new);
        self.filled = self.len;
        self.capacity = capacity;
    }

    /// Candidate slots for a tag.
    pub fn candidates<'g>(&'g self, guard: &'g Guard<'_>, tag: u32) -> impl Iterator<Item = u32> + 'g {
        self.array.load(guard).candidates(tag)
    }

    /// Asks for the cache line where a probe for this tag begins.
    pub fn prefetch(&self, guard: &Guard<'_>, tag: u32) {
        let array = self.array.load(guard);
        if let Some(entry) = array.entries.get(tag as usize & (array.entries.len() - 1)) {
            prefetch(entry);
        }
    }

    /// Every slot that is in the index.
    pub fn slots<'g>(&'g self, guard: &'g Guard<'_>) -> impl Iterator<Item = u32> + 'g {
        let entries = self.array.load(guard).entries.iter().map(|e| e.load(Ordering::Relaxed) as u32);
        entries.filter(|e| *e > TOMBSTONE as u32).map(|e| e - SLOT_BASE as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn found(index: &Index, guard: &Guard<'_>, tag: u32) -> BTreeSet<u32> {
        index.candidates(guard, tag).collect()
    }

    proptest! {
        /// Few tags, so that runs are long, meet and wrap around.
        #[test]
        fn holds_what_a_set_holds(ops in prop::collection::vec((any::<bool>(), 0..12u32, 0..40u32), 1..400)) {
            let domain = Domain::new();
            let mut reader = domain.reader();
            let mut index = Index::new(&domain);
            let mut model = BTreeSet::new();
            for (insert, tag, slot) in ops {
                let guard = reader.enter();
                // Position is the tag's low bits: spread some over the end of the array.
                let tag = tag.wrapping_sub(6);
                if insert && !model.contains(&(tag, slot)) {
                    index.insert(&guard, tag, slot);
                    model.insert((tag, slot));
                } else if !insert {
                    prop_assert_eq!(index.remove(&guard, tag, slot), model.remove(&(tag, slot)));
                }
                prop_assert_eq!(index.len(), model.len());
                for t in (0..12u32).map(|t| t.wrapping_sub(6)) {
                    let want: BTreeSet<u32> = model.iter().filter(|m| m.0 == t).map(|m| m.1).collect();
                    prop_assert_eq!(found(&index, &guard, t), want);
                }
            }
        }
    }

    #[test]
    fn largest_slot_is_not_taken_for_a_mark() {
        let domain = Domain::new();
        let mut reader = domain.reader();
        let guard = reader.enter();
        let mut index = Index::new(&domain);
        index.insert(&guard, 0, MAX_SLOT);
        index.insert(&guard, 0, 0);
        assert_eq!(found(&index, &guard, 0), BTreeSet::from([0, MAX_SLOT]));
    }

    #[test]
    fn churn_does_not_grow_the_array() {
        let domain = Domain::new();
        let mut reader = domain.reader();
        let mut index = Index::new(&domain);
        for n in 0..100_000u32 {
            let guard = reader.enter();
            let tag = n.wrapping_mul(0x9e37_79b9);
            index.insert(&guard, tag, n);
            if n >= 100 {
                let old = n - 100;
                assert!(index.remove(&guard, old.wrapping_mul(0x9e37_79b9), old));
            }
        }
        assert_eq!(index.len(), 100);
        assert!(index.bytes() <= 8 * 512, "{} bytes for 100 entries", index.bytes());
    }
}
