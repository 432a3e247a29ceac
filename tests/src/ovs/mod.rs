//! Debian's Open vSwitch as a reference: its user-space datapath with dummy ports, driven frame by frame.
//!
//! [`Vswitch`] starts `ovsdb-server` and `ovs-vswitchd --enable-dummy --disable-system` in a directory of their own, as
//! whatever user runs the test; nothing of the machine's network is touched. Flows go in through the daemon's control
//! socket as `dpctl/add-flow` text, frames through `netdev-dummy/receive`, and what the ports send is read back from
//! their capture files.

mod control;
mod vswitch;

pub use control::Control;
pub use vswitch::{PORTS, Sent, Vswitch};
