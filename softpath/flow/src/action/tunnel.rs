//! Ready-made outer headers, the argument of tnl_push.

use super::PortNo;
use std::fmt;
use std::net::Ipv4Addr;

/// Argument of tnl_push.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TnlPush {
    /// Tunnel vport.
    pub tnl_port: PortNo,
    /// Port that the packet is to leave by; a later output says so again, and that is what counts.
    pub out_port: PortNo,
    /// What is put before the packet.
    pub header: TnlHeader,
}

/// An outer header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TnlHeader {
    /// VXLAN over UDP and IPv4.
    Vxlan(VxlanHeader),
    /// Another one: its text between `header(` and the closing parenthesis, as OVS prints it.
    Text(String),
}

/// Ethernet, IPv4, UDP and VXLAN header (RFC 7348), all but what depends on the packet within: IPv4 total length and checksum, UDP
/// length and checksum, and IPv4 identification are 0. A UDP source port of 0 stands for one that depends on the flow within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VxlanHeader([u8; VxlanHeader::LEN]);

/// First byte and bytes of what has no say in a [`VxlanHeader`]: IPv4 total length and identification, IPv4 checksum, UDP length and
/// checksum, the last byte of VXLAN.
const ZERO: [(usize, usize); 4] = [(16, 4), (24, 2), (38, 4), (49, 1)];
/// First byte and value of what is always the same: Ethernet type, IPv4 version and header length; UDP.
const FIXED: [(usize, u8); 4] = [(12, 0x08), (13, 0x00), (14, 0x45), (23, 17)];
/// What OVS prints between the values of such a header.
const PARTS: [&str; 12] = [
    "size=50,type=4,eth(dst=",
    ",src=",
    ",dl_type=0x0800),ipv4(src=",
    ",dst=",
    ",proto=17,tos=",
    ",ttl=",
    ",frag=",
    "),udp(src=",
    ",dst=",
    ",csum=0x0),vxlan(flags=",
    ",vni=",
    ")",
];

impl VxlanHeader {
    /// Length in bytes.
    pub const LEN: usize = 50;

    /// From bytes as on the wire; `None` if they are something else, or have what depends on the packet within.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::LEN] = bytes.try_into().ok()?;
        let fixed = FIXED.iter().all(|(at, value)| bytes.get(*at) == Some(value));
        let zero = ZERO.iter().all(|(at, len)| bytes.iter().skip(*at).take(*len).all(|b| *b == 0));
        (fixed && zero).then_some(Self(bytes))
    }

    /// As on the wire.
    pub fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// UDP source port; 0 for one that depends on the flow within.
    pub fn src_port(&self) -> u16 {
        self.number(34, 2) as u16
    }

    /// The big-endian number of `len` bytes at `at`.
    fn number(&self, at: usize, len: usize) -> u64 {
        self.0.iter().skip(at).take(len).fold(0, |v, b| v << 8 | u64::from(*b))
    }

    /// From OVS's text; `None` if it says something else, or in another way than [`VxlanHeader`] prints it.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut values = [""; PARTS.len() - 1];
        let mut rest = text.strip_prefix(PARTS[0])?;
        for (value, part) in values.iter_mut().zip(&PARTS[1..]) {
            (*value, rest) = rest.split_once(part)?;
        }
        let [dst_mac, src_mac, src, dst, tos, ttl, frag, src_port, dst_port, flags, vni] = values;
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        let mut bytes = [0; Self::LEN];
        for (at, value) in FIXED {
            *bytes.get_mut(at)? = value;
        }
        for (at, mac) in [(0, dst_mac), (6, src_mac)] {
            for (to, octet) in bytes.get_mut(at..at + 6)?.iter_mut().zip(mac.split(':')) {
                *to = u8::from_str_radix(octet, 16).ok()?;
            }
        }
        let address = |text: &str| Some(u64::from(u32::from(text.parse::<Ipv4Addr>().ok()?)));
        for (at, len, value) in [
            (15, 1, number(tos)?),
            (20, 2, number(frag)?),
            (22, 1, number(ttl)?),
            (26, 4, address(src)?),
            (30, 4, address(dst)?),
            (34, 2, number(src_port)?),
            (36, 2, number(dst_port)?),
            (42, 4, number(flags)?),
            (46, 3, number(vni)?),
        ] {
            bytes.get_mut(at..at + len)?.copy_from_slice(value.to_be_bytes().get(8 - len..)?);
        }
        let header = Self(bytes);
        (rest.is_empty() && header.to_string() == text).then_some(header)
    }
}

