//! Keys of every shape that attributes can carry, filled with random values.

use super::*;
use flowlift_flow::Frag;
use flowlift_flow::key::tun_flags;
use proptest::prelude::*;
use proptest::sample::select;

const TYPES: &[u16] = &[0x0800, 0x86dd, 0x0806, 0x8035, 0x8847, 0x8848, 0x894f, 0x9000, 0x05ff];
const PROTOS: &[u8] = &[6, 17, 132, 1, 58, 47];

/// What a random key is made of.
#[derive(Debug, Clone)]
struct Shape {
    eth_type: u16,
    tags: usize,
    cut: bool,
    proto: u8,
    frag: Frag,
    nd: bool,
    labels: usize,
    tunnel: Tunnel,
    original_tuple: bool,
    ethernet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tunnel {
    None,
    Plain,
    Geneve(u8),
    Vxlan,
    Erspan1,
    Erspan2,
    Gtpu,
    V6,
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    prop_oneof![
        3 => Just(Tunnel::None),
        1 => Just(Tunnel::Plain),
        1 => (0u8..=62).prop_map(|words| Tunnel::Geneve(words * 4)),
        1 => select(&[Tunnel::Vxlan, Tunnel::Erspan1, Tunnel::Erspan2, Tunnel::Gtpu, Tunnel::V6][..]),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let header = (select(TYPES), select(PROTOS), select(&[Frag::No, Frag::First, Frag::Later][..]));
    let rest = (0..=2usize, any::<bool>(), any::<bool>(), 0..=3usize, tunnel(), any::<bool>(), any::<bool>());
    (header, rest).prop_map(
        |((eth_type, proto, frag), (tags, cut, nd, labels, tunnel, original_tuple, ethernet))| {
            // A frame without Ethernet header has a type, and no tags.
            let ethernet = ethernet || tags > 0 || eth_type == 0x05ff;
            Shape {
                eth_type,
                tags,
                cut: cut && tags > 0,
                proto,
                frag,
                nd,
                labels,
                tunnel,
                original_tuple,
                ethernet,
            }
        },
    )
}

/// A key that attributes carry without loss, in user space's form.
pub(super) fn key() -> impl Strategy<Value = Key> {
    (shape(), any::<[[u8; 32]; 18]>()).prop_map(|(shape, noise)| fill(&shape, &noise.concat()))
}

/// Takes from the noise what a key of this shape has.
fn fill(shape: &Shape, noise: &[u8]) -> Key {
    let noise: &[u8; 576] = noise.try_into().expect("18 times 32 bytes");
    let n: Key = zerocopy::transmute!(*noise);
    let mut key = Key {
        in_port: n.in_port >> 1,
        recirc_id: n.recirc_id,
        dp_hash: n.dp_hash,
        skb_mark: n.skb_mark,
        skb_priority: n.skb_priority,
        ct_state: n.ct_state & 0xff,
        ct_zone: n.ct_zone,
        ct_mark: n.ct_mark,
        ct_label: n.ct_label,
        ..Key::default()
    };
    if shape.ethernet {
        (key.eth_src, key.eth_dst) = (n.eth_src, n.eth_dst);
    } else {
        key.packet_type = (1 << 16 | u32::from(shape.eth_type)).into();
    }
    for (level, tag) in key.vlan.iter_mut().take(shape.tags).enumerate() {
        tag.tpid = if level == 0 { 0x88a8 } else { 0x8100 }.into();
        tag.tci = (n.vlan[level].tci.get() | 0x1000).into();
    }
    fill_tunnel(shape.tunnel, &n, &mut key);
    if shape.cut {
        key.vlan[shape.tags - 1].tci = 0.into();
        return key;
    }
    key.eth_type = shape.eth_type.into();
    fill_l3(shape, &n, &mut key);
    fill_l4(shape, &n, &mut key);
    key
}

fn fill_l3(shape: &Shape, n: &Key, key: &mut Key) {
    if matches!(shape.eth_type, 0x0800 | 0x86dd) {
        (key.ip_proto, key.ip_frag, key.ip_tos, key.ip_ttl) =
            (shape.proto, shape.frag as u8, n.ip_tos, n.ip_ttl);
        if shape.original_tuple {
            let length = if shape.eth_type == 0x0800 { 4 } else { 16 };
            key.ct_orig_src[..length].copy_from_slice(&n.ct_orig_src[..length]);
            key.ct_orig_dst[..length].copy_from_slice(&n.ct_orig_dst[..length]);
            (key.ct_orig_tp_src, key.ct_orig_tp_dst) = (n.ct_orig_tp_src, n.ct_orig_tp_dst);
            key.ct_orig_proto = n.ct_orig_proto | 1;
        }
    }
    match shape.eth_type {
        0x0800 => (key.ipv4_src, key.ipv4_dst) = (n.ipv4_src, n.ipv4_dst),
        0x86dd => {
            (key.ipv6_src, key.ipv6_dst) = (n.ipv6_src, n.ipv6_dst);
            key.ipv6_label = (n.ipv6_label.get() & 0xf_ffff).into();
        }
        0x0806 | 0x8035 => {
            (key.ipv4_src, key.ipv4_dst, key.ip_proto) = (n.ipv4_src, n.ipv4_dst, n.ip_proto);
            (key.arp_sha, key.arp_tha) = (n.arp_sha, n.arp_tha);
        }
        0x8847 | 0x8848 => {
            for (i, entry) in key.mpls.iter_mut().take(shape.labels).enumerate() {
                let bottom = if i + 1 == shape.labels { n.mpls[i].get() & 0x100 } else { 0 };
                *entry = (n.mpls[i].get() & !0x100 | bottom | 1).into();
            }
        }
        0x894f => {
            (key.nsh_flags, key.nsh_ttl, key.nsh_np) = (n.nsh_flags, n.nsh_ttl, n.nsh_np);
            (key.nsh_mdtype, key.nsh_path_hdr) = (1 + u8::from(shape.nd), n.nsh_path_hdr);
            if key.nsh_mdtype == 1 {
                key.nsh_context = n.nsh_context;
            }
        }
        _ => {}
    }
}

fn fill_l4(shape: &Shape, n: &Key, key: &mut Key) {
    match l4_attr(key) {
        Some(attr::TCP) => {
            (key.tp_src, key.tp_dst) = (n.tp_src, n.tp_dst);
            key.tcp_flags = (n.tcp_flags.get() & 0xfff).into();
        }
        Some(attr::UDP | attr::SCTP) => (key.tp_src, key.tp_dst) = (n.tp_src, n.tp_dst),
        Some(attr::ICMPV6) if shape.nd => {
            (key.tp_src, key.tp_dst) = ((135 + (n.tp_src.get() & 1)).into(), 0.into());
            (key.nd_target, key.arp_sha, key.arp_tha) = (n.nd_target, n.arp_sha, n.arp_tha);
        }
        Some(attr::ICMP | attr::ICMPV6) => {
            (key.tp_src, key.tp_dst) = ((n.tp_src.get() & 0x7f).into(), (n.tp_dst.get() & 0xff).into());
        }
        _ => {}
    }
}

fn fill_tunnel(tunnel: Tunnel, n: &Key, key: &mut Key) {
    if tunnel == Tunnel::None {
        return;
    }
    let random = n.tun_flags.get() & (tun_flags::DF | tun_flags::CSUM | tun_flags::OAM);
    let mut flags = tun_flags::PRESENT | tun_flags::KEY | random;
    (key.tun_id, key.tun_tos, key.tun_ttl) = (n.tun_id, n.tun_tos, n.tun_ttl);
    (key.tun_tp_src, key.tun_tp_dst) = (n.tun_tp_src, n.tun_tp_dst);
    if tunnel == Tunnel::V6 {
        (key.tun_ipv6_src, key.tun_ipv6_dst) = (n.tun_ipv6_src, n.tun_ipv6_dst);
    } else {
        (key.tun_ipv4_src, key.tun_ipv4_dst) = (n.tun_ipv4_src, n.tun_ipv4_dst);
    }
    match tunnel {
        Tunnel::Geneve(length) => {
            flags |= tun_flags::GENEVE;
            key.tun_opts_len = length;
            let length = usize::from(length);
            key.tun_opts[..length].copy_from_slice(&n.tun_opts[..length]);
        }
        Tunnel::Vxlan => {
            flags |= tun_flags::GBP;
            (key.tun_gbp_id, key.tun_gbp_flags) = (n.tun_gbp_id, n.tun_gbp_flags);
        }
        Tunnel::Erspan1 => {
            flags |= tun_flags::ERSPAN;
            (key.tun_erspan_ver, key.tun_erspan_idx) = (1, n.tun_erspan_idx);
        }
        Tunnel::Erspan2 => {
            flags |= tun_flags::ERSPAN;
            key.tun_erspan_ver = 2;
            (key.tun_erspan_dir, key.tun_erspan_hwid) = (n.tun_erspan_dir & 1, n.tun_erspan_hwid & 0x3f);
        }
        Tunnel::Gtpu => {
            flags |= tun_flags::GTPU;
            (key.tun_gtpu_flags, key.tun_gtpu_msgtype) = (n.tun_gtpu_flags, n.tun_gtpu_msgtype);
        }
        Tunnel::None | Tunnel::Plain | Tunnel::V6 => {}
    }
    key.tun_flags = flags.into();
}
