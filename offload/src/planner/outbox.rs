//! Updates that the device has not taken yet, in order, and the bytes of the entries among them: an entry is encoded here, compared
//! as it lies here, and given to the driver from here.

use flowlift_driver::nic::{Entry, EntryId, Nic, NicError, Update};
use std::collections::VecDeque;

/// Bytes of updates that were taken, after which those of the others move up.
const TAKEN_MAX: usize = 1 << 20;

#[derive(Debug)]
enum Queued {
    /// Insert of an entry of so many bytes, which follow those of the insert before.
    Insert {
        cookie: u64,
        id: EntryId,
        len: usize,
    },
    Delete {
        cookie: u64,
        id: EntryId,
    },
    Replace {
        cookie: u64,
        /// Boxed, as it is large and rare.
        update: Box<Update>,
    },
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    updates: VecDeque<Queued>,
    /// Entries: those that were taken up to `taken`, those that are queued up to `end`, then what is being encoded.
    bytes: Vec<u8>,
    taken: usize,
    end: usize,
}

impl Outbox {
    /// Updates that wait.
    pub(super) fn len(&self) -> usize {
        self.updates.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.updates.clear();
        self.bytes.clear();
        (self.taken, self.end) = (0, 0);
    }

    /// Where the next entries are to be encoded, at the end. What was encoded before and not queued is forgotten.
    pub(super) fn draft(&mut self) -> &mut Vec<u8> {
        self.bytes.truncate(self.end);
        &mut self.bytes
    }

    /// What was encoded and not queued yet.
    pub(super) fn drafted(&self) -> &[u8] {
        self.bytes.get(self.end..).unwrap_or(&[])
    }

    /// Queues the insert of the next entry that was encoded, which is `len` bytes long.
    pub(super) fn insert(&mut self, cookie: u64, id: EntryId, len: usize) {
        self.end += len;
        self.updates.push_back(Queued::Insert { cookie, id, len });
    }

    pub(super) fn delete(&mut self, cookie: u64, id: EntryId) {
        self.updates.push_back(Queued::Delete { cookie, id });
    }

    pub(super) fn replace(&mut self, cookie: u64, id: EntryId, entry: Entry) {
        let update = Box::new(Update::Replace { cookie, id, entry });
        self.updates.push_back(Queued::Replace { cookie, update });
    }

    /// Gives the device the first update. False: it did not take it, or there is none.
    pub(super) fn submit(&mut self, nic: &mut dyn Nic) -> Result<bool, NicError> {
        let taken = match self.updates.front() {
            None => false,
            Some(Queued::Insert { cookie, id, len }) => {
                let bytes = self.bytes.get_mut(self.taken..self.taken + len).unwrap_or_default();
                nic.submit_encoded(*cookie, *id, bytes)?
            }
            Some(Queued::Delete { cookie, id }) => {
                nic.submit(&[Update::Delete { cookie: *cookie, id: *id }])? == 1
            }
            Some(Queued::Replace { update, .. }) => nic.submit(std::slice::from_ref(update))? == 1,
        };
        if taken {
            self.pop();
        }
        Ok(taken)
    }

    /// Takes the first update out; its cookie.
    pub(super) fn pop(&mut self) -> Option<u64> {
        let cookie = match self.updates.pop_front()? {
            Queued::Insert { cookie, len, .. } => {
                self.taken += len;
                cookie
            }
            Queued::Delete { cookie, .. } | Queued::Replace { cookie, .. } => cookie,
        };
        if self.taken == self.end || self.taken > TAKEN_MAX {
            self.bytes.drain(..self.taken);
            self.end -= self.taken;
            self.taken = 0;
        }
        Some(cookie)
    }
}
