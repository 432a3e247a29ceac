//! A network device of the host by a packet socket (AF_PACKET). Needs CAP_NET_RAW.
//!
//! Takes every frame that comes in on the device, whoever it is for, and none that the host sends; the host's stack sees them
//! as well. A VLAN tag that the device or the kernel took off is put back. What the other end left for hardware to finish
//! (checksum offload, segmentation, as between veth devices) is told by a `virtio_net_hdr` (`PACKET_VNET_HDR`), in both
//! directions: see [`crate::offload`].
//!
//! Frames come and go in bursts, by `recvmmsg` and `sendmmsg`. A ring shared with the kernel (`PACKET_MMAP`) is not used: version 3
//! gives a block of frames only when it is full or after a millisecond, the older versions need a slot of the largest frame's
//! size for each. Frames are sent through the device's queueing discipline, not around it (`PACKET_QDISC_BYPASS`): otherwise
//! neither captures on the device nor its egress filters would see them, and a veth device has no queue to save.

mod socket;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::burst::{BURST, Burst, TAG};
use crate::offload::{Offload, finish, segment, vnet};
use crate::stats::{Shared, add};
use crate::whole::Whole;
use crate::{
    BurstSource, Frame, FrameSink, FrameSource, LinkState, MAX_FRAME, MIN_FRAME, PortError, PortStats,
};
use socket::Received;

/// Frames up to this length are copied to be sent together; of longer ones each is sent at once, from where it is.
const COPIED: usize = 4096;

/// A network device.
#[derive(Debug)]
pub struct PacketPort {
    socket: Arc<OwnedFd>,
    stats: Arc<Shared>,
    sender: PacketSender,
    whole: Whole,
}

impl PacketPort {
    /// Opens the device `name`, in promiscuous mode.
    ///
    /// # Errors
    /// No such device, or no rights.
    pub fn open(name: &str) -> Result<PacketPort, PortError> {
        let index = if_nametoindex(name).map_err(std::io::Error::from)?;
        PacketPort::open_index(index)
    }

    /// Opens the device with this index, in promiscuous mode.
    ///
    /// # Errors
    /// No such device, or no rights.
    pub fn open_index(index: u32) -> Result<PacketPort, PortError> {
        Ok(Self::with(socket::open(index)?))
    }

    /// Takes over the socket of a port that another program had on the device with this index ([`Self::as_fd`]), with the frames that
    /// wait in it.
    ///
    /// # Errors
    /// The socket has no device any more, or another one.
    pub fn adopt(socket: OwnedFd, index: u32) -> Result<PacketPort, PortError> {
        match socket::device(socket.as_fd())? {
            Some(own) if own == index => Ok(Self::with(socket)),
            _ => Err(PortError::Link(LinkState::Gone)),
        }
    }

    fn with(socket: OwnedFd) -> PacketPort {
        let socket = Arc::new(socket);
        let stats = Arc::new(Shared::default());
        let sender = PacketSender::new(Arc::clone(&socket), Arc::clone(&stats));
        PacketPort { socket, stats, sender, whole: Whole::default() }
    }

    /// Another sender to the device, for another thread.
    pub fn sender(&self) -> PacketSender {
        PacketSender::new(Arc::clone(&self.socket), Arc::clone(&self.stats))
    }

    /// What the port and all its senders counted.
    pub fn stats(&self) -> PortStats {
        // The kernel's count starts anew whenever it is read.
        if let Ok(drops) = socket::drops(self.socket.as_fd()) {
            add(&self.stats.rx_overruns, drops.into());
        }
        self.stats.load()
    }

    /// The device's index; `None` once it was deleted or moved to another namespace: then the port is of no more use.
    ///
    /// # Errors
    /// What the system says.
    pub fn device(&self) -> Result<Option<u32>, PortError> {
        Ok(socket::device(self.socket.as_fd())?)
    }

    fn receive_some(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError> {
        let mut received = [Received::default(); BURST];
        let count = match socket::receive(
            self.socket.as_fd(),
            &mut burst.headers,
            &mut burst.frames,
            &mut received,
        ) {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
            // A frame whose segmentation cannot be told by the header; the kernel has dropped it.
            Err(Errno::EINVAL) => {
                add(&self.stats.rx_malformed, 1);
                return Ok(0);
            }
            Err(error) => return Err(down_or_gone(error, self.socket.as_fd())),
        };
        let (mut frames, mut bytes) = (0, 0);
        for (n, Received { len, tag, cut }) in received.into_iter().take(count).enumerate() {
            if cut {
                add(&self.stats.rx_giants, 1);
                continue;
            }
            if len < MIN_FRAME {
                add(&self.stats.rx_runts, 1);
                continue;
            }
            let header = burst.headers[n];
            let frame = burst.frame(n, len, None);
            // Offsets of the header are those of the frame as it came, without the tag.
            let Ok(offload) = vnet::decode(&header, frame) else {
                add(&self.stats.rx_malformed, 1);
                continue;
            };
            let (frame, offload) = match tag {
                None => (frame, offload),
                Some(_) => (
                    burst.frame(n, len, tag),
                    offload.and_then(|offload| offload.inserted(crate::burst::ADDRESSES, TAG)),
                ),
            };
            let offload = segment::finish_sctp(frame, offload);
            frames += 1;
            bytes += frame.len() as u64;
            each(Frame { offload, ..Frame::new(frame) });
        }
        add(&self.stats.rx_frames, frames);
        add(&self.stats.rx_bytes, bytes);
        Ok(count)
    }
}

/// What an error of the socket says of the device.
fn down_or_gone(error: Errno, socket: BorrowedFd<'_>) -> PortError {
    match error {
        Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV => match socket::device(socket) {
            Ok(Some(_)) => PortError::Link(LinkState::Down),
            Ok(None) | Err(_) => PortError::Link(LinkState::Gone),
        },
        error => PortError::Io(error.into()),
    }
}

impl AsFd for PacketPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl BurstSource for PacketPort {
    fn receive_burst(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError> {
        self.receive_some(burst, each)
    }
}

impl FrameSource for PacketPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        Whole::receive(self, |port| &mut port.whole)
    }
}

