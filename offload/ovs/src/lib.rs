//! Open vSwitch's Netlink interface: what crosses the line between a datapath and ovs-vswitchd.
//!
//! [`key`] turns keys and masks into `OVS_KEY_ATTR_*` attributes and back. [`nla`] is the attribute format itself:
//! a 4-byte header in native byte order (length with header, type), the payload, and padding to 4 bytes.
//! [`backend`] is what a datapath does when it is asked by such messages, [`marker`] what the library that is preloaded
//! into the clients and the server say to each other.

pub mod backend;
pub mod key;
pub mod marker;
pub mod nla;
