//! Actions, in the order and with the arguments of `enum ovs_action_attr` (linux/openvswitch.h).

mod check;
mod header;
mod tunnel;

pub use check::{ActionError, ActionErrorKind, MAX_NESTING, validate};
pub use tunnel::{TnlHeader, TnlPush, VxlanHeader};

use crate::{Key, MacAddr, PortNo};
use std::net::{Ipv4Addr, Ipv6Addr};

/// One action of a flow. Numbers in the comments are `OVS_ACTION_ATTR_*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// 1: send the packet as it is now to a port.
    Output(PortNo),
    /// 2: send the packet to the user (upcall).
    Userspace(Userspace),
    /// 3: set one header whole.
    Set(Header),
    /// 11: set the bits of one header that are 1 in `mask`. Both are the same variant; `value` has no bit outside
    /// `mask` (U8).
    SetMasked {
        /// New bits.
        value: Header,
        /// Which bits change.
        mask: Header,
    },
    /// 4: push a VLAN tag.
    PushVlan {
        /// 0x8100 or 0x88a8.
        tpid: u16,
        /// Priority, CFI ("present", always set: U7) and VLAN ID.
        tci: u16,
    },
    /// 5: pop the outermost VLAN tag; nothing without one.
    PopVlan,
    /// 6: run `actions` on a copy with a probability of `probability / u32::MAX`; 0 never, `u32::MAX` always (U10).
    Sample {
        /// See above.
        probability: u32,
        /// Actions on the copy.
        actions: Vec<Action>,
    },
    /// 7: look the packet up again with this recirculation ID.
    Recirc(u32),
    /// 8: compute the datapath hash.
    Hash {
        /// Hash algorithm.
        alg: HashAlg,
        /// Basis.
        basis: u32,
    },
    /// 9: push a label stack entry after the Ethernet (and VLAN) header.
    PushMpls {
        /// Label stack entry: label 20, TC 3, bottom-of-stack 1, TTL 8 bits.
        lse: u32,
        /// 0x8847 or 0x8848.
        eth_type: u16,
    },
    /// 10: pop the outermost label stack entry; nothing without one (U9).
    PopMpls {
        /// Ethernet type after it.
        eth_type: u16,
    },
    /// 12: connection tracking.
    Ct(Box<Ct>),
    /// 13: the next output sends at most this many bytes.
    Trunc {
        /// Bytes, at least 14.
        max_len: u32,
    },
    /// 14: push an Ethernet header (packet type becomes Ethernet).
    PushEth {
        /// Source.
        src: MacAddr,
        /// Destination.
        dst: MacAddr,
    },
    /// 15: pop the Ethernet header.
    PopEth,
    /// 16: forget the packet's connection state.
    CtClear,
    /// 17: push an NSH header.
    PushNsh(Box<NshHeader>),
    /// 18: pop the NSH header.
    PopNsh,
    /// 19: meter.
    Meter(u32),
    /// 20: run `actions` on a copy.
    Clone(Vec<Action>),
    /// 21: branch on the packet's length in bytes.
    CheckPktLen {
        /// Threshold.
        pkt_len: u16,
        /// If longer.
        greater: Vec<Action>,
        /// If not.
        less_or_equal: Vec<Action>,
    },
    /// 22: push a label stack entry before the L3 header or, without `l3`, as a packet of its own.
    AddMpls {
        /// Label stack entry.
        lse: u32,
        /// 0x8847 or 0x8848.
        eth_type: u16,
        /// After the Ethernet header (`OVS_MPLS_L3_TUNNEL_FLAG_MASK`).
        l3: bool,
    },
    /// 23: decrement TTL or hop limit; at 0 or 1 run `exception` instead.
    DecTtl {
        /// Actions for an expired packet.
        exception: Vec<Action>,
    },
    /// 24: drop, with a reason for the counters.
    Drop(u32),
    /// 25: packet sample to a psample group.
    Psample {
        /// Group.
        group: u32,
        /// At most 16 bytes.
        cookie: Vec<u8>,
    },
    /// User-space datapath only: push an outer tunnel header.
    TnlPush(Box<TnlPush>),
    /// User-space datapath only: pop the outer tunnel header and go on as if received on this port.
    TnlPop(PortNo),
    /// User-space datapath only: send on a link aggregate's output without flow (lb_output).
    LbOutput(u32),
}

/// Algorithm of the hash action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashAlg {
    /// Five-tuple, `OVS_HASH_ALG_L4`.
    L4,
    /// Symmetric five-tuple, `OVS_HASH_ALG_SYM_L4`.
    SymL4,
}

