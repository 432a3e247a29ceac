//! Sets of named bits, as in `ct_state(+trk-new)`, `tcp_flags(syn|ack)` and `flags(df|key)`.

use super::ErrorKind;
use super::lexer::{Cursor, Result};
use std::fmt::{self, Write};

/// Names of bits, lowest bit first; an empty name is a bit without one.
pub(super) struct FlagNames {
    names: &'static [&'static str],
    /// Bits that a text may name.
    pub(super) allowed: u32,
    what: &'static str,
}

/// `TCP_*` of the TCP header.
pub(super) const TCP: FlagNames = FlagNames {
    names: &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"],
    allowed: 0xfff,
    what: "TCP flags",
};

/// `OVS_CS_F_*`.
pub(super) const CT_STATE: FlagNames = FlagNames {
    names: &["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"],
    allowed: 0xff,
    what: "connection state flags",
};

/// `FLOW_TNL_F_*` of OVS's user space.
pub(super) const TUNNEL: FlagNames =
    FlagNames { names: &["oam", "df", "csum", "key"], allowed: 0xf, what: "tunnel flags" };

/// `SLOW_*` reasons of ofproto-dpif.
pub(super) const SLOW_PATH: FlagNames = FlagNames {
    names: &["cfm", "bfd", "lacp", "stp", "lldp", "action", "match"],
    allowed: 0x7f,
    what: "slow path reasons",
};

impl FlagNames {
    fn name(&self, bit: u32) -> Option<&'static str> {
        self.names.get(bit.trailing_zeros() as usize).copied().filter(|name| !name.is_empty())
    }

    /// One name at the cursor, as its bit.
    fn parse_name(&self, c: &mut Cursor<'_>) -> Result<u32> {
        let from = c.pos();
        let word = c.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'[' | b']'));
        match self.names.iter().position(|name| !name.is_empty() && *name == word) {
            Some(i) => Ok(1 << i),
            None => Err(c.error_at(from, ErrorKind::Expected(self.what))),
        }
    }

    fn check(&self, c: &Cursor<'_>, from: usize, bits: u64) -> Result<u32> {
        if bits & !u64::from(self.allowed) != 0 {
            return Err(c.error_at(from, ErrorKind::OutOfRange { what: self.what, max: self.allowed.into() }));
        }
        Ok(bits as u32)
    }

    /// Flags up to a closing parenthesis, which is left, and their mask: `+a-b`, `a|b` or `0x3/0x3`. `exact` is the
    /// mask of flags that stand without one.
    pub(super) fn parse_masked(&self, c: &mut Cursor<'_>, exact: u32) -> Result<(u32, u32)> {
        if matches!(c.peek(), Some(b'+' | b'-')) {
            let (mut flags, mut mask) = (0, 0);
            while matches!(c.peek(), Some(b'+' | b'-')) {
                let from = c.pos();
                let set = c.eat(b'+') || !c.eat(b'-');
                let bit = self.parse_name(c)?;
                if mask & bit != 0 {
                    let name = self.name(bit).unwrap_or_default().to_owned();
                    return Err(c.error_at(from, ErrorKind::DuplicateField { within: self.what, name }));
                }
                mask |= bit;
                flags |= if set { bit } else { 0 };
            }
            return Ok((flags, mask));
        }
        let from = c.pos();
        if c.peek().is_some_and(|b| b.is_ascii_digit()) {
            let flags = c.number(self.what, u64::from(u32::MAX))?;
            let flags = self.check(c, from, flags)?;
            if c.eat(b'/') {
                let from = c.pos();
                let mask = c.number(self.what, u64::from(u32::MAX))?;
                // A full mask may be written in full, though it has more bits than there are flags.
                let mask = if mask == exact.into() { exact } else { self.check(c, from, mask)? };
                return Ok((flags, mask));
            }
            c.set_pos(from);
        }
        Ok((self.parse_list(c, b'|')?, exact))
    }

    /// Names or numbers, separated by `separator`, up to a closing parenthesis, which is left.
    pub(super) fn parse_list(&self, c: &mut Cursor<'_>, separator: u8) -> Result<u32> {
        let mut flags = 0;
        loop {
            let from = c.pos();
            flags |= if c.peek().is_some_and(|b| b.is_ascii_digit()) {
                let bits = c.number(self.what, u64::from(u32::MAX))?;
                self.check(c, from, bits)?
            } else {
                self.parse_name(c)?
            };
            if !c.eat(separator) {
                return Ok(flags);
            }
        }
    }

    /// `a|b`, with bits that have no name as one number at the end; `0` without any.
    pub(super) fn print_list(&self, w: &mut dyn Write, flags: u32, separator: char) -> fmt::Result {
        if flags == 0 {
            return w.write_char('0');
        }
        let mut first = true;
        let mut unnamed = 0;
        for bit in (0..32).map(|i| 1u32 << i).filter(|bit| flags & bit != 0) {
            let Some(name) = self.name(bit) else {
                unnamed |= bit;
                continue;
            };
            if !std::mem::take(&mut first) {
                w.write_char(separator)?;
            }
            w.write_str(name)?;
        }
        if unnamed != 0 {
            if !first {
                w.write_char(separator)?;
            }
            write!(w, "{unnamed:#x}")?;
        }
        Ok(())
    }

    /// `a|b` if the mask is `exact`, else `+a-b`.
    pub(super) fn print_masked(&self, w: &mut dyn Write, flags: u32, mask: u32, exact: u32) -> fmt::Result {
        if mask == exact {
            return self.print_list(w, flags, '|');
        }
        if mask == 0 {
            return w.write_str("0/0");
        }
        for bit in (0..32).map(|i| 1u32 << i).filter(|bit| mask & bit != 0) {
            w.write_char(if flags & bit != 0 { '+' } else { '-' })?;
            w.write_str(self.name(bit).unwrap_or("[Unknown]"))?;
        }
        Ok(())
    }
}
