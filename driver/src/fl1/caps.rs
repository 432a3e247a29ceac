//! The capability blob (FL1.md section 6), checked number by number: what a device says of itself is believed only
//! where it is possible, and nothing is assumed that it does not say.

use super::regs::{MAX_PORTS, MAX_SLOWQ};
use super::wire::{self, CapsHeader, FieldRecord, TableRecord, action, crc_without};
use crate::nic::{
    ActionKind, ActionSet, CounterCaps, Field, FieldCaps, KEY_MAX, MatchKind, Miss, NicCaps, NicPort,
    ParserCaps, PortCaps, Stage, TableCaps, TableId, TableKind,
};

/// "FLCP".
const MAGIC: u32 = 0x5043_4c46;
/// Tables that a device may have, stages and fields: bounds that keep allocations and loops small.
const MAX_TABLES: usize = 64;
const MAX_STAGES: u8 = 32;
const MAX_FIELDS: usize = 64;
/// Entries of all tables together: 512 MiB of counter page.
const MAX_ENTRIES: u64 = 1 << 24;
/// Longest capability blob in bytes that is asked for.
pub(crate) const MAX_BLOB: u32 = 1 << 18;
/// Frame lengths that this driver's buffers are made for.
const FRAME: std::ops::RangeInclusive<u32> = 64..=1 << 17;

/// Field ids and widths in bytes (FL1.md section 6). A field of another id is left alone: it stays wildcarded.
const FIELDS: [(u16, Field, u8); 28] = [
    (1, Field::InPort, 2),
    (2, Field::Metadata, 4),
    (3, Field::EthDst, 6),
    (4, Field::EthSrc, 6),
    (5, Field::EthType, 2),
    (6, Field::Vlan0Tpid, 2),
    (7, Field::Vlan0Tci, 2),
    (8, Field::Vlan1Tpid, 2),
    (9, Field::Vlan1Tci, 2),
    (10, Field::IpProto, 1),
    (11, Field::IpTos, 1),
    (12, Field::IpTtl, 1),
    (13, Field::Ipv4Src, 4),
    (14, Field::Ipv4Dst, 4),
    (15, Field::Ipv6Src, 16),
    (16, Field::Ipv6Dst, 16),
    (17, Field::Ipv6Label, 4),
    (18, Field::L4Src, 2),
    (19, Field::L4Dst, 2),
    (20, Field::TcpFlags, 2),
    (21, Field::ArpOp, 1),
    (22, Field::ArpSpa, 4),
    (23, Field::ArpTpa, 4),
    (24, Field::ArpSha, 6),
    (25, Field::ArpTha, 6),
    (26, Field::TunId, 3),
    (27, Field::TunIpv4Src, 4),
    (28, Field::TunIpv4Dst, 4),
];

/// Action types and what the planner calls them.
const ACTIONS: [(u8, ActionKind); 11] = [
    (action::OUTPUT, ActionKind::Output),
    (action::SET_FIELD, ActionKind::SetField),
    (action::PUSH_VLAN, ActionKind::PushVlan),
    (action::POP_VLAN, ActionKind::PopVlan),
    (action::DEC_TTL, ActionKind::DecTtl),
    (action::METER, ActionKind::Meter),
    (action::TRAP, ActionKind::Trap),
    (action::SET_METADATA, ActionKind::SetMetadata),
    (action::GOTO, ActionKind::Goto),
    (action::VXLAN_ENCAP, ActionKind::VxlanEncap),
    (action::VXLAN_DECAP, ActionKind::VxlanDecap),
];
/// What gets past the parser (FL1.md section 8).
pub(crate) const PARSER: ParserCaps = ParserCaps { whole: true, tags: 2, service_tags: true };
/// Bit of the action set: an empty list.
const DROP_BIT: u32 = 1;
/// Bit of the action set: OUTPUT truncates.
const TRUNC_BIT: u32 = 1 << 16;

