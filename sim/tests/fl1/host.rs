//! A host of raw bytes: it lays descriptors down by the spec, and knows neither the driver nor the simulator's inside.

use flowlift_bus::{DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink};
use flowlift_sim::{Config, FaultPlan, Fl1, ManualClock, MemoryWire, Profile};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// IOVA of the host's memory; what is below it is blocked.
pub(crate) const BASE: u64 = 0x1_0000_0000;
const MEMORY: usize = 0x100_0000;
pub(crate) const ASQ: u64 = BASE;
pub(crate) const ACQ: u64 = BASE + 0x1_0000;
pub(crate) const EVQ: u64 = BASE + 0x2_0000;
pub(crate) const RXB: u64 = BASE + 0x3_0000;
pub(crate) const RXC: u64 = BASE + 0x3_8000;
pub(crate) const TXD: u64 = BASE + 0x4_0000;
pub(crate) const TXW: u64 = BASE + 0x4_8000;
pub(crate) const SCRATCH: u64 = BASE + 0x5_0000;
pub(crate) const TX_FRAMES: u64 = BASE + 0x8_0000;
pub(crate) const RX_FRAMES: u64 = BASE + 0x10_0000;
pub(crate) const PAGE: u64 = BASE + 0x80_0000;
/// Elements of every ring.
pub(crate) const RING: u32 = 64;
pub(crate) const RX_BUFFER: u64 = 2048;

pub(crate) struct Bus {
    mem: DmaMem,
    /// Accesses so far, and the one to block.
    count: Arc<AtomicU64>,
    block: Arc<AtomicU64>,
}

impl Bus {
    fn at(&self, iova: u64, len: usize, write: bool) -> Result<usize, DmaFault> {
        let fault = DmaFault { iova, len, write };
        if self.count.fetch_add(1, Ordering::Relaxed) == self.block.load(Ordering::Relaxed) {
            return Err(fault);
        }
        let at = iova.checked_sub(BASE).ok_or(fault)? as usize;
        if at + len <= MEMORY { Ok(at) } else { Err(fault) }
    }
}

impl DmaBus for Bus {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let at = self.at(iova, data.len(), false)?;
        self.mem.read_bytes(at, data).unwrap();
        Ok(())
    }
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let at = self.at(iova, data.len(), true)?;
        self.mem.write_bytes(at, data).unwrap();
        Ok(())
    }
    fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        let at = self.at(iova, 8, false)?;
        Ok(self.mem.load_u64(at, Ordering::Acquire).unwrap())
    }
    fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let at = self.at(iova, 8, true)?;
        self.mem.store_u64(at, value, Ordering::Release).unwrap();
        Ok(())
    }
}

struct Irqs(Arc<Mutex<Vec<u16>>>);

impl IrqSink for Irqs {
    fn raise(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// An admin completion, read by the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) raw: [u8; 64],
}

impl Done {
    pub(crate) fn cookie(&self) -> u64 {
        le(&self.raw, 0, 8)
    }
    pub(crate) fn status(&self) -> u64 {
        le(&self.raw, 8, 2)
    }
    pub(crate) fn detail(&self) -> u64 {
        le(&self.raw, 12, 4)
    }
    pub(crate) fn packets(&self) -> u64 {
        le(&self.raw, 16, 8)
    }
    pub(crate) fn bytes(&self) -> u64 {
        le(&self.raw, 24, 8)
    }
    pub(crate) fn generation(&self) -> u64 {
        le(&self.raw, 44, 4)
    }
    pub(crate) fn result(&self) -> u64 {
        le(&self.raw, 48, 4)
    }
}

/// A frame from the slow queue: its first completion and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) raw: [u8; 64],
    pub(crate) frame: Vec<u8>,
}

impl Slow {
    pub(crate) fn port(&self) -> u64 {
        le(&self.raw, 8, 2)
    }
    pub(crate) fn reason(&self) -> u8 {
        self.raw[10]
    }
    pub(crate) fn stage(&self) -> u8 {
        self.raw[11]
    }
    pub(crate) fn table(&self) -> u64 {
        le(&self.raw, 12, 2)
    }
    pub(crate) fn metadata(&self) -> u64 {
        le(&self.raw, 16, 4)
    }
    pub(crate) fn entry(&self) -> u64 {
        le(&self.raw, 20, 4)
    }
}

