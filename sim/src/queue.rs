//! A queue's configuration (in its write sequence) and its doorbell.

use crate::violation::{Violation, ViolationCode};

/// Smallest and largest ring, in elements.
const SIZES: std::ops::RangeInclusive<u32> = 16..=65_536;

#[derive(Debug, Clone, Copy, Default)]
struct Base {
    lo: Option<u32>,
    hi: Option<u32>,
}

/// One half of a 64-bit base register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Lo,
    Hi,
}

/// A doorbell as the device took it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bell {
    /// Last accepted value.
    pub(crate) value: u32,
    /// Last refused one, which is latched once.
    refused: Option<u32>,
}

impl Bell {
    /// Takes `v`, or says what is wrong: `over`, unless it `fits`. `offset` is the doorbell's.
    pub(crate) fn ring(
        &mut self,
        v: u32,
        offset: usize,
        fits: bool,
        over: ViolationCode,
    ) -> Result<(), Violation> {
        if v == self.value {
            self.refused = None;
            return Ok(());
        }
        if self.refused == Some(v) {
            return Ok(());
        }
        let code = if v.wrapping_sub(self.value) >= 1 << 31 {
            ViolationCode::DoorbellBackward
        } else if !fits {
            over
        } else {
            self.refused = None;
            self.value = v;
            return Ok(());
        };
        self.refused = Some(v);
        Err(Violation::new(code, offset as u64 | u64::from(v) << 32))
    }
}

/// A ring as the driver set it up, with the device's index and its doorbell.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    bases: Vec<Base>,
    /// What the bases must be multiples of.
    align: Vec<u32>,
    size: Option<u32>,
    pub(crate) enabled: bool,
    /// Elements that the device consumed, or produced, since the queue was enabled; wraps.
    pub(crate) index: u32,
    bell: Bell,
}

impl Queue {
    /// A queue whose bases are multiples of `align`, one for each.
    pub(crate) fn new(align: &[u32]) -> Self {
        Self {
            bases: vec![Base::default(); align.len()],
            align: align.to_vec(),
            size: None,
            enabled: false,
            index: 0,
            bell: Bell::default(),
        }
    }

    /// IOVA of base `n`.
    pub(crate) fn base(&self, n: usize) -> u64 {
        let b = self.bases.get(n).copied().unwrap_or_default();
        u64::from(b.hi.unwrap_or(0)) << 32 | u64::from(b.lo.unwrap_or(0))
    }

    /// Elements.
    pub(crate) fn size(&self) -> u32 {
        self.size.unwrap_or(0)
    }

    /// IOVA of the element with free-running index `i` of base `n`, `bytes` long.
    pub(crate) fn element(&self, n: usize, i: u32, bytes: u32) -> u64 {
        let place = i & self.size().wrapping_sub(1);
        self.base(n).wrapping_add(u64::from(place) * u64::from(bytes))
    }

    /// Elements that the driver produced and the device did not consume.
    pub(crate) fn available(&self) -> u32 {
        self.bell.value.wrapping_sub(self.index)
    }

    /// Elements that the device produced and the driver did not consume.
    pub(crate) fn outstanding(&self) -> u32 {
        self.index.wrapping_sub(self.bell.value)
    }

    pub(crate) fn set_base(&mut self, n: usize, half: Half, v: u32) -> Result<(), ViolationCode> {
        let enabled = self.enabled;
        let align = self.align.get(n).copied().unwrap_or(1);
        let Some(b) = self.bases.get_mut(n) else { return Err(ViolationCode::BadOffset) };
        match half {
            _ if enabled => return Err(ViolationCode::BadSequence),
            Half::Lo if !v.is_multiple_of(align) => return Err(ViolationCode::BadValue),
            Half::Lo => *b = Base { lo: Some(v), hi: None },
            Half::Hi if b.lo.is_none() => return Err(ViolationCode::BadSequence),
            Half::Hi => b.hi = Some(v),
        }
        self.size = None;
        Ok(())
    }

    pub(crate) fn set_size(&mut self, v: u32) -> Result<(), ViolationCode> {
        if self.enabled || self.bases.iter().any(|b| b.hi.is_none()) {
            return Err(ViolationCode::BadSequence);
        }
        if !v.is_power_of_two() || !SIZES.contains(&v) {
            return Err(ViolationCode::BadValue);
        }
        self.size = Some(v);
        Ok(())
    }

    /// Whether the queue can be enabled.
    pub(crate) fn ready(&self) -> bool {
        self.size.is_some()
    }

    /// Back to nothing configured.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(&std::mem::take(&mut self.align));
    }

    /// Takes a new value of a doorbell by which the driver produces; `offset` is the doorbell's.
    pub(crate) fn ring_producer(&mut self, v: u32, offset: usize) -> Result<(), Violation> {
        let fits = v.wrapping_sub(self.index) <= self.size();
        self.bell.ring(v, offset, fits, ViolationCode::DoorbellOverrun)
    }

    /// Takes a new value of a doorbell by which the driver consumes.
    pub(crate) fn ring_consumer(&mut self, v: u32, offset: usize) -> Result<(), Violation> {
        let fits = v.wrapping_sub(self.bell.value) <= self.outstanding();
        self.bell.ring(v, offset, fits, ViolationCode::HeadOverrun)
    }
}
