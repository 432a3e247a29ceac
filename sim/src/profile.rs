//! Profiles: how large an FL1 is. All of it is data; the rest of the model only reads these tables.

use crate::bytes::put;
use crate::checksum::crc32c;
use crate::field::Field;

/// Kinds of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TableKind {
    /// Exact match under one of a bounded number of masks.
    Hash = 1,
    /// A mask and a priority per entry.
    Tcam = 2,
}

/// How a field may be masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MatchKind {
    /// All or nothing.
    Exact = 1,
    /// Leading bits.
    Prefix = 2,
    /// Any bits.
    Any = 3,
}

/// One field of a table's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSpec {
    /// Which.
    pub field: Field,
    /// How it may be masked.
    pub kind: MatchKind,
    /// Byte offset in the key blob.
    pub offset: usize,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Id, which is its index.
    pub id: u16,
    /// Kind.
    pub kind: TableKind,
    /// Stage.
    pub stage: u8,
    /// Entries it holds.
    pub max_entries: u32,
    /// Distinct masks at once (HASH), 0 for TCAM.
    pub max_masks: u32,
    /// Key fields, by offset.
    pub fields: Vec<FieldSpec>,
    /// Length of key and mask in bytes.
    pub key_bytes: usize,
    /// Bitmap of action types; bit 0 the empty list, bit 16 truncation.
    pub actions: u32,
    /// Longest action list in units.
    pub max_units: u8,
    /// The table asked on a miss; `None`: the slow queue.
    pub next: Option<u16>,
    /// Bitmap of stages that GOTO may name.
    pub goto_stages: u32,
    /// Bitmap of fields that SET_FIELD may change.
    pub settable: u64,
}

/// An FL1 of a certain size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// Physical ports, numbered from 1.
    pub physical_ports: u16,
    /// Virtual-function ports, after them.
    pub vf_ports: u16,
    /// Slow queues.
    pub slow_queues: u16,
    /// Meters.
    pub meters: u32,
    /// Stages.
    pub stages: u8,
    /// Tables, by id.
    pub tables: Vec<TableSpec>,
}

/// Longest frame, without FCS.
pub const MAX_FRAME: usize = 65_600;
/// Longest command in slots.
pub const MAX_SLOTS: u8 = 16;
/// Guarantees of the parser (FL1.md, section 6).
pub(crate) const PARSER_FLAGS: u32 = 0xff;

const CAPS_MAGIC: u32 = 0x5043_4c46;
const CAPS_HEADER: usize = 32;
const TABLE_RECORD: usize = 64;
const FIELD_RECORD: usize = 32;
const ALL_COUNTERS: u32 = 0xf;

use Field as F;
const TINY: &[Field] = &[
    F::InPort,
    F::EthDst,
    F::EthSrc,
    F::EthType,
    F::Vlan0Tpid,
    F::Vlan0Tci,
    F::IpProto,
    F::IpTos,
    F::Ipv4Src,
    F::Ipv4Dst,
    F::Ipv6Src,
    F::Ipv6Dst,
];
const L2: [Field; 12] = [
    F::InPort,
    F::Metadata,
    F::EthDst,
    F::EthSrc,
    F::EthType,
    F::Vlan0Tpid,
    F::Vlan0Tci,
    F::Vlan1Tpid,
    F::Vlan1Tci,
    F::IpProto,
    F::IpTos,
    F::IpTtl,
];
const V4: [Field; 2] = [F::Ipv4Src, F::Ipv4Dst];
const V6: [Field; 3] = [F::Ipv6Src, F::Ipv6Dst, F::Ipv6Label];
const L4: [Field; 3] = [F::L4Src, F::L4Dst, F::TcpFlags];
const TUNNEL: [Field; 3] = [F::TunId, F::TunIpv4Src, F::TunIpv4Dst];
const ARP: [Field; 5] = [F::ArpOp, F::ArpSpa, F::ArpTpa, F::ArpSha, F::ArpTha];

/// Which fields a table has.
#[derive(Debug, Clone, Copy)]
enum Keys {
    Tiny,
    Hash4,
    Hash6,
    Full,
    /// HASH-4 behind a stage that can unwrap tunnels.
    Hash4Tunnel,
    /// Every field behind such a stage.
    FullTunnel,
}

