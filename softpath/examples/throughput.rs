//! Throughput of the packet loop on one core, from memory to nowhere: `cargo run --release -p flowlift-softpath --example
//! throughput [CASE...] [--seconds N]`. Every frame is copied into a packet's own buffer first, as DMA would.
//!
//! Cases: `a1` one flow, one megaflow; `b1k` 1,000 flows, one megaflow; `b1kx` 1,000 flows, 1,000 megaflows, one mask; `c100k`
//! Zipf over 100,000 flows, 64 masks; `c100k-2w` by two workers at once; `m16` and `m512` the same traffic with the same megaflows under 16 and 512 masks;
//! `puts` the writer alone; `memory` a million flows.

use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match, Metadata, PortNo, Ufid};
use flowlift_softpath::extract::extract_key;
use flowlift_softpath::{Batch, Config, Datapath, Sink, Upcall, Worker};
use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// A port that takes everything.
#[derive(Default)]
struct Null {
    packets: u64,
    bytes: u64,
    missed: u64,
}

impl Sink for Null {
    #[inline(always)]
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        black_box(port);
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }

    fn upcall(&mut self, _: Upcall<'_>) -> bool {
        self.missed += 1;
        false
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Tuple {
    src: u32,
    dst: u32,
    sport: u16,
    dport: u16,
}

/// A UDP frame of 60 bytes.
fn frame(t: Tuple) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    f.extend([0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0]);
    f.extend(t.src.to_be_bytes());
    f.extend(t.dst.to_be_bytes());
    f.extend(t.sport.to_be_bytes());
    f.extend(t.dport.to_be_bytes());
    f.extend([0, 26, 0, 0]);
    f.resize(60, 0);
    f
}

fn key(t: Tuple) -> Key {
    extract_key(&frame(t), &Metadata { in_port: 1, ..Default::default() })
}

/// What every megaflow of Open vSwitch matches, and these bits of the five-tuple.
fn mask(src: u32, dst: u32, sport: u16, dport: u16) -> Mask {
    let mut m = Mask::default();
    (m.0.in_port, m.0.recirc_id, m.0.ip_frag) = (u32::MAX, u32::MAX, 0xff);
    m.0.eth_type.set(0xffff);
    m.0.ip_proto = 0xff;
    m.0.packet_type.set(u32::MAX);
    m.0.ipv4_src.set(src);
    m.0.ipv4_dst.set(dst);
    m.0.tp_src.set(sport);
    m.0.tp_dst.set(dport);
    m
}

fn flow(t: Tuple, mask: Mask, n: u64) -> Flow {
    let matching = Match { key: mask.apply(&key(t)), mask, attrs: AttrSet::default() };
    let ufid = [n.to_ne_bytes(), (!n).to_ne_bytes()].concat();
    Flow { ufid: Ufid::new(&ufid), matching, actions: vec![Action::Output(PortNo(2))] }
}

/// Frames, and the megaflows that they need.
type Case = (Vec<Vec<u8>>, Vec<Flow>);

fn one_mask(flows: u16, exact: bool) -> Case {
    let mut r = Random(1);
    let tuple =
        |i: u16| Tuple { src: 0xc0a8_0000 | u32::from(i), dst: 0x0a00_0001, sport: 1000 + i, dport: 2000 };
    let frames = (0..8192).map(|_| frame(tuple(r.below(flows.into()) as u16))).collect();
    let megaflows = if exact {
        (0..flows).map(|i| flow(tuple(i), mask(!0, !0, !0, !0), i.into())).collect()
    } else {
        vec![flow(tuple(0), mask(0, 0, 0, 0), 0)]
    };
    (frames, megaflows)
}

