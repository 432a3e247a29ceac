//! Raising: what an entry, as the driver would hand it to the device, means in a flow's terms; and the comparison of
//! that with the flow.
//!
//! This is the second reading that every plan passes before it is installed, and the first of a read-back: it starts
//! from bytes, asks the capability records where fields lie, and shares no decision with the lowering.

use crate::effect::{Tags, effect, put_field};
use crate::keyfields::{ZEROS, part_of};
use crate::lower::Plan;
use crate::lower::matching::{is_extension, is_neighbour_discovery};
use crate::pipeline::{Pipeline, all_bits, read};
use crate::refusal::{Cause, Difference, Limit, Refusal};
use flowlift_driver::nic::{
    Entry, Field, FieldValue, Nic, NicAction, NicError, ParserCaps, Stage, TableCaps, TableId,
};
use flowlift_flow::action::{TnlHeader, TnlPush, VxlanHeader};
use flowlift_flow::key::{VLAN_CFI, VLAN_MAX, eth_type, ip_proto};
use flowlift_flow::{Action, AttrSet, Flow, Header, Key, Mask, Match, PortNo};
use smallvec::SmallVec;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The driver's encoder and decoder: all of a [`Nic`] that lowering needs.
pub trait Codec {
    /// The bytes of an entry as the device will see them, appended to `out`.
    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError>;
    /// The entry that such bytes mean.
    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError>;
}

impl<N: Nic + ?Sized> Codec for N {
    fn encode(&self, table: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        Nic::encode(self, table, entry, out)
    }
    fn decode(&self, table: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        Nic::decode(self, table, bytes)
    }
}

/// An entry in a flow's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// What it matches, constants of every packet in the NIC's tables included.
    pub matching: Match,
    /// What it does.
    pub actions: Vec<Action>,
    /// Where it goes to.
    pub goto: Option<Stage>,
}

/// Says what an entry means in a flow's terms.
pub fn raise(pipeline: &Pipeline, table: TableId, entry: &Entry) -> Result<Raised, Difference> {
    let caps = pipeline.table(table).ok_or(Difference::Codec)?;
    let (mut key, mut mask) = (Key::default(), Key::default());
    let wide = fields(pipeline, caps, entry, &mut key, &mut mask)?;
    if caps.stage == Stage(0) {
        mask.recirc_id = u32::MAX;
    }
    if mask.eth_type.get() == 0xffff && key.eth_type.get() == eth_type::ARP {
        // The key has the low byte of the operation, or 0 above 255: only with the upper byte excluded are they equal.
        if mask.ip_proto != 0 && wide {
            return Err(Difference::Match("arp.op"));
        }
    }
    constants(pipeline.caps().parser, &mut key, &mut mask);
    let matching = Match { key, mask: Mask(mask), attrs: AttrSet::default() };
    let (actions, goto) = raise_actions(pipeline, &matching, &entry.actions)?;
    let from_any = matching.mask.0.in_port != u32::MAX;
    let back = |a: &Action| matches!(a, Action::Output(to) if from_any || to.0 == matching.key.in_port);
    if !caps.output_to_ingress && actions.iter().any(back) {
        return Err(Difference::Actions);
    }
    Ok(Raised { matching, actions, goto })
}

