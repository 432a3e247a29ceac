//! Micro-benchmarks of a flow's way into the NIC: `cargo bench -p flowlift [NAME]`.

// A benchmark that cannot be set up stops; `divan` makes the items.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::{Bencher, black_box};
use flowlift_agent::engine::{NicSetup, Simulated};
use flowlift_agent::open;
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::{Nic, Update};
use flowlift_flow::text::{NoNames, parse_dump_line};
use flowlift_flow::{Flow, PortNo};
use flowlift_offload::lower::{Excluded, Plan, lower};
use flowlift_offload::pipeline::Pipeline;
use flowlift_offload::raise::{self, Codec};
use flowlift_offload::recirc::RecircGraph;
use flowlift_sim::{FaultPlan, Profile};

fn main() {
    divan::main();
}

/// Updates with one doorbell.
const BATCH: u32 = 64;

fn flow(n: u32) -> Flow {
    let [_, a, b, c] = n.to_be_bytes();
    let line = format!(
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),\
         eth_type(0x0800),ipv4(src=10.{a}.{b}.{c},dst=11.0.0.1,proto=17,tos=0/0,ttl=64/0,frag=no),\
         udp(src={},dst=2000), packets:0, bytes:0, used:never, actions:2",
        n % 60_000 + 1
    );
    parse_dump_line(&line, &NoNames).unwrap().flow
}

fn card() -> NicSetup<Fl1, Simulated> {
    open::open(Profile::large(), 1, FaultPlan::default(), &[PortNo(1), PortNo(2)], 1_000_000).unwrap()
}

/// A five-tuple flow to its entry.
#[divan::bench]
fn lowering(bencher: Bencher) {
    let card = card();
    let pipeline = Pipeline::new(card.nic.caps(), &card.ports);
    let recirc = RecircGraph::new(pipeline.last_stage());
    let flow = flow(1);
    bencher.bench_local(|| lower(&pipeline, &recirc, black_box(&flow), Excluded::default()).unwrap());
}

/// The same, encoded, decoded, raised and compared.
#[divan::bench]
fn lowering_with_raise_and_compare(bencher: Bencher) {
    let card = card();
    let pipeline = Pipeline::new(card.nic.caps(), &card.ports);
    let recirc = RecircGraph::new(pipeline.last_stage());
    let (flow, mut bytes) = (flow(1), Vec::new());
    let codec: &dyn Codec = &card.nic;
    bencher.bench_local(|| {
        let plan = lower(&pipeline, &recirc, black_box(&flow), Excluded::default()).unwrap();
        bytes.clear();
        raise::check(&pipeline, codec, &flow, &plan, &mut bytes).unwrap();
        plan
    });
}

/// A batch of inserts into the ring, without the device's part of it.
#[divan::bench]
fn ring_submit(bencher: Bencher) {
    let mut card = card();
    let pipeline = Pipeline::new(card.nic.caps(), &card.ports);
    let recirc = RecircGraph::new(pipeline.last_stage());
    let plans: Vec<Plan> =
        (0..BATCH).map(|n| lower(&pipeline, &recirc, &flow(n), Excluded::default()).unwrap()).collect();
    let id = |plan: &Plan, n: usize| flowlift_driver::nic::EntryId { table: plan.table, index: n as u32 };
    let inserts: Vec<Update> = plans
        .iter()
        .enumerate()
        .map(|(n, p)| Update::Insert { cookie: n as u64, id: id(p, n), entry: p.entries[0].clone() })
        .collect();
    let deletes: Vec<Update> =
        plans.iter().enumerate().map(|(n, p)| Update::Delete { cookie: n as u64, id: id(p, n) }).collect();
    let card = std::cell::RefCell::new(&mut card);
    // Answers of what is in the ring, so that it is empty before each round.
    let finish = |number: usize| {
        let card = &mut *card.borrow_mut();
        let (mut results, mut events) = (Vec::new(), Vec::new());
        while results.len() < number {
            card.nic.kick().unwrap();
            card.harness.function.model().step();
            card.nic.poll(&mut results, &mut events).unwrap();
        }
    };
    let mut filled = false;
    bencher
        .counter(divan::counter::ItemsCount::new(BATCH))
        .with_inputs(|| {
            if filled {
                finish(inserts.len());
                assert_eq!(card.borrow_mut().nic.submit(&deletes).unwrap(), deletes.len());
                finish(deletes.len());
            }
            filled = true;
        })
        .bench_local_values(|()| {
            let card = &mut *card.borrow_mut();
            let taken = card.nic.submit(black_box(&inserts)).unwrap();
            card.nic.kick().unwrap();
            taken
        });
}
