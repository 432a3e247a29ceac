//! Packets and commands through the whole device.

use crate::host::*;
use flowlift_bus::DeviceModel;

const DST: [u8; 4] = [10, 0, 0, 2];
const FULL: u16 = 2; // standard: the TCAM of stage 0

pub(crate) fn ip_dst(keys: Keys) -> (Vec<u8>, Vec<u8>) {
    blobs(keys, &[(5, &[8, 0], &[0xff; 2]), (14, &DST, &[0xff; 4])])
}

/// A device with one entry in the TCAM of stage 0 for frames to DST.
fn with_actions(actions: &[u8]) -> Host {
    let mut h = Host::new("standard");
    h.must(&insert(FULL, 7, 5, &ip_dst(Keys::Full), actions));
    h
}

#[test]
fn a_miss_goes_to_the_slow_queue_with_where_to_resume() {
    let mut h = Host::new("standard");
    let f = udp(DST, 1, 2);
    h.inject(3, &f);
    h.dev.step();
    let s = h.slow();
    assert_eq!(s.len(), 1);
    assert_eq!((&s[0].frame, s[0].port(), s[0].reason(), s[0].stage()), (&f, 3, 1, 0));
    assert_eq!((s[0].table(), s[0].metadata(), s[0].entry()), (2, 0, 0xffff_ffff));
    assert!(h.irqs.lock().unwrap().contains(&2), "vector of slow queue 0");
    h.assert_clean();
}

#[test]
fn hits_leave_by_their_ports_and_are_counted() {
    let mut h = with_actions(&[output(2), set(3, &[6; 6]), output(3), output(1)].concat());
    let f = udp(DST, 1, 2);
    for _ in 0..3 {
        h.inject(1, &f);
    }
    h.clock.set(5000);
    h.dev.step();
    let mut changed = f.clone();
    changed[..6].fill(6);
    assert_eq!(h.out(2), vec![f.clone(); 3], "as it was at the first OUTPUT");
    assert_eq!(h.out(3), vec![changed.clone(); 3]);
    assert_eq!(h.out(1), vec![changed; 3], "the ingress port too");
    let d = h.must(&header(3, FULL, 7, 0, 0));
    assert_eq!((d.packets(), d.bytes(), d.generation()), (3, 180, 107));
    assert_eq!(le(&d.raw, 32, 8), 5000, "last used");
    assert_eq!((h.read(0x1090), h.read(0x1098), h.read(0x1120)), (3, 180, 3), "port counters");
    h.inject(1, &f);
    h.dev.step();
    assert_eq!(h.slow().len(), 1, "deleted");
    h.assert_clean();
}

#[test]
fn an_empty_list_drops_and_counts() {
    let mut h = with_actions(&[]);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert!(h.slow().is_empty());
    assert_eq!(h.must(&header(3, FULL, 7, 0, 0)).packets(), 1);
}

#[test]
fn hash_goes_before_tcam_and_masks_have_slots() {
    let mut h = with_actions(&output(2));
    h.must(&insert(0, 0, 0, &ip_dst(Keys::Hash4), &output(3)));
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(2).len(), h.out(3).len()), (0, 1));
    // A second mask that matches as well has the next slot: it is asked later.
    let wide = blobs(Keys::Hash4, &[(5, &[8, 0], &[0xff; 2])]);
    h.must(&insert(0, 1, 0, &wide, &output(4)));
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(3).len(), h.out(4).len()), (1, 0));
    // The first mask's slot becomes free, and a new mask takes it.
    h.must(&header(3, 0, 0, 0, 0));
    let port = blobs(Keys::Hash4, &[(1, &[0, 1], &[0xff; 2])]);
    h.must(&insert(0, 2, 0, &port, &output(5)));
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(4).len(), h.out(5).len()), (0, 1));
    h.assert_clean();
}

#[test]
fn goto_parses_the_changed_packet_again_with_its_metadata() {
    let metadata = [0x77u32.to_le_bytes(), 0xffu32.to_le_bytes()].concat();
    let mut h = with_actions(&[set(14, &[9, 9, 9, 9]), unit(8, 0, &metadata), unit(9, 1, &[])].concat());
    let f = udp(DST, 1, 2);
    h.inject(1, &f);
    h.dev.step();
    let s = h.slow();
    assert_eq!((s[0].reason(), s[0].stage(), s[0].table(), s[0].metadata()), (1, 1, 4, 0x77));
    assert_eq!(s[0].frame[30..34], [9, 9, 9, 9], "the packet as modified so far");
    let second = blobs(Keys::Full, &[(2, &[0, 0, 0, 0x77], &[0xff; 4]), (14, &[9; 4], &[0xff; 4])]);
    h.must(&insert(4, 0, 0, &second, &output(6)));
    h.inject(1, &f);
    h.dev.step();
    assert_eq!(h.out(6), [s[0].frame.clone()]);
    // The slow path hands the first one back to where it left.
    h.tx(&s[0].frame, 1, Some((1, 0x77)));
    h.dev.step();
    assert_eq!(h.out(6).len(), 1);
    assert_eq!(h.must(&header(3, 4, 0, 0, 0)).packets(), 2);
    assert_eq!(h.must(&header(3, FULL, 7, 0, 0)).packets(), 2);
    h.assert_clean();
}

