//! The argument of a set action, field by field.

use crate::refusal::ActionCause;
use flowlift_driver::nic::Field;
use flowlift_flow::Header;
use flowlift_flow::action::Action;
use smallvec::SmallVec;

/// A field that a set action changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetField {
    pub(crate) field: Field,
    /// No bit outside `mask`.
    pub(crate) value: u128,
    pub(crate) mask: u128,
}

/// Which header a set action needs in the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Ipv4,
    Ipv6,
    Arp,
    Tcp,
    Udp,
    Sctp,
}

/// What a set action does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack, between two lines")]
pub(crate) enum SetEffect {
    /// Changes fields of a header.
    Fields {
        needs: Needs,
        fields: SmallVec<[SetField; 6]>,
        /// Protocol that the action repeats, with its mask.
        proto: (u8, u8),
        /// Fragment kind that the action repeats, with its mask.
        frag: (u8, u8),
    },
    /// Changes metadata that stays in software.
    Metadata(&'static str),
    /// For software only.
    Software,
}

fn mac(m: &[u8; 6]) -> u128 {
    m.iter().fold(0, |v, b| v << 8 | u128::from(*b))
}

/// Name of a set action's header in OVS's text form.
pub(crate) fn name_of(header: &Header) -> &'static str {
    match header {
        Header::SkbPriority(_) => "set(skb_priority)",
        Header::SkbMark(_) => "set(skb_mark)",
        Header::Ethernet { .. } => "set(eth)",
        Header::Ipv4 { .. } => "set(ipv4)",
        Header::Ipv6 { .. } => "set(ipv6)",
        Header::Tcp { .. } => "set(tcp)",
        Header::Udp { .. } => "set(udp)",
        Header::Sctp { .. } => "set(sctp)",
        Header::Icmp { .. } => "set(icmp)",
        Header::Icmpv6 { .. } => "set(icmpv6)",
        Header::Arp { .. } => "set(arp)",
        Header::Nd { .. } => "set(nd)",
        Header::Mpls(_) => "set(mpls)",
        Header::Tunnel(_) => "set(tunnel)",
        Header::Nsh { .. } => "set(nsh)",
    }
}

