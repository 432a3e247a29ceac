//! A flow's match and handle.

use crate::attrs::{attr, attr_bytes, is_neighbour_discovery};
use crate::key::{ETH_TYPE_NONE, VLAN_MAX, eth_type, ip_proto};
use crate::{Action, AttrSet, Key, Mask, VlanTag};
use zerocopy::IntoBytes;

/// Number of a datapath port (vport). 0 is the datapath's local port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u32);

/// Unique flow identifier, 1 to 16 octets (U5); shorter ones are kept at their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ufid {
    bytes: [u8; 16],
    len: u8,
}

impl Ufid {
    /// From 1 to 16 octets; `None` for any other number.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let len = octets.len();
        if !(1..=16).contains(&len) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..len].copy_from_slice(octets);
        Some(Self { bytes, len: len as u8 })
    }

    /// The octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What a flow matches: a packet's key agrees with `key` in every bit of `mask`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// The key as installed, bits outside the mask included.
    pub key: Key,
    /// The mask; all ones in every attribute of the key where none was given (R15). It also covers the recirculation
    /// ID, and the tags that an exact Ethernet type excludes (R30).
    pub mask: Mask,
    /// The attributes that were named.
    pub attrs: AttrSet,
}

/// Why a match makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatchError {
    /// An attribute needs another one, exactly matched.
    #[error("{attribute} needs {needs}")]
    MissingPrerequisite {
        /// Name of the attribute.
        attribute: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// Two attributes exclude each other.
    #[error("{attribute} and {other} exclude each other")]
    Conflict {
        /// Name of the attribute.
        attribute: &'static str,
        /// Name of the other.
        other: &'static str,
    },
    /// The mask has bits of an attribute that the key does not name.
    #[error("the mask has bits of {attribute}, which the key does not name")]
    MaskWithoutKey {
        /// Name of the attribute, or `key` for bits that belong to none.
        attribute: &'static str,
    },
    /// More tags than a key holds.
    #[error("more than {VLAN_MAX} VLAN tags")]
    TooManyTags,
}

impl MatchError {
    /// Name of the attribute that is wrong.
    pub fn attribute(&self) -> &'static str {
        match self {
            Self::MissingPrerequisite { attribute, .. }
            | Self::Conflict { attribute, .. }
            | Self::MaskWithoutKey { attribute } => attribute,
            Self::TooManyTags => "encap",
        }
    }
}

impl Match {
    /// Matches the packets that agree with `key` in the bits of `mask`, and names the attributes that this takes: for a
    /// match that nobody has installed in attributes, so that it can be printed and sent.
    pub fn new(key: Key, mask: Mask) -> Self {
        let attrs = AttrSet::matched(&key, &mask.0);
        Self { key, mask, attrs }
    }

    /// Matches exactly the packets with this key, in every attribute that Open vSwitch gives such a packet (R15).
    pub fn exact(key: &Key) -> Self {
        Self::exact_in(key, AttrSet::of(key))
    }

    /// Matches `key` exactly in the named attributes, and anything in the others (R15, U4).
    pub fn exact_in(key: &Key, attrs: AttrSet) -> Self {
        let mut mask = Mask(named_bytes(&attrs));
        if key.eth_type.get() == ETH_TYPE_NONE && attrs.has(0, attr::ETHERNET) {
            // A frame without an Ethernet type is one, although no attribute says so.
            mask.0.eth_type = u16::MAX.into();
            exclude_tags(&mut mask.0, key.vlan_count());
        }
        // Fields that are narrower than their bytes, and those whose meaning depends on another.
        let m = &mut mask.0;
        m.tcp_flags = (m.tcp_flags.get() & 0xfff).into();
        m.ipv6_label = (m.ipv6_label.get() & 0xf_ffff).into();
        if (0..attrs.0.len()).any(|level| attrs.has(level, attr::ICMP) || attrs.has(level, attr::ICMPV6)) {
            (m.tp_src, m.tp_dst) = (0xff.into(), 0xff.into());
        }
        if key.nsh_mdtype != 1 {
            m.nsh_context = Default::default();
        }
        if attrs.has(0, attr::CT_ORIG_TUPLE_IPV4) {
            m.ct_orig_src[4..].fill(0);
            m.ct_orig_dst[4..].fill(0);
        }
        let count = (0..attrs.0.len()).map(|level| attrs.mpls_labels(level, key)).max().unwrap_or(0);
        m.mpls.iter_mut().skip(count).for_each(|lse| *lse = 0.into());
        m.tun_opts.iter_mut().skip(key.tun_opts_len.into()).for_each(|b| *b = 0);
        Self { key: key.clone(), mask, attrs }
    }

