//! Where frames in tunnels come to.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::gre::{self, GreTunnel};
use super::header::{self, HeaderError, UdpTunnel};
use super::inner::{decapsulate_ecn, ip_end, left_to_do, min_len};
use super::socket::{Received, Receiver, Sender, gre_receiver, receive, udp_receivers};
use super::{IpVersion, TunnelInfo, TunnelKind, TunnelSender};
use crate::burst::{BURST, Burst, MAX_RECEIVED, SLOT, TAG};
use crate::stats::{Shared, add};
use crate::{Frame, PortError, PortStats};

/// What fits into a tunnel over Ethernet's MTU: 1,500 bytes less outer IPv4, UDP, tunnel and Ethernet headers.
const DEFAULT_MTU: usize = 1450;
/// Sockets that a port has at most.
const RECEIVERS: usize = 6;

/// What stands between IP and a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Udp(UdpTunnel),
    Gre(GreTunnel),
}

impl Codec {
    fn of(kind: TunnelKind) -> Self {
        match kind {
            TunnelKind::Vxlan { gbp, .. } => Self::Udp(UdpTunnel::Vxlan { gbp }),
            TunnelKind::VxlanGpe { .. } => Self::Udp(UdpTunnel::VxlanGpe),
            TunnelKind::Geneve { .. } => Self::Udp(UdpTunnel::Geneve),
            TunnelKind::Gre(_) => Self::Gre(GreTunnel::Ethernet),
            TunnelKind::AnyGre(_) => Self::Gre(GreTunnel::Any),
            TunnelKind::Erspan(_) => Self::Gre(GreTunnel::Erspan),
        }
    }
}

/// What the port and its senders share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) codec: Codec,
    /// UDP port.
    pub(super) port: u16,
    pub(super) sockets: Sender,
    pub(super) stats: Shared,
    /// ERSPAN: packets sent.
    pub(super) sequence: AtomicU32,
}

/// The packets of a tunnel protocol to this host.
#[derive(Debug)]
pub struct TunnelPort {
    receivers: Vec<Receiver>,
    /// Readable when one of the receivers is.
    ready: Epoll,
    mtu: usize,
    info: TunnelInfo,
    common: Arc<Common>,
}

impl TunnelPort {
    /// Takes the packets of `kind`, in the network namespace of the calling thread. Needs CAP_NET_RAW. Packets in GRE reach the
    /// kernel's GRE devices and other ports of the same kind as well.
    ///
    /// # Errors
    /// No rights; `EADDRINUSE` if the UDP port is taken, for instance by a tunnel device of the kernel's.
    pub fn open(kind: TunnelKind) -> Result<TunnelPort, PortError> {
        let (codec, port) = (Codec::of(kind), kind.udp_port());
        let receivers = match (kind, codec) {
            (
                TunnelKind::Gre(version) | TunnelKind::AnyGre(version) | TunnelKind::Erspan(version),
                Codec::Gre(gre),
            ) => vec![gre_receiver(gre, version)?],
            _ => {
                let mut all = udp_receivers(port, IpVersion::V4)?;
                all.extend(udp_receivers(port, IpVersion::V6)?);
                all
            }
        };
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        for (n, receiver) in receivers.iter().enumerate() {
            ready.add(receiver, EpollEvent::new(EpollFlags::EPOLLIN, n as u64)).map_err(io::Error::from)?;
        }
        let protocol = match codec {
            Codec::Udp(_) => libc::IPPROTO_UDP,
            Codec::Gre(_) => libc::IPPROTO_GRE,
        };
        let (stats, sequence) = (Shared::default(), AtomicU32::new(0));
        let common = Arc::new(Common { codec, port, sockets: Sender::new(protocol)?, stats, sequence });
        Ok(TunnelPort { receivers, ready, mtu: DEFAULT_MTU, info: TunnelInfo::default(), common })
    }

    /// Largest IP packet within the tunnel, in bytes: see [`left_to_do`](super::inner::left_to_do). 1,450 unless set.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// A sender, for any thread.
    pub fn sender(&self) -> TunnelSender {
        TunnelSender::new(Arc::clone(&self.common))
    }

    /// What the port and all its senders counted, in frames without what is outside them.
    pub fn stats(&self) -> PortStats {
        self.common.stats.load()
    }

