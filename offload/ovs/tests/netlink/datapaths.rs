//! ovs_datapath, and what holds for every family.

use crate::raw::*;
use flowlift_ovs::backend::{Backend, DpIndex};
use flowlift_ovs::uapi::{DATAPATH, NLCTRL, VPORT};

fn new_dp(client: &mut Client, flags: u16, name: &str, features: u32) -> Answer {
    let attrs = [attr_name(1, name), attr_u32(2, 0), attr_u32(5, features)].concat();
    client.ask(&DATAPATH, flags, 1, 0, &attrs)
}

#[test]
fn unknown_features_are_refused_and_create_nothing() {
    let mut client = Client::new();
    let answer = new_dp(&mut client, ECHO, "ovs-system", 0x8000_0003);
    assert_eq!(answer.errno(), 95, "EOPNOTSUPP");
    // Headers 24, NAME 4 + 11 padded to 16, UPCALL_PID 8.
    let (text, offset, missing) = answer.only().reason();
    assert_eq!((offset, missing), (Some(48), None), "{text}");
    assert!(text.contains("OVS_DP_ATTR_USER_FEATURES") && text.contains("0x80000000"), "{text}");
    assert!(client.backend.datapaths().is_empty(), "nothing was created");
    assert!(answer.notified.is_empty());
}

#[test]
fn features_of_both_kinds_of_dispatch_are_kept() {
    for features in [0x9, 0x3, 0xd, 0x1] {
        let mut client = Client::new();
        let reply = new_dp(&mut client, ECHO, "ovs-system", features);
        let reply = reply.only();
        assert_eq!((reply.kind, reply.cmd(), reply.u32(5)), (DATAPATH.id, 1, features));
        assert_eq!(reply.attr(1).unwrap(), b"ovs-system\0");
        assert_eq!(reply.attr(3).unwrap().len(), 32, "struct ovs_dp_stats");
        assert_eq!(reply.attr(4).unwrap().len(), 32, "struct ovs_dp_megaflow_stats");
    }
}

#[test]
fn a_second_datapath_of_a_name_exists_and_an_old_user_drops_its_features() {
    let (mut client, dp) = Client::with_datapath();
    let answer = new_dp(&mut client, ECHO | ACK, "ovs-system", 9);
    assert_eq!(answer.errno(), 17, "EEXIST");
    let features = |client: &Client| client.backend.datapath(DpIndex(dp)).unwrap().features.0;
    assert_eq!(features(&client), 9);
    let attrs = [attr_name(1, "ovs-system"), attr_u32(2, 0)].concat();
    let answer = client.send(&message(DATAPATH.id, REQUEST, 1, &ovs(1, 1, 0, &attrs)));
    assert_eq!((answer.errno(), features(&client)), (17, 0), "version 1 knows no features");
}

#[test]
fn r1_several_datapaths_exist_side_by_side() {
    let mut client = Client::new();
    let names = ["one", "two", "three"];
    let indexes: Vec<i32> = names.iter().map(|name| new_dp(&mut client, ECHO, name, 9).only().dp()).collect();
    for (name, index) in names.iter().zip(&indexes) {
        let by_name = client.ask(&DATAPATH, 0, 3, 0, &attr_name(1, name));
        assert_eq!(by_name.only().dp(), *index);
        let by_index = client.ask(&DATAPATH, 0, 3, *index, &[]);
        assert_eq!(by_index.only().attr(1).unwrap(), [name.as_bytes(), &[0]].concat());
    }
    let dump = client.ask(&DATAPATH, DUMP, 3, 0, &[]);
    let found: Vec<i32> = dump.messages.iter().filter(|m| m.kind == DATAPATH.id).map(Message::dp).collect();
    assert_eq!(found, indexes);
    assert_eq!(dump.messages.last().unwrap().kind, 3, "NLMSG_DONE");
    assert!(dump.messages.iter().all(|m| m.flags & 2 != 0), "NLM_F_MULTI");
    // A port of one is none of another.
    client.backend.netdevs.push("eth0".into());
    let attrs = [attr_name(3, "eth0"), attr_u32(2, 1), attr_u32(5, 7)].concat();
    assert_eq!(client.ask(&VPORT, ECHO, 1, indexes[1], &attrs).only().u32(1), 1);
    assert_eq!(client.ask(&VPORT, 0, 3, indexes[0], &attr_u32(1, 1)).errno(), 19, "ENODEV");
    assert_eq!(client.ask(&VPORT, 0, 3, indexes[0], &attr_name(3, "eth0")).errno(), 19, "ENODEV");
    assert_eq!(client.ask(&DATAPATH, ECHO, 2, indexes[0], &[]).only().cmd(), 2);
    assert_eq!(client.ask(&DATAPATH, 0, 3, indexes[0], &[]).errno(), 19, "ENODEV");
    assert_eq!(client.backend.datapaths().len(), 2);
}

#[test]
fn port_ids_by_cpu_are_taken_with_their_feature_and_told_back() {
    let (mut client, dp) = Client::with_datapath();
    let pids: Vec<u8> = [11u32, 22, 33].iter().flat_map(|pid| pid.to_ne_bytes()).collect();
    let attrs = [attr_u32(5, 9), attr(8, &pids)].concat();
    assert_eq!(client.ask(&DATAPATH, ECHO, 4, dp, &attrs).only().attr(8).unwrap(), pids);
    // Without the feature they mean nothing.
    let attrs = [attr_u32(5, 3), attr(8, &pids)].concat();
    assert_eq!(client.ask(&DATAPATH, ECHO, 4, dp, &attrs).only().attr(8), None);
    let odd = client.ask(&DATAPATH, 0, 4, dp, &attr(8, &[1, 2, 3]));
    assert_eq!((odd.errno(), odd.only().reason().1), (22, Some(24)), "EINVAL at the attribute");
}

