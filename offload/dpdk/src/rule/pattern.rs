//! A pattern as a match.
//!
//! An item is a header of `rte_flow.h` as bytes, in the order of the wire. For each kind a table says which of its bytes are
//! fields that a flow can match; a mask bit anywhere else is refused, so that nothing asked for is ever left out. A mask
//! narrows the header, an item without `spec` only says that the header is there.
//!
//! An Ethernet type follows from the next item, as `rte_flow.h` has it: `ETH / IPV4` means untagged IPv4. One thing is read
//! more widely than documented: Open vSwitch up to 3.1 puts the innermost type into ETH although a VLAN item follows. As no
//! tag has such a protocol ID, that is the only thing that it can mean.

use super::refusal::{Culprit, Places, Refusal};
use flowlift_flow::key::{VLAN_CFI, eth_type, ip_proto};
use flowlift_flow::{Key, Mask, Match, VlanTag};

/// What kind of header an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ItemKind {
    Void,
    Eth,
    Vlan,
    Ipv4,
    Ipv6,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmp6,
    Arp,
    /// One that no flow has, by its number in `rte_flow.h`.
    Other(u32),
}

impl ItemKind {
    /// Name, as in `rte_flow.h`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Void => "VOID",
            Self::Eth => "ETH",
            Self::Vlan => "VLAN",
            Self::Ipv4 => "IPV4",
            Self::Ipv6 => "IPV6",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
            Self::Icmp6 => "ICMP6",
            Self::Arp => "ARP_ETH_IPV4",
            Self::Other(_) => "this item",
        }
    }

    /// Bytes of its structure.
    pub fn size(self) -> usize {
        match self {
            Self::Void | Self::Other(_) => 0,
            Self::Eth => 20,
            Self::Vlan | Self::Udp | Self::Icmp => 8,
            Self::Ipv4 | Self::Tcp => 20,
            Self::Ipv6 => 44,
            Self::Sctp => 12,
            Self::Icmp6 => 4,
            // Aligned as C does: two bytes of padding behind each Ethernet address.
            Self::Arp => 32,
        }
    }

    /// The fields that a flow can match: first byte, bytes, and which bits of them.
    pub(super) fn fields(self) -> &'static [(usize, usize, Field)] {
        use Field::*;
        match self {
            Self::Void | Self::Other(_) => &[],
            Self::Eth => &[(0, 6, EthDst), (6, 6, EthSrc), (12, 2, EthType), (14, 1, HasVlan)],
            Self::Vlan => &[(0, 2, Tci), (2, 2, EthType), (4, 1, HasMoreVlan)],
            Self::Ipv4 => &[
                (0, 1, VersionIhl),
                (1, 1, Tos),
                (6, 2, Fragment),
                (8, 1, Ttl),
                (9, 1, Proto),
                (12, 4, Ipv4Src),
                (16, 4, Ipv4Dst),
            ],
            Self::Ipv6 => &[
                (0, 4, Ipv6First),
                (6, 1, Proto),
                (7, 1, Ttl),
                (8, 16, Ipv6Src),
                (24, 16, Ipv6Dst),
                (40, 1, Extensions),
            ],
            Self::Tcp => &[(0, 2, L4Src), (2, 2, L4Dst), (12, 2, TcpFlags)],
            Self::Udp | Self::Sctp => &[(0, 2, L4Src), (2, 2, L4Dst)],
            Self::Icmp | Self::Icmp6 => &[(0, 1, L4Src), (1, 1, L4Dst)],
            Self::Arp => &[
                (0, 6, ArpFixed),
                (6, 2, ArpOp),
                (8, 6, ArpSha),
                (16, 4, Ipv4Src),
                (20, 6, ArpTha),
                (28, 4, Ipv4Dst),
            ],
        }
    }

    /// What an item with a `spec` and no `mask` matches: `rte_flow_item_*_mask` of `rte_flow.h`.
    fn default_mask(self, mask: &mut [u8]) {
        // First byte and bytes.
        let ones: &[(usize, usize)] = match self {
            Self::Eth => &[(0, 12)],
            Self::Vlan => &[(1, 1)],
            Self::Ipv4 => &[(12, 8)],
            Self::Ipv6 => &[(8, 32)],
            Self::Tcp | Self::Udp | Self::Sctp => &[(0, 4)],
            Self::Icmp | Self::Icmp6 => &[(0, 2)],
            Self::Arp => &[(8, 6), (16, 10), (28, 4)],
            Self::Void | Self::Other(_) => &[],
        };
        for (at, len) in ones {
            if let Some(bytes) = mask.get_mut(*at..at + len) {
                bytes.fill(0xff);
            }
        }
        if self == Self::Vlan
            && let Some(first) = mask.first_mut()
        {
            *first = 0x0f;
        }
    }
}

