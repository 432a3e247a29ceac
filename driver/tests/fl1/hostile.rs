//! A device that answers at random: no panic, no endless loop, no huge allocation, and one result for each update.
//!
//! It knows enough of the page to get past bring-up now and then (it tells the truth about who it is and copies a real
//! capability blob), because a liar who is found out at once finds nothing.

use flowlift_bus::{BarSpec, DeviceModel, DmaBus, DmaMem, IrqSink, PciIdentity};
use flowlift_driver::fl1::{Fl1, Fl1Config, Platform};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::*;
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BARS: [BarSpec; 2] =
    [BarSpec { index: 0, size: 0x4000, mapped: false }, BarSpec { index: 2, size: 0x2000, mapped: true }];

/// How a liar lies.
#[derive(Debug, Clone)]
struct Script {
    seed: u64,
    /// Chance in 256 that a register read is random, all-ones, or off by one.
    registers: u8,
    /// Chance in 256 that a ring element is altered.
    elements: u8,
    /// Ring elements written per step that nobody asked for.
    unasked: u8,
    /// Steps after which the lies begin.
    honest_steps: u8,
}

struct Liar {
    script: Script,
    state: u64,
    steps: u32,
    regs: BTreeMap<u64, u32>,
    dma: Option<Box<dyn DmaBus>>,
    bells: Option<DmaMem>,
    asq_head: u32,
    produced: BTreeMap<u64, u32>,
    caps: Vec<u8>,
}

/// The capability blob of profile tiny, from its golden file.
fn blob() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/device/golden/caps_tiny.hex");
    let text = std::fs::read_to_string(path).unwrap();
    let digits = text.lines().filter_map(|l| l.split('#').next()).flat_map(str::split_whitespace);
    digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect()
}

impl Liar {
    fn new(script: Script) -> Self {
        let state = script.seed;
        let caps = blob();
        let mut l = Self {
            script,
            state,
            steps: 0,
            regs: BTreeMap::new(),
            dma: None,
            bells: None,
            asq_head: 0,
            produced: BTreeMap::new(),
            caps,
        };
        l.power_up();
        l
    }

    fn power_up(&mut self) {
        let resets = self.regs.get(&0x28).copied().unwrap_or(0);
        self.regs = BTreeMap::from([
            (0x00, 0x3130_4c46),
            (0x04, 0x0001_0000),
            (0x0c, 1),
            (0x28, resets.wrapping_add(1)),
            (0x50, 4),
            (0x54, 1),
            (0x58, 1),
            (0x5c, 1),
            (0x64, 480),
            (0x68, 65600),
            (0x6c, 0xff),
            (0x70, 16),
        ]);
        self.asq_head = 0;
        self.produced.clear();
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn lies(&mut self, chance: u8) -> bool {
        let honest = self.steps < self.script.honest_steps.into();
        let drawn = self.random() as u8;
        !honest && drawn < chance
    }

    fn base(&self, lo: u64) -> u64 {
        let half = |at| u64::from(self.regs.get(&at).copied().unwrap_or(0));
        half(lo + 4) << 32 | half(lo)
    }

    /// Writes the next element of a device-filled ring, altered at random.
    fn produce(&mut self, base: u64, size: u32, mut element: Vec<u8>, seq_at: usize) {
        if base == 0 || !size.is_power_of_two() {
            return;
        }
        let index = self.produced.get(&base).copied().unwrap_or(0);
        element[seq_at..seq_at + 4].copy_from_slice(&index.wrapping_add(1).to_le_bytes());
        if self.lies(self.script.elements) {
            let at = self.random() as usize % element.len();
            element[at] = self.random() as u8;
        }
        let at = base + u64::from(index & (size - 1)) * element.len() as u64;
        let _ = self.dma.as_ref().unwrap().write(at, &element);
        self.produced.insert(base, index.wrapping_add(1));
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| if self.random().is_multiple_of(3) { self.random() as u8 } else { 0 }).collect()
    }

