//! Which devices of the host stand for which ports of the NIC: those that the command line names and, with `--wire auto`,
//! every device that becomes a port of a datapath, as long as the simulated NIC has a port left for it.

use super::sim;
use crate::cli::{DaemonArgs, DaemonWire};
use anyhow::{Result, bail};
use flowlift_driver::nic::NicPort;
use flowlift_port::HostSpec;
use flowlift_sim::server::{Plugs, WireKind, WireSpec};
use std::collections::BTreeMap;

/// See the module's head.
pub struct NicPorts {
    named: BTreeMap<String, NicPort>,
    auto: Option<AutoWires>,
}

/// Wires that come and go with the ports of datapaths.
struct AutoWires {
    plugs: Plugs,
    /// Ports without a wire, by number from 0.
    free: BTreeMap<u16, NicPort>,
    /// Devices that have a wire now.
    plugged: BTreeMap<String, (u16, NicPort)>,
}

impl NicPorts {
    /// Without a NIC.
    pub fn none() -> Self {
        Self { named: BTreeMap::new(), auto: None }
    }

    /// What the command line says of the NIC's `ports`. `plugs` is the simulated NIC's.
    ///
    /// # Errors
    /// A port that is not there or is named twice, or wires of a NIC that is not simulated.
    pub fn new(args: &DaemonArgs, ports: &[NicPort], plugs: Option<Plugs>) -> Result<Self> {
        let mut named = BTreeMap::new();
        let wires = args.wire_specs().filter_map(|wire| Some((sim::device(wire)?.to_owned(), wire.port)));
        for (name, number) in wires.chain(args.ports.iter().map(|port| (port.name.clone(), port.number))) {
            let Some(port) = ports.get(usize::from(number)) else {
                bail!("{name}=p{number}: the NIC has ports p0 to p{}", ports.len().saturating_sub(1));
            };
            if named.values().any(|other| other == port) {
                bail!("{name}=p{number}: another device stands for this port already");
            }
            if named.insert(name.clone(), *port).is_some() {
                bail!("{name}=p{number}: the device stands for another port already");
            }
        }
        if !args.wires.contains(&DaemonWire::Auto) {
            return Ok(Self { named, auto: None });
        }
        let Some(plugs) = plugs else { bail!("--wire auto needs the simulated NIC: --nic sim") };
        let wired: Vec<u16> = args.wire_specs().map(|wire| wire.port).collect();
        let free =
            (0..).zip(ports).filter(|(n, port)| !wired.contains(n) && !named.values().any(|p| p == *port));
        let free = free.map(|(n, port)| (n, *port)).collect();
        Ok(Self { named, auto: Some(AutoWires { plugs, free, plugged: BTreeMap::new() }) })
    }

    /// No device is or becomes a port of the NIC.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.auto.is_none()
    }

    /// The NIC's port that a device stands for. With `--wire auto`, a device that stands for none gets a wire to a free one.
    ///
    /// # Errors
    /// Why the device gets no wire, in words; without `--wire auto` there is nothing to say (`None`).
    pub fn take(&mut self, device: &str) -> Result<NicPort, Option<String>> {
        if let Some(port) = self.named.get(device) {
            return Ok(*port);
        }
        let Some(AutoWires { plugs, free, plugged }) = &mut self.auto else { return Err(None) };
        if let Some((_, port)) = plugged.get(device) {
            return Ok(*port);
        }
        let Some((number, port)) = free.pop_first() else {
            let ports = self.named.len() + plugged.len();
            return Err(Some(format!(
                "each of the NIC's {ports} ports has a wire; a larger --profile has more"
            )));
        };
        let spec = WireSpec { port: number, kind: WireKind::Host(HostSpec::Packet(device.to_owned())) };
        if let Err(error) = plugs.plug(&spec) {
            free.insert(number, port);
            return Err(Some(format!("no wire to {device}: {error}")));
        }
        plugged.insert(device.to_owned(), (number, port));
        Ok(port)
    }

    /// Pulls the wire that [`Self::take`] plugged; one that the command line names stays.
    pub fn release(&mut self, device: &str) {
        let Some(auto) = &mut self.auto else { return };
        if let Some((number, port)) = auto.plugged.remove(device) {
            auto.plugs.unplug(number);
            auto.free.insert(number, port);
        }
    }
}
