//! Updates per second through driver, ring and simulated device: `cargo run --release -p flowlift-driver --example rate
//! -- [ENTRIES]`.
//!
//! Once with the device in the driver's thread, where the processor time of each side is told apart, and once in a
//! thread of its own, one core for each side. Every completion is checked.

use flowlift_driver::fl1::{Fl1, Fl1Config, Platform};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{Entry, EntryId, Field, Nic, NicAction, NicPort, TableId, Update, UpdateStatus};
use flowlift_sim::{Config, FaultPlan, HostClock, Profile};
use nix::time::{ClockId, clock_gettime};
use smallvec::SmallVec;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

type Function = Arc<InProc<flowlift_sim::Fl1>>;
type Outcome<T> = Result<T, Box<dyn Error>>;

/// Updates per kick.
const BATCH: usize = 256;

struct Stepper {
    function: Function,
    start: Instant,
    inline: bool,
}

impl Platform for Stepper {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
    fn relax(&self) {
        if self.inline {
            self.function.model().step();
        }
    }
}

enum Kind {
    Insert,
    Replace,
    Delete,
}

/// An entry of table 0 that matches one destination address.
fn template(nic: &Fl1) -> Outcome<(Entry, usize)> {
    let t = nic.caps().table(TableId(0)).ok_or("no table 0")?;
    let f = t.fields.iter().find(|f| f.field == Field::Ipv4Dst).ok_or("no IPv4 destination")?;
    let n = usize::from(t.key_len);
    let mut mask = SmallVec::from_elem(0, n);
    let at = usize::from(f.offset);
    mask[at..at + 4].fill(0xff);
    let entry = Entry {
        priority: 0,
        key: SmallVec::from_elem(0, n),
        mask,
        actions: [NicAction::Output(NicPort(1))].into_iter().collect(),
    };
    Ok((entry, at))
}

/// Processor time of this thread in nanoseconds.
fn cpu_ns() -> Outcome<u64> {
    let t = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Runs one kind of update over all entries, and prints what it took.
fn pass(nic: &mut Fl1, function: Option<&Function>, kind: &Kind, n: u32, name: &str) -> Outcome<()> {
    let (entry, at) = template(nic)?;
    let id = EntryId { table: TableId(0), index: 0 };
    let one = match kind {
        Kind::Insert => Update::Insert { cookie: 0, id, entry },
        Kind::Replace => Update::Replace { cookie: 0, id, entry },
        Kind::Delete => Update::Delete { cookie: 0, id },
    };
    let mut batch = vec![one; BATCH];
    let (mut results, mut events) = (Vec::with_capacity(4096), vec![]);
    let (mut next, mut answered, mut sum) = (0u32, 0u32, 0u64);
    let (start, cpu, mut device) = (Instant::now(), cpu_ns()?, 0);
    while answered < n {
        let size = BATCH.min((n - next) as usize);
        for (i, update) in (next..).zip(&mut batch[..size]) {
            match update {
                Update::Insert { cookie, id, entry } | Update::Replace { cookie, id, entry } => {
                    (*cookie, id.index) = (i.into(), i);
                    entry.key[at..at + 4].copy_from_slice(&i.to_be_bytes());
                }
                Update::Delete { cookie, id } => (*cookie, id.index) = (i.into(), i),
            }
        }
        next += nic.submit(&batch[..size])? as u32;
        nic.kick()?;
        if let Some(f) = function {
            let before = cpu_ns()?;
            f.model().step();
            device += cpu_ns()? - before;
        }
        nic.poll(&mut results, &mut events)?;
        for r in results.drain(..) {
            if r.status != UpdateStatus::Ok {
                return Err(format!("update {}: {:?}", r.cookie, r.status).into());
            }
            sum += r.cookie;
            answered += 1;
        }
    }
    let rate = f64::from(n) / start.elapsed().as_secs_f64() / 1e6;
    let driver = (cpu_ns()? - cpu - device) / u64::from(n);
    match function {
        Some(_) => {
            println!("{name}: {rate:.2} M/s; driver {driver} ns, device {} ns each", device / u64::from(n))
        }
        None => println!("{name}: {rate:.2} M/s"),
    }
    if sum != u64::from(n) * (u64::from(n) - 1) / 2 {
        return Err("cookies are missing or doubled".into());
    }
    Ok(())
}

fn measure(name: &str, n: u32, inline: bool) -> Outcome<()> {
    let config = Config { seed: 1, faults: FaultPlan::default(), clock: Box::new(HostClock::default()) };
    let function = InProc::new(flowlift_sim::Fl1::new(Profile::large(), config), InProcConfig::default())?;
    let stop = Arc::new(AtomicBool::new(false));
    let thread = (!inline).then(|| {
        let (function, stop) = (function.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if function.model().step().is_idle() {
                    std::thread::yield_now();
                }
            }
        })
    });
    let platform = Arc::new(Stepper { function: function.clone(), start: Instant::now(), inline });
    let mut nic = Fl1::open(function.clone(), Fl1Config { platform, ..Default::default() })?;
    let before = nic.stats();
    let step = inline.then_some(&function);
    for (what, kind) in [("inserts", Kind::Insert), ("replaces", Kind::Replace), ("deletes", Kind::Delete)] {
        pass(&mut nic, step, &kind, n, &format!("{name}, {what}"))?;
    }
    let after = nic.stats();
    let per = (after.updates - before.updates) / (after.doorbells - before.doorbells).max(1);
    println!("{name}: {per} updates per doorbell, {} violations", nic.violations()?.total);
    stop.store(true, Ordering::Relaxed);
    if let Some(t) = thread {
        t.join().map_err(|_| "the device's thread panicked")?;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let n = std::env::args().nth(1).map_or(Ok(500_000), |a| a.parse())?;
    measure("one thread", n, true)?;
    measure("two threads", n, false)
}
