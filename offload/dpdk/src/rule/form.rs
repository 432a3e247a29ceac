//! A pattern's form: everything of it but the values of addresses, ports and the like.
//!
//! An application creates thousands of rules that differ in nothing else. What is decided over a rule, and how its match is
//! laid out, follows from the form alone: no decision of the translation ([`super::pattern`]) or the planner depends on such
//! a value. So the first rule of a form is read, translated and lowered; for those after it, the values are copied into place.

use super::pattern::{Contents, Field, Item, ItemKind, contents};
use flowlift_flow::Key;
use smallvec::SmallVec;
use std::mem::offset_of;

/// An item of a form.
#[derive(Debug, Clone)]
struct FormItem {
    kind: ItemKind,
    /// `spec` is there, and then its bits that are no values; and which bits these are.
    spec: Option<Contents>,
    fixed: Contents,
    mask: Option<Contents>,
}

/// A value of a pattern: some bytes of an item, and where they are in the words of the match.
#[derive(Debug, Clone, Copy)]
struct Value {
    item: usize,
    at: usize,
    len: usize,
    /// Word, counted as in the form; byte in it.
    word: usize,
    byte: usize,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Form {
    items: Vec<FormItem>,
    values: Vec<Value>,
    /// Effective masks of the items' values, in the order of `values`.
    masks: Vec<[u8; 8]>,
    /// The words of the match, without the values.
    words: SmallVec<[u64; 5]>,
}

/// First byte in a key of a value whose bits are copied there as they are; `None` for a field that is no value, or says more.
fn place_of(field: Field, len: usize, tags: usize) -> Option<usize> {
    let tci = |n: usize| {
        let tag = size_of::<flowlift_flow::VlanTag>();
        offset_of!(Key, vlan) + n * tag + offset_of!(flowlift_flow::VlanTag, tci)
    };
    Some(match field {
        Field::EthDst => offset_of!(Key, eth_dst),
        Field::EthSrc => offset_of!(Key, eth_src),
        Field::Tci => tci(tags.checked_sub(1)?),
        Field::Tos => offset_of!(Key, ip_tos),
        Field::Ttl => offset_of!(Key, ip_ttl),
        Field::Ipv4Src => offset_of!(Key, ipv4_src),
        Field::Ipv4Dst => offset_of!(Key, ipv4_dst),
        Field::Ipv6Src => offset_of!(Key, ipv6_src),
        Field::Ipv6Dst => offset_of!(Key, ipv6_dst),
        // Types and codes of ICMP are bytes, and say what follows them.
        Field::L4Src if len == 2 => offset_of!(Key, tp_src),
        Field::L4Dst if len == 2 => offset_of!(Key, tp_dst),
        Field::ArpSha => offset_of!(Key, arp_sha),
        Field::ArpTha => offset_of!(Key, arp_tha),
        _ => return None,
    })
}

impl Form {
    /// The form of a pattern that was translated: `words` are the numbers of the words of a key that its match touches, and
    /// `values` what it has there. `None` for a pattern with ranges.
    pub fn of(items: &[Item<'_>], words: impl Iterator<Item = usize>, values: &[u64]) -> Option<Self> {
        let numbers: SmallVec<[usize; 8]> = words.collect();
        let mut form = Self {
            items: Vec::with_capacity(items.len()),
            values: Vec::new(),
            masks: Vec::new(),
            words: SmallVec::from_slice(values),
        };
        let mut tags = 0;
        for (n, item) in items.iter().enumerate() {
            if item.last.is_some() {
                return None;
            }
            let (spec, mut fixed) = contents(n, item).ok()?;
            let bits = fixed;
            tags += usize::from(item.kind == ItemKind::Vlan);
            for (at, len, field) in item.kind.fields() {
                let Some(place) = place_of(*field, *len, tags) else { continue };
                form.take_out((n, *at, *len), place, &bits, &numbers)?;
                fixed.get_mut(*at..at + len)?.fill(0);
            }
            let mut known = spec;
            known.iter_mut().zip(&fixed).for_each(|(byte, bits)| *byte &= bits);
            let mask = item.mask.map(|mask| {
                let mut all = [0; size_of::<Contents>()];
                all.iter_mut().zip(mask).for_each(|(to, from)| *to = *from);
                all
            });
            form.items.push(FormItem { kind: item.kind, spec: item.spec.map(|_| known), fixed, mask });
        }
        Some(form)
    }

    /// Notes a value at most a word of which is copied at a time, and takes its bits out of the words.
    fn take_out(
        &mut self,
        (item, at, len): (usize, usize, usize),
        place: usize,
        bits: &Contents,
        numbers: &[usize],
    ) -> Option<()> {
        let mut done = 0;
        while done < len {
            let (number, byte) = ((place + done) / 8, (place + done) % 8);
            let part = (len - done).min(8 - byte);
            let mask = bits.get(at + done..at + done + part)?;
            if mask.iter().any(|b| *b != 0) {
                let word = numbers.iter().position(|n| *n == number)?;
                let mut all = [0; 8];
                all.iter_mut().zip(mask).for_each(|(to, from)| *to = *from);
                let mut left = self.words.get(word)?.to_ne_bytes();
                left.iter_mut().skip(byte).zip(mask).for_each(|(b, bits)| *b &= !bits);
                *self.words.get_mut(word)? = u64::from_ne_bytes(left);
                self.values.push(Value { item, at: at + done, len: part, word, byte });
                self.masks.push(all);
            }
            done += part;
        }
        Some(())
    }

    /// The values of a pattern's match, if it is of this form.
    pub fn read(&self, items: &[Item<'_>]) -> Option<SmallVec<[u64; 5]>> {
        if items.len() != self.items.len() || !items.iter().zip(&self.items).all(|(item, form)| form.is(item))
        {
            return None;
        }
        let mut words = SmallVec::from_slice(&self.words);
        for (value, mask) in self.values.iter().zip(&self.masks) {
            let given = items.get(value.item)?.spec?.get(value.at..value.at + value.len)?;
            let mut bytes = [0; 8];
            let place = bytes.get_mut(value.byte..)?;
            place.iter_mut().zip(given).zip(mask).for_each(|((to, from), bits)| *to = from & bits);
            *words.get_mut(value.word)? |= u64::from_ne_bytes(bytes);
        }
        Some(words)
    }
}

impl FormItem {
    fn is(&self, item: &Item<'_>) -> bool {
        let same =
            |ours: &Option<Contents>, given: Option<&[u8]>, bits: Option<&Contents>| match (ours, given) {
                (None, None) => true,
                (Some(ours), Some(given)) => {
                    let all = &[0xff; size_of::<Contents>()];
                    let differs = |((a, b), bits): ((&u8, &u8), &u8)| (a ^ b) & bits;
                    ours.iter()
                        .zip(given)
                        .zip(bits.unwrap_or(all))
                        .map(differs)
                        .fold(0, |any, bits| any | bits)
                        == 0
                }
                _ => false,
            };
        item.kind == self.kind
            && item.last.is_none()
            && same(&self.mask, item.mask, None)
            && same(&self.spec, item.spec, Some(&self.fixed))
    }
}

#[cfg(test)]
mod tests;
