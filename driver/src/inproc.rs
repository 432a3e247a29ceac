//! In-process transport: a [`DeviceModel`] as a [`PciFunction`], with the IOMMU between them modelled.
//!
//! The driver under test runs unchanged: it sees configuration space, BAR windows, interrupts and a DMA domain. The
//! model reaches host memory only through the [`Iommu`], which translates what is mapped, and blocks and reports the
//! rest. Nothing here has a thread: whoever owns the model steps it through [`InProc::model`], in the driver's thread
//! or in another.
//!
//! Locking: register accesses and steps take the model's lock; config space, interrupts and the IOMMU have their own,
//! each taken last and never held across a call into the model. Mapped BARs are plain shared memory and take none. A
//! register access goes before the next step, however fast steps follow one another.

use flowlift_bus::{
    BarAccess, BarSpec, BarWindow, BusError, ConfigSpace, DeviceModel, DmaDirection, DmaDomain, DmaFault,
    DmaMem, DmaPages, IovaRange, IrqInfo, IrqKind, IrqSink, LifecycleEvents, Mapping, MappingGuard, PagedBus,
    PciFunction,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Page size of the modelled IOMMU in bytes.
const PAGE: u64 = 4096;
/// DMA faults kept for reading; older ones are only counted.
const FAULTS_KEPT: usize = 64;

/// Rounds that a register access spins for the model before it sleeps: longer than most steps take.
const SPINS: u32 = 4096;
/// Rounds that a step waits for a register access: enough for one that spins; one that has no core is not waited for.
const YIELDS: u32 = 128;

/// Locks, also after a panic elsewhere: the data are plain values that no panic leaves half-written.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an in-process function looks like besides its model.
#[derive(Debug, Clone)]
pub struct InProcConfig {
    /// Name for messages.
    pub name: String,
    /// Addresses that the IOMMU takes, ascending.
    pub iova_ranges: Vec<IovaRange>,
    /// Mappings that the IOMMU holds at once.
    pub max_mappings: usize,
}

impl Default for InProcConfig {
    /// 39 bits without the interrupt window, and 65,535 mappings: what VFIO type 1 on VT-d gives.
    fn default() -> Self {
        Self {
            name: "in-process".into(),
            iova_ranges: vec![
                IovaRange { first: 0, last: 0xfedf_ffff },
                IovaRange { first: 0xfef0_0000, last: (1 << 39) - 1 },
            ],
            max_mappings: 65_535,
        }
    }
}

/// One mapping of the IOMMU.
struct Mapped {
    iova: u64,
    mem: Arc<DmaMem>,
    direction: DmaDirection,
}

impl Mapped {
    /// Last address, inclusive.
    fn last(&self) -> u64 {
        self.iova + (self.mem.len() as u64 - 1)
    }
}

/// The IOMMU of one function: what is mapped, and what was blocked.
pub struct Iommu {
    ranges: Vec<IovaRange>,
    max_mappings: usize,
    /// Ascending by address, disjoint.
    maps: RwLock<Vec<Mapped>>,
    bus_master: AtomicBool,
    gone: AtomicBool,
    faults: Mutex<(VecDeque<DmaFault>, u64)>,
}

impl Iommu {
    /// Accesses blocked so far.
    pub fn fault_count(&self) -> u64 {
        lock(&self.faults).1
    }

    /// The last accesses that were blocked, oldest first, at most 64; they are kept.
    pub fn faults(&self) -> Vec<DmaFault> {
        lock(&self.faults).0.iter().copied().collect()
    }

    /// Mappings there are now.
    pub fn mappings(&self) -> usize {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Memory that is mapped now, in bytes.
    pub fn mapped_bytes(&self) -> u64 {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).iter().map(|m| m.mem.len() as u64).sum()
    }

    fn blocked(&self, iova: u64, len: usize, write: bool) -> DmaFault {
        let fault = DmaFault { iova, len, write };
        // A function that was pulled out has no IOMMU in front of it to report anything.
        if !self.gone.load(Ordering::Relaxed) {
            let mut log = lock(&self.faults);
            if log.0.len() == FAULTS_KEPT {
                log.0.pop_front();
            }
            log.0.push_back(fault);
            log.1 += 1;
        }
        fault
    }

    fn map(&self, mem: &Arc<DmaMem>, iova: u64, direction: DmaDirection) -> Result<(), BusError> {
        let len = mem.len() as u64;
        let refuse = |why: &str| Err(BusError::Map { iova, len, why: why.into() });
        if self.gone.load(Ordering::Acquire) {
            return Err(BusError::Gone("DMA map"));
        }
        if !iova.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return refuse("not whole pages");
        }
        let Some(last) = iova.checked_add(len - 1) else { return refuse("it wraps around") };
        if !self.ranges.iter().any(|r| r.first <= iova && last <= r.last) {
            return refuse("outside the IOVA ranges");
        }
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if maps.len() >= self.max_mappings {
            return refuse("no mapping left");
        }
        let at = maps.partition_point(|m| m.iova < iova);
        let before = at.checked_sub(1).and_then(|i| maps.get(i));
        if before.is_some_and(|m| m.last() >= iova) || maps.get(at).is_some_and(|m| m.iova <= last) {
            return refuse("it overlaps another mapping");
        }
        maps.insert(at, Mapped { iova, mem: mem.clone(), direction });
        Ok(())
    }

    /// Waits for accesses under way, so that afterwards the device cannot reach the memory.
    fn unmap(&self, iova: u64) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|m| m.iova != iova);
    }
}

