//! What can go wrong with a function, and [what to do](BindError::remedy) about it. Messages are whole: the system's answer is
//! part of them, and not a source of its own.

use super::PciAddress;
use std::io;
use std::path::PathBuf;

/// A function could not be read, taken or given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No PCI address.
    #[error("'{0}' is no PCI address")]
    BadAddress(String),
    /// No function there.
    #[error("there is no PCI function {0}")]
    NoSuchFunction(PciAddress),
    /// No such user.
    #[error("there is no user '{0}'")]
    NoUser(String),
    /// Root's rights are missing.
    #[error("{what} needs root: {error}")]
    NeedsRoot {
        /// What was attempted.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
    /// No IOMMU in front of the function.
    #[error("{0} is in no IOMMU group, so nothing would keep its DMA in bounds")]
    NoIommu(PciAddress),
    /// vfio-pci is not there.
    #[error("the kernel's vfio-pci driver is not loaded")]
    NoVfioPci,
    /// Others in the IOMMU group belong to the host's drivers.
    #[error("{address} shares IOMMU group {group} with {others}")]
    GroupShared {
        /// The function.
        address: PciAddress,
        /// The group.
        group: u32,
        /// Functions of the group and their drivers.
        others: String,
    },
    /// The host uses the function.
    #[error("{address} is in use: {why}")]
    InUse {
        /// The function.
        address: PciAddress,
        /// By what.
        why: String,
    },
    /// Another process drives the function.
    #[error("{address} is being driven by a process that has {node} open")]
    Driven {
        /// The function.
        address: PciAddress,
        /// Node of the group.
        node: PathBuf,
    },
    /// The function is not bound to vfio-pci.
    #[error("{address} is not bound to vfio-pci but to {driver}")]
    NotBound {
        /// The function.
        address: PciAddress,
        /// Its driver, or "no driver".
        driver: String,
    },
    /// After all steps the driver is another than wanted.
    #[error("{address} is now bound to {now}, not to {wanted}")]
    WrongDriver {
        /// The function.
        address: PciAddress,
        /// Driver that it should have.
        wanted: String,
        /// Driver that it has.
        now: String,
    },
    /// A step failed, and so did undoing the ones before it.
    #[error("{cause}; and it could not be undone: {undo}")]
    HalfDone {
        /// Why the step failed.
        cause: Box<BindError>,
        /// Why undoing failed.
        undo: Box<BindError>,
    },
    /// Contents that sysfs does not have.
    #[error("{path} holds '{text}', which cannot be")]
    Odd {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// Configuration space that cannot be.
    #[error("configuration space of {address}: {error}")]
    Config {
        /// The function.
        address: PciAddress,
        /// What is wrong.
        error: io::Error,
    },
    /// The system refused something.
    #[error("{what}: {error}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl BindError {
    /// What a person can do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::BadAddress(_) => "one looks like 0000:03:00.0",
            Self::NoSuchFunction(_) => "`flowlift nic list` shows those there are",
            Self::NoUser(_) => "`--user` takes a name or a number that /etc/passwd has",
            Self::NeedsRoot { .. } => "run it as root, or have root bind the function with `--user`",
            Self::NoIommu(_) => {
                "switch the IOMMU on in the firmware and with intel_iommu=on or amd_iommu=on on the kernel's command line"
            }
            Self::NoVfioPci => "`modprobe vfio-pci` loads it",
            Self::GroupShared { .. } => "their drivers have to let go of them first",
            Self::InUse { .. } => "--force takes it all the same",
            Self::Driven { .. } => "--force asks it for the function and waits",
            Self::NotBound { .. } => "`flowlift nic list` shows what has which driver",
            Self::HalfDone { cause, .. } => return cause.remedy(),
            Self::WrongDriver { .. } | Self::Odd { .. } | Self::Config { .. } | Self::Io { .. } => {
                return None;
            }
        })
    }

    /// An error of the system, told apart by whether root would have been let through.
    pub(super) fn io(what: impl Into<String>, error: io::Error) -> Self {
        let what = what.into();
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NeedsRoot { what, error }
            }
            _ => Self::Io { what, error },
        }
    }
}
