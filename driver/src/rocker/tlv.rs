//! Type-length-value fields in descriptor buffers (the programming guide: "DMA Operations", "Endianness").
//!
//! A field is a header of 8 bytes (type u32, length u16, reserved u16) and a value, padded with zeros to a multiple of 8.
//! Unlike in the guide, the length on the wire counts the header, too. Values that are compared with packets are
//! big-endian, all others little-endian.

/// Bytes of a field's header; also what fields are aligned to.
const HEADER: usize = 8;

/// Fields that are being written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    bytes: Vec<u8>,
}

impl Fields {
    /// No fields.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The bytes, a multiple of 8.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a field. A value that the length has no room for is cut; nothing that this driver sends comes near.
    pub(crate) fn put(&mut self, kind: u32, value: &[u8]) -> &mut Self {
        let room = usize::from(u16::MAX) - 2 * HEADER;
        let value = value.get(..room).unwrap_or(value);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&((HEADER + value.len()) as u16).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(HEADER), 0);
        self
    }

    /// Adds a byte.
    pub(crate) fn u8(&mut self, kind: u32, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    /// Adds a little-endian number.
    pub(crate) fn u16(&mut self, kind: u32, value: u16) -> &mut Self {
        self.put(kind, &value.to_le_bytes())
    }

    /// Adds a little-endian number.
    pub(crate) fn u32(&mut self, kind: u32, value: u32) -> &mut Self {
        self.put(kind, &value.to_le_bytes())
    }

    /// Adds a little-endian number.
    pub(crate) fn u64(&mut self, kind: u32, value: u64) -> &mut Self {
        self.put(kind, &value.to_le_bytes())
    }

    /// Adds a big-endian number, to be compared with packets.
    pub(crate) fn be16(&mut self, kind: u32, value: u16) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds fields as the value of a field.
    pub(crate) fn nest(&mut self, kind: u32, inner: &Fields) -> &mut Self {
        self.put(kind, &inner.bytes)
    }
}

/// One field that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) kind: u32,
    pub(crate) value: &'a [u8],
}

/// Reads fields one after the other; ends at the first that does not fit.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// Reads the fields in `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Reader<'_> {
    Reader { rest: bytes }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (head, _) = self.rest.split_first_chunk::<HEADER>()?;
        let [a, b, c, d, low, high, ..] = *head;
        let len = usize::from(u16::from_le_bytes([low, high]));
        let value = self.rest.get(HEADER..len)?;
        self.rest = self.rest.get(len.next_multiple_of(HEADER)..).unwrap_or_default();
        Some(Field { kind: u32::from_le_bytes([a, b, c, d]), value })
    }
}

/// The value of the last field of a kind, as the device takes it.
pub(crate) fn find(bytes: &[u8], kind: u32) -> Option<&[u8]> {
    read(bytes).filter(|f| f.kind == kind).last().map(|f| f.value)
}

/// A little-endian number of a field, which may be longer than the number but not shorter.
pub(crate) fn number<const N: usize>(bytes: &[u8], kind: u32) -> Option<u64> {
    let value = find(bytes, kind)?.first_chunk::<N>()?;
    Some(value.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
}

/// A value of exactly `N` bytes.
pub(crate) fn exactly<const N: usize>(bytes: &[u8], kind: u32) -> Option<[u8; N]> {
    find(bytes, kind)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Figure 1 of the guide: two fields, values of 22 and of 2 bytes.
    #[test]
    fn fields_are_laid_out_as_in_the_guide() {
        let mut f = Fields::new();
        f.put(1, &[0xaa; 22]).put(2, &[0xbb, 0xcc]);
        let mut want = vec![1, 0, 0, 0, 30, 0, 0, 0];
        want.extend([0xaa; 22]);
        want.extend([0, 0]);
        want.extend([2, 0, 0, 0, 10, 0, 0, 0, 0xbb, 0xcc, 0, 0, 0, 0, 0, 0]);
        assert_eq!(f.bytes(), want);
    }

    #[test]
    fn numbers_have_their_byte_order() {
        let mut f = Fields::new();
        f.u32(5, 0x0102_0304).be16(6, 0x0102).u8(7, 9).u64(8, 1 << 63).u16(9, 0x0a0b);
        assert_eq!(find(f.bytes(), 5), Some(&[4, 3, 2, 1][..]));
        assert_eq!(find(f.bytes(), 6), Some(&[1, 2][..]));
        assert_eq!(number::<4>(f.bytes(), 5), Some(0x0102_0304));
        assert_eq!(number::<2>(f.bytes(), 5), Some(0x0304), "the low bytes come first");
        assert_eq!(number::<8>(f.bytes(), 8), Some(1 << 63));
        assert_eq!((number::<8>(f.bytes(), 5), number::<1>(f.bytes(), 99)), (None, None));
    }

    #[test]
    fn bad_lengths_end_the_reading() {
        for len in [0u8, 7, 17, 255] {
            let mut bytes = vec![1, 0, 0, 0, len, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            assert_eq!(read(&bytes).count(), 0, "length {len}");
            bytes[4] = 16;
            assert_eq!(read(&bytes).count(), 1);
        }
    }

    proptest! {
        /// What is written is read again, in order; also when the last value's padding is missing.
        #[test]
        fn written_fields_are_read_again(
            fields in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12)
        ) {
            let mut f = Fields::new();
            fields.iter().for_each(|(kind, value)| {
                f.put(*kind, value);
            });
            prop_assert!(f.bytes().len().is_multiple_of(8));
            let back: Vec<(u32, Vec<u8>)> = read(f.bytes()).map(|f| (f.kind, f.value.to_vec())).collect();
            prop_assert_eq!(&back, &fields);
            if let Some((_, last)) = fields.last() {
                let padding = last.len().next_multiple_of(8) - last.len();
                prop_assert_eq!(read(&f.bytes()[..f.bytes().len() - padding]).count(), fields.len());
            }
        }

        /// Any bytes at all: reading ends, and stays within them.
        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let n = read(&bytes).map(|f| f.value.len() + HEADER).sum::<usize>();
            prop_assert!(n <= bytes.len());
        }
    }
}
