//! The sockets under a tunnel: UDP sockets to receive, and raw ones to send, which leave the UDP source port to us and everything of IP
//! to the host: routes, neighbours, fragments. Raw sockets need CAP_NET_RAW.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrIn, SockaddrIn6, SockaddrStorage, bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use crate::sockopt::{receive_nothing, set};

const RECEIVE_BUFFER: usize = 8 << 20;
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// `IP_PMTUDISC_DONT` and `IP_PMTUDISC_DO`, the same for IPv6: packets may be fragmented, or have DF set.
const MAY_FRAGMENT: libc::c_int = 0;
const DONT_FRAGMENT: libc::c_int = 2;
/// Where UDP's checksum is.
const UDP_CHECKSUM: libc::c_int = 6;

/// A UDP socket for all packets to `port`, over IPv4 or IPv6, that tells what was outside of them.
pub(super) fn receiver(port: u16, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Datagram, FLAGS, None)?;
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvTClass, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&fd, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(&fd, sockopt::IpRecvTos, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    }
    // Past the system's limit where we may.
    if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(fd)
}

/// A raw socket that sends UDP packets.
fn raw(v6: bool, discover: libc::c_int) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Raw, FLAGS, SockProtocol::Udp)?;
    receive_nothing(&fd)?;
    if v6 {
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &discover)?;
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, &UDP_CHECKSUM)?;
    } else {
        set(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &discover)?;
    }
    Ok(fd)
}

/// Sends UDP packets, of which it makes the IP header.
#[derive(Debug)]
pub(super) struct Sender {
    v4: [OwnedFd; 2],
    v6: [OwnedFd; 2],
}

/// The IP header's fields that are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outer {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
}

impl Sender {
    pub(super) fn new() -> io::Result<Self> {
        let pair = |v6| Ok::<_, io::Error>([raw(v6, MAY_FRAGMENT)?, raw(v6, DONT_FRAGMENT)?]);
        Ok(Self { v4: pair(false)?, v6: pair(true)? })
    }

    /// Sends `parts`, a UDP header and what follows it. Over IPv6 its checksum is filled in.
    pub(super) fn send(&self, outer: Outer, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let fragment = usize::from(outer.dont_fragment);
        match outer.dst {
            IpAddr::V4(dst) => {
                let ttl = libc::c_int::from(outer.ttl);
                let mut info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: 0 },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                if let IpAddr::V4(src) = outer.src {
                    info.ipi_spec_dst.s_addr = u32::from_ne_bytes(src.octets());
                }
                let control = [
                    ControlMessage::Ipv4Ttl(&ttl),
                    ControlMessage::Ipv4Tos(&outer.tos),
                    ControlMessage::Ipv4PacketInfo(&info),
                ];
                let to = SockaddrIn::from(SocketAddrV4::new(dst, 0));
                sendmsg(self.v4[fragment].as_raw_fd(), parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
            }
            IpAddr::V6(dst) => {
                let (limit, class) = (libc::c_int::from(outer.ttl), i32::from(outer.tos));
                let src = if let IpAddr::V6(src) = outer.src { src } else { Ipv6Addr::UNSPECIFIED };
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: src.octets() },
                    ipi6_ifindex: 0,
                };
                let control = [
                    ControlMessage::Ipv6HopLimit(&limit),
                    ControlMessage::Ipv6TClass(&class),
                    ControlMessage::Ipv6PacketInfo(&info),
                ];
                let to = SockaddrIn6::from(SocketAddrV6::new(dst, 0, 0, 0));
                sendmsg(self.v6[fragment].as_raw_fd(), parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
            }
        }
        Ok(())
    }
}

/// The address that the host's routes choose as source towards `dst`.
pub(super) fn route_source(dst: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if dst.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(dst, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// What was outside a received packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    /// Bytes of the buffer, without the UDP header.
    pub(super) len: usize,
    /// It was longer than the buffer.
    pub(super) cut: bool,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) src_port: u16,
    pub(super) tos: u8,
    pub(super) ttl: u8,
}

/// Receives one packet, if one waits.
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    // Room for the largest of each kind: packet information, and two integers.
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int, libc::c_int);
    let message =
        recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut received = Received {
        len: message.bytes,
        cut: message.flags.contains(MsgFlags::MSG_TRUNC),
        src: any,
        dst: any,
        src_port: 0,
        tos: 0,
        ttl: 0,
    };
    if let Some(from) = message.address {
        if let Some(v4) = from.as_sockaddr_in() {
            (received.src, received.src_port) = (v4.ip().into(), v4.port());
        } else if let Some(v6) = from.as_sockaddr_in6() {
            (received.src, received.src_port) = (v6.ip().into(), v6.port());
        }
    }
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                received.dst = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into();
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                received.dst = Ipv6Addr::from(info.ipi6_addr.s6_addr).into();
            }
            ControlMessageOwned::Ipv4Ttl(ttl) => received.ttl = ttl as u8,
            ControlMessageOwned::Ipv6HopLimit(limit) => received.ttl = limit as u8,
            ControlMessageOwned::Ipv4Tos(tos) => received.tos = tos,
            ControlMessageOwned::Ipv6TClass(class) => received.tos = class as u8,
            _ => {}
        }
    }
    Ok(received)
}
