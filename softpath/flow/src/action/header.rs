//! Headers of the set action, to and from the fields of a key.

use super::Header;
use crate::attrs::attr;
use crate::{AttrSet, Key, Match};
use std::net::{Ipv4Addr, Ipv6Addr};

impl Header {
    /// The header that the fields of attribute `attr` in `k` make. `None` for metadata, MPLS and tunnels, whose
    /// headers are not made of named fields, and for attributes that cannot be set.
    pub fn from_key(attr: u8, k: &Key) -> Option<Self> {
        let (src, dst) = (k.tp_src.get(), k.tp_dst.get());
        Some(match attr {
            attr::ETHERNET => Self::Ethernet { src: k.eth_src, dst: k.eth_dst },
            attr::IPV4 => Self::Ipv4 {
                src: Ipv4Addr::from(k.ipv4_src.get()),
                dst: Ipv4Addr::from(k.ipv4_dst.get()),
                proto: k.ip_proto,
                tos: k.ip_tos,
                ttl: k.ip_ttl,
                frag: k.ip_frag,
            },
            attr::IPV6 => Self::Ipv6 {
                src: Ipv6Addr::from(k.ipv6_src),
                dst: Ipv6Addr::from(k.ipv6_dst),
                label: k.ipv6_label.get(),
                proto: k.ip_proto,
                tclass: k.ip_tos,
                hlimit: k.ip_ttl,
                frag: k.ip_frag,
            },
            attr::TCP => Self::Tcp { src, dst },
            attr::UDP => Self::Udp { src, dst },
            attr::SCTP => Self::Sctp { src, dst },
            attr::ICMP => Self::Icmp { ty: src as u8, code: dst as u8 },
            attr::ICMPV6 => Self::Icmpv6 { ty: src as u8, code: dst as u8 },
            attr::ARP => Self::Arp {
                sip: Ipv4Addr::from(k.ipv4_src.get()),
                tip: Ipv4Addr::from(k.ipv4_dst.get()),
                op: k.ip_proto.into(),
                sha: k.arp_sha,
                tha: k.arp_tha,
            },
            attr::ND => Self::Nd { target: Ipv6Addr::from(k.nd_target), sll: k.arp_sha, tll: k.arp_tha },
            attr::NSH => {
                let context = k.nsh_context.map(|word| word.get());
                Self::Nsh {
                    flags: k.nsh_flags,
                    ttl: k.nsh_ttl,
                    path_hdr: k.nsh_path_hdr.get(),
                    context: (context != [0; 4]).then_some(context),
                }
            }
            _ => return None,
        })
    }

