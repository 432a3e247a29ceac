//! DMA memory of the driver as a vfio-user server gets it: one descriptor per mapping.

use super::link::Link;
use flowlift_bus::vfio_user::{DmaMap, DmaUnmap, command};
use flowlift_bus::{BusError, DmaDirection, DmaDomain, DmaMem, IovaRange, Mapping, MappingGuard};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// What the server may reach.
pub(super) struct Domain {
    link: Arc<Link>,
}

impl Domain {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }
}

impl DmaDomain for Domain {
    /// The protocol names none. What VFIO gives on an IOMMU of 39 bits, so that a driver meets the same hole.
    fn iova_ranges(&self) -> Vec<IovaRange> {
        vec![IovaRange { first: 0, last: 0xfedf_ffff }, IovaRange { first: 0xfef0_0000, last: (1 << 39) - 1 }]
    }

    fn page_sizes(&self) -> u64 {
        self.link.peer.pgsizes
    }

    fn max_mappings(&self) -> usize {
        usize::try_from(self.link.peer.max_dma_maps).unwrap_or(usize::MAX)
    }

    fn map(&self, mem: Arc<DmaMem>, iova: u64, direction: DmaDirection) -> Result<Mapping, BusError> {
        let size = mem.len() as u64;
        let flags = match direction {
            DmaDirection::ToDevice => DmaMap::READ,
            DmaDirection::FromDevice => DmaMap::WRITE,
            DmaDirection::Bidirectional => DmaMap::READ | DmaMap::WRITE,
        };
        let map = DmaMap { argsz: size_of::<DmaMap>() as u32, flags, offset: 0, address: iova, size };
        self.link.ask("DMA map", command::DMA_MAP, &[map.as_bytes()], &[mem.fd()]).map_err(|e| match e {
            BusError::Io { source, .. } => BusError::Map { iova, len: size, why: source.to_string() },
            e => e,
        })?;
        Ok(Mapping::new(mem, iova, Box::new(Guard { link: Arc::clone(&self.link), iova, size })))
    }
}

struct Guard {
    link: Arc<Link>,
    iova: u64,
    size: u64,
}

impl MappingGuard for Guard {
    fn unmap(&mut self) -> Result<(), BusError> {
        let argsz = size_of::<DmaUnmap>() as u32;
        let unmap = DmaUnmap { argsz, flags: 0, address: self.iova, size: self.size };
        self.link.ask("DMA unmap", command::DMA_UNMAP, &[unmap.as_bytes()], &[])?;
        Ok(())
    }
}
