//! VXLAN encapsulation and decapsulation (FL1.md, section 7, "VXLAN"), on bytes alone.

use crate::bytes::{be16, put};
use crate::checksum::internet_sum;
use crate::profile::MAX_FRAME;

/// Length of the outer headers of an encapsulation in bytes: Ethernet, IPv4, UDP, VXLAN.
pub(crate) const OUTER: usize = 50;
/// UDP destination port of the packets that are unwrapped.
const UDP_PORT: u16 = 4789;
/// Length of UDP and VXLAN header together.
const UDP_AND_VXLAN: usize = 16;
const ETHERNET: usize = 14;
/// First word of the VXLAN header: only the flag I, "there is a VNI".
const FLAGS: [u8; 4] = [8, 0, 0, 0];
/// ECN bits of the TOS, all set: congestion experienced.
const CONGESTION: u8 = 3;

/// What a decapsulation took off, to match on afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tunnel {
    pub(crate) vni: [u8; 3],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
}

/// Whether a template is one that VXLAN_ENCAP takes.
pub(crate) fn is_template(t: &[u8]) -> bool {
    t.len() == OUTER
        && t[12..15] == [0x08, 0x00, 0x45]
        && t[16..20] == [0; 4]
        && matches!(be16(t, 20), 0 | 0x4000)
        && t[22] != 0
        && t[23] == 17
        && t[24..26] == [0; 2]
        && t[36..38] != [0; 2]
        && t[38..42] == [0; 4]
        && t[42..46] == FLAGS
        && t[49] == 0
}

/// Puts the template before `frame` and fills it in; `None` when the result is too long. `hash`: what chooses the
/// source port if the template leaves it open.
pub(crate) fn encap(frame: &[u8], template: &[u8], hash: impl FnOnce() -> u32) -> Option<Vec<u8>> {
    let total = u16::try_from(frame.len() + OUTER - ETHERNET).ok()?;
    if frame.len() + OUTER > MAX_FRAME {
        return None;
    }
    let mut f = [template, frame].concat();
    put(&mut f, 16, &total.to_be_bytes());
    let sum = !internet_sum(&[f.get(ETHERNET..34)?]);
    put(&mut f, 24, &sum.to_be_bytes());
    if be16(&f, 34) == 0 {
        let port = 0xc000 | (hash() & 0x3fff) as u16;
        put(&mut f, 34, &port.to_be_bytes());
    }
    put(&mut f, 38, &(total - 20).to_be_bytes());
    Some(f)
}

/// Takes apart a frame with an IPv4 header of 20 bytes at `l3`, whose payload, a UDP datagram, ends at `end`. Gives the
/// inner frame's place and what was around it; `None` when it is not exactly what VXLAN_DECAP asks for.
pub(crate) fn decap(frame: &[u8], l3: usize, end: usize) -> Option<(std::ops::Range<usize>, Tunnel)> {
    let ip = frame.get(l3..l3 + 20)?;
    let udp = frame.get(l3 + 20..end)?;
    let vxlan = udp.get(8..UDP_AND_VXLAN)?;
    let inner = udp.len() - UDP_AND_VXLAN;
    let fine = ip[1] & CONGESTION != CONGESTION
        && internet_sum(&[ip]) == 0xffff
        && be16(udp, 2) == UDP_PORT
        && usize::from(be16(udp, 4)) == udp.len()
        && (udp[6..8] == [0; 2] || internet_sum(&[&ip[12..20], &[0, 17], &udp[4..6], udp]) == 0xffff)
        && vxlan[..4] == FLAGS
        && vxlan[7] == 0
        && inner >= ETHERNET;
    if !fine {
        return None;
    }
    let tunnel = Tunnel {
        vni: vxlan[4..7].try_into().ok()?,
        src: ip[12..16].try_into().ok()?,
        dst: ip[16..20].try_into().ok()?,
    };
    Some((end - inner..end, tunnel))
}
