//! Access to the regions of a served device: messages, or plain memory.

use super::link::{Link, nonsense};
use flowlift_bus::vfio_user::{RegionAccess, RegionIoFds, command};
use flowlift_bus::{BarAccess, BarWindow, BusError, DmaMem};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use zerocopy::IntoBytes;

/// One BAR.
pub(super) struct Bar {
    pub(super) index: u8,
    pub(super) size: u64,
    /// Its memory, where the server shares it.
    pub(super) mapped: Option<DmaMem>,
    /// Where it begins in that memory.
    pub(super) base: usize,
    /// Wakes a server that sleeps, as a store to memory does not.
    pub(super) bell: Option<Bell>,
}

/// The eventfd by which a server hears of stores to a BAR's memory.
pub(super) struct Bell {
    fd: OwnedFd,
    /// The server says when it sleeps ([`RegionIoFds::WHILE_ASLEEP`]): a store to one that is awake needs no system call.
    while_asleep: bool,
}

impl Bell {
    /// `None` for a descriptor that is no eventfd: writing to anything else could wait.
    pub(super) fn new(fd: OwnedFd, while_asleep: bool) -> Option<Self> {
        let link = nix::fcntl::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()).ok()?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
        (link == "anon_inode:[eventfd]").then_some(Self { fd, while_asleep })
    }

    /// Tells the server of a store to `bar`, which is done.
    fn ring(&self, bar: &Bar, mem: &DmaMem) -> Result<(), BusError> {
        if self.while_asleep {
            // Either this sees the word, or the server, which sets it before its last look, sees the store.
            fence(Ordering::SeqCst);
            let at = bar.base + (bar.size - RegionIoFds::ASLEEP_LEN) as usize;
            if mem.load_u32(at, Ordering::Relaxed)? == 0 {
                return Ok(());
            }
        }
        // A full counter wakes as well.
        let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// A window onto a BAR.
pub(super) struct Window {
    pub(super) link: Arc<Link>,
    pub(super) bar: Arc<Bar>,
}

/// Reads `width` bytes of a region by message.
pub(super) fn read(
    link: &Link,
    what: &'static str,
    region: u32,
    offset: u64,
    width: usize,
) -> Result<u64, BusError> {
    let access = RegionAccess { offset, region, count: width as u32 };
    let answer = link.ask(what, command::REGION_READ, &[access.as_bytes()], &[])?;
    let (echo, data) = answer.parse::<RegionAccess>()?;
    if echo != access || data.len() != width {
        return Err(nonsense(what));
    }
    let mut value = [0; 8];
    value[..width].copy_from_slice(data);
    Ok(u64::from_le_bytes(value))
}

/// Writes `width` bytes of a region by message. The answer is waited for: a doorbell after it is memory, and must not
/// overtake it.
pub(super) fn write(
    link: &Link,
    what: &'static str,
    region: u32,
    offset: u64,
    width: usize,
    value: u64,
) -> Result<(), BusError> {
    let access = RegionAccess { offset, region, count: width as u32 };
    link.ask(what, command::REGION_WRITE, &[access.as_bytes(), &value.to_le_bytes()[..width]], &[])?;
    Ok(())
}

impl Window {
    fn check(&self, offset: u64, width: usize) -> Result<(), BusError> {
        let fits = matches!(width, 1 | 2 | 4 | 8)
            && offset.is_multiple_of(width as u64)
            && offset.checked_add(width as u64).is_some_and(|end| end <= self.bar.size);
        if fits {
            return Ok(());
        }
        Err(BusError::OutOfRange { what: "a BAR", offset, len: width, size: self.bar.size })
    }
}

impl BarWindow for Window {
    fn size(&self) -> u64 {
        self.bar.size
    }

    fn access(&self) -> BarAccess {
        if self.bar.mapped.is_some() { BarAccess::Mapped } else { BarAccess::Trapped }
    }

    fn read_width(&self, offset: u64, width: usize) -> Result<u64, BusError> {
        self.check(offset, width)?;
        let Some(mem) = &self.bar.mapped else {
            return read(&self.link, "register read", self.bar.index.into(), offset, width);
        };
        // The memory outlives its server; what a vanished device would give does not.
        if self.link.is_gone() {
            return Ok(u64::MAX >> (64 - width * 8));
        }
        let at = self.bar.base + offset as usize;
        match width {
            8 => mem.load_u64(at, Ordering::Acquire),
            4 => mem.load_u32(at, Ordering::Acquire).map(u64::from),
            _ => {
                let mut b = [0; 8];
                mem.read_bytes(at, &mut b[..width])?;
                Ok(u64::from_le_bytes(b))
            }
        }
    }

    fn write_width(&self, offset: u64, width: usize, value: u64) -> Result<(), BusError> {
        self.check(offset, width)?;
        let Some(mem) = &self.bar.mapped else {
            return write(&self.link, "register write", self.bar.index.into(), offset, width, value);
        };
        let at = self.bar.base + offset as usize;
        match width {
            8 => mem.store_u64(at, value, Ordering::Release),
            4 => mem.store_u32(at, value as u32, Ordering::Release),
            _ => {
                fence(Ordering::Release);
                mem.write_bytes(at, &value.to_le_bytes()[..width])
            }
        }?;
        self.bar.bell.as_ref().map_or(Ok(()), |bell| bell.ring(&self.bar, mem))
    }
}
