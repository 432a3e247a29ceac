//! What Debian's Open vSwitch sent (fixtures/netlink/capture), datagram by datagram.

use crate::raw::*;
use flowlift_ovs::action::{decode_actions, encode_actions};
use flowlift_ovs::key::{Form, decode_match, decode_metadata};
use flowlift_ovs::uapi::{FAMILIES, FLOW, METER, NLCTRL, PACKET};

/// The datagrams, in order.
fn datagrams() -> Vec<Vec<u8>> {
    let text = include_str!("../../../../fixtures/netlink/ovs-3.1.0.hex");
    let lines: Vec<Vec<u8>> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            (0..line.len() / 2).map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).unwrap()).collect()
        })
        .collect();
    assert!(lines.len() > 80, "the fixture has {} datagrams", lines.len());
    lines
}

#[test]
fn every_message_of_open_vswitch_is_understood() {
    let (mut actions_seen, mut keys_seen) = (0, 0);
    for m in datagrams().iter().flat_map(|d| Message::all(d)) {
        let family = FAMILIES.iter().find(|f| f.id == m.kind).unwrap_or_else(|| panic!("{m:?}"));
        if family.id == NLCTRL.id {
            continue;
        }
        for (kind, payload) in m.attrs() {
            assert!(family.attrs.iter().any(|a| a.0 == kind), "{} attribute {kind} {payload:?}", family.name);
        }
        let actions = match family.id {
            id if id == FLOW.id => m.attr(2),
            id if id == PACKET.id => m.attr(3),
            _ => None,
        };
        if let Some(bytes) = actions {
            let actions = match decode_actions(&bytes) {
                Ok(actions) => actions,
                // A probe of what only OVS's user-space datapath has.
                Err(e) => {
                    assert!(m.attr(8).is_some(), "{e}: {bytes:02x?}");
                    continue;
                }
            };
            let mut again = Vec::new();
            encode_actions(&actions, &mut again).unwrap();
            // OVS may order what is within an action differently.
            assert_eq!(again.len(), bytes.len(), "as long as OVS wrote them: {actions:?}");
            assert_eq!(decode_actions(&again).as_ref(), Ok(&actions));
            actions_seen += 1;
        }
        if family.id == PACKET.id {
            decode_metadata(&m.attr(2).unwrap(), Form::Datapath).unwrap();
        } else if family.id == FLOW.id && m.cmd() == 1 {
            let (key, mask) = (m.attr(1).unwrap(), m.attr(7));
            if let Err(e) = decode_match(&key, mask.as_deref(), Form::Datapath) {
                // Probes of MPLS and VLAN depth go on until one is refused.
                assert!(m.attr(8).is_some(), "{e}: {key:02x?} {mask:02x?}");
            } else {
                keys_seen += 1;
            }
        }
    }
    assert!(actions_seen > 15 && keys_seen > 10, "{actions_seen} lists of actions, {keys_seen} matches");
}

#[test]
fn probes_are_answered_truthfully_and_with_einval_alone() {
    let (mut client, dp) = Client::with_datapath();
    let (mut yes, mut no) = (0, 0);
    for mut datagram in datagrams() {
        let m = Message::all(&datagram).remove(0);
        if ![FLOW.id, PACKET.id].contains(&m.kind) || m.attr(8).is_none() {
            continue;
        }
        datagram[20..24].copy_from_slice(&dp.to_ne_bytes());
        let answer = client.send(&datagram);
        let failed = answer.messages.iter().filter(|m| m.kind == 2).map(Message::errno).max().unwrap_or(0);
        // ENOENT is the answer to deleting what a failed probe did not make.
        assert!([0, 22, 2].contains(&failed), "{failed}: {m:?}");
        if failed == 0 { yes += 1 } else { no += 1 }
    }
    assert!(yes > 10 && no > 5, "{yes} supported, {no} not");
    assert_eq!(client.server.counters().failed, 0, "no probe counts as an error (U6)");
}

#[test]
fn a_whole_session_replays_and_leaves_nothing_behind() {
    let mut client = Client::new();
    client.backend.netdevs = vec!["v1".into(), "v2".into()];
    for datagram in datagrams() {
        client.send(&datagram);
    }
    let counters = client.server.counters();
    assert_eq!((counters.malformed, counters.unexpected, counters.refused_users), (0, 0, 0));
    assert!(client.backend.executed.len() > 2, "probes execute packets");
    let meters = datagrams().iter().filter(|d| Message::all(d)[0].kind == METER.id).count();
    assert!(meters >= 5, "{meters} requests about meters");
}
