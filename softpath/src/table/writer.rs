//! The writer's side of the flow table: put, delete, find, list.

use super::hash::Seeds;
use super::index::{Index, MAX_SLOT, tag_of};
use super::overlap::{self, Group, Overlap};
use super::rcu::{Cell, Domain, Guard, Reader, Slots};
use super::record::{Actions, FlowId, FlowRecord};
use super::shape::{LookupKey, Shape, SparseMask};
use crate::actions::{Unsupported, compile};
use crate::classifier::{Relevant, SearchOrder, Subtable, Subtables};
use flowlift_flow::{Action, Flow, Key, Mask, Match, Ufid};
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use thiserror::Error;

/// What readers share with the writer.
#[derive(Debug)]
pub struct TableShared {
    /// Protects what follows.
    pub domain: Arc<Domain>,
    /// Flows by slot.
    pub slots: Slots<FlowRecord>,
    /// The classifier.
    pub subtables: Cell<Subtables>,
    /// Of every hash in this table.
    pub seeds: Seeds,
}

/// What a put may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutMode {
    /// Add the flow if it is not there.
    pub create: bool,
    /// Replace its actions if it is.
    pub modify: bool,
}

impl PutMode {
    /// Add or replace.
    pub const ANY: Self = Self { create: true, modify: true };
    /// Add only (`NLM_F_EXCL`).
    pub const CREATE: Self = Self { create: true, modify: false };
    /// Replace only.
    pub const MODIFY: Self = Self { create: false, modify: true };
}

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// The flow.
    pub id: FlowId,
    /// True if it was added, false if its actions were replaced.
    pub created: bool,
}

/// Why a put was refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PutError {
    /// An action that the software datapath does not run.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The flow exists, and the mode does not allow to replace its actions.
    #[error("the flow exists")]
    Exists(FlowId),
    /// The flow does not exist, and the mode does not allow to add it.
    #[error("no such flow")]
    NotFound,
    /// The UFID is that of a flow with another match (R25).
    #[error("the UFID belongs to a flow with another match")]
    UfidInUse(FlowId),
    /// A flow with this match has another UFID, or none: the two would overlap (R23).
    #[error("a flow with the same match has another UFID")]
    MatchInUse(FlowId),
    /// The table has as many flows as it may.
    #[error("the flow table is full ({0} flows)")]
    Full(u32),
}

/// Interned actions, found by their list.
#[derive(Debug)]
struct ActionsEntry(Arc<Actions>);

impl Borrow<[Action]> for ActionsEntry {
    fn borrow(&self) -> &[Action] {
        &self.0.list
    }
}

impl Hash for ActionsEntry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.list.as_slice().hash(state);
    }
}

impl PartialEq for ActionsEntry {
    fn eq(&self, other: &Self) -> bool {
        self.0.list == other.0.list
    }
}

impl Eq for ActionsEntry {}

/// A subtable as its writer holds it.
#[derive(Debug)]
struct SubtableWriter {
    index: Index,
    shared: Arc<Subtable>,
}

/// The shape found last: flows often come with the same mask one after the other.
#[derive(Debug)]
struct LastShape {
    mask: Mask,
    shape: Arc<Shape>,
    place: usize,
}

/// Where the indexes have a flow.
#[derive(Debug, Clone, Copy)]
struct Tags {
    matching: u32,
    ufid: Option<u32>,
}

/// Unused actions and shapes that may lie about before they are swept up.
const SWEEP_SLACK: usize = 1024;

/// The flow table. There is one writer: every change takes `&mut self`.
#[derive(Debug)]
pub struct FlowTable {
    shared: Arc<TableShared>,
    reader: Reader,
    subtables: Vec<Option<SubtableWriter>>,
    by_mask: HashMap<SparseMask, usize, Seeds>,
    /// Shapes of flows, and the place of their subtable.
    shapes: HashMap<Arc<Shape>, usize, Seeds>,
    actions: HashMap<ActionsEntry, (), Seeds>,
    sweep_at: usize,
    last: Option<Box<LastShape>>,
    ufids: Index,
    free: Vec<u32>,
    /// By slot: the generation given out last.
    generations: Vec<u32>,
    flows: u32,
    max_flows: u32,
    next_subtable: u64,
    version: u64,
    order: SearchOrder,
}

