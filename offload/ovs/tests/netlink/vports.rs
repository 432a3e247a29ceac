//! ovs_vport.

use crate::raw::*;
use flowlift_ovs::backend::{Backend, DpIndex, VportKind};
use flowlift_ovs::uapi::VPORT;

fn add(client: &mut Client, dp: i32, name: &str, kind: u32, more: &[u8]) -> Answer {
    let attrs = [&attr_name(3, name)[..], &attr_u32(2, kind), &attr_u32(5, 77), more].concat();
    client.ask(&VPORT, ECHO, 1, dp, &attrs)
}

fn fixture() -> (Client, i32) {
    let (mut client, dp) = Client::with_datapath();
    client.backend.netdevs = vec!["eth0".into(), "eth1".into()];
    (client, dp)
}

#[test]
fn a_netdev_becomes_a_port_and_goes_again() {
    let (mut client, dp) = fixture();
    assert_eq!(client.ask(&VPORT, 0, 3, 0, &attr_name(3, "eth0")).errno(), 19, "ENODEV before");
    let answer = add(&mut client, dp, "eth0", 1, &[]);
    let reply = answer.only();
    assert_eq!((reply.cmd(), reply.dp(), reply.u32(1), reply.u32(2)), (1, dp, 1, 1));
    assert_eq!((reply.attr(3).unwrap(), reply.u32(5)), (b"eth0\0".to_vec(), 77));
    assert_eq!(reply.attr(6).unwrap().len(), 64, "struct ovs_vport_stats");
    assert_eq!(answer.notified[0].1, *reply, "the group hears of new ports");
    let got = client.ask(&VPORT, 0, 3, 0, &attr_name(3, "eth0"));
    assert_eq!((got.only().cmd(), got.only().u32(1)), (3, 1));
    let deleted = client.ask(&VPORT, ECHO | ACK, 2, dp, &attr_u32(1, 1));
    assert_eq!((deleted.messages[0].cmd(), deleted.notified[0].1.cmd()), (2, 2));
    assert_eq!(client.ask(&VPORT, 0, 3, dp, &attr_u32(1, 1)).errno(), 19, "ENODEV after");
}

#[test]
fn what_cannot_be_a_port_is_refused_as_the_kernel_does() {
    let (mut client, dp) = fixture();
    assert_eq!(add(&mut client, dp, "eth0", 1, &attr_u32(1, 5)).only().u32(1), 5);
    let cases: [(&str, u32, Vec<u8>, i32); 8] = [
        ("eth0", 1, vec![], 17),                 // EEXIST
        ("eth1", 1, attr_u32(1, 5), 16),         // EBUSY: the number
        ("eth1", 1, attr_u32(1, 0xffff), 27),    // EFBIG
        ("eth9", 1, vec![], 19),                 // ENODEV: no such device
        ("gre0", 9, vec![], 97),                 // EAFNOSUPPORT
        ("vx0", 4, vec![], 22),                  // EINVAL: no OPTIONS
        ("vx0", 4, attr(4, &attr(1, &[1])), 22), // EINVAL: half a port
        ("eth1", 1, attr_u32(8, 3), 95),         // EOPNOTSUPP: by interface index
    ];
    for (name, kind, more, errno) in cases {
        let answer = add(&mut client, dp, name, kind, &more);
        assert_eq!(answer.errno(), errno, "{name} {kind} {more:?}: {:?}", answer.only().reason());
    }
    assert_eq!(add(&mut client, dp + 1, "eth1", 1, &[]).errno(), 19, "ENODEV: no such datapath");
    for name in ["", "a/b", "..", "with blank"] {
        assert_eq!(add(&mut client, dp, name, 2, &[]).errno(), 22, "{name:?}");
    }
    assert_eq!(add(&mut client, dp, "sixteen-letters-", 2, &[]).errno(), 22, "IFNAMSIZ");
    assert_eq!(client.ask(&VPORT, 0, 2, dp, &attr_u32(1, 0)).errno(), 22, "the local port stays");
    assert_eq!(client.ask(&VPORT, 0, 3, dp, &[]).errno(), 22, "neither name nor number");
    let no_pids = [attr_name(3, "eth1"), attr_u32(2, 1)].concat();
    assert_eq!(client.ask(&VPORT, 0, 1, dp, &no_pids).only().reason().2, Some(5), "UPCALL_PID is missing");
}

