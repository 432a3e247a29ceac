//! Upcalls: bytes by hand, and the user's way back with a flow.

use crate::raw::*;
use flowlift_flow::key::{eth_type, ip_proto, tun_flags};
use flowlift_flow::{Action, Key, PortNo};
use flowlift_ovs::backend::{DpIndex, Features};
use flowlift_ovs::uapi::{FLOW, PACKET};
use flowlift_ovs::upcall::{Cause, Dispatch, HASH_L4, HASH_SW, TooLong, Upcall};

/// An ARP request from port 3.
fn arp() -> (Key, Vec<u8>) {
    let key = Key {
        in_port: 3,
        eth_src: [2, 0, 0, 0, 0, 1],
        eth_dst: [0xff; 6],
        eth_type: eth_type::ARP.into(),
        ip_proto: 1,
        ipv4_src: 0x0a00_0001.into(),
        ipv4_dst: 0x0a00_0002.into(),
        arp_sha: [2, 0, 0, 0, 0, 1],
        ..Key::default()
    };
    let packet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[7; 19]].concat();
    (key, packet)
}

fn upcall<'a>(key: &'a Key, packet: &'a [u8], cause: Cause<'a>) -> Upcall<'a> {
    Upcall {
        dp: DpIndex(6),
        cause,
        key,
        packet,
        original_len: packet.len(),
        mru: None,
        hash: 0,
        conntrack: false,
        features: Features::UNALIGNED,
    }
}

fn bytes(upcall: &Upcall<'_>) -> Vec<u8> {
    let mut out = vec![0xee; 7];
    upcall.encode(&mut out).unwrap();
    out
}

