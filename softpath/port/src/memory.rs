//! Wires in memory: what joins the simulator's ports with the tests and with `flowlift replay`.
//!
//! A wire has two ends and a bounded queue in each direction. A queue keeps the frames' bytes in one buffer: a frame costs a
//! copy, not an allocation.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Frame, FrameSink, FrameSource, MAX_FRAME, PortError};

/// One end of a wire. Sending puts a frame into the queue towards the other end; receiving takes the oldest of the queue
/// from there. The ends may be in different threads.
#[derive(Debug)]
pub struct MemoryPort {
    out: Arc<Mutex<Queue>>,
    from: Arc<Mutex<Queue>>,
    /// The frame lent last.
    lent: Vec<u8>,
}

#[derive(Debug)]
struct Queue {
    capacity: usize,
    refused: u64,
    frames: VecDeque<Header>,
    /// The frames' bytes, in order, without gaps.
    bytes: VecDeque<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    timestamp_ns: u64,
    interface: u32,
    orig_len: u32,
    len: usize,
}

impl MemoryPort {
    /// A wire that holds up to `capacity` frames in each direction; its two ends.
    pub fn pair(capacity: usize) -> (MemoryPort, MemoryPort) {
        let queue = || {
            Arc::new(Mutex::new(Queue {
                capacity,
                refused: 0,
                frames: VecDeque::new(),
                bytes: VecDeque::new(),
            }))
        };
        let (there, back) = (queue(), queue());
        let port = |out: &Arc<Mutex<Queue>>, from: &Arc<Mutex<Queue>>| MemoryPort {
            out: Arc::clone(out),
            from: Arc::clone(from),
            lent: Vec::new(),
        };
        (port(&there, &back), port(&back, &there))
    }

    /// How many frames wait to be received here.
    pub fn waiting(&self) -> usize {
        lock(&self.from).frames.len()
    }

    /// How many more frames can be sent before the wire is full.
    pub fn room(&self) -> usize {
        let queue = lock(&self.out);
        queue.capacity.saturating_sub(queue.frames.len())
    }

    /// How many frames sent from here were refused because the wire was full.
    pub fn refused(&self) -> u64 {
        lock(&self.out).refused
    }
}

/// A queue is consistent between statements that can panic, so a thread that died with the lock does no harm.
fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryPort {
    fn send_whole(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            return Err(PortError::TooLong { len });
        }
        let mut queue = lock(&self.out);
        if queue.frames.len() >= queue.capacity {
            queue.refused += 1;
            return Err(PortError::Full);
        }
        queue.bytes.extend(frame.data);
        let Frame { timestamp_ns, interface, orig_len, .. } = frame;
        queue.frames.push_back(Header { timestamp_ns, interface, orig_len, len });
        Ok(())
    }
}

impl FrameSink for MemoryPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        frame.finish(|whole| self.send_whole(whole))
    }
}

impl FrameSource for MemoryPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        let mut queue = lock(&self.from);
        let Some(Header { timestamp_ns, interface, orig_len, len }) = queue.frames.pop_front() else {
            return Ok(None);
        };
        self.lent.clear();
        let (head, tail) = queue.bytes.as_slices();
        let in_head = len.min(head.len());
        self.lent.extend_from_slice(&head[..in_head]);
        self.lent.extend_from_slice(&tail[..len - in_head]);
        queue.bytes.drain(..len);
        Ok(Some(Frame { timestamp_ns, interface, orig_len, data: &self.lent, offload: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_keeps_order_and_directions_apart() {
        let (mut a, mut b) = MemoryPort::pair(10);
        for n in 0..3u8 {
            let data = [n; 60];
            a.send(Frame { timestamp_ns: u64::from(n), interface: 4, orig_len: 100, ..Frame::new(&data) })
                .unwrap();
        }
        b.send(Frame::new(b"back")).unwrap();
        assert_eq!((a.waiting(), b.waiting()), (1, 3));
        for n in 0..3u8 {
            let data = [n; 60];
            let expected =
                Frame { timestamp_ns: u64::from(n), interface: 4, orig_len: 100, ..Frame::new(&data) };
            assert_eq!(b.receive().unwrap(), Some(expected));
        }
        assert_eq!(b.receive().unwrap(), None);
        assert_eq!(a.receive().unwrap().map(|f| f.data), Some(&b"back"[..]));
    }

    #[test]
    fn a_full_wire_refuses_and_counts() {
        let (mut a, mut b) = MemoryPort::pair(2);
        a.send(Frame::new(b"1")).unwrap();
        assert_eq!(a.room(), 1);
        a.send(Frame::new(b"2")).unwrap();
        assert!(matches!(a.send(Frame::new(b"3")), Err(PortError::Full)));
        assert_eq!((a.room(), a.refused(), b.refused()), (0, 1, 0));
        assert_eq!(b.receive().unwrap().map(|f| f.data), Some(&b"1"[..]));
        a.send(Frame::new(b"4")).unwrap();
        assert_eq!(b.receive().unwrap().map(|f| f.data), Some(&b"2"[..]));
        assert_eq!(b.receive().unwrap().map(|f| f.data), Some(&b"4"[..]));
    }

    #[test]
    fn bytes_that_wrap_around_the_buffer_stay_whole() {
        let (mut a, mut b) = MemoryPort::pair(4);
        for n in 0..1000usize {
            let data: Vec<u8> = (0..n % 97).map(|i| (i * n) as u8).collect();
            a.send(Frame::new(&data)).unwrap();
            if n >= 3 {
                let m = n - 3;
                let expected: Vec<u8> = (0..m % 97).map(|i| (i * m) as u8).collect();
                assert_eq!(b.receive().unwrap().map(|f| f.data.to_vec()), Some(expected), "frame {m}");
            }
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused() {
        let (mut a, _b) = MemoryPort::pair(4);
        let data = vec![0; MAX_FRAME + 1];
        assert!(matches!(a.send(Frame::new(&data)), Err(PortError::TooLong { len }) if len == MAX_FRAME + 1));
        assert!(a.send(Frame::new(&data[..MAX_FRAME])).is_ok());
    }
}
