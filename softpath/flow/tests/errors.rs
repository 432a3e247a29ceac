//! What the parser refuses, where, and how it says so.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which the lint takes for other code"
)]

use flowlift_flow::matching::MatchError;
use flowlift_flow::text::{
    DumpReader, ErrorKind, MAX_DEPTH, NoNames, PortMap, TextError, parse_actions, parse_dump_line, parse_key,
    parse_match, parse_ufid,
};
use flowlift_flow::{Action, PortNo};

fn match_error(text: &str) -> TextError {
    match parse_match(text, &NoNames) {
        Ok((m, _)) => panic!("{text} parsed: {m:?}"),
        Err(error) => error,
    }
}

fn action_error(text: &str) -> TextError {
    match parse_actions(text, &NoNames) {
        Ok(actions) => panic!("{text} parsed: {actions:?}"),
        Err(error) => error,
    }
}

#[test]
fn r37_an_attribute_twice_at_one_level_is_refused() {
    let text =
        "in_port(1),eth(src=02:00:00:00:00:01),eth_type(0x0800),ipv4(ttl=1),eth(dst=02:00:00:00:00:02)";
    let error = match_error(text);
    assert_eq!(error.kind, ErrorKind::DuplicateAttribute("eth"));
    assert_eq!(error.column as usize, text.rfind("eth(").expect("in the text") + 1);
    assert_eq!(
        match_error("eth_type(0/0xffff),eth_type(0x0800)").kind,
        ErrorKind::DuplicateAttribute("eth_type")
    );
    let twice_within = "eth(),eth_type(0x8100),vlan(vid=1),encap(eth_type(0x0800),ipv4(),ipv4())";
    assert_eq!(match_error(twice_within).kind, ErrorKind::DuplicateAttribute("ipv4"));
    // At different levels the same attribute may stand.
    let levels =
        "eth(),eth_type(0x88a8),vlan(vid=1),encap(eth_type(0x8100),vlan(vid=2),encap(eth_type(0x0800)))";
    assert!(parse_match(levels, &NoNames).is_ok());
}

#[test]
fn r37_a_field_twice_is_refused() {
    let twice = |within, name: &str| ErrorKind::DuplicateField { within, name: name.to_owned() };
    assert_eq!(match_error("eth(src=02:00:00:00:00:01,src=02:00:00:00:00:02)").kind, twice("eth", "src"));
    assert_eq!(match_error("tunnel(tun_id=1,tun_id=2)").kind, twice("tunnel", "tun_id"));
    assert_eq!(match_error("ct_state(+trk-trk)").kind, twice("connection state flags", "trk"));
    assert_eq!(action_error("ct(zone=1,zone=2)").kind, twice("ct", "zone"));
    assert_eq!(action_error("userspace(pid=1,actions,actions)").kind, twice("userspace", "actions"));
    assert_eq!(action_error("push_vlan(vid=1,vid=2)").kind, twice("push_vlan", "vid"));
}

#[test]
fn unknown_attributes_fields_and_actions_are_named() {
    assert_eq!(match_error("in_port(1),ipx(net=1)").kind, ErrorKind::UnknownAttribute("ipx".to_owned()));
    assert_eq!(match_error("key99(00)").kind, ErrorKind::UnknownAttribute("key99".to_owned()));
    let field = |within, name: &str| ErrorKind::UnknownField { within, name: name.to_owned() };
    assert_eq!(match_error("eth(type=1)").kind, field("eth", "type"));
    assert_eq!(match_error("tunnel(key(1))").kind, field("tunnel", "key"));
    assert_eq!(match_error("tunnel(vxlan(gpe(1)))").kind, field("vxlan", "gpe"));
    assert_eq!(action_error("fly(1)").kind, ErrorKind::UnknownAction("fly".to_owned()));
    assert_eq!(action_error("1,clone(2,fly(1))").column, 11);
    assert_eq!(action_error("userspace(pid=1,netflow(1))").kind, field("userspace", "netflow"));
    assert_eq!(action_error("ct(commit,persistent)").kind, field("ct", "persistent"));
}

/// Found by fuzzing: a field of the other version was read, and lost on the way back to text.
#[test]
fn erspan_fields_are_those_of_the_version() {
    for fields in ["ver=2,idx=7", "ver=2/0,idx=7/8", "ver=1,dir=1", "idx=1,hwid=1", "ver=3,idx=1"] {
        let text = format!("tunnel(tun_id=0x2,erspan({fields}),flags(key))");
        let kind = match_error(&text).kind;
        assert_eq!(kind, ErrorKind::Expected("fields of one ERSPAN version"), "{text}");
    }
    for (fields, version) in [("ver=1,idx=7", 1), ("ver=2,dir=1,hwid=3", 2), ("hwid=3", 2), ("idx=7", 1)] {
        let text = format!("tunnel(tun_id=0x2,erspan({fields}),flags(key))");
        let (m, _) = parse_match(&text, &NoNames).expect("a match");
        assert_eq!(m.key.tun_erspan_ver, version, "{text}");
    }
}

