//! Admin commands as any driver could write them: through the simulator's decoder, and through the ring of a whole device,
//! which must go on stepping and answer every command that it could read, whatever it thinks of it.
//!
//! The input is the ring's slots, 64 bytes each. On the wire of port 1 come frames made of the same bytes.
#![no_main]

use flowlift_bus::{DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink};
use flowlift_sim::{Config, FaultPlan, Fl1, ManualClock, MemoryWire, Profile, decode_command};
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::Ordering;

const SLOT: usize = 64;
/// Slots of the admin ring, and elements of the others.
const RING: u32 = 64;
/// Host memory: rings, and room for buffers. IOVAs begin at 0x1000, so that 0 is blocked.
const BASE: u64 = 0x1000;
const MEMORY: usize = 0x4_0000;
const ASQ: u64 = BASE;
const ACQ: u64 = BASE + 0x1000;
const EVQ: u64 = BASE + 0x2000;
/// Registers (FL1.md, section 3).
const CTRL: u64 = 0x008;
const ASQ_BASE: u64 = 0x100;
const ACQ_BASE: u64 = 0x110;
const EVQ_BASE: u64 = 0x140;

struct Bus(DmaMem);

impl Bus {
    fn at(iova: u64, len: usize, write: bool) -> Result<usize, DmaFault> {
        let at = iova.checked_sub(BASE).and_then(|at| usize::try_from(at).ok());
        at.filter(|at| at.checked_add(len).is_some_and(|end| end <= MEMORY)).ok_or(DmaFault {
            iova,
            len,
            write,
        })
    }
}

impl DmaBus for Bus {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let fault = DmaFault { iova, len: data.len(), write: false };
        self.0.read_bytes(Self::at(iova, data.len(), false)?, data).map_err(|_| fault)
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let fault = DmaFault { iova, len: data.len(), write: true };
        self.0.write_bytes(Self::at(iova, data.len(), true)?, data).map_err(|_| fault)
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        let fault = DmaFault { iova, len: 8, write: false };
        self.0.load_u64(Self::at(iova, 8, false)?, Ordering::Acquire).map_err(|_| fault)
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let fault = DmaFault { iova, len: 8, write: true };
        self.0.store_u64(Self::at(iova, 8, true)?, value, Ordering::Release).map_err(|_| fault)
    }
}

struct NoIrq;

impl IrqSink for NoIrq {
    fn raise(&self, _: u16) {}
}

fuzz_target!(|data: &[u8]| {
    let _ = decode_command(data);
    let count = (data.len() / SLOT).min(RING as usize);
    let slots = &data[..count * SLOT];

    let mut dev = Fl1::new(
        Profile::tiny(),
        Config { seed: 1, faults: FaultPlan::default(), clock: Box::new(ManualClock::new(1000)) },
    );
    let memory = DmaMem::new(MEMORY).expect("memory");
    let bells = DmaMem::new(0x2000).expect("memory");
    dev.attach(Box::new(Bus(memory.clone())), Box::new(NoIrq), vec![(2, bells.clone())]);
    dev.bus_master(true);
    let wire = MemoryWire::new(16);
    dev.plug(1, Box::new(wire.clone()));
    let mut write = |offset: u64, value: u32| dev.region_write(0, offset, &value.to_le_bytes());
    for (at, base) in [(ASQ_BASE, ASQ), (ACQ_BASE, ACQ), (EVQ_BASE, EVQ)] {
        write(at, base as u32);
        write(at + 4, 0);
        write(at + 8, RING);
        write(at + 12, 1);
    }
    write(0x1000 + 0x80, 1);
    write(CTRL, 1);

    memory.write_bytes((ASQ - BASE) as usize, slots).expect("the ring");
    bells.store_u32(0, count as u32, Ordering::Release).expect("a doorbell");
    for frame in data.chunks(97).take(8) {
        let _ = wire.inject(frame.to_vec());
    }
    let mut taken = 0u32;
    for _ in 0..64 {
        dev.step();
        // Completions are taken as they come, so that the ring never fills.
        let mut seq = [0; 4];
        let at = (ACQ - BASE) as usize + (taken % RING) as usize * SLOT + 56;
        memory.read_bytes(at, &mut seq).expect("a completion");
        while u32::from_le_bytes(seq) == taken + 1 {
            taken += 1;
            let at = (ACQ - BASE) as usize + (taken % RING) as usize * SLOT + 56;
            memory.read_bytes(at, &mut seq).expect("a completion");
        }
        bells.store_u32(0x40, taken, Ordering::Release).expect("a doorbell");
    }
    assert!(taken as usize <= count, "{taken} completions for {count} slots");
});
