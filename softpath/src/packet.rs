//! A packet on its way through the datapath: bytes with room to grow, and what is known about them.
//!
//! A [`Packet`] owns one buffer for its whole life. Receiving, pushing and popping headers, cloning into it and sending
//! from it move offsets or copy bytes, but allocate only when a frame is larger than any that the buffer held before;
//! so a batch of packets that is kept and refilled costs no allocation in steady state.
//!
//! ```text
//!  buffer: | headroom | data            | tailroom |
//!                     ^ start           ^ start + len
//! ```

use flowlift_flow::{Key, Metadata, key::eth_type};
use flowlift_port::offload::{self, Offload};

/// Bytes kept free ahead of a received frame: room for the headers that actions push (two VLAN tags, a label stack, an
/// NSH header) without moving the frame.
pub const HEADROOM: usize = 128;
/// Bytes that a new packet's buffer has behind its headroom: an ordinary frame with tags and some tail.
pub const DEFAULT_ROOM: usize = 2048;

/// Kind of a packet's first header, as in a key's `packet_type`: name space in the upper, type in the lower 16 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PacketType(pub u32);

impl PacketType {
    /// An Ethernet frame.
    pub const ETHERNET: Self = Self(0);
    /// A bare NSH header.
    pub const NSH: Self = Self::bare(eth_type::NSH);
    /// A bare IPv4 header.
    pub const IPV4: Self = Self::bare(eth_type::IPV4);
    /// A bare IPv6 header.
    pub const IPV6: Self = Self::bare(eth_type::IPV6);

    /// A packet without Ethernet header whose first header is what this Ethernet type stands for.
    pub const fn bare(eth_type: u16) -> Self {
        Self(1 << 16 | eth_type as u32)
    }

    /// True for an Ethernet frame.
    pub const fn is_ethernet(self) -> bool {
        self.0 == 0
    }

    /// Ethernet type of a bare packet's first header.
    pub const fn eth_type(self) -> u16 {
        self.0 as u16
    }
}

/// What is known of a packet's five-tuple hash, which OVS takes once, when the packet is first seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FlowHash {
    /// Not needed so far: the key at hand gives it.
    #[default]
    Unknown,
    /// Taken before a header changed.
    Known(u32),
    /// Discarded together with the headers that it was taken from.
    Stale,
}

impl FlowHash {
    /// The hash, if it was taken.
    pub(crate) fn known(self) -> Option<u32> {
        match self {
            Self::Known(hash) => Some(hash),
            Self::Unknown | Self::Stale => None,
        }
    }
}

