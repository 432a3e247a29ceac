//! The `flowlift` binary's insides: the command line, and the engine that wires softpath, planner, driver and NIC.

pub mod bench;
pub mod check;
pub mod cli;
pub mod command;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod failure;
pub mod flows;
pub mod input;
pub mod ledger;
pub mod open;
pub mod ports;
pub mod progress;
pub mod report;
