//! Vports: devices opened, given to the forwarder and taken back.

use super::tunnel::tunnel_name;
use super::{Dp, MAX_PORT, Place, Plane, Port, PortInfo};
use crate::daemon::forward::DevicePort;
use flowlift_driver::nic::NicPort;
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{DpIndex, NewVport, Refusal, Vport, VportKind, VportStats};
use flowlift_port::{PortError, PortStats};
use flowlift_softpath::FlowId;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// What a device's trouble is to the client.
pub(super) fn refusal(name: &str, what: &str, error: PortError) -> Refusal {
    let errno = match &error {
        PortError::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        _ => Errno::EIO,
    };
    match errno {
        Errno::ENODEV | Errno::ENXIO => Refusal::NoNetdev(name.into()),
        Errno::EBUSY => Refusal::Busy(name.into()),
        errno => Refusal::System { what: format!("{what} {name}"), errno },
    }
}

impl Dp {
    /// The lowest number that is free, or the wanted one.
    fn port_number(&self, wanted: Option<PortNo>) -> Result<PortNo, Refusal> {
        match wanted {
            Some(port) if port.0 > MAX_PORT => Err(Refusal::PortNumbers),
            Some(port) if self.ports.contains_key(&port) => Err(Refusal::Busy(format!("port {}", port.0))),
            Some(port) => Ok(port),
            None => (1..=MAX_PORT)
                .map(PortNo)
                .find(|port| !self.ports.contains_key(port))
                .ok_or(Refusal::PortNumbers),
        }
    }

    fn all_flows(&self) -> Vec<FlowId> {
        let mut ids = Vec::new();
        self.table.borrow_mut().dump(0, |flow| {
            ids.push(flow.id);
            true
        });
        ids.retain(|id| !self.probes.contains(id));
        ids
    }
}

impl Plane {
    /// An internal port's device. It outlives the daemon, so that its addresses and routes are there when the daemon comes back.
    pub(super) fn open_internal(&mut self, name: &str) -> Result<(DevicePort, u32), Refusal> {
        let opened = self.keeper.internal_port(name);
        let port = opened.map_err(|error| refusal(name, "cannot make internal port", error))?;
        let ifindex = if_nametoindex(name).map_err(|_| Refusal::NoNetdev(name.into()))?;
        Ok((DevicePort::Internal(port), ifindex))
    }

    pub(super) fn add_vport(&mut self, index: DpIndex, new: NewVport) -> Result<PortNo, Refusal> {
        let NewVport { name, kind, port, upcall_pids } = new;
        let dp = self.dp(index)?;
        if self.dps.values().any(|dp| dp.ports.values().any(|port| port.name == name)) {
            return Err(Refusal::Exists(name));
        }
        let number = dp.port_number(port)?;
        let tunnel = self.tunnel_kind(&name, kind);
        let (mut not_nic, mut host_sees) = (None, None);
        let (place, ifindex) = match kind {
            VportKind::Netdev if tunnel.is_some() => {
                let port = self.take_tunnel(&name)?;
                self.add_tunnel_port(index, number, port, &name)?;
                (Place::Host, 0)
            }
            VportKind::Netdev => {
                let link = self.candidate(&name)?;
                let place = match self.nic_ports.take(&name, &mut self.keeper) {
                    Ok(nic_port) => self.add_nic_port(index, number, nic_port, &name)?,
                    Err(why) => {
                        not_nic = why;
                        let source = self
                            .keeper
                            .packet_port(link.index)
                            .map_err(|error| refusal(&name, "cannot open", error))?;
                        self.add_host_port(index, number, DevicePort::Netdev(source), &name)?;
                        Place::Host
                    }
                };
                host_sees = self.claim(&link);
                (place, link.index)
            }
            VportKind::Internal => {
                let (source, ifindex) = self.open_internal(&name)?;
                self.add_host_port(index, number, source, &name)?;
                (Place::Host, ifindex)
            }
            VportKind::Gre | VportKind::Vxlan { .. } | VportKind::Geneve { .. } => {
                let port = self.open_tunnel(&name, tunnel)?;
                self.add_tunnel_port(index, number, port, &name)?;
                (Place::Host, 0)
            }
        };
        if let Some(why) = &not_nic {
            tracing::warn!(device = name, why, "not a port of the NIC");
        }
        let port = Port { name, kind, upcall_pids, ifindex, place, not_nic, host_sees, tunnel };
        self.dp_mut(index)?.ports.insert(number, port);
        self.tell_targets(index);
        Ok(number)
    }

    /// Gives a port of the NIC to the forwarder, with the datapath's flows if it is the first one.
    fn add_nic_port(
        &mut self,
        index: DpIndex,
        number: PortNo,
        nic_port: NicPort,
        name: &str,
    ) -> Result<Place, Refusal> {
        let flows = self.dp(index)?.all_flows();
        if self.ask(move |f| f.add_nic_port(index, number, nic_port, &flows))? {
            return Ok(Place::Nic(nic_port));
        }
        self.nic_ports.release(name);
        Err(Refusal::Busy(format!("{name}, a port of the NIC that has another number already,")))
    }

