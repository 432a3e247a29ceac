//! Numbers of `linux/netlink.h`, `linux/genetlink.h` and `linux/openvswitch.h`, and the families that the server offers
//! as data: [`FAMILIES`].
//!
//! Names are those of the headers without their common prefix.
#![allow(missing_docs)]

use crate::marker;

/// `struct nlmsghdr`, 16 bytes, and its flags.
pub mod nlmsg {
    /// Bytes of `struct nlmsghdr`.
    pub const HEADER_LEN: usize = 16;
    /// Bytes of `struct genlmsghdr` behind it: command, version, 2 reserved.
    pub const GENL_HEADER_LEN: usize = 4;
    /// Bytes of `struct ovs_header` behind that: `dp_ifindex`.
    pub const OVS_HEADER_LEN: usize = 4;

    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    /// Smaller types are control messages.
    pub const MIN_TYPE: u16 = 16;

    pub const F_REQUEST: u16 = 1;
    pub const F_MULTI: u16 = 2;
    pub const F_ACK: u16 = 4;
    pub const F_ECHO: u16 = 8;
    pub const F_DUMP: u16 = 0x300;
    pub const F_EXCL: u16 = 0x200;
    pub const F_CREATE: u16 = 0x400;
    /// Of an ack: the request is not repeated in it.
    pub const F_CAPPED: u16 = 0x100;
    /// Of an ack: attributes [`super::err_attr`] follow.
    pub const F_ACK_TLVS: u16 = 0x200;
}

/// `enum nlmsgerr_attrs`.
pub mod err_attr {
    pub const MSG: u16 = 1;
    pub const OFFS: u16 = 2;
    pub const MISS_TYPE: u16 = 5;
}

/// `RTM_*LINK` of `linux/rtnetlink.h`, and of `linux/if_link.h` and `linux/if_tunnel.h` what tunnel devices have.
pub mod link {
    /// Bytes of `struct ifinfomsg`: family, padding, device type (2), index (4), flags (4), changed flags (4).
    pub const IFINFOMSG_LEN: usize = 16;
    pub const NEWLINK: u16 = 16;
    pub const DELLINK: u16 = 17;
    pub const GETLINK: u16 = 18;
    pub const SETLINK: u16 = 19;

    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINKINFO: u16 = 18;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;

    pub const VXLAN_LEARNING: u16 = 7;
    pub const VXLAN_PORT: u16 = 15;
    pub const VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
    pub const VXLAN_GBP: u16 = 23;
    pub const VXLAN_COLLECT_METADATA: u16 = 25;
    pub const VXLAN_GPE: u16 = 27;

    pub const GENEVE_PORT: u16 = 5;
    pub const GENEVE_COLLECT_METADATA: u16 = 6;
    pub const GENEVE_UDP_ZERO_CSUM6_RX: u16 = 10;

    pub const GRE_COLLECT_METADATA: u16 = 18;
}

/// `CTRL_CMD_*` and `CTRL_ATTR_*`.
pub mod ctrl {
    pub const CMD_NEWFAMILY: u8 = 1;
    pub const CMD_GETFAMILY: u8 = 3;
    pub const CMD_GETPOLICY: u8 = 10;

    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
    pub const VERSION: u16 = 3;
    pub const HDRSIZE: u16 = 4;
    pub const MAXATTR: u16 = 5;
    pub const OPS: u16 = 6;
    pub const MCAST_GROUPS: u16 = 7;
    pub const POLICY: u16 = 8;
    pub const OP_POLICY: u16 = 9;
    pub const OP: u16 = 10;

    pub const OP_ID: u16 = 1;
    pub const OP_FLAGS: u16 = 2;
    pub const GRP_NAME: u16 = 1;
    pub const GRP_ID: u16 = 2;
    pub const POLICY_DO: u16 = 1;
    pub const POLICY_DUMP: u16 = 2;
}

