//! Representors: devices of the host that stand for ports of the NIC, one for each port that no other device stands for.
//!
//! What the NIC's tables did not finish of a port's packets is seen on its representor as received, whether or not the port
//! belongs to a datapath; what the host sends by the representor leaves by the port. Its carrier is the port's link. What the
//! tables did is not seen there, and neither is what the softpath sends by the port: a TAP device has no way to show it.

use flowlift_driver::nic::NicPort;
use flowlift_port::{
    Burst, BurstSource, Frame, FrameSink, InternalPort, LinkState, PortError, PortStats, TapSender,
};
use std::os::fd::{AsFd, BorrowedFd};

/// A port's representor.
#[derive(Debug)]
pub struct Representor {
    port: NicPort,
    device: InternalPort,
    sender: TapSender,
    carrier: Option<bool>,
}

impl Representor {
    /// The representor of a port by its device.
    pub fn new(port: NicPort, device: InternalPort) -> Self {
        let sender = device.sender();
        Self { port, device, sender, carrier: None }
    }

    /// The port.
    pub fn port(&self) -> NicPort {
        self.port
    }

    /// What passed by the device, from the datapath's point of view: received is what the host sent.
    pub fn stats(&self) -> PortStats {
        self.device.stats()
    }

    /// True as long as the device is not deleted.
    pub(super) fn has_device(&self) -> bool {
        self.device.is_attached()
    }

    /// Shows the host a packet that came from the port's wire.
    pub(super) fn show(&mut self, packet: &[u8]) {
        // A device that is down shows nothing, and the device has counted what it did not take.
        let _ = self.sender.send(Frame::new(packet));
    }

    /// Has the carrier be as the port's link is.
    pub(super) fn set_carrier(&mut self, link: bool) {
        if self.carrier == Some(link) {
            return;
        }
        self.carrier = Some(link);
        if let Err(error) = self.device.set_carrier(link) {
            tracing::debug!(port = self.port.0, %error, "a representor's carrier");
        }
    }

    /// Gives the packets that the host sent to `each`, whole. Returns how many were taken, or `None` when the device is gone.
    pub(super) fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut impl FnMut(NicPort, &[u8]),
    ) -> Option<usize> {
        let port = self.port;
        let received = self.device.receive_burst(burst, &mut |frame| {
            let finished = frame.finish(|whole| {
                each(port, whole.data);
                Ok(())
            });
            if let Err(error) = finished {
                tracing::debug!(port = port.0, %error, "a representor's packet");
            }
        });
        match received {
            Err(PortError::Link(LinkState::Gone)) => None,
            received => Some(received.unwrap_or(0)),
        }
    }
}

impl AsFd for Representor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
