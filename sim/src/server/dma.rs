//! Memory of the client that the device can reach: what an IOMMU is to a real device.
//!
//! QEMU maps a guest's memory page by page, each page with a descriptor of the same memfd, and takes it back in large ranges
//! that cover many maps. So a file is mapped into this process once, whole, for as long as a map lives on it, and is known
//! again by device and inode number.
//!
//! A file that its owner can shrink would kill this process when it does; only memory sealed against shrinking is taken,
//! which a memfd of QEMU's (`memory-backend-memfd`) or of our own driver is.

use flowlift_bus::vfio_user::DmaMap;
use flowlift_bus::{BusError, DmaFault, DmaMem, DmaPages};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Page size of DMA maps in bytes.
const PAGE: u64 = 4096;
/// Most maps at once, as the protocol has it by default.
const MAX_MAPS: usize = 65_535;
/// Blocked accesses that are logged one by one; the rest is only counted.
const LOGGED: u64 = 16;

/// Device and inode number of a file.
type FileId = (u64, u64);

struct Map {
    /// Last address, inclusive.
    last: u64,
    /// [`DmaMap::READ`], [`DmaMap::WRITE`].
    flags: u32,
    /// File and offset. `None`: the client gave no file, and the device cannot reach the memory.
    backing: Option<(FileId, DmaMem, u64)>,
}

#[derive(Default)]
struct State {
    /// By first address, disjoint.
    maps: BTreeMap<u64, Map>,
    /// Files in use, with the number of maps on each.
    files: HashMap<FileId, (DmaMem, usize)>,
}

impl State {
    fn release(&mut self, map: &Map) {
        let Some((id, ..)) = &map.backing else { return };
        if let Some((_, users)) = self.files.get_mut(id) {
            *users -= 1;
            if *users == 0 {
                self.files.remove(id);
            }
        }
    }
}

/// The client's memory. The device has one handle, the session another.
#[derive(Default)]
pub(super) struct ClientMemory {
    state: Mutex<State>,
    bus_master: AtomicBool,
    faults: AtomicU64,
}

impl ClientMemory {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_bus_master(&self, enabled: bool) {
        self.bus_master.store(enabled, Ordering::Release);
    }

    pub(super) fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Accesses of the device that were blocked.
    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Maps there are.
    pub(super) fn maps(&self) -> usize {
        self.lock().maps.len()
    }

    /// Adds a map.
    pub(super) fn map(&self, map: &DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let pages = map.address.is_multiple_of(PAGE) && map.size.is_multiple_of(PAGE) && map.size > 0;
        let last =
            map.address.checked_add(map.size.wrapping_sub(1)).filter(|_| pages).ok_or(Errno::EINVAL)?;
        if map.flags & !(DmaMap::READ | DmaMap::WRITE) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.lock();
        if state.maps.range(..=last).next_back().is_some_and(|(_, m)| m.last >= map.address) {
            return Err(Errno::EEXIST);
        }
        if state.maps.len() >= MAX_MAPS {
            return Err(Errno::ENOSPC);
        }
        let backing = match fd {
            None => None,
            Some(fd) => {
                let end = map.offset.checked_add(map.size).ok_or(Errno::EINVAL)?;
                let (id, mem) = file(&state.files, fd, end)?;
                let users = state.files.get(&id).map_or(0, |(_, users)| *users);
                state.files.insert(id, (mem.clone(), users + 1));
                Some((id, mem, map.offset))
            }
        };
        state.maps.insert(map.address, Map { last, flags: map.flags, backing });
        Ok(())
    }

    /// Removes every map in a range. A map that is only partly in it is refused, and nothing changes.
    pub(super) fn unmap(&self, address: u64, size: u64) -> Result<(), Errno> {
        let last = match size {
            0 => return Err(Errno::EINVAL),
            n => address.checked_add(n - 1).ok_or(Errno::EINVAL)?,
        };
        let mut state = self.lock();
        let overlaps = |m: Option<(&u64, &Map)>| m.is_some_and(|(_, m)| m.last >= address);
        let before = overlaps(state.maps.range(..address).next_back());
        let after = state.maps.range(address..=last).next_back().is_some_and(|(_, m)| m.last > last);
        if before || after {
            return Err(Errno::EINVAL);
        }
        let inside: Vec<u64> = state.maps.range(address..=last).map(|(first, _)| *first).collect();
        for first in inside {
            if let Some(map) = state.maps.remove(&first) {
                state.release(&map);
            }
        }
        Ok(())
    }

