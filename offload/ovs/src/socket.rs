//! Netlink between processes: the server's socket, and the endpoint that joins it to a [`Server`].
//!
//! A client is connected to the server's port ID, so that everything for it, upcalls included, must leave by the one
//! socket that is bound to it. Sending needs no lock: a [`Sender`] per thread shares the descriptor. Nothing here ever
//! waits. The kernel does not tell when a slow reader has room again, so what it did not take is kept, in order and up
//! to a limit, and tried again after 1 ms, 2 ms, and so on up to [`RETRY_MAX`]; other clients do not notice.
//!
//! The sender of each datagram is the one that the kernel vouches for (`SCM_CREDENTIALS`).

use crate::audience::Audience;
use crate::backend::{Backend, DpIndex, Refusal};
use crate::marker;
use crate::server::{Counters, DumpState, Peer, Reply, Server, To};
use crate::uapi::FLOW;
use flowlift_flow::PortNo;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, MultiHeaders, NetlinkAddr, SockFlag, SockProtocol,
    SockType, bind, recvmsg, sendmmsg, sendmsg, setsockopt, socket, sockopt,
};
use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest datagram that is taken: the longest request has two attributes of 64 KiB.
const DATAGRAM_MAX: usize = 256 * 1024;
/// Bytes of requests that may wait while one is handled.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Datagrams that one call of [`Endpoint::pump`] takes at most.
const BATCH: usize = 64;
/// Datagrams of a dump that one call sends at most, so that dumps take turns.
const DUMP_BATCH: usize = 16;
/// Bytes that are kept for a client that does not read.
const BACKLOG_MAX: usize = 1 << 20;
/// Bytes that are kept for all of them.
const BACKLOG_TOTAL: usize = 32 << 20;
/// Shortest and longest time between two tries to send to a client that does not read.
const RETRY_MIN: Duration = Duration::from_millis(1);
/// See [`RETRY_MIN`].
pub const RETRY_MAX: Duration = Duration::from_millis(50);

/// The socket cannot be had, or is broken.
#[derive(Debug, Error)]
#[error("Netlink socket: {what}: {errno}")]
pub struct SocketError {
    /// What failed.
    pub what: &'static str,
    /// How.
    pub errno: Errno,
}

impl SocketError {
    fn at(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { what, errno }
    }
}

/// A datagram that its receiver did not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// Its receive buffer is full.
    #[error("the receiver's buffer is full")]
    Full,
    /// There is no such socket, or it is connected to somebody else.
    #[error("there is no receiver")]
    Gone,
    /// The kernel refused for another reason.
    #[error("{0}")]
    Other(Errno),
}

/// Sends from the server's port ID; clones share the socket.
#[derive(Debug, Clone)]
pub struct Sender {
    fd: Arc<OwnedFd>,
}

impl Sender {
    /// Sends the parts as one datagram, or says why not; never waits.
    pub fn send(&self, to: To, parts: &[&[u8]]) -> Result<(), SendError> {
        let (port_id, groups) = match to {
            To::Unicast(port_id) => (port_id, 0),
            To::Multicast(group) => (0, group_bit(group.0)),
            // The kernel multicasts first, leaves the port ID out of that, and then unicasts to it.
            To::Both(port_id, group) => (port_id, group_bit(group.0)),
        };
        let mut slices = [IoSlice::new(&[]); 4];
        let mut used = 0;
        for (slot, part) in slices.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        debug_assert_eq!(used, parts.len(), "a datagram has at most 4 parts");
        let address = NetlinkAddr::new(port_id, groups);
        let slices = slices.get(..used).unwrap_or_default();
        match sendmsg(self.fd.as_raw_fd(), slices, &[], MsgFlags::MSG_DONTWAIT, Some(&address)) {
            Ok(_) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends datagrams, each to a port ID, in order up to the first that fails; never waits. How many were sent, and why not the
    /// next one.
    pub fn send_many(&self, datagrams: &[(u32, Vec<u8>)]) -> (usize, Result<(), SendError>) {
        let mut sent = 0;
        while let Some(rest) = datagrams.get(sent..).filter(|rest| !rest.is_empty()) {
            let slices: Vec<[IoSlice<'_>; 1]> = rest.iter().map(|(_, bytes)| [IoSlice::new(bytes)]).collect();
            let addresses: Vec<Option<NetlinkAddr>> =
                rest.iter().map(|(port_id, _)| Some(NetlinkAddr::new(*port_id, 0))).collect();
            let mut headers = MultiHeaders::preallocate(rest.len(), None);
            let flags = MsgFlags::MSG_DONTWAIT;
            match sendmmsg(self.fd.as_raw_fd(), &mut headers, &slices, addresses, [], flags) {
                // A failure behind it is the next call's.
                Ok(results) => sent += results.count().max(1),
                Err(errno) => return (sent, Err(errno.into())),
            }
        }
        (sent, Ok(()))
    }
}

impl From<Errno> for SendError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Self::Full,
            Errno::ECONNREFUSED => Self::Gone,
            errno => Self::Other(errno),
        }
    }
}

