//! Bring-up, updates, read-back and counters, on a device without faults.

use crate::harness::*;
use flowlift_bus::PciFunction;
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::*;
use flowlift_sim::Profile;

#[test]
fn every_profile_comes_up_as_it_describes_itself() {
    for (profile, tables, ports, queues) in
        [(Profile::tiny(), 1, 4, 1), (Profile::standard(), 5, 16, 4), (Profile::large(), 7, 32, 8)]
    {
        let b = Bench::new(profile);
        let caps = b.nic.caps();
        assert_eq!((caps.tables.len(), caps.ports.len(), caps.slow_queues), (tables, ports, queues));
        assert_eq!(b.nic.state(), NicState::Ready);
        assert!(caps.ports.iter().all(|p| b.nic.link(p.port)), "wires with link are plugged in");
        assert_eq!(
            caps.ports.iter().filter(|p| !p.virtual_function).count(),
            if ports == 32 { 4 } else { 2 }
        );
        for t in &caps.tables {
            assert!(t.fields.iter().all(|f| f.offset + f.width.div_ceil(8) <= t.key_len), "{t:?}");
        }
        b.finish();
    }
}

#[test]
fn a_second_driver_starts_anew_and_the_first_leaves_nothing_mapped() {
    let mut b = Bench::new(Profile::tiny());
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(2))]);
    assert_eq!(b.insert(at(0, 3), entry.clone()), UpdateStatus::Ok);
    let Bench { function, nic, clock, wires, results, events } = b;
    drop(nic);
    assert_eq!(function.iommu().mappings(), 0);
    assert_eq!(function.config_read(4, 2).unwrap() & 4, 0, "bus master is off");
    let nic = Fl1::open(function.clone(), config(&function, &clock)).unwrap();
    let mut b = Bench { function, nic, clock, wires, results, events };
    assert_eq!(b.read(at(0, 3)), None);
    assert_eq!(b.insert(at(0, 3), entry), UpdateStatus::Ok);
    b.finish();
}

#[test]
fn insert_replace_delete_and_read_back() {
    let mut b = Bench::new(Profile::standard());
    for table in b.nic.caps().tables.iter().map(|t| t.id).filter(|t| ![1].contains(&t.0)).collect::<Vec<_>>()
    {
        let id = EntryId { table, index: 5 };
        let entry = b.entry(table, &to_host(9), &[NicAction::DecTtl, NicAction::Output(NicPort(2))]);
        assert_eq!(b.insert(id, entry.clone()), UpdateStatus::Ok, "table {}", table.0);
        assert_eq!(b.read(id), Some(entry.clone()));
        let other = Entry { actions: [NicAction::PopVlan, NicAction::Output(NicPort(3))].into(), ..entry };
        let done = b.one(Update::Replace { cookie: 1 << 63, id, entry: other.clone() });
        assert_eq!((done.cookie, done.status), (1 << 63, UpdateStatus::Ok));
        assert_eq!(b.read(id), Some(other));
        let gone = b.one(Update::Delete { cookie: 2, id });
        assert_eq!((gone.status, gone.counters), (UpdateStatus::Ok, Some(EntryCounters::default())));
        assert_eq!(b.read(id), None);
        assert_eq!(b.one(Update::Delete { cookie: 3, id }).status, UpdateStatus::NotFound);
    }
    b.finish();
}

#[test]
fn an_encoded_entry_is_installed_as_it_is_and_nothing_else_is() {
    let mut b = Bench::new(Profile::standard());
    let entry = b.entry(TableId(0), &to_host(9), &[NicAction::DecTtl, NicAction::Output(NicPort(2))]);
    let mut bytes = b"before".to_vec();
    b.nic.encode(TableId(0), &entry, &mut bytes).unwrap();
    let mut bytes = bytes.split_off(6);
    // Once more elsewhere: the place is not the bytes'.
    for (index, status) in [(5, UpdateStatus::Ok), (6, UpdateStatus::Duplicate)] {
        assert!(b.nic.submit_encoded(index, at(0, index as u32), &mut bytes).unwrap());
        assert!(!b.nic.submit_encoded(9, at(0, index as u32), &mut bytes).unwrap(), "one under way");
        b.nic.kick().unwrap();
        b.until("an answer", |b| !b.results.is_empty());
        let done: Vec<_> = b.results.drain(..).map(|r| (r.cookie, r.status)).collect();
        assert_eq!(done, [(index, status)]);
    }
    assert_eq!((b.read(at(0, 5)), b.read(at(0, 6))), (Some(entry), None));
    let mut refused = |id, bytes: &mut [u8]| {
        let error = b.nic.submit_encoded(1, id, bytes).unwrap_err();
        assert!(matches!(error, NicError::Invalid(_)), "{error}");
    };
    refused(at(3, 5), &mut bytes.clone());
    refused(at(0, u32::MAX), &mut bytes.clone());
    for len in [0, 31, 64, bytes.len() - 1] {
        refused(at(0, 7), &mut bytes[..len].to_vec());
    }
    for (byte, value) in [(0, 3), (1, 1), (4, 1)] {
        let mut other = bytes.clone();
        other[byte] = value;
        refused(at(0, 7), &mut other);
    }
    b.finish();
}