/// `enum netlink_attribute_type` and `enum netlink_policy_type_attr`: how a policy is told.
pub mod policy {
    pub const TYPE_FLAG: u32 = 1;
    pub const TYPE_U8: u32 = 2;
    pub const TYPE_U16: u32 = 3;
    pub const TYPE_U32: u32 = 4;
    pub const TYPE_U64: u32 = 5;
    pub const TYPE_BINARY: u32 = 10;
    pub const TYPE_NUL_STRING: u32 = 12;
    pub const TYPE_NESTED: u32 = 13;

    pub const ATTR_TYPE: u16 = 1;
    pub const ATTR_MIN_LENGTH: u16 = 6;
    pub const ATTR_MAX_LENGTH: u16 = 7;
}

pub mod dp {
    pub const CMD_NEW: u8 = 1;
    pub const CMD_DEL: u8 = 2;
    pub const CMD_GET: u8 = 3;
    pub const CMD_SET: u8 = 4;

    pub const NAME: u16 = 1;
    pub const UPCALL_PID: u16 = 2;
    pub const STATS: u16 = 3;
    pub const MEGAFLOW_STATS: u16 = 4;
    pub const USER_FEATURES: u16 = 5;
    pub const MASKS_CACHE_SIZE: u16 = 7;
    pub const PER_CPU_PIDS: u16 = 8;
    pub const IFINDEX: u16 = 9;
    /// First version of the family whose users know of user features.
    pub const VER_FEATURES: u8 = 2;
}

pub mod vport {
    pub const CMD_NEW: u8 = 1;
    pub const CMD_DEL: u8 = 2;
    pub const CMD_GET: u8 = 3;
    pub const CMD_SET: u8 = 4;

    pub const PORT_NO: u16 = 1;
    pub const TYPE: u16 = 2;
    pub const NAME: u16 = 3;
    pub const OPTIONS: u16 = 4;
    pub const UPCALL_PID: u16 = 5;
    pub const STATS: u16 = 6;
    pub const IFINDEX: u16 = 8;
    pub const NETNSID: u16 = 9;
    /// Newer than Debian 12's header: nested, [`UPCALL_SUCCESS`] and [`UPCALL_FAIL`].
    pub const UPCALL_STATS: u16 = 10;
    pub const UPCALL_SUCCESS: u16 = 0;
    pub const UPCALL_FAIL: u16 = 1;

    pub const TYPE_NETDEV: u32 = 1;
    pub const TYPE_INTERNAL: u32 = 2;
    pub const TYPE_GRE: u32 = 3;
    pub const TYPE_VXLAN: u32 = 4;
    pub const TYPE_GENEVE: u32 = 5;

    pub const TUNNEL_DST_PORT: u16 = 1;
    pub const TUNNEL_EXTENSION: u16 = 2;
    pub const VXLAN_EXT_GBP: u16 = 1;
}

pub mod flow {
    pub const CMD_NEW: u8 = 1;
    pub const CMD_DEL: u8 = 2;
    pub const CMD_GET: u8 = 3;
    pub const CMD_SET: u8 = 4;

    pub const KEY: u16 = 1;
    pub const ACTIONS: u16 = 2;
    pub const STATS: u16 = 3;
    pub const TCP_FLAGS: u16 = 4;
    pub const USED: u16 = 5;
    pub const CLEAR: u16 = 6;
    pub const MASK: u16 = 7;
    pub const PROBE: u16 = 8;
    pub const UFID: u16 = 9;
    pub const UFID_FLAGS: u16 = 10;

    pub const UFID_F_OMIT_KEY: u32 = 1;
    pub const UFID_F_OMIT_MASK: u32 = 2;
    pub const UFID_F_OMIT_ACTIONS: u32 = 4;
}

pub mod packet {
    pub const CMD_MISS: u8 = 1;
    pub const CMD_ACTION: u8 = 2;
    pub const CMD_EXECUTE: u8 = 3;

