//! The device's side of the line: what a model implements and what is handed to it.

use crate::{BusError, DmaFault, DmaMem};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Identity of a function in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor ID (offset 0x00).
    pub vendor: u16,
    /// Device ID (offset 0x02).
    pub device: u16,
    /// Revision ID (offset 0x08).
    pub revision: u8,
    /// Class code, 24 bits (offset 0x09): base class, sub-class, interface.
    pub class: u32,
}

/// One BAR of a device model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// BAR number, 0 to 5.
    pub index: u8,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// True: plain shared memory that driver and device both map (doorbells). False: every access traps into
    /// [`DeviceModel::region_read`] and [`DeviceModel::region_write`].
    pub mapped: bool,
}

/// A PCI device as a model: one implementation serves in process, over vfio-user and in QEMU.
///
/// Registers trap into `region_read`/`region_write`. Whatever the device does on its own (consume rings, forward
/// packets) happens when its owner steps it; the model has no threads.
pub trait DeviceModel: Send {
    /// Identity for configuration space.
    fn identity(&self) -> PciIdentity;
    /// The BARs, ascending by index.
    fn bars(&self) -> &[BarSpec];
    /// Number of MSI-X vectors.
    fn msix_vectors(&self) -> u16;
    /// Hands the device its way to host memory and interrupts, and the shared memory of each mapped BAR. Called once,
    /// before any access.
    fn attach(&mut self, dma: Box<dyn DmaBus>, irq: Box<dyn IrqSink>, mapped_bars: Vec<(u8, DmaMem)>);
    /// Reads a register: `data` is 1, 2, 4 or 8 bytes, little-endian. A device that is gone fills it with 0xff.
    fn region_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes a register: `data` is 1, 2, 4 or 8 bytes, little-endian.
    fn region_write(&mut self, bar: u8, offset: u64, data: &[u8]);
    /// The Bus Master Enable bit of the command register changed. While it is off the device does no DMA and raises
    /// no interrupt.
    fn bus_master(&mut self, enabled: bool);
    /// Function level reset: every register takes its reset value and DMA stops.
    fn reset(&mut self);
}

/// Host memory as a device sees it: by IOVA, through the IOMMU. Addresses wrap as hardware's do.
pub trait DmaBus: Send {
    /// Copies from host memory.
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault>;
    /// Copies to host memory.
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault>;
    /// Loads a little-endian u64 at an 8-byte aligned address; what the host wrote before storing it is visible
    /// afterwards (acquire).
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault>;
    /// Stores a little-endian u64 at an 8-byte aligned address after everything written before it (release).
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault>;
}

/// Host memory in pages, as an IOMMU gives it to a device.
pub trait DmaPages: Send + Sync {
    /// Splits an access at the borders of mappings, as a page walk would, and hands each piece to `piece` with the memory,
    /// the offset in it and the range of the access. Pieces before a blocked one have been carried out by then.
    fn access(
        &self,
        iova: u64,
        len: usize,
        write: bool,
        piece: impl FnMut(&DmaMem, usize, Range<usize>) -> Result<(), BusError>,
    ) -> Result<(), DmaFault>;
}

/// The way of a device to memory in pages.
#[derive(Debug)]
pub struct PagedBus<P>(pub Arc<P>);

impl<P: DmaPages> DmaBus for PagedBus<P> {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.0.access(iova, data.len(), false, |mem, at, piece| mem.read_bytes(at, &mut data[piece]))
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        self.0.access(iova, data.len(), true, |mem, at, piece| mem.write_bytes(at, &data[piece]))
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        let mut value = 0;
        // Mappings are whole pages, so only a misaligned word could be split, and the load refuses that one.
        self.0.access(iova, 8, false, |mem, at, _| {
            value = mem.load_u64(at, Ordering::Acquire)?;
            Ok(())
        })?;
        Ok(value)
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        self.0.access(iova, 8, true, |mem, at, _| mem.store_u64(at, value, Ordering::Release))
    }
}

/// Interrupts as a device sees them.
pub trait IrqSink: Send {
    /// Raises MSI-X vector `vector`; a masked or unassigned vector does nothing.
    fn raise(&self, vector: u16);
}
