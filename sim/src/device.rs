//! The device: its state, its reset, and its face towards the bus.

use crate::admin::Admin;
use crate::clock::Clock;
use crate::event::{Event, Events};
use crate::fault::{FaultPlan, FaultRecord, Faults};
use crate::host::{BAR2_SIZE, Host};
use crate::meter::{Meter, Window};
use crate::order::Order;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::table::Table;
use crate::violation::{Violation, ViolationRegister};
use crate::wire::{NoWire, Wire};
use flowlift_bus::{BarSpec, DeviceModel, DmaBus, DmaFault, DmaMem, IrqSink, PciIdentity};
use std::collections::BTreeMap;

/// BAR0: registers.
pub(crate) const BAR0_SIZE: u64 = 0x4000;
const IDENTITY: PciIdentity =
    PciIdentity { vendor: 0x1d9b, device: 0xf101, revision: 0x01, class: 0x02_0000 };
const BARS: [BarSpec; 2] = [
    BarSpec { index: 0, size: BAR0_SIZE, mapped: false },
    BarSpec { index: 2, size: BAR2_SIZE, mapped: true },
];
/// Vectors before those of the slow queues.
pub(crate) const VECTOR_ADMIN: u16 = 0;
pub(crate) const VECTOR_EVENTS: u16 = 1;
pub(crate) const VECTOR_SLOW: u16 = 2;

/// How a simulated device behaves.
pub struct Config {
    /// Seed of everything random.
    pub seed: u64,
    /// Faults to inject.
    pub faults: FaultPlan,
    /// The device clock.
    pub clock: Box<dyn Clock>,
}

/// Codes of the FATAL_CODE register (FL1.md, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FatalCode {
    /// An admin command could not be fetched.
    AdminFetch = 1,
    /// An admin completion could not be written.
    AdminCompletion = 2,
    /// An event could not be written.
    Event = 3,
    /// An RX buffer or completion could not be written.
    Rx = 4,
    /// A TX descriptor or frame could not be fetched.
    TxFetch = 5,
    /// A TX consumer index could not be written.
    TxWriteback = 6,
    /// A counter page could not be written.
    CounterPage = 7,
    /// The admin ring's framing is lost.
    RingDesync = 8,
    /// An RX buffer descriptor could not be fetched.
    RxFetch = 9,
}

/// Values of the RESET_CAUSE register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetCause {
    /// Never reset.
    PowerOn = 0,
    /// Function level reset.
    Flr = 1,
    /// The RESET register.
    Register = 2,
    /// By itself.
    Device = 3,
}

/// A port and what it counted.
pub(crate) struct Port {
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) enabled: bool,
    /// Link state that the last event told.
    pub(crate) link_told: bool,
    /// An injected flap lasts until this step.
    pub(crate) flap_until: u64,
    /// RX_PACKETS, RX_BYTES, TX_PACKETS, TX_BYTES, RX_SLOW, TX_DROPPED, RX_HELD.
    pub(crate) counters: [u64; 7],
}

/// Indices into [`Port::counters`].
pub(crate) mod port_counter {
    pub(crate) const RX_PACKETS: usize = 0;
    pub(crate) const RX_BYTES: usize = 1;
    pub(crate) const TX_PACKETS: usize = 2;
    pub(crate) const TX_BYTES: usize = 3;
    pub(crate) const RX_SLOW: usize = 4;
    pub(crate) const TX_DROPPED: usize = 5;
    pub(crate) const RX_HELD: usize = 6;
}

/// A slow queue: RX and TX halves.
pub(crate) struct SlowQueue {
    /// Bases: buffers, completions.
    pub(crate) rx: Queue,
    /// RX completions produced; wraps.
    pub(crate) rx_produced: u32,
    /// Bases: descriptors, write-back.
    pub(crate) tx: Queue,
    pub(crate) stalls: u32,
    /// With ORDER: what the slow path is not done with.
    pub(crate) order: Option<Order>,
}

