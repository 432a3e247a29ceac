//! Actions: the 16-byte units of FL1.md, section 7, checked at INSERT and run on packets.

use crate::bytes::{be16, le16, le32, put};
use crate::checksum::{Crc32c, update};
use crate::field::Field;
use crate::parser::{Headers, L3, L4, flow_hash};
use crate::profile::{MAX_FRAME, TableSpec};
use crate::vxlan::{self, Tunnel};

/// Length of an action unit in bytes.
pub const UNIT: usize = 16;

const OUTPUT: u8 = 1;
const SET_FIELD: u8 = 2;
const PUSH_VLAN: u8 = 3;
const POP_VLAN: u8 = 4;
const DEC_TTL: u8 = 5;
const METER: u8 = 6;
const TRAP: u8 = 7;
const SET_METADATA: u8 = 8;
const GOTO: u8 = 9;
const VXLAN_ENCAP: u8 = 10;
const VXLAN_DECAP: u8 = 11;
/// Bit of the capability record's action bitmap for truncation in OUTPUT.
const CAP_TRUNCATE: u32 = 1 << 16;
/// Shortest truncation: an Ethernet header.
const MIN_TRUNCATE: u32 = 14;

/// One action, decoded from validated units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action<'a> {
    Output {
        port: u16,
        max_len: u32,
    },
    SetField {
        field: Field,
        value: &'a [u8],
        mask: &'a [u8],
    },
    PushVlan([u8; 4]),
    PopVlan,
    DecTtl,
    Meter(u32),
    Trap,
    SetMetadata {
        value: u32,
        mask: u32,
    },
    Goto(u8),
    /// The template of the outer headers.
    VxlanEncap(&'a [u8]),
    VxlanDecap,
}

/// Length of a VXLAN_ENCAP record in units.
const ENCAP_UNITS: usize = 5;

/// Decodes the record at the start of `units`; gives it and its length in units. `None`: malformed.
fn decode(units: &[u8]) -> Option<(Action<'_>, usize)> {
    let u = units.get(..UNIT)?;
    let arg = le16(u, 2);
    let zero = |from: usize| u[from..].iter().all(|&b| b == 0);
    let bare = arg == 0 && zero(4);
    let long = u[0] == SET_FIELD && Field::from_id(arg).is_some_and(|f| f.bytes() == UNIT);
    let len = match u[0] {
        VXLAN_ENCAP => ENCAP_UNITS,
        _ if long => 3,
        _ => 1,
    };
    if usize::from(u[1]) != len {
        return None;
    }
    let action = match u[0] {
        OUTPUT if zero(8) => Action::Output { port: arg, max_len: le32(u, 4) },
        SET_FIELD if long && zero(4) => Action::SetField {
            field: Field::from_id(arg)?,
            value: units.get(UNIT..2 * UNIT)?,
            mask: units.get(2 * UNIT..3 * UNIT)?,
        },
        SET_FIELD if !long => {
            let field = Field::from_id(arg)?;
            let n = field.bytes();
            if u[4 + n..10].iter().chain(&u[10 + n..]).any(|&b| b != 0) {
                return None;
            }
            Action::SetField { field, value: &u[4..4 + n], mask: &u[10..10 + n] }
        }
        PUSH_VLAN if arg == 0 && zero(8) => Action::PushVlan([u[4], u[5], u[6], u[7]]),
        POP_VLAN if bare => Action::PopVlan,
        DEC_TTL if bare => Action::DecTtl,
        METER if arg == 0 && zero(8) => Action::Meter(le32(u, 4)),
        TRAP if bare => Action::Trap,
        SET_METADATA if arg == 0 && zero(12) => Action::SetMetadata { value: le32(u, 4), mask: le32(u, 8) },
        GOTO if zero(4) => Action::Goto(u8::try_from(arg).ok()?),
        VXLAN_ENCAP if bare => {
            let (template, rest) = units.get(UNIT..ENCAP_UNITS * UNIT)?.split_at(vxlan::OUTER);
            if rest.iter().any(|&b| b != 0) {
                return None;
            }
            Action::VxlanEncap(template)
        }
        VXLAN_DECAP if bare => Action::VxlanDecap,
        _ => return None,
    };
    Some((action, len))
}

