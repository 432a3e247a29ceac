//! A flow that moves between the tables and a slow path that takes its time: its packets keep their order.

use crate::harness::*;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::*;
use flowlift_sim::{FaultPlan, Profile};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};

const FLOWS: u8 = 6;
const ROUNDS: u32 = 20_000;

fn bench(order: bool) -> Bench {
    let (function, clock, wires) = plug(Profile::standard(), 1, FaultPlan::default());
    let config = Fl1Config { order, ..config(&function, &clock) };
    let nic = Fl1::open(function.clone(), config).unwrap();
    Bench { function, nic, clock, wires, results: vec![], events: vec![] }
}

/// A packet of a flow with its number in the TCP sequence field.
fn numbered(flow: u8, number: u32) -> Vec<u8> {
    let mut f = tcp(1, flow, 80);
    f[38..42].copy_from_slice(&number.to_be_bytes());
    f
}

/// Packets of all flows at full rate, while entries come and go and the slow path holds packets back for a while. Gives
/// the packets that left in each path, and those that were overtaken.
fn run(order: bool) -> (u64, u64, u64) {
    let mut b = bench(order);
    assert_eq!(b.nic.keeps_order(), order);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let entry = |b: &Bench, flow| b.entry(TableId(0), &to_host(flow), &[NicAction::Output(NicPort(2))]);
    let mut next = [0u32; FLOWS as usize];
    let mut seen: BTreeMap<u8, u32> = BTreeMap::new();
    // Batches of the slow path, each with the round at which it is through.
    let mut slow: VecDeque<(u32, Vec<Vec<u8>>)> = VecDeque::new();
    let mut installed = [false; FLOWS as usize];
    let (mut by_slow, mut left, mut overtaken) = (0, 0, 0);
    for round in 0..ROUNDS + 1000 {
        for flow in 0..FLOWS {
            let number = &mut next[usize::from(flow)];
            if round < ROUNDS && b.wires[0].pending() < 64 && rng.random_ratio(1, 3) {
                b.wires[0].inject(numbered(flow, *number)).unwrap();
                *number += 1;
            }
            if rng.random_ratio(1, 100) {
                let id = at(0, flow.into());
                let update = if installed[usize::from(flow)] {
                    Update::Delete { cookie: 0, id }
                } else {
                    Update::Insert { cookie: 0, id, entry: entry(&b, flow) }
                };
                // An entry with an update in flight is left alone.
                if b.nic.submit(&[update]).unwrap() == 1 {
                    installed[usize::from(flow)] ^= true;
                }
                b.nic.kick().unwrap();
            }
        }
        b.round().unwrap();
        let batch: Vec<_> = b.receive().into_iter().map(|(_, frame)| frame).collect();
        by_slow += batch.len() as u64;
        if !batch.is_empty() {
            slow.push_back((round + rng.random_range(0..40), batch));
        }
        while slow.front().is_some_and(|(due, _)| *due <= round) {
            for frame in slow.pop_front().unwrap().1 {
                assert!(b.nic.tx(SlowTx::Port(NicPort(2)), &frame).unwrap());
            }
        }
        if slow.is_empty() {
            b.nic.slow_done().unwrap();
        }
        for frame in b.sent(2) {
            let (flow, number) =
                (frame[33], u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]));
            let expected = seen.entry(flow).or_insert(0);
            overtaken += u64::from(number < *expected);
            *expected = (*expected).max(number + 1);
            left += 1;
        }
    }
    assert_eq!(left, next.iter().map(|n| u64::from(*n)).sum::<u64>(), "every packet left");
    assert!(b.results.iter().all(|r| r.status == UpdateStatus::Ok));
    b.finish();
    (left - by_slow, by_slow, overtaken)
}

#[test]
fn order_is_kept_while_flows_move() {
    let (hardware, software, overtaken) = run(true);
    assert!(hardware > 1000 && software > 1000, "both ways are used: {hardware} and {software}");
    assert_eq!(overtaken, 0, "of {hardware} packets in hardware and {software} in software");
}

#[test]
fn without_it_order_is_lost() {
    let (_, _, overtaken) = run(false);
    assert!(overtaken > 0, "a test that order is kept must be able to fail");
}

#[test]
fn a_reset_starts_order_anew() {
    let mut b = bench(true);
    b.inject(1, &tcp(1, 2, 80));
    assert_eq!(b.receive().len(), 1);
    b.nic.reset().unwrap();
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(2))]);
    assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
    b.inject(1, &numbered(2, 9));
    assert_eq!(b.sent(2), [numbered(2, 9)], "what the slow path had before the reset holds nobody");
    b.inject(1, &tcp(1, 3, 80));
    assert_eq!(b.receive().len(), 1);
    b.nic.slow_done().unwrap();
    b.inject(1, &numbered(2, 10));
    assert_eq!(b.sent(2), [numbered(2, 10)]);
    b.finish();
}
