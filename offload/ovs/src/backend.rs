//! What a datapath does, as the Netlink server asks for it.
//!
//! [`Backend`] is the line between OVS's messages and a datapath: the server checks what a message says, the backend has
//! the state. The server keeps nothing but its clients' dumps, so it may be dropped and made anew at any time.
//!
//! Every method returns at once: it puts the software copy right and leaves the NIC for later. A method that fails has
//! changed nothing. Integers are in native byte order, lengths in bytes, times in milliseconds of `CLOCK_MONOTONIC`.

use flowlift_flow::action::ActionError;
use flowlift_flow::{Action, Key, Match, PortNo, Ufid};
use nix::errno::Errno;
use std::ops::ControlFlow;
use thiserror::Error;

/// Handle of a datapath: the interface index of its local port (`ovs_header.dp_ifindex`), above 0 and not used again
/// while the datapath lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DpIndex(pub i32);

/// User features of a datapath, `OVS_DP_F_*` of `linux/openvswitch.h`, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u32);

impl Features {
    /// The last attribute of a message may be unaligned.
    pub const UNALIGNED: Self = Self(1);
    /// A vport may have several upcall port IDs.
    pub const VPORT_PIDS: Self = Self(1 << 1);
    /// Recirculation IDs are shared with TC.
    pub const TC_RECIRC_SHARING: Self = Self(1 << 2);
    /// Upcalls go to the port ID of the CPU that handles the packet.
    pub const DISPATCH_UPCALL_PER_CPU: Self = Self(1 << 3);

    /// True if every bit of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a datapath can do beyond what every one can; probes are answered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// User features that may be switched on.
    pub features: Features,
    /// Connection tracking: the CT attributes of keys and the actions `ct` and `ct_clear`.
    pub conntrack: bool,
    /// Most meters of one datapath.
    pub max_meters: u32,
    /// Most bands of one meter.
    pub max_meter_bands: u32,
}

/// Why a datapath refuses. [`Self::errno`] is what the client gets, the text goes along as an extended ack.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `ENODEV`: there is no such datapath.
    #[error("there is no such datapath")]
    NoDatapath,
    /// `ENODEV`: there is no such vport.
    #[error("there is no such vport")]
    NoVport,
    /// `ENODEV`: the host has no such network device, or none that can be a port.
    #[error("there is no network device {0} that can be a port")]
    NoNetdev(String),
    /// `ENOENT`: there is no such flow, or the UFID belongs to a flow with another key.
    #[error("there is no such flow")]
    NoFlow,
    /// `ENOENT`: there is no such meter.
    #[error("there is no such meter")]
    NoMeter,
    /// `EEXIST`: a datapath, vport, device or flow of this name or key is there.
    #[error("{0} exists")]
    Exists(String),
    /// `EBUSY`: the port number is taken, or the device belongs to a datapath.
    #[error("{0} is in use")]
    Busy(String),
    /// `EINVAL`: an action cannot be done to the packets of this flow.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// `EINVAL`: a match or an action that this datapath does not have. A probe takes it for "not supported".
    #[error("{0} is not supported")]
    Inexpressible(String),
    /// `EINVAL`: an argument that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// `EOPNOTSUPP`: the operation as a whole is not there.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// `EFBIG`: no port number is left, or one is too big.
    #[error("port numbers end at 65534")]
    PortNumbers,
    /// `ENOSPC`: a table or a limit is full.
    #[error("{0} is full")]
    Full(String),
    /// `EMSGSIZE`: a packet too long for a port.
    #[error("packet of {0} bytes is too long")]
    PacketSize(usize),
    /// The errno of a system call that failed.
    #[error("{what}: {errno}")]
    System {
        /// What was tried.
        what: String,
        /// How it failed.
        errno: Errno,
    },
}

impl Refusal {
    /// The error number that the kernel's datapath would give.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoDatapath | Self::NoVport | Self::NoNetdev(_) => Errno::ENODEV,
            Self::NoFlow | Self::NoMeter => Errno::ENOENT,
            Self::Exists(_) => Errno::EEXIST,
            Self::Busy(_) => Errno::EBUSY,
            Self::Action(e) if e.kind == flowlift_flow::action::ActionErrorKind::TooDeep => Errno::EOVERFLOW,
            Self::Action(_) | Self::Inexpressible(_) | Self::Invalid(_) => Errno::EINVAL,
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
            Self::PortNumbers => Errno::EFBIG,
            Self::Full(_) => Errno::ENOSPC,
            Self::PacketSize(_) => Errno::EMSGSIZE,
            Self::System { errno, .. } => *errno,
        }
    }
}

