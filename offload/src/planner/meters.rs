//! The datapath's meters in the NIC. A meter is there while some flow's entries ask it. It has one bucket all that time: software lends its
//! own to the NIC before the first entry asks, draws on the NIC's for the packets that it handles itself, and takes it back after the
//! last entry is gone.

use super::slot::Op;
use super::{FlowId, FlowSource, Planner};
use crate::meter::{Meter, MeterCause};
use crate::refusal::{ActionCause, Cause, Refusal};
use flowlift_driver::nic::{MeterConfig, Nic, NicError};
use flowlift_flow::Action;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

type Ids = SmallVec<[u32; 1]>;

/// A meter that some flow asks.
#[derive(Debug, Default)]
struct Known {
    /// The NIC's number for it.
    nic: Option<u32>,
    /// Its bucket is in the NIC.
    lent: bool,
    /// Flows that ask it.
    askers: BTreeSet<FlowId>,
    /// Flows whose entries in the NIC ask it, or may.
    users: BTreeSet<FlowId>,
}

/// A flow that asks meters.
#[derive(Debug, Default)]
struct Asking {
    /// Those of its actions.
    asks: Ids,
    /// Those that its entries ask, or may, and those that they ask once what is under way is done.
    uses: Ids,
    latest: Ids,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Meters {
    known: BTreeMap<u32, Known>,
    flows: BTreeMap<FlowId, Asking>,
    /// The NIC's numbers that were in use once and are free, and the first that never was.
    free: Vec<u32>,
    fresh: u32,
    /// Meters that may have lost their last user.
    idle: BTreeSet<u32>,
    /// Meters that are not as they were.
    changed: BTreeSet<u32>,
    /// The NIC forgot its meters.
    lost: bool,
}

/// The meters that a list of actions asks.
fn asked(actions: &[Action], into: &mut Ids) {
    for action in actions {
        match action {
            Action::Meter(id) if !into.contains(id) => into.push(*id),
            Action::Clone(inner) | Action::Sample { actions: inner, .. } => asked(inner, into),
            _ => {}
        }
    }
}

impl Planner {
    /// Takes note that a meter was set, in place of another or not, or that it is no more.
    pub fn meter_changed(&mut self, meter: u32) {
        if self.meters.known.contains_key(&meter) {
            self.meters.changed.insert(meter);
        }
    }

    /// Takes note that any meter may have changed.
    pub(super) fn all_meters_changed(&mut self) {
        self.meters.changed.extend(self.meters.known.keys());
    }

    /// Takes note of the meters that a flow asks, and finds out how they would be in the NIC.
    pub(super) fn ask_meters(&mut self, id: FlowId, actions: &[Action], source: &dyn FlowSource) {
        let mut asks = Ids::new();
        asked(actions, &mut asks);
        if asks.is_empty() && !self.meters.flows.contains_key(&id) {
            return;
        }
        let flow = self.meters.flows.entry(id).or_default();
        let before = std::mem::replace(&mut flow.asks, asks.clone());
        for meter in before.iter().filter(|m| !asks.contains(m)) {
            if let Some(known) = self.meters.known.get_mut(meter) {
                known.askers.remove(&id);
                self.meters.idle.insert(*meter);
            }
        }
        for meter in asks {
            self.meters.known.entry(meter).or_default().askers.insert(id);
            if self.pipeline.meter(meter).is_none() {
                self.resolve(meter, source);
            }
        }
    }

    /// Finds out how a meter would be in the NIC.
    fn resolve(&mut self, meter: u32, source: &dyn FlowSource) {
        let bucket = source.meter(meter).ok_or(MeterCause::Missing).and_then(|m| m.bucket());
        let number = bucket.and_then(|_| self.reserve(meter));
        self.pipeline.set_meter(meter, Some(number));
        self.forms.clear();
    }

    /// The NIC's number for a meter.
    fn reserve(&mut self, meter: u32) -> Result<u32, MeterCause> {
        let max = self.pipeline.caps().meters;
        let meters = &mut self.meters;
        let own = meters.known.get(&meter).and_then(|known| known.nic);
        let number = own.or_else(|| meters.free.pop()).or_else(|| {
            let number = meters.fresh;
            meters.fresh += u32::from(number < max);
            (number < max).then_some(number)
        });
        // A number whose meter was never needed in the NIC, or is not any more, goes to one that is.
        let number = number.or_else(|| {
            let spare = |(_, known): &(&u32, &mut Known)| known.nic.is_some() && !known.lent;
            let (other, known) = meters.known.iter_mut().find(spare)?;
            self.pipeline.set_meter(*other, None);
            known.nic.take()
        });
        let number = number.ok_or(MeterCause::Full(max))?;
        meters.known.entry(meter).or_default().nic = Some(number);
        Ok(number)
    }

