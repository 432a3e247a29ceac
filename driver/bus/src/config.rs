//! Configuration space of a device model: the standard header, a PCI Express capability with function level reset, and
//! MSI-X.
//!
//! A transport that fronts a [`DeviceModel`](crate::DeviceModel) (in process, or a vfio-user server) owns one of these,
//! passes config accesses to it and carries out the [`ConfigEffect`] of a write. Layout and bits are the PCI Local Bus
//! 3.0 header and the PCI Express 4.0 capability.

use crate::{BarSpec, BusError, PciIdentity};

/// Size of configuration space in bytes: the part before the extended space.
const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAP_POINTER: usize = 0x34;
/// PCI Express capability (ID 0x10), version 2: 60 bytes.
const PCIE: usize = 0x40;
/// MSI-X capability (ID 0x11): 12 bytes.
const MSIX: usize = 0x80;
/// Device Capabilities, bit 28: the function can be reset by itself.
const DEVCAP_FLR: u32 = 1 << 28;
/// Device Control, bit 15 as bit 7 of its upper byte: starts the reset; reads as zero.
const DEVCTL_HIGH: usize = PCIE + 9;
const DEVCTL_FLR: u8 = 1 << 7;

/// What a write to configuration space asks the transport to do, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigEffect {
    /// Bus Master Enable changed to this.
    pub bus_master: Option<bool>,
    /// A function level reset was started. The registers have their reset values already.
    pub reset: bool,
}

/// Configuration space of one function.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    at_reset: [u8; SIZE],
    writable: [u8; SIZE],
    msix_bar: Option<u8>,
}

