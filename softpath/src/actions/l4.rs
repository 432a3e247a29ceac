//! Setting fields of TCP, UDP, SCTP, ICMP and neighbour discovery headers, with their checksums.

use super::Bits;
use super::state::Headers;
use crate::checksum::{crc32c_change, update_field, update_udp_field};
use crate::packet::Packet;
use flowlift_flow::MacAddr;
use flowlift_flow::key::{eth_type, ip_proto};

/// A transport with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// Which ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Icmp {
    V4,
    V6,
}

/// Fields of a neighbour discovery message that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nd {
    pub(super) target: [u8; 16],
    pub(super) sll: MacAddr,
    pub(super) tll: MacAddr,
}

/// Both ports in the order of the header.
pub(super) fn ports(src: u16, dst: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (src.to_be_bytes(), dst.to_be_bytes());
    [a, b, c, d]
}

pub(super) fn set_ports(packet: &mut Packet, headers: &Headers, transport: Transport, new: &Bits<[u8; 4]>) {
    let (proto, least) = match transport {
        Transport::Tcp => (ip_proto::TCP, 20),
        Transport::Udp => (ip_proto::UDP, 8),
        Transport::Sctp => (ip_proto::SCTP, 12),
    };
    // A partial checksum covers no ports yet.
    let covered = !packet.is_partial(headers.l4);
    let l4 = headers.l4_mut(packet);
    if headers.proto != proto || l4.len() < least {
        return;
    }
    let old = [l4[0], l4[1], l4[2], l4[3]];
    let ports: [u8; 4] = std::array::from_fn(|i| new.set[i] | old[i] & new.keep[i]);
    // A port that stays is left out of the sum: adding and subtracting it could turn one zero into the other.
    let changed = [0..2, 2..4].into_iter().filter(|r| covered && old[r.clone()] != ports[r.clone()]);
    match transport {
        Transport::Tcp => {
            let header = usize::from(l4[12] >> 4) * 4;
            // A data offset that contradicts the header or the packet: no TCP header to trust.
            if header < least || header > l4.len() {
                return;
            }
            changed.for_each(|r| update_field(l4, 16, &old[r.clone()], &ports[r]));
        }
        Transport::Udp => changed.for_each(|r| update_udp_field(l4, 6, &old[r.clone()], &ports[r])),
        Transport::Sctp => {
            let delta: [u8; 4] = std::array::from_fn(|i| old[i] ^ ports[i]);
            let change = crc32c_change(&delta, l4.len() - delta.len()).to_le_bytes();
            l4[8..12].iter_mut().zip(change).for_each(|(byte, c)| *byte ^= c);
        }
    }
    l4[..4].copy_from_slice(&ports);
}

pub(super) fn set_icmp(packet: &mut Packet, headers: &Headers, icmp: Icmp, new: &Bits<[u8; 2]>) {
    let expected = match icmp {
        Icmp::V4 => (eth_type::IPV4, ip_proto::ICMP),
        Icmp::V6 => (eth_type::IPV6, ip_proto::ICMPV6),
    };
    let covered = !packet.is_partial(headers.l4);
    let l4 = headers.l4_mut(packet);
    if (headers.eth_type, headers.proto) != expected || l4.len() < 8 {
        return;
    }
    let old = [l4[0], l4[1]];
    let value = [new.set[0] | old[0] & new.keep[0], new.set[1] | old[1] & new.keep[1]];
    if value != old {
        l4[..2].copy_from_slice(&value);
        if covered {
            update_field(l4, 2, &old, &value);
        }
    }
}

/// Neighbour solicitation or advertisement: sets the target, and the first link-layer address option if it is of a kind
/// that is to be set.
pub(super) fn set_nd(packet: &mut Packet, headers: &Headers, new: &Bits<Nd>) {
    const MESSAGE_LEN: usize = 24;
    const SOURCE_LL: u8 = 1;
    const TARGET_LL: u8 = 2;
    let covered = !packet.is_partial(headers.l4);
    let l4 = headers.l4_mut(packet);
    if (headers.eth_type, headers.proto) != (eth_type::IPV6, ip_proto::ICMPV6)
        || l4.len() < MESSAGE_LEN
        || !matches!(l4[..2], [135 | 136, 0])
    {
        return;
    }
    let set_covered =
        |l4: &mut [u8], at: usize, set: &[u8], keep: &[u8]| set_field(l4, at, set, keep, covered);
    set_covered(l4, 8, &new.set.target, &new.keep.target);
    let mut at = MESSAGE_LEN;
    while let Some(&[kind, units]) = l4.get(at..at + 8).and_then(|option| option.first_chunk()) {
        match (kind, units) {
            (_, 0) => return,
            (SOURCE_LL, 1) => return set_covered(l4, at + 2, &new.set.sll, &new.keep.sll),
            (TARGET_LL, 1) => return set_covered(l4, at + 2, &new.set.tll, &new.keep.tll),
            _ => at += usize::from(units) * 8,
        }
    }
}

/// Sets bytes of an ICMPv6 message at an even offset, and updates its checksum if that covers them.
fn set_field(message: &mut [u8], at: usize, set: &[u8], keep: &[u8], covered: bool) {
    let mut buffer = [0; 16];
    let (Some(field), Some(old)) = (message.get_mut(at..at + set.len()), buffer.get_mut(..set.len())) else {
        return;
    };
    old.copy_from_slice(field);
    for ((field, set), keep) in field.iter_mut().zip(set).zip(keep) {
        *field = set | *field & keep;
    }
    if covered && field != old {
        let mut new = [0; 16];
        new[..field.len()].copy_from_slice(field);
        let len = field.len();
        update_field(message, 2, old, &new[..len]);
    }
}
