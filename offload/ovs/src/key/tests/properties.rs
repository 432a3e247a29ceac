//! Properties of the codec over keys of every shape.

use super::*;
use proptest::prelude::*;

/// The same attributes in another order, at every level.
fn shuffled(bytes: &[u8], by: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut items: Vec<_> = crate::nla::attrs(bytes)
        .map(|a| a.expect("well-formed attributes"))
        .map(|a| {
            (
                a.kind,
                if a.kind == u16::from(attr::ENCAP) { shuffled(a.payload, by) } else { a.payload.to_vec() },
            )
        })
        .collect();
    for end in (1..items.len()).rev() {
        let at = by(end + 1);
        items.swap(at, end);
    }
    let items: Vec<_> = items.iter().map(|(kind, payload)| (*kind, &payload[..])).collect();
    sequence(&items)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_composed_key_reads_back_whole(key in shapes::key()) {
        let bytes = composed(&key, Form::UserSpace);
        let (back, named) = decode_key(&bytes, Form::UserSpace).map_err(|e| TestCaseError::fail(format!("{e}: {}", hex(&bytes))))?;
        prop_assert_eq!(&back, &key);
        prop_assert!(named.has(0, 20));
        prop_assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn r38_order_does_not_matter(key in shapes::key(), seed in any::<u64>()) {
        let bytes = composed(&key, Form::UserSpace);
        let mut state = seed;
        let other = shuffled(&bytes, &mut |n| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        });
        prop_assert_eq!(decode_key(&other, Form::UserSpace), decode_key(&bytes, Form::UserSpace));
    }

    #[test]
    fn a_match_composes_and_reads_back(key in shapes::key(), noise in any::<[[u8; 32]; 18]>()) {
        // Exact on everything but the addresses and ports, which are masked at random.
        let noise: [u8; 576] = noise.concat().try_into().expect("18 times 32 bytes");
        let n: Key = zerocopy::transmute!(noise);
        let mut exact = Vec::new();
        encode_mask(&key, &Mask::exact(), Form::UserSpace, None, &mut exact);
        let (mut mask, named) = decode_mask(&exact, &key, Form::UserSpace)
            .map_err(|e| TestCaseError::fail(format!("{e}: {}", hex(&exact))))?;
        let m = &mut mask.0;
        (m.eth_src, m.in_port) = (n.eth_src, n.in_port);
        if key.eth_type.get() == eth_type::IPV4 {
            m.ipv4_src = n.ipv4_src;
        }
        if matches!(l4_attr(&key), Some(attr::TCP | attr::UDP)) {
            m.tp_dst = n.tp_dst;
        }
        if key.packet_type.get() != 0 {
            m.eth_src = [0; 6];
        }
        let matching = flowlift_flow::Match { key, mask, attrs: named };
        let (key_bytes, mask_bytes) = encode_match(&matching, Form::UserSpace);
        let back = decode_match(&key_bytes, Some(&mask_bytes), Form::UserSpace)
            .map_err(|e| TestCaseError::fail(format!("{e}: {}", hex(&mask_bytes))))?;
        prop_assert_eq!(back, matching);
    }

    #[test]
    fn an_exact_match_matches_its_own_key_only(key in shapes::key(), flip in 0..64usize * 8) {
        let bytes = composed(&key, Form::UserSpace);
        let matching = decode_match(&bytes, None, Form::UserSpace).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(matching.mask.matches(&matching.key, &key));
        let mut other = key.clone();
        other.words_mut()[flip / 64] ^= 1 << (flip % 64);
        // ICMP types and codes are 8 bits in 16-bit fields: no packet has the others.
        let icmp = matches!(l4_attr(&key), Some(attr::ICMP | attr::ICMPV6));
        prop_assume!(!icmp || (other.tp_src.get() < 256 && other.tp_dst.get() < 256));
        let differs = composed(&other, Form::UserSpace) != bytes;
        prop_assert!(!differs || !matching.mask.matches(&matching.key, &other), "bit {} of word {}", flip % 64, flip / 64);
    }

    #[test]
    fn bytes_changed_anywhere_never_panic(
        key in shapes::key(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = composed(&key, Form::UserSpace);
        let whole = bytes.len();
        for (at, value) in changes {
            bytes[at.index(whole)] = value;
        }
        for form in [Form::UserSpace, Form::Datapath] {
            for bytes in [&bytes[..], &bytes[..cut.index(whole)]] {
                if let Ok((read, _)) = decode_key(bytes, form) {
                    // What was read composes, and reads back as itself.
                    let again = composed(&read, form);
                    prop_assert!(decode_key(&again, form).is_ok(), "{} from {}", hex(&again), hex(bytes));
                }
                let _ = decode_mask(bytes, &key, form);
                let _ = decode_match(bytes, Some(bytes), form);
            }
        }
    }
}
