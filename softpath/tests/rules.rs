//! The rules of a datapath (R1 to R4, R13 to R26, U1 to U5), seen from outside.

mod common;

use common::*;
use flowlift_flow::{Action, PortNo, Ufid};
use flowlift_softpath::actions::Unsupported;
use flowlift_softpath::{Batch, Config, Counters, Datapath, Dropped, FlowStats, PutError, PutMode, Worker};

fn datapath() -> Datapath {
    Datapath::new(Config { seed: Some(1), ..Config::default() })
}

fn send(worker: &mut Worker, frames: &[Vec<u8>], in_port: u32, now: u64) -> Recorder {
    let mut sink = Recorder::default();
    let mut batch = Batch::new();
    for f in frames {
        assert!(batch.push(f, metadata(in_port)));
    }
    worker.process(&mut batch, now, &mut sink);
    assert!(batch.is_empty());
    sink
}

#[test]
fn r1_datapaths_stand_side_by_side() {
    let (mut a, mut b) = (datapath(), datapath());
    a.put(&port_flow(1, 2)).unwrap();
    b.put(&port_flow(1, 3)).unwrap();
    let (mut wa, mut wb) = (a.worker(), b.worker());
    assert_eq!(send(&mut wa, &[udp(1, 1)], 1, 0).ports(), [2]);
    assert_eq!(send(&mut wb, &[udp(1, 1)], 1, 0).ports(), [3]);
    b.flush();
    assert_eq!(send(&mut wa, &[udp(1, 1)], 1, 0).ports(), [2]);
    assert_eq!(send(&mut wb, &[udp(1, 1)], 1, 0).ports(), []);
}

#[test]
fn r2_r3_a_match_runs_the_flow_s_actions() {
    let mut dp = datapath();
    let outputs = vec![Action::Output(PortNo(2)), Action::Output(PortNo(3))];
    let f = flow(&flowlift_flow::Key { in_port: 1, ..Default::default() }, mask(1), outputs);
    let id = dp.put(&f).unwrap().id;
    let mut w = dp.worker();
    let sink = send(&mut w, &[udp(1, 1), udp(2, 2)], 1, 0);
    assert_eq!(sink.ports(), [2, 3, 2, 3]);
    assert_eq!(sink.events[2], Event::Output(2, udp(2, 2)));
    assert_eq!(sink.matched, [id, id]);
}

#[test]
fn r4_upcalls_are_misses_and_a_lost_one_is_counted() {
    let dp = datapath();
    let mut w = dp.worker();
    let sink = send(&mut w, &[udp(1, 1)], 7, 0);
    // R5: with the key that was parsed.
    let want = key(&udp(1, 1), &metadata(7));
    assert_eq!(sink.events, [Event::Miss(Box::new(want), udp(1, 1))]);
    assert_eq!(dp.counters(), Counters { packets: 1, misses: 1, ..Default::default() });
    let mut lossy = Recorder { lose_upcalls: true, ..Default::default() };
    w.process_one(&mut packet(&udp(1, 1), 7), 0, &mut lossy);
    assert_eq!(dp.counters(), Counters { packets: 2, misses: 2, lost: 1, ..Default::default() });
}

#[test]
fn r14_a_zero_bit_does_not_care() {
    let mut dp = datapath();
    let k = key(&udp(2, 5), &metadata(1));
    // Field 3 is the source address without its last bit.
    dp.put(&flow(&k, mask(1 << 3), vec![Action::Output(PortNo(9))])).unwrap();
    let mut w = dp.worker();
    assert_eq!(send(&mut w, &[udp(2, 5), udp(3, 8)], 4, 0).ports(), [9, 9]);
    assert_eq!(send(&mut w, &[udp(4, 5), udp(1, 5)], 4, 0).ports(), []);
}

#[test]
fn r15_no_mask_is_exact() {
    let mut dp = datapath();
    let k = key(&udp(2, 5), &metadata(1));
    dp.put(&flow(&k, flowlift_flow::Mask::exact(), vec![Action::Output(PortNo(9))])).unwrap();
    let mut w = dp.worker();
    assert_eq!(send(&mut w, &[udp(2, 5)], 1, 0).ports(), [9]);
    assert_eq!(send(&mut w, &[udp(2, 5)], 2, 0).ports(), []);
    assert_eq!(send(&mut w, &[udp(2, 6)], 1, 0).ports(), []);
}

