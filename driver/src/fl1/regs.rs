//! Registers and doorbells of FL1, each declared once: name, offset, access, reset value (fixtures/device/regmap.toml;
//! FL1.md section 2 says what they do).
//!
//! The access is in the type: a read-only register cannot be written here. All reads pass through [`Regs::get`], the one
//! place that notices a vanished device.

use crate::nic::NicError;
use crate::reg::noticed;
pub(crate) use crate::reg::{Readable, Reg, Ro, Rw, Wo, Writable};
use flowlift_bus::{BarWindow, BusError, PciFunction};
use std::sync::Arc;

/// PCI vendor and device ID (FL1.md section 1).
pub(crate) const VENDOR: u32 = 0x1d9b;
/// See [`VENDOR`].
pub(crate) const DEVICE: u32 = 0xf101;
/// Size of BAR0 in bytes.
pub(crate) const BAR0_SIZE: u64 = 0x4000;
/// Size of BAR2 in bytes.
pub(crate) const BAR2_SIZE: u64 = 0x2000;

/// Doorbell: stored, never read.
pub(crate) enum Db {}

/// A declaration as data, for the test against regmap.toml.
#[cfg(test)]
pub(crate) struct Decl {
    pub(crate) name: &'static str,
    pub(crate) offset: u64,
    pub(crate) access: &'static str,
    pub(crate) reset: Option<u64>,
    pub(crate) stride: u64,
}

macro_rules! registers {
    ($($name:ident: $access:ident, $offset:literal $(+ $stride:literal)? $(= $reset:literal)?;)*) => {
        $(pub(crate) const $name: Reg<$access> =
            Reg::at($offset, 0 $(+ $stride)?);)*
        #[cfg(test)]
        pub(crate) const ALL: &[Decl] = &[$(Decl {
            name: stringify!($name),
            offset: $offset,
            access: stringify!($access),
            reset: [$(Some($reset),)? None][0],
            stride: 0 $(+ $stride)?,
        },)*];
    };
}

registers! {
    MAGIC: Ro, 0x0000 = 0x3130_4c46;
    VERSION: Ro, 0x0004 = 0x0001_0003;
    CTRL: Rw, 0x0008 = 0;
    STATUS: Ro, 0x000c = 1;
    FATAL_CODE: Ro, 0x0010 = 0;
    FATAL_ADDR_LO: Ro, 0x0018 = 0;
    RESET: Wo, 0x0020 = 0;
    RESET_COUNT: Ro, 0x0028 = 0;
    VIOL_COUNT: Ro, 0x0030 = 0;
    VIOL_CODE: Ro, 0x0034 = 0;
    VIOL_INFO_LO: Ro, 0x0038 = 0;
    VIOL_TOTAL: Ro, 0x0040 = 0;
    HEARTBEAT: Ro, 0x0044 = 0;
    CLOCK_LO: Ro, 0x0048;
    NUM_PORTS: Ro, 0x0050;
    NUM_SLOWQ: Ro, 0x0054;
    NUM_TABLES: Ro, 0x0058;
    NUM_STAGES: Ro, 0x005c;
    NUM_METERS: Ro, 0x0060;
    CAPS_BYTES: Ro, 0x0064;
    MAX_FRAME: Ro, 0x0068;
    PARSER_FLAGS: Ro, 0x006c;
    MAX_SLOTS: Ro, 0x0070;
    EVENTS_LOST: Ro, 0x0074 = 0;
    METER_ID: Rw, 0x0080 = 0;
    METER_RATE: Rw, 0x0084 = 0;
    METER_BURST: Rw, 0x0088 = 0;
    METER_CTRL: Wo, 0x008c = 0;
    METER_LEVEL_LO: Rw, 0x0090 = 0;
    METER_CHARGE: Rw, 0x0098 = 0;
    ASQ_BASE_LO: Rw, 0x0100 = 0;
    ASQ_SIZE: Rw, 0x0108 = 0;
    ASQ_CTRL: Rw, 0x010c = 0;
    ACQ_BASE_LO: Rw, 0x0110 = 0;
    ACQ_SIZE: Rw, 0x0118 = 0;
    ACQ_CTRL: Rw, 0x011c = 0;
    ASQ_HEAD: Ro, 0x0120 = 0;
    EVQ_BASE_LO: Rw, 0x0140 = 0;
    EVQ_SIZE: Rw, 0x0148 = 0;
    EVQ_CTRL: Rw, 0x014c = 0;
    SLOWQ_RXB_BASE_LO: Rw, 0x0200 + 0x40 = 0;
    SLOWQ_RXC_BASE_LO: Rw, 0x0208 + 0x40 = 0;
    SLOWQ_TXD_BASE_LO: Rw, 0x0210 + 0x40 = 0;
    SLOWQ_TXW_ADDR_LO: Rw, 0x0218 + 0x40 = 0;
    SLOWQ_RX_SIZE: Rw, 0x0220 + 0x40 = 0;
    SLOWQ_TX_SIZE: Rw, 0x0224 + 0x40 = 0;
    SLOWQ_CTRL: Rw, 0x0228 + 0x40 = 0;
    PORT_CTRL: Rw, 0x1000 + 0x80 = 0;
    PORT_STATUS: Ro, 0x1004 + 0x80;
    PORT_MAC_LO: Ro, 0x1008 + 0x80;
    PORT_RX_PACKETS_LO: Ro, 0x1010 + 0x80 = 0;
    PORT_RX_BYTES_LO: Ro, 0x1018 + 0x80 = 0;
    PORT_TX_PACKETS_LO: Ro, 0x1020 + 0x80 = 0;
    PORT_TX_BYTES_LO: Ro, 0x1028 + 0x80 = 0;
    PORT_RX_SLOW_LO: Ro, 0x1030 + 0x80 = 0;
    PORT_TX_DROPPED_LO: Ro, 0x1038 + 0x80 = 0;
    DB_ASQ_TAIL: Db, 0x0000 = 0;
    DB_ACQ_HEAD: Db, 0x0040 = 0;
    DB_EVQ_HEAD: Db, 0x0080 = 0;
    DB_RX_TAIL: Db, 0x0400 + 0x100 = 0;
    DB_TX_TAIL: Db, 0x0440 + 0x100 = 0;
    DB_RX_DONE: Db, 0x0480 + 0x100 = 0;
}

