//! A flow's match and handle.

use crate::{Action, Key, Mask};

/// Number of a datapath port (vport). 0 is the datapath's local port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u32);

/// Unique flow identifier, 1 to 16 octets (U5); shorter ones are kept at their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ufid {
    bytes: [u8; 16],
    len: u8,
}

impl Ufid {
    /// From 1 to 16 octets; `None` for any other number.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let len = octets.len();
        if !(1..=16).contains(&len) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..len].copy_from_slice(octets);
        Some(Self { bytes, len: len as u8 })
    }

    /// The octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The attributes that a flow's key names, per nesting level: level 0 is the key itself, 1 and 2 are within ENCAP.
/// Bit n of a level stands for `OVS_KEY_ATTR_*` number n.
///
/// A match means the same without it (a missing attribute is wildcarded whole, U4), but R20 asks that the match be kept
/// exactly as installed, and a dump prints attributes whose mask is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AttrSet(pub [u64; 3]);

/// What a flow matches: a packet's key agrees with `key` in every bit of `mask`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The key as installed, bits outside the mask included.
    pub key: Key,
    /// The mask; all ones in every attribute of the key where none was given (R15).
    pub mask: Mask,
    /// The attributes that were named.
    pub attrs: AttrSet,
}

/// A flow: handle, match and actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Optional handle (R24).
    pub ufid: Option<Ufid>,
    /// What it matches.
    pub matching: Match,
    /// What it does; empty drops.
    pub actions: Vec<Action>,
}
