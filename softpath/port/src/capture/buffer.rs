//! A window over a byte stream that knows its offset.

use std::io::{self, Read};

/// How much is read at once, in bytes.
const CHUNK: usize = 256 * 1024;

/// The bytes of a stream from `offset` on, as far as they were asked for.
#[derive(Debug)]
pub(super) struct Buffer<R> {
    source: R,
    bytes: Vec<u8>,
    /// Where the window begins in `bytes`.
    start: usize,
    /// Where the window begins in the stream.
    offset: u64,
}

impl<R: Read> Buffer<R> {
    pub(super) fn new(source: R) -> Buffer<R> {
        Buffer { source, bytes: Vec::new(), start: 0, offset: 0 }
    }

    /// Where the window begins in the stream.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The window, as filled so far.
    pub(super) fn window(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Reads until the window has `len` bytes or the stream ends; returns how many of the `len` there are.
    pub(super) fn fill(&mut self, len: usize) -> io::Result<usize> {
        if self.window().len() >= len {
            return Ok(len);
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        while self.bytes.len() < len {
            let want = (len - self.bytes.len()).max(CHUNK) as u64;
            // read_to_end stops at `want` or at the end, and repeats interrupted reads.
            if self.source.by_ref().take(want).read_to_end(&mut self.bytes)? == 0 {
                break;
            }
        }
        Ok(self.bytes.len().min(len))
    }

    /// Moves the window on by `len` bytes, which it must have.
    pub(super) fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.window().len());
        self.start += len;
        self.offset += len as u64;
    }

    /// The last `len` bytes before the window; they stay until the next [`fill`](Self::fill).
    pub(super) fn consumed(&self, back: usize, len: usize) -> &[u8] {
        let from = self.start - back;
        &self.bytes[from..from + len]
    }
}
