//! DMA memory for drivers: which addresses are free, and few large mappings that everything lives in.
//!
//! The number of mappings depends on the kind of device, never on how many flows it holds: VFIO, vfio-user and an IOMMU
//! each have a limit on them, and each costs the device a page-table walk of its own.

use flowlift_bus::{BusError, DmaDirection, DmaDomain, DmaMem, IovaRange, Mapping};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// First-fit allocator over the address ranges of a DMA domain.
///
/// The lowest MiB is left out, so that a null pointer in a descriptor faults, and a page stays free after each block,
/// so that an overrun of one does not reach the next.
#[derive(Debug)]
pub struct IovaAllocator {
    free: Vec<IovaRange>,
    page: u64,
}

impl IovaAllocator {
    /// Addresses below this are never given out.
    const FLOOR: u64 = 1 << 20;

    /// Takes the ranges as a transport reports them; empty and reversed ones are dropped, overlapping ones merged.
    /// `page_sizes` is the domain's bitmap; its smallest page is the granule (4 KiB at least).
    pub fn new(ranges: &[IovaRange], page_sizes: u64) -> Self {
        let page = match page_sizes.trailing_zeros() {
            bits @ 12..=30 => 1 << bits,
            _ => 4096,
        };
        let mut sorted: Vec<_> = ranges.iter().filter(|r| r.first <= r.last).copied().collect();
        sorted.sort_by_key(|r| r.first);
        let mut free: Vec<IovaRange> = Vec::new();
        for r in sorted {
            match free.last_mut() {
                Some(l) if r.first <= l.last => l.last = l.last.max(r.last),
                _ => free.push(IovaRange { first: r.first.max(Self::FLOOR), last: r.last }),
            }
        }
        free.retain(|r| r.first <= r.last);
        Self { free, page }
    }

    /// A free block of `len` bytes (rounded up to pages), aligned to a page. `None`: no range has room.
    pub fn alloc(&mut self, len: u64) -> Option<u64> {
        let need = len.max(1).checked_next_multiple_of(self.page)?.checked_add(self.page)?;
        for (i, r) in self.free.iter_mut().enumerate() {
            let Some(first) = r.first.checked_next_multiple_of(self.page) else { continue };
            let Some(last) = first.checked_add(need - 1) else { continue };
            if last > r.last {
                continue;
            }
            if last == r.last {
                self.free.remove(i);
            } else {
                r.first = last + 1;
            }
            return Some(first);
        }
        None
    }
}

/// Offset of a piece in an arena, in bytes.
pub(crate) type Offset = usize;

/// Collects the pieces of an arena before its memory exists.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    len: usize,
}

impl Layout {
    /// Room for `len` bytes at a multiple of 64: rings start on a cache line.
    pub(crate) fn add(&mut self, len: usize) -> Offset {
        let at = self.len.next_multiple_of(64);
        self.len = at + len;
        at
    }
}

/// One mapping with many pieces in it.
pub(crate) struct Arena {
    mapping: Mapping,
}

impl Arena {
    /// Allocates and maps zeroed memory for a layout.
    pub(crate) fn new(
        domain: &dyn DmaDomain,
        iovas: &mut IovaAllocator,
        layout: &Layout,
        direction: DmaDirection,
    ) -> Result<Self, BusError> {
        let len = (layout.len.max(1) as u64).next_multiple_of(iovas.page);
        let mem = Arc::new(DmaMem::new(len as usize)?);
        let iova =
            iovas.alloc(len).ok_or(BusError::Map { iova: 0, len, why: "no IOVA range has room".into() })?;
        Ok(Self { mapping: domain.map(mem, iova, direction)? })
    }

    /// The memory.
    pub(crate) fn mem(&self) -> &DmaMem {
        self.mapping.mem()
    }

    /// The device's address of a piece.
    pub(crate) fn iova(&self, at: Offset) -> u64 {
        self.mapping.iova() + at as u64
    }

    /// Zeroes `len` bytes.
    pub(crate) fn zero(&self, at: Offset, len: usize) -> Result<(), BusError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROES.len());
            self.mem().write_bytes(at + done, &ZEROES[..n])?;
            done += n;
        }
        Ok(())
    }
}

