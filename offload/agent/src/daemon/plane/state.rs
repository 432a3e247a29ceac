//! What a daemon finds of the one before it: datapaths and their ports, with who gets their upcalls.
//!
//! Saved whenever one of them changes, in one step, so that a daemon killed at any moment leaves a whole file. Flows and meters are in a
//! file of their own ([`crate::daemon::journal`]), all of it this network namespace's ([`crate::daemon::state_dir`]). The devices of
//! internal ports outlive the daemon, and a datapath's handle is its local port's interface index; so ovs-vswitchd goes on with the
//! handles that it has.
//!
//! A datapath has its flows before it has its ports, so no packet of theirs misses.

use super::{LOCAL, Plane, Port, totals};
use crate::daemon::journal::{self, Ask, Journal, Position, SavedFlows, Subject};
use crate::daemon::state_dir::StateDir;
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{
    Backend, DatapathChange, DpIndex, Features, FlowCursor, NewDatapath, NewVport, Refusal, TunnelDevice,
    TunnelKind, VportKind,
};
use flowlift_softpath::PutMode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The saved datapaths and ports.
const DATAPATHS: &str = "datapaths.json";
/// The journal.
const FLOWS: &str = "flows.journal";
/// Flows that are told at a time to a journal that begins anew: few, since requests wait meanwhile.
const SLICE: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct SavedPort {
    number: u32,
    name: String,
    kind: SavedKind,
    upcall_pids: Vec<u32>,
}