/// A little-endian number of `n` bytes.
pub(crate) fn le(b: &[u8], at: usize, n: usize) -> u64 {
    b[at..at + n].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

pub(crate) struct Host {
    pub(crate) dev: Fl1,
    pub(crate) mem: DmaMem,
    pub(crate) bells: DmaMem,
    pub(crate) irqs: Arc<Mutex<Vec<u16>>>,
    pub(crate) clock: ManualClock,
    pub(crate) wires: Vec<MemoryWire>,
    pub(crate) accesses: Arc<AtomicU64>,
    pub(crate) block: Arc<AtomicU64>,
    pub(crate) sq_tail: u32,
    pub(crate) cq_head: u32,
    pub(crate) ev_head: u32,
    pub(crate) rx_tail: u32,
    pub(crate) rx_head: u32,
    pub(crate) tx_tail: u32,
}

impl Host {
    /// A powered-on device with Bus Master on and a wire in every port; nothing else is set up.
    pub(crate) fn cold(profile: &str, seed: u64, faults: FaultPlan) -> Self {
        let profile = Profile::by_name(profile).expect("profile");
        let clock = ManualClock::new(1000);
        let ports = profile.ports();
        let mut dev = Fl1::new(profile, Config { seed, faults, clock: Box::new(clock.clone()) });
        let mem = DmaMem::new(MEMORY).unwrap();
        let bells = DmaMem::new(0x2000).unwrap();
        let (accesses, block) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let bus = Bus { mem: mem.clone(), count: accesses.clone(), block: block.clone() };
        let irqs = Arc::new(Mutex::new(Vec::new()));
        dev.attach(Box::new(bus), Box::new(Irqs(irqs.clone())), vec![(2, bells.clone())]);
        dev.bus_master(true);
        let wires: Vec<_> = (1..=ports)
            .map(|p| {
                let w = MemoryWire::new(1024);
                assert!(dev.plug(p, Box::new(w.clone())));
                w
            })
            .collect();
        Self {
            dev,
            mem,
            bells,
            irqs,
            clock,
            wires,
            accesses,
            block,
            sq_tail: 0,
            cq_head: 0,
            ev_head: 0,
            rx_tail: 0,
            rx_head: 0,
            tx_tail: 0,
        }
    }

    /// A device with everything set up, `buffers` posted on slow queue 0.
    pub(crate) fn new(profile: &str) -> Self {
        Self::with(profile, 0, FaultPlan::default())
    }

    pub(crate) fn with(profile: &str, seed: u64, faults: FaultPlan) -> Self {
        let mut h = Self::cold(profile, seed, faults);
        h.start();
        h
    }

    /// Sets everything up, as after power-on.
    pub(crate) fn start(&mut self) {
        let zeros = vec![0; (SCRATCH - ASQ) as usize];
        self.mem.write_bytes(0, &zeros).unwrap();
        (self.sq_tail, self.cq_head, self.ev_head) = (0, 0, 0);
        (self.rx_tail, self.rx_head, self.tx_tail) = (0, 0, 0);
        for (block, base) in [(0x100, ASQ), (0x110, ACQ), (0x140, EVQ)] {
            self.base(block, base);
            self.write(block + 8, RING);
            self.write(block + 12, 1);
        }
        for (offset, base) in [(0x200, RXB), (0x208, RXC), (0x210, TXD), (0x218, TXW)] {
            self.base(offset, base);
        }
        self.write(0x220, RING);
        self.write(0x224, RING);
        self.write(0x228, 3);
        for p in 1..=self.wires.len() as u64 {
            self.write(0x1000 + 0x80 * p, 1);
        }
        self.write(8, 1);
        self.post_buffers(RING);
        assert_eq!(self.read(0xc), 3, "ready and enabled");
    }

    pub(crate) fn base(&mut self, offset: u64, iova: u64) {
        self.write(offset, iova as u32);
        self.write(offset + 4, (iova >> 32) as u32);
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut d = [0; 4];
        self.dev.region_read(0, offset, &mut d);
        u32::from_le_bytes(d)
    }

    pub(crate) fn read64(&mut self, offset: u64) -> u64 {
        u64::from(self.read(offset)) | u64::from(self.read(offset + 4)) << 32
    }

    pub(crate) fn write(&mut self, offset: u64, v: u32) {
        self.dev.region_write(0, offset, &v.to_le_bytes());
    }

    pub(crate) fn bell(&self, offset: usize, v: u32) {
        self.bells.store_u32(offset, v, Ordering::Release).unwrap();
    }

    pub(crate) fn poke(&self, iova: u64, data: &[u8]) {
        self.mem.write_bytes((iova - BASE) as usize, data).unwrap();
    }

    pub(crate) fn peek(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut d = vec![0; len];
        self.mem.read_bytes((iova - BASE) as usize, &mut d).unwrap();
        d
    }

    /// Posts RX buffers, each 2 KiB at a place of its own.
    pub(crate) fn post_buffers(&mut self, n: u32) {
        for _ in 0..n {
            let place = u64::from(self.rx_tail % RING);
            let mut d = (RX_FRAMES + place * RX_BUFFER).to_le_bytes().to_vec();
            d.extend_from_slice(&(RX_BUFFER as u32).to_le_bytes());
            d.extend_from_slice(&self.rx_tail.to_le_bytes());
            self.poke(RXB + place * 16, &d);
            self.rx_tail += 1;
        }
        self.bell(0x400, self.rx_tail);
    }

    /// Puts a command into the ring and rings.
    pub(crate) fn submit(&mut self, command: &[u8]) {
        assert_eq!(command.len() % 64, 0);
        for slot in command.chunks(64) {
            self.poke(ASQ + u64::from(self.sq_tail % RING) * 64, slot);
            self.sq_tail = self.sq_tail.wrapping_add(1);
        }
        self.bell(0, self.sq_tail);
    }

    /// Takes the completions that are visible.
    pub(crate) fn completions(&mut self) -> Vec<Done> {
        let mut all = Vec::new();
        loop {
            let raw: [u8; 64] = self.peek(ACQ + u64::from(self.cq_head % RING) * 64, 64).try_into().unwrap();
            if le(&raw, 56, 4) != u64::from(self.cq_head.wrapping_add(1)) {
                break;
            }
            self.cq_head = self.cq_head.wrapping_add(1);
            all.push(Done { raw });
        }
        self.bell(0x40, self.cq_head);
        all
    }

    /// Runs one command to its completion.
    pub(crate) fn command(&mut self, command: &[u8]) -> Done {
        self.submit(command);
        self.dev.step();
        let all = self.completions();
        assert_eq!(all.len(), 1, "one completion, device fatal: {:?}", self.dev.fatal());
        all[0].clone()
    }

    /// The same; it must succeed.
    #[track_caller]
    pub(crate) fn must(&mut self, command: &[u8]) -> Done {
        let d = self.command(command);
        assert_eq!(d.status(), 0, "status of opcode {}, detail {}", command[0], d.detail());
        d
    }

    /// Takes the events that are visible.
    pub(crate) fn events(&mut self) -> Vec<[u8; 32]> {
        let mut all = Vec::new();
        loop {
            let raw: [u8; 32] = self.peek(EVQ + u64::from(self.ev_head % RING) * 32, 32).try_into().unwrap();
            if le(&raw, 24, 4) != u64::from(self.ev_head.wrapping_add(1)) {
                break;
            }
            self.ev_head += 1;
            all.push(raw);
        }
        self.bell(0x80, self.ev_head);
        all
    }

    /// Takes the frames in slow queue 0, and posts their buffers again.
    pub(crate) fn slow(&mut self) -> Vec<Slow> {
        let mut all = Vec::new();
        let (mut first, mut frame, mut used) = (None, Vec::new(), 0);
        loop {
            let raw: [u8; 64] = self.peek(RXC + u64::from(self.rx_head % RING) * 64, 64).try_into().unwrap();
            if le(&raw, 56, 4) != u64::from(self.rx_head.wrapping_add(1)) {
                break;
            }
            self.rx_head += 1;
            used += 1;
            let place = le(&raw, 0, 4) % u64::from(RING);
            frame.extend(self.peek(RX_FRAMES + place * RX_BUFFER, le(&raw, 4, 4) as usize));
            first.get_or_insert(raw);
            if le(&raw, 14, 2) & 1 == 0 {
                all.push(Slow { raw: first.take().unwrap(), frame: std::mem::take(&mut frame) });
            }
        }
        assert!(first.is_none(), "a frame without its end");
        self.post_buffers(used);
        all
    }

    /// Queues a frame for TX: out of `port`, or into the pipeline at (stage, metadata).
    pub(crate) fn tx(&mut self, frame: &[u8], port: u16, pipeline: Option<(u8, u32)>) {
        let place = u64::from(self.tx_tail % RING);
        let at = TX_FRAMES + place * 2048;
        self.poke(at, frame);
        let (stage, metadata) = pipeline.unwrap_or((0, 0));
        let mut d = at.to_le_bytes().to_vec();
        d.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        d.extend_from_slice(&port.to_le_bytes());
        d.extend_from_slice(&[u8::from(pipeline.is_some()), stage]);
        d.extend_from_slice(&metadata.to_le_bytes());
        d.resize(32, 0);
        self.poke(TXD + place * 32, &d);
        self.tx_tail += 1;
        self.bell(0x440, self.tx_tail);
    }

    pub(crate) fn tx_consumed(&self) -> u64 {
        le(&self.peek(TXW, 8), 0, 8)
    }

    /// A frame onto the wire of `port`.
    pub(crate) fn inject(&self, port: u16, frame: &[u8]) {
        self.wires[usize::from(port) - 1].inject(frame.to_vec()).unwrap();
    }

    /// Frames that came out of `port`.
    pub(crate) fn out(&self, port: u16) -> Vec<Vec<u8>> {
        self.wires[usize::from(port) - 1].receive_all()
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.dev.violations_total(), 0, "violations: first {:?}", self.dev.first_violation());
    }
}

