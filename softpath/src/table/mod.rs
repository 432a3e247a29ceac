//! The flow table: one writer, readers that never wait.
//!
//! A flow lives in a numbered slot ([`rcu::Slots`]) as an immutable [`FlowRecord`]. Everything that finds flows holds slot
//! numbers: an index per mask (the classifier's subtables), an index of UFIDs, and the workers' caches. To add a flow the
//! writer fills a slot, then the indexes; to delete one, the other way round. A reader that finds a slot number compares
//! the packet with the record that is in the slot right then, so no order of events gives it a flow that does not match;
//! that is also why a slot can be used again at once.

pub mod chunks;
pub mod hash;
pub mod index;
mod overlap;
pub mod rcu;
pub mod record;
pub mod shape;
#[cfg(test)]
mod tests;
mod writer;

pub use overlap::Overlap;
pub use record::{Actions, FlowId, FlowRecord};
pub use writer::{FlowTable, Put, PutError, PutMode, TableShared};
