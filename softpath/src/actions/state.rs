//! Where a packet's headers are while actions change it.

use crate::extract::Layers;
use crate::packet::Packet;
use flowlift_flow::{Frag, Key};

/// "There is none", for an offset.
pub(super) const NONE: usize = usize::MAX;

/// Header offsets in bytes from the packet's first byte, and which header is at L3 and L4. Made when a program starts and
/// kept by every action; small, so that a nested list works on a copy of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers {
    /// Outermost label stack entry.
    pub(super) l2_5: usize,
    /// After Ethernet header, tags and label stack.
    pub(super) l3: usize,
    /// After the IP header with options or extension headers; none for later fragments.
    pub(super) l4: usize,
    /// Bytes of padding behind the IP packet.
    pub(super) pad: usize,
    /// Ethernet type of the packet's payload; 0 when an action changed it to something that was not parsed.
    pub(super) eth_type: u16,
    /// Upper-layer protocol.
    pub(super) proto: u8,
}

impl Headers {
    pub(super) fn new(packet: &Packet, key: &Key, layers: &Layers) -> Self {
        Self {
            l2_5: layers.l2_5().filter(|_| key.is_mpls()).unwrap_or(NONE),
            l3: layers.l3().unwrap_or(NONE),
            l4: layers.l4().filter(|_| layers.frag != Frag::Later).unwrap_or(NONE),
            pad: packet.len().saturating_sub(layers.end as usize),
            eth_type: key.eth_type.get(),
            proto: key.ip_proto,
        }
    }

    /// Nothing known but that something begins at the packet's first byte.
    pub(super) fn bare(eth_type: u16) -> Self {
        Self { l2_5: NONE, l3: 0, l4: NONE, pad: 0, eth_type, proto: 0 }
    }

    pub(super) fn is_mpls(&self) -> bool {
        self.l2_5 != NONE
    }

    /// L3 and L4 moved by `delta` bytes. A header that would be ahead of the packet is none.
    pub(super) fn shift_l3(&mut self, delta: isize) {
        for offset in [&mut self.l3, &mut self.l4] {
            if *offset != NONE {
                *offset = offset.checked_add_signed(delta).unwrap_or(NONE);
            }
        }
    }

    /// All headers behind Ethernet's moved by `delta` bytes.
    pub(super) fn shift_l2_5(&mut self, delta: isize) {
        self.shift_l3(delta);
        if self.l2_5 != NONE {
            self.l2_5 = self.l2_5.checked_add_signed(delta).unwrap_or(NONE);
        }
    }

    /// The first `len` bytes of the L3 header, if this is its Ethernet type and they are all there.
    #[inline]
    pub(super) fn l3_mut<'a>(
        &self,
        packet: &'a mut Packet,
        eth_type: u16,
        len: usize,
    ) -> Option<&'a mut [u8]> {
        (self.eth_type == eth_type && !self.is_mpls()).then(|| packet.header_mut(self.l3, len)).flatten()
    }

    /// From the L4 header to the end of the IP packet; empty without an L4 header.
    #[inline]
    pub(super) fn l4_mut<'a>(&self, packet: &'a mut Packet) -> &'a mut [u8] {
        let end = packet.len().saturating_sub(self.pad);
        packet.bytes_mut().get_mut(self.l4..end).unwrap_or_default()
    }
}
