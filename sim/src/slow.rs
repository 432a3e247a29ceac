//! Makes a packet's effects happen, all or none (FL1.md, section 8), and the slow queues' rings.

use crate::admin::PAGE_RECORD;
use crate::bytes::{le16, le32, le64, put};
use crate::device::{FatalCode, Fl1, VECTOR_SLOW, port_counter as count};
use crate::parser::flow_hash;
use crate::pipeline::{Hit, Slow, Verdict};
use crate::profile::MAX_FRAME;
use crate::table::Counters;
use crate::violation::{Violation, ViolationCode};
use flowlift_bus::DmaFault;

/// Lengths of ring elements.
const RX_BUFFER: u32 = 16;
const RX_COMPLETION: u32 = 64;
const TX_DESCRIPTOR: u32 = 32;
/// Shortest RX buffer.
const MIN_BUFFER: u32 = 2048;
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
const FLAG_PIPELINE: u8 = 1;
const FLAG_MORE: u16 = 1;

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It waits for a link or for buffers.
    Held,
    /// The device died of it.
    Dead,
}

/// Where a frame came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// A wire, with the frame as it was there.
    Wire(&'a [u8]),
    /// The TX ring of this slow queue, whose consumer index becomes visible with the frame's effect.
    Tx(usize),
}

/// A posted buffer that a frame goes to.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    iova: u64,
    len: u32,
    id: u32,
}

/// Where on a slow queue a frame goes.
struct Place {
    queue: usize,
    hash: u32,
    buffers: Vec<Buffer>,
}

impl Fl1 {
    /// Makes `verdict` happen.
    pub(crate) fn deliver(
        &mut self,
        verdict: &Verdict,
        ingress: u16,
        source: Source<'_>,
    ) -> Result<(), Refusal> {
        for (port, _) in &verdict.outputs {
            if self.port(*port).is_some_and(|p| p.enabled && !self.link(p)) {
                return Err(Refusal::Held);
            }
        }
        if let Source::Wire(frame) = source
            && !verdict.outputs.is_empty()
            && self.would_overtake(ingress, frame)
        {
            return Err(Refusal::Held);
        }
        let place = match &verdict.slow {
            Some(s) => Some(self.reserve(ingress, &s.frame)?),
            None => None,
        };
        if let Err((code, fault)) = self.write_effects(verdict, place.as_ref(), ingress, source) {
            self.undo_effects(verdict, source);
            self.die_of(code, fault);
            return Err(Refusal::Dead);
        }
        self.commit(verdict, place.as_ref(), ingress, source);
        Ok(())
    }

    /// True if this frame of a wire would overtake one that the slow path is not done with.
    fn would_overtake(&self, ingress: u16, frame: &[u8]) -> bool {
        let mut hash = None;
        self.slow.iter().any(|s| {
            s.order.as_ref().is_some_and(|order| {
                !order.is_idle(s.rx_produced)
                    && order
                        .would_overtake(*hash.get_or_insert_with(|| flow_hash(ingress, frame)), s.rx_produced)
            })
        })
    }

    fn port(&self, port: u16) -> Option<&crate::device::Port> {
        self.ports.get(usize::from(port).checked_sub(1)?)
    }

    /// What the counters of a hit entry become.
    fn counted(&self, hit: &Hit) -> Option<(Counters, u32)> {
        let e = self.tables.get(hit.table)?.entry(hit.entry)?;
        let c = Counters {
            packets: e.counters.packets.wrapping_add(1),
            bytes: e.counters.bytes.wrapping_add(hit.bytes),
            last_used: self.now,
            tcp_flags: e.counters.tcp_flags | hit.tcp_flags,
            ..e.counters
        };
        Some((c, e.generation))
    }

    fn page_address(&self, hit: &Hit) -> Option<u64> {
        let page = self.tables.get(hit.table)?.page?;
        Some(page.wrapping_add(u64::from(hit.entry) * PAGE_RECORD))
    }

