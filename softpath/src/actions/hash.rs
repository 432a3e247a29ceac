//! The hashes of OVS's user-space datapath, so that flows that its controller keyed on `dp_hash` hit here as well.
//!
//! They are what OVS computes in its portable build: MurmurHash3's mixing over 32-bit words read in the order of a
//! little-endian host. A build for CPUs with a CRC instruction gives other numbers, as does a NIC's RSS; whoever matches
//! `dp_hash` therefore covers all values of the masked bits.

use flowlift_flow::Key;
use flowlift_flow::key::{eth_type, ip_proto};

/// Finishing constant of the five-tuple hash.
const FIVE_TUPLE: u32 = 42;

/// Mixes in one word; a zero changes nothing but the rotation.
fn add(hash: u32, word: u32) -> u32 {
    let mixed = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ mixed).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Mixes in bytes as little-endian words.
fn add_bytes(hash: u32, bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().fold(hash, |hash, word| add(hash, u32::from_le_bytes(*word)))
}

fn finish(hash: u32, last: u32) -> u32 {
    let mut hash = hash ^ last;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// `dp_hash` from a five-tuple hash that was taken earlier.
pub(super) fn rebase(five_tuple: u32, basis: u32) -> u32 {
    finish(add(add(five_tuple, 0), basis), 8)
}

/// Addresses, ports, and `proto` for the protocol; the key's own protocol decides whether there are ports.
pub(super) fn five_tuple(key: &Key, proto: u8, basis: u32) -> u32 {
    let mut hash = basis;
    match key.eth_type.get() {
        eth_type::IPV6 => hash = add_bytes(add_bytes(hash, &key.ipv6_src), &key.ipv6_dst),
        eth_type::IPV4 | eth_type::ARP => {
            hash = add_bytes(hash, key.ipv4_src.as_ref());
            hash = add_bytes(hash, key.ipv4_dst.as_ref());
        }
        _ => return finish(hash, FIVE_TUPLE),
    }
    hash = add(hash, u32::from(proto));
    if let ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP | ip_proto::ICMP | ip_proto::ICMPV6 = key.ip_proto {
        let ([a, b], [c, d]) = (key.tp_src.to_bytes(), key.tp_dst.to_bytes());
        hash = add(hash, u32::from_le_bytes([a, b, c, d]));
    }
    finish(hash, FIVE_TUPLE)
}

fn xor<const N: usize>(a: &[u8], b: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Equal in both directions of a connection. UDP ports are left out, and all ports of fragments.
pub(super) fn symmetric(key: &Key, basis: u32) -> u32 {
    let mut hash = match key.eth_type.get() {
        eth_type::IPV4 => add_bytes(basis, &xor::<4>(key.ipv4_src.as_ref(), key.ipv4_dst.as_ref())),
        eth_type::IPV6 => add_bytes(basis, &xor::<16>(&key.ipv6_src, &key.ipv6_dst)),
        _ => return symmetric_l2(key, basis),
    };
    hash = add(hash, u32::from(key.ip_proto));
    if key.ip_frag == 0 && matches!(key.ip_proto, ip_proto::TCP | ip_proto::SCTP) {
        let [a, b] = xor(&key.tp_src.to_bytes(), &key.tp_dst.to_bytes());
        hash = add(hash, u32::from(u16::from_le_bytes([a, b])));
    }
    finish(hash, basis)
}

/// Addresses, Ethernet type and VLAN IDs; 0 for a packet without an Ethernet header.
fn symmetric_l2(key: &Key, basis: u32) -> u32 {
    if key.packet_type.get() != 0 {
        return 0;
    }
    let vids = key.vlan.iter().fold(0, |vids, tag| vids ^ (tag.tci.get() & 0x0fff));
    let mut fields = [0; 12];
    fields[..2].copy_from_slice(&key.eth_type.to_bytes());
    fields[2..4].copy_from_slice(&vids.to_be_bytes());
    fields[4..10].copy_from_slice(&xor::<6>(&key.eth_src, &key.eth_dst));
    finish(add_bytes(basis, &fields), basis)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `dpctl/dump-flows` of Debian's OVS after `hash(sym_l4(0)),recirc(0x2)` on this packet.
    #[test]
    fn the_symmetric_hash_is_that_of_open_vswitch() {
        let mut key = Key {
            eth_type: eth_type::IPV4.into(),
            ip_proto: ip_proto::TCP,
            ipv4_src: 0x0102_0304.into(),
            ipv4_dst: 0x0506_0708.into(),
            tp_src: 1.into(),
            tp_dst: 2.into(),
            ..Key::default()
        };
        assert_eq!(symmetric(&key, 0), 0xfa49_07d7);
        std::mem::swap(&mut key.ipv4_src, &mut key.ipv4_dst);
        std::mem::swap(&mut key.tp_src, &mut key.tp_dst);
        assert_eq!(symmetric(&key, 0), 0xfa49_07d7);
    }
}
