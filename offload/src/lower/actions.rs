//! A flow's actions as actions of an entry, each with an exact equivalent, in order.
//!
//! What a flow's match fixes is used twice: an action that sets what is there already is left out, and one that needs a
//! header is taken only where the match guarantees the header.

use super::Ingress;
use super::matching::{L3, L4, Wants};
use crate::header::{Needs, SetEffect, SetField, action_name, effect_of};
use crate::meter::MeterCause;
use crate::pipeline::{Pipeline, all_bits};
use crate::refusal::{ActionCause, Cause, Limit};
use flowlift_driver::nic::{ActionKind, Field, FieldValue, NicAction, Stage, TableCaps};
use flowlift_flow::Action;
use flowlift_flow::action::TnlHeader;
use flowlift_flow::key::{VLAN_CFI, eth_type};
use smallvec::SmallVec;

/// Where a recirculation goes.
pub(crate) trait Stages {
    /// The stage of flows with a recirculation ID; `None` if it has none.
    fn stage_of(&self, recirc_id: u32) -> Option<Stage>;
}

/// A value as an entry has it.
fn value_of(v: u128) -> FieldValue {
    v.to_be_bytes()
}

/// One flattened action, with its place in the flow's list.
struct Step<'a> {
    index: u16,
    /// How many clones it is in.
    depth: u16,
    action: &'a Action,
}

/// Unfolds clones and certain samples where that is exact: the last one, which shares its end with the list's, and
/// those that only output. Samples that never happen vanish, and nothing after a drop happens.
fn flatten<'a>(
    actions: &'a [Action],
    inside: Option<(u16, u16)>,
    steps: &mut SmallVec<[Step<'a>; 8]>,
) -> Result<(), Cause> {
    for (n, action) in actions.iter().enumerate() {
        let (index, depth) = inside.unwrap_or((u16::try_from(n).unwrap_or(u16::MAX), 0));
        match action {
            Action::Sample { probability: 0, .. } => {}
            Action::Clone(inner) | Action::Sample { probability: u32::MAX, actions: inner } => {
                let outputs = inner.iter().all(|a| matches!(a, Action::Output(_)));
                if !outputs && n + 1 != actions.len() {
                    return Err(Cause::Action {
                        index,
                        name: action_name(action),
                        why: ActionCause::NotLast,
                    });
                }
                flatten(inner, Some((index, depth.saturating_add(1))), steps)?;
            }
            Action::Drop(_) => return Ok(()),
            _ => steps.push(Step { index, depth, action }),
        }
    }
    Ok(())
}

/// The recirculation that a flow's actions end with, if they do and hardware could do it.
pub(crate) fn recirculation(actions: &[Action]) -> Option<u32> {
    let mut steps = SmallVec::new();
    flatten(actions, None, &mut steps).ok()?;
    match steps.last()?.action {
        Action::Recirc(id) => Some(*id),
        _ => None,
    }
}

/// Builds an entry's actions.
struct Builder<'a> {
    pipeline: &'a Pipeline,
    table: &'a TableCaps,
    wants: &'a Wants,
    ingress: &'a Ingress,
    out: SmallVec<[NicAction; 2]>,
    /// What each field is known to hold: value and mask.
    known: SmallVec<[(Field, u128, u128); 16]>,
    tags: u32,
    outputs: bool,
    metered: bool,
    ttl_changed: bool,
    metadata_changed: Option<&'static str>,
    /// Outer headers were put on, so that the headers of the match are not the packet's first ones.
    tunnelled: bool,
}

