//! Receiving: markers are taken out, and a read waits while an answer is on its way.
//!
//! A message must come from the kernel or from the agent's port ID, and from root or the program's own user: port IDs are
//! given to whoever asks first. Others are dropped.

use crate::message::{agent, header};
use crate::route::probe;
use crate::sockets::{Socket, is_blocking};
use crate::{errno, fail, real};
use flowlift_ovs::marker::{self, cookie};
use libc::{c_int, cmsghdr, iovec, msghdr, sockaddr_nl, ssize_t, timeval, ucred};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long an answer may take before the agent is asked whether it lives, at first and at most.
const PROBE_AFTER_MS: c_int = 5;
const PROBE_AFTER_MAX_MS: c_int = 100;
/// How long an agent that is there may leave a request unanswered, for instance stopped by a debugger.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes for control messages, in words so that they are aligned: ours and what a program can have asked for.
const CONTROL: usize = 64;

/// What came of one try to read.
enum Outcome {
    /// The program's, with the real function's result.
    Message(ssize_t),
    /// Nothing that concerns the program.
    Swallowed,
    /// The awaited answer is lost: the agent that owed it is no more.
    Lost,
    /// The real function failed.
    Failed(c_int),
}

/// Receives into what `message` names.
///
/// # Safety
/// The message's pointers have the lengths that it says, all writable.
pub(crate) unsafe fn receive(fd: c_int, socket: &Socket, message: &mut msghdr, flags: c_int) -> ssize_t {
    loop {
        let was_awaited = socket.waits();
        if was_awaited {
            if let Err(errno) = await_answer(fd, socket) {
                socket.answered.fetch_max(socket.awaited.load(Ordering::Acquire), Ordering::AcqRel);
                return fail(errno);
            }
        } else if is_blocking(fd, flags)
            && let Err(errno) = await_message(fd)
        {
            return fail(errno);
        }
        // SAFETY: the same contract.
        match unsafe { try_receive(fd, socket, message, flags | libc::MSG_DONTWAIT) } {
            Outcome::Message(result) => return result,
            // All that the program asked for has come, and what else there may be it can ask for again.
            Outcome::Swallowed if was_awaited && !socket.waits() && !is_blocking(fd, flags) => {
                return fail(libc::EAGAIN);
            }
            Outcome::Swallowed => {}
            Outcome::Lost => return fail(libc::ECONNREFUSED),
            Outcome::Failed(libc::EAGAIN) if socket.waits() || is_blocking(fd, flags) => {}
            Outcome::Failed(errno) => return fail(errno),
        }
    }
}

/// Waits until there is something to read. The agent is asked for a sign of life now and then; that it is gone is known at
/// once.
fn await_answer(fd: c_int, socket: &Socket) -> Result<(), c_int> {
    let (start, mut timeout) = (Instant::now(), PROBE_AFTER_MS);
    loop {
        if readable(fd, timeout)? {
            return Ok(());
        }
        match probe(fd, socket) {
            // Its buffer is full, so it is there.
            Ok(()) | Err(libc::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
        if start.elapsed() >= PATIENCE {
            return Err(libc::ECONNREFUSED);
        }
        timeout = (2 * timeout).min(PROBE_AFTER_MAX_MS);
    }
}

/// Waits as the real function would: without end, or as long as the program has said by SO_RCVTIMEO.
fn await_message(fd: c_int) -> Result<(), c_int> {
    let mut limit = timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<timeval>() as libc::socklen_t;
    // SAFETY: the value is writable and as long as `length` says.
    unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw mut limit).cast(), &raw mut length)
    };
    let limit_ms = limit.tv_sec.saturating_mul(1000).saturating_add(limit.tv_usec / 1000);
    let timeout = if limit_ms == 0 { -1 } else { c_int::try_from(limit_ms).unwrap_or(c_int::MAX) };
    let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor to poll, alive until the return.
    match unsafe { libc::poll(&raw mut wanted, 1, timeout) } {
        0 => Err(libc::EAGAIN),
        1.. => Ok(()),
        _ => Err(errno()),
    }
}

