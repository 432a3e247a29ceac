//! How full the NIC's tables are by the rules that were accepted: what lets a creation be answered without asking the NIC.

use flowlift_driver::nic::{NicCaps, TableId, TableKind};
use flowlift_offload::lower::Plan;
use std::hash::BuildHasher;

struct Table {
    id: TableId,
    entries: u32,
    max_entries: u32,
    max_masks: Option<u32>,
    /// Rules per mask, by the mask's fingerprint.
    masks: hashbrown::HashMap<u64, u32>,
}

/// Room that a rule takes: in which table, for which mask by its fingerprint, and for how many entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Taking {
    pub table: TableId,
    pub mask: u64,
    pub entries: u32,
}

/// Room in every table.
pub struct Room {
    tables: Vec<Table>,
    hasher: hashbrown::DefaultHashBuilder,
}

impl Room {
    /// Of a NIC whose tables are empty.
    pub fn new(caps: &NicCaps) -> Self {
        let table = |t: &flowlift_driver::nic::TableCaps| Table {
            id: t.id,
            entries: 0,
            max_entries: t.max_entries,
            max_masks: match t.kind {
                TableKind::Hash { max_masks } => Some(max_masks),
                TableKind::Tcam => None,
            },
            masks: hashbrown::HashMap::new(),
        };
        Self { tables: caps.tables.iter().map(table).collect(), hasher: Default::default() }
    }

    /// Takes room for a plan; what [`Room::give`] needs to give it back. `None`: there is none in its table.
    pub fn take(&mut self, plan: &Plan) -> Option<Taking> {
        let table = self.tables.iter().find(|t| t.id == plan.table)?;
        let entries = u32::try_from(plan.entries.len()).ok()?;
        let mask = match table.max_masks {
            Some(_) => self.hasher.hash_one(&plan.entries.first()?.mask),
            None => 0,
        };
        let taking = Taking { table: plan.table, mask, entries };
        self.take_again(taking).then_some(taking)
    }

    /// Takes the room that a plan like this one took. False: there is none in its table.
    pub fn take_again(&mut self, taking: Taking) -> bool {
        let Some(table) = self.tables.iter_mut().find(|t| t.id == taking.table) else { return false };
        let after = table.entries.checked_add(taking.entries).filter(|n| *n <= table.max_entries);
        let Some(after) = after else { return false };
        if let Some(max) = table.max_masks {
            let full = table.masks.len() >= max as usize;
            match table.masks.get_mut(&taking.mask) {
                Some(users) => *users += 1,
                None if full => return false,
                None => {
                    table.masks.insert(taking.mask, 1);
                }
            }
        }
        table.entries = after;
        true
    }

    /// Gives room back.
    pub fn give(&mut self, Taking { table, mask, entries }: Taking) {
        let Some(table) = self.tables.iter_mut().find(|t| t.id == table) else { return };
        table.entries = table.entries.saturating_sub(entries);
        if let Some(users) = table.masks.get_mut(&mask) {
            *users -= 1;
            if *users == 0 {
                table.masks.remove(&mask);
            }
        }
    }
}
