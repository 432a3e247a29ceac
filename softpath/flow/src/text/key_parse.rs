//! Key attributes and their masks, from text.

use super::lexer::{Cursor, Result};
use super::{ErrorKind, NoNames, PortNames, TextError, flags, nsh, tunnel};
use crate::attrs::attr;
use crate::key::{ETH_TYPE_NONE, Frag, MPLS_MAX, VLAN_CFI, VLAN_MAX, tun_flags};
use crate::matching::{MatchError, exclude_tags};
use crate::{AttrSet, Key, Match};

/// The order in which a text names its attributes, per nesting level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttrOrder {
    attrs: [[u8; 32]; 3],
    lens: [u8; 3],
}

impl AttrOrder {
    fn push(&mut self, level: usize, attr: u8) {
        if let (Some(attrs), Some(len)) = (self.attrs.get_mut(level), self.lens.get_mut(level))
            && let Some(slot) = attrs.get_mut(usize::from(*len))
        {
            *slot = attr;
            *len += 1;
        }
    }

    fn clear(&mut self) {
        self.lens = [0; 3];
    }

    /// Attribute numbers of a level, as they stood.
    pub fn level(&self, level: usize) -> &[u8] {
        match (self.attrs.get(level), self.lens.get(level)) {
            (Some(attrs), Some(len)) => &attrs[..usize::from(*len)],
            _ => &[],
        }
    }
}

/// Parses a key and its masks, such as `in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0,frag=no)`.
///
/// An attribute that is not named is wildcarded, as is a field that is not named within its attribute (U4); a field
/// without a mask is exact (R15). The order of attributes does not matter (R38), and none stands twice at one nesting
/// level (R37). Two things are exact without being named: the recirculation ID, which is 0 then, as in Open vSwitch, and
/// the absence of further tags below an Ethernet type that is no tag's, since with a tag the type would be the tag's
/// (R30). The match must make sense as a whole: see [`Match::validate`].
pub fn parse_match(text: &str, names: &dyn PortNames) -> std::result::Result<(Match, AttrOrder), TextError> {
    let mut c = Cursor::new(text);
    let mut matching = Match::default();
    let mut order = AttrOrder::default();
    parse_attrs(&mut c, &mut matching, &mut order, names)?;
    if !c.at_end() {
        return Err(c.error(ErrorKind::TrailingGarbage));
    }
    Ok((matching, order))
}

/// Parses a packet's key: as [`parse_match`], but masks are refused.
pub fn parse_key(text: &str) -> std::result::Result<(Key, AttrSet), TextError> {
    if let Some(slash) = text.find('/') {
        return Err(
            Cursor::new(text).error_at(slash, ErrorKind::ImpossibleMask("a packet's key has no mask"))
        );
    }
    let (matching, _) = parse_match(text, &NoNames)?;
    Ok((matching.key, matching.attrs))
}

/// Parses the attributes at the cursor, up to the end of the text or to a word that is no attribute. `matching` must
/// be empty.
pub(super) fn parse_attrs(
    c: &mut Cursor<'_>,
    matching: &mut Match,
    order: &mut AttrOrder,
    names: &dyn PortNames,
) -> Result<()> {
    order.clear();
    let start = c.pos();
    let mut parser = KeyParser { m: matching, order, names };
    parser.level(c, 0)?;
    if parser.order.level(0).is_empty() {
        return Err(c.error(ErrorKind::Empty));
    }
    if !matching.attrs.has(0, attr::RECIRC_ID) {
        // Exact without being named, as in Open vSwitch: nobody means "before and after recirculation".
        matching.mask.0.recirc_id = u32::MAX;
    }
    matching.check_attributes().map_err(|e| {
        // The attribute is found again only now, so that good lines need not remember where each one stood.
        let text = c.since(start);
        let name = format!("{}(", e.attribute());
        let starts_word = |at: &usize| *at == 0 || matches!(text.as_bytes()[*at - 1], b',' | b' ' | b'(');
        let found = text.match_indices(&name).map(|(at, _)| at).find(starts_word);
        c.error_at(start + found.unwrap_or(0), ErrorKind::Match(e))
    })
}

struct KeyParser<'m> {
    m: &'m mut Match,
    order: &'m mut AttrOrder,
    names: &'m dyn PortNames,
}

