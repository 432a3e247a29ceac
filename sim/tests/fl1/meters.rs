//! Meters, and the window by which the slow path uses them.

use crate::host::*;
use crate::pipeline::ip_dst;
use flowlift_sim::FaultPlan;

const FULL: u16 = 2;
const DST: [u8; 4] = [10, 0, 0, 2];
const METER_ID: u64 = 0x80;
const METER_RATE: u64 = 0x84;
const METER_BURST: u64 = 0x88;
const METER_CTRL: u64 = 0x8c;
const METER_LEVEL: u64 = 0x90;
const METER_CHARGE: u64 = 0x98;
const SET: u32 = 1;
const REMOVE: u32 = 2;
const PACKETS: u32 = 1 << 8;

#[test]
fn meters_drop_above_their_rate() {
    let mut h = Host::new("standard");
    h.must(&golden("meter_set")); // meter 5: 1000 packets per second, burst 10
    let actions = [output(3), unit(6, 0, &[5, 0, 0, 0]), output(2)].concat();
    h.must(&insert(FULL, 7, 5, &ip_dst(Keys::Full), &actions));
    for _ in 0..15 {
        h.inject(1, &udp(DST, 1, 2));
    }
    h.dev.step();
    assert_eq!((h.out(3).len(), h.out(2).len()), (15, 10), "outputs before the meter stand");
    h.must(&buffer(8, 0, 5, 33, 0, SCRATCH, 48));
    let r = h.peek(SCRATCH, 48);
    assert_eq!([0, 8, 16, 24].map(|at| le(&r, at, 8)), [10, 600, 5, 300]);
    assert_eq!((le(&r, 32, 4), le(&r, 36, 4)), (5, 33));
    assert_eq!(le(&r, 44, 4), u64::from(flowlift_sim::crc32c(&r[..44])));
    h.assert_clean();
}

fn set(h: &mut Host, meter: u32, (rate, burst): (u32, u32), level: u64, ctrl: u32) {
    h.write(METER_ID, meter);
    h.write(METER_RATE, rate);
    h.write(METER_BURST, burst);
    h.write(METER_LEVEL, level as u32);
    h.write(METER_LEVEL + 4, (level >> 32) as u32);
    h.write(METER_CTRL, ctrl);
}

fn charge(h: &mut Host, meter: u32, bytes: u32) -> u32 {
    h.write(METER_CHARGE, meter << 20 | bytes);
    h.read(METER_CHARGE)
}

/// Passed and dropped packets and bytes, level, time.
fn record(h: &Host, meter: usize) -> [u64; 6] {
    let r = h.peek(SCRATCH + 64 * meter as u64, 64);
    assert_eq!(le(&r, 48, 8) | le(&r, 56, 8), 0, "reserved");
    [0, 8, 16, 24, 32, 40].map(|at| le(&r, at, 8))
}

/// A device with a meter page, and an entry that asks meter 5 before it outputs to port 2.
fn metered(rate_and_burst: (u32, u32), level: u64, ctrl: u32) -> Host {
    let mut h = Host::new("standard");
    h.must(&buffer(11, 0, 0, 0, 0, SCRATCH, 64 * 256));
    set(&mut h, 5, rate_and_burst, level, ctrl);
    let actions = [unit(6, 0, &[5, 0, 0, 0]), output(2)].concat();
    h.must(&insert(FULL, 7, 5, &ip_dst(Keys::Full), &actions));
    h
}

#[test]
fn tables_and_slow_path_draw_on_one_bucket() {
    let mut h = metered((1000, 10), 4_000, SET | PACKETS);
    let frame = udp(DST, 1, 2);
    h.inject(1, &frame);
    h.dev.step();
    assert_eq!(charge(&mut h, 5, 60), 1);
    h.inject(1, &frame);
    h.dev.step();
    assert_eq!((charge(&mut h, 5, 60), charge(&mut h, 5, 60)), (1, 2), "four were in it");
    h.inject(1, &frame);
    h.dev.step();
    assert_eq!(h.out(2).len(), 2);
    let [passed, bytes, dropped, dropped_bytes, level, _] = record(&h, 5);
    let len = frame.len() as u64;
    assert_eq!((passed, bytes, dropped, dropped_bytes), (2, 2 * len, 1, len), "charges are not counted");
    assert_eq!(level, 0);
    // The clock began at 1,000 ns: a millisecond ends 999,000 ns later.
    h.clock.advance(998_999);
    assert_eq!(charge(&mut h, 5, 60), 2);
    h.clock.advance(1);
    assert_eq!((charge(&mut h, 5, 60), charge(&mut h, 5, 60)), (1, 2));
    assert_eq!(record(&h, 5)[4..], [0, 1_000_000]);
    h.assert_clean();
}

#[test]
fn bits_are_counted_from_the_level_that_is_set() {
    let mut h = metered((8, 8), 5 * 60 * 8, SET);
    assert_eq!(record(&h, 5), [0, 0, 0, 0, 2400, 1000]);
    assert_eq!((charge(&mut h, 5, 299), charge(&mut h, 5, 2), charge(&mut h, 5, 1)), (1, 2, 1));
    h.clock.advance(10_000_000_000);
    assert_eq!((charge(&mut h, 5, 1001), charge(&mut h, 5, 1000), charge(&mut h, 5, 1)), (2, 1, 2));
    h.assert_clean();
}

#[test]
fn what_is_not_there_answers_0() {
    let mut h = metered((1, 1), 1000, SET | PACKETS);
    assert_eq!((charge(&mut h, 4, 60), charge(&mut h, 4095, 60)), (0, 0));
    h.write(METER_CTRL, REMOVE);
    assert_eq!(charge(&mut h, 5, 60), 0);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!(h.out(2).len(), 1, "an entry whose meter was removed passes all");
    set(&mut h, 5, (1, 1), 1000, SET | PACKETS);
    h.write(0x20, 0x5453_4552);
    assert_eq!(charge(&mut h, 5, 60), 0, "after a reset");
    h.assert_clean();
}

#[test]
fn settings_that_cannot_be_are_violations() {
    for (n, (meter, rates, level, ctrl)) in [
        (256, (1, 1), 0, SET),
        (0, (0, 1), 0, SET),
        (0, (1, 0), 0, SET),
        (0, (1, 1), 1001, SET),
        (0, (1, 1), 0, 0),
        (0, (1, 1), 0, SET | REMOVE),
        (0, (1, 1), 0, REMOVE | PACKETS),
        (0, (1, 1), 0, SET | 4),
    ]
    .into_iter()
    .enumerate()
    {
        let mut h = Host::new("standard");
        set(&mut h, meter, rates, level, ctrl);
        assert_eq!(h.dev.violations_total(), 1, "case {n}");
        assert_eq!(charge(&mut h, meter & 0xfff, 60), 0, "case {n}");
    }
}

#[test]
fn the_page_is_registered_while_there_is_no_meter() {
    let mut h = Host::with("standard", 0, FaultPlan::default());
    assert_eq!(h.command(&buffer(11, 0, 0, 0, 0, SCRATCH, 64 * 256 - 1)).status(), 15);
    h.must(&golden("meter_set"));
    assert_eq!(h.command(&buffer(11, 0, 0, 0, 0, SCRATCH, 64 * 256)).status(), 4);
    h.assert_clean();
}