    /// True if `key` belongs to a packet of this flow.
    pub fn matches(&self, key: &Key) -> bool {
        self.mask.matches(&self.key, key)
    }

    /// True if some packet could match both: they agree in all bits that both match (R22).
    pub fn overlaps(&self, other: &Self) -> bool {
        let pairs = self.key.words().iter().zip(other.key.words());
        let masks = self.mask.0.words().iter().zip(other.mask.0.words());
        pairs.zip(masks).all(|((a, b), (ma, mb))| (a ^ b) & ma & mb == 0)
    }

    /// Checks that the named attributes go together as Open vSwitch demands: a header stands only with the type that
    /// leads to it, tags with their content, and mask bits only with a named attribute.
    pub fn validate(&self) -> Result<(), MatchError> {
        self.check_attributes()?;
        let mut named = named_bytes(&self.attrs);
        // Exact without being named, as in Open vSwitch.
        named.recirc_id = u32::MAX;
        if self.key.eth_type.get() == ETH_TYPE_NONE {
            // "No Ethernet type" stands in the mask only.
            named.eth_type = u16::MAX.into();
            exclude_tags(&mut named, self.key.vlan_count());
        }
        let stray =
            self.mask.0.as_bytes().iter().zip(named.as_bytes()).position(|(m, named)| m & !named != 0);
        match stray {
            None => Ok(()),
            Some(byte) => {
                let stands_for = |n: &u8| {
                    (0..=VLAN_MAX).flat_map(|level| [(level, false), (level, true)]).any(|(level, tagged)| {
                        attr_bytes(*n, level, tagged).iter().any(|(at, len)| (*at..at + len).contains(&byte))
                    })
                };
                let owner = (1..=attr::IPV6_EXTHDRS).find(stands_for).unwrap_or_default();
                Err(MatchError::MaskWithoutKey { attribute: attr::NAMES[usize::from(owner)] })
            }
        }
    }

    /// The part of [`Self::validate`] that can fail for a match from text.
    pub(crate) fn check_attributes(&self) -> Result<(), MatchError> {
        let (k, set) = (&self.key, &self.attrs);
        let mut inner = 0;
        for level in 0..VLAN_MAX {
            let (vlan, encap) = (set.has(level, attr::VLAN), set.has(level, attr::ENCAP));
            if vlan && !encap {
                return missing(1 << attr::VLAN, "encap()");
            }
            if !encap {
                break;
            }
            let tpid = k.vlan[level].tpid.get();
            if !set.has(level, attr::ETHERTYPE) || !matches!(tpid, eth_type::VLAN | eth_type::QINQ) {
                return missing(1 << attr::ENCAP, "eth_type(0x8100) or eth_type(0x88a8)");
            }
            inner = level + 1;
        }
        if set.has(0, attr::CT_ORIG_TUPLE_IPV4) && set.has(0, attr::CT_ORIG_TUPLE_IPV6) {
            return Err(MatchError::Conflict { attribute: "ct_tuple6", other: "ct_tuple4" });
        }
        self.check_headers(inner)
    }

