//! Loading a flow dump into a datapath: what cannot be used is refused with line and cause, and counted.

use crate::failure::Tell;
use anyhow::{Context, Result, anyhow};
use flowlift_flow::text::{DumpReader, ErrorKind, PortNames};
use flowlift_flow::{Action, Flow, PortNo};
use flowlift_softpath::{Datapath, FlowId, PutError, PutMode};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::BufRead;

/// Overlaps that are looked at together: a hostile dump may have as many as it has pairs of flows.
const OVERLAPS_MAX: usize = 1 << 20;

/// A flow of the dump that is not in the datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedFlow {
    /// Line of the dump, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// What came of a dump.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The flows, in the order of the dump.
    pub flows: Vec<LoadedFlow>,
    /// Those that were refused.
    pub refused: Vec<RefusedFlow>,
    /// Ports that flows take packets from.
    pub ingress: BTreeSet<PortNo>,
    /// Ports that flows send packets to.
    pub egress: BTreeSet<PortNo>,
    /// Flows that stand in the dump again, word for word (one section per PMD thread): they count once.
    pub repeated: u64,
}

/// A flow of the dump that is in the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedFlow {
    /// Its name in the datapath.
    pub id: FlowId,
    /// Line of the dump, from 1.
    pub line: u64,
}

/// Loads every flow of `dump` into `datapath`, which must be empty.
///
/// An attribute or action that is not known, or that the datapath does not have yet, and a flow that overlaps an earlier
/// one (R22; Open vSwitch installs some) refuse their flow; with `strict`, the whole dump. Anything else that is wrong
/// refuses the whole dump: its place and cause are the error.
///
/// # Errors
/// As said; a dump without flows.
pub fn load(
    name: &dyn Display,
    mut dump: impl BufRead,
    ports: &dyn PortNames,
    strict: bool,
    datapath: &mut Datapath,
) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let mut reader = DumpReader::new(ports);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = dump.read_until(b'\n', &mut text).context("cannot read it").at(name)?;
        if read == 0 {
            break;
        }
        let line = reader.lines() + 1;
        let text = std::str::from_utf8(&text).or_else(|error| {
            let column = error.valid_up_to() + 1;
            Err(anyhow!("not UTF-8")).at(format_args!("{name}: line {line}, column {column}"))
        })?;
        let refusal = match reader.line(text) {
            Ok(None) => continue,
            Ok(Some(dumped)) => match datapath.put_with(&dumped.flow, PutMode::CREATE) {
                Ok(put) => {
                    loaded.note_ports(&dumped.flow);
                    loaded.flows.push(LoadedFlow { id: put.id, line });
                    continue;
                }
                Err(PutError::Exists(id)) => {
                    if datapath.flow(id).is_some_and(|other| other.actions == dumped.flow.actions) {
                        loaded.repeated += 1;
                        continue;
                    }
                    format!("overlaps the flow of {}: the same match", loaded.place(id))
                }
                Err(PutError::MatchInUse(id)) => {
                    format!("overlaps the flow of {}: the same match", loaded.place(id))
                }
                Err(PutError::UfidInUse(id)) => format!("has the UFID of the flow of {}", loaded.place(id)),
                Err(error @ PutError::Unsupported(_)) => error.to_string(),
                Err(error) => return Err(error).at(format_args!("{name}: line {line}")),
            },
            Err(error) if is_unknown(&error.kind) => format!("column {}: {}", error.column, error.kind),
            Err(error) => {
                let remedy = match &error.kind {
                    ErrorKind::UnknownPort(port) => format!("give its number by --ports {port}=NUMBER"),
                    _ => "flows are read as `ovs-appctl dpctl/dump-flows` prints them".into(),
                };
                return Err(error).at(name).remedy(remedy);
            }
        };
        if strict {
            return strictly(refusal, name, line);
        }
        loaded.refused.push(RefusedFlow { line, reason: refusal });
    }
    if loaded.flows.is_empty() && loaded.refused.is_empty() {
        return Err(anyhow!("there is no flow in it"))
            .at(name)
            .remedy("`ovs-appctl dpctl/dump-flows` prints flows");
    }
    refuse_overlaps(name, strict, datapath, &mut loaded)?;
    Ok(loaded)
}

/// Why a flow that cannot be used ends it all.
fn strictly<T>(reason: String, name: &dyn Display, line: u64) -> Result<T> {
    Err(anyhow!(reason))
        .at(format_args!("{name}: line {line}"))
        .remedy("without --strict, the other flows are used")
}

