//! Packets between the NIC's slow queues and DPDK's: moved by the application's own threads, as they poll and send.
//!
//! Receiving: the NIC's queues are not one for each of DPDK's, so whichever thread polls takes a burst in for all of them, copies
//! each packet into a buffer of its queue's pool and puts that into the queue's ring, from where the queue's own thread takes it. One
//! thread does that at a time; the others look into their rings only. Nobody waits.
//!
//! Sending: a thread copies its burst into the NIC's ring and rings once. If another thread has that ring, or it is full, the rest
//! waits in the queue's own, and goes first when the thread comes again.
//!
//! The service thread does both for threads that do not come: it takes in when nobody has polled for a while, so that a port
//! that is not polled does not hold up the wires of the others, and sends what waits. It is also the one that meets a NIC's failure: the
//! slow queues are then closed to all other threads until what the NIC gave back was sent again.

mod intake;
mod output;

use super::delivery::Deliveries;
use super::port::{Port, RxQueue};
use super::sleep::Sleeper;
use flowlift_driver::fl1::{Fl1, SlowPath};
use flowlift_driver::nic::{Nic, NicError};
use intake::Intake;
pub use output::Sent;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

/// Packets that the service thread takes in at once.
const RX_BATCH: usize = 256;

/// See the module's head.
pub struct Packets {
    slow: SlowPath,
    deliveries: Arc<RwLock<Deliveries>>,
    /// Started ports.
    intakes: Mutex<Vec<Intake>>,
    /// Counts polls of the application's threads; wraps.
    polls: AtomicU32,
    service: Arc<Sleeper>,
}

impl Packets {
    /// The packet path of a NIC that `service` serves.
    pub fn new(nic: &Fl1, deliveries: Arc<RwLock<Deliveries>>, service: Arc<Sleeper>) -> Self {
        Self {
            slow: nic.slow_path(),
            deliveries,
            intakes: Mutex::default(),
            polls: AtomicU32::new(0),
            service,
        }
    }

    fn intakes(&self) -> std::sync::MutexGuard<'_, Vec<Intake>> {
        // A panic in between was a bug that is told; each packet is somewhere or nowhere.
        self.intakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port's packets are taken in from now on.
    pub fn start(&self, port: Arc<Port>, queues: Vec<Arc<RxQueue>>) {
        self.intakes().push(Intake::new(port, queues));
    }

    /// A port's packets are not any more; its queues are not touched once this returns.
    pub fn stop(&self, port: &Arc<Port>) {
        self.intakes().retain(|intake| !intake.is_of(port));
    }

    /// Polls of the application's threads so far; wraps.
    pub fn polls(&self) -> u32 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Takes up to `max` packets in, for all queues. False if there is none, or another thread does that now.
    pub fn poll(&self, max: usize) -> bool {
        let mut intakes = match self.intakes.try_lock() {
            Ok(intakes) => intakes,
            Err(TryLockError::Poisoned(intakes)) => intakes.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        // One writer at a time: whoever has the intakes.
        self.polls.store(self.polls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        let Ok(deliveries) = self.deliveries.try_read() else { return false };
        let took =
            self.slow.try_rx(max, &mut |info, frame| intake::sort(&mut intakes, info, frame, &deliveries));
        drop(deliveries);
        let any = took.is_some_and(|n| n > 0);
        if any {
            intakes.iter_mut().for_each(Intake::flush);
        }
        any
    }

    /// Takes packets in by the service thread, those that a failed NIC left as well. True if there were any.
    pub fn take_in(&self, nic: &mut Fl1) -> Result<bool, NicError> {
        let mut intakes = self.intakes();
        let deliveries = self.deliveries.read().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        let received = nic.rx(RX_BATCH, &mut |info, frame| {
            any = true;
            intake::sort(&mut intakes, info, frame, &deliveries);
        });
        drop(deliveries);
        // What came before an error was taken.
        intakes.iter_mut().for_each(Intake::flush);
        received.map(|_| any)
    }
}
