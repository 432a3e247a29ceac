//! Threads beside the driver on the slow queues (`SlowPath`).

use crate::harness::*;
use flowlift_driver::fl1::SlowPath;
use flowlift_driver::nic::*;
use flowlift_sim::{FaultKind, FaultPlan, Profile, Rate};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the frames of these tests go.
const PORT: NicPort = NicPort(2);
const TO: SlowTx = SlowTx::Port(PORT);

fn numbers(frames: &[Vec<u8>]) -> Vec<u32> {
    frames.iter().map(|f| number(f)).collect()
}

#[test]
fn the_device_hears_of_a_burst_at_its_end() {
    let mut b = Bench::new(Profile::tiny());
    let path = b.nic.slow_path();
    let mut burst = path.try_tx(PORT).unwrap();
    for n in 0..20 {
        assert!(burst.send(TO, &numbered(n)).unwrap());
    }
    assert!(path.try_tx(NicPort(1)).is_none(), "another thread would not wait for the queue");
    for (to, frame) in [(SlowTx::Port(NicPort(99)), numbered(0)), (TO, vec![0; 13])] {
        assert!(matches!(burst.send(to, &frame), Err(NicError::Invalid(_))));
    }
    b.clock.advance(1_000);
    b.function.model().step();
    assert_eq!(b.sent(2).len(), 0, "nothing was announced");
    drop(burst);
    b.until("the burst", |b| b.nic.tx_pending() == 0);
    assert_eq!(numbers(&b.sent(2)), (0..20).collect::<Vec<_>>());
    b.finish();
}

#[test]
fn a_burst_goes_to_ports_of_one_queue_only() {
    let b = Bench::new(Profile::standard());
    let path = b.nic.slow_path();
    let mut burst = path.try_tx(PORT).unwrap();
    assert!(matches!(burst.send(SlowTx::Port(NicPort(3)), &numbered(0)), Err(NicError::Invalid(_))));
    assert!(burst.send(SlowTx::Port(NicPort(6)), &numbered(0)).unwrap(), "of four queues the same");
    drop(burst);
    b.finish();
}

#[test]
fn what_a_reset_gave_back_goes_before_the_frames_of_others() {
    let mut b = Bench::new(Profile::tiny());
    let path = b.nic.slow_path();
    b.inject(1, &numbered(100));
    assert!(path.try_tx(PORT).unwrap().send(TO, &numbered(0)).unwrap());
    b.nic.reset().unwrap();
    let got = |path: &SlowPath| {
        let mut got = vec![];
        path.try_rx(9, &mut |_, frame| got.push(number(frame))).map(|taken| (taken, got))
    };
    assert_eq!(got(&path), Some((1, vec![100])), "what had been received is not lost");
    assert!(path.try_tx(PORT).is_none());
    b.nic.resume_slow_path();
    assert!(path.try_tx(PORT).is_none(), "frames wait to be taken back");
    for (to, frame) in b.nic.take_unsent() {
        assert!(b.nic.tx(to, &frame).unwrap());
    }
    b.nic.resume_slow_path();
    assert!(path.try_tx(PORT).unwrap().send(TO, &numbered(1)).unwrap());
    b.until("the frames", |b| b.nic.tx_pending() == 0);
    assert_eq!(numbers(&b.sent(2)), [0, 1]);
    b.function.remove();
    b.until("the removal", |b| b.nic.state() == NicState::Gone);
    assert!(path.try_tx(PORT).is_none() && got(&path).is_none());
    drop(b);
    assert!(path.try_tx(PORT).is_none() && got(&path).is_none(), "the driver is gone, and nothing happens");
}

#[test]
fn frames_of_other_threads_pass_once_and_in_order_through_any_failure() {
    const FRAMES: u32 = 300;
    let rare = |limit| Rate { probability: 0.005, limit };
    let plan = FaultPlan::default()
        .with(FaultKind::DmaFault, rare(4))
        .with(FaultKind::Hang, rare(2))
        .with(FaultKind::Reset, rare(2));
    let mut struck = 0;
    for seed in 0..6 {
        let Ok(mut b) = Bench::with(Profile::tiny(), seed, plan.clone()) else { continue };
        for n in 0..FRAMES {
            b.wires[0].inject(numbered(n)).unwrap();
        }
        let (sender, receiver) = (b.nic.slow_path(), b.nic.slow_path());
        let stop = AtomicBool::new(false);
        let (sent, received) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = 0;
                while next < FRAMES && !stop.load(Ordering::Relaxed) {
                    if let Some(mut burst) = sender.try_tx(PORT) {
                        let end = FRAMES.min(next + 8);
                        while next < end && burst.send(TO, &numbered(next)).unwrap() {
                            next += 1;
                        }
                    }
                    std::thread::yield_now();
                }
            });
            let receiving = scope.spawn(|| {
                let mut received = vec![];
                while received.len() < FRAMES as usize && !stop.load(Ordering::Relaxed) {
                    receiver.try_rx(32, &mut |_, frame| received.push(number(frame)));
                    std::thread::yield_now();
                }
                received
            });
            let (mut back, mut sent) = (VecDeque::new(), vec![]);
            let began = std::time::Instant::now();
            while !(sent.len() >= FRAMES as usize && receiving.is_finished()) {
                if began.elapsed().as_secs() > 60 {
                    break;
                }
                let _ = b.round();
                if b.nic.state() == NicState::Failed {
                    let _ = b.nic.reset();
                }
                b.nic.take_unsent().into_iter().rev().for_each(|frame| back.push_front(frame));
                while let Some((to, frame)) = back.front() {
                    if !matches!(b.nic.tx(*to, frame), Ok(true)) {
                        break;
                    }
                    back.pop_front();
                }
                if back.is_empty() {
                    b.nic.resume_slow_path();
                }
                sent.extend(numbers(&b.sent(2)));
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            (sent, receiving.join().unwrap())
        });
        assert!(sent.iter().copied().eq(0..FRAMES), "seed {seed}: {sent:?}");
        assert!(received.iter().copied().eq(0..FRAMES), "seed {seed}: {received:?}");
        struck += b.function.model().fault_log().len();
        assert_eq!(b.function.model().violations_total(), 0, "seed {seed}");
    }
    assert!(struck > 0, "no fault struck");
}