/// Of two flows that a packet could both match (R22), the later one is refused.
fn refuse_overlaps(
    name: &dyn Display,
    strict: bool,
    datapath: &mut Datapath,
    loaded: &mut Loaded,
) -> Result<()> {
    loop {
        let overlaps = datapath.find_overlaps(OVERLAPS_MAX);
        let mut gone = BTreeSet::new();
        for pair in &overlaps {
            // Slots ascend with lines, so the second is the later one.
            if gone.contains(&pair.first) || gone.contains(&pair.second) {
                continue;
            }
            let (Some(earlier), Some(line)) = (loaded.line(pair.first), loaded.line(pair.second)) else {
                continue;
            };
            let reason = format!("overlaps the flow of line {earlier}: a packet could match either");
            if strict {
                return strictly(reason, name, line);
            }
            datapath.delete(pair.second);
            gone.insert(pair.second);
            loaded.refused.push(RefusedFlow { line, reason });
        }
        loaded.flows.retain(|flow| !gone.contains(&flow.id));
        if overlaps.len() < OVERLAPS_MAX || gone.is_empty() {
            break;
        }
    }
    loaded.refused.sort_by_key(|flow| flow.line);
    Ok(())
}

impl Loaded {
    fn line(&self, id: FlowId) -> Option<u64> {
        // The datapath was empty: the slots that it gave to the flows ascend with their lines.
        let place = self.flows.binary_search_by_key(&id, |flow| flow.id).ok()?;
        self.flows.get(place).map(|flow| flow.line)
    }

    fn note_ports(&mut self, flow: &Flow) {
        if flow.matching.mask.0.in_port != 0 {
            self.ingress.insert(PortNo(flow.matching.key.in_port));
        }
        note_outputs(&flow.actions, &mut self.egress);
    }

    fn place(&self, id: FlowId) -> String {
        self.line(id).map_or("another line".into(), |line| format!("line {line}"))
    }
}

fn note_outputs(actions: &[Action], ports: &mut BTreeSet<PortNo>) {
    for action in actions {
        match action {
            Action::Output(port) => {
                ports.insert(*port);
            }
            Action::Sample { actions, .. }
            | Action::Clone(actions)
            | Action::DecTtl { exception: actions } => {
                note_outputs(actions, ports);
            }
            Action::CheckPktLen { greater, less_or_equal, .. } => {
                note_outputs(greater, ports);
                note_outputs(less_or_equal, ports);
            }
            _ => {}
        }
    }
}

/// True if a newer Open vSwitch may well have printed it.
fn is_unknown(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnknownAttribute(_) | ErrorKind::UnknownAction(_) | ErrorKind::UnknownField { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Ports;
    use flowlift_softpath::Config;

    fn load_text(text: &str, strict: bool) -> Result<Loaded> {
        let ports = Ports::parse(["p1=1"]).unwrap();
        load(&"flows.txt", text.as_bytes(), ports.names(), strict, &mut Datapath::new(Config::default()))
    }

    fn error(text: &str) -> String {
        crate::failure::text(&load_text(text, false).unwrap_err())
    }

    const GOOD: &str =
        "recirc_id(0),in_port(1),eth_type(0x0806), packets:0, bytes:0, used:never, actions:2\n";

    #[test]
    fn an_unknown_action_or_attribute_refuses_its_flow_alone() {
        let dump = format!(
            "in_port(1),eth_type(0x0800),ipv4(frag=no),actions:teleport(3)\n{GOOD}in_port(2),colour(7),actions:1\n"
        );
        let loaded = load_text(&dump, false).unwrap();
        assert_eq!(loaded.flows.len(), 1);
        assert_eq!(loaded.refused.iter().map(|f| f.line).collect::<Vec<_>>(), [1, 3]);
        assert!(loaded.refused[0].reason.contains("teleport"), "{:?}", loaded.refused);
        assert!(loaded.refused[1].reason.contains("colour"), "{:?}", loaded.refused);
        let strict = crate::failure::text(&load_text(&dump, true).unwrap_err());
        assert!(strict.contains("line 1") && strict.contains("--strict"), "{strict}");
    }

    #[test]
    fn what_is_wrong_refuses_the_dump_with_place_and_cause() {
        for (line, want) in [
            ("in_port(p7),eth_type(0x0806), actions:1", "--ports p7="),
            ("in_port(1),in_port(2),eth_type(0x0806), actions:1", "in_port stands twice"),
            ("in_port(1),eth_type(0x0806), actions:1 trailing", "line 2"),
            ("in_port(1),eth_type(0x0800),ipv4(src=1.2.3.4/999.0.0.0), actions:1", "line 2"),
        ] {
            let error = error(&format!("{GOOD}{line}\n"));
            assert!(error.starts_with("flows.txt") && error.contains("line 2"), "{line}: {error}");
            assert!(error.contains(want), "{line}: {error}");
        }
        assert!(error("").contains("no flow in it"));
        assert!(error("flow-dump from the main thread:\n").contains("no flow in it"));
    }

    #[test]
    fn r22_of_overlapping_flows_the_later_is_refused_and_repeats_count_once() {
        let dump = format!("{GOOD}{GOOD}in_port(1),eth(src=02:00:00:00:00:01),eth_type(0x0806), actions:3\n");
        let loaded = load_text(&dump, false).unwrap();
        assert_eq!((loaded.flows.len(), loaded.repeated), (1, 1));
        assert_eq!(loaded.refused.len(), 1);
        assert_eq!(loaded.refused[0].line, 3);
        assert!(loaded.refused[0].reason.contains("overlaps the flow of line 1"), "{:?}", loaded.refused);
        assert!(load_text(&dump, true).is_err());
    }
}
