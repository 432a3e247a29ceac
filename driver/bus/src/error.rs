//! What can go wrong between driver and device.

use std::io;

/// A transport operation failed. Every variant names what was attempted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The function no longer answers: surprise removal, or a dead vfio-user server.
    #[error("the device is gone ({0})")]
    Gone(&'static str),
    /// An access outside a window or buffer, or misaligned for its width.
    #[error("access of {len} bytes at {offset:#x} is outside {what} ({size:#x} bytes) or misaligned")]
    OutOfRange {
        /// The window or buffer.
        what: &'static str,
        /// Byte offset of the access.
        offset: u64,
        /// Bytes accessed.
        len: usize,
        /// Size of the window or buffer in bytes.
        size: u64,
    },
    /// The backend cannot do this at all (for one, a reset on a function without FLR).
    #[error("{0} is not supported by this transport")]
    Unsupported(&'static str),
    /// A DMA mapping was refused.
    #[error("cannot map {len:#x} bytes of DMA memory at IOVA {iova:#x}: {why}")]
    Map {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Cause.
        why: String,
    },
    /// A system call failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The system's answer. It is in the message, so it is not a source of its own: who prints the chain would say it twice.
        cause: io::Error,
    },
}

/// A DMA access by the device that the IOMMU did not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("DMA {} of {len} bytes at IOVA {iova:#x} blocked", if *.write { "write" } else { "read" })]
pub struct DmaFault {
    /// First I/O virtual address of the access.
    pub iova: u64,
    /// Bytes accessed.
    pub len: usize,
    /// True for a write to host memory.
    pub write: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn a_chain_says_the_systems_answer_once() {
        let cause = io::Error::from_raw_os_error(2);
        let text = cause.to_string();
        let error = BusError::Io { what: "opening the container", cause };
        assert_eq!(error.to_string(), format!("opening the container: {text}"));
        assert!(error.source().is_none());
    }
}
