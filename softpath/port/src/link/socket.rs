//! A NETLINK_ROUTE socket: requests and their answers, and the kernel's messages about links.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

/// Bytes of messages that may wait in the socket: some thousand links.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel gives dumps in parts of at most 32 KiB.
const LARGEST: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

/// What a request got.
type Messages = Vec<RouteNetlinkMessage>;

impl Socket {
    /// A socket that gets the messages of these groups (a bit for each).
    pub(super) fn new(groups: u32, flags: SockFlag) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // Past the system's limit where we may.
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(Self { fd, buffer: vec![0; LARGEST], sequence: 0 })
    }

    /// Sends a request; gives its sequence number.
    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// Reads one datagram and gives the messages in it that can be understood to `each`, with their sequence numbers. False if
    /// none waits and the socket does not wait either.
    pub(super) fn receive(
        &mut self,
        mut each: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>),
    ) -> io::Result<bool> {
        let len = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(len) => break len,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        };
        let mut rest = self.buffer.get(..len).unwrap_or_default();
        while let Ok(head) = NetlinkBuffer::new_checked(rest) {
            let size = head.length() as usize;
            // A message that this library's types do not cover says nothing that matters here.
            if let Ok(message) = NetlinkMessage::deserialize(rest) {
                each(message.header.sequence_number, message.payload);
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(true)
    }

    /// A request and all messages of its answer. For a socket that waits.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Messages> {
        let sequence = self.send(message, flags)?;
        let (mut messages, mut done) = (Vec::new(), None);
        while done.is_none() {
            self.receive(|number, payload| {
                if number != sequence {
                    return;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => messages.push(message),
                    NetlinkPayload::Error(error) => {
                        done = Some(match error.code {
                            None => Ok(()),
                            Some(_) => Err(error.to_io()),
                        });
                    }
                    NetlinkPayload::Done(_) => done = Some(Ok(())),
                    _ => {}
                }
            })?;
        }
        done.unwrap_or(Ok(()))?;
        Ok(messages)
    }

    /// As [`Socket::request`], for a change.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK)?;
        Ok(())
    }

    /// All links.
    pub(super) fn dump(&mut self) -> io::Result<Messages> {
        self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