#[test]
fn every_kind_of_action_is_read_back_as_it_was_given() {
    let mut b = Bench::new(Profile::standard());
    let mut value = [0; 16];
    value[12..].copy_from_slice(&[172, 16, 0, 9]);
    let mut mask = [0; 16];
    mask[12..].fill(0xff);
    let lists: [&[NicAction]; 6] = [
        &[],
        &[NicAction::Trap],
        &[NicAction::SetField { field: Field::Ipv4Dst, value, mask }, NicAction::Output(NicPort(1))],
        &[
            NicAction::PushVlan { tpid: 0x88a8, tci: 0x6064 },
            NicAction::Output(NicPort(16)),
            NicAction::PopVlan,
        ],
        &[NicAction::Trunc(64), NicAction::Output(NicPort(3)), NicAction::Output(NicPort(4))],
        &[NicAction::SetMetadata(0xdead_beef), NicAction::Goto(Stage(1))],
    ];
    for (i, actions) in (0..).zip(lists) {
        let entry = b.entry(TableId(0), &to_host(i as u8), actions);
        assert_eq!(b.insert(at(0, i), entry.clone()), UpdateStatus::Ok, "{actions:?}");
        let back = b.read(at(0, i));
        assert_eq!(back.as_ref(), Some(&entry));
        let mut bytes = vec![];
        b.nic.encode(TableId(0), &entry, &mut bytes).unwrap();
        assert_eq!(b.nic.decode(TableId(0), &bytes).unwrap(), entry);
    }
    b.finish();
}

#[test]
fn refusals_have_their_cause() {
    let mut b = Bench::new(Profile::tiny());
    let out = [NicAction::Output(NicPort(1))];
    let entry = b.entry(TableId(0), &to_host(1), &out);
    assert_eq!(b.insert(at(0, 0), entry.clone()), UpdateStatus::Ok);
    assert_eq!(b.insert(at(0, 1), entry.clone()), UpdateStatus::Duplicate);
    assert_eq!(
        b.insert(at(0, 0), b.entry(TableId(0), &to_host(2), &out)),
        UpdateStatus::Rejected(4),
        "in use"
    );
    let replaced = b.one(Update::Replace { cookie: 1, id: at(0, 9), entry: entry.clone() });
    assert_eq!(replaced.status, UpdateStatus::NotFound);
    // In_port is exact: half a mask is not its kind.
    let half = b.entry(TableId(0), &[(Field::InPort, 0, 0xff)], &out);
    assert_eq!(b.insert(at(0, 2), half), UpdateStatus::Rejected(9));
    for bad in [
        Update::Insert { cookie: 1, id: at(0, 16), entry: entry.clone() },
        Update::Insert { cookie: 1, id: at(1, 0), entry: entry.clone() },
        Update::Insert {
            cookie: 1,
            id: at(0, 4),
            entry: b.entry(TableId(0), &to_host(3), &[NicAction::DecTtl]),
        },
    ] {
        assert!(matches!(b.nic.submit(std::slice::from_ref(&bad)), Err(NicError::Invalid(_))), "{bad:?}");
    }
    let good = Update::Delete { cookie: 5, id: at(0, 0) };
    let bad = Update::Delete { cookie: 6, id: at(0, 99) };
    assert_eq!(b.nic.submit(&[good, bad]).unwrap(), 1, "what comes before the bad one is taken");
    b.nic.kick().unwrap();
    b.until("the delete", |b| !b.results.is_empty());
    assert_eq!(b.nic.state(), NicState::Ready, "a caller's mistake is not the device's");
    b.finish();
}

#[test]
fn masks_of_a_hash_table_run_out() {
    let mut b = Bench::new(Profile::standard());
    let mut last = UpdateStatus::Ok;
    for i in 0..33 {
        let matches = [(Field::EthDst, 1 << i, (1u128 << (i + 1)) - 1)];
        last = b.insert(at(0, i), b.entry(TableId(0), &matches, &[]));
        assert_eq!(last == UpdateStatus::Ok, i < 32, "{i}: {last:?}");
    }
    assert_eq!(last, UpdateStatus::MasksFull);
    b.finish();
}

