//! A [`Backend`] of tables alone: no port carries packets, no packet matches. For tests and fuzzing of the server, and as
//! the shortest statement of what a backend promises.

use crate::backend::*;
use flowlift_flow::action::validate;
use flowlift_flow::{Action, AttrSet, Key, Mask, Match, PortNo, Ufid};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

/// Highest port number.
const PORT_MAX: u32 = 0xfffe;

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What [`Backend::capabilities`] gives.
    pub capabilities: Capabilities,
    /// Network devices that the host has: names, and whether they can be a port.
    pub netdevs: Vec<String>,
    /// Packets that were executed: datapath, packet, metadata, actions.
    pub executed: Vec<(DpIndex, Vec<u8>, Key, Vec<Action>)>,
    /// The clock, in milliseconds.
    pub now_ms: u64,
    datapaths: BTreeMap<DpIndex, Table>,
    tunnels: BTreeMap<String, TunnelDevice>,
    last_index: i32,
}

#[derive(Debug, Clone, Default)]
struct Table {
    datapath: Datapath,
    ports: BTreeMap<PortNo, Vport>,
    /// By serial number, so that a dump meets each flow once.
    flows: BTreeMap<u64, Entry>,
    last_serial: u64,
    by_ufid: HashMap<Ufid, u64>,
    by_key: HashMap<Box<Key>, u64>,
    /// Masked keys, by mask.
    by_mask: HashMap<Mask, HashMap<Box<Key>, u64>>,
    meters: BTreeMap<u32, (MeterConfig, MeterStats)>,
    limits: BTreeMap<Option<u16>, u32>,
}

#[derive(Debug, Clone)]
struct Entry {
    ufid: Option<Ufid>,
    matching: Match,
    actions: Vec<Action>,
    stats: FlowStats,
}

impl Entry {
    fn view(&self) -> FlowView<'_> {
        FlowView { ufid: self.ufid, matching: &self.matching, actions: &self.actions, stats: self.stats }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            capabilities: Capabilities {
                features: Features(0xf),
                conntrack: false,
                max_meters: u32::MAX,
                max_meter_bands: 1,
            },
            netdevs: Vec::new(),
            executed: Vec::new(),
            now_ms: 1,
            datapaths: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            last_index: 0,
        }
    }
}

impl Memory {
    /// Has a flow see packets, as if they had come in now.
    pub fn hit(&mut self, dp: DpIndex, id: &FlowId, packets: u64, bytes: u64, tcp_flags: u8) {
        let now = self.now_ms;
        if let Some(entry) = self.datapaths.get_mut(&dp).and_then(|table| table.entry(id)) {
            entry.stats.packets += packets;
            entry.stats.bytes += bytes;
            entry.stats.used_ms = Some(now);
            entry.stats.tcp_flags |= tcp_flags;
        }
    }

    fn table(&self, dp: DpIndex) -> Result<&Table, Refusal> {
        self.datapaths.get(&dp).ok_or(Refusal::NoDatapath)
    }

    fn table_mut(&mut self, dp: DpIndex) -> Result<&mut Table, Refusal> {
        self.datapaths.get_mut(&dp).ok_or(Refusal::NoDatapath)
    }

    fn next_index(&mut self) -> i32 {
        self.last_index += 1;
        self.last_index
    }
}

impl Table {
    fn serial(&self, id: &FlowId) -> Option<u64> {
        match id {
            FlowId::Ufid(ufid) => self.by_ufid.get(ufid).copied(),
            FlowId::Key(key) => self.by_key.get(key).copied(),
        }
    }

    fn entry(&mut self, id: &FlowId) -> Option<&mut Entry> {
        self.flows.get_mut(&self.serial(id)?)
    }

    /// The flow that a packet with this key would match (R22: at most one).
    fn matching(&self, key: &Key) -> Option<u64> {
        self.by_mask.iter().find_map(|(mask, keys)| keys.get(&mask.apply(key)).copied())
    }

    fn insert(&mut self, entry: Entry) -> u64 {
        self.last_serial += 1;
        let serial = self.last_serial;
        let (key, mask) = (&entry.matching.key, &entry.matching.mask);
        match entry.ufid {
            Some(ufid) => self.by_ufid.insert(ufid, serial),
            None => self.by_key.insert(Box::new(key.clone()), serial),
        };
        self.by_mask.entry(mask.clone()).or_default().insert(Box::new(mask.apply(key)), serial);
        self.flows.insert(serial, entry);
        self.count();
        serial
    }

