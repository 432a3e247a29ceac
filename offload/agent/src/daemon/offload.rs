//! Unfinished frames on their way through the softpath: what is left to do on a frame after its headers were edited.
//!
//! The softpath knows bytes only. It edits addresses and ports of a large TCP frame as of any other, and updates the
//! checksum as if it were complete, which in a frame with a partial one is wrong ([`flowlift_port::offload`] says what stands
//! there). So the frame's headers are kept from before, and the checksum field is computed anew for what comes out.

use flowlift_port::Offload;
use flowlift_port::offload::ip_header;

/// Bytes of headers that are kept: Ethernet, tags, IP with options or extension headers, TCP.
const KEPT: usize = 256;

/// A frame as it came in.
#[derive(Debug, Default)]
pub struct Original {
    offload: Option<Offload>,
    head: Vec<u8>,
    len: usize,
    /// The frame as it goes out, where its checksum field had to be written.
    out: Vec<u8>,
}

impl Original {
    /// Notes a frame that comes in.
    pub fn set(&mut self, frame: &[u8], offload: Option<Offload>) {
        self.offload = offload;
        self.head.clear();
        if offload.is_some() {
            self.len = frame.len();
            self.head.extend_from_slice(&frame[..frame.len().min(KEPT)]);
        }
    }

    /// True if the frame that came in last is whole.
    pub fn is_whole(&self) -> bool {
        self.offload.is_none()
    }

    /// The frame that goes out, and what is left to do on it. A frame whose work can be done no more goes out without it.
    pub fn outgoing<'a>(&'a mut self, frame: &'a [u8]) -> (&'a [u8], Option<Offload>) {
        let Some(offload) = self.offload else { return (frame, None) };
        if frame.starts_with(&self.head) {
            return match frame.len() == self.len {
                true => (frame, Some(offload)),
                // A trunc action: the field is past the end, or its sum is of bytes that are there no more.
                false => (frame, offload.cut(frame, frame.len())),
            };
        }
        match self.edited(frame, offload) {
            Some(offload) => (&self.out, Some(offload)),
            None => (frame, None),
        }
    }

    /// Writes the checksum field of an edited frame into a copy.
    fn edited(&mut self, frame: &[u8], offload: Offload) -> Option<Offload> {
        let before = ip_header(&self.head)?;
        // Tags and labels come and go ahead of the IP header.
        let shift = isize::try_from(frame.len()).ok()? - isize::try_from(self.len).ok()?;
        let now = before.checked_add_signed(shift)?;
        let moved = if shift >= 0 {
            offload.inserted(0, shift.unsigned_abs())
        } else {
            offload.removed(0, shift.unsigned_abs())
        }?;
        let field = usize::from(moved.csum_start) + usize::from(moved.csum_offset);
        let old_field = usize::from(offload.csum_start) + usize::from(offload.csum_offset);
        let old = u16::from_be_bytes(*self.head.get(old_field..)?.first_chunk()?);
        let sum =
            u32::from(old) + u32::from(!addresses(&self.head, before)?) + u32::from(addresses(frame, now)?);
        self.out.clear();
        self.out.extend_from_slice(frame);
        self.out.get_mut(field..field + 2)?.copy_from_slice(&fold(sum).to_be_bytes());
        Some(moved)
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the addresses of the IP header at `at`.
fn addresses(frame: &[u8], at: usize) -> Option<u16> {
    let header = frame.get(at..)?;
    let addresses = match header.first()? >> 4 {
        4 => header.get(12..20)?,
        6 => header.get(8..40)?,
        _ => return None,
    };
    let (words, _) = addresses.as_chunks::<2>();
    Some(fold(words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet/IPv4/TCP frame with the partial checksum that Linux leaves: the sum of the pseudo-header.
    fn tcp(src: [u8; 4], payload: usize) -> (Vec<u8>, Offload) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let len = (40 + payload) as u16;
        frame.extend([0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(src);
        frame.extend([10, 0, 0, 2]);
        frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        frame.resize(frame.len() + payload, 0x5a);
        let pseudo = u32::from(addresses(&frame, 14).unwrap()) + 6 + u32::from(len - 20);
        frame[50..52].copy_from_slice(&fold(pseudo).to_be_bytes());
        (frame, Offload { csum_start: 34, csum_offset: 16, gso: None })
    }

    #[test]
    fn an_unchanged_frame_keeps_its_work() {
        let (frame, offload) = tcp([10, 0, 0, 1], 100);
        let mut original = Original::default();
        original.set(&frame, Some(offload));
        assert_eq!(original.outgoing(&frame), (&frame[..], Some(offload)));
        original.set(&frame, None);
        assert_eq!(original.outgoing(&frame), (&frame[..], None));
    }

    #[test]
    fn a_new_address_and_a_new_tag_give_the_field_that_linux_would_have_left() {
        let (frame, offload) = tcp([10, 0, 0, 1], 100);
        let (want, _) = tcp([192, 168, 7, 9], 100);
        let mut original = Original::default();
        original.set(&frame, Some(offload));
        // As the softpath edits it: the address, and a checksum field that is wrong for a partial checksum.
        let mut edited = want.clone();
        edited[50] ^= 0xff;
        assert_eq!(original.outgoing(&edited), (&want[..], Some(offload)));
        let mut tagged = edited.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let mut want_tagged = want;
        want_tagged.splice(12..12, [0x81, 0, 0, 5]);
        let (out, moved) = original.outgoing(&tagged);
        assert_eq!((out, moved), (&want_tagged[..], Some(Offload { csum_start: 38, ..offload })));
    }

    #[test]
    fn what_is_cut_below_its_checksum_goes_out_as_it_is() {
        let (frame, offload) = tcp([10, 0, 0, 1], 100);
        let mut original = Original::default();
        original.set(&frame, Some(offload));
        assert_eq!(original.outgoing(&frame[..40]), (&frame[..40], None));
    }
}
