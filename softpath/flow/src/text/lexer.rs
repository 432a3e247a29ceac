//! A cursor over one line of text: the numbers, addresses and masks that every attribute is made of.
//!
//! One pass over bytes, no allocation unless something is wrong.

use super::{ErrorKind, TextError};
use crate::MacAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) type Result<T> = std::result::Result<T, TextError>;

/// A position in a line. Everything is ASCII but port names and helper names, which are only ever sliced at ASCII
/// delimiters.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, pos: 0 }
    }

    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    pub(super) fn set_pos(&mut self, pos: usize) {
        self.pos = pos;
    }

    pub(super) fn at_end(&self) -> bool {
        self.pos >= self.text.len()
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn peek_at(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.pos + ahead).copied()
    }

    /// What is left of the line, as bytes.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.pos..).unwrap_or_default()
    }

    /// The text from `from` to here; empty if either is within a character.
    pub(super) fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.pos).unwrap_or_default()
    }

    /// What is left of the line, which the cursor skips; empty if the cursor is within a character.
    pub(super) fn take_rest(&mut self) -> &'a str {
        let rest = self.text.get(self.pos..).unwrap_or_default();
        self.pos = self.text.len();
        rest
    }

    pub(super) fn error(&self, kind: ErrorKind) -> TextError {
        self.error_at(self.pos, kind)
    }

    #[cold]
    pub(super) fn error_at(&self, pos: usize, kind: ErrorKind) -> TextError {
        TextError { line: 1, column: u32::try_from(pos).unwrap_or(u32::MAX).saturating_add(1), kind }
    }

    pub(super) fn expected(&self, what: &'static str) -> TextError {
        self.error(ErrorKind::Expected(what))
    }

    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let hit = self.peek() == Some(byte);
        self.pos += usize::from(hit);
        hit
    }

    pub(super) fn eat_str(&mut self, word: &str) -> bool {
        let hit = self.rest().starts_with(word.as_bytes());
        if hit {
            self.pos += word.len();
        }
        hit
    }

    /// `byte`, or an error that expects `what`.
    pub(super) fn expect(&mut self, byte: u8, what: &'static str) -> Result<()> {
        if self.eat(byte) { Ok(()) } else { Err(self.expected(what)) }
    }

    /// As [`Self::expect`], for a word.
    pub(super) fn expect_str(&mut self, word: &'static str) -> Result<()> {
        if self.eat_str(word) { Ok(()) } else { Err(self.expected(word)) }
    }

    /// Skips commas and white space, which OVS takes alike between attributes and actions; true if there was any.
    pub(super) fn skip_delimiters(&mut self) -> bool {
        let from = self.pos;
        while matches!(self.peek(), Some(b',' | b' ' | b'\t' | b'\r' | b'\n')) {
            self.pos += 1;
        }
        self.pos != from
    }

    pub(super) fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a str {
        let from = self.pos;
        while self.peek().is_some_and(&keep) {
            self.pos += 1;
        }
        self.since(from)
    }

    /// A name of lower-case letters, digits, `_` and `-`; may be empty.
    pub(super) fn ident(&mut self) -> &'a str {
        self.take_while(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    }

    /// A field's name with the `=` or `(` that ends it, as in `src=`.
    pub(super) fn field_name(&mut self) -> Result<&'a str> {
        let from = self.pos;
        self.ident();
        if self.pos == from {
            return Err(self.expected("a field name"));
        }
        if !self.eat(b'=') && !self.eat(b'(') {
            return Err(self.expected("'=' after the field's name"));
        }
        Ok(self.since(from))
    }

    fn digits(&mut self, radix: u32, what: &'static str, max: u64, from: usize) -> Result<u64> {
        let mut value = 0u64;
        let first = self.pos;
        while let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(radix)) {
            value = value
                .checked_mul(radix.into())
                .and_then(|v| v.checked_add(digit.into()))
                .filter(|v| *v <= max)
                .ok_or_else(|| self.error_at(from, ErrorKind::OutOfRange { what, max }))?;
            self.pos += 1;
        }
        if self.pos == first { Err(self.expected(what)) } else { Ok(value) }
    }

    /// An unsigned number as C reads it: `0x` is hexadecimal, a leading 0 octal. `what` names it in errors.
    pub(super) fn number(&mut self, what: &'static str, max: u64) -> Result<u64> {
        let from = self.pos;
        if self.peek() == Some(b'0') {
            match self.peek_at(1) {
                Some(b'x' | b'X') => {
                    self.pos += 2;
                    return self.digits(16, what, max, from);
                }
                Some(b'0'..=b'7') => return self.digits(8, what, max, from),
                _ => {}
            }
        }
        self.digits(10, what, max, from)
    }

    /// A decimal number.
    pub(super) fn decimal(&mut self, what: &'static str, max: u64) -> Result<u64> {
        self.digits(10, what, max, self.pos)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.number("an 8-bit number", u8::MAX.into())? as u8)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(self.number("a 16-bit number", u16::MAX.into())? as u16)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(self.number("a 32-bit number", u32::MAX.into())? as u32)
    }

    /// A number of at most `max` (all ones of its width) and its mask; all ones without one.
    pub(super) fn masked(&mut self, what: &'static str, max: u64) -> Result<(u64, u64)> {
        let value = self.number(what, max)?;
        let mask = if self.eat(b'/') { self.number(what, max)? } else { max };
        Ok((value, mask))
    }

    pub(super) fn masked_u8(&mut self) -> Result<(u8, u8)> {
        let (v, m) = self.masked("an 8-bit number", u8::MAX.into())?;
        Ok((v as u8, m as u8))
    }

    pub(super) fn masked_u16(&mut self) -> Result<(u16, u16)> {
        let (v, m) = self.masked("a 16-bit number", u16::MAX.into())?;
        Ok((v as u16, m as u16))
    }

    pub(super) fn masked_u32(&mut self) -> Result<(u32, u32)> {
        let (v, m) = self.masked("a 32-bit number", u32::MAX.into())?;
        Ok((v as u32, m as u32))
    }

    fn one_mac(&mut self) -> Result<MacAddr> {
        let mut mac = [0; 6];
        for (i, byte) in mac.iter_mut().enumerate() {
            if i > 0 {
                self.expect(b':', "':' between the bytes of an Ethernet address")?;
            }
            *byte = self.digits(16, "a byte of an Ethernet address", u8::MAX.into(), self.pos)? as u8;
        }
        Ok(mac)
    }

    pub(super) fn mac(&mut self) -> Result<MacAddr> {
        self.one_mac()
    }

    pub(super) fn masked_mac(&mut self) -> Result<(MacAddr, MacAddr)> {
        let value = self.one_mac()?;
        let mask = if self.eat(b'/') { self.one_mac()? } else { [0xff; 6] };
        Ok((value, mask))
    }

    fn one_ipv4(&mut self) -> Result<u32> {
        let mut ip = 0;
        for i in 0..4 {
            if i > 0 {
                self.expect(b'.', "'.' between the bytes of an IPv4 address")?;
            }
            ip = ip << 8 | self.digits(10, "a byte of an IPv4 address", u8::MAX.into(), self.pos)? as u32;
        }
        Ok(ip)
    }

    pub(super) fn ipv4(&mut self) -> Result<Ipv4Addr> {
        self.one_ipv4().map(Ipv4Addr::from)
    }

    /// A prefix length after `/`, if that is what stands there instead of an address.
    fn prefix(&mut self, bits: u64) -> Result<Option<u64>> {
        let from = self.pos;
        let digits = self.take_while(|b| b.is_ascii_digit()).len();
        let length = (digits > 0 && !matches!(self.peek(), Some(b'.' | b':' | b'a'..=b'f' | b'A'..=b'F')))
            .then(|| self.since(from));
        let Some(length) = length else {
            self.pos = from;
            return Ok(None);
        };
        match length.parse() {
            Ok(n) if n <= bits => Ok(Some(n)),
            _ => Err(self.error_at(from, ErrorKind::ImpossibleMask("a prefix longer than the address"))),
        }
    }

    /// An IPv4 address and its mask, dotted as OVS prints it or as a prefix length.
    pub(super) fn masked_ipv4(&mut self) -> Result<(u32, u32)> {
        let value = self.one_ipv4()?;
        if !self.eat(b'/') {
            return Ok((value, u32::MAX));
        }
        let mask = match self.prefix(32)? {
            Some(n) => u32::MAX.checked_shl(32 - n as u32).unwrap_or(0),
            None => self.one_ipv4()?,
        };
        Ok((value, mask))
    }

    pub(super) fn ipv6(&mut self) -> Result<Ipv6Addr> {
        let from = self.pos;
        let text = self.take_while(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        text.parse().map_err(|_| self.error_at(from, ErrorKind::Expected("an IPv6 address")))
    }

    /// An IPv6 address and its mask, as an address like OVS prints it or as a prefix length.
    pub(super) fn masked_ipv6(&mut self) -> Result<([u8; 16], [u8; 16])> {
        let value = self.ipv6()?.octets();
        if !self.eat(b'/') {
            return Ok((value, [0xff; 16]));
        }
        let mask = match self.prefix(128)? {
            Some(n) => u128::MAX.checked_shl(128 - n as u32).unwrap_or(0).to_be_bytes(),
            None => self.ipv6()?.octets(),
        };
        Ok((value, mask))
    }

    /// A number of up to 128 bits, hexadecimal with `0x` or decimal, right-aligned in `out`.
    pub(super) fn big_number(&mut self, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        if !(self.rest().starts_with(b"0x") || self.rest().starts_with(b"0X")) {
            let value = self.number("a number", u64::MAX)?.to_be_bytes();
            let used = value.iter().position(|b| *b != 0).map_or(0, |i| value.len() - i);
            if used > out.len() {
                let max = u64::MAX >> (64 - 8 * out.len().min(8)).min(63);
                return Err(self.error(ErrorKind::OutOfRange { what: "a number", max }));
            }
            let (from, to) = (value.len() - used, out.len() - used);
            out[to..].copy_from_slice(&value[from..]);
            return Ok(());
        }
        self.pos += 2;
        let from = self.pos;
        let hex = self.take_while(|b| b.is_ascii_hexdigit());
        if hex.is_empty() {
            return Err(self.expected("hexadecimal digits"));
        }
        let hex = hex.trim_start_matches('0').as_bytes();
        if hex.len() > out.len() * 2 {
            return Err(self.error_at(from, ErrorKind::TooLong { what: "a number", max: out.len() }));
        }
        for (i, digit) in hex.iter().rev().enumerate() {
            let value = char::from(*digit).to_digit(16).unwrap_or(0) as u8;
            let last = out.len() - 1;
            out[last - i / 2] |= value << (4 * (i % 2));
        }
        Ok(())
    }

    /// Hexadecimal data as OVS prints it, `0x` and no leading zeros; a lone `0` is one zero byte.
    pub(super) fn stripped_hex(&mut self, out: &mut Vec<u8>, max: usize) -> Result<()> {
        if !self.eat_str("0x") {
            self.expect(b'0', "hexadecimal data with 0x")?;
            out.push(0);
            return Ok(());
        }
        if self.rest().iter().take_while(|b| b.is_ascii_hexdigit()).count() % 2 != 0 {
            let nibble = self.take_one();
            out.push(char::from(nibble).to_digit(16).unwrap_or(0) as u8);
        }
        self.hex_bytes(out, max)?;
        if out.is_empty() {
            return Err(self.expected("hexadecimal digits"));
        }
        if out.len() > max {
            return Err(self.error(ErrorKind::TooLong { what: "hexadecimal data", max }));
        }
        Ok(())
    }

    fn take_one(&mut self) -> u8 {
        let byte = self.peek();
        self.pos += usize::from(byte.is_some());
        byte.unwrap_or(0)
    }

    /// Two hexadecimal digits for each byte of `out`.
    pub(super) fn hex_exact(&mut self, out: &mut [u8]) -> Result<()> {
        for byte in out {
            let mut digit = || {
                let value = self.peek().and_then(|b| char::from(b).to_digit(16));
                self.pos += usize::from(value.is_some());
                value.ok_or_else(|| self.expected("a hexadecimal digit"))
            };
            *byte = (digit()? << 4 | digit()?) as u8;
        }
        Ok(())
    }

    /// An even number of hexadecimal digits, as bytes; stops at the first other byte.
    pub(super) fn hex_bytes(&mut self, out: &mut Vec<u8>, max: usize) -> Result<()> {
        let from = self.pos;
        let hex = self.take_while(|b| b.is_ascii_hexdigit()).as_bytes();
        if !hex.len().is_multiple_of(2) {
            return Err(self.expected("an even number of hexadecimal digits"));
        }
        if hex.len() / 2 > max {
            return Err(self.error_at(from, ErrorKind::TooLong { what: "hexadecimal data", max }));
        }
        let digit = |b: u8| char::from(b).to_digit(16).unwrap_or(0) as u8;
        out.extend(hex.as_chunks::<2>().0.iter().map(|[hi, lo]| digit(*hi) << 4 | digit(*lo)));
        Ok(())
    }

    /// The fields of an attribute up to and with its closing parenthesis. `field` reads one whose name (with its `=`
    /// or `(`) it is given, and says which it was, or `None` if it knows no such field.
    pub(super) fn fields(
        &mut self,
        attr: &'static str,
        mut field: impl FnMut(&mut Self, &str) -> Result<Option<u8>>,
    ) -> Result<()> {
        let mut seen = 0u32;
        if self.eat(b')') {
            return Ok(());
        }
        loop {
            let from = self.pos;
            let name = self.field_name()?;
            let Some(index) = field(self, name)? else {
                return Err(self.error_at(
                    from,
                    ErrorKind::UnknownField { within: attr, name: trimmed(name).to_owned() },
                ));
            };
            let bit = 1u32 << (index & 31);
            if seen & bit != 0 {
                return Err(self.error_at(
                    from,
                    ErrorKind::DuplicateField { within: attr, name: trimmed(name).to_owned() },
                ));
            }
            seen |= bit;
            if !self.eat(b',') {
                return self.expect(b')', "',' or ')'");
            }
        }
    }
}

fn trimmed(name: &str) -> &str {
    name.trim_end_matches(['=', '('])
}
