//! `flowlift-sim`: the simulated NIC as a PCI device for another process, by vfio-user.

use anyhow::{Context, Result};
use clap::Parser;
use flowlift_sim::cli::Args;
use flowlift_sim::server::{Server, ServerConfig, WireSpec};
use flowlift_sim::{Config, Fl1, HostClock};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

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

    let profile = args.profile.profile();
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
