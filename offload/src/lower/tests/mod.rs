mod front_ends;

use super::*;
use crate::raise;
use crate::recirc::{RecircGraph, hop};
use crate::refusal::{ActionCause, RecircCause};
use crate::testing::{TestCodec, caps, flow, pipeline, ports};
use flowlift_driver::nic::{CounterCaps, NicAction, ParserCaps};
use flowlift_flow::key::{KEY_WORDS, ip_proto};
use flowlift_flow::{Action, Header, Key};
use proptest::prelude::*;
use std::collections::BTreeMap;

const IPV4: &str =
    "recirc_id(0),in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),";

/// Lowers with the recirculations that `others` add.
fn lower_among(f: &Flow, others: &[&Flow]) -> Result<Plan, Refusal> {
    let p = pipeline();
    let mut graph = RecircGraph::new(p.last_stage());
    others.iter().copied().chain([f]).filter_map(hop).for_each(|h| graph.add(h));
    graph.update();
    let plan = lower(&p, &graph, f, Excluded::default())?;
    raise::check(&p, &TestCodec, f, &plan, &mut Vec::new())?;
    Ok(plan)
}

fn lowered(matching: &str, actions: &str) -> Result<Plan, Refusal> {
    lower_among(&flow(matching, actions), &[])
}

/// Fields that an entry matches, with value and mask.
fn matched(plan: &Plan, entry: &Entry) -> BTreeMap<String, (u128, u128)> {
    let p = pipeline();
    let fields = p.table(plan.table).unwrap().fields.iter();
    let read =
        |f| (crate::pipeline::read(&entry.key, f).unwrap(), crate::pipeline::read(&entry.mask, f).unwrap());
    fields.map(|f| (format!("{:?}", f.field), read(f))).filter(|(_, (_, mask))| *mask != 0).collect()
}

#[track_caller]
fn refused(matching: &str, actions: &str) -> String {
    match lowered(matching, actions) {
        Ok(plan) => panic!("{matching} actions:{actions} was lowered to {plan:?}"),
        Err(r) => {
            assert!(!matches!(r.cause, Cause::LoweringBug(_)), "{r}");
            r.to_string()
        }
    }
}

#[test]
fn a_five_tuple_flow_becomes_an_entry_of_the_hash_table() {
    let text = format!(
        "{IPV4}ipv4(src=10.0.0.1,dst=10.0.0.0/255.255.255.0,proto=6,tos=0/0,ttl=64/0,frag=no),tcp(src=1000,dst=80)"
    );
    let plan = lowered(
        &text,
        "set(eth(src=02:00:00:00:00:09,dst=02:00:00:00:00:02)),set(ipv4(ttl=63)),push_vlan(vid=7,pcp=1),2,3",
    )
    .unwrap();
    assert_eq!((plan.table, plan.stage, plan.entries.len()), (TableId(0), Stage(0), 1));
    let fields = matched(&plan, &plan.entries[0]);
    let want = [
        ("InPort", (1, 0xffff)),
        ("EthSrc", (0x0200_0000_0001, 0xffff_ffff_ffff)),
        ("EthDst", (0x0200_0000_0002, 0xffff_ffff_ffff)),
        ("EthType", (0x0800, 0xffff)),
        ("Vlan0Tci", (0, 0xffff)),
        ("IpProto", (6, 0xff)),
        ("Ipv4Src", (0x0a00_0001, 0xffff_ffff)),
        ("Ipv4Dst", (0x0a00_0000, 0xffff_ff00)),
        ("L4Src", (1000, 0xffff)),
        ("L4Dst", (80, 0xffff)),
    ];
    assert_eq!(fields, want.into_iter().map(|(n, v)| (n.to_string(), v)).collect());
    let full = |v: u128, bits: u32| (v.to_be_bytes(), (u128::MAX >> (128 - bits)).to_be_bytes());
    let (src, mac) = full(0x0200_0000_0009, 48);
    let (ttl, byte) = full(63, 8);
    assert_eq!(
        plan.entries[0].actions[..],
        [
            // The destination is what it was: nothing to set.
            NicAction::SetField { field: Field::EthSrc, value: src, mask: mac },
            NicAction::SetField { field: Field::IpTtl, value: ttl, mask: byte },
            NicAction::PushVlan { tpid: 0x8100, tci: 0x2007 },
            NicAction::Output(NicPort(2)),
            NicAction::Output(NicPort(3)),
        ]
    );
}

