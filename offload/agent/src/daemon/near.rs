//! What is near: the answer to the upcall of a lone first packet.
//!
//! Such a packet goes from thread to thread, and each of them is asleep on a core that is asleep as well; to wake both takes longer
//! than what the thread then does. So a thread that knows itself to be next looks for its work instead of sleeping, for a moment and
//! giving way to others between two looks. In a storm threads mostly find work without that, and the cores have better to do.

use std::time::{Duration, Instant};

/// How long a thread looks for what is near: it takes ovs-vswitchd some tens of microseconds to find a packet's flow.
const NEAR: Duration = Duration::from_micros(100);
/// Time without upcalls that makes the next one a lone one.
const QUIET: Duration = Duration::from_micros(250);
/// Upcalls at a time that are no storm yet.
const FEW: u64 = 2;

/// Giving way for longer means that the core has other work. A thread that is woken comes before that, one that looks does not.
const CONTENDED: Duration = Duration::from_micros(20);

/// Until when something is near.
#[derive(Debug, Default)]
pub(super) struct Near(Option<Instant>);

impl Near {
    /// Something will come.
    pub(super) fn begin(&mut self) {
        self.0 = Some(Instant::now() + NEAR);
    }

    /// It has come.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    /// Lets others have the core between two looks; with many of them, sleeping is better than looking.
    pub(super) fn give_way(&mut self) {
        let start = Instant::now();
        std::thread::yield_now();
        if start.elapsed() > CONTENDED {
            self.end();
        }
    }

    /// True if it pays to look again at once.
    pub(super) fn is_near(&mut self) -> bool {
        let near = self.0.is_some_and(|until| Instant::now() < until);
        if !near {
            self.0 = None;
        }
        near
    }
}

/// Tells upcalls of lone first packets from those of storms.
#[derive(Debug)]
pub(super) struct Lone {
    sent: u64,
    last: Instant,
}

impl Lone {
    /// Nothing was sent yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: 0, last: now }
    }

    /// True if so many upcalls sent in all mean that there are new ones, and lone ones.
    pub(super) fn are_new(&mut self, sent: u64) -> bool {
        let new = sent.saturating_sub(self.sent);
        if new == 0 {
            return false;
        }
        let now = Instant::now();
        let quiet = now.saturating_duration_since(self.last) >= QUIET;
        (self.sent, self.last) = (sent, now);
        quiet && new <= FEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_few_upcalls_after_a_quiet_time_are_lone() {
        let long_ago = Instant::now() - Duration::from_secs(1);
        let mut lone = Lone::new(long_ago);
        assert!(!lone.are_new(0), "there are none");
        assert!(lone.are_new(2));
        lone.last = long_ago;
        assert!(!lone.are_new(2), "the same ones");
        assert!(!lone.are_new(5), "a burst");
        lone.last = Instant::now() + Duration::from_secs(60);
        assert!(!lone.are_new(6), "they have not been quiet");
        lone.last = long_ago;
        assert!(lone.are_new(7));
    }

    #[test]
    fn what_does_not_come_is_not_looked_for_for_ever() {
        let mut near = Near::default();
        assert!(!near.is_near());
        near.begin();
        while near.is_near() {}
        near.begin();
        near.end();
        assert!(!near.is_near());
    }
}
