//! What can go wrong with a function, each with what to do about it. Messages are whole: the system's answer is part of
//! them, and not a source of its own.

use super::PciAddress;
use std::io;
use std::path::PathBuf;

/// A function could not be read, taken or given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No PCI address.
    #[error("'{0}' is no PCI address; one looks like 0000:03:00.0")]
    BadAddress(String),
    /// No function there.
    #[error("there is no PCI function {0}; `flowlift nic list` shows those there are")]
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
    #[error(
        "{0} is in no IOMMU group, so nothing would keep its DMA in bounds; switch the IOMMU on in the firmware \
         and with intel_iommu=on or amd_iommu=on on the kernel's command line"
    )]
    NoIommu(PciAddress),
    /// vfio-pci is not there.
    #[error("the kernel's vfio-pci driver is not loaded; `modprobe vfio-pci` loads it")]
    NoVfioPci,
    /// Others in the IOMMU group belong to the host's drivers.
    #[error("{address} shares IOMMU group {group} with {others}; their drivers have to let go of them first")]
    GroupShared {
        /// The function.
        address: PciAddress,
        /// The group.
        group: u32,
        /// Functions of the group and their drivers.
        others: String,
    },
    /// The host uses the function.
    #[error("{address} is in use: {why}; --force takes it all the same")]
    InUse {
        /// The function.
        address: PciAddress,
        /// By what.
        why: String,
    },
    /// Another process drives the function.
    #[error(
        "{address} is being driven by a process that has {node} open; --force asks it for the function and waits"
    )]
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
