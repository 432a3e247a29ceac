//! The simulated NIC of `--nic sim`: flowlift-sim's vfio-user server in a thread of the daemon, behind the same driver and
//! transport as one in a process of its own.

use super::keeper::Keeper;
use crate::cli::{DaemonArgs, NicArg};
use crate::failure::Tell;
use anyhow::{Context, Result};
use flowlift_port::HostSpec;
use flowlift_sim::server::{Plugs, Server, ServerConfig, WireKind, WireSpec};
use flowlift_sim::{Config, FaultPlan, Fl1, HostClock};
use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// A device that runs.
pub(super) struct Simulation {
    path: PathBuf,
    plugs: Plugs,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// The device of the host that carries on the cable at the end of a wire; other ends are hosts of their own.
pub(super) fn device(wire: &WireSpec) -> Option<&str> {
    match &wire.kind {
        WireKind::Host(HostSpec::Packet(name)) => Some(name),
        WireKind::Host(_) | WireKind::Pcap(..) | WireKind::Memory(_) => None,
    }
}

impl Simulation {
    /// Starts the device with its wires, whose sockets are kept.
    ///
    /// # Errors
    /// A wire or the device's socket cannot be opened.
    pub(super) fn start(args: &DaemonArgs, keeper: &mut Keeper) -> Result<Self> {
        let config = Config { seed: 0, faults: FaultPlan::default(), clock: Box::new(HostClock::default()) };
        let device = Fl1::new(args.profile.profile(), config);
        let path = crate::control::run_dir().join(format!("sim-{}.sock", std::process::id()));
        let wires: Vec<WireSpec> = args.wire_specs().collect();
        let host = &mut |spec: &HostSpec| keeper.host_port(spec);
        let mut server = Server::with_hosts(device, &wires, &path, ServerConfig::default(), host)
            .context("cannot start the simulated NIC")
            .remedy("each --wire has a port of its own and an end that is there")?;
        let plugs = server.plugs();
        let stop = Arc::new(EventFd::new()?);
        let stopped = Arc::clone(&stop);
        let thread = Builder::new().name("sim".into()).spawn(move || match server.run(stopped.as_fd()) {
            Ok(stats) => tracing::info!(?stats, "the simulated NIC stopped"),
            Err(error) => tracing::error!(%error, "the simulated NIC failed"),
        })?;
        Ok(Self { path, plugs, stop, thread: Some(thread) })
    }

    /// What changes its wires.
    pub(super) fn plugs(&self) -> Plugs {
        self.plugs.clone()
    }

    /// Where it is.
    pub(super) fn nic(&self) -> NicArg {
        NicArg::VfioUser(self.path.clone())
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // It stops at once; a failure would mean that it has stopped already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
