//! The service thread's work: rules to the planner, packets between NIC and queues, and what the NIC reports.
//!
//! One turn takes everything that has come in, in this order: rules; packets from the slow queues to the receive rings; packets
//! from the transmit rings to the NIC; completions and events, and the updates that follow. It never blocks.

use super::delivery::{Deliveries, spread};
use super::device::Simulated;
use super::port::{Port, RxQueue, TxQueue, free};
use super::rules::{Rule, Rules, Taken};
use crate::rule::FIRST_DELIVERY;
use crate::sys;
use flowlift_driver::fl1::Fl1;
use flowlift_driver::nic::{Nic, NicError, NicState, SlowRx, SlowTx};
use flowlift_offload::pipeline::Pipeline;
use flowlift_offload::planner::{Planner, Stats};
use std::collections::VecDeque;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// Packets taken from the slow queues per turn, and from a transmit ring.
const RX_BATCH: usize = 256;
const TX_BATCH: usize = 64;
/// Buffers that a receive queue's pool is asked for at once.
const SPARE: usize = 32;
/// Turns between two looks at the links.
const LINK_TURNS: u32 = 64;

/// A change of the rules, in the order of the calls.
pub enum Change {
    /// A rule was created.
    Put(Arc<Rule>),
    /// A rule was destroyed.
    Remove(Arc<Rule>),
}

/// What the service thread tells DPDK once it holds no lock.
pub enum Event {
    /// The link of a port changed.
    Link(Arc<Port>),
    /// The NIC is gone.
    Gone(Arc<Port>),
}

/// A receive queue as the service thread fills it.
struct Filling {
    queue: Arc<RxQueue>,
    /// Fresh buffers.
    spare: Vec<*mut sys::rte_mbuf>,
    /// Packets of this turn.
    filled: Vec<*mut sys::rte_mbuf>,
    bytes: u64,
}

/// A transmit queue as the service thread empties it.
struct Emptying {
    queue: Arc<TxQueue>,
    /// Packets taken from the ring that the NIC had no room for.
    held: VecDeque<*mut sys::rte_mbuf>,
}

/// A started port.
struct Active {
    port: Arc<Port>,
    rx: Vec<Filling>,
    tx: Vec<Emptying>,
}

// SAFETY: the raw pointers are packets that this thread took out of a pool or a ring, and nobody else has.
unsafe impl Send for Active {}

impl Drop for Active {
    fn drop(&mut self) {
        for rx in &mut self.rx {
            free(&mut rx.spare);
            free(&mut rx.filled);
        }
        for tx in &mut self.tx {
            free(tx.held.make_contiguous());
        }
    }
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Something was done.
    Worked,
    /// Nothing could be done before the NIC does something, which may need the same CPU.
    Waiting,
    /// There was nothing to do.
    Idle,
}

/// What a port gives the engine when it starts.
pub struct Start {
    /// Port.
    pub port: Arc<Port>,
    /// Its receive queues.
    pub rx: Vec<Arc<RxQueue>>,
    /// Its transmit queues.
    pub tx: Vec<Arc<TxQueue>>,
}

/// See the module's head.
pub struct Engine {
    nic: Fl1,
    /// The simulated device, if that is what the NIC is. After `nic`, which talks to it as it is dropped.
    simulated: Option<Simulated>,
    planner: Planner,
    rules: Rules,
    active: Vec<Active>,
    /// By the NIC's port number, all probed ports: for links and events.
    ports: Vec<Arc<Port>>,
    /// Packets that a failed NIC gave back.
    unsent: VecDeque<(SlowTx, Vec<u8>)>,
    changes: Vec<Change>,
    /// Rules that left the hardware: their deliveries can be used again.
    released: Vec<u32>,
    scratch: Vec<u8>,
    turns: u32,
    gone_told: bool,
    start: Instant,
}

impl Engine {
    /// An engine for a NIC that was just brought up.
    pub fn new(nic: Fl1, simulated: Option<Simulated>, pipeline: Pipeline) -> Self {
        Self {
            nic,
            simulated,
            planner: Planner::over(pipeline),
            rules: Rules::default(),
            active: Vec::new(),
            ports: Vec::new(),
            unsent: VecDeque::new(),
            changes: Vec::new(),
            released: Vec::new(),
            scratch: Vec::new(),
            turns: 0,
            gone_told: false,
            start: Instant::now(),
        }
    }

