//! DMA memory: a memfd that host and device share.
//!
//! Both sides may write at any time, so it is only ever accessed by volatile or atomic operations and never lent out as
//! a slice. A memfd that shrank under its mapping would kill the process with SIGBUS, so memory is sealed against it
//! where the kernel lets us, and a peer's file is measured before it is mapped.

use crate::BusError;
use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A range of a memfd, mapped into this process. Cloning shares the memory.
#[derive(Clone)]
pub struct DmaMem {
    inner: Arc<Inner>,
}

struct Inner {
    map: MmapRaw,
    file: File,
    len: usize,
}

impl std::fmt::Debug for DmaMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaMem").field("len", &self.inner.len).finish()
    }
}

impl DmaMem {
    /// New zeroed memory of `len` bytes, rounded up to whole 4 KiB pages.
    pub fn new(len: usize) -> Result<Self, BusError> {
        let io = |what| move |cause: std::io::Error| BusError::Io { what, cause };
        let len = len.max(1).next_multiple_of(4096);
        let fd = memfd_create("flowlift-dma", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|e| BusError::Io { what: "memfd_create", cause: e.into() })?;
        let file = File::from(fd);
        file.set_len(len as u64).map_err(io("size of a memfd"))?;
        Self::from_file(file, len)
    }

    /// Maps the first `len` bytes of a memfd made elsewhere (a vfio-user peer's). A file that is shorter is refused,
    /// and sealed against shrinking where its maker allowed seals.
    pub fn from_file(file: File, len: usize) -> Result<Self, BusError> {
        let size = file.metadata().map_err(|cause| BusError::Io { what: "size of DMA memory", cause })?.len();
        if len == 0 || size < len as u64 {
            return Err(BusError::OutOfRange { what: "file behind DMA memory", offset: 0, len, size });
        }
        // A file without seals (hugetlbfs, or MFD_ALLOW_SEALING missing) is the peer's to keep alive: refusing it would
        // refuse QEMU's guest memory too.
        let _ = fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK));
        let map = memmap2::MmapOptions::new()
            .len(len)
            .map_raw(&file)
            .map_err(|cause| BusError::Io { what: "mmap of DMA memory", cause })?;
        Ok(Self { inner: Arc::new(Inner { map, file, len }) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Always false: there is no empty DMA memory.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// The memfd; offset 0 of it is offset 0 here.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }

    /// Address in this process, for transports that map by address. Dereferencing it is the caller's to justify.
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.map.as_mut_ptr()
    }

    fn at(&self, offset: usize, len: usize, align: usize) -> Result<*mut u8, BusError> {
        // The mapping is page-aligned, so an aligned offset is an aligned address.
        if offset.checked_add(len).is_none_or(|end| end > self.inner.len) || !offset.is_multiple_of(align) {
            return Err(BusError::OutOfRange {
                what: "DMA memory",
                offset: offset as u64,
                len,
                size: self.inner.len as u64,
            });
        }
        // SAFETY: `offset <= len` of the mapping was just checked, so the pointer stays inside it.
        Ok(unsafe { self.inner.map.as_mut_ptr().add(offset) })
    }

    /// Copies bytes out. Bytes that the other side writes meanwhile may be old or new, each on its own.
    pub fn read_bytes(&self, offset: usize, data: &mut [u8]) -> Result<(), BusError> {
        let p = self.at(offset, data.len(), 1)?;
        copy_out(p, data);
        Ok(())
    }

    /// Copies bytes in.
    pub fn write_bytes(&self, offset: usize, data: &[u8]) -> Result<(), BusError> {
        let p = self.at(offset, data.len(), 1)?;
        copy_in(p, data);
        Ok(())
    }

    /// Loads a little-endian u32 at a multiple of 4.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, BusError> {
        let p = self.at(offset, 4, 4)?;
        // SAFETY: in bounds and aligned by `at`; the mapping lives as long as `self`; all access is atomic.
        Ok(u32::from_le(unsafe { AtomicU32::from_ptr(p.cast()) }.load(order)))
    }

    /// Stores a little-endian u32 at a multiple of 4.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Result<(), BusError> {
        let p = self.at(offset, 4, 4)?;
        // SAFETY: in bounds and aligned by `at`; the mapping lives as long as `self`; all access is atomic.
        unsafe { AtomicU32::from_ptr(p.cast()) }.store(value.to_le(), order);
        Ok(())
    }

    /// Loads a little-endian u64 at a multiple of 8.
    pub fn load_u64(&self, offset: usize, order: Ordering) -> Result<u64, BusError> {
        let p = self.at(offset, 8, 8)?;
        // SAFETY: in bounds and aligned by `at`; the mapping lives as long as `self`; all access is atomic.
        Ok(u64::from_le(unsafe { AtomicU64::from_ptr(p.cast()) }.load(order)))
    }

    /// Stores a little-endian u64 at a multiple of 8.
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) -> Result<(), BusError> {
        let p = self.at(offset, 8, 8)?;
        // SAFETY: in bounds and aligned by `at`; the mapping lives as long as `self`; all access is atomic.
        unsafe { AtomicU64::from_ptr(p.cast()) }.store(value.to_le(), order);
        Ok(())
    }
}

