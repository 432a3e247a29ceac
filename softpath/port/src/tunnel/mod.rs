//! Tunnels whose outer packets the host's own stack routes: frames within VXLAN (RFC 7348) and Geneve (RFC 8926) over UDP, and
//! within GRE (RFC 2784, RFC 2890) and ERSPAN (draft-foschiano-erspan), on IPv4 and IPv6. VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe) and
//! GRE carry packets without an Ethernet header too: [`TunnelInfo::protocol`] says what is within.
//!
//! A [`TunnelPort`] belongs to a UDP port or to GRE as a whole, not to a remote end: what is outside a frame comes and goes beside
//! it, as a [`TunnelInfo`]. [`header`] has the bytes of the tunnel headers over UDP, [`gre`] the others, [`inner`] what must be known
//! of the frames within.

mod control;
pub mod gre;
pub mod header;
pub mod inner;
mod port;
mod queue;
mod run;
mod sender;
mod socket;

use std::net::{IpAddr, Ipv4Addr};

pub use header::HeaderError;
pub use port::TunnelPort;
pub use sender::TunnelSender;

/// Transparent Ethernet bridging: the protocol of a packet in which there is an Ethernet frame.
pub const ETHERNET: u16 = 0x6558;

/// Largest number of bytes of Geneve options: 63 words.
pub const OPTIONS_MAX: usize = 252;

/// The version of the outer IP packets, where a protocol has a port for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The protocol of a tunnel, and which of its packets belong to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// VXLAN, with the group policy extension or without: packets that have it are dropped without it.
    Vxlan {
        /// UDP port of this host, of IPv4 and IPv6.
        port: u16,
        /// Group policy (draft-smith-vxlan-group-policy).
        gbp: bool,
    },
    /// VXLAN-GPE: Ethernet frames and packets without an Ethernet header.
    VxlanGpe {
        /// UDP port of this host, of IPv4 and IPv6.
        port: u16,
    },
    /// Geneve.
    Geneve {
        /// UDP port of this host, of IPv4 and IPv6.
        port: u16,
    },
    /// Ethernet frames in GRE.
    Gre(IpVersion),
    /// All that GRE carries but ERSPAN: Ethernet frames and packets without an Ethernet header.
    AnyGre(IpVersion),
    /// ERSPAN, both versions.
    Erspan(IpVersion),
}

impl TunnelKind {
    /// The UDP port; 0 for what is not over UDP.
    pub fn udp_port(self) -> u16 {
        match self {
            Self::Vxlan { port, .. } | Self::VxlanGpe { port } | Self::Geneve { port } => port,
            Self::Gre(_) | Self::AnyGre(_) | Self::Erspan(_) => 0,
        }
    }
}

/// What ERSPAN tells of a mirrored frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erspan {
    /// Version 1 (type II).
    V1 {
        /// Index of the mirrored port and direction, 20 bits.
        index: u32,
    },
    /// Version 2 (type III).
    V2 {
        /// The frame was leaving where it was mirrored.
        egress: bool,
        /// Hardware ID, 6 bits.
        hwid: u8,
    },
}

/// Group policy of a VXLAN packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gbp {
    /// Policy ID.
    pub id: u16,
    /// 0x40: don't learn; 0x08: policy applied.
    pub flags: u8,
}

/// What is outside a frame in a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelInfo {
    /// Source address; unspecified to let the routes choose.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// What is within: [`ETHERNET`] for a frame, and otherwise the Ethernet type that stands for the packet's first header.
    pub protocol: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Time to live or hop limit; 0 for 64.
    pub ttl: u8,
    /// UDP source port; 0 for one that depends on the flow within, of 32768 to 60999 as Linux chooses.
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// The outer packet may not be fragmented on its way. Of a received one it is known over IPv4.
    pub dont_fragment: bool,
    /// The outer packet has a checksum of UDP or GRE.
    pub checksum: bool,
    /// Virtual network identifier, 24 bits; key of GRE, 32 bits; session of ERSPAN, 10 bits. What does not fit is cut off. GRE can be
    /// without; the others have 0 then.
    pub id: Option<u32>,
    /// Group policy of VXLAN.
    pub gbp: Option<Gbp>,
    /// ERSPAN; without it, frames are sent in version 1 with index 0.
    pub erspan: Option<Erspan>,
    /// Geneve: a control packet.
    pub oam: bool,
    /// Geneve options as on the wire, whole words.
    pub options: Options,
}

impl Default for TunnelInfo {
    fn default() -> Self {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            src: unspecified,
            dst: unspecified,
            protocol: ETHERNET,
            tos: 0,
            ttl: 0,
            src_port: 0,
            dst_port: 0,
            dont_fragment: false,
            checksum: false,
            id: None,
            gbp: None,
            erspan: None,
            oam: false,
            options: Options::default(),
        }
    }
}

/// At most [`OPTIONS_MAX`] bytes of options, kept in place.
#[derive(Clone)]
pub struct Options {
    bytes: [u8; OPTIONS_MAX],
    len: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes: [0; OPTIONS_MAX], len: 0 }
    }
}

impl Options {
    /// The options. `None` if they are more than [`OPTIONS_MAX`] bytes, or not whole words.
    pub fn new(options: &[u8]) -> Option<Self> {
        let mut kept = Self { len: u8::try_from(options.len()).ok()?, ..Self::default() };
        kept.bytes
            .get_mut(..options.len())
            .filter(|_| options.len().is_multiple_of(4))?
            .copy_from_slice(options);
        Some(kept)
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Options {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Options {}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes().fmt(f)
    }
}
