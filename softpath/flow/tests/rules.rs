//! Rules of RULES.md about matches, handles and actions, on texts written for the purpose.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which the lint takes for other code"
)]

use flowlift_flow::action::{ActionError, ActionErrorKind, validate};
use flowlift_flow::attrs::attr;
use flowlift_flow::key::VLAN_CFI;
use flowlift_flow::matching::MatchError;
use flowlift_flow::text::{
    MatchText, NoNames, PrintOptions, key_text, parse_actions, parse_dump_line, parse_key, parse_match,
    parse_ufid,
};
use flowlift_flow::{Action, AttrSet, Header, Key, Match, PortNo, Ufid};

fn matching(text: &str) -> Match {
    parse_match(text, &NoNames).unwrap_or_else(|e| panic!("{text}: {e}")).0
}

fn actions(text: &str) -> Vec<Action> {
    parse_actions(text, &NoNames).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn plain(m: &Match) -> String {
    MatchText { matching: m, order: None, options: PrintOptions::default() }.to_string()
}

fn verbose(m: &Match) -> String {
    MatchText { matching: m, order: None, options: PrintOptions { names: None, verbose: true } }.to_string()
}

const TCP: &str = "in_port(1),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=80)";

#[test]
fn r15_no_mask_is_an_exact_match() {
    let m =
        matching("in_port(7),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0806),arp(op=1)");
    assert_eq!(m.mask.0.in_port, u32::MAX);
    assert_eq!((m.mask.0.eth_src, m.mask.0.eth_dst), ([0xff; 6], [0xff; 6]));
    assert_eq!((m.mask.0.eth_type.get(), m.mask.0.ip_proto), (0xffff, 0xff));

    // A whole key as a match matches that key and no other.
    let text = "recirc_id(0),dp_hash(0),skb_priority(0),in_port(1),skb_mark(0),ct_state(0),ct_zone(0),ct_mark(0),\
                ct_label(0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
                ipv4(src=192.0.2.1,dst=192.0.2.2,proto=17,tos=0,ttl=64,frag=no),udp(src=53,dst=1053)";
    let (key, _) = parse_key(text).expect("a key");
    let exact = Match::exact(&key);
    assert!(exact.matches(&key));
    let mut other = key.clone();
    other.ip_ttl = 63;
    assert!(!exact.matches(&other));
    assert_eq!(matching(text), exact, "a text without masks is an exact match");
}

#[test]
fn r20_bits_outside_the_mask_are_kept() {
    let text = "in_port(1),eth(src=02:00:00:00:00:01/00:00:00:00:00:00,dst=02:00:00:00:00:02),eth_type(0x0800),\
                ipv4(src=10.1.2.3/255.255.0.0,dst=10.9.9.9/0.0.0.0,proto=6/0,tos=0/0x3,ttl=64/0,frag=no)";
    let m = matching(text);
    assert_eq!(m.key.ipv4_src.get(), 0x0a01_0203);
    assert_eq!(m.key.ip_ttl, 64);
    assert_eq!(verbose(&m), text);
    let shown = "in_port(1),eth(dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(src=10.1.2.3/255.255.0.0,tos=0/0x3,frag=no)";
    assert_eq!(plain(&m), shown, "a plain dump shows only what is matched");
}

#[test]
fn r28_a_tag_nests_what_follows_it() {
    let m = matching("eth(),eth_type(0x8100),vlan(vid=10,pcp=3),encap(eth_type(0x86dd),ipv6(frag=no))");
    assert!(m.attrs.has(0, attr::ENCAP) && m.attrs.has(1, attr::IPV6) && !m.attrs.has(0, attr::IPV6));
    // Outside of its encap a header belongs to no packet.
    let outside = "eth(),eth_type(0x8100),vlan(vid=10,pcp=3),encap(eth_type(0x86dd)),ipv6(frag=no)";
    assert!(parse_match(outside, &NoNames).is_err());
}

#[test]
fn r29_tcp_in_vlan_10() {
    let text = "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x8100),vlan(vid=10,pcp=0),\
                encap(eth_type(0x0800),ipv4(proto=6,frag=no),tcp(src=1,dst=2))";
    let m = matching(text);
    assert_eq!(m.key.vlan[0].tci.get(), VLAN_CFI | 10);
    assert_eq!((m.key.eth_type.get(), m.key.ip_proto, m.key.tp_dst.get()), (0x0800, 6, 2));
    assert_eq!(plain(&m), text);
}

#[test]
fn r30_the_outer_type_stays_the_tpid() {
    let text = "eth(),eth_type(0x88a8),vlan(vid=100,pcp=0),encap(eth_type(0x8100),vlan(vid=30,pcp=1),\
                encap(eth_type(0x0800),ipv4(frag=no)))";
    let m = matching(text);
    let tags = m.key.vlan.map(|tag| (tag.tpid.get(), tag.tci.get() & 0xfff));
    assert_eq!(tags, [(0x88a8, 100), (0x8100, 30)]);
    assert_eq!(m.key.eth_type.get(), 0x0800);
    assert_eq!(plain(&m), text);
}

#[test]
fn r35_a_cut_off_tag_shows_as_such() {
    let text = "eth_type(0x8100),vlan(vid=0,pcp=0,cfi=0),encap()";
    let m = matching(text);
    assert_eq!((m.key.vlan[0].tpid.get(), m.key.vlan[0].tci.get()), (0x8100, 0));
    assert_eq!(verbose(&m), text);
    let mut key = Key::default();
    key.vlan[0].tpid = 0x8100.into();
    assert!(
        key_text(&key)
            .to_string()
            .ends_with(&format!("eth(src=00:00:00:00:00:00,dst=00:00:00:00:00:00),{text}"))
    );
}

#[test]
fn a_frame_without_ethernet_type_shows_in_the_mask_only() {
    let text = "in_port(1),eth(dst=01:80:c2:00:00:00),eth_type(0/0xffff)";
    let m = matching(text);
    assert!(!m.attrs.has(0, attr::ETHERTYPE));
    assert_eq!(m.key.eth_type.get(), flowlift_flow::key::ETH_TYPE_NONE);
    assert_eq!(m.validate(), Ok(()));
    assert_eq!(plain(&m), text);
}

#[test]
fn r38_order_does_not_matter() {
    let turned = "tcp(dst=80),ipv4(frag=no,proto=6),eth_type(0x0800),eth(),in_port(1)";
    assert_eq!(matching(turned), matching(TCP));
    let nested = matching("encap(ipv4(frag=no),eth_type(0x0800)),vlan(pcp=0,vid=1),eth(),eth_type(0x8100)");
    assert_eq!(
        nested,
        matching("eth(),eth_type(0x8100),vlan(vid=1,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))")
    );
}

#[test]
fn r30_a_type_that_is_not_a_tags_excludes_tags() {
    let untagged = matching("in_port(1),eth_type(0x0800),ipv4(frag=no)");
    let tagged =
        matching("in_port(1),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))");
    assert!(untagged.matches(&untagged.key) && tagged.matches(&tagged.key));
    assert!(!untagged.matches(&tagged.key), "an untagged match took a tagged packet");
    let mut twice = tagged.key.clone();
    (twice.vlan[1].tpid, twice.vlan[1].tci) = (0x8100.into(), 0x1006.into());
    assert!(!tagged.matches(&twice), "a match with one tag took a packet with two");
    assert!(
        matching("in_port(1)").matches(&Key { in_port: 1, ..tagged.key.clone() }),
        "nothing said of the type"
    );
}

#[test]
fn a_match_without_recirculation_takes_no_recirculated_packet() {
    let m = matching("in_port(1),eth_type(0x0800)");
    assert!(m.matches(&m.key) && !m.matches(&Key { recirc_id: 1, ..m.key.clone() }));
}

#[test]
fn u4_what_a_mask_does_not_name_is_wildcarded() {
    let m = matching(TCP);
    assert_eq!(m.mask.0.skb_mark, 0, "an attribute");
    assert_eq!((m.mask.0.ip_ttl, m.mask.0.tp_src.get()), (0, 0), "a field");
    let mut key = m.key.clone();
    (key.ip_ttl, key.skb_mark, key.eth_src, key.tp_src) = (9, 9, [9; 6], 9.into());
    assert!(m.matches(&key));
    key.tp_dst = 81.into();
    assert!(!m.matches(&key));
}

#[test]
fn u5_handles_are_printed_in_the_order_of_open_vswitch() {
    let ufid = parse_ufid("ufid:82f5cb7f-b617-483d-a19b-2274494e1dae").expect("a handle");
    // Four words in the order of this machine: what Netlink carries on the machine that printed it.
    let words = [0x82f5_cb7fu32, 0xb617_483d, 0xa19b_2274, 0x494e_1dae];
    assert_eq!(ufid.as_bytes(), words.map(u32::to_ne_bytes).concat());
    assert_eq!(ufid.to_string(), "ufid:82f5cb7f-b617-483d-a19b-2274494e1dae");
    let short = Ufid::new(&[0xab, 0x01]).expect("2 octets");
    assert_eq!(short.to_string(), "ufid:ab01");
    for wrong in ["ufid:", "ufid:a", "ufid:82f5cb7f-b617-483d-a19b-2274494e1d", "ufid:82f5cb7f-b617483d-a19b"]
    {
        assert!(parse_ufid(wrong).is_err(), "{wrong}");
    }
    let line =
        "ufid:82f5cb7f-b617-483d-a19b-2274494e1dae, in_port(1), packets:0, bytes:0, used:never, actions:1";
    assert_eq!(parse_dump_line(line, &NoNames).expect("a line").flow.ufid, Some(ufid));
}

fn refused(match_text: &str, action_text: &str) -> ActionErrorKind {
    match validate(&actions(action_text), &matching(match_text)) {
        Err(error) => error.kind,
        Ok(()) => panic!("{action_text} passed for {match_text}"),
    }
}

fn accepted(match_text: &str, action_text: &str) {
    let result = validate(&actions(action_text), &matching(match_text));
    assert_eq!(result, Ok(()), "{action_text} for {match_text}");
}

#[test]
fn add_mpls_ahead_of_a_frame_does_not_care_what_is_in_it() {
    let add = |l3, eth_type| Action::AddMpls { lse: 0x0002_0140, eth_type, l3 };
    let tagged = "in_port(1),eth(),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x88b5))";
    for match_text in [TCP, tagged, "in_port(1),eth(),eth_type(0x88b5)", "in_port(1),eth()"] {
        assert_eq!(validate(&[add(false, 0x8847)], &matching(match_text)), Ok(()), "{match_text}");
    }
    // The packet that follows is a bare one of MPLS.
    let then = |after: &str| [vec![add(false, 0x8847)], actions(after)].concat();
    assert_eq!(
        validate(&then("push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),2"), &matching(TCP)),
        Ok(())
    );
    assert!(validate(&then("pop_eth,2"), &matching(TCP)).is_err());
    let error = validate(&[add(false, 0x0800)], &matching(TCP)).expect_err("not a label's type");
    assert_eq!(error.kind, ActionErrorKind::NotMpls(0x0800));
    let error = validate(&[add(true, 0x8847)], &matching(tagged)).expect_err("a label behind the tag");
    assert_eq!(error.kind, ActionErrorKind::Needs("a packet without VLAN tags"));
}

#[test]
fn u7_push_vlan_needs_a_known_tpid_and_the_cfi_bit() {
    accepted(TCP, "push_vlan(vid=1,pcp=0),push_vlan(tpid=0x88a8,vid=2,pcp=0),2");
    assert_eq!(refused(TCP, "push_vlan(tpid=0x9100,vid=1,pcp=0),2"), ActionErrorKind::Tpid(0x9100));
    assert_eq!(refused(TCP, "push_vlan(vid=1,pcp=0,cfi=0),2"), ActionErrorKind::NoCfi);
    let l3 = "in_port(1),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(frag=no)";
    assert_eq!(refused(l3, "push_vlan(vid=1,pcp=0)"), ActionErrorKind::Needs("an Ethernet header"));
    accepted(l3, "push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),push_vlan(vid=1,pcp=0),2");
}

#[test]
fn u8_a_masked_set_has_no_bits_outside_its_mask() {
    accepted(TCP, "set(ipv4(src=10.0.0.0/255.0.0.0)),2");
    assert_eq!(refused(TCP, "set(ipv4(src=10.2.3.4/255.0.0.0)),2"), ActionErrorKind::BitsOutsideMask);
    let other =
        Action::SetMasked { value: Header::Tcp { src: 1, dst: 2 }, mask: Header::Udp { src: 1, dst: 2 } };
    let error = validate(&[other], &matching(TCP)).expect_err("a mask of another header");
    assert_eq!(error.kind, ActionErrorKind::MaskOfOtherHeader);
}

#[test]
fn u8_protocol_and_fragment_kind_cannot_be_set() {
    assert_eq!(refused(TCP, "set(ipv4(proto=17,ttl=1))"), ActionErrorKind::ReadOnly("proto"));
    assert_eq!(refused(TCP, "set(ipv4(ttl=1,frag=no))"), ActionErrorKind::ReadOnly("frag"));
    // A whole header repeats what the packet has.
    accepted(TCP, "set(ipv4(src=1.1.1.1,dst=2.2.2.2,proto=6,tos=0,ttl=1,frag=no))");
    let udp = "set(ipv4(src=1.1.1.1,dst=2.2.2.2,proto=17,tos=0,ttl=1,frag=no))";
    assert_eq!(refused(TCP, udp), ActionErrorKind::ReadOnly("proto"));
    let later = "set(ipv4(src=1.1.1.1,dst=2.2.2.2,proto=6,tos=0,ttl=1,frag=later))";
    assert_eq!(refused(TCP, later), ActionErrorKind::ReadOnly("frag"));
}

#[test]
fn u8_a_tunnel_is_set_whole() {
    accepted(TCP, "set(tunnel(tun_id=0x1,dst=192.0.2.1,ttl=64,flags(key))),2");
    assert_eq!(
        refused(TCP, "set(tunnel(tun_id=0x1,ttl=64))"),
        ActionErrorKind::Needs("a tunnel destination")
    );
    let tunnel = Header::Tunnel(Box::default());
    let masked = Action::SetMasked { value: tunnel.clone(), mask: tunnel };
    let error = validate(&[masked], &matching(TCP)).expect_err("a masked tunnel");
    assert_eq!(error.kind, ActionErrorKind::MaskedTunnel);
}

#[test]
fn u8_a_header_is_set_only_where_the_match_promises_it() {
    accepted(TCP, "set(tcp(dst=8080)),2");
    assert!(matches!(refused(TCP, "set(udp(dst=8080))"), ActionErrorKind::Needs(_)));
    assert!(matches!(refused(TCP, "set(ipv6(hlimit=1))"), ActionErrorKind::Needs(_)));
    assert!(matches!(refused("in_port(1),eth()", "set(ipv4(ttl=1))"), ActionErrorKind::Needs(_)));
    assert!(matches!(refused(TCP, "set(mpls(label=1,tc=0,ttl=1,bos=1))"), ActionErrorKind::Needs(_)));
    assert!(matches!(refused(TCP, "set(arp(op=2))"), ActionErrorKind::Needs(_)));
    // A label hides what is below it, and popping the last one leaves a type that nobody has checked.
    let push = "push_mpls(label=5,tc=0,ttl=64,bos=1,eth_type=0x8847)";
    accepted(TCP, &format!("{push},set(mpls(label=6,tc=0,ttl=64,bos=1)),2"));
    assert!(matches!(refused(TCP, &format!("{push},set(ipv4(ttl=1))")), ActionErrorKind::Needs(_)));
    assert!(matches!(
        refused(TCP, &format!("{push},pop_mpls(eth_type=0x800),set(ipv4(ttl=1))")),
        ActionErrorKind::Needs(_)
    ));
    assert_eq!(
        refused(TCP, "pop_mpls(eth_type=0x800),push_mpls(label=1,tc=0,ttl=1,bos=1,eth_type=0x800)"),
        ActionErrorKind::NotMpls(0x800)
    );
}

#[test]
fn u9_pop_mpls_without_mpls_is_no_error() {
    accepted(TCP, "pop_mpls(eth_type=0x800),set(ipv4(ttl=1)),2");
}

#[test]
fn refused_actions_are_named_with_their_place() {
    let list = actions("2,clone(3,check_pkt_len(size=9,gt(trunc(5)),le(drop)))");
    let error = validate(&list, &matching(TCP)).expect_err("shorter than an Ethernet header");
    assert_eq!(
        error,
        ActionError { position: 2, action: "trunc", kind: ActionErrorKind::OutOfRange("length") }
    );
    assert_eq!(error.to_string(), "action 2 (trunc): length out of range");
    assert_eq!(refused(TCP, "ct(mark=1)"), ActionErrorKind::NeedsCommit("mark"));
    accepted(TCP, "ct(commit,zone=1,mark=1,nat(src=10.0.0.1)),recirc(0x1)");
    assert!(matches!(refused("eth_type(0x0806),arp(op=1)", "ct(zone=1)"), ActionErrorKind::Needs(_)));
    assert_eq!(refused(TCP, "clone(drop,1)"), ActionErrorKind::NotLast);
    assert_eq!(refused(TCP, "65535"), ActionErrorKind::OutOfRange("port"));
    let deep = (0..=16).fold(vec![Action::Output(PortNo(1))], |inner, _| vec![Action::Clone(inner)]);
    assert_eq!(validate(&deep, &matching(TCP)).map_err(|e| e.kind), Err(ActionErrorKind::TooDeep));
}

#[test]
fn r22_overlaps_are_noticed() {
    let web = matching(TCP);
    let from_ten = matching("in_port(1),eth_type(0x0800),ipv4(src=10.0.0.0/255.0.0.0,frag=no)");
    let ssh = matching("in_port(1),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=22)");
    assert!(web.overlaps(&from_ten) && from_ten.overlaps(&ssh));
    assert!(!web.overlaps(&ssh));
}

#[test]
fn a_mask_without_its_key_is_refused() {
    let mut m = matching(TCP);
    m.mask.0.ct_mark = 1;
    assert_eq!(m.validate(), Err(MatchError::MaskWithoutKey { attribute: "ct_mark" }));
    let mut m = matching(TCP);
    m.mask.0.nd_target[15] = 1;
    assert_eq!(m.validate(), Err(MatchError::MaskWithoutKey { attribute: "nd" }));
    let mut m = matching("in_port(1),eth()");
    m.mask.0.nsh_ttl = 1;
    assert_eq!(m.validate(), Err(MatchError::MaskWithoutKey { attribute: "nsh" }));
    let mut m = matching(TCP);
    m.attrs = AttrSet::default();
    assert!(m.validate().is_err());
}
