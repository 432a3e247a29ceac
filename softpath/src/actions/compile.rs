//! From a flow's actions to a [`Program`].

use super::{
    Bits, Block, CheckPktLen, Code, MAX_DEPTH, Op, Program, Psample, ToUser, Unsupported, l2, l3, l4,
};
use flowlift_flow::action::{NshHeader, TnlHeader};
use flowlift_flow::key::{VLAN_CFI, eth_type};
use flowlift_flow::{Action, Header};

/// Compiles a flow's actions, or says why this datapath cannot execute them.
pub fn compile(actions: &[Action]) -> Result<Program, Unsupported> {
    let block = Compiler { all: actions, depth: 0, edited: false, tunnelled: false }.block(actions)?;
    Ok(Program(match *block.ops {
        [Op::Output(port)] => Code::Output(port),
        _ => Code::List(block.ops),
    }))
}

/// Where in a list of actions the compiler stands.
#[derive(Clone, Copy)]
struct Compiler<'a> {
    /// The flow's actions.
    all: &'a [Action],
    depth: usize,
    /// An earlier action may have changed what the key says.
    edited: bool,
    /// An earlier action pushed outer headers, which nothing has parsed.
    tunnelled: bool,
}

impl Compiler<'_> {
    fn block(mut self, actions: &[Action]) -> Result<Block, Unsupported> {
        if self.depth > MAX_DEPTH {
            return Err(Unsupported::TooDeep);
        }
        self.depth += 1;
        let mut ops = Vec::with_capacity(actions.len());
        let mut consumes = false;
        for action in actions {
            let Some(op) = self.op(action)? else { continue };
            if self.tunnelled && !op.minds_no_headers() {
                return Err(Unsupported::BehindTunnel(action.name()));
            }
            consumes |= op.consumes();
            self.edited |= op.edits();
            self.tunnelled |= matches!(op, Op::PushVxlan(_));
            ops.push(op);
        }
        Ok(Block { ops: ops.into_boxed_slice(), consumes })
    }

    fn boxed_block(self, actions: &[Action]) -> Result<Box<Block>, Unsupported> {
        self.block(actions).map(Box::new)
    }

    /// `None` for an action without effect.
    fn op(&self, action: &Action) -> Result<Option<Op>, Unsupported> {
        Ok(Some(match action {
            Action::Output(port) => Op::Output(*port),
            Action::Userspace(args) => {
                let actions = args.actions.then(|| self.all.into());
                Op::Userspace(Box::new(ToUser { userspace: args.clone(), actions }))
            }
            Action::Set(value) => set(value, &exact(value))?,
            Action::SetMasked { value: Header::Tunnel(_), .. } => {
                return Err(Unsupported::Set("bits of a tunnel (U8)"));
            }
            Action::SetMasked { value, mask } => set(value, mask)?,
            &Action::PushVlan { tpid, tci } => {
                if tci & VLAN_CFI == 0 {
                    return Err(Unsupported::VlanWithoutCfi(tci));
                }
                if !matches!(tpid, eth_type::VLAN | eth_type::QINQ) {
                    return Err(Unsupported::VlanTpid(tpid));
                }
                Op::PushVlan { tpid, tci: tci & !VLAN_CFI }
            }
            Action::PopVlan => Op::PopVlan,
            Action::Sample { probability, actions } => {
                Op::Sample { probability: *probability, block: self.boxed_block(actions)? }
            }
            Action::Recirc(id) => Op::Recirc { id: *id, edited: self.edited },
            &Action::Hash { alg, basis } => Op::Hash { alg, basis, edited: self.edited },
            &Action::PushMpls { lse, eth_type } => Op::PushMpls { lse, eth_type: mpls_type(eth_type)? },
            &Action::PopMpls { eth_type } => Op::PopMpls { eth_type },
            // A label ahead of the L3 header is pushed in the same place as push_mpls does.
            &Action::AddMpls { lse, eth_type, l3: true } => {
                Op::PushMpls { lse, eth_type: mpls_type(eth_type)? }
            }
            &Action::AddMpls { lse, eth_type, l3: false } => {
                Op::AddMplsL2 { lse, eth_type: mpls_type(eth_type)? }
            }
            Action::Trunc { max_len } => {
                if (*max_len as usize) < l2::ETH_LEN {
                    return Err(Unsupported::Trunc(*max_len));
                }
                Op::Trunc(*max_len)
            }
            Action::PushEth { src, dst } => Op::PushEth { dst_src: l2::addresses(*dst, *src) },
            Action::PopEth => Op::PopEth,
            Action::PushNsh(header) => Op::PushNsh(nsh_bytes(header)?),
            Action::PopNsh => Op::PopNsh,
            Action::Clone(actions) => Op::Clone(self.boxed_block(actions)?),
            Action::CheckPktLen { pkt_len, greater, less_or_equal } => {
                Op::CheckPktLen(Box::new(CheckPktLen {
                    longer_than: usize::from(*pkt_len),
                    greater: self.block(greater)?,
                    less_or_equal: self.block(less_or_equal)?,
                }))
            }
            Action::DecTtl { exception } => Op::DecTtl(self.boxed_block(exception)?),
            Action::Drop(reason) => Op::Drop(*reason),
            Action::Psample { group, cookie } => {
                Op::Psample(Box::new(Psample { group: *group, cookie: cookie.clone() }))
            }
            // Packets have no connection state here, so there is none to forget.
            Action::CtClear => return Ok(None),
            Action::Ct(_) => return Err(Unsupported::Action("ct")),
            Action::Meter(id) => Op::Meter(*id),
            Action::TnlPush(push) => match &push.header {
                TnlHeader::Vxlan(header) => Op::PushVxlan(Box::new(*header)),
                TnlHeader::Text(_) => return Err(Unsupported::Action("tnl_push")),
            },
            Action::TnlPop(_) => return Err(Unsupported::Action("tnl_pop")),
            Action::LbOutput(_) => return Err(Unsupported::Action("lb_output")),
        }))
    }
}

