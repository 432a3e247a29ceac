//! A NIC that lies: the simulated one, whose answers are changed on their way to the driver.
//!
//! [`Will`] says which: register reads, writes to host memory, and what is written without being asked. Since there is a
//! working device behind it, lies come in the middle of a conversation and not only at its start. [`drive`] has the
//! driver do a bit of everything on it, and holds it to what it promises whatever the device does: one result for each
//! update, no call that takes longer than its deadline, frames no longer than they say. Time is the device's own, so
//! that a run with a seed is the same every time.

use flowlift_bus::{BarSpec, DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink, PciIdentity};
use flowlift_driver::fl1::{Fl1, Fl1Config, Fl1Stats, Platform};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{
    Entry, EntryId, Field, Nic, NicAction, NicError, NicPort, NicState, SlowTx, TableCaps, Update,
    UpdateResult,
};
use flowlift_sim::{Config, FaultPlan, ManualClock, MemoryWire, Profile};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Device time that a wait of the driver takes, in nanoseconds.
const WAIT_NS: u64 = 10_000;
/// How long updates and bring-up may take before the device has failed, in device time.
pub const DEADLINE: Duration = Duration::from_millis(5);

/// Rings that the device fills (FL1.md sections 5, 8 and 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ring {
    /// Completions of the admin queue.
    Completions,
    /// Events.
    Events,
    /// Packets received in slow queue 0.
    Received,
}

/// Registers of a ring: low half of its base, its size; and the length of an element with the place of its sequence
/// number, in bytes.
const RINGS: [(Ring, u64, u64, usize, usize); 3] = [
    (Ring::Completions, 0x110, 0x118, 64, 56),
    (Ring::Events, 0x140, 0x148, 32, 24),
    (Ring::Received, 0x208, 0x220, 64, 56),
];
/// Low half of the address of slow queue 0's transmit index.
const WRITTEN_BACK: u64 = 0x218;

/// Where the device's memory is and how far it has filled its rings, as a liar sees it.
#[derive(Debug, Default)]
pub struct View {
    registers: BTreeMap<u64, u32>,
    produced: BTreeMap<Ring, u32>,
    /// Steps that the device has done.
    pub steps: u32,
}

impl View {
    fn address(&self, low: u64) -> u64 {
        let half = |at| u64::from(self.registers.get(&at).copied().unwrap_or(0));
        half(low + 4) << 32 | half(low)
    }

    /// Which ring an address is in, and the offset in the element.
    pub fn place(&self, iova: u64) -> Option<(Ring, usize)> {
        RINGS.iter().find_map(|&(ring, low, size, len, _)| {
            let elements = self.registers.get(&size).copied().unwrap_or(0);
            let offset = iova.checked_sub(self.address(low))?;
            let inside = self.address(low) != 0 && offset < u64::from(elements) * len as u64;
            inside.then_some((ring, offset as usize % len))
        })
    }

    /// Notes a sequence number that went by.
    fn note(&mut self, iova: u64, word: u64) {
        if let Some((ring, at)) = self.place(iova)
            && RINGS.iter().any(|r| r.0 == ring && r.4 == at)
        {
            // The device does not know of elements that nobody asked for, and comes after them.
            let last = self.produced.entry(ring).or_default();
            if (word as u32).wrapping_sub(*last) < 1 << 31 {
                *last = word as u32;
            }
        }
    }
}

/// The device's way to host memory, for writes that nobody asked for.
pub struct Unasked<'a> {
    bus: &'a dyn DmaBus,
    view: &'a mut View,
}

