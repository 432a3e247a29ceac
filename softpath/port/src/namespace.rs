//! Which network namespace this is.

use crate::sockopt;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`), which no other one has or gets until the host is
/// restarted, unlike the number of its inode. 0 from a kernel older than 5.14, which has none.
///
/// # Errors
/// The system gives no socket.
pub fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    match sockopt::get_u64(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => Ok(0),
        cookie => cookie,
    }
}
