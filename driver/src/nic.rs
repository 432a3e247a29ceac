//! What the planner sees of a NIC: capabilities, tables, entries, counters, events, and the slow path's packets.
//!
//! One trait, several NICs. Nothing here is particular to a device or to OVS: tables are described by the capability
//! records that the device gave, and whoever fills them decides from those records alone.

use smallvec::SmallVec;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A match-action table of the NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u16);

/// A port of the NIC, physical or VF; the NIC's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NicPort(pub u16);

/// A stage of the pipeline: tables that are searched one after the other until one hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage(pub u8);

/// Where an entry lives: chosen by the caller, below the table's `max_entries`. Also the entry's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Table.
    pub table: TableId,
    /// Index within the table.
    pub index: u32,
}

/// A field that a NIC's parser can give to a table, or that an action can set. Values are big-endian, right-aligned in
/// their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Field {
    /// Ingress port of the NIC, 16 bits.
    InPort,
    /// Metadata register, 32 bits; 0 from the wire.
    Metadata,
    /// Ethernet destination, 48 bits.
    EthDst,
    /// Ethernet source, 48 bits.
    EthSrc,
    /// Innermost Ethernet type after the VLAN tags that the parser takes, 16 bits.
    EthType,
    /// Outer tag's protocol ID, 16 bits; 0 without a tag.
    Vlan0Tpid,
    /// Outer tag: priority 3 bits, "present" 1 bit, VLAN ID 12 bits; 0 without a tag.
    Vlan0Tci,
    /// Inner tag's protocol ID.
    Vlan1Tpid,
    /// Inner tag.
    Vlan1Tci,
    /// IP protocol or next header, 8 bits.
    IpProto,
    /// TOS or traffic class, 8 bits.
    IpTos,
    /// TTL or hop limit, 8 bits.
    IpTtl,
    /// IPv4 source, 32 bits.
    Ipv4Src,
    /// IPv4 destination, 32 bits.
    Ipv4Dst,
    /// IPv6 source, 128 bits.
    Ipv6Src,
    /// IPv6 destination, 128 bits.
    Ipv6Dst,
    /// IPv6 flow label, 20 bits.
    Ipv6Label,
    /// TCP, UDP or SCTP source port, or ICMP type, 16 bits.
    L4Src,
    /// TCP, UDP or SCTP destination port, or ICMP code, 16 bits.
    L4Dst,
    /// TCP flags, 12 bits.
    TcpFlags,
    /// ARP operation, 16 bits.
    ArpOp,
    /// ARP sender protocol address, 32 bits.
    ArpSpa,
    /// ARP target protocol address, 32 bits.
    ArpTpa,
    /// ARP sender hardware address, 48 bits.
    ArpSha,
    /// ARP target hardware address, 48 bits.
    ArpTha,
    /// Tunnel ID (VNI), 24 bits, of a packet that a decap action unwrapped.
    TunId,
    /// Outer IPv4 source of such a packet, 32 bits.
    TunIpv4Src,
    /// Outer IPv4 destination of such a packet, 32 bits.
    TunIpv4Dst,
}

impl Field {
    /// Width in bits.
    pub fn width(self) -> u16 {
        match self {
            Self::IpProto | Self::IpTos | Self::IpTtl => 8,
            Self::TcpFlags => 12,
            Self::InPort
            | Self::EthType
            | Self::Vlan0Tpid
            | Self::Vlan0Tci
            | Self::Vlan1Tpid
            | Self::Vlan1Tci
            | Self::L4Src
            | Self::L4Dst
            | Self::ArpOp => 16,
            Self::Ipv6Label => 20,
            Self::TunId => 24,
            Self::Metadata
            | Self::Ipv4Src
            | Self::Ipv4Dst
            | Self::ArpSpa
            | Self::ArpTpa
            | Self::TunIpv4Src
            | Self::TunIpv4Dst => 32,
            Self::EthDst | Self::EthSrc | Self::ArpSha | Self::ArpTha => 48,
            Self::Ipv6Src | Self::Ipv6Dst => 128,
        }
    }

    /// True for what a packet has above its Ethernet type.
    pub fn above_ethernet(self) -> bool {
        !matches!(
            self,
            Self::InPort
                | Self::Metadata
                | Self::EthDst
                | Self::EthSrc
                | Self::EthType
                | Self::Vlan0Tpid
                | Self::Vlan0Tci
                | Self::Vlan1Tpid
                | Self::Vlan1Tci
        )
    }

