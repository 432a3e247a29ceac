//! Running a [`Program`] on a packet.

use super::l3::{IPV6_LEN, Ttl};
use super::state::Headers;
use super::{
    ActionUpcall, Bits, Block, CheckPktLen, Code, Context, DropReason, Op, Program, PsampleRecord, Sink,
    hash, l2, l3, l4, vxlan,
};
use crate::extract::{KeyBuf, L3Kind, L4Kind, Layers, extract_packet};
use crate::packet::{FlowHash, Outgoing, Packet, PacketType, finish};
use flowlift_flow::action::{HashAlg, VxlanHeader};
use flowlift_flow::{Key, PortNo};

/// Runs `program` on `packet`, which `key` and `layers` were extracted from. The packet is used up: what it holds
/// afterwards is undefined, and its buffer can be filled again.
#[inline]
pub fn execute<S: Sink>(
    program: &Program,
    packet: &mut Packet,
    key: &Key,
    layers: &Layers,
    ctx: &mut Context,
    sink: &mut S,
) {
    match &program.0 {
        Code::Output(port) => output(sink, *port, packet),
        Code::List(ops) if ops.is_empty() => sink.dropped(DropReason::NoActions),
        Code::List(ops) => {
            let mut run = Run { key, layers, probability: u32::MAX, ctx, sink };
            run.list(ops, packet, Headers::new(packet, key, layers), true);
        }
    }
}

/// Sends a packet to a port.
#[inline(always)]
fn output<S: Sink>(sink: &mut S, port: PortNo, packet: &mut Packet) {
    if packet.is_plain() {
        return sink.output(port, packet.take_for_output());
    }
    sink.output_with(port, packet.take_with_all());
}

/// What all lists of one execution share.
struct Run<'a, S> {
    key: &'a Key,
    layers: &'a Layers,
    /// Probability of the innermost sample action.
    probability: u32,
    ctx: &'a mut Context,
    sink: &'a mut S,
}

/// Whether a list goes on.
enum Next {
    Go,
    End,
}

