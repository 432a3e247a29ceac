//! Flows as Open vSwitch describes them: keys, masks, matches, actions, UFIDs, and their text form.
//!
//! No I/O, no `unsafe`, nothing of ours below it. The text form is the one that `ovs-appctl dpctl/dump-flows` prints
//! and `dpctl/add-flow` takes (ovs-dpctl(8)); [`text`] parses and prints it so that real dumps round-trip.

pub mod action;
pub mod attrs;
pub mod key;
pub mod matching;
pub mod text;

pub use action::{Action, Header};
pub use attrs::AttrSet;
pub use key::{Frag, Key, MacAddr, Mask, Metadata, VlanTag};
pub use matching::{Flow, Match, PortNo, Ufid};
