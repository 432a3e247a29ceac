//! The `flowlift` program as a user meets it: options, output, exit codes, and what bad input gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod bad_input;
mod common;
mod explain;
mod failure;
mod generate;
mod key;
mod replay;
