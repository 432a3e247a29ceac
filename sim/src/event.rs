//! Events (FL1.md, section 9): what the device tells unasked.

use crate::bytes::put;
use crate::device::{FatalCode, Fl1, VECTOR_EVENTS};
use std::collections::VecDeque;

/// Length of an event in bytes.
const EVENT: u32 = 32;
/// Events kept back while the ring is full.
const BACKLOG: usize = 1024;

const LINK: u16 = 1;
const PARITY: u16 = 2;
const AGED: u16 = 3;
const PRESSURE: u16 = 4;
const FATAL: u16 = 5;

/// Percent of a table in use at which pressure is told, and the one at which its end is.
const PRESSURE_HIGH: u64 = 90;
const PRESSURE_LOW: u64 = 70;

/// An event before it has its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    kind: u16,
    /// Port or table.
    whose: u16,
    entry: u32,
    generation: u32,
    detail: u32,
    time: u64,
}

impl Event {
    fn new(kind: u16, whose: u16, entry: u32, generation: u32, detail: u32) -> Self {
        Self { kind, whose, entry, generation, detail, time: 0 }
    }
    pub(crate) fn fatal(code: u32) -> Self {
        Self::new(FATAL, 0, 0, 0, code)
    }
    pub(crate) fn link(port: u16, up: bool) -> Self {
        Self::new(LINK, port, 0, 0, u32::from(up))
    }
    pub(crate) fn parity(table: u16, entry: u32, generation: u32) -> Self {
        Self::new(PARITY, table, entry, generation, 0)
    }
    pub(crate) fn aged(table: u16, entry: u32, generation: u32) -> Self {
        Self::new(AGED, table, entry, generation, 0)
    }
    fn pressure(table: u16, percent: u32) -> Self {
        Self::new(PRESSURE, table, 0, 0, percent)
    }

    fn encode(&self, seq: u32) -> [u8; EVENT as usize] {
        let mut b = [0; EVENT as usize];
        put(&mut b, 0, &self.kind.to_le_bytes());
        put(&mut b, 2, &self.whose.to_le_bytes());
        put(&mut b, 4, &self.entry.to_le_bytes());
        put(&mut b, 8, &self.generation.to_le_bytes());
        put(&mut b, 12, &self.detail.to_le_bytes());
        put(&mut b, 16, &self.time.to_le_bytes());
        put(&mut b, 24, &seq.to_le_bytes());
        b
    }
}

/// Events on their way to the ring.
#[derive(Debug, Default)]
pub(crate) struct Events {
    backlog: VecDeque<Event>,
    /// The EVENTS_LOST register.
    pub(crate) lost: u32,
}

impl Events {
    pub(crate) fn queue(&mut self, e: Event) {
        if self.backlog.len() < BACKLOG {
            self.backlog.push_back(e);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }
}

impl Fl1 {
    pub(crate) fn tell(&mut self, mut e: Event) {
        e.time = self.now;
        self.events.queue(e);
    }

    /// Writes what the ring has room for.
    pub(crate) fn flush_events(&mut self) {
        while self.evq.enabled && self.evq.outstanding() < self.evq.size() {
            let Some(e) = self.events.backlog.front() else { return };
            let index = self.evq.index;
            let bytes = e.encode(index.wrapping_add(1));
            let at = self.evq.element(0, index, EVENT);
            if let Err(fault) = self.host.write_element(&mut self.faults, at, &bytes) {
                // Dying tells of itself by an event: not while that is what failed.
                if self.fatal.is_none() {
                    self.fatal = Some((FatalCode::Event, fault.iova));
                }
                return;
            }
            self.events.backlog.pop_front();
            self.evq.index = index.wrapping_add(1);
            self.host.notify(VECTOR_EVENTS);
        }
    }

    /// Tells of links that changed.
    pub(crate) fn watch_links(&mut self) {
        for i in 0..self.ports.len() {
            let up = self.link(&self.ports[i]);
            if self.ports[i].link_told != up {
                self.ports[i].link_told = up;
                self.tell(Event::link(i as u16 + 1, up));
            }
        }
    }

    /// Tells of a table that became full, or is not any more.
    pub(crate) fn watch_pressure(&mut self, table: usize) {
        let Some(t) = self.tables.get_mut(table) else { return };
        let percent = u64::from(t.used()) * 100 / u64::from(t.spec.max_entries.max(1));
        let told = if t.pressed { percent <= PRESSURE_LOW } else { percent >= PRESSURE_HIGH };
        if told {
            t.pressed = !t.pressed;
            self.tell(Event::pressure(table as u16, percent as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parity_event_is_golden() {
        let text = include_str!("../../fixtures/device/golden/event_parity.hex");
        let want: Vec<u8> = text
            .lines()
            .flat_map(|l| l.split('#').next().unwrap_or("").split_whitespace())
            .map(|b| u8::from_str_radix(b, 16).expect("hex"))
            .collect();
        let event = Event { time: 1_000_000_000, ..Event::parity(2, 5, 6) };
        assert_eq!(event.encode(3).to_vec(), want);
    }
}
