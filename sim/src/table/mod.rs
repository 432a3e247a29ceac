//! A match-action table: entries, their counters, and the index that finds them.
//!
//! Entries live by their id ([`store`]); the index ([`index`]) only knows ids. HASH and TCAM differ in how the index
//! orders masks and hits, and in what an insert may run out of.

mod index;
mod store;
mod validate;

use crate::field::{KEY_BYTES, PacketKey};
use crate::profile::{TableKind, TableSpec};
use index::Index;
use std::collections::BTreeMap;
pub(crate) use store::Entry;
use store::Store;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of the longest key.
pub(crate) const WORDS: usize = KEY_BYTES / 8;

/// Why a table refused a command; the numbers are those of the completion's status and detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableError {
    BadEntry,
    InUse { generation: u32 },
    NotFound,
    MasksFull,
    Duplicate { entry: u32, generation: u32 },
    BadMask { field: u16 },
    BadKey { field: u16 },
    Parity { generation: u32 },
    BadKeyLen,
    BadPriority,
}

/// What an entry has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) last_used: u64,
    pub(crate) tcp_flags: u16,
    /// Nothing, so that an entry is all words.
    pub(crate) reserved: [u16; 3],
}

impl Counters {
    /// The counter page's record (FL1.md, section 5).
    pub(crate) fn page_record(&self, generation: u32) -> [u8; 32] {
        let mut r = [0; 32];
        r[0..8].copy_from_slice(&self.packets.to_le_bytes());
        r[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        r[16..24].copy_from_slice(&self.last_used.to_le_bytes());
        r[24..26].copy_from_slice(&self.tcp_flags.to_le_bytes());
        r[28..32].copy_from_slice(&generation.to_le_bytes());
        r
    }
}

/// What INSERT brings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewEntry<'a> {
    pub(crate) priority: u16,
    pub(crate) generation: u32,
    pub(crate) age_ms: u32,
    pub(crate) now: u64,
    pub(crate) key: &'a [u8],
    pub(crate) mask: &'a [u8],
    pub(crate) actions: &'a [u8],
}

/// A run of packet-key bytes that a table's key blob takes over as one.
#[derive(Debug, Clone, Copy)]
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

/// One table.
pub(crate) struct Table {
    pub(crate) spec: TableSpec,
    /// IOVA of the counter page.
    pub(crate) page: Option<u64>,
    /// The pressure event for "high" was the last one sent.
    pub(crate) pressed: bool,
    entries: Store,
    used: u32,
    index: Index,
    gather: Vec<Run>,
    /// What the masks of damaged entries read as: their slots may have been freed.
    lost_masks: BTreeMap<u32, Vec<u8>>,
}

/// A blob as words in memory order, and how many.
#[derive(Debug, Clone, Copy)]
struct Words([u64; WORDS], usize);

impl Words {
    fn new(b: &[u8]) -> Self {
        let mut w = [0; WORDS];
        let chunks = b.as_chunks::<8>().0;
        for (w, b) in w.iter_mut().zip(chunks) {
            *w = u64::from_ne_bytes(*b);
        }
        Self(w, chunks.len().min(WORDS))
    }
    fn as_slice(&self) -> &[u64] {
        &self.0[..self.1]
    }
}

/// A checked match: slot of its mask in the index and hash under it, if the mask is in use already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Match(Option<(u32, u32)>);

