//! The thread that answers Open vSwitch: the socket, the Netlink server, the control plane, and the host's devices.
//!
//! A client that does not read its answers (a dump's reader is slow as a rule) has them queued here, in order, while others
//! are served. Netlink does not tell a sender when a receiver has room again, so there is a try every millisecond.

use super::mailbox::Inbox;
use super::plane::Plane;
use super::socket::ServerSocket;
use flowlift_ovs::backend::Backend;
use flowlift_ovs::server::{DumpState, Reply, Server, To};
use flowlift_port::link::{LinkChange, LinkWatcher};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::{BTreeMap, VecDeque};

/// Longest datagram that is read: far beyond what Open vSwitch sends together.
const DATAGRAM: usize = 256 << 10;
/// Datagrams and jobs done in a turn, and parts of a dump sent to one client.
const REQUESTS: usize = 64;
const PARTS: usize = 64;
/// Bytes of answers that a client may leave unread; then it is forgotten.
const BACKLOG: usize = 64 << 20;
/// Time between two tries to send to a client whose buffer is full, in milliseconds.
const RETRY_MS: u8 = 1;

/// Answers that wait for a client's buffer.
#[derive(Debug, Default)]
struct Backlog {
    datagrams: VecDeque<(To, Vec<u8>)>,
    bytes: usize,
}

/// Datagrams on their way out.
struct Outbox {
    socket: ServerSocket,
    backlogs: BTreeMap<u32, Backlog>,
    /// Clients that are gone or do not read.
    dead: Vec<u32>,
}

impl Outbox {
    fn send(&mut self, reply: Reply<'_>) {
        let (To::Unicast(client) | To::Both(client, _)) = reply.to else {
            // Nobody is waited for: a member that reads too slowly misses it, as with the kernel.
            let _ = self.socket.send(reply.to, reply.bytes);
            return;
        };
        if !self.backlogs.contains_key(&client) {
            match self.socket.send(reply.to, reply.bytes) {
                Ok(()) => return,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(_) => return self.dead.push(client),
            }
        }
        let backlog = self.backlogs.entry(client).or_default();
        backlog.bytes += reply.bytes.len();
        backlog.datagrams.push_back((reply.to, reply.bytes.to_vec()));
        if backlog.bytes > BACKLOG {
            tracing::warn!(client, "a client does not read its answers; they are dropped");
            self.dead.push(client);
        }
    }

    /// Tries again.
    fn flush(&mut self) {
        let Self { socket, backlogs, dead } = self;
        backlogs.retain(|client, backlog| {
            while let Some((to, bytes)) = backlog.datagrams.front() {
                match socket.send(*to, bytes) {
                    Ok(()) => backlog.bytes -= bytes.len(),
                    Err(Errno::EAGAIN | Errno::ENOBUFS) => return true,
                    Err(_) => {
                        dead.push(*client);
                        return false;
                    }
                }
                backlog.datagrams.pop_front();
            }
            false
        });
    }
}

/// See the module's head.
pub struct Serve {
    outbox: Outbox,
    server: Server,
    plane: Plane,
    watcher: LinkWatcher,
    running: bool,
}

impl Serve {
    /// Ready to serve.
    pub fn new(socket: ServerSocket, server: Server, plane: Plane, watcher: LinkWatcher) -> Self {
        let outbox = Outbox { socket, backlogs: BTreeMap::new(), dead: Vec::new() };
        Self { outbox, server, plane, watcher, running: true }
    }

    /// The control plane.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// The Netlink server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Has [`Self::run`] return.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// The system refuses to wait.
    pub fn run(mut self, inbox: &Inbox<Self>) -> nix::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.outbox.socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        epoll.add(inbox, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        epoll.add(&self.watcher, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let mut buffer = vec![0; DATAGRAM];
        let mut events = [EpollEvent::empty(); 4];
        while self.running {
            let mut worked = inbox.run(&mut self, REQUESTS) > 0;
            worked |= self.follow_devices();
            worked |= self.requests(&mut buffer);
            self.outbox.flush();
            worked |= self.dumps();
            self.forget_the_dead();
            let timeout = match (worked, self.outbox.backlogs.is_empty()) {
                (true, _) => EpollTimeout::ZERO,
                (false, false) => RETRY_MS.into(),
                (false, true) => EpollTimeout::NONE,
            };
            match epoll.wait(&mut events, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers what clients ask. True if there was something.
    fn requests(&mut self, buffer: &mut [u8]) -> bool {
        for n in 0..REQUESTS {
            let received = match self.outbox.socket.receive(buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return n > 0,
                Err(error) => {
                    tracing::debug!(%error, "Netlink socket");
                    return true;
                }
            };
            let (datagram, outbox) = (&buffer[..received.len], &mut self.outbox);
            self.server.handle(received.peer, datagram, &mut self.plane, &mut |reply| outbox.send(reply));
        }
        true
    }

    /// Goes on with dumps whose readers read.
    fn dumps(&mut self) -> bool {
        let mut any = false;
        for client in self.server.dumping() {
            for _ in 0..PARTS {
                if self.outbox.backlogs.contains_key(&client) {
                    break;
                }
                any = true;
                let outbox = &mut self.outbox;
                let mut out = |reply: Reply<'_>| outbox.send(reply);
                if self.server.continue_dump(client, &mut self.plane, &mut out) == DumpState::Done {
                    break;
                }
            }
        }
        any
    }

    fn forget_the_dead(&mut self) {
        for client in std::mem::take(&mut self.outbox.dead) {
            self.outbox.backlogs.remove(&client);
            self.server.forget(client);
        }
    }

    /// Follows what becomes of the host's devices.
    fn follow_devices(&mut self) -> bool {
        let mut changes = Vec::new();
        if let Err(error) = self.watcher.poll(|change| changes.push(change)) {
            tracing::debug!(%error, "devices of the host");
        }
        for change in &changes {
            match change {
                LinkChange::Removed(link) => {
                    for (dp, port) in self.plane.device_gone(link.index) {
                        tracing::info!(device = link.name, "a port's device is gone");
                        // The local port stays as long as its datapath.
                        if port.0 != 0
                            && let Err(refusal) = self.plane.vport_del(dp, port)
                        {
                            tracing::warn!(device = link.name, %refusal, "its port stays");
                        }
                    }
                }
                LinkChange::Added(link) | LinkChange::Changed { new: link, .. } => {
                    self.plane.device_mtu(link.index, link.mtu);
                }
            }
        }
        !changes.is_empty()
    }
}
