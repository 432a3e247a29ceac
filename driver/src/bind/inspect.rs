//! A function's configuration space in typed form: header, capabilities, BARs, MSI-X, and what in them cannot be.
//!
//! The types are pci-driver's, laid over a copy of the bytes, so that looking never touches the device and can be done
//! while another process drives it. Three things of that crate are kept away from: its memory region takes any byte
//! slice and then loads words from it, aligned or not, so the copy is an array of u64; its Enhanced Allocation
//! capability adds up lengths in a u8, so that one is never built; and it has the three bytes of the class code in the
//! reverse order, so the class is read as a word.

use super::{BindError, Host, PciAddress, text};
use pci_driver::config::PciConfig;
use pci_driver::config::caps::{Capability as _, MsiCapability, PciExpressCapability};
use pci_driver::config::ext_caps::ExtendedCapability as _;
use pci_driver::regions::{AsPciSubregion, BackedByPciSubregion, PciMemoryRegion, PciRegion, PciSubregion};
use std::io;
use zerocopy::IntoBytes;

/// Bytes of the header, which everyone may read.
const HEADER: usize = 64;
/// Bytes without the extended space.
const BASIC: usize = 256;
/// Bytes with the extended space.
const EXTENDED: usize = 4096;

/// Flags of a line in sysfs' `resource` (include/linux/ioport.h).
const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCH: u64 = 0x2000;
const MEMORY_64: u64 = 0x10_0000;

/// A base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Number, 0 to 5.
    pub index: u8,
    /// Address on the bus that the host gave it; 0: none.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// True for I/O ports, false for memory.
    pub io: bool,
    /// Memory that may be prefetched.
    pub prefetchable: bool,
    /// Memory with a 64-bit address.
    pub wide: bool,
}

/// The MSI-X capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// Switched on.
    pub enabled: bool,
    /// All vectors masked.
    pub masked: bool,
    /// BAR of the table, and offset in it in bytes.
    pub table: (u8, u32),
    /// BAR of the pending bits, and offset in it in bytes.
    pub pending: (u8, u32),
}

/// What is known of a capability beyond its ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    None,
    /// MSI: vectors that the device can use, and whether it is switched on.
    Msi {
        /// Vectors.
        vectors: u16,
        /// Switched on.
        enabled: bool,
    },
    /// MSI-X.
    Msix(Msix),
    /// PCI Express: payload in bytes that the function takes at most, and whether it can be reset by itself.
    Express {
        /// Bytes.
        max_payload: u16,
        /// Function level reset.
        flr: bool,
    },
}

/// A capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Offset in configuration space.
    pub offset: u16,
    /// ID; extended ones have a numbering of their own.
    pub id: u16,
    /// True in the extended space.
    pub extended: bool,
    /// Name by the PCI specifications; "unknown" for an ID that is not in their list.
    pub name: &'static str,
    /// What else is known.
    pub detail: Detail,
}

/// A function's configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Bytes that could be read: 64 without root's rights, 256 or 4096 with them.
    pub bytes: usize,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code, 24 bits.
    pub class: u32,
    /// Subsystem vendor and device ID.
    pub subsystem: (u16, u16),
    /// Answers on its memory BARs.
    pub memory: bool,
    /// May do DMA.
    pub bus_master: bool,
    /// Interrupt pin is switched off.
    pub intx_disabled: bool,
    /// BARs.
    pub bars: Vec<Bar>,
    /// Capabilities in the order of their lists.
    pub capabilities: Vec<Capability>,
    /// What cannot be: such a device is broken, or lies.
    pub faults: Vec<String>,
}

impl Inspection {
    /// The MSI-X capability.
    pub fn msix(&self) -> Option<&Msix> {
        self.capabilities.iter().find_map(|c| match &c.detail {
            Detail::Msix(m) => Some(m),
            _ => None,
        })
    }
}

impl Host {
    /// Reads a function's configuration space from sysfs and describes it. Without root's rights only the header is
    /// there.
    ///
    /// # Errors
    /// There is no such function, or it does not answer.
    pub fn inspect(&self, address: PciAddress) -> Result<Inspection, BindError> {
        let folder = self.folder(address);
        if !folder.exists() {
            return Err(BindError::NoSuchFunction(address));
        }
        let path = folder.join("config");
        let bytes =
            std::fs::read(&path).map_err(|e| BindError::io(format!("reading {}", path.display()), e))?;
        let bars = bars(&text(&folder.join("resource"))?);
        describe(&bytes, bars).map_err(|error| BindError::Config { address, error })
    }
}