    /// The mask that covers every field of this kind of header.
    pub fn full_mask(&self) -> Self {
        const V4: Ipv4Addr = Ipv4Addr::BROADCAST;
        const V6: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);
        const MAC: [u8; 6] = [0xff; 6];
        const B: u8 = u8::MAX;
        const W: u16 = u16::MAX;
        match self {
            Self::SkbPriority(_) => Self::SkbPriority(u32::MAX),
            Self::SkbMark(_) => Self::SkbMark(u32::MAX),
            Self::Ethernet { .. } => Self::Ethernet { src: MAC, dst: MAC },
            Self::Ipv4 { .. } => Self::Ipv4 { src: V4, dst: V4, proto: B, tos: B, ttl: B, frag: B },
            Self::Ipv6 { .. } => {
                Self::Ipv6 { src: V6, dst: V6, label: 0xf_ffff, proto: B, tclass: B, hlimit: B, frag: B }
            }
            Self::Tcp { .. } => Self::Tcp { src: W, dst: W },
            Self::Udp { .. } => Self::Udp { src: W, dst: W },
            Self::Sctp { .. } => Self::Sctp { src: W, dst: W },
            Self::Icmp { .. } => Self::Icmp { ty: B, code: B },
            Self::Icmpv6 { .. } => Self::Icmpv6 { ty: B, code: B },
            Self::Arp { .. } => Self::Arp { sip: V4, tip: V4, op: W, sha: MAC, tha: MAC },
            Self::Nd { .. } => Self::Nd { target: V6, sll: MAC, tll: MAC },
            Self::Mpls(_) => Self::Mpls(u32::MAX),
            Self::Tunnel(key) => {
                let tunnel = 1 << attr::TUNNEL;
                Self::Tunnel(Box::new(Match::exact_in(key, AttrSet([tunnel, 0, 0])).mask.0))
            }
            Self::Nsh { .. } => {
                Self::Nsh { flags: B, ttl: B, path_hdr: u32::MAX, context: Some([u32::MAX; 4]) }
            }
        }
    }

    /// The header's attribute ([`attr`]) and its fields as they stand in a key, all else zero. A key holds the low 8
    /// bits of an ARP operation.
    pub fn to_key(&self) -> (u8, Key) {
        let mut k = Key::default();
        let ports = |k: &mut Key, src: u16, dst: u16| (k.tp_src, k.tp_dst) = (src.into(), dst.into());
        let attr = match self {
            Self::SkbPriority(v) => {
                k.skb_priority = *v;
                attr::PRIORITY
            }
            Self::SkbMark(v) => {
                k.skb_mark = *v;
                attr::SKB_MARK
            }
            Self::Ethernet { src, dst } => {
                (k.eth_src, k.eth_dst) = (*src, *dst);
                attr::ETHERNET
            }
            Self::Ipv4 { src, dst, proto, tos, ttl, frag } => {
                (k.ipv4_src, k.ipv4_dst) = (u32::from(*src).into(), u32::from(*dst).into());
                (k.ip_proto, k.ip_tos, k.ip_ttl, k.ip_frag) = (*proto, *tos, *ttl, *frag);
                attr::IPV4
            }
            Self::Ipv6 { src, dst, label, proto, tclass, hlimit, frag } => {
                (k.ipv6_src, k.ipv6_dst, k.ipv6_label) = (src.octets(), dst.octets(), (*label).into());
                (k.ip_proto, k.ip_tos, k.ip_ttl, k.ip_frag) = (*proto, *tclass, *hlimit, *frag);
                attr::IPV6
            }
            Self::Tcp { src, dst } => {
                ports(&mut k, *src, *dst);
                attr::TCP
            }
            Self::Udp { src, dst } => {
                ports(&mut k, *src, *dst);
                attr::UDP
            }
            Self::Sctp { src, dst } => {
                ports(&mut k, *src, *dst);
                attr::SCTP
            }
            Self::Icmp { ty, code } => {
                ports(&mut k, (*ty).into(), (*code).into());
                attr::ICMP
            }
            Self::Icmpv6 { ty, code } => {
                ports(&mut k, (*ty).into(), (*code).into());
                attr::ICMPV6
            }
            Self::Arp { sip, tip, op, sha, tha } => {
                (k.ipv4_src, k.ipv4_dst) = (u32::from(*sip).into(), u32::from(*tip).into());
                (k.ip_proto, k.arp_sha, k.arp_tha) = (*op as u8, *sha, *tha);
                attr::ARP
            }
            Self::Nd { target, sll, tll } => {
                (k.nd_target, k.arp_sha, k.arp_tha) = (target.octets(), *sll, *tll);
                attr::ND
            }
            Self::Mpls(lse) => {
                k.mpls[0] = (*lse).into();
                attr::MPLS
            }
            Self::Tunnel(key) => return (attr::TUNNEL, Key::clone(key)),
            Self::Nsh { flags, ttl, path_hdr, context } => {
                (k.nsh_flags, k.nsh_ttl, k.nsh_path_hdr) = (*flags, *ttl, (*path_hdr).into());
                k.nsh_context = context.unwrap_or_default().map(Into::into);
                attr::NSH
            }
        };
        (attr, k)
    }
}