#[test]
fn what_the_hash_table_does_not_take_goes_to_the_tcam() {
    let odd = format!("{IPV4}ipv4(src=10.0.0.1/255.0.0.255,dst=0.0.0.0/0,proto=0/0,tos=0/0,ttl=0/0,frag=no)");
    assert_eq!(lowered(&odd, "2").unwrap().table, TableId(1), "not a prefix");
    let arp = "recirc_id(0),in_port(2),eth(),eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)";
    let plan = lowered(arp, "1").unwrap();
    assert_eq!(plan.table, TableId(1));
    assert_eq!(matched(&plan, &plan.entries[0])["ArpOp"], (1, 0xff));
}

#[test]
fn an_empty_list_and_a_drop_are_drops_and_changes_that_no_output_sees_vanish() {
    for actions in ["drop", "set(eth(src=02:00:00:00:00:09)),pop_vlan", "push_vlan(vid=1,pcp=0)"] {
        assert!(
            lowered(&format!("{IPV4}ipv4(frag=no)"), actions).unwrap().entries[0].actions.is_empty(),
            "{actions}"
        );
    }
}

#[test]
fn refusals_name_the_field_the_table_and_what_lifts_them() {
    let v4 = |rest: &str| format!("{IPV4}{rest}");
    let cases = [
        (v4("ipv4(frag=first)"), "2", "field ip.frag is not seen by the NIC's parser"),
        (v4("ipv4(frag=no)").replace("in_port(1)", "in_port(9)"), "2", "asks for port 9, which is not on the NIC"),
        (format!("skb_mark(0x5),{}", v4("ipv4(frag=no)")), "2", "field skb_mark asks for a value that no packet from the NIC has"),
        (format!("ct_state(+est),{}", v4("ipv4(frag=no)")), "2", "field ct_state asks for a value"),
        (format!("{IPV4}ipv4(frag=no)").replace("0x0800),ipv4(frag=no)", "0x8847),mpls(label=1,tc=0,ttl=64,bos=1)"), "2", "field eth_type asks for type 0x8847, which the NIC's parser does not take"),
        (v4("ipv4(proto=6,frag=no),tcp(src=1/1)").replace("in_port(1)", "in_port(0)"), "2", "port 0, which is not on the NIC"),
        (v4("ipv4(frag=no)"), "9", "action output (number 1) goes to port 9, which is not on the NIC; making port 9"),
        (v4("ipv4(frag=no)"), "2,userspace(pid=0)", "action userspace (number 2) is for software only"),
        (v4("ipv4(frag=no)"), "ct(commit),2", "action ct (number 1) is for software only"),
        (v4("ipv4(proto=6,frag=no)"), "meter(1),2", "action meter (number 1) is not an action in table 1 (tcam, stage 0); a profile whose stage 0 has meter"),
        (v4("ipv4(frag=no)"), "recirc(0x7),2", "action recirc (number 1) is followed by other actions"),
        (v4("ipv4(frag=no)"), "set(skb_mark(0x1)),recirc(0x7)", "after a change of skb_mark, which would be lost"),
        (v4("ipv4(frag=no)"), "1,2,3,4,1,2,3,4,1", "9 actions are needed, 8 are the limit in table 1"),
        (v4("ipv4(frag=no)"), "trunc(100),push_vlan(vid=1,pcp=0),2", "action trunc (number 1) is not followed by an output"),
        ("recirc_id(0),in_port(1),eth(),eth_type(0x86dd),ipv6(proto=44,frag=no)".into(), "2", "field ipv6.proto is not seen"),
        ("recirc_id(0),in_port(1),eth(),eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=135,code=0),nd(target=fe80::1)".into(), "2", "field icmpv6.type is not seen"),
    ];
    for (matching, actions, want) in cases {
        let text = refused(&matching, actions);
        assert!(text.contains(want), "{matching} actions:{actions}\n  gave {text}\n  not  {want}");
        assert!(text.contains("; "), "{text} does not say what would lift it");
    }
}

#[test]
fn a_field_that_no_table_has_is_refused_with_the_field_and_the_profile() {
    let mut c = caps(8, 8);
    c.tables.truncate(1);
    let p = Pipeline::new(&c, &ports());
    let f = flow("recirc_id(0),in_port(1),eth(),eth_type(0x86dd),ipv6(src=fe80::1,frag=no)", "2");
    let refusal = lower(&p, &RecircGraph::new(Stage(0)), &f, Excluded::default()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "field ipv6.src is not a key in table 0 (hash, stage 0); a profile whose stage 0 matches ipv6_src would lift it"
    );
}

