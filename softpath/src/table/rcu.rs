//! Pointers that one side replaces while others read, without a reader ever waiting: the crate's only `unsafe`.
//!
//! The scheme is quiescent-state reclamation. A [`Domain`] has an epoch that only grows and one state word per
//! [`Reader`]: [`IDLE`], or the epoch at which the reader entered. A reader enters once per batch of packets, not per
//! packet; entering is a store and a fence. Whoever unlinks a value stamps it with the epoch, moves the epoch on, and
//! frees the value only when every reader is idle or entered later than the stamp. Readers never free anything, so the
//! time of a batch does not depend on what the writer deleted.
//!
//! # Why a reader never sees freed memory
//!
//! A value is reachable only through an `AtomicPtr` of [`Slots`] or [`Cell`]. Let W be the unlinking swap, F1 the
//! writer's fence after it, S the writer's look at the reader's state. Let E be the reader's store of its state, F2 the
//! fence after it, L any later load of the pointer. All four accesses are ordered by the two `SeqCst` fences:
//! - If F2 precedes F1, then S sees E, or something later in that reader's state. While the reader is still inside, S
//!   sees its epoch, and that is not beyond the stamp: the value is kept. If S sees a later state, the reader has left
//!   (a release store, read with acquire), so all its accesses happened before the free.
//! - If F1 precedes F2, then L sees W: the reader does not get the pointer at all. Whatever state S sees is harmless.
//! - A reader that S sees with an epoch beyond the stamp read it from the `fetch_add` that follows W (acquire, release), so
//!   L sees W.
//! - A reader that registers after S does so under the lock that S was taken under, hence sees W.
//!
//! A borrow cannot outlive its section: [`Reader::enter`] borrows the reader mutably (no nesting), the guard's lifetime
//! bounds every reference got with it, and a guard of another domain is refused. The container's own lifetime bounds the
//! reference too, so a container frees what is left in it when it is dropped.

#![allow(unsafe_code)]

use super::chunks::Chunks;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A reader's state outside of any section.
const IDLE: u64 = u64::MAX;
/// Values that wait in a container before it looks whether some can be freed.
const RECLAIM_EVERY: usize = 64;
/// A lock that a panic of another holder does not break: what these locks guard is valid between any two statements.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State word of one reader, on a cache line of its own.
#[derive(Debug)]
#[repr(align(128))]
struct ReaderState(AtomicU64);

/// The readers and the epoch that containers of one table share.
#[derive(Debug)]
pub struct Domain {
    epoch: AtomicU64,
    readers: Mutex<Vec<Arc<ReaderState>>>,
}

impl Domain {
    /// A domain without readers.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epoch: AtomicU64::new(0), readers: Mutex::new(Vec::new()) })
    }

    /// A new reader. Each thread that reads has its own.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let state = Arc::new(ReaderState(AtomicU64::new(IDLE)));
        lock(&self.readers).push(Arc::clone(&state));
        Reader { domain: Arc::clone(self), state }
    }

    /// To be called after unlinking: the stamp of what was unlinked.
    fn stamp(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::AcqRel)
    }

    /// The oldest epoch at which a reader that is still inside entered; [`IDLE`] without one.
    fn oldest(&self) -> u64 {
        fence(Ordering::SeqCst);
        lock(&self.readers).iter().map(|r| r.0.load(Ordering::Acquire)).min().unwrap_or(IDLE)
    }

    /// Waits until every section that is open now has ended, at most `limit`. False: one is still open.
    pub fn wait(&self, limit: Duration) -> bool {
        let stamp = self.stamp();
        if self.oldest() > stamp {
            return true;
        }
        let end = Instant::now() + limit;
        loop {
            std::thread::yield_now();
            if self.oldest() > stamp {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
        }
    }
}

/// A thread's right to read.
#[derive(Debug)]
pub struct Reader {
    domain: Arc<Domain>,
    state: Arc<ReaderState>,
}

