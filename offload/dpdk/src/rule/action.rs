//! Actions of a rule as actions of a flow.
//!
//! MARK, QUEUE and RSS say what becomes of a packet in the host, which is no action of a datapath: such a packet leaves the
//! NIC's tables by a recirculation that software resumes, and what software then does is a [`Delivery`]. So the planner sees
//! nothing but a recirculation.

use super::FIRST_DELIVERY;
use super::refusal::{Culprit, Places, Refusal};
use flowlift_flow::action::{TnlHeader, TnlPush, VxlanHeader};
use flowlift_flow::key::{VLAN_CFI, eth_type, ip_proto};
use flowlift_flow::{Action, Header, MacAddr, Match, PortNo};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An action of rte_flow, read out of its structure. Addresses and ports are as on the wire, numbers native.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RuleAction {
    Void,
    Count,
    Drop,
    /// Out of a port of the same NIC, by the NIC's number of it.
    Output(u32),
    /// To a port that is not on this NIC; the DPDK port's number.
    Foreign(u32),
    Mark(u32),
    Flag,
    Queue(u16),
    Rss(Vec<u16>),
    Jump(u32),
    SetMacSrc(MacAddr),
    SetMacDst(MacAddr),
    SetIpv4Src(Ipv4Addr),
    SetIpv4Dst(Ipv4Addr),
    SetIpv6Src(Ipv6Addr),
    SetIpv6Dst(Ipv6Addr),
    SetDscp {
        v6: bool,
        dscp: u8,
    },
    SetTtl(u8),
    DecTtl,
    SetTpSrc(u16),
    SetTpDst(u16),
    PushVlan(u16),
    SetVlanVid(u16),
    SetVlanPcp(u8),
    PopVlan,
    /// Outer headers, as bytes from Ethernet to VXLAN (RAW_ENCAP, VXLAN_ENCAP).
    Encap(Vec<u8>),
    /// Outer headers off; the name in `rte_flow.h`.
    Decap(&'static str),
    /// One whose structure is missing or makes no sense, and why.
    Bad(&'static str),
    /// One that no flow has, by its number in `rte_flow.h`.
    Other(u32),
}

/// What becomes of a packet that is given to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Delivery {
    /// Mark for the packet's buffer.
    pub mark: Option<u32>,
    /// The packet's buffer says that it was flagged; a mark says so too.
    pub flag: bool,
    /// Receive queues, one of which gets it, by its headers; empty: any queue of the port.
    pub queues: Vec<u16>,
}

/// The actions of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowActions {
    /// Actions; a delivery is a [`Action::Recirc`] to [`FIRST_DELIVERY`], to be replaced by the delivery's own ID.
    pub actions: Vec<Action>,
    /// The delivery, if there is one.
    pub delivery: Option<Delivery>,
    /// COUNT is among them.
    pub count: bool,
}

/// UDP port of VXLAN (RFC 7348).
const VXLAN_PORT: u16 = 4789;
const SETS: &str = "it needs an item of the header that it sets";

/// Translates the actions of a rule with this match; notes in `places` where each action of the flow comes from.
///
/// # Errors
/// The first action that makes no sense, or that no flow can have.
pub fn to_actions(
    rule: &[RuleAction],
    m: &Match,
    queues: u16,
    places: &mut Places,
) -> Result<FlowActions, Refusal> {
    let mut b = Builder {
        ty: if m.mask.0.eth_type.get() == 0xffff { m.key.eth_type.get() } else { 0 },
        proto: if m.mask.0.ip_proto == 0xff { m.key.ip_proto } else { 0 },
        out: FlowActions::default(),
        origin: Vec::new(),
        pushed: None,
        fate: None,
        drop: None,
    };
    for (n, action) in rule.iter().enumerate() {
        b.action(n, action, queues)?;
    }
    let last = rule.len().saturating_sub(1);
    if b.fate.is_none() {
        let message =
            "no action says where packets go: QUEUE, RSS, MARK, DROP, JUMP, PORT_ID or REPRESENTED_PORT";
        return Err(Refusal::invalid(Culprit::Action(last), message));
    }
    if let (Some(n), true) = (b.drop, b.outputs()) {
        return Err(Refusal::invalid(
            Culprit::Action(n),
            "DROP beside an action that gives the packet to somebody",
        ));
    }
    if b.out.delivery.is_some() {
        b.push(last, Action::Recirc(FIRST_DELIVERY));
    }
    places.actions = b.origin;
    Ok(b.out)
}

