//! The host's devices that are ports: taken from the host's stack, and followed, as the kernel's datapath does it.
//!
//! **Taken.** The kernel's datapath takes a port's packets before the host's stack sees them. A packet socket does not; so the device
//! also becomes a port of a bridge of ours ([`SINK`]), which is down and drops everything, after packet sockets have seen it. Where
//! that is not to be had, the port works and says that the host's stack sees its packets as well.
//!
//! **Followed.** A device that is deleted or moved to another namespace is no port any more, and comes back as a new one. A renamed
//! one keeps its number. An internal port's device may move: the port goes with it, and ends when the device is deleted there.

use super::{LOCAL, Place, Plane, Port};
use crate::daemon::forward::{Forwarder, Representor};
use crate::daemon::representor::{self, Represented};
use flowlift_driver::nic::NicPort;
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{DpIndex, Refusal, VportKind};
use flowlift_port::InternalPort;
use flowlift_port::link::{Link, Links};
use std::io;

/// The bridge that keeps ports from the host's stack.
const SINK: &str = "flowlift-sink";

/// The sink, made if it is not there.
fn sink(links: &mut Links) -> io::Result<u32> {
    if let Ok(link) = links.find(SINK) {
        return Ok(link.index);
    }
    links.add_bridge(SINK)?;
    Ok(links.find(SINK)?.index)
}

impl Plane {
    /// A device that can be a port: of Ethernet, and not another device's port.
    pub(super) fn candidate(&self, name: &str) -> Result<Link, Refusal> {
        let mut links = self.links.borrow_mut();
        let link = links.find(name).map_err(|_| Refusal::NoNetdev(name.into()))?;
        if link.mac.is_none() {
            return Err(Refusal::Invalid(format!("{name} is no Ethernet device, or the loopback")));
        }
        match link.master {
            Some(master) if links.find(SINK).map_or(true, |sink| sink.index != master) => {
                Err(Refusal::Busy(format!("{name}, a port of another device,")))
            }
            _ => Ok(link),
        }
    }

    /// Keeps a port's packets from the host's stack. If that cannot be, gives the reason.
    pub(super) fn claim(&self, link: &Link) -> Option<String> {
        let mut links = self.links.borrow_mut();
        let claimed = sink(&mut links).and_then(|sink| match link.master {
            Some(master) if master == sink => Ok(()),
            _ => links.set_master(link.index, Some(sink)),
        });
        let why = claimed.err()?.to_string();
        tracing::warn!(device = link.name, why, "the host's stack sees the port's packets as well");
        Some(why)
    }

    /// Gives a device back to the host's stack, and the sink with the last one.
    pub(super) fn unclaim(&self, ifindex: u32) {
        let mut links = self.links.borrow_mut();
        let Ok(sink) = links.find(SINK) else { return };
        if links.get(ifindex).is_ok_and(|link| link.master == Some(sink.index))
            && let Err(error) = links.set_master(ifindex, None)
        {
            tracing::warn!(ifindex, %error, "a device stays out of the host's stack");
        }
        if links.all().is_ok_and(|all| all.iter().all(|link| link.master != Some(sink.index))) {
            // Who has made a port of it meanwhile keeps it.
            let _ = links.delete(sink.index);
        }
    }

    /// Gives back what an earlier daemon claimed for ports that are no more.
    pub fn unclaim_leftovers(&self) {
        let all = self.links.borrow_mut().all().unwrap_or_default();
        let Some(sink) = all.iter().find(|link| link.name == SINK).map(|link| link.index) else { return };
        let is_port = |ifindex| self.dps.values().any(|dp| dp.ports.values().any(|p| p.ifindex == ifindex));
        let left = all.iter().filter(|link| link.master == Some(sink) && !is_port(link.index));
        left.for_each(|link| self.unclaim(link.index));
    }

    /// Takes over the representors of the NIC's ports.
    pub fn set_representors(&mut self, representors: Vec<Represented>) {
        for Represented { port, name, up, .. } in &representors {
            self.nic_ports.name(name.clone(), *port);
            if !up {
                self.enable(*port, false);
            }
        }
        self.representors = representors;
    }

    fn enable(&self, port: NicPort, enabled: bool) {
        self.forwarder.send(move |forwarder| forwarder.set_nic_port_enabled(port, enabled));
    }

    /// True if the NIC's port has a representor.
    pub(super) fn is_represented(&self, port: NicPort) -> bool {
        self.representors.iter().any(|other| other.port == port)
    }

    /// The host has this device no more: it was deleted, or moved to another namespace. Gives the ports that are to be deleted.
    pub fn device_gone(&mut self, link: &Link) -> Vec<(DpIndex, PortNo)> {
        let mut gone = Vec::new();
        for (index, number, kind) in self.ports_of(link.index) {
            // The local port stays as long as its datapath, an internal one as long as it has a device anywhere.
            let stays = kind == VportKind::Internal && (number == LOCAL || self.has_device(index, number));
            if stays {
                // Elsewhere its index means nothing and its MTU is not told.
                self.with_port(index, number, |port| port.ifindex = 0);
                self.forwarder.send(move |forwarder| forwarder.set_mtu(index, number, u32::MAX));
            } else {
                gone.push((index, number));
            }
        }
        if let Some(n) = self.representors.iter().position(|other| other.ifindex == Some(link.index)) {
            self.representor_gone(n);
        }
        gone
    }