/// A datapath to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDatapath {
    /// Name of the datapath and of its local port, 1 to 15 bytes.
    pub name: String,
    /// User features, all of them among [`Capabilities::features`].
    pub features: Features,
    /// Entries of the masks cache; `None` leaves the choice.
    pub masks_cache_size: Option<u32>,
    /// Upcall port ID of the local port; 0 for none.
    pub upcall_pid: u32,
    /// Upcall port IDs by CPU.
    pub per_cpu_pids: Vec<u32>,
    /// Wanted handle: the interface index that the local port should have.
    pub index: Option<DpIndex>,
}

/// A change to a datapath; `None` leaves things as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatapathChange {
    /// User features, all of them among [`Capabilities::features`].
    pub features: Option<Features>,
    /// Entries of the masks cache.
    pub masks_cache_size: Option<u32>,
    /// Upcall port IDs by CPU.
    pub per_cpu_pids: Option<Vec<u32>>,
}

/// A datapath as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Datapath {
    /// Name of the datapath and of its local port.
    pub name: String,
    /// User features.
    pub features: Features,
    /// Entries of the masks cache.
    pub masks_cache_size: u32,
    /// Upcall port IDs by CPU.
    pub per_cpu_pids: Vec<u32>,
    /// Packets and flows.
    pub stats: DatapathStats,
    /// Masks.
    pub megaflow: MegaflowStats,
}

/// `struct ovs_dp_stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatapathStats {
    /// Packets that matched a flow.
    pub hit: u64,
    /// Packets that matched none (R4).
    pub missed: u64,
    /// Of those, packets that did not reach the user.
    pub lost: u64,
    /// Flows that there are.
    pub flows: u64,
}

/// `struct ovs_dp_megaflow_stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MegaflowStats {
    /// Masks that lookups tried.
    pub mask_hit: u64,
    /// Masks that there are.
    pub masks: u32,
    /// Lookups that a cache answered.
    pub cache_hit: u64,
}

/// What a vport is, with what its type needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VportKind {
    /// A network device of the host.
    Netdev,
    /// A network device that the datapath makes: a bridge's own port.
    Internal,
    /// GRE tunnels.
    Gre,
    /// VXLAN tunnels.
    Vxlan {
        /// UDP port.
        dst_port: u16,
        /// Group-based policy.
        gbp: bool,
    },
    /// Geneve tunnels.
    Geneve {
        /// UDP port.
        dst_port: u16,
    },
}

/// A tunnel device: Open vSwitch makes it by NETLINK_ROUTE before it adds it as a vport of type [`VportKind::Netdev`]. It belongs to
/// the datapath, and the host's stack does not know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Name, as Open vSwitch chooses it: [`crate::server::TUNNEL_DEVICES`] begin such names.
    pub name: String,
    /// Protocol.
    pub kind: TunnelKind,
    /// Largest packet within the tunnel, as its maker asked for.
    pub mtu: u32,
}

/// The protocol of a tunnel device, with what its socket needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// VXLAN.
    Vxlan {
        /// UDP port.
        dst_port: u16,
        /// Group-based policy.
        gbp: bool,
    },
    /// VXLAN-GPE, whose packets may be without an Ethernet header.
    VxlanGpe {
        /// UDP port.
        dst_port: u16,
    },
    /// Geneve.
    Geneve {
        /// UDP port.
        dst_port: u16,
    },
    /// GRE over IPv4, whose packets may be without an Ethernet header.
    Gre,
    /// Ethernet over GRE, over IPv4.
    Gretap,
    /// Ethernet over GRE, over IPv6.
    Ip6gretap,
    /// ERSPAN over IPv4.
    Erspan,
    /// ERSPAN over IPv6.
    Ip6erspan,
}

impl TunnelKind {
    /// True if both would take the same packets, so that there cannot be one beside the other.
    pub fn overlaps(self, other: Self) -> bool {
        let same_udp_port = self.udp_port().is_some() && self.udp_port() == other.udp_port();
        let both_gre = [self, other].iter().all(|kind| matches!(kind, Self::Gre | Self::Gretap));
        self == other || same_udp_port || both_gre
    }

