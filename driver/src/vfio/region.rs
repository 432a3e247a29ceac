//! Regions of a device: where each is in the device's file, and which parts of it may be mapped.

use super::ioctl;
use flowlift_bus::BusError;
use std::fs::File;
use vfio_bindings::bindings::vfio as sys;

/// Page size in bytes: parts that are mapped begin and end on one.
pub(super) const PAGE: u64 = 4096;

/// A BAR, or configuration space. A BAR that the function does not have is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    /// Size in bytes.
    pub(super) size: u64,
    /// Where it begins in the device's file.
    start: u64,
    readable: bool,
    writable: bool,
    /// Parts that may be mapped, `first..end` in whole pages, ascending and disjoint.
    pub(super) mappable: Vec<(u64, u64)>,
}

impl Region {
    /// A region that is not there.
    pub(super) const fn absent() -> Self {
        Self { size: 0, start: 0, readable: false, writable: false, mappable: Vec::new() }
    }

    /// Place in the device's file of an access, which must lie in the region.
    pub(super) fn at(&self, offset: u64, len: usize) -> Result<u64, BusError> {
        let outside = BusError::OutOfRange { what: "a region", offset, len, size: self.size };
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => self.start.checked_add(offset).ok_or(outside),
            _ => Err(outside),
        }
    }

    /// True if stores to a mapping of it reach the device.
    pub(super) fn writable(&self) -> bool {
        self.writable
    }
}

/// Asks the kernel about a region.
pub(super) fn query(file: &File, index: u32) -> Result<Region, BusError> {
    let mut head = [0; size_of::<sys::vfio_region_info>()];
    let len = head.len() as u32;
    head[..4].copy_from_slice(&len.to_ne_bytes());
    head[8..12].copy_from_slice(&index.to_ne_bytes());
    let bytes = ioctl::with_tail(file, ioctl::DEVICE_GET_REGION_INFO, &head)
        .map_err(|e| BusError::Io { what: "asking about a region", cause: e.into() })?;
    Ok(parse(&bytes))
}

/// Finds a capability in the tail of an answer; `first` is the offset of the first from the start of the answer.
/// Each begins with ID (u16), version (u16) and offset of the next (u32, 0: none).
pub(super) fn capability(bytes: &[u8], first: u32, id: u32) -> Option<&[u8]> {
    let mut at = first as usize;
    // No more capabilities than fit: a list that comes back to itself ends here.
    for _ in 0..bytes.len() / 8 {
        let c = bytes.get(at..).filter(|c| at != 0 && c.len() >= 8)?;
        if u32::from(u16::from_ne_bytes([c[0], c[1]])) == id {
            return Some(c);
        }
        at = word(c, 4) as usize;
    }
    None
}

/// A u32 of an answer; 0 past its end.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

/// A u64 of an answer; 0 past its end.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
}

/// Takes an answer apart: size, flags, index, offset of the first capability (u32 each), size and offset (u64 each).
fn parse(bytes: &[u8]) -> Region {
    let flags = word(bytes, 4);
    let has = |flag| flags & flag != 0;
    let size = long(bytes, 16);
    let mut region = Region {
        size,
        start: long(bytes, 24),
        readable: has(sys::VFIO_REGION_INFO_FLAG_READ),
        writable: has(sys::VFIO_REGION_INFO_FLAG_WRITE),
        mappable: Vec::new(),
    };
    if !has(sys::VFIO_REGION_INFO_FLAG_MMAP) || !region.readable {
        return region;
    }
    let first = if has(sys::VFIO_REGION_INFO_FLAG_CAPS) { word(bytes, 12) } else { 0 };
    match capability(bytes, first, sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
        None => region.mappable.push((0, size)),
        // After the header: number of areas (u32), reserved (u32), then offset and size of each (u64 each).
        Some(sparse) => {
            let areas = sparse.get(16..).unwrap_or(&[]).chunks_exact(16).take(word(sparse, 8) as usize);
            region.mappable.extend(areas.map(|a| (long(a, 0), long(a, 0).saturating_add(long(a, 8)))));
        }
    }
    whole_pages(&mut region.mappable, size);
    region
}

