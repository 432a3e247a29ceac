use super::*;
use proptest::prelude::*;

const VLAN: u16 = 4095;

fn entry(in_port: u16, dst: u8, tci: (u16, u16), actions: &[NicAction]) -> Entry {
    let (mut key, mut mask) = (SmallVec::from_elem(0, 18), SmallVec::from_elem(0, 18));
    if in_port != 0 {
        key[..2].copy_from_slice(&in_port.to_be_bytes());
        mask[..2].fill(0xff);
    }
    key[7] = dst;
    mask[2..8].fill(0xff);
    key[14..16].copy_from_slice(&0x0800u16.to_be_bytes());
    mask[14..16].fill(0xff);
    key[16..].copy_from_slice(&tci.0.to_be_bytes());
    mask[16..].copy_from_slice(&tci.1.to_be_bytes());
    Entry { priority: 0, key, mask, actions: SmallVec::from(actions) }
}

const UNTAGGED: (u16, u16) = (0, 0xffff);
const OUT2: NicAction = NicAction::Output(NicPort(2));

fn refused(e: &Entry) -> &'static str {
    compile(e, VLAN).unwrap_err()
}

fn round_trip(e: &Entry) {
    let mut bytes = vec![];
    encode(e, VLAN, &mut bytes).unwrap();
    assert_eq!(decode(&bytes, VLAN).as_ref(), Ok(e));
}

/// The bytes of a flow, field by field as the guide lists them for the ACL policy table.
#[test]
fn a_flow_is_golden() {
    let e = entry(1, 7, (0x100a, 0x1fff), &[]);
    let flows = compile(&e, VLAN).unwrap();
    let m = message(cmd::FLOW_ADD, &flows[0], 3, 0x0fff_0002, VLAN);
    let mut info = vec![];
    let mut field = |kind: u32, value: &[u8]| {
        info.extend(kind.to_le_bytes());
        info.extend((8 + value.len() as u16).to_le_bytes());
        info.extend([0, 0]);
        info.extend(value);
        info.resize(info.len().next_multiple_of(8), 0);
    };
    field(1, &[60, 0]);
    field(2, &[16, 0, 0, 0]);
    field(3, &[0; 4]);
    field(5, &[3, 0, 0, 0, 0, 0, 0, 0]);
    field(6, &[1, 0, 0, 0]);
    field(7, &[0xff; 4]);
    field(23, &[0x08, 0x00]);
    field(14, &[0x10, 0x0a]);
    field(15, &[0x0f, 0xff]);
    field(26, &[0; 6]);
    field(27, &[0; 6]);
    field(24, &[0, 0, 0, 0, 0, 7]);
    field(25, &[0xff; 6]);
    field(10, &[2, 0, 0xff, 0x0f]);
    let mut want = vec![1, 0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    want.extend((8 + info.len() as u16).to_le_bytes());
    want.extend([0, 0]);
    want.extend(info);
    assert_eq!(m.bytes(), want);
}

#[test]
fn what_is_sent_on_leaves_as_it_came() {
    let one = |e: &Entry| {
        let flows = compile(e, VLAN).unwrap();
        assert_eq!(flows.len(), 1);
        flows[0].buckets.clone()
    };
    // The tag that stands for none is taken off, one that came with the packet stays.
    assert!(one(&entry(1, 7, UNTAGGED, &[OUT2]))[0].pop);
    assert!(!one(&entry(1, 7, (0x100a, 0x1fff), &[OUT2]))[0].pop);
    assert!(one(&entry(1, 7, (0x100a, 0x1fff), &[NicAction::PopVlan, OUT2]))[0].pop);
    let pushed = one(&entry(1, 7, UNTAGGED, &[NicAction::PushVlan { tpid: TPID, tci: 0x6014 }, OUT2]));
    assert_eq!((pushed[0].pop, pushed[0].tci), (false, Some(0x6014)));
    // An entry that does not look at tags is two flows, and the one for untagged packets goes first.
    let both = compile(&entry(1, 7, (0, 0), &[OUT2]), VLAN).unwrap();
    assert_eq!((both[0].matching.tag, both[1].matching.tag), (Tag::Untagged, Tag::Any));
    assert!(both[0].priority > both[1].priority && both[0].buckets[0].pop && !both[1].buckets[0].pop);
}

#[test]
fn what_the_device_does_wrong_is_refused() {
    let push = NicAction::PushVlan { tpid: TPID, tci: 12 };
    let tagged = (0x100b, 0x1fff);
    let set = |value: [u8; 16], mask: [u8; 16]| NicAction::SetField { field: Field::EthSrc, value, mask };
    for (e, part) in [
        (entry(1, 7, tagged, &[NicAction::PopVlan, push.clone(), OUT2]), "put on untagged packets only"),
        (entry(1, 7, tagged, &[push.clone(), OUT2]), "put on untagged packets only"),
        (entry(1, 7, UNTAGGED, &[NicAction::PushVlan { tpid: 0x88a8, tci: 12 }, OUT2]), "of type 0x8100"),
        (entry(1, 7, UNTAGGED, &[NicAction::PushVlan { tpid: TPID, tci: 0 }, OUT2]), "without priority"),
        (entry(1, 7, (0, 0), &[push, OUT2]), "takes a match of its presence"),
        (entry(1, 7, (0, 0), &[NicAction::PopVlan, OUT2]), "takes a match of its presence"),
        (entry(1, 7, (0x1000, 0x1000), &[OUT2]), "stands for untagged packets"),
        (entry(1, 7, (0x1fff, 0x1fff), &[OUT2]), "stands for untagged packets"),
        (entry(1, 7, (0x000a, 0x0fff), &[OUT2]), "may not be there"),
        (entry(2, 7, UNTAGGED, &[OUT2]), "ingress port"),
        (entry(0, 7, UNTAGGED, &[OUT2]), "ingress port"),
        (entry(1, 7, UNTAGGED, &[set([0; 16], [0xff; 16]), OUT2]), "zeros would be left"),
        (entry(1, 7, UNTAGGED, &[set([1; 16], [0x0f; 16]), OUT2]), "part of an Ethernet address"),
        (entry(1, 7, UNTAGGED, &[NicAction::DecTtl, OUT2]), "no such action"),
    ] {
        assert!(refused(&e).contains(part), "{e:?}: {}", refused(&e));
    }
    let mut no_type = entry(1, 7, UNTAGGED, &[]);
    no_type.key[14..16].fill(0);
    assert!(refused(&no_type).contains("type 0"));
}

#[test]
fn bytes_that_mean_something_else_are_no_entry() {
    let mut bytes = vec![];
    encode(&entry(1, 7, UNTAGGED, &[OUT2]), VLAN, &mut bytes).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut other = bytes.clone();
            other[at] ^= 1 << bit;
            if let Ok(e) = decode(&other, VLAN) {
                // Names of flows and groups, padding and reserved bytes mean nothing, or it is another entry.
                let mut again = vec![];
                encode(&e, VLAN, &mut again).unwrap();
                assert_eq!(decode(&again, VLAN), Ok(e), "byte {at} bit {bit}");
            }
        }
    }
    assert!(decode(&[], VLAN).is_err() && decode(&[1, 0, 0, 0], VLAN).is_err());
}

