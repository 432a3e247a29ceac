//! Checks a flow's actions before the flow is installed, as the kernel's datapath does when it copies them.
//!
//! The check follows the packet through the list: which Ethernet type it has, whether it begins with an Ethernet header,
//! how many tags and labels it carries. An action that would need a header which the match does not promise is an error,
//! so that nothing that executes actions must cope with it. Where RULES.md says that an action does nothing (U9), it is
//! not an error. Actions of the user-space datapath only (tnl_push, tnl_pop, lb_output, set of ARP, ICMP and ND) pass
//! with the headers they need.

use super::{Action, Ct, Header};
use crate::Match;
use crate::attrs::attr;
use crate::key::{VLAN_CFI, eth_type, ip_proto};

/// How deeply actions may nest, as in the kernel.
pub const MAX_NESTING: usize = 16;
/// The kernel's datapath has fewer ports than this.
const MAX_PORTS: u32 = 0xffff;
/// Smallest length to truncate to: an Ethernet header.
const MIN_TRUNC: u32 = 14;

/// An action that cannot be installed with its flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("action {position} ({action}): {kind}")]
pub struct ActionError {
    /// Position in the outermost list, from 1.
    pub position: usize,
    /// Name of the action, which may be nested in the one at `position`.
    pub action: &'static str,
    /// What is wrong.
    pub kind: ActionErrorKind,
}

