//! Bring-up and reset (FL1.md sections 1, 2 and 6): identify, reset, rings, capabilities, counter pages, ports.

use super::admin::{Admin, Task};
use super::caps::{self, Identity};
use super::meter::{METER_RECORD, Window};
use super::readback::ReadBack;
use super::regs::{self, Reg, Regs, Rw};
use super::slow::path::Slow;
use super::slow::{RxQueue, TxQueue};
use super::wire::{COMMAND_MAX, CommandHeader, Completion, buffer_command, op, status};
use super::{Fl1, Fl1Config, Fl1Stats, Health, Memory, Table};
use crate::dma::{Arena, FilledRing, IovaAllocator, Layout};
use crate::nic::{Nic, NicCaps, NicError, NicEvent, NicPort};
use crate::platform::{COMMAND_BUS_MASTER, COMMAND_MEMORY, set_command, wait};
use crate::standing::{Checkup, Standing};
use flowlift_bus::{BusError, DmaDirection, IrqKind, PciFunction};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::Arc;
use zerocopy::FromZeros;

/// Length of a counter page record in bytes.
pub(crate) const PAGE_RECORD: usize = 32;
/// Major version that this driver knows.
const MAJOR: u32 = 1;
/// Turns after which a wait ends even if the clock stands still.
const TURNS: u32 = 1_000_000;
/// Times that a record with a wrong CRC is read again.
const READS: u32 = 16;

/// Reset that needs no memory: FLR, or the register where the transport has no FLR.
fn reset_device(function: &dyn PciFunction, regs: &Regs) -> Result<(), NicError> {
    let gone = || NicError::Gone(function.name().into());
    set_command(function, COMMAND_BUS_MASTER, 0)?;
    match function.reset() {
        Ok(()) => {}
        Err(BusError::Unsupported(_)) => {
            set_command(function, 0, COMMAND_MEMORY)?;
            regs.set(regs::RESET, regs::RESET_KEY)?;
        }
        Err(BusError::Gone(_)) => return Err(gone()),
        Err(e) => return Err(e.into()),
    }
    Ok(set_command(function, 0, COMMAND_MEMORY)?)
}

fn identify(function: &dyn PciFunction, regs: &Regs) -> Result<Identity, NicError> {
    let magic = regs.get(regs::MAGIC)?;
    let version = regs.get(regs::VERSION)?;
    if magic != 0x3130_4c46 || version >> 16 != MAJOR {
        return Err(NicError::Invalid(format!(
            "{}: magic {magic:#x}, version {version:#x}",
            function.name()
        )));
    }
    let id = Identity {
        ports: regs.get(regs::NUM_PORTS)?,
        slow_queues: regs.get(regs::NUM_SLOWQ)?,
        tables: regs.get(regs::NUM_TABLES)?,
        stages: regs.get(regs::NUM_STAGES)?,
        meters: regs.get(regs::NUM_METERS)?,
        caps_bytes: regs.get(regs::CAPS_BYTES)?,
        max_frame: regs.get(regs::MAX_FRAME)?,
        parser_flags: regs.get(regs::PARSER_FLAGS)?,
        max_slots: regs.get(regs::MAX_SLOTS)?,
        order: version & regs::VERSION_MINOR >= regs::MINOR_ORDER,
        meter_window: version & regs::VERSION_MINOR >= regs::MINOR_METERS,
    };
    id.check().map_err(|what| NicError::Lies { device: function.name().into(), what })?;
    Ok(id)
}

