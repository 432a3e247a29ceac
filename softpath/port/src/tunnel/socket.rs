//! The sockets under a tunnel: UDP sockets and raw ones to receive, raw ones to send, which leave the UDP source port to us and everything
//! of IP to the host: routes, neighbours, fragments. Raw sockets need CAP_NET_RAW.
//!
//! A UDP socket does not tell whether a packet had a checksum or might not be fragmented. So a port has several sockets that share it
//! (SO_REUSEPORT), and a filter that looks at the packet's headers gives each packet to the socket that stands for what it had.
#![allow(unsafe_code)] // Filters, and many packets in a call with what is outside of them.

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

use super::IpVersion;
use super::control::{Address, Control, UDP_GRO};
use super::gre::{GreTunnel, protocols};
use crate::burst::{BURST, MAX_RECEIVED, SLOT, TAG};
use crate::mmsg;
use crate::sockopt::{filter, receive_buffer, receive_nothing, set};

/// Bytes of received packets that may wait in a socket.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
pub(super) const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// `IP_PMTUDISC_DONT` and `IP_PMTUDISC_DO`, the same for IPv6: packets may be fragmented, or have DF set.
const MAY_FRAGMENT: libc::c_int = 0;
const DONT_FRAGMENT: libc::c_int = 2;
/// Where UDP's checksum is.
const UDP_CHECKSUM: libc::c_int = 6;
/// `UDP_NO_CHECK6_RX` of `<linux/udp.h>`: packets over IPv6 without a checksum are taken, as tunnels need it (RFC 6935).
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// `SO_ATTACH_REUSEPORT_CBPF`.
const REUSEPORT_FILTER: libc::c_int = 51;
/// `SKF_NET_OFF` of `<linux/filter.h>`: offsets from here on are from the IP header.
const NET: u32 = 0xfff0_0000;

/// A socket that receives, and what its packets have in common.
#[derive(Debug)]
pub(super) struct Receiver {
    fd: OwnedFd,
    /// Packets begin with their IPv4 header.
    pub(super) with_ip: bool,
    /// Outer UDP checksum.
    pub(super) checksum: bool,
    /// Outer DF.
    pub(super) dont_fragment: bool,
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One instruction of a filter (classic BPF).
const fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Jumps over `jt` instructions if the accumulator is `k`, else over `jf`.
const fn if_equal(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: 0x15, jt, jf, k }
}

/// Number of the socket for an IPv4 packet: 1 for a UDP checksum, 2 for DF.
const CHOOSE_V4: [libc::sock_filter; 15] = [
    op(0x30, NET), // A = version and header length
    op(0x54, 0x0f),
    op(0x64, 2),
    op(0x07, 0),       // X = A
    op(0x48, NET + 6), // A = UDP checksum
    if_equal(0, 2, 0),
    op(0x00, 1),       // A = 1
    op(0x05, 1),       // over the next
    op(0x00, 0),       // A = 0
    op(0x02, 0),       // M[0] = A
    op(0x28, NET + 6), // A = flags and fragment offset
    op(0x54, 0x4000),
    op(0x74, 13),
    op(0x61, 0), // X = M[0]
    op(0x4c, 0), // A |= X
];
/// The same for IPv6, where there is no DF; with extension headers a packet counts as one with a checksum.
const CHOOSE_V6: [libc::sock_filter; 6] = [
    op(0x30, NET + 6), // A = next header
    if_equal(17, 0, 2),
    op(0x28, NET + 46), // A = UDP checksum
    if_equal(0, 1, 0),
    op(0x06, 1), // return 1
    op(0x06, 0),
];

