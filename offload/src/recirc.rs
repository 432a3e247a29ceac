//! Recirculation as stages of the NIC's pipeline.
//!
//! A recirculation ID travels in the metadata register, and flows with that ID live in one stage: one past the last
//! stage from which a flow recirculates to it, so that every way there leads forwards. The stages follow from what the
//! flows say alone, not from which of them are in hardware just now; so they never swing to and fro.

use crate::lower::RecircStages;
use crate::lower::actions::recirculation;
use crate::refusal::RecircCause;
use flowlift_driver::nic::Stage;
use flowlift_flow::Flow;
use std::collections::{BTreeMap, BTreeSet};

/// From which recirculation ID to which a flow leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// ID that the flow matches; 0 from the wire.
    pub from: u32,
    /// ID that it gives.
    pub to: u32,
}

/// The recirculation that a flow ends with, if it does so in a way that hardware could follow.
pub fn hop(flow: &Flow) -> Option<Hop> {
    let m = &flow.matching;
    let from = m.key.recirc_id & m.mask.0.recirc_id;
    recirculation(&flow.actions).map(|to| Hop { from, to })
}

/// The recirculation ID of the flow itself.
pub fn recirc_id(flow: &Flow) -> u32 {
    flow.matching.key.recirc_id & flow.matching.mask.0.recirc_id
}

/// All hops of the flows, and the stages that follow from them.
#[derive(Debug, Clone, Default)]
pub struct RecircGraph {
    hops: BTreeMap<Hop, u32>,
    depths: BTreeMap<u32, Result<u16, RecircCause>>,
    stages: u16,
    stale: bool,
}

impl RecircGraph {
    /// For a NIC whose last stage with tables is `last`.
    pub fn new(last: Stage) -> Self {
        Self { stages: u16::from(last.0) + 1, ..Self::default() }
    }

    /// Counts a flow's hop.
    pub fn add(&mut self, hop: Hop) {
        let n = self.hops.entry(hop).or_insert(0);
        *n += 1;
        self.stale |= *n == 1;
    }

    /// Takes a flow's hop away again.
    pub fn remove(&mut self, hop: Hop) {
        if let Some(n) = self.hops.get_mut(&hop) {
            *n -= 1;
            if *n == 0 {
                self.hops.remove(&hop);
                self.stale = true;
            }
        }
    }

    /// Works out the stages anew if hops came or went. Returns the IDs whose stage, or reason for having none, changed.
    pub fn update(&mut self) -> BTreeSet<u32> {
        if !std::mem::take(&mut self.stale) {
            return BTreeSet::new();
        }
        let new = self.longest_ways();
        let both = self.depths.keys().chain(new.keys());
        let changed = both.filter(|id| self.depths.get(id) != new.get(id)).copied().collect();
        self.depths = new;
        changed
    }

    /// IDs from which a hop leads to one of `ids`.
    pub fn parents_of(&self, ids: &BTreeSet<u32>) -> BTreeSet<u32> {
        self.hops.keys().filter(|h| ids.contains(&h.to)).map(|h| h.from).collect()
    }

    /// Longest way to each ID that is reached from 0, in hops; what lies in or behind a circle has none.
    fn longest_ways(&self) -> BTreeMap<u32, Result<u16, RecircCause>> {
        let next = |id: u32| {
            self.hops.range(Hop { from: id, to: 0 }..=Hop { from: id, to: u32::MAX }).map(|(h, _)| h.to)
        };
        let mut reached = BTreeSet::from([0]);
        let mut open = vec![0];
        let mut ways_in: BTreeMap<u32, u32> = BTreeMap::new();
        while let Some(id) = open.pop() {
            for to in next(id) {
                *ways_in.entry(to).or_insert(0) += 1;
                if reached.insert(to) {
                    open.push(to);
                }
            }
        }
        // Nothing leads back to 0: a packet from the wire has not been anywhere.
        let mut found: BTreeMap<u32, u16> = BTreeMap::from([(0, 0)]);
        let mut done = BTreeMap::new();
        let mut open = if ways_in.contains_key(&0) { vec![] } else { vec![0] };
        while let Some(id) = open.pop() {
            let depth = found.get(&id).copied().unwrap_or(0);
            done.insert(id, if depth < self.stages { Ok(depth) } else { Err(self.too_deep(depth)) });
            for to in next(id) {
                let way = found.entry(to).or_insert(0);
                *way = (*way).max(depth.saturating_add(1));
                if let Some(n) = ways_in.get_mut(&to) {
                    *n -= 1;
                    if *n == 0 {
                        open.push(to);
                    }
                }
            }
        }
        reached.iter().filter(|id| **id != 0).for_each(|id| {
            done.entry(*id).or_insert(Err(RecircCause::Circle));
        });
        done
    }

    fn too_deep(&self, depth: u16) -> RecircCause {
        RecircCause::TooDeep { need: depth.saturating_add(1), have: self.stages }
    }
}

impl RecircStages for RecircGraph {
    fn stage(&self, recirc_id: u32) -> Result<Stage, RecircCause> {
        if recirc_id == 0 {
            return Ok(Stage(0));
        }
        let depth = self.depths.get(&recirc_id).copied().unwrap_or(Err(RecircCause::NoParent))?;
        u8::try_from(depth).map(Stage).map_err(|_| self.too_deep(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(stages: u8, hops: &[(u32, u32)]) -> RecircGraph {
        let mut g = RecircGraph::new(Stage(stages - 1));
        hops.iter().for_each(|(from, to)| g.add(Hop { from: *from, to: *to }));
        g.update();
        g
    }

    #[test]
    fn an_id_lies_past_every_stage_that_leads_to_it() {
        let g = graph(4, &[(0, 5), (0, 6), (5, 6), (6, 7), (5, 7)]);
        assert_eq!(g.stage(0), Ok(Stage(0)));
        assert_eq!(g.stage(5), Ok(Stage(1)));
        assert_eq!(g.stage(6), Ok(Stage(2)));
        assert_eq!(g.stage(7), Ok(Stage(3)));
        assert_eq!(g.stage(8), Err(RecircCause::NoParent));
    }

    #[test]
    fn circles_and_depths_have_their_reason_and_harm_no_other() {
        let g = graph(2, &[(0, 1), (1, 2), (2, 1), (0, 9), (2, 4)]);
        assert_eq!(g.stage(1), Err(RecircCause::Circle));
        assert_eq!(g.stage(4), Err(RecircCause::Circle), "behind the circle");
        assert_eq!(g.stage(9), Ok(Stage(1)));
        let g = graph(2, &[(0, 1), (1, 2), (7, 8)]);
        assert_eq!(g.stage(2), Err(RecircCause::TooDeep { need: 3, have: 2 }));
        assert_eq!(g.stage(8), Err(RecircCause::NoParent), "7 itself is never reached");
    }

    #[test]
    fn changes_name_the_ids_that_moved() {
        let mut g = graph(3, &[(0, 1), (0, 2)]);
        g.add(Hop { from: 1, to: 2 });
        assert_eq!(g.update(), BTreeSet::from([2]));
        assert_eq!(g.parents_of(&BTreeSet::from([2])), BTreeSet::from([0, 1]));
        g.add(Hop { from: 1, to: 2 });
        assert!(g.update().is_empty(), "a second flow with the same hop changes nothing");
        g.remove(Hop { from: 1, to: 2 });
        assert!(g.update().is_empty());
        g.remove(Hop { from: 1, to: 2 });
        assert_eq!(g.update(), BTreeSet::from([2]));
        assert_eq!(g.stage(2), Ok(Stage(1)));
    }
}
