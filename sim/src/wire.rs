//! What a port is plugged into.
//!
//! A frame stays with its wire until the device has done all of its work (FL1.md, section 8), so a wire shows its head
//! frame and drops it only when told. Whoever holds the other end takes back what a dead device left.

use flowlift_port::{Frame, FrameSink, FrameSource, PortError};
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

struct Ends<S, K> {
    source: S,
    sink: K,
    /// The frame at the head: taken from the source, not done by the device.
    head: Option<Vec<u8>>,
    link: bool,
    lost: u64,
    error: Option<PortError>,
}

/// A wire made of a frame source and a frame sink: capture files, or any other port. Clones are the same wire: one goes
/// to the device, the other stays with the harness.
pub struct PortWire<S, K> {
    ends: Arc<Mutex<Option<Ends<S, K>>>>,
}

impl<S, K> Clone for PortWire<S, K> {
    fn clone(&self) -> Self {
        Self { ends: Arc::clone(&self.ends) }
    }
}

/// What is left of a [`PortWire`] that was taken apart.
#[derive(Debug)]
pub struct Parts<S, K> {
    /// The source, after the frames that were taken.
    pub source: S,
    /// The sink, for instance to finish a file.
    pub sink: K,
    /// A frame that was taken from the source and that the device has not done.
    pub undone: Option<Vec<u8>>,
    /// Frames that the sink refused.
    pub lost: u64,
    /// The first error of source or sink.
    pub error: Option<PortError>,
}

impl<S: FrameSource, K: FrameSink> PortWire<S, K> {
    /// Joins a source and a sink; the link is up.
    pub fn new(source: S, sink: K) -> Self {
        let ends = Ends { source, sink, head: None, link: true, lost: 0, error: None };
        Self { ends: Arc::new(Mutex::new(Some(ends))) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ends<S, K>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs and unplugs the cable.
    pub fn set_link(&self, up: bool) {
        if let Some(e) = self.lock().as_mut() {
            e.link = up;
        }
    }

    /// Takes the wire apart: the device sees no link from now on. `None` if it was taken apart before.
    pub fn take_apart(&self) -> Option<Parts<S, K>> {
        let e = self.lock().take()?;
        Some(Parts { source: e.source, sink: e.sink, undone: e.head, lost: e.lost, error: e.error })
    }
}

impl<S: FrameSource + Send, K: FrameSink + Send> Wire for PortWire<S, K> {
    fn front(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let mut guard = self.lock();
        let Some(e) = guard.as_mut() else { return false };
        if e.head.is_none() {
            match e.source.receive() {
                Ok(f) => e.head = f.map(|f| f.data.to_vec()),
                Err(error) => {
                    e.error.get_or_insert(error);
                }
            }
        }
        match &e.head {
            Some(f) => {
                frame.extend_from_slice(f);
                true
            }
            None => false,
        }
    }
    fn pop(&mut self) {
        if let Some(e) = self.lock().as_mut() {
            e.head = None;
        }
    }
    fn send(&mut self, frame: &[u8]) {
        if let Some(e) = self.lock().as_mut()
            && let Err(error) = e.sink.send(Frame::new(frame))
        {
            e.lost += 1;
            e.error.get_or_insert(error);
        }
    }
    fn link_up(&self) -> bool {
        self.lock().as_ref().is_some_and(|e| e.link)
    }
}
