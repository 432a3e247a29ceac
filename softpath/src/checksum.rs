//! Checksums after a change of a header: incremental, so that a wrong checksum stays wrong by the same amount and a
//! packet is never "repaired" on its way.
//!
//! One's complement sums are folded to 16 bits with 0 only for a sum of nothing, so each update gives the same one of the
//! two zeros (0x0000, 0xffff) as Open vSwitch does, whatever its order of additions.

/// Folds a sum of 16-bit words.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the 16-bit words of `bytes`, not folded; an odd last byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum: u64 = words.by_ref().map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

/// The Internet checksum (RFC 1071) over several pieces, each of an even number of bytes but for the last.
pub fn internet(pieces: &[&[u8]]) -> u16 {
    !fold(pieces.iter().map(|p| sum(p)).sum())
}

/// The checksum `csum` after a 16-bit word that it covers changed from `old` to `new` (RFC 1624, equation 3).
#[inline]
pub fn update16(csum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!csum) + u64::from(!old) + u64::from(new))
}

/// The checksum `csum` after bytes that it covers, beginning at an even offset, changed. Both slices have the same, even
/// length.
#[inline]
pub fn update(csum: u16, old: &[u8], new: &[u8]) -> u16 {
    let removed: u64 = old.chunks_exact(2).map(|w| u64::from(!u16::from_be_bytes([w[0], w[1]]))).sum();
    !fold(u64::from(!csum) + removed + sum(new))
}

/// Changes the checksum field that is the two bytes `at` of `header` for a change from `old` to `new`.
#[inline]
pub(crate) fn update_field(header: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    if let Some(field) = header.get_mut(at..at + 2) {
        let csum = update(u16::from_be_bytes([field[0], field[1]]), old, new);
        field.copy_from_slice(&csum.to_be_bytes());
    }
}

/// As [`update_field`] for a UDP checksum: 0 means "none" and stays, and a result of 0 is sent as 0xffff (RFC 768).
#[inline]
pub(crate) fn update_udp_field(header: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    if let Some(field) = header.get_mut(at..at + 2)
        && *field != [0, 0]
    {
        let csum = update(u16::from_be_bytes([field[0], field[1]]), old, new);
        field.copy_from_slice(&if csum == 0 { 0xffff } else { csum }.to_be_bytes());
    }
}

/// As [`update_field`] for a partial checksum, which is a sum and not its complement.
#[cold]
pub(crate) fn update_sum(header: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    if let Some(field) = header.get_mut(at..at + 2) {
        let sum = !update(!u16::from_be_bytes([field[0], field[1]]), old, new);
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// CRC-32C's polynomial, reflected (RFC 9260, appendix A).
const CRC32C: u32 = 0x82f6_3b78;

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (CRC32C & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32c_step(crc: u32, byte: u8) -> u32 {
    CRC32C_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
}

/// CRC-32C of several pieces in a row, as a number; SCTP writes it in little-endian order.
pub fn crc32c(pieces: &[&[u8]]) -> u32 {
    !pieces.iter().flat_map(|p| p.iter()).fold(!0, |crc, b| crc32c_step(crc, *b))
}

/// By which bits the CRC-32C of a message changes when its first bytes change by `delta` (old xor new) and `rest` bytes
/// behind them stay: a CRC is linear, so the message itself is not needed.
pub fn crc32c_change(delta: &[u8], rest: usize) -> u32 {
    let crc = delta.iter().fold(0, |crc, b| crc32c_step(crc, *b));
    (0..rest).fold(crc, |crc, _| crc32c_step(crc, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn published_values() {
        // RFC 1071, section 3: the example sums to ddf2.
        assert_eq!(!internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        // RFC 1624, section 4: the example where the older equation fails.
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
        // RFC 3720, appendix B.4: 32 bytes of zeros, and the check value of the CRC catalogues.
        assert_eq!(crc32c(&[&[0; 32]]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(mut words in prop::collection::vec(any::<u16>(), 1..40), at: prop::sample::Index, new: u16) {
            // A word that never is zero keeps the sum from being the other zero.
            words.push(0x1234);
            let bytes = |w: &[u16]| w.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let before = internet(&[&bytes(&words)]);
            let at = at.index(words.len() - 1);
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(update16(before, old, new), internet(&[&bytes(&words)]));
            prop_assert_eq!(update(before, &old.to_be_bytes(), &new.to_be_bytes()), internet(&[&bytes(&words)]));
        }

        #[test]
        fn a_crc_change_equals_a_new_crc(old in prop::collection::vec(any::<u8>(), 4..200), head: [u8; 4]) {
            let mut new = old.clone();
            new[..4].copy_from_slice(&head);
            let delta: Vec<u8> = old.iter().zip(&head).map(|(a, b)| a ^ b).collect();
            prop_assert_eq!(crc32c(&[&old]) ^ crc32c_change(&delta, old.len() - 4), crc32c(&[&new]));
        }
    }
}
