//! Tunnel devices by NETLINK_ROUTE, as `dpif_netlink_rtnl_tunnel_create` of Open vSwitch asks for them, and as a vport uses them.

use crate::raw::*;
use flowlift_ovs::backend::{Backend, TunnelDevice, TunnelKind};
use flowlift_ovs::server::Server;
use flowlift_ovs::uapi::VPORT;

const NEW: u16 = 16;
const DEL: u16 = 17;
const GET: u16 = 18;
const SET: u16 = 19;
const EXCL: u16 = 0x200;

fn client() -> Client {
    let mut client = Client::new();
    client.server = Server::of_devices(Vec::new());
    client
}

/// `struct ifinfomsg` with IFF_UP, and attributes.
fn link(client: &mut Client, kind: u16, flags: u16, attrs: &[u8]) -> Answer {
    let body = [&[0; 8][..], &1u32.to_ne_bytes(), &1u32.to_ne_bytes(), attrs].concat();
    client.send(&message(kind, REQUEST | flags, 7, &body))
}

/// IFLA_IFNAME, IFLA_MTU of 65,000, IFLA_LINKINFO.
fn device(name: &str, kind: &str, data: &[u8]) -> Vec<u8> {
    let info = [attr_name(1, kind), attr(2 | 0x8000, data)].concat();
    [attr_name(3, name), attr_u32(4, 65_000), attr(18 | 0x8000, &info)].concat()
}

fn vxlan(port: u16) -> Vec<u8> {
    // IFLA_VXLAN_LEARNING, COLLECT_METADATA, UDP_ZERO_CSUM6_RX, GBP, PORT.
    let parts = [attr(7, &[0]), attr(25, &[1]), attr(20, &[1]), attr(23, &[]), attr(15, &port.to_be_bytes())];
    parts.concat()
}

/// IFLA_INFO_KIND and IFLA_INFO_DATA of what GETLINK tells.
fn shown(answer: &Answer) -> (String, Vec<(u16, Vec<u8>)>) {
    let found = attrs(&answer.only().body[16..]);
    let of = |all: &[(u16, Vec<u8>)], kind: u16| all.iter().find(|a| a.0 == kind).unwrap().1.clone();
    let info = attrs(&of(&found, 18));
    assert_eq!(of(&found, 4), 65_000u32.to_ne_bytes());
    (String::from_utf8(of(&info, 1)).unwrap(), attrs(&of(&info, 2)))
}

#[test]
fn a_tunnel_device_is_made_looked_at_used_and_deleted() {
    let mut client = client();
    let name = "vxlan_sys_4789";
    assert_eq!(link(&mut client, GET, 0, &attr_name(3, name)).errno(), 19, "ENODEV before");
    let new = device(name, "vxlan", &vxlan(4789));
    assert_eq!(link(&mut client, NEW, ACK | CREATE | EXCL, &new).errno(), 0);
    assert_eq!(link(&mut client, NEW, ACK | CREATE | EXCL, &new).errno(), 17, "EEXIST");
    let kind = TunnelKind::Vxlan { dst_port: 4789, gbp: true };
    let made = TunnelDevice { name: name.into(), kind, mtu: 65_000 };
    assert_eq!(client.backend.tunnel_device(name), Some(made));

    let got = link(&mut client, GET, 0, &attr_name(3, name));
    assert_eq!((got.only().kind, got.only().seq, got.only().port), (NEW, 7, client.peer.port_id));
    let (kind, mut data) = shown(&got);
    data.sort();
    assert_eq!(kind, "vxlan\0");
    let zero_csum = (20, vec![1]);
    assert_eq!(
        data,
        [(7, vec![0]), (15, vec![0x12, 0xb5]), zero_csum, (23, vec![]), (25, vec![1])],
        "what Open vSwitch verifies"
    );

    client.server = Server::default();
    let attrs = [attr_name(1, "ovs-system"), attr_u32(2, 0)].concat();
    let dp = client.ask(&flowlift_ovs::uapi::DATAPATH, ECHO, 1, 0, &attrs).only().dp();
    let attrs = [attr_name(3, name), attr_u32(2, 1), attr_u32(5, 77)].concat();
    assert_eq!(client.ask(&VPORT, ECHO, 1, dp, &attrs).only().u32(2), 1, "a vport of type netdev");

    client.server = Server::of_devices(Vec::new());
    assert_eq!(link(&mut client, SET, ACK, &[attr_name(3, name), attr_u32(4, 1450)].concat()).errno(), 0);
    assert_eq!(client.backend.tunnel_device(name).unwrap().mtu, 1450);
    assert_eq!(link(&mut client, DEL, ACK, &attr_name(3, name)).errno(), 0);
    assert_eq!(link(&mut client, DEL, ACK, &attr_name(3, name)).errno(), 19, "ENODEV after");
    assert!(client.backend.vport_named(name).is_none(), "a vport goes with its device");
}