/// The bit of a multicast group in `nl_groups`; 0 for a number that has none.
fn group_bit(group: u8) -> u32 {
    group.checked_sub(1).and_then(|n| 1u32.checked_shl(n.into())).unwrap_or_default()
}

/// A socket of NETLINK_GENERIC or NETLINK_ROUTE that is bound to a port ID of ours.
#[derive(Debug)]
pub struct Socket {
    sender: Sender,
    port_id: u32,
}

impl Socket {
    /// Binds a port ID of NETLINK_GENERIC, usually [`marker::SERVER_PORT_ID`]; one that is taken is `EADDRINUSE`.
    pub fn bind(port_id: u32) -> Result<Self, SocketError> {
        Self::bind_to(SockProtocol::NetlinkGeneric, port_id)
    }

    /// As [`Self::bind`], of NETLINK_ROUTE.
    pub fn bind_route(port_id: u32) -> Result<Self, SocketError> {
        Self::bind_to(SockProtocol::NetlinkRoute, port_id)
    }

    fn bind_to(protocol: SockProtocol, port_id: u32) -> Result<Self, SocketError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .map_err(SocketError::at("socket"))?;
        setsockopt(&fd, sockopt::PassCred, &true).map_err(SocketError::at("SO_PASSCRED"))?;
        // Beyond the host's limit only with CAP_NET_ADMIN; a smaller buffer loses nothing but bursts.
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(SocketError::at("SO_RCVBUF"))?;
        }
        bind(fd.as_raw_fd(), &NetlinkAddr::new(port_id, 0)).map_err(SocketError::at("bind"))?;
        Ok(Self { sender: Sender { fd: Arc::new(fd) }, port_id })
    }

    /// The port ID that it is bound to.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// A sender for another thread.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Takes a datagram into `buffer`, with its sender; `None` if there is none.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<Received>, SocketError> {
        let mut credentials = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.sender.fd.as_raw_fd();
        let got = recvmsg::<NetlinkAddr>(fd, &mut slices, Some(&mut credentials), MsgFlags::MSG_DONTWAIT);
        let message = match got {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            // The kernel dropped requests; their senders have it in their hands.
            Err(Errno::ENOBUFS) => return Ok(Some(Received::Overrun)),
            Err(errno) => return Err(SocketError { what: "recvmsg", errno }),
        };
        let uid = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|c| match c {
                ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.uid()),
                _ => None,
            })
        });
        Ok(Some(match (message.address, uid) {
            _ if message.flags.contains(MsgFlags::MSG_TRUNC) => Received::Refused,
            // The kernel itself has port ID 0 and asks for nothing.
            (Some(address), Some(uid)) if address.pid() != 0 => {
                Received::Datagram(Peer { port_id: address.pid(), uid }, message.bytes)
            }
            _ => Received::Refused,
        }))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.fd.as_fd()
    }
}

/// What was received.
enum Received {
    /// A datagram of this many bytes.
    Datagram(Peer, usize),
    /// One without a sender, or one that is too long.
    Refused,
    /// The kernel lost some.
    Overrun,
}

