//! `flowlift bench flows`: what flows cost, in time and memory.
//!
//! Before all else the memory that flows take in planner and driver ([`super::memory`]). Then the writer, on the first of two
//! cores: decoded five-tuple flows with UFIDs are put, all of them, and deleted again; memory is what the process has in RAM
//! more than before. Then writer and reader together, on two cores: the reader forwards and takes the time of each batch,
//! once alone and once while the writer puts and deletes without a pause. A writer that stopped readers would show in the
//! longest batches.

use super::args::Measure;
use super::cpu;
use super::forward::{Forwarder, Frames};
use super::memory::{self, NicMemory};
use super::traffic::{EXACT, IN_PORT, Tuple, flow, frame};
use anyhow::{Result, anyhow, ensure};
use clap::Args;
use flowlift_flow::Flow;
use flowlift_softpath::{BATCH, Config, Datapath, FlowId};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Decoded flows that are in memory at a time: a decoder's output is hot, and each takes more than a kilobyte.
const CHUNK: u32 = 4096;
/// Flows that the reader's packets belong to.
const FORWARDED: u32 = 1000;

/// Arguments of `bench flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Flows to put.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=8_000_000))]
    flows: u32,
    #[command(flatten)]
    measure: Measure,
}

/// What `bench flows` prints.
#[derive(Debug, Serialize)]
struct Report {
    flows: u32,
    #[serde(flatten)]
    writer: Writer,
    #[serde(flatten)]
    both: Both,
    nic: NicMemory,
}

/// The writer alone.
#[derive(Debug, Serialize)]
struct Writer {
    /// Per second of the writer's CPU time.
    puts_per_s: f64,
    deletes_per_s: f64,
    put_deletes_per_s: f64,
    /// Memory in use by all flows over their number, one worker's counters and cache included.
    bytes_per_flow: f64,
    /// The same before a worker has seen a packet of each.
    table_bytes_per_flow: f64,
}

/// Writer and reader together.
#[derive(Debug, Serialize)]
struct Both {
    reader_alone: Reader,
    reader_with_writer: Reader,
    /// Puts and deletes of the writer beside the reader, per second of its CPU time.
    updates_per_s_with_reader: f64,
    /// What is left of the reader's speed.
    speed_kept: f64,
}

/// The reader's batches.
#[derive(Debug, Serialize)]
struct Reader {
    mpps_cpu: f64,
    /// CPU time of a batch in microseconds.
    batch_us: Percentiles,
}

/// Of a set of times.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Percentiles {
    /// In microseconds.
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: f64| {
            let n = (times.len() as f64 * part) as usize;
            times.get(n.min(times.len().saturating_sub(1))).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
        };
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, p999, max } = self;
        write!(f, "{p50:.1} us median, {p99:.1} p99, {p999:.1} p99.9, {max:.1} longest")
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Writer { puts_per_s, deletes_per_s, put_deletes_per_s, bytes_per_flow, table_bytes_per_flow } =
            &self.writer;
        writeln!(
            f,
            "{} flows: {:.2} M puts/s, {:.2} M deletes/s, {:.2} M put + delete/s",
            self.flows,
            puts_per_s / 1e6,
            deletes_per_s / 1e6,
            put_deletes_per_s / 1e6
        )?;
        writeln!(
            f,
            "{table_bytes_per_flow:.0} bytes per flow in the table, {bytes_per_flow:.0} with one worker's counters and cache"
        )?;
        let Both { reader_alone, reader_with_writer, updates_per_s_with_reader, speed_kept } = &self.both;
        writeln!(
            f,
            "reader alone: {:.2} Mpps per CPU second; a batch takes {}",
            reader_alone.mpps_cpu, reader_alone.batch_us
        )?;
        writeln!(
            f,
            "beside {:.2} M updates/s: {:.2} Mpps ({:.0} %); a batch takes {}",
            updates_per_s_with_reader / 1e6,
            reader_with_writer.mpps_cpu,
            100.0 * speed_kept,
            reader_with_writer.batch_us
        )?;
        self.nic.fmt(f)
    }
}

/// Five-tuple number `n`.
pub(super) fn tuple(n: u32) -> Tuple {
    Tuple { src: 0x0a00_0000 | n & 0xff_ffff, dst: 0x0b00_0001, sport: n as u16, dport: 2000 }
}

/// The decoded flows of these numbers.
fn flows(numbers: std::ops::Range<u32>) -> Vec<Flow> {
    numbers.map(|n| flow(tuple(n), EXACT, n.into())).collect()
}

/// Time that `work` takes on the CPU.
fn timed<R>(total: &mut Duration, work: impl FnOnce() -> R) -> R {
    let start = cpu::thread_time();
    let result = work();
    *total += cpu::thread_time() - start;
    result
}

/// Puts decoded flows; their names.
fn put(datapath: &mut Datapath, flows: &[Flow], ids: &mut Vec<FlowId>) -> Result<()> {
    for flow in flows {
        ids.push(datapath.put(flow)?.id);
    }
    Ok(())
}

/// Deletes flows, and fails if one was not there.
fn delete(datapath: &mut Datapath, ids: &[FlowId]) -> Result<()> {
    for id in ids {
        ensure!(datapath.delete(*id).is_some(), "a flow was gone before its delete");
    }
    Ok(())
}

