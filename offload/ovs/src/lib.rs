//! Open vSwitch's Netlink interface: what crosses the line between a datapath and ovs-vswitchd.
//!
//! [`key`] turns keys and masks into `OVS_KEY_ATTR_*` attributes and back. [`nla`] is the attribute format itself:
//! a 4-byte header in native byte order (length with header, type), the payload, and padding to 4 bytes.
//! [`marker`] is what the preload module and the agent agree on beside OVS's own messages.

pub mod key;
pub mod marker;
pub mod nla;
