//! The parser, as narrow as real ones (FL1.md, section 6).
//!
//! Whatever it does not parse fully and exactly matches nothing: a false miss is only slow, a false hit is wrong. So
//! every doubt ends in [`Unparsed`].

use crate::bytes::be16;
use crate::checksum::Crc32c;
use crate::field::{Field, PacketKey};

/// The packet cannot match anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unparsed;

/// Network header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L3 {
    None,
    Ipv4,
    Ipv6,
}

/// Transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L4 {
    None,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
}

/// Where the headers of a packet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) l3: L3,
    /// Offset of the network header.
    pub(crate) l3_at: usize,
    pub(crate) l4: L4,
    /// Offset of the transport header.
    pub(crate) l4_at: usize,
    /// End of the IP payload; padding follows.
    pub(crate) ip_end: usize,
}

/// A packet that may match.
#[derive(Debug, Clone, Copy)]
pub struct Parsed {
    /// Its fields; `in_port` and `metadata` are the pipeline's to fill in.
    pub key: PacketKey,
    pub(crate) headers: Headers,
    /// TCP flags, 0 for others.
    pub tcp_flags: u16,
}

const ETHERNET: usize = 14;
const TPIDS: [u16; 2] = [0x8100, 0x88a8];
const TAG_PRESENT: u16 = 0x1000;

/// A VLAN tag: TPID (0: there is none) and TCI.
type Tag = (u16, u16);

/// Takes Ethernet and up to two tags. Gives the innermost type, the offset after it, and the tags.
fn link_layer(f: &[u8]) -> Option<(u16, usize, [Tag; 2])> {
    if f.len() < ETHERNET {
        return None;
    }
    let mut tags = [(0, 0); 2];
    let mut ty = be16(f, 12);
    let mut at = ETHERNET;
    for tag in &mut tags {
        if !TPIDS.contains(&ty) || f.len() < at + 4 {
            break;
        }
        *tag = (ty, be16(f, at));
        ty = be16(f, at + 2);
        at += 4;
    }
    Some((ty, at, tags))
}

/// Parses `f` from its Ethernet header on.
pub fn parse(f: &[u8]) -> Result<Parsed, Unparsed> {
    let (ty, at, tags) = link_layer(f).ok_or(Unparsed)?;
    let mut key = PacketKey::default();
    key.set(Field::EthDst, &f[0..6]);
    key.set(Field::EthSrc, &f[6..12]);
    key.set(Field::EthType, &ty.to_be_bytes());
    let ids = [(Field::Vlan0Tpid, Field::Vlan0Tci), (Field::Vlan1Tpid, Field::Vlan1Tci)];
    for ((tpid, tci), ids) in tags.into_iter().zip(ids) {
        if tpid != 0 {
            key.set(ids.0, &tpid.to_be_bytes());
            key.set(ids.1, &(tci | TAG_PRESENT).to_be_bytes());
        }
    }
    let headers = Headers { l3: L3::None, l3_at: at, l4: L4::None, l4_at: at, ip_end: f.len() };
    let mut p = Parsed { key, headers, tcp_flags: 0 };
    match ty {
        // A third tag or one cut off; lengths (LLC); MPLS; NSH; RARP: OVS's key has more fields there than this parser.
        0x8100 | 0x88a8 | 0..0x0600 | 0x8847 | 0x8848 | 0x894f | 0x8035 => return Err(Unparsed),
        0x0800 => ipv4(f, &mut p)?,
        0x86dd => ipv6(f, &mut p)?,
        0x0806 => arp(f, &mut p)?,
        _ => {}
    }
    Ok(p)
}

fn ipv4(f: &[u8], p: &mut Parsed) -> Result<(), Unparsed> {
    let at = p.headers.l3_at;
    let h = f.get(at..at + 20).ok_or(Unparsed)?;
    let total = usize::from(be16(h, 2));
    // Any bit but DF in the fragment word: a fragment, or one reserved.
    if h[0] != 0x45 || total < 20 || total > f.len() - at || be16(h, 6) & !0x4000 != 0 {
        return Err(Unparsed);
    }
    p.headers.l3 = L3::Ipv4;
    p.headers.ip_end = at + total;
    p.headers.l4_at = at + 20;
    p.key.set(Field::IpTos, &h[1..2]);
    p.key.set(Field::IpTtl, &h[8..9]);
    p.key.set(Field::Ipv4Src, &h[12..16]);
    p.key.set(Field::Ipv4Dst, &h[16..20]);
    transport(f, h[9], p)
}

