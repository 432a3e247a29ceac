//! The service thread's work: rules to the planner, packets that no thread of the application moves, and what the NIC reports.
//!
//! One turn takes everything that has come in, in this order: rules; packets from the slow queues to the receive rings; packets
//! that wait for the NIC; completions and events, and the updates that follow. It never blocks.

use super::device::Simulated;
use super::packets::{Packets, Sent};
use super::port::{Port, RxQueue, TxQueue};
use super::rules::{Rule, Rules, Taken};
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::{Nic, NicError, NicState, SlowTx};
use flowlift_offload::pipeline::Pipeline;
use flowlift_offload::planner::{Planner, Stats};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Nobody polls who has not for so long, in nanoseconds.
const UNPOLLED_NS: u64 = 10_000_000;
/// Flows that the planner has to plan or send, from which on it is told of no more.
const BACKLOG: usize = 1024;
/// Turns between two looks at the links.
const LINK_TURNS: u32 = 64;

/// A change of the rules, in the order of the calls.
pub enum Change {
    /// A rule was created.
    Put(Arc<Rule>),
    /// A rule was destroyed.
    Remove(Arc<Rule>),
}

/// What the service thread tells DPDK once it holds no lock.
pub enum Event {
    /// The link of a port changed.
    Link(Arc<Port>),
    /// The NIC is gone.
    Gone(Arc<Port>),
}

/// A started port's way out.
struct Active {
    port: Arc<Port>,
    tx: Vec<Arc<TxQueue>>,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Something was done.
    Worked,
    /// Nothing could be done before the NIC does something, which may need the same CPU.
    Waiting,
    /// Packets wait for room in the NIC, and nothing else was to do.
    Stuck,
    /// There was nothing to do.
    Idle,
}

/// What a port gives the engine when it starts.
pub struct Start {
    /// Port.
    pub port: Arc<Port>,
    /// Its receive queues.
    pub rx: Vec<Arc<RxQueue>>,
    /// Its transmit queues.
    pub tx: Vec<Arc<TxQueue>>,
}

/// See the module's head.
pub struct Engine {
    nic: Fl1,
    /// The simulated device, if that is what the NIC is. After `nic`, which talks to it as it is dropped.
    simulated: Option<Simulated>,
    planner: Planner,
    rules: Rules,
    active: Vec<Active>,
    /// By the NIC's port number, all probed ports: for links and events.
    ports: Vec<Arc<Port>>,
    /// Packets that a failed NIC gave back.
    unsent: VecDeque<(SlowTx, Vec<u8>)>,
    /// What changed and was not told to the planner yet.
    changes: VecDeque<Change>,
    packets: Arc<Packets>,
    /// Polls of the application when last looked at, and when they went on.
    polls: (u32, u64),
    turns: u32,
    gone_told: bool,
    start: Instant,
}

impl Engine {
    /// An engine for a NIC that was just brought up.
    pub fn new(nic: Fl1, simulated: Option<Simulated>, pipeline: Pipeline, packets: Arc<Packets>) -> Self {
        Self {
            nic,
            simulated,
            planner: Planner::over(pipeline),
            rules: Rules::default(),
            active: Vec::new(),
            ports: Vec::new(),
            unsent: VecDeque::new(),
            changes: VecDeque::new(),
            packets,
            polls: (0, 0),
            turns: 0,
            gone_told: false,
            start: Instant::now(),
        }
    }

    /// The NIC.
    pub fn nic(&self) -> &Fl1 {
        &self.nic
    }

    /// The simulated device, if that is what the NIC is.
    pub fn simulated(&self) -> Option<&Simulated> {
        self.simulated.as_ref()
    }

    /// What the planner counted.
    pub fn planner_stats(&self) -> Stats {
        self.planner.stats()
    }

    /// True if every change that was handed over has its answer.
    pub fn is_settled(&self) -> bool {
        self.changes.is_empty() && self.planner.is_idle()
    }

    /// A port was probed.
    pub fn attach(&mut self, port: Arc<Port>) {
        self.ports.push(port);
    }

    /// A port is being closed.
    pub fn detach(&mut self, port: &Arc<Port>) {
        self.stop(port);
        self.ports.retain(|p| !Arc::ptr_eq(p, port));
    }

    /// A port starts: its queues are used from now on.
    pub fn start(&mut self, start: Start) {
        self.packets.start(Arc::clone(&start.port), start.rx);
        self.active.push(Active { port: start.port, tx: start.tx });
    }

    /// A port stops: its queues are not touched any more.
    pub fn stop(&mut self, port: &Arc<Port>) {
        self.active.retain(|a| !Arc::ptr_eq(&a.port, port));
        self.packets.stop(port);
    }