impl DmaPages for Iommu {
    fn access(
        &self,
        iova: u64,
        len: usize,
        write: bool,
        mut piece: impl FnMut(&DmaMem, usize, Range<usize>) -> Result<(), BusError>,
    ) -> Result<(), DmaFault> {
        let fault = || self.blocked(iova, len, write);
        if !self.bus_master.load(Ordering::Acquire) || self.gone.load(Ordering::Acquire) {
            return Err(fault());
        }
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < len {
            let at = iova.wrapping_add(done as u64);
            let after = maps.partition_point(|m| m.iova <= at);
            let m = after.checked_sub(1).and_then(|i| maps.get(i)).filter(|m| at <= m.last());
            let allowed = m.filter(|m| match m.direction {
                DmaDirection::ToDevice => !write,
                DmaDirection::FromDevice => write,
                DmaDirection::Bidirectional => true,
            });
            let Some(m) = allowed else { return Err(fault()) };
            let offset = (at - m.iova) as usize;
            let n = (len - done).min(m.mem.len() - offset);
            piece(&m.mem, offset, done..done + n).map_err(|_| fault())?;
            done += n;
        }
        Ok(())
    }
}

/// The driver's DMA domain.
struct Domain(Arc<Iommu>);

struct Guard {
    iommu: Arc<Iommu>,
    iova: u64,
}

impl MappingGuard for Guard {
    fn unmap(&mut self) -> Result<(), BusError> {
        self.iommu.unmap(self.iova);
        Ok(())
    }
}

impl DmaDomain for Domain {
    fn iova_ranges(&self) -> Vec<IovaRange> {
        self.0.ranges.clone()
    }
    fn page_sizes(&self) -> u64 {
        PAGE
    }
    fn max_mappings(&self) -> usize {
        self.0.max_mappings
    }
    fn map(&self, mem: Arc<DmaMem>, iova: u64, direction: DmaDirection) -> Result<Mapping, BusError> {
        self.0.map(&mem, iova, direction)?;
        Ok(Mapping::new(mem, iova, Box::new(Guard { iommu: self.0.clone(), iova })))
    }
}

/// MSI-X vectors by eventfd.
struct Irqs {
    vectors: Mutex<Vec<Option<OwnedFd>>>,
    iommu: Arc<Iommu>,
}

impl IrqSink for Irqs {
    fn raise(&self, vector: u16) {
        // MSI-X is a memory write: without bus master it does not leave the function.
        if !self.iommu.bus_master.load(Ordering::Acquire) || self.iommu.gone.load(Ordering::Acquire) {
            return;
        }
        if let Some(Some(fd)) = lock(&self.vectors).get(usize::from(vector)) {
            // A full eventfd is signalled already.
            let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
        }
    }
}

struct SharedIrqs(Arc<Irqs>);

impl IrqSink for SharedIrqs {
    fn raise(&self, vector: u16) {
        self.0.raise(vector);
    }
}

struct Inner<D> {
    name: String,
    model: Mutex<D>,
    /// Register accesses that wait for the model.
    waiting: AtomicUsize,
    config: Mutex<ConfigSpace>,
    bars: Vec<(BarSpec, Option<DmaMem>)>,
    irqs: Arc<Irqs>,
    iommu: Arc<Iommu>,
    /// Memory Space Enable, mirrored from config space for the mapped windows.
    memory: AtomicBool,
    request: EventFd,
    error: EventFd,
}

