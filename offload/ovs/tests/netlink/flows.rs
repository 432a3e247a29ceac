//! ovs_flow and ovs_packet: RULES.md on the wire.

use crate::raw::*;
use flowlift_flow::Ufid;
use flowlift_ovs::backend::{DpIndex, FlowId};
use flowlift_ovs::key::{Form, decode_key, decode_match};
use flowlift_ovs::uapi::{FLOW, PACKET};

const NEW: u8 = 1;
const DEL: u8 = 2;
const GET: u8 = 3;
const SET: u8 = 4;
const UFID: [u8; 16] = [7; 16];

/// The key of a UDP packet to a port, from port 1.
fn udp(dst: u16) -> Vec<u8> {
    [
        attr_u32(3, 1),
        attr(4, &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]),
        attr(6, &[8, 0]),
        attr(7, &[10, 0, 0, 1, 10, 0, 0, 2, 17, 0, 64, 0]),
        attr(10, &[[0, 5], dst.to_be_bytes()].concat()),
    ]
    .concat()
}

/// A mask of port, type, protocol and destination port.
fn udp_mask() -> Vec<u8> {
    [
        attr_u32(3, u32::MAX),
        attr(6, &[0xff; 2]),
        attr(7, &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0xff]),
        attr(10, &[0, 0, 0xff, 0xff]),
    ]
    .concat()
}

fn output(port: u32) -> Vec<u8> {
    attr(2, &attr_u32(1, port))
}

/// A flow to UDP port `dst`.
fn flow(ufid: Option<&[u8]>, dst: u16, actions: &[u8]) -> Vec<u8> {
    let ufid = ufid.map(|ufid| attr(9, ufid)).unwrap_or_default();
    [&ufid[..], &attr(1, &udp(dst)), &attr(7, &udp_mask()), actions].concat()
}

fn put(client: &mut Client, dp: i32, flags: u16, attrs: &[u8]) -> Answer {
    client.ask(&FLOW, flags, NEW, dp, attrs)
}

/// Attribute numbers, in order.
fn kinds(message: &Message) -> Vec<u16> {
    message.attrs().iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn r25_r26_a_flow_with_a_ufid_is_named_by_it_from_then_on() {
    let (mut client, dp) = Client::with_datapath();
    let reply = put(&mut client, dp, CREATE | ECHO, &flow(Some(&UFID), 53, &output(2)));
    assert_eq!(kinds(reply.only()), [9, 1, 7, 2], "UFID, KEY, MASK, ACTIONS; no counters yet (U3)");
    for cmd in [GET, SET, DEL] {
        let reply = client.ask(&FLOW, ECHO, cmd, dp, &attr(9, &UFID));
        assert_eq!((reply.only().cmd(), reply.only().attr(9).unwrap()), (cmd, UFID.to_vec()));
    }
    assert_eq!(client.ask(&FLOW, 0, GET, dp, &attr(9, &UFID)).errno(), 2, "ENOENT");
    // Its key is no handle of it.
    put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(2)));
    assert_eq!(client.ask(&FLOW, 0, GET, dp, &attr(1, &udp(53))).errno(), 2, "ENOENT");
}

#[test]
fn r20_r24_without_a_ufid_the_key_as_installed_is_the_handle() {
    let (mut client, dp) = Client::with_datapath();
    let reply = put(&mut client, dp, CREATE | ECHO, &flow(None, 53, &output(2)));
    assert_eq!(kinds(reply.only()), [1, 7, 2]);
    let sent = decode_key(&udp(53), Form::Datapath).unwrap().0;
    let told = decode_key(&reply.only().attr(1).unwrap(), Form::Datapath).unwrap().0;
    assert_eq!(told, sent, "bits outside the mask included");
    assert_eq!(client.ask(&FLOW, 0, GET, dp, &attr(1, &udp(53))).only().cmd(), GET);
    // A packet of the flow with other wildcarded bits is not its handle.
    let mut other = udp(53);
    other[8 + 4 + 5] = 9;
    assert_eq!(client.ask(&FLOW, 0, GET, dp, &attr(1, &other)).errno(), 2, "ENOENT");
}