    /// Gives the packets that wait to `each`, with what was outside them, in order and at most [`BURST`] of each socket, where a run of
    /// packets that the system put together counts once. One whose [`TunnelInfo::protocol`] is not Ethernet's begins with that protocol's
    /// header. Returns how many packets were taken: 0 when none waits. Never waits. Packets that are not of the tunnel's protocol are
    /// dropped and counted as malformed.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(&TunnelInfo, Frame<'_>),
    ) -> Result<usize, PortError> {
        let mut events = [EpollEvent::empty(); RECEIVERS];
        let count = match self.ready.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let mut taken = 0;
        for event in events.iter().take(count) {
            let Self { receivers, mtu, info, common, .. } = self;
            let Some(receiver) = usize::try_from(event.data()).ok().and_then(|n| receivers.get(n)) else {
                continue;
            };
            let mut packets = [Received::default(); BURST];
            let received = match receive(receiver.as_fd(), &mut burst.frames, &mut packets) {
                Ok(received) => received,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            taken += received;
            let mut decap = Decap { receiver, mtu: *mtu, info, common, frames: 0, bytes: 0 };
            for (slot, outer) in burst.frames.chunks_exact_mut(SLOT).zip(packets).take(received) {
                decap.packets(&mut slot[TAG..], outer, each);
            }
            add(&common.stats.rx_frames, decap.frames);
            add(&common.stats.rx_bytes, decap.bytes);
        }
        Ok(taken)
    }
}

impl AsFd for TunnelPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }
}

/// Takes frames out of packets of one socket.
struct Decap<'a> {
    receiver: &'a Receiver,
    mtu: usize,
    info: &'a mut TunnelInfo,
    common: &'a Common,
    frames: u64,
    bytes: u64,
}

impl Decap<'_> {
    /// A received packet, or several in a row.
    fn packets(&mut self, buffer: &mut [u8], outer: Received, each: &mut dyn FnMut(&TunnelInfo, Frame<'_>)) {
        if outer.cut {
            add(&self.common.stats.rx_giants, 1);
            return;
        }
        let all = buffer.get_mut(..outer.len.min(MAX_RECEIVED)).unwrap_or_default();
        match outer.run_of.filter(|len| len.get() < all.len()) {
            Some(len) if !self.is_one_frame(all, outer) => {
                all.chunks_mut(len.get()).for_each(|packet| self.packet(packet, outer, None, each));
            }
            run_of => self.packet(all, outer, run_of, each),
        }
    }

    /// Instead of a run, a packet may have come in which there is a large frame of datagrams of that length, which a stack on this host
    /// left to be cut: then there is a single IP packet within, to the end.
    fn is_one_frame(&mut self, packet: &[u8], mut outer: Received) -> bool {
        let Ok(start) = self.headers(packet, &mut outer) else { return false };
        let frame = packet.get(start..).unwrap_or_default();
        ip_end(frame, self.info.protocol) == Some(frame.len())
    }

    /// A packet, of whose payload within the system may know into what it was to be cut.
    fn packet(
        &mut self,
        packet: &mut [u8],
        mut outer: Received,
        datagrams_of: Option<NonZeroUsize>,
        each: &mut dyn FnMut(&TunnelInfo, Frame<'_>),
    ) {
        let stats = &self.common.stats;
        let Ok(start) = self.headers(packet, &mut outer) else {
            add(&stats.rx_malformed, 1);
            return;
        };
        let frame = packet.get_mut(start..).unwrap_or_default();
        if frame.len() < min_len(self.info.protocol) {
            add(&stats.rx_runts, 1);
            return;
        }
        if !decapsulate_ecn(outer.tos, frame, self.info.protocol) {
            add(&stats.rx_malformed, 1);
            return;
        }
        let info = &mut *self.info;
        (info.src, info.dst) = (outer.src, outer.dst);
        (info.tos, info.ttl) = (outer.tos, outer.ttl);
        (info.src_port, info.dst_port) = (outer.src_port, self.common.port);
        self.frames += 1;
        self.bytes += frame.len() as u64;
        let offload = left_to_do(frame, info.protocol, self.mtu, datagrams_of);
        each(info, Frame { offload, ..Frame::new(frame) });
    }

    /// Reads the headers of a packet; gives where the frame begins.
    fn headers(&mut self, packet: &[u8], outer: &mut Received) -> Result<usize, HeaderError> {
        let info = &mut *self.info;
        (info.checksum, info.dont_fragment) = (self.receiver.checksum, self.receiver.dont_fragment);
        let mut start = 0;
        if self.receiver.with_ip {
            let ip: &[u8; 20] = packet.first_chunk().ok_or(HeaderError::CutOff)?;
            start = usize::from(ip[0] & 0x0f) * 4;
            (outer.tos, outer.ttl) = (ip[1], ip[8]);
            info.dont_fragment = ip[6] & 0x40 != 0;
            outer.dst = IpAddr::from([ip[16], ip[17], ip[18], ip[19]]);
            outer.src_port = 0;
        }
        let rest = packet.get(start..).ok_or(HeaderError::CutOff)?;
        let len = match self.common.codec {
            Codec::Udp(udp) => header::decode(udp, rest, info)?,
            Codec::Gre(gre) => {
                // A raw socket of IPv6 tells the protocol where UDP tells the port.
                outer.src_port = 0;
                gre::decode(gre, rest, info)?
            }
        };
        Ok(start + len)
    }
}