/// Checks an action list against a table. The error is the index of the offending unit.
pub(crate) fn validate(
    units: &[u8],
    spec: &TableSpec,
    ports: u16,
    meter_exists: impl Fn(u32) -> bool,
) -> Result<(), u32> {
    if units.is_empty() {
        return if spec.actions & 1 != 0 { Ok(()) } else { Err(0) };
    }
    let mut at = 0;
    // A VXLAN action came before: the headers of the match are no longer the frame's.
    let mut rewrapped = false;
    let mut unwrapped = false;
    while at * UNIT < units.len() {
        let err = Err(at as u32);
        let kind = units[at * UNIT];
        if kind == 0 || kind > VXLAN_DECAP || spec.actions & (1 << kind) == 0 {
            return err;
        }
        let Some((action, len)) = decode(&units[at * UNIT..]) else { return err };
        let last = (at + len) * UNIT == units.len();
        let fine = match action {
            Action::Output { port, max_len } => {
                (1..=ports).contains(&port)
                    && (max_len == 0 || (max_len >= MIN_TRUNCATE && spec.actions & CAP_TRUNCATE != 0))
            }
            Action::SetField { field, value, mask } => {
                !rewrapped
                    && spec.settable & (1 << field.id()) != 0
                    && mask.iter().any(|&b| b != 0)
                    && mask.iter().zip(field.supported()).all(|(m, s)| m & !s == 0)
                    && value.iter().zip(mask).all(|(v, m)| v & !m == 0)
            }
            Action::PushVlan(tag) => matches!(be16(&tag, 0), 0x8100 | 0x88a8),
            Action::Meter(id) => meter_exists(id),
            Action::Goto(stage) => last && stage < 32 && spec.goto_stages & (1 << stage) != 0,
            Action::Trap => last && !unwrapped,
            Action::VxlanEncap(template) => !rewrapped && vxlan::is_template(template),
            Action::VxlanDecap => !rewrapped && leaves(&units[(at + len) * UNIT..]),
            Action::SetMetadata { value, mask } => value & !mask == 0,
            Action::PopVlan => true,
            Action::DecTtl => !rewrapped,
        };
        if !fine {
            return err;
        }
        rewrapped |= matches!(action, Action::VxlanEncap(_) | Action::VxlanDecap);
        unwrapped |= action == Action::VxlanDecap;
        at += len;
    }
    Ok(())
}

/// Whether a list sends the packet somewhere: an OUTPUT or a GOTO, where a malformed record ends the search.
fn leaves(units: &[u8]) -> bool {
    list(units).any(|a| matches!(a, Action::Output { .. } | Action::Goto(_)))
}

/// A packet on its way through the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    /// As parsed at the match; of no meaning once the packet was wrapped or unwrapped.
    pub(crate) headers: Headers,
    /// Ingress port.
    pub(crate) port: u16,
    /// What the last decapsulation took off.
    pub(crate) tunnel: Tunnel,
}

/// How a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Trap,
    Goto(u8),
}

/// The list cannot be run on this packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exception;

/// A frame that leaves, and where.
pub(crate) type Output = (u16, Vec<u8>);

/// Whether the list unwraps a tunnel.
pub(crate) fn has_decap(units: &[u8]) -> bool {
    list(units).any(|a| a == Action::VxlanDecap)
}

/// Whether the list asks a meter, so that it must be tried without one first.
pub(crate) fn has_meter(units: &[u8]) -> bool {
    list(units).any(|a| matches!(a, Action::Meter(_)))
}

fn list(units: &[u8]) -> impl Iterator<Item = Action<'_>> {
    let mut rest = units;
    std::iter::from_fn(move || {
        let (action, len) = decode(rest)?;
        rest = rest.get(len * UNIT..)?;
        Some(action)
    })
}

