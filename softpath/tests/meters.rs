//! Meters: what a token bucket lets through, by hand and against the linear reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod common;

use common::*;
use flowlift_flow::{Action, PortNo};
use flowlift_softpath::actions::DropReason;
use flowlift_softpath::meter::MAX_METERS;
use flowlift_softpath::{
    Config, Datapath, Dropped, MeterBand, MeterConfig, MeterCount, MeterError, MeterUnit, Reference, Worker,
};
use proptest::prelude::*;

fn band(rate: u32, burst: u32) -> MeterBand {
    MeterBand { rate, burst }
}

fn meter(unit: MeterUnit, bands: &[MeterBand]) -> MeterConfig {
    MeterConfig { unit, bands: bands.to_vec() }
}

/// A datapath whose only flow asks meter 4 before it outputs.
fn metered(config: MeterConfig) -> (Datapath, Worker) {
    let mut dp = Datapath::new(Config::default());
    let mut flow = port_flow(1, 2);
    flow.actions.insert(0, Action::Meter(4));
    dp.put(&flow).unwrap();
    dp.set_meter(4, config).unwrap();
    let worker = dp.worker();
    (dp, worker)
}

/// How many of `count` packets of `len` bytes get through at `now`.
fn through(worker: &mut Worker, count: usize, len: usize, now: u64) -> usize {
    let mut out = Recorder::default();
    let mut frame = udp(1, 1);
    frame.resize(len, 0);
    for _ in 0..count {
        worker.process_one(&mut packet(&frame, 1), now, &mut out);
    }
    let dropped = out.events.iter().filter(|e| **e == Event::Dropped(Dropped::Action(DropReason::Meter(4))));
    assert_eq!(out.ports().len() + dropped.count(), count);
    out.ports().len()
}

#[test]
fn packets_per_second() {
    // A bucket of 5 packets, and one more each 10 ms.
    let (dp, mut w) = metered(meter(MeterUnit::Pktps, &[band(100, 5)]));
    assert_eq!(through(&mut w, 8, 60, 1000), 5);
    assert_eq!(through(&mut w, 8, 60, 1009), 0);
    assert_eq!(through(&mut w, 8, 60, 1010), 1);
    assert_eq!(through(&mut w, 8, 60, 1035), 2);
    assert_eq!(through(&mut w, 8, 60, 9000), 5, "no more than the bucket holds");
    let (_, stats) = dp.meter(4).unwrap();
    assert_eq!(stats.total, MeterCount { packets: 40, bytes: 2400 });
    assert_eq!(stats.bands, [MeterCount { packets: 27, bytes: 27 * 60 }]);
    assert_eq!(stats.used, Some(9000));
}

#[test]
fn kilobits_per_second() {
    // 8 kbit are 1,000 bytes: ten frames of 100, then one each 100 ms.
    let (_dp, mut w) = metered(meter(MeterUnit::Kbps, &[band(8, 8)]));
    assert_eq!(through(&mut w, 12, 100, 5), 10);
    assert_eq!(through(&mut w, 1, 100, 104), 0);
    assert_eq!(through(&mut w, 1, 100, 105), 1);
    // A frame larger than the bucket never gets through, and takes nothing.
    assert_eq!(through(&mut w, 1, 1001, 60_000), 0);
    assert_eq!(through(&mut w, 12, 100, 60_000), 10);
}

#[test]
fn a_packet_too_large_for_a_full_bucket_leaves_it_full() {
    // So late that rate times time does not fit 64 bits.
    let late = 18_310_372_348_975;
    let (_dp, mut w) = metered(meter(MeterUnit::Kbps, &[band(1_488_504_103, 2)]));
    assert_eq!(through(&mut w, 1, 251, late), 0);
    assert_eq!(through(&mut w, 1, 60, late), 1);
}

#[test]
fn the_band_with_the_highest_rate_drops() {
    let (dp, mut w) = metered(meter(MeterUnit::Pktps, &[band(10, 2), band(30, 4), band(20, 6)]));
    // Two pass all bands; the third and fourth exceed the first band, the fifth and sixth also the second, which is faster.
    assert_eq!(through(&mut w, 8, 60, 0), 2);
    let packets: Vec<u64> = dp.meter(4).unwrap().1.bands.iter().map(|c| c.packets).collect();
    assert_eq!(packets, [2, 4, 0]);
}