/// Copies a frame to where as many bytes are. The shortest frames are most of those that come in numbers; two halves that
/// overlap are a few instructions where the library's copy is a call.
#[inline(always)]
fn copy(to: &mut [u8], from: &[u8]) {
    const HALF: usize = 32;
    if from.len() <= 2 * HALF
        && let (Some(first), Some(last)) = (from.first_chunk::<HALF>(), from.last_chunk::<HALF>())
    {
        if let Some(place) = to.first_chunk_mut() {
            *place = *first;
        }
        if let Some(place) = to.last_chunk_mut() {
            *place = *last;
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// Tunnel fields (`tun_*` of a key) that a packet may have. Their memory stays for the next packet's.
#[derive(Debug, Clone, Default)]
struct TunnelFields {
    present: bool,
    key: Option<Box<Key>>,
}

impl TunnelFields {
    fn set(&mut self, from: &Key) {
        let key = self.key.get_or_insert_default();
        key.words_mut()[TUNNEL_WORDS].copy_from_slice(&from.words()[TUNNEL_WORDS]);
        self.present = true;
    }

    fn get(&self) -> Option<&Key> {
        self.key.as_deref().filter(|_| self.present)
    }

    fn copy_from(&mut self, other: &Self) {
        match other.get() {
            Some(key) => self.set(key),
            None => self.present = false,
        }
    }
}

/// The words of a key that tunnels fill: all from `tun_id` on.
pub(crate) const TUNNEL_WORDS: std::ops::RangeFrom<usize> = std::mem::offset_of!(Key, tun_id) / 8..;

/// A packet. See the module's head.
#[derive(Debug, Clone)]
pub struct Packet {
    buf: Vec<u8>,
    start: usize,
    len: usize,
    /// Bytes to cut from the end, set by the trunc action.
    pub(crate) cut: usize,
    /// The next output or upcall is cut.
    pub(crate) cut_next: bool,
    pub(crate) flow_hash: FlowHash,
    /// Kind of the first header.
    pub packet_type: PacketType,
    /// Ingress port, recirculation ID, hash, mark and priority.
    pub metadata: Metadata,
    /// What the packet's sender left to do, a partial checksum or segmentation. Set it after filling; headers that come and go ahead of
    /// it move it, and whoever sends the packet is told ([`crate::Sink::output_with`]).
    pub offload: Option<Offload>,
    /// What was outside it when it came.
    tunnel: TunnelFields,
    /// What is to be outside it when it leaves by a tunnel port.
    egress_tunnel: TunnelFields,
}

impl Packet {
    /// An empty packet with room for an ordinary frame.
    pub fn new() -> Self {
        Self::with_room(DEFAULT_ROOM)
    }

    /// An empty packet with room for frames of `room` bytes; a larger one makes it grow.
    pub fn with_room(room: usize) -> Self {
        Self {
            buf: vec![0; HEADROOM + room],
            start: HEADROOM,
            len: 0,
            cut: 0,
            cut_next: false,
            flow_hash: FlowHash::Unknown,
            packet_type: PacketType::ETHERNET,
            metadata: Metadata::default(),
            offload: None,
            tunnel: TunnelFields::default(),
            egress_tunnel: TunnelFields::default(),
        }
    }

    /// The packet came out of a tunnel: its key has these `tun_*` fields. Set it after filling.
    pub fn set_tunnel(&mut self, tunnel: &Key) {
        self.tunnel.set(tunnel);
    }

    /// What [`Packet::set_tunnel`] set.
    pub fn tunnel(&self) -> Option<&Key> {
        self.tunnel.get()
    }

    /// True after [`Packet::set_tunnel`].
    #[inline(always)]
    pub(crate) fn has_tunnel(&self) -> bool {
        self.tunnel.present
    }

    /// Gives the packet the tunnel in which it leaves. As in the kernel's datapath, its key does not change.
    pub(crate) fn set_egress_tunnel(&mut self, tunnel: &Key) {
        self.egress_tunnel.set(tunnel);
    }

    /// True for a frame of which nothing is to be told to whoever sends it but its bytes.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.offload.is_none() && !self.egress_tunnel.present && self.packet_type.is_ethernet()
    }

    /// The five-tuple hash, if one was taken on the packet's way or set.
    pub fn flow_hash(&self) -> Option<u32> {
        self.flow_hash.known()
    }

    /// Gives the packet the five-tuple hash that it had when it was last seen. Set it after filling.
    pub fn set_flow_hash(&mut self, hash: u32) {
        self.flow_hash = FlowHash::Known(hash);
    }

    /// Makes this a fresh Ethernet frame of `len` bytes from the wire and gives its bytes, to be overwritten: they still
    /// hold whatever was in the buffer.
    #[inline]
    pub fn receive(&mut self, len: usize, metadata: Metadata) -> &mut [u8] {
        if self.buf.len() < HEADROOM + len {
            self.buf.resize(HEADROOM + len, 0);
        }
        self.start = HEADROOM;
        self.len = len;
        self.cut = 0;
        self.cut_next = false;
        self.flow_hash = FlowHash::Unknown;
        self.packet_type = PacketType::ETHERNET;
        self.metadata = metadata;
        self.offload = None;
        self.tunnel.present = false;
        self.egress_tunnel.present = false;
        &mut self.buf[HEADROOM..HEADROOM + len]
    }

    /// Makes this a fresh Ethernet frame from the wire.
    #[inline]
    pub fn fill(&mut self, frame: &[u8], metadata: Metadata) {
        copy(self.receive(frame.len(), metadata), frame);
    }

    /// Makes this a copy of `other`, reusing the buffer.
    pub fn copy_from(&mut self, other: &Self) {
        self.receive(other.len, other.metadata).copy_from_slice(other.bytes());
        self.cut = other.cut;
        self.cut_next = other.cut_next;
        self.flow_hash = other.flow_hash;
        self.packet_type = other.packet_type;
        self.offload = other.offload;
        self.tunnel.copy_from(&other.tunnel);
        self.egress_tunnel.copy_from(&other.egress_tunnel);
    }

    /// Length in bytes, without a pending truncation.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no byte is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }

    /// The whole packet, to write.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..self.start + self.len]
    }

    /// The checksum of the L4 header at `l4` is partial: its field is the sum of the pseudo-header.
    #[inline]
    pub(crate) fn is_partial(&self, l4: usize) -> bool {
        self.offload.is_some_and(|offload| usize::from(offload.csum_start) == l4)
    }

    /// Length that a pending truncation would leave.
    pub(crate) fn send_len(&self) -> usize {
        self.len.saturating_sub(self.cut)
    }

    /// As [`Packet::take_for_output`], with all that is to be told besides.
    pub(crate) fn take_with_all(&mut self) -> Outgoing<'_> {
        let len = if self.cut_next { self.send_len() } else { self.len };
        let offload = self.offload.and_then(|offload| offload.cut(self.bytes(), len));
        if self.cut_next {
            self.cut = 0;
            self.cut_next = false;
        }
        let bytes = &self.buf[self.start..self.start + len];
        Outgoing { bytes, packet_type: self.packet_type, offload, tunnel: self.egress_tunnel.get() }
    }

    /// What the next output sends: all bytes, or less after a trunc action, which this uses up.
    #[inline]
    pub(crate) fn take_for_output(&mut self) -> &[u8] {
        let mut len = self.len;
        if self.cut_next {
            len = self.send_len();
            self.cut = 0;
            self.cut_next = false;
        }
        &self.buf[self.start..self.start + len]
    }

    /// The bytes from `at`, if there are at least `len` of them.
    #[inline]
    pub(crate) fn header(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.bytes().get(at..at.checked_add(len)?)
    }

    /// As [`Packet::header`], to write.
    #[inline]
    pub(crate) fn header_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.bytes_mut().get_mut(at..at.checked_add(len)?)
    }

    /// Opens a gap of `count` bytes, content undefined, `at` bytes behind the first one; what is ahead of it moves
    /// towards the front, since that is shorter than what is behind it. `at` is at most the length.
    pub(crate) fn insert(&mut self, at: usize, count: usize) -> &mut [u8] {
        if self.start < count {
            let more = count - self.start + HEADROOM;
            self.buf.splice(0..0, std::iter::repeat_n(0, more));
            self.start += more;
        }
        if let Some(offload) = self.offload {
            self.offload = offload.inserted(at, count);
        }
        let old = self.start;
        self.start -= count;
        self.len += count;
        self.buf.copy_within(old..old + at, self.start);
        &mut self.buf[self.start + at..self.start + at + count]
    }

    /// Removes `count` bytes that begin `at` bytes behind the first one. `at + count` is at most the length.
    pub(crate) fn remove(&mut self, at: usize, count: usize) {
        if let Some(offload) = self.offload {
            self.offload = offload.removed(at, count);
        }
        self.buf.copy_within(self.start..self.start + at, self.start + count);
        self.start += count;
        self.len -= count;
        self.cut = self.cut.min(self.len);
    }
}

