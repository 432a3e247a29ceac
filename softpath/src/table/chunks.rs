//! An array by slot number that grows without moving, for readers that do not wait.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::OnceLock;
use zerocopy::FromZeros;

/// Elements of a chunk. A power of two, so that finding one is a shift and a mask.
const CHUNK: usize = 1 << 16;

/// A fixed number of elements, all zero bytes at first. Memory is taken a chunk at a time, and by the system's page as
/// elements are touched.
#[derive(Debug)]
pub struct Chunks<T> {
    chunks: Box<[OnceLock<Box<[T; CHUNK]>>]>,
}

impl<T: FromZeros> Chunks<T> {
    /// For numbers from 0 to `max`.
    pub fn new(max: u32) -> Self {
        Self { chunks: (0..=max as usize / CHUNK).map(|_| OnceLock::new()).collect() }
    }

    /// The element, if its chunk is there.
    #[inline(always)]
    pub fn get(&self, n: u32) -> Option<&T> {
        let chunk = self.chunks.get(n as usize / CHUNK)?.get()?;
        Some(&chunk[n as usize % CHUNK])
    }

    /// The element; `None` only beyond the maximum.
    #[inline(always)]
    pub fn get_or_grow(&self, n: u32) -> Option<&T> {
        let chunk = self.chunks.get(n as usize / CHUNK)?;
        let chunk = match chunk.get() {
            Some(chunk) => chunk,
            None => Self::grow(chunk),
        };
        Some(&chunk[n as usize % CHUNK])
    }

    #[cold]
    fn grow(chunk: &OnceLock<Box<[T; CHUNK]>>) -> &[T; CHUNK] {
        chunk.get_or_init(|| {
            <[T; CHUNK]>::new_box_zeroed().unwrap_or_else(|_| handle_alloc_error(Layout::new::<[T; CHUNK]>()))
        })
    }

    /// Every element that is there.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().filter_map(OnceLock::get_mut).flat_map(|c| c.iter_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_number_has_its_own_element() {
        let c = Chunks::<AtomicU64>::new(200_000);
        assert!(c.get(150_000).is_none(), "no chunk before its first use");
        let numbers = [0, 1, 65_535, 65_536, 131_072, 200_000];
        for (i, n) in numbers.into_iter().enumerate() {
            c.get_or_grow(n).unwrap().store(i as u64 + 1, Ordering::Relaxed);
        }
        for (i, n) in numbers.into_iter().enumerate() {
            assert_eq!(c.get(n).unwrap().load(Ordering::Relaxed), i as u64 + 1);
        }
        assert_eq!(c.get(2).unwrap().load(Ordering::Relaxed), 0);
        assert!(c.get_or_grow(300_000).is_none() && c.get(u32::MAX).is_none());
    }
}
