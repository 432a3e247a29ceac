//! What tests/syscalls watches: polls a NIC of another process and updates its tables, with a mark before and after each
//! stretch of work: `quiet SOCKET`, where `flowlift-sim` listens.
//!
//! A mark is a look at a path that is not there, `/flowlift-mark/KIND/begin` and `/flowlift-mark/KIND/end/POLLS`, which strace
//! shows. The driver looks at the device's health on its own after so many polls, which takes register reads; POLLS says
//! how often that can have been.

use flowlift_bus::PciFunction;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::{
    Entry, EntryId, Field, Nic, NicAction, NicEvent, NicPort, TableId, Update, UpdateResult, UpdateStatus,
};
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use nix::unistd::{AccessFlags, access};
use smallvec::SmallVec;
use std::error::Error;
use std::time::{Duration, Instant};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Stretches of each kind.
const STRETCHES: u32 = 50;
/// Polls of a stretch that only polls.
const POLLS: u32 = 1000;
/// Updates of a stretch that updates.
const UPDATES: usize = 256;

fn mark(what: &str) {
    // It is not there: being asked for is all that it is for.
    let _ = access(format!("/flowlift-mark/{what}").as_str(), AccessFlags::F_OK);
}

/// A driver with what it fills.
struct Driver {
    nic: Fl1,
    results: Vec<UpdateResult>,
    events: Vec<NicEvent>,
    updates: Vec<Update>,
}

impl Driver {
    fn poll(&mut self) -> Outcome {
        self.nic.rx(64, &mut |_, _| {})?;
        Ok(self.nic.poll(&mut self.results, &mut self.events)?)
    }

    fn polls(&mut self) -> Outcome<u32> {
        for _ in 0..POLLS {
            self.poll()?;
        }
        Ok(POLLS)
    }

    /// Carries out all updates, in one batch; how many polls that took.
    fn update(&mut self) -> Outcome<u32> {
        if self.nic.submit(&self.updates)? != self.updates.len() {
            return Err("the ring does not take a batch".into());
        }
        self.nic.kick()?;
        let (start, mut polls) = (Instant::now(), 0);
        while self.results.len() < self.updates.len() {
            self.poll()?;
            polls += 1;
            std::hint::spin_loop();
            if start.elapsed() > Duration::from_secs(10) {
                return Err(format!("{} of {UPDATES} updates in 10 s", self.results.len()).into());
            }
        }
        match self.results.drain(..).find(|r| r.status != UpdateStatus::Ok) {
            Some(r) => Err(format!("update {}: {:?}", r.cookie, r.status).into()),
            None => Ok(polls),
        }
    }
}

fn main() -> Outcome {
    let socket = std::env::args().nth(1).ok_or("quiet SOCKET")?;
    let function = VfioUser::connect(socket, VfioUserConfig::default())?;
    // Health is then looked at by the number of polls alone.
    let config = Fl1Config { check_interval: Duration::from_secs(3600), ..Default::default() };
    let nic = Fl1::open(function.clone(), config)?;
    let table = nic.caps().table(TableId(0)).ok_or("no table 0")?;
    let field = table.fields.iter().find(|f| f.field == Field::Ipv4Dst).ok_or("no IPv4 destination")?;
    let (len, at) = (usize::from(table.key_len), usize::from(field.offset));
    let entry = |host: u32| {
        let (mut key, mut mask) = (SmallVec::from_elem(0, len), SmallVec::from_elem(0, len));
        key[at..at + 4].copy_from_slice(&host.to_be_bytes());
        mask[at..at + 4].fill(0xff);
        Entry { priority: 0, key, mask, actions: [NicAction::Output(NicPort(2))].into_iter().collect() }
    };
    let ids = (0..UPDATES as u32).map(|index| (index, EntryId { table: TableId(0), index }));
    let inserts = ids.clone().map(|(n, id)| Update::Insert { cookie: n.into(), id, entry: entry(n) });
    let replaces = ids.map(|(n, id)| Update::Replace { cookie: n.into(), id, entry: entry(n) });
    let (results, events) = (Vec::with_capacity(4 * UPDATES), Vec::with_capacity(64));
    let mut driver = Driver { nic, results, events, updates: inserts.collect() };
    driver.update()?;
    driver.updates = replaces.collect();
    // What is allocated once is allocated now.
    driver.update()?;
    driver.polls()?;
    let before = driver.nic.stats();
    for _ in 0..STRETCHES {
        mark("poll/begin");
        let polls = driver.polls()?;
        mark(&format!("poll/end/{polls}"));
        mark("update/begin");
        let polls = driver.update()?;
        mark(&format!("update/end/{polls}"));
    }
    let after = driver.nic.stats();
    println!(
        "{} polls and {} updates, {} doorbells, {} violations, {:?}",
        STRETCHES * POLLS,
        after.updates - before.updates,
        after.doorbells - before.doorbells,
        driver.nic.violations()?.total,
        function.bar(2)?.access()
    );
    Ok(())
}
