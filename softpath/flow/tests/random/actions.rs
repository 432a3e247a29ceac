//! Random action trees that the text form can hold in full.

use flowlift_flow::action::{
    Ct, HashAlg, Nat, NatDirection, NshHeader, TnlHeader, TnlPush, Userspace, VxlanHeader,
};
use flowlift_flow::attrs::attr;
use flowlift_flow::key::tun_flags;
use flowlift_flow::{Action, Header, Key, PortNo};
use proptest::prelude::*;
use std::net::IpAddr;
use zerocopy::IntoBytes;

/// A list of actions, some of them nested.
pub(crate) fn any_list() -> impl Strategy<Value = Vec<Action>> {
    let tree = leaf().prop_recursive(4, 40, 5, |inner| {
        let list = prop::collection::vec(inner, 0..5).prop_map(normal);
        prop_oneof![
            list.clone().prop_map(Action::Clone),
            list.clone().prop_map(|exception| Action::DecTtl { exception }),
            // The text has one decimal of a percentage.
            (0u32..=1000, list.clone()).prop_map(|(permille, actions)| {
                let probability = (f64::from(u32::MAX) * (f64::from(permille) / 1000.0) + 0.5).floor() as u32;
                Action::Sample { probability, actions }
            }),
            (any::<u16>(), list.clone(), list).prop_map(|(pkt_len, greater, less_or_equal)| {
                Action::CheckPktLen { pkt_len, greater, less_or_equal }
            }),
        ]
    });
    prop::collection::vec(tree, 0..6).prop_map(normal)
}

/// A list of nothing but a drop reads back as the empty list.
fn normal(list: Vec<Action>) -> Vec<Action> {
    if matches!(list[..], [Action::Drop(_)]) { Vec::new() } else { list }
}

fn leaf() -> impl Strategy<Value = Action> {
    let port = || any::<u32>().prop_map(PortNo);
    let mpls_type = || prop::sample::select(vec![0x8847u16, 0x8848]);
    prop_oneof![
        3 => port().prop_map(Action::Output),
        2 => userspace().prop_map(Action::Userspace),
        6 => set(),
        1 => (prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), any::<u16>())
            .prop_map(|(tpid, tci)| Action::PushVlan { tpid, tci }),
        1 => prop::sample::select(vec![
            Action::PopVlan, Action::PopEth, Action::CtClear, Action::PopNsh, Action::Drop(0),
        ]),
        1 => any::<u32>().prop_map(Action::Recirc),
        1 => (any::<bool>(), any::<u32>()).prop_map(|(symmetric, basis)| Action::Hash {
            alg: if symmetric { HashAlg::SymL4 } else { HashAlg::L4 },
            basis
        }),
        1 => (any::<u32>(), mpls_type()).prop_map(|(lse, eth_type)| Action::PushMpls { lse, eth_type }),
        1 => (any::<u32>(), mpls_type()).prop_map(|(lse, eth_type)| Action::AddMpls { lse, eth_type, l3: false }),
        1 => any::<u16>().prop_map(|eth_type| Action::PopMpls { eth_type }),
        3 => ct().prop_map(|ct| Action::Ct(Box::new(ct))),
        1 => any::<u32>().prop_map(|max_len| Action::Trunc { max_len }),
        1 => (any::<[u8; 6]>(), any::<[u8; 6]>()).prop_map(|(src, dst)| Action::PushEth { src, dst }),
        1 => nsh().prop_map(|h| Action::PushNsh(Box::new(h))),
        1 => any::<u32>().prop_map(Action::Meter),
        1 => any::<u32>().prop_map(Action::LbOutput),
        1 => port().prop_map(Action::TnlPop),
        1 => (any::<u32>(), stripped(16)).prop_map(|(group, cookie)| Action::Psample { group, cookie }),
        1 => (port(), port(), 0u32..200).prop_map(|(tnl_port, out_port, tnl_type)| {
            let header = format!(
                "size=50,type={tnl_type},eth(dst=02:00:00:00:00:01,src=02:00:00:00:00:02,dl_type=0x0800),\
                 ipv4(src=192.0.2.1,dst=192.0.2.2,proto=17,tos=0,ttl=64,frag=0x4000),\
                 udp(src=0,dst=6081,csum=0x0),geneve(crit,vni=0x7,options({{class=0x102,type=0x80,len=4,0xa}}))"
            );
            let header = TnlHeader::Text(header);
            Action::TnlPush(Box::new(TnlPush { tnl_port, out_port, header }))
        }),
        1 => (port(), port(), vxlan_header()).prop_map(|(tnl_port, out_port, header)| {
            Action::TnlPush(Box::new(TnlPush { tnl_port, out_port, header: TnlHeader::Vxlan(header) }))
        }),
    ]
}

