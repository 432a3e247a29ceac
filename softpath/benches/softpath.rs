//! Micro-benchmarks of the softpath's steps: `cargo bench -p flowlift-softpath [NAME]`.
//!
//! Each figure is the time of one packet, lookup or flow; `flowlift bench datapath` measures them together.

// A benchmark that cannot be set up stops; `divan` makes the items.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use flowlift_flow::action::Header;
use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match, Metadata, PortNo};
use flowlift_softpath::cache::MicroflowCache;
use flowlift_softpath::extract::{KeyBuf, extract, extract_key};
use flowlift_softpath::{BATCH, Batch, Config, Datapath, FlowId, Sink, Upcall};

fn main() {
    divan::main();
}

/// Flows that a lookup benchmark goes through in turn: more than the first-level cache holds, fewer than the second.
const FLOWS: u32 = 4096;
/// Numbers of masks that the classifier is measured with.
const MASKS: [u32; 4] = [1, 16, 64, 512];

fn metadata() -> Metadata {
    Metadata { in_port: 1, ..Metadata::default() }
}

/// IPv4 and UDP, 60 bytes; source address and ports differ by `n`.
fn udp(n: u32) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    f.extend([0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0]);
    f.extend((0x0a00_0000 | n).to_be_bytes());
    f.extend([10, 0, 0, 1]);
    f.extend((n as u16).to_be_bytes());
    f.extend([7, 208, 0, 26, 0, 0]);
    f.resize(60, 0);
    f
}

/// A tag in front of IPv4 and TCP.
fn vlan_tcp() -> Vec<u8> {
    let mut f = udp(1);
    f[16..18].copy_from_slice(&[0, 46]);
    f[23] = 6;
    f[46] = 0x50;
    f.splice(12..12, [0x81, 0, 0, 5]);
    f
}

/// IPv6 and TCP.
fn ipv6_tcp() -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    f.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    f.extend([0xfe; 32]);
    f.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    f
}

#[divan::bench(args = ["udp", "vlan tcp", "ipv6 tcp"])]
fn key_extraction(bencher: Bencher, shape: &str) {
    let frame = match shape {
        "udp" => udp(1),
        "vlan tcp" => vlan_tcp(),
        _ => ipv6_tcp(),
    };
    let (mut key, metadata) = (KeyBuf::new(), metadata());
    bencher.bench_local(|| extract(black_box(&frame), &metadata, &mut key));
}

fn key(n: u32) -> Key {
    extract_key(&udp(n), &metadata())
}

/// Source address, and what a flow must match besides. The destination's upper bits tell the masks apart: mask number
/// `group` of `groups` has a prefix of its own length and bits of the source's upper half.
fn flow(n: u32, groups: u32) -> Flow {
    let mut mask = Mask::default();
    (mask.0.in_port, mask.0.recirc_id, mask.0.ip_proto) = (u32::MAX, u32::MAX, 0xff);
    mask.0.eth_type.set(0xffff);
    mask.0.packet_type.set(u32::MAX);
    // All of the flow's number, so that flows never overlap, and the group's number as bits that are always zero.
    mask.0.ipv4_src.set(0xff00_0000 | (FLOWS - 1) | (n % groups) << 12);
    let matching = Match { key: mask.apply(&key(n)), mask, attrs: AttrSet::default() };
    Flow { ufid: None, matching, actions: vec![Action::Output(PortNo(2))] }
}

fn datapath(groups: u32) -> Datapath {
    let mut datapath = Datapath::new(Config { seed: Some(1), ..Config::default() });
    for n in 0..FLOWS {
        datapath.put(&flow(n, groups)).unwrap();
    }
    assert_eq!(datapath.mask_count(), groups as usize);
    datapath
}

fn keys() -> impl Iterator<Item = Key> + Clone {
    let keys: Vec<Key> = (0..FLOWS).map(|n| key(n.wrapping_mul(2_654_435_761) % FLOWS)).collect();
    keys.into_iter().cycle()
}

/// The first tier alone: the hint for a tag, in a cache of this many entries.
#[divan::bench(args = [1 << 11, 1 << 17])]
fn cache_hit(bencher: Bencher, entries: u32) {
    let mut cache = MicroflowCache::new(entries as usize);
    let tag = |n: u32| n.wrapping_mul(0x9e37_79b9);
    (0..entries).for_each(|n| cache.insert(tag(n), n));
    let mut n = 0u32;
    bencher.bench_local(|| {
        n = n.wrapping_add(40_503) % entries;
        cache.get(black_box(tag(n)))
    });
}

/// Both tiers, as a worker looks a single packet up.
#[divan::bench(args = MASKS)]
fn lookup_with_cache(bencher: Bencher, masks: u32) {
    let mut worker = datapath(masks).worker();
    let mut keys = keys();
    keys.by_ref().take(2 * FLOWS as usize).for_each(|key| assert!(worker.lookup(&key).is_some()));
    bencher.with_inputs(|| keys.next().unwrap()).bench_local_refs(|key| worker.lookup(key).unwrap());
}

/// The second tier alone.
#[divan::bench(args = MASKS)]
fn lookup_in_classifier(bencher: Bencher, masks: u32) {
    let mut datapath = datapath(masks);
    let mut keys = keys();
    bencher.with_inputs(|| keys.next().unwrap()).bench_local_refs(|key| datapath.lookup(key).unwrap());
}

/// The delete of a flow and its put into a table that has others under all masks.
#[divan::bench(args = MASKS)]
fn delete_and_put(bencher: Bencher, masks: u32) {
    let mut datapath = datapath(masks);
    let flows: Vec<Flow> = (0..FLOWS).map(|n| flow(n, masks)).collect();
    let mut ids: Vec<FlowId> = flows.iter().map(|f| datapath.find_match(&f.matching).unwrap()).collect();
    let mut turn = (0..FLOWS as usize).cycle();
    bencher.bench_local(|| {
        let n = turn.next().unwrap();
        datapath.delete(ids[n]).unwrap();
        ids[n] = datapath.put(&flows[n]).unwrap().id;
    });
}

/// Takes everything and keeps nothing.
struct Null;

impl Sink for Null {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        black_box((port, packet.len()));
    }

    fn upcall(&mut self, _: Upcall<'_>) -> bool {
        false
    }
}

/// The whole way of a batch of one flow's packets; what lists differ by is the cost of their actions.
#[divan::bench(args = ["drop", "output", "three outputs", "route", "push vlan"])]
fn actions(bencher: Bencher, list: &str) {
    let output = |n| Action::Output(PortNo(n));
    let set = |value, mask| Action::SetMasked { value, mask };
    let actions = match list {
        "drop" => vec![],
        "output" => vec![output(2)],
        "three outputs" => vec![output(2), output(3), output(4)],
        "route" => vec![
            set(
                Header::Ethernet { src: [2, 0, 0, 0, 0, 9], dst: [2, 0, 0, 0, 0, 10] },
                Header::Ethernet { src: [0xff; 6], dst: [0xff; 6] },
            ),
            Action::DecTtl { exception: vec![] },
            output(2),
        ],
        _ => vec![Action::PushVlan { tpid: 0x8100, tci: 0x1005 }, output(2)],
    };
    let mut datapath = Datapath::new(Config { seed: Some(1), ..Config::default() });
    datapath.put(&Flow { actions, ..flow(1, 1) }).unwrap();
    let (mut worker, mut batch, frame) = (datapath.worker(), Batch::new(), udp(1));
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            batch.push(black_box(&frame), metadata());
        }
        worker.process(&mut batch, 1, &mut Null);
    });
    assert_eq!(worker.counters().misses, 0);
}