struct Builder {
    /// Ethernet type and IP protocol that the match fixes; 0 none.
    ty: u16,
    proto: u8,
    out: FlowActions,
    origin: Vec<usize>,
    /// Place in `out` of the last tag that was pushed.
    pushed: Option<usize>,
    /// The first action that says where packets go.
    fate: Option<usize>,
    drop: Option<usize>,
}

impl Builder {
    fn outputs(&self) -> bool {
        self.out.delivery.is_some()
            || self.out.actions.iter().any(|a| matches!(a, Action::Output(_) | Action::Recirc(_)))
    }

    fn push(&mut self, n: usize, action: Action) {
        self.out.actions.push(action);
        self.origin.push(n);
    }

    fn set(&mut self, n: usize, value: Header, mask: Header) {
        self.push(n, Action::SetMasked { value, mask });
    }

    fn action(&mut self, n: usize, action: &RuleAction, queues: u16) -> Result<(), Refusal> {
        let invalid = |why: &str| Err(Refusal::invalid(Culprit::Action(n), why));
        let bad = |why: String| Err(Refusal::invalid(Culprit::ActionConf(n), why));
        if self.jumps() && !matches!(action, RuleAction::Void | RuleAction::Count) {
            return invalid("nothing comes after JUMP");
        }
        match action {
            RuleAction::Void => {}
            RuleAction::Count => self.out.count = true,
            RuleAction::Drop => (self.drop, self.fate) = (Some(n), Some(n)),
            RuleAction::Output(port) => {
                self.fate = Some(n);
                self.push(n, Action::Output(PortNo(*port)));
            }
            RuleAction::Foreign(port) => {
                return bad(format!("port {port} is not a port of this NIC"));
            }
            RuleAction::Mark(mark) => self.deliver(n)?.mark = Some(*mark),
            RuleAction::Flag => self.deliver(n)?.flag = true,
            RuleAction::Queue(queue) => {
                if *queue >= queues {
                    return bad(format!("queue {queue} of {queues}"));
                }
                self.deliver_to(n, vec![*queue])?;
            }
            RuleAction::Rss(to) => {
                if let Some(queue) = to.iter().find(|queue| **queue >= queues) {
                    return bad(format!("queue {queue} of {queues}"));
                }
                self.deliver_to(n, to.clone())?;
            }
            RuleAction::Jump(group) => {
                if self.out.delivery.is_some() {
                    return invalid("JUMP beside MARK, QUEUE or RSS");
                }
                if *group == 0 || *group >= FIRST_DELIVERY {
                    return bad(format!(
                        "group {group} cannot be jumped to: groups are 1 to {}",
                        FIRST_DELIVERY - 1
                    ));
                }
                self.fate = Some(n);
                self.push(n, Action::Recirc(*group));
            }
            RuleAction::PushVlan(tpid) => {
                if !matches!(*tpid, eth_type::VLAN | eth_type::QINQ) {
                    return bad(format!("a tag's type is 0x8100 or 0x88a8, not {tpid:#06x}"));
                }
                self.pushed = Some(self.out.actions.len());
                self.push(n, Action::PushVlan { tpid: *tpid, tci: VLAN_CFI });
            }
            RuleAction::SetVlanVid(vid) => self.set_tag(n, *vid, 0x0fff, *vid <= 0x0fff)?,
            RuleAction::SetVlanPcp(pcp) => self.set_tag(n, u16::from(*pcp) << 13, 0xe000, *pcp < 8)?,
            RuleAction::PopVlan => {
                self.pushed = None;
                self.push(n, Action::PopVlan);
            }
            RuleAction::DecTtl => self.push(n, Action::DecTtl { exception: Vec::new() }),
            RuleAction::Encap(headers) => {
                let header = TnlHeader::Vxlan(
                    vxlan(headers).map_err(|why| Refusal::unsupported(Culprit::ActionConf(n), why))?,
                );
                // What the rule does then is up to its other actions, not to these ports.
                let (tnl_port, out_port) = (PortNo(0), PortNo(0));
                // A tag that is set belongs to the outer headers from here on.
                self.pushed = None;
                self.push(n, Action::TnlPush(Box::new(TnlPush { tnl_port, out_port, header })));
            }
            RuleAction::Decap(name) => {
                let message = format!("{name}: outer headers are taken off in software only");
                return Err(Refusal::unsupported(Culprit::Action(n), message));
            }
            RuleAction::Bad(why) => return bad((*why).into()),
            RuleAction::Other(number) => {
                let message = format!("no flow of this NIC has actions of type {number}");
                return Err(Refusal::unsupported(Culprit::Action(n), message));
            }
            _ => return self.set_header(n, action),
        }
        Ok(())
    }

