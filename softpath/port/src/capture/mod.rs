//! Capture files: reading pcap (micro- and nanoseconds) and pcapng, writing pcap.
//!
//! [`CaptureReader`] streams; [`CaptureFile`] holds a whole capture in one buffer. Both give every packet before a
//! damaged place, then the damage: the byte offset, the number of the record, and the cause.
//! Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.

mod buffer;
mod error;
mod file;
mod pcapng;
mod reader;
mod write;

pub use error::{CaptureError, Cause};
pub use file::CaptureFile;
pub use reader::CaptureReader;
pub use write::{PcapWriter, Resolution};

/// The one link type that is read and written: Ethernet.
pub const LINK_TYPE_ETHERNET: u32 = 1;

/// Where a capture's packets were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name (`if_name`). Only pcapng has names, and not always.
    pub name: Option<String>,
    /// The link type, [`LINK_TYPE_ETHERNET`] for every packet that is read.
    pub link_type: u32,
    /// The most bytes that were kept of a packet; 0: no limit.
    pub snap_len: u32,
}
