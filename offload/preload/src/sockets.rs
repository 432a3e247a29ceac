//! Which descriptors are sockets of NETLINK_GENERIC and NETLINK_ROUTE, and what is known of each.
//!
//! A bit per descriptor answers for all the others, without a lock.

use crate::message::Protocol;
use crate::{errno, fail, real};
use flowlift_ovs::marker::{CLIENT_PORT_IDS, CLIENT_PORT_IDS_END};
use libc::{c_int, c_uint, sockaddr_nl, socklen_t};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Descriptors that are looked after; a socket beyond is left to the kernel.
const DESCRIPTORS: usize = 1 << 20;
/// Port IDs that are tried: with a billion of them a second try is unlikely already.
const TRIES: usize = 16;

static KNOWN: [AtomicU64; DESCRIPTORS / 64] = [const { AtomicU64::new(0) }; DESCRIPTORS / 64];
static SOCKETS: RwLock<BTreeMap<c_int, Arc<Socket>>> = RwLock::new(BTreeMap::new());

/// A Netlink socket, which several descriptors may be.
#[derive(Debug)]
pub(crate) struct Socket {
    /// What it speaks.
    pub(crate) protocol: Protocol,
    /// The program connected it to the kernel.
    connected: AtomicBool,
    /// Cookie given out last.
    pub(crate) sent: AtomicU64,
    /// Cookie of the last datagram that wants an answer.
    pub(crate) awaited: AtomicU64,
    /// Newest cookie that came back.
    pub(crate) answered: AtomicU64,
}

impl Socket {
    /// True while an answer is on its way.
    pub(crate) fn waits(&self) -> bool {
        self.answered.load(Ordering::Acquire) < self.awaited.load(Ordering::Acquire)
    }
}

/// The word and bit of a descriptor.
fn bit(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((KNOWN.get(fd / 64)?, 1 << (fd % 64)))
}

fn is_known(fd: c_int) -> bool {
    bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

/// The map is whole between any two statements, so a panic elsewhere does not spoil it.
fn insert(fd: c_int, socket: Arc<Socket>) {
    if let Some((word, bit)) = bit(fd) {
        SOCKETS.write().unwrap_or_else(PoisonError::into_inner).insert(fd, socket);
        word.fetch_or(bit, Ordering::Release);
    }
}

/// Takes note of a new socket.
pub(crate) fn remember(fd: c_int, protocol: Protocol) {
    let number = || AtomicU64::new(0);
    let connected = AtomicBool::new(false);
    insert(
        fd,
        Arc::new(Socket { protocol, connected, sent: number(), awaited: number(), answered: number() }),
    );
}

/// The descriptor is closed, or something else from now on.
#[inline]
pub(crate) fn forget(fd: c_int) {
    if is_known(fd)
        && let Some((word, bit)) = bit(fd)
    {
        word.fetch_and(!bit, Ordering::Release);
        SOCKETS.write().unwrap_or_else(PoisonError::into_inner).remove(&fd);
    }
}

/// As [`forget`], for the descriptors from `first` to `last`.
pub(crate) fn forget_range(first: c_uint, last: c_uint) {
    let known: Vec<c_int> = {
        let sockets = SOCKETS.read().unwrap_or_else(PoisonError::into_inner);
        let within = |fd: &c_int| c_uint::try_from(*fd).is_ok_and(|fd| (first..=last).contains(&fd));
        sockets.keys().copied().filter(within).collect()
    };
    known.into_iter().for_each(forget);
}

/// `new` is now what `old` is.
pub(crate) fn duplicate(old: c_int, new: c_int) {
    forget(new);
    if let Some(socket) = find(old) {
        insert(new, socket);
    }
}

/// The socket, if it is one that concerns this library.
#[inline]
pub(crate) fn find(fd: c_int) -> Option<Arc<Socket>> {
    if !is_known(fd) {
        return None;
    }
    SOCKETS.read().unwrap_or_else(PoisonError::into_inner).get(&fd).cloned()
}

/// The socket, if it is one that was connected to the kernel.
#[inline]
pub(crate) fn find_connected(fd: c_int) -> Option<Arc<Socket>> {
    find(fd).filter(|socket| socket.connected.load(Ordering::Acquire))
}

/// In place of connecting a socket to the kernel: it gets a port ID that no socket had before, since a late answer to a
/// socket that was closed would else reach the one that has its ID now (the kernel would give it the process ID). It stays
/// unconnected, so that the kernel and the agent can both send to it; who may is seen to when a message comes.
pub(crate) fn connect(fd: c_int, socket: &Socket) -> c_int {
    if let Err(errno) = bind(fd).and_then(|()| pass_credentials(fd)) {
        return fail(errno) as c_int;
    }
    socket.connected.store(true, Ordering::Release);
    0
}

/// Binds the socket, unless the program has done so.
fn bind(fd: c_int) -> Result<(), c_int> {
    let mut length = size_of::<sockaddr_nl>() as socklen_t;
    // SAFETY: all zeros are a valid `sockaddr_nl`, which is integers.
    let mut address: sockaddr_nl = unsafe { std::mem::zeroed() };
    // SAFETY: the address is writable and as long as `length` says.
    if unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) } != 0 {
        return Err(errno());
    }
    if address.nl_pid != 0 {
        return Ok(());
    }
    address.nl_family = libc::AF_NETLINK as u16;
    for _ in 0..TRIES {
        let mut random = [0; 4];
        // SAFETY: four writable bytes.
        if unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) } != 4 {
            return Err(errno());
        }
        let range = CLIENT_PORT_IDS_END - CLIENT_PORT_IDS;
        address.nl_pid = CLIENT_PORT_IDS + u32::from_ne_bytes(random) % range;
        // SAFETY: the address is a whole `sockaddr_nl`, and its size is told.
        if unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<sockaddr_nl>() as socklen_t) } == 0
        {
            return Ok(());
        }
        if errno() != libc::EADDRINUSE {
            return Err(errno());
        }
    }
    Err(libc::EADDRINUSE)
}

/// Has the kernel say of each message who sent it.
fn pass_credentials(fd: c_int) -> Result<(), c_int> {
    let on: c_int = 1;
    // SAFETY: the value is a whole `c_int`, and its size is told.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

/// True if a read with these flags waits for a message.
pub(crate) fn is_blocking(fd: c_int, flags: c_int) -> bool {
    // SAFETY: F_GETFL takes no argument.
    flags & libc::MSG_DONTWAIT == 0
        && unsafe { (real::get().fcntl)(fd, libc::F_GETFL) } & libc::O_NONBLOCK == 0
}
