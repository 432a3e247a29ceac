//! A NIC that several DPDK ports share, and the thread that serves it.
//!
//! Threads of the application meet it in four places: the packets ([`packets`]), which they move themselves; the list of changes, held
//! for a push; the desk, where a rule's creation is decided from memory; and the engine, which the service thread holds for
//! a turn and which queries, starts and stops ask for. Locks are taken in that order of the last three: desk, changes, engine;
//! the service thread takes deliveries while it has the engine.

pub mod cpus;
pub mod delivery;
mod device;
mod engine;
pub mod packets;
pub mod port;
pub mod room;
pub mod rules;
mod sleep;

use crate::devargs::{Devargs, NicName, Profile};
use crate::guard;
use delivery::Deliveries;
use device::OpenError;
pub use engine::Start;
use engine::{Change, Engine, Event, Turn};
use flowlift_driver::fl1::PortCounters;
use flowlift_driver::nic::{Nic as _, NicCaps, NicPort};
use flowlift_flow::PortNo;
use flowlift_offload::pipeline::Pipeline;
use flowlift_offload::planner::Stats;
use flowlift_offload::recirc::RecircGraph;
use flowlift_sim::FaultPlan;
use flowlift_sim::server::WireSpec;
use packets::Packets;
use port::Port;
use room::Room;
use rules::{Prints, Rule};
use sleep::Sleeper;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Turns without work before the service thread sleeps, and how long: packets of the device wake nobody.
const IDLE_TURNS: u32 = 256;
const NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// How long it sleeps while packets wait for room in the NIC, as at a port without link.
const STUCK_NAP: Duration = Duration::from_micros(200);
/// How long a port that closes waits for its rules to leave the hardware.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Why a port could not join a NIC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The NIC cannot be opened.
    #[error("{nic}: {}", source.told())]
    Open {
        /// The NIC.
        nic: NicName,
        /// Why.
        source: OpenError,
    },
    /// The NIC has fewer ports.
    #[error("{nic}: port={port}: its ports are 0 to {last}")]
    NoPort {
        /// The NIC.
        nic: NicName,
        /// The port asked for.
        port: u16,
        /// The last one that there is.
        last: u16,
    },
    /// Another DPDK port has it.
    #[error("{nic}: port={port} is in use by another DPDK port")]
    Taken {
        /// The NIC.
        nic: NicName,
        /// The port.
        port: u16,
    },
    /// The NIC is there with other properties.
    #[error("{nic} is there already, with another {what}; give it to the first port, or name another NIC")]
    Differs {
        /// The NIC.
        nic: NicName,
        /// The argument.
        what: &'static str,
    },
}

/// What decides over a rule's creation.
pub struct Desk {
    /// Room in the tables.
    pub room: Room,
    /// Groups that rules jump to.
    pub graph: RecircGraph,
}

/// Changes of the rules on their way to the service thread. On cache lines of its own: what lies beside it has other users.
#[derive(Default)]
#[repr(align(128))]
struct Mailbox {
    /// There are some: looked at without taking the lock.
    any: AtomicBool,
    changes: Mutex<VecDeque<Change>>,
}

impl Mailbox {
    fn push(&self, change: Change) {
        let mut changes = lock(&self.changes);
        changes.push_back(change);
        // Written only where it changes, as the service thread reads it all the time.
        if !self.any.load(Ordering::Relaxed) {
            self.any.store(true, Ordering::Release);
        }
    }

    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Hands everything over to the engine, if that has done with what it had.
    fn deliver(&self, engine: &mut Engine) {
        if !self.is_empty() {
            let mut changes = lock(&self.changes);
            engine.take(&mut changes);
            self.any.store(!changes.is_empty(), Ordering::Release);
        }
    }
}

/// See the module's head.
pub struct SharedNic {
    name: NicName,
    /// Properties of a simulated NIC, as its first port gave them.
    profile: Profile,
    seed: u64,
    faults: Option<FaultPlan>,
    caps: NicCaps,
    pipeline: Pipeline,
    prints: Prints,
    engine: Mutex<Engine>,
    /// Threads that wait for the engine; the service thread lets them go first.
    waiting: AtomicU32,
    mailbox: Mailbox,
    desk: Mutex<Desk>,
    deliveries: Arc<RwLock<Deliveries>>,
    packets: Arc<Packets>,
    ports: Mutex<Vec<Arc<Port>>>,
    gone: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    service: Arc<Sleeper>,
}

