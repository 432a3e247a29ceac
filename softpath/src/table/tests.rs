//! The flow table alone, against lists.

use super::*;
use flowlift_flow::key::KEY_WORDS;
use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match, PortNo, Ufid};
use proptest::prelude::*;
use std::sync::Arc;

/// Masks of many shapes: coarse and fine, hot words only, IPv6 words, tunnel options.
const SHAPES: &[&[(usize, u64)]] = &[
    &[],
    &[(0, 0x0000_0000_ffff_ffff)],
    &[(0, u64::MAX)],
    &[(0, 3), (3, 0x0f)],
    &[(0, u64::MAX), (3, u64::MAX), (4, 0xffff_ffff)],
    &[(1, 0xffff)],
    &[(8, 7), (9, 7)],
    &[(0, 1), (8, u64::MAX), (15, 1)],
    &[(40, 0xff)],
    &[(0, 7), (1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (6, 7), (7, 7), (8, 7), (31, 7), (71, 7)],
];

fn mask(shape: usize) -> Mask {
    let mut m = Mask::default();
    SHAPES[shape].iter().for_each(|&(i, w)| m.0.words_mut()[i] = w);
    m
}

/// Few values in few words, so that flows meet packets.
fn arb_key() -> impl Strategy<Value = Key> {
    prop::collection::vec((prop::sample::select(vec![0usize, 1, 3, 4, 8, 9, 15, 31, 40, 71]), 0..4u64), 0..6)
        .prop_map(|words| {
            let mut k = Key::default();
            words.into_iter().for_each(|(i, w)| k.words_mut()[i] = w);
            k
        })
}

fn flow(shape: usize, key: Key, ufid: Option<u8>, port: u32) -> Flow {
    let matching = Match { key, mask: mask(shape), attrs: AttrSet([port.into(), 0, 0]) };
    Flow {
        ufid: ufid.and_then(|u| Ufid::new(&[u; 16])),
        matching,
        actions: vec![Action::Output(PortNo(port))],
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put(usize, Box<Key>, Option<u8>, u32),
    Remove(usize),
    Flush,
}

fn arb_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..SHAPES.len(), arb_key(), prop::option::of(0..20u8), 0..5u32)
            .prop_map(|(s, k, u, p)| Op::Put(s, Box::new(k), u, p)),
        4 => (0..1000usize).prop_map(Op::Remove),
        1 => Just(Op::Flush),
    ]
}

/// What a list of flows does with a put.
fn linear_put(list: &mut Vec<(FlowId, Flow)>, new: &Flow, got: &Result<Put, PutError>) {
    let same = |f: &Flow| {
        let (a, b) = (&f.matching, &new.matching);
        a.mask == b.mask && a.mask.matches(&a.key, &b.key)
    };
    let by_ufid = list.iter().position(|(_, f)| new.ufid.is_some() && f.ufid == new.ufid);
    let by_match = list.iter().position(|(_, f)| same(f));
    match (by_ufid, by_match) {
        (Some(n), _) if same(&list[n].1) => {
            assert_eq!(*got, Ok(Put { id: list[n].0, created: false }));
            list[n].1.actions.clone_from(&new.actions);
        }
        (Some(n), _) => assert_eq!(*got, Err(PutError::UfidInUse(list[n].0))),
        (None, Some(n)) if new.ufid.is_some() => assert_eq!(*got, Err(PutError::MatchInUse(list[n].0))),
        (None, Some(n)) => {
            assert_eq!(*got, Ok(Put { id: list[n].0, created: false }));
            list[n].1.actions.clone_from(&new.actions);
        }
        (None, None) => {
            let put = got.as_ref().unwrap();
            assert!(put.created && list.iter().all(|(id, _)| *id != put.id));
            list.push((put.id, new.clone()));
        }
    }
}

