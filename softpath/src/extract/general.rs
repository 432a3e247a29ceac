//! The general path: header after header, each read through a pattern that fails rather than reach past the packet.

use super::{L3Kind, L4Kind, Layers, ipv6};
use flowlift_flow::key::{ETH_TYPE_NONE, MPLS_MAX, VLAN_CFI, VLAN_MAX, eth_type, ip_proto};
use flowlift_flow::{Frag, Key, VlanTag};

/// Smallest Ethernet type; below, the field is an 802.3 length.
const ETH_TYPE_MIN: u16 = 0x0600;
/// Bottom-of-stack bit of a label stack entry.
const MPLS_BOS: u32 = 0x100;

fn is_vlan(eth_type: u16) -> bool {
    matches!(eth_type, eth_type::VLAN | eth_type::QINQ)
}

/// Fills the header fields of `key`, which are zero, from `frame`.
pub(super) fn headers(frame: &[u8], key: &mut Key) -> Layers {
    let mut layers = Layers { end: frame.len() as u32, ..Layers::default() };
    let Some((&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _], _)) = frame.split_first_chunk() else {
        // Without an Ethernet header there is no Ethernet type either; the addresses are the empty content (R32).
        key.eth_type = ETH_TYPE_NONE.into();
        return layers;
    };
    key.eth_dst = [d0, d1, d2, d3, d4, d5];
    key.eth_src = [s0, s1, s2, s3, s4, s5];
    let (tags, rest) = vlan_tags(&frame[12..], key);
    let (found, rest) = ethernet_type(rest);
    key.eth_type = found.into();
    if is_vlan(found)
        && let Some(tag) = key.vlan.get_mut(tags)
    {
        // The tag is cut off: present, and empty, with no type behind it (R35).
        tag.tpid = found.into();
        key.eth_type = 0.into();
    }
    layers.l2_len = (frame.len() - rest.len()) as u8;
    payload(frame, rest, found, key, &mut layers);
    layers
}

/// As [`headers`], of a packet that begins with what this Ethernet type stands for.
pub(super) fn bare_headers(packet: &[u8], eth_type: u16, key: &mut Key) -> Layers {
    let mut layers = Layers { end: packet.len() as u32, ..Layers::default() };
    key.eth_type = eth_type.into();
    payload(packet, packet, eth_type, key, &mut layers);
    layers
}

/// Everything behind L2: `rest`, the end of `frame`, which begins with what the Ethernet type `found` stands for.
fn payload(frame: &[u8], rest: &[u8], found: u16, key: &mut Key, layers: &mut Layers) {
    let rest = if key.is_mpls() { label_stack(rest, key) } else { rest };
    layers.l3 = (frame.len() - rest.len()) as u32;
    match found {
        eth_type::IPV4 => ipv4(rest, key, layers),
        eth_type::IPV6 => ipv6::headers(rest, key, layers),
        eth_type::ARP | eth_type::RARP => arp(rest, key, layers),
        eth_type::NSH => nsh(rest, key, layers),
        _ => {}
    }
}

/// Takes up to two tags that are followed by a type; gives their number and what stands from the next type on.
fn vlan_tags<'a>(mut rest: &'a [u8], key: &mut Key) -> (usize, &'a [u8]) {
    let mut tags = 0;
    while tags < VLAN_MAX
        && let Some((&[t0, t1, c0, c1], after)) = rest.split_first_chunk()
        && is_vlan(u16::from_be_bytes([t0, t1]))
        && after.len() >= 2
    {
        let tci = u16::from_be_bytes([c0, c1]) | VLAN_CFI;
        key.vlan[tags] = VlanTag { tpid: u16::from_be_bytes([t0, t1]).into(), tci: tci.into() };
        tags += 1;
        rest = after;
    }
    (tags, rest)
}

/// The Ethernet type, also of an 802.2 frame with a SNAP header, and what stands after it.
fn ethernet_type(rest: &[u8]) -> (u16, &[u8]) {
    let Some((&[t0, t1], rest)) = rest.split_first_chunk() else {
        return (ETH_TYPE_NONE, rest);
    };
    let found = u16::from_be_bytes([t0, t1]);
    if found >= ETH_TYPE_MIN {
        return (found, rest);
    }
    match rest.split_first_chunk() {
        Some((&[0xaa, 0xaa, 3, 0, 0, 0, s0, s1], after)) => {
            let snap = u16::from_be_bytes([s0, s1]);
            (if snap >= ETH_TYPE_MIN { snap } else { ETH_TYPE_NONE }, after)
        }
        _ => (ETH_TYPE_NONE, rest),
    }
}

/// Keeps the first entries of the label stack and gives what stands after its last.
fn label_stack<'a>(mut rest: &'a [u8], key: &mut Key) -> &'a [u8] {
    let mut depth = 0;
    while let Some((&entry, after)) = rest.split_first_chunk::<4>() {
        let entry = u32::from_be_bytes(entry);
        if depth < MPLS_MAX {
            key.mpls[depth] = entry.into();
        }
        depth += 1;
        rest = after;
        if entry & MPLS_BOS != 0 {
            break;
        }
    }
    rest
}

