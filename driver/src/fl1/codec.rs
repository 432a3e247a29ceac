//! Entries as bytes: what INSERT and REPLACE carry (FL1.md sections 5 and 7), and back.
//!
//! Encoding refuses whatever the capability records exclude, so that nothing is sent that the NIC would refuse or read
//! differently. Decoding is a second reading of the same page and shares no code with encoding: raise-and-compare is
//! worth something only so.

mod vxlan;

use super::caps::{Identity, TableInfo, field_code, field_of};
use super::wire::{COMMAND_MAX, CommandHeader, PAYLOAD, SLOT, UNIT, action, op, parse};
use crate::nic::{ActionKind, Entry, Field, FieldValue, NicAction, NicPort, Stage, TableKind};
use smallvec::SmallVec;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Shortest frame that truncation leaves, in bytes.
const TRUNC_MIN: u32 = 14;

/// Writes action units one after the other.
struct Units<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl Units<'_> {
    fn put(&mut self, unit: [u8; UNIT]) -> Result<(), String> {
        let at = self.used * UNIT;
        let room = self.bytes.get_mut(at..at + UNIT).ok_or("more actions than fit in a command")?;
        room.copy_from_slice(&unit);
        self.used += 1;
        Ok(())
    }
}

fn unit(kind: u8, arg: u16) -> [u8; UNIT] {
    let mut u = [0; UNIT];
    u[0] = kind;
    u[1] = 1;
    u[2..4].copy_from_slice(&arg.to_le_bytes());
    u
}

/// Index of the first byte of an `n`-byte field in a right-aligned [`FieldValue`].
fn low(v: &FieldValue, n: usize) -> &[u8] {
    &v[v.len() - n..]
}

fn encode_set(
    units: &mut Units<'_>,
    field: Field,
    value: &FieldValue,
    mask: &FieldValue,
) -> Result<(), String> {
    let (id, n) = field_code(field).ok_or_else(|| format!("{field:?} cannot be set"))?;
    let (high_value, high_mask) = (&value[..16 - n], &mask[..16 - n]);
    if high_value.iter().chain(high_mask).any(|&b| b != 0) {
        return Err(format!("a value for {field:?} of more than {n} bytes"));
    }
    if mask.iter().all(|&b| b == 0) || value.iter().zip(mask).any(|(v, m)| v & !m != 0) {
        return Err(format!("{field:?} set with value bits outside the mask, or with no mask"));
    }
    let mut u = unit(action::SET_FIELD, id);
    if n == 16 {
        u[1] = 3;
        units.put(u)?;
        units.put(*value)?;
        return units.put(*mask);
    }
    u[4..4 + n].copy_from_slice(low(value, n));
    u[10..10 + n].copy_from_slice(low(mask, n));
    units.put(u)
}

