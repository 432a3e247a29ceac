//! The flow key: everything that a datapath may match of a packet, in one fixed layout.
//!
//! [`Key`] is plain old data without padding, so it can be read as [`KEY_WORDS`] words of 64 bits: masking, hashing and
//! comparing walk words, not fields. The order of the fields is the order of their heat: an Ethernet/IPv4/TCP packet
//! from a port touches the first cache line only ([`HOT_WORDS`] words), IPv6 and ND the second, and so on. Everything
//! that a packet does not have is zero.
//!
//! Header fields are in network byte order, as on the wire; metadata is native. The comments name the attribute of
//! `linux/openvswitch.h` that carries the field.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// An Ethernet address.
pub type MacAddr = [u8; 6];

/// Number of 64-bit words in a [`Key`].
pub const KEY_WORDS: usize = size_of::<Key>() / 8;
/// Words of the first cache line: all that an untagged or tagged IPv4 or ARP packet has, but for ARP's hardware addresses.
pub const HOT_WORDS: usize = 8;
/// Largest number of bytes of tunnel options (`OVS_TUNNEL_KEY_ATTR_GENEVE_OPTS`).
pub const TUN_OPTS_MAX: usize = 255;
/// Number of MPLS label stack entries that a key holds.
pub const MPLS_MAX: usize = 3;
/// Number of VLAN tags that a key holds.
pub const VLAN_MAX: usize = 2;
/// In [`VlanTag::tci`]: a tag is present (the CFI bit of the wire is not kept).
pub const VLAN_CFI: u16 = 0x1000;
/// `eth_type` of an 802.2 frame without a SNAP type; such a key has no ETHERTYPE attribute.
pub const ETH_TYPE_NONE: u16 = 0x05ff;

/// Ethertypes that a key gives a meaning to.
pub mod eth_type {
    #![allow(missing_docs)]
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const RARP: u16 = 0x8035;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
    pub const IPV6: u16 = 0x86dd;
    pub const MPLS: u16 = 0x8847;
    pub const MPLS_MCAST: u16 = 0x8848;
    pub const NSH: u16 = 0x894f;
    pub const TEB: u16 = 0x6558;
}

/// IP protocol numbers that a key gives a meaning to.
pub mod ip_proto {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// Fragment kind of an IP packet, with the numbers of `enum ovs_frag_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Frag {
    /// Not a fragment.
    No = 0,
    /// First fragment: offset 0, more to come.
    First = 1,
    /// Fragment with a non-zero offset: no transport header.
    Later = 2,
}

/// A VLAN tag in a key. All zero: no tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VlanTag {
    /// Tag protocol ID: 0x8100 or 0x88a8.
    pub tpid: U16,
    /// Priority (3 bits), [`VLAN_CFI`] for "present", VLAN ID (12 bits). Zero with a `tpid`: the tag is cut off (R35).
    pub tci: U16,
}

