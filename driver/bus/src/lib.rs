//! The line between a NIC driver and a device.
//!
//! A driver sees a [`PciFunction`]: configuration space, BAR windows, interrupts, DMA. Behind it stands VFIO,
//! vfio-user or, in process, a [`DeviceModel`]. The same driver code runs on all of them; only the transport
//! differs. Interrupts are eventfds everywhere, DMA memory is a memfd ([`DmaMem`]), IOVAs come from the ranges the
//! backend allows ([`DmaDomain::iova_ranges`]), and register access has a width in its type and can fail.
//!
//! This crate knows nothing else of ours.
#![allow(unsafe_code)] // DMA memory is shared with a device: see `mem`.

mod config;
mod device;
mod dma;
mod error;
mod mem;
mod pci;
pub mod vfio_user;

pub use config::{ConfigEffect, ConfigSpace};
pub use device::{BarSpec, DeviceModel, DmaBus, DmaPages, IrqSink, PagedBus, PciIdentity};
pub use dma::{DmaDirection, DmaDomain, IovaRange, Mapping, MappingGuard};
pub use error::{BusError, DmaFault};
pub use mem::DmaMem;
pub use pci::{BarAccess, BarWindow, IrqInfo, IrqKind, LifecycleEvents, PciFunction, Register};
