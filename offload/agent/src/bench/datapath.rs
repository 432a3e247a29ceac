//! `flowlift bench datapath`.

use super::args::Measure;
use super::forward::{Frames, Speed, forward};
use crate::failure::Tell;
use crate::flows::load;
use crate::ports::Ports;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use flowlift_port::CaptureFile;
use flowlift_softpath::{Config, Datapath};
use serde::Serialize;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Arguments of `bench datapath`.
#[derive(Debug, Args)]
pub struct DatapathArgs {
    /// Capture whose frames are forwarded, again and again.
    #[arg(long, value_name = "FILE")]
    pcap: PathBuf,
    /// Flows as `ovs-appctl dpctl/dump-flows` prints them.
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
    /// Names of datapath ports, as in `--ports p1=1,p2=2`.
    #[arg(long, value_name = "NAME=NUMBER,...", value_delimiter = ',')]
    ports: Vec<String>,
    /// Ingress port of all frames, name or number.
    #[arg(long, value_name = "PORT", default_value = "1")]
    in_port: String,
    /// Worker threads, each on a core of its own. With several, each alone is measured before and after all together.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Bytes from one frame to the next in the memory that they are copied from. 0: one right behind the other.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    spacing: usize,
    #[command(flatten)]
    measure: Measure,
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
    /// With several threads.
    scaling: Option<Scaling>,
}

/// What several threads gain over one.
#[derive(Debug, Serialize)]
struct Scaling {
    /// Of one thread, the mean over all cores, before and after: million packets in a second by the clock, and in a
    /// second of CPU time.
    alone_mpps_wall: f64,
    alone_mpps_cpu: f64,
    /// Speed of all threads over that of one, by the clock.
    wall: f64,
    /// The same if each thread had a core all of the time: threads times what is left of a thread's speed per CPU second.
    cpu: f64,
}

impl Scaling {
    fn of(alone: &[Speed], together: &Speed) -> Self {
        let mean = |get: fn(&Speed) -> f64| alone.iter().map(get).sum::<f64>() / alone.len() as f64;
        let (alone_mpps_wall, alone_mpps_cpu) = (mean(|s| s.mpps_wall), mean(|s| s.mpps_cpu));
        Self {
            alone_mpps_wall,
            alone_mpps_cpu,
            wall: together.mpps_wall / alone_mpps_wall,
            cpu: together.threads as f64 * together.mpps_cpu / alone_mpps_cpu,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flows, masks, frames, cores, speed, scaling } = self;
        writeln!(f, "{frames} frames, {flows} flows, {masks} masks, cores {cores:?}")?;
        speed.fmt(f)?;
        let Some(Scaling { alone_mpps_wall, alone_mpps_cpu, wall, cpu }) = scaling else { return Ok(()) };
        writeln!(
            f,
            "one thread alone: {alone_mpps_cpu:.2} Mpps per CPU second, {alone_mpps_wall:.2} by the clock; \
             all together {wall:.2} times by the clock, {cpu:.2} times by CPU time"
        )
    }
}

pub(super) fn run(args: &DatapathArgs) -> Result<()> {
    let time = args.measure.time()?;
    let cores = args.measure.cores(args.threads.into())?;
    let ports = Ports::parse(args.ports.iter().map(String::as_str))?;
    let in_port = ports.port(&args.in_port)?;

    let capture = CaptureFile::open(&args.pcap).at(args.pcap.display())?;
    if let Some(damage) = capture.damage() {
        return Err(anyhow!("{damage}")).at(args.pcap.display());
    }
    if capture.is_empty() {
        return Err(anyhow!("there is no frame in it")).at(args.pcap.display());
    }
    let mut frames = Frames::default();
    capture.frames().for_each(|frame| frames.push(frame.data, args.spacing));

    let file = File::open(&args.flows).context("cannot open it").at(args.flows.display())?;
    let mut datapath = Datapath::new(Config::default());
    let loaded = load(&args.flows.display(), BufReader::new(file), ports.names(), true, &mut datapath)?;

    let measure = |cores: &[usize]| forward(&datapath, &frames, in_port.0, cores, time / 4, time);
    let several = cores.len() > 1;
    let each = || cores.iter().filter(|_| several).map(|&core| measure(&[core]));
    let before = each().collect::<Result<Vec<Speed>>>()?;
    let speed = measure(&cores)?;
    let after = each().collect::<Result<Vec<Speed>>>()?;
    let scaling = several.then(|| Scaling::of(&[before, after].concat(), &speed));
    let report = Report {
        flows: loaded.flows.len(),
        masks: datapath.mask_count(),
        frames: frames.len(),
        cores,
        speed,
        scaling,
    };
    args.measure.print(&report)
}
