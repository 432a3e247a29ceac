//! The loop that the forwarding benchmarks measure: frames in memory, a worker, a null port.

use super::cpu;
use anyhow::{Context, Result, anyhow};
use flowlift_flow::{Metadata, PortNo};
use flowlift_softpath::{BATCH, Batch, Counters, Datapath, Sink, Upcall, Worker};
use serde::Serialize;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Packets between two looks at the clock.
const CHUNK: usize = 64 * BATCH;

/// A port that takes every frame and keeps none, and a user that takes no upcall.
#[derive(Debug, Default)]
pub(super) struct NullPort {
    packets: u64,
    bytes: u64,
}

impl Sink for NullPort {
    #[inline(always)]
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        black_box(port);
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }

    fn upcall(&mut self, _: Upcall<'_>) -> bool {
        false
    }
}

/// Frames in memory, each at its place: the wire that packets are copied from, as DMA would.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    places: Vec<(usize, usize)>,
}

impl Frames {
    /// Adds a frame, `spacing` bytes after the start of the one before, or right behind it if that is longer.
    pub(super) fn push(&mut self, frame: &[u8], spacing: usize) {
        let start = self.places.last().map_or(0, |&(start, len)| (start + spacing).max(start + len));
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(frame);
        self.places.push((start, frame.len()));
    }

    /// Number of frames.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of frame number `at`.
    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> &[u8] {
        let (start, len) = self.places[at];
        &self.bytes[start..start + len]
    }
}

/// A worker that forwards frames in a circle.
#[derive(Debug)]
pub(super) struct Forwarder<'f> {
    frames: &'f Frames,
    next: usize,
    metadata: Metadata,
    worker: Worker,
    batch: Batch,
    sink: NullPort,
    /// On the clock that flows' time of last use is on, in milliseconds.
    start: Instant,
}

impl<'f> Forwarder<'f> {
    /// One that begins at frame number `first`.
    pub(super) fn new(frames: &'f Frames, first: usize, in_port: u32, worker: Worker) -> Self {
        Self {
            frames,
            next: first % frames.len().max(1),
            metadata: Metadata { in_port, ..Metadata::default() },
            worker,
            batch: Batch::new(),
            sink: NullPort::default(),
            start: Instant::now(),
        }
    }

    /// Forwards one batch.
    #[inline(always)]
    pub(super) fn batch(&mut self, now: u64) {
        for _ in 0..BATCH {
            self.batch.push(self.frames.get(self.next), self.metadata);
            self.next += 1;
            if self.next == self.frames.len() {
                self.next = 0;
            }
        }
        self.worker.process(&mut self.batch, now, &mut self.sink);
    }

    /// Forwards one frame, with others when the batch is full.
    pub(super) fn one(&mut self, frame: &[u8]) {
        self.batch.push(frame, self.metadata);
        if self.batch.is_full() {
            self.flush();
        }
    }

    /// Forwards what [`Self::one`] has kept back.
    pub(super) fn flush(&mut self) {
        self.worker.process(&mut self.batch, 1, &mut self.sink);
    }

    /// Packets that came out so far.
    pub(super) fn sent(&self) -> u64 {
        self.sink.packets
    }

    /// Forwards [`CHUNK`] packets.
    pub(super) fn chunk(&mut self) {
        let now = self.start.elapsed().as_millis() as u64;
        for _ in 0..CHUNK / BATCH {
            self.batch(now);
        }
    }

    /// Forwards for a while.
    pub(super) fn run(&mut self, time: Duration) -> Run {
        let before = self.worker.counters();
        let sent = self.sink.packets;
        let (start, cpu) = (Instant::now(), cpu::thread_time());
        while start.elapsed() < time {
            self.chunk();
        }
        let (wall, cpu) = (start.elapsed(), cpu::thread_time() - cpu);
        Run {
            wall,
            cpu,
            sent: self.sink.packets - sent,
            counters: difference(self.worker.counters(), before),
        }
    }
}

/// What one thread did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Time on the clock.
    pub(super) wall: Duration,
    /// Time on the CPU.
    pub(super) cpu: Duration,
    /// Packets that came out.
    pub(super) sent: u64,
    /// What the worker counted.
    pub(super) counters: Counters,
}

fn difference(after: Counters, before: Counters) -> Counters {
    Counters {
        packets: after.packets - before.packets,
        hits: after.hits - before.hits,
        cache_hits: after.cache_hits - before.cache_hits,
        misses: after.misses - before.misses,
        lost: after.lost - before.lost,
        masks_searched: after.masks_searched - before.masks_searched,
        recirculations: after.recirculations - before.recirculations,
        recirc_limit: after.recirc_limit - before.recirc_limit,
    }
}

