//! A simulated FL1 behind the in-process transport, in the test's own thread and time.

use flowlift_driver::fl1::{Fl1, Fl1Config, Platform};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::*;
use flowlift_sim::{Clock, Config, FaultPlan, ManualClock, MemoryWire, Profile};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Function = Arc<InProc<flowlift_sim::Fl1>>;

/// Device time of a step.
const STEP_NS: u64 = 1_000;

/// Lets the device work whenever the driver waits.
pub(crate) struct Stepper {
    pub(crate) function: Function,
    pub(crate) clock: ManualClock,
}

impl Platform for Stepper {
    fn now_ns(&self) -> u64 {
        Clock::now_ns(&self.clock)
    }
    fn relax(&self) {
        self.clock.advance(STEP_NS);
        self.function.model().step();
    }
}

pub(crate) struct Bench {
    pub(crate) function: Function,
    pub(crate) nic: Fl1,
    pub(crate) clock: ManualClock,
    pub(crate) wires: Vec<MemoryWire>,
    pub(crate) results: Vec<UpdateResult>,
    pub(crate) events: Vec<NicEvent>,
}

pub(crate) fn plug(
    profile: Profile,
    seed: u64,
    faults: FaultPlan,
) -> (Function, ManualClock, Vec<MemoryWire>) {
    let clock = ManualClock::new(1_000_000);
    let ports = profile.ports();
    let mut sim = flowlift_sim::Fl1::new(profile, Config { seed, faults, clock: Box::new(clock.clone()) });
    let wires: Vec<_> = (0..ports).map(|_| MemoryWire::new(4096)).collect();
    for (port, wire) in (1..).zip(&wires) {
        assert!(sim.plug(port, Box::new(wire.clone())));
    }
    let config = InProcConfig { name: "sim".into(), ..Default::default() };
    (InProc::new(sim, config).unwrap(), clock, wires)
}

pub(crate) fn config(function: &Function, clock: &ManualClock) -> Fl1Config {
    Fl1Config {
        platform: Arc::new(Stepper { function: function.clone(), clock: clock.clone() }),
        check_interval: Duration::from_micros(20),
        hang_deadline: Duration::from_millis(2),
        deadline: Duration::from_millis(50),
        ..Default::default()
    }
}

impl Bench {
    pub(crate) fn new(profile: Profile) -> Self {
        let (function, clock, wires) = plug(profile, 1, FaultPlan::default());
        let nic = Fl1::open(function.clone(), config(&function, &clock)).unwrap();
        Self { function, nic, clock, wires, results: vec![], events: vec![] }
    }

    /// With rings so small that they wrap all the time.
    pub(crate) fn with(profile: Profile, seed: u64, faults: FaultPlan) -> Result<Self, NicError> {
        let (function, clock, wires) = plug(profile, seed, faults);
        let rings = Fl1Config { admin_slots: 64, event_ring: 16, slow_ring: 16, ..config(&function, &clock) };
        let nic = Fl1::open(function.clone(), rings)?;
        Ok(Self { function, nic, clock, wires, results: vec![], events: vec![] })
    }

    /// One step of the device and one poll.
    pub(crate) fn round(&mut self) -> Result<(), NicError> {
        self.clock.advance(STEP_NS);
        self.function.model().step();
        self.nic.poll(&mut self.results, &mut self.events)
    }

