//! Order across the slow path (FL1.md, section 8, "Order").

use crate::host::*;

const RX_DONE: usize = 0x480;
const FLOW: [u8; 4] = [10, 0, 0, 2];

/// A device whose one slow queue keeps order, with nothing in its tables.
fn ordered() -> Host {
    let mut h = Host::new("tiny");
    h.write(0x228, 0);
    h.bell(0x400, 0);
    (h.rx_tail, h.rx_head) = (0, 0);
    h.bell(0x440, 0);
    for (offset, base) in [(0x200, RXB), (0x208, RXC), (0x210, TXD), (0x218, TXW)] {
        h.base(offset, base);
    }
    h.write(0x220, RING);
    h.write(0x224, RING);
    h.write(0x228, 7);
    assert_eq!(h.read(0x228), 7, "RX, TX and ORDER");
    h.post_buffers(RING);
    h
}

/// Everything from port 1 to port 2, in the tables.
fn offload(h: &mut Host) {
    h.must(&insert(0, 0, 0, &blobs(Keys::Tiny, &[(1, &[0, 1], &[0xff; 2])]), &output(2)));
}

#[test]
fn a_frame_waits_for_those_of_its_flow_that_the_slow_path_has() {
    let mut h = ordered();
    h.inject(1, &udp(FLOW, 1, 1));
    h.inject(1, &udp(FLOW, 2, 1));
    h.dev.step();
    let slow = h.slow();
    assert_eq!(slow.len(), 2);
    offload(&mut h);
    h.inject(1, &udp(FLOW, 3, 1));
    h.dev.step();
    assert_eq!(h.out(2), Vec::<Vec<u8>>::new(), "the third frame must not overtake");
    assert!(h.read(0x1000 + 0x80 + 0x40) > 0, "RX_HELD counts");
    h.tx(&slow[0].frame, 2, None);
    h.bell(RX_DONE, 1);
    h.dev.step();
    assert_eq!(h.out(2), [udp(FLOW, 1, 1)], "one is done, one is not");
    h.tx(&slow[1].frame, 2, None);
    h.dev.step();
    assert_eq!(h.out(2), [udp(FLOW, 2, 1)], "sent, but the driver has not said that it is done");
    h.bell(RX_DONE, 2);
    h.dev.step();
    assert_eq!(h.out(2), [udp(FLOW, 3, 1)]);
    h.assert_clean();
}

#[test]
fn other_flows_and_drops_do_not_wait() {
    let mut h = ordered();
    h.inject(1, &udp(FLOW, 1, 1));
    h.dev.step();
    assert_eq!(h.slow().len(), 1);
    offload(&mut h);
    let other = [10, 0, 0, 3];
    h.inject(1, &udp(other, 1, 1));
    h.dev.step();
    assert_eq!(h.out(2), [udp(other, 1, 1)]);
    h.must(&replace(0, 0, 7, &[]));
    h.inject(1, &udp(FLOW, 2, 1));
    h.dev.step();
    assert_eq!((h.wires[0].pending(), h.out(2).len()), (0, 0), "a dropped frame overtakes nobody");
    h.assert_clean();
}

#[test]
fn without_order_nothing_waits() {
    let mut h = Host::new("tiny");
    h.inject(1, &udp(FLOW, 1, 1));
    h.dev.step();
    assert_eq!(h.slow().len(), 1);
    offload(&mut h);
    h.inject(1, &udp(FLOW, 2, 1));
    h.dev.step();
    assert_eq!(h.out(2), [udp(FLOW, 2, 1)]);
    h.assert_clean();
}

#[test]
fn breaches_are_latched() {
    let mut h = Host::new("tiny");
    h.write(0x228, 7);
    assert_eq!(h.read(0x228), 3, "ORDER comes with RX_ENABLE");
    h.write(0x228, 4);
    assert_eq!(h.read(0x228), 3);
    h.write(0x228, 8);
    assert_eq!(h.dev.violations_total(), 3);
    let mut h = ordered();
    h.bell(RX_DONE, 1);
    h.dev.step();
    h.dev.step();
    let first = h.dev.first_violation().map(|v| (v.code as u32, v.info));
    assert_eq!((first, h.dev.violations_total()), (Some((10, 0x480 | 1 << 32)), 1), "HEAD_OVERRUN, once");
}

#[test]
fn a_reset_forgets_what_was_outstanding() {
    let mut h = ordered();
    h.inject(1, &udp(FLOW, 1, 1));
    h.dev.step();
    h.write(0x20, 0x5453_4552);
    h.start();
    offload(&mut h);
    h.inject(1, &udp(FLOW, 2, 1));
    h.dev.step();
    assert_eq!(h.out(2), [udp(FLOW, 2, 1)]);
    h.assert_clean();
}
