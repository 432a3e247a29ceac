use super::*;
use crate::lower::lower_ranked;
use crate::raise::check;
use crate::recirc::RecircGraph;
use crate::testing::{TestCodec, flow, pipeline};
use flowlift_driver::nic::{NicError, TableId};
use proptest::prelude::*;

/// What a full lowering gives, checked in full.
fn in_full(pipeline: &Pipeline, flow: &Flow) -> Option<Plan> {
    let recirc = RecircGraph::new(pipeline.last_stage());
    let plan = lower_ranked(pipeline, &recirc, flow, 0, Excluded::default()).ok()?;
    check(pipeline, &TestCodec, flow, &plan, &mut Vec::new()).ok()?;
    Some(plan)
}

/// What the forms give, with an honest codec.
fn known(forms: &mut Forms, flow: &Flow, rank: u16) -> Option<Plan> {
    forms.plan(flow, rank, Excluded::default(), &TestCodec, &mut Vec::new()).cloned()
}

/// Forms that know the form of one flow.
fn knowing(pipeline: &Pipeline, flow: &Flow) -> Option<Forms> {
    let mut forms = Forms::default();
    forms.learn(pipeline, flow, 0, Excluded::default(), &in_full(pipeline, flow)?);
    (!forms.0.is_empty()).then_some(forms)
}

fn udp(src: &str, port: u16, actions: &str) -> Flow {
    let eth = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800)";
    flow(&format!("recirc_id(0),{eth},ipv4(src={src},proto=17,ttl=64,frag=no),udp(dst={port})"), actions)
}

#[test]
fn a_flow_of_a_known_form_gets_the_plan_that_lowering_gives() {
    let pipeline = pipeline();
    let mut forms = knowing(&pipeline, &udp("10.0.0.1", 53, "2")).unwrap();
    for (src, port) in [("10.0.0.1", 53), ("10.9.8.7", 65535), ("255.255.255.255", 0)] {
        let flow = udp(src, port, "2");
        let mut bytes = b"before".to_vec();
        let plan = forms.plan(&flow, 0, Excluded::default(), &TestCodec, &mut bytes).cloned();
        assert_eq!(plan, in_full(&pipeline, &flow));
        let mut expected = b"before".to_vec();
        check(&pipeline, &TestCodec, &flow, &plan.unwrap(), &mut expected).unwrap();
        assert_eq!(bytes, expected, "the bytes follow what was there");
    }
}

#[test]
fn what_is_no_value_makes_another_form() {
    let mut forms = knowing(&pipeline(), &udp("10.0.0.1", 53, "2")).unwrap();
    let mut knows = |flow: &Flow, rank| known(&mut forms, flow, rank).is_some();
    let same = udp("10.0.0.2", 54, "2");
    assert!(knows(&same, 0) && !knows(&same, 1), "another rank");
    assert!(!knows(&udp("10.0.0.2", 54, "3"), 0), "other actions");
    assert!(!knows(&udp("10.0.0.2/255.255.255.0", 54, "2"), 0), "another mask");
    let mut other = same.clone();
    other.matching.key.in_port = 3;
    assert!(!knows(&other, 0), "another port");
}

/// A set of what a packet has already is left out, so that the field it sets is part of the form.
#[test]
fn a_field_that_an_action_sets_is_no_value() {
    let pipeline = pipeline();
    let set = "set(ipv4(src=10.0.0.9)),2";
    let mut forms = knowing(&pipeline, &udp("10.0.0.1", 53, set)).unwrap();
    assert!(known(&mut forms, &udp("10.0.0.1", 54, set), 0).is_some());
    assert!(known(&mut forms, &udp("10.0.0.9", 53, set), 0).is_none(), "nothing to set");
    let dec = "dec_ttl(le_1()),2";
    if let Some(mut forms) = knowing(&pipeline, &udp("10.0.0.1", 53, dec)) {
        let mut other = udp("10.0.0.1", 53, dec);
        other.matching.key.ip_ttl = 1;
        assert!(known(&mut forms, &other, 0).is_none());
    }
}

/// A codec that hands the device one bit more or less than it was given.
struct Liar {
    bit: usize,
}

impl Codec for Liar {
    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        let mut entry = entry.clone();
        let len = entry.key.len() * 8;
        let part = if self.bit < len { &mut entry.key } else { &mut entry.mask };
        part[self.bit % len / 8] ^= 1 << (self.bit % 8);
        TestCodec.encode(table, &entry, out)
    }
    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        TestCodec.decode(table, bytes)
    }
}

#[test]
fn no_bit_that_is_not_the_flows_gets_through() {
    let pipeline = pipeline();
    let (first, second) = (udp("10.0.0.1", 53, "2"), udp("10.0.0.2", 54, "2"));
    let mut forms = knowing(&pipeline, &first).unwrap();
    let len = in_full(&pipeline, &second).unwrap().entries[0].key.len();
    for bit in 0..len * 16 {
        let plan = forms.plan(&second, 0, Excluded::default(), &Liar { bit }, &mut Vec::new());
        assert!(plan.is_none(), "bit {bit}");
    }
    assert_eq!(known(&mut forms, &second, 0), in_full(&pipeline, &second));
    // Nothing of the flow before is left.
    assert_eq!(known(&mut forms, &first, 0), in_full(&pipeline, &first));
}

proptest! {
    /// Flows of one form but for any bits of the key: where the form knows a flow, lowering in full gives the same.
    #[test]
    fn known_or_not_the_plan_is_the_same(
        which in 0usize..6,
        changes in prop::collection::vec((0usize..16, any::<u64>()), 0..4),
    ) {
        let matches = [
            ("eth_type(0x0800),ipv4(src=10.0.0.1,proto=6,tos=0x4,frag=no),tcp(src=5,dst=6),tcp_flags(0/0)", "2"),
            ("eth_type(0x86dd),ipv6(src=fe80::1,dst=fe80::2,proto=17,frag=no),udp(src=5,dst=6)", "2,3"),
            ("eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0,proto=1,frag=no),icmp(type=8,code=0)", "2"),
            ("eth_type(0x0806),arp(sip=10.0.0.1,op=1)", "set(eth(dst=02:00:00:00:00:77)),2"),
            ("eth_type(0x0800),ipv4(src=10.0.0.1,frag=no)", "set(ipv4(tos=0x8,ttl=9)),2"),
            ("eth_type(0x1234)", "push_vlan(vid=5,pcp=0),3"),
        ];
        let (text, actions) = matches[which];
        let eth = "recirc_id(0),in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)";
        let first = flow(&format!("{eth},{text}"), actions);
        let pipeline = pipeline();
        let Some(mut forms) = knowing(&pipeline, &first) else { return Ok(()) };
        let mut second = first.clone();
        for (word, bits) in changes {
            let mask = second.matching.mask.0.words()[word];
            second.matching.key.words_mut()[word] ^= bits & mask;
        }
        if let Some(plan) = known(&mut forms, &second, 0) {
            prop_assert_eq!(Some(plan), in_full(&pipeline, &second), "{:?}", second);
        }
    }
}
