//! Masks in the form that lookups walk: the words they touch, and nothing else.

use super::hash::Seeds;
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
        let k = hot(key);
        std::array::from_fn(|i| k[i] & self.hot[i])
    }

    /// The other words of `key` under the mask, in the order of `rest`.
    pub fn masked_rest<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = u64> + 'a {
        let words = key.words();
        self.rest.iter().map(|&(i, m)| words[usize::from(i)] & m)
    }

    /// Hash of `key` under the mask.
    #[inline(always)]
    pub fn hash(&self, seeds: &Seeds, key: &Key) -> u64 {
        let h = seeds.hash8(&self.masked_hot(key));
        if self.rest.is_empty() { h } else { self.hash_rest(seeds, h, key) }
    }

    fn hash_rest(&self, seeds: &Seeds, hash: u64, key: &Key) -> u64 {
        let h = self.masked_rest(key).enumerate().fold(hash, |h, (n, w)| seeds.add(h, n, w));
        seeds.finish(h)
    }

    /// True if `key` has under this mask the words `want_hot` and `want_rest`.
    #[inline(always)]
    pub fn matches(&self, want_hot: &[u64; HOT_WORDS], want_rest: &[u64], key: &Key) -> bool {
        let k = hot(key);
        // All eight, without a branch: this compiles to a few vector operations.
        let mut diff = 0;
        for i in 0..HOT_WORDS {
            diff |= (k[i] ^ want_hot[i]) & self.hot[i];
        }
        diff == 0 && (self.rest.is_empty() || self.masked_rest(key).eq(want_rest.iter().copied()))
    }

    /// Every bit that is in both masks.
    pub fn common(&self, other: &Self) -> Self {
        let mut mask = self.to_mask();
        mask.0.words_mut().iter_mut().zip(other.to_mask().0.words()).for_each(|(a, b)| *a &= b);
        Self::new(&mask)
    }
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
            let fast = sparse.matches(&sparse.masked_hot(&want), &rest, &packet);
            prop_assert_eq!(fast, mask.matches(&want, &packet));
            let seeds = Seeds::new(Some(5));
            if fast {
                prop_assert_eq!(sparse.hash(&seeds, &want), sparse.hash(&seeds, &packet));
            }
        }
    }
}