impl Builder<'_> {
    fn has(&self, kind: ActionKind) -> Result<(), ActionCause> {
        if self.table.actions.has(kind) { Ok(()) } else { Err(ActionCause::NotInTable) }
    }

    fn learn(&mut self, s: SetField) {
        match self.known.iter_mut().find(|(f, ..)| *f == s.field) {
            Some((_, value, mask)) => {
                *value = *value & !s.mask | s.value;
                *mask |= s.mask;
            }
            None => self.known.push((s.field, s.value, s.mask)),
        }
    }

    /// True if the packet has this already.
    fn is_known(&self, s: &SetField) -> bool {
        self.known.iter().any(|(f, value, mask)| {
            *f == s.field && mask & s.mask == s.mask && (value ^ s.value) & s.mask == 0
        })
    }

    /// Refuses an action on headers that are not outermost any more.
    fn in_front(&self) -> Result<(), ActionCause> {
        if self.tunnelled { Err(ActionCause::BehindTunnel) } else { Ok(()) }
    }

    fn set(&mut self, effect: SetEffect) -> Result<(), ActionCause> {
        self.in_front()?;
        let (needs, fields, proto, frag) = match effect {
            SetEffect::Software => return Err(ActionCause::Software),
            SetEffect::Metadata(name) => {
                self.metadata_changed = Some(name);
                return Ok(());
            }
            SetEffect::Fields { needs, fields, proto, frag } => (needs, fields, proto, frag),
        };
        let (l3, l4) = (self.wants.l3, self.wants.l4);
        let missing = match needs {
            Needs::Nothing => None,
            Needs::Ipv4 => (l3 != L3::Ipv4).then_some("eth_type"),
            Needs::Ipv6 => (l3 != L3::Ipv6).then_some("eth_type"),
            Needs::Arp => (l3 != L3::Arp).then_some("eth_type"),
            Needs::Tcp => (l4 != L4::Tcp).then_some("ip.proto"),
            Needs::Udp => (l4 != L4::Udp).then_some("ip.proto"),
            Needs::Sctp => (l4 != L4::Sctp).then_some("ip.proto"),
        };
        if let Some(name) = missing {
            return Err(ActionCause::Needs(name));
        }
        // No fragment gets into a table; a protocol may be repeated, but not changed (U8).
        if frag.0 & frag.1 != 0 {
            return Err(ActionCause::NeverSet("ip.frag"));
        }
        let repeats =
            SetField { field: Field::IpProto, value: u128::from(proto.0 & proto.1), mask: proto.1.into() };
        if proto.1 != 0 && !self.is_known(&repeats) {
            return Err(ActionCause::NeverSet("ip.proto"));
        }
        for s in fields {
            if self.is_known(&s) {
                continue;
            }
            self.has(ActionKind::SetField)?;
            if !self.table.settable.contains(&s.field) {
                return Err(ActionCause::NotSettable(s.field));
            }
            if !self.table.set_bits && s.mask != all_bits(s.field.width()) {
                return Err(ActionCause::SetsBits(s.field));
            }
            self.ttl_changed |= s.field == Field::IpTtl;
            self.learn(s);
            self.out.push(NicAction::SetField {
                field: s.field,
                value: value_of(s.value),
                mask: value_of(s.mask),
            });
        }
        Ok(())
    }

    fn push_vlan(&mut self, tpid: u16, tci: u16) -> Result<(), ActionCause> {
        if tci & VLAN_CFI == 0 || !matches!(tpid, eth_type::VLAN | eth_type::QINQ) {
            return Err(ActionCause::BadArgument);
        }
        self.has(ActionKind::PushVlan)?;
        self.tags += 1;
        // The bit that says "present" in a key is the drop-eligible indicator on the wire.
        self.out.push(NicAction::PushVlan { tpid, tci: tci & !VLAN_CFI });
        Ok(())
    }

    fn pop_vlan(&mut self) -> Result<(), ActionCause> {
        if self.tags == 0 {
            return if self.tunnelled || self.wants.no_more_tags {
                Ok(())
            } else {
                Err(ActionCause::Needs("vlan"))
            };
        }
        self.has(ActionKind::PopVlan)?;
        self.tags -= 1;
        self.out.push(NicAction::PopVlan);
        Ok(())
    }

    fn dec_ttl(&mut self) -> Result<(), ActionCause> {
        self.in_front()?;
        if !matches!(self.wants.l3, L3::Ipv4 | L3::Ipv6) {
            return Err(ActionCause::Needs("eth_type"));
        }
        // An expired packet goes to software unchanged, which runs the flow from its start: exact as long as nothing
        // was sent and no meter asked before, and as long as the TTL that is looked at is the one that came in.
        if self.outputs || self.metered || self.ttl_changed {
            return Err(ActionCause::NotFirst);
        }
        self.has(ActionKind::DecTtl)?;
        self.ttl_changed = true;
        self.known.retain(|(f, ..)| *f != Field::IpTtl);
        self.out.insert(0, NicAction::DecTtl);
        Ok(())
    }

    fn tnl_push(&mut self, header: &TnlHeader) -> Result<(), ActionCause> {
        let TnlHeader::Vxlan(header) = header else { return Err(ActionCause::Software) };
        self.in_front()?;
        if header.src_port() == 0 && !self.pipeline.chooses_source_ports() {
            return Err(ActionCause::OpenSourcePort);
        }
        self.has(ActionKind::VxlanEncap)?;
        // No tag is outside these headers.
        (self.tunnelled, self.tags) = (true, 0);
        self.out.push(NicAction::VxlanEncap(header.bytes().as_slice().into()));
        Ok(())
    }

    fn output(&mut self, port: flowlift_flow::PortNo) -> Result<(), ActionCause> {
        let nic = self.pipeline.ports().nic(port).ok_or(ActionCause::PortNotOnNic(port))?;
        self.has(ActionKind::Output)?;
        if !self.table.output_to_ingress && self.ingress.iter().any(|from| from.is_none_or(|p| p == nic)) {
            return Err(ActionCause::ToIngress);
        }
        self.outputs = true;
        self.out.push(NicAction::Output(nic));
        Ok(())
    }

    fn meter(&mut self, id: u32) -> Result<(), ActionCause> {
        self.has(ActionKind::Meter)?;
        if !self.pipeline.caps().shared_meters {
            return Err(ActionCause::TwoBuckets);
        }
        let number = self.pipeline.meter(id).unwrap_or(Err(MeterCause::Missing));
        self.out.push(NicAction::Meter(number.map_err(ActionCause::Meter)?));
        self.metered = true;
        Ok(())
    }

    /// The stage where the packet goes on; `None` for the slow queue.
    fn recirc(&mut self, id: u32, last: bool, stages: &dyn Stages) -> Result<Option<Stage>, ActionCause> {
        if !last {
            return Err(ActionCause::NotLast);
        }
        self.in_front()?;
        if let Some(name) = self.metadata_changed {
            return Err(ActionCause::LosesMetadata(name));
        }
        if id == 0 {
            return Err(ActionCause::BadArgument);
        }
        self.has(ActionKind::SetMetadata)?;
        if self.pipeline.resumes_in_software(id) {
            self.has(ActionKind::Trap)?;
            self.out.push(NicAction::SetMetadata(id));
            self.out.push(NicAction::Trap);
            return Ok(None);
        }
        self.has(ActionKind::Goto)?;
        let stage = stages.stage_of(id).ok_or(ActionCause::NoLaterStage)?;
        if stage <= self.table.stage || !self.table.goto.contains(&stage) {
            return Err(ActionCause::NoLaterStage);
        }
        self.out.push(NicAction::SetMetadata(id));
        self.out.push(NicAction::Goto(stage));
        Ok(Some(stage))
    }
}

