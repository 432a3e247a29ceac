//! Well-formed frames with valid checksums, and a check that they still are.

/// One's complement sum, word by word.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b))).sum()
}

fn checksum(bytes: &[u8], pseudo: u32) -> u16 {
    let mut sum = sum(bytes) + pseudo;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// A kind of L4 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L4 {
    Tcp,
    Udp,
    UdpNoChecksum,
    Sctp,
    Icmp,
    Nd,
}

/// A frame to build.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) tags: usize,
    pub(crate) v6: bool,
    pub(crate) l4: L4,
    /// IPv4 options, or bytes of an IPv6 destination options header, in units of 4 or 8 bytes.
    pub(crate) options: usize,
    pub(crate) payload: Vec<u8>,
    pub(crate) padding: usize,
}

pub(crate) const ETH: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

impl Spec {
    pub(crate) fn tcp() -> Self {
        Self { tags: 0, v6: false, l4: L4::Tcp, options: 0, payload: b"payload!".to_vec(), padding: 0 }
    }

    fn proto(&self) -> u8 {
        match (self.l4, self.v6) {
            (L4::Tcp, _) => 6,
            (L4::Udp | L4::UdpNoChecksum, _) => 17,
            (L4::Sctp, _) => 132,
            (L4::Icmp | L4::Nd, false) => 1,
            (L4::Icmp | L4::Nd, true) => 58,
        }
    }

    /// Offset of the L3 header.
    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Offset of the L4 header.
    pub(crate) fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 + 8 * self.options } else { 20 + 4 * self.options }
    }

    fn message(&self) -> Vec<u8> {
        let mut m = match self.l4 {
            L4::Tcp => vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0],
            L4::Udp | L4::UdpNoChecksum => vec![0x12, 0x34, 0, 53, 0, 0, 0, 0],
            L4::Sctp => vec![0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0],
            L4::Icmp => vec![if self.v6 { 128 } else { 8 }, 0, 0, 0, 0, 1, 0, 2],
            // A solicitation with the sender's address, or just an echo in IPv4.
            L4::Nd if !self.v6 => vec![8, 0, 0, 0, 0, 1, 0, 2],
            L4::Nd => {
                let mut m = vec![135, 0, 0, 0, 0, 0, 0, 0];
                m.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 1, 2, 0, 0, 0, 0, 1]);
                m
            }
        };
        if self.l4 != L4::Nd {
            m.extend(&self.payload);
        }
        if let L4::Udp | L4::UdpNoChecksum = self.l4 {
            let len = m.len() as u16;
            m[4..6].copy_from_slice(&len.to_be_bytes());
        }
        m
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let message = self.message();
        let mut f = ETH.to_vec();
        for tag in 0..self.tags {
            f.extend(if tag == 0 && self.tags > 1 { [0x88, 0xa8] } else { [0x81, 0] });
            f.extend([0x20, tag as u8 + 1]);
        }
        f.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        if self.v6 {
            let next = if self.options > 0 { 60 } else { self.proto() };
            f.extend([0x6a, 0xbc, 0xde, 0xf1]);
            f.extend(((8 * self.options + message.len()) as u16).to_be_bytes());
            f.extend([next, 64, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            f.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            if self.options > 0 {
                f.extend([self.proto(), self.options as u8 - 1]);
                f.extend(vec![0; 8 * self.options - 2]);
            }
        } else {
            let total = 20 + 4 * self.options + message.len();
            f.extend([
                0x45 + self.options as u8,
                0x1c,
                (total >> 8) as u8,
                total as u8,
                0,
                1,
                0x40,
                0,
                64,
                self.proto(),
                0,
                0,
            ]);
            f.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            f.extend(vec![1; 4 * self.options]);
        }
        f.extend(message);
        self.fill_checksums(&mut f);
        f.extend(vec![0x5a; self.padding]);
        f
    }

    fn pseudo(&self, f: &[u8], l4_len: usize) -> u32 {
        let addrs = if self.v6 { self.l3() + 8..self.l3() + 40 } else { self.l3() + 12..self.l3() + 20 };
        sum(&f[addrs]) + u32::from(self.proto()) + l4_len as u32
    }

    /// What the IPv4 and the L4 checksum field must hold; `f` has no padding.
    pub(crate) fn correct(&self, f: &[u8]) -> (u16, Vec<u8>) {
        let mut f = f.to_vec();
        let (l3, l4) = (self.l3(), self.l4());
        let ip = if self.v6 {
            0
        } else {
            f[l3 + 10..l3 + 12].fill(0);
            checksum(&f[l3..l4], 0)
        };
        let (at, len) = self.checksum_field();
        f[l4 + at..l4 + at + len].fill(0);
        let pseudo = self.pseudo(&f, f.len() - l4);
        let message = &f[l4..];
        let l4_sum = match (self.l4, self.v6) {
            (L4::Tcp, _) | (L4::Icmp | L4::Nd, true) => checksum(message, pseudo).to_be_bytes().to_vec(),
            (L4::Udp, _) => match checksum(message, pseudo) {
                0 => vec![0xff, 0xff],
                sum => sum.to_be_bytes().to_vec(),
            },
            (L4::UdpNoChecksum, _) => vec![0, 0],
            (L4::Sctp, _) => crc32c(message).to_le_bytes().to_vec(),
            (L4::Icmp | L4::Nd, false) => checksum(message, 0).to_be_bytes().to_vec(),
        };
        (ip, l4_sum)
    }

    /// Offset within the L4 header, and length.
    pub(crate) fn checksum_field(&self) -> (usize, usize) {
        match self.l4 {
            L4::Tcp => (16, 2),
            L4::Udp | L4::UdpNoChecksum => (6, 2),
            L4::Sctp => (8, 4),
            L4::Icmp | L4::Nd => (2, 2),
        }
    }

    fn fill_checksums(&self, f: &mut [u8]) {
        let (ip, l4_sum) = self.correct(f);
        if !self.v6 {
            let l3 = self.l3();
            f[l3 + 10..l3 + 12].copy_from_slice(&ip.to_be_bytes());
        }
        let at = self.l4() + self.checksum_field().0;
        f[at..at + l4_sum.len()].copy_from_slice(&l4_sum);
    }

    /// The checksums that `frame` holds.
    pub(crate) fn held(&self, frame: &[u8]) -> (u16, Vec<u8>) {
        let (l3, (at, len)) = (self.l3(), self.checksum_field());
        let ip = if self.v6 { 0 } else { u16::from_be_bytes([frame[l3 + 10], frame[l3 + 11]]) };
        (ip, frame[self.l4() + at..self.l4() + at + len].to_vec())
    }

    /// The frame without its padding.
    pub(crate) fn unpadded<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[..frame.len() - self.padding]
    }
}