/// True if there is something to read, or an error to take; false after `timeout` milliseconds.
fn readable(fd: c_int, timeout: c_int) -> Result<bool, c_int> {
    let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor to poll, alive until the return.
    match unsafe { libc::poll(&raw mut wanted, 1, timeout) } {
        0 => Ok(false),
        1.. => Ok(true),
        // The kernel's answer would be there already, so a signal is not told of.
        _ if errno() == libc::EINTR => Ok(false),
        _ => Err(errno()),
    }
}

/// Reads one message without waiting.
///
/// # Safety
/// The message's pointers have the lengths that it says, all writable.
unsafe fn try_receive(fd: c_int, socket: &Socket, message: &mut msghdr, flags: c_int) -> Outcome {
    let theirs: &[iovec] = match message.msg_iovlen {
        0 => &[],
        // SAFETY: the caller's parts, as many as the message says.
        count => unsafe { std::slice::from_raw_parts(message.msg_iov, count) },
    };
    // A marker must be seen whole, so a place that is too small for one gets a longer one in front.
    let mut beginning = [0u8; marker::LEN];
    let theirs_len: usize = theirs.iter().map(|part| part.iov_len).sum();
    let short = theirs_len < marker::LEN;
    let own = iovec { iov_base: beginning.as_mut_ptr().cast(), iov_len: marker::LEN };
    let mut inner = if short { header(&raw const own, 1) } else { header(theirs.as_ptr(), theirs.len()) };
    // SAFETY: all zeros are a valid `sockaddr_nl`, which is integers.
    let mut source: sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut control = [0u64; CONTROL];
    inner.msg_name = (&raw mut source).cast();
    inner.msg_namelen = size_of_val(&source) as _;
    inner.msg_control = control.as_mut_ptr().cast();
    inner.msg_controllen = size_of_val(&control) as _;
    let real_flags = if short { flags | libc::MSG_TRUNC } else { flags };
    // SAFETY: the message names a source, parts and control messages, all writable and alive until the return.
    let result = unsafe { (real::get().recvmsg)(fd, &raw mut inner, real_flags) };
    let Ok(whole_len) = usize::try_from(result) else { return Outcome::Failed(errno()) };
    if !short && whole_len >= marker::LEN {
        // SAFETY: at least that many bytes were written to the parts.
        unsafe { scatter_gather(theirs, Direction::From, &mut beginning) };
    }
    // SAFETY: the kernel filled in the control messages of `inner`.
    let trusted = unsafe { is_trusted(&inner, &source) };
    let mark =
        if whole_len == marker::LEN && source.nl_pid == agent().nl_pid { cookie(&beginning) } else { None };
    if !trusted || mark.is_some() {
        if flags & libc::MSG_PEEK != 0 {
            // It was only looked at; this one read takes it away.
            // SAFETY: no place for data at all.
            unsafe { (real::get().recv)(fd, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
        }
        return match mark.filter(|_| trusted) {
            Some(cookie) => answered(socket, u64::from_ne_bytes(cookie)),
            None => Outcome::Swallowed,
        };
    }
    if short {
        // SAFETY: the caller's parts are writable.
        unsafe { scatter_gather(theirs, Direction::To, &mut beginning) };
    }
    // SAFETY: `inner` has a source and control messages as the kernel wrote them; `message` is the caller's.
    unsafe { hand_over(message, &inner, &source) };
    if whole_len > theirs_len {
        message.msg_flags |= libc::MSG_TRUNC;
    }
    let told = if short && flags & libc::MSG_TRUNC == 0 { whole_len.min(theirs_len) } else { whole_len };
    Outcome::Message(told as ssize_t)
}

/// A marker came back.
fn answered(socket: &Socket, cookie: u64) -> Outcome {
    let awaited = socket.awaited.load(Ordering::Acquire);
    let before = socket.answered.fetch_max(cookie, Ordering::AcqRel);
    if before < awaited && cookie > awaited { Outcome::Lost } else { Outcome::Swallowed }
}

/// Which way bytes go between parts and a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    From,
    To,
}

/// Copies between the beginning of the parts and a buffer, as much as both have.
///
/// # Safety
/// The parts name memory of the lengths that they say; writable for [`Direction::To`].
unsafe fn scatter_gather(parts: &[iovec], direction: Direction, buffer: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        let count = part.iov_len.min(buffer.len() - at);
        if count == 0 {
            continue;
        }
        let (there, here) = (part.iov_base.cast::<u8>(), buffer[at..].as_mut_ptr());
        match direction {
            // SAFETY: `count` bytes are readable there and writable here, and the buffer is no part.
            Direction::From => unsafe { std::ptr::copy_nonoverlapping(there, here, count) },
            // SAFETY: as above, the other way round.
            Direction::To => unsafe { std::ptr::copy_nonoverlapping(here, there, count) },
        }
        at += count;
    }
}

