//! Key attributes and their masks, to text.

use super::{AttrOrder, PortNames, flags, nsh, tunnel};
use crate::attrs::{attr, attr_bytes};
use crate::key::VLAN_CFI;
use crate::{AttrSet, Frag, Key, MacAddr, Match, PortNo};
use std::fmt::{self, Display, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use zerocopy::IntoBytes;

/// How to print.
#[derive(Clone, Copy, Default)]
pub struct PrintOptions<'a> {
    /// Names instead of port numbers (`--names`).
    pub names: Option<&'a dyn PortNames>,
    /// Wildcarded fields and attributes too (`-m`).
    pub verbose: bool,
}

impl fmt::Debug for PrintOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrintOptions")
            .field("names", &self.names.is_some())
            .field("verbose", &self.verbose)
            .finish()
    }
}

/// A match as Open vSwitch prints it.
#[derive(Debug, Clone, Copy)]
pub struct MatchText<'a> {
    /// What to print.
    pub matching: &'a Match,
    /// Order of the attributes; without one, that of OVS 4.0.
    pub order: Option<&'a AttrOrder>,
    /// How.
    pub options: PrintOptions<'a>,
}

impl Display for MatchText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer { m: self.matching, order: self.order, options: self.options, masked: true }.level(f, 0)
    }
}

/// A packet's key as Open vSwitch prints it: every attribute in full, without masks.
pub fn key_text(key: &Key) -> impl Display {
    struct KeyText(Match);
    impl Display for KeyText {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let options = PrintOptions { names: None, verbose: true };
            Printer { m: &self.0, order: None, options, masked: false }.level(f, 0)
        }
    }
    KeyText(Match::exact(key))
}

/// The order in which OVS 4.0 composes a key (R39).
const COMPOSED: [u8; 31] = [
    attr::RECIRC_ID,
    attr::DP_HASH,
    attr::PRIORITY,
    attr::TUNNEL,
    attr::IN_PORT,
    attr::SKB_MARK,
    attr::CT_STATE,
    attr::CT_ZONE,
    attr::CT_MARK,
    attr::CT_LABELS,
    attr::CT_ORIG_TUPLE_IPV4,
    attr::CT_ORIG_TUPLE_IPV6,
    attr::PACKET_TYPE,
    attr::ETHERNET,
    attr::ETHERTYPE,
    attr::VLAN,
    attr::ENCAP,
    attr::IPV4,
    attr::IPV6,
    attr::IPV6_EXTHDRS,
    attr::ARP,
    attr::MPLS,
    attr::NSH,
    attr::TCP,
    attr::TCP_FLAGS,
    attr::UDP,
    attr::SCTP,
    attr::ICMP,
    attr::ICMPV6,
    attr::ND,
    attr::ND_EXTENSIONS,
];

struct Printer<'a> {
    m: &'a Match,
    order: Option<&'a AttrOrder>,
    options: PrintOptions<'a>,
    /// False for a text without any masks.
    masked: bool,
}

