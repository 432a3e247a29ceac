//! Packets through tables, slow queues and counters.

use crate::harness::*;
use flowlift_driver::nic::*;
use flowlift_sim::Profile;

#[test]
fn a_hit_is_forwarded_and_counted_and_a_miss_comes_to_the_slow_queue() {
    let mut b = Bench::new(Profile::standard());
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::DecTtl, NicAction::Output(NicPort(3))]);
    assert_eq!(b.insert(at(0, 1), entry), UpdateStatus::Ok);
    let hit = tcp(1, 2, 80);
    b.inject(1, &hit);
    let out = b.sent(3);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0][22], 63, "the TTL");
    assert_eq!(b.receive().len(), 0);
    let miss = tcp(1, 9, 80);
    b.inject(2, &miss);
    let slow = b.receive();
    assert_eq!(slow.len(), 1);
    let expected = SlowRx { port: NicPort(2), metadata: 0, stage: Stage(0), len: miss.len() as u32 };
    assert_eq!(slow[0], (expected, miss));
    let counted = b.nic.counters(at(0, 1));
    assert_eq!((counted.packets, counted.bytes, counted.tcp_flags), (1, hit.len() as u64, 2));
    assert!(counted.used_ns >= 1_000_000);
    let last = b.one(Update::Delete { cookie: 1, id: at(0, 1) });
    assert_eq!(last.counters, Some(counted), "a delete has the last counters");
    b.finish();
}

#[test]
fn a_partly_offloaded_packet_says_where_to_resume() {
    let mut b = Bench::new(Profile::standard());
    let actions = [NicAction::SetMetadata(0x1234), NicAction::Goto(Stage(1))];
    let entry = b.entry(TableId(0), &to_host(2), &actions);
    assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
    b.inject(1, &tcp(1, 2, 80));
    let slow = b.receive();
    assert_eq!((slow[0].0.metadata, slow[0].0.stage), (0x1234, Stage(1)));
    b.finish();
}

#[test]
fn a_frame_of_many_buffers_arrives_whole() {
    let mut b = Bench::new(Profile::standard());
    for len in [60usize, 2048, 2049, 9000, 65600] {
        let frame: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        b.inject(1, &frame);
        let got = b.receive();
        assert_eq!(got.len(), 1, "{len} bytes");
        assert!(got[0].1 == frame, "{len} bytes differ");
    }
    b.finish();
}

#[test]
fn slow_path_packets_leave_a_port_or_enter_the_pipeline_in_order() {
    let mut b = Bench::new(Profile::standard());
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(4))]);
    assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
    for i in 0..20 {
        assert!(b.nic.tx(SlowTx::Port(NicPort(3)), &tcp(i, 99, 80)).unwrap());
        assert!(b.nic.tx(SlowTx::Pipeline(NicPort(1)), &tcp(i, 2, 80)).unwrap());
    }
    assert_eq!(b.nic.tx_pending(), 40);
    b.until("the packets", |b| b.nic.tx_pending() == 0);
    for (port, dst) in [(3, 99), (4, 2)] {
        let expected: Vec<_> = (0..20).map(|i| tcp(i, dst, 80)).collect();
        assert_eq!(b.sent(port), expected, "port {port}");
    }
    for (to, frame) in [
        (SlowTx::Port(NicPort(0)), vec![0; 60]),
        (SlowTx::Port(NicPort(17)), vec![0; 60]),
        (SlowTx::Pipeline(NicPort(1)), vec![0; 13]),
        (SlowTx::Port(NicPort(1)), vec![0; 65601]),
    ] {
        assert!(matches!(b.nic.tx(to, &frame), Err(NicError::Invalid(_))), "{to:?} {}", frame.len());
    }
    b.finish();
}

#[test]
fn a_full_transmit_ring_takes_nothing_and_goes_on_later() {
    let mut b = Bench::new(Profile::tiny());
    let mut sent = 0u32;
    for round in 0..40 {
        loop {
            let frame: Vec<u8> = (0..1 + sent % 7 * 1500 + 60).map(|i| (i + sent) as u8).collect();
            if !b.nic.tx(SlowTx::Port(NicPort(2)), &frame).unwrap() {
                break;
            }
            sent += 1;
        }
        b.until("room", |b| b.nic.tx_pending() == 0);
        for (n, f) in b.sent(2).into_iter().enumerate() {
            let number = f[0] as usize;
            assert_eq!(
                f.len() as u32,
                1 + number as u32 % 7 * 1500 + 60,
                "round {round} frame {n}: not as it was given"
            );
        }
        sent = 0;
    }
    b.finish();
}

#[test]
fn a_link_is_followed() {
    let mut b = Bench::new(Profile::tiny());
    b.wires[1].set_link(false);
    b.until("the event", |b| !b.events.is_empty());
    assert_eq!(b.events, [NicEvent::Link { port: NicPort(2), up: false }]);
    assert!(!b.nic.link(NicPort(2)) && b.nic.link(NicPort(1)) && !b.nic.link(NicPort(99)));
    b.wires[1].set_link(true);
    b.until("the event", |b| b.events.len() == 2);
    assert!(b.nic.link(NicPort(2)));
    b.finish();
}

