//! Ethernet, VLAN, MPLS and NSH headers: those that are edited without a checksum, and those that are pushed and popped.

use super::Bits;
use super::state::{Headers, NONE};
use crate::packet::{Packet, PacketType};
use flowlift_flow::MacAddr;
use flowlift_flow::key::eth_type;

/// An Ethernet header without tags.
pub(super) const ETH_LEN: usize = 14;
/// Both addresses of an Ethernet header: what stands ahead of the outermost tag or type.
const ADDRS_LEN: usize = 12;
const VLAN_LEN: usize = 4;
const MPLS_LEN: usize = 4;
const MPLS_BOS: u8 = 1;
/// NSH base and service path header.
const NSH_LEN: usize = 8;
/// The same with the context headers of metadata type 1.
const NSH_TYPE1_LEN: usize = 24;

/// Both addresses in the order of the header.
pub(super) fn addresses(dst: MacAddr, src: MacAddr) -> [u8; ADDRS_LEN] {
    let mut both = [0; ADDRS_LEN];
    both[..6].copy_from_slice(&dst);
    both[6..].copy_from_slice(&src);
    both
}

/// Fields of an NSH header that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nsh {
    /// Flags and TTL, in the header's first 16 bits.
    pub(super) first: u16,
    pub(super) path_hdr: u32,
    pub(super) context: [u32; 4],
}

pub(super) fn set_eth(packet: &mut Packet, new: &Bits<[u8; ADDRS_LEN]>) {
    if packet.packet_type.is_ethernet()
        && packet.len() >= ETH_LEN
        && let Some(field) = packet.bytes_mut().first_chunk_mut::<ADDRS_LEN>()
    {
        let old = *field;
        *field = std::array::from_fn(|i| new.set[i] | old[i] & new.keep[i]);
    }
}

pub(super) fn push_vlan(packet: &mut Packet, headers: &mut Headers, tpid: u16, tci: u16) {
    if !packet.packet_type.is_ethernet() || packet.len() < ETH_LEN {
        return;
    }
    let tag = packet.insert(ADDRS_LEN, VLAN_LEN);
    tag[..2].copy_from_slice(&tpid.to_be_bytes());
    tag[2..].copy_from_slice(&tci.to_be_bytes());
    headers.shift_l2_5(VLAN_LEN as isize);
}

pub(super) fn pop_vlan(packet: &mut Packet, headers: &mut Headers) {
    // A tag must be followed by a type; one that is cut off stays.
    if !packet.packet_type.is_ethernet() || packet.len() < ETH_LEN + VLAN_LEN || !is_vlan(packet.bytes()) {
        return;
    }
    packet.remove(ADDRS_LEN, VLAN_LEN);
    headers.shift_l2_5(-(VLAN_LEN as isize));
}

/// The outermost type is a tag's. `frame` has at least an Ethernet header.
fn is_vlan(frame: &[u8]) -> bool {
    let outer = frame.get(ADDRS_LEN..ETH_LEN).map(|t| u16::from_be_bytes([t[0], t[1]]));
    matches!(outer, Some(eth_type::VLAN | eth_type::QINQ))
}

/// Writes the type that stands for what follows the Ethernet header: behind the last parsed tag, otherwise the frame's
/// own type field, even where that is an 802.3 length.
fn set_eth_type(packet: &mut Packet, headers: &Headers, eth_type: u16) {
    if !packet.packet_type.is_ethernet() || packet.len() < ETH_LEN {
        return;
    }
    let payload = if headers.is_mpls() { headers.l2_5 } else { headers.l3 };
    let at = if is_vlan(packet.bytes()) { payload.checked_sub(2) } else { Some(ADDRS_LEN) };
    if let Some(field) = at.and_then(|at| packet.header_mut(at, 2)) {
        field.copy_from_slice(&eth_type.to_be_bytes());
    }
}

pub(super) fn push_mpls(packet: &mut Packet, headers: &mut Headers, eth_type: u16, lse: u32) {
    let at = if headers.is_mpls() { headers.l2_5 } else { headers.l3 };
    if at > packet.len() {
        return;
    }
    headers.l2_5 = at;
    set_eth_type(packet, headers, eth_type);
    packet.insert(at, MPLS_LEN).copy_from_slice(&lse.to_be_bytes());
    headers.shift_l3(MPLS_LEN as isize);
    headers.eth_type = eth_type;
    if !packet.packet_type.is_ethernet() {
        packet.packet_type = PacketType::bare(eth_type);
    }
}

/// A label ahead of the Ethernet header: the frame becomes the payload of a bare MPLS packet.
pub(super) fn add_mpls_l2(packet: &mut Packet, headers: &mut Headers, eth_type: u16, lse: u32) {
    packet.insert(0, MPLS_LEN).copy_from_slice(&lse.to_be_bytes());
    packet.packet_type = PacketType::bare(eth_type);
    // Behind the label stands an Ethernet frame, whose inner headers are out of the actions' reach.
    *headers = Headers { l2_5: 0, l3: MPLS_LEN, ..Headers::bare(eth_type) };
}

