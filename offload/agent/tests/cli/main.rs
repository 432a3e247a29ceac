//! The `flowlift` program as a user meets it: options, output, exit codes, and what bad input gets.

mod bad_input;
mod common;
mod explain;
mod key;
mod replay;
