//! What stands beside a packet in a call: its address, and control messages that choose or tell what is in its IP header.

use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;

use nix::libc;

use super::socket::{Outer, Received};

/// `UDP_SEGMENT` of `<linux/udp.h>`: cut what is sent into datagrams of this length, 16 bits.
const UDP_SEGMENT: libc::c_int = 103;
/// `UDP_GRO` of `<linux/udp.h>`: what is received are datagrams of this length, 32 bits.
pub(super) const UDP_GRO: libc::c_int = 104;

/// A socket address of IPv4 or IPv6, in aligned words.
#[derive(Clone, Copy, Default)]
pub(super) struct Address(pub(super) [u64; 4]);

impl Address {
    /// Writes `to` and a port, which raw sockets want to be 0; gives the length.
    pub(super) fn write(&mut self, to: IpAddr, port: u16) -> usize {
        let (words, len) = match to {
            IpAddr::V4(v4) => {
                let mut bytes = [0; 32];
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&port.to_be_bytes());
                bytes[4..8].copy_from_slice(&v4.octets());
                (bytes, size_of::<libc::sockaddr_in>())
            }
            IpAddr::V6(v6) => {
                let mut bytes = [0; 32];
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&port.to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.octets());
                (bytes, size_of::<libc::sockaddr_in6>())
            }
        };
        for (word, bytes) in self.0.iter_mut().zip(words.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        len
    }

    /// Address and port of what the kernel wrote.
    pub(super) fn read(&self) -> Option<(IpAddr, u16)> {
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = word.to_ne_bytes();
        }
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
            libc::AF_INET => {
                let address: [u8; 4] = bytes[4..8].try_into().ok()?;
                Some((Ipv4Addr::from(address).into(), port))
            }
            libc::AF_INET6 => {
                let address: [u8; 16] = bytes[8..24].try_into().ok()?;
                Some((Ipv6Addr::from(address).into(), port))
            }
            _ => None,
        }
    }
}
const _: () =
    assert!(offset_of!(libc::sockaddr_in, sin_addr) == 4 && offset_of!(libc::sockaddr_in6, sin6_addr) == 8);

/// Control messages, in words so that they are aligned: room for the largest of each kind, packet information (20 bytes) and three
/// integers, with a header of 16 bytes each.
#[derive(Clone, Copy, Default)]
pub(super) struct Control(pub(super) [u64; 16]);

impl Control {
    /// Writes what `outer` chooses, and for a run of datagrams how long each but the last is; gives the length.
    pub(super) fn write(&mut self, outer: &Outer, run_of: Option<u16>) -> usize {
        let mut used = 0;
        let mut put = |level: libc::c_int, kind: libc::c_int, payload: &[u8]| {
            // `struct cmsghdr`: length, level, type.
            let len = size_of::<libc::cmsghdr>() + payload.len();
            let mut bytes = [0; 40];
            bytes[..8].copy_from_slice(&(len as u64).to_ne_bytes());
            bytes[8..12].copy_from_slice(&level.to_ne_bytes());
            bytes[12..16].copy_from_slice(&kind.to_ne_bytes());
            if let Some(room) = bytes.get_mut(16..16 + payload.len()) {
                room.copy_from_slice(payload);
            }
            let words = len.div_ceil(8);
            for (word, bytes) in self.0.iter_mut().skip(used).zip(bytes.as_chunks::<8>().0).take(words) {
                *word = u64::from_ne_bytes(*bytes);
            }
            used += words;
        };
        let (ttl, tos) = (libc::c_int::from(outer.ttl), libc::c_int::from(outer.tos));
        match outer.src {
            _ if outer.dst.is_ipv4() => {
                // `struct in_pktinfo`: interface, source, and the destination of received packets.
                let mut info = [0; 12];
                if let IpAddr::V4(src) = outer.src {
                    info[4..8].copy_from_slice(&src.octets());
                }
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
                put(libc::IPPROTO_IP, libc::IP_TTL, &ttl.to_ne_bytes());
                put(libc::IPPROTO_IP, libc::IP_TOS, &tos.to_ne_bytes());
            }
            src => {
                // `struct in6_pktinfo`: source, interface.
                let mut info = [0; 20];
                if let IpAddr::V6(src) = src {
                    info[..16].copy_from_slice(&src.octets());
                }
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
                put(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &ttl.to_ne_bytes());
                put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &tos.to_ne_bytes());
            }
        }
        if let Some(len) = run_of {
            put(libc::IPPROTO_UDP, UDP_SEGMENT, &len.to_ne_bytes());
        }
        used * 8
    }

    /// Reads what the kernel wrote into the first `len` bytes.
    pub(super) fn read(&self, len: usize, received: &mut Received) {
        let mut bytes = [0; 128];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = word.to_ne_bytes();
        }
        let mut rest = bytes.get(..len).unwrap_or_default();
        while let Some((head, _)) = rest.split_first_chunk::<16>() {
            let word = |at: usize| {
                head.get(at..at + 4).and_then(<[u8]>::first_chunk).map(|w| i32::from_ne_bytes(*w))
            };
            let len = head.first_chunk().map_or(0, |len| u64::from_ne_bytes(*len) as usize);
            let Some(payload) = rest.get(16..len) else { break };
            let word_or_byte = payload.first_chunk().map(|n| i32::from_ne_bytes(*n));
            let integer = word_or_byte.unwrap_or(payload.first().copied().unwrap_or(0).into());
            let number = integer as u8;
            match (word(8).unwrap_or(0), word(12).unwrap_or(0)) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    if let Some(dst) = payload.get(8..12).and_then(<[u8]>::first_chunk::<4>) {
                        received.dst = Ipv4Addr::from(*dst).into();
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    if let Some(dst) = payload.first_chunk::<16>() {
                        received.dst = Ipv6Addr::from(*dst).into();
                    }
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    received.ttl = number;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    received.tos = number;
                }
                (libc::IPPROTO_UDP, UDP_GRO) => {
                    received.run_of = usize::try_from(integer).ok().and_then(NonZeroUsize::new);
                }
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}
const _: () = assert!(size_of::<libc::cmsghdr>() == 16, "control messages are written for 64-bit systems");