impl ConfigSpace {
    /// Builds the space of a function with these BARs and MSI-X vectors. BARs are 32-bit and non-prefetchable. The
    /// MSI-X table and its pending bits take the last BAR that the device leaves free (see [`Self::msix_bar`]).
    ///
    /// Refuses BARs that PCI cannot express: no power of two, below 16 bytes or above 1 GiB, an index past 5 or used
    /// twice; more than 2048 vectors; or vectors without a free BAR.
    pub fn new(identity: PciIdentity, bars: &[BarSpec], msix_vectors: u16) -> Result<Self, BusError> {
        let mut c = Self { bytes: [0; SIZE], at_reset: [0; SIZE], writable: [0; SIZE], msix_bar: None };
        c.put(0x00, &identity.vendor.to_le_bytes());
        c.put(0x02, &identity.device.to_le_bytes());
        c.bytes[0x08] = identity.revision;
        c.put(0x09, &identity.class.to_le_bytes()[..3]);
        c.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        c.writable[COMMAND + 1] = 1 << 2; // INTx disable
        c.bytes[STATUS] = 1 << 4; // capability list
        c.bytes[CAP_POINTER] = PCIE as u8;
        c.put(PCIE, &[0x10, 0, 0x02, 0]); // endpoint, version 2
        c.put(PCIE + 4, &DEVCAP_FLR.to_le_bytes());

        let mut used = 0u8;
        for b in bars {
            let fits = b.index < 6 && b.size.is_power_of_two() && (16..=1 << 30).contains(&b.size);
            if !fits || used & 1 << b.index != 0 {
                return Err(BusError::Unsupported("a BAR of this index or size"));
            }
            used |= 1 << b.index;
            c.size_bar(b.index, b.size as u32);
        }
        if msix_vectors > 0 {
            let free = (0..6).rev().find(|i| used & 1 << i == 0);
            let (Some(bar), 1..=2048) = (free, msix_vectors) else {
                return Err(BusError::Unsupported("this number of MSI-X vectors beside these BARs"));
            };
            // 16 bytes per vector, then one pending bit per vector, in whole pages as a host would map them.
            let table = u32::from(msix_vectors) * 16;
            let pending = u32::from(msix_vectors).div_ceil(64) * 8;
            c.size_bar(bar, (table + pending).next_power_of_two().max(4096));
            c.bytes[PCIE + 1] = MSIX as u8;
            c.put(MSIX, &[0x11, 0]);
            c.put(MSIX + 2, &(msix_vectors - 1).to_le_bytes());
            c.writable[MSIX + 3] = 0xc0; // enable, function mask
            c.put(MSIX + 4, &u32::from(bar).to_le_bytes());
            c.put(MSIX + 8, &(table | u32::from(bar)).to_le_bytes());
            c.msix_bar = Some(bar);
        }
        c.at_reset = c.bytes;
        Ok(c)
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn size_bar(&mut self, index: u8, size: u32) {
        let at = BAR0 + usize::from(index) * 4;
        self.writable[at..at + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// BAR that holds the MSI-X table and pending bits; the transport's own, not the model's.
    pub fn msix_bar(&self) -> Option<u8> {
        self.msix_bar
    }

    /// Memory Space Enable: without it the function does not answer on its BARs.
    pub fn memory_enabled(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    /// Bus Master Enable: without it the function does no DMA and raises no MSI-X.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    fn check(offset: u16, width: usize) -> Result<usize, BusError> {
        let at = usize::from(offset);
        if !matches!(width, 1 | 2 | 4) || !at.is_multiple_of(width) || at + width > SIZE {
            return Err(BusError::OutOfRange {
                what: "configuration space",
                offset: offset.into(),
                len: width,
                size: SIZE as u64,
            });
        }
        Ok(at)
    }

    /// Reads `width` (1, 2 or 4) bytes at a multiple of it.
    pub fn read(&self, offset: u16, width: usize) -> Result<u32, BusError> {
        let at = Self::check(offset, width)?;
        Ok(self.bytes[at..at + width].iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)))
    }

    /// Writes `width` (1, 2 or 4) bytes at a multiple of it; read-only bits keep their value.
    pub fn write(&mut self, offset: u16, width: usize, value: u32) -> Result<ConfigEffect, BusError> {
        let at = Self::check(offset, width)?;
        let was = self.bus_master();
        let mut reset = false;
        for (i, &v) in value.to_le_bytes()[..width].iter().enumerate() {
            let (b, w) = (&mut self.bytes[at + i], self.writable[at + i]);
            *b = *b & !w | v & w;
            reset |= at + i == DEVCTL_HIGH && v & DEVCTL_FLR != 0;
        }
        if reset {
            self.reset();
        }
        let now = self.bus_master();
        Ok(ConfigEffect { bus_master: (now != was).then_some(now), reset })
    }

    /// Gives every register its reset value: memory and bus master off, BARs unassigned.
    pub fn reset(&mut self) {
        self.bytes = self.at_reset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: PciIdentity = PciIdentity { vendor: 0x1234, device: 0x5678, revision: 9, class: 0x02_00_00 };

    fn space() -> ConfigSpace {
        let bars = [
            BarSpec { index: 0, size: 0x1000, mapped: false },
            BarSpec { index: 2, size: 0x2000, mapped: true },
        ];
        ConfigSpace::new(ID, &bars, 9).unwrap()
    }

    #[test]
    fn header_is_what_a_host_expects() {
        let c = space();
        assert_eq!(c.read(0, 4).unwrap(), 0x5678_1234);
        assert_eq!(c.read(8, 4).unwrap(), 0x0200_0009);
        assert_eq!(c.read(0x0e, 1).unwrap(), 0, "header type 0, one function");
        assert_eq!(c.read(6, 2).unwrap() & 0x10, 0x10, "there is a capability list");
    }

    #[test]
    fn the_capability_list_ends_and_has_flr_and_msix() {
        let c = space();
        let mut at = c.read(0x34, 1).unwrap() as u16;
        let mut seen = Vec::new();
        while at != 0 {
            seen.push(c.read(at, 1).unwrap());
            assert!(seen.len() < 10, "endless: {seen:x?}");
            at = c.read(at + 1, 1).unwrap() as u16;
        }
        assert_eq!(seen, [0x10, 0x11]);
        assert_eq!(c.read(0x44, 4).unwrap() >> 28 & 1, 1, "FLR capable");
        assert_eq!(c.read(0x82, 2).unwrap(), 8, "table size is N-1");
        assert_eq!(c.read(0x84, 4).unwrap(), 5, "table at the start of the last free BAR");
        assert_eq!(c.read(0x88, 4).unwrap(), 9 * 16 + 5, "pending bits behind the table");
    }

    #[test]
    fn bars_size_themselves_by_all_ones() {
        let mut c = space();
        for (bar, mask) in [(0u16, 0xffff_f000u32), (1, 0), (2, 0xffff_e000), (5, 0xffff_f000)] {
            c.write(0x10 + bar * 4, 4, u32::MAX).unwrap();
            assert_eq!(c.read(0x10 + bar * 4, 4).unwrap(), mask, "BAR {bar}");
        }
    }

    #[test]
    fn command_register_reports_bus_master_once_per_change() {
        let mut c = space();
        assert_eq!(c.write(4, 2, 0xffff).unwrap(), ConfigEffect { bus_master: Some(true), reset: false });
        assert_eq!(c.read(4, 2).unwrap(), 0x0406, "only memory, bus master and INTx disable can be set");
        assert!(c.memory_enabled());
        assert_eq!(c.write(4, 2, 0x0006).unwrap(), ConfigEffect::default());
        assert_eq!(c.write(4, 1, 0x02).unwrap().bus_master, Some(false));
    }

    #[test]
    fn function_level_reset_clears_command_and_bars() {
        let mut c = space();
        c.write(0x10, 4, 0xfeb0_0000).unwrap();
        c.write(4, 2, 6).unwrap();
        let e = c.write(0x48, 2, 0x8000).unwrap();
        assert_eq!(e, ConfigEffect { bus_master: Some(false), reset: true });
        assert_eq!((c.read(4, 2).unwrap(), c.read(0x10, 4).unwrap(), c.read(0x48, 2).unwrap()), (0, 0, 0));
    }

    #[test]
    fn impossible_functions_are_refused() {
        let bar = |index, size| BarSpec { index, size, mapped: false };
        for bars in [vec![bar(6, 4096)], vec![bar(0, 3000)], vec![bar(0, 8)], vec![bar(1, 64), bar(1, 64)]] {
            assert!(ConfigSpace::new(ID, &bars, 1).is_err(), "{bars:?}");
        }
        let all: Vec<_> = (0..6).map(|i| bar(i, 4096)).collect();
        assert!(ConfigSpace::new(ID, &all, 1).is_err(), "no BAR left for MSI-X");
        assert!(ConfigSpace::new(ID, &all, 0).is_ok());
        assert!(ConfigSpace::new(ID, &[], 2049).is_err());
    }

    proptest! {
        /// A driver can write anything anywhere: identity and capabilities stay, bad accesses are errors.
        #[test]
        fn any_access_is_harmless(ops in prop::collection::vec((any::<u16>(), 0usize..9, any::<u32>()), 1..100)) {
            let mut c = space();
            for (offset, width, value) in ops {
                let ok = matches!(width, 1 | 2 | 4) && usize::from(offset).is_multiple_of(width.max(1))
                    && usize::from(offset) + width <= 256;
                prop_assert_eq!(c.write(offset, width, value).is_ok(), ok);
                prop_assert_eq!(c.read(offset, width).is_ok(), ok);
                prop_assert_eq!(c.read(0, 4).unwrap(), 0x5678_1234);
                prop_assert_eq!(c.read(0x82, 2).unwrap() & 0x3fff, 8);
            }
        }
    }
}
