//! The userspace action, and the cookies that ovs-vswitchd hides in its user data.
//!
//! A cookie is 48 bytes in the byte order of the machine that made it: `struct user_action_cookie` of OVS's
//! `lib/odp-util.h`, 3.1 to 4.0. OVS prints one that it recognises by its fields, so the text does not tell the OpenFlow
//! ingress port and the bridge, which read back as "none", as OVS's own parser sets them. The only field in network
//! order is the OpenFlow cookie of the rule.

use super::key_print::Hex;
use super::lexer::{Cursor, Result};
use super::{ErrorKind, PortNames, action_parse::port, action_print::port_text, flags};
use crate::PortNo;
use crate::action::Userspace;
use crate::key::VLAN_CFI;
use std::fmt::{self, Write};

/// Size of a cookie.
const COOKIE_LEN: usize = 48;
/// Most bytes of other user data: what fits a Netlink attribute.
const USERDATA_MAX: usize = 65_531;
/// OpenFlow's "no port".
const OFPP_NONE: u32 = 0xffff;

/// Values of the cookie's first field.
mod kind {
    pub(super) const SFLOW: u16 = 1;
    pub(super) const SLOW_PATH: u16 = 2;
    pub(super) const FLOW_SAMPLE: u16 = 3;
    pub(super) const IPFIX: u16 = 4;
    pub(super) const CONTROLLER: u16 = 5;
}

/// Offsets of the cookie's fields.
mod at {
    pub(super) const KIND: usize = 0;
    pub(super) const OFP_IN_PORT: usize = 4;
    pub(super) const SFLOW_TCI: usize = 24;
    pub(super) const SFLOW_OUTPUT: usize = 28;
    pub(super) const SLOW_PATH_REASON: usize = 28;
    pub(super) const SAMPLE_PROBABILITY: usize = 24;
    pub(super) const SAMPLE_COLLECTOR: usize = 28;
    pub(super) const SAMPLE_DOMAIN: usize = 32;
    pub(super) const SAMPLE_POINT: usize = 36;
    pub(super) const SAMPLE_PORT: usize = 40;
    pub(super) const SAMPLE_DIRECTION: usize = 44;
    pub(super) const IPFIX_PORT: usize = 24;
    pub(super) const CONTROLLER_DONT_SEND: usize = 24;
    pub(super) const CONTROLLER_CONTINUATION: usize = 25;
    pub(super) const CONTROLLER_REASON: usize = 26;
    pub(super) const CONTROLLER_RECIRC: usize = 28;
    pub(super) const CONTROLLER_COOKIE: usize = 32;
    pub(super) const CONTROLLER_ID: usize = 40;
    pub(super) const CONTROLLER_MAX_LEN: usize = 42;
}

struct Cookie([u8; COOKIE_LEN]);

impl Cookie {
    fn new(kind: u16) -> Self {
        let mut cookie = Self([0; COOKIE_LEN]);
        cookie.put(at::KIND, kind.to_ne_bytes());
        cookie.put(at::OFP_IN_PORT, OFPP_NONE.to_ne_bytes());
        cookie
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.get(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.get(at))
    }
}

/// Arguments after `userspace(`, with the closing parenthesis.
pub(super) fn parse_userspace(c: &mut Cursor<'_>, names: &dyn PortNames) -> Result<Userspace> {
    c.expect_str("pid=")?;
    let mut out = Userspace { pid: c.u32()?, ..Default::default() };
    loop {
        if c.eat(b')') {
            return Ok(out);
        }
        c.expect(b',', "',' or ')'")?;
        let from = c.pos();
        let name = c.ident();
        let twice = match name {
            "actions" => std::mem::replace(&mut out.actions, true),
            "tunnel_out_port" => {
                c.expect(b'=', "'=' and a port")?;
                out.tunnel_out_port.replace(port(c, names)?).is_some()
            }
            "userdata" => {
                c.expect(b'(', "'(' and hexadecimal digits")?;
                let mut data = Vec::new();
                c.hex_bytes(&mut data, USERDATA_MAX)?;
                c.expect(b')', "')' after the user data")?;
                out.userdata.replace(data).is_some()
            }
            _ => {
                let cookie = parse_cookie(c, from, name, names)?;
                out.userdata.replace(cookie.0.to_vec()).is_some()
            }
        };
        if twice {
            return Err(
                c.error_at(from, ErrorKind::DuplicateField { within: "userspace", name: name.to_owned() })
            );
        }
    }
}

