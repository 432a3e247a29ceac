//! How datapaths share a NIC: whose its ports are, and how flows of several datapaths stay apart in one planner.
//!
//! The planner knows one space of port numbers. Each datapath has a part of it: its place in the high half of a number, its own
//! number in the low half. The first datapath's place is 0, so that a lone datapath's numbers are its own. Where there are others, a
//! flow that wildcards its ingress port is made to match its datapath's part, which the planner turns into the NIC's ports of that
//! datapath, in each stage; so no packet of one datapath meets a flow of another, whatever recirculation IDs they use.

use flowlift_driver::nic::NicPort;
use flowlift_flow::{Action, Flow, PortNo};
use flowlift_offload::planner::Reason;
use flowlift_offload::ports::PortMap;
use flowlift_offload::refusal::{ActionCause, Cause, FieldCause, Refusal};
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::meter::MAX_METERS;

/// Bits of a datapath's own port numbers.
const OWN_BITS: u32 = 16;
const OWN: u32 = (1 << OWN_BITS) - 1;
/// Bits of a datapath's own meters' numbers.
const METER_BITS: u32 = MAX_METERS.trailing_zeros();
const _: () = assert!(MAX_METERS.is_power_of_two());
/// Number within a datapath that no port of one has (ports go up to 65,534).
const NO_PORT: u32 = OWN;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Datapaths by place.
    places: Vec<Option<DpIndex>>,
    /// The NIC's ports that a datapath has, under the planner's numbers.
    ports: PortMap,
}

impl Share {
    fn place(&self, dp: DpIndex) -> Option<u32> {
        self.places.iter().position(|place| *place == Some(dp)).and_then(|n| u32::try_from(n).ok())
    }

    /// True if the datapath has a port of the NIC.
    pub(super) fn has(&self, dp: DpIndex) -> bool {
        self.place(dp).is_some()
    }

    /// The datapaths that have ports of the NIC.
    pub(super) fn datapaths(&self) -> impl Iterator<Item = DpIndex> + '_ {
        self.places.iter().flatten().copied()
    }

    /// True if the numbers of some datapath are not its own.
    fn is_shared(&self) -> bool {
        self.places.iter().skip(1).any(Option::is_some)
    }

    /// The NIC's ports under the planner's numbers.
    pub(super) fn ports(&self) -> &PortMap {
        &self.ports
    }

    /// The datapath that has a port of the NIC, and its own number of it.
    pub(super) fn owner(&self, nic: NicPort) -> Option<(DpIndex, PortNo)> {
        let port = self.ports.dp(nic)?;
        let dp = self.places.get((port.0 >> OWN_BITS) as usize).copied().flatten()?;
        Some((dp, PortNo(port.0 & OWN)))
    }

    /// Gives a port of the NIC to a datapath. False if another port has it.
    pub(super) fn attach(&mut self, dp: DpIndex, port: PortNo, nic: NicPort) -> bool {
        if self.ports.dp(nic).is_some() || port.0 >= NO_PORT {
            return false;
        }
        let place = self.place(dp).or_else(|| {
            let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
            // A NIC has fewer ports than there are places.
            let place = u32::try_from(free).ok().filter(|place| *place < OWN)?;
            match self.places.get_mut(free) {
                Some(slot) => *slot = Some(dp),
                None => self.places.push(Some(dp)),
            }
            Some(place)
        });
        let Some(place) = place else { return false };
        self.ports.insert(PortNo(place << OWN_BITS | port.0), nic);
        true
    }

    /// Takes a port from its datapath, and its place from a datapath without ports. False if it was not a port of the NIC.
    pub(super) fn detach(&mut self, dp: DpIndex, port: PortNo) -> bool {
        let Some(place) = self.place(dp) else { return false };
        let number = PortNo(place << OWN_BITS | port.0);
        if self.ports.nic(number).is_none() {
            return false;
        }
        self.ports.remove(number);
        if !self.ports.iter().any(|(port, _)| port.0 >> OWN_BITS == place)
            && let Some(slot) = self.places.get_mut(place as usize)
        {
            *slot = None;
        }
        true
    }

    /// A datapath's own numbers of its ports.
    pub(super) fn ports_of(&self, dp: DpIndex) -> Vec<PortNo> {
        let Some(place) = self.place(dp) else { return Vec::new() };
        let own = self.ports.iter().filter(|(port, _)| port.0 >> OWN_BITS == place);
        own.map(|(port, _)| PortNo(port.0 & OWN)).collect()
    }

    /// The flow as the planner is to see it.
    pub(super) fn planned(&self, dp: DpIndex, mut flow: Flow) -> Flow {
        if !self.is_shared() {
            return flow;
        }
        let Some(place) = self.place(dp) else { return flow };
        let high = place << OWN_BITS;
        let (key, mask) = (&mut flow.matching.key.in_port, &mut flow.matching.mask.0.in_port);
        if *key & *mask & !OWN == 0 {
            (*key, *mask) = (*key & OWN | high, *mask | !OWN);
        } else {
            // Beyond what ports are numbered by.
            (*key, *mask) = (high | NO_PORT, u32::MAX);
        }
        renumber(&mut flow.actions, place);
        flow
    }

    /// The planner's number of a datapath's meter; `None` if the datapath has no port of the NIC.
    pub(super) fn meter(&self, dp: DpIndex, id: u32) -> Option<u32> {
        Some(renumbered_meter(self.place(dp)?, id))
    }

    /// The datapath of a meter, and its own number of it.
    pub(super) fn meter_owner(&self, number: u32) -> Option<(DpIndex, u32)> {
        let dp = self.places.get((number >> METER_BITS) as usize).copied().flatten()?;
        Some((dp, number & (MAX_METERS - 1)))
    }

    /// A reason with the datapath's own port numbers.
    pub(super) fn own(&self, reason: Reason) -> Reason {
        let own = |port: PortNo| if self.is_shared() { PortNo(port.0 & OWN) } else { port };
        let Reason::Refused(Refusal { cause, table }) = reason else { return reason };
        let cause = match cause {
            Cause::Field { name, why: FieldCause::PortNotOnNic(port) } => {
                Cause::Field { name, why: FieldCause::PortNotOnNic(own(port)) }
            }
            Cause::Action { index, name, why: ActionCause::PortNotOnNic(port) } => {
                Cause::Action { index, name, why: ActionCause::PortNotOnNic(own(port)) }
            }
            other => other,
        };
        Reason::Refused(Refusal { cause, table })
    }
}

