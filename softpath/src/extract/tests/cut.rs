//! Every frame cut at every byte: a field is either as in the whole frame or empty, and once it is there it stays.

use super::*;
use flowlift_flow::key::ETH_TYPE_NONE;

/// A field, its bytes, and which values other than zero stand for "not there".
type Field = (&'static str, fn(&Key) -> Vec<u8>, &'static [u16]);

/// Value of [`Key::ip_proto`] in an IPv6 packet that is cut off within its extension headers: no next header.
const NO_NEXT_HEADER: u16 = 59;

const FIELDS: &[Field] = &[
    ("eth_dst", |k| k.eth_dst.to_vec(), &[]),
    ("eth_src", |k| k.eth_src.to_vec(), &[]),
    ("eth_type", |k| k.eth_type.get().to_be_bytes().to_vec(), &[ETH_TYPE_NONE]),
    ("vlan[0].tpid", |k| k.vlan[0].tpid.get().to_be_bytes().to_vec(), &[]),
    ("vlan[0].tci", |k| k.vlan[0].tci.get().to_be_bytes().to_vec(), &[]),
    ("vlan[1].tpid", |k| k.vlan[1].tpid.get().to_be_bytes().to_vec(), &[]),
    ("vlan[1].tci", |k| k.vlan[1].tci.get().to_be_bytes().to_vec(), &[]),
    ("mpls[0]", |k| k.mpls[0].get().to_be_bytes().to_vec(), &[]),
    ("mpls[1]", |k| k.mpls[1].get().to_be_bytes().to_vec(), &[]),
    ("mpls[2]", |k| k.mpls[2].get().to_be_bytes().to_vec(), &[]),
    ("ipv4_src", |k| k.ipv4_src.get().to_be_bytes().to_vec(), &[]),
    ("ipv4_dst", |k| k.ipv4_dst.get().to_be_bytes().to_vec(), &[]),
    ("ipv6_src", |k| k.ipv6_src.to_vec(), &[]),
    ("ipv6_dst", |k| k.ipv6_dst.to_vec(), &[]),
    ("ipv6_label", |k| k.ipv6_label.get().to_be_bytes().to_vec(), &[]),
    ("ip_proto", |k| vec![0, k.ip_proto], &[NO_NEXT_HEADER]),
    ("ip_frag", |k| vec![k.ip_frag], &[]),
    ("ip_tos", |k| vec![k.ip_tos], &[]),
    ("ip_ttl", |k| vec![k.ip_ttl], &[]),
    ("tp_src", |k| k.tp_src.get().to_be_bytes().to_vec(), &[]),
    ("tp_dst", |k| k.tp_dst.get().to_be_bytes().to_vec(), &[]),
    ("tcp_flags", |k| k.tcp_flags.get().to_be_bytes().to_vec(), &[]),
    ("arp_sha", |k| k.arp_sha.to_vec(), &[]),
    ("arp_tha", |k| k.arp_tha.to_vec(), &[]),
    ("nd_target", |k| k.nd_target.to_vec(), &[]),
    (
        "nsh",
        |k| {
            [&[k.nsh_flags, k.nsh_ttl, k.nsh_mdtype, k.nsh_np], &k.nsh_path_hdr.get().to_be_bytes()[..]]
                .concat()
        },
        &[],
    ),
    ("nsh_context", |k| k.nsh_context.iter().flat_map(|c| c.get().to_be_bytes()).collect(), &[]),
];

fn is_empty(value: &[u8], empties: &[u16]) -> bool {
    value.iter().all(|b| *b == 0) || empties.iter().any(|empty| empty.to_be_bytes() == value)
}

#[test]
fn r31_a_frame_cut_at_any_byte_has_each_field_whole_or_empty() {
    let mut compared = 0;
    for (number, frame) in (1..).zip(oracle("well-formed")) {
        let whole = extract_key(&frame, &FROM_PORT_1);
        for (name, get, empties) in FIELDS {
            let want = get(&whole);
            let mut there = false;
            for length in 0..=frame.len() {
                let got = get(&extract_key(&frame[..length], &FROM_PORT_1));
                let what = format!("packet {number} cut to {length} of {} bytes: {name}", frame.len());
                assert!(
                    got == want || is_empty(&got, empties),
                    "{what} is {got:02x?}, whole it is {want:02x?}"
                );
                assert!(!there || got == want, "{what} was whole with fewer bytes and is {got:02x?} now");
                there |= got == want && !is_empty(&want, empties);
                compared += 1;
            }
        }
    }
    assert!(compared > 1_000_000, "only {compared} comparisons");
}

/// Offsets at which the fields of one frame become whole, by hand: an IPv4 TCP packet with options in both headers.
#[test]
fn r34_fields_appear_exactly_where_their_header_ends() {
    let frame = hex("00000000000a 00000000000b 8100 2005 0800
         460000300000400040060000 0a000001 0a000002 01010100
         1388 0050 00000001 00000002 6018 0400 0000 0000 02040218");
    assert_eq!(frame.len(), 66);
    for length in 0..=frame.len() {
        let (key, layers) = key_and_layers(&frame[..length]);
        let what = format!("cut to {length} bytes: {key:?}");
        assert_eq!(key.eth_src != [0; 6], length >= 14, "eth_src, {what}");
        assert_eq!(key.vlan[0].tpid.get() == 0x8100, length >= 14, "tpid, {what}");
        assert_eq!(key.vlan[0].tci.get() == 0x3005, length >= 18, "tci, {what}");
        assert_eq!(key.eth_type.get() == 0x0800, length >= 18, "eth_type, {what}");
        assert_eq!(key.ipv4_dst.get() == 0x0a00_0002, length >= 18 + 24, "ipv4, {what}");
        assert_eq!(key.ip_proto == 6, length >= 18 + 24, "proto, {what}");
        assert_eq!(key.tp_dst.get() == 80, length >= 18 + 24 + 24, "tcp, {what}");
        assert_eq!(key.tcp_flags.get() == 0x018, length >= 66, "tcp_flags, {what}");
        assert_eq!(layers.l4_complete(), length >= 66, "layers, {what}");
        assert_eq!(layers.l4(), (length >= 42).then_some(42), "l4, {what}");
    }
}