/// Fields of the key blobs of the tables used here, from the spec: id, bytes.
const FIELDS: [(u16, usize); 28] = [
    (1, 2),
    (2, 4),
    (3, 6),
    (4, 6),
    (5, 2),
    (6, 2),
    (7, 2),
    (8, 2),
    (9, 2),
    (10, 1),
    (11, 1),
    (12, 1),
    (13, 4),
    (14, 4),
    (15, 16),
    (16, 16),
    (17, 4),
    (18, 2),
    (19, 2),
    (20, 2),
    (21, 1),
    (22, 4),
    (23, 4),
    (24, 6),
    (25, 6),
    (26, 3),
    (27, 4),
    (28, 4),
];

/// Which fields a kind of table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Tiny,
    Hash4,
    Full,
    /// TCAM of a stage behind one that unwraps tunnels.
    FullTunnel,
}

/// Key and mask blobs with these fields (id, value, mask).
pub(crate) fn blobs(keys: Keys, fields: &[(u16, &[u8], &[u8])]) -> (Vec<u8>, Vec<u8>) {
    let has = |id: u16| match keys {
        Keys::Tiny => [1, 3, 4, 5, 6, 7, 10, 11, 13, 14, 15, 16].contains(&id),
        Keys::Hash4 => (1..=14).contains(&id) || (18..=20).contains(&id),
        Keys::Full => id <= 25,
        Keys::FullTunnel => true,
    };
    let (mut key, mut mask) = (Vec::new(), Vec::new());
    for (id, bytes) in FIELDS.into_iter().filter(|(id, _)| has(*id)) {
        match fields.iter().find(|f| f.0 == id) {
            Some((_, v, m)) => {
                assert_eq!((v.len(), m.len()), (bytes, bytes), "field {id}");
                key.extend_from_slice(v);
                mask.extend_from_slice(m);
            }
            None => {
                key.resize(key.len() + bytes, 0);
                mask.resize(mask.len() + bytes, 0);
            }
        }
    }
    for b in [&mut key, &mut mask] {
        b.resize(b.len().next_multiple_of(8), 0);
    }
    (key, mask)
}