/// All that a VXLAN header can be.
fn vxlan_header() -> impl Strategy<Value = VxlanHeader> {
    prop::collection::vec(any::<u8>(), VxlanHeader::LEN).prop_map(|mut bytes| {
        for zero in [16..20, 24..26, 38..42, 49..50] {
            bytes[zero].fill(0);
        }
        (bytes[12], bytes[13], bytes[14], bytes[23]) = (8, 0, 0x45, 17);
        VxlanHeader::new(&bytes).expect("what is fixed was set")
    })
}

/// Bytes that print without loss: no leading zero.
fn stripped(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=max).prop_map(|mut bytes| {
        if let Some(first) = bytes.first_mut() {
            *first |= 1;
        }
        bytes
    })
}

fn userspace() -> impl Strategy<Value = Userspace> {
    let data = prop_oneof![
        Just(None),
        // 48 bytes might be a cookie, which shows by its fields.
        prop::collection::vec(any::<u8>(), 0..48).prop_map(Some),
        (1u16..=5, any::<[u8; 24]>()).prop_map(|(kind, fields)| Some(cookie(kind, fields))),
    ];
    let port = prop_oneof![Just(None), any::<u32>().prop_map(|n| Some(PortNo(n)))];
    (any::<u32>(), data, port, any::<bool>()).prop_map(|(pid, userdata, tunnel_out_port, actions)| {
        Userspace { pid, userdata, tunnel_out_port, actions }
    })
}

/// A cookie as OVS's parser makes it: no OpenFlow ingress port, no bridge, nothing in unused bytes.
fn cookie(kind: u16, fields: [u8; 24]) -> Vec<u8> {
    let mut out = vec![0; 48];
    out[..2].copy_from_slice(&kind.to_ne_bytes());
    out[4..8].copy_from_slice(&0xffffu32.to_ne_bytes());
    let body = &mut out[24..];
    body.copy_from_slice(&fields);
    match kind {
        1 => {
            // A tag that is not zero is present.
            body[0] |= 0x10;
            body[1] |= 1;
            body[2..4].fill(0);
            body[8..].fill(0);
        }
        2 => {
            let reason = u32::from(fields[0] & 0x7f);
            body.fill(0);
            body[4..8].copy_from_slice(&reason.to_ne_bytes());
        }
        3 => {
            body[2..4].fill(0);
            body[20..24].copy_from_slice(&u32::from(fields[20] % 3).to_ne_bytes());
        }
        4 => body[4..].fill(0),
        _ => {
            (body[0], body[1]) = (fields[0] & 1, fields[1] & 1);
            body[20..].fill(0);
        }
    }
    out
}

fn ct() -> impl Strategy<Value = Ct> {
    let flags = (any::<bool>(), any::<bool>());
    let name = |max| {
        prop::option::of(proptest::string::string_regex(&format!("[a-z_0-9]{{1,{max}}}")).expect("a regex"))
    };
    let mark = prop::option::of((any::<u32>(), any::<u32>()));
    let label = prop::option::of((any::<[u8; 16]>(), any::<[u8; 16]>()));
    let nat = prop::option::of(nat());
    (flags, any::<u16>(), mark, label, name(15), name(31), nat).prop_map(
        |((commit, force), zone, mark, label, helper, timeout, nat)| Ct {
            commit: commit && !force,
            force_commit: force,
            zone,
            mark,
            label,
            helper,
            nat,
            eventmask: None,
            timeout,
        },
    )
}