    fn remove(&mut self, serial: u64) -> Option<Entry> {
        let entry = self.flows.remove(&serial)?;
        let (key, mask) = (&entry.matching.key, &entry.matching.mask);
        match entry.ufid {
            Some(ufid) => self.by_ufid.remove(&ufid),
            None => self.by_key.remove(key),
        };
        if let Some(keys) = self.by_mask.get_mut(mask) {
            keys.remove(&mask.apply(key));
        }
        self.by_mask.retain(|_, keys| !keys.is_empty());
        self.count();
        Some(entry)
    }

    fn count(&mut self) {
        self.datapath.stats.flows = self.flows.len() as u64;
        self.datapath.megaflow.masks = self.by_mask.len() as u32;
    }
}

impl Backend for Memory {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn datapath_new(&mut self, new: NewDatapath) -> Result<DpIndex, Refusal> {
        if self.vport_named(&new.name).is_some() || self.netdevs.contains(&new.name) {
            return Err(Refusal::Exists(new.name));
        }
        let index = match new.index {
            Some(index) if self.datapaths.contains_key(&index) => {
                return Err(Refusal::Busy(format!("interface index {}", index.0)));
            }
            Some(index) => index,
            None => DpIndex(self.next_index()),
        };
        let mut table = Table {
            datapath: Datapath {
                name: new.name.clone(),
                features: new.features,
                masks_cache_size: new.masks_cache_size.unwrap_or(256),
                per_cpu_pids: new.per_cpu_pids,
                ..Datapath::default()
            },
            ..Table::default()
        };
        let local = Vport {
            port: PortNo(0),
            name: new.name,
            kind: VportKind::Internal,
            ifindex: index.0.unsigned_abs(),
            upcall_pids: vec![new.upcall_pid],
            stats: VportStats::default(),
            upcalls: (0, 0),
        };
        table.ports.insert(local.port, local);
        self.datapaths.insert(index, table);
        Ok(index)
    }

    fn datapath_del(&mut self, dp: DpIndex) -> Result<(), Refusal> {
        self.datapaths.remove(&dp).map(|_| ()).ok_or(Refusal::NoDatapath)
    }

    fn datapath_set(&mut self, dp: DpIndex, change: DatapathChange) -> Result<(), Refusal> {
        let datapath = &mut self.table_mut(dp)?.datapath;
        datapath.features = change.features.unwrap_or(datapath.features);
        datapath.masks_cache_size = change.masks_cache_size.unwrap_or(datapath.masks_cache_size);
        if let Some(pids) = change.per_cpu_pids {
            datapath.per_cpu_pids = pids;
        }
        Ok(())
    }

    fn datapath(&self, dp: DpIndex) -> Option<Datapath> {
        self.datapaths.get(&dp).map(|table| table.datapath.clone())
    }

    fn datapath_named(&self, name: &str) -> Option<DpIndex> {
        self.datapaths.iter().find(|(_, table)| table.datapath.name == name).map(|(dp, _)| *dp)
    }

    fn datapaths(&self) -> Vec<DpIndex> {
        self.datapaths.keys().copied().collect()
    }

    fn vport_new(&mut self, dp: DpIndex, new: NewVport) -> Result<PortNo, Refusal> {
        self.table(dp)?;
        if self.vport_named(&new.name).is_some() {
            return Err(Refusal::Exists(new.name));
        }
        if new.kind == VportKind::Netdev && !self.netdevs.contains(&new.name) {
            return Err(Refusal::NoNetdev(new.name));
        }
        let ifindex = self.next_index().unsigned_abs();
        let ports = &mut self.table_mut(dp)?.ports;
        let port = match new.port {
            Some(port) if ports.contains_key(&port) => {
                return Err(Refusal::Busy(format!("port number {}", port.0)));
            }
            Some(port) => port,
            None => {
                let free = (1..=PORT_MAX).map(PortNo).find(|port| !ports.contains_key(port));
                free.ok_or(Refusal::PortNumbers)?
            }
        };
        let vport = Vport {
            port,
            name: new.name,
            kind: new.kind,
            ifindex,
            upcall_pids: new.upcall_pids,
            stats: VportStats::default(),
            upcalls: (0, 0),
        };
        ports.insert(port, vport);
        Ok(port)
    }

