//! The headers of SET and SET_MASKED: one attribute of the key, whole or followed by its mask.

use super::{ActionAttrError, Args, arg, attr};
use crate::key::{attr as key, decode_tunnel, encode_tunnel_as};
use crate::nla::{Writer, attrs};
use flowlift_flow::{Action, Header, Key};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Reads SET.
pub(super) fn decode_set(payload: &[u8]) -> Result<Action, ActionAttrError> {
    let action = attr::SET;
    let (kind, payload) = only_attr(action, payload)?;
    let header = match kind {
        key::TUNNEL => {
            let mut tunnel = Key::default();
            decode_tunnel(payload, &mut tunnel).map_err(|source| ActionAttrError::Key { action, source })?;
            Header::Tunnel(Box::new(tunnel))
        }
        key::NSH => {
            let args = Args::<3>::parse(action, payload)?;
            let base = args.fixed(arg::NSH_BASE)?;
            let base = base.ok_or(ActionAttrError::Missing { action, arg: arg::NSH_BASE })?;
            nsh(base, args.fixed(arg::NSH_MD1)?)
        }
        _ => from_payload(action, kind, payload)?,
    };
    Ok(Action::Set(header))
}

/// Reads SET_MASKED: the payload is the value and then the mask. The attributes within NSH are so themselves.
pub(super) fn decode_set_masked(payload: &[u8]) -> Result<Action, ActionAttrError> {
    let action = attr::SET_MASKED;
    let (kind, payload) = only_attr(action, payload)?;
    if kind == key::NSH {
        let args = Args::<3>::parse(action, payload)?;
        let base = args.fixed::<16>(arg::NSH_BASE)?;
        let base = base.ok_or(ActionAttrError::Missing { action, arg: arg::NSH_BASE })?;
        let md1 = args.fixed::<32>(arg::NSH_MD1)?;
        let (value, mask) = halves(&base);
        let (md1_value, md1_mask) = md1.as_ref().map(halves).unzip();
        return Ok(Action::SetMasked { value: nsh(value, md1_value), mask: nsh(mask, md1_mask) });
    }
    let (value, mask) = payload.split_at(payload.len() / 2);
    let (value, mask) = (from_payload(action, kind, value)?, from_payload(action, kind, mask)?);
    Ok(Action::SetMasked { value, mask })
}

/// The two halves of `2 * N` bytes.
fn halves<const N: usize, const TWICE: usize>(bytes: &[u8; TWICE]) -> ([u8; N], [u8; N]) {
    const { assert!(TWICE == 2 * N) };
    let (mut value, mut mask) = ([0; N], [0; N]);
    value.copy_from_slice(&bytes[..N]);
    mask.copy_from_slice(&bytes[N..]);
    (value, mask)
}

/// The one attribute of the key in a set action, or in push_nsh.
pub(super) fn only_attr(action: u16, payload: &[u8]) -> Result<(u8, &[u8]), ActionAttrError> {
    let mut all = attrs(payload);
    let first = all.next().transpose()?.ok_or(ActionAttrError::Missing { action, arg: 1 })?;
    if let Some(second) = all.next() {
        return Err(ActionAttrError::NotSettable { action, key: second?.kind });
    }
    match u8::try_from(first.kind) {
        Ok(kind) => Ok((kind, first.payload)),
        Err(_) => Err(ActionAttrError::NotSettable { action, key: first.kind }),
    }
}

/// Reads a header other than TUNNEL and NSH, or a mask for it.
fn from_payload(action: u16, kind: u8, p: &[u8]) -> Result<Header, ActionAttrError> {
    let mut r = Reader { rest: p };
    let header = match kind {
        key::PRIORITY => Header::SkbPriority(u32::from_ne_bytes(r.take())),
        key::SKB_MARK => Header::SkbMark(u32::from_ne_bytes(r.take())),
        key::ETHERNET => Header::Ethernet { src: r.take(), dst: r.take() },
        key::IPV4 => Header::Ipv4 {
            src: r.ipv4(),
            dst: r.ipv4(),
            proto: r.byte(),
            tos: r.byte(),
            ttl: r.byte(),
            frag: r.byte(),
        },
        key::IPV6 => Header::Ipv6 {
            src: r.ipv6(),
            dst: r.ipv6(),
            label: u32::from_be_bytes(r.take()),
            proto: r.byte(),
            tclass: r.byte(),
            hlimit: r.byte(),
            frag: r.byte(),
        },
        key::TCP => Header::Tcp { src: r.port(), dst: r.port() },
        key::UDP => Header::Udp { src: r.port(), dst: r.port() },
        key::SCTP => Header::Sctp { src: r.port(), dst: r.port() },
        key::ICMP => Header::Icmp { ty: r.byte(), code: r.byte() },
        key::ICMPV6 => Header::Icmpv6 { ty: r.byte(), code: r.byte() },
        key::ARP => {
            let header =
                Header::Arp { sip: r.ipv4(), tip: r.ipv4(), op: r.port(), sha: r.take(), tha: r.take() };
            let _padding: [u8; 2] = r.take();
            header
        }
        key::ND => Header::Nd { target: r.ipv6(), sll: r.take(), tll: r.take() },
        key::MPLS => Header::Mpls(u32::from_be_bytes(r.take())),
        _ => return Err(ActionAttrError::NotSettable { action, key: kind.into() }),
    };
    let expected = encoded(&header).1.len();
    if p.len() == expected {
        Ok(header)
    } else {
        Err(ActionAttrError::Length { action, expected, actual: p.len() })
    }
}