fn encode_actions(
    table: &TableInfo,
    id: &Identity,
    actions: &[NicAction],
    bytes: &mut [u8],
) -> Result<usize, String> {
    let mut units = Units { bytes, used: 0 };
    let mut max_len = 0;
    let allowed = |kind: ActionKind| {
        if table.caps.actions.has(kind) {
            Ok(())
        } else {
            Err(format!("table {} has no {kind:?}", table.caps.id.0))
        }
    };
    if actions.is_empty() && !table.may_drop {
        return Err(format!("table {} cannot drop", table.caps.id.0));
    }
    vxlan::check_place(actions)?;
    for (i, a) in actions.iter().enumerate() {
        let last = i + 1 == actions.len();
        match a {
            NicAction::Output(port) => {
                allowed(ActionKind::Output)?;
                if port.0 == 0 || u32::from(port.0) > id.ports {
                    return Err(format!("output to port {}, of {}", port.0, id.ports));
                }
                let mut u = unit(action::OUTPUT, port.0);
                u[4..8].copy_from_slice(&u32::to_le_bytes(std::mem::take(&mut max_len)));
                units.put(u)?;
            }
            NicAction::Trunc(len) => {
                allowed(ActionKind::Trunc)?;
                if *len < TRUNC_MIN || max_len != 0 {
                    return Err(format!("truncation to {len} bytes, or two before one output"));
                }
                max_len = *len;
            }
            NicAction::SetField { field, value, mask } => {
                allowed(ActionKind::SetField)?;
                if !table.caps.settable.contains(field) {
                    return Err(format!("table {} cannot set {field:?}", table.caps.id.0));
                }
                encode_set(&mut units, *field, value, mask)?;
            }
            NicAction::PushVlan { tpid, tci } => {
                allowed(ActionKind::PushVlan)?;
                if !matches!(tpid, 0x8100 | 0x88a8) {
                    return Err(format!("push of a VLAN tag with TPID {tpid:#x}"));
                }
                let mut u = unit(action::PUSH_VLAN, 0);
                u[4..6].copy_from_slice(&tpid.to_be_bytes());
                u[6..8].copy_from_slice(&tci.to_be_bytes());
                units.put(u)?;
            }
            NicAction::PopVlan => {
                allowed(ActionKind::PopVlan)?;
                units.put(unit(action::POP_VLAN, 0))?;
            }
            NicAction::DecTtl => {
                allowed(ActionKind::DecTtl)?;
                units.put(unit(action::DEC_TTL, 0))?;
            }
            NicAction::Meter(meter) => {
                allowed(ActionKind::Meter)?;
                if *meter >= id.meters {
                    return Err(format!("meter {meter} of {}", id.meters));
                }
                let mut u = unit(action::METER, 0);
                u[4..8].copy_from_slice(&meter.to_le_bytes());
                units.put(u)?;
            }
            NicAction::Trap => {
                allowed(ActionKind::Trap)?;
                if !last {
                    return Err("an action after a trap".into());
                }
                units.put(unit(action::TRAP, 0))?;
            }
            NicAction::SetMetadata(value) => {
                allowed(ActionKind::SetMetadata)?;
                let mut u = unit(action::SET_METADATA, 0);
                u[4..8].copy_from_slice(&value.to_le_bytes());
                u[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
                units.put(u)?;
            }
            NicAction::Goto(stage) => {
                allowed(ActionKind::Goto)?;
                if !last || !table.caps.goto.contains(stage) {
                    return Err(format!("goto stage {}, not last or not possible", stage.0));
                }
                units.put(unit(action::GOTO, stage.0.into()))?;
            }
            NicAction::VxlanEncap(template) => {
                allowed(ActionKind::VxlanEncap)?;
                for u in vxlan::encode(template)? {
                    units.put(u)?;
                }
            }
            NicAction::VxlanDecap => {
                allowed(ActionKind::VxlanDecap)?;
                units.put(unit(action::VXLAN_DECAP, 0))?;
            }
        }
    }
    if max_len != 0 {
        return Err("a truncation without an output after it".into());
    }
    if units.used > usize::from(table.caps.max_actions) {
        return Err(format!("{} action units of {}", units.used, table.caps.max_actions));
    }
    Ok(units.used)
}

/// Refuses a key or mask that the table does not have.
fn check_match(table: &TableInfo, entry: &Entry) -> Result<(), String> {
    let n = usize::from(table.caps.key_len);
    if entry.key.len() != n || entry.mask.len() != n {
        return Err(format!("key and mask of {} and {} bytes, not {n}", entry.key.len(), entry.mask.len()));
    }
    let bytes = entry.key.iter().zip(&entry.mask).zip(&table.supported);
    let (outside_mask, unsupported) = bytes.fold((0, 0), |(o, u), ((k, m), s)| (o | k & !m, u | m & !s));
    if outside_mask != 0 {
        return Err("key bits outside the mask".into());
    }
    if unsupported != 0 {
        return Err(format!("mask bits that table {} does not match", table.caps.id.0));
    }
    if entry.priority != 0 && table.caps.kind != TableKind::Tcam {
        return Err(format!("a priority in table {}, which has none", table.caps.id.0));
    }
    Ok(())
}

/// Slots for a payload of `len` bytes, if the device takes that many.
fn slots(len: usize, id: &Identity) -> Result<usize, String> {
    let slots = (PAYLOAD + len).div_ceil(SLOT);
    let max = (COMMAND_MAX / SLOT).min(id.max_slots as usize);
    if slots > max { Err(format!("a command of {slots} slots of {max}")) } else { Ok(slots) }
}

/// Bytes that INSERT of an entry takes at most, whole slots.
pub(crate) fn insert_room(entry: &Entry) -> usize {
    let units = |a: &NicAction| match a {
        // With the output that they are for.
        NicAction::Trunc(_) => 0,
        // Value and mask have units of their own.
        NicAction::SetField { field, .. } if field.width() == 128 => 3,
        NicAction::VxlanEncap(_) => vxlan::RECORD,
        _ => 1,
    };
    let units: usize = entry.actions.iter().map(units).sum();
    (PAYLOAD + entry.key.len() + entry.mask.len() + units * UNIT).next_multiple_of(SLOT)
}

/// Encodes INSERT; returns the command's length in bytes. The cookie is left 0. `out` may be dirty, and has [`insert_room`].
pub(crate) fn encode_insert(
    table: &TableInfo,
    id: &Identity,
    (index, generation): (u32, u32),
    entry: &Entry,
    out: &mut [u8],
) -> Result<usize, String> {
    if out.len() < insert_room(entry) {
        return Err(format!("an insert of {} bytes", insert_room(entry)));
    }
    check_match(table, entry)?;
    let n = entry.key.len();
    let actions_at = PAYLOAD + 2 * n;
    let units = encode_actions(table, id, &entry.actions, &mut out[actions_at..])?;
    let len = slots(2 * n + units * UNIT, id)? * SLOT;
    let header = CommandHeader {
        opcode: op::INSERT,
        slots: (len / SLOT) as u8,
        table: table.caps.id.0.into(),
        priority: entry.priority.into(),
        entry: index.into(),
        generation: generation.into(),
        key_len: table.caps.key_len.into(),
        units: units as u8,
        ..CommandHeader::new_zeroed()
    };
    out[..PAYLOAD].copy_from_slice(header.as_bytes());
    out[PAYLOAD..PAYLOAD + n].copy_from_slice(&entry.key);
    out[PAYLOAD + n..actions_at].copy_from_slice(&entry.mask);
    out[actions_at + units * UNIT..len].fill(0);
    Ok(len)
}

/// Gives an INSERT that was encoded for no place in particular its place and generation.
pub(crate) fn complete_insert(
    table: &TableInfo,
    (index, generation): (u32, u32),
    command: &mut [u8],
) -> Result<(), String> {
    let len = command.len();
    match CommandHeader::mut_from_prefix(command) {
        Ok((h, _))
            if h.opcode == op::INSERT
                && h.table.get() == table.caps.id.0
                && usize::from(h.slots) * SLOT == len =>
        {
            (h.entry, h.generation) = (index.into(), generation.into());
            Ok(())
        }
        _ => Err(format!("{len} bytes are no insert into table {}", table.caps.id.0)),
    }
}

/// Encodes REPLACE; as [`encode_insert`]. Key and mask stay on our side.
pub(crate) fn encode_replace(
    table: &TableInfo,
    id: &Identity,
    (index, generation): (u32, u32),
    entry: &Entry,
    out: &mut [u8; COMMAND_MAX],
) -> Result<usize, String> {
    let units = encode_actions(table, id, &entry.actions, &mut out[PAYLOAD..])?;
    let len = slots(units * UNIT, id)? * SLOT;
    let header = CommandHeader {
        opcode: op::REPLACE,
        slots: (len / SLOT) as u8,
        table: table.caps.id.0.into(),
        entry: index.into(),
        generation: generation.into(),
        units: units as u8,
        ..CommandHeader::new_zeroed()
    };
    out[..PAYLOAD].copy_from_slice(header.as_bytes());
    out[PAYLOAD + units * UNIT..len].fill(0);
    Ok(len)
}

/// What a command or record says of an entry: header fields and the payload from key to last unit.
pub(crate) struct Raw<'a> {
    pub(crate) priority: u16,
    pub(crate) key_len: u16,
    pub(crate) units: u8,
    pub(crate) payload: &'a [u8],
}

