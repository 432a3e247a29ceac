//! Finds the entry for a key: per distinct mask a hash table of entry ids.
//!
//! A TCAM compares all entries at once; here the masks are tried by falling priority, and the search stops where no
//! better hit can follow. The result equals a linear search, which the tests show. A freed mask slot keeps its place
//! and its words until it is taken again. Hashes are kept beside the ids, so that a growing table does not touch its
//! entries.

use super::{Entry, Store, WORDS};
use hashbrown::{HashMap, HashTable};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy)]
struct Item {
    hash: u32,
    id: u32,
}

/// The 64 bits that `HashTable` wants: it takes the bucket from the low ones and a tag from the highest seven.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

struct Group {
    mask: Box<[u64]>,
    ids: HashTable<Item>,
    /// Entries per priority.
    priorities: BTreeMap<u16, u32>,
}

impl Group {
    fn best_priority(&self) -> u16 {
        self.priorities.last_key_value().map_or(0, |(p, _)| *p)
    }
}

pub(super) struct Index {
    /// By slot; one without ids is free.
    groups: Vec<Group>,
    by_mask: HashMap<Box<[u64]>, u32>,
    /// Slots in use in the order of the search.
    order: Vec<u32>,
    by_priority: bool,
}

/// Hash of a masked key.
pub(super) fn hash(key: &[u64]) -> u32 {
    let mut h = 0x243f_6a88_85a3_08d3u64;
    for w in key {
        let wide = u128::from(h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        h = (wide >> 64) as u64 ^ wide as u64;
    }
    (h >> 32) as u32 ^ h as u32
}

impl Index {
    pub(super) fn new(by_priority: bool) -> Self {
        Self { groups: Vec::new(), by_mask: HashMap::new(), order: Vec::new(), by_priority }
    }

    /// Masks in use.
    pub(super) fn masks(&self) -> usize {
        self.order.len()
    }

    /// The slot of `mask`, if it is in use.
    pub(super) fn slot(&self, mask: &[u64]) -> Option<u32> {
        self.by_mask.get(mask).copied()
    }

    /// The words of the mask in `slot`.
    pub(super) fn mask(&self, slot: u32) -> &[u64] {
        self.groups.get(slot as usize).map_or(&[], |g| &g.mask)
    }

    /// Gives the lowest free slot to a mask that has none.
    pub(super) fn open_slot(&mut self, mask: &[u64]) -> u32 {
        let group = Group { mask: mask.into(), ids: HashTable::new(), priorities: BTreeMap::new() };
        let slot = match self.groups.iter().position(|g| g.ids.is_empty()) {
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

    pub(super) fn duplicate(
        &self,
        slot: u32,
        hash: u32,
        key: &[u64],
        priority: u16,
        entries: &Store,
    ) -> Option<u32> {
        let same = |i: &Item| {
            i.hash == hash && entries.get(i.id).is_some_and(|e| e.priority == priority && e.has_key(key))
        };
        self.groups.get(slot as usize)?.ids.find(spread(hash), same).map(|i| i.id)
    }

    /// Enters `id` under the mask in `slot`.
    pub(super) fn add(&mut self, slot: u32, hash: u32, id: u32, priority: u16) {
        let by_priority = self.by_priority;
        let Some(g) = self.groups.get_mut(slot as usize) else { return };
        let best = (!g.ids.is_empty()).then(|| g.best_priority());
        g.ids.insert_unique(spread(hash), Item { hash, id }, |i| spread(i.hash));
        if by_priority {
            *g.priorities.entry(priority).or_insert(0) += 1;
        }
        if best != Some(g.best_priority()) {
            self.place(slot);
        }
    }

    /// Takes out `id`, which is `e`.
    pub(super) fn remove(&mut self, id: u32, e: &Entry) {
        let Some(g) = self.groups.get_mut(e.slot as usize) else { return };
        let best = g.best_priority();
        let key = super::Words::new(e.key());
        if let Ok(found) = g.ids.find_entry(spread(hash(key.as_slice())), |i| i.id == id) {
            found.remove();
        }
        if let Some(n) = g.priorities.get_mut(&e.priority) {
            *n -= 1;
            if *n == 0 {
                g.priorities.remove(&e.priority);
            }
        }
        if g.ids.is_empty() {
            self.by_mask.remove(&g.mask);
            self.order.retain(|&s| s != e.slot);
        } else if best != g.best_priority() {
            self.place(e.slot);
        }
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
            let h = hash(k);
            if self.by_priority {
                for i in g.ids.iter_hash(spread(h)).filter(|i| i.hash == h) {
                    let Some(e) = entries.get(i.id) else { continue };
                    let better = best.is_none_or(|(p, b)| e.priority > p || (e.priority == p && i.id < b));
                    if better && e.has_key(k) {
                        best = Some((e.priority, i.id));
                    }
                }
            } else {
                let same = |i: &Item| i.hash == h && entries.get(i.id).is_some_and(|e| e.has_key(k));
                if let Some(i) = g.ids.find(spread(h), same) {
                    return Some(i.id);
                }
            }
        }
        best.map(|(_, id)| id)
    }
}
