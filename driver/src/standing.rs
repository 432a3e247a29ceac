//! Whether a NIC is still to be used: every error of it passes here and changes its state once; and when to look at its
//! health next.

use crate::nic::{NicError, NicState};
use flowlift_bus::BusError;
use std::time::Duration;

/// Polls after which health is looked at even though the clock stands still (a virtual one), or has not come far.
const POLLS_FROZEN: u32 = 64;
const POLLS_MAX: u32 = 4096;

/// State of a device, and why.
#[derive(Debug)]
pub(crate) struct Standing {
    state: NicState,
    failure: Option<String>,
}

impl Standing {
    /// A device that works.
    pub(crate) fn ready() -> Self {
        Self { state: NicState::Ready, failure: None }
    }

    pub(crate) fn state(&self) -> NicState {
        self.state
    }

    /// Why the device is in [`NicState::Failed`].
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// An error unless the device works.
    pub(crate) fn usable(&self, device: &str) -> Result<(), NicError> {
        match self.state {
            NicState::Ready => Ok(()),
            NicState::Gone => Err(NicError::Gone(device.into())),
            NicState::Failed => {
                Err(NicError::Failed { device: device.into(), why: self.failure.clone().unwrap_or_default() })
            }
        }
    }

    /// Notes what came of a use of the device. True if it was pulled out just now: what it wrote to host memory before stays
    /// readable, and is to be saved.
    pub(crate) fn note<T>(&mut self, device: &str, result: &Result<T, NicError>) -> bool {
        match result {
            Err(NicError::Gone(_) | NicError::Bus(BusError::Gone(_))) if self.state != NicState::Gone => {
                tracing::warn!(nic = device, "the NIC is gone");
                self.state = NicState::Gone;
                return true;
            }
            Err(NicError::Invalid(_) | NicError::Inexpressible(_)) | Ok(_) => {}
            Err(e) if self.state == NicState::Ready => {
                tracing::warn!(nic = device, error = %e, "the NIC failed");
                self.state = NicState::Failed;
                // Errors that come of it name device and failure themselves.
                self.failure = Some(match e {
                    NicError::Failed { why, .. } | NicError::Lies { what: why, .. } => why.clone(),
                    other => other.to_string(),
                });
            }
            Err(_) => {}
        }
        false
    }
}

/// When health was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Checkup {
    at: u64,
    polls: u32,
}

impl Checkup {
    /// It was looked at now.
    pub(crate) fn done(now: u64) -> Self {
        Self { at: now, polls: 0 }
    }

    /// Counts a poll; true if it is time to look again.
    pub(crate) fn is_due(&mut self, now: u64, interval: Duration) -> bool {
        self.polls = self.polls.saturating_add(1);
        let elapsed = now.saturating_sub(self.at);
        u128::from(elapsed) >= interval.as_nanos()
            || self.polls >= POLLS_FROZEN && elapsed == 0
            || self.polls >= POLLS_MAX
    }
}