    /// Checks the headers of the innermost level against the types that lead to them.
    fn check_headers(&self, level: usize) -> Result<(), MatchError> {
        let (k, m, set) = (&self.key, &self.mask.0, &self.attrs);
        // A packet type other than Ethernet stands for the Ethernet type.
        let from_packet_type = !set.has(level, attr::ETHERTYPE)
            && set.has(0, attr::PACKET_TYPE)
            && k.packet_type.get() >> 16 == 1;
        let (ty, ty_mask) = if from_packet_type {
            (k.packet_type.get() as u16, m.packet_type.get() as u16)
        } else {
            (k.eth_type.get(), m.eth_type.get())
        };
        let exact_type = ty_mask == u16::MAX;
        let exact_proto = m.ip_proto == u8::MAX;
        let ip = set.has(level, attr::IPV4) || set.has(level, attr::IPV6);
        let named = set.0[level] & HEADERS;
        let elsewhere = (0..set.0.len()).filter(|l| *l != level).fold(0, |bits, l| bits | set.0[l] & HEADERS);
        if elsewhere != 0 {
            return missing(elsewhere, "its place at the innermost level");
        }
        for n in attr::IPV4..=attr::IPV6_EXTHDRS {
            if named & 1 << n == 0 {
                continue;
            }
            // Whether the key leads to the header, whether the mask does, and what to say if not.
            let (key_leads, mask_leads, needs) = match n {
                attr::IPV4 => (ty == eth_type::IPV4, exact_type, "eth_type(0x0800), exact"),
                attr::IPV6 | attr::IPV6_EXTHDRS => {
                    (ty == eth_type::IPV6, exact_type, "eth_type(0x86dd), exact")
                }
                attr::ARP => (
                    matches!(ty, eth_type::ARP | eth_type::RARP),
                    exact_type,
                    "eth_type(0x0806) or eth_type(0x8035), exact",
                ),
                attr::MPLS => (
                    matches!(ty, eth_type::MPLS | eth_type::MPLS_MCAST),
                    exact_type,
                    "eth_type(0x8847) or eth_type(0x8848), exact",
                ),
                attr::NSH => (ty == eth_type::NSH, exact_type, "eth_type(0x894f), exact"),
                attr::TCP | attr::TCP_FLAGS => {
                    (ip && k.ip_proto == ip_proto::TCP, exact_proto, "ipv4() or ipv6() with proto 6, exact")
                }
                attr::UDP => {
                    (ip && k.ip_proto == ip_proto::UDP, exact_proto, "ipv4() or ipv6() with proto 17, exact")
                }
                attr::SCTP => (
                    ip && k.ip_proto == ip_proto::SCTP,
                    exact_proto,
                    "ipv4() or ipv6() with proto 132, exact",
                ),
                attr::ICMP => (
                    set.has(level, attr::IPV4) && k.ip_proto == ip_proto::ICMP,
                    exact_proto,
                    "ipv4() with proto 1, exact",
                ),
                attr::ICMPV6 => (
                    set.has(level, attr::IPV6) && k.ip_proto == ip_proto::ICMPV6,
                    exact_proto,
                    "ipv6() with proto 58, exact",
                ),
                attr::ND | attr::ND_EXTENSIONS => (
                    set.has(level, attr::ICMPV6) && is_neighbour_discovery(k),
                    m.tp_src.get() & 0xff == 0xff && m.tp_dst.get() & 0xff == 0xff,
                    "icmpv6() with type 135 or 136 and code 0, exact",
                ),
                _ => continue,
            };
            // A header that is wildcarded whole may stand without an exact type, as it does in verbose dumps.
            let wildcard = || {
                let mask = m.as_bytes();
                attr_bytes(n, level, false)
                    .iter()
                    .all(|(at, len)| mask[*at..at + len].iter().all(|b| *b == 0))
            };
            if !key_leads || !(mask_leads || wildcard()) {
                return missing(1 << n, needs);
            }
        }
        Ok(())
    }
}

/// Attributes that stand only at the innermost level.
const HEADERS: u64 = 1 << attr::IPV4
    | 1 << attr::IPV6
    | 1 << attr::TCP
    | 1 << attr::UDP
    | 1 << attr::ICMP
    | 1 << attr::ICMPV6
    | 1 << attr::ARP
    | 1 << attr::ND
    | 1 << attr::SCTP
    | 1 << attr::TCP_FLAGS
    | 1 << attr::MPLS
    | 1 << attr::NSH
    | 1 << attr::ND_EXTENSIONS
    | 1 << attr::IPV6_EXTHDRS;

/// The first attribute of `bits` needs something.
fn missing(bits: u64, needs: &'static str) -> Result<(), MatchError> {
    let attribute = attr::NAMES.get(bits.trailing_zeros() as usize).copied().unwrap_or_default();
    Err(MatchError::MissingPrerequisite { attribute, needs })
}

/// Ones in all the bytes that the attributes stand for.
fn named_bytes(attrs: &AttrSet) -> Key {
    let mut bytes = Key::default();
    for level in 0..attrs.0.len() {
        let tagged = attrs.has(level, attr::VLAN) || attrs.has(level, attr::ENCAP);
        for n in attrs.level(level) {
            for (offset, len) in attr_bytes(n, level, tagged) {
                if let Some(bytes) = bytes.as_mut_bytes().get_mut(*offset..offset + len) {
                    bytes.fill(0xff);
                }
            }
        }
        if !tagged && attrs.has(level, attr::ETHERTYPE) {
            exclude_tags(&mut bytes, level);
        }
    }
    bytes
}

/// Makes `mask` match exactly "no tag" from `level` on. With a tag there, the Ethernet type of that level would be the
/// tag's (R30), so a match on another type is one on the tag's absence, too.
pub(crate) fn exclude_tags(mask: &mut Key, level: usize) {
    let exact = VlanTag { tpid: u16::MAX.into(), tci: u16::MAX.into() };
    mask.vlan.iter_mut().skip(level).for_each(|tag| *tag = exact);
}

/// A flow: handle, match and actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// Optional handle (R24).
    pub ufid: Option<Ufid>,
    /// What it matches.
    pub matching: Match,
    /// What it does; empty drops.
    pub actions: Vec<Action>,
}
