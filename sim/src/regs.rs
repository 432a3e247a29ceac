//! Registers (FL1.md, section 2; regmap.toml): what is where, who may write it, and in which order.

use crate::device::{FatalCode, Fl1, ResetCause};
use crate::host::{BELL_ACQ_HEAD, BELL_ASQ_TAIL, BELL_EVQ_HEAD, bell_done, bell_rx, bell_tx};
use crate::order::Order;
use crate::profile::{MAX_FRAME, MAX_SLOTS, PARSER_FLAGS};
use crate::queue::{Half, Queue};
use crate::violation::{Violation, ViolationCode as V};

const MAGIC: u32 = 0x3130_4c46;
const VERSION: u32 = 0x0001_0003;
const RESET_KEY: u32 = 0x5453_4552;
const CTRL: u64 = 0x008;
const RESET: u64 = 0x020;
const SLOWQ: u64 = 0x200;
const SLOWQ_STRIDE: u64 = 0x40;
const PORTS: u64 = 0x1000;
const PORT_STRIDE: u64 = 0x80;
const ENABLE: u32 = 1;
/// SLOWQ_CTRL: both halves, and order across the slow path.
const RX_ENABLE: u32 = 1;
const TX_ENABLE: u32 = 2;
const ORDER: u32 = 4;
/// First octet of the ports' MAC addresses: locally administered.
const MAC_PREFIX: u64 = 0x02f1_0100_0000;

/// A queue by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueId {
    Asq,
    Acq,
    Evq,
    Rx(usize),
    Tx(usize),
}

/// A register that a queue's configuration consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Base(usize, Half),
    Size,
}

/// What an offset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reg {
    /// Read-only, 32 bits.
    Read(u32),
    /// Read-only, one half of 64 bits: reading the low half latches the other.
    ReadHalf(u64, Half),
    Ctrl,
    Reset,
    Queue(QueueId, Part),
    QueueCtrl(QueueId),
    SlowCtrl(usize),
    PortCtrl(usize),
    Meter(MeterReg),
}

/// A register of the meter window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MeterReg {
    Id,
    Rate,
    Burst,
    Ctrl,
    Level(Half),
    Charge,
}

/// The register at `offset` of a block with LO and HI of `value` at 0 and 4.
fn half(value: u64, offset: u64) -> Reg {
    Reg::ReadHalf(value, if offset & 4 == 0 { Half::Lo } else { Half::Hi })
}

fn base(offset: u64) -> Half {
    if offset & 4 == 0 { Half::Lo } else { Half::Hi }
}

