//! The marker protocol between flowlift's Netlink server and the library that is preloaded into its clients.
//!
//! A client of the kernel's datapath may take "nothing to read" after a request for "done, no reply", since the kernel
//! answers before `send` returns. Another process cannot, so each datagram that the preloaded library passes on ends in a
//! *marker*, and the server sends the same marker back once every reply to that datagram has been sent (a dump included).
//! The library lets its client's `recv` wait while a marker is outstanding, and keeps markers from the client.
//!
//! A marker is one Netlink message of [`LEN`] bytes, aligned to 4 bytes in the datagram and always its last:
//!
//! | Bytes | Field | Content |
//! |---|---|---|
//! | 0-3 | `nlmsg_len` | [`LEN`], native order |
//! | 4-5 | `nlmsg_type` | [`TYPE`], above every type that the kernel gives away |
//! | 6-7 | `nlmsg_flags` | 0 |
//! | 8-11 | `nlmsg_seq` | 0 |
//! | 12-15 | `nlmsg_pid` | 0 |
//! | 16-23 | magic | [`MAGIC`] |
//! | 24-31 | cookie | the library's, 8 bytes that the server does not look at |
//!
//! The server sends a marker as a datagram of its own. The cookie tells late markers of a closed socket from those of its
//! successor, should a port ID be used again. A datagram without a marker is answered just the same, without one.
//!
//! Nothing here allocates or fails; the module knows no other one, so that a small library can use it alone.

/// Port ID that the server binds unless it is told otherwise. The kernel gives away process IDs (below 2^22) and, past
/// those, IDs with the highest bit set; this one lies between.
pub const SERVER_PORT_ID: u32 = 0x464c_0001;
/// Environment variable with another port ID of the server, decimal: for several in one network namespace.
pub const PORT_ID_VARIABLE: &str = "FLOWLIFT_NETLINK_PORT";
/// Smallest `nlmsg_type` of the server's families: far above those that the kernel gives away, which begin at 17, so that a
/// message's type tells the library who it is for. A request to nlctrl is for the server if it names an OVS family, or one by
/// such an ID.
pub const FAMILY_ID_MIN: u16 = 0x3e0;
/// First of the port IDs that a client's library may bind; the last is [`CLIENT_PORT_IDS_END`] - 1.
pub const CLIENT_PORT_IDS: u32 = 0x0100_0000;
/// End of the clients' port IDs.
pub const CLIENT_PORT_IDS_END: u32 = 0x4000_0000;

/// `nlmsg_type` of a marker. Generic Netlink's families have types below 1024.
pub const TYPE: u16 = 0xf10f;
/// Bytes of a marker.
pub const LEN: usize = 32;
/// What follows a marker's header.
pub const MAGIC: [u8; 8] = *b"flowlift";

/// The marker with a cookie.
pub const fn marker(cookie: [u8; 8]) -> [u8; LEN] {
    let [l0, l1, l2, l3] = (LEN as u32).to_ne_bytes();
    let [t0, t1] = TYPE.to_ne_bytes();
    let [m0, m1, m2, m3, m4, m5, m6, m7] = MAGIC;
    let [c0, c1, c2, c3, c4, c5, c6, c7] = cookie;
    [
        l0, l1, l2, l3, t0, t1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // header
        m0, m1, m2, m3, m4, m5, m6, m7, c0, c1, c2, c3, c4, c5, c6, c7,
    ]
}

/// The cookie, if `message` is a marker and nothing else: what the library asks of every datagram that it receives.
pub fn cookie(message: &[u8]) -> Option<[u8; 8]> {
    let message: &[u8; LEN] = message.try_into().ok()?;
    let cookie = *message.last_chunk()?;
    (marker(cookie) == *message).then_some(cookie)
}

/// Splits a client's datagram into its messages and the cookie of the marker at its end, if it has one.
pub fn split(datagram: &[u8]) -> (&[u8], Option<[u8; 8]>) {
    let found = datagram.split_last_chunk::<LEN>().and_then(|(rest, last)| Some((rest, cookie(last)?)));
    match found {
        Some((rest, cookie)) if rest.len() % 4 == 0 => (rest, Some(cookie)),
        _ => (datagram, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_marker_is_the_bytes_of_the_table() {
        let bytes = marker([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            bytes, *b"\x20\0\0\0\x0f\xf1\0\0\0\0\0\0\0\0\0\0flowlift\x01\x02\x03\x04\x05\x06\x07\x08",
            "a marker's layout is shared with the preloaded library"
        );
    }

    #[test]
    fn only_a_whole_aligned_marker_at_the_end_is_one() {
        let m = marker(*b"12345678");
        assert_eq!(cookie(&m), Some(*b"12345678"));
        assert_eq!(split(&m), (&[][..], Some(*b"12345678")));
        let with = |before: &[u8]| [before, &m].concat();
        assert_eq!(split(&with(&[9; 20])), (&[9; 20][..], Some(*b"12345678")));
        // Out of place: the bytes belong to whatever came before.
        assert_eq!(split(&with(&[9; 3])).1, None);
        let mut after = with(&[9; 4]);
        after.extend([0; 4]);
        assert_eq!(split(&after), (&after[..], None));
        for byte in 0..24 {
            let mut other = m;
            other[byte] ^= 0x40;
            assert_eq!(cookie(&other), None, "byte {byte} changed");
        }
    }
}
