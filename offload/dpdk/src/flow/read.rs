//! rte_flow's lists as slices and values: all that is read of the application's memory.

use crate::rule::action::RuleAction;
use crate::rule::pattern::{Item, ItemKind};
use crate::rule::{Culprit, Refusal};
use crate::sys;
use smallvec::SmallVec;
use std::ffi::c_void;

/// Items and actions that a rule may have: a list without an end would be read for ever.
const LONGEST: usize = 64;
/// Queues that an RSS action may name, and bytes of outer headers.
const QUEUES_MAX: u32 = 1024;
const HEADERS_MAX: usize = 256;

// The kinds' lengths in `rule::pattern` are the structures'.
const _: () = {
    assert!(size_of::<sys::rte_flow_item_eth>() == 20);
    assert!(size_of::<sys::rte_flow_item_vlan>() == 8);
    assert!(size_of::<sys::rte_flow_item_ipv4>() == 20);
    assert!(size_of::<sys::rte_flow_item_ipv6>() == 44);
    assert!(size_of::<sys::rte_flow_item_tcp>() == 20);
    assert!(size_of::<sys::rte_flow_item_udp>() == 8);
    assert!(size_of::<sys::rte_flow_item_sctp>() == 12);
    assert!(size_of::<sys::rte_flow_item_icmp>() == 8);
    assert!(size_of::<sys::rte_flow_item_icmp6>() >= 4);
    assert!(size_of::<sys::rte_flow_item_arp_eth_ipv4>() == 32);
};

fn kind_of(number: sys::rte_flow_item_type) -> ItemKind {
    match number {
        sys::RTE_FLOW_ITEM_TYPE_VOID => ItemKind::Void,
        sys::RTE_FLOW_ITEM_TYPE_ETH => ItemKind::Eth,
        sys::RTE_FLOW_ITEM_TYPE_VLAN => ItemKind::Vlan,
        sys::RTE_FLOW_ITEM_TYPE_IPV4 => ItemKind::Ipv4,
        sys::RTE_FLOW_ITEM_TYPE_IPV6 => ItemKind::Ipv6,
        sys::RTE_FLOW_ITEM_TYPE_TCP => ItemKind::Tcp,
        sys::RTE_FLOW_ITEM_TYPE_UDP => ItemKind::Udp,
        sys::RTE_FLOW_ITEM_TYPE_SCTP => ItemKind::Sctp,
        sys::RTE_FLOW_ITEM_TYPE_ICMP => ItemKind::Icmp,
        sys::RTE_FLOW_ITEM_TYPE_ICMP6 => ItemKind::Icmp6,
        sys::RTE_FLOW_ITEM_TYPE_ARP_ETH_IPV4 => ItemKind::Arp,
        other => ItemKind::Other(other),
    }
}

/// The items of a pattern, without its end.
///
/// # Safety
/// `pattern` is null or a list that ends with END, as rte_flow demands, and stays for as long as the result is used.
pub(super) unsafe fn items<'a>(
    pattern: *const sys::rte_flow_item,
) -> Result<SmallVec<[Item<'a>; 8]>, Refusal> {
    let mut items = SmallVec::new();
    if pattern.is_null() {
        return Err(Refusal::invalid(Culprit::Unspecified, "there is no pattern"));
    }
    for n in 0..LONGEST {
        // SAFETY: by the caller, the list goes on until its end.
        let item = unsafe { &*pattern.add(n) };
        if item.type_ == sys::RTE_FLOW_ITEM_TYPE_END {
            return Ok(items);
        }
        let kind = kind_of(item.type_);
        // SAFETY: by the caller and rte_flow's rules, each of the three is null or a structure of the item's type, which is
        // `len` bytes long and without pointers.
        let bytes = |p: *const c_void| unsafe {
            (!p.is_null() && kind.size() > 0).then(|| std::slice::from_raw_parts(p.cast::<u8>(), kind.size()))
        };
        items.push(Item { kind, spec: bytes(item.spec), last: bytes(item.last), mask: bytes(item.mask) });
    }
    Err(Refusal::invalid(Culprit::Unspecified, format!("more than {LONGEST} items")))
}

/// Which ports of DPDK's are whose.
pub(super) trait Ports {
    /// The NIC's number of the port that the rule is for.
    fn own(&self) -> u32;
    /// The NIC's number of a DPDK port on the same NIC.
    fn of(&self, dpdk: u32) -> Option<u32>;
}

