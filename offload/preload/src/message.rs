//! Message headers of the C library, and what stands in messages.

use flowlift_ovs::marker::{self, FAMILY_ID_MIN, PORT_ID_VARIABLE, SERVER_PORT_ID};
use flowlift_ovs::nla::attrs;
use flowlift_ovs::server::is_tunnel_device;
use flowlift_ovs::uapi::link;
use libc::{iovec, msghdr, sockaddr_nl};
use std::sync::OnceLock;

/// Bytes of a message's beginning that [`Target::of`] looks at: a request for a family is shorter, and Open vSwitch names a
/// tunnel device first.
pub(crate) const HEAD: usize = 128;
/// Netlink header, generic Netlink header.
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
/// `GENL_ID_CTRL`, and its attributes `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME` of `<linux/genetlink.h>`.
const NLCTRL: u16 = 16;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// What the names of the agent's families begin with.
const OVS: &[u8] = b"ovs_";

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// NETLINK_GENERIC.
    Generic,
    /// NETLINK_ROUTE.
    Route,
}

impl Protocol {
    /// By its number; `None` for one that does not concern this library.
    pub(crate) fn of(number: libc::c_int) -> Option<Self> {
        match number {
            libc::NETLINK_GENERIC => Some(Self::Generic),
            libc::NETLINK_ROUTE => Some(Self::Route),
            _ => None,
        }
    }
}

/// Who a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Everything but the OVS families and tunnel devices.
    Kernel,
    /// A request of an OVS family or about a tunnel device.
    Agent,
    /// The question what ID an OVS family has.
    Lookup,
}

impl Target {
    /// By the first message of a datagram: `head` has up to [`HEAD`] bytes of it.
    pub(crate) fn of(protocol: Protocol, head: &[u8]) -> Self {
        let Some(&[k0, k1]) = head.get(4..6) else { return Self::Kernel };
        let kind = u16::from_ne_bytes([k0, k1]);
        if protocol == Protocol::Route {
            return match kind {
                link::NEWLINK..=link::SETLINK if Self::names_tunnel(head) => Self::Agent,
                _ => Self::Kernel,
            };
        }
        match kind {
            NLCTRL if Self::names_ovs(head) => Self::Lookup,
            marker::TYPE => Self::Kernel,
            kind if kind >= FAMILY_ID_MIN => Self::Agent,
            _ => Self::Kernel,
        }
    }

    /// True if a request to nlctrl names an OVS family, or one by an ID that is the agent's.
    fn names_ovs(head: &[u8]) -> bool {
        attrs(attributes(head, NLMSG_HEADER + GENL_HEADER)).flatten().any(|attribute| {
            match (attribute.kind, attribute.payload) {
                (FAMILY_NAME, name) => name.starts_with(OVS),
                (FAMILY_ID, &[a, b]) => u16::from_ne_bytes([a, b]) >= FAMILY_ID_MIN,
                _ => false,
            }
        })
    }

    /// True if a request about a device names one that Open vSwitch makes for a tunnel.
    fn names_tunnel(head: &[u8]) -> bool {
        attrs(attributes(head, NLMSG_HEADER + link::IFINFOMSG_LEN)).flatten().any(|attribute| {
            let name = attribute.payload.split(|byte| *byte == 0).next().unwrap_or_default();
            attribute.kind == link::IFNAME && is_tunnel_device(name)
        })
    }
}

/// What is there of a message's attributes, which begin at `start`.
fn attributes(head: &[u8], start: usize) -> &[u8] {
    let length = head.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize);
    head.get(start..length.min(head.len())).unwrap_or_default()
}

/// A header for `count` parts.
pub(crate) fn header(parts: *const iovec, count: usize) -> msghdr {
    // SAFETY: all zeros are a valid `msghdr`: no name, no parts, no control.
    let mut header: msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.cast_mut();
    header.msg_iovlen = count as _;
    header
}

