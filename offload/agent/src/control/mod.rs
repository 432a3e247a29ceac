//! The control socket: JSON-RPC 1.0 over a Unix stream, as Open vSwitch's daemons speak it (unixctl), so that
//! `ovs-appctl -t PATH COMMAND` works with flowlift's daemon as with them.
//!
//! A request is `{"id":N,"method":COMMAND,"params":[ARGUMENT,...]}`, an answer `{"id":N,"result":TEXT,"error":null}` or the
//! same with `error`. Requests follow each other without anything between them.

mod client;
mod decode;
mod server;

pub use client::Client;
pub use decode::{DecodeError, Decoder, REQUEST_MAX, Request};
pub use server::{Commands, Server, answer};

use std::path::PathBuf;

/// Environment variable with the folder of sockets and state, in place of [`RUN_DIR`].
pub const RUN_DIR_VARIABLE: &str = "FLOWLIFT_RUNDIR";
/// Folder of sockets and state.
pub const RUN_DIR: &str = "/run/flowlift";

/// The folder of sockets and state.
pub fn run_dir() -> PathBuf {
    std::env::var_os(RUN_DIR_VARIABLE).map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from)
}

/// The control socket, unless another one is named.
pub fn default_path() -> PathBuf {
    run_dir().join("flowlift.ctl")
}
