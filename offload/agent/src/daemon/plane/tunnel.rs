//! Tunnel devices, which Open vSwitch makes before it adds them as vports, and the sockets under tunnel ports.
//!
//! A device's socket is open from the moment that the device is made, so that its maker hears at once if the UDP port is taken.

use super::Plane;
use super::vport::refusal;
use crate::daemon::forward::{DevicePort, TunnelInlet};
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{DpIndex, Refusal, TunnelDevice, TunnelKind, VportKind};
use flowlift_port::tunnel::IpVersion;
use flowlift_port::{TunnelKind as Protocol, TunnelPort};
use nix::net::if_::if_nametoindex;

/// A tunnel device.
pub(super) struct Tunnel {
    pub(super) device: TunnelDevice,
    /// Its socket while no vport has it.
    waiting: Option<TunnelPort>,
}

/// The protocol as people know it.
pub(super) fn tunnel_name(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Vxlan { .. } => "vxlan",
        TunnelKind::VxlanGpe { .. } => "vxlan-gpe",
        TunnelKind::Geneve { .. } => "geneve",
        TunnelKind::Gre | TunnelKind::Gretap => "gre",
        TunnelKind::Ip6gretap => "ip6gre",
        TunnelKind::Erspan => "erspan",
        TunnelKind::Ip6erspan => "ip6erspan",
    }
}

/// The socket of a tunnel.
fn open(name: &str, kind: TunnelKind) -> Result<TunnelPort, Refusal> {
    let protocol = match kind {
        TunnelKind::Vxlan { dst_port, gbp } => Protocol::Vxlan { port: dst_port, gbp },
        TunnelKind::VxlanGpe { dst_port } => Protocol::VxlanGpe { port: dst_port },
        TunnelKind::Geneve { dst_port } => Protocol::Geneve { port: dst_port },
        TunnelKind::Gre => Protocol::AnyGre(IpVersion::V4),
        TunnelKind::Gretap => Protocol::Gre(IpVersion::V4),
        TunnelKind::Ip6gretap => Protocol::Gre(IpVersion::V6),
        TunnelKind::Erspan => Protocol::Erspan(IpVersion::V4),
        TunnelKind::Ip6erspan => Protocol::Erspan(IpVersion::V6),
    };
    TunnelPort::open(protocol).map_err(|error| refusal(name, "cannot take the packets of tunnel", error))
}

impl Plane {
    /// The protocol of a vport to be, if it is a tunnel.
    pub(super) fn tunnel_kind(&self, name: &str, kind: VportKind) -> Option<TunnelKind> {
        match kind {
            VportKind::Netdev => self.tunnels.get(name).map(|tunnel| tunnel.device.kind),
            VportKind::Internal => None,
            VportKind::Gre => Some(TunnelKind::Gretap),
            VportKind::Vxlan { dst_port, gbp } => Some(TunnelKind::Vxlan { dst_port, gbp }),
            VportKind::Geneve { dst_port } => Some(TunnelKind::Geneve { dst_port }),
        }
    }

    /// The socket of a tunnel without a device.
    pub(super) fn open_tunnel(&self, name: &str, kind: Option<TunnelKind>) -> Result<TunnelPort, Refusal> {
        let kind = kind.ok_or_else(|| Refusal::NoNetdev(name.into()))?;
        let ports = self.dps.values().flat_map(|dp| dp.ports.values()).filter_map(|port| port.tunnel);
        let mut all = ports.chain(self.tunnels.values().map(|tunnel| tunnel.device.kind));
        if all.any(|other| other.overlaps(kind)) {
            return Err(Refusal::Exists(format!("another tunnel for the packets of {name}")));
        }
        open(name, kind)
    }

    /// The socket of a tunnel device.
    pub(super) fn take_tunnel(&mut self, name: &str) -> Result<TunnelPort, Refusal> {
        let tunnel = self.tunnels.get_mut(name).ok_or_else(|| Refusal::NoNetdev(name.into()))?;
        match tunnel.waiting.take() {
            Some(port) => Ok(port),
            // A vport before this one had it.
            None => open(name, tunnel.device.kind),
        }
    }

    /// Gives a tunnel's socket to the forwarder.
    pub(super) fn add_tunnel_port(
        &self,
        index: DpIndex,
        number: PortNo,
        port: TunnelPort,
        name: &str,
    ) -> Result<(), Refusal> {
        self.add_host_port(index, number, DevicePort::Tunnel(TunnelInlet::new(port)), name)
    }

    pub(super) fn add_tunnel_device(&mut self, device: TunnelDevice) -> Result<(), Refusal> {
        let taken = self.tunnels.contains_key(&device.name) || if_nametoindex(device.name.as_str()).is_ok();
        if taken {
            return Err(Refusal::Exists(device.name));
        }
        let waiting = Some(self.open_tunnel(&device.name, Some(device.kind))?);
        self.tunnels.insert(device.name.clone(), Tunnel { device, waiting });
        Ok(())
    }

    pub(super) fn set_tunnel_device(&mut self, name: &str, mtu: u32) -> Result<(), Refusal> {
        let tunnel = self.tunnels.get_mut(name).ok_or_else(|| Refusal::NoNetdev(name.into()))?;
        tunnel.device.mtu = mtu;
        Ok(())
    }

    pub(super) fn remove_tunnel_device(&mut self, name: &str) -> Result<(), Refusal> {
        if !self.tunnels.contains_key(name) {
            return Err(Refusal::NoNetdev(name.into()));
        }
        let ports = self.dps.iter().flat_map(|(index, dp)| dp.ports.iter().map(move |port| (*index, port)));
        let port = ports.into_iter().find(|(_, (_, port))| port.name == name && port.tunnel.is_some());
        if let Some((index, number)) = port.map(|(index, (number, _))| (index, *number)) {
            self.remove_vport(index, number)?;
        }
        self.tunnels.remove(name);
        Ok(())
    }

    pub(super) fn show_tunnel_device(&self, name: &str) -> Option<TunnelDevice> {
        self.tunnels.get(name).map(|tunnel| tunnel.device.clone())
    }
}