pub(crate) fn open(function: Arc<dyn PciFunction>, config: Fl1Config) -> Result<Fl1, NicError> {
    let ids = function.config_read(0, 4)?;
    if ids == u32::MAX {
        return Err(NicError::Gone(function.name().into()));
    }
    if ids != regs::DEVICE << 16 | regs::VENDOR {
        let what = format!("{} is {:04x}:{:04x}, no FL1", function.name(), ids & 0xffff, ids >> 16);
        return Err(NicError::Invalid(what));
    }
    set_command(&*function, 0, COMMAND_MEMORY)?;
    let regs = Regs::open(&*function)?;
    identify(&*function, &regs)?;
    // Whoever had the device before may have left it in any state.
    reset_device(&*function, &regs)?;
    let id = identify(&*function, &regs)?;

    let ring = |n: u32| n.clamp(16, 65536).next_power_of_two();
    let (mut to, mut from) = (Layout::default(), Layout::default());
    let admin = Admin::new(&mut to, &mut from, ring(config.admin_slots).max(64));
    let event_ring = FilledRing::new(&mut from, ring(config.event_ring), 32, 24);
    let elements = ring(config.slow_ring).max(RxQueue::elements_for(id.max_frame));
    let rx = (0..id.slow_queues).map(|_| RxQueue::new(&mut to, &mut from, elements)).collect();
    let tx = (0..id.slow_queues).map(|_| TxQueue::new(&mut to, &mut from, elements, id.max_frame)).collect();
    let caps_at = from.add(id.caps_bytes.next_multiple_of(8) as usize);
    let read_back = ReadBack::new(&mut from);
    let domain = function.dma();
    let mut iovas = IovaAllocator::new(&domain.iova_ranges(), domain.page_sizes());
    let regs = Arc::new(regs);
    let memory = Arc::new(Memory {
        to_device: Arena::new(&*domain, &mut iovas, &to, DmaDirection::ToDevice)?,
        from_device: Arena::new(&*domain, &mut iovas, &from, DmaDirection::FromDevice)?,
    });
    let slow = Arc::new(Slow::new((Arc::clone(&regs), Arc::clone(&memory), id), rx, tx));
    let interrupt = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|e| BusError::Io { what: "eventfd", cause: e.into() })?;
    let caps = NicCaps {
        device: "FL1".into(),
        model: String::new(),
        ports: vec![],
        tables: vec![],
        slow_queues: 0,
        meters: 0,
        shared_meters: false,
        pipeline_tx: true,
        parser: caps::PARSER,
        read_back: true,
        caveats: vec![],
    };
    let mut nic = Fl1 {
        regs,
        config,
        id,
        caps,
        tables: vec![],
        admin,
        event_ring,
        slow,
        slow_closed: true,
        memory,
        pages: None,
        meters: None,
        caps_at,
        read_back,
        setup_answer: None,
        standing: Standing::ready(),
        health: Health::default(),
        stats: Fl1Stats::default(),
        link: vec![false; id.ports as usize],
        disabled: vec![false; id.ports as usize],
        next_generation: 1,
        command: Box::new([0; COMMAND_MAX]),
        order: super::order::Order::default(),
        results: vec![],
        events: vec![],
        unsent: vec![],
        interrupt,
        function,
    };
    nic.bring_up(&mut iovas)?;
    nic.resume_slow_path();
    nic.events.clear();
    Ok(nic)
}

impl Fl1 {
    /// Resets the device, saves what it leaves behind, and brings it up again.
    pub(crate) fn reset_and_bring_up(&mut self) -> Result<(), NicError> {
        self.stats.resets += 1;
        let down = reset_device(&*self.function, &self.regs);
        self.harvest();
        down?;
        let id = identify(&*self.function, &self.regs)?;
        if id != self.id {
            return Err(self.lies(format!("after a reset it is another device: {id:?}, was {:?}", self.id)));
        }
        // Everything was mapped when the device was opened.
        self.bring_up(&mut IovaAllocator::new(&[], 0))?;
        self.standing = Standing::ready();
        self.events.push(NicEvent::TablesLost);
        Ok(())
    }

    /// From reset to working. All rings and tables are empty.
    fn bring_up(&mut self, iovas: &mut IovaAllocator) -> Result<(), NicError> {
        let now = self.config.platform.now_ns();
        self.health = Health {
            began_at: now,
            checkup: Checkup::done(now),
            beat_at: now,
            progress_at: now,
            resets: self.regs.get(regs::RESET_COUNT)?,
            ..Health::default()
        };
        self.wait("READY", |nic| Ok(nic.regs.get(regs::STATUS)? & regs::STATUS_READY != 0))?;
        let from = &self.memory.from_device;
        self.admin.restart(from)?;
        self.event_ring.restart(from)?;
        self.slow.restart()?;
        self.order.restart(self.id.slow_queues as usize);
        self.clear_doorbells()?;
        self.assign_interrupts()?;
        set_command(&*self.function, 0, COMMAND_BUS_MASTER)?;
        self.program_rings()?;
        self.regs.set(regs::CTRL, regs::ENABLE)?;
        self.wait("ENABLED", |nic| Ok(nic.regs.get(regs::STATUS)? & regs::STATUS_ENABLED != 0))?;
        self.read_caps()?;
        self.register_counter_pages(iovas)?;
        self.slow.open()?;
        for (port, _) in (1..).zip(&self.disabled).filter(|(_, disabled)| !**disabled) {
            self.regs.set(regs::PORT_CTRL.of(port), regs::ENABLE)?;
        }
        self.read_links()?;
        self.check_health()
    }