/// True if an entry was removed.
pub(super) fn pop_mpls(packet: &mut Packet, headers: &mut Headers, eth_type: u16) -> bool {
    let at = headers.l2_5;
    if !headers.is_mpls() {
        return false;
    }
    let Some(entry) = packet.header(at, MPLS_LEN) else { return false };
    let bottom = entry[2] & MPLS_BOS != 0;
    set_eth_type(packet, headers, eth_type);
    packet.remove(at, MPLS_LEN);
    headers.shift_l3(-(MPLS_LEN as isize));
    if bottom {
        headers.l2_5 = NONE;
    }
    headers.eth_type = eth_type;
    if at == 0 {
        packet.packet_type =
            if eth_type == eth_type::TEB { PacketType::ETHERNET } else { PacketType::bare(eth_type) };
    }
    true
}

pub(super) fn set_mpls(packet: &mut Packet, headers: &Headers, new: Bits<u32>) {
    if headers.is_mpls()
        && let Some(field) = packet.header_mut(headers.l2_5, MPLS_LEN)
    {
        let old = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        field.copy_from_slice(&(new.set | old & new.keep).to_be_bytes());
    }
}

pub(super) fn push_eth(packet: &mut Packet, headers: &mut Headers, dst_src: &[u8; ADDRS_LEN]) {
    if packet.packet_type.is_ethernet() {
        return;
    }
    let eth_type = packet.packet_type.eth_type();
    let header = packet.insert(0, ETH_LEN);
    header[..ADDRS_LEN].copy_from_slice(dst_src);
    header[ADDRS_LEN..].copy_from_slice(&eth_type.to_be_bytes());
    headers.shift_l2_5(ETH_LEN as isize);
    packet.packet_type = PacketType::ETHERNET;
}

/// Removes the Ethernet header with its tags; the last type becomes the packet's.
pub(super) fn pop_eth(packet: &mut Packet, headers: &mut Headers) {
    let end = if headers.is_mpls() { headers.l2_5 } else { headers.l3 };
    if !packet.packet_type.is_ethernet() {
        return;
    }
    let Some(&[hi, lo]) = end.checked_sub(2).and_then(|at| packet.header(at, 2)) else { return };
    packet.remove(0, end);
    headers.shift_l2_5(-(end as isize));
    packet.packet_type = PacketType::bare(u16::from_be_bytes([hi, lo]));
}

/// NSH's number for a packet of this kind.
fn nsh_next_proto(of: PacketType) -> Option<u8> {
    match of {
        PacketType::IPV4 => Some(1),
        PacketType::IPV6 => Some(2),
        PacketType::ETHERNET => Some(3),
        PacketType::NSH => Some(4),
        _ => None,
    }
}

/// The kind of packet that an NSH header's next protocol announces.
fn nsh_payload(next_proto: u8) -> Option<PacketType> {
    [PacketType::IPV4, PacketType::IPV6, PacketType::ETHERNET, PacketType::NSH]
        .into_iter()
        .find(|kind| nsh_next_proto(*kind) == Some(next_proto))
}

/// False if NSH cannot carry such a packet.
#[must_use]
pub(super) fn push_nsh(packet: &mut Packet, headers: &mut Headers, header: &[u8]) -> bool {
    let Some(next_proto) = nsh_next_proto(packet.packet_type) else { return false };
    let pushed = packet.insert(0, header.len());
    pushed.copy_from_slice(header);
    pushed[3] = next_proto;
    packet.packet_type = PacketType::NSH;
    *headers = Headers::bare(eth_type::NSH);
    true
}

/// False if the header is cut off or its next protocol unknown. Nothing on a packet of another kind.
#[must_use]
pub(super) fn pop_nsh(packet: &mut Packet, headers: &mut Headers) -> bool {
    if packet.packet_type != PacketType::NSH {
        return true;
    }
    let Some(header) = packet.header(0, NSH_LEN) else { return false };
    let len = usize::from(header[1] & 0x3f) * 4;
    let Some(kind) = nsh_payload(header[3]) else { return false };
    if len < NSH_LEN || len > packet.len() {
        return false;
    }
    packet.remove(0, len);
    packet.packet_type = kind;
    // What is inside is parsed on recirculation; until then only Ethernet's addresses can be set.
    *headers = Headers { l3: NONE, ..Headers::bare(0) };
    true
}

pub(super) fn set_nsh(packet: &mut Packet, headers: &Headers, new: &Bits<Nsh>) {
    let Some(header) = headers.l3_mut(packet, eth_type::NSH, NSH_LEN) else { return };
    let type1 = header[2] & 0x0f == 1;
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[..2].copy_from_slice(&(new.set.first | old & new.keep.first).to_be_bytes());
    set_word(&mut header[4..8], new.set.path_hdr, new.keep.path_hdr);
    if type1 && let Some(header) = headers.l3_mut(packet, eth_type::NSH, NSH_TYPE1_LEN) {
        for ((field, set), keep) in
            header[NSH_LEN..].chunks_exact_mut(4).zip(new.set.context).zip(new.keep.context)
        {
            set_word(field, set, keep);
        }
    }
}

/// `field` has 4 bytes.
fn set_word(field: &mut [u8], set: u32, keep: u32) {
    let old = field.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    field.copy_from_slice(&(set | old & keep).to_be_bytes());
}