/// Reads every field of the entry into key and mask. True if it matches ARP operations above 255.
fn fields(
    pipeline: &Pipeline,
    caps: &TableCaps,
    entry: &Entry,
    key: &mut Key,
    mask: &mut Key,
) -> Result<bool, Difference> {
    if entry.key.len() != usize::from(caps.key_len) || entry.mask.len() != usize::from(caps.key_len) {
        return Err(Difference::StrayBits);
    }
    let ones = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
    let (mut key_ones, mut mask_ones, mut wide) = (0, 0, false);
    for f in &caps.fields {
        let value = read(&entry.key, f).ok_or(Difference::StrayBits)?;
        let bits = read(&entry.mask, f).ok_or(Difference::StrayBits)?;
        if value & !bits != 0 || bits & !all_bits(f.width) != 0 {
            return Err(Difference::StrayBits);
        }
        key_ones += value.count_ones();
        mask_ones += bits.count_ones();
        if bits == 0 {
            continue;
        }
        match f.field {
            Field::InPort => {
                let nic = u16::try_from(value).map_err(|_| Difference::StrayBits)?;
                let port = pipeline.ports().dp(flowlift_driver::nic::NicPort(nic));
                key.in_port = port.ok_or(Difference::Match("in_port"))?.0;
                mask.in_port = if bits == all_bits(f.width) { u32::MAX } else { 0 };
            }
            Field::Metadata => {
                (key.recirc_id, mask.recirc_id) = (value as u32, bits as u32);
            }
            Field::ArpOp => {
                wide |= f.width > 8 && bits >> 8 != all_bits(f.width) >> 8 || value >> 8 != 0;
                put_field(key, f.field, value);
                put_field(mask, f.field, bits);
            }
            Field::TunId | Field::TunIpv4Src | Field::TunIpv4Dst => return Err(Difference::Match("tunnel")),
            field => {
                put_field(key, field, value);
                put_field(mask, field, bits);
            }
        }
    }
    if ones(&entry.key) != key_ones || ones(&entry.mask) != mask_ones {
        return Err(Difference::StrayBits);
    }
    Ok(wide)
}

/// Adds to the mask what is 0 in every packet that gets as far as a table and has the rest of the match.
fn constants(parser: ParserCaps, key: &mut Key, mask: &mut Key) {
    let typed = mask.eth_type.get() == 0xffff;
    let ty = key.eth_type.get();
    let (v4, v6) = (typed && ty == eth_type::IPV4, typed && ty == eth_type::IPV6);
    let arp = typed && ty == eth_type::ARP;
    let ip = v4 || v6;
    let proto = (ip && mask.ip_proto == 0xff).then_some(key.ip_proto);
    let plain_v6 = v6 && proto.is_some_and(|p| !is_extension(p));
    let plain = typed && (!v6 || plain_v6);
    let zeros = ZEROS.always.iter().zip(&ZEROS.typed).zip(&ZEROS.no_extensions);
    for (word, ((always, of_type), no_extensions)) in mask.words_mut().iter_mut().zip(zeros) {
        *word |= *always;
        *word |= if typed { *of_type } else { 0 };
        *word |= if plain { *no_extensions } else { 0 };
    }
    if !parser.service_tags && mask.vlan[0].tci.get() & key.vlan[0].tci.get() & VLAN_CFI != 0 {
        (key.vlan[0].tpid, mask.vlan[0].tpid) = (eth_type::VLAN.into(), 0xffff.into());
    }
    let absent = |n: usize| {
        // An exact Ethernet type that is no tag's leaves no room for a tag that the parser does not take.
        if !typed && !parser.service_tags || n >= usize::from(parser.tags) {
            return typed && !matches!(ty, eth_type::VLAN | eth_type::QINQ);
        }
        (mask.vlan[n].tci.get() & VLAN_CFI != 0 && key.vlan[n].tci.get() & VLAN_CFI == 0)
            || (mask.vlan[n].tpid.get() == 0xffff && key.vlan[n].tpid.get() == 0)
    };
    if let Some(first) = (0..VLAN_MAX).find(|n| absent(*n)) {
        for tag in &mut mask.vlan[first..] {
            (tag.tci, tag.tpid) = (0xffff.into(), 0xffff.into());
        }
    }
    // No fragment gets past a parser that takes packets whole, and no other packet has the field.
    if parser.whole || typed && !ip {
        mask.ip_frag = 0xff;
    }
    if !typed {
        return;
    }
    if !v4 && !arp {
        (mask.ipv4_src, mask.ipv4_dst) = (u32::MAX.into(), u32::MAX.into());
    }
    if v6 {
        mask.ipv6_label = (mask.ipv6_label.get() | !0xf_ffff).into();
    } else {
        (mask.ipv6_src, mask.ipv6_dst) = ([0xff; 16], [0xff; 16]);
        (mask.nd_target, mask.ipv6_label) = ([0xff; 16], u32::MAX.into());
    }
    if !ip {
        (mask.ip_tos, mask.ip_ttl) = (0xff, 0xff);
        if !arp {
            mask.ip_proto = 0xff;
        }
    }
    if !arp && !v6 {
        (mask.arp_sha, mask.arp_tha) = ([0xff; 6], [0xff; 6]);
    }
    transport_constants(key, mask, ip, v6, proto);
}

