//! The vfio-user protocol, version 0.0: what driver and simulator say to each other over a Unix socket, and what QEMU's
//! `vfio-user-pci` says to the simulator.
//!
//! Here are the messages as they lie on the wire ([`Header`] and the payload structures), the capabilities that both sides
//! exchange at first ([`Capabilities`]), and the socket that carries messages with file descriptors ([`Endpoint`]). What
//! the messages do is the business of the two sides. All numbers are in the host's byte order: both sides are on one host.
//!
//! Source: "vfio-user Protocol Specification" in QEMU's documentation, and `<linux/vfio.h>` for the structures that it
//! refers to.

mod capabilities;
mod endpoint;

pub use capabilities::Capabilities;
pub use endpoint::{Endpoint, Message, ProtocolError};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version: another one is another protocol.
pub const MAJOR: u16 = 0;
/// Minor version that both sides of ours speak.
pub const MINOR: u16 = 0;
/// Most bytes of one region read or write, unless the peer says otherwise.
pub const MAX_DATA: u32 = 1 << 20;
/// Longest message that an [`Endpoint`] takes, in bytes: the largest data transfer and its headers.
pub const MAX_MESSAGE: u32 = MAX_DATA + 64;
/// Most file descriptors in one message that our sides take and send. QEMU's own limit is the same.
pub const MAX_FDS: usize = 16;

/// What a message asks for.
pub mod command {
    /// First message of a session: version and capabilities.
    pub const VERSION: u16 = 1;
    /// The device may reach this memory from now on.
    pub const DMA_MAP: u16 = 2;
    /// The device may reach this memory no more.
    pub const DMA_UNMAP: u16 = 3;
    /// Number of regions and interrupt kinds.
    pub const GET_INFO: u16 = 4;
    /// Size, access and mapping of a region.
    pub const GET_REGION_INFO: u16 = 5;
    /// Descriptors that tell the server of writes to a region.
    pub const GET_REGION_IO_FDS: u16 = 6;
    /// Number of interrupts of a kind.
    pub const GET_IRQ_INFO: u16 = 7;
    /// Assigns, triggers or masks interrupts.
    pub const SET_IRQS: u16 = 8;
    /// Reads from a region.
    pub const REGION_READ: u16 = 9;
    /// Writes to a region.
    pub const REGION_WRITE: u16 = 10;
    /// Server to client: reads mapped memory by message.
    pub const DMA_READ: u16 = 11;
    /// Server to client: writes mapped memory by message.
    pub const DMA_WRITE: u16 = 12;
    /// Resets the device.
    pub const RESET: u16 = 13;
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// The type of message: 0 a command, 1 a reply.
    pub const TYPE: u32 = 0xf;
    /// Type of a reply.
    pub const REPLY: u32 = 1;
    /// In a command: no reply is wanted, not even of an error.
    pub const NO_REPLY: u32 = 1 << 4;
    /// In a reply: the command failed, [`Header::error`](super::Header::error) is an errno.
    pub const ERROR: u32 = 1 << 5;
}

/// Regions of a PCI device (`VFIO_PCI_*_REGION_INDEX`); 0 to 5 are the BARs.
pub mod region {
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Number of regions: BARs, expansion ROM, configuration space, VGA.
    pub const COUNT: u32 = 9;
}

/// Kinds of interrupt of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
pub mod irq {
    /// MSI-X vectors.
    pub const MSIX: u32 = 2;
    /// The device failed.
    pub const ERR: u32 = 3;
    /// The device is wanted back.
    pub const REQ: u32 = 4;
    /// Number of kinds: INTx, MSI, MSI-X, ERR, REQ.
    pub const COUNT: u32 = 5;
    /// [`IrqInfo::flags`](super::IrqInfo::flags): signalled by eventfd.
    pub const EVENTFD: u32 = 1;

    /// [`IrqSet::flags`](super::IrqSet::flags): no data.
    pub const DATA_NONE: u32 = 1;
    /// One byte per interrupt, 0 or not.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// One file descriptor per interrupt; none at all takes them away.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// All kinds of data.
    pub const DATA: u32 = 0x7;
    /// Triggers the interrupts, or says what is signalled when the device does.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
    /// All actions: mask, unmask, trigger.
    pub const ACTION: u32 = 0x38;
}

/// Before every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// The sender's number for the message; its reply carries the same.
    pub id: u16,
    /// See [`command`].
    pub command: u16,
    /// Length of the whole message in bytes, this header included.
    pub size: u32,
    /// See [`flag`].
    pub flags: u32,
    /// In a reply with [`flag::ERROR`]: errno. Else 0.
    pub error: u32,
}

impl Header {
    /// Length in bytes.
    pub const SIZE: usize = size_of::<Self>();

    /// This message answers a command.
    pub fn is_reply(&self) -> bool {
        self.flags & flag::TYPE == flag::REPLY
    }
}

/// [`command::VERSION`], both ways; the capabilities follow as JSON text with a terminating NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Version {
    /// See [`MAJOR`].
    pub major: u16,
    /// See [`MINOR`].
    pub minor: u16,
}