    /// The ports that the forwarder found without device and whose device is not just elsewhere, to be deleted: see
    /// [`Self::device_gone`].
    pub fn is_without_device(&self, index: DpIndex, number: PortNo) -> bool {
        let kind = self.dps.get(&index).and_then(|dp| dp.ports.get(&number)).map(|port| port.kind);
        number != LOCAL && kind.is_some() && !self.has_device(index, number)
    }

    fn has_device(&self, index: DpIndex, number: PortNo) -> bool {
        self.ask(move |forwarder| forwarder.has_device(index, number)).unwrap_or(true)
    }

    /// A representor was deleted, which its port does not follow: another one is made. One that was moved goes on where it is.
    fn representor_gone(&mut self, n: usize) {
        let Some(represented) = self.representors.get_mut(n) else { return };
        represented.ifindex = None;
        let (port, name) = (represented.port, represented.name.clone());
        if self.ask(move |forwarder| forwarder.has_representor(port)).unwrap_or(true) {
            return;
        }
        let made = representor::make(port, name, None, &mut self.links.borrow_mut(), &mut self.keeper);
        match made.map(|(represented, device)| (represented, self.add_representor(port, device))) {
            Ok((represented, Ok(()))) => {
                self.enable(port, represented.up);
                if let Some(place) = self.representors.get_mut(n) {
                    *place = represented;
                }
            }
            Ok((_, Err(refusal))) => tracing::warn!(port = port.0, %refusal, "no representor"),
            Err(error) => tracing::warn!(port = port.0, %error, "no representor"),
        }
    }

    fn add_representor(&self, port: NicPort, device: InternalPort) -> Result<(), Refusal> {
        let add = move |forwarder: &mut Forwarder| forwarder.add_representor(Representor::new(port, device));
        self.ask(add)?.map_err(|errno| Refusal::System { what: "cannot watch a representor".into(), errno })
    }

    /// The host has this device, new, back or changed.
    pub fn device_is(&mut self, link: &Link) {
        let mut renamed = false;
        for (index, number, _) in self.ports_of(link.index) {
            let mtu = link.mtu;
            self.forwarder.send(move |forwarder| forwarder.set_mtu(index, number, mtu));
            let mut old = None;
            self.with_port(index, number, |port| {
                if port.name != link.name {
                    old = Some(std::mem::replace(&mut port.name, link.name.clone()));
                }
            });
            if let Some(old) = old {
                // A datapath has its local port's name.
                if let (LOCAL, Some(dp)) = (number, self.dps.get_mut(&index)) {
                    dp.name.clone_from(&link.name);
                }
                tracing::info!(from = old, to = link.name, "a port's device has another name");
                self.nic_ports.rename(&old, &link.name);
                renamed = true;
            }
        }
        let is_it = |other: &&mut Represented| match other.ifindex {
            Some(index) => index == link.index,
            None => other.name == link.name && link.kind.as_deref() == Some("tun"),
        };
        if let Some(represented) = self.representors.iter_mut().find(is_it) {
            represented.ifindex = Some(link.index);
            let (port, name) =
                (represented.port, std::mem::replace(&mut represented.name, link.name.clone()));
            if std::mem::replace(&mut represented.up, link.up) != link.up {
                self.enable(port, link.up);
            }
            if name != link.name {
                self.nic_ports.rename(&name, &link.name);
            }
        }
        // An internal port's device that was elsewhere.
        if link.kind.as_deref() == Some("tun")
            && let Some((index, number)) = self.away(&link.name)
        {
            self.with_port(index, number, |port| port.ifindex = link.index);
            let mtu = link.mtu;
            self.forwarder.send(move |forwarder| forwarder.set_mtu(index, number, mtu));
        }
        if renamed {
            self.save();
        }
    }

    fn away(&self, name: &str) -> Option<(DpIndex, PortNo)> {
        self.dps.iter().find_map(|(index, dp)| {
            let is_it = |port: &Port| {
                port.name == name
                    && (port.ifindex, port.kind, port.place) == (0, VportKind::Internal, Place::Host)
            };
            dp.ports.iter().find(|(_, port)| is_it(port)).map(|(number, _)| (*index, *number))
        })
    }

    /// The ports that a device of the host is.
    fn ports_of(&self, ifindex: u32) -> Vec<(DpIndex, PortNo, VportKind)> {
        let all = self.dps.iter().flat_map(|(index, dp)| dp.ports.iter().map(move |(n, p)| (*index, *n, p)));
        let its = all.filter(|(_, _, port)| port.ifindex == ifindex && ifindex != 0);
        its.map(|(index, number, port)| (index, number, port.kind)).collect()
    }

    fn with_port(&mut self, index: DpIndex, number: PortNo, change: impl FnOnce(&mut Port)) {
        if let Some(port) = self.dps.get_mut(&index).and_then(|dp| dp.ports.get_mut(&number)) {
            change(port);
        }
    }
}
