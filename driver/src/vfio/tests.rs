//! The transport on a kernel that is made here: see `fake`. What only a real one shows is tests/vm's.

use super::fake::{self, Installed};
use super::*;
use crate::bind::ThisKernel;
use flowlift_bus::{BarAccess, DmaDirection, DmaMem, IovaRange};
use nix::errno::Errno;
use std::fs;
use std::os::unix::fs::symlink;

const NIC: &str = "0000:03:00.0";

/// A host with a function that is bound to vfio-pci, and iommufd.
struct Machine {
    kernel: Installed,
    host: Host,
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self::with(|node| fs::File::create(node).unwrap().set_len(fake::LEN).unwrap())
    }

    /// With a node that `make` makes.
    fn with(make: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/bus/pci/devices").join(NIC);
        fs::create_dir_all(folder.join("vfio-dev/vfio0")).unwrap();
        symlink("../../../../bus/pci/drivers/vfio-pci", folder.join("driver")).unwrap();
        fs::create_dir_all(root.path().join("dev/vfio/devices")).unwrap();
        fs::write(root.path().join("dev/iommu"), "").unwrap();
        let node = root.path().join("dev/vfio/devices/vfio0");
        make(&node);
        let host = Host::new(root.path(), Arc::new(ThisKernel));
        Self { kernel: fake::install(&node), host, root }
    }

    fn open(&self) -> Result<VfioFunction, BusError> {
        VfioFunction::open(&self.host, NIC.parse().unwrap())
    }

    fn refuse(&self, call: nix::libc::c_ulong, errno: Errno) {
        self.kernel.0.borrow_mut().refuse.insert(call, errno);
    }

    fn allow(&self) {
        self.kernel.0.borrow_mut().refuse.clear();
    }

    fn device(&self) -> fs::File {
        self.kernel.0.borrow().device.try_clone().unwrap()
    }
}

fn memory() -> Arc<DmaMem> {
    Arc::new(DmaMem::new(8192).unwrap())
}

fn is_io(e: &BusError, what: &str, errno: Errno) -> bool {
    matches!(e, BusError::Io { what: w, cause } if *w == what && cause.raw_os_error() == Some(errno as i32))
}

#[test]
fn configuration_space_accesses_have_a_width_and_are_aligned() {
    let mut data = 0x0403_0201u32.to_le_bytes();
    assert_eq!(config_part(6, 2, &mut data).unwrap(), [1, 2]);
    assert_eq!(data, [1, 2, 0, 0], "what lies past the width is zero, also after a read");
    for (offset, width) in [(1, 2), (2, 4), (0, 8), (0, 0), (0, 3)] {
        assert!(config_part(offset, width, &mut [0; 4]).is_err(), "{offset} {width}");
    }
}

#[test]
fn a_function_that_is_not_bound_is_refused_before_anything_is_opened() {
    let host = Host::new("/nowhere", Arc::new(ThisKernel));
    let e = VfioFunction::open(&host, "0:0.0".parse().unwrap()).err().unwrap();
    assert!(e.to_string().contains("not bound to vfio-pci"), "{e}");
}

#[test]
fn iommufd_is_taken_where_the_host_has_it_and_else_the_group() {
    let m = Machine::new();
    let f = m.open().unwrap();
    assert!(matches!(f.device.iommu, Iommu::Iommufd(_)));
    let calls = m.kernel.0.borrow().calls.clone();
    assert_eq!(calls[..3], [fake::BIND_IOMMUFD, fake::IOAS_ALLOC, fake::ATTACH], "in this order");
    drop(f);
    fs::remove_file(m.root.path().join("dev/iommu")).unwrap();
    m.kernel.0.borrow_mut().calls.clear();
    let e = m.open().err().unwrap();
    assert!(e.to_string().starts_with("opening the"), "type1 is what is left: {e}");
    assert!(m.kernel.0.borrow().calls.is_empty(), "no call to iommufd");
}

