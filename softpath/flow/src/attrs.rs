//! Which attributes a key names, and which bytes of a [`Key`] each attribute stands for.

use crate::Key;
use crate::key::{Frag, MPLS_MAX, VLAN_CFI, VLAN_MAX, eth_type, ip_proto, tun_flags};
use std::mem::offset_of;
use zerocopy::IntoBytes;

/// Numbers of `enum ovs_key_attr` (linux/openvswitch.h); 29 and 30 exist in OVS's user space only.
pub mod attr {
    #![allow(missing_docs)]
    pub const ENCAP: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const IN_PORT: u8 = 3;
    pub const ETHERNET: u8 = 4;
    pub const VLAN: u8 = 5;
    pub const ETHERTYPE: u8 = 6;
    pub const IPV4: u8 = 7;
    pub const IPV6: u8 = 8;
    pub const TCP: u8 = 9;
    pub const UDP: u8 = 10;
    pub const ICMP: u8 = 11;
    pub const ICMPV6: u8 = 12;
    pub const ARP: u8 = 13;
    pub const ND: u8 = 14;
    pub const SKB_MARK: u8 = 15;
    pub const TUNNEL: u8 = 16;
    pub const SCTP: u8 = 17;
    pub const TCP_FLAGS: u8 = 18;
    pub const DP_HASH: u8 = 19;
    pub const RECIRC_ID: u8 = 20;
    pub const MPLS: u8 = 21;
    pub const CT_STATE: u8 = 22;
    pub const CT_ZONE: u8 = 23;
    pub const CT_MARK: u8 = 24;
    pub const CT_LABELS: u8 = 25;
    pub const CT_ORIG_TUPLE_IPV4: u8 = 26;
    pub const CT_ORIG_TUPLE_IPV6: u8 = 27;
    pub const NSH: u8 = 28;
    pub const PACKET_TYPE: u8 = 29;
    pub const ND_EXTENSIONS: u8 = 30;
    pub const IPV6_EXTHDRS: u8 = 32;

    /// Names of the text form, by number. Number 32 has none in OVS, which prints it as `key32`.
    pub const NAMES: [&str; 33] = [
        "",
        "encap",
        "skb_priority",
        "in_port",
        "eth",
        "vlan",
        "eth_type",
        "ipv4",
        "ipv6",
        "tcp",
        "udp",
        "icmp",
        "icmpv6",
        "arp",
        "nd",
        "skb_mark",
        "tunnel",
        "sctp",
        "tcp_flags",
        "dp_hash",
        "recirc_id",
        "mpls",
        "ct_state",
        "ct_zone",
        "ct_mark",
        "ct_label",
        "ct_tuple4",
        "ct_tuple6",
        "nsh",
        "packet_type",
        "nd_ext",
        "",
        "key32",
    ];
}

/// Numbers of `enum ovs_tunnel_key_attr` (linux/openvswitch.h).
pub mod tunnel_attr {
    #![allow(missing_docs)]
    pub const ID: u8 = 0;
    pub const IPV4_SRC: u8 = 1;
    pub const IPV4_DST: u8 = 2;
    pub const TOS: u8 = 3;
    pub const TTL: u8 = 4;
    pub const DONT_FRAGMENT: u8 = 5;
    pub const CSUM: u8 = 6;
    pub const OAM: u8 = 7;
    pub const GENEVE_OPTS: u8 = 8;
    pub const TP_SRC: u8 = 9;
    pub const TP_DST: u8 = 10;
    pub const VXLAN_OPTS: u8 = 11;
    pub const IPV6_SRC: u8 = 12;
    pub const IPV6_DST: u8 = 13;
    pub const ERSPAN_OPTS: u8 = 15;
    pub const GTPU_OPTS: u8 = 16;
}

/// First bit of level 0 that stands for an attribute within TUNNEL.
const TUNNEL_BIT: u32 = 40;
/// First of the two bits of a level that count the label stack entries of MPLS.
const MPLS_BIT: u32 = 62;

/// The attributes that a flow's key names, per nesting level: level 0 is the key itself, 1 and 2 are within ENCAP.
/// Bit n of a level stands for `OVS_KEY_ATTR_*` number n. Bits 40 to 56 of level 0 stand for `OVS_TUNNEL_KEY_ATTR_*`
/// 0 to 16 within TUNNEL, and bits 62 and 63 of a level hold the number of label stack entries of its MPLS.
///
/// A match means the same without it (a missing attribute is wildcarded whole, U4), but R20 asks that the match be kept
/// exactly as installed, and a dump prints attributes whose mask is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AttrSet(pub [u64; 3]);

