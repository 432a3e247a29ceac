//! The fast path, the general path and a reused buffer all give the same key.

use super::*;
use crate::extract::{Dirty, extract_general, fast};
use proptest::prelude::*;

/// Compares all ways to the key of `frame`; `reused` has seen other frames before. True if the fast path took it.
fn same_on_all_paths(frame: &[u8], reused: &mut KeyBuf) -> bool {
    let md = Metadata { in_port: 7, recirc_id: 9, dp_hash: 11, skb_priority: 13, skb_mark: 15 };
    let mut general = KeyBuf::new();
    let want = extract_general(frame, &md, &mut general);
    let got = extract(frame, &md, reused);
    assert_eq!(reused.key(), general.key(), "reused buffer on {}", to_hex(frame));
    assert_eq!(got, want, "layers of {}", to_hex(frame));

    let mut key = Key::default();
    let taken = fast::extract(frame, &md, &mut key);
    match taken {
        Some(layers) => {
            assert_eq!(&key, general.key(), "fast path on {}", to_hex(frame));
            assert_eq!(layers, want, "layers of the fast path on {}", to_hex(frame));
        }
        None => assert_eq!(key, Key::default(), "the fast path left traces of {}", to_hex(frame)),
    }
    taken.is_some()
}

#[test]
fn all_paths_agree_on_every_oracle_frame_cut_at_every_byte() {
    let mut reused = KeyBuf::new();
    let mut taken = 0;
    for frame in oracle("well-formed").iter().chain(&oracle("damaged")) {
        for length in 0..=frame.len() {
            taken += usize::from(same_on_all_paths(&frame[..length], &mut reused));
        }
    }
    // The oracle has TCP and UDP over IPv4 without options, so the fast path must have been compared.
    assert!(taken > 30, "the fast path took only {taken} frames");
}

#[test]
fn the_fast_path_takes_plain_tcp_and_udp_with_up_to_two_tags() {
    let udp = "4500001c0000400040110000 0a000001 0a000002 04d2 0050 0008 0000";
    let tcp = "450000280000400040060000 0a000001 0a000002 04d2 0050 00000001 00000002 5012 0400 0000 0000";
    for tags in ["", "81001064", "88a8006481000065"] {
        for packet in [udp, tcp] {
            let mut frame = hex(&format!("000000000002 000000000001 {tags} 0800 {packet}"));
            frame.resize(frame.len().max(62), 0);
            assert!(same_on_all_paths(&frame, &mut KeyBuf::new()), "not taken: {}", to_hex(&frame));
        }
    }
}

#[test]
fn a_reused_buffer_forgets_what_another_source_wrote() {
    let frames = oracle("well-formed");
    let mut buf = KeyBuf::new();
    buf.key_mut().tun_opts.fill(0xff);
    buf.key_mut().ct_label.fill(0xff);
    assert_eq!(buf.dirty, Dirty::All);
    extract(&frames[2], &FROM_PORT_1, &mut buf);
    assert_eq!(*buf.key(), extract_key(&frames[2], &FROM_PORT_1));
}

/// Frames that look real, then bytes changed at random: what comes from a wire that damages.
fn damaged_frame() -> impl Strategy<Value = Vec<u8>> {
    let frames: Vec<_> = oracle("well-formed").into_iter().chain(oracle("damaged")).collect();
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let pads = prop::collection::vec(any::<u8>(), 0..40);
    (prop::sample::select(frames), flips, pads, any::<prop::sample::Index>()).prop_map(
        |(mut frame, flips, pad, cut)| {
            for (at, value) in flips {
                // Nine of ten changes fall where headers are.
                let reach = if value % 10 == 0 { frame.len() } else { frame.len().min(60) };
                let at = at.index(reach);
                frame[at] = value;
            }
            frame.extend_from_slice(&pad);
            frame.truncate(frame.len() - cut.index(frame.len()) / 4);
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn all_paths_agree_on_damaged_frames(frames in prop::collection::vec(damaged_frame(), 1..4)) {
        let mut reused = KeyBuf::new();
        for frame in &frames {
            same_on_all_paths(frame, &mut reused);
        }
    }

    #[test]
    fn all_paths_agree_on_noise(frame in prop::collection::vec(any::<u8>(), 0..120)) {
        same_on_all_paths(&frame, &mut KeyBuf::new());
    }

    #[test]
    fn layers_stay_within_the_frame_and_in_order(frame in damaged_frame()) {
        let (key, layers) = key_and_layers(&frame);
        let end = layers.end as usize;
        prop_assert!(end <= frame.len());
        let l2 = usize::from(layers.l2_len);
        prop_assert!(layers.l3().is_none_or(|l3| l2 <= l3 && l3 <= frame.len()));
        prop_assert!(layers.l4().is_none_or(|l4| layers.l3().is_some_and(|l3| l3 < l4) && l4 <= end));
        prop_assert_eq!(layers.frag as u8, key.ip_frag);
        prop_assert_eq!(layers.l2_5().is_some(), key.mpls[0].get() != 0 || layers.l3() > Some(l2));
    }
}
