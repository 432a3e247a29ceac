//! The rules of RULES.md that concern a packet's key, by number, on packets written by hand.

use super::*;
use crate::extract::{L3Kind, L4Kind};
use flowlift_flow::key::{ETH_TYPE_NONE, VLAN_CFI};
use flowlift_flow::{Frag, VlanTag};

const ETH: &str = "00000000000a 00000000000b";

fn frame(rest: &str) -> Vec<u8> {
    hex(&format!("{ETH} {rest}"))
}

fn tag(tpid: u16, tci: u16) -> VlanTag {
    VlanTag { tpid: tpid.into(), tci: tci.into() }
}

#[test]
fn r03_metadata_is_part_of_the_key() {
    let md = Metadata { in_port: 3, recirc_id: 5, dp_hash: 7, skb_priority: 9, skb_mark: 11 };
    for rest in [
        "0800 4500001c0000400040110000 0a000001 0a000002 04d2005000080000 0000000000000000000000000000",
        "9000",
    ] {
        let key = extract_key(&frame(rest), &md);
        let got = (key.in_port, key.recirc_id, key.dp_hash, key.skb_priority, key.skb_mark);
        assert_eq!(got, (3, 5, 7, 9, 11), "{rest}");
    }
}

#[test]
fn r05_the_same_frame_always_has_the_same_key() {
    for frame in oracle("damaged") {
        assert_eq!(extract_key(&frame, &FROM_PORT_1), key_and_layers(&frame).0);
    }
}

#[test]
fn r30_vlan_tags_keep_their_tpid_and_the_type_is_the_innermost() {
    let (key, layers) = key_and_layers(&frame("88a8 0064 8100 e065 9000"));
    assert_eq!(key.vlan, [tag(0x88a8, 0x1064), tag(0x8100, 0xf065)]);
    assert_eq!(key.eth_type.get(), 0x9000);
    assert_eq!(layers.l3(), Some(22));
    assert_eq!(layers.l2_len, 22);
}

#[test]
fn r30_a_third_tag_is_only_an_ethernet_type() {
    let (key, layers) = key_and_layers(&frame("8100 0001 8100 0002 8100 0003 0800"));
    assert_eq!(key.vlan, [tag(0x8100, 0x1001), tag(0x8100, 0x1002)]);
    assert_eq!(key.eth_type.get(), 0x8100);
    assert_eq!(layers.l2_len, 22);
}

#[test]
fn r31_malformed_packets_are_never_dropped() {
    // A wrong IPv4 and TCP checksum change nothing; neither does a frame shorter than any header.
    let good = "0800 450000280000400040060000 0a000001 0a000002 04d200500000000100000002501204000000 0000";
    let bad = good.replace("40060000", "4006beef");
    assert_eq!(extract_key(&frame(good), &FROM_PORT_1), extract_key(&frame(&bad), &FROM_PORT_1));
    for length in 0..14 {
        let (key, layers) = key_and_layers(&frame("0800")[..length]);
        let want = Key { in_port: 1, eth_type: ETH_TYPE_NONE.into(), ..Key::default() };
        assert_eq!(key, want, "{length} bytes");
        assert_eq!(layers.l3(), None, "{length} bytes");
    }
}

#[test]
fn r32_a_header_that_contradicts_itself_is_empty() {
    let wrong_ihl = "4400001400004000400600000a0000010a000002";
    let total_below_header = "4500001300004000400600000a0000010a000002";
    let cut_in_header = "4500001400004000400600000a0000010a0000";
    let options_missing = "4f00001400004000400600000a0000010a000002";
    for packet in [wrong_ihl, total_below_header, cut_in_header, options_missing] {
        let (key, layers) = key_and_layers(&frame(&format!("0800 {packet}")));
        let found = (key.eth_type.get(), key.ip_proto, key.ipv4_src.get(), key.ip_ttl, key.ip_frag);
        assert_eq!(found, (0x0800, 0, 0, 0, 0), "{packet}");
        assert_eq!(layers.l3_kind, L3Kind::None, "{packet}");
        assert_eq!((layers.l3(), layers.l4()), (Some(14), None), "{packet}");
    }
    // ARP for another hardware, and one cut off.
    let arp = "0806 0006 0800 06 04 0001 00000000000b 0a000001 000000000000 0a000002";
    for rest in [arp, &arp.replace("0806 0006", "0806 0001")[..arp.len() - 2]] {
        let (key, layers) = key_and_layers(&frame(rest));
        assert_eq!((key.ip_proto, key.ipv4_src.get(), key.arp_sha), (0, 0, [0; 6]), "{rest}");
        assert_eq!(layers.l3_kind, L3Kind::None, "{rest}");
    }
    // NSH of another version.
    assert_eq!(extract_key(&frame("894f 4fc2 0203 00000101"), &FROM_PORT_1).nsh_path_hdr.get(), 0);
}

