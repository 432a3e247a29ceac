//! Each fault alone and all together, over many seeds: every update gets exactly one result, the result is true, and the
//! device finds no breach of protocol.

use crate::harness::*;
use flowlift_driver::fl1::Fl1Stats;
use flowlift_driver::nic::*;
use flowlift_sim::{FaultKind, FaultPlan, Profile, Rate};
use std::collections::{BTreeMap, BTreeSet};

const SEEDS: u64 = 60;
const ROUNDS: u32 = 60;
/// Places used of table 0.
const PLACES: u32 = 48;

/// A small generator for the test's own choices (splitmix64).
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

/// What the test knows from results alone.
#[derive(Default)]
struct Known {
    installed: BTreeMap<EntryId, Entry>,
    /// Places whose last update was never answered by the device.
    damaged: BTreeSet<EntryId>,
    outstanding: BTreeMap<u64, Update>,
    answered: u64,
    rejected: u64,
}

impl Known {
    fn apply(&mut self, b: &mut Bench) {
        for r in b.results.drain(..) {
            let u = self.outstanding.remove(&r.cookie).unwrap_or_else(|| panic!("second result: {r:?}"));
            self.answered += 1;
            match (u, r.status) {
                (Update::Insert { id, entry, .. } | Update::Replace { id, entry, .. }, UpdateStatus::Ok) => {
                    self.installed.insert(id, entry);
                }
                (Update::Delete { id, .. }, UpdateStatus::Ok) => {
                    assert!(self.installed.remove(&id).is_some(), "{id:?} was not there");
                    assert!(r.counters.is_some(), "a delete has counters");
                    self.damaged.remove(&id);
                }
                (Update::Insert { .. }, UpdateStatus::TableFull) => self.rejected += 1,
                (Update::Replace { id, .. }, UpdateStatus::Rejected(14)) => {
                    // The event may come after the refusal.
                    self.damaged.insert(id);
                }
                (_, UpdateStatus::Aborted | UpdateStatus::TimedOut) => {}
                (u, s) => panic!("{u:?} gave {s:?}"),
            }
        }
        for e in b.events.drain(..) {
            match e {
                NicEvent::TablesLost | NicEvent::Gone => {
                    self.installed.clear();
                    self.damaged.clear();
                }
                NicEvent::ParityError(id) => {
                    self.damaged.insert(id);
                }
                _ => {}
            }
        }
    }
}

/// Resets a failed device, and learns what was aborted before going on.
fn recover(b: &mut Bench, known: &mut Known) {
    if b.nic.state() == NicState::Failed {
        let _ = b.nic.reset();
        let _ = b.nic.poll(&mut b.results, &mut b.events);
        known.apply(b);
    }
}

/// Random updates under faults. Returns what the driver and the device counted.
fn drive(seed: u64, faults: &FaultPlan) -> Option<(Fl1Stats, usize, Known)> {
    let mut b = match Bench::with(Profile::standard(), seed, faults.clone()) {
        Ok(b) => b,
        // Bring-up may meet the fault itself; then it has to say so, and a wait has to end.
        Err(NicError::Failed { .. } | NicError::Gone(_) | NicError::Lies { .. }) => return None,
        Err(e) => panic!("seed {seed}: {e}"),
    };
    let mut choose = Choices(seed);
    let mut known = Known::default();
    let mut cookie = 0;
    for _ in 0..ROUNDS {
        for _ in 0..choose.below(24) {
            let id = at(0, choose.below(PLACES.into()) as u32);
            let busy = known.outstanding.values().any(|u| {
                let (Update::Insert { id: i, .. }
                | Update::Replace { id: i, .. }
                | Update::Delete { id: i, .. }) = u;
                *i == id
            });
            if busy {
                continue;
            }
            let port = NicPort(1 + choose.below(16) as u16);
            let entry =
                b.entry(TableId(0), &to_host(id.index as u8), &[NicAction::DecTtl, NicAction::Output(port)]);
            cookie += 1;
            let update = match known.installed.contains_key(&id) {
                false => Update::Insert { cookie, id, entry },
                true if choose.below(2) == 0 => Update::Replace { cookie, id, entry },
                true => Update::Delete { cookie, id },
            };
            match b.nic.submit(std::slice::from_ref(&update)) {
                Ok(1) => assert!(known.outstanding.insert(cookie, update).is_none()),
                Ok(_) | Err(NicError::Failed { .. } | NicError::Gone(_)) => {}
                Err(e) => panic!("seed {seed}: {e}"),
            }
        }
        let _ = b.nic.kick();
        for _ in 0..choose.below(12) {
            let _ = b.round();
        }
        known.apply(&mut b);
        recover(&mut b, &mut known);
    }
    // Everything comes to an end, through as many resets as it takes.
    for turn in 0.. {
        let _ = b.round();
        known.apply(&mut b);
        recover(&mut b, &mut known);
        if known.outstanding.is_empty() {
            break;
        }
        assert!(turn < 200_000, "seed {seed}: never answered: {:?} {:?}", known.outstanding, b.nic.stats());
    }
    read_all_back(&mut b, &mut known, seed);
    let stats = b.nic.stats();
    let struck = b.function.model().fault_log().len();
    let model = b.function.model();
    assert_eq!(model.violations_total(), 0, "seed {seed}: {:?}", model.first_violation());
    drop(model);
    assert_eq!(stats.impossible, 0, "seed {seed}: {stats:?}");
    Some((stats, struck, known))
}

