//! Netlink attributes: reading them without trust, and writing them.

use thiserror::Error;

/// Bytes of an attribute's header.
pub const HEADER_LEN: usize = 4;
/// The bits of the type field that name the attribute; the two above flag "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;

/// A byte sequence that is not a sequence of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NlaError {
    /// Fewer than 4 bytes are left where a header should be.
    #[error("{left} bytes at offset {offset} are too few for an attribute header")]
    TruncatedHeader {
        /// Bytes from the start of the sequence.
        offset: usize,
        /// Bytes left.
        left: usize,
    },
    /// The length field is below 4 or reaches past the end.
    #[error("attribute {kind} at offset {offset} gives its length as {length} with {left} bytes left")]
    Length {
        /// Type of the attribute.
        kind: u16,
        /// Bytes from the start of the sequence.
        offset: usize,
        /// The length field.
        length: usize,
        /// Bytes left, header included.
        left: usize,
    },
}

/// An attribute: its type without flags, and its payload without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type.
    pub kind: u16,
    /// Payload.
    pub payload: &'a [u8],
}

/// Reads a sequence of attributes; stops after the first error.
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    all: &'a [u8],
    offset: usize,
}

/// The attributes of `bytes`, in order.
pub fn attrs(bytes: &[u8]) -> Attrs<'_> {
    Attrs { all: bytes, offset: 0 }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, NlaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.all.get(offset..).filter(|rest| !rest.is_empty())?;
        self.offset = self.all.len();
        let Some(&[l0, l1, k0, k1]) = rest.first_chunk() else {
            return Some(Err(NlaError::TruncatedHeader { offset, left: rest.len() }));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]) & TYPE_MASK;
        let Some(payload) = rest.get(HEADER_LEN..length) else {
            return Some(Err(NlaError::Length { kind, offset, length, left: rest.len() }));
        };
        // The padding of the last attribute may be missing, as Linux allows.
        self.offset = (offset + length.next_multiple_of(4)).min(self.all.len());
        Some(Ok(Attr { kind, payload }))
    }
}

/// Appends attributes to a buffer. Callers keep each below 64 KiB, which no key comes near.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `out`, whose length is a multiple of 4.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// One attribute, padded with zeros.
    pub fn put(&mut self, kind: impl Into<u16>, payload: &[u8]) {
        let length = HEADER_LEN + payload.len();
        let padding = length.next_multiple_of(4) - length;
        let ([l0, l1], [k0, k1]) = ((length as u16).to_ne_bytes(), kind.into().to_ne_bytes());
        self.out.reserve(length + padding);
        self.out.extend_from_slice(&[l0, l1, k0, k1]);
        self.out.extend_from_slice(payload);
        self.out.extend_from_slice(&[0; 3][..padding]);
    }

    /// Appends bytes to the attribute that was begun last.
    pub fn append(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Begins an attribute that holds others; [`Self::end`] takes the returned position.
    pub fn begin(&mut self, kind: impl Into<u16>) -> usize {
        let start = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        self.out.extend_from_slice(&kind.into().to_ne_bytes());
        start
    }

    /// Ends the attribute begun at `start`: fills in its length and pads.
    pub fn end(&mut self, start: usize) {
        let length = self.out.len() - start;
        if let Some(field) = self.out.get_mut(start..start + 2) {
            field.copy_from_slice(&(length as u16).to_ne_bytes());
        }
        self.out.resize(start + length.next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_what_linux_writes() {
        // Two attributes as on a little-endian machine: type 3 with 4 bytes, nested type 1 (flag set) with 2 and padding.
        let bytes = [8, 0, 3, 0, 1, 2, 3, 4, 6, 0, 1, 0x80, 9, 9, 0, 0];
        let found: Vec<_> = attrs(&bytes).map(|a| a.map(|a| (a.kind, a.payload.to_vec()))).collect();
        assert_eq!(found, [Ok((3, vec![1, 2, 3, 4])), Ok((1, vec![9, 9]))]);
    }

    #[test]
    fn last_padding_may_be_missing() {
        let found: Vec<_> = attrs(&[6, 0, 1, 0, 9, 9]).collect();
        assert_eq!(found, [Ok(Attr { kind: 1, payload: &[9, 9] })]);
    }

    #[test]
    fn a_length_beyond_the_end_or_below_the_header_is_an_error() {
        for length in [0, 3, 9, 255] {
            let bytes = [length, 0, 7, 0, 1, 2, 3, 4];
            let found: Vec<_> = attrs(&bytes).collect();
            assert_eq!(
                found,
                [Err(NlaError::Length { kind: 7, offset: 0, length: length.into(), left: 8 })],
                "length field {length}"
            );
        }
        let found: Vec<_> = attrs(&[4, 0, 1, 0, 1]).collect();
        assert_eq!(found[1], Err(NlaError::TruncatedHeader { offset: 4, left: 1 }));
    }

    #[test]
    fn writer_and_reader_agree() {
        let mut out = Vec::new();
        let mut w = Writer::new(&mut out);
        let outer = w.begin(1u16);
        w.put(2u16, &[1, 2, 3, 4, 5]);
        w.put(3u16, &[]);
        w.end(outer);
        assert_eq!(out, [20, 0, 1, 0, 9, 0, 2, 0, 1, 2, 3, 4, 5, 0, 0, 0, 4, 0, 3, 0]);
    }
}
