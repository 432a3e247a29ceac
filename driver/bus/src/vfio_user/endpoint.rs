//! One end of a vfio-user connection: whole messages with their file descriptors, over a Unix stream socket.
//!
//! The socket never blocks. A message that has come in part stays here until the rest is there, so that a server can go on
//! with its other work; sending and the waiting forms end at a deadline. Nothing that a peer sends can make this panic
//! or take more memory than the longest message.

use super::{Header, MAX_MESSAGE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// Most file descriptors that the kernel passes at once (`SCM_MAX_FD`); room for less would lose some unnoticed.
const SCM_MAX_FD: usize = 253;

/// A connection that cannot go on: messages have no boundaries any more, or there is nobody to exchange them with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer closed the connection, or died.
    #[error("the peer closed the connection")]
    Closed,
    /// A header that cannot be: shorter than itself, or longer than any message.
    #[error("a message of {0} bytes, allowed are 16 to {MAX_MESSAGE}")]
    Size(u32),
    /// More file descriptors than one message can have.
    #[error("a message with more than {SCM_MAX_FD} file descriptors, or no room for them in this process")]
    Fds,
    /// The peer did not take or answer in time.
    #[error("the peer did not answer in time")]
    Timeout,
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ProtocolError {
    fn from(e: Errno) -> Self {
        match e {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            Errno::ENOBUFS => Self::Fds,
            e => Self::Io(e.into()),
        }
    }
}

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub body: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Endpoint {
    stream: UnixStream,
    header: Header,
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the body that are there; `body` has its full length once the header is whole.
    body_have: usize,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    ancillary: Vec<u8>,
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Endpoint {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            header: Header::new_zeroed(),
            have: 0,
            body_have: 0,
            body: Vec::new(),
            fds: Vec::new(),
            ancillary: nix::cmsg_space!([RawFd; SCM_MAX_FD]),
        })
    }

    /// The socket, to watch or to shut down.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next message if it is there as a whole.
    ///
    /// # Errors
    /// The connection is unusable from now on.
    pub fn try_receive(&mut self) -> Result<Option<Message>, ProtocolError> {
        loop {
            let got = if self.have < Header::SIZE {
                let buffer = &mut self.header.as_mut_bytes()[self.have..];
                receive(&self.stream, buffer, &mut self.ancillary, &mut self.fds)?
            } else {
                let buffer = &mut self.body[self.body_have..];
                receive(&self.stream, buffer, &mut self.ancillary, &mut self.fds)?
            };
            let Some(got) = got else { return Ok(None) };
            if self.have < Header::SIZE {
                self.have += got;
                if self.have < Header::SIZE {
                    continue;
                }
                let size = self.header.size;
                if !(Header::SIZE as u32..=MAX_MESSAGE).contains(&size) {
                    return Err(ProtocolError::Size(size));
                }
                self.body = vec![0; size as usize - Header::SIZE];
                self.body_have = 0;
            } else {
                self.body_have += got;
            }
            if self.body_have == self.body.len() {
                self.have = 0;
                let (body, fds) = (std::mem::take(&mut self.body), std::mem::take(&mut self.fds));
                return Ok(Some(Message { header: self.header, body, fds }));
            }
        }
    }

    /// The next message, waited for.
    ///
    /// # Errors
    /// [`ProtocolError::Timeout`] after the deadline; others as [`Self::try_receive`].
    pub fn receive(&mut self, deadline: Instant) -> Result<Message, ProtocolError> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            wait(self.stream.as_fd(), PollFlags::POLLIN, deadline)?;
        }
    }

    /// Sends a message; `size` of the header is filled in here. The file descriptors go with its first byte.
    ///
    /// # Errors
    /// [`ProtocolError::Timeout`] if the peer does not take it; the connection is unusable after any error.
    pub fn send(
        &mut self,
        mut header: Header,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), ProtocolError> {
        let mut message = Vec::with_capacity(Header::SIZE + parts.iter().map(|p| p.len()).sum::<usize>());
        message.resize(Header::SIZE, 0);
        parts.iter().for_each(|p| message.extend_from_slice(p));
        header.size = u32::try_from(message.len())
            .ok()
            .filter(|size| *size <= MAX_MESSAGE)
            .ok_or(ProtocolError::Size(u32::MAX))?;
        message[..Header::SIZE].copy_from_slice(header.as_bytes());
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut sent = 0;
        while sent < message.len() {
            let ancillary: &[ControlMessage<'_>] = if sent == 0 && !raw.is_empty() { &rights } else { &[] };
            let part = [IoSlice::new(&message[sent..])];
            match sendmsg::<()>(self.stream.as_raw_fd(), &part, ancillary, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => wait(self.stream.as_fd(), PollFlags::POLLOUT, deadline)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Receives into `buffer` what is there; `None`: nothing yet.
fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    ancillary: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, ProtocolError> {
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    if buffer.is_empty() {
        return Ok(Some(0));
    }
    let mut parts = [IoSliceMut::new(buffer)];
    let got = match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(ancillary), flags) {
        Ok(got) => got,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel just made these descriptors for this process, and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if fds.len() > SCM_MAX_FD {
        return Err(ProtocolError::Fds);
    }
    if got.bytes == 0 {
        return Err(ProtocolError::Closed);
    }
    Ok(Some(got.bytes))
}

/// Waits until the socket is ready, at most until the deadline.
fn wait(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> Result<(), ProtocolError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ProtocolError::Timeout);
    }
    // Rounded up: a wait of 0 ms until the deadline would be a loop without waiting.
    let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, events)], left) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
