//! Flow keys as Netlink attributes (R11): composing a [`Key`] or a mask, and reading them back.
//!
//! Composing follows `odp_flow_key_from_flow` of Open vSwitch's `lib/odp-util.c` in order and in presence, so the same
//! key always gives the same bytes (R39). Reading takes any order (R38) and refuses what is there twice (R37), has a
//! wrong length, is unknown, or stands where the headers before it leave no place for it; as the kernel does, it also
//! refuses a key that lacks an attribute which its own Ethernet type or IP protocol calls for.
//!
//! Header fields are in network byte order, metadata is native, as the comments in `linux/openvswitch.h` say.

mod decode;
mod encode;
mod error;
#[cfg(test)]
mod tests;
mod tunnel;

pub use decode::{decode_key, decode_mask, decode_match, decode_metadata};
pub use encode::{encode_key, encode_key_of, encode_mask, encode_match};
pub use error::{InnerProblem, KeyError};
pub(crate) use tunnel::{decode_tunnel, encode_tunnel_as};

pub use flowlift_flow::attrs::{attr, tunnel_attr};

use flowlift_flow::key::{MPLS_MAX, eth_type, ip_proto};
use flowlift_flow::{AttrSet, Key};
use std::fmt::Write;

/// Who composes or reads the attributes; the two sides of a datapath's line differ in a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As inside ovs-vswitchd and in its dumps: PACKET_TYPE is there, IPV6_EXTHDRS is not, TCP_FLAGS only if not zero.
    UserSpace,
    /// As between ovs-vswitchd and a kernel-style datapath: PACKET_TYPE never crosses (U13), IPV6_EXTHDRS and TCP_FLAGS
    /// are there for every IPv6 and every TCP packet.
    Datapath,
}

/// `in_port` of a packet that came from no port: such a key has no IN_PORT attribute.
pub const NO_PORT: u32 = u32::MAX;
/// Bits of CT_STATE that are defined.
const CT_STATE_BITS: u32 = 0xff;
/// Bits of an IPv6 flow label.
const LABEL_BITS: u32 = 0xf_ffff;
/// Namespace of packet types that are Ethernet types: packets without an Ethernet header.
const NS_ETHERTYPE: u32 = 1;
/// Smallest Ethernet type.
const ETH_TYPE_MIN: u16 = 0x0600;
/// Bottom-of-stack bit of a label stack entry.
const MPLS_BOS: u32 = 0x100;

/// Every attribute of a key, those of connection tracking only if `conntrack`. What is within TUNNEL follows from the
/// values there.
pub(crate) fn all_attrs(conntrack: bool) -> AttrSet {
    const ALL: u64 = (2 << attr::IPV6_EXTHDRS) - 2;
    const CT: u64 = 1 << attr::CT_STATE
        | 1 << attr::CT_ZONE
        | 1 << attr::CT_MARK
        | 1 << attr::CT_LABELS
        | 1 << attr::CT_ORIG_TUPLE_IPV4
        | 1 << attr::CT_ORIG_TUPLE_IPV6;
    AttrSet([if conntrack { ALL } else { ALL & !CT }, ALL, ALL])
}

/// True for the types of VLAN tags.
fn is_vlan(eth_type: u16) -> bool {
    matches!(eth_type, eth_type::VLAN | eth_type::QINQ)
}

/// True for a packet with an Ethernet header.
fn is_ethernet(key: &Key) -> bool {
    key.packet_type.get() == 0
}

/// Number of label stack entries that a key composes: up to the bottom of the stack or, without one, those not zero.
fn label_count(key: &Key) -> usize {
    match key.mpls.iter().position(|lse| lse.get() & MPLS_BOS != 0) {
        Some(bottom) => bottom + 1,
        None => key.mpls.iter().filter(|lse| lse.get() != 0).count().min(MPLS_MAX),
    }
}

/// The attribute of the L3 header that the key's Ethernet type calls for.
fn l3_attr(key: &Key) -> Option<u8> {
    Some(match key.eth_type.get() {
        eth_type::IPV4 => attr::IPV4,
        eth_type::IPV6 => attr::IPV6,
        eth_type::ARP | eth_type::RARP => attr::ARP,
        eth_type::MPLS | eth_type::MPLS_MCAST => attr::MPLS,
        eth_type::NSH => attr::NSH,
        _ => return None,
    })
}

/// The attribute of the L4 header that the key's IP protocol calls for.
fn l4_attr(key: &Key) -> Option<u8> {
    if !key.is_ip() || key.ip_frag == flowlift_flow::Frag::Later as u8 {
        return None;
    }
    Some(match (key.ip_proto, key.eth_type.get()) {
        (ip_proto::TCP, _) => attr::TCP,
        (ip_proto::UDP, _) => attr::UDP,
        (ip_proto::SCTP, _) => attr::SCTP,
        (ip_proto::ICMP, eth_type::IPV4) => attr::ICMP,
        (ip_proto::ICMPV6, eth_type::IPV6) => attr::ICMPV6,
        _ => return None,
    })
}

/// True for neighbour solicitation and advertisement.
fn is_nd(key: &Key) -> bool {
    l4_attr(key) == Some(attr::ICMPV6) && matches!(key.tp_src.get(), 135 | 136) && key.tp_dst.get() == 0
}

/// The attributes of a key in user space's form as hex digits: what `flowlift key --tlv` prints beside the text.
pub fn key_hex(key: &Key) -> String {
    let mut bytes = Vec::with_capacity(256);
    encode_key(key, Form::UserSpace, &mut bytes);
    hex(&bytes)
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
