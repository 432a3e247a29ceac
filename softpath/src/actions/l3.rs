//! Setting fields of IPv4, IPv6 and ARP headers, with the checksums that cover them.

use super::Bits;
use super::state::Headers;
use crate::checksum::{update_field, update_sum, update_udp_field};
use crate::packet::Packet;
use flowlift_flow::MacAddr;
use flowlift_flow::key::{eth_type, ip_proto};
use std::net::Ipv4Addr;

const IPV4_LEN: usize = 20;
const IPV4_CHECKSUM: usize = 10;
pub(super) const IPV6_LEN: usize = 40;
/// ARP for IPv4 over Ethernet.
const ARP_LEN: usize = 28;
/// Offset of ARP's operation, the first field that can be set.
const ARP_OP: usize = 6;
/// Bytes from there to the header's end.
pub(super) const ARP_EDIT: usize = ARP_LEN - ARP_OP;

/// Fields of an IPv4 header that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ipv4 {
    pub(super) src: [u8; 4],
    pub(super) dst: [u8; 4],
    pub(super) tos: u8,
    pub(super) ttl: u8,
}

/// Fields of an IPv6 header that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ipv6 {
    pub(super) src: [u8; 16],
    pub(super) dst: [u8; 16],
    /// Traffic class and label, in the header's first word.
    pub(super) flow: u32,
    pub(super) hlimit: u8,
}

/// ARP's fields from the operation on, as on the wire.
pub(super) fn arp_fields(
    op: u16,
    sha: MacAddr,
    sip: Ipv4Addr,
    tha: MacAddr,
    tip: Ipv4Addr,
) -> [u8; ARP_EDIT] {
    let mut fields = [0; ARP_EDIT];
    fields[..2].copy_from_slice(&op.to_be_bytes());
    fields[2..8].copy_from_slice(&sha);
    fields[8..12].copy_from_slice(&sip.octets());
    fields[12..18].copy_from_slice(&tha);
    fields[18..].copy_from_slice(&tip.octets());
    fields
}

fn merge<const N: usize>(old: [u8; N], set: &[u8; N], keep: &[u8; N]) -> [u8; N] {
    std::array::from_fn(|i| set[i] | old[i] & keep[i])
}

/// Updates the L4 checksum for a change of the pseudo-header. Of the transports that have one, those that OVS knows.
fn update_l4(packet: &mut Packet, headers: &Headers, old: &[u8], new: &[u8]) {
    let ipv6 = headers.eth_type == eth_type::IPV6;
    let partial = packet.is_partial(headers.l4);
    let l4 = headers.l4_mut(packet);
    match headers.proto {
        ip_proto::TCP if partial && l4.len() >= 20 => update_sum(l4, 16, old, new),
        ip_proto::UDP if partial && l4.len() >= 8 => update_sum(l4, 6, old, new),
        ip_proto::ICMPV6 if partial && ipv6 && l4.len() >= 4 => update_sum(l4, 2, old, new),
        ip_proto::TCP if l4.len() >= 20 => update_field(l4, 16, old, new),
        ip_proto::UDP if l4.len() >= 8 => update_udp_field(l4, 6, old, new),
        ip_proto::ICMPV6 if ipv6 && l4.len() >= 4 => update_field(l4, 2, old, new),
        _ => {}
    }
}

pub(super) fn set_ipv4(packet: &mut Packet, headers: &Headers, new: &Bits<Ipv4>) {
    for (at, set, keep) in [(12, &new.set.src, &new.keep.src), (16, &new.set.dst, &new.keep.dst)] {
        let Some(header) = headers.l3_mut(packet, eth_type::IPV4, IPV4_LEN) else { return };
        let old = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let addr = merge(old, set, keep);
        if addr != old {
            header[at..at + 4].copy_from_slice(&addr);
            update_field(header, IPV4_CHECKSUM, &old, &addr);
            update_l4(packet, headers, &old, &addr);
        }
    }
    if let Some(header) = headers.l3_mut(packet, eth_type::IPV4, IPV4_LEN) {
        set_covered_byte(header, 1, new.set.tos | header[1] & new.keep.tos);
        set_covered_byte(header, 8, new.set.ttl | header[8] & new.keep.ttl);
    }
}