    pub const PACKET: u16 = 1;
    pub const KEY: u16 = 2;
    pub const ACTIONS: u16 = 3;
    pub const USERDATA: u16 = 4;
    pub const EGRESS_TUN_KEY: u16 = 5;
    pub const PROBE: u16 = 8;
    pub const MRU: u16 = 9;
    pub const LEN: u16 = 10;
    pub const HASH: u16 = 11;
    /// Newer than Debian 12's header.
    pub const UPCALL_PID: u16 = 12;
}

pub mod meter {
    pub const CMD_FEATURES: u8 = 1;
    pub const CMD_SET: u8 = 2;
    pub const CMD_DEL: u8 = 3;
    pub const CMD_GET: u8 = 4;

    pub const ID: u16 = 1;
    pub const KBPS: u16 = 2;
    pub const STATS: u16 = 3;
    pub const BANDS: u16 = 4;
    pub const USED: u16 = 5;
    pub const CLEAR: u16 = 6;
    pub const MAX_METERS: u16 = 7;
    pub const MAX_BANDS: u16 = 8;

    pub const BAND_TYPE: u16 = 1;
    pub const BAND_RATE: u16 = 2;
    pub const BAND_BURST: u16 = 3;
    pub const BAND_STATS: u16 = 4;
    pub const BAND_TYPE_DROP: u32 = 1;
}

pub mod ct_limit {
    pub const CMD_SET: u8 = 1;
    pub const CMD_DEL: u8 = 2;
    pub const CMD_GET: u8 = 3;

    pub const ZONE_LIMIT: u16 = 1;
    /// `zone_id` of the default limit.
    pub const DEFAULT_ZONE: i32 = -1;
}

/// What the payload of an attribute must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Flag,
    /// 1, 2, 4 or 8 bytes, native.
    Uint(usize),
    /// A string of at most so many bytes before its end.
    NulString(usize),
    /// At least so many bytes.
    Bytes(usize),
    /// Attributes.
    Nested,
    /// Present in replies, without meaning in a request.
    Ignored,
}

/// An attribute of a family: number, name in the header, and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttrPolicy(pub u16, pub &'static str, pub Kind);

/// A command: its number, and whether it has a plain and a dump form. Only `admin` commands need `CAP_NET_ADMIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub cmd: u8,
    pub plain: bool,
    pub dump: bool,
    pub admin: bool,
}

/// A family of Generic Netlink. IDs are ours: clients ask for them by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Type of its messages.
    pub id: u16,
    pub name: &'static str,
    pub version: u8,
    /// Bytes of the family's own header.
    pub header_len: usize,
    pub ops: &'static [Op],
    /// Its multicast group. From user space only groups up to 32 can be reached; the kernel hands out low ones first.
    pub group: Option<Group>,
    pub attrs: &'static [AttrPolicy],
}

/// Number of a multicast group, 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(pub u8);

impl Family {
    /// The largest number of its attributes.
    pub fn max_attr(&self) -> u16 {
        self.attrs.iter().map(|a| a.0).max().unwrap_or(0)
    }

    /// The name of an attribute as in the header, for messages to people.
    pub fn attr_name(&self, attr: u16) -> &'static str {
        self.attrs.iter().find(|a| a.0 == attr).map_or("attribute", |a| a.1)
    }
}

const fn op(cmd: u8, admin: bool) -> Op {
    Op { cmd, plain: true, dump: false, admin }
}

const fn get(cmd: u8) -> Op {
    Op { cmd, plain: true, dump: true, admin: false }
}

const CRUD: &[Op] = &[op(1, true), op(2, true), get(3), op(4, true)];
const U16: Kind = Kind::Uint(2);
const U32: Kind = Kind::Uint(4);
const U64: Kind = Kind::Uint(8);
/// `IFNAMSIZ - 1`.
pub const NAME_MAX: usize = 15;

