//! A rule of rte_flow as a flow: pure, no FFI.
//!
//! A pattern becomes a [`flowlift_flow::Match`] (`pattern`), actions become [`flowlift_flow::Action`]s (`action`), and whatever stands in
//! the way becomes a [`Refusal`] that names the attribute, item or action; a rule like an earlier one is recognized (`form`). Whether a
//! NIC can do it is not asked here: that is the planner's.

pub mod action;
pub mod form;
pub mod pattern;
pub mod refusal;

pub use refusal::{Culprit, Refusal};

/// First recirculation ID that stands for a delivery to the port's receive queues; lower ones are rte_flow groups.
pub const FIRST_DELIVERY: u32 = 0x8000_0000;
