//! NIC drivers and their transports.
//!
//! A driver knows NICs, not OVS: what it offers upwards is [`nic::Nic`].

pub mod dma;
pub mod fl1;
pub mod inproc;
pub mod nic;