/// Runs a validated list. On an exception, what `packet`, `metadata` and `out` hold is to be thrown away.
pub(crate) fn run(
    units: &[u8],
    packet: &mut Packet,
    metadata: &mut u32,
    mut meter: impl FnMut(u32, usize) -> bool,
    out: &mut Vec<Output>,
) -> Result<End, Exception> {
    for action in list(units) {
        match action {
            Action::Output { port, max_len } => {
                let len = match max_len {
                    0 => packet.data.len(),
                    n => packet.data.len().min(n as usize),
                };
                out.push((port, packet.data[..len].to_vec()));
            }
            Action::SetField { field, value, mask } => set_field(packet, field, value, mask)?,
            Action::PushVlan(tag) => packet.push_vlan(tag)?,
            Action::PopVlan => packet.pop_vlan(),
            Action::DecTtl => packet.dec_ttl()?,
            Action::Meter(id) => {
                if !meter(id, packet.data.len()) {
                    return Ok(End::Done);
                }
            }
            Action::Trap => return Ok(End::Trap),
            Action::SetMetadata { value, mask } => *metadata = *metadata & !mask | value,
            Action::Goto(stage) => return Ok(End::Goto(stage)),
            Action::VxlanEncap(template) => packet.encap(template)?,
            Action::VxlanDecap => packet.decap()?,
        }
    }
    Ok(End::Done)
}

impl Packet {
    fn encap(&mut self, template: &[u8]) -> Result<(), Exception> {
        let hash = || flow_hash(self.port, &self.data);
        self.data = vxlan::encap(&self.data, template, hash).ok_or(Exception)?;
        Ok(())
    }

    fn decap(&mut self) -> Result<(), Exception> {
        let h = self.headers;
        if h.l3 != L3::Ipv4 || h.l4 != L4::Udp {
            return Err(Exception);
        }
        let (inner, tunnel) = vxlan::decap(&self.data, h.l3_at, h.ip_end).ok_or(Exception)?;
        self.data.truncate(inner.end);
        self.data.drain(..inner.start);
        self.tunnel = tunnel;
        Ok(())
    }

    fn push_vlan(&mut self, tag: [u8; 4]) -> Result<(), Exception> {
        if self.data.len() + 4 > MAX_FRAME {
            return Err(Exception);
        }
        self.data.splice(12..12, tag);
        let h = &mut self.headers;
        for at in [&mut h.l3_at, &mut h.l4_at, &mut h.ip_end] {
            *at += 4;
        }
        Ok(())
    }

    fn pop_vlan(&mut self) {
        // A tag needs its four bytes and the type behind it.
        if self.data.len() < 18 || !matches!(be16(&self.data, 12), 0x8100 | 0x88a8) {
            return;
        }
        self.data.drain(12..16);
        let h = &mut self.headers;
        for at in [&mut h.l3_at, &mut h.l4_at, &mut h.ip_end] {
            *at = at.saturating_sub(4);
        }
    }

    fn dec_ttl(&mut self) -> Result<(), Exception> {
        let at = match self.headers.l3 {
            L3::Ipv4 => self.headers.l3_at + 8,
            L3::Ipv6 => self.headers.l3_at + 7,
            L3::None => return Err(Exception),
        };
        match self.data.get(at) {
            Some(&ttl) if ttl > 1 => set_field(self, Field::IpTtl, &[ttl - 1], &[0xff]),
            _ => Err(Exception),
        }
    }

    /// Offset of the transport checksum that covers the pseudo header, if there is one and it is in use.
    fn transport_checksum(&self) -> Option<usize> {
        let l4 = self.headers.l4_at;
        match self.headers.l4 {
            L4::Tcp => Some(l4 + 16),
            // 0 on UDP says that there is no checksum.
            L4::Udp => Some(l4 + 6).filter(|&at| be16(&self.data, at) != 0),
            L4::Icmpv6 => Some(l4 + 2),
            L4::None | L4::Sctp | L4::Icmp => None,
        }
    }

    fn fix_checksum(&mut self, at: usize, old: &[u8], new: &[u8], udp: bool) {
        let mut c = update(be16(&self.data, at), old, new);
        if udp && c == 0 {
            c = 0xffff;
        }
        put(&mut self.data, at, &c.to_be_bytes());
    }

    /// CRC32C of the IP payload with the SCTP checksum field as zero.
    fn sctp_crc(&self) -> u32 {
        let end = self.headers.ip_end.min(self.data.len());
        let p = self.data.get(self.headers.l4_at..end).unwrap_or(&[]);
        let (head, tail) = p.split_at(p.len().min(8));
        Crc32c::new().update(head).update(&[0; 4]).update(tail.get(4..).unwrap_or(&[])).finish()
    }
}