    /// Name, for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::InPort => "in_port",
            Self::Metadata => "metadata",
            Self::EthDst => "eth_dst",
            Self::EthSrc => "eth_src",
            Self::EthType => "eth_type",
            Self::Vlan0Tpid => "vlan0_tpid",
            Self::Vlan0Tci => "vlan0_tci",
            Self::Vlan1Tpid => "vlan1_tpid",
            Self::Vlan1Tci => "vlan1_tci",
            Self::IpProto => "ip_proto",
            Self::IpTos => "ip_tos",
            Self::IpTtl => "ip_ttl",
            Self::Ipv4Src => "ipv4_src",
            Self::Ipv4Dst => "ipv4_dst",
            Self::Ipv6Src => "ipv6_src",
            Self::Ipv6Dst => "ipv6_dst",
            Self::Ipv6Label => "ipv6_label",
            Self::L4Src => "l4_src",
            Self::L4Dst => "l4_dst",
            Self::TcpFlags => "tcp_flags",
            Self::ArpOp => "arp_op",
            Self::ArpSpa => "arp_spa",
            Self::ArpTpa => "arp_tpa",
            Self::ArpSha => "arp_sha",
            Self::ArpTha => "arp_tha",
            Self::TunId => "tun_id",
            Self::TunIpv4Src => "tun_ipv4_src",
            Self::TunIpv4Dst => "tun_ipv4_dst",
        }
    }
}

/// Which masks a table takes in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchKind {
    /// All bits only.
    Exact,
    /// A prefix, the whole field, or nothing.
    Prefix,
    /// Any bits.
    Any,
}

/// One field of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldCaps {
    /// Field.
    pub field: Field,
    /// First byte in the entry's key and mask.
    pub offset: u16,
    /// Width in bits; takes `width.div_ceil(8)` bytes, big-endian, right-aligned.
    pub width: u16,
    /// Which masks the table takes.
    pub kind: MatchKind,
}

/// How a table finds entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// Ternary: any mask, priorities.
    Tcam,
    /// Hash of the masked key: a bounded number of different masks, no priorities.
    Hash {
        /// Different masks that the table holds at once.
        max_masks: u32,
    },
}

/// Actions as bits of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ActionKind {
    Output,
    SetField,
    PushVlan,
    PopVlan,
    DecTtl,
    Trunc,
    VxlanEncap,
    VxlanDecap,
    Meter,
    Trap,
    SetMetadata,
    Goto,
}

/// Set of [`ActionKind`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActionSet(pub u32);

impl ActionSet {
    /// True if `kind` is in the set.
    pub fn has(self, kind: ActionKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
    /// The set with `kind`.
    #[must_use]
    pub fn with(self, kind: ActionKind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }
}

/// What happens to a packet that no entry of a table matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Another table of the same stage is searched.
    Next(TableId),
    /// The packet goes to the slow queue.
    SlowQueue,
}

/// What the entries of a table count. What a device does not count reads as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterCaps {
    /// Packets and the bytes of them.
    pub traffic: bool,
    /// Time of the last packet.
    pub used: bool,
    /// TCP flags seen.
    pub tcp_flags: bool,
}

impl CounterCaps {
    /// Everything is counted.
    pub const ALL: Self = Self { traffic: true, used: true, tcp_flags: true };
    /// Nothing is counted.
    pub const NONE: Self = Self { traffic: false, used: false, tcp_flags: false };

    /// True if a flow's statistics miss nothing.
    pub fn complete(self) -> bool {
        self == Self::ALL
    }
}

/// What stands between the wire and the tables: which packets get there, and as what they are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParserCaps {
    /// Only packets whose network and transport headers were parsed whole get to a table: no fragment, no extension
    /// header, nothing cut off or malformed. If not, nothing above the Ethernet type may be matched, or taken for granted.
    pub whole: bool,
    /// VLAN tags that it takes. What comes after these is seen as the Ethernet type, be it a further tag's.
    pub tags: u8,
    /// Tags of type 0x88a8 are tags, as those of 0x8100 are. If not, such a frame is untagged and of that type.
    pub service_tags: bool,
}