#[test]
fn r32_an_extension_header_longer_than_the_payload_leaves_only_addresses() {
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    let packet = format!("86dd 6abcdef1 0008 00 40 {addresses} 06 01 000000000000");
    let (key, layers) = key_and_layers(&frame(&packet));
    assert_eq!(key.ipv6_dst[15], 2);
    assert_eq!((key.ip_proto, key.ip_tos, key.ip_ttl, key.ipv6_label.get()), (0, 0, 0, 0));
    assert_eq!((layers.l3_kind, layers.l4()), (L3Kind::Ipv6, None));
}

#[test]
fn r33_empty_content_equals_the_key_of_a_packet_with_zeros() {
    let ip = |total: &str| format!("0800 4500{total}0000400040110000 0a000001 0a000002");
    let cut = extract_key(&frame(&ip("001c")), &FROM_PORT_1);
    let zeros = extract_key(&frame(&format!("{} 0000 0000 0008 0000", ip("001c"))), &FROM_PORT_1);
    assert_eq!(cut, zeros);
}

#[test]
fn r34_tcp_cut_off_after_ip_header_is_zero_ports() {
    // The total length tells of 40 bytes, the frame ends after 20.
    let (key, layers) = key_and_layers(&frame("0800 450000280000400040060000 0a000001 0a000002"));
    assert_eq!((key.ip_proto, key.ipv4_src.get(), key.ip_ttl), (6, 0x0a00_0001, 64));
    assert_eq!((key.tp_src.get(), key.tp_dst.get(), key.tcp_flags.get()), (0, 0, 0));
    assert_eq!((layers.l4(), layers.l4_kind), (Some(34), L4Kind::None));
    // The total length tells the truth: there is no TCP header, and the padding is not one.
    let padded =
        "0800 450000140000400040060000 0a000001 0a000002 1111 2222 000000000000000050020000 00000000 0000";
    let (key, layers) = key_and_layers(&frame(padded));
    assert_eq!((key.ip_proto, key.tp_src.get(), key.tp_dst.get()), (6, 0, 0));
    assert_eq!((layers.l4_kind, layers.end), (L4Kind::None, 34));
}

#[test]
fn r34_other_transports_cut_off_are_empty() {
    let ipv6 = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    for (proto, size) in [("06", 20), ("11", 8), ("84", 12), ("01", 8)] {
        for have in 0..size {
            let head = format!("0800 450000ff0000400040{proto}0000 0a000001 0a000002");
            let (key, layers) = key_and_layers(&[frame(&head), vec![0x50; have]].concat());
            assert_eq!((key.tp_src.get(), layers.l4_kind), (0, L4Kind::None), "proto {proto}, {have} bytes");
            assert_eq!(key.ip_ttl, 64, "proto {proto}, {have} bytes");
        }
    }
    for (proto, size) in [("06", 20), ("11", 8), ("84", 12), ("3a", 8)] {
        for have in 0..size {
            let head = format!("86dd 60000000 00ff {proto} 40 {ipv6}");
            let (key, layers) = key_and_layers(&[frame(&head), vec![0x50; have]].concat());
            assert_eq!((key.tp_src.get(), layers.l4_kind), (0, L4Kind::None), "proto {proto}, {have} bytes");
            assert_eq!((key.ip_ttl, key.ipv6_dst[15]), (64, 2), "proto {proto}, {have} bytes");
        }
    }
}