fn actions() -> impl Strategy<Value = Vec<NicAction>> {
    let mac = prop_oneof![Just([0u8; 6]), any::<[u8; 6]>()];
    let set = (any::<bool>(), mac).prop_map(|(src, mac)| {
        let (mut value, mut mask) = ([0; 16], [0; 16]);
        value[10..].copy_from_slice(&mac);
        mask[10..].fill(0xff);
        NicAction::SetField { field: if src { Field::EthSrc } else { Field::EthDst }, value, mask }
    });
    let one = prop_oneof![
        4 => (1u16..5).prop_map(|p| NicAction::Output(NicPort(p))),
        1 => set,
        1 => Just(NicAction::PopVlan),
        1 => (0u16..0x40).prop_map(|n| NicAction::PushVlan { tpid: TPID, tci: n << 10 & !PRESENT }),
    ];
    prop::collection::vec(one, 0..6).prop_map(|mut list| {
        // What no output sees is left out by whoever makes entries.
        while list.last().is_some_and(|a| !matches!(a, NicAction::Output(_))) {
            list.pop();
        }
        list
    })
}

proptest! {
    /// Whatever is taken means the same when it is read back: the same flows, and the same outputs.
    #[test]
    fn entries_survive_the_device_s_form(
        in_port in 0u16..4,
        tag in prop_oneof![Just((0u16, 0u16)), Just(UNTAGGED), (0u16..0x1000, any::<u16>()).prop_map(|(v, m)| {
            let mask = m | PRESENT;
            ((v | PRESENT) & mask, mask)
        })],
        priority in any::<u16>(),
        actions in actions(),
    ) {
        let e = Entry { priority, ..entry(in_port, 9, tag, &actions) };
        let mut bytes = vec![];
        if encode(&e, VLAN, &mut bytes).is_ok() {
            let back = decode(&bytes, VLAN).map_err(TestCaseError::fail)?;
            prop_assert_eq!((back.priority, &back.key, &back.mask), (e.priority, &e.key, &e.mask));
            prop_assert_eq!(compile(&back, VLAN), compile(&e, VLAN));
        }
    }

    /// Any bytes at all.
    #[test]
    fn any_bytes_can_be_decoded(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, VLAN);
    }
}

#[test]
fn plain_entries_survive_as_they_are() {
    round_trip(&entry(1, 7, UNTAGGED, &[OUT2, NicAction::Output(NicPort(3))]));
    round_trip(&entry(1, 7, (0x100a, 0x1fff), &[NicAction::PopVlan, OUT2]));
    round_trip(&entry(0, 7, (0, 0), &[]));
}