#[test]
fn trap_gives_the_packet_as_it_is() {
    let mut h = with_actions(&[output(2), set(3, &[6; 6]), unit(7, 0, &[])].concat());
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    let s = h.slow();
    assert_eq!((s[0].reason(), s[0].table(), s[0].entry()), (3, 2, 7));
    assert_eq!((&s[0].frame[..6], h.out(2).len()), (&[6u8; 6][..], 1));
    assert_eq!(h.must(&header(3, FULL, 7, 0, 0)).packets(), 1);
}

#[test]
fn an_exception_undoes_the_whole_list() {
    let mut h = with_actions(&[output(2), unit(5, 0, &[]), output(3)].concat());
    let mut f = udp(DST, 1, 2);
    f[22] = 1;
    h.inject(1, &f);
    h.dev.step();
    let s = h.slow();
    assert_eq!((s[0].reason(), s[0].entry(), &s[0].frame), (4, 7, &f));
    assert_eq!(h.out(2).len() + h.out(3).len(), 0, "no output happened");
    assert_eq!(h.must(&header(3, FULL, 7, 0, 0)).packets(), 0, "and nothing is counted");
}

#[test]
fn replace_keeps_key_and_counters() {
    let mut h = with_actions(&output(2));
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!(h.must(&replace(FULL, 7, 9, &output(3))).generation(), 9);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(2).len(), h.out(3).len()), (1, 1));
    let d = h.must(&header(3, FULL, 7, 0, 0));
    assert_eq!((d.packets(), d.generation()), (2, 9));
    h.assert_clean();
}

#[test]
fn refusals_name_their_cause() {
    let mut h = Host::new("standard");
    let key = ip_dst(Keys::Full);
    h.must(&insert(FULL, 7, 5, &key, &output(1)));
    let mut check = |c: Vec<u8>, status: u64, detail: u64, what: &str| {
        let d = h.command(&c);
        assert_eq!((d.status(), d.detail()), (status, detail), "{what}");
    };
    check(insert(9, 0, 0, &key, &[]), 2, 0, "no such table");
    check(insert(FULL, 2048, 0, &key, &[]), 3, 2048, "entry id");
    check(insert(FULL, 7, 0, &key, &[]), 4, 0, "in use");
    check(header(3, FULL, 8, 0, 0), 5, 0, "not found");
    check(insert(FULL, 8, 5, &key, &[]), 8, 7, "duplicate");
    check(
        insert(0, 0, 0, &blobs(Keys::Hash4, &[(5, &[8, 0], &[0xff, 0xf0])]), &[]),
        9,
        5,
        "partial mask on exact",
    );
    let hole = [0xff, 0, 0xff, 0];
    check(insert(0, 0, 0, &blobs(Keys::Hash4, &[(13, &[1, 0, 0, 0], &hole)]), &[]), 9, 13, "not a prefix");
    check(
        insert(FULL, 8, 5, &blobs(Keys::Full, &[(20, &[0, 0], &[0xf0, 0])]), &[]),
        9,
        20,
        "unsupported bits",
    );
    check(
        insert(FULL, 8, 5, &blobs(Keys::Full, &[(14, &DST, &[0xff, 0xff, 0, 0])]), &[]),
        10,
        14,
        "key outside mask",
    );
    check(insert(FULL, 8, 1, &key, &output(17)), 11, 0, "port 17 of 16");
    check(insert(FULL, 8, 1, &key, &[output(1), unit(9, 0, &[])].concat()), 11, 1, "GOTO its own stage");
    check(insert(FULL, 8, 1, &key, &[unit(9, 1, &[]), output(1)].concat()), 11, 0, "GOTO not last");
    check(insert(FULL, 8, 1, &key, &unit(6, 0, &[])), 11, 0, "meter that is not set");
    check(insert(FULL, 8, 1, &key, &output(1).repeat(17)), 12, 16, "17 units");
    check(insert(0, 0, 1, &ip_dst(Keys::Hash4), &[]), 17, 0, "priority on HASH");
    check(insert(0, 0, 0, &key, &[]), 16, 48, "key length");
    check(buffer(9, 0, 0, 0, 0, SCRATCH, 16), 15, u64::from(h_caps()), "buffer too small");
    check(buffer(9, 0, 0, 0, 0, 0x1000, 65536), 13, 0, "blocked buffer");
    check(buffer(5, FULL, 2000, 0, 49, SCRATCH, 65536), 18, 24, "range past the table");
    check(buffer(8, 0, 300, 0, 0, SCRATCH, 48), 3, 256, "no such meter");
    h.must(&header(3, FULL, 7, 0, 0));
    h.assert_clean();
}