/// The controller, which tells of the others; its ID is `GENL_ID_CTRL`.
pub const NLCTRL: Family = Family {
    id: 16,
    name: "nlctrl",
    version: 2,
    header_len: 0,
    ops: &[get(ctrl::CMD_GETFAMILY), Op { cmd: ctrl::CMD_GETPOLICY, plain: false, dump: true, admin: false }],
    group: None,
    attrs: &[
        AttrPolicy(ctrl::FAMILY_ID, "CTRL_ATTR_FAMILY_ID", U16),
        AttrPolicy(ctrl::FAMILY_NAME, "CTRL_ATTR_FAMILY_NAME", Kind::NulString(15)),
        AttrPolicy(ctrl::OP, "CTRL_ATTR_OP", U32),
    ],
};

pub const DATAPATH: Family = Family {
    id: marker::FAMILY_ID_MIN,
    name: "ovs_datapath",
    version: 2,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: CRUD,
    group: Some(Group(28)),
    attrs: &[
        AttrPolicy(dp::NAME, "OVS_DP_ATTR_NAME", Kind::NulString(NAME_MAX)),
        AttrPolicy(dp::UPCALL_PID, "OVS_DP_ATTR_UPCALL_PID", U32),
        AttrPolicy(dp::STATS, "OVS_DP_ATTR_STATS", Kind::Ignored),
        AttrPolicy(dp::MEGAFLOW_STATS, "OVS_DP_ATTR_MEGAFLOW_STATS", Kind::Ignored),
        AttrPolicy(dp::USER_FEATURES, "OVS_DP_ATTR_USER_FEATURES", U32),
        AttrPolicy(dp::MASKS_CACHE_SIZE, "OVS_DP_ATTR_MASKS_CACHE_SIZE", U32),
        AttrPolicy(dp::PER_CPU_PIDS, "OVS_DP_ATTR_PER_CPU_PIDS", Kind::Bytes(0)),
        AttrPolicy(dp::IFINDEX, "OVS_DP_ATTR_IFINDEX", U32),
    ],
};

pub const VPORT: Family = Family {
    id: marker::FAMILY_ID_MIN + 1,
    name: "ovs_vport",
    version: 1,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: CRUD,
    group: Some(Group(29)),
    attrs: &[
        AttrPolicy(vport::PORT_NO, "OVS_VPORT_ATTR_PORT_NO", U32),
        AttrPolicy(vport::TYPE, "OVS_VPORT_ATTR_TYPE", U32),
        AttrPolicy(vport::NAME, "OVS_VPORT_ATTR_NAME", Kind::NulString(NAME_MAX)),
        AttrPolicy(vport::OPTIONS, "OVS_VPORT_ATTR_OPTIONS", Kind::Nested),
        AttrPolicy(vport::UPCALL_PID, "OVS_VPORT_ATTR_UPCALL_PID", Kind::Bytes(0)),
        AttrPolicy(vport::STATS, "OVS_VPORT_ATTR_STATS", Kind::Ignored),
        AttrPolicy(vport::IFINDEX, "OVS_VPORT_ATTR_IFINDEX", U32),
        AttrPolicy(vport::NETNSID, "OVS_VPORT_ATTR_NETNSID", U32),
        AttrPolicy(vport::UPCALL_STATS, "OVS_VPORT_ATTR_UPCALL_STATS", Kind::Ignored),
    ],
};

pub const FLOW: Family = Family {
    id: marker::FAMILY_ID_MIN + 2,
    name: "ovs_flow",
    version: 1,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: CRUD,
    group: Some(Group(30)),
    attrs: &[
        AttrPolicy(flow::KEY, "OVS_FLOW_ATTR_KEY", Kind::Nested),
        AttrPolicy(flow::ACTIONS, "OVS_FLOW_ATTR_ACTIONS", Kind::Nested),
        AttrPolicy(flow::STATS, "OVS_FLOW_ATTR_STATS", Kind::Ignored),
        AttrPolicy(flow::TCP_FLAGS, "OVS_FLOW_ATTR_TCP_FLAGS", Kind::Ignored),
        AttrPolicy(flow::USED, "OVS_FLOW_ATTR_USED", Kind::Ignored),
        AttrPolicy(flow::CLEAR, "OVS_FLOW_ATTR_CLEAR", Kind::Flag),
        AttrPolicy(flow::MASK, "OVS_FLOW_ATTR_MASK", Kind::Nested),
        AttrPolicy(flow::PROBE, "OVS_FLOW_ATTR_PROBE", Kind::Flag),
        AttrPolicy(flow::UFID, "OVS_FLOW_ATTR_UFID", Kind::Bytes(1)),
        AttrPolicy(flow::UFID_FLAGS, "OVS_FLOW_ATTR_UFID_FLAGS", U32),
    ],
};

