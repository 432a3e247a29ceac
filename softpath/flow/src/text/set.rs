//! The set action: one header, whole or masked, from and to text. The header's fields read and print as in a key.

use super::key_print::{Fields, Hex, Lse};
use super::lexer::{Cursor, Result};
use super::{ErrorKind, key_parse, key_print, nsh, tunnel};
use crate::action::Header;
use crate::attrs::attr;
use crate::key::tun_flags;
use crate::{Action, AttrSet, Key, Match};
use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The header after `set(`, up to the action's closing parenthesis, which is left. Fields that are not named have a
/// zero mask; if every mask is full, it is a set and not a masked set.
pub(super) fn parse(c: &mut Cursor<'_>) -> Result<Action> {
    let from = c.pos();
    let name = c.ident();
    let Some(attr) = key_parse::attr_number(name) else {
        return Err(c.error_at(from, ErrorKind::UnknownAttribute(name.to_owned())));
    };
    c.expect(b'(', "'(' after the attribute's name")?;
    let (mut k, mut m) = (Key::default(), Key::default());
    match attr {
        attr::PRIORITY | attr::SKB_MARK => {
            let ((value, mask), new) = (c.masked_u32()?, attr == attr::PRIORITY);
            c.expect(b')', "')' after the value")?;
            let header = if new { Header::SkbPriority } else { Header::SkbMark };
            return Ok(choose(header(value), header(mask), mask == u32::MAX));
        }
        attr::TUNNEL => {
            let mut attrs = AttrSet::default();
            k.tun_flags = tun_flags::PRESENT.into();
            let start = c.pos();
            tunnel::parse(c, &mut k, &mut m, &mut attrs)?;
            if c.since(start).contains(['/', '+', '-']) {
                return Err(c.error_at(start, ErrorKind::ImpossibleMask("a tunnel is set whole")));
            }
            return Ok(Action::Set(Header::Tunnel(Box::new(k))));
        }
        attr::MPLS => {
            let (mut value, mut mask) = (0, 0);
            c.fields("mpls", |c, name| {
                let (index, max, shift) = match name {
                    "label=" => (0, 0xf_ffff, 12),
                    "tc=" => (1, 7, 9),
                    "ttl=" => (2, 0xff, 0),
                    "bos=" => (3, 1, 8),
                    _ => return Ok(None),
                };
                let (v, m) = c.masked("an MPLS field", max)?;
                value |= (v as u32) << shift;
                mask |= (m as u32) << shift;
                Ok(Some(index))
            })?;
            return Ok(choose(Header::Mpls(value), Header::Mpls(mask), mask == u32::MAX));
        }
        attr::NSH => {
            nsh::parse_key(c, &mut k, &mut m)?;
            if m.nsh_mdtype | m.nsh_np != 0 {
                return Err(c.error_at(from, ErrorKind::CannotSet("mdtype and np of nsh()")));
            }
        }
        attr::ETHERNET
        | attr::IPV4
        | attr::IPV6
        | attr::TCP
        | attr::UDP
        | attr::SCTP
        | attr::ICMP
        | attr::ICMPV6
        | attr::ARP
        | attr::ND => key_parse::headers(c, &mut k, &mut m, attr)?,
        _ => return Err(c.error_at(from, ErrorKind::CannotSet(attr::NAMES[usize::from(attr)]))),
    }
    match (from_key(attr, &k), from_key(attr, &m)) {
        (Some(value), Some(mask)) => {
            let full = mask == full_mask(&mask);
            Ok(choose(value, mask, full))
        }
        _ => Err(c.error_at(from, ErrorKind::CannotSet(attr::NAMES[usize::from(attr)]))),
    }
}

fn choose(value: Header, mask: Header, full: bool) -> Action {
    if full { Action::Set(value) } else { Action::SetMasked { value, mask } }
}

