//! What scenarios across crates share.

pub mod frames;
pub mod hostile;
pub mod ovs;
