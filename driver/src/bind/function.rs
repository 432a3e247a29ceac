//! Which functions there are, who has them, and whether this program could.

use super::{BindError, Host, PciAddress, VFIO_PCI, hex, link_name, names, text};
use std::net::IpAddr;
use std::path::Path;

/// Base class of network controllers.
const CLASS_NETWORK: u32 = 0x02;
/// Drivers that do no DMA of their own, so that the rest of their IOMMU group can be handed to user space.
const HARMLESS: [&str; 3] = [VFIO_PCI, "pci-stub", "pcieport"];
/// IFF_UP of a netdev's flags.
const IFF_UP: u32 = 1;

/// Devices that flowlift has a driver for: vendor, device, name.
const KNOWN: [(u16, u16, &str); 2] =
    [(crate::fl1::PCI_ID.0, crate::fl1::PCI_ID.1, "FL1"), (0x1b36, 0x0006, "rocker")];

/// A netdev of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netdev {
    /// Name.
    pub name: String,
    /// True if it is up.
    pub up: bool,
    /// Addresses, without link-local ones: every netdev that is up has those.
    pub addresses: Vec<IpAddr>,
    /// Routes through it, without link-local and multicast ones.
    pub routes: usize,
    /// Bridge, bond or other netdev that it is a port of.
    pub upper: Option<String>,
}

impl Netdev {
    /// Why the host would miss this netdev; `None` if it would not.
    pub fn in_use(&self) -> Option<String> {
        if !self.up {
            return None;
        }
        let mut why = Vec::new();
        why.extend(self.addresses.iter().map(|a| format!("address {a}")));
        if self.routes > 0 {
            why.push(format!("{} route{}", self.routes, if self.routes == 1 { "" } else { "s" }));
        }
        why.extend(self.upper.iter().map(|u| format!("a place in {u}")));
        (!why.is_empty()).then(|| format!("netdev {} is up and has {}", self.name, why.join(", ")))
    }
}

/// Another function of the same IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: PciAddress,
    /// Its driver.
    pub driver: Option<String>,
}

impl Neighbour {
    /// True if this one keeps user space from driving the group.
    pub fn blocks(&self) -> bool {
        self.driver.as_deref().is_some_and(|d| !HARMLESS.contains(&d))
    }
}

/// Whether this program can have a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Bound to vfio-pci, and this process may open its group.
    Ready,
    /// Can be bound.
    Bindable,
    /// Neither, and why.
    No(String),
}

/// A PCI function as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Address.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code, 24 bits: base class, sub-class, interface.
    pub class: u32,
    /// Name of the device, where flowlift has a driver for it.
    pub known: Option<&'static str>,
    /// Driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// The rest of its IOMMU group.
    pub neighbours: Vec<Neighbour>,
    /// Its netdevs in this network namespace.
    pub netdevs: Vec<Netdev>,
    /// Virtual functions that it has enabled.
    pub virtual_functions: u32,
    /// Whether this program can have it.
    pub verdict: Verdict,
}