impl Unasked<'_> {
    /// Writes the next element of a ring. Its sequence number is put right, else nobody would look at it; elements are cut
    /// or filled up with zeros.
    pub fn element(&mut self, ring: Ring, bytes: &[u8]) {
        let Some(&(_, low, _, len, seq_at)) = RINGS.iter().find(|r| r.0 == ring) else { return };
        let (base, elements) = (self.view.address(low), self.elements(ring));
        if base == 0 || !elements.is_power_of_two() {
            return;
        }
        let index = self.view.produced.get(&ring).copied().unwrap_or(0);
        let mut element = vec![0; len];
        let n = bytes.len().min(len);
        element[..n].copy_from_slice(&bytes[..n]);
        let word = u64::from(index.wrapping_add(1));
        element[seq_at..seq_at + 8].copy_from_slice(&word.to_le_bytes());
        // A device without Bus Master cannot; then there is no driver to lie to either.
        let _ = self.bus.write(base + u64::from(index & (elements - 1)) * len as u64, &element);
        self.view.produced.insert(ring, word as u32);
    }

    /// Elements of a ring.
    pub fn elements(&self, ring: Ring) -> u32 {
        let size = RINGS.iter().find(|r| r.0 == ring).and_then(|r| self.view.registers.get(&r.2));
        size.copied().unwrap_or(0)
    }

    /// Index in its ring of the next element.
    pub fn next_index(&self, ring: Ring) -> u32 {
        let produced = self.view.produced.get(&ring).copied().unwrap_or(0);
        produced & self.elements(ring).wrapping_sub(1)
    }

    /// States how many frames of slow queue 0 were sent.
    pub fn sent(&mut self, index: u64) {
        let _ = self.bus.store_u64(self.view.address(WRITTEN_BACK), index);
    }

    /// Steps done so far.
    pub fn steps(&self) -> u32 {
        self.view.steps
    }
}

/// What a liar changes. Without a body of its own each is honest.
pub trait Will: Send + 'static {
    /// A read of register `offset` of BAR 0, whose true value is `value`.
    fn register(&mut self, _view: &View, _offset: u64, value: u32) -> u32 {
        value
    }
    /// A write to host memory.
    fn write(&mut self, _view: &View, _iova: u64, _data: &mut [u8]) {}
    /// After a step: what is written without being asked.
    fn step(&mut self, _to: &mut Unasked<'_>) {}
}

/// Lies by a seed.
#[derive(Debug, Clone)]
pub struct Seeded {
    /// Of the lies.
    pub seed: u64,
    /// Chance in 256 that a register read is random, all-ones, or off by one.
    pub registers: u8,
    /// Chance in 256 that a byte of a write to host memory is another one.
    pub writes: u8,
    /// Elements per step that nobody asked for, and chance of one half for each.
    pub unasked: u8,
    /// Steps after which the lies begin.
    pub honest_steps: u8,
}

impl Seeded {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn lies(&mut self, steps: u32, chance: u8) -> bool {
        let drawn = self.random() as u8;
        steps >= self.honest_steps.into() && drawn < chance
    }

    /// Bytes of which one in three is not zero.
    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| if self.random().is_multiple_of(3) { self.random() as u8 } else { 0 }).collect()
    }
}

impl Will for Seeded {
    fn register(&mut self, view: &View, _offset: u64, value: u32) -> u32 {
        if !self.lies(view.steps, self.registers) {
            return value;
        }
        match self.random() % 4 {
            0 => u32::MAX,
            1 => value.wrapping_add(1),
            2 => value ^ 1 << (self.random() % 32),
            _ => self.random() as u32,
        }
    }

    fn write(&mut self, view: &View, _iova: u64, data: &mut [u8]) {
        if self.lies(view.steps, self.writes) && !data.is_empty() {
            let at = self.random() as usize % data.len();
            data[at] = self.random() as u8;
        }
    }

    fn step(&mut self, to: &mut Unasked<'_>) {
        for _ in 0..self.unasked {
            if !self.lies(to.steps(), 128) {
                continue;
            }
            match self.random() % 4 {
                0 => to.element(Ring::Completions, &self.noise(64)),
                1 => {
                    let mut event = self.noise(32);
                    event[0] = self.random() as u8 % 7;
                    to.element(Ring::Events, &event);
                }
                2 => {
                    let mut packet = received(to.next_index(Ring::Received), 60, 60);
                    if self.random().is_multiple_of(4) {
                        packet[self.random() as usize % 56] = self.random() as u8;
                    }
                    to.element(Ring::Received, &packet);
                }
                _ => {
                    let index =
                        if self.random().is_multiple_of(2) { self.random() % 8 } else { self.random() };
                    to.sent(index);
                }
            }
        }
    }
}

