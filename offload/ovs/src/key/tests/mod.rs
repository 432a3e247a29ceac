//! Tests of the codec: the rules by name, bytes written by hand, and properties over all shapes of keys.
//!
//! The comparison with keys that Open vSwitch itself composed is in tests/tests/oracle_keys.rs.

mod hostile;
mod properties;
mod rules;
mod shapes;

use super::*;
use crate::nla::Writer;
use flowlift_flow::{AttrSet, Key, Mask, VlanTag};

/// Number and payload of an attribute.
type Attribute<'a> = (u16, &'a [u8]);

/// A sequence of attributes.
fn sequence(attrs: &[Attribute<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = Writer::new(&mut out);
    for (kind, payload) in attrs {
        w.put(*kind, payload);
    }
    out
}

fn composed(key: &Key, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(key, form, &mut out);
    out
}

/// The types of a sequence's attributes, in order.
fn types(bytes: &[u8]) -> Vec<u8> {
    let kind = |kind| u8::try_from(kind).expect("a number that is known");
    crate::nla::attrs(bytes).map(|a| kind(a.expect("well-formed attributes").kind)).collect()
}

/// The payload of the first attribute `kind`.
fn payload(bytes: &[u8], kind: u8) -> &[u8] {
    let mut found = crate::nla::attrs(bytes).map(|a| a.expect("well-formed attributes"));
    found
        .find(|a| a.kind == u16::from(kind))
        .unwrap_or_else(|| panic!("no attribute {kind} in {}", hex(bytes)))
        .payload
}

/// A TCP packet from port 1, in VLAN 10 with priority 0.
fn tcp_in_vlan_10() -> Key {
    Key {
        in_port: 1,
        eth_src: [2, 0, 0, 0, 0, 1],
        eth_dst: [2, 0, 0, 0, 0, 2],
        eth_type: eth_type::IPV4.into(),
        ip_proto: ip_proto::TCP,
        ip_ttl: 64,
        ip_tos: 4,
        ipv4_src: 0x0a00_0001.into(),
        ipv4_dst: 0x0a00_0002.into(),
        tp_src: 1234.into(),
        tp_dst: 80.into(),
        tcp_flags: 2.into(),
        vlan: [VlanTag { tpid: 0x8100.into(), tci: 0x100a.into() }, VlanTag::default()],
        ..Key::default()
    }
}
