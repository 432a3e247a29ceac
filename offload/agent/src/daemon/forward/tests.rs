//! The forwarder with the simulated NIC in this process.

mod meters;

use super::*;
use crate::engine::{Harness, NicSetup, Simulated};
use crate::open;
use flowlift_driver::fl1::Fl1;
use flowlift_flow::Action;
use flowlift_flow::action::Userspace;
use flowlift_flow::text::{NoNames, parse_dump_line};
use flowlift_offload::planner::State;
use flowlift_ovs::socket::Socket;
use flowlift_sim::{FaultPlan, Profile};
use flowlift_softpath::actions::compile;
use flowlift_softpath::{Config, Datapath};

const ONE: DpIndex = DpIndex(11);
const TWO: DpIndex = DpIndex(22);

struct Bench {
    forwarder: Forwarder,
    harness: Simulated,
    tables: BTreeMap<DpIndex, Datapath>,
}

impl Bench {
    /// Two datapaths.
    fn new() -> Self {
        let NicSetup::<Fl1, Simulated> { nic, harness, .. } =
            open::open(Profile::standard(), 1, FaultPlan::default(), &[], 1_000_000).unwrap();
        // Any port ID that is free; nobody is sent anything.
        let base = 0x4000_0000 + std::process::id() * 16;
        let socket = (base..base + 16).find_map(|id| Socket::bind(id).ok()).expect("a Netlink socket");
        let nic = NicSide::new(Box::new(nic));
        let mut forwarder =
            Forwarder::new(Some(nic), Upcalls::new(socket.sender()), Box::new(|_, _| {})).unwrap();
        let mut tables = BTreeMap::new();
        for dp in [ONE, TWO] {
            let table = Datapath::new(Config { max_flows: 64, ..Config::default() });
            forwarder.add_datapath(dp, table.worker());
            tables.insert(dp, table);
        }
        Self { forwarder, harness, tables }
    }

    /// Turns of forwarder and device, as many as everything takes.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.harness.step();
            self.forwarder.nic_turn();
        }
    }

    /// Puts a flow; `any` lets it match any ingress port.
    fn put(&mut self, dp: DpIndex, text: &str, any: bool) -> FlowId {
        let line = format!("{text}, packets:0, bytes:0, used:never, actions:2");
        let mut flow = parse_dump_line(&line, &NoNames).unwrap().flow;
        if any {
            (flow.matching.key.in_port, flow.matching.mask.0.in_port) = (0, 0);
        }
        let put = self.tables.get_mut(&dp).unwrap().put(&flow).unwrap();
        self.forwarder.flow_put(dp, put.id, now_ns());
        self.settle();
        put.id
    }

    fn state(&mut self, dp: DpIndex, id: FlowId) -> (State, String) {
        let look = self.forwarder.look(dp, &[id])[0].unwrap();
        (look.state, look.reason.map_or(String::new(), |reason| reason.to_string()))
    }

    /// Puts a frame on a port's wire; the ports that it leaves by.
    fn ways(&mut self, port: u16) -> Vec<u16> {
        let frame = [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x12, 0x34][..], &[0; 50]].concat();
        self.harness.inject(NicPort(port), &frame);
        self.settle();
        let mut ways = Vec::new();
        self.harness.collect(&mut |port, _| ways.push(port.0));
        ways
    }

    fn misses(&self, dp: DpIndex) -> u64 {
        self.tables[&dp].counters().misses
    }
}