/// Capability record of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCaps {
    /// Table.
    pub id: TableId,
    /// Kind.
    pub kind: TableKind,
    /// Stage it belongs to.
    pub stage: Stage,
    /// Fields, by ascending offset.
    pub fields: Vec<FieldCaps>,
    /// Length of key and mask in bytes.
    pub key_len: u16,
    /// Actions that entries may hold.
    pub actions: ActionSet,
    /// Fields that `SetField` can set here.
    pub settable: Vec<Field>,
    /// `SetField` takes any bits of a field; if not, whole fields only.
    pub set_bits: bool,
    /// An output to the port that the packet came from is carried out; if not, the device leaves it out.
    pub output_to_ingress: bool,
    /// What entries count.
    pub counters: CounterCaps,
    /// Actions per entry.
    pub max_actions: u8,
    /// Entries.
    pub max_entries: u32,
    /// Stages that an entry may go to.
    pub goto: Vec<Stage>,
    /// Miss.
    pub miss: Miss,
}

/// One port as the device describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortCaps {
    /// Number.
    pub port: NicPort,
    /// A virtual function's port.
    pub virtual_function: bool,
    /// Largest frame in bytes, without FCS.
    pub max_frame: u32,
}

/// Everything that the device said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicCaps {
    /// Name of the device family, for people.
    pub device: String,
    /// Name of the profile or model, for people.
    pub model: String,
    /// Ports.
    pub ports: Vec<PortCaps>,
    /// Tables, in the order in which a stage searches them.
    pub tables: Vec<TableCaps>,
    /// Slow receive queues.
    pub slow_queues: u16,
    /// Meters.
    pub meters: u32,
    /// They are set by [`Nic::set_meter`], and the slow path draws on the same buckets as the tables.
    pub shared_meters: bool,
    /// The slow path can send packets into the pipeline ([`SlowTx::Pipeline`]), not only out of ports.
    pub pipeline_tx: bool,
    /// What gets to the tables.
    pub parser: ParserCaps,
    /// Entries can be read back.
    pub read_back: bool,
    /// What happens to packets that no entry and no slow path can change, and that is not as it should be: for people.
    pub caveats: Vec<String>,
}

impl NicCaps {
    /// Capability record of a table.
    pub fn table(&self, id: TableId) -> Option<&TableCaps> {
        self.tables.iter().find(|t| t.id == id)
    }
}

/// Largest key of any table in bytes.
pub const KEY_MAX: usize = 128;
/// A field's value: big-endian, right-aligned.
pub type FieldValue = [u8; 16];

/// One action of an entry, carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicAction {
    /// Send the packet as it is now to a port.
    Output(NicPort),
    /// Set the bits of `field` that are 1 in `mask`; checksums follow.
    SetField {
        /// Field.
        field: Field,
        /// New bits.
        value: FieldValue,
        /// Which bits change.
        mask: FieldValue,
    },
    /// Push an outer VLAN tag.
    PushVlan {
        /// Tag protocol ID.
        tpid: u16,
        /// Tag as on the wire.
        tci: u16,
    },
    /// Pop the outer VLAN tag.
    PopVlan,
    /// Decrement TTL or hop limit; a packet at 0 or 1 goes to the slow queue unchanged.
    DecTtl,
    /// The next output sends at most this many bytes.
    Trunc(u32),
    /// Wrap in outer headers: a template of Ethernet to VXLAN whose lengths and checksum the NIC fills in.
    VxlanEncap(Box<[u8]>),
    /// Unwrap VXLAN; tunnel fields become matchable in later stages.
    VxlanDecap,
    /// Police by a meter.
    Meter(u32),
    /// Give the packet to the slow queue.
    Trap,
    /// Set the metadata register.
    SetMetadata(u32),
    /// Parse the packet as it is now and search another stage.
    Goto(Stage),
}

/// An entry: key and mask in the table's layout, and actions. No actions: drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Priority in a TCAM, higher wins; 0 elsewhere.
    pub priority: u16,
    /// Key, the table's `key_len` bytes; no bit outside the mask.
    pub key: SmallVec<[u8; 64]>,
    /// Mask, the table's `key_len` bytes.
    pub mask: SmallVec<[u8; 64]>,
    /// Actions in order.
    pub actions: SmallVec<[NicAction; 2]>,
}