/// A meter's number with its datapath's place; one that no meter has stays so.
fn renumbered_meter(place: u32, id: u32) -> u32 {
    if id < MAX_METERS { place << METER_BITS | id } else { u32::MAX }
}

/// Puts a datapath's place into the outputs and meters of a list.
fn renumber(actions: &mut [Action], place: u32) {
    for action in actions {
        match action {
            Action::Output(port) => port.0 = place << OWN_BITS | port.0.min(NO_PORT),
            Action::Meter(id) => *id = renumbered_meter(place, *id),
            Action::Clone(inner) | Action::Sample { actions: inner, .. } => renumber(inner, place),
            Action::DecTtl { exception } => renumber(exception, place),
            Action::CheckPktLen { greater, less_or_equal, .. } => {
                renumber(greater, place);
                renumber(less_or_equal, place);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlift_flow::text::{NoNames, parse_dump_line};

    const ONE: DpIndex = DpIndex(11);
    const TWO: DpIndex = DpIndex(22);

    fn flow(text: &str) -> Flow {
        parse_dump_line(text, &NoNames).unwrap().flow
    }

    fn ports(flow: &Flow) -> (u32, u32) {
        (flow.matching.key.in_port & flow.matching.mask.0.in_port, flow.matching.mask.0.in_port)
    }

    #[test]
    fn a_lone_datapath_has_its_own_numbers_and_a_second_one_other_ones() {
        let text = "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, \
                    actions:2,clone(3)";
        let mut share = Share::default();
        assert!(share.attach(ONE, PortNo(1), NicPort(1)));
        assert_eq!(share.planned(ONE, flow(text)), flow(text));
        assert!(!share.attach(TWO, PortNo(1), NicPort(1)), "the port is another's");
        assert!(share.attach(TWO, PortNo(1), NicPort(2)));
        assert_eq!(
            (share.owner(NicPort(1)), share.owner(NicPort(2))),
            (Some((ONE, PortNo(1))), Some((TWO, PortNo(1))))
        );
        let (one, two) = (share.planned(ONE, flow(text)), share.planned(TWO, flow(text)));
        assert_eq!((ports(&one), ports(&two)), ((1, u32::MAX), (0x1_0001, u32::MAX)));
        assert_eq!(
            two.actions,
            [Action::Output(PortNo(0x1_0002)), Action::Clone(vec![Action::Output(PortNo(0x1_0003))])]
        );
        let reason = |port| {
            Reason::Refused(Refusal::of_nic(Cause::Field {
                name: "in_port",
                why: FieldCause::PortNotOnNic(PortNo(port)),
            }))
        };
        assert_eq!(share.own(reason(0x1_0007)), reason(7));
        assert!(share.detach(TWO, PortNo(1)) && !share.detach(TWO, PortNo(1)));
        assert_eq!(share.datapaths().collect::<Vec<_>>(), [ONE]);
        assert_eq!(share.planned(ONE, flow(text)), flow(text));
    }

    #[test]
    fn meters_of_two_datapaths_have_two_numbers() {
        let mut share = Share::default();
        assert!(share.attach(ONE, PortNo(1), NicPort(1)) && share.attach(TWO, PortNo(1), NicPort(2)));
        let metered = flow(
            "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, \
             actions:clone(meter(3),2)",
        );
        for dp in [ONE, TWO] {
            let [Action::Clone(inner)] = &share.planned(dp, metered.clone()).actions[..] else { panic!() };
            let [Action::Meter(number), _] = inner[..] else { panic!() };
            assert_eq!((share.meter(dp, 3), share.meter_owner(number)), (Some(number), Some((dp, 3))));
        }
        assert_eq!(share.meter_owner(share.meter(TWO, MAX_METERS).unwrap()), None);
    }

    #[test]
    fn a_wildcarded_ingress_port_stays_within_its_datapath() {
        let mut share = Share::default();
        assert!(share.attach(ONE, PortNo(1), NicPort(1)) && share.attach(TWO, PortNo(1), NicPort(2)));
        let mut any = flow(
            "recirc_id(0),eth(),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, actions:2",
        );
        (any.matching.key.in_port, any.matching.mask.0.in_port) = (0, 0);
        assert_eq!(ports(&share.planned(ONE, any.clone())), (0, !OWN));
        assert_eq!(ports(&share.planned(TWO, any.clone())), (0x1_0000, !OWN));
        // What no port has as its number is no other datapath's port.
        (any.matching.key.in_port, any.matching.mask.0.in_port) = (0x1_0001, u32::MAX);
        assert_eq!(ports(&share.planned(ONE, any)), (NO_PORT, u32::MAX));
    }
}
