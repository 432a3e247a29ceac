//! The set action: one header, whole or masked, from and to text. The header's fields read and print as in a key.

use super::key_print::{Fields, Hex, Lse};
use super::lexer::{Cursor, Result};
use super::{ErrorKind, key_parse, key_print, nsh, tunnel};
use crate::action::Header;
use crate::attrs::attr;
use crate::key::tun_flags;
use crate::{Action, AttrSet, Key};
use std::fmt::{self, Write};

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
    match (Header::from_key(attr, &k), Header::from_key(attr, &m)) {
        (Some(value), Some(mut mask)) => {
            // A key holds the low 8 bits of an ARP operation, whose high bits a set clears.
            if let Header::Arp { op, .. } = &mut mask
                && *op == 0xff
            {
                *op = u16::MAX;
            }
            let full = mask == mask.full_mask();
            Ok(choose(value, mask, full))
        }
        _ => Err(c.error_at(from, ErrorKind::CannotSet(attr::NAMES[usize::from(attr)]))),
    }
}

fn choose(value: Header, mask: Header, full: bool) -> Action {
    if full { Action::Set(value) } else { Action::SetMasked { value, mask } }
}

/// `set(...)` of a whole header, or of the bits in `mask`.
pub(super) fn print(w: &mut dyn Write, value: &Header, mask: Option<&Header>) -> fmt::Result {
    let full = value.full_mask();
    let ((attr, k), (_, m)) = (value.to_key(), mask.unwrap_or(&full).to_key());
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
