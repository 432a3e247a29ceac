//! Each violation of FL1.md, section 3, can be provoked, is latched with its details, and harms nothing.

use crate::host::*;

/// The violation register: code and details of the first since reset.
#[track_caller]
fn expect(h: &mut Host, code: u32, info: u64) {
    assert_eq!((h.read(0x34), h.read64(0x38)), (code, info), "first violation");
    assert_eq!((h.read(0x30), h.read(0x40)), (1, 1), "count since reset, since power-on");
    assert_eq!(h.dev.violations_total(), 1);
}

fn at(offset: u64, value: u32) -> u64 {
    offset | u64::from(value) << 32
}

#[test]
fn bad_offset() {
    let mut h = Host::new("tiny");
    assert_eq!(h.read(0xf00), 0);
    expect(&mut h, 1, 0xf00);
}

#[test]
fn bad_width() {
    for (width, offset) in [(1usize, 0u64), (2, 0), (8, 0), (4, 2)] {
        let mut h = Host::new("tiny");
        let mut d = vec![0xaa; width];
        flowlift_bus::DeviceModel::region_read(&mut h.dev, 0, offset, &mut d);
        assert_eq!(d, vec![0; width]);
        expect(&mut h, 2, offset | (width as u64) << 32);
    }
}

#[test]
fn read_only() {
    let mut h = Host::new("tiny");
    h.write(0x30, 0);
    expect(&mut h, 3, 0x30);
}

#[test]
fn reserved_bits() {
    for offset in [0x8, 0x10c, 0x228, 0x1080] {
        let mut h = Host::new("tiny");
        let before = h.read(offset);
        h.write(offset, 0x10 | before);
        expect(&mut h, 4, at(offset, 0x10 | before));
        assert_eq!(h.read(offset), before, "the write has no effect");
    }
}

#[test]
fn bad_sequence() {
    // Each on a cold device: size before base, HI before LO, enable before size, device before its queues.
    for (offset, v) in [(0x108, 64), (0x104, 0), (0x10c, 1), (0x8, 1), (0x220, 64), (0x228, 1)] {
        let mut h = Host::cold("tiny", 0, Default::default());
        h.write(offset, v);
        expect(&mut h, 5, at(offset, v));
    }
    // On a running one: reconfiguring, and pulling the admin queue away.
    for (offset, v) in [(0x100, 0), (0x108, 64), (0x10c, 0), (0x11c, 0), (0x224, 64)] {
        let mut h = Host::new("tiny");
        h.write(offset, v);
        expect(&mut h, 5, at(offset, v));
    }
}

#[test]
fn bad_value() {
    let mut h = Host::cold("tiny", 0, Default::default());
    h.write(0x100, 32);
    expect(&mut h, 6, at(0x100, 32));
    for size in [0, 8, 48, 131_072] {
        let mut h = Host::cold("tiny", 0, Default::default());
        h.base(0x100, ASQ);
        h.write(0x108, size);
        expect(&mut h, 6, at(0x108, size));
    }
    let mut h = Host::cold("tiny", 0, Default::default());
    h.write(0x20, 1);
    expect(&mut h, 6, at(0x20, 1));
}

#[test]
fn doorbell_overrun() {
    for bell in [0x0, 0x400, 0x440] {
        let mut h = Host::new("tiny");
        let v = RING + 1;
        h.bell(bell, v);
        h.dev.step();
        h.dev.step();
        expect(&mut h, 7, at(bell as u64, v));
    }
}

#[test]
fn doorbell_backward() {
    let mut h = Host::new("tiny");
    h.must(&header(0, 0, 0, 0, 0));
    h.bell(0, 0);
    h.dev.step();
    expect(&mut h, 8, at(0, 0));
    h.bell(0, 1);
    h.must(&header(0, 0, 0, 0, 0));
}

#[test]
fn doorbell_not_zero() {
    let mut h = Host::cold("tiny", 0, Default::default());
    h.base(0x100, ASQ);
    h.write(0x108, RING);
    h.bell(0, 5);
    h.write(0x10c, 1);
    expect(&mut h, 9, at(0, 5));
    assert_eq!(h.read(0x10c), 0, "not enabled");
    h.bell(0, 0);
    h.write(0x10c, 1);
    assert_eq!(h.read(0x10c), 1);
}

#[test]
fn head_overrun() {
    for bell in [0x40, 0x80] {
        let mut h = Host::new("tiny");
        h.bell(bell, 1);
        h.dev.step();
        expect(&mut h, 10, at(bell as u64, 1));
    }
}

#[test]
fn unknown_opcode() {
    let mut h = Host::new("tiny");
    let d = h.command(&header(12, 0, 0, 0, 0));
    assert_eq!((d.status(), d.detail(), d.cookie()), (1, 11, 0xc0c_0000));
    expect(&mut h, 11, 12);
    h.must(&header(0, 0, 0, 0, 0));
}

