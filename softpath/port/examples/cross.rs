//! Joins two network devices like a cable, with all offloads: `cross eth0 eth1`, `cross eth0 tap:t0` (an internal port).
//! Prints what each port counted when its input ends.

use flowlift_port::{
    Burst, BurstSource, FrameSink, InternalConfig, InternalPort, LinkState, PacketPort, PortError, PortStats,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};

enum Port {
    Packet(PacketPort),
    Internal(InternalPort),
}

impl Port {
    fn open(name: &str) -> Result<Self, PortError> {
        Ok(match name.strip_prefix("tap:") {
            Some(name) => Self::Internal(InternalPort::open(name, InternalConfig::default())?),
            None => Self::Packet(PacketPort::open(name)?),
        })
    }

    fn sender(&self) -> Box<dyn FrameSink> {
        match self {
            Self::Packet(port) => Box::new(port.sender()),
            Self::Internal(port) => Box::new(port.sender()),
        }
    }

    fn source(&mut self) -> &mut dyn BurstSource {
        match self {
            Self::Packet(port) => port,
            Self::Internal(port) => port,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Packet(port) => port.as_fd(),
            Self::Internal(port) => port.as_fd(),
        }
    }

    fn stats(&self) -> PortStats {
        match self {
            Self::Packet(port) => port.stats(),
            Self::Internal(port) => port.stats(),
        }
    }
}

/// Moves what waits from one port to the other; false when its device is gone.
fn forward(from: &mut Port, to: &mut dyn FrameSink, burst: &mut Burst) -> bool {
    loop {
        // What is refused is lost, as on a wire, and counted.
        let moved = from.source().receive_burst(burst, &mut |frame| drop(to.send(frame)));
        drop(to.flush());
        match moved {
            Ok(0) => return true,
            Ok(_) => {}
            Err(PortError::Link(LinkState::Gone)) => return false,
            Err(error) => {
                eprintln!("{error}");
                return true;
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let [a, b] = names.as_slice() else { return Err("usage: cross DEVICE DEVICE".into()) };
    let (mut a, mut b) = (Port::open(a)?, Port::open(b)?);
    let (mut to_a, mut to_b) = (a.sender(), b.sender());
    let mut burst = Burst::new();
    println!("ready");
    let stdin = std::io::stdin();
    loop {
        let mut fds = [
            PollFd::new(a.fd(), PollFlags::POLLIN),
            PollFd::new(b.fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        let ended = fds[2].any().unwrap_or(true);
        let alive = forward(&mut a, &mut *to_b, &mut burst) && forward(&mut b, &mut *to_a, &mut burst);
        if ended || !alive {
            println!("{:?}\n{:?}", a.stats(), b.stats());
            return Ok(());
        }
    }
}