impl<D: DeviceModel> Inner<D> {
    /// True while the function answers on its BARs.
    fn answers(&self) -> bool {
        self.memory.load(Ordering::Acquire) && !self.iommu.gone.load(Ordering::Acquire)
    }
    /// The model, for a register access. A step takes microseconds, and a thread that went to sleep would miss the moment
    /// between two of them, again and again.
    fn registers(&self) -> MutexGuard<'_, D> {
        if let Ok(model) = self.model.try_lock() {
            return model;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut spins = (0..SPINS).filter_map(|_| {
            std::hint::spin_loop();
            self.model.try_lock().ok()
        });
        let model = spins.next().unwrap_or_else(|| lock(&self.model));
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        model
    }
    fn gone(&self) -> bool {
        self.iommu.gone.load(Ordering::Acquire)
    }
    fn set_bus_master(&self, enabled: bool) {
        if !enabled {
            self.iommu.bus_master.store(false, Ordering::Release);
        }
        lock(&self.model).bus_master(enabled);
        self.iommu.bus_master.store(enabled, Ordering::Release);
    }
}

/// A device model as a PCI function.
pub struct InProc<D> {
    inner: Arc<Inner<D>>,
}

impl<D: DeviceModel + 'static> InProc<D> {
    /// Plugs the model in: hands it its way to memory and interrupts and the memory of its mapped BARs.
    pub fn new(mut model: D, config: InProcConfig) -> Result<Arc<Self>, BusError> {
        let event = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| BusError::Io { what: "eventfd", cause: e.into() })
        };
        let space = ConfigSpace::new(model.identity(), model.bars(), model.msix_vectors())?;
        let mut bars = Vec::new();
        for b in model.bars() {
            bars.push((*b, if b.mapped { Some(DmaMem::new(b.size as usize)?) } else { None }));
        }
        let vectors = usize::from(model.msix_vectors());
        let iommu = Arc::new(Iommu {
            ranges: config.iova_ranges,
            max_mappings: config.max_mappings,
            maps: RwLock::default(),
            bus_master: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            faults: Mutex::default(),
        });
        let irqs = Arc::new(Irqs {
            vectors: Mutex::new((0..vectors).map(|_| None).collect()),
            iommu: iommu.clone(),
        });
        let mapped = bars.iter().filter_map(|(b, m)| m.clone().map(|m| (b.index, m))).collect();
        model.attach(Box::new(PagedBus(iommu.clone())), Box::new(SharedIrqs(irqs.clone())), mapped);
        Ok(Arc::new(Self {
            inner: Arc::new(Inner {
                name: config.name,
                model: Mutex::new(model),
                waiting: AtomicUsize::new(0),
                config: Mutex::new(space),
                bars,
                irqs,
                iommu,
                memory: AtomicBool::new(false),
                request: event()?,
                error: event()?,
            }),
        }))
    }

    /// The model, to be stepped or inspected. Register accesses wait meanwhile.
    pub fn model(&self) -> MutexGuard<'_, D> {
        for _ in 0..YIELDS {
            if self.inner.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::hint::spin_loop();
        }
        lock(&self.inner.model)
    }

    /// The IOMMU in front of the model.
    pub fn iommu(&self) -> &Iommu {
        &self.inner.iommu
    }

    /// Pulls the function out: reads give all-ones, writes go nowhere, DMA and interrupts stop, mappings are refused.
    /// It does not come back.
    pub fn remove(&self) {
        self.inner.iommu.gone.store(true, Ordering::Release);
        // Taking the lock once waits for DMA under way.
        drop(self.inner.iommu.maps.write());
        let _ = self.inner.error.write(1);
    }

    /// Asks the driver for the function back, as the host does before an orderly removal.
    pub fn request_back(&self) {
        let _ = self.inner.request.write(1);
    }
}

struct Window<D> {
    inner: Arc<Inner<D>>,
    spec: BarSpec,
    mem: Option<DmaMem>,
}

impl<D: DeviceModel> Window<D> {
    fn check(&self, offset: u64, width: usize) -> Result<(), BusError> {
        let fits = matches!(width, 1 | 2 | 4 | 8)
            && offset.is_multiple_of(width as u64)
            && offset.checked_add(width as u64).is_some_and(|end| end <= self.spec.size);
        if fits {
            return Ok(());
        }
        Err(BusError::OutOfRange { what: "a BAR", offset, len: width, size: self.spec.size })
    }
}