/// Forwarding speed, and which tier found the flows.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Speed {
    /// Threads, each with a core.
    pub(super) threads: usize,
    /// Packets that were processed.
    pub(super) packets: u64,
    /// Packets that were sent to the null port.
    pub(super) sent: u64,
    /// Million packets in a second of CPU time, of one thread.
    pub(super) mpps_cpu: f64,
    /// Million packets in a second, of all threads.
    pub(super) mpps_wall: f64,
    /// Cycles of the time stamp counter that a packet took of CPU time; `None` without such a counter.
    pub(super) cycles_per_packet: Option<f64>,
    /// Rate of that counter.
    pub(super) tsc_hz: Option<f64>,
    /// Part of the lookups that the microflow cache answered.
    pub(super) cache_share: f64,
    /// Part of the lookups that the classifier answered.
    pub(super) table_share: f64,
    /// Part of the lookups that found no flow.
    pub(super) miss_share: f64,
    /// Masks that a lookup searched which the cache did not answer.
    pub(super) masks_per_table_lookup: f64,
}

impl Speed {
    /// Of threads that ran at the same time.
    pub(super) fn of(runs: &[Run]) -> Self {
        let sum = |get: fn(&Counters) -> u64| runs.iter().map(|r| get(&r.counters)).sum::<u64>();
        let packets = sum(|c| c.packets);
        let cpu: f64 = runs.iter().map(|r| r.cpu.as_secs_f64()).sum();
        let (hits, cached, misses) = (sum(|c| c.hits), sum(|c| c.cache_hits), sum(|c| c.misses));
        let share = |n: u64| n as f64 / ((hits + misses) as f64).max(1.0);
        let uncached = (hits + misses).saturating_sub(cached);
        let tsc_hz = cpu::tsc_hz();
        Self {
            threads: runs.len(),
            packets,
            sent: runs.iter().map(|r| r.sent).sum(),
            mpps_cpu: packets as f64 / cpu / 1e6,
            mpps_wall: runs.iter().map(|r| r.counters.packets as f64 / r.wall.as_secs_f64() / 1e6).sum(),
            cycles_per_packet: tsc_hz.map(|hz| cpu * hz / packets.max(1) as f64),
            tsc_hz,
            cache_share: share(cached),
            table_share: share(hits.saturating_sub(cached)),
            miss_share: share(misses),
            masks_per_table_lookup: sum(|c| c.masks_searched) as f64 / (uncached as f64).max(1.0),
        }
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cycles = self.cycles_per_packet.map_or(String::new(), |c| format!(", {c:.0} cycles per packet"));
        writeln!(f, "{:.2} Mpps per CPU second{cycles}", self.mpps_cpu)?;
        writeln!(f, "{:.2} Mpps by the clock, {} thread(s)", self.mpps_wall, self.threads)?;
        writeln!(
            f,
            "cache {:.2} %, table {:.2} % ({:.1} masks each), missed {:.2} %; {} packets, {} sent",
            100.0 * self.cache_share,
            100.0 * self.table_share,
            self.masks_per_table_lookup,
            100.0 * self.miss_share,
            self.packets,
            self.sent
        )
    }
}

/// Forwards `frames` on these cores, for `warm_up` and then for `time`, which is measured. The threads start the measured
/// part together.
///
/// # Errors
/// A core cannot be had.
pub(super) fn forward(
    datapath: &Datapath,
    frames: &Frames,
    in_port: u32,
    cores: &[usize],
    warm_up: Duration,
    time: Duration,
) -> Result<Speed> {
    let together = Barrier::new(cores.len());
    let runs: Result<Vec<Run>> = std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .enumerate()
            .map(|(n, &core)| {
                let worker = datapath.worker();
                let together = &together;
                // Each thread has its own part of the circle in front of it.
                let first = n * frames.len() / cores.len();
                scope.spawn(move || {
                    let pinned = cpu::pin(core);
                    let mut forwarder = Forwarder::new(frames, first, in_port, worker);
                    // Also without a core: the others wait at the barrier.
                    forwarder.run(warm_up);
                    together.wait();
                    let run = forwarder.run(time);
                    pinned.map(|()| run)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("a worker's thread panicked"))?).collect()
    });
    Ok(Speed::of(&runs.context("forwarding")?))
}