/// A user who narrows every flow to the packet at hand has more set-ups, and the same forwarding.
#[test]
fn r17_narrower_flows_cost_set_ups_and_change_nothing_else() {
    let frames: Vec<_> = (0..20).map(|n| udp(n % 4, n % 5)).collect();
    let forward = |fields: u32| {
        let mut dp = datapath();
        let mut w = dp.worker();
        let mut outputs = Vec::new();
        for f in &frames {
            let sink = send(&mut w, std::slice::from_ref(f), 1, 0);
            let sink = match &sink.events[..] {
                [Event::Miss(key, _)] => {
                    dp.put(&flow(key, mask(fields), vec![Action::Output(PortNo(9))])).unwrap();
                    send(&mut w, std::slice::from_ref(f), 1, 0)
                }
                _ => sink,
            };
            outputs.push(sink.events);
        }
        (outputs, dp.counters().misses)
    };
    let (wide, few) = forward(1);
    let (narrow, many) = forward(1 | 1 << 4 | 1 << 2);
    assert_eq!(wide, narrow);
    assert_eq!((few, many), (1, 20), "20 frames differ in destination addresses");
}

#[test]
fn r19_the_mask_is_read_back_as_installed() {
    let mut dp = datapath();
    let k = key(&udp(2, 5), &metadata(1));
    for fields in [0, 1, 1 << 3, 0x3ff] {
        let id = dp.put(&flow(&k, mask(fields), vec![])).unwrap().id;
        assert_eq!(dp.flow(id).unwrap().matching.mask, mask(fields), "fields {fields:#b}");
    }
    // R15: no mask at all is an exact one, and is told as such.
    let id = dp.put(&flow(&k, flowlift_flow::Mask::exact(), vec![])).unwrap().id;
    assert_eq!(dp.flow(id).unwrap().matching.mask, flowlift_flow::Mask::exact());
}

#[test]
fn r20_the_match_is_kept_as_installed() {
    let mut dp = datapath();
    // Bits outside the mask are set, and named attributes differ from those of the next flow.
    let mut f = flow(&key(&udp(2, 5), &metadata(1)), mask(1 << 4), vec![]);
    f.matching.key.tun_opts[3] = 77;
    f.matching.attrs.0 = [0x5a, 1, 2];
    let id = dp.put(&f).unwrap().id;
    assert_eq!(dp.flow(id).unwrap(), f);
    // The same mask and masked key, written differently, is the same flow, and the handle stays as it was.
    let mut again = f.clone();
    again.matching.key.tun_opts[3] = 0;
    again.matching.attrs.0 = [1, 1, 1];
    again.actions = vec![Action::Output(PortNo(1))];
    let put = dp.put(&again).unwrap();
    assert_eq!((put.id, put.created), (id, false));
    assert_eq!(dp.flow(id).unwrap().matching, f.matching);
    assert_eq!(dp.find_match(&again.matching), Some(id));
}

#[test]
fn r22_overlaps_are_found_on_request() {
    let mut dp = datapath();
    let k = key(&udp(2, 5), &metadata(1));
    let a = dp.put(&flow(&k, mask(1), vec![])).unwrap().id;
    let b = dp.put(&flow(&k, mask(1 << 4), vec![])).unwrap().id;
    let other = key(&udp(2, 6), &metadata(2));
    dp.put(&flow(&other, mask(1), vec![])).unwrap();
    let c = dp.put(&flow(&other, mask(1 << 4 | 1), vec![])).unwrap().id;
    let pairs: Vec<_> = dp.find_overlaps(100).iter().map(|o| (o.first, o.second)).collect();
    assert!(pairs.contains(&(a, b)), "{pairs:?}");
    assert!(pairs.iter().all(|p| *p != (a, c) && *p != (b, c)), "{pairs:?}");
    assert_eq!(dp.find_overlaps(1).len(), 1);
}

