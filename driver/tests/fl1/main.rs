//! The driver of FL1 against the simulated device, which was written from the same page by another hand.

mod faults;
mod harness;
mod hostile;
mod packets;
mod updates;
