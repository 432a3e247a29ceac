//! Packets on which something is left to do: processing them and finishing what comes out gives what finishing them first and
//! processing each segment gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "../port/tests/large/mod.rs"]
mod large;

use flowlift_flow::{Action, AttrSet, Flow, Header, Key, Mask, Match, Metadata, PortNo};
use flowlift_port::offload::finish;
use flowlift_softpath::{
    Batch, Config, Datapath, Dropped, Offload, Outgoing, Packet, Reference, Sink, Upcall,
};
use large::{Large, Shape, build, large, verify_checksums};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What goes where, in order: outputs by port, and what the user gets.
#[derive(Debug, Default, PartialEq)]
struct Results {
    ports: BTreeMap<u32, Vec<Vec<u8>>>,
    /// By the action's number.
    actions: BTreeMap<u32, Vec<Vec<u8>>>,
    misses: Vec<Vec<u8>>,
    dropped: usize,
}

impl Sink for Results {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.ports.entry(port.0).or_default().push(one_zero(packet));
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        match upcall {
            Upcall::Miss { packet, .. } => {
                assert_eq!(packet.offload, None, "finished for the user");
                self.misses.push(packet.bytes().to_vec());
            }
            Upcall::Action(action) => {
                self.actions.entry(action.userspace.pid).or_default().push(one_zero(action.packet));
            }
        }
        true
    }

    fn dropped(&mut self, _: Dropped) {
        self.dropped += 1;
    }
}

/// A frame whose TCP checksum is one form of zero, made the other: an update and a new sum may differ in it, and nobody who checks
/// it sees that.
fn one_zero(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut l3 = 14;
    while matches!(frame[l3 - 2..l3], [0x81, 0x00] | [0x88, 0xa8]) {
        l3 += 4;
    }
    if frame[l3 - 2..l3] == [0x88, 0x47] {
        l3 += 4;
    }
    let (l4, proto) = if frame[l3] >> 4 == 4 { (l3 + 20, frame[l3 + 9]) } else { (l3 + 40, frame[l3 + 6]) };
    if proto == 6 && frame.get(l4 + 16..l4 + 18) == Some(&[0, 0]) {
        frame[l4 + 16..l4 + 18].fill(0xff);
    }
    frame
}

/// One flow for everything with recirculation ID 0, and one for ID 1 that outputs to port 9.
fn flows(actions: &[Action]) -> [Flow; 2] {
    let flow = |recirc_id: u32, actions: &[Action]| {
        let mut mask = Mask::default();
        mask.0.recirc_id = u32::MAX;
        let key = Key { recirc_id, ..Key::default() };
        Flow {
            ufid: None,
            matching: Match { key, mask, attrs: AttrSet::default() },
            actions: actions.to_vec(),
        }
    };
    [flow(0, actions), flow(1, &[Action::Output(PortNo(9))])]
}

/// What becomes of the frame as it is, in the softpath.
fn unfinished_first(flows: &[Flow], large: &Large) -> (Results, u64, u64) {
    let datapath = &mut Datapath::new(Config::default());
    let ids: Vec<_> = flows.iter().map(|flow| datapath.put(flow).unwrap().id).collect();
    let mut worker = datapath.worker();
    let mut batch = Batch::new();
    let packet = batch.next_packet().unwrap();
    packet.fill(&large.frame, Metadata::default());
    packet.offload = Some(large.offload);
    let mut results = Results::default();
    worker.process(&mut batch, 1, &mut results);
    let stats = datapath.stats(ids[0]).unwrap();
    (results, stats.packets, stats.bytes)
}

/// The same, segment by segment, by the linear reference.
fn finished_first(flows: &[Flow], large: &Large) -> Results {
    let mut reference = Reference::new(1);
    for flow in flows {
        reference.put(flow).unwrap();
    }
    let mut results = Results::default();
    finish(&large.frame, &large.offload, &mut Vec::new(), &mut |segment| {
        let mut packet = Packet::new();
        packet.fill(segment, Metadata::default());
        reference.process(&mut packet, 1, &mut results);
    })
    .unwrap();
    results
}

