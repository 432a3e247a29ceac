//! The daemon: a datapath for ovs-vswitchd, in the place of the kernel's module.
//!
//! ```text
//!  ovs-vswitchd (under the preloaded library)      flowlift status, ovs-appctl
//!        | Netlink                                      | control socket
//!  [serve: server, plane] <------------- calls ---------+
//!        | calls, flows                 
//!  [forward: ports, softpath, NIC's slow path, planner] ---- upcalls ----> ovs-vswitchd
//!        | driver
//!  the NIC (a thread of its own if it is simulated)
//! ```
//!
//! Each thread owns what it works on; [`mailbox`] is how they talk.

pub mod commands;
pub mod forward;
pub mod journal;
pub mod keeper;
pub mod mailbox;
mod nic_ports;
pub mod plane;
mod representor;
pub mod serve;
mod sim;
pub mod state_dir;

use crate::cli::{DaemonArgs, DaemonNic};
use crate::control::{self, Server as ControlServer};
use crate::failure::Tell;
use crate::open;
use anyhow::{Context, Result, anyhow, bail};
use commands::Daemon;
use flowlift_driver::nic::{Nic, NicPort};
use flowlift_ovs::marker::{PORT_ID_VARIABLE, SERVER_PORT_ID};
use flowlift_ovs::server::Server;
use flowlift_ovs::socket::{Endpoint, Socket};
use flowlift_port::InternalPort;
use flowlift_port::link::{LinkWatcher, Links};
use forward::{Forwarder, NicSide, Representor, Upcalls};
use keeper::Keeper;
use mailbox::mailbox;
use nic_ports::NicPorts;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};
use plane::Plane;
use representor::Represented;
use serve::Serve;
use sim::Simulation;
use state_dir::StateDir;
use std::sync::Arc;
use std::thread::Builder;

/// Packet sockets are what every port of the host needs, and only a privileged process may open one.
fn may_open_devices() -> Result<()> {
    socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .map(drop)
        .context("cannot open devices of the host")
        .remedy("run it as root, or with CAP_NET_ADMIN and CAP_NET_RAW")
}

