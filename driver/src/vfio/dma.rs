//! DMA memory: mapped by its address in this process, for the direction that was asked for.

use super::info::IommuInfo;
use super::{Device, Iommu, ioctl};
use flowlift_bus::{BusError, DmaDirection, DmaDomain, DmaMem, IovaRange, Mapping, MappingGuard};
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use vfio_bindings::bindings::vfio as sys;

/// The IOMMU's side of a function.
pub(super) struct Container {
    device: Arc<Device>,
    info: IommuInfo,
    mapped: Arc<Mapped>,
}

/// What is mapped now.
#[derive(Default)]
struct Mapped {
    mappings: AtomicUsize,
    /// In bytes.
    len: AtomicU64,
}

impl Container {
    pub(super) fn new(device: Arc<Device>, info: IommuInfo) -> Self {
        Self { device, info, mapped: Arc::default() }
    }

    /// Mappings there are now.
    pub(super) fn mappings(&self) -> usize {
        self.mapped.mappings.load(Ordering::Relaxed)
    }
}

/// Undoes a mapping. Keeps the device open, so that there is something to undo it on.
struct Guard {
    device: Arc<Device>,
    mapped: Arc<Mapped>,
    /// The kernel holds the pages, not the address; this keeps the address from naming other memory meanwhile.
    mem: Option<Arc<DmaMem>>,
    iova: u64,
}

impl MappingGuard for Guard {
    fn unmap(&mut self) -> Result<(), BusError> {
        let Some(mem) = self.mem.take() else { return Ok(()) };
        self.mapped.len.fetch_sub(mem.len() as u64, Ordering::Relaxed);
        let last = self.mapped.mappings.fetch_sub(1, Ordering::Relaxed) == 1;
        // With its last memory gone the device has nothing to do on the bus; and a driver that panics takes its memory
        // away in whatever order its fields have.
        if last || std::thread::panicking() {
            // Where this fails the function is gone, or the IOMMU blocks what it does.
            let _ = self.device.clear_bus_master();
        }
        match &self.device.iommu {
            Iommu::Type1 { container, .. } => {
                container.vfio_dma_unmap(self.iova, mem.len()).map_err(super::failed("unmapping DMA memory"))
            }
            Iommu::Iommufd(space) => space.unmap(self.iova, mem.len() as u64),
        }
    }
}

/// Why the kernel refused a mapping, for a person. `len` is what would be mapped with it, in bytes.
fn why(e: &io::Error, len: u64) -> String {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EEXIST) => "it overlaps another mapping".into(),
        Some(Errno::ENOSPC) => "no mapping left".into(),
        Some(Errno::ENOMEM) => {
            let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(RLIM_INFINITY, |(soft, _)| soft);
            format!("{e}: {}", too_little(limit, len))
        }
        Some(Errno::EINVAL) => format!("{e}: not whole pages, or outside the IOVA ranges"),
        _ => e.to_string(),
    }
}

/// What to do about memory that cannot be locked: the limit and the need, in bytes.
fn too_little(limit: u64, need: u64) -> String {
    if limit == RLIM_INFINITY {
        return "the kernel has no memory for it".into();
    }
    format!(
        "the limit of locked memory is {} KiB, and this needs {} KiB or more; raise it for the user (ulimit -l, or \
         memlock in limits.conf) or the service (LimitMEMLOCK=), or run as root",
        limit / 1024,
        need.div_ceil(1024)
    )
}

/// Maps memory by a type1 container.
fn map_type1(
    container: &vfio_ioctls::VfioContainer,
    mem: &DmaMem,
    iova: u64,
    direction: DmaDirection,
) -> io::Result<()> {
    let mut map = sys::vfio_iommu_type1_dma_map {
        argsz: size_of::<sys::vfio_iommu_type1_dma_map>() as u32,
        flags: match direction {
            DmaDirection::ToDevice => sys::VFIO_DMA_MAP_FLAG_READ,
            DmaDirection::FromDevice => sys::VFIO_DMA_MAP_FLAG_WRITE,
            DmaDirection::Bidirectional => sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
        },
        vaddr: mem.as_ptr().addr() as u64,
        iova,
        size: mem.len() as u64,
    };
    // SAFETY: the range is all of `mem`, which the mapping's guard keeps until it is unmapped, and which is only
    // accessed by volatile and atomic operations. Should unmapping fail, the kernel goes on holding the pages, so the
    // device cannot reach memory that has another use.
    unsafe { ioctl::call(container, &mut map) }
}

impl DmaDomain for Container {
    fn iova_ranges(&self) -> Vec<IovaRange> {
        self.info.ranges.clone()
    }

    fn page_sizes(&self) -> u64 {
        self.info.page_sizes
    }

    fn max_mappings(&self) -> usize {
        self.info.max_mappings
    }

    fn map(&self, mem: Arc<DmaMem>, iova: u64, direction: DmaDirection) -> Result<Mapping, BusError> {
        let mapped = match &self.device.iommu {
            Iommu::Type1 { container, .. } => map_type1(container, &mem, iova, direction),
            Iommu::Iommufd(space) => space.map(&mem, iova, direction),
        };
        let len = mem.len() as u64;
        let before = &self.mapped.len;
        mapped.map_err(|e| {
            let why = why(&e, before.load(Ordering::Relaxed).saturating_add(len));
            BusError::Map { iova, len, why }
        })?;
        before.fetch_add(len, Ordering::Relaxed);
        self.mapped.mappings.fetch_add(1, Ordering::Relaxed);
        let guard =
            Guard { device: self.device.clone(), mapped: self.mapped.clone(), mem: Some(mem.clone()), iova };
        Ok(Mapping::new(mem, iova, Box::new(guard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_locked_memory_is_told_with_limit_need_and_remedy() {
        let text = too_little(8 << 20, (9 << 20) + 1);
        for part in ["is 8192 KiB", "needs 9217 KiB", "ulimit -l", "LimitMEMLOCK="] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!too_little(RLIM_INFINITY, 1).contains("limit"), "there is none to raise");
        let enomem = why(&io::Error::from_raw_os_error(nix::libc::ENOMEM), 1 << 40);
        assert!(enomem.contains("Cannot allocate memory"), "{enomem}");
    }
}