#[test]
fn every_kind_of_device_is_shown_as_it_was_made() {
    // IFLA_GRE_COLLECT_METADATA; IFLA_GENEVE_COLLECT_METADATA, UDP_ZERO_CSUM6_RX, PORT.
    let gre = attr(18, &[]);
    let geneve = [attr(6, &[]), attr(10, &[1]), attr(5, &6081u16.to_be_bytes())].concat();
    // As VXLAN's, with GPE in place of GBP.
    let gpe =
        [attr(7, &[0]), attr(25, &[1]), attr(20, &[1]), attr(27, &[]), attr(15, &4790u16.to_be_bytes())];
    let gpe = gpe.concat();
    let cases = [
        ("vxlan_sys_4790", "vxlan", &gpe, TunnelKind::VxlanGpe { dst_port: 4790 }),
        ("gre_sys_l3", "gre", &gre, TunnelKind::Gre),
        ("genev_sys_6081", "geneve", &geneve, TunnelKind::Geneve { dst_port: 6081 }),
        ("gre_sys", "gretap", &gre, TunnelKind::Gretap),
        ("ip6gre_sys", "ip6gretap", &gre, TunnelKind::Ip6gretap),
        ("erspan_sys", "erspan", &gre, TunnelKind::Erspan),
        ("ip6erspan_sys", "ip6erspan", &gre, TunnelKind::Ip6erspan),
    ];
    let mut client = client();
    for (name, kind, data, made) in cases {
        assert_eq!(
            link(&mut client, NEW, ACK | CREATE | EXCL, &device(name, kind, data)).errno(),
            0,
            "{name}"
        );
        assert_eq!(client.backend.tunnel_device(name).unwrap().kind, made);
        let got = link(&mut client, GET, 0, &attr_name(3, name));
        // ARPHRD_ETHER or ARPHRD_NONE.
        let bare = matches!(made, TunnelKind::VxlanGpe { .. } | TunnelKind::Gre);
        let link_type = if bare { 0xfffe_u16 } else { 1 };
        assert_eq!(got.only().body[2..4], link_type.to_ne_bytes(), "{name}");
        let (shown_kind, mut shown) = shown(&got);
        let mut wanted = attrs(data);
        shown.sort();
        wanted.sort();
        assert_eq!((shown_kind.trim_end_matches('\0'), shown), (kind, wanted), "{name}");
    }
}

#[test]
fn devices_that_are_no_tunnels_of_open_vswitch_are_refused() {
    let mut client = client();
    let gre = attr(18, &[]);
    let learning = [attr(25, &[1]), attr(15, &4789u16.to_be_bytes()), attr(7, &[1])].concat();
    let of_its_own = [attr(15, &4789u16.to_be_bytes()), attr(1, &[1, 0, 0, 0])].concat();
    // VXLAN-GPE with a group policy, and a port of 0.
    let gpe = [vxlan(4790), attr(27, &[])].concat();
    let cases: [(&str, &str, &[u8], i32); 9] = [
        ("eth0", "vxlan", &vxlan(4789), 95),
        ("vxlan_system", "vxlan", &vxlan(4789), 95),
        ("vxlan_sys_4789", "vxlan", &learning, 95),
        ("vxlan_sys_4789", "vxlan", &of_its_own, 95),
        ("vxlan_sys_4790", "vxlan", &gpe, 22),
        ("vxlan_sys_0", "vxlan", &vxlan(0), 22),
        ("ip6gre_sys", "ip6gre", &gre, 95),
        ("gre_sys", "gretap", &[], 95),
        ("gre_sys", "", &gre, 22),
    ];
    for (name, kind, data, errno) in cases {
        let answer = link(&mut client, NEW, ACK | CREATE | EXCL, &device(name, kind, data));
        assert_eq!(answer.errno(), errno, "{name} {kind} {data:?}: {:?}", answer.only().reason());
        assert_eq!(client.backend.tunnel_device(name), None);
    }
    // Cut off anywhere, it is an error and nothing else.
    let whole = device("gre_sys", "gretap", &gre);
    for len in 0..whole.len() - 4 {
        assert_ne!(link(&mut client, NEW, ACK | CREATE | EXCL, &whole[..len]).errno(), 0, "{len} bytes");
    }
    assert_eq!(link(&mut client, GET, DUMP, &attr_name(3, "gre_sys")).errno(), 95, "a dump is the kernel's");
    client.peer.uid = 1000;
    assert_eq!(link(&mut client, NEW, ACK | CREATE, &whole).errno(), 1, "EPERM");
}
