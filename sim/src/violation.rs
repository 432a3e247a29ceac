//! The violation register: every breach of protocol is refused and latched here.

/// A breach of FL1's protocol (FL1.md, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("FL1 violation {code:?}, info {info:#x}")]
pub struct Violation {
    /// What rule was broken.
    pub code: ViolationCode,
    /// Details as the code defines them.
    pub info: u64,
}

impl Violation {
    pub(crate) fn new(code: ViolationCode, info: u64) -> Self {
        Self { code, info }
    }
}

/// Codes of the VIOL_CODE register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ViolationCode {
    /// No register at this offset.
    BadOffset = 1,
    /// Access not of 4 bytes, or misaligned.
    BadWidth = 2,
    /// Write to a read-only register.
    ReadOnly = 3,
    /// Reserved register bits set.
    ReservedBits = 4,
    /// Register written out of sequence.
    BadSequence = 5,
    /// Register value not allowed.
    BadValue = 6,
    /// Producer doorbell past the ring.
    DoorbellOverrun = 7,
    /// Doorbell moved back.
    DoorbellBackward = 8,
    /// Doorbell not zero when its queue was enabled.
    DoorbellNotZero = 9,
    /// Consumer doorbell past what the device produced.
    HeadOverrun = 10,
    /// Unknown admin opcode.
    UnknownOpcode = 11,
    /// Reserved bytes or flags of a command set.
    CommandReserved = 12,
    /// Slots of a command wrong.
    CommandLength = 13,
    /// TX descriptor wrong.
    TxDescriptor = 14,
    /// RX buffer descriptor wrong.
    RxBuffer = 15,
}

/// The register itself.
#[derive(Debug, Default)]
pub(crate) struct ViolationRegister {
    /// Since reset.
    pub(crate) count: u32,
    /// First since reset.
    pub(crate) first: Option<Violation>,
    /// Since power-on.
    pub(crate) total: u32,
}

impl ViolationRegister {
    pub(crate) fn latch(&mut self, v: Violation) {
        self.count = self.count.saturating_add(1);
        self.total = self.total.saturating_add(1);
        self.first.get_or_insert(v);
    }
    /// Forgets all but the total.
    pub(crate) fn reset(&mut self) {
        self.count = 0;
        self.first = None;
    }
}