    /// All DMA writes of a frame; the last one makes it visible.
    fn write_effects(
        &mut self,
        verdict: &Verdict,
        place: Option<&Place>,
        ingress: u16,
        source: Source<'_>,
    ) -> Result<(), (FatalCode, DmaFault)> {
        for hit in &verdict.hits {
            let (Some(at), Some((c, generation))) = (self.page_address(hit), self.counted(hit)) else {
                continue;
            };
            self.host
                .write(&mut self.faults, at, &c.page_record(generation))
                .map_err(|f| (FatalCode::CounterPage, f))?;
        }
        for (id, meter) in &verdict.meters {
            self.write_meter_record(*id, meter).map_err(|f| (FatalCode::CounterPage, f))?;
        }
        let rx = |f| (FatalCode::Rx, f);
        if let (Some(p), Some(s)) = (place, &verdict.slow) {
            let mut rest = &s.frame[..];
            for b in &p.buffers {
                let (now, later) = rest.split_at(rest.len().min(b.len as usize));
                self.host.write(&mut self.faults, b.iova, now).map_err(rx)?;
                rest = later;
            }
        }
        if let Source::Tx(q) = source {
            let next = self.slow[q].tx.index.wrapping_add(1);
            self.write_back(q, next).map_err(|f| (FatalCode::TxWriteback, f))?;
        }
        if let (Some(p), Some(s)) = (place, &verdict.slow) {
            // The first completion last: a driver that reads in order sees all or none.
            for i in (0..p.buffers.len()).rev() {
                let index = self.slow[p.queue].rx_produced.wrapping_add(i as u32);
                let bytes = self.rx_completion(p, s, i, ingress, index.wrapping_add(1));
                let at = self.slow[p.queue].rx.element(1, index, RX_COMPLETION);
                self.host.write_element(&mut self.faults, at, &bytes).map_err(rx)?;
            }
        }
        Ok(())
    }

    /// Restores what was written for a frame that failed. If host memory cannot be reached at all, nothing can be
    /// restored there, and the driver will not read it either.
    fn undo_effects(&mut self, verdict: &Verdict, source: Source<'_>) {
        self.faults.armed = false;
        for (id, _) in &verdict.meters {
            if let Some(meter) = self.meters.get(*id as usize).copied().flatten() {
                let _ = self.write_meter_record(*id, &meter);
            }
        }
        for hit in &verdict.hits {
            let entry = self.tables.get(hit.table).and_then(|t| t.entry(hit.entry));
            if let (Some(at), Some(e)) = (self.page_address(hit), entry) {
                let record = e.counters.page_record(e.generation);
                let _ = self.host.write(&mut self.faults, at, &record);
            }
        }
        if let Source::Tx(q) = source {
            let _ = self.write_back(q, self.slow[q].tx.index);
        }
        self.faults.armed = true;
    }

    fn write_back(&mut self, q: usize, index: u32) -> Result<(), DmaFault> {
        let at = self.slow[q].tx.base(1);
        self.host.store(&mut self.faults, at, u64::from(index))
    }

