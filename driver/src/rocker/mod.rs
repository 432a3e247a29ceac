//! Driver of rocker, QEMU's OF-DPA switch, a device that this project did not write: from its programming guide
//! (docs/specs/rocker in QEMU); fixtures/device/ROCKER.md says where the device differs from it, and what follows.
//!
//! Entries live in the ACL policy table, the last one of the device's pipeline, as flows with groups for their outputs
//! (`flows`, `groups`); the VLAN table before it is set up once (`bringup`). The capability records say what that can
//! match and do exactly, which is Ethernet and one tag: the device looks at IP too, but also at fragments and at packets
//! whose headers are cut off, and it does not count.
//!
//! The device is not believed: what it writes is copied once and checked where it comes in (`ring`, `slow`, `turn`), and
//! a vanished one is noticed in `regs::Regs::get`. An update is one or more commands; the command ring answers in order,
//! so its fate is known with its last answer. A device that refuses what by the driver's books it must take has other
//! tables than these books, and is reset.
//!
//! Nothing waits in a loop but bring-up, which ends at a deadline. The driver polls memory; it uses no interrupts.

mod bringup;
mod flows;
mod groups;
mod regs;
mod ring;
mod slow;
mod tlv;
mod turn;
mod wire;

use crate::nic::{
    Entry, EntryCounters, EntryId, Nic, NicCaps, NicError, NicEvent, NicPort, NicState, SlowRx, SlowTx,
    Stage, TableId, Update, UpdateResult, UpdateStatus,
};
pub use crate::platform::{Machine, Platform};
use crate::standing::{Checkup, Standing};
use flowlift_bus::{BusError, PciFunction};
use groups::Groups;
use regs::Regs;
use ring::Ring;
use slow::{FRAME_MIN, Memory, PortRings};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tlv::Fields;
use wire::cmd;

/// Vendor and device ID of rocker.
pub const PCI_ID: (u16, u16) = (regs::VENDOR as u16, regs::DEVICE as u16);

/// How the driver uses the device. Ring sizes are rounded up to powers of two.
#[derive(Clone)]
pub struct RockerConfig {
    /// Time and waiting.
    pub platform: Arc<dyn Platform>,
    /// Entries of its table. The device has no limit of its own, and goes through all of them for each packet.
    pub entries: u32,
    /// Elements of the command ring, from 16 to 4,096.
    pub command_ring: u32,
    /// Elements of each port's rings, from 16 to 1,024.
    pub slow_ring: u32,
    /// Longest frame of the slow path in bytes. The device forwards longer ones, too, but cannot give them to the host.
    pub max_frame: u32,
    /// VLAN ID, 1 to 4095, that stands for untagged packets inside the device.
    pub untagged_vlan: u16,
    /// Time between two looks at the device's health while it is polled.
    pub check_interval: Duration,
    /// Commands that make no progress for so long mean a failed device, as does a bring-up that takes longer.
    pub deadline: Duration,
}

impl Default for RockerConfig {
    fn default() -> Self {
        Self {
            platform: Arc::new(Machine::default()),
            entries: 512,
            command_ring: 256,
            slow_ring: 32,
            max_frame: 9216,
            untagged_vlan: 4095,
            check_interval: Duration::from_millis(1),
            deadline: Duration::from_secs(5),
        }
    }
}

/// What the driver counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RockerStats {
    /// Writes of the command ring's head.
    pub doorbells: u64,
    /// Updates given to the device.
    pub updates: u64,
    /// Commands that the device answered.
    pub completions: u64,
    /// Events of the device's learning, which is off.
    pub learned: u64,
    /// Events that cannot be.
    pub impossible: u64,
    /// Packets that the device could not give to the host, or send for it.
    pub lost_packets: u64,
    /// Resets by this driver.
    pub resets: u64,
}

/// What an answer of the command ring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Must be OK, and nobody waits for it.
    Setup,
    /// A flow of the update of an entry.
    Flow { index: u32 },
    /// The last one of an update: its result follows.
    Last { index: u32 },
}

/// What an update does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Insert,
    Replace,
    Delete,
}

/// Groups that an entry's flows use.
type GroupIds = SmallVec<[u32; flows::PARTS]>;

/// A place of the table.
#[derive(Debug, Default)]
struct Place {
    /// What is installed, or being so.
    entry: Option<Entry>,
    groups: GroupIds,
    /// Groups that go when the update is answered.
    old_groups: GroupIds,
    /// The update that is under way, and the first thing that the device refused in it.
    update: Option<(u64, Task)>,
    refused: Option<u16>,
}

/// Priority, key and mask.
type MatchKey = (u16, SmallVec<[u8; 64]>, SmallVec<[u8; 64]>);