#[test]
fn command_reserved() {
    // NOP uses nothing: every byte but opcode, slots, FENCE and cookie is reserved.
    let fields = [2, 2, 4, 4, 6, 6, 16, 16, 16, 16, 20, 20, 20, 20, 24, 24, 24, 24, 28, 28, 30, 31];
    let bytes = [2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];
    for (byte, field) in bytes.into_iter().chain(32..64).zip(fields.into_iter().chain(32..64)) {
        let mut h = Host::new("tiny");
        let mut c = header(0, 0, 0, 0, 0);
        c[byte] = 0x80;
        let d = h.command(&c);
        assert_eq!((d.status(), d.detail()), (1, 12), "byte {byte}");
        expect(&mut h, 12, field as u64);
    }
}

#[test]
fn padding_of_an_insert_is_reserved() {
    let mut h = Host::new("tiny");
    h.must(&header(0, 0, 0, 0, 0));
    let mut c = insert(0, 0, 0, &blobs(Keys::Tiny, &[]), &output(1));
    *c.last_mut().unwrap() = 1;
    let d = h.command(&c);
    assert_eq!((d.status(), d.detail()), (1, 12));
    expect(&mut h, 12, 191 | 1 << 32);
    assert_eq!(h.command(&header(3, 0, 0, 0, 0)).status(), 5, "it was not installed");
}

#[test]
fn command_length_with_framing_kept() {
    let mut h = Host::new("tiny");
    let mut c = header(0, 0, 0, 0, 0);
    c[1] = 2;
    c.resize(128, 0);
    let d = h.command(&c);
    assert_eq!((d.status(), d.detail()), (1, 13));
    expect(&mut h, 13, 2);
    h.must(&header(0, 0, 0, 0, 0));
}

#[test]
fn command_length_with_framing_lost_is_fatal() {
    for slots in [0, 17, 2, 255] {
        let mut h = Host::new("tiny");
        let mut c = header(0, 0, 0, 0, 0);
        c[1] = slots;
        h.submit(&c);
        h.dev.step();
        expect(&mut h, 13, u64::from(slots));
        assert_eq!((h.read(0xc), h.read(0x10)), (7, 8), "slots {slots}: fatal, RING_DESYNC");
        assert_eq!(h.read64(0x18), ASQ);
        let events = h.events();
        assert_eq!((le(&events[0], 0, 2), le(&events[0], 12, 4)), (5, 8), "FATAL event");
    }
}

#[test]
fn tx_descriptor() {
    let good = {
        let mut d = TX_FRAMES.to_le_bytes().to_vec();
        d.extend_from_slice(&60u32.to_le_bytes());
        d.extend_from_slice(&[1, 0, 0, 0]);
        d.resize(32, 0);
        d
    };
    // Length 13, no port, port 5 of 4, flag, stage and metadata without PIPELINE, stage 1 of 1, reserved.
    let wrong: [(&[(usize, u8)], u64); 8] = [
        (&[(8, 13)], 8),
        (&[(12, 0)], 12),
        (&[(12, 5)], 12),
        (&[(14, 2)], 14),
        (&[(15, 1)], 15),
        (&[(16, 1)], 16),
        (&[(14, 1), (15, 1)], 15),
        (&[(23, 1)], 20),
    ];
    for (changes, info) in wrong {
        let mut h = Host::new("tiny");
        let mut d = good.clone();
        for (byte, v) in changes {
            d[*byte] = *v;
        }
        h.poke(TXD, &d);
        h.poke(TXD + 32, &good);
        h.bell(0x440, 2);
        h.dev.step();
        expect(&mut h, 14, info);
        assert_eq!(h.tx_consumed(), 2, "consumed, and the next one sent");
        assert_eq!(h.out(1).len(), 1);
    }
}

#[test]
fn rx_buffer() {
    let mut h = Host::new("tiny");
    let mut b = RX_FRAMES.to_le_bytes().to_vec();
    b.extend_from_slice(&[0xff, 7, 0, 0, 0, 0, 0, 0]);
    h.poke(RXB, &b);
    h.inject(1, &udp([1, 1, 1, 1], 1, 1));
    h.dev.step();
    expect(&mut h, 15, 8);
    let c = h.peek(RXC, 64);
    assert_eq!((le(&c, 0, 4), le(&c, 4, 4)), (1, 60), "the next buffer took the frame");
}

#[test]
fn only_a_reset_clears_and_the_total_stays() {
    let mut h = Host::new("tiny");
    h.read(0xf00);
    h.read(0xf04);
    assert_eq!((h.read(0x30), h.read64(0x38), h.read(0x40)), (2, 0xf00, 2));
    h.write(0x20, 0x5453_4552);
    assert_eq!((h.read(0x30), h.read(0x34), h.read64(0x38), h.read(0x40)), (0, 0, 0, 2));
    assert_eq!((h.read(0x24), h.read(0x28)), (2, 1), "reset by register, once");
    h.start();
    flowlift_bus::DeviceModel::reset(&mut h.dev);
    assert_eq!((h.read(0x24), h.read(0x28)), (1, 2), "reset by FLR");
    assert_eq!(h.bells.load_u32(0x400, std::sync::atomic::Ordering::Relaxed).unwrap(), 0, "BAR2 is zeroed");
}