impl AttrSet {
    /// True if attribute `attr` is named at `level`; false past level 2.
    pub fn has(&self, level: usize, attr: u8) -> bool {
        self.0.get(level).is_some_and(|bits| attr <= attr::IPV6_EXTHDRS && bits & (1 << attr) != 0)
    }

    /// Names `attr` at `level`; nothing past level 2 or attribute 32.
    pub fn insert(&mut self, level: usize, attr: u8) {
        if let Some(bits) = self.0.get_mut(level).filter(|_| attr <= attr::IPV6_EXTHDRS) {
            *bits |= 1 << attr;
        }
    }

    /// The attributes of a level, in the order of their numbers.
    pub fn level(&self, level: usize) -> impl Iterator<Item = u8> + use<> {
        let bits = self.0.get(level).copied().unwrap_or(0);
        (1..=attr::IPV6_EXTHDRS).filter(move |n| bits & (1 << n) != 0)
    }

    /// True if the tunnel key names [`tunnel_attr`] `attr`.
    pub fn has_tunnel(&self, attr: u8) -> bool {
        attr <= tunnel_attr::GTPU_OPTS && self.0[0] & (1 << (TUNNEL_BIT + u32::from(attr))) != 0
    }

    /// Names [`tunnel_attr`] `attr` within TUNNEL.
    pub fn insert_tunnel(&mut self, attr: u8) {
        if attr <= tunnel_attr::GTPU_OPTS {
            self.0[0] |= 1 << (TUNNEL_BIT + u32::from(attr));
        }
    }

    /// Number of label stack entries of the MPLS attribute at `level`.
    pub fn mpls_count(&self, level: usize) -> usize {
        self.0.get(level).map_or(0, |bits| (bits >> MPLS_BIT) as usize)
    }

    /// As [`Self::mpls_count`]; of a set that does not count them, those that `key` shows.
    pub fn mpls_labels(&self, level: usize, key: &Key) -> usize {
        match self.mpls_count(level) {
            0 if self.has(level, attr::MPLS) => mpls_count(key),
            count => count,
        }
    }

    /// Sets the number of label stack entries, at most [`MPLS_MAX`].
    pub fn set_mpls_count(&mut self, level: usize, count: usize) {
        if let Some(bits) = self.0.get_mut(level) {
            *bits = *bits & !(3 << MPLS_BIT) | (count.min(MPLS_MAX) as u64) << MPLS_BIT;
        }
    }

    /// The attributes that Open vSwitch gives to a packet with this key, PACKET_TYPE included, IPV6_EXTHDRS not.
    pub fn of(key: &Key) -> Self {
        let mut set = Self::default();
        for n in [
            attr::RECIRC_ID,
            attr::DP_HASH,
            attr::PRIORITY,
            attr::IN_PORT,
            attr::SKB_MARK,
            attr::CT_STATE,
            attr::CT_ZONE,
            attr::CT_MARK,
            attr::CT_LABELS,
            attr::PACKET_TYPE,
        ] {
            set.insert(0, n);
        }
        if key.has_tunnel() {
            set.insert(0, attr::TUNNEL);
            set.name_tunnel(key);
        }
        if key.ct_orig_proto != 0 {
            match key.eth_type.get() {
                eth_type::IPV4 => set.insert(0, attr::CT_ORIG_TUPLE_IPV4),
                eth_type::IPV6 => set.insert(0, attr::CT_ORIG_TUPLE_IPV6),
                _ => {}
            }
        }
        let mut level = 0;
        if key.packet_type.get() == 0 {
            set.insert(0, attr::ETHERNET);
            for tag in key.vlan.iter().take(key.vlan_count()) {
                set.insert(level, attr::ETHERTYPE);
                set.insert(level, attr::VLAN);
                set.insert(level, attr::ENCAP);
                level += 1;
                if tag.tci.get() & VLAN_CFI == 0 {
                    return set;
                }
            }
        }
        set.name_headers(key, level);
        set
    }