#[test]
fn what_iommufd_refuses_is_told_and_not_tried_another_way() {
    for (call, errno) in [
        (fake::BIND_IOMMUFD, Errno::EBUSY),
        (fake::IOAS_ALLOC, Errno::ENOMEM),
        (fake::ATTACH, Errno::EINVAL),
        (fake::DEVICE_INFO, Errno::EIO),
        (fake::REGION_INFO, Errno::EIO),
        (fake::IOVA_RANGES, Errno::EIO),
    ] {
        let m = Machine::new();
        m.refuse(call, errno);
        let e = m.open().err().unwrap();
        assert!(
            matches!(&e, BusError::Io { cause, .. } if cause.raw_os_error() == Some(errno as i32)),
            "{e}"
        );
    }
    let m = Machine::new();
    fs::remove_file(m.root.path().join("dev/iommu")).unwrap();
    fs::create_dir(m.root.path().join("dev/iommu")).unwrap();
    let e = m.open().err().unwrap().to_string();
    assert!(e.contains("opening the function's node") && e.contains("dev/iommu"), "{e}");
}

#[test]
fn addresses_come_from_the_kernel_however_many_there_are() {
    let m = Machine::new();
    let all: Vec<[u64; 2]> = (0..1000).map(|n| [n << 20, (n << 20) + 0xf_ffff - 4096]).collect();
    m.kernel.0.borrow_mut().ranges = all.clone();
    let dma = m.open().unwrap().dma();
    let want: Vec<_> = all.iter().map(|&[first, last]| IovaRange { first, last }).collect();
    assert_eq!((dma.iova_ranges(), dma.page_sizes()), (want, 4096));
}

#[test]
fn bars_are_mapped_but_for_what_the_kernel_keeps_and_silent_while_memory_is_off() {
    let m = Machine::new();
    let f = m.open().unwrap();
    let (bar0, bar2) = (f.bar(0).unwrap(), f.bar(2).unwrap());
    assert_eq!((bar0.access(), bar2.access()), (BarAccess::Trapped, BarAccess::Mapped));
    assert!(f.bar(1).is_err() && f.bar(6).is_err());
    assert_eq!(bar2.read::<u32>(0).unwrap(), u32::MAX, "memory decoding is off");
    bar2.write(0, 7u32).unwrap();
    f.config_write(4, 2, 2).unwrap();
    assert_eq!(bar2.read::<u32>(0).unwrap(), 0, "and what was written meanwhile went nowhere");
    // A mapped place, the page that is trapped, and the widths.
    let mut at = [0; 8];
    for offset in [0x10, 0x1010, 0x2010] {
        bar0.write(offset, 0x1122_3344_5566_7788u64).unwrap();
        bar0.write(offset + 1, 0xaau8).unwrap();
        bar0.write(offset + 2, 0xbbccu16).unwrap();
        m.device().read_exact_at(&mut at, fake::BAR0 + offset).unwrap();
        assert_eq!(u64::from_le_bytes(at), 0x1122_3344_bbcc_aa88, "{offset:#x}");
        assert_eq!(bar0.read::<u64>(offset).unwrap(), 0x1122_3344_bbcc_aa88);
        assert_eq!((bar0.read::<u16>(offset + 2).unwrap(), bar0.read::<u8>(offset).unwrap()), (0xbbcc, 0x88));
    }
    for (offset, width) in [(0x4000, 4), (2, 4), (0, 3), (u64::MAX - 3, 4)] {
        assert!(matches!(bar0.read_width(offset, width), Err(BusError::OutOfRange { .. })), "{offset:#x}");
        assert!(
            matches!(bar0.write_width(offset, width, 0), Err(BusError::OutOfRange { .. })),
            "{offset:#x}"
        );
    }
}

#[test]
fn a_region_that_cannot_be_read_is_an_error_and_no_old_value() {
    let m = Machine::new();
    let f = m.open().unwrap();
    f.config_write(4, 2, 2).unwrap();
    let bar0 = f.bar(0).unwrap();
    m.device().set_len(fake::BAR0 + 0x1000).unwrap();
    let e = bar0.read::<u32>(0x1000).unwrap_err();
    assert!(matches!(e, BusError::Io { what: "reading a region", .. }), "{e}");
    m.device().set_len(2).unwrap();
    assert!(f.config_read(4, 2).is_err() && f.config_read(0, 4).is_err(), "also a read that is short");
    assert!(f.config_bytes().is_err());
}