/// Cuts areas to whole pages inside the region, sorts them and joins those that touch.
fn whole_pages(areas: &mut Vec<(u64, u64)>, size: u64) {
    let end = size / PAGE * PAGE;
    areas.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(first, last) in areas.iter() {
        let (first, last) =
            (first.checked_next_multiple_of(PAGE).unwrap_or(end), last.min(end) / PAGE * PAGE);
        if first >= last {
            continue;
        }
        match joined.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    *areas = joined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer of the kernel with these areas.
    fn answer(size: u64, flags: u32, areas: &[(u64, u64)]) -> Vec<u8> {
        let mut b = vec![0; 32];
        b[4..8].copy_from_slice(&flags.to_ne_bytes());
        b[12..16].copy_from_slice(&32u32.to_ne_bytes());
        b[16..24].copy_from_slice(&size.to_ne_bytes());
        b[24..32].copy_from_slice(&0x100_0000_0000u64.to_ne_bytes());
        b.extend([1, 0, 1, 0, 0, 0, 0, 0]);
        b.extend((areas.len() as u32).to_ne_bytes());
        b.extend([0; 4]);
        for (offset, len) in areas {
            b.extend(offset.to_ne_bytes());
            b.extend(len.to_ne_bytes());
        }
        let len = b.len() as u32;
        b[..4].copy_from_slice(&len.to_ne_bytes());
        b
    }

    const READ_WRITE: u32 = sys::VFIO_REGION_INFO_FLAG_READ | sys::VFIO_REGION_INFO_FLAG_WRITE;
    const MAP: u32 = READ_WRITE | sys::VFIO_REGION_INFO_FLAG_MMAP;
    const SPARSE: u32 = MAP | sys::VFIO_REGION_INFO_FLAG_CAPS;

    #[test]
    fn only_what_the_kernel_offers_is_mapped() {
        assert_eq!(parse(&answer(0x4000, READ_WRITE, &[])).mappable, []);
        assert_eq!(parse(&answer(0x4000, MAP, &[])).mappable, [(0, 0x4000)]);
        assert_eq!(parse(&answer(0x4000, SPARSE, &[])).mappable, [], "sparse, and nothing of it");
        let around = [(0x3000, 0x1000), (0, 0x1000), (0x1000, 0x1000)];
        let r = parse(&answer(0x4000, SPARSE, &around));
        assert_eq!(r.mappable, [(0, 0x2000), (0x3000, 0x4000)], "the page of the MSI-X table is left out");
        assert_eq!((r.size, r.start, r.writable()), (0x4000, 0x100_0000_0000, true));
        assert_eq!(parse(&answer(0x20, MAP, &[])).mappable, [], "a BAR smaller than a page");
    }

    #[test]
    fn accesses_outside_are_refused() {
        let r = parse(&answer(0x100, READ_WRITE, &[]));
        assert_eq!(r.at(0xfc, 4).unwrap(), 0x100_0000_00fc);
        for (offset, len) in [(0xfd, 4), (0x100, 1), (u64::MAX, 2), (u64::MAX - 1, 8)] {
            assert!(r.at(offset, len).is_err(), "{offset:#x}");
        }
        assert!(Region::absent().at(0, 1).is_err());
    }

    proptest! {
        /// Whatever stands in an answer, what is mapped are whole pages inside the region, ascending and disjoint.
        #[test]
        fn any_answer_gives_areas_inside_the_region(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            size in 0u64..0x10_0000,
            first in 0u8..64,
        ) {
            if bytes.len() >= 32 {
                bytes[4] |= 0x0f;
                bytes[12..16].copy_from_slice(&[first, 0, 0, 0]);
                bytes[16..24].copy_from_slice(&size.to_ne_bytes());
            }
            let r = parse(&bytes);
            let mut end = 0;
            for (a, b) in r.mappable {
                prop_assert!(a >= end && a < b && b <= r.size && a % PAGE == 0 && b % PAGE == 0);
                end = b;
            }
        }
    }
}