#[test]
fn a_table_that_fills_tells() {
    let mut b = Bench::new(Profile::tiny());
    for i in 0..15 {
        let entry = b.entry(TableId(0), &to_host(i), &[]);
        assert_eq!(b.insert(at(0, i.into()), entry), UpdateStatus::Ok);
    }
    b.until("the pressure", |b| !b.events.is_empty());
    assert!(
        matches!(b.events[0], NicEvent::TablePressure { table: TableId(0), used: 14..=15 }),
        "90 % of 16: {:?}",
        b.events
    );
    b.finish();
}

#[test]
fn a_reset_keeps_counters_and_every_packet() {
    let mut b = Bench::new(Profile::tiny());
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(2))]);
    assert_eq!(b.insert(at(0, 3), entry.clone()), UpdateStatus::Ok);
    b.inject(1, &tcp(1, 2, 80));
    b.inject(1, &tcp(1, 77, 80));
    // Port 4 has no link: its frames wait in the ring. Two updates wait for the doorbell.
    b.wires[3].set_link(false);
    b.until("the link", |b| !b.nic.link(NicPort(4)));
    assert!(b.nic.tx(SlowTx::Port(NicPort(4)), &tcp(8, 8, 8)).unwrap());
    assert!(b.nic.tx(SlowTx::Port(NicPort(4)), &tcp(9, 9, 9)).unwrap());
    let pending: Vec<_> = (0..2).map(|i| Update::Delete { cookie: i, id: at(0, i as u32) }).collect();
    assert_eq!(b.nic.submit(&pending).unwrap(), 2);
    b.events.clear();
    b.nic.reset().unwrap();
    assert_eq!((b.nic.state(), b.nic.counters(at(0, 3)).packets), (NicState::Ready, 1));
    b.round().unwrap();
    let aborted: Vec<_> = b.results.drain(..).map(|r| (r.cookie, r.status, r.counters)).collect();
    assert_eq!(aborted, [(0, UpdateStatus::Aborted, None), (1, UpdateStatus::Aborted, None)]);
    assert!(b.events.contains(&NicEvent::TablesLost), "{:?}", b.events);
    assert_eq!(b.receive().iter().map(|(_, f)| f[5]).collect::<Vec<_>>(), [77], "received before the reset");
    let unsent: Vec<_> = b.nic.take_unsent().into_iter().map(|(to, f)| (to, f[5])).collect();
    assert_eq!(unsent, [(SlowTx::Port(NicPort(4)), 8), (SlowTx::Port(NicPort(4)), 9)]);
    assert_eq!(b.sent(4).len(), 0);
    // The tables are empty, the device works, and the place counts from 0 again.
    assert_eq!(b.read(at(0, 3)), None);
    assert_eq!(b.insert(at(0, 3), entry), UpdateStatus::Ok);
    assert_eq!(b.nic.counters(at(0, 3)).packets, 0);
    b.inject(1, &tcp(1, 2, 80));
    assert_eq!(b.sent(2).len(), 2);
    b.finish();
}

#[test]
fn a_disabled_port_takes_and_sends_nothing_and_stays_so_over_a_reset() {
    let mut b = Bench::new(Profile::standard());
    let vf = b.nic.caps().ports.iter().find(|p| p.virtual_function).unwrap().port;
    b.nic.set_port_enabled(vf, false).unwrap();
    let entry = |b: &Bench| b.entry(TableId(0), &to_host(2), &[NicAction::Output(vf)]);
    for round in 0..2 {
        let e = entry(&b);
        assert_eq!(b.insert(at(0, 1), e), UpdateStatus::Ok);
        b.inject(1, &tcp(1, 2, 80));
        assert_eq!(b.sent(vf.0).len(), 0, "round {round}");
        assert_eq!(b.nic.port_counters(vf).unwrap().tx_dropped, 1);
        b.inject(vf.0, &tcp(3, 4, 80));
        assert_eq!(b.receive().len(), 0, "round {round}");
        if round == 0 {
            b.nic.reset().unwrap();
        }
    }
    b.nic.set_port_enabled(vf, true).unwrap();
    b.inject(1, &tcp(1, 2, 80));
    assert_eq!(b.sent(vf.0).len(), 1);
    // What waited on its wire comes now.
    assert_eq!(b.receive().len(), 2);
    let counted = b.nic.port_counters(vf).unwrap();
    assert_eq!((counted.tx_packets, counted.rx_packets, counted.rx_slow), (1, 2, 2));
    assert!(matches!(b.nic.set_port_enabled(NicPort(99), true), Err(NicError::Invalid(_))));
    b.finish();
}