fn transport_constants(key: &Key, mask: &mut Key, ip: bool, v6: bool, proto: Option<u8>) {
    let icmp = proto == Some(if v6 { ip_proto::ICMPV6 } else { ip_proto::ICMP });
    let ports = matches!(proto, Some(ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP));
    if !ip || proto.is_some() && !icmp && !ports {
        (mask.tp_src, mask.tp_dst) = (0xffff.into(), 0xffff.into());
    }
    if icmp {
        mask.tp_src = (mask.tp_src.get() | 0xff00).into();
        mask.tp_dst = (mask.tp_dst.get() | 0xff00).into();
    }
    if !ip || proto.is_some_and(|p| p != ip_proto::TCP) {
        mask.tcp_flags = 0xffff.into();
    } else if proto.is_some() {
        mask.tcp_flags = (mask.tcp_flags.get() | 0xf000).into();
    }
    let other_type = mask.tp_src.get() == 0xffff && !is_neighbour_discovery(key.tp_src.get());
    if v6 && proto.is_some() && (!icmp || other_type) {
        mask.nd_target = [0xff; 16];
        (mask.arp_sha, mask.arp_tha) = ([0xff; 6], [0xff; 6]);
    }
}

fn u128_of(v: &FieldValue) -> u128 {
    u128::from_be_bytes(*v)
}

/// An entry's actions in a flow's terms.
fn raise_actions(
    pipeline: &Pipeline,
    m: &Match,
    actions: &[NicAction],
) -> Result<(Vec<Action>, Option<Stage>), Difference> {
    let mut out = Vec::with_capacity(actions.len());
    let mut metadata = None;
    for (n, action) in actions.iter().enumerate() {
        match action {
            NicAction::Output(nic) => {
                out.push(Action::Output(pipeline.ports().dp(*nic).ok_or(Difference::Actions)?));
            }
            NicAction::SetField { field, value, mask } => {
                out.push(set_of(m, *field, u128_of(value), u128_of(mask)).ok_or(Difference::Actions)?);
            }
            NicAction::PushVlan { tpid, tci } if tci & VLAN_CFI == 0 => {
                out.push(Action::PushVlan { tpid: *tpid, tci: tci | VLAN_CFI });
            }
            NicAction::PopVlan => out.push(Action::PopVlan),
            NicAction::VxlanEncap(template) => {
                let header = TnlHeader::Vxlan(VxlanHeader::new(template).ok_or(Difference::Actions)?);
                // The port of the tunnel is the datapath's alone; where the packet goes, the output says.
                let (tnl_port, out_port) = (PortNo(0), PortNo(0));
                out.push(Action::TnlPush(Box::new(TnlPush { tnl_port, out_port, header })));
            }
            // What expired is software's, which has the flow's exception.
            NicAction::DecTtl => out.push(Action::DecTtl { exception: Vec::new() }),
            NicAction::Trunc(max_len) => out.push(Action::Trunc { max_len: *max_len }),
            NicAction::Meter(number) => {
                out.push(Action::Meter(pipeline.meter_of(*number).ok_or(Difference::Actions)?));
            }
            NicAction::SetMetadata(id) => metadata = Some(*id),
            NicAction::Goto(stage) if n + 1 == actions.len() => {
                out.push(Action::Recirc(metadata.ok_or(Difference::Actions)?));
                return Ok((out, Some(*stage)));
            }
            NicAction::Trap if n + 1 == actions.len() => {
                let id =
                    metadata.filter(|id| pipeline.resumes_in_software(*id)).ok_or(Difference::Actions)?;
                out.push(Action::Recirc(id));
                return Ok((out, None));
            }
            _ => return Err(Difference::Actions),
        }
    }
    if metadata.is_some() { Err(Difference::Actions) } else { Ok((out, None)) }
}