impl FrameSink for PacketPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        self.sender.send(frame)?;
        self.sender.flush()
    }
}

/// Sends to a network device, many frames at a time: what [`send`](FrameSink::send) took waits for
/// [`flush`](FrameSink::flush), or for more frames.
#[derive(Debug)]
pub struct PacketSender {
    socket: Arc<OwnedFd>,
    stats: Arc<Shared>,
    /// Bytes of the frames that wait, in order.
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
    scratch: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    header: [u8; vnet::LEN],
    start: usize,
    len: usize,
}

impl PacketSender {
    fn new(socket: Arc<OwnedFd>, stats: Arc<Shared>) -> Self {
        Self { socket, stats, bytes: Vec::new(), waiting: Vec::with_capacity(BURST), scratch: Vec::new() }
    }

    /// Queues or sends a frame with its header.
    fn take(&mut self, header: [u8; vnet::LEN], frame: &[u8]) -> Result<(), PortError> {
        if frame.len() > COPIED {
            self.flush()?;
            return self.submit(&[Waiting { header, start: 0, len: frame.len() }], frame);
        }
        self.waiting.push(Waiting { header, start: self.bytes.len(), len: frame.len() });
        self.bytes.extend_from_slice(frame);
        if self.waiting.len() == BURST { self.flush() } else { Ok(()) }
    }

    /// Sends at most [`BURST`] frames that are in `bytes`. Those that are not taken are counted; the first reason that concerns more
    /// than one frame is the result, and ends it.
    fn submit(&self, mut frames: &[Waiting], bytes: &[u8]) -> Result<(), PortError> {
        while !frames.is_empty() {
            let some = frames.iter().filter_map(|w| Some((&w.header, bytes.get(w.start..w.start + w.len)?)));
            let sent = match socket::send(self.socket.as_fd(), some) {
                Ok(sent) => sent,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {
                    add(&self.stats.tx_full, frames.len() as u64);
                    return Err(PortError::Full);
                }
                Err(error @ (Errno::EMSGSIZE | Errno::EINVAL)) => {
                    let counter = if error == Errno::EMSGSIZE {
                        &self.stats.tx_too_long
                    } else {
                        &self.stats.tx_errors
                    };
                    add(counter, 1);
                    frames = &frames[1..];
                    continue;
                }
                Err(error) => {
                    add(&self.stats.tx_errors, frames.len() as u64);
                    return Err(down_or_gone(error, self.socket.as_fd()));
                }
            };
            let (done, rest) = frames.split_at(sent.min(frames.len()));
            add(&self.stats.tx_frames, done.len() as u64);
            add(&self.stats.tx_bytes, done.iter().map(|w| w.len as u64).sum());
            frames = rest;
        }
        Ok(())
    }

    /// A frame that Linux would not cut is cut here.
    fn take_segments(&mut self, frame: &[u8], offload: &Offload) -> Result<(), PortError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        let finished = finish(frame, offload, &mut scratch, &mut |segment| {
            if result.is_ok() {
                result = self.take([0; vnet::LEN], segment);
            }
        });
        self.scratch = scratch;
        if finished.is_err() {
            add(&self.stats.tx_errors, 1);
        }
        finished?;
        result
    }
}

impl FrameSink for PacketSender {
    /// # Errors
    /// Of this frame or of those that waited; they are lost, and counted.
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            add(&self.stats.tx_too_long, 1);
            return Err(PortError::TooLong { len });
        }
        match (vnet::encode(frame.offload.as_ref(), frame.data), frame.offload) {
            (None, Some(offload)) => self.take_segments(frame.data, &offload),
            (header, _) => self.take(header.unwrap_or_default(), frame.data),
        }
    }

    fn flush(&mut self) -> Result<(), PortError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let result = self.submit(&self.waiting, &self.bytes);
        self.waiting.clear();
        self.bytes.clear();
        result
    }
}