fn nat() -> impl Strategy<Value = Nat> {
    let address = |v6: bool, a: [u8; 16]| match v6 {
        true => IpAddr::from(a),
        false => IpAddr::from([a[0], a[1], a[2], a[3]]),
    };
    let range = (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(move |(v6, a, b)| {
        let (a, b) = (address(v6, a), address(v6, b));
        (a.min(b), a.max(b))
    });
    let ports = prop::option::of((1u16.., 1u16..).prop_map(|(a, b)| (a.min(b), a.max(b))));
    let direction = prop::option::of(prop::sample::select(vec![NatDirection::Src, NatDirection::Dst]));
    (direction, prop::option::of((range, ports)), any::<bool>(), 0..3).prop_map(
        |(direction, range, persistent, how)| {
            if direction.is_none() {
                return Nat::default();
            }
            Nat {
                direction,
                addr: range.map(|(addr, _)| addr),
                port: range.and_then(|(_, port)| port),
                persistent,
                hash: how == 1,
                random: how == 2,
            }
        },
    )
}

fn nsh() -> impl Strategy<Value = NshHeader> {
    let metadata = prop_oneof![
        any::<[u8; 16]>().prop_map(|context| (1, context.to_vec())),
        (1usize..=62, any::<u8>()).prop_map(|(words, b)| (2, vec![b | 1; words * 4])),
    ];
    (any::<u8>(), any::<u8>(), any::<u8>(), any::<u32>(), metadata).prop_map(
        |(flags, ttl, np, path_hdr, (mdtype, metadata))| NshHeader {
            flags,
            ttl,
            mdtype,
            np,
            path_hdr,
            metadata,
        },
    )
}

/// Set of a whole header, or of the bits of a mask.
fn set() -> impl Strategy<Value = Action> {
    let attrs = prop::sample::select(vec![
        attr::ETHERNET,
        attr::IPV4,
        attr::IPV6,
        attr::TCP,
        attr::UDP,
        attr::SCTP,
        attr::ICMP,
        attr::ICMPV6,
        attr::ARP,
        attr::ND,
        attr::NSH,
        attr::MPLS,
        attr::PRIORITY,
        attr::SKB_MARK,
        attr::TUNNEL,
    ]);
    let bytes = || prop::collection::vec(any::<u8>(), size_of::<Key>());
    (attrs, bytes(), bytes(), any::<bool>()).prop_map(|(attr, value, mask, whole)| {
        let (value, mask) = (header(attr, &value, whole), header(attr, &mask, false));
        let tunnel = matches!(value, Header::Tunnel(_));
        if whole || tunnel {
            return Action::Set(value);
        }
        // Bits outside the mask are not the value's (U8), and a field that is not masked does not show.
        let (attr, mut bits) = value.to_key();
        let mask_bits = mask.to_key().1;
        bits.words_mut().iter_mut().zip(mask_bits.words()).for_each(|(w, m)| *w &= m);
        let value = rebuild(attr, &bits);
        if mask == mask.full_mask() { Action::Set(value) } else { Action::SetMasked { value, mask } }
    })
}

fn rebuild(attr: u8, k: &Key) -> Header {
    match attr {
        attr::MPLS => Header::Mpls(k.mpls[0].get()),
        attr::PRIORITY => Header::SkbPriority(k.skb_priority),
        attr::SKB_MARK => Header::SkbMark(k.skb_mark),
        _ => Header::from_key(attr, k).expect("a header made of fields"),
    }
}

fn header(attr: u8, bytes: &[u8], whole: bool) -> Header {
    let mut k = Key::default();
    k.as_mut_bytes().copy_from_slice(bytes);
    if attr == attr::TUNNEL {
        return tunnel(&k);
    }
    k.ip_frag = if whole { k.ip_frag % 3 } else { 0 };
    k.ipv6_label = (k.ipv6_label.get() & 0xf_ffff).into();
    let mut out = rebuild(attr, &k);
    match &mut out {
        // Protocols are bytes in a key, and the mask of the field is all or nothing in print.
        Header::Arp { op, .. } => *op &= if whole { 0xff } else { 0x7f },
        Header::Nsh { context: Some(words), .. } if !whole => words.iter_mut().for_each(|w| *w |= 1),
        _ => {}
    }
    out
}

fn tunnel(random: &Key) -> Header {
    let mut k = Key::default();
    let shown = tun_flags::KEY | tun_flags::CSUM | tun_flags::DF | tun_flags::OAM;
    k.tun_flags = (random.tun_flags.get() & shown | tun_flags::PRESENT).into();
    if k.tun_flags.get() & tun_flags::KEY != 0 {
        k.tun_id = random.tun_id;
    }
    (k.tun_ipv4_src, k.tun_ipv4_dst, k.tun_tos, k.tun_ttl) =
        (random.tun_ipv4_src, random.tun_ipv4_dst, random.tun_tos, random.tun_ttl);
    (k.tun_tp_src, k.tun_tp_dst, k.tun_ipv6_dst) =
        (random.tun_tp_src, random.tun_tp_dst, random.tun_ipv6_dst);
    if random.tun_gbp_flags & 1 == 1 {
        k.tun_flags = (k.tun_flags.get() | tun_flags::GBP).into();
        (k.tun_gbp_id, k.tun_gbp_flags) = (random.tun_gbp_id, random.tun_gbp_flags);
    }
    Header::Tunnel(Box::new(k))
}