fn parse_cookie(c: &mut Cursor<'_>, from: usize, name: &str, names: &dyn PortNames) -> Result<Cookie> {
    let mut cookie;
    // The name has an upper-case letter, unlike all others.
    if name == "s" && c.eat_str("Flow(vid=") {
        cookie = Cookie::new(kind::SFLOW);
        let vid = c.number("a VLAN ID", 0xfff)? as u16;
        c.expect_str(",pcp=")?;
        let pcp = c.number("a VLAN priority", 7)? as u16;
        c.expect_str(",output=")?;
        let tci = vid | pcp << 13;
        cookie.put(at::SFLOW_TCI, (if tci == 0 { 0 } else { tci | VLAN_CFI }).to_be_bytes());
        cookie.put(at::SFLOW_OUTPUT, c.u32()?.to_ne_bytes());
    } else if name == "slow_path" && c.eat(b'(') {
        cookie = Cookie::new(kind::SLOW_PATH);
        // `slow_path()` is what some versions print without a reason.
        let reason = if c.peek() == Some(b')') { 0 } else { flags::SLOW_PATH.parse_list(c, b',')? };
        cookie.put(at::SLOW_PATH_REASON, reason.to_ne_bytes());
    } else if name == "flow_sample" && c.eat_str("(probability=") {
        cookie = Cookie::new(kind::FLOW_SAMPLE);
        cookie.put(at::SAMPLE_PROBABILITY, c.u16()?.to_ne_bytes());
        c.expect_str(",collector_set_id=")?;
        cookie.put(at::SAMPLE_COLLECTOR, c.u32()?.to_ne_bytes());
        c.expect_str(",obs_domain_id=")?;
        cookie.put(at::SAMPLE_DOMAIN, c.u32()?.to_ne_bytes());
        c.expect_str(",obs_point_id=")?;
        cookie.put(at::SAMPLE_POINT, c.u32()?.to_ne_bytes());
        c.expect_str(",output_port=")?;
        cookie.put(at::SAMPLE_PORT, port(c, names)?.0.to_ne_bytes());
        let direction = match () {
            () if c.eat_str(",ingress") => 1u32,
            () if c.eat_str(",egress") => 2,
            () => 0,
        };
        cookie.put(at::SAMPLE_DIRECTION, direction.to_ne_bytes());
    } else if name == "ipfix" && c.eat_str("(output_port=") {
        cookie = Cookie::new(kind::IPFIX);
        cookie.put(at::IPFIX_PORT, port(c, names)?.0.to_ne_bytes());
    } else if name == "controller" && c.eat_str("(reason=") {
        cookie = Cookie::new(kind::CONTROLLER);
        cookie.put(at::CONTROLLER_REASON, c.u16()?.to_ne_bytes());
        c.expect_str(",dont_send=")?;
        cookie.put(at::CONTROLLER_DONT_SEND, [c.number("0 or 1", 1)? as u8]);
        c.expect_str(",continuation=")?;
        cookie.put(at::CONTROLLER_CONTINUATION, [c.number("0 or 1", 1)? as u8]);
        c.expect_str(",recirc_id=")?;
        cookie.put(at::CONTROLLER_RECIRC, c.u32()?.to_ne_bytes());
        c.expect_str(",rule_cookie=")?;
        cookie.put(at::CONTROLLER_COOKIE, c.number("a 64-bit number", u64::MAX)?.to_be_bytes());
        c.expect_str(",controller_id=")?;
        cookie.put(at::CONTROLLER_ID, c.u16()?.to_ne_bytes());
        c.expect_str(",max_len=")?;
        cookie.put(at::CONTROLLER_MAX_LEN, c.u16()?.to_ne_bytes());
    } else {
        let name = if name.is_empty() { c.since(from) } else { name };
        return Err(c.error_at(from, ErrorKind::UnknownField { within: "userspace", name: name.to_owned() }));
    }
    c.expect(b')', "')' after the cookie's fields")?;
    Ok(cookie)
}

