//! Rules as the service thread keeps them, and as the planner reads them.

use flowlift_driver::nic::TableId;
use flowlift_flow::key::KEY_WORDS;
use flowlift_flow::{Action, Flow, Key, Mask, Match};
use flowlift_offload::planner::{Counters, FlowId, FlowSource};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The words of a match that its mask touches: a sixth of a whole one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompactMatch(Box<[(u8, u64, u64)]>);

impl CompactMatch {
    /// Of a match; attributes are not kept, as nothing is printed.
    pub fn new(m: &Match) -> Self {
        let words = m.key.words().iter().zip(m.mask.0.words()).enumerate();
        let touched = words.filter(|(_, (_, mask))| **mask != 0);
        Self(touched.map(|(n, (key, mask))| (n as u8, key & mask, *mask)).collect())
    }

    /// The whole match.
    pub fn expand(&self) -> Match {
        let (mut key, mut mask) = (Key::default(), Key::default());
        for (n, k, m) in &self.0 {
            if usize::from(*n) < KEY_WORDS {
                (key.words_mut()[usize::from(*n)], mask.words_mut()[usize::from(*n)]) = (*k, *m);
            }
        }
        Match { key, mask: Mask(mask), attrs: Default::default() }
    }
}

/// A rule's planner slot before the service thread has seen it.
const NO_SLOT: u32 = u32::MAX;

/// A rule that was accepted.
#[derive(Debug)]
pub struct Rule {
    /// What it matches.
    pub matching: CompactMatch,
    /// What it does.
    pub actions: Vec<Action>,
    /// Where several rules match, the one of lowest rank has the packet.
    pub rank: u16,
    /// ID of its delivery.
    pub delivery: Option<u32>,
    /// Packets are counted for queries.
    pub count: bool,
    /// Fingerprint of match and rank.
    pub print: u64,
    /// Table and mask that its room was taken from, and how many entries.
    pub room: (TableId, u64, u32),
    /// The planner's number of it.
    slot: AtomicU32,
    /// What its place had counted when it was made, or when a query last reset it: packets and bytes.
    base: (AtomicU64, AtomicU64),
}

impl Rule {
    /// A rule that no thread has seen yet.
    pub fn new(
        matching: CompactMatch,
        actions: Vec<Action>,
        rank: u16,
        delivery: Option<u32>,
        count: bool,
        print: u64,
        room: (TableId, u64, u32),
    ) -> Self {
        let base = (AtomicU64::new(0), AtomicU64::new(0));
        Self { matching, actions, rank, delivery, count, print, room, slot: AtomicU32::new(NO_SLOT), base }
    }

    /// The planner's number of it, once it has one.
    pub fn slot(&self) -> Option<FlowId> {
        Some(self.slot.load(Ordering::Acquire)).filter(|n| *n != NO_SLOT).map(FlowId)
    }

    /// Two rules that no packet tells apart by their matches.
    pub fn same_match(&self, other: &Self) -> bool {
        self.print == other.print && self.rank == other.rank && self.matching == other.matching
    }

    /// The flow that the rule is.
    pub fn flow(&self) -> Flow {
        Flow { ufid: None, matching: self.matching.expand(), actions: self.actions.clone() }
    }

    /// Packets and bytes since the rule was made or last reset, of `total`, what its place counted.
    pub fn counted(&self, total: Counters, reset: bool) -> (u64, u64) {
        let since = |base: &AtomicU64, now: u64| {
            let before = base.load(Ordering::Relaxed);
            if reset {
                base.store(now, Ordering::Relaxed);
            }
            now.wrapping_sub(before)
        };
        (since(&self.base.0, total.packets), since(&self.base.1, total.bytes))
    }
}

/// Fingerprints of matches, with a key of this process's own.
#[derive(Debug, Clone, Default)]
pub struct Prints(RandomState);

impl Prints {
    /// The fingerprint of a match and rank.
    pub fn of(&self, matching: &CompactMatch, rank: u16) -> u64 {
        self.0.hash_one((matching, rank))
    }
}

/// What becomes of a rule that is put.
pub enum Taken {
    /// A flow of its own.
    New(FlowId),
    /// The flow of a rule with the same match that is on its way out: it changes in one step.
    Instead(FlowId, Arc<Rule>),
}

/// All rules that the planner knows, by its numbers.
#[derive(Default)]
pub struct Rules {
    slots: Vec<Option<Arc<Rule>>>,
    free: Vec<u32>,
    /// Rules on their way out, by fingerprint.
    dying: hashbrown::HashMap<u64, FlowId>,
}

impl FlowSource for Rules {
    fn flow(&self, id: FlowId) -> Option<Flow> {
        self.slots.get(id.0 as usize)?.as_ref().map(|rule| rule.flow())
    }

    fn rank(&self, id: FlowId) -> u16 {
        self.slots.get(id.0 as usize).and_then(Option::as_ref).map_or(0, |rule| rule.rank)
    }
}

impl Rules {
    /// Gives a rule a number.
    pub fn put(&mut self, rule: &Arc<Rule>) -> Taken {
        if let Some(id) = self.dying.get(&rule.print).copied()
            && let Some(Some(old)) = self.slots.get(id.0 as usize)
            && old.same_match(rule)
        {
            let old = Arc::clone(old);
            self.dying.remove(&rule.print);
            self.set(id.0, rule);
            return Taken::Instead(id, old);
        }
        let n = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(NO_SLOT)
        });
        self.set(n, rule);
        Taken::New(FlowId(n))
    }

    fn set(&mut self, n: u32, rule: &Arc<Rule>) {
        if let Some(slot) = self.slots.get_mut(n as usize) {
            *slot = Some(Arc::clone(rule));
            rule.slot.store(n, Ordering::Release);
        }
    }

    /// Notes that a rule is on its way out.
    pub fn removing(&mut self, rule: &Rule) -> Option<FlowId> {
        let id = rule.slot()?;
        self.dying.insert(rule.print, id);
        Some(id)
    }

    /// A flow is out of hardware for good: its number is free, and this was its rule.
    pub fn removed(&mut self, id: FlowId) -> Option<Arc<Rule>> {
        let rule = self.slots.get_mut(id.0 as usize)?.take()?;
        if self.dying.get(&rule.print) == Some(&id) {
            self.dying.remove(&rule.print);
        }
        self.free.push(id.0);
        Some(rule)
    }
}
