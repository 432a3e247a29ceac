//! Registers, rings and commands of rocker, written from its programming guide apart from the driver; tables are taken
//! note of, not looked up. A seed and rates say how much of what it says is not so.

use flowlift_bus::{BarSpec, DeviceModel, DmaBus, DmaMem, IrqSink, PciIdentity};
use flowlift_driver::inproc::{InProc, InProcConfig};
use flowlift_driver::nic::NicError;
use flowlift_driver::rocker::{Platform, Rocker, RockerConfig};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const PORTS: u32 = 2;

/// How often the device lies, of 65,536 times.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lies {
    pub(crate) seed: u64,
    /// A register reads as something else.
    pub(crate) registers: u16,
    /// A descriptor, or the fields in its buffer, come back damaged.
    pub(crate) descriptors: u16,
    /// A command is refused, or not answered.
    pub(crate) refusals: u16,
    pub(crate) silences: u16,
    /// Register accesses after which it is gone; 0: never.
    pub(crate) gone_after: u32,
}

impl Lies {
    pub(crate) fn is_honest(&self) -> bool {
        let rates = [self.registers, self.descriptors, self.refusals, self.silences];
        rates == [0; 4] && self.gone_after == 0
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Ring {
    base: u64,
    size: u32,
    head: u32,
    tail: u32,
}

#[derive(Default)]
pub(crate) struct Model {
    dma: Option<Box<dyn DmaBus>>,
    rings: [Ring; 2 + 2 * PORTS as usize],
    low: u32,
    test: u32,
    pub(crate) enabled: u64,
    link: u64,
    /// Flows by cookie, groups by ID: the fields that they came with.
    pub(crate) flows: BTreeMap<u64, Vec<u8>>,
    pub(crate) groups: BTreeMap<u64, Vec<u8>>,
    /// Frames that were sent, with their ports.
    pub(crate) sent: VecDeque<(u32, Vec<u8>)>,
    pub(crate) head_writes: u32,
    pub(crate) lies: Lies,
    accesses: u32,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// The value of a field.
pub(crate) fn field(mut bytes: &[u8], kind: u64) -> Option<&[u8]> {
    while bytes.len() >= 8 {
        let len = number(&bytes[4..6]) as usize;
        let value = bytes.get(8..len)?;
        if number(&bytes[..4]) == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    None
}

fn put(out: &mut Vec<u8>, kind: u32, value: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend((8 + value.len() as u16).to_le_bytes());
    out.extend([0, 0]);
    out.extend(value);
    out.resize(out.len().next_multiple_of(8), 0);
}

impl Model {
    fn random(&mut self) -> u64 {
        let mut x = self.lies.seed | 1;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.lies.seed = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn strikes(&mut self, rate: u16) -> bool {
        rate > 0 && (self.random() >> 48) < u64::from(rate)
    }

    fn gone(&self) -> bool {
        self.lies.gone_after > 0 && self.accesses > self.lies.gone_after
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        if let Some(dma) = &self.dma {
            let _ = dma.read(at, &mut bytes);
        }
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(dma) = &self.dma {
            let _ = dma.write(at, bytes);
        }
    }

    /// The next element of a ring that the device has, with its buffer's address and fields.
    fn element(&self, n: usize) -> Option<(Vec<u8>, u64, Vec<u8>)> {
        let r = self.rings[n];
        if r.head == r.tail || r.size == 0 {
            return None;
        }
        let d = self.read(r.base + 32 * u64::from(r.tail), 32);
        let buffer = number(&d[..8]);
        let fields = self.read(buffer, number(&d[18..20]) as usize);
        Some((d, buffer, fields))
    }

    fn done(&mut self, n: usize, mut d: Vec<u8>, status: u16, fields: Option<Vec<u8>>) {
        if let Some(mut fields) = fields {
            if self.strikes(self.lies.descriptors) && !fields.is_empty() {
                let (at, by) = (self.random() as usize % fields.len(), self.random() as u8);
                fields[at] ^= by;
            }
            d[18..20].copy_from_slice(&(fields.len() as u16).to_le_bytes());
            self.write(number(&d[..8]), &fields);
        }
        if self.strikes(self.lies.descriptors) {
            let (at, by) = (self.random() as usize % 32, self.random() as u8);
            d[at] ^= by;
        }
        d[30..].copy_from_slice(&(0x8000 | status).to_le_bytes());
        let r = &mut self.rings[n];
        let at = r.base + 32 * u64::from(r.tail);
        r.tail = (r.tail + 1) % r.size;
        self.write(at, &d[..24]);
        // The status and what is around it as one word, after the rest.
        if let Some(dma) = &self.dma {
            let _ = dma.store_u64(at + 24, number(&d[24..]));
        }
    }

    fn command(&mut self, fields: &[u8]) -> u16 {
        let (Some(kind), Some(info)) = (field(fields, 1), field(fields, 2)) else { return 22 };
        let info = info.to_vec();
        let (cookie, group) = (field(&info, 5).map(number), field(&info, 10).map(number));
        let exists = match number(kind) {
            3..=5 => cookie.is_some_and(|c| self.flows.contains_key(&c)),
            7..=9 => group.is_some_and(|g| self.groups.contains_key(&g)),
            _ => false,
        };
        match (number(kind), cookie, group) {
            (1 | 2, ..) => 0,
            (3, Some(_), _) | (7, _, Some(_)) if exists => 17,
            (4 | 5, Some(_), _) | (8 | 9, _, Some(_)) if !exists => 2,
            (3 | 4, Some(c), g) => {
                // A flow names a group that there is.
                if g.is_some_and(|g| g != 0 && !self.groups.contains_key(&g)) {
                    return 22;
                }
                self.flows.insert(c, info);
                0
            }
            (5, Some(c), _) => {
                self.flows.remove(&c);
                0
            }
            (7, _, Some(g)) => {
                self.groups.insert(g, info);
                0
            }
            (9, _, Some(g)) => {
                self.groups.remove(&g);
                0
            }
            _ => 22,
        }
    }

    fn work(&mut self, n: usize) {
        // Of the first two rings the device works on commands, of the others on those with even numbers.
        let works = n != 1 && n.is_multiple_of(2);
        while let Some((d, _, fields)) = self.element(n).filter(|_| works) {
            if self.strikes(self.lies.silences) {
                break;
            }
            let mut status = 0;
            if self.strikes(self.lies.refusals) {
                status = (self.random() % 128) as u16;
            } else if n == 0 {
                status = self.command(&fields);
            } else {
                let fragment = field(&fields, 5).and_then(|f| field(f, 1)).unwrap_or_default();
                let (at, len) = (field(fragment, 1).map(number), field(fragment, 2).map(number));
                let frame = self.read(at.unwrap_or(0), len.unwrap_or(0) as usize);
                self.sent.push_back((n as u32 / 2, frame));
            }
            self.done(n, d, status, None);
        }
    }

    /// Gives a frame to the host.
    pub(crate) fn receive(&mut self, port: u32, frame: &[u8]) {
        let n = 2 * port as usize + 1;
        let Some((d, _, fields)) = self.element(n) else { return };
        let (Some(at), Some(room)) = (field(&fields, 3), field(&fields, 4)) else { return };
        let (at, room) = (at.to_vec(), room.to_vec());
        if frame.len() as u64 > number(&room) {
            return self.done(n, d, 90, None);
        }
        self.write(number(&at), frame);
        let mut out = vec![];
        put(&mut out, 1, &[0, 0]);
        put(&mut out, 2, &[0, 0]);
        put(&mut out, 3, &at);
        put(&mut out, 4, &room);
        put(&mut out, 5, &(frame.len() as u16).to_le_bytes());
        self.done(n, d, 0, Some(out));
    }

    /// Says that a port's link changed.
    pub(crate) fn link_changed(&mut self, port: u32, up: bool) {
        self.event(1, |info| {
            put(info, 1, &port.to_le_bytes());
            put(info, 2, &[up.into()]);
        });
    }

    /// Reports an event.
    pub(crate) fn event(&mut self, kind: u32, info: impl FnOnce(&mut Vec<u8>)) {
        let Some((d, ..)) = self.element(1) else { return };
        let (mut fields, mut inner) = (vec![], vec![]);
        info(&mut inner);
        put(&mut fields, 1, &kind.to_le_bytes());
        put(&mut fields, 2, &inner);
        self.done(1, d, 0, Some(fields));
    }

    /// What somebody else's reset does.
    pub(crate) fn clear(&mut self) {
        self.rings = Default::default();
        (self.test, self.enabled, self.link) = (0, 0, 0);
        self.flows.clear();
        self.groups.clear();
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0..0x10 => 0xdead_babe,
            0x10 => self.test.wrapping_mul(2),
            0x304 => PORTS,
            0x310 => self.link as u32,
            0x314 => (self.link >> 32) as u32,
            0x318 => self.enabled as u32,
            0x31c => (self.enabled >> 32) as u32,
            _ => 0,
        }
    }
}

impl DeviceModel for Model {
    fn identity(&self) -> PciIdentity {
        PciIdentity { vendor: 0x1b36, device: 0x0006, revision: 1, class: 0x02_8000 }
    }
    fn bars(&self) -> &[BarSpec] {
        &[BarSpec { index: 0, size: 0x2000, mapped: false }]
    }
    fn msix_vectors(&self) -> u16 {
        4 + 2 * PORTS as u16
    }
    fn attach(&mut self, dma: Box<dyn DmaBus>, _: Box<dyn IrqSink>, _: Vec<(u8, DmaMem)>) {
        self.dma = Some(dma);
    }
    fn region_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        self.accesses += 1;
        let mut value = self.register(offset);
        if self.strikes(self.lies.registers) {
            value = self.random() as u32;
        }
        if self.gone() {
            value = u32::MAX;
        }
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }
    fn region_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        self.accesses += 1;
        if self.gone() {
            return;
        }
        let value = number(data) as u32;
        let n = (offset.wrapping_sub(0x1000) / 32) as usize;
        let wide = u64::from(value) << 32 | u64::from(self.low);
        match offset {
            0x10 => self.test = value,
            0x300 if value & 1 != 0 => self.clear(),
            0x318 => self.low = value,
            0x31c => (self.enabled, self.link) = (wide, wide),
            0x1000.. if n < self.rings.len() => match offset % 32 {
                0 => self.low = value,
                4 => self.rings[n].base = wide,
                8 => self.rings[n] = Ring { size: value, head: 0, tail: 0, ..self.rings[n] },
                12 => {
                    self.head_writes += u32::from(n == 0);
                    self.rings[n].head = value % self.rings[n].size.max(1);
                    self.work(n);
                }
                _ => {}
            },
            _ => {}
        }
    }
    fn bus_master(&mut self, _: bool) {}
    fn reset(&mut self) {
        self.clear();
    }
}

/// A clock that goes on by a hundred microseconds with each look at it.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Platform for Ticks {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(100_000, Ordering::Relaxed)
    }
    fn relax(&self) {
        self.0.fetch_add(1_000_000, Ordering::Relaxed);
    }
}

pub(crate) type Function = Arc<InProc<Model>>;

/// A device with these lies, and what became of opening it.
pub(crate) fn open(lies: Lies) -> (Function, Result<Rocker, NicError>) {
    let model = Model { lies, ..Model::default() };
    let function = InProc::new(model, InProcConfig { name: "model".into(), ..Default::default() }).unwrap();
    let config = RockerConfig {
        platform: Arc::new(Ticks::default()),
        slow_ring: 16,
        max_frame: 256,
        entries: 64,
        command_ring: 64,
        ..RockerConfig::default()
    };
    let nic = Rocker::open(function.clone(), config);
    (function, nic)
}
