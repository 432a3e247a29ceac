//! Key extraction: from a frame to its [`Key`], the first step of a packet's way through the softpath.
//!
//! Two tiers give the same answer:
//! - the fast path ([`fast`]): IPv4 without options or fragments, TCP or UDP, under at most two VLAN tags. Offsets are
//!   constants, the checks are a handful of compares, and the key's hot cache line is written in eight word stores.
//! - the general path ([`general`]): everything else, header by header, never beyond the frame.
//!
//! No frame is refused (R31). A header that is cut off or contradicts itself leaves its fields zero, which composes
//! the attribute with empty content (R32); what stands before it stays as it is. Where Open vSwitch's user-space parser
//! and the kernel's differ, R31-R36 decide, and this is what follows:
//! - An IPv4 total length or IPv6 payload length that reaches past the frame does not void the IP header; the frame's
//!   end takes its place, as in the kernel. R34 asks for it: a TCP packet cut off after its IP header still says
//!   `ipv4(proto=6,..),tcp(src=0,dst=0)`.
//! - A length that ends before the frame does is believed, as in user space: padding is never read as a header.
//! - A header that contradicts itself (an IPv4 total length shorter than its header, an IPv6 extension header longer
//!   than the payload) is treated as user space does.
//!
//! A packet that lost its Ethernet header (pop_eth, or pop_nsh of a bare IP packet) begins with what its packet type says;
//! [`extract_packet`] reads it so, by the general path, and its key has that packet type and no addresses or tags.
//!
//! A [`KeyBuf`] is a key in a batch slot that is used again and again: its cold words are only cleared after a packet
//! that wrote some of them.

mod fast;
mod general;
mod ipv6;
#[cfg(test)]
mod tests;

use crate::packet::{Packet, PacketType, TUNNEL_WORDS};
use flowlift_flow::{Frag, Key, Metadata};

/// The L3 header that was found whole and valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum L3Kind {
    /// None that the key knows, or one that is cut off or contradicts itself.
    #[default]
    None = 0,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP or RARP for IPv4 over Ethernet.
    Arp,
    /// Network service header.
    Nsh,
}

/// The L4 header that was found whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum L4Kind {
    /// None that the key knows, one that is cut off, or a later fragment.
    #[default]
    None = 0,
    /// TCP, with all of its options within the packet.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmpv6,
}

/// Where a frame's headers are, in bytes from its start: what actions need besides the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers {
    l3: u32,
    l4: u32,
    /// End of the L3 packet: padding after it is not part of the IP packet. The frame's length for other packets.
    pub end: u32,
    /// Length of the Ethernet header with all VLAN tags that the key holds (and LLC/SNAP): where an MPLS label stack or
    /// the L3 header begins. 0 if the frame is shorter than an Ethernet header, and for a packet without one.
    pub l2_len: u8,
    /// The L3 header, if it is whole and valid.
    pub l3_kind: L3Kind,
    /// The L4 header, if it is whole.
    pub l4_kind: L4Kind,
    /// Kind of fragment.
    pub frag: Frag,
}

/// "There is none", in the offsets of [`Layers`].
const NO_OFFSET: u32 = u32::MAX;

impl Default for Layers {
    fn default() -> Self {
        Self {
            l3: NO_OFFSET,
            l4: NO_OFFSET,
            end: 0,
            l2_len: 0,
            l3_kind: L3Kind::None,
            l4_kind: L4Kind::None,
            frag: Frag::No,
        }
    }
}

impl Layers {
    /// Start of the MPLS label stack, if there is one: its header lies between L2 and L3.
    pub fn l2_5(&self) -> Option<usize> {
        let l2 = usize::from(self.l2_len);
        self.l3().filter(|l3| *l3 > l2).map(|_| l2)
    }

    /// Start of the L3 packet, whatever it is: after the label stack, if there is one. `None` for a frame shorter than
    /// an Ethernet header.
    pub fn l3(&self) -> Option<usize> {
        (self.l3 != NO_OFFSET).then_some(self.l3 as usize)
    }

    /// First byte after the IPv4 or IPv6 header, options and extension headers included; of a later fragment, its
    /// payload. Nothing but [`Self::l4_kind`] says that a whole header stands there.
    pub fn l4(&self) -> Option<usize> {
        (self.l4 != NO_OFFSET).then_some(self.l4 as usize)
    }

    /// True if the transport header that the key speaks of is whole.
    pub fn l4_complete(&self) -> bool {
        self.l4_kind != L4Kind::None
    }
}

/// Which words of a [`KeyBuf`] may be other than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dirty {
    /// The hot words only.
    Hot,
    /// Those that headers fill: words 0 to [`HEADER_WORDS`].
    Headers,
    /// Any.
    All,
}

/// Words of a key that extraction from a frame can fill. Those after it (connection labels, tunnels) have other sources.
const HEADER_WORDS: usize = 24;
const _: () = assert!(std::mem::offset_of!(Key, ct_label) == HEADER_WORDS * 8);