#[test]
fn the_masks_cache_has_a_power_of_two_of_entries() {
    let (mut client, dp) = Client::with_datapath();
    for (size, errno) in [(3, 12), (4097, 34), (8192, 34)] {
        assert_eq!(client.ask(&DATAPATH, ECHO, 4, dp, &attr_u32(7, size)).errno(), errno, "{size}");
    }
    for size in [0, 1, 4096] {
        assert_eq!(client.ask(&DATAPATH, ECHO, 4, dp, &attr_u32(7, size)).only().u32(7), size);
    }
}

#[test]
fn missing_attributes_are_named() {
    let mut client = Client::new();
    for (attrs, missing) in [(attr_u32(2, 0), 1), (attr_name(1, "ovs-system"), 2)] {
        let answer = client.ask(&DATAPATH, 0, 1, 0, &attrs);
        let (text, offset, number) = answer.only().reason();
        assert_eq!((answer.errno(), offset, number), (22, None, Some(missing)), "{text}");
    }
}

#[test]
fn acks_and_echoes_come_when_asked_for() {
    let mut client = Client::new();
    let quiet = new_dp(&mut client, 0, "a", 9);
    assert!(quiet.messages.is_empty());
    assert_eq!(quiet.notified.len(), 1, "the group hears of it all the same");
    assert!((1..=32).contains(&quiet.notified[0].0), "groups that user space can reach");
    let ack = new_dp(&mut client, ACK, "b", 9);
    assert_eq!((ack.errno(), ack.only().flags, ack.only().body.len()), (0, 0x100, 20));
    let both = new_dp(&mut client, ACK | ECHO, "c", 9);
    assert_eq!(both.messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [DATAPATH.id, 2]);
    assert_eq!(both.notified[0].1, both.messages[0]);
    let failed = new_dp(&mut client, 0, "a", 9);
    assert_eq!(failed.errno(), 17, "a failure is always acked");
}

#[test]
fn one_datagram_may_hold_many_requests_and_each_is_answered() {
    let (mut client, dp) = Client::with_datapath();
    let get = |seq, dp| message(DATAPATH.id, REQUEST, seq, &ovs(3, 2, dp, &[]));
    let marker = flowlift_ovs::marker::marker(*b"cookie77");
    let answer = client.send(&[get(1, dp), get(2, dp + 1), get(3, dp), marker.to_vec()].concat());
    let seen: Vec<(u16, u32)> = answer.messages.iter().map(|m| (m.kind, m.seq)).collect();
    assert_eq!(seen, [(DATAPATH.id, 1), (2, 2), (DATAPATH.id, 3), (flowlift_ovs::marker::TYPE, 0)]);
    assert_eq!(answer.datagrams.len(), 4, "a datagram for each answer, and the marker last");
}

#[test]
fn families_are_found_by_name_and_by_id_with_groups_and_policies() {
    let mut client = Client::new();
    let ask = |client: &mut Client, flags, cmd, attrs: &[u8]| {
        client.send(&message(NLCTRL.id, REQUEST | flags, 9, &[&[cmd, 1, 0, 0][..], attrs].concat()))
    };
    for name in ["ovs_datapath", "ovs_vport", "ovs_flow", "ovs_packet", "ovs_meter", "ovs_ct_limit", "nlctrl"]
    {
        let by_name = ask(&mut client, 0, 3, &attr_name(2, name));
        let all = attrs(&by_name.only().body[4..]);
        let find = |kind: u16| all.iter().find(|(k, _)| *k == kind).map(|(_, payload)| payload.clone());
        assert_eq!(find(2).unwrap(), [name.as_bytes(), &[0]].concat());
        let by_id = ask(&mut client, 0, 3, &attr(1, &find(1).unwrap()));
        assert_eq!(by_id.only().body, by_name.only().body);
        let no_groups = ["ovs_packet", "nlctrl"].contains(&name);
        assert_eq!(find(7).is_none(), no_groups, "{name}");
        if let Some(groups) = find(7) {
            let group = attrs(&attrs(&groups)[0].1);
            assert_eq!(group[1].1, [name.as_bytes(), &[0]].concat());
            assert!((1..=32).contains(&u32::from_ne_bytes(group[0].1[..].try_into().unwrap())));
        }
        let policy = ask(&mut client, DUMP, 10, &attr_name(2, name));
        assert!(policy.messages.len() > 2, "commands, attributes, end: {policy:?}");
        assert_eq!(policy.messages.last().unwrap().errno(), 0);
    }
    assert_eq!(ask(&mut client, 0, 3, &attr_name(2, "nl80211")).errno(), 2, "ENOENT");
    assert_eq!(ask(&mut client, 0, 3, &[]).errno(), 22, "EINVAL");
    assert_eq!(ask(&mut client, DUMP, 10, &attr_name(2, "nl80211")).errno(), 2, "ENOENT");
    let dump = ask(&mut client, DUMP, 3, &[]);
    assert_eq!(dump.messages.len(), 8, "seven families and the end");
}
