//! The fast datapath against the linear one, on random flows, packets and changes (R13 to R18).

mod common;

use common::*;
use flowlift_flow::{Action, Flow, Header, PortNo};
use flowlift_softpath::{BATCH, Batch, Config, Datapath, Reference};
use proptest::prelude::*;

fn arb_shape() -> impl Strategy<Value = Shape> {
    (0..5u8, prop::bool::weighted(0.2), 0..6u8, 0..6u8, 0..32u8).prop_map(|(kind, vlan, n, m, flags)| Shape {
        kind,
        vlan,
        n,
        m,
        flags,
    })
}

fn arb_actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => (1..8u32).prop_map(|p| Action::Output(PortNo(p))),
        2 => (1..4u32).prop_map(Action::Recirc),
        1 => Just(Action::Set(Header::Ethernet { src: [2, 0, 0, 0, 0, 3], dst: [2, 0, 0, 0, 0, 4] })),
        1 => Just(Action::PushVlan { tpid: 0x8100, tci: 0x1003 }),
        1 => Just(Action::PopVlan),
        1 => Just(Action::Userspace(Default::default())),
        1 => (1..4u32).prop_map(|p| Action::Sample {
            probability: u32::MAX / 2,
            actions: vec![Action::Output(PortNo(p + 10))],
        }),
    ];
    prop::collection::vec(action, 0..4)
}

#[derive(Debug, Clone)]
enum Step {
    Put { like: Shape, in_port: u32, recirc_id: u32, fields: u32, actions: Vec<Action> },
    Delete(usize),
    Packets(Vec<(Shape, u32)>),
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (arb_shape(), 0..3u32, prop_oneof![3 => Just(0u32), 1 => 1..4u32], any::<u32>(), arb_actions())
            .prop_map(|(like, in_port, recirc_id, fields, actions)| Step::Put {
                like, in_port, recirc_id, fields: fields & fields >> 10 & 0x3ff, actions
            }),
        1 => any::<usize>().prop_map(Step::Delete),
        3 => prop::collection::vec((arb_shape(), 0..3u32), 1..50).prop_map(Step::Packets),
    ]
}

fn overlap(a: &Flow, b: &Flow) -> bool {
    let (x, y) = (&a.matching, &b.matching);
    let words = |m: &flowlift_flow::Key| *m.words();
    let (kx, ky, mx, my) = (words(&x.key), words(&y.key), words(&x.mask.0), words(&y.mask.0));
    (0..kx.len()).all(|i| (kx[i] ^ ky[i]) & mx[i] & my[i] == 0)
}

fn compare(config: Config, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let config = Config { seed: Some(3), ..config };
    let mut fast = Datapath::new(config.clone());
    let mut slow = Reference::new(3);
    let mut worker = fast.worker();
    worker.reseed(3);
    let mut batch = Batch::new();
    let mut flows: Vec<Flow> = Vec::new();
    for (now, step) in steps.into_iter().enumerate() {
        match step {
            Step::Put { like, in_port, recirc_id, fields, actions } => {
                let md = flowlift_flow::Metadata { in_port, recirc_id, ..Default::default() };
                let new = flow(&key(&frame(like), &md), mask(fields), actions);
                // R22: overlapping flows have no defined answer. The same match again is a replacement.
                let same =
                    flows.iter().position(|f| f.matching.mask == new.matching.mask && overlap(f, &new));
                if same.is_none() && flows.iter().any(|f| overlap(f, &new)) {
                    continue;
                }
                let put = fast.put(&new).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(put.created, same.is_none());
                slow.put(&new).map_err(|e| TestCaseError::fail(e.to_string()))?;
                match same {
                    Some(n) => flows[n].actions = new.actions,
                    None => flows.push(new),
                }
            }
            Step::Delete(n) if !flows.is_empty() => {
                let f = flows.remove(n % flows.len());
                let id = fast.find_match(&f.matching);
                let gone = id.and_then(|id| fast.delete(id)).map(|d| (d.stats, d.complete));
                prop_assert_eq!(gone, slow.delete(&f.matching).map(|s| (s, true)));
            }
            Step::Delete(_) => {}
            Step::Packets(list) => {
                let (mut a, mut b) = (Recorder::default(), Recorder::default());
                for chunk in list.chunks(BATCH) {
                    for (shape, in_port) in chunk {
                        prop_assert!(batch.push(&frame(*shape), metadata(*in_port)));
                        slow.process(&mut packet(&frame(*shape), *in_port), now as u64, &mut b);
                    }
                    worker.process(&mut batch, now as u64, &mut a);
                }
                prop_assert_eq!(a.events, b.events);
            }
        }
    }
    let (mut a, b) = (fast.counters(), slow.counters());
    (a.cache_hits, a.masks_searched) = (0, 0);
    prop_assert_eq!(a, b);
    prop_assert_eq!(fast.len(), slow.flows().len());
    for f in slow.flows() {
        let id = fast.find_match(&f.flow.matching);
        prop_assert_eq!(id.and_then(|id| fast.stats(id)), Some(f.stats), "{:?}", f.flow);
        prop_assert_eq!(id.and_then(|id| fast.flow(id)), Some(f.flow.clone()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn r13_r18_same_events_and_counters(steps in prop::collection::vec(arb_step(), 1..40)) {
        compare(Config::default(), steps)?;
    }

    /// Eight entries only, so that packets push each other out.
    #[test]
    fn r13_r18_with_a_tiny_cache(steps in prop::collection::vec(arb_step(), 1..40)) {
        compare(Config { cache_entries: 8, ..Config::default() }, steps)?;
    }

    /// The portable code, which this CPU may not use otherwise.
    #[test]
    fn r13_r18_on_any_cpu(steps in prop::collection::vec(arb_step(), 1..40)) {
        compare(Config { any_cpu: true, ..Config::default() }, steps)?;
    }

    #[test]
    fn r13_r18_with_the_classifier_alone(steps in prop::collection::vec(arb_step(), 1..40)) {
        compare(Config { cache_entries: 0, ..Config::default() }, steps)?;
    }
}
