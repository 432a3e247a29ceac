//! NIC drivers and their transports.
//!
//! A driver knows NICs, not OVS: what it offers upwards is [`nic::Nic`].

pub mod bind;
pub mod dma;
pub mod fl1;
pub mod inproc;
pub mod nic;
mod platform;
mod reg;
pub mod rocker;
mod standing;
// System calls, mapped registers, and memory that a device writes to.
#[allow(unsafe_code)]
pub mod vfio;
pub mod vfio_user;