impl Printer<'_> {
    fn level(&self, w: &mut dyn Write, level: usize) -> fmt::Result {
        let set = &self.m.attrs;
        let tagged = set.has(level, attr::VLAN) || set.has(level, attr::ENCAP);
        let order = self.order.map(|o| o.level(level)).filter(|o| !o.is_empty()).unwrap_or(&COMPOSED);
        let mut first = true;
        let mut separate =
            |w: &mut dyn Write| if std::mem::take(&mut first) { Ok(()) } else { w.write_char(',') };
        let mut shows_packet_type = false;
        for attr in order.iter().copied().filter(|n| set.has(level, *n)) {
            let nested = matches!(attr, attr::ENCAP | attr::TUNNEL | attr::NSH | attr::IPV6_EXTHDRS);
            let wildcard = !nested && self.is_wildcard(attr, level, tagged);
            shows_packet_type |= attr == attr::PACKET_TYPE && !wildcard;
            if self.options.verbose || !wildcard {
                separate(w)?;
                w.write_str(attr::NAMES[usize::from(attr)])?;
                w.write_char('(')?;
                self.attribute(w, attr, level, tagged)?;
                w.write_char(')')?;
            } else if attr == attr::ETHERNET && !shows_packet_type {
                // In a kernel's key its mere presence says that the packet begins with an Ethernet header.
                separate(w)?;
                w.write_str("eth()")?;
            }
        }
        let mask = self.m.mask.0.eth_type.get();
        let innermost = !set.has(level, attr::ENCAP) && (level == 0 || set.level(level).next().is_some());
        if self.masked && innermost && !set.has(level, attr::ETHERTYPE) && mask != 0 {
            // In the mask but not in the key: a frame without an Ethernet type.
            separate(w)?;
            write!(w, "eth_type(0/0x{mask:04x})")?;
        }
        Ok(())
    }

    fn is_wildcard(&self, attr: u8, level: usize, tagged: bool) -> bool {
        let mask = self.m.mask.0.as_bytes();
        attr_bytes(attr, level, tagged).iter().all(|(offset, len)| {
            mask.get(*offset..offset + len).is_none_or(|bytes| bytes.iter().all(|b| *b == 0))
        })
    }

    /// What stands between an attribute's parentheses.
    fn attribute(&self, w: &mut dyn Write, attr: u8, level: usize, tagged: bool) -> fmt::Result {
        let (k, m) = (&self.m.key, &self.m.mask.0);
        let verbose = self.options.verbose;
        match attr {
            attr::ENCAP => self.level(w, level + 1),
            attr::PRIORITY => hex(w, k.skb_priority, m.skb_priority, u32::MAX),
            attr::SKB_MARK => hex(w, k.skb_mark, m.skb_mark, u32::MAX),
            attr::DP_HASH => hex(w, k.dp_hash, m.dp_hash, u32::MAX),
            attr::RECIRC_ID => hex(w, k.recirc_id, m.recirc_id, u32::MAX),
            attr::CT_MARK => hex(w, k.ct_mark, m.ct_mark, u32::MAX),
            attr::CT_ZONE => hex(w, k.ct_zone.into(), m.ct_zone.into(), u16::MAX.into()),
            attr::CT_STATE if verbose => hex(w, k.ct_state, m.ct_state, u32::MAX),
            attr::CT_STATE => flags::CT_STATE.print_masked(w, k.ct_state, m.ct_state, u32::MAX),
            attr::CT_LABELS => print_u128(w, &k.ct_label, &m.ct_label),
            attr::IN_PORT => match self.options.names.and_then(|n| n.name(PortNo(k.in_port))) {
                Some(name) if m.in_port == u32::MAX => w.write_str(name),
                _ => {
                    write!(w, "{}", k.in_port)?;
                    if m.in_port == u32::MAX { Ok(()) } else { write!(w, "/{}", Hex(m.in_port)) }
                }
            },
            attr::TUNNEL => {
                let mut set = self.m.attrs;
                if set.0[0] >> 40 & 0x1_ffff == 0 {
                    set = AttrSet::of(k);
                }
                tunnel::print(w, k, m, &set, verbose, self.masked)
            }
            attr::VLAN => match (k.vlan.get(level), m.vlan.get(level)) {
                (Some(tag), Some(mask)) => print_tci(w, tag.tci.get(), mask.tci.get(), verbose),
                _ => Ok(()),
            },
            attr::ETHERTYPE => {
                let (value, mask) = match (k.vlan.get(level), m.vlan.get(level)) {
                    (Some(tag), Some(mask)) if tagged => (tag.tpid.get(), mask.tpid.get()),
                    _ => (k.eth_type.get(), m.eth_type.get()),
                };
                write!(w, "0x{value:04x}")?;
                if mask == u16::MAX { Ok(()) } else { write!(w, "/0x{mask:04x}") }
            }
            attr::MPLS => self.mpls(w, level),
            attr::NSH => nsh::print_key(w, k, m),
            attr::TCP_FLAGS => flags::TCP.print_masked(
                w,
                k.tcp_flags.get().into(),
                (m.tcp_flags.get() & 0xfff).into(),
                0xfff,
            ),
            attr::IPV6_EXTHDRS => {
                let bytes = |w: &mut dyn Write, v: u16| {
                    let [a, b] = v.to_ne_bytes();
                    write!(w, "{a:02x} {b:02x}")
                };
                bytes(w, k.ipv6_exthdrs)?;
                if self.masked {
                    w.write_char('/')?;
                    bytes(w, m.ipv6_exthdrs)?;
                }
                Ok(())
            }
            _ => print_headers(&mut Fields::new(w, verbose), attr, k, m),
        }
    }

    fn mpls(&self, w: &mut dyn Write, level: usize) -> fmt::Result {
        let (k, m) = (&self.m.key, &self.m.mask.0);
        let count = self.m.attrs.mpls_labels(level, k).min(k.mpls.len());
        let exact = m.mpls[..count].iter().all(|lse| lse.get() == u32::MAX);
        for i in 0..count {
            if i > 0 {
                w.write_char(',')?;
            }
            let (v, m) = (Lse(k.mpls[i].get()), Lse(m.mpls[i].get()));
            if exact {
                v.print(w)?;
            } else {
                v.print_masked(w, &m)?;
            }
        }
        Ok(())
    }
}

