//! VFIO transport: a PCI function that is bound to vfio-pci, as a [`PciFunction`].
//!
//! # Who keeps what open
//! The function, its windows and its mappings share one [`Device`]: the kernel's device, group and container stay open
//! until the last of them is gone. Dropping the function clears Bus Master first, whatever is still mapped: a device
//! that is dying may have DMA in flight. When the process is killed the kernel does the same in that order.
//!
//! # Two ways to the IOMMU
//! Where the kernel has iommufd and the host a node for the device, [`iommufd`] is used; else a type1 container with the
//! IOMMU group, by vfio-ioctls. Registers, interrupts and reset are the same on both.
//!
//! # What vfio-ioctls does here, and what it does not
//! It opens container, group and device, checks them, and unmaps. The rest goes straight to the kernel, by the
//! structures of vfio-bindings, because there the crate fails silently or not at all:
//! - its `reset` hides failure ([`Device::reset`]);
//! - its region accesses only log errors and leave the buffer as it was ([`Device::read`], [`Device::write`]);
//! - it leaves out regions that it cannot query, so that the next one takes their number ([`region`]);
//! - it maps no BARs, and always maps memory for both directions ([`bar`], [`dma`]);
//! - it knows no IOVA ranges, page sizes or limits ([`info`]);
//! - its `enable_irq` starts at vector 0 and cannot leave one out, and it leaves out kinds that it cannot query
//!   ([`irq`]);
//! - its `Drop` panics when the function leaves sysfs between two of its steps ([`Device`]'s own `Drop`).

mod bar;
mod dma;
#[cfg(test)]
mod fake;
mod info;
mod ioctl;
mod iommufd;
mod irq;
mod region;

use crate::bind::{Host, PciAddress, VFIO_PCI};
use bar::Bar;
use dma::Container;
use flowlift_bus::{BarWindow, BusError, DmaDomain, IrqInfo, IrqKind, LifecycleEvents, PciFunction};
use iommufd::AddressSpace;
use nix::sys::eventfd::{EfdFlags, EventFd};
use region::Region;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vfio_bindings::bindings::vfio as sys;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

/// Command register of configuration space, Bus Master Enable and Memory Space Enable in it.
const COMMAND: u64 = 4;
const BUS_MASTER: u16 = 1 << 2;
const MEMORY: u16 = 1 << 1;

/// Turns an error of vfio-ioctls into one that names the cause.
fn failed(what: &'static str) -> impl Fn(VfioError) -> BusError {
    move |e| BusError::Io {
        what,
        cause: match e {
            VfioError::OpenContainer(source) | VfioError::OpenGroup(source, _) => {
                io::Error::new(source.kind(), source.to_string())
            }
            other => io::Error::other(other.to_string()),
        },
    }
}

/// An open device with everything that it needs to stay open.
struct Device {
    /// The one handle through which the device is reached; a duplicate of the one that vfio-ioctls holds.
    file: File,
    config: Region,
    /// The kernel knows a way to reset it.
    can_reset: bool,
    /// Mirror of Memory Space Enable.
    memory: AtomicBool,
    /// A system call failed as it does on a function only that was pulled out.
    gone: AtomicBool,
    iommu: Iommu,
}

/// How the device's IOMMU is reached.
enum Iommu {
    /// A container of type1, and the device as vfio-ioctls keeps it.
    Type1 { held: ManuallyDrop<VfioDevice>, container: Arc<VfioContainer> },
    /// An address space of iommufd.
    Iommufd(AddressSpace),
}

impl Device {
    /// Reads from a region. A short read is an error.
    fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let at = region.at(offset, data.len())?;
        self.file.read_exact_at(data, at).map_err(|e| self.failed("reading a region", e))
    }

    /// Writes to a region. A short write is an error.
    fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let at = region.at(offset, data.len())?;
        self.file.write_all_at(data, at).map_err(|e| self.failed("writing to a region", e))
    }

    /// An error of a system call on the device: ENODEV and its like mean that the function was pulled out.
    fn failed(&self, what: &'static str, cause: io::Error) -> BusError {
        if matches!(cause.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ENXIO)) {
            self.gone.store(true, Ordering::Relaxed);
            return BusError::Gone(what);
        }
        BusError::Io { what, cause }
    }

    /// Resets the function and tells whether that worked. Configuration space is as before.
    fn reset(&self) -> Result<(), BusError> {
        if !self.can_reset {
            return Err(BusError::Unsupported("a reset of this function"));
        }
        let done = ioctl::reset(&self.file).map_err(|e| self.failed("resetting the function", e.into()));
        self.read_command()?;
        done
    }

    /// True while the function answers on its BARs.
    fn answers(&self) -> bool {
        self.memory.load(Ordering::Relaxed) && !self.gone.load(Ordering::Relaxed)
    }

    /// Reads the command register and mirrors Memory Space Enable.
    fn read_command(&self) -> Result<u16, BusError> {
        let mut command = [0; 2];
        self.read(&self.config, COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command);
        self.memory.store(command & MEMORY != 0 && command != u16::MAX, Ordering::Relaxed);
        Ok(command)
    }

    /// Keeps the device from starting DMA.
    fn clear_bus_master(&self) -> Result<(), BusError> {
        let command = self.read_command()?;
        if command == u16::MAX || command & BUS_MASTER == 0 {
            return Ok(());
        }
        self.write(&self.config, COMMAND, &(command & !BUS_MASTER).to_le_bytes())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A function that is gone has nothing left to switch off.
        let _ = self.clear_bus_master();
        // The crate closes its handle, then reads the group's number from sysfs, and panics where it is missing. The
        // kernel removes a function only after the last handle is closed: `file`, which outlives this, is one.
        if let Iommu::Type1 { held, .. } = &mut self.iommu {
            // SAFETY: `held` is neither used nor dropped again after this; what remains does not refer to it.
            unsafe { ManuallyDrop::drop(held) };
        }
    }
}