#[test]
fn r23_r25_a_ufid_names_one_flow() {
    let mut dp = datapath();
    let mut f = port_flow(1, 2);
    f.ufid = Some(ufid(1));
    let id = dp.put(&f).unwrap().id;
    assert_eq!(dp.find_ufid(&ufid(1)), Some(id));
    let mut other = port_flow(2, 2);
    other.ufid = Some(ufid(1));
    assert_eq!(dp.put(&other), Err(PutError::UfidInUse(id)));
    let mut same = f.clone();
    same.ufid = Some(ufid(2));
    assert_eq!(dp.put(&same), Err(PutError::MatchInUse(id)));
    assert_eq!(dp.find_ufid(&ufid(2)), None);
    dp.delete(id).unwrap();
    assert_eq!(dp.find_ufid(&ufid(1)), None);
    assert!(dp.put(&same).unwrap().created);
}

#[test]
fn r24_ufids_are_optional() {
    let mut dp = datapath();
    let id = dp.put(&port_flow(1, 2)).unwrap().id;
    assert_eq!(dp.flow(id).unwrap().ufid, None);
    assert_eq!(dp.put_with(&port_flow(1, 3), PutMode::CREATE), Err(PutError::Exists(id)));
    assert_eq!(dp.put(&port_flow(1, 3)).unwrap().id, id);
}

#[test]
fn u1_actions_are_replaced_in_place_and_stats_go_on() {
    let mut dp = datapath();
    let id = dp.put(&port_flow(1, 2)).unwrap().id;
    let mut w = dp.worker();
    assert_eq!(send(&mut w, &[udp(1, 1)], 1, 5).ports(), [2]);
    dp.put(&port_flow(1, 3)).unwrap();
    assert_eq!(send(&mut w, &[udp(1, 1)], 1, 6).ports(), [3]);
    dp.set_actions(id, &[]).unwrap();
    let sink = send(&mut w, &[udp(1, 1)], 1, 7);
    assert!(matches!(sink.events[..], [Event::Dropped(Dropped::Action(_))]), "{:?}", sink.events);
    let want = FlowStats { packets: 3, bytes: 180, used: Some(7), tcp_flags: 0 };
    assert_eq!(dp.stats(id), Some(want));
}

#[test]
fn u2_clear_zeroes_used_flags_and_stats() {
    let mut dp = datapath();
    let id = dp.put(&port_flow(1, 2)).unwrap().id;
    let mut w = dp.worker();
    send(&mut w, &[frame(Shape { kind: 1, vlan: false, n: 1, m: 1, flags: 0x12 })], 1, 5);
    assert_eq!(dp.stats(id).unwrap().tcp_flags, 0x12);
    assert!(dp.clear_stats(id));
    assert_eq!(dp.stats(id), Some(FlowStats::default()));
    send(&mut w, &[udp(1, 1)], 1, 9);
    assert_eq!(dp.stats(id), Some(FlowStats { packets: 1, bytes: 60, used: Some(9), tcp_flags: 0 }));
    assert_eq!(dp.lookup(&key(&udp(1, 1), &metadata(1))), Some(id), "its name stays");
}

#[test]
fn u3_tcp_flags_are_of_tcp_only_and_all_workers_count() {
    let mut dp = datapath();
    let id = dp.put(&port_flow(1, 2)).unwrap().id;
    assert_eq!(dp.stats(id).unwrap().used, None);
    let (mut a, mut b) = (dp.worker(), dp.worker());
    let tcp = |flags| frame(Shape { kind: 1, vlan: true, n: 1, m: 1, flags });
    send(&mut a, &[tcp(0x02), udp(3, 0xff)], 1, 10);
    send(&mut b, &[tcp(0x10)], 1, 4);
    drop(a);
    // The counters of a worker that ended are kept, and the next worker goes on with them.
    let mut c = dp.worker();
    send(&mut c, &[tcp(0x01)], 1, 2);
    let stats = dp.stats(id).unwrap();
    assert_eq!((stats.packets, stats.bytes, stats.tcp_flags), (4, 240, 0x13));
    assert_eq!(dp.counters().packets, 4);
    assert_eq!(dp.delete(id).unwrap().stats, stats);
    assert_eq!(dp.stats(id), None);
}

#[test]
fn u5_a_ufid_may_be_short() {
    let mut dp = datapath();
    let mut f = port_flow(1, 2);
    f.ufid = Ufid::new(&[7]);
    let id = dp.put(&f).unwrap().id;
    let mut g = port_flow(2, 2);
    g.ufid = Ufid::new(&[7, 0]);
    let other = dp.put(&g).unwrap().id;
    assert_ne!(id, other);
    assert_eq!(dp.find_ufid(&Ufid::new(&[7]).unwrap()), Some(id));
    assert_eq!(dp.find_ufid(&Ufid::new(&[7, 0]).unwrap()), Some(other));
}

