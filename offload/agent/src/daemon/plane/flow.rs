//! Flows: the softpath's table as the truth, the NIC's share added to what is shown.

use super::{Dp, Plane};
use crate::daemon::forward::{InNic, now_ns};
use flowlift_flow::{Flow, Mask, Match};
use flowlift_offload::planner::{Counters, Reason, State};
use flowlift_ovs::backend::{DpIndex, FlowCursor, FlowId, FlowPut, FlowStats, FlowView, Refusal};
use flowlift_softpath::{self as softpath, PutError, PutMode};
use std::ops::ControlFlow;

/// Flows whose counters are asked of the NIC's owner together.
const CHUNK: usize = 64;

/// A flow as a dump shows it, with what each side counted.
#[derive(Debug, Clone)]
pub struct ShownFlow {
    /// Its name in the softpath.
    pub id: softpath::FlowId,
    /// The flow.
    pub flow: Flow,
    /// What software counted.
    pub software: softpath::FlowStats,
    /// Where it is in the NIC; `None` if it was not offered.
    pub nic: Option<InNic>,
}

impl ShownFlow {
    /// Packets of both sides together.
    pub fn stats(&self) -> FlowStats {
        sum(&self.software, self.nic.as_ref().map(|nic| (nic.counters, nic.used_ms)))
    }

    /// The same, for the next daemon.
    pub(super) fn total(&self) -> (softpath::FlowId, softpath::FlowStats) {
        let FlowStats { packets, bytes, used_ms: used, tcp_flags } = self.stats();
        (self.id, softpath::FlowStats { packets, bytes, used, tcp_flags: tcp_flags.into() })
    }

    fn view(&self) -> FlowView<'_> {
        FlowView {
            ufid: self.flow.ufid,
            matching: &self.flow.matching,
            actions: &self.flow.actions,
            stats: self.stats(),
        }
    }

    /// The state's name and the reason, for people.
    pub fn state(&self) -> (&'static str, Option<String>) {
        match &self.nic {
            Some(nic) => (
                nic.state.name(),
                nic.reason.filter(|_| nic.state != State::Hardware).map(|r| reason_text(&r)),
            ),
            None => (State::Software.name(), Some("its datapath has no port of a NIC".into())),
        }
    }
}

fn reason_text(reason: &Reason) -> String {
    reason.to_string()
}

fn sum(software: &softpath::FlowStats, hardware: Option<(Counters, Option<u64>)>) -> FlowStats {
    let (counters, used_ms) = hardware.unwrap_or_default();
    FlowStats {
        packets: software.packets.wrapping_add(counters.packets),
        bytes: software.bytes.wrapping_add(counters.bytes),
        used_ms: software.used.max(used_ms),
        tcp_flags: (software.tcp_flags | counters.tcp_flags) as u8,
    }
}

impl Dp {
    /// The flow that is meant.
    fn find(&self, id: &FlowId) -> Result<softpath::FlowId, Refusal> {
        let mut table = self.table.borrow_mut();
        let found = match id {
            FlowId::Ufid(ufid) => table.find_ufid(ufid),
            // Flows do not overlap, so a packet with the very key that a flow was installed with is that flow's.
            FlowId::Key(key) => table.lookup(key).filter(|id| {
                table.flow(*id).is_some_and(|flow| flow.ufid.is_none() && flow.matching.key == **key)
            }),
        };
        found.ok_or(Refusal::NoFlow)
    }

    /// A flow with what software counted.
    fn show(&self, id: softpath::FlowId) -> Option<ShownFlow> {
        let mut table = self.table.borrow_mut();
        Some(ShownFlow { id, flow: table.flow(id)?, software: table.stats(id)?, nic: None })
    }
}

fn put_refusal(error: &PutError) -> Refusal {
    match error {
        PutError::Unsupported(unsupported) => Refusal::Inexpressible(unsupported.to_string()),
        PutError::Exists(_) => Refusal::Exists("the flow".into()),
        PutError::NotFound | PutError::UfidInUse(_) | PutError::MatchInUse(_) => Refusal::NoFlow,
        PutError::Full(_) => Refusal::Full("the flow table".into()),
    }
}

