//! `flowlift bench updates`: the way of a rule into the NIC, through driver, admin ring and simulated device.
//!
//! Part one: inserts, atomic replaces and deletes of exact-match entries as fast as they go, the driver on one core and the
//! device on another. Every completion is checked: each update has one, it says that the update was done, and at the end
//! the device has noticed no breach of its protocol. Part two: a softpath worker forwards on one core, while on the other
//! rules change at a fixed rate, each in the softpath's table and in the NIC; what is left of the forwarding speed is
//! compared with before and after.

use super::cpu;
use super::datapath::seconds;
use super::flows::Percentiles;
use super::forward::{Forwarder, Frames, Run, Speed};
use super::traffic::{EXACT, IN_PORT, Tuple, flow, frame};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use flowlift_bus::PciFunction;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{
    ActionKind, Entry, EntryId, Field, Nic, NicAction, NicEvent, NicPort, TableCaps, TableId, TableKind,
    Update, UpdateResult, UpdateStatus,
};
use flowlift_flow::Flow;
use flowlift_sim::{HostClock, Profile};
use flowlift_softpath::{Config, Datapath, FlowId};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An update that has no answer for so long will not get one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Flows that the forwarded packets belong to, in part two.
const FORWARDED: u32 = 1000;
/// How often part two changes rules.
const TICK: Duration = Duration::from_millis(1);

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
    /// Seconds of each part with forwarding.
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    seconds: f64,
    /// First of the two cores: the driver's; the next one is the device's or the forwarding worker's. [default: the last two]
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
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
    forwarding: Beside,
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

/// Forwarding while rules change.
#[derive(Debug, Serialize)]
struct Beside {
    /// Rules that changed in a second.
    changes_per_s: f64,
    /// Without changes, before and after; million packets in a second of CPU time.
    mpps_cpu_alone: f64,
    /// With changes.
    mpps_cpu: f64,
    /// What is left of the speed.
    speed_kept: f64,
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
        let Beside { changes_per_s, mpps_cpu_alone, mpps_cpu, speed_kept } = &self.forwarding;
        writeln!(
            f,
            "forwarding: {mpps_cpu_alone:.2} Mpps alone, {mpps_cpu:.2} while {changes_per_s:.0} rules change in a second ({:.0} %)",
            100.0 * speed_kept
        )
    }
}

/// A simulated NIC and its driver.
struct Card {
    function: Arc<InProc<flowlift_sim::Fl1>>,
    stop: AtomicBool,
    /// CPU time in nanoseconds of the steps in which [`Self::work`] found something to do.
    busy_ns: AtomicU64,
}

impl Card {
    fn new() -> Result<Self> {
        let config = flowlift_sim::Config {
            seed: 1,
            faults: Default::default(),
            clock: Box::new(HostClock::default()),
        };
        let device = flowlift_sim::Fl1::new(Profile::large(), config);
        let config = InProcConfig { name: "simulated FL1".into(), ..InProcConfig::default() };
        Ok(Self {
            function: InProc::new(device, config)?,
            stop: AtomicBool::new(false),
            busy_ns: AtomicU64::new(0),
        })
    }

    /// The device, until [`Self::stop`] is set.
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let start = cpu::thread_time();
            if self.function.model().step().is_idle() {
                std::hint::spin_loop();
            } else {
                let spent = (cpu::thread_time() - start).as_nanos() as u64;
                self.busy_ns.fetch_add(spent, Ordering::Relaxed);
            }
        }
    }

    fn open(&self) -> Result<Fl1> {
        let function: Arc<dyn PciFunction> = Arc::clone(&self.function) as Arc<dyn PciFunction>;
        Fl1::open(function, Fl1Config::default()).context("cannot bring the simulated NIC up")
    }
}

/// Entries of five-tuples, made from a template.
struct Entries {
    table: TableId,
    template: Entry,
    /// Places of the source address and port in the key.
    src: usize,
    sport: usize,
}

