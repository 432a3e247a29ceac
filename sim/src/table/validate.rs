//! Checks an entry's mask and key against the capability record that the device itself published.

use super::TableError;
use crate::profile::{MatchKind, TableSpec};

/// Mask before key, fields by offset; field 0 stands for padding.
pub(super) fn mask_and_key(spec: &TableSpec, key: &[u8], mask: &[u8]) -> Result<(), TableError> {
    let mut end = 0;
    for f in &spec.fields {
        let len = f.field.bytes();
        end = f.offset + len;
        let m = mask.get(f.offset..end).ok_or(TableError::BadKeyLen)?;
        let supported = f.field.supported();
        let supported = &supported[..len];
        let inside = m.iter().zip(supported).all(|(m, s)| m & !s == 0);
        let kind = match f.kind {
            MatchKind::Any => true,
            MatchKind::Exact => m == supported || m.iter().all(|&b| b == 0),
            MatchKind::Prefix => is_prefix(m),
        };
        if !inside || !kind {
            return Err(TableError::BadMask { field: f.field.id() });
        }
    }
    if mask.get(end..).is_some_and(|p| p.iter().any(|&b| b != 0)) {
        return Err(TableError::BadMask { field: 0 });
    }
    for f in &spec.fields {
        let range = f.offset..f.offset + f.field.bytes();
        let (k, m) = (key.get(range.clone()).unwrap_or(&[]), mask.get(range).unwrap_or(&[]));
        if k.iter().zip(m).any(|(k, m)| k & !m != 0) {
            return Err(TableError::BadKey { field: f.field.id() });
        }
    }
    if key.get(end..).is_some_and(|p| p.iter().any(|&b| b != 0)) {
        return Err(TableError::BadKey { field: 0 });
    }
    Ok(())
}

/// Ones, then zeros.
fn is_prefix(m: &[u8]) -> bool {
    let ones: u32 = m.iter().map(|b| b.count_ones()).sum();
    let mut leading = 0;
    for b in m {
        leading += b.leading_ones();
        if *b != 0xff {
            break;
        }
    }
    ones == leading
}