impl KeyParser<'_> {
    /// The attributes of one nesting level; stops before a closing parenthesis, the end, or a word without parenthesis.
    fn level(&mut self, c: &mut Cursor<'_>, level: usize) -> Result<()> {
        let mut eth_type = None;
        loop {
            let delimited = c.skip_delimiters();
            let from = c.pos();
            let name = c.ident();
            if c.peek() != Some(b'(') {
                let attr_without_parenthesis = !name.is_empty() && c.peek() != Some(b':');
                if attr_without_parenthesis && attr_number(name).is_some() {
                    return Err(c.expected("'(' after the attribute's name"));
                }
                c.set_pos(from);
                break;
            }
            let Some(attr) = attr_number(name) else {
                return Err(c.error_at(from, ErrorKind::UnknownAttribute(name.to_owned())));
            };
            if !delimited && !self.order.level(level).is_empty() {
                return Err(c.error_at(from, ErrorKind::Expected("',' before the next attribute")));
            }
            c.eat(b'(');
            // ETHERTYPE may be in the mask only, so the order knows better than the set.
            if self.order.level(level).contains(&attr) {
                return Err(c.error_at(from, ErrorKind::DuplicateAttribute(attr::NAMES[usize::from(attr)])));
            }
            self.order.push(level, attr);
            self.m.attrs.insert(level, attr);
            match attr {
                attr::ENCAP => {
                    // This bounds the recursion, too.
                    if level >= VLAN_MAX {
                        return Err(c.error_at(from, ErrorKind::Match(MatchError::TooManyTags)));
                    }
                    self.level(c, level + 1)?;
                    c.expect(b')', "a key attribute or ')'")?;
                }
                attr::ETHERTYPE => {
                    eth_type = Some(c.masked_u16()?);
                    c.expect(b')', "')' after the Ethernet type")?;
                }
                _ => self.attribute(c, attr, level)?,
            }
        }
        self.resolve_eth_type(level, eth_type);
        Ok(())
    }

    /// With a tag at its level the Ethernet type is the tag's protocol ID, else the packet's type.
    fn resolve_eth_type(&mut self, level: usize, eth_type: Option<(u16, u16)>) {
        let tagged = self.m.attrs.has(level, attr::VLAN) || self.m.attrs.has(level, attr::ENCAP);
        let Some((value, mask)) = eth_type else { return };
        if tagged {
            if let (Some(key), Some(m)) = (self.m.key.vlan.get_mut(level), self.m.mask.0.vlan.get_mut(level))
            {
                key.tpid = value.into();
                m.tpid = mask.into();
            }
        } else if value == 0 && mask != 0 {
            // How OVS writes "no Ethernet type": in the mask, but not in the key.
            self.m.key.eth_type = ETH_TYPE_NONE.into();
            self.m.mask.0.eth_type = mask.into();
            self.m.attrs.0[level] &= !(1 << attr::ETHERTYPE);
            exclude_tags(&mut self.m.mask.0, level);
        } else {
            self.m.key.eth_type = value.into();
            self.m.mask.0.eth_type = mask.into();
            if mask != 0 {
                exclude_tags(&mut self.m.mask.0, level);
            }
        }
    }

    /// One attribute after its opening parenthesis.
    fn attribute(&mut self, c: &mut Cursor<'_>, attr: u8, level: usize) -> Result<()> {
        let (k, m) = (&mut self.m.key, &mut self.m.mask.0);
        match attr {
            attr::PRIORITY => (k.skb_priority, m.skb_priority) = single(c, Cursor::masked_u32)?,
            attr::SKB_MARK => (k.skb_mark, m.skb_mark) = single(c, Cursor::masked_u32)?,
            attr::DP_HASH => (k.dp_hash, m.dp_hash) = single(c, Cursor::masked_u32)?,
            attr::CT_MARK => (k.ct_mark, m.ct_mark) = single(c, Cursor::masked_u32)?,
            attr::CT_ZONE => (k.ct_zone, m.ct_zone) = single(c, Cursor::masked_u16)?,
            attr::CT_STATE => {
                (k.ct_state, m.ct_state) = single(c, |c| flags::CT_STATE.parse_masked(c, u32::MAX))?;
            }
            attr::CT_LABELS => (k.ct_label, m.ct_label) = single(c, masked_u128)?,
            attr::RECIRC_ID => {
                k.recirc_id = c.u32()?;
                m.recirc_id = u32::MAX;
                if c.peek() == Some(b'/') {
                    return Err(c.error(ErrorKind::ImpossibleMask("recirc_id cannot be masked")));
                }
                c.expect(b')', "')' after the recirculation ID")?;
            }
            attr::IN_PORT => (k.in_port, m.in_port) = in_port(c, self.names)?,
            attr::VLAN => self.vlan(c, level)?,
            attr::MPLS => self.mpls(c, level)?,
            attr::TUNNEL => {
                k.tun_flags = tun_flags::PRESENT.into();
                m.tun_flags = tun_flags::PRESENT.into();
                tunnel::parse(c, k, m, &mut self.m.attrs)?;
            }
            attr::NSH => nsh::parse_key(c, k, m)?,
            attr::IPV6_EXTHDRS => (k.ipv6_exthdrs, m.ipv6_exthdrs) = exthdrs(c)?,
            attr::CT_ORIG_TUPLE_IPV4 | attr::CT_ORIG_TUPLE_IPV6 => tuple(c, k, m, attr)?,
            attr::TCP_FLAGS => {
                let (value, mask) = single(c, |c| flags::TCP.parse_masked(c, 0xfff))?;
                k.tcp_flags = (value as u16).into();
                m.tcp_flags = (mask as u16).into();
            }
            _ => headers(c, k, m, attr)?,
        }
        Ok(())
    }

    fn vlan(&mut self, c: &mut Cursor<'_>, level: usize) -> Result<()> {
        let (mut tci, mut mask) = (VLAN_CFI, VLAN_CFI);
        c.fields("vlan", |c, name| {
            let (index, bits, shift) = match name {
                "vid=" => (0, 0xfff, 0),
                "pcp=" => (1, 7, 13),
                "cfi=" => (2, 1, 12),
                _ => return Ok(None),
            };
            let (v, m) = c.masked("a VLAN field", bits)?;
            tci = tci & !((bits as u16) << shift) | (v as u16) << shift;
            mask = mask & !((bits as u16) << shift) | (m as u16) << shift;
            Ok(Some(index))
        })?;
        match (self.m.key.vlan.get_mut(level), self.m.mask.0.vlan.get_mut(level)) {
            (Some(key), Some(m)) => {
                key.tci = tci.into();
                m.tci = mask.into();
                Ok(())
            }
            _ => Err(c.error(ErrorKind::Match(MatchError::TooManyTags))),
        }
    }

    /// Label stack entries: a field that comes again begins the next entry.
    fn mpls(&mut self, c: &mut Cursor<'_>, level: usize) -> Result<()> {
        let (mut entry, mut seen) = (0, 0u8);
        if c.eat(b')') {
            self.m.attrs.set_mpls_count(level, 0);
            return Ok(());
        }
        loop {
            let from = c.pos();
            let (index, bits, shift) = match c.field_name()? {
                "label=" => (0, 0xf_ffff, 12),
                "tc=" => (1, 7, 9),
                "ttl=" => (2, 0xff, 0),
                "bos=" => (3, 1, 8),
                name => {
                    let name = name.trim_end_matches(['=', '(']).to_owned();
                    return Err(c.error_at(from, ErrorKind::UnknownField { within: "mpls", name }));
                }
            };
            if seen & 1 << index != 0 {
                seen = 0;
                entry += 1;
            }
            if entry >= MPLS_MAX {
                return Err(
                    c.error_at(from, ErrorKind::TooLong { what: "the label stack", max: MPLS_MAX * 4 })
                );
            }
            seen |= 1 << index;
            let (value, mask) = c.masked("an MPLS field", bits)?;
            let (lse, m) = (&mut self.m.key.mpls[entry], &mut self.m.mask.0.mpls[entry]);
            *lse = (lse.get() | (value as u32) << shift).into();
            *m = (m.get() | (mask as u32) << shift).into();
            if !c.eat(b',') {
                break;
            }
        }
        self.m.attrs.set_mpls_count(level, entry + 1);
        c.expect(b')', "',' or ')'")
    }
}