/// The entry that an INSERT command means.
pub(crate) fn decode_insert(table: &TableInfo, bytes: &[u8]) -> Result<Entry, String> {
    let h = parse::<CommandHeader>(bytes).ok_or("a command is cut off")?;
    if h.opcode != op::INSERT
        || h.table.get() != table.caps.id.0
        || bytes.len() != usize::from(h.slots) * SLOT
    {
        return Err(format!("{} bytes are no insert into table {}", bytes.len(), table.caps.id.0));
    }
    decode(
        table,
        &Raw {
            priority: h.priority.get(),
            key_len: h.key_len.get(),
            units: h.units,
            payload: bytes.get(PAYLOAD..).unwrap_or_default(),
        },
    )
}

/// The entry that the bytes mean, checked to be one that this table can hold.
pub(crate) fn decode(table: &TableInfo, raw: &Raw<'_>) -> Result<Entry, String> {
    let n = usize::from(raw.key_len);
    if raw.key_len != table.caps.key_len {
        return Err(format!("a key of {n} bytes in table {}", table.caps.id.0));
    }
    let end = 2 * n + usize::from(raw.units) * UNIT;
    let payload = raw.payload.get(..end).ok_or("an entry is cut off")?;
    let (matches, units) = payload.split_at(2 * n);
    let (key, mask) = matches.split_at(n);
    Ok(Entry {
        priority: raw.priority,
        key: SmallVec::from_slice(key),
        mask: SmallVec::from_slice(mask),
        actions: decode_actions(units)?,
    })
}

