//! How long flows take into the NIC: from their request until their entries are confirmed.

use flowlift_offload::planner::{FlowId, Planner, State};
use std::collections::VecDeque;

/// Flows that the figures are about: the last ones.
const RECENT: usize = 4096;
/// Flows that are awaited at most; the time of one more is not taken.
const AWAITED: usize = 64 * 1024;

/// What the last flows took, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct OffloadTimes {
    /// How many flows the figures are about.
    pub flows: usize,
    /// Half of them took no longer.
    pub median_us: u32,
    /// 99 of 100 took no longer.
    pub p99_us: u32,
    /// None took longer.
    pub longest_us: u32,
}

/// Takes the times.
#[derive(Debug, Default)]
pub struct OffloadClock {
    /// Flows on their way, with the time of their request, in the order in which they came.
    awaited: VecDeque<(FlowId, u64)>,
    /// Microseconds of the last flows.
    recent: VecDeque<u32>,
}

impl OffloadClock {
    /// A flow was requested at this time, in nanoseconds of the planner's clock.
    pub fn start(&mut self, id: FlowId, at_ns: u64) {
        if self.awaited.len() < AWAITED {
            self.awaited.push_back((id, at_ns));
        }
    }

    /// Takes the time of the flows that are in hardware by now; one that stays in software has none.
    pub fn look(&mut self, planner: &Planner) {
        while let Some((id, requested)) = self.awaited.front().copied() {
            if planner.state(id).is_some_and(|(state, _)| state == State::PendingInsert) {
                return;
            }
            self.awaited.pop_front();
            // An older one is of another life of the flow.
            if let Some(took) = planner.in_hardware_since_ns(id).and_then(|at| at.checked_sub(requested)) {
                self.recent.truncate(RECENT - 1);
                self.recent.push_front(u32::try_from(took / 1000).unwrap_or(u32::MAX));
            }
        }
    }

    /// What the last flows took; `None` before the first.
    pub fn times(&self) -> Option<OffloadTimes> {
        let mut sorted: Vec<u32> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let flows = sorted.len();
        let at = |n: usize| sorted.get(n.min(flows.saturating_sub(1))).copied();
        Some(OffloadTimes {
            flows,
            median_us: at(flows / 2)?,
            p99_us: at(flows * 99 / 100)?,
            longest_us: at(flows)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_last_flows() {
        let mut clock = OffloadClock::default();
        assert_eq!(clock.times(), None);
        clock.recent = (1..=100).collect();
        assert_eq!(
            clock.times(),
            Some(OffloadTimes { flows: 100, median_us: 51, p99_us: 100, longest_us: 100 })
        );
    }
}