/// A receive completion: of `len` bytes in buffer `buffer`, of a frame of `frame` bytes that came from port 1.
pub fn received(buffer: u32, len: u32, frame: u32) -> Vec<u8> {
    let mut c = vec![0; 64];
    c[..4].copy_from_slice(&buffer.to_le_bytes());
    c[4..8].copy_from_slice(&len.to_le_bytes());
    c[8] = 1;
    c[36..40].copy_from_slice(&frame.to_le_bytes());
    c
}

/// Lies by the bytes of a fuzzer: a byte below 0xc0 lets so many writes pass; any other is followed by a position and a
/// value, which changes the next write.
#[derive(Debug)]
pub struct Bytes {
    input: VecDeque<u8>,
    pass: u8,
}

impl Bytes {
    /// Takes the fuzzer's input.
    pub fn new(input: &[u8]) -> Self {
        Self { input: input.iter().copied().collect(), pass: 0 }
    }
}

impl Will for Bytes {
    fn write(&mut self, _view: &View, _iova: u64, data: &mut [u8]) {
        if self.pass > 0 {
            self.pass -= 1;
            return;
        }
        let Some(head) = self.input.pop_front() else { return };
        if head < 0xc0 || data.is_empty() {
            self.pass = head & 0x3f;
        } else if let (Some(at), Some(value)) = (self.input.pop_front(), self.input.pop_front()) {
            let at = usize::from(at) % data.len();
            data[at] = value;
        }
    }
}

/// What register accesses and DMA share.
struct Shared<W> {
    will: W,
    view: View,
    bus: Option<Box<dyn DmaBus>>,
}

type Handle<W> = Arc<Mutex<Shared<W>>>;

fn lock<W>(shared: &Handle<W>) -> MutexGuard<'_, Shared<W>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device's bus, with lies on it.
struct LyingBus<W>(Handle<W>);

/// Without a bus nothing goes through. It is there from `attach` on.
fn no_bus(iova: u64, len: usize, write: bool) -> DmaFault {
    DmaFault { iova, len, write }
}

impl<W: Will> DmaBus for LyingBus<W> {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let shared = lock(&self.0);
        shared.bus.as_ref().ok_or(no_bus(iova, data.len(), false))?.read(iova, data)
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut data = data.to_vec();
        let Shared { will, view, bus } = &mut *lock(&self.0);
        will.write(view, iova, &mut data);
        bus.as_ref().ok_or(no_bus(iova, data.len(), true))?.write(iova, &data)
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        lock(&self.0).bus.as_ref().ok_or(no_bus(iova, 8, false))?.load_u64(iova)
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let mut bytes = value.to_le_bytes();
        let Shared { will, view, bus } = &mut *lock(&self.0);
        view.note(iova, value);
        will.write(view, iova, &mut bytes);
        bus.as_ref().ok_or(no_bus(iova, 8, true))?.store_u64(iova, u64::from_le_bytes(bytes))
    }
}

/// The simulated NIC with a will of its own.
struct Liar<W> {
    nic: flowlift_sim::Fl1,
    shared: Handle<W>,
}

impl<W: Will> Liar<W> {
    fn step(&mut self) {
        self.nic.step();
        let Shared { will, view, bus } = &mut *lock(&self.shared);
        view.steps = view.steps.saturating_add(1);
        if let Some(bus) = bus {
            will.step(&mut Unasked { bus: &**bus, view });
        }
    }
}