    /// True if packets without an Ethernet header come and go by it.
    pub fn carries_bare(self) -> bool {
        matches!(self, Self::VxlanGpe { .. } | Self::Gre)
    }

    /// Its UDP port, if it is over UDP.
    pub fn udp_port(self) -> Option<u16> {
        match self {
            Self::Vxlan { dst_port, .. } | Self::VxlanGpe { dst_port } | Self::Geneve { dst_port } => {
                Some(dst_port)
            }
            Self::Gre | Self::Gretap | Self::Ip6gretap | Self::Erspan | Self::Ip6erspan => None,
        }
    }
}

/// A vport to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVport {
    /// Name, 1 to 15 bytes; of a [`VportKind::Netdev`] that of the device.
    pub name: String,
    /// Type and options.
    pub kind: VportKind,
    /// Wanted number, 1 to 65534; `None` for the lowest free one.
    pub port: Option<PortNo>,
    /// Upcall port IDs; one 0 for no upcalls.
    pub upcall_pids: Vec<u32>,
}

/// A change to a vport; `None` leaves things as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VportChange {
    /// Type and options; the type is the one that the vport has.
    pub kind: Option<VportKind>,
    /// Upcall port IDs.
    pub upcall_pids: Option<Vec<u32>>,
}

/// A vport as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vport {
    /// Number.
    pub port: PortNo,
    /// Name.
    pub name: String,
    /// Type and options.
    pub kind: VportKind,
    /// Interface index of its network device; 0 if it has none.
    pub ifindex: u32,
    /// Upcall port IDs.
    pub upcall_pids: Vec<u32>,
    /// Packets.
    pub stats: VportStats,
    /// Upcalls of packets from this port: sent, and lost.
    pub upcalls: (u64, u64),
}

/// `struct ovs_vport_stats`: "received" is from the port into the datapath.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VportStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received, from the Ethernet header on.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Received packets without a buffer.
    pub rx_dropped: u64,
    /// Packets to be sent without a buffer.
    pub tx_dropped: u64,
}

/// A flow to be, or to have new actions. The actions passed [`flowlift_flow::action::validate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowPut {
    /// Handle; without one the key is (R20).
    pub ufid: Option<Ufid>,
    /// What it matches.
    pub matching: Match,
    /// What it does.
    pub actions: Vec<Action>,
    /// Must be new (`NLM_F_CREATE`); else an existing flow gets the actions.
    pub exclusive: bool,
    /// A feature probe: no error is worth a log message (U6), and the NIC has no business with it.
    pub probe: bool,
    /// Somebody wants to see the flow.
    pub shown: bool,
}

/// Which flow is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FlowId {
    /// The flow with this UFID.
    Ufid(Ufid),
    /// The flow without UFID that was installed with this key, bits outside the mask included (R20).
    Key(Box<Key>),
}

/// A flow as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowView<'a> {
    /// Handle, if it was installed with one.
    pub ufid: Option<Ufid>,
    /// What it matches, as installed (R20), with every restriction that the datapath added (R21).
    pub matching: &'a Match,
    /// What it does.
    pub actions: &'a [Action],
    /// Packets of software and hardware together.
    pub stats: FlowStats,
}

/// What a flow has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
    /// When the last packet was seen, in milliseconds of `CLOCK_MONOTONIC`; never goes back.
    pub used_ms: Option<u64>,
    /// TCP flags of all packets together, low 8 bits.
    pub tcp_flags: u8,
}

/// Where a dump of flows goes on; the backend alone knows what it means. The default is the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCursor(pub u64);

/// A packet to be treated with actions, as if it had come in and matched a flow with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The packet, from its Ethernet header on (from its network header, if `metadata.packet_type` is not 0).
    pub packet: &'a [u8],
    /// Metadata only: tunnel, recirculation ID, hash, priority, mark, connection state, packet type, and the port, which is
    /// [`crate::key::NO_PORT`] if the client named none. The backend parses the packet for the rest.
    pub metadata: Key,
    /// What to do; not yet checked against the packet.
    pub actions: Vec<Action>,
    /// A feature probe: no error is worth a log message (U6).
    pub probe: bool,
    /// Length of the longest fragment, if the packet was put together from fragments.
    pub mru: Option<u16>,
    /// The packet's hash, as it was in the upcall.
    pub hash: Option<u64>,
    /// Port ID for upcalls of this packet, in place of the one that dispatch would choose.
    pub upcall_pid: Option<u32>,
}