/// The sockets for all UDP packets to `port` over IP of a version. Empty if the host has no IPv6.
pub(super) fn udp_receivers(port: u16, version: IpVersion) -> io::Result<Vec<Receiver>> {
    let count = match version {
        IpVersion::V4 => 4,
        IpVersion::V6 => 2,
    };
    let mut receivers: Vec<Receiver> = Vec::with_capacity(count);
    for n in 0..count {
        let family = family(version);
        let fd = match socket(family, SockType::Datagram, FLAGS, None) {
            Err(Errno::EAFNOSUPPORT) if version == IpVersion::V6 => return Ok(receivers),
            fd => fd?,
        };
        tell_outside(&fd, version)?;
        // Runs of datagrams come as one; where the system cannot (before Linux 5.0), they come one by one.
        let _ = set(&fd, libc::IPPROTO_UDP, UDP_GRO, &1);
        // The first one binds alone, so that a port that somebody else shares is refused.
        if n > 0 {
            setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        match version {
            IpVersion::V4 => {
                let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
                bind(fd.as_raw_fd(), &SockaddrIn::from(any))?;
            }
            IpVersion::V6 => {
                setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
                set(&fd, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &1)?;
                let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
                match bind(fd.as_raw_fd(), &SockaddrIn6::from(any)) {
                    // IPv6 is switched off.
                    Err(Errno::EADDRNOTAVAIL) => return Ok(receivers),
                    bound => bound?,
                }
            }
        }
        if n == 0 {
            setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        let (checksum, dont_fragment) = (n & 1 != 0, n & 2 != 0);
        receivers.push(Receiver { fd, with_ip: false, checksum, dont_fragment });
    }
    if let Some(last) = receivers.last() {
        match version {
            IpVersion::V4 => {
                let mut program = CHOOSE_V4.to_vec();
                program.push(op(0x16, 0)); // return A
                filter(&last.fd, REUSEPORT_FILTER, &mut program)?;
            }
            IpVersion::V6 => filter(&last.fd, REUSEPORT_FILTER, &mut CHOOSE_V6.to_vec())?,
        }
    }
    Ok(receivers)
}

/// The socket for all packets of a port's protocols in GRE over IP of a version. Others' packets do not wake it.
pub(super) fn gre_receiver(kind: GreTunnel, version: IpVersion) -> io::Result<Receiver> {
    let fd = raw(version, libc::IPPROTO_GRE)?;
    // The protocol is 2 bytes into GRE, which begins behind the IPv4 header, or at once.
    let mut program = match version {
        IpVersion::V4 => vec![op(0xb1, 0), op(0x48, 2)],
        IpVersion::V6 => vec![op(0x28, 2)],
    };
    let (protocols, wanted) = protocols(kind);
    for (n, protocol) in protocols.iter().enumerate() {
        // To the last instruction if it is this one; if it is the last and is not, to the one before.
        let left = (protocols.len() - n) as u8;
        program.push(if_equal((*protocol).into(), left, 0));
    }
    let (other, named) = if wanted { (0, u32::MAX) } else { (u32::MAX, 0) };
    program.extend([op(0x06, other), op(0x06, named)]);
    filter(&fd, libc::SO_ATTACH_FILTER, &mut program)?;
    tell_outside(&fd, version)?;
    let with_ip = version == IpVersion::V4;
    Ok(Receiver { fd, with_ip, checksum: false, dont_fragment: false })
}

pub(super) fn family(version: IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

/// Has the system tell what is outside of packets, and keep many.
fn tell_outside(fd: &OwnedFd, version: IpVersion) -> io::Result<()> {
    match version {
        IpVersion::V4 => {
            setsockopt(fd, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(fd, sockopt::Ipv4RecvTtl, &true)?;
            setsockopt(fd, sockopt::IpRecvTos, &true)?;
        }
        IpVersion::V6 => {
            setsockopt(fd, sockopt::Ipv6RecvPacketInfo, &true)?;
            setsockopt(fd, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(fd, sockopt::Ipv6RecvTClass, &true)?;
        }
    }
    receive_buffer(fd, RECEIVE_BUFFER)
}

/// A raw socket of a protocol (`IPPROTO_*`).
fn raw(version: IpVersion, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: it takes integers and gives a new descriptor, or an error.
    let fd = Errno::result(unsafe { libc::socket(family(version) as libc::c_int, kind, protocol) })?;
    // SAFETY: the descriptor has just been made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Packets that are sent have DF, or may be fragmented.
pub(super) fn set_dont_fragment(fd: &OwnedFd, version: IpVersion, dont_fragment: bool) -> io::Result<()> {
    let discover = if dont_fragment { DONT_FRAGMENT } else { MAY_FRAGMENT };
    match version {
        IpVersion::V4 => set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &discover),
        IpVersion::V6 => set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &discover),
    }
}

/// A tunnel's key has no flow label, so the kernel's tunnels send 0; the host would make one up.
pub(super) fn no_flow_label(fd: &OwnedFd) -> io::Result<()> {
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, &0)
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    version: IpVersion,
    dont_fragment: bool,
    /// The system fills in UDP's checksum: over IPv6.
    checksum: bool,
}

/// Sends packets, of which it makes the IP header.
#[derive(Debug)]
pub(super) struct Sender {
    sockets: Vec<(Way, OwnedFd)>,
}

/// The IP header's fields that are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outer {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    /// With a UDP checksum, which the system fills in over IPv6, and in runs of datagrams.
    pub(super) checksum: bool,
}

impl Outer {
    pub(super) fn version(&self) -> IpVersion {
        if self.dst.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
    }
}

impl Sender {
    /// Of UDP or GRE (`IPPROTO_*`). IPv6 is left out where the host has none.
    pub(super) fn new(protocol: libc::c_int) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            for dont_fragment in [false, true] {
                for checksum in [false, true] {
                    if checksum && (version == IpVersion::V4 || protocol != libc::IPPROTO_UDP) {
                        continue;
                    }
                    let way = Way { version, dont_fragment, checksum };
                    match Self::open(way, protocol) {
                        Ok(fd) => sockets.push((way, fd)),
                        Err(error)
                            if version == IpVersion::V6
                                && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(Self { sockets })
    }

    fn open(way: Way, protocol: libc::c_int) -> io::Result<OwnedFd> {
        let fd = raw(way.version, protocol)?;
        receive_nothing(&fd)?;
        set_dont_fragment(&fd, way.version, way.dont_fragment)?;
        if way.version == IpVersion::V6 {
            no_flow_label(&fd)?;
            if way.checksum {
                set(&fd, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, &UDP_CHECKSUM)?;
            }
        }
        Ok(fd)
    }

    /// Sends packets, each behind its IP header, which is the same for all; gives how many were taken, at least one. At most
    /// [`BURST`] are tried.
    ///
    /// # Errors
    /// What the first packet met.
    pub(super) fn send<'a>(
        &self,
        outer: &Outer,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> Result<usize, Errno> {
        let version = outer.version();
        let found = self.sockets.iter().find(|(way, _)| {
            let checksum = way.checksum == outer.checksum || version == IpVersion::V4;
            way.version == version && way.dont_fragment == outer.dont_fragment && checksum
        });
        let (_, fd) = found.ok_or(Errno::EAFNOSUPPORT)?;
        let mut address = Address::default();
        let address_len = address.write(outer.dst, 0);
        let mut control = Control::default();
        let control_len = control.write(outer, None);
        // SAFETY: all zeros are valid `iovec`s and `mmsghdr`s: nothing named.
        let mut parts: [libc::iovec; BURST] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BURST] = unsafe { zeroed() };
        let mut count = 0;
        for ((packet, part), message) in packets.zip(&mut parts).zip(&mut messages) {
            *part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            let header = &mut message.msg_hdr;
            header.msg_name = address.0.as_mut_ptr().cast();
            header.msg_namelen = address_len as libc::socklen_t;
            header.msg_iov = part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control_len;
            count += 1;
        }
        // SAFETY: `count` messages name one part each, borrowed for 'a, and an address and control messages of the lengths told,
        // all alive until the return.
        unsafe { mmsg::send(fd.as_fd(), &mut messages[..count]) }
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
    /// Several datagrams in a row of this length, but for the last one, which may be shorter.
    pub(super) run_of: Option<NonZeroUsize>,
}

impl Default for Received {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self { len: 0, cut: false, src: any, dst: any, src_port: 0, tos: 0, ttl: 0, run_of: None }
    }
}

/// Receives up to [`BURST`] packets that wait into the slots of a burst, each [`TAG`] bytes into its slot; gives how many.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    slots: &mut [u8],
    out: &mut [Received; BURST],
) -> nix::Result<usize> {
    let mut addresses = [Address::default(); BURST];
    let mut controls = [Control::default(); BURST];
    // SAFETY: all zeros are valid `iovec`s and `mmsghdr`s: nothing named.
    let mut parts: [libc::iovec; BURST] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { zeroed() };
    let mut count = 0;
    for ((((slot, address), control), part), message) in
        slots.chunks_exact_mut(SLOT).zip(&mut addresses).zip(&mut controls).zip(&mut parts).zip(&mut messages)
    {
        *part = libc::iovec { iov_base: slot[TAG..].as_mut_ptr().cast(), iov_len: MAX_RECEIVED };
        let header = &mut message.msg_hdr;
        header.msg_name = address.0.as_mut_ptr().cast();
        header.msg_namelen = size_of::<Address>() as libc::socklen_t;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>();
        count += 1;
    }
    // SAFETY: `count` messages name an address, a part and a control buffer each, all writable, distinct, of the lengths told (a slot
    // is TAG + MAX_RECEIVED bytes), and alive until the return.
    let received = unsafe { mmsg::receive(fd, &mut messages[..count]) }?;
    for (((message, address), control), out) in
        messages.iter().zip(&addresses).zip(&controls).zip(out.iter_mut()).take(received)
    {
        let header = &message.msg_hdr;
        *out = Received {
            len: message.msg_len as usize,
            cut: header.msg_flags & libc::MSG_TRUNC != 0,
            ..Received::default()
        };
        if let Some((src, port)) = address.read() {
            (out.src, out.src_port) = (src, port);
        }
        control.read(header.msg_controllen, out);
    }
    Ok(received)
}