#[test]
fn datapaths_that_share_a_nic_never_see_each_others_packets() {
    let mut bench = Bench::new();
    let forwarder = &mut bench.forwarder;
    // The same numbers in both.
    assert!(forwarder.add_nic_port(ONE, PortNo(1), NicPort(1), &[]));
    assert!(forwarder.add_nic_port(ONE, PortNo(2), NicPort(2), &[]));
    assert!(forwarder.add_nic_port(TWO, PortNo(1), NicPort(3), &[]));
    assert!(forwarder.add_nic_port(TWO, PortNo(2), NicPort(4), &[]));
    assert!(!forwarder.add_nic_port(TWO, PortNo(3), NicPort(1), &[]), "the port is another datapath's");

    let any = bench.put(TWO, "recirc_id(0),eth(dst=02:00:00:00:00:09),eth_type(0x1234)", true);
    assert_eq!(bench.state(TWO, any), (State::Hardware, String::new()));
    assert_eq!(bench.ways(3), [4]);
    assert_eq!(bench.ways(1), [0_u16; 0], "a flow of the other datapath");
    assert_eq!((bench.misses(ONE), bench.misses(TWO)), (1, 0));

    let exact = bench.put(ONE, "recirc_id(0),in_port(1),eth(dst=02:00:00:00:00:09),eth_type(0x1234)", false);
    assert_eq!(bench.ways(1), [2]);
    assert_eq!(bench.ways(3), [4]);
    let counted = bench.forwarder.look(ONE, &[exact])[0].unwrap().counters;
    assert_eq!((counted.packets, counted.bytes), (1, 64));

    // A port that changes hands leaves its flows behind.
    bench.forwarder.remove_port(ONE, PortNo(1));
    bench.settle();
    let (state, reason) = bench.state(ONE, exact);
    assert!(state == State::Software && reason.contains("port 1 "), "{state:?}: {reason}");
    assert!(bench.forwarder.add_nic_port(TWO, PortNo(7), NicPort(1), &[]));
    bench.settle();
    assert_eq!(bench.ways(1), [4], "the other datapath's flow takes packets from any of its ports");

    // Alone, the datapath goes on under its numbers.
    bench.forwarder.remove_datapath(ONE);
    bench.settle();
    assert_eq!(bench.ways(3), [4]);
    assert_eq!(bench.forwarder.nic().unwrap().datapaths().collect::<Vec<_>>(), [TWO]);
    let nic = bench.forwarder.nic().unwrap();
    assert_eq!((nic.driver().violation_count(), nic.planner().stats().lowering_bugs), (Some(0), 0));
}

/// What the user asks to be done to a packet.
fn given(len: usize, actions: &[Action]) -> GivenPacket {
    let mut packet = Packet::new();
    packet.fill(&vec![0x55; len], Metadata { in_port: 1, ..Metadata::default() });
    GivenPacket { packet, upcall_pid: None, program: compile(actions).unwrap() }
}

#[test]
fn what_is_no_frame_leaves_by_no_port_for_frames() {
    let mut bench = Bench::new();
    assert!(bench.forwarder.add_nic_port(ONE, PortNo(1), NicPort(1), &[]));
    let to_nic = [Action::Output(PortNo(1)), Action::PopEth, Action::Output(PortNo(1))];
    bench.forwarder.execute(ONE, given(60, &to_nic));
    bench.settle();
    let mut ways = Vec::new();
    bench.harness.collect(&mut |port, frame| ways.push((port.0, frame.len())));
    assert_eq!(ways, [(1, 60)]);
    let counters = bench.forwarder.route_counters();
    assert_eq!((counters.no_ethernet, counters.no_port), (1, 0));
}

/// An entry of the NIC begins with Ethernet's header.
#[test]
fn flows_of_bare_packets_stay_in_software_and_say_why() {
    let mut bench = Bench::new();
    for port in [1, 2] {
        assert!(bench.forwarder.add_nic_port(ONE, PortNo(port), NicPort(port as u16), &[]));
    }
    let matching =
        "recirc_id(0),in_port(1),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(proto=17,frag=no)";
    let bare = bench.put(ONE, matching, false);
    let (state, reason) = bench.state(ONE, bare);
    assert!(state == State::Software && reason.contains("packet_type"), "{state:?}: {reason}");
}

#[test]
fn packets_for_missing_ports_runts_and_giants_are_counted_and_harm_nobody() {
    let mut bench = Bench::new();
    let actions = [
        Action::Output(PortNo(77)),
        Action::Userspace(Userspace { pid: 5, ..Default::default() }),
        Action::PushVlan { tpid: 0x8100, tci: 0x1001 },
        Action::Output(PortNo(65_534)),
        Action::Recirc(9),
    ];
    let lengths = [0, 1, 13, 14, 59, 1514, 65_535, 262_144];
    for len in lengths {
        bench.forwarder.execute(ONE, given(len, &actions));
    }
    let sent = lengths.len() as u64;
    assert_eq!(bench.forwarder.route_counters().no_port, 2 * sent);
    let counters = bench.tables[&ONE].counters();
    // Nobody is there to take an upcall, neither the action's nor the miss after the recirculation.
    assert_eq!((counters.recirculations, counters.misses, counters.lost), (sent, sent, 2 * sent));
    // A datapath that is gone has nothing to do them with.
    bench.forwarder.execute(DpIndex(99), given(60, &actions));
    assert_eq!(bench.forwarder.route_counters().no_port, 2 * sent);
}