/// A value and mask up to the closing parenthesis.
fn single<'a, T>(c: &mut Cursor<'a>, read: impl FnOnce(&mut Cursor<'a>) -> Result<T>) -> Result<T> {
    let value = read(c)?;
    c.expect(b')', "')' after the value")?;
    Ok(value)
}

pub(super) fn masked_u128(c: &mut Cursor<'_>) -> Result<([u8; 16], [u8; 16])> {
    let (mut value, mut mask) = ([0; 16], [0xff; 16]);
    c.big_number(&mut value)?;
    if c.eat(b'/') {
        c.big_number(&mut mask)?;
    }
    Ok((value, mask))
}

fn in_port(c: &mut Cursor<'_>, names: &dyn PortNames) -> Result<(u32, u32)> {
    let from = c.pos();
    let number = c.masked_u32();
    if c.peek() == Some(b')') && c.pos() > from {
        c.eat(b')');
        return number;
    }
    // Not a number all through, so a name, which may begin like one.
    let stopped = c.pos();
    c.set_pos(from);
    let word = c.take_while(|b| b != b')');
    match names.number(word) {
        Some(port) => {
            c.expect(b')', "')' after the port")?;
            Ok((port.0, u32::MAX))
        }
        None if word.is_empty() => Err(c.expected("a port number or name")),
        None if !word.as_bytes()[0].is_ascii_digit() => {
            Err(c.error_at(from, ErrorKind::UnknownPort(word.to_owned())))
        }
        None => {
            number?;
            Err(c.error_at(stopped, ErrorKind::Expected("')' after the port")))
        }
    }
}