/// True if the message is the kernel's or the agent's, and its sender root or the program's own user.
///
/// # Safety
/// The kernel wrote the control messages of `message`.
unsafe fn is_trusted(message: &msghdr, source: &sockaddr_nl) -> bool {
    let known = source.nl_pid == 0 || source.nl_pid == agent().nl_pid;
    // SAFETY: the same contract.
    let mut all = unsafe { ControlMessages::new(message) };
    let credentials = all.find(|c| c.cmsg_level == libc::SOL_SOCKET && c.cmsg_type == libc::SCM_CREDENTIALS);
    let uid = credentials.map(|c| {
        // SAFETY: a control message of this type has a `ucred`, which may be unaligned.
        unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(c).cast::<ucred>()) }.uid
    });
    // SAFETY: it takes nothing and cannot fail.
    known && uid.is_some_and(|uid| uid == 0 || uid == unsafe { libc::geteuid() })
}

/// The control messages of a message.
struct ControlMessages<'a> {
    message: &'a msghdr,
    next: *const cmsghdr,
}

impl<'a> ControlMessages<'a> {
    /// # Safety
    /// The kernel wrote the control messages of `message`.
    unsafe fn new(message: &'a msghdr) -> Self {
        // SAFETY: the header names a control buffer and how much of it is used.
        Self { message, next: unsafe { libc::CMSG_FIRSTHDR(message) } }
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = &'a cmsghdr;

    fn next(&mut self) -> Option<&'a cmsghdr> {
        // SAFETY: null, or a whole header in the control buffer, which lives as long as the message is borrowed.
        let current = unsafe { self.next.as_ref() }?;
        // SAFETY: the macro stays within the buffer's used length.
        self.next = unsafe { libc::CMSG_NXTHDR(self.message, current) };
        Some(current)
    }
}

/// Fills in what the caller asked for besides the data: source, flags, control messages but for the credentials.
///
/// # Safety
/// The kernel filled `inner`; `message` is the caller's, its pointers writable for the lengths that it says.
unsafe fn hand_over(message: &mut msghdr, inner: &msghdr, source: &sockaddr_nl) {
    message.msg_flags = inner.msg_flags & !libc::MSG_CTRUNC;
    if !message.msg_name.is_null() {
        let count = (message.msg_namelen as usize).min(size_of_val(source));
        // SAFETY: the caller's name has `msg_namelen` writable bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(source).cast::<u8>(),
                message.msg_name.cast(),
                count,
            )
        };
        message.msg_namelen = size_of_val(source) as _;
    }
    let room = if message.msg_control.is_null() { 0 } else { message.msg_controllen };
    let mut used = 0;
    // SAFETY: the same contract.
    for control in unsafe { ControlMessages::new(inner) } {
        if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_CREDENTIALS {
            continue;
        }
        let (len, space) = (control.cmsg_len, control.cmsg_len.next_multiple_of(size_of::<usize>()));
        if used + len > room {
            message.msg_flags |= libc::MSG_CTRUNC;
            break;
        }
        // SAFETY: the control message is `len` bytes, and so many are free behind what is used of the caller's buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(control).cast::<u8>(),
                message.msg_control.cast::<u8>().add(used),
                len,
            )
        };
        used = (used + space).min(room);
    }
    message.msg_controllen = used as _;
}