/// 100,000 five-tuples drawn by Zipf's law; each class of destinations has a mask of its own, or the same flows have this
/// many masks.
fn zipf(same_flows: Option<u32>) -> Case {
    let mut r = Random(1);
    let classes = 64u64;
    let tuples: Vec<(u64, Tuple)> = (0..100_000)
        .map(|_| {
            let c = r.below(classes);
            let src = 0xc0a8_0000 | (r.below(8) << 13) as u32 | r.below(256) as u32;
            let dst = 0x0a00_0000 | (c << 16) as u32 | r.below(65536) as u32;
            let dport = (r.below(8) << 13 | r.below(32)) as u16;
            (c, Tuple { src, dst, sport: 1024 + r.below(64_000) as u16, dport })
        })
        .collect();
    let mut cumulative = Vec::with_capacity(tuples.len());
    let mut sum = 0.0;
    for i in 0..tuples.len() {
        sum += 1.0 / (i + 1) as f64;
        cumulative.push(sum);
    }
    let mut megaflows = HashMap::new();
    let mut frames = Vec::new();
    for _ in 0..240_000 {
        let x = r.below(1 << 53) as f64 / (1u64 << 53) as f64 * sum;
        let (c, t) = tuples[cumulative.partition_point(|p| *p < x).min(tuples.len() - 1)];
        frames.push(frame(t));
        let (a, b) = (c / 8, c % 8);
        let m = match same_flows {
            None => mask(!0 << (15 - a), 0xffff_0000, 0, !0 << (15 - b)),
            Some(masks) => {
                // 512 groups by three more bits of the destination; which mask a group has shows only in bits that are
                // the same in every packet, so that the flows are the same for every number of masks.
                let group = (c << 3 | u64::from(t.dst >> 13 & 7)) as u32;
                let mut m = mask(0, 0xffff_e000, 0, !0 << 14);
                m.0.eth_src[..4].copy_from_slice(&(group % masks).to_be_bytes());
                m
            }
        };
        let f = flow(t, m, megaflows.len() as u64);
        megaflows.entry((f.matching.mask.clone(), f.matching.key.clone())).or_insert(f);
    }
    (frames, megaflows.into_values().collect())
}

fn cpu_time() -> Duration {
    // The scheduler's own account of this thread, in nanoseconds: another process on the core does not count.
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    Duration::from_nanos(ns)
}

/// What one worker did.
struct Speed {
    /// Nanoseconds of CPU time for a packet: mean, and best slice. Other work on the machine only ever makes a slice slower.
    mean: f64,
    best: f64,
    missed: u64,
}

/// Sends the frames round and round through one worker.
fn pump(mut worker: Worker, memory: &[u8], seconds: f64) -> Speed {
    const SLICE: u64 = 960_000;
    let (mut batch, mut sink) = (Batch::new(), Null::default());
    let metadata = Metadata { in_port: 1, ..Default::default() };
    let mut cursor = memory.chunks_exact(60).cycle();
    let mut slice = || {
        let start = cpu_time();
        for _ in 0..SLICE / 32 {
            for f in cursor.by_ref().take(32) {
                batch.push(f, metadata);
            }
            worker.process(&mut batch, 1, &mut sink);
        }
        (cpu_time() - start).as_secs_f64() * 1e9 / SLICE as f64
    };
    slice();
    let start = Instant::now();
    let mut slices = Vec::new();
    while slices.is_empty() || start.elapsed().as_secs_f64() < seconds {
        slices.push(slice());
    }
    let mean = slices.iter().sum::<f64>() / slices.len() as f64;
    Speed { mean, best: slices.iter().copied().fold(f64::INFINITY, f64::min), missed: sink.missed }
}

fn run(name: &str, (frames, megaflows): Case, seconds: f64, workers: usize) {
    let mut dp = Datapath::new(Config { seed: Some(1), ..Config::default() });
    for f in &megaflows {
        if let Err(e) = dp.put(f) {
            println!("{name}: {e}");
        }
    }
    // One after the other in memory, as a capture file is.
    let memory = frames.concat();
    let speeds: Vec<Speed> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let (worker, memory) = (dp.worker(), &memory);
                s.spawn(move || pump(worker, memory, seconds))
            })
            .collect();
        threads.into_iter().filter_map(|t| t.join().ok()).collect()
    });
    let c = dp.counters();
    for s in &speeds {
        println!(
            "{name:10} {:6.2} Mpps per CPU second, {:5.1} ns a packet, best {:5.1}; {} flows, {} masks, missed {}",
            1e3 / s.mean,
            s.mean,
            s.best,
            dp.len(),
            dp.mask_count(),
            s.missed,
        );
    }
    let (cached, searched) = (c.cache_hits as f64 / c.hits.max(1) as f64, c.hits - c.cache_hits);
    println!(
        "           cache {:.3} %, {:.1} masks searched otherwise",
        100.0 * cached,
        c.masks_searched as f64 / searched.max(1) as f64
    );
}

