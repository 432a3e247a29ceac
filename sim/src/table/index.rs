//! Finds the entry for a key: per distinct mask a hash table of entry ids.
//!
//! A TCAM compares all entries at once; here the masks are tried by falling priority, and the search stops where no
//! better hit can follow. The result equals a linear search, which the tests show. A freed mask slot keeps its place
//! and its words until it is taken again.

use super::{Entry, WORDS};
use hashbrown::{HashMap, HashTable};
use std::collections::BTreeMap;

type Entries = [Option<Box<Entry>>];

struct Group {
    mask: Box<[u64]>,
    ids: HashTable<u32>,
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

fn hash(key: impl Iterator<Item = u64>) -> u64 {
    let mut h = 0x243f_6a88_85a3_08d3u64;
    for w in key {
        let wide = u128::from(h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        h = (wide >> 64) as u64 ^ wide as u64;
    }
    h
}

fn get(entries: &Entries, id: u32) -> Option<&Entry> {
    entries.get(id as usize)?.as_deref()
}

impl Index {
    pub(super) fn new(by_priority: bool) -> Self {
        Self { groups: Vec::new(), by_mask: HashMap::new(), order: Vec::new(), by_priority }
    }

    /// Masks in use.
    pub(super) fn masks(&self) -> usize {
        self.order.len()
    }

    pub(super) fn has_mask(&self, mask: &[u64]) -> bool {
        self.by_mask.contains_key(mask)
    }

    /// The words of the mask in `slot`.
    pub(super) fn mask(&self, slot: u32) -> &[u64] {
        self.groups.get(slot as usize).map_or(&[], |g| &g.mask)
    }

    /// The slot of `mask`: its own, or the lowest free one.
    pub(super) fn slot_for(&mut self, mask: &[u64]) -> u32 {
        if let Some(&s) = self.by_mask.get(mask) {
            return s;
        }
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
        key: &[u64],
        mask: &[u64],
        priority: u16,
        entries: &Entries,
    ) -> Option<u32> {
        let g = self.groups.get(*self.by_mask.get(mask)? as usize)?;
        g.ids
            .find(hash(key.iter().copied()), |&id| {
                get(entries, id).is_some_and(|e| *e.key == *key && e.priority == priority)
            })
            .copied()
    }

    pub(super) fn add(&mut self, id: u32, entries: &Entries) {
        let Some(e) = get(entries, id) else { return };
        let Some(g) = self.groups.get_mut(e.slot as usize) else { return };
        let best = (!g.ids.is_empty()).then(|| g.best_priority());
        g.ids.insert_unique(hash(e.key.iter().copied()), id, |&id| {
            get(entries, id).map_or(0, |e| hash(e.key.iter().copied()))
        });
        if self.by_priority {
            *g.priorities.entry(e.priority).or_insert(0) += 1;
        }
        if best != Some(g.best_priority()) {
            self.place(e.slot);
        }
    }

    pub(super) fn remove(&mut self, id: u32, entries: &Entries) {
        let Some(e) = get(entries, id) else { return };
        let Some(g) = self.groups.get_mut(e.slot as usize) else { return };
        let best = g.best_priority();
        if let Ok(found) = g.ids.find_entry(hash(e.key.iter().copied()), |&other| other == id) {
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

    pub(super) fn lookup(&self, key: &[u64], entries: &Entries) -> Option<u32> {
        let mut best: Option<(u16, u32)> = None;
        let mut masked = [0u64; WORDS];
        for &slot in &self.order {
            let Some(g) = self.groups.get(slot as usize) else { continue };
            // A lower priority cannot win; an equal one can, by a lower id.
            if best.is_some_and(|(p, _)| p > g.best_priority()) {
                break;
            }
            let n = key.len().min(g.mask.len()).min(WORDS);
            for i in 0..n {
                masked[i] = key[i] & g.mask[i];
            }
            let k = &masked[..n];
            let h = hash(k.iter().copied());
            if self.by_priority {
                for &id in g.ids.iter_hash(h) {
                    let Some(e) = get(entries, id) else { continue };
                    let better = best.is_none_or(|(p, b)| e.priority > p || (e.priority == p && id < b));
                    if better && *e.key == *k {
                        best = Some((e.priority, id));
                    }
                }
            } else if let Some(&id) = g.ids.find(h, |&id| get(entries, id).is_some_and(|e| *e.key == *k)) {
                return Some(id);
            }
        }
        best.map(|(_, id)| id)
    }
}
