//! Names of a key's bytes, and which of them are constants for every packet that a NIC's tables see.

use flowlift_flow::Key;
use flowlift_flow::key::KEY_WORDS;
use std::mem::offset_of;

/// What is known of a part of the key beforehand, for packets in a NIC's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Depends on the packet, and lowering looks at it field by field.
    Packet,
    /// Always 0: metadata that only software makes.
    Zero,
    /// 0 unless the packet is MPLS.
    Mpls,
    /// 0 unless the packet is NSH.
    Nsh,
    /// 0 unless the packet is IPv6 with extension headers, which count up to the last one.
    ExtHdrs,
    /// 0 in every key.
    Padding,
}

/// First byte, name in OVS's text form, what is known. Ascending; a part ends where the next begins.
const PARTS: &[(usize, &str, Known)] = &[
    (offset_of!(Key, in_port), "in_port", Known::Packet),
    (offset_of!(Key, recirc_id), "recirc_id", Known::Packet),
    (offset_of!(Key, eth_dst), "eth.dst", Known::Packet),
    (offset_of!(Key, eth_type), "eth_type", Known::Packet),
    (offset_of!(Key, eth_src), "eth.src", Known::Packet),
    (offset_of!(Key, ip_proto), "ip.proto", Known::Packet),
    (offset_of!(Key, ip_frag), "ip.frag", Known::Packet),
    (offset_of!(Key, ipv4_src), "ipv4.src", Known::Packet),
    (offset_of!(Key, ipv4_dst), "ipv4.dst", Known::Packet),
    (offset_of!(Key, tp_src), "tp.src", Known::Packet),
    (offset_of!(Key, tp_dst), "tp.dst", Known::Packet),
    (offset_of!(Key, ip_tos), "ip.tos", Known::Packet),
    (offset_of!(Key, ip_ttl), "ip.ttl", Known::Packet),
    (offset_of!(Key, tcp_flags), "tcp_flags", Known::Packet),
    (offset_of!(Key, vlan), "vlan", Known::Packet),
    (offset_of!(Key, dp_hash), "dp_hash", Known::Zero),
    (offset_of!(Key, ct_state), "ct_state", Known::Zero),
    (offset_of!(Key, skb_mark), "skb_mark", Known::Zero),
    (offset_of!(Key, skb_priority), "skb_priority", Known::Zero),
    (offset_of!(Key, ipv6_src), "ipv6.src", Known::Packet),
    (offset_of!(Key, ipv6_dst), "ipv6.dst", Known::Packet),
    (offset_of!(Key, nd_target), "nd.target", Known::Packet),
    (offset_of!(Key, arp_sha), "arp.sha", Known::Packet),
    (offset_of!(Key, arp_tha), "arp.tha", Known::Packet),
    (offset_of!(Key, ipv6_label), "ipv6.label", Known::Packet),
    (offset_of!(Key, mpls), "mpls", Known::Mpls),
    (offset_of!(Key, ipv6_exthdrs), "ipv6_exthdrs", Known::ExtHdrs),
    (offset_of!(Key, pad0), "padding", Known::Padding),
    (offset_of!(Key, packet_type), "packet_type", Known::Zero),
    (offset_of!(Key, nsh_flags), "nsh", Known::Nsh),
    (offset_of!(Key, ct_zone), "ct_zone", Known::Zero),
    (offset_of!(Key, ct_orig_proto), "ct_tuple4.proto", Known::Zero),
    (offset_of!(Key, pad1), "padding", Known::Padding),
    (offset_of!(Key, ct_mark), "ct_mark", Known::Zero),
    (offset_of!(Key, ct_orig_tp_src), "ct_tuple4.tp_src", Known::Zero),
    (offset_of!(Key, ct_orig_tp_dst), "ct_tuple4.tp_dst", Known::Zero),
    (offset_of!(Key, pad2), "padding", Known::Padding),
    (offset_of!(Key, ct_label), "ct_label", Known::Zero),
    (offset_of!(Key, ct_orig_src), "ct_tuple4.src", Known::Zero),
    (offset_of!(Key, ct_orig_dst), "ct_tuple4.dst", Known::Zero),
    (offset_of!(Key, tun_id), "tunnel", Known::Zero),
    (offset_of!(Key, pad3), "padding", Known::Padding),
    (offset_of!(Key, tun_opts), "tunnel.geneve", Known::Zero),
];