/// A flow key. See the module's head for the layout.
#[derive(Clone, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Key {
    // Words 0-7: one cache line, all of an ordinary IPv4 packet.
    /// Ingress port (IN_PORT).
    pub in_port: u32,
    /// Recirculation ID, 0 for a packet from the wire (RECIRC_ID).
    pub recirc_id: u32,
    /// Destination address (ETHERNET).
    pub eth_dst: MacAddr,
    /// Innermost Ethernet type after up to [`VLAN_MAX`] tags (ETHERTYPE), or [`ETH_TYPE_NONE`]; 0 behind a tag that is cut
    /// off (R35).
    pub eth_type: U16,
    /// Source address (ETHERNET).
    pub eth_src: MacAddr,
    /// IP protocol or the last IPv6 next header; for ARP the low 8 bits of the operation (IPV4, IPV6, ARP).
    pub ip_proto: u8,
    /// [`Frag`] as a number (IPV4, IPV6).
    pub ip_frag: u8,
    /// IPv4 source, or ARP's sender protocol address (IPV4, ARP).
    pub ipv4_src: U32,
    /// IPv4 destination, or ARP's target protocol address (IPV4, ARP).
    pub ipv4_dst: U32,
    /// TCP, UDP or SCTP source port; ICMP and ICMPv6 type, zero-extended (TCP, UDP, SCTP, ICMP, ICMPV6).
    pub tp_src: U16,
    /// TCP, UDP or SCTP destination port; ICMP and ICMPv6 code, zero-extended.
    pub tp_dst: U16,
    /// IPv4 TOS or IPv6 traffic class.
    pub ip_tos: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ip_ttl: u8,
    /// TCP flags, 12 bits (TCP_FLAGS).
    pub tcp_flags: U16,
    /// VLAN tags, outermost first (VLAN, and VLAN within ENCAP).
    pub vlan: [VlanTag; VLAN_MAX],
    /// Datapath hash (DP_HASH).
    pub dp_hash: u32,
    /// Connection state bits (CT_STATE).
    pub ct_state: u32,
    /// Packet mark (SKB_MARK).
    pub skb_mark: u32,
    /// Packet priority (PRIORITY).
    pub skb_priority: u32,

    // Words 8-15: IPv6, neighbour discovery, ARP's hardware addresses.
    /// IPv6 source.
    pub ipv6_src: [u8; 16],
    /// IPv6 destination.
    pub ipv6_dst: [u8; 16],
    /// Neighbour discovery target (ND).
    pub nd_target: [u8; 16],
    /// ARP sender hardware address, or ND source link-layer address (ARP, ND).
    pub arp_sha: MacAddr,
    /// ARP target hardware address, or ND target link-layer address (ARP, ND).
    pub arp_tha: MacAddr,
    /// IPv6 flow label, 20 bits.
    pub ipv6_label: U32,

    // Words 16-23: MPLS, NSH, and the small fields of connection tracking.
    /// MPLS label stack entries, outermost first (MPLS).
    pub mpls: [U32; MPLS_MAX],
    /// Bitmap of IPv6 extension headers seen, `OFPIEH_*` (IPV6_EXTHDRS); native.
    pub ipv6_exthdrs: u16,
    /// Zero.
    pub pad0: [u8; 2],
    /// Namespace in the upper, type in the lower 16 bits; 0 is Ethernet (PACKET_TYPE, 29: text only).
    pub packet_type: U32,
    /// NSH flags (NSH).
    pub nsh_flags: u8,
    /// NSH TTL.
    pub nsh_ttl: u8,
    /// NSH metadata type.
    pub nsh_mdtype: u8,
    /// NSH next protocol.
    pub nsh_np: u8,
    /// NSH service path header: 24 bits path ID, 8 bits index.
    pub nsh_path_hdr: U32,
    /// NSH context headers of metadata type 1.
    pub nsh_context: [U32; 4],
    /// Connection tracking zone (CT_ZONE); native.
    pub ct_zone: u16,
    /// Protocol of the connection's original tuple.
    pub ct_orig_proto: u8,
    /// Zero.
    pub pad1: u8,
    /// Connection mark (CT_MARK); native.
    pub ct_mark: u32,
    /// Source port of the original tuple.
    pub ct_orig_tp_src: U16,
    /// Destination port of the original tuple.
    pub ct_orig_tp_dst: U16,
    /// Reserved word of a neighbour discovery message (ND_EXTENSIONS, 30: text only).
    pub nd_reserved: U32,
    /// Type of the first option of a neighbour discovery message (ND_EXTENSIONS, 30: text only).
    pub nd_options_type: u8,
    /// Zero.
    pub pad2: [u8; 3],

    // Words 24-31: connection label and original tuple, tunnel ID.
    /// Connection label (CT_LABELS), as on the wire.
    pub ct_label: [u8; 16],
    /// Source address of the original tuple; IPv4 in the first 4 bytes (CT_ORIG_TUPLE_IPV4, CT_ORIG_TUPLE_IPV6).
    pub ct_orig_src: [u8; 16],
    /// Destination address of the original tuple.
    pub ct_orig_dst: [u8; 16],
    /// Tunnel ID (TUNNEL: ID).
    pub tun_id: U64,
    /// Tunnel flags, `TUN_F_*`.
    pub tun_flags: U16,
    /// Tunnel TOS.
    pub tun_tos: u8,
    /// Tunnel TTL.
    pub tun_ttl: u8,
    /// Tunnel source port.
    pub tun_tp_src: U16,
    /// Tunnel destination port.
    pub tun_tp_dst: U16,

    // Words 32-39: the rest of the tunnel's outer headers.
    /// Outer IPv4 source.
    pub tun_ipv4_src: U32,
    /// Outer IPv4 destination.
    pub tun_ipv4_dst: U32,
    /// Outer IPv6 source.
    pub tun_ipv6_src: [u8; 16],
    /// Outer IPv6 destination.
    pub tun_ipv6_dst: [u8; 16],
    /// VXLAN group policy ID.
    pub tun_gbp_id: U16,
    /// VXLAN group policy flags.
    pub tun_gbp_flags: u8,
    /// ERSPAN version.
    pub tun_erspan_ver: u8,
    /// ERSPAN index (version 1).
    pub tun_erspan_idx: U32,
    /// ERSPAN direction (version 2).
    pub tun_erspan_dir: u8,
    /// ERSPAN hardware ID (version 2).
    pub tun_erspan_hwid: u8,
    /// GTP-U flags.
    pub tun_gtpu_flags: u8,
    /// GTP-U message type.
    pub tun_gtpu_msgtype: u8,
    /// Length of `tun_opts` in bytes.
    pub tun_opts_len: u8,
    /// Zero.
    pub pad3: [u8; 11],

    // Words 40-71: Geneve options.
    /// Geneve options as on the wire (TUNNEL: GENEVE_OPTS).
    pub tun_opts: [u8; 256],
}