/// The device holds exactly what the results said.
fn read_all_back(b: &mut Bench, known: &mut Known, seed: u64) {
    for index in 0..PLACES {
        let id = at(0, index);
        let mut back = None;
        for _ in 0..50_000 {
            if b.nic.state() == NicState::Gone {
                return;
            }
            recover(b, known);
            if back.is_none() && b.nic.read_back(id).is_ok() {
                back = Some(None);
            }
            let _ = b.round();
            known.apply(b);
            if let Some((of, entry)) = b.nic.take_read_back() {
                assert_eq!(of, id);
                back = Some(Some(entry));
                break;
            }
        }
        let Some(Some(entry)) = back else { panic!("seed {seed}: {id:?} was never read back") };
        known.apply(b);
        if !known.damaged.contains(&id) && b.nic.state() == NicState::Ready {
            assert_eq!(entry.as_ref(), known.installed.get(&id), "seed {seed}: {id:?}");
        }
    }
}

/// Runs a kind over all seeds; returns how often it struck, and what the drivers counted.
fn alone(kind: FaultKind, rate: Option<Rate>) -> (usize, Vec<Fl1Stats>) {
    let plan = FaultPlan::default();
    let plan = match rate {
        Some(rate) => plan.with(kind, rate),
        None => plan.with_default(kind),
    };
    let (mut struck, mut all) = (0, vec![]);
    for seed in 0..SEEDS {
        if let Some((stats, n, _)) = drive(seed, &plan) {
            struck += n;
            all.push(stats);
        }
    }
    assert!(struck > 0, "{kind} never struck");
    (struck, all)
}

fn total(all: &[Fl1Stats], count: impl Fn(&Fl1Stats) -> u64) -> u64 {
    all.iter().map(count).sum()
}

#[test]
fn without_faults_nothing_is_counted() {
    let (stats, struck, known) = drive(1, &FaultPlan::default()).unwrap();
    let quiet = Fl1Stats { doorbells: 0, updates: 0, completions: 0, ..stats };
    assert_eq!((quiet, struck), (Fl1Stats::default(), 0));
    assert!(known.answered > 100 && known.rejected == 0);
}

#[test]
fn table_full() {
    let (_, all) = alone(FaultKind::TableFull, None);
    assert_eq!(total(&all, |s| s.resets), 0);
}

#[test]
fn slow_completions() {
    let (_, all) = alone(FaultKind::SlowCompletion, Some(Rate { probability: 0.2, limit: u32::MAX }));
    assert_eq!(total(&all, |s| s.resent + s.resets), 0, "slow is not lost");
}