/// Arguments of the userspace action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Userspace {
    /// Netlink port ID to send to; ignored with per-CPU dispatch.
    pub pid: u32,
    /// Opaque data handed back with the packet. OVS's own cookies print decoded.
    pub userdata: Option<Vec<u8>>,
    /// Also give the egress tunnel key of this port.
    pub tunnel_out_port: Option<PortNo>,
    /// Also give the flow's actions.
    pub actions: bool,
}

/// One header for set and masked set; as a mask, the same variant holds masks in every field. Integers are in native
/// order here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Header {
    /// PRIORITY.
    SkbPriority(u32),
    /// SKB_MARK.
    SkbMark(u32),
    /// ETHERNET.
    Ethernet {
        /// Source.
        src: MacAddr,
        /// Destination.
        dst: MacAddr,
    },
    /// IPV4. Protocol and fragment kind cannot be set (U8): equal to the packet's, or 0 in a mask.
    Ipv4 {
        /// Source.
        src: Ipv4Addr,
        /// Destination.
        dst: Ipv4Addr,
        /// Protocol.
        proto: u8,
        /// Type of service.
        tos: u8,
        /// Time to live.
        ttl: u8,
        /// Fragment kind.
        frag: u8,
    },
    /// IPV6. Protocol and fragment kind cannot be set (U8).
    Ipv6 {
        /// Source.
        src: Ipv6Addr,
        /// Destination.
        dst: Ipv6Addr,
        /// Flow label.
        label: u32,
        /// Protocol.
        proto: u8,
        /// Traffic class.
        tclass: u8,
        /// Hop limit.
        hlimit: u8,
        /// Fragment kind.
        frag: u8,
    },
    /// TCP ports.
    Tcp {
        /// Source.
        src: u16,
        /// Destination.
        dst: u16,
    },
    /// UDP ports.
    Udp {
        /// Source.
        src: u16,
        /// Destination.
        dst: u16,
    },
    /// SCTP ports.
    Sctp {
        /// Source.
        src: u16,
        /// Destination.
        dst: u16,
    },
    /// ICMP.
    Icmp {
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
    },
    /// ICMPV6.
    Icmpv6 {
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
    },
    /// ARP.
    Arp {
        /// Sender protocol address.
        sip: Ipv4Addr,
        /// Target protocol address.
        tip: Ipv4Addr,
        /// Operation.
        op: u16,
        /// Sender hardware address.
        sha: MacAddr,
        /// Target hardware address.
        tha: MacAddr,
    },
    /// ND.
    Nd {
        /// Target.
        target: Ipv6Addr,
        /// Source link-layer address.
        sll: MacAddr,
        /// Target link-layer address.
        tll: MacAddr,
    },
    /// MPLS: the outermost label stack entry (label 20, TC 3, BOS 1, TTL 8 bits).
    Mpls(u32),
    /// TUNNEL: the `tun_*` fields of a key, all else zero. Never masked (U8).
    Tunnel(Box<Key>),
    /// NSH.
    Nsh {
        /// Flags.
        flags: u8,
        /// Time to live.
        ttl: u8,
        /// Service path header.
        path_hdr: u32,
        /// Context headers of metadata type 1.
        context: Option<[u32; 4]>,
    },
}

/// Argument of push_nsh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NshHeader {
    /// Flags.
    pub flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Metadata type: 1 or 2.
    pub mdtype: u8,
    /// Next protocol.
    pub np: u8,
    /// Service path header.
    pub path_hdr: u32,
    /// Context: 16 bytes for type 1, TLVs (at most 248 bytes) for type 2.
    pub metadata: Vec<u8>,
}

/// Arguments of ct.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ct {
    /// Commit the connection.
    pub commit: bool,
    /// Commit, and take over the direction of this packet.
    pub force_commit: bool,
    /// Zone.
    pub zone: u16,
    /// Connection mark: value and mask.
    pub mark: Option<(u32, u32)>,
    /// Connection label: value and mask, as on the wire.
    pub label: Option<([u8; 16], [u8; 16])>,
    /// Application-layer helper.
    pub helper: Option<String>,
    /// Address translation.
    pub nat: Option<Nat>,
    /// Mask of events to report.
    pub eventmask: Option<u32>,
    /// Timeout policy.
    pub timeout: Option<String>,
}

/// The nat argument of ct.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Nat {
    /// Direction; `None` only touches committed connections (U12).
    pub direction: Option<NatDirection>,
    /// First and last address.
    pub addr: Option<(std::net::IpAddr, std::net::IpAddr)>,
    /// First and last port.
    pub port: Option<(u16, u16)>,
    /// Keep the mapping across connections.
    pub persistent: bool,
    /// Choose ports by hash.
    pub hash: bool,
    /// Choose ports at random.
    pub random: bool,
}

/// Which address nat changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NatDirection {
    /// Source.
    Src,
    /// Destination.
    Dst,
}
