//! A flow's match and handle.

use crate::attrs::{attr, attr_bytes, is_neighbour_discovery};
use crate::key::{VLAN_MAX, eth_type, ip_proto};
use crate::{Action, AttrSet, Key, Mask};
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
    /// The mask; all ones in every attribute of the key where none was given (R15).
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
    /// Matches exactly the packets with this key, in every attribute that Open vSwitch gives such a packet (R15).
    pub fn exact(key: &Key) -> Self {
        Self::exact_in(key, AttrSet::of(key))
    }

    /// Matches `key` exactly in the named attributes, and anything in the others (R15, U4).
    pub fn exact_in(key: &Key, attrs: AttrSet) -> Self {
        let mut mask = Mask::default();
        for level in 0..attrs.0.len() {
            let tagged = attrs.has(level, attr::VLAN) || attrs.has(level, attr::ENCAP);
            for n in attrs.level(level) {
                for (offset, len) in attr_bytes(n, level, tagged) {
                    if let Some(bytes) = mask.0.as_mut_bytes().get_mut(*offset..offset + len) {
                        bytes.fill(0xff);
                    }
                }
            }
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
        let count = (0..attrs.0.len()).map(|level| attrs.mpls_count(level)).max().unwrap_or(0);
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
        let (k, m, set) = (&self.key, &self.mask.0, &self.attrs);
        let missing = |n: u8, needs| {
            Err(MatchError::MissingPrerequisite { attribute: attr::NAMES[usize::from(n)], needs })
        };
        let mut inner = 0;
        for level in 0..VLAN_MAX {
            let (vlan, encap) = (set.has(level, attr::VLAN), set.has(level, attr::ENCAP));
            if vlan && !encap {
                return missing(attr::VLAN, "encap()");
            }
            if !encap {
                break;
            }
            let tpid = k.vlan[level].tpid.get();
            if !set.has(level, attr::ETHERTYPE) || !matches!(tpid, eth_type::VLAN | eth_type::QINQ) {
                return missing(attr::ENCAP, "eth_type(0x8100) or eth_type(0x88a8)");
            }
            inner = level + 1;
        }
        let both = set.has(0, attr::CT_ORIG_TUPLE_IPV4) && set.has(0, attr::CT_ORIG_TUPLE_IPV6);
        if both {
            return Err(MatchError::Conflict { attribute: "ct_tuple6", other: "ct_tuple4" });
        }
        self.check_headers(inner)?;
        // Whatever is left of the mask after taking away all that is named belongs to nothing.
        let named = Self::exact_in(k, *set).mask;
        let ethertype_in_mask_only = !set.has(inner, attr::ETHERTYPE) && m.eth_type.get() != 0;
        for (i, (have, allowed)) in m.as_bytes().iter().zip(named.0.as_bytes()).enumerate() {
            if have & !allowed == 0 {
                continue;
            }
            let owners = (1..=attr::IPV6_EXTHDRS).filter(|n| {
                (0..=VLAN_MAX).any(|l| {
                    attr_bytes(*n, l, false).iter().any(|(offset, len)| (*offset..offset + len).contains(&i))
                })
            });
            let mut names = owners.map(|n| (n, (0..=VLAN_MAX).any(|l| set.has(l, n))));
            let Some((n, _)) = names.clone().find(|(_, named)| !named).or_else(|| names.next()) else {
                return Err(MatchError::MaskWithoutKey { attribute: "key" });
            };
            // Bits beyond a field's width within a named attribute are harmless ones that nothing sets.
            let excused = n == attr::ETHERTYPE && ethertype_in_mask_only;
            let within_named = (0..=VLAN_MAX).any(|l| set.has(l, n));
            if !excused && !within_named {
                return Err(MatchError::MaskWithoutKey { attribute: attr::NAMES[usize::from(n)] });
            }
        }
        Ok(())
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
        let icmp_exact = m.tp_src.get() & 0xff == 0xff && m.tp_dst.get() & 0xff == 0xff;
        let ip = matches!(ty, eth_type::IPV4 | eth_type::IPV6);
        // Header, whether the key leads to it, whether the mask does, and what to say.
        let rules: [(u8, bool, bool, &'static str); 14] = [
            (attr::IPV4, ty == eth_type::IPV4, exact_type, "eth_type(0x0800), exact"),
            (attr::IPV6, ty == eth_type::IPV6, exact_type, "eth_type(0x86dd), exact"),
            (attr::IPV6_EXTHDRS, ty == eth_type::IPV6, exact_type, "eth_type(0x86dd), exact"),
            (
                attr::ARP,
                matches!(ty, eth_type::ARP | eth_type::RARP),
                exact_type,
                "eth_type(0x0806) or eth_type(0x8035), exact",
            ),
            (
                attr::MPLS,
                matches!(ty, eth_type::MPLS | eth_type::MPLS_MCAST),
                exact_type,
                "eth_type(0x8847) or eth_type(0x8848), exact",
            ),
            (attr::NSH, ty == eth_type::NSH, exact_type, "eth_type(0x894f), exact"),
            (attr::TCP, ip && k.ip_proto == ip_proto::TCP, exact_proto, "ip proto 6, exact"),
            (attr::TCP_FLAGS, ip && k.ip_proto == ip_proto::TCP, exact_proto, "ip proto 6, exact"),
            (attr::UDP, ip && k.ip_proto == ip_proto::UDP, exact_proto, "ip proto 17, exact"),
            (attr::SCTP, ip && k.ip_proto == ip_proto::SCTP, exact_proto, "ip proto 132, exact"),
            (
                attr::ICMP,
                ty == eth_type::IPV4 && k.ip_proto == ip_proto::ICMP,
                exact_proto,
                "ipv4() with proto 1, exact",
            ),
            (
                attr::ICMPV6,
                ty == eth_type::IPV6 && k.ip_proto == ip_proto::ICMPV6,
                exact_proto,
                "ipv6() with proto 58, exact",
            ),
            (
                attr::ND,
                set.has(level, attr::ICMPV6) && is_neighbour_discovery(k),
                icmp_exact,
                "icmpv6() with type 135 or 136 and code 0, exact",
            ),
            (attr::ND_EXTENSIONS, set.has(level, attr::ND), true, "nd()"),
        ];
        for (n, key_leads, mask_leads, needs) in rules {
            let somewhere = (0..=VLAN_MAX).any(|l| l != level && set.has(l, n));
            let masked = || {
                attr_bytes(n, level, false)
                    .iter()
                    .any(|(offset, len)| m.as_bytes()[*offset..offset + len].iter().any(|b| *b != 0))
            };
            if somewhere {
                let needs = "its place at the innermost level";
                return Err(MatchError::MissingPrerequisite {
                    attribute: attr::NAMES[usize::from(n)],
                    needs,
                });
            }
            if set.has(level, n) && !(key_leads && (mask_leads || !masked())) {
                return Err(MatchError::MissingPrerequisite {
                    attribute: attr::NAMES[usize::from(n)],
                    needs,
                });
            }
        }
        let transports = [attr::TCP, attr::UDP, attr::SCTP, attr::ICMP, attr::ICMPV6];
        if transports.iter().any(|n| set.has(level, *n))
            && !set.has(level, attr::IPV4)
            && !set.has(level, attr::IPV6)
        {
            let n = transports.iter().copied().find(|n| set.has(level, *n)).unwrap_or_default();
            return Err(MatchError::MissingPrerequisite {
                attribute: attr::NAMES[usize::from(n)],
                needs: "ipv4() or ipv6()",
            });
        }
        Ok(())
    }
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