impl FlowTable {
    /// An empty table for at most `max_flows` flows. The seed makes hashes repeatable; without one they are secret.
    pub fn new(max_flows: u32, seed: Option<u64>) -> Self {
        let max_flows = max_flows.min(MAX_SLOT);
        let domain = Domain::new();
        let seeds = Seeds::new(seed);
        let shared = TableShared {
            slots: Slots::new(&domain, max_flows),
            subtables: Cell::new(&domain, Subtables::default()),
            seeds: seeds.clone(),
            domain: Arc::clone(&domain),
        };
        Self {
            shared: Arc::new(shared),
            reader: domain.reader(),
            subtables: Vec::new(),
            by_mask: HashMap::with_hasher(seeds.clone()),
            shapes: HashMap::with_hasher(seeds.clone()),
            actions: HashMap::with_hasher(seeds),
            sweep_at: SWEEP_SLACK,
            last: None,
            ufids: Index::new(&domain),
            free: Vec::new(),
            generations: Vec::new(),
            flows: 0,
            max_flows,
            next_subtable: 0,
            version: 0,
            order: SearchOrder::default(),
        }
    }

    /// What readers share with the writer.
    pub fn shared(&self) -> &Arc<TableShared> {
        &self.shared
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.flows as usize
    }

    /// True without flows.
    pub fn is_empty(&self) -> bool {
        self.flows == 0
    }

    /// Number of masks.
    pub fn mask_count(&self) -> usize {
        self.by_mask.len()
    }

    /// Adds a flow, or replaces the actions of the one with the same UFID, or with the same mask and masked key. Readers
    /// see the old actions or the new ones; the counters go on.
    pub fn put(&mut self, flow: &Flow, mode: PutMode) -> Result<Put, PutError> {
        let ufid = flow.ufid.as_ref().map(|ufid| ufid_tag(&self.shared.seeds, ufid));
        let (shape, place) = self.shape_of(&flow.matching);
        let hash = shape.mask.hash(&self.shared.seeds, LookupKey::new(&flow.matching.key));
        let tags = Tags { matching: tag_of(hash), ufid };
        self.prefetch(place, tags);
        match self.existing(flow, &shape, place, tags)? {
            Some(id) if !mode.modify => Err(PutError::Exists(id)),
            Some(id) => {
                let actions = self.intern_actions(&flow.actions)?;
                self.renew(id, |old| old.with(actions, old.stats_generation()));
                Ok(Put { id, created: false })
            }
            None if !mode.create => Err(PutError::NotFound),
            None if self.flows >= self.max_flows => Err(PutError::Full(self.max_flows)),
            None => {
                let actions = self.intern_actions(&flow.actions)?;
                let id = self.insert(flow, shape, place, tags, actions);
                Ok(Put { id, created: true })
            }
        }
    }

    /// Asks for a flow's places in both indexes together: in a large table each is a wait for memory.
    fn prefetch(&mut self, place: Option<usize>, tags: Tags) {
        let guard = self.reader.enter();
        if let Some(tag) = tags.ufid {
            self.ufids.prefetch(&guard, tag);
        }
        if let Some(sub) = place.and_then(|n| self.subtables[n].as_ref()) {
            sub.index.prefetch(&guard, tags.matching);
        }
    }

    /// The shape of a match, and the place of its subtable if there is one.
    fn shape_of(&mut self, matching: &Match) -> (Arc<Shape>, Option<usize>) {
        if let Some(last) = &self.last
            && last.mask == matching.mask
            && last.shape.attrs == matching.attrs
        {
            return (Arc::clone(&last.shape), Some(last.place));
        }
        let shape = Shape { mask: SparseMask::new(&matching.mask), attrs: matching.attrs };
        match self.shapes.get_key_value(&shape) {
            Some((shape, &place)) => {
                let last = LastShape { mask: matching.mask.clone(), shape: Arc::clone(shape), place };
                self.last = Some(Box::new(last));
                (Arc::clone(shape), Some(place))
            }
            None => {
                let place = self.by_mask.get(&shape.mask).copied();
                (Arc::new(shape), place)
            }
        }
    }

