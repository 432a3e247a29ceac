//! Admin commands and completions as bytes (FL1.md, section 5).

use crate::action::UNIT;
use crate::bytes::{le16, le32, le64, put};
use crate::profile::MAX_SLOTS;
use crate::violation::{Violation, ViolationCode};

/// Length of a slot of the admin ring.
pub(crate) const SLOT: usize = 64;
/// Length of an admin completion.
pub(crate) const COMPLETION: usize = 64;
/// Where an inline payload starts.
const PAYLOAD: usize = 32;
const FENCE: u16 = 1;
/// METER_SET flag: packets per second.
const METER_PACKETS: u32 = 1;

/// Admin opcodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Completes.
    Nop = 0,
    /// Installs an entry.
    Insert = 1,
    /// Swaps an entry's actions.
    Replace = 2,
    /// Removes an entry.
    Delete = 3,
    /// Writes an entry to host memory.
    ReadEntry = 4,
    /// Writes counters to host memory.
    Counters = 5,
    /// Removes all entries of a table.
    FlushTable = 6,
    /// Sets or removes a meter.
    MeterSet = 7,
    /// Writes a meter's counters to host memory.
    MeterRead = 8,
    /// Writes the capability blob to host memory.
    Caps = 9,
    /// Registers a table's counter page.
    CounterPage = 10,
    /// Registers the meter page.
    MeterPage = 11,
}

impl Opcode {
    fn from_u8(b: u8) -> Option<Self> {
        use Opcode as O;
        const ALL: [Opcode; 12] = [
            O::Nop,
            O::Insert,
            O::Replace,
            O::Delete,
            O::ReadEntry,
            O::Counters,
            O::FlushTable,
            O::MeterSet,
            O::MeterRead,
            O::Caps,
            O::CounterPage,
            O::MeterPage,
        ];
        ALL.get(usize::from(b)).copied()
    }
}

/// A decoded command; what its opcode does not use is 0 or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// What to do.
    pub opcode: Opcode,
    /// Length in slots.
    pub slots: u8,
    /// Wait for the completions of all before it.
    pub fence: bool,
    /// Table id.
    pub table: u16,
    /// TCAM priority, higher wins.
    pub priority: u16,
    /// Echoed in the completion.
    pub cookie: u64,
    /// Entry or meter id.
    pub entry: u32,
    /// Generation, or sequence of a read.
    pub generation: u32,
    /// Number of entries (COUNTERS), ageing time in ms (INSERT).
    pub count: u32,
    /// Key blob.
    pub key: &'a [u8],
    /// Mask blob.
    pub mask: &'a [u8],
    /// Action units.
    pub actions: &'a [u8],
    /// Host buffer: IOVA.
    pub iova: u64,
    /// Host buffer: length in bytes.
    pub len: u32,
    /// METER_SET: rate per second.
    pub rate: u64,
    /// METER_SET: burst.
    pub burst: u64,
    /// METER_SET: packets, not kilobits.
    pub meter_packets: bool,
}

/// A command that could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Refused; the next command starts `slots` further.
    #[error("{violation}")]
    Refused {
        /// What is wrong. The info's upper half (the ring index) is 0.
        violation: Violation,
        /// Length of the command in slots.
        slots: u8,
    },
    /// Where the next command starts is unknown.
    #[error("{0}, framing lost")]
    FramingLost(Violation),
}

/// Header fields that an opcode uses, of those that must be 0 otherwise.
struct Uses {
    table: bool,
    priority: bool,
    entry: bool,
    generation: bool,
    count: bool,
    key_len: bool,
    units: bool,
}

fn uses(op: Opcode) -> Uses {
    use Opcode as O;
    Uses {
        table: !matches!(op, O::Nop | O::MeterSet | O::MeterRead | O::Caps | O::MeterPage),
        priority: op == O::Insert,
        entry: !matches!(op, O::Nop | O::FlushTable | O::Caps | O::CounterPage | O::MeterPage),
        generation: matches!(
            op,
            O::Insert | O::Replace | O::ReadEntry | O::Counters | O::MeterRead | O::Caps
        ),
        count: matches!(op, O::Insert | O::Counters),
        key_len: op == O::Insert,
        units: matches!(op, O::Insert | O::Replace),
    }
}