#[test]
fn a_meter_without_bands_counts_and_one_that_is_not_there_lets_through() {
    let (mut dp, mut w) = metered(meter(MeterUnit::Kbps, &[]));
    assert_eq!(through(&mut w, 3, 60, 0), 3);
    assert_eq!(dp.delete_meter(4).unwrap().total.packets, 3);
    assert_eq!((dp.delete_meter(4), dp.meter(4)), (None, None));
    assert_eq!(through(&mut w, 3, 60, 0), 3);
}

#[test]
fn a_meter_is_replaced_whole() {
    let (mut dp, mut w) = metered(meter(MeterUnit::Pktps, &[band(1, 1)]));
    assert_eq!(through(&mut w, 3, 60, 0), 1);
    let last = dp.set_meter(4, meter(MeterUnit::Pktps, &[band(1, 2)])).unwrap().unwrap();
    assert_eq!(last.total.packets, 3);
    assert_eq!(dp.meter(4).unwrap().1.total.packets, 0);
    assert_eq!(through(&mut w, 3, 60, 0), 2);
    assert_eq!(dp.meter_ids().collect::<Vec<_>>(), [4]);
}

#[test]
fn what_no_meter_can_be_is_refused() {
    let mut dp = Datapath::new(Config::default());
    let none = meter(MeterUnit::Kbps, &[]);
    assert_eq!(dp.set_meter(MAX_METERS, none), Err(MeterError::Id(MAX_METERS)));
    let many = meter(MeterUnit::Kbps, &[band(1, 1); 9]);
    assert_eq!(dp.set_meter(0, many), Err(MeterError::Bands(9)));
}

#[test]
fn workers_share_a_bucket() {
    let (dp, _) = metered(meter(MeterUnit::Pktps, &[band(1, 1000)]));
    let passed: usize = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mut w = dp.worker();
                s.spawn(move || through(&mut w, 1000, 60, 7))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 1000);
    let (_, stats) = dp.meter(4).unwrap();
    assert_eq!((stats.total.packets, stats.bands[0].packets), (4000, 3000));
}

#[test]
fn a_meter_goes_on_counting_where_another_process_was() {
    let config = meter(MeterUnit::Pktps, &[band(1, 3)]);
    let (dp, mut w) = metered(config.clone());
    assert_eq!(through(&mut w, 5, 100, 1000), 3);
    let (_, before) = dp.meter(4).unwrap();
    let (mut next, mut w) = metered(config.clone());
    assert!(next.carry_meter_stats(4, &before) && !next.carry_meter_stats(5, &before));
    assert_eq!(next.meter(4).unwrap().1, before);
    assert_eq!(through(&mut w, 4, 100, 1001), 3, "its bucket is full again");
    let (_, stats) = next.meter(4).unwrap();
    let sum = |packets| MeterCount { packets, bytes: packets * 100 };
    assert_eq!((stats.total, stats.bands, stats.used), (sum(9), vec![sum(3)], Some(1001)));
    // One that is set anew begins at 0.
    next.set_meter(4, config).unwrap();
    assert_eq!(next.meter(4).unwrap().1.total, MeterCount::default());
}

proptest! {
    #[test]
    fn buckets_are_those_of_the_linear_reference(
        kbps: bool,
        bands in prop::collection::vec((prop_oneof![0..40u32, any::<u32>()], prop_oneof![0..20u32, any::<u32>()]), 0..4),
        steps in prop::collection::vec((prop_oneof![4 => 0..30u64, 1 => 0..1u64 << 45], 60..1500usize), 1..60),
    ) {
        let unit = if kbps { MeterUnit::Kbps } else { MeterUnit::Pktps };
        let config = meter(unit, &bands.iter().map(|(r, b)| band(*r, *b)).collect::<Vec<_>>());
        let (_dp, mut w) = metered(config.clone());
        let mut reference = Reference::new(1);
        let mut flow = port_flow(1, 2);
        flow.actions.insert(0, Action::Meter(4));
        reference.put(&flow).unwrap();
        reference.set_meter(4, config).unwrap();
        let mut now = 0;
        for (n, (later, len)) in steps.into_iter().enumerate() {
            now += later;
            let mut frame = udp(1, 1);
            frame.resize(len, 0);
            let mut expected = Recorder::default();
            reference.process(&mut packet(&frame, 1), now, &mut expected);
            let passed = expected.ports() == [PortNo(2).0];
            prop_assert_eq!(through(&mut w, 1, len, now), usize::from(passed), "packet {} at {} ms", n, now);
        }
    }
}
