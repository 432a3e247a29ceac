//! Bring-up and reset (the programming guide: "Switch Control", "Ports", "OF-DPA Flow Table Interface").
//!
//! Three flows of each port in the VLAN table let everything on to the ACL policy table, where two more send what no entry
//! matches to the CPU. Untagged packets get the tag by which the ACL policy table knows them. Nothing tells it from the
//! same tag of a packet that came with one; so those are not let on. Its ID is by default 4095, which no packet on a wire
//! may have. The tables in between stay empty: the termination MAC table is for routing, and what the bridging table finds
//! is overruled by the ACL policy table, whose flow for misses finds everything.

use super::flows::{self, table_caps};
use super::groups::Groups;
use super::regs::{self, Regs};
use super::ring::Ring;
use super::slow::{Layouts, Memory, PortRings};
use super::tlv::Fields;
use super::wire::{cmd, ofdpa, port};
use super::{Health, Rocker, RockerConfig, RockerStats, Step};
use crate::dma::{Arena, IovaAllocator};
use crate::nic::{NicCaps, NicError, NicEvent, NicPort, ParserCaps, PortCaps};
use crate::platform::{COMMAND_BUS_MASTER, COMMAND_MEMORY, set_command, wait};
use crate::standing::{Checkup, Standing};
use flowlift_bus::{DmaDirection, PciFunction};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of a command's and of an event's buffer.
const COMMAND_BYTES: u16 = 1024;
const EVENT_BYTES: u16 = 128;
/// Turns after which a wait ends even if the clock stands still.
const TURNS: u32 = 1_000_000;
/// Cookies of the driver's own flows; those of entries are below.
const OWN_COOKIES: u64 = 1 << 32;
/// Longest frame that a descriptor's length has room for.
const FRAME_LIMIT: u32 = 0xfff8;

/// Ports of a device that knows its name.
fn identify(function: &dyn PciFunction, regs: &Regs) -> Result<u32, NicError> {
    let bogus = regs.get(regs::BOGUS)?;
    if bogus != regs::BOGUS_VALUE {
        return Err(NicError::Invalid(format!("{}: register 0 reads {bogus:#x}", function.name())));
    }
    let ports = regs.get(regs::PORT_PHYS_COUNT)?;
    if !(1..=regs::MAX_PORTS).contains(&ports) {
        let what = format!("PORT_PHYS_COUNT is {ports}, outside 1..={}", regs::MAX_PORTS);
        return Err(NicError::Lies { device: function.name().into(), what });
    }
    Ok(ports)
}

pub(crate) fn open(function: Arc<dyn PciFunction>, mut config: RockerConfig) -> Result<Rocker, NicError> {
    let ids = function.config_read(0, 4)?;
    if ids == u32::MAX {
        return Err(NicError::Gone(function.name().into()));
    }
    if ids != regs::DEVICE << 16 | regs::VENDOR {
        let what = format!("{} is {:04x}:{:04x}, no rocker", function.name(), ids & 0xffff, ids >> 16);
        return Err(NicError::Invalid(what));
    }
    if !(1..=0xfff).contains(&config.untagged_vlan) {
        return Err(NicError::Invalid(format!("VLAN {} for untagged packets", config.untagged_vlan)));
    }
    let ring = |n: u32, max: u32| n.clamp(16, max).next_power_of_two();
    config.max_frame = config.max_frame.clamp(64, FRAME_LIMIT).next_multiple_of(8);
    config.slow_ring = ring(config.slow_ring, 1024);
    config.command_ring = ring(config.command_ring, 4096);
    config.entries = config.entries.clamp(1, 1 << 16);
    set_command(&*function, 0, COMMAND_MEMORY)?;
    let regs = Regs::open(&*function)?;
    let ports = identify(&*function, &regs)?;

    let mut layouts = Layouts::default();
    let commands = Ring::new(&mut layouts.rings, 0, config.command_ring, COMMAND_BYTES);
    let event_ring = Ring::new(&mut layouts.rings, 1, 64, EVENT_BYTES);
    let of_port = |p| PortRings::new(&mut layouts, p, config.slow_ring, config.max_frame);
    let port_rings = (1..=ports).map(of_port).collect();
    let domain = function.dma();
    let mut iovas = IovaAllocator::new(&domain.iova_ranges(), domain.page_sizes());
    let mut arena = |layout, direction| Arena::new(&*domain, &mut iovas, layout, direction);
    let memory = Memory {
        rings: arena(&layouts.rings, DmaDirection::Bidirectional)?,
        to_device: arena(&layouts.to_device, DmaDirection::ToDevice)?,
        from_device: arena(&layouts.from_device, DmaDirection::FromDevice)?,
    };
    let mut nic = Rocker {
        caps: caps(&config, ports),
        commands,
        event_ring,
        ports: port_rings,
        memory,
        queue: VecDeque::new(),
        in_flight: VecDeque::new(),
        groups: Groups::new(config.untagged_vlan),
        entries: vec![],
        matches: HashMap::new(),
        standing: Standing::ready(),
        health: Health::default(),
        stats: RockerStats::default(),
        link: vec![false; ports as usize],
        frame: vec![0; config.max_frame as usize],
        rx_turn: 0,
        results: vec![],
        events: vec![],
        received: VecDeque::new(),
        unsent: vec![],
        regs,
        config,
        function,
    };
    nic.bring_up()?;
    nic.events.clear();
    Ok(nic)
}

