//! Flows of one form: they differ in the values of addresses, ports and the like, and in nothing else.
//!
//! No decision of lowering or raising depends on such a value, as long as no action touches its field: it is copied into the
//! entry's key, and read from there. So of many flows of one form the first is lowered, raised and compared. For those after it
//! the plan is that one's with their own values, and the comparison what is left of it: the entry that the encoded bytes mean
//! has the same mask, priority and actions, the same key but for the values, and the flow's own values where the capability
//! records have their fields.

use crate::effect::put_field;
use crate::header::{SetEffect, effect_of};
use crate::lower::{Excluded, Plan};
use crate::pipeline::{Pipeline, field_of, read, write};
use crate::raise::Codec;
use flowlift_driver::nic::{Entry, Field, FieldCaps};
use flowlift_flow::key::{eth_type, ip_proto};
use flowlift_flow::{Action, Flow, Key, Mask};
use smallvec::SmallVec;

/// Forms that are kept: flows come in few at a time, and each is compared with.
const KEPT: usize = 16;

/// A field whose value differs between flows of a form, and where it lies in the table.
#[derive(Debug, Clone)]
struct Value {
    field: Field,
    caps: FieldCaps,
}

impl Value {
    /// Bits of the field that the flow matches, right-aligned.
    fn of(&self, flow: &Flow) -> u128 {
        value_in(&flow.matching.key, self.field) & value_in(&flow.matching.mask.0, self.field)
    }
}

/// A field of [`copied`] in a key, or in a mask.
fn value_in(key: &Key, field: Field) -> u128 {
    let mac = |m: &[u8; 6]| u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]]).into();
    match field {
        Field::EthDst => mac(&key.eth_dst),
        Field::EthSrc => mac(&key.eth_src),
        Field::Ipv4Src => key.ipv4_src.get().into(),
        Field::Ipv4Dst => key.ipv4_dst.get().into(),
        Field::Ipv6Src => u128::from_be_bytes(key.ipv6_src),
        Field::Ipv6Dst => u128::from_be_bytes(key.ipv6_dst),
        Field::IpTos => key.ip_tos.into(),
        Field::IpTtl => key.ip_ttl.into(),
        Field::L4Src => key.tp_src.get().into(),
        Field::L4Dst => key.tp_dst.get().into(),
        _ => 0,
    }
}

#[derive(Debug, Clone)]
struct Known {
    rank: u16,
    excluded: Excluded,
    mask: Mask,
    /// The key of the first flow without its values, and without bits outside the mask; and which bits are compared.
    key: Key,
    fixed: Key,
    actions: Vec<Action>,
    /// The first flow's plan; its entry's key has no values.
    plan: Plan,
    values: SmallVec<[Value; 8]>,
}

/// The forms, the one that was met last first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forms(Vec<Known>);

/// A plan like this one: slices are copied whole, a clone goes byte by byte.
fn copy(plan: &Plan) -> Plan {
    let entry = |e: &Entry| Entry {
        priority: e.priority,
        key: SmallVec::from_slice(&e.key),
        mask: SmallVec::from_slice(&e.mask),
        actions: e.actions.clone(),
    };
    Plan { entries: plan.entries.iter().map(entry).collect(), ..*plan }
}

/// Fields that lowering copies as they are, if the flow has the headers.
fn copied(flow: &Flow) -> SmallVec<[Field; 10]> {
    let (key, mask) = (&flow.matching.key, &flow.matching.mask.0);
    let mut fields = SmallVec::from_iter([Field::EthDst, Field::EthSrc]);
    let ty = if mask.eth_type.get() == 0xffff { key.eth_type.get() } else { 0 };
    match ty {
        eth_type::IPV4 => fields.extend([Field::Ipv4Src, Field::Ipv4Dst]),
        eth_type::IPV6 => fields.extend([Field::Ipv6Src, Field::Ipv6Dst]),
        _ => return fields,
    }
    fields.extend([Field::IpTos, Field::IpTtl]);
    // Types and codes of ICMP say what follows them.
    if mask.ip_proto == 0xff && matches!(key.ip_proto, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP) {
        fields.extend([Field::L4Src, Field::L4Dst]);
    }
    fields
}

/// Takes out the fields that an action looks at or changes: one that is set to what it is already is left out of an entry.
/// `None` for an action of which that is not known.
fn without_touched(actions: &[Action], fields: &mut SmallVec<[Field; 10]>) -> Option<()> {
    for action in actions {
        let effect = match action {
            Action::Output(_) | Action::Recirc(_) | Action::Drop(_) => continue,
            Action::PushVlan { .. } | Action::PopVlan | Action::Trunc { .. } => continue,
            Action::Set(header) => effect_of(header, None).ok()?,
            Action::SetMasked { value, mask } => effect_of(value, Some(mask)).ok()?,
            Action::DecTtl { .. } => {
                fields.retain(|field| *field != Field::IpTtl);
                continue;
            }
            _ => return None,
        };
        let SetEffect::Fields { fields: set, .. } = effect else { return None };
        fields.retain(|field| set.iter().all(|s| s.field != *field));
    }
    Some(())
}

