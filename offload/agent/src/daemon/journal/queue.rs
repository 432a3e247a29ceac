//! What waits for the journal's thread, up to a limit.
//!
//! A disk that is slow or full must not cost the daemon its memory. What does not fit makes the journal stale: all that waits is
//! given up, and so is what comes, until the thread begins anew and asks the plane for everything ([`Position`]).

use super::record::Record;
use flowlift_ovs::backend::DpIndex;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How far the plane has told everything to a journal that begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Which beginning it belongs to.
    pub(super) beginning: u64,
    /// The datapath that is next.
    pub dp: DpIndex,
    /// Its slot that is next.
    pub slot: u64,
}

impl Position {
    pub(super) fn start(beginning: u64) -> Self {
        Self { beginning, dp: DpIndex(i32::MIN), slot: 0 }
    }

    /// True before anything is told.
    pub fn is_start(self) -> bool {
        self == Self::start(self.beginning)
    }
}

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Order {
    Write(Record),
    /// The plane has told all that there was when the daemon began.
    Publish,
    /// The plane has told everything up to here; `None` for all of it.
    Told(u64, Option<Position>),
}

/// How the journal does, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct JournalStatus {
    /// Flows are saved; if not, the next daemon begins without them.
    pub saved: bool,
    /// Why flows are not saved.
    pub trouble: Option<String>,
    /// Bytes that wait to be written.
    pub waiting_bytes: usize,
    /// How often it was given up and begun anew.
    pub restarts: u64,
}

#[derive(Debug)]
struct State {
    orders: Vec<Order>,
    bytes: usize,
    /// Nothing is taken until the thread begins anew.
    stale: bool,
    /// Nobody tells anything any more.
    closed: bool,
    /// The thread sleeps until there is something.
    sleeps: bool,
    saved: bool,
    trouble: Option<String>,
    beginning: u64,
}

/// What the thread finds.
#[derive(Debug)]
pub(super) struct Found {
    /// In order; none if `stale`.
    pub orders: Vec<Order>,
    /// What is in the journal is not what there is.
    pub stale: bool,
    /// There will be no more.
    pub closed: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    /// Bytes that wait at most.
    limit: usize,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        let state = State {
            orders: Vec::new(),
            bytes: 0,
            stale: false,
            closed: false,
            sleeps: false,
            saved: true,
            trouble: None,
            beginning: 0,
        };
        Self { state: Mutex::new(state), filled: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it sleeps.
    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.sleeps) {
            self.filled.notify_one();
        }
    }

    pub(super) fn push(&self, order: Order) {
        let mut state = self.lock();
        if state.stale {
            return;
        }
        state.bytes += match &order {
            Order::Write(record) => record.memory(),
            Order::Publish | Order::Told(..) => size_of::<Order>(),
        };
        state.orders.push(order);
        if state.bytes > self.limit {
            state.give_up("the disk is too slow for what changes".to_owned());
        }
        self.wake(&mut state);
    }

    /// What is in the journal, or comes, is of no use.
    pub(super) fn fail(&self, why: String) {
        let mut state = self.lock();
        state.give_up(why);
        self.wake(&mut state);
    }

    /// Takes from now on what is told: the number of this beginning.
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.stale = false;
        state.beginning += 1;
        state.beginning
    }

    /// Everything is in the journal.
    pub(super) fn is_whole(&self) {
        let mut state = self.lock();
        state.saved = !state.stale;
        if state.saved && state.trouble.take().is_some() {
            tracing::info!("flows are saved for the next daemon again");
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(&mut state);
    }

    pub(super) fn status(&self) -> JournalStatus {
        let state = self.lock();
        JournalStatus {
            saved: state.saved,
            trouble: state.trouble.clone(),
            waiting_bytes: state.bytes,
            restarts: state.beginning,
        }
    }

    /// Waits until there is something, the journal is stale, or `until`.
    pub(super) fn take(&self, until: Option<Instant>) -> Found {
        let mut state = self.lock();
        while state.orders.is_empty() && !state.closed && (!state.stale || until.is_some()) {
            state.sleeps = true;
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(rest) if rest.is_zero() => break,
                Some(rest) => self.filled.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0,
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.sleeps = false;
        state.bytes = 0;
        Found { orders: std::mem::take(&mut state.orders), stale: state.stale, closed: state.closed }
    }
}

impl State {
    fn give_up(&mut self, why: String) {
        self.orders = Vec::new();
        self.bytes = 0;
        (self.stale, self.saved) = (true, false);
        // Told once, however long it lasts.
        if self.trouble.is_none() {
            tracing::warn!(why, "flows are not saved for the next daemon until the disk takes them again");
            self.trouble = Some(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_softpath::FlowId;

    fn record() -> Order {
        Order::Write(Record::Put(DpIndex(1), FlowId { slot: 0, generation: 0 }, vec![0; 1000]))
    }

    #[test]
    fn more_than_the_limit_never_waits() {
        let queue = Queue::new(10_000);
        for _ in 0..1_000 {
            queue.push(record());
            assert!(queue.status().waiting_bytes <= 10_000);
        }
        let status = queue.status();
        assert!(!status.saved && status.trouble.is_some(), "{status:?}");
        let found = queue.take(None);
        assert!(found.stale && found.orders.is_empty(), "half of it is of no use");
        queue.push(record());
        assert!(queue.take(None).orders.is_empty(), "nor is what comes before it begins anew");
        assert_eq!(queue.begin(), 1);
        queue.push(record());
        let found = queue.take(None);
        assert_eq!((found.stale, found.orders.len()), (false, 1));
        assert!(!queue.status().saved, "not before everything is told");
        queue.is_whole();
        let status = queue.status();
        assert_eq!((status.saved, status.trouble), (true, None));
    }

    #[test]
    fn trouble_is_what_began_it_until_everything_is_told() {
        let queue = Queue::new(10_000);
        for why in ["no space", "still no space"] {
            queue.fail(why.into());
            queue.begin();
            assert_eq!(queue.status().trouble.as_deref(), Some("no space"));
        }
        queue.is_whole();
        queue.fail("again".into());
        queue.is_whole();
        assert_eq!(queue.status().trouble.as_deref(), Some("again"), "it is stale");
    }
}
