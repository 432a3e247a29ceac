//! Opening NICs through their drivers: the simulated one in this process, or a PCI function behind VFIO or vfio-user.

use crate::cli::{NicArg, WireArg};
use crate::engine::{NicSetup, Outside, Simulated};
use crate::failure::Tell;
use anyhow::{Context, Result, anyhow};
use flowlift_bus::PciFunction;
use flowlift_driver::bind::Host;
use flowlift_driver::fl1::{self, Fl1, Fl1Config, Platform};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{Nic, NicError, NicPort};
use flowlift_driver::rocker::{self, Rocker, RockerConfig};
use flowlift_driver::vfio::VfioFunction;
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use flowlift_flow::PortNo;
use flowlift_offload::ports::PortMap;
use flowlift_port::HostPort;
use flowlift_sim::MemoryWire;
use flowlift_sim::{Clock, ManualClock};
use flowlift_sim::{FaultPlan, Profile};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Frames that wait on a wire.
const WIRE_FRAMES: usize = 4096;
/// How often bring-up is tried on a device that fails meanwhile.
const ATTEMPTS: u32 = 16;
/// Device time of a step, in nanoseconds.
pub(crate) const STEP_NS: u64 = 1_000;

/// Parses `--faults`.
///
/// # Errors
/// An unknown fault or a rate that is none, with the faults that there are.
pub fn faults(spec: Option<&str>) -> Result<FaultPlan> {
    spec.map_or(Ok(FaultPlan::default()), |spec| spec.parse().at(format_args!("--faults {spec}")))
}

/// A driver of a device family.
struct Driver {
    /// Vendor and device ID.
    ids: (u16, u16),
    /// Name of the family, for people.
    name: &'static str,
    open: Open,
}

type Open = fn(Arc<dyn PciFunction>) -> Result<Box<dyn Nic>, NicError>;

/// Every driver there is.
const DRIVERS: &[Driver] = &[
    Driver {
        ids: fl1::PCI_ID,
        name: "FL1",
        open: |function| {
            // A look at the device's health is half a dozen register reads, each a message if a process serves the device.
            let check_interval = Duration::from_millis(20);
            let config = Fl1Config { order: true, check_interval, ..Fl1Config::default() };
            Ok(Box::new(Fl1::open(function, config)?))
        },
    },
    Driver {
        ids: rocker::PCI_ID,
        name: "rocker",
        open: |function| Ok(Box::new(Rocker::open(function, RockerConfig::default())?)),
    },
];

/// A NIC outside of this process, brought up.
pub struct Opened {
    // The driver stops the device before the function goes.
    /// Its driver.
    pub nic: Box<dyn Nic>,
    /// The function that it drives.
    pub function: Arc<dyn PciFunction>,
}

/// Opens a NIC outside of this process by the driver of its PCI ids: its tables are emptied.
///
/// # Errors
/// It is not there, not this process's to drive, a device without a driver, or one that does not come up.
pub fn open_function(nic: &NicArg) -> Result<Opened> {
    let function: Arc<dyn PciFunction> = match nic {
        NicArg::Pci(address) => Arc::new(
            VfioFunction::open(&Host::default(), *address).context("cannot open it").at(address).remedy(
                "`flowlift nic list` says what can be used, `flowlift nic bind` (root) binds it to vfio-pci",
            )?,
        ),
        NicArg::VfioUser(path) => VfioUser::connect(path, VfioUserConfig::default())
            .context("cannot open it")
            .at(nic)
            .remedy("a server such as `flowlift-sim --socket PATH` has to listen there")?,
    };
    let name = function.name().to_owned();
    let read = |offset| function.config_read(offset, 2).context("cannot read its ids").at(&name);
    let driver = driver_of(read(0)?, read(2)?).at(&name)?;
    let nic = (driver.open)(Arc::clone(&function))
        .with_context(|| format!("cannot bring it up ({})", driver.name))
        .at(&name)?;
    Ok(Opened { nic, function })
}

/// The driver of a device by its vendor and device ID.
fn driver_of(vendor: u32, device: u32) -> Result<&'static Driver> {
    let ids = |driver: &Driver| (u32::from(driver.ids.0), u32::from(driver.ids.1));
    let found = DRIVERS.iter().find(|driver| ids(driver) == (vendor, device));
    let known = |driver: &Driver| format!("{} ({:04x}:{:04x})", driver.name, driver.ids.0, driver.ids.1);
    let known: Vec<_> = DRIVERS.iter().map(known).collect();
    found
        .with_context(|| format!("no driver for a device {vendor:04x}:{device:04x}"))
        .remedy(format_args!("there is one for {}", known.join(", ")))
}

/// How the ports of a NIC outside are plugged in.
#[derive(Debug, Clone, Default)]
pub struct Plugged {
    /// Datapath ports that are the NIC's, by the number of the NIC's port from 0. Empty: those of `ports`, in the order of
    /// their numbers, are its ports with link.
    pub map: Vec<(PortNo, u16)>,
    /// Datapath ports in the order in which they deserve a port of the NIC.
    pub ports: Vec<PortNo>,
    /// Wires that end at ports of this host.
    pub wires: Vec<WireArg>,
}

