//! `flowlift bench updates`: the way of a rule into the NIC, through driver, admin ring and simulated device.
//!
//! Part one: inserts, atomic replaces and deletes of exact-match entries as fast as they go, the driver on the first of two
//! cores and the device on the other one. Every completion is checked: each update has one, it says that the update was
//! done, and at the end the device has noticed no breach of its protocol. Part two ([`super::beside`]): rules change at a
//! fixed rate, and what is left of the forwarding speed is compared with before and after.

use super::args::Measure;
use super::beside::{self, Beside};
use super::card::{Card, Entries, PATIENCE, check, unexpected};
use super::cpu;
use super::flows::Percentiles;
use anyhow::{Context, Result, ensure};
use clap::Args;
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::{Nic, Update};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Arguments of `bench updates`.
#[derive(Debug, Args)]
pub struct UpdatesArgs {
    /// Entries to insert, replace and delete.
    #[arg(long, value_name = "N", default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=1_500_000))]
    entries: u32,
    /// Updates that are submitted with one doorbell.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Updates without an answer, at most: what latency is made of.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    in_flight: u32,
    /// Rules that change in a second beside the forwarding.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..))]
    rate: u32,
    #[command(flatten)]
    measure: Measure,
}

/// What `bench updates` prints.
#[derive(Debug, Serialize)]
struct Report {
    entries: u32,
    batch: u32,
    in_flight: u32,
    /// By the clock.
    inserts_per_s: f64,
    replaces_per_s: f64,
    deletes_per_s: f64,
    insert: Phase,
    replace: Phase,
    delete: Phase,
    /// Of the softpath, and of the NIC, while rules change.
    forwarding: Beside,
    nic_forwarding: Beside,
}

/// One kind of update.
#[derive(Debug, Serialize)]
struct Phase {
    /// Per second by the clock.
    per_s: f64,
    /// Per second of CPU time that the driver worked, not waited: what its core could do.
    per_driver_cpu_s: f64,
    /// Per second of CPU time that the device worked.
    per_device_cpu_s: f64,
    /// From the submission to the answer, in microseconds.
    latency_us: Percentiles,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} entries, {} to a doorbell, {} in flight", self.entries, self.batch, self.in_flight)?;
        for (name, phase) in
            [("inserts", &self.insert), ("replaces", &self.replace), ("deletes", &self.delete)]
        {
            writeln!(
                f,
                "{name:9} {:.2} M/s; {:.2} M per CPU second of the driver, {:.2} M of the device; answered after {}",
                phase.per_s / 1e6,
                phase.per_driver_cpu_s / 1e6,
                phase.per_device_cpu_s / 1e6,
                phase.latency_us
            )?;
        }
        writeln!(f, "softpath forwarding: {}", self.forwarding)?;
        writeln!(f, "NIC forwarding: {}", self.nic_forwarding)
    }
}

/// Puts `number` updates through the driver, and waits for all answers.
fn phase(nic: &mut Fl1, card: &Card, args: &UpdatesArgs, make: impl Fn(u32) -> Update) -> Result<Phase> {
    let number = args.entries;
    let device_before = card.busy_ns.load(Ordering::Relaxed);
    // When each was submitted; `None` before, and once it is answered.
    let mut submitted: Vec<Option<Instant>> = vec![None; number as usize];
    let mut latencies = Vec::with_capacity(number as usize);
    let (mut results, mut events) = (Vec::new(), Vec::new());
    let mut queue: Vec<Update> = Vec::with_capacity(args.batch as usize);
    let (mut made, mut sent) = (0u32, 0u32);
    let (start, mut busy) = (Instant::now(), Duration::ZERO);
    let (mut last, mut turn) = (start, cpu::thread_time());
    while latencies.len() < number as usize {
        let sent_before = sent;
        let open = sent - latencies.len() as u32;
        if queue.is_empty() {
            let end = number.min(made + args.batch);
            queue.extend((made..end).map(&make));
            made = end;
        }
        if !queue.is_empty() && open + args.batch <= args.in_flight.max(args.batch) {
            let taken = nic.submit(&queue)?;
            if taken > 0 {
                nic.kick()?;
                let now = Instant::now();
                submitted[sent as usize..sent as usize + taken].fill(Some(now));
                sent += taken as u32;
                queue.drain(..taken);
            }
        }
        nic.poll(&mut results, &mut events)?;
        unexpected(&mut events)?;
        let now = Instant::now();
        if results.is_empty() {
            ensure!(
                now - last < PATIENCE,
                "{} of {sent} updates are answered, and no more come",
                latencies.len()
            );
        } else {
            last = now;
        }
        let idle = results.is_empty() && sent == sent_before;
        for result in results.drain(..) {
            let n = check(&result, submitted.len())?;
            let at = submitted[n].take();
            latencies.push(now - at.with_context(|| format!("a second answer for update {n}"))?);
        }
        let now = cpu::thread_time();
        if !idle {
            busy += now - turn;
        }
        turn = now;
    }
    let wall = start.elapsed();
    let device = Duration::from_nanos(card.busy_ns.load(Ordering::Relaxed) - device_before);
    let rate = |time: Duration| f64::from(number) / time.as_secs_f64();
    Ok(Phase {
        per_s: rate(wall),
        per_driver_cpu_s: rate(busy),
        per_device_cpu_s: rate(device),
        latency_us: Percentiles::of(latencies),
    })
}

/// Part one: inserts, replaces, deletes.
fn phases(args: &UpdatesArgs, cores: &[usize]) -> Result<[Phase; 3]> {
    let card = Card::new()?;
    card.driven(cores, || {
        let mut nic = card.open()?;
        let entries = Entries::new(&nic.caps().tables)?;
        card.function.model().populate(entries.table.0, args.entries);
        let phases = [
            phase(&mut nic, &card, args, |n| entries.insert(n)).context("inserts")?,
            phase(&mut nic, &card, args, |n| entries.replace(n)).context("replaces")?,
            phase(&mut nic, &card, args, |n| entries.delete(n)).context("deletes")?,
        ];
        let violations = nic.violations()?;
        ensure!(violations.total == 0, "the device noticed {violations:?}");
        Ok(phases)
    })
}

pub(super) fn run(args: &UpdatesArgs) -> Result<()> {
    let time = args.measure.time()?;
    let cores = args.measure.cores(2)?;
    let [insert, replace, delete] = phases(args, &cores)?;
    let report = Report {
        entries: args.entries,
        batch: args.batch,
        in_flight: args.in_flight,
        inserts_per_s: insert.per_s,
        replaces_per_s: replace.per_s,
        deletes_per_s: delete.per_s,
        insert,
        replace,
        delete,
        forwarding: beside::softpath(args.rate, &cores, time)?,
        nic_forwarding: beside::nic(args.rate, &cores, time)?,
    };
    args.measure.print(&report)
}