/// Decodes the command at the start of `slots`: all bytes that the driver has announced from here on, a whole number
/// of 64-byte slots. Only the form is checked; whether tables and entries exist is the device's to say.
pub fn decode_command(slots: &[u8]) -> Result<Command<'_>, CommandError> {
    let lost = |n: u8| CommandError::FramingLost(Violation::new(ViolationCode::CommandLength, u64::from(n)));
    let Some(head) = slots.get(..SLOT) else { return Err(lost(0)) };
    let n = head[1];
    let bytes = match slots.get(..usize::from(n) * SLOT) {
        Some(b) if (1..=MAX_SLOTS).contains(&n) => b,
        _ => return Err(lost(n)),
    };
    let refuse = |code, info| Err(CommandError::Refused { violation: Violation::new(code, info), slots: n });
    let Some(opcode) = Opcode::from_u8(head[0]) else {
        return refuse(ViolationCode::UnknownOpcode, u64::from(head[0]));
    };
    let (key_len, units) = (usize::from(le16(head, 28)), usize::from(head[30]));
    let u = uses(opcode);
    let reserved = [
        (2, le16(head, 2) & !FENCE != 0),
        (4, !u.table && le16(head, 4) != 0),
        (6, !u.priority && le16(head, 6) != 0),
        (16, !u.entry && le32(head, 16) != 0),
        (20, !u.generation && le32(head, 20) != 0),
        (24, !u.count && le32(head, 24) != 0),
        (28, !u.key_len && key_len != 0),
        (30, !u.units && units != 0),
        (31, head[31] != 0),
    ];
    if let Some((at, _)) = reserved.iter().find(|(_, set)| *set) {
        return refuse(ViolationCode::CommandReserved, *at);
    }
    // Where the payload ends; everything behind it is reserved.
    let end = match opcode {
        Opcode::Insert | Opcode::Replace => PAYLOAD + 2 * key_len + UNIT * units,
        Opcode::ReadEntry
        | Opcode::Counters
        | Opcode::Caps
        | Opcode::CounterPage
        | Opcode::MeterPage
        | Opcode::MeterRead => 44,
        Opcode::MeterSet => 52,
        Opcode::Nop | Opcode::Delete | Opcode::FlushTable => PAYLOAD,
    };
    if end.div_ceil(SLOT) != usize::from(n) {
        return refuse(ViolationCode::CommandLength, u64::from(n));
    }
    if let Some(at) = bytes[end..].iter().position(|&b| b != 0) {
        return refuse(ViolationCode::CommandReserved, (end + at) as u64);
    }
    let mut c = Command {
        opcode,
        slots: n,
        fence: le16(head, 2) & FENCE != 0,
        table: le16(head, 4),
        priority: le16(head, 6),
        cookie: le64(head, 8),
        entry: le32(head, 16),
        generation: le32(head, 20),
        count: le32(head, 24),
        key: &[],
        mask: &[],
        actions: &[],
        iova: 0,
        len: 0,
        rate: 0,
        burst: 0,
        meter_packets: false,
    };
    match opcode {
        Opcode::Insert | Opcode::Replace => {
            let (key, rest) = bytes[PAYLOAD..end].split_at(key_len);
            let (mask, actions) = rest.split_at(key_len);
            (c.key, c.mask, c.actions) = (key, mask, actions);
        }
        Opcode::MeterSet => {
            let flags = le32(head, 48);
            if flags & !METER_PACKETS != 0 {
                return refuse(ViolationCode::CommandReserved, 48);
            }
            (c.rate, c.burst, c.meter_packets) = (le64(head, 32), le64(head, 40), flags & METER_PACKETS != 0);
        }
        Opcode::Nop | Opcode::Delete | Opcode::FlushTable => {}
        _ => (c.iova, c.len) = (le64(head, 32), le32(head, 40)),
    }
    Ok(c)
}

/// Completion status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A violation; detail is its code.
    BadCommand = 1,
    /// No such table.
    BadTable = 2,
    /// Entry or meter id out of range.
    BadEntry = 3,
    /// The entry id, or for COUNTER_PAGE the table, is in use.
    EntryInUse = 4,
    /// No such entry or meter.
    NotFound = 5,
    /// No bucket for this key.
    TableFull = 6,
    /// One mask too many.
    MasksFull = 7,
    /// The same match is installed already.
    Duplicate = 8,
    /// Mask not supported.
    BadMask = 9,
    /// Key bits outside the mask.
    BadKey = 10,
    /// Action not supported.
    BadAction = 11,
    /// Too many action units.
    TooManyActions = 12,
    /// The host buffer could not be reached.
    DmaFault = 13,
    /// The entry is damaged.
    Parity = 14,
    /// The host buffer is too small.
    BufferTooSmall = 15,
    /// Key of a wrong length.
    BadKeyLen = 16,
    /// Priority on a HASH table.
    BadPriority = 17,
    /// An argument is not allowed.
    BadArgument = 18,
}

/// A completion before it has its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) cookie: u64,
    pub(crate) status: Status,
    pub(crate) opcode: u8,
    pub(crate) detail: u32,
    pub(crate) counters: crate::table::Counters,
    pub(crate) generation: u32,
    pub(crate) result: u32,
}

impl Completion {
    pub(crate) fn new(opcode: u8, cookie: u64, status: Status, detail: u32) -> Self {
        Self { cookie, status, opcode, detail, counters: Default::default(), generation: 0, result: 0 }
    }

    /// The bytes, with the device's consumer index and sequence number.
    pub(crate) fn encode(&self, sq_head: u32, seq: u32) -> [u8; COMPLETION] {
        let mut b = [0; COMPLETION];
        put(&mut b, 0, &self.cookie.to_le_bytes());
        put(&mut b, 8, &(self.status as u16).to_le_bytes());
        put(&mut b, 10, &[self.opcode]);
        put(&mut b, 12, &self.detail.to_le_bytes());
        put(&mut b, 16, &self.counters.packets.to_le_bytes());
        put(&mut b, 24, &self.counters.bytes.to_le_bytes());
        put(&mut b, 32, &self.counters.last_used.to_le_bytes());
        put(&mut b, 40, &self.counters.tcp_flags.to_le_bytes());
        put(&mut b, 44, &self.generation.to_le_bytes());
        put(&mut b, 48, &self.result.to_le_bytes());
        put(&mut b, 52, &sq_head.to_le_bytes());
        put(&mut b, 56, &seq.to_le_bytes());
        b
    }
}

#[cfg(test)]
mod tests;
