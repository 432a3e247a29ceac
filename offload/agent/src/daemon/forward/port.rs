//! Ports of the host: network devices, internal ports, tunnels.

use super::route::Outlet;
use super::tunnel::TunnelInlet;
use flowlift_flow::Key;
use flowlift_port::{Burst, BurstSource, Frame, FrameSink, InternalPort, PacketPort, PortError, PortStats};
use std::os::fd::{AsFd, BorrowedFd};

/// A port's receiving side.
#[derive(Debug)]
pub enum DevicePort {
    /// A network device, by a packet socket.
    Netdev(PacketPort),
    /// An internal port, by its TAP device.
    Internal(InternalPort),
    /// A tunnel, by a socket.
    Tunnel(TunnelInlet),
}

impl DevicePort {
    /// A way out by the port.
    pub fn outlet(&self) -> Outlet {
        match self {
            Self::Netdev(port) => Outlet::Host(Box::new(port.sender())),
            Self::Internal(port) => Outlet::Host(Box::new(port.sender())),
            Self::Tunnel(port) => Outlet::Tunnel(Box::new(port.outlet())),
        }
    }

    /// Another way out by the port's device, for another thread; `None` for a tunnel, which has none.
    pub fn sender(&self) -> Option<Box<dyn FrameSink + Send>> {
        match self {
            Self::Netdev(port) => Some(Box::new(port.sender())),
            Self::Internal(port) => Some(Box::new(port.sender())),
            Self::Tunnel(_) => None,
        }
    }

    /// What it counted.
    pub fn stats(&self) -> PortStats {
        match self {
            Self::Netdev(port) => port.stats(),
            Self::Internal(port) => port.stats(),
            Self::Tunnel(port) => port.stats(),
        }
    }

    /// True as long as the device is not deleted nor, unless it is an internal port's, moved to another namespace.
    pub fn has_device(&self) -> bool {
        match self {
            Self::Netdev(port) => port.device().is_ok_and(|device| device.is_some()),
            Self::Internal(port) => port.is_attached(),
            Self::Tunnel(_) => true,
        }
    }

    /// Frames longer than this and headers are dropped from now on.
    pub fn set_mtu(&self, mtu: u32) {
        if let Self::Internal(port) = self {
            port.set_mtu(mtu);
        }
    }

    /// Takes the frames that wait, see [`BurstSource`], with the `tun_*` fields and packet type of those from a
    /// tunnel.
    ///
    /// # Errors
    /// The device is down or gone; what else the system says.
    pub fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>, Option<&Key>),
    ) -> Result<usize, PortError> {
        match self {
            Self::Netdev(port) => port.receive_burst(burst, &mut |frame| each(frame, None)),
            Self::Internal(port) => port.receive_burst(burst, &mut |frame| each(frame, None)),
            Self::Tunnel(port) => port.receive(burst, &mut |frame, tunnel| each(frame, Some(tunnel))),
        }
    }
}

impl AsFd for DevicePort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Netdev(port) => port.as_fd(),
            Self::Internal(port) => port.as_fd(),
            Self::Tunnel(port) => port.as_fd(),
        }
    }
}
