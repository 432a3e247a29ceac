//! What preload module and agent agree on beside OVS's own messages.
//!
//! A client believes that Netlink is synchronous: it sends, reads without waiting, and takes "nothing there" for "done, no
//! answer". The kernel answers within the send; another process cannot. So the preload module appends a *marker* to each
//! datagram that it sends to the agent: a message of a private type with a cookie, which grows with each datagram of a
//! socket. The agent sends the marker back, as a datagram of its own, once every answer to the datagram before it has been
//! sent (of a dump, the last part). Until then the module makes the client's reads wait. A datagram without a marker is
//! answered without one.
//!
//! The markers of one client come back in the order in which they were sent; so a marker that is newer than the awaited one
//! says that the awaited one is lost, which happens when an agent dies and another one takes its place.

use crate::nla::HEADER_LEN;

/// The agent's port ID on NETLINK_GENERIC. Fixed, so that sockets which clients have opened are those of the next agent too.
pub const AGENT_PORT_ID: u32 = 0x464c_4f57;
/// Environment variable with another port ID, decimal: for several agents in one network namespace.
pub const PORT_ID_VARIABLE: &str = "FLOWLIFT_NETLINK_PORT";
/// Message type of a marker, which no family of the kernel can have.
pub const MARKER_TYPE: u16 = 0xff4d;
/// Smallest ID of a family that the agent serves: above the largest that the kernel gives (`GENL_MAX_ID`), so that a
/// message's type says who it is for. A request to nlctrl is for the agent if it names one of the agent's families.
pub const FAMILY_ID_MIN: u16 = 1024;
/// Length of a marker: a Netlink header and the cookie.
pub const MARKER_LEN: usize = 24;

const _: () = assert!(MARKER_LEN.is_multiple_of(HEADER_LEN));

/// A marker: length, type, no flags, sequence number 0, port ID 0, the cookie; all in native byte order.
pub fn marker(cookie: u64) -> [u8; MARKER_LEN] {
    let mut bytes = [0; MARKER_LEN];
    bytes[..4].copy_from_slice(&(MARKER_LEN as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&MARKER_TYPE.to_ne_bytes());
    bytes[16..].copy_from_slice(&cookie.to_ne_bytes());
    bytes
}

/// The cookie, if `message` begins with a marker.
pub fn cookie(message: &[u8]) -> Option<u64> {
    let marker: &[u8; MARKER_LEN] = message.first_chunk()?;
    let cookie = u64::from_ne_bytes(*marker.last_chunk()?);
    (*marker == self::marker(cookie)).then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_one_netlink_message() {
        let bytes = marker(0x0102_0304_0506_0708);
        assert_eq!(u32::from_ne_bytes(*bytes.first_chunk().unwrap()), 24);
        assert_eq!(cookie(&bytes), Some(0x0102_0304_0506_0708));
        assert_eq!(cookie(&bytes[..23]), None);
        for at in 0..16 {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(cookie(&other), None, "byte {at}");
        }
    }
}
