//! What a list of actions does to a packet, as a value that can be compared.
//!
//! The packet is symbolic: of each bit of its headers it is known what it is now, or that it is still what came in. Two
//! lists that give equal effects on the same match are the same to every packet of that match, whatever their form: a
//! masked set, the order of sets, a set of what is there already make no difference.

use crate::header::{SetEffect, effect_of};
use flowlift_driver::nic::Field;
use flowlift_flow::action::{TnlHeader, VxlanHeader};
use flowlift_flow::key::{VLAN_CFI, eth_type};
use flowlift_flow::{Action, Key, Match, PortNo};
use smallvec::SmallVec;

/// Words of a key that actions in hardware can change.
const WORDS: usize = 16;

/// A packet on its way through the actions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    /// Header bits that are known, as in a key.
    value: [u64; WORDS],
    mask: [u64; WORDS],
    /// Bits of ARP's operation that were set.
    arp_op: (u16, u16),
    /// How often an unknown TTL was decremented since it was last set.
    ttl_less: u32,
    /// Tags taken off what came in.
    popped: u32,
    /// Tags put on, the outermost last.
    pushed: SmallVec<[(u16, u16); 2]>,
    /// Outer headers put on, and how many of the pushed tags are within.
    outer: Option<Box<(VxlanHeader, usize)>>,
}

/// Something that leaves the actions, or a meter that may end them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    Output { port: PortNo, max_len: Option<u32>, packet: Packet },
    Recirc { id: u32, packet: Packet },
    Meter { id: u32, packet: Packet },
}

/// A place where a packet with an expired TTL leaves the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expiry {
    /// What was sent before.
    sent: usize,
    /// TTL that is looked at: known bits, their mask, decrements.
    ttl: (u8, u8, u32),
}

/// What a list of actions does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Effect {
    sent: SmallVec<[Sent; 2]>,
    expiries: SmallVec<[Expiry; 1]>,
}

/// Which tags a match guarantees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tags {
    /// Tags that are there.
    pub(crate) present: u32,
    /// There are no others.
    pub(crate) no_more: bool,
}

/// Puts a field's bits into a key.
pub(crate) fn put_field(key: &mut Key, field: Field, v: u128) {
    let mac = || {
        let mut m = [0; 6];
        m.copy_from_slice(&v.to_be_bytes()[10..]);
        m
    };
    let (low8, low16, low32) = (v as u8, v as u16, v as u32);
    match field {
        Field::EthDst => key.eth_dst = mac(),
        Field::EthSrc => key.eth_src = mac(),
        Field::EthType => key.eth_type = low16.into(),
        Field::Vlan0Tpid => key.vlan[0].tpid = low16.into(),
        Field::Vlan0Tci => key.vlan[0].tci = low16.into(),
        Field::Vlan1Tpid => key.vlan[1].tpid = low16.into(),
        Field::Vlan1Tci => key.vlan[1].tci = low16.into(),
        Field::IpProto | Field::ArpOp => key.ip_proto = low8,
        Field::IpTos => key.ip_tos = low8,
        Field::IpTtl => key.ip_ttl = low8,
        Field::Ipv4Src | Field::ArpSpa => key.ipv4_src = low32.into(),
        Field::Ipv4Dst | Field::ArpTpa => key.ipv4_dst = low32.into(),
        Field::Ipv6Src => key.ipv6_src = v.to_be_bytes(),
        Field::Ipv6Dst => key.ipv6_dst = v.to_be_bytes(),
        Field::Ipv6Label => key.ipv6_label = low32.into(),
        Field::L4Src => key.tp_src = low16.into(),
        Field::L4Dst => key.tp_dst = low16.into(),
        Field::TcpFlags => key.tcp_flags = low16.into(),
        Field::ArpSha => key.arp_sha = mac(),
        Field::ArpTha => key.arp_tha = mac(),
        // Metadata and tunnels are not among the headers of a packet in the tables.
        _ => {}
    }
}

impl Packet {
    fn of(m: &Match) -> Self {
        let (key, mask) = (m.key.words(), m.mask.0.words());
        let mut p = Self {
            value: [0; WORDS],
            mask: [0; WORDS],
            arp_op: (0, 0),
            ttl_less: 0,
            popped: 0,
            pushed: SmallVec::new(),
            outer: None,
        };
        for n in 0..WORDS {
            p.value[n] = key[n] & mask[n];
            p.mask[n] = mask[n];
        }
        p
    }

    fn set(&mut self, field: Field, value: u128, mask: u128) {
        if field == Field::ArpOp {
            self.arp_op.0 = self.arp_op.0 & !(mask as u16) | value as u16;
            self.arp_op.1 |= mask as u16;
            return;
        }
        let (mut v, mut m) = (Key::default(), Key::default());
        put_field(&mut v, field, value);
        put_field(&mut m, field, mask);
        for n in 0..WORDS {
            self.value[n] = self.value[n] & !m.words()[n] | v.words()[n];
            self.mask[n] |= m.words()[n];
        }
        if field == Field::IpTtl && mask == 0xff {
            self.ttl_less = 0;
        }
    }