/// What is wrong with an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionErrorKind {
    /// The packet has no such header at this point, or the match does not promise it.
    #[error("needs {0}, which the match does not promise")]
    Needs(&'static str),
    /// A protocol ID that the datapath does not parse (U7).
    #[error("tag protocol ID 0x{0:04x} is none that the datapath parses")]
    Tpid(u16),
    /// The tag is not marked as present (U7).
    #[error("the tag lacks the CFI bit")]
    NoCfi,
    /// An Ethernet type that is not MPLS.
    #[error("Ethernet type 0x{0:04x} is not MPLS")]
    NotMpls(u16),
    /// A field that cannot be set, or that differs from the packet's (U8).
    #[error("{0} cannot be set")]
    ReadOnly(&'static str),
    /// Value bits outside the mask (U8).
    #[error("the value has bits outside its mask")]
    BitsOutsideMask,
    /// Value and mask are of different headers.
    #[error("value and mask are not of the same header")]
    MaskOfOtherHeader,
    /// A tunnel cannot be masked (U8).
    #[error("a tunnel is set whole, not masked")]
    MaskedTunnel,
    /// The flow label has 20 bits.
    #[error("a flow label has 20 bits")]
    FlowLabel,
    /// A number is out of range.
    #[error("{0} out of range")]
    OutOfRange(&'static str),
    /// The action makes sense only as the last.
    #[error("must be the last action")]
    NotLast,
    /// Needs commit.
    #[error("{0} needs commit")]
    NeedsCommit(&'static str),
    /// Two arguments exclude each other.
    #[error("{0} exclude each other")]
    Conflict(&'static str),
    /// Nested too deeply.
    #[error("nested more than {MAX_NESTING} deep")]
    TooDeep,
}

impl Action {
    /// The action's name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Output(_) => "output",
            Self::Userspace(_) => "userspace",
            Self::Set(_) | Self::SetMasked { .. } => "set",
            Self::PushVlan { .. } => "push_vlan",
            Self::PopVlan => "pop_vlan",
            Self::Sample { .. } => "sample",
            Self::Recirc(_) => "recirc",
            Self::Hash { .. } => "hash",
            Self::PushMpls { .. } => "push_mpls",
            Self::PopMpls { .. } => "pop_mpls",
            Self::Ct(_) => "ct",
            Self::Trunc { .. } => "trunc",
            Self::PushEth { .. } => "push_eth",
            Self::PopEth => "pop_eth",
            Self::CtClear => "ct_clear",
            Self::PushNsh(_) => "push_nsh",
            Self::PopNsh => "pop_nsh",
            Self::Meter(_) => "meter",
            Self::Clone(_) => "clone",
            Self::CheckPktLen { .. } => "check_pkt_len",
            Self::AddMpls { .. } => "add_mpls",
            Self::DecTtl { .. } => "dec_ttl",
            Self::Drop(_) => "drop",
            Self::Psample { .. } => "psample",
            Self::TnlPush(_) => "tnl_push",
            Self::TnlPop(_) => "tnl_pop",
            Self::LbOutput(_) => "lb_output",
        }
    }
}

/// Checks that a flow with this match can have these actions.
pub fn validate(actions: &[Action], matching: &Match) -> Result<(), ActionError> {
    let key = matching.mask.apply(&matching.key);
    let level = (0..3).find(|l| !matching.attrs.has(*l, attr::ENCAP)).unwrap_or(0);
    let exact_type = matching.mask.0.eth_type.get() == u16::MAX;
    let from_packet_type = !matching.attrs.has(level, attr::ETHERTYPE) && key.packet_type.get() >> 16 == 1;
    let eth_type = match (exact_type, from_packet_type) {
        (_, true) => key.packet_type.get() as u16,
        (true, _) => key.eth_type.get(),
        _ => 0,
    };
    let mut packet = Packet {
        eth_type,
        ethernet: key.packet_type.get() == 0,
        tags: key.vlan.iter().filter(|tag| tag.tci.get() & VLAN_CFI != 0).count(),
        labels: matching.attrs.mpls_labels(level, &matching.key),
        proto: (matching.mask.0.ip_proto == u8::MAX).then_some(key.ip_proto),
        frag: (matching.mask.0.ip_frag == u8::MAX).then_some(key.ip_frag),
        seen: true,
    };
    for (i, action) in actions.iter().enumerate() {
        check(action, i + 1 == actions.len(), packet, 0).map_err(|(action, kind)| ActionError {
            position: i + 1,
            action,
            kind,
        })?;
        packet.after(action);
    }
    Ok(())
}

type Check = Result<(), (&'static str, ActionErrorKind)>;

/// What is known of the packet at some point of the list.
#[derive(Debug, Clone, Copy)]
struct Packet {
    /// Ethernet type after all tags; 0 if it is not known.
    eth_type: u16,
    /// Begins with an Ethernet header.
    ethernet: bool,
    tags: usize,
    labels: usize,
    /// IP protocol and fragment kind, if the match is exact in them.
    proto: Option<u8>,
    frag: Option<u8>,
    /// The network header is the one that was matched.
    seen: bool,
}

impl Packet {
    fn is_mpls(&self) -> bool {
        matches!(self.eth_type, eth_type::MPLS | eth_type::MPLS_MCAST)
    }

    fn is_ip(&self) -> bool {
        matches!(self.eth_type, eth_type::IPV4 | eth_type::IPV6)
    }

    /// Follows an action. Copies (clone, sample, check_pkt_len) leave the packet as it is.
    fn after(&mut self, action: &Action) {
        match action {
            Action::PushVlan { .. } => self.tags += 1,
            Action::PopVlan => self.tags = self.tags.saturating_sub(1),
            Action::PushMpls { eth_type, .. } | Action::AddMpls { eth_type, l3: true, .. } => {
                self.eth_type = *eth_type;
                self.labels += 1;
                self.seen = false;
            }
            Action::AddMpls { eth_type, l3: false, .. } => {
                let labels = if self.ethernet { 1 } else { self.labels + 1 };
                *self = Self { eth_type: *eth_type, ethernet: false, tags: 0, labels, seen: false, ..*self };
            }
            Action::PopMpls { eth_type } if self.is_mpls() => {
                self.labels = self.labels.saturating_sub(1);
                // What follows the last label that was matched is not known to be what the action says.
                let more = self.labels > 0 && matches!(*eth_type, eth_type::MPLS | eth_type::MPLS_MCAST);
                self.eth_type = if more { *eth_type } else { 0 };
            }
            Action::PushEth { .. } => self.ethernet = true,
            Action::PopEth => self.ethernet = false,
            Action::PushNsh(_) => {
                *self = Self { eth_type: eth_type::NSH, ethernet: false, tags: 0, seen: false, ..*self };
            }
            Action::PopNsh => *self = Self { eth_type: 0, ethernet: true, tags: 0, ..*self },
            _ => {}
        }
    }
}

fn check_list(actions: &[Action], mut packet: Packet, depth: usize, parent: &'static str) -> Check {
    if depth > MAX_NESTING {
        return Err((parent, ActionErrorKind::TooDeep));
    }
    for (i, action) in actions.iter().enumerate() {
        check(action, i + 1 == actions.len(), packet, depth)?;
        packet.after(action);
    }
    Ok(())
}

fn check(action: &Action, last: bool, packet: Packet, depth: usize) -> Check {
    let name = action.name();
    let fail = |kind| Err((name, kind));
    let need = |there: bool, what| if there { Ok(()) } else { Err((name, ActionErrorKind::Needs(what))) };
    let nested = |actions: &[Action]| check_list(actions, packet, depth + 1, name);
    match action {
        Action::Output(port) if port.0 >= MAX_PORTS => fail(ActionErrorKind::OutOfRange("port")),
        Action::Trunc { max_len } if *max_len < MIN_TRUNC => fail(ActionErrorKind::OutOfRange("length")),
        Action::Set(header) => check_set(header, None, packet).map_err(|kind| (name, kind)),
        Action::SetMasked { value, mask } => {
            check_set(value, Some(mask), packet).map_err(|kind| (name, kind))
        }
        Action::PushVlan { tpid, tci } => {
            need(packet.ethernet, "an Ethernet header")?;
            if !matches!(*tpid, eth_type::VLAN | eth_type::QINQ) {
                return fail(ActionErrorKind::Tpid(*tpid));
            }
            if tci & VLAN_CFI == 0 { fail(ActionErrorKind::NoCfi) } else { Ok(()) }
        }
        Action::PopVlan => need(packet.ethernet, "an Ethernet header"),
        Action::PushMpls { eth_type, .. } | Action::AddMpls { eth_type, .. } => {
            if !matches!(*eth_type, eth_type::MPLS | eth_type::MPLS_MCAST) {
                return fail(ActionErrorKind::NotMpls(*eth_type));
            }
            // A label before the Ethernet header does not care what is behind it.
            if matches!(action, Action::AddMpls { l3: false, .. }) {
                return Ok(());
            }
            if packet.tags > 0 {
                return fail(ActionErrorKind::Needs("a packet without VLAN tags"));
            }
            let known = packet.is_ip()
                || packet.is_mpls()
                || matches!(packet.eth_type, eth_type::ARP | eth_type::RARP | eth_type::TEB);
            need(known, "an IPv4, IPv6, ARP, RARP or MPLS packet")
        }
        Action::PushEth { .. } => need(!packet.ethernet, "a packet without Ethernet header"),
        Action::PopEth => {
            need(packet.ethernet, "an Ethernet header")?;
            need(packet.tags == 0, "a packet without VLAN tags")
        }
        Action::PopNsh => need(packet.eth_type == eth_type::NSH, "eth_type(0x894f)"),
        Action::PushNsh(header) => match (header.mdtype, header.metadata.len()) {
            (1, 16) | (2, 0..=248) => Ok(()),
            _ => fail(ActionErrorKind::OutOfRange("metadata")),
        },
        Action::Ct(args) => {
            need(packet.is_ip(), "an IPv4 or IPv6 packet")?;
            check_ct(args).map_err(|kind| (name, kind))
        }
        Action::Sample { actions, .. } | Action::Clone(actions) => nested(actions),
        Action::DecTtl { exception } => {
            need(packet.is_ip(), "an IPv4 or IPv6 packet")?;
            nested(exception)
        }
        Action::CheckPktLen { greater, less_or_equal, .. } => {
            nested(greater)?;
            nested(less_or_equal)
        }
        Action::Drop(_) if !last => fail(ActionErrorKind::NotLast),
        Action::Psample { cookie, .. } if cookie.len() > 16 => fail(ActionErrorKind::OutOfRange("cookie")),
        _ => Ok(()),
    }
}

fn check_ct(ct: &Ct) -> Result<(), ActionErrorKind> {
    let commit = ct.commit || ct.force_commit;
    if ct.commit && ct.force_commit {
        return Err(ActionErrorKind::Conflict("commit and force_commit"));
    }
    if !commit && ct.mark.is_some() {
        return Err(ActionErrorKind::NeedsCommit("mark"));
    }
    if !commit && ct.label.is_some() {
        return Err(ActionErrorKind::NeedsCommit("label"));
    }
    match &ct.nat {
        Some(nat) if nat.hash && nat.random => Err(ActionErrorKind::Conflict("hash and random")),
        Some(nat) if nat.direction.is_none() && (nat.addr.is_some() || nat.port.is_some()) => {
            Err(ActionErrorKind::Needs("src or dst"))
        }
        _ => Ok(()),
    }
}

/// Checks a set action against the packet, and its mask against its value (U8).
fn check_set(value: &Header, mask: Option<&Header>, packet: Packet) -> Result<(), ActionErrorKind> {
    let need = |there: bool, what| if there { Ok(()) } else { Err(ActionErrorKind::Needs(what)) };
    let transport =
        |proto: u8, what| need(packet.is_ip() && packet.seen && packet.proto == Some(proto), what);
    match value {
        Header::SkbPriority(_) | Header::SkbMark(_) => {}
        Header::Ethernet { .. } => need(packet.ethernet, "an Ethernet header")?,
        Header::Ipv4 { .. } => need(packet.eth_type == eth_type::IPV4, "eth_type(0x0800)")?,
        Header::Ipv6 { .. } => need(packet.eth_type == eth_type::IPV6, "eth_type(0x86dd)")?,
        Header::Tcp { .. } => transport(ip_proto::TCP, "ip proto 6")?,
        Header::Udp { .. } => transport(ip_proto::UDP, "ip proto 17")?,
        Header::Sctp { .. } => transport(ip_proto::SCTP, "ip proto 132")?,
        Header::Icmp { .. } => {
            need(packet.eth_type == eth_type::IPV4, "eth_type(0x0800)")?;
            transport(ip_proto::ICMP, "ip proto 1")?;
        }
        Header::Icmpv6 { .. } | Header::Nd { .. } => {
            need(packet.eth_type == eth_type::IPV6, "eth_type(0x86dd)")?;
            transport(ip_proto::ICMPV6, "ip proto 58")?;
        }
        Header::Arp { .. } => {
            need(
                matches!(packet.eth_type, eth_type::ARP | eth_type::RARP),
                "eth_type(0x0806) or eth_type(0x8035)",
            )?;
        }
        Header::Mpls(_) => need(packet.is_mpls(), "eth_type(0x8847) or eth_type(0x8848)")?,
        Header::Nsh { .. } => need(packet.eth_type == eth_type::NSH, "eth_type(0x894f)")?,
        Header::Tunnel(key) => {
            if mask.is_some() {
                return Err(ActionErrorKind::MaskedTunnel);
            }
            let has_dst = key.tun_ipv4_dst.get() != 0 || key.tun_ipv6_dst != [0; 16];
            need(has_dst, "a tunnel destination")?;
        }
    }
    if let Header::Ipv6 { label, .. } = value
        && label >> 20 != 0
    {
        return Err(ActionErrorKind::FlowLabel);
    }
    check_read_only(value, mask, packet)?;
    match mask {
        Some(mask) => check_bits(value, mask),
        None => Ok(()),
    }
}

/// Protocol and fragment kind: not in a mask, and in a whole header as the packet has them.
fn check_read_only(value: &Header, mask: Option<&Header>, packet: Packet) -> Result<(), ActionErrorKind> {
    let fields = |header: &Header| match header {
        Header::Ipv4 { proto, frag, .. } | Header::Ipv6 { proto, frag, .. } => Some((*proto, *frag)),
        _ => None,
    };
    let (proto_differs, frag_differs) = match (fields(value), mask.map(fields)) {
        (_, Some(Some((proto, frag)))) => (proto != 0, frag != 0),
        (Some((proto, frag)), None) => {
            let as_matched = |has: u8, matched: Option<u8>| packet.seen && matched == Some(has);
            (!as_matched(proto, packet.proto), !as_matched(frag, packet.frag))
        }
        _ => (false, false),
    };
    match (proto_differs, frag_differs) {
        (true, _) => Err(ActionErrorKind::ReadOnly("proto")),
        (_, true) => Err(ActionErrorKind::ReadOnly("frag")),
        _ => Ok(()),
    }
}

/// No bit of the value lies outside the mask.
fn check_bits(value: &Header, mask: &Header) -> Result<(), ActionErrorKind> {
    let ((kind, value), (mask_kind, mask)) = (value.to_key(), mask.to_key());
    if kind != mask_kind {
        return Err(ActionErrorKind::MaskOfOtherHeader);
    }
    let inside = value.words().iter().zip(mask.words()).all(|(v, m)| v & !m == 0);
    if inside { Ok(()) } else { Err(ActionErrorKind::BitsOutsideMask) }
}
