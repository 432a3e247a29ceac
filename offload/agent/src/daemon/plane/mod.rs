//! The control plane: datapaths, ports and flows as Open vSwitch names them, behind the Netlink server.
//!
//! It is the flow tables' writer. A flow is in the softpath when a request is answered; the NIC hears of it by the forwarder's
//! mailbox, and nobody waits for it, but for a delete, which wants the last counters.

mod backend;
mod device;
mod direct;
mod flow;
mod state;
mod totals;
mod tunnel;
mod vport;

pub use flow::ShownFlow;

use super::forward::{Forwarder, Targets};
use super::journal::{Journal, JournalStatus, Subject};
use super::keeper::Keeper;
use super::mailbox::Mailbox;
use super::nic_ports::NicPorts;
use super::representor::Represented;
use super::state_dir::StateDir;
use direct::Direct;
use flowlift_driver::nic::NicPort;
use flowlift_flow::{Flow, PortNo};
use flowlift_ovs::backend::{
    Datapath, DatapathStats, DpIndex, Features, MegaflowStats, Refusal, TunnelKind, VportKind,
};
use flowlift_port::link::Links;
use flowlift_softpath::{self as softpath, FlowId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use tunnel::Tunnel;

/// Number of the port that a datapath is made with.
const LOCAL: PortNo = PortNo(0);
/// Flows that a datapath takes.
const MAX_FLOWS: u32 = 4 << 20;
/// Largest port number, as in the kernel's datapath.
const MAX_PORT: u32 = 65_534;

/// Where a vport's packets come from and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A device of the host.
    Host,
    /// A port of the NIC.
    Nic(NicPort),
}

/// A vport.
#[derive(Debug, Clone)]
struct Port {
    name: String,
    kind: VportKind,
    upcall_pids: Vec<u32>,
    ifindex: u32,
    place: Place,
    /// Why it is not the NIC's although it was to be.
    not_nic: Option<String>,
    /// Why the host's stack sees its packets as well, if it does.
    host_sees: Option<String>,
    /// The protocol, if it is a tunnel: by its kind, or since its device is one.
    tunnel: Option<TunnelKind>,
}

/// A datapath.
struct Dp {
    name: String,
    features: Features,
    masks_cache_size: u32,
    per_cpu_pids: Vec<u32>,
    /// Reading a flow takes the writer's own reader, so it is borrowed even to look.
    table: RefCell<softpath::Datapath>,
    ports: BTreeMap<PortNo, Port>,
    /// Feature probes, which the NIC never hears of.
    probes: BTreeSet<softpath::FlowId>,
    /// Meters with IDs beyond the softpath's. Open vSwitch sets two such to see whether meters work, and gives its own meters
    /// IDs from 0 on.
    probed_meters: BTreeSet<u32>,
    /// What the datapath and its ports had counted before this daemon.
    carried: BTreeMap<Subject, Vec<u64>>,
}

/// All datapaths.
pub struct Plane {
    dps: BTreeMap<DpIndex, Dp>,
    forwarder: Mailbox<Forwarder>,
    /// Packets from the user that it is not needed for.
    direct: RefCell<Direct>,
    /// Flows were left there that it was not woken for.
    offered: Cell<bool>,
    /// Devices of the host that stand for ports of the NIC.
    nic_ports: NicPorts,
    representors: Vec<Represented>,
    links: RefCell<Links>,
    /// Tunnel devices, by name.
    tunnels: BTreeMap<String, Tunnel>,
    /// Where the next daemon finds datapaths and ports; `None` before [`Self::restore`].
    state: Option<StateDir>,
    /// Where it finds flows and meters.
    journal: Option<Journal>,
    /// New flows that it has not heard of yet: it does when their requests are answered.
    unlogged: RefCell<Vec<(DpIndex, FlowId, Flow)>>,
    /// Who keeps the files of ports' devices until then.
    keeper: Keeper,
}

