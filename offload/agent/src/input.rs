//! What a command reads: flows into a datapath, a capture into memory, and the pair that is bundled.

use crate::cli::FlowArgs;
use crate::engine::Arrival;
use crate::failure::Tell;
use crate::flows::{self, Loaded};
use crate::ports::Ports;
use anyhow::{Context, Result, anyhow};
use flowlift_flow::PortNo;
use flowlift_port::CaptureFile;
use flowlift_softpath::{Config, Datapath};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// The bundled flow dump, recorded from Open vSwitch (fixtures/README.md).
const BUNDLED_FLOWS: &str = include_str!("../../../fixtures/flows/bundled.txt");
/// Its ports, a `name=number` a line.
const BUNDLED_PORTS: &str = include_str!("../../../fixtures/flows/bundled.ports");
/// The capture that belongs to it.
const BUNDLED_CAPTURE: &[u8] = include_bytes!("../../../fixtures/packets/bundled.pcapng");
/// Ingress port of packets whose capture does not name an interface.
const DEFAULT_IN_PORT: PortNo = PortNo(1);

/// Ports, flows, and the datapath that holds them.
pub struct Flows {
    /// Ports.
    pub ports: Ports,
    /// What was loaded.
    pub loaded: Loaded,
    /// The datapath with all loaded flows.
    pub datapath: Datapath,
    /// Names of ports are those of the user, so flows are printed with them.
    pub named: bool,
}

/// Reads the flows that `args` name, or the bundled ones.
///
/// # Errors
/// A file that cannot be read, or that [`flows::load`] refuses.
pub fn read_flows(args: &FlowArgs, seed: u64) -> Result<Flows> {
    let mut datapath = Datapath::new(Config { seed: Some(seed), ..Config::default() });
    let ports = match (&args.flows, args.ports.is_empty()) {
        (None, true) => Ports::parse(BUNDLED_PORTS.lines())?,
        _ => Ports::parse(args.ports.iter().map(String::as_str))?,
    };
    let loaded = match &args.flows {
        None => {
            let dump = BUNDLED_FLOWS.as_bytes();
            flows::load(&"the bundled flows", dump, ports.names(), args.strict, &mut datapath)?
        }
        Some(path) => {
            let file = File::open(path).context("cannot open it").at(path.display())?;
            let dump = BufReader::with_capacity(1 << 20, file);
            flows::load(&path.display(), dump, ports.names(), args.strict, &mut datapath)?
        }
    };
    let named = !args.ports.is_empty();
    Ok(Flows { ports, loaded, datapath, named })
}

/// A capture and the ingress port of each of its packets.
pub struct Packets {
    capture: CaptureFile,
    /// Ingress port by interface of the capture.
    interfaces: Vec<PortNo>,
    /// For packets without one.
    default: PortNo,
    /// Name, for messages.
    pub name: String,
}

/// Reads the capture at `path`, or the bundled one.
///
/// # Errors
/// A file that is no capture or has no packet; an interface that is no known port, without `in_port`.
pub fn read_packets(path: Option<&Path>, in_port: Option<&str>, ports: &Ports) -> Result<Packets> {
    let (name, capture) = match path {
        None => ("the bundled capture".to_owned(), CaptureFile::read(BUNDLED_CAPTURE)),
        Some(path) => (path.display().to_string(), CaptureFile::open(path)),
    };
    let capture = capture.at(&name)?;
    if capture.is_empty() {
        match capture.damage() {
            Some(damage) => return Err(anyhow!("{damage}")).at(name),
            None => return Err(anyhow!("there is no packet in it")).at(name),
        }
    }
    let forced = in_port.map(|text| ports.port(text)).transpose().at("--in-port")?;
    let mut interfaces = Vec::new();
    for interface in capture.interfaces() {
        let named = interface.name.as_deref();
        interfaces.push(match (named, forced) {
            (Some(name), _) if ports.port(name).is_ok() => ports.port(name)?,
            (_, Some(port)) => port,
            (None, None) => DEFAULT_IN_PORT,
            (Some(interface), None) => {
                return Err(anyhow!("unknown port '{interface}'")).at(name).remedy(format_args!(
                    "give its number by --ports {interface}=NUMBER, or one for all by --in-port"
                ));
            }
        });
    }
    Ok(Packets { capture, interfaces, default: forced.unwrap_or(DEFAULT_IN_PORT), name })
}

impl Packets {
    /// Number of packets.
    pub fn len(&self) -> usize {
        self.capture.len()
    }

    /// Never true: an empty capture is refused.
    pub fn is_empty(&self) -> bool {
        self.capture.is_empty()
    }

    /// Bytes of all packets.
    pub fn bytes(&self) -> usize {
        self.capture.total_bytes()
    }

    /// Where and why the capture ended before its end, if it did.
    pub fn damage(&self) -> Option<String> {
        self.capture.damage().map(|damage| format!("{}: {damage}", self.name))
    }

    /// The packets in order.
    pub fn arrivals(&self) -> impl Iterator<Item = Arrival<'_>> {
        self.capture.frames().map(|frame| Arrival {
            port: self.interfaces.get(frame.interface as usize).copied().unwrap_or(self.default),
            frame: frame.data,
            now_ns: frame.timestamp_ns,
        })
    }

    /// The time of the first packet.
    pub fn start_ns(&self) -> u64 {
        self.capture.get(0).map_or(0, |frame| frame.timestamp_ns)
    }

    /// Ports at which packets arrive.
    pub fn ports(&self) -> BTreeSet<PortNo> {
        self.arrivals().map(|arrival| arrival.port).collect()
    }
}

impl Flows {
    /// Names to print flows with: the user's, if given.
    pub fn names(&self) -> Option<&dyn flowlift_flow::text::PortNames> {
        self.named.then_some(self.ports.names() as _)
    }
}

/// The datapath's ports in the order in which they deserve a port of the NIC: those where packets arrive, those where flows
/// take packets, those where flows send packets, then those that are only named. Port 0 is the datapath's own and never on
/// a NIC.
pub fn nic_ports(input: &Flows, arrivals: &BTreeSet<PortNo>) -> Vec<PortNo> {
    let named = input.ports.by_number().into_keys().collect();
    let mut ports = Vec::new();
    for group in [arrivals, &input.loaded.ingress, &input.loaded.egress, &named] {
        let new: Vec<PortNo> =
            group.iter().filter(|port| port.0 != 0 && !ports.contains(*port)).copied().collect();
        ports.extend(new);
    }
    ports
}