    fn step(&mut self) {
        self.steps += 1;
        let reg = |l: &Self, at| l.regs.get(&at).copied().unwrap_or(0);
        *self.regs.entry(0x44).or_default() += 1;
        if reg(self, 0x08) & 1 == 0 {
            return;
        }
        let (asq, slots) = (self.base(0x100), reg(self, 0x108));
        let (acq, completions) = (self.base(0x110), reg(self, 0x118));
        let tail = self.bells.as_ref().unwrap().load_u32(0, Ordering::Acquire).unwrap();
        for _ in 0..64 {
            if self.asq_head == tail || !slots.is_power_of_two() {
                break;
            }
            let mut command = [0; 64];
            let at = asq + u64::from(self.asq_head & (slots - 1)) * 64;
            if self.dma.as_ref().unwrap().read(at, &mut command).is_err() {
                break;
            }
            self.asq_head = self.asq_head.wrapping_add(command[1].max(1).into());
            self.regs.insert(0x120, self.asq_head);
            let mut c = vec![0; 64];
            c[..8].copy_from_slice(&command[8..16]);
            c[10] = command[0];
            c[44..48].copy_from_slice(&command[20..24]);
            if command[0] == 9 {
                let iova = u64::from_le_bytes(command[32..40].try_into().unwrap());
                let mut caps = self.caps.clone();
                if self.lies(self.script.elements) {
                    let at = self.random() as usize % caps.len();
                    caps[at] = self.random() as u8;
                }
                let _ = self.dma.as_ref().unwrap().write(iova, &caps);
                c[48..52].copy_from_slice(&480u32.to_le_bytes());
            }
            if self.lies(self.script.elements) {
                c[8] = self.random() as u8 % 24;
            }
            self.produce(acq, completions, c, 56);
        }
        for _ in 0..self.script.unasked {
            if !self.lies(128) {
                continue;
            }
            match self.random() % 4 {
                0 => {
                    let e = self.noise(64);
                    self.produce(acq, completions, e, 56);
                }
                1 => {
                    let (base, size) = (self.base(0x140), reg(self, 0x148));
                    let mut e = self.noise(32);
                    e[0] = self.random() as u8 % 7;
                    self.produce(base, size, e, 24);
                }
                2 => {
                    let (base, size) = (self.base(0x208), reg(self, 0x220));
                    let index = self.produced.get(&base).copied().unwrap_or(0);
                    let mut e = vec![0; 64];
                    e[..4].copy_from_slice(&(index & size.wrapping_sub(1)).to_le_bytes());
                    e[4] = 60;
                    e[8] = 1;
                    e[36] = 60;
                    self.produce(base, size, e, 56);
                }
                _ => {
                    let at = self.base(0x218);
                    let value =
                        if self.random().is_multiple_of(2) { self.random() % 8 } else { self.random() };
                    let _ = self.dma.as_ref().unwrap().store_u64(at, value);
                }
            }
        }
    }
}

impl DeviceModel for Liar {
    fn identity(&self) -> PciIdentity {
        PciIdentity { vendor: 0x1d9b, device: 0xf101, revision: 1, class: 0x02_0000 }
    }
    fn bars(&self) -> &[BarSpec] {
        &BARS
    }
    fn msix_vectors(&self) -> u16 {
        3
    }
    fn attach(&mut self, dma: Box<dyn DmaBus>, _: Box<dyn IrqSink>, mapped_bars: Vec<(u8, DmaMem)>) {
        self.dma = Some(dma);
        self.bells = mapped_bars.into_iter().map(|(_, m)| m).next();
    }
    fn region_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        let mut v = self.regs.get(&offset).copied().unwrap_or(0);
        if offset >= 0x1000 && offset & 0x7f == 4 {
            v = 1;
        }
        if self.lies(self.script.registers) {
            v = match self.random() % 4 {
                0 => u32::MAX,
                1 => v.wrapping_add(1),
                2 => v ^ 1 << (self.random() % 32),
                _ => self.random() as u32,
            };
        }
        data.copy_from_slice(&v.to_le_bytes()[..data.len()]);
    }
    fn region_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        let v = u32::from_le_bytes(data.try_into().unwrap());
        self.regs.insert(offset, v);
        if offset == 8 {
            self.regs.insert(0x0c, 1 | (v & 1) << 1);
        }
    }
    fn bus_master(&mut self, _: bool) {}
    fn reset(&mut self) {
        self.power_up();
    }
}

