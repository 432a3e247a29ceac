//! Bytes that driver and device exchange in host memory (FL1.md sections 5 to 9), as the driver reads them.
//!
//! Sizes are asserted at compile time, golden bytes (fixtures/device/golden) at test time.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// CRC32C of records that the device writes.
pub(crate) const CRC32C: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// Length of an admin slot in bytes.
pub(crate) const SLOT: usize = 64;
/// Longest command that this driver sends, in slots and bytes.
pub(crate) const COMMAND_SLOTS: usize = 16;
/// See [`COMMAND_SLOTS`].
pub(crate) const COMMAND_MAX: usize = COMMAND_SLOTS * SLOT;
/// Where a command's payload starts.
pub(crate) const PAYLOAD: usize = 32;
/// Length of an action unit in bytes.
pub(crate) const UNIT: usize = 16;

/// Admin opcodes.
pub(crate) mod op {
    pub(crate) const INSERT: u8 = 1;
    pub(crate) const REPLACE: u8 = 2;
    pub(crate) const DELETE: u8 = 3;
    pub(crate) const READ_ENTRY: u8 = 4;
    pub(crate) const COUNTERS: u8 = 5;
    pub(crate) const CAPS: u8 = 9;
    pub(crate) const COUNTER_PAGE: u8 = 10;
    pub(crate) const METER_PAGE: u8 = 11;
}

/// Completion status codes that the driver acts on; others are passed on as they are.
pub(crate) mod status {
    pub(crate) const OK: u16 = 0;
    pub(crate) const ENTRY_IN_USE: u16 = 4;
    pub(crate) const NOT_FOUND: u16 = 5;
    pub(crate) const TABLE_FULL: u16 = 6;
    pub(crate) const MASKS_FULL: u16 = 7;
    pub(crate) const DUPLICATE: u16 = 8;
    pub(crate) const DMA_FAULT: u16 = 13;
    pub(crate) const PARITY: u16 = 14;
}

/// Event types.
pub(crate) mod event {
    pub(crate) const LINK: u16 = 1;
    pub(crate) const PARITY: u16 = 2;
    pub(crate) const AGED: u16 = 3;
    pub(crate) const PRESSURE: u16 = 4;
    pub(crate) const FATAL: u16 = 5;
}

