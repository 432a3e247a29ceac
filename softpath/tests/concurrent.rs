//! One writer and several workers at once: readers see old or new, never a mixture, never a wrong flow; and every packet is
//! counted.

mod common;

use common::*;
use flowlift_flow::{Action, Key, PortNo};
use flowlift_softpath::{Batch, Config, Datapath, FlowId, Sink, Upcall};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Flow `n` sends to ports `1000 * n + version` and then `1000 * n + version + 500`.
fn versioned(n: u8, version: u32) -> flowlift_flow::Flow {
    let first = 1000 * u32::from(n) + version;
    let actions = vec![Action::Output(PortNo(first)), Action::Output(PortNo(first + 500))];
    // Half of the flows under one mask, half under another.
    let fields = if n.is_multiple_of(2) { 1 << 4 } else { 1 << 4 | 1 << 1 };
    flow(&key(&udp(1, n), &metadata(1)), mask(fields), actions)
}

/// Checks each packet's outputs against the flow that it must have hit.
#[derive(Default)]
struct Checker {
    first: Option<u32>,
    last: std::collections::HashMap<u8, u32>,
    hits: u64,
    misses: u64,
    packet: u8,
}

impl Sink for Checker {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        let n = packet[33];
        assert_eq!(port.0 / 1000, u32::from(n), "packet {n} got the actions of another flow");
        match self.first.take() {
            None => self.first = Some(port.0),
            Some(first) => {
                assert_eq!(port.0, first + 500, "packet {n}: half of its actions are of another version");
                let version = first % 500;
                let last = self.last.entry(n).or_default();
                assert!(version >= *last, "packet {n}: version {version} after {last}");
                *last = version;
                self.hits += 1;
            }
        }
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        let Upcall::Miss { packet, .. } = upcall else { unreachable!() };
        self.packet = packet.bytes()[33];
        assert!(self.packet >= 32, "flow {} is never deleted, yet packet missed", self.packet);
        self.misses += 1;
        true
    }

    fn matched(&mut self, _: FlowId, _: &Key) {
        assert!(self.first.is_none(), "the packet before was cut short");
    }
}

#[test]
fn readers_see_old_or_new_and_every_packet_is_counted() {
    // Flows 0 to 31 stay and change their actions; 32 to 63 come and go.
    let config = Config {
        seed: Some(1),
        cache_entries: 64,
        delete_wait: Duration::from_secs(10),
        ..Config::default()
    };
    let mut dp = Datapath::new(config);
    for n in 0..32 {
        dp.put(&versioned(n, 0)).unwrap();
    }
    let workers: Vec<_> = (0..3).map(|_| dp.worker()).collect();
    let stop = AtomicBool::new(false);
    let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut deleted = 0;
    std::thread::scope(|s| {
        for (seed, mut worker) in workers.into_iter().enumerate() {
            let (stop, hits, misses) = (&stop, &hits, &misses);
            s.spawn(move || {
                let mut sink = Checker::default();
                let mut batch = Batch::new();
                let mut n = seed as u32;
                while !stop.load(Ordering::Relaxed) {
                    while !batch.is_full() {
                        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        batch.push(&udp(1, (n >> 24) as u8 % 64), metadata(1));
                    }
                    worker.process(&mut batch, 1, &mut sink);
                }
                hits.fetch_add(sink.hits, Ordering::Relaxed);
                misses.fetch_add(sink.misses, Ordering::Relaxed);
            });
        }
        for version in 1..400 {
            for n in 0..32 {
                dp.put(&versioned(n, version)).unwrap();
            }
            for n in 32..64 {
                dp.put(&versioned(n, version)).unwrap();
            }
            let ids: Vec<_> = (32..64).filter_map(|n| dp.find_match(&versioned(n, 0).matching)).collect();
            assert_eq!(ids.len(), 32);
            let (one, rest) = ids.split_first().unwrap();
            for d in std::iter::once(dp.delete(*one)).chain(dp.delete_all(rest)) {
                let d = d.unwrap();
                assert!(d.complete, "the wait for workers was too short");
                deleted += d.stats.packets;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut kept = 0;
    dp.dump(0, |f| {
        kept += f.stats.packets;
        true
    });
    let (hits, misses) = (hits.into_inner(), misses.into_inner());
    assert_eq!(kept + deleted, hits, "packets of flows that stayed and of flows that went");
    let c = dp.counters();
    assert_eq!((c.hits, c.misses), (hits, misses));
    assert!(hits > 0 && c.cache_hits > 0 && deleted > 0, "{c:?}: the test saw no race");
}