    fn clear_doorbells(&self) -> Result<(), NicError> {
        for db in [regs::DB_ASQ_TAIL, regs::DB_ACQ_HEAD, regs::DB_EVQ_HEAD] {
            self.regs.ring(db, 0)?;
        }
        for q in 0..self.id.slow_queues {
            self.regs.ring(regs::DB_RX_TAIL.of(q), 0)?;
            self.regs.ring(regs::DB_TX_TAIL.of(q), 0)?;
            if self.keeps_order() {
                self.regs.ring(regs::DB_RX_DONE.of(q), 0)?;
            }
        }
        Ok(())
    }

    /// One eventfd for all vectors: one owner drives the device and looks at everything anyway.
    fn assign_interrupts(&self) -> Result<(), NicError> {
        let there = self.function.irq_info(IrqKind::Msix)?.count.min(2 + self.id.slow_queues);
        let fds = vec![Some(self.interrupt.as_fd()); there as usize];
        Ok(self.function.set_irqs(IrqKind::Msix, 0, &fds)?)
    }

    fn program_rings(&self) -> Result<(), NicError> {
        let (to, from) = (&self.memory.to_device, &self.memory.from_device);
        let queue = |base: Reg<Rw>, size: Reg<Rw>, ctrl: Reg<Rw>, iova, elements| {
            self.regs.set64(base, iova)?;
            self.regs.set(size, elements)?;
            self.regs.set(ctrl, regs::ENABLE)
        };
        let a = &self.admin;
        queue(regs::ASQ_BASE_LO, regs::ASQ_SIZE, regs::ASQ_CTRL, to.iova(a.sq), a.slots)?;
        queue(regs::ACQ_BASE_LO, regs::ACQ_SIZE, regs::ACQ_CTRL, from.iova(a.cq.at), a.cq.elements)?;
        let e = &self.event_ring;
        queue(regs::EVQ_BASE_LO, regs::EVQ_SIZE, regs::EVQ_CTRL, from.iova(e.at), e.elements)?;
        self.slow.each(|q, rx, tx| {
            let set64 = |r: Reg<Rw>, v| self.regs.set64(r.of(q), v);
            set64(regs::SLOWQ_RXB_BASE_LO, to.iova(rx.buffer_ring))?;
            set64(regs::SLOWQ_RXC_BASE_LO, from.iova(rx.completions.at))?;
            self.regs.set(regs::SLOWQ_RX_SIZE.of(q), rx.completions.elements)?;
            set64(regs::SLOWQ_TXD_BASE_LO, to.iova(tx.descriptors))?;
            set64(regs::SLOWQ_TXW_ADDR_LO, from.iova(tx.written_back))?;
            self.regs.set(regs::SLOWQ_TX_SIZE.of(q), tx.elements)?;
            let order = if self.keeps_order() { regs::SLOWQ_ORDER } else { 0 };
            self.regs.set(regs::SLOWQ_CTRL.of(q), regs::SLOWQ_ENABLE | order)
        })
    }

    /// Reads and checks the capability records; after a reset they must be the same.
    fn read_caps(&mut self) -> Result<(), NicError> {
        let len = self.id.caps_bytes;
        let iova = self.memory.from_device.iova(self.caps_at);
        let mut blob = vec![0; len as usize];
        let mut why = String::new();
        for _ in 0..READS {
            let header = CommandHeader { opcode: op::CAPS, ..CommandHeader::new_zeroed() };
            let c = self.setup("CAPS", buffer_command(header, iova, len))?;
            if c.result.get() != len {
                return Err(self.lies(format!("{} bytes of capabilities, not {len}", c.result)));
            }
            self.memory.from_device.mem().read_bytes(self.caps_at, &mut blob)?;
            match caps::parse(&blob, &self.id) {
                Ok(parsed) if self.pages.is_none() => {
                    let ports = self.virtual_ports()?;
                    self.caps = parsed.nic_caps(&self.id, &ports);
                    self.tables = parsed.tables.into_iter().map(|t| Table::new(t, 0)).collect();
                    return Ok(());
                }
                Ok(parsed) if parsed.tables.iter().eq(self.tables.iter().map(|t| &t.info)) => return Ok(()),
                Ok(_) => return Err(self.lies("after a reset it has other tables")),
                Err(e) => why = e,
            }
        }
        Err(self.lies(why))
    }

