//! Why a rule is refused, in the terms of `struct rte_flow_error`.

use flowlift_offload::refusal as planner;

/// What of a rule stands in the way; items and actions by their place in the list, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Culprit {
    Unspecified,
    Handle,
    Group,
    Priority,
    Ingress,
    Egress,
    Transfer,
    Item(usize),
    ItemSpec(usize),
    ItemLast(usize),
    ItemMask(usize),
    Action(usize),
    ActionConf(usize),
}

/// A refusal: what stands in the way, the error number, and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What stands in the way.
    pub culprit: Culprit,
    /// Positive `errno`.
    pub errno: i32,
    /// Message.
    pub message: String,
}

/// `EINVAL`: the rule makes no sense, on any NIC.
pub const INVALID: i32 = 22;
/// `ENOTSUP`: the rule makes sense, but not on this NIC.
pub const UNSUPPORTED: i32 = 95;
/// `EEXIST`: another rule with the same pattern is there.
pub const EXISTS: i32 = 17;
/// `ENOSPC`: the tables are full.
pub const NO_ROOM: i32 = 28;
/// `ENODEV`: the NIC or the port is gone.
pub const GONE: i32 = 19;

impl Refusal {
    /// A rule that makes no sense.
    pub fn invalid(culprit: Culprit, message: impl Into<String>) -> Self {
        Self { culprit, errno: INVALID, message: message.into() }
    }

    /// A rule that this NIC cannot have.
    pub fn unsupported(culprit: Culprit, message: impl Into<String>) -> Self {
        Self { culprit, errno: UNSUPPORTED, message: message.into() }
    }

    /// No part of the rule stands in the way.
    pub fn at_all(errno: i32, message: impl Into<String>) -> Self {
        Self { culprit: Culprit::Unspecified, errno, message: message.into() }
    }

    /// The planner's refusal of the flow that the rule became.
    pub fn of_planner(refusal: &planner::Refusal, places: &Places) -> Self {
        let culprit = match refusal.cause {
            planner::Cause::Field { name, .. } => places.field(name),
            planner::Cause::Action { index, .. } => {
                places.actions.get(usize::from(index)).map_or(Culprit::Unspecified, |n| Culprit::Action(*n))
            }
            planner::Cause::Limit(planner::Limit::NoRanks) => Culprit::Priority,
            planner::Cause::Recirc { .. } => Culprit::Group,
            _ => Culprit::Unspecified,
        };
        let full = matches!(refusal.cause, planner::Cause::Limit(planner::Limit::Full));
        let errno = if full { NO_ROOM } else { UNSUPPORTED };
        let mut message = refusal.to_string();
        if let planner::Cause::Action { index, .. } = refusal.cause {
            // The flow's count of its actions is not the rule's, which the culprit names.
            message = message.replacen(&format!(" (number {})", u32::from(index) + 1), "", 1);
        }
        Self { culprit, errno, message }
    }
}

/// Which item gave which part of the match, and which action of the rule each action of the flow came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Place of the ETH item.
    pub eth: Option<usize>,
    /// Places of the VLAN items, outermost first.
    pub vlan: [Option<usize>; 2],
    /// Place of the IPV4, IPV6 or ARP item.
    pub l3: Option<usize>,
    /// Place of the TCP, UDP, SCTP, ICMP or ICMP6 item.
    pub l4: Option<usize>,
    /// For each action of the flow, the rule's.
    pub actions: Vec<usize>,
}

impl Places {
    /// The item that a field in the planner's words comes from.
    fn field(&self, name: &str) -> Culprit {
        let is = |prefix: &str| name.starts_with(prefix);
        let item = if is("encap") {
            self.vlan[1]
        } else if is("vlan") {
            self.vlan[0]
        } else if is("eth") {
            self.eth.or(self.l3)
        } else if is("tcp") || is("udp") || is("sctp") || is("icmp") || is("tp") {
            self.l4.or(self.l3)
        } else if is("ip") || is("arp") {
            self.l3
        } else {
            None
        };
        item.map_or(Culprit::Unspecified, Culprit::Item)
    }
}
