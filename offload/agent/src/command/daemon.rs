//! `flowlift daemon`, `flowlift ovs-run`, and the commands that ask a running daemon.

use crate::cli::{AskArgs, DaemonArgs, DaemonFlowArgs, ExplainArgs, OvsRunArgs, TopArgs};
use crate::command::Outcome;
use crate::control::{self, Client};
use crate::failure::Tell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The library that points Open vSwitch at the daemon.
const LIBRARY: &str = "libflowlift_preload.so";
/// Where it is looked for besides the program's own folder.
const LIBRARY_FOLDERS: &[&str] =
    &["../lib/flowlift", "../lib", "/usr/local/lib/flowlift", "/usr/lib/flowlift"];

/// Runs the daemon.
///
/// # Errors
/// What it needs is not there.
pub fn run(args: &DaemonArgs) -> Result<Outcome> {
    crate::daemon::run(args)?;
    Ok(Outcome::Good)
}

/// Becomes the command, with the library preloaded for it and its children.
///
/// # Errors
/// The library or the command is not there.
pub fn ovs_run(args: &OvsRunArgs) -> Result<Outcome> {
    let library = match &args.library {
        // The loader would say so and go on without it, with the kernel's datapath.
        Some(path) => File::open(path)
            .context("cannot open the library")
            .at(path.display())
            .remedy(format!("--library names {LIBRARY}; without it, it is looked for beside this program"))
            .map(|_| path.clone())?,
        None => find_library()?,
    };
    let mut preload = OsString::from(&library);
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let Some((program, arguments)) = args.command.split_first() else { bail!("no command to run") };
    let error = Command::new(program).args(arguments).env("LD_PRELOAD", preload).exec();
    Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
}

fn find_library() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where is this program?")?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let mut folders = vec![folder.to_path_buf()];
    folders.extend(LIBRARY_FOLDERS.iter().map(|other| folder.join(other)));
    let found = folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.exists());
    let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    found
        .with_context(|| format!("{LIBRARY} is not in {}", looked.join(", ")))
        .remedy("`--library PATH` names it")
}

fn connect(args: &AskArgs) -> Result<Client> {
    Client::connect(&args.control.clone().unwrap_or_else(control::default_path))
}

fn ask(args: &AskArgs, command: &str, mut arguments: Vec<&str>) -> Result<Outcome> {
    if args.json {
        arguments.push("--json");
    }
    let answer = connect(args)?.run(command, &arguments)?;
    super::print_text(|out| Ok(out.write_all(answer.as_bytes())?))?;
    Ok(Outcome::Good)
}

/// `flowlift status`.
///
/// # Errors
/// No daemon.
pub fn status(args: &AskArgs) -> Result<Outcome> {
    ask(args, "flowlift/status", vec![])
}

/// `flowlift ports`.
///
/// # Errors
/// No daemon.
pub fn ports(args: &AskArgs) -> Result<Outcome> {
    ask(args, "flowlift/ports", vec![])
}

/// `flowlift flows`.
///
/// # Errors
/// No daemon.
pub fn flows(args: &DaemonFlowArgs) -> Result<Outcome> {
    let which = match (args.hardware, args.software) {
        (true, _) => vec!["--hardware"],
        (_, true) => vec!["--software"],
        _ => vec![],
    };
    ask(&args.ask, "flowlift/flows", which)
}

/// `flowlift explain UFID`.
///
/// # Errors
/// No daemon, or no such flow.
pub fn explain(args: &ExplainArgs, ufid: &str) -> Result<Outcome> {
    let asked = AskArgs { control: args.control.clone(), json: args.json };
    ask(&asked, "flowlift/explain", vec![ufid])
}

/// `flowlift top`: rates by port, the busiest flows, again and again.
///
/// # Errors
/// The daemon went away.
pub fn top(args: &TopArgs) -> Result<Outcome> {
    let ask = AskArgs { control: args.control.clone(), json: true };
    let mut client = connect(&ask)?;
    let (mut before, mut then): (BTreeMap<String, Sample>, Instant) = (BTreeMap::new(), Instant::now());
    let mut rounds = 0u64;
    loop {
        let ports: Vec<Value> = serde_json::from_str(&client.run("flowlift/ports", &["--json"])?)?;
        let flows: Vec<Value> = serde_json::from_str(&client.run("flowlift/flows", &["--json"])?)?;
        let seconds = then.elapsed().as_secs_f64().max(0.001);
        then = Instant::now();
        let now = samples(&ports, &flows);
        // Nothing to compare with in the first round.
        if rounds > 0 {
            let text = top_text(&before, &now, seconds, args.lines);
            super::print_text(|out| {
                out.write_all(b"\x1b[H\x1b[2J")?;
                Ok(out.write_all(text.as_bytes())?)
            })?;
        }
        before = now;
        if args.rounds.is_some_and(|most| rounds >= most) {
            return Ok(Outcome::Good);
        }
        rounds += 1;
        std::thread::sleep(Duration::from_secs_f64(args.interval));
    }
}

/// Counters of a port or flow, by what `top` prints of it.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    rx: u64,
    tx: u64,
    is_port: bool,
}

fn samples(ports: &[Value], flows: &[Value]) -> BTreeMap<String, Sample> {
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
    let ports = ports.iter().map(|port| {
        let (rx, tx) = (number(port, "rx_packets"), number(port, "tx_packets"));
        (text(port, "name"), Sample { rx, tx, is_port: true })
    });
    // A flow's "rx" is hardware's share and its "tx" software's.
    let flows = flows.iter().map(|flow| {
        let (rx, tx) = (number(flow, "hardware_packets"), number(flow, "software_packets"));
        (text(flow, "flow"), Sample { rx, tx, is_port: false })
    });
    ports.chain(flows).collect()
}

fn top_text(
    before: &BTreeMap<String, Sample>,
    now: &BTreeMap<String, Sample>,
    seconds: f64,
    lines: usize,
) -> String {
    let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
    let mut rows: Vec<(bool, f64, f64, &str)> = now
        .iter()
        .map(|(name, new)| {
            let old = before.get(name).copied().unwrap_or(*new);
            (new.is_port, rate(new.rx, old.rx), rate(new.tx, old.tx), name.as_str())
        })
        .collect();
    rows.sort_by(|a, b| b.0.cmp(&a.0).then((b.1 + b.2).total_cmp(&(a.1 + a.2))));
    let mut text = format!("{:>12} {:>12}  port\n", "rx/s", "tx/s");
    let line = |(_, a, b, name): &(bool, f64, f64, &str)| format!("{a:>12.0} {b:>12.0}  {name}\n");
    rows.iter().filter(|row| row.0).for_each(|row| text.push_str(&line(row)));
    text.push_str(&format!("\n{:>12} {:>12}  flow\n", "hardware/s", "software/s"));
    rows.iter().filter(|row| !row.0).take(lines).for_each(|row| text.push_str(&line(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn top_shows_rates_and_the_busiest_flow_first() {
        let sample = |packets: u64| {
            let ports = [json!({ "name": "p1", "rx_packets": packets, "tx_packets": 0 })];
            let flows = [
                json!({ "flow": "quiet", "hardware_packets": 5, "software_packets": 0 }),
                json!({ "flow": "busy", "hardware_packets": packets, "software_packets": 1 }),
            ];
            samples(&ports, &flows)
        };
        let text = top_text(&sample(100), &sample(300), 2.0, 1);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["100", "0", "p1"]), "{text}");
        assert!(rows.contains(&vec!["100", "0", "busy"]) && !text.contains("quiet"), "{text}");
    }
}
