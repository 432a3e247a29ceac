//! TAP devices: the kernel's end is a network device of the host.
//!
//! Frames come whole, with their checksums complete and not larger than the device's MTU and header: offloads are not asked
//! for. A device that is not there is made, which needs CAP_NET_ADMIN; one that was made before for this user
//! (`ip tuntap add mode tap user ...`) needs no rights, and stays when the port is dropped.
#![allow(unsafe_code)] // One ioctl.

use nix::errno::Errno;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::{Frame, FrameSink, FrameSource, MAX_FRAME, PortError};

/// The program's end of a TAP device.
#[derive(Debug)]
pub struct TapPort {
    file: File,
    /// The frame lent last.
    lent: Vec<u8>,
}

impl TapPort {
    /// Attaches to the TAP device `name`.
    ///
    /// # Errors
    /// No such name, no rights, no /dev/net/tun, or another program has the device.
    pub fn open(name: &str) -> Result<TapPort, PortError> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: all zeros are a valid `ifreq`, which is integers and bytes.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = interface_name(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF takes an `ifreq` and writes the name back into it; it lives until the call returns.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
            .map_err(std::io::Error::from)?;
        Ok(TapPort { file, lent: vec![0; MAX_FRAME] })
    }
}

/// A device's name as the kernel takes it: 1 to 15 bytes, NUL-terminated.
fn interface_name(name: &str) -> Result<[libc::c_char; libc::IFNAMSIZ], PortError> {
    let mut out = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "a device's name has 1 to 15 bytes",
        )
        .into());
    }
    for (to, from) in out.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(out)
}

impl AsFd for TapPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameSource for TapPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        match (&self.file).read(&mut self.lent) {
            Ok(len) => Ok(Some(Frame::new(&self.lent[..len]))),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl FrameSink for TapPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            return Err(PortError::TooLong { len });
        }
        match (&self.file).write(frame.data) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(PortError::Full),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a\0b"] {
            assert!(interface_name(name).is_err(), "{name:?}");
        }
        let name = interface_name("fifteen-bytes-x").unwrap();
        assert_eq!((name[14], name[15]), (b'x' as libc::c_char, 0));
    }
}