    /// Has every meter that a flow's entries ask be in the NIC.
    pub(super) fn lend_meters(
        &mut self,
        id: FlowId,
        nic: &mut dyn Nic,
        source: &dyn FlowSource,
    ) -> Result<(), Refusal> {
        let Some(flow) = self.meters.flows.get(&id) else { return Ok(()) };
        // Those that no entry can ask are in what never happens.
        let in_nic = |meter: &u32| matches!(self.pipeline.meter(*meter), Some(Ok(_)));
        let latest: Ids = flow.asks.iter().copied().filter(in_nic).collect();
        for meter in &latest {
            let known = self.meters.known.get(meter);
            let lent = known.is_some_and(|known| known.lent);
            if !lent && let Err(error) = self.lend(*meter, nic, source) {
                self.error(error);
                let why = ActionCause::Meter(MeterCause::NotSet);
                return Err(Refusal::of_nic(Cause::Action { index: 0, name: "meter", why }));
            }
        }
        let flow = self.meters.flows.entry(id).or_default();
        for meter in &latest {
            if !flow.uses.contains(meter) {
                flow.uses.push(*meter);
            }
            if let Some(known) = self.meters.known.get_mut(meter) {
                known.users.insert(id);
            }
        }
        flow.latest = latest;
        Ok(())
    }

    fn lend(&mut self, meter: u32, nic: &mut dyn Nic, source: &dyn FlowSource) -> Result<(), NicError> {
        let invalid = || NicError::Invalid(format!("meter {meter}"));
        let known = self.meters.known.get_mut(&meter).ok_or_else(invalid)?;
        let number = known.nic.ok_or_else(invalid)?;
        source.lend_meter(meter, &mut |now: &Meter, level| {
            let bucket = now.bucket().map_err(|_| invalid())?;
            let config = MeterConfig {
                packets: bucket.packets,
                rate: bucket.rate,
                burst: bucket.burst,
                level: level.min(u64::from(bucket.burst) * 1000),
            };
            nic.set_meter(number, &config)
        })?;
        known.lent = true;
        Ok(())
    }

    /// What was under way for a flow is done: it uses what its entries ask now.
    pub(super) fn settle_meters(&mut self, id: FlowId) {
        if self.meters.flows.is_empty() {
            return;
        }
        let slot = self.slots.get(id.0 as usize);
        if slot.is_some_and(|s| s.op != Op::None) {
            return;
        }
        let installed = slot.is_some_and(|s| s.installed != 0);
        let Some(flow) = self.meters.flows.get_mut(&id) else { return };
        let latest = if installed { flow.latest.clone() } else { Ids::new() };
        for meter in std::mem::replace(&mut flow.uses, latest.clone()) {
            if let Some(known) = self.meters.known.get_mut(&meter).filter(|_| !latest.contains(&meter)) {
                known.users.remove(&id);
                self.meters.idle.insert(meter);
            }
        }
        if slot.is_none_or(|s| !s.present) {
            for meter in self.meters.flows.remove(&id).map(|flow| flow.asks).unwrap_or_default() {
                if let Some(known) = self.meters.known.get_mut(&meter) {
                    known.askers.remove(&id);
                    self.meters.idle.insert(meter);
                }
            }
        }
    }

    /// The NIC's tables, and its meters with them, are lost.
    pub(super) fn meters_lost(&mut self) {
        self.meters.lost = true;
        self.meters.flows.values_mut().for_each(|flow| (flow.uses, flow.latest) = Default::default());
        for (meter, known) in &mut self.meters.known {
            known.users.clear();
            self.meters.idle.insert(*meter);
        }
    }

    /// Brings meters to where they should be, before flows are planned.
    pub(super) fn tend_meters(&mut self, nic: &mut dyn Nic, source: &dyn FlowSource) {
        if std::mem::take(&mut self.meters.lost) {
            for (meter, known) in self.meters.known.iter_mut().filter(|(_, known)| known.lent) {
                source.take_meter_back(*meter);
                known.lent = false;
            }
        }
        while let Some(meter) = self.meters.changed.pop_first() {
            let Some(lent) = self.meters.known.get(&meter).map(|known| known.lent) else { continue };
            let before = self.pipeline.meter(meter);
            self.resolve(meter, source);
            // The flows' entries stay: the new bucket comes in place of the old one.
            if lent
                && matches!(self.pipeline.meter(meter), Some(Ok(_)))
                && let Err(error) = self.lend(meter, nic, source)
            {
                self.error(error);
                self.pipeline.set_meter(meter, Some(Err(MeterCause::NotSet)));
            }
            if !lent || self.pipeline.meter(meter) != before {
                let askers = self.meters.known.get(&meter).map(|known| known.askers.clone());
                self.enqueue_all(askers);
            }
        }
    }

    /// Takes back what no entry asks any more.
    pub(super) fn release_meters(&mut self, nic: &mut dyn Nic, source: &dyn FlowSource) {
        let mut room = false;
        while let Some(meter) = self.meters.idle.pop_first() {
            let Some(known) = self.meters.known.get_mut(&meter).filter(|known| known.users.is_empty()) else {
                continue;
            };
            if std::mem::take(&mut known.lent) {
                source.take_meter_back(meter);
                room = true;
                if let Some(Err(error)) = known.nic.map(|number| nic.remove_meter(number)) {
                    self.error(error);
                }
            }
            let Some(known) = self.meters.known.get(&meter).filter(|known| known.askers.is_empty()) else {
                continue;
            };
            room |= known.nic.is_some();
            self.meters.free.extend(known.nic);
            self.meters.known.remove(&meter);
            self.pipeline.set_meter(meter, None);
            self.forms.clear();
        }
        if room {
            let full = |m: &&u32| matches!(self.pipeline.meter(**m), Some(Err(MeterCause::Full(_))));
            let waiting: Vec<u32> = self.meters.known.keys().filter(full).copied().collect();
            self.meters.changed.extend(waiting);
        }
    }
}
