//! Writing pcap files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::LINK_TYPE_ETHERNET;
use crate::{Frame, FrameSink, MAX_FRAME, PortError};

/// How exact the time stamps of a pcap file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Microseconds, the form that every program reads; the rest of a nanosecond time stamp is cut off.
    Micro,
    /// Nanoseconds.
    Nano,
}

/// Writes Ethernet frames as a little-endian pcap file, version 2.4.
///
/// Call [`finish`](PcapWriter::finish) at the end: what a dropped writer's buffer could not write is lost silently.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    out: W,
    resolution: Resolution,
}

impl PcapWriter<BufWriter<File>> {
    /// Creates the file at `path`, or replaces it, and writes the header.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: impl AsRef<Path>, resolution: Resolution) -> Result<Self, PortError> {
        PcapWriter::new(BufWriter::new(File::create(path)?), resolution)
    }
}

impl<W: Write> PcapWriter<W> {
    /// Writes the header to `out`, which should have a buffer.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, resolution: Resolution) -> Result<Self, PortError> {
        let magic: u32 = match resolution {
            Resolution::Micro => 0xa1b2_c3d4,
            Resolution::Nano => 0xa1b2_3c4d,
        };
        let mut header = [0; 24];
        header[0..4].copy_from_slice(&magic.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        // Time zone and accuracy, 8 to 15, are always 0.
        header[16..20].copy_from_slice(&(MAX_FRAME as u32).to_le_bytes());
        header[20..24].copy_from_slice(&LINK_TYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(PcapWriter { out, resolution })
    }

    /// Writes one frame as it is, whole or not. `frame.interface` has no place in a pcap file.
    ///
    /// # Errors
    /// A frame above [`MAX_FRAME`], a time after 2106, and what the output says.
    pub fn write(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            return Err(PortError::TooLong { len });
        }
        let timestamp_ns = frame.timestamp_ns;
        let seconds =
            u32::try_from(timestamp_ns / 1_000_000_000).map_err(|_| PortError::Time { timestamp_ns })?;
        let nanoseconds = (timestamp_ns % 1_000_000_000) as u32;
        let fraction = match self.resolution {
            Resolution::Micro => nanoseconds / 1000,
            Resolution::Nano => nanoseconds,
        };
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&seconds.to_le_bytes());
        header[4..8].copy_from_slice(&fraction.to_le_bytes());
        header[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        header[12..16].copy_from_slice(&frame.orig_len.to_le_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(frame.data)?;
        Ok(())
    }

    /// Flushes the output and returns it.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> Result<W, PortError> {
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> FrameSink for PcapWriter<W> {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        frame.finish(|whole| self.write(whole))
    }
}