#[test]
fn unknown_ports_are_an_error_of_their_own() {
    let names: PortMap = [("p1", PortNo(1)), ("2nd", PortNo(2))].into_iter().collect();
    let flow = parse_dump_line("in_port(p1), actions:2nd,7,p1", &names).expect("known ports");
    assert_eq!(flow.flow.matching.key.in_port, 1);
    let outputs = [2, 7, 1].map(|n| Action::Output(PortNo(n)));
    assert_eq!(flow.flow.actions, outputs);
    let error = parse_dump_line("in_port(p3), actions:p1", &names).expect_err("an unknown port");
    assert_eq!((error.column, error.kind), (9, ErrorKind::UnknownPort("p3".to_owned())));
    let error = parse_dump_line("in_port(p1), actions:p1,p3", &names).expect_err("an unknown port");
    assert_eq!((error.column, error.kind), (25, ErrorKind::UnknownPort("p3".to_owned())));
    assert_eq!(action_error("tnl_pop(gre0)").kind, ErrorKind::UnknownPort("gre0".to_owned()));
}

#[test]
fn impossible_masks_are_told_from_other_errors() {
    for text in [
        "eth_type(0x0800),ipv4(src=10.0.0.0/33)",
        "eth_type(0x86dd),ipv6(src=2001:db8::/129)",
        "recirc_id(1/0xff)",
        "eth_type(0x0800),ipv4(frag=later/0xff)",
        "tunnel(geneve({class=1,type=2,len=4/0x20,0x1}))",
    ] {
        let kind = match_error(text).kind;
        assert!(matches!(kind, ErrorKind::ImpossibleMask(_)), "{text}: {kind}");
    }
    assert!(matches!(action_error("set(tunnel(tun_id=1/2,dst=1.1.1.1))").kind, ErrorKind::ImpossibleMask(_)));
    let key = parse_key("in_port(1/1)").expect_err("a key has no masks");
    assert!(matches!(key.kind, ErrorKind::ImpossibleMask(_)), "{key}");
    // Prefixes that an address can have.
    let (m, _) =
        parse_match("eth_type(0x0800),ipv4(src=10.0.0.0/8,dst=0.0.0.0/0)", &NoNames).expect("prefixes");
    assert_eq!((m.mask.0.ipv4_src.get(), m.mask.0.ipv4_dst.get()), (0xff00_0000, 0));
}

#[test]
fn r15_prerequisites_must_be_matched_exactly() {
    let kind_of = |text: &str| match match_error(text).kind {
        ErrorKind::Match(MatchError::MissingPrerequisite { attribute, .. }) => attribute,
        other => panic!("{text}: {other}"),
    };
    assert_eq!(kind_of("eth_type(0x0800),ipv4(proto=17),tcp(dst=80)"), "tcp");
    assert_eq!(kind_of("eth_type(0x0800),ipv4(proto=6/0xf),tcp(dst=80)"), "tcp");
    assert_eq!(kind_of("eth_type(0x0800),tcp(dst=80)"), "tcp");
    assert_eq!(kind_of("ipv4(ttl=1)"), "ipv4");
    assert_eq!(kind_of("eth_type(0x86dd),ipv4(ttl=1)"), "ipv4");
    assert_eq!(kind_of("eth_type(0x0800/0xff00),ipv4(ttl=1)"), "ipv4");
    assert_eq!(kind_of("eth_type(0x0806),arp(op=1),nd(target=::1)"), "nd");
    assert_eq!(kind_of("eth_type(0x86dd),ipv6(proto=58),icmpv6(type=1,code=0),nd(target=::1)"), "nd");
    assert_eq!(kind_of("eth_type(0x0800),mpls(label=1,tc=0,ttl=1,bos=1)"), "mpls");
    assert_eq!(kind_of("eth_type(0x0800),vlan(vid=1,pcp=0),encap()"), "encap");
    assert_eq!(kind_of("eth_type(0x8100),vlan(vid=1,pcp=0)"), "vlan");
    // The error points at the attribute.
    assert_eq!(match_error("eth_type(0x0800),ipv4(proto=17),tcp(dst=80)").column, 33);
    // Wildcarded headers stand in verbose dumps without exact types.
    let wild = "eth_type(0x0800),ipv4(proto=6/0,frag=no),tcp(src=1/0,dst=2/0)";
    assert!(parse_match(wild, &NoNames).is_ok());
}