fn ipv6(f: &[u8], p: &mut Parsed) -> Result<(), Unparsed> {
    let at = p.headers.l3_at;
    let h = f.get(at..at + 40).ok_or(Unparsed)?;
    let payload = usize::from(be16(h, 4));
    // Extension headers, ESP and "no next header" (which OVS's key shows as such), mobility, HIP, shim6.
    let extension = matches!(h[6], 0 | 43 | 44 | 50 | 51 | 59 | 60 | 135 | 139 | 140);
    if h[0] >> 4 != 6 || payload > f.len() - at - 40 || extension {
        return Err(Unparsed);
    }
    p.headers.l3 = L3::Ipv6;
    p.headers.ip_end = at + 40 + payload;
    p.headers.l4_at = at + 40;
    p.key.set(Field::IpTos, &[h[0] << 4 | h[1] >> 4]);
    p.key.set(Field::IpTtl, &h[7..8]);
    p.key.set(Field::Ipv6Label, &[0, h[1] & 0x0f, h[2], h[3]]);
    p.key.set(Field::Ipv6Src, &h[8..24]);
    p.key.set(Field::Ipv6Dst, &h[24..40]);
    transport(f, h[6], p)
}

fn transport(f: &[u8], proto: u8, p: &mut Parsed) -> Result<(), Unparsed> {
    p.key.set(Field::IpProto, &[proto]);
    let h = f.get(p.headers.l4_at..p.headers.ip_end).ok_or(Unparsed)?;
    let (l4, min) = match (proto, p.headers.l3) {
        (6, _) => (L4::Tcp, 20),
        (17, _) => (L4::Udp, 8),
        (132, _) => (L4::Sctp, 12),
        (1, L3::Ipv4) => (L4::Icmp, 8),
        (58, L3::Ipv6) => (L4::Icmpv6, 8),
        _ => return Ok(()),
    };
    if h.len() < min {
        return Err(Unparsed);
    }
    match l4 {
        L4::Tcp => {
            let offset = usize::from(h[12] >> 4) * 4;
            if offset < 20 || offset > h.len() {
                return Err(Unparsed);
            }
            p.tcp_flags = be16(h, 12) & 0x0fff;
            p.key.set(Field::TcpFlags, &p.tcp_flags.to_be_bytes());
        }
        // Neighbour discovery: OVS's key has its target and link-layer addresses.
        L4::Icmpv6 if matches!(h[0], 135 | 136) => return Err(Unparsed),
        _ => {}
    }
    if matches!(l4, L4::Icmp | L4::Icmpv6) {
        p.key.set(Field::L4Src, &[0, h[0]]);
        p.key.set(Field::L4Dst, &[0, h[1]]);
    } else {
        p.key.set(Field::L4Src, &h[0..2]);
        p.key.set(Field::L4Dst, &h[2..4]);
    }
    p.headers.l4 = l4;
    Ok(())
}

fn arp(f: &[u8], p: &mut Parsed) -> Result<(), Unparsed> {
    let h = f.get(p.headers.l3_at..).and_then(|h| h.get(..28)).ok_or(Unparsed)?;
    // Ethernet and IPv4, lengths 6 and 4, opcode at most 255.
    if h[..7] != [0, 1, 8, 0, 6, 4, 0] {
        return Err(Unparsed);
    }
    p.key.set(Field::ArpOp, &h[7..8]);
    p.key.set(Field::ArpSha, &h[8..14]);
    p.key.set(Field::ArpSpa, &h[14..18]);
    p.key.set(Field::ArpTha, &h[18..24]);
    p.key.set(Field::ArpTpa, &h[24..28]);
    Ok(())
}

/// The hash that chooses a slow queue (FL1.md, section 8): on addresses only, so that all packets of a flow, parsed or
/// not, go the same way.
pub(crate) fn flow_hash(port: u16, f: &[u8]) -> u32 {
    let crc = Crc32c::new().update(&port.to_be_bytes());
    let Some((ty, at, _)) = link_layer(f) else {
        return crc.update(f).finish();
    };
    let crc = crc.update(&f[..12]).update(&ty.to_be_bytes());
    let addresses = match ty {
        0x0800 if f.len() >= at + 20 => f.get(at + 12..at + 20),
        0x86dd if f.len() >= at + 40 => f.get(at + 8..at + 40),
        _ => None,
    };
    crc.update(addresses.unwrap_or(&[])).finish()
}