impl Plane {
    /// Adds what the NIC says of these flows.
    fn add_nic(&self, index: DpIndex, flows: &mut [ShownFlow]) -> Result<(), Refusal> {
        let ids: Vec<softpath::FlowId> = flows.iter().map(|flow| flow.id).collect();
        if self.nic_ports.is_empty() || ids.is_empty() {
            return Ok(());
        }
        let looked = self.ask(move |f| f.look(index, &ids))?;
        flows.iter_mut().zip(looked).for_each(|(flow, nic)| flow.nic = nic);
        Ok(())
    }

    /// Has the forwarder offer a flow to the NIC when it next looks, or at [`Self::end_turn`]: the flow's first packet mostly
    /// follows, which wakes it, and goes first.
    fn offer(&self, index: DpIndex, id: softpath::FlowId) {
        if self.nic_ports.is_empty() {
            return;
        }
        let now = now_ns();
        self.forwarder.leave(move |f| f.flow_put(index, id, now));
        self.offered.set(true);
    }

    /// Has the forwarder bring a meter that was set or deleted to the NIC, if it is there.
    pub(super) fn tell_meter(&self, index: DpIndex, id: u32) {
        if !self.nic_ports.is_empty() {
            self.forwarder.send(move |f| f.meter_changed(index, id));
        }
    }

    /// The requests that were there are handled.
    pub fn end_turn(&self) {
        if self.offered.take() {
            self.forwarder.wake();
        }
    }

    /// Installs a flow or gives it new actions.
    pub(super) fn put_flow(
        &mut self,
        index: DpIndex,
        put: FlowPut,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let FlowPut { ufid, matching, actions, exclusive, probe, shown } = put;
        let flow = Flow { ufid, matching, actions };
        let dp = self.dp_mut(index)?;
        let mode = if exclusive { PutMode::CREATE } else { PutMode::ANY };
        let result = dp.table.get_mut().put_with(&flow, mode);
        let (id, created) = match result {
            Ok(put) => (put.id, put.created),
            Err(PutError::UfidInUse(_) | PutError::MatchInUse(_)) if exclusive => {
                return Err(Refusal::Exists("the flow".into()));
            }
            // The flow with this match has another handle, and keeps it.
            Err(PutError::MatchInUse(id)) => {
                dp.table.get_mut().set_actions(id, &flow.actions).map_err(|error| put_refusal(&error))?;
                (id, false)
            }
            Err(error) => return Err(put_refusal(&error)),
        };
        if probe && created {
            dp.probes.insert(id);
        } else if !dp.probes.contains(&id) {
            self.offer(index, id);
        }
        let dp = self.dp(index)?;
        let is_probe = dp.probes.contains(&id);
        if created && !shown {
            if !is_probe && self.journal.is_some() {
                self.unlogged.borrow_mut().push((index, id, flow));
            }
            return Ok(());
        }
        let Some(mut shown) = dp.show(id) else { return Err(Refusal::NoFlow) };
        if !is_probe {
            self.log(|journal| journal.put(index, id, &shown.flow));
        }
        if !created {
            self.add_nic(index, std::slice::from_mut(&mut shown))?;
        }
        show(shown.view());
        Ok(())
    }

    /// Gives a flow new actions, and forgets what it has seen.
    pub(super) fn set_flow(
        &mut self,
        index: DpIndex,
        id: &FlowId,
        actions: Option<Vec<flowlift_flow::Action>>,
        clear: bool,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let dp = self.dp_mut(index)?;
        let id = dp.find(id)?;
        let changed = actions.is_some();
        if let Some(actions) = actions {
            let table = dp.table.get_mut();
            let matching = table.flow(id).ok_or(Refusal::NoFlow)?.matching;
            flowlift_flow::action::validate(&actions, &matching)?;
            table.set_actions(id, &actions).map_err(|error| put_refusal(&error))?;
            if !dp.probes.contains(&id) {
                self.offer(index, id);
            }
        }
        let mut shown = self.dp(index)?.show(id).ok_or(Refusal::NoFlow)?;
        self.add_nic(index, std::slice::from_mut(&mut shown))?;
        show(shown.view());
        if changed && !self.dp(index)?.probes.contains(&id) {
            self.log(|journal| journal.put(index, id, &shown.flow));
        }
        if clear {
            // Hardware's counters cannot be cleared: it gives them up with the flow, which is offered anew.
            self.ask(move |f| f.flow_remove(index, &[id]))?;
            self.dp_mut(index)?.table.get_mut().clear_stats(id);
            self.log(|journal| journal.counted(index, vec![(id, Default::default())]));
            self.offer(index, id);
        }
        Ok(())
    }

