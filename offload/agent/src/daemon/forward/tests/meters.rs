//! Meters: softpath and NIC together let through what the softpath alone does, packet for packet, whatever happens on the way.

use super::*;
use crate::engine::Injected;
use flowlift_bus::DeviceModel;
use flowlift_offload::planner;
use flowlift_sim::Clock;
use flowlift_softpath::{MeterBand, MeterConfig, MeterStats, MeterUnit, Put};
use proptest::prelude::*;

/// Turns that anything here takes; all of them within a millisecond.
const TURNS: usize = 40;
const METER: u32 = 4;
/// A flow that the NIC can have, and one that it cannot, as port 3 is none of its.
const FLOWS: [&str; 2] = [
    "recirc_id(0),in_port(1),eth(dst=02:00:00:00:00:09),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, \
     actions:meter(4),push_vlan(vid=7,pcp=0),2",
    "recirc_id(0),in_port(1),eth(dst=02:00:00:00:00:0a),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, \
     actions:meter(4),2,3",
];

/// The forwarder with a datapath on the NIC, and the softpath alone beside it, by one clock.
struct Pair {
    bench: Bench,
    alone: (Datapath, Worker),
    /// The time, in milliseconds.
    now: u64,
}

/// Ports of what a softpath sends.
#[derive(Default)]
struct Ports(Vec<u32>);

impl flowlift_softpath::Sink for Ports {
    fn output(&mut self, port: PortNo, _: &[u8]) {
        self.0.push(port.0);
    }
    fn upcall(&mut self, _: flowlift_softpath::Upcall<'_>) -> bool {
        true
    }
}