    /// Packets and bytes that hardware counted for a rule since it was made or reset.
    pub fn query(&self, rule: &Rule, reset: bool) -> (u64, u64) {
        let Some(id) = rule.slot() else { return (0, 0) };
        rule.counted(self.planner.counters(id, &self.nic), reset)
    }

    /// Takes over changes, if all that it has were told to the planner; the list is lent the other one's memory.
    pub fn take(&mut self, changes: &mut VecDeque<Change>) {
        if self.changes.is_empty() {
            std::mem::swap(&mut self.changes, changes);
        }
    }

    /// One turn; what came of it.
    pub fn turn(&mut self, events: &mut Vec<Event>) -> Turn {
        let mut worked = self.apply();
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        worked |= self.receive(now);
        let sent = self.transmit();
        worked |= sent == Sent::Some;
        let before = self.planner.stats();
        self.planner.pump(&mut self.nic, &self.rules, now);
        worked |= self.planner.stats() != before;
        self.reap();
        // Before those that wait to be sent again: they were sent again already.
        self.nic.take_unsent().into_iter().rev().for_each(|frame| self.unsent.push_front(frame));
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(LINK_TURNS) {
            self.watch(events);
        }
        match worked {
            true => Turn::Worked,
            false if !self.planner.is_idle() => Turn::Waiting,
            false if sent == Sent::Stuck || !self.unsent.is_empty() => Turn::Stuck,
            false => Turn::Idle,
        }
    }

    /// Tells the planner of changes, as long as it has not enough to do: what it hears of it plans while that is in the cache.
    fn apply(&mut self) -> bool {
        let mut any = false;
        while self.planner.backlog() < BACKLOG
            && let Some(change) = self.changes.pop_front()
        {
            any = true;
            match change {
                Change::Put(rule) => self.put(rule),
                Change::Remove(rule) => {
                    if let Some(id) = self.rules.removing(&rule) {
                        self.planner.remove(id);
                    }
                }
            }
        }
        any
    }

    fn put(&mut self, rule: Arc<Rule>) {
        let (group, hop) = (rule.shape.group, rule.shape.hop);
        let id = match self.rules.put(rule) {
            Taken::New(id) => id,
            Taken::Instead(id) => {
                // What the place counted until now was the old rule's.
                if let Some(rule) = self.rules.get(id) {
                    rule.counted(self.planner.counters(id, &self.nic), true);
                }
                id
            }
        };
        self.planner.put_leading(id, group, hop);
    }

    /// Forgets what left the hardware for good.
    fn reap(&mut self) {
        for (id, _) in self.planner.take_removed() {
            self.rules.removed(id);
        }
    }

    /// Takes packets in, unless threads of the application do.
    fn receive(&mut self, now: u64) -> bool {
        let polls = self.packets.polls();
        if polls != self.polls.0 {
            self.polls = (polls, now);
        }
        if self.nic.state() == NicState::Ready && now.saturating_sub(self.polls.1) < UNPOLLED_NS {
            return false;
        }
        self.packets.take_in(&mut self.nic).unwrap_or_else(|error| {
            tracing::debug!(%error, "slow queues");
            true
        })
    }

    /// Sends what waits: first what a failed NIC gave back, then what the application's threads could not send.
    fn transmit(&mut self) -> Sent {
        let mut outcome = Sent::Nothing;
        while let Some((to, frame)) = self.unsent.pop_front() {
            match self.nic.tx(to, &frame) {
                Ok(true) | Err(NicError::Invalid(_)) => outcome = Sent::Some,
                Err(_) if self.nic.state() == NicState::Gone => outcome = Sent::Some,
                Ok(false) | Err(_) => {
                    self.unsent.push_front((to, frame));
                    return Sent::Stuck;
                }
            }
        }
        self.nic.resume_slow_path();
        let gone = self.nic.state() == NicState::Gone;
        for queue in self.active.iter().flat_map(|a| &a.tx) {
            if gone {
                queue.refuse_waiting();
                continue;
            }
            outcome = outcome.max(self.packets.send_waiting(queue));
        }
        outcome
    }

    /// Tells of links that changed, and of a NIC that is gone.
    fn watch(&mut self, events: &mut Vec<Event>) {
        let gone = self.nic.state() == NicState::Gone;
        for port in &self.ports {
            let up = !gone && self.nic.link(port.nic_port);
            if port.link.swap(up, Ordering::AcqRel) != up {
                events.push(Event::Link(Arc::clone(port)));
            }
        }
        if gone && !self.gone_told {
            self.gone_told = true;
            events.extend(self.ports.iter().map(|port| Event::Gone(Arc::clone(port))));
        }
    }
}