#[test]
fn tunnels_have_a_port_and_extensions() {
    let (mut client, dp) = fixture();
    let options = attr(4, &[attr(1, &4789u16.to_ne_bytes()), attr(2, &attr(1, &[]))].concat());
    let reply = add(&mut client, dp, "vxlan_sys_4789", 4, &options);
    assert_eq!(reply.only().attr(4).unwrap(), options[4..], "options come back as they went in");
    let options = attr(4, &attr(1, &6081u16.to_ne_bytes()));
    let reply = add(&mut client, dp, "genev_sys_6081", 5, &options);
    assert_eq!((reply.only().u32(2), reply.only().attr(4).unwrap()), (5, options[4..].to_vec()));
    assert_eq!(add(&mut client, dp, "gre_sys", 3, &[]).only().attr(4), None);
    let kinds: Vec<VportKind> = client
        .backend
        .vports(DpIndex(dp), flowlift_flow::PortNo(1))
        .unwrap()
        .iter()
        .map(|port| client.backend.vport(DpIndex(dp), *port).unwrap().kind)
        .collect();
    let vxlan = VportKind::Vxlan { dst_port: 4789, gbp: true };
    assert_eq!(kinds, [vxlan, VportKind::Geneve { dst_port: 6081 }, VportKind::Gre]);
}

#[test]
fn port_ids_and_options_change_and_types_do_not() {
    let (mut client, dp) = fixture();
    add(&mut client, dp, "eth0", 1, &[]);
    let pids: Vec<u8> = [5u32, 6].iter().flat_map(|pid| pid.to_ne_bytes()).collect();
    let reply = client.ask(&VPORT, ECHO, 4, dp, &[attr_u32(1, 1), attr(5, &pids)].concat());
    assert_eq!((reply.only().cmd(), reply.only().attr(5).unwrap()), (4, pids));
    let errno = |client: &mut Client, more: &[u8]| {
        client.ask(&VPORT, 0, 4, dp, &[&attr_u32(1, 1)[..], more].concat()).errno()
    };
    assert_eq!(errno(&mut client, &attr_u32(2, 2)), 22, "EINVAL: another type");
    assert_eq!(errno(&mut client, &attr(4, &attr(1, &[0, 1]))), 95, "EOPNOTSUPP: no options");
    assert_eq!(errno(&mut client, &attr(5, &[])), 22, "EINVAL: no port ID at all");
}

#[test]
fn a_dump_has_every_port_of_one_datapath_in_order() {
    let (mut client, dp) = fixture();
    client.backend.netdevs = (0..500).map(|n| format!("p{n}")).collect();
    for n in 0..500 {
        add(&mut client, dp, &format!("p{n}"), 1, &[]);
    }
    let dump = client.ask(&VPORT, DUMP, 3, dp, &[]);
    let ports: Vec<u32> = dump.messages.iter().filter(|m| m.kind == VPORT.id).map(|m| m.u32(1)).collect();
    assert_eq!(ports, (0..=500).collect::<Vec<_>>());
    assert!(dump.datagrams.len() > 1 && dump.datagrams.iter().all(|len| *len <= 16 * 1024));
    let nowhere = client.ask(&VPORT, DUMP, 3, dp + 1, &[]);
    assert_eq!((nowhere.only().kind, nowhere.errno()), (3, 19), "ENODEV at the dump's end, as in the kernel");
}

#[test]
fn a_port_whose_device_is_gone_is_told_to_the_group_as_the_kernel_tells_it() {
    let (mut client, dp) = fixture();
    add(&mut client, dp, "eth0", 1, &[]);
    let mut told = Vec::new();
    let Client { server, backend, .. } = &mut client;
    let port = flowlift_flow::PortNo(1);
    server
        .remove_vport(DpIndex(dp), port, backend, &mut |reply| told.push((reply.to, reply.bytes.to_vec())))
        .unwrap();
    let [(to, bytes)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*to, flowlift_ovs::server::To::Multicast(VPORT.group.unwrap()));
    let message = Message::all(bytes).remove(0);
    assert_eq!((message.cmd(), message.dp(), message.u32(1), message.u32(2)), (2, dp, 1, 1));
    assert_eq!(message.attr(3).unwrap(), b"eth0\0");
    assert_eq!(bytes[8..16], [0; 8], "neither sequence number nor port ID: nobody asked");
    assert_eq!(client.ask(&VPORT, 0, 3, dp, &attr_u32(1, 1)).errno(), 19, "ENODEV after");
    let gone = client.server.remove_vport(DpIndex(dp), port, &mut client.backend, &mut |reply| {
        panic!("nothing is told: {reply:?}");
    });
    assert_eq!(gone, Err(flowlift_ovs::backend::Refusal::NoVport));
}