/// Id and width in bytes of a field.
pub(crate) fn field_code(field: Field) -> Option<(u16, usize)> {
    FIELDS.iter().find(|(_, f, _)| *f == field).map(|&(id, _, n)| (id, n.into()))
}

/// Field of an id, and its width in bytes.
pub(crate) fn field_of(id: u16) -> Option<(Field, usize)> {
    FIELDS.iter().find(|(i, _, _)| *i == id).map(|&(_, f, n)| (f, n.into()))
}

/// What the registers say, to be found again in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) ports: u32,
    pub(crate) slow_queues: u32,
    pub(crate) tables: u32,
    pub(crate) stages: u32,
    pub(crate) meters: u32,
    pub(crate) caps_bytes: u32,
    pub(crate) max_frame: u32,
    pub(crate) parser_flags: u32,
    pub(crate) max_slots: u32,
    /// The device can keep a flow's order across the slow path (FL1.md section 8, "Order").
    pub(crate) order: bool,
    /// The device has the meter window (FL1.md section 2).
    pub(crate) meter_window: bool,
}

impl Identity {
    /// Refuses numbers that cannot be, naming the first.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bound = |what: &str, v: u32, ok: std::ops::RangeInclusive<u32>| {
            if ok.contains(&v) {
                Ok(())
            } else {
                Err(format!("{what} is {v}, outside {}..={}", ok.start(), ok.end()))
            }
        };
        bound("NUM_PORTS", self.ports, 1..=MAX_PORTS)?;
        bound("NUM_SLOWQ", self.slow_queues, 1..=MAX_SLOWQ)?;
        bound("NUM_TABLES", self.tables, 1..=MAX_TABLES as u32)?;
        bound("NUM_STAGES", self.stages, 1..=MAX_STAGES.into())?;
        bound("NUM_METERS", self.meters, 0..=1 << 20)?;
        bound("CAPS_BYTES", self.caps_bytes, size_of::<CapsHeader>() as u32..=MAX_BLOB)?;
        bound("MAX_FRAME", self.max_frame, FRAME)?;
        bound("MAX_SLOTS", self.max_slots, 1..=255)
    }
}

/// What the codec needs of a table beyond its public record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableInfo {
    /// The public record.
    pub(crate) caps: TableCaps,
    /// Mask bits that exist, one byte per byte of the key.
    pub(crate) supported: Vec<u8>,
    /// An entry without actions is allowed.
    pub(crate) may_drop: bool,
}

/// Everything in a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) tables: Vec<TableInfo>,
}

impl Parsed {
    /// The public record. `model` is a name for people; `virtual_ports` the ports whose register says VF.
    pub(crate) fn nic_caps(&self, id: &Identity, virtual_ports: &[bool]) -> NicCaps {
        let ports = (1..=id.ports as u16).zip(virtual_ports).map(|(p, &virtual_function)| PortCaps {
            port: NicPort(p),
            virtual_function,
            max_frame: id.max_frame,
        });
        let entries: u64 = self.tables.iter().map(|t| u64::from(t.caps.max_entries)).sum();
        NicCaps {
            device: "FL1".into(),
            model: format!("{} tables, {entries} entries", self.tables.len()),
            ports: ports.collect(),
            tables: self.tables.iter().map(|t| t.caps.clone()).collect(),
            slow_queues: id.slow_queues as u16,
            meters: id.meters.min(super::meter::METERS_MAX),
            shared_meters: id.meter_window && id.meters > 0,
            pipeline_tx: true,
            parser: PARSER,
            read_back: true,
            caveats: vec![],
        }
    }
}

