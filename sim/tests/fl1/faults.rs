//! The fault layer: each kind strikes, a run is replayed from its seed, and no fault breaks "all or nothing".

use crate::host::*;
use flowlift_sim::{FaultKind, FaultPlan, Rate};
use std::sync::atomic::Ordering;

const FULL: u16 = 2;

/// All that a run showed to the host.
#[derive(Debug, PartialEq, Eq, Default)]
struct Trace {
    log: Vec<String>,
    completions: Vec<Vec<u8>>,
    events: Vec<Vec<u8>>,
    slow: Vec<Vec<u8>>,
    out: Vec<Vec<Vec<u8>>>,
    records: Vec<Vec<u8>>,
}

fn key(i: u32) -> (Vec<u8>, Vec<u8>) {
    blobs(Keys::Full, &[(14, &(0x0a00_0000 + i).to_be_bytes(), &[0xff; 4])])
}

/// A workload of commands and packets that goes on whatever happens.
fn run(seed: u64, plan: &FaultPlan) -> Trace {
    let mut h = Host::with("standard", seed, plan.clone());
    let mut t = Trace::default();
    for round in 0..60u32 {
        if h.dev.is_gone() {
            break;
        }
        if h.dev.fatal().is_some() || h.dev.is_hung() || h.read(0xc) & 2 == 0 {
            flowlift_bus::DeviceModel::reset(&mut h.dev);
            h.start();
        }
        h.submit(&insert(FULL, round, 1, &key(round), &output(2)));
        h.submit(&buffer(5, FULL, round.saturating_sub(3), round, 4, SCRATCH, 192));
        h.submit(&buffer(4, FULL, round / 2, round, 0, SCRATCH + 0x1000, 4096));
        for i in 0..4 {
            h.inject(1, &udp((0x0a00_0000u32 + round + i - 2).to_be_bytes(), 1, 2));
        }
        for _ in 0..3 {
            h.clock.advance(1000);
            h.dev.step();
            t.completions.extend(h.completions().into_iter().map(|d| d.raw.to_vec()));
            t.events.extend(h.events().into_iter().map(|e| e.to_vec()));
            t.slow.extend(h.slow().into_iter().map(|s| s.frame));
        }
        t.records.push(h.peek(SCRATCH, 0x2000));
        h.wires[0].take_back();
    }
    t.out = (1..=4).map(|p| h.out(p)).collect();
    t.log = h.dev.fault_log().iter().map(ToString::to_string).collect();
    assert_eq!(h.dev.violations_total(), 0, "{:?}", h.dev.first_violation());
    t
}

#[test]
fn each_kind_strikes_and_replays_from_its_seed() {
    let quiet = run(1, &FaultPlan::default());
    for kind in FaultKind::ALL {
        let plan = FaultPlan::default().with(kind, Rate { probability: 0.2, limit: 20 });
        let first = run(1, &plan);
        assert!(!first.log.is_empty(), "{kind} never struck");
        assert!(first.log.iter().all(|l| l.contains(kind.name())), "{kind}: {:?}", first.log);
        assert_eq!(first, run(1, &plan), "{kind} does not replay");
        assert_ne!(first.log, run(2, &plan).log, "{kind} does not depend on the seed");
        assert_ne!(
            (&first.completions, &first.events, &first.out, &first.records),
            (&quiet.completions, &quiet.events, &quiet.out, &quiet.records),
            "{kind} shows nowhere"
        );
    }
}

#[test]
fn all_kinds_together_replay() {
    let plan = FaultPlan::all();
    for seed in 0..20 {
        assert_eq!(run(seed, &plan), run(seed, &plan), "seed {seed}");
    }
}

/// Runs until the fault strikes; gives what the one completion round showed.
fn striking(kind: &str) -> Host {
    Host::with("standard", 3, format!("{kind}=1").parse().unwrap())
}

#[test]
fn table_full_refuses() {
    let mut h = striking("table_full");
    assert_eq!(h.command(&insert(FULL, 0, 1, &key(0), &[])).status(), 6);
    assert_eq!(h.command(&header(3, FULL, 0, 0, 0)).status(), 5, "nothing is installed");
}

#[test]
fn lost_completion_has_its_effect() {
    let mut h = striking("lost_completion");
    h.submit(&insert(FULL, 0, 1, &key(0), &output(2)));
    h.dev.step();
    assert!(h.completions().is_empty());
    assert_eq!(h.read(0x120), h.sq_tail, "fetched");
    h.inject(1, &udp([10, 0, 0, 0], 1, 2));
    h.dev.step();
    assert_eq!(h.out(2).len(), 1);
}

#[test]
fn slow_completion_comes_within_256_heartbeats() {
    let mut h = striking("slow_completion");
    h.submit(&header(0, 0, 0, 0, 0));
    let late = (0..256).find(|_| {
        h.dev.step();
        !h.completions().is_empty()
    });
    assert!(late.is_some_and(|n| n > 0), "{late:?}");
}

