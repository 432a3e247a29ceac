//! Packets from the user that are only to be sent: the plane's thread sends them itself.
//!
//! The first packet of nearly every flow is one. The forwarder would have to be woken for each, and has nothing to add: packets
//! of other flows do not wait for these, and those of the same flow come by its table only from the flow's installation on,
//! which came before. What takes more than sending (headers to change, a port of the NIC, a tunnel, another upcall) is the
//! forwarder's; while it has such packets nothing is sent here, so that all packets from the user leave in their order.

use flowlift_flow::PortNo;
use flowlift_ovs::backend::DpIndex;
use flowlift_port::{Frame, FrameSink};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A way out by a device of the host.
pub(super) type Sender = Box<dyn FrameSink + Send>;

/// See the module's head.
#[derive(Default)]
pub(super) struct Direct {
    senders: BTreeMap<(DpIndex, PortNo), Sender>,
    /// Ports whose sender keeps frames to send many together.
    unflushed: Vec<(DpIndex, PortNo)>,
    /// Packets that the forwarder has not done yet.
    given: Arc<AtomicUsize>,
}

/// A packet that the forwarder has, until this is dropped.
pub(super) struct Given(Arc<AtomicUsize>);

impl Drop for Given {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Direct {
    /// A port has a device, or none any more.
    pub(super) fn set(&mut self, dp: DpIndex, port: PortNo, sender: Option<Sender>) {
        match sender {
            Some(sender) => self.senders.insert((dp, port), sender),
            None => self.senders.remove(&(dp, port)),
        };
    }

    /// Sends a packet, or keeps it for [`Self::flush`]. False if it is not to be sent here.
    pub(super) fn send(&mut self, dp: DpIndex, port: PortNo, packet: &[u8]) -> bool {
        if self.given.load(Ordering::Acquire) > 0 {
            return false;
        }
        let Some(sender) = self.senders.get_mut(&(dp, port)) else { return false };
        // The port has counted what it did not take.
        drop(sender.send(Frame::new(packet)));
        if self.unflushed.last() != Some(&(dp, port)) {
            self.unflushed.push((dp, port));
        }
        true
    }

    /// The forwarder gets a packet, behind all that were sent here.
    pub(super) fn give(&mut self) -> Given {
        self.flush();
        self.given.fetch_add(1, Ordering::Relaxed);
        Given(Arc::clone(&self.given))
    }

    /// Sends what senders keep.
    pub(super) fn flush(&mut self) {
        for port in self.unflushed.drain(..) {
            if let Some(sender) = self.senders.get_mut(&port) {
                // As above.
                drop(sender.flush());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_port::PortError;
    use std::sync::Mutex;

    const DP: DpIndex = DpIndex(3);

    /// Keeps packets until it is flushed, as a packet socket's sender does.
    struct Kept(Vec<u8>, Arc<Mutex<Vec<u8>>>);

    impl FrameSink for Kept {
        fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
            self.0.push(frame.data[0]);
            Ok(())
        }

        fn flush(&mut self) -> Result<(), PortError> {
            self.1.lock().unwrap().append(&mut self.0);
            Ok(())
        }
    }

    #[test]
    fn packets_leave_in_the_order_in_which_the_user_gave_them() {
        let (mut direct, sent) = (Direct::default(), Arc::default());
        direct.set(DP, PortNo(1), Some(Box::new(Kept(Vec::new(), Arc::clone(&sent)))));
        let packets = || sent.lock().unwrap().clone();
        assert!(direct.send(DP, PortNo(1), &[1]) && direct.send(DP, PortNo(1), &[2]));
        assert_eq!(packets(), [0; 0], "they are sent together");
        assert!(!direct.send(DP, PortNo(2), &[9]), "no device");
        let (first, second) = (direct.give(), direct.give());
        assert_eq!(packets(), [1, 2], "before what the forwarder does");
        drop(first);
        assert!(!direct.send(DP, PortNo(1), &[3]), "the forwarder has one still");
        drop(second);
        assert!(direct.send(DP, PortNo(1), &[4]));
        direct.flush();
        assert_eq!(packets(), [1, 2, 4]);
        direct.set(DP, PortNo(1), None);
        assert!(!direct.send(DP, PortNo(1), &[5]));
    }
}
