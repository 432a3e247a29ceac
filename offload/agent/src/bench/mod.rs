//! `flowlift bench`: how fast the softpath and the way to the NIC are, on this machine.
//!
//! Every figure is per second of CPU time of the thread that does the work, so that other work on a shared core does not
//! spoil it; wall-clock figures stand beside it. `docs/benchmarks.md` says how these are compared with Open vSwitch.

mod args;
mod beside;
mod card;
mod cpu;
mod datapath;
mod flows;
mod forward;
mod masks;
mod memory;
mod traffic;
mod updates;

use anyhow::Result;
use clap::Subcommand;

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Forward a capture's frames through the softpath, from memory to a null port.
    Datapath(datapath::DatapathArgs),
    /// Forward the same traffic under different numbers of masks, and compare the cost of a packet.
    Masks(masks::MasksArgs),
    /// Put flows into the softpath and delete them, while a reader forwards; and measure their memory, there and in the
    /// planner and driver of a NIC.
    Flows(flows::FlowsArgs),
    /// Insert, replace and delete entries of the simulated NIC, and forward while rules change.
    Updates(updates::UpdatesArgs),
    /// The device of a benchmark that has it in a process of its own.
    #[command(hide = true)]
    Device(memory::DeviceArgs),
}

/// Runs a benchmark and prints its report to the standard output.
///
/// # Errors
/// A file that cannot be read, a core that there is not, a result that is wrong.
pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Datapath(args) => datapath::run(args),
        BenchCommand::Masks(args) => masks::run(args),
        BenchCommand::Flows(args) => flows::run(args),
        BenchCommand::Updates(args) => updates::run(args),
        BenchCommand::Device(args) => memory::serve(args),
    }
}
