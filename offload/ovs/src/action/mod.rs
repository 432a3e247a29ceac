//! Actions as Netlink attributes: reading what ovs-vswitchd sends, and composing what it reads back.
//!
//! Reading checks form alone: numbers, lengths, what must be there and what is there twice (R37), and how deeply lists
//! nest. Whether an action suits its flow is [`flowlift_flow::action::validate`]'s business. Composing gives the bytes that
//! were read, but for the order within an action, which is that of the header's numbers.

mod ct;
mod decode;
mod encode;
mod header;

pub use decode::decode_actions;
pub use encode::{EncodeError, encode_actions};

use crate::key::KeyError;
use crate::nla::{NlaError, attrs};
use thiserror::Error;

/// `enum ovs_action_attr`. 24 and 25 are newer than Debian 12's header.
pub mod attr {
    #![allow(missing_docs)]
    pub const OUTPUT: u16 = 1;
    pub const USERSPACE: u16 = 2;
    pub const SET: u16 = 3;
    pub const PUSH_VLAN: u16 = 4;
    pub const POP_VLAN: u16 = 5;
    pub const SAMPLE: u16 = 6;
    pub const RECIRC: u16 = 7;
    pub const HASH: u16 = 8;
    pub const PUSH_MPLS: u16 = 9;
    pub const POP_MPLS: u16 = 10;
    pub const SET_MASKED: u16 = 11;
    pub const CT: u16 = 12;
    pub const TRUNC: u16 = 13;
    pub const PUSH_ETH: u16 = 14;
    pub const POP_ETH: u16 = 15;
    pub const CT_CLEAR: u16 = 16;
    pub const PUSH_NSH: u16 = 17;
    pub const POP_NSH: u16 = 18;
    pub const METER: u16 = 19;
    pub const CLONE: u16 = 20;
    pub const CHECK_PKT_LEN: u16 = 21;
    pub const ADD_MPLS: u16 = 22;
    pub const DEC_TTL: u16 = 23;
    pub const DROP: u16 = 24;
    pub const PSAMPLE: u16 = 25;
}

/// Names of `OVS_ACTION_ATTR_*` by number, for messages to people.
const NAMES: [&str; 26] = [
    "UNSPEC",
    "OUTPUT",
    "USERSPACE",
    "SET",
    "PUSH_VLAN",
    "POP_VLAN",
    "SAMPLE",
    "RECIRC",
    "HASH",
    "PUSH_MPLS",
    "POP_MPLS",
    "SET_MASKED",
    "CT",
    "TRUNC",
    "PUSH_ETH",
    "POP_ETH",
    "CT_CLEAR",
    "PUSH_NSH",
    "POP_NSH",
    "METER",
    "CLONE",
    "CHECK_PKT_LEN",
    "ADD_MPLS",
    "DEC_TTL",
    "DROP",
    "PSAMPLE",
];

/// Attributes within actions.
mod arg {
    pub(super) const USERSPACE_PID: u16 = 1;
    pub(super) const USERSPACE_USERDATA: u16 = 2;
    pub(super) const USERSPACE_EGRESS_TUN_PORT: u16 = 3;
    pub(super) const USERSPACE_ACTIONS: u16 = 4;
    pub(super) const SAMPLE_PROBABILITY: u16 = 1;
    pub(super) const SAMPLE_ACTIONS: u16 = 2;
    pub(super) const CHECK_PKT_LEN: u16 = 1;
    pub(super) const CHECK_GREATER: u16 = 2;
    pub(super) const CHECK_LESS_EQUAL: u16 = 3;
    pub(super) const DEC_TTL_ACTION: u16 = 1;
    pub(super) const PSAMPLE_GROUP: u16 = 1;
    pub(super) const PSAMPLE_COOKIE: u16 = 2;
    pub(super) const NSH_BASE: u16 = 1;
    pub(super) const NSH_MD1: u16 = 2;
    pub(super) const NSH_MD2: u16 = 3;
    /// `OVS_HASH_ALG_L4` and `OVS_HASH_ALG_SYM_L4`.
    pub(super) const HASH_L4: u32 = 0;
    pub(super) const HASH_SYM_L4: u32 = 1;
    /// `OVS_MPLS_L3_TUNNEL_FLAG_MASK`.
    pub(super) const ADD_MPLS_L3: u16 = 1;
}

/// An action's name in the header, in messages to people.
fn name(kind: u16) -> &'static str {
    NAMES.get(usize::from(kind)).copied().unwrap_or("unknown")
}

