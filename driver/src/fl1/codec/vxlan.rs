//! VXLAN actions as bytes (FL1.md section 7, "VXLAN").

use super::super::wire::{UNIT, action};
use super::unit;
use crate::nic::NicAction;

/// Length of a template in bytes: Ethernet, IPv4, UDP and VXLAN header.
const TEMPLATE: usize = 50;
/// Units of a VXLAN_ENCAP record: its head, and the template padded with zeros.
pub(super) const RECORD: usize = 1 + TEMPLATE.div_ceil(UNIT);

/// What a byte of a template must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Byte {
    Is(u8),
    Any,
    NotZero,
}

/// Fields of a template that are not free: offset, bytes, and what they are called.
const FIXED: [(usize, &[Byte], &str); 9] = {
    use Byte::{Any, Is, NotZero};
    [
        (12, &[Is(8), Is(0), Is(0x45), Any], "Ethernet type, IP version or header length"),
        (16, &[Is(0); 4], "IPv4 total length or identification"),
        (21, &[Is(0)], "fragment offset"),
        (22, &[NotZero], "TTL"),
        (23, &[Is(17)], "IP protocol"),
        (24, &[Is(0); 2], "IPv4 header checksum"),
        (38, &[Is(0); 4], "UDP length or checksum"),
        (42, &[Is(8), Is(0), Is(0), Is(0)], "VXLAN flags"),
        (49, &[Is(0)], "reserved VXLAN byte"),
    ]
};

/// Refuses a template that the NIC would refuse, naming the first field that is wrong.
fn check(t: &[u8]) -> Result<(), String> {
    if t.len() != TEMPLATE {
        return Err(format!("a VXLAN template of {} bytes, not {TEMPLATE}", t.len()));
    }
    for (at, bytes, what) in FIXED {
        let wrong = t.iter().skip(at).zip(bytes).any(|(&b, rule)| match rule {
            Byte::Is(v) => b != *v,
            Byte::NotZero => b == 0,
            Byte::Any => false,
        });
        if wrong {
            return Err(format!("a VXLAN template with a wrong {what}"));
        }
    }
    // Only "don't fragment" may be set in the byte before the offset's second one.
    if !matches!(t[20], 0 | 0x40) {
        return Err("a VXLAN template that is a fragment".into());
    }
    if t[36..38] == [0; 2] {
        return Err("a VXLAN template without UDP destination port".into());
    }
    Ok(())
}

/// The record of a VXLAN_ENCAP.
pub(super) fn encode(template: &[u8]) -> Result<[[u8; UNIT]; RECORD], String> {
    check(template)?;
    let mut record = [[0; UNIT]; RECORD];
    record[0] = unit(action::VXLAN_ENCAP, 0);
    record[0][1] = RECORD as u8;
    for (u, part) in record.iter_mut().skip(1).zip(template.chunks(UNIT)) {
        u[..part.len()].copy_from_slice(part);
    }
    Ok(record)
}

/// The template in the units after the head of a VXLAN_ENCAP.
pub(super) fn decode<'a>(units: &mut impl Iterator<Item = &'a [u8; UNIT]>) -> Result<Box<[u8]>, String> {
    let bytes: Vec<u8> = units.take(RECORD - 1).flatten().copied().collect();
    if bytes.len() != (RECORD - 1) * UNIT {
        return Err("a VXLAN template is cut off".into());
    }
    let (template, reserved) = bytes.split_at(TEMPLATE);
    if reserved.iter().any(|&b| b != 0) {
        return Err("a VXLAN template has reserved bits".into());
    }
    Ok(template.into())
}

