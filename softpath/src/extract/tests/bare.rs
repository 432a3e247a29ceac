//! Packets without an Ethernet header: the key of what begins with L3, or with a label stack.

use super::*;
use crate::extract::{L3Kind, L4Kind, extract_packet};
use crate::packet::{Packet, PacketType};
use flowlift_flow::key::{ETH_TYPE_NONE, eth_type};

fn bare(packet_type: PacketType, bytes: &[u8], reused: &mut KeyBuf) -> (Key, Layers) {
    let mut packet = Packet::new();
    packet.fill(bytes, FROM_PORT_1);
    packet.packet_type = packet_type;
    let layers = extract_packet(&packet, reused);
    (reused.key().clone(), layers)
}

/// What stands behind the Ethernet header of `frame`, which has no tags, and its packet type.
fn without_ethernet(frame: &[u8]) -> (PacketType, &[u8]) {
    (PacketType::bare(u16::from_be_bytes([frame[12], frame[13]])), &frame[14..])
}

/// The oracle's frames without tags or LLC, cut at every byte behind their Ethernet header: a bare packet's key is the
/// frame's, but for packet type and addresses, and its layers are 14 bytes nearer.
#[test]
fn a_bare_packet_has_the_key_of_its_frame_without_ethernet() {
    let mut reused = KeyBuf::new();
    let mut compared = 0;
    for frame in oracle("well-formed").iter().chain(&oracle("damaged")) {
        let (whole, layers) = key_and_layers(frame);
        if layers.l2_len != 14 || whole.vlan[0].tpid.get() != 0 || whole.eth_type.get() == ETH_TYPE_NONE {
            continue;
        }
        for len in 14..=frame.len() {
            let (mut want, want_layers) = key_and_layers(&frame[..len]);
            let (kind, packet) = without_ethernet(&frame[..len]);
            (want.eth_src, want.eth_dst, want.packet_type) = ([0; 6], [0; 6], kind.0.into());
            let (got, layers) = bare(kind, packet, &mut reused);
            let what = format!("{} as {kind:?}", to_hex(packet));
            assert_eq!(got, want, "{what}");
            let nearer = |at: Option<usize>| at.map(|at| at - 14);
            assert_eq!(layers.l3(), nearer(want_layers.l3()), "L3 of {what}");
            assert_eq!(layers.l4(), nearer(want_layers.l4()), "L4 of {what}");
            assert_eq!(layers.l2_5(), nearer(want_layers.l2_5()), "labels of {what}");
            assert_eq!((layers.l2_len, layers.end), (0, want_layers.end - 14), "{what}");
            assert_eq!(
                (layers.l3_kind, layers.l4_kind, layers.frag),
                (want_layers.l3_kind, want_layers.l4_kind, want_layers.frag),
                "{what}"
            );
            compared += 1;
        }
    }
    assert!(compared > 5000, "only {compared} packets compared");
}

#[test]
fn the_packet_type_says_what_the_first_byte_is() {
    let udp = hex("4500001c0000400040110000 0a000001 0a000002 04d2 0050 0008 0000");
    let (key, layers) = bare(PacketType::IPV4, &udp, &mut KeyBuf::new());
    assert_eq!((key.packet_type.get(), key.eth_type.get()), (0x1_0800, eth_type::IPV4));
    assert_eq!((key.ipv4_dst.get(), key.tp_dst.get(), key.eth_dst), (0x0a00_0002, 80, [0; 6]));
    assert_eq!((layers.l3(), layers.l4()), (Some(0), Some(20)));
    assert_eq!((layers.l3_kind, layers.l4_kind), (L3Kind::Ipv4, L4Kind::Udp));
    // The same bytes under another type are nothing that the key knows.
    let (key, layers) = bare(PacketType::IPV6, &udp, &mut KeyBuf::new());
    assert_eq!((key.eth_type.get(), key.ip_proto, layers.l3_kind), (eth_type::IPV6, 0, L3Kind::None));
    let (key, layers) = bare(PacketType::bare(0x1234), &udp, &mut KeyBuf::new());
    assert_eq!((key.eth_type.get(), key.ip_proto, layers.l3()), (0x1234, 0, Some(0)));
}

#[test]
fn a_label_stack_may_come_first() {
    let (key, layers) =
        bare(PacketType::bare(eth_type::MPLS), &hex("00005040 00006140 45"), &mut KeyBuf::new());
    assert_eq!((key.mpls[0].get(), key.mpls[1].get()), (0x5040, 0x6140));
    assert_eq!((layers.l2_5(), layers.l3()), (Some(0), Some(8)));
}

#[test]
fn r31_a_bare_packet_cut_off_at_any_byte_has_a_key() {
    let udp = hex("4500001c0000400040110000 0a000001 0a000002 04d2 0050 0008 0000");
    for len in 0..udp.len() {
        let (key, layers) = bare(PacketType::IPV4, &udp[..len], &mut KeyBuf::new());
        assert_eq!(key.eth_type.get(), eth_type::IPV4, "cut at {len}");
        assert_eq!(key.ip_proto == 17, len >= 20, "cut at {len}");
        assert!(layers.end as usize == len && layers.l4_kind == L4Kind::None, "cut at {len}");
    }
}

#[test]
fn a_buffer_forgets_the_packet_type() {
    let udp = hex("4500001c0000400040110000 0a000001 0a000002 04d2 0050 0008 0000");
    let mut reused = KeyBuf::new();
    bare(PacketType::IPV4, &udp, &mut reused);
    let frame = oracle("well-formed").swap_remove(2);
    extract(&frame, &FROM_PORT_1, &mut reused);
    assert_eq!(*reused.key(), extract_key(&frame, &FROM_PORT_1));
}