/// A port for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PortInfo {
    /// Datapath.
    pub datapath: String,
    /// Number.
    pub port: u32,
    /// Name.
    pub name: String,
    /// Kind: `netdev`, `internal`, and so on.
    pub kind: &'static str,
    /// Number of the NIC's port, if it is one.
    pub nic_port: Option<u16>,
    /// Why it is none although `--wire auto` was to make it one.
    pub not_nic: Option<String>,
    /// Why the host's stack sees its packets as well, if it does.
    pub host_sees: Option<String>,
    /// Frames and bytes received and sent, and frames dropped in each direction.
    pub rx_packets: u64,
    /// See above.
    pub rx_bytes: u64,
    /// See above.
    pub rx_dropped: u64,
    /// See above.
    pub tx_packets: u64,
    /// See above.
    pub tx_bytes: u64,
    /// See above.
    pub tx_dropped: u64,
    /// Packets of this port for the user, and those of them that were lost.
    pub upcalls: u64,
    /// See above.
    pub upcalls_lost: u64,
}

impl Plane {
    /// Without datapaths. `nic_ports` are the devices that stand for ports of the NIC, `keeper` has what the daemon before left.
    pub fn new(forwarder: Mailbox<Forwarder>, nic_ports: NicPorts, links: Links, keeper: Keeper) -> Self {
        Self {
            dps: BTreeMap::new(),
            forwarder,
            direct: RefCell::default(),
            offered: Cell::new(false),
            nic_ports,
            representors: Vec::new(),
            links: RefCell::new(links),
            tunnels: BTreeMap::new(),
            state: None,
            journal: None,
            unlogged: RefCell::default(),
            keeper,
        }
    }

    fn dp(&self, dp: DpIndex) -> Result<&Dp, Refusal> {
        self.dps.get(&dp).ok_or(Refusal::NoDatapath)
    }

    fn dp_mut(&mut self, dp: DpIndex) -> Result<&mut Dp, Refusal> {
        self.dps.get_mut(&dp).ok_or(Refusal::NoDatapath)
    }

    /// What the forwarder gives, which outlives the plane.
    fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Forwarder) -> R + Send + 'static,
    ) -> Result<R, Refusal> {
        self.forwarder.call(job).ok_or_else(|| Refusal::Unsupported("anything while the daemon stops".into()))
    }

    /// Tells the forwarder who gets a datapath's upcalls, and the next daemon what changed.
    fn tell_targets(&self, index: DpIndex) {
        self.save();
        let Some(dp) = self.dps.get(&index) else { return };
        let targets = Targets {
            features: dp.features,
            per_cpu: dp.per_cpu_pids.clone(),
            ports: dp.ports.iter().map(|(number, port)| (*number, port.upcall_pids.clone())).collect(),
        };
        self.forwarder.send(move |forwarder| forwarder.set_targets(index, targets));
    }

    /// Datapaths by name, for people.
    pub fn datapath_names(&self) -> Vec<(DpIndex, String)> {
        self.dps.iter().map(|(index, dp)| (*index, dp.name.clone())).collect()
    }

    /// What the softpath counted in a datapath.
    pub fn softpath_counters(&self, index: DpIndex) -> Option<softpath::Counters> {
        let lost_later = self.ask(move |f| f.upcalls_lost_later(index)).unwrap_or(0);
        Some(self.datapath_totals(index, self.dps.get(&index)?, lost_later))
    }

    /// How the saving for the next daemon does; `None` if nothing is saved.
    pub fn journal_status(&self) -> Option<JournalStatus> {
        self.journal.as_ref().map(Journal::status)
    }

    fn describe(&self, index: DpIndex, dp: &Dp) -> Datapath {
        let lost_later = self.ask(move |f| f.upcalls_lost_later(index)).unwrap_or(0);
        let counters = self.datapath_totals(index, dp, lost_later);
        let table = dp.table.borrow();
        Datapath {
            name: dp.name.clone(),
            features: dp.features,
            masks_cache_size: dp.masks_cache_size,
            per_cpu_pids: dp.per_cpu_pids.clone(),
            stats: DatapathStats {
                hit: counters.hits,
                missed: counters.misses,
                lost: counters.lost,
                flows: table.len() as u64,
            },
            megaflow: MegaflowStats {
                mask_hit: counters.masks_searched,
                masks: u32::try_from(table.mask_count()).unwrap_or(u32::MAX),
                cache_hit: counters.cache_hits,
            },
        }
    }
}
