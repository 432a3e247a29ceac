//! System calls on packet sockets that no safe wrapper has: options, ancillary data, many frames in a call.
#![allow(unsafe_code)] // Socket options and ancillary data that no safe wrapper has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::burst::{BURST, MAX_RECEIVED, SLOT, TAG};
use crate::mmsg;
use crate::offload::vnet;
use crate::sockopt::{receive_buffer, set};

/// `PACKET_IGNORE_OUTGOING` of `<linux/if_packet.h>`: frames that the host sends are not received.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID`: a tag was taken off, and its TPID is known.
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TPID_VALID: u32 = 1 << 6;
/// Bytes of received frames that may wait in the socket. Each counts with its buffers, up to twice its length: room for about
/// a hundred of the largest.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

/// Opens a socket that receives every frame that comes in on the device with this index.
pub(super) fn open(index: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol nothing is received before the socket is bound to the device.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
    receive_buffer(&socket, RECEIVE_BUFFER)?;
    // SAFETY: all zeros are a valid `sockaddr_ll`, which is integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is a whole `sockaddr_ll`, and its size is told.
    Errno::result(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    let membership = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

/// The device that the socket is bound to: its index, or `None` once it has gone.
pub(super) fn device(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // SAFETY: all zeros are a valid `sockaddr_ll`, which is integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is writable for the length that is told.
    Errno::result(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    // A socket whose device was unregistered, or moved to another namespace, is bound to the index -1.
    Ok(u32::try_from(address.sll_ifindex).ok().filter(|index| *index > 0))
}

/// Frames that the socket dropped since this was last asked.
pub(super) fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the statistics are writable for the length that is told.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    })?;
    Ok(stats.tp_drops)
}

/// One received frame.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    /// Bytes in the slot, behind the room for a tag.
    pub(super) len: usize,
    /// The tag that was taken off, as on the wire.
    pub(super) tag: Option<[u8; TAG]>,
    /// The frame was longer than the slot.
    pub(super) cut: bool,
}

/// Words, so that the control messages in it are aligned: room for a `tpacket_auxdata` (20 bytes) and its header (16).
type Control = [u64; 8];

/// Receives up to [`BURST`] frames that wait, without waiting for more; gives how many.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    headers: &mut [[u8; vnet::LEN]],
    slots: &mut [u8],
    out: &mut [Received; BURST],
) -> nix::Result<usize> {
    let mut control = [Control::default(); BURST];
    // SAFETY: all zeros are valid `iovec`s and `mmsghdr`s: nothing named.
    let mut parts: [[libc::iovec; 2]; BURST] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for ((((header, slot), control), parts), message) in headers
        .iter_mut()
        .zip(slots.chunks_exact_mut(SLOT))
        .zip(&mut control)
        .zip(&mut parts)
        .zip(&mut messages)
    {
        let frame = &mut slot[TAG..];
        *parts = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: vnet::LEN },
            libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: MAX_RECEIVED },
        ];
        let header = &mut message.msg_hdr;
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = parts.len();
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>();
        count += 1;
    }
    // SAFETY: `count` messages name two parts and a control buffer each, all writable, distinct, of the lengths told
    // (a slot is TAG + MAX_RECEIVED bytes), and alive until the return.
    let received = unsafe { mmsg::receive(socket, &mut messages[..count]) }?;
    for (message, out) in messages.iter().zip(out.iter_mut()).take(received) {
        *out = Received {
            len: (message.msg_len as usize).saturating_sub(vnet::LEN),
            tag: tag(&message.msg_hdr),
            cut: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
    }
    Ok(received)
}

/// The VLAN tag in a received message's ancillary data.
fn tag(header: &libc::msghdr) -> Option<[u8; TAG]> {
    // SAFETY: the kernel filled the control buffer that the header names, which is alive; the macros stay within its length.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(std::ptr::from_ref(header)) };
    while !message.is_null() {
        // SAFETY: not null, so it is a whole header in the buffer.
        let head = unsafe { *message };
        if head.cmsg_level == libc::SOL_PACKET && head.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: a message of this type has a `tpacket_auxdata`, which may be unaligned.
            let aux: libc::tpacket_auxdata =
                unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(message).cast()) };
            if aux.tp_status & VLAN_VALID != 0 {
                let tpid = if aux.tp_status & VLAN_TPID_VALID != 0 { aux.tp_vlan_tpid } else { 0x8100 };
                let ([a, b], [c, d]) = (tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes());
                return Some([a, b, c, d]);
            }
        }
        // SAFETY: as for the first one.
        message = unsafe { libc::CMSG_NXTHDR(std::ptr::from_ref(header), message) };
    }
    None
}

/// Sends frames with their headers, without waiting: how many were taken, at least one. At most [`BURST`] are tried.
///
/// # Errors
/// What the first frame met.
pub(super) fn send<'a>(
    socket: BorrowedFd<'_>,
    frames: impl Iterator<Item = (&'a [u8; vnet::LEN], &'a [u8])>,
) -> nix::Result<usize> {
    // SAFETY: all zeros are valid `iovec`s and `mmsghdr`s: nothing named.
    let mut parts: [[libc::iovec; 2]; BURST] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for (((header, frame), parts), message) in frames.zip(&mut parts).zip(&mut messages) {
        *parts = [
            libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: vnet::LEN },
            libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() },
        ];
        message.msg_hdr.msg_iov = parts.as_mut_ptr();
        message.msg_hdr.msg_iovlen = parts.len();
        count += 1;
    }
    // SAFETY: `count` messages name two parts each, borrowed for 'a and so alive until the return.
    unsafe { mmsg::send(socket, &mut messages[..count]) }
}