impl<W: Will> DeviceModel for Liar<W> {
    fn identity(&self) -> PciIdentity {
        self.nic.identity()
    }
    fn bars(&self) -> &[BarSpec] {
        self.nic.bars()
    }
    fn msix_vectors(&self) -> u16 {
        self.nic.msix_vectors()
    }
    fn attach(&mut self, bus: Box<dyn DmaBus>, irq: Box<dyn IrqSink>, mapped_bars: Vec<(u8, DmaMem)>) {
        lock(&self.shared).bus = Some(bus);
        self.nic.attach(Box::new(LyingBus(Arc::clone(&self.shared))), irq, mapped_bars);
    }
    fn region_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.nic.region_read(bar, offset, data);
        if let Ok(word) = <[u8; 4]>::try_from(&*data) {
            let Shared { will, view, .. } = &mut *lock(&self.shared);
            data.copy_from_slice(&will.register(view, offset, u32::from_le_bytes(word)).to_le_bytes());
        }
    }
    fn region_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            lock(&self.shared).view.registers.insert(offset, u32::from_le_bytes(word));
        }
        self.nic.region_write(bar, offset, data);
    }
    fn bus_master(&mut self, enabled: bool) {
        self.nic.bus_master(enabled);
    }
    fn reset(&mut self) {
        lock(&self.shared).view.produced.clear();
        lock(&self.shared).view.registers.clear();
        self.nic.reset();
    }
}

/// Waiting lets the device work, and takes device time.
struct Time<W> {
    function: Arc<InProc<Liar<W>>>,
    clock: ManualClock,
    ns: AtomicU64,
}

impl<W: Will> Platform for Time<W> {
    fn now_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        self.ns.fetch_add(WAIT_NS, Ordering::Relaxed);
        self.clock.advance(WAIT_NS);
        self.function.model().step();
    }
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Story {
    /// The driver came up.
    pub opened: bool,
    /// Errors that the driver gave, each once.
    pub errors: BTreeSet<String>,
    /// State at the end, before the last reset.
    pub state: Option<NicState>,
    /// What the driver counted.
    pub stats: Fl1Stats,
    /// Packets received from the slow queues.
    pub received: u64,
    /// Updates given.
    pub updates: u64,
}

impl Story {
    fn note<T>(&mut self, result: Result<T, NicError>) -> Option<T> {
        result.map_err(|e| self.errors.insert(e.to_string())).ok()
    }

    /// An error says this.
    pub fn says(&self, part: &str) -> bool {
        self.errors.iter().any(|e| e.contains(part))
    }
}

/// An entry that matches 10.0.0.`host`, or everything where the table has no IPv4 destination.
fn entry(table: &TableCaps, host: u8) -> Entry {
    let mut key = vec![0; table.key_len.into()];
    let mut mask = key.clone();
    for (field, value, bits) in [
        (Field::EthType, &[8, 0][..], &[0xff; 2][..]),
        (Field::Ipv4Dst, &[10, 0, 0, host][..], &[0xff; 4][..]),
    ] {
        let Some(f) = table.fields.iter().find(|f| f.field == field) else { continue };
        let at = usize::from(f.offset);
        if let (Some(k), Some(m)) = (key.get_mut(at..at + value.len()), mask.get_mut(at..at + bits.len())) {
            k.copy_from_slice(value);
            m.copy_from_slice(bits);
        }
    }
    let actions = [NicAction::Output(NicPort(2))].into_iter().collect();
    Entry { priority: 1, key: key.into_iter().collect(), mask: mask.into_iter().collect(), actions }
}

/// An IPv4/UDP frame to 10.0.0.`host`, of 60 bytes.
fn frame(host: u8) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    f.extend([0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, host]);
    f.extend([0x10, 0xe1, 0x13, 0x88, 0, 26, 0, 0]);
    f.resize(60, 0);
    f
}

/// Runs `call` and checks that it ended by its deadline.
fn timed<W: Will, T>(time: &Time<W>, what: &str, call: impl FnOnce() -> T) -> T {
    let start = time.now_ns();
    let out = call();
    let took = time.now_ns() - start;
    // One wait may begin just before the deadline.
    let most = DEADLINE.as_nanos() as u64 + 2 * WAIT_NS;
    assert!(took <= most, "{what} took {took} ns of device time, past its deadline of {DEADLINE:?}");
    out
}