fn arb_action() -> impl Strategy<Value = Action> {
    let mac = any::<[u8; 6]>();
    prop_oneof![
        3 => Just(Action::Output(PortNo(1))),
        1 => Just(Action::Userspace(Default::default())),
        1 => Just(Action::Recirc(1)),
        1 => (mac, any::<[u8; 6]>()).prop_map(|(src, dst)| Action::Set(Header::Ethernet { src, dst })),
        2 => (any::<u32>(), any::<u32>(), any::<u8>()).prop_map(|(src, dst, tos)| Action::SetMasked {
            value: Header::Ipv4 { src: src.into(), dst: dst.into(), proto: 0, tos, ttl: 0, frag: 0 },
            mask: Header::Ipv4 { src: u32::MAX.into(), dst: u32::MAX.into(), proto: 0, tos: 0xff, ttl: 0, frag: 0 },
        }),
        2 => (any::<u128>(), any::<u128>()).prop_map(|(src, dst)| Action::SetMasked {
            value: Header::Ipv6 { src: src.into(), dst: dst.into(), label: 3, proto: 0, tclass: 0, hlimit: 0, frag: 0 },
            mask: Header::Ipv6 {
                src: u128::MAX.into(), dst: u128::MAX.into(), label: 0xf, proto: 0, tclass: 0, hlimit: 0, frag: 0
            },
        }),
        2 => (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Action::Set(Header::Tcp { src, dst })),
        2 => (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Action::Set(Header::Udp { src, dst })),
        1 => (0..0x1000u16).prop_map(|tci| Action::PushVlan { tpid: 0x8100, tci: tci | 0x1000 }),
        1 => Just(Action::PopVlan),
        1 => Just(Action::PushMpls { lse: 0x0006_4140, eth_type: 0x8847 }),
        1 => Just(Action::PopMpls { eth_type: 0x0800 }),
        1 => Just(Action::DecTtl { exception: vec![] }),
        // Shorter than every segment, or longer: between them, segments would go different ways.
        1 => prop_oneof![Just(10u16), Just(9300)]
            .prop_map(|pkt_len| Action::CheckPktLen { pkt_len, greater: vec![], less_or_equal: vec![] }),
        1 => Just(Action::Clone(vec![])),
    ]
}

