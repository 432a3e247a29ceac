//! The service thread's sleep, and how others end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

/// A thread that sleeps when it has nothing to do.
#[derive(Default)]
pub struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Sleeper {
    fn thread(&self) -> MutexGuard<'_, Option<Thread>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the thread.
    pub fn is(&self, thread: Thread) {
        *self.thread() = Some(thread);
    }

    /// There is something to do.
    pub fn wake(&self) {
        // Read first: it is awake as a rule, and a write would take the line from it.
        if self.asleep.load(Ordering::Acquire)
            && self.asleep.swap(false, Ordering::AcqRel)
            && let Some(thread) = self.thread().as_ref()
        {
            thread.unpark();
        }
    }

    /// The calling thread, which is the one that was named, sleeps unless `is_needed`, until somebody wakes it or `longest` is over.
    pub fn sleep(&self, longest: Duration, is_needed: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::Release);
        if !is_needed() {
            std::thread::park_timeout(longest);
        }
        self.asleep.store(false, Ordering::Release);
    }
}
