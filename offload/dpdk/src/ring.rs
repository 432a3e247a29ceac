//! A queue of pointers between one thread that puts and one that takes; neither waits for the other.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// A cache line of its own, so that the two ends do not slow each other down.
#[repr(align(64))]
#[derive(Default)]
struct End {
    /// Free-running: pointers put, or taken, so far.
    at: AtomicU32,
    /// Where the other end was when last looked at.
    seen: AtomicU32,
}

/// See the module's head. An end may pass from thread to thread by a lock. More than one thread at an end at once does no harm to
/// memory, but pointers may be lost or doubled.
pub struct Ring<T> {
    slots: Box<[AtomicPtr<T>]>,
    put: End,
    taken: End,
}

impl<T> Ring<T> {
    /// A ring for at least `size` pointers.
    pub fn new(size: u32) -> Self {
        let size = size.clamp(1, 1 << 20).next_power_of_two();
        let slots = (0..size).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect();
        Self { slots, put: End::default(), taken: End::default() }
    }

    fn size(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    fn slot(&self, at: u32) -> Option<&AtomicPtr<T>> {
        self.slots.get((at & (self.size() - 1)) as usize)
    }

    /// Pointers in it, as either end may see it.
    pub fn len(&self) -> u32 {
        let taken = self.taken.at.load(Ordering::Acquire);
        self.put.at.load(Ordering::Acquire).wrapping_sub(taken).min(self.size())
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts as many of `items` as there is room for, in order; returns how many.
    pub fn put(&self, items: &[*mut T]) -> usize {
        let at = self.put.at.load(Ordering::Relaxed);
        let mut seen = self.put.seen.load(Ordering::Relaxed);
        let wanted = u32::try_from(items.len()).unwrap_or(u32::MAX);
        if self.size() - at.wrapping_sub(seen).min(self.size()) < wanted {
            seen = self.taken.at.load(Ordering::Acquire);
            self.put.seen.store(seen, Ordering::Relaxed);
        }
        let room = (self.size() - at.wrapping_sub(seen).min(self.size())).min(wanted);
        for (n, item) in (0..room).zip(items) {
            if let Some(slot) = self.slot(at.wrapping_add(n)) {
                slot.store(*item, Ordering::Relaxed);
            }
        }
        self.put.at.store(at.wrapping_add(room), Ordering::Release);
        room as usize
    }

    /// Takes up to as many pointers as `out` has room for, oldest first; returns how many.
    pub fn take(&self, out: &mut [*mut T]) -> usize {
        let there = self.look(out);
        self.skip(there);
        there
    }

    /// What [`Self::take`] would take; it stays.
    pub fn look(&self, out: &mut [*mut T]) -> usize {
        let at = self.taken.at.load(Ordering::Relaxed);
        let mut seen = self.taken.seen.load(Ordering::Relaxed);
        let wanted = u32::try_from(out.len()).unwrap_or(u32::MAX);
        if seen.wrapping_sub(at) < wanted {
            seen = self.put.at.load(Ordering::Acquire);
            self.taken.seen.store(seen, Ordering::Relaxed);
        }
        let there = seen.wrapping_sub(at).min(self.size()).min(wanted);
        for (n, place) in (0..there).zip(out) {
            if let Some(slot) = self.slot(at.wrapping_add(n)) {
                *place = slot.load(Ordering::Relaxed);
            }
        }
        there as usize
    }

    /// Takes the `count` oldest pointers, which the last look gave.
    pub fn skip(&self, count: usize) {
        let at = self.taken.at.load(Ordering::Relaxed);
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.len());
        self.taken.at.store(at.wrapping_add(count), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(n: usize) -> *mut u8 {
        std::ptr::without_provenance_mut(n)
    }

    #[test]
    fn what_is_put_is_taken_in_order_and_a_full_ring_takes_no_more() {
        let ring: Ring<u8> = Ring::new(5);
        let items: Vec<_> = (1..=12).map(pointer).collect();
        let mut out = [pointer(0); 3];
        assert_eq!(ring.put(&items), 8);
        assert_eq!(ring.len(), 8);
        assert_eq!(ring.look(&mut out), 3);
        assert_eq!(ring.len(), 8, "a look takes nothing");
        assert_eq!(ring.take(&mut out), 3);
        assert_eq!(out, [1, 2, 3].map(pointer));
        assert_eq!(ring.put(&items[8..]), 3);
        let mut rest = [pointer(0); 16];
        assert_eq!(ring.take(&mut rest), 8);
        assert_eq!(rest[..8], items[3..11]);
        assert!(ring.is_empty());
        assert_eq!(ring.take(&mut rest), 0);
    }

    #[test]
    fn two_threads_lose_and_double_nothing() {
        const COUNT: usize = 200_000;
        let ring: Ring<u8> = Ring::new(64);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = 1;
                while next <= COUNT {
                    let batch: Vec<_> = (next..=COUNT.min(next + 31)).map(pointer).collect();
                    let put = ring.put(&batch);
                    next += put;
                    if put == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let (mut expected, mut out) = (1, [pointer(0); 32]);
            while expected <= COUNT {
                let taken = ring.take(&mut out);
                for item in &out[..taken] {
                    assert_eq!(item.addr(), expected);
                    expected += 1;
                }
                if taken == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }
}