    fn ttl(&self) -> (u8, u8, u32) {
        let byte = |words: &[u64; WORDS]| {
            let mut key = Key::default();
            key.words_mut()[..WORDS].copy_from_slice(words);
            key.ip_ttl
        };
        (byte(&self.value), byte(&self.mask), self.ttl_less)
    }

    fn dec_ttl(&mut self) {
        let (value, mask, _) = self.ttl();
        if mask == 0xff {
            self.set(Field::IpTtl, value.saturating_sub(1).into(), 0xff);
            return;
        }
        // Bits of it that were known say nothing after a decrement.
        let mut m = Key::default();
        put_field(&mut m, Field::IpTtl, 0xff);
        for n in 0..WORDS {
            self.value[n] &= !m.words()[n];
            self.mask[n] &= !m.words()[n];
        }
        self.ttl_less += 1;
    }
}

/// Runs a list.
struct Run {
    effect: Effect,
    tags: Tags,
    /// Metadata that only software carries was changed.
    metadata_changed: bool,
    stopped: bool,
}

impl Run {
    /// `None` if an action has no effect that could be compared.
    fn list(&mut self, actions: &[Action], packet: &mut Packet) -> Option<()> {
        let mut cut = None;
        for action in actions {
            if self.stopped {
                return Some(());
            }
            // A cut counts from where it stands; only directly before an output is that the same everywhere.
            if cut.is_some() && !matches!(action, Action::Output(_)) {
                return None;
            }
            match action {
                Action::Output(port) => self.effect.sent.push(Sent::Output {
                    port: *port,
                    max_len: cut.take(),
                    packet: packet.clone(),
                }),
                Action::Set(header) => self.set(effect_of(header, None).ok()?, packet)?,
                Action::SetMasked { value, mask } => self.set(effect_of(value, Some(mask)).ok()?, packet)?,
                Action::PushVlan { tpid, tci } => {
                    let known = matches!(*tpid, eth_type::VLAN | eth_type::QINQ) && tci & VLAN_CFI != 0;
                    packet.pushed.push(known.then_some((*tpid, *tci))?);
                }
                Action::PopVlan => self.pop(packet)?,
                Action::TnlPush(push) => match &push.header {
                    TnlHeader::Vxlan(header) if packet.outer.is_none() => {
                        packet.outer = Some(Box::new((*header, packet.pushed.len())));
                    }
                    _ => return None,
                },
                // Headers within outer ones are not changed.
                Action::DecTtl { .. } | Action::Recirc(_) if packet.outer.is_some() => return None,
                Action::DecTtl { .. } => {
                    self.effect.expiries.push(Expiry { sent: self.effect.sent.len(), ttl: packet.ttl() });
                    packet.dec_ttl();
                }
                Action::Trunc { max_len } => cut = Some(*max_len),
                Action::Recirc(id) if !self.metadata_changed => {
                    self.effect.sent.push(Sent::Recirc { id: *id, packet: packet.clone() });
                }
                // It measures the packet as it is now.
                Action::Meter(id) => self.effect.sent.push(Sent::Meter { id: *id, packet: packet.clone() }),
                Action::Sample { probability: 0, .. } | Action::CtClear => {}
                Action::Clone(inner) | Action::Sample { probability: u32::MAX, actions: inner } => {
                    let before = self.metadata_changed;
                    self.list(inner, &mut packet.clone())?;
                    self.metadata_changed = before;
                    self.stopped = false;
                }
                Action::Drop(_) => self.stopped = true,
                _ => return None,
            }
        }
        cut.is_none().then_some(())
    }

    fn set(&mut self, effect: SetEffect, packet: &mut Packet) -> Option<()> {
        match effect {
            SetEffect::Fields { .. } if packet.outer.is_some() => return None,
            SetEffect::Software => return None,
            SetEffect::Metadata(_) => self.metadata_changed = true,
            SetEffect::Fields { fields, .. } => {
                fields.iter().for_each(|s| packet.set(s.field, s.value, s.mask));
            }
        }
        Some(())
    }

    fn pop(&mut self, packet: &mut Packet) -> Option<()> {
        if packet.outer.as_ref().is_some_and(|outer| outer.1 == packet.pushed.len()) {
            // No tag is outside the outer headers.
            return Some(());
        }
        if packet.pushed.pop().is_some() {
            return Some(());
        }
        if packet.popped < self.tags.present {
            packet.popped += 1;
            return Some(());
        }
        self.tags.no_more.then_some(())
    }
}

/// The effect of `actions` on packets of a match; `None` if an action has none that could be compared.
pub(crate) fn effect(m: &Match, tags: Tags, actions: &[Action]) -> Option<Effect> {
    let mut run = Run { effect: Effect::default(), tags, metadata_changed: false, stopped: false };
    run.list(actions, &mut Packet::of(m))?;
    Some(run.effect)
}
