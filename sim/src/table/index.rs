//! Finds the entry for a key: one hash table of entry ids, in which each key lies under its mask.
//!
//! A TCAM compares all entries at once; here the masks are tried by falling priority, and the search stops where no
//! better hit can follow. The result equals a linear search, which the tests show. A freed mask slot keeps its place
//! and its words until it is taken again.
//!
//! The hash table is probed linearly and has its full size from the start, so that no update waits while it grows. It
//! holds hashes beside ids: a probe reads entries only where the hash fits.

use super::{Entry, Store, WORDS};
use crate::ram::Ram;
use hashbrown::HashMap;
use std::collections::BTreeMap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// So many masks are compared one by one, which takes less time than a hash of one.
const FEW: usize = 2;

/// A place of the hash table.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Bucket {
    hash: u32,
    /// Id of the entry and 1; 0 is an empty bucket.
    entry: u32,
}

struct Group {
    mask: Box<[u64]>,
    /// Entries under this mask.
    used: u32,
    /// Entries per priority.
    priorities: BTreeMap<u16, u32>,
}

impl Group {
    fn best_priority(&self) -> u16 {
        self.priorities.last_key_value().map_or(0, |(p, _)| *p)
    }
}

pub(super) struct Index {
    /// By slot; one without entries is free.
    groups: Vec<Group>,
    by_mask: HashMap<Box<[u64]>, u32>,
    /// Slots in use in the order of the search.
    order: Vec<u32>,
    by_priority: bool,
    /// Taken with the first entry.
    buckets: Ram,
    /// Number of buckets less 1; a power of two less 1, and more than there are entries.
    last: u32,
}

