//! A port's rules by their handles.
//!
//! A handle is a number, not an address: the place of the rule and a generation. One that was given up, or never given, is
//! found out without looking at any memory.

use super::forms::Forms;
use super::index::Index;
use crate::nic::rules::Rule;
use std::sync::Arc;

#[derive(Default)]
struct Place {
    generation: u32,
    rule: Option<Arc<Rule>>,
}

/// See the module's head.
#[derive(Default)]
pub struct FlowTable {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Rules by their matches.
    pub(super) index: Index,
    /// What was decided over rules like those that come.
    pub(crate) forms: Forms,
}

/// Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(pub u64);

impl Handle {
    fn new(place: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | (u64::from(place) + 1))
    }

    fn parts(self) -> Option<(usize, u32)> {
        let place = (self.0 & 0xffff_ffff).checked_sub(1)?;
        Some((usize::try_from(place).ok()?, (self.0 >> 32) as u32))
    }
}

/// Why a rule was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdded {
    /// A rule with the same match and priority is there.
    Exists,
    /// There are too many.
    Full,
}

impl FlowTable {
    /// Adds a rule.
    ///
    /// # Errors
    /// See [`NotAdded`].
    pub fn insert(&mut self, rule: &Arc<Rule>) -> Result<Handle, NotAdded> {
        let of = |n: u32| self.places.get(n as usize).and_then(|p| p.rule.as_ref());
        if self.index.find(rule.print, |n| of(n).is_some_and(|other| other.same_match(rule))).is_some() {
            return Err(NotAdded::Exists);
        }
        let n = match self.free.pop() {
            Some(n) => n,
            None => {
                let n = u32::try_from(self.places.len()).ok().filter(|n| *n < u32::MAX);
                let n = n.ok_or(NotAdded::Full)?;
                self.places.push(Place::default());
                n
            }
        };
        self.index.add(rule.print, n);
        let place = self.places.get_mut(n as usize).ok_or(NotAdded::Full)?;
        place.rule = Some(Arc::clone(rule));
        Ok(Handle::new(n, place.generation))
    }

    /// The rule of a handle.
    pub fn get(&self, handle: Handle) -> Option<&Arc<Rule>> {
        let (n, generation) = handle.parts()?;
        self.places.get(n).filter(|p| p.generation == generation)?.rule.as_ref()
    }

    /// Takes a rule out.
    pub fn take(&mut self, handle: Handle) -> Option<Arc<Rule>> {
        let (n, generation) = handle.parts()?;
        let place = self.places.get_mut(n).filter(|p| p.generation == generation)?;
        let rule = place.rule.take()?;
        place.generation = place.generation.wrapping_add(1);
        let n = u32::try_from(n).ok()?;
        self.index.remove(rule.print, n);
        self.free.push(n);
        Some(rule)
    }

    /// Takes all rules out.
    pub fn take_all(&mut self) -> Vec<Arc<Rule>> {
        let mut rules = Vec::new();
        for (n, place) in self.places.iter_mut().enumerate() {
            if let (Some(rule), Ok(n)) = (place.rule.take(), u32::try_from(n)) {
                place.generation = place.generation.wrapping_add(1);
                self.free.push(n);
                rules.push(rule);
            }
        }
        self.index.clear();
        self.forms.clear();
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::room::Taking;
    use crate::nic::rules::{Prints, Shape, values};
    use flowlift_driver::nic::TableId;
    use flowlift_flow::Match;

    fn rule(prints: &Prints, port: u32) -> Arc<Rule> {
        let mut m = Match::default();
        (m.key.in_port, m.mask.0.in_port) = (port, u32::MAX);
        let room = Taking { table: TableId(0), mask: 0, entries: 1 };
        let shape = Shape::new(&m, (vec![], None), 0, true, room, prints);
        let print = shape.print_of(&values(&m), prints);
        Arc::new(Rule::new(Arc::new(shape), values(&m), print))
    }

    #[test]
    fn a_handle_is_good_for_its_rule_alone() {
        let prints = Prints::default();
        let mut table = FlowTable::default();
        let first = table.insert(&rule(&prints, 1)).unwrap();
        assert_eq!(table.insert(&rule(&prints, 1)), Err(NotAdded::Exists));
        assert!(table.take(first).is_some());
        assert!(table.take(first).is_none());
        let second = table.insert(&rule(&prints, 2)).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none() && table.get(second).is_some());
        for wild in [0, 1 << 32, u64::MAX, 0xdead_beef, second.0 + 1] {
            assert!(table.get(Handle(wild)).is_none(), "{wild:#x}");
        }
        assert!(table.insert(&rule(&prints, 1)).is_ok());
        assert_eq!(table.take_all().len(), 2);
        assert!(table.get(second).is_none());
        assert!(table.insert(&rule(&prints, 2)).is_ok());
    }
}
