//! The kernel's VFIO calls that vfio-ioctls does not have, or hides the failure of.
//!
//! Numbers and structures are those of `linux/vfio.h`, by way of vfio-bindings. Calls whose structure has a tail of
//! variable length take bytes: the caller builds or parses them, safely.

use nix::errno::Errno;
use nix::libc;
use std::io;
use std::os::fd::AsRawFd;
use vfio_bindings::bindings::vfio as sys;

/// `_IO(';', 100 + n)`: VFIO's requests carry no size.
const fn request(n: u32) -> libc::c_ulong {
    ((sys::VFIO_TYPE as libc::c_ulong) << 8) | (sys::VFIO_BASE + n) as libc::c_ulong
}

/// VFIO_DEVICE_GET_REGION_INFO.
pub(super) const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
/// VFIO_DEVICE_SET_IRQS.
pub(super) const DEVICE_SET_IRQS: libc::c_ulong = request(10);
/// VFIO_DEVICE_RESET.
pub(super) const DEVICE_RESET: libc::c_ulong = request(11);
/// VFIO_IOMMU_GET_INFO.
pub(super) const IOMMU_GET_INFO: libc::c_ulong = request(12);

/// A structure that a call takes.
///
/// # Safety
/// `REQUEST` is the kernel's call that takes this structure, which begins with its size, and the kernel reads and writes no more than the structure,
/// beyond what addresses in it point to.
pub(super) unsafe trait Call {
    /// Number of the call.
    const REQUEST: libc::c_ulong;
}

/// The one way into the kernel.
///
/// # Safety
/// `argument` is null where the call takes none, and otherwise what the call takes, beginning with its size in bytes; the
/// kernel reads and writes no more than that.
unsafe fn enter(file: &impl AsRawFd, call: libc::c_ulong, argument: *mut u8) -> nix::Result<()> {
    #[cfg(test)]
    // SAFETY: the caller's promise.
    if let Some(answer) = unsafe { super::fake::answer(call, argument) } {
        return answer;
    }
    // SAFETY: the caller's promise.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), call, argument) }).map(drop)
}

/// Makes a call.
///
/// # Safety
/// Addresses in the structure point to what the call says they do.
pub(super) unsafe fn call<C: Call>(file: &impl AsRawFd, argument: &mut C) -> io::Result<()> {
    // SAFETY: the structure is the one that the call takes, by `Call`; its addresses are the caller's to answer for.
    Ok(unsafe { enter(file, C::REQUEST, std::ptr::from_mut(argument).cast()) }?)
}

// SAFETY: `vfio_device_info` begins with its size; it holds no addresses.
unsafe impl Call for sys::vfio_device_info {
    const REQUEST: libc::c_ulong = request(7);
}
// SAFETY: as above, for `vfio_irq_info`.
unsafe impl Call for sys::vfio_irq_info {
    const REQUEST: libc::c_ulong = request(9);
}
// SAFETY: as above; the memory that it names is the caller's to answer for.
unsafe impl Call for sys::vfio_iommu_type1_dma_map {
    const REQUEST: libc::c_ulong = request(13);
}

/// Largest answer that is taken: an IOMMU with many holes has a range for each.
const LARGEST: usize = 1 << 16;

/// Structures begin with their size in bytes; none without that word.
fn size(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b) as usize)
}

/// A call whose answer has a tail: asks for its size, then for all of it. `head` is the structure without the tail,
/// its size in its first word.
pub(super) fn with_tail(file: &impl AsRawFd, call: libc::c_ulong, head: &[u8]) -> nix::Result<Vec<u8>> {
    let mut bytes = head.to_vec();
    // The tail may have grown in between; three times is a device that plays games.
    for _ in 0..3 {
        if size(&bytes) != Some(bytes.len()) {
            return Err(Errno::EINVAL);
        }
        let sent = bytes.len();
        // SAFETY: `bytes` begins with its own length, checked above, and the kernel writes no more than that.
        unsafe { enter(file, call, bytes.as_mut_ptr()) }?;
        let whole = size(&bytes).unwrap_or(0);
        if whole <= sent {
            return Ok(bytes);
        }
        if whole > LARGEST {
            return Err(Errno::EMSGSIZE);
        }
        bytes.truncate(head.len());
        bytes.copy_from_slice(head);
        bytes.resize(whole, 0);
        bytes[..4].copy_from_slice(&(whole as u32).to_ne_bytes());
    }
    Err(Errno::EAGAIN)
}

/// What a device is.
pub(super) fn device_info(file: &impl AsRawFd) -> io::Result<sys::vfio_device_info> {
    let mut info =
        sys::vfio_device_info { argsz: size_of::<sys::vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: no addresses in it.
    unsafe { call(file, &mut info) }?;
    Ok(info)
}

/// What there is of a kind of interrupt.
pub(super) fn irq_info(file: &impl AsRawFd, index: u32) -> io::Result<sys::vfio_irq_info> {
    let mut info =
        sys::vfio_irq_info { argsz: size_of::<sys::vfio_irq_info>() as u32, index, ..Default::default() };
    // SAFETY: no addresses in it.
    unsafe { call(file, &mut info) }?;
    Ok(info)
}

/// Function level reset, or what the kernel has in its place.
pub(super) fn reset(file: &impl AsRawFd) -> nix::Result<()> {
    // SAFETY: the call takes no argument.
    unsafe { enter(file, DEVICE_RESET, std::ptr::null_mut()) }
}

/// Assigns eventfds, by a `vfio_irq_set` with its tail.
pub(super) fn set_irqs(file: &impl AsRawFd, request: &[u8]) -> nix::Result<()> {
    if size(request) != Some(request.len()) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: `request` begins with its own length, checked above; the kernel reads no more than that, and writes nothing.
    unsafe { enter(file, DEVICE_SET_IRQS, request.as_ptr().cast_mut()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        // _IO(';', 107) and on, as strace prints them.
        let structures = (
            <sys::vfio_device_info as Call>::REQUEST,
            <sys::vfio_irq_info as Call>::REQUEST,
            <sys::vfio_iommu_type1_dma_map as Call>::REQUEST,
        );
        assert_eq!(structures, (0x3b6b, 0x3b6d, 0x3b71));
        assert_eq!(DEVICE_RESET, 0x3b6f);
        assert_eq!((DEVICE_GET_REGION_INFO, DEVICE_SET_IRQS, IOMMU_GET_INFO), (0x3b6c, 0x3b6e, 0x3b70));
    }

    #[test]
    fn a_reset_that_fails_says_so() {
        let none = File::open("/dev/null").unwrap();
        assert_eq!(reset(&none), Err(Errno::ENOTTY));
    }

    #[test]
    fn requests_that_lie_about_their_length_never_reach_the_kernel() {
        let none = File::open("/dev/null").unwrap();
        for bytes in [&[][..], &[9, 0, 0, 0], &[1, 2], &[0xff; 8]] {
            assert_eq!(set_irqs(&none, bytes), Err(Errno::EINVAL), "{bytes:?}");
            assert_eq!(with_tail(&none, IOMMU_GET_INFO, bytes), Err(Errno::EINVAL), "{bytes:?}");
        }
    }
}