/// A change of a table. The cookie comes back in the completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Insert an entry in a free place.
    Insert {
        /// Cookie.
        cookie: u64,
        /// Place.
        id: EntryId,
        /// Entry.
        entry: Entry,
    },
    /// Replace the actions of an entry in one step: every packet sees the old or the new ones. Counters go on.
    Replace {
        /// Cookie.
        cookie: u64,
        /// Place.
        id: EntryId,
        /// The entry; key and mask as installed.
        entry: Entry,
    },
    /// Delete an entry; the completion has its last counters.
    Delete {
        /// Cookie.
        cookie: u64,
        /// Place.
        id: EntryId,
    },
}

/// Counters of an entry, since its insertion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryCounters {
    /// Packets.
    pub packets: u64,
    /// L2 bytes, without FCS, of the packets as they matched.
    pub bytes: u64,
    /// Device time of the last packet in nanoseconds; 0: none.
    pub used_ns: u64,
    /// OR of the TCP flags seen.
    pub tcp_flags: u16,
}

/// Counters of one place as the device gave them; `None`: no entry is installed there.
pub type Snapshot = (EntryId, Option<EntryCounters>);

/// What a port counted since the last reset. Bytes are L2, without FCS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames taken from the wire.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames sent, by tables and slow path.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Of the frames taken, those that a slow queue got.
    pub rx_slow: u64,
    /// Outputs to a port that is disabled.
    pub tx_dropped: u64,
}

impl PortCounters {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.wrapping_add(other.rx_packets),
            rx_bytes: self.rx_bytes.wrapping_add(other.rx_bytes),
            tx_packets: self.tx_packets.wrapping_add(other.tx_packets),
            tx_bytes: self.tx_bytes.wrapping_add(other.tx_bytes),
            rx_slow: self.rx_slow.wrapping_add(other.rx_slow),
            tx_dropped: self.tx_dropped.wrapping_add(other.tx_dropped),
        }
    }
}

/// How the device answered an [`Update`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpdateStatus {
    /// Done.
    Ok,
    /// No room (or no room where the key hashes to).
    TableFull,
    /// One mask too many for a hash table.
    MasksFull,
    /// An entry with the same key and mask is there.
    Duplicate,
    /// Delete or replace of an entry that is not there.
    NotFound,
    /// The device refused the entry; the number is its code. A bug on our side.
    Rejected(u16),
    /// The device was reset or removed before it answered: nothing is known, all tables are empty or gone.
    Aborted,
    /// No answer within the deadline; the driver has asked for a reset.
    TimedOut,
}

/// Completion of an [`Update`]. Each update has exactly one, in any order across entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateResult {
    /// The update's cookie.
    pub cookie: u64,
    /// Answer.
    pub status: UpdateStatus,
    /// Last counters, of a delete.
    pub counters: Option<EntryCounters>,
}

/// Something that the device reports on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NicEvent {
    /// Link state of a port.
    Link {
        /// Port.
        port: NicPort,
        /// Up.
        up: bool,
    },
    /// An entry's memory was damaged: it matches nothing until it is deleted and inserted again.
    ParityError(EntryId),
    /// A table is filling up or has room again.
    TablePressure {
        /// Table.
        table: TableId,
        /// Entries in use.
        used: u32,
    },
    /// The device lost its tables (it was reset, by itself or by us); they are empty and it is ready again.
    /// Counters of before stay readable (see [`Nic::reset`]).
    TablesLost,
    /// The device is gone for good.
    Gone,
}

/// State of the device as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicState {
    /// Works.
    Ready,
    /// Hung or in a fatal state; a reset is needed or under way.
    Failed,
    /// Gone for good (unplugged).
    Gone,
}

/// A meter: a bucket that fills at a rate and drops a packet that finds less in it than it takes. It fills at the end of each
/// whole millisecond of the device clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterConfig {
    /// It measures packets; if not, kilobits (1,000 bits).
    pub packets: bool,
    /// Packets or kilobits per second; not 0.
    pub rate: u32,
    /// Size of the bucket in packets or kilobits; not 0.
    pub burst: u32,
    /// What is in the bucket: thousandths of a packet, or bits.
    pub level: u64,
}