    /// Forgets everything: the client is gone.
    pub(super) fn clear(&self) {
        self.set_bus_master(false);
        *self.lock() = State::default();
    }

    fn blocked(&self, iova: u64, len: usize, write: bool) -> DmaFault {
        let fault = DmaFault { iova, len, write };
        if self.faults.fetch_add(1, Ordering::Relaxed) < LOGGED {
            tracing::warn!(%fault, "the device's access was blocked");
        }
        fault
    }
}

impl DmaPages for ClientMemory {
    fn access(
        &self,
        iova: u64,
        len: usize,
        write: bool,
        mut piece: impl FnMut(&DmaMem, usize, Range<usize>) -> Result<(), BusError>,
    ) -> Result<(), DmaFault> {
        let needed = if write { DmaMap::WRITE } else { DmaMap::READ };
        let state = self.lock();
        let mut done = 0;
        while done < len {
            let at = iova.wrapping_add(done as u64);
            let found = state.maps.range(..=at).next_back();
            let found = found.filter(|(_, m)| self.bus_master() && at <= m.last && m.flags & needed != 0);
            let Some((first, Map { last, backing: Some((_, mem, offset)), .. })) = found else {
                return Err(self.blocked(iova, len, write));
            };
            let n = usize::try_from(last - at).unwrap_or(usize::MAX).saturating_add(1).min(len - done);
            let place = offset + (at - first);
            // `map` made sure that the file reaches to the end of the map.
            piece(mem, place as usize, done..done + n).map_err(|_| self.blocked(iova, len, write))?;
            done += n;
        }
        Ok(())
    }
}

