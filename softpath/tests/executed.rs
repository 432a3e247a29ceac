//! Packets that the user gives with their actions (`OVS_PACKET_CMD_EXECUTE`), and what goes up with a packet that an action
//! sends to the user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod common;

use common::*;
use flowlift_flow::action::{HashAlg, Userspace};
use flowlift_flow::{Action, Key, PortNo};
use flowlift_softpath::actions::{DropReason, compile};
use flowlift_softpath::{Config, Datapath, Dropped, MeterBand, MeterConfig, MeterUnit, Sink, Upcall, Worker};

fn out(port: u32) -> Action {
    Action::Output(PortNo(port))
}

fn execute(worker: &mut Worker, actions: &[Action], now: u64, sink: &mut impl Sink) {
    let program = compile(actions).unwrap();
    worker.execute(&program, &mut packet(&udp(1, 1), 1), now, sink);
}

#[test]
fn a_meter_holds_for_executed_packets() {
    let mut dp = Datapath::new(Config::default());
    let bands = vec![MeterBand { rate: 10, burst: 3 }];
    dp.set_meter(4, MeterConfig { unit: MeterUnit::Pktps, bands }).unwrap();
    let (mut worker, mut sink) = (dp.worker(), Recorder::default());
    for _ in 0..5 {
        execute(&mut worker, &[Action::Meter(4), out(2)], 1000, &mut sink);
    }
    assert_eq!(sink.ports(), [2, 2, 2], "as many as the bucket holds");
    let exceeded = Event::Dropped(Dropped::Action(DropReason::Meter(4)));
    assert_eq!(sink.events[3..], [exceeded.clone(), exceeded]);
    let (_, stats) = dp.meter(4).unwrap();
    assert_eq!((stats.total.packets, stats.bands[0].packets, stats.used), (5, 2, Some(1000)));
}

#[test]
fn an_executed_packet_is_no_flows_until_it_is_recirculated() {
    let mut dp = Datapath::new(Config::default());
    let first = dp.put(&port_flow(1, 9)).unwrap().id;
    let again = Key { recirc_id: 7, ..Key::default() };
    let second = dp.put(&flow(&again, mask(0), vec![out(5)])).unwrap().id;
    let (mut worker, mut sink) = (dp.worker(), Recorder::default());
    execute(&mut worker, &[Action::Recirc(7), out(2)], 1234, &mut sink);
    assert_eq!(sink.ports(), [5, 2], "in the order of the actions");
    assert_eq!(dp.stats(first).unwrap().packets, 0);
    let stats = dp.stats(second).unwrap();
    assert_eq!((stats.packets, stats.used), (1, Some(1234)));
    let counters = dp.counters();
    assert_eq!((counters.packets, counters.hits, counters.recirculations), (0, 1, 1));
}

#[test]
fn a_loop_of_recirculations_ends_where_the_kernels_does_and_is_counted() {
    let mut dp = Datapath::new(Config::default());
    let again = Key { recirc_id: 7, ..Key::default() };
    dp.put(&flow(&again, mask(0), vec![out(5), Action::Recirc(7)])).unwrap();
    let (mut worker, mut sink) = (dp.worker(), Recorder::default());
    // Within clone and sample, too: each is a way round the loop. The first one takes all that the kernel would put off for the
    // packet, the second one the three levels that need none of that.
    let sample = Action::Sample { probability: u32::MAX, actions: vec![Action::Recirc(7)] };
    execute(&mut worker, &[Action::Clone(vec![Action::Recirc(7)]), sample, out(2)], 0, &mut sink);
    let mut expected = vec![5; 33 + 3];
    expected.push(2);
    assert_eq!(sink.ports(), expected, "what is behind the loops is done");
    let drops = sink.events.iter().filter(|e| **e == Event::Dropped(Dropped::RecircLimit)).count();
    assert_eq!((drops, dp.counters().recirc_limit), (2, 2));
    // The limit is a packet's, not the worker's.
    let mut sink = Recorder::default();
    execute(&mut worker, &[Action::Recirc(7)], 0, &mut sink);
    assert_eq!(sink.ports(), [5; 33]);
    worker.process_one(&mut packet(&udp(1, 1), 1), 0, &mut sink);
    assert!(matches!(sink.events.last(), Some(Event::Miss(..))));
}

/// What came up with a packet: the flow's actions, its length as it is and before it was cut, its hash.
type Came = (Option<Vec<Action>>, usize, usize, Option<u32>);

#[derive(Debug, Default)]
struct Up(Vec<Came>);

impl Sink for Up {
    fn output(&mut self, _: PortNo, _: &[u8]) {}

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        self.0.push(match upcall {
            Upcall::Miss { packet, .. } => (None, packet.len(), packet.len(), packet.flow_hash()),
            Upcall::Action(a) => (a.actions.map(<[_]>::to_vec), a.packet.len(), a.original_len, a.hash),
        });
        true
    }
}

#[test]
fn u11_an_action_upcall_has_the_flows_actions_length_and_hash_where_they_are_asked_for() {
    let asks = Action::Userspace(Userspace { actions: true, ..Default::default() });
    let plain = Action::Userspace(Userspace::default());
    // Asked for within a clone, they are the flow's all the same.
    let actions = vec![
        plain.clone(),
        Action::Trunc { max_len: 20 },
        Action::Clone(vec![asks.clone()]),
        Action::Hash { alg: HashAlg::L4, basis: 0 },
        plain,
        Action::Recirc(9),
    ];
    let mut dp = Datapath::new(Config::default());
    let mut flow = port_flow(1, 2);
    flow.actions = actions.clone();
    dp.put(&flow).unwrap();
    let (mut worker, mut up) = (dp.worker(), Up::default());
    worker.process_one(&mut packet(&udp(1, 1), 1), 0, &mut up);
    let len = udp(1, 1).len();
    let hash = up.0[2].3;
    assert!(hash.is_some(), "the hash action took it");
    assert_eq!(
        up.0,
        [
            (None, len, len, None),
            (Some(actions), 20, len, None),
            (None, len, len, hash),
            (None, len, len, hash), // the miss after recirculation
        ]
    );
    // A packet that comes back with its hash keeps it.
    let program = compile(&[Action::Userspace(Userspace::default())]).unwrap();
    let mut back = packet(&udp(1, 1), 1);
    back.set_flow_hash(0xabcd);
    worker.execute(&program, &mut back, 0, &mut up);
    assert_eq!(up.0.last().unwrap().3, Some(0xabcd));
}
