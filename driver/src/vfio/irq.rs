//! Interrupts: the request that assigns eventfds to vectors.

use flowlift_bus::{BusError, IrqKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use vfio_bindings::bindings::vfio as sys;

/// VFIO's number of a kind of interrupt.
pub(super) fn index(kind: IrqKind) -> u32 {
    match kind {
        IrqKind::Msix => sys::VFIO_PCI_MSIX_IRQ_INDEX,
        IrqKind::Err => sys::VFIO_PCI_ERR_IRQ_INDEX,
        IrqKind::Req => sys::VFIO_PCI_REQ_IRQ_INDEX,
    }
}

/// A request about interrupts.
#[derive(Debug)]
pub(super) struct Request {
    /// The `vfio_irq_set`.
    pub(super) bytes: Vec<u8>,
    /// It switches the kind off as a whole.
    pub(super) off: bool,
}

/// Builds a `vfio_irq_set`: size, flags, index, first vector, number of vectors (u32 each), then an eventfd for each, -1 for
/// none.
///
/// When all vectors are to be without one, the kind is switched off as a whole (number 0 and no data): the kernel
/// refuses to take eventfds from vectors that never had any.
///
/// # Errors
/// Vectors that the function does not have.
pub(super) fn request(
    kind: IrqKind,
    count: u32,
    start: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> Result<Request, BusError> {
    let fits =
        u32::try_from(fds.len()).ok().and_then(|n| n.checked_add(start)).is_some_and(|end| end <= count);
    if !fits {
        return Err(BusError::OutOfRange {
            what: "the interrupt vectors",
            offset: start.into(),
            len: fds.len(),
            size: count.into(),
        });
    }
    let off = start == 0 && fds.len() == count as usize && fds.iter().all(Option::is_none);
    let (data, n) =
        if off { (sys::VFIO_IRQ_SET_DATA_NONE, 0) } else { (sys::VFIO_IRQ_SET_DATA_EVENTFD, fds.len()) };
    let len = (5 + n) * 4;
    let mut bytes = Vec::with_capacity(len);
    for word in [len as u32, data | sys::VFIO_IRQ_SET_ACTION_TRIGGER, index(kind), start, n as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    for fd in &fds[..n] {
        bytes.extend(fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes());
    }
    Ok(Request { bytes, off })
}

/// A `vfio_irq_set` that lets the kernel raise one vector itself.
pub(super) fn trigger(kind: IrqKind, vector: u32) -> Vec<u8> {
    let flags = sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
    [20, flags, index(kind), vector, 1].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn words(bytes: &[u8]) -> Vec<i32> {
        bytes.chunks_exact(4).map(|w| i32::from_ne_bytes(w.try_into().unwrap())).collect()
    }

    #[test]
    fn vectors_without_an_eventfd_are_minus_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        let r = request(IrqKind::Msix, 5, 2, &[Some(fd), None, Some(fd)]).unwrap();
        assert_eq!(words(&r.bytes), [32, 0x24, 2, 2, 3, fd.as_raw_fd(), -1, fd.as_raw_fd()]);
    }

    #[test]
    fn taking_all_away_switches_the_kind_off() {
        assert_eq!(words(&request(IrqKind::Msix, 2, 0, &[None, None]).unwrap().bytes), [20, 0x21, 2, 0, 0]);
        assert_eq!(
            words(&request(IrqKind::Msix, 2, 1, &[None]).unwrap().bytes),
            [24, 0x24, 2, 1, 1, -1],
            "one is left"
        );
        assert_eq!(words(&request(IrqKind::Req, 1, 0, &[None]).unwrap().bytes), [20, 0x21, 4, 0, 0]);
    }

    #[test]
    fn vectors_past_the_functions_are_refused() {
        for (count, start, n) in [(2, 0, 3), (2, 2, 1), (0, 0, 1), (5, u32::MAX, 2)] {
            assert!(request(IrqKind::Msix, count, start, &vec![None; n]).is_err(), "{count} {start} {n}");
        }
    }
}
