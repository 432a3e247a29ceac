//! The fields that FL1's parser knows (FL1.md, section 6), and the packet's key: all of them side by side.

/// A field by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Field {
    /// Ingress port.
    InPort = 1,
    /// Pipeline register.
    Metadata,
    /// Ethernet destination.
    EthDst,
    /// Ethernet source.
    EthSrc,
    /// Innermost Ethernet type.
    EthType,
    /// Outer tag's TPID.
    Vlan0Tpid,
    /// Outer tag's TCI, bit 12 set.
    Vlan0Tci,
    /// Second tag's TPID.
    Vlan1Tpid,
    /// Second tag's TCI, bit 12 set.
    Vlan1Tci,
    /// IP protocol.
    IpProto,
    /// TOS or traffic class.
    IpTos,
    /// TTL or hop limit.
    IpTtl,
    /// IPv4 source.
    Ipv4Src,
    /// IPv4 destination.
    Ipv4Dst,
    /// IPv6 source.
    Ipv6Src,
    /// IPv6 destination.
    Ipv6Dst,
    /// IPv6 flow label.
    Ipv6Label,
    /// Source port, or ICMP type.
    L4Src,
    /// Destination port, or ICMP code.
    L4Dst,
    /// TCP flags, 12 bits.
    TcpFlags,
    /// ARP opcode.
    ArpOp,
    /// ARP sender protocol address.
    ArpSpa,
    /// ARP target protocol address.
    ArpTpa,
    /// ARP sender hardware address.
    ArpSha,
    /// ARP target hardware address.
    ArpTha,
    /// VXLAN network identifier that a decapsulation took off.
    TunId,
    /// Outer IPv4 source of the same.
    TunIpv4Src,
    /// Outer IPv4 destination of the same.
    TunIpv4Dst,
}

use Field as F;

/// Fields in the order of their ids, with their length in bytes.
const LAYOUT: [(Field, u8); 28] = [
    (F::InPort, 2),
    (F::Metadata, 4),
    (F::EthDst, 6),
    (F::EthSrc, 6),
    (F::EthType, 2),
    (F::Vlan0Tpid, 2),
    (F::Vlan0Tci, 2),
    (F::Vlan1Tpid, 2),
    (F::Vlan1Tci, 2),
    (F::IpProto, 1),
    (F::IpTos, 1),
    (F::IpTtl, 1),
    (F::Ipv4Src, 4),
    (F::Ipv4Dst, 4),
    (F::Ipv6Src, 16),
    (F::Ipv6Dst, 16),
    (F::Ipv6Label, 4),
    (F::L4Src, 2),
    (F::L4Dst, 2),
    (F::TcpFlags, 2),
    (F::ArpOp, 1),
    (F::ArpSpa, 4),
    (F::ArpTpa, 4),
    (F::ArpSha, 6),
    (F::ArpTha, 6),
    (F::TunId, 3),
    (F::TunIpv4Src, 4),
    (F::TunIpv4Dst, 4),
];

/// Offset of each field in a [`PacketKey`], by id.
const OFFSETS: [u8; 29] = {
    let mut o = [0u8; 29];
    let mut i = 0;
    let mut at = 0;
    while i < LAYOUT.len() {
        o[i + 1] = at;
        at += LAYOUT[i].1;
        i += 1;
    }
    o
};

/// Length of a [`PacketKey`]: all fields, rounded up to whole words.
pub(crate) const KEY_BYTES: usize = 120;

impl Field {
    /// The field with this id.
    pub fn from_id(id: u16) -> Option<Self> {
        LAYOUT.get(usize::from(id).checked_sub(1)?).map(|l| l.0)
    }
    /// Its id.
    pub fn id(self) -> u16 {
        u16::from(self as u8)
    }
    /// Length in bytes.
    pub fn bytes(self) -> usize {
        usize::from(LAYOUT[usize::from(self as u8 - 1)].1)
    }
    /// Bits that the hardware has, big-endian, left-justified.
    pub fn supported(self) -> [u8; 16] {
        let mut m = [0; 16];
        m[..self.bytes()].fill(0xff);
        match self {
            F::Ipv6Label => {
                m[0] = 0;
                m[1] = 0x0f;
            }
            F::TcpFlags => m[0] = 0x0f,
            _ => {}
        }
        m
    }
    /// Where it lies in a [`PacketKey`].
    pub(crate) fn offset(self) -> usize {
        usize::from(OFFSETS[usize::from(self as u8)])
    }
}

/// All fields of one packet, big-endian, in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketKey(pub(crate) [u8; KEY_BYTES]);

impl Default for PacketKey {
    fn default() -> Self {
        Self([0; KEY_BYTES])
    }
}

impl PacketKey {
    pub(crate) fn set(&mut self, f: Field, value: &[u8]) {
        let at = f.offset();
        let len = f.bytes().min(value.len());
        self.0[at..at + len].copy_from_slice(&value[..len]);
    }
    /// The bytes of one field.
    pub fn get(&self, f: Field) -> &[u8] {
        &self.0[f.offset()..f.offset() + f.bytes()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_in_order_and_fits() {
        for (i, (f, _)) in LAYOUT.iter().enumerate() {
            assert_eq!(usize::from(f.id()), i + 1);
            assert_eq!(Field::from_id(f.id()), Some(*f));
        }
        assert_eq!(Field::TunIpv4Dst.offset() + Field::TunIpv4Dst.bytes(), 113);
        assert_eq!(Field::from_id(0), None);
        assert_eq!(Field::from_id(29), None);
    }
}