/// The agent's address.
pub(crate) fn agent() -> sockaddr_nl {
    static PORT_ID: OnceLock<u32> = OnceLock::new();
    let port_id = *PORT_ID.get_or_init(|| {
        let other = std::env::var(PORT_ID_VARIABLE).ok().and_then(|text| text.parse().ok());
        other.filter(|id| *id != 0).unwrap_or(SERVER_PORT_ID)
    });
    // SAFETY: all zeros are a valid `sockaddr_nl`, which is integers.
    let mut address: sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_pid = port_id;
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_ovs::nla::Writer;

    fn request(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; NLMSG_HEADER + GENL_HEADER];
        let mut writer = Writer::new(&mut bytes);
        attributes.iter().for_each(|(kind, payload)| writer.put(*kind, payload));
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    fn of(head: &[u8]) -> Target {
        Target::of(Protocol::Generic, head)
    }

    #[test]
    fn of_link_messages_only_those_about_tunnel_devices_are_the_agents() {
        let named = |kind: u16, name: &[u8]| {
            // IFLA_IFNAME behind `struct ifinfomsg`, of which 4 bytes are where the other headers end.
            let mut bytes = request(kind, &[]);
            bytes.resize(32, 0);
            Writer::new(&mut bytes).put(3u16, name);
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let route = |head: &[u8]| Target::of(Protocol::Route, head);
        // RTM_NEWLINK to RTM_SETLINK.
        for kind in 16..20 {
            assert_eq!(route(&named(kind, b"vxlan_sys_4789\0")), Target::Agent, "{kind}");
            assert_eq!(route(&named(kind, b"gre_sys\0")), Target::Agent, "{kind}");
            for other in [&b"vxlan_system\0"[..], b"eth0\0", b"vxlan_sy\0", b"\0", b"", b"br-gre_sys\0"] {
                assert_eq!(route(&named(kind, other)), Target::Kernel, "{kind} {other:?}");
            }
            assert_eq!(of(&named(kind, b"vxlan_sys_4789\0")), Target::Kernel, "another protocol");
        }
        assert_eq!(route(&named(20, b"vxlan_sys_4789\0")), Target::Kernel, "RTM_NEWADDR");
        assert_eq!(route(&named(1000, b"vxlan_sys_4789\0")), Target::Kernel, "no message of NETLINK_ROUTE");
        let cut = named(16, b"vxlan_sys_4789\0");
        for len in 0..cut.len() - 5 {
            assert_eq!(route(&cut[..len]), Target::Kernel, "{len} bytes");
        }
    }

    #[test]
    fn only_the_ovs_families_are_the_agents() {
        assert_eq!(of(&request(NLCTRL, &[(FAMILY_NAME, b"ovs_flow\0")])), Target::Lookup);
        assert_eq!(of(&request(NLCTRL, &[(FAMILY_ID, &1000u16.to_ne_bytes())])), Target::Lookup);
        assert_eq!(of(&request(NLCTRL, &[(FAMILY_NAME, b"ethtool\0")])), Target::Kernel);
        assert_eq!(of(&request(NLCTRL, &[(FAMILY_ID, &20u16.to_ne_bytes())])), Target::Kernel);
        assert_eq!(of(&request(NLCTRL, &[])), Target::Kernel, "a dump of all families");
        assert_eq!(of(&request(FAMILY_ID_MIN, &[])), Target::Agent);
        assert_eq!(of(&request(FAMILY_ID_MIN - 1, &[])), Target::Kernel);
        assert_eq!(of(&request(marker::TYPE, &[])), Target::Kernel, "no program's to send");
    }

    #[test]
    fn what_is_cut_off_or_lies_about_its_length_is_the_kernels() {
        let whole = request(NLCTRL, &[(FAMILY_NAME, b"ovs_flow\0")]);
        for len in 0..whole.len() - 4 {
            assert_eq!(of(&whole[..len]), Target::Kernel, "{len} bytes");
        }
        let mut long = whole;
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(of(&long), Target::Lookup, "the kernel refuses it, and so does the agent");
    }
}