#[test]
fn vlan_tags_are_matched_and_popped_only_where_they_are_for_certain() {
    let tagged = "recirc_id(0),in_port(1),eth(),eth_type(0x8100),vlan(vid=10,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))";
    let plan = lowered(tagged, "pop_vlan,2").unwrap();
    assert_eq!(matched(&plan, &plan.entries[0])["Vlan0Tci"], (0x100a, 0xffff));
    assert_eq!(plan.entries[0].actions[..], [NicAction::PopVlan, NicAction::Output(NicPort(2))]);
    let untagged = lowered(&format!("{IPV4}ipv4(frag=no)"), "pop_vlan,2").unwrap();
    assert_eq!(untagged.entries[0].actions[..], [NicAction::Output(NicPort(2))], "nothing to pop");

    let mut unknown = flow(&format!("{IPV4}ipv4(frag=no)"), "pop_vlan,2");
    unknown.matching.mask.0.vlan = Default::default();
    let refusal = lower_among(&unknown, &[]).unwrap_err();
    assert!(matches!(refusal.cause, Cause::Action { why: ActionCause::Needs("vlan"), .. }), "{refusal}");
    // An inner tag is known to be absent, the outer one is not known: it may be there, so a pop is not nothing.
    unknown.matching.mask.0.vlan[1].tci = 0xffff.into();
    let refusal = lower_among(&unknown, &[]).unwrap_err();
    assert!(matches!(refusal.cause, Cause::Action { why: ActionCause::Needs("vlan"), .. }), "{refusal}");
}

#[test]
fn a_ttl_decrement_comes_first_since_an_expired_packet_goes_to_software_whole() {
    let mut f = flow(&format!("{IPV4}ipv4(frag=no)"), "set(eth(src=02:00:00:00:00:09)),2");
    let dec = Action::DecTtl { exception: vec![] };
    f.actions.insert(1, dec.clone());
    let plan = lower_among(&f, &[]).unwrap();
    assert_eq!(plan.entries[0].actions[0], NicAction::DecTtl);
    f.actions.push(dec.clone());
    f.actions.push(Action::Output(flowlift_flow::PortNo(3)));
    let refusal = lower_among(&f, &[]).unwrap_err();
    assert!(matches!(refusal.cause, Cause::Action { why: ActionCause::NotFirst, .. }), "{refusal}");
    let mut f = flow("recirc_id(0),in_port(1),eth(),eth_type(0x1234)", "2");
    f.actions.insert(0, dec);
    assert!(lower_among(&f, &[]).unwrap_err().to_string().contains("needs an exact eth_type"));
}

#[test]
fn u8_protocol_and_fragment_kind_cannot_be_set() {
    let mut f = flow(&format!("{IPV4}ipv4(proto=6,frag=no)"), "2");
    let header = |proto, frag| {
        Action::Set(Header::Ipv4 {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            proto,
            tos: 0,
            ttl: 64,
            frag,
        })
    };
    f.actions.insert(0, header(6, 0));
    assert!(lower_among(&f, &[]).is_ok(), "repeating them is allowed");
    f.actions[0] = header(17, 0);
    assert!(lower_among(&f, &[]).unwrap_err().to_string().contains("ip.proto, which cannot be set"));
    f.actions[0] = header(6, 1);
    assert!(lower_among(&f, &[]).unwrap_err().to_string().contains("ip.frag, which cannot be set"));
    f.actions[0] = Action::Set(Header::Udp { src: 1, dst: 2 });
    assert!(lower_among(&f, &[]).unwrap_err().to_string().contains("needs an exact ip.proto"));
}

#[test]
fn clones_unfold_where_that_is_exact() {
    let base = format!("{IPV4}ipv4(frag=no)");
    let outputs = |actions: &str| lowered(&base, actions).map(|p| p.entries[0].actions.len());
    assert_eq!(outputs("clone(2,3),4"), Ok(3));
    assert_eq!(outputs("2,clone(push_vlan(vid=1,pcp=0),3)"), Ok(3));
    assert!(refused(&base, "clone(push_vlan(vid=1,pcp=0),3),4").contains("followed by other actions"));
    // A cut before a clone reaches into it and beyond.
    assert!(refused(&base, "trunc(100),clone(3),4").contains("not followed by an output"));
}