#[test]
fn duplicated_completion_comes_twice() {
    let mut h = striking("duplicated_completion");
    h.submit(&header(0, 0, 0, 0, 0));
    h.dev.step();
    let c = h.completions();
    assert_eq!((c.len(), c[0].cookie()), (2, c[1].cookie()));
}

#[test]
fn reordered_completions_swap() {
    let mut h = striking("reordered_completion");
    let mut commands = [header(0, 0, 0, 0, 0), header(0, 0, 0, 0, 0)];
    commands[1][8] = 1;
    for c in &commands {
        h.submit(c);
    }
    h.dev.step();
    assert_eq!(h.completions().iter().map(|c| c.cookie() & 1).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn a_fence_waits_for_slow_completions() {
    let mut h = Host::with("standard", 3, "slow_completion=1".parse().unwrap());
    h.submit(&header(0, 0, 0, 0, 0));
    let mut fenced = header(0, 0, 0, 0, 0);
    fenced[2] = 1;
    h.submit(&fenced);
    h.dev.step();
    assert_eq!(h.read(0x120), 1, "the fenced command is not fetched");
    while h.completions().is_empty() {
        h.dev.step();
    }
    assert_eq!(h.read(0x120), 2);
}

#[test]
fn stale_and_flipped_records_are_told_by_sequence_and_crc() {
    let record = |kind: &str, counters: bool| {
        let mut h = striking(kind);
        h.submit(&insert(FULL, 0, 1, &key(0), &output(2)));
        if counters {
            h.submit(&buffer(5, FULL, 0, 77, 1, SCRATCH, 48));
        } else {
            h.submit(&buffer(4, FULL, 0, 77, 0, SCRATCH, 4096));
        }
        h.dev.step();
        let done = h.completions();
        assert_eq!(done[1].status(), 0, "{kind}");
        let len = if counters { 48 } else { done[1].result() as usize };
        h.peek(SCRATCH, len)
    };
    let crc_of = |r: &[u8], counters: bool| {
        let mut r = r.to_vec();
        let at = if counters { 44 } else { 20 };
        let stored = le(&r, at, 4);
        r[at..at + 4].fill(0);
        let covered = if counters { &r[..44] } else { &r[..] };
        (stored, u64::from(flowlift_sim::crc32c(covered)))
    };
    for (kind, counters, sequence_at) in
        [("stale_counter", true, 36), ("flipped_counter", true, 36), ("stale_entry", false, 16)]
    {
        let r = record(kind, counters);
        let (stored, right) = crc_of(&r, counters);
        if kind.starts_with("stale") {
            assert_ne!(le(&r, sequence_at, 4), 77, "{kind}");
            assert_eq!(stored, right, "{kind}");
        } else {
            assert_ne!(stored, right, "{kind}");
        }
    }
}

#[test]
fn a_flipped_entry_never_matches_again_until_it_is_installed_anew() {
    let mut h = Host::with(
        "standard",
        3,
        FaultPlan::default().with(FaultKind::FlippedEntry, Rate { probability: 1.0, limit: 1 }),
    );
    h.must(&insert(FULL, 9, 1, &key(0), &output(2)));
    h.inject(1, &udp([10, 0, 0, 0], 1, 2));
    h.dev.step();
    assert_eq!((h.out(2).len(), h.slow().len()), (0, 1), "a miss, not a hit");
    let e = h.events();
    assert_eq!(
        (le(&e[0], 0, 2), le(&e[0], 2, 2), le(&e[0], 4, 4), le(&e[0], 8, 4)),
        (2, 2, 9, 109),
        "PARITY"
    );
    assert_eq!(h.command(&replace(FULL, 9, 1, &output(3))).status(), 14);
    let d = h.command(&buffer(4, FULL, 9, 1, 0, SCRATCH, 4096));
    assert_eq!((d.status(), h.peek(SCRATCH, 16)[15]), (14, 3), "VALID and PARITY");
    assert_eq!(h.peek(SCRATCH + 32, 208), {
        // One bit of the key is not what was written.
        let got = h.peek(SCRATCH + 32, 208);
        let want = [key(0).0, key(0).1].concat();
        let flips: u32 = got.iter().zip(&want).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flips, 1);
        got
    });
    h.must(&header(3, FULL, 9, 0, 0));
    h.must(&insert(FULL, 9, 1, &key(0), &output(2)));
    h.inject(1, &udp([10, 0, 0, 0], 1, 2));
    h.dev.step();
    assert_eq!(h.out(2).len(), 1);
    h.assert_clean();
}

#[test]
fn a_hanging_device_stands_still_until_flr() {
    let mut h = striking("hang");
    h.inject(1, &udp([10, 0, 0, 0], 1, 2));
    let beat = h.read(0x44);
    for _ in 0..10 {
        h.dev.step();
    }
    assert_eq!((h.read(0x44), h.read(0xc), h.wires[0].pending()), (beat, 3, 1));
    flowlift_bus::DeviceModel::reset(&mut h.dev);
    assert_eq!(h.read(0xc), 1);
    assert!(!h.dev.is_hung());
}

#[test]
fn a_device_that_resets_itself_says_so() {
    let mut h = striking("reset");
    h.dev.step();
    assert_eq!((h.read(0xc), h.read(0x24), h.read(0x28)), (1, 3, 1));
    assert_eq!(h.bells.load_u32(0x400, Ordering::Relaxed).unwrap(), 0);
}

#[test]
fn an_unplugged_device_reads_all_ones() {
    let mut h = striking("unplug");
    h.dev.step();
    assert_eq!((h.read(0xc), h.read(0x7f0)), (u32::MAX, u32::MAX));
    assert_eq!(h.bells.load_u32(0, Ordering::Relaxed).unwrap(), u32::MAX);
    h.write(0x20, 0x5453_4552);
    flowlift_bus::DeviceModel::reset(&mut h.dev);
    assert_eq!(h.read(0), u32::MAX, "no reset brings it back");
}

#[test]
fn a_link_flap_holds_frames_and_ends() {
    let mut h = Host::with(
        "standard",
        3,
        FaultPlan::default().with(FaultKind::LinkFlap, Rate { probability: 1.0, limit: 1 }),
    );
    for p in 1..=16 {
        h.inject(p, &udp([10, 0, 0, 0], 1, 2));
    }
    h.dev.step();
    assert_eq!(h.slow().len(), 15, "one port is down");
    for _ in 0..40 {
        h.dev.step();
    }
    assert_eq!(h.slow().len(), 1, "and comes back");
    let links: Vec<_> = h.events().iter().map(|e| (le(e, 0, 2), le(e, 12, 4))).collect();
    assert_eq!(links, [(1, 0), (1, 1)]);
}

/// Whatever DMA access is blocked, each frame is wholly done or still where it was, and the counter page agrees.
#[test]
fn a_blocked_dma_access_leaves_every_frame_done_or_not_begun() {
    const HITS: u64 = 3;
    let prepare = || {
        let mut h = Host::new("standard");
        h.must(&buffer(10, FULL, 0, 0, 0, PAGE, 2048 * 32));
        let metadata = [7u32.to_le_bytes(), 7u32.to_le_bytes()].concat();
        h.must(&buffer(10, 4, 0, 0, 0, PAGE + 0x20_0000, 1024 * 32));
        let goto = [unit(8, 0, &metadata), unit(9, 1, &[])].concat();
        h.must(&insert(FULL, 0, 1, &key(0), &goto));
        h.must(&insert(4, 0, 1, &key(0), &output(2)));
        h.must(&insert(FULL, 1, 1, &key(1), &[output(2), unit(7, 0, &[])].concat()));
        for i in 0..HITS {
            h.inject(1, &udp([10, 0, 0, 0], 1, i as u16));
            h.inject(1, &udp([10, 0, 0, 1], 1, i as u16));
            h.tx(&udp([10, 0, 0, 1], 2, i as u16), 1, Some((0, 0)));
            h.tx(&udp([10, 9, 9, 9], 3, i as u16), 3, None);
        }
        h
    };
    let mut h = prepare();
    let from = h.accesses.load(Ordering::Relaxed);
    h.dev.step();
    let accesses = h.accesses.load(Ordering::Relaxed) - from;
    assert!(accesses > 30);
    for n in 0..accesses {
        let mut h = prepare();
        h.block.store(h.accesses.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        h.dev.step();
        assert!(h.dev.fatal().is_some(), "access {n}");
        assert_eq!(h.read(0xc) & 4, 4);
        h.block.store(u64::MAX, Ordering::Relaxed);
        let page = |at| le(&h.peek(at, 8), 0, 8);
        let (goto, second, trap) = (page(PAGE), page(PAGE + 0x20_0000), page(PAGE + 32));
        let (out2, out3) = (h.out(2).len() as u64, h.out(3).len() as u64);
        let (left, sent) = (h.wires[0].take_back(), h.tx_consumed());
        let slow = h.slow().len() as u64;
        // What is left on the wire was not counted, sent or given up; what is gone was, once.
        let left_goto = left.iter().filter(|f| f[33] == 0).count() as u64;
        let left_trap = left.iter().filter(|f| f[33] == 1).count() as u64;
        assert_eq!(goto, HITS - left_goto, "access {n}: stage 0 entry");
        assert_eq!(second, goto, "access {n}: stage 1 entry");
        assert_eq!(out3, sent / 2, "access {n}: direct TX");
        let injected = sent.div_ceil(2);
        assert_eq!(trap, HITS - left_trap + injected, "access {n}: trapping entry");
        assert_eq!(slow, trap, "access {n}: slow queue");
        assert_eq!(out2, goto + trap, "access {n}: outputs");
        h.assert_clean();
    }
}