impl Reader {
    /// Opens a section: nothing that it can reach is freed before the guard is dropped. Never waits.
    pub fn enter(&mut self) -> Guard<'_> {
        let epoch = self.domain.epoch.load(Ordering::Acquire);
        // Release: whoever sees this state knows that the sections before it are over.
        self.state.0.store(epoch, Ordering::Release);
        fence(Ordering::SeqCst);
        Guard { reader: self }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.domain.readers).retain(|r| !Arc::ptr_eq(r, &self.state));
    }
}

/// An open section.
#[derive(Debug)]
pub struct Guard<'r> {
    reader: &'r Reader,
}

impl Guard<'_> {
    /// A reference got with this guard into a container of another domain would not be protected.
    fn check(&self, domain: &Arc<Domain>) {
        assert!(Arc::ptr_eq(&self.reader.domain, domain), "guard of another domain");
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.reader.state.0.store(IDLE, Ordering::Release);
    }
}

/// Values that were unlinked and may still be read, oldest first. Pointers, not boxes: a box must be the only way to
/// its value, and readers may still have theirs. On cache lines of its own: the writer changes it with every update,
/// and readers use what lies beside it with every packet.
#[derive(Debug)]
#[repr(align(128))]
struct Limbo<T>(Mutex<VecDeque<(u64, AtomicPtr<T>)>>);

impl<T> Limbo<T> {
    fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// Takes over a value that the caller has just unlinked, and now and then frees what nobody can read any more.
    fn retire(&self, domain: &Domain, value: *mut T) {
        let stamp = domain.stamp();
        let full = {
            let mut limbo = lock(&self.0);
            limbo.push_back((stamp, AtomicPtr::new(value)));
            // Not "at least": with a reader stuck in its section, each retirement would look in vain.
            limbo.len().is_multiple_of(RECLAIM_EVERY)
        };
        if full {
            self.reclaim(domain);
        }
    }

    /// Frees what nobody can read any more.
    fn reclaim(&self, domain: &Domain) {
        let oldest = domain.oldest();
        let free: Vec<_> = {
            let mut limbo = lock(&self.0);
            let n = limbo.iter().take_while(|(stamp, _)| *stamp < oldest).count();
            limbo.drain(..n).collect()
        };
        for (_, p) in free {
            // SAFETY: the pointer came from `Box::into_raw` and was unlinked by one swap, so it is here once; every
            // reader that entered at its stamp or before has left (the module's proof).
            drop(unsafe { Box::from_raw(p.into_inner()) });
        }
    }
}

impl<T> Drop for Limbo<T> {
    fn drop(&mut self) {
        let limbo = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, p) in limbo.drain(..) {
            // SAFETY: as in `reclaim`, but that no reader has it follows from `&mut self` of the container: the
            // references that it gives out are bounded by a borrow of it.
            drop(unsafe { Box::from_raw(p.into_inner()) });
        }
    }
}

/// One pointer that readers follow.
#[derive(Debug)]
pub struct Cell<T> {
    domain: Arc<Domain>,
    ptr: AtomicPtr<T>,
    limbo: Limbo<T>,
}

impl<T: Send + Sync> Cell<T> {
    /// A cell that holds `value`.
    pub fn new(domain: &Arc<Domain>, value: T) -> Self {
        Self {
            domain: Arc::clone(domain),
            ptr: AtomicPtr::new(Box::into_raw(Box::new(value))),
            limbo: Limbo::new(),
        }
    }

    /// The value, for as long as the section is open.
    pub fn load<'g>(&'g self, guard: &'g Guard<'_>) -> &'g T {
        guard.check(&self.domain);
        let p = self.ptr.load(Ordering::Acquire);
        // SAFETY: `ptr` is never null and comes from `Box::into_raw`; by the module's proof the box is not freed
        // while `guard` (of the same domain, checked) lives, nor while `self` is borrowed.
        unsafe { &*p }
    }

    /// Puts another value in its place; the old one is freed when no reader can have it.
    pub fn replace(&self, value: T) {
        let old = self.ptr.swap(Box::into_raw(Box::new(value)), Ordering::AcqRel);
        self.limbo.retire(&self.domain, old);
    }
}

