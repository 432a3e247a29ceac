//! Which devices of the host stand for which ports of the NIC: those that the command line names and, with `--wire auto`,
//! every device that becomes a port of a datapath, as long as the simulated NIC has a port left for it.

use super::keeper::Keeper;
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
    /// How many ports the NIC has.
    ports: usize,
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
        Self { named: BTreeMap::new(), ports: 0, auto: None }
    }

    /// What the command line says of the NIC's `ports`. `plugs` is the simulated NIC's.
    ///
    /// # Errors
    /// A port that is not there or is named twice, or wires of a NIC that is not simulated.
    pub fn new(args: &DaemonArgs, ports: &[NicPort], plugs: Option<Plugs>) -> Result<Self> {
        let mut named = BTreeMap::new();
        let wires = args.wire_specs().filter_map(|wire| Some((sim::device(&wire)?.to_owned(), wire.port)));
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
            return Ok(Self { named, ports: ports.len(), auto: None });
        }
        let Some(plugs) = plugs else { bail!("--wire auto needs the simulated NIC: --nic sim") };
        let wired: Vec<u16> = args.wire_specs().map(|wire| wire.port).collect();
        let free =
            (0..).zip(ports).filter(|(n, port)| !wired.contains(n) && !named.values().any(|p| p == *port));
        let free = free.map(|(n, port)| (n, *port)).collect();
        Ok(Self {
            named,
            ports: ports.len(),
            auto: Some(AutoWires { plugs, free, plugged: BTreeMap::new() }),
        })
    }

    /// True if a device stands for the port.
    pub fn is_named(&self, port: NicPort) -> bool {
        self.named.values().any(|named| *named == port)
    }

    /// Has a device stand for a port.
    pub fn name(&mut self, device: String, port: NicPort) {
        self.named.insert(device, port);
    }

    /// A device has another name now.
    pub fn rename(&mut self, old: &str, new: &str) {
        if let Some(port) = self.named.remove(old) {
            self.named.insert(new.to_owned(), port);
        }
        if let Some(auto) = &mut self.auto
            && let Some(plugged) = auto.plugged.remove(old)
        {
            auto.plugged.insert(new.to_owned(), plugged);
        }
    }

    /// No device is or becomes a port of the NIC.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.auto.is_none()
    }

    /// The NIC's port that a device stands for. With `--wire auto`, a device that stands for none gets a wire to a free one, whose
    /// socket is kept.
    ///
    /// # Errors
    /// Why the device gets no wire, in words; without `--wire auto` there is nothing to say (`None`).
    pub fn take(&mut self, device: &str, keeper: &mut Keeper) -> Result<NicPort, Option<String>> {
        if let Some(port) = self.named.get(device) {
            return Ok(*port);
        }
        let Some(AutoWires { plugs, free, plugged }) = &mut self.auto else { return Err(None) };
        if let Some((_, port)) = plugged.get(device) {
            return Ok(*port);
        }
        let Some((number, port)) = free.pop_first() else {
            return Err(Some(format!(
                "each of the NIC's {} ports has a wire; a larger --profile has more",
                self.ports
            )));
        };
        let spec = WireSpec { port: number, kind: WireKind::Host(HostSpec::Packet(device.to_owned())) };
        if let Err(error) = plugs.plug(&spec, &mut |host| keeper.host_port(host)) {
            free.insert(number, port);
            return Err(Some(format!("no wire to {device}: {error}")));
        }
        plugged.insert(device.to_owned(), (number, port));
        Ok(port)
    }

    /// Pulls the wire that [`Self::take`] plugged; one that the command line names stays, and the answer is false.
    pub fn release(&mut self, device: &str) -> bool {
        let Some(auto) = &mut self.auto else { return false };
        let Some((number, port)) = auto.plugged.remove(device) else { return false };
        auto.plugs.unplug(number);
        auto.free.insert(number, port);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use flowlift_sim::server::{Server, ServerConfig};
    use flowlift_sim::{Config, FaultPlan, Fl1, HostClock, Profile};

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        daemon: DaemonArgs,
    }

    const PORTS: [NicPort; 3] = [NicPort(1), NicPort(2), NicPort(3)];

    fn ports(arguments: &str, plugs: Option<Plugs>) -> Result<NicPorts> {
        let arguments = ["daemon"].into_iter().chain(arguments.split_whitespace());
        NicPorts::new(&CommandLine::try_parse_from(arguments).unwrap().daemon, &PORTS, plugs)
    }

    fn refused(arguments: &str) -> String {
        ports(arguments, None).err().expect("a refusal").to_string()
    }

    #[test]
    fn a_command_line_that_cannot_be_is_refused_with_its_reason() {
        assert!(refused("--port a=p3").contains("ports p0 to p2"));
        assert!(refused("--port a=p0 --port b=p0").contains("another device"));
        assert!(refused("--port a=p0 --wire p1=packet:a").contains("another port"));
        assert!(refused("--wire auto").contains("--nic sim"));
    }

    #[test]
    fn without_auto_only_named_devices_are_the_nics() {
        let mut ports = ports("--port a=p2 --wire p0=packet:b --wire p1=tap:d", None).unwrap();
        assert!(!ports.is_empty());
        assert_eq!(
            (ports.take("a", &mut Keeper::default()), ports.take("b", &mut Keeper::default())),
            (Ok(NicPort(3)), Ok(NicPort(1)))
        );
        assert_eq!(ports.take("c", &mut Keeper::default()), Err(None));
        assert_eq!(ports.take("d", &mut Keeper::default()), Err(None), "a host at the end of a wire");
        ports.release("a");
        assert_eq!(ports.take("a", &mut Keeper::default()), Ok(NicPort(3)), "named for good");
    }

    #[test]
    fn a_device_that_cannot_have_a_wire_leaves_its_port_free() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { seed: 0, faults: FaultPlan::default(), clock: Box::new(HostClock::default()) };
        let device = Fl1::new(Profile::tiny(), config);
        let server = Server::new(device, &[], folder.path().join("sim"), ServerConfig::default()).unwrap();
        let mut some = ports("--wire auto", Some(server.plugs())).unwrap();
        for _ in 0..10 {
            let why = some.take("no-such-device", &mut Keeper::default()).unwrap_err().expect("a reason");
            assert!(why.starts_with("no wire to no-such-device: "), "{why}");
        }
        let all = "--wire auto --port a=p0 --port b=p1 --wire p2=tap:c";
        let mut none = ports(all, Some(server.plugs())).unwrap();
        let why = none.take("d", &mut Keeper::default()).unwrap_err().expect("a reason");
        assert!(why.contains("each of the NIC's 3 ports has a wire"), "{why}");
        assert_eq!(
            (none.take("b", &mut Keeper::default()), none.take("c", &mut Keeper::default()).is_ok()),
            (Ok(NicPort(2)), false)
        );
    }
}
