//! What the daemon's control socket can be asked.

use super::forward::{Forwarder, OffloadTimes, RouteCounters, SlowCounters};
use super::journal::JournalStatus;
use super::mailbox::Mailbox;
use super::plane::{PortInfo, ShownFlow};
use super::serve::Serve;
use crate::control::Commands;
use flowlift_driver::nic::NicState;
use flowlift_flow::Flow;
use flowlift_flow::attrs::attr;
use flowlift_flow::text::{DumpFlow, parse_ufid};
use flowlift_offload::planner;
use flowlift_ovs::backend::FlowCursor;
use nix::sys::signal::{Signal, kill};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::time::Instant;

/// Commands and their arguments.
const LIST: &[(&str, &str)] = &[
    ("exit", ""),
    ("flowlift/explain", "[--json] UFID"),
    ("flowlift/flows", "[--json] [--hardware|--software]"),
    ("flowlift/ports", "[--json]"),
    ("flowlift/status", "[--json]"),
];

/// The daemon as its control socket sees it.
pub struct Daemon {
    serve: Mailbox<Serve>,
    forwarder: Mailbox<Forwarder>,
    started: Instant,
}

/// A datapath for people.
#[derive(Debug, Serialize)]
struct DatapathStatus {
    name: String,
    flows: usize,
    flows_in_hardware: usize,
    ports: usize,
    /// Counters of the softpath.
    softpath: BTreeMap<&'static str, u64>,
}

/// The NIC for people.
#[derive(Debug, Serialize)]
struct NicStatus {
    device: String,
    model: String,
    state: &'static str,
    /// Datapaths that have ports of it.
    datapaths: Vec<String>,
    tables: Vec<TableStatus>,
    /// What the tables finished.
    table_packets: u64,
    table_bytes: u64,
    slow_rx: u64,
    slow_tx: u64,
    slow_no_port: u64,
    errors: u64,
    updates: BTreeMap<&'static str, u64>,
    /// What the last flows took from their request until they were in the tables.
    offload: Option<OffloadTimes>,
}

#[derive(Debug, Serialize)]
struct TableStatus {
    table: u16,
    used: u32,
    size: u32,
}

#[derive(Debug, Serialize)]
struct Status {
    version: &'static str,
    pid: u32,
    uptime_s: u64,
    datapaths: Vec<DatapathStatus>,
    nic: Option<NicStatus>,
    dropped: BTreeMap<&'static str, u64>,
    requests: BTreeMap<&'static str, u64>,
    /// How the saving for the next daemon does.
    journal: Option<JournalStatus>,
}

/// A flow for people.
#[derive(Debug, Serialize)]
struct FlowStatus {
    datapath: String,
    ufid: Option<String>,
    flow: String,
    state: &'static str,
    reason: Option<String>,
    hardware_packets: u64,
    hardware_bytes: u64,
    software_packets: u64,
    software_bytes: u64,
    used_ms: Option<u64>,
    /// Since when the flow is in hardware, in microseconds of CLOCK_MONOTONIC.
    in_hardware_since_us: Option<u64>,
}

type Answer = Result<String, String>;

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| error.to_string())
}

fn stopped<T>(value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| "the daemon is stopping".into())
}

impl Daemon {
    /// A daemon that has just started.
    pub fn new(serve: Mailbox<Serve>, forwarder: Mailbox<Forwarder>) -> Self {
        Self { serve, forwarder, started: Instant::now() }
    }

