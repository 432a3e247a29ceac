//! Forwarding while rules change: what the changes leave of its speed.
//!
//! In the softpath, one core forwards and the other one changes rules of the same table, under the mask that the forwarded
//! packets match, each of them in a NIC too. In the NIC, the device's core forwards frames of its wire by the table that
//! the driver on the other core changes at the same time: there it is one core that does both.

use super::card::{Card, CircleWire, Entries, PATIENCE, check, unexpected};
use super::cpu;
use super::forward::{Forwarder, Frames, Run, Speed};
use super::traffic::{EXACT, IN_PORT, Tuple, flow, frame};
use anyhow::{Result, anyhow, ensure};
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::{Nic, Update};
use flowlift_flow::Flow;
use flowlift_softpath::{Config, Datapath, FlowId};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Flows that the forwarded packets belong to.
const FORWARDED: u32 = 1000;
/// Flows that come and go, and how many of them are in.
const CHANGING: u32 = 4096;
const PRESENT: usize = 1024;
/// How often rules change.
const TICK: Duration = Duration::from_millis(1);

/// Forwarding while rules change.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    /// Rules that changed in a second.
    changes_per_s: f64,
    /// Without changes, before and after; million packets in a second of CPU time.
    mpps_cpu_alone: f64,
    /// With changes.
    mpps_cpu: f64,
    /// What is left of the speed.
    speed_kept: f64,
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { changes_per_s, mpps_cpu_alone, mpps_cpu, speed_kept } = self;
        write!(
            f,
            "{mpps_cpu_alone:.2} Mpps alone, {mpps_cpu:.2} while {changes_per_s:.0} rules change in a second ({:.0} %)",
            100.0 * speed_kept
        )
    }
}

fn tuple(n: u32) -> Tuple {
    Tuple { src: 0x0a00_0000 | n, dst: 0x0b00_0001, sport: n as u16, dport: 2000 }
}

/// The packets that are forwarded.
fn frames() -> Frames {
    let mut frames = Frames::default();
    (0..FORWARDED).for_each(|n| frames.push(&frame(tuple(n)), 0));
    frames
}

/// Changes rules at a rate, for a while; `change` changes two for each of the number that it is given. Gives the changes
/// per second that came of it.
fn paced(rate: u32, time: Duration, mut change: impl FnMut(u32) -> Result<()>) -> Result<f64> {
    let (start, mut changes) = (Instant::now(), 0u64);
    let per_tick = f64::from(rate) * TICK.as_secs_f64();
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() / TICK.as_secs_f64() + 1.0) * per_tick;
        let missing = due - changes as f64;
        if missing >= per_tick / 2.0 {
            // Each change puts one and deletes one. Not more than a few ticks at once after a pause.
            let number = (missing.min(4.0 * per_tick) / 2.0).ceil() as u32;
            change(number)?;
            changes += 2 * u64::from(number);
        } else {
            std::thread::sleep(TICK / 4);
        }
    }
    Ok(changes as f64 / start.elapsed().as_secs_f64())
}

/// Puts updates through the NIC and waits for their answers; `step` lets the device work, if it has no thread.
fn through(nic: &mut Fl1, mut updates: &[Update], step: impl Fn()) -> Result<()> {
    let mut open = updates.len();
    let (mut results, mut events) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while open > 0 {
        let taken = nic.submit(updates)?;
        updates = &updates[taken..];
        nic.kick()?;
        step();
        nic.poll(&mut results, &mut events)?;
        unexpected(&mut events)?;
        for result in results.drain(..) {
            check(&result, usize::MAX)?;
            open -= 1;
        }
        ensure!(start.elapsed() < PATIENCE, "{open} updates have no answer");
    }
    Ok(())
}

/// Rules that come and go in the softpath and in the NIC.
struct Changer {
    datapath: Datapath,
    card: Card,
    nic: Fl1,
    entries: Entries,
    flows: Vec<Flow>,
    /// Flows that are in, from the oldest on: number and name.
    installed: VecDeque<(u32, FlowId)>,
    next: u32,
}

impl Changer {
    fn new() -> Result<Self> {
        let mut datapath = Datapath::new(Config::default());
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
        let flows = (FORWARDED..FORWARDED + CHANGING).map(|n| flow(tuple(n), EXACT, n.into())).collect();
        Ok(Self { datapath, card, nic, entries, flows, installed: VecDeque::new(), next: 0 })
    }