fn ipv4(packet: &[u8], key: &mut Key, layers: &mut Layers) {
    let Some(head) = packet.first_chunk::<20>() else { return };
    let header = usize::from(head[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if header < 20 || header > packet.len() || total < header {
        return;
    }
    // A total length past the frame means a packet cut off, not a header to distrust (R34).
    let end = total.min(packet.len());
    let Some(payload) = packet.get(header..end) else { return };
    key.ipv4_src = u32::from_be_bytes([head[12], head[13], head[14], head[15]]).into();
    key.ipv4_dst = u32::from_be_bytes([head[16], head[17], head[18], head[19]]).into();
    key.ip_tos = head[1];
    key.ip_ttl = head[8];
    key.ip_proto = head[9];
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    layers.frag = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Frag::No,
        (0, _) => Frag::First,
        _ => Frag::Later,
    };
    key.ip_frag = layers.frag as u8;
    layers.l3_kind = L3Kind::Ipv4;
    layers.l4 = layers.l3 + header as u32;
    layers.end = layers.l3 + end as u32;
    if layers.frag != Frag::Later {
        layers.l4_kind = match key.ip_proto {
            ip_proto::ICMP => icmp(payload, key),
            _ => transport(payload, key),
        };
    }
}

/// TCP, UDP and SCTP. A header that is not whole leaves its fields zero.
pub(super) fn transport(payload: &[u8], key: &mut Key) -> L4Kind {
    let kind = match key.ip_proto {
        ip_proto::TCP => {
            let Some(head) = payload.first_chunk::<20>() else { return L4Kind::None };
            let header = usize::from(head[12] >> 4) * 4;
            if header < 20 || header > payload.len() {
                return L4Kind::None;
            }
            key.tcp_flags = (u16::from_be_bytes([head[12], head[13]]) & 0x0fff).into();
            L4Kind::Tcp
        }
        ip_proto::UDP if payload.len() >= 8 => L4Kind::Udp,
        ip_proto::SCTP if payload.len() >= 12 => L4Kind::Sctp,
        _ => return L4Kind::None,
    };
    if let Some(&[s0, s1, d0, d1]) = payload.first_chunk() {
        key.tp_src = u16::from_be_bytes([s0, s1]).into();
        key.tp_dst = u16::from_be_bytes([d0, d1]).into();
    }
    kind
}

fn icmp(payload: &[u8], key: &mut Key) -> L4Kind {
    let Some(&[kind, code, ..]) = payload.first_chunk::<8>() else { return L4Kind::None };
    key.tp_src = u16::from(kind).into();
    key.tp_dst = u16::from(code).into();
    L4Kind::Icmp
}

fn arp(packet: &[u8], key: &mut Key, layers: &mut Layers) {
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
    let Some((&[0, 1, 8, 0, 6, 4, op0, op1], rest)) = packet.split_first_chunk() else { return };
    let Some(
        &[
            sha0,
            sha1,
            sha2,
            sha3,
            sha4,
            sha5,
            spa0,
            spa1,
            spa2,
            spa3,
            tha0,
            tha1,
            tha2,
            tha3,
            tha4,
            tha5,
            tpa0,
            tpa1,
            tpa2,
            tpa3,
        ],
    ) = rest.first_chunk()
    else {
        return;
    };
    // The key has 8 bits for the operation; one that needs more reads as 0.
    key.ip_proto = if op0 == 0 { op1 } else { 0 };
    key.ipv4_src = u32::from_be_bytes([spa0, spa1, spa2, spa3]).into();
    key.ipv4_dst = u32::from_be_bytes([tpa0, tpa1, tpa2, tpa3]).into();
    key.arp_sha = [sha0, sha1, sha2, sha3, sha4, sha5];
    key.arp_tha = [tha0, tha1, tha2, tha3, tha4, tha5];
    layers.l3_kind = L3Kind::Arp;
}

/// RFC 8300. Version 0; metadata type 1 with its four context headers, any other type without.
fn nsh(packet: &[u8], key: &mut Key, layers: &mut Layers) {
    let Some(head) = packet.first_chunk::<8>() else { return };
    let first = u16::from_be_bytes([head[0], head[1]]);
    let header = usize::from(first & 0x3f) * 4;
    let mdtype = head[2];
    if first >> 14 != 0 || header > packet.len() {
        return;
    }
    match (mdtype, header) {
        (1, 24) => {
            for (field, from) in key.nsh_context.iter_mut().zip(packet[8..24].as_chunks().0) {
                *field = u32::from_be_bytes(*from).into();
            }
        }
        (1, _) | (2, 0..8) => return,
        _ => {}
    }
    key.nsh_flags = (first >> 12 & 3) as u8;
    key.nsh_ttl = (first >> 6 & 0x3f) as u8;
    key.nsh_mdtype = mdtype;
    key.nsh_np = head[3];
    key.nsh_path_hdr = u32::from_be_bytes([head[4], head[5], head[6], head[7]]).into();
    layers.l3_kind = L3Kind::Nsh;
}
