//! What the way between the processes costs. The figures are printed; asserted is only what holds on any machine.

use crate::process::*;
use flowlift_bus::PciFunction;
use flowlift_driver::nic::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::time::{Duration, Instant};

/// Median and 99th percentile.
fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn timed(n: usize, mut f: impl FnMut()) -> (Duration, Duration) {
    let once = |_| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    quantiles((0..n).map(once).collect())
}

#[test]
fn figures_of_the_way_between_processes() {
    let sim = Simulator::start(&["--profile", "standard"]);
    let mut d = Driver::open(&sim);

    let bar0 = d.function.bar(0).unwrap();
    let (median, worst) = timed(2000, || {
        (*bar0).read::<u32>(0x44).unwrap();
    });
    println!("trapped register read: median {median:?}, p99 {worst:?}");

    let interrupt = d.nic.interrupt().unwrap().try_clone_to_owned().unwrap();
    let entry = d.entry(1, &[NicAction::Output(NicPort(2))]);
    let (mut inserted, mut count) = (false, 0);
    let (median, worst) = timed(1000, || {
        let mut rest = [0; 8];
        let _ = nix::unistd::read(&interrupt, &mut rest);
        let update = if inserted {
            Update::Delete { cookie: 0, id: at(0) }
        } else {
            Update::Insert { cookie: 0, id: at(0), entry: entry.clone() }
        };
        inserted = !inserted;
        assert_eq!(d.nic.submit(&[update]).unwrap(), 1);
        d.nic.kick().unwrap();
        while d.results.len() == count {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&interrupt), PollFlags::POLLIN)];
            assert_ne!(poll(&mut fds, PollTimeout::from(60_000u16)).unwrap(), 0, "no interrupt came");
            let _ = nix::unistd::read(&interrupt, &mut rest);
            d.nic.poll(&mut d.results, &mut d.events).unwrap();
        }
        count = d.results.len();
    });
    println!("doorbell to interrupt and completion: median {median:?}, p99 {worst:?}");

    d.results.clear();
    let before = d.nic.stats();
    let updates: Vec<_> = (0..50_000u32)
        .map(|n| Update::Insert {
            cookie: u64::from(n),
            id: at(n),
            entry: d.entry(n as u16, &[NicAction::Output(NicPort(2))]),
        })
        .collect();
    let start = Instant::now();
    let results = d.run(&updates);
    let took = start.elapsed();
    let wrong = results.iter().filter(|r| r.status != UpdateStatus::Ok).count();
    let doorbells = d.nic.stats().doorbells - before.doorbells;
    println!(
        "{} inserts in {took:?}: {:.0} a second, {doorbells} doorbells, none of them trapped",
        updates.len(),
        updates.len() as f64 / took.as_secs_f64(),
    );
    assert_eq!(wrong, 0);
    d.assert_lawful();
}
