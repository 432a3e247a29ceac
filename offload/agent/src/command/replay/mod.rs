//! `flowlift replay`.

use super::{Outcome, print_json};
use crate::failure::{self, Tell};
mod report;

use crate::check::CheckReport;
use crate::cli::{NicArg, ReplayArgs, nic_port};
use crate::engine::{Arrival, NicRun, NicSetup, ReferenceRun, Run, SoftRun};
use crate::input::{self, Flows, Packets};
use crate::ledger::Ledger;
use crate::open;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow};
use flowlift_flow::PortNo;
use flowlift_softpath::{Config, Datapath, FlowId};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
pub use report::{FlowCounts, NicReport, OutputReport, OutsideReport, PluggedPort, Report, Speed};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Packets handed to a run at once.
const CHUNK: usize = 32;
/// The run that is reported.
enum Main {
    Soft(Box<SoftRun>),
    Nic(Box<NicRun>),
}

impl Main {
    fn run(&mut self) -> &mut dyn Run {
        match self {
            Self::Soft(run) => run.as_mut(),
            Self::Nic(run) => run.as_mut(),
        }
    }

    fn nic(&self) -> Option<&NicRun> {
        match self {
            Self::Soft(_) => None,
            Self::Nic(run) => Some(run),
        }
    }
}

/// Replays a capture and tells who handled what. [`Outcome::Bad`] if `--check` found a difference.
///
/// # Errors
/// Input that cannot be used at all, or, after the report, that cannot be used to its end.
pub fn run(args: &ReplayArgs) -> Result<Outcome> {
    let report = replay(args)?;
    if args.json {
        print_json(&report)?;
    } else {
        super::print_text(|out| report::print_text(out, &report))?;
    }
    if let Some(damage) = &report.damage {
        return Err(anyhow!("{damage}"))
            .remedy(format_args!("the {} packets before it were replayed", report.packets.total));
    }
    let differs = report.check.as_ref().is_some_and(|check| check.differences > 0);
    Ok(if differs { Outcome::Bad } else { Outcome::Good })
}

/// Replays a capture, or serves what arrives.
///
/// # Errors
/// Input that cannot be used at all; a NIC outside that cannot be driven.
pub fn replay(args: &ReplayArgs) -> Result<Report> {
    match (&args.flows.flows, &args.pcap) {
        (Some(flows), None) if args.live.is_none() => {
            let flows = flows.display();
            return Err(anyhow!("there are no packets to replay")).at(format_args!("--flows {flows}")).remedy(format_args!(
                "name a capture by --pcap FILE, or see what a NIC would take by `flowlift explain --flows {flows}`"
            ));
        }
        (None, Some(pcap)) => {
            return Err(anyhow!("there are no flows to replay it with"))
                .at(format_args!("--pcap {}", pcap.display()))
                .remedy("name a dump by --flows FILE (`ovs-appctl dpctl/dump-flows` prints one)");
        }
        _ => {}
    }
    if let (Some(nic), Some(faults)) = (&args.nic, &args.faults) {
        return Err(anyhow!("it breaks the simulated NIC of this process, not {nic}"))
            .at(format_args!("--faults {faults}"))
            .remedy(format_args!("start flowlift-sim with --faults {faults} for that"));
    }
    let progress = Progress::new(!args.json);
    let mut speed = Speed::default();

    let start = Instant::now();
    progress.start("loading flows", None);
    let mut input = input::read_flows(&args.flows, args.seed)?;
    speed.load_seconds = start.elapsed().as_secs_f64();
    speed.flows_per_second = input.loaded.flows.len() as f64 / speed.load_seconds;
    let packets = match args.live {
        Some(_) => None,
        None => Some(input::read_packets(args.pcap.as_deref(), args.in_port.as_deref(), &input.ports)?),
    };

    let mut compared = if args.check { comparisons(args, &mut input)? } else { Vec::new() };
    for (name, run) in &mut compared {
        drive(run.as_mut(), packets.as_ref(), &progress, name)?;
    }

    // Before the transport starts a thread, which would get them otherwise.
    let stop = args.live.map(|_| stop_signals()).transpose()?;
    let mut no_nic = None;
    let mut main = main_run(args, &mut input, packets.as_ref(), &mut no_nic, &progress, &mut speed)?;
    match (args.live, &mut main) {
        (Some(time), Main::Nic(run)) => {
            let seconds = serve(run, time, stop.as_ref())?;
            speed.live_seconds = Some(seconds);
            speed.packets_per_second = run.counts().total as f64 / seconds;
        }
        (_, main) => {
            let seconds = drive(main.run(), packets.as_ref(), &progress, "replaying packets")?;
            if let Main::Nic(run) = main {
                run.release()?;
            }
            speed.replay_seconds = Some(seconds);
            if let Some(packets) = &packets {
                speed.packets_per_second = packets.len() as f64 / seconds;
                speed.megabits_per_second = packets.bytes() as f64 * 8e-6 / seconds;
            }
        }
    }
    progress.finish();

    let check = args.check.then(|| judge(&mut compared, &mut main, input.loaded.flows.len()));
    main.run().ledger().finish()?;
    Ok(report::report(args, &input, packets.as_ref(), &mut main, check, no_nic, speed))
}

