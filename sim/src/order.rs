//! Order across the slow path (FL1.md, section 8, "Order"): which flows have frames that the slow path is not done with.

use crate::queue::Bell;
use crate::violation::{Violation, ViolationCode};

/// Buckets that flows are told apart by.
const BUCKETS: usize = 1024;

/// What one slow queue with ORDER remembers.
pub(crate) struct Order {
    /// RX_DONE.
    done: Bell,
    /// RX completions produced when a bucket's last frame was given up, by bucket.
    last: Box<[u32; BUCKETS]>,
}

impl Order {
    pub(crate) fn new() -> Self {
        Self { done: Bell::default(), last: Box::new([0; BUCKETS]) }
    }

    /// Takes a new value of RX_DONE at doorbell `offset`; `produced` completions were.
    pub(crate) fn ring(&mut self, v: u32, offset: usize, produced: u32) -> Result<(), Violation> {
        let fits = v.wrapping_sub(self.done.value) <= produced.wrapping_sub(self.done.value);
        self.done.ring(v, offset, fits, ViolationCode::HeadOverrun)
    }

    /// True if the slow path is done with everything.
    pub(crate) fn is_idle(&self, produced: u32) -> bool {
        self.done.value == produced
    }

    /// A frame with this hash was given up; its last completion was number `produced`.
    pub(crate) fn given_up(&mut self, hash: u32, produced: u32) {
        self.last[hash as usize % BUCKETS] = produced;
    }

    /// True if a frame with this hash would overtake one. (A bucket that was last used 2^32 completions ago may wait
    /// in vain, until the slow path is idle.)
    pub(crate) fn would_overtake(&self, hash: u32, produced: u32) -> bool {
        let last = self.last[hash as usize % BUCKETS].wrapping_sub(self.done.value);
        last != 0 && last <= produced.wrapping_sub(self.done.value)
    }
}