    /// The NIC.
    pub fn nic(&self) -> &Fl1 {
        &self.nic
    }

    /// The simulated device, if that is what the NIC is.
    pub fn simulated(&self) -> Option<&Simulated> {
        self.simulated.as_ref()
    }

    /// What the planner counted.
    pub fn planner_stats(&self) -> Stats {
        self.planner.stats()
    }

    /// True if every change that was handed over has its answer.
    pub fn is_settled(&self) -> bool {
        self.changes.is_empty() && self.planner.is_idle()
    }

    /// A port was probed.
    pub fn attach(&mut self, port: Arc<Port>) {
        self.ports.push(port);
    }

    /// A port is being closed.
    pub fn detach(&mut self, port: &Arc<Port>) {
        self.stop(port);
        self.ports.retain(|p| !Arc::ptr_eq(p, port));
    }

    /// A port starts: its queues are used from now on.
    pub fn start(&mut self, start: Start) {
        let rx = start.rx.into_iter().map(|queue| Filling {
            queue,
            spare: Vec::with_capacity(SPARE),
            filled: Vec::with_capacity(RX_BATCH),
            bytes: 0,
        });
        let tx = start.tx.into_iter().map(|queue| Emptying { queue, held: VecDeque::new() });
        self.active.push(Active { port: start.port, rx: rx.collect(), tx: tx.collect() });
    }

    /// A port stops: its queues are not touched any more.
    pub fn stop(&mut self, port: &Arc<Port>) {
        self.active.retain(|a| !Arc::ptr_eq(&a.port, port));
    }

    /// Packets and bytes that hardware counted for a rule since it was made or reset.
    pub fn query(&self, rule: &Rule, reset: bool) -> (u64, u64) {
        let Some(id) = rule.slot() else { return (0, 0) };
        rule.counted(self.planner.counters(id, &self.nic), reset)
    }

    /// The list that the next turn's changes are handed over in.
    pub fn changes(&mut self) -> &mut Vec<Change> {
        &mut self.changes
    }

    /// Deliveries that no rule in hardware uses any more.
    pub fn released(&mut self) -> &mut Vec<u32> {
        &mut self.released
    }

    /// One turn; what came of it.
    pub fn turn(&mut self, deliveries: &RwLock<Deliveries>, events: &mut Vec<Event>) -> Turn {
        let mut worked = self.apply();
        worked |= self.receive(deliveries);
        worked |= self.transmit();
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let before = self.planner.stats();
        self.planner.pump(&mut self.nic, &self.rules, now);
        worked |= self.planner.stats() != before;
        self.reap();
        self.unsent.extend(self.nic.take_unsent());
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(LINK_TURNS) {
            self.watch(events);
        }
        let waits =
            || !self.planner.is_idle() || !self.unsent.is_empty() || self.active.iter().any(Active::holds);
        match worked {
            true => Turn::Worked,
            false if waits() => Turn::Waiting,
            false => Turn::Idle,
        }
    }

    fn apply(&mut self) -> bool {
        let mut changes = std::mem::take(&mut self.changes);
        let any = !changes.is_empty();
        for change in changes.drain(..) {
            match change {
                Change::Put(rule) => self.put(&rule),
                Change::Remove(rule) => {
                    if let Some(id) = self.rules.removing(&rule) {
                        self.planner.remove(id);
                    }
                }
            }
        }
        self.changes = changes;
        any
    }

    fn put(&mut self, rule: &Arc<Rule>) {
        let id = match self.rules.put(rule) {
            Taken::New(id) => id,
            Taken::Instead(id, old) => {
                self.released.extend(old.shape.delivery);
                // What the place counted until now was the old rule's.
                rule.counted(self.planner.counters(id, &self.nic), true);
                id
            }
        };
        self.planner.put_leading(id, rule.shape.group, rule.shape.hop);
    }

    /// Forgets what left the hardware for good.
    fn reap(&mut self) {
        for (id, _) in self.planner.take_removed() {
            if let Some(rule) = self.rules.removed(id) {
                self.released.extend(rule.shape.delivery);
            }
        }
    }

