//! Handing a function to vfio-pci, and giving it back.
//!
//! Each step that changes something is noted, and when a later one fails the noted ones are undone in reverse. The
//! driver that the function had is kept in `run/flowlift/ADDRESS`, so that another process can give it back.

use super::function::blockers;
use super::{BindError, Host, PciAddress, VFIO_PCI, text};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a group's node may take to appear.
const NODE_DEADLINE: Duration = Duration::from_secs(2);

/// How to bind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// User who gets the group's node.
    pub uid: Option<u32>,
    /// Take the function although the host uses it.
    pub force: bool,
}

/// A function that is bound to vfio-pci now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Its IOMMU group.
    pub group: u32,
    /// Node of the group.
    pub node: PathBuf,
    /// Node of the function itself, where the host has iommufd.
    pub device_node: Option<PathBuf>,
    /// Driver that it had; `None`: no driver, or bound to vfio-pci already.
    pub former: Option<String>,
    /// True if it was bound to vfio-pci already.
    pub already: bool,
}

/// A function that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound {
    /// Driver that it has now.
    pub driver: Option<String>,
}

/// What binding changed.
enum Done {
    Recorded,
    Overridden(String),
    Released(String),
    Taken,
}

/// Driver and `driver_override` that a function had; empty: none.
struct Former {
    driver: String,
    forced: String,
}

impl Host {
    fn record(&self, address: PciAddress) -> PathBuf {
        self.path(format!("run/flowlift/{address}"))
    }

    /// Writes to a file of sysfs.
    fn set(&self, path: PathBuf, value: &str) -> Result<(), BindError> {
        self.kernel
            .write(&path, value)
            .map_err(|e| BindError::io(format!("writing to {}", path.display()), e))
    }

    fn driver_file(&self, driver: &str, file: &str) -> PathBuf {
        self.path(format!("sys/bus/pci/drivers/{driver}/{file}"))
    }

    /// The value of `driver_override`; empty: none.
    fn forced(&self, address: PciAddress) -> Result<String, BindError> {
        let forced = text(&self.folder(address).join("driver_override"))?;
        Ok(if forced == "(null)" { String::new() } else { forced })
    }

    fn force_driver(&self, address: PciAddress, driver: &str) -> Result<(), BindError> {
        self.set(self.folder(address).join("driver_override"), &format!("{driver}\n"))
    }

    /// Hands a function to vfio-pci, and its group's node to a user.
    ///
    /// # Errors
    /// Every reason not to ([`BindError`]); the function is then as it was before, or the error says that it is not.
    pub fn bind(&self, address: PciAddress, options: &BindOptions) -> Result<Bound, BindError> {
        let f = self.function(address)?;
        let group = f.group.ok_or(BindError::NoIommu(address))?;
        if !self.path("sys/bus/pci/drivers/vfio-pci").exists() {
            return Err(BindError::NoVfioPci);
        }
        if let Some(others) = blockers(&f.neighbours) {
            return Err(BindError::GroupShared { address, group, others });
        }
        let node = self.group_node(group);
        if f.driver.as_deref() == Some(VFIO_PCI) {
            self.hand_over(address, group, options)?;
            let device_node = self.device_node(address);
            return Ok(Bound { group, node, device_node, former: None, already: true });
        }
        if let (Some(why), false) = (f.in_use(), options.force) {
            return Err(BindError::InUse { address, why });
        }
        let mut done = Vec::new();
        match self.take(address, f.driver.as_deref(), group, options, &mut done) {
            Ok(()) => {
                let device_node = self.device_node(address);
                Ok(Bound { group, node, device_node, former: f.driver, already: false })
            }
            Err(cause) => Err(self.undo(address, cause, done)),
        }
    }

    fn take(
        &self,
        address: PciAddress,
        driver: Option<&str>,
        group: u32,
        options: &BindOptions,
        done: &mut Vec<Done>,
    ) -> Result<(), BindError> {
        let forced = self.forced(address)?;
        self.keep(address, driver.unwrap_or(""), &forced)?;
        done.push(Done::Recorded);
        self.force_driver(address, VFIO_PCI)?;
        done.push(Done::Overridden(forced));
        if let Some(driver) = driver {
            self.set(self.driver_file(driver, "unbind"), &address.to_string())?;
            done.push(Done::Released(driver.into()));
        }
        self.set(self.driver_file(VFIO_PCI, "bind"), &address.to_string())?;
        done.push(Done::Taken);
        self.expect_driver(address, VFIO_PCI)?;
        self.hand_over(address, group, options)
    }

