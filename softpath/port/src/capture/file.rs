//! A whole capture in memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{CaptureError, CaptureReader, Cause, Interface};
use crate::Frame;

/// A whole capture: all packets' bytes in one buffer, 32 bytes of index for each.
#[derive(Debug)]
pub struct CaptureFile {
    interfaces: Vec<Interface>,
    bytes: Vec<u8>,
    index: Vec<Entry>,
    damage: Option<CaptureError>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    timestamp_ns: u64,
    start: u64,
    len: u32,
    orig_len: u32,
    interface: u32,
}

impl CaptureFile {
    /// Reads the capture at `path`.
    ///
    /// # Errors
    /// When the header is already wrong (see [`CaptureReader::new`]). Damage behind it is no error: the packets before it are
    /// here, and [`damage`](CaptureFile::damage) tells.
    pub fn open(path: impl AsRef<Path>) -> Result<CaptureFile, CaptureError> {
        let file = File::open(path).map_err(|error| CaptureError {
            offset: 0,
            record: 0,
            cause: Cause::Io(error),
        })?;
        CaptureFile::read(file)
    }

    /// Reads the capture that `source` has.
    ///
    /// # Errors
    /// As [`open`](CaptureFile::open).
    pub fn read(source: impl Read) -> Result<CaptureFile, CaptureError> {
        let mut reader = CaptureReader::new(source)?;
        let (mut bytes, mut index) = (Vec::new(), Vec::new());
        let damage = loop {
            match reader.next_frame() {
                Ok(Some(Frame { timestamp_ns, interface, orig_len, data, .. })) => {
                    let (start, len) = (bytes.len() as u64, data.len() as u32);
                    bytes.extend_from_slice(data);
                    index.push(Entry { timestamp_ns, start, len, orig_len, interface });
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        Ok(CaptureFile { interfaces: reader.interfaces().to_vec(), bytes, index, damage })
    }

    /// The interfaces that packets refer to by index.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Where and why the capture ended before its end, if it did.
    pub fn damage(&self) -> Option<&CaptureError> {
        self.damage.as_ref()
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many bytes all packets have.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The packet `number`, from 0, in the capture's order.
    pub fn get(&self, number: usize) -> Option<Frame<'_>> {
        self.index.get(number).map(|entry| self.frame(entry))
    }

    /// All packets, in the capture's order.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Frame<'_>> + Clone {
        self.index.iter().map(|entry| self.frame(entry))
    }

    fn frame(&self, entry: &Entry) -> Frame<'_> {
        let start = entry.start as usize;
        Frame {
            timestamp_ns: entry.timestamp_ns,
            interface: entry.interface,
            orig_len: entry.orig_len,
            data: &self.bytes[start..start + entry.len as usize],
            offload: None,
        }
    }
}