fn bytes(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

impl Table {
    pub(crate) fn new(spec: TableSpec) -> Self {
        let mut gather: Vec<Run> = Vec::new();
        for f in &spec.fields {
            let (from, len) = (f.field.offset(), f.field.bytes());
            match gather.last_mut() {
                Some(r) if r.from + r.len == from && r.to + r.len == f.offset => r.len += len,
                _ => gather.push(Run { from, to: f.offset, len }),
            }
        }
        let index = Index::new(spec.kind == TableKind::Tcam, spec.max_entries);
        let entries = Store::new(spec.max_entries, spec.key_bytes);
        Self {
            spec,
            page: None,
            pressed: false,
            entries,
            used: 0,
            index,
            gather,
            lost_masks: BTreeMap::new(),
        }
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Forgets everything, as a reset does.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.spec.clone());
    }

    /// Touches the memory that the first `entries` ids need.
    pub(crate) fn populate(&mut self, entries: u32) {
        self.entries.populate(entries.min(self.spec.max_entries));
        self.index.populate();
    }

    pub(crate) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    /// Action units of an entry, validated.
    pub(crate) fn actions(&self, id: u32) -> &[u8] {
        self.entries.actions(id)
    }

    /// Reads an entry's memory, so that it is in the cache when it is needed; gives what [`Self::touch_hash`] wants,
    /// to be asked once many entries were touched: the reads of a batch then wait for memory together.
    pub(crate) fn touch_entry(&self, id: u32) -> u32 {
        self.entries.get(id).map_or(0, |e| e.hash)
    }

    /// The same for a key and mask that are to be inserted.
    pub(crate) fn touch_new(&self, id: u32, key: &[u8], mask: &[u8]) -> u32 {
        std::hint::black_box(self.touch_entry(id));
        let slot = self.index.slot(Words::new(mask).as_slice());
        slot.map_or(0, |slot| index::hash(slot, Words::new(key).as_slice()))
    }

    /// Reads the index where an entry with this hash is or would be.
    pub(crate) fn touch_hash(&self, hash: u32) -> u32 {
        self.index.touch(hash)
    }

    /// The entry that a packet with this key hits.
    pub(crate) fn lookup(&self, packet: &PacketKey) -> Option<u32> {
        let mut blob = [0u8; KEY_BYTES];
        for r in &self.gather {
            blob[r.to..r.to + r.len].copy_from_slice(&packet.0[r.from..r.from + r.len]);
        }
        let key = Words::new(&blob[..self.spec.key_bytes]);
        self.index.lookup(key.as_slice(), &self.entries)
    }

    /// Everything that INSERT checks, without effect. Actions are the caller's to validate.
    pub(crate) fn check_insert(&self, id: u32, new: &NewEntry<'_>) -> Result<(), TableError> {
        self.check_id(id)?;
        if let Some(e) = self.entry(id) {
            return Err(TableError::InUse { generation: e.generation });
        }
        if new.key.len() != self.spec.key_bytes || new.mask.len() != self.spec.key_bytes {
            return Err(TableError::BadKeyLen);
        }
        if self.spec.kind == TableKind::Hash && new.priority != 0 {
            return Err(TableError::BadPriority);
        }
        Ok(())
    }

    /// Checks mask and key. A mask that other entries have was checked for them.
    pub(crate) fn check_match(&self, new: &NewEntry<'_>) -> Result<Match, TableError> {
        let (key, mask) = (Words::new(new.key), Words::new(new.mask));
        let slot = self.index.slot(mask.as_slice());
        let inside = key.as_slice().iter().zip(mask.as_slice()).all(|(k, m)| k & !m == 0);
        if slot.is_none() || !inside {
            validate::mask_and_key(&self.spec, new.key, new.mask)?;
        }
        Ok(Match(slot.map(|slot| (slot, index::hash(slot, key.as_slice())))))
    }

    /// Checks what the index can run into.
    pub(crate) fn check_room(&self, m: &Match, new: &NewEntry<'_>) -> Result<(), TableError> {
        let Some((slot, hash)) = m.0 else {
            let full =
                self.spec.kind == TableKind::Hash && self.index.masks() >= self.spec.max_masks as usize;
            return if full { Err(TableError::MasksFull) } else { Ok(()) };
        };
        match self.index.duplicate(slot, hash, new.key, new.priority, &self.entries) {
            Some(entry) => {
                let generation = self.entry(entry).map_or(0, |e| e.generation);
                Err(TableError::Duplicate { entry, generation })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn check_id(&self, id: u32) -> Result<(), TableError> {
        if id < self.spec.max_entries { Ok(()) } else { Err(TableError::BadEntry) }
    }

    /// Installs an entry that passed the checks.
    pub(crate) fn insert(&mut self, id: u32, new: &NewEntry<'_>, m: &Match) {
        let (slot, hash) = m.0.unwrap_or_else(|| {
            let slot = self.index.open_slot(Words::new(new.mask).as_slice());
            (slot, index::hash(slot, Words::new(new.key).as_slice()))
        });
        let row = Entry {
            generation: new.generation,
            age_ms: new.age_ms,
            installed: new.now,
            slot,
            hash,
            priority: new.priority,
            ..Entry::default()
        };
        self.entries.put(id, row, new.key, new.actions);
        self.used += 1;
        self.index.add(slot, hash, id, new.priority);
    }

    /// Swaps actions and generation.
    pub(crate) fn replace(&mut self, id: u32, generation: u32, actions: &[u8]) {
        self.entries.set_actions(id, actions);
        if let Some(e) = self.entry_mut(id) {
            e.generation = generation;
        }
    }

    /// The entry that REPLACE and DELETE are about.
    pub(crate) fn existing(&self, id: u32) -> Result<&Entry, TableError> {
        self.check_id(id)?;
        self.entry(id).ok_or(TableError::NotFound)
    }

    /// Removes an entry.
    pub(crate) fn delete(&mut self, id: u32) -> Option<Entry> {
        let e = self.entries.take(id)?;
        if e.damaged() {
            self.lost_masks.remove(&id);
        } else {
            self.index.remove(id, &e);
        }
        self.used -= 1;
        Some(e)
    }

    /// Removes all entries; gives how many there were.
    pub(crate) fn flush(&mut self) -> u32 {
        self.entries = Store::new(self.spec.max_entries, self.spec.key_bytes);
        self.lost_masks.clear();
        self.index = Index::new(self.spec.kind == TableKind::Tcam, self.spec.max_entries);
        std::mem::take(&mut self.used)
    }

    /// Key and mask of an entry as blobs.
    pub(crate) fn blobs(&self, id: u32, e: &Entry) -> (Vec<u8>, Vec<u8>) {
        let mask = match self.lost_masks.get(&id) {
            Some(m) => m.clone(),
            None => bytes(self.index.mask(e.slot)),
        };
        (self.entries.key(id).to_vec(), mask)
    }

    /// The id of the `n`-th installed entry from id `from` on, going around: any of them for a fault to strike.
    pub(crate) fn some_entry(&self, from: u64) -> Option<u32> {
        let len = self.entries.end();
        let start = if len == 0 { 0 } else { (from % u64::from(len)) as u32 };
        (start..len).chain(0..start).find(|&i| self.entry(i).is_some())
    }

    /// Flips a bit of an entry's memory. The parity check finds it at once: the entry leaves the index. Gives its
    /// generation.
    pub(crate) fn damage(&mut self, id: u32, bit: u64) -> Option<u32> {
        let e = *self.entries.get(id)?;
        if e.damaged() {
            return None;
        }
        self.index.remove(id, &e);
        self.lost_masks.insert(id, bytes(self.index.mask(e.slot)));
        self.entries.get_mut(id)?.set_damaged();
        let key = self.entries.key_mut(id);
        let at = (bit / 8) as usize % key.len().max(1);
        if let Some(b) = key.get_mut(at) {
            *b ^= 1 << (bit % 8);
        }
        Some(e.generation)
    }
}

#[cfg(test)]
mod tests;
