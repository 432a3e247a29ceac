//! Hashing of key words.
//!
//! A hash only chooses where to look; every hit is verified by a compare. So the function needs speed and even spread,
//! and secret seeds, lest somebody who chooses packets also chooses the collisions.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Number of independent seeds; more words than that use them in turn.
const SEEDS: usize = 8;

/// The secret of one datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeds([u64; SEEDS]);

/// High and low half of the product, folded.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let r = u128::from(a) * u128::from(b);
    (r as u64) ^ ((r >> 64) as u64)
}

impl Seeds {
    /// From a seed, or from the system's randomness.
    pub fn new(seed: Option<u64>) -> Self {
        let mut x = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Self(std::array::from_fn(|_| {
            // splitmix64
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// Hash of eight words. The four products do not wait for each other.
    #[inline(always)]
    pub fn hash8(&self, w: &[u64; 8]) -> u64 {
        let s = &self.0;
        let a = fold(w[0] ^ s[0], w[1] ^ s[1]);
        let b = fold(w[2] ^ s[2], w[3] ^ s[3]);
        let c = fold(w[4] ^ s[4], w[5] ^ s[5]);
        let d = fold(w[6] ^ s[6], w[7] ^ s[7]);
        self.finish(a.wrapping_add(b.rotate_left(17)) ^ c.wrapping_add(d.rotate_left(31)))
    }

    /// Takes word number `n` into an unfinished hash.
    #[inline(always)]
    pub fn add(&self, hash: u64, n: usize, word: u64) -> u64 {
        fold(hash ^ word, self.0[n % SEEDS])
    }

    /// The value that [`Self::add`] starts from.
    #[inline(always)]
    pub fn start(&self) -> u64 {
        self.0[SEEDS - 1]
    }

    /// Spreads the last word over all bits.
    #[inline(always)]
    pub fn finish(&self, hash: u64) -> u64 {
        fold(hash ^ self.0[0], self.0[1] | 1)
    }

    /// Hash of bytes: UFIDs.
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut h = self.start() ^ bytes.len() as u64;
        for (n, chunk) in bytes.chunks(8).enumerate() {
            let mut w = [0; 8];
            w[..chunk.len()].copy_from_slice(chunk);
            h = self.add(h, n, u64::from_le_bytes(w));
        }
        self.finish(h)
    }
}

/// A [`Hasher`] over [`Seeds`] for the writer's maps: `std`'s own would cost more than the rest of a put.
#[derive(Debug, Clone)]
pub struct SeedHasher {
    seeds: Seeds,
    hash: u64,
    n: usize,
}

impl Hasher for SeedHasher {
    fn finish(&self) -> u64 {
        self.seeds.finish(self.hash)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut w = [0; 8];
            w[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(w));
        }
    }

    fn write_u8(&mut self, i: u8) {
        self.write_u64(u64::from(i));
    }

    fn write_u16(&mut self, i: u16) {
        self.write_u64(u64::from(i));
    }

    fn write_u32(&mut self, i: u32) {
        self.write_u64(u64::from(i));
    }

    fn write_u64(&mut self, i: u64) {
        self.hash = self.seeds.add(self.hash, self.n, i);
        self.n += 1;
    }

    fn write_usize(&mut self, i: usize) {
        self.write_u64(i as u64);
    }
}

impl BuildHasher for Seeds {
    type Hasher = SeedHasher;

    fn build_hasher(&self) -> SeedHasher {
        SeedHasher { seeds: self.clone(), hash: self.start(), n: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn one_bit_of_any_word_changes_the_hash() {
        let seeds = Seeds::new(Some(1));
        let mut seen = HashSet::new();
        assert!(seen.insert(seeds.hash8(&[0; 8])));
        for word in 0..8 {
            for bit in 0..64 {
                let mut w = [0; 8];
                w[word] = 1 << bit;
                assert!(seen.insert(seeds.hash8(&w)), "word {word} bit {bit} collides");
            }
        }
    }

    #[test]
    fn the_low_bits_of_similar_words_spread() {
        let seeds = Seeds::new(Some(2));
        let mut buckets = [0u32; 256];
        for n in 0..25_600u64 {
            let mut w = [7; 8];
            w[3] = n << 32;
            buckets[(seeds.hash8(&w) & 255) as usize] += 1;
        }
        // 100 expected in each, standard deviation 10.
        let (min, max) = (buckets.iter().min().unwrap(), buckets.iter().max().unwrap());
        assert!(*min > 50 && *max < 150, "{min}..{max}");
    }

    #[test]
    fn seeds_differ() {
        assert_eq!(Seeds::new(Some(3)), Seeds::new(Some(3)));
        assert_ne!(Seeds::new(Some(3)), Seeds::new(Some(4)));
        assert_ne!(Seeds::new(None), Seeds::new(None));
    }
}