#[test]
fn a_recirculation_is_metadata_and_a_later_stage() {
    let parent = flow(&format!("{IPV4}ipv4(frag=no)"), "push_vlan(vid=5,pcp=0),recirc(0x2a)");
    let plan = lower_among(&parent, &[]).unwrap();
    assert_eq!(plan.goto, Some((0x2a, Stage(1))));
    assert_eq!(plan.entries[0].actions[1..], [NicAction::SetMetadata(0x2a), NicAction::Goto(Stage(1))]);
    let child = flow(
        "recirc_id(0x2a),in_port(1),eth(),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))",
        "2",
    );
    let plan = lower_among(&child, &[&parent]).unwrap();
    assert_eq!((plan.stage, plan.table), (Stage(1), TableId(2)));
    assert_eq!(matched(&plan, &plan.entries[0])["Metadata"], (0x2a, 0xffff_ffff));
    let refusal = lower_among(&child, &[]).unwrap_err();
    assert_eq!(refusal.cause, Cause::Recirc { id: 0x2a, why: RecircCause::NoParent });
}

#[test]
fn a_flow_of_any_port_takes_an_entry_per_port_where_the_nic_has_others() {
    let mut f = flow("recirc_id(0),in_port(1),eth(),eth_type(0x1234)", "2");
    f.matching.mask.0.in_port = 0;
    assert_eq!(lower_among(&f, &[]).unwrap().entries.len(), 1, "every port of the NIC is the datapath's");

    let three = Pipeline::new(&caps(8, 8), &ports().iter().filter(|(p, _)| p.0 != 4).collect());
    let graph = RecircGraph::new(Stage(0));
    let plan = lower(&three, &graph, &f, Excluded::default()).unwrap();
    let in_ports: Vec<_> = plan.entries.iter().map(|e| matched(&plan, e)["InPort"].0).collect();
    assert_eq!(in_ports, [1, 2, 3], "packets of port 4 are none of the datapath's");
    raise::check(&three, &TestCodec, &f, &plan, &mut Vec::new()).unwrap();

    f.matching.mask.0.in_port = 2;
    f.matching.key.in_port = 2;
    let plan = lower(&three, &graph, &f, Excluded::default()).unwrap();
    let in_ports: Vec<_> = plan.entries.iter().map(|e| matched(&plan, e)["InPort"].0).collect();
    assert_eq!(in_ports, [2, 3]);
}

#[test]
fn r16_every_bit_of_an_exact_match_is_matched_or_a_constant() {
    for text in [
        format!(
            "{IPV4}ipv4(src=10.0.0.1,dst=10.0.0.2,proto=6,tos=0,ttl=64,frag=no),tcp(src=1,dst=2),tcp_flags(0x10)"
        ),
        format!("{IPV4}ipv4(src=10.0.0.1,dst=10.0.0.2,proto=1,tos=0,ttl=64,frag=no),icmp(type=8,code=0)"),
    ] {
        let mut f = flow(&text, "2");
        f.matching.mask = flowlift_flow::Mask::exact();
        f.matching.key = {
            let mut k = f.matching.key.clone();
            k.vlan = Default::default();
            k
        };
        let plan = lower_among(&f, &[]).unwrap_or_else(|r| panic!("{text}: {r}"));
        assert!(matched(&plan, &plan.entries[0]).len() >= 12, "{text}");
    }
}

/// What a NIC's parser would say of a packet with this key: the third reading, from nic.rs's documentation alone.
fn field_of_packet(key: &Key, field: Field) -> u128 {
    let mac = |m: &[u8; 6]| m.iter().fold(0, |v, b| v << 8 | u128::from(*b));
    let (ty, proto) = (key.eth_type.get(), key.ip_proto);
    let (v4, v6, arp) = (ty == 0x0800, ty == 0x86dd, ty == 0x0806);
    let ports = (v4 || v6) && matches!(proto, 6 | 17 | 132) || v4 && proto == 1 || v6 && proto == 58;
    let when = |there: bool, v: u128| if there { v } else { 0 };
    match field {
        Field::InPort => key.in_port.into(),
        Field::Metadata => key.recirc_id.into(),
        Field::EthDst => mac(&key.eth_dst),
        Field::EthSrc => mac(&key.eth_src),
        Field::EthType => ty.into(),
        Field::Vlan0Tpid => key.vlan[0].tpid.get().into(),
        Field::Vlan0Tci => key.vlan[0].tci.get().into(),
        Field::Vlan1Tpid => key.vlan[1].tpid.get().into(),
        Field::Vlan1Tci => key.vlan[1].tci.get().into(),
        Field::IpProto => when(v4 || v6, proto.into()),
        Field::IpTos => when(v4 || v6, key.ip_tos.into()),
        Field::IpTtl => when(v4 || v6, key.ip_ttl.into()),
        Field::Ipv4Src => when(v4, key.ipv4_src.get().into()),
        Field::Ipv4Dst => when(v4, key.ipv4_dst.get().into()),
        Field::Ipv6Src => when(v6, u128::from_be_bytes(key.ipv6_src)),
        Field::Ipv6Dst => when(v6, u128::from_be_bytes(key.ipv6_dst)),
        Field::Ipv6Label => when(v6, key.ipv6_label.get().into()),
        Field::L4Src => when(ports, key.tp_src.get().into()),
        Field::L4Dst => when(ports, key.tp_dst.get().into()),
        Field::TcpFlags => when((v4 || v6) && proto == 6, key.tcp_flags.get().into()),
        Field::ArpOp => when(arp, proto.into()),
        Field::ArpSpa => when(arp, key.ipv4_src.get().into()),
        Field::ArpTpa => when(arp, key.ipv4_dst.get().into()),
        Field::ArpSha => when(arp, mac(&key.arp_sha)),
        Field::ArpTha => when(arp, mac(&key.arp_tha)),
        _ => 0,
    }
}