/// Sends a packet of each flow through a worker, so that it counts them all.
fn touch(datapath: &Datapath, flows: u32) -> Result<()> {
    let no_frames = Frames::default();
    let mut worker = Forwarder::new(&no_frames, 0, IN_PORT, datapath.worker());
    for n in 0..flows {
        worker.one(&frame(tuple(n)));
    }
    worker.flush();
    ensure!(worker.sent() == u64::from(flows), "{} of {flows} packets found their flow", worker.sent());
    Ok(())
}

/// Speed of the writer, and memory.
fn writer_alone(number: u32) -> Result<Writer> {
    let mut datapath = Datapath::new(Config { max_flows: number, ..Config::default() });
    let (mut put_time, mut delete_time) = (Duration::ZERO, Duration::ZERO);
    // What is not the table's is in RAM before.
    let mut ids = vec![FlowId { slot: 1, generation: 1 }; number as usize];
    ids.clear();
    drop(flows(0..CHUNK.min(number)));
    let before = cpu::resident()?;
    for start in (0..number).step_by(CHUNK as usize) {
        let chunk = flows(start..number.min(start + CHUNK));
        timed(&mut put_time, || put(&mut datapath, &chunk, &mut ids))?;
    }
    let per_flow = |bytes: usize| bytes.saturating_sub(before) as f64 / f64::from(number);
    let table_bytes_per_flow = per_flow(cpu::resident()?);
    touch(&datapath, number)?;
    let bytes_per_flow = per_flow(cpu::resident()?);
    timed(&mut delete_time, || delete(&mut datapath, &ids))?;
    ensure!(datapath.is_empty(), "{} flows are left", datapath.len());
    let rate = |time: Duration| f64::from(number) / time.as_secs_f64();
    Ok(Writer {
        puts_per_s: rate(put_time),
        deletes_per_s: rate(delete_time),
        put_deletes_per_s: rate(put_time + delete_time),
        bytes_per_flow,
        table_bytes_per_flow,
    })
}

/// Forwards until told to stop, and takes the time of each batch.
fn read(forwarder: &mut Forwarder<'_>, stop: &AtomicBool) -> Reader {
    let mut times = Vec::with_capacity(1 << 22);
    let start = cpu::thread_time();
    let mut last = start;
    while !stop.load(Ordering::Relaxed) {
        forwarder.batch(1);
        let now = cpu::thread_time();
        times.push(now - last);
        last = now;
    }
    let packets = (times.len() * BATCH) as f64;
    Reader { mpps_cpu: packets / (last - start).as_secs_f64() / 1e6, batch_us: Percentiles::of(times) }
}

/// A reader on a core of its own, and `work` beside it.
fn beside<R>(
    datapath: &mut Datapath,
    core: usize,
    work: impl FnOnce(&mut Datapath) -> Result<R>,
) -> Result<(Reader, R)> {
    let mut frames = Frames::default();
    (0..FORWARDED).for_each(|n| frames.push(&frame(tuple(n)), 0));
    let stop = AtomicBool::new(false);
    let worker = datapath.worker();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            cpu::pin(core)?;
            let mut forwarder = Forwarder::new(&frames, 0, IN_PORT, worker);
            forwarder.run(Duration::from_millis(100));
            Ok(read(&mut forwarder, &stop))
        });
        let result = work(datapath);
        stop.store(true, Ordering::Relaxed);
        let reader: Result<Reader> = reader.join().map_err(|_| anyhow!("the reader's thread panicked"))?;
        Ok((reader?, result?))
    })
}

/// Reader and writer together.
fn writer_and_reader(time: Duration, core: usize) -> Result<Both> {
    let mut datapath = Datapath::new(Config::default());
    put(&mut datapath, &flows(0..FORWARDED), &mut Vec::new())?;
    let (alone, ()) = beside(&mut datapath, core, |_| {
        std::thread::sleep(time);
        Ok(())
    })?;
    let churned = flows(FORWARDED..FORWARDED + CHUNK);
    let (disturbed, rate) = beside(&mut datapath, core, |datapath| {
        let (mut spent, mut updates) = (Duration::ZERO, 0u64);
        let (start, mut ids) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            ids.clear();
            timed(&mut spent, || {
                put(datapath, &churned, &mut ids)?;
                delete(datapath, &ids)
            })?;
            updates += 2 * ids.len() as u64;
        }
        Ok(updates as f64 / spent.as_secs_f64())
    })?;
    Ok(Both {
        speed_kept: disturbed.mpps_cpu / alone.mpps_cpu,
        updates_per_s_with_reader: rate,
        reader_alone: alone,
        reader_with_writer: disturbed,
    })
}

pub(super) fn run(args: &FlowsArgs) -> Result<()> {
    let time = args.measure.time()?;
    let cores = args.measure.cores(2)?;
    cpu::pin(cores[0])?;
    // First, as what the other parts leave behind in the heap would hide some of it.
    let nic = memory::measure(args.flows.min(memory::MOST))?;
    let report = Report {
        flows: args.flows,
        writer: writer_alone(args.flows)?,
        both: writer_and_reader(time, cores[1])?,
        nic,
    };
    args.measure.print(&report)
}