/// OVS prints an attribute that it does not know as bytes in hexadecimal, separated by spaces.
fn unnamed_u16(c: &mut Cursor<'_>) -> Result<u16> {
    let mut bytes = [0; 2];
    for (i, byte) in bytes.iter_mut().enumerate() {
        if i > 0 {
            c.expect(b' ', "two bytes in hexadecimal, separated by a space")?;
        }
        let mut one = [0];
        c.hex_exact(&mut one)?;
        *byte = one[0];
    }
    Ok(u16::from_ne_bytes(bytes))
}

fn exthdrs(c: &mut Cursor<'_>) -> Result<(u16, u16)> {
    let value = unnamed_u16(c)?;
    let mask = if c.eat(b'/') { unnamed_u16(c)? } else { u16::MAX };
    c.expect(b')', "')' after the value")?;
    Ok((value, mask))
}

fn frag(c: &mut Cursor<'_>) -> Result<(u8, u8)> {
    let from = c.pos();
    let kind = match c.ident() {
        "no" => Frag::No,
        "first" => Frag::First,
        "later" => Frag::Later,
        _ => return Err(c.error_at(from, ErrorKind::Expected("'no', 'first' or 'later'"))),
    };
    if c.peek() == Some(b'/') {
        return Err(c.error(ErrorKind::ImpossibleMask("frag cannot be masked")));
    }
    Ok((kind as u8, u8::MAX))
}

/// Connection tracking's original tuple. OVS prints the ports of IPv6 with other names than it parses; both are taken.
fn tuple(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key, attr: u8) -> Result<()> {
    let v6 = attr == attr::CT_ORIG_TUPLE_IPV6;
    c.fields(attr::NAMES[usize::from(attr)], |c, name| {
        let address = |c: &mut Cursor<'_>| -> Result<([u8; 16], [u8; 16])> {
            if v6 {
                return c.masked_ipv6();
            }
            let (v, m) = c.masked_ipv4()?;
            let wide = |ip: u32| {
                let mut out = [0; 16];
                out[..4].copy_from_slice(&ip.to_be_bytes());
                out
            };
            Ok((wide(v), wide(m)))
        };
        Ok(Some(match name {
            "src=" => {
                (k.ct_orig_src, m.ct_orig_src) = address(c)?;
                0
            }
            "dst=" => {
                (k.ct_orig_dst, m.ct_orig_dst) = address(c)?;
                1
            }
            "proto=" => {
                (k.ct_orig_proto, m.ct_orig_proto) = c.masked_u8()?;
                2
            }
            "tp_src=" | "src_port=" => {
                let (v, mask) = c.masked_u16()?;
                (k.ct_orig_tp_src, m.ct_orig_tp_src) = (v.into(), mask.into());
                3
            }
            "tp_dst=" | "dst_port=" => {
                let (v, mask) = c.masked_u16()?;
                (k.ct_orig_tp_dst, m.ct_orig_tp_dst) = (v.into(), mask.into());
                4
            }
            _ => return Ok(None),
        }))
    })
}