/// A meter to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterConfig {
    /// Rates and bursts are in kbit/s and kbit; else in packets/s and packets.
    pub kbps: bool,
    /// Bands, all of which drop; at most [`Capabilities::max_meter_bands`].
    pub bands: Vec<MeterBand>,
    /// Counters to begin with.
    pub packets: u64,
    /// See `packets`.
    pub bytes: u64,
    /// The reply to the next set shows no counters of this meter.
    pub clear: bool,
}

/// A band of a meter: packets above it are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterBand {
    /// Above 0.
    pub rate: u32,
    /// Bucket on top of the rate.
    pub burst: u32,
}

/// What a meter has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeterStats {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// When it last saw a packet, or was made.
    pub used_ms: u64,
    /// Packets and bytes above each band.
    pub bands: Vec<(u64, u64)>,
}

/// A limit on the connections of a zone (`struct ovs_zone_limit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneLimit {
    /// Zone; `None` is the default for zones without a limit of their own.
    pub zone: Option<u16>,
    /// Most connections; 0 for no limit.
    pub limit: u32,
    /// Connections that there are.
    pub count: u32,
}

/// A datapath, or several (R1). See the module's head for what holds for every method.
pub trait Backend {
    /// What can be done; the same for as long as the backend lives.
    fn capabilities(&self) -> Capabilities;

    /// Makes a datapath with its local port. [`Refusal::Exists`] if there is one of this name, or if a device of that name
    /// is not ours.
    fn datapath_new(&mut self, new: NewDatapath) -> Result<DpIndex, Refusal>;
    /// Deletes a datapath with its ports, flows and meters. [`Refusal::NoDatapath`].
    fn datapath_del(&mut self, dp: DpIndex) -> Result<(), Refusal>;
    /// Changes a datapath. [`Refusal::NoDatapath`].
    fn datapath_set(&mut self, dp: DpIndex, change: DatapathChange) -> Result<(), Refusal>;
    /// A datapath as it is.
    fn datapath(&self, dp: DpIndex) -> Option<Datapath>;
    /// The datapath whose local port has this name.
    fn datapath_named(&self, name: &str) -> Option<DpIndex>;
    /// All datapaths, in ascending order.
    fn datapaths(&self) -> Vec<DpIndex>;

    /// Adds a vport and gives its number. [`Refusal::NoDatapath`]; [`Refusal::NoNetdev`]; [`Refusal::Exists`] for the name of
    /// a port that is there; [`Refusal::Busy`] for a number or a device in use; [`Refusal::PortNumbers`] if none is free;
    /// [`Refusal::Unsupported`] for a type that is not there.
    fn vport_new(&mut self, dp: DpIndex, new: NewVport) -> Result<PortNo, Refusal>;
    /// Removes a vport; never asked for the local port. [`Refusal::NoVport`].
    fn vport_del(&mut self, dp: DpIndex, port: PortNo) -> Result<(), Refusal>;
    /// Changes a vport. [`Refusal::NoVport`]; [`Refusal::Unsupported`] for options that cannot change.
    fn vport_set(&mut self, dp: DpIndex, port: PortNo, change: VportChange) -> Result<(), Refusal>;
    /// A vport as it is.
    fn vport(&self, dp: DpIndex, port: PortNo) -> Option<Vport>;
    /// The vport of this name, in any datapath.
    fn vport_named(&self, name: &str) -> Option<(DpIndex, PortNo)>;
    /// The vports of a datapath in ascending order, from `from` on. [`Refusal::NoDatapath`].
    fn vports(&self, dp: DpIndex, from: PortNo) -> Result<Vec<PortNo>, Refusal>;

    /// Makes a tunnel device. [`Refusal::Exists`] if the name is taken; [`Refusal::System`] with what the system says, such as
    /// `EADDRINUSE` for a UDP port that somebody has.
    fn tunnel_device_new(&mut self, device: TunnelDevice) -> Result<(), Refusal>;
    /// Gives a tunnel device another MTU. [`Refusal::NoNetdev`].
    fn tunnel_device_set(&mut self, name: &str, mtu: u32) -> Result<(), Refusal>;
    /// Takes a tunnel device away, and the vport that it is. [`Refusal::NoNetdev`].
    fn tunnel_device_del(&mut self, name: &str) -> Result<(), Refusal>;
    /// A tunnel device as it is.
    fn tunnel_device(&self, name: &str) -> Option<TunnelDevice>;