    /// The flow that a put of `flow` would replace.
    fn existing(
        &mut self,
        flow: &Flow,
        shape: &Shape,
        place: Option<usize>,
        tags: Tags,
    ) -> Result<Option<FlowId>, PutError> {
        let guard = self.reader.enter();
        let view = self.shared.slots.view(&guard);
        if let (Some(ufid), Some(tag)) = (&flow.ufid, tags.ufid)
            && let Some((id, record)) = find_ufid(&self.shared, &self.ufids, &guard, ufid, tag)
        {
            let same = record.is_match(&shape.mask, &flow.matching.key);
            return if same { Ok(Some(id)) } else { Err(PutError::UfidInUse(id)) };
        }
        let Some(sub) = place.and_then(|n| self.subtables[n].as_ref()) else { return Ok(None) };
        let found = sub
            .index
            .candidates(&guard, tags.matching)
            .filter_map(|slot| Some((slot, view.get(slot)?)))
            .find(|(_, r)| r.is_match(&shape.mask, &flow.matching.key));
        let Some((slot, record)) = found else { return Ok(None) };
        let id = FlowId { slot, generation: record.generation() };
        match (&flow.ufid, record.ufid()) {
            // Only a flow with another UFID gets here: the same one was found above.
            (Some(_), _) => Err(PutError::MatchInUse(id)),
            (None, _) => Ok(Some(id)),
        }
    }

    fn intern_actions(&mut self, list: &[Action]) -> Result<Arc<Actions>, Unsupported> {
        if let Some((entry, ())) = self.actions.get_key_value(list) {
            return Ok(Arc::clone(&entry.0));
        }
        let actions = Arc::new(Actions { program: compile(list)?, list: list.to_vec() });
        self.sweep();
        self.actions.insert(ActionsEntry(Arc::clone(&actions)), ());
        Ok(actions)
    }

    /// Number of action lists that are kept.
    #[cfg(test)]
    pub(super) fn interned_actions(&self) -> usize {
        self.actions.len()
    }

    /// Forgets actions and shapes that no flow has any more, when there may be as many of them as of the others.
    fn sweep(&mut self) {
        if self.actions.len() + self.shapes.len() < self.sweep_at {
            return;
        }
        self.actions.retain(|a, ()| Arc::strong_count(&a.0) > 1);
        self.shapes.retain(|s, _| Arc::strong_count(s) > 1);
        self.sweep_at = 2 * (self.actions.len() + self.shapes.len()) + SWEEP_SLACK;
    }

    fn insert(
        &mut self,
        flow: &Flow,
        shape: Arc<Shape>,
        known: Option<usize>,
        tags: Tags,
        actions: Arc<Actions>,
    ) -> FlowId {
        let place = known.unwrap_or_else(|| self.add_subtable(&shape.mask));
        let interned = self.last.as_ref().is_some_and(|l| Arc::ptr_eq(&l.shape, &shape));
        if !interned && !self.shapes.contains_key(&shape) {
            self.sweep();
            self.shapes.insert(Arc::clone(&shape), place);
        }
        let slot = self.free.pop().unwrap_or(self.generations.len() as u32);
        if self.generations.len() <= slot as usize {
            self.generations.push(0);
        }
        let generation = self.next_generation(slot);
        let record = FlowRecord::new(&flow.matching, flow.ufid, shape, actions, generation);
        self.shared.slots.replace(slot, Some(Box::new(record)));
        let guard = self.reader.enter();
        if let Some(sub) = &mut self.subtables[place] {
            sub.index.insert(&guard, tags.matching, slot);
        }
        if let Some(tag) = tags.ufid {
            self.ufids.insert(&guard, tag, slot);
        }
        drop(guard);
        self.flows += 1;
        if known.is_none() {
            self.publish();
        }
        FlowId { slot, generation }
    }

    /// Never 0, which stands for no flow.
    fn next_generation(&mut self, slot: u32) -> u32 {
        let g = &mut self.generations[slot as usize];
        *g = g.wrapping_add(1).max(1);
        *g
    }

    fn add_subtable(&mut self, mask: &SparseMask) -> usize {
        let index = Index::new(&self.shared.domain);
        let shared = Arc::new(Subtable { id: self.next_subtable, mask: mask.clone(), index: index.reader() });
        self.next_subtable += 1;
        let place = self.subtables.iter().position(Option::is_none).unwrap_or(self.subtables.len());
        if place == self.subtables.len() {
            self.subtables.push(None);
        }
        self.subtables[place] = Some(SubtableWriter { index, shared });
        self.by_mask.insert(mask.clone(), place);
        place
    }