    fn receive(&mut self, deliveries: &RwLock<Deliveries>) -> bool {
        let active = &mut self.active;
        let deliveries = deliveries.read().unwrap_or_else(PoisonError::into_inner);
        let received = self.nic.rx(RX_BATCH, &mut |info, frame| {
            if let Some(a) = active.iter_mut().find(|a| a.port.nic_port == info.port) {
                a.take_in(info, frame, &deliveries);
            }
        });
        drop(deliveries);
        let any = match received {
            Ok(n) => n > 0,
            Err(error) => {
                tracing::debug!(%error, "slow queues");
                // What came before the error was taken.
                true
            }
        };
        if any {
            self.active.iter_mut().flat_map(|a| &mut a.rx).for_each(Filling::flush);
        }
        any
    }

    fn transmit(&mut self) -> bool {
        let mut any = false;
        while let Some((to, frame)) = self.unsent.pop_front() {
            any = true;
            match self.nic.tx(to, &frame) {
                Ok(true) => {}
                Ok(false) => {
                    self.unsent.push_front((to, frame));
                    return false;
                }
                Err(NicError::Invalid(_)) => {}
                Err(_) if self.nic.state() == NicState::Gone => {}
                Err(_) => {
                    self.unsent.push_front((to, frame));
                    return false;
                }
            }
        }
        let (nic, scratch) = (&mut self.nic, &mut self.scratch);
        for a in &mut self.active {
            let to = SlowTx::Port(a.port.nic_port);
            for tx in &mut a.tx {
                any |= tx.send(nic, to, scratch);
            }
        }
        any
    }

    /// Tells of links that changed, and of a NIC that is gone.
    fn watch(&mut self, events: &mut Vec<Event>) {
        let gone = self.nic.state() == NicState::Gone;
        for port in &self.ports {
            let up = !gone && self.nic.link(port.nic_port);
            if port.link.swap(up, Ordering::AcqRel) != up {
                events.push(Event::Link(Arc::clone(port)));
            }
        }
        if gone && !self.gone_told {
            self.gone_told = true;
            events.extend(self.ports.iter().map(|port| Event::Gone(Arc::clone(port))));
        }
    }
}

impl Active {
    /// True if packets wait for room in the NIC.
    fn holds(&self) -> bool {
        self.tx.iter().any(|tx| !tx.held.is_empty())
    }