/// The writer alone: decoded five-tuple flows in and out.
fn puts() {
    let n = 1_000_000u64;
    let flows: Vec<Flow> = (0..20_000)
        .map(|i| {
            let t = Tuple { src: 0xc0a8_0000 | i, dst: 0x0a00_0001, sport: i as u16, dport: 2000 };
            flow(t, mask(!0, !0, !0, !0), i.into())
        })
        .collect();
    let mut dp = Datapath::new(Config { seed: Some(1), ..Config::default() });
    let (mut put, mut delete) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..n / flows.len() as u64 {
        let start = cpu_time();
        let ids: Vec<_> = flows.iter().filter_map(|f| dp.put(f).ok()).map(|p| p.id).collect();
        put += cpu_time() - start;
        let start = cpu_time();
        for id in &ids {
            black_box(dp.delete(*id));
        }
        delete += cpu_time() - start;
    }
    println!(
        "puts       {:.2} M puts/s, {:.2} M deletes/s, {:.2} M put + delete/s",
        n as f64 / put.as_secs_f64() / 1e6,
        n as f64 / delete.as_secs_f64() / 1e6,
        n as f64 / (put + delete).as_secs_f64() / 1e6
    );
}

fn rss() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Bytes for each of a million five-tuple flows, with one worker that has counted them all.
fn memory() {
    let mut dp = Datapath::new(Config { seed: Some(1), ..Config::default() });
    let n = 1_000_000u32;
    let before = rss();
    for i in 0..n {
        let t = Tuple { src: 0x0a00_0000 | i, dst: 0x0a00_0001, sport: i as u16, dport: 2000 };
        let _ = black_box(dp.put(&flow(t, mask(!0, !0, !0, !0), i.into())));
    }
    let flows = rss() - before;
    let mut worker = dp.worker();
    let (mut batch, mut sink) = (Batch::new(), Null::default());
    for i in 0..n {
        let t = Tuple { src: 0x0a00_0000 | i, dst: 0x0a00_0001, sport: i as u16, dport: 2000 };
        batch.push(&frame(t), Metadata { in_port: 1, ..Default::default() });
        if batch.is_full() {
            worker.process(&mut batch, 1, &mut sink);
        }
    }
    println!(
        "memory     {} bytes/flow in the table ({} counted), {} with one worker's counters and cache",
        flows / n as usize,
        dp.table_bytes() / n as usize,
        (rss() - before) / n as usize
    );
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let mut seconds = 2.0;
    if let Some(n) = names.iter().position(|a| a == "--seconds") {
        seconds = names.get(n + 1).and_then(|s| s.parse().ok()).unwrap_or(seconds);
        names.drain(n..(n + 2).min(names.len()));
    }
    let all = ["a1", "b1k", "b1kx", "c100k", "c100k-2w", "m16", "m512", "puts", "memory"];
    if names.is_empty() {
        names = all.iter().map(|s| s.to_string()).collect();
    }
    for name in &names {
        match name.as_str() {
            "a1" => run(name, one_mask(1, false), seconds, 1),
            "b1k" => run(name, one_mask(1000, false), seconds, 1),
            "b1kx" => run(name, one_mask(1000, true), seconds, 1),
            "m16" => run(name, zipf(Some(16)), seconds, 1),
            "c100k" => run(name, zipf(None), seconds, 1),
            "m512" => run(name, zipf(Some(512)), seconds, 1),
            "c100k-2w" => run(name, zipf(None), seconds, 2),
            "puts" => puts(),
            "memory" => memory(),
            _ => println!("{name}: no such case; there are {}", all.join(", ")),
        }
    }
}