/// The FL1 device model.
///
/// It has no threads: whoever owns it calls [`Fl1::step`]. Ports get their wires by [`Fl1::plug`].
pub struct Fl1 {
    pub(crate) profile: Profile,
    pub(crate) caps: Vec<u8>,
    pub(crate) clock: Box<dyn Clock>,
    /// The clock at the beginning of the step: one time for all that a step does.
    pub(crate) now: u64,
    pub(crate) faults: Faults,
    pub(crate) host: Host,
    pub(crate) violations: ViolationRegister,
    pub(crate) enable: bool,
    pub(crate) bus_master: bool,
    pub(crate) fatal: Option<(FatalCode, u64)>,
    pub(crate) hung: bool,
    pub(crate) gone: bool,
    pub(crate) reset_cause: ResetCause,
    pub(crate) reset_count: u32,
    pub(crate) heartbeat: u32,
    /// HI halves latched by reads of their LO, by offset.
    pub(crate) latched: BTreeMap<u64, u32>,
    pub(crate) asq: Queue,
    pub(crate) acq: Queue,
    pub(crate) evq: Queue,
    pub(crate) slow: Vec<SlowQueue>,
    /// Port p is at p - 1.
    pub(crate) ports: Vec<Port>,
    pub(crate) tables: Vec<Table>,
    pub(crate) meters: Vec<Option<Meter>>,
    /// Registers by which the slow path uses meters.
    pub(crate) window: Window,
    /// IOVA of the meter page.
    pub(crate) meter_page: Option<u64>,
    pub(crate) admin: Admin,
    pub(crate) events: Events,
    /// Frame buffer, kept to spare allocations.
    pub(crate) frame: Vec<u8>,
}

impl Fl1 {
    /// A device of this profile, powered on, with nothing plugged in.
    pub fn new(profile: Profile, config: Config) -> Self {
        let ports = (0..profile.ports())
            .map(|_| Port {
                wire: Box::new(NoWire),
                enabled: false,
                link_told: false,
                flap_until: 0,
                counters: [0; 7],
            })
            .collect();
        let slow = (0..profile.slow_queues)
            .map(|_| SlowQueue {
                rx: Queue::new(&[64, 64]),
                rx_produced: 0,
                tx: Queue::new(&[64, 8]),
                stalls: 0,
                order: None,
            })
            .collect();
        Self {
            caps: profile.capability_blob(),
            now: config.clock.now_ns(),
            clock: config.clock,
            faults: Faults::new(config.seed, &config.faults),
            host: Host::default(),
            violations: ViolationRegister::default(),
            enable: false,
            bus_master: false,
            fatal: None,
            hung: false,
            gone: false,
            reset_cause: ResetCause::PowerOn,
            reset_count: 0,
            heartbeat: 0,
            latched: BTreeMap::new(),
            asq: Queue::new(&[64]),
            acq: Queue::new(&[64]),
            evq: Queue::new(&[64]),
            slow,
            ports,
            tables: profile.tables.iter().cloned().map(Table::new).collect(),
            meters: vec![None; profile.meters as usize],
            window: Window::default(),
            meter_page: None,
            admin: Admin::default(),
            events: Events::default(),
            frame: Vec::new(),
            profile,
        }
    }

    /// Plugs a wire into a port, numbered from 1. False: there is no such port. A device at work tells of a link that
    /// comes or goes with the wire.
    pub fn plug(&mut self, port: u16, wire: Box<dyn Wire>) -> bool {
        let at_work = self.enable;
        let Some(p) = usize::from(port).checked_sub(1).and_then(|i| self.ports.get_mut(i)) else {
            return false;
        };
        if !at_work {
            p.link_told = wire.link_up();
        }
        p.wire = wire;
        true
    }