    fn take_in(&mut self, info: SlowRx, frame: &[u8], deliveries: &Deliveries) {
        let delivery = (info.metadata >= FIRST_DELIVERY).then(|| deliveries.get(info.metadata)).flatten();
        let port = &self.port;
        if delivery.is_none() && port.isolated.load(Ordering::Relaxed) {
            port.counts.isolated.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if frame.len() as u64 > port.max_frame.load(Ordering::Relaxed) {
            port.counts.oversize.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let destination = frame.first_chunk().copied().unwrap_or_default();
        if !port.accepts(destination) {
            port.counts.filtered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let queue = match delivery.map(|d| d.queues.as_slice()) {
            Some([]) | None => spread(frame, self.rx.len()),
            Some(queues) => queues.get(spread(frame, queues.len())).copied().unwrap_or(0).into(),
        };
        let mark = delivery.and_then(|d| d.mark);
        let flagged = mark.is_some() || delivery.is_some_and(|d| d.flag);
        if flagged {
            port.counts.marked.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(rx) = self.rx.get_mut(queue) {
            rx.fill(frame, port.id, flagged, mark);
        }
    }
}

impl Filling {
    fn buffer(&mut self) -> Option<*mut sys::rte_mbuf> {
        if self.spare.is_empty() {
            let mut fresh = [null_mut(); SPARE];
            if self.queue.pool.take(&mut fresh) {
                self.spare.extend(fresh);
            } else {
                // Not so many, but perhaps one.
                let mut one = [null_mut()];
                if self.queue.pool.take(&mut one) {
                    self.spare.extend(one);
                }
            }
        }
        self.spare.pop()
    }

    /// Copies a frame into buffers.
    fn fill(&mut self, frame: &[u8], port: u16, flagged: bool, mark: Option<u32>) {
        let Some(head) = self.buffer() else {
            self.queue.no_buffer.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (mut last, mut next, mut rest) = (head, head, frame);
        loop {
            let mut room = 0;
            // SAFETY: `next` is a fresh buffer that is this thread's alone, and `room` a place for a number.
            let to = unsafe { sys::flowlift_mbuf_room(next, &mut room) };
            let len = rest.len().min(room.into());
            // SAFETY: the buffer has room for `room` bytes at `to`, and `len` is no more; a frame lies in no buffer of the
            // pool, so that the two do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), to.cast::<u8>(), len) };
            // SAFETY: `head`, `last` and `next` are this thread's alone; `last` is the end of `head`'s chain.
            unsafe { sys::flowlift_mbuf_chain(head, last, next, u16::try_from(len).unwrap_or(room)) };
            last = next;
            rest = rest.get(len..).unwrap_or(&[]);
            if rest.is_empty() {
                break;
            }
            match self.buffer().filter(|_| room > 0) {
                Some(buffer) => next = buffer,
                None => {
                    free(&mut [head]);
                    self.queue.no_buffer.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
        // SAFETY: as above.
        unsafe { sys::flowlift_mbuf_received(head, port, flagged, mark.is_some(), mark.unwrap_or(0)) };
        self.filled.push(head);
        self.bytes += frame.len() as u64;
    }

    /// Hands the packets of this turn to the application.
    fn flush(&mut self) {
        if self.filled.is_empty() {
            return;
        }
        let put = self.queue.ring.put(&self.filled);
        let missed = self.filled.len() - put;
        if let Some(rest) = self.filled.get_mut(put..).filter(|rest| !rest.is_empty()) {
            self.queue.missed.fetch_add(missed as u64, Ordering::Relaxed);
            // SAFETY: these packets are still this thread's.
            let lost: u64 = rest.iter().map(|m| u64::from(unsafe { sys::flowlift_mbuf_len(*m) })).sum();
            self.bytes = self.bytes.saturating_sub(lost);
            free(rest);
        }
        self.queue.traffic.add(put as u64, self.bytes);
        (self.bytes, _) = (0, self.filled.clear());
    }
}

impl Emptying {
    /// Gives packets to the NIC. True if it took any, or there was room for more behind those that it did not take.
    fn send(&mut self, nic: &mut Fl1, to: SlowTx, scratch: &mut Vec<u8>) -> bool {
        let room = TX_BATCH.saturating_sub(self.held.len());
        let mut taken = [null_mut(); TX_BATCH];
        let n = self.queue.ring.take(&mut taken[..room]);
        self.held.extend(&taken[..n]);
        if self.held.is_empty() {
            return false;
        }
        let (mut done, mut packets, mut bytes) = (0, 0, 0);
        for packet in &self.held {
            let frame = frame_of(*packet, scratch);
            match nic.tx(to, frame) {
                Ok(true) => {
                    packets += 1;
                    bytes += frame.len() as u64;
                }
                Ok(false) => break,
                Err(NicError::Invalid(_)) => {
                    self.queue.errors.fetch_add(1, Ordering::Relaxed);
                }
                // A failed NIC is being reset, and takes packets again after that.
                Err(_) if nic.state() != NicState::Gone => break,
                Err(_) => {
                    self.queue.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            done += 1;
        }
        if let Some(sent) = self.held.make_contiguous().get_mut(..done) {
            free(sent);
        }
        self.held.drain(..done);
        self.queue.traffic.add(packets, bytes);
        n > 0 || done > 0
    }
}

/// A packet's bytes; gathered in `scratch` if they lie in several segments.
fn frame_of(packet: *mut sys::rte_mbuf, scratch: &mut Vec<u8>) -> &[u8] {
    let segment = |m: *mut sys::rte_mbuf| {
        let (mut len, mut next) = (0, null_mut());
        // SAFETY: the packet came out of the transmit ring, so that it is this thread's until it is freed; its segments are
        // a list that ends with null.
        let data = unsafe { sys::flowlift_mbuf_segment(m, &mut len, &mut next) };
        // SAFETY: a segment has `len` bytes at `data`, which nobody changes while the packet is ours.
        (unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len.into()) }, next)
    };
    let (first, mut next) = segment(packet);
    if next.is_null() {
        return first;
    }
    scratch.clear();
    scratch.extend_from_slice(first);
    while !next.is_null() {
        let (bytes, after) = segment(next);
        scratch.extend_from_slice(bytes);
        next = after;
    }
    scratch
}
