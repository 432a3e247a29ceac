//! Synthetic frames and flows: Ethernet, IPv4 and UDP, 60 bytes, as `tests/peers/traffic.py` writes them.

use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match, Metadata, PortNo, Ufid};
use flowlift_softpath::extract::extract_key;

/// Ingress port of all synthetic traffic.
pub(super) const IN_PORT: u32 = 1;

/// Egress port.
const OUT_PORT: PortNo = PortNo(2);

/// SplitMix64: the traffic is the same in each run.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to less than 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What tells connections apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tuple {
    pub(super) src: u32,
    pub(super) dst: u32,
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// A UDP frame.
pub(super) fn frame(t: Tuple) -> [u8; 60] {
    let mut f = [0; 60];
    f[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    f[14..26].copy_from_slice(&[0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0]);
    f[26..30].copy_from_slice(&t.src.to_be_bytes());
    f[30..34].copy_from_slice(&t.dst.to_be_bytes());
    let sum: u32 = f[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    f[24..26].copy_from_slice(&checksum.to_be_bytes());
    f[34..36].copy_from_slice(&t.sport.to_be_bytes());
    f[36..38].copy_from_slice(&t.dport.to_be_bytes());
    f[39] = 26;
    f
}

fn key(t: Tuple) -> Key {
    extract_key(&frame(t), &Metadata { in_port: IN_PORT, ..Metadata::default() })
}

/// These bits of the five-tuple, and what every megaflow of Open vSwitch's user-space datapath matches.
pub(super) fn mask(bits: Tuple) -> Mask {
    let mut m = Mask::default();
    (m.0.in_port, m.0.recirc_id, m.0.ip_frag, m.0.ip_proto) = (u32::MAX, u32::MAX, 0xff, 0xff);
    m.0.eth_type.set(0xffff);
    m.0.packet_type.set(u32::MAX);
    m.0.ipv4_src.set(bits.src);
    m.0.ipv4_dst.set(bits.dst);
    m.0.tp_src.set(bits.sport);
    m.0.tp_dst.set(bits.dport);
    m
}

/// Every bit of the five-tuple.
pub(super) const EXACT: Tuple = Tuple { src: u32::MAX, dst: u32::MAX, sport: u16::MAX, dport: u16::MAX };

/// The flow of packets that agree with `t` in `bits`. `number` makes its UFID.
pub(super) fn flow(t: Tuple, bits: Tuple, number: u64) -> Flow {
    let mask = mask(bits);
    let matching = Match { key: mask.apply(&key(t)), mask, attrs: AttrSet::default() };
    let ufid = Ufid::new(&[number.to_be_bytes(), (!number).to_be_bytes()].concat());
    Flow { ufid, matching, actions: vec![Action::Output(OUT_PORT)] }
}

/// Numbers drawn by Zipf's law with exponent 1: 0 most often.
#[derive(Debug)]
pub(super) struct Zipf(Vec<f64>);

impl Zipf {
    /// Over `n` numbers.
    pub(super) fn new(n: usize) -> Self {
        let mut sum = 0.0;
        Self((1..=n).map(|i| (sum += 1.0 / i as f64, sum).1).collect())
    }

    pub(super) fn draw(&self, random: &mut Random) -> usize {
        let x = random.unit() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum <= x).min(self.0.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_one_that_the_key_shows() {
        let t = Tuple { src: 0xc0a8_0001, dst: 0x0a00_0001, sport: 1000, dport: 2000 };
        let k = key(t);
        assert_eq!((k.ipv4_src.get(), k.ipv4_dst.get()), (t.src, t.dst));
        assert_eq!((k.tp_src.get(), k.tp_dst.get(), k.ip_proto), (t.sport, t.dport, 17));
        // The checksum that traffic.py writes for this frame.
        assert_eq!(frame(t)[24..26], [0xb0, 0x14]);
    }

    #[test]
    fn zipf_draws_the_first_most_often_and_nothing_beyond() {
        let (zipf, mut random) = (Zipf::new(100), Random(1));
        let mut counts = [0u32; 100];
        (0..100_000).for_each(|_| counts[zipf.draw(&mut random)] += 1);
        // 1 / H(100) is 19.3 %, and number 9 has a tenth of that.
        assert!((18_500..20_100).contains(&counts[0]), "{}", counts[0]);
        assert!((1_700..2_200).contains(&counts[9]), "{}", counts[9]);
    }
}