impl Host {
    /// Network-class functions and every device that flowlift has a driver for, ascending by address. Functions that
    /// vanish meanwhile are left out.
    ///
    /// # Errors
    /// There is no sysfs here, or it holds what it cannot.
    pub fn list(&self) -> Result<Vec<Function>, BindError> {
        let folder = self.path("sys/bus/pci/devices");
        std::fs::read_dir(&folder).map_err(|e| BindError::io(format!("reading {}", folder.display()), e))?;
        let mut found = Vec::new();
        for address in names(&folder).iter().filter_map(|name| name.parse().ok()) {
            match self.function(address) {
                Ok(f) if f.class >> 16 == CLASS_NETWORK || f.known.is_some() => found.push(f),
                Ok(_) | Err(BindError::NoSuchFunction(_)) => {}
                Err(_) if !self.folder(address).exists() => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_by_key(|f| f.address);
        Ok(found)
    }

    /// One function, of any class.
    ///
    /// # Errors
    /// There is no such function, or sysfs holds what it cannot.
    pub fn function(&self, address: PciAddress) -> Result<Function, BindError> {
        let folder = self.folder(address);
        if !folder.exists() {
            return Err(BindError::NoSuchFunction(address));
        }
        let (vendor, device) = (hex(&folder.join("vendor"))? as u16, hex(&folder.join("device"))? as u16);
        let group = link_name(&folder.join("iommu_group")).and_then(|g| g.parse().ok());
        let mut function = Function {
            address,
            vendor,
            device,
            class: hex(&folder.join("class"))?,
            known: KNOWN.iter().find(|k| (k.0, k.1) == (vendor, device)).map(|k| k.2),
            driver: self.driver(address),
            group,
            neighbours: group.map(|g| self.neighbours(address, g)).unwrap_or_default(),
            netdevs: Vec::new(),
            virtual_functions: text(&folder.join("sriov_numvfs"))
                .ok()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            verdict: Verdict::Bindable,
        };
        // A netdev belongs to the function itself, or to a device one step below it (virtio, auxiliary devices).
        let below = names(&folder).into_iter().filter(|child| child != "net").map(|child| folder.join(child));
        let below = below.filter(|child| child.is_dir() && !child.is_symlink());
        for nets in std::iter::once(folder.clone()).chain(below).map(|device| device.join("net")) {
            for name in names(&nets) {
                function.netdevs.push(self.netdev(&nets, name)?);
            }
        }
        function.verdict = self.verdict(&function);
        Ok(function)
    }

    /// The driver that a function is bound to.
    pub(super) fn driver(&self, address: PciAddress) -> Option<String> {
        link_name(&self.folder(address).join("driver"))
    }

    fn neighbours(&self, address: PciAddress, group: u32) -> Vec<Neighbour> {
        names(&self.path(format!("sys/kernel/iommu_groups/{group}/devices")))
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(|other| *other != address)
            .map(|address| Neighbour { address, driver: self.driver(address) })
            .collect()
    }

    /// A netdev in a folder of netdevs.
    fn netdev(&self, nets: &Path, name: String) -> Result<Netdev, BindError> {
        let folder = nets.join(&name);
        let addresses = self.kernel.addresses(&name);
        let addresses =
            addresses.map_err(|e| BindError::io(format!("reading the addresses of {name}"), e))?;
        Ok(Netdev {
            up: hex(&folder.join("flags"))? & IFF_UP != 0,
            addresses: addresses.into_iter().filter(|a| !link_local(a)).collect(),
            routes: self.routes(&name),
            upper: link_name(&folder.join("master")),
            name,
        })
    }

    /// Routes of the main table through a netdev, of both families.
    fn routes(&self, netdev: &str) -> usize {
        let lines = |file: &str| std::fs::read_to_string(self.path(file)).unwrap_or_default();
        let v4 = lines("proc/net/route");
        let v4 = v4.lines().skip(1).filter(|l| l.split_whitespace().next() == Some(netdev));
        let v6 = lines("proc/net/ipv6_route");
        let v6 = v6.lines().filter(|l| {
            l.split_whitespace().next_back() == Some(netdev)
                && !["fe80", "ff0", "ff1"].iter().any(|own| l.starts_with(own))
        });
        v4.count() + v6.count()
    }

    fn verdict(&self, f: &Function) -> Verdict {
        let Some(group) = f.group else { return Verdict::No("no IOMMU group".into()) };
        if let Some(others) = blockers(&f.neighbours) {
            return Verdict::No(format!("shares its IOMMU group with {others}"));
        }
        if f.driver.as_deref() == Some(VFIO_PCI) {
            let node = self.group_node(group);
            let device_node = || self.device_node(f.address).map(|node| self.kernel.try_open(&node));
            return match self.kernel.try_open(&node) {
                Ok(()) => Verdict::Ready,
                Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => Verdict::No("being driven".into()),
                // By the function's own node it can be had as well.
                Err(_) if device_node().is_some_and(|opened| opened.is_ok()) => Verdict::Ready,
                Err(e) => Verdict::No(format!("{}: {e}", node.display())),
            };
        }
        if let Some(why) = f.in_use() {
            return Verdict::No(why);
        }
        if !self.path("sys/bus/pci/drivers/vfio-pci").exists() {
            return Verdict::No("vfio-pci is not loaded".into());
        }
        Verdict::Bindable
    }
}

impl Function {
    /// Why the host would miss this function; `None` if it would not.
    pub fn in_use(&self) -> Option<String> {
        let vfs = (self.virtual_functions > 0)
            .then(|| format!("it has {} virtual functions that would go with it", self.virtual_functions));
        self.netdevs.iter().find_map(Netdev::in_use).or(vfs)
    }
}

/// The functions of a group that keep user space from it, for a message; `None` if there are none.
pub(super) fn blockers(neighbours: &[Neighbour]) -> Option<String> {
    let all: Vec<String> = neighbours
        .iter()
        .filter(|n| n.blocks())
        .map(|n| format!("{} ({})", n.address, n.driver.as_deref().unwrap_or("no driver")))
        .collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
