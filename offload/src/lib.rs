//! The planner: which flows a NIC can take, as which entries, and what becomes of them there.
//!
//! No I/O and no threads: time, flows and the NIC are given to it, so that a run replays from its inputs.
mod effect;
pub mod explain;
mod form;
mod header;
mod keyfields;
pub mod lower;
pub mod meter;
pub mod pipeline;
pub mod placement;
pub mod planner;
pub mod ports;
pub mod raise;
pub mod recirc;
pub mod refusal;
#[cfg(test)]
mod testing;
