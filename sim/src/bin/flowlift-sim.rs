//! `flowlift-sim`: the simulated NIC as a PCI device for another process, by vfio-user.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use flowlift_sim::server::{NamedWire, Server, ServerConfig, WireSpec};
use flowlift_sim::{Config, FaultPlan, Fl1, HostClock, Profile};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// The FL1 reference NIC as a vfio-user device, for `flowlift --nic vfio-user:SOCKET` or QEMU's vfio-user-pci.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Size of the NIC.
    #[arg(long, value_enum, default_value = "standard")]
    profile: ProfileArg,
    /// Seed of everything random in the device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Faults to inject: `all`, or names with optional rates, as in `lost_completion=0.01,hang`.
    #[arg(long, value_name = "SPEC")]
    faults: Option<FaultPlan>,
    /// Plugs port N (from 0) into something: pN=tap:NAME, pN=packet:NETDEV, pN=unix:LOCAL[,PEER], pN=pcap:IN[,OUT], or
    /// pN=memory:CABLE, a cable to the other port that names it. vfN is the port of virtual function N.
    #[arg(long = "wire", value_name = "pN|vfN=KIND:...")]
    wires: Vec<NamedWire>,
    /// How long the device looks for doorbells without sleeping after its last work, in microseconds.
    #[arg(long, value_name = "US", default_value_t = 100)]
    spin: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProfileArg {
    /// One TCAM of 16 entries, L2 and L3 keys.
    Tiny,
    /// Hash and TCAM tables in two stages.
    Standard,
    /// Millions of entries in three stages.
    Large,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "flowlift-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Blocked, so that they are read from the descriptor instead of ending the process.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("signals")?;
    let stop =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;

    let profile = match args.profile {
        ProfileArg::Tiny => Profile::tiny(),
        ProfileArg::Standard => Profile::standard(),
        ProfileArg::Large => Profile::large(),
    };
    let faults = args.faults.unwrap_or_default();
    let wires: Vec<WireSpec> = args.wires.iter().map(|wire| wire.on(&profile)).collect();
    let device = Fl1::new(profile, Config { seed: args.seed, faults, clock: Box::new(HostClock::default()) });
    let config = ServerConfig { spin: Duration::from_micros(args.spin) };
    let mut server = Server::new(device, &wires, &args.socket, config)?;
    // A line for whoever started this and waits; it may have stopped reading.
    let _ = writeln!(std::io::stdout(), "listening on {}", args.socket.display());
    let stats = server.run(stop.as_fd())?;
    for fault in server.device().fault_log() {
        tracing::info!("injected: {fault}");
    }
    let violations = server.device().violations_total();
    tracing::info!(?stats, violations, "stopped");
    Ok(())
}
