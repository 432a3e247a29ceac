//! Makes the devices of the NIC's representors: `PREFIXpN` for its physical port N and `PREFIXvfN` for the port of its virtual
//! function N, each counted from 0. What a representor does is [`super::forward::Representor`]'s matter.

use super::keeper::Keeper;
use anyhow::{Context, Result};
use flowlift_driver::nic::{NicPort, PortCaps};
use flowlift_port::InternalPort;
use flowlift_port::link::Links;

/// A port of the NIC and the device that represents it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Represented {
    /// The port.
    pub port: NicPort,
    /// The device's name.
    pub name: String,
    /// Its index, as long as it is in the daemon's network namespace.
    pub ifindex: Option<u32>,
    /// It is set up, and so is the port.
    pub up: bool,
}

/// The names of all ports' representors.
pub(super) fn names(ports: &[PortCaps], prefix: &str) -> Vec<(NicPort, String)> {
    let (mut physical, mut virtual_functions) = (0.., 0..);
    let name = |port: &PortCaps| {
        let (kind, counter): (_, &mut std::ops::RangeFrom<u32>) =
            if port.virtual_function { ("vf", &mut virtual_functions) } else { ("p", &mut physical) };
        (port.port, format!("{prefix}{kind}{}", counter.next().unwrap_or(0)))
    };
    ports.iter().map(name).collect()
}

/// Makes a port's representor, or finds the one of an earlier daemon, whose ports and settings it has. A new one is set up, and has
/// `address` if there is one.
///
/// # Errors
/// The name is another device's, or no rights.
pub(super) fn make(
    port: NicPort,
    name: String,
    address: Option<[u8; 6]>,
    links: &mut Links,
    keeper: &mut Keeper,
) -> Result<(Represented, InternalPort)> {
    let is_new = links.find(&name).is_err();
    let device = keeper
        .internal_port(&name)
        .with_context(|| format!("cannot make {name}, the representor of the NIC's port {}", port.0))?;
    let mut link = links.find(&name).with_context(|| format!("{name} is gone"))?;
    if is_new {
        if let Some(address) = address {
            links.set_mac(link.index, address).with_context(|| format!("the address of {name}"))?;
        }
        links.set_up(link.index, true).with_context(|| format!("cannot set {name} up"))?;
        link.up = true;
    }
    Ok((Represented { port, name, ifindex: Some(link.index), up: link.up }, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_by_their_kind() {
        let caps =
            |port, virtual_function| PortCaps { port: NicPort(port), virtual_function, max_frame: 1514 };
        let names = names(&[caps(1, false), caps(2, false), caps(3, true), caps(4, true)], "nic0");
        let names: Vec<(u16, &str)> = names.iter().map(|(port, name)| (port.0, name.as_str())).collect();
        assert_eq!(names, [(1, "nic0p0"), (2, "nic0p1"), (3, "nic0vf0"), (4, "nic0vf1")]);
    }
}
