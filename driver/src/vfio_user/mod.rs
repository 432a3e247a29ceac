//! vfio-user transport: a device in another process, over a Unix socket. The simulator is such a server.
//!
//! DMA memory goes to the server as memfds, interrupts come back as eventfds, doorbells are memory of the server's that is mapped here,
//! with an eventfd for a server that sleeps; registers and configuration space are messages. A server that dies, closes the connection,
//! answers nonsense to what was asked, or not at all before the deadline is a function that was pulled out: trapped accesses say
//! [`BusError::Gone`], mapped ones read all-ones, the ERR eventfd is signalled, nothing waits any more, and it does not come back. A
//! thread sleeps on the socket to notice the end at once.
//!
//! The server is not believed: sizes, areas, counts and descriptors are checked before they are used.

mod dma;
mod link;
mod window;

use dma::Domain;
use flowlift_bus::vfio_user::{
    DeviceInfo, IoEventFd, IrqInfo as WireIrqInfo, IrqSet, RegionInfo, RegionIoFds, SparseArea, SparseMmap,
    command, irq, region,
};
use flowlift_bus::{BarWindow, BusError, DmaDomain, DmaMem, IrqInfo, IrqKind, LifecycleEvents, PciFunction};
use link::{Answer, Link, nonsense};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use window::{Bar, Bell, Window};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Largest BAR that is believed, in bytes.
const MAX_BAR: u64 = 1 << 30;
/// Most MSI-X vectors that PCI has.
const MAX_VECTORS: u32 = 2048;
/// Room for the capabilities of a region, in bytes.
const MAX_REGION_INFO: u32 = 4096;

/// How the driver talks to a server.
#[derive(Debug, Clone, Copy)]
pub struct VfioUserConfig {
    /// How long the server may take for an answer; a later one is a dead server.
    pub deadline: Duration,
}

impl Default for VfioUserConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(2) }
    }
}

/// A PCI function served by another process.
pub struct VfioUser {
    name: String,
    link: Arc<Link>,
    bars: Vec<Option<Arc<Bar>>>,
    vectors: u32,
    resettable: bool,
    domain: Arc<Domain>,
    request: EventFd,
    watcher: Option<JoinHandle<()>>,
}