fn h_caps() -> u32 {
    Host::cold("standard", 0, Default::default()).read(0x64)
}

#[test]
fn masks_run_out() {
    let mut h = Host::new("standard");
    // HASH-6 of stage 0 has 16 masks; use HASH-4's 32 by prefix length of the source.
    for n in 0..33u32 {
        let mask = (u32::MAX.checked_shl(32 - n).unwrap_or(0)).to_be_bytes();
        let d = h.command(&insert(0, n, 0, &blobs(Keys::Hash4, &[(13, &[0; 4], &mask)]), &[]));
        assert_eq!(d.status(), if n < 32 { 0 } else { 7 }, "mask {n}");
    }
    h.must(&header(3, 0, 4, 0, 0));
    h.must(&insert(0, 40, 0, &blobs(Keys::Hash4, &[(13, &[0; 4], &[0xff; 4])]), &[]));
    h.assert_clean();
}

#[test]
fn commands_wrap_around_the_ring_and_batch() {
    let mut h = Host::new("tiny");
    for round in 0..40 {
        let d: Vec<_> = (0..4u32)
            .map(|i| {
                let key = blobs(Keys::Tiny, &[(1, &(i as u16).to_be_bytes(), &[0xff; 2])]);
                h.submit(&insert(0, i, 0, &key, &output(1)));
                h.submit(&header(3, 0, i, 0, 0));
            })
            .collect();
        h.dev.step();
        let done = h.completions();
        assert_eq!(done.len(), 2 * d.len(), "round {round}");
        assert!(done.iter().all(|d| d.status() == 0));
    }
    assert_eq!(h.read(0x120), h.sq_tail);
    h.assert_clean();
}

#[test]
fn a_full_completion_ring_stops_the_commands() {
    let mut h = Host::new("tiny");
    for _ in 0..2 {
        for _ in 0..RING {
            h.submit(&header(0, 0, 0, 0, 0));
        }
        h.dev.step();
    }
    assert_eq!(h.read(0x120), RING, "fetched only what it can complete");
    assert_eq!(h.completions().len(), RING as usize);
    h.dev.step();
    assert_eq!(h.completions().len(), RING as usize);
    h.assert_clean();
}

#[test]
fn counter_page_follows_every_packet_and_outlives_the_device() {
    let mut h = Host::new("standard");
    let len = 2048 * 32;
    h.must(&buffer(10, FULL, 0, 0, 0, PAGE, len));
    h.poke(PAGE + 7 * 32, &[0xee; 32]);
    h.must(&insert(FULL, 7, 5, &ip_dst(Keys::Full), &output(2)));
    assert_eq!(le(&h.peek(PAGE + 7 * 32, 32), 0, 8), 0, "zeroed by INSERT");
    for n in 1..=3 {
        h.inject(1, &udp(DST, 1, 2));
        h.dev.step();
        let r = h.peek(PAGE + 7 * 32, 32);
        assert_eq!((le(&r, 0, 8), le(&r, 8, 8), le(&r, 28, 4)), (n, 60 * n, 107));
    }
    h.dev.unplug();
    assert_eq!(h.read(0), 0xffff_ffff);
    assert_eq!(le(&h.peek(PAGE + 7 * 32, 32), 0, 8), 3);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!(h.wires[0].take_back().len(), 1, "the frame is still on its wire");
}

#[test]
fn a_frame_without_buffer_waits_and_keeps_its_order() {
    let mut h = with_actions(&output(2));
    let (miss, hit) = (udp([1, 1, 1, 1], 1, 2), udp(DST, 1, 2));
    for _ in 0..RING + 1 {
        h.inject(1, &miss);
    }
    h.inject(1, &hit);
    h.dev.step();
    assert_eq!((h.out(2).len(), h.wires[0].pending()), (0, 2), "those behind it wait too");
    assert!(h.read(0x22c) > 0, "RX_STALLS");
    assert!(h.read(0x10c0) > 0, "RX_HELD");
    assert_eq!(h.slow().len(), RING as usize);
    h.dev.step();
    assert_eq!((h.slow().len(), h.out(2).len()), (1, 1));
    h.assert_clean();
}

