//! A flow as readers see it: immutable, two cache lines, everything that flows share kept once.
//!
//! To change a flow's actions the writer puts another record in its slot; a reader has the old one or the new one, never
//! a mixture.

use super::hash::Seeds;
use super::shape::{LookupKey, Shape, SparseMask};
use crate::actions::Program;
use flowlift_flow::key::{HOT_WORDS, KEY_WORDS};
use flowlift_flow::{Action, Flow, Key, Match, Ufid};
use std::sync::Arc;

/// Actions of flows: as installed, for dumps, and compiled. Equal lists are stored once. The alignment keeps the count of
/// the flows that have them, which the writer changes all the time, off the cache line that workers read.
#[derive(Debug)]
#[repr(align(64))]
pub struct Actions {
    /// As installed.
    pub list: Vec<Action>,
    /// Compiled.
    pub program: Program,
}

/// A flow's name within one datapath. A slot is used again after a delete, an ID is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    /// Place in the flow table: small numbers, for arrays beside it.
    pub slot: u32,
    /// Tells the flows apart that had this slot.
    pub generation: u32,
}

/// A flow. The first line is what a lookup compares.
#[derive(Debug)]
#[repr(C)]
pub struct FlowRecord {
    /// Masked key, words 0 to 7.
    hot: [u64; HOT_WORDS],
    /// Mask and attributes.
    shape: Arc<Shape>,
    actions: Arc<Actions>,
    /// The masked key's other words, in the mask's order, unless all are zero; then, for R20, pairs of word number and bits
    /// outside the mask.
    cold: Box<[u64]>,
    generation: u32,
    stats_generation: u32,
    ufid: Option<Ufid>,
    /// The masked key's other words are all zero.
    rest_zero: bool,
}

const _: () = assert!(size_of::<FlowRecord>() <= 128);

impl FlowRecord {
    /// From a match. `shape` is that of the match.
    pub(super) fn new(
        matching: &Match,
        ufid: Option<Ufid>,
        shape: Arc<Shape>,
        actions: Arc<Actions>,
        generation: u32,
    ) -> Self {
        let mask = &shape.mask;
        let hot_words = mask.masked_hot(&matching.key);
        let mut cold: Vec<u64> = mask.masked_rest(&matching.key).collect();
        let masks = matching.mask.0.words();
        let rest_zero = cold.iter().all(|w| *w == 0);
        if rest_zero {
            cold = Vec::new();
        }
        for (i, (w, m)) in matching.key.words().iter().zip(masks).enumerate() {
            if w & !m != 0 {
                cold.extend([i as u64, w & !m]);
            }
        }
        let cold = cold.into();
        Self {
            hot: hot_words,
            shape,
            actions,
            cold,
            generation,
            stats_generation: generation,
            ufid,
            rest_zero,
        }
    }

    /// The same flow with other actions or cleared counters.
    pub(super) fn with(&self, actions: Arc<Actions>, stats_generation: u32) -> Self {
        Self {
            hot: self.hot,
            shape: Arc::clone(&self.shape),
            actions,
            cold: self.cold.clone(),
            generation: self.generation,
            stats_generation,
            ufid: self.ufid,
            rest_zero: self.rest_zero,
        }
    }

    /// True if a packet with this key is the flow's.
    #[inline(always)]
    pub fn matches(&self, key: LookupKey<'_>) -> bool {
        self.shape.mask.matches(&self.hot, self.rest(), self.rest_zero, key)
    }

    /// Words of the masked key after the hot line; empty if all are zero.
    #[inline(always)]
    fn rest(&self) -> &[u64] {
        let words = if self.rest_zero { 0 } else { self.shape.mask.rest.len() };
        &self.cold[..words.min(self.cold.len())]
    }

    /// True if its mask is `mask` and its masked key that of `key`.
    pub(super) fn is_match(&self, mask: &SparseMask, key: &Key) -> bool {
        self.shape.mask == *mask && self.matches(LookupKey::new(key))
    }

    /// Its compiled actions.
    #[inline(always)]
    pub fn program(&self) -> &Program {
        &self.actions.program
    }

    /// Its actions.
    pub fn actions(&self) -> &Arc<Actions> {
        &self.actions
    }

    /// Its mask and attributes.
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    /// Its handle, if the user gave one.
    pub fn ufid(&self) -> Option<&Ufid> {
        self.ufid.as_ref()
    }

    /// Words 0 to 7 of its masked key.
    pub(super) fn hot(&self) -> &[u64; HOT_WORDS] {
        &self.hot
    }

    /// Its generation, the other half of a [`FlowId`].
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Which counters are its own: changes when they are cleared.
    #[inline(always)]
    pub fn stats_generation(&self) -> u32 {
        self.stats_generation
    }

    /// The key as installed under the mask.
    pub fn masked_key(&self) -> Key {
        let mut key = Key::default();
        let words = key.words_mut();
        words[..HOT_WORDS].copy_from_slice(&self.hot);
        for (&(i, _), w) in self.shape.mask.rest.iter().zip(self.rest()) {
            words[usize::from(i)] = *w;
        }
        key
    }

    /// The match, exactly as installed (R20).
    pub fn matching(&self) -> Match {
        let mut key = self.masked_key();
        let outside = self.cold.get(self.rest().len()..).unwrap_or_default();
        let (pairs, _) = outside.as_chunks::<2>();
        for [i, w] in pairs {
            key.words_mut()[*i as usize % KEY_WORDS] |= w;
        }
        Match { key, mask: self.shape.mask.to_mask(), attrs: self.shape.attrs }
    }

    /// The flow, as installed.
    pub fn flow(&self) -> Flow {
        Flow { ufid: self.ufid, matching: self.matching(), actions: self.actions.list.clone() }
    }

    /// Hash of the match: what [`SparseMask::hash`] gives for a packet of this flow.
    pub(super) fn hash(&self, seeds: &Seeds) -> u64 {
        let h = seeds.hash8(&self.hot);
        if self.rest_zero {
            return h;
        }
        let rest = self.rest().iter().enumerate();
        seeds.finish(rest.fold(h, |h, (n, w)| seeds.add(h, n, *w)))
    }

    /// Takes the words after the hot line into `hash`, under a mask that has no bit that its own lacks. Words that are zero
    /// do not change it.
    pub(super) fn hash_rest_under(&self, mask: &SparseMask, seeds: &Seeds, hash: u64) -> u64 {
        if self.rest_zero || mask.rest.is_empty() {
            return hash;
        }
        // Both lists ascend, and the other one has no word that this one lacks.
        let mut own = self.shape.mask.rest.iter().zip(self.rest());
        let (mut any, mut h) = (0, hash);
        for (n, (i, m)) in mask.rest.iter().enumerate() {
            let word = own.find(|((j, _), _)| j == i).map_or(0, |(_, word)| word & m);
            any |= word;
            h = seeds.add(h, n, word);
        }
        if any == 0 { hash } else { seeds.finish(h) }
    }

    /// Bytes of memory of its own: not what it shares with other flows.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.cold)
    }

    /// True if some packet is this flow's and `other`'s.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.masked_key(), other.masked_key());
        let (ma, mb) = (self.shape.mask.to_mask(), other.shape.mask.to_mask());
        let words = a.words().iter().zip(b.words()).zip(ma.0.words().iter().zip(mb.0.words()));
        words.into_iter().all(|((a, b), (ma, mb))| (a ^ b) & ma & mb == 0)
    }
}