impl<D: DeviceModel> BarWindow for Window<D> {
    fn size(&self) -> u64 {
        self.spec.size
    }
    fn access(&self) -> BarAccess {
        if self.mem.is_some() { BarAccess::Mapped } else { BarAccess::Trapped }
    }
    fn read_width(&self, offset: u64, width: usize) -> Result<u64, BusError> {
        self.check(offset, width)?;
        if !self.inner.answers() {
            return Ok(u64::MAX >> (64 - width * 8));
        }
        match &self.mem {
            Some(m) if width == 8 => m.load_u64(offset as usize, Ordering::Acquire),
            Some(m) if width == 4 => m.load_u32(offset as usize, Ordering::Acquire).map(u64::from),
            Some(m) => {
                let mut b = [0; 8];
                m.read_bytes(offset as usize, &mut b[..width])?;
                Ok(u64::from_le_bytes(b))
            }
            None => {
                let mut b = [0; 8];
                self.inner.registers().region_read(self.spec.index, offset, &mut b[..width]);
                Ok(u64::from_le_bytes(b))
            }
        }
    }
    fn write_width(&self, offset: u64, width: usize, value: u64) -> Result<(), BusError> {
        self.check(offset, width)?;
        if !self.inner.answers() {
            return Ok(());
        }
        match &self.mem {
            Some(m) if width == 8 => m.store_u64(offset as usize, value, Ordering::Release),
            Some(m) if width == 4 => m.store_u32(offset as usize, value as u32, Ordering::Release),
            Some(m) => {
                std::sync::atomic::fence(Ordering::Release);
                m.write_bytes(offset as usize, &value.to_le_bytes()[..width])
            }
            None => {
                let bytes = value.to_le_bytes();
                self.inner.registers().region_write(self.spec.index, offset, &bytes[..width]);
                Ok(())
            }
        }
    }
}

impl<D: DeviceModel + 'static> PciFunction for InProc<D> {
    fn name(&self) -> &str {
        &self.inner.name
    }
    fn config_read(&self, offset: u16, width: usize) -> Result<u32, BusError> {
        let value = lock(&self.inner.config).read(offset, width)?;
        Ok(if self.inner.gone() { u32::MAX >> (32 - width * 8) } else { value })
    }
    fn config_write(&self, offset: u16, width: usize, value: u32) -> Result<(), BusError> {
        if self.inner.gone() {
            return Ok(());
        }
        let effect = {
            let mut config = lock(&self.inner.config);
            let effect = config.write(offset, width, value)?;
            self.inner.memory.store(config.memory_enabled(), Ordering::Release);
            effect
        };
        if let Some(enabled) = effect.bus_master {
            self.inner.set_bus_master(enabled);
        }
        if effect.reset {
            lock(&self.inner.model).reset();
        }
        Ok(())
    }
    fn bar(&self, index: u8) -> Result<Arc<dyn BarWindow>, BusError> {
        let (spec, mem) = self
            .inner
            .bars
            .iter()
            .find(|(b, _)| b.index == index)
            .ok_or(BusError::Unsupported("a window onto a BAR that is not there"))?;
        Ok(Arc::new(Window { inner: self.inner.clone(), spec: *spec, mem: mem.clone() }))
    }
    fn dma(&self) -> Arc<dyn DmaDomain> {
        Arc::new(Domain(self.inner.iommu.clone()))
    }
    fn irq_info(&self, kind: IrqKind) -> Result<IrqInfo, BusError> {
        let count = match kind {
            IrqKind::Msix => lock(&self.inner.irqs.vectors).len() as u32,
            IrqKind::Err | IrqKind::Req => 1,
        };
        Ok(IrqInfo { count, eventfd: true })
    }
    fn set_irqs(&self, kind: IrqKind, start: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<(), BusError> {
        if kind != IrqKind::Msix {
            return Err(BusError::Unsupported("eventfds of the caller's for ERR and REQ: see `lifecycle`"));
        }
        let mut vectors = lock(&self.inner.irqs.vectors);
        let size = vectors.len() as u64;
        let slots =
            (start as usize).checked_add(fds.len()).and_then(|end| vectors.get_mut(start as usize..end));
        let Some(slots) = slots else {
            return Err(BusError::OutOfRange {
                what: "MSI-X vectors",
                offset: start.into(),
                len: fds.len(),
                size,
            });
        };
        for (slot, fd) in slots.iter_mut().zip(fds) {
            *slot = fd
                .map(|fd| fd.try_clone_to_owned())
                .transpose()
                .map_err(|cause| BusError::Io { what: "duplicate of an eventfd", cause })?;
        }
        Ok(())
    }
    fn lifecycle(&self) -> LifecycleEvents<'_> {
        LifecycleEvents { request: Some(self.inner.request.as_fd()), error: Some(self.inner.error.as_fd()) }
    }
    fn reset(&self) -> Result<(), BusError> {
        if self.inner.gone() {
            return Err(BusError::Gone("function level reset"));
        }
        self.inner.set_bus_master(false);
        lock(&self.inner.model).reset();
        let mut config = lock(&self.inner.config);
        config.reset();
        self.inner.memory.store(false, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
