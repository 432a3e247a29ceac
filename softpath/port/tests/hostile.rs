//! Captures that are anything: reading ends, without a panic, and what is written is read again.

#![cfg(test)]

mod common;

use common::{BIG, LITTLE, Packet};
use flowlift_port::capture::Resolution;
use flowlift_port::{CaptureFile, Frame, MAX_FRAME, PcapWriter};
use proptest::collection::vec;
use proptest::prelude::*;

/// A capture of each format, to be damaged.
fn seeds() -> Vec<Vec<u8>> {
    let packets: Vec<Packet> = (1..5)
        .map(|n| Packet { timestamp_ns: n << 40, orig_len: 60, data: vec![n as u8; 13 * n as usize] })
        .collect();
    let mut all = Vec::new();
    for order in [LITTLE, BIG] {
        all.extend([order.pcap(false, &packets), order.pcap(true, &packets)]);
        let mut ng = order.section();
        ng.extend(order.interface(1, 40, &[(2, b"p1"), (9, &[9]), (14, &order.n64(1))]));
        for packet in &packets {
            ng.extend(order.enhanced(0, packet.timestamp_ns, 60, &packet.data));
            ng.extend(order.simple(60, &packet.data));
        }
        ng.extend(order.block(2, &[0; 40]));
        all.push(ng);
    }
    all
}

/// Reads everything; the checks are those that hold for any input.
fn read(bytes: &[u8]) {
    let Ok(capture) = CaptureFile::read(bytes) else { return };
    for frame in capture.frames() {
        assert!(frame.data.len() <= MAX_FRAME);
        assert!((frame.interface as usize) < capture.interfaces().len());
    }
    assert!(capture.total_bytes() <= bytes.len());
    if let Some(error) = capture.damage() {
        assert!(error.offset <= bytes.len() as u64, "{error} in {} bytes", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_after_any_beginning(seed in 0usize..6, keep in 0usize..200, tail in vec(any::<u8>(), 0..300)) {
        let mut bytes = seeds()[seed].clone();
        bytes.truncate(keep);
        bytes.extend(tail);
        read(&bytes);
    }

    #[test]
    fn any_bytes_changed(seed in 0usize..6, changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = seeds()[seed].clone();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        read(&bytes);
    }

    /// Lengths are what hurts: 32 bits anywhere become an extreme value.
    #[test]
    fn any_word_extreme(seed in 0usize..6, place in any::<prop::sample::Index>(), word in prop::sample::select(vec![
        0u32, 1, 4, 8, 12, 28, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_fffc, 0xffff_ffff, 262_144, 262_145, 16 << 20,
    ]), big in any::<bool>()) {
        let mut bytes = seeds()[seed].clone();
        let place = place.index(bytes.len() / 4) * 4;
        let word = if big { word.to_be_bytes() } else { word.to_le_bytes() };
        bytes[place..place + 4].copy_from_slice(&word);
        read(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        nano in any::<bool>(),
        frames in vec((0u64..4_294_967_296_000_000_000, any::<u32>(), vec(any::<u8>(), 0..200)), 0..20),
    ) {
        let resolution = if nano { Resolution::Nano } else { Resolution::Micro };
        let tick = if nano { 1 } else { 1000 };
        let mut writer = PcapWriter::new(Vec::new(), resolution).unwrap();
        for (timestamp_ns, orig_len, data) in &frames {
            let frame = Frame { timestamp_ns: *timestamp_ns, orig_len: *orig_len, ..Frame::new(data) };
            writer.write(frame).unwrap();
        }
        let capture = CaptureFile::read(&writer.finish().unwrap()[..]).unwrap();
        prop_assert!(capture.damage().is_none());
        prop_assert_eq!(capture.len(), frames.len());
        for (frame, (timestamp_ns, orig_len, data)) in capture.frames().zip(&frames) {
            let expected =
                Frame { timestamp_ns: timestamp_ns / tick * tick, orig_len: *orig_len, ..Frame::new(data) };
            prop_assert_eq!(frame, expected);
        }
    }
}