/// What a meter counted of the packets in the tables, since it was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeterCounts {
    /// Packets that it let through.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that it dropped.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// When it last had a packet, the slow path's among them: milliseconds after it was set. `None` if no table's packet was there.
    pub used_ms: Option<u64>,
}

/// A meter's bucket in the device, for whoever has packets that the tables did not finish.
pub trait MeterBucket: Send + Sync + std::fmt::Debug {
    /// Takes a packet of `bytes` (L2, without FCS) out of the bucket; false, and nothing taken, if it has less. Such packets are
    /// not in [`MeterBucket::counts`]. `None`: the bucket is not there any more. A slow write and read of the device.
    fn charge(&self, bytes: u32) -> Option<bool>;
    /// What the device counted. Stays as it is when the bucket is not there any more, until the meter is set again.
    fn counts(&self) -> MeterCounts;
    /// What is in the bucket, as [`MeterConfig::level`]; of a device that is gone, what was in it after the last packet.
    fn level(&self) -> u64;
}

/// A packet that the NIC's tables did not finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowRx {
    /// Ingress port.
    pub port: NicPort,
    /// Metadata register when the packet left the pipeline.
    pub metadata: u32,
    /// Stage whose lookup missed, or whose entry trapped the packet.
    pub stage: Stage,
    /// Length in bytes.
    pub len: u32,
}

/// Where the slow path sends a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowTx {
    /// Out of a port.
    Port(NicPort),
    /// Into the pipeline at its start, as if received on a port.
    Pipeline(NicPort),
}

