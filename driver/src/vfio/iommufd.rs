//! iommufd and the devices' own nodes, where the kernel has them: no group to open, and its own calls for addresses.
//!
//! Structures and numbers are those of `linux/iommufd.h`; vfio-ioctls has them behind a feature that brings hypervisor
//! crates along. Every structure begins with its size in bytes.

use super::ioctl::{self, Call};
use flowlift_bus::{BusError, DmaDirection, DmaMem, IovaRange};
use nix::libc::{EMSGSIZE, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IO(';', n)`.
const fn request(n: c_ulong) -> c_ulong {
    ((b';' as c_ulong) << 8) | n
}

/// Ranges of addresses that are asked for at most.
const MOST_RANGES: usize = 1 << 16;

/// IOMMU_IOAS_MAP's flags.
const FIXED_IOVA: u32 = 1;
const WRITEABLE: u32 = 2;
const READABLE: u32 = 4;

/// IOMMU_IOAS_ALLOC.
#[repr(C)]
#[derive(Default)]
struct Alloc {
    size: u32,
    flags: u32,
    ioas: u32,
}

/// IOMMU_IOAS_IOVA_RANGES.
#[repr(C)]
#[derive(Default)]
struct Ranges {
    size: u32,
    ioas: u32,
    count: u32,
    reserved: u32,
    ranges: u64,
    alignment: u64,
}

/// IOMMU_IOAS_MAP.
#[repr(C)]
#[derive(Default)]
struct Map {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    address: u64,
    len: u64,
    iova: u64,
}

/// IOMMU_IOAS_UNMAP.
#[repr(C)]
#[derive(Default)]
struct Unmap {
    size: u32,
    ioas: u32,
    iova: u64,
    len: u64,
}

/// VFIO_DEVICE_BIND_IOMMUFD.
#[repr(C)]
#[derive(Default)]
struct Bind {
    size: u32,
    flags: u32,
    iommufd: i32,
    device: u32,
}

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
#[repr(C)]
#[derive(Default)]
struct Attach {
    size: u32,
    flags: u32,
    table: u32,
}

// SAFETY: as for each of these, the number is that of the kernel's call that takes this structure, which is `repr(C)`, begins with
// its size, and is written by the kernel up to that size only. What its addresses point to is said where it is made.
unsafe impl Call for Alloc {
    const REQUEST: c_ulong = request(0x81);
}
// SAFETY: as above.
unsafe impl Call for Ranges {
    const REQUEST: c_ulong = request(0x84);
}
// SAFETY: as above.
unsafe impl Call for Map {
    const REQUEST: c_ulong = request(0x85);
}
// SAFETY: as above.
unsafe impl Call for Unmap {
    const REQUEST: c_ulong = request(0x86);
}
// SAFETY: as above.
unsafe impl Call for Bind {
    const REQUEST: c_ulong = request(118);
}
// SAFETY: as above.
unsafe impl Call for Attach {
    const REQUEST: c_ulong = request(119);
}

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// An address space of the kernel's iommufd, and what it takes.
pub(super) struct AddressSpace {
    iommufd: File,
    ioas: u32,
}

impl AddressSpace {
    /// Opens a device by its node and gives it an address space of its own; `iommu` is the node of iommufd.
    pub(super) fn open(iommu: &Path, node: &Path) -> io::Result<(Self, File)> {
        let open = |path: &Path| {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
        };
        let (iommufd, device) = (open(iommu)?, open(node)?);
        let mut bind = Bind { size: size::<Bind>(), iommufd: iommufd.as_raw_fd(), ..Default::default() };
        // SAFETY: no addresses in it.
        unsafe { ioctl::call(&device, &mut bind) }?;
        let mut alloc = Alloc { size: size::<Alloc>(), ..Default::default() };
        // SAFETY: no addresses in it.
        unsafe { ioctl::call(&iommufd, &mut alloc) }?;
        let mut attach = Attach { size: size::<Attach>(), flags: 0, table: alloc.ioas };
        // SAFETY: no addresses in it.
        unsafe { ioctl::call(&device, &mut attach) }?;
        Ok((Self { iommufd, ioas: alloc.ioas }, device))
    }

    /// Addresses that it takes, ascending, and the alignment of mappings in bytes.
    pub(super) fn ranges(&self) -> io::Result<(Vec<IovaRange>, u64)> {
        let (mut found, mut ranges) = (Vec::new(), Ranges::default());
        let mut room = 256;
        // The second time there is room for as many as the kernel said.
        for _ in 0..2 {
            found = vec![[0u64; 2]; room];
            ranges = Ranges {
                size: size::<Ranges>(),
                ioas: self.ioas,
                count: room as u32,
                ranges: found.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            // SAFETY: the kernel writes `count` pairs of u64 to `ranges` at most, which is the length of `found`.
            match unsafe { ioctl::call(&self.iommufd, &mut ranges) } {
                Ok(()) => break,
                Err(e) if e.raw_os_error() == Some(EMSGSIZE) && (ranges.count as usize) > room => {
                    room = (ranges.count as usize).min(MOST_RANGES);
                }
                Err(e) => return Err(e),
            }
        }
        found.truncate(ranges.count as usize);
        let mut all: Vec<_> = found.iter().map(|&[first, last]| IovaRange { first, last }).collect();
        all.retain(|r| r.first <= r.last);
        all.sort_by_key(|r| r.first);
        Ok((all, ranges.alignment))
    }

    /// Maps memory for the device.
    pub(super) fn map(&self, mem: &DmaMem, iova: u64, direction: DmaDirection) -> io::Result<()> {
        let mut map = Map {
            size: size::<Map>(),
            flags: FIXED_IOVA
                | match direction {
                    DmaDirection::ToDevice => READABLE,
                    DmaDirection::FromDevice => WRITEABLE,
                    DmaDirection::Bidirectional => READABLE | WRITEABLE,
                },
            ioas: self.ioas,
            address: mem.as_ptr().addr() as u64,
            len: mem.len() as u64,
            iova,
            ..Default::default()
        };
        // SAFETY: the range is all of `mem`, which the mapping's guard keeps until it is unmapped, and which is only
        // accessed by volatile and atomic operations.
        unsafe { ioctl::call(&self.iommufd, &mut map) }
    }

    /// Takes a mapping back.
    pub(super) fn unmap(&self, iova: u64, len: u64) -> Result<(), BusError> {
        let mut unmap = Unmap { size: size::<Unmap>(), ioas: self.ioas, iova, len };
        // SAFETY: the addresses in it are the device's.
        let done = unsafe { ioctl::call(&self.iommufd, &mut unmap) };
        match done {
            Ok(()) if unmap.len == len => Ok(()),
            Ok(()) => Err(BusError::Io {
                what: "unmapping DMA memory",
                cause: io::Error::other(format!("{:#x} bytes, not {len:#x}", unmap.len)),
            }),
            Err(cause) => Err(BusError::Io { what: "unmapping DMA memory", cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_and_numbers_are_those_of_the_kernels_header() {
        let sizes = [
            size::<Alloc>(),
            size::<Ranges>(),
            size::<Map>(),
            size::<Unmap>(),
            size::<Bind>(),
            size::<Attach>(),
        ];
        assert_eq!(sizes, [12, 32, 40, 24, 16, 12]);
        assert_eq!(
            (Alloc::REQUEST, Ranges::REQUEST, Map::REQUEST, Unmap::REQUEST),
            (0x3b81, 0x3b84, 0x3b85, 0x3b86)
        );
        assert_eq!((Bind::REQUEST, Attach::REQUEST), (0x3b76, 0x3b77));
    }
}
