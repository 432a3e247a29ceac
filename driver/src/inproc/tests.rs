//! The transport with a toy device: an adder with one trapped register block and one mapped doorbell page.

use super::*;
use flowlift_bus::{DmaBus, PciIdentity};

/// Register 0: sum of everything written to register 8. Doorbell 0 of BAR 2, taken at a step: an IOVA whose u64 is
/// incremented, then vector 1 is raised.
#[derive(Default)]
struct Adder {
    sum: u64,
    dma: Option<Box<dyn DmaBus>>,
    irq: Option<Box<dyn IrqSink>>,
    doorbells: Option<DmaMem>,
    bus_master: Vec<bool>,
    resets: u32,
    last: Option<DmaFault>,
}

const BARS: [BarSpec; 2] =
    [BarSpec { index: 0, size: 256, mapped: false }, BarSpec { index: 2, size: 4096, mapped: true }];

impl Adder {
    fn step(&mut self) {
        let (Some(dma), Some(db)) = (&self.dma, &self.doorbells) else { return };
        let iova = db.load_u64(0, Ordering::Acquire).unwrap();
        self.last = dma.load_u64(iova).and_then(|v| dma.store_u64(iova, v + 1)).err();
        self.irq.as_ref().unwrap().raise(1);
        self.irq.as_ref().unwrap().raise(700);
    }
}

impl DeviceModel for Adder {
    fn identity(&self) -> PciIdentity {
        PciIdentity { vendor: 0x1af4, device: 0xadd, revision: 1, class: 0xff0000 }
    }
    fn bars(&self) -> &[BarSpec] {
        &BARS
    }
    fn msix_vectors(&self) -> u16 {
        2
    }
    fn attach(&mut self, dma: Box<dyn DmaBus>, irq: Box<dyn IrqSink>, mapped_bars: Vec<(u8, DmaMem)>) {
        self.dma = Some(dma);
        self.irq = Some(irq);
        assert_eq!(mapped_bars.len(), 1);
        self.doorbells = mapped_bars.into_iter().find(|(i, _)| *i == 2).map(|(_, m)| m);
    }
    fn region_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        let v = if offset == 0 { self.sum } else { 0 };
        data.copy_from_slice(&v.to_le_bytes()[..data.len()]);
    }
    fn region_write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        let mut b = [0; 8];
        b[..data.len()].copy_from_slice(data);
        if offset == 8 {
            self.sum = self.sum.wrapping_add(u64::from_le_bytes(b));
        }
    }
    fn bus_master(&mut self, enabled: bool) {
        self.bus_master.push(enabled);
    }
    fn reset(&mut self) {
        self.resets += 1;
        self.sum = 0;
    }
}

fn plugged() -> Arc<InProc<Adder>> {
    InProc::new(Adder::default(), InProcConfig::default()).unwrap()
}

fn enable(f: &dyn PciFunction) {
    let command = f.config_read(4, 2).unwrap();
    f.config_write(4, 2, command | 6).unwrap();
}

fn mapped(f: &dyn PciFunction, iova: u64, direction: DmaDirection) -> Mapping {
    f.dma().map(Arc::new(DmaMem::new(8192).unwrap()), iova, direction).unwrap()
}

#[test]
fn registers_trap_and_answer_only_with_memory_space_enabled() {
    let f = plugged();
    let w = f.bar(0).unwrap();
    assert_eq!((w.access(), f.bar(2).unwrap().access()), (BarAccess::Trapped, BarAccess::Mapped));
    assert_eq!(w.read::<u32>(0).unwrap(), u32::MAX, "memory space is off after power-up");
    enable(&*f);
    w.write::<u32>(8, 40).unwrap();
    w.write::<u8>(8, 2).unwrap();
    assert_eq!(w.read::<u64>(0).unwrap(), 42);
    for (offset, width) in [(252, 8), (256, 1), (2, 4), (0, 3), (u64::MAX, 1)] {
        assert!(matches!(w.read_width(offset, width), Err(BusError::OutOfRange { .. })), "{offset} {width}");
        assert!(w.write_width(offset, width, 0).is_err(), "{offset} {width}");
    }
    assert!(matches!(f.bar(1), Err(BusError::Unsupported(_))));
}

#[test]
fn a_doorbell_reaches_the_model_its_dma_the_memory_and_its_interrupt_the_eventfd() {
    let f = plugged();
    enable(&*f);
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    f.set_irqs(IrqKind::Msix, 1, &[Some(event.as_fd())]).unwrap();
    assert!(f.set_irqs(IrqKind::Msix, 1, &[None, None]).is_err(), "there are only two vectors");
    let m = mapped(&*f, 0x10000, DmaDirection::Bidirectional);
    m.mem().store_u64(4096, 6, Ordering::Release).unwrap();
    f.bar(2).unwrap().write::<u64>(0, 0x11000).unwrap();
    f.model().step();
    assert_eq!(m.mem().load_u64(4096, Ordering::Acquire).unwrap(), 7);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(f.iommu().fault_count(), 0);
    f.set_irqs(IrqKind::Msix, 1, &[None]).unwrap();
    f.model().step();
    assert!(event.read().is_err(), "a vector without eventfd is silent");
}