/// CTRL and queue control: enable.
pub(crate) const ENABLE: u32 = 1;
/// SLOWQ_CTRL: RX and TX.
pub(crate) const SLOWQ_ENABLE: u32 = 3;
/// SLOWQ_CTRL: order across the slow path, of devices of revision 1.2 and later.
pub(crate) const SLOWQ_ORDER: u32 = 4;
/// VERSION: minor.
pub(crate) const VERSION_MINOR: u32 = 0xffff;
/// Minor version from which on there is [`SLOWQ_ORDER`].
pub(crate) const MINOR_ORDER: u32 = 2;
/// Minor version from which on there is the meter window.
pub(crate) const MINOR_METERS: u32 = 3;
/// STATUS: registers answer.
pub(crate) const STATUS_READY: u32 = 1;
/// STATUS: CTRL.ENABLE as the device obeys it.
pub(crate) const STATUS_ENABLED: u32 = 2;
/// STATUS: fatal error.
pub(crate) const STATUS_FATAL: u32 = 4;
/// PORT_STATUS: link up.
pub(crate) const PORT_LINK: u32 = 1;
/// Value that starts a reset.
pub(crate) const RESET_KEY: u32 = 0x5453_4552;
/// Slow queues that both BARs have room for.
pub(crate) const MAX_SLOWQ: u32 = 28;
/// Ports that BAR0 has room for.
pub(crate) const MAX_PORTS: u32 = 95;

const _: () = {
    assert!(SLOWQ_CTRL.of(MAX_SLOWQ - 1).offset + 4 <= 0x1000, "slow queues end before the ports");
    assert!(DB_RX_DONE.of(MAX_SLOWQ - 1).offset + 4 <= BAR2_SIZE);
    assert!(PORT_STATUS.of(MAX_PORTS).offset + 0x44 <= BAR0_SIZE);
};

/// Both BARs of a function.
pub(crate) struct Regs {
    name: String,
    bar0: Arc<dyn BarWindow>,
    bar2: Arc<dyn BarWindow>,
}

impl std::fmt::Debug for Regs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Regs({})", self.name)
    }
}

impl Regs {
    /// Opens the BARs and checks their sizes.
    pub(crate) fn open(function: &dyn PciFunction) -> Result<Self, NicError> {
        let name = function.name().to_string();
        let (bar0, bar2) = (function.bar(0)?, function.bar(2)?);
        if bar0.size() < BAR0_SIZE || bar2.size() < BAR2_SIZE {
            let what = format!("BARs of {:#x} and {:#x} bytes", bar0.size(), bar2.size());
            return Err(NicError::Lies { device: name, what });
        }
        Ok(Self { name, bar0, bar2 })
    }

