//! Random matches that make sense: headers follow from the types, and bits that no text can show are zero.

use flowlift_flow::attrs::{attr, attr_bytes, tunnel_attr};
use flowlift_flow::key::{ETH_TYPE_NONE, VLAN_CFI, eth_type, ip_proto, tun_flags};
use flowlift_flow::{AttrSet, Key, Match};
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// Attributes besides headers.
const METADATA: [u8; 10] = [
    attr::PRIORITY,
    attr::IN_PORT,
    attr::SKB_MARK,
    attr::DP_HASH,
    attr::RECIRC_ID,
    attr::CT_STATE,
    attr::CT_ZONE,
    attr::CT_MARK,
    attr::CT_LABELS,
    attr::PACKET_TYPE,
];

/// What a packet is made of.
#[derive(Debug, Clone)]
struct Shape {
    metadata: Vec<u8>,
    tunnel: bool,
    tuple: Option<u8>,
    tags: usize,
    eth_type: u16,
    proto: u8,
    labels: usize,
    nd: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let types = prop::sample::select(vec![
        eth_type::IPV4,
        eth_type::IPV4,
        eth_type::IPV6,
        eth_type::IPV6,
        eth_type::ARP,
        eth_type::RARP,
        eth_type::MPLS,
        eth_type::MPLS_MCAST,
        eth_type::NSH,
        0x88cc,
        ETH_TYPE_NONE,
    ]);
    let protos = prop::sample::select(vec![
        ip_proto::TCP,
        ip_proto::UDP,
        ip_proto::SCTP,
        ip_proto::ICMP,
        ip_proto::ICMPV6,
        ip_proto::ICMPV6,
        47,
    ]);
    let tuples =
        prop::sample::select(vec![None, Some(attr::CT_ORIG_TUPLE_IPV4), Some(attr::CT_ORIG_TUPLE_IPV6)]);
    let metadata = prop::sample::subsequence(METADATA.to_vec(), 1..=METADATA.len());
    (metadata, any::<bool>(), tuples, 0usize..=2, types, protos, 1usize..=3, any::<bool>()).prop_map(
        |(metadata, tunnel, tuple, tags, eth_type, proto, labels, nd)| Shape {
            metadata,
            tunnel,
            tuple,
            tags,
            eth_type,
            proto,
            labels,
            nd,
        },
    )
}

/// Any match that the text form can hold in full.
pub(crate) fn any_match() -> impl Strategy<Value = Match> {
    let bytes = || prop::collection::vec(any::<u8>(), size_of::<Key>());
    // Masks of whole bytes are the common ones, and partial ones the hard ones.
    let mask_bytes = prop::collection::vec(
        prop_oneof![3 => Just(0xffu8), 3 => Just(0), 2 => any::<u8>()],
        size_of::<Key>(),
    );
    (shape(), bytes(), mask_bytes).prop_map(|(shape, key, mask)| build(&shape, &key, &mask))
}

