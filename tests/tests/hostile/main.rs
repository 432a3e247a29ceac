//! The driver on a device that lies: an error that names the cause, never a panic, a call past its deadline, or an access
//! outside the buffers.

mod named;

use flowlift_driver::nic::NicState;
use flowlift_tests::hostile::{Seeded, drive};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;

/// Rounds of a run.
const ROUNDS: u32 = 200;

#[test]
fn an_honest_device_is_believed() {
    let honest = Seeded { seed: 1, registers: 0, writes: 0, unasked: 0, honest_steps: 255 };
    let story = drive(honest, ROUNDS);
    assert!(story.opened && story.errors.is_empty(), "{story:?}");
    assert_eq!((story.state, story.stats.impossible), (Some(NicState::Ready), 0), "{story:?}");
    assert!(story.received > 100 && story.updates > 100, "{story:?}");
}

/// A device that answers at random, for 1,000 seeds.
#[test]
fn a_thousand_liars_are_survived() {
    let script = (
        any::<u64>(),
        prop_oneof![Just(0u8), 0u8..8, any::<u8>()],
        prop_oneof![Just(0u8), 0u8..32, any::<u8>()],
        0u8..12,
        prop_oneof![Just(0u8), 0u8..40],
    );
    let (opened, found_out, survived) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |cell: &Cell<u32>, it: bool| cell.set(cell.get() + u32::from(it));
    let config = Config { cases: 1000, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&script, |(seed, registers, writes, unasked, honest_steps)| {
        let story = drive(Seeded { seed, registers, writes, unasked, honest_steps }, ROUNDS);
        count(&opened, story.opened);
        count(&found_out, !story.errors.is_empty());
        count(&survived, story.state == Some(NicState::Ready));
        Ok(())
    });
    outcome.unwrap();
    // A liar who is found out at once finds nothing: a good part has to come up.
    let counts = [&opened, &found_out, &survived].map(Cell::get);
    println!("came up, found out, working at the end: {counts:?}");
    assert!(counts[0] > 200 && counts[1] > 200 && counts[2] > 20, "{counts:?}");
}