/// The header that an attribute's fields in `k` make. The address of a tunnel and of metadata is not among them.
fn from_key(attr: u8, k: &Key) -> Option<Header> {
    let (src, dst) = (k.tp_src.get(), k.tp_dst.get());
    Some(match attr {
        attr::ETHERNET => Header::Ethernet { src: k.eth_src, dst: k.eth_dst },
        attr::IPV4 => Header::Ipv4 {
            src: Ipv4Addr::from(k.ipv4_src.get()),
            dst: Ipv4Addr::from(k.ipv4_dst.get()),
            proto: k.ip_proto,
            tos: k.ip_tos,
            ttl: k.ip_ttl,
            frag: k.ip_frag,
        },
        attr::IPV6 => Header::Ipv6 {
            src: Ipv6Addr::from(k.ipv6_src),
            dst: Ipv6Addr::from(k.ipv6_dst),
            label: k.ipv6_label.get(),
            proto: k.ip_proto,
            tclass: k.ip_tos,
            hlimit: k.ip_ttl,
            frag: k.ip_frag,
        },
        attr::TCP => Header::Tcp { src, dst },
        attr::UDP => Header::Udp { src, dst },
        attr::SCTP => Header::Sctp { src, dst },
        attr::ICMP => Header::Icmp { ty: src as u8, code: dst as u8 },
        attr::ICMPV6 => Header::Icmpv6 { ty: src as u8, code: dst as u8 },
        attr::ARP => Header::Arp {
            sip: Ipv4Addr::from(k.ipv4_src.get()),
            tip: Ipv4Addr::from(k.ipv4_dst.get()),
            op: k.ip_proto.into(),
            sha: k.arp_sha,
            tha: k.arp_tha,
        },
        attr::ND => Header::Nd { target: Ipv6Addr::from(k.nd_target), sll: k.arp_sha, tll: k.arp_tha },
        attr::NSH => {
            let context = k.nsh_context.map(|word| word.get());
            Header::Nsh {
                flags: k.nsh_flags,
                ttl: k.nsh_ttl,
                path_hdr: k.nsh_path_hdr.get(),
                context: (context != [0; 4]).then_some(context),
            }
        }
        _ => return None,
    })
}

/// The mask that covers every field of this kind of header.
fn full_mask(header: &Header) -> Header {
    const V4: Ipv4Addr = Ipv4Addr::BROADCAST;
    const V6: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);
    const MAC: [u8; 6] = [0xff; 6];
    const B: u8 = u8::MAX;
    const W: u16 = u16::MAX;
    match header {
        Header::SkbPriority(_) => Header::SkbPriority(u32::MAX),
        Header::SkbMark(_) => Header::SkbMark(u32::MAX),
        Header::Ethernet { .. } => Header::Ethernet { src: MAC, dst: MAC },
        Header::Ipv4 { .. } => Header::Ipv4 { src: V4, dst: V4, proto: B, tos: B, ttl: B, frag: B },
        Header::Ipv6 { .. } => {
            Header::Ipv6 { src: V6, dst: V6, label: 0xf_ffff, proto: B, tclass: B, hlimit: B, frag: B }
        }
        Header::Tcp { .. } => Header::Tcp { src: W, dst: W },
        Header::Udp { .. } => Header::Udp { src: W, dst: W },
        Header::Sctp { .. } => Header::Sctp { src: W, dst: W },
        Header::Icmp { .. } => Header::Icmp { ty: B, code: B },
        Header::Icmpv6 { .. } => Header::Icmpv6 { ty: B, code: B },
        // A key holds the low 8 bits of the operation.
        Header::Arp { .. } => Header::Arp { sip: V4, tip: V4, op: B.into(), sha: MAC, tha: MAC },
        Header::Nd { .. } => Header::Nd { target: V6, sll: MAC, tll: MAC },
        Header::Mpls(_) => Header::Mpls(u32::MAX),
        Header::Tunnel(key) => {
            let tunnel = 1 << attr::TUNNEL;
            Header::Tunnel(Box::new(Match::exact_in(key, AttrSet([tunnel, 0, 0])).mask.0))
        }
        Header::Nsh { .. } => {
            Header::Nsh { flags: B, ttl: B, path_hdr: u32::MAX, context: Some([u32::MAX; 4]) }
        }
    }
}

