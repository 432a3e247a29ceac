//! Under construction.

pub mod actions;
pub mod checksum;
pub mod extract;
pub mod packet;