/// The actions of a rule, without their end.
///
/// # Safety
/// `list` is null or a list that ends with END, whose actions have the structures of their types.
pub(super) unsafe fn actions(
    list: *const sys::rte_flow_action,
    ports: &dyn Ports,
) -> Result<SmallVec<[RuleAction; 8]>, Refusal> {
    let mut actions = SmallVec::new();
    if list.is_null() {
        return Err(Refusal::invalid(Culprit::Unspecified, "there are no actions"));
    }
    for n in 0..LONGEST {
        // SAFETY: by the caller, the list goes on until its end.
        let action = unsafe { &*list.add(n) };
        if action.type_ == sys::RTE_FLOW_ACTION_TYPE_END {
            return Ok(actions);
        }
        // SAFETY: by the caller.
        actions.push(unsafe { one(action, ports) });
    }
    Err(Refusal::invalid(Culprit::Unspecified, format!("more than {LONGEST} actions")))
}

/// # Safety
/// As for [`actions`].
unsafe fn one(action: &sys::rte_flow_action, ports: &dyn Ports) -> RuleAction {
    use RuleAction::*;
    const MISSING: RuleAction = Bad("its structure is missing");
    // Reads the structure of type `$t`, or says that it is missing.
    macro_rules! conf {
        ($t:ty, $read:expr) => {{
            // SAFETY: by the caller, `conf` is null or a structure of the action's type.
            match unsafe { action.conf.cast::<$t>().as_ref() } {
                Some(conf) =>
                {
                    #[allow(clippy::redundant_closure_call)]
                    ($read)(conf)
                }
                None => MISSING,
            }
        }};
    }
    let output = |dpdk: u32| ports.of(dpdk).map_or(Foreign(dpdk), Output);
    match action.type_ {
        sys::RTE_FLOW_ACTION_TYPE_VOID => Void,
        sys::RTE_FLOW_ACTION_TYPE_COUNT => Count,
        sys::RTE_FLOW_ACTION_TYPE_DROP => Drop,
        sys::RTE_FLOW_ACTION_TYPE_FLAG => Flag,
        sys::RTE_FLOW_ACTION_TYPE_DEC_TTL | sys::RTE_FLOW_ACTION_TYPE_OF_DEC_NW_TTL => DecTtl,
        sys::RTE_FLOW_ACTION_TYPE_OF_POP_VLAN => PopVlan,
        sys::RTE_FLOW_ACTION_TYPE_PORT_ID => {
            conf!(sys::rte_flow_action_port_id, |c: &sys::rte_flow_action_port_id| {
                if c.original() != 0 { Output(ports.own()) } else { output(c.id) }
            })
        }
        sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT => {
            conf!(sys::rte_flow_action_ethdev, |c: &sys::rte_flow_action_ethdev| output(c.port_id.into()))
        }
        sys::RTE_FLOW_ACTION_TYPE_MARK => {
            conf!(sys::rte_flow_action_mark, |c: &sys::rte_flow_action_mark| Mark(c.id))
        }
        sys::RTE_FLOW_ACTION_TYPE_QUEUE => {
            conf!(sys::rte_flow_action_queue, |c: &sys::rte_flow_action_queue| Queue(c.index))
        }
        sys::RTE_FLOW_ACTION_TYPE_JUMP => {
            conf!(sys::rte_flow_action_jump, |c: &sys::rte_flow_action_jump| Jump(c.group))
        }
        sys::RTE_FLOW_ACTION_TYPE_RSS => conf!(sys::rte_flow_action_rss, rss),
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC => {
            conf!(sys::rte_flow_action_set_mac, |c: &sys::rte_flow_action_set_mac| SetMacSrc(c.mac_addr))
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => {
            conf!(sys::rte_flow_action_set_mac, |c: &sys::rte_flow_action_set_mac| SetMacDst(c.mac_addr))
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC => {
            conf!(sys::rte_flow_action_set_ipv4, |c: &sys::rte_flow_action_set_ipv4| SetIpv4Src(
                u32::from_be(c.ipv4_addr).into()
            ))
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST => {
            conf!(sys::rte_flow_action_set_ipv4, |c: &sys::rte_flow_action_set_ipv4| SetIpv4Dst(
                u32::from_be(c.ipv4_addr).into()
            ))
        }
        // The address is 16 bytes in every DPDK, by whatever name.
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC => conf!([u8; 16], |c: &[u8; 16]| SetIpv6Src((*c).into())),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => conf!([u8; 16], |c: &[u8; 16]| SetIpv6Dst((*c).into())),
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DSCP => {
            conf!(sys::rte_flow_action_set_dscp, |c: &sys::rte_flow_action_set_dscp| SetDscp {
                v6: false,
                dscp: c.dscp
            })
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DSCP => {
            conf!(sys::rte_flow_action_set_dscp, |c: &sys::rte_flow_action_set_dscp| SetDscp {
                v6: true,
                dscp: c.dscp
            })
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_TTL => {
            conf!(sys::rte_flow_action_set_ttl, |c: &sys::rte_flow_action_set_ttl| SetTtl(c.ttl_value))
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC => {
            conf!(sys::rte_flow_action_set_tp, |c: &sys::rte_flow_action_set_tp| SetTpSrc(u16::from_be(
                c.port
            )))
        }
        sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => {
            conf!(sys::rte_flow_action_set_tp, |c: &sys::rte_flow_action_set_tp| SetTpDst(u16::from_be(
                c.port
            )))
        }
        sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN => {
            conf!(sys::rte_flow_action_of_push_vlan, |c: &sys::rte_flow_action_of_push_vlan| PushVlan(
                u16::from_be(c.ethertype)
            ))
        }
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID => {
            conf!(
                sys::rte_flow_action_of_set_vlan_vid,
                |c: &sys::rte_flow_action_of_set_vlan_vid| SetVlanVid(u16::from_be(c.vlan_vid))
            )
        }
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP => {
            conf!(
                sys::rte_flow_action_of_set_vlan_pcp,
                |c: &sys::rte_flow_action_of_set_vlan_pcp| SetVlanPcp(c.vlan_pcp)
            )
        }
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => conf!(sys::rte_flow_action_raw_encap, raw_encap),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => conf!(sys::rte_flow_action_vxlan_encap, vxlan_encap),
        sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => Decap("RAW_DECAP"),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_DECAP => Decap("VXLAN_DECAP"),
        other => Other(other),
    }
}

fn rss(conf: &sys::rte_flow_action_rss) -> RuleAction {
    if conf.level > 1 {
        return RuleAction::Bad("RSS by inner headers");
    }
    if conf.queue_num == 0 {
        return RuleAction::Rss(Vec::new());
    }
    if conf.queue.is_null() || conf.queue_num > QUEUES_MAX {
        return RuleAction::Bad("a list of queues that is missing or too long");
    }
    // SAFETY: rte_flow has it that `queue` are `queue_num` numbers.
    RuleAction::Rss(unsafe { std::slice::from_raw_parts(conf.queue, conf.queue_num as usize) }.to_vec())
}

fn raw_encap(conf: &sys::rte_flow_action_raw_encap) -> RuleAction {
    if conf.data.is_null() || conf.size == 0 || conf.size > HEADERS_MAX {
        return RuleAction::Bad("outer headers that are missing or too long");
    }
    // SAFETY: rte_flow has it that `data` are `size` bytes.
    RuleAction::Encap(unsafe { std::slice::from_raw_parts(conf.data, conf.size) }.to_vec())
}

/// The headers of the definition, one after the other; Ethernet and VXLAN lack what only RAW_ENCAP can say.
fn vxlan_encap(conf: &sys::rte_flow_action_vxlan_encap) -> RuleAction {
    let mut headers = Vec::new();
    if conf.definition.is_null() {
        return RuleAction::Bad("a definition that is missing");
    }
    for n in 0..LONGEST {
        // SAFETY: rte_flow has it that the definition is a list of items that ends with END.
        let item = unsafe { &*conf.definition.add(n) };
        let len = match item.type_ {
            sys::RTE_FLOW_ITEM_TYPE_END => return RuleAction::Encap(headers),
            sys::RTE_FLOW_ITEM_TYPE_VOID => continue,
            sys::RTE_FLOW_ITEM_TYPE_ETH => 14,
            sys::RTE_FLOW_ITEM_TYPE_IPV4 => 20,
            sys::RTE_FLOW_ITEM_TYPE_UDP | sys::RTE_FLOW_ITEM_TYPE_VXLAN => 8,
            _ => return RuleAction::Bad("outer headers other than ETH, IPV4, UDP and VXLAN"),
        };
        if item.spec.is_null() {
            return RuleAction::Bad("an outer header without spec");
        }
        // SAFETY: a spec is a structure of the item's type, which begins with the header's `len` bytes.
        headers.extend_from_slice(unsafe { std::slice::from_raw_parts(item.spec.cast::<u8>(), len) });
    }
    RuleAction::Bad("a definition without end")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C puts a bit field where the compiler likes; the tables of `rule::pattern` say where.
    #[test]
    fn bit_fields_are_where_the_tables_have_them() {
        fn bytes<T>(value: &T) -> &[u8] {
            // SAFETY: the structures are plain data, and were zero all over before one bit was set.
            unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
        }
        let only = |bytes: &[u8], at: usize, value: u8| {
            assert_eq!(bytes.iter().position(|b| *b != 0), Some(at));
            assert_eq!(bytes[at], value);
        };
        // SAFETY: zero is a value of each of them.
        let (mut eth, mut vlan, mut ipv6): (
            sys::rte_flow_item_eth,
            sys::rte_flow_item_vlan,
            sys::rte_flow_item_ipv6,
        ) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        eth.set_has_vlan(1);
        only(bytes(&eth), 14, 1);
        vlan.set_has_more_vlan(1);
        only(bytes(&vlan), 4, 1);
        ipv6.set_has_frag_ext(1);
        only(bytes(&ipv6), 40, 4);
    }
}