/// What a socket's end has seen, besides the server's [`Counters`]. Each number only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointCounters {
    /// Datagrams without a sender, or too long.
    pub refused: u64,
    /// Times that the kernel dropped requests because too many waited.
    pub overruns: u64,
    /// Replies that had to wait for their reader.
    pub delayed: u64,
    /// Replies dropped because their reader left too many unread.
    pub dropped: u64,
    /// Clients that were gone when something was sent to them.
    pub gone: u64,
    /// Sends that failed for another reason.
    pub send_errors: u64,
}

/// What is kept for a client that does not read.
#[derive(Debug)]
struct Backlog {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
    retry_at: Instant,
    wait: Duration,
}

/// The way out: sends at once, keeps what a reader does not take.
#[derive(Debug)]
struct Outbox {
    sender: Sender,
    backlogs: HashMap<u32, Backlog>,
    backlog_bytes: usize,
    gone: Vec<u32>,
    /// Who hears of flows.
    audience: Audience,
    now: Instant,
    counters: EndpointCounters,
}

impl Outbox {
    fn send(&mut self, reply: Reply<'_>) {
        if let To::Both(_, group) | To::Multicast(group) = reply.to
            && FLOW.group == Some(group)
        {
            self.audience.was_told();
        }
        let (port_id, to) = match reply.to {
            To::Unicast(port_id) => (port_id, reply.to),
            To::Both(port_id, group) if self.backlogs.contains_key(&port_id) => {
                // Its turn is later; the others get theirs now.
                self.send_now(To::Multicast(group), reply.bytes);
                (port_id, To::Unicast(port_id))
            }
            To::Both(port_id, _) => (port_id, reply.to),
            To::Multicast(_) => return self.send_now(reply.to, reply.bytes),
        };
        if self.backlogs.contains_key(&port_id) {
            return self.keep(port_id, reply.bytes);
        }
        match self.sender.send(to, &[reply.bytes]) {
            Ok(()) => {}
            Err(SendError::Full) => self.keep(port_id, reply.bytes),
            Err(SendError::Gone) => self.forget(port_id),
            Err(SendError::Other(_)) => self.counters.send_errors += 1,
        }
    }

    /// A multicast has no receiver to wait for.
    fn send_now(&mut self, to: To, bytes: &[u8]) {
        if self.sender.send(to, &[bytes]).is_err() {
            self.counters.send_errors += 1;
        }
    }

    fn keep(&mut self, port_id: u32, bytes: &[u8]) {
        let backlog = self.backlogs.entry(port_id).or_insert_with(|| Backlog {
            datagrams: VecDeque::new(),
            bytes: 0,
            retry_at: self.now + RETRY_MIN,
            wait: RETRY_MIN,
        });
        // A marker ends its reader's wait, so it has room beyond the limit.
        let limit = if marker::cookie(bytes).is_some() { 2 * BACKLOG_MAX } else { BACKLOG_MAX };
        if backlog.bytes + bytes.len() > limit || self.backlog_bytes + bytes.len() > BACKLOG_TOTAL {
            self.counters.dropped += 1;
            return;
        }
        self.counters.delayed += 1;
        backlog.bytes += bytes.len();
        self.backlog_bytes += bytes.len();
        backlog.datagrams.push_back(bytes.to_vec());
    }

    fn forget(&mut self, port_id: u32) {
        self.counters.gone += 1;
        if let Some(backlog) = self.backlogs.remove(&port_id) {
            self.backlog_bytes -= backlog.bytes;
        }
        self.gone.push(port_id);
    }

    /// Tries again to send what was kept, to the clients whose time has come.
    fn retry(&mut self) {
        let now = self.now;
        let due: Vec<u32> =
            self.backlogs.iter().filter(|(_, b)| b.retry_at <= now).map(|(port_id, _)| *port_id).collect();
        for port_id in due {
            let Some(backlog) = self.backlogs.get_mut(&port_id) else { continue };
            let mut outcome = Ok(());
            let mut sent = 0;
            while let Some(datagram) = backlog.datagrams.front() {
                outcome = self.sender.send(To::Unicast(port_id), &[datagram]);
                if matches!(outcome, Err(SendError::Full | SendError::Gone)) {
                    break;
                }
                if outcome.is_err() {
                    self.counters.send_errors += 1;
                }
                sent += 1;
                backlog.bytes -= datagram.len();
                self.backlog_bytes -= datagram.len();
                backlog.datagrams.pop_front();
            }
            if outcome == Err(SendError::Gone) {
                self.forget(port_id);
            } else if backlog.datagrams.is_empty() {
                self.backlogs.remove(&port_id);
            } else {
                backlog.wait = if sent > 0 { RETRY_MIN } else { (backlog.wait * 2).min(RETRY_MAX) };
                backlog.retry_at = now + backlog.wait;
            }
        }
    }