fn hits(p: &Pipeline, plan: &Plan, key: &Key) -> bool {
    let table = p.table(plan.table).unwrap();
    plan.entries.iter().any(|e| {
        table.fields.iter().all(|f| {
            let (want, mask) =
                (crate::pipeline::read(&e.key, f).unwrap(), crate::pipeline::read(&e.mask, f).unwrap());
            field_of_packet(key, f.field) & mask == want
        })
    })
}

/// True if a NIC's tables see packets with this key.
fn visible(key: &Key) -> bool {
    let v6 = key.eth_type.get() == 0x86dd;
    let nd = v6 && key.ip_proto == ip_proto::ICMPV6 && matches!(key.tp_src.get(), 135 | 136);
    key.ip_frag == 0 && !nd && !(v6 && matching::is_extension(key.ip_proto))
}

/// Keys that packets from the NIC's wires can have.
fn any_key() -> impl Strategy<Value = Key> {
    let tags = prop_oneof![Just(0), Just(1), Just(2)];
    let types = prop_oneof![3 => Just(0x0800u16), 3 => Just(0x86dd), 2 => Just(0x0806), 1 => Just(0x1234)];
    let protos = prop_oneof![3 => Just(6u8), 2 => Just(17), 1 => Just(132), 2 => Just(1), 2 => Just(58), 1 => any::<u8>()];
    (any::<[u8; 32]>(), any::<[u8; 32]>(), tags, types, protos, 1u32..5, any::<[u16; 4]>()).prop_map(
        |(a, b, tags, ty, proto, in_port, l4)| {
            let mut k = Key { in_port, eth_type: ty.into(), ..Key::default() };
            k.eth_src.copy_from_slice(&a[..6]);
            k.eth_dst.copy_from_slice(&a[6..12]);
            for n in 0..tags {
                k.vlan[n].tpid = if a[12 + n] & 1 == 0 { 0x8100 } else { 0x88a8 }.into();
                k.vlan[n].tci = (u16::from_be_bytes([a[14 + n], a[16 + n]]) | 0x1000).into();
            }
            let word = |n: usize| u32::from_be_bytes([b[n], b[n + 1], b[n + 2], b[n + 3]]);
            match ty {
                0x0800 | 0x86dd => {
                    (k.ip_proto, k.ip_tos, k.ip_ttl) = (proto, a[18], a[19]);
                    if ty == 0x0800 {
                        (k.ipv4_src, k.ipv4_dst) = (word(0).into(), word(4).into());
                    } else {
                        k.ipv6_src.copy_from_slice(&b[..16]);
                        k.ipv6_dst.copy_from_slice(&b[16..]);
                        k.ipv6_label = (word(2) & 0xf_ffff).into();
                    }
                    match (ty, proto) {
                        (_, 6) => {
                            (k.tp_src, k.tp_dst, k.tcp_flags) =
                                (l4[0].into(), l4[1].into(), (l4[2] & 0xfff).into());
                        }
                        (_, 17 | 132) => (k.tp_src, k.tp_dst) = (l4[0].into(), l4[1].into()),
                        (0x0800, 1) | (0x86dd, 58) => {
                            (k.tp_src, k.tp_dst) = ((l4[0] & 0xff).into(), (l4[1] & 0xff).into());
                        }
                        _ => {}
                    }
                }
                0x0806 => {
                    (k.ip_proto, k.ipv4_src, k.ipv4_dst) = (a[18] & 3, word(0).into(), word(4).into());
                    k.arp_sha.copy_from_slice(&b[8..14]);
                    k.arp_tha.copy_from_slice(&b[14..20]);
                }
                _ => {}
            }
            k
        },
    )
}