fn match_key(e: &Entry) -> MatchKey {
    (e.priority, e.key.clone(), e.mask.clone())
}

/// When the device was last looked at, and when it last answered.
#[derive(Default)]
struct Health {
    /// PORT_PHYS_ENABLE as the driver wrote it; a reset clears it.
    enabled: u64,
    checkup: Checkup,
    progress_at: u64,
}

/// A rocker that was brought up. Dropping it stops the device before its memory is unmapped.
pub struct Rocker {
    // Fields drop in order: the device is stopped by `Drop`, then its memory goes.
    function: Arc<dyn PciFunction>,
    regs: Regs,
    config: RockerConfig,
    caps: NicCaps,
    commands: Ring,
    event_ring: Ring,
    ports: Vec<PortRings>,
    memory: Memory,
    /// Commands that the ring had no room for yet, and those in it.
    queue: VecDeque<(Fields, Step)>,
    in_flight: VecDeque<Step>,
    groups: Groups,
    /// Places that were ever used.
    entries: Vec<Place>,
    matches: HashMap<MatchKey, u32>,
    standing: Standing,
    health: Health,
    stats: RockerStats,
    link: Vec<bool>,
    frame: Vec<u8>,
    rx_turn: usize,
    results: Vec<UpdateResult>,
    events: Vec<NicEvent>,
    received: VecDeque<(SlowRx, Vec<u8>)>,
    unsent: Vec<(SlowTx, Vec<u8>)>,
}

impl Rocker {
    /// Identifies the device, resets it, and brings it up with empty tables and all ports enabled.
    ///
    /// # Errors
    /// [`NicError::Invalid`] if the function is no rocker, [`NicError::Lies`] if it says something of itself that cannot
    /// be, [`NicError::Failed`] if it does not answer within the deadline, or refuses what every rocker takes.
    pub fn open(function: Arc<dyn PciFunction>, config: RockerConfig) -> Result<Self, NicError> {
        bringup::open(function, config)
    }

    /// What the driver counted.
    pub fn stats(&self) -> RockerStats {
        self.stats
    }

    /// Why the device is in [`NicState::Failed`].
    pub fn failure(&self) -> Option<&str> {
        self.standing.failure()
    }

    fn usable(&self) -> Result<(), NicError> {
        self.standing.usable(self.regs.name())
    }

    fn lies(&self, what: impl Into<String>) -> NicError {
        NicError::Lies { device: self.regs.name().into(), what: what.into() }
    }

    fn failed(&self, why: impl Into<String>) -> NicError {
        NicError::Failed { device: self.regs.name().into(), why: why.into() }
    }

    /// Every error of the device passes here: it changes the state, once.
    fn note<T>(&mut self, result: Result<T, NicError>) -> Result<T, NicError> {
        if self.standing.note(self.regs.name(), &result) {
            self.harvest();
            self.events.push(NicEvent::Gone);
        }
        result
    }

    /// Saves what a device that stopped leaves behind: answers every update, takes back what was not sent, and keeps
    /// what was received. No DMA happens any more.
    fn harvest(&mut self) {
        for place in &mut self.entries {
            if let Some((cookie, _)) = place.update.take() {
                self.results.push(UpdateResult { cookie, status: UpdateStatus::Aborted, counters: None });
            }
        }
        self.entries.clear();
        self.matches.clear();
        self.queue.clear();
        self.in_flight.clear();
        for (n, rings) in (1..).zip(&mut self.ports) {
            let port = NicPort(n);
            // A ring that cannot be believed ends here; what came before the lie is kept.
            while let Ok(Some(frame)) = rings.receive(&self.memory) {
                let Some(frame) = frame else { continue };
                if let Ok(bytes) = rings.copy(&self.memory, &frame, &mut self.frame) {
                    self.received.push_back((slow_rx(port, frame.len), bytes.to_vec()));
                }
            }
            let unsent = &mut self.unsent;
            rings.take_unsent(&self.memory, |frame| unsent.push((SlowTx::Port(port), frame)));
        }
    }

    /// Moves commands into the ring and tells the device of them, by at most one register write.
    fn tell(&mut self) -> Result<(), NicError> {
        if self.in_flight.is_empty() && !self.queue.is_empty() {
            self.health.progress_at = self.config.platform.now_ns();
        }
        while let Some((command, step)) = self.queue.front() {
            if !self.commands.push(&self.memory.rings, command.bytes())? {
                break;
            }
            self.in_flight.push_back(*step);
            self.queue.pop_front();
        }
        self.stats.doorbells += u64::from(self.commands.tell(&self.regs)?);
        Ok(())
    }

    fn post_events(&mut self) -> Result<(), NicError> {
        while self.event_ring.push(&self.memory.rings, &[])? {}
        self.event_ring.tell(&self.regs).map(|_| ())
    }

