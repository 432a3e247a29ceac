//! BARs: loads and stores where the kernel lets us map, calls into it elsewhere.
//!
//! The kernel leaves out of a mapping what it must see, such as the page of an MSI-X table on some machines, so a BAR
//! is a row of mapped areas with gaps that are trapped.
//!
//! While Memory Space Enable is off the kernel answers a mapped access with SIGBUS, which would end the process. The
//! switch is therefore mirrored ([`Device::answers`]) and looked at first; a function that does not answer gives
//! all-ones and takes no writes, as on the bus.

use super::Device;
use super::region::Region;
use flowlift_bus::{BarAccess, BarWindow, BusError};
use memmap2::{MmapOptions, MmapRaw};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A mapped area of a BAR.
struct Area {
    /// Offset of its first byte in the BAR.
    first: u64,
    map: MmapRaw,
}

/// A window onto a BAR.
pub(super) struct Bar {
    device: Arc<Device>,
    region: Region,
    areas: Vec<Area>,
}

impl Bar {
    pub(super) fn open(device: Arc<Device>, region: &Region) -> Result<Self, BusError> {
        let mut areas = Vec::new();
        for &(first, end) in region.mappable.iter().filter(|_| region.writable()) {
            let too_large = |_| BusError::Unsupported("a BAR larger than the address space");
            let len = usize::try_from(end - first).map_err(too_large)?;
            let map = MmapOptions::new()
                .offset(region.at(first, len)?)
                .len(len)
                .map_raw(&device.file)
                .map_err(|cause| BusError::Io { what: "mapping a BAR", cause })?;
            areas.push(Area { first, map });
        }
        Ok(Self { device, region: region.clone(), areas })
    }

    /// Address of an access that lies in a mapped area.
    fn mapped(&self, offset: u64, width: usize) -> Option<*mut u8> {
        self.areas.iter().find_map(|a| {
            let at = usize::try_from(offset.checked_sub(a.first)?).ok()?;
            // Areas are page-aligned and an access is aligned to its width, so none crosses an area's end; checked all
            // the same, because the pointer depends on it.
            (at.checked_add(width)? <= a.map.len()).then(|| a.map.as_mut_ptr().wrapping_add(at))
        })
    }

    fn check(&self, offset: u64, width: usize) -> Result<(), BusError> {
        let fits = matches!(width, 1 | 2 | 4 | 8)
            && offset.is_multiple_of(width as u64)
            && offset.checked_add(width as u64).is_some_and(|end| end <= self.region.size);
        if fits {
            return Ok(());
        }
        Err(BusError::OutOfRange { what: "a BAR", offset, len: width, size: self.region.size })
    }
}

impl BarWindow for Bar {
    fn size(&self) -> u64 {
        self.region.size
    }

    /// [`BarAccess::Mapped`] only where all of the BAR is.
    fn access(&self) -> BarAccess {
        let mapped: usize = self.areas.iter().map(|a| a.map.len()).sum();
        if mapped as u64 == self.region.size { BarAccess::Mapped } else { BarAccess::Trapped }
    }

    fn read_width(&self, offset: u64, width: usize) -> Result<u64, BusError> {
        self.check(offset, width)?;
        if !self.device.answers() {
            return Ok(u64::MAX >> (64 - width * 8));
        }
        let Some(p) = self.mapped(offset, width) else {
            let mut bytes = [0; 8];
            self.device.read(&self.region, offset, &mut bytes[..width])?;
            return Ok(u64::from_le_bytes(bytes));
        };
        // SAFETY: `mapped` gave a pointer into a mapping that `self` keeps, with `width` bytes from it on inside; the
        // mapping begins on a page and `check` made `offset` a multiple of `width`, so it is aligned. Device memory is
        // only ever accessed by volatile loads and stores.
        let value = unsafe {
            match width {
                1 => u64::from(p.read_volatile()),
                2 => u64::from(u16::from_le(p.cast::<u16>().read_volatile())),
                4 => u64::from(u32::from_le(p.cast::<u32>().read_volatile())),
                _ => u64::from_le(p.cast::<u64>().read_volatile()),
            }
        };
        // What the device wrote to memory before it answered is visible afterwards.
        fence(Ordering::SeqCst);
        Ok(value)
    }

    fn write_width(&self, offset: u64, width: usize, value: u64) -> Result<(), BusError> {
        self.check(offset, width)?;
        if !self.device.answers() {
            return Ok(());
        }
        // What the driver wrote to memory is visible to the device before it is told.
        fence(Ordering::SeqCst);
        let Some(p) = self.mapped(offset, width) else {
            return self.device.write(&self.region, offset, &value.to_le_bytes()[..width]);
        };
        // SAFETY: as in `read_width`.
        unsafe {
            match width {
                1 => p.write_volatile(value as u8),
                2 => p.cast::<u16>().write_volatile((value as u16).to_le()),
                4 => p.cast::<u32>().write_volatile((value as u32).to_le()),
                _ => p.cast::<u64>().write_volatile(value.to_le()),
            }
        }
        Ok(())
    }
}
