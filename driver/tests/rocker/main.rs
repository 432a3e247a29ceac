//! The rocker driver on a model of the device's rings and commands, which lies when told to. What the device does with
//! packets in its tables is seen on the device itself, in tests/vm.

#![allow(clippy::unwrap_used, clippy::panic)]

mod hostile;
mod model;
mod working;