/// A frame for one of the flows; with IP options the NIC's parser does not take it.
fn frame(flow: usize, len: usize, options: bool) -> Vec<u8> {
    let ihl = if options { 6 } else { 5 };
    let mut f = vec![2, 0, 0, 0, 0, 9 + flow as u8, 2, 0, 0, 0, 0, 1, 8, 0, 0x40 | ihl, 0];
    f.extend_from_slice(&((len - 14) as u16).to_be_bytes());
    f.extend_from_slice(&[0, 1, 0, 0, 64, 99, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    f.resize(len, 1);
    f
}

fn meter(unit: MeterUnit, bands: &[(u32, u32)]) -> MeterConfig {
    MeterConfig {
        unit,
        bands: bands.iter().map(|(rate, burst)| MeterBand { rate: *rate, burst: *burst }).collect(),
    }
}

impl Pair {
    fn new() -> Self {
        let mut bench = Bench::new();
        for port in [1, 2] {
            assert!(bench.forwarder.add_nic_port(ONE, PortNo(port), NicPort(port as u16), &[]));
        }
        let alone = Datapath::new(Config { max_flows: 64, ..Config::default() });
        let worker = alone.worker();
        Self { bench, alone: (alone, worker), now: 10 }
    }

    /// Turns by the injected clock, which stays within its millisecond.
    fn settle(&mut self) {
        self.set_clock();
        for _ in 0..TURNS {
            self.bench.harness.step();
            let Forwarder { nic: Some(nic), lanes, exits, .. } = &mut self.bench.forwarder else { panic!() };
            nic.turn(lanes, exits, self.now * 1_000_000);
        }
        assert_eq!(self.bench.harness.clock.now_ns() / 1_000_000, self.now);
    }

    fn set_clock(&self) {
        let clock = &self.bench.harness.clock;
        clock.set((self.now * 1_000_000).max(clock.now_ns()));
    }

    fn table(&mut self) -> &mut Datapath {
        self.bench.tables.get_mut(&ONE).unwrap()
    }

    fn set_meter(&mut self, config: Option<&MeterConfig>) {
        for n in 0..2 {
            let dp = if n == 0 { &mut self.alone.0 } else { self.table() };
            match config {
                Some(config) => drop(dp.set_meter(METER, config.clone()).unwrap()),
                None => drop(dp.delete_meter(METER)),
            }
        }
        self.bench.forwarder.meter_changed(ONE, METER);
        self.later();
    }

    /// What was told takes effect, and a millisecond begins.
    fn later(&mut self) {
        self.settle();
        self.now += 1;
        self.settle();
    }

    fn put(&mut self, n: usize) -> FlowId {
        let flow = parse_dump_line(FLOWS[n], &NoNames).unwrap().flow;
        self.alone.0.put(&flow).unwrap();
        let Put { id, .. } = self.table().put(&flow).unwrap();
        self.bench.forwarder.flow_put(ONE, id, 0);
        self.later();
        id
    }

    /// Takes the flow out of the NIC; software has its packets.
    fn remove(&mut self, id: FlowId) {
        let Forwarder { nic: Some(nic), lanes, .. } = &mut self.bench.forwarder else { panic!() };
        nic.remove(lanes, ONE, &[id], self.now * 1_000_000);
        self.later();
    }

    fn state(&mut self, id: FlowId) -> (State, String) {
        self.bench.state(ONE, id)
    }

    /// Packets that the NIC's tables handled.
    fn in_tables(&mut self, id: FlowId) -> u64 {
        self.bench.forwarder.look(ONE, &[id])[0].unwrap().counters.packets
    }

    /// A packet from the wire; true if it got through, which both sides must agree on.
    fn packet(&mut self, flow: usize, len: usize, options: bool) -> bool {
        let frame = frame(flow, len, options);
        let mut packet = Packet::new();
        packet.fill(&frame, Metadata { in_port: 1, ..Metadata::default() });
        let mut sent = Ports::default();
        self.alone.1.process_one(&mut packet, self.now, &mut sent);
        assert!(matches!(self.bench.harness.inject(NicPort(1), &frame), Injected::InSight));
        self.settle();
        let mut out = Vec::new();
        self.bench.harness.collect(&mut |port, _| out.push(u32::from(port.0)));
        let expected: Vec<u32> = sent.0.into_iter().filter(|port| *port == 2).collect();
        assert_eq!(out, expected, "at {} ms: {len} bytes, flow {flow}, options {options}", self.now);
        !out.is_empty()
    }

    /// A packet that the user has, with the flow's actions: an upcall's first packet.
    fn execute(&mut self, len: usize) {
        self.set_clock();
        let actions = [Action::Meter(METER), Action::Output(PortNo(2))];
        let mut sent = Ports::default();
        let GivenPacket { mut packet, program, .. } = given(len, &actions);
        self.alone.1.execute(&program, &mut packet, self.now, &mut sent);
        let mut out = Ports::default();
        let GivenPacket { mut packet, program, .. } = given(len, &actions);
        let lane = self.bench.forwarder.lanes.get_mut(&ONE).unwrap();
        lane.worker.execute(&program, &mut packet, self.now, &mut out);
        assert_eq!(out.0, sent.0, "at {} ms: {len} bytes, executed", self.now);
    }

    /// The device is reset behind the driver's back.
    fn reset(&mut self) {
        self.bench.harness.function.model().reset();
    }

    /// Time passes until the driver has found out what happened to the device.
    fn recover(&mut self) {
        for _ in 0..5 {
            // The planner leaves 100 ms between two resets.
            self.now += 30;
            self.later();
        }
    }

    /// What both count; `None` without a meter.
    fn stats(&mut self) -> Option<MeterStats> {
        let both = self.table().meter(METER).map(|(_, stats)| stats);
        assert_eq!(both, self.alone.0.meter(METER).map(|(_, stats)| stats));
        both
    }

    fn planner(&self) -> planner::Stats {
        self.bench.forwarder.nic().unwrap().planner().stats()
    }

    fn finish(mut self) {
        self.stats();
        self.check_nic();
    }

    fn check_nic(&self) {
        let nic = self.bench.forwarder.nic().unwrap();
        assert_eq!((nic.driver().violation_count(), nic.planner().stats().lowering_bugs), (Some(0), 0));
    }
}

#[test]
fn a_metered_flow_is_in_the_nic_and_has_one_bucket_with_the_softpath() {
    let mut p = Pair::new();
    p.set_meter(Some(&meter(MeterUnit::Pktps, &[(10, 4)])));
    let (hardware, software) = (p.put(0), p.put(1));
    assert_eq!(p.state(hardware), (State::Hardware, String::new()));
    assert_eq!(p.state(software).0, State::Software);
    // The tables, the slow path of the same flow, a flow of software, and the user, from one bucket of 4.
    assert!(p.packet(0, 60, false) && p.packet(0, 60, true) && p.packet(1, 60, false));
    p.execute(60);
    assert!(!p.packet(0, 60, false) && !p.packet(0, 60, true) && !p.packet(1, 60, false));
    p.now += 99;
    assert!(!p.packet(1, 60, false), "a packet is earned in 100 ms");
    p.now += 1;
    assert!(p.packet(0, 60, false) && !p.packet(0, 60, false));
    assert_eq!(p.in_tables(hardware), 4);
    let stats = p.stats().unwrap();
    assert_eq!((stats.total.packets, stats.bands[0].packets), (10, 5));
    p.finish();
}

#[test]
fn a_meter_that_is_set_anew_is_full_at_once_and_the_flow_stays_where_it_is() {
    let mut p = Pair::new();
    p.set_meter(Some(&meter(MeterUnit::Pktps, &[(1, 1)])));
    let flow = p.put(0);
    assert!(p.packet(0, 60, false) && !p.packet(0, 60, false));
    let replaced = p.planner().replaced;
    // 125 bytes, of which 60 are left after the first packet.
    p.set_meter(Some(&meter(MeterUnit::Kbps, &[(8, 1)])));
    assert!(p.packet(0, 65, false) && !p.packet(0, 61, false) && p.packet(0, 60, true));
    assert_eq!((p.state(flow).0, p.planner().replaced), (State::Hardware, replaced));
    p.finish();
}

#[test]
fn a_flow_whose_meter_the_nic_cannot_be_is_softwares_and_says_why() {
    let mut p = Pair::new();
    let flow = p.put(0);
    let mut expect = |config: Option<MeterConfig>, why: &str| {
        p.set_meter(config.as_ref());
        let (state, reason) = p.state(flow);
        assert!(state == State::Software && reason.contains(why), "{state:?}: {reason}");
        for _ in 0..3 {
            p.packet(0, 60, false);
        }
        p.stats();
    };
    expect(None, "asks a meter that there is not; adding the meter would lift it");
    expect(Some(meter(MeterUnit::Pktps, &[(1, 1), (2, 2)])), "a meter of 2 bands");
    expect(Some(meter(MeterUnit::Kbps, &[])), "a meter of 0 bands");
    expect(Some(meter(MeterUnit::Pktps, &[(0, 1)])), "rate 0");
    expect(Some(meter(MeterUnit::Pktps, &[(1, 0)])), "burst size 0");
    p.set_meter(Some(&meter(MeterUnit::Pktps, &[(1, 1)])));
    assert_eq!(p.state(flow), (State::Hardware, String::new()));
    assert!(p.packet(0, 60, false) && !p.packet(0, 60, false));
    // And back: the bucket is the new meter's.
    p.set_meter(Some(&meter(MeterUnit::Pktps, &[(1, 1), (1, 1)])));
    assert_eq!(p.state(flow).0, State::Software);
    assert!(p.packet(0, 60, false) && !p.packet(0, 60, false));
    p.finish();
}

#[test]
fn the_nics_meters_go_to_those_who_need_them() {
    let mut p = Pair::new();
    let max = p.bench.forwarder.nic().unwrap().driver().caps().meters;
    let metered = |n: u32| {
        let text = FLOWS[0].replace("00:09", &format!("{:02x}:{:02x}", 1 + n / 256, n % 256));
        parse_dump_line(&text.replace("meter(4)", &format!("meter({n})")), &NoNames).unwrap().flow
    };
    *p.table() = Datapath::new(Config { max_flows: 512, ..Config::default() });
    let worker = p.table().worker();
    p.bench.forwarder.lanes.get_mut(&ONE).unwrap().worker = worker;
    let ids: Vec<FlowId> = (0..=max)
        .map(|n| {
            p.table().set_meter(n, meter(MeterUnit::Pktps, &[(1, 1)])).unwrap();
            let id = p.table().put(&metered(n)).unwrap().id;
            p.bench.forwarder.flow_put(ONE, id, 0);
            id
        })
        .collect();
    p.later();
    let states: Vec<_> = ids.iter().map(|id| p.state(*id)).collect();
    let software: Vec<_> = states.iter().filter(|(state, _)| *state != State::Hardware).collect();
    assert_eq!(software.len(), 1, "{software:?}");
    assert!(software[0].1.contains("one meter more than the 256 of the NIC"), "{software:?}");
    let in_nic = states.iter().position(|(state, _)| *state == State::Hardware).unwrap();
    p.remove(ids[in_nic]);
    let left = ids.iter().enumerate().filter(|(n, _)| *n != in_nic).map(|(_, id)| *id);
    assert!(left.collect::<Vec<_>>().into_iter().all(|id| p.state(id).0 == State::Hardware));
    p.check_nic();
}

#[derive(Debug, Clone)]
enum Step {
    Packet {
        flow: usize,
        len: usize,
        options: bool,
    },
    Execute(usize),
    Wait(u64),
    /// Takes the first flow out of the NIC, or puts it there.
    Move,
    Set(MeterConfig),
    Delete,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let unit = prop_oneof![Just(MeterUnit::Kbps), Just(MeterUnit::Pktps)];
    let bands = prop_oneof![
        6 => (1..50u32, 1..12u32).prop_map(|band| vec![band]),
        1 => Just(vec![(u32::MAX, u32::MAX)]),
        1 => prop::collection::vec((0..40u32, 0..12u32), 0..3),
    ];
    let set = (unit, bands).prop_map(|(unit, bands)| Step::Set(meter(unit, &bands)));
    let step = prop_oneof![
        20 => (0..2usize, 60..1500usize, any::<bool>())
            .prop_map(|(flow, len, options)| Step::Packet { flow, len, options }),
        4 => (60..1500usize).prop_map(Step::Execute),
        6 => prop_oneof![1..60u64, 1..5000u64].prop_map(Step::Wait),
        2 => Just(Step::Move),
        2 => set.clone(),
        1 => Just(Step::Delete),
        1 => Just(Step::Reset),
    ];
    (set, prop::collection::vec(step, 1..60)).prop_map(|(first, mut steps)| {
        steps.insert(0, first);
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn packets_cannot_tell_who_has_the_bucket(steps in steps()) {
        let mut p = Pair::new();
        let (mut first, _) = (Some(p.put(0)), p.put(1));
        for step in steps {
            match step {
                Step::Packet { flow, len, options } => {
                    p.packet(flow, len, options);
                }
                Step::Execute(len) => p.execute(len),
                Step::Wait(ms) => p.now += ms,
                Step::Move => match first.take() {
                    Some(id) => p.remove(id),
                    None => first = Some(p.put(0)),
                },
                Step::Set(config) => p.set_meter(Some(&config)),
                Step::Delete => p.set_meter(None),
                Step::Reset => {
                    p.reset();
                    // Nobody has noticed, but who asks the bucket.
                    p.execute(100);
                    p.recover();
                }
            }
            p.stats();
        }
        p.finish();
    }
}
