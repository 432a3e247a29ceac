//! `tables NETDEV...`: serves the OVS families from tables in memory, without ports or packets, for as long as it runs.
//! `NETDEV...` are the devices that may become vports. fixtures/netlink/capture uses it to see what Open vSwitch sends.

use flowlift_ovs::marker::SERVER_PORT_ID;
use flowlift_ovs::memory::Memory;
use flowlift_ovs::server::Server;
use flowlift_ovs::socket::{Endpoint, Next, Socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut endpoint = Endpoint::new(Socket::bind(SERVER_PORT_ID)?, Server::default());
    let mut backend = Memory::default();
    backend.netdevs = std::env::args().skip(1).collect();
    loop {
        let timeout = match endpoint.pump(&mut backend, Instant::now())? {
            Next::Now => PollTimeout::ZERO,
            Next::Within(time) => PollTimeout::try_from(time)?,
            Next::Readable => PollTimeout::NONE,
        };
        poll(&mut [PollFd::new(endpoint.as_fd(), PollFlags::POLLIN)], timeout)?;
    }
}
