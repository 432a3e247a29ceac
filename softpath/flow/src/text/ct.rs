//! The ct action and its nat argument.

use super::ErrorKind;
use super::key_parse::masked_u128;
use super::key_print::{Hex, Ipv6Text, print_u128};
use super::lexer::{Cursor, Result};
use crate::action::{Ct, Nat, NatDirection};
use std::fmt::{self, Write};
use std::net::IpAddr;

/// Most bytes of a helper's name, and of a timeout policy's.
const HELPER_MAX: usize = 15;
const TIMEOUT_MAX: usize = 31;

/// Arguments after `ct(`, with the closing parenthesis.
pub(super) fn parse(c: &mut Cursor<'_>) -> Result<Ct> {
    let mut ct = Ct::default();
    let mut seen = 0u16;
    loop {
        c.skip_delimiters();
        if c.eat(b')') {
            break;
        }
        let from = c.pos();
        let name = c.ident();
        let index = match name {
            "commit" => {
                ct.commit = true;
                0
            }
            "force_commit" => {
                ct.force_commit = true;
                1
            }
            "zone" => {
                c.expect(b'=', "'=' after zone")?;
                ct.zone = c.u16()?;
                2
            }
            "mark" => {
                c.expect(b'=', "'=' after mark")?;
                ct.mark = Some(c.masked_u32()?);
                3
            }
            "label" => {
                c.expect(b'=', "'=' after label")?;
                ct.label = Some(masked_u128(c)?);
                4
            }
            "helper" => {
                ct.helper = Some(word(c, "a helper", HELPER_MAX)?);
                5
            }
            "timeout" => {
                ct.timeout = Some(word(c, "a timeout policy", TIMEOUT_MAX)?);
                6
            }
            "nat" => {
                ct.nat = Some(if c.eat(b'(') { parse_nat(c)? } else { Nat::default() });
                7
            }
            "" => return Err(c.expected("an argument of ct or ')'")),
            _ => {
                return Err(c.error_at(from, ErrorKind::UnknownField { within: "ct", name: name.to_owned() }));
            }
        };
        if seen & 1 << index != 0 {
            return Err(c.error_at(from, ErrorKind::DuplicateField { within: "ct", name: name.to_owned() }));
        }
        seen |= 1 << index;
    }
    if ct.commit && ct.force_commit {
        return Err(c.error(ErrorKind::Expected("either commit or force_commit")));
    }
    Ok(ct)
}

fn word(c: &mut Cursor<'_>, what: &'static str, max: usize) -> Result<String> {
    c.expect(b'=', "'=' and a name")?;
    let from = c.pos();
    let word = c.take_while(|b| b.is_ascii_graphic() && !matches!(b, b',' | b')'));
    match word.len() {
        0 => Err(c.expected(what)),
        n if n > max => Err(c.error_at(from, ErrorKind::TooLong { what, max })),
        _ => Ok(word.to_owned()),
    }
}

/// Arguments after `nat(`, with the closing parenthesis.
fn parse_nat(c: &mut Cursor<'_>) -> Result<Nat> {
    let mut nat = Nat::default();
    let start = c.pos();
    loop {
        c.skip_delimiters();
        if c.eat(b')') {
            break;
        }
        let from = c.pos();
        let name = c.ident();
        let twice = match name {
            "src" | "dst" => {
                let direction = if name == "src" { NatDirection::Src } else { NatDirection::Dst };
                let twice = nat.direction.replace(direction).is_some();
                if c.eat(b'=') {
                    parse_range(c, &mut nat)?;
                }
                twice
            }
            "persistent" => std::mem::replace(&mut nat.persistent, true),
            "hash" => std::mem::replace(&mut nat.hash, true),
            "random" => std::mem::replace(&mut nat.random, true),
            "" => return Err(c.expected("an argument of nat or ')'")),
            _ => {
                return Err(
                    c.error_at(from, ErrorKind::UnknownField { within: "nat", name: name.to_owned() })
                );
            }
        };
        if twice {
            return Err(c.error_at(from, ErrorKind::DuplicateField { within: "nat", name: name.to_owned() }));
        }
    }
    if nat.direction.is_none() && (nat.persistent || nat.hash || nat.random) {
        return Err(c.error_at(start, ErrorKind::Expected("src or dst with the options of nat")));
    }
    if nat.hash && nat.random {
        return Err(c.error_at(start, ErrorKind::Expected("either hash or random")));
    }
    Ok(nat)
}

