//! What a device writes, as the driver reads it: capability blob, entry and counter records, completions, events, slow
//! packets. The driver must neither panic nor hang, and must answer every update exactly once.
//!
//! The bytes go two ways. Whole, through the parsers that see a device's bytes first. And as damage: behind the real
//! driver sits the simulated NIC, whose writes to host memory are changed where the input says so.
#![no_main]

use flowlift_bus::{BarSpec, DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink, PciIdentity};
use flowlift_driver::fl1::{Fl1, Fl1Config, Platform, fuzz::device_bytes};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::{
    Entry, EntryId, Nic, NicAction, NicPort, NicState, SlowTx, TableCaps, Update, UpdateResult,
};
use flowlift_sim::{Config, FaultPlan, ManualClock, MemoryWire, Profile};
use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of damage that are left. A byte below 0xc0 lets so many writes pass; any other is followed by a position and a
/// value, which changes the next write.
#[derive(Clone)]
struct Damage(Arc<Mutex<(VecDeque<u8>, u8)>>);

impl Damage {
    fn new(input: &[u8]) -> Self {
        Self(Arc::new(Mutex::new((input.iter().copied().collect(), 0))))
    }

    /// Where to change the next write of `len` bytes, and how.
    fn next(&self, len: usize) -> Option<(usize, u8)> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, pass) = &mut *state;
        if *pass > 0 {
            *pass -= 1;
            return None;
        }
        let head = input.pop_front()?;
        if head < 0xc0 || len == 0 {
            *pass = head & 0x3f;
            return None;
        }
        let (at, value) = (input.pop_front()?, input.pop_front()?);
        Some((usize::from(at) % len, value))
    }
}

/// The device's way to host memory, with damage.
struct Damaged {
    bus: Box<dyn DmaBus>,
    damage: Damage,
}

impl DmaBus for Damaged {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.bus.read(iova, data)
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        match self.damage.next(data.len()) {
            None => self.bus.write(iova, data),
            Some((at, value)) => {
                let mut data = data.to_vec();
                data[at] = value;
                self.bus.write(iova, &data)
            }
        }
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        self.bus.load_u64(iova)
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let mut bytes = value.to_le_bytes();
        if let Some((at, value)) = self.damage.next(bytes.len()) {
            bytes[at] = value;
        }
        self.bus.store_u64(iova, u64::from_le_bytes(bytes))
    }
}

/// The simulated NIC on such a bus.
struct Device {
    nic: flowlift_sim::Fl1,
    damage: Damage,
}

impl DeviceModel for Device {
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
        self.nic.attach(Box::new(Damaged { bus, damage: self.damage.clone() }), irq, mapped_bars);
    }
    fn region_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.nic.region_read(bar, offset, data);
    }
    fn region_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.nic.region_write(bar, offset, data);
    }
    fn bus_master(&mut self, enabled: bool) {
        self.nic.bus_master(enabled);
    }
    fn reset(&mut self) {
        self.nic.reset();
    }
}

/// Waiting lets the device work, and costs 10 us.
struct Time {
    function: Arc<InProc<Device>>,
    clock: ManualClock,
    ns: AtomicU64,
}

impl Platform for Time {
    fn now_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        self.ns.fetch_add(10_000, Ordering::Relaxed);
        self.clock.advance(10_000);
        self.function.model().nic.step();
    }
}

fuzz_target!(|data: &[u8]| {
    device_bytes(data);

    let clock = ManualClock::new(1000);
    let config = Config { seed: 1, faults: FaultPlan::default(), clock: Box::new(clock.clone()) };
    let mut device =
        Device { nic: flowlift_sim::Fl1::new(Profile::tiny(), config), damage: Damage::new(data) };
    let wire = MemoryWire::new(64);
    device.nic.plug(1, Box::new(wire.clone()));
    let Ok(function) = InProc::new(device, InProcConfig::default()) else { return };
    let time = Arc::new(Time { function: function.clone(), clock, ns: AtomicU64::new(0) });
    let config = Fl1Config {
        platform: time.clone(),
        admin_slots: 64,
        event_ring: 16,
        slow_ring: 16,
        check_interval: Duration::from_micros(20),
        hang_deadline: Duration::from_millis(1),
        deadline: Duration::from_millis(2),
    };
    if let Ok(nic) = Fl1::open(function, config) {
        drive(nic, &time, &wire);
    }
});

fn entry(table: &TableCaps) -> Entry {
    let blank = vec![0; table.key_len.into()];
    Entry {
        priority: 1,
        key: blank.iter().copied().collect(),
        mask: blank.into_iter().collect(),
        actions: [NicAction::Output(NicPort(2))].into_iter().collect(),
    }
}

/// Updates, read-backs, snapshots and packets for a while, then a reset: each update has one result.
fn drive(mut nic: Fl1, time: &Time, wire: &MemoryWire) {
    let (mut given, mut results, mut events) = (0u64, Vec::<UpdateResult>::new(), Vec::new());
    for round in 0..40u32 {
        let Some(table) = nic.caps().tables.first() else { return };
        let id = EntryId { table: table.id, index: round % table.max_entries.clamp(1, 8) };
        let (count, entry) = (table.max_entries.min(8), entry(table));
        let update = match round % 4 {
            0 | 1 => Update::Insert { cookie: given, id, entry },
            2 => Update::Replace { cookie: given, id, entry },
            _ => Update::Delete { cookie: given, id },
        };
        given += nic.submit(&[update]).unwrap_or(0) as u64;
        let _ = nic.kick();
        let _ = nic.read_back(id);
        let _ = nic.snapshot(id.table, 0, count);
        let _ = nic.tx(SlowTx::Port(NicPort(1)), &[0; 60]);
        let _ = wire.inject(vec![0; 60 + round as usize]);
        time.relax();
        let _ = nic.rx(64, &mut |info, frame| assert_eq!(info.len as usize, frame.len()));
        let _ = nic.poll(&mut results, &mut events);
        nic.counters(id);
        while nic.take_read_back().is_some() {}
        while nic.take_snapshot().is_some() {}
        if nic.state() == NicState::Failed {
            let _ = nic.reset();
        }
    }
    let _ = nic.reset();
    let _ = nic.poll(&mut results, &mut events);
    let mut cookies: Vec<_> = results.iter().map(|r| r.cookie).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..given), "one result for each of {given} updates");
}
