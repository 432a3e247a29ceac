//! A device that lies: an error that names the cause, never a panic, a call without end, or an access outside the buffers.

use super::model::{Lies, open};
use super::working::{entry, insert};
use flowlift_driver::nic::{EntryId, Nic, NicPort, NicState, SlowTx, TableId, Update};
use proptest::prelude::*;
use std::cell::Cell;

/// Opens the device and uses everything there is; what errors it met, and how it ended.
fn drive(lies: Lies, after: Lies, rounds: u32) -> (Vec<String>, Option<NicState>) {
    let mut errors = vec![];
    let (function, nic) = open(lies);
    let mut nic = match nic {
        Ok(nic) => nic,
        Err(e) => return (vec![e.to_string()], None),
    };
    function.model().lies = after;
    let (mut results, mut events) = (vec![], vec![]);
    for n in 0..rounds {
        let index = n % 32;
        let id = EntryId { table: TableId(60), index };
        let updates = match n / 32 % 3 {
            0 => insert(index, entry(index as u8, n % 2 == 0, &[2])),
            1 => Update::Replace { cookie: 1, id, entry: entry(index as u8, n % 2 == 0, &[2, 3]) },
            _ => Update::Delete { cookie: 2, id },
        };
        errors.extend(nic.submit(&[updates]).err().map(|e| e.to_string()));
        errors.extend(nic.kick().err().map(|e| e.to_string()));
        errors.extend(nic.tx(SlowTx::Port(NicPort(1)), &[n as u8; 64]).err().map(|e| e.to_string()));
        function.model().receive(1 + n % 2, &[n as u8; 64]);
        function.model().link_changed(1 + n % 2, n % 3 == 0);
        errors.extend(nic.poll(&mut results, &mut events).err().map(|e| e.to_string()));
        errors.extend(nic.rx(16, &mut |_, f| assert!(f.len() <= 256)).err().map(|e| e.to_string()));
        if nic.state() == NicState::Failed {
            errors.extend(nic.reset().err().map(|e| e.to_string()));
        }
    }
    assert!(results.len() <= rounds as usize, "more answers than updates");
    // A device that lies may go on while the bus is off for it; an honest one never meets the IOMMU.
    if lies.is_honest() && after.is_honest() {
        assert_eq!(function.iommu().fault_count(), 0, "an access outside what was given");
    }
    (errors, Some(nic.state()))
}

#[test]
fn an_honest_device_is_believed() {
    let (errors, state) = drive(Lies::default(), Lies::default(), 300);
    // Port 3 is none, which is the driver's caller's mistake, and it says so.
    assert!(errors.iter().all(|e| e.contains("not possible")), "{errors:?}");
    assert_eq!(state, Some(NicState::Ready));
}

/// A device that answers at random, for 1,000 seeds.
#[test]
fn a_thousand_liars_are_survived() {
    let rate = prop_oneof![Just(0u16), 0u16..200, 0u16..20_000];
    let lies =
        (any::<u64>(), rate.clone(), rate.clone(), rate.clone(), rate, prop_oneof![Just(0u32), 1u32..800]);
    let lies = lies.prop_map(|(seed, registers, descriptors, refusals, silences, gone_after)| Lies {
        seed,
        registers,
        descriptors,
        refusals,
        silences,
        gone_after,
    });
    let (opened, found_out, survived) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |cell: &Cell<u32>, it: bool| cell.set(cell.get() + u32::from(it));
    let config = ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
    let outcome =
        proptest::test_runner::TestRunner::new(config).run(&(lies, any::<bool>()), |(lies, late)| {
            let first = if late { Lies::default() } else { lies };
            let (errors, state) = drive(first, lies, 120);
            count(&opened, state.is_some());
            count(&found_out, errors.iter().any(|e| !e.contains("not possible")));
            count(&survived, state == Some(NicState::Ready));
            Ok(())
        });
    outcome.unwrap();
    let counts = [&opened, &found_out, &survived].map(Cell::get);
    println!("came up, found out, working at the end: {counts:?}");
    assert!(counts[0] > 400 && counts[1] > 400 && counts[2] > 50, "{counts:?}");
}

#[track_caller]
fn says(lies: Lies, part: &str) {
    let (errors, _) = drive(Lies::default(), lies, 200);
    assert!(errors.iter().any(|e| e.contains(part)), "no error says {part:?}: {errors:?}");
}

#[test]
fn each_lie_has_its_name() {
    let none = Lies { seed: 7, ..Lies::default() };
    says(Lies { descriptors: u16::MAX, ..none }, "returns an element that it was not given");
    says(Lies { refusals: u16::MAX, ..none }, "refuses a");
    says(Lies { registers: u16::MAX, ..none }, "register 0 reads");
    let (errors, state) = drive(Lies { gone_after: 10, ..none }, none, 1);
    assert!(errors[0].contains("the NIC is gone") && state.is_none(), "{errors:?}");
    let (errors, state) = drive(Lies { silences: u16::MAX, ..none }, none, 1);
    assert!(errors[0].contains("no answer to") && state.is_none(), "{errors:?}");
}