/// Hash of a masked key under the mask in `slot`.
pub(super) fn hash(slot: u32, key: &[u64]) -> u32 {
    let mut h = 0x243f_6a88_85a3_08d3u64 ^ u64::from(slot) << 32;
    for w in key {
        let wide = u128::from(h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        h = (wide >> 64) as u64 ^ wide as u64;
    }
    (h >> 32) as u32 ^ h as u32
}

impl Index {
    /// For up to `max` entries.
    pub(super) fn new(by_priority: bool, max: u32) -> Self {
        // At most two thirds full.
        let buckets = (u64::from(max) * 3 / 2 + 1).next_power_of_two().min(1 << 31);
        Self {
            groups: Vec::new(),
            by_mask: HashMap::new(),
            order: Vec::new(),
            by_priority,
            buckets: Ram::default(),
            last: (buckets - 1) as u32,
        }
    }

    /// Masks in use.
    pub(super) fn masks(&self) -> usize {
        self.order.len()
    }

    /// The slot of `mask`, if it is in use.
    pub(super) fn slot(&self, mask: &[u64]) -> Option<u32> {
        if self.order.len() <= FEW {
            return self.order.iter().copied().find(|slot| self.mask(*slot) == mask);
        }
        self.by_mask.get(mask).copied()
    }

    /// The words of the mask in `slot`.
    pub(super) fn mask(&self, slot: u32) -> &[u64] {
        self.groups.get(slot as usize).map_or(&[], |g| &g.mask)
    }

    /// Gives the lowest free slot to a mask that has none.
    pub(super) fn open_slot(&mut self, mask: &[u64]) -> u32 {
        let group = Group { mask: mask.into(), used: 0, priorities: BTreeMap::new() };
        let slot = match self.groups.iter().position(|g| g.used == 0) {
            Some(free) => {
                self.groups[free] = group;
                free
            }
            None => {
                self.groups.push(group);
                self.groups.len() - 1
            }
        };
        self.by_mask.insert(mask.into(), slot as u32);
        slot as u32
    }

    fn bucket(&self, at: u32) -> Bucket {
        self.buckets.record(at as usize).copied().unwrap_or_default()
    }

    fn set_bucket(&mut self, at: u32, bucket: Bucket) {
        if let Some(b) = self.buckets.record_mut(at as usize) {
            *b = bucket;
        }
    }

    /// Entries with this hash, and their buckets.
    fn with_hash(&self, hash: u32) -> impl Iterator<Item = (u32, u32)> {
        (0..=self.last)
            .map(move |step| hash.wrapping_add(step) & self.last)
            .map(|at| (at, self.bucket(at)))
            .take_while(|(_, b)| b.entry != 0)
            .filter(move |(_, b)| b.hash == hash)
            .map(|(at, b)| (at, b.entry - 1))
    }

    /// Reads the bucket at which a search for `hash` begins, so that it is in the cache when the search comes.
    pub(super) fn touch(&self, hash: u32) -> u32 {
        self.bucket(hash & self.last).entry
    }

    pub(super) fn duplicate(
        &self,
        slot: u32,
        hash: u32,
        key: &[u8],
        priority: u16,
        entries: &Store,
    ) -> Option<u32> {
        self.with_hash(hash).map(|(_, id)| id).find(|&id| {
            entries
                .get(id)
                .is_some_and(|e| e.slot == slot && e.priority == priority && entries.key(id) == key)
        })
    }

    fn take_memory(&mut self) {
        if self.buckets.is_empty() {
            self.buckets = Ram::new((self.last as usize + 1) * size_of::<Bucket>());
        }
    }

    /// Touches all of the hash table's memory.
    pub(super) fn populate(&mut self) {
        self.take_memory();
        self.buckets.populate(usize::MAX);
    }

    /// Enters `id` under the mask in `slot`.
    pub(super) fn add(&mut self, slot: u32, hash: u32, id: u32, priority: u16) {
        self.take_memory();
        let places = (0..=self.last).map(|step| hash.wrapping_add(step) & self.last);
        let free = { places }.find(|&at| self.bucket(at).entry == 0);
        if let Some(at) = free {
            self.set_bucket(at, Bucket { hash, entry: id + 1 });
        }
        let by_priority = self.by_priority;
        let Some(g) = self.groups.get_mut(slot as usize) else { return };
        let best = (g.used != 0).then(|| g.best_priority());
        g.used += 1;
        if by_priority {
            *g.priorities.entry(priority).or_insert(0) += 1;
        }
        if best != Some(g.best_priority()) {
            self.place(slot);
        }
    }

    /// Takes out `id`, which is `e`.
    pub(super) fn remove(&mut self, id: u32, e: &Entry) {
        let found = self.with_hash(e.hash).find(|&(_, other)| other == id);
        if let Some((at, _)) = found {
            self.empty(at);
        }
        let Some(g) = self.groups.get_mut(e.slot as usize) else { return };
        let best = g.best_priority();
        g.used -= u32::from(found.is_some());
        if let Some(n) = g.priorities.get_mut(&e.priority) {
            *n -= 1;
            if *n == 0 {
                g.priorities.remove(&e.priority);
            }
        }
        if g.used == 0 {
            self.by_mask.remove(&g.mask);
            self.order.retain(|&s| s != e.slot);
        } else if best != g.best_priority() {
            self.place(e.slot);
        }
    }

    /// Empties a bucket, and moves up what its entry had pushed aside.
    fn empty(&mut self, mut hole: u32) {
        let last = self.last;
        let mut at = hole;
        loop {
            at = at.wrapping_add(1) & last;
            let b = self.bucket(at);
            if b.entry == 0 || at == hole {
                break;
            }
            // It may lie anywhere from where its search begins to here; the hole is in that range unless it begins later.
            let from_home = at.wrapping_sub(b.hash) & last;
            let from_hole = at.wrapping_sub(hole) & last;
            if from_home >= from_hole {
                self.set_bucket(hole, b);
                hole = at;
            }
        }
        self.set_bucket(hole, Bucket::default());
    }

    /// Puts a slot where it belongs in the order: TCAM by falling best priority, HASH by slot.
    fn place(&mut self, slot: u32) {
        self.order.retain(|&s| s != slot);
        let rank = |s: u32| {
            let best = self.groups.get(s as usize).map_or(0, Group::best_priority);
            (std::cmp::Reverse(best), s)
        };
        let at = self.order.partition_point(|&s| rank(s) < rank(slot));
        self.order.insert(at, slot);
    }

    /// The entry that a packet's key hits.
    pub(super) fn lookup(&self, key: &[u64], entries: &Store) -> Option<u32> {
        let mut best: Option<(u16, u32)> = None;
        let mut masked = [0u64; WORDS];
        for &slot in &self.order {
            let Some(g) = self.groups.get(slot as usize) else { continue };
            // A lower priority cannot win; an equal one can, by a lower id.
            if best.is_some_and(|(p, _)| p > g.best_priority()) {
                break;
            }
            let n = key.len().min(g.mask.len()).min(WORDS);
            for ((m, k), mask) in masked.iter_mut().zip(key).zip(&g.mask) {
                *m = k & mask;
            }
            let k = &masked[..n];
            for (_, id) in self.with_hash(hash(slot, k)) {
                let Some(e) = entries.get(id) else { continue };
                let better = best.is_none_or(|(p, b)| e.priority > p || (e.priority == p && id < b));
                if better && e.slot == slot && entries.key(id) == k.as_bytes() {
                    best = Some((e.priority, id));
                }
            }
            if best.is_some() && !self.by_priority {
                break;
            }
        }
        best.map(|(_, id)| id)
    }
}
