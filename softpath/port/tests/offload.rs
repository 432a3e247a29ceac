//! Unfinished frames, finished: checked by a receiver's own arithmetic, and with headers that mean harm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod large;

use flowlift_port::Offload;
use flowlift_port::offload::{Gso, GsoKind, finish, vnet};
use large::{Large, large, verify_checksums};
use proptest::prelude::*;
use std::num::NonZeroU16;

fn finished(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    finish(frame, offload, &mut Vec::new(), &mut |f| frames.push(f.to_vec())).unwrap();
    frames
}

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn double_word(frame: &[u8], at: usize) -> u32 {
    u32::from(word(frame, at)) << 16 | u32::from(word(frame, at + 2))
}

#[test]
fn a_partial_checksum_becomes_the_one_of_rfc_768() {
    // 10.0.0.1:4096 to 10.0.0.2:53, four bytes; its field is the sum of addresses, protocol and length, and the checksum was added
    // up by hand.
    let mut frame = vec![0xff; 12];
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x10, 0x00, 0, 53, 0, 12, 0x14, 0x20, 1, 2, 3, 4]);
    let offload = Offload { csum_start: 34, csum_offset: 6, gso: None };
    let whole = finished(&frame, &offload);
    // 1420 + 1000 + 0035 + 000c + 0102 + 0304 = 2867; its complement.
    assert_eq!((whole.len(), word(&whole[0], 40)), (1, 0xd798));
}

proptest! {
    #[test]
    fn segments_are_what_a_receiver_puts_together_again(packet in large()) {
        let Large { frame, offload, .. } = &packet;
        let gso = offload.gso.unwrap();
        let (l3, l4) = (usize::from(gso.l3_start), usize::from(offload.csum_start));
        let header_len = offload.header_len(frame).unwrap();
        let segments = finished(frame, offload);
        let size = usize::from(gso.size.get());
        prop_assert_eq!(segments.len(), (frame.len() - header_len).div_ceil(size).max(1));
        let mut payload = Vec::new();
        for (n, s) in segments.iter().enumerate() {
            let last = n + 1 == segments.len();
            let carried = s.len() - header_len;
            prop_assert!(carried == size || last && carried < size, "{} bytes in segment {}", carried, n);
            verify_checksums(s, l3, l4);
            if gso.kind == GsoKind::Tcp {
                prop_assert_eq!(
                    double_word(s, l4 + 4),
                    double_word(frame, l4 + 4).wrapping_add(payload.len() as u32),
                    "sequence number"
                );
                let (was, is) = (frame[l4 + 13], s[l4 + 13]);
                // FIN and PSH on the last, CWR on the first.
                let gone: u8 = if last { 0 } else { 0x09 } | if n == 0 { 0 } else { 0x80 };
                prop_assert_eq!(is, was & !gone, "flags of segment {}", n);
            }
            if frame[l3] >> 4 == 4 {
                prop_assert_eq!(word(s, l3 + 4), word(frame, l3 + 4).wrapping_add(n as u16), "identification");
            }
            payload.extend_from_slice(&s[header_len..]);
        }
        prop_assert_eq!(&payload[..], &frame[header_len..]);
    }

    #[test]
    fn a_header_says_what_is_left_to_do(packet in large(), ecn: bool) {
        let Large { frame, mut offload, .. } = packet;
        offload.gso = offload.gso.map(|gso| Gso { ecn: ecn && gso.kind == GsoKind::Tcp, ..gso });
        let header = vnet::encode(Some(&offload), &frame).unwrap();
        prop_assert_eq!(vnet::decode(&header, &frame).unwrap(), Some(offload));
    }

    #[test]
    fn headers_ahead_move_the_work(packet in large(), count in 1usize..64) {
        let Large { frame, offload, .. } = packet;
        let moved = offload.inserted(12, count).unwrap();
        let mut longer = frame.clone();
        longer.splice(12..12, std::iter::repeat_n(0, count));
        let expected: Vec<_> = finished(&frame, &offload).into_iter().map(|mut f| {
            f.splice(12..12, std::iter::repeat_n(0, count));
            f
        }).collect();
        prop_assert_eq!(finished(&longer, &moved), expected);
        prop_assert_eq!(moved.removed(12, count), Some(offload));
        prop_assert_eq!(offload.removed(0, frame.len()), None);
    }

    #[test]
    fn no_header_and_no_offload_does_harm(
        frame in prop::collection::vec(any::<u8>(), 0..200),
        mut header: [u8; vnet::LEN],
        small: bool,
        gso: Option<(bool, u16, u16)>,
        (csum_start, csum_offset) in (0u16..220, 0u16..20),
        cut in 0usize..220,
    ) {
        if small {
            // Mostly within the frame.
            (header[0], header[1], header[7], header[9]) = (header[0] & 3, header[1] & 0x85, 0, 0);
        }
        let check = |offload: &Offload| {
            let _ = finish(&frame, offload, &mut Vec::new(), &mut |f| assert!(f.len() <= frame.len()));
            if let Some(rest) = offload.cut(&frame, cut) {
                let kept = frame.get(..cut).unwrap_or(&frame);
                let _ = finish(kept, &rest, &mut Vec::new(), &mut |_| {});
            }
            let _ = vnet::encode(Some(offload), &frame);
        };
        if let Ok(Some(offload)) = vnet::decode(&header, &frame) {
            check(&offload);
        }
        let gso = gso.map(|(tcp, size, l3_start)| Gso {
            kind: if tcp { GsoKind::Tcp } else { GsoKind::Udp },
            ecn: false,
            size: NonZeroU16::new(size).unwrap_or(NonZeroU16::MIN),
            l3_start: l3_start % 64,
        });
        check(&Offload { csum_start, csum_offset, gso });
    }
}
