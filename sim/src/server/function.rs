//! The device as a vfio-user function: what each message of a client does. No sockets here.

use super::dma::ClientMemory;
use super::irq::{DeviceIrqs, Irqs};
use flowlift_bus::vfio_user::{
    Capabilities, DeviceInfo, DmaMap, DmaUnmap, IoEventFd, IrqInfo, IrqSet, MAJOR, MAX_DATA, MINOR,
    RegionAccess, RegionInfo, RegionIoFds, SparseArea, SparseMmap, Version, command, irq, region,
};
use flowlift_bus::{BarSpec, BusError, ConfigSpace, DeviceModel, DmaMem, PagedBus};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Offset of BAR 0 in configuration space.
const BAR0: u16 = 0x10;

/// Answer to a command: payload, and memory or an eventfd whose descriptor goes with it.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) memory: Option<DmaMem>,
    pub(super) bell: Option<Arc<EventFd>>,
}

impl Reply {
    fn of(value: &(impl IntoBytes + Immutable)) -> Self {
        Self { body: value.as_bytes().to_vec(), ..Self::default() }
    }
}

/// What stands behind a region.
enum Behind {
    Nothing,
    Config,
    /// Registers of the model.
    Model(u8),
    /// Plain memory.
    Memory(DmaMem),
    /// MSI-X table and pending bits. The client keeps those itself; they read as zeros here.
    MsixTable,
}

/// A device model in the clothes of a PCI function.
pub(super) struct Function<D> {
    model: D,
    config: ConfigSpace,
    bars: Vec<(BarSpec, Option<DmaMem>)>,
    msix_bar: Option<(u8, u64)>,
    memory: Arc<ClientMemory>,
    irqs: Arc<Irqs>,
    /// The client has introduced itself.
    introduced: bool,
    /// The client rings it after each store to memory of a BAR; `None` for one that did not ask for it.
    bell: Option<Arc<EventFd>>,
    /// Where the client of each mapped BAR looks whether it need ring, for one that does look.
    asleep: BTreeMap<u32, (DmaMem, usize)>,
}

impl<D: DeviceModel> Function<D> {
    /// Plugs the model in.
    pub(super) fn new(mut model: D) -> Result<Self, BusError> {
        let config = ConfigSpace::new(model.identity(), model.bars(), model.msix_vectors())?;
        let mut bars = Vec::new();
        for b in model.bars() {
            bars.push((*b, if b.mapped { Some(DmaMem::new(b.size as usize)?) } else { None }));
        }
        let msix_bar = config.msix_bar().map(|bar| (bar, bar_size(&config, bar)));
        let memory = Arc::new(ClientMemory::default());
        let irqs = Arc::new(Irqs::new(model.msix_vectors(), Arc::clone(&memory)));
        let mapped = bars.iter().filter_map(|(b, m)| m.clone().map(|m| (b.index, m))).collect();
        model.attach(
            Box::new(PagedBus(Arc::clone(&memory))),
            Box::new(DeviceIrqs(Arc::clone(&irqs))),
            mapped,
        );
        Ok(Self {
            model,
            config,
            bars,
            msix_bar,
            memory,
            irqs,
            introduced: false,
            bell: None,
            asleep: BTreeMap::new(),
        })
    }

    pub(super) fn model(&mut self) -> &mut D {
        &mut self.model
    }

    /// The client's memory.
    pub(super) fn memory(&self) -> &ClientMemory {
        &self.memory
    }

    /// Readable when the client has stored to memory of a BAR; `None` if it does not tell.
    pub(super) fn bell(&self) -> Option<&EventFd> {
        self.bell.as_deref()
    }

