//! Rules as the service thread keeps them, and as the planner reads them.

use super::delivery::Held;
use super::room::Taking;
use crate::rule::FIRST_DELIVERY;
use flowlift_flow::key::KEY_WORDS;
use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match};
use flowlift_offload::planner::{Counters, FlowId, FlowSource};
use flowlift_offload::recirc::Hop;
use smallvec::SmallVec;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What rules have in common that differ in the values of their matches alone: which bits they match, and what they do.
///
/// Aligned, so that the number of its owners has a cache line of its own: the application's thread counts there while the service
/// thread reads this.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shape {
    /// The words of a key that the mask touches, and which of their bits.
    words: Box<[(u8, u64)]>,
    /// What the rules do.
    pub actions: Vec<Action>,
    /// Where several rules match, the one of lowest rank has the packet.
    pub rank: u16,
    /// Their delivery, which thus stays for as long as one of them is in hardware.
    _delivery: Option<Held>,
    /// Packets are counted for queries.
    pub count: bool,
    /// Room that each of them takes.
    pub room: Taking,
    /// The recirculation ID that they match: their group.
    pub group: u32,
    /// The recirculation that their actions end with.
    pub hop: Option<Hop>,
    /// Fingerprint of rank and mask.
    print: u64,
}

impl Shape {
    /// The shape of rules that match as `m` does but for the values.
    pub fn new(
        m: &Match,
        (actions, delivery): (Vec<Action>, Option<Held>),
        rank: u16,
        count: bool,
        room: Taking,
        prints: &Prints,
    ) -> Self {
        let words: Box<[(u8, u64)]> = touched(m).map(|(n, _, mask)| (n as u8, mask)).collect();
        let group = m.key.recirc_id & m.mask.0.recirc_id;
        let hop = match actions.last() {
            Some(Action::Recirc(to)) => Some(Hop { from: group, to: *to }),
            _ => None,
        };
        let print = prints.0.hash_one((rank, &words));
        Self { words, actions, rank, _delivery: delivery, count, room, group, hop, print }
    }

    /// Fingerprint of match and rank of a rule with these values.
    pub fn print_of(&self, values: &[u64], prints: &Prints) -> u64 {
        prints.0.hash_one((self.print, values))
    }

    /// Where they jump to.
    pub fn jump(&self) -> Option<Hop> {
        self.hop.filter(|hop| hop.to < FIRST_DELIVERY)
    }

    /// Words of a key that the mask touches.
    pub fn words(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.words.iter().map(|(n, _)| usize::from(*n))
    }
}

/// Words of a match that its mask touches: number, value, mask.
fn touched(m: &Match) -> impl Iterator<Item = (usize, u64, u64)> {
    let words = m.key.words().iter().zip(m.mask.0.words()).enumerate();
    words.filter(|(_, (_, mask))| **mask != 0).map(|(n, (key, mask))| (n, key & mask, *mask))
}

/// Values of the words that a rule's mask touches, in order: a rule of addresses and ports has no more on the heap.
pub type Values = SmallVec<[u64; 5]>;

/// Values of a match.
pub fn values(m: &Match) -> Values {
    touched(m).map(|(_, value, _)| value).collect()
}

/// A rule's planner slot before the service thread has seen it.
const NO_SLOT: u32 = u32::MAX;

/// A rule that was accepted.
#[derive(Debug)]
pub struct Rule {
    /// What it has in common with others.
    pub shape: Arc<Shape>,
    values: Values,
    /// Fingerprint of match and rank.
    pub print: u64,
    /// The planner's number of it.
    slot: AtomicU32,
    /// What its place had counted when it was made, or when a query last reset it: packets and bytes.
    base: (AtomicU64, AtomicU64),
}

impl Rule {
    /// A rule that no thread has seen yet; its fingerprint is [`Shape::print_of`] its values.
    pub fn new(shape: Arc<Shape>, values: Values, print: u64) -> Self {
        let base = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shape, values, print, slot: AtomicU32::new(NO_SLOT), base }
    }

    /// The planner's number of it, once it has one.
    pub fn slot(&self) -> Option<FlowId> {
        Some(self.slot.load(Ordering::Acquire)).filter(|n| *n != NO_SLOT).map(FlowId)
    }

    /// Two rules that no packet tells apart by their matches.
    pub fn same_match(&self, other: &Self) -> bool {
        let same = |a: &Shape, b: &Shape| std::ptr::eq(a, b) || a.rank == b.rank && a.words == b.words;
        self.print == other.print && self.values == other.values && same(&self.shape, &other.shape)
    }

    /// Writes the flow that the rule is over another one.
    pub fn write(&self, over: &mut Flow) {
        let m = &mut over.matching;
        (over.ufid, m.key, m.mask, m.attrs) = (None, Key::default(), Mask::default(), AttrSet::default());
        for ((n, mask), value) in self.shape.words.iter().zip(&self.values) {
            let n = usize::from(*n);
            if n < KEY_WORDS {
                (m.key.words_mut()[n], m.mask.0.words_mut()[n]) = (*value, *mask);
            }
        }
        over.actions.clone_from(&self.shape.actions);
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
pub struct Prints(hashbrown::DefaultHashBuilder);

/// What becomes of a rule that is put.
pub enum Taken {
    /// A flow of its own.
    New(FlowId),
    /// The flow of a rule with the same match that is on its way out: it changes in one step.
    Instead(FlowId),
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
        let mut flow = Flow::default();
        self.read(id, &mut flow).then_some(flow)
    }

    fn read(&self, id: FlowId, over: &mut Flow) -> bool {
        self.get(id).map(|rule| rule.write(over)).is_some()
    }

    fn rank(&self, id: FlowId) -> u16 {
        self.get(id).map_or(0, |rule| rule.shape.rank)
    }
}

impl Rules {
    /// Gives a rule a number.
    pub fn put(&mut self, rule: Arc<Rule>) -> Taken {
        if !self.dying.is_empty()
            && let Some(id) = self.dying.get(&rule.print).copied()
            && let Some(Some(old)) = self.slots.get(id.0 as usize)
            && old.same_match(&rule)
        {
            self.dying.remove(&rule.print);
            self.set(id.0, rule);
            return Taken::Instead(id);
        }
        let n = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(NO_SLOT)
        });
        self.set(n, rule);
        Taken::New(FlowId(n))
    }

    fn set(&mut self, n: u32, rule: Arc<Rule>) {
        if let Some(slot) = self.slots.get_mut(n as usize) {
            rule.slot.store(n, Ordering::Release);
            *slot = Some(rule);
        }
    }

    /// The rule of a number.
    pub fn get(&self, id: FlowId) -> Option<&Arc<Rule>> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// Notes that a rule is on its way out.
    pub fn removing(&mut self, rule: &Rule) -> Option<FlowId> {
        let id = rule.slot()?;
        self.dying.insert(rule.print, id);
        Some(id)
    }

    /// A flow is out of hardware for good: its number is free.
    pub fn removed(&mut self, id: FlowId) {
        let Some(rule) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else { return };
        if self.dying.get(&rule.print) == Some(&id) {
            self.dying.remove(&rule.print);
        }
        self.free.push(id.0);
    }
}
