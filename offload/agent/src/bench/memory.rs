//! What a flow costs in planner and driver once it is in a NIC: the memory of this process, while the device has a
//! process of its own.
//!
//! Counted is what is in RAM more than before the first flow: the planner's slot and place of each, the driver's shadow,
//! and the counter page, which is host memory too; so every flow's counters are read once. The flows themselves are the
//! softpath's, whose memory is measured apart; here they are made when the planner asks for them.

use super::card::PATIENCE;
use super::cpu;
use super::flows::tuple;
use super::traffic::{EXACT, flow};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::{Nic, NicPort};
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use flowlift_flow::{Flow, PortNo};
use flowlift_offload::planner::{Counters, FlowId, FlowSource, Planner};
use flowlift_offload::ports::PortMap;
use flowlift_sim::server::{Server, ServerConfig};
use flowlift_sim::{Config, FaultPlan, HostClock, Profile};
use serde::Serialize;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Flows that the largest simulated NIC holds in its first table.
pub(super) const MOST: u32 = 2_000_000;
/// Flows that are put between two turns of the planner.
const CHUNK: u32 = 4096;

/// Arguments of the hidden `bench device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// Serves a simulated NIC until the standard input ends.
pub(super) fn serve(args: &DeviceArgs) -> Result<()> {
    let config = Config { seed: 1, faults: FaultPlan::default(), clock: Box::new(HostClock::default()) };
    let device = flowlift_sim::Fl1::new(Profile::large(), config);
    let mut server = Server::new(device, &[], &args.socket, ServerConfig::default())?;
    println!("listening");
    std::io::stdout().flush()?;
    server.run(std::io::stdin().as_fd())?;
    let violations = server.device().violations_total();
    ensure!(violations == 0, "the device noticed {violations} violations");
    Ok(())
}

/// A device in a process of its own, which ends with this.
struct Device {
    process: Child,
    socket: PathBuf,
}

impl Device {
    fn start() -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("flowlift-bench-{}.sock", std::process::id()));
        let program = std::env::current_exe().context("cannot find this program")?;
        let process = Command::new(program)
            .args(["bench", "device", "--socket"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the device's process")?;
        let mut device = Self { process, socket };
        let mut line = String::new();
        let stdout = device.process.stdout.take().context("the device's process has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "listening\n", "the device's process said {line:?}");
        Ok(device)
    }

    fn path(&self) -> &Path {
        &self.socket
    }

    /// Ends it; fails if it noticed a breach of its protocol.
    fn stop(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        ensure!(status.success(), "the device's process ended with {status}");
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What was stopped already is not there any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Flows by number.
struct Numbered;

impl FlowSource for Numbered {
    fn flow(&self, id: FlowId) -> Option<Flow> {
        Some(flow(tuple(id.0), EXACT, id.0.into()))
    }
}

/// Memory of flows in planner and driver.
#[derive(Debug, Serialize)]
pub(super) struct NicMemory {
    /// Flows, all of them in the NIC.
    flows: u32,
    /// Memory of this process over their number.
    bytes_per_flow: f64,
    /// From the first put to the last confirmed entry, by the clock: lowered, raised and compared, inserted.
    offloads_per_s: f64,
}

impl std::fmt::Display for NicMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flows, bytes_per_flow, offloads_per_s } = self;
        writeln!(
            f,
            "{flows} flows in a NIC: {bytes_per_flow:.0} bytes per flow in planner and driver; offloaded at {:.2} M/s",
            offloads_per_s / 1e6
        )
    }
}

/// Lets the planner work until nothing is left to do.
fn settle(planner: &mut Planner, nic: &mut Fl1, start: Instant) -> Result<()> {
    let last = Instant::now();
    while !planner.is_idle() {
        planner.pump(nic, &Numbered, start.elapsed().as_nanos() as u64);
        if let Some(error) = planner.take_error() {
            return Err(error).context("the planner");
        }
        ensure!(last.elapsed() < PATIENCE * 6, "flows are left without an answer: {:?}", planner.tally());
    }
    Ok(())
}

/// Offloads so many five-tuple flows.
pub(super) fn measure(flows: u32) -> Result<NicMemory> {
    let device = Device::start()?;
    let config = VfioUserConfig { deadline: Duration::from_secs(30) };
    let mut nic = Fl1::open(VfioUser::connect(device.path(), config)?, Fl1Config::default())
        .context("cannot bring the simulated NIC up")?;
    let mut ports = PortMap::new();
    for number in [1u16, 2] {
        ports.insert(PortNo(number.into()), NicPort(number));
    }
    let mut planner = Planner::new(nic.caps(), &ports);
    let start = Instant::now();
    let before = cpu::resident()?;
    for first in (0..flows).step_by(CHUNK as usize) {
        for n in first..flows.min(first + CHUNK) {
            planner.put(FlowId(n), &flow(tuple(n), EXACT, n.into()));
        }
        planner.pump(&mut nic, &Numbered, start.elapsed().as_nanos() as u64);
    }
    settle(&mut planner, &mut nic, start)?;
    let time = start.elapsed();
    let tally = planner.tally();
    if tally.hardware != flows {
        bail!("{flows} flows were to be in the NIC: {tally:?}, {:?}", planner.state(FlowId(0)));
    }
    let counted = (0..flows).filter(|&n| planner.counters(FlowId(n), &nic) != Counters::default()).count();
    ensure!(counted == 0, "{counted} flows have counters, and no packet came");
    let bytes = cpu::resident()?.saturating_sub(before);
    // The driver first, so that the end of the device is not one that was pulled out.
    drop(nic);
    device.stop()?;
    Ok(NicMemory {
        flows,
        bytes_per_flow: bytes as f64 / f64::from(flows),
        offloads_per_s: f64::from(flows) / time.as_secs_f64(),
    })
}
