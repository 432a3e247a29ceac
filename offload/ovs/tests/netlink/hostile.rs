//! Bad input: refused, counted, never a panic.

use crate::raw::*;
use flowlift_flow::Action;
use flowlift_ovs::action::{decode_actions, encode_actions};
use flowlift_ovs::marker;
use flowlift_ovs::server::Peer;
use flowlift_ovs::uapi::{DATAPATH, FAMILIES, FLOW};
use proptest::prelude::*;

#[test]
fn another_user_is_refused_and_counted() {
    let (mut client, dp) = Client::with_datapath();
    client.peer.uid = 1000;
    for family in FAMILIES {
        assert_eq!(client.ask(family, 0, 3, dp, &[]).errno(), 1, "EPERM");
    }
    assert_eq!(client.server.counters().refused_users, FAMILIES.len() as u64);
    client.server = flowlift_ovs::server::Server::new(vec![1000]);
    assert_eq!(client.ask(&DATAPATH, 0, 3, dp, &[]).only().kind, DATAPATH.id, "unless it has been allowed");
}

#[test]
fn what_is_no_message_is_counted_and_the_marker_still_comes_back() {
    let (mut client, dp) = Client::with_datapath();
    let get = message(DATAPATH.id, REQUEST, 1, &ovs(3, 2, dp, &[]));
    let mut too_long = get.clone();
    too_long[0] = 200;
    let mut too_short = get.clone();
    too_short[0] = 15;
    for (n, bad) in [&[1, 2, 3][..], &too_long, &too_short, &[0; 16]].into_iter().enumerate() {
        let padded = [bad, &[0; 3][..bad.len().next_multiple_of(4) - bad.len()]].concat();
        let answer = client.send(&[padded, marker::marker(*b"abcdefgh").to_vec()].concat());
        assert_eq!(answer.only().kind, marker::TYPE, "{bad:?}");
        assert_eq!(client.server.counters().malformed, n as u64 + 1);
    }
    // What came before is answered.
    assert_eq!(client.send(&[get, vec![9; 5]].concat()).only().kind, DATAPATH.id);
}

#[test]
fn requests_too_short_for_their_headers_and_unknown_ones_get_errors() {
    let mut client = Client::new();
    for (kind, body, errno) in [
        (DATAPATH.id, vec![], 22),
        (DATAPATH.id, vec![3, 2, 0, 0], 22),
        (DATAPATH.id, ovs(9, 2, 0, &[]), 95),
        (DATAPATH.id, ovs(3, 2, 0, &[3, 0, 1, 0]), 22),
        (DATAPATH.id, ovs(3, 2, 0, &[9, 0, 1, 0]), 22),
        (DATAPATH.id, ovs(3, 2, 0, &[8, 0]), 22),
        (DATAPATH.id, ovs(3, 2, -1, &[]), 19),
        (0x7ff, ovs(3, 2, 0, &[]), 2),
    ] {
        let answer = client.send(&message(kind, REQUEST, 1, &body));
        assert_eq!(answer.errno(), errno, "{kind:#x} {body:?}: {:?}", answer.only().reason());
    }
    // Acks, and what nobody asked for, are not answered.
    let quiet = [message(2, REQUEST, 1, &[0; 20]), message(DATAPATH.id, 0, 1, &ovs(3, 2, 0, &[]))].concat();
    assert!(client.send(&quiet).messages.is_empty());
    assert_eq!(client.server.counters().unexpected, 2);
}

#[test]
fn a_replayed_datagram_does_no_more_than_the_kernel_would_let_it() {
    let (mut client, dp) = Client::with_datapath();
    let key = [attr_u32(3, 1), attr(4, &[2; 12]), attr(6, &[0x88, 0xcc])].concat();
    let body = ovs(1, 1, dp, &[attr(1, &key), attr(2, &attr_u32(1, 2))].concat());
    let put = message(FLOW.id, REQUEST | CREATE | ACK, 1, &body);
    assert_eq!(client.send(&put).errno(), 0);
    for _ in 0..1000 {
        assert_eq!(client.send(&put).errno(), 17, "EEXIST");
    }
}

#[test]
fn dumps_of_ever_more_clients_end_in_busy() {
    let (mut client, dp) = Client::with_datapath();
    let request = message(DATAPATH.id, REQUEST | DUMP, 1, &ovs(3, 2, dp, &[]));
    let mut refused = 0;
    for port_id in 1..=2000 {
        client.server.handle(Peer { port_id, uid: 0 }, &request, &mut client.backend, &mut |_| refused += 1);
    }
    assert_eq!((client.server.dumping().len(), refused), (1024, 976));
}

/// Attributes within attributes, some well-formed and some not.
fn any_attrs() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..48),
        (0u16..34, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, p)| attr(kind, &p)),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        proptest::collection::vec((0u16..34, inner), 0..6)
            .prop_map(|all| all.iter().flat_map(|(kind, payload)| attr(*kind, payload)).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_attributes_in_any_command_get_an_answer_or_none(
        family in 0..FAMILIES.len(),
        cmd in 0u8..12,
        flags in any::<u16>(),
        dp in prop_oneof![Just(1), any::<i32>()],
        attrs in any_attrs(),
    ) {
        let (mut client, _) = Client::with_datapath();
        let body = ovs(cmd, 1, dp, &attrs);
        let mut message = message(FAMILIES[family].id, flags | REQUEST, 5, &body);
        message.resize(message.len().next_multiple_of(4), 0);
        let answer = client.send(&[message, marker::marker([1; 8]).to_vec()].concat());
        prop_assert_eq!(answer.messages.last().map(|m| m.kind), Some(marker::TYPE));
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut client, _) = Client::with_datapath();
        client.send(&bytes);
    }

    #[test]
    fn actions_that_are_read_are_written_and_read_the_same(bytes in any_attrs()) {
        if let Ok(actions) = decode_actions(&bytes) {
            prop_assert_eq!(through(&actions), actions);
        }
    }
}

/// Actions written and read again.
fn through(actions: &[Action]) -> Vec<Action> {
    let mut bytes = Vec::new();
    encode_actions(actions, &mut bytes).expect("actions that were read can be written");
    decode_actions(&bytes).unwrap_or_else(|e| panic!("{e}: {bytes:02x?}"))
}

#[test]
fn every_action_that_open_vswitch_prints_goes_through_attributes() {
    use flowlift_flow::text::{NoNames, parse_dump_line};
    use flowlift_ovs::action::EncodeError;
    let mut lists = 0;
    for name in ["actions", "ct", "userspace", "tunnel", "metadata", "l3"] {
        let path = format!("{}/../../fixtures/flows/dummy-{name}.m-no-names.txt", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        for line in text.lines().filter(|line| line.contains("actions:")) {
            // The user-space datapath knows no port IDs; here, 0 is nobody and refused.
            let line = line.replace("userspace(pid=0,", "userspace(pid=1,");
            let actions =
                parse_dump_line(&line, &NoNames).unwrap_or_else(|e| panic!("{line}: {e}")).flow.actions;
            match encode_actions(&actions, &mut Vec::new()) {
                Err(EncodeError::UserSpaceOnly(_)) => {}
                _ => {
                    assert_eq!(through(&actions), actions, "{line}");
                    lists += 1;
                }
            }
        }
    }
    assert!(lists > 50, "{lists} lists of actions");
}
