//! The device's way out: DMA, doorbells, interrupts. Faults of DMA are injected here and nowhere else.

use crate::fault::{FaultKind, Faults};
use flowlift_bus::{DmaBus, DmaFault, DmaMem, IrqSink};
use std::sync::atomic::Ordering;

/// BAR2: doorbells (FL1.md, section 4).
pub(crate) const BAR2_SIZE: u64 = 0x2000;
pub(crate) const BELL_ASQ_TAIL: usize = 0x000;
pub(crate) const BELL_ACQ_HEAD: usize = 0x040;
pub(crate) const BELL_EVQ_HEAD: usize = 0x080;

/// Doorbell of the RX buffers of slow queue `q`.
pub(crate) fn bell_rx(q: usize) -> usize {
    0x400 + 0x100 * q
}

/// Doorbell of the TX descriptors of slow queue `q`.
pub(crate) fn bell_tx(q: usize) -> usize {
    0x440 + 0x100 * q
}

/// Doorbell of the frames of slow queue `q` that the slow path is done with.
pub(crate) fn bell_done(q: usize) -> usize {
    0x480 + 0x100 * q
}

#[derive(Default)]
pub(crate) struct Host {
    bus: Option<Box<dyn DmaBus>>,
    irq: Option<Box<dyn IrqSink>>,
    bells: Option<DmaMem>,
    /// Vectors to raise at the end of the step.
    pending: u64,
}

impl Host {
    pub(crate) fn attach(&mut self, bus: Box<dyn DmaBus>, irq: Box<dyn IrqSink>, bells: Option<DmaMem>) {
        (self.bus, self.irq, self.bells) = (Some(bus), Some(irq), bells);
    }

    fn access<T>(
        &self,
        faults: &mut Faults,
        fault: DmaFault,
        f: impl FnOnce(&dyn DmaBus) -> Result<T, DmaFault>,
    ) -> Result<T, DmaFault> {
        match &self.bus {
            Some(bus) if !faults.strike(FaultKind::DmaFault, fault.iova) => f(bus.as_ref()),
            _ => Err(fault),
        }
    }

    pub(crate) fn read(&self, faults: &mut Faults, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.access(faults, DmaFault { iova, len: data.len(), write: false }, |b| b.read(iova, data))
    }

    pub(crate) fn write(&self, faults: &mut Faults, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        self.access(faults, DmaFault { iova, len: data.len(), write: true }, |b| b.write(iova, data))
    }

    pub(crate) fn store(&self, faults: &mut Faults, iova: u64, value: u64) -> Result<(), DmaFault> {
        self.access(faults, DmaFault { iova, len: 8, write: true }, |b| b.store_u64(iova, value))
    }

    /// Writes a ring element whose last 8 bytes make it valid: those last, with release order.
    pub(crate) fn write_element(&self, faults: &mut Faults, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let Some((body, last)) = data.split_last_chunk::<8>() else { return Ok(()) };
        self.access(faults, DmaFault { iova, len: data.len(), write: true }, |b| {
            b.write(iova, body)?;
            b.store_u64(iova.wrapping_add(body.len() as u64), u64::from_le_bytes(*last))
        })
    }

    /// What the driver last stored to a doorbell.
    pub(crate) fn bell(&self, offset: usize) -> u32 {
        self.bells.as_ref().and_then(|m| m.load_u32(offset, Ordering::Acquire).ok()).unwrap_or(0)
    }

    /// Fills all of BAR2: zeros at a reset, ones when the device is gone.
    pub(crate) fn fill_bells(&self, byte: u8) {
        if let Some(m) = &self.bells {
            // The length is the memory's own, so this cannot be out of range.
            let _ = m.write_bytes(0, &vec![byte; m.len()]);
        }
    }

    /// Notes that `vector` has something to announce.
    pub(crate) fn notify(&mut self, vector: u16) {
        self.pending |= 1u64.checked_shl(u32::from(vector)).unwrap_or(0);
    }

    /// Raises what was noted.
    pub(crate) fn raise_pending(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        while pending != 0 {
            if let Some(irq) = &self.irq {
                irq.raise(pending.trailing_zeros() as u16);
            }
            pending &= pending - 1;
        }
    }

    /// Forgets what was noted.
    pub(crate) fn clear_pending(&mut self) {
        self.pending = 0;
    }
}