#[test]
fn r34_ipv6_cut_off_within_its_extension_headers_keeps_the_fixed_header() {
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    let packet = format!("86dd 6abcdef1 0030 00 40 {addresses} 06 01 000000000000");
    let key = extract_key(&frame(&packet), &FROM_PORT_1);
    assert_eq!((key.ip_tos, key.ipv6_label.get(), key.ip_ttl), (0xab, 0xc_def1, 64));
    assert_eq!(key.ip_proto, 59, "what follows is not known: no next header");
}

#[test]
fn r35_a_tag_cut_off_after_the_type_is_present_and_empty() {
    for rest in ["8100", "8100 00", "8100 0064", "8100 0064 08"] {
        let (key, layers) = key_and_layers(&frame(rest));
        assert_eq!(key.vlan, [tag(0x8100, 0), tag(0, 0)], "{rest}");
        assert_eq!(key.eth_type.get(), 0, "{rest}: there is no type behind the tag");
        assert_eq!(key.vlan_count(), 1, "{rest}");
        assert_eq!(layers.l3(), Some(14), "{rest}");
    }
    let key = extract_key(&frame("88a8 0064 8100 0065"), &FROM_PORT_1);
    assert_eq!(key.vlan, [tag(0x88a8, 0x1064), tag(0x8100, 0)]);
}

#[test]
fn r36_the_cfi_bit_means_present_whatever_the_wire_says() {
    for tci in ["0064", "1064"] {
        let key = extract_key(&frame(&format!("8100 {tci} 9000")), &FROM_PORT_1);
        assert_eq!(key.vlan[0], tag(0x8100, VLAN_CFI | 0x64), "TCI {tci}");
    }
    // Priority tag: VLAN 0, priority 0.
    assert_eq!(extract_key(&frame("8100 0000 9000"), &FROM_PORT_1).vlan[0], tag(0x8100, VLAN_CFI));
}

#[test]
fn llc_frames_have_a_type_only_with_snap() {
    let cases = [
        ("0026 424203 0000", ETH_TYPE_NONE, 14),
        ("0008 aaaa03 000000 0800", 0x0800, 22),
        ("0008 aaaa03 00000c 2000", ETH_TYPE_NONE, 14),
        ("0008 aaaa03 000000 05dc", ETH_TYPE_NONE, 22),
        ("0008 aaaa03 0000", ETH_TYPE_NONE, 14),
        ("05ff", ETH_TYPE_NONE, 14),
        ("0600", 0x0600, 14),
    ];
    for (rest, eth_type, l3) in cases {
        let (key, layers) = key_and_layers(&frame(rest));
        assert_eq!((key.eth_type.get(), layers.l3()), (eth_type, Some(l3)), "{rest}");
    }
}

#[test]
fn mpls_keeps_three_labels_and_l3_begins_after_the_whole_stack() {
    let (key, layers) = key_and_layers(&frame("8847 00001040 00002040 00003040 00004140 4500"));
    assert_eq!(key.mpls.map(|lse| lse.get()), [0x1040, 0x2040, 0x3040]);
    assert_eq!((layers.l2_5(), layers.l3()), (Some(14), Some(30)));
    assert_eq!(key.ip_proto, 0, "what the stack carries is not looked into");
}

#[test]
fn ipv4_fragments_have_ports_only_in_the_first() {
    let packet = |frag: &str| {
        frame(&format!(
            "0800 4500002c0001{frag}40110000 0a000001 0a000002 04d2 0050 0018 0000 {}",
            "00".repeat(16)
        ))
    };
    for (bits, kind, port) in
        [("0000", Frag::No, 80), ("4000", Frag::No, 80), ("8000", Frag::No, 80), ("2000", Frag::First, 80)]
            .into_iter()
            .chain([("2001", Frag::Later, 0), ("0001", Frag::Later, 0), ("1fff", Frag::Later, 0)])
    {
        let (key, layers) = key_and_layers(&packet(bits));
        assert_eq!((key.ip_frag, key.tp_dst.get(), layers.frag), (kind as u8, port, kind), "{bits}");
        assert_eq!(layers.l4(), Some(34), "{bits}");
        assert_eq!(layers.l4_complete(), kind != Frag::Later, "{bits}");
    }
}

