//! Network devices of the host as rtnetlink tells of them: their names, addresses, MTU, state and counters, and what becomes of
//! them.
//!
//! [`LinkWatcher`] follows all of them; [`Links`] asks for one and sets it. Both speak for the network namespace in which they
//! were made.

mod set;
mod socket;
mod watch;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

pub use set::Links;
pub use watch::{LinkChange, LinkWatcher};

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, which no other device of the namespace has as long as this one lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it is one of Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest payload of a frame, in bytes: without Ethernet header and VLAN tags.
    pub mtu: u32,
    /// Frames that wait in its queue at most.
    pub queue_length: u32,
    /// It is set up (IFF_UP).
    pub up: bool,
    /// It has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// It is promiscuous (IFF_PROMISC).
    pub promiscuous: bool,
    /// Kind of a virtual device as the kernel names it: "veth", "tun", "vxlan".
    pub kind: Option<String>,
    /// Index of the device that it is a port of.
    pub master: Option<u32>,
    /// Its counters when this was told.
    pub stats: LinkStats,
}

/// Counters of a device, from the host's point of view: what the device received came to the host. Bytes are without frame check
/// sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames received in error.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Frames that arrived and were dropped.
    pub rx_dropped: u64,
    /// Frames that were dropped instead of being sent.
    pub tx_dropped: u64,
}

impl Link {
    /// What a message tells; `None` for a message without a name, which is about a link's port of a bridge.
    fn new(message: LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            queue_length: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            promiscuous: flags.contains(LinkFlags::Promisc),
            kind: None,
            master: None,
            stats: LinkStats::default(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(address) if ethernet => link.mac = address.try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(frames) => link.queue_length = frames,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind),
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                LinkAttribute::Stats64(s) => {
                    link.stats = LinkStats {
                        rx_packets: s.rx_packets,
                        tx_packets: s.tx_packets,
                        rx_bytes: s.rx_bytes,
                        tx_bytes: s.tx_bytes,
                        rx_errors: s.rx_errors,
                        tx_errors: s.tx_errors,
                        rx_dropped: s.rx_dropped,
                        tx_dropped: s.tx_dropped,
                    };
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    /// The same but for counters.
    fn is_as(&self, other: &Link) -> bool {
        let Self { index, name, mac, mtu, queue_length, up, carrier, promiscuous, kind, master, stats: _ } =
            self;
        (index, name, mac) == (&other.index, &other.name, &other.mac)
            && (mtu, queue_length) == (&other.mtu, &other.queue_length)
            && (up, carrier, promiscuous) == (&other.up, &other.carrier, &other.promiscuous)
            && (kind, master) == (&other.kind, &other.master)
    }
}