#[test]
fn r19_r21_the_mask_comes_back_with_what_the_datapath_added() {
    let (mut client, dp) = Client::with_datapath();
    let reply = put(&mut client, dp, CREATE | ECHO, &flow(Some(&UFID), 53, &output(2)));
    let mask = attrs(&reply.only().attr(7).unwrap());
    // RECIRC_ID is exact without being named.
    assert!(mask.contains(&(20, vec![0xff; 4])), "{mask:?}");
    for (kind, payload) in attrs(&udp_mask()) {
        assert!(mask.contains(&(kind, payload.clone())), "{kind}: {payload:?} of {mask:?}");
    }
    assert_eq!(mask.len(), 5);
}

#[test]
fn r15_r18_a_user_that_knows_nothing_of_masks_gets_exact_flows() {
    let (mut client, dp) = Client::with_datapath();
    let attrs = [attr(1, &udp(53)), output(2)].concat();
    let reply = put(&mut client, dp, CREATE | ECHO, &attrs);
    let mask = crate::raw::attrs(&reply.only().attr(7).unwrap());
    assert!(mask.contains(&(7, vec![0xff; 12])) && mask.contains(&(10, vec![0xff; 4])), "{mask:?}");
}

#[test]
fn flows_that_are_there_or_not_give_the_kernels_errors() {
    let (mut client, dp) = Client::with_datapath();
    put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(2)));
    assert_eq!(put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(3))).errno(), 17, "EEXIST: UFID");
    assert_eq!(
        put(&mut client, dp, CREATE, &flow(Some(&[1; 16]), 53, &output(3))).errno(),
        17,
        "EEXIST: key"
    );
    let changed = put(&mut client, dp, ECHO, &flow(Some(&UFID), 53, &output(3)));
    assert_eq!(changed.only().attr(2).unwrap(), attr_u32(1, 3), "without CREATE it changes");
    assert_eq!(put(&mut client, dp, 0, &flow(Some(&UFID), 54, &output(3))).errno(), 2, "ENOENT: another key");
    assert_eq!(put(&mut client, dp + 1, CREATE, &flow(None, 53, &output(2))).errno(), 19, "ENODEV");
    assert_eq!(client.ask(&FLOW, 0, GET, dp, &[]).only().reason().2, Some(1), "KEY is missing");
    assert_eq!(put(&mut client, dp, CREATE, &output(2)).only().reason().2, Some(1), "KEY is missing");
    assert_eq!(
        put(&mut client, dp, CREATE, &attr(1, &udp(1))).only().reason().2,
        Some(2),
        "ACTIONS is missing"
    );
}

#[test]
fn a_delete_without_a_name_empties_the_table_and_a_bad_ufid_does_not() {
    let (mut client, dp) = Client::with_datapath();
    for dst in 1..=3 {
        put(&mut client, dp, CREATE, &flow(None, dst, &output(2)));
    }
    let count = |client: &mut Client| {
        client.ask(&FLOW, DUMP, GET, dp, &[]).messages.iter().filter(|m| m.kind == FLOW.id).count()
    };
    assert_eq!(client.ask(&FLOW, 0, DEL, dp, &attr(9, &[1; 17])).errno(), 22, "17 octets are no UFID");
    assert_eq!(count(&mut client), 3);
    let answer = client.ask(&FLOW, ACK | ECHO, DEL, dp, &[]);
    assert_eq!((answer.errno(), answer.notified.len(), count(&mut client)), (0, 0, 0));
}

#[test]
fn r37_an_attribute_twice_is_refused_and_named() {
    let (mut client, dp) = Client::with_datapath();
    let twice = [udp(53), attr_u32(3, 1)].concat();
    let answer = put(&mut client, dp, CREATE, &[attr(1, &twice), output(2)].concat());
    let (text, offset, _) = answer.only().reason();
    assert_eq!((answer.errno(), offset), (22, Some(24)), "{text}");
    assert!(text.contains("OVS_FLOW_ATTR_KEY") && text.contains("in_port occurs twice"), "{text}");
    let answer = put(&mut client, dp, CREATE, &[attr(1, &udp(53)), output(2), output(2)].concat());
    assert_eq!(answer.errno(), 22, "{:?}", answer.only().reason());
}