impl<T> Drop for Cell<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` proves that no reference got by `load` lives; the pointer came from `Box::into_raw`.
        drop(unsafe { Box::from_raw(*self.ptr.get_mut()) });
    }
}

/// Numbered pointers that readers follow: a vector that grows without moving.
#[derive(Debug)]
pub struct Slots<T> {
    domain: Arc<Domain>,
    pointers: Chunks<AtomicPtr<T>>,
    limbo: Limbo<T>,
}

impl<T: Send + Sync> Slots<T> {
    /// Without values, for slots 0 to `max`.
    pub fn new(domain: &Arc<Domain>, max: u32) -> Self {
        Self { domain: Arc::clone(domain), pointers: Chunks::new(max), limbo: Limbo::new() }
    }

    /// What a reader of an open section sees. One per batch: the domain is checked here, not per value.
    pub fn view<'g>(&'g self, guard: &'g Guard<'_>) -> View<'g, T> {
        guard.check(&self.domain);
        View { slots: self }
    }

    /// Puts a value in a slot, or takes it out; a slot beyond the maximum takes nothing. The old value is freed when no reader can have it.
    pub fn replace(&self, slot: u32, value: Option<Box<T>>) {
        let Some(pointer) = self.pointers.get_or_grow(slot) else { return };
        let new = value.map_or(std::ptr::null_mut(), Box::into_raw);
        let old = pointer.swap(new, Ordering::AcqRel);
        if !old.is_null() {
            self.limbo.retire(&self.domain, old);
        }
    }

    /// Frees replaced values that nobody can read any more; [`Self::replace`] also does so now and then.
    pub fn reclaim(&self) {
        self.limbo.reclaim(&self.domain);
    }

    /// Number of replaced values that are not freed yet.
    pub fn unreclaimed(&self) -> usize {
        lock(&self.limbo.0).len()
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        for p in self.pointers.iter_mut() {
            let p = *p.get_mut();
            if !p.is_null() {
                // SAFETY: `&mut self` proves that no reference got by a view lives; a pointer here that is not null came
                // from `Box::into_raw`.
                drop(unsafe { Box::from_raw(p) });
            }
        }
    }
}

/// [`Slots`] as a reader of an open section sees them: each value as it is at the moment of the call.
#[derive(Debug)]
pub struct View<'g, T> {
    slots: &'g Slots<T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'g, T: Send + Sync> View<'g, T> {
    /// The value of a slot.
    #[inline(always)]
    pub fn get(self, slot: u32) -> Option<&'g T> {
        let p = self.slots.pointers.get(slot)?.load(Ordering::Acquire);
        // SAFETY: the pointer is null or from `Box::into_raw`; `view` checked that the guard, which outlives 'g,
        // is of the slots' domain, so by the module's proof the box is not freed within 'g.
        unsafe { p.as_ref() }
    }
}

/// Asks the CPU to load the cache lines of `value`; changes nothing.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(value).cast::<i8>();
        let line = |at| {
            // SAFETY: a prefetch accesses no memory as the language sees it, and SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at)) };
        };
        for n in 0..size_of::<T>().div_ceil(64) {
            line(64 * n);
        }
        // A value that is not aligned to lines ends in the middle of one.
        if align_of::<T>() < 64 {
            line(size_of::<T>().saturating_sub(1));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the system for huge pages behind an array that nobody has touched yet; changes nothing. Random accesses to a large
/// array on small pages are a miss of the TLB each.
pub fn huge_pages<T>(array: &mut [T]) {
    use nix::sys::mman::{MmapAdvise, madvise};
    const PAGE: usize = 4096;
    let bytes = size_of_val(array);
    let start = std::ptr::from_mut(array).cast::<u8>();
    let skip = start.align_offset(PAGE);
    let len = bytes.saturating_sub(skip) / PAGE * PAGE;
    let Some(first) = std::ptr::NonNull::new(start.wrapping_add(skip).cast()) else { return };
    if len > 0 {
        // A kernel without huge pages refuses, and gives small ones.
        // SAFETY: the range lies within `array`, and this advice leaves its contents and protection as they are.
        let _ = unsafe { madvise(first, len, MmapAdvise::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Counts the values that live, and is poisoned by its drop so that a late reader notices.
    struct Canary {
        a: AtomicU64,
        b: AtomicU64,
        live: Arc<AtomicU64>,
    }

    impl Canary {
        fn new(n: u64, live: &Arc<AtomicU64>) -> Self {
            live.fetch_add(1, Ordering::Relaxed);
            Self { a: AtomicU64::new(n), b: AtomicU64::new(!n), live: Arc::clone(live) }
        }
    }

    impl Drop for Canary {
        fn drop(&mut self) {
            self.a.store(0xdead, Ordering::Relaxed);
            self.b.store(0xdead, Ordering::Relaxed);
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nothing_is_freed_under_a_reader_and_everything_is_freed_in_the_end() {
        let live = Arc::new(AtomicU64::new(0));
        let domain = Domain::new();
        let slots = Slots::new(&domain, 100);
        let mut reader = domain.reader();
        slots.replace(5, Some(Box::new(Canary::new(1, &live))));
        let guard = reader.enter();
        let held = slots.view(&guard).get(5).unwrap();
        for n in 2..1000 {
            slots.replace(5, Some(Box::new(Canary::new(n, &live))));
        }
        assert_eq!(held.a.load(Ordering::Relaxed), 1, "freed under the reader");
        assert!(!domain.wait(Duration::from_millis(1)), "a section is open");
        assert_eq!(slots.unreclaimed(), 998);
        drop(guard);
        assert!(domain.wait(Duration::ZERO));
        slots.replace(5, None);
        slots.reclaim();
        assert_eq!(slots.unreclaimed(), 0, "all is free once the reader has left");
        slots.replace(9, Some(Box::new(Canary::new(7, &live))));
        drop(slots);
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "guard of another domain")]
    fn a_guard_of_another_domain_is_refused() {
        let slots = Slots::<Canary>::new(&Domain::new(), 100);
        let other = Domain::new();
        let mut reader = other.reader();
        let guard = reader.enter();
        slots.view(&guard);
    }

    /// A sanitizer sees what this test might not: `RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --target
    /// x86_64-unknown-linux-gnu -p flowlift-softpath --lib table::rcu`, and the same with `--test concurrent`. With
    /// [`Domain::oldest`] broken on purpose, it reports a use after free.
    #[test]
    fn readers_see_whole_values_while_a_writer_replaces_them() {
        let live = Arc::new(AtomicU64::new(0));
        let domain = Domain::new();
        let slots = Slots::new(&domain, 100);
        let cell = Cell::new(&domain, Canary::new(0, &live));
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    let mut reader = domain.reader();
                    while !stop.load(Ordering::Relaxed) {
                        let guard = reader.enter();
                        let view = slots.view(&guard);
                        for slot in 0..64 {
                            let c = cell.load(&guard);
                            for v in view.get(slot).into_iter().chain([c]) {
                                let (a, b) = (v.a.load(Ordering::Relaxed), v.b.load(Ordering::Relaxed));
                                assert_eq!(a, !b, "slot {slot} was freed under a reader");
                            }
                        }
                    }
                });
            }
            for n in 0..200_000u64 {
                let value = (n % 7 != 0).then(|| Box::new(Canary::new(n, &live)));
                slots.replace((n % 64) as u32, value);
                if n % 16 == 0 {
                    cell.replace(Canary::new(n, &live));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop((slots, cell));
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