impl fmt::Display for VxlanHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = |f: &mut fmt::Formatter<'_>, at: usize| {
            for n in 0..6 {
                write!(f, "{}{:02x}", if n == 0 { "" } else { ":" }, self.number(at + n, 1))?;
            }
            Ok(())
        };
        // As C's %#x has it.
        let hex =
            |f: &mut fmt::Formatter<'_>, v: u64| if v == 0 { write!(f, "0") } else { write!(f, "{v:#x}") };
        let address = |at: usize| Ipv4Addr::from(self.number(at, 4) as u32);
        f.write_str(PARTS[0])?;
        mac(f, 0)?;
        f.write_str(PARTS[1])?;
        mac(f, 6)?;
        write!(f, "{}{}{}{}{}", PARTS[2], address(26), PARTS[3], address(30), PARTS[4])?;
        hex(f, self.number(15, 1))?;
        write!(f, "{}{}{}{:#x}", PARTS[5], self.number(22, 1), PARTS[6], self.number(20, 2))?;
        write!(f, "{}{}{}{}", PARTS[7], self.number(34, 2), PARTS[8], self.number(36, 2))?;
        write!(f, "{}{:#x}{}{:#x}{}", PARTS[9], self.number(42, 4), PARTS[10], self.number(46, 3), PARTS[11])
    }
}

impl TnlHeader {
    /// From the text between `header(` and its closing parenthesis.
    pub fn from_text(text: &str) -> Self {
        VxlanHeader::from_text(text).map_or_else(|| Self::Text(text.to_owned()), Self::Vxlan)
    }
}

impl fmt::Display for TnlHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(header) => header.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "size=50,type=4,eth(dst=02:00:00:00:99:02,src=02:00:00:00:99:01,dl_type=0x0800),\
        ipv4(src=192.0.2.1,dst=192.0.2.2,proto=17,tos=0x4,ttl=64,frag=0x4000),udp(src=0,dst=4789,csum=0x0),\
        vxlan(flags=0x8000000,vni=0x64)";

    #[test]
    fn text_and_bytes_say_the_same() {
        let TnlHeader::Vxlan(header) = TnlHeader::from_text(TEXT) else { panic!("not read: {TEXT}") };
        let want = "0200000099020200000099010800 4504000000004000401100 00c0000201c0000202 000012b5 00000000 0800000000006400";
        let hex: String = header.bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, want.replace(' ', ""));
        assert_eq!(header.to_string(), TEXT);
        assert_eq!(VxlanHeader::new(header.bytes()), Some(header));
        assert_eq!(header.src_port(), 0);
    }

    #[test]
    fn what_is_no_such_header_stays_text() {
        for (from, to) in [
            ("type=4", "type=5"),
            ("csum=0x0", "csum=0xffff"),
            ("proto=17", "proto=47"),
            ("tos=0x4", "tos=4"),
            ("vni=0x64)", "vni=0x1000000)"),
            ("vni=0x64)", "vni=0x64))"),
            ("ttl=64", "ttl=256"),
            ("02:00:00:00:99:02", "02:00:00:00:99"),
            ("192.0.2.1", "2001:db8::1"),
        ] {
            let text = TEXT.replace(from, to);
            assert_eq!(TnlHeader::from_text(&text), TnlHeader::Text(text.clone()));
        }
        let TnlHeader::Vxlan(header) = TnlHeader::from_text(TEXT) else { panic!("not read") };
        for at in [12, 14, 16, 18, 23, 24, 38, 40, 49] {
            let mut bytes = *header.bytes();
            bytes[at] ^= 1;
            assert_eq!(VxlanHeader::new(&bytes), None, "byte {at}");
        }
        assert_eq!(VxlanHeader::new(&header.bytes()[..49]), None);
    }
}