#[test]
fn r38_the_order_of_attributes_does_not_matter() {
    let (mut client, dp) = Client::with_datapath();
    let backwards: Vec<u8> =
        attrs(&udp(53)).into_iter().rev().flat_map(|(kind, payload)| attr(kind, &payload)).collect();
    let message = [output(2), attr(7, &udp_mask()), attr(1, &backwards), attr(9, &UFID)].concat();
    let one = put(&mut client, dp, CREATE | ECHO, &message).only().body.clone();
    client.ask(&FLOW, 0, DEL, dp, &[]);
    let other = put(&mut client, dp, CREATE | ECHO, &flow(Some(&UFID), 53, &output(2))).only().body.clone();
    assert_eq!(one, other, "and the answer is always composed the same way (R39)");
}

#[test]
fn u1_set_without_actions_leaves_them_and_empty_actions_clear_them() {
    let (mut client, dp) = Client::with_datapath();
    put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(2)));
    let left = client.ask(&FLOW, ECHO, SET, dp, &attr(9, &UFID));
    assert_eq!(left.only().attr(2).unwrap(), attr_u32(1, 2));
    let cleared = client.ask(&FLOW, ECHO, SET, dp, &flow(Some(&UFID), 53, &attr(2, &[])));
    assert_eq!(cleared.only().attr(2).unwrap(), b"");
    let no_key = client.ask(&FLOW, 0, SET, dp, &[attr(9, &UFID), output(2)].concat());
    assert_eq!(no_key.only().reason().2, Some(1), "actions are checked against a key");
}

#[test]
fn u2_u3_counters_are_there_when_they_say_something_and_clear_forgets_them() {
    let (mut client, dp) = Client::with_datapath();
    put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(2)));
    client.backend.now_ms = 1234;
    client.backend.hit(DpIndex(dp), &FlowId::Ufid(Ufid::new(&UFID).unwrap()), 3, 180, 0x12);
    let seen = client.ask(&FLOW, 0, GET, dp, &attr(9, &UFID));
    assert_eq!(seen.only().attr(5).unwrap(), 1234u64.to_ne_bytes(), "USED");
    assert_eq!(seen.only().attr(3).unwrap(), [3u64.to_ne_bytes(), 180u64.to_ne_bytes()].concat(), "STATS");
    assert_eq!(seen.only().attr(4).unwrap(), [0x12], "TCP_FLAGS");
    let cleared = client.ask(&FLOW, ECHO, SET, dp, &[attr(9, &UFID), attr(6, &[])].concat());
    assert!(cleared.only().attr(3).is_some(), "the reply tells what is forgotten");
    assert_eq!(cleared.only().attr(6), None, "CLEAR is never in a reply");
    let after = client.ask(&FLOW, 0, GET, dp, &attr(9, &UFID));
    assert_eq!(kinds(after.only()), [9, 1, 7, 2]);
    client.backend.hit(DpIndex(dp), &FlowId::Ufid(Ufid::new(&UFID).unwrap()), 1, 60, 0);
    let last = client.ask(&FLOW, ECHO, DEL, dp, &attr(9, &UFID));
    assert_eq!(last.only().attr(3).unwrap(), [1u64.to_ne_bytes(), 60u64.to_ne_bytes()].concat());
}

#[test]
fn u5_omit_flags_leave_parts_out_and_ufids_have_1_to_16_octets() {
    let (mut client, dp) = Client::with_datapath();
    put(&mut client, dp, CREATE, &flow(Some(&UFID), 53, &output(2)));
    put(&mut client, dp, CREATE, &flow(None, 54, &output(2)));
    for (flags, with, without) in [
        (7, vec![9], vec![1]),
        (1, vec![9, 7, 2], vec![1, 7, 2]),
        (2, vec![9, 1, 2], vec![1, 2]),
        (4, vec![9, 1, 7], vec![1, 7]),
    ] {
        let dump = client.ask(&FLOW, DUMP, GET, dp, &attr_u32(10, flags));
        let found: Vec<Vec<u16>> = dump.messages[..2].iter().map(kinds).collect();
        assert_eq!(found, [with, without], "flags {flags}");
    }
    for length in [1, 15] {
        let ufid = vec![9; length];
        put(&mut client, dp, CREATE, &flow(Some(&ufid), 100 + length as u16, &output(2)));
        assert_eq!(client.ask(&FLOW, 0, GET, dp, &attr(9, &ufid)).only().attr(9).unwrap(), ufid);
    }
    assert_eq!(put(&mut client, dp, CREATE, &flow(Some(&[]), 9, &output(2))).errno(), 34, "ERANGE");
    assert_eq!(put(&mut client, dp, CREATE, &flow(Some(&[1; 17]), 9, &output(2))).errno(), 22, "EINVAL");
}

