//! Fingerprints: how the planner knows what it installed without keeping it.

use crate::lower::Plan;
use std::hash::{BuildHasher, Hasher};

/// Takes fingerprints, with a key of its own: two of different planners say nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Prints(hashbrown::DefaultHashBuilder);

impl Prints {
    /// Of a plan's table, priorities, keys and masks; and of the whole, as the driver encodes it.
    pub(super) fn of(&self, plan: &Plan, bytes: &[u8]) -> (u64, u64) {
        let (mut place, mut whole) = (self.0.build_hasher(), self.0.build_hasher());
        place.write_u16(plan.table.0);
        for entry in &plan.entries {
            place.write_u16(entry.priority);
            place.write(&entry.key);
            place.write(&entry.mask);
        }
        whole.write_u16(plan.table.0);
        whole.write(bytes);
        (place.finish(), whole.finish())
    }
}
