//! Checksums: the Internet checksum updated in place, and CRC32C.
//!
//! Updates follow RFC 1624, equation 3, so that a checksum that was wrong on arrival stays wrong by the same amount.

/// CRC32C polynomial, reflected.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// Eight tables for slicing by eight bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            c = (c >> 1) ^ if c & 1 == 1 { CASTAGNOLI } else { 0 };
            bit += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut i = 0;
        while i < 256 {
            let prev = t[k - 1][i];
            t[k][i] = (prev >> 8) ^ t[0][(prev & 0xff) as usize];
            i += 1;
        }
        k += 1;
    }
    t
}

/// A CRC32C in progress.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crc32c(u32);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self(u32::MAX)
    }

    pub(crate) fn update(mut self, data: &[u8]) -> Self {
        let mut c = self.0;
        let (words, rest) = data.as_chunks::<8>();
        for w in words {
            let low = c ^ u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
            let [a, b, d, e] = low.to_le_bytes();
            c = TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(d)]
                ^ TABLES[4][usize::from(e)]
                ^ TABLES[3][usize::from(w[4])]
                ^ TABLES[2][usize::from(w[5])]
                ^ TABLES[1][usize::from(w[6])]
                ^ TABLES[0][usize::from(w[7])];
        }
        for &b in rest {
            c = (c >> 8) ^ TABLES[0][usize::from((c as u8) ^ b)];
        }
        self.0 = c;
        self
    }

    pub(crate) fn finish(self) -> u32 {
        !self.0
    }
}

/// CRC32C of `data`, as FL1 uses it in records.
pub fn crc32c(data: &[u8]) -> u32 {
    Crc32c::new().update(data).finish()
}

/// The Internet checksum's sum over all parts: 16-bit big-endian words, folded. Every part but the last has an even
/// length; an odd last byte is the high one of its word.
pub(crate) fn internet_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for word in parts.iter().flat_map(|p| p.chunks(2)) {
        sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Updates the Internet checksum `csum` for 16-bit big-endian words that changed from `old` to `new`. Both slices have
/// the same even length.
pub(crate) fn update(csum: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut csum = csum;
    for (o, n) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        let (o, n) = (u16::from_be_bytes([o[0], o[1]]), u16::from_be_bytes([n[0], n[1]]));
        let mut sum = u32::from(!csum) + u32::from(!o) + u32::from(n);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        csum = !(sum as u16);
    }
    csum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bitwise_crc(data: &[u8]) -> u32 {
        let mut c = u32::MAX;
        for &b in data {
            c ^= u32::from(b);
            for _ in 0..8 {
                c = (c >> 1) ^ (CASTAGNOLI & (c & 1).wrapping_neg());
            }
        }
        !c
    }

    /// The whole checksum, by the definition in RFC 1071.
    fn full(data: &[u8]) -> u16 {
        let mut sum = 0u64;
        for w in data.chunks(2) {
            sum += u64::from(w[0]) << 8 | u64::from(w.get(1).copied().unwrap_or(0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn crc32c_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn crc32c_equals_bitwise(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(crc32c(&data), bitwise_crc(&data));
        }

        #[test]
        fn update_equals_recomputation(
            mut data in proptest::collection::vec(any::<u8>(), 40),
            new in proptest::collection::vec(any::<u8>(), 16),
            at in 0usize..12,
        ) {
            data[0] |= 1; // never all zeros, where two forms of zero would differ
            let before = full(&data);
            let at = 2 + at * 2;
            let old = data[at..at + 16].to_vec();
            data[at..at + 16].copy_from_slice(&new);
            prop_assert_eq!(update(before, &old, &new), full(&data));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong_by_the_same_amount(
            mut data in proptest::collection::vec(any::<u8>(), 20), err in 1u16..0xffff, new in any::<[u8; 4]>(),
        ) {
            data[0] |= 1;
            let sub = |a: u16, b: u16| (u32::from(a) + 0xffff - u32::from(b)) % 0xffff;
            let right = full(&data);
            let wrong = right.wrapping_add(err);
            let distance = sub(wrong, right);
            let updated = update(wrong, &data[4..8], &new);
            data[4..8].copy_from_slice(&new);
            prop_assert_eq!(sub(updated, full(&data)), distance);
        }
    }
}