/// A label stack entry.
pub(super) struct Lse(pub(super) u32);

impl Lse {
    fn label(&self) -> u32 {
        self.0 >> 12
    }

    fn tc(&self) -> u32 {
        self.0 >> 9 & 7
    }

    fn bos(&self) -> u32 {
        self.0 >> 8 & 1
    }

    fn ttl(&self) -> u32 {
        self.0 & 0xff
    }

    pub(super) fn print(&self, w: &mut dyn Write) -> fmt::Result {
        write!(w, "label={},tc={},ttl={},bos={}", self.label(), self.tc(), self.ttl(), self.bos())
    }

    /// Every field with its mask, whatever it is; two of them without `0x`.
    pub(super) fn print_masked(&self, w: &mut dyn Write, mask: &Self) -> fmt::Result {
        write!(w, "label={}/0x{:x},tc={}/{:x},", self.label(), mask.label(), self.tc(), mask.tc())?;
        write!(w, "ttl={}/0x{:x},bos={}/{:x}", self.ttl(), mask.ttl(), self.bos(), mask.bos())
    }
}

/// C's `%#x`: no prefix for zero.
pub(super) struct Hex<T>(pub(super) T);

impl<T: fmt::LowerHex + PartialEq + Default> Display for Hex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == T::default() { f.write_char('0') } else { write!(f, "{:#x}", self.0) }
    }
}

fn hex(w: &mut dyn Write, value: u32, mask: u32, exact: u32) -> fmt::Result {
    write!(w, "{}", Hex(value))?;
    if mask == exact { Ok(()) } else { write!(w, "/{}", Hex(mask)) }
}

/// Bytes in hexadecimal without leading zeros; `0` for none but zeros.
pub(super) fn print_hex(w: &mut dyn Write, bytes: &[u8]) -> fmt::Result {
    let Some(first) = bytes.iter().position(|b| *b != 0) else { return w.write_char('0') };
    write!(w, "{:#x}", bytes[first])?;
    bytes[first + 1..].iter().try_for_each(|b| write!(w, "{b:02x}"))
}

pub(super) fn print_u128(w: &mut dyn Write, value: &[u8; 16], mask: &[u8; 16]) -> fmt::Result {
    print_hex(w, value)?;
    if *mask == [0xff; 16] {
        return Ok(());
    }
    w.write_char('/')?;
    print_hex(w, mask)
}

/// A tag control information's fields. The mask's CFI bit has no text form.
pub(super) fn print_tci(w: &mut dyn Write, tci: u16, mask: u16, verbose: bool) -> fmt::Result {
    let mut f = Fields::new(w, true);
    let (vid, pcp) = (tci & 0xfff, tci >> 13);
    let (vid_mask, pcp_mask) = (mask & 0xfff, mask >> 13);
    // Unlike other fields these show their mask as 0x0.
    if verbose || vid | vid_mask != 0 {
        f.name("vid")?;
        write!(f.writer(), "{vid}")?;
        if vid_mask != 0xfff {
            write!(f.writer(), "/{vid_mask:#x}")?;
        }
    }
    if verbose || pcp | pcp_mask != 0 {
        f.name("pcp")?;
        write!(f.writer(), "{pcp}")?;
        if pcp_mask != 7 {
            write!(f.writer(), "/{pcp_mask:#x}")?;
        }
    }
    if tci & VLAN_CFI == 0 {
        f.name("cfi")?;
        f.writer().write_char('0')?;
    }
    Ok(())
}