/// A command's header.
pub(crate) fn header(opcode: u8, table: u16, entry: u32, generation: u32, count: u32) -> Vec<u8> {
    let mut c = vec![opcode, 1, 0, 0];
    c.extend_from_slice(&table.to_le_bytes());
    c.extend_from_slice(&[0, 0]);
    c.extend_from_slice(&(0xc00_0000 + u64::from(opcode) * 0x10000 + u64::from(entry)).to_le_bytes());
    c.extend_from_slice(&entry.to_le_bytes());
    c.extend_from_slice(&generation.to_le_bytes());
    c.extend_from_slice(&count.to_le_bytes());
    c.resize(64, 0);
    c
}

fn with_payload(mut c: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    c.truncate(32);
    c.extend_from_slice(payload);
    c.resize(c.len().next_multiple_of(64), 0);
    c[1] = (c.len() / 64) as u8;
    c
}

pub(crate) fn insert(
    table: u16,
    entry: u32,
    priority: u16,
    blobs: &(Vec<u8>, Vec<u8>),
    actions: &[u8],
) -> Vec<u8> {
    let mut c = header(1, table, entry, entry + 100, 0);
    c[6..8].copy_from_slice(&priority.to_le_bytes());
    c[28..30].copy_from_slice(&(blobs.0.len() as u16).to_le_bytes());
    c[30] = (actions.len() / 16) as u8;
    with_payload(c, &[&blobs.0[..], &blobs.1, actions].concat())
}