#[test]
fn numbers_out_of_range_say_their_range() {
    let out_of_range = |kind: ErrorKind| match kind {
        ErrorKind::OutOfRange { max, .. } => max,
        other => panic!("{other}"),
    };
    assert_eq!(out_of_range(match_error("in_port(4294967296)").kind), u32::MAX.into());
    assert_eq!(out_of_range(match_error("eth_type(0x0800),ipv4(ttl=256)").kind), 255);
    assert_eq!(out_of_range(match_error("eth_type(0x8100),vlan(vid=4096),encap()").kind), 4095);
    assert_eq!(out_of_range(match_error("eth_type(0x86dd),ipv6(label=0x100000)").kind), 0xf_ffff);
    assert_eq!(out_of_range(match_error("eth_type(0x0806),arp(op=256)").kind), 255);
    assert_eq!(out_of_range(match_error("ct_state(0x100/0x100)").kind), 0xff);
    assert_eq!(out_of_range(match_error("tunnel(tun_id=0x10000000000000000)").kind), u64::MAX);
    assert_eq!(out_of_range(action_error("sample(sample=100.1%,actions(1))").kind), 100);
    assert_eq!(out_of_range(action_error("99999999999").kind), u32::MAX.into());
    let label = match_error("ct_label(0x100000000000000000000000000000000)");
    assert_eq!(label.kind, ErrorKind::TooLong { what: "a number", max: 16 });
    assert!(matches!(
        action_error("psample(group=1,cookie=0x0102030405060708090a0b0c0d0e0f1011)").kind,
        ErrorKind::TooLong { max: 16, .. }
    ));
}

#[test]
fn text_after_the_end_is_told_from_other_errors() {
    assert_eq!(match_error("in_port(1),eth())").kind, ErrorKind::TrailingGarbage);
    assert_eq!(match_error("in_port(1) hello").kind, ErrorKind::TrailingGarbage);
    assert_eq!(action_error("1)").kind, ErrorKind::TrailingGarbage);
    let line = "in_port(1), packets:0, bytes:0, used:never, actions:1, 2, dp:ovs";
    assert!(parse_dump_line(line, &NoNames).is_err());
    assert_eq!(match_error("").kind, ErrorKind::Empty);
    let ufid = parse_ufid("ufid:00112233-4455-6677-8899-aabbccddeeff0").expect_err("too long");
    assert_eq!((ufid.column, ufid.kind), (42, ErrorKind::TrailingGarbage));
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let clones = |n: usize| format!("{}1{}", "clone(".repeat(n), ")".repeat(n));
    assert!(parse_actions(&clones(MAX_DEPTH), &NoNames).is_ok());
    assert_eq!(action_error(&clones(MAX_DEPTH + 1)).kind, ErrorKind::TooDeep);
    assert_eq!(action_error(&clones(100_000)).kind, ErrorKind::TooDeep);
    assert_eq!(action_error(&"sample(sample=1.0%,actions(".repeat(100_000)).kind, ErrorKind::TooDeep);
    assert_eq!(action_error(&"check_pkt_len(size=1,gt(".repeat(100_000)).kind, ErrorKind::TooDeep);
    let tags = "eth_type(0x8100),vlan(vid=1),encap(".repeat(100_000);
    assert_eq!(match_error(&tags).kind, ErrorKind::Match(MatchError::TooManyTags));
}

#[test]
fn a_reader_counts_lines_and_goes_on_after_an_error() {
    let dump = "flow-dump from the main thread:\n# by hand\n\nin_port(1), actions:2\r\nin_port(x), actions:2\n\
                in_port(3), packets:5, bytes:300, used:0.001s, flags:S., actions:drop\n";
    let mut reader = DumpReader::new(&NoNames);
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for line in dump.split_inclusive('\n') {
        match reader.line(line) {
            Ok(Some(flow)) => good.push(flow.flow.matching.key.in_port),
            Ok(None) => {}
            Err(error) => bad.push((error.line, error.column)),
        }
    }
    assert_eq!((good, bad), (vec![1, 3], vec![(5, 9)]));
    assert_eq!(reader.lines(), 6);
}

#[test]
fn a_message_names_place_and_cause() {
    let mut reader = DumpReader::new(&NoNames);
    assert_eq!(reader.line(""), Ok(None));
    let error = reader
        .line("in_port(1),eth_type(0x0800),ipv4(src=10.0.0.300), actions:1")
        .expect_err("not an address");
    assert_eq!(error.to_string(), "line 2, column 45: a byte of an IPv4 address out of range (at most 255)");
    let error =
        reader.line("in_port(1),eth_type(0x0800),ipv4(frag=maybe), actions:1").expect_err("no such kind");
    assert_eq!(error.to_string(), "line 3, column 39: expected 'no', 'first' or 'later'");
    let error =
        reader.line("in_port(1),eth_type(0x0800),ipv4(proto=17),tcp(), actions:1").expect_err("no TCP");
    let text = error.to_string();
    assert_eq!(text, "line 4, column 44: tcp needs ipv4() or ipv6() with proto 6, exact");
}