impl Forms {
    /// Forgets everything: the pipeline is another.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The plan of a flow of a known form. What it says is to be checked by [`Forms::check`].
    pub(crate) fn plan(&mut self, flow: &Flow, rank: u16, excluded: Excluded) -> Option<Plan> {
        let n = self.0.iter().position(|known| known.is(flow, rank, excluded))?;
        self.0.swap(0, n);
        let known = self.0.first()?;
        let mut plan = copy(&known.plan);
        let entry = plan.entries.first_mut()?;
        known.values.iter().all(|v| write(&mut entry.key, &v.caps, v.of(flow))).then_some(plan)
    }

    /// Encodes a plan that [`Forms::plan`] gave just now, and compares what the bytes mean with the flow. False: it is not the
    /// same, or cannot be encoded; [`crate::raise::check`] says why.
    pub(crate) fn check<C: Codec + ?Sized>(
        &self,
        codec: &C,
        flow: &Flow,
        plan: &Plan,
        bytes: &mut Vec<u8>,
    ) -> bool {
        bytes.clear();
        let (Some(known), [entry]) = (self.0.first(), &plan.entries[..]) else { return false };
        let decoded = codec.encode(plan.table, entry, bytes).and_then(|()| codec.decode(plan.table, bytes));
        decoded.is_ok_and(|decoded| known.means(flow, plan, decoded))
    }

    /// Notes a plan that was checked in full.
    pub(crate) fn learn(
        &mut self,
        pipeline: &Pipeline,
        flow: &Flow,
        rank: u16,
        excluded: Excluded,
        plan: &Plan,
    ) {
        if let Some(known) = Known::of(pipeline, flow, rank, excluded, plan) {
            self.0.truncate(KEPT - 1);
            self.0.insert(0, known);
        }
    }
}

impl Known {
    fn of(pipeline: &Pipeline, flow: &Flow, rank: u16, excluded: Excluded, plan: &Plan) -> Option<Self> {
        let table = pipeline.table(plan.table)?;
        let (key, mask) = (&flow.matching.key, &flow.matching.mask);
        // Later stages depend on the other flows.
        if plan.entries.len() != 1 || plan.goto.is_some() || key.recirc_id & mask.0.recirc_id != 0 {
            return None;
        }
        let mut fields = copied(flow);
        without_touched(&flow.actions, &mut fields)?;
        let mut plan = copy(plan);
        let (mut rest, mut fixed) = (key.clone(), mask.0.clone());
        let mut values = SmallVec::new();
        for field in fields {
            if value_in(&mask.0, field) == 0 {
                continue;
            }
            let caps = *field_of(table, field).filter(|caps| caps.width == field.width())?;
            put_field(&mut fixed, field, 0);
            write(&mut plan.entries.first_mut()?.key, &caps, 0).then_some(())?;
            values.push(Value { field, caps });
        }
        rest.words_mut().iter_mut().zip(fixed.words()).for_each(|(word, bits)| *word &= bits);
        let (mask, actions) = (mask.clone(), flow.actions.clone());
        Some(Self { rank, excluded, mask, key: rest, fixed, actions, plan, values })
    }

    fn is(&self, flow: &Flow, rank: u16, excluded: Excluded) -> bool {
        let words = flow.matching.key.words().iter().zip(self.key.words()).zip(self.fixed.words());
        rank == self.rank
            && excluded == self.excluded
            && flow.matching.mask == self.mask
            && words.fold(0, |differ, ((a, b), bits)| differ | (a ^ b) & bits) == 0
            && flow.actions == self.actions
    }

    /// True if the entry that the bytes of a plan of this form mean is the flow.
    fn means(&self, flow: &Flow, plan: &Plan, mut decoded: Entry) -> bool {
        let [entry] = &self.plan.entries[..] else { return false };
        let same = plan.table == self.plan.table
            && (decoded.priority, &decoded.mask, &decoded.actions)
                == (entry.priority, &entry.mask, &entry.actions);
        same && self
            .values
            .iter()
            .all(|v| read(&decoded.key, &v.caps) == Some(v.of(flow)) && write(&mut decoded.key, &v.caps, 0))
            && decoded.key == entry.key
    }
}

#[cfg(test)]
mod tests;
