//! DMA memory of the driver as a vfio-user server gets it: one descriptor per mapping. A server that does not map it may ask
//! for it by message instead.

use super::link::Link;
use flowlift_bus::vfio_user::{DmaAccess, DmaMap, DmaUnmap, MAX_DATA, command};
use flowlift_bus::{BusError, DmaDirection, DmaDomain, DmaMem, IovaRange, Mapping, MappingGuard};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, IntoBytes};

/// A mapping, as messages reach it.
pub(super) struct Mapped {
    mem: Arc<DmaMem>,
    /// [`DmaMap::READ`], [`DmaMap::WRITE`].
    flags: u32,
}

/// What a server may ask for by message: the mappings there are, by first address.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<u64, Mapped>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Mapped>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, iova: u64, mapped: Mapped) {
        self.lock().insert(iova, mapped);
    }

    fn remove(&self, iova: u64) {
        self.lock().remove(&iova);
    }

    /// Carries out a [`command::DMA_READ`] or [`command::DMA_WRITE`]: the payload of the reply. An access must lie in one
    /// mapping, whose direction allows it.
    pub(super) fn answer(&self, command: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let (access, data) = DmaAccess::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
        let needed = if command == command::DMA_READ { DmaMap::READ } else { DmaMap::WRITE };
        if access.count > MAX_DATA.into() || (command == command::DMA_WRITE && data.len() != count) {
            return Err(Errno::EINVAL);
        }
        let maps = self.lock();
        let (first, map) = maps.range(..=access.address).next_back().ok_or(Errno::EFAULT)?;
        let at = usize::try_from(access.address - first).map_err(|_| Errno::EFAULT)?;
        if map.flags & needed == 0 {
            return Err(Errno::EFAULT);
        }
        let mut reply = access.as_bytes().to_vec();
        let done = if command == command::DMA_READ {
            let head = reply.len();
            reply.resize(head + count, 0);
            map.mem.read_bytes(at, &mut reply[head..])
        } else {
            map.mem.write_bytes(at, data)
        };
        // Past the end of the mapping.
        done.map_err(|_| Errno::EFAULT)?;
        Ok(reply)
    }
}

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
        // Before the server knows of it, since it may use it at once.
        self.link.memory.add(iova, Mapped { mem: Arc::clone(&mem), flags });
        self.link.ask("DMA map", command::DMA_MAP, &[map.as_bytes()], &[mem.fd()]).map_err(|e| {
            self.link.memory.remove(iova);
            match e {
                BusError::Io { cause, .. } => BusError::Map { iova, len: size, why: cause.to_string() },
                e => e,
            }
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
        self.link.memory.remove(self.iova);
        self.link.ask("DMA unmap", command::DMA_UNMAP, &[unmap.as_bytes()], &[])?;
        Ok(())
    }
}
