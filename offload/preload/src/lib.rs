//! A library to preload (`LD_PRELOAD`) into ovs-vswitchd and its tools, which points them at flowlift in place of the
//! kernel's datapath. `flowlift ovs-run` does the preloading.
//!
//! It concerns itself with sockets of NETLINK_GENERIC and NETLINK_ROUTE that are connected to the kernel, as Open vSwitch's are, and on
//! these with messages of the OVS families and those about Open vSwitch's tunnel devices: [`route`] sends those to the agent's port ID,
//! and everything else to the kernel as ever. The socket stays a Netlink socket, so that polling, options, groups and names are the
//! kernel's own. [`receive`] makes reads wait for an answer that is on its way; [`flowlift_ovs::marker`] says why and how. Every other
//! socket passes through untouched: one look at a bit.
//!
//! Without an agent the OVS families do not exist, as if the kernel's module were not loaded; a request to a family that
//! was there gives ECONNREFUSED. No call waits for an agent that is gone.
//!
//! The functions below have the ABI of the C library's. A socket is used by one thread at a time for a transaction, as
//! Netlink itself demands.
#![allow(unsafe_code)] // It stands between C programs and the C library.

mod message;
mod real;
mod receive;
mod route;
mod sockets;

use libc::{c_int, c_uint, c_void, iovec, msghdr, size_t, sockaddr, sockaddr_nl, socklen_t, ssize_t};

/// Sets the thread's error number and gives the C library's "failed".
fn fail(errno: c_int) -> ssize_t {
    // SAFETY: the C library gives each thread a place for its error number, valid for the thread's life.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// The thread's error number.
fn errno() -> c_int {
    // SAFETY: as in `fail`.
    unsafe { *libc::__errno_location() }
}

/// `socket(2)`.
///
/// # Safety
/// None beyond C's: any arguments may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the C library's own function, with the caller's arguments.
    let fd = unsafe { (real::get().socket)(domain, kind, protocol) };
    if fd >= 0 {
        sockets::forget(fd);
        if domain == libc::AF_NETLINK
            && let Some(protocol) = message::Protocol::of(protocol)
        {
            sockets::remember(fd, protocol);
        }
    }
    fd
}

/// `close(2)`.
///
/// # Safety
/// As C's: nobody uses the descriptor afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    sockets::forget(fd);
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { (real::get().close)(fd) }
}

/// `connect(2)`.
///
/// # Safety
/// As C's: `address` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    if let Some(socket) = sockets::find(fd)
        && !address.is_null()
        && length as usize >= size_of::<sockaddr_nl>()
    {
        // SAFETY: the caller's address has that many bytes; it may be unaligned.
        let peer = unsafe { std::ptr::read_unaligned(address.cast::<sockaddr_nl>()) };
        if c_int::from(peer.nl_family) == libc::AF_NETLINK && peer.nl_pid == 0 && peer.nl_groups == 0 {
            return sockets::connect(fd, &socket);
        }
    }
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { (real::get().connect)(fd, address, length) }
}

/// `send(2)`.
///
/// # Safety
/// As C's: `data` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(fd: c_int, data: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    let Some(socket) = sockets::find_connected(fd) else {
        // SAFETY: the C library's own function, with the caller's arguments.
        return unsafe { (real::get().send)(fd, data, len, flags) };
    };
    let part = iovec { iov_base: data.cast_mut(), iov_len: len };
    let mut header = message::header(&part, 1);
    // SAFETY: the header names the caller's bytes.
    unsafe { route::send(fd, &socket, &mut header, flags) }
}

/// `sendmsg(2)`.
///
/// # Safety
/// As C's: `header` points to a message whose pointers have the lengths that it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, header: *const msghdr, flags: c_int) -> ssize_t {
    if let Some(socket) = sockets::find_connected(fd)
        && !header.is_null()
    {
        // SAFETY: not null, so it is the caller's whole header.
        let mut copy = unsafe { std::ptr::read(header) };
        if copy.msg_name.is_null() {
            // SAFETY: the caller's header, as this function's contract says.
            return unsafe { route::send(fd, &socket, &mut copy, flags) };
        }
    }
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { (real::get().sendmsg)(fd, header, flags) }
}

/// `recv(2)`.
///
/// # Safety
/// As C's: `data` points to `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, data: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    let Some(socket) = sockets::find_connected(fd) else {
        // SAFETY: the C library's own function, with the caller's arguments.
        return unsafe { (real::get().recv)(fd, data, len, flags) };
    };
    let part = iovec { iov_base: data, iov_len: len };
    let mut header = message::header(&part, 1);
    // SAFETY: the header names the caller's bytes.
    unsafe { receive::receive(fd, &socket, &mut header, flags) }
}

/// `recvmsg(2)`.
///
/// # Safety
/// As C's: `header` points to a message whose pointers have the lengths that it says, all writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, header: *mut msghdr, flags: c_int) -> ssize_t {
    if let Some(socket) = sockets::find_connected(fd)
        && !header.is_null()
    {
        // SAFETY: not null, so it is the caller's whole header, which nobody else uses during the call.
        return unsafe { receive::receive(fd, &socket, &mut *header, flags) };
    }
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { (real::get().recvmsg)(fd, header, flags) }
}

/// Notes that `new` is the same socket as `old`, if it was made.
fn duplicated(old: c_int, new: c_int) -> c_int {
    if new >= 0 && new != old {
        sockets::duplicate(old, new);
    }
    new
}

/// `dup(2)`.
///
/// # Safety
/// None beyond C's: any argument may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: the C library's own function, with the caller's arguments.
    duplicated(fd, unsafe { (real::get().dup)(fd) })
}

/// `dup2(2)`.
///
/// # Safety
/// As C's: nobody uses what `new` was before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the C library's own function, with the caller's arguments.
    duplicated(old, unsafe { (real::get().dup2)(old, new) })
}

/// `dup3(2)`.
///
/// # Safety
/// As C's: nobody uses what `new` was before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: the C library's own function, with the caller's arguments.
    duplicated(old, unsafe { (real::get().dup3)(old, new, flags) })
}

/// `fcntl(2)`. C declares a variable number of arguments; every command takes none or one, an integer or a pointer, which
/// the ABIs of x86-64 and AArch64 pass where they pass a third argument.
///
/// # Safety
/// As C's: `argument` is what `command` asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the C library's own function, with the caller's arguments.
    let result = unsafe { (real::get().fcntl)(fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, result),
        _ => result,
    }
}

/// `fcntl(2)` under its name for programs with large files.
///
/// # Safety
/// As [`fcntl`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the same contract.
    unsafe { fcntl(fd, command, argument) }
}

/// `close_range(2)`.
///
/// # Safety
/// As C's: nobody uses the descriptors afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // CLOSE_RANGE_CLOEXEC leaves them open, but then nobody reuses their numbers before the entries are looked at again.
    if flags as c_uint & libc::CLOSE_RANGE_CLOEXEC == 0 {
        sockets::forget_range(first, last);
    }
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { (real::get().close_range)(first, last, flags) }
}
