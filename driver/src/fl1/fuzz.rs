//! A way in for fuzzers: bytes that a device could write, through every parser that sees them first.

use super::caps::{self, Identity};
use super::codec;
use super::wire::{CapsHeader, crc_without, parse};

/// Reads `data` as a device would have written it: a u16 (little-endian) with the length of a capability blob, the blob,
/// whose CRC is put right, and an INSERT command for each table in it. Returns how many entries were understood; it
/// must return, whatever the bytes.
pub fn device_bytes(data: &[u8]) -> usize {
    let Some((len, rest)) = data.split_first_chunk::<2>() else { return 0 };
    let Some((blob, command)) = rest.split_at_checked(u16::from_le_bytes(*len).into()) else { return 0 };
    let (Some(header), Some(crc)) = (parse::<CapsHeader>(blob), crc_without(blob, 28)) else { return 0 };
    let id = Identity {
        ports: header.ports.get().into(),
        slow_queues: header.slow_queues.get().into(),
        tables: header.tables.get().into(),
        stages: header.stages.get().into(),
        meters: header.meters.get(),
        caps_bytes: blob.len() as u32,
        max_frame: header.max_frame.get(),
        parser_flags: header.parser_flags.get(),
        max_slots: 16,
        order: true,
        meter_window: true,
    };
    if id.check().is_err() {
        return 0;
    }
    let mut blob = blob.to_vec();
    blob[28..32].copy_from_slice(&crc.to_le_bytes());
    let Ok(parsed) = caps::parse(&blob, &id) else { return 0 };
    parsed.tables.iter().filter(|t| codec::decode_insert(t, command).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::super::wire::golden;
    use super::*;
    use proptest::prelude::*;

    fn example() -> Vec<u8> {
        let blob = golden("caps_tiny");
        let mut data = (blob.len() as u16).to_le_bytes().to_vec();
        data.extend(blob);
        data.extend(golden("insert_tcam_tiny"));
        data
    }

    #[test]
    fn golden_bytes_are_understood() {
        assert_eq!(device_bytes(&example()), 1);
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_survived(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut data = example();
            for (at, v) in edits {
                let at = at.index(data.len());
                data[at] = v;
            }
            device_bytes(&data[..cut.index(data.len() + 1)]);
        }
    }
}
