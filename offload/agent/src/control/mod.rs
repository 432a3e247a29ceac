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
pub(crate) use server::listen;
pub use server::{Commands, Server, answer};

use nix::sys::socket::{getsockopt, sockopt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Environment variable with the folder of sockets and state, in place of [`RUN_DIR`].
pub const RUN_DIR_VARIABLE: &str = "FLOWLIFT_RUNDIR";
/// Folder of sockets and state.
pub const RUN_DIR: &str = "/run/flowlift";

/// The folder of sockets and state.
pub fn run_dir() -> PathBuf {
    std::env::var_os(RUN_DIR_VARIABLE).map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from)
}

/// True if the other end of a connection is root's or this user's, as the kernel vouches.
pub(crate) fn is_trusted(stream: &UnixStream) -> bool {
    let credentials = getsockopt(stream, sockopt::PeerCredentials);
    credentials.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

/// The control socket, unless another one is named.
pub fn default_path() -> PathBuf {
    run_dir().join("flowlift.ctl")
}