    /// Removes a flow, from hardware first, and shows its last counters.
    pub(super) fn del_flow(
        &mut self,
        index: DpIndex,
        id: &FlowId,
        show: &mut dyn FnMut(FlowView<'_>),
    ) -> Result<(), Refusal> {
        let id = self.dp(index)?.find(id)?;
        let mut looked = None;
        if !self.nic_ports.is_empty() {
            looked = self.ask(move |f| {
                let used = f.look(index, &[id]).pop().flatten().and_then(|nic| nic.used_ms);
                f.flow_remove(index, &[id]).pop().map(|counters| (counters, used))
            })?;
        }
        let dp = self.dp_mut(index)?;
        dp.probes.remove(&id);
        let table = dp.table.get_mut();
        let flow = table.flow(id).ok_or(Refusal::NoFlow)?;
        let deleted = table.delete(id).ok_or(Refusal::NoFlow)?;
        self.log(|journal| journal.delete(index, id));
        show(FlowView {
            ufid: flow.ufid,
            matching: &flow.matching,
            actions: &flow.actions,
            stats: sum(&deleted.stats, looked),
        });
        Ok(())
    }

    /// A flow as it is.
    pub(super) fn get_flow(&self, index: DpIndex, id: &FlowId) -> Result<ShownFlow, Refusal> {
        let dp = self.dp(index)?;
        let mut shown = dp.show(dp.find(id)?).ok_or(Refusal::NoFlow)?;
        self.add_nic(index, std::slice::from_mut(&mut shown))?;
        self.log(|journal| journal.counted(index, vec![shown.total()]));
        Ok(shown)
    }

    /// Shows flows from a slot on until `show` breaks off; the slot to go on from.
    pub fn dump_flows(
        &self,
        index: DpIndex,
        from: FlowCursor,
        show: &mut dyn FnMut(&ShownFlow) -> ControlFlow<()>,
    ) -> Result<Option<FlowCursor>, Refusal> {
        let mut next = Some(u32::try_from(from.0).unwrap_or(u32::MAX));
        let mut chunk: Vec<ShownFlow> = Vec::with_capacity(CHUNK);
        while let Some(start) = next {
            chunk.clear();
            next = self.dp(index)?.table.borrow_mut().dump(start, |dumped| {
                let (id, flow, software) = (dumped.id, dumped.record.flow(), dumped.stats);
                chunk.push(ShownFlow { id, flow, software, nic: None });
                chunk.len() < CHUNK
            });
            self.add_nic(index, &mut chunk)?;
            self.log(|journal| journal.counted(index, chunk.iter().map(ShownFlow::total).collect()));
            for flow in &chunk {
                if show(flow).is_break() {
                    return Ok(Some(FlowCursor(flow.id.slot.into())));
                }
            }
        }
        Ok(None)
    }

    /// As [`Self::dump_flows`], in the server's words.
    pub(super) fn dump_views(
        &self,
        index: DpIndex,
        from: FlowCursor,
        show: &mut dyn FnMut(FlowView<'_>) -> ControlFlow<()>,
    ) -> Result<Option<FlowCursor>, Refusal> {
        self.dump_flows(index, from, &mut |flow| show(flow.view()))
    }

    /// Removes every flow.
    pub(super) fn flush_flows(&mut self, index: DpIndex) -> Result<(), Refusal> {
        let dp = self.dp_mut(index)?;
        dp.table.get_mut().flush();
        dp.probes.clear();
        self.log(|journal| journal.forget(index));
        self.forwarder.send(move |f| f.flow_flush(index));
        Ok(())
    }

    /// The match of a packet whose every field is known: what actions on it can count on.
    pub(super) fn exact(key: flowlift_flow::Key) -> Match {
        let attrs = flowlift_flow::AttrSet::of(&key);
        Match { key, mask: Mask::exact(), attrs }
    }
}