/// The BARs by sysfs' `resource`: first and last address and flags, a line for each resource, the BARs first.
pub(super) fn bars(resource: &str) -> Vec<Bar> {
    let bar = |(index, line): (usize, &str)| {
        let mut numbers =
            line.split_whitespace().map(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok());
        let (first, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let size = last.checked_sub(first)?.checked_add(1)?;
        (flags & (IO | MEMORY) != 0).then_some(Bar {
            index: index as u8,
            address: first,
            size,
            io: flags & IO != 0,
            prefetchable: flags & PREFETCH != 0,
            wide: flags & MEMORY_64 != 0,
        })
    };
    resource.lines().take(6).enumerate().filter_map(bar).collect()
}

/// Describes configuration space from its bytes. Anything may stand in them.
///
/// # Errors
/// Fewer than 64 bytes, or all of the header is ones: a function that is gone.
pub fn describe(bytes: &[u8], bars: Vec<Bar>) -> io::Result<Inspection> {
    let bytes = &bytes[..bytes.len().min(EXTENDED)];
    if bytes.len() < HEADER {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("only {} bytes", bytes.len())));
    }
    if bytes[..HEADER].iter().all(|&b| b == 0xff) {
        return Err(io::Error::new(
            io::ErrorKind::NotConnected,
            "it reads as all ones: the function is gone",
        ));
    }
    // Aligned, and as long as each of the crate's readers wants it; `bytes.len()` says how much of it is real.
    let mut copy = [0u64; EXTENDED / 8];
    copy.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    let memory = PciMemoryRegion::new(copy.as_bytes());
    let region: &dyn PciRegion = &memory;
    let config = PciConfig::backed_by(region);
    let command = config.command();
    let mut found = Inspection {
        bytes: bytes.len(),
        vendor: config.vendor_id().read()?,
        device: config.device_id().read()?,
        revision: config.revision_id().read()?,
        class: region.read_le_u32(0x08)? >> 8,
        subsystem: (config.subsystem_vendor_id().read()?, config.subsystem_id().read()?),
        memory: command.memory_space_enable().read()?,
        bus_master: command.bus_master_enable().read()?,
        intx_disabled: command.interrupt_disable().read()?,
        bars,
        capabilities: Vec::new(),
        faults: Vec::new(),
    };
    if bytes.len() >= BASIC {
        found.read_capabilities(&config);
    }
    if bytes.len() >= EXTENDED {
        found.read_extended(&config);
    }
    found.check_msix();
    Ok(found)
}

impl Inspection {
    fn read_capabilities(&mut self, config: &PciConfig<'_>) {
        let all = match config.capabilities() {
            Ok(all) => all,
            Err(e) => return self.faults.push(e.to_string()),
        };
        for capability in all.iter() {
            let at = capability.as_subregion();
            let offset = at.offset_in_underlying_region() as u16;
            let whole = config.as_subregion().subregion(u64::from(offset)..BASIC as u64);
            let read = capability.header().capability_id().read();
            match read.and_then(|id| Ok((id, detail(id, whole)?))) {
                Ok((id, detail)) => self.capabilities.push(Capability {
                    offset,
                    id: id.into(),
                    extended: false,
                    name: name(&BASIC_NAMES, id.into()),
                    detail,
                }),
                Err(e) => self.faults.push(format!("capability at {offset:#x}: {e}")),
            }
        }
    }

    fn read_extended(&mut self, config: &PciConfig<'_>) {
        let all = match config.extended_capabilities() {
            Ok(all) => all,
            Err(e) => return self.faults.push(e.to_string()),
        };
        for capability in all.iter() {
            let offset = capability.as_subregion().offset_in_underlying_region() as u16;
            match capability.header().capability_id().read() {
                // A list that is empty is one null capability at its start.
                Ok(0 | 0xffff) => {}
                Ok(id) => self.capabilities.push(Capability {
                    offset,
                    id,
                    extended: true,
                    name: name(&EXTENDED_NAMES, id),
                    detail: Detail::None,
                }),
                Err(e) => self.faults.push(format!("extended capability at {offset:#x}: {e}")),
            }
        }
    }