/// The same actions with outlets of their own, since segment by segment the outputs of different actions mix. Only the first
/// recirculation stays.
fn numbered(actions: Vec<Action>) -> Vec<Action> {
    let mut recirculated = false;
    let kept = actions
        .into_iter()
        .filter(|a| *a != Action::Recirc(1) || !std::mem::replace(&mut recirculated, true));
    let mut number = 100;
    let mut port = || {
        number += 1;
        PortNo(number)
    };
    kept.map(|action| match action {
        Action::Output(_) => Action::Output(port()),
        Action::Userspace(_) => {
            Action::Userspace(flowlift_flow::action::Userspace { pid: port().0, ..Default::default() })
        }
        Action::CheckPktLen { pkt_len, .. } => Action::CheckPktLen {
            pkt_len,
            greater: vec![Action::PopVlan, Action::Output(port())],
            less_or_equal: vec![Action::Output(port())],
        },
        Action::Clone(_) => Action::Clone(vec![Action::PopVlan, Action::Output(port())]),
        other => other,
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn finishing_first_and_processing_first_are_the_same(
        large in large(),
        cut: bool,
        actions in prop::collection::vec(arb_action(), 0..6),
    ) {
        let mut large = large;
        if !cut {
            large.offload.gso = None;
        }
        let flows = flows(&numbered(actions));
        let (ours, packets, bytes) = unfinished_first(&flows, &large);
        let mut expected = finished_first(&flows, &large);
        // One packet is dropped once, however many segments it has.
        expected.dropped = expected.dropped.min(ours.dropped);
        prop_assert_eq!(&ours, &expected);
        // As Linux counts: one packet, with all its bytes.
        prop_assert_eq!((packets, bytes), (1, large.frame.len() as u64));
    }
}

fn tcp(payload: usize, size: u16) -> Large {
    build(Shape {
        tags: 0,
        ipv6: false,
        tcp: true,
        options: 3,
        flags: 0x18,
        id: 1,
        seq: 1,
        payload,
        size,
        seed: 3,
    })
}

#[test]
fn a_large_packet_that_no_flow_matches_is_one_miss_and_an_upcall_for_each_segment() {
    let large = tcp(3000, 1000);
    let datapath = Datapath::new(Config::default());
    let mut worker = datapath.worker();
    let mut packet = Packet::new();
    packet.fill(&large.frame, Metadata::default());
    packet.offload = Some(large.offload);
    let mut results = Results::default();
    worker.process_one(&mut packet, 1, &mut results);
    assert_eq!((results.misses.len(), worker.counters().misses), (3, 1));
    for segment in &results.misses {
        assert_eq!(segment.len(), 14 + 20 + 32 + 1000);
        verify_checksums(segment, 14, 34);
    }
}

#[test]
fn the_length_that_is_checked_is_a_segments() {
    let large = tcp(3000, 1000);
    let segment = 14 + 20 + 32 + 1000;
    for (pkt_len, port) in [(segment, 2), (segment - 1, 1)] {
        let check = Action::CheckPktLen {
            pkt_len,
            greater: vec![Action::Output(PortNo(1))],
            less_or_equal: vec![Action::Output(PortNo(2))],
        };
        let (results, ..) = unfinished_first(&flows(&[check]), &large);
        assert_eq!(results.ports.keys().copied().collect::<Vec<_>>(), [port], "check_pkt_len({pkt_len})");
    }
}

#[test]
fn a_truncated_large_packet_is_truncated_once_as_in_linux() {
    let large = tcp(3000, 1000);
    let header = 14 + 20 + 32;
    // Of the whole: a segment and a half; less than a segment; less than the headers.
    for (max_len, lens) in [
        (header + 1500, vec![header + 1000, header + 500]),
        (header + 900, vec![header + 900]),
        (30, vec![30]),
    ] {
        let trunc = Action::Trunc { max_len: max_len as u32 };
        let (results, ..) = unfinished_first(&flows(&[trunc, Action::Output(PortNo(1))]), &large);
        let got: Vec<usize> = results.ports[&1].iter().map(Vec::len).collect();
        assert_eq!(got, lens, "trunc({max_len})");
    }
}

/// A sink that passes unfinished packets on.
#[derive(Default)]
struct PassOn(Vec<(Vec<u8>, Option<Offload>)>);

impl Sink for PassOn {
    fn output(&mut self, _: PortNo, packet: &[u8]) {
        self.0.push((packet.to_vec(), None));
    }

    fn output_with(&mut self, _: PortNo, packet: Outgoing<'_>) {
        self.0.push((packet.bytes.to_vec(), packet.offload));
    }

    fn upcall(&mut self, _: Upcall<'_>) -> bool {
        false
    }
}

#[test]
fn a_port_that_understands_gets_the_packet_as_it_is_with_the_headers_that_moved_it() {
    let large = tcp(3000, 1000);
    let tag = Action::PushVlan { tpid: 0x8100, tci: 0x1007 };
    let mut datapath = Datapath::new(Config::default());
    for flow in flows(&[tag, Action::Output(PortNo(1))]) {
        datapath.put(&flow).unwrap();
    }
    let mut packet = Packet::new();
    packet.fill(&large.frame, Metadata::default());
    packet.offload = Some(large.offload);
    let mut sink = PassOn::default();
    datapath.worker().process_one(&mut packet, 1, &mut sink);
    let mut expected = large.frame.clone();
    expected.splice(12..12, [0x81, 0, 0, 7]);
    assert_eq!(sink.0, [(expected, large.offload.inserted(12, 4))]);
    // What was in the buffer before leaves nothing behind.
    packet.fill(&large.frame, Metadata::default());
    assert_eq!(packet.offload, None);
}