impl Entries {
    /// For the largest hash table of the first stage.
    fn new(tables: &[TableCaps]) -> Result<Self> {
        let hashes = tables.iter().filter(|t| matches!(t.kind, TableKind::Hash { .. }) && t.stage.0 == 0);
        let caps = hashes.max_by_key(|t| t.max_entries).context("the NIC has no hash table")?;
        ensure!(caps.actions.has(ActionKind::Output), "the NIC's hash table cannot output");
        let len = usize::from(caps.key_len);
        let mut template = Entry {
            priority: 0,
            key: std::iter::repeat_n(0, len).collect(),
            mask: std::iter::repeat_n(0, len).collect(),
            actions: [NicAction::Output(NicPort(1))].into_iter().collect(),
        };
        let place = |field: Field| -> Result<std::ops::Range<usize>> {
            let caps = caps.fields.iter().find(|f| f.field == field);
            let caps = caps.with_context(|| format!("the NIC's hash table has no {}", field.name()))?;
            let start = usize::from(caps.offset);
            Ok(start..start + usize::from(caps.width.div_ceil(8)))
        };
        let values: [(Field, &[u8]); 7] = [
            (Field::InPort, &[0, 1]),
            (Field::EthType, &[8, 0]),
            (Field::IpProto, &[17]),
            (Field::Ipv4Src, &[0; 4]),
            (Field::Ipv4Dst, &[11, 0, 0, 1]),
            (Field::L4Src, &[0; 2]),
            (Field::L4Dst, &[7, 208]),
        ];
        for (field, value) in values {
            let range = place(field)?;
            template.mask.get_mut(range.clone()).context("a field past the key's end")?.fill(0xff);
            template.key.get_mut(range).context("a field past the key's end")?.copy_from_slice(value);
        }
        Ok(Self {
            table: caps.id,
            template,
            src: place(Field::Ipv4Src)?.start,
            sport: place(Field::L4Src)?.start,
        })
    }

    fn id(&self, n: u32) -> EntryId {
        EntryId { table: self.table, index: n }
    }

    /// Entry number `n`, with output to `port`.
    fn entry(&self, n: u32, port: u16) -> Entry {
        let mut entry = self.template.clone();
        entry.key[self.src..self.src + 4].copy_from_slice(&(0x0a00_0000 | n).to_be_bytes());
        entry.key[self.sport..self.sport + 2].copy_from_slice(&(n as u16).to_be_bytes());
        entry.actions[0] = NicAction::Output(NicPort(port));
        entry
    }

    fn insert(&self, n: u32) -> Update {
        Update::Insert { cookie: n.into(), id: self.id(n), entry: self.entry(n, 1) }
    }

    fn replace(&self, n: u32) -> Update {
        Update::Replace { cookie: n.into(), id: self.id(n), entry: self.entry(n, 2) }
    }

    fn delete(&self, n: u32) -> Update {
        Update::Delete { cookie: n.into(), id: self.id(n) }
    }
}

/// Checks one answer; gives the number of its update.
fn check(result: &UpdateResult, number: usize) -> Result<usize> {
    ensure!(result.status == UpdateStatus::Ok, "update {}: {:?}", result.cookie, result.status);
    let n = usize::try_from(result.cookie).ok().filter(|n| *n < number);
    n.with_context(|| format!("an answer for update {}, which there was not", result.cookie))
}

/// Fails if the device reported anything that a run without faults does not have. Table pressure is none of that.
fn unexpected(events: &mut Vec<NicEvent>) -> Result<()> {
    for event in events.drain(..) {
        if !matches!(event, NicEvent::TablePressure { .. } | NicEvent::Link { .. }) {
            bail!("the device reports {event:?}");
        }
    }
    Ok(())
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
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The figures of a device that is not alone on its core are lower, not wrong.
            let _ = cpu::pin(cores[1]);
            card.work();
        });
        let done = (|| {
            cpu::pin(cores[0])?;
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
        })();
        card.stop.store(true, Ordering::Relaxed);
        done
    })
}

/// Rules that come and go in the softpath and in the NIC.
struct Changer {
    datapath: Datapath,
    card: Card,
    nic: Fl1,
    entries: Entries,
    flows: Vec<Flow>,
    /// Flows that are in, from the oldest on: number and name.
    installed: std::collections::VecDeque<(u32, FlowId)>,
    next: u32,
    changes: u64,
}

impl Changer {
    fn new() -> Result<Self> {
        let mut datapath = Datapath::new(Config::default());
        let tuple = |n: u32| Tuple { src: 0x0a00_0000 | n, dst: 0x0b00_0001, sport: n as u16, dport: 2000 };
        for n in 0..FORWARDED {
            datapath.put(&flow(tuple(n), EXACT, n.into()))?;
        }
        let card = Card::new()?;
        // The driver waits for the device while it brings it up, so that needs a thread.
        let nic = std::thread::scope(|scope| {
            scope.spawn(|| card.work());
            let nic = card.open();
            card.stop.store(true, Ordering::Relaxed);
            nic
        })?;
        let entries = Entries::new(&nic.caps().tables)?;
        let flows = (FORWARDED..FORWARDED + 4096).map(|n| flow(tuple(n), EXACT, n.into())).collect();
        Ok(Self { datapath, card, nic, entries, flows, installed: Default::default(), next: 0, changes: 0 })
    }

