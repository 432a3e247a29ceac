//! Packets in and out of the host.
//!
//! A port is a [`FrameSource`], a [`FrameSink`] or both. What there is: capture files ([`capture`]), wires in memory
//! ([`memory`]) and of Unix datagrams ([`datagram`]), TAP devices ([`tap`]), and network devices of the host ([`packet`]). The crate knows Ethernet frames as bytes and nothing of what is in them.
//!
//! Frames are lent, not boxed: a source lends a slice of its own buffer until the next call, so that a million packets
//! cost no allocation each.

pub mod capture;
pub mod datagram;
pub mod memory;
pub mod packet;
pub mod tap;

use thiserror::Error;

pub use capture::{CaptureError, CaptureFile, CaptureReader, PcapWriter};
pub use datagram::DatagramPort;
pub use memory::MemoryPort;
pub use packet::PacketPort;
pub use tap::TapPort;

/// The longest frame that any port takes or gives, in bytes: what capture programs use as the largest snapshot length.
pub const MAX_FRAME: usize = 262_144;

/// An Ethernet frame, without its frame check sequence, and what is known about its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When the frame was seen: nanoseconds since the epoch, 0 where the source has no clock.
    pub timestamp_ns: u64,
    /// Which of the source's interfaces saw it: an index, for a capture into [`CaptureReader::interfaces`] (or
    /// [`CaptureFile::interfaces`]), 0 where a source is one interface.
    pub interface: u32,
    /// The frame's length on the wire, in bytes. More than `data.len()` when the capture kept only the beginning; a
    /// damaged capture can also have less.
    pub orig_len: u32,
    /// The bytes, from the destination address on.
    pub data: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A whole frame without a time.
    pub fn new(data: &'a [u8]) -> Frame<'a> {
        Frame { timestamp_ns: 0, interface: 0, orig_len: u32::try_from(data.len()).unwrap_or(u32::MAX), data }
    }
}

/// Where frames come from.
pub trait FrameSource {
    /// The next frame, or `None` when there is none now: at the end of a file, or while a wire is idle. Never waits.
    ///
    /// # Errors
    /// A source that fails in the middle (a damaged capture) has lent every frame before the damage; after an error it
    /// has no more frames.
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError>;
}

/// Where frames go.
pub trait FrameSink {
    /// Sends one frame; it has been copied when this returns. Never waits.
    ///
    /// # Errors
    /// [`PortError::Full`] when nothing can be taken now: the frame is still the caller's, to send again or to count as
    /// lost.
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError>;
}

/// Why a port did not take or give a frame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PortError {
    /// The other side takes no more now.
    #[error("the port takes no more frames now")]
    Full,
    /// The frame is longer than a port takes.
    #[error("a frame of {len} bytes, the limit is {MAX_FRAME}")]
    TooLong {
        /// The frame's length in bytes.
        len: usize,
    },
    /// The frame's time does not fit: classic captures count seconds in 32 bits, until 2106.
    #[error("a time stamp of {timestamp_ns} ns does not fit into a capture file")]
    Time {
        /// Nanoseconds since the epoch.
        timestamp_ns: u64,
    },
    /// A capture file is damaged.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The operating system failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