#[test]
fn r4_r5_a_miss_is_the_packet_with_the_key_that_the_datapath_parsed() {
    let (key, packet) = arp();
    let found = bytes(&upcall(&key, &packet, Cause::Miss));
    let key_attrs = [
        attr_u32(20, 0),
        attr_u32(19, 0),
        attr_u32(2, 0),
        attr_u32(3, 3),
        attr_u32(15, 0),
        attr(4, &[2, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        attr(6, &[8, 6]),
        attr(13, &[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]
    .concat();
    let mut packet_attr = attr(1, &packet);
    packet_attr.truncate(4 + packet.len());
    let attrs = [attr(2, &key_attrs), attr(11, &[0; 8]), packet_attr].concat();
    assert_eq!(found, message(PACKET.id, 0, 0, &ovs(1, 1, 6, &attrs)));
    // A user that has not said that it can do without gets the padding.
    let padded = bytes(&Upcall { features: Features(0), ..upcall(&key, &packet, Cause::Miss) });
    assert_eq!(padded.len(), found.len() + 3);
    assert_eq!(Message::all(&padded)[0].attr(1).unwrap(), packet);
}

#[test]
fn u11_an_action_upcall_has_what_its_action_asks_for() {
    let (key, packet) = arp();
    let tunnel = Key {
        tun_flags: (tun_flags::PRESENT | tun_flags::KEY).into(),
        tun_id: 9.into(),
        tun_ipv4_dst: 0x0102_0304.into(),
        tun_ttl: 64,
        ..Key::default()
    };
    let actions = [Action::Output(PortNo(2))];
    let cause = Cause::Action {
        userdata: Some(&[1, 2, 3, 4, 5]),
        egress_tunnel: Some(&tunnel),
        actions: Some(&actions),
    };
    let upcall = Upcall {
        original_len: packet.len(),
        mru: Some(1480),
        hash: 7 | HASH_SW | HASH_L4,
        ..upcall(&key, &packet[..20], cause)
    };
    let message = Message::all(&bytes(&upcall)).remove(0);
    assert_eq!((message.cmd(), message.dp()), (2, 6));
    let kinds: Vec<u16> = message.attrs().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [2, 4, 5, 3, 9, 10, 11, 1], "in the kernel's order, the packet last");
    assert_eq!(message.attr(4).unwrap(), [1, 2, 3, 4, 5], "userdata as given");
    let tunnel = [attr(0, &9u64.to_be_bytes()), attr(2, &[1, 2, 3, 4]), attr(4, &[64])].concat();
    assert_eq!(message.attr(5).unwrap(), tunnel, "tunnel attributes, not within TUNNEL");
    assert_eq!(message.attr(3).unwrap(), attr_u32(1, 2));
    assert_eq!(message.attr(9).unwrap(), 1480u16.to_ne_bytes());
    assert_eq!(message.u32(10), packet.len() as u32, "the length before truncation");
    assert_eq!(message.attr(11).unwrap(), (7u64 | 3 << 32).to_ne_bytes());
    assert_eq!(message.attr(1).unwrap(), packet[..20]);
}

#[test]
fn truncation_that_cuts_nothing_is_none_and_giants_are_refused() {
    let (key, packet) = arp();
    let message = Message::all(&bytes(&upcall(&key, &packet, Cause::Miss))).remove(0);
    assert_eq!((message.attr(10), message.attr(1).unwrap()), (None, packet));
    let giant = vec![0; 65_532];
    assert_eq!(upcall(&key, &giant, Cause::Miss).encode(&mut Vec::new()), Err(TooLong(65_532)));
    let mut out = Vec::new();
    upcall(&key, &giant[1..], Cause::Miss).encode(&mut out).unwrap();
    assert_eq!(Message::all(&out)[0].attr(1).unwrap().len(), 65_531);
}

#[test]
fn connection_state_is_told_where_there_is_some() {
    let (key, packet) = arp();
    let with = Upcall { conntrack: true, ..upcall(&key, &packet, Cause::Miss) };
    let kinds = |upcall: &Upcall<'_>| -> Vec<u16> {
        attrs(&Message::all(&bytes(upcall))[0].attr(2).unwrap()).iter().map(|(kind, _)| *kind).collect()
    };
    assert_eq!(kinds(&with), [20, 19, 2, 3, 15, 22, 23, 24, 25, 4, 6, 13]);
    assert_eq!(kinds(&upcall(&key, &packet, Cause::Miss)), [20, 19, 2, 3, 15, 4, 6, 13]);
}

#[test]
fn r6_r7_the_key_of_an_upcall_sets_its_flow_up_as_it_came() {
    let (mut client, dp) = Client::with_datapath();
    let tcp = Key {
        eth_type: eth_type::IPV4.into(),
        ip_proto: ip_proto::TCP,
        tp_dst: 80.into(),
        tcp_flags: 2.into(),
        ..arp().0
    };
    for key in [arp().0, tcp] {
        let sent = Message::all(&bytes(&upcall(&key, &[0; 60], Cause::Miss))).remove(0).attr(2).unwrap();
        let flow = [attr(1, &sent), attr(2, &attr_u32(1, 4))].concat();
        let reply = client.ask(&FLOW, CREATE | ECHO, 1, dp, &flow);
        assert_eq!(reply.only().attr(1).unwrap(), sent, "the handle is the key that was sent up");
    }
}

#[test]
fn upcalls_go_to_a_cpu_or_to_one_of_a_ports_sockets() {
    let per_cpu = Dispatch { features: Features(9), per_cpu: &[10, 20, 0], vport: &[7] };
    assert_eq!(
        [0, 1, 2, 3, 4].map(|cpu| per_cpu.miss(cpu, 5)),
        [Some(10), Some(20), None, Some(10), Some(20)]
    );
    assert_eq!(per_cpu.action(1, u32::MAX), Some(20), "the action's own port ID is of no meaning");
    let per_vport = Dispatch { features: Features(3), per_cpu: &[10], vport: &[7, 8, 9] };
    assert_eq!([0, 1, 2, 3].map(|hash| per_vport.miss(1, hash)), [Some(7), Some(8), Some(9), Some(7)]);
    assert_eq!((per_vport.action(0, 5), per_vport.action(0, 0)), (Some(5), None));
    assert_eq!(Dispatch { vport: &[0], ..per_vport }.miss(0, 1), None, "nobody wants them");
    assert_eq!(Dispatch { per_cpu: &[], ..per_cpu }.miss(0, 1), None);
}
