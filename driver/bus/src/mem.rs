//! DMA memory: a memfd that host and device share.
//!
//! Both sides may write at any time, so it is only ever accessed by volatile or atomic operations and never lent out as
//! a slice.

use crate::BusError;
use memmap2::MmapRaw;
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
        let io = |what| move |source: std::io::Error| BusError::Io { what, source };
        let len = len.max(1).next_multiple_of(4096);
        let fd = memfd_create("flowlift-dma", MFdFlags::MFD_CLOEXEC)
            .map_err(|e| BusError::Io { what: "memfd_create", source: e.into() })?;
        let file = File::from(fd);
        file.set_len(len as u64).map_err(io("size of a memfd"))?;
        Self::from_file(file, len)
    }

    /// Maps the first `len` bytes of a memfd made elsewhere (a vfio-user peer's).
    pub fn from_file(file: File, len: usize) -> Result<Self, BusError> {
        let map = memmap2::MmapOptions::new()
            .len(len)
            .map_raw(&file)
            .map_err(|source| BusError::Io { what: "mmap of DMA memory", source })?;
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
