//! How the daemon's threads talk: each owns its state, and runs what others ask it to do with it, in order, between two
//! turns of its loop. No state is shared and locked.
//!
//! Calls go one way only, from control to Netlink to engine, so that no two threads ever wait for each other.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

#[derive(Debug)]
struct Wake {
    event: EventFd,
    /// The owner was woken and has not looked yet.
    pending: AtomicBool,
}

/// Where others leave jobs for the owner of a `T`.
pub struct Mailbox<T> {
    jobs: Sender<Job<T>>,
    wake: Arc<Wake>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), wake: Arc::clone(&self.wake) }
    }
}

/// The owner's side of a mailbox.
pub struct Inbox<T> {
    jobs: Receiver<Job<T>>,
    wake: Arc<Wake>,
}

/// A mailbox and its owner's side.
///
/// # Errors
/// The system gives no event descriptor.
pub fn mailbox<T>() -> nix::Result<(Mailbox<T>, Inbox<T>)> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let wake = Arc::new(Wake { event, pending: AtomicBool::new(false) });
    let (sender, receiver) = channel();
    Ok((Mailbox { jobs: sender, wake: Arc::clone(&wake) }, Inbox { jobs: receiver, wake }))
}

impl<T> Mailbox<T> {
    /// Leaves a job. Without an owner nobody does it.
    pub fn send(&self, job: impl FnOnce(&mut T) + Send + 'static) {
        self.leave(job);
        self.wake();
    }

    /// Leaves a job that the owner finds when it next looks, for whatever reason: [`Self::wake`] is the caller's to call.
    pub fn leave(&self, job: impl FnOnce(&mut T) + Send + 'static) {
        // Without an owner nobody does it.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Has the owner look.
    pub fn wake(&self) {
        if !self.wake.pending.swap(true, Ordering::AcqRel) {
            // A full counter wakes as well.
            let _ = self.wake.event.write(1);
        }
    }

    /// Leaves a job and waits for what it gives; `None` if the owner is gone.
    pub fn call<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> Option<R> {
        let (answer, wait) = sync_channel(1);
        self.send(move |owner| {
            // Nobody waits any more: the result is of no use.
            let _ = answer.send(job(owner));
        });
        wait.recv().ok()
    }
}

impl<T> Inbox<T> {
    /// Does up to `max` jobs; how many there were.
    pub fn run(&self, owner: &mut T, max: usize) -> usize {
        if self.wake.pending.swap(false, Ordering::AcqRel) {
            // It is only there to wake.
            let _ = self.wake.event.read();
        }
        let mut done = 0;
        while done < max
            && let Ok(job) = self.jobs.try_recv()
        {
            job(owner);
            done += 1;
        }
        if done == max && !self.wake.pending.swap(true, Ordering::AcqRel) {
            // There may be more: the owner comes back at once.
            let _ = self.wake.event.write(1);
        }
        done
    }
}

impl<T> AsFd for Inbox<T> {
    /// Readable when there are jobs.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable<T>(inbox: &Inbox<T>) -> bool {
        let mut fds = [PollFd::new(inbox.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn jobs_are_done_in_order_and_wake_their_owner() {
        let (mailbox, inbox) = mailbox::<Vec<u32>>().unwrap();
        let mut owner = Vec::new();
        assert!(!readable(&inbox));
        (0..5).for_each(|n| mailbox.send(move |v: &mut Vec<u32>| v.push(n)));
        assert!(readable(&inbox));
        assert_eq!(inbox.run(&mut owner, 3), 3);
        assert!(readable(&inbox), "two are left");
        assert_eq!(inbox.run(&mut owner, 3), 2);
        assert!(!readable(&inbox));
        assert_eq!(owner, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_job_that_was_left_waits_for_the_next_look() {
        let (mailbox, inbox) = mailbox::<Vec<u32>>().unwrap();
        let mut owner = Vec::new();
        mailbox.leave(|v| v.push(1));
        assert!(!readable(&inbox));
        mailbox.wake();
        assert!(readable(&inbox));
        mailbox.leave(|v| v.push(2));
        assert_eq!(inbox.run(&mut owner, 3), 2);
        assert_eq!(owner, [1, 2]);
    }

    #[test]
    fn a_call_waits_for_its_result_and_not_for_an_owner_that_is_gone() {
        let (mailbox, inbox) = mailbox::<u32>().unwrap();
        let owner = std::thread::spawn(move || {
            let (mut state, mut done) = (41, 0);
            while done == 0 {
                done += inbox.run(&mut state, 1);
            }
        });
        assert_eq!(
            mailbox.call(|state| {
                *state += 1;
                *state
            }),
            Some(42)
        );
        owner.join().unwrap();
        assert_eq!(mailbox.call(|state| *state), None);
    }
}
