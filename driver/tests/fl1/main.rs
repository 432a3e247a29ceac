//! The driver of FL1 against the simulated device, which was written from the same page by another hand.
// Helpers of tests are tests: clippy.toml's exception reaches only functions with #[test].
#![allow(clippy::unwrap_used, clippy::panic)]

mod beside;
mod faults;
mod figures;
mod harness;
mod meters;
mod order;
mod packets;
mod tunnels;
mod updates;