impl Op {
    /// The packet's bytes, offsets or metadata may differ afterwards.
    fn edits(&self) -> bool {
        match self {
            Op::Output(_)
            | Op::Userspace(_)
            | Op::Trunc(_)
            | Op::Recirc { .. }
            | Op::Sample { .. }
            | Op::Clone(_)
            | Op::CheckPktLen(_)
            | Op::Drop(_)
            | Op::Meter(_)
            | Op::Psample(_) => false,
            Op::SetEth(_)
            | Op::SetIpv4(_)
            | Op::SetIpv6(_)
            | Op::SetArp(_)
            | Op::SetNsh(_)
            | Op::SetMpls(_)
            | Op::SetPorts(..)
            | Op::SetIcmp(..)
            | Op::SetNd(_)
            | Op::SetPriority(_)
            | Op::SetMark(_)
            | Op::SetTunnel(_)
            | Op::PushVlan { .. }
            | Op::PopVlan
            | Op::PushMpls { .. }
            | Op::AddMplsL2 { .. }
            | Op::PopMpls { .. }
            | Op::PushEth { .. }
            | Op::PopEth
            | Op::PushNsh(_)
            | Op::PopNsh
            | Op::PushVxlan(_)
            | Op::DecTtl(_)
            | Op::Hash { .. } => true,
        }
    }

    /// True if the action does not care which headers the packet begins with, but for Ethernet's.
    fn minds_no_headers(&self) -> bool {
        matches!(
            self,
            Op::Output(_)
                | Op::Userspace(_)
                | Op::Trunc(_)
                | Op::Sample { .. }
                | Op::Clone(_)
                | Op::CheckPktLen(_)
                | Op::Drop(_)
                | Op::Meter(_)
                | Op::Psample(_)
                | Op::SetPriority(_)
                | Op::SetMark(_)
                | Op::SetEth(_)
                | Op::PushVlan { .. }
                | Op::PopVlan
        )
    }