fn mac_of(v: u128) -> [u8; 6] {
    let mut m = [0; 6];
    m.copy_from_slice(&v.to_be_bytes()[10..]);
    m
}

/// A set of one field as a set of its header.
fn set_of(m: &Match, field: Field, value: u128, mask: u128) -> Option<Action> {
    Some(Action::SetMasked { value: header_of(m, field, value)?, mask: header_of(m, field, mask)? })
}

/// The header with only this field, the others zero.
fn header_of(m: &Match, field: Field, v: u128) -> Option<Header> {
    let ty = (m.mask.0.eth_type.get() == 0xffff).then(|| m.key.eth_type.get());
    let proto = (m.mask.0.ip_proto == 0xff).then_some(m.key.ip_proto);
    let eth = |src, dst| Header::Ethernet { src, dst };
    let v4 = |src: u32, dst: u32, tos, ttl| Header::Ipv4 {
        src: Ipv4Addr::from(src),
        dst: Ipv4Addr::from(dst),
        proto: 0,
        tos,
        ttl,
        frag: 0,
    };
    let v6 = |src: u128, dst: u128, label, tclass, hlimit| Header::Ipv6 {
        src: Ipv6Addr::from(src),
        dst: Ipv6Addr::from(dst),
        label,
        proto: 0,
        tclass,
        hlimit,
        frag: 0,
    };
    let l4 = |src, dst| match (ty?, proto?) {
        (eth_type::IPV4 | eth_type::IPV6, ip_proto::TCP) => Some(Header::Tcp { src, dst }),
        (eth_type::IPV4 | eth_type::IPV6, ip_proto::UDP) => Some(Header::Udp { src, dst }),
        (eth_type::IPV4 | eth_type::IPV6, ip_proto::SCTP) => Some(Header::Sctp { src, dst }),
        _ => None,
    };
    let none = Ipv4Addr::UNSPECIFIED;
    let arp = |sip, tip, op, sha, tha| Header::Arp { sip, tip, op, sha, tha };
    let (low8, low16, low32) = (v as u8, v as u16, v as u32);
    match (field, ty) {
        (Field::EthSrc, _) => Some(eth(mac_of(v), [0; 6])),
        (Field::EthDst, _) => Some(eth([0; 6], mac_of(v))),
        (Field::Ipv4Src, Some(eth_type::IPV4)) => Some(v4(low32, 0, 0, 0)),
        (Field::Ipv4Dst, Some(eth_type::IPV4)) => Some(v4(0, low32, 0, 0)),
        (Field::IpTos, Some(eth_type::IPV4)) => Some(v4(0, 0, low8, 0)),
        (Field::IpTtl, Some(eth_type::IPV4)) => Some(v4(0, 0, 0, low8)),
        (Field::Ipv6Src, Some(eth_type::IPV6)) => Some(v6(v, 0, 0, 0, 0)),
        (Field::Ipv6Dst, Some(eth_type::IPV6)) => Some(v6(0, v, 0, 0, 0)),
        (Field::Ipv6Label, Some(eth_type::IPV6)) => Some(v6(0, 0, low32, 0, 0)),
        (Field::IpTos, Some(eth_type::IPV6)) => Some(v6(0, 0, 0, low8, 0)),
        (Field::IpTtl, Some(eth_type::IPV6)) => Some(v6(0, 0, 0, 0, low8)),
        (Field::L4Src, _) => l4(low16, 0),
        (Field::L4Dst, _) => l4(0, low16),
        (Field::ArpOp, Some(eth_type::ARP)) => Some(arp(none, none, low16, [0; 6], [0; 6])),
        (Field::ArpSpa, Some(eth_type::ARP)) => Some(arp(low32.into(), none, 0, [0; 6], [0; 6])),
        (Field::ArpTpa, Some(eth_type::ARP)) => Some(arp(none, low32.into(), 0, [0; 6], [0; 6])),
        (Field::ArpSha, Some(eth_type::ARP)) => Some(arp(none, none, 0, mac_of(v), [0; 6])),
        (Field::ArpTha, Some(eth_type::ARP)) => Some(arp(none, none, 0, [0; 6], mac_of(v))),
        _ => None,
    }
}