    fn status(&self, as_json: bool) -> Answer {
        let (datapaths, requests, journal) = stopped(self.serve.call(|serve| {
            let (requests, socket) = serve.endpoint().counters();
            let requests = BTreeMap::from([
                ("requests", requests.requests),
                ("failed", requests.failed),
                ("malformed", requests.malformed),
                ("refused_users", requests.refused_users),
                ("refused_datagrams", socket.refused),
                ("delayed", socket.delayed),
                ("dropped", socket.dropped),
            ]);
            (datapaths(serve), requests, serve.plane().journal_status())
        }))?;
        let names: BTreeMap<i32, String> =
            datapaths.iter().map(|(index, status)| (*index, status.name.clone())).collect();
        let (nic, routes) =
            stopped(self.forwarder.call(move |f| (nic_status(f, &names), f.route_counters())))?;
        let RouteCounters { no_port, nic_full, dropped, no_ethernet } = routes;
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            datapaths: datapaths.into_iter().map(|(_, status)| status).collect(),
            nic,
            dropped: BTreeMap::from([
                ("no_port", no_port),
                ("nic_full", nic_full),
                ("by_actions", dropped),
                ("no_ethernet", no_ethernet),
            ]),
            requests,
            journal,
        };
        if as_json { json(&status) } else { Ok(status.text()) }
    }

    fn ports(&self, as_json: bool) -> Answer {
        let ports = stopped(self.serve.call(|serve| serve.plane().ports()))?;
        if as_json { json(&ports) } else { Ok(ports_text(&ports)) }
    }

    fn flows(&self, as_json: bool, hardware: Option<bool>) -> Answer {
        let flows = stopped(self.serve.call(move |serve| {
            let keep = |flow: &ShownFlow| {
                hardware.is_none_or(|hardware| hardware == is_in_hardware(flow)).then(|| flow.clone())
            };
            collect(serve, keep)
        }))?;
        let flows: Vec<FlowStatus> = flows.iter().map(|(name, flow)| flow_status(name, flow)).collect();
        if as_json {
            return json(&flows);
        }
        let mut text = String::new();
        for flow in &flows {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{}: {}\n    hardware:{} packets {} bytes, software:{} packets {} bytes{}",
                flow.state,
                flow.flow,
                flow.hardware_packets,
                flow.hardware_bytes,
                flow.software_packets,
                flow.software_bytes,
                flow.reason.as_ref().map_or(String::new(), |reason| format!("\n    because {reason}")),
            );
        }
        Ok(text)
    }

    fn explain(&self, as_json: bool, ufid: &str) -> Answer {
        let wanted =
            parse_ufid(&format!("ufid:{}", ufid.strip_prefix("ufid:").unwrap_or(ufid))).map_err(|error| {
                format!("{ufid} is no UFID: {}; `flowlift flows --json` has those of all flows", error.kind)
            })?;
        let found = stopped(self.serve.call(move |serve| {
            collect(serve, |flow| (flow.flow.ufid == Some(wanted)).then(|| flow.clone()))
        }))?;
        let Some((name, flow)) = found.first() else {
            return Err(format!("no flow has UFID {ufid}; `flowlift flows --json` has those of all flows"));
        };
        let status = flow_status(name, flow);
        if as_json {
            return json(&status);
        }
        let mut text = format!("{}\nstate:    {}\n", status.flow, status.state);
        if let Some(reason) = &status.reason {
            let _ = writeln!(text, "because:  {reason}");
        }
        let _ =
            writeln!(text, "hardware: {} packets, {} bytes", status.hardware_packets, status.hardware_bytes);
        let _ =
            writeln!(text, "software: {} packets, {} bytes", status.software_packets, status.software_bytes);
        Ok(text)
    }
}