    /// [`Op::edits`], or the packet may be handed over, or either in a nested list that runs in place when it is last.
    fn consumes(&self) -> bool {
        match self {
            Op::Recirc { .. } => true,
            Op::Sample { block, .. } | Op::Clone(block) => block.consumes,
            Op::CheckPktLen(check) => check.greater.consumes || check.less_or_equal.consumes,
            _ => self.edits(),
        }
    }
}

fn mpls_type(eth_type: u16) -> Result<u16, Unsupported> {
    match eth_type {
        eth_type::MPLS | eth_type::MPLS_MCAST => Ok(eth_type),
        other => Err(Unsupported::MplsType(other)),
    }
}

/// RFC 8300: base header, service path header, metadata.
fn nsh_bytes(header: &NshHeader) -> Result<Box<[u8]>, Unsupported> {
    let len = header.metadata.len();
    let fits = match header.mdtype {
        1 => len == 16,
        // The length field counts 4-byte units in 6 bits, 8 bytes of header included.
        _ => len.is_multiple_of(4) && len <= 0x3f * 4 - 8,
    };
    if !fits {
        return Err(Unsupported::NshMetadata { mdtype: header.mdtype, len });
    }
    let units = (8 + len) as u16 / 4;
    let first = u16::from(header.flags & 3) << 12 | u16::from(header.ttl & 0x3f) << 6 | units;
    let mut bytes = Vec::with_capacity(8 + len);
    bytes.extend(first.to_be_bytes());
    bytes.extend([header.mdtype, header.np]);
    bytes.extend(header.path_hdr.to_be_bytes());
    bytes.extend(&header.metadata);
    Ok(bytes.into_boxed_slice())
}

/// A mask of ones for every field of `header` that can be set.
fn exact(header: &Header) -> Header {
    let (mac, port, v4, v6) = ([0xff; 6], 0xffff, u32::MAX.into(), u128::MAX.into());
    match header {
        Header::SkbPriority(_) => Header::SkbPriority(u32::MAX),
        Header::SkbMark(_) => Header::SkbMark(u32::MAX),
        Header::Ethernet { .. } => Header::Ethernet { src: mac, dst: mac },
        Header::Ipv4 { .. } => Header::Ipv4 { src: v4, dst: v4, proto: 0, tos: 0xff, ttl: 0xff, frag: 0 },
        Header::Ipv6 { .. } => {
            Header::Ipv6 { src: v6, dst: v6, label: 0xf_ffff, proto: 0, tclass: 0xff, hlimit: 0xff, frag: 0 }
        }
        Header::Tcp { .. } => Header::Tcp { src: port, dst: port },
        Header::Udp { .. } => Header::Udp { src: port, dst: port },
        Header::Sctp { .. } => Header::Sctp { src: port, dst: port },
        Header::Icmp { .. } => Header::Icmp { ty: 0xff, code: 0xff },
        Header::Icmpv6 { .. } => Header::Icmpv6 { ty: 0xff, code: 0xff },
        Header::Arp { .. } => Header::Arp { sip: v4, tip: v4, op: 0xffff, sha: mac, tha: mac },
        Header::Nd { .. } => Header::Nd { target: v6, sll: mac, tll: mac },
        Header::Mpls(_) => Header::Mpls(u32::MAX),
        Header::Tunnel(key) => Header::Tunnel(key.clone()),
        Header::Nsh { .. } => {
            Header::Nsh { flags: 3, ttl: 0x3f, path_hdr: u32::MAX, context: Some([u32::MAX; 4]) }
        }
    }
}

/// Fields as bytes, checked against their mask; `free` fields of an unmasked set have mask 0 but may be other than 0.
fn bits<const N: usize>(
    name: &'static str,
    value: [u8; N],
    mask: [u8; N],
) -> Result<Bits<[u8; N]>, Unsupported> {
    if value.iter().zip(mask).any(|(v, m)| v & !m != 0) {
        return Err(Unsupported::OutsideMask(name));
    }
    Ok(Bits { set: value, keep: mask.map(|m| !m) })
}

fn bits32(name: &'static str, value: u32, mask: u32) -> Result<Bits<u32>, Unsupported> {
    let Bits { set, keep } = bits(name, value.to_ne_bytes(), mask.to_ne_bytes())?;
    Ok(Bits { set: u32::from_ne_bytes(set), keep: u32::from_ne_bytes(keep) })
}

