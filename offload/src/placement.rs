//! Which of the flows that a bounded table could hold get a place in it.

use crate::planner::FlowId;
use crate::refusal::TableRef;

/// A flow that has, or wants, a place in a full table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Flow.
    pub id: FlowId,
    /// Packets per second over the last round.
    pub rate: u64,
    /// How long it has been where it is, in nanoseconds.
    pub stay_ns: u64,
}

/// One flow takes another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swap {
    /// Leaves the table.
    pub out: Candidate,
    /// Takes its place.
    pub into: Candidate,
}

/// A policy for full tables. It sees one table at a time and must be deterministic: runs are replayed from their inputs.
pub trait Placement: Send {
    /// Time from one round to the next, in nanoseconds.
    fn interval_ns(&self) -> u64;
    /// Which flows of a full table give their places to which waiting ones. No flow occurs twice in the answer.
    fn choose(&mut self, table: TableRef, installed: &[Candidate], waiting: &[Candidate]) -> Vec<Swap>;
}

/// The busiest flows have the places. A waiting flow must be clearly busier than the one that it puts out, and that one
/// must have been there for a while, so that two flows of nearly the same rate do not take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busiest {
    /// Time between rounds, ns.
    pub interval_ns: u64,
    /// A waiting flow must have at least this many times the other's rate.
    pub factor: u64,
    /// And at least this many packets per second.
    pub min_rate: u64,
    /// A flow keeps its place, and an evicted one waits, at least this long, ns.
    pub min_stay_ns: u64,
    /// Swaps per round and table.
    pub max_swaps: usize,
}

impl Default for Busiest {
    fn default() -> Self {
        Self {
            interval_ns: 1_000_000_000,
            factor: 2,
            min_rate: 10,
            min_stay_ns: 2_000_000_000,
            max_swaps: 64,
        }
    }
}

impl Placement for Busiest {
    fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    fn choose(&mut self, _table: TableRef, installed: &[Candidate], waiting: &[Candidate]) -> Vec<Swap> {
        let settled = |c: &&Candidate| c.stay_ns >= self.min_stay_ns;
        let mut idle: Vec<Candidate> = installed.iter().filter(settled).copied().collect();
        let busy = waiting.iter().filter(settled).filter(|c| c.rate >= self.min_rate);
        let mut busy: Vec<Candidate> = busy.copied().collect();
        idle.sort_by_key(|c| (c.rate, c.id));
        busy.sort_by_key(|c| (std::cmp::Reverse(c.rate), c.id));
        let pairs = idle.into_iter().zip(busy).take(self.max_swaps);
        pairs
            .take_while(|(out, into)| into.rate >= out.rate.saturating_mul(self.factor))
            .map(|(out, into)| Swap { out, into })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_driver::nic::{Stage, TableId};

    const TABLE: TableRef = TableRef { id: TableId(0), stage: Stage(0), tcam: true };

    fn c(id: u32, rate: u64) -> Candidate {
        Candidate { id: FlowId(id), rate, stay_ns: 5_000_000_000 }
    }

    #[test]
    fn the_busiest_waiting_flow_takes_the_idlest_place_once_it_is_clearly_busier() {
        let mut p = Busiest::default();
        let swaps = p.choose(TABLE, &[c(1, 100), c(2, 5), c(3, 5)], &[c(7, 199), c(8, 11), c(9, 9)]);
        let ids: Vec<_> = swaps.iter().map(|s| (s.out.id.0, s.into.id.0)).collect();
        assert_eq!(ids, [(2, 7), (3, 8)], "9 is below the least rate");
        assert!(p.choose(TABLE, &[c(1, 100)], &[c(7, 199)]).is_empty(), "not twice as busy");
    }

    #[test]
    fn a_flow_that_just_came_or_went_stays() {
        let mut p = Busiest::default();
        let fresh = Candidate { stay_ns: 0, ..c(1, 0) };
        assert!(p.choose(TABLE, &[fresh], &[c(7, 1000)]).is_empty());
        assert!(p.choose(TABLE, &[c(1, 0)], &[Candidate { id: FlowId(7), ..fresh }]).is_empty());
    }
}