/// A refused list of actions. `action` is a number of `OVS_ACTION_ATTR_*`, `arg` one of an attribute within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ActionAttrError {
    /// Not a sequence of attributes.
    #[error("malformed attributes: {0}")]
    Malformed(#[from] NlaError),
    /// Nothing past the last known action is accepted (U13).
    #[error("action {0} is unknown")]
    Unknown(u16),
    /// A payload of the wrong length.
    #[error("action {} has {actual} bytes instead of {expected}", name(*.action))]
    Length {
        /// See above.
        action: u16,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        actual: usize,
    },
    /// An attribute within an action that is unknown there.
    #[error("action {}: attribute {arg} is unknown", name(*.action))]
    UnknownArg {
        /// See above.
        action: u16,
        /// See above.
        arg: u16,
    },
    /// An attribute that occurs twice within an action (R37).
    #[error("action {}: attribute {arg} occurs twice", name(*.action))]
    Duplicate {
        /// See above.
        action: u16,
        /// See above.
        arg: u16,
    },
    /// An attribute within an action with a payload of the wrong length.
    #[error("action {}: attribute {arg} has {actual} bytes", name(*.action))]
    ArgLength {
        /// See above.
        action: u16,
        /// See above.
        arg: u16,
        /// Bytes that it has.
        actual: usize,
    },
    /// An attribute that an action must have.
    #[error("action {} lacks attribute {arg}", name(*.action))]
    Missing {
        /// See above.
        action: u16,
        /// See above.
        arg: u16,
    },
    /// A value that cannot be.
    #[error("action {}: {field} cannot be {value:#x}", name(*.action))]
    Value {
        /// See above.
        action: u16,
        /// What the value is of.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// The header of a set action.
    #[error("action {}: {source}", name(*.action))]
    Key {
        /// SET or SET_MASKED.
        action: u16,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A header that cannot be set.
    #[error("action {}: key attribute {key} cannot be set", name(*.action))]
    NotSettable {
        /// SET or SET_MASKED.
        action: u16,
        /// `OVS_KEY_ATTR_*`.
        key: u16,
    },
    /// Lists nested without end: more than [`flowlift_flow::action::MAX_NESTING`] deep.
    #[error("actions are nested too deeply")]
    TooDeep,
}

/// The attributes within an action, by number below `N`, each at most once.
struct Args<'a, const N: usize> {
    action: u16,
    by_number: [Option<&'a [u8]>; N],
}

impl<'a, const N: usize> Args<'a, N> {
    fn parse(action: u16, payload: &'a [u8]) -> Result<Self, ActionAttrError> {
        let mut by_number = [None; N];
        for item in attrs(payload) {
            let item = item?;
            let arg = item.kind;
            let slot = by_number.get_mut(usize::from(arg)).filter(|_| arg != 0);
            let Some(slot) = slot else { return Err(ActionAttrError::UnknownArg { action, arg }) };
            if slot.replace(item.payload).is_some() {
                return Err(ActionAttrError::Duplicate { action, arg });
            }
        }
        Ok(Self { action, by_number })
    }

    fn get(&self, arg: u16) -> Option<&'a [u8]> {
        self.by_number.get(usize::from(arg)).copied().flatten()
    }

    fn need(&self, arg: u16) -> Result<&'a [u8], ActionAttrError> {
        self.get(arg).ok_or(ActionAttrError::Missing { action: self.action, arg })
    }

    /// Exactly `L` bytes, if it is there.
    fn fixed<const L: usize>(&self, arg: u16) -> Result<Option<[u8; L]>, ActionAttrError> {
        let Some(payload) = self.get(arg) else { return Ok(None) };
        let wrong = || ActionAttrError::ArgLength { action: self.action, arg, actual: payload.len() };
        payload.try_into().map(Some).map_err(|_| wrong())
    }

    fn u32(&self, arg: u16) -> Result<Option<u32>, ActionAttrError> {
        Ok(self.fixed(arg)?.map(u32::from_ne_bytes))
    }

    fn u16(&self, arg: u16) -> Result<Option<u16>, ActionAttrError> {
        Ok(self.fixed(arg)?.map(u16::from_ne_bytes))
    }

    fn flag(&self, arg: u16) -> Result<bool, ActionAttrError> {
        Ok(self.fixed::<0>(arg)?.is_some())
    }

    /// A string that ends in a zero byte.
    fn string(&self, arg: u16) -> Result<Option<String>, ActionAttrError> {
        let Some(payload) = self.get(arg) else { return Ok(None) };
        let text = payload.strip_suffix(&[0]).and_then(|text| std::str::from_utf8(text).ok());
        match text.filter(|text| !text.is_empty() && !text.contains('\0')) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(ActionAttrError::ArgLength { action: self.action, arg, actual: payload.len() }),
        }
    }
}
