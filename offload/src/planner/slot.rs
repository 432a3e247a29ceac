//! What the planner keeps of each flow: no entry and no match, only where they are, what they counted, and why not.

use crate::refusal::{Refusal, TableRef};
use flowlift_driver::nic::{EntryCounters, TableId, UpdateStatus};
use std::fmt;

/// A flow by the slot that the caller keeps it in; small numbers, as the planner keeps an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

/// Where a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// In software only.
    Software,
    /// On its way into hardware; software handles its packets until it is there.
    PendingInsert,
    /// In hardware.
    Hardware,
    /// In hardware, with new actions on their way.
    PendingReplace,
    /// In hardware, on its way out.
    PendingDelete,
    /// In software, having given its place in hardware to another.
    Evicted,
}

impl State {
    /// Name, for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::PendingInsert => "pending-insert",
            Self::Hardware => "hardware",
            Self::PendingReplace => "pending-replace",
            Self::PendingDelete => "pending-delete",
            Self::Evicted => "evicted",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a flow is not in hardware, or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The NIC cannot express it.
    Refused(Refusal),
    /// Every table that takes it is full; this one was asked last.
    TableFull(TableRef),
    /// The table has entries left, but no room for one more mask, and no other table takes the flow.
    MasksFull(TableRef),
    /// An entry of another flow with the same key and mask is there: the flows overlap (R22).
    Duplicate(TableRef),
    /// A busier flow took its place.
    Evicted {
        /// Table.
        table: TableRef,
        /// Its packets per second at that time.
        rate: u64,
        /// Packets per second of the flow that took the place.
        by: u64,
    },
    /// The device refused the entry with this code: a bug on our side.
    Rejected {
        /// Table.
        table: TableId,
        /// The device's code.
        code: u16,
    },
    /// An update of several entries failed half-way and was taken back.
    RolledBack {
        /// Table.
        table: TableId,
        /// What failed first.
        first: UpdateStatus,
        /// What failed while it was taken back, if anything did.
        second: Option<UpdateStatus>,
    },
    /// The entry is being written anew: its memory was damaged, or the flow's match or table changed.
    Rewriting,
    /// It waits for its turn in the admin queue.
    Queued,
    /// The device failed and is being reset.
    DeviceFailed,
    /// The device is gone.
    DeviceGone,
    /// The caller does not have the flow any more.
    NoFlow,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(r) => r.fmt(f),
            Self::TableFull(t) => write!(f, "{t} is full; a larger profile, or fewer flows, would lift it"),
            Self::MasksFull(t) => {
                write!(
                    f,
                    "{t} holds no further mask; fewer different masks, or a larger profile, would lift it"
                )
            }
            Self::Duplicate(t) => {
                write!(f, "{t} has an entry of another flow with the same match; flows must not overlap")
            }
            Self::Evicted { table, rate, by } => {
                write!(f, "its place in {table} went to a busier flow ({rate} packets/s against {by}); ")?;
                write!(f, "a larger profile, or more traffic, would lift it")
            }
            Self::Rejected { table, code } => {
                write!(
                    f,
                    "the device rejected the entry for table {} with code {code}, which is a bug",
                    table.0
                )
            }
            Self::RolledBack { table, first, second } => {
                write!(f, "its entries in table {} were taken back after {first:?}", table.0)?;
                second.map_or(Ok(()), |s| write!(f, " (and {s:?} on the way)"))
            }
            Self::Rewriting => f.write_str("its entry is being written anew"),
            Self::Queued => f.write_str("it waits for its turn in the admin queue"),
            Self::DeviceFailed => f.write_str("the device failed and is being reset"),
            Self::DeviceGone => f.write_str("the device is gone; a new one would lift it"),
            Self::NoFlow => f.write_str("the flow is not there any more"),
        }
    }
}

/// What the hardware counted for a flow, over all entries that it has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// L2 bytes of the packets as they matched.
    pub bytes: u64,
    /// Device time of the last packet in nanoseconds; 0: none.
    pub used_ns: u64,
    /// OR of the TCP flags seen.
    pub tcp_flags: u16,
}