/// A field of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    EthDst,
    EthSrc,
    EthType,
    HasVlan,
    HasMoreVlan,
    Tci,
    VersionIhl,
    Tos,
    Fragment,
    Ttl,
    Proto,
    Ipv4Src,
    Ipv4Dst,
    Ipv6First,
    Ipv6Src,
    Ipv6Dst,
    Extensions,
    L4Src,
    L4Dst,
    TcpFlags,
    ArpFixed,
    ArpOp,
    ArpSha,
    ArpTha,
}

/// An item. The slices have the length of the kind.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Kind.
    pub kind: ItemKind,
    /// What the header looks like.
    pub spec: Option<&'a [u8]>,
    /// Upper end of a range.
    pub last: Option<&'a [u8]>,
    /// Which bits count.
    pub mask: Option<&'a [u8]>,
}

/// What is said of the type of the header that follows.
#[derive(Debug, Clone, Copy, Default)]
struct NextType {
    value: u16,
    mask: u16,
    item: usize,
}

/// A match as it grows.
struct Builder {
    key: Key,
    mask: Key,
    places: Places,
    /// Tags that VLAN items stand for.
    tags: usize,
    next: NextType,
    proto: (u8, u8),
    /// What the item says of a (further) tag: `None` nothing.
    tagged: Option<(bool, usize)>,
    fragment_asked: bool,
}

/// The match of a pattern on packets that come in by `in_port` in group `group`, and where its parts come from.
///
/// # Errors
/// The first item that makes no sense, or that no flow can say.
pub fn to_match(items: &[Item<'_>], in_port: u32, group: u32) -> Result<(Match, Places), Refusal> {
    let mut b = Builder {
        key: Key { in_port, recirc_id: group, ..Key::default() },
        mask: Key { in_port: u32::MAX, recirc_id: u32::MAX, ..Key::default() },
        places: Places::default(),
        tags: 0,
        next: NextType::default(),
        proto: (0, 0),
        tagged: None,
        fragment_asked: false,
    };
    for (n, item) in items.iter().enumerate() {
        b.item(n, item)?;
    }
    b.finish()?;
    Ok((Match { key: b.key, mask: Mask(b.mask), attrs: Default::default() }, b.places))
}

/// The two bytes at `at`, big-endian; bytes that are not there are 0.
fn be16(bytes: &[u8], at: usize) -> u16 {
    let byte = |n: usize| u16::from(bytes.get(n).copied().unwrap_or(0));
    byte(at) << 8 | byte(at + 1)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |v, b| v << 8 | u32::from(*b))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    out
}

impl Builder {
    fn item(&mut self, n: usize, item: &Item<'_>) -> Result<(), Refusal> {
        let kind = item.kind;
        if kind == ItemKind::Void {
            return Ok(());
        }
        if let ItemKind::Other(number) = kind {
            let message = format!("no flow of this NIC matches items of type {number}");
            return Err(Refusal::unsupported(Culprit::Item(n), message));
        }
        self.order(n, kind)?;
        let (spec, mask) = contents(n, item)?;
        self.begin(n, kind)?;
        for (at, len, field) in kind.fields() {
            let (Some(value), Some(bits)) = (spec.get(*at..at + len), mask.get(*at..at + len)) else {
                continue;
            };
            if bits.iter().any(|b| *b != 0) {
                self.field(n, *field, value, bits)?;
            }
        }
        Ok(())
    }

