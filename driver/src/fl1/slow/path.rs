//! The slow queues as several threads use them: the driver, and whoever holds a [`SlowPath`].
//!
//! All receive queues have one lock, and each transmit queue has its own: a thread takes it for a burst, moves frames, and rings
//! once. A thread beside the driver never waits for a lock, and finds the queues closed from the moment at which the driver saves what
//! a failed device left behind until they can be used again: for receiving as soon as the device is back, for sending when the
//! driver's owner says so, who has frames to send first ([`Fl1::resume_slow_path`](super::super::Fl1::resume_slow_path)).
//!
//! A device that lies to such a thread, or vanishes under it, is the driver's to judge: the queue is closed, and the next poll of the
//! driver meets the error.

use super::{RxQueue, TxQueue, check_tx};
use crate::fl1::Memory;
use crate::fl1::caps::Identity;
use crate::fl1::regs::Regs;
use crate::nic::{NicError, NicPort, SlowRx, SlowTx};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Frames given back, and where they were to go.
type Unsent = Vec<(SlowTx, Vec<u8>)>;

/// All receive queues.
struct Receiving {
    queues: Vec<RxQueue>,
    /// The queue that is looked at first.
    turn: usize,
    /// A frame, as it is copied out.
    frame: Vec<u8>,
    /// What a device that failed had left.
    saved: VecDeque<(SlowRx, Vec<u8>)>,
    /// The device has buffers of this life.
    open: bool,
}

/// A transmit queue.
struct Sending {
    queue: TxQueue,
    /// Threads beside the driver may use it.
    open: bool,
}

/// See the module's head.
pub(crate) struct Slow {
    regs: Arc<Regs>,
    memory: Arc<Memory>,
    id: Identity,
    rx: Mutex<Receiving>,
    tx: Vec<Mutex<Sending>>,
    /// What a thread beside the driver met.
    fault: Mutex<Option<NicError>>,
}