fn build(shape: &Shape, key: &[u8], mask: &[u8]) -> Match {
    let (mut set, inner) = attributes(shape);
    let mut m = Match::default();
    for level in 0..3 {
        for n in set.level(level).collect::<Vec<_>>() {
            let whole = mask.first().is_some_and(|b| b & 1 == 1);
            for (at, len) in attr_bytes(n, level, level < inner) {
                m.key.as_mut_bytes()[*at..at + len].copy_from_slice(&key[*at..at + len]);
                let out = &mut m.mask.0.as_mut_bytes()[*at..at + len];
                // A field is exact, wildcarded or partial as a whole more often than byte by byte.
                match (whole, mask[*at]) {
                    (_, 0xff) => out.fill(0xff),
                    (true, _) => out.fill(0),
                    _ => out.copy_from_slice(&mask[*at..at + len]),
                }
            }
        }
    }
    let (k, w) = (&mut m.key, &mut m.mask.0);
    // Exact also without being named, as are the tags that are not there.
    w.recirc_id = u32::MAX;
    for tag in w.vlan.iter_mut().skip(inner) {
        (tag.tpid, tag.tci) = (u16::MAX.into(), u16::MAX.into());
    }
    k.ct_state &= 0xff;
    w.ct_state &= if w.ct_state == u32::MAX { u32::MAX } else { 0xff };
    for level in 0..inner {
        k.vlan[level].tpid = [eth_type::VLAN, eth_type::QINQ][level % 2].into();
        w.vlan[level].tpid = u16::MAX.into();
        w.vlan[level].tci = (w.vlan[level].tci.get() | VLAN_CFI).into();
    }
    (k.eth_type, w.eth_type) = (shape.eth_type.into(), u16::MAX.into());
    if set.has(inner, attr::IPV4) || set.has(inner, attr::IPV6) {
        (k.ip_proto, w.ip_proto) = (shape.proto, u8::MAX);
        w.ip_frag = if w.ip_frag & 1 == 1 { u8::MAX } else { 0 };
        k.ip_frag = (k.ip_frag % 3) & w.ip_frag;
    }
    k.ipv6_label = (k.ipv6_label.get() & 0xf_ffff).into();
    w.ipv6_label = (w.ipv6_label.get() & 0xf_ffff).into();
    k.tcp_flags = (k.tcp_flags.get() & 0xfff).into();
    w.tcp_flags = (w.tcp_flags.get() & 0xfff).into();
    // `+a-b` shows no bit outside the mask.
    if w.tcp_flags.get() != 0xfff {
        k.tcp_flags = (k.tcp_flags.get() & w.tcp_flags.get()).into();
    }
    if set.has(inner, attr::ICMP) || set.has(inner, attr::ICMPV6) {
        for (k, w) in [(&mut k.tp_src, &mut w.tp_src), (&mut k.tp_dst, &mut w.tp_dst)] {
            (*k, *w) = ((k.get() & 0xff).into(), (w.get() & 0xff).into());
        }
    }
    if set.has(inner, attr::ND) {
        (k.tp_src, k.tp_dst, w.tp_src, w.tp_dst) = (135.into(), 0.into(), 0xff.into(), 0xff.into());
        // OVS prints the reserved word as if it were exact, and not at all in a wildcarded attribute of a plain dump.
        w.nd_reserved = if set.has(inner, attr::ND_EXTENSIONS) { u32::MAX.into() } else { 0.into() };
    }
    if set.has(inner, attr::MPLS) {
        for i in shape.labels..3 {
            (k.mpls[i], w.mpls[i]) = (0.into(), 0.into());
        }
        set.set_mpls_count(inner, shape.labels);
    }
    if set.has(0, attr::CT_ORIG_TUPLE_IPV4) {
        for bytes in [&mut k.ct_orig_src, &mut k.ct_orig_dst, &mut w.ct_orig_src, &mut w.ct_orig_dst] {
            bytes[4..].fill(0);
        }
    }
    nsh(k, w);
    if shape.tunnel {
        tunnel(k, w, &mut set);
    }
    if shape.eth_type == ETH_TYPE_NONE {
        set.0[inner] &= !(1 << attr::ETHERTYPE);
    }
    m.attrs = set;
    m
}

/// The attributes, and the level of the innermost headers.
fn attributes(shape: &Shape) -> (AttrSet, usize) {
    let mut set = AttrSet::default();
    shape.metadata.iter().for_each(|n| set.insert(0, *n));
    if shape.tunnel {
        set.insert(0, attr::TUNNEL);
    }
    if let Some(n) = shape.tuple {
        set.insert(0, n);
    }
    set.insert(0, attr::ETHERNET);
    // A level within ENCAP that has nothing at all is no frame without type but a cut-off tag.
    let tags = if shape.eth_type == ETH_TYPE_NONE { 0 } else { shape.tags };
    for level in 0..tags {
        [attr::ETHERTYPE, attr::VLAN, attr::ENCAP].iter().for_each(|n| set.insert(level, *n));
    }
    let mut add = |n| set.insert(tags, n);
    add(attr::ETHERTYPE);
    let v4 = shape.eth_type == eth_type::IPV4;
    match shape.eth_type {
        eth_type::IPV4 => add(attr::IPV4),
        eth_type::IPV6 => add(attr::IPV6),
        eth_type::ARP | eth_type::RARP => add(attr::ARP),
        eth_type::MPLS | eth_type::MPLS_MCAST => add(attr::MPLS),
        eth_type::NSH => add(attr::NSH),
        _ => {}
    }
    if matches!(shape.eth_type, eth_type::IPV4 | eth_type::IPV6) {
        match shape.proto {
            ip_proto::TCP => [attr::TCP, attr::TCP_FLAGS].into_iter().for_each(add),
            ip_proto::UDP => add(attr::UDP),
            ip_proto::SCTP => add(attr::SCTP),
            ip_proto::ICMP if v4 => add(attr::ICMP),
            ip_proto::ICMPV6 if !v4 => {
                add(attr::ICMPV6);
                if shape.nd {
                    add(attr::ND);
                    add(attr::ND_EXTENSIONS);
                }
            }
            _ => {}
        }
    }
    (set, tags)
}