/// A key that is filled again and again, one per batch slot.
#[derive(Debug, Clone)]
pub struct KeyBuf {
    key: Key,
    dirty: Dirty,
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl KeyBuf {
    /// An empty key.
    pub fn new() -> Self {
        Self { key: Key::default(), dirty: Dirty::Hot }
    }

    /// The key of the packet extracted last.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// True if all words after the hot line are zero, which lookups make use of. False says nothing.
    #[inline(always)]
    pub fn hot_only(&self) -> bool {
        self.dirty == Dirty::Hot
    }

    /// The key, to change. The next extraction clears all of it.
    pub fn key_mut(&mut self) -> &mut Key {
        self.dirty = Dirty::All;
        &mut self.key
    }

    /// Clears the words after the hot line that may not be zero.
    #[inline(always)]
    fn clean(&mut self) {
        if self.dirty != Dirty::Hot {
            self.clean_cold();
        }
    }

    #[cold]
    fn clean_cold(&mut self) {
        let words = self.key.words_mut();
        match self.dirty {
            Dirty::Hot => {}
            Dirty::Headers => words[flowlift_flow::key::HOT_WORDS..HEADER_WORDS].fill(0),
            Dirty::All => words[flowlift_flow::key::HOT_WORDS..].fill(0),
        }
        self.dirty = Dirty::Hot;
    }
}

/// Fills `key` from `frame` and `md`; every field that the packet does not have is zero. Never fails (R31).
#[inline]
pub fn extract(frame: &[u8], md: &Metadata, key: &mut KeyBuf) -> Layers {
    key.clean();
    match fast::extract(frame, md, &mut key.key) {
        Some(layers) => layers,
        None => extract_general(frame, md, key),
    }
}

/// The general path on a clean buffer.
#[inline(never)]
fn extract_general(frame: &[u8], md: &Metadata, buf: &mut KeyBuf) -> Layers {
    let key = &mut buf.key;
    metadata(md, key);
    let layers = general::headers(frame, key);
    if key.eth_type.get() != flowlift_flow::key::eth_type::IPV4 {
        buf.dirty = Dirty::Headers;
    }
    layers
}

/// What [`extract`] gives, always by the general path: for fuzzers, which compare the two.
#[doc(hidden)]
pub fn general_path(frame: &[u8], md: &Metadata, key: &mut KeyBuf) -> Layers {
    key.clean();
    extract_general(frame, md, key)
}

/// Clears the hot line but for the metadata.
fn metadata(md: &Metadata, key: &mut Key) {
    key.words_mut()[..flowlift_flow::key::HOT_WORDS].fill(0);
    let Metadata { in_port, recirc_id, dp_hash, skb_priority, skb_mark } = *md;
    (key.in_port, key.recirc_id, key.dp_hash) = (in_port, recirc_id, dp_hash);
    (key.skb_priority, key.skb_mark) = (skb_priority, skb_mark);
}

/// As [`extract`], of a packet that begins with what its packet type says.
#[inline]
pub fn extract_packet(packet: &Packet, key: &mut KeyBuf) -> Layers {
    let layers = if packet.packet_type.is_ethernet() {
        extract(packet.bytes(), &packet.metadata, key)
    } else {
        extract_bare(packet.bytes(), packet.packet_type, &packet.metadata, key)
    };
    if let Some(tunnel) = packet.tunnel() {
        key.key_mut().words_mut()[TUNNEL_WORDS].copy_from_slice(&tunnel.words()[TUNNEL_WORDS]);
    }
    layers
}

/// As [`extract_packet`], for the packet loop: plain IPv4 is all that is inlined, and the result is written where it stays.
/// A value that comes by several ways is put together in memory and copied from there, and such a copy waits until the
/// parts have left the store buffer.
#[inline(always)]
pub(crate) fn extract_into(packet: &Packet, key: &mut KeyBuf, layers: &mut Layers) {
    if packet.packet_type.is_ethernet() && !packet.has_tunnel() {
        key.clean();
        if let Some(found) = fast::untagged(packet.bytes(), &packet.metadata, &mut key.key) {
            *layers = found;
            return;
        }
    }
    *layers = extract_other(packet, key);
}

#[inline(never)]
fn extract_other(packet: &Packet, key: &mut KeyBuf) -> Layers {
    extract_packet(packet, key)
}

#[cold]
fn extract_bare(packet: &[u8], packet_type: PacketType, md: &Metadata, buf: &mut KeyBuf) -> Layers {
    buf.clean();
    metadata(md, &mut buf.key);
    let layers = general::bare_headers(packet, packet_type.eth_type(), &mut buf.key);
    buf.key.packet_type = packet_type.0.into();
    // The packet type itself is behind the hot line.
    buf.dirty = Dirty::Headers;
    layers
}

/// The key of one frame. For many frames, [`extract`] into a [`KeyBuf`] is faster.
pub fn extract_key(frame: &[u8], md: &Metadata) -> Key {
    let mut buf = KeyBuf::new();
    extract(frame, md, &mut buf);
    buf.key
}