/// Locks, also after a panic elsewhere: a burst is consistent after each frame.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`: another thread has it.
fn try_lock<T>(m: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match m.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Slow {
    pub(crate) fn new(
        (regs, memory, id): (Arc<Regs>, Arc<Memory>, Identity),
        rx: Vec<RxQueue>,
        tx: Vec<TxQueue>,
    ) -> Self {
        let frame = vec![0; id.max_frame as usize];
        let rx = Receiving { queues: rx, turn: 0, frame, saved: VecDeque::new(), open: false };
        let tx = tx.into_iter().map(|queue| Mutex::new(Sending { queue, open: false })).collect();
        Self { regs, memory, id, rx: Mutex::new(rx), tx, fault: Mutex::new(None) }
    }

    /// Calls `f` with each queue's number and halves.
    pub(crate) fn each(
        &self,
        mut f: impl FnMut(u32, &RxQueue, &TxQueue) -> Result<(), NicError>,
    ) -> Result<(), NicError> {
        let rx = lock(&self.rx);
        (0..).zip(rx.queues.iter().zip(&self.tx)).try_for_each(|(q, (rx, tx))| f(q, rx, &lock(tx).queue))
    }

    /// As after a reset, and closed.
    pub(crate) fn restart(&self) -> Result<(), NicError> {
        let Memory { to_device, from_device } = &*self.memory;
        let mut rx = lock(&self.rx);
        rx.open = false;
        rx.queues.iter_mut().try_for_each(|rx| rx.restart(to_device, from_device))?;
        self.tx.iter().try_for_each(|tx| {
            let mut tx = lock(tx);
            tx.open = false;
            tx.queue.restart(from_device)
        })?;
        // What was met until now was of the device's earlier life.
        *lock(&self.fault) = None;
        Ok(())
    }

    /// Gives the device all receive buffers.
    pub(crate) fn open(&self) -> Result<(), NicError> {
        let mut rx = lock(&self.rx);
        (0..).zip(&mut rx.queues).try_for_each(|(q, rx)| rx.post(&self.regs, q))?;
        rx.open = true;
        Ok(())
    }

    /// Lets threads beside the driver send.
    pub(crate) fn resume(&self) {
        self.tx.iter().for_each(|tx| lock(tx).open = true);
    }

    /// Keeps threads beside the driver out.
    pub(crate) fn close(&self) {
        lock(&self.rx).open = false;
        self.tx.iter().for_each(|tx| lock(tx).open = false);
    }

    /// Closes the queues, keeps what was received, and takes back what was not sent. No DMA happens any more.
    pub(crate) fn harvest(&self, unsent: &mut Unsent) {
        let Memory { to_device, from_device } = &*self.memory;
        let rx = &mut *lock(&self.rx);
        rx.open = false;
        for queue in &mut rx.queues {
            // A ring that cannot be believed ends here; what came before the lie is kept.
            while let Ok(Some(info)) = queue.next(from_device, &self.id, &mut rx.frame) {
                rx.saved.push_back((info, rx.frame[..info.len as usize].to_vec()));
            }
        }
        for tx in &self.tx {
            let mut tx = lock(tx);
            tx.open = false;
            // The memory is ours and the places are the driver's own, so this cannot fail.
            let _ = tx.queue.take_unsent(to_device, from_device, unsent);
        }
    }

    /// What a thread beside the driver met.
    pub(crate) fn take_fault(&self) -> Option<NicError> {
        lock(&self.fault).take()
    }

    /// Up to `max` frames: what was saved first, and then, if the device `works`, what it has.
    pub(crate) fn receive(
        &self,
        works: bool,
        max: usize,
        packet: &mut dyn FnMut(SlowRx, &[u8]),
    ) -> Result<usize, NicError> {
        self.receive_from(&mut lock(&self.rx), works, max, packet)
    }

    fn receive_from(
        &self,
        rx: &mut Receiving,
        works: bool,
        max: usize,
        packet: &mut dyn FnMut(SlowRx, &[u8]),
    ) -> Result<usize, NicError> {
        let mut taken = 0;
        while taken < max {
            let Some((info, frame)) = rx.saved.pop_front() else { break };
            packet(info, &frame);
            taken += 1;
        }
        if !works || !rx.open {
            return Ok(taken);
        }
        // Queues take turns, so that a flood into one does not starve the others.
        let count = rx.queues.len();
        let first = rx.turn % count.max(1);
        rx.turn = first + 1;
        for q in (first..count).chain(0..first) {
            let Some(queue) = rx.queues.get_mut(q) else { break };
            while taken < max {
                match queue.next(&self.memory.from_device, &self.id, &mut rx.frame) {
                    Ok(Some(info)) => packet(info, &rx.frame[..info.len as usize]),
                    Ok(None) => break,
                    Err(what) => return Err(NicError::Lies { device: self.regs.name().into(), what }),
                }
                taken += 1;
            }
            queue.post(&self.regs, q as u32)?;
        }
        Ok(taken)
    }

    /// One queue per port keeps a port's frames in order; a port without link holds only its own queue's ports.
    fn queue_of(&self, port: NicPort) -> usize {
        usize::from(port.0) % self.tx.len().max(1)
    }

    /// Queues a frame and rings. `Ok(false)`: no room.
    pub(crate) fn send(&self, to: SlowTx, frame: &[u8]) -> Result<bool, NicError> {
        let q = self.queue_of(check_tx(&self.id, to, frame)?);
        let Some(tx) = self.tx.get(q) else { return Ok(false) };
        let queue = &mut lock(tx).queue;
        let queued = queue.queue(self.regs.name(), &self.memory, to, frame)?;
        queue.ring(&self.regs, q as u32)?;
        Ok(queued)
    }

    /// Frames that the device is not known to have sent.
    pub(crate) fn pending(&self) -> usize {
        self.tx.iter().map(|tx| lock(tx).queue.pending(&self.memory.from_device)).sum()
    }

    /// Completions taken of each receive queue.
    pub(crate) fn received(&self, out: &mut Vec<u32>) {
        out.extend(lock(&self.rx).queues.iter().map(RxQueue::received));
    }

    /// Frames queued on each transmit queue.
    pub(crate) fn queued(&self, out: &mut Vec<u32>) {
        out.extend(self.tx.iter().map(|tx| lock(tx).queue.queued()));
    }

    /// True if everything was sent that was there when [`Self::queued`] said this.
    pub(crate) fn has_sent(&self, queued: &[u32]) -> bool {
        let from_device = &self.memory.from_device;
        self.tx.iter().zip(queued).all(|(tx, to)| lock(tx).queue.has_sent(from_device, *to))
    }
}

/// The slow path of an FL1 for threads beside its driver: see the module's head. It does nothing any more once the driver is gone.
#[derive(Clone)]
pub struct SlowPath(pub(in crate::fl1) Arc<Slow>);

impl SlowPath {
    /// Takes up to `max` packets from the slow queues, in order per queue; each is handed to `packet`. `None`: another thread is
    /// at it, or the queues are closed.
    pub fn try_rx(&self, max: usize, packet: &mut dyn FnMut(SlowRx, &[u8])) -> Option<usize> {
        let slow = &*self.0;
        let mut rx = try_lock(&slow.rx).filter(|rx| rx.open)?;
        let mut taken = 0;
        let outcome = slow.receive_from(&mut rx, true, max, &mut |info, frame| {
            taken += 1;
            packet(info, frame);
        });
        if let Err(error) = outcome {
            rx.open = false;
            *lock(&slow.fault) = Some(error);
        }
        Some(taken)
    }

    /// The queue by which a port's frames go, for a burst. `None`: another thread has it, or it is closed.
    pub fn try_tx(&self, port: NicPort) -> Option<SlowBurst<'_>> {
        let number = self.0.queue_of(port);
        let sending = try_lock(self.0.tx.get(number)?).filter(|tx| tx.open)?;
        Some(SlowBurst { slow: &self.0, sending, number: number as u32 })
    }
}

/// A burst of frames to one port or to several with the same queue. The device is told of them when this is dropped.
pub struct SlowBurst<'a> {
    slow: &'a Slow,
    sending: MutexGuard<'a, Sending>,
    number: u32,
}

impl SlowBurst<'_> {
    /// Queues a packet. `Ok(false)`: no room now, nothing was taken.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for a packet that the device cannot send, or a port of another queue. An error of the device is the
    /// driver's to meet, and none of this: then there is no room.
    pub fn send(&mut self, to: SlowTx, frame: &[u8]) -> Result<bool, NicError> {
        let slow = self.slow;
        let port = check_tx(&slow.id, to, frame)?;
        if slow.queue_of(port) != self.number as usize {
            return Err(NicError::Invalid(format!("port {} by slow queue {}", port.0, self.number)));
        }
        if !self.sending.open {
            return Ok(false);
        }
        let queued = self.sending.queue.queue(slow.regs.name(), &slow.memory, to, frame);
        Ok(queued.unwrap_or_else(|error| self.fail(error)))
    }

    fn fail(&mut self, error: NicError) -> bool {
        self.sending.open = false;
        *lock(&self.slow.fault) = Some(error);
        false
    }
}

impl Drop for SlowBurst<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.sending.queue.ring(&self.slow.regs, self.number) {
            self.fail(error);
        }
    }
}
