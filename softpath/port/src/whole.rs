//! Whole frames, one at a time, from bursts of unfinished ones.

use std::collections::VecDeque;

use crate::burst::Burst;
use crate::offload::finish;
use crate::{BurstSource, Frame, PortError};

/// Frames that were received and finished, and wait to be lent. Its buffers are made on first use: who receives bursts has none.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    burst: Option<Box<Burst>>,
    scratch: Vec<u8>,
    /// Bytes of all frames that wait, from `next` on.
    bytes: Vec<u8>,
    next: usize,
    lens: VecDeque<usize>,
}

impl Whole {
    /// Receives a burst of `port`, whose own queue this is, unless frames wait already.
    fn fill(&mut self, port: &mut impl BurstSource) -> Result<(), PortError> {
        if !self.lens.is_empty() {
            return Ok(());
        }
        self.bytes.clear();
        self.next = 0;
        let Self { burst, scratch, bytes, lens, .. } = self;
        let burst = burst.get_or_insert_default();
        port.receive_burst(burst, &mut |frame| {
            let mut keep = |whole: &[u8]| {
                bytes.extend_from_slice(whole);
                lens.push_back(whole.len());
            };
            match frame.offload {
                None => keep(frame.data),
                // The port has checked what segmentation needs, but for the IP header's own sense; what even then cannot be
                // finished is nothing that a wire could carry.
                Some(offload) => drop(finish(frame.data, &offload, scratch, &mut keep)),
            }
        })?;
        Ok(())
    }

    /// The next whole frame of `port`, whose own queue `of` gives.
    pub(crate) fn receive<P: BurstSource>(
        port: &mut P,
        of: fn(&mut P) -> &mut Whole,
    ) -> Result<Option<Frame<'_>>, PortError> {
        let mut whole = std::mem::take(of(port));
        let filled = whole.fill(port);
        *of(port) = whole;
        filled?;
        Ok(of(port).next())
    }

    /// The oldest frame that waits.
    fn next(&mut self) -> Option<Frame<'_>> {
        let len = self.lens.pop_front()?;
        let from = self.next;
        self.next += len;
        self.bytes.get(from..from + len).map(Frame::new)
    }
}