#[test]
fn ipv6_later_fragments_end_the_chain() {
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    for (bits, kind, proto, port) in
        [("0000", Frag::No, 17, 80), ("0001", Frag::First, 17, 80), ("0008", Frag::Later, 44, 0)]
    {
        let packet = format!("86dd 60000000 0010 2c 40 {addresses} 1100{bits}00000001 04d2 0050 0008 0000");
        let (key, layers) = key_and_layers(&frame(&packet));
        assert_eq!((key.ip_frag, key.ip_proto, key.tp_dst.get()), (kind as u8, proto, port), "{bits}");
        assert_eq!(layers.l4(), Some(62), "{bits}");
    }
}

#[test]
fn ipv6_extension_headers_are_noted() {
    let addresses = "20010db8000000000000000000000001 20010db8000000000000000000000002";
    // Each header is 8 bytes and names the next; the last is "no next header".
    let bitmap = |chain: &[u8]| {
        let mut packet =
            frame(&format!("86dd 60000000 {:04x} {:02x} 40 {addresses}", 8 * (chain.len() - 1), chain[0]));
        for next in &chain[1..] {
            packet.extend_from_slice(&[*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        let (key, layers) = key_and_layers(&packet);
        assert_eq!(layers.l3_kind, L3Kind::Ipv6);
        key.ipv6_exthdrs
    };
    // `OFPIEH_*` as OpenFlow 1.3 numbers them.
    let [nonext, esp, dest, frag, router, hop, unrep, unseq] = [1, 2, 8, 16, 32, 64, 128, 256];
    assert_eq!(bitmap(&[59]), nonext);
    assert_eq!(bitmap(&[17]), 0);
    assert_eq!(bitmap(&[0, 60, 43, 44, 60, 17]), hop | dest | router | frag);
    assert_eq!(bitmap(&[0, 60, 43, 44, 50]), hop | dest | router | frag | esp);
    assert_eq!(bitmap(&[60, 60, 44, 17]), dest | frag | unseq);
    assert_eq!(bitmap(&[43, 0, 59]), router | hop | unseq | nonext);
    assert_eq!(bitmap(&[44, 44, 59]), frag | unrep | unseq | nonext);
}

#[test]
fn neighbour_discovery_takes_its_options_once() {
    let addresses = "fe800000000000000000000000000001 ff0200000000000000000001ff000002";
    let target = "fe800000000000000000000000000002";
    let packet = |options: &str| {
        let length = 24 + options.replace(' ', "").len() / 2;
        frame(&format!("86dd 60000000 {length:04x} 3a ff {addresses} 87000000 00000000 {target} {options}"))
    };
    let (source, target_ll, other) = ("0101 00000000000b", "0201 00000000000c", "0501 000000000000");
    let cases = [
        (String::new(), 2, 0, 0),
        (format!("{other} {source} {target_ll}"), 2, 0x0b, 0x0c),
        (format!("{source} {source}"), 0, 0, 0),
        (format!("{source} 0200 00000000000c"), 2, 0x0b, 0),
        (format!("{source} 0202 00000000000c"), 2, 0x0b, 0),
    ];
    for (options, target, sll, tll) in cases {
        let key = extract_key(&packet(&options), &FROM_PORT_1);
        assert_eq!(
            (key.nd_target[15], key.arp_sha[5], key.arp_tha[5]),
            (target, sll, tll),
            "options {options}"
        );
        assert_eq!((key.tp_src.get(), key.tp_dst.get()), (135, 0), "options {options}");
    }
}

#[test]
fn arp_operations_above_8_bits_read_as_zero() {
    let arp =
        |op: &str| frame(&format!("0806 0001 0800 06 04 {op} 00000000000b 0a000001 000000000000 0a000002"));
    for (op, want) in [("0001", 1), ("00ff", 255), ("0100", 0)] {
        let key = extract_key(&arp(op), &FROM_PORT_1);
        assert_eq!(
            (key.ip_proto, key.ipv4_src.get(), key.arp_sha[5]),
            (want, 0x0a00_0001, 0x0b),
            "operation {op}"
        );
    }
}