/// Parses and checks a blob; the error says what is impossible.
pub(crate) fn parse(blob: &[u8], id: &Identity) -> Result<Parsed, String> {
    let h = wire::parse::<CapsHeader>(blob).ok_or("the capability blob is cut off")?;
    if h.magic.get() != MAGIC || h.len.get() as usize != blob.len() {
        return Err(format!("capability blob of magic {:#x}, {} of {} bytes", h.magic, h.len, blob.len()));
    }
    if crc_without(blob, 28) != Some(h.crc.get()) {
        return Err("the capability blob's CRC is wrong".into());
    }
    let said: [u32; 4] =
        [h.tables.get().into(), h.stages.get().into(), h.ports.get().into(), h.slow_queues.get().into()];
    let registers = [id.tables, id.stages, id.ports, id.slow_queues];
    if said != registers
        || [h.parser_flags.get(), h.meters.get(), h.max_frame.get()]
            != [id.parser_flags, id.meters, id.max_frame]
    {
        return Err(format!("capability blob ({said:?}) and registers ({registers:?}) disagree"));
    }
    let mut tables: Vec<TableInfo> = Vec::with_capacity(id.tables as usize);
    let mut rest = blob.get(size_of::<CapsHeader>()..).unwrap_or_default();
    let mut entries = 0;
    for _ in 0..id.tables {
        let r = wire::parse::<TableRecord>(rest).ok_or("a table record is cut off")?;
        let len = size_of::<TableRecord>() + size_of::<FieldRecord>() * usize::from(r.fields.get());
        let fields = rest.get(size_of::<TableRecord>()..len).ok_or("field records are cut off")?;
        if r.len.get() as usize != len {
            return Err(format!("table {}: a record of {} bytes says {}", r.id, len, r.len));
        }
        let t = table(&r, fields, id.stages)?;
        if tables.last().is_some_and(|p| p.caps.id >= t.caps.id) {
            return Err(format!("table {} is out of order", r.id));
        }
        entries += u64::from(t.caps.max_entries);
        tables.push(t);
        rest = rest.get(len..).unwrap_or_default();
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes after the last table record", rest.len()));
    }
    if entries > MAX_ENTRIES {
        return Err(format!(
            "{entries} entries are more than this driver keeps counters for ({MAX_ENTRIES})"
        ));
    }
    for t in &tables {
        if let Miss::Next(next) = t.caps.miss {
            // Later tables of the same stage only: so a lookup ends.
            let found = tables.iter().find(|n| n.caps.id == next);
            if next <= t.caps.id || found.is_none_or(|n| n.caps.stage != t.caps.stage) {
                return Err(format!("table {}: a miss goes to table {}", t.caps.id.0, next.0));
            }
        }
    }
    Ok(Parsed { tables })
}

