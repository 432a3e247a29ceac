//! Sending: messages of the OVS families and about tunnel devices go to the agent, each datagram with a marker behind it.

use crate::message::{HEAD, Target, agent, header};
use crate::sockets::Socket;
use crate::{errno, fail, real};
use flowlift_ovs::marker::{self, marker};
use libc::{c_int, iovec, msghdr, ssize_t};
use std::sync::atomic::Ordering;

/// Sends what `message` names, without an address of its own.
///
/// # Safety
/// The message's pointers have the lengths that it says.
pub(crate) unsafe fn send(fd: c_int, socket: &Socket, message: &mut msghdr, flags: c_int) -> ssize_t {
    let parts: &[iovec] = match message.msg_iovlen {
        0 => &[],
        // SAFETY: the caller's parts, as many as the message says.
        count => unsafe { std::slice::from_raw_parts(message.msg_iov, count) },
    };
    let mut head = [0; HEAD];
    // SAFETY: the parts are readable, as this function's contract says.
    let len = unsafe { gather(parts, &mut head) };
    match Target::of(socket.protocol, &head[..len]) {
        // SAFETY: the C library's own function, with the caller's arguments.
        Target::Kernel => unsafe { (real::get().sendmsg)(fd, message, flags) },
        // SAFETY: the same contract.
        target => match unsafe { to_agent(fd, socket, parts, flags) } {
            // Nobody is there who knows the family, so it does not exist.
            Err(libc::ECONNREFUSED) if target == Target::Lookup => fail(libc::ENOENT),
            Err(errno) => fail(errno),
            Ok(len) => len,
        },
    }
}

/// Copies the beginning of the parts; how many bytes that is.
///
/// # Safety
/// The parts name readable memory of the lengths that they say.
unsafe fn gather(parts: &[iovec], to: &mut [u8]) -> usize {
    let mut len = 0;
    for part in parts {
        let room = &mut to[len..];
        let count = room.len().min(part.iov_len);
        if count == 0 {
            continue;
        }
        // SAFETY: `count` bytes are readable there and writable here, and the buffer is this function's own.
        unsafe { std::ptr::copy_nonoverlapping(part.iov_base.cast::<u8>(), room.as_mut_ptr(), count) };
        len += count;
    }
    len
}

/// Sends the parts and a marker.
///
/// # Safety
/// The parts name readable memory of the lengths that they say.
unsafe fn to_agent(fd: c_int, socket: &Socket, parts: &[iovec], flags: c_int) -> Result<ssize_t, c_int> {
    let cookie = socket.sent.fetch_add(1, Ordering::AcqRel) + 1;
    let len: usize = parts.iter().map(|part| part.iov_len).sum();
    // Messages begin at multiples of 4.
    let gap = len.next_multiple_of(4) - len;
    let mut tail = [0; 3 + marker::LEN];
    tail[gap..gap + marker::LEN].copy_from_slice(&marker(cookie.to_ne_bytes()));
    let mut all = Vec::with_capacity(parts.len() + 1);
    all.extend_from_slice(parts);
    all.push(iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: gap + marker::LEN });
    let mut address = agent();
    let mut message = header(all.as_ptr(), all.len());
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of_val(&address) as _;
    // The answer may come before the call returns, but nobody reads it before.
    // SAFETY: the message names an address, and parts that are readable, all alive until the return.
    if unsafe { (real::get().sendmsg)(fd, &raw const message, flags) } < 0 {
        return Err(errno());
    }
    socket.awaited.fetch_max(cookie, Ordering::AcqRel);
    Ok(len as ssize_t)
}

/// Asks the agent for a sign of life: a marker alone. It answers in its turn.
pub(crate) fn probe(fd: c_int, socket: &Socket) -> Result<(), c_int> {
    let cookie = socket.sent.fetch_add(1, Ordering::AcqRel) + 1;
    let bytes = marker(cookie.to_ne_bytes());
    let part = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut address = agent();
    let mut message = header(&raw const part, 1);
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of_val(&address) as _;
    // SAFETY: the message names an address and one part, both alive until the return.
    match unsafe { (real::get().sendmsg)(fd, &raw const message, libc::MSG_DONTWAIT) } {
        0.. => Ok(()),
        _ => Err(errno()),
    }
}