/// Tags that a match guarantees.
fn tags_of(m: &Match) -> Tags {
    let mut tags = Tags { present: 0, no_more: false };
    for n in 0..VLAN_MAX {
        let (k, mask) = (&m.key.vlan[n], &m.mask.0.vlan[n]);
        let says = mask.tci.get() & VLAN_CFI != 0;
        let present = says && k.tci.get() & VLAN_CFI != 0 || mask.tpid.get() == 0xffff && k.tpid.get() != 0;
        if !present {
            tags.no_more = says || mask.tpid.get() == 0xffff;
            return tags;
        }
        tags.present += 1;
    }
    tags
}

/// Compares an entry, as it is or would be in the device, with the flow that it stands for.
pub fn compare(
    pipeline: &Pipeline,
    flow: &Flow,
    table: TableId,
    entry: &Entry,
) -> Result<Raised, Difference> {
    let raised = raise(pipeline, table, entry)?;
    let (want, have) = (&flow.matching, &raised.matching);
    let words = want.mask.0.words().iter().zip(have.mask.0.words());
    let values = want.key.words().iter().zip(have.key.words());
    for (n, ((asked, given), (value, other))) in words.zip(values).enumerate() {
        let wrong = (asked & !given) | ((value ^ other) & asked);
        if wrong != 0 {
            let byte = wrong.to_ne_bytes().iter().position(|b| *b != 0).unwrap_or(0);
            return Err(Difference::Match(part_of(8 * n + byte).0));
        }
    }
    // The raised match is the narrower one, so what it guarantees is the more.
    let tags = tags_of(have);
    let does = effect(have, tags, &raised.actions).ok_or(Difference::Actions)?;
    let asked = effect(have, tags, &flow.actions).ok_or(Difference::Actions)?;
    if does == asked { Ok(raised) } else { Err(Difference::Actions) }
}

/// Lengths of encoded entries that lie one after the other.
pub type Lengths = SmallVec<[usize; 1]>;

/// Checks a plan before it is installed: each entry is encoded by the driver, decoded again, raised and compared.
/// The bytes of all entries are appended to `bytes`, and their lengths returned.
pub fn check<C: Codec + ?Sized>(
    pipeline: &Pipeline,
    codec: &C,
    flow: &Flow,
    plan: &Plan,
    bytes: &mut Vec<u8>,
) -> Result<Lengths, Refusal> {
    let table = pipeline.table(plan.table).map(Into::into);
    let bug = |d| Refusal { cause: Cause::LoweringBug(d), table };
    let mut lengths = Lengths::new();
    for entry in &plan.entries {
        let start = bytes.len();
        codec.encode(plan.table, entry, bytes).map_err(|e| match e {
            NicError::Invalid(_) => Refusal { cause: Cause::Limit(Limit::Encoding), table },
            NicError::Inexpressible(what) => {
                Refusal { cause: Cause::Limit(Limit::Inexpressible(what)), table }
            }
            _ => bug(Difference::Codec),
        })?;
        let decoded = codec
            .decode(plan.table, bytes.get(start..).unwrap_or(&[]))
            .map_err(|_| bug(Difference::Codec))?;
        let raised = compare(pipeline, flow, plan.table, &decoded).map_err(bug)?;
        if raised.goto != plan.goto.map(|(_, stage)| stage) || decoded.priority != entry.priority {
            return Err(bug(Difference::Actions));
        }
        lengths.push(bytes.len() - start);
    }
    Ok(lengths)
}
