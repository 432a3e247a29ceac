//! The Netlink server's socket: datagrams with their senders as the kernel vouches for them.

use anyhow::{Context, Result};
use flowlift_ovs::server::{Peer, To};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    UnixCredentials, bind, recvmsg, sendto, setsockopt, socket, sockopt,
};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of requests that wait for the server at most.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its sender.
    pub peer: Peer,
    /// Bytes in the buffer.
    pub len: usize,
}

/// See the module's head.
#[derive(Debug)]
pub struct ServerSocket(OwnedFd);

impl ServerSocket {
    /// Opens the socket under the server's port ID.
    ///
    /// # Errors
    /// Another process has the port ID, or no rights.
    pub fn open(port_id: u32) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // NETLINK_GENERIC is 16, which nix does not name.
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)
            .context("no Netlink socket")?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            tracing::warn!("without CAP_NET_ADMIN the Netlink socket's buffer stays small");
        }
        match bind(fd.as_raw_fd(), &NetlinkAddr::new(port_id, 0)) {
            Err(Errno::EADDRINUSE) => {
                anyhow::bail!(
                    "Netlink port ID {port_id} is taken: another daemon runs in this network namespace"
                )
            }
            other => other.context("cannot bind the Netlink socket")?,
        }
        Ok(Self(fd))
    }

    /// Another descriptor of the same socket, for another thread that sends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        Ok(self.0.try_clone()?)
    }

    /// The next datagram; `None` when none waits. One that is longer than the buffer, or whose sender the kernel does not
    /// name, is dropped.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<Option<Received>> {
        loop {
            let mut control = cmsg_space!(UnixCredentials);
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let message =
                match recvmsg::<NetlinkAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                    Ok(message) => message,
                    Err(Errno::EAGAIN) => return Ok(None),
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error),
                };
            let uid = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.uid()),
                _ => None,
            });
            let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
            if let (Some(uid), Some(address), true) = (uid, message.address, whole) {
                // The kernel itself has nothing to ask.
                if address.pid() != 0 {
                    return Ok(Some(Received {
                        peer: Peer { port_id: address.pid(), uid },
                        len: message.bytes,
                    }));
                }
            }
        }
    }

    /// Sends a datagram without waiting.
    ///
    /// # Errors
    /// EAGAIN: the receiver takes no more now; ECONNREFUSED: it is gone.
    pub fn send(&self, to: To, bytes: &[u8]) -> nix::Result<()> {
        let group = |group: flowlift_ovs::uapi::Group| 1u32.checked_shl(u32::from(group.0) - 1).unwrap_or(0);
        let address = match to {
            To::Unicast(port_id) => NetlinkAddr::new(port_id, 0),
            To::Multicast(g) => NetlinkAddr::new(0, group(g)),
            To::Both(port_id, g) => NetlinkAddr::new(port_id, group(g)),
        };
        sendto(self.0.as_raw_fd(), bytes, &address, MsgFlags::MSG_DONTWAIT).map(|_| ())
    }
}

impl AsFd for ServerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