    fn virtual_ports(&self) -> Result<Vec<bool>, NicError> {
        (1..=self.id.ports).map(|p| Ok(self.regs.get(regs::PORT_STATUS.of(p))? >> 4 & 0xf == 1)).collect()
    }

    /// Maps one arena for the counter pages of all tables and the meter page, once, and tells the device of each.
    fn register_counter_pages(&mut self, iovas: &mut IovaAllocator) -> Result<(), NicError> {
        if self.pages.is_none() {
            let mut layout = Layout::default();
            for t in &mut self.tables {
                t.page = layout.add(t.info.caps.max_entries as usize * PAGE_RECORD);
            }
            let meters = self.caps.shared_meters.then(|| layout.add(self.id.meters as usize * METER_RECORD));
            let arena = Arena::new(&*self.function.dma(), iovas, &layout, DmaDirection::FromDevice)?;
            if let Some(at) = meters {
                let window = Window::new(Arc::clone(&self.regs), arena.mem().clone(), at);
                self.meters = Some((Arc::new(window), at));
            }
            self.pages = Some(arena);
        }
        if let (Some((_, at)), Some(pages)) = (&self.meters, &self.pages) {
            let header = CommandHeader { opcode: op::METER_PAGE, ..CommandHeader::new_zeroed() };
            let command = buffer_command(header, pages.iova(*at), self.id.meters * METER_RECORD as u32);
            self.setup("METER_PAGE", command)?;
        }
        for i in 0..self.tables.len() {
            let (Some(t), Some(pages)) = (self.tables.get(i), &self.pages) else { break };
            let header = CommandHeader {
                opcode: op::COUNTER_PAGE,
                table: t.info.caps.id.0.into(),
                ..CommandHeader::new_zeroed()
            };
            let len = t.info.caps.max_entries as usize * PAGE_RECORD;
            let command = buffer_command(header, pages.iova(t.page), len as u32);
            self.setup("COUNTER_PAGE", command)?;
        }
        Ok(())
    }

    /// Reads every port's link state and reports the changes.
    pub(crate) fn read_links(&mut self) -> Result<(), NicError> {
        for port in 1..=self.id.ports {
            let up = self.regs.get(regs::PORT_STATUS.of(port))? & regs::PORT_LINK != 0;
            self.set_link(NicPort(port as u16), up);
        }
        Ok(())
    }

    pub(crate) fn set_link(&mut self, port: NicPort, up: bool) {
        let Some(link) = usize::from(port.0).checked_sub(1).and_then(|p| self.link.get_mut(p)) else {
            return;
        };
        if std::mem::replace(link, up) != up {
            self.events.push(NicEvent::Link { port, up });
        }
    }

    /// Sends a command and waits for its completion, which must be OK.
    fn setup(&mut self, what: &str, mut command: [u8; 64]) -> Result<Completion, NicError> {
        self.setup_answer = None;
        if !self.admin.push(&self.memory.to_device, &mut command, Task::Setup, 0, 0)? {
            return Err(self.failed("the admin ring is full during bring-up"));
        }
        self.admin.ring(&self.regs)?;
        self.wait(what, |nic| {
            nic.turn()?;
            Ok(nic.setup_answer.is_some())
        })?;
        match self.setup_answer.take() {
            Some(c) if c.status.get() == status::OK => Ok(c),
            Some(c) => Err(self.failed(format!("{what} gave status {} ({})", c.status, c.detail))),
            None => Err(self.failed(format!("{what} gave no answer"))),
        }
    }

    fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool, NicError>,
    ) -> Result<(), NicError> {
        let since = self.health.began_at;
        let (platform, deadline) = (Arc::clone(&self.config.platform), self.config.deadline);
        if wait(&*platform, (since, deadline), TURNS, || done(self))? {
            return Ok(());
        }
        Err(self.failed(format!("no {what} within {:?} of starting it up", self.config.deadline)))
    }
}

impl Drop for Fl1 {
    fn drop(&mut self) {
        self.slow.close();
        if let Some((window, _)) = &self.meters {
            window.end_life();
        }
        // Best effort, in this order: the device stops taking work, then it can reach no memory, then that is unmapped.
        let _ = self.regs.set(regs::CTRL, 0);
        let _ = set_command(&*self.function, COMMAND_BUS_MASTER, 0);
        let none = vec![None; self.function.irq_info(IrqKind::Msix).map_or(0, |i| i.count as usize)];
        let _ = self.function.set_irqs(IrqKind::Msix, 0, &none);
    }
}