struct Time {
    function: Arc<InProc<Liar>>,
    ns: AtomicU64,
}

impl Platform for Time {
    fn now_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        self.ns.fetch_add(10_000, Ordering::Relaxed);
        self.function.model().step();
    }
}

/// Drives a liar for a while; returns whether it came up, and whether it was found out afterwards.
fn drive(script: Script) -> (bool, bool) {
    let function = InProc::new(Liar::new(script), InProcConfig::default()).unwrap();
    let time = Arc::new(Time { function: function.clone(), ns: AtomicU64::new(0) });
    let config = Fl1Config {
        platform: time.clone(),
        admin_slots: 64,
        event_ring: 16,
        slow_ring: 16,
        check_interval: Duration::from_micros(20),
        hang_deadline: Duration::from_millis(1),
        deadline: Duration::from_millis(5),
        order: true,
    };
    let mut nic = match Fl1::open(function.clone(), config) {
        Ok(nic) => nic,
        Err(_) => return (false, true),
    };
    let entry = |t: &TableCaps| Entry {
        priority: 1,
        key: smallvec![0; t.key_len.into()],
        mask: smallvec![0; t.key_len.into()],
        actions: smallvec![],
    };
    let (mut given, mut results, mut events) = (0u64, vec![], vec![]);
    let mut suspected = false;
    for round in 0..400u32 {
        let table = &nic.caps().tables[0];
        let id = EntryId { table: table.id, index: round % table.max_entries.min(16) };
        let update = match round % 3 {
            0 => Update::Insert { cookie: given, id, entry: entry(table) },
            1 => Update::Replace { cookie: given, id, entry: entry(table) },
            _ => Update::Delete { cookie: given, id },
        };
        given += nic.submit(&[update]).unwrap_or(0) as u64;
        let _ = nic.kick();
        let _ = nic.read_back(id);
        let _ = nic.snapshot(id.table, 0, 8.min(nic.caps().tables[0].max_entries));
        let _ = nic.tx(SlowTx::Port(NicPort(1)), &[0; 60]);
        let _ = nic.rx(64, &mut |info, frame| assert_eq!(info.len as usize, frame.len()));
        time.relax();
        let _ = nic.poll(&mut results, &mut events);
        nic.counters(id);
        nic.tx_pending();
        nic.take_unsent();
        while nic.take_read_back().is_some() {}
        while nic.take_snapshot().is_some() {}
        if nic.state() == NicState::Failed {
            suspected = true;
            let _ = nic.reset();
        }
        suspected |= nic.state() == NicState::Gone;
    }
    // The device is switched off: whatever is still open is answered by the reset, or was by the removal.
    let _ = nic.reset();
    let _ = nic.poll(&mut results, &mut events);
    let mut cookies: Vec<_> = results.iter().map(|r| r.cookie).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..given), "one result for each of {given} updates");
    (true, suspected)
}

#[test]
fn an_honest_answer_of_the_same_device_is_believed() {
    let honest = Script { seed: 1, registers: 0, elements: 0, unasked: 0, honest_steps: 255 };
    assert_eq!(drive(honest), (true, true), "it comes up; it never answers a read, and that is found out");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_lie_is_survived(
        seed in any::<u64>(),
        registers in prop_oneof![Just(0u8), 0u8..8, any::<u8>()],
        elements in prop_oneof![Just(0u8), 0u8..32, any::<u8>()],
        unasked in 0u8..12,
        honest_steps in prop_oneof![Just(0u8), 0u8..40],
    ) {
        drive(Script { seed, registers, elements, unasked, honest_steps });
    }
}