impl Fl1 {
    fn locate(&self, offset: u64) -> Option<Reg> {
        let p = &self.profile;
        let (code, addr) = self.fatal.map_or((0, 0), |(c, a)| (c as u32, a));
        let (viol, info) = self.violations.first.map_or((0, 0), |v| (v.code as u32, v.info));
        let status = 1 | u32::from(self.enable) << 1 | u32::from(self.fatal.is_some()) << 2;
        Some(match offset {
            0x000 => Reg::Read(MAGIC),
            0x004 => Reg::Read(VERSION),
            CTRL => Reg::Ctrl,
            0x00c => Reg::Read(status),
            0x010 => Reg::Read(code),
            0x018 | 0x01c => half(addr, offset),
            RESET => Reg::Reset,
            0x024 => Reg::Read(self.reset_cause as u32),
            0x028 => Reg::Read(self.reset_count),
            0x030 => Reg::Read(self.violations.count),
            0x034 => Reg::Read(viol),
            0x038 | 0x03c => half(info, offset),
            0x040 => Reg::Read(self.violations.total),
            0x044 => Reg::Read(self.heartbeat),
            0x048 | 0x04c => half(self.clock.now_ns(), offset),
            0x050 => Reg::Read(u32::from(p.ports())),
            0x054 => Reg::Read(u32::from(p.slow_queues)),
            0x058 => Reg::Read(p.tables.len() as u32),
            0x05c => Reg::Read(u32::from(p.stages)),
            0x060 => Reg::Read(p.meters),
            0x064 => Reg::Read(self.caps.len() as u32),
            0x068 => Reg::Read(MAX_FRAME as u32),
            0x06c => Reg::Read(PARSER_FLAGS),
            0x070 => Reg::Read(u32::from(MAX_SLOTS)),
            0x074 => Reg::Read(self.events.lost),
            0x080 => Reg::Meter(MeterReg::Id),
            0x084 => Reg::Meter(MeterReg::Rate),
            0x088 => Reg::Meter(MeterReg::Burst),
            0x08c => Reg::Meter(MeterReg::Ctrl),
            0x090 | 0x094 => Reg::Meter(MeterReg::Level(base(offset))),
            0x098 => Reg::Meter(MeterReg::Charge),
            0x100..0x110 => admin_queue(QueueId::Asq, offset),
            0x110..0x120 => admin_queue(QueueId::Acq, offset),
            0x120 => Reg::Read(self.asq.index),
            0x140..0x150 => admin_queue(QueueId::Evq, offset),
            SLOWQ..PORTS => {
                let q = ((offset - SLOWQ) / SLOWQ_STRIDE) as usize;
                let stalls = self.slow.get(q)?.stalls;
                match (offset - SLOWQ) % SLOWQ_STRIDE {
                    0x00 | 0x04 => Reg::Queue(QueueId::Rx(q), Part::Base(0, base(offset))),
                    0x08 | 0x0c => Reg::Queue(QueueId::Rx(q), Part::Base(1, base(offset))),
                    0x10 | 0x14 => Reg::Queue(QueueId::Tx(q), Part::Base(0, base(offset))),
                    0x18 | 0x1c => Reg::Queue(QueueId::Tx(q), Part::Base(1, base(offset))),
                    0x20 => Reg::Queue(QueueId::Rx(q), Part::Size),
                    0x24 => Reg::Queue(QueueId::Tx(q), Part::Size),
                    0x28 => Reg::SlowCtrl(q),
                    0x2c => Reg::Read(stalls),
                    _ => return None,
                }
            }
            _ => {
                let number = offset.checked_sub(PORTS)? / PORT_STRIDE;
                let i = (number as usize).checked_sub(1)?;
                let port = self.ports.get(i)?;
                let virtual_function = i >= usize::from(p.physical_ports);
                match offset % PORT_STRIDE {
                    0x00 => Reg::PortCtrl(i),
                    0x04 => Reg::Read(u32::from(self.link(port)) | u32::from(virtual_function) << 4),
                    0x08 | 0x0c => half(MAC_PREFIX | number, offset),
                    at @ 0x10..0x48 => half(port.counters[((at - 0x10) / 8) as usize], offset),
                    _ => return None,
                }
            }
        })
    }

    fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        match id {
            QueueId::Asq => Some(&mut self.asq),
            QueueId::Acq => Some(&mut self.acq),
            QueueId::Evq => Some(&mut self.evq),
            QueueId::Rx(q) => self.slow.get_mut(q).map(|s| &mut s.rx),
            QueueId::Tx(q) => self.slow.get_mut(q).map(|s| &mut s.tx),
        }
    }

    /// Finds a register for an access, or latches why there is none.
    fn access(&mut self, bar: u8, offset: u64, width: usize) -> Option<Reg> {
        if width != 4 || offset & 3 != 0 {
            self.violate(Violation::new(V::BadWidth, offset | (width as u64) << 32));
            return None;
        }
        let reg = if bar == 0 { self.locate(offset) } else { None };
        if reg.is_none() {
            self.violate(Violation::new(V::BadOffset, offset));
        }
        reg
    }

    pub(crate) fn read_register(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        let value = match self.access(bar, offset, data.len()) {
            None | Some(Reg::Reset | Reg::Meter(MeterReg::Ctrl)) => 0,
            Some(Reg::Read(v)) => v,
            Some(Reg::ReadHalf(v, Half::Lo)) => {
                self.latched.insert(offset + 4, (v >> 32) as u32);
                v as u32
            }
            Some(Reg::ReadHalf(v, Half::Hi)) => {
                self.latched.get(&offset).copied().unwrap_or((v >> 32) as u32)
            }
            Some(Reg::Ctrl) => u32::from(self.enable),
            Some(Reg::Queue(id, part)) => self.queue(id).map_or(0, |q| match part {
                Part::Base(n, Half::Lo) => q.base(n) as u32,
                Part::Base(n, Half::Hi) => (q.base(n) >> 32) as u32,
                Part::Size => q.size(),
            }),
            Some(Reg::QueueCtrl(id)) => self.queue(id).map_or(0, |q| u32::from(q.enabled)),
            Some(Reg::SlowCtrl(q)) => self.slow.get(q).map_or(0, |s| {
                let bit = |on: bool, bit: u32| if on { bit } else { 0 };
                bit(s.rx.enabled, RX_ENABLE) | bit(s.tx.enabled, TX_ENABLE) | bit(s.order.is_some(), ORDER)
            }),
            Some(Reg::PortCtrl(i)) => self.ports.get(i).map_or(0, |p| u32::from(p.enabled)),
            Some(Reg::Meter(MeterReg::Id)) => self.window.id,
            Some(Reg::Meter(MeterReg::Rate)) => self.window.rate,
            Some(Reg::Meter(MeterReg::Burst)) => self.window.burst,
            Some(Reg::Meter(MeterReg::Level(Half::Lo))) => self.window.level as u32,
            Some(Reg::Meter(MeterReg::Level(Half::Hi))) => (self.window.level >> 32) as u32,
            Some(Reg::Meter(MeterReg::Charge)) => self.window.answer,
        };
        for (d, b) in data.iter_mut().zip(value.to_le_bytes().into_iter().chain(std::iter::repeat(0))) {
            *d = b;
        }
    }

    pub(crate) fn write_register(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let Some(reg) = self.access(bar, offset, data.len()) else { return };
        let v = crate::bytes::le32(data, 0);
        let outcome = match reg {
            Reg::Read(_) | Reg::ReadHalf(..) => {
                self.violate(Violation::new(V::ReadOnly, offset));
                return;
            }
            Reg::Reset if v == RESET_KEY => {
                self.reset_by(ResetCause::Register);
                Ok(())
            }
            Reg::Reset => Err(V::BadValue),
            Reg::Ctrl => self.write_ctrl(v),
            Reg::Queue(id, part) => self.queue(id).map_or(Err(V::BadOffset), |q| match part {
                Part::Base(n, half) => q.set_base(n, half, v),
                Part::Size => q.set_size(v),
            }),
            Reg::QueueCtrl(_) if v & !ENABLE != 0 => Err(V::ReservedBits),
            Reg::QueueCtrl(id) => self.switch(id, v & ENABLE != 0),
            Reg::SlowCtrl(_) if v & !(RX_ENABLE | TX_ENABLE | ORDER) != 0 => Err(V::ReservedBits),
            Reg::SlowCtrl(q) => {
                let rx = self.switch_rx(q, v & RX_ENABLE != 0, v & ORDER != 0);
                rx.and_then(|()| self.switch(QueueId::Tx(q), v & TX_ENABLE != 0))
            }
            Reg::PortCtrl(_) if v & !ENABLE != 0 => Err(V::ReservedBits),
            Reg::PortCtrl(i) => {
                if let Some(p) = self.ports.get_mut(i) {
                    p.enabled = v & ENABLE != 0;
                }
                Ok(())
            }
            Reg::Meter(reg) => self.write_meter_register(reg, v),
        };
        if let Err(code) = outcome {
            self.violate(Violation::new(code, offset | u64::from(v) << 32));
        }
    }

    fn write_meter_register(&mut self, reg: MeterReg, v: u32) -> Result<(), V> {
        let w = &mut self.window;
        match reg {
            MeterReg::Id => w.id = v,
            MeterReg::Rate => w.rate = v,
            MeterReg::Burst => w.burst = v,
            MeterReg::Level(Half::Lo) => w.level = w.level & !0xffff_ffff | u64::from(v),
            MeterReg::Level(Half::Hi) => w.level = w.level & 0xffff_ffff | u64::from(v) << 32,
            MeterReg::Ctrl => return self.control_meter(v),
            MeterReg::Charge => self.charge_meter(v),
        }
        Ok(())
    }

    fn write_ctrl(&mut self, v: u32) -> Result<(), V> {
        if v & !ENABLE != 0 {
            return Err(V::ReservedBits);
        }
        if v & ENABLE != 0 && !(self.asq.enabled && self.acq.enabled) {
            return Err(V::BadSequence);
        }
        self.enable = v & ENABLE != 0;
        Ok(())
    }

    /// Enables or disables the receive half of a slow queue; its order comes and goes with it.
    fn switch_rx(&mut self, q: usize, on: bool, order: bool) -> Result<(), V> {
        let Some(slow) = self.slow.get(q) else { return Err(V::BadOffset) };
        let was_on = slow.rx.enabled;
        if order && !on || was_on && on && order != slow.order.is_some() {
            return Err(V::BadSequence);
        }
        if order && !was_on {
            let value = self.host.bell(bell_done(q));
            if value != 0 {
                let info = bell_done(q) as u64 | u64::from(value) << 32;
                self.violate(Violation::new(V::DoorbellNotZero, info));
                return Ok(());
            }
        }
        self.switch(QueueId::Rx(q), on)?;
        if let Some(slow) = self.slow.get_mut(q)
            && slow.rx.enabled != was_on
        {
            slow.order = (slow.rx.enabled && order).then(Order::new);
        }
        Ok(())
    }

    /// Enables or disables a queue.
    fn switch(&mut self, id: QueueId, on: bool) -> Result<(), V> {
        let (bell, admin) = match id {
            QueueId::Asq => (BELL_ASQ_TAIL, true),
            QueueId::Acq => (BELL_ACQ_HEAD, true),
            QueueId::Evq => (BELL_EVQ_HEAD, false),
            QueueId::Rx(q) => (bell_rx(q), false),
            QueueId::Tx(q) => (bell_tx(q), false),
        };
        let value = self.host.bell(bell);
        let device_enabled = self.enable;
        let Some(queue) = self.queue(id) else { return Err(V::BadOffset) };
        if queue.enabled == on {
            return Ok(());
        }
        if !on {
            if admin && device_enabled {
                return Err(V::BadSequence);
            }
            queue.reset();
            if let QueueId::Rx(q) = id {
                self.slow[q].rx_produced = 0;
            }
            return Ok(());
        }
        if !queue.ready() {
            return Err(V::BadSequence);
        }
        if value != 0 {
            // Latched here, because its details are the doorbell's and not the register's.
            self.violate(Violation::new(V::DoorbellNotZero, bell as u64 | u64::from(value) << 32));
            return Ok(());
        }
        queue.enabled = true;
        Ok(())
    }

    /// Looks at the doorbells of all enabled queues.
    pub(crate) fn look_at_bells(&mut self) {
        let mut ids =
            vec![(QueueId::Asq, BELL_ASQ_TAIL), (QueueId::Acq, BELL_ACQ_HEAD), (QueueId::Evq, BELL_EVQ_HEAD)];
        for q in 0..self.slow.len() {
            ids.push((QueueId::Rx(q), bell_rx(q)));
            ids.push((QueueId::Tx(q), bell_tx(q)));
        }
        for (id, offset) in ids {
            let value = self.host.bell(offset);
            let Some(queue) = self.queue(id).filter(|q| q.enabled) else { continue };
            let outcome = match id {
                QueueId::Acq | QueueId::Evq => queue.ring_consumer(value, offset),
                _ => queue.ring_producer(value, offset),
            };
            if let Err(v) = outcome {
                self.violate(v);
            }
        }
        self.look_at_order();
    }

    /// Looks at what the slow path is done with.
    fn look_at_order(&mut self) {
        for q in 0..self.slow.len() {
            let value = self.host.bell(bell_done(q));
            let slow = &mut self.slow[q];
            let rung = slow.order.as_mut().map(|order| order.ring(value, bell_done(q), slow.rx_produced));
            if let Some(Err(v)) = rung {
                self.violate(v);
            }
        }
    }

    /// Fatal: the driver's commands cannot be told apart any more.
    pub(crate) fn desync(&mut self) {
        let at = self.asq.element(0, self.asq.index, 64);
        self.die(FatalCode::RingDesync, at);
    }
}

fn admin_queue(id: QueueId, offset: u64) -> Reg {
    match offset & 0xf {
        0x0 | 0x4 => Reg::Queue(id, Part::Base(0, base(offset))),
        0x8 => Reg::Queue(id, Part::Size),
        _ => Reg::QueueCtrl(id),
    }
}
