//! The memory of a table's entries: a row for each id, beside it key and actions.

use super::Counters;
use crate::action::UNIT;
use crate::ram::Ram;
use std::collections::HashMap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Action units beside the key; longer lists, which few entries have, lie elsewhere.
const UNITS_INLINE: usize = 2;

/// Values of [`Entry::state`]; fresh memory is free.
const INSTALLED: u8 = 1;
const DAMAGED: u8 = 2;

/// What is known of an entry besides key and actions: one cache line.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) counters: Counters,
    /// When it was installed, device clock.
    pub(crate) installed: u64,
    pub(crate) generation: u32,
    pub(crate) age_ms: u32,
    /// Hash of its key under its mask: where the index has it.
    pub(super) hash: u32,
    /// Slot of its mask in the index.
    pub(super) slot: u32,
    pub(crate) priority: u16,
    pub(super) state: u8,
    pub(super) units: u8,
    pub(super) reserved: u32,
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    /// Its memory failed the parity check: it is in no index any more.
    pub(crate) fn damaged(&self) -> bool {
        self.state == DAMAGED
    }

    pub(super) fn set_damaged(&mut self) {
        self.state = DAMAGED;
    }
}

/// Entries by id. Memory is taken with the first one.
#[derive(Debug)]
pub(super) struct Store {
    max: u32,
    key_bytes: usize,
    /// Ids from here on have never had an entry.
    end: u32,
    rows: Ram,
    /// Key, then actions, of each entry.
    blobs: Ram,
    long_actions: HashMap<u32, Box<[u8]>>,
}

impl Store {
    /// Room for `max` entries with keys of `key_bytes`.
    pub(super) fn new(max: u32, key_bytes: usize) -> Self {
        Self {
            max,
            key_bytes,
            end: 0,
            rows: Ram::default(),
            blobs: Ram::default(),
            long_actions: HashMap::new(),
        }
    }

    fn stride(&self) -> usize {
        self.key_bytes + UNITS_INLINE * UNIT
    }

    pub(super) fn get(&self, id: u32) -> Option<&Entry> {
        self.rows.record::<Entry>(id as usize).filter(|e| e.state != 0)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.rows.record_mut::<Entry>(id as usize).filter(|e| e.state != 0)
    }

    /// Key of an entry, within its mask.
    pub(super) fn key(&self, id: u32) -> &[u8] {
        self.blobs.bytes(id as usize * self.stride(), self.key_bytes).unwrap_or(&[])
    }

    /// The same, to be damaged.
    pub(super) fn key_mut(&mut self, id: u32) -> &mut [u8] {
        let at = id as usize * self.stride();
        self.blobs.bytes_mut(at, self.key_bytes).unwrap_or(&mut [])
    }

    /// Action units of an entry, validated.
    pub(super) fn actions(&self, id: u32) -> &[u8] {
        let units = self.get(id).map_or(0, |e| usize::from(e.units));
        if units > UNITS_INLINE {
            return self.long_actions.get(&id).map_or(&[], |a| a);
        }
        self.blobs.bytes(id as usize * self.stride() + self.key_bytes, units * UNIT).unwrap_or(&[])
    }

    fn take_memory(&mut self) {
        if self.rows.is_empty() {
            self.rows = Ram::new(self.max as usize * size_of::<Entry>());
            self.blobs = Ram::new(self.max as usize * self.stride());
        }
    }

    /// Touches the memory of the first `entries` ids.
    pub(super) fn populate(&mut self, entries: u32) {
        self.take_memory();
        self.rows.populate(entries as usize * size_of::<Entry>());
        self.blobs.populate(entries as usize * self.stride());
    }

    /// Installs an entry, of which `row` has all but key and actions.
    pub(super) fn put(&mut self, id: u32, row: Entry, key: &[u8], actions: &[u8]) {
        self.take_memory();
        let Some(e) = self.rows.record_mut::<Entry>(id as usize) else { return };
        *e = Entry { state: INSTALLED, ..row };
        self.end = self.end.max(id + 1);
        self.key_mut(id).copy_from_slice(key);
        self.set_actions(id, actions);
    }

    /// Swaps an entry's actions.
    pub(super) fn set_actions(&mut self, id: u32, actions: &[u8]) {
        let units = actions.len() / UNIT;
        let before = self.get_mut(id).map_or(0, |e| std::mem::replace(&mut e.units, units as u8));
        let at = id as usize * self.stride() + self.key_bytes;
        if units > UNITS_INLINE {
            self.long_actions.insert(id, actions.into());
        } else {
            if usize::from(before) > UNITS_INLINE {
                self.long_actions.remove(&id);
            }
            if let Some(place) = self.blobs.bytes_mut(at, actions.len()) {
                place.copy_from_slice(actions);
            }
        }
    }

    /// Removes an entry; what it was.
    pub(super) fn take(&mut self, id: u32) -> Option<Entry> {
        let e = self.get_mut(id)?;
        let taken = *e;
        *e = Entry::default();
        if usize::from(taken.units) > UNITS_INLINE {
            self.long_actions.remove(&id);
        }
        Some(taken)
    }

    /// All ids that ever had an entry are below this.
    pub(super) fn end(&self) -> u32 {
        self.end
    }
}
