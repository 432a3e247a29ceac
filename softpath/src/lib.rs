//! flowlift's software datapath: from packet to key, to flow, to actions.
//!
//! A [`Datapath`] holds the flow table and is its only writer; a [`Worker`] per thread processes packets in batches and
//! never waits for the writer. [`worker`] explains the tiers of a lookup, [`table`] how one side changes what the other reads,
//! [`extract`] and [`actions`] what stands before and after. [`reference`] does the same job the slow and obvious way, to
//! be compared with.
//!
//! Every flow is here, also those that a NIC handles: the software copy is the truth and the fallback.

pub mod actions;
pub mod cache;
pub mod checksum;
pub mod classifier;
pub mod datapath;
pub mod extract;
mod isa;
pub mod meter;
pub mod packet;
pub mod recursion;
pub mod reference;
pub mod stats;
pub mod table;
pub mod worker;

pub use datapath::{Config, Datapath, Deleted, DumpedFlow};
pub use flowlift_port::Offload;
pub use meter::{
    LentBucket, LentCounts, MeterBand, MeterConfig, MeterCount, MeterError, MeterHandle, MeterStats,
    MeterUnit,
};
pub use packet::{Outgoing, Packet};
pub use reference::Reference;
pub use stats::{Counters, FlowStats};
pub use table::{FlowId, Put, PutError, PutMode};
pub use worker::{BATCH, Batch, Dropped, Sink, Upcall, Worker};
