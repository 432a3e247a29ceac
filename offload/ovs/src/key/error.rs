//! Why a sequence of attributes is not a key or not a mask.

use super::attr;
use crate::nla::NlaError;
use std::fmt;
use thiserror::Error;

/// A refused key or mask. `level` is 0 for the key itself, 1 and 2 within ENCAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not a sequence of attributes.
    #[error("malformed attributes{}: {source}", Level(*.level))]
    Malformed {
        /// Nesting level.
        level: usize,
        /// What is wrong.
        source: NlaError,
    },
    /// The same attribute twice at one level (R37).
    #[error("attribute {} occurs twice{}", Name(u16::from(*.attr)), Level(*.level))]
    Duplicate {
        /// `OVS_KEY_ATTR_*`.
        attr: u8,
        /// Nesting level.
        level: usize,
    },
    /// An attribute that this version does not know or that never crosses this line (U13).
    #[error("attribute {} is unknown{}", Name(*.attr), Level(*.level))]
    Unknown {
        /// `OVS_KEY_ATTR_*`.
        attr: u16,
        /// Nesting level.
        level: usize,
    },
    /// A payload of the wrong length.
    #[error("attribute {} has {actual} bytes instead of {expected}{}", Name(u16::from(*.attr)), Level(*.level))]
    Length {
        /// `OVS_KEY_ATTR_*`.
        attr: u8,
        /// Nesting level.
        level: usize,
        /// Bytes that it should have; of MPLS, the most that it may have.
        expected: usize,
        /// Bytes that it has.
        actual: usize,
    },
    /// The key's headers call for an attribute that is not there.
    #[error("attribute {} is missing{}", Name(u16::from(*.attr)), Level(*.level))]
    Missing {
        /// `OVS_KEY_ATTR_*`.
        attr: u8,
        /// Nesting level.
        level: usize,
    },
    /// An attribute that the key's headers leave no place for, such as TCP without an IP protocol of 6.
    #[error("attribute {} does not fit the headers before it{}", Name(u16::from(*.attr)), Level(*.level))]
    Misplaced {
        /// `OVS_KEY_ATTR_*`.
        attr: u8,
        /// Nesting level.
        level: usize,
    },
    /// A field with a value that it cannot have.
    #[error("attribute {}: {field} cannot be {value:#x}", Name(u16::from(*.attr)))]
    Value {
        /// `OVS_KEY_ATTR_*`.
        attr: u8,
        /// Field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A VLAN attribute whose TCI is neither zero nor has the CFI bit (R36), or with something in ENCAP behind a tag
    /// that is cut off (R35).
    #[error("VLAN TCI {tci:#06x} needs the CFI bit{}", Level(*.level))]
    VlanTci {
        /// The TCI.
        tci: u16,
        /// Nesting level.
        level: usize,
    },
    /// A mask that looks into a header without matching exactly the field that says it is there.
    #[error("mask of {} needs an exact match on {}", Name(u16::from(*.attr)), Name(u16::from(*.needs)))]
    MaskWithout {
        /// The attribute with mask bits.
        attr: u8,
        /// The attribute that must be matched exactly.
        needs: u8,
    },
    /// Something within TUNNEL or NSH.
    #[error("attribute {} within {} {problem}", .inner, Name(u16::from(*.attr)))]
    Inner {
        /// TUNNEL or NSH.
        attr: u8,
        /// `OVS_TUNNEL_KEY_ATTR_*` or `OVS_NSH_KEY_ATTR_*`.
        inner: u16,
        /// What is wrong with it.
        problem: InnerProblem,
    },
}

/// What is wrong with an attribute within TUNNEL or NSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InnerProblem {
    /// Occurs twice (R37).
    #[error("occurs twice")]
    Duplicate,
    /// Unknown.
    #[error("is unknown")]
    Unknown,
    /// Payload of the wrong length.
    #[error("has a payload of {0} bytes")]
    Length(usize),
    /// Must be there and is not.
    #[error("is missing")]
    Missing,
    /// Cannot stand beside another, such as an IPv4 beside an IPv6 address.
    #[error("contradicts another attribute")]
    Conflict,
    /// A value that it cannot have.
    #[error("cannot be {0:#x}")]
    Value(u64),
}

struct Level(usize);

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            level => write!(f, " in ENCAP {level}"),
        }
    }
}

struct Name(u16);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match attr::NAMES.get(usize::from(self.0)) {
            Some(name) if !name.is_empty() => f.write_str(name),
            _ => write!(f, "{}", self.0),
        }
    }
}