    /// Queues the commands of one update. `Ok(false)`: no room, or its entry has an update under way.
    fn submit_one(&mut self, update: &Update) -> Result<bool, NicError> {
        let (Update::Insert { cookie, id, .. }
        | Update::Replace { cookie, id, .. }
        | Update::Delete { cookie, id }) = update;
        if id.table != flows::TABLE || id.index >= self.config.entries {
            return Err(NicError::Invalid(format!("entry {} of table {}", id.index, id.table.0)));
        }
        let (index, n) = (id.index, id.index as usize);
        if self.entries.len() <= n {
            self.entries.resize_with(n + 1, Place::default);
        }
        let Some(place) = self.entries.get(n) else { return Ok(false) };
        if place.update.is_some() || self.queue.len() >= self.commands.elements() as usize {
            return Ok(false);
        }
        let answer = |status| UpdateResult { cookie: *cookie, status, counters: None };
        let vlan = self.config.untagged_vlan;
        let mut commands = Vec::new();
        let task = match update {
            Update::Insert { entry, .. } => {
                // The device tells entries apart by their cookies, and takes the same match twice.
                if place.entry.is_some() || self.matches.contains_key(&match_key(entry)) {
                    self.results.push(answer(UpdateStatus::Duplicate));
                    return Ok(true);
                }
                let flows = flows::compile(entry, vlan).map_err(NicError::Inexpressible)?;
                let mut ids = GroupIds::new();
                for (part, flow) in (0..).zip(&flows) {
                    let group = self.groups.acquire(&flow.buckets, &mut commands);
                    ids.push(group);
                    commands.push(flows::message(cmd::FLOW_ADD, flow, flow_cookie(index, part), group, vlan));
                }
                self.matches.insert(match_key(entry), index);
                if let Some(place) = self.entries.get_mut(n) {
                    (place.entry, place.groups) = (Some(entry.clone()), ids);
                }
                Task::Insert
            }
            Update::Replace { entry, .. } => {
                let Some(old) = &place.entry else {
                    self.results.push(answer(UpdateStatus::NotFound));
                    return Ok(true);
                };
                if match_key(old) != match_key(entry) {
                    return Err(NicError::Invalid("a replacement with another match".into()));
                }
                let flows = flows::compile(entry, vlan).map_err(NicError::Inexpressible)?;
                let mut ids = GroupIds::new();
                for (part, flow) in (0..).zip(&flows) {
                    let group = self.groups.acquire(&flow.buckets, &mut commands);
                    ids.push(group);
                    commands.push(flows::message(cmd::FLOW_MOD, flow, flow_cookie(index, part), group, vlan));
                }
                if let Some(place) = self.entries.get_mut(n) {
                    place.old_groups = std::mem::replace(&mut place.groups, ids);
                    place.entry = Some(entry.clone());
                }
                Task::Replace
            }
            Update::Delete { .. } => {
                let Some(entry) = &place.entry else {
                    self.results.push(answer(UpdateStatus::NotFound));
                    return Ok(true);
                };
                let key = match_key(entry);
                let parts = place.groups.len() as u64;
                commands.extend((0..parts).map(|part| flows::delete(flow_cookie(index, part))));
                self.matches.remove(&key);
                Task::Delete
            }
        };
        let last = commands.len().saturating_sub(1);
        for (at, command) in commands.into_iter().enumerate() {
            let step = if at == last { Step::Last { index } } else { Step::Flow { index } };
            self.queue.push_back((command, step));
        }
        if let Some(place) = self.entries.get_mut(n) {
            (place.update, place.refused) = (Some((*cookie, task)), None);
        }
        self.stats.updates += 1;
        Ok(true)
    }

    fn receive(&mut self, max: usize, packet: &mut dyn FnMut(SlowRx, &[u8])) -> Result<usize, NicError> {
        let mut taken = 0;
        while taken < max {
            let Some((info, frame)) = self.received.pop_front() else { break };
            packet(info, &frame);
            taken += 1;
        }
        if self.standing.state() != NicState::Ready {
            return Ok(taken);
        }
        // Ports take turns, so that a flood into one does not starve the others.
        for _ in 0..self.ports.len() {
            let at = self.rx_turn % self.ports.len();
            self.rx_turn = self.rx_turn.wrapping_add(1);
            let Some(rings) = self.ports.get_mut(at) else { break };
            let lies = |what| NicError::Lies { device: self.regs.name().into(), what };
            let mut came = false;
            while taken < max {
                let Some(frame) = rings.receive(&self.memory).map_err(lies)? else { break };
                came = true;
                let Some(frame) = frame else {
                    self.stats.lost_packets += 1;
                    continue;
                };
                let bytes = rings.copy(&self.memory, &frame, &mut self.frame)?;
                packet(slow_rx(NicPort(at as u16 + 1), frame.len), bytes);
                taken += 1;
            }
            if came {
                rings.post(&self.regs, &self.memory)?;
            }
        }
        Ok(taken)
    }

