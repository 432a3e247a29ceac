//! IPv6: extension headers, fragments, ICMPv6 and neighbour discovery.

use super::general::transport;
use super::{L3Kind, L4Kind, Layers};
use flowlift_flow::key::ip_proto;
use flowlift_flow::{Frag, Key, MacAddr};

const HEADER: usize = 40;

/// Next-header numbers of the extension headers.
mod next {
    pub(super) const HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ESP: u8 = 50;
    pub(super) const AUTH: u8 = 51;
    pub(super) const NONE: u8 = 59;
    pub(super) const DEST: u8 = 60;
}

/// Bits of the key's bitmap of extension headers: `enum ofp12_ipv6exthdr_flags` of OpenFlow 1.3, section 7.2.3.8.
mod exthdr {
    pub(super) const NONEXT: u16 = 1;
    pub(super) const ESP: u16 = 2;
    pub(super) const AUTH: u16 = 4;
    pub(super) const DEST: u16 = 8;
    pub(super) const FRAG: u16 = 16;
    pub(super) const ROUTER: u16 = 32;
    pub(super) const HOP: u16 = 64;
    pub(super) const UNREP: u16 = 128;
    pub(super) const UNSEQ: u16 = 256;
}

/// ICMPv6 types of neighbour solicitation and advertisement.
const ND_SOLICIT: u8 = 135;
const ND_ADVERT: u8 = 136;

/// Fills the IPv6 and transport fields of `key`, which are zero.
pub(super) fn headers(packet: &[u8], key: &mut Key, layers: &mut Layers) {
    let Some((&[f0, f1, f2, f3, l0, l1, proto, hop_limit], rest)) = packet.split_first_chunk() else {
        return;
    };
    let Some((&src, rest)) = rest.split_first_chunk() else { return };
    let Some((&dst, payload)) = rest.split_first_chunk() else { return };
    (key.ipv6_src, key.ipv6_dst) = (src, dst);
    let flow = u32::from_be_bytes([f0, f1, f2, f3]);
    // A payload length past the frame means a packet cut off (R34, for IPv6).
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let end = length.min(payload.len());
    let payload = &payload[..end];
    layers.end = layers.l3 + (HEADER + end) as u32;
    layers.l3_kind = L3Kind::Ipv6;

    let mut chain = Chain { proto, frag: Frag::No, rest: payload, seen: 0 };
    let whole = chain.walk();
    if !whole {
        if end == length {
            // A header longer than the payload: the packet contradicts itself, only the addresses are believed.
            return;
        }
        // The frame ends within the chain: what is behind is not known, what came before stays.
        chain.proto = next::NONE;
    }
    key.ipv6_label = (flow & 0xf_ffff).into();
    key.ip_tos = (flow >> 20) as u8;
    key.ip_ttl = hop_limit;
    key.ip_proto = chain.proto;
    key.ip_frag = chain.frag as u8;
    key.ipv6_exthdrs = chain.seen;
    layers.frag = chain.frag;
    if !whole {
        return;
    }
    layers.l4 = layers.l3 + (HEADER + payload.len() - chain.rest.len()) as u32;
    if chain.frag != Frag::Later {
        layers.l4_kind = match chain.proto {
            ip_proto::ICMPV6 => icmpv6(chain.rest, key),
            _ => transport(chain.rest, key),
        };
    }
}

/// A chain of extension headers, as far as it has been walked.
struct Chain<'a> {
    /// Protocol of what stands in `rest`; 44 in a later fragment.
    proto: u8,
    frag: Frag,
    /// What stands after the headers walked.
    rest: &'a [u8],
    /// `exthdr` bits.
    seen: u16,
}

impl Chain<'_> {
    /// Walks to the upper-layer header, or to the payload of a later fragment. False if a header is not whole.
    fn walk(&mut self) -> bool {
        let mut dest = 0;
        loop {
            self.seen = note(self.seen, self.proto, &mut dest);
            let head = self.rest.first_chunk::<8>();
            let (size, fragment) = match (self.proto, head) {
                (next::HOP | next::ROUTING | next::DEST, Some(h)) => ((usize::from(h[1]) + 1) * 8, 0),
                (next::AUTH, Some(h)) => ((usize::from(h[1]) + 2) * 4, 0),
                (next::FRAGMENT, Some(h)) => (8, u16::from_be_bytes([h[2], h[3]])),
                (next::HOP | next::ROUTING | next::DEST | next::AUTH | next::FRAGMENT, None) => return false,
                _ => return true,
            };
            let (Some(&[upper, ..]), Some(rest)) = (head, self.rest.get(size..)) else { return false };
            (self.proto, self.rest) = (upper, rest);
            if fragment & 0xfff8 != 0 {
                (self.proto, self.frag) = (next::FRAGMENT, Frag::Later);
                return true;
            }
            if fragment != 0 {
                self.frag = Frag::First;
            }
        }
    }
}

/// Adds a header to the bitmap: the order that RFC 8200, section 4.1, recommends, and repetitions, are marked.
fn note(seen: u16, proto: u8, dest: &mut u32) -> u16 {
    use exthdr::*;
    let (bit, may_precede) = match proto {
        next::HOP => (HOP, 0),
        next::ROUTING => (ROUTER, HOP | DEST),
        next::FRAGMENT => (FRAG, HOP | DEST | ROUTER),
        next::AUTH => (AUTH, HOP | DEST | ROUTER | FRAG),
        next::ESP => (ESP, HOP | DEST | ROUTER | FRAG | AUTH),
        next::DEST => {
            *dest += 1;
            // Twice is in order: before a routing header, and last.
            let before = if *dest == 1 { HOP } else { HOP | DEST | ROUTER | FRAG | AUTH | ESP };
            let again = if *dest > 2 { UNREP } else { 0 };
            let order = if seen & !(before | UNREP) != 0 { UNSEQ } else { 0 };
            return seen | DEST | again | order;
        }
        next::NONE => return seen | NONEXT,
        _ => return seen,
    };
    let again = if seen & bit != 0 { UNREP } else { 0 };
    let order = if seen & !(may_precede | UNREP | UNSEQ) != 0 || *dest >= 2 { UNSEQ } else { 0 };
    seen | bit | again | order
}

fn icmpv6(payload: &[u8], key: &mut Key) -> L4Kind {
    let Some((&[kind, code, ..], rest)) = payload.split_first_chunk::<8>() else { return L4Kind::None };
    key.tp_src = u16::from(kind).into();
    key.tp_dst = u16::from(code).into();
    if matches!(kind, ND_SOLICIT | ND_ADVERT)
        && code == 0
        && let Some((&target, options)) = rest.split_first_chunk::<16>()
        && let Some([source, target_ll]) = link_layer_addresses(options)
    {
        key.nd_target = target;
        (key.arp_sha, key.arp_tha) = (source, target_ll);
    }
    L4Kind::Icmpv6
}

/// Source and target link-layer address options, up to the first malformed option. `None` if one occurs twice: then the
/// message is malformed as a whole.
fn link_layer_addresses(mut options: &[u8]) -> Option<[MacAddr; 2]> {
    let mut found = [MacAddr::default(); 2];
    while let Some(&[kind, units, a, b, c, d, e, f]) = options.first_chunk() {
        let Some(after) = options.get(usize::from(units) * 8..).filter(|_| units != 0) else { break };
        if let (1 | 2, 1) = (kind, units) {
            let slot = &mut found[usize::from(kind - 1)];
            if *slot != MacAddr::default() {
                return None;
            }
            *slot = [a, b, c, d, e, f];
        }
        options = after;
    }
    Some(found)
}
