//! Message headers of the C library, and what stands in messages.

use flowlift_ovs::marker::{self, FAMILY_ID_MIN, PORT_ID_VARIABLE, SERVER_PORT_ID};
use flowlift_ovs::nla::attrs;
use libc::{iovec, msghdr, sockaddr_nl};
use std::sync::OnceLock;

/// Bytes of a message's beginning that [`Target::of`] looks at: a request for a family is shorter.
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

/// Who a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Everything but the OVS families.
    Kernel,
    /// A request of an OVS family.
    Agent,
    /// The question what ID an OVS family has.
    Lookup,
}

impl Target {
    /// By the first message of a datagram: `head` has up to [`HEAD`] bytes of it.
    pub(crate) fn of(head: &[u8]) -> Self {
        let Some(&[k0, k1]) = head.get(4..6) else { return Self::Kernel };
        match u16::from_ne_bytes([k0, k1]) {
            NLCTRL if Self::names_ovs(head) => Self::Lookup,
            marker::TYPE => Self::Kernel,
            kind if kind >= FAMILY_ID_MIN => Self::Agent,
            _ => Self::Kernel,
        }
    }

    /// True if a request to nlctrl names an OVS family, or one by an ID that is the agent's.
    fn names_ovs(head: &[u8]) -> bool {
        let length = head.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize);
        let attributes = head.get(NLMSG_HEADER + GENL_HEADER..length.min(head.len())).unwrap_or_default();
        attrs(attributes).flatten().any(|attribute| match (attribute.kind, attribute.payload) {
            (FAMILY_NAME, name) => name.starts_with(OVS),
            (FAMILY_ID, &[a, b]) => u16::from_ne_bytes([a, b]) >= FAMILY_ID_MIN,
            _ => false,
        })
    }
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

    #[test]
    fn only_the_ovs_families_are_the_agents() {
        assert_eq!(Target::of(&request(NLCTRL, &[(FAMILY_NAME, b"ovs_flow\0")])), Target::Lookup);
        assert_eq!(Target::of(&request(NLCTRL, &[(FAMILY_ID, &1000u16.to_ne_bytes())])), Target::Lookup);
        assert_eq!(Target::of(&request(NLCTRL, &[(FAMILY_NAME, b"ethtool\0")])), Target::Kernel);
        assert_eq!(Target::of(&request(NLCTRL, &[(FAMILY_ID, &20u16.to_ne_bytes())])), Target::Kernel);
        assert_eq!(Target::of(&request(NLCTRL, &[])), Target::Kernel, "a dump of all families");
        assert_eq!(Target::of(&request(FAMILY_ID_MIN, &[])), Target::Agent);
        assert_eq!(Target::of(&request(FAMILY_ID_MIN - 1, &[])), Target::Kernel);
        assert_eq!(Target::of(&request(marker::TYPE, &[])), Target::Kernel, "no program's to send");
    }

    #[test]
    fn what_is_cut_off_or_lies_about_its_length_is_the_kernels() {
        let whole = request(NLCTRL, &[(FAMILY_NAME, b"ovs_flow\0")]);
        for len in 0..whole.len() - 4 {
            assert_eq!(Target::of(&whole[..len]), Target::Kernel, "{len} bytes");
        }
        let mut long = whole;
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(Target::of(&long), Target::Lookup, "the kernel refuses it, and so does the agent");
    }
}
