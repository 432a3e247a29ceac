//! Finishing frames in software, as Linux does for a device that cannot (`tcp_gso_segment`, `__udp_gso_segment`,
//! `skb_checksum_help`).

use super::{Gso, GsoKind, Offload};
use crc::{CRC_32_ISCSI, Crc};

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A frame whose headers are not what its [`Offload`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {len} bytes without the headers that it is to be segmented or checksummed by")]
pub struct CannotFinish {
    /// Length of the frame.
    pub len: usize,
}

/// Does what is left to do on `frame` and gives the frames that come of it, in order. `scratch` holds one at a time; keep it for
/// the next frame, so that nothing is allocated.
///
/// # Errors
/// See [`CannotFinish`]; then no frame was given.
pub fn finish(
    frame: &[u8],
    offload: &Offload,
    scratch: &mut Vec<u8>,
    each: &mut dyn FnMut(&[u8]),
) -> Result<(), CannotFinish> {
    match offload.gso {
        Some(gso) => segment(frame, offload, gso, scratch, each).ok_or(CannotFinish { len: frame.len() }),
        None => {
            if offload.checksum_end() > frame.len() {
                return Err(CannotFinish { len: frame.len() });
            }
            scratch.clear();
            scratch.extend_from_slice(frame);
            complete(scratch, usize::from(offload.csum_start), usize::from(offload.csum_offset));
            each(scratch);
            Ok(())
        }
    }
}

/// SCTP's checksum is a CRC, which no header tells from a sum but by its place; it is completed at once, so that all that is left to
/// do afterwards is of one kind. Any other offload is given back.
pub(crate) fn finish_sctp(frame: &mut [u8], offload: Option<Offload>) -> Option<Offload> {
    const CHECKSUM: usize = 8;
    let start = match offload {
        Some(offload) if usize::from(offload.csum_offset) == CHECKSUM => usize::from(offload.csum_start),
        other => return other,
    };
    if let Some((head, tail)) =
        frame.get_mut(start..).and_then(|packet| packet.split_at_mut_checked(CHECKSUM + 4))
    {
        head[CHECKSUM..].fill(0);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI);
        let mut digest = crc.digest();
        digest.update(head);
        digest.update(tail);
        head[CHECKSUM..].copy_from_slice(&digest.finalize().to_le_bytes());
    }
    None
}

/// Completes the partial checksum at `start + offset` over everything from `start` on. The field is there.
fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let Some(covered) = frame.get_mut(start..) else { return };
    // A sum of 0 is written as 0xffff, its other form, since 0 means "none" in UDP; Linux does so whatever the protocol.
    let csum = match !sum(covered) {
        0 => 0xffff,
        csum => csum,
    };
    if let Some(field) = covered.get_mut(offset..offset + 2) {
        field.copy_from_slice(&csum.to_be_bytes());
    }
}

/// One's complement sum of big-endian 16-bit words (RFC 1071); an odd last byte is the upper half of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on the byte order if the result's bytes are put back into the words' order (RFC 1071, section 2),
    // and 32-bit words are two 16-bit ones.
    let mut words = bytes.chunks_exact(4);
    let mut sum: u64 = words.by_ref().map(|w| u64::from(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))).sum();
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum += u64::from(u32::from_ne_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::from_be_bytes((sum as u16).to_ne_bytes())
}

/// One's complement sum of two words.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// A length as a word of a one's complement sum.
fn length_word(len: usize) -> u16 {
    let len = len as u64;
    add((len & 0xffff) as u16, ((len >> 16) & 0xffff) as u16)
}

/// Writes `value` at `at`; false where there is no room.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + value.len())?.copy_from_slice(value);
    Some(())
}

fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

fn segment(
    frame: &[u8],
    offload: &Offload,
    gso: Gso,
    scratch: &mut Vec<u8>,
    each: &mut dyn FnMut(&[u8]),
) -> Option<()> {
    let (l3, l4) = (usize::from(gso.l3_start), usize::from(offload.csum_start));
    let csum_at = l4 + usize::from(offload.csum_offset);
    let header_len = offload.header_len(frame)?;
    let ipv4 = match frame.get(l3)? >> 4 {
        4 => true,
        6 => false,
        _ => return None,
    };
    if offload.csum_offset != gso.kind.csum_offset() || l4 < l3 + if ipv4 { 20 } else { 40 } {
        return None;
    }
    let (headers, payload) = frame.split_at_checked(header_len)?;
    let first_id = get16(headers, l3 + 4)?;
    // The sum of the pseudo-header without its length: each segment adds its own. The bytes of a UDP length in the header are
    // summed with the rest.
    let old_len = match gso.kind {
        GsoKind::Tcp => length_word(frame.len() - l4),
        GsoKind::Udp => get16(headers, l4 + 4)?,
    };
    let pseudo = add(get16(headers, csum_at)?, !old_len);
    let size = usize::from(gso.size.get());
    let count = payload.len().div_ceil(size).max(1);
    for n in 0..count {
        let part = &payload[n * size..payload.len().min((n + 1) * size)];
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        let l3_len = scratch.len() - l3;
        let l4_len = u16::try_from(scratch.len() - l4).ok()?;
        if ipv4 {
            put(scratch, l3 + 2, &u16::try_from(l3_len).ok()?.to_be_bytes())?;
            put(scratch, l3 + 4, &first_id.wrapping_add(n as u16).to_be_bytes())?;
            put(scratch, l3 + 10, &[0, 0])?;
            let csum = !sum(scratch.get(l3..l4)?);
            put(scratch, l3 + 10, &csum.to_be_bytes())?;
        } else {
            put(scratch, l3 + 4, &u16::try_from(l3_len - 40).ok()?.to_be_bytes())?;
        }
        match gso.kind {
            GsoKind::Tcp => {
                let seq = scratch.get_mut(l4 + 4..)?.first_chunk_mut::<4>()?;
                *seq = u32::from_be_bytes(*seq).wrapping_add((n * size) as u32).to_be_bytes();
                let flags = scratch.get_mut(l4 + 13)?;
                if n + 1 < count {
                    *flags &= !FIN_PSH;
                }
                if n > 0 {
                    *flags &= !CWR;
                }
            }
            GsoKind::Udp => put(scratch, l4 + 4, &l4_len.to_be_bytes())?,
        }
        put(scratch, csum_at, &add(pseudo, l4_len).to_be_bytes())?;
        complete(scratch, l4, usize::from(offload.csum_offset));
        each(scratch);
    }
    Some(())
}
