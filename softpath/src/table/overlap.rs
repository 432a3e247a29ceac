//! Flows that overlap (R22): which pairs does some packet match both of?
//!
//! Within one mask no two flows overlap. For each pair of masks the flows are brought together by a hash of the bits that
//! both masks have, so the cost is flows times masks, not flows times flows. Two masks whose flows differ in a bit that is
//! the same in all flows of each need not be looked at: most pairs of a real table, whose flows differ by port or type.

use super::hash::Seeds;
use super::record::{FlowId, FlowRecord};
use super::shape::{SparseMask, and};
use flowlift_flow::key::HOT_WORDS;

/// Two flows that some packet matches both of (R22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The flow in the lower slot.
    pub first: FlowId,
    /// The other.
    pub second: FlowId,
}

/// A flow. The words that every pair of masks hashes lie beside those of its neighbours: records are all over the heap.
struct Row<'a> {
    hot: [u64; HOT_WORDS],
    slot: u32,
    record: &'a FlowRecord,
}

impl Row<'_> {
    fn id(&self) -> FlowId {
        FlowId { slot: self.slot, generation: self.record.generation() }
    }
}

/// The flows of one mask.
pub(super) struct Group<'a> {
    mask: &'a SparseMask,
    rows: Vec<Row<'a>>,
    /// Bits of the mask that are the same in all flows, and what they are.
    fixed: [u64; HOT_WORDS],
    value: [u64; HOT_WORDS],
}

impl<'a> Group<'a> {
    /// The flows of `mask`.
    pub(super) fn new(mask: &'a SparseMask, flows: impl Iterator<Item = (u32, &'a FlowRecord)>) -> Self {
        let rows: Vec<Row<'a>> =
            flows.map(|(slot, record)| Row { hot: *record.hot(), slot, record }).collect();
        let value = rows.first().map_or([0; HOT_WORDS], |row| row.hot);
        let mut fixed = mask.hot;
        for row in &rows {
            for n in 0..HOT_WORDS {
                fixed[n] &= !(row.hot[n] ^ value[n]);
            }
        }
        Self { mask, rows, fixed, value }
    }

    /// True if no flow of one can overlap a flow of the other.
    fn is_apart(&self, other: &Self) -> bool {
        (0..HOT_WORDS).any(|n| (self.value[n] ^ other.value[n]) & self.fixed[n] & other.fixed[n] != 0)
    }
}

/// Chains of rows by hash, used again for each pair of masks.
#[derive(Default)]
struct Chains {
    /// By the hash's low bits: the first row of the chain plus one, 0 without one.
    heads: Vec<u32>,
    /// By row: its hash, and the next row of its chain plus one.
    links: Vec<(u64, u32)>,
}

impl Chains {
    fn fill(&mut self, hashes: impl ExactSizeIterator<Item = u64>) {
        self.heads.clear();
        self.heads.resize((hashes.len() * 2).next_power_of_two(), 0);
        self.links.clear();
        let low = self.heads.len() - 1;
        for (n, hash) in hashes.enumerate() {
            let head = &mut self.heads[hash as usize & low];
            self.links.push((hash, *head));
            *head = n as u32 + 1;
        }
    }

    /// Rows with this hash.
    fn find(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let mut next = self.heads[hash as usize & (self.heads.len() - 1)];
        std::iter::from_fn(move || {
            while let Some(row) = next.checked_sub(1) {
                let (found, after) = self.links[row as usize];
                next = after;
                if found == hash {
                    return Some(row as usize);
                }
            }
            None
        })
    }
}

/// Pairs of flows that overlap, at most `limit` of them; in order if these are all.
pub(super) fn find(groups: &[Group<'_>], seeds: &Seeds, limit: usize) -> Vec<Overlap> {
    let mut out = Vec::new();
    let mut chains = Chains::default();
    for (n, a) in groups.iter().enumerate() {
        for b in groups[n + 1..].iter().filter(|b| !a.is_apart(b)) {
            let common = a.mask.common(b.mask);
            let hash = |row: &Row<'_>| {
                let hot = seeds.hash8(&and(&row.hot, &common.hot));
                row.record.hash_rest_under(&common, seeds, hot)
            };
            let (few, many) = if a.rows.len() <= b.rows.len() { (a, b) } else { (b, a) };
            chains.fill(few.rows.iter().map(hash));
            for row in &many.rows {
                let others = chains.find(hash(row)).map(|other| &few.rows[other]);
                for other in others.filter(|other| row.record.overlaps(other.record)) {
                    if out.len() >= limit {
                        return out;
                    }
                    let (x, y) = (row.id(), other.id());
                    out.push(Overlap { first: x.min(y), second: x.max(y) });
                }
            }
        }
    }
    out.sort_unstable();
    out
}