/// The run that is reported, with every flow offered to its NIC.
fn main_run(
    args: &ReplayArgs,
    input: &mut Flows,
    packets: Option<&Packets>,
    no_nic: &mut Option<String>,
    progress: &Progress,
    speed: &mut Speed,
) -> Result<Main> {
    let faults = open::faults(args.faults.as_deref())?;
    let mut ledger = if args.check { Ledger::comparable() } else { Ledger::counting() };
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).context("cannot make the folder").at(folder.display())?;
        ledger = ledger.with_captures(folder, input.ports.by_number());
    }
    let ids: Vec<FlowId> = input.loaded.flows.iter().map(|flow| flow.id).collect();
    let arrivals = packets.map(Packets::ports).unwrap_or_default();
    let ports = input::nic_ports(input, &arrivals);
    let setup = match &args.nic {
        _ if args.no_nic => Err(anyhow!("no NIC was asked for (--no-nic)")),
        None => {
            let start_ns = packets.map_or(0, Packets::start_ns);
            open::open(args.profile.profile(), args.seed, faults, &ports, start_ns).map(|setup| setup.boxed())
        }
        Some(nic) => {
            let setup = open::open_outside(nic, &plugged(args, input, ports)?)?;
            check_ways(nic, &setup, &arrivals, input)?;
            Ok(NicSetup { uncounted: args.uncounted, ..setup })
        }
    };
    let datapath = std::mem::replace(&mut input.datapath, Datapath::new(Config::default()));
    match setup {
        Ok(setup) => {
            progress.start("offloading flows", Some(ids.len() as u64));
            let start = Instant::now();
            let run = NicRun::new(setup, datapath, ids, args.seed, ledger, |done| progress.at(done))?;
            speed.offload_seconds = Some(start.elapsed().as_secs_f64());
            Ok(Main::Nic(Box::new(run)))
        }
        // A dead NIC loses nothing: the softpath has every flow.
        Err(error) => {
            *no_nic = Some(failure::text(&error));
            Ok(Main::Soft(Box::new(SoftRun::new(datapath, ids, args.seed, ledger))))
        }
    }
}

/// `--wire` and `--nic-ports`.
fn plugged(args: &ReplayArgs, input: &Flows, ports: Vec<PortNo>) -> Result<open::Plugged> {
    let pair = |text: &String| {
        let (port, number) = text.split_once('=').context("PORT=pN is wanted, as in br0=p0")?;
        anyhow::Ok((input.ports.port(port)?, nic_port(number).map_err(|error| anyhow!(error))?))
    };
    let map = args
        .nic_ports
        .iter()
        .map(|text| pair(text).at(format_args!("--nic-ports {text}")))
        .collect::<Result<_>>()?;
    Ok(open::Plugged { map, ports, wires: args.wires.clone() })
}

