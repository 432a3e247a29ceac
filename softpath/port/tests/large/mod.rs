//! Large frames as a host's stack hands them to its device, and the checks of the stack that receives their segments.
#![allow(dead_code, unreachable_pub)] // Each test file uses some.

use flowlift_port::Offload;
use flowlift_port::offload::{Gso, GsoKind};
use proptest::prelude::*;
use std::num::NonZeroU16;

/// A frame, and what is left to do on it.
#[derive(Debug, Clone)]
pub struct Large {
    pub frame: Vec<u8>,
    pub offload: Offload,
}

/// What a large frame is made from.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub tags: usize,
    pub ipv6: bool,
    pub tcp: bool,
    /// Words of TCP options.
    pub options: usize,
    pub flags: u8,
    pub id: u16,
    pub seq: u32,
    pub payload: usize,
    pub size: u16,
    pub seed: u8,
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Sum of the pseudo-header of the IP packet at `l3` whose L4 packet is `len` bytes.
fn pseudo(frame: &[u8], l3: usize, len: usize) -> u32 {
    let (addresses, proto) = match frame[l3] >> 4 {
        4 => (&frame[l3 + 12..l3 + 20], frame[l3 + 9]),
        _ => (&frame[l3 + 8..l3 + 40], frame[l3 + 6]),
    };
    sum(addresses) + u32::from(proto) + len as u32
}

pub fn build(s: Shape) -> Large {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in 0..s.tags {
        f.extend([0x81, 0, 0, tag as u8 + 5]);
    }
    let l4_len = s.payload + if s.tcp { 20 + 4 * s.options } else { 8 };
    let proto = if s.tcp { 6 } else { 17 };
    let l3;
    if s.ipv6 {
        f.extend([0x86, 0xdd]);
        l3 = f.len();
        f.extend([0x60, 0, 0, 0]);
        f.extend((l4_len as u16).to_be_bytes());
        f.extend([proto, 64]);
        f.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, s.seed]);
        f.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    } else {
        f.extend([8, 0]);
        l3 = f.len();
        f.extend([0x45, 0]);
        f.extend((20 + l4_len as u16).to_be_bytes());
        f.extend(s.id.to_be_bytes());
        f.extend([0x40, 0, 64, proto, 0, 0, 10, 0, 0, s.seed, 10, 0, 1, 2]);
        let csum = !fold(sum(&f[l3..]));
        f[l3 + 10..l3 + 12].copy_from_slice(&csum.to_be_bytes());
    }
    let l4 = f.len();
    f.extend([0x10, s.seed, 0x20, 0x02]);
    let csum_offset = if s.tcp { 16 } else { 6 };
    if s.tcp {
        f.extend(s.seq.to_be_bytes());
        f.extend([0, 0, 0, 9, (5 + s.options as u8) << 4, s.flags, 1, 0, 0, 0, 0, 0]);
        // NOP options.
        f.extend(std::iter::repeat_n(1, 4 * s.options));
    } else {
        f.extend((l4_len as u16).to_be_bytes());
        f.extend([0, 0]);
    }
    f.extend((0..s.payload).map(|i| (i.wrapping_mul(7) >> 3) as u8 ^ s.seed));
    let partial = fold(pseudo(&f, l3, l4_len));
    f[l4 + csum_offset..l4 + csum_offset + 2].copy_from_slice(&partial.to_be_bytes());
    let gso = Gso {
        kind: if s.tcp { GsoKind::Tcp } else { GsoKind::Udp },
        ecn: false,
        size: NonZeroU16::new(s.size).unwrap(),
        l3_start: l3 as u16,
    };
    Large {
        frame: f,
        offload: Offload { csum_start: l4 as u16, csum_offset: csum_offset as u16, gso: Some(gso) },
    }
}

pub fn shape() -> impl Strategy<Value = Shape> {
    let flags = prop_oneof![Just(0x10), Just(0x18), Just(0x19), Just(0x98), any::<u8>()];
    let payload = prop_oneof![0usize..200, 1000usize..9000, Just(64_000)];
    let size = prop_oneof![1u16..50, 500u16..1500, Just(1448), Just(9000)];
    (
        0usize..3,
        any::<bool>(),
        any::<bool>(),
        0usize..10,
        flags,
        any::<u16>(),
        any::<u32>(),
        payload,
        size,
        any::<u8>(),
    )
        .prop_map(|(tags, ipv6, tcp, options, flags, id, seq, payload, size, seed)| {
            // As many segments as fit into a test.
            let size = if payload / usize::from(size) > 300 { 1448 } else { size };
            Shape { tags, ipv6, tcp, options, flags, id, seq, payload, size, seed }
        })
}

pub fn large() -> impl Strategy<Value = Large> {
    shape().prop_map(build)
}

/// What the stack that receives a frame checks: lengths and both checksums.
pub fn verify_checksums(frame: &[u8], l3: usize, l4: usize) {
    let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
    if frame[l3] >> 4 == 4 {
        assert_eq!(word(l3 + 2), frame.len() - l3, "total length");
        assert_eq!(fold(sum(&frame[l3..l4])), 0xffff, "IPv4 header checksum");
    } else {
        assert_eq!(word(l3 + 4), frame.len() - l3 - 40, "payload length");
    }
    let total = pseudo(frame, l3, frame.len() - l4) + sum(&frame[l4..]);
    assert_eq!(fold(total), 0xffff, "L4 checksum of {:02x?}", &frame[..frame.len().min(80)]);
}