    fn vport_del(&mut self, dp: DpIndex, port: PortNo) -> Result<(), Refusal> {
        self.table_mut(dp)?.ports.remove(&port).map(|_| ()).ok_or(Refusal::NoVport)
    }

    fn vport_set(&mut self, dp: DpIndex, port: PortNo, change: VportChange) -> Result<(), Refusal> {
        let vport = self.table_mut(dp)?.ports.get_mut(&port).ok_or(Refusal::NoVport)?;
        vport.kind = change.kind.unwrap_or(vport.kind);
        if let Some(pids) = change.upcall_pids {
            vport.upcall_pids = pids;
        }
        Ok(())
    }

    fn vport(&self, dp: DpIndex, port: PortNo) -> Option<Vport> {
        self.datapaths.get(&dp)?.ports.get(&port).cloned()
    }

    fn vport_named(&self, name: &str) -> Option<(DpIndex, PortNo)> {
        let of = |table: &Table| table.ports.values().find(|port| port.name == name).map(|port| port.port);
        self.datapaths.iter().find_map(|(dp, table)| Some((*dp, of(table)?)))
    }

    fn vports(&self, dp: DpIndex, from: PortNo) -> Result<Vec<PortNo>, Refusal> {
        Ok(self.table(dp)?.ports.range(from..).map(|(port, _)| *port).collect())
    }

    fn tunnel_device_new(&mut self, device: TunnelDevice) -> Result<(), Refusal> {
        if self.netdevs.contains(&device.name) {
            return Err(Refusal::Exists(device.name));
        }
        self.netdevs.push(device.name.clone());
        self.tunnels.insert(device.name.clone(), device);
        Ok(())
    }

    fn tunnel_device_set(&mut self, name: &str, mtu: u32) -> Result<(), Refusal> {
        let device = self.tunnels.get_mut(name).ok_or_else(|| Refusal::NoNetdev(name.into()))?;
        device.mtu = mtu;
        Ok(())
    }

    fn tunnel_device_del(&mut self, name: &str) -> Result<(), Refusal> {
        self.tunnels.remove(name).ok_or_else(|| Refusal::NoNetdev(name.into()))?;
        self.netdevs.retain(|device| device != name);
        for table in self.datapaths.values_mut() {
            table.ports.retain(|_, port| port.name != name);
        }
        Ok(())
    }

    fn tunnel_device(&self, name: &str) -> Option<TunnelDevice> {
        self.tunnels.get(name).cloned()
    }

    fn flow_put(
        &mut self,
        dp: DpIndex,
        put: FlowPut,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let table = self.table_mut(dp)?;
        let masked = put.matching.mask.apply(&put.matching.key);
        let by_ufid = put.ufid.and_then(|ufid| table.by_ufid.get(&ufid).copied());
        let by_key = table.by_key.get(&put.matching.key).copied();
        let found = by_ufid.or(by_key).or_else(|| table.matching(&masked));
        let serial = match found {
            Some(_) if put.exclusive => return Err(Refusal::Exists("a flow that matches this key".into())),
            Some(serial) => {
                let entry = table.flows.get_mut(&serial).ok_or(Refusal::NoFlow)?;
                if entry.ufid != put.ufid || entry.matching.key != put.matching.key {
                    return Err(Refusal::NoFlow);
                }
                entry.actions = put.actions;
                serial
            }
            None => {
                let (ufid, matching, actions) = (put.ufid, put.matching, put.actions);
                table.insert(Entry { ufid, matching, actions, stats: FlowStats::default() })
            }
        };
        if let Some(entry) = table.flows.get(&serial) {
            show(entry.view());
        }
        Ok(())
    }

    fn flow_set(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        actions: Option<Vec<Action>>,
        clear: bool,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let entry = self.table_mut(dp)?.entry(id).ok_or(Refusal::NoFlow)?;
        if let Some(actions) = actions {
            validate(&actions, &entry.matching)?;
            entry.actions = actions;
        }
        show(entry.view());
        if clear {
            entry.stats = FlowStats::default();
        }
        Ok(())
    }

    fn flow_del(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let table = self.table_mut(dp)?;
        let serial = table.serial(id).ok_or(Refusal::NoFlow)?;
        let entry = table.remove(serial).ok_or(Refusal::NoFlow)?;
        show(entry.view());
        Ok(())
    }