/// What a port is.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum SavedKind {
    Netdev,
    Internal,
    /// A tunnel of its own.
    Tunnel(#[serde(with = "SavedTunnel")] TunnelKind),
    /// A tunnel by a device, with the device's MTU.
    TunnelDevice(#[serde(with = "SavedTunnel")] TunnelKind, u32),
}

/// A tunnel's protocol and UDP port, as they are saved.
#[derive(Serialize, Deserialize)]
#[serde(remote = "TunnelKind")]
enum SavedTunnel {
    Vxlan { dst_port: u16, gbp: bool },
    VxlanGpe { dst_port: u16 },
    Geneve { dst_port: u16 },
    Gre,
    Gretap,
    Ip6gretap,
    Erspan,
    Ip6erspan,
}

/// All of it.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// [`StateDir::owner`] of whoever saved it.
    owner: String,
    datapaths: Vec<SavedDatapath>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedDatapath {
    name: String,
    features: u32,
    masks_cache_size: u32,
    per_cpu_pids: Vec<u32>,
    /// The local port's.
    upcall_pids: Vec<u32>,
    ports: Vec<SavedPort>,
}

impl Plane {
    /// Saves what there is, if it is to be saved. The journal tells of a failure, and has it tried again.
    pub(super) fn save(&self) {
        let Some(state) = &self.state else { return };
        let datapaths: Vec<SavedDatapath> = self
            .dps
            .values()
            .map(|dp| {
                let others = dp.ports.iter().filter(|(number, _)| **number != LOCAL);
                let ports: Vec<SavedPort> = others
                    .map(|(number, port)| SavedPort {
                        number: number.0,
                        name: port.name.clone(),
                        kind: self.saved_kind(port),
                        upcall_pids: port.upcall_pids.clone(),
                    })
                    .collect();
                let local = dp.ports.get(&LOCAL);
                SavedDatapath {
                    name: dp.name.clone(),
                    features: dp.features.0,
                    masks_cache_size: dp.masks_cache_size,
                    per_cpu_pids: dp.per_cpu_pids.clone(),
                    upcall_pids: local.map(|port| port.upcall_pids.clone()).unwrap_or_default(),
                    ports,
                }
            })
            .collect();
        let (path, owner) = (state.file(DATAPATHS), state.owner().to_owned());
        if let Err(error) = write(&path, &Saved { owner, datapaths }) {
            let why = format!("{}: {error}", path.display());
            tracing::debug!(why, "the datapaths could not be saved for the next daemon");
            self.log(|journal| journal.fail(why));
        }
    }

    fn saved_kind(&self, port: &Port) -> SavedKind {
        match (port.kind, port.tunnel) {
            (VportKind::Internal, _) => SavedKind::Internal,
            (VportKind::Netdev, None) => SavedKind::Netdev,
            (VportKind::Netdev, Some(tunnel)) => {
                let mtu = self.show_tunnel_device(&port.name).map_or(0, |device| device.mtu);
                SavedKind::TunnelDevice(tunnel, mtu)
            }
            (_, Some(tunnel)) => SavedKind::Tunnel(tunnel),
            (VportKind::Gre | VportKind::Vxlan { .. } | VportKind::Geneve { .. }, None) => SavedKind::Netdev,
        }
    }

    /// The kind of a port that was saved; a tunnel device is made for it.
    fn restored_kind(&mut self, name: &str, saved: SavedKind) -> Result<VportKind, Refusal> {
        Ok(match saved {
            SavedKind::Netdev => VportKind::Netdev,
            SavedKind::Internal => VportKind::Internal,
            SavedKind::Tunnel(tunnel) => match tunnel {
                TunnelKind::Vxlan { dst_port, gbp } => VportKind::Vxlan { dst_port, gbp },
                TunnelKind::Geneve { dst_port } => VportKind::Geneve { dst_port },
                _ => VportKind::Gre,
            },
            SavedKind::TunnelDevice(tunnel, mtu) => {
                self.add_tunnel_device(TunnelDevice { name: name.into(), kind: tunnel, mtu })?;
                VportKind::Netdev
            }
        })
    }

    /// Makes what the daemon before had, as far as its devices are still there. From now on, all is saved there; `ask` has
    /// [`Self::tell_everything`] called.
    pub fn restore(&mut self, state: StateDir, ask: Ask) {
        let flows = state.file(FLOWS);
        let mut saved_flows = journal::read(&flows, state.owner());
        match Journal::start(&flows, state.owner(), ask) {
            Ok(journal) => self.journal = Some(journal),
            Err(error) => {
                tracing::warn!(path = %flows.display(), %error, "flows are never saved for the next daemon");
            }
        }
        for dp in read(&state.file(DATAPATHS), state.owner()) {
            let name = dp.name.clone();
            match self.restore_datapath(dp, &mut saved_flows) {
                Ok(ports) => tracing::info!(name, ports, "datapath found again"),
                Err(refusal) => tracing::warn!(name, %refusal, "a datapath could not be made again"),
            }
        }
        self.state = Some(state);
        self.keeper.settle();
        self.save();
        self.log(Journal::publish);
    }

    /// Tells a journal that begins anew what there is from there on, up to a slice of it.
    pub fn tell_everything(&self, from: Position) {
        self.log_puts();
        let Some(journal) = &self.journal else { return };
        if from.is_start() {
            self.save();
        }
        for (index, dp) in self.dps.range(from.dp..) {
            let slot = if *index == from.dp { from.slot } else { 0 };
            if slot == 0 {
                self.tell_counters(*index);
            }
            let mut told = 0;
            let next = self.dump_flows(*index, FlowCursor(slot), &mut |shown| {
                if told == SLICE {
                    return ControlFlow::Break(());
                }
                told += 1;
                if !dp.probes.contains(&shown.id) {
                    journal.put(*index, shown.id, &shown.flow);
                    journal.counted(*index, vec![shown.total()]);
                }
                ControlFlow::Continue(())
            });
            if let Ok(Some(FlowCursor(slot))) = next {
                return journal.told(from, Some((*index, slot)));
            }
        }
        journal.told(from, None);
    }

    /// Has the journal know what counts but for flows, and how far: that is saved as it is shown.
    fn tell_counters(&self, index: DpIndex) {
        let Some(dp) = self.dps.get(&index) else { return };
        self.describe(index, dp);
        dp.ports.keys().for_each(|number| drop(self.describe_vport(index, *number)));
        let table = dp.table.borrow();
        for id in table.meter_ids() {
            if let Some((config, stats)) = table.meter(id) {
                self.log(|journal| journal.meter(index, id, Some(config.clone())));
                self.remember_meter(index, id, &stats);
            }
        }
    }

    /// Saves what the next daemon is to know of the end of this one.
    pub fn close(&mut self) {
        for index in self.dps.keys() {
            // Counters are saved as they are shown. A datapath that is there can be shown.
            let _ = self.dump_flows(*index, FlowCursor::default(), &mut |_| ControlFlow::Continue(()));
            self.tell_counters(*index);
        }
        if let Some(journal) = self.journal.take() {
            journal.close();
        }
    }

    /// Tells the journal something, if there is one.
    pub(super) fn log(&self, tell: impl FnOnce(&Journal)) {
        self.log_puts();
        if let Some(journal) = &self.journal {
            tell(journal);
        }
    }

    /// Tells the journal of the flows that it has not heard of yet.
    pub(super) fn log_puts(&self) {
        let Some(journal) = &self.journal else { return };
        for (index, id, flow) in self.unlogged.borrow_mut().drain(..) {
            journal.put(index, id, &flow);
        }
    }

    fn restore_flows(&mut self, index: DpIndex, saved: SavedFlows) {
        let Some(dp) = self.dps.get_mut(&index) else { return };
        let table = dp.table.get_mut();
        let (mut flows, mut refused) = (0, 0);
        for (flow, stats) in saved.flows {
            let Ok(put) = table.put_with(&flow, PutMode::CREATE) else {
                refused += 1;
                continue;
            };
            flows += 1;
            table.carry_stats(put.id, &stats);
            if let Some(journal) = &self.journal {
                journal.put(index, put.id, &flow);
                journal.counted(index, vec![(put.id, stats)]);
            }
        }
        let mut meters = 0;
        for (id, config) in saved.meters {
            if table.set_meter(id, config.clone()).is_err() {
                refused += 1;
                continue;
            }
            meters += 1;
            if let Some(stats) = saved.totals.get(&Subject::Meter(id)).map(|all| totals::meter_stats(all)) {
                table.carry_meter_stats(id, &stats);
            }
        }
        // Those of meters are the softpath's now.
        dp.carried = saved.totals;
        dp.carried.retain(|subject, _| !matches!(subject, Subject::Meter(_)));
        tracing::info!(datapath = dp.name, flows, meters, refused, "flows found again");
    }

    fn restore_datapath(
        &mut self,
        saved: SavedDatapath,
        flows: &mut BTreeMap<DpIndex, SavedFlows>,
    ) -> Result<usize, Refusal> {
        let index = self.datapath_new(NewDatapath {
            name: saved.name,
            features: Features(saved.features & self.capabilities().features.0),
            masks_cache_size: Some(saved.masks_cache_size),
            upcall_pid: saved.upcall_pids.first().copied().unwrap_or(0),
            per_cpu_pids: saved.per_cpu_pids.clone(),
            index: None,
        })?;
        self.datapath_set(
            index,
            DatapathChange { per_cpu_pids: Some(saved.per_cpu_pids), ..Default::default() },
        )?;
        // The handle is another one if the local port's device is not the one that it was: then nothing is as it was.
        if let Some(flows) = flows.remove(&index) {
            self.restore_flows(index, flows);
        }
        let mut ports = 0;
        for port in saved.ports {
            let (name, number) = (port.name.clone(), PortNo(port.number));
            let made = self.restored_kind(&name, port.kind).and_then(|kind| {
                let upcall_pids = port.upcall_pids;
                self.vport_new(index, NewVport { name: port.name, kind, port: Some(number), upcall_pids })
            });
            match made {
                Ok(_) => ports += 1,
                Err(refusal) => {
                    tracing::warn!(name, %refusal, "a port could not be made again");
                    self.forget_port_totals(index, number);
                }
            }
        }
        self.tell_counters(index);
        Ok(ports)
    }
}

/// The datapaths that `owner` saved; none, and why is told, if there is no such file.
fn read(path: &Path, owner: &str) -> Vec<SavedDatapath> {
    let saved = fs::read(path).and_then(|bytes| Ok(serde_json::from_slice::<Saved>(&bytes)?));
    match saved {
        Ok(saved) if saved.owner == owner => saved.datapaths,
        Ok(saved) => {
            let path = path.display();
            tracing::warn!(%path, saved.owner, owner, "the state is of another network namespace, and not taken up");
            Vec::new()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the state of the daemon before cannot be read");
            Vec::new()
        }
    }
}

/// Replaces the file in one step; only the daemon's user reads it.
fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(saved)?)?;
    drop(file);
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_another_network_namespace_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATAPATHS);
        let datapath = SavedDatapath {
            name: "ovs-system".into(),
            features: 7,
            masks_cache_size: 256,
            per_cpu_pids: vec![1, 2],
            upcall_pids: vec![3],
            ports: vec![SavedPort {
                number: 1,
                name: "v1".into(),
                kind: SavedKind::Netdev,
                upcall_pids: vec![4],
            }],
        };
        write(&path, &Saved { owner: "this namespace".into(), datapaths: vec![datapath] }).unwrap();
        let names = |owner| read(&path, owner).into_iter().map(|dp| dp.name).collect::<Vec<_>>();
        assert_eq!(names("this namespace"), ["ovs-system"]);
        assert_eq!(names("another namespace"), [""; 0]);
    }
}
