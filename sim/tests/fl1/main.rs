//! The device model from outside: a host of raw bytes drives it through registers, doorbells and DMA, by the spec.

mod faults;
mod host;
mod oracle;
mod pipeline;
mod spec;
mod violations;