fn bits8(name: &'static str, value: u8, mask: u8) -> Result<Bits<u8>, Unsupported> {
    let Bits { set: [set], keep: [keep] } = bits(name, [value], [mask])?;
    Ok(Bits { set, keep })
}

/// One header; `mask` is the same variant as `value`.
fn set(value: &Header, mask: &Header) -> Result<Op, Unsupported> {
    Ok(match (value, mask) {
        (&Header::SkbPriority(v), &Header::SkbPriority(m)) => Op::SetPriority(bits32("skb_priority", v, m)?),
        (&Header::SkbMark(v), &Header::SkbMark(m)) => Op::SetMark(bits32("skb_mark", v, m)?),
        (&Header::Ethernet { src, dst }, &Header::Ethernet { src: src_m, dst: dst_m }) => {
            Op::SetEth(bits("eth", l2::addresses(dst, src), l2::addresses(dst_m, src_m))?)
        }
        (
            &Header::Ipv4 { src, dst, tos, ttl, .. },
            &Header::Ipv4 { src: src_m, dst: dst_m, tos: tos_m, ttl: ttl_m, proto, frag },
        ) => {
            fixed("ipv4", proto, frag)?;
            let src = bits("ipv4", src.octets(), src_m.octets())?;
            let dst = bits("ipv4", dst.octets(), dst_m.octets())?;
            let (tos, ttl) = (bits8("ipv4", tos, tos_m)?, bits8("ipv4", ttl, ttl_m)?);
            Op::SetIpv4(Bits {
                set: l3::Ipv4 { src: src.set, dst: dst.set, tos: tos.set, ttl: ttl.set },
                keep: l3::Ipv4 { src: src.keep, dst: dst.keep, tos: tos.keep, ttl: ttl.keep },
            })
        }
        (
            &Header::Ipv6 { src, dst, label, tclass, hlimit, .. },
            &Header::Ipv6 {
                src: src_m,
                dst: dst_m,
                label: label_m,
                tclass: tclass_m,
                hlimit: hlimit_m,
                proto,
                frag,
            },
        ) => {
            fixed("ipv6", proto, frag)?;
            let src = bits("ipv6", src.octets(), src_m.octets())?;
            let dst = bits("ipv6", dst.octets(), dst_m.octets())?;
            // Traffic class and label are one word of the header, the version with them.
            let word = |tclass: u8, label: u32| u32::from(tclass) << 20 | label & 0xf_ffff;
            if label & !0xf_ffff != 0 {
                return Err(Unsupported::OutsideMask("ipv6"));
            }
            let flow = bits32("ipv6", word(tclass, label), word(tclass_m, label_m))?;
            let hlimit = bits8("ipv6", hlimit, hlimit_m)?;
            Op::SetIpv6(Box::new(Bits {
                set: l3::Ipv6 { src: src.set, dst: dst.set, flow: flow.set, hlimit: hlimit.set },
                keep: l3::Ipv6 { src: src.keep, dst: dst.keep, flow: flow.keep, hlimit: hlimit.keep },
            }))
        }
        (&Header::Tcp { src, dst }, &Header::Tcp { src: src_m, dst: dst_m }) => {
            Op::SetPorts(l4::Transport::Tcp, bits("tcp", l4::ports(src, dst), l4::ports(src_m, dst_m))?)
        }
        (&Header::Udp { src, dst }, &Header::Udp { src: src_m, dst: dst_m }) => {
            Op::SetPorts(l4::Transport::Udp, bits("udp", l4::ports(src, dst), l4::ports(src_m, dst_m))?)
        }
        (&Header::Sctp { src, dst }, &Header::Sctp { src: src_m, dst: dst_m }) => {
            Op::SetPorts(l4::Transport::Sctp, bits("sctp", l4::ports(src, dst), l4::ports(src_m, dst_m))?)
        }
        (&Header::Icmp { ty, code }, &Header::Icmp { ty: ty_m, code: code_m }) => {
            Op::SetIcmp(l4::Icmp::V4, bits("icmp", [ty, code], [ty_m, code_m])?)
        }
        (&Header::Icmpv6 { ty, code }, &Header::Icmpv6 { ty: ty_m, code: code_m }) => {
            Op::SetIcmp(l4::Icmp::V6, bits("icmpv6", [ty, code], [ty_m, code_m])?)
        }
        (
            &Header::Arp { sip, tip, op, sha, tha },
            &Header::Arp { sip: sip_m, tip: tip_m, op: op_m, sha: sha_m, tha: tha_m },
        ) => Op::SetArp(Box::new(bits(
            "arp",
            l3::arp_fields(op, sha, sip, tha, tip),
            l3::arp_fields(op_m, sha_m, sip_m, tha_m, tip_m),
        )?)),
        (&Header::Nd { target, sll, tll }, &Header::Nd { target: target_m, sll: sll_m, tll: tll_m }) => {
            let target = bits("nd", target.octets(), target_m.octets())?;
            let (sll, tll) = (bits("nd", sll, sll_m)?, bits("nd", tll, tll_m)?);
            Op::SetNd(Box::new(Bits {
                set: l4::Nd { target: target.set, sll: sll.set, tll: tll.set },
                keep: l4::Nd { target: target.keep, sll: sll.keep, tll: tll.keep },
            }))
        }
        (&Header::Mpls(v), &Header::Mpls(m)) => Op::SetMpls(bits32("mpls", v, m)?),
        (
            &Header::Nsh { flags, ttl, path_hdr, context },
            &Header::Nsh { flags: flags_m, ttl: ttl_m, path_hdr: path_m, context: context_m },
        ) => {
            let fields = |flags: u8, ttl: u8| u32::from(flags & 3) << 12 | u32::from(ttl & 0x3f) << 6;
            if flags & !3 != 0 || ttl & !0x3f != 0 {
                return Err(Unsupported::OutsideMask("nsh"));
            }
            let first = bits32("nsh", fields(flags, ttl), fields(flags_m, ttl_m))?;
            let path = bits32("nsh", path_hdr, path_m)?;
            // No context named: none changes.
            let context_m = if context.is_some() { context_m.unwrap_or_default() } else { [0; 4] };
            let mut set = l2::Nsh { first: first.set as u16, path_hdr: path.set, context: [0; 4] };
            let mut keep = l2::Nsh { first: first.keep as u16, path_hdr: path.keep, context: [u32::MAX; 4] };
            for (i, (v, m)) in context.unwrap_or_default().into_iter().zip(context_m).enumerate() {
                let bits = bits32("nsh", v, m)?;
                (set.context[i], keep.context[i]) = (bits.set, bits.keep);
            }
            Op::SetNsh(Box::new(Bits { set, keep }))
        }
        (Header::Tunnel(tunnel), _) => Op::SetTunnel(tunnel.clone()),
        (other, _) => return Err(Unsupported::OutsideMask(name(other))),
    })
}

fn fixed(name: &'static str, proto_mask: u8, frag_mask: u8) -> Result<(), Unsupported> {
    if proto_mask | frag_mask != 0 { Err(Unsupported::FixedField(name)) } else { Ok(()) }
}

fn name(header: &Header) -> &'static str {
    match header {
        Header::SkbPriority(_) => "skb_priority",
        Header::SkbMark(_) => "skb_mark",
        Header::Ethernet { .. } => "eth",
        Header::Ipv4 { .. } => "ipv4",
        Header::Ipv6 { .. } => "ipv6",
        Header::Tcp { .. } => "tcp",
        Header::Udp { .. } => "udp",
        Header::Sctp { .. } => "sctp",
        Header::Icmp { .. } => "icmp",
        Header::Icmpv6 { .. } => "icmpv6",
        Header::Arp { .. } => "arp",
        Header::Nd { .. } => "nd",
        Header::Mpls(_) => "mpls",
        Header::Tunnel(_) => "tunnel",
        Header::Nsh { .. } => "nsh",
    }
}