/// Copies from shared memory in words where alignment allows, each by a relaxed atomic load.
fn copy_out(mut p: *mut u8, mut data: &mut [u8]) {
    while !data.is_empty() {
        if p.addr().is_multiple_of(8) && data.len() >= 8 {
            // SAFETY: the caller checked that `p..p + data.len()` lies in the mapping; `p` is 8-byte aligned.
            let v = unsafe { AtomicU64::from_ptr(p.cast()) }.load(Ordering::Relaxed);
            data[..8].copy_from_slice(&v.to_ne_bytes());
            data = &mut data[8..];
            p = p.wrapping_add(8);
        } else {
            // SAFETY: as above; a byte has no alignment.
            data[0] = unsafe { AtomicU8::from_ptr(p) }.load(Ordering::Relaxed);
            data = &mut data[1..];
            p = p.wrapping_add(1);
        }
    }
}

/// Copies to shared memory in words where alignment allows, each by a relaxed atomic store.
fn copy_in(mut p: *mut u8, mut data: &[u8]) {
    while !data.is_empty() {
        if p.addr().is_multiple_of(8) && data.len() >= 8 {
            let mut w = [0; 8];
            w.copy_from_slice(&data[..8]);
            // SAFETY: the caller checked that `p..p + data.len()` lies in the mapping; `p` is 8-byte aligned.
            unsafe { AtomicU64::from_ptr(p.cast()) }.store(u64::from_ne_bytes(w), Ordering::Relaxed);
            data = &data[8..];
            p = p.wrapping_add(8);
        } else {
            // SAFETY: as above; a byte has no alignment.
            unsafe { AtomicU8::from_ptr(p) }.store(data[0], Ordering::Relaxed);
            data = &data[1..];
            p = p.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn new_memory_is_zero_and_whole_pages() {
        let m = DmaMem::new(5000).unwrap();
        assert_eq!(m.len(), 8192);
        let mut all = vec![0xff; 8192];
        m.read_bytes(0, &mut all).unwrap();
        assert!(all.iter().all(|&b| b == 0));
        assert_eq!(DmaMem::new(0).unwrap().len(), 4096);
    }

    #[test]
    fn words_are_little_endian_in_memory() {
        let m = DmaMem::new(4096).unwrap();
        m.store_u64(8, 0x0102_0304_0506_0708, Ordering::Release).unwrap();
        m.store_u32(16, 0x0a0b_0c0d, Ordering::Release).unwrap();
        let mut b = [0; 12];
        m.read_bytes(8, &mut b).unwrap();
        assert_eq!(b, [8, 7, 6, 5, 4, 3, 2, 1, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(m.load_u32(12, Ordering::Acquire).unwrap(), 0x0102_0304);
    }

    #[test]
    fn a_clone_and_a_second_mapping_see_the_same_bytes() {
        let m = DmaMem::new(4096).unwrap();
        let peer = DmaMem::from_file(File::from(m.fd().try_clone_to_owned().unwrap()), 4096).unwrap();
        assert_ne!(m.as_ptr(), peer.as_ptr());
        peer.write_bytes(100, b"from the other side").unwrap();
        let mut b = [0; 19];
        m.clone().read_bytes(100, &mut b).unwrap();
        assert_eq!(&b, b"from the other side");
    }

    #[test]
    fn misaligned_and_outside_accesses_are_errors_with_the_place() {
        let m = DmaMem::new(4096).unwrap();
        for (offset, len) in [(4093usize, 4usize), (4096, 1), (usize::MAX, 2), (1, 4)] {
            let e = match len {
                4 => m.load_u32(offset, Ordering::Relaxed).map(|_| ()),
                n => m.read_bytes(offset, &mut vec![0; n]),
            };
            assert!(
                matches!(e, Err(BusError::OutOfRange { offset: o, size: 4096, .. }) if o == offset as u64),
                "{offset} {len}: {e:?}"
            );
        }
        assert!(m.store_u64(4, 0, Ordering::Relaxed).is_err());
        assert!(m.store_u64(4096, 0, Ordering::Relaxed).is_err());
        assert!(m.read_bytes(4096, &mut []).is_ok(), "no bytes at the very end are none outside");
    }

    #[test]
    fn neither_side_can_shrink_the_memory_under_the_other() {
        let m = DmaMem::new(8192).unwrap();
        let peer = File::from(m.fd().try_clone_to_owned().unwrap());
        assert!(peer.set_len(4096).is_err(), "a shrunk memfd would be SIGBUS for fd {}", peer.as_raw_fd());
        m.write_bytes(8000, b"still there").unwrap();
    }

    #[test]
    fn a_short_file_from_a_peer_is_refused() {
        let fd = memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap();
        let f = File::from(fd);
        f.set_len(100).unwrap();
        assert!(matches!(DmaMem::from_file(f, 4096), Err(BusError::OutOfRange { size: 100, .. })));
    }

    proptest! {
        /// Any offset, length and alignment: what goes in comes out, and nothing else changes.
        #[test]
        fn copies_agree_with_a_plain_buffer(ops in prop::collection::vec((0usize..300, prop::collection::vec(any::<u8>(), 0..70)), 1..20)) {
            let m = DmaMem::new(4096).unwrap();
            let mut plain = vec![0u8; 4096];
            for (offset, data) in &ops {
                m.write_bytes(*offset, data).unwrap();
                plain[*offset..*offset + data.len()].copy_from_slice(data);
                let mut back = vec![0; data.len()];
                m.read_bytes(*offset, &mut back).unwrap();
                prop_assert_eq!(&back, data);
            }
            let mut all = vec![0; 4096];
            m.read_bytes(0, &mut all).unwrap();
            prop_assert_eq!(all, plain);
        }
    }
}