/// Takes bytes off the front; zeros when none are left.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk() {
            Some((&first, rest)) => {
                self.rest = rest;
                first
            }
            None => [0; N],
        }
    }

    fn byte(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }

    fn port(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn ipv4(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(self.take::<4>())
    }

    fn ipv6(&mut self) -> Ipv6Addr {
        Ipv6Addr::from(self.take::<16>())
    }
}

fn nsh(base: [u8; 8], md1: Option<[u8; 16]>) -> Header {
    let [flags, ttl, _, _, p0, p1, p2, p3] = base;
    let context = md1.map(|words| {
        let mut context = [0; 4];
        for (to, from) in context.iter_mut().zip(words.as_chunks().0) {
            *to = u32::from_be_bytes(*from);
        }
        context
    });
    Header::Nsh { flags, ttl, path_hdr: u32::from_be_bytes([p0, p1, p2, p3]), context }
}

/// Writes SET.
pub(super) fn encode_set(value: &Header, w: &mut Writer<'_>) {
    let start = w.begin(attr::SET);
    match value {
        Header::Tunnel(tunnel) => encode_tunnel_as(key::TUNNEL.into(), tunnel, w),
        Header::Nsh { .. } => put_nsh(&[value], w),
        _ => {
            let (kind, payload) = encoded(value);
            w.put(kind, &payload);
        }
    }
    w.end(start);
}

/// Writes SET_MASKED. A tunnel is never masked (U8), so only its value is written, for a reader to refuse.
pub(super) fn encode_set_masked(value: &Header, mask: &Header, w: &mut Writer<'_>) {
    let start = w.begin(attr::SET_MASKED);
    match value {
        Header::Tunnel(tunnel) => encode_tunnel_as(key::TUNNEL.into(), tunnel, w),
        Header::Nsh { .. } => put_nsh(&[value, mask], w),
        _ => {
            let (kind, payload) = encoded(value);
            w.put(kind, &[payload, encoded(mask).1].concat());
        }
    }
    w.end(start);
}

/// NSH with the given parts one behind the other in each of its attributes. A header does not keep metadata type and next
/// protocol, which cannot be set: the type follows from the context headers, and the rest is zero.
fn put_nsh(parts: &[&Header], w: &mut Writer<'_>) {
    let (mut base, mut md1) = (Vec::with_capacity(16), Vec::with_capacity(32));
    for (i, part) in parts.iter().enumerate() {
        let Header::Nsh { flags, ttl, path_hdr, context } = part else { continue };
        let mdtype = u8::from(parts.len() == 1 && i == 0 && context.is_some());
        base.extend_from_slice(&[*flags, *ttl, mdtype, 0]);
        base.extend_from_slice(&path_hdr.to_be_bytes());
        md1.extend(context.iter().flatten().flat_map(|word| word.to_be_bytes()));
    }
    let start = w.begin(key::NSH);
    w.put(arg::NSH_BASE, &base);
    if !md1.is_empty() {
        w.put(arg::NSH_MD1, &md1);
    }
    w.end(start);
}

/// The attribute of a header other than TUNNEL and NSH, which have none of fixed length.
fn encoded(header: &Header) -> (u8, Vec<u8>) {
    let ports = |src: u16, dst: u16| [src.to_be_bytes(), dst.to_be_bytes()].concat();
    match header {
        Header::SkbPriority(v) => (key::PRIORITY, v.to_ne_bytes().to_vec()),
        Header::SkbMark(v) => (key::SKB_MARK, v.to_ne_bytes().to_vec()),
        Header::Ethernet { src, dst } => (key::ETHERNET, [*src, *dst].concat()),
        Header::Ipv4 { src, dst, proto, tos, ttl, frag } => {
            (key::IPV4, [src.octets(), dst.octets(), [*proto, *tos, *ttl, *frag]].concat())
        }
        Header::Ipv6 { src, dst, label, proto, tclass, hlimit, frag } => {
            let mut payload = [src.octets(), dst.octets()].concat();
            payload.extend_from_slice(&label.to_be_bytes());
            payload.extend_from_slice(&[*proto, *tclass, *hlimit, *frag]);
            (key::IPV6, payload)
        }
        Header::Tcp { src, dst } => (key::TCP, ports(*src, *dst)),
        Header::Udp { src, dst } => (key::UDP, ports(*src, *dst)),
        Header::Sctp { src, dst } => (key::SCTP, ports(*src, *dst)),
        Header::Icmp { ty, code } => (key::ICMP, vec![*ty, *code]),
        Header::Icmpv6 { ty, code } => (key::ICMPV6, vec![*ty, *code]),
        Header::Arp { sip, tip, op, sha, tha } => {
            let mut payload = [sip.octets(), tip.octets()].concat();
            payload.extend_from_slice(&op.to_be_bytes());
            payload.extend_from_slice(&[*sha, *tha].concat());
            payload.extend_from_slice(&[0, 0]);
            (key::ARP, payload)
        }
        Header::Nd { target, sll, tll } => {
            let mut payload = target.octets().to_vec();
            payload.extend_from_slice(&[*sll, *tll].concat());
            (key::ND, payload)
        }
        Header::Mpls(lse) => (key::MPLS, lse.to_be_bytes().to_vec()),
        Header::Tunnel(_) => (key::TUNNEL, Vec::new()),
        Header::Nsh { .. } => (key::NSH, Vec::new()),
    }
}