/// A packet as it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'p> {
    /// Its bytes, from what `packet_type` says on.
    pub bytes: &'p [u8],
    /// Kind of the first header.
    pub packet_type: PacketType,
    /// What is left to do on it: it goes as it is to a port that understands that.
    pub offload: Option<Offload>,
    /// The `tun_*` fields that a set(tunnel) action gave it: what is outside it when the port is a tunnel. Other ports do not care.
    pub tunnel: Option<&'p Key>,
}

impl<'p> Outgoing<'p> {
    /// A whole frame of which nothing is to be told.
    pub fn frame(bytes: &'p [u8]) -> Self {
        Self { bytes, packet_type: PacketType::ETHERNET, offload: None, tunnel: None }
    }

    /// Does what is left to do, and gives the whole packets that come of it to `each`, in order.
    pub fn finish(self, each: impl FnMut(&[u8])) {
        finish(self.bytes, self.offload, each);
    }
}

/// Does in software what is left to do on `packet`: gives the frames that come of it to `each`, in order. A packet whose headers
/// do not let it be finished is given as it is: nothing is dropped for a malformed header (R31).
pub(crate) fn finish(packet: &[u8], offload: Option<Offload>, mut each: impl FnMut(&[u8])) {
    match offload {
        Some(offload) if offload::finish(packet, &offload, &mut Vec::new(), &mut each).is_ok() => {}
        _ => each(packet),
    }
}

impl Default for Packet {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_short_length_are_copied_whole() {
        let mut p = Packet::new();
        for len in 0..200 {
            let frame: Vec<u8> = (0..len).map(|n| n as u8 ^ 0x5a).collect();
            p.fill(&[0xff; 256], Metadata::default());
            p.fill(&frame, Metadata::default());
            assert_eq!(p.bytes(), frame, "{len} bytes");
        }
    }

    #[test]
    fn a_buffer_is_reused_and_grows_for_larger_frames_only() {
        let mut p = Packet::new();
        let before = p.receive(1500, Metadata::default()).as_ptr();
        assert_eq!(p.receive(60, Metadata::default()).as_ptr(), before);
        assert_eq!(p.receive(65_535, Metadata::default()).len(), 65_535);
        let grown = p.bytes().as_ptr();
        p.fill(&[1, 2, 3], Metadata::default());
        assert_eq!((p.bytes(), p.bytes().as_ptr()), (&[1u8, 2, 3][..], grown));
    }

    #[test]
    fn insert_and_remove_keep_both_sides() {
        let mut p = Packet::with_room(16);
        p.fill(b"abcdef", Metadata::default());
        p.insert(2, 3).copy_from_slice(b"XYZ");
        assert_eq!(p.bytes(), b"abXYZcdef");
        p.remove(1, 4);
        assert_eq!(p.bytes(), b"acdef");
        // Far more than the headroom.
        for _ in 0..100 {
            p.insert(1, 4).copy_from_slice(b"....");
        }
        assert_eq!((p.len(), p.bytes()[0], &p.bytes()[401..]), (405, b'a', &b"cdef"[..]));
    }
}
