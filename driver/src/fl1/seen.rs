//! What was last seen of each entry's counters: a device whose counters run backwards is found out, and what was counted
//! once stays counted.

use crate::nic::EntryCounters;
use std::sync::atomic::{AtomicU64, Ordering};

/// The highest packets and bytes that were read of each entry since it was installed. Written by readers, hence atomic; there
/// is one at a time.
pub(super) struct Seen {
    words: Vec<[AtomicU64; 2]>,
    /// Index of an entry whose counters ran backwards, plus one; 0: none.
    backwards: AtomicU64,
}

impl Seen {
    /// Of a table with so many entries.
    pub(super) fn new(entries: usize) -> Self {
        Self { words: (0..entries).map(|_| Default::default()).collect(), backwards: AtomicU64::new(0) }
    }

    /// The entry was installed: its counters start at 0.
    pub(super) fn restart(&self, index: u32) {
        for word in self.words.get(index as usize).into_iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Takes what the device says of an installed entry; counters that are lower than before stay as they were, and the
    /// entry is noted.
    pub(super) fn check(&self, index: u32, mut now: EntryCounters) -> EntryCounters {
        let Some(words) = self.words.get(index as usize) else { return now };
        for (word, value) in words.iter().zip([&mut now.packets, &mut now.bytes]) {
            let before = word.load(Ordering::Relaxed);
            if *value < before {
                *value = before;
                self.backwards.store(u64::from(index) + 1, Ordering::Relaxed);
            } else if *value > before {
                word.store(*value, Ordering::Relaxed);
            }
        }
        now
    }

    /// An entry whose counters ran backwards since this was last asked.
    pub(super) fn take_backwards(&self) -> Option<u32> {
        // Looked at first: there is one, if ever, in a device that is broken.
        if self.backwards.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.backwards.swap(0, Ordering::Relaxed).checked_sub(1).map(|index| index as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_run_backwards_stay_where_they_were_and_are_told_once() {
        let seen = Seen::new(4);
        let counted = |packets, bytes| EntryCounters { packets, bytes, used_ns: 1, tcp_flags: 2 };
        assert_eq!(seen.check(3, counted(5, 500)), counted(5, 500));
        assert_eq!(seen.take_backwards(), None);
        assert_eq!(seen.check(3, counted(6, 400)), counted(6, 500), "each word on its own");
        assert_eq!(seen.check(2, counted(0, 0)), counted(0, 0), "another entry's are its own");
        assert_eq!((seen.take_backwards(), seen.take_backwards()), (Some(3), None));
        seen.restart(3);
        assert_eq!(seen.check(3, counted(1, 60)), counted(1, 60), "installed anew");
        assert_eq!(seen.check(9, counted(1, 60)), counted(1, 60), "no such entry");
        assert_eq!(seen.take_backwards(), None);
    }
}