/// Runs the daemon until SIGTERM or SIGINT, or until it is told to exit.
///
/// # Errors
/// What it needs is not there, or one of its threads failed.
pub fn run(args: &DaemonArgs) -> Result<()> {
    // Blocked here, so that every thread has them blocked and this one can wait for them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;

    let port_id = port_id()?;
    may_open_devices()?;
    let socket = Socket::bind(port_id).map_err(|error| match error.errno {
        Errno::EADDRINUSE => anyhow!("another daemon has port ID {port_id} in this network namespace"),
        _ => error.into(),
    });
    let socket = socket.remedy("a namespace has one daemon: `flowlift status` asks it, SIGTERM ends it")?;
    let state = StateDir::open(&control::run_dir())?;
    let mut keeper = Keeper::find(&state.file("keeper.sock"));
    // The simulated NIC outlives its driver.
    let simulation = match &args.nic {
        DaemonNic::Sim => Some(Simulation::start(args, &mut keeper)?),
        DaemonNic::None | DaemonNic::Real(_) => None,
    };
    let nic = match (&args.nic, &simulation) {
        (DaemonNic::Real(nic), _) => Some(open::open_function(nic)?),
        (_, Some(simulation)) => Some(open::open_function(&simulation.nic())?),
        _ => None,
    };
    let (nic, _function) = nic.map_or((None, None), |opened| (Some(opened.nic), Some(opened.function)));
    let mut links = Links::new()?;
    let mut representors = Vec::new();
    let nic_ports = match &nic {
        Some(nic) => {
            let ports: Vec<NicPort> = nic.caps().ports.iter().map(|port| port.port).collect();
            let nic_ports = NicPorts::new(args, &ports, simulation.as_ref().map(Simulation::plugs))?;
            representors = make_representors(args, nic.as_ref(), &nic_ports, &mut links, &mut keeper)?;
            nic_ports
        }
        None if args.wires.is_empty() => NicPorts::none(),
        None => {
            return Err(anyhow!("there is no NIC that has wires")).at("--wire").remedy("--nic sim is one");
        }
    };

    let (to_forwarder, forwarder_inbox) = mailbox::<Forwarder>()?;
    let (to_serve, serve_inbox) = mailbox::<Serve>()?;
    let lost = {
        let to_serve = to_serve.clone();
        Box::new(move |dp, port| to_serve.send(move |serve: &mut Serve| serve.device_lost(dp, port)))
    };
    let mut forwarder = Forwarder::new(nic.map(NicSide::new), Upcalls::new(socket.sender()), lost)?;
    let mut represented = Vec::new();
    for (of, device) in representors {
        forwarder.add_representor(Representor::new(of.port, device))?;
        represented.push(of);
    }
    let mut plane = Plane::new(to_forwarder.clone(), nic_ports, links, keeper);
    plane.set_representors(represented);
    // Whichever thread ends, by itself or not, ends the daemon.
    let end = move |what: &'static str, result: Result<()>| {
        if let Err(error) = result {
            tracing::error!(%error, what, "a thread failed");
        }
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM);
    };
    let forward = Builder::new()
        .name("forward".into())
        .spawn(move || end("forward", forwarder.run(&forwarder_inbox).map_err(Into::into)))?;
    let ask = {
        let to_serve = to_serve.clone();
        Box::new(move |from| to_serve.send(move |serve: &mut Serve| serve.plane().tell_everything(from)))
    };
    plane.restore(state, ask);
    to_forwarder.send(Forwarder::begin);
    plane.unclaim_leftovers();
    let allowed = vec![nix::unistd::geteuid().as_raw()];
    let devices = Endpoint::new(Socket::bind_route(port_id)?, Server::of_devices(allowed.clone()));
    let serve = Serve::new(Endpoint::new(socket, Server::new(allowed)), devices, plane, LinkWatcher::new()?);
    let serving = Builder::new().name("serve".into()).spawn(move || end("serve", serve.run(&serve_inbox)))?;
    let path = args.control.clone().unwrap_or_else(control::default_path);
    let daemon = Daemon::new(to_serve.clone(), to_forwarder.clone());
    let control = ControlServer::start(&path, Arc::new(daemon))?;
    tracing::info!(control = %path.display(), "ready");

    let signal = signals.wait()?;
    tracing::info!(%signal, "stopping");
    drop(control);
    // In this order: the last counters are asked of the other thread.
    to_serve.send(Serve::stop);
    let served = serving.join();
    to_forwarder.send(Forwarder::stop);
    if served.is_err() | forward.join().is_err() {
        bail!("a thread panicked");
    }
    drop(simulation);
    Ok(())
}

/// Makes the representors: of those ports that no device stands for and, of the simulated NIC's, that have a wire.
fn make_representors(
    args: &DaemonArgs,
    nic: &dyn Nic,
    nic_ports: &NicPorts,
    links: &mut Links,
    keeper: &mut Keeper,
) -> Result<Vec<(Represented, InternalPort)>> {
    if args.no_representors {
        return Ok(Vec::new());
    }
    let ports = &nic.caps().ports;
    let has_wire =
        |n: usize| args.nic != DaemonNic::Sim || args.wire_specs().any(|wire| usize::from(wire.port) == n);
    let names = representor::names(ports, &args.representors).into_iter().enumerate();
    let wanted = names.filter(|(n, (port, _))| has_wire(*n) && !nic_ports.is_named(*port));
    let make = |(n, (port, name)): (usize, _)| {
        let is_physical = ports.get(n).is_some_and(|caps| !caps.virtual_function);
        // A virtual function's address is that of whoever has the function, not of the port that it is plugged into.
        let address = if is_physical { nic.port_address(port).ok().filter(|a| *a != [0; 6]) } else { None };
        representor::make(port, name, address, links, keeper)
    };
    wanted.map(make).collect()
}

/// The server's port ID.
fn port_id() -> Result<u32> {
    match std::env::var(PORT_ID_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{PORT_ID_VARIABLE}={text} is not a port ID")),
        Err(_) => Ok(SERVER_PORT_ID),
    }
}