/// Bits of each word of a key that are 0 in every packet that gets to a NIC's tables, and has what the field's name says.
pub(crate) struct Zeros {
    pub(crate) always: [u64; KEY_WORDS],
    /// An Ethernet type that is neither MPLS nor NSH.
    pub(crate) typed: [u64; KEY_WORDS],
    /// No extension headers of IPv6.
    pub(crate) no_extensions: [u64; KEY_WORDS],
}

/// [`PARTS`] by words: raising looks at all of them for each entry.
pub(crate) static ZEROS: Zeros = {
    let (mut always, mut typed, mut no_extensions) =
        ([[0; 8]; KEY_WORDS], [[0; 8]; KEY_WORDS], [[0; 8]; KEY_WORDS]);
    let (mut at, mut part) = (0, 0);
    while at < size_of::<Key>() {
        while part + 1 < PARTS.len() && PARTS[part + 1].0 <= at {
            part += 1;
        }
        match PARTS[part].2 {
            Known::Packet => {}
            Known::Zero | Known::Padding => always[at / 8][at % 8] = 0xff,
            Known::Mpls | Known::Nsh => typed[at / 8][at % 8] = 0xff,
            Known::ExtHdrs => no_extensions[at / 8][at % 8] = 0xff,
        }
        at += 1;
    }
    Zeros { always: words(always), typed: words(typed), no_extensions: words(no_extensions) }
};

const fn words(bytes: [[u8; 8]; KEY_WORDS]) -> [u64; KEY_WORDS] {
    let (mut words, mut n) = ([0; KEY_WORDS], 0);
    while n < KEY_WORDS {
        words[n] = u64::from_ne_bytes(bytes[n]);
        n += 1;
    }
    words
}

/// Name of byte `at` of a key, and what is known of it.
pub(crate) fn part_of(at: usize) -> (&'static str, Known) {
    let n = PARTS.partition_point(|(first, ..)| *first <= at);
    let (_, name, known) = PARTS[n.saturating_sub(1)];
    (name, known)
}

/// First word after the headers that lowering looks at field by field.
pub(crate) const FIRST_CONSTANT_WORD: usize = offset_of!(Key, mpls) / 8;
/// The two words of metadata before them.
pub(crate) const METADATA_WORDS: std::ops::Range<usize> =
    offset_of!(Key, dp_hash) / 8..offset_of!(Key, ipv6_src) / 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_ascend_and_constants_are_where_lowering_expects_them() {
        assert!(PARTS.is_sorted_by(|a, b| a.0 < b.0));
        for at in 0..size_of::<Key>() {
            let word = at / 8;
            let constant = word >= FIRST_CONSTANT_WORD || METADATA_WORDS.contains(&word);
            assert_eq!(part_of(at).1 != Known::Packet, constant, "byte {at}, {}", part_of(at).0);
            let zeros = |words: &[u64; KEY_WORDS]| words[word].to_ne_bytes()[at % 8] == 0xff;
            let known = match (zeros(&ZEROS.always), zeros(&ZEROS.typed), zeros(&ZEROS.no_extensions)) {
                (false, false, false) => &[Known::Packet][..],
                (true, false, false) => &[Known::Zero, Known::Padding],
                (false, true, false) => &[Known::Mpls, Known::Nsh],
                (false, false, true) => &[Known::ExtHdrs],
                _ => &[],
            };
            assert!(known.contains(&part_of(at).1), "byte {at}, {}: {known:?}", part_of(at).0);
        }
        assert_eq!(part_of(offset_of!(Key, ct_mark) + 3).0, "ct_mark");
    }
}
