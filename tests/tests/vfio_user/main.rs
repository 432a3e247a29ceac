//! T2: the driver and the simulator as two processes with a vfio-user socket between them.

mod death;
mod hostile;
#[path = "../../../softpath/port/tests/namespace/mod.rs"]
mod namespace;
mod process;
mod replay;
mod speed;
mod wires;

use flowlift_bus::{BarAccess, BusError, IrqKind, PciFunction};
use flowlift_driver::nic::*;
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use process::*;

#[test]
fn the_function_is_what_the_page_says() {
    let sim = Simulator::start(&[]);
    let f = sim.connect();
    assert_eq!(f.config_read(0, 4).unwrap(), 0xf101_1d9b);
    assert_eq!(f.config_read(8, 4).unwrap(), 0x0200_0001);
    assert_eq!((f.bar(0).unwrap().size(), f.bar(0).unwrap().access()), (16 << 10, BarAccess::Trapped));
    assert_eq!((f.bar(2).unwrap().size(), f.bar(2).unwrap().access()), (8 << 10, BarAccess::Mapped));
    assert!(matches!(f.bar(1), Err(BusError::Unsupported(_))));
    assert_eq!(f.irq_info(IrqKind::Msix).unwrap().count, 2 + 4);
    assert_eq!(f.bar(0).unwrap().read::<u32>(0).unwrap(), u32::MAX, "memory space is off");
    f.config_write(4, 2, 2).unwrap();
    assert_eq!(f.bar(0).unwrap().read::<u32>(0).unwrap(), 0x3130_4c46, "MAGIC");
}

#[test]
fn tables_counters_and_slow_path_work_across_processes() {
    let mut sim = Simulator::start(&["--profile", "standard"]);
    let mut d = Driver::open(&sim);
    assert_eq!(d.nic.caps().ports.len(), 16);

    // A miss comes up, and goes out where it is told to.
    sim.inject(1, &tcp(2));
    let (info, frame) = d.slow();
    assert_eq!((info.port, frame), (NicPort(1), tcp(2)));
    assert!(d.nic.tx(SlowTx::Port(NicPort(2)), &tcp(2)).unwrap());
    assert_eq!(d.sent(&mut sim, 2), tcp(2));

    // A hit is forwarded, and counted before it is seen.
    let insert = Update::Insert { cookie: 1, id: at(5), entry: d.entry(2, &[NicAction::Output(NicPort(2))]) };
    assert_eq!(d.one(insert).status, UpdateStatus::Ok);
    for n in 1..=3u64 {
        sim.inject(1, &tcp(2));
        assert_eq!(d.sent(&mut sim, 2), tcp(2));
        assert_eq!((d.nic.counters(at(5)).packets, d.nic.counters(at(5)).bytes), (n, n * 58));
    }

    // Replaced: the other way.
    let entry = d.entry(2, &[NicAction::DecTtl, NicAction::Output(NicPort(1))]);
    assert_eq!(d.one(Update::Replace { cookie: 2, id: at(5), entry }).status, UpdateStatus::Ok);
    sim.inject(1, &tcp(2));
    assert_eq!(d.sent(&mut sim, 1)[22], 63, "the TTL");
    assert_eq!(sim.sent(2), None);

    // Deleted: a miss again, and the last counters are told.
    let last = d.one(Update::Delete { cookie: 3, id: at(5) });
    assert_eq!(last.counters.map(|c| c.packets), Some(4));
    sim.inject(1, &tcp(2));
    assert_eq!(d.slow().1, tcp(2));
    d.assert_lawful();

    drop(d);
    let log = sim.stop();
    assert!(log.contains("violations=0") && log.contains("dma_faults: 0"), "{log}");
}

#[test]
fn a_reset_brings_the_device_back_empty() {
    let mut sim = Simulator::start(&["--profile", "tiny"]);
    let mut d = Driver::open(&sim);
    let insert = Update::Insert { cookie: 1, id: at(0), entry: d.entry(2, &[NicAction::Output(NicPort(2))]) };
    assert_eq!(d.one(insert.clone()).status, UpdateStatus::Ok);
    d.nic.reset().unwrap();
    sim.inject(1, &tcp(2));
    assert_eq!(d.slow().1, tcp(2), "the entry is gone");
    assert_eq!(d.one(insert).status, UpdateStatus::Ok);
    sim.inject(1, &tcp(2));
    assert_eq!(d.sent(&mut sim, 2), tcp(2));
    d.assert_lawful();
}

#[test]
fn the_driver_survives_the_faults_of_a_device_in_another_process() {
    let spec = "lost_completion,duplicated_completion,reordered_completion,slow_completion";
    let sim = Simulator::start(&["--seed", "7", "--faults", spec]);
    let mut d = Driver::open(&sim);
    let updates: Vec<_> = (0..2000)
        .map(|n| Update::Insert {
            cookie: u64::from(n),
            id: at(n),
            entry: d.entry(n as u16, &[NicAction::Output(NicPort(2))]),
        })
        .collect();
    let results = d.run(&updates);
    assert_eq!(results.len(), updates.len());
    let failed: Vec<_> = results.iter().filter(|r| r.status != UpdateStatus::Ok).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(d.nic.stats().resent > 0, "no completion was lost: {:?}", d.nic.stats());
    d.assert_lawful();
}

#[test]
fn a_second_client_is_turned_away_and_a_wrong_path_says_so() {
    let sim = Simulator::start(&[]);
    let first = sim.connect();
    let second = VfioUser::connect(sim.socket(), VfioUserConfig::default());
    let text = second.err().expect("there is one device").to_string();
    assert!(text.contains("one client at a time"), "{text}");
    assert_eq!(first.config_read(0, 2).unwrap(), 0x1d9b, "the first one is not disturbed");
    let nowhere = VfioUser::connect("/nonexistent/socket", VfioUserConfig::default());
    assert!(matches!(nowhere, Err(BusError::Io { .. })));
}