impl Keys {
    fn fields(self) -> Vec<Field> {
        match self {
            Self::Tiny => TINY.to_vec(),
            Self::Hash4 => [&L2[..], &V4, &L4].concat(),
            Self::Hash6 => [&L2[..], &V6, &L4].concat(),
            Self::Full => [&L2[..], &V4, &V6, &L4, &ARP].concat(),
            Self::Hash4Tunnel => [&L2[..], &V4, &L4, &TUNNEL].concat(),
            Self::FullTunnel => [&L2[..], &V4, &V6, &L4, &ARP, &TUNNEL].concat(),
        }
    }
}

/// A row of a profile: stage, kind, keys, entries, masks.
type Row = (u8, TableKind, Keys, u32, u32);

const TINY_ROWS: &[Row] = &[(0, TableKind::Tcam, Keys::Tiny, 16, 0)];
const STANDARD_ROWS: &[Row] = &[
    (0, TableKind::Hash, Keys::Hash4, 65_536, 32),
    (0, TableKind::Hash, Keys::Hash6, 16_384, 16),
    (0, TableKind::Tcam, Keys::Full, 2_048, 0),
    (1, TableKind::Hash, Keys::Hash4, 16_384, 32),
    (1, TableKind::Tcam, Keys::Full, 1_024, 0),
];
const LARGE_ROWS: &[Row] = &[
    (0, TableKind::Hash, Keys::Hash4, 2_097_152, 256),
    (0, TableKind::Hash, Keys::Hash6, 262_144, 64),
    (0, TableKind::Tcam, Keys::Full, 8_192, 0),
    (1, TableKind::Hash, Keys::Hash4Tunnel, 524_288, 64),
    (1, TableKind::Tcam, Keys::FullTunnel, 4_096, 0),
    (2, TableKind::Hash, Keys::Hash4Tunnel, 131_072, 32),
    (2, TableKind::Tcam, Keys::FullTunnel, 2_048, 0),
];

/// Actions of the profiles, as bits of the table record: drop, OUTPUT, PUSH_VLAN, POP_VLAN, TRAP.
const TINY_ACTIONS: u32 = 0x9b;
/// Types 0 to 9, and truncation.
const ALL_BUT_VXLAN: u32 = 0x1_03ff;
/// VXLAN_ENCAP and VXLAN_DECAP.
const VXLAN: u32 = 0xc00;
const GOTO: u32 = 1 << 9;

/// Fields that SET_FIELD changes in the profiles that have it.
const SETTABLE: [Field; 11] = [
    F::EthDst,
    F::EthSrc,
    F::IpTos,
    F::IpTtl,
    F::Ipv4Src,
    F::Ipv4Dst,
    F::Ipv6Src,
    F::Ipv6Dst,
    F::Ipv6Label,
    F::L4Src,
    F::L4Dst,
];

