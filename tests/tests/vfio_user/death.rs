//! Either side is killed.

use crate::process::*;
use flowlift_bus::{BusError, DmaDirection, DmaMem, PciFunction};
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::*;
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Environment variable that makes [`a_driver_to_be_killed`] one.
const VICTIM: &str = "FLOWLIFT_TEST_VICTIM";

#[test]
fn a_killed_simulator_is_a_surprise_removal() {
    let mut sim = Simulator::start(&[]);
    // Who waits for an answer waits longer than this test has patience.
    let function = VfioUser::connect(sim.socket(), VfioUserConfig { deadline: 10 * PATIENCE }).unwrap();
    let nic = Fl1::open(function.clone(), Fl1Config::default()).unwrap();
    let mut d = Driver { function, nic, results: vec![], events: vec![] };
    let entry = d.entry(2, &[NicAction::Output(NicPort(2))]);
    assert_eq!(d.one(Update::Insert { cookie: 1, id: at(0), entry: entry.clone() }).status, UpdateStatus::Ok);
    sim.inject(1, &tcp(2));
    d.sent(&mut sim, 2);
    d.nic.submit(&[Update::Insert { cookie: 2, id: at(1), entry }]).unwrap();

    let start = Instant::now();
    sim.kill();
    d.until("the end", |d| d.nic.state() == NicState::Gone);
    let noticed = start.elapsed();
    println!("a killed simulator is noticed after {noticed:?}");
    assert!(d.events.contains(&NicEvent::Gone), "{:?}", d.events);

    // Everything answers at once, that is, without waiting for an answer's deadline.
    let start = Instant::now();
    let f = &d.function;
    assert!(matches!(f.bar(0).unwrap().read::<u32>(0), Err(BusError::Gone(_))));
    assert_eq!(f.bar(2).unwrap().read::<u32>(0).unwrap(), u32::MAX);
    assert!(matches!(f.config_read(0, 4), Err(BusError::Gone(_))));
    assert!(matches!(f.reset(), Err(BusError::Gone(_))));
    let mem = Arc::new(DmaMem::new(4096).unwrap());
    assert!(matches!(f.dma().map(mem, 0x100_0000, DmaDirection::Bidirectional), Err(BusError::Gone(_))));
    let error = f.lifecycle().error.unwrap();
    assert_eq!(nix_poll(error), 1, "the ERR eventfd is signalled");
    assert_eq!(d.nic.counters(at(0)).packets, 1, "counters outlive the device");
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    drop(d);

    // The next one at the same place is a new device.
    sim.restart(&[]);
    let mut d = Driver::open(&sim);
    sim.inject(1, &tcp(2));
    assert_eq!(d.slow().1, tcp(2));
    d.assert_lawful();
}

#[test]
fn a_killed_driver_leaves_the_device_ready_for_the_next() {
    let mut sim = Simulator::start(&[]);
    for round in 0..3 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "death::a_driver_to_be_killed", "--ignored", "--nocapture"])
            .env(VICTIM, sim.socket())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Its entry sends frames from port 1 to port 2: then it is in the middle of its work.
        let start = Instant::now();
        let mut hit = None;
        while hit.is_none() {
            assert!(start.elapsed() < PATIENCE, "the other driver did not come up, round {round}");
            assert!(victim.try_wait().unwrap().is_none(), "the other driver ended by itself, round {round}");
            let mut frame = tcp(2);
            frame[54..].copy_from_slice(b"LIVE");
            sim.inject(1, &frame);
            std::thread::sleep(Duration::from_millis(5));
            hit = sim.sent(2);
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        sim.assert_alive();
        let f = sim.connect();
        assert_eq!(f.config_read(4, 2).unwrap(), 0, "memory and Bus Master, round {round}");
        // Bus Master is off: nobody takes frames or sends any.
        while sim.sent(2).is_some() {}
        f.config_write(4, 2, 2).unwrap();
        assert_eq!(f.bar(2).unwrap().read::<u32>(0).unwrap(), 0, "doorbells, round {round}");
        drop(f);
        let mut d = Driver::open(&sim);
        // What was left on the wire comes first.
        let insert =
            Update::Insert { cookie: 1, id: at(0), entry: d.entry(3, &[NicAction::Output(NicPort(2))]) };
        assert_eq!(d.one(insert).status, UpdateStatus::Ok, "the tables are empty, round {round}");
        sim.inject(1, &tcp(3));
        assert_eq!(d.sent(&mut sim, 2), tcp(3));
        d.assert_lawful();
    }
    let log = sim.stop();
    assert!(log.contains("broken: 0"), "{log}");
}

#[test]
#[ignore = "it is the other process of `a_killed_driver_leaves_the_device_ready_for_the_next`"]
fn a_driver_to_be_killed() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let function = VfioUser::connect(path, VfioUserConfig::default()).unwrap();
    let nic = Fl1::open(function.clone(), Fl1Config::default()).unwrap();
    let mut d = Driver { function, nic, results: vec![], events: vec![] };
    let entry = d.entry(2, &[NicAction::Output(NicPort(2))]);
    for n in 0.. {
        // Commands under way at every moment.
        d.one(Update::Insert { cookie: 1, id: at(n % 1000), entry: entry.clone() });
        d.one(Update::Delete { cookie: 1, id: at(n % 1000) });
        d.nic.tx(SlowTx::Pipeline(NicPort(1)), &tcp(2)).unwrap();
        d.nic.rx(64, &mut |_, _| {}).unwrap();
    }
}

#[test]
fn the_order_to_stop_asks_for_the_device_and_ends_cleanly() {
    let sim = Simulator::start(&[]);
    let d = Driver::open(&sim);
    let request = d.function.lifecycle().request.unwrap();
    assert_eq!(nix_poll(request), 0);
    sim.stop();
    assert_eq!(nix_poll(request), 1, "REQ came before the end");
}

/// Number of descriptors that are readable: 0 or 1.
fn nix_poll(fd: std::os::fd::BorrowedFd<'_>) -> i32 {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap()
}