/// Sets a byte of an IPv4 header and updates the checksum.
fn set_covered_byte(header: &mut [u8], at: usize, value: u8) {
    if header[at] == value {
        return;
    }
    let word = at & !1;
    let old = [header[word], header[word + 1]];
    header[at] = value;
    let new = [header[word], header[word + 1]];
    update_field(header, IPV4_CHECKSUM, &old, &new);
}

pub(super) fn set_ipv6(packet: &mut Packet, headers: &Headers, new: &Bits<Ipv6>) {
    // With segments left, the pseudo-header has the final destination (RFC 8200, section 8.1), which stands in the
    // routing header: the one in the IPv6 header is not covered.
    let routed = has_active_routing_header(packet, headers);
    for (at, set, keep, covered) in
        [(8, &new.set.src, &new.keep.src, true), (24, &new.set.dst, &new.keep.dst, !routed)]
    {
        let Some(header) = headers.l3_mut(packet, eth_type::IPV6, IPV6_LEN) else { return };
        let Some(field) = header[at..].first_chunk_mut::<16>() else { return };
        let old = *field;
        let addr = merge(old, set, keep);
        if addr != old {
            *field = addr;
            if covered {
                update_l4(packet, headers, &old, &addr);
            }
        }
    }
    if let Some(header) = headers.l3_mut(packet, eth_type::IPV6, IPV6_LEN) {
        let flow = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        header[..4].copy_from_slice(&(new.set.flow | flow & new.keep.flow).to_be_bytes());
        header[7] = new.set.hlimit | header[7] & new.keep.hlimit;
    }
}

/// True if a routing header with segments left stands ahead of the L4 header.
fn has_active_routing_header(packet: &Packet, headers: &Headers) -> bool {
    const HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTH: u8 = 51;
    const DEST: u8 = 60;
    let Some(l4) = headers.l4.checked_sub(headers.l3) else { return false };
    let Some(header) = packet.header(headers.l3, l4).filter(|h| h.len() > IPV6_LEN) else { return false };
    let (mut next, mut rest) = (header[6], &header[IPV6_LEN..]);
    while let Some(&[following, len, _, segments_left]) = rest.first_chunk() {
        let size = match next {
            ROUTING if segments_left > 0 => return true,
            HOP | ROUTING | DEST => (usize::from(len) + 1) * 8,
            FRAGMENT => 8,
            AUTH => (usize::from(len) + 2) * 4,
            _ => return false,
        };
        (next, rest) = (following, rest.get(size..).unwrap_or_default());
    }
    false
}

pub(super) fn set_arp(packet: &mut Packet, headers: &Headers, new: &Bits<[u8; ARP_EDIT]>) {
    if !matches!(headers.eth_type, eth_type::ARP | eth_type::RARP) {
        return;
    }
    let Some(header) = headers.l3_mut(packet, headers.eth_type, ARP_LEN) else { return };
    if let Some(fields) = header[ARP_OP..].first_chunk_mut::<ARP_EDIT>() {
        *fields = merge(*fields, &new.set, &new.keep);
    }
}

/// What dec_ttl found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ttl {
    /// Decremented, or no IP packet.
    Alive,
    /// It was 0 or 1 and stays.
    Expired,
}

pub(super) fn dec_ttl(packet: &mut Packet, headers: &Headers) -> Ttl {
    if let Some(header) = headers.l3_mut(packet, eth_type::IPV4, IPV4_LEN) {
        if header[8] <= 1 {
            return Ttl::Expired;
        }
        set_covered_byte(header, 8, header[8] - 1);
    } else if let Some(header) = headers.l3_mut(packet, eth_type::IPV6, IPV6_LEN) {
        if header[7] <= 1 {
            return Ttl::Expired;
        }
        header[7] -= 1;
    }
    Ttl::Alive
}