impl Counters {
    /// Adds an entry's counters.
    pub fn add(&mut self, c: &EntryCounters) {
        self.packets = self.packets.wrapping_add(c.packets);
        self.bytes = self.bytes.wrapping_add(c.bytes);
        self.used_ns = self.used_ns.max(c.used_ns);
        self.tcp_flags |= c.tcp_flags;
    }
}

/// What is under way for a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Op {
    #[default]
    None,
    Insert,
    Replace,
    Delete,
}

/// What becomes of a flow when its delete is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum After {
    /// Planned again.
    #[default]
    Plan,
    /// Stays in software for the stored reason.
    Stay,
    /// Waits for room in the table that it left.
    Wait,
}

/// Places of a flow's entries in its table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Places {
    #[default]
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl Places {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(n) => std::slice::from_ref(n),
            Self::Many(n) => n,
        }
    }
}

impl FromIterator<u32> for Places {
    fn from_iter<T: IntoIterator<Item = u32>>(places: T) -> Self {
        let mut places = places.into_iter();
        match (places.next(), places.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(one), Some(two)) => Self::Many([one, two].into_iter().chain(places).collect()),
        }
    }
}

/// What the planner keeps of a flow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    /// The caller has put it and not removed it.
    pub(crate) wanted: bool,
    /// It was put at some time, and its removal was not reported yet.
    pub(crate) present: bool,
    /// It is in the queue of flows to plan.
    pub(crate) queued: bool,
    /// It must be planned again once what is under way is done.
    pub(crate) again: bool,
    /// Its damaged or unknown entries must go before it is planned again.
    pub(crate) rewrite: bool,
    /// It counts as a way to `hop_to` in hardware.
    pub(crate) leads: bool,
    /// It is in the set of flows that wait for room.
    pub(crate) waits: bool,
    pub(crate) evicted: bool,
    /// It was put into a table whose entries do not count everything.
    pub(crate) uncounted: bool,
    pub(crate) op: Op,
    pub(crate) after: After,
    /// Parts that await a completion, that are in the device, as bits.
    pub(crate) pending: u16,
    pub(crate) installed: u16,
    /// Told apart from earlier operations in cookies.
    pub(crate) generation: u16,
    /// Table of `places`, or that it waits for.
    pub(crate) table: TableId,
    pub(crate) places: Places,
    /// Fingerprints of what is installed: of table, keys and masks, and of the whole.
    pub(crate) matched: u64,
    pub(crate) whole: u64,
    /// Tables that are full for it, see [`crate::lower::Excluded`].
    pub(crate) excluded: u64,
    /// Recirculation ID that it matches, and gives.
    pub(crate) recirc_id: u32,
    pub(crate) hop_to: Option<u32>,
    /// First failure of what is under way.
    pub(crate) failed: Option<UpdateStatus>,
    /// Why it is not in hardware, if there is more to say than [`Reason::Queued`]. Behind a pointer, as the flows that are
    /// in hardware have none.
    pub(super) reason: Option<Box<Reason>>,
    /// Counters of entries that are no more.
    pub(crate) base: Counters,
    /// For placement: packets when it was last looked at, and when it was put where it is.
    pub(crate) seen_packets: u64,
    pub(crate) seen_ns: u64,
    pub(crate) since_ns: u64,
}

// The goal is 300 bytes per flow in hardware, of which the map of places has 4, the driver's shadow 4, its counter page 32.
const _: () = assert!(size_of::<Slot>() <= 176);

impl Slot {
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason.as_deref().copied()
    }

    pub(crate) fn set_reason(&mut self, reason: Reason) {
        match (&mut self.reason, reason) {
            (_, Reason::Queued) => self.reason = None,
            (Some(place), reason) => **place = reason,
            (None, reason) => self.reason = Some(Box::new(reason)),
        }
    }

    pub(crate) fn clear_reason(&mut self) {
        self.reason = None;
    }

    pub(crate) fn state(&self) -> State {
        match self.op {
            Op::Insert => State::PendingInsert,
            Op::Replace => State::PendingReplace,
            Op::Delete => State::PendingDelete,
            Op::None if self.installed != 0 && !self.wanted => State::PendingDelete,
            Op::None if self.installed != 0 => State::Hardware,
            Op::None if self.evicted => State::Evicted,
            Op::None if self.queued && self.wanted => State::PendingInsert,
            Op::None => State::Software,
        }
    }
}