    /// Reads a register. All-ones is an answer only while the device still knows its name: else it is gone.
    pub(crate) fn get<A: Readable>(&self, r: Reg<A>) -> Result<u32, NicError> {
        let read = |offset| match self.bar0.read::<u32>(offset) {
            Err(BusError::Gone(_)) => Ok(u32::MAX),
            other => other,
        };
        let v = read(r.offset)?;
        if v == u32::MAX && read(MAGIC.offset)? == u32::MAX {
            return Err(NicError::Gone(self.name.clone()));
        }
        Ok(v)
    }

    /// Reads a 64-bit pair, LO first, which latches HI.
    pub(crate) fn get64<A: Readable>(&self, lo: Reg<A>) -> Result<u64, NicError> {
        let low = self.get(lo)?;
        Ok(u64::from(self.get(lo.hi())?) << 32 | u64::from(low))
    }

    /// Writes a register.
    pub(crate) fn set<A: Writable>(&self, r: Reg<A>, value: u32) -> Result<(), NicError> {
        noticed(&self.name, self.bar0.write::<u32>(r.offset, value))
    }

    /// Writes a 64-bit pair, LO first.
    pub(crate) fn set64<A: Writable>(&self, lo: Reg<A>, value: u64) -> Result<(), NicError> {
        self.set(lo, value as u32)?;
        self.set(lo.hi(), (value >> 32) as u32)
    }

    /// Rings a doorbell, after everything written to DMA memory before.
    pub(crate) fn ring(&self, r: Reg<Db>, value: u32) -> Result<(), NicError> {
        noticed(&self.name, self.bar2.write::<u32>(r.offset, value))
    }

    /// Name of the function, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(serde::Deserialize)]
    struct Map {
        bar0_size: u64,
        bar2_size: u64,
        vendor: u32,
        device: u32,
        register: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        name: String,
        bar: u8,
        offset: u64,
        width: u32,
        access: String,
        reset: toml::Value,
        #[serde(default)]
        stride: u64,
        #[serde(default)]
        bits: Vec<Bits>,
    }
    #[derive(serde::Deserialize)]
    struct Bits {
        name: String,
        lsb: u32,
        width: u32,
    }

    fn map() -> Map {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/device/regmap.toml"));
        toml::from_str(&text.unwrap()).unwrap()
    }

    #[test]
    fn declarations_agree_with_the_register_map() {
        let map = map();
        assert_eq!((map.bar0_size, map.bar2_size), (BAR0_SIZE, BAR2_SIZE));
        assert_eq!((map.vendor, map.device), (VENDOR, DEVICE));
        let by_name: HashMap<_, _> = map.register.iter().map(|r| (r.name.as_str(), r)).collect();
        for d in ALL {
            let r = by_name.get(d.name).unwrap_or_else(|| panic!("{} is not in regmap.toml", d.name));
            assert_eq!(r.width, 4, "{}", d.name);
            assert_eq!(r.offset, d.offset, "{} offset", d.name);
            assert_eq!(r.stride, d.stride, "{} stride", d.name);
            assert_eq!(r.access, d.access.to_lowercase(), "{} access", d.name);
            assert_eq!(r.bar, if d.access == "Db" { 2 } else { 0 }, "{} BAR", d.name);
            let reset = r.reset.as_integer().map(|v| v as u64);
            assert_eq!(reset, d.reset, "{} reset", d.name);
            if let Some(lo) = d.name.strip_suffix("_LO") {
                let hi = by_name.get(format!("{lo}_HI").as_str()).unwrap_or_else(|| panic!("{lo}_HI"));
                assert_eq!(hi.offset, d.offset + 4, "{lo}: HI follows LO");
            }
        }
    }

    #[test]
    fn bits_agree_with_the_register_map() {
        let map = map();
        for (register, bit, mask) in [
            ("CTRL", "ENABLE", ENABLE),
            ("STATUS", "READY", STATUS_READY),
            ("STATUS", "ENABLED", STATUS_ENABLED),
            ("STATUS", "FATAL", STATUS_FATAL),
            ("ASQ_CTRL", "ENABLE", ENABLE),
            ("PORT_CTRL", "ENABLE", ENABLE),
            ("PORT_STATUS", "LINK", PORT_LINK),
        ] {
            let r = map.register.iter().find(|r| r.name == register).unwrap();
            let b = r.bits.iter().find(|b| b.name == bit).unwrap();
            assert_eq!(((1u32 << b.width) - 1) << b.lsb, mask, "{register}.{bit}");
        }
    }
}
