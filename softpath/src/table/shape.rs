//! Masks in the form that lookups walk: the words they touch, and nothing else.

use super::hash::Seeds;
use crate::extract::KeyBuf;
use flowlift_flow::key::{HOT_WORDS, KEY_WORDS};
use flowlift_flow::{AttrSet, Key, Mask};

/// A mask: its first cache line whole, of the rest only the words that are not zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[repr(align(64))]
pub struct SparseMask {
    /// Words 0 to 7.
    pub hot: [u64; HOT_WORDS],
    /// Number and value of each word from 8 on that is not zero.
    pub rest: Box<[(u8, u64)]>,
}

const _: () = assert!(KEY_WORDS <= 256);

/// The hot words of a key.
#[inline(always)]
pub fn hot(key: &Key) -> &[u64; HOT_WORDS] {
    let (hot, _) = key.words().split_first_chunk().unwrap_or((&[0; HOT_WORDS], &[]));
    hot
}

/// A key to look up, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct LookupKey<'a> {
    /// The key.
    pub key: &'a Key,
    /// All words after the hot line are zero: so it is with most packets, and masks nearly always have such words (OVS's
    /// name the packet type), so this saves most of the work that they would cost.
    pub hot_only: bool,
}

impl<'a> LookupKey<'a> {
    /// A key of which nothing is known.
    pub fn new(key: &'a Key) -> Self {
        Self { key, hot_only: key.words()[HOT_WORDS..].iter().all(|w| *w == 0) }
    }

    /// The key of an extracted packet.
    #[inline(always)]
    pub fn of(buf: &'a KeyBuf) -> Self {
        Self { key: buf.key(), hot_only: buf.hot_only() }
    }
}

/// Two lines of words, bit by bit.
#[inline(always)]
pub(crate) fn and(a: &[u64; HOT_WORDS], b: &[u64; HOT_WORDS]) -> [u64; HOT_WORDS] {
    let mut out = *a;
    for i in 0..HOT_WORDS {
        out[i] &= b[i];
    }
    out
}

impl SparseMask {
    /// From a mask.
    pub fn new(mask: &Mask) -> Self {
        let words = mask.0.words();
        let rest = (HOT_WORDS..KEY_WORDS).filter(|&i| words[i] != 0).map(|i| (i as u8, words[i])).collect();
        Self { hot: *hot(&mask.0), rest }
    }

    /// Back to a mask.
    pub fn to_mask(&self) -> Mask {
        let mut mask = Mask::default();
        let words = mask.0.words_mut();
        words[..HOT_WORDS].copy_from_slice(&self.hot);
        for &(i, m) in &self.rest {
            words[usize::from(i)] = m;
        }
        mask
    }

    /// Hot words of `key` under the mask.
    #[inline(always)]
    pub fn masked_hot(&self, key: &Key) -> [u64; HOT_WORDS] {
        and(hot(key), &self.hot)
    }

    /// The other words of `key` under the mask, in the order of `rest`.
    pub fn masked_rest<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = u64> + 'a {
        let words = key.words();
        self.rest.iter().map(|&(i, m)| words[usize::from(i)] & m)
    }

    /// Hash of `key` under the mask. Words after the hot line that are zero do not change it.
    #[inline(always)]
    pub fn hash(&self, seeds: &Seeds, key: LookupKey<'_>) -> u64 {
        let h = seeds.hash8(&self.masked_hot(key.key));
        if key.hot_only || self.rest.is_empty() { h } else { hash_rest(&self.rest, seeds, h, key.key) }
    }

    /// True if `key` has under this mask the words `want_hot` and `want_rest`; if `rest_zero`, the latter are all zero, and
    /// not looked at.
    #[inline(always)]
    pub fn matches(
        &self,
        want_hot: &[u64; HOT_WORDS],
        want_rest: &[u64],
        rest_zero: bool,
        key: LookupKey<'_>,
    ) -> bool {
        let k = hot(key.key);
        // All eight, without a branch: this compiles to a few vector operations.
        let mut diff = 0;
        for i in 0..HOT_WORDS {
            diff |= (k[i] ^ want_hot[i]) & self.hot[i];
        }
        diff == 0
            && match (key.hot_only, rest_zero) {
                (true, rest_zero) => rest_zero,
                (false, true) => self.masked_rest(key.key).all(|w| w == 0),
                (false, false) => self.masked_rest(key.key).eq(want_rest.iter().copied()),
            }
    }

    /// Every bit that is in both masks.
    pub fn common(&self, other: &Self) -> Self {
        let mut mask = self.to_mask();
        mask.0.words_mut().iter_mut().zip(other.to_mask().0.words()).for_each(|(a, b)| *a &= b);
        Self::new(&mask)
    }
}

/// Takes the words of `key` under these masks into a hash, unless all are zero.
pub(crate) fn hash_rest(rest: &[(u8, u64)], seeds: &Seeds, hash: u64, key: &Key) -> u64 {
    let words = key.words();
    let mut any = 0;
    let mut h = hash;
    for (n, &(i, m)) in rest.iter().enumerate() {
        let w = words[usize::from(i)] & m;
        any |= w;
        h = seeds.add(h, n, w);
    }
    if any == 0 { hash } else { seeds.finish(h) }
}

/// What the matches of many flows have in common, kept once: the mask, and which attributes were named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The mask.
    pub mask: SparseMask,
    /// The attributes that were named (R20).
    pub attrs: AttrSet,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(words: &[(usize, u64)]) -> Key {
        let mut k = Key::default();
        for &(i, w) in words {
            k.words_mut()[i] = w;
        }
        k
    }

    proptest! {
        /// The sparse form gives the answers of the plain one.
        #[test]
        fn sparse_and_plain_masks_agree(
            mask in prop::collection::vec((0..KEY_WORDS, any::<u64>()), 0..10),
            want in prop::collection::vec((0..KEY_WORDS, any::<u64>()), 0..10),
            flip in prop::option::of((0..KEY_WORDS, 0..64u32)),
        ) {
            let mask = Mask(key(&mask));
            let sparse = SparseMask::new(&mask);
            prop_assert_eq!(&sparse.to_mask(), &mask);
            let want = key(&want);
            let mut packet = want.clone();
            if let Some((w, bit)) = flip {
                packet.words_mut()[w] ^= 1 << bit;
            }
            let rest: Vec<u64> = sparse.masked_rest(&want).collect();
            let rest_zero = rest.iter().all(|w| *w == 0);
            let (known, unknown) = (LookupKey::new(&packet), LookupKey { key: &packet, hot_only: false });
            let fast = sparse.matches(&sparse.masked_hot(&want), &rest, rest_zero, known);
            prop_assert_eq!(fast, sparse.matches(&sparse.masked_hot(&want), &rest, rest_zero, unknown));
            prop_assert_eq!(fast, mask.matches(&want, &packet));
            let seeds = Seeds::new(Some(5));
            if fast {
                prop_assert_eq!(sparse.hash(&seeds, LookupKey::new(&want)), sparse.hash(&seeds, known));
                prop_assert_eq!(sparse.hash(&seeds, known), sparse.hash(&seeds, unknown));
            }
        }
    }
}
