//! The megaflow classifier: tuple space search, one subtable per mask.
//!
//! Its cost is one hash and one probe per subtable until the right one is found, so each reader searches the subtables
//! in the order of its own hits. It is the slow tier: the microflow cache ([`crate::cache`]) is asked before it, and makes
//! a packet's cost independent of the number of masks.

use crate::table::hash::Seeds;
use crate::table::index::{IndexReader, tag_of};
use crate::table::rcu::{Guard, View};
use crate::table::record::FlowRecord;
use crate::table::shape::{LookupKey, SparseMask, and, hash_rest, hot};
use flowlift_flow::key::{HOT_WORDS, KEY_WORDS};
use std::sync::Arc;

/// Flows with one mask, as readers see them.
#[derive(Debug)]
pub struct Subtable {
    /// Differs from that of every other subtable there was.
    pub id: u64,
    /// The mask.
    pub mask: SparseMask,
    /// Slots of the flows, by hash of the masked key.
    pub index: IndexReader,
}

/// Every bit that some flow looks at. Packets that agree in these bits have the same flow, so this is what a microflow
/// is: with coarse masks there are few of them, however many connections there are.
#[derive(Debug, Clone, Default)]
pub struct Relevant {
    hot: [u64; HOT_WORDS],
    /// Number and bits of each later word that has some.
    rest: Box<[(u8, u64)]>,
}

impl Relevant {
    /// Of these masks.
    pub fn new<'a>(masks: impl Iterator<Item = &'a SparseMask>) -> Self {
        let mut words = [0u64; KEY_WORDS];
        for m in masks {
            m.hot.iter().zip(&mut words).for_each(|(m, w)| *w |= m);
            m.rest.iter().for_each(|&(i, m)| words[usize::from(i)] |= m);
        }
        let mut hot_words = [0; HOT_WORDS];
        hot_words.copy_from_slice(&words[..HOT_WORDS]);
        let rest = (HOT_WORDS..KEY_WORDS).filter(|&i| words[i] != 0).map(|i| (i as u8, words[i])).collect();
        Self { hot: hot_words, rest }
    }

    /// Hash of a key's relevant bits.
    #[inline(always)]
    pub fn hash(&self, seeds: &Seeds, key: LookupKey<'_>) -> u64 {
        let h = seeds.hash8(&and(hot(key.key), &self.hot));
        if key.hot_only || self.rest.is_empty() { h } else { hash_rest(&self.rest, seeds, h, key.key) }
    }
}

/// All subtables at one time.
#[derive(Debug, Default)]
pub struct Subtables {
    /// Grows with every change of the set.
    pub version: u64,
    /// In no order that means anything.
    pub list: Vec<Arc<Subtable>>,
    /// Union of the masks.
    pub relevant: Relevant,
}

/// Lookups between two sorts of a reader's search order.
const SORT_EVERY: u32 = 4096;

/// One reader's search order.
#[derive(Debug, Default)]
pub struct SearchOrder {
    version: Option<u64>,
    order: Vec<Ranked>,
    lookups: u32,
    /// Subtables searched so far.
    pub searched: u64,
}

#[derive(Debug, Clone, Copy)]
struct Ranked {
    id: u64,
    place: u32,
    /// Halved at each sort, so that old traffic is forgotten.
    hits: u32,
}

impl SearchOrder {
    /// Follows a change of the set of subtables. Once per section.
    #[inline(always)]
    pub fn follow(&mut self, subtables: &Subtables) {
        if self.version != Some(subtables.version) {
            self.renew(subtables);
        }
    }

    #[cold]
    fn renew(&mut self, subtables: &Subtables) {
        let mut old: Vec<(u64, u32)> = self.order.iter().map(|r| (r.id, r.hits)).collect();
        old.sort_unstable();
        let hits = |id| old.binary_search_by_key(&id, |o| o.0).map_or(0, |n| old[n].1);
        let ranked =
            |(place, s): (usize, &Arc<Subtable>)| Ranked { id: s.id, place: place as u32, hits: hits(s.id) };
        self.order = subtables.list.iter().enumerate().map(ranked).collect();
        self.sort();
        self.version = Some(subtables.version);
    }

    fn sort(&mut self) {
        // Stable: equal counts keep their order, so a run repeats itself.
        self.order.sort_by_key(|r| std::cmp::Reverse(r.hits));
        self.order.iter_mut().for_each(|r| r.hits /= 2);
        self.lookups = 0;
    }

    /// The flow that `key` belongs to. [`Self::follow`] was called with these subtables.
    pub fn lookup<'g>(
        &mut self,
        guard: &'g Guard<'_>,
        subtables: &'g Subtables,
        view: View<'g, FlowRecord>,
        seeds: &Seeds,
        key: LookupKey<'_>,
    ) -> Option<(u32, &'g FlowRecord)> {
        self.lookups += 1;
        if self.lookups >= SORT_EVERY {
            self.sort();
        }
        for ranked in &mut self.order {
            let Some(sub) = subtables.list.get(ranked.place as usize) else { continue };
            self.searched += 1;
            if let Some(hit) = sub.lookup(guard, view, seeds, key) {
                ranked.hits = ranked.hits.saturating_add(1);
                return Some(hit);
            }
        }
        None
    }
}

impl Subtable {
    /// The flow of this subtable that `key` belongs to.
    #[inline(always)]
    fn lookup<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        view: View<'g, FlowRecord>,
        seeds: &Seeds,
        key: LookupKey<'_>,
    ) -> Option<(u32, &'g FlowRecord)> {
        let tag = tag_of(self.mask.hash(seeds, key));
        // A candidate's slot may have gone to a flow with another mask since; if that one matches, it is right too.
        self.index
            .candidates(guard, tag)
            .filter_map(|slot| Some((slot, view.get(slot)?)))
            .find(|(_, record)| record.matches(key))
    }
}