/// NSH fields with a zero mask do not show, not even in verbose dumps.
fn nsh(k: &mut Key, w: &mut Key) {
    for (k, w) in [
        (&mut k.nsh_flags, w.nsh_flags),
        (&mut k.nsh_ttl, w.nsh_ttl),
        (&mut k.nsh_mdtype, w.nsh_mdtype),
        (&mut k.nsh_np, w.nsh_np),
    ] {
        *k &= w;
    }
    k.nsh_path_hdr = (k.nsh_path_hdr.get() & w.nsh_path_hdr.get()).into();
    for i in 0..4 {
        k.nsh_context[i] = (k.nsh_context[i].get() & w.nsh_context[i].get()).into();
    }
}

/// A tunnel key in which every field is named, with two Geneve options.
fn tunnel(k: &mut Key, w: &mut Key, set: &mut AttrSet) {
    // One of the four kinds of options, since a key has one at most.
    let kind = k.tun_flags.get() >> 12 & 3;
    let shown = tun_flags::OAM | tun_flags::DF | tun_flags::CSUM;
    let has = tun_flags::PRESENT | tun_flags::KEY;
    let group = [tun_flags::GBP, tun_flags::ERSPAN, tun_flags::GTPU, tun_flags::GENEVE][usize::from(kind)];
    // A flag shows only with its mask.
    w.tun_flags = (w.tun_flags.get() & shown | has).into();
    k.tun_flags = (k.tun_flags.get() & w.tun_flags.get() & shown | has | group).into();
    let clear = |k: &mut Key| {
        if group != tun_flags::GBP {
            (k.tun_gbp_id, k.tun_gbp_flags) = (0.into(), 0);
        }
        if group != tun_flags::ERSPAN {
            (k.tun_erspan_ver, k.tun_erspan_dir, k.tun_erspan_hwid, k.tun_erspan_idx) = (0, 0, 0, 0.into());
        }
        if group != tun_flags::GTPU {
            (k.tun_gtpu_flags, k.tun_gtpu_msgtype) = (0, 0);
        }
        if group != tun_flags::GENEVE {
            k.tun_opts_len = 0;
            k.tun_opts = [0; 256];
        }
    };
    clear(k);
    clear(w);
    if group == tun_flags::ERSPAN {
        let v1 = k.tun_erspan_idx.get() & 1 == 1;
        k.tun_erspan_ver = if v1 { 1 } else { 2 };
        for key in [&mut *k, &mut *w] {
            match v1 {
                true => (key.tun_erspan_dir, key.tun_erspan_hwid) = (0, 0),
                false => key.tun_erspan_idx = 0.into(),
            }
        }
    }
    if group == tun_flags::GENEVE {
        geneve(k, w);
    }
    let names_group = w.tun_gbp_id.get() != 0
        || w.tun_gbp_flags | w.tun_erspan_ver | w.tun_erspan_dir | w.tun_erspan_hwid != 0
        || w.tun_erspan_idx.get() != 0
        || w.tun_gtpu_flags | w.tun_gtpu_msgtype | w.tun_opts_len != 0;
    if names_group {
        w.tun_flags = (w.tun_flags.get() | group).into();
    }
    use tunnel_attr as t;
    for n in [t::ID, t::IPV4_SRC, t::IPV4_DST, t::IPV6_SRC, t::IPV6_DST, t::TOS, t::TTL, t::TP_SRC, t::TP_DST]
    {
        set.insert_tunnel(n);
    }
    set.insert_tunnel([t::VXLAN_OPTS, t::ERSPAN_OPTS, t::GTPU_OPTS, t::GENEVE_OPTS][usize::from(kind)]);
    for (flag, n) in [(tun_flags::OAM, t::OAM), (tun_flags::DF, t::DONT_FRAGMENT), (tun_flags::CSUM, t::CSUM)]
    {
        if k.tun_flags.get() & flag != 0 {
            set.insert_tunnel(n);
        }
    }
}

fn geneve(k: &mut Key, w: &mut Key) {
    // 4 and 8 bytes of data. The reserved bits of an option's header do not show.
    let len = 4 + 4 + 4 + 8;
    (k.tun_opts[3], k.tun_opts[8 + 3]) = (1, 2);
    w.tun_opts[3] &= 0x1f;
    w.tun_opts[8 + 3] &= 0x1f;
    k.tun_opts[len..].fill(0);
    w.tun_opts[len..].fill(0);
    // In a plain dump an option whose length does not show cannot show its data either.
    (w.tun_opts[3], w.tun_opts[8 + 3]) = (0x1f, 0x1f);
    k.tun_opts_len = len as u8;
    w.tun_opts_len = u8::MAX;
}

const _: () = assert!(size_of::<Key>() == 576);
