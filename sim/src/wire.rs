//! What a port is plugged into.
//!
//! A frame stays with its wire until the device has done all of its work (FL1.md, section 8), so a wire shows its head
//! frame and drops it only when told. Whoever holds the other end takes back what a dead device left.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One port's connection to the outside.
pub trait Wire: Send {
    /// Copies the frame at the head into `frame` (cleared first); false when there is none.
    fn front(&mut self, frame: &mut Vec<u8>) -> bool;
    /// Drops the head frame: the device is done with it.
    fn pop(&mut self);
    /// Takes a frame that leaves the device.
    fn send(&mut self, frame: &[u8]);
    /// The link is there.
    fn link_up(&self) -> bool;
}

#[derive(Debug)]
struct Queues {
    to_device: VecDeque<Vec<u8>>,
    from_device: VecDeque<Vec<u8>>,
    capacity: usize,
    link: bool,
}

/// A wire in memory. Clones are the two ends: one goes to the device, the other stays with the harness.
#[derive(Debug, Clone)]
pub struct MemoryWire {
    q: Arc<Mutex<Queues>>,
}

impl MemoryWire {
    /// A wire with link up, which holds at most `capacity` frames on their way to the device.
    pub fn new(capacity: usize) -> Self {
        Self {
            q: Arc::new(Mutex::new(Queues {
                to_device: VecDeque::new(),
                from_device: VecDeque::new(),
                capacity,
                link: true,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Every critical section leaves the queues consistent, so a poisoned lock is as good as any.
        self.q.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame on the wire towards the device. A full wire gives it back.
    pub fn inject(&self, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut q = self.lock();
        if q.to_device.len() >= q.capacity {
            return Err(frame);
        }
        q.to_device.push_back(frame);
        Ok(())
    }

    /// Takes the oldest frame that the device sent.
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.lock().from_device.pop_front()
    }

    /// Takes all frames that the device sent, oldest first.
    pub fn receive_all(&self) -> Vec<Vec<u8>> {
        self.lock().from_device.drain(..).collect()
    }

    /// Frames that the device has not taken yet.
    pub fn pending(&self) -> usize {
        self.lock().to_device.len()
    }

    /// Takes back, oldest first, the frames that the device has not taken: after its death none is lost.
    pub fn take_back(&self) -> Vec<Vec<u8>> {
        self.lock().to_device.drain(..).collect()
    }

    /// Plugs and unplugs the cable.
    pub fn set_link(&self, up: bool) {
        self.lock().link = up;
    }
}

impl Wire for MemoryWire {
    fn front(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        match self.lock().to_device.front() {
            Some(f) => {
                frame.extend_from_slice(f);
                true
            }
            None => false,
        }
    }
    fn pop(&mut self) {
        self.lock().to_device.pop_front();
    }
    fn send(&mut self, frame: &[u8]) {
        self.lock().from_device.push_back(frame.to_vec());
    }
    fn link_up(&self) -> bool {
        self.lock().link
    }
}

/// A port with nothing plugged in: no link.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWire;

impl Wire for NoWire {
    fn front(&mut self, _: &mut Vec<u8>) -> bool {
        false
    }
    fn pop(&mut self) {}
    fn send(&mut self, _: &[u8]) {}
    fn link_up(&self) -> bool {
        false
    }
}
