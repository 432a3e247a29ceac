//! What the slow path is done with (FL1.md section 8, "Order"): the device lets a flow's frames pass its tables only behind
//! those that the slow path has, and hears here when these are through.
//!
//! "Done" is said by the slow path once it gave what became of all received frames to the transmit rings. The device is told
//! when those rings are sent up to there. One mark is waited for; a later one takes the place of any that waits behind it.

use super::regs::{DB_RX_DONE, Regs};
use super::slow::path::Slow;
use crate::nic::NicError;

/// Indices of all slow queues at one time: received to here, to be sent to there.
#[derive(Debug, Default)]
struct Mark {
    received: Vec<u32>,
    queued: Vec<u32>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Order {
    current: Option<Mark>,
    next: Option<Mark>,
    /// A mark to be used again, so that none is allocated per batch.
    spare: Option<Mark>,
    /// RX_DONE of each queue.
    told: Vec<u32>,
    /// What is received now: kept so that nothing is allocated per batch.
    received: Vec<u32>,
}

impl Order {
    /// As after a reset.
    pub(crate) fn restart(&mut self, queues: usize) {
        *self = Self { told: vec![0; queues], ..Self::default() };
    }

    /// The slow path is done with all that it received up to now.
    pub(crate) fn done(&mut self, slow: &Slow) {
        self.received.clear();
        slow.received(&mut self.received);
        if self.received == self.told {
            return;
        }
        let mut mark = self.next.take().or_else(|| self.spare.take()).unwrap_or_default();
        mark.received.clear();
        mark.received.extend(&self.received);
        mark.queued.clear();
        slow.queued(&mut mark.queued);
        if self.current.is_none() {
            self.current = Some(mark);
        } else {
            self.next = Some(mark);
        }
    }

    /// Tells the device of a mark that everything was sent for.
    pub(crate) fn advance(&mut self, regs: &Regs, slow: &Slow) -> Result<(), NicError> {
        while let Some(mark) = &self.current {
            if !slow.has_sent(&mark.queued) {
                return Ok(());
            }
            for (queue, (told, received)) in (0..).zip(self.told.iter_mut().zip(&mark.received)) {
                if told != received {
                    regs.ring(DB_RX_DONE.of(queue), *received)?;
                    *told = *received;
                }
            }
            self.spare = self.current.take();
            self.current = self.next.take();
        }
        Ok(())
    }
}