/// Bits of [`Key::tun_flags`].
pub mod tun_flags {
    /// The packet came through a tunnel: the key has a TUNNEL attribute.
    pub const PRESENT: u16 = 1;
    /// A tunnel ID is present (`FLOW_TNL_F_KEY`).
    pub const KEY: u16 = 2;
    /// Outer checksum (`FLOW_TNL_F_CSUM`).
    pub const CSUM: u16 = 4;
    /// Outer don't-fragment bit (`FLOW_TNL_F_DONT_FRAGMENT`).
    pub const DF: u16 = 8;
    /// Control packet (`FLOW_TNL_F_OAM`).
    pub const OAM: u16 = 16;
    /// VXLAN group policy fields are present.
    pub const GBP: u16 = 32;
    /// ERSPAN fields are present.
    pub const ERSPAN: u16 = 64;
    /// GTP-U fields are present.
    pub const GTPU: u16 = 128;
    /// A Geneve option field is present, even an empty one.
    pub const GENEVE: u16 = 256;
}

const _: () = assert!(size_of::<Key>() == 576);
const _: () = assert!(std::mem::offset_of!(Key, ipv6_src) == 64);
const _: () = assert!(std::mem::offset_of!(Key, mpls) == 128);
const _: () = assert!(std::mem::offset_of!(Key, ct_label) == 192);
const _: () = assert!(std::mem::offset_of!(Key, tun_ipv4_src) == 256);
const _: () = assert!(std::mem::offset_of!(Key, tun_opts) == 320);

impl Key {
    /// The key as words.
    pub fn words(&self) -> &[u64; KEY_WORDS] {
        zerocopy::transmute_ref!(self)
    }

    /// The key as words, to write.
    pub fn words_mut(&mut self) -> &mut [u64; KEY_WORDS] {
        zerocopy::transmute_mut!(self)
    }

    /// Number of VLAN tags, counting one that is cut off.
    pub fn vlan_count(&self) -> usize {
        self.vlan.iter().take_while(|v| v.tpid.get() != 0).count()
    }

    /// True if the key has a TUNNEL attribute.
    pub fn has_tunnel(&self) -> bool {
        self.tun_flags.get() & tun_flags::PRESENT != 0
    }

    /// True for an MPLS Ethernet type.
    pub fn is_mpls(&self) -> bool {
        matches!(self.eth_type.get(), eth_type::MPLS | eth_type::MPLS_MCAST)
    }

    /// True for ARP or RARP.
    pub fn is_arp(&self) -> bool {
        matches!(self.eth_type.get(), eth_type::ARP | eth_type::RARP)
    }

    /// True for IPv4 or IPv6.
    pub fn is_ip(&self) -> bool {
        matches!(self.eth_type.get(), eth_type::IPV4 | eth_type::IPV6)
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.words().iter().enumerate().filter(|(_, w)| **w != 0).map(|(i, w)| (i, w.to_be())))
            .finish()
    }
}

/// Which bits of a [`Key`] matter: 1 is exact, 0 is "don't care" (R14). A false 1-bit only costs extra flows; a false
/// 0-bit gives wrong answers (R16, R17).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Mask(pub Key);

impl Mask {
    /// All bits exact.
    pub fn exact() -> Self {
        let mut m = Self::default();
        m.0.words_mut().fill(u64::MAX);
        m
    }

    /// True if `key` agrees with `want` in every bit of the mask.
    pub fn matches(&self, want: &Key, key: &Key) -> bool {
        let (m, a, b) = (self.0.words(), want.words(), key.words());
        m.iter().zip(a).zip(b).all(|((m, a), b)| (a ^ b) & m == 0)
    }

    /// `key` with every "don't care" bit cleared.
    pub fn apply(&self, key: &Key) -> Key {
        let mut out = key.clone();
        out.words_mut().iter_mut().zip(self.0.words()).for_each(|(w, m)| *w &= m);
        out
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a datapath knows of a packet besides its bytes, before looking at them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Ingress port.
    pub in_port: u32,
    /// Recirculation ID; 0 from the wire.
    pub recirc_id: u32,
    /// Datapath hash, set by the hash action.
    pub dp_hash: u32,
    /// Packet priority.
    pub skb_priority: u32,
    /// Packet mark.
    pub skb_mark: u32,
}