/// Maps a client's file, or finds it among those that are mapped.
fn file(files: &HashMap<FileId, (DmaMem, usize)>, fd: OwnedFd, end: u64) -> Result<(FileId, DmaMem), Errno> {
    let file = File::from(fd);
    let metadata = file.metadata().map_err(|_| Errno::EINVAL)?;
    let id = (metadata.dev(), metadata.ino());
    match files.get(&id) {
        Some((mem, _)) if mem.len() as u64 >= end => Ok((id, mem.clone())),
        _ if metadata.len() < end => Err(Errno::EINVAL),
        _ => {
            let len = usize::try_from(metadata.len()).map_err(|_| Errno::EINVAL)?;
            let mem = DmaMem::from_file(file, len).map_err(|error| {
                tracing::warn!(%error, "the client's memory cannot be mapped");
                Errno::EINVAL
            })?;
            let seals = fcntl(mem.fd(), FcntlArg::F_GET_SEALS)
                .map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
            if !seals.contains(SealFlag::F_SEAL_SHRINK) {
                tracing::warn!("the client's memory is not sealed against shrinking");
                return Err(Errno::EPERM);
            }
            Ok((id, mem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_bus::{DmaBus, PagedBus};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;
    use std::sync::Arc;

    const BOTH: u32 = DmaMap::READ | DmaMap::WRITE;

    fn at(address: u64, size: u64, offset: u64, flags: u32) -> DmaMap {
        DmaMap { argsz: 32, flags, offset, address, size }
    }

    fn fd(mem: &DmaMem) -> Option<OwnedFd> {
        Some(mem.fd().try_clone_to_owned().unwrap())
    }

    fn memory() -> (Arc<ClientMemory>, PagedBus<ClientMemory>) {
        let memory = Arc::new(ClientMemory::default());
        memory.set_bus_master(true);
        (Arc::clone(&memory), PagedBus(memory))
    }

    #[test]
    fn pages_of_one_file_are_one_mapping_and_go_in_one_large_unmap() {
        let (memory, bus) = memory();
        let mem = DmaMem::new(64 * 4096).unwrap();
        for page in 0..64 {
            memory.map(&at(0x10_0000 + page * 4096, 4096, page * 4096, BOTH), fd(&mem)).unwrap();
        }
        assert_eq!((memory.maps(), memory.lock().files.len()), (64, 1));
        let text: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        bus.write(0x10_0ff0, &text).unwrap();
        let mut back = vec![0; text.len()];
        bus.read(0x10_0ff0, &mut back).unwrap();
        assert_eq!(back, text);
        mem.read_bytes(0xff0, &mut back).unwrap();
        assert_eq!(back, text, "the pages lie one after another in the file");
        memory.unmap(0, 1 << 40).unwrap();
        assert_eq!((memory.maps(), memory.lock().files.len()), (0, 0));
        assert_eq!(bus.read(0x10_0000, &mut back).unwrap_err().iova, 0x10_0000);
        assert_eq!(memory.faults(), 1);
    }

    #[test]
    fn direction_bus_master_and_memory_without_a_file_block() {
        let (memory, bus) = memory();
        let mem = DmaMem::new(4096).unwrap();
        memory.map(&at(0x1000, 4096, 0, DmaMap::READ), fd(&mem)).unwrap();
        memory.map(&at(0x2000, 4096, 0, DmaMap::WRITE), fd(&mem)).unwrap();
        memory.map(&at(0x3000, 4096, 0, BOTH), None).unwrap();
        assert!(bus.load_u64(0x1000).is_ok() && bus.store_u64(0x1000, 1).is_err());
        assert!(bus.load_u64(0x2000).is_err() && bus.store_u64(0x2ff8, 1).is_ok());
        assert!(bus.load_u64(0x3000).is_err() && bus.store_u64(0x3000, 1).is_err());
        memory.set_bus_master(false);
        assert!(bus.load_u64(0x1000).is_err());
    }

    #[test]
    fn impossible_maps_are_refused() {
        let (memory, _) = memory();
        let mem = DmaMem::new(8192).unwrap();
        for (map, why) in [
            (at(1, 4096, 0, BOTH), "address"),
            (at(0, 0, 0, BOTH), "empty"),
            (at(0, 100, 0, BOTH), "size"),
            (at(u64::MAX - 4095, 8192, 0, BOTH), "wraps"),
            (at(0, 4096, 8192, BOTH), "past the file"),
            (at(0, 4096, u64::MAX, BOTH), "offset wraps"),
            (at(0, 4096, 0, 4), "flags"),
        ] {
            assert_eq!(memory.map(&map, fd(&mem)), Err(Errno::EINVAL), "{why}");
        }
        memory.map(&at(0x1000, 8192, 0, BOTH), fd(&mem)).unwrap();
        for address in [0x1000, 0x2000] {
            assert_eq!(memory.map(&at(address, 4096, 0, BOTH), fd(&mem)), Err(Errno::EEXIST));
        }
        assert_eq!(memory.unmap(0x1000, 4096), Err(Errno::EINVAL), "half a map");
        assert_eq!(memory.unmap(0x2000, 4096), Err(Errno::EINVAL), "the other half");
        assert_eq!(memory.unmap(u64::MAX, 2), Err(Errno::EINVAL));
        let pipe = std::io::pipe().unwrap().0;
        assert_eq!(memory.map(&at(0, 4096, 0, BOTH), Some(pipe.into())), Err(Errno::EINVAL), "not memory");
        assert_eq!(memory.maps(), 1);
    }

    #[test]
    fn memory_that_can_shrink_is_refused() {
        let (memory, _) = memory();
        let file = File::from(memfd_create("loose", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(4096).unwrap();
        assert_eq!(memory.map(&at(0, 4096, 0, BOTH), Some(file.into())), Err(Errno::EPERM));
    }

    proptest! {
        /// Maps and unmaps in any order, against a list of pages: the device reaches exactly what is mapped.
        #[test]
        fn agrees_with_a_list_of_pages(ops in prop::collection::vec((any::<bool>(), 0u64..16, 0u64..6), 1..60)) {
            let (memory, bus) = memory();
            let mem = DmaMem::new(16 * 4096).unwrap();
            let mut maps: Vec<Range<u64>> = Vec::new();
            for (add, first, pages) in ops {
                let (range, address, size) = (first..first + pages, first * 4096, pages * 4096);
                if add {
                    let clash = maps.iter().any(|m| m.start < range.end && range.start < m.end);
                    let ok = !clash && pages > 0 && range.end <= 16;
                    prop_assert_eq!(memory.map(&at(address, size, address, BOTH), fd(&mem)).is_ok(), ok);
                    if ok {
                        maps.push(range);
                    }
                } else {
                    let touched = |m: &&Range<u64>| m.start < range.end && range.start < m.end;
                    let whole = maps.iter().filter(touched).all(|m| range.start <= m.start && m.end <= range.end);
                    let ok = whole && pages > 0;
                    prop_assert_eq!(memory.unmap(address, size).is_ok(), ok);
                    if ok {
                        maps.retain(|m| !(m.start < range.end && range.start < m.end));
                    }
                }
                prop_assert_eq!(memory.maps(), maps.len());
                for page in 0..24 {
                    let mapped = maps.iter().any(|m| m.contains(&page));
                    prop_assert_eq!(bus.load_u64(page * 4096 + 8).is_ok(), mapped, "page {}", page);
                }
            }
            prop_assert_eq!(memory.lock().files.len(), usize::from(!maps.is_empty()));
        }
    }
}
