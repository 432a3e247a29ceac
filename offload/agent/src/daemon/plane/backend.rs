//! The plane as the Netlink server asks for it.

use super::{Dp, LOCAL, MAX_FLOWS, Place, Plane, Port};
use crate::daemon::forward::GivenPacket;
use flowlift_flow::{Action, Key, Metadata, PortNo, action};
use flowlift_ovs::backend::{
    Backend, Capabilities, Datapath, DatapathChange, DpIndex, Execute, Features, FlowCursor, FlowId, FlowPut,
    FlowView, MeterConfig, MeterStats, NewDatapath, NewVport, Refusal, TunnelDevice, Vport, VportChange,
    VportKind, ZoneLimit,
};
use flowlift_ovs::key::NO_PORT;
use flowlift_ovs::upcall::HASH_L4;
use flowlift_softpath::actions::compile;
use flowlift_softpath::extract::{KeyBuf, extract_packet};
use flowlift_softpath::meter::{MAX_BANDS, MAX_METERS, MeterError, MeterUnit};
use flowlift_softpath::packet::PacketType;
use flowlift_softpath::{self as softpath, Config, Packet};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Masks cache as the kernel's datapath begins with it. Ours has no such cache, but remembers what it is told.
const MASKS_CACHE: u32 = 256;

fn meter_stats(stats: softpath::MeterStats) -> MeterStats {
    MeterStats {
        packets: stats.total.packets,
        bytes: stats.total.bytes,
        used_ms: stats.used.unwrap_or(0),
        bands: stats.bands.iter().map(|band| (band.packets, band.bytes)).collect(),
    }
}

fn no_conntrack() -> Refusal {
    Refusal::Unsupported("connection tracking".into())
}