#[test]
fn u6_a_probe_that_fails_is_no_error() {
    let (mut client, dp) = Client::with_datapath();
    let ct = attr(2, &attr(12, &attr(1, &[])));
    let before = client.server.counters();
    let probe = [attr(8, &[]), attr(1, &udp(53)), ct.clone()].concat();
    assert_eq!(put(&mut client, dp, CREATE, &probe).errno(), 22, "EINVAL is \"not supported\"");
    let after = client.server.counters();
    assert_eq!((after.failed - before.failed, after.failed_probes - before.failed_probes), (0, 1));
    put(&mut client, dp, CREATE, &[attr(1, &udp(53)), ct].concat());
    assert_eq!(client.server.counters().failed - after.failed, 1, "the same without PROBE");
}

#[test]
fn connection_tracking_is_probed_away_unless_it_is_there() {
    let (mut client, dp) = Client::with_datapath();
    let ct_state = [udp(53), attr_u32(22, 0)].concat();
    let nested = attr(2, &attr(20, &attr(16, &[])));
    for attrs in [[attr(1, &ct_state), output(2)].concat(), [attr(1, &udp(53)), nested].concat()] {
        assert_eq!(put(&mut client, dp, CREATE, &attrs).errno(), 22);
        client.backend.capabilities.conntrack = true;
        let answer = put(&mut client, dp, CREATE | ECHO, &attrs);
        assert!(answer.only().kind == FLOW.id, "{:?}", answer.only().reason());
        client.ask(&FLOW, 0, DEL, dp, &[]);
        client.backend.capabilities.conntrack = false;
    }
}

#[test]
fn u13_unknown_attributes_and_actions_are_refused() {
    let (mut client, dp) = Client::with_datapath();
    for number in [29, 30, 31, 33, 200] {
        let key = [udp(53), attr_u32(number, 0)].concat();
        let answer = put(&mut client, dp, CREATE, &[attr(1, &key), output(2)].concat());
        assert_eq!(answer.errno(), 22, "key attribute {number}");
    }
    for number in [0, 26, 200] {
        let actions = attr(2, &attr(number, &[]));
        assert_eq!(
            put(&mut client, dp, CREATE, &[attr(1, &udp(53)), actions].concat()).errno(),
            22,
            "{number}"
        );
    }
}

#[test]
fn nesting_ends_at_a_limit() {
    let (mut client, dp) = Client::with_datapath();
    let nested = |depth| (0..depth).fold(attr_u32(1, 2), |inner, _| attr(20, &inner));
    let answer = put(&mut client, dp, CREATE | ACK, &[attr(1, &udp(1)), attr(2, &nested(10))].concat());
    assert_eq!(answer.errno(), 0, "as deep as OVS probes");
    for depth in [17, 1000, 10_000] {
        let attrs = [attr(1, &udp(2)), attr(2, &nested(depth))].concat();
        assert_eq!(put(&mut client, dp, CREATE, &attrs).errno(), 75, "EOVERFLOW at {depth}");
    }
}

