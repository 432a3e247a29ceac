//! Actions, from text.

use super::lexer::{Cursor, Result};
use super::{ErrorKind, MAX_DEPTH, PortNames, TextError, cookie, ct, nsh, set};
use crate::action::{HashAlg, TnlHeader, TnlPush};
use crate::key::VLAN_CFI;
use crate::{Action, PortNo};

/// Most bytes of psample's cookie.
const PSAMPLE_COOKIE_MAX: usize = 16;

/// Parses a list of actions, such as `push_vlan(vid=10,pcp=0),2`. `drop` alone is the empty list.
pub fn parse_actions(text: &str, names: &dyn PortNames) -> std::result::Result<Vec<Action>, TextError> {
    let mut c = Cursor::new(text);
    let mut actions = Vec::new();
    parse_list(&mut c, names, &mut actions)?;
    if !c.at_end() {
        return Err(c.error(ErrorKind::TrailingGarbage));
    }
    Ok(actions)
}

/// Parses actions up to the end of the text, or to what follows them in a dump. At least one must stand there.
pub(super) fn parse_list(c: &mut Cursor<'_>, names: &dyn PortNames, out: &mut Vec<Action>) -> Result<()> {
    let mut parser = ActionParser { names, depth: 0 };
    let from = c.pos();
    parser.list(c, out)?;
    if c.pos() == from {
        return Err(c.expected("an action"));
    }
    Ok(())
}

struct ActionParser<'n> {
    names: &'n dyn PortNames,
    depth: usize,
}