/// Ethernet, network and transport headers: attributes made of named fields.
pub(super) fn headers(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key, attr: u8) -> Result<()> {
    c.fields(attr::NAMES[usize::from(attr)], |c, name| {
        let index = match (attr, name) {
            (attr::ETHERNET, "src=") => {
                (k.eth_src, m.eth_src) = c.masked_mac()?;
                0
            }
            (attr::ETHERNET, "dst=") => {
                (k.eth_dst, m.eth_dst) = c.masked_mac()?;
                1
            }
            (attr::IPV4, "src=") | (attr::ARP, "sip=") => {
                let (v, mask) = c.masked_ipv4()?;
                (k.ipv4_src, m.ipv4_src) = (v.into(), mask.into());
                0
            }
            (attr::IPV4, "dst=") | (attr::ARP, "tip=") => {
                let (v, mask) = c.masked_ipv4()?;
                (k.ipv4_dst, m.ipv4_dst) = (v.into(), mask.into());
                1
            }
            (attr::IPV6, "src=") => {
                (k.ipv6_src, m.ipv6_src) = c.masked_ipv6()?;
                0
            }
            (attr::IPV6, "dst=") => {
                (k.ipv6_dst, m.ipv6_dst) = c.masked_ipv6()?;
                1
            }
            (attr::IPV6, "label=") => {
                let (v, mask) = c.masked("a 20-bit flow label", 0xf_ffff)?;
                (k.ipv6_label, m.ipv6_label) = ((v as u32).into(), (mask as u32).into());
                2
            }
            (attr::IPV4 | attr::IPV6, "proto=") => {
                (k.ip_proto, m.ip_proto) = c.masked_u8()?;
                3
            }
            (attr::IPV4, "tos=") | (attr::IPV6, "tclass=") => {
                (k.ip_tos, m.ip_tos) = c.masked_u8()?;
                4
            }
            (attr::IPV4, "ttl=") | (attr::IPV6, "hlimit=") => {
                (k.ip_ttl, m.ip_ttl) = c.masked_u8()?;
                5
            }
            (attr::IPV4 | attr::IPV6, "frag=") => {
                (k.ip_frag, m.ip_frag) = frag(c)?;
                6
            }
            (attr::TCP | attr::UDP | attr::SCTP, "src=") => {
                let (v, mask) = c.masked_u16()?;
                (k.tp_src, m.tp_src) = (v.into(), mask.into());
                0
            }
            (attr::TCP | attr::UDP | attr::SCTP, "dst=") => {
                let (v, mask) = c.masked_u16()?;
                (k.tp_dst, m.tp_dst) = (v.into(), mask.into());
                1
            }
            (attr::ICMP | attr::ICMPV6, "type=") => {
                let (v, mask) = c.masked_u8()?;
                (k.tp_src, m.tp_src) = (u16::from(v).into(), u16::from(mask).into());
                0
            }
            (attr::ICMP | attr::ICMPV6, "code=") => {
                let (v, mask) = c.masked_u8()?;
                (k.tp_dst, m.tp_dst) = (u16::from(v).into(), u16::from(mask).into());
                1
            }
            (attr::ARP, "op=") => {
                let from = c.pos();
                let (v, mask) = c.masked_u16()?;
                // A key holds the low 8 bits; OVS refuses other operations too.
                k.ip_proto = u8::try_from(v).map_err(|_| {
                    c.error_at(from, ErrorKind::OutOfRange { what: "an ARP operation", max: 0xff })
                })?;
                m.ip_proto = mask as u8;
                2
            }
            (attr::ARP, "sha=") | (attr::ND, "sll=") => {
                (k.arp_sha, m.arp_sha) = c.masked_mac()?;
                3
            }
            (attr::ARP, "tha=") | (attr::ND, "tll=") => {
                (k.arp_tha, m.arp_tha) = c.masked_mac()?;
                4
            }
            (attr::ND, "target=") => {
                (k.nd_target, m.nd_target) = c.masked_ipv6()?;
                0
            }
            (attr::ND_EXTENSIONS, "nd_reserved=") => {
                let (v, mask) = c.masked_u32()?;
                (k.nd_reserved, m.nd_reserved) = (v.into(), mask.into());
                0
            }
            (attr::ND_EXTENSIONS, "nd_options_type=") => {
                (k.nd_options_type, m.nd_options_type) = c.masked_u8()?;
                1
            }
            (attr::PACKET_TYPE, "ns=") => {
                let (v, mask) = c.masked_u16()?;
                k.packet_type = (k.packet_type.get() & 0xffff | u32::from(v) << 16).into();
                m.packet_type = (m.packet_type.get() & 0xffff | u32::from(mask) << 16).into();
                0
            }
            (attr::PACKET_TYPE, "id=") => {
                let (v, mask) = c.masked_u16()?;
                k.packet_type = (k.packet_type.get() & 0xffff_0000 | u32::from(v)).into();
                m.packet_type = (m.packet_type.get() & 0xffff_0000 | u32::from(mask)).into();
                1
            }
            _ => return Ok(None),
        };
        Ok(Some(index))
    })
}

/// Number of the attribute with this name. Common ones first.
pub(super) fn attr_number(name: &str) -> Option<u8> {
    Some(match name {
        "recirc_id" => attr::RECIRC_ID,
        "in_port" => attr::IN_PORT,
        "packet_type" => attr::PACKET_TYPE,
        "eth" => attr::ETHERNET,
        "eth_type" => attr::ETHERTYPE,
        "ipv4" => attr::IPV4,
        "tcp" => attr::TCP,
        "udp" => attr::UDP,
        _ => return attr::NAMES.iter().position(|n| !n.is_empty() && *n == name).map(|n| n as u8),
    })
}
