//! How full the NIC's tables are by the rules that were accepted: what lets a creation be answered without asking the NIC.

use flowlift_driver::nic::{NicCaps, TableId, TableKind};
use flowlift_offload::lower::Plan;
use std::hash::{BuildHasher, RandomState};

struct Table {
    id: TableId,
    entries: u32,
    max_entries: u32,
    max_masks: Option<u32>,
    /// Rules per mask, by the mask's fingerprint.
    masks: hashbrown::HashMap<u64, u32>,
}

/// Room in every table.
pub struct Room {
    tables: Vec<Table>,
    hasher: RandomState,
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
        Self { tables: caps.tables.iter().map(table).collect(), hasher: RandomState::new() }
    }

    /// Takes room for a plan; what [`Room::give`] needs to give it back. `None`: there is none in its table.
    pub fn take(&mut self, plan: &Plan) -> Option<(TableId, u64, u32)> {
        let table = self.tables.iter_mut().find(|t| t.id == plan.table)?;
        let need = u32::try_from(plan.entries.len()).ok()?;
        let after = table.entries.checked_add(need).filter(|n| *n <= table.max_entries)?;
        let mask = if let Some(max) = table.max_masks {
            let mask = self.hasher.hash_one(&plan.entries.first()?.mask);
            let full = table.masks.len() >= max as usize;
            match table.masks.get_mut(&mask) {
                Some(users) => *users += 1,
                None if full => return None,
                None => {
                    table.masks.insert(mask, 1);
                }
            }
            mask
        } else {
            0
        };
        table.entries = after;
        Some((plan.table, mask, need))
    }

    /// Gives room back.
    pub fn give(&mut self, (id, mask, entries): (TableId, u64, u32)) {
        let Some(table) = self.tables.iter_mut().find(|t| t.id == id) else { return };
        table.entries = table.entries.saturating_sub(entries);
        if let Some(users) = table.masks.get_mut(&mask) {
            *users -= 1;
            if *users == 0 {
                table.masks.remove(&mask);
            }
        }
    }
}