#[test]
fn a_region_that_cannot_be_written_is_an_error() {
    let m = Machine::with(|node| symlink("/dev/full", node).unwrap());
    let f = m.open().unwrap();
    let e = f.config_write(4, 2, 2).unwrap_err();
    assert!(is_io(&e, "writing to a region", Errno::ENOSPC), "{e}");
}

#[test]
fn a_reset_tells_how_it_went() {
    let m = Machine::new();
    let f = m.open().unwrap();
    f.reset().unwrap();
    m.refuse(fake::RESET, Errno::EIO);
    assert!(is_io(&f.reset().unwrap_err(), "resetting the function", Errno::EIO));
    m.allow();
    f.reset().unwrap();
    m.kernel.0.borrow_mut().flags = 2;
    let f = m.open().unwrap();
    assert!(matches!(f.reset(), Err(BusError::Unsupported("a reset of this function"))));
}

#[test]
fn a_function_that_was_pulled_out_is_gone_for_good() {
    let m = Machine::new();
    let f = m.open().unwrap();
    f.config_write(4, 2, 2).unwrap();
    let bar2 = f.bar(2).unwrap();
    bar2.write(0, 5u32).unwrap();
    m.refuse(fake::RESET, Errno::ENODEV);
    assert!(matches!(f.reset(), Err(BusError::Gone(_))));
    assert_eq!(bar2.read::<u32>(0).unwrap(), u32::MAX, "a mapped access would be the end of the process");
    bar2.write(0, 6u32).unwrap();
    m.refuse(fake::IRQ_INFO, Errno::ENODEV);
    assert!(matches!(f.set_irqs(IrqKind::Msix, 0, &[None]), Err(BusError::Gone(_))));
}

#[test]
fn err_and_req_have_eventfds_from_the_start() {
    let m = Machine::new();
    let f = m.open().unwrap();
    assert_eq!(m.kernel.0.borrow().assigned(), [(3, 0), (4, 0)]);
    let (error, request) = (f.error.as_ref().unwrap(), f.request.as_ref().unwrap());
    let life = f.lifecycle();
    assert!(life.error.is_some() && life.request.is_some());
    assert!(error.read().is_err() && request.read().is_err(), "nothing happened yet");
    m.kernel.0.borrow().fire(4, 0);
    assert!(request.read().is_ok() && error.read().is_err(), "the host asks for it");
    m.kernel.0.borrow().fire(3, 0);
    assert!(error.read().is_ok() && request.read().is_err(), "an uncorrectable error");
}

#[test]
fn a_function_without_err_or_req_says_so_and_works() {
    let m = Machine::new();
    m.kernel.0.borrow_mut().irqs = [Some(1), Some(0), Some(3), None, Some(0)];
    let f = m.open().unwrap();
    assert!(f.lifecycle().error.is_none() && f.lifecycle().request.is_none());
    assert_eq!(f.irq_info(IrqKind::Err).unwrap(), IrqInfo { count: 0, eventfd: false });
}

#[test]
fn vectors_are_assigned_raised_and_taken_away() {
    let m = Machine::new();
    let f = m.open().unwrap();
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let one = Some(event.as_fd());
    f.set_irqs(IrqKind::Msix, 0, &[one, None, one]).unwrap();
    assert_eq!(m.kernel.0.borrow().assigned()[..2], [(2, 0), (2, 2)]);
    f.trigger(2).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    assert!(matches!(f.set_irqs(IrqKind::Msix, 1, &[one, one, one]), Err(BusError::OutOfRange { .. })));
    f.set_irqs(IrqKind::Msix, 0, &[None, None, None]).unwrap();
    assert_eq!(m.kernel.0.borrow().assigned(), [(3, 0), (4, 0)]);
    // The kernel refuses to switch off what is not on; any other refusal counts.
    m.refuse(fake::SET_IRQS, Errno::EINVAL);
    f.set_irqs(IrqKind::Msix, 0, &[None, None, None]).unwrap();
    assert!(is_io(&f.set_irqs(IrqKind::Msix, 0, &[one]).unwrap_err(), "assigning interrupts", Errno::EINVAL));
    m.refuse(fake::SET_IRQS, Errno::ENOMEM);
    assert!(f.set_irqs(IrqKind::Msix, 0, &[None, None, None]).is_err());
    let e = f.trigger(0).unwrap_err();
    assert!(is_io(&e, "triggering an interrupt", Errno::ENOMEM), "{e}");
}