/// Action types.
pub(crate) mod action {
    pub(crate) const OUTPUT: u8 = 1;
    pub(crate) const SET_FIELD: u8 = 2;
    pub(crate) const PUSH_VLAN: u8 = 3;
    pub(crate) const POP_VLAN: u8 = 4;
    pub(crate) const DEC_TTL: u8 = 5;
    pub(crate) const METER: u8 = 6;
    pub(crate) const TRAP: u8 = 7;
    pub(crate) const SET_METADATA: u8 = 8;
    pub(crate) const GOTO: u8 = 9;
    pub(crate) const VXLAN_ENCAP: u8 = 10;
    pub(crate) const VXLAN_DECAP: u8 = 11;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $t:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $t),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// First half of every command's first slot.
    CommandHeader, 32 {
        opcode: u8, slots: u8, flags: U16, table: U16, priority: U16, cookie: U64, entry: U32, generation: U32,
        count: U32, key_len: U16, units: u8, reserved: u8,
    }
    /// Second half, for opcodes with a buffer.
    CommandBuffer, 32 { iova: U64, len: U32, reserved: [u8; 20] }
    /// Admin completion.
    Completion, 64 {
        cookie: U64, status: U16, opcode: u8, reserved0: u8, detail: U32, packets: U64, bytes: U64, used_ns: U64,
        tcp_flags: U16, reserved1: U16, generation: U32, result: U32, sq_head: U32, seq: U32, reserved2: U32,
    }
    /// Record of COUNTERS.
    CounterRecord, 48 {
        packets: U64, bytes: U64, used_ns: U64, generation: U32, tcp_flags: U16, flags: U16, entry: U32,
        sequence: U32, reserved: U32, crc: U32,
    }
    /// Head of READ_ENTRY's record; key, mask and actions follow.
    EntryRecord, 32 {
        table: U16, priority: U16, entry: U32, generation: U32, key_len: U16, units: u8, flags: u8, sequence: U32,
        crc: U32, ageing_ms: U32, reserved: U32,
    }
    /// Head of the capability blob.
    CapsHeader, 32 {
        magic: U32, len: U32, tables: U16, stages: U16, ports: U16, slow_queues: U16, parser_flags: U32, meters: U32,
        max_frame: U32, crc: U32,
    }
    /// A table's capability record; field records follow.
    TableRecord, 64 {
        id: U16, kind: u8, stage: u8, max_entries: U32, max_masks: U32, key_bytes: U16, fields: U16, actions: U32,
        max_units: u8, miss: u8, next_table: U16, goto: U32, counters: U32, settable: U64, len: U32,
        reserved: [u8; 20],
    }
    /// A field of a table.
    FieldRecord, 32 {
        id: U16, kind: u8, reserved0: u8, bit_offset: U16, bit_width: U16, supported: [u8; 16], reserved1: [u8; 8],
    }
    /// Event.
    Event, 32 {
        kind: U16, subject: U16, entry: U32, generation: U32, detail: U32, clock_ns: U64, seq: U32, reserved: U32,
    }
    /// Buffer posted to a slow receive queue.
    RxBuffer, 16 { iova: U64, len: U32, id: U32 }
    /// Slow receive completion.
    RxCompletion, 64 {
        buffer: U32, len: U32, port: U16, reason: u8, stage: u8, table: U16, flags: U16, metadata: U32, entry: U32,
        clock_ns: U64, hash: U32, frame_len: U32, reserved0: [u8; 16], seq: U32, reserved1: U32,
    }
    /// Slow transmit descriptor.
    TxDescriptor, 32 {
        iova: U64, len: U32, port: U16, flags: u8, stage: u8, metadata: U32, reserved: U32, cookie: U64,
    }
}

/// The record at the start of `bytes`; `None` if they are too short.
pub(crate) fn parse<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(v, _)| v)
}

/// Entry and counter records: an entry is installed.
pub(crate) const RECORD_VALID: u8 = 1;
/// RX completion: the frame goes on in the next one.
pub(crate) const RX_MORE: u16 = 1;
/// TX descriptor: into the pipeline.
pub(crate) const TX_PIPELINE: u8 = 1;

/// A command of one slot with a buffer.
pub(crate) fn buffer_command(header: CommandHeader, iova: u64, len: u32) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let buffer = CommandBuffer { iova: iova.into(), len: len.into(), reserved: [0; 20] };
    slot[..PAYLOAD].copy_from_slice(CommandHeader { slots: 1, ..header }.as_bytes());
    slot[PAYLOAD..].copy_from_slice(buffer.as_bytes());
    slot
}

/// DELETE of an entry.
pub(crate) fn delete_command(table: u16, entry: u32) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let header = CommandHeader {
        opcode: op::DELETE,
        slots: 1,
        table: table.into(),
        entry: entry.into(),
        ..CommandHeader::new_zeroed()
    };
    slot[..PAYLOAD].copy_from_slice(header.as_bytes());
    slot
}

/// CRC32C of `bytes` with the four at `at` taken as zero.
pub(crate) fn crc_without(bytes: &[u8], at: usize) -> Option<u32> {
    let mut digest = CRC32C.digest();
    digest.update(bytes.get(..at)?);
    digest.update(&[0; 4]);
    digest.update(bytes.get(at + 4..)?);
    Some(digest.finalize())
}

