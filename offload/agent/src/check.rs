//! `--check`: did two runs of the same packets give the same answer?

use crate::engine::{NicSummary, Run};
use crate::ledger::{Outlet, Stream};
use flowlift_flow::PortNo;
use serde::Serialize;
use std::collections::BTreeSet;

/// Differences told in full; the rest is counted.
const DETAILS_MAX: usize = 20;

/// What came of comparing runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Packets that each run took.
    pub packets: u64,
    /// Runs that were compared with the first.
    pub compared: Vec<&'static str>,
    /// Differences: frames missing, too many or out of their flow's order, and counters that disagree.
    pub differences: u64,
    /// The first differences in words.
    pub details: Vec<String>,
}

impl CheckReport {
    fn differ(&mut self, by: u64, what: impl FnOnce() -> String) {
        self.differences += by;
        if self.details.len() < DETAILS_MAX {
            self.details.push(what());
        }
    }

    /// Compares `other` with `reference`: every outlet's frames, in order per flow, then every flow's counters.
    /// Ports that `other` does not see, and counters that it does not keep, are left out.
    pub fn compare(
        &mut self,
        name: &'static str,
        reference: &mut dyn Run,
        other: &mut dyn Run,
        flows: usize,
    ) {
        self.compared.push(name);
        self.packets = reference.counts().total;
        let (want, got) = (reference.counts(), other.counts());
        if (want.total, want.missed) != (got.total, got.missed) {
            self.differ(1, || {
                format!(
                    "{name}: {} packets, {} missed; the reference has {}, {} missed",
                    got.total, got.missed, want.total, want.missed
                )
            });
        }
        self.streams(name, reference, other);
        for flow in 0..flows {
            let (want, got) = (reference.totals(flow), other.totals(flow));
            if want != got && other.is_counted(flow) {
                self.differ(1, || {
                    format!("{name}: flow number {flow} counted {got:?}; the reference has {want:?}")
                });
            }
        }
    }

    /// Differences that only the NIC itself can show.
    pub fn nic(&mut self, nic: &NicSummary) {
        if let Some(violations) = nic.violations.filter(|violations| *violations > 0) {
            self.differ(1, || format!("the driver broke the device's protocol {violations} times"));
        }
        if nic.lost > 0 {
            self.differ(nic.lost, || {
                format!("nothing was seen of {} packets that the NIC was sent", nic.lost)
            });
        }
        if nic.unsent > 0 {
            self.differ(nic.unsent, || {
                format!("the NIC did not send {} packets that the softpath gave it", nic.unsent)
            });
        }
        if nic.audit.disagree > 0 {
            let audit = nic.audit;
            self.differ(audit.disagree, || {
                format!(
                    "{} of {} counter snapshots disagree with host memory",
                    audit.disagree, audit.counters
                )
            });
        }
        if nic.planner.lowering_bugs > 0 {
            self.differ(1, || {
                format!("{} entries did not mean what their flows mean", nic.planner.lowering_bugs)
            });
        }
    }

    fn streams(&mut self, name: &'static str, reference: &mut dyn Run, other: &mut dyn Run) {
        let empty = Stream::new();
        let ports = reference.ledger().streams().keys().filter_map(|id| match id.outlet {
            Outlet::Port(port) => Some(port),
            Outlet::Userspace | Outlet::Miss => None,
        });
        let unseen: BTreeSet<PortNo> = ports.filter(|port| !other.sees(*port)).collect();
        let (want, got) = (reference.ledger().streams(), other.ledger().streams());
        let ids: BTreeSet<_> = want.keys().chain(got.keys()).collect();
        for id in ids {
            let (want, got) = (want.get(id).unwrap_or(&empty), got.get(id).unwrap_or(&empty));
            if want == got || matches!(id.outlet, Outlet::Port(port) if unseen.contains(&port)) {
                continue;
            }
            let agree = want.iter().zip(got).take_while(|(a, b)| a == b).count();
            let outlet = match id.outlet {
                Outlet::Port(port) => format!("port {}", port.0),
                Outlet::Userspace => "the user (action)".into(),
                Outlet::Miss => "the user (miss)".into(),
            };
            let by = want.len().max(got.len()) - agree;
            self.differ(by as u64, || {
                format!(
                    "{name}: to {outlet}, flow {:016x}: {} frames where the reference has {}, different from number {agree} on",
                    id.flow,
                    got.len(),
                    want.len()
                )
            });
        }
    }
}
