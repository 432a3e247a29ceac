//! Speed of the device's side of the admin ring: inserts and deletes laid down by hand, no driver. Figures are per CPU
//! second of this thread, so that a busy machine does not change them.
//! `cargo run --release -p flowlift-sim --example updates -- [ENTRIES] [MASKS]`

use flowlift_bus::{DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink};
use flowlift_sim::{Config, FaultPlan, Fl1, ManualClock, MemoryWire, Profile};
use std::sync::atomic::Ordering;
use std::time::Duration;

const RING: u32 = 16_384;
const ASQ: u64 = 0;
const ACQ: u64 = 64 * RING as u64;
const MEMORY: usize = 2 * 64 * RING as usize;
const KEY: usize = 48;

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

struct Bus(DmaMem);

impl Bus {
    fn fault(iova: u64, len: usize, write: bool) -> DmaFault {
        DmaFault { iova, len, write }
    }
}

impl DmaBus for Bus {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.0.read_bytes(iova as usize, data).map_err(|_| Self::fault(iova, data.len(), false))
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        self.0.write_bytes(iova as usize, data).map_err(|_| Self::fault(iova, data.len(), true))
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        self.0.load_u64(iova as usize, Ordering::Acquire).map_err(|_| Self::fault(iova, 8, false))
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let done = self.0.store_u64(iova as usize, value, Ordering::Release);
        done.map_err(|_| Self::fault(iova, 8, true))
    }
}

struct NoIrq;

impl IrqSink for NoIrq {
    fn raise(&self, _: u16) {}
}

/// Hands all commands to the device; gives the time spent in the device alone.
fn run(
    dev: &mut Fl1,
    mem: &DmaMem,
    bells: &DmaMem,
    tail: &mut u32,
    commands: u32,
    make: impl Fn(u32) -> Vec<u8>,
) -> Result<Duration, flowlift_bus::BusError> {
    let mut spent = Duration::ZERO;
    let mut next = 0;
    let mut done = 0;
    while done < commands {
        let mut filled = 0;
        while next < commands && filled + 4 < RING {
            let c = make(next);
            for slot in c.chunks(64) {
                mem.write_bytes((ASQ + u64::from(*tail % RING) * 64) as usize, slot)?;
                *tail = tail.wrapping_add(1);
                filled += 1;
            }
            next += 1;
        }
        bells.store_u32(0, *tail, Ordering::Release)?;
        let start = cpu_time();
        let step = dev.step_budget(RING);
        spent += cpu_time().saturating_sub(start);
        done += step.commands;
        let mut last = [0; 64];
        mem.read_bytes(ACQ as usize, &mut last)?;
        let seen = bells.load_u32(0x40, Ordering::Relaxed)?;
        bells.store_u32(0x40, seen.wrapping_add(step.commands), Ordering::Release)?;
        if last[8] != 0 || dev.fatal().is_some() {
            eprintln!("status {}, fatal {:?}", last[8], dev.fatal());
            break;
        }
    }
    Ok(spent)
}

fn main() -> Result<(), flowlift_bus::BusError> {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<u32>().ok());
    let (entries, masks) = (args.next().unwrap_or(1_000_000), args.next().unwrap_or(1).max(1));
    let config = Config { seed: 0, faults: FaultPlan::default(), clock: Box::new(ManualClock::new(0)) };
    let mut dev = Fl1::new(Profile::large(), config);
    let (mem, bells) = (DmaMem::new(MEMORY)?, DmaMem::new(0x2000)?);
    dev.attach(Box::new(Bus(mem.clone())), Box::new(NoIrq), vec![(2, bells.clone())]);
    dev.bus_master(true);
    let (wire_in, wire_out) = (MemoryWire::new(usize::MAX), MemoryWire::new(0));
    dev.plug(1, Box::new(wire_in.clone()));
    dev.plug(2, Box::new(wire_out.clone()));
    let base =
        |block: u64, iova: u64| [(block, iova as u32), (block + 4, 0), (block + 8, RING), (block + 12, 1)];
    let ports = [(0x1080, 1), (0x1100, 1), (8, 1)];
    for (offset, v) in base(0x100, ASQ).into_iter().chain(base(0x110, ACQ)).chain(ports) {
        dev.region_write(0, offset, &v.to_le_bytes());
    }
    let mut tail = 0;
    let key = |i: u32| {
        // eth_type 0x0800, IPv4 destination i, masked source prefix of one of `masks` lengths.
        let (mut key, mut mask) = ([0; KEY], [0; KEY]);
        key[18] = 8;
        mask[18..20].fill(0xff);
        key[35..39].copy_from_slice(&i.to_be_bytes());
        mask[35..39].fill(0xff);
        let prefix = (u64::MAX << (32 - i % masks % 33)) as u32;
        mask[31..35].copy_from_slice(&prefix.to_be_bytes());
        (key, mask)
    };
    let insert = |i: u32| {
        let mut c = vec![0; 192];
        (c[0], c[1], c[30]) = (1, 3, 1);
        c[16..20].copy_from_slice(&i.to_le_bytes());
        c[28] = KEY as u8;
        let (k, m) = key(i);
        c[32..80].copy_from_slice(&k);
        c[80..128].copy_from_slice(&m);
        c[128..132].copy_from_slice(&[1, 1, 2, 0]);
        c
    };
    let per_second = |n: u32, t: Duration| match t.as_secs_f64() {
        0.0 => "too short to measure".to_owned(),
        t => format!("{:.2} M/s", f64::from(n) / t / 1e6),
    };
    let t = run(&mut dev, &mem, &bells, &mut tail, entries, insert)?;
    println!("insert  {}", per_second(entries, t));
    let frames = 1_000_000;
    for i in 0..frames {
        let mut f = vec![0; 60];
        f[12] = 8;
        f[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        f[30..34].copy_from_slice(&(i * 7919 % entries).to_be_bytes());
        // The wire takes everything.
        let _ = wire_in.inject(f);
    }
    let start = cpu_time();
    while wire_in.pending() != 0 && !dev.step().is_idle() {}
    println!(
        "packets {}, {} forwarded",
        per_second(frames, cpu_time().saturating_sub(start)),
        wire_out.receive_all().len()
    );
    let replace = |i: u32| {
        let mut c = vec![0; 64];
        (c[0], c[1], c[30]) = (2, 1, 1);
        c[16..20].copy_from_slice(&i.to_le_bytes());
        c[32..36].copy_from_slice(&[1, 1, 3, 0]);
        c
    };
    let t = run(&mut dev, &mem, &bells, &mut tail, entries, replace)?;
    println!("replace {}", per_second(entries, t));
    let delete = |i: u32| {
        let mut c = vec![0; 64];
        (c[0], c[1]) = (3, 1);
        c[16..20].copy_from_slice(&i.to_le_bytes());
        c
    };
    let t = run(&mut dev, &mem, &bells, &mut tail, entries, delete)?;
    println!("delete  {}, violations {}", per_second(entries, t), dev.violations_total());
    Ok(())
}