/// What a driver reports when the device or its transport fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// The transport failed.
    #[error(transparent)]
    Bus(#[from] flowlift_bus::BusError),
    /// The device is gone.
    #[error("{0}: the NIC is gone")]
    Gone(String),
    /// The device does not work and must be reset.
    #[error("{device}: the NIC failed: {why}")]
    Failed {
        /// Name of the function.
        device: String,
        /// Cause.
        why: String,
    },
    /// The device said something that cannot be.
    #[error("{device}: the NIC is not to be trusted: {what}")]
    Lies {
        /// Name of the function.
        device: String,
        /// What it said.
        what: String,
    },
    /// The caller asked for something that the capability records exclude.
    #[error("not possible on this NIC: {0}")]
    Invalid(String),
    /// The device has no exact equivalent of an entry, although each of its parts is one that the records allow.
    #[error("not possible on this NIC: {0}")]
    Inexpressible(&'static str),
}

/// A NIC as the planner and the slow path use it. One owner drives it; nothing here blocks.
pub trait Nic: Send {
    /// What the device said of itself.
    fn caps(&self) -> &NicCaps;
    /// Its state.
    fn state(&self) -> NicState;
    /// Queues updates in order; returns how many were taken: the ring may be full, or the next one's entry has an
    /// update that was not answered yet. So updates of one entry keep their order, and the fate of each is known. The
    /// device learns of them at the next `kick`.
    fn submit(&mut self, updates: &[Update]) -> Result<usize, NicError>;
    /// Queues the insert of an entry by the bytes that [`Nic::encode`] gave, as [`Nic::submit`] does: what was compared is what the
    /// device gets. False: it was not taken, for the reasons there. The driver completes the bytes in place.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for a place that there is not, and bytes that are no entry of its table.
    fn submit_encoded(&mut self, cookie: u64, id: EntryId, bytes: &mut [u8]) -> Result<bool, NicError> {
        let entry = self.decode(id.table, bytes)?;
        Ok(self.submit(&[Update::Insert { cookie, id, entry }])? == 1)
    }
    /// Tells the device about everything queued: at most one doorbell.
    fn kick(&mut self) -> Result<(), NicError>;
    /// Takes completions and events that have come in. Deadlines are checked here too.
    fn poll(&mut self, results: &mut Vec<UpdateResult>, events: &mut Vec<NicEvent>) -> Result<(), NicError>;
    /// Counters of an entry that is installed, as last written back by the device.
    fn counters(&self, id: EntryId) -> EntryCounters;
    /// Starts a read-back of an entry; the answer comes by `take_read_back`. [`NicError::Invalid`] where the capability
    /// records exclude it.
    fn read_back(&mut self, id: EntryId) -> Result<(), NicError>;
    /// An entry that was read back: `None` inside for a place that is empty.
    fn take_read_back(&mut self) -> Option<(EntryId, Option<Entry>)>;
    /// The bytes of an entry as the device will see them, for raise-and-compare.
    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError>;
    /// The entry that such bytes mean.
    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError>;
    /// Takes up to `max` packets from the slow queues, in order per queue; each is handed to `packet`.
    fn rx(&mut self, max: usize, packet: &mut dyn FnMut(SlowRx, &[u8])) -> Result<usize, NicError>;
    /// Sends a packet from the slow path. `Ok(false)`: no room now, nothing was taken.
    fn tx(&mut self, to: SlowTx, frame: &[u8]) -> Result<bool, NicError>;
    /// True if the NIC keeps the order of a flow's packets while the flow moves between its tables and the slow path.
    fn keeps_order(&self) -> bool {
        false
    }
    /// Says that the slow path is done with every packet that `rx` gave: what became of them was given to `tx`, went
    /// elsewhere, or is nothing. A NIC that keeps order holds a flow's packets before its tables until then, so this is
    /// called after each batch, and once more when nothing came.
    fn slow_done(&mut self) -> Result<(), NicError> {
        Ok(())
    }
    /// Packets given to `tx` that the device has not sent yet, as far as the driver knows.
    fn tx_pending(&self) -> usize;
    /// Packets given to `tx` that the device is known not to have sent, after it failed. They are the caller's again.
    fn take_unsent(&mut self) -> Vec<(SlowTx, Vec<u8>)>;
    /// Resets the device and brings it up again with empty tables; pending updates complete as `Aborted`. Entry
    /// counters as of the reset stay readable by `counters` until the entry's place is used again.
    fn reset(&mut self) -> Result<(), NicError>;
    /// Link state of a port.
    fn link(&self, port: NicPort) -> bool;
    /// Lets a port take and send packets, or not: then outputs to it are dropped, and counted. Every port does at first. It holds
    /// over resets.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for a port that there is not, and from a NIC that has no such thing.
    fn set_port_enabled(&mut self, _port: NicPort, _enabled: bool) -> Result<(), NicError> {
        Err(NicError::Invalid("enabling and disabling ports".into()))
    }
    /// What a port counted since the last reset: a handful of slow reads of the device.
    ///
    /// # Errors
    /// As [`Nic::set_port_enabled`].
    fn port_counters(&self, _port: NicPort) -> Result<PortCounters, NicError> {
        Err(NicError::Invalid("counters of ports".into()))
    }
    /// A port's Ethernet address.
    ///
    /// # Errors
    /// As [`Nic::set_port_enabled`].
    fn port_address(&self, _port: NicPort) -> Result<[u8; 6], NicError> {
        Err(NicError::Invalid("addresses of ports".into()))
    }
    /// Readable once the device has something for `poll` or `rx`; whoever waits for it reads it to clear it. `None`: the
    /// device has to be polled.
    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Sets a meter, in place of the one that was there: from when this returns, entries may name it. It is lost with the tables.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for a meter that there is not, or that cannot be, and from a NIC without [`NicCaps::shared_meters`].
    fn set_meter(&mut self, _meter: u32, _config: &MeterConfig) -> Result<Arc<dyn MeterBucket>, NicError> {
        Err(NicError::Invalid("meters".into()))
    }
    /// Removes a meter that no entry names.
    ///
    /// # Errors
    /// As [`Nic::set_meter`].
    fn remove_meter(&mut self, _meter: u32) -> Result<(), NicError> {
        Err(NicError::Invalid("meters".into()))
    }
    /// Asks for the counters of `count` places from `first` on, read from the device itself and not from where it writes
    /// them back; they come by [`Nic::take_snapshot`]. A reset in between leaves the rest out.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for places that there are not, and from a NIC that has no such thing.
    fn snapshot(&mut self, _table: TableId, _first: u32, _count: u32) -> Result<(), NicError> {
        Err(NicError::Invalid("counter snapshots".into()))
    }
    /// The next place's counters, in the order in which they were asked for.
    fn take_snapshot(&mut self) -> Option<Snapshot> {
        None
    }
    /// Breaches of its protocol that the device noticed since power-on, which are bugs of its driver. `None`: it does not
    /// say, or not any more.
    fn violation_count(&self) -> Option<u32> {
        None
    }
}