    /// Rounds until `done`; fails the test when it does not come.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..200_000 {
            if done(self) {
                return;
            }
            let _ = self.round();
        }
        panic!(
            "{what} did not come: {:?}, {:?}, {:?}",
            self.nic.state(),
            self.nic.failure(),
            self.nic.stats()
        );
    }

    /// Submits everything, in as many kicks as it takes, and waits for all results.
    pub(crate) fn run(&mut self, updates: &[Update]) -> Vec<UpdateResult> {
        let mut rest = updates;
        self.until("the results", |b| {
            let taken = b.nic.submit(rest).unwrap();
            rest = &rest[taken..];
            b.nic.kick().unwrap();
            b.results.len() >= updates.len()
        });
        assert_eq!(self.results.len(), updates.len(), "one result for each update");
        std::mem::take(&mut self.results)
    }

    /// Runs one update.
    pub(crate) fn one(&mut self, update: Update) -> UpdateResult {
        self.run(std::slice::from_ref(&update))[0]
    }

    pub(crate) fn insert(&mut self, id: EntryId, entry: Entry) -> UpdateStatus {
        self.one(Update::Insert { cookie: 7, id, entry }).status
    }

    /// Reads an entry back.
    pub(crate) fn read(&mut self, id: EntryId) -> Option<Entry> {
        self.nic.read_back(id).unwrap();
        let mut got = None;
        self.until("the read-back", |b| {
            got = b.nic.take_read_back();
            got.is_some()
        });
        let (of, entry) = got.unwrap();
        assert_eq!(of, id);
        entry
    }

    /// Puts a frame on a wire and lets the device work.
    pub(crate) fn inject(&mut self, port: u16, frame: &[u8]) {
        self.wires[usize::from(port) - 1].inject(frame.to_vec()).unwrap();
        for _ in 0..3 {
            let _ = self.round();
        }
    }

    pub(crate) fn sent(&mut self, port: u16) -> Vec<Vec<u8>> {
        self.wires[usize::from(port) - 1].receive_all()
    }

    pub(crate) fn receive(&mut self) -> Vec<(SlowRx, Vec<u8>)> {
        let mut got = vec![];
        self.nic.rx(usize::MAX, &mut |info, frame| got.push((info, frame.to_vec()))).unwrap();
        got
    }

    /// An entry from fields given as numbers, in the table's own layout.
    pub(crate) fn entry(
        &self,
        table: TableId,
        matches: &[(Field, u128, u128)],
        actions: &[NicAction],
    ) -> Entry {
        let t = self.nic.caps().table(table).unwrap();
        let n = usize::from(t.key_len);
        let (mut key, mut mask) = (vec![0; n], vec![0; n]);
        for (field, value, bits) in matches {
            let f = t.fields.iter().find(|f| f.field == *field).unwrap_or_else(|| panic!("{field:?}"));
            let (at, len) = (usize::from(f.offset), usize::from(f.width.div_ceil(8)));
            key[at..at + len].copy_from_slice(&value.to_be_bytes()[16 - len..]);
            mask[at..at + len].copy_from_slice(&bits.to_be_bytes()[16 - len..]);
        }
        Entry {
            priority: 0,
            key: SmallVec::from_vec(key),
            mask: SmallVec::from_vec(mask),
            actions: actions.iter().cloned().collect(),
        }
    }

    /// The device noticed no breach of protocol and was never stopped by the IOMMU.
    pub(crate) fn finish(self) {
        let model = self.function.model();
        assert_eq!(model.violations_total(), 0, "{:?}", model.first_violation());
        assert_eq!(self.function.iommu().fault_count(), 0, "{:x?}", self.function.iommu().faults());
        assert!(self.function.iommu().mappings() <= 3);
    }
}

/// Place in a table.
pub(crate) fn at(table: u16, index: u32) -> EntryId {
    EntryId { table: TableId(table), index }
}

/// Ethernet, IPv4 and TCP with SYN, from and to 10.0.0.x.
pub(crate) fn tcp(src: u8, dst: u8, l4_dst: u16) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 8, 0];
    f.extend_from_slice(&[0x45, 0, 0, 44, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, src, 10, 0, 0, dst]);
    f.extend_from_slice(&[0x10, 0xe1]);
    f.extend_from_slice(&l4_dst.to_be_bytes());
    f.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    f.extend_from_slice(b"data");
    f
}

/// Match on the IPv4 destination 10.0.0.x of untagged packets.
pub(crate) fn to_host(x: u8) -> Vec<(Field, u128, u128)> {
    let dst = 0x0a00_0000 | u128::from(x);
    vec![(Field::EthType, 0x800, 0xffff), (Field::Ipv4Dst, dst, 0xffff_ffff)]
}

/// A frame with a number.
pub(crate) fn numbered(n: u32) -> Vec<u8> {
    let mut f = tcp(1, 99, 80);
    f[54..58].copy_from_slice(&n.to_be_bytes());
    f
}

/// The number of such a frame.
pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[54..58].try_into().unwrap())
}