pub(crate) fn replace(table: u16, entry: u32, generation: u32, actions: &[u8]) -> Vec<u8> {
    let mut c = header(2, table, entry, generation, 0);
    c[30] = (actions.len() / 16) as u8;
    with_payload(c, actions)
}

/// A command with a host buffer.
pub(crate) fn buffer(
    opcode: u8,
    table: u16,
    entry: u32,
    sequence: u32,
    count: u32,
    iova: u64,
    len: u32,
) -> Vec<u8> {
    let mut c = header(opcode, table, entry, sequence, count);
    c[32..40].copy_from_slice(&iova.to_le_bytes());
    c[40..44].copy_from_slice(&len.to_le_bytes());
    c
}

pub(crate) fn unit(kind: u8, arg: u16, rest: &[u8]) -> Vec<u8> {
    let mut u = vec![kind, 1];
    u.extend_from_slice(&arg.to_le_bytes());
    u.extend_from_slice(rest);
    u.resize(16, 0);
    u
}

pub(crate) fn output(port: u16) -> Vec<u8> {
    unit(1, port, &[])
}

pub(crate) fn set(field: u16, value: &[u8]) -> Vec<u8> {
    let mut v = value.to_vec();
    v.resize(6, 0);
    v.resize(6 + value.len(), 0xff);
    unit(2, field, &v)
}

/// A UDP frame from 10.0.0.1:sport to `dst`:dport, 60 bytes, with correct checksums.
pub(crate) fn udp(dst: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    f.extend_from_slice(&[0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
    f.extend_from_slice(&dst);
    f.extend_from_slice(&sport.to_be_bytes());
    f.extend_from_slice(&dport.to_be_bytes());
    f.extend_from_slice(&[0, 26, 0, 0]);
    f.extend_from_slice(b"eighteen bytes....");
    let ip = sum(&f[14..34]);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    let c = udp_checksum(&f);
    f[40..42].copy_from_slice(&c.to_be_bytes());
    f
}

/// The Internet checksum, by definition.
pub(crate) fn sum(b: &[u8]) -> u16 {
    let mut s: u32 =
        b.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}

/// The UDP checksum of an untagged IPv4 frame without options, computed anew.
pub(crate) fn udp_checksum(f: &[u8]) -> u16 {
    let len = usize::from(u16::from_be_bytes([f[16], f[17]])) - 20;
    let mut p = f[26..34].to_vec();
    p.extend_from_slice(&[0, f[23]]);
    p.extend_from_slice(&(len as u16).to_be_bytes());
    p.extend_from_slice(&f[34..34 + len]);
    p[12 + 6..12 + 8].fill(0);
    match sum(&p) {
        0 => 0xffff,
        c => c,
    }
}

pub(crate) fn device_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/device")
}

/// The bytes of a golden file.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = device_dir().join("golden").join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .flat_map(|l| l.split('#').next().unwrap_or("").split_whitespace())
        .map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|e| panic!("{b} in {name}: {e}")))
        .collect()
}
