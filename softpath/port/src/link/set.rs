//! Asking for one link, and setting it.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::sys::socket::SockFlag;

use super::Link;
use super::socket::Socket;

/// Asks for links and sets them. Setting needs CAP_NET_ADMIN.
#[derive(Debug)]
pub struct Links(Socket);

impl Links {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Socket::new(0, SockFlag::empty())?))
    }

    /// The link with this index as it is now, with its counters.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn get(&mut self, index: u32) -> io::Result<Link> {
        self.one(about(index, Vec::new()))
    }

    /// The link with this name as it is now, with its counters.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn find(&mut self, name: &str) -> io::Result<Link> {
        self.one(about(0, vec![LinkAttribute::IfName(name.to_owned())]))
    }

    /// All links as they are now, with their counters.
    ///
    /// # Errors
    /// What the system says.
    pub fn all(&mut self) -> io::Result<Vec<Link>> {
        Ok(self.0.dump()?.into_iter().filter_map(link).collect())
    }

    fn one(&mut self, message: LinkMessage) -> io::Result<Link> {
        let answer = self.0.request(RouteNetlinkMessage::GetLink(message), netlink_packet_core::NLM_F_ACK)?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "a link that cannot be read");
        answer.into_iter().find_map(link).ok_or_else(unreadable)
    }

    /// Sets the link up or down.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = about(index, Vec::new());
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        self.set(message)
    }

    /// Sets the link's MTU, in bytes.
    ///
    /// # Errors
    /// What the system says: `EINVAL` beyond what the device can.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set(about(index, vec![LinkAttribute::Mtu(mtu)]))
    }

    /// Sets how many frames wait in the link's queue at most: for a TAP device, those that nobody reads.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_queue_length(&mut self, index: u32, frames: u32) -> io::Result<()> {
        self.set(about(index, vec![LinkAttribute::TxQueueLen(frames)]))
    }

    /// Sets the link's hardware address.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.set(about(index, vec![LinkAttribute::Address(mac.to_vec())]))
    }

    /// Makes the link a port of the device `master`, or of none.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> io::Result<()> {
        self.set(about(index, vec![LinkAttribute::Controller(master.unwrap_or(0))]))
    }

    /// Makes a bridge, which is down and so forwards nothing: frames that come in on its ports end there. A port that belongs to it is
    /// seen by packet sockets and no longer by the host's stack.
    ///
    /// # Errors
    /// `EEXIST` if there is a link of this name.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
        let message = about(0, vec![LinkAttribute::IfName(name.to_owned()), kind]);
        self.0.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes the link.
    ///
    /// # Errors
    /// What the system says; `EOPNOTSUPP` for a device that is not virtual.
    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        self.0.change(RouteNetlinkMessage::DelLink(about(index, Vec::new())), 0)
    }

    fn set(&mut self, message: LinkMessage) -> io::Result<()> {
        self.0.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}

fn about(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Link::new(message),
        _ => None,
    }
}