/// NICs of this process.
static NICS: Mutex<Vec<Weak<SharedNic>>> = Mutex::new(Vec::new());

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in between was a bug that is told; what it left behind is still whole values.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedNic {
    /// The NIC that the arguments name, opened if no port has it yet, and the port on it.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub fn join(args: &Devargs) -> Result<(Arc<Self>, NicPort), JoinError> {
        let mut nics = lock(&NICS);
        nics.retain(|nic| nic.strong_count() > 0);
        let found = nics.iter().filter_map(Weak::upgrade).find(|nic| nic.name == args.nic);
        let nic = match found {
            Some(nic) => {
                nic.check(args)?;
                nic
            }
            None => {
                let nic =
                    Self::open(args).map_err(|source| JoinError::Open { nic: args.nic.clone(), source })?;
                nics.push(Arc::downgrade(&nic));
                nic
            }
        };
        match nic.plug(args) {
            Ok(port) => Ok((nic, port)),
            Err(error) => {
                drop(nics);
                nic.leave_if_unused();
                Err(error)
            }
        }
    }

    fn check(&self, args: &Devargs) -> Result<(), JoinError> {
        let differs = |what| Err(JoinError::Differs { nic: self.name.clone(), what });
        if args.profile.is_some_and(|profile| profile != self.profile) {
            return differs("profile");
        }
        if args.seed.is_some_and(|seed| seed != self.seed) {
            return differs("seed");
        }
        if args.faults.is_some() && args.faults != self.faults {
            return differs("faults");
        }
        Ok(())
    }

    fn plug(&self, args: &Devargs) -> Result<NicPort, JoinError> {
        let (nic, port) = (self.name.clone(), args.port);
        let ports = u16::try_from(self.caps.ports.len()).unwrap_or(u16::MAX);
        if port >= ports {
            return Err(JoinError::NoPort { nic, port, last: ports.saturating_sub(1) });
        }
        // The NIC counts from 1.
        let nic_port = NicPort(port + 1);
        if lock(&self.ports).iter().any(|p| p.nic_port == nic_port) {
            return Err(JoinError::Taken { nic, port });
        }
        if let (Some(kind), Some(simulated)) = (&args.wire, self.engine().simulated()) {
            let spec = WireSpec { port, kind: kind.clone() };
            simulated.plug(&spec).map_err(|source| JoinError::Open { nic, source })?;
        }
        Ok(nic_port)
    }

    fn open(args: &Devargs) -> Result<Arc<Self>, OpenError> {
        let (driver, simulated) = device::open(args)?;
        let caps = driver.caps().clone();
        // Ports of the NIC are the datapath's, by the NIC's own numbers: which of them DPDK has changes as it runs.
        let ports = caps.ports.iter().map(|p| (PortNo(p.port.0.into()), p.port)).collect();
        let pipeline = Pipeline::new(&caps, &ports)
            .resuming_in_software_from(crate::rule::FIRST_DELIVERY)
            .choosing_source_ports();
        let desk = Desk { room: Room::new(&caps), graph: RecircGraph::new(pipeline.last_stage()) };
        let (deliveries, service) = (Arc::new(RwLock::default()), Arc::new(Sleeper::default()));
        let packets = Arc::new(Packets::new(&driver, Arc::clone(&deliveries), Arc::clone(&service)));
        let nic = Arc::new(Self {
            name: args.nic.clone(),
            profile: args.profile.unwrap_or(Profile::Standard),
            seed: args.seed.unwrap_or(0),
            faults: args.faults.clone(),
            engine: Mutex::new(Engine::new(driver, simulated, pipeline.clone(), Arc::clone(&packets))),
            caps,
            pipeline,
            prints: Prints::default(),
            waiting: AtomicU32::new(0),
            mailbox: Mailbox::default(),
            desk: Mutex::new(desk),
            deliveries,
            packets,
            ports: Mutex::new(Vec::new()),
            gone: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
            service,
        });
        let served = Arc::clone(&nic);
        let thread = std::thread::Builder::new()
            .name("flowlift-nic".into())
            .spawn(move || {
                cpus::use_all();
                guard::guarded("the service thread", (), || served.serve());
            })
            .map_err(OpenError::Thread)?;
        nic.service.is(thread.thread().clone());
        *lock(&nic.thread) = Some(thread);
        Ok(nic)
    }

    /// What the NIC said of itself.
    pub fn caps(&self) -> &NicCaps {
        &self.caps
    }

    /// Its tables and ports, as the planner sees them.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Its name.
    pub fn name(&self) -> &NicName {
        &self.name
    }

    /// Fingerprints of matches.
    pub fn prints(&self) -> &Prints {
        &self.prints
    }

    /// True if the NIC was pulled out.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// What decides over a rule's creation.
    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }

    /// The way of packets.
    pub fn packets(&self) -> &Arc<Packets> {
        &self.packets
    }

    /// Deliveries of the rules.
    pub fn deliveries(&self) -> &Arc<RwLock<Deliveries>> {
        &self.deliveries
    }

    /// The engine, for something short.
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let engine = lock(&self.engine);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        engine
    }

    /// The NIC's number of another DPDK port, if it is on this NIC.
    pub fn port_of(&self, id: u32) -> Option<NicPort> {
        lock(&self.ports).iter().find(|p| u32::from(p.id) == id).map(|p| p.nic_port)
    }

    /// The address that the NIC has for a port.
    pub fn address(&self, port: NicPort) -> Option<[u8; 6]> {
        self.engine().nic().port_address(port).ok().filter(|a| *a != [0; 6])
    }

    /// A DPDK port for a port of the NIC is there.
    pub fn attach(&self, port: &Arc<Port>) {
        let mut engine = self.engine();
        port.link.store(engine.nic().link(port.nic_port), Ordering::Release);
        engine.attach(Arc::clone(port));
        drop(engine);
        lock(&self.ports).push(Arc::clone(port));
    }

    /// A DPDK port goes, after its rules were removed. The last one takes the NIC with it.
    pub fn detach(&self, port: &Arc<Port>) {
        self.settle(FLUSH_DEADLINE);
        let mut engine = self.engine();
        engine.detach(port);
        if let Some(simulated) = engine.simulated() {
            simulated.unplug(port.nic_port.0.saturating_sub(1));
        }
        drop(engine);
        lock(&self.ports).retain(|p| !Arc::ptr_eq(p, port));
        // A callback that runs now ends before this returns.
        *port.device() = None;
        self.leave_if_unused();
    }

    /// A NIC that no port has goes.
    pub fn leave_if_unused(&self) {
        // With the list of NICs held, nobody joins meanwhile.
        let mut nics = lock(&NICS);
        if !lock(&self.ports).is_empty() {
            return;
        }
        nics.retain(|nic| !std::ptr::eq(nic.as_ptr(), self));
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It fails only after a panic, which has been told.
            let _ = thread.join();
        }
        let violations = self.engine().simulated().map_or(0, |s| s.violations());
        if violations > 0 {
            guard::error(&format!(
                "{}: {violations} violations of the device's protocol: a bug of its driver",
                self.name
            ));
        }
    }

    /// A port's queues are used from now on.
    pub fn start(&self, start: Start) {
        start.port.started.store(true, Ordering::Release);
        self.engine().start(start);
        self.wake();
    }

    /// A port's queues are touched no more once this returns.
    pub fn stop(&self, port: &Arc<Port>) {
        port.started.store(false, Ordering::Release);
        self.engine().stop(port);
    }

    /// Takes a rule on.
    pub fn put(&self, rule: Arc<Rule>) {
        self.mailbox.push(Change::Put(rule));
        self.wake();
    }

    /// Lets a rule go.
    pub fn remove(&self, rule: Arc<Rule>) {
        self.mailbox.push(Change::Remove(rule));
        self.wake();
    }

    /// Packets and bytes that hardware counted for a rule.
    pub fn query(&self, rule: &Rule, reset: bool) -> (u64, u64) {
        self.engine().query(rule, reset)
    }

    /// What the NIC counted for a port on the wire.
    pub fn port_counters(&self, port: NicPort) -> Option<PortCounters> {
        self.engine().nic().port_counters(port).ok()
    }

    /// What the planner counted.
    pub fn planner_stats(&self) -> Stats {
        self.engine().planner_stats()
    }

    /// Completions that the driver took from the NIC: of updates, and of the commands of its bring-up.
    pub fn completions(&self) -> u64 {
        self.engine().nic().stats().completions
    }

    /// Breaches of the device's protocol that the NIC found: bugs of its driver.
    pub fn violations(&self) -> u64 {
        self.engine().nic().violation_count().unwrap_or(0).into()
    }

    /// Waits until every change has its answer; false if that takes longer than `deadline`.
    pub fn settle(&self, deadline: Duration) -> bool {
        let start = Instant::now();
        loop {
            self.wake();
            if self.is_gone() || self.mailbox.is_empty() && self.engine().is_settled() {
                return true;
            }
            if start.elapsed() > deadline {
                return false;
            }
            std::thread::sleep(NAP);
        }
    }

    fn wake(&self) {
        self.service.wake();
    }

    /// The service thread.
    fn serve(&self) {
        let (mut idle, mut nap) = (0, NAP);
        let mut events = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            while self.waiting.load(Ordering::Acquire) > 0 {
                std::thread::yield_now();
            }
            let turn = {
                let mut engine = lock(&self.engine);
                self.mailbox.deliver(&mut engine);
                engine.turn(&mut events)
            };
            events.drain(..).for_each(|event| self.tell(event));
            if turn == Turn::Stuck {
                // The NIC needs the CPU more, and a thread that goes on sending comes by itself: it does not wake this one.
                std::thread::sleep(STUCK_NAP);
                continue;
            }
            (idle, nap) = if turn == Turn::Idle { (idle + 1, nap) } else { (0, NAP) };
            if idle < IDLE_TURNS {
                if turn != Turn::Worked {
                    std::thread::yield_now();
                }
                continue;
            }
            self.service.sleep(nap, || !self.mailbox.is_empty());
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    /// Tells DPDK, and through it the application, what happened. No lock is held but the port's own.
    fn tell(&self, event: Event) {
        match event {
            Event::Link(port) => crate::ethdev::tell_link(&port),
            Event::Gone(port) => {
                self.gone.store(true, Ordering::Relaxed);
                crate::ethdev::tell_gone(&port);
            }
        }
    }
}