    /// Installs a flow or gives new actions to one, and shows it as it is then unless nobody wants to see it.
    ///
    /// The flow is looked for by UFID, if it has one, and then by its masked key. If there is one, [`Refusal::Exists`] if
    /// the new one is `exclusive`; [`Refusal::NoFlow`] if the flow found has another key as installed; else its actions
    /// are replaced, atomically for packets. [`Refusal::NoDatapath`]; [`Refusal::Inexpressible`] for what softpath and NIC
    /// both cannot do; [`Refusal::Full`].
    fn flow_put(
        &mut self,
        dp: DpIndex,
        put: FlowPut,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal>;
    /// Gives a flow new actions (`None` leaves them, U1), and shows it; then, if `clear`, forgets what it has seen (U2).
    /// The actions are checked against `matching`, the key and mask of the request, by the server, and by the backend if
    /// the flow's own mask is another. [`Refusal::NoDatapath`], [`Refusal::NoFlow`], [`Refusal::Action`].
    fn flow_set(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        actions: Option<Vec<Action>>,
        clear: bool,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal>;
    /// Removes a flow and shows it with its last counters. [`Refusal::NoDatapath`], [`Refusal::NoFlow`].
    fn flow_del(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal>;
    /// Shows a flow. [`Refusal::NoDatapath`], [`Refusal::NoFlow`].
    fn flow_get(&self, dp: DpIndex, id: &FlowId, show: &mut dyn FnMut(FlowView<'_>)) -> Result<(), Refusal>;
    /// Shows flows from `from` on, and gives the place to go on from: that of the flow for which `show` broke off, which
    /// comes again, or `None` after the last. A flow that is there throughout a dump is shown exactly once; one that comes
    /// or goes meanwhile may or may not be. [`Refusal::NoDatapath`], also in the middle of a dump.
    fn flow_dump(
        &self,
        dp: DpIndex,
        from: FlowCursor,
        show: &mut dyn FnMut(FlowView<'_>) -> ControlFlow<()>,
    ) -> Result<Option<FlowCursor>, Refusal>;
    /// Removes every flow of a datapath. [`Refusal::NoDatapath`].
    fn flow_flush(&mut self, dp: DpIndex) -> Result<(), Refusal>;

    /// Does actions to a packet now. [`Refusal::NoDatapath`]; [`Refusal::Action`] for actions that do not fit the packet;
    /// [`Refusal::Inexpressible`]; [`Refusal::NoVport`] if neither the port in the metadata nor the local port is there.
    /// A packet that is then lost on its way is counted, not an error.
    fn execute(&mut self, dp: DpIndex, execute: Execute<'_>) -> Result<(), Refusal>;
    /// A datagram's requests are answered. What their sender need not wait for and what is better done together was kept, and is
    /// done now.
    fn settle(&mut self) {}

    /// Makes or replaces a meter, with full buckets, and gives the counters of the one before unless that had `clear`.
    /// [`Refusal::NoDatapath`]; [`Refusal::Full`] for an ID beyond [`Capabilities::max_meters`].
    fn meter_set(&mut self, dp: DpIndex, id: u32, meter: MeterConfig) -> Result<Option<MeterStats>, Refusal>;
    /// What a meter has seen. [`Refusal::NoDatapath`], [`Refusal::NoMeter`].
    fn meter_get(&self, dp: DpIndex, id: u32) -> Result<MeterStats, Refusal>;
    /// Removes a meter and gives its last counters; `None` if there was none. [`Refusal::NoDatapath`].
    fn meter_del(&mut self, dp: DpIndex, id: u32) -> Result<Option<MeterStats>, Refusal>;

    /// Limits the connections of zones; `count` is of no meaning. [`Refusal::NoDatapath`].
    fn ct_limit_set(&mut self, dp: DpIndex, limits: &[ZoneLimit]) -> Result<(), Refusal>;
    /// Takes the limits off zones, `None` being the default. [`Refusal::NoDatapath`].
    fn ct_limit_del(&mut self, dp: DpIndex, zones: &[Option<u16>]) -> Result<(), Refusal>;
    /// The limits of `zones`; if empty, the default and every zone that has one. [`Refusal::NoDatapath`].
    fn ct_limit_get(&self, dp: DpIndex, zones: &[Option<u16>]) -> Result<Vec<ZoneLimit>, Refusal>;
}
