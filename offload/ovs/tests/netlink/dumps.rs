//! Dumps: in pieces, side by side with everything else.

use crate::raw::*;
use flowlift_ovs::marker;
use flowlift_ovs::server::{DumpState, Peer, To};
use flowlift_ovs::uapi::{FLOW, VPORT};
use std::collections::HashSet;

/// A datapath with `count` flows, each with a UFID that has its number.
fn with_flows(count: u32) -> (Client, i32) {
    let (mut client, dp) = Client::with_datapath();
    for n in 0..count {
        let [a, b, c, d] = n.to_be_bytes();
        let key = [attr_u32(3, 1), attr(4, &[2, 0, a, b, c, d, 2, 0, 0, 0, 0, 2]), attr(6, &[0x88, 0xcc])];
        let attrs = [
            attr(9, &[&n.to_ne_bytes()[..], &[1; 12]].concat()),
            attr(1, &key.concat()),
            attr(2, &attr_u32(1, 2)),
        ];
        assert!(client.ask(&FLOW, CREATE, 1, dp, &attrs.concat()).messages.is_empty());
    }
    (client, dp)
}

fn number(message: &Message) -> u32 {
    message.u32(9)
}

#[test]
fn a_hundred_thousand_flows_come_each_once_in_datagrams_that_a_reader_can_hold() {
    let count = 100_000;
    let (mut client, dp) = with_flows(count);
    for flags in [7, 0] {
        let dump = client.ask(&FLOW, DUMP, 3, dp, &attr_u32(10, flags));
        let numbers: HashSet<u32> = dump.messages.iter().filter(|m| m.kind == FLOW.id).map(number).collect();
        assert_eq!((numbers.len(), dump.messages.len()), (count as usize, count as usize + 1));
        assert!(dump.datagrams.iter().all(|len| *len <= 16 * 1024 + 64));
    }
}

#[test]
fn what_changes_during_a_dump_does_not_repeat_or_hide_the_rest() {
    let (mut client, dp) = with_flows(2000);
    let request = message(FLOW.id, REQUEST | DUMP, 1, &ovs(3, 1, dp, &attr_u32(10, 7)));
    let mut seen = Vec::new();
    client.server.handle(client.peer, &request, &mut client.backend, &mut |_| panic!("begun, not sent"));
    let mut state = DumpState::More;
    let mut step = 0u32;
    while state == DumpState::More {
        state = client.server.continue_dump(client.peer.port_id, &mut client.backend, &mut |reply| {
            seen.extend(Message::all(reply.bytes).iter().filter(|m| m.kind == FLOW.id).map(number));
        });
        // Another client deletes a flow that was told and one that was not.
        let other = Peer { port_id: 7, uid: 0 };
        for n in [step, 1999 - step] {
            let ufid = attr(9, &[&n.to_ne_bytes()[..], &[1; 12]].concat());
            let request = message(FLOW.id, REQUEST | ACK, 1, &ovs(2, 1, dp, &ufid));
            client.server.handle(other, &request, &mut client.backend, &mut |reply| {
                if reply.to == To::Unicast(7) {
                    assert_eq!(Message::all(reply.bytes)[0].errno(), 0, "answered at once");
                }
            });
        }
        step += 1;
    }
    let unique: HashSet<u32> = seen.iter().copied().collect();
    assert_eq!(unique.len(), seen.len(), "none twice");
    assert!((step..2000 - step).all(|n| unique.contains(&n)), "those that stayed are all there");
}

#[test]
fn a_marker_comes_back_behind_the_dumps_end() {
    let (mut client, dp) = with_flows(500);
    let request = message(FLOW.id, REQUEST | DUMP, 1, &ovs(3, 1, dp, &[]));
    let mut answer = client.send(&[request, marker::marker(*b"12345678").to_vec()].concat());
    assert_eq!(answer.messages.pop().unwrap().kind, marker::TYPE);
    assert_eq!(answer.messages.pop().unwrap().kind, 3, "NLMSG_DONE");
    assert_eq!(answer.messages.len(), 500);
}

#[test]
fn a_second_dump_on_a_socket_is_busy_and_another_socket_has_its_own() {
    let (mut client, dp) = with_flows(500);
    let request = message(FLOW.id, REQUEST | DUMP, 1, &ovs(3, 1, dp, &[]));
    let mut errors = Vec::new();
    for port_id in [1, 1, 2] {
        let peer = Peer { port_id, uid: 0 };
        client.server.handle(peer, &request, &mut client.backend, &mut |reply| {
            errors.extend(Message::all(reply.bytes).iter().map(Message::errno));
        });
    }
    assert_eq!(errors, [16], "EBUSY");
    assert_eq!(client.server.dumping().len(), 2);
    client.server.forget(1);
    assert_eq!(client.server.dumping(), [2]);
}

#[test]
fn a_datapath_that_goes_ends_its_dumps() {
    let (mut client, dp) = with_flows(1000);
    let request = message(FLOW.id, REQUEST | DUMP, 1, &ovs(3, 1, dp, &[]));
    client.server.handle(client.peer, &request, &mut client.backend, &mut |_| {});
    let mut last = None;
    let mut out = |reply: flowlift_ovs::server::Reply<'_>| last = Message::all(reply.bytes).pop();
    client.server.continue_dump(client.peer.port_id, &mut client.backend, &mut out);
    flowlift_ovs::backend::Backend::datapath_del(&mut client.backend, flowlift_ovs::backend::DpIndex(dp))
        .unwrap();
    let state = client.server.continue_dump(client.peer.port_id, &mut client.backend, &mut out);
    assert_eq!((state, last.unwrap().errno()), (DumpState::Done, 19));
    assert_eq!(client.ask(&VPORT, DUMP, 3, dp, &[]).errno(), 19);
}