    /// Puts `number` rules, and deletes as many of the oldest when there are many; waits for the NIC's answers.
    fn change(&mut self, number: u32) -> Result<()> {
        let mut updates = Vec::with_capacity(2 * number as usize);
        for _ in 0..number {
            let n = self.next % CHANGING;
            self.installed.push_back((n, self.datapath.put(&self.flows[n as usize])?.id));
            updates.push(self.entries.insert(n));
            self.next += 1;
        }
        let old: Vec<(u32, FlowId)> =
            self.installed.drain(..self.installed.len().saturating_sub(PRESENT)).collect();
        updates.extend(old.iter().map(|(n, _)| self.entries.delete(*n)));
        // Hardware first, then the softpath.
        let function = &self.card.function;
        through(&mut self.nic, &updates, || {
            function.model().step();
        })?;
        let ids: Vec<FlowId> = old.iter().map(|(_, id)| *id).collect();
        ensure!(
            self.datapath.delete_all(&ids).iter().all(Option::is_some),
            "a flow was gone before its delete"
        );
        Ok(())
    }
}

/// The softpath forwards on the second core, and its rules and the NIC's change on the first.
pub(super) fn softpath(rate: u32, cores: &[usize], time: Duration) -> Result<Beside> {
    let mut changer = Changer::new()?;
    // So many are in that each further one pushes an old one out.
    changer.change(PRESENT as u32)?;
    let frames = frames();
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
            let (with, changes_per_s) = part(&mut || paced(rate, time, |n| changer.change(n)))?;
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

/// The simulated NIC forwards on the second core, by a table that the driver changes from the first.
pub(super) fn nic(rate: u32, cores: &[usize], time: Duration) -> Result<Beside> {
    let card = Card::new()?;
    let (ingress, _) = CircleWire::new(frames());
    let (egress, sent) = CircleWire::new(Frames::default());
    card.driven(cores, || {
        let mut nic = card.open()?;
        let entries = Entries::new(&nic.caps().tables)?;
        let forwarded: Vec<Update> = (0..FORWARDED).map(|n| entries.insert(n)).collect();
        through(&mut nic, &forwarded, || {})?;
        let mut next = 0;
        let mut change = |number: u32| {
            let range = next..next + number;
            next += number;
            let id = |n: u32| FORWARDED + n % CHANGING;
            let inserts = range.clone().map(|n| entries.insert(id(n)));
            let old = range.filter_map(|n| n.checked_sub(PRESENT as u32));
            let updates: Vec<Update> = inserts.chain(old.map(|n| entries.delete(id(n)))).collect();
            through(&mut nic, &updates, || {})
        };
        change(PRESENT as u32)?;
        {
            // Frames come from here on, so that none of them misses.
            let mut model = card.function.model();
            ensure!(model.plug(1, Box::new(ingress)) && model.plug(2, Box::new(egress)), "no such port");
        }
        let taken = || {
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            (read(&card.frames), read(&card.busy_ns))
        };
        let part = |work: &mut dyn FnMut() -> Result<f64>| -> Result<(f64, f64)> {
            let before = taken();
            let rate = work()?;
            let after = taken();
            Ok(((after.0 - before.0) as f64 * 1e3 / (after.1 - before.1) as f64, rate))
        };
        let mut alone = || {
            std::thread::sleep(time);
            Ok(0.0)
        };
        std::thread::sleep(time / 4);
        let (before, _) = part(&mut alone)?;
        let (mpps_cpu, changes_per_s) = part(&mut || paced(rate, time, &mut change))?;
        let (after, _) = part(&mut alone)?;
        let violations = nic.violations()?;
        ensure!(violations.total == 0, "the device noticed {violations:?}");
        let alone = (before + after) / 2.0;
        Ok(Beside { changes_per_s, mpps_cpu_alone: alone, mpps_cpu, speed_kept: mpps_cpu / alone })
    })
    .and_then(|beside| {
        let (taken, sent) = (card.frames.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
        ensure!(taken == sent && sent > 0, "{sent} of {taken} frames were sent");
        Ok(beside)
    })
}
