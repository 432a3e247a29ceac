//! The server, asked with raw messages as ovs-vswitchd writes them, over tables in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod captured;
mod datapaths;
mod devices;
mod dumps;
mod flows;
mod hostile;
mod meters;
#[path = "../../../../softpath/port/tests/namespace/mod.rs"]
mod namespace;
mod raw;
mod socket;
mod upcalls;
mod vports;