    fn transmit(&mut self, port: NicPort, frame: &[u8]) -> Result<bool, NicError> {
        let at = usize::from(port.0).checked_sub(1);
        let Some(rings) = at.and_then(|n| self.ports.get_mut(n)) else {
            return Err(NicError::Invalid(format!("port {} of {}", port.0, self.ports.len())));
        };
        if !(FRAME_MIN..=self.config.max_frame as usize).contains(&frame.len()) {
            let what =
                format!("a frame of {} bytes, not {FRAME_MIN}..={}", frame.len(), self.config.max_frame);
            return Err(NicError::Invalid(what));
        }
        let lies = |what| NicError::Lies { device: self.regs.name().into(), what };
        self.stats.lost_packets += rings.reap(&self.memory).map_err(lies)?;
        rings.send(&self.regs, &self.memory, frame)
    }
}

fn slow_rx(port: NicPort, len: usize) -> SlowRx {
    SlowRx { port, metadata: 0, stage: Stage(0), len: len as u32 }
}

/// The device's name of a flow of an entry.
fn flow_cookie(index: u32, part: u64) -> u64 {
    u64::from(index) * flows::PARTS as u64 + part
}

impl Nic for Rocker {
    fn caps(&self) -> &NicCaps {
        &self.caps
    }

    fn state(&self) -> NicState {
        self.standing.state()
    }

    fn submit(&mut self, updates: &[Update]) -> Result<usize, NicError> {
        self.usable()?;
        for (taken, u) in updates.iter().enumerate() {
            match self.submit_one(u) {
                Ok(true) => {}
                Ok(false) => return Ok(taken),
                // What was taken is taken; the caller meets the error when it comes back with the rest.
                Err(NicError::Invalid(_) | NicError::Inexpressible(_)) if taken > 0 => return Ok(taken),
                Err(e) => return self.note(Err(e)),
            }
        }
        Ok(updates.len())
    }

    fn kick(&mut self) -> Result<(), NicError> {
        self.usable()?;
        let told = self.tell();
        self.note(told)
    }

    fn poll(&mut self, results: &mut Vec<UpdateResult>, events: &mut Vec<NicEvent>) -> Result<(), NicError> {
        let turned = if self.standing.state() == NicState::Ready { self.turn() } else { Ok(()) };
        let noted = match self.note(turned) {
            // The event says it.
            Err(NicError::Gone(_) | NicError::Bus(BusError::Gone(_))) => Ok(()),
            other => other,
        };
        results.append(&mut self.results);
        events.append(&mut self.events);
        noted
    }

    fn counters(&self, _: EntryId) -> EntryCounters {
        EntryCounters::default()
    }

    fn read_back(&mut self, _: EntryId) -> Result<(), NicError> {
        Err(NicError::Invalid("entries cannot be read back".into()))
    }

    fn take_read_back(&mut self) -> Option<(EntryId, Option<Entry>)> {
        None
    }

    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        if table != flows::TABLE {
            return Err(NicError::Invalid(format!("table {}", table.0)));
        }
        flows::encode(entry, self.config.untagged_vlan, out).map_err(NicError::Inexpressible)
    }

    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        if table != flows::TABLE {
            return Err(NicError::Invalid(format!("table {}", table.0)));
        }
        flows::decode(bytes, self.config.untagged_vlan).map_err(NicError::Inexpressible)
    }

    fn rx(&mut self, max: usize, packet: &mut dyn FnMut(SlowRx, &[u8])) -> Result<usize, NicError> {
        let received = self.receive(max, packet);
        self.note(received)
    }

    fn tx(&mut self, to: SlowTx, frame: &[u8]) -> Result<bool, NicError> {
        self.usable()?;
        let SlowTx::Port(port) = to else {
            return Err(NicError::Invalid("packets from the host do not pass its tables".into()));
        };
        let sent = self.transmit(port, frame);
        self.note(sent)
    }

    fn tx_pending(&self) -> usize {
        self.ports.iter().map(|rings| rings.pending(&self.memory)).sum()
    }

    fn take_unsent(&mut self) -> Vec<(SlowTx, Vec<u8>)> {
        std::mem::take(&mut self.unsent)
    }

    fn reset(&mut self) -> Result<(), NicError> {
        if self.standing.state() == NicState::Gone {
            return self.usable();
        }
        let up = self.reset_and_bring_up();
        self.note(up)
    }

    fn link(&self, port: NicPort) -> bool {
        usize::from(port.0).checked_sub(1).and_then(|p| self.link.get(p)).copied().unwrap_or(false)
    }
}