impl Commands for Daemon {
    fn list(&self) -> &[(&'static str, &'static str)] {
        LIST
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Answer {
        let as_json = arguments.contains(&"--json");
        let rest: Vec<&str> = arguments.iter().copied().filter(|argument| *argument != "--json").collect();
        match (command, rest.as_slice()) {
            ("flowlift/status", []) => self.status(as_json),
            ("flowlift/ports", []) => self.ports(as_json),
            ("flowlift/flows", []) => self.flows(as_json, None),
            ("flowlift/flows", ["--hardware"]) => self.flows(as_json, Some(true)),
            ("flowlift/flows", ["--software"]) => self.flows(as_json, Some(false)),
            ("flowlift/explain", [ufid]) => self.explain(as_json, ufid),
            ("exit", []) => {
                kill(nix::unistd::getpid(), Signal::SIGTERM).map_err(|error| error.to_string())?;
                Ok(String::new())
            }
            _ => {
                let usage = LIST.iter().find(|(name, _)| *name == command).map_or("", |(_, usage)| usage);
                let asked: Vec<&str> = [&[command][..], arguments].concat();
                Err(format!("{}: usage: {command} {usage}", asked.join(" ")))
            }
        }
    }
}

fn is_in_hardware(flow: &ShownFlow) -> bool {
    flow.nic
        .as_ref()
        .is_some_and(|nic| matches!(nic.state, planner::State::Hardware | planner::State::PendingReplace))
}

/// Flows that `keep` keeps, with their datapath's name.
fn collect(serve: &Serve, keep: impl Fn(&ShownFlow) -> Option<ShownFlow>) -> Vec<(String, ShownFlow)> {
    let mut flows = Vec::new();
    for (index, name) in serve.plane().datapath_names() {
        let each = &mut |flow: &ShownFlow| {
            flows.extend(keep(flow).map(|flow| (name.clone(), flow)));
            ControlFlow::Continue(())
        };
        // The datapath is there, since nobody else can have removed it meanwhile.
        let _ = serve.plane().dump_flows(index, FlowCursor::default(), each);
    }
    flows
}

fn datapaths(serve: &Serve) -> Vec<(i32, DatapathStatus)> {
    let ports = serve.plane().ports();
    let mut all = Vec::new();
    for (index, name) in serve.plane().datapath_names() {
        let (mut flows, mut flows_in_hardware) = (0, 0);
        let each = &mut |flow: &ShownFlow| {
            flows += 1;
            flows_in_hardware += usize::from(is_in_hardware(flow));
            ControlFlow::Continue(())
        };
        let _ = serve.plane().dump_flows(index, FlowCursor::default(), each);
        let softpath = serve.plane().softpath_counters(index).unwrap_or_default().iter().collect();
        let ports = ports.iter().filter(|port| port.datapath == name).count();
        all.push((index.0, DatapathStatus { name, flows, flows_in_hardware, ports, softpath }));
    }
    all
}

fn nic_status(forwarder: &Forwarder, names: &BTreeMap<i32, String>) -> Option<NicStatus> {
    let nic = forwarder.nic()?;
    let (caps, stats) = (nic.driver().caps(), nic.planner().stats());
    let SlowCounters { rx, tx, table_packets, table_bytes, no_port, errors } = nic.counters();
    Some(NicStatus {
        device: caps.device.clone(),
        model: caps.model.clone(),
        state: match nic.driver().state() {
            NicState::Ready => "ready",
            NicState::Failed => "failed",
            NicState::Gone => "gone",
        },
        datapaths: nic.datapaths().filter_map(|dp| names.get(&dp.0).cloned()).collect(),
        tables: caps
            .tables
            .iter()
            .map(|t| TableStatus { table: t.id.0, used: nic.planner().used(t.id), size: t.max_entries })
            .collect(),
        table_packets,
        table_bytes,
        slow_rx: rx,
        slow_tx: tx,
        slow_no_port: no_port,
        errors,
        updates: BTreeMap::from([
            ("inserted", stats.inserted),
            ("replaced", stats.replaced),
            ("deleted", stats.deleted),
            ("failed", stats.failed),
            ("evicted", stats.evicted),
            ("repaired", stats.repaired),
            ("unanswered", stats.unanswered),
            ("tables_lost", stats.tables_lost),
            ("resets", stats.resets),
            ("lowering_bugs", stats.lowering_bugs),
        ]),
        offload: nic.offload().times(),
    })
}

fn flow_status(datapath: &str, shown: &ShownFlow) -> FlowStatus {
    let stats = shown.stats();
    let (state, reason) = shown.state();
    let hardware = shown.nic.as_ref().map(|nic| nic.counters).unwrap_or_default();
    FlowStatus {
        datapath: datapath.to_owned(),
        ufid: shown.flow.ufid.map(|ufid| ufid.to_string()),
        flow: flow_text(&shown.flow),
        state,
        reason,
        hardware_packets: hardware.packets,
        hardware_bytes: hardware.bytes,
        software_packets: shown.software.packets,
        software_bytes: shown.software.bytes,
        used_ms: stats.used_ms,
        in_hardware_since_us: shown.nic.as_ref().and_then(|nic| nic.since_ns).map(|ns| ns / 1000),
    }
}

/// The flow as ovs-dpctl prints it. A mask from Open vSwitch names the tunnel always, the key only where there is one.
fn flow_text(flow: &Flow) -> String {
    let mut flow = flow.clone();
    if !flow.matching.key.has_tunnel() {
        flow.matching.attrs.0[0] &= !(1 << attr::TUNNEL);
    }
    DumpFlow { flow, ..DumpFlow::default() }.text(None).to_string()
}

fn ports_text(ports: &[PortInfo]) -> String {
    let mut text = format!(
        "{:<12} {:>5} {:<15} {:<8} {:>4} {:>12} {:>12} {:>9} {:>9} {:>8}\n",
        "datapath", "port", "name", "kind", "nic", "rx", "tx", "rx drop", "tx drop", "lost up"
    );
    for port in ports {
        let nic = port.nic_port.map_or("-".into(), |n| n.to_string());
        let _ = writeln!(
            text,
            "{:<12} {:>5} {:<15} {:<8} {:>4} {:>12} {:>12} {:>9} {:>9} {:>8}",
            port.datapath,
            port.port,
            port.name,
            port.kind,
            nic,
            port.rx_packets,
            port.tx_packets,
            port.rx_dropped,
            port.tx_dropped,
            port.upcalls_lost
        );
        if let Some(why) = &port.not_nic {
            let _ = writeln!(text, "    not a port of the NIC: {why}");
        }
        if let Some(why) = &port.host_sees {
            let _ = writeln!(text, "    the host's stack sees its packets as well: {why}");
        }
    }
    text
}

impl Status {
    fn text(&self) -> String {
        let Self { version, pid, uptime_s, datapaths, nic, dropped, requests, journal } = self;
        let mut text = format!("flowlift {version}, process {pid}, up for {uptime_s} s\n");
        let list = |counters: &BTreeMap<&str, u64>| {
            let all: Vec<String> = counters.iter().map(|(name, n)| format!("{name}:{n}")).collect();
            all.join(" ")
        };
        for dp in datapaths {
            let _ = writeln!(
                text,
                "datapath {}: {} ports, {} flows, {} of them in hardware\n  softpath {}",
                dp.name,
                dp.ports,
                dp.flows,
                dp.flows_in_hardware,
                list(&dp.softpath)
            );
        }
        match nic {
            None => text.push_str("no NIC\n"),
            Some(nic) => {
                let of = match nic.datapaths.as_slice() {
                    [] => String::new(),
                    names => format!(", of {}", names.join(", ")),
                };
                let _ = writeln!(text, "NIC {} {}: {}{of}", nic.device, nic.model, nic.state);
                for table in &nic.tables {
                    let _ =
                        writeln!(text, "  table {}: {} of {} entries", table.table, table.used, table.size);
                }
                let _ = writeln!(text, "  tables {} packets {} bytes", nic.table_packets, nic.table_bytes);
                let _ = writeln!(text, "  slow path rx:{} tx:{}", nic.slow_rx, nic.slow_tx);
                let _ = writeln!(text, "  updates {}", list(&nic.updates));
                if let Some(times) = nic.offload {
                    let OffloadTimes { flows, median_us, p99_us, longest_us } = times;
                    let _ = writeln!(
                        text,
                        "  time into the tables, last {flows} flows: median {median_us} us, 99 % within {p99_us} us, longest {longest_us} us"
                    );
                }
            }
        }
        let _ = writeln!(text, "dropped {}\nNetlink {}", list(dropped), list(requests));
        match journal {
            Some(JournalStatus { saved: true, .. }) => {}
            Some(JournalStatus { trouble: Some(why), .. }) => {
                let _ = writeln!(text, "flows are NOT saved for the next daemon: {why}");
            }
            Some(_) | None => text.push_str("flows are NOT saved for the next daemon\n"),
        }
        text
    }
}
