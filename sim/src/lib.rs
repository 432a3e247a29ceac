//! FL1, the reference NIC, as a device model.
//!
//! Written from `fixtures/device/FL1.md` alone: it shares no code with the driver, so that it can prove the driver wrong.
//! [`Fl1`] implements [`flowlift_bus::DeviceModel`]; a transport gives it DMA and interrupts, [`Fl1::plug`] gives its
//! ports wires, and its owner steps it. All randomness comes from one seed and time from an injected [`Clock`], so a
//! run is replayed byte for byte.
//!
//! A packet's way through the modules: [`wire`](Wire) → `parser` → `table` → `action` (with `vxlan`) → `slow` (which makes the effects
//! happen, all or none). Commands: `command` (bytes) → `admin`. Every breach of protocol ends in `violation`.

mod action;
mod admin;
mod bytes;
mod checksum;
pub mod cli;
mod clock;
mod command;
mod device;
mod event;
mod fault;
mod field;
mod host;
mod meter;
mod order;
mod parser;
mod pipeline;
mod profile;
mod queue;
mod ram;
mod regs;
pub mod server;
mod slow;
mod step;
mod table;
mod violation;
mod vxlan;
mod wire;

pub use action::UNIT;
pub use checksum::crc32c;
pub use clock::{Clock, HostClock, ManualClock};
pub use command::{Command, CommandError, Opcode, Status, decode_command};
pub use device::{Config, FatalCode, Fl1, ResetCause};
pub use fault::{FaultKind, FaultPlan, FaultRecord, FaultSpecError, Rate};
pub use field::{Field, PacketKey};
pub use parser::{Parsed, Unparsed, parse};
pub use profile::{FieldSpec, MAX_FRAME, MAX_SLOTS, MatchKind, Profile, TableKind, TableSpec};
pub use step::StepReport;
pub use violation::{Violation, ViolationCode};
pub use wire::{MemoryWire, NoWire, Parts, PortWire, Wire};