    /// Puts `number` rules, and deletes as many of the oldest when there are many; waits for the NIC's answers.
    fn change(&mut self, number: u32) -> Result<()> {
        let mut updates = Vec::with_capacity(2 * number as usize);
        for _ in 0..number {
            let n = self.next % self.flows.len() as u32;
            self.installed.push_back((n, self.datapath.put(&self.flows[n as usize])?.id));
            updates.push(self.entries.insert(n));
            self.next += 1;
        }
        let old: Vec<(u32, FlowId)> =
            self.installed.drain(..self.installed.len().saturating_sub(1024)).collect();
        updates.extend(old.iter().map(|(n, _)| self.entries.delete(*n)));
        // Hardware first, then the softpath.
        self.through(&updates)?;
        let ids: Vec<FlowId> = old.iter().map(|(_, id)| *id).collect();
        ensure!(
            self.datapath.delete_all(&ids).iter().all(Option::is_some),
            "a flow was gone before its delete"
        );
        self.changes += updates.len() as u64;
        Ok(())
    }

    /// Updates through the NIC, which takes its steps here.
    fn through(&mut self, mut updates: &[Update]) -> Result<()> {
        let mut open = updates.len();
        let (mut results, mut events) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while open > 0 {
            let taken = self.nic.submit(updates)?;
            updates = &updates[taken..];
            self.nic.kick()?;
            self.card.function.model().step();
            self.nic.poll(&mut results, &mut events)?;
            unexpected(&mut events)?;
            for result in results.drain(..) {
                check(&result, self.flows.len())?;
                open -= 1;
            }
            ensure!(start.elapsed() < PATIENCE, "{open} updates have no answer");
        }
        Ok(())
    }

    /// Changes rules at a rate, for a while; gives the changes per second that came of it.
    fn run(&mut self, rate: u32, time: Duration) -> Result<f64> {
        let (start, before) = (Instant::now(), self.changes);
        let per_tick = f64::from(rate) * TICK.as_secs_f64();
        while start.elapsed() < time {
            let due = (start.elapsed().as_secs_f64() / TICK.as_secs_f64() + 1.0) * per_tick;
            let missing = due - (self.changes - before) as f64;
            if missing >= per_tick / 2.0 {
                // Each change puts one and deletes one. Not more than a few ticks at once after a pause.
                self.change((missing.min(4.0 * per_tick) / 2.0).ceil() as u32)?;
            } else {
                std::thread::sleep(TICK / 4);
            }
        }
        Ok((self.changes - before) as f64 / start.elapsed().as_secs_f64())
    }
}

/// Part two: forwarding beside changes.
fn beside(args: &UpdatesArgs, cores: &[usize], time: Duration) -> Result<Beside> {
    let mut changer = Changer::new()?;
    // So many are in that each further one pushes an old one out.
    changer.change(1024)?;
    let mut frames = Frames::default();
    for n in 0..FORWARDED {
        frames
            .push(&frame(Tuple { src: 0x0a00_0000 | n, dst: 0x0b00_0001, sport: n as u16, dport: 2000 }), 0);
    }
    let worker = changer.datapath.worker();
    // Parts in turn: alone, with changes, alone.
    let (to_worker, orders) = std::sync::mpsc::channel::<Duration>();
    let (answers, from_worker) = std::sync::mpsc::channel::<Run>();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Taken into the thread, so that it ends them when it ends.
            let (orders, answers) = (orders, answers);
            let pinned = cpu::pin(cores[1]);
            let mut forwarder = Forwarder::new(&frames, 0, IN_PORT, worker);
            forwarder.run(time / 4);
            while let Ok(time) = orders.recv() {
                if answers.send(forwarder.run(time)).is_err() {
                    break;
                }
            }
            pinned
        });
        let done = (|| {
            cpu::pin(cores[0])?;
            let part = |work: &mut dyn FnMut() -> Result<f64>| -> Result<(Speed, f64)> {
                to_worker.send(time)?;
                let rate = work()?;
                Ok((Speed::of(&[from_worker.recv()?]), rate))
            };
            let (before, _) = part(&mut || Ok(0.0))?;
            let (with, changes_per_s) = part(&mut || changer.run(args.rate, time))?;
            let (after, _) = part(&mut || Ok(0.0))?;
            for speed in [&before, &with, &after] {
                ensure!(speed.sent == speed.packets, "{} of {} packets were sent", speed.sent, speed.packets);
            }
            let alone = (before.mpps_cpu + after.mpps_cpu) / 2.0;
            let mpps_cpu = with.mpps_cpu;
            Ok(Beside { changes_per_s, mpps_cpu_alone: alone, mpps_cpu, speed_kept: mpps_cpu / alone })
        })();
        drop(to_worker);
        thread.join().map_err(|_| anyhow!("the worker's thread panicked"))??;
        done
    })
}

pub(super) fn run(args: &UpdatesArgs) -> Result<()> {
    let time = seconds(args.seconds)?;
    let cores = cpu::choose(args.core, 2)?;
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
        forwarding: beside(args, &cores, time)?,
    };
    super::print(&report, args.json)
}
