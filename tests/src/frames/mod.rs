//! Frames for scenarios, built layer by layer, each with a name that says what it is.
//!
//! Checksums are computed here, not by the code under test.

mod build;
mod set;

pub use build::{
    ADDRESSES, Extension, Ipv4, Ipv6, Message, Tag, arp, cut_ethernet, ethernet, icmp, label_stack, llc_snap,
    nd, nsh, sctp, tcp, udp,
};
pub use set::{Named, all, read_pcap};