    /// Refuses a header that cannot come here.
    fn order(&self, n: usize, kind: ItemKind) -> Result<(), Refusal> {
        let p = &self.places;
        let refuse = |why: String| Err(Refusal::invalid(Culprit::Item(n), why));
        let after = |what: &str| refuse(format!("{} comes after {what}", kind.name()));
        match kind {
            ItemKind::Eth if p.eth.is_some() || self.tags > 0 || p.l3.is_some() => after("another header"),
            ItemKind::Vlan if p.l3.is_some() => after("a network header"),
            ItemKind::Vlan if self.tags == 2 => Err(Refusal::unsupported(
                Culprit::Item(n),
                "a third VLAN item, which no flow of this NIC matches",
            )),
            ItemKind::Ipv4 | ItemKind::Ipv6 | ItemKind::Arp if p.l3.is_some() => after("a network header"),
            ItemKind::Tcp | ItemKind::Udp | ItemKind::Sctp | ItemKind::Icmp | ItemKind::Icmp6 => {
                let ty = if p.l3.is_some() { self.key.eth_type.get() } else { 0 };
                let needs = match kind {
                    ItemKind::Icmp if ty != eth_type::IPV4 => Some("IPV4"),
                    ItemKind::Icmp6 if ty != eth_type::IPV6 => Some("IPV6"),
                    _ if !matches!(ty, eth_type::IPV4 | eth_type::IPV6) => Some("IPV4 or IPV6"),
                    _ => None,
                };
                match (needs, p.l4) {
                    (Some(needs), _) => refuse(format!("{} needs {needs} before it", kind.name())),
                    (None, Some(_)) => after("a transport header"),
                    (None, None) => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// What the header's being there says.
    fn begin(&mut self, n: usize, kind: ItemKind) -> Result<(), Refusal> {
        match kind {
            ItemKind::Eth => self.places.eth = Some(n),
            ItemKind::Vlan => self.begin_vlan(n)?,
            ItemKind::Ipv4 => self.begin_l3(n, eth_type::IPV4)?,
            ItemKind::Ipv6 => self.begin_l3(n, eth_type::IPV6)?,
            ItemKind::Arp => self.begin_l3(n, eth_type::ARP)?,
            ItemKind::Tcp => self.begin_l4(n, ip_proto::TCP)?,
            ItemKind::Udp => self.begin_l4(n, ip_proto::UDP)?,
            ItemKind::Sctp => self.begin_l4(n, ip_proto::SCTP)?,
            ItemKind::Icmp => self.begin_l4(n, ip_proto::ICMP)?,
            ItemKind::Icmp6 => self.begin_l4(n, ip_proto::ICMPV6)?,
            ItemKind::Void | ItemKind::Other(_) => {}
        }
        Ok(())
    }

    fn begin_vlan(&mut self, n: usize) -> Result<(), Refusal> {
        if let Some((false, item)) = self.tagged.take() {
            return Err(Refusal::invalid(
                Culprit::ItemSpec(item),
                "it asks for no tag, but a VLAN item follows",
            ));
        }
        let at = self.tags;
        let next = self.next;
        match (next.value, next.mask) {
            (_, 0) => {}
            (eth_type::VLAN | eth_type::QINQ, 0xffff) => {
                (self.key.vlan[at].tpid, self.mask.vlan[at].tpid) = (next.value.into(), 0xffff.into());
                self.next = NextType::default();
            }
            // The innermost type, as Open vSwitch has it; see the module's head.
            (_, 0xffff) => {}
            _ => return Err(partial_type(next.item)),
        }
        (self.key.vlan[at].tci, self.mask.vlan[at].tci) = (VLAN_CFI.into(), VLAN_CFI.into());
        self.places.vlan[at] = Some(n);
        self.tags += 1;
        Ok(())
    }

    fn begin_l3(&mut self, n: usize, ty: u16) -> Result<(), Refusal> {
        let next = self.next;
        if (next.value ^ ty) & next.mask != 0 {
            let message = format!("it asks for type {:#06x}, but the next item means {ty:#06x}", next.value);
            return Err(Refusal::invalid(Culprit::ItemSpec(next.item), message));
        }
        self.places.l3 = Some(n);
        self.settle_type(ty);
        Ok(())
    }

    /// The innermost type is known, and with it that no further tag is there.
    fn settle_type(&mut self, ty: u16) {
        (self.key.eth_type, self.mask.eth_type) = (ty.into(), 0xffff.into());
        let tags = self.tags + usize::from(matches!(self.tagged, Some((true, _))));
        if let (Some((true, _)), Some(key), Some(mask)) =
            (self.tagged, self.key.vlan.get_mut(self.tags), self.mask.vlan.get_mut(self.tags))
        {
            (key.tci, mask.tci) = (VLAN_CFI.into(), VLAN_CFI.into());
        }
        self.no_tag_from(tags);
    }

    fn no_tag_from(&mut self, at: usize) {
        let exact = VlanTag { tpid: u16::MAX.into(), tci: u16::MAX.into() };
        self.mask.vlan.iter_mut().skip(at).for_each(|tag| *tag = exact);
    }

    fn begin_l4(&mut self, n: usize, proto: u8) -> Result<(), Refusal> {
        let (value, mask) = self.proto;
        if (value ^ proto) & mask != 0 {
            let message = format!("it means protocol {proto}, but the network header asks for {value}");
            return Err(Refusal::invalid(Culprit::Item(n), message));
        }
        (self.key.ip_proto, self.mask.ip_proto) = (proto, 0xff);
        // Fragments but for the first have no transport header, and the first is left out with them.
        (self.key.ip_frag, self.mask.ip_frag) = (0, 0xff);
        self.places.l4 = Some(n);
        Ok(())
    }

    fn field(&mut self, n: usize, field: Field, value: &[u8], bits: &[u8]) -> Result<(), Refusal> {
        let (k, m) = (&mut self.key, &mut self.mask);
        let (v8, m8) = (value.first().copied().unwrap_or(0), bits.first().copied().unwrap_or(0));
        let (v16, m16) = (be16(value, 0), be16(bits, 0));
        let refuse_mask = |why: &str| Err(Refusal::unsupported(Culprit::ItemMask(n), why));
        match field {
            Field::EthDst => (k.eth_dst, m.eth_dst) = (array(value), array(bits)),
            Field::EthSrc => (k.eth_src, m.eth_src) = (array(value), array(bits)),
            Field::EthType => {
                // Behind a VLAN item of Open vSwitch's the type is known already.
                let known = self.next;
                if known.mask != 0 && (known.value ^ v16) & known.mask & m16 != 0 {
                    return Err(Refusal::invalid(Culprit::ItemSpec(n), "two items ask for different types"));
                }
                if known.mask != 0xffff {
                    self.next = NextType { value: v16 & m16, mask: m16, item: n };
                }
            }
            Field::HasVlan | Field::HasMoreVlan => {
                if m8 & 1 != 0 {
                    self.tagged = Some((v8 & 1 != 0, n));
                }
                if m8 & !1 != 0 {
                    return Err(Refusal::invalid(Culprit::ItemMask(n), "reserved bits are to be zero"));
                }
            }
            Field::Tci => {
                if m16 & VLAN_CFI != 0 {
                    return refuse_mask("the drop-eligible bit of a tag is not matched by this NIC");
                }
                let at = self.tags - 1;
                k.vlan[at].tci = (v16 & m16 | VLAN_CFI).into();
                m.vlan[at].tci = (m16 | VLAN_CFI).into();
            }
            Field::VersionIhl => {
                if (v8 ^ 0x45) & m8 != 0 {
                    return Err(Refusal::unsupported(
                        Culprit::ItemSpec(n),
                        "only headers of version 4 without options are matched",
                    ));
                }
            }
            Field::Tos => (k.ip_tos, m.ip_tos) = (v8 & m8, m8),
            Field::Ttl => (k.ip_ttl, m.ip_ttl) = (v8 & m8, m8),
            Field::Proto => {
                self.proto = (v8, m8);
                (k.ip_proto, m.ip_proto) = (v8 & m8, m8);
            }
            Field::Fragment => {
                if m16 & !0x3fff != 0 {
                    return refuse_mask(
                        "of the fragment word only offset and \"more fragments\" are matched",
                    );
                }
                if v16 & m16 != 0 {
                    return Err(Refusal::unsupported(
                        Culprit::ItemSpec(n),
                        "fragments are not seen by the NIC's parser",
                    ));
                }
                self.fragment_asked = true;
            }
            Field::Ipv4Src => {
                (k.ipv4_src, m.ipv4_src) = ((be32(value) & be32(bits)).into(), be32(bits).into())
            }
            Field::Ipv4Dst => {
                (k.ipv4_dst, m.ipv4_dst) = ((be32(value) & be32(bits)).into(), be32(bits).into())
            }
            Field::Ipv6First => {
                let (v, b) = (be32(value), be32(bits));
                if b >> 28 != 0 && (v ^ 6 << 28) & b & 0xf << 28 != 0 {
                    return Err(Refusal::unsupported(
                        Culprit::ItemSpec(n),
                        "only headers of version 6 are matched",
                    ));
                }
                (k.ip_tos, m.ip_tos) = ((v >> 20) as u8 & (b >> 20) as u8, (b >> 20) as u8);
                (k.ipv6_label, m.ipv6_label) = ((v & b & 0xf_ffff).into(), (b & 0xf_ffff).into());
            }
            Field::Ipv6Src => (k.ipv6_src, m.ipv6_src) = (array(value), array(bits)),
            Field::Ipv6Dst => (k.ipv6_dst, m.ipv6_dst) = (array(value), array(bits)),
            Field::Extensions => {
                // Bit 2 is "has a fragment header"; packets with any extension header never get into a table.
                if v8 & m8 != 0 {
                    return Err(Refusal::unsupported(
                        Culprit::ItemSpec(n),
                        "extension headers are not seen by the NIC's parser",
                    ));
                }
                self.fragment_asked |= m8 & 4 != 0;
            }
            Field::L4Src if bits.len() == 1 => {
                (k.tp_src, m.tp_src) = (u16::from(v8 & m8).into(), u16::from(m8).into())
            }
            Field::L4Dst if bits.len() == 1 => {
                (k.tp_dst, m.tp_dst) = (u16::from(v8 & m8).into(), u16::from(m8).into())
            }
            Field::L4Src => (k.tp_src, m.tp_src) = ((v16 & m16).into(), m16.into()),
            Field::L4Dst => (k.tp_dst, m.tp_dst) = ((v16 & m16).into(), m16.into()),
            Field::TcpFlags => {
                if m16 & 0xf000 != 0 {
                    return refuse_mask("the length of a TCP header is not matched by this NIC");
                }
                (k.tcp_flags, m.tcp_flags) = ((v16 & m16).into(), m16.into());
            }
            Field::ArpFixed => {
                const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
                if value.iter().zip(bits).zip(ETHERNET_IPV4).any(|((v, m), known)| (v ^ known) & m != 0) {
                    return Err(Refusal::invalid(
                        Culprit::ItemSpec(n),
                        "it is for Ethernet and IPv4 addresses alone",
                    ));
                }
            }
            Field::ArpOp => {
                if m16 != 0xff && m16 != 0xffff || v16 & m16 > 0xff {
                    return refuse_mask("of an ARP operation all bits are matched, and none above 255");
                }
                (k.ip_proto, m.ip_proto) = (v16 as u8, 0xff);
            }
            Field::ArpSha => (k.arp_sha, m.arp_sha) = (array(value), array(bits)),
            Field::ArpTha => (k.arp_tha, m.arp_tha) = (array(value), array(bits)),
        }
        Ok(())
    }

    /// The pattern's end: what no later item said.
    fn finish(&mut self) -> Result<(), Refusal> {
        if self.fragment_asked {
            (self.key.ip_frag, self.mask.ip_frag) = (0, 0xff);
        }
        if self.places.l3.is_some() {
            return Ok(());
        }
        let next = self.next;
        match (next.value, next.mask) {
            (_, 0) => {}
            (eth_type::VLAN | eth_type::QINQ, 0xffff) if self.tags < 2 => {
                let at = self.tags;
                (self.key.vlan[at].tpid, self.mask.vlan[at].tpid) = (next.value.into(), 0xffff.into());
                (self.key.vlan[at].tci, self.mask.vlan[at].tci) = (VLAN_CFI.into(), VLAN_CFI.into());
                return Ok(());
            }
            (ty, 0xffff) => {
                self.settle_type(ty);
                return Ok(());
            }
            _ => return Err(partial_type(next.item)),
        }
        match self.tagged {
            Some((true, n)) if self.tags == 2 => {
                return Err(Refusal::unsupported(
                    Culprit::ItemSpec(n),
                    "a third tag is not matched by this NIC",
                ));
            }
            Some((true, _)) => {
                let at = self.tags;
                (self.key.vlan[at].tci, self.mask.vlan[at].tci) = (VLAN_CFI.into(), VLAN_CFI.into());
            }
            Some((false, _)) => self.no_tag_from(self.tags),
            None => {}
        }
        Ok(())
    }
}

fn partial_type(item: usize) -> Refusal {
    Refusal::unsupported(Culprit::ItemMask(item), "a type is matched in all its bits or not at all")
}

/// Room for the bytes of any item.
pub(super) type Contents = [u8; 44];

/// The item's bytes and mask, checked: no range, no bit that is no field, value bits only under the mask.
pub(super) fn contents(n: usize, item: &Item<'_>) -> Result<(Contents, Contents), Refusal> {
    let len = item.kind.size();
    let (mut spec, mut mask) = ([0; 44], [0; 44]);
    let Some(given) = item.spec else {
        let invalid =
            |culprit, what: &str| Err(Refusal::invalid(culprit, format!("{what} without spec says nothing")));
        return match (item.last, item.mask) {
            (Some(_), _) => invalid(Culprit::ItemLast(n), "last"),
            (_, Some(_)) => invalid(Culprit::ItemMask(n), "mask"),
            (None, None) => Ok((spec, mask)),
        };
    };
    match item.mask {
        Some(bits) => mask.iter_mut().zip(bits).take(len).for_each(|(to, from)| *to = *from),
        None => item.kind.default_mask(&mut mask[..len]),
    }
    for ((to, from), bits) in spec.iter_mut().zip(given).zip(&mask).take(len) {
        *to = from & bits;
    }
    let fields = item.kind.fields();
    let stray = (0..len).find(|at| {
        mask[*at] != 0 && !fields.iter().any(|(start, len, _)| (*start..start + len).contains(at))
    });
    if let Some(at) = stray {
        let message = format!("byte {at} of {} is not matched by this NIC", item.kind.name());
        return Err(Refusal::unsupported(Culprit::ItemMask(n), message));
    }
    if let Some(last) = item.last {
        // A field of `last` that is 0 says nothing, one that equals `spec` is no range.
        let range = fields.iter().any(|(start, len, _)| {
            let part =
                || (*start..start + len).map(|at| (last.get(at).copied().unwrap_or(0) & mask[at], spec[at]));
            part().any(|(end, _)| end != 0) && part().any(|(end, first)| end != first)
        });
        if range {
            let message = format!("a range of {} values is not matched by this NIC", item.kind.name());
            return Err(Refusal::unsupported(Culprit::ItemLast(n), message));
        }
    }
    Ok((spec, mask))
}

#[cfg(test)]
mod tests;
