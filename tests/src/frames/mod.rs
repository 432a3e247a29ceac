//! Frames for scenarios, built layer by layer, each with a name that says what it is.
//!
//! Checksums are computed here, not by the code under test.

mod build;
mod set;

pub use build::{Ipv4, Ipv6, Tag, arp, cut_ethernet, ethernet, label_stack, llc_snap, nsh, sctp, tcp, udp};
pub use set::{Named, all, read_pcap};