fn caps(config: &RockerConfig, ports: u32) -> NicCaps {
    let port = |p| PortCaps { port: NicPort(p), virtual_function: false, max_frame: config.max_frame };
    NicCaps {
        device: "rocker".into(),
        model: format!("OF-DPA, {ports} ports"),
        ports: (1..=ports as u16).map(port).collect(),
        tables: vec![table_caps(config.entries)],
        slow_queues: 1,
        meters: 0,
        shared_meters: false,
        pipeline_tx: false,
        parser: ParserCaps { whole: false, tags: 1, service_tags: false },
        read_back: false,
        caveats: vec![format!(
            "frames tagged with VLAN {}, priority 0, are dropped: inside the device that tag stands for none",
            config.untagged_vlan
        )],
    }
}

impl Rocker {
    /// Resets the device, saves what it leaves behind, and brings it up again.
    pub(crate) fn reset_and_bring_up(&mut self) -> Result<(), NicError> {
        self.stats.resets += 1;
        set_command(&*self.function, COMMAND_BUS_MASTER, 0)?;
        self.harvest();
        let ports = identify(&*self.function, &self.regs)?;
        if ports as usize != self.ports.len() {
            return Err(self.lies(format!("after a reset it has {ports} ports, had {}", self.ports.len())));
        }
        self.bring_up()?;
        self.standing = Standing::ready();
        self.events.push(NicEvent::TablesLost);
        Ok(())
    }

    /// From any state to working. All rings and tables are empty but for the driver's own flows.
    fn bring_up(&mut self) -> Result<(), NicError> {
        // Whoever had the device before may have left it in any state.
        self.regs.set(regs::TEST, 1)?;
        self.regs.set(regs::CONTROL, regs::CONTROL_RESET)?;
        self.wait("end of the reset", |nic| {
            Ok(nic.regs.get(regs::TEST)? == 0 && nic.regs.get64(regs::PORT_PHYS_ENABLE)? == 0)
        })?;
        self.queue.clear();
        self.in_flight.clear();
        self.groups = Groups::new(self.config.untagged_vlan);
        self.entries.clear();
        self.matches.clear();
        set_command(&*self.function, 0, COMMAND_BUS_MASTER)?;
        self.commands.restart(&self.regs, &self.memory.rings)?;
        self.event_ring.restart(&self.regs, &self.memory.rings)?;
        self.post_events()?;
        for rings in &mut self.ports {
            rings.restart(&self.regs, &self.memory)?;
        }
        let now = self.config.platform.now_ns();
        self.health = Health { enabled: 0, checkup: Checkup::done(now), progress_at: now };
        self.set_up()?;
        self.wait("answer to the first commands", |nic| {
            nic.turn()?;
            Ok(nic.queue.is_empty() && nic.in_flight.is_empty())
        })?;
        self.health.enabled = (1..=self.ports.len()).fold(0, |bits, p| bits | 1 << p);
        self.regs.set64(regs::PORT_PHYS_ENABLE, self.health.enabled)?;
        self.read_links()
    }