impl Profile {
    /// The profile of this name: `tiny`, `standard` or `large`.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "tiny" => Some(Self::tiny()),
            "standard" => Some(Self::standard()),
            "large" => Some(Self::large()),
            _ => None,
        }
    }
    /// One TCAM of 16 entries with L2 and L3 keys.
    pub fn tiny() -> Self {
        Self::build("tiny", (2, 2), 1, 0, TINY_ROWS, TINY_ACTIONS)
    }
    /// Two stages, tens of thousands of entries.
    pub fn standard() -> Self {
        Self::build("standard", (2, 14), 4, 256, STANDARD_ROWS, ALL_BUT_VXLAN)
    }
    /// Three stages, more than two million entries.
    pub fn large() -> Self {
        Self::build("large", (4, 28), 8, 4096, LARGE_ROWS, ALL_BUT_VXLAN | VXLAN)
    }

    fn build(
        name: &'static str,
        (phys, vf): (u16, u16),
        slow_queues: u16,
        meters: u32,
        rows: &[Row],
        actions: u32,
    ) -> Self {
        let stages = rows.iter().map(|r| r.0 + 1).max().unwrap_or(1);
        let all_stages = (1u32 << stages) - 1;
        let tables = rows
            .iter()
            .zip(0u16..)
            .map(|(&(stage, kind, keys, max_entries, max_masks), id)| {
                let tiny = matches!(keys, Keys::Tiny);
                let mut end = 0;
                let fields: Vec<_> = keys
                    .fields()
                    .into_iter()
                    .map(|field| {
                        let offset = end;
                        end += field.bytes();
                        FieldSpec { field, kind: match_kind(kind, field), offset }
                    })
                    .collect();
                let later = all_stages & !((2u32 << stage) - 1);
                TableSpec {
                    id,
                    kind,
                    stage,
                    max_entries,
                    max_masks,
                    fields,
                    key_bytes: end.next_multiple_of(8),
                    // GOTO only where there is a later stage.
                    actions: if later == 0 { actions & !GOTO } else { actions },
                    max_units: if tiny { 4 } else { 16 },
                    next: rows.get(usize::from(id) + 1).filter(|r| r.0 == stage).map(|_| id + 1),
                    goto_stages: later,
                    settable: if tiny { 0 } else { SETTABLE.iter().fold(0, |m, f| m | 1 << f.id()) },
                }
            })
            .collect();
        Self { name, physical_ports: phys, vf_ports: vf, slow_queues, meters, stages, tables }
    }

    /// Number of ports.
    pub fn ports(&self) -> u16 {
        self.physical_ports + self.vf_ports
    }

    /// The capability blob (FL1.md, section 6).
    pub fn capability_blob(&self) -> Vec<u8> {
        let mut b = vec![0; CAPS_HEADER];
        for t in &self.tables {
            b.extend_from_slice(&table_record(t));
        }
        let len = b.len() as u32;
        put(&mut b, 0, &CAPS_MAGIC.to_le_bytes());
        put(&mut b, 4, &len.to_le_bytes());
        put(&mut b, 8, &(self.tables.len() as u16).to_le_bytes());
        put(&mut b, 10, &u16::from(self.stages).to_le_bytes());
        put(&mut b, 12, &self.ports().to_le_bytes());
        put(&mut b, 14, &self.slow_queues.to_le_bytes());
        put(&mut b, 16, &PARSER_FLAGS.to_le_bytes());
        put(&mut b, 20, &self.meters.to_le_bytes());
        put(&mut b, 24, &(MAX_FRAME as u32).to_le_bytes());
        let crc = crc32c(&b);
        put(&mut b, 28, &crc.to_le_bytes());
        b
    }
}

fn match_kind(table: TableKind, f: Field) -> MatchKind {
    match f {
        F::InPort | F::Metadata | F::EthType | F::Vlan0Tpid | F::Vlan1Tpid | F::IpProto | F::ArpOp => {
            MatchKind::Exact
        }
        F::Ipv4Src | F::Ipv4Dst | F::Ipv6Src | F::Ipv6Dst | F::TunIpv4Src | F::TunIpv4Dst
            if table == TableKind::Hash =>
        {
            MatchKind::Prefix
        }
        _ => MatchKind::Any,
    }
}

fn table_record(t: &TableSpec) -> Vec<u8> {
    let len = TABLE_RECORD + t.fields.len() * FIELD_RECORD;
    let mut r = vec![0; len];
    put(&mut r, 0, &t.id.to_le_bytes());
    put(&mut r, 2, &[t.kind as u8, t.stage]);
    put(&mut r, 4, &t.max_entries.to_le_bytes());
    put(&mut r, 8, &t.max_masks.to_le_bytes());
    put(&mut r, 12, &(t.key_bytes as u16).to_le_bytes());
    put(&mut r, 14, &(t.fields.len() as u16).to_le_bytes());
    put(&mut r, 16, &t.actions.to_le_bytes());
    put(&mut r, 20, &[t.max_units, u8::from(t.next.is_some())]);
    put(&mut r, 22, &t.next.unwrap_or(u16::MAX).to_le_bytes());
    put(&mut r, 24, &t.goto_stages.to_le_bytes());
    put(&mut r, 28, &ALL_COUNTERS.to_le_bytes());
    put(&mut r, 32, &t.settable.to_le_bytes());
    put(&mut r, 40, &(len as u32).to_le_bytes());
    for (i, f) in t.fields.iter().enumerate() {
        let at = TABLE_RECORD + i * FIELD_RECORD;
        put(&mut r, at, &f.field.id().to_le_bytes());
        put(&mut r, at + 2, &[f.kind as u8]);
        put(&mut r, at + 4, &((f.offset * 8) as u16).to_le_bytes());
        put(&mut r, at + 6, &((f.field.bytes() * 8) as u16).to_le_bytes());
        put(&mut r, at + 8, &f.field.supported());
    }
    r
}