/// The entry's actions, and where the packet goes on, if it does.
pub(crate) type Lowered = (SmallVec<[NicAction; 2]>, Option<(u32, Stage)>);

/// Lowers a flow's actions for a table.
pub(crate) fn lower(
    pipeline: &Pipeline,
    table: &TableCaps,
    (wants, ingress): (&Wants, &Ingress),
    actions: &[Action],
    stages: &dyn Stages,
) -> Result<Lowered, Cause> {
    let mut steps = SmallVec::new();
    flatten(actions, None, &mut steps)?;
    let mut b = Builder {
        pipeline,
        table,
        wants,
        ingress,
        out: SmallVec::new(),
        known: wants.fields.iter().map(|w| (w.field, w.value, w.mask)).collect(),
        tags: wants.tags.into(),
        outputs: false,
        metered: false,
        ttl_changed: false,
        metadata_changed: None,
        tunnelled: false,
    };
    let mut goto = None;
    for (n, Step { index, depth, action }) in steps.iter().enumerate() {
        let next = steps.get(n + 1);
        let done = match action {
            Action::Output(port) => b.output(*port),
            Action::Set(header) => effect_of(header, None).and_then(|e| b.set(e)),
            Action::SetMasked { value, mask } => effect_of(value, Some(mask)).and_then(|e| b.set(e)),
            Action::PushVlan { tpid, tci } => b.push_vlan(*tpid, *tci),
            Action::PopVlan => b.pop_vlan(),
            Action::TnlPush(push) => b.tnl_push(&push.header),
            Action::DecTtl { .. } => b.dec_ttl(),
            Action::Trunc { max_len } => {
                trunc(&mut b, *max_len, next.filter(|s| s.depth == *depth).map(|s| s.action))
            }
            Action::Recirc(id) => match b.recirc(*id, next.is_none(), stages) {
                Ok(stage) => {
                    goto = stage.map(|stage| (*id, stage));
                    Ok(())
                }
                Err(why) => Err(why),
            },
            // No packet in the NIC's tables has been through connection tracking.
            Action::CtClear => Ok(()),
            Action::Meter(id) => b.meter(*id),
            _ => Err(ActionCause::Software),
        };
        done.map_err(|why| Cause::Action { index: *index, name: action_name(action), why })?;
    }
    // Changes that no output sees.
    while matches!(
        b.out.last(),
        Some(
            NicAction::SetField { .. }
                | NicAction::PushVlan { .. }
                | NicAction::PopVlan
                | NicAction::VxlanEncap(_)
        )
    ) {
        b.out.pop();
    }
    if b.out.len() > usize::from(table.max_actions) {
        let need = u16::try_from(b.out.len()).unwrap_or(u16::MAX);
        return Err(Cause::Limit(Limit::Actions { need, max: table.max_actions }));
    }
    Ok((b.out, goto))
}

/// Shortest frame that a truncation leaves: an Ethernet header.
const TRUNC_MIN: u32 = 14;

fn trunc(b: &mut Builder<'_>, max_len: u32, next: Option<&Action>) -> Result<(), ActionCause> {
    if max_len < TRUNC_MIN {
        return Err(ActionCause::BadArgument);
    }
    if !matches!(next, Some(Action::Output(_))) {
        return Err(ActionCause::NotBeforeOutput);
    }
    b.has(ActionKind::Trunc)?;
    b.out.push(NicAction::Trunc(max_len));
    Ok(())
}
