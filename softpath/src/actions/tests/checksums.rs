//! After every change of a header the checksums equal those computed anew; wrong ones stay wrong by the same amount.

use super::after;
use super::frames::{L4, Spec};
use flowlift_flow::{Action, Header};
use proptest::prelude::*;

fn spec() -> impl Strategy<Value = Spec> {
    let l4 = prop::sample::select(vec![L4::Tcp, L4::Udp, L4::UdpNoChecksum, L4::Sctp, L4::Icmp, L4::Nd]);
    (0..3usize, any::<bool>(), l4, 0..3usize, prop::collection::vec(any::<u8>(), 0..90), 0..20usize).prop_map(
        |(tags, v6, l4, options, payload, padding)| Spec { tags, v6, l4, options, payload, padding },
    )
}

/// A header, and bytes that a mask is made of: all ones, all zeros, or anything.
fn masked(value: Header, mask: Header) -> Action {
    Action::SetMasked { value, mask }
}

/// Sets of all headers that checksums cover, masked in every way; those of other headers than the packet's do nothing.
fn edit() -> impl Strategy<Value = Action> {
    let byte = || prop_oneof![Just(0xffu8), Just(0), any::<u8>()];
    let mac = || any::<[u8; 6]>();
    prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u8>(), any::<u8>(), byte()).prop_map(
            |(src, dst, tos, ttl, m)| {
                let cut = |a: [u8; 4]| a.map(|b| b & m).into();
                masked(
                    Header::Ipv4 {
                        src: cut(src),
                        dst: cut(dst),
                        proto: 0,
                        tos: tos & m,
                        ttl: ttl & m,
                        frag: 0,
                    },
                    Header::Ipv4 {
                        src: [m; 4].into(),
                        dst: [m; 4].into(),
                        proto: 0,
                        tos: m,
                        ttl: m,
                        frag: 0,
                    },
                )
            }
        ),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u8>(), any::<u8>(), byte()).prop_map(
            |(src, dst, tc, hl, m)| {
                let cut = |a: [u8; 16]| a.map(|b| b & m).into();
                let (v6, tclass, hlimit) = ([m; 16].into(), tc & m, hl & m);
                masked(
                    Header::Ipv6 {
                        src: cut(src),
                        dst: cut(dst),
                        label: 0,
                        proto: 0,
                        tclass,
                        hlimit,
                        frag: 0,
                    },
                    Header::Ipv6 { src: v6, dst: v6, label: 0xff, proto: 0, tclass: m, hlimit: m, frag: 0 },
                )
            }
        ),
        (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Action::Set(Header::Tcp { src, dst })),
        (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Action::Set(Header::Udp { src, dst })),
        (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Action::Set(Header::Sctp { src, dst })),
        (any::<u16>(), any::<u16>(), any::<u16>()).prop_map(|(src, dst, m)| masked(
            Header::Tcp { src: src & m, dst: dst & m },
            Header::Tcp { src: m, dst: m }
        )),
        (any::<u8>(), any::<u8>()).prop_map(|(ty, code)| Action::Set(Header::Icmp { ty, code })),
        (any::<u8>(), any::<u8>()).prop_map(|(ty, code)| Action::Set(Header::Icmpv6 { ty, code })),
        (any::<[u8; 16]>(), mac(), mac()).prop_map(|(target, sll, tll)| Action::Set(Header::Nd {
            target: target.into(),
            sll,
            tll
        })),
        Just(Action::DecTtl { exception: vec![] }),
    ]
}

/// `a - b` in one's complement, where both zeros are one.
fn difference(a: u16, b: u16) -> u32 {
    (u32::from(a) + u32::from(!b)) % 0xffff
}

proptest! {
    #[test]
    fn checksums_are_right_after_every_change(spec in spec(), edits in prop::collection::vec(edit(), 1..5)) {
        let frame = spec.frame();
        // dec_ttl ends the packet's way when a set made its TTL 0 or 1; that is not what this test is about.
        prop_assume!(super::run(&frame, &[&edits[..], &[Action::Output(flowlift_flow::PortNo(9))]].concat())
            .iter().any(|did| matches!(did, super::Did::Output(..))));
        let out = after(&frame, &edits);
        prop_assert_eq!(out.len(), frame.len());
        prop_assert_eq!(spec.held(&out), spec.correct(spec.unpadded(&out)), "{:02x?}", out);
        prop_assert_eq!(&out[spec.unpadded(&out).len()..], &frame[spec.unpadded(&frame).len()..], "padding changed");
    }

    #[test]
    fn wrong_checksums_stay_wrong_by_the_same_amount(spec in spec(), edit in edit(), flip in 1..=u16::MAX) {
        let mut frame = spec.frame();
        let (at, len) = spec.checksum_field();
        let at = spec.l4() + at;
        prop_assume!(spec.l4 != L4::UdpNoChecksum);
        for (byte, f) in frame[at..at + 2].iter_mut().zip(flip.to_be_bytes()) {
            *byte ^= f;
        }
        // Zero is "no checksum" in UDP, not a wrong one.
        prop_assume!(frame[at..at + 2] != [0, 0]);
        let out = after(&frame, &[edit]);
        let ((_, held), (_, correct)) = (spec.held(&out), spec.correct(spec.unpadded(&out)));
        let ((_, was_held), (_, was_correct)) = (spec.held(&frame), spec.correct(spec.unpadded(&frame)));
        if len == 4 {
            let wrong_by = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a ^ b).collect::<Vec<_>>();
            prop_assert_eq!(wrong_by(&held, &correct), wrong_by(&was_held, &was_correct));
        } else {
            let word = |b: &[u8]| u16::from_be_bytes([b[0], b[1]]);
            prop_assert_eq!(
                difference(word(&held), word(&correct)),
                difference(word(&was_held), word(&was_correct))
            );
        }
    }
}

/// RFC 768: a checksum that computes to zero is sent as all ones.
#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    let spec = Spec { l4: L4::Udp, ..Spec::tcp() };
    let frame = spec.frame();
    let held = u16::from_be_bytes([frame[40], frame[41]]);
    // Raising the source port by what the checksum holds makes it zero.
    let src = (u32::from(held) + 0x1234) % 0xffff;
    let out = after(&frame, &[Action::Set(Header::Udp { src: src as u16, dst: 53 })]);
    assert_eq!(out[40..42], [0xff, 0xff]);
    assert_eq!(spec.held(&out), spec.correct(&out));
}