/// The header's attribute and its fields as they stand in a key.
fn to_key(header: &Header) -> (u8, Key) {
    let mut k = Key::default();
    let ports = |k: &mut Key, src: u16, dst: u16| (k.tp_src, k.tp_dst) = (src.into(), dst.into());
    let attr = match header {
        Header::SkbPriority(v) => {
            k.skb_priority = *v;
            attr::PRIORITY
        }
        Header::SkbMark(v) => {
            k.skb_mark = *v;
            attr::SKB_MARK
        }
        Header::Ethernet { src, dst } => {
            (k.eth_src, k.eth_dst) = (*src, *dst);
            attr::ETHERNET
        }
        Header::Ipv4 { src, dst, proto, tos, ttl, frag } => {
            (k.ipv4_src, k.ipv4_dst) = (u32::from(*src).into(), u32::from(*dst).into());
            (k.ip_proto, k.ip_tos, k.ip_ttl, k.ip_frag) = (*proto, *tos, *ttl, *frag);
            attr::IPV4
        }
        Header::Ipv6 { src, dst, label, proto, tclass, hlimit, frag } => {
            (k.ipv6_src, k.ipv6_dst, k.ipv6_label) = (src.octets(), dst.octets(), (*label).into());
            (k.ip_proto, k.ip_tos, k.ip_ttl, k.ip_frag) = (*proto, *tclass, *hlimit, *frag);
            attr::IPV6
        }
        Header::Tcp { src, dst } => {
            ports(&mut k, *src, *dst);
            attr::TCP
        }
        Header::Udp { src, dst } => {
            ports(&mut k, *src, *dst);
            attr::UDP
        }
        Header::Sctp { src, dst } => {
            ports(&mut k, *src, *dst);
            attr::SCTP
        }
        Header::Icmp { ty, code } => {
            ports(&mut k, (*ty).into(), (*code).into());
            attr::ICMP
        }
        Header::Icmpv6 { ty, code } => {
            ports(&mut k, (*ty).into(), (*code).into());
            attr::ICMPV6
        }
        Header::Arp { sip, tip, op, sha, tha } => {
            (k.ipv4_src, k.ipv4_dst) = (u32::from(*sip).into(), u32::from(*tip).into());
            (k.ip_proto, k.arp_sha, k.arp_tha) = (*op as u8, *sha, *tha);
            attr::ARP
        }
        Header::Nd { target, sll, tll } => {
            (k.nd_target, k.arp_sha, k.arp_tha) = (target.octets(), *sll, *tll);
            attr::ND
        }
        Header::Mpls(lse) => {
            k.mpls[0] = (*lse).into();
            attr::MPLS
        }
        Header::Tunnel(key) => return (attr::TUNNEL, Key::clone(key)),
        Header::Nsh { flags, ttl, path_hdr, context } => {
            (k.nsh_flags, k.nsh_ttl, k.nsh_path_hdr) = (*flags, *ttl, (*path_hdr).into());
            k.nsh_context = context.unwrap_or_default().map(Into::into);
            attr::NSH
        }
    };
    (attr, k)
}

/// `set(...)` of a whole header, or of the bits in `mask`.
pub(super) fn print(w: &mut dyn Write, value: &Header, mask: Option<&Header>) -> fmt::Result {
    let full = full_mask(value);
    let ((attr, k), (_, m)) = (to_key(value), to_key(mask.unwrap_or(&full)));
    write!(w, "set({}(", attr::NAMES[usize::from(attr)])?;
    // A whole header shows every field; a masked one only those that change.
    let verbose = mask.is_none();
    match attr {
        attr::PRIORITY => masked_word(w, k.skb_priority, m.skb_priority)?,
        attr::SKB_MARK => masked_word(w, k.skb_mark, m.skb_mark)?,
        attr::TUNNEL => tunnel::print(w, &k, &m, &AttrSet::of(&k), true, false)?,
        attr::MPLS if verbose => Lse(k.mpls[0].get()).print(w)?,
        attr::MPLS => Lse(k.mpls[0].get()).print_masked(w, &Lse(m.mpls[0].get()))?,
        attr::NSH => nsh::print_key(w, &k, &m)?,
        _ => key_print::print_headers(&mut Fields::new(w, verbose), attr, &k, &m)?,
    }
    w.write_str("))")
}

fn masked_word(w: &mut dyn Write, value: u32, mask: u32) -> fmt::Result {
    write!(w, "{}", Hex(value))?;
    if mask == u32::MAX { Ok(()) } else { write!(w, "/{}", Hex(mask)) }
}