impl Backend for Plane {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            features: Features(
                Features::UNALIGNED.0 | Features::VPORT_PIDS.0 | Features::DISPATCH_UPCALL_PER_CPU.0,
            ),
            conntrack: false,
            max_meters: MAX_METERS,
            max_meter_bands: MAX_BANDS as u32,
        }
    }

    fn datapath_new(&mut self, new: NewDatapath) -> Result<DpIndex, Refusal> {
        let NewDatapath { name, features, masks_cache_size, upcall_pid, per_cpu_pids, index: _ } = new;
        if self.vport_named(&name).is_some() {
            return Err(Refusal::Exists(name));
        }
        let (source, ifindex) = self.open_internal(&name)?;
        let index = DpIndex(i32::try_from(ifindex).map_err(|_| Refusal::Invalid("interface index".into()))?);
        let table = softpath::Datapath::new(Config { max_flows: MAX_FLOWS, ..Config::default() });
        let worker = table.worker();
        self.ask(move |f| f.add_datapath(index, worker))?;
        if let Err(refusal) = self.add_host_port(index, LOCAL, source, &name) {
            self.ask(move |f| f.remove_datapath(index))?;
            return Err(refusal);
        }
        let local = Port {
            name: name.clone(),
            kind: VportKind::Internal,
            upcall_pids: vec![upcall_pid],
            ifindex,
            place: Place::Host,
            not_nic: None,
            host_sees: None,
            tunnel: None,
        };
        let dp = Dp {
            name,
            features,
            masks_cache_size: masks_cache_size.unwrap_or(MASKS_CACHE),
            per_cpu_pids,
            table: RefCell::new(table),
            ports: BTreeMap::from([(LOCAL, local)]),
            probes: BTreeSet::new(),
            probed_meters: BTreeSet::new(),
            carried: BTreeMap::new(),
        };
        self.dps.insert(index, dp);
        self.tell_targets(index);
        Ok(index)
    }

    fn datapath_del(&mut self, dp: DpIndex) -> Result<(), Refusal> {
        let ports: Vec<PortNo> = self.dp(dp)?.ports.keys().rev().copied().collect();
        for port in ports {
            self.remove_vport(dp, port)?;
        }
        self.log(|journal| journal.forget(dp));
        self.forget_datapath_totals(dp);
        if let Some(gone) = self.dps.remove(&dp) {
            gone.table.borrow().meter_ids().for_each(|id| self.log(|journal| journal.meter(dp, id, None)));
        }
        self.save();
        self.ask(move |f| f.remove_datapath(dp))
    }

    fn datapath_set(&mut self, dp: DpIndex, change: DatapathChange) -> Result<(), Refusal> {
        let own = self.dp_mut(dp)?;
        let DatapathChange { features, masks_cache_size, per_cpu_pids } = change;
        own.features = features.unwrap_or(own.features);
        own.masks_cache_size = masks_cache_size.unwrap_or(own.masks_cache_size);
        if let Some(pids) = per_cpu_pids {
            own.per_cpu_pids = pids;
        }
        self.tell_targets(dp);
        Ok(())
    }

    fn datapath(&self, dp: DpIndex) -> Option<Datapath> {
        self.dps.get(&dp).map(|own| self.describe(dp, own))
    }

    fn datapath_named(&self, name: &str) -> Option<DpIndex> {
        self.dps.iter().find(|(_, dp)| dp.name == name).map(|(index, _)| *index)
    }

    fn datapaths(&self) -> Vec<DpIndex> {
        self.dps.keys().copied().collect()
    }

    fn vport_new(&mut self, dp: DpIndex, new: NewVport) -> Result<PortNo, Refusal> {
        self.add_vport(dp, new)
    }

    fn vport_del(&mut self, dp: DpIndex, port: PortNo) -> Result<(), Refusal> {
        self.remove_vport(dp, port)
    }

    fn vport_set(&mut self, dp: DpIndex, port: PortNo, change: VportChange) -> Result<(), Refusal> {
        let own = self.dp_mut(dp)?.ports.get_mut(&port).ok_or(Refusal::NoVport)?;
        if change.kind.is_some_and(|kind| kind != own.kind) {
            return Err(Refusal::Unsupported("a change of a vport's options".into()));
        }
        if let Some(pids) = change.upcall_pids {
            own.upcall_pids = pids;
        }
        self.tell_targets(dp);
        Ok(())
    }

    fn vport(&self, dp: DpIndex, port: PortNo) -> Option<Vport> {
        self.describe_vport(dp, port)
    }

    fn vport_named(&self, name: &str) -> Option<(DpIndex, PortNo)> {
        self.dps.iter().find_map(|(index, dp)| {
            let port = dp.ports.iter().find(|(_, port)| port.name == name);
            port.map(|(number, _)| (*index, *number))
        })
    }

    fn vports(&self, dp: DpIndex, from: PortNo) -> Result<Vec<PortNo>, Refusal> {
        Ok(self.dp(dp)?.ports.range(from..).map(|(number, _)| *number).collect())
    }

    fn tunnel_device_new(&mut self, device: TunnelDevice) -> Result<(), Refusal> {
        self.add_tunnel_device(device)
    }

    fn tunnel_device_set(&mut self, name: &str, mtu: u32) -> Result<(), Refusal> {
        self.set_tunnel_device(name, mtu)
    }

    fn tunnel_device_del(&mut self, name: &str) -> Result<(), Refusal> {
        self.remove_tunnel_device(name)
    }

    fn tunnel_device(&self, name: &str) -> Option<TunnelDevice> {
        self.show_tunnel_device(name)
    }

    fn flow_put(
        &mut self,
        dp: DpIndex,
        put: FlowPut,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        self.put_flow(dp, put, show)
    }

    fn flow_set(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        actions: Option<Vec<Action>>,
        clear: bool,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        self.set_flow(dp, id, actions, clear, show)
    }

    fn flow_del(
        &mut self,
        dp: DpIndex,
        id: &FlowId,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        self.del_flow(dp, id, show)
    }

    fn flow_get(&self, dp: DpIndex, id: &FlowId, show: &mut dyn FnMut(FlowView<'_>)) -> Result<(), Refusal> {
        let flow = self.get_flow(dp, id)?;
        let stats = flow.stats();
        let (ufid, matching, actions) = (flow.flow.ufid, &flow.flow.matching, &flow.flow.actions);
        show(FlowView { ufid, matching, actions, stats });
        Ok(())
    }

    fn flow_dump(
        &self,
        dp: DpIndex,
        from: FlowCursor,
        show: &mut dyn FnMut(FlowView<'_>) -> ControlFlow<()>,
    ) -> Result<Option<FlowCursor>, Refusal> {
        self.dump_views(dp, from, show)
    }

    fn flow_flush(&mut self, dp: DpIndex) -> Result<(), Refusal> {
        self.flush_flows(dp)
    }

    fn execute(&mut self, dp: DpIndex, execute: Execute<'_>) -> Result<(), Refusal> {
        let own = self.dp(dp)?;
        let Key { in_port, recirc_id, dp_hash, skb_priority, skb_mark, packet_type, .. } = execute.metadata;
        let port = if in_port == NO_PORT { LOCAL } else { PortNo(in_port) };
        if !own.ports.contains_key(&port) && !own.ports.contains_key(&LOCAL) {
            return Err(Refusal::NoVport);
        }
        // An output needs nothing of the packet that would have to be checked.
        if let ([Action::Output(port)], 0, false) = (&execute.actions[..], packet_type.get(), execute.probe)
            && self.direct.get_mut().send(dp, *port, execute.packet)
        {
            return Ok(());
        }
        let metadata = Metadata { in_port, recirc_id, dp_hash, skb_priority, skb_mark };
        let mut packet = Packet::with_room(execute.packet.len());
        packet.fill(execute.packet, metadata);
        packet.packet_type = PacketType(packet_type.get());
        if execute.metadata.has_tunnel() {
            packet.set_tunnel(&execute.metadata);
        }
        let mut key = KeyBuf::new();
        extract_packet(&packet, &mut key);
        action::validate(&execute.actions, &Self::exact(key.key().clone()))?;
        let program = compile(&execute.actions).map_err(|error| Refusal::Inexpressible(error.to_string()))?;
        if execute.probe {
            return Ok(());
        }
        // A hash without its mark is none that was taken from the packet.
        if let Some(hash) = execute.hash.filter(|hash| hash & HASH_L4 != 0) {
            packet.set_flow_hash(hash as u32);
        }
        let under_way = self.direct.get_mut().give();
        let given = GivenPacket { packet, upcall_pid: execute.upcall_pid, program };
        self.forwarder.send(move |f| {
            f.execute(dp, given);
            drop(under_way);
        });
        Ok(())
    }

    fn settle(&mut self) {
        // Packets first: somebody waits for them.
        self.direct.get_mut().flush();
        self.log_puts();
    }

    fn meter_set(
        &mut self,
        index: DpIndex,
        id: u32,
        new: MeterConfig,
    ) -> Result<Option<MeterStats>, Refusal> {
        let MeterConfig { kbps, bands, packets: _, bytes: _, clear: _ } = new;
        let unit = if kbps { MeterUnit::Kbps } else { MeterUnit::Pktps };
        let bands =
            bands.iter().map(|band| softpath::MeterBand { rate: band.rate, burst: band.burst }).collect();
        let dp = self.dp_mut(index)?;
        if id >= MAX_METERS {
            dp.probed_meters.insert(id);
            return Ok(None);
        }
        let config = softpath::MeterConfig { unit, bands };
        let before = dp.table.get_mut().set_meter(id, config.clone()).map_err(|error| match error {
            MeterError::Id(_) => Refusal::Full("the list of meters".into()),
            error => Refusal::Invalid(error.to_string()),
        })?;
        self.log(|journal| journal.meter(index, id, Some(config)));
        self.tell_meter(index, id);
        Ok(before.map(meter_stats))
    }

    fn meter_get(&self, index: DpIndex, id: u32) -> Result<MeterStats, Refusal> {
        let dp = self.dp(index)?;
        if dp.probed_meters.contains(&id) {
            return Ok(MeterStats::default());
        }
        let table = dp.table.borrow();
        let (_, stats) = table.meter(id).ok_or(Refusal::NoMeter)?;
        self.remember_meter(index, id, &stats);
        Ok(meter_stats(stats))
    }

    fn meter_del(&mut self, index: DpIndex, id: u32) -> Result<Option<MeterStats>, Refusal> {
        let dp = self.dp_mut(index)?;
        if dp.probed_meters.remove(&id) {
            return Ok(Some(MeterStats::default()));
        }
        let before = dp.table.get_mut().delete_meter(id).map(meter_stats);
        self.log(|journal| journal.meter(index, id, None));
        self.tell_meter(index, id);
        Ok(before)
    }

    fn ct_limit_set(&mut self, dp: DpIndex, _: &[ZoneLimit]) -> Result<(), Refusal> {
        self.dp(dp)?;
        Err(no_conntrack())
    }

    fn ct_limit_del(&mut self, dp: DpIndex, _: &[Option<u16>]) -> Result<(), Refusal> {
        self.dp(dp)?;
        Err(no_conntrack())
    }

    fn ct_limit_get(&self, dp: DpIndex, _: &[Option<u16>]) -> Result<Vec<ZoneLimit>, Refusal> {
        self.dp(dp)?;
        Ok(vec![ZoneLimit { zone: None, limit: 0, count: 0 }])
    }
}
