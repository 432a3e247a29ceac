//! TAP devices: the kernel's end is a network device of the host.
//!
//! A device that is not there is made, which needs CAP_NET_ADMIN; one that was made before for this user
//! (`ip tuntap add mode tap user ...`) needs no rights, and stays when the port is dropped.
//!
//! Through a [`TapPort`] frames come whole: offloads are not asked for. An [`InternalPort`] takes and gives them unfinished
//! ([`crate::offload`]), and its device can outlive the program.

mod device;

use std::fs::File;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::libc;

use crate::burst::{BURST, Burst, MAX_RECEIVED};
use crate::offload::{segment, vlan_tags, vnet};
use crate::stats::{Shared, add};
use crate::whole::Whole;
use crate::{
    BurstSource, Frame, FrameSink, FrameSource, LinkState, MAX_FRAME, MIN_FRAME, PortError, PortStats,
};

/// The program's end of a TAP device, for whole frames.
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
        Ok(Self::with(device::attach(name, false)?))
    }

    /// Takes over the file of a port that another program had ([`Self::as_fd`]), with the frames that wait in it. Its device may have
    /// another name by now, and be in another namespace.
    ///
    /// # Errors
    /// The file has no device any more.
    pub fn adopt(file: OwnedFd) -> Result<TapPort, PortError> {
        let file = File::from(file);
        if !device::is_attached(&file) {
            return Err(PortError::Link(LinkState::Gone));
        }
        Ok(Self::with(file))
    }

    fn with(file: File) -> TapPort {
        TapPort { file, lent: vec![0; MAX_FRAME] }
    }
}

/// What an error of a TAP device says.
fn tap_error(error: std::io::Error) -> PortError {
    match error.raw_os_error() {
        // Down; the file stays attached.
        Some(libc::EIO) => PortError::Link(LinkState::Down),
        // Deleted by somebody else: the file is attached to nothing.
        Some(libc::EBADFD) => PortError::Link(LinkState::Gone),
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => PortError::Full,
        _ => error.into(),
    }
}

fn is_idle(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
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
            Err(e) if is_idle(&e) => Ok(None),
            Err(e) => Err(tap_error(e)),
        }
    }
}

impl FrameSink for TapPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        frame.finish(|whole| {
            let len = whole.data.len();
            if len > MAX_FRAME {
                return Err(PortError::TooLong { len });
            }
            (&self.file).write(whole.data).map_err(tap_error)?;
            Ok(())
        })
    }
}

/// How an [`InternalPort`]'s device is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InternalConfig {
    /// The device stays when the program ends, with its addresses and routes, and is found again by its name; until then what the
    /// host sends to it is dropped. Otherwise it goes with the port, unless it was there before.
    pub persistent: bool,
}

/// An internal port: a TAP device by which the host itself is connected. Its addresses, MTU and state are set and followed by way
/// of [`crate::link`].
#[derive(Debug)]
pub struct InternalPort {
    sender: TapSender,
    whole: Whole,
}

impl InternalPort {
    /// Attaches to the device `name`, which is made if it is not there.
    ///
    /// # Errors
    /// No such name, no rights, no /dev/net/tun, or another program has the device; a device of that name that is no TAP
    /// device, or one without `virtio_net_hdr` (`vnet_hdr` of `ip tuntap`).
    pub fn open(name: &str, config: InternalConfig) -> Result<InternalPort, PortError> {
        Self::with(device::attach(name, true)?, config)
    }

    /// Takes over the file of a port that another program had for the device `name` ([`Self::as_fd`]).
    ///
    /// # Errors
    /// The file has no device any more, or another one.
    pub fn adopt(file: OwnedFd, name: &str, config: InternalConfig) -> Result<InternalPort, PortError> {
        let file = File::from(file);
        if !device::is_attached_to(&file, name)? {
            return Err(PortError::Link(LinkState::Gone));
        }
        Self::with(file, config)
    }

    fn with(file: File, config: InternalConfig) -> Result<InternalPort, PortError> {
        device::set_offloads(&file)?;
        device::set_persistent(&file, config.persistent)?;
        let shared = Arc::new(Tap { file, mtu: AtomicU32::new(u32::MAX), stats: Shared::default() });
        Ok(InternalPort { sender: TapSender { shared, scratch: Vec::new() }, whole: Whole::default() })
    }

    /// Another sender to the device, for another thread.
    pub fn sender(&self) -> TapSender {
        TapSender { shared: Arc::clone(&self.sender.shared), scratch: Vec::new() }
    }

    /// What the port and all its senders counted.
    pub fn stats(&self) -> PortStats {
        self.sender.shared.stats.load()
    }

    /// The device's MTU: longer frames are dropped and counted from now on, which Linux does not do for a TAP device. Any length is
    /// sent before this is told; call it when [`crate::link::LinkWatcher`] reports a change.
    pub fn set_mtu(&self, mtu: u32) {
        self.sender.shared.mtu.store(mtu, Relaxed);
    }

