//! The fast path: IPv4 without options or fragments, TCP or UDP, at constant offsets.
//!
//! One array pattern per frame shape proves all bounds at once, so that none is checked again; all conditions stand
//! before the first store, so a frame that fails one falls through to the general path untouched.

use super::{L3Kind, L4Kind, Layers};
use flowlift_flow::key::{VLAN_CFI, ip_proto};
use flowlift_flow::{Frag, Key, Metadata};

/// Ethernet types, as a big-endian load gives them.
const IPV4: u16 = flowlift_flow::key::eth_type::IPV4;
const VLAN: u16 = flowlift_flow::key::eth_type::VLAN;
const QINQ: u16 = flowlift_flow::key::eth_type::QINQ;

/// IPv4 header without options, and a TCP header without options.
const IP_LEN: usize = 20;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// The bit of a TCI's first byte that stands for a tag that is present.
const PRESENT: u8 = (VLAN_CFI >> 8) as u8;
/// The first six bytes of a word: an address.
const ADDRESS: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

/// The `N` bytes of `head` from `at` on. With constants for both, no bounds check is left.
#[inline(always)]
fn bytes<const N: usize, const L: usize>(head: &[u8; L], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}

#[inline(always)]
fn be16<const L: usize>(head: &[u8; L], at: usize) -> u16 {
    u16::from_be_bytes(bytes(head, at))
}

/// Two 32-bit fields, in memory order, as one word of a key.
#[inline(always)]
fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = (u64::from(first), u64::from(second));
    if cfg!(target_endian = "little") { first | second << 32 } else { first << 32 | second }
}

/// Fills the hot line of `key` if the frame is of a shape that this path knows.
#[inline(always)]
pub(super) fn extract(frame: &[u8], md: &Metadata, key: &mut Key) -> Option<Layers> {
    let head: &[u8; 54] = frame.first_chunk()?;
    match be16(head, 12) {
        IPV4 => ipv4::<14, 54>(head, frame.len(), 0, md, key),
        VLAN | QINQ => tagged(frame, md, key),
        _ => None,
    }
}

/// As [`extract`], for frames without a tag.
#[inline(always)]
pub(super) fn untagged(frame: &[u8], md: &Metadata, key: &mut Key) -> Option<Layers> {
    let head: &[u8; 54] = frame.first_chunk()?;
    if be16(head, 12) == IPV4 { ipv4::<14, 54>(head, frame.len(), 0, md, key) } else { None }
}

/// One or two tags. Not inlined, and so for each number of tags: together, the compiler would share the code of all
/// three shapes and turn the constant offsets back into variables.
#[inline(never)]
fn tagged(frame: &[u8], md: &Metadata, key: &mut Key) -> Option<Layers> {
    let head: &[u8; 58] = frame.first_chunk()?;
    match be16(head, 16) {
        IPV4 => {
            let [t0, t1, c0, c1] = bytes(head, 12);
            let tag = u64::from_ne_bytes([t0, t1, c0 | PRESENT, c1, 0, 0, 0, 0]);
            ipv4::<18, 58>(head, frame.len(), tag, md, key)
        }
        VLAN | QINQ => tagged_twice(frame, md, key),
        _ => None,
    }
}

#[inline(never)]
fn tagged_twice(frame: &[u8], md: &Metadata, key: &mut Key) -> Option<Layers> {
    let head: &[u8; 62] = frame.first_chunk()?;
    if be16(head, 20) != IPV4 {
        return None;
    }
    let [t0, t1, c0, c1, t2, t3, c2, c3] = bytes(head, 12);
    let tags = u64::from_ne_bytes([t0, t1, c0 | PRESENT, c1, t2, t3, c2 | PRESENT, c3]);
    ipv4::<22, 62>(head, frame.len(), tags, md, key)
}

/// An IPv4 packet at `L3`, with `N == L3 + 40` bytes at hand and `tags` as the key's word of VLAN tags.
#[inline(always)]
fn ipv4<const L3: usize, const N: usize>(
    head: &[u8; N],
    frame_len: usize,
    tags: u64,
    md: &Metadata,
    key: &mut Key,
) -> Option<Layers> {
    const { assert!(N == L3 + IP_LEN + TCP_LEN) };
    let total = usize::from(be16(head, L3 + 2));
    let proto = head[L3 + 9];
    // A fragment is one with "more fragments" or an offset; "don't fragment" and the reserved bit are none.
    if head[L3] != 0x45 || be16(head, L3 + 6) & 0x3fff != 0 || total > frame_len - L3 {
        return None;
    }
    let l4 = L3 + IP_LEN;
    let (kind, flags) = if proto == ip_proto::TCP {
        let header = usize::from(head[l4 + 12] >> 4) * 4;
        if header < TCP_LEN || total < IP_LEN + header {
            return None;
        }
        (L4Kind::Tcp, [head[l4 + 12] & 0x0f, head[l4 + 13]])
    } else if proto == ip_proto::UDP {
        if total < IP_LEN + UDP_LEN {
            return None;
        }
        (L4Kind::Udp, [0, 0])
    } else {
        return None;
    };

    let [e0, e1] = IPV4.to_be_bytes();
    let ports = u32::from_ne_bytes(bytes(head, l4));
    let [flags_high, flags_low] = flags;
    let words = key.words_mut();
    words[0] = pair(md.in_port, md.recirc_id);
    words[1] = u64::from_ne_bytes(bytes(head, 0)) & ADDRESS | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, e0, e1]);
    words[2] = u64::from_ne_bytes(bytes(head, 6)) & ADDRESS
        | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, proto, Frag::No as u8]);
    words[3] = u64::from_ne_bytes(bytes(head, L3 + 12));
    words[4] = pair(ports, u32::from_ne_bytes([head[L3 + 1], head[L3 + 8], flags_high, flags_low]));
    words[5] = tags;
    words[6] = pair(md.dp_hash, 0);
    words[7] = pair(md.skb_mark, md.skb_priority);
    Some(Layers {
        l3: L3 as u32,
        l4: l4 as u32,
        end: (L3 + total) as u32,
        l2_len: L3 as u8,
        l3_kind: L3Kind::Ipv4,
        l4_kind: kind,
        frag: Frag::No,
    })
}