    fn jumps(&self) -> bool {
        matches!(self.out.actions.last(), Some(Action::Recirc(_)))
    }

    fn deliver(&mut self, n: usize) -> Result<&mut Delivery, Refusal> {
        self.fate.get_or_insert(n);
        Ok(self.out.delivery.get_or_insert_default())
    }

    fn deliver_to(&mut self, n: usize, queues: Vec<u16>) -> Result<(), Refusal> {
        let delivery = self.deliver(n)?;
        if !delivery.queues.is_empty() {
            return Err(Refusal::invalid(Culprit::Action(n), "a packet goes to one QUEUE or RSS, not two"));
        }
        delivery.queues = queues;
        Ok(())
    }

    /// Sets bits of the tag that was pushed last.
    fn set_tag(&mut self, n: usize, value: u16, mask: u16, fits: bool) -> Result<(), Refusal> {
        if !fits {
            return Err(Refusal::invalid(Culprit::ActionConf(n), "more bits than a tag has for it"));
        }
        match self.pushed.and_then(|at| self.out.actions.get_mut(at)) {
            Some(Action::PushVlan { tci, .. }) => {
                *tci = *tci & !mask | value;
                Ok(())
            }
            _ => Err(Refusal::unsupported(
                Culprit::Action(n),
                "only a tag that OF_PUSH_VLAN pushed before can be set",
            )),
        }
    }

    fn set_header(&mut self, n: usize, action: &RuleAction) -> Result<(), Refusal> {
        const NO4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        const ALL4: Ipv4Addr = Ipv4Addr::BROADCAST;
        const NO6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
        const ALL6: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);
        let eth = |src, dst| Header::Ethernet { src, dst };
        let v4 = |src, dst, tos, ttl| Header::Ipv4 { src, dst, proto: 0, tos, ttl, frag: 0 };
        let v6 =
            |src, dst, tclass, hlimit| Header::Ipv6 { src, dst, label: 0, proto: 0, tclass, hlimit, frag: 0 };
        let needs =
            |there: bool| if there { Ok(()) } else { Err(Refusal::invalid(Culprit::Action(n), SETS)) };
        let (is_v4, is_v6) = (self.ty == eth_type::IPV4, self.ty == eth_type::IPV6);
        let (value, mask) = match action {
            RuleAction::SetMacSrc(mac) => (eth(*mac, [0; 6]), eth([0xff; 6], [0; 6])),
            RuleAction::SetMacDst(mac) => (eth([0; 6], *mac), eth([0; 6], [0xff; 6])),
            RuleAction::SetIpv4Src(a) => {
                needs(is_v4)?;
                (v4(*a, NO4, 0, 0), v4(ALL4, NO4, 0, 0))
            }
            RuleAction::SetIpv4Dst(a) => {
                needs(is_v4)?;
                (v4(NO4, *a, 0, 0), v4(NO4, ALL4, 0, 0))
            }
            RuleAction::SetIpv6Src(a) => {
                needs(is_v6)?;
                (v6(*a, NO6, 0, 0), v6(ALL6, NO6, 0, 0))
            }
            RuleAction::SetIpv6Dst(a) => {
                needs(is_v6)?;
                (v6(NO6, *a, 0, 0), v6(NO6, ALL6, 0, 0))
            }
            RuleAction::SetDscp { v6: six, dscp } => {
                needs(if *six { is_v6 } else { is_v4 })?;
                if *dscp > 63 {
                    return Err(Refusal::invalid(Culprit::ActionConf(n), "a DSCP is 0 to 63"));
                }
                let (value, mask) = (dscp << 2, 0xfc);
                if *six {
                    (v6(NO6, NO6, value, 0), v6(NO6, NO6, mask, 0))
                } else {
                    (v4(NO4, NO4, value, 0), v4(NO4, NO4, mask, 0))
                }
            }
            RuleAction::SetTtl(ttl) => {
                needs(is_v4 || is_v6)?;
                if is_v6 {
                    (v6(NO6, NO6, 0, *ttl), v6(NO6, NO6, 0, 0xff))
                } else {
                    (v4(NO4, NO4, 0, *ttl), v4(NO4, NO4, 0, 0xff))
                }
            }
            RuleAction::SetTpSrc(port) => (self.ports(n, *port, 0)?, self.ports(n, 0xffff, 0)?),
            RuleAction::SetTpDst(port) => (self.ports(n, 0, *port)?, self.ports(n, 0, 0xffff)?),
            _ => return Err(Refusal::unsupported(Culprit::Action(n), "no flow of this NIC has this action")),
        };
        self.set(n, value, mask);
        Ok(())
    }

    fn ports(&self, n: usize, src: u16, dst: u16) -> Result<Header, Refusal> {
        match self.proto {
            ip_proto::TCP => Ok(Header::Tcp { src, dst }),
            ip_proto::UDP => Ok(Header::Udp { src, dst }),
            ip_proto::SCTP => Ok(Header::Sctp { src, dst }),
            _ => Err(Refusal::invalid(Culprit::Action(n), SETS)),
        }
    }
}

