//! A kernel for tests: it answers the calls of [`super::ioctl`] of this thread for a function whose node is a plain file, with
//! configuration space and BARs at offsets in it. Structures are taken apart by the offsets of `linux/vfio.h` and
//! `linux/iommufd.h`, not by our own types.

use nix::errno::Errno;
use nix::libc::c_ulong;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

pub(super) const DEVICE_INFO: c_ulong = 0x3b6b;
pub(super) const REGION_INFO: c_ulong = 0x3b6c;
pub(super) const IRQ_INFO: c_ulong = 0x3b6d;
pub(super) const SET_IRQS: c_ulong = 0x3b6e;
pub(super) const RESET: c_ulong = 0x3b6f;
pub(super) const BIND_IOMMUFD: c_ulong = 0x3b76;
pub(super) const ATTACH: c_ulong = 0x3b77;
pub(super) const IOAS_ALLOC: c_ulong = 0x3b81;
pub(super) const IOVA_RANGES: c_ulong = 0x3b84;
pub(super) const IOAS_MAP: c_ulong = 0x3b85;
pub(super) const IOAS_UNMAP: c_ulong = 0x3b86;

/// Regions by number: offset in the file, size, and areas that may be mapped (offset and size).
type Row = (u32, u64, u64, &'static [(u64, u64)]);
const REGIONS: [Row; 3] = [
    // BAR 0 with a page in it that the kernel keeps to itself.
    (0, 0x1_0000, 0x4000, &[(0, 0x1000), (0x2000, 0x2000)]),
    (2, 0x2_0000, 0x2000, &[(0, 0x2000)]),
    (7, 0, 0x1000, &[]),
];
/// Offset in the file of BAR 0.
pub(super) const BAR0: u64 = 0x1_0000;
/// Length of the file.
pub(super) const LEN: u64 = 0x2_2000;

/// What the kernel knows, and what was asked of it.
pub(super) struct FakeKernel {
    /// The device's file.
    pub(super) device: File,
    /// Flags of the device: 1, it can be reset; 2, it is PCI.
    pub(super) flags: u32,
    /// Interrupts of each kind: INTx, MSI, MSI-X, ERR, REQ; `None`: no such kind.
    pub(super) irqs: [Option<u32>; 5],
    /// Calls that fail.
    pub(super) refuse: BTreeMap<c_ulong, Errno>,
    /// Calls that came.
    pub(super) calls: Vec<c_ulong>,
    /// Mappings: address to length and flags.
    pub(super) maps: BTreeMap<u64, (u64, u32)>,
    /// Command register at the last unmapping.
    pub(super) command_at_unmap: Option<u16>,
    /// Addresses that may be mapped, first and last.
    pub(super) ranges: Vec<[u64; 2]>,
    events: BTreeMap<(u32, u32), OwnedFd>,
}

thread_local! {
    static KERNEL: RefCell<Option<Rc<RefCell<FakeKernel>>>> = const { RefCell::new(None) };
}

/// Takes the fake kernel away again.
pub(super) struct Installed(pub(super) Rc<RefCell<FakeKernel>>);

impl Drop for Installed {
    fn drop(&mut self) {
        KERNEL.with(|k| *k.borrow_mut() = None);
    }
}

/// From now on calls of this thread are answered here, for the device whose file this is.
pub(super) fn install(device: &Path) -> Installed {
    let kernel = Rc::new(RefCell::new(FakeKernel {
        device: File::options().read(true).write(true).open(device).unwrap(),
        flags: 3,
        irqs: [Some(1), Some(0), Some(3), Some(1), Some(1)],
        refuse: BTreeMap::new(),
        calls: Vec::new(),
        maps: BTreeMap::new(),
        command_at_unmap: None,
        ranges: vec![[0, 0xfedf_ffff], [0xfef0_0000, (1 << 39) - 1]],
        events: BTreeMap::new(),
    }));
    KERNEL.with(|k| *k.borrow_mut() = Some(kernel.clone()));
    Installed(kernel)
}

/// The answer to a call; `None`: ask the real kernel. `argument` begins with its size in bytes, or is null.
///
/// # Safety
/// As for the call itself.
pub(super) unsafe fn answer(request: c_ulong, argument: *mut u8) -> Option<nix::Result<()>> {
    let kernel = KERNEL.with(|k| k.borrow().clone())?;
    let mut none = [0; 4];
    let bytes = if argument.is_null() {
        &mut none[..]
    } else {
        // SAFETY: structures begin with their size, by the caller's promise.
        unsafe {
            let size = argument.cast::<u32>().read_unaligned() as usize;
            std::slice::from_raw_parts_mut(argument, size)
        }
    };
    Some(kernel.borrow_mut().call(request, bytes))
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(b[at..at + 4].try_into().unwrap())
}

fn long(b: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(b[at..at + 8].try_into().unwrap())
}

fn put(b: &mut [u8], at: usize, words: &[u32]) {
    for (n, w) in words.iter().enumerate() {
        b[at + 4 * n..at + 4 * n + 4].copy_from_slice(&w.to_ne_bytes());
    }
}

fn put_long(b: &mut [u8], at: usize, value: u64) {
    b[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

impl FakeKernel {
    /// Command register of the device.
    pub(super) fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        self.device.read_exact_at(&mut bytes, 4).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Signals the eventfd of an interrupt, as the device or the kernel would.
    pub(super) fn fire(&self, kind: u32, vector: u32) {
        nix::unistd::write(&self.events[&(kind, vector)], &1u64.to_ne_bytes()).unwrap();
    }

    /// Interrupts that have an eventfd: kind and vector.
    pub(super) fn assigned(&self) -> Vec<(u32, u32)> {
        self.events.keys().copied().collect()
    }

    fn call(&mut self, request: c_ulong, b: &mut [u8]) -> nix::Result<()> {
        self.calls.push(request);
        if let Some(e) = self.refuse.get(&request) {
            return Err(*e);
        }
        match request {
            DEVICE_INFO => put(b, 4, &[self.flags, 9, 5]),
            REGION_INFO => region_info(b),
            IRQ_INFO => {
                let count = self.irqs.get(word(b, 8) as usize).copied().flatten().ok_or(Errno::EINVAL)?;
                put(b, 4, &[1]);
                put(b, 12, &[count]);
            }
            SET_IRQS => return self.set_irqs(b),
            RESET | ATTACH => {}
            BIND_IOMMUFD => put(b, 12, &[77]),
            IOAS_ALLOC => put(b, 8, &[5]),
            IOVA_RANGES => {
                let room = word(b, 8) as usize;
                put(b, 8, &[self.ranges.len() as u32]);
                if room < self.ranges.len() {
                    return Err(Errno::EMSGSIZE);
                }
                let out = std::ptr::with_exposed_provenance_mut::<[u64; 2]>(long(b, 16) as usize);
                // SAFETY: the caller says that there is room for `room` pairs.
                unsafe { std::slice::from_raw_parts_mut(out, self.ranges.len()) }
                    .copy_from_slice(&self.ranges);
                put_long(b, 24, 4096);
            }
            IOAS_MAP => {
                assert_eq!(word(b, 8), 5, "the address space that was allocated");
                self.maps.insert(long(b, 32), (long(b, 24), word(b, 4)));
            }
            IOAS_UNMAP => {
                let (len, _) = self.maps.remove(&long(b, 8)).ok_or(Errno::ENOENT)?;
                self.command_at_unmap = Some(self.command());
                put_long(b, 16, len);
            }
            other => panic!("an unknown call {other:#x}"),
        }
        Ok(())
    }

    fn set_irqs(&mut self, b: &[u8]) -> nix::Result<()> {
        let (flags, kind, start, count) = (word(b, 4), word(b, 8), word(b, 12), word(b, 16));
        let there = self.irqs.get(kind as usize).copied().flatten().ok_or(Errno::EINVAL)?;
        if start + count > there {
            return Err(Errno::EINVAL);
        }
        match flags {
            // DATA_NONE, ACTION_TRIGGER: all off, or raised by the kernel.
            0x21 if count == 0 => self.events.retain(|k, _| k.0 != kind),
            0x21 => self.fire(kind, start),
            0x24 => {
                for n in 0..count {
                    let fd = word(b, 20 + 4 * n as usize) as i32;
                    self.events.remove(&(kind, start + n));
                    if fd >= 0 {
                        // SAFETY: the caller's descriptor is open during the call.
                        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                        self.events.insert((kind, start + n), fd.try_clone_to_owned().unwrap());
                    }
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

fn region_info(b: &mut [u8]) {
    let index = word(b, 8);
    let &(_, start, size, areas) =
        REGIONS.iter().find(|r| r.0 == index).unwrap_or(&(0, 0, 0, &[] as &[(u64, u64)]));
    put_long(b, 16, size);
    put_long(b, 24, start);
    // READ, WRITE; MMAP and CAPS where there are areas.
    put(b, 4, &[if size == 0 { 0 } else { 3 } | if areas.is_empty() { 0 } else { 12 }]);
    put(b, 12, &[0]);
    let whole = if areas.is_empty() { 32 } else { 48 + 16 * areas.len() };
    if b.len() < whole || areas.is_empty() {
        put(b, 0, &[whole as u32]);
        return;
    }
    put(b, 12, &[32]);
    put(b, 32, &[1 | 1 << 16, 0, areas.len() as u32, 0]);
    for (n, (offset, len)) in areas.iter().enumerate() {
        put_long(b, 48 + 16 * n, *offset);
        put_long(b, 56 + 16 * n, *len);
    }
}
