//! What stands around a NIC in a run: the clock of driver and planner, and the other ends of its wires.
//!
//! [`Simulated`] is the NIC in this process, which stands still unless it is stepped, so that a run replays from its seed.
//! [`Outside`] is one behind VFIO or vfio-user: it works by itself, in real time, and its wires end at ports of this host,
//! or are nobody's business.

use crate::open::STEP_NS;
use flowlift_bus::PciFunction;
use flowlift_driver::inproc::InProc;
use flowlift_driver::nic::{Nic, NicPort};
use flowlift_port::{Frame, FrameSink, FrameSource, HostPort, PortError};
use flowlift_sim::{Clock, HostClock, ManualClock, MemoryWire};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Device time of a turn in which nothing went on: what waits for a deadline gets there.
const IDLE_STEP_NS: u64 = 1_000_000;
/// Idle turns after which device time goes in such steps.
const IDLE_STEPS_MIN: u32 = 2;
/// Idle turns after which a run gives up: a hundred times the longest deadline of the driver.
const IDLE_STEPS_MAX: u32 = 1_000_000;

/// Time without any packet after which none is expected of a NIC outside.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time without any answer about its tables after which none is expected: several times the driver's deadline.
const TABLES_PATIENCE: Duration = Duration::from_secs(20);
/// Idle turns that only yield, before those that sleep.
const YIELDS: u32 = 64;
/// Such a sleep.
const NAP: Duration = Duration::from_micros(20);
/// Longest sleep while waiting for an interrupt: timers of the planner and a device without interrupts need turns, too.
const WAIT_MS: u8 = 2;
/// Time between two looks at whether the host wants the device back.
const LOOK: Duration = Duration::from_millis(1);

/// What became of a frame that was to go on a wire.
#[derive(Debug)]
pub enum Injected {
    /// It is on a wire whose other end shows when the device has taken it.
    InSight,
    /// It is on its way, and only the device's counters will tell of it.
    OutOfSight,
    /// The port has no wire that ends here.
    NoWire,
    /// The wire did not take it.
    Refused(PortError),
}

/// See the module's head.
pub trait Harness {
    /// The clock that driver and planner share, in nanoseconds.
    fn now_ns(&self) -> u64;
    /// The next packet arrives at `ns` of the capture's clock.
    fn arrive_at(&mut self, ns: u64);
    /// Lets a device work that does not by itself.
    fn step(&mut self);
    /// Called after the `turns`th turn in a row in which nothing moved: lets time pass. `tables`: an answer about the tables
    /// is awaited. False: more time changes nothing.
    fn idle(&mut self, turns: u32, tables: bool) -> bool;
    /// Sends a frame to the NIC on the wire of a port.
    fn inject(&mut self, port: NicPort, frame: &[u8]) -> Injected;
    /// Hands what left the NIC to `sink`, in order per port. True if there was anything.
    fn collect(&mut self, sink: &mut dyn FnMut(NicPort, &[u8])) -> bool;
    /// Frames are in sight that the device has not taken.
    fn is_loaded(&self) -> bool;
    /// Takes back those frames, oldest first per port.
    fn take_back(&mut self) -> Vec<(NicPort, Vec<u8>)>;
    /// The device works and counts whether or not this process looks; it can have other users of its wires.
    fn is_outside(&self) -> bool;
    /// A port's wire ends here, so that what leaves by it is seen.
    fn sees(&self, port: NicPort) -> bool;
    /// The host wants the device back.
    fn is_wanted_back(&mut self) -> bool;
    /// Breaches of the device's protocol that it noticed; `None` if it does not say.
    fn violations(&self, nic: Option<&dyn Nic>) -> Option<u32>;
    /// Faults that were injected, by name.
    fn faults(&self) -> BTreeMap<&'static str, u64>;
    /// Sleeps until the NIC, the host or `stop` has something to say, but not long.
    fn wait(&self, interrupt: Option<BorrowedFd<'_>>, stop: Option<BorrowedFd<'_>>);
}

/// The NIC in this process.
pub struct Simulated {
    /// The device behind its in-process function.
    pub function: Arc<InProc<flowlift_sim::Fl1>>,
    /// The clock that device and driver share.
    pub clock: ManualClock,
    /// Wires by NIC port.
    pub wires: BTreeMap<NicPort, MemoryWire>,
}

impl Harness for Simulated {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn arrive_at(&mut self, ns: u64) {
        self.clock.set(ns);
    }

    fn step(&mut self) {
        self.clock.advance(STEP_NS);
        self.function.model().step();
    }

    fn idle(&mut self, turns: u32, _: bool) -> bool {
        if turns > IDLE_STEPS_MIN {
            self.clock.advance(IDLE_STEP_NS);
        }
        turns <= IDLE_STEPS_MAX
    }