fn table(r: &TableRecord, records: &[u8], stages: u32) -> Result<TableInfo, String> {
    let id = r.id.get();
    let lie = |what: String| Err(format!("table {id}: {what}"));
    let key_len = usize::from(r.key_bytes.get());
    if key_len == 0 || key_len > KEY_MAX || !key_len.is_multiple_of(8) {
        return lie(format!("a key of {key_len} bytes"));
    }
    let count = usize::from(r.fields.get());
    if count > MAX_FIELDS {
        return lie(format!("{count} fields"));
    }
    if u32::from(r.stage) >= stages {
        return lie(format!("stage {} of {stages}", r.stage));
    }
    if r.max_entries.get() == 0 {
        return lie("no entries".into());
    }
    let kind = match (r.kind, r.max_masks.get()) {
        (1, max_masks @ 1..) => TableKind::Hash { max_masks },
        (2, _) => TableKind::Tcam,
        (kind, masks) => return lie(format!("kind {kind} with {masks} masks")),
    };
    let miss = match (r.miss, r.next_table.get()) {
        (0, _) => Miss::SlowQueue,
        (1, next) => Miss::Next(TableId(next)),
        (other, _) => return lie(format!("miss {other}")),
    };
    // Only a later stage can be gone to, so every packet comes to an end.
    let goto: Vec<_> = (0..32).filter(|s| r.goto.get() & 1 << s != 0).map(|s| Stage(s as u8)).collect();
    if goto.iter().any(|s| s.0 <= r.stage || u32::from(s.0) >= stages) {
        return lie(format!("stage {} goes to stages {:#x}", r.stage, r.goto));
    }
    let mut fields = Vec::with_capacity(count);
    let mut taken = [false; KEY_MAX];
    let mut supported = vec![0; key_len];
    for record in records.chunks_exact(size_of::<FieldRecord>()) {
        let Some(f) = wire::parse::<FieldRecord>(record) else { return lie("a field is cut off".into()) };
        let (bit, width) = (usize::from(f.bit_offset.get()), usize::from(f.bit_width.get()));
        let (at, n) = (bit / 8, width / 8);
        if bit % 8 != 0 || width % 8 != 0 || !(1..=16).contains(&n) || at + n > key_len {
            return lie(format!("field {} at bit {bit}, {width} bits", f.id));
        }
        for place in taken.iter_mut().skip(at).take(n) {
            if std::mem::replace(place, true) {
                return lie(format!("field {} overlaps another", f.id));
            }
        }
        let kind = match f.kind {
            1 => MatchKind::Exact,
            2 => MatchKind::Prefix,
            3 => MatchKind::Any,
            other => return lie(format!("field {}: match kind {other}", f.id)),
        };
        let Some((field, bytes)) = field_of(f.id.get()) else { continue };
        if bytes != n {
            return lie(format!("field {} of {width} bits", f.id));
        }
        if fields.iter().any(|c: &FieldCaps| c.field == field) {
            return lie(format!("field {} twice", f.id));
        }
        let mask = &f.supported[..n];
        supported[at..at + n].copy_from_slice(mask);
        // The planner is told of the low-order bits that exist; a mask with holes cannot be put that way, and a field
        // that no entry can match on is none.
        let value = mask.iter().fold(0u128, |v, &b| v << 8 | u128::from(b));
        let ones = value.trailing_ones();
        if ones == 0 || value.checked_shr(ones).unwrap_or(0) != 0 {
            continue;
        }
        let offset = (at + n - (ones as usize).div_ceil(8)) as u16;
        fields.push(FieldCaps { field, offset, width: ones as u16, kind });
    }
    fields.sort_by_key(|f| f.offset);
    let bits = r.actions.get();
    let mut actions = ActionSet::default();
    for (code, kind) in ACTIONS {
        if bits & 1 << code != 0 {
            actions = actions.with(kind);
        }
    }
    if bits & TRUNC_BIT != 0 && actions.has(ActionKind::Output) {
        actions = actions.with(ActionKind::Trunc);
    }
    let settable = r.settable.get();
    let settable = FIELDS.iter().filter(|(i, _, _)| settable & 1 << i != 0).map(|&(_, f, _)| f).collect();
    let caps = TableCaps {
        id: TableId(id),
        kind,
        stage: Stage(r.stage),
        fields,
        key_len: r.key_bytes.get(),
        actions,
        settable,
        set_bits: true,
        output_to_ingress: true,
        counters: CounterCaps::ALL,
        max_actions: r.max_units,
        max_entries: r.max_entries.get(),
        goto,
        miss,
    };
    Ok(TableInfo { caps, supported, may_drop: bits & DROP_BIT != 0 })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::wire::golden;
    use super::*;
    use proptest::prelude::*;

    pub(crate) const TINY: Identity = Identity {
        ports: 4,
        slow_queues: 1,
        tables: 1,
        stages: 1,
        meters: 0,
        caps_bytes: 480,
        max_frame: 65600,
        parser_flags: 0xff,
        max_slots: 16,
        order: true,
        meter_window: true,
    };

    fn fix_crc(blob: &mut [u8]) {
        let crc = crc_without(blob, 28).unwrap();
        blob[28..32].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn tiny_blob_is_golden() {
        let p = parse(&golden("caps_tiny"), &TINY).unwrap();
        let t = &p.tables[0].caps;
        assert_eq!((t.id, t.kind, t.stage), (TableId(0), TableKind::Tcam, Stage(0)));
        assert_eq!((t.max_entries, t.key_len, t.max_actions, t.miss), (16, 64, 4, Miss::SlowQueue));
        assert_eq!((t.fields.len(), t.goto.len(), t.settable.len()), (12, 0, 0));
        assert!(p.tables[0].may_drop);
        for (kind, has) in [
            (ActionKind::Output, true),
            (ActionKind::PushVlan, true),
            (ActionKind::PopVlan, true),
            (ActionKind::Trap, true),
            (ActionKind::SetField, false),
            (ActionKind::Trunc, false),
            (ActionKind::Goto, false),
        ] {
            assert_eq!(t.actions.has(kind), has, "{kind:?}");
        }
        let dst = t.fields.iter().find(|f| f.field == Field::Ipv4Dst).unwrap();
        assert_eq!((dst.offset, dst.width, dst.kind), (26, 32, MatchKind::Any));
        let caps = p.nic_caps(&TINY, &[false, false, true, true]);
        assert_eq!(caps.ports.len(), 4);
        assert!(caps.ports[2].virtual_function && caps.ports[2].port == NicPort(3));
    }

    #[test]
    fn a_field_of_fewer_bits_is_told_right_aligned() {
        let mut blob = golden("caps_tiny");
        // eth_dst (second field) keeps its low 20 bits.
        let at = 96 + 32 + 8;
        blob[at..at + 6].copy_from_slice(&[0, 0, 0, 0x0f, 0xff, 0xff]);
        fix_crc(&mut blob);
        let p = parse(&blob, &TINY).unwrap();
        let f = p.tables[0].caps.fields.iter().find(|f| f.field == Field::EthDst).unwrap();
        assert_eq!((f.offset, f.width), (2 + 3, 20));
        // With a hole there is no such field.
        blob[at + 5] = 0xfe;
        fix_crc(&mut blob);
        let p = parse(&blob, &TINY).unwrap();
        assert!(p.tables[0].caps.fields.iter().all(|f| f.field != Field::EthDst));
    }

    #[test]
    fn lies_are_named() {
        for (at, value, part) in [
            (0usize, 0u8, "magic"),
            (4, 0, "magic"),
            (10, 2, "disagree"),
            (34, 3, "kind 3"),
            (35, 1, "stage 1 of 1"),
            (44, 63, "key of 63"),
            (44, 136, "key of 136"),
            (46, 11, "a record of 416 bytes says 448"),
            (46, 200, "cut off"),
            (53, 9, "miss 9"),
            (53, 1, "a miss goes to table"),
            (56, 1, "goes to stages"),
            (96 + 2, 0, "match kind 0"),
            (96 + 4, 4, "at bit 4"),
            (96 + 6, 24, "of 24 bits"),
            (96 + 32 + 4, 8, "overlaps"),
            (96 + 7, 4, "bits"),
        ] {
            let mut blob = golden("caps_tiny");
            blob[at] = value;
            fix_crc(&mut blob);
            let e = parse(&blob, &TINY).unwrap_err();
            assert!(e.contains(part), "byte {at} = {value}: {e}");
        }
        let mut blob = golden("caps_tiny");
        blob[100] ^= 1;
        assert!(parse(&blob, &TINY).unwrap_err().contains("CRC"));
        assert!(Identity { slow_queues: 29, ..TINY }.check().unwrap_err().contains("NUM_SLOWQ is 29"));
        assert!(Identity { max_frame: u32::MAX - 1, ..TINY }.check().is_err());
        TINY.check().unwrap();
    }

    proptest! {
        /// Any damage, with a right CRC: an error or records that hold together.
        #[test]
        fn any_blob_is_survived(edits in prop::collection::vec((0usize..480, any::<u8>()), 1..8), cut in 0usize..480) {
            let mut blob = golden("caps_tiny");
            for (at, v) in edits {
                blob[at] = v;
            }
            fix_crc(&mut blob);
            let _ = parse(&blob[..cut], &TINY);
            if let Ok(p) = parse(&blob, &TINY) {
                for t in &p.tables {
                    prop_assert_eq!(t.supported.len(), usize::from(t.caps.key_len));
                    for f in &t.caps.fields {
                        prop_assert!(usize::from(f.offset) + usize::from(f.width.div_ceil(8)) <= t.supported.len());
                    }
                }
            }
        }
    }
}