impl ActionParser<'_> {
    /// Actions up to the end, a closing parenthesis, or what follows actions in a dump.
    fn list(&mut self, c: &mut Cursor<'_>, out: &mut Vec<Action>) -> Result<()> {
        let mut delimited = true;
        c.skip_delimiters();
        loop {
            if c.at_end() || c.peek() == Some(b')') || c.rest().starts_with(b", dp-extra-info:") {
                break;
            }
            if !delimited {
                return Err(c.error(ErrorKind::TrailingGarbage));
            }
            let action = self.action(c)?;
            out.push(action);
            if c.rest().starts_with(b", dp-extra-info:") {
                break;
            }
            delimited = c.skip_delimiters();
        }
        // Alone, the word stands for no action at all; its other meaning, the drop action, prints alike.
        if matches!(out[..], [Action::Drop(_)]) {
            out.clear();
        }
        Ok(())
    }

    /// Nested actions and their closing parenthesis.
    fn nested(&mut self, c: &mut Cursor<'_>) -> Result<Vec<Action>> {
        if self.depth >= MAX_DEPTH {
            return Err(c.error(ErrorKind::TooDeep));
        }
        self.depth += 1;
        let mut actions = Vec::new();
        self.list(c, &mut actions)?;
        self.depth -= 1;
        c.expect(b')', "')' after the actions")?;
        Ok(actions)
    }

    fn action(&mut self, c: &mut Cursor<'_>) -> Result<Action> {
        let from = c.pos();
        let word = c.take_while(|b| !matches!(b, b',' | b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')'));
        if word.is_empty() {
            return Err(c.expected("an action"));
        }
        if word.as_bytes()[0].is_ascii_digit() {
            let end = c.pos();
            c.set_pos(from);
            let number = c.u32();
            if c.pos() == end || self.names.number(word).is_none() {
                return number.map(|n| Action::Output(PortNo(n)));
            }
            c.set_pos(end);
        }
        if !c.eat(b'(') {
            return self.bare(c, from, word);
        }
        self.with_arguments(c, from, word)
    }

    /// A word without arguments: a port's name, which goes first as in OVS, or an action.
    fn bare(&mut self, c: &Cursor<'_>, from: usize, word: &str) -> Result<Action> {
        if let Some(port) = self.names.number(word) {
            return Ok(Action::Output(port));
        }
        Ok(match word {
            "drop" => Action::Drop(0),
            "pop_vlan" => Action::PopVlan,
            "pop_eth" => Action::PopEth,
            "ct_clear" => Action::CtClear,
            "ct" => Action::Ct(Box::default()),
            _ => return Err(c.error_at(from, ErrorKind::UnknownPort(word.to_owned()))),
        })
    }

    /// An action after its opening parenthesis.
    fn with_arguments(&mut self, c: &mut Cursor<'_>, from: usize, word: &str) -> Result<Action> {
        let action = match word {
            // These end with their own closing parenthesis.
            "push_vlan" => return push_vlan(c),
            "push_eth" => return push_eth(c),
            "push_nsh" => return nsh::parse_push(c).map(|h| Action::PushNsh(Box::new(h))),
            "push_mpls" => {
                let (lse, eth_type) = mpls(c, "push_mpls")?;
                return Ok(Action::PushMpls { lse, eth_type });
            }
            "add_mpls" => {
                let (lse, eth_type) = mpls(c, "add_mpls")?;
                return Ok(Action::AddMpls { lse, eth_type, l3: false });
            }
            "clone" => return self.nested(c).map(Action::Clone),
            "ct" => return ct::parse(c).map(|ct| Action::Ct(Box::new(ct))),
            "userspace" => return cookie::parse_userspace(c, self.names).map(Action::Userspace),
            "psample" => return psample(c),

            "set" => set::parse(c)?,
            "meter" => Action::Meter(c.u32()?),
            "lb_output" => Action::LbOutput(c.u32()?),
            "trunc" => Action::Trunc { max_len: c.u32()? },
            "recirc" => Action::Recirc(c.u32()?),
            "pop_nsh" => Action::PopNsh,
            "pop_mpls" => {
                c.expect_str("eth_type=")?;
                Action::PopMpls { eth_type: c.u16()? }
            }
            "tnl_pop" => Action::TnlPop(port(c, self.names)?),
            "tnl_push" => self.tnl_push(c)?,
            "hash" => {
                let alg = match c.ident() {
                    "l4" => HashAlg::L4,
                    "sym_l4" => HashAlg::SymL4,
                    _ => return Err(c.expected("'l4(' or 'sym_l4('")),
                };
                c.expect(b'(', "'(' and the basis of the hash")?;
                let basis = c.u32()?;
                c.expect(b')', "')' after the basis")?;
                Action::Hash { alg, basis }
            }
            "sample" => {
                c.expect_str("sample=")?;
                let probability = percentage(c)?;
                c.expect_str(",actions(")?;
                Action::Sample { probability, actions: self.nested(c)? }
            }
            "check_pkt_len" => {
                c.expect_str("size=")?;
                let pkt_len = c.u16()?;
                c.expect_str(",gt(")?;
                let greater = self.nested(c)?;
                c.expect_str(",le(")?;
                Action::CheckPktLen { pkt_len, greater, less_or_equal: self.nested(c)? }
            }
            "dec_ttl" => {
                c.expect_str("le_1(")?;
                Action::DecTtl { exception: self.nested(c)? }
            }
            _ => return Err(c.error_at(from, ErrorKind::UnknownAction(word.to_owned()))),
        };
        c.expect(b')', "')' after the action's arguments")?;
        Ok(action)
    }

    fn tnl_push(&mut self, c: &mut Cursor<'_>) -> Result<Action> {
        c.expect_str("tnl_port(")?;
        let tnl_port = port(c, self.names)?;
        c.expect_str("),header(")?;
        let from = c.pos();
        c.expect_str("size=")?;
        c.decimal("the size of the header", 512)?;
        c.expect_str(",type=")?;
        c.decimal("a vport type", u32::MAX.into())?;
        c.expect_str(",eth(")?;
        let mut depth = 1;
        while depth > 0 {
            c.take_while(|b| !matches!(b, b'(' | b')') && (b.is_ascii_graphic() || b == b' '));
            depth = match c.peek() {
                Some(b'(') => depth + 1,
                Some(b')') => depth - 1,
                _ => return Err(c.expected("')' after the header")),
            };
            c.set_pos(c.pos() + 1);
            // The next header follows after a comma; without one the list is closed by the next parenthesis.
            if depth == 0 && c.eat(b',') {
                c.take_while(|b| !matches!(b, b'(' | b')') && b.is_ascii_graphic());
                c.expect(b'(', "'(' after the header's name")?;
                depth = 1;
            }
        }
        let header = TnlHeader::from_text(c.since(from));
        c.expect_str("),out_port(")?;
        let out_port = port(c, self.names)?;
        c.expect(b')', "')' after the port")?;
        Ok(Action::TnlPush(Box::new(TnlPush { tnl_port, out_port, header })))
    }
}

