//! Packets in and out of the host.
//!
//! A port is a [`FrameSource`], a [`FrameSink`] or both. What there is: capture files ([`capture`]), wires in memory
//! ([`memory`]) and of Unix datagrams ([`datagram`]), TAP devices ([`tap`]), and network devices of the host ([`packet`]), which
//! [`link`] watches and sets. [`unix`] binds sockets where a dead process may have left its own. The crate knows Ethernet frames as bytes and nothing of what is in them, but where a frame that is
//! not finished has to be ([`offload`]).
//!
//! Frames are lent, not boxed: a source lends a slice of its own buffer until the next call, so that a million packets
//! cost no allocation each. A [`BurstSource`] receives many at a time, and lends them as their sender left them.

mod burst;
pub mod capture;
pub mod datagram;
pub mod host;
pub mod link;
pub mod memory;
mod mmsg;
pub mod namespace;
pub mod offload;
pub mod packet;
mod sockopt;
mod stats;
pub mod tap;
pub mod tunnel;
pub mod unix;
mod whole;

use thiserror::Error;

pub use burst::{BURST, Burst, MAX_RECEIVED};
pub use capture::{CaptureError, CaptureFile, CaptureReader, PcapWriter};
pub use datagram::DatagramPort;
pub use host::{HostPort, HostSpec};
pub use memory::MemoryPort;
pub use offload::Offload;
pub use packet::{PacketPort, PacketSender};
pub use stats::PortStats;
pub use tap::{InternalConfig, InternalPort, TapPort, TapSender};
pub use tunnel::{HeaderError, TunnelInfo, TunnelKind, TunnelPort, TunnelSender};

/// The longest frame that any port takes or gives, in bytes: what capture programs use as the largest snapshot length.
pub const MAX_FRAME: usize = 262_144;
/// The shortest frame that a network device gives: an Ethernet header.
pub const MIN_FRAME: usize = 14;

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
    /// What is left to do before the frame can go onto a wire; `None` for a whole frame.
    pub offload: Option<Offload>,
}

impl<'a> Frame<'a> {
    /// A whole frame without a time.
    pub fn new(data: &'a [u8]) -> Frame<'a> {
        let orig_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Frame { timestamp_ns: 0, interface: 0, orig_len, data, offload: None }
    }

    /// Gives the whole frames that this one stands for to `each`, in order, until one fails.
    ///
    /// # Errors
    /// That of `each`, or [`PortError::Unfinished`].
    pub fn finish(self, mut each: impl FnMut(Frame<'_>) -> Result<(), PortError>) -> Result<(), PortError> {
        let Some(offload) = self.offload else { return each(self) };
        let mut result = Ok(());
        offload::finish(self.data, &offload, &mut Vec::new(), &mut |data| {
            if result.is_ok() {
                let Frame { timestamp_ns, interface, .. } = self;
                result = each(Frame { timestamp_ns, interface, ..Frame::new(data) });
            }
        })?;
        result
    }
}

/// Where whole frames come from.
pub trait FrameSource {
    /// The next frame, which is whole, or `None` when there is none now: at the end of a file, or while a wire is idle. Never waits.
    ///
    /// # Errors
    /// A source that fails in the middle (a damaged capture) has lent every frame before the damage; after an error it
    /// has no more frames.
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError>;
}

/// Where frames come from as their senders left them, many at a time.
pub trait BurstSource {
    /// Gives the frames that wait to `each`, in order and at most [`BURST`] of them; they may have an
    /// [`offload`](Frame::offload). Returns how many were taken from the port, those included that it dropped and counted: 0 when
    /// none waits. Never waits.
    ///
    /// # Errors
    /// [`PortError::Link`] when the device is down or gone, once for each time that it goes down; what else the system says. The
    /// port can be used on unless the device is gone.
    fn receive_burst(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError>;
}

/// Where frames go.
pub trait FrameSink {
    /// Sends one frame; it has been copied when this returns. Never waits. A frame with an [`offload`](Frame::offload) is passed on
    /// as it is where the other side understands that, and otherwise finished in software.
    ///
    /// # Errors
    /// [`PortError::Full`] when nothing can be taken now: the frame is still the caller's, to send again or to count as
    /// lost.
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError>;

    /// Sends the frames that [`send`](Self::send) took and kept, to send many together. Nothing for most sinks.
    ///
    /// # Errors
    /// What became of the kept frames; they are no longer kept.
    fn flush(&mut self) -> Result<(), PortError> {
        Ok(())
    }
}

/// Why a device neither gives nor takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is set down; when it is up again, the port goes on.
    Down,
    /// It was deleted or moved to another namespace: the port is of no more use.
    Gone,
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
    /// The device does not work now.
    #[error("the device is {}", match .0 { LinkState::Down => "down", LinkState::Gone => "gone" })]
    Link(LinkState),
    /// What the frame's sender left to do cannot be done.
    #[error(transparent)]
    Unfinished(#[from] offload::CannotFinish),
    /// A tunnel does not carry such a packet.
    #[error(transparent)]
    NotCarried(#[from] HeaderError),
    /// A capture file is damaged.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The operating system failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
