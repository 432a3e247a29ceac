//! The ioctls of /dev/net/tun (`<linux/if_tun.h>`).
#![allow(unsafe_code)] // ioctls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

use crate::PortError;
use crate::offload::vnet;

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
/// Since Linux 6.2.
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// Attaches to the TAP device `name`, which is made if it is not there. With `vnet`, each frame is preceded by a `virtio_net_hdr`.
pub(super) fn attach(name: &str, vnet: bool) -> Result<File, PortError> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`, which is integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = interface_name(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | if vnet { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes an `ifreq` and writes the name back into it; it lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

fn check(result: libc::c_int) -> io::Result<()> {
    Errno::result(result)?;
    Ok(())
}

/// Tells the host's stack that it need not finish frames.
pub(super) fn set_offloads(file: &File) -> io::Result<()> {
    let size = vnet::LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let set = |offloads: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    };
    set(tcp | TUN_F_USO4 | TUN_F_USO6).or_else(|_| set(tcp))
}

/// Whether the device stays when nobody is attached.
pub(super) fn set_persistent(file: &File, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

/// Whether the device has a carrier.
pub(super) fn set_carrier(file: &File, carrier: bool) -> io::Result<()> {
    let carrier = libc::c_int::from(carrier);
    // SAFETY: TUNSETCARRIER reads an int, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETCARRIER, &raw const carrier) })
}

/// Whether the file still has its device, in whatever namespace that is now.
pub(super) fn is_attached(file: &File) -> bool {
    // SAFETY: all zeros are a valid `ifreq`, which is integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) }).is_ok()
}

/// Whether the file has the device that has this name now.
pub(super) fn is_attached_to(file: &File, name: &str) -> Result<bool, PortError> {
    // SAFETY: all zeros are a valid `ifreq`, which is integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    Ok(request.ifr_name == interface_name(name)?)
}

/// A device's name as the kernel takes it: 1 to 15 bytes, NUL-terminated.
fn interface_name(name: &str) -> Result<[libc::c_char; libc::IFNAMSIZ], PortError> {
    let mut out = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device's name has 1 to 15 bytes").into());
    }
    for (to, from) in out.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(out)
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