    /// Tells the client whether it has to ring. Before a sleep, doorbells have to be looked at once more after this.
    pub(super) fn set_asleep(&self, asleep: bool) {
        for (memory, at) in self.asleep.values() {
            // It lies in the memory: it was looked for there.
            let _ = memory.store_u32(*at, asleep.into(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// The client's eventfds.
    pub(super) fn irqs(&self) -> &Irqs {
        &self.irqs
    }

    /// The client is gone: DMA stops first, then everything is as after a function level reset.
    pub(super) fn disconnect(&mut self) {
        self.reset();
        self.memory.clear();
        self.irqs.clear();
        self.introduced = false;
        self.bell = None;
        self.asleep.clear();
    }

    fn set_bus_master(&mut self, enabled: bool) {
        self.memory.set_bus_master(enabled);
        self.model.bus_master(enabled);
    }

    fn reset(&mut self) {
        self.set_bus_master(false);
        self.config.reset();
        self.model.reset();
    }

    /// Carries out a command. An error is the errno of the reply.
    pub(super) fn answer(&mut self, command: u16, body: &[u8], fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        if self.introduced == (command == command::VERSION) {
            return Err(Errno::EINVAL);
        }
        match command {
            command::VERSION => self.version(body),
            command::DMA_MAP => {
                let (map, _) = parse::<DmaMap>(body)?;
                self.memory.map(&map, fds.into_iter().next())?;
                Ok(Reply::default())
            }
            command::DMA_UNMAP => {
                let (unmap, _) = parse::<DmaUnmap>(body)?;
                self.memory.unmap(unmap.address, unmap.size)?;
                Ok(Reply::of(&unmap))
            }
            command::GET_INFO => {
                parse::<DeviceInfo>(body)?;
                Ok(Reply::of(&DeviceInfo {
                    argsz: size_of::<DeviceInfo>() as u32,
                    flags: DeviceInfo::RESET | DeviceInfo::PCI,
                    regions: region::COUNT,
                    irqs: irq::COUNT,
                }))
            }
            command::GET_REGION_INFO => self.region_info(&parse::<RegionInfo>(body)?.0),
            command::GET_REGION_IO_FDS => self.region_io_fds(&parse::<RegionIoFds>(body)?.0),
            command::GET_IRQ_INFO => {
                let (asked, _) = parse::<IrqInfo>(body)?;
                let count = self.irqs.count(asked.index).ok_or(Errno::EINVAL)?;
                let flags = if count > 0 { irq::EVENTFD } else { 0 };
                Ok(Reply::of(&IrqInfo {
                    argsz: size_of::<IrqInfo>() as u32,
                    flags,
                    index: asked.index,
                    count,
                }))
            }
            command::SET_IRQS => {
                let (set, data) = parse::<IrqSet>(body)?;
                self.irqs.set(&set, data, fds)?;
                Ok(Reply::default())
            }
            command::REGION_READ => {
                let (access, _) = parse::<RegionAccess>(body)?;
                self.read(&access)
            }
            command::REGION_WRITE => {
                let (access, data) = parse::<RegionAccess>(body)?;
                if data.len() != access.count as usize {
                    return Err(Errno::EINVAL);
                }
                self.write(&access, data)?;
                Ok(Reply::of(&access))
            }
            command::RESET => {
                self.reset();
                Ok(Reply::default())
            }
            _ => Err(Errno::ENOTSUP),
        }
    }

    fn version(&mut self, body: &[u8]) -> Result<Reply, Errno> {
        let (asked, text) = parse::<Version>(body)?;
        if asked.major != MAJOR || Capabilities::from_bytes(text).is_none() {
            return Err(Errno::EINVAL);
        }
        self.introduced = true;
        let mut reply = Reply::of(&Version { major: MAJOR, minor: MINOR });
        reply.body.extend_from_slice(&Capabilities::ours().to_bytes());
        Ok(reply)
    }

    /// Size of a region and what is behind it.
    fn region(&self, index: u32) -> Result<(u64, Behind), Errno> {
        if index == region::CONFIG {
            return Ok((256, Behind::Config));
        }
        if index >= region::COUNT {
            return Err(Errno::EINVAL);
        }
        if let Some((spec, memory)) = self.bars.iter().find(|(b, _)| u32::from(b.index) == index) {
            let behind = memory.clone().map_or(Behind::Model(spec.index), Behind::Memory);
            return Ok((spec.size, behind));
        }
        Ok(match self.msix_bar {
            Some((bar, size)) if u32::from(bar) == index => (size, Behind::MsixTable),
            _ => (0, Behind::Nothing),
        })
    }

    fn region_info(&self, asked: &RegionInfo) -> Result<Reply, Errno> {
        let (size, behind) = self.region(asked.index)?;
        let mut info = RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            flags: if size > 0 { RegionInfo::READ | RegionInfo::WRITE } else { 0 },
            index: asked.index,
            cap_offset: 0,
            size,
            offset: 0,
        };
        let Behind::Memory(memory) = behind else { return Ok(Reply::of(&info)) };
        let sparse = SparseMmap { id: SparseMmap::ID, version: 1, next: 0, areas: 1, reserved: 0 };
        let area = SparseArea { offset: 0, size };
        info.argsz += (size_of::<SparseMmap>() + size_of::<SparseArea>()) as u32;
        info.flags |= RegionInfo::MMAP | RegionInfo::CAPS;
        // A client with less room is told how much it needs, and asks again. The offset is there in any case: QEMU takes
        // an answer that has capabilities at offset 0 for a broken one.
        let fits = asked.argsz >= info.argsz;
        info.cap_offset = size_of::<RegionInfo>() as u32;
        let mut reply = Reply::of(&info);
        if fits {
            reply.body.extend_from_slice(sparse.as_bytes());
            reply.body.extend_from_slice(area.as_bytes());
        }
        reply.memory = Some(memory);
        Ok(reply)
    }

    /// Registers are messages, and memory of a BAR has one eventfd, whatever part of it is stored to.
    fn region_io_fds(&mut self, asked: &RegionIoFds) -> Result<Reply, Errno> {
        let (size, behind) = self.region(asked.index)?;
        if asked.flags & !RegionIoFds::WHILE_ASLEEP != 0 || asked.count != 0 {
            return Err(Errno::EINVAL);
        }
        let head =
            RegionIoFds { argsz: size_of::<RegionIoFds>() as u32, flags: 0, index: asked.index, count: 0 };
        let Behind::Memory(memory) = behind else { return Ok(Reply::of(&head)) };
        let argsz = head.argsz + size_of::<IoEventFd>() as u32;
        let head = RegionIoFds { argsz, flags: asked.flags, count: 1, ..head };
        let mut reply = Reply::of(&head);
        // A client with less room is told how much it needs, and asks again.
        if asked.argsz >= head.argsz {
            let bell = match &self.bell {
                Some(bell) => Arc::clone(bell),
                None => Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?),
            };
            self.bell = Some(Arc::clone(&bell));
            if asked.flags & RegionIoFds::WHILE_ASLEEP != 0 {
                let at = (size - RegionIoFds::ASLEEP_LEN) as usize;
                self.asleep.insert(asked.index, (memory, at));
            }
            let whole = IoEventFd { offset: 0, size, kind: IoEventFd::TYPE, ..IoEventFd::new_zeroed() };
            reply.body.extend_from_slice(whole.as_bytes());
            reply.bell = Some(bell);
        }
        Ok(reply)
    }

    /// Checks that an access is inside its region.
    fn check(&self, access: &RegionAccess) -> Result<Behind, Errno> {
        let (size, behind) = self.region(access.region)?;
        let end = access.offset.checked_add(access.count.into()).ok_or(Errno::EINVAL)?;
        if access.count == 0 || access.count > MAX_DATA || end > size {
            return Err(Errno::EINVAL);
        }
        Ok(behind)
    }

    fn read(&mut self, access: &RegionAccess) -> Result<Reply, Errno> {
        let behind = self.check(access)?;
        let mut reply = Reply::of(access);
        let at = reply.body.len();
        reply.body.resize(at + access.count as usize, 0);
        let data = &mut reply.body[at..];
        match behind {
            Behind::Config => {
                for (offset, range) in pieces(access.offset, data.len()) {
                    let value = self.config.read(offset, range.len()).map_err(|_| Errno::EINVAL)?;
                    let n = range.len();
                    data[range].copy_from_slice(&value.to_le_bytes()[..n]);
                }
            }
            _ if !self.config.memory_enabled() => data.fill(0xff),
            Behind::Model(bar) => {
                self.register(access)?;
                self.model.region_read(bar, access.offset, data);
            }
            Behind::Memory(memory) => {
                memory.read_bytes(access.offset as usize, data).map_err(|_| Errno::EINVAL)?;
            }
            Behind::MsixTable | Behind::Nothing => {}
        }
        Ok(reply)
    }

    fn write(&mut self, access: &RegionAccess, data: &[u8]) -> Result<(), Errno> {
        match self.check(access)? {
            Behind::Config => {
                for (offset, range) in pieces(access.offset, data.len()) {
                    let mut value = [0; 4];
                    value[..range.len()].copy_from_slice(&data[range.clone()]);
                    let value = u32::from_le_bytes(value);
                    let effect = self.config.write(offset, range.len(), value).map_err(|_| Errno::EINVAL)?;
                    if let Some(enabled) = effect.bus_master {
                        self.set_bus_master(enabled);
                    }
                    if effect.reset {
                        self.model.reset();
                    }
                }
            }
            _ if !self.config.memory_enabled() => {}
            Behind::Model(bar) => {
                self.register(access)?;
                self.model.region_write(bar, access.offset, data);
            }
            Behind::Memory(memory) => {
                memory.write_bytes(access.offset as usize, data).map_err(|_| Errno::EINVAL)?;
            }
            Behind::MsixTable | Behind::Nothing => {}
        }
        Ok(())
    }

    /// Registers are accessed in words that a processor has; whether a width suits the device is the model's to say.
    fn register(&self, access: &RegionAccess) -> Result<(), Errno> {
        if matches!(access.count, 1 | 2 | 4 | 8) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// Size of a BAR, found as a host finds it: by writing ones.
fn bar_size(config: &ConfigSpace, bar: u8) -> u64 {
    let mut probe = config.clone();
    let at = BAR0 + 4 * u16::from(bar);
    let _ = probe.write(at, 4, u32::MAX);
    probe.read(at, 4).map_or(0, |mask| u64::from(!mask) + 1)
}

fn parse<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::EINVAL)
}

/// An access to configuration space as the aligned words that it is made of: offset, and range of the data.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u16, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let width =
            [4, 2, 1].into_iter().find(|w| at.is_multiple_of(*w) && len - done >= *w as usize)? as usize;
        let range = done..done + width;
        done += width;
        Some((at as u16, range))
    })
}

#[cfg(test)]
mod tests;
