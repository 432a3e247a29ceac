//! The connection to a vfio-user server: one question at a time, each answered before a deadline.

use super::dma::Memory;
use flowlift_bus::BusError;
use flowlift_bus::vfio_user::{
    Capabilities, Endpoint, Header, MAJOR, MINOR, Message, ProtocolError, Version, command, flag,
};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A server that is gone, or that cannot be believed any more, is left for good: see [`Link::lose`].
pub(super) struct Link {
    endpoint: Mutex<(Endpoint, u16)>,
    stream: UnixStream,
    gone: AtomicBool,
    /// Signalled when the server is gone: the function's ERR.
    pub(super) error: EventFd,
    deadline: Duration,
    /// What the server said it can do.
    pub(super) peer: Capabilities,
    /// What the server may ask for while it is asked something.
    pub(super) memory: Memory,
}

/// An answer that is no error.
pub(super) struct Answer {
    body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    what: &'static str,
}

impl Answer {
    /// The answer's structure, and what follows it.
    pub(super) fn parse<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<(T, &[u8]), BusError> {
        T::read_from_prefix(&self.body).map_err(|_| nonsense(self.what))
    }
}

/// An answer that the protocol does not allow.
pub(super) fn nonsense(what: &'static str) -> BusError {
    BusError::Io {
        what,
        cause: io::Error::new(io::ErrorKind::InvalidData, "an impossible answer of the server"),
    }
}

impl Link {
    /// Introduces itself to the server.
    pub(super) fn open(stream: UnixStream, error: EventFd, deadline: Duration) -> Result<Self, BusError> {
        let what = "vfio-user connection";
        let io = |cause| BusError::Io { what, cause };
        let endpoint = Endpoint::new(stream.try_clone().map_err(io)?).map_err(io)?;
        let mut link = Self {
            endpoint: Mutex::new((endpoint, 0)),
            stream,
            gone: AtomicBool::new(false),
            error,
            deadline,
            peer: Capabilities::default(),
            memory: Memory::default(),
        };
        let ours = Capabilities::ours().to_bytes();
        let version = Version { major: MAJOR, minor: MINOR };
        let what = "vfio-user version (a server takes one client at a time)";
        let answer = link.ask(what, command::VERSION, &[version.as_bytes(), &ours], &[])?;
        let (theirs, text) = answer.parse::<Version>()?;
        if theirs.major != MAJOR || theirs.minor > MINOR {
            return Err(BusError::Unsupported("the vfio-user version of the server"));
        }
        link.peer = Capabilities::from_bytes(text).ok_or_else(|| nonsense(what))?;
        Ok(link)
    }

    /// The server is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The socket, to watch for its end.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Leaves the server: from now on the function is gone, as if it had been pulled out.
    pub(super) fn lose(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            let _ = self.error.write(1);
            // Ends the watcher, and tells a server that is still there.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// Asks the server for something and waits for the answer; `what` is for messages.
    pub(super) fn ask(
        &self,
        what: &'static str,
        command: u16,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, BusError> {
        let mut guard = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_gone() {
            return Err(BusError::Gone(what));
        }
        let (endpoint, id) = &mut *guard;
        *id = id.wrapping_add(1);
        let header = Header { id: *id, command, ..Header::default() };
        match exchange(endpoint, &self.memory, header, parts, fds, Instant::now() + self.deadline) {
            Ok(Message { header, body, fds }) if header.flags & flag::ERROR == 0 => {
                Ok(Answer { body, fds, what })
            }
            Ok(Message { header, .. }) => {
                let cause = io::Error::from_raw_os_error(i32::try_from(header.error).unwrap_or(0));
                Err(BusError::Io { what, cause })
            }
            Err(error) => {
                tracing::info!(what, %error, "the vfio-user server is gone");
                self.lose();
                Err(BusError::Gone(what))
            }
        }
    }
}

fn exchange(
    endpoint: &mut Endpoint,
    memory: &Memory,
    header: Header,
    parts: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<Message, ProtocolError> {
    endpoint.send(header, parts, fds, deadline)?;
    loop {
        if Instant::now() > deadline {
            return Err(ProtocolError::Timeout);
        }
        let message = endpoint.receive(deadline)?;
        if message.header.is_reply() {
            if (message.header.id, message.header.command) == (header.id, header.command) {
                return Ok(message);
            }
            // An answer to nothing that was asked: the next one may be ours.
            continue;
        }
        let answer = match message.header.command {
            command::DMA_READ | command::DMA_WRITE => memory.answer(message.header.command, &message.body),
            _ => Err(Errno::ENOTSUP),
        };
        if message.header.flags & flag::NO_REPLY != 0 {
            continue;
        }
        let (flags, error) =
            answer.as_ref().map_or_else(|e| (flag::REPLY | flag::ERROR, *e as u32), |_| (flag::REPLY, 0));
        let reply = Header { flags, error, ..message.header };
        endpoint.send(reply, &[answer.as_deref().unwrap_or(&[])], &[], deadline)?;
    }
}