    /// The table and the pending bits must lie in memory BARs that there are.
    fn check_msix(&mut self) {
        let Some(m) = self.msix().copied() else { return };
        let pending = u64::from(m.vectors).div_ceil(64) * 8;
        for (what, (bar, offset), len) in
            [("table", m.table, u64::from(m.vectors) * 16), ("pending bits", m.pending, pending)]
        {
            let end = u64::from(offset) + len;
            match self.bars.iter().find(|b| b.index == bar) {
                None => self.faults.push(format!("MSI-X {what} in BAR {bar}, which there is not")),
                Some(b) if b.io => self.faults.push(format!("MSI-X {what} in BAR {bar}, which is I/O ports")),
                Some(b) if end > b.size => self
                    .faults
                    .push(format!("MSI-X {what} ends at {end:#x}, past BAR {bar} of {:#x} bytes", b.size)),
                Some(_) => {}
            }
        }
    }
}

/// Reads what is known of a capability; `at` starts with its header.
fn detail(id: u8, at: PciSubregion<'_>) -> io::Result<Detail> {
    match id {
        0x05 => {
            let Some(msi) = MsiCapability::backed_by(at)? else { return Ok(Detail::None) };
            let control = msi.message_control();
            Ok(Detail::Msi {
                vectors: 1 << control.multiple_message_capable().read()?.min(5),
                enabled: control.msi_enable().read()?,
            })
        }
        0x10 => {
            let Some(express) = PciExpressCapability::backed_by(at)? else { return Ok(Detail::None) };
            let can = express.device_capabilities();
            Ok(Detail::Express {
                max_payload: 128 << can.max_payload_size_supported().read()?.min(5),
                flr: can.function_level_reset_capability().read()?,
            })
        }
        0x11 => {
            // The crate knows this one's ID and length only: Message Control, then table and pending bits, each with
            // the BAR in its low three bits.
            let control = at.read_le_u16(2)?;
            let place = |v: u32| ((v & 7) as u8, v & !7);
            Ok(Detail::Msix(Msix {
                vectors: (control & 0x7ff) + 1,
                enabled: control & 0x8000 != 0,
                masked: control & 0x4000 != 0,
                table: place(at.read_le_u32(4)?),
                pending: place(at.read_le_u32(8)?),
            }))
        }
        _ => Ok(Detail::None),
    }
}

fn name(names: &[(u16, &'static str)], id: u16) -> &'static str {
    names.iter().find(|n| n.0 == id).map_or("unknown", |n| n.1)
}

const BASIC_NAMES: [(u16, &str); 12] = [
    (0x01, "power management"),
    (0x03, "vital product data"),
    (0x05, "MSI"),
    (0x07, "PCI-X"),
    (0x09, "vendor-specific"),
    (0x0a, "debug port"),
    (0x0c, "hot plug"),
    (0x0d, "bridge subsystem"),
    (0x10, "PCI Express"),
    (0x11, "MSI-X"),
    (0x13, "advanced features"),
    (0x14, "enhanced allocation"),
];

const EXTENDED_NAMES: [(u16, &str); 22] = [
    (0x01, "advanced error reporting"),
    (0x02, "virtual channel"),
    (0x03, "device serial number"),
    (0x04, "power budgeting"),
    (0x0b, "vendor-specific"),
    (0x0d, "access control services"),
    (0x0e, "alternative routing ID"),
    (0x0f, "address translation services"),
    (0x10, "SR-IOV"),
    (0x13, "page requests"),
    (0x15, "resizable BAR"),
    (0x16, "dynamic power allocation"),
    (0x17, "TPH requester"),
    (0x18, "latency tolerance reporting"),
    (0x19, "secondary PCI Express"),
    (0x1b, "process address space ID"),
    (0x1d, "downstream port containment"),
    (0x1e, "L1 PM substates"),
    (0x1f, "precision time measurement"),
    (0x23, "designated vendor-specific"),
    (0x25, "data link feature"),
    (0x2e, "data object exchange"),
];
