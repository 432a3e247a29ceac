//! The command line of `flowlift-sim`: definitions only. They are the library's, so that `flowlift man` and `flowlift
//! completions` can be made from them.

use crate::server::NamedWire;
use crate::{FaultPlan, Profile};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// The FL1 reference NIC as a vfio-user device, for `flowlift --nic vfio-user:SOCKET` or QEMU's vfio-user-pci.
#[derive(Debug, Parser)]
#[command(name = "flowlift-sim", version)]
pub struct Args {
    /// Unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Size of the NIC.
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: ProfileArg,
    /// Seed of everything random in the device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Faults to inject: `all`, or names with optional rates, as in `lost_completion=0.01,hang`.
    #[arg(long, value_name = "SPEC")]
    pub faults: Option<FaultPlan>,
    /// Plugs port N (from 0) into something: pN=tap:NAME, pN=packet:NETDEV, pN=unix:LOCAL[,PEER], pN=pcap:IN[,OUT], or
    /// pN=memory:CABLE, a cable to the other port that names it. vfN is the port of virtual function N.
    #[arg(long = "wire", value_name = "pN|vfN=KIND:...")]
    pub wires: Vec<NamedWire>,
    /// How long the device looks for doorbells without sleeping after its last work, in microseconds.
    #[arg(long, value_name = "US", default_value_t = 100)]
    pub spin: u64,
}

/// Profile of the simulated NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// One TCAM of 16 entries, L2 and L3 keys.
    Tiny,
    /// Hash and TCAM tables in two stages.
    Standard,
    /// Millions of entries in three stages.
    Large,
}

impl ProfileArg {
    /// The profile of that name.
    pub fn profile(self) -> Profile {
        match self {
            Self::Tiny => Profile::tiny(),
            Self::Standard => Profile::standard(),
            Self::Large => Profile::large(),
        }
    }
}