fn decode_actions(bytes: &[u8]) -> Result<SmallVec<[NicAction; 2]>, String> {
    let mut actions = SmallVec::new();
    let (all, _) = bytes.as_chunks::<UNIT>();
    let mut units = all.iter();
    while let Some(u) = units.next() {
        let arg = u16::from_le_bytes([u[2], u[3]]);
        let word = u32::from_le_bytes([u[4], u[5], u[6], u[7]]);
        // How many leading bytes of the unit have a meaning; the rest must be zero.
        let meaningful = match u[0] {
            action::OUTPUT => {
                if word != 0 {
                    actions.push(NicAction::Trunc(word));
                }
                actions.push(NicAction::Output(NicPort(arg)));
                8
            }
            action::SET_FIELD => {
                let (field, n) = field_of(arg).ok_or_else(|| format!("set of field {arg}"))?;
                let (mut value, mut mask) = ([0; 16], [0; 16]);
                if n == 16 {
                    let (Some(v), Some(m)) = (units.next(), units.next()) else {
                        return Err("a wide set is cut off".into());
                    };
                    (value, mask) = (*v, *m);
                } else {
                    value[16 - n..].copy_from_slice(&u[4..4 + n]);
                    mask[16 - n..].copy_from_slice(&u[10..10 + n]);
                    if u[4 + n..10].iter().chain(&u[10 + n..]).any(|&b| b != 0) {
                        return Err(format!("set of field {arg} with more than {n} bytes"));
                    }
                }
                let expected = if n == 16 { 3 } else { 1 };
                if u[1] != expected {
                    return Err(format!("set of field {arg} in {} units", u[1]));
                }
                actions.push(NicAction::SetField { field, value, mask });
                if n == 16 { 4 } else { 16 }
            }
            action::PUSH_VLAN => {
                let (tpid, tci) = (u16::from_be_bytes([u[4], u[5]]), u16::from_be_bytes([u[6], u[7]]));
                actions.push(NicAction::PushVlan { tpid, tci });
                8
            }
            action::POP_VLAN => {
                actions.push(NicAction::PopVlan);
                4
            }
            action::DEC_TTL => {
                actions.push(NicAction::DecTtl);
                4
            }
            action::METER => {
                actions.push(NicAction::Meter(word));
                8
            }
            action::TRAP => {
                actions.push(NicAction::Trap);
                4
            }
            action::SET_METADATA => {
                if u[8..12] != [0xff; 4] {
                    return Err("metadata set in part".into());
                }
                actions.push(NicAction::SetMetadata(word));
                12
            }
            action::GOTO => {
                let stage = u8::try_from(arg).map_err(|_| format!("goto stage {arg}"))?;
                actions.push(NicAction::Goto(Stage(stage)));
                4
            }
            action::VXLAN_ENCAP => {
                actions.push(NicAction::VxlanEncap(vxlan::decode(&mut units)?));
                4
            }
            action::VXLAN_DECAP => {
                actions.push(NicAction::VxlanDecap);
                4
            }
            other => return Err(format!("action type {other}")),
        };
        let has_arg = matches!(u[0], action::OUTPUT | action::SET_FIELD | action::GOTO);
        let count = if u[0] == action::VXLAN_ENCAP { vxlan::RECORD } else { 1 };
        if u[0] != action::SET_FIELD && usize::from(u[1]) != count
            || arg != 0 && !has_arg
            || u[meaningful..].iter().any(|&b| b != 0)
        {
            return Err(format!("action {u:02x?} has reserved bits"));
        }
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use super::super::caps::{self, tests::TINY};
    use super::super::wire::golden;
    use super::*;
    use crate::nic::{ActionSet, CounterCaps, Miss, TableCaps, TableId};
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn tiny() -> TableInfo {
        caps::parse(&golden("caps_tiny"), &TINY).unwrap().tables.remove(0)
    }

    /// HASH-4 of profile standard, as far as encoding looks at it.
    fn hash4() -> (TableInfo, Identity) {
        let actions = ActionSet(u32::MAX);
        let settable = vec![Field::Ipv4Dst, Field::L4Dst, Field::Ipv6Dst, Field::EthSrc];
        let caps = TableCaps {
            id: TableId(0),
            kind: TableKind::Hash { max_masks: 32 },
            stage: Stage(0),
            fields: vec![],
            key_len: 48,
            actions,
            settable,
            set_bits: true,
            output_to_ingress: true,
            counters: CounterCaps::ALL,
            max_actions: 16,
            max_entries: 65536,
            goto: vec![Stage(1)],
            miss: Miss::SlowQueue,
        };
        let mut supported = vec![0xff; 45];
        supported.resize(48, 0);
        (TableInfo { caps, supported, may_drop: true }, Identity { ports: 16, meters: 256, ..TINY })
    }

    fn value(v: u128) -> FieldValue {
        v.to_be_bytes()
    }

    fn cookie(mut cmd: Vec<u8>, c: u64) -> Vec<u8> {
        cmd[8..16].copy_from_slice(&c.to_le_bytes());
        cmd
    }

    #[test]
    fn insert_into_hash4_is_golden() {
        let (t, id) = hash4();
        let golden = golden("insert_hash4_standard");
        let entry = Entry {
            priority: 0,
            key: SmallVec::from_slice(&golden[32..80]),
            mask: SmallVec::from_slice(&golden[80..128]),
            actions: smallvec![
                NicAction::SetField {
                    field: Field::Ipv4Dst,
                    value: value(0xac10_0009),
                    mask: value(0xffff_ffff)
                },
                NicAction::SetField { field: Field::L4Dst, value: value(8080), mask: value(0xffff) },
                NicAction::DecTtl,
                NicAction::PushVlan { tpid: 0x8100, tci: 0x6064 },
                NicAction::Output(NicPort(5)),
            ],
        };
        let mut out = [0xee; COMMAND_MAX];
        let n = encode_insert(&t, &id, (65535, 1), &entry, &mut out).unwrap();
        let mut ours = cookie(out[..n].to_vec(), 1);
        ours[2] = 1; // the golden command is fenced
        assert_eq!(ours, golden);
        assert_eq!(decode_insert(&t, &golden).unwrap(), entry);
    }

    #[test]
    fn insert_into_tiny_is_golden_but_for_its_ageing() {
        let mut golden = golden("insert_tcam_tiny");
        golden[24..28].fill(0);
        let entry = decode_insert(&tiny(), &golden).unwrap();
        assert_eq!((entry.priority, &entry.actions[..]), (100, &[NicAction::Output(NicPort(2))][..]));
        assert_eq!((entry.key[26], entry.mask[26], entry.mask[14..16].to_vec()), (10, 0xff, vec![0xff; 2]));
        let mut out = [0xee; COMMAND_MAX];
        let n = encode_insert(&tiny(), &TINY, (3, 7), &entry, &mut out).unwrap();
        assert_eq!(cookie(out[..n].to_vec(), 0x1122_3344_5566_7788), golden);
    }

    #[test]
    fn replace_is_golden() {
        let (t, id) = hash4();
        let net = value(0x2001_0db8 << 96);
        let entry = Entry {
            priority: 0,
            key: smallvec![0; 48],
            mask: smallvec![0; 48],
            actions: smallvec![
                NicAction::SetField { field: Field::Ipv6Dst, value: net, mask: value(0xffff_ffff << 96) },
                NicAction::Trunc(64),
                NicAction::Output(NicPort(3)),
            ],
        };
        let mut out = [0xee; COMMAND_MAX];
        let n = encode_replace(&t, &id, (3, 8), &entry, &mut out).unwrap();
        assert_eq!(cookie(out[..n].to_vec(), 42), golden("replace"));
    }

    #[test]
    fn what_the_records_exclude_is_refused_with_a_reason() {
        let (t, id) = hash4();
        let mut out = [0; COMMAND_MAX];
        let mut refused = |actions: SmallVec<[NicAction; 2]>, part: &str| {
            let entry = Entry { priority: 0, key: smallvec![0; 48], mask: smallvec![0; 48], actions };
            let e = encode_insert(&t, &id, (0, 1), &entry, &mut out).unwrap_err();
            assert!(e.contains(part), "{e}");
        };
        let set = |field, v: u128, m: u128| {
            smallvec![NicAction::SetField { field, value: value(v), mask: value(m) }]
        };
        refused(smallvec![NicAction::Output(NicPort(0))], "port 0");
        refused(smallvec![NicAction::Output(NicPort(17))], "port 17");
        refused(smallvec![NicAction::Trunc(64)], "without an output");
        refused(smallvec![NicAction::Trunc(13), NicAction::Output(NicPort(1))], "13 bytes");
        refused(smallvec![NicAction::Trap, NicAction::PopVlan], "after a trap");
        refused(smallvec![NicAction::Goto(Stage(0))], "goto stage 0");
        refused(smallvec![NicAction::PushVlan { tpid: 0x9100, tci: 0 }], "0x9100");
        refused(smallvec![NicAction::Meter(256)], "meter 256");
        refused(set(Field::EthDst, 1, 1), "cannot set EthDst");
        refused(set(Field::L4Dst, 0x1_0000, 0x1_ffff), "more than 2 bytes");
        refused(set(Field::L4Dst, 3, 1), "outside the mask");
        refused(set(Field::L4Dst, 0, 0), "no mask");
        refused((0..17).map(|_| NicAction::PopVlan).collect(), "17 action units of 16");
        let mut refused = |entry: Entry, part: &str| {
            let e = encode_insert(&t, &id, (0, 1), &entry, &mut out).unwrap_err();
            assert!(e.contains(part), "{e}");
        };
        let plain =
            Entry { priority: 0, key: smallvec![0; 48], mask: smallvec![0; 48], actions: smallvec![] };
        refused(Entry { priority: 1, ..plain.clone() }, "priority");
        refused(Entry { key: smallvec![0; 47], ..plain.clone() }, "47 and 48");
        refused(Entry { key: smallvec![1; 48], ..plain.clone() }, "outside the mask");
        refused(Entry { mask: smallvec![1; 48], ..plain }, "does not match");
    }

    fn any_action() -> impl Strategy<Value = NicAction> {
        prop_oneof![
            (1u16..=16).prop_map(|p| NicAction::Output(NicPort(p))),
            any::<u32>().prop_map(NicAction::SetMetadata),
            (0u32..256).prop_map(NicAction::Meter),
            any::<u16>().prop_map(|tci| NicAction::PushVlan { tpid: 0x88a8, tci }),
            Just(NicAction::PopVlan),
            Just(NicAction::DecTtl),
            (any::<u128>(), 1u128..).prop_map(|(v, m)| NicAction::SetField {
                field: Field::Ipv6Dst,
                value: value(v & m),
                mask: value(m)
            }),
            (any::<u64>(), 1u64..1 << 48).prop_map(|(v, m)| NicAction::SetField {
                field: Field::EthSrc,
                value: value((v & m).into()),
                mask: value(m.into())
            }),
        ]
    }

    proptest! {
        #[test]
        fn entries_round_trip(
            key in prop::collection::vec(any::<u8>(), 45),
            mask in prop::collection::vec(any::<u8>(), 45),
            actions in prop::collection::vec(any_action(), 0..9),
            dirt in any::<u8>(),
        ) {
            let (t, id) = hash4();
            let mut key: SmallVec<[u8; 64]> = key.iter().zip(&mask).map(|(k, m)| k & m).collect();
            let mut mask = SmallVec::from_vec(mask);
            key.resize(48, 0);
            mask.resize(48, 0);
            let entry = Entry { priority: 0, key, mask, actions: SmallVec::from_vec(actions) };
            let mut out = [dirt; COMMAND_MAX];
            if let Ok(n) = encode_insert(&t, &id, (7, 9), &entry, &mut out) {
                prop_assert_eq!(decode_insert(&t, &out[..n]).unwrap(), entry);
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), head in any::<bool>()) {
            let (t, _) = hash4();
            let mut bytes = bytes;
            if head && bytes.len() >= 64 {
                bytes.truncate(bytes.len() / 64 * 64);
                bytes[0] = op::INSERT;
                bytes[1] = (bytes.len() / 64) as u8;
                bytes[4..6].fill(0);
                bytes[28..30].copy_from_slice(&48u16.to_le_bytes());
            }
            let _ = decode_insert(&t, &bytes);
        }
    }
}
