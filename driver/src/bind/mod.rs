//! PCI functions of this machine: list them, hand one to vfio-pci, give it back, look into it.
//!
//! Everything is read from sysfs below a root folder, so that tests can show it any machine; what only a kernel can do
//! (act on a write to `bind`, tell addresses of a netdev) stands behind [`Kernel`]. Paths and their meaning are the
//! kernel's Documentation/ABI/testing/sysfs-bus-pci and sysfs-kernel-iommu_groups.

mod error;
mod function;
mod inspect;
mod take;

pub use error::BindError;
pub use function::{Function, Neighbour, Netdev, Verdict};
pub use inspect::{Bar, Capability, Detail, Inspection, Msix, describe};
pub use take::{BindOptions, Bound, Unbound};

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The driver that hands functions to user space.
pub const VFIO_PCI: &str = "vfio-pci";

/// Where a function is: domain (up to 32 bits), bus, device (0 to 31), function (0 to 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = BindError;

    /// Takes `DOMAIN:BUS:DEVICE.FUNCTION` in hexadecimal; without a domain it is 0.
    fn from_str(s: &str) -> Result<Self, BindError> {
        let parse = || {
            let hex = |s: &str, digits: usize| {
                let fits = (1..=digits).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
                if fits { u32::from_str_radix(s, 16).ok() } else { None }
            };
            let (rest, function) = s.split_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let (device, function) = (hex(device, 2)?, hex(function, 1)?);
            (device < 32 && function < 8).then_some(Self {
                domain: hex(domain, 8)?,
                bus: hex(bus, 2)? as u8,
                device: device as u8,
                function: function as u8,
            })
        };
        parse().ok_or_else(|| BindError::BadAddress(s.into()))
    }
}

/// What a kernel does beyond holding files.
pub trait Kernel: Send + Sync {
    /// Writes to a file of sysfs; the write takes effect before this returns.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Addresses of a netdev.
    fn addresses(&self, netdev: &str) -> io::Result<Vec<IpAddr>>;
    /// Gives a node to a user.
    fn chown(&self, path: &Path, uid: u32) -> io::Result<()>;
    /// Lets everyone open a node.
    fn open_to_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a node and closes it again: whether this process could have it now.
    fn try_open(&self, path: &Path) -> io::Result<()>;
}

/// The kernel that this program runs on.
#[derive(Debug, Default)]
pub struct ThisKernel;

impl Kernel for ThisKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        use std::io::Write;
        // One write system call, and never a new file: sysfs takes a whole value at a time.
        std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn addresses(&self, netdev: &str) -> io::Result<Vec<IpAddr>> {
        let all = nix::ifaddrs::getifaddrs()?.filter(|i| i.interface_name == netdev);
        Ok(all
            .filter_map(|i| {
                let address = i.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect())
    }

    fn chown(&self, path: &Path, uid: u32) -> io::Result<()> {
        Ok(nix::unistd::chown(path, Some(uid.into()), None)?)
    }

    fn open_to_all(&self, path: &Path) -> io::Result<()> {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
    }

    fn try_open(&self, path: &Path) -> io::Result<()> {
        std::fs::OpenOptions::new().read(true).write(true).open(path).map(drop)
    }
}

/// A machine's PCI functions.
#[derive(Clone)]
pub struct Host {
    root: PathBuf,
    kernel: Arc<dyn Kernel>,
}

impl Default for Host {
    fn default() -> Self {
        Self::new("/", Arc::new(ThisKernel))
    }
}

impl Host {
    /// The machine whose `sys`, `proc`, `dev` and `run` are below `root`.
    pub fn new(root: impl Into<PathBuf>, kernel: Arc<dyn Kernel>) -> Self {
        Self { root: root.into(), kernel }
    }

    fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Folder of a function in sysfs.
    pub fn folder(&self, address: PciAddress) -> PathBuf {
        self.path(format!("sys/bus/pci/devices/{address}"))
    }

    /// Node of a group: who may open it may drive its functions.
    pub fn group_node(&self, group: u32) -> PathBuf {
        self.path(format!("dev/vfio/{group}"))
    }

    /// Node of iommufd, by which address spaces are made.
    pub fn iommu_node(&self) -> PathBuf {
        self.path("dev/iommu")
    }

    /// Node of the function itself, where kernel and host have iommufd and such nodes.
    pub fn device_node(&self, address: PciAddress) -> Option<PathBuf> {
        let name = names(&self.folder(address).join("vfio-dev")).into_iter().next()?;
        let node = self.path("dev/vfio/devices").join(name);
        (node.exists() && self.iommu_node().exists()).then_some(node)
    }
}

/// A user's number, by name or as it is.
///
/// # Errors
/// There is no such user.
pub fn uid(user: &str) -> Result<u32, BindError> {
    if let Ok(number) = user.parse() {
        return Ok(number);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.uid.as_raw()),
        Ok(None) => Err(BindError::NoUser(user.into())),
        Err(e) => Err(BindError::io(format!("looking up user {user}"), e.into())),
    }
}

/// Last component of the link at `path`; `None` where there is none.
fn link_name(path: &Path) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// Contents of a file without the white space around them.
fn text(path: &Path) -> Result<String, BindError> {
    let read = std::fs::read_to_string(path);
    read.map(|s| s.trim().to_owned()).map_err(|e| BindError::io(format!("reading {}", path.display()), e))
}

/// A number in hexadecimal, with or without 0x, as sysfs prints it.
fn hex(path: &Path) -> Result<u32, BindError> {
    let s = text(path)?;
    u32::from_str_radix(s.trim_start_matches("0x"), 16)
        .map_err(|_| BindError::Odd { path: path.to_owned(), text: s })
}

/// Names in a folder, sorted; none where there is no folder.
fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