/// A ring that the device fills: elements of `size` bytes, each with its sequence number (index + 1) in a u32 at
/// `seq_at`, stored last.
pub(crate) struct FilledRing {
    /// Offset of element 0 in the arena.
    pub(crate) at: Offset,
    /// Elements, a power of two.
    pub(crate) elements: u32,
    size: usize,
    seq_at: usize,
    /// Index of the next element to consume; free-running.
    pub(crate) head: u32,
}

impl FilledRing {
    pub(crate) fn new(layout: &mut Layout, elements: u32, size: usize, seq_at: usize) -> Self {
        Self { at: layout.add(elements as usize * size), elements, size, seq_at, head: 0 }
    }

    /// Copies the element `ahead` places after the next one to `out`, if the device has written it. One copy is made
    /// and only that is looked at: the device may rewrite its ring at any time.
    pub(crate) fn peek(&self, arena: &Arena, ahead: u32, out: &mut [u8]) -> Result<bool, BusError> {
        let index = self.head.wrapping_add(ahead);
        let at = self.at + (index & (self.elements - 1)) as usize * self.size;
        // The sequence number and the four bytes after it are one aligned word, stored with release.
        let word = arena.mem().load_u64(at + self.seq_at, Ordering::Acquire)?;
        if word as u32 != index.wrapping_add(1) {
            return Ok(false);
        }
        arena.mem().read_bytes(at, out)?;
        Ok(true)
    }

    /// Forgets everything, for a queue that starts anew.
    pub(crate) fn restart(&mut self, arena: &Arena) -> Result<(), BusError> {
        self.head = 0;
        arena.zero(self.at, self.elements as usize * self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last }
    }

    #[test]
    fn blocks_stay_in_the_ranges_and_out_of_the_lowest_mib() {
        let mut a = IovaAllocator::new(&[range(0, 0x0010_3fff), range(0xfef0_0000, 0xfef0_ffff)], 4096);
        assert_eq!(a.alloc(0x1000), Some(0x0010_0000));
        assert_eq!(a.alloc(0x2000), Some(0xfef0_0000), "two pages and a guard do not fit before the hole");
        assert_eq!(a.alloc(1), Some(0x0010_2000));
        assert_eq!(a.alloc(0x10_0000), None);
        assert_eq!(a.alloc(u64::MAX), None);
    }

    #[test]
    fn odd_ranges_from_a_transport_do_no_harm() {
        let odd = [range(9, 3), range(u64::MAX - 5, u64::MAX), range(0, u64::MAX), range(0x200000, 0x300000)];
        let mut a = IovaAllocator::new(&odd, 0);
        assert_eq!(a.alloc(4096), Some(1 << 20));
        let mut none = IovaAllocator::new(&[range(u64::MAX - 5, u64::MAX)], u64::MAX);
        assert_eq!(none.alloc(1), None);
    }

    #[test]
    fn large_pages_align_blocks() {
        let mut a = IovaAllocator::new(&[range(0x10_1000, 1 << 40)], 1 << 21);
        assert_eq!(a.alloc(5), Some(0x20_0000));
        assert_eq!(a.alloc(5), Some(0x60_0000));
    }

    proptest! {
        /// Whatever is asked for: blocks are disjoint, aligned, inside the ranges, and have a guard page after them.
        #[test]
        fn blocks_are_disjoint(lens in prop::collection::vec(1u64..40_000, 1..50)) {
            let ranges = [range(0x10_0800, 0x14_0000), range(0x20_0000, 0x40_0000)];
            let mut a = IovaAllocator::new(&ranges, 4096);
            let mut got: Vec<(u64, u64)> = Vec::new();
            for len in lens {
                let Some(at) = a.alloc(len) else { continue };
                let end = at + len.next_multiple_of(4096) + 4096;
                prop_assert!(at % 4096 == 0 && ranges.iter().any(|r| r.first <= at && end - 1 <= r.last));
                prop_assert!(got.iter().all(|&(b, e)| end <= b || e <= at), "{:x} {:x?}", at, got);
                got.push((at, end));
            }
        }
    }
}
