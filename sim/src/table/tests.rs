use super::*;
use crate::profile::Profile;
use proptest::prelude::*;

/// A linear reference: entries side by side, by the rules of FL1.md, section 6.
#[derive(Default)]
struct Linear {
    entries: Vec<(u32, u16, Vec<u8>, Vec<u8>)>,
    /// HASH: the mask in each slot.
    slots: Vec<Option<Vec<u8>>>,
}

impl Linear {
    fn insert(&mut self, id: u32, priority: u16, key: &[u8], mask: &[u8]) {
        self.entries.push((id, priority, key.to_vec(), mask.to_vec()));
        if !self.slots.iter().flatten().any(|m| m == mask) {
            match self.slots.iter_mut().find(|s| s.is_none()) {
                Some(s) => *s = Some(mask.to_vec()),
                None => self.slots.push(Some(mask.to_vec())),
            }
        }
    }
    fn remove(&mut self, id: u32) {
        let at = self.entries.iter().position(|e| e.0 == id).expect("installed");
        let (_, _, _, mask) = self.entries.remove(at);
        if !self.entries.iter().any(|e| e.3 == mask) {
            let slot = self.slots.iter_mut().find(|s| s.as_deref() == Some(&mask[..])).expect("slot");
            *slot = None;
        }
    }
    fn lookup(&self, kind: TableKind, packet: &[u8]) -> Option<u32> {
        let hits = self
            .entries
            .iter()
            .filter(|(_, _, key, mask)| packet.iter().zip(mask).map(|(p, m)| p & m).eq(key.iter().copied()));
        let slot = |m: &[u8]| self.slots.iter().position(|s| s.as_deref() == Some(m));
        match kind {
            TableKind::Tcam => hits.min_by_key(|e| (std::cmp::Reverse(e.1), e.0)),
            TableKind::Hash => hits.min_by_key(|e| slot(&e.3)),
        }
        .map(|e| e.0)
    }
}

/// Few values, so that keys collide, masks repeat and entries overlap.
fn step() -> impl Strategy<Value = (u8, u32, u16, [u8; 4], u8)> {
    (0u8..4, 0u32..24, 0u16..4, proptest::array::uniform4(0u8..3), 0u8..16)
}

fn spec_of(kind: TableKind) -> TableSpec {
    let p = Profile::standard();
    p.tables.into_iter().find(|t| t.kind == kind).expect("a table of each kind")
}

fn against_linear(kind: TableKind, steps: &[(u8, u32, u16, [u8; 4], u8)]) -> Result<(), TestCaseError> {
    let spec = spec_of(kind);
    let len = spec.key_bytes;
    let mut table = Table::new(spec);
    let mut linear = Linear::default();
    for &(what, id, priority, value, mask_bits) in steps {
        // Two bytes of each MAC address, matched or not one by one; they lie at 6 and 12 of both kinds' blobs.
        let mut mask = vec![0; len];
        let mut key = vec![0; len];
        let mut packet = crate::field::PacketKey::default();
        let places = [(6, crate::field::Field::EthDst), (12, crate::field::Field::EthSrc)];
        for (i, (at, field)) in places.into_iter().enumerate() {
            let v = [value[i], value[i + 2], 0, 0, 0, 0];
            packet.set(field, &v);
            for j in 0..2 {
                if mask_bits >> (2 * i + j) & 1 == 1 {
                    mask[at + j] = 0xff;
                    key[at + j] = v[j];
                }
            }
        }
        let priority = if kind == TableKind::Hash { 0 } else { priority };
        let new =
            NewEntry { priority, generation: 0, age_ms: 0, now: 0, key: &key, mask: &mask, actions: &[] };
        match what {
            0 | 1 => {
                let ok = table.check_insert(id, &new).and_then(|()| table.check_match(&new));
                if let Ok(m) = ok.and_then(|m| table.check_room(&m, &new).map(|()| m)) {
                    table.insert(id, &new, &m);
                    linear.insert(id, priority, &key, &mask);
                }
            }
            2 => {
                if table.delete(id).is_some() {
                    linear.remove(id);
                }
            }
            _ => {
                // Damage: out of every lookup, still occupying its id until deleted.
                if value[0] == 2 && table.damage(id, u64::from(priority)).is_some() {
                    linear.remove(id);
                    prop_assert!(table.entry(id).is_some());
                    table.delete(id);
                }
            }
        }
        let mut blob = vec![0; len];
        blob[6..12].copy_from_slice(packet.get(crate::field::Field::EthDst));
        blob[12..18].copy_from_slice(packet.get(crate::field::Field::EthSrc));
        prop_assert_eq!(table.lookup(&packet), linear.lookup(kind, &blob));
        prop_assert_eq!(table.used() as usize, linear.entries.len());
    }
    Ok(())
}

proptest! {
    #[test]
    fn tcam_equals_linear(steps in proptest::collection::vec(step(), 1..200)) {
        against_linear(TableKind::Tcam, &steps)?;
    }

    #[test]
    fn hash_equals_linear(steps in proptest::collection::vec(step(), 1..200)) {
        against_linear(TableKind::Hash, &steps)?;
    }
}

#[test]
fn every_field_reaches_its_place_in_the_blob() {
    for profile in [Profile::tiny(), Profile::standard(), Profile::large()] {
        for spec in profile.tables {
            for f in spec.fields.clone() {
                let mut table = Table::new(spec.clone());
                let supported = &f.field.supported()[..f.field.bytes()];
                let mut mask = vec![0; spec.key_bytes];
                mask[f.offset..f.offset + supported.len()].copy_from_slice(supported);
                let key: Vec<u8> = mask.iter().map(|m| m & 0xa5).collect();
                let new = NewEntry {
                    priority: 0,
                    generation: 0,
                    age_ms: 0,
                    now: 0,
                    key: &key,
                    mask: &mask,
                    actions: &[],
                };
                let m = table.check_match(&new).expect("supported");
                table.insert(0, &new, &m);
                let mut packet = crate::field::PacketKey([0xff; KEY_BYTES]);
                assert_eq!(table.lookup(&packet), None, "{:?}", f.field);
                packet.set(f.field, &key[f.offset..f.offset + supported.len()]);
                assert_eq!(table.lookup(&packet), Some(0), "{:?} of table {}", f.field, spec.id);
            }
        }
    }
}

#[test]
fn action_lists_of_any_length_take_turns_in_a_place() {
    let mut table = Table::new(spec_of(TableKind::Hash));
    let (key, mask) = (vec![0; table.spec.key_bytes], vec![0; table.spec.key_bytes]);
    let list = |units: u8| (0..units).flat_map(|n| [n + units; crate::action::UNIT]).collect::<Vec<u8>>();
    assert_eq!(table.actions(7), [0u8; 0], "no entry yet");
    for _ in 0..2 {
        let actions = list(1);
        let new = NewEntry {
            priority: 0,
            generation: 1,
            age_ms: 0,
            now: 0,
            key: &key,
            mask: &mask,
            actions: &actions,
        };
        let m = table.check_match(&new).expect("supported");
        table.insert(7, &new, &m);
        assert_eq!(table.actions(7), actions);
        for (generation, units) in [(2, 2), (3, 3), (4, 16), (5, 0), (6, 5)] {
            table.replace(7, generation, &list(units));
            assert_eq!(table.actions(7), list(units), "{units} units");
            assert_eq!(table.entry(7).map(|e| e.generation), Some(generation));
        }
        assert!(table.delete(7).is_some());
        assert_eq!(table.actions(7), [0u8; 0], "deleted with a long list");
    }
}
