//! Interrupts of the device as the client's eventfds.

use super::dma::ClientMemory;
use flowlift_bus::IrqSink;
use flowlift_bus::vfio_user::{IrqSet, irq};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Eventfds by kind and vector.
pub(super) struct Irqs {
    kinds: Mutex<[Vec<Option<OwnedFd>>; irq::COUNT as usize]>,
    memory: Arc<ClientMemory>,
}

impl Irqs {
    /// Of a device with so many MSI-X vectors; it can also ask for its return and report its failure.
    pub(super) fn new(vectors: u16, memory: Arc<ClientMemory>) -> Self {
        let none = |n| (0..n).map(|_| None).collect();
        Self { kinds: Mutex::new([none(0), none(0), none(vectors), none(1), none(1)]), memory }
    }

    fn lock(&self) -> MutexGuard<'_, [Vec<Option<OwnedFd>>; irq::COUNT as usize]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are of a kind; `None`: no such kind.
    pub(super) fn count(&self, kind: u32) -> Option<u32> {
        self.lock().get(kind as usize).map(|vectors| vectors.len() as u32)
    }

    /// Carries out a SET_IRQS. `data` is what follows the structure.
    pub(super) fn set(&self, set: &IrqSet, data: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let mut kinds = self.lock();
        let vectors = kinds.get_mut(set.index as usize).ok_or(Errno::EINVAL)?;
        let (kind, action) = (set.flags & irq::DATA, set.flags & irq::ACTION);
        if set.flags & !(irq::DATA | irq::ACTION) != 0 {
            return Err(Errno::EINVAL);
        }
        // Vectors are masked in the MSI-X table, which is the client's.
        if action != irq::ACTION_TRIGGER {
            return Err(Errno::ENOTSUP);
        }
        if kind == irq::DATA_NONE && set.count == 0 && set.start == 0 {
            vectors.fill_with(|| None);
            return Ok(());
        }
        let (start, count) = (set.start as usize, set.count as usize);
        let range =
            start.checked_add(count).and_then(|end| vectors.get_mut(start..end)).ok_or(Errno::EINVAL)?;
        match kind {
            irq::DATA_NONE => range.iter().for_each(signal),
            irq::DATA_BOOL if data.len() >= count => {
                range.iter().zip(data).filter(|(_, on)| **on != 0).for_each(|(fd, _)| signal(fd));
            }
            irq::DATA_EVENTFD if fds.is_empty() => range.fill_with(|| None),
            irq::DATA_EVENTFD if fds.len() == count => {
                range.iter_mut().zip(fds).for_each(|(slot, fd)| *slot = Some(fd));
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Signals all of a kind.
    pub(super) fn signal_all(&self, kind: u32) {
        if let Some(vectors) = self.lock().get(kind as usize) {
            vectors.iter().for_each(signal);
        }
    }

    /// Forgets every eventfd.
    pub(super) fn clear(&self) {
        self.lock().iter_mut().flatten().for_each(|slot| *slot = None);
    }
}

/// Signals an eventfd. It was the client who chose the descriptor: one that would block is left alone.
fn signal(slot: &Option<OwnedFd>) {
    let Some(fd) = slot else { return };
    let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) == Ok(1) {
        // An eventfd at its limit is signalled already; anything else is the client's mistake.
        let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
    }
}

/// The device's handle.
pub(super) struct DeviceIrqs(pub(super) Arc<Irqs>);

impl IrqSink for DeviceIrqs {
    fn raise(&self, vector: u16) {
        // MSI-X is a memory write: without Bus Master it does not leave the function.
        if !self.0.memory.bus_master() {
            return;
        }
        if let Some(slot) = self.0.lock()[irq::MSIX as usize].get(usize::from(vector)) {
            signal(slot);
        }
    }
}