/// Opens a device through its group, and a container for it.
fn open_type1(folder: &Path) -> Result<(Iommu, File), BusError> {
    let container = Arc::new(VfioContainer::new(None).map_err(failed("opening the VFIO container"))?);
    let held = VfioDevice::new(folder, container.clone(), false).map_err(failed("opening the function"))?;
    // SAFETY: the descriptor is `held`'s own and open; it is only borrowed to be duplicated.
    let own = unsafe { BorrowedFd::borrow_raw(held.as_raw_fd()) };
    let own =
        own.try_clone_to_owned().map_err(|cause| BusError::Io { what: "duplicating a handle", cause })?;
    Ok((Iommu::Type1 { held: ManuallyDrop::new(held), container }, File::from(own)))
}

/// A PCI function driven through VFIO.
pub struct VfioFunction {
    name: String,
    device: Arc<Device>,
    dma: Arc<Container>,
    bars: [Region; 6],
    request: Option<EventFd>,
    error: Option<EventFd>,
}

impl VfioFunction {
    /// Opens the function at `address`, which must be bound to vfio-pci, with the group's node open to this user.
    ///
    /// # Errors
    /// It is not bound to vfio-pci; this user may not open its group; another process has it; other functions of the
    /// group have drivers of the host; there is no IOMMU.
    pub fn open(host: &Host, address: PciAddress) -> Result<Self, BusError> {
        let path = host.folder(address);
        let driver = path.join("driver");
        let bound = std::fs::read_link(&driver).is_ok_and(|d| d.ends_with(VFIO_PCI));
        if !bound {
            return Err(BusError::Unsupported("a function that is not bound to vfio-pci"));
        }
        let (iommu, file) = match host.device_node(address) {
            None => open_type1(&path)?,
            Some(node) => match AddressSpace::open(&host.iommu_node(), &node) {
                Ok((space, file)) => (Iommu::Iommufd(space), file),
                // Whoever was given the group's node alone can have it by that.
                Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                    let refused = BusError::Io { what: "opening the function's node", cause };
                    open_type1(&path).map_err(|_| refused)?
                }
                Err(cause) => return Err(BusError::Io { what: "opening the function's node", cause }),
            },
        };
        // From here on its `Drop` closes everything in the right order.
        let mut device = Device {
            file,
            config: Region::absent(),
            can_reset: false,
            memory: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            iommu,
        };
        let asked = ioctl::device_info(&device.file);
        let about = asked.map_err(|cause| BusError::Io { what: "asking about the device", cause })?;
        device.can_reset = about.flags & sys::VFIO_DEVICE_FLAGS_RESET != 0;
        device.config = region::query(&device.file, sys::VFIO_PCI_CONFIG_REGION_INDEX)?;
        let mut bars = [const { Region::absent() }; 6];
        for (index, bar) in (sys::VFIO_PCI_BAR0_REGION_INDEX..).zip(&mut bars) {
            *bar = region::query(&device.file, index)?;
        }
        let info = match &device.iommu {
            Iommu::Type1 { container, .. } => info::query(container)?,
            Iommu::Iommufd(space) => info::query_iommufd(space)?,
        };
        let device = Arc::new(device);
        // Whoever had the device before may have left it mastering the bus.
        device.clear_bus_master()?;
        let dma = Arc::new(Container::new(device.clone(), info));
        let mut function = Self { name: address.to_string(), device, dma, bars, request: None, error: None };
        function.request = function.watch(IrqKind::Req)?;
        function.error = function.watch(IrqKind::Err)?;
        Ok(function)
    }

    /// An eventfd for an interrupt about the function's life, where the kernel has it.
    fn watch(&self, kind: IrqKind) -> Result<Option<EventFd>, BusError> {
        let info = self.irq_info(kind)?;
        if info.count == 0 || !info.eventfd {
            return Ok(None);
        }
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| BusError::Io { what: "eventfd", cause: e.into() })?;
        self.set_irqs(kind, 0, &[Some(event.as_fd())])?;
        Ok(Some(event))
    }

    /// Lets the kernel raise an MSI-X vector as if the device had, to test the way of an interrupt without one.
    ///
    /// # Errors
    /// There is no such vector, or none is assigned.
    pub fn trigger(&self, vector: u32) -> Result<(), BusError> {
        ioctl::set_irqs(&self.device.file, &irq::trigger(IrqKind::Msix, vector))
            .map_err(|e| self.device.failed("triggering an interrupt", e.into()))
    }

    /// IOMMU mappings there are now.
    pub fn mappings(&self) -> usize {
        self.dma.mappings()
    }

    /// All of configuration space.
    ///
    /// # Errors
    /// The function is gone.
    pub fn config_bytes(&self) -> Result<Vec<u8>, BusError> {
        let mut bytes = vec![0; self.device.config.size.min(4096) as usize];
        self.device.read(&self.device.config, 0, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // Mappings and windows may live on; the device must not use them.
        let _ = self.device.clear_bus_master();
    }
}

