//! Runs of UDP packets that pass the host's stack as one (`UDP_SEGMENT`, since Linux 4.18): of one flow, and of one length but for the
//! last one.
//!
//! Only a UDP socket sends them, and its source port is that which it is bound to, while a tunnel has one for each flow within. So a
//! flow that sends much has a socket of its own, until the tunnel sends some seconds later and the flow has not. It is bound to an
//! address that no packet can be for, and takes none from anybody; packets leave with the address that is chosen for each. What stays is
//! that nobody else can bind this port on all addresses for so long, unless both share it (SO_REUSEADDR).
#![allow(unsafe_code)] // A packet in parts, by sendmmsg.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt};

use super::IpVersion;
use super::control::{Address, Control};
use super::queue::UDP_LEN;
use super::socket::{FLAGS, Outer, family, no_flow_label, set_dont_fragment};
use crate::mmsg;
use crate::sockopt::{receive_nothing, send_buffer, set};

/// Packets of a run at most: `UDP_MAX_SEGMENTS` as it was at first; later kernels take more.
pub(super) const RUN_MAX: usize = 64;
/// Bytes of a run at most, UDP headers included: together they are one packet of IPv4 or IPv6 to the stack.
pub(super) const RUN_BYTES: usize = 65_535 - 40;
/// A run of so many is reason enough for a socket.
const WORTH_A_SOCKET: usize = 8;
/// Sockets at most, and how long one stays that is not used.
const SOCKETS: usize = 32;
const IDLE: Duration = Duration::from_secs(5);
/// Bytes that may wait in a socket.
const SEND_BUFFER: libc::c_int = 4 << 20;
/// Where the sockets are bound: the dummy address of IPv4 (RFC 7600), and one of IPv6 whose packets are discarded (RFC 6666).
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// A source port's socket.
#[derive(Debug)]
struct Bound {
    version: IpVersion,
    port: u16,
    /// `None` if it could not be had.
    fd: Option<OwnedFd>,
    dont_fragment: bool,
    used: Instant,
}

/// Sends runs of packets.
#[derive(Debug, Default)]
pub(super) struct RunSender {
    bound: Vec<Bound>,
    /// When idle sockets were looked for.
    looked: Option<Instant>,
}

impl RunSender {
    /// Sends a run of `count` packets, which begin with their UDP headers, with a checksum each. False if it is better or only possible to
    /// send them one by one: there are few of them, their port is another's, or the system refuses for a reason that the single
    /// packets will tell, or not meet.
    pub(super) fn send<'a>(
        &mut self,
        outer: &Outer,
        count: usize,
        packets: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> bool {
        let Some((&[a, b, c, d], len)) =
            packets.clone().next().and_then(|first| Some((first.first_chunk()?, first.len())))
        else {
            return false;
        };
        let (src_port, dst_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let Ok(run_of) = u16::try_from(len.saturating_sub(UDP_LEN)) else { return false };
        let Some(bound) = self.socket(outer.version(), src_port, count >= WORTH_A_SOCKET) else {
            return false;
        };
        let Some(fd) = &bound.fd else { return false };
        if bound.dont_fragment != outer.dont_fragment {
            if set_dont_fragment(fd, bound.version, outer.dont_fragment).is_err() {
                return false;
            }
            bound.dont_fragment = outer.dont_fragment;
        }
        let mut address = Address::default();
        let address_len = address.write(outer.dst, dst_port);
        let mut control = Control::default();
        let control_len = control.write(outer, Some(run_of));
        // SAFETY: all zeros are valid `iovec`s: nothing named.
        let mut parts: [libc::iovec; RUN_MAX] = unsafe { zeroed() };
        let mut filled = 0;
        for (packet, part) in packets.zip(&mut parts) {
            // The socket makes UDP's headers.
            let payload = packet.get(UDP_LEN..).unwrap_or_default();
            *part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
            filled += 1;
        }
        // SAFETY: all zeros are a valid `mmsghdr`: nothing named.
        let mut message: libc::mmsghdr = unsafe { zeroed() };
        let header = &mut message.msg_hdr;
        header.msg_name = address.0.as_mut_ptr().cast();
        header.msg_namelen = address_len as libc::socklen_t;
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = filled;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control_len;
        // SAFETY: the message names `filled` parts, borrowed for 'a, and an address and control messages of the lengths told, all
        // alive until the return.
        unsafe { mmsg::send(fd.as_fd(), std::slice::from_mut(&mut message)) }.is_ok_and(|sent| sent == 1)
    }

    /// Closes the sockets of flows that send no more.
    pub(super) fn close_idle(&mut self) {
        if self.bound.is_empty() {
            return;
        }
        let now = Instant::now();
        if self.looked.is_none_or(|looked| now - looked >= IDLE) {
            self.looked = Some(now);
            self.bound.retain(|b| now - b.used < IDLE);
        }
    }

    /// The socket of a source port; if there is none, a new one if it `may_open`.
    fn socket(&mut self, version: IpVersion, port: u16, may_open: bool) -> Option<&mut Bound> {
        let now = Instant::now();
        let n = match self.bound.iter().position(|b| (b.version, b.port) == (version, port)) {
            Some(n) => n,
            None if !may_open => return None,
            None => {
                if self.bound.len() >= SOCKETS
                    && let Some((oldest, _)) = self.bound.iter().enumerate().min_by_key(|(_, b)| b.used)
                {
                    self.bound.swap_remove(oldest);
                }
                let fd = open(version, port).ok();
                self.bound.push(Bound { version, port, fd, dont_fragment: false, used: now });
                self.bound.len() - 1
            }
        };
        let bound = self.bound.get_mut(n)?;
        // A port that could not be had counts as idle, and so is tried again some time.
        if bound.fd.is_some() {
            bound.used = now;
        }
        Some(bound)
    }
}

/// A socket that sends from `port`, with any of the host's addresses, and receives nothing.
fn open(version: IpVersion, port: u16) -> io::Result<OwnedFd> {
    let fd = socket(family(version), SockType::Datagram, FLAGS, None)?;
    receive_nothing(&fd)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    send_buffer(&fd, SEND_BUFFER)?;
    // Only until it is bound: the addresses that packets leave with are looked at again.
    let (level, name) = match version {
        IpVersion::V4 => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        IpVersion::V6 => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    };
    set(&fd, level, name, &1)?;
    match version {
        IpVersion::V4 => bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(NOWHERE_V4, port)))?,
        IpVersion::V6 => {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(NOWHERE_V6, port, 0, 0)))?;
            no_flow_label(&fd)?;
        }
    }
    set(&fd, level, name, &0)?;
    set_dont_fragment(&fd, version, false)?;
    Ok(fd)
}
