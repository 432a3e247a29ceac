//! Tunnels whose outer packets the host's own stack routes: frames within VXLAN (RFC 7348) and Geneve (RFC 8926) over UDP, on IPv4
//! and IPv6.
//!
//! A [`TunnelPort`] belongs to a UDP port, not to a remote end: what is outside a frame comes and goes beside it, as a
//! [`TunnelInfo`]. [`header`] has the bytes of the tunnel headers, [`inner`] what must be known of the frames within.

pub mod header;
pub mod inner;
mod port;
mod socket;

use std::net::{IpAddr, Ipv4Addr};

pub use header::HeaderError;
pub use port::{TunnelPort, TunnelSender};

/// Largest number of bytes of Geneve options: 63 words.
pub const OPTIONS_MAX: usize = 252;

/// The protocol of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// VXLAN, with the group policy extension or without: packets that have it are dropped without it, and the other way round.
    Vxlan {
        /// Group policy (draft-smith-vxlan-group-policy).
        gbp: bool,
    },
    /// Geneve.
    Geneve,
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
    /// Type of service or traffic class.
    pub tos: u8,
    /// Time to live or hop limit; 0 for 64.
    pub ttl: u8,
    /// UDP source port; 0 for one that depends on the flow within, of 32768 to 60999 as Linux chooses.
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// The outer packet may not be fragmented on its way. Not known of a received one.
    pub dont_fragment: bool,
    /// The outer packet has a UDP checksum; over IPv6 it has one in any case. Not known of a received one.
    pub checksum: bool,
    /// Virtual network identifier, 24 bits.
    pub vni: u32,
    /// Group policy of VXLAN.
    pub gbp: Option<Gbp>,
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
            tos: 0,
            ttl: 0,
            src_port: 0,
            dst_port: 0,
            dont_fragment: false,
            checksum: false,
            vni: 0,
            gbp: None,
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
