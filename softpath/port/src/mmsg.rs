//! Many packets in one system call. Neither call waits.
#![allow(unsafe_code)] // recvmmsg and sendmmsg.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use nix::errno::Errno;
use nix::libc;

/// Receives what waits into `messages`, from the first one on; gives how many were filled.
///
/// # Safety
/// What each message names (address, parts, control messages) must be writable for the lengths told, distinct from what others
/// name, and alive until the return.
pub(crate) unsafe fn receive(socket: BorrowedFd<'_>, messages: &mut [libc::mmsghdr]) -> nix::Result<usize> {
    let (first, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
    // SAFETY: the messages are as many as told; the caller upholds what they name.
    let received = Errno::result(unsafe {
        libc::recvmmsg(socket.as_raw_fd(), first, count, libc::MSG_DONTWAIT as _, null_mut())
    })?;
    Ok(usize::try_from(received).unwrap_or(0))
}

/// Sends `messages` from the first one on; gives how many were taken, at least one.
///
/// # Errors
/// What the first message met.
///
/// # Safety
/// What each message names must be readable for the lengths told, and alive until the return.
pub(crate) unsafe fn send(socket: BorrowedFd<'_>, messages: &mut [libc::mmsghdr]) -> nix::Result<usize> {
    if messages.is_empty() {
        return Ok(0);
    }
    let (first, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
    // SAFETY: the messages are as many as told; the caller upholds what they name, which the kernel only reads.
    let sent =
        Errno::result(unsafe { libc::sendmmsg(socket.as_raw_fd(), first, count, libc::MSG_DONTWAIT as _) })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}
