//! What the IOMMU behind a container takes: addresses, page sizes, number of mappings.

use super::ioctl;
use super::iommufd::AddressSpace;
use super::region::{capability, long, word};
use flowlift_bus::{BusError, IovaRange};
use vfio_bindings::bindings::vfio as sys;
use vfio_ioctls::VfioContainer;

/// Mappings that a container takes where the kernel does not say: vfio_iommu_type1's default for
/// `dma_entry_limit`.
const DEFAULT_LIMIT: usize = 65_535;
/// Addresses that a kernel without the capability is trusted with: 39 bits, which every VT-d has, without the window
/// of the interrupts.
const DEFAULT_RANGES: [IovaRange; 2] =
    [IovaRange { first: 0, last: 0xfedf_ffff }, IovaRange { first: 0xfef0_0000, last: (1 << 39) - 1 }];

/// An IOMMU's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IommuInfo {
    /// Addresses, ascending.
    pub(super) ranges: Vec<IovaRange>,
    /// Bitmap of page sizes in bytes.
    pub(super) page_sizes: u64,
    /// Mappings at once.
    pub(super) max_mappings: usize,
}

/// Asks the kernel. The container has an IOMMU once its first group has joined.
pub(super) fn query(container: &VfioContainer) -> Result<IommuInfo, BusError> {
    let mut head = [0; size_of::<sys::vfio_iommu_type1_info>()];
    let len = head.len() as u32;
    head[..4].copy_from_slice(&len.to_ne_bytes());
    let bytes = ioctl::with_tail(container, ioctl::IOMMU_GET_INFO, &head)
        .map_err(|e| BusError::Io { what: "asking about the IOMMU", cause: e.into() })?;
    Ok(parse(&bytes))
}

/// Asks an address space of iommufd, which has no limit of its own on mappings.
pub(super) fn query_iommufd(space: &AddressSpace) -> Result<IommuInfo, BusError> {
    let (ranges, alignment) =
        space.ranges().map_err(|cause| BusError::Io { what: "asking about the IOMMU", cause })?;
    // Mappings need this alignment at least; larger pages are the kernel's own choice.
    Ok(IommuInfo { ranges, page_sizes: alignment.max(1).next_power_of_two(), max_mappings: DEFAULT_LIMIT })
}

/// Takes an answer apart: size, flags (u32 each), page sizes (u64), offset of the first capability (u32).
fn parse(bytes: &[u8]) -> IommuInfo {
    let flags = word(bytes, 4);
    let first = if flags & sys::VFIO_IOMMU_INFO_CAPS != 0 { word(bytes, 16) } else { 0 };
    let mut ranges: Vec<IovaRange> = DEFAULT_RANGES.into();
    // After the header: number of ranges (u32), reserved (u32), then first and last of each (u64 each).
    if let Some(c) = capability(bytes, first, sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
        let all = c.get(16..).unwrap_or(&[]).chunks_exact(16).take(word(c, 8) as usize);
        ranges = all.map(|r| IovaRange { first: long(r, 0), last: long(r, 8) }).collect();
        ranges.retain(|r| r.first <= r.last);
        ranges.sort_by_key(|r| r.first);
    }
    let limit = capability(bytes, first, sys::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    IommuInfo {
        ranges,
        page_sizes: if flags & sys::VFIO_IOMMU_INFO_PGSIZES != 0 { long(bytes, 8) } else { 4096 },
        max_mappings: limit.map_or(DEFAULT_LIMIT, |c| word(c, 8) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_page_sizes_and_limit_come_from_the_kernels_answer() {
        let mut b = vec![0; 24];
        b[4] = 3;
        b[8..16].copy_from_slice(&0x4020_1000u64.to_ne_bytes());
        b[16] = 24;
        // Capability 3 (mappings that are left: 77), then capability 1 (two ranges).
        b.extend([3, 0, 1, 0, 36, 0, 0, 0, 77, 0, 0, 0]);
        b.extend([1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        for n in [0u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            b.extend(n.to_ne_bytes());
        }
        let want = IommuInfo { ranges: DEFAULT_RANGES.into(), page_sizes: 0x4020_1000, max_mappings: 77 };
        assert_eq!(parse(&b), want);
    }

    #[test]
    fn a_kernel_that_says_little_gets_the_defaults() {
        let want = IommuInfo { ranges: DEFAULT_RANGES.into(), page_sizes: 4096, max_mappings: DEFAULT_LIMIT };
        assert_eq!(parse(&[0; 24]), want);
        assert_eq!(parse(&[]), want);
    }

    proptest! {
        /// Any answer, also one whose capabilities point into each other: an answer of ours, in order.
        #[test]
        fn any_answer_is_taken(mut bytes in prop::collection::vec(0u8..40, 0..120)) {
            if bytes.len() > 4 {
                bytes[4] = 3;
            }
            let info = parse(&bytes);
            prop_assert!(info.ranges.iter().all(|r| r.first <= r.last));
        }
    }
}
