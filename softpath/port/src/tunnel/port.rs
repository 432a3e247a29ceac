//! A UDP port that frames in tunnels come to and leave from.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::header::{self, MAX_LEN};
use super::inner::{decapsulate_ecn, left_to_do, same_family, source_port};
use super::socket::{Outer, Sender, receive, receiver, route_source};
use super::{TunnelInfo, TunnelKind};
use crate::burst::{BURST, Burst, MAX_RECEIVED};
use crate::offload::{finish, segment::sum};
use crate::stats::{Shared, add};
use crate::{Frame, MIN_FRAME, PortError, PortStats};

const UDP_LEN: usize = 8;
const UDP_PROTOCOL: u8 = 17;
/// What fits into a tunnel over Ethernet's MTU: 1,500 bytes less outer IPv4, UDP, tunnel and Ethernet headers.
const DEFAULT_MTU: usize = 1450;

/// The packets of a tunnel protocol to a UDP port of this host.
#[derive(Debug)]
pub struct TunnelPort {
    kind: TunnelKind,
    port: u16,
    receivers: [OwnedFd; 2],
    /// Readable when one of the receivers is.
    ready: Epoll,
    mtu: usize,
    info: TunnelInfo,
    sender: Arc<Sender>,
    stats: Arc<Shared>,
}

impl TunnelPort {
    /// Takes the UDP port `port`, of IPv4 and IPv6, in the network namespace of the calling thread. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// No rights; `EADDRINUSE` if the port is taken, for instance by a tunnel device of the kernel's.
    pub fn open(kind: TunnelKind, port: u16) -> Result<TunnelPort, PortError> {
        let receivers = [receiver(port, false)?, receiver(port, true)?];
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        for fd in &receivers {
            ready.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(io::Error::from)?;
        }
        let sender = Arc::new(Sender::new()?);
        let (info, stats) = (TunnelInfo::default(), Arc::new(Shared::default()));
        Ok(TunnelPort { kind, port, receivers, ready, mtu: DEFAULT_MTU, info, sender, stats })
    }

    /// Largest IP packet within the tunnel, in bytes: see [`left_to_do`](super::inner::left_to_do). 1,450 unless set.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// A sender, for any thread.
    pub fn sender(&self) -> TunnelSender {
        TunnelSender {
            kind: self.kind,
            port: self.port,
            sockets: Arc::clone(&self.sender),
            stats: Arc::clone(&self.stats),
            scratch: Vec::new(),
            route: None,
        }
    }

    /// What the port and all its senders counted, in frames without what is outside them.
    pub fn stats(&self) -> PortStats {
        self.stats.load()
    }

    /// Gives the frames that wait to `each`, with what was outside them, in order and at most [`BURST`] of each IP version. Returns how
    /// many packets were taken: 0 when none waits. Never waits. Packets that are not of the tunnel's protocol are dropped and counted as
    /// malformed.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(&TunnelInfo, Frame<'_>),
    ) -> Result<usize, PortError> {
        let (mut taken, mut frames, mut bytes) = (0, 0, 0);
        let Self { kind, port, receivers, mtu, info, stats, .. } = self;
        for fd in receivers.iter() {
            for _ in 0..BURST {
                let buffer = burst.frame(0, MAX_RECEIVED, None);
                let outer = match receive(fd.as_fd(), buffer) {
                    Ok(outer) => outer,
                    Err(Errno::EAGAIN | Errno::EINTR) => break,
                    Err(error) => return Err(io::Error::from(error).into()),
                };
                taken += 1;
                if outer.cut {
                    add(&stats.rx_giants, 1);
                    continue;
                }
                let packet = &mut buffer[..outer.len.min(MAX_RECEIVED)];
                let Ok(header_len) = header::decode(*kind, packet, info) else {
                    add(&stats.rx_malformed, 1);
                    continue;
                };
                let frame = &mut packet[header_len..];
                if frame.len() < MIN_FRAME {
                    add(&stats.rx_runts, 1);
                    continue;
                }
                if !decapsulate_ecn(outer.tos, frame) {
                    add(&stats.rx_malformed, 1);
                    continue;
                }
                (info.src, info.dst) = (outer.src, outer.dst);
                (info.tos, info.ttl) = (outer.tos, outer.ttl);
                (info.src_port, info.dst_port) = (outer.src_port, *port);
                frames += 1;
                bytes += frame.len() as u64;
                let offload = left_to_do(frame, *mtu);
                each(info, Frame { offload, ..Frame::new(frame) });
            }
        }
        add(&stats.rx_frames, frames);
        add(&stats.rx_bytes, bytes);
        Ok(taken)
    }
}

