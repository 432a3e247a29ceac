//! The driver's side of the line: a PCI function.

use crate::{BusError, DmaDomain};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// The widths in which registers exist; no other can be written down.
pub trait Register: sealed::Sealed + Copy + PartialEq + std::fmt::LowerHex {
    /// Width in bytes.
    const WIDTH: usize;
    /// All bits set: what a read from a vanished device gives.
    const ALL_ONES: Self;
    /// From the low bits of `v`.
    fn from_u64(v: u64) -> Self;
    /// Zero-extended.
    fn to_u64(self) -> u64;
}

macro_rules! register {
    ($($t:ty),*) => {$(
        impl Register for $t {
            const WIDTH: usize = size_of::<$t>();
            const ALL_ONES: Self = <$t>::MAX;
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}
register!(u8, u16, u32, u64);

/// How accesses to a BAR reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarAccess {
    /// A load or store on mapped memory: no system call, no error; all-ones from a vanished device.
    Mapped,
    /// A call into the transport (system call or message): slow, and can fail.
    Trapped,
}

/// A window onto one BAR. Values are native integers; the bus is little-endian.
pub trait BarWindow: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// How accesses reach the device.
    fn access(&self) -> BarAccess;
    /// Reads `width` (1, 2, 4 or 8) bytes at `offset`, which must be a multiple of it.
    fn read_width(&self, offset: u64, width: usize) -> Result<u64, BusError>;
    /// Writes `width` (1, 2, 4 or 8) bytes at `offset`, which must be a multiple of it, after everything the driver
    /// wrote to DMA memory before.
    fn write_width(&self, offset: u64, width: usize, value: u64) -> Result<(), BusError>;
}

impl dyn BarWindow + '_ {
    /// Reads a register of type `T`.
    pub fn read<T: Register>(&self, offset: u64) -> Result<T, BusError> {
        self.read_width(offset, T::WIDTH).map(T::from_u64)
    }
    /// Writes a register of type `T`.
    pub fn write<T: Register>(&self, offset: u64, value: T) -> Result<(), BusError> {
        self.write_width(offset, T::WIDTH, value.to_u64())
    }
}

/// Kinds of interrupt of a function (VFIO's numbering of the PCI ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqKind {
    /// MSI-X vectors.
    Msix,
    /// The device reported an uncorrectable error.
    Err,
    /// The host asks for the device back.
    Req,
}

/// What the transport offers of one kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors.
    pub count: u32,
    /// Signalled by eventfd.
    pub eventfd: bool,
}

/// Eventfds that tell about the life of the function, where the transport has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct LifecycleEvents<'a> {
    /// The host asks for the device back (VFIO's REQ).
    pub request: Option<BorrowedFd<'a>>,
    /// Uncorrectable error (VFIO's ERR).
    pub error: Option<BorrowedFd<'a>>,
}

/// A PCI function that a driver drives.
pub trait PciFunction: Send + Sync {
    /// A name for messages: the PCI address, or the transport's own.
    fn name(&self) -> &str;
    /// Reads `width` (1, 2 or 4) bytes of configuration space.
    fn config_read(&self, offset: u16, width: usize) -> Result<u32, BusError>;
    /// Writes `width` (1, 2 or 4) bytes of configuration space.
    fn config_write(&self, offset: u16, width: usize, value: u32) -> Result<(), BusError>;
    /// Opens a window onto BAR `index`.
    fn bar(&self, index: u8) -> Result<Arc<dyn BarWindow>, BusError>;
    /// The function's DMA domain.
    fn dma(&self) -> Arc<dyn DmaDomain>;
    /// What there is of one kind of interrupt.
    fn irq_info(&self, kind: IrqKind) -> Result<IrqInfo, BusError>;
    /// Assigns eventfds to vectors `start..`; `None` leaves a vector without one.
    fn set_irqs(&self, kind: IrqKind, start: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<(), BusError>;
    /// Eventfds about the life of the function.
    fn lifecycle(&self) -> LifecycleEvents<'_>;
    /// Function level reset. A transport that cannot says [`BusError::Unsupported`].
    fn reset(&self) -> Result<(), BusError>;
}
