//! The device's main loop (FL1.md, section 10), run by whoever owns the model.

use crate::device::{Fl1, ResetCause, port_counter as count};
use crate::event::Event;
use crate::fault::FaultKind;
use crate::slow::{Refusal, Source};

/// Work per kind in [`Fl1::step`].
const BUDGET: u32 = 256;
/// Longest injected link flap, in steps.
const LONGEST_FLAP: u64 = 32;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepReport {
    /// TX descriptors consumed.
    pub tx: u32,
    /// Admin commands run.
    pub commands: u32,
    /// Frames taken from wires.
    pub frames: u32,
}

impl StepReport {
    /// Nothing was done.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

impl Fl1 {
    /// One step with an ordinary budget.
    pub fn step(&mut self) -> StepReport {
        self.step_budget(BUDGET)
    }

    /// One step: at most `budget` TX frames, as many commands, and as many frames from wires.
    pub fn step_budget(&mut self, budget: u32) -> StepReport {
        let mut report = StepReport::default();
        self.faults.step += 1;
        self.now = self.clock.now_ns();
        if self.gone || !self.bus_master || self.hung || self.fatal.is_some() {
            return report;
        }
        if self.enable && self.inject() {
            return report;
        }
        self.heartbeat = self.heartbeat.wrapping_add(1);
        self.look_at_bells();
        self.watch_links();
        self.watch_ages();
        self.flush_events();
        if self.enable && self.fatal.is_none() {
            report.tx = self.run_tx(budget);
        }
        if self.enable && self.fatal.is_none() {
            report.commands = self.run_admin(budget);
        }
        if self.enable && self.fatal.is_none() {
            report.frames = self.run_wires(budget);
        }
        if self.fatal.is_none() {
            self.flush_events();
        }
        self.host.raise_pending();
        report
    }

    /// Faults whose opportunity is a step. True: the device does nothing more in this one.
    fn inject(&mut self) -> bool {
        if self.faults.strike(FaultKind::Unplug, 0) {
            self.unplug();
            return true;
        }
        if self.faults.strike(FaultKind::Reset, 0) {
            self.reset_by(ResetCause::Device);
            return true;
        }
        if self.faults.strike(FaultKind::Hang, 0) {
            self.hung = true;
            return true;
        }
        if self.faults.enabled(FaultKind::LinkFlap) {
            let port = self.faults.pick(FaultKind::LinkFlap, self.ports.len() as u64);
            if self.faults.strike(FaultKind::LinkFlap, port + 1) {
                let steps = 1 + self.faults.pick(FaultKind::LinkFlap, LONGEST_FLAP);
                self.ports[port as usize].flap_until = self.faults.step + steps;
            }
        }
        if self.faults.enabled(FaultKind::FlippedEntry) {
            self.damage_some_entry();
        }
        false
    }

    fn damage_some_entry(&mut self) {
        let kind = FaultKind::FlippedEntry;
        let used: Vec<usize> = (0..self.tables.len()).filter(|&t| self.tables[t].used() != 0).collect();
        let Some(&table) = used.get(self.faults.pick(kind, used.len() as u64) as usize) else { return };
        let from = self.faults.pick(kind, u64::from(u32::MAX));
        let bit = self.faults.pick(kind, self.tables[table].spec.key_bytes as u64 * 8);
        let Some(entry) = self.tables[table].some_entry(from) else { return };
        if self.faults.strike(kind, u64::from(entry))
            && let Some(generation) = self.tables[table].damage(entry, bit)
        {
            self.tell(Event::parity(table as u16, entry, generation));
        }
    }

    /// Tells of entries that were not used for their ageing time.
    fn watch_ages(&mut self) {
        if self.admin.ageing.is_empty() {
            return;
        }
        let now = self.now;
        while let Some(&watched) = self.admin.ageing.first() {
            let (due, table, id, installed) = watched;
            if due > now {
                break;
            }
            self.admin.ageing.remove(&watched);
            let entry = self.tables.get(usize::from(table)).and_then(|t| t.entry(id));
            // Another entry may have taken the id since.
            let Some(e) = entry.filter(|e| e.installed == installed && e.age_ms != 0) else { continue };
            let used = e.counters.last_used.max(e.installed);
            let due = used.saturating_add(u64::from(e.age_ms) * 1_000_000);
            let generation = e.generation;
            if due > now {
                self.admin.ageing.insert((due, table, id, installed));
            } else {
                self.tell(Event::aged(table, id, generation));
            }
        }
    }

    /// Takes up to `budget` frames from the wires, one per port in turn; gives how many.
    fn run_wires(&mut self, budget: u32) -> u32 {
        let mut done = 0;
        let mut idle: Vec<bool> = self.ports.iter().map(|p| !p.enabled || !self.link(p)).collect();
        let mut frame = std::mem::take(&mut self.frame);
        'steps: while done < budget {
            let mut progress = false;
            for (i, idle) in idle.iter_mut().enumerate() {
                if *idle || done >= budget {
                    continue;
                }
                if !self.ports[i].wire.front(&mut frame) {
                    *idle = true;
                    continue;
                }
                let port = i as u16 + 1;
                let verdict = self.classify(&frame, port, 0, 0);
                match self.deliver(&verdict, port, Source::Wire(&frame)) {
                    Ok(()) => {
                        self.ports[i].wire.pop();
                        self.bump(port, count::RX_PACKETS, 1);
                        self.bump(port, count::RX_BYTES, frame.len() as u64);
                        done += 1;
                        progress = true;
                    }
                    Err(Refusal::Held) => {
                        self.bump(port, count::RX_HELD, 1);
                        *idle = true;
                    }
                    Err(Refusal::Dead) => break 'steps,
                }
            }
            if !progress {
                break;
            }
        }
        self.frame = frame;
        done
    }
}