impl VfioUser {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens, the server serves another client, or it is no vfio-user server of a PCI device.
    pub fn connect(path: impl AsRef<Path>, config: VfioUserConfig) -> Result<Arc<Self>, BusError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path)
            .map_err(|cause| BusError::Io { what: "connection to the vfio-user socket", cause })?;
        Self::over(stream, format!("vfio-user:{}", path.display()), config)
    }

    /// Takes a connected socket; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn over(stream: UnixStream, name: String, config: VfioUserConfig) -> Result<Arc<Self>, BusError> {
        let link = Arc::new(Link::open(stream, event()?, config.deadline)?);
        let watcher = {
            let link = Arc::clone(&link);
            let run = move || watch(&link);
            std::thread::Builder::new()
                .name("vfio-user".into())
                .spawn(run)
                .map_err(|cause| BusError::Io { what: "thread that watches the server", cause })?
        };
        // From here on dropping this ends the watcher.
        let mut function = Self {
            name,
            domain: Arc::new(Domain::new(Arc::clone(&link))),
            link,
            bars: Vec::new(),
            vectors: 0,
            resettable: false,
            request: event()?,
            watcher: Some(watcher),
        };
        function.look()?;
        Ok(Arc::new(function))
    }

    /// Reads what the device is, and has its lifecycle told.
    fn look(&mut self) -> Result<(), BusError> {
        let argsz = size_of::<DeviceInfo>() as u32;
        let asked = DeviceInfo { argsz, ..DeviceInfo::new_zeroed() };
        let answer = self.link.ask("device information", command::GET_INFO, &[asked.as_bytes()], &[])?;
        let (info, _) = answer.parse::<DeviceInfo>()?;
        if info.flags & DeviceInfo::PCI == 0 || info.regions <= region::CONFIG || info.irqs <= irq::MSIX {
            return Err(BusError::Unsupported("a device that is not PCI"));
        }
        self.resettable = info.flags & DeviceInfo::RESET != 0;
        let mut bars = Vec::new();
        for index in 0..6 {
            bars.push(self.look_at_bar(index)?);
        }
        self.vectors = self.count(irq::MSIX)?;
        if self.vectors > MAX_VECTORS {
            return Err(nonsense("MSI-X vectors"));
        }
        if info.irqs > irq::REQ && self.count(irq::REQ)? > 0 {
            self.assign(irq::REQ, 0, &[self.request.as_fd()])?;
        }
        if info.irqs > irq::ERR && self.count(irq::ERR)? > 0 {
            self.assign(irq::ERR, 0, &[self.link.error.as_fd()])?;
        }
        for bar in bars.iter_mut().flatten().filter(|bar| bar.mapped.is_some()) {
            bar.bell = self.look_for_bell(bar.index, bar.size)?;
        }
        self.bars = bars.into_iter().map(|bar| bar.map(Arc::new)).collect();
        Ok(())
    }

    /// The eventfd that tells of stores to a mapped BAR, from a server that would rather sleep than look.
    fn look_for_bell(&self, index: u8, size: u64) -> Result<Option<Bell>, BusError> {
        let what = "descriptors of a region";
        let ask = |flags| {
            let asked = RegionIoFds {
                argsz: MAX_REGION_INFO,
                flags,
                index: index.into(),
                ..RegionIoFds::new_zeroed()
            };
            self.link.ask(what, command::GET_REGION_IO_FDS, &[asked.as_bytes()], &[])
        };
        // The command is optional, and the flag is ours.
        let refused = |answer: &Result<_, _>| matches!(answer, Err(BusError::Io { .. }));
        let mut answer = ask(RegionIoFds::WHILE_ASLEEP);
        if refused(&answer) {
            answer = ask(0);
        }
        if refused(&answer) {
            return Ok(None);
        }
        let mut answer = answer?;
        let (info, rest) = answer.parse::<RegionIoFds>()?;
        if info.count == 0 {
            return Ok(None);
        }
        let (sub, _) = IoEventFd::read_from_prefix(rest).map_err(|_| nonsense(what))?;
        let whole = IoEventFd { offset: 0, size, kind: IoEventFd::TYPE, ..IoEventFd::new_zeroed() };
        if info.count != 1 || sub != whole || answer.fds.len() != 1 {
            return Err(BusError::Unsupported("a region whose parts are told of apart"));
        }
        let while_asleep = info.flags & RegionIoFds::WHILE_ASLEEP != 0
            && size >= RegionIoFds::ASLEEP_LEN
            && size.is_multiple_of(4);
        let bell = answer.fds.pop().and_then(|fd| Bell::new(fd, while_asleep));
        bell.map(Some).ok_or_else(|| nonsense(what))
    }

    fn look_at_bar(&self, index: u8) -> Result<Option<Bar>, BusError> {
        let what = "region information";
        let asked = RegionInfo { argsz: MAX_REGION_INFO, index: index.into(), ..RegionInfo::new_zeroed() };
        let answer = self.link.ask(what, command::GET_REGION_INFO, &[asked.as_bytes()], &[])?;
        let (info, _) = answer.parse::<RegionInfo>()?;
        if info.size == 0 {
            return Ok(None);
        }
        if info.index != u32::from(index) || info.size > MAX_BAR {
            return Err(nonsense(what));
        }
        let mapped = if info.flags & RegionInfo::MMAP != 0 && covers_all(&answer, &info)? {
            Some(map(answer, &info)?)
        } else {
            None
        };
        Ok(Some(Bar { index, size: info.size, mapped, base: info.offset as usize, bell: None }))
    }

    /// Number of interrupts of a kind.
    fn count(&self, index: u32) -> Result<u32, BusError> {
        let what = "interrupt information";
        let asked =
            WireIrqInfo { argsz: size_of::<WireIrqInfo>() as u32, index, ..WireIrqInfo::new_zeroed() };
        let answer = self.link.ask(what, command::GET_IRQ_INFO, &[asked.as_bytes()], &[])?;
        let (info, _) = answer.parse::<WireIrqInfo>()?;
        if info.index != index || (info.count > 0 && info.flags & irq::EVENTFD == 0) {
            return Err(nonsense(what));
        }
        Ok(info.count)
    }

    /// Assigns eventfds to interrupts, or none to as many as `count` says.
    fn set(&self, index: u32, start: u32, count: u32, fds: &[BorrowedFd<'_>]) -> Result<(), BusError> {
        let set = IrqSet {
            argsz: size_of::<IrqSet>() as u32,
            flags: irq::DATA_EVENTFD | irq::ACTION_TRIGGER,
            index,
            start,
            count,
        };
        self.link.ask("interrupt setup", command::SET_IRQS, &[set.as_bytes()], fds)?;
        Ok(())
    }

    fn assign(&self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), BusError> {
        self.set(index, start, fds.len() as u32, fds)
    }

    fn check_config(offset: u16, width: usize) -> Result<(), BusError> {
        if matches!(width, 1 | 2 | 4) && usize::from(offset).is_multiple_of(width) {
            return Ok(());
        }
        Err(BusError::OutOfRange {
            what: "configuration space",
            offset: offset.into(),
            len: width,
            size: 4096,
        })
    }
}

fn event() -> Result<EventFd, BusError> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|e| BusError::Io { what: "eventfd", cause: e.into() })
}

