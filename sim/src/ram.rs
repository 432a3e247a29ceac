//! The device's own memory, as large as its tables can become.
//!
//! A NIC's RAM is there from the start: nothing is allocated for an entry, and nothing moves when a table fills. The
//! host pays only for what was touched, in huge pages where it has them: a million entries found by hash are a miss of
//! the TLB each otherwise.

use memmap2::{Advice, MmapMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// From so many bytes on, huge pages are asked for. Less is covered by the TLB as it is, and a device that is reset
/// often would spend its time with zeroing.
const HUGE: usize = 16 << 20;

/// Zeroed memory, seen as bytes or as an array of records.
#[derive(Debug, Default)]
pub(crate) struct Ram(Memory);

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    /// Where nothing can be mapped. Words, so that records are aligned.
    Heap(Vec<u64>),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Ram {
    /// At least `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        Self(match MmapMut::map_anon(len) {
            Ok(map) => {
                if len >= HUGE {
                    // A kernel without huge pages refuses, and gives small ones.
                    let _ = map.advise(Advice::HugePage);
                }
                Memory::Mapped(map)
            }
            Err(_) => Memory::Heap(vec![0; len.div_ceil(size_of::<u64>())]),
        })
    }

    /// Touches the first `len` bytes, so that later nobody waits for the host to give them.
    pub(crate) fn populate(&self, len: usize) {
        if let Memory::Mapped(map) = &self.0 {
            // Older kernels do not know this advice; then pages come as they are touched.
            let _ = map.advise_range(Advice::PopulateWrite, 0, len.min(map.len()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn all(&self) -> &[u8] {
        match &self.0 {
            Memory::Mapped(map) => map,
            Memory::Heap(words) => words.as_bytes(),
        }
    }

    fn all_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Mapped(map) => map,
            Memory::Heap(words) => words.as_mut_bytes(),
        }
    }

    /// `len` bytes from `at` on; `None` past the end.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.all().get(at..at.checked_add(len)?)
    }

    /// The same, to be written.
    pub(crate) fn bytes_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.all_mut().get_mut(at..at.checked_add(len)?)
    }

    /// Record `index` of an array of them; `None` past the end.
    pub(crate) fn record<T: FromBytes + KnownLayout + Immutable>(&self, index: usize) -> Option<&T> {
        let at = index.checked_mul(size_of::<T>())?;
        T::ref_from_bytes(self.bytes(at, size_of::<T>())?).ok()
    }

    /// The same, to be written.
    pub(crate) fn record_mut<T: FromBytes + IntoBytes + KnownLayout>(
        &mut self,
        index: usize,
    ) -> Option<&mut T> {
        let at = index.checked_mul(size_of::<T>())?;
        T::mut_from_bytes(self.bytes_mut(at, size_of::<T>())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_either_kind_is_zeroed_aligned_and_bounded() {
        for mut ram in [Ram::new(104), Ram(Memory::Heap(vec![0; 13]))] {
            assert_eq!(ram.record::<u64>(12), Some(&0));
            *ram.record_mut::<u64>(12).unwrap() = u64::from_ne_bytes(*b"abcdefgh");
            assert_eq!(ram.bytes(98, 2), Some(&b"cd"[..]));
            assert_eq!(ram.record::<u64>(1 << 61), None);
            assert_eq!(ram.bytes(usize::MAX, 2), None);
            assert_eq!(ram.bytes_mut(1 << 40, 1), None);
        }
        let none = Ram::default();
        assert!(none.is_empty() && none.record::<u8>(0).is_none());
        assert!(!Ram::new(1).is_empty());
    }
}