impl AsFd for TunnelPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}

/// Sends frames in tunnels of one kind, to any remote end.
#[derive(Debug)]
pub struct TunnelSender {
    kind: TunnelKind,
    port: u16,
    sockets: Arc<Sender>,
    stats: Arc<Shared>,
    scratch: Vec<u8>,
    /// Destination and source of the last route that was asked for, and when.
    route: Option<(IpAddr, IpAddr, Instant)>,
}

/// How long a route that was asked for is taken for true.
const ROUTE_AGE: Duration = Duration::from_secs(1);

impl TunnelSender {
    /// The source address towards `dst`.
    fn source_to(&mut self, dst: IpAddr) -> io::Result<IpAddr> {
        let now = Instant::now();
        match self.route {
            Some((to, source, asked)) if to == dst && now - asked < ROUTE_AGE => Ok(source),
            _ => {
                let source = route_source(dst)?;
                self.route = Some((dst, source, now));
                Ok(source)
            }
        }
    }

    /// Sends a frame in a tunnel, with `info` outside it; a large one in segments. A destination port of 0 is the tunnel port's own.
    ///
    /// # Errors
    /// [`PortError::Full`]; [`PortError::TooLong`] for a packet that may not be fragmented and is longer than its way allows; no route,
    /// and what else the system says. What is lost is counted.
    pub fn send(&mut self, info: &TunnelInfo, frame: Frame<'_>) -> Result<(), PortError> {
        let Some(offload) = frame.offload else { return self.send_whole(info, frame.data) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        let finished = finish(frame.data, &offload, &mut scratch, &mut |whole| {
            if result.is_ok() {
                result = self.send_whole(info, whole);
            }
        });
        self.scratch = scratch;
        if finished.is_err() {
            add(&self.stats.tx_errors, 1);
        }
        finished?;
        result
    }

    fn send_whole(&mut self, info: &TunnelInfo, frame: &[u8]) -> Result<(), PortError> {
        let result = self.try_send(info, frame);
        match &result {
            Ok(()) => {
                add(&self.stats.tx_frames, 1);
                add(&self.stats.tx_bytes, frame.len() as u64);
            }
            Err(PortError::Full) => add(&self.stats.tx_full, 1),
            Err(PortError::TooLong { .. }) => add(&self.stats.tx_too_long, 1),
            Err(_) => add(&self.stats.tx_errors, 1),
        }
        result
    }

    fn try_send(&mut self, info: &TunnelInfo, frame: &[u8]) -> Result<(), PortError> {
        let mut tunnel = [0; MAX_LEN];
        let tunnel_len = header::encode(self.kind, info, &mut tunnel);
        let tunnel = &tunnel[..tunnel_len];
        let too_long = PortError::TooLong { len: frame.len() };
        let Ok(udp_len) = u16::try_from(UDP_LEN + tunnel_len + frame.len()) else { return Err(too_long) };
        let src_port = if info.src_port == 0 { source_port(frame) } else { info.src_port };
        let dst_port = if info.dst_port == 0 { self.port } else { info.dst_port };
        let mut udp = [0; UDP_LEN];
        udp[..2].copy_from_slice(&src_port.to_be_bytes());
        udp[2..4].copy_from_slice(&dst_port.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        let mut outer = Outer {
            src: info.src,
            dst: info.dst,
            tos: info.tos,
            ttl: if info.ttl == 0 { 64 } else { info.ttl },
            dont_fragment: info.dont_fragment,
        };
        if !same_family(info.src, info.dst) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        // Over IPv6, the system fills it in.
        if info.checksum && info.dst.is_ipv4() {
            if outer.src.is_unspecified() {
                outer.src = self.source_to(info.dst)?;
            }
            if let (IpAddr::V4(src), IpAddr::V4(dst)) = (outer.src, outer.dst) {
                // All parts but the last are whole words.
                let [hi, lo] = udp_len.to_be_bytes();
                let pseudo = [&src.octets()[..], &dst.octets(), &[0, UDP_PROTOCOL, hi, lo]];
                let sums =
                    pseudo.into_iter().chain([&udp[..], tunnel, frame]).map(|part| u32::from(sum(part)));
                let total: u32 = sums.sum();
                let csum = !sum(&total.to_be_bytes());
                udp[6..8].copy_from_slice(&if csum == 0 { 0xffff } else { csum }.to_be_bytes());
            }
        }
        let parts = [IoSlice::new(&udp), IoSlice::new(tunnel), IoSlice::new(frame)];
        self.sockets.send(outer, &parts).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => PortError::Full,
            Some(Errno::EMSGSIZE) => too_long,
            _ => error.into(),
        })
    }
}