    /// The attributes that a match of `mask` on `key` needs to name: those of the key of which some bit is matched, and
    /// those without which the key would begin or nest otherwise.
    pub(crate) fn matched(key: &Key, mask: &Key) -> Self {
        let all = Self::of(key);
        let mut set = Self::default();
        for level in 0..all.0.len() {
            let tagged = all.has(level, attr::ENCAP);
            let is_matched = |n: u8| {
                let bytes = mask.as_bytes();
                attr_bytes(n, level, tagged)
                    .iter()
                    .any(|(at, len)| bytes[*at..at + len].iter().any(|b| *b != 0))
            };
            let structure = |n| matches!(n, attr::ETHERNET | attr::ENCAP) || tagged && n == attr::VLAN;
            all.level(level).filter(|n| structure(*n) || is_matched(*n)).for_each(|n| set.insert(level, n));
            if set.has(level, attr::MPLS) {
                set.set_mpls_count(level, all.mpls_count(level));
            }
            // These are left out of a key that has zero there, which is a value like others to a match.
            let (tcp, icmpv6) = (all.has(level, attr::TCP), all.has(level, attr::ND));
            let v6 = all.has(level, attr::IPV6);
            for (n, possible) in
                [(attr::TCP_FLAGS, tcp), (attr::ND_EXTENSIONS, icmpv6), (attr::IPV6_EXTHDRS, v6)]
            {
                if possible && is_matched(n) {
                    set.insert(level, n);
                }
            }
            if !tagged {
                break;
            }
        }
        if all.has(0, attr::TUNNEL) && set.has(0, attr::TUNNEL) {
            set.0[0] |= all.0[0] & (0x1_ffff << TUNNEL_BIT);
            set.name_tunnel(mask);
        }
        set
    }

    fn name_tunnel(&mut self, key: &Key) {
        let flags = key.tun_flags.get();
        let present = [
            (tunnel_attr::ID, flags & tun_flags::KEY != 0 || key.tun_id.get() != 0),
            (tunnel_attr::IPV4_SRC, key.tun_ipv4_src.get() != 0),
            (tunnel_attr::IPV4_DST, key.tun_ipv4_dst.get() != 0),
            (tunnel_attr::IPV6_SRC, key.tun_ipv6_src != [0; 16]),
            (tunnel_attr::IPV6_DST, key.tun_ipv6_dst != [0; 16]),
            (tunnel_attr::TOS, key.tun_tos != 0),
            (tunnel_attr::TTL, true),
            (tunnel_attr::DONT_FRAGMENT, flags & tun_flags::DF != 0),
            (tunnel_attr::CSUM, flags & tun_flags::CSUM != 0),
            (tunnel_attr::TP_SRC, key.tun_tp_src.get() != 0),
            (tunnel_attr::TP_DST, key.tun_tp_dst.get() != 0),
            (tunnel_attr::OAM, flags & tun_flags::OAM != 0),
            (tunnel_attr::VXLAN_OPTS, flags & tun_flags::GBP != 0),
            (tunnel_attr::GENEVE_OPTS, flags & tun_flags::GENEVE != 0),
            (tunnel_attr::ERSPAN_OPTS, flags & tun_flags::ERSPAN != 0),
            (tunnel_attr::GTPU_OPTS, flags & tun_flags::GTPU != 0),
        ];
        present.iter().filter(|(_, there)| *there).for_each(|(n, _)| self.insert_tunnel(*n));
    }