/// The action.
pub(super) fn print_userspace(
    w: &mut dyn Write,
    u: &Userspace,
    names: Option<&dyn PortNames>,
) -> fmt::Result {
    write!(w, "userspace(pid={}", u.pid)?;
    if let Some(data) = &u.userdata {
        w.write_char(',')?;
        let known = match <[u8; COOKIE_LEN]>::try_from(data.as_slice()) {
            Ok(bytes) => print_cookie(w, &Cookie(bytes), names)?,
            Err(_) => false,
        };
        if !known {
            w.write_str("userdata(")?;
            data.iter().try_for_each(|b| write!(w, "{b:02x}"))?;
            w.write_char(')')?;
        }
    }
    if u.actions {
        w.write_str(",actions")?;
    }
    if let Some(port) = u.tunnel_out_port {
        w.write_str(",tunnel_out_port=")?;
        port_text(w, port, names)?;
    }
    w.write_char(')')
}

/// A cookie's fields; false, with nothing written, if it is of no known kind.
fn print_cookie(
    w: &mut dyn Write,
    cookie: &Cookie,
    names: Option<&dyn PortNames>,
) -> std::result::Result<bool, fmt::Error> {
    match cookie.u16(at::KIND) {
        kind::SFLOW => {
            let tci = u16::from_be_bytes(cookie.get(at::SFLOW_TCI));
            let output = cookie.u32(at::SFLOW_OUTPUT);
            write!(w, "sFlow(vid={},pcp={},output={output})", tci & 0xfff, tci >> 13)?;
        }
        kind::SLOW_PATH => {
            w.write_str("slow_path(")?;
            flags::SLOW_PATH.print_list(w, cookie.u32(at::SLOW_PATH_REASON), ',')?;
            w.write_char(')')?;
        }
        kind::FLOW_SAMPLE => {
            write!(
                w,
                "flow_sample(probability={},collector_set_id={},obs_domain_id={},obs_point_id={},output_port=",
                cookie.u16(at::SAMPLE_PROBABILITY),
                cookie.u32(at::SAMPLE_COLLECTOR),
                cookie.u32(at::SAMPLE_DOMAIN),
                cookie.u32(at::SAMPLE_POINT)
            )?;
            port_text(w, PortNo(cookie.u32(at::SAMPLE_PORT)), names)?;
            w.write_str(match cookie.u32(at::SAMPLE_DIRECTION) {
                1 => ",ingress)",
                2 => ",egress)",
                _ => ")",
            })?;
        }
        kind::IPFIX => {
            w.write_str("ipfix(output_port=")?;
            port_text(w, PortNo(cookie.u32(at::IPFIX_PORT)), names)?;
            w.write_char(')')?;
        }
        kind::CONTROLLER => write!(
            w,
            "controller(reason={},dont_send={},continuation={},recirc_id={},rule_cookie={},controller_id={},max_len={})",
            cookie.u16(at::CONTROLLER_REASON),
            u8::from(cookie.0[at::CONTROLLER_DONT_SEND] != 0),
            u8::from(cookie.0[at::CONTROLLER_CONTINUATION] != 0),
            cookie.u32(at::CONTROLLER_RECIRC),
            Hex(u64::from_be_bytes(cookie.get(at::CONTROLLER_COOKIE))),
            cookie.u16(at::CONTROLLER_ID),
            cookie.u16(at::CONTROLLER_MAX_LEN)
        )?,
        _ => return Ok(false),
    }
    Ok(true)
}
