use super::*;
use proptest::prelude::*;

fn golden(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|l| l.split('#').next().unwrap_or("").split_whitespace())
        .map(|b| u8::from_str_radix(b, 16).expect("hex"))
        .collect()
}

#[test]
fn completion_of_a_delete_is_golden() {
    let mut c = Completion::new(Opcode::Delete as u8, 43, Status::Ok, 0);
    c.counters = crate::table::Counters {
        packets: 1_000_000,
        bytes: 100_000_000,
        last_used: 1_000_000_000,
        tcp_flags: 0x12,
        ..Default::default()
    };
    c.generation = 7;
    let want = golden(include_str!("../../../fixtures/device/golden/completion_delete.hex"));
    assert_eq!(c.encode(6, 5).to_vec(), want);
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let _ = decode_command(&bytes);
    }

    /// Headers that are nearly right, so that the deeper checks are reached.
    #[test]
    fn nearly_right_commands(
        opcode in 0u8..12, slots in 0u8..18, key_len in 0u16..130, units in 0u8..40,
        tail in proptest::collection::vec(any::<u8>(), 16 * 64),
    ) {
        let mut b = vec![0; 16 * 64];
        (b[0], b[1], b[30]) = (opcode, slots, units);
        b[28..30].copy_from_slice(&key_len.to_le_bytes());
        b[32..].copy_from_slice(&tail[32..]);
        if let Ok(c) = decode_command(&b) {
            prop_assert_eq!(c.key.len(), c.mask.len());
            prop_assert_eq!(c.actions.len() % UNIT, 0);
            prop_assert!(32 + c.key.len() * 2 + c.actions.len() <= usize::from(c.slots) * SLOT);
        }
    }
}
