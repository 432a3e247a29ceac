//! Which rules of a port match alike: their places, found by half of their fingerprints.
//!
//! A million rules are searched at random, so that what a creation costs is its misses of the cache. Hence open addressing with eight
//! bytes to a rule, one line of which is all that is looked at as a rule; and it can be fetched ahead.

/// A bucket: the tag, and the rule's place plus 1 below it; 0 is an empty one.
type Bucket = u64;

/// See the module's head.
#[derive(Default)]
pub(super) struct Index {
    /// A power of two of them, at most half of which are used; or none.
    buckets: Vec<Bucket>,
    used: usize,
}

/// Buckets of the smallest index.
const LEAST: usize = 64;

fn tag(print: u64) -> u32 {
    (print >> 32) as u32
}

fn bucket(tag: u32, place: u32) -> Bucket {
    u64::from(tag) << 32 | (u64::from(place) + 1)
}

impl Index {
    fn home(&self, tag: u32) -> usize {
        tag as usize & self.buckets.len().wrapping_sub(1)
    }

    /// Buckets from where a search for the tag begins up to the first empty one, with their numbers.
    fn chain(&self, tag: u32) -> impl Iterator<Item = (usize, Bucket)> {
        let (home, last) = (self.home(tag), self.buckets.len().wrapping_sub(1));
        let at = (0..self.buckets.len()).map(move |step| (home + step) & last);
        at.map_while(|at| Some((at, *self.buckets.get(at)?))).take_while(|(_, b)| *b != 0)
    }

    /// Says that a fingerprint will be asked for soon.
    pub(super) fn fetch(&self, print: u64) {
        if let Some(line) = self.buckets.get(self.home(tag(print))) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch reads nothing that a program could see, whatever the address, and SSE is part of x86-64.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        }
    }

    /// A place with this fingerprint's tag that `is` takes.
    pub(super) fn find(&self, print: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag(print);
        let mut places =
            self.chain(tag).filter(|(_, b)| (b >> 32) as u32 == tag).map(|(_, b)| (b as u32) - 1);
        places.find(|place| is(*place))
    }

    /// Adds a place below `u32::MAX`.
    pub(super) fn add(&mut self, print: u64, place: u32) {
        if (self.used + 1) * 2 > self.buckets.len() {
            let more = vec![0; (self.buckets.len() * 2).max(LEAST)];
            for old in std::mem::replace(&mut self.buckets, more).into_iter().filter(|b| *b != 0) {
                self.set((old >> 32) as u32, old);
            }
        }
        self.set(tag(print), bucket(tag(print), place));
        self.used += 1;
    }

    /// Writes a bucket at the end of its chain.
    fn set(&mut self, tag: u32, bucket: Bucket) {
        let at = self.home(tag) + self.chain(tag).count();
        let at = at & self.buckets.len().wrapping_sub(1);
        if let Some(free) = self.buckets.get_mut(at) {
            *free = bucket;
        }
    }

    /// Takes a place out.
    pub(super) fn remove(&mut self, print: u64, place: u32) {
        let tag = tag(print);
        let found = self.chain(tag).find(|(_, b)| *b == bucket(tag, place));
        let Some((mut hole, _)) = found else { return };
        self.used -= 1;
        // What it had pushed aside moves up: whatever lies behind it and is searched from the hole or before.
        let last = self.buckets.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & last;
            let next = self.buckets.get(at).copied().unwrap_or(0);
            if next == 0 {
                break;
            }
            let home = self.home((next >> 32) as u32);
            if at.wrapping_sub(home) & last >= at.wrapping_sub(hole) & last {
                self.put(hole, next);
                hole = at;
            }
        }
        self.put(hole, 0);
    }

    fn put(&mut self, at: usize, bucket: Bucket) {
        if let Some(b) = self.buckets.get_mut(at) {
            *b = bucket;
        }
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against a plain set, with so few tags that chains are long and meet.
    #[test]
    fn it_finds_what_is_in_it_and_nothing_else() {
        let (mut index, mut plain) = (Index::default(), BTreeSet::new());
        let mut random = 1u64;
        let mut next = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for _ in 0..20_000 {
            // Tags at the end of the buckets too, so that chains go around.
            let (print, place) = ((u64::from(u32::MAX) - next(40)) << 32 | next(9), next(50) as u32);
            let known = plain.contains(&(tag(print), place));
            index.fetch(print);
            assert_eq!(index.find(print, |p| p == place), known.then_some(place), "{print:#x} {place}");
            match (known, next(3)) {
                (false, 0 | 1) => {
                    index.add(print, place);
                    plain.insert((tag(print), place));
                }
                (_, 2) => {
                    index.remove(print, place);
                    plain.remove(&(tag(print), place));
                }
                _ => {}
            }
            assert_eq!(index.used, plain.len());
        }
        assert!(plain.len() > 100, "{}", plain.len());
        for (tag, place) in &plain {
            assert!(index.find(u64::from(*tag) << 32, |p| p == *place).is_some());
        }
        index.clear();
        assert_eq!(index.find(u64::MAX, |_| true), None);
    }
}
