//! Buffers to receive many frames at once into.

use crate::offload::vnet;

/// Frames that one call receives at most.
pub const BURST: usize = 32;
/// Longest frame that is received: the largest IP packet with an Ethernet header and several tags. Linux makes longer ones only
/// where an administrator raises `gso_max_size` above 64 KiB.
pub const MAX_RECEIVED: usize = 65_536 + 64;
/// A VLAN tag.
pub(crate) const TAG: usize = 4;
/// Both MAC addresses: what stands ahead of a tag.
pub(crate) const ADDRESSES: usize = 12;
/// Room for a frame with a tag that is put back in front.
pub(crate) const SLOT: usize = TAG + MAX_RECEIVED;

/// Buffers for a burst of frames. A thread needs one, whatever the number of its ports; the system gives memory only to what has
/// been used of it.
#[derive(Debug)]
pub struct Burst {
    pub(crate) headers: Box<[[u8; vnet::LEN]]>,
    /// [`BURST`] slots; a frame begins [`TAG`] bytes into its slot.
    pub(crate) frames: Vec<u8>,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// Empty buffers.
    pub fn new() -> Self {
        Self { headers: vec![[0; vnet::LEN]; BURST].into(), frames: vec![0; BURST * SLOT] }
    }

    /// The frame of `len` bytes in slot `n`, where `tag` is put back if it was taken off. Empty for what is not there.
    pub(crate) fn frame(&mut self, n: usize, len: usize, tag: Option<[u8; TAG]>) -> &mut [u8] {
        let Some(slot) = self.frames.get_mut(n * SLOT..(n + 1) * SLOT) else { return &mut [] };
        let end = (TAG + len).min(SLOT);
        match tag {
            Some(tag) if len >= ADDRESSES => {
                slot.copy_within(TAG..TAG + ADDRESSES, 0);
                slot[ADDRESSES..ADDRESSES + TAG].copy_from_slice(&tag);
                &mut slot[..end]
            }
            _ => &mut slot[TAG..end],
        }
    }
}