    /// The time of the next try.
    fn next_retry(&self) -> Option<Instant> {
        self.backlogs.values().map(|backlog| backlog.retry_at).min()
    }
}

/// A [`Server`] on a [`Socket`].
#[derive(Debug)]
pub struct Endpoint {
    socket: Socket,
    server: Server,
    outbox: Outbox,
    buffer: Vec<u8>,
}

/// When [`Endpoint::pump`] wants to be called again; the soonest is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// At once: there may be more.
    Now,
    /// When the socket is readable, and after this time at the latest.
    Within(Duration),
    /// When the socket is readable.
    Readable,
}

impl Endpoint {
    /// Joins a server to its socket.
    pub fn new(socket: Socket, server: Server) -> Self {
        let outbox = Outbox {
            sender: socket.sender(),
            backlogs: HashMap::new(),
            backlog_bytes: 0,
            gone: Vec::new(),
            audience: Audience::new(Instant::now()),
            now: Instant::now(),
            counters: EndpointCounters::default(),
        };
        Self { socket, server, outbox, buffer: vec![0; DATAGRAM_MAX] }
    }

    /// A sender from this endpoint's port ID, for upcalls and notifications of other threads.
    pub fn sender(&self) -> Sender {
        self.socket.sender()
    }

    /// What the server has seen, and what the socket has.
    pub fn counters(&self) -> (Counters, EndpointCounters) {
        (self.server.counters(), self.outbox.counters)
    }

    /// Handles what has come in, and goes on with dumps and with what was kept for slow readers. Never waits; handles a
    /// limited number of requests. An error is one of the socket as a whole.
    pub fn pump(&mut self, backend: &mut dyn Backend, now: Instant) -> Result<Next, SocketError> {
        self.outbox.now = now;
        self.outbox.retry();
        let mut next = Next::Readable;
        for taken in 1..=BATCH {
            let Self { socket, server, outbox, buffer } = self;
            match socket.receive(buffer)? {
                None => break,
                Some(Received::Refused) => outbox.counters.refused += 1,
                Some(Received::Overrun) => outbox.counters.overruns += 1,
                Some(Received::Datagram(peer, length)) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    server.set_flows_heard(outbox.audience.is_there(now));
                    server.handle(peer, datagram, backend, &mut |reply| outbox.send(reply));
                }
            }
            if taken == BATCH {
                next = Next::Now;
            }
        }
        for port_id in self.server.dumping() {
            if self.dump(port_id, backend) {
                next = Next::Now;
            }
        }
        while let Some(port_id) = self.outbox.gone.pop() {
            self.server.forget(port_id);
        }
        if next == Next::Now {
            return Ok(next);
        }
        let due = self.outbox.next_retry();
        Ok(due.map_or(Next::Readable, |due| Next::Within(due.saturating_duration_since(now))))
    }

    /// Removes a vport whose device is gone, and tells the group.
    ///
    /// # Errors
    /// [`Backend::vport_del`]'s.
    pub fn remove_vport(
        &mut self,
        backend: &mut dyn Backend,
        dp: DpIndex,
        port: PortNo,
    ) -> Result<(), Refusal> {
        let Self { server, outbox, .. } = self;
        server.remove_vport(dp, port, backend, &mut |reply| outbox.send(reply))
    }

    /// Sends some of a client's dump; true if it would take more now.
    fn dump(&mut self, port_id: u32, backend: &mut dyn Backend) -> bool {
        let Self { server, outbox, .. } = self;
        for _ in 0..DUMP_BATCH {
            if outbox.backlogs.contains_key(&port_id) || outbox.gone.contains(&port_id) {
                return false;
            }
            let state = server.continue_dump(port_id, backend, &mut |reply| outbox.send(reply));
            if state == DumpState::Done {
                return false;
            }
        }
        !outbox.backlogs.contains_key(&port_id)
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
