//! Open vSwitch's Netlink interface: what crosses the line between a datapath and ovs-vswitchd.
//!
//! [`key`] turns keys and masks into `OVS_KEY_ATTR_*` attributes and back, [`action`] actions into `OVS_ACTION_ATTR_*`;
//! [`nla`] is the attribute format itself: a 4-byte header in native byte order (length with header, type), the payload,
//! and padding to 4 bytes. [`server`] answers the OVS families' requests by asking a [`backend`], and [`upcall`] composes
//! the packets that go to the user unasked. [`marker`] is what server and preloaded library say to each other.

pub mod action;
mod audience;
pub mod backend;
pub mod key;
pub mod marker;
pub mod memory;
pub mod nla;
pub mod server;
pub mod socket;
pub mod uapi;
pub mod upcall;
