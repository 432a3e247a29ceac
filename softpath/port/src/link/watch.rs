//! Following the links of a namespace.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::SockFlag;

use super::Link;
use super::socket::Socket;

/// `RTMGRP_LINK` of `<linux/rtnetlink.h>`.
const GROUP_LINK: u32 = 1;

/// What became of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new: made, or moved here from another namespace.
    Added(Link),
    /// Its name, address, MTU, state or master differs.
    Changed {
        /// As it was.
        old: Link,
        /// As it is.
        new: Link,
    },
    /// It is gone: deleted, or moved to another namespace.
    Removed(Link),
}

/// Follows the links of the namespace in which it was made. Its descriptor is readable when [`poll`](Self::poll) has something to
/// do.
#[derive(Debug)]
pub struct LinkWatcher {
    events: Socket,
    links: BTreeMap<u32, Link>,
}

impl LinkWatcher {
    /// Begins with the links that there are.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let mut watcher =
            Self { events: Socket::new(GROUP_LINK, SockFlag::SOCK_NONBLOCK)?, links: BTreeMap::new() };
        watcher.resync(&mut |_| {})?;
        Ok(watcher)
    }

    /// The links as far as the changes have been polled.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The link with this index.
    pub fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The link with this name.
    pub fn find(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Gives all changes since the last call to `each`, in order. Changes that the kernel could not keep for us are found by looking
    /// at all links again; then two changes of one link show as one. Never waits for a change.
    ///
    /// # Errors
    /// What the system says; the watcher can be used on.
    pub fn poll(&mut self, mut each: impl FnMut(LinkChange)) -> io::Result<()> {
        loop {
            let links = &mut self.links;
            match self.events.receive(|_, payload| follow(links, payload, &mut each)) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    self.resync(&mut each)?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks at all links.
    fn resync(&mut self, each: &mut impl FnMut(LinkChange)) -> io::Result<()> {
        let mut now = BTreeMap::new();
        for message in Socket::new(0, SockFlag::empty())?.dump()? {
            if let RouteNetlinkMessage::NewLink(message) = message
                && let Some(link) = Link::new(message)
            {
                now.insert(link.index, link);
            }
        }
        let gone: Vec<u32> = self.links.keys().copied().filter(|index| !now.contains_key(index)).collect();
        for index in gone {
            if let Some(link) = self.links.remove(&index) {
                each(LinkChange::Removed(link));
            }
        }
        for link in now.into_values() {
            update(&mut self.links, link, each);
        }
        Ok(())
    }
}

fn follow(
    links: &mut BTreeMap<u32, Link>,
    payload: NetlinkPayload<RouteNetlinkMessage>,
    each: &mut impl FnMut(LinkChange),
) {
    // Messages of other families are about a bridge's ports, also the one that says that a link is no longer a port.
    let is_link = |message: &netlink_packet_route::link::LinkMessage| {
        message.header.interface_family == netlink_packet_route::AddressFamily::Unspec
    };
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) if is_link(&message) => {
            if let Some(link) = Link::new(message) {
                update(links, link, each);
            }
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) if is_link(&message) => {
            if let Some(link) = links.remove(&message.header.index) {
                each(LinkChange::Removed(link));
            }
        }
        _ => {}
    }
}

fn update(links: &mut BTreeMap<u32, Link>, new: Link, each: &mut impl FnMut(LinkChange)) {
    match links.insert(new.index, new.clone()) {
        None => each(LinkChange::Added(new)),
        Some(old) if !old.is_as(&new) => each(LinkChange::Changed { old, new }),
        Some(_) => {}
    }
}

impl AsFd for LinkWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
