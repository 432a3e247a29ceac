//! `virtio_net_hdr`, by which Linux tells of unfinished frames (virtio 1.2, section 5.1.6; `<linux/virtio_net.h>`): the legacy
//! form of 10 bytes, in the host's byte order, as packet sockets and TAP devices use it.

use super::{Gso, GsoKind, Offload, ip_header};
use std::num::NonZeroU16;

/// Size of the header in bytes.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A header that says what cannot be done with its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a virtio_net_hdr (flags {flags:#x}, gso_type {gso_type:#x}) that does not fit its frame")]
pub struct BadHeader {
    /// Flags.
    pub flags: u8,
    /// Kind of segmentation.
    pub gso_type: u8,
}

fn word(header: &[u8; LEN], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

/// What is left to do on `frame`, which came with `header`.
///
/// # Errors
/// A header that points past the frame, and segmentation of a kind that we do not know, of a frame that is not Ethernet and IP, or
/// without a partial checksum (Linux gives none of them, but for UDP without checksums that was coalesced to be forwarded).
pub fn decode(header: &[u8; LEN], frame: &[u8]) -> Result<Option<Offload>, BadHeader> {
    let [flags, gso_type, ..] = *header;
    let bad = BadHeader { flags, gso_type };
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 | GSO_TCPV6 => Some(GsoKind::Tcp),
        GSO_UDP_L4 => Some(GsoKind::Udp),
        _ => return Err(bad),
    };
    if flags & NEEDS_CSUM == 0 {
        return if kind.is_some() { Err(bad) } else { Ok(None) };
    }
    let mut offload = Offload { csum_start: word(header, 6), csum_offset: word(header, 8), gso: None };
    if offload.checksum_end() > frame.len() {
        return Err(bad);
    }
    if let Some(kind) = kind {
        let size = NonZeroU16::new(word(header, 4)).ok_or(bad)?;
        let l3_start = ip_header(frame).and_then(|at| u16::try_from(at).ok()).ok_or(bad)?;
        if offload.csum_offset != kind.csum_offset() || l3_start >= offload.csum_start {
            return Err(bad);
        }
        offload.gso = Some(Gso { kind, ecn: gso_type & GSO_ECN != 0, size, l3_start });
        offload.header_len(frame).ok_or(bad)?;
    }
    Ok(Some(offload))
}

/// The header for `frame`. `None` if Linux would not take it: it cuts frames of Ethernet, VLAN tags and IP only.
pub fn encode(offload: Option<&Offload>, frame: &[u8]) -> Option<[u8; LEN]> {
    let mut header = [0; LEN];
    let Some(offload) = offload else { return Some(header) };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&offload.csum_start.to_ne_bytes());
    header[8..10].copy_from_slice(&offload.csum_offset.to_ne_bytes());
    if let Some(gso) = offload.gso {
        let l3 = ip_header(frame).filter(|l3| *l3 == usize::from(gso.l3_start))?;
        let kind = match (gso.kind, frame.get(l3)? >> 4) {
            (GsoKind::Tcp, 4) => GSO_TCPV4,
            (GsoKind::Tcp, _) => GSO_TCPV6,
            (GsoKind::Udp, _) => GSO_UDP_L4,
        };
        header[1] = if gso.ecn { kind | GSO_ECN } else { kind };
        let hdr_len = u16::try_from(offload.header_len(frame)?).ok()?;
        header[2..4].copy_from_slice(&hdr_len.to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.get().to_ne_bytes());
    }
    Some(header)
}
