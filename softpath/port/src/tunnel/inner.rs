//! What a tunnel must know of the frames within it.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroUsize};

use super::ETHERNET;
use crate::MIN_FRAME;
use crate::offload::{Gso, GsoKind, Offload, ip_header, segment::sum};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Shortest packet of a protocol that is taken out of a tunnel, in bytes: Linux's tunnel devices drop shorter ones.
pub fn min_len(protocol: u16) -> usize {
    match protocol {
        ETHERNET => MIN_FRAME,
        IPV4 => 20,
        IPV6 => 40,
        _ => 1,
    }
}

/// Where the IP header is in a frame, or in a packet without an Ethernet header.
fn ip_at(packet: &[u8], protocol: u16) -> Option<usize> {
    match protocol {
        ETHERNET => ip_header(packet),
        IPV4 | IPV6 => Some(0),
        _ => None,
    }
}

/// An IP packet in a frame, as far as a tunnel looks.
struct Ip<'f> {
    /// Where its header begins in the frame.
    l3: usize,
    /// Where its payload begins, without IPv6 extension headers.
    l4: usize,
    proto: u8,
    addresses: &'f [u8],
    /// It is not a fragment.
    whole: bool,
}

fn ip(frame: &[u8], protocol: u16) -> Option<Ip<'_>> {
    let l3 = ip_at(frame, protocol)?;
    let header = frame.get(l3..)?;
    Some(match header.first()? >> 4 {
        4 => {
            let len = usize::from(header[0] & 0x0f) * 4;
            let fragment = u16::from_be_bytes([*header.get(6)?, *header.get(7)?]) & 0x3fff;
            let addresses = header.get(12..20).filter(|_| len >= 20)?;
            Ip { l3, l4: l3 + len, proto: header[9], addresses, whole: fragment == 0 }
        }
        6 => {
            let addresses = header.get(8..40)?;
            Ip { l3, l4: l3 + 40, proto: header[6], addresses, whole: true }
        }
        _ => return None,
    })
}

/// The outer UDP source port for a frame, or another packet by its protocol: the same for all of a flow, as different as may be between
/// flows (RFC 7348, section 5).
pub fn source_port(frame: &[u8], protocol: u16) -> u16 {
    // FNV-1a (Fowler, Noll, Vo).
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut mix = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match ip(frame, protocol) {
        Some(ip) => {
            mix(ip.addresses);
            mix(&[ip.proto]);
            if ip.whole && matches!(ip.proto, 6 | 17 | 132) {
                mix(frame.get(ip.l4..ip.l4 + 4).unwrap_or_default());
            }
        }
        None => mix(frame.get(..14).unwrap_or(frame)),
    }
    32_768 + ((hash >> 32) as u32 % (61_000 - 32_768)) as u16
}

/// What is left to do on a frame, or another packet by its protocol, out of a tunnel whose other end may be on this host.
///
/// A stack that sends through a tunnel device leaves the checksum within to the hardware too, and between namespaces nobody
/// completes it, as nobody cuts the frame; but a UDP socket does not tell of it. So it is told by the frame: its checksum is the
/// sum of the pseudo-header, and wrong as a checksum. A frame that is longer than `mtu` allows was to be cut, to a length that is
/// known no more; it is cut to `mtu`, in bytes of the IP packet. One that was to be cut into datagrams is if the system tells their
/// length, `datagrams_of`.
pub fn left_to_do(
    frame: &[u8],
    protocol: u16,
    mtu: usize,
    datagrams_of: Option<NonZeroUsize>,
) -> Option<Offload> {
    let ip = ip(frame, protocol)?;
    let kind = match ip.proto {
        6 => GsoKind::Tcp,
        17 => GsoKind::Udp,
        _ => return None,
    };
    let l4 = frame.get(ip.l4..).filter(|_| ip.whole)?;
    let at = usize::from(kind.csum_offset());
    let field = u16::from_be_bytes([*l4.get(at)?, *l4.get(at + 1)?]);
    let length = u32::try_from(l4.len()).ok()?.to_be_bytes();
    // Addresses and the rest are whole words, so that sums of parts can be added.
    let parts = [sum(ip.addresses), sum(&[0, ip.proto]), sum(&length)];
    let pseudo = parts.iter().fold(0, |a, b| fold(a, *b));
    if field != pseudo || fold(pseudo, sum(l4)) == 0xffff {
        return None;
    }
    let csum_start = u16::try_from(ip.l4).ok()?;
    let mut offload = Offload { csum_start, csum_offset: kind.csum_offset(), gso: None };
    let size = match kind {
        GsoKind::Tcp if frame.len() - ip.l3 > mtu => {
            let l4_header = usize::from(l4.get(12)? >> 4) * 4;
            Some(mtu.checked_sub(ip.l4 - ip.l3 + l4_header)?)
        }
        GsoKind::Udp => datagrams_of.map(NonZeroUsize::get),
        GsoKind::Tcp => None,
    };
    if let Some(size) = size {
        let size = NonZeroU16::new(u16::try_from(size).ok()?)?;
        offload.gso = Some(Gso { kind, ecn: false, size, l3_start: u16::try_from(ip.l3).ok()? });
    }
    Some(offload)
}

/// Where the IP packet in a frame, or in another packet by its protocol, says that it ends. `None` where there is no IP.
pub fn ip_end(frame: &[u8], protocol: u16) -> Option<usize> {
    let l3 = ip_at(frame, protocol)?;
    let header = frame.get(l3..)?;
    let length_at =
        |at: usize| Some(usize::from(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?])));
    match header.first()? >> 4 {
        4 => Some(l3 + length_at(2)?),
        6 => Some(l3 + 40 + length_at(4)?),
        _ => None,
    }
}

fn fold(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Carries congestion that the tunnel's way met into the frame (RFC 6040, as Linux does): false for a frame that has to be dropped,
/// since its sender would not understand.
#[must_use]
pub fn decapsulate_ecn(outer_tos: u8, frame: &mut [u8], protocol: u16) -> bool {
    const CE: u8 = 3;
    if outer_tos & CE != CE {
        return true;
    }
    let Some(l3) = ip_at(frame, protocol) else { return true };
    let Some(header) = frame.get_mut(l3..l3 + 20) else { return true };
    let v4 = header[0] >> 4 == 4;
    let ecn = if v4 { header[1] & 3 } else { header[1] >> 4 & 3 };
    match ecn {
        0 => return false,
        CE => {}
        _ if v4 => {
            // The checksum follows the change (RFC 1624), so that a wrong one stays wrong.
            let old = u16::from_be_bytes([header[0], header[1]]);
            header[1] |= CE;
            let new = u16::from_be_bytes([header[0], header[1]]);
            let csum = u16::from_be_bytes([header[10], header[11]]);
            header[10..12].copy_from_slice(&(!fold(fold(!csum, !old), new)).to_be_bytes());
        }
        _ => header[1] |= CE << 4,
    }
    true
}

/// Both addresses, if they are of one family; unspecified is of any.
pub(super) fn same_family(src: IpAddr, dst: IpAddr) -> bool {
    src.is_unspecified() || src.is_ipv4() == dst.is_ipv4()
}