#[test]
fn a_batch_takes_one_doorbell() {
    let mut b = Bench::new(Profile::standard());
    let before = b.nic.stats().doorbells;
    let updates: Vec<_> = (0..1000u32)
        .map(|i| {
            let dst = u128::from(0x0b00_0000 + i);
            let matches = [(Field::EthType, 0x800, 0xffff), (Field::Ipv4Dst, dst, 0xffff_ffff)];
            let entry = b.entry(TableId(0), &matches, &[NicAction::Output(NicPort(2))]);
            Update::Insert { cookie: i.into(), id: at(0, i), entry }
        })
        .collect();
    let results = b.run(&updates);
    assert!(results.iter().all(|r| r.status == UpdateStatus::Ok));
    let mut cookies: Vec<_> = results.iter().map(|r| r.cookie).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..1000));
    assert_eq!(b.nic.stats().doorbells - before, 1, "1000 inserts of 3 slots fit in the ring");
    b.finish();
}

#[test]
fn an_entry_has_one_update_in_flight() {
    let mut b = Bench::new(Profile::tiny());
    let entry = b.entry(TableId(0), &to_host(1), &[]);
    let updates = [
        Update::Insert { cookie: 1, id: at(0, 0), entry: entry.clone() },
        Update::Delete { cookie: 2, id: at(0, 0) },
        Update::Insert { cookie: 3, id: at(0, 0), entry },
    ];
    assert_eq!(b.nic.submit(&updates).unwrap(), 1);
    b.nic.kick().unwrap();
    b.until("the first", |b| b.results.len() == 1);
    b.results.clear();
    let rest = b.run(&updates[1..]);
    assert_eq!(
        rest.iter().map(|r| (r.cookie, r.status)).collect::<Vec<_>>(),
        [(2, UpdateStatus::Ok), (3, UpdateStatus::Ok)]
    );
    b.finish();
}

#[test]
fn snapshots_agree_with_the_counter_page() {
    let mut b = Bench::new(Profile::tiny());
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(2))]);
    assert_eq!(b.insert(at(0, 7), entry), UpdateStatus::Ok);
    b.inject(1, &tcp(1, 2, 80));
    b.nic.snapshot(TableId(0), 0, 16).unwrap();
    assert!(b.nic.snapshot(TableId(0), 1, 16).is_err());
    let mut got = vec![];
    b.until("the snapshot", |b| {
        got.extend(std::iter::from_fn(|| b.nic.take_snapshot()));
        got.len() == 16
    });
    for (i, (id, counters)) in (0..).zip(got) {
        assert_eq!(id, at(0, i));
        assert_eq!(counters.is_some(), i == 7);
        assert_eq!(counters.unwrap_or_default(), b.nic.counters(id));
    }
    assert_eq!(b.nic.counters(at(0, 7)).packets, 1);
    b.finish();
}

#[test]
fn a_mistake_shows_in_the_violation_register() {
    let b = Bench::new(Profile::tiny());
    assert_eq!(b.nic.violations().unwrap().total, 0);
    b.function.bar(0).unwrap().write::<u32>(0, 1).unwrap();
    let v = b.nic.violations().unwrap();
    assert_eq!((v.total, v.count, v.code, v.info), (1, 1, 3, 0), "READ_ONLY at offset 0");
}

#[test]
fn another_device_is_refused_by_name() {
    let b = Bench::new(Profile::tiny());
    b.function.remove();
    let again = Fl1::open(b.function.clone(), config(&b.function, &b.clock));
    assert!(matches!(again, Err(NicError::Gone(name)) if name == "sim"));
}

#[test]
fn a_completion_and_a_packet_raise_the_interrupt() {
    let mut b = Bench::new(Profile::tiny());
    let raised = |b: &Bench| nix::unistd::read(b.nic.interrupt().unwrap(), &mut [0; 8]).is_ok();
    raised(&b);
    assert!(!raised(&b), "reading clears it");
    let update = Update::Delete { cookie: 1, id: at(0, 0) };
    assert_eq!(b.nic.submit(&[update]).unwrap(), 1);
    b.function.model().step();
    assert!(!raised(&b), "no doorbell, no completion");
    b.nic.kick().unwrap();
    b.function.model().step();
    assert!(raised(&b));
    b.wires[0].inject(tcp(1, 2, 3)).unwrap();
    b.function.model().step();
    assert!(raised(&b));
    b.finish();
}