#[test]
fn an_action_that_cannot_run_is_refused_by_name() {
    let mut dp = datapath();
    let mut f = port_flow(1, 2);
    f.actions.push(Action::LbOutput(4));
    let e = dp.put(&f).unwrap_err();
    assert!(matches!(e, PutError::Unsupported(Unsupported::Action(_))), "{e:?}");
    assert!(e.to_string().contains("lb_output"), "{e}");
    assert!(dp.is_empty());
}

#[test]
fn recirculation_goes_up_to_its_limit_and_is_counted() {
    let mut dp = datapath();
    // Each pass has its flow; the last one outputs.
    let pass = |id: u32, actions| {
        let k = flowlift_flow::Key { recirc_id: id, ..Default::default() };
        flow(&k, mask(0), actions)
    };
    for id in 0..40 {
        dp.put(&pass(id, vec![Action::Output(PortNo(100 + id)), Action::Recirc(id + 1)])).unwrap();
    }
    let mut w = dp.worker();
    let sink = send(&mut w, &[udp(1, 1)], 1, 0);
    // As many as the kernel's datapath lets through.
    assert_eq!(sink.ports(), (100..=133).collect::<Vec<_>>());
    assert_eq!(sink.events.last(), Some(&Event::Dropped(Dropped::RecircLimit)));
    let c = dp.counters();
    assert_eq!((c.packets, c.hits, c.recirculations, c.recirc_limit), (1, 34, 33, 1));
    // A packet can start anywhere: the slow path resumes where hardware stopped.
    let mut resumed = packet(&udp(1, 1), 1);
    resumed.metadata.recirc_id = 38;
    let mut sink = Recorder::default();
    w.process_one(&mut resumed, 0, &mut sink);
    assert_eq!(sink.ports(), [138, 139]);
    assert!(matches!(sink.events.last(), Some(Event::Miss(k, _)) if k.recirc_id == 40));
}

/// The sink installs what it is asked for: the rest of the batch needs no upcall of its own.
#[test]
fn a_flow_installed_by_an_upcall_serves_the_same_batch() {
    struct Installer(Datapath, u32);
    impl flowlift_softpath::Sink for Installer {
        fn output(&mut self, _: PortNo, _: &[u8]) {
            self.1 += 1;
        }
        fn upcall(&mut self, _: flowlift_softpath::Upcall<'_>) -> bool {
            self.0.put(&port_flow(1, 2)).is_ok()
        }
    }
    let dp = datapath();
    let mut w = dp.worker();
    let mut sink = Installer(dp, 0);
    let mut batch = Batch::new();
    (0..10).for_each(|n| assert!(batch.push(&udp(n, n), metadata(1))));
    w.process(&mut batch, 0, &mut sink);
    let c = sink.0.counters();
    assert_eq!((c.misses, c.hits, sink.1), (1, 9, 9));
}

#[test]
fn a_cached_flow_that_is_gone_is_missed_not_hit() {
    let mut dp = datapath();
    let mut w = dp.worker();
    let narrow =
        |n: u8, out| flow(&key(&udp(n, 1), &metadata(1)), mask(1 << 3), vec![Action::Output(PortNo(out))]);
    let id = dp.put(&narrow(2, 5)).unwrap().id;
    assert_eq!(send(&mut w, &[udp(2, 1)], 1, 0).ports(), [5]);
    assert_eq!(send(&mut w, &[udp(2, 1)], 1, 0).ports(), [5]);
    assert_eq!(dp.counters().cache_hits, 1);
    dp.delete(id).unwrap();
    // The next flow gets the same slot, and does not match the cached packet.
    let other = dp.put(&narrow(8, 6)).unwrap().id;
    assert_eq!((other.slot, other.generation == id.generation), (id.slot, false));
    let sink = send(&mut w, &[udp(2, 1), udp(8, 1)], 1, 0);
    assert_eq!(sink.ports(), [6]);
    assert_eq!(sink.matched, [other]);
    assert_eq!(dp.stats(other).unwrap().packets, 1, "nothing of the old flow's");
}
