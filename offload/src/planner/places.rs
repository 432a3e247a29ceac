//! Which places of the NIC's tables are free, and whose the others are.

use super::slot::FlowId;
use flowlift_driver::nic::{EntryId, NicCaps, TableId};
use std::collections::BTreeMap;

/// Instead of an owner: nobody's, and its last entry counted nothing; nobody's, and the device may still say what that counted.
const FREE: u32 = u32::MAX;
const LEFT: u32 = u32::MAX - 1;

/// A place that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u32,
    /// The device may say of it what an earlier entry had counted.
    pub(crate) left: bool,
}

#[derive(Debug, Clone, Default)]
struct Table {
    max: u32,
    /// Owner of each place that was ever used.
    owners: Vec<u32>,
    /// Places given back, the last first.
    free: Vec<u32>,
    /// Places that were used before the tables were lost.
    before: usize,
}

fn is_flow(owner: u32) -> bool {
    owner < LEFT
}

/// Places of all tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlaceMap {
    tables: BTreeMap<TableId, Table>,
}

impl PlaceMap {
    pub(crate) fn new(caps: &NicCaps) -> Self {
        let table = |max| Table { max, ..Table::default() };
        Self { tables: caps.tables.iter().map(|t| (t.id, table(t.max_entries))).collect() }
    }

    /// Entries in use.
    pub(crate) fn used(&self, table: TableId) -> u32 {
        let count = |t: &Table| u32::try_from(t.owners.len() - t.free.len()).unwrap_or(u32::MAX);
        self.tables.get(&table).map_or(0, count)
    }

    /// Takes a free place for a flow; `None` if the table is full.
    pub(crate) fn take(&mut self, table: TableId, flow: FlowId) -> Option<Place> {
        let t = self.tables.get_mut(&table)?;
        if let Some(index) = t.free.pop() {
            let before = std::mem::replace(t.owners.get_mut(index as usize)?, flow.0);
            return Some(Place { index, left: before != FREE });
        }
        let index = u32::try_from(t.owners.len()).ok().filter(|n| *n < t.max)?;
        let left = t.owners.len() < t.before;
        t.owners.push(flow.0);
        Some(Place { index, left })
    }

    /// Gives a place back; whether its entry may have counted.
    pub(crate) fn give(&mut self, id: EntryId, counted: bool) {
        let Some(t) = self.tables.get_mut(&id.table) else { return };
        if let Some(owner) = t.owners.get_mut(id.index as usize).filter(|o| is_flow(**o)) {
            *owner = if counted { LEFT } else { FREE };
            t.free.push(id.index);
        }
    }

    /// Whose a place is.
    pub(crate) fn owner(&self, id: EntryId) -> Option<FlowId> {
        let owner = *self.tables.get(&id.table)?.owners.get(id.index as usize)?;
        is_flow(owner).then_some(FlowId(owner))
    }

    /// The flow at or after a place, and that place; for walking a table bit by bit.
    pub(crate) fn next_owner(&self, from: EntryId) -> Option<(EntryId, FlowId)> {
        let owners = &self.tables.get(&from.table)?.owners;
        let rest = owners.get(from.index as usize..)?;
        let n = rest.iter().position(|o| is_flow(*o))?;
        let index = from.index + u32::try_from(n).ok()?;
        Some((EntryId { table: from.table, index }, FlowId(rest[n])))
    }

    /// Frees everything: the device's tables are empty.
    pub(crate) fn clear(&mut self) {
        self.tables.values_mut().for_each(|t| {
            t.before = t.before.max(t.owners.len());
            t.owners.clear();
            t.free.clear();
        });
    }
}