    /// Gives the device a carrier, or takes it away; it has one at first.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_carrier(&self, carrier: bool) -> Result<(), PortError> {
        Ok(device::set_carrier(&self.sender.shared.file, carrier)?)
    }

    /// True as long as the device is not deleted. It may have been moved to another namespace, which the port does not mind.
    pub fn is_attached(&self) -> bool {
        device::is_attached(&self.sender.shared.file)
    }

    /// Deletes the device, persistent or not, when the port and its senders are dropped.
    ///
    /// # Errors
    /// What the system says.
    pub fn delete(self) -> Result<(), PortError> {
        Ok(device::set_persistent(&self.sender.shared.file, false)?)
    }
}

impl AsFd for InternalPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.shared.file.as_fd()
    }
}

impl BurstSource for InternalPort {
    fn receive_burst(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError> {
        let Tap { file, stats, .. } = &*self.sender.shared;
        let (mut taken, mut frames, mut bytes) = (0, 0, 0);
        let mut result = Ok(());
        while taken < BURST {
            let mut header = [0; vnet::LEN];
            // The first slot again and again: it stays in the cache.
            let slot = burst.frame(0, MAX_RECEIVED, None);
            let read = (&*file).read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(slot)]);
            let len = match read {
                Ok(len) => len.saturating_sub(vnet::LEN),
                Err(e) if is_idle(&e) => break,
                Err(e) => {
                    result = Err(tap_error(e));
                    break;
                }
            };
            taken += 1;
            // A longer frame is cut to the buffers without notice; one that fills them may have been longer.
            if len >= MAX_RECEIVED {
                add(&stats.rx_giants, 1);
                continue;
            }
            if len < MIN_FRAME {
                add(&stats.rx_runts, 1);
                continue;
            }
            let frame = &mut slot[..len];
            let Ok(offload) = vnet::decode(&header, frame) else {
                add(&stats.rx_malformed, 1);
                continue;
            };
            let offload = segment::finish_sctp(frame, offload);
            frames += 1;
            bytes += frame.len() as u64;
            each(Frame { offload, ..Frame::new(frame) });
        }
        add(&stats.rx_frames, frames);
        add(&stats.rx_bytes, bytes);
        match result {
            Err(error) if taken == 0 => Err(error),
            // What came before the error counts first; the error comes again.
            _ => Ok(taken),
        }
    }
}

impl FrameSource for InternalPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        Whole::receive(self, |port| &mut port.whole)
    }
}

impl FrameSink for InternalPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        self.sender.send(frame)
    }
}

#[derive(Debug)]
struct Tap {
    file: File,
    mtu: AtomicU32,
    stats: Shared,
}

/// Sends to an internal port's device. Each frame is a system call: a TAP device has none for several.
#[derive(Debug)]
pub struct TapSender {
    shared: Arc<Tap>,
    scratch: Vec<u8>,
}

impl TapSender {
    fn write(&self, header: &[u8; vnet::LEN], frame: &[u8]) -> Result<(), PortError> {
        let Tap { file, stats, .. } = &*self.shared;
        match (&*file).write_vectored(&[IoSlice::new(header), IoSlice::new(frame)]) {
            // A TAP device takes a frame whole or not at all.
            Ok(written) => {
                add(&stats.tx_frames, 1);
                add(&stats.tx_bytes, written.saturating_sub(vnet::LEN) as u64);
                Ok(())
            }
            Err(error) => {
                let error = tap_error(error);
                let full = matches!(error, PortError::Full);
                add(if full { &stats.tx_full } else { &stats.tx_errors }, 1);
                Err(error)
            }
        }
    }
}

impl FrameSink for TapSender {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let Frame { data, offload, .. } = frame;
        let large = offload.is_some_and(|offload| offload.gso.is_some());
        let room = self.shared.mtu.load(Relaxed) as usize;
        if data.len() > MAX_FRAME || (!large && data.len() > room.saturating_add(MIN_FRAME + vlan_tags(data)))
        {
            add(&self.shared.stats.tx_too_long, 1);
            return Err(PortError::TooLong { len: data.len() });
        }
        let offload = match (vnet::encode(offload.as_ref(), data), offload) {
            (None, Some(offload)) => offload,
            (header, _) => return self.write(&header.unwrap_or_default(), data),
        };
        // Segments that Linux would not make of it.
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        let finished = segment::finish(data, &offload, &mut scratch, &mut |whole| {
            if result.is_ok() {
                result = self.write(&[0; vnet::LEN], whole);
            }
        });
        self.scratch = scratch;
        if finished.is_err() {
            add(&self.shared.stats.tx_errors, 1);
        }
        finished?;
        result
    }
}