impl<S: Sink> Run<'_, S> {
    /// Runs a list. If `owned`, nobody needs the packet afterwards, and the last action may use it up.
    fn list(&mut self, ops: &[Op], packet: &mut Packet, mut headers: Headers, owned: bool) {
        for (i, op) in ops.iter().enumerate() {
            if let (Op::PushVxlan(header), true) = (op, packet.offload.is_some()) {
                return self.push_segments(
                    header,
                    ops.get(i + 1..).unwrap_or_default(),
                    packet,
                    &mut headers,
                );
            }
            let last = owned && i + 1 == ops.len();
            if let Next::End = self.op(op, packet, &mut headers, last) {
                return;
            }
        }
    }

    fn op(&mut self, op: &Op, packet: &mut Packet, headers: &mut Headers, last: bool) -> Next {
        match op {
            Op::Output(port) => output(self.sink, *port, packet),
            Op::Userspace(to) => {
                let hash = packet.flow_hash.known();
                let whole = packet.len();
                // Whether the packet begins with an Ethernet header is read from the key.
                let retyped = (packet.packet_type.0 != self.key.packet_type.get())
                    .then(|| retyped(self.key, packet.packet_type));
                let outgoing = packet.take_with_all();
                let Outgoing { bytes, tunnel: egress_tunnel, .. } = outgoing;
                let cut = whole - bytes.len();
                let actions = to.actions.as_deref();
                outgoing.finish(|packet| {
                    self.sink.upcall(ActionUpcall {
                        key: retyped.as_deref().unwrap_or(self.key),
                        userspace: &to.userspace,
                        actions,
                        packet,
                        original_len: packet.len() + cut,
                        hash,
                        egress_tunnel,
                    });
                });
            }
            Op::SetEth(new) => l2::set_eth(packet, new),
            Op::SetIpv4(new) => l3::set_ipv4(packet, headers, new),
            Op::SetIpv6(new) => l3::set_ipv6(packet, headers, new),
            Op::SetArp(new) => l3::set_arp(packet, headers, new),
            Op::SetNsh(new) => l2::set_nsh(packet, headers, new),
            Op::SetMpls(new) => l2::set_mpls(packet, headers, *new),
            Op::SetPorts(transport, new) => l4::set_ports(packet, headers, *transport, new),
            Op::SetIcmp(icmp, new) => l4::set_icmp(packet, headers, *icmp, new),
            Op::SetNd(new) => l4::set_nd(packet, headers, new),
            Op::SetPriority(new) => set_metadata(&mut packet.metadata.skb_priority, *new),
            Op::SetTunnel(tunnel) => packet.set_egress_tunnel(tunnel),
            Op::SetMark(new) => set_metadata(&mut packet.metadata.skb_mark, *new),
            Op::PushVlan { tpid, tci } => l2::push_vlan(packet, headers, *tpid, *tci),
            Op::PopVlan => l2::pop_vlan(packet, headers),
            Op::PushMpls { lse, eth_type } => l2::push_mpls(packet, headers, *eth_type, *lse),
            Op::AddMplsL2 { lse, eth_type } => l2::add_mpls_l2(packet, headers, *eth_type, *lse),
            Op::PopMpls { eth_type } => {
                if l2::pop_mpls(packet, headers, *eth_type) {
                    // As OVS: what is known of the packet from before its labels were removed is forgotten.
                    packet.flow_hash = FlowHash::Stale;
                }
            }
            Op::PushEth { dst_src } => l2::push_eth(packet, headers, dst_src),
            Op::PopEth => l2::pop_eth(packet, headers),
            Op::PushNsh(header) => {
                if !l2::push_nsh(packet, headers, header) {
                    return self.drop(DropReason::PushNsh);
                }
            }
            Op::PopNsh => {
                if !l2::pop_nsh(packet, headers) {
                    return self.drop(DropReason::PopNsh);
                }
            }
            Op::PushVxlan(header) => {
                let flow = self.flow_hash(packet, headers);
                if !vxlan::push(packet, headers, header, flow) {
                    return self.drop(DropReason::PushTunnel);
                }
            }
            Op::DecTtl(exception) => {
                if l3::dec_ttl(packet, headers) == Ttl::Expired {
                    if exception.ops.is_empty() {
                        return self.drop(DropReason::TtlExpired);
                    }
                    // The packet's way ends in the exception list; the actions behind this one are for living packets.
                    self.list(&exception.ops, packet, *headers, false);
                    return Next::End;
                }
            }
            Op::Trunc(max_len) => {
                packet.cut = packet.len().saturating_sub(*max_len as usize);
                packet.cut_next = true;
            }
            Op::Hash { alg, basis, edited } => {
                packet.metadata.dp_hash = self.dp_hash(packet, headers, *alg, *basis, *edited)
            }
            Op::Recirc { id, edited } => self.recirc(packet, headers, *id, *edited, last),
            Op::Sample { probability, block } => {
                if self.chosen(*probability) {
                    let outer = std::mem::replace(&mut self.probability, *probability);
                    self.nested(block, packet, headers, last, Cut::Ignored);
                    self.probability = outer;
                }
            }
            Op::Clone(block) => self.nested(block, packet, headers, last, Cut::Taken),
            Op::CheckPktLen(check) => self.check_pkt_len(check, packet, headers, last),
            Op::Drop(reason) => return self.drop(DropReason::Explicit(*reason)),
            Op::Meter(id) => {
                if self.sink.meter(*id, packet.len()) {
                    return self.drop(DropReason::Meter(*id));
                }
            }
            Op::Psample(psample) => {
                let original_len = packet.len();
                self.sink.psample(PsampleRecord {
                    group: psample.group,
                    cookie: &psample.cookie,
                    probability: self.probability,
                    packet: packet.take_for_output(),
                    original_len,
                });
            }
        }
        Next::Go
    }

    fn drop(&mut self, reason: DropReason) -> Next {
        self.sink.dropped(reason);
        Next::End
    }

    /// U10: probability 0 never, `u32::MAX` always.
    fn chosen(&mut self, probability: u32) -> bool {
        match probability {
            0 => false,
            u32::MAX => true,
            _ => self.ctx.next_u32() < probability,
        }
    }

    fn check_pkt_len(&mut self, check: &CheckPktLen, packet: &mut Packet, headers: &Headers, last: bool) {
        // Padding is not counted, nor what a trunc action will cut.
        let len = packet.send_len().saturating_sub(headers.pad);
        // Each of a large packet's segments is what counts, as in Linux (`skb_gso_validate_mac_len`).
        let segment = packet.offload.and_then(|offload| offload.segment_len(packet.bytes()));
        let len = segment.map_or(len, |segment| segment.min(len));
        let block = if len > check.longer_than { &check.greater } else { &check.less_or_equal };
        self.nested(block, packet, headers, last, Cut::Ignored);
    }

    /// Runs a nested list on the packet itself if that harms nobody, otherwise on a copy.
    fn nested(&mut self, block: &Block, packet: &mut Packet, headers: &Headers, last: bool, cut: Cut) {
        let (len_cut, cut_next) = (packet.cut, packet.cut_next);
        let armed = match cut {
            Cut::Taken => cut_next,
            Cut::Ignored => false,
        };
        if last || !block.consumes {
            packet.cut_next = armed;
            self.list(&block.ops, packet, *headers, last);
        } else {
            let mut copy = self.ctx.copy_of(packet);
            copy.cut_next = armed;
            self.list(&block.ops, &mut copy, *headers, true);
            self.ctx.release(copy);
        }
        (packet.cut, packet.cut_next) = match cut {
            // The clone took the truncation with it.
            Cut::Taken if cut_next => (0, false),
            Cut::Taken | Cut::Ignored => (len_cut, cut_next),
        };
    }

    /// Pushes outer headers on each frame that comes of a packet on which something is left to do, and runs the rest of the list on it:
    /// who sends a packet finishes the outermost headers only.
    #[cold]
    fn push_segments(
        &mut self,
        header: &VxlanHeader,
        rest: &[Op],
        packet: &mut Packet,
        headers: &mut Headers,
    ) {
        let flow = self.flow_hash(packet, headers);
        let mut frames = Vec::new();
        finish(packet.bytes(), packet.offload, |frame| frames.push(frame.to_vec()));
        for frame in frames {
            let mut segment = self.ctx.copy_of(packet);
            segment.fill(&frame, packet.metadata);
            let mut headers = *headers;
            if vxlan::push(&mut segment, &mut headers, header, flow) {
                self.list(rest, &mut segment, headers, true);
            } else {
                self.sink.dropped(DropReason::PushTunnel);
            }
            self.ctx.release(segment);
        }
    }

    /// The five-tuple hash as OVS has it when it pushes outer headers.
    fn flow_hash(&self, packet: &mut Packet, headers: &Headers) -> u32 {
        match packet.flow_hash {
            FlowHash::Known(hash) => hash,
            FlowHash::Unknown => {
                let hash = self.first_hash(packet, headers);
                packet.flow_hash = FlowHash::Known(hash);
                hash
            }
            FlowHash::Stale => {
                let key = self.current_key(packet);
                hash::five_tuple(&key, key.ip_proto, 0)
            }
        }
    }

    fn recirc(&mut self, packet: &mut Packet, headers: &Headers, id: u32, edited: bool, last: bool) {
        // OVS takes the five-tuple hash of a packet when it first sees it; before headers that changed are parsed again,
        // the key at hand is the last chance to do so.
        if edited && packet.flow_hash == FlowHash::Unknown {
            packet.flow_hash = FlowHash::Known(self.first_hash(packet, headers));
        }
        let mut copy = (!last).then(|| self.ctx.copy_of(packet));
        let recirculated = copy.as_mut().unwrap_or(packet);
        recirculated.metadata.recirc_id = id;
        recirculated.cut_next = false;
        if recirculated.flow_hash == FlowHash::Stale {
            recirculated.flow_hash = FlowHash::Unknown;
        }
        self.sink.recirc(self.ctx, recirculated);
        if let Some(copy) = copy {
            self.ctx.release(copy);
        }
    }

    fn dp_hash(
        &mut self,
        packet: &mut Packet,
        headers: &Headers,
        alg: HashAlg,
        basis: u32,
        edited: bool,
    ) -> u32 {
        match (alg, packet.flow_hash) {
            (HashAlg::L4, FlowHash::Known(five_tuple)) => hash::rebase(five_tuple, basis),
            (HashAlg::L4, FlowHash::Unknown) => {
                let five_tuple = self.first_hash(packet, headers);
                packet.flow_hash = FlowHash::Known(five_tuple);
                hash::rebase(five_tuple, basis)
            }
            (HashAlg::L4, FlowHash::Stale) => {
                let key = self.current_key(packet);
                hash::five_tuple(&key, key.ip_proto, basis)
            }
            (HashAlg::SymL4, _) if edited => hash::symmetric(&self.current_key(packet), basis),
            (HashAlg::SymL4, _) => hash::symmetric(self.key, basis),
        }
    }

    /// The five-tuple hash that OVS takes on reception. Of an IPv6 packet with a whole TCP or UDP header it takes the
    /// first next header for the protocol, which is another one where extension headers follow.
    fn first_hash(&self, packet: &Packet, headers: &Headers) -> u32 {
        let ported = matches!(self.layers.l4_kind, L4Kind::Tcp | L4Kind::Udp);
        let first =
            packet.header(headers.l3, IPV6_LEN).filter(|_| ported && self.layers.l3_kind == L3Kind::Ipv6);
        hash::five_tuple(self.key, first.map_or(self.key.ip_proto, |header| header[6]), 0)
    }

    /// The key of the packet as it is now.
    fn current_key(&self, packet: &Packet) -> Key {
        let mut key = KeyBuf::new();
        extract_packet(packet, &mut key);
        key.key().clone()
    }
}

/// What a nested list does with a truncation that is pending when it begins.
#[derive(Clone, Copy)]
enum Cut {
    /// It applies to the list's first output, and is done with.
    Taken,
    /// It waits for the next output behind the list.
    Ignored,
}

/// The key of a packet whose Ethernet header came or went.
#[cold]
fn retyped(key: &Key, packet_type: PacketType) -> Box<Key> {
    let mut key = Box::new(key.clone());
    if !packet_type.is_ethernet() {
        (key.eth_src, key.eth_dst, key.vlan) = Default::default();
        key.eth_type = packet_type.eth_type().into();
    }
    key.packet_type = packet_type.0.into();
    key
}

fn set_metadata(field: &mut u32, new: Bits<u32>) {
    *field = new.set | *field & new.keep;
}
