//! What can be wrong with a capture, and where.

use thiserror::Error;

/// Damage in a capture: everything before `offset` was read.
#[derive(Debug, Error)]
#[error("record {record} at byte {offset}: {cause}")]
pub struct CaptureError {
    /// Where the damaged record begins, in bytes from the beginning of the file.
    pub offset: u64,
    /// The record's number, as in the file: 0 is the file's header (pcapng: the first section header), from 1 the packets of
    /// a pcap, the blocks of a pcapng.
    pub record: u64,
    /// What is wrong.
    #[source]
    pub cause: Cause,
}

/// What is wrong with a record.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The file has no bytes at all.
    #[error("the file is empty")]
    Empty,
    /// The file begins like no known capture.
    #[error("not a pcap or pcapng capture: it begins with {}", hex(.begins))]
    NotACapture {
        /// Its first bytes, four at most.
        begins: Vec<u8>,
    },
    /// A version of the format that does not exist or is too old.
    #[error("version {major}.{minor} of the format is not supported")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The packets are not Ethernet frames.
    #[error(
        "interface {interface} has link type {link_type:#x}, only Ethernet ({}) is supported",
        super::LINK_TYPE_ETHERNET
    )]
    LinkType {
        /// The interface's number.
        interface: u32,
        /// The link type field, with the bits that announce a frame check sequence.
        link_type: u32,
    },
    /// The file ends inside the record.
    #[error("cut off: the record has {needed} bytes or more, the file ends after {available} of them")]
    CutOff {
        /// Bytes that the record is known to have.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// The record's length is beyond what any capture program writes.
    #[error("a length of {length} bytes, the limit is {limit}")]
    TooLong {
        /// The length that the record announces.
        length: u32,
        /// The longest that is read.
        limit: u32,
    },
    /// A pcapng block length that cannot be: below 12 or no multiple of 4.
    #[error("a block length of {length} bytes, which is below 12 or no multiple of 4")]
    BlockLength {
        /// The length that the block announces.
        length: u32,
    },
    /// The length at a pcapng block's end is not the one at its beginning.
    #[error("the block's length is {length} at its beginning and {trailer} at its end")]
    Trailer {
        /// Length at the beginning.
        length: u32,
        /// Length at the end.
        trailer: u32,
    },
    /// A pcapng section header without a known byte-order magic.
    #[error("byte-order magic {magic:#010x} of a section header")]
    ByteOrder {
        /// The four bytes, read as big-endian.
        magic: u32,
    },
    /// A pcapng block whose contents do not fit into it.
    #[error("a block of type {kind:#010x} whose contents are malformed")]
    Malformed {
        /// The block's type.
        kind: u32,
    },
    /// A packet of an interface that its section has not described.
    #[error("a packet of interface {interface}, the section has described {described}")]
    UnknownInterface {
        /// The interface's number in its section.
        interface: u32,
        /// How many interfaces the section has described so far.
        described: usize,
    },
    /// The file could not be read.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