    /// Shows readers the present set of subtables.
    fn publish(&mut self) {
        self.version += 1;
        let list: Vec<_> = self.subtables.iter().flatten().map(|s| Arc::clone(&s.shared)).collect();
        let relevant = Relevant::new(list.iter().map(|s| &s.mask));
        self.shared.subtables.replace(Subtables { version: self.version, list, relevant });
    }

    /// Replaces a flow's record; false if there is no such flow.
    fn renew(&mut self, id: FlowId, make: impl FnOnce(&FlowRecord) -> FlowRecord) -> bool {
        let Some(new) = self.with(id, make) else { return false };
        self.shared.slots.replace(id.slot, Some(Box::new(new)));
        true
    }

    /// Replaces a flow's actions in one step; an empty list makes it drop (U1).
    pub fn set_actions(&mut self, id: FlowId, actions: &[Action]) -> Result<(), PutError> {
        let actions = self.intern_actions(actions)?;
        let done = self.renew(id, |old| old.with(actions, old.stats_generation()));
        if done { Ok(()) } else { Err(PutError::NotFound) }
    }

    /// Gives a flow fresh counters (U2); false if there is no such flow.
    pub fn clear_stats(&mut self, id: FlowId) -> bool {
        if self.with(id, |_| ()).is_none() {
            return false;
        }
        let generation = self.next_generation(id.slot);
        self.renew(id, |old| old.with(Arc::clone(old.actions()), generation))
    }

    /// Takes a flow out; gives its statistics generation.
    pub fn remove(&mut self, id: FlowId) -> Option<u32> {
        let guard = self.reader.enter();
        let record =
            self.shared.slots.view(&guard).get(id.slot).filter(|r| r.generation() == id.generation)?;
        let stats_generation = record.stats_generation();
        let ufid = record.ufid().map(|ufid| ufid_tag(&self.shared.seeds, ufid));
        if let Some(tag) = ufid {
            self.ufids.prefetch(&guard, tag);
        }
        let tag = tag_of(record.hash(&self.shared.seeds));
        let place = match &self.last {
            Some(last) if Arc::ptr_eq(&last.shape, record.shape()) => Some(last.place),
            _ => self.shapes.get(record.shape()).copied(),
        };
        let mut emptied = None;
        if let Some(place) = place
            && let Some(sub) = &mut self.subtables[place]
        {
            sub.index.remove(&guard, tag, id.slot);
            emptied = sub.index.is_empty().then_some(place);
        }
        if let Some(tag) = ufid {
            self.ufids.remove(&guard, tag, id.slot);
        }
        drop(guard);
        self.shared.slots.replace(id.slot, None);
        self.free.push(id.slot);
        self.flows -= 1;
        if let Some(place) = emptied {
            self.drop_subtable(place);
        }
        Some(stats_generation)
    }

    fn drop_subtable(&mut self, place: usize) {
        if let Some(sub) = self.subtables[place].take() {
            self.by_mask.remove(&sub.shared.mask);
            self.last = None;
            self.shapes.retain(|_, p| *p != place);
            self.publish();
        }
    }

    /// Takes all flows out.
    pub fn flush(&mut self) {
        // First the classifier, so that readers have nothing to search while the rest goes.
        self.subtables.clear();
        self.last = None;
        self.by_mask.clear();
        self.shapes.clear();
        self.publish();
        self.ufids = Index::new(&self.shared.domain);
        self.free.clear();
        for slot in (0..self.generations.len() as u32).rev() {
            self.shared.slots.replace(slot, None);
            self.free.push(slot);
        }
        self.flows = 0;
        self.sweep_at = 0;
        self.sweep();
    }

    /// Shows a flow's record to `look`.
    pub fn with<R>(&mut self, id: FlowId, look: impl FnOnce(&FlowRecord) -> R) -> Option<R> {
        let guard = self.reader.enter();
        let record = self.shared.slots.view(&guard).get(id.slot)?;
        (record.generation() == id.generation).then(|| look(record))
    }