#[test]
fn memory_is_mapped_for_its_direction_and_bus_master_goes_first() {
    let m = Machine::new();
    let f = m.open().unwrap();
    let dma = f.dma();
    let directions = [DmaDirection::ToDevice, DmaDirection::FromDevice, DmaDirection::Bidirectional];
    let maps: Vec<_> =
        directions.iter().zip(1..).map(|(d, n)| dma.map(memory(), n << 20, *d).unwrap()).collect();
    // FIXED_IOVA, with READABLE and WRITEABLE.
    let want = [(1 << 20, (8192, 5)), (2 << 20, (8192, 3)), (3 << 20, (8192, 7))];
    assert!(m.kernel.0.borrow().maps.iter().map(|(a, b)| (*a, *b)).eq(want));
    assert_eq!(f.mappings(), 3);
    f.config_write(4, 2, 6).unwrap();
    for map in maps {
        assert_eq!(f.config_read(4, 2).unwrap(), 6, "some memory is left");
        map.unmap().unwrap();
    }
    assert_eq!(m.kernel.0.borrow().command_at_unmap, Some(2), "no DMA can be under way when the last goes");
    assert_eq!((f.mappings(), m.kernel.0.borrow().maps.len()), (0, 0));
}

#[test]
fn a_mapping_that_the_kernel_refuses_says_why() {
    let m = Machine::new();
    let f = m.open().unwrap();
    for (errno, why) in [
        (Errno::EEXIST, "it overlaps another mapping"),
        (Errno::ENOSPC, "no mapping left"),
        (Errno::EINVAL, "outside the IOVA ranges"),
        (Errno::ENOMEM, "Cannot allocate memory"),
        (Errno::EFAULT, "Bad address"),
    ] {
        m.refuse(fake::IOAS_MAP, errno);
        let e = f.dma().map(memory(), 1 << 20, DmaDirection::ToDevice).err().unwrap();
        assert!(e.to_string().contains(why) && e.to_string().contains("IOVA 0x100000"), "{e}");
    }
    assert_eq!(f.mappings(), 0, "what failed does not count");
    m.allow();
    let map = f.dma().map(memory(), 1 << 20, DmaDirection::ToDevice).unwrap();
    m.refuse(fake::IOAS_UNMAP, Errno::EIO);
    let e = map.unmap().unwrap_err();
    assert!(is_io(&e, "unmapping DMA memory", Errno::EIO), "{e}");
}

#[test]
fn a_dropped_function_masters_nothing_even_if_memory_is_still_mapped() {
    let m = Machine::new();
    let f = m.open().unwrap();
    let map = f.dma().map(memory(), 1 << 20, DmaDirection::Bidirectional).unwrap();
    f.config_write(4, 2, 6).unwrap();
    drop(f);
    assert_eq!(m.kernel.0.borrow().command(), 2);
    assert_eq!(m.kernel.0.borrow().maps.len(), 1);
    // The function leaves sysfs before what was mapped for it is let go of.
    fs::remove_dir_all(m.root.path().join("sys")).unwrap();
    drop(map);
    assert_eq!(m.kernel.0.borrow().maps.len(), 0);
}

#[test]
fn whoever_had_it_before_and_left_it_mastering_the_bus_is_stopped_first() {
    let m = Machine::new();
    m.device().write_all_at(&[6, 0], 4).unwrap();
    let f = m.open().unwrap();
    assert_eq!(f.config_read(4, 2).unwrap(), 2);
}