/// Masks as flows have them: per field nothing, all, or some bits; the fields that others depend on mostly exact.
fn any_mask() -> impl Strategy<Value = Key> {
    let bits = any::<[u64; 16]>();
    let how = proptest::collection::vec(prop_oneof![3 => Just(0u8), 3 => Just(1), 1 => Just(2)], 128);
    (bits, how, any::<[bool; 4]>()).prop_map(|(bits, how, exact)| {
        let mut m = Key::default();
        // The pattern changes every two bytes: that is a field, or half of one.
        for (n, word) in m.words_mut()[..16].iter_mut().enumerate() {
            let mut bytes = bits[n].to_ne_bytes();
            for (i, b) in bytes.iter_mut().enumerate() {
                match how[8 * n + i - i % 2] {
                    0 => *b = 0,
                    1 => *b = 0xff,
                    _ => {}
                }
            }
            *word = u64::from_ne_bytes(bytes);
        }
        m.in_port = if exact[0] { u32::MAX } else { 0 };
        m.recirc_id = u32::MAX;
        m.eth_type = if exact[1] || exact[2] { 0xffff } else { 0 }.into();
        m.ip_proto = if exact[3] || exact[2] { 0xff } else { 0 };
        m.ip_frag = if exact[0] { 0xff } else { 0 };
        m.ipv6_label = (m.ipv6_label.get() & 0xf_ffff).into();
        m.tcp_flags = (m.tcp_flags.get() & 0xfff).into();
        (m.dp_hash, m.ct_state, m.skb_mark, m.skb_priority, m.nd_target) = (0, 0, 0, 0, [0; 16]);
        m
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The heart of it: an entry hits no packet that its flow does not match, and misses none that it does but for
    /// those that a NIC's tables never see. Packets lie at the edges: each bit of the key flipped in turn.
    #[test]
    fn r16_an_entry_hits_what_its_flow_matches_and_nothing_else(key in any_key(), mask in any_mask(), other in any_key()) {
        let p = pipeline();
        let graph = RecircGraph::new(p.last_stage());
        let matching = flowlift_flow::Match { key: key.clone(), mask: flowlift_flow::Mask(mask.clone()), attrs: Default::default() };
        let f = Flow { ufid: None, matching, actions: vec![Action::Output(flowlift_flow::PortNo(2))] };
        let Ok(plan) = lower(&p, &graph, &f, Excluded::default()) else { return Ok(()) };
        prop_assert!(raise::check(&p, &TestCodec, &f, &plan, &mut Vec::new()).is_ok(),
            "{:?}", raise::check(&p, &TestCodec, &f, &plan, &mut Vec::new()));
        let mut packets = vec![key.clone(), other.clone()];
        for word in 0..KEY_WORDS.min(16) {
            for bit in 0..64 {
                let mut k = key.clone();
                k.words_mut()[word] ^= 1 << bit;
                // Only what a packet can be: bits that its headers do not have stay as they are.
                if possible(&k) {
                    packets.push(k);
                }
            }
        }
        for k in packets {
            let (want, got) = (f.matching.matches(&k), visible(&k) && hits(&p, &plan, &k));
            prop_assert!(!got || want, "false hit of {k:?}\n flow {:?}\n mask {:?}", f.matching.key, mask);
            prop_assert!(got || !want || !visible(&k), "needless miss of {k:?}\n flow {:?}\n mask {:?}", f.matching.key, mask);
        }
    }

    /// Whatever the actions, a plan that passes raise-and-compare does what the flow says; and one bit or action that
    /// is changed afterwards is found.
    #[test]
    fn a_changed_entry_does_not_pass_the_comparison(key in any_key(), bit in any::<prop::sample::Index>(), what in 0..4) {
        let p = pipeline();
        let f = Flow {
            ufid: None,
            matching: flowlift_flow::Match {
                key,
                mask: { let mut m = flowlift_flow::Mask::default(); m.0.eth_type = 0xffff.into(); m.0.in_port = u32::MAX; m.0.eth_src = [0xff; 6]; m },
                attrs: Default::default(),
            },
            actions: vec![
                Action::Set(Header::Ethernet { src: [2; 6], dst: [3; 6] }),
                Action::Output(flowlift_flow::PortNo(2)),
                Action::PushVlan { tpid: 0x8100, tci: 0x1005 },
                Action::Output(flowlift_flow::PortNo(3)),
            ],
        };
        let plan = lower(&p, &RecircGraph::new(p.last_stage()), &f, Excluded::default()).unwrap();
        let mut bad = plan.entries[0].clone();
        match what {
            0 => {
                // A mask bit less, and the key's with it: a wider entry.
                let ones: Vec<usize> = (0..bad.mask.len() * 8).filter(|n| bad.mask[n / 8] >> (n % 8) & 1 != 0).collect();
                let n = ones[bit.index(ones.len())];
                bad.mask[n / 8] &= !(1 << (n % 8));
                bad.key[n / 8] &= !(1 << (n % 8));
            }
            1 => {
                // Another value.
                let ones: Vec<usize> = (0..bad.mask.len() * 8).filter(|n| bad.mask[n / 8] >> (n % 8) & 1 != 0).collect();
                let n = ones[bit.index(ones.len())];
                bad.key[n / 8] ^= 1 << (n % 8);
            }
            2 => { bad.actions.remove(bit.index(bad.actions.len())); }
            _ => { let n = bad.actions.len(); bad.actions.swap(n - 1, n - 2); }
        }
        prop_assert!(raise::compare(&p, &f, plan.table, &plan.entries[0]).is_ok());
        prop_assert!(raise::compare(&p, &f, plan.table, &bad).is_err(), "{bad:?}");
    }
}

/// True if some packet has this key: nothing in fields whose header is not there.
fn possible(k: &Key) -> bool {
    let mut only = Key {
        in_port: k.in_port,
        eth_src: k.eth_src,
        eth_dst: k.eth_dst,
        eth_type: k.eth_type,
        ..Key::default()
    };
    let (ty, proto) = (k.eth_type.get(), k.ip_proto);
    let (v4, v6) = (ty == 0x0800, ty == 0x86dd);
    let tag =
        |v: &flowlift_flow::VlanTag| matches!(v.tpid.get(), 0x8100 | 0x88a8) && v.tci.get() & 0x1000 != 0;
    for n in 0..2 {
        if tag(&k.vlan[n]) && (n == 0 || tag(&k.vlan[0])) {
            only.vlan[n] = k.vlan[n];
        }
    }
    if v4 || v6 {
        (only.ip_proto, only.ip_tos, only.ip_ttl, only.ip_frag) =
            (proto, k.ip_tos, k.ip_ttl, k.ip_frag.min(2));
        if v4 {
            (only.ipv4_src, only.ipv4_dst) = (k.ipv4_src, k.ipv4_dst);
        } else {
            (only.ipv6_src, only.ipv6_dst, only.ipv6_label) =
                (k.ipv6_src, k.ipv6_dst, (k.ipv6_label.get() & 0xf_ffff).into());
        }
        if matches!(proto, 6 | 17 | 132) {
            (only.tp_src, only.tp_dst) = (k.tp_src, k.tp_dst);
        }
        if v4 && proto == 1 || v6 && proto == 58 {
            (only.tp_src, only.tp_dst) = ((k.tp_src.get() & 0xff).into(), (k.tp_dst.get() & 0xff).into());
        }
        if proto == 6 {
            only.tcp_flags = (k.tcp_flags.get() & 0xfff).into();
        }
    }
    if ty == 0x0806 {
        (only.ip_proto, only.ipv4_src, only.ipv4_dst) = (proto, k.ipv4_src, k.ipv4_dst);
        (only.arp_sha, only.arp_tha) = (k.arp_sha, k.arp_tha);
    }
    only == *k
        && (1..=4).contains(&k.in_port)
        && !matches!(ty, 0..0x0600 | 0x8100 | 0x88a8 | 0x8847 | 0x8848 | 0x894f | 0x8035)
}

/// A switch that lets every packet into its only table: no parsing above the Ethernet type, tags of one type only, no way
/// back to the ingress port, no counters.
fn plain_switch() -> Pipeline {
    let mut c = caps(8, 8);
    c.parser = ParserCaps { whole: false, tags: 1, service_tags: false };
    c.tables.retain(|t| t.id == TableId(1));
    for t in &mut c.tables {
        t.fields.retain(|f| {
            matches!(
                f.field,
                Field::InPort
                    | Field::EthDst
                    | Field::EthSrc
                    | Field::EthType
                    | Field::Vlan0Tci
                    | Field::IpProto
            )
        });
        (t.set_bits, t.output_to_ingress, t.counters) = (false, false, CounterCaps::NONE);
    }
    Pipeline::new(&c, &ports()).with_uncounted(true)
}

fn on_plain_switch(matching: &str, actions: &str) -> Result<Plan, String> {
    let (p, f) = (plain_switch(), flow(matching, actions));
    let graph = RecircGraph::new(p.last_stage());
    let plan = lower(&p, &graph, &f, Excluded::default()).map_err(|r| r.to_string())?;
    raise::check(&p, &TestCodec, &f, &plan, &mut Vec::new()).map_err(|r| format!("check: {r}"))?;
    Ok(plan)
}

#[test]
fn a_parser_that_lets_everything_through_answers_for_ethernet_only() {
    let l2 = "recirc_id(0),in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),";
    let takes = |m: &str, a: &str| on_plain_switch(&format!("{l2}{m}"), a).unwrap();
    let refuses = |m: &str, a: &str| on_plain_switch(&format!("{l2}{m}"), a).unwrap_err();
    takes("eth_type(0x0800)", "2");
    takes("eth_type(0x0806)", "2,3");
    takes("eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x86dd))", "2");
    takes("eth_type(0x8100),vlan(vid=5,pcp=0/0),encap(eth_type(0x0800))", "pop_vlan,2");
    for (m, name) in [
        ("eth_type(0x0800),ipv4(frag=no)", "ip.frag"),
        ("eth_type(0x0800),ipv4(proto=17,frag=no)", "ipv4.proto"),
        ("eth_type(0x0806),arp(op=1)", "arp.op"),
        ("eth_type(0x86dd),ipv6(frag=no)", "ip.frag"),
    ] {
        let why = refuses(m, "2");
        assert!(why.contains(&format!("field {name} is not seen by the NIC's parser")), "{m}: {why}");
    }
    let why = refuses("eth_type(0x88a8),vlan(vid=5,pcp=0),encap(eth_type(0x0800))", "2");
    assert!(why.contains("vlan.tpid is not seen"), "{why}");
    // Two tags: the inner one's type is what such a parser shows as the Ethernet type.
    let two = "eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x8100),vlan(vid=6,pcp=0),encap(eth_type(0x0800)))";
    assert!(refuses(two, "2").contains("is not a key"), "{}", refuses(two, "2"));
}

#[test]
fn an_untagged_frame_needs_its_type_where_one_kind_of_tag_is_not_seen() {
    let (p, mut f) = (plain_switch(), flow("recirc_id(0),in_port(1),eth_type(0x0800)", "2"));
    f.matching.mask.0.eth_type = 0.into();
    let graph = RecircGraph::new(p.last_stage());
    let why = lower(&p, &graph, &f, Excluded::default()).unwrap_err().to_string();
    assert!(why.contains("is matched without an exact eth_type"), "{why}");
}

#[test]
fn nothing_is_sent_back_where_the_nic_leaves_that_out() {
    let why = on_plain_switch("recirc_id(0),in_port(1),eth_type(0x0800)", "2,1").unwrap_err();
    assert!(why.contains("number 2) may go to the port that the packet came from"), "{why}");
    let why = on_plain_switch("recirc_id(0),eth_type(0x0800)", "2").unwrap_err();
    assert!(why.contains("an exact match of another in_port would lift it"), "{why}");
    on_plain_switch("recirc_id(0),eth_type(0x0800)", "drop").unwrap();
}

#[test]
fn some_bits_of_a_field_are_not_set_where_only_whole_fields_are() {
    let m = "recirc_id(0),in_port(1),eth_type(0x0800)";
    on_plain_switch(m, "set(eth(src=02:00:00:00:00:09,dst=02:00:00:00:00:08)),2").unwrap();
    let why = on_plain_switch(m, "set(eth(dst=02:00:00:00:00:08/ff:ff:ff:00:00:00)),2").unwrap_err();
    assert!(why.contains("sets some bits of eth_dst"), "{why}");
}

#[test]
fn a_table_that_does_not_count_is_used_only_if_that_was_accepted() {
    let (p, f) =
        (plain_switch().with_uncounted(false), flow("recirc_id(0),in_port(1),eth_type(0x0800)", "2"));
    let graph = RecircGraph::new(p.last_stage());
    let why = lower(&p, &graph, &f, Excluded::default()).unwrap_err().to_string();
    assert!(why.starts_with("entries do not count packets and bytes in table 1"), "{why}");
    assert!(why.ends_with("accepting flows whose packets are not counted would lift it"), "{why}");
}