    /// Everything else a frame does; it cannot fail.
    fn commit(&mut self, verdict: &Verdict, place: Option<&Place>, ingress: u16, source: Source<'_>) {
        for hit in &verdict.hits {
            let counted = self.counted(hit);
            let entry = self.tables.get_mut(hit.table).and_then(|t| t.entry_mut(hit.entry));
            if let (Some((c, _)), Some(e)) = (counted, entry) {
                e.counters = c;
            }
        }
        for (id, m) in &verdict.meters {
            if let Some(meter) = self.meters.get_mut(*id as usize) {
                *meter = Some(*m);
            }
        }
        if let Some(p) = place {
            let n = p.buffers.len() as u32;
            let s = &mut self.slow[p.queue];
            s.rx.index = s.rx.index.wrapping_add(n);
            s.rx_produced = s.rx_produced.wrapping_add(n);
            if let (Some(order), Source::Wire(frame)) = (&mut s.order, source) {
                order.given_up(flow_hash(ingress, frame), s.rx_produced);
            }
            self.host.notify(VECTOR_SLOW + p.queue as u16);
            self.bump(ingress, count::RX_SLOW, 1);
        }
        if let Source::Tx(q) = source {
            self.slow[q].tx.index = self.slow[q].tx.index.wrapping_add(1);
            self.host.notify(VECTOR_SLOW + q as u16);
        }
        for (port, frame) in &verdict.outputs {
            let Some(p) = usize::from(*port).checked_sub(1).and_then(|i| self.ports.get_mut(i)) else {
                continue;
            };
            if p.enabled {
                p.wire.send(frame);
                self.bump(*port, count::TX_PACKETS, 1);
                self.bump(*port, count::TX_BYTES, frame.len() as u64);
            } else {
                self.bump(*port, count::TX_DROPPED, 1);
            }
        }
    }

    pub(crate) fn bump(&mut self, port: u16, counter: usize, by: u64) {
        let port = usize::from(port).checked_sub(1).and_then(|i| self.ports.get_mut(i));
        if let Some(c) = port.and_then(|p| p.counters.get_mut(counter)) {
            *c = c.wrapping_add(by);
        }
    }

    /// Finds the queue and enough buffers for a frame.
    fn reserve(&mut self, ingress: u16, frame: &[u8]) -> Result<Place, Refusal> {
        let hash = flow_hash(ingress, frame);
        let wanted = hash as usize % self.slow.len().max(1);
        let enabled = |q: &usize| self.slow.get(*q).is_some_and(|s| s.rx.enabled);
        let queue = Some(wanted).filter(enabled).or_else(|| (0..self.slow.len()).find(enabled));
        let Some(queue) = queue else { return Err(Refusal::Held) };
        let mut buffers = Vec::new();
        let mut room = 0;
        let mut ahead = 0;
        while room < frame.len() || buffers.is_empty() {
            if self.slow[queue].rx.available() <= ahead {
                self.slow[queue].stalls = self.slow[queue].stalls.wrapping_add(1);
                return Err(Refusal::Held);
            }
            match self.fetch_buffer(queue, ahead) {
                Err(fault) => {
                    self.die_of(FatalCode::RxFetch, fault);
                    return Err(Refusal::Dead);
                }
                Ok(Some(b)) => {
                    room += b.len as usize;
                    buffers.push(b);
                    ahead += 1;
                }
                // A refused buffer is consumed; start over behind it.
                Ok(None) => {
                    self.slow[queue].rx.index = self.slow[queue].rx.index.wrapping_add(ahead + 1);
                    (buffers, room, ahead) = (Vec::new(), 0, 0);
                }
            }
        }
        Ok(Place { queue, hash, buffers })
    }

    /// Reads the buffer descriptor `ahead` of the next one; `None` if it is refused.
    fn fetch_buffer(&mut self, queue: usize, ahead: u32) -> Result<Option<Buffer>, DmaFault> {
        let rx = &self.slow[queue].rx;
        let index = rx.index.wrapping_add(ahead);
        let mut d = [0; RX_BUFFER as usize];
        self.host.read(&mut self.faults, rx.element(0, index, RX_BUFFER), &mut d)?;
        let b = Buffer { iova: le64(&d, 0), len: le32(&d, 8), id: le32(&d, 12) };
        if b.len < MIN_BUFFER {
            let place = u64::from(index & rx.size().wrapping_sub(1));
            self.violate(Violation::new(ViolationCode::RxBuffer, 8 | place << 32));
            return Ok(None);
        }
        Ok(Some(b))
    }