impl PciFunction for VfioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_read(&self, offset: u16, width: usize) -> Result<u32, BusError> {
        let mut data = [0; 4];
        let part = config_part(offset, width, &mut data)?;
        self.device.read(&self.device.config, offset.into(), part)?;
        Ok(u32::from_le_bytes(data))
    }

    fn config_write(&self, offset: u16, width: usize, value: u32) -> Result<(), BusError> {
        let mut data = value.to_le_bytes();
        let part = config_part(offset, width, &mut data)?;
        // Off before the kernel takes the mappings away, on only after it has given them back.
        if u64::from(offset) == COMMAND && part.first().is_some_and(|&low| u16::from(low) & MEMORY == 0) {
            self.device.memory.store(false, Ordering::Relaxed);
        }
        let offset = u64::from(offset);
        self.device.write(&self.device.config, offset, part)?;
        if offset / 4 == COMMAND / 4 {
            self.device.read_command()?;
        }
        Ok(())
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn BarWindow>, BusError> {
        let region = self.bars.get(usize::from(index)).filter(|r| r.size > 0);
        let region = region.ok_or(BusError::Unsupported("a BAR that the function does not have"))?;
        Ok(Arc::new(Bar::open(self.device.clone(), region)?))
    }

    fn dma(&self) -> Arc<dyn DmaDomain> {
        self.dma.clone()
    }

    fn irq_info(&self, kind: IrqKind) -> Result<IrqInfo, BusError> {
        match ioctl::irq_info(&self.device.file, irq::index(kind)) {
            Ok(i) => Ok(IrqInfo { count: i.count, eventfd: i.flags & sys::VFIO_IRQ_INFO_EVENTFD != 0 }),
            // A kind that the function cannot have: uncorrectable errors on conventional PCI.
            Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => Ok(IrqInfo { count: 0, eventfd: false }),
            Err(e) => Err(self.device.failed("asking about interrupts", e)),
        }
    }

    fn set_irqs(&self, kind: IrqKind, start: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<(), BusError> {
        if fds.is_empty() {
            return Ok(());
        }
        let count = self.irq_info(kind)?.count;
        let request = irq::request(kind, count, start, fds)?;
        match ioctl::set_irqs(&self.device.file, &request.bytes) {
            // The kernel refuses to switch off what is not on.
            Err(nix::errno::Errno::EINVAL) if request.off => Ok(()),
            done => done.map_err(|e| self.device.failed("assigning interrupts", e.into())),
        }
    }

    fn lifecycle(&self) -> LifecycleEvents<'_> {
        LifecycleEvents {
            request: self.request.as_ref().map(AsFd::as_fd),
            error: self.error.as_ref().map(AsFd::as_fd),
        }
    }

    fn reset(&self) -> Result<(), BusError> {
        self.device.reset()
    }
}

/// The bytes of an access to configuration space.
fn config_part(offset: u16, width: usize, data: &mut [u8; 4]) -> Result<&mut [u8], BusError> {
    if !matches!(width, 1 | 2 | 4) || !usize::from(offset).is_multiple_of(width) {
        return Err(BusError::OutOfRange {
            what: "configuration space",
            offset: offset.into(),
            len: width,
            size: 4096,
        });
    }
    let (part, rest) = data.split_at_mut(width);
    rest.fill(0);
    Ok(part)
}

#[cfg(test)]
mod tests;