    fn inject(&mut self, port: NicPort, frame: &[u8]) -> Injected {
        match self.wires.get(&port).map(|wire| wire.inject(frame.to_vec())) {
            Some(Ok(())) => Injected::InSight,
            Some(Err(_)) => Injected::Refused(PortError::Full),
            None => Injected::NoWire,
        }
    }

    fn collect(&mut self, sink: &mut dyn FnMut(NicPort, &[u8])) -> bool {
        let mut any = false;
        for (port, wire) in &self.wires {
            while let Some(frame) = wire.receive() {
                sink(*port, &frame);
                any = true;
            }
        }
        any
    }

    fn is_loaded(&self) -> bool {
        self.wires.values().any(|wire| wire.pending() > 0)
    }

    fn take_back(&mut self) -> Vec<(NicPort, Vec<u8>)> {
        let all = |(port, wire): (&NicPort, &MemoryWire)| {
            let port = *port;
            wire.take_back().into_iter().map(move |frame| (port, frame))
        };
        self.wires.iter().flat_map(all).collect()
    }

    fn is_outside(&self) -> bool {
        false
    }

    fn sees(&self, port: NicPort) -> bool {
        self.wires.contains_key(&port)
    }

    fn is_wanted_back(&mut self) -> bool {
        false
    }

    fn violations(&self, _: Option<&dyn Nic>) -> Option<u32> {
        Some(self.function.model().violations_total())
    }

    fn faults(&self) -> BTreeMap<&'static str, u64> {
        let mut faults = BTreeMap::new();
        for fault in self.function.model().fault_log() {
            *faults.entry(fault.kind.name()).or_insert(0) += 1;
        }
        faults
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<BorrowedFd<'_>>) {}
}

/// A NIC behind VFIO or vfio-user.
pub struct Outside {
    clock: HostClock,
    wires: BTreeMap<NicPort, HostPort>,
    /// Readable when the host wants the device back.
    request: Option<OwnedFd>,
    looked: Instant,
    /// Since when nothing moved.
    idle_since: Instant,
}

impl Outside {
    /// Around `function`, whose ports' wires end at ports of this host as far as they are in `wires`.
    ///
    /// # Errors
    /// No file descriptor is free.
    pub fn new(function: &dyn PciFunction, wires: BTreeMap<NicPort, HostPort>) -> std::io::Result<Self> {
        let request = function.lifecycle().request.map(|fd| fd.try_clone_to_owned()).transpose()?;
        let now = Instant::now();
        Ok(Self { clock: HostClock::default(), wires, request, looked: now, idle_since: now })
    }
}

impl Harness for Outside {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn arrive_at(&mut self, _: u64) {}

    fn step(&mut self) {}

    fn idle(&mut self, turns: u32, tables: bool) -> bool {
        if turns == 1 {
            self.idle_since = Instant::now();
        }
        if turns < YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
        self.idle_since.elapsed() < if tables { TABLES_PATIENCE } else { PATIENCE }
    }

    fn inject(&mut self, port: NicPort, frame: &[u8]) -> Injected {
        let Some(wire) = self.wires.get_mut(&port) else { return Injected::NoWire };
        let start = Instant::now();
        loop {
            match wire.send(Frame::new(frame)) {
                Ok(()) => return Injected::OutOfSight,
                Err(PortError::Full) if start.elapsed() < PATIENCE => std::thread::sleep(NAP),
                Err(error) => return Injected::Refused(error),
            }
        }
    }

    fn collect(&mut self, sink: &mut dyn FnMut(NicPort, &[u8])) -> bool {
        let mut any = false;
        for (port, wire) in &mut self.wires {
            loop {
                match wire.receive() {
                    Ok(Some(frame)) => sink(*port, frame.data),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(port = port.0, %error, "a wire gives no frame");
                        break;
                    }
                }
                any = true;
            }
        }
        any
    }

    fn is_loaded(&self) -> bool {
        false
    }

    fn take_back(&mut self) -> Vec<(NicPort, Vec<u8>)> {
        Vec::new()
    }

    fn is_outside(&self) -> bool {
        true
    }

    fn sees(&self, port: NicPort) -> bool {
        self.wires.contains_key(&port)
    }

    fn is_wanted_back(&mut self) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        self.request.as_ref().is_some_and(|fd| readable(&[fd.as_fd()], PollTimeout::ZERO))
    }

    fn violations(&self, nic: Option<&dyn Nic>) -> Option<u32> {
        nic.and_then(Nic::violation_count)
    }

    fn faults(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn wait(&self, interrupt: Option<BorrowedFd<'_>>, stop: Option<BorrowedFd<'_>>) {
        let request = self.request.as_ref().map(|fd| fd.as_fd());
        let fds: Vec<_> = [interrupt, stop, request].into_iter().flatten().collect();
        readable(&fds, PollTimeout::from(WAIT_MS));
    }
}

/// True if one of the descriptors is readable, at the latest after `timeout`.
pub(super) fn readable(fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // A signal ends the wait, which is as good as its end.
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}