#[test]
fn lost_completions_are_sent_again_without_a_reset() {
    let (struck, all) = alone(FaultKind::LostCompletion, Some(Rate { probability: 0.1, limit: u32::MAX }));
    assert_eq!(total(&all, |s| s.resets), 0);
    let resent = total(&all, |s| s.resent);
    assert!(resent > 0 && resent <= struck as u64, "{resent} of {struck}");
}

#[test]
fn duplicated_completions_are_counted_and_ignored() {
    let (struck, all) = alone(FaultKind::DuplicatedCompletion, None);
    let seen = total(&all, |s| s.duplicates);
    assert!(seen > 0 && seen <= struck as u64);
}

#[test]
fn reordered_completions() {
    alone(FaultKind::ReorderedCompletion, Some(Rate { probability: 0.3, limit: u32::MAX }));
}

#[test]
fn stale_entries_are_read_again() {
    let (_, all) = alone(FaultKind::StaleEntry, Some(Rate { probability: 0.3, limit: u32::MAX }));
    assert!(total(&all, |s| s.stale_records) > 0);
}

#[test]
fn flipped_entries_are_read_again_or_reported() {
    let (_, all) = alone(FaultKind::FlippedEntry, Some(Rate { probability: 0.2, limit: 64 }));
    assert!(total(&all, |s| s.flipped_records) > 0);
}

#[test]
fn stale_and_flipped_counters_are_read_again() {
    for (kind, flipped) in [(FaultKind::StaleCounter, false), (FaultKind::FlippedCounter, true)] {
        let plan = FaultPlan::default().with(kind, Rate { probability: 0.2, limit: u32::MAX });
        let mut b = Bench::with(Profile::tiny(), 5, plan).unwrap();
        for i in 0..8 {
            let entry = b.entry(TableId(0), &to_host(i), &[NicAction::Output(NicPort(2))]);
            assert_eq!(b.insert(at(0, i.into()), entry), UpdateStatus::Ok);
        }
        for round in 1..=20u64 {
            for i in 0..8 {
                b.inject(1, &tcp(9, i, 80));
            }
            b.nic.snapshot(TableId(0), 0, 16).unwrap();
            let mut got = vec![];
            b.until("the snapshot", |b| {
                got.extend(std::iter::from_fn(|| b.nic.take_snapshot()));
                got.len() == 16
            });
            for (i, (id, counters)) in (0..).zip(got) {
                assert_eq!(id.index, i);
                assert_eq!(counters.map(|c| c.packets), (i < 8).then_some(round), "{kind}: entry {i}");
            }
        }
        let stats = b.nic.stats();
        assert!(if flipped { stats.flipped_records } else { stats.stale_records } > 0, "{kind}: {stats:?}");
        b.finish();
    }
}

#[test]
fn dma_faults() {
    alone(FaultKind::DmaFault, Some(Rate { probability: 0.001, limit: 4 }));
}

#[test]
fn hangs_are_cured_by_a_reset() {
    let (_, all) = alone(FaultKind::Hang, None);
    assert!(total(&all, |s| s.resets) > 0);
}

#[test]
fn link_flaps() {
    let (_, all) = alone(FaultKind::LinkFlap, None);
    assert_eq!(total(&all, |s| s.resets), 0);
}

#[test]
fn resets_by_the_device_itself() {
    let (_, all) = alone(FaultKind::Reset, None);
    assert!(total(&all, |s| s.resets) > 0);
}

#[test]
fn unplugging() {
    alone(FaultKind::Unplug, Some(Rate { probability: 0.005, limit: 1 }));
}

