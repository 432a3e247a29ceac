//! What a daemon finds of the one before it: datapaths and their ports, with who gets their upcalls.
//!
//! Saved whenever one of them changes, in one step, so that a daemon killed at any moment leaves a whole file. Flows are not
//! in it: ovs-vswitchd installs them again as their packets come. The devices of internal ports outlive the daemon, and a
//! datapath's handle is its local port's interface index; so ovs-vswitchd goes on with the handles that it has.

use super::{LOCAL, Plane};
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{Backend, DatapathChange, Features, NewDatapath, NewVport, Refusal, VportKind};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

#[derive(Debug, Serialize, Deserialize)]
struct SavedPort {
    number: u32,
    name: String,
    internal: bool,
    upcall_pids: Vec<u32>,
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
    /// Saves what there is, if it is to be saved. A failure costs the next daemon its memory and nothing now.
    pub(super) fn save(&self) {
        let Some(path) = &self.state else { return };
        let saved: Vec<SavedDatapath> = self
            .dps
            .values()
            .map(|dp| {
                let others = dp.ports.iter().filter(|(number, _)| **number != LOCAL);
                let ports: Vec<SavedPort> = others
                    .map(|(number, port)| SavedPort {
                        number: number.0,
                        name: port.name.clone(),
                        internal: port.kind == VportKind::Internal,
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
        if let Err(error) = write(path, &saved) {
            tracing::warn!(path = %path.display(), %error, "the datapaths could not be saved for the next daemon");
        }
    }

    /// Makes what the daemon before had, as far as its devices are still there.
    pub fn restore(&mut self) {
        // Nothing is saved before all is restored.
        let Some(path) = self.state.take() else { return };
        let saved: Vec<SavedDatapath> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "not the state of a daemon");
                Vec::new()
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the state of the daemon before cannot be read");
                Vec::new()
            }
        };
        for dp in saved {
            let name = dp.name.clone();
            match self.restore_datapath(dp) {
                Ok(ports) => tracing::info!(name, ports, "datapath found again"),
                Err(refusal) => tracing::warn!(name, %refusal, "a datapath could not be made again"),
            }
        }
        self.state = Some(path);
        self.save();
    }

    fn restore_datapath(&mut self, saved: SavedDatapath) -> Result<usize, Refusal> {
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
        let mut ports = 0;
        for port in saved.ports {
            let name = port.name.clone();
            let kind = if port.internal { VportKind::Internal } else { VportKind::Netdev };
            let number = Some(PortNo(port.number));
            let new = NewVport { name: port.name, kind, port: number, upcall_pids: port.upcall_pids };
            match self.vport_new(index, new) {
                Ok(_) => ports += 1,
                Err(refusal) => tracing::warn!(name, %refusal, "a port could not be made again"),
            }
        }
        Ok(ports)
    }
}

/// Replaces the file in one step; only the daemon's user reads it.
fn write(path: &Path, saved: &[SavedDatapath]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(saved)?)?;
    drop(file);
    fs::rename(new, path)
}