/// [`command::DMA_MAP`]; a file descriptor of the memory comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaMap {
    /// Length of this structure in bytes.
    pub argsz: u32,
    /// [`DmaMap::READ`], [`DmaMap::WRITE`].
    pub flags: u32,
    /// Offset into the file in bytes.
    pub offset: u64,
    /// First IOVA.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

impl DmaMap {
    /// The device may read.
    pub const READ: u32 = 1;
    /// The device may write.
    pub const WRITE: u32 = 2;
}

/// [`command::DMA_READ`] and its reply, which the data follow; [`command::DMA_WRITE`], which the data follow, and its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaAccess {
    /// First I/O virtual address.
    pub address: u64,
    /// Length of the data in bytes.
    pub count: u64,
}

/// [`command::DMA_UNMAP`], both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaUnmap {
    /// Length of the longest reply that the client takes, without header.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// First IOVA.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

/// [`command::GET_INFO`], both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Length of the reply in bytes, without header.
    pub argsz: u32,
    /// [`DeviceInfo::RESET`], [`DeviceInfo::PCI`].
    pub flags: u32,
    /// See [`region`].
    pub regions: u32,
    /// See [`irq`].
    pub irqs: u32,
}

impl DeviceInfo {
    /// The device can be reset.
    pub const RESET: u32 = 1;
    /// It is a PCI device.
    pub const PCI: u32 = 2;
}

/// [`command::GET_REGION_INFO`], both ways; in a reply, capabilities and a file descriptor may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// Asked: the longest reply that the client takes. Answered: the length of the full reply, without header.
    pub argsz: u32,
    /// [`RegionInfo::READ`] and so on.
    pub flags: u32,
    /// Region.
    pub index: u32,
    /// Where the capabilities begin, counted from this structure; 0: there are none.
    pub cap_offset: u32,
    /// Size in bytes; 0: there is no such region.
    pub size: u64,
    /// Offset of the region in its file.
    pub offset: u64,
}

impl RegionInfo {
    /// The region can be read.
    pub const READ: u32 = 1;
    /// The region can be written.
    pub const WRITE: u32 = 2;
    /// The region, or parts of it, can be mapped; a file descriptor comes with the reply.
    pub const MMAP: u32 = 4;
    /// Capabilities follow.
    pub const CAPS: u32 = 8;
}

/// Capability of a region: the parts of it that can be mapped. [`SparseArea`]s follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SparseMmap {
    /// [`SparseMmap::ID`].
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Where the next capability begins, 0: nowhere.
    pub next: u32,
    /// Number of areas.
    pub areas: u32,
    /// 0.
    pub reserved: u32,
}

impl SparseMmap {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
    pub const ID: u16 = 1;
}

/// A part of a region that can be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SparseArea {
    /// Offset in the region in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// [`command::GET_REGION_IO_FDS`], both ways; in a reply, sub-regions and file descriptors follow, see [`IoEventFd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionIoFds {
    /// Asked: the longest reply that the client takes. Answered: the length of the full reply, without header.
    pub argsz: u32,
    /// 0, or [`RegionIoFds::WHILE_ASLEEP`].
    pub flags: u32,
    /// Region.
    pub index: u32,
    /// Asked: 0. Answered: number of sub-regions.
    pub count: u32,
}

impl RegionIoFds {
    /// An addition of this project's, asked for by the client and granted in the answer: an eventfd need be written only while
    /// the last 4 bytes of the region's memory are not 0, which the server sees to before it sleeps. A server that does not know
    /// it refuses, and is asked again without.
    pub const WHILE_ASLEEP: u32 = 1 << 31;
    /// Length of the word in bytes.
    pub const ASLEEP_LEN: u64 = 4;
}

/// A sub-region whose writes an eventfd tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IoEventFd {
    /// Offset in the region in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// Which of the reply's descriptors.
    pub fd_index: u32,
    /// [`IoEventFd::TYPE`].
    pub kind: u32,
    /// 0: every value is told.
    pub flags: u32,
    /// 0.
    pub padding: u32,
    /// 0.
    pub datamatch: u64,
}

impl IoEventFd {
    /// `VFIO_USER_IO_FD_TYPE_IOEVENTFD`.
    pub const TYPE: u32 = 0;
}

/// [`command::GET_IRQ_INFO`], both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// Length of the reply in bytes, without header.
    pub argsz: u32,
    /// [`irq::EVENTFD`].
    pub flags: u32,
    /// Kind, see [`irq`].
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// [`command::SET_IRQS`]; bytes or file descriptors follow, as the flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Length of the payload in bytes.
    pub argsz: u32,
    /// One of `DATA_*` and one of `ACTION_*`, see [`irq`].
    pub flags: u32,
    /// Kind, see [`irq`].
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// Number of interrupts. 0 with [`irq::DATA_NONE`]: all of the kind are disabled.
    pub count: u32,
}

/// [`command::REGION_READ`] and [`command::REGION_WRITE`], both ways; data follow in a write and in the reply to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset in the region in bytes.
    pub offset: u64,
    /// Region.
    pub region: u32,
    /// Bytes accessed.
    pub count: u32,
}

#[cfg(test)]
mod tests;