    fn name_headers(&mut self, key: &Key, level: usize) {
        let ty = key.eth_type.get();
        if ty < 0x600 {
            return;
        }
        self.insert(level, attr::ETHERTYPE);
        match ty {
            eth_type::IPV4 => self.insert(level, attr::IPV4),
            eth_type::IPV6 => self.insert(level, attr::IPV6),
            eth_type::ARP | eth_type::RARP => self.insert(level, attr::ARP),
            eth_type::NSH => self.insert(level, attr::NSH),
            eth_type::MPLS | eth_type::MPLS_MCAST => {
                self.insert(level, attr::MPLS);
                self.set_mpls_count(level, mpls_count(key));
            }
            _ => {}
        }
        if !key.is_ip() || key.ip_frag == Frag::Later as u8 {
            return;
        }
        match (ty, key.ip_proto) {
            (_, ip_proto::TCP) => {
                self.insert(level, attr::TCP);
                if key.tcp_flags.get() != 0 {
                    self.insert(level, attr::TCP_FLAGS);
                }
            }
            (_, ip_proto::UDP) => self.insert(level, attr::UDP),
            (_, ip_proto::SCTP) => self.insert(level, attr::SCTP),
            (eth_type::IPV4, ip_proto::ICMP) => self.insert(level, attr::ICMP),
            (eth_type::IPV6, ip_proto::ICMPV6) => {
                self.insert(level, attr::ICMPV6);
                if is_neighbour_discovery(key) {
                    self.insert(level, attr::ND);
                    if key.nd_reserved.get() != 0 || key.nd_options_type != 0 {
                        self.insert(level, attr::ND_EXTENSIONS);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Number of label stack entries in a key: up to the bottom of the stack, or those that are not zero.
pub(crate) fn mpls_count(key: &Key) -> usize {
    const BOTTOM: u32 = 1 << 8;
    match key.mpls.iter().position(|lse| lse.get() & BOTTOM != 0) {
        Some(i) => i + 1,
        None => key.mpls.iter().filter(|lse| lse.get() != 0).count(),
    }
}

/// True for a neighbour solicitation or advertisement.
pub(crate) fn is_neighbour_discovery(key: &Key) -> bool {
    matches!(key.tp_src.get(), 135 | 136) && key.tp_dst.get() == 0
}

/// The bytes of a [`Key`] that attribute `attr` stands for at nesting level `level`, as (offset, length) pairs.
///
/// ETHERTYPE stands for the TPID at a level that has a tag (`tagged`), else for [`Key::eth_type`]. ENCAP is its
/// content's and has none of its own.
pub fn attr_bytes(attr: u8, level: usize, tagged: bool) -> &'static [(usize, usize)] {
    macro_rules! bytes {
        ($($field:ident: $len:expr),* $(,)?) => { const { &[$((offset_of!(Key, $field), $len)),*] } };
    }
    const VLAN: usize = offset_of!(Key, vlan);
    match attr {
        attr::PRIORITY => bytes!(skb_priority: 4),
        attr::IN_PORT => bytes!(in_port: 4),
        attr::ETHERNET => bytes!(eth_src: 6, eth_dst: 6),
        attr::ETHERTYPE if tagged => match level {
            0 => &[(VLAN, 2)],
            1 => &[(VLAN + 4, 2)],
            _ => &[],
        },
        attr::ETHERTYPE => bytes!(eth_type: 2),
        attr::VLAN => match level {
            0 => &[(VLAN + 2, 2)],
            1 => &[(VLAN + 6, 2)],
            _ => &[],
        },
        attr::IPV4 => bytes!(ipv4_src: 4, ipv4_dst: 4, ip_proto: 1, ip_tos: 1, ip_ttl: 1, ip_frag: 1),
        attr::IPV6 => {
            bytes!(ipv6_src: 16, ipv6_dst: 16, ipv6_label: 4, ip_proto: 1, ip_tos: 1, ip_ttl: 1, ip_frag: 1)
        }
        attr::TCP | attr::UDP | attr::SCTP | attr::ICMP | attr::ICMPV6 => bytes!(tp_src: 2, tp_dst: 2),
        attr::TCP_FLAGS => bytes!(tcp_flags: 2),
        attr::ARP => bytes!(ipv4_src: 4, ipv4_dst: 4, ip_proto: 1, arp_sha: 6, arp_tha: 6),
        attr::ND => bytes!(nd_target: 16, arp_sha: 6, arp_tha: 6),
        attr::ND_EXTENSIONS => bytes!(nd_reserved: 4, nd_options_type: 1),
        attr::SKB_MARK => bytes!(skb_mark: 4),
        attr::TUNNEL => bytes!(
            tun_id: 8, tun_flags: 2, tun_tos: 1, tun_ttl: 1, tun_tp_src: 2, tun_tp_dst: 2, tun_ipv4_src: 4,
            tun_ipv4_dst: 4, tun_ipv6_src: 16, tun_ipv6_dst: 16, tun_gbp_id: 2, tun_gbp_flags: 1, tun_erspan_ver: 1,
            tun_erspan_idx: 4, tun_erspan_dir: 1, tun_erspan_hwid: 1, tun_gtpu_flags: 1, tun_gtpu_msgtype: 1,
            tun_opts_len: 1, tun_opts: 256,
        ),
        attr::DP_HASH => bytes!(dp_hash: 4),
        attr::RECIRC_ID => bytes!(recirc_id: 4),
        attr::MPLS => bytes!(mpls: 12),
        attr::CT_STATE => bytes!(ct_state: 4),
        attr::CT_ZONE => bytes!(ct_zone: 2),
        attr::CT_MARK => bytes!(ct_mark: 4),
        attr::CT_LABELS => bytes!(ct_label: 16),
        attr::CT_ORIG_TUPLE_IPV4 | attr::CT_ORIG_TUPLE_IPV6 => bytes!(
            ct_orig_src: 16, ct_orig_dst: 16, ct_orig_proto: 1, ct_orig_tp_src: 2, ct_orig_tp_dst: 2
        ),
        attr::NSH => {
            bytes!(nsh_flags: 1, nsh_ttl: 1, nsh_mdtype: 1, nsh_np: 1, nsh_path_hdr: 4, nsh_context: 16)
        }
        attr::PACKET_TYPE => bytes!(packet_type: 4),
        attr::IPV6_EXTHDRS => bytes!(ipv6_exthdrs: 2),
        _ => &[],
    }
}

const _: () = assert!(VLAN_MAX == 2, "attr_bytes names the tags one by one");