/// Attributes made of named fields.
pub(super) fn print_headers(f: &mut Fields<'_>, attr: u8, k: &Key, m: &Key) -> fmt::Result {
    match attr {
        attr::ETHERNET => {
            f.mac("src", &k.eth_src, &m.eth_src)?;
            f.mac("dst", &k.eth_dst, &m.eth_dst)
        }
        attr::IPV4 => {
            f.ipv4("src", k.ipv4_src.get(), m.ipv4_src.get())?;
            f.ipv4("dst", k.ipv4_dst.get(), m.ipv4_dst.get())?;
            f.u8("proto", k.ip_proto, m.ip_proto)?;
            f.u8x("tos", k.ip_tos, m.ip_tos)?;
            f.u8("ttl", k.ip_ttl, m.ip_ttl)?;
            f.frag(k.ip_frag, m.ip_frag)
        }
        attr::IPV6 => {
            f.ipv6("src", &k.ipv6_src, &m.ipv6_src)?;
            f.ipv6("dst", &k.ipv6_dst, &m.ipv6_dst)?;
            let (label, mask) = (k.ipv6_label.get(), m.ipv6_label.get());
            f.u32x("label", label, if mask & 0xf_ffff == 0xf_ffff { u32::MAX } else { mask })?;
            f.u8("proto", k.ip_proto, m.ip_proto)?;
            f.u8x("tclass", k.ip_tos, m.ip_tos)?;
            f.u8("hlimit", k.ip_ttl, m.ip_ttl)?;
            f.frag(k.ip_frag, m.ip_frag)
        }
        attr::TCP | attr::UDP | attr::SCTP => {
            f.u16("src", k.tp_src.get(), m.tp_src.get())?;
            f.u16("dst", k.tp_dst.get(), m.tp_dst.get())
        }
        attr::ICMP | attr::ICMPV6 => {
            f.u8("type", k.tp_src.get() as u8, m.tp_src.get() as u8)?;
            f.u8("code", k.tp_dst.get() as u8, m.tp_dst.get() as u8)
        }
        attr::ARP => {
            f.ipv4("sip", k.ipv4_src.get(), m.ipv4_src.get())?;
            f.ipv4("tip", k.ipv4_dst.get(), m.ipv4_dst.get())?;
            let mask = if m.ip_proto == u8::MAX { u16::MAX } else { m.ip_proto.into() };
            f.u16("op", k.ip_proto.into(), mask)?;
            f.mac("sha", &k.arp_sha, &m.arp_sha)?;
            f.mac("tha", &k.arp_tha, &m.arp_tha)
        }
        attr::ND => {
            f.ipv6("target", &k.nd_target, &m.nd_target)?;
            f.mac("sll", &k.arp_sha, &m.arp_sha)?;
            f.mac("tll", &k.arp_tha, &m.arp_tha)
        }
        attr::ND_EXTENSIONS => {
            // OVS prints the reserved word without its mask.
            f.name("nd_reserved")?;
            write!(f.writer(), "{:#x}", k.nd_reserved.get())?;
            f.u8("nd_options_type", k.nd_options_type, m.nd_options_type)
        }
        attr::CT_ORIG_TUPLE_IPV4 => {
            let ip = |bytes: &[u8; 16]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            f.ipv4("src", ip(&k.ct_orig_src), ip(&m.ct_orig_src))?;
            f.ipv4("dst", ip(&k.ct_orig_dst), ip(&m.ct_orig_dst))?;
            f.u8("proto", k.ct_orig_proto, m.ct_orig_proto)?;
            f.u16("tp_src", k.ct_orig_tp_src.get(), m.ct_orig_tp_src.get())?;
            f.u16("tp_dst", k.ct_orig_tp_dst.get(), m.ct_orig_tp_dst.get())
        }
        attr::CT_ORIG_TUPLE_IPV6 => {
            f.ipv6("src", &k.ct_orig_src, &m.ct_orig_src)?;
            f.ipv6("dst", &k.ct_orig_dst, &m.ct_orig_dst)?;
            f.u8("proto", k.ct_orig_proto, m.ct_orig_proto)?;
            f.u16("src_port", k.ct_orig_tp_src.get(), m.ct_orig_tp_src.get())?;
            f.u16("dst_port", k.ct_orig_tp_dst.get(), m.ct_orig_tp_dst.get())
        }
        attr::PACKET_TYPE => {
            let (v, m) = (k.packet_type.get(), m.packet_type.get());
            f.u16("ns", (v >> 16) as u16, (m >> 16) as u16)?;
            f.u16x("id", v as u16, m as u16)
        }
        _ => Ok(()),
    }
}

/// Writes `name=value/mask` fields, separated by commas. A field with a zero mask shows only if verbose, a full mask
/// never.
pub(super) struct Fields<'w> {
    w: &'w mut dyn Write,
    verbose: bool,
    first: bool,
}