    /// Queues the commands that every device gets.
    fn set_up(&mut self) -> Result<(), NicError> {
        let vlan = self.config.untagged_vlan;
        let mut commands = Vec::new();
        for p in 1..=self.ports.len() as u32 {
            let mut settings = Fields::new();
            // Entries say where packets go; the device has nothing to learn.
            settings.u32(port::PPORT, p).u8(port::MODE, port::MODE_OF_DPA).u8(port::LEARNING, 0);
            commands.push(flows::command(cmd::SET_PORT_SETTINGS, &settings));
        }
        for (n, flow) in (0..).zip(flows::misses()) {
            let group = self.groups.acquire(&flow.buckets, &mut commands);
            commands.push(flows::message(cmd::FLOW_ADD, &flow, OWN_COOKIES + n, group, vlan));
        }
        for p in 1..=self.ports.len() as u32 {
            let cookie = OWN_COOKIES + 16 * u64::from(p);
            commands.extend(vlan_flows(p, vlan, cookie));
        }
        self.queue.extend(commands.into_iter().map(|c| (c, Step::Setup)));
        self.tell()
    }

    /// Reads every port's link state and reports the changes.
    pub(crate) fn read_links(&mut self) -> Result<(), NicError> {
        let up = self.regs.get64(regs::PORT_PHYS_LINK_STATUS)?;
        for p in 1..=self.ports.len() as u16 {
            self.set_link(NicPort(p), up >> p & 1 != 0);
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

    fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool, NicError>,
    ) -> Result<(), NicError> {
        let start = self.config.platform.now_ns();
        let (platform, deadline) = (Arc::clone(&self.config.platform), self.config.deadline);
        if wait(&*platform, (start, deadline), TURNS, || done(self))? {
            return Ok(());
        }
        Err(self.failed(format!("no {what} within {:?}", self.config.deadline)))
    }
}

/// The VLAN table's flows for a port: the tag that stands for none is stopped, untagged packets get it, and all others go
/// on as they are. An "untagged" packet is to this table one whose TCI is 0, and one that has such a tag keeps it.
fn vlan_flows(in_port: u32, vlan: u16, cookie: u64) -> [Fields; 3] {
    let flow = |n: u32, tci: u16, mask: u16| {
        let mut info = Fields::new();
        info.u16(ofdpa::TABLE_ID, ofdpa::TABLE_VLAN).u32(ofdpa::PRIORITY, n).u32(ofdpa::HARDTIME, 0);
        info.u64(ofdpa::COOKIE, cookie + u64::from(n)).u32(ofdpa::IN_PPORT, in_port);
        info.be16(ofdpa::VLAN_ID, tci).be16(ofdpa::VLAN_ID_MASK, mask);
        info
    };
    let stop = flow(3, vlan, u16::MAX);
    let mut untagged = flow(2, 0, u16::MAX);
    untagged.be16(ofdpa::NEW_VLAN_ID, vlan).u16(ofdpa::GOTO_TABLE_ID, ofdpa::TABLE_TERMINATION_MAC);
    // The value only says that this is about tagged packets.
    let mut tagged = flow(1, 1, 0);
    tagged.u16(ofdpa::GOTO_TABLE_ID, ofdpa::TABLE_TERMINATION_MAC);
    [stop, untagged, tagged].map(|info| flows::command(cmd::FLOW_ADD, &info))
}

impl Drop for Rocker {
    fn drop(&mut self) {
        // Best effort, in this order: no packet comes in any more, the device forgets its rings, it can reach no memory,
        // and then that is unmapped.
        let _ = self.regs.set64(regs::PORT_PHYS_ENABLE, 0);
        let _ = self.regs.set(regs::CONTROL, regs::CONTROL_RESET);
        let _ = set_command(&*self.function, COMMAND_BUS_MASTER, 0);
    }
}