/// Refuses a list in which VXLAN actions are not where they can be.
pub(super) fn check_place(actions: &[NicAction]) -> Result<(), String> {
    let rewraps = |a: &NicAction| matches!(a, NicAction::VxlanEncap(_) | NicAction::VxlanDecap);
    let Some(at) = actions.iter().position(rewraps) else { return Ok(()) };
    let behind = actions.get(at + 1..).unwrap_or_default();
    if behind.iter().any(rewraps) {
        return Err("more than one VXLAN action".into());
    }
    if behind.iter().any(|a| matches!(a, NicAction::SetField { .. } | NicAction::DecTtl)) {
        return Err("a change of headers behind a VXLAN action".into());
    }
    if actions.get(at) != Some(&NicAction::VxlanDecap) {
        return Ok(());
    }
    if behind.contains(&NicAction::Trap) {
        return Err("a trap behind a VXLAN decapsulation".into());
    }
    if !behind.iter().any(|a| matches!(a, NicAction::Output(_) | NicAction::Goto(_))) {
        return Err("nothing leaves behind a VXLAN decapsulation".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::caps::{Identity, TableInfo, tests::TINY};
    use super::super::super::wire::{COMMAND_MAX, golden};
    use super::super::{decode_insert, encode_insert};
    use super::*;
    use crate::nic::{
        ActionKind, ActionSet, CounterCaps, Entry, Field, Miss, NicPort, Stage, TableCaps, TableId, TableKind,
    };
    use proptest::prelude::*;
    use smallvec::{SmallVec, smallvec};

    /// HASH-4 of profile large, as far as encoding looks at it: in stage 1 with the tunnel fields.
    fn hash4(id: u16) -> (TableInfo, Identity) {
        let (stage, used, key_len, goto) = if id == 0 { (0, 45, 48, 1) } else { (1, 56, 56, 2) };
        let mut supported = vec![0xff; used];
        supported.resize(key_len, 0);
        let caps = TableCaps {
            id: TableId(id),
            kind: TableKind::Hash { max_masks: 64 },
            stage: Stage(stage),
            fields: vec![],
            key_len: key_len as u16,
            actions: ActionSet(u32::MAX),
            settable: vec![Field::Ipv4Dst],
            set_bits: true,
            output_to_ingress: true,
            counters: CounterCaps::ALL,
            max_actions: 16,
            max_entries: 65536,
            goto: vec![Stage(goto)],
            miss: Miss::SlowQueue,
        };
        (TableInfo { caps, supported, may_drop: true }, Identity { ports: 32, ..TINY })
    }

    fn with(actions: SmallVec<[NicAction; 2]>) -> Entry {
        Entry { priority: 0, key: smallvec![0; 48], mask: smallvec![0; 48], actions }
    }

    fn template() -> Box<[u8]> {
        golden("frame_vxlan")[..TEMPLATE]
            .iter()
            .enumerate()
            .map(|(i, &b)| if matches!(i, 16 | 17 | 24 | 25 | 34 | 35 | 38 | 39) { 0 } else { b })
            .collect()
    }

    #[test]
    fn inserts_are_golden() {
        for (name, table, index, actions) in [
            (
                "insert_vxlan_encap_large",
                0,
                (4, 1),
                vec![NicAction::VxlanEncap(template()), NicAction::Output(NicPort(2))],
            ),
            ("insert_vxlan_decap_large", 0, (5, 2), vec![NicAction::VxlanDecap, NicAction::Goto(Stage(1))]),
            ("insert_tunnel_match_large", 3, (6, 3), vec![NicAction::Output(NicPort(3))]),
        ] {
            let (t, id) = hash4(table);
            let golden = golden(name);
            let n = usize::from(t.caps.key_len);
            let entry = Entry {
                priority: 0,
                key: SmallVec::from_slice(&golden[32..32 + n]),
                mask: SmallVec::from_slice(&golden[32 + n..32 + 2 * n]),
                actions: actions.into(),
            };
            let mut out = [0xee; COMMAND_MAX];
            let len = encode_insert(&t, &id, index, &entry, &mut out).unwrap();
            out[8..16].copy_from_slice(&golden[8..16]);
            assert_eq!(out[..len], golden, "{name}");
            assert_eq!(decode_insert(&t, &golden).unwrap(), entry, "{name}");
        }
    }

    #[test]
    fn what_the_nic_would_refuse_is_refused_with_a_reason() {
        let (mut t, id) = hash4(0);
        let mut out = [0; COMMAND_MAX];
        let encap = NicAction::VxlanEncap(template());
        let output = NicAction::Output(NicPort(1));
        let decap = NicAction::VxlanDecap;
        let mut refused = |t: &TableInfo, actions: &[NicAction], part: &str| {
            let e = encode_insert(t, &id, (0, 1), &with(actions.into()), &mut out).unwrap_err();
            assert!(e.contains(part), "{e}, not {part}");
        };
        refused(&t, std::slice::from_ref(&decap), "nothing leaves");
        refused(&t, &[output.clone(), decap.clone()], "nothing leaves");
        refused(&t, &[decap.clone(), output.clone(), NicAction::Trap], "a trap behind");
        refused(&t, &[encap.clone(), NicAction::DecTtl], "a change of headers");
        refused(&t, &[decap.clone(), encap.clone(), output.clone()], "more than one");
        for (at, v, part) in [
            (13, 6, "Ethernet type"),
            (14, 0x46, "header length"),
            (17, 1, "total length"),
            (20, 0x60, "fragment"),
            (21, 1, "fragment"),
            (22, 0, "TTL"),
            (23, 6, "protocol"),
            (24, 1, "header checksum"),
            (39, 8, "UDP length"),
            (42, 0, "flags"),
            (49, 1, "reserved"),
        ] {
            let mut bytes = template();
            bytes[at] = v;
            refused(&t, &[NicAction::VxlanEncap(bytes), output.clone()], part);
        }
        let mut bytes = template();
        bytes[36..38].fill(0);
        refused(&t, &[NicAction::VxlanEncap(bytes), output.clone()], "destination port");
        refused(&t, &[NicAction::VxlanEncap(template()[..49].into()), output.clone()], "49 bytes");
        t.caps.actions = ActionSet::default().with(ActionKind::Output);
        refused(&t, &[encap, output.clone()], "no VxlanEncap");
        refused(&t, &[decap, output], "no VxlanDecap");
    }

    #[test]
    fn damaged_records_are_refused() {
        let (t, _) = hash4(0);
        let whole = golden("insert_vxlan_encap_large");
        // Units of the record, its argument, an operand, reserved bytes behind the template.
        for at in [129, 130, 132, 194, 207] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let e = decode_insert(&t, &bytes).unwrap_err();
            assert!(e.contains("reserved"), "byte {at}: {e}");
        }
        let mut bytes = whole;
        bytes[30] = 4;
        assert!(decode_insert(&t, &bytes).unwrap_err().contains("cut off"));
    }

    proptest! {
        #[test]
        fn templates_round_trip(
            ethernet in any::<[u8; 12]>(),
            (tos, df, ttl) in (any::<u8>(), any::<bool>(), 1u8..),
            addresses in any::<[u8; 8]>(),
            (src, dst) in (any::<u16>(), 1u16..),
            vni in any::<[u8; 3]>(),
            tag in any::<Option<u16>>(),
            dirt in any::<u8>(),
        ) {
            let mut bytes = template();
            bytes[..12].copy_from_slice(&ethernet);
            (bytes[15], bytes[20], bytes[22]) = (tos, if df { 0x40 } else { 0 }, ttl);
            bytes[26..34].copy_from_slice(&addresses);
            bytes[34..36].copy_from_slice(&src.to_be_bytes());
            bytes[36..38].copy_from_slice(&dst.to_be_bytes());
            bytes[46..49].copy_from_slice(&vni);
            let mut actions = SmallVec::new();
            actions.extend(tag.map(|tci| NicAction::PushVlan { tpid: 0x8100, tci }));
            actions.push(NicAction::VxlanEncap(bytes));
            actions.extend(tag.map(|tci| NicAction::PushVlan { tpid: 0x88a8, tci }));
            actions.push(NicAction::Output(NicPort(1)));
            let (t, id) = hash4(0);
            let entry = with(actions);
            let mut out = [dirt; COMMAND_MAX];
            let n = encode_insert(&t, &id, (7, 9), &entry, &mut out).unwrap();
            prop_assert_eq!(decode_insert(&t, &out[..n]).unwrap(), entry);
        }

        /// Any template: what is encoded reads back the same, the rest is refused with a reason.
        #[test]
        fn any_template_is_encoded_or_refused(mut edits in prop::collection::vec((0usize..50, any::<u8>()), 0..4), len in 0usize..64) {
            let mut bytes = template().to_vec();
            edits.drain(..).for_each(|(at, v)| bytes[at] = v);
            if len < 14 {
                bytes.resize(45 + len, 0);
            }
            let (t, id) = hash4(0);
            let entry = with(smallvec![NicAction::VxlanEncap(bytes.into()), NicAction::Output(NicPort(1))]);
            let mut out = [0; COMMAND_MAX];
            if let Ok(n) = encode_insert(&t, &id, (7, 9), &entry, &mut out) {
                prop_assert_eq!(decode_insert(&t, &out[..n]).unwrap(), entry);
            }
        }
    }
}
