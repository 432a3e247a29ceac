//! Wires other than memory.

use crate::host::*;
use flowlift_port::capture::{PcapWriter, Resolution};
use flowlift_port::{CaptureReader, Frame};
use flowlift_sim::{MemoryWire, PortWire, Wire};

fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut w = PcapWriter::new(Vec::new(), Resolution::Micro).unwrap();
    for f in frames {
        w.write(Frame::new(f)).unwrap();
    }
    w.finish().unwrap()
}

#[test]
fn captures_go_through_the_device_and_leave_what_was_not_done() {
    let mut h = Host::new("standard");
    let frames: Vec<_> = (0..4u8).map(|i| udp([10, 0, 0, i], 1, 2)).collect();
    let wire = PortWire::new(
        CaptureReader::new(std::io::Cursor::new(capture(&frames))).unwrap(),
        PcapWriter::new(Vec::new(), Resolution::Micro).unwrap(),
    );
    let everything = blobs(Keys::Full, &[]);
    h.must(&insert(2, 0, 0, &everything, &output(1)));
    // A port without link in the way of the third frame.
    h.must(&insert(2, 1, 1, &blobs(Keys::Full, &[(14, &[10, 0, 0, 2], &[0xff; 4])]), &output(5)));
    h.wires[4].set_link(false);
    assert!(h.dev.plug(1, Box::new(wire.clone())));
    h.dev.step();
    let parts = wire.take_apart().expect("whole until now");
    assert_eq!(parts.undone.as_ref(), Some(&frames[2]), "taken from the file, not done");
    assert_eq!((parts.lost, parts.error.is_none()), (0, true));
    let out = parts.sink.finish().unwrap();
    assert_eq!(out, capture(&frames[..2]));
    assert!(wire.take_apart().is_none());
    assert!(!wire.link_up());
    h.assert_clean();
}

#[test]
fn a_full_memory_wire_gives_the_frame_back() {
    let w = MemoryWire::new(1);
    assert_eq!(w.inject(vec![1]), Ok(()));
    assert_eq!(w.inject(vec![2]), Err(vec![2]));
    assert_eq!((w.pending(), w.take_back(), w.pending()), (1, vec![vec![1]], 0));
}
