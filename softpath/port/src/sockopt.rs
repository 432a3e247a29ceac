//! Socket options that no safe wrapper has.
#![allow(unsafe_code)] // setsockopt and getsockopt.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Values that the kernel may read as bytes: whole integers, without padding and pointers.
pub(crate) trait Plain {}

impl Plain for libc::c_int {}
impl Plain for libc::packet_mreq {}

/// Sets an option to the bytes of `value`.
pub(crate) fn set<T: Plain>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the value is a whole `T`, and its size is told; the kernel only reads it.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Lets `bytes` of received packets wait in the socket: past the system's limit where we may, otherwise as many as it lets us have.
pub(crate) fn receive_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
}

/// The same for packets that wait to be sent.
pub(crate) fn send_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes))
}

/// An option that is a number of 64 bits.
pub(crate) fn get_u64(socket: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<u64> {
    let (mut value, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes no more than the size that it is told, and every value of a `u64` is one.
    Errno::result(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    })?;
    if len as usize == size_of::<u64>() { Ok(value) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Lets nothing be received by the socket: for one that only sends.
pub(crate) fn receive_nothing(socket: &OwnedFd) -> io::Result<()> {
    // BPF_RET | BPF_K with 0: keep no byte of any packet.
    filter(socket, libc::SO_ATTACH_FILTER, &mut [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }])
}

/// Gives the socket a program of classic BPF, by the option `name` of SOL_SOCKET.
pub(crate) fn filter(
    socket: &OwnedFd,
    name: libc::c_int,
    instructions: &mut [libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: the program names as many instructions as it says, and its own size is told; the kernel copies both.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })?;
    Ok(())
}