/// Sleeps until the server closes the connection or dies.
fn watch(link: &Link) {
    loop {
        // POLLHUP and POLLERR come unasked; data are not what is waited for.
        let mut fds = [PollFd::new(link.stream().as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            _ => return link.lose(),
        }
    }
}

/// Whether all of a region can be mapped. A region of which only parts can is trapped as a whole.
fn covers_all(answer: &Answer, info: &RegionInfo) -> Result<bool, BusError> {
    let what = "capabilities of a region";
    let (_, rest) = answer.parse::<RegionInfo>()?;
    let mut at = info.cap_offset as usize;
    if info.flags & RegionInfo::CAPS == 0 || at == 0 {
        return Ok(true);
    }
    // Offsets count from the structure, and each capability lies behind the one before, so this ends.
    while at != 0 {
        let bytes = at
            .checked_sub(size_of::<RegionInfo>())
            .and_then(|at| rest.get(at..))
            .ok_or_else(|| nonsense(what))?;
        let (cap, areas) = SparseMmap::read_from_prefix(bytes).map_err(|_| nonsense(what))?;
        if cap.id == SparseMmap::ID {
            let one = SparseArea::read_from_prefix(areas).map_err(|_| nonsense(what))?.0;
            return Ok(cap.areas == 1 && one == SparseArea { offset: 0, size: info.size });
        }
        if cap.next != 0 && cap.next as usize <= at {
            return Err(nonsense(what));
        }
        at = cap.next as usize;
    }
    Ok(true)
}

/// Maps a region's memory.
fn map(mut answer: Answer, info: &RegionInfo) -> Result<DmaMem, BusError> {
    let what = "memory of a BAR";
    let end =
        info.offset.checked_add(info.size).filter(|end| *end <= MAX_BAR).ok_or_else(|| nonsense(what))?;
    if !info.offset.is_multiple_of(8) {
        return Err(nonsense(what));
    }
    let fd = answer.fds.pop().ok_or_else(|| nonsense(what))?;
    let mem = DmaMem::from_file(fd.into(), end as usize)?;
    // A server that could shrink it could kill this process.
    let seals =
        fcntl(mem.fd(), FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
    if !seals.contains(SealFlag::F_SEAL_SHRINK) {
        return Err(BusError::Unsupported("memory of a BAR that is not sealed against shrinking"));
    }
    Ok(mem)
}

impl PciFunction for VfioUser {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_read(&self, offset: u16, width: usize) -> Result<u32, BusError> {
        Self::check_config(offset, width)?;
        let value = window::read(&self.link, "configuration read", region::CONFIG, offset.into(), width)?;
        Ok(value as u32)
    }

    fn config_write(&self, offset: u16, width: usize, value: u32) -> Result<(), BusError> {
        Self::check_config(offset, width)?;
        window::write(&self.link, "configuration write", region::CONFIG, offset.into(), width, value.into())
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn BarWindow>, BusError> {
        match self.bars.get(usize::from(index)) {
            Some(Some(bar)) => Ok(Arc::new(Window { link: Arc::clone(&self.link), bar: Arc::clone(bar) })),
            _ => Err(BusError::Unsupported("a window onto a BAR that is not there")),
        }
    }

    fn dma(&self) -> Arc<dyn DmaDomain> {
        Arc::clone(&self.domain) as Arc<dyn DmaDomain>
    }

    fn irq_info(&self, kind: IrqKind) -> Result<IrqInfo, BusError> {
        let count = match kind {
            IrqKind::Msix => self.vectors,
            IrqKind::Err | IrqKind::Req => 1,
        };
        Ok(IrqInfo { count, eventfd: true })
    }

    fn set_irqs(&self, kind: IrqKind, start: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<(), BusError> {
        if kind != IrqKind::Msix {
            return Err(BusError::Unsupported("eventfds of the caller's for ERR and REQ: see `lifecycle`"));
        }
        let fits = (start as usize).checked_add(fds.len()).is_some_and(|end| end <= self.vectors as usize);
        if !fits {
            return Err(BusError::OutOfRange {
                what: "MSI-X vectors",
                offset: start.into(),
                len: fds.len(),
                size: self.vectors.into(),
            });
        }
        // A message has descriptors for all of its vectors or for none, and no more than the server takes at once.
        let most = usize::try_from(self.link.peer.max_msg_fds)
            .unwrap_or(usize::MAX)
            .clamp(1, flowlift_bus::vfio_user::MAX_FDS);
        let mut at = start;
        for run in fds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for part in run.chunks(most) {
                let given: Vec<BorrowedFd<'_>> = part.iter().flatten().copied().collect();
                self.set(irq::MSIX, at, part.len() as u32, &given)?;
                at += part.len() as u32;
            }
        }
        Ok(())
    }

    fn lifecycle(&self) -> LifecycleEvents<'_> {
        LifecycleEvents { request: Some(self.request.as_fd()), error: Some(self.link.error.as_fd()) }
    }

    fn reset(&self) -> Result<(), BusError> {
        if !self.resettable && !self.link.is_gone() {
            return Err(BusError::Unsupported("a reset of this function"));
        }
        self.link.ask("reset", command::RESET, &[], &[])?;
        Ok(())
    }
}

impl Drop for VfioUser {
    fn drop(&mut self) {
        self.link.lose();
        if let Some(watcher) = self.watcher.take() {
            // It ends with the connection.
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests;
