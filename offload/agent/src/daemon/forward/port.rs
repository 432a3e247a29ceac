//! Ports of the host: network devices and internal ports.

use flowlift_port::{Burst, BurstSource, Frame, FrameSink, InternalPort, PacketPort, PortError, PortStats};
use std::os::fd::{AsFd, BorrowedFd};

/// A port's receiving side.
#[derive(Debug)]
pub enum DevicePort {
    /// A network device, by a packet socket.
    Netdev(PacketPort),
    /// An internal port, by its TAP device.
    Internal(InternalPort),
}

impl DevicePort {
    /// A sender to the device.
    pub fn sender(&self) -> Box<dyn FrameSink + Send> {
        match self {
            Self::Netdev(port) => Box::new(port.sender()),
            Self::Internal(port) => Box::new(port.sender()),
        }
    }

    /// What it counted.
    pub fn stats(&self) -> PortStats {
        match self {
            Self::Netdev(port) => port.stats(),
            Self::Internal(port) => port.stats(),
        }
    }

    /// True as long as the device is not deleted nor, unless it is an internal port's, moved to another namespace.
    pub fn has_device(&self) -> bool {
        match self {
            Self::Netdev(port) => port.device().is_ok_and(|device| device.is_some()),
            Self::Internal(port) => port.is_attached(),
        }
    }

    /// Frames longer than this and headers are dropped from now on.
    pub fn set_mtu(&self, mtu: u32) {
        if let Self::Internal(port) = self {
            port.set_mtu(mtu);
        }
    }

    /// Takes the frames that wait, see [`BurstSource`].
    ///
    /// # Errors
    /// The device is down or gone.
    pub fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<usize, PortError> {
        match self {
            Self::Netdev(port) => port.receive_burst(burst, each),
            Self::Internal(port) => port.receive_burst(burst, each),
        }
    }
}

impl AsFd for DevicePort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Netdev(port) => port.as_fd(),
            Self::Internal(port) => port.as_fd(),
        }
    }
}