#[test]
fn all_together() {
    let mut through = 0;
    for seed in 0..SEEDS {
        through += u32::from(drive(seed, &FaultPlan::all()).is_some());
    }
    assert!(through > SEEDS as u32 / 2, "{through} of {SEEDS} came up");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run =
        |seed| drive(seed, &FaultPlan::all()).map(|(stats, struck, known)| (stats, struck, known.answered));
    for seed in 0..8 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn surprise_removal_is_noticed_and_nothing_that_was_received_is_lost() {
    for by_transport in [true, false] {
        let mut b = Bench::new(Profile::tiny());
        let entry = b.entry(TableId(0), &to_host(2), &[NicAction::Output(NicPort(2))]);
        assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
        b.inject(1, &tcp(1, 2, 80));
        b.inject(1, &tcp(1, 50, 80));
        b.wires[3].set_link(false);
        b.until("the link", |b| !b.nic.link(NicPort(4)));
        assert!(b.nic.tx(SlowTx::Port(NicPort(4)), &tcp(1, 51, 80)).unwrap());
        b.events.clear();
        assert_eq!(b.nic.submit(&[Update::Delete { cookie: 77, id: at(0, 0) }]).unwrap(), 1);
        if by_transport {
            b.function.remove()
        } else {
            b.function.model().unplug()
        }
        b.until("the removal", |b| b.nic.state() == NicState::Gone);
        assert_eq!(b.events, [NicEvent::Gone]);
        assert_eq!(
            b.results.iter().map(|r| (r.cookie, r.status)).collect::<Vec<_>>(),
            [(77, UpdateStatus::Aborted)]
        );
        assert_eq!(b.nic.counters(at(0, 0)).packets, 1, "the counter page outlives the device");
        assert_eq!(b.receive().iter().map(|(_, f)| f[5]).collect::<Vec<_>>(), [50]);
        assert_eq!(b.nic.take_unsent().iter().map(|(_, f)| f[5]).collect::<Vec<_>>(), [51]);
        assert!(matches!(b.nic.submit(&[]), Err(NicError::Gone(_))));
        assert!(matches!(b.nic.tx(SlowTx::Port(NicPort(1)), &tcp(1, 2, 3)), Err(NicError::Gone(_))));
        assert!(matches!(b.nic.reset(), Err(NicError::Gone(_))));
        assert!(b.nic.poll(&mut vec![], &mut vec![]).is_ok());
    }
}

#[test]
fn slow_path_packets_pass_once_and_in_order_through_any_failure() {
    const FRAMES: u32 = 150;
    let rare = |limit| Rate { probability: 0.01, limit };
    let plan = FaultPlan::default()
        .with(FaultKind::DmaFault, rare(4))
        .with(FaultKind::Hang, rare(2))
        .with(FaultKind::Reset, rare(2))
        .with(FaultKind::LinkFlap, rare(8));
    let (mut struck, mut unsent) = (0, 0);
    for seed in 0..SEEDS {
        let Ok(mut b) = Bench::with(Profile::tiny(), seed, plan.clone()) else { continue };
        let mut waiting: std::collections::VecDeque<u32> = (0..FRAMES).collect();
        for n in 0..FRAMES {
            b.wires[0].inject(numbered(n)).unwrap();
        }
        let (mut sent, mut received) = (vec![], vec![]);
        for round in 0.. {
            assert!(round < 100_000, "seed {seed}: {} sent, {} received", sent.len(), received.len());
            let _ = b.round();
            if b.nic.state() == NicState::Failed {
                let _ = b.nic.reset();
            }
            let back = b.nic.take_unsent();
            unsent += back.len();
            for (to, frame) in back.into_iter().rev() {
                assert_eq!(to, SlowTx::Port(NicPort(2)));
                waiting.push_front(number(&frame));
            }
            while let Some(&n) = waiting.front() {
                match b.nic.tx(SlowTx::Port(NicPort(2)), &numbered(n)) {
                    Ok(true) => waiting.pop_front(),
                    Ok(false) | Err(NicError::Failed { .. }) => break,
                    Err(e) => panic!("seed {seed}: {e}"),
                };
            }
            let _ = b.nic.rx(32, &mut |_, frame| received.push(number(frame)));
            sent.extend(b.sent(2).iter().map(|f| number(f)));
            if sent.len() >= FRAMES as usize && received.len() >= FRAMES as usize && b.nic.tx_pending() == 0 {
                break;
            }
        }
        assert!(sent.iter().copied().eq(0..FRAMES), "seed {seed}: {sent:?}");
        assert!(received.iter().copied().eq(0..FRAMES), "seed {seed}: {received:?}");
        struck += b.function.model().fault_log().len();
        assert_eq!(b.function.model().violations_total(), 0, "seed {seed}");
    }
    assert!(struck > 0 && unsent > 0, "{struck} faults, {unsent} frames came back");
}
