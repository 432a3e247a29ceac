//! A network device of the host by a packet socket (AF_PACKET). Needs CAP_NET_RAW.
//!
//! Takes every frame that comes in on the device, whoever it is for, and none that the host sends; the host's stack sees them
//! as well. A VLAN tag that the device or the kernel took off is put back. A frame that the host of the other end left
//! for hardware to finish (checksum offload, segmentation, as between veth devices) comes unfinished: switch those
//! offloads off there.
#![allow(unsafe_code)] // Socket options and ancillary data that no safe wrapper has.

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::{Frame, FrameSink, FrameSource, MAX_FRAME, PortError};

/// `PACKET_IGNORE_OUTGOING` of `<linux/if_packet.h>`: frames that the host sends are not received.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID`: a tag was taken off, and its TPID is known.
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TPID_VALID: u32 = 1 << 6;
/// Both MAC addresses: what stands before a tag.
const ADDRESSES: usize = 12;
/// A VLAN tag.
const TAG: usize = 4;

/// A network device.
#[derive(Debug)]
pub struct PacketPort {
    socket: OwnedFd,
    /// The frame lent last, from offset [`TAG`] on: there is room for a tag in front.
    lent: Vec<u8>,
}

impl PacketPort {
    /// Opens the device `name`, in promiscuous mode.
    ///
    /// # Errors
    /// No such device, or no rights.
    pub fn open(name: &str) -> Result<PacketPort, PortError> {
        let index = if_nametoindex(name).map_err(io::Error::from)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol nothing is received before the socket is bound to the device.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(io::Error::from)?;
        option(&socket, PACKET_IGNORE_OUTGOING, &1)?;
        option(&socket, libc::PACKET_AUXDATA, &1)?;
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
        })
        .map_err(io::Error::from)?;
        let membership = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        option(&socket, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        Ok(PacketPort { socket, lent: vec![0; TAG + MAX_FRAME] })
    }
}

/// Sets an option of the packet level.
fn option<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is a whole `T`, and its size is told; the kernel only reads it.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Receives one frame: its length, and the tag that was taken off, as on the wire.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<(usize, Option<[u8; TAG]>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Words, so that the control messages in it are aligned.
    let mut ancillary = [0u64; 16];
    // SAFETY: all zeros are a valid `msghdr`: no name, no parts, no control.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = ancillary.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&ancillary);
    // SAFETY: the header names one part and one control buffer, both writable, with their lengths, alive until the return.
    let len =
        Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) })?;
    let mut tag = None;
    // SAFETY: the kernel filled the control buffer that the header names; the macros stay within its length.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
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
                tag = Some([a, b, c, d]);
            }
        }
        // SAFETY: as for the first one.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok((len as usize, tag))
}

impl AsFd for PacketPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl FrameSource for PacketPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        match receive(self.socket.as_fd(), &mut self.lent[TAG..]) {
            Ok((len, Some(tag))) if len >= ADDRESSES => {
                self.lent.copy_within(TAG..TAG + ADDRESSES, 0);
                self.lent[ADDRESSES..ADDRESSES + TAG].copy_from_slice(&tag);
                Ok(Some(Frame::new(&self.lent[..TAG + len])))
            }
            Ok((len, _)) => Ok(Some(Frame::new(&self.lent[TAG..TAG + len]))),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}

impl FrameSink for PacketPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            return Err(PortError::TooLong { len });
        }
        match send(self.socket.as_raw_fd(), frame.data, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Err(PortError::Full),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}