/// What a set of `value` under `mask` does; `mask` is `None` for the whole header. A mask of another header is an error.
pub(crate) fn effect_of(value: &Header, mask: Option<&Header>) -> Result<SetEffect, ActionCause> {
    let mut fields: SmallVec<[SetField; 6]> = SmallVec::new();
    let mut put = |field, value: u128, mask: u128| {
        if mask != 0 {
            fields.push(SetField { field, value: value & mask, mask });
        }
    };
    let mut proto_frag = ((0, 0), (0, 0));
    let needs = match (value, mask) {
        (Header::SkbPriority(_), _) => return Ok(SetEffect::Metadata("skb_priority")),
        (Header::SkbMark(_), _) => return Ok(SetEffect::Metadata("skb_mark")),
        (Header::Ethernet { src, dst }, mask) => {
            let (src_bits, dst_bits) = match mask {
                None => ([0xff; 6], [0xff; 6]),
                Some(Header::Ethernet { src, dst }) => (*src, *dst),
                Some(_) => return Err(ActionCause::BadArgument),
            };
            put(Field::EthSrc, mac(src), mac(&src_bits));
            put(Field::EthDst, mac(dst), mac(&dst_bits));
            Needs::Nothing
        }
        (Header::Ipv4 { src, dst, proto, tos, ttl, frag }, mask) => {
            let (ms, md, mp, mtos, mttl, mf) = match mask {
                None => (u32::MAX, u32::MAX, 0xff, 0xff, 0xff, 0xff),
                Some(Header::Ipv4 { src, dst, proto, tos, ttl, frag }) => {
                    (u32::from(*src), u32::from(*dst), *proto, *tos, *ttl, *frag)
                }
                Some(_) => return Err(ActionCause::BadArgument),
            };
            put(Field::Ipv4Src, u32::from(*src).into(), ms.into());
            put(Field::Ipv4Dst, u32::from(*dst).into(), md.into());
            put(Field::IpTos, (*tos).into(), mtos.into());
            put(Field::IpTtl, (*ttl).into(), mttl.into());
            proto_frag = ((*proto, mp), (*frag, mf));
            Needs::Ipv4
        }
        (Header::Ipv6 { src, dst, label, proto, tclass, hlimit, frag }, mask) => {
            let (ms, md, ml, mp, mc, mh, mf) = match mask {
                None => (u128::MAX, u128::MAX, 0xf_ffff, 0xff, 0xff, 0xff, 0xff),
                Some(Header::Ipv6 { src, dst, label, proto, tclass, hlimit, frag }) => {
                    (u128::from(*src), u128::from(*dst), *label, *proto, *tclass, *hlimit, *frag)
                }
                Some(_) => return Err(ActionCause::BadArgument),
            };
            if label & ml & !0xf_ffff != 0 {
                return Err(ActionCause::BadArgument);
            }
            put(Field::Ipv6Src, u128::from(*src), ms);
            put(Field::Ipv6Dst, u128::from(*dst), md);
            put(Field::Ipv6Label, (*label).into(), (ml & 0xf_ffff).into());
            put(Field::IpTos, (*tclass).into(), mc.into());
            put(Field::IpTtl, (*hlimit).into(), mh.into());
            proto_frag = ((*proto, mp), (*frag, mf));
            Needs::Ipv6
        }
        (Header::Tcp { src, dst } | Header::Udp { src, dst } | Header::Sctp { src, dst }, mask) => {
            let (needs, bits) = match (value, mask) {
                (Header::Tcp { .. }, None) => (Needs::Tcp, (u16::MAX, u16::MAX)),
                (Header::Udp { .. }, None) => (Needs::Udp, (u16::MAX, u16::MAX)),
                (Header::Sctp { .. }, None) => (Needs::Sctp, (u16::MAX, u16::MAX)),
                (Header::Tcp { .. }, Some(Header::Tcp { src, dst })) => (Needs::Tcp, (*src, *dst)),
                (Header::Udp { .. }, Some(Header::Udp { src, dst })) => (Needs::Udp, (*src, *dst)),
                (Header::Sctp { .. }, Some(Header::Sctp { src, dst })) => (Needs::Sctp, (*src, *dst)),
                _ => return Err(ActionCause::BadArgument),
            };
            put(Field::L4Src, (*src).into(), bits.0.into());
            put(Field::L4Dst, (*dst).into(), bits.1.into());
            needs
        }
        (Header::Arp { sip, tip, op, sha, tha }, mask) => {
            let (ms, mt, mo, msha, mtha) = match mask {
                None => (u32::MAX, u32::MAX, u16::MAX, [0xff; 6], [0xff; 6]),
                Some(Header::Arp { sip, tip, op, sha, tha }) => {
                    (u32::from(*sip), u32::from(*tip), *op, *sha, *tha)
                }
                Some(_) => return Err(ActionCause::BadArgument),
            };
            put(Field::ArpSpa, u32::from(*sip).into(), ms.into());
            put(Field::ArpTpa, u32::from(*tip).into(), mt.into());
            put(Field::ArpOp, (*op).into(), mo.into());
            put(Field::ArpSha, mac(sha), mac(&msha));
            put(Field::ArpTha, mac(tha), mac(&mtha));
            Needs::Arp
        }
        (
            Header::Icmp { .. }
            | Header::Icmpv6 { .. }
            | Header::Nd { .. }
            | Header::Mpls(_)
            | Header::Tunnel(_)
            | Header::Nsh { .. },
            _,
        ) => return Ok(SetEffect::Software),
    };
    let (proto, frag) = proto_frag;
    Ok(SetEffect::Fields { needs, fields, proto, frag })
}

/// Name of an action in OVS's text form.
pub(crate) fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Output(_) => "output",
        Action::Userspace(_) => "userspace",
        Action::Set(h) => name_of(h),
        Action::SetMasked { value, .. } => name_of(value),
        Action::PushVlan { .. } => "push_vlan",
        Action::PopVlan => "pop_vlan",
        Action::Sample { .. } => "sample",
        Action::Recirc(_) => "recirc",
        Action::Hash { .. } => "hash",
        Action::PushMpls { .. } => "push_mpls",
        Action::PopMpls { .. } => "pop_mpls",
        Action::Ct(_) => "ct",
        Action::Trunc { .. } => "trunc",
        Action::PushEth { .. } => "push_eth",
        Action::PopEth => "pop_eth",
        Action::CtClear => "ct_clear",
        Action::PushNsh(_) => "push_nsh",
        Action::PopNsh => "pop_nsh",
        Action::Meter(_) => "meter",
        Action::Clone(_) => "clone",
        Action::CheckPktLen { .. } => "check_pkt_len",
        Action::AddMpls { .. } => "add_mpls",
        Action::DecTtl { .. } => "dec_ttl",
        Action::Drop(_) => "drop",
        Action::Psample { .. } => "psample",
        Action::TnlPush(_) => "tnl_push",
        Action::TnlPop(_) => "tnl_pop",
        Action::LbOutput(_) => "lb_output",
    }
}
