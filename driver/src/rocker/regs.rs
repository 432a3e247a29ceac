//! Registers of rocker, each declared once (the device's programming guide: "Test Registers", "DMA Operations", "Ports",
//! "Switch Control").
//!
//! The access is in the type: a read-only register cannot be written here. All reads pass through [`Regs::get`], the one
//! place that notices a vanished device: no register that is read here can be all-ones on one that works.

use crate::nic::NicError;
use crate::reg::{Readable, Reg, Ro, Rw, Wo, Writable, noticed};
use flowlift_bus::{BarWindow, BusError, PciFunction};
use std::sync::Arc;

/// PCI vendor and device ID.
pub(crate) const VENDOR: u32 = 0x1b36;
/// See [`VENDOR`].
pub(crate) const DEVICE: u32 = 0x0006;
/// Size of BAR 0 in bytes.
const BAR0_SIZE: u64 = 0x2000;
/// What [`BOGUS`] reads as.
pub(crate) const BOGUS_VALUE: u32 = 0xdead_babe;
/// Front-panel ports that the register space has room for; they are numbered from 1.
pub(crate) const MAX_PORTS: u32 = 62;
/// CONTROL: reset.
pub(crate) const CONTROL_RESET: u32 = 1;

/// Bytes from a register of a descriptor ring to that of the next one.
const RING_STRIDE: u64 = 32;

/// Reads as [`BOGUS_VALUE`].
pub(crate) const BOGUS: Reg<Ro> = Reg::at(0x0000, 0);
/// Reads as twice what was written; 0 after a reset.
pub(crate) const TEST: Reg<Rw> = Reg::at(0x0010, 0);
/// Reset.
pub(crate) const CONTROL: Reg<Wo> = Reg::at(0x0300, 0);
/// Number of front-panel ports.
pub(crate) const PORT_PHYS_COUNT: Reg<Ro> = Reg::at(0x0304, 0);
/// Link state by port number, 64 bits.
pub(crate) const PORT_PHYS_LINK_STATUS: Reg<Ro> = Reg::at(0x0310, 0);
/// Enabled ports by number, 64 bits; 0 after a reset.
pub(crate) const PORT_PHYS_ENABLE: Reg<Rw> = Reg::at(0x0318, 0);
/// Address of ring 0, 64 bits.
pub(crate) const RING_BASE: Reg<Rw> = Reg::at(0x1000, RING_STRIDE);
/// Elements of ring 0; writing it empties the ring.
pub(crate) const RING_SIZE: Reg<Rw> = Reg::at(0x1008, RING_STRIDE);
/// Where the driver goes on in ring 0.
pub(crate) const RING_HEAD: Reg<Rw> = Reg::at(0x100c, RING_STRIDE);

const _: () = assert!(RING_HEAD.of(2 + 2 * MAX_PORTS).offset < BAR0_SIZE, "every ring has its registers");

/// BAR 0 of a function.
pub(crate) struct Regs {
    name: String,
    bar: Arc<dyn BarWindow>,
}

impl Regs {
    /// Opens the BAR and checks its size.
    pub(crate) fn open(function: &dyn PciFunction) -> Result<Self, NicError> {
        let name = function.name().to_string();
        let bar = function.bar(0)?;
        if bar.size() < BAR0_SIZE {
            return Err(NicError::Lies { device: name, what: format!("BAR 0 has {:#x} bytes", bar.size()) });
        }
        Ok(Self { name, bar })
    }

    /// Reads a register; all-ones means that the device is gone.
    pub(crate) fn get<A: Readable>(&self, r: Reg<A>) -> Result<u32, NicError> {
        match self.bar.read::<u32>(r.offset) {
            Err(BusError::Gone(_)) | Ok(u32::MAX) => Err(NicError::Gone(self.name.clone())),
            other => Ok(other?),
        }
    }

    /// Reads a 64-bit register, lower half first.
    pub(crate) fn get64<A: Readable>(&self, r: Reg<A>) -> Result<u64, NicError> {
        let low = self.get(r)?;
        Ok(u64::from(self.get(r.hi())?) << 32 | u64::from(low))
    }

    /// Writes a register, after everything written to DMA memory before.
    pub(crate) fn set<A: Writable>(&self, r: Reg<A>, value: u32) -> Result<(), NicError> {
        noticed(&self.name, self.bar.write::<u32>(r.offset, value))
    }

    /// Writes a 64-bit register, lower half first.
    pub(crate) fn set64<A: Writable>(&self, r: Reg<A>, value: u64) -> Result<(), NicError> {
        self.set(r, value as u32)?;
        self.set(r.hi(), (value >> 32) as u32)
    }

    /// Name of the function, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