    /// Waits for the nodes, of the group and of the function, and gives them to the user.
    fn hand_over(&self, address: PciAddress, group: u32, options: &BindOptions) -> Result<(), BindError> {
        let node = self.group_node(group);
        let start = Instant::now();
        // The kernel makes both at once, or the function's alone where it has no groups.
        while !node.exists() && self.device_node(address).is_none() {
            if start.elapsed() > NODE_DEADLINE {
                let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(BindError::io(format!("waiting for {}", node.display()), missing));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let Some(uid) = options.uid else { return Ok(()) };
        let device = self.device_node(address);
        for node in device.iter().chain(Some(&node).filter(|node| node.exists())) {
            self.kernel
                .chown(node, uid)
                .map_err(|e| BindError::io(format!("giving {} to user {uid}", node.display()), e))?;
        }
        if device.is_some() {
            // By itself it gives nobody a device, as /dev/vfio/vfio does not, which the kernel opens to all on its own.
            let iommu = self.iommu_node();
            let opened = self.kernel.open_to_all(&iommu);
            opened.map_err(|e| BindError::io(format!("opening {} to all", iommu.display()), e))?;
        }
        Ok(())
    }

    fn expect_driver(&self, address: PciAddress, wanted: &str) -> Result<(), BindError> {
        let now = self.driver(address);
        if now.as_deref() == Some(wanted) {
            return Ok(());
        }
        let now = now.unwrap_or_else(|| "no driver".into());
        Err(BindError::WrongDriver { address, wanted: wanted.into(), now })
    }

    /// Undoes in reverse, as far as it goes, and joins the first failure of that to the cause.
    fn undo(&self, address: PciAddress, cause: BindError, done: Vec<Done>) -> BindError {
        let at = address.to_string();
        let mut failed = None;
        for step in done.into_iter().rev() {
            let undone = match step {
                Done::Taken => self.set(self.driver_file(VFIO_PCI, "unbind"), &at),
                // Its override is vfio-pci until the next step, and a driver's own `bind` heeds that.
                Done::Released(driver) => self
                    .force_driver(address, "")
                    .and_then(|()| self.set(self.driver_file(&driver, "bind"), &at)),
                Done::Overridden(forced) => self.force_driver(address, &forced),
                Done::Recorded => self.forget(address),
            };
            if let Err(e) = undone {
                failed.get_or_insert(e);
            }
        }
        match failed {
            Some(undo) => BindError::HalfDone { cause: Box::new(cause), undo: Box::new(undo) },
            None => cause,
        }
    }

    /// Gives a function back to the driver that it had before [`Host::bind`], or where that is not known to the one
    /// that the kernel picks.
    ///
    /// # Errors
    /// It is not bound to vfio-pci, a process drives it (without `force`; with it, this waits until the process lets
    /// go), or a step failed.
    pub fn unbind(&self, address: PciAddress, force: bool) -> Result<Unbound, BindError> {
        let f = self.function(address)?;
        if f.driver.as_deref() != Some(VFIO_PCI) {
            let driver = f.driver.unwrap_or_else(|| "no driver".into());
            return Err(BindError::NotBound { address, driver });
        }
        if let (Some(group), false) = (f.group, force) {
            let node = self.group_node(group);
            // A group can be open once.
            let opened = self.kernel.try_open(&node);
            if opened.is_err_and(|e| e.raw_os_error() == Some(nix::libc::EBUSY)) {
                return Err(BindError::Driven { address, node });
            }
        }
        let at = address.to_string();
        let former = self.former(address);
        let forced = self.forced(address)?;
        self.force_driver(address, former.as_ref().map_or("", |f| &f.forced))?;
        if let Err(cause) = self.set(self.driver_file(VFIO_PCI, "unbind"), &at) {
            return Err(self.undo(address, cause, vec![Done::Overridden(forced)]));
        }
        match &former {
            Some(f) if f.driver.is_empty() => {}
            Some(f) if self.driver_file(&f.driver, "bind").exists() => {
                self.set(self.driver_file(&f.driver, "bind"), &at)?;
                self.expect_driver(address, &f.driver)?;
            }
            _ => self.set(self.path("sys/bus/pci/drivers_probe"), &at)?,
        }
        self.forget(address)?;
        Ok(Unbound { driver: self.driver(address) })
    }

    fn keep(&self, address: PciAddress, driver: &str, forced: &str) -> Result<(), BindError> {
        let path = self.record(address);
        let write = || {
            std::fs::create_dir_all(self.path("run/flowlift"))?;
            std::fs::write(&path, format!("{driver}\n{forced}\n"))
        };
        write().map_err(|e| BindError::io(format!("writing {}", path.display()), e))
    }

    fn former(&self, address: PciAddress) -> Option<Former> {
        let record = std::fs::read_to_string(self.record(address)).ok()?;
        let mut lines = record.lines();
        let driver = lines.next()?.to_owned();
        // The name becomes part of a path.
        let sane = !driver.contains('/') && driver != "..";
        sane.then(|| Former { driver, forced: lines.next().unwrap_or_default().to_owned() })
    }

    fn forget(&self, address: PciAddress) -> Result<(), BindError> {
        let path = self.record(address);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(BindError::io(format!("removing {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }
}