    /// The flow as installed.
    pub fn flow(&mut self, id: FlowId) -> Option<Flow> {
        self.with(id, FlowRecord::flow)
    }

    /// The flow with this UFID.
    pub fn find_ufid(&mut self, ufid: &Ufid) -> Option<FlowId> {
        let guard = self.reader.enter();
        let tag = ufid_tag(&self.shared.seeds, ufid);
        find_ufid(&self.shared, &self.ufids, &guard, ufid, tag).map(|(id, _)| id)
    }

    /// The flow with this mask and masked key.
    pub fn find_match(&mut self, matching: &Match) -> Option<FlowId> {
        let mask = SparseMask::new(&matching.mask);
        let guard = self.reader.enter();
        let view = self.shared.slots.view(&guard);
        let sub = self.by_mask.get(&mask).and_then(|&n| self.subtables[n].as_ref())?;
        let tag = tag_of(mask.hash(&self.shared.seeds, LookupKey::new(&matching.key)));
        sub.index
            .candidates(&guard, tag)
            .filter_map(|slot| Some((slot, view.get(slot)?)))
            .find(|(_, r)| r.is_match(&mask, &matching.key))
            .map(|(slot, r)| FlowId { slot, generation: r.generation() })
    }

    /// The flow that a packet with this key matches.
    pub fn lookup(&mut self, key: &Key) -> Option<FlowId> {
        let guard = self.reader.enter();
        let subtables = self.shared.subtables.load(&guard);
        self.order.follow(subtables);
        let view = self.shared.slots.view(&guard);
        self.order
            .lookup(&guard, subtables, view, &self.shared.seeds, LookupKey::new(key))
            .map(|(slot, r)| FlowId { slot, generation: r.generation() })
    }

    /// Shows every flow to `look`, in the order of slots, from `start` on until it returns false; gives the slot to go on
    /// from, `None` after the last.
    pub fn scan(&mut self, start: u32, mut look: impl FnMut(FlowId, &FlowRecord) -> bool) -> Option<u32> {
        let guard = self.reader.enter();
        let view = self.shared.slots.view(&guard);
        let end = self.generations.len() as u32;
        for slot in start..end {
            if let Some(record) = view.get(slot)
                && !look(FlowId { slot, generation: record.generation() }, record)
            {
                return (slot + 1 < end).then_some(slot + 1);
            }
        }
        None
    }

    /// Pairs of flows that overlap (R22), at most `limit` of them, in the order of slots if these are all.
    pub fn find_overlaps(&mut self, limit: usize) -> Vec<Overlap> {
        let guard = self.reader.enter();
        let view = self.shared.slots.view(&guard);
        let groups: Vec<Group<'_>> = self
            .subtables
            .iter()
            .flatten()
            .map(|sub| {
                let slots = sub.index.slots(&guard);
                Group::new(&sub.shared.mask, slots.filter_map(|slot| Some((slot, view.get(slot)?))))
            })
            .collect();
        overlap::find(&groups, &self.shared.seeds, limit)
    }

    /// Bytes that the table holds for flows: records, slots and indexes, without the allocator's own.
    pub fn bytes(&mut self) -> usize {
        let indexes =
            self.subtables.iter().flatten().map(|s| s.index.bytes()).sum::<usize>() + self.ufids.bytes();
        let arrays = self.generations.capacity() * 4 + self.free.capacity() * 4;
        let slots = self.generations.len() * size_of::<usize>();
        let mut records = 0;
        self.scan(0, |_, r| {
            records += r.bytes();
            true
        });
        indexes + arrays + slots + records
    }
}

fn ufid_tag(seeds: &Seeds, ufid: &Ufid) -> u32 {
    tag_of(seeds.bytes(ufid.as_bytes()))
}

fn find_ufid<'g>(
    shared: &'g TableShared,
    ufids: &Index,
    guard: &'g Guard<'_>,
    ufid: &Ufid,
    tag: u32,
) -> Option<(FlowId, &'g FlowRecord)> {
    let view = shared.slots.view(guard);
    ufids
        .candidates(guard, tag)
        .filter_map(|slot| Some((slot, view.get(slot)?)))
        .find(|(_, r)| r.ufid() == Some(ufid))
        .map(|(slot, r)| (FlowId { slot, generation: r.generation() }, r))
}
