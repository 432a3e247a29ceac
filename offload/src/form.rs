//! Flows of one form: they differ in the values of addresses, ports and the like, and in nothing else.
//!
//! No decision of lowering or raising depends on such a value, as long as no action touches its field: it is copied into the entry's key,
//! and read from there. So of many flows of one form the first is lowered, raised and compared. For those after it the plan is that one's
//! with their own values in place of the last one's, and the comparison what is left of it: the entry that the encoded bytes mean has the
//! same mask, priority and actions, the same key but for the values, and the flow's own values where the capability records have their
//! fields.

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
    /// Words of a flow's key that have more than values: number, the first flow's bits that are none, and which bits these are.
    fixed: SmallVec<[(u8, u64, u64); 8]>,
    actions: Vec<Action>,
    /// The plan of the flow that was planned last, and its entry's key without the values.
    plan: Plan,
    blank: SmallVec<[u8; 64]>,
    values: SmallVec<[Value; 8]>,
}

/// The forms, the one that was met last first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forms(Vec<Known>);

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
            Action::Output(_) | Action::Recirc(_) | Action::Drop(_) | Action::Meter(_) => continue,
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

    /// The plan of a flow of a known form, encoded at the end of `bytes`, once what the bytes mean was compared with the flow. `None`:
    /// the form is not known; or it is not the same, or cannot be encoded, and a plan that is made anew will say why.
    pub(crate) fn plan<C: Codec + ?Sized>(
        &mut self,
        flow: &Flow,
        rank: u16,
        excluded: Excluded,
        codec: &C,
        bytes: &mut Vec<u8>,
    ) -> Option<&Plan> {
        let n = self.0.iter().position(|known| known.is(flow, rank, excluded))?;
        self.0.swap(0, n);
        let known = self.0.first_mut()?;
        let start = bytes.len();
        known.fill_in(flow)?;
        let [entry] = &known.plan.entries[..] else { return None };
        codec.encode(known.plan.table, entry, bytes).ok()?;
        let decoded = codec.decode(known.plan.table, bytes.get(start..)?).ok()?;
        known.means(flow, decoded).then_some(&known.plan)
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
        let mut blank = plan.entries.first()?.key.clone();
        let mut fixed = mask.0.clone();
        let mut values = SmallVec::new();
        for field in fields {
            if value_in(&mask.0, field) == 0 {
                continue;
            }
            let caps = *field_of(table, field).filter(|caps| caps.width == field.width())?;
            put_field(&mut fixed, field, 0);
            write(&mut blank, &caps, 0).then_some(())?;
            values.push(Value { field, caps });
        }
        let words = key.words().iter().zip(fixed.words()).enumerate();
        let fixed =
            words.filter(|(_, (_, bits))| **bits != 0).map(|(n, (key, bits))| (n as u8, key & bits, *bits));
        let fixed = fixed.collect();
        let (mask, actions, plan) = (mask.clone(), flow.actions.clone(), plan.clone());
        Some(Self { rank, excluded, mask, fixed, actions, plan, blank, values })
    }

    fn is(&self, flow: &Flow, rank: u16, excluded: Excluded) -> bool {
        let words = flow.matching.key.words();
        let same = |(n, key, bits): &(u8, u64, u64)| words[usize::from(*n)] & bits == *key;
        rank == self.rank
            && excluded == self.excluded
            && self.fixed.iter().all(same)
            && flow.matching.mask == self.mask
            && flow.actions == self.actions
    }

    /// Gives the plan's entry the values of a flow.
    fn fill_in(&mut self, flow: &Flow) -> Option<()> {
        let key = &mut self.plan.entries.first_mut()?.key;
        self.values.iter().all(|v| write(key, &v.caps, v.of(flow))).then_some(())
    }

    /// True if the entry that the bytes of a plan of this form mean is the flow.
    fn means(&self, flow: &Flow, mut decoded: Entry) -> bool {
        let [entry] = &self.plan.entries[..] else { return false };
        (decoded.priority, &decoded.mask, &decoded.actions) == (entry.priority, &entry.mask, &entry.actions)
            && self.values.iter().all(|v| {
                read(&decoded.key, &v.caps) == Some(v.of(flow)) && write(&mut decoded.key, &v.caps, 0)
            })
            && decoded.key == self.blank
    }
}

#[cfg(test)]
mod tests;