/// A port's number or name, up to a comma or closing parenthesis.
pub(super) fn port(c: &mut Cursor<'_>, names: &dyn PortNames) -> Result<PortNo> {
    let from = c.pos();
    let word = c.take_while(|b| !matches!(b, b',' | b')'));
    if word.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        let end = c.pos();
        c.set_pos(from);
        let number = c.u32().map(PortNo);
        if c.pos() == end || names.number(word).is_none() {
            return number;
        }
        c.set_pos(end);
    }
    match (names.number(word), word) {
        (Some(port), _) => Ok(port),
        (None, "") => Err(c.expected("a port number or name")),
        (None, _) => Err(c.error_at(from, ErrorKind::UnknownPort(word.to_owned()))),
    }
}

fn push_vlan(c: &mut Cursor<'_>) -> Result<Action> {
    let (mut tpid, mut tci) = (crate::key::eth_type::VLAN, VLAN_CFI);
    c.fields("push_vlan", |c, name| {
        let mut bits = |c: &mut Cursor<'_>, max: u16, shift: u32| -> Result<()> {
            let value = c.number("a VLAN field", max.into())? as u16;
            tci = tci & !(max << shift) | value << shift;
            Ok(())
        };
        Ok(Some(match name {
            "tpid=" => {
                tpid = c.u16()?;
                0
            }
            "vid=" => bits(c, 0xfff, 0).map(|()| 1)?,
            "pcp=" => bits(c, 7, 13).map(|()| 2)?,
            "cfi=" => bits(c, 1, 12).map(|()| 3)?,
            _ => return Ok(None),
        }))
    })?;
    Ok(Action::PushVlan { tpid, tci })
}

fn push_eth(c: &mut Cursor<'_>) -> Result<Action> {
    let (mut src, mut dst) = ([0; 6], [0; 6]);
    c.fields("push_eth", |c, name| {
        Ok(Some(match name {
            "src=" => {
                src = c.mac()?;
                0
            }
            "dst=" => {
                dst = c.mac()?;
                1
            }
            _ => return Ok(None),
        }))
    })?;
    Ok(Action::PushEth { src, dst })
}

/// A label stack entry and Ethernet type.
fn mpls(c: &mut Cursor<'_>, action: &'static str) -> Result<(u32, u16)> {
    let (mut lse, mut eth_type) = (0, 0);
    c.fields(action, |c, name| {
        let (index, max, shift) = match name {
            "label=" => (0, 0xf_ffff, 12),
            "tc=" => (1, 7, 9),
            "ttl=" => (2, 0xff, 0),
            "bos=" => (3, 1, 8),
            "eth_type=" => {
                eth_type = c.u16()?;
                return Ok(Some(4));
            }
            _ => return Ok(None),
        };
        lse |= (c.number("an MPLS field", max)? as u32) << shift;
        Ok(Some(index))
    })?;
    Ok((lse, eth_type))
}

fn psample(c: &mut Cursor<'_>) -> Result<Action> {
    let (mut group, mut cookie) = (None, Vec::new());
    let from = c.pos();
    c.fields("psample", |c, name| {
        Ok(Some(match name {
            "group=" => {
                group = Some(c.u32()?);
                0
            }
            "cookie=" => {
                c.stripped_hex(&mut cookie, PSAMPLE_COOKIE_MAX)?;
                1
            }
            _ => return Ok(None),
        }))
    })?;
    let group = group.ok_or_else(|| c.error_at(from, ErrorKind::Expected("group=")))?;
    Ok(Action::Psample { group, cookie })
}

/// A percentage, as a share of `u32::MAX`.
fn percentage(c: &mut Cursor<'_>) -> Result<u32> {
    let from = c.pos();
    let text = c.take_while(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = text.parse().map_err(|_| c.error_at(from, ErrorKind::Expected("a percentage")))?;
    if !(0.0..=100.0).contains(&value) {
        return Err(c.error_at(from, ErrorKind::OutOfRange { what: "a percentage", max: 100 }));
    }
    c.expect(b'%', "'%' after the percentage")?;
    Ok((f64::from(u32::MAX) * (value / 100.0) + 0.5).floor() as u32)
}
