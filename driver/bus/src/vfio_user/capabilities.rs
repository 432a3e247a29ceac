//! What the two sides tell each other about themselves in the first message.

use super::{MAX_DATA, MAX_FDS};
use serde::{Deserialize, Serialize};

/// Limits of one side. A limit that the peer did not name has the protocol's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Most file descriptors that the sender takes in one message.
    pub max_msg_fds: u64,
    /// Most bytes of one data transfer.
    pub max_data_xfer_size: u64,
    /// Most DMA mappings at once.
    pub max_dma_maps: u64,
    /// Bitmap of page sizes of DMA mappings.
    pub pgsizes: u64,
}

impl Default for Capabilities {
    /// The protocol's defaults: what a peer that says nothing can do.
    fn default() -> Self {
        Self { max_msg_fds: 1, max_data_xfer_size: MAX_DATA.into(), max_dma_maps: 65_535, pgsizes: 4096 }
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

impl Capabilities {
    /// What our sides can do.
    pub fn ours() -> Self {
        Self { max_msg_fds: MAX_FDS as u64, ..Self::default() }
    }

    /// The text that follows [`Version`](super::Version), with its terminating NUL.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Four numbers always have a text form.
        let mut text = serde_json::to_vec(&VersionData { capabilities: *self }).unwrap_or_default();
        text.push(0);
        text
    }

    /// Reads the text of a peer; no text at all means the defaults. `None`: it is not what the protocol asks for.
    pub fn from_bytes(text: &[u8]) -> Option<Self> {
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        if text.is_empty() {
            return Some(Self::default());
        }
        let data: VersionData = serde_json::from_slice(text).ok()?;
        Some(data.capabilities)
    }
}