    /// Takes the memory for the first `entries` ids of a table from the host now, until the next reset or flush of the
    /// table. A NIC's RAM is there from the start; the model's comes page by page as entries do, which a benchmark would
    /// measure.
    pub fn populate(&mut self, table: u16, entries: u32) {
        if let Some(t) = self.tables.get_mut(usize::from(table)) {
            t.populate(entries);
        }
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Violations since power-on; every test wants 0.
    pub fn violations_total(&self) -> u32 {
        self.violations.total
    }

    /// The first violation since the last reset.
    pub fn first_violation(&self) -> Option<Violation> {
        self.violations.first
    }

    /// Faults injected so far, oldest first.
    pub fn fault_log(&self) -> &[FaultRecord] {
        self.faults.log()
    }

    /// The fatal error that stopped the device.
    pub fn fatal(&self) -> Option<FatalCode> {
        self.fatal.map(|(code, _)| code)
    }

    /// The device was unplugged by a fault.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Faults can strike it, some of them after so many steps.
    pub fn has_faults(&self) -> bool {
        self.faults.any_enabled()
    }

    /// The device hangs by a fault.
    pub fn is_hung(&self) -> bool {
        self.hung
    }

    /// Unplugs the device: from now on it reads as all-ones and does nothing.
    pub fn unplug(&mut self) {
        self.gone = true;
        self.enable = false;
        self.host.fill_bells(0xff);
        self.host.clear_pending();
    }

    pub(crate) fn violate(&mut self, v: Violation) {
        self.violations.latch(v);
    }

    /// Stops the device.
    pub(crate) fn die(&mut self, code: FatalCode, addr: u64) {
        if self.fatal.is_some() {
            return;
        }
        self.fatal = Some((code, addr));
        self.events.queue(Event::fatal(code as u32));
        // The event may be the very thing that cannot be written; then the register has to do.
        self.flush_events();
    }

    pub(crate) fn die_of(&mut self, code: FatalCode, fault: DmaFault) {
        self.die(code, fault.iova);
    }

    /// Every way of being reset.
    pub(crate) fn reset_by(&mut self, cause: ResetCause) {
        self.reset_cause = cause;
        self.reset_count = self.reset_count.wrapping_add(1);
        self.violations.reset();
        self.enable = false;
        self.fatal = None;
        self.hung = false;
        self.heartbeat = 0;
        self.latched.clear();
        for q in [&mut self.asq, &mut self.acq, &mut self.evq] {
            q.reset();
        }
        for s in &mut self.slow {
            s.rx.reset();
            s.tx.reset();
            (s.rx_produced, s.stalls, s.order) = (0, 0, None);
        }
        for p in &mut self.ports {
            p.enabled = false;
            p.counters = [0; 7];
        }
        self.tables.iter_mut().for_each(Table::reset);
        self.meters.fill(None);
        (self.window, self.meter_page) = (Window::default(), None);
        self.admin = Admin::default();
        self.events = Events::default();
        self.host.clear_pending();
        self.host.fill_bells(0);
    }

    /// The link as it is now, flaps included.
    pub(crate) fn link(&self, port: &Port) -> bool {
        port.flap_until <= self.faults.step && port.wire.link_up()
    }
}

impl DeviceModel for Fl1 {
    fn identity(&self) -> PciIdentity {
        IDENTITY
    }
    fn bars(&self) -> &[BarSpec] {
        &BARS
    }
    fn msix_vectors(&self) -> u16 {
        VECTOR_SLOW + self.profile.slow_queues
    }
    fn attach(&mut self, dma: Box<dyn DmaBus>, irq: Box<dyn IrqSink>, mapped_bars: Vec<(u8, DmaMem)>) {
        let bells = mapped_bars.into_iter().find(|(bar, _)| *bar == 2).map(|(_, mem)| mem);
        self.host.attach(dma, irq, bells);
    }
    fn region_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.gone {
            data.fill(0xff);
        } else {
            self.read_register(bar, offset, data);
        }
    }
    fn region_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if !self.gone {
            self.write_register(bar, offset, data);
        }
    }
    fn bus_master(&mut self, enabled: bool) {
        self.bus_master = enabled;
    }
    fn reset(&mut self) {
        if !self.gone {
            self.reset_by(ResetCause::Flr);
        }
    }
}
