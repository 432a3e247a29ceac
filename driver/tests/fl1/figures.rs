//! What the driver costs its transport: register writes and IOMMU mappings.

use crate::harness::*;
use flowlift_bus::{
    BarAccess, BarWindow, BusError, DmaDomain, IrqInfo, IrqKind, LifecycleEvents, PciFunction,
};
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::*;
use flowlift_sim::{FaultPlan, Profile};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A function none of whose BARs is mapped: every register access is a call into the transport, and counted.
struct Trapping {
    function: Function,
    writes: Arc<AtomicU64>,
}

struct TrappingBar {
    bar: Arc<dyn BarWindow>,
    writes: Arc<AtomicU64>,
}

impl BarWindow for TrappingBar {
    fn size(&self) -> u64 {
        self.bar.size()
    }
    fn access(&self) -> BarAccess {
        BarAccess::Trapped
    }
    fn read_width(&self, offset: u64, width: usize) -> Result<u64, BusError> {
        self.bar.read_width(offset, width)
    }
    fn write_width(&self, offset: u64, width: usize, value: u64) -> Result<(), BusError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bar.write_width(offset, width, value)
    }
}

impl PciFunction for Trapping {
    fn name(&self) -> &str {
        self.function.name()
    }
    fn config_read(&self, offset: u16, width: usize) -> Result<u32, BusError> {
        self.function.config_read(offset, width)
    }
    fn config_write(&self, offset: u16, width: usize, value: u32) -> Result<(), BusError> {
        self.function.config_write(offset, width, value)
    }
    fn bar(&self, index: u8) -> Result<Arc<dyn BarWindow>, BusError> {
        Ok(Arc::new(TrappingBar { bar: self.function.bar(index)?, writes: self.writes.clone() }))
    }
    fn dma(&self) -> Arc<dyn DmaDomain> {
        self.function.dma()
    }
    fn irq_info(&self, kind: IrqKind) -> Result<IrqInfo, BusError> {
        self.function.irq_info(kind)
    }
    fn set_irqs(&self, kind: IrqKind, start: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<(), BusError> {
        self.function.set_irqs(kind, start, fds)
    }
    fn lifecycle(&self) -> LifecycleEvents<'_> {
        self.function.lifecycle()
    }
    fn reset(&self) -> Result<(), BusError> {
        self.function.reset()
    }
}

#[test]
fn at_most_one_trapped_write_per_64_updates_and_no_mapping_per_flow() {
    const BATCH: usize = 256;
    let (function, clock, _wires) = plug(Profile::standard(), 1, FaultPlan::default());
    let writes = Arc::new(AtomicU64::new(0));
    let trapping = Arc::new(Trapping { function: function.clone(), writes: writes.clone() });
    let nic = Fl1::open(trapping, config(&function, &clock)).unwrap();
    let mut b = Bench { function, nic, clock, wires: vec![], results: vec![], events: vec![] };
    let mappings = b.function.iommu().mappings();
    assert!(mappings <= 3, "{mappings} mappings");

    let entry = |b: &Bench, n: u32, to| {
        let matches = [(Field::Ipv4Dst, u128::from(n), 0xffff_ffff)];
        b.entry(TableId(0), &matches, &[NicAction::Output(NicPort(to))])
    };
    let n = 32_768;
    type Make<'a> = &'a dyn Fn(&Bench, u32) -> Update;
    let kinds: [(&str, Make<'_>); 3] = [
        ("inserts", &|b, i| Update::Insert { cookie: i.into(), id: at(0, i), entry: entry(b, i, 1) }),
        ("replaces", &|b, i| Update::Replace { cookie: i.into(), id: at(0, i), entry: entry(b, i, 2) }),
        ("deletes", &|_, i| Update::Delete { cookie: i.into(), id: at(0, i) }),
    ];
    for (what, make) in kinds {
        let before = writes.load(Ordering::Relaxed);
        for first in (0..n).step_by(BATCH) {
            let batch: Vec<_> = (first..first + BATCH as u32).map(|i| make(&b, i)).collect();
            let results = b.run(&batch);
            assert!(results.iter().all(|r| r.status == UpdateStatus::Ok), "{what}");
        }
        let trapped = writes.load(Ordering::Relaxed) - before;
        println!("{n} {what}: {trapped} register writes, one for {} updates", u64::from(n) / trapped);
        assert!(trapped * 64 <= u64::from(n), "{trapped} register writes for {n} {what}");
        assert_eq!(b.function.iommu().mappings(), mappings, "mappings after {n} {what}");
    }
    b.finish();
}

#[test]
fn a_standard_nic_fits_what_an_ordinary_user_may_lock() {
    let (function, clock, _wires) = plug(Profile::standard(), 1, FaultPlan::default());
    let defaults = Fl1Config { platform: config(&function, &clock).platform, ..Fl1Config::default() };
    let nic = Fl1::open(function.clone(), defaults).unwrap();
    let mapped = function.iommu().mapped_bytes();
    println!("{} tables: {mapped} bytes of DMA memory", nic.caps().tables.len());
    assert!(mapped < 8 << 20, "{mapped} bytes, and RLIMIT_MEMLOCK is 8 MiB by default");
}
