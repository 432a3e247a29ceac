//! `flowlift bench datapath`.

use super::cpu;
use super::forward::{Frames, Speed, forward};
use crate::flows::load;
use crate::ports::Ports;
use anyhow::{Context, Result, bail};
use clap::Args;
use flowlift_port::CaptureFile;
use flowlift_softpath::{Config, Datapath};
use serde::Serialize;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `bench datapath`.
#[derive(Debug, Args)]
pub struct DatapathArgs {
    /// Capture whose frames are forwarded, again and again.
    #[arg(long, value_name = "FILE")]
    pcap: PathBuf,
    /// Flows as `ovs-appctl dpctl/dump-flows` prints them.
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
    /// Seconds to measure, after a quarter of that to warm up.
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    seconds: f64,
    /// Names of datapath ports, as in `--ports p1=1,p2=2`.
    #[arg(long, value_name = "NAME=NUMBER,...", value_delimiter = ',')]
    ports: Vec<String>,
    /// Ingress port of all frames, name or number.
    #[arg(long, value_name = "PORT", default_value = "1")]
    in_port: String,
    /// Worker threads, each on a core of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// First core of the threads. [default: so that the last thread has the last core]
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
    /// Bytes from one frame to the next in the memory that they are copied from. 0: one right behind the other.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    spacing: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `bench datapath` prints.
#[derive(Debug, Serialize)]
struct Report {
    flows: usize,
    masks: usize,
    /// Frames in the capture.
    frames: usize,
    /// Cores of the threads.
    cores: Vec<usize>,
    #[serde(flatten)]
    speed: Speed,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flows, masks, frames, cores, speed } = self;
        writeln!(f, "{frames} frames, {flows} flows, {masks} masks, cores {cores:?}")?;
        speed.fmt(f)
    }
}

/// A time from the command line.
pub(super) fn seconds(seconds: f64) -> Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => bail!("--seconds {seconds}: expected a positive number"),
    }
}

pub(super) fn run(args: &DatapathArgs) -> Result<()> {
    let time = seconds(args.seconds)?;
    let cores = cpu::choose(args.core, args.threads.into())?;
    let ports = Ports::parse(args.ports.iter().map(String::as_str))?;
    let in_port = ports.port(&args.in_port)?;

    let capture = CaptureFile::open(&args.pcap).with_context(|| format!("{}", args.pcap.display()))?;
    if let Some(damage) = capture.damage() {
        bail!("{}: {damage}", args.pcap.display());
    }
    if capture.is_empty() {
        bail!("{}: there is no frame in it", args.pcap.display());
    }
    let mut frames = Frames::default();
    capture.frames().for_each(|frame| frames.push(frame.data, args.spacing));

    let file = File::open(&args.flows).with_context(|| format!("cannot open {}", args.flows.display()))?;
    let mut datapath = Datapath::new(Config::default());
    let loaded = load(&args.flows.display(), BufReader::new(file), ports.names(), true, &mut datapath)?;

    let speed = forward(&datapath, &frames, in_port.0, &cores, time / 4, time)?;
    let report = Report {
        flows: loaded.flows.len(),
        masks: datapath.mask_count(),
        frames: frames.len(),
        cores,
        speed,
    };
    super::print(&report, args.json)
}