pub const PACKET: Family = Family {
    id: marker::FAMILY_ID_MIN + 3,
    name: "ovs_packet",
    version: 1,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: &[op(packet::CMD_EXECUTE, true)],
    group: None,
    attrs: &[
        AttrPolicy(packet::PACKET, "OVS_PACKET_ATTR_PACKET", Kind::Bytes(14)),
        AttrPolicy(packet::KEY, "OVS_PACKET_ATTR_KEY", Kind::Nested),
        AttrPolicy(packet::ACTIONS, "OVS_PACKET_ATTR_ACTIONS", Kind::Nested),
        AttrPolicy(packet::USERDATA, "OVS_PACKET_ATTR_USERDATA", Kind::Ignored),
        AttrPolicy(packet::EGRESS_TUN_KEY, "OVS_PACKET_ATTR_EGRESS_TUN_KEY", Kind::Ignored),
        AttrPolicy(packet::PROBE, "OVS_PACKET_ATTR_PROBE", Kind::Flag),
        AttrPolicy(packet::MRU, "OVS_PACKET_ATTR_MRU", U16),
        AttrPolicy(packet::LEN, "OVS_PACKET_ATTR_LEN", Kind::Ignored),
        AttrPolicy(packet::HASH, "OVS_PACKET_ATTR_HASH", U64),
        AttrPolicy(packet::UPCALL_PID, "OVS_PACKET_ATTR_UPCALL_PID", U32),
    ],
};

pub const METER: Family = Family {
    id: marker::FAMILY_ID_MIN + 4,
    name: "ovs_meter",
    version: 1,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: &[op(1, false), op(2, true), op(3, true), op(4, false)],
    group: Some(Group(31)),
    attrs: &[
        AttrPolicy(meter::ID, "OVS_METER_ATTR_ID", U32),
        AttrPolicy(meter::KBPS, "OVS_METER_ATTR_KBPS", Kind::Flag),
        AttrPolicy(meter::STATS, "OVS_METER_ATTR_STATS", Kind::Bytes(16)),
        AttrPolicy(meter::BANDS, "OVS_METER_ATTR_BANDS", Kind::Nested),
        AttrPolicy(meter::USED, "OVS_METER_ATTR_USED", Kind::Ignored),
        AttrPolicy(meter::CLEAR, "OVS_METER_ATTR_CLEAR", Kind::Flag),
        AttrPolicy(meter::MAX_METERS, "OVS_METER_ATTR_MAX_METERS", Kind::Ignored),
        AttrPolicy(meter::MAX_BANDS, "OVS_METER_ATTR_MAX_BANDS", Kind::Ignored),
    ],
};

pub const CT_LIMIT: Family = Family {
    id: marker::FAMILY_ID_MIN + 5,
    name: "ovs_ct_limit",
    version: 1,
    header_len: nlmsg::OVS_HEADER_LEN,
    ops: &[op(1, true), op(2, true), op(3, false)],
    group: Some(Group(32)),
    attrs: &[AttrPolicy(ct_limit::ZONE_LIMIT, "OVS_CT_LIMIT_ATTR_ZONE_LIMIT", Kind::Bytes(0))],
};

/// Every family that the server offers.
pub const FAMILIES: [&Family; 7] = [&NLCTRL, &DATAPATH, &VPORT, &FLOW, &PACKET, &METER, &CT_LIMIT];