/// Addresses and ports: `10.0.0.1-10.0.0.9:1024-65535`; IPv6 with ports stands in brackets.
fn parse_range(c: &mut Cursor<'_>, nat: &mut Nat) -> Result<()> {
    let from = c.pos();
    let first = address(c)?;
    let last = if c.eat(b'-') { address(c)? } else { first };
    if first.is_ipv4() != last.is_ipv4() || last < first {
        return Err(c.error_at(from, ErrorKind::Expected("a range of addresses that ends after its start")));
    }
    nat.addr = Some((first, last));
    if c.eat(b':') {
        let from = c.pos();
        let first = c.u16()?;
        let last = if c.eat(b'-') { c.u16()? } else { first };
        if last < first || first == 0 {
            return Err(c.error_at(from, ErrorKind::Expected("a range of ports that ends after its start")));
        }
        nat.port = Some((first, last));
    }
    Ok(())
}

fn address(c: &mut Cursor<'_>) -> Result<IpAddr> {
    if c.eat(b'[') {
        let ip = c.ipv6()?;
        c.expect(b']', "']' after the address")?;
        return Ok(ip.into());
    }
    let digits = c.rest().iter().take_while(|b| b.is_ascii_digit()).count();
    if c.rest().get(digits) == Some(&b'.') { c.ipv4().map(IpAddr::from) } else { c.ipv6().map(IpAddr::from) }
}

/// The action with its arguments, without parentheses if it has none.
pub(super) fn print(w: &mut dyn Write, ct: &Ct) -> fmt::Result {
    w.write_str("ct")?;
    let mut open = false;
    let mut next =
        |w: &mut dyn Write| w.write_char(if std::mem::replace(&mut open, true) { ',' } else { '(' });
    if ct.commit {
        next(w)?;
        w.write_str("commit")?;
    }
    if ct.force_commit {
        next(w)?;
        w.write_str("force_commit")?;
    }
    if ct.zone != 0 {
        next(w)?;
        write!(w, "zone={}", ct.zone)?;
    }
    if let Some((value, mask)) = ct.mark {
        next(w)?;
        write!(w, "mark={}/{}", Hex(value), Hex(mask))?;
    }
    if let Some((value, mask)) = &ct.label {
        next(w)?;
        w.write_str("label=")?;
        print_u128(w, value, mask)?;
    }
    if let Some(helper) = &ct.helper {
        next(w)?;
        write!(w, "helper={helper}")?;
    }
    if let Some(timeout) = &ct.timeout {
        next(w)?;
        write!(w, "timeout={timeout}")?;
    }
    if let Some(nat) = &ct.nat {
        next(w)?;
        print_nat(w, nat)?;
    }
    if open { w.write_char(')') } else { Ok(()) }
}

fn print_nat(w: &mut dyn Write, nat: &Nat) -> fmt::Result {
    w.write_str("nat")?;
    let Some(direction) = nat.direction else { return Ok(()) };
    w.write_str(match direction {
        NatDirection::Src => "(src",
        NatDirection::Dst => "(dst",
    })?;
    if let Some((first, last)) = nat.addr {
        w.write_char('=')?;
        let brackets = nat.port.is_some();
        print_address(w, first, brackets)?;
        if last != first {
            w.write_char('-')?;
            print_address(w, last, brackets)?;
        }
        if let Some((first, last)) = nat.port {
            write!(w, ":{first}")?;
            if last != first {
                write!(w, "-{last}")?;
            }
        }
    }
    for (set, word) in [(nat.persistent, ",persistent"), (nat.hash, ",hash"), (nat.random, ",random")] {
        if set {
            w.write_str(word)?;
        }
    }
    w.write_char(')')
}

fn print_address(w: &mut dyn Write, ip: IpAddr, brackets: bool) -> fmt::Result {
    match ip {
        IpAddr::V4(ip) => write!(w, "{ip}"),
        IpAddr::V6(ip) if brackets => write!(w, "[{}]", Ipv6Text(ip.octets())),
        IpAddr::V6(ip) => write!(w, "{}", Ipv6Text(ip.octets())),
    }
}