    /// Gives a port of the host to the forwarder.
    pub(super) fn add_host_port(
        &self,
        index: DpIndex,
        number: PortNo,
        source: DevicePort,
        name: &str,
    ) -> Result<(), Refusal> {
        let sender = source.sender();
        self.ask(move |f| f.add_host_port(index, number, source))?
            .map_err(|errno| Refusal::System { what: format!("cannot watch {name}"), errno })?;
        self.direct.borrow_mut().set(index, number, sender);
        Ok(())
    }

    pub(super) fn remove_vport(&mut self, index: DpIndex, number: PortNo) -> Result<(), Refusal> {
        let port = self.dp_mut(index)?.ports.remove(&number).ok_or(Refusal::NoVport)?;
        self.forget_port_totals(index, number);
        self.direct.get_mut().set(index, number, None);
        let source = self.ask(move |f| f.remove_port(index, number))?;
        if port.kind == VportKind::Netdev {
            self.unclaim(port.ifindex);
        }
        match port.kind {
            VportKind::Internal => self.keeper.close(&port.name),
            // A wire that the command line names stays.
            _ if matches!(port.place, Place::Nic(_)) && !self.nic_ports.release(&port.name) => {}
            _ => self.keeper.close_packet_port(port.ifindex),
        }
        // The device of an internal port is ours to take away.
        if let Some(DevicePort::Internal(device)) = source
            && let Err(error) = device.delete()
        {
            tracing::warn!(name = port.name, %error, "an internal port's device stays");
        }
        self.tell_targets(index);
        Ok(())
    }

    pub(super) fn describe_vport(&self, index: DpIndex, number: PortNo) -> Option<Vport> {
        let port = self.dps.get(&index)?.ports.get(&number)?;
        let (stats, upcalls) = self.ask(move |f| f.port_counters(index, number)).ok()?;
        // A device's counters are the kernel's, and go on by themselves.
        let (stats, device) = match (port.place, stats) {
            (Place::Host, Some(stats)) => (of_host(&stats), None),
            (Place::Nic(nic), _) if self.is_represented(nic) => {
                (self.of_nic_port(nic).unwrap_or_default(), None)
            }
            (Place::Nic(_), _) => (VportStats::default(), self.of_device(port.ifindex)),
            (Place::Host, None) => (VportStats::default(), None),
        };
        let (stats, upcalls) = self.port_totals(index, number, (stats, upcalls));
        let stats = device.unwrap_or(stats);
        Some(Vport {
            port: number,
            name: port.name.clone(),
            kind: port.kind,
            ifindex: port.ifindex,
            upcall_pids: port.upcall_pids.clone(),
            stats,
            upcalls,
        })
    }

    /// The counters of the device at the other end of a NIC port's wire: what it received came into the datapath.
    fn of_device(&self, ifindex: u32) -> Option<VportStats> {
        let stats = self.links.borrow_mut().get(ifindex).ok()?.stats;
        Some(VportStats {
            rx_packets: stats.rx_packets,
            tx_packets: stats.tx_packets,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            rx_errors: stats.rx_errors,
            tx_errors: stats.tx_errors,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        })
    }

    /// The counters of a port of the NIC.
    fn of_nic_port(&self, port: NicPort) -> Option<VportStats> {
        let counters = self.ask(move |f| f.nic_port_counters(port)).ok()??;
        Some(VportStats {
            rx_packets: counters.rx_packets,
            tx_packets: counters.tx_packets,
            rx_bytes: counters.rx_bytes,
            tx_bytes: counters.tx_bytes,
            tx_dropped: counters.tx_dropped,
            ..VportStats::default()
        })
    }

    /// All ports, for people.
    pub fn ports(&self) -> Vec<PortInfo> {
        let mut all = Vec::new();
        for (index, dp) in &self.dps {
            for (number, port) in &dp.ports {
                let Some(vport) = self.describe_vport(*index, *number) else { continue };
                let stats = vport.stats;
                all.push(PortInfo {
                    datapath: dp.name.clone(),
                    port: number.0,
                    name: port.name.clone(),
                    kind: match (port.tunnel, port.kind) {
                        (Some(tunnel), _) => tunnel_name(tunnel),
                        (None, VportKind::Internal) => "internal",
                        (None, _) => "netdev",
                    },
                    nic_port: match port.place {
                        Place::Nic(nic) => Some(nic.0),
                        Place::Host => None,
                    },
                    not_nic: port.not_nic.clone(),
                    host_sees: port.host_sees.clone(),
                    rx_packets: stats.rx_packets,
                    rx_bytes: stats.rx_bytes,
                    rx_dropped: stats.rx_dropped + stats.rx_errors,
                    tx_packets: stats.tx_packets,
                    tx_bytes: stats.tx_bytes,
                    tx_dropped: stats.tx_dropped + stats.tx_errors,
                    upcalls: vport.upcalls.0,
                    upcalls_lost: vport.upcalls.1,
                });
            }
        }
        all
    }
}

fn of_host(stats: &PortStats) -> VportStats {
    VportStats {
        rx_packets: stats.rx_frames,
        tx_packets: stats.tx_frames,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        rx_errors: stats.rx_giants + stats.rx_runts + stats.rx_malformed,
        tx_errors: stats.tx_too_long + stats.tx_errors,
        rx_dropped: stats.rx_overruns,
        tx_dropped: stats.tx_full,
    }
}