/// Outer headers as the application gives them, without what the NIC fills in: lengths and IPv4 checksum. What an item of VXLAN_ENCAP
/// that says nothing but addresses and ports leaves 0 is what it must be, or a TTL of 64.
fn vxlan(headers: &[u8]) -> Result<VxlanHeader, String> {
    const ORDER: &str = "outer headers are Ethernet, IPv4, UDP and VXLAN without options, 50 bytes in all";
    let mut bytes: [u8; VxlanHeader::LEN] =
        headers.try_into().map_err(|_| format!("{ORDER}, not {}", headers.len()))?;
    for filled_in in [16..18, 24..26, 38..40] {
        bytes[filled_in].fill(0);
    }
    // Ethernet type, IPv4's first byte, TTL and protocol, UDP destination port, VXLAN's flags.
    for (at, known) in [
        (12, &[0x08, 0x00][..]),
        (14, &[0x45]),
        (22, &[64]),
        (23, &[ip_proto::UDP]),
        (36, &VXLAN_PORT.to_be_bytes()),
        (42, &[0x08]),
    ] {
        let field = &mut bytes[at..at + known.len()];
        if field.iter().all(|b| *b == 0) {
            field.copy_from_slice(known);
        }
    }
    if bytes[40..42] != [0; 2] {
        return Err("an outer UDP checksum is not computed by this NIC".into());
    }
    VxlanHeader::new(&bytes).ok_or_else(|| ORDER.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_flow::{Key, Mask};

    fn udp() -> Match {
        let key = Key { eth_type: 0x0800.into(), ip_proto: 17, ..Key::default() };
        let mask = Key { eth_type: 0xffff.into(), ip_proto: 0xff, ..Key::default() };
        Match { key, mask: Mask(mask), attrs: Default::default() }
    }

    fn translate(rule: &[RuleAction]) -> Result<FlowActions, Refusal> {
        to_actions(rule, &udp(), 4, &mut Places::default())
    }

    #[test]
    fn each_action_has_its_equivalent_in_order() {
        let mut places = Places::default();
        let rule = [
            RuleAction::Count,
            RuleAction::SetMacDst([2, 0, 0, 0, 0, 9]),
            RuleAction::PushVlan(0x8100),
            RuleAction::SetVlanPcp(3),
            RuleAction::SetVlanVid(5),
            RuleAction::Output(2),
            RuleAction::Void,
            RuleAction::PopVlan,
            RuleAction::SetTpSrc(99),
            RuleAction::Output(3),
        ];
        let got = to_actions(&rule, &udp(), 1, &mut places).unwrap();
        let eth = |dst| Header::Ethernet { src: [0; 6], dst };
        let want = vec![
            Action::SetMasked { value: eth([2, 0, 0, 0, 0, 9]), mask: eth([0xff; 6]) },
            Action::PushVlan { tpid: 0x8100, tci: 0x7005 },
            Action::Output(PortNo(2)),
            Action::PopVlan,
            Action::SetMasked {
                value: Header::Udp { src: 99, dst: 0 },
                mask: Header::Udp { src: 0xffff, dst: 0 },
            },
            Action::Output(PortNo(3)),
        ];
        assert_eq!(got, FlowActions { actions: want, delivery: None, count: true });
        assert_eq!(places.actions, [1, 2, 5, 7, 8, 9]);
        assert_eq!(translate(&[RuleAction::Drop]).unwrap().actions, []);
    }

    #[test]
    fn what_the_host_gets_is_one_delivery() {
        let got = translate(&[RuleAction::Mark(7), RuleAction::Rss(vec![0, 2])]).unwrap();
        assert_eq!(got.actions, [Action::Recirc(FIRST_DELIVERY)]);
        assert_eq!(got.delivery, Some(Delivery { mark: Some(7), flag: false, queues: vec![0, 2] }));
        let got = translate(&[RuleAction::Flag, RuleAction::Queue(1)]).unwrap();
        assert_eq!(got.delivery, Some(Delivery { mark: None, flag: true, queues: vec![1] }));
        let got = translate(&[RuleAction::Output(2), RuleAction::Queue(3)]).unwrap();
        assert_eq!(got.actions, [Action::Output(PortNo(2)), Action::Recirc(FIRST_DELIVERY)]);
    }

    /// Outer headers as Open vSwitch gives them: complete, with the IPv4 checksum of an empty packet.
    fn outer() -> Vec<u8> {
        let hex = "020000009902020000009901 0800 45000000000040004011b6e2c0000201c0000202 000012b500000000 0800000000006400";
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn outer_headers_are_completed_and_what_the_nic_fills_in_is_left_out() {
        let header = |bytes: &[u8]| {
            let got = translate(&[RuleAction::Encap(bytes.to_vec()), RuleAction::Output(2)]).unwrap();
            match &got.actions[..] {
                [Action::TnlPush(push), Action::Output(PortNo(2))] => push.header.clone(),
                other => panic!("{other:?}"),
            }
        };
        let mut want = outer();
        want[24..26].fill(0);
        let want = TnlHeader::Vxlan(VxlanHeader::new(&want).unwrap());
        assert_eq!(header(&outer()), want);
        // As an application that gives addresses and ports alone: all else is what it must be.
        let mut bare = outer();
        for left_out in [12..16, 22..26, 36..38, 42..43] {
            bare[left_out].fill(0);
        }
        bare[16..18].copy_from_slice(&[1, 2]);
        assert_eq!(header(&bare), want);
    }

    #[test]
    fn what_makes_no_sense_names_its_action() {
        for (rule, culprit, part) in [
            (vec![RuleAction::Count], Culprit::Action(0), "where packets go"),
            (vec![], Culprit::Action(0), "where packets go"),
            (vec![RuleAction::Drop, RuleAction::Output(1)], Culprit::Action(0), "DROP beside"),
            (vec![RuleAction::Queue(4)], Culprit::ActionConf(0), "queue 4 of 4"),
            (vec![RuleAction::Rss(vec![0, 9])], Culprit::ActionConf(0), "queue 9 of 4"),
            (vec![RuleAction::Queue(1), RuleAction::Rss(vec![0])], Culprit::Action(1), "not two"),
            (vec![RuleAction::Jump(0)], Culprit::ActionConf(0), "group 0"),
            (vec![RuleAction::Jump(1), RuleAction::Output(1)], Culprit::Action(1), "after JUMP"),
            (vec![RuleAction::SetVlanVid(5), RuleAction::Drop], Culprit::Action(0), "OF_PUSH_VLAN"),
            (vec![RuleAction::PushVlan(0x9100), RuleAction::Output(1)], Culprit::ActionConf(0), "0x9100"),
            (
                vec![RuleAction::PushVlan(0x8100), RuleAction::SetVlanVid(4096)],
                Culprit::ActionConf(1),
                "more bits",
            ),
            (vec![RuleAction::SetIpv6Src(Ipv6Addr::LOCALHOST)], Culprit::Action(0), "needs an item"),
            (vec![RuleAction::Foreign(7)], Culprit::ActionConf(0), "port 7"),
            (vec![RuleAction::Other(99)], Culprit::Action(0), "type 99"),
            (vec![RuleAction::Bad("conf is missing")], Culprit::ActionConf(0), "missing"),
            (
                vec![RuleAction::Decap("VXLAN_DECAP"), RuleAction::Output(1)],
                Culprit::Action(0),
                "VXLAN_DECAP",
            ),
            (
                vec![RuleAction::Encap(vec![0; 42]), RuleAction::Output(1)],
                Culprit::ActionConf(0),
                "50 bytes in all, not 42",
            ),
            (
                vec![RuleAction::Void, RuleAction::Encap(outer().into_iter().map(|b| b ^ 1).collect())],
                Culprit::ActionConf(1),
                "checksum is not computed",
            ),
            (
                vec![
                    RuleAction::PushVlan(0x8100),
                    RuleAction::Encap(outer()),
                    RuleAction::SetVlanVid(5),
                    RuleAction::Output(1),
                ],
                Culprit::Action(2),
                "OF_PUSH_VLAN",
            ),
        ] {
            let refusal = translate(&rule).unwrap_err();
            assert_eq!(refusal.culprit, culprit, "{rule:?}: {refusal:?}");
            assert!(refusal.message.contains(part), "{rule:?}: {refusal:?}");
        }
    }
}
