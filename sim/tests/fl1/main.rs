//! The device model from outside: a host of raw bytes drives it through registers, doorbells and DMA, by the spec.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // All of it is tests, helpers too.

mod faults;
mod host;
mod hostile;
mod meters;
mod oracle;
mod order;
mod pipeline;
mod spec;
mod tunnels;
mod violations;
mod wires;