/// What of the checksums a field is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Covered {
    Nothing,
    /// IPv4 header; the field is the high (even) or low byte of its word.
    Ipv4Byte {
        high: bool,
    },
    /// IPv4 header and pseudo header.
    Ipv4Address,
    /// IPv6 pseudo header.
    Ipv6Address,
    Port,
}

fn set_field(p: &mut Packet, field: Field, value: &[u8], mask: &[u8]) -> Result<(), Exception> {
    let h = p.headers;
    let (l3, l4) = (h.l3_at, h.l4_at);
    let (at, covered) = match (field, h.l3) {
        (Field::EthDst, _) => (0, Covered::Nothing),
        (Field::EthSrc, _) => (6, Covered::Nothing),
        (Field::IpTos, L3::Ipv4) => (l3 + 1, Covered::Ipv4Byte { high: false }),
        (Field::IpTos, L3::Ipv6) => return traffic_class(p, value, mask),
        (Field::IpTtl, L3::Ipv4) => (l3 + 8, Covered::Ipv4Byte { high: true }),
        (Field::IpTtl, L3::Ipv6) => (l3 + 7, Covered::Nothing),
        (Field::Ipv4Src, L3::Ipv4) => (l3 + 12, Covered::Ipv4Address),
        (Field::Ipv4Dst, L3::Ipv4) => (l3 + 16, Covered::Ipv4Address),
        (Field::Ipv6Src, L3::Ipv6) => (l3 + 8, Covered::Ipv6Address),
        (Field::Ipv6Dst, L3::Ipv6) => (l3 + 24, Covered::Ipv6Address),
        (Field::Ipv6Label, L3::Ipv6) => (l3, Covered::Nothing),
        (Field::L4Src, _) if matches!(h.l4, L4::Tcp | L4::Udp | L4::Sctp) => (l4, Covered::Port),
        (Field::L4Dst, _) if matches!(h.l4, L4::Tcp | L4::Udp | L4::Sctp) => (l4 + 2, Covered::Port),
        _ => return Err(Exception),
    };
    let n = field.bytes();
    let mut old = [0u8; UNIT];
    old[..n].copy_from_slice(p.data.get(at..at + n).ok_or(Exception)?);
    let mut new = old;
    for ((b, v), m) in new.iter_mut().zip(value).zip(mask) {
        *b = *b & !m | v;
    }
    let (old, new) = (&old[..n], &new[..n]);
    if old == new {
        return Ok(());
    }
    let sctp = (covered == Covered::Port && h.l4 == L4::Sctp).then(|| p.sctp_crc());
    put(&mut p.data, at, new);
    match covered {
        Covered::Nothing => {}
        Covered::Ipv4Byte { high } => {
            let word = |b: u8| if high { [b, 0] } else { [0, b] };
            p.fix_checksum(l3 + 10, &word(old[0]), &word(new[0]), false);
        }
        Covered::Ipv4Address | Covered::Ipv6Address | Covered::Port => {
            if covered == Covered::Ipv4Address {
                p.fix_checksum(l3 + 10, old, new, false);
            }
            if let Some(c) = p.transport_checksum() {
                p.fix_checksum(c, old, new, h.l4 == L4::Udp);
            }
            if let Some(before) = sctp {
                let stored = le32(&p.data, l4 + 8);
                let after = p.sctp_crc();
                put(&mut p.data, l4 + 8, &(stored ^ before ^ after).to_le_bytes());
            }
        }
    }
    Ok(())
}

/// The IPv6 traffic class lies across two bytes, and no checksum covers it.
fn traffic_class(p: &mut Packet, value: &[u8], mask: &[u8]) -> Result<(), Exception> {
    let at = p.headers.l3_at;
    let (&[v], &[m]) = (value, mask) else { return Err(Exception) };
    let first = p.data.get_mut(at..at + 2).ok_or(Exception)?;
    let class = first[0] << 4 | first[1] >> 4;
    let class = class & !m | v;
    first[0] = first[0] & 0xf0 | class >> 4;
    first[1] = first[1] & 0x0f | class << 4;
    Ok(())
}

#[cfg(test)]
mod tests;
