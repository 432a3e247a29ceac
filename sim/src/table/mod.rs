//! A match-action table: entries, their counters, and the index that finds them.
//!
//! Entries live by their id; the index ([`index`]) only knows ids. HASH and TCAM differ in how the index orders masks
//! and hits, and in what an insert may run out of.

mod index;
mod validate;

use crate::field::{KEY_BYTES, PacketKey};
use crate::profile::{TableKind, TableSpec};
use index::Index;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) last_used: u64,
    pub(crate) tcp_flags: u16,
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

/// An installed entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) generation: u32,
    pub(crate) age_ms: u32,
    /// When it was installed, device clock.
    pub(crate) installed: u64,
    pub(crate) counters: Counters,
    /// Action units, validated.
    pub(crate) actions: Box<[u8]>,
    /// Key as words in memory order; within the mask.
    key: Box<[u64]>,
    /// Slot of its mask in the index.
    slot: u32,
    pub(crate) priority: u16,
    /// Its memory failed the parity check: it is in no index any more.
    pub(crate) damaged: bool,
    /// What a damaged entry's mask reads as: its slot may have been freed.
    lost_mask: Option<Box<[u64]>>,
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
    entries: Vec<Option<Box<Entry>>>,
    used: u32,
    index: Index,
    gather: Vec<Run>,
}

/// Bytes to words in memory order.
fn words(b: &[u8]) -> Box<[u64]> {
    b.as_chunks::<8>().0.iter().map(|w| u64::from_ne_bytes(*w)).collect()
}

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
        let index = Index::new(spec.kind == TableKind::Tcam);
        Self { spec, page: None, pressed: false, entries: Vec::new(), used: 0, index, gather }
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Forgets everything, as a reset does.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.spec.clone());
    }

    pub(crate) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_deref()
    }

    pub(crate) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_deref_mut()
    }

    /// The entry that a packet with this key hits.
    pub(crate) fn lookup(&self, packet: &PacketKey) -> Option<u32> {
        let mut blob = [0u8; KEY_BYTES];
        for r in &self.gather {
            blob[r.to..r.to + r.len].copy_from_slice(&packet.0[r.from..r.from + r.len]);
        }
        let mut key = [0u64; WORDS];
        for (w, b) in key.iter_mut().zip(blob.as_chunks::<8>().0) {
            *w = u64::from_ne_bytes(*b);
        }
        self.index.lookup(&key[..self.spec.key_bytes / 8], &self.entries)
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

    /// Checks key and mask, then whether there is room for them.
    pub(crate) fn check_match(&self, new: &NewEntry<'_>) -> Result<(), TableError> {
        validate::mask_and_key(&self.spec, new.key, new.mask)
    }

    /// Checks what the index can run into.
    pub(crate) fn check_room(&self, new: &NewEntry<'_>) -> Result<(), TableError> {
        let (key, mask) = (words(new.key), words(new.mask));
        if let Some(entry) = self.index.duplicate(&key, &mask, new.priority, &self.entries) {
            let generation = self.entry(entry).map_or(0, |e| e.generation);
            return Err(TableError::Duplicate { entry, generation });
        }
        let full = self.spec.kind == TableKind::Hash
            && !self.index.has_mask(&mask)
            && self.index.masks() >= self.spec.max_masks as usize;
        if full { Err(TableError::MasksFull) } else { Ok(()) }
    }

    pub(crate) fn check_id(&self, id: u32) -> Result<(), TableError> {
        if id < self.spec.max_entries { Ok(()) } else { Err(TableError::BadEntry) }
    }

    /// Installs an entry that passed the checks.
    pub(crate) fn insert(&mut self, id: u32, new: &NewEntry<'_>) {
        let at = id as usize;
        if self.entries.len() <= at {
            self.entries.resize_with(at + 1, || None);
        }
        let mask = words(new.mask);
        let slot = self.index.slot_for(&mask);
        self.entries[at] = Some(Box::new(Entry {
            generation: new.generation,
            age_ms: new.age_ms,
            installed: new.now,
            counters: Counters::default(),
            actions: new.actions.into(),
            key: words(new.key),
            slot,
            priority: new.priority,
            damaged: false,
            lost_mask: None,
        }));
        self.used += 1;
        self.index.add(id, &self.entries);
    }

    /// Swaps actions and generation.
    pub(crate) fn replace(&mut self, id: u32, generation: u32, actions: &[u8]) {
        if let Some(e) = self.entry_mut(id) {
            e.actions = actions.into();
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
        if !self.entry(id)?.damaged {
            self.index.remove(id, &self.entries);
        }
        self.used -= 1;
        self.entries.get_mut(id as usize)?.take().map(|e| *e)
    }

    /// Removes all entries; gives how many there were.
    pub(crate) fn flush(&mut self) -> u32 {
        self.entries.clear();
        self.index = Index::new(self.spec.kind == TableKind::Tcam);
        std::mem::take(&mut self.used)
    }

    /// Key and mask of an entry as blobs.
    pub(crate) fn blobs(&self, e: &Entry) -> (Vec<u8>, Vec<u8>) {
        let mask = match &e.lost_mask {
            Some(m) => bytes(m),
            None => bytes(self.index.mask(e.slot)),
        };
        (bytes(&e.key), mask)
    }

    /// The id of the `n`-th installed entry from id `from` on, going around: any of them for a fault to strike.
    pub(crate) fn some_entry(&self, from: u64) -> Option<u32> {
        let len = self.entries.len();
        let start = if len == 0 { 0 } else { (from % len as u64) as usize };
        (start..len).chain(0..start).find(|&i| self.entries[i].is_some()).map(|i| i as u32)
    }

    /// Flips a bit of an entry's memory. The parity check finds it at once: the entry leaves the index. Gives its
    /// generation.
    pub(crate) fn damage(&mut self, id: u32, bit: u64) -> Option<u32> {
        if self.entry(id)?.damaged {
            return None;
        }
        self.index.remove(id, &self.entries);
        let slot = self.entry(id)?.slot;
        let mask = self.index.mask(slot).into();
        let e = self.entry_mut(id)?;
        e.damaged = true;
        e.lost_mask = Some(mask);
        let word = (bit / 64) as usize % e.key.len().max(1);
        if let Some(w) = e.key.get_mut(word) {
            *w ^= 1 << (bit % 64);
        }
        Some(e.generation)
    }
}

#[cfg(test)]
mod tests;