#[test]
fn the_iommu_blocks_and_reports_what_is_not_mapped_or_not_allowed() {
    let f = plugged();
    enable(&*f);
    let ring = |iova: u64| {
        f.bar(2).unwrap().write::<u64>(0, iova).unwrap();
        let mut m = f.model();
        m.step();
        m.last
    };
    let read = mapped(&*f, 0x10000, DmaDirection::ToDevice);
    let _write = mapped(&*f, 0x20000, DmaDirection::FromDevice);
    assert_eq!(ring(0x30000), Some(DmaFault { iova: 0x30000, len: 8, write: false }), "not mapped");
    assert_eq!(ring(0x10000), Some(DmaFault { iova: 0x10000, len: 8, write: true }), "read only");
    assert_eq!(ring(0x20000), Some(DmaFault { iova: 0x20000, len: 8, write: false }), "write only");
    assert_eq!(ring(0x10004), Some(DmaFault { iova: 0x10004, len: 8, write: false }), "misaligned");
    assert_eq!(ring(u64::MAX - 3), Some(DmaFault { iova: u64::MAX - 3, len: 8, write: false }), "wraps");
    assert_eq!(f.iommu().fault_count(), 5);
    assert_eq!(read.mem().load_u64(0, Ordering::Relaxed).unwrap(), 0, "nothing was written");
    read.unmap().unwrap();
    assert!(ring(0x10000).is_some_and(|fault| !fault.write), "unmapped again");
    assert_eq!(f.iommu().mappings(), 1);
    f.config_write(4, 2, 2).unwrap();
    assert!(ring(0x20000).is_some(), "without bus master nothing goes");
    for _ in 0..100 {
        ring(0);
    }
    assert_eq!((f.iommu().faults().len(), f.iommu().fault_count()), (64, 107), "bounded, but all counted");
}

#[test]
fn dma_crosses_from_one_mapping_into_the_next() {
    let f = plugged();
    enable(&*f);
    let a = mapped(&*f, 0x10000, DmaDirection::Bidirectional);
    let b = mapped(&*f, 0x12000, DmaDirection::Bidirectional);
    let model = f.model();
    let dma = model.dma.as_ref().unwrap();
    dma.write(0x11ffe, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    dma.read(0x11ffe, &mut back).unwrap();
    let (mut tail, mut head) = ([0; 2], [0; 2]);
    a.mem().read_bytes(8190, &mut tail).unwrap();
    b.mem().read_bytes(0, &mut head).unwrap();
    assert_eq!((back, tail, head), ([1, 2, 3, 4], [1, 2], [3, 4]));
    assert!(dma.write(0x13ffe, &[0; 4]).is_err());
}

#[test]
fn impossible_mappings_are_refused_with_the_cause() {
    let config = InProcConfig { max_mappings: 2, ..Default::default() };
    let f = InProc::new(Adder::default(), config).unwrap();
    let map = |iova| f.dma().map(Arc::new(DmaMem::new(8192).unwrap()), iova, DmaDirection::Bidirectional);
    let _first = map(0x10000).unwrap();
    for (iova, part) in [
        (0x10800, "whole pages"),
        (0xfede_f000 + 0x10000, "IOVA ranges"),
        (0xfee0_0000, "IOVA ranges"),
        (1 << 39, "IOVA ranges"),
        (0xffff_ffff_ffff_f000, "wraps"),
        (0x11000, "overlaps"),
        (0xf000, "overlaps"),
    ] {
        let e = map(iova).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(part), "{iova:#x}: {e}");
    }
    let second = map(0x12000).unwrap();
    assert!(map(0x20000).map(|_| ()).unwrap_err().to_string().contains("no mapping left"));
    drop(second);
    map(0x20000).unwrap();
}

#[test]
fn flr_by_config_space_and_by_the_transport_reset_the_model() {
    let f = plugged();
    enable(&*f);
    f.bar(0).unwrap().write::<u32>(8, 5).unwrap();
    f.config_write(0x48, 2, 0x8000).unwrap();
    assert_eq!(f.model().resets, 1);
    assert_eq!(f.model().sum, 0);
    assert_eq!(f.config_read(4, 2).unwrap(), 0);
    assert_eq!(f.bar(0).unwrap().read::<u32>(0).unwrap(), u32::MAX);
    enable(&*f);
    f.reset().unwrap();
    assert_eq!(f.model().resets, 2);
    assert_eq!(f.config_read(4, 2).unwrap(), 0);
    assert_eq!(f.model().bus_master, [true, false, true, false]);
}

#[test]
fn a_removed_function_reads_all_ones_and_reaches_nothing() {
    let f = plugged();
    enable(&*f);
    let m = mapped(&*f, 0x10000, DmaDirection::Bidirectional);
    let (regs, doorbells) = (f.bar(0).unwrap(), f.bar(2).unwrap());
    doorbells.write::<u64>(0, 0x10000).unwrap();
    f.remove();
    assert_eq!(regs.read::<u16>(0).unwrap(), 0xffff);
    assert_eq!(doorbells.read::<u64>(0).unwrap(), u64::MAX);
    assert_eq!(f.config_read(0, 2).unwrap(), 0xffff);
    regs.write::<u32>(8, 1).unwrap();
    f.model().step();
    assert_eq!(f.model().sum, 0);
    assert_eq!(m.mem().load_u64(0, Ordering::Acquire).unwrap(), 0);
    assert!(matches!(f.reset(), Err(BusError::Gone(_))));
    let life = f.lifecycle();
    let mut count = [0; 8];
    assert_eq!(nix::unistd::read(life.error.unwrap(), &mut count).unwrap(), 8, "removal is announced");
    f.request_back();
    assert_eq!(nix::unistd::read(life.request.unwrap(), &mut count).unwrap(), 8);
}
