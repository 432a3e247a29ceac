//! Joins two ports like a cable, with all offloads: `cross eth0 eth1`, `cross eth0 tap:t0` (an internal port), `cross eth0
//! vxlan:192.0.2.1:7` and `geneve:...`, `gre:...`, `erspan:...` (a tunnel to that remote end, with that VNI, key or session).
//! Prints what each port counted when its input ends.

use flowlift_port::tunnel::IpVersion;
use flowlift_port::{
    Burst, BurstSource, FrameSink, InternalConfig, InternalPort, LinkState, PacketPort, PortError, PortStats,
};
use flowlift_port::{Frame, TunnelInfo, TunnelKind, TunnelPort, TunnelSender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};

enum Port {
    Packet(PacketPort),
    Internal(InternalPort),
    Tunnel(Box<Tunnel>),
}

/// A tunnel to one remote end.
struct Tunnel {
    port: TunnelPort,
    info: TunnelInfo,
}

struct ToTunnel(TunnelSender, TunnelInfo);

impl FrameSink for ToTunnel {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        self.0.send(&self.1, frame)
    }

    fn flush(&mut self) -> Result<(), PortError> {
        self.0.flush()
    }
}

impl BurstSource for Tunnel {
    fn receive_burst(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError> {
        let Self { port, info } = self;
        port.receive(burst, &mut |got, frame| {
            if got.id.unwrap_or(0) == info.id.unwrap_or(0) && got.src == info.dst {
                each(frame);
            }
        })
    }
}

impl Tunnel {
    fn open(kind: TunnelKind, end: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let (remote, id) = end.rsplit_once(':').ok_or("a tunnel's remote end is ADDRESS:ID")?;
        let (dst, id) = (remote.parse()?, Some(id.parse()?));
        let info = TunnelInfo { dst, id, checksum: true, ..TunnelInfo::default() };
        Ok(Self { port: TunnelPort::open(kind)?, info })
    }
}

impl Port {
    fn open(name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let tunnel = |kind, end| Ok(Self::Tunnel(Box::new(Tunnel::open(kind, end)?)));
        let version = |end: &str| if end.contains("::") { IpVersion::V6 } else { IpVersion::V4 };
        Ok(match name.split_once(':') {
            Some(("tap", name)) => Self::Internal(InternalPort::open(name, InternalConfig::default())?),
            Some(("vxlan", end)) => return tunnel(TunnelKind::Vxlan { port: 4789, gbp: false }, end),
            Some(("geneve", end)) => return tunnel(TunnelKind::Geneve { port: 6081 }, end),
            Some(("gre", end)) => return tunnel(TunnelKind::Gre(version(end)), end),
            Some(("erspan", end)) => return tunnel(TunnelKind::Erspan(version(end)), end),
            _ => Self::Packet(PacketPort::open(name)?),
        })
    }

    fn sender(&self) -> Box<dyn FrameSink> {
        match self {
            Self::Packet(port) => Box::new(port.sender()),
            Self::Internal(port) => Box::new(port.sender()),
            Self::Tunnel(tunnel) => Box::new(ToTunnel(tunnel.port.sender(), tunnel.info.clone())),
        }
    }

    fn source(&mut self) -> &mut dyn BurstSource {
        match self {
            Self::Packet(port) => port,
            Self::Internal(port) => port,
            Self::Tunnel(tunnel) => &mut **tunnel,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Packet(port) => port.as_fd(),
            Self::Internal(port) => port.as_fd(),
            Self::Tunnel(tunnel) => tunnel.port.as_fd(),
        }
    }

    fn stats(&self) -> PortStats {
        match self {
            Self::Packet(port) => port.stats(),
            Self::Internal(port) => port.stats(),
            Self::Tunnel(tunnel) => tunnel.port.stats(),
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
