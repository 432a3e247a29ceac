//! The device behind a NIC: simulated in this process, or served by another one, or a PCI function.

use crate::devargs::{Devargs, NicName, Profile};
use flowlift_bus::{BusError, PciFunction};
use flowlift_driver::bind::Host;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::NicError;
use flowlift_driver::vfio::VfioFunction;
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use flowlift_sim::server::{Cables, ServerWire, WireError, WireKind, WireSpec};
use flowlift_sim::{Config, HostClock, NoWire};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Idle steps of a simulated device before it sleeps, and how long it does: doorbells wake nobody.
const IDLE_STEPS: u32 = 256;
const NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// Why there is no NIC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The transport refuses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No such function, or not to be had.
    #[error("{0}")]
    Function(String),
    /// The driver cannot bring it up.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The other end of a wire.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No thread to be had.
    #[error("a thread for it: {0}")]
    Thread(std::io::Error),
}

impl OpenError {
    /// With all that lies behind it, in one line.
    pub fn told(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// What the ports are plugged into, one at a time.
#[derive(Default)]
struct Wires {
    cables: Cables,
    /// Cables in memory by the ports that have an end of them. An end stays where it is when its port goes, as nothing else holds the
    /// frames that are on their way.
    ends: HashMap<u16, String>,
}

/// A simulated NIC: the model and the thread that is its hardware.
pub struct Simulated {
    function: Arc<InProc<flowlift_sim::Fl1>>,
    wires: Mutex<Wires>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Simulated {
    fn start(args: &Devargs) -> Result<Self, OpenError> {
        let profile = match args.profile.unwrap_or(Profile::Standard) {
            Profile::Tiny => flowlift_sim::Profile::tiny(),
            Profile::Standard => flowlift_sim::Profile::standard(),
            Profile::Large => flowlift_sim::Profile::large(),
        };
        let faults = args.faults.clone().unwrap_or_default();
        let config = Config { seed: args.seed.unwrap_or(0), faults, clock: Box::new(HostClock::default()) };
        let device = flowlift_sim::Fl1::new(profile, config);
        let function =
            InProc::new(device, InProcConfig { name: args.nic.to_string(), ..InProcConfig::default() })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (model, stopped) = (Arc::clone(&function), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("flowlift-device".into())
            .spawn(move || {
                super::cpus::use_all();
                run(&model, &stopped);
            })
            .map_err(OpenError::Thread)?;
        Ok(Self { function, wires: Mutex::default(), stop, thread: Some(thread) })
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs a wire into a port, counted from 0.
    pub fn plug(&self, spec: &WireSpec) -> Result<(), OpenError> {
        let mut wires = self.wires();
        let cable = match &spec.kind {
            WireKind::Memory(cable) => Some(cable),
            _ => None,
        };
        if cable.is_some() && wires.ends.get(&spec.port) == cable {
            return Ok(());
        }
        let wire = ServerWire::open(spec, &mut wires.cables)?;
        match cable {
            Some(cable) => wires.ends.insert(spec.port, cable.clone()),
            None => wires.ends.remove(&spec.port),
        };
        self.function.model().plug(spec.port.saturating_add(1), Box::new(wire));
        Ok(())
    }

    /// Pulls the wire out of a port, counted from 0, so that the next one can have it.
    pub fn unplug(&self, port: u16) {
        if !self.wires().ends.contains_key(&port) {
            self.function.model().plug(port.saturating_add(1), Box::new(NoWire));
        }
    }

    /// Breaches of the device's protocol, which are bugs of the driver.
    pub fn violations(&self) -> u32 {
        self.function.model().violations_total()
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It fails only if the thread panicked, which has been told on standard error.
            let _ = thread.join();
        }
    }
}

/// The device works for as long as it is not stopped.
fn run(function: &InProc<flowlift_sim::Fl1>, stop: &AtomicBool) {
    let (mut idle, mut nap) = (0, NAP);
    while !stop.load(Ordering::Acquire) {
        let worked = !function.model().step().is_idle();
        idle = if worked { 0 } else { idle + 1 };
        if idle < IDLE_STEPS {
            if worked {
                nap = NAP
            } else {
                std::thread::yield_now()
            }
            continue;
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
}

/// Opens the NIC that the arguments name; the simulated one comes along as itself.
pub fn open(args: &Devargs) -> Result<(Fl1, Option<Simulated>), OpenError> {
    let (function, simulated): (Arc<dyn PciFunction>, _) = match &args.nic {
        NicName::Sim(_) => {
            let simulated = Simulated::start(args)?;
            (Arc::clone(&simulated.function) as Arc<dyn PciFunction>, Some(simulated))
        }
        NicName::VfioUser(path) => (VfioUser::connect(path, VfioUserConfig::default())?, None),
        NicName::Pci(address) => {
            // Whoever tells it names the address.
            let why = |e: &dyn std::fmt::Display| OpenError::Function(e.to_string());
            let address = address.parse().map_err(|e| why(&e))?;
            (Arc::new(VfioFunction::open(&Host::default(), address).map_err(|e| why(&e))?), None)
        }
    };
    let nic = Fl1::open(function, Fl1Config::default())?;
    // The driver's reset would have taken it away again.
    if let (Some(simulated), Some(entries)) = (&simulated, args.populate) {
        simulated.function.model().populate(0, entries);
    }
    Ok((nic, simulated))
}