impl<'w> Fields<'w> {
    pub(super) fn new(w: &'w mut dyn Write, verbose: bool) -> Self {
        Self { w, verbose, first: true }
    }

    pub(super) fn writer(&mut self) -> &mut dyn Write {
        self.w
    }

    pub(super) fn separate(&mut self) -> fmt::Result {
        if std::mem::take(&mut self.first) { Ok(()) } else { self.w.write_char(',') }
    }

    pub(super) fn name(&mut self, name: &str) -> fmt::Result {
        self.separate()?;
        self.w.write_str(name)?;
        self.w.write_char('=')
    }

    /// Fields of their own, between `open` and `close`.
    pub(super) fn group(
        &mut self,
        open: &str,
        close: &str,
        content: impl FnOnce(&mut Fields<'_>) -> fmt::Result,
    ) -> fmt::Result {
        self.separate()?;
        self.w.write_str(open)?;
        content(&mut Fields::new(self.w, self.verbose))?;
        self.w.write_str(close)
    }

    fn field<T: PartialEq + Default>(
        &mut self,
        name: &str,
        mask: &T,
        full: &T,
        value: &dyn Display,
        mask_text: &dyn Display,
    ) -> fmt::Result {
        if !self.verbose && *mask == T::default() {
            return Ok(());
        }
        self.name(name)?;
        write!(self.w, "{value}")?;
        if mask == full { Ok(()) } else { write!(self.w, "/{mask_text}") }
    }

    pub(super) fn u8(&mut self, name: &str, value: u8, mask: u8) -> fmt::Result {
        self.field(name, &mask, &u8::MAX, &value, &Hex(mask))
    }

    pub(super) fn u8x(&mut self, name: &str, value: u8, mask: u8) -> fmt::Result {
        self.field(name, &mask, &u8::MAX, &Hex(value), &Hex(mask))
    }

    pub(super) fn u16(&mut self, name: &str, value: u16, mask: u16) -> fmt::Result {
        self.field(name, &mask, &u16::MAX, &value, &Hex(mask))
    }

    pub(super) fn u16x(&mut self, name: &str, value: u16, mask: u16) -> fmt::Result {
        self.field(name, &mask, &u16::MAX, &Hex(value), &Hex(mask))
    }

    pub(super) fn u32x(&mut self, name: &str, value: u32, mask: u32) -> fmt::Result {
        self.field(name, &mask, &u32::MAX, &Hex(value), &Hex(mask))
    }

    pub(super) fn u64x(&mut self, name: &str, value: u64, mask: u64) -> fmt::Result {
        self.field(name, &mask, &u64::MAX, &format_args!("{value:#x}"), &Hex(mask))
    }

    pub(super) fn ipv4(&mut self, name: &str, value: u32, mask: u32) -> fmt::Result {
        self.field(name, &mask, &u32::MAX, &Ipv4Addr::from(value), &Ipv4Addr::from(mask))
    }

    pub(super) fn ipv6(&mut self, name: &str, value: &[u8; 16], mask: &[u8; 16]) -> fmt::Result {
        self.field(name, mask, &[0xff; 16], &Ipv6Text(*value), &Ipv6Text(*mask))
    }

    pub(super) fn mac(&mut self, name: &str, value: &MacAddr, mask: &MacAddr) -> fmt::Result {
        self.field(name, mask, &[0xff; 6], &MacText(*value), &MacText(*mask))
    }

    /// The fragment kind, which shows only if it is matched: it has no form with a mask.
    fn frag(&mut self, value: u8, mask: u8) -> fmt::Result {
        if mask == 0 {
            return Ok(());
        }
        self.name("frag")?;
        const FIRST: u8 = Frag::First as u8;
        self.w.write_str(match value {
            0 => "no",
            FIRST => "first",
            _ => "later",
        })
    }
}

/// An Ethernet address.
pub(super) struct MacText(pub(super) MacAddr);

impl Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IPv6 address as `inet_ntop` prints it, which differs from Rust's form for IPv4-compatible addresses.
pub(super) struct Ipv6Text(pub(super) [u8; 16]);

impl Display for Ipv6Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compatible = self.0[..12] == [0; 12] && self.0[12..14] != [0; 2];
        if compatible {
            let [.., a, b, c, d] = self.0;
            return write!(f, "::{a}.{b}.{c}.{d}");
        }
        Display::fmt(&Ipv6Addr::from(self.0), f)
    }
}