    fn flow_get(&self, dp: DpIndex, id: &FlowId, show: &mut dyn FnMut(FlowView<'_>)) -> Result<(), Refusal> {
        let table = self.table(dp)?;
        let entry = table.serial(id).and_then(|serial| table.flows.get(&serial)).ok_or(Refusal::NoFlow)?;
        show(entry.view());
        Ok(())
    }

    fn flow_dump(
        &self,
        dp: DpIndex,
        from: FlowCursor,
        show: &mut dyn FnMut(FlowView<'_>) -> ControlFlow<()>,
    ) -> Result<Option<FlowCursor>, Refusal> {
        for (serial, entry) in self.table(dp)?.flows.range(from.0..) {
            if show(entry.view()).is_break() {
                return Ok(Some(FlowCursor(*serial)));
            }
        }
        Ok(None)
    }

    fn flow_flush(&mut self, dp: DpIndex) -> Result<(), Refusal> {
        let table = self.table_mut(dp)?;
        table.flows.clear();
        table.by_ufid.clear();
        table.by_key.clear();
        table.by_mask.clear();
        table.count();
        Ok(())
    }

    fn execute(&mut self, dp: DpIndex, execute: Execute<'_>) -> Result<(), Refusal> {
        self.table(dp)?;
        // Without a parser, what the packet is is only known from its Ethernet type.
        let mut key = execute.metadata.clone();
        let eth_type = execute.packet.get(12..).and_then(|bytes| bytes.first_chunk()).copied();
        key.eth_type = u16::from_be_bytes(eth_type.unwrap_or_default()).into();
        validate(&execute.actions, &Match::exact_in(&key, AttrSet::of(&key)))?;
        self.executed.push((dp, execute.packet.to_vec(), execute.metadata, execute.actions));
        Ok(())
    }

    fn meter_set(&mut self, dp: DpIndex, id: u32, meter: MeterConfig) -> Result<Option<MeterStats>, Refusal> {
        let (max, used_ms) = (self.capabilities.max_meters, self.now_ms);
        let meters = &mut self.table_mut(dp)?.meters;
        if id >= max || (meters.len() as u64 >= u64::from(max) && !meters.contains_key(&id)) {
            return Err(Refusal::Full("the table of meters".into()));
        }
        let stats = MeterStats {
            packets: meter.packets,
            bytes: meter.bytes,
            used_ms,
            bands: vec![(0, 0); meter.bands.len()],
        };
        let before = meters.insert(id, (meter, stats));
        Ok(before.filter(|(config, _)| !config.clear).map(|(_, stats)| stats))
    }

    fn meter_get(&self, dp: DpIndex, id: u32) -> Result<MeterStats, Refusal> {
        self.table(dp)?.meters.get(&id).map(|(_, stats)| stats.clone()).ok_or(Refusal::NoMeter)
    }

    fn meter_del(&mut self, dp: DpIndex, id: u32) -> Result<Option<MeterStats>, Refusal> {
        Ok(self.table_mut(dp)?.meters.remove(&id).map(|(_, stats)| stats))
    }

    fn ct_limit_set(&mut self, dp: DpIndex, limits: &[ZoneLimit]) -> Result<(), Refusal> {
        let table = self.table_mut(dp)?;
        table.limits.extend(limits.iter().map(|limit| (limit.zone, limit.limit)));
        Ok(())
    }

    fn ct_limit_del(&mut self, dp: DpIndex, zones: &[Option<u16>]) -> Result<(), Refusal> {
        let table = self.table_mut(dp)?;
        table.limits.retain(|zone, _| !zones.contains(zone));
        Ok(())
    }

    fn ct_limit_get(&self, dp: DpIndex, zones: &[Option<u16>]) -> Result<Vec<ZoneLimit>, Refusal> {
        let limits = &self.table(dp)?.limits;
        let default = limits.get(&None).copied().unwrap_or_default();
        let one = |zone: Option<u16>| {
            let limit = limits.get(&zone).copied().unwrap_or(default);
            ZoneLimit { zone, limit, count: 0 }
        };
        if !zones.is_empty() {
            return Ok(zones.iter().copied().map(one).collect());
        }
        let all = std::iter::once(None).chain(limits.keys().copied().filter(Option::is_some));
        Ok(all.map(one).collect())
    }
}