#[test]
fn a_packet_is_executed_with_its_metadata_alone() {
    let (mut client, dp) = Client::with_datapath();
    let mut packet = vec![2; 60];
    packet[12..14].copy_from_slice(&[8, 0]);
    // As OVS sends it: priority, mark and port.
    let key = [attr_u32(2, 5), attr_u32(15, 6), attr_u32(3, 1)].concat();
    let attrs = [attr(1, &packet), attr(2, &key), attr(3, &attr_u32(1, 9))].concat();
    assert!(client.ask(&PACKET, 0, 3, dp, &attrs).messages.is_empty(), "no reply unless asked for");
    assert_eq!(client.ask(&PACKET, ACK, 3, dp, &attrs).errno(), 0);
    let (at, bytes, metadata, actions) = client.backend.executed.last().unwrap();
    assert_eq!((at.0, bytes, actions.len()), (dp, &packet, 1));
    assert_eq!((metadata.skb_priority, metadata.skb_mark, metadata.in_port), (5, 6, 1));
    assert_eq!(client.ask(&PACKET, 0, 3, dp + 1, &attrs).errno(), 19, "ENODEV");
    let short = [attr(1, &packet[..13]), attr(2, &key), attr(3, &attr_u32(1, 9))].concat();
    assert_eq!(client.ask(&PACKET, 0, 3, dp, &short).errno(), 34, "ERANGE: no Ethernet header");
    for missing in 1..=3u16 {
        let some: Vec<u8> = crate::raw::attrs(&attrs)
            .into_iter()
            .filter(|(kind, _)| *kind != missing)
            .flat_map(|(kind, payload)| attr(kind, &payload))
            .collect();
        assert_eq!(client.ask(&PACKET, 0, 3, dp, &some).only().reason().2, Some(missing.into()));
    }
    for cmd in [1, 2, 4] {
        assert_eq!(client.ask(&PACKET, 0, cmd, dp, &attrs).errno(), 95, "EOPNOTSUPP: not for users");
    }
}

#[test]
fn push_nsh_holds_its_header_as_an_attribute_of_the_key() {
    let (mut client, dp) = Client::with_datapath();
    let base = [0, 63, 1, 3, 0, 0x12, 0x34, 255];
    let header = [attr(1, &base), attr(2, &[0x11; 16])].concat();
    let with = |nsh: &[u8]| [flow(Some(&UFID), 53, &[]), attr(2, &attr(17, nsh))].concat();
    let sent = attr(28, &header);
    let reply = put(&mut client, dp, CREATE | ECHO, &with(&sent));
    let actions = reply.only().attrs().into_iter().find(|(kind, _)| *kind == 2).expect("ACTIONS").1;
    assert_eq!(actions, attr(17, &sent), "as it came");
    for wrong in [header.clone(), attr(4, &header), Vec::new(), [sent.clone(), sent.clone()].concat()] {
        assert_eq!(put(&mut client, dp, CREATE, &with(&wrong)).errno(), 22, "{wrong:x?}");
    }
}

#[test]
fn packets_with_and_without_an_ethernet_header_are_told_apart() {
    let (mut client, dp) = Client::with_datapath();
    // As the kernel's form has it: ETHERTYPE without ETHERNET. Both masks name the type alone.
    let ip = attr(7, &[10, 0, 0, 1, 10, 0, 0, 2, 200, 0, 64, 0]);
    let bare = [attr_u32(3, 1), attr(6, &[8, 0]), ip.clone()].concat();
    let framed = [attr_u32(3, 1), attr(4, &[2; 12]), attr(6, &[8, 0]), ip].concat();
    let mask = [attr_u32(3, u32::MAX), attr(6, &[0xff; 2])].concat();
    let push_eth = attr(2, &[attr(14, &[2; 12]), attr_u32(1, 2)].concat());
    let flow = |key: &[u8], ufid: u8| {
        [attr(1, key), attr(7, &mask), attr(9, &[ufid; 16]), push_eth.clone()].concat()
    };
    assert_eq!(put(&mut client, dp, CREATE | ACK, &flow(&bare, 1)).errno(), 0);
    assert_eq!(put(&mut client, dp, CREATE, &flow(&framed, 2)).errno(), 22, "it has a header already");
    let matching = decode_match(&bare, Some(&mask), Form::Datapath).unwrap();
    let (framed, _) = decode_key(&framed, Form::Datapath).unwrap();
    assert!(matching.matches(&matching.key) && !matching.matches(&framed));

    let packet = [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 200, 0, 0][..], &[10, 0, 0, 1, 10, 0, 0, 2]].concat();
    let execute = [attr(1, &packet), attr(2, &bare), attr(3, &attr_u32(1, 9))].concat();
    assert_eq!(client.ask(&PACKET, ACK, 3, dp, &execute).errno(), 0);
    let (_, _, metadata, _) = client.backend.executed.last().unwrap();
    assert_eq!(metadata.packet_type.get(), 0x0001_0800);
}