/// Drives a NIC of profile tiny with this will for `rounds` rounds: updates, read-backs, snapshots, counters and packets,
/// and resets when it has failed.
///
/// # Panics
/// The driver broke a promise.
pub fn drive<W: Will>(will: W, rounds: u32) -> Story {
    let mut story = Story::default();
    let clock = ManualClock::new(1000);
    let config = Config { seed: 1, faults: FaultPlan::default(), clock: Box::new(clock.clone()) };
    let shared = Arc::new(Mutex::new(Shared { will, view: View::default(), bus: None }));
    let mut liar = Liar { nic: flowlift_sim::Fl1::new(Profile::tiny(), config), shared };
    let wires: Vec<MemoryWire> = (0..2).map(|_| MemoryWire::new(64)).collect();
    for (port, wire) in (1..).zip(&wires) {
        liar.nic.plug(port, Box::new(wire.clone()));
    }
    let function = match InProc::new(liar, InProcConfig::default()) {
        Ok(function) => function,
        Err(e) => panic!("no function: {e}"),
    };
    let time = Arc::new(Time { function: function.clone(), clock, ns: AtomicU64::new(0) });
    let config = Fl1Config {
        platform: time.clone(),
        admin_slots: 64,
        event_ring: 16,
        slow_ring: 16,
        check_interval: Duration::from_micros(20),
        hang_deadline: Duration::from_millis(1),
        deadline: DEADLINE,
        order: true,
    };
    let opened = timed(&time, "open", || Fl1::open(function, config));
    if let Some(nic) = story.note(opened) {
        story.opened = true;
        work(nic, &time, &wires, rounds, &mut story);
    }
    story
}

fn work<W: Will>(mut nic: Fl1, time: &Time<W>, wires: &[MemoryWire], rounds: u32, story: &mut Story) {
    let (mut given, mut results, mut events) = (0u64, Vec::<UpdateResult>::new(), Vec::new());
    for round in 0..rounds {
        let Some(table) = nic.caps().tables.first() else { return };
        let (places, id) = (table.max_entries.clamp(1, 8), table.id);
        let id = EntryId { table: id, index: round % places };
        let entry = entry(table, id.index as u8);
        // Entries stay for a while, so that their counters are looked at.
        let update = match round / places % 8 {
            0 => Update::Insert { cookie: given, id, entry },
            7 => Update::Delete { cookie: given, id },
            _ => Update::Replace { cookie: given, id, entry },
        };
        given += story.note(nic.submit(&[update])).unwrap_or(0) as u64;
        story.note(nic.kick());
        story.note(nic.read_back(id));
        story.note(nic.snapshot(id.table, 0, places));
        story.note(nic.tx(SlowTx::Port(NicPort(1)), &frame(1)));
        for wire in wires {
            // A wire that is full has enough to do.
            let _ = wire.inject(frame((round % 16) as u8));
            wire.receive_all();
        }
        time.relax();
        let mut taken = 0;
        let got = nic.rx(64, &mut |info, frame| {
            assert_eq!(info.len as usize, frame.len(), "a frame is as long as it says");
            taken += 1;
        });
        story.note(got);
        story.received += taken;
        story.note(nic.slow_done());
        let polled = timed(time, "poll", || nic.poll(&mut results, &mut events));
        story.note(polled);
        for index in 0..places {
            nic.counters(EntryId { table: id.table, index });
        }
        nic.tx_pending();
        nic.take_unsent();
        while nic.take_read_back().is_some() {}
        while nic.take_snapshot().is_some() {}
        story.state = Some(nic.state());
        if nic.state() == NicState::Failed {
            let reset = timed(time, "reset", || nic.reset());
            story.note(reset);
        }
    }
    // The device is switched off: whatever is still open is answered by the reset, or was by the removal.
    let reset = timed(time, "reset", || nic.reset());
    story.note(reset);
    let polled = nic.poll(&mut results, &mut events);
    story.note(polled);
    story.stats = nic.stats();
    story.updates = given;
    let mut cookies: Vec<_> = results.iter().map(|r| r.cookie).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..given), "one result for each of {given} updates");
}