/// Reads a golden file: hex with `#` comments.
#[cfg(test)]
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../fixtures/device/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let digits = text.lines().filter_map(|l| l.split('#').next()).flat_map(str::split_whitespace);
    digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_check_value_of_the_spec() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn delete_and_its_completion_are_golden() {
        let mut slot = delete_command(0, 3);
        slot[8..16].copy_from_slice(&43u64.to_le_bytes());
        assert_eq!(slot[..], golden("delete"));
        let c = parse::<Completion>(&golden("completion_delete")).unwrap();
        assert_eq!((c.cookie.get(), c.status.get(), c.opcode, c.detail.get()), (43, 0, op::DELETE, 0));
        assert_eq!(
            (c.packets.get(), c.bytes.get(), c.used_ns.get()),
            (1_000_000, 100_000_000, 1_000_000_000)
        );
        assert_eq!((c.tcp_flags.get(), c.generation.get(), c.sq_head.get(), c.seq.get()), (0x12, 7, 6, 5));
    }

    #[test]
    fn counters_and_their_record_are_golden() {
        let header = CommandHeader {
            opcode: op::COUNTERS,
            table: 2.into(),
            cookie: 44.into(),
            generation: 9.into(),
            count: 16.into(),
            ..CommandHeader::new_zeroed()
        };
        assert_eq!(buffer_command(header, 0x1_0000_2000, 768)[..], golden("counters"));
        let bytes = golden("counter_record");
        let r = parse::<CounterRecord>(&bytes).unwrap();
        assert_eq!((r.packets.get(), r.bytes.get(), r.used_ns.get()), (2, 120, 1000));
        assert_eq!((r.generation.get(), r.tcp_flags.get(), r.flags.get()), (7, 0x10, 1));
        assert_eq!((r.entry.get(), r.sequence.get()), (3, 9));
        assert_eq!(CRC32C.checksum(&bytes[..44]), r.crc.get());
    }

    #[test]
    fn meter_page_is_golden() {
        let header =
            CommandHeader { opcode: op::METER_PAGE, cookie: 46.into(), ..CommandHeader::new_zeroed() };
        assert_eq!(buffer_command(header, 0x1_0000_4000, 16384)[..], golden("meter_page"));
    }

    #[test]
    fn events_and_slow_queue_elements_are_golden() {
        let e = parse::<Event>(&golden("event_parity")).unwrap();
        assert_eq!(
            (e.kind.get(), e.subject.get(), e.entry.get(), e.generation.get()),
            (event::PARITY, 2, 5, 6)
        );
        assert_eq!((e.clock_ns.get(), e.seq.get()), (1_000_000_000, 3));
        let b = RxBuffer { iova: 0x10000.into(), len: 2048.into(), id: 17.into() };
        assert_eq!(b.as_bytes(), golden("rx_buffer"));
        let c = parse::<RxCompletion>(&golden("rx_completion")).unwrap();
        assert_eq!((c.buffer.get(), c.len.get(), c.port.get(), c.reason, c.stage), (17, 60, 2, 1, 1));
        assert_eq!((c.table.get(), c.flags.get(), c.metadata.get(), c.entry.get()), (4, 0, 0x1234, u32::MAX));
        assert_eq!((c.clock_ns.get(), c.hash.get(), c.frame_len.get()), (1_000_000_000, 0xdead_beef, 60));
        assert_eq!(c.seq.get(), 1);
        let t = TxDescriptor {
            iova: 0x20000.into(),
            len: 60.into(),
            port: 2.into(),
            flags: TX_PIPELINE,
            stage: 1,
            metadata: 0x1234.into(),
            reserved: 0.into(),
            cookie: 99.into(),
        };
        assert_eq!(t.as_bytes(), golden("tx_descriptor"));
    }

    #[test]
    fn entry_record_head_is_golden() {
        let bytes = golden("entry_record");
        let r = parse::<EntryRecord>(&bytes).unwrap();
        assert_eq!((r.table.get(), r.priority.get(), r.entry.get(), r.generation.get()), (0, 100, 3, 7));
        assert_eq!((r.key_len.get(), r.units, r.flags, r.sequence.get()), (64, 1, RECORD_VALID, 11));
        assert_eq!(r.ageing_ms.get(), 1000);
        assert_eq!(crc_without(&bytes, 20), Some(r.crc.get()));
    }
}
