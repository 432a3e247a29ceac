//! Work that a frame's sender left for hardware: a checksum to complete, a large frame to cut into segments.
//!
//! A host's stack hands its device one frame of up to 64 KiB with half a checksum (Linux: `CHECKSUM_PARTIAL`, GSO) and lets
//! the device do the rest; on a veth or TAP device nobody does it. Such a frame travels whole, with an [`Offload`] beside
//! it, as long as its ports understand that; [`finish`](segment::finish) does the work in software for all who do not.
//!
//! While a checksum is partial, its field holds the sum of the pseudo-header (not complemented), and everything from
//! [`csum_start`](Offload::csum_start) on is still to be added. So a change of an address changes the field, and a change of
//! a port does not.

pub mod segment;
pub mod vnet;

use std::num::NonZeroU16;

pub use segment::{CannotFinish, finish};

/// What is left to do on a frame. Offsets are in bytes from the frame's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Where the checksummed bytes begin, which end with the frame: the L4 header.
    pub csum_start: u16,
    /// Where the checksum is, from [`csum_start`](Self::csum_start).
    pub csum_offset: u16,
    /// The frame is larger than what may be sent, and how it is to be cut.
    pub gso: Option<Gso>,
}

/// How a large frame is cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// By which protocol.
    pub kind: GsoKind,
    /// The frame has CWR set, for its first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Payload bytes of each segment but the last.
    pub size: NonZeroU16,
    /// Where the IP header is whose lengths follow the segment's.
    pub l3_start: u16,
}

/// The protocol of a large frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segmentation (TSO).
    Tcp,
    /// UDP segmentation into datagrams (USO).
    Udp,
}

impl GsoKind {
    /// Where the protocol's checksum is in its header.
    pub const fn csum_offset(self) -> u16 {
        match self {
            GsoKind::Tcp => 16,
            GsoKind::Udp => 6,
        }
    }
}

impl Offload {
    /// The same work after `count` bytes were put in ahead of the byte `at`. `None` if the offsets fit no more: then nobody
    /// can do the work.
    #[must_use]
    pub fn inserted(self, at: usize, count: usize) -> Option<Self> {
        self.moved(|offset| if offset >= at { offset.checked_add(count) } else { Some(offset) })
    }

    /// The same work after `count` bytes from the byte `at` on were taken out. `None` if they had what was to be worked on.
    #[must_use]
    pub fn removed(self, at: usize, count: usize) -> Option<Self> {
        self.moved(|offset| {
            if offset <= at {
                return Some(offset);
            }
            offset.checked_sub(count).filter(|offset| *offset >= at)
        })
    }

    fn moved(self, to: impl Fn(usize) -> Option<usize>) -> Option<Self> {
        let to = |offset: u16| to(usize::from(offset)).and_then(|o| u16::try_from(o).ok());
        let gso = match self.gso {
            Some(gso) => Some(Gso { l3_start: to(gso.l3_start)?, ..gso }),
            None => None,
        };
        Some(Self { csum_start: to(self.csum_start)?, gso, ..self })
    }

    /// What is left of the work when only the first `len` bytes of `frame` stay: a frame that is not longer than a segment
    /// is not cut, and a checksum that is gone is not completed.
    #[must_use]
    pub fn cut(self, frame: &[u8], len: usize) -> Option<Self> {
        if self.checksum_end() > len {
            return None;
        }
        let gso = self.gso.filter(|_| self.segment_len(frame).is_some_and(|segment| segment < len));
        Some(Self { gso, ..self })
    }

    /// Where the checksum field ends.
    fn checksum_end(&self) -> usize {
        usize::from(self.csum_start) + usize::from(self.csum_offset) + 2
    }

    /// Length of the headers that each segment of `frame` gets. `None` where they are not whole, or nothing is to be cut.
    pub fn header_len(&self, frame: &[u8]) -> Option<usize> {
        let l4 = usize::from(self.csum_start);
        let len = match self.gso?.kind {
            GsoKind::Tcp => usize::from(frame.get(l4 + 12)? >> 4) * 4,
            GsoKind::Udp => 8,
        };
        let least = match self.gso?.kind {
            GsoKind::Tcp => 20,
            GsoKind::Udp => 8,
        };
        (len >= least && l4 + len <= frame.len()).then_some(l4 + len)
    }

    /// Length of the longest segment of `frame`, with all headers. `None` if nothing is to be cut.
    pub fn segment_len(&self, frame: &[u8]) -> Option<usize> {
        let size = usize::from(self.gso?.size.get());
        Some((self.header_len(frame)? + size).min(frame.len()))
    }
}

/// Where the IP header of an Ethernet frame begins, behind any number of VLAN tags. `None` for other frames.
pub fn ip_header(frame: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *frame.get(at..)?.first_chunk()? {
            [0x08, 0x00] | [0x86, 0xdd] => return Some(at + 2),
            [0x81, 0x00] | [0x88, 0xa8] => at += 4,
            _ => return None,
        }
    }
}

/// Bytes of VLAN tags in an Ethernet frame: an MTU does not count them.
pub(crate) fn vlan_tags(frame: &[u8]) -> usize {
    let mut len = 0;
    while let Some([0x81, 0x00] | [0x88, 0xa8]) = frame.get(12 + len..).and_then(|rest| rest.first_chunk()) {
        len += 4;
    }
    len
}