proptest! {
    /// R13-R15, R20, R24-R26: after any sequence of changes the table holds, finds and reports what a list does.
    #[test]
    fn r20_table_holds_what_a_list_holds(
        ops in prop::collection::vec(arb_op(), 1..80),
        packets in prop::collection::vec(arb_key(), 20),
    ) {
        let mut table = FlowTable::new(1000, Some(1));
        let mut list: Vec<(FlowId, Flow)> = Vec::new();
        for op in ops {
            match op {
                Op::Put(shape, key, ufid, port) => {
                    let new = flow(shape, *key, ufid, port);
                    let got = table.put(&new, PutMode::ANY);
                    linear_put(&mut list, &new, &got);
                }
                Op::Remove(n) if !list.is_empty() => {
                    let (id, _) = list.remove(n % list.len());
                    prop_assert!(table.remove(id).is_some());
                    prop_assert!(table.remove(id).is_none(), "an ID is not used twice");
                }
                Op::Remove(_) => {}
                Op::Flush => {
                    table.flush();
                    list.clear();
                }
            }
            prop_assert_eq!(table.len(), list.len());
        }
        for (id, f) in &list {
            prop_assert_eq!(table.flow(*id), Some(f.clone()), "kept exactly as installed");
            prop_assert_eq!(table.find_match(&f.matching), Some(*id));
            if let Some(ufid) = &f.ufid {
                prop_assert_eq!(table.find_ufid(ufid), Some(*id));
            }
        }
        let mut seen = 0;
        table.scan(0, |id, r| { seen += usize::from(list.iter().any(|(i, f)| *i == id && r.flow() == *f)); true });
        prop_assert_eq!(seen, list.len());
        // R22: flows may overlap here; the classifier may give any that matches, but one if any does.
        for key in &packets {
            let matching: Vec<FlowId> =
                list.iter().filter(|(_, f)| f.matching.mask.matches(&f.matching.key, key)).map(|(id, _)| *id).collect();
            match table.lookup(key) {
                Some(id) => prop_assert!(matching.contains(&id), "false hit {id:?}, right: {matching:?}"),
                None => prop_assert!(matching.is_empty(), "missed {matching:?}"),
            }
        }
        // R22: exactly the pairs that share a packet.
        let mut overlaps = Vec::new();
        for (n, (a, f)) in list.iter().enumerate() {
            for (b, g) in &list[n + 1..] {
                let both = (0..KEY_WORDS).all(|i| {
                    let (x, y) = (&f.matching, &g.matching);
                    (x.key.words()[i] ^ y.key.words()[i]) & x.mask.0.words()[i] & y.mask.0.words()[i] == 0
                });
                if both {
                    overlaps.push(Overlap { first: *a.min(b), second: *a.max(b) });
                }
            }
        }
        overlaps.sort_unstable();
        prop_assert_eq!(table.find_overlaps(usize::MAX), overlaps);
    }
}

#[test]
fn put_modes_and_limits() {
    let mut t = FlowTable::new(2, Some(1));
    let f = |n: u64| {
        flow(
            2,
            {
                let mut k = Key::default();
                k.words_mut()[0] = n;
                k
            },
            None,
            1,
        )
    };
    assert_eq!(t.put(&f(1), PutMode::MODIFY), Err(PutError::NotFound));
    let id = t.put(&f(1), PutMode::CREATE).unwrap().id;
    assert_eq!(t.put(&f(1), PutMode::CREATE), Err(PutError::Exists(id)));
    t.put(&f(2), PutMode::ANY).unwrap();
    assert_eq!(t.put(&f(3), PutMode::ANY), Err(PutError::Full(2)));
    t.remove(id).unwrap();
    t.put(&f(3), PutMode::ANY).unwrap();
    assert_eq!((t.len(), t.mask_count()), (2, 1));
}

#[test]
fn refused_actions_leave_the_old_flow_as_it_was() {
    let mut t = FlowTable::new(10, Some(1));
    let old = flow(1, Key::default(), None, 1);
    let id = t.put(&old, PutMode::ANY).unwrap().id;
    let new = Flow { actions: vec![Action::LbOutput(1)], ..old.clone() };
    assert!(matches!(t.put(&new, PutMode::ANY), Err(PutError::Unsupported(_))));
    assert!(matches!(t.set_actions(id, &new.actions), Err(PutError::Unsupported(_))));
    assert_eq!(t.flow(id), Some(old));
}

#[test]
fn u1_an_empty_list_clears_the_actions() {
    let mut t = FlowTable::new(10, Some(1));
    let id = t.put(&flow(1, Key::default(), None, 1), PutMode::ANY).unwrap().id;
    t.set_actions(id, &[]).unwrap();
    assert_eq!(t.flow(id).unwrap().actions, []);
    t.remove(id).unwrap();
    assert_eq!(t.set_actions(id, &[]), Err(PutError::NotFound));
}

#[test]
fn equal_actions_and_shapes_are_stored_once_and_forgotten_in_the_end() {
    let mut t = FlowTable::new(100_000, Some(1));
    let f = |n: u32| {
        let k = Key { in_port: n, ..Default::default() };
        Flow { actions: vec![Action::Output(PortNo(n % 3))], ..flow(1, k, None, 1) }
    };
    let ids: Vec<_> = (0..30).map(|n| t.put(&f(n), PutMode::ANY).unwrap().id).collect();
    let actions = |t: &mut FlowTable, n: usize| t.with(ids[n], |r| Arc::as_ptr(r.actions())).unwrap();
    assert_eq!(actions(&mut t, 0), actions(&mut t, 3));
    assert_ne!(actions(&mut t, 0), actions(&mut t, 1));
    for n in 0..50_000 {
        let one = Flow { actions: vec![Action::Output(PortNo(1000 + n))], ..f(99) };
        t.put(&one, PutMode::ANY).unwrap();
    }
    assert!(t.interned_actions() < 10_000, "{} kept for 4 in use", t.interned_actions());
}