/// Opens a NIC outside of this process with what it is plugged into.
///
/// # Errors
/// As [`open_function`]; a port that the NIC does not have, or has twice; a port of the host that cannot be opened; no port
/// with link.
pub fn open_outside(nic: &NicArg, plugged: &Plugged) -> Result<NicSetup> {
    // The wires first: a port of the NIC whose other end is there has link.
    let mut wires = BTreeMap::new();
    for WireArg { port, spec } in &plugged.wires {
        let opened = HostPort::open(spec)
            .with_context(|| format!("cannot open {spec}"))
            .at(format_args!("--wire p{port}"))?;
        if wires.insert(NicPort(port + 1), opened).is_some() {
            return Err(anyhow!("p{port} has two wires"))
                .at("--wire")
                .remedy("a port has one; leave one out");
        }
    }
    let Opened { nic, function } = open_function(nic)?;
    let name = function.name();
    let caps = nic.caps();
    let has = |port: u16| caps.ports.iter().any(|caps| caps.port == NicPort(port + 1));
    let named = plugged.wires.iter().map(|wire| wire.port).chain(plugged.map.iter().map(|(_, port)| *port));
    if let Some(port) = named.into_iter().find(|port| !has(*port)) {
        return Err(anyhow!("it has no port p{port}"))
            .at(name)
            .remedy(format_args!("it has p0 to p{}", caps.ports.len().saturating_sub(1)));
    }
    let mut map = PortMap::new();
    if plugged.map.is_empty() {
        let linked: Vec<NicPort> =
            caps.ports.iter().map(|caps| caps.port).filter(|port| nic.link(*port)).collect();
        if linked.is_empty() {
            return Err(anyhow!("no port has link"))
                .at(name)
                .remedy("plug something in, for flowlift-sim by its --wire");
        }
        let mut ports: Vec<PortNo> = plugged.ports.iter().take(linked.len()).copied().collect();
        ports.sort();
        ports.into_iter().zip(linked).for_each(|(port, nic_port)| map.insert(port, nic_port));
    }
    for (port, number) in &plugged.map {
        let nic_port = NicPort(number + 1);
        if map.nic(*port).is_some() || map.dp(nic_port).is_some() {
            return Err(anyhow!("port {} or p{number} stands twice", port.0))
                .at("--nic-ports")
                .remedy("each port stands for one other");
        }
        map.insert(*port, nic_port);
    }
    let harness = Outside::new(function.as_ref(), wires).context("cannot watch the function")?;
    Ok(NicSetup { nic, harness: Box::new(harness), ports: map, uncounted: false })
}

/// Opens a simulated NIC whose ports are the first ones of `ports`, as many as it has; the rest stay the softpath's.
///
/// # Errors
/// The driver cannot bring the device up.
pub fn open(
    profile: Profile,
    seed: u64,
    faults: FaultPlan,
    ports: &[PortNo],
    start_ns: u64,
) -> Result<NicSetup<Fl1, Simulated>> {
    let clock = ManualClock::new(start_ns);
    let config = flowlift_sim::Config { seed, faults, clock: Box::new(clock.clone()) };
    let mut device = flowlift_sim::Fl1::new(profile, config);
    let mut wires = BTreeMap::new();
    for number in 1..=device.profile().ports() {
        let wire = MemoryWire::new(WIRE_FRAMES);
        device.plug(number, Box::new(wire.clone()));
        wires.insert(flowlift_driver::nic::NicPort(number), wire);
    }
    let config = InProcConfig { name: "simulated FL1".into(), ..InProcConfig::default() };
    let function = InProc::new(device, config)?;
    let mut attempt = 1;
    let nic = loop {
        match open_driver(&function, &clock) {
            Ok(nic) => break nic,
            Err(error) if attempt < ATTEMPTS && !function.model().is_gone() => {
                tracing::info!(attempt, %error, "the NIC did not come up; trying again");
                attempt += 1;
            }
            Err(error) => return Err(error).context("cannot bring the simulated NIC up"),
        }
    };
    let mut map = PortMap::new();
    for (port, caps) in ports.iter().zip(&nic.caps().ports) {
        map.insert(*port, caps.port);
    }
    Ok(NicSetup { nic, harness: Simulated { function, clock, wires }, ports: map, uncounted: false })
}

/// The simulated NIC as the driver's surroundings: its clock, and steps while the driver waits for it.
struct Simulation {
    function: Arc<InProc<flowlift_sim::Fl1>>,
    clock: ManualClock,
}

impl Platform for Simulation {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn relax(&self) {
        self.clock.advance(STEP_NS);
        self.function.model().step();
    }
}

fn open_driver(function: &Arc<InProc<flowlift_sim::Fl1>>, clock: &ManualClock) -> Result<Fl1, NicError> {
    let simulation = Simulation { function: Arc::clone(function), clock: clock.clone() };
    let config = Fl1Config { platform: Arc::new(simulation), ..Fl1Config::default() };
    let function: Arc<dyn PciFunction> = Arc::clone(function) as Arc<dyn PciFunction>;
    Fl1::open(function, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_driver_of_its_ids_and_an_unknown_one_is_told_which_there_are() {
        assert_eq!(driver_of(0x1d9b, 0xf101).unwrap().name, "FL1");
        assert_eq!(driver_of(0x1b36, 0x0006).unwrap().name, "rocker");
        let error = crate::failure::text(&driver_of(0x8086, 0x10fb).map(|driver| driver.name).unwrap_err());
        assert!(error.contains("8086:10fb") && error.contains("FL1 (1d9b:f101)"), "{error}");
    }
}