    /// The completion of a frame's `i`-th buffer.
    fn rx_completion(
        &self,
        p: &Place,
        s: &Slow,
        i: usize,
        ingress: u16,
        seq: u32,
    ) -> [u8; RX_COMPLETION as usize] {
        let before: usize = p.buffers[..i].iter().map(|b| b.len as usize).sum();
        let here = (s.frame.len() - before).min(p.buffers[i].len as usize);
        let more = if i + 1 < p.buffers.len() { FLAG_MORE } else { 0 };
        let mut b = [0; RX_COMPLETION as usize];
        put(&mut b, 0, &p.buffers[i].id.to_le_bytes());
        put(&mut b, 4, &(here as u32).to_le_bytes());
        put(&mut b, 8, &ingress.to_le_bytes());
        put(&mut b, 10, &[s.reason as u8, s.stage]);
        put(&mut b, 12, &s.table.to_le_bytes());
        put(&mut b, 14, &more.to_le_bytes());
        put(&mut b, 16, &s.metadata.to_le_bytes());
        put(&mut b, 20, &s.entry.to_le_bytes());
        put(&mut b, 24, &self.now.to_le_bytes());
        put(&mut b, 32, &p.hash.to_le_bytes());
        put(&mut b, 36, &(s.frame.len() as u32).to_le_bytes());
        put(&mut b, 56, &seq.to_le_bytes());
        b
    }

    /// Sends up to `budget` frames of the TX rings; gives how many descriptors were consumed.
    pub(crate) fn run_tx(&mut self, budget: u32) -> u32 {
        let mut done = 0;
        for q in 0..self.slow.len() {
            while done < budget && self.slow[q].tx.enabled && self.slow[q].tx.available() != 0 {
                match self.send_one(q) {
                    Ok(()) => done += 1,
                    Err(Refusal::Held) => break,
                    Err(Refusal::Dead) => return done,
                }
            }
        }
        done
    }

    fn send_one(&mut self, q: usize) -> Result<(), Refusal> {
        let tx = &self.slow[q].tx;
        let mut d = [0; TX_DESCRIPTOR as usize];
        let at = tx.element(0, tx.index, TX_DESCRIPTOR);
        if let Err(fault) = self.host.read(&mut self.faults, at, &mut d) {
            self.die_of(FatalCode::TxFetch, fault);
            return Err(Refusal::Dead);
        }
        let (len, port, stage, metadata) = (le32(&d, 8) as usize, le16(&d, 12), d[15], le32(&d, 16));
        let pipeline = d[14] & FLAG_PIPELINE != 0;
        let wrong = [
            (8, !(MIN_FRAME..=MAX_FRAME).contains(&len)),
            (12, !(1..=self.profile.ports()).contains(&port)),
            (14, d[14] & !FLAG_PIPELINE != 0),
            (15, if pipeline { stage >= self.profile.stages } else { stage != 0 }),
            (16, !pipeline && metadata != 0),
            (20, le32(&d, 20) != 0),
        ];
        let nothing = Verdict::default();
        if let Some((byte, _)) = wrong.iter().find(|(_, wrong)| *wrong) {
            let place = u64::from(self.slow[q].tx.index & self.slow[q].tx.size().wrapping_sub(1));
            self.violate(Violation::new(ViolationCode::TxDescriptor, byte | place << 32));
            return self.deliver(&nothing, port, Source::Tx(q));
        }
        let mut frame = std::mem::take(&mut self.frame);
        frame.resize(len, 0);
        let outcome = match self.host.read(&mut self.faults, le64(&d, 0), &mut frame) {
            Err(fault) => {
                self.die_of(FatalCode::TxFetch, fault);
                Err(Refusal::Dead)
            }
            Ok(()) if pipeline => {
                let v = self.classify(&frame, port, stage, metadata);
                self.deliver(&v, port, Source::Tx(q))
            }
            Ok(()) => {
                let v = Verdict { outputs: vec![(port, frame.clone())], ..nothing };
                self.deliver(&v, port, Source::Tx(q))
            }
        };
        self.frame = frame;
        outcome
    }
}
