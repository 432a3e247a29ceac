//! DMA: which memory a device may reach, and under which addresses.

use crate::{BusError, DmaMem};
use std::sync::Arc;

/// Inclusive range of I/O virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub first: u64,
    /// Last address, inclusive.
    pub last: u64,
}

/// What the device may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaDirection {
    /// Device reads only.
    ToDevice,
    /// Device writes only.
    FromDevice,
    /// Both.
    Bidirectional,
}

/// Undoes one mapping; implemented by each transport.
pub trait MappingGuard: Send + Sync {
    /// Removes the mapping; afterwards the device cannot reach the memory.
    fn unmap(&mut self) -> Result<(), BusError>;
}

/// Memory that a device can reach, for as long as this value lives.
pub struct Mapping {
    mem: Arc<DmaMem>,
    iova: u64,
    guard: Option<Box<dyn MappingGuard>>,
}

impl Mapping {
    /// Joins memory, its address and the guard that undoes the mapping. Called by transports.
    pub fn new(mem: Arc<DmaMem>, iova: u64, guard: Box<dyn MappingGuard>) -> Self {
        Self { mem, iova, guard: Some(guard) }
    }
    /// The memory.
    pub fn mem(&self) -> &Arc<DmaMem> {
        &self.mem
    }
    /// First I/O virtual address.
    pub fn iova(&self) -> u64 {
        self.iova
    }
    /// Removes the mapping and reports failure, which dropping cannot.
    pub fn unmap(mut self) -> Result<(), BusError> {
        match self.guard.take() {
            Some(mut g) => g.unmap(),
            None => Ok(()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(mut g) = self.guard.take() {
            // An error here means that the device or its transport is gone, and its mappings with it.
            let _ = g.unmap();
        }
    }
}

/// The IOMMU's side of a function.
pub trait DmaDomain: Send + Sync {
    /// Ranges from which the driver picks addresses, ascending.
    fn iova_ranges(&self) -> Vec<IovaRange>;
    /// Bitmap of supported page sizes in bytes.
    fn page_sizes(&self) -> u64;
    /// Number of mappings the backend allows at once.
    fn max_mappings(&self) -> usize;
    /// Maps all of `mem` at `iova`.
    fn map(&self, mem: Arc<DmaMem>, iova: u64, direction: DmaDirection) -> Result<Mapping, BusError>;
}