#[test]
fn a_frame_for_a_port_without_link_waits() {
    let mut h = with_actions(&[output(2), output(3)].concat());
    h.wires[2].set_link(false);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(2).len(), h.wires[0].pending()), (0, 1), "all or nothing");
    h.dev.step();
    let e = h.events();
    assert_eq!((le(&e[0], 0, 2), le(&e[0], 2, 2), le(&e[0], 12, 4)), (1, 3, 0), "LINK down");
    assert_eq!(h.read(0x1184) & 1, 0);
    h.tx(&udp(DST, 1, 2), 3, None);
    h.dev.step();
    assert_eq!(h.tx_consumed(), 0, "TX waits as well");
    h.wires[2].set_link(true);
    h.dev.step();
    assert_eq!((h.out(2).len(), h.out(3).len(), h.tx_consumed()), (1, 2, 1));
    h.assert_clean();
}

#[test]
fn output_to_a_disabled_port_is_dropped_and_counted() {
    let mut h = with_actions(&[output(2), output(3)].concat());
    h.write(0x1180, 0);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    assert_eq!((h.out(2).len(), h.out(3).len(), h.read(0x11b8)), (1, 0, 1));
}

#[test]
fn a_long_frame_spans_buffers() {
    let mut h = Host::new("tiny");
    let f: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    h.inject(1, &f);
    h.inject(1, &udp(DST, 1, 2));
    h.dev.step();
    let s = h.slow();
    assert_eq!(s.iter().map(|s| s.frame.len()).collect::<Vec<_>>(), [5000, 60]);
    assert_eq!((&s[0].frame, le(&s[0].raw, 36, 4)), (&f, 5000));
    h.assert_clean();
}

#[test]
fn nothing_moves_without_bus_master_or_enable() {
    let mut h = with_actions(&output(2));
    h.inject(1, &udp(DST, 1, 2));
    h.dev.bus_master(false);
    let beat = h.read(0x44);
    h.dev.step();
    assert_eq!((h.out(2).len(), h.read(0x44)), (0, beat));
    h.dev.bus_master(true);
    h.write(8, 0);
    h.dev.step();
    assert_eq!((h.out(2).len(), h.read(0x44)), (0, beat + 1));
    h.write(8, 1);
    h.dev.step();
    assert_eq!(h.out(2).len(), 1);
    h.assert_clean();
}

#[test]
fn unused_entries_age_once() {
    let mut h = Host::new("tiny");
    h.must(&golden("insert_tcam_tiny")); // ages after 1000 ms
    let aged = |h: &mut Host| {
        h.dev.step();
        h.events().iter().filter(|e| le(*e, 0, 2) == 3).count()
    };
    h.clock.advance(900_000_000);
    h.inject(1, &udp([10, 1, 1, 1], 1, 2));
    assert_eq!(aged(&mut h), 0);
    h.clock.advance(900_000_000);
    assert_eq!(aged(&mut h), 0, "used 900 ms ago");
    h.clock.advance(200_000_000);
    assert_eq!(aged(&mut h), 1);
    h.clock.advance(5_000_000_000);
    assert_eq!(aged(&mut h), 0, "once");
}

#[test]
fn pressure_is_told_with_hysteresis() {
    let mut h = Host::new("tiny");
    let mut told = Vec::new();
    let mut note = |h: &mut Host| {
        h.dev.step();
        told.extend(h.events().iter().filter(|e| le(*e, 0, 2) == 4).map(|e| le(e, 12, 4)));
    };
    for i in 0..16u32 {
        h.must(&insert(0, i, 0, &blobs(Keys::Tiny, &[(1, &(i as u16).to_be_bytes(), &[0xff; 2])]), &[]));
        note(&mut h);
    }
    for i in 0..16 {
        h.must(&header(3, 0, i, 0, 0));
        note(&mut h);
    }
    assert_eq!(told, [93, 68], "15 of 16 and 11 of 16");
    h.assert_clean();
}

#[test]
fn flush_removes_everything() {
    let mut h = with_actions(&output(2));
    assert_eq!(h.must(&header(6, FULL, 0, 0, 0)).result(), 1);
    assert_eq!(h.command(&header(3, FULL, 7, 0, 0)).status(), 5);
    h.must(&insert(FULL, 7, 5, &ip_dst(Keys::Full), &output(2)));
    h.assert_clean();
}
