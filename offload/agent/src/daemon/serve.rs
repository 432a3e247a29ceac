//! The thread that answers Open vSwitch: the Netlink endpoints, the control plane, and the host's devices.

use super::mailbox::Inbox;
use super::plane::Plane;
use flowlift_flow::PortNo;
use flowlift_ovs::backend::DpIndex;
use flowlift_ovs::socket::{Endpoint, Next};
use flowlift_port::link::{LinkChange, LinkWatcher};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::time::{Duration, Instant};

/// Jobs of other threads done in a turn.
const JOBS: usize = 64;
/// Descriptors' names.
const REQUESTS: u64 = 0;
const DEVICE_REQUESTS: u64 = 1;
const INBOX: u64 = 2;
const DEVICES: u64 = 3;

/// See the module's head.
pub struct Serve {
    endpoint: Endpoint,
    /// Of NETLINK_ROUTE, for tunnel devices.
    devices: Endpoint,
    plane: Plane,
    watcher: LinkWatcher,
    running: bool,
}

impl Serve {
    /// Ready to serve; `devices` is the endpoint of NETLINK_ROUTE.
    pub fn new(endpoint: Endpoint, devices: Endpoint, plane: Plane, watcher: LinkWatcher) -> Self {
        Self { endpoint, devices, plane, watcher, running: true }
    }

    /// The control plane.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// The Netlink endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Has [`Self::run`] return.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// The Netlink socket broke, or the system refuses to wait.
    pub fn run(mut self, inbox: &Inbox<Self>) -> anyhow::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.endpoint, EpollEvent::new(EpollFlags::EPOLLIN, REQUESTS))?;
        epoll.add(&self.devices, EpollEvent::new(EpollFlags::EPOLLIN, DEVICE_REQUESTS))?;
        epoll.add(inbox, EpollEvent::new(EpollFlags::EPOLLIN, INBOX))?;
        epoll.add(&self.watcher, EpollEvent::new(EpollFlags::EPOLLIN, DEVICES))?;
        let mut events = [EpollEvent::empty(); 4];
        // Each look at a descriptor costs a flow's setting up a system call. At first all are looked at.
        let mut readable = vec![REQUESTS, DEVICE_REQUESTS, INBOX, DEVICES];
        let (mut requests, mut device_requests) = (Next::Now, Next::Now);
        loop {
            let now = Instant::now();
            if readable.contains(&DEVICE_REQUESTS) || device_requests != Next::Readable {
                device_requests = self.devices.pump(&mut self.plane, now)?;
            }
            if readable.contains(&REQUESTS) || requests != Next::Readable {
                requests = self.endpoint.pump(&mut self.plane, now)?;
            }
            // Requests go first: whoever asked before a device went is answered before its port is gone. ovs-vswitchd would find a port
            // missing of whose end it has not heard, and add one of that name again while it still has the old one.
            inbox.run(&mut self, JOBS);
            if !self.running {
                self.plane.close();
                return Ok(());
            }
            if readable.contains(&DEVICES) {
                self.follow_devices();
            }
            self.plane.end_turn();
            let timeout = match device_requests.min(requests) {
                Next::Now => EpollTimeout::ZERO,
                // Rounded up, or the last part of a millisecond would be spent in turns.
                Next::Within(time) => {
                    EpollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(EpollTimeout::ZERO)
                }
                Next::Readable => EpollTimeout::NONE,
            };
            let count = match epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            readable.clear();
            readable.extend(events.iter().take(count).map(EpollEvent::data));
        }
    }

    /// Deletes a port whose device was deleted where nobody watches it.
    pub fn device_lost(&mut self, dp: DpIndex, port: PortNo) {
        if self.plane.is_without_device(dp, port) {
            self.delete_port(dp, port);
        }
    }

    fn delete_port(&mut self, dp: DpIndex, port: PortNo) {
        match self.endpoint.remove_vport(&mut self.plane, dp, port) {
            Ok(()) => tracing::info!(port = port.0, "a port is gone with its device"),
            Err(refusal) => tracing::warn!(port = port.0, %refusal, "a port without device stays"),
        }
    }

    /// Follows what becomes of the host's devices.
    fn follow_devices(&mut self) {
        let mut changes = Vec::new();
        if let Err(error) = self.watcher.poll(|change| changes.push(change)) {
            tracing::debug!(%error, "devices of the host");
        }
        for change in &changes {
            match change {
                LinkChange::Removed(link) => {
                    for (dp, port) in self.plane.device_gone(link) {
                        self.delete_port(dp, port);
                    }
                }
                LinkChange::Added(link) | LinkChange::Changed { new: link, .. } => {
                    self.plane.device_is(link);
                }
            }
        }
    }
}