/// Packets of the capture can get into a NIC outside: by a wire or by its slow path.
fn check_ways(nic: &NicArg, setup: &NicSetup, arrivals: &BTreeSet<PortNo>, input: &Flows) -> Result<()> {
    let caps = setup.nic.caps();
    for (port, nic_port) in setup.ports.iter().filter(|(port, _)| arrivals.contains(port)) {
        if !caps.pipeline_tx && !setup.harness.sees(nic_port) {
            let name = input.ports.by_number().remove(&port).unwrap_or_else(|| port.0.to_string());
            let why = "takes none from its slow path";
            return Err(anyhow!("packets of port {name} have no way into it: {} {why}", caps.device))
                .at(nic)
                .remedy(format_args!(
                    "name the port of this host that is the end of the wire (--wire p{}=...), or serve what arrives \
                     (--live SECONDS)",
                    nic_port.0.wrapping_sub(1)
                ));
        }
    }
    Ok(())
}

/// SIGINT and SIGTERM as a descriptor; they do not end the process any more.
fn stop_signals() -> Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")
}

/// Serves what arrives for `time` or until `stop`; gives the seconds that it took.
fn serve(run: &mut NicRun, time: Duration, stop: Option<&SignalFd>) -> Result<f64> {
    // A line for whoever started this and waits.
    eprintln!("flowlift: ready, serving for {} s", time.as_secs_f64());
    let start = Instant::now();
    run.serve(time, stop.map(SignalFd::as_fd));
    let seconds = start.elapsed().as_secs_f64();
    run.release()?;
    Ok(seconds)
}

/// The runs that `--check` compares with: the linear reference and, beside a NIC, the softpath alone.
fn comparisons(args: &ReplayArgs, input: &mut Flows) -> Result<Vec<(&'static str, Box<dyn Run>)>> {
    let ids: Vec<FlowId> = input.loaded.flows.iter().map(|flow| flow.id).collect();
    let flows: Vec<_> = ids.iter().filter_map(|id| input.datapath.flow(*id)).collect();
    let reference = ReferenceRun::new(flows.iter().cloned(), args.seed, Ledger::comparable())?;
    let mut runs: Vec<(_, Box<dyn Run>)> = vec![("linear reference", Box::new(reference))];
    if !args.no_nic {
        let mut datapath = Datapath::new(Config { seed: Some(args.seed), ..Config::default() });
        let ids = flows.iter().map(|flow| datapath.put(flow).map(|put| put.id)).collect::<Result<_, _>>()?;
        let soft = SoftRun::new(datapath, ids, args.seed, Ledger::comparable());
        runs.push(("softpath", Box::new(soft)));
    }
    Ok(runs)
}

/// Compares every run with the linear reference.
fn judge(compared: &mut [(&'static str, Box<dyn Run>)], main: &mut Main, flows: usize) -> CheckReport {
    let mut check = CheckReport::default();
    if let Some(((_, reference), others)) = compared.split_first_mut() {
        for (name, run) in others {
            check.compare(name, reference.as_mut(), run.as_mut(), flows);
        }
        let name = if main.nic().is_some() { "NIC and softpath" } else { "softpath" };
        check.compare(name, reference.as_mut(), main.run(), flows);
    }
    if let Some(nic) = main.nic() {
        check.nic(&nic.summary());
    }
    check
}

/// Sends all packets through `run`; gives the seconds that it took.
fn drive(
    run: &mut dyn Run,
    packets: Option<&Packets>,
    progress: &Progress,
    what: &'static str,
) -> Result<f64> {
    let Some(packets) = packets else { return Ok(0.0) };
    progress.start(what, Some(packets.len() as u64));
    let start = Instant::now();
    let mut chunk: Vec<Arrival<'_>> = Vec::with_capacity(CHUNK);
    for (n, arrival) in packets.arrivals().enumerate() {
        chunk.push(arrival);
        if chunk.len() == CHUNK {
            run.arrive(&chunk)?;
            chunk.clear();
            if n % 4096 < CHUNK {
                progress.at(n as u64);
            }
        }
    }
    run.arrive(&chunk)?;
    Ok(start.elapsed().as_secs_f64())
}
