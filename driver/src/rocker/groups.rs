//! Groups: what the device does with a packet that a flow sends on (the programming guide: "Group Table Interface").
//!
//! An output is an L2 interface group, with an L2 rewrite group before it where headers change; several outputs are an L2
//! flood group of these. Flows with the same outputs share their groups. IDs are the driver's to choose, but for the VLAN
//! in an L2 interface group's ID, which has to be that of the flood group that it is in, and the one that a rewrite before
//! it sets.

use super::tlv::Fields;
use super::wire::{cmd, ofdpa};
use smallvec::SmallVec;
use std::collections::HashMap;

/// One output of a flow, in the device's terms: the packet that it sends starts from what the flow matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    /// Front-panel port; 0 is the CPU.
    pub(crate) port: u16,
    /// The outer tag is taken off.
    pub(crate) pop: bool,
    /// The outer tag gets this TCI. Only for the tag that the VLAN table put on: a tag that came with the packet is damaged.
    pub(crate) tci: Option<u16>,
    /// New Ethernet source, not 0.
    pub(crate) src: Option<[u8; 6]>,
    /// New Ethernet destination, not 0.
    pub(crate) dst: Option<[u8; 6]>,
}

/// Outputs of a flow; none: drop.
pub(crate) type Buckets = SmallVec<[Bucket; 1]>;

/// What a group is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Group {
    Interface { vlan: u16, port: u16, pop: bool },
    Rewrite { lower: u32, tci: Option<u16>, src: Option<[u8; 6]>, dst: Option<[u8; 6]> },
    Flood(SmallVec<[u32; 4]>),
}

/// The groups that the device has.
#[derive(Debug)]
pub(crate) struct Groups {
    /// VLAN of untagged packets, and of all groups that do not set one.
    vlan: u16,
    ids: HashMap<Group, u32>,
    groups: HashMap<u32, (Group, u32)>,
    next: u32,
}

/// A command about a group.
fn message(kind: u16, info: &Fields) -> Fields {
    let mut m = Fields::new();
    m.u16(cmd::TYPE, kind).nest(cmd::INFO, info);
    m
}

impl Groups {
    /// None yet.
    pub(crate) fn new(vlan: u16) -> Self {
        Self { vlan, ids: HashMap::new(), groups: HashMap::new(), next: 0 }
    }

    /// The group of these outputs; what the device does not have yet is added to `commands`. 0 stands for none.
    pub(crate) fn acquire(&mut self, buckets: &[Bucket], commands: &mut Vec<Fields>) -> u32 {
        match buckets {
            [] => 0,
            [one] => self.bucket(one, commands),
            several => {
                let members = several.iter().map(|b| self.bucket(b, commands)).collect();
                self.get(Group::Flood(members), commands)
            }
        }
    }

    fn bucket(&mut self, b: &Bucket, commands: &mut Vec<Fields>) -> u32 {
        let vlan = b.tci.map_or(self.vlan, |tci| tci & 0xfff);
        let lower = self.get(Group::Interface { vlan, port: b.port, pop: b.pop }, commands);
        if b.tci.is_none() && b.src.is_none() && b.dst.is_none() {
            return lower;
        }
        self.get(Group::Rewrite { lower, tci: b.tci, src: b.src, dst: b.dst }, commands)
    }

    /// One more user of a group. A group holds its lower ones itself: a second user gives them back.
    fn get(&mut self, group: Group, commands: &mut Vec<Fields>) -> u32 {
        if let Some(&id) = self.ids.get(&group) {
            for lower in lower_of(&group) {
                self.release(lower, commands);
            }
            if let Some((_, users)) = self.groups.get_mut(&id) {
                *users += 1;
            }
            return id;
        }
        let id = self.new_id(&group);
        commands.push(message(cmd::GROUP_ADD, &fields(id, &group)));
        self.ids.insert(group.clone(), id);
        self.groups.insert(id, (group, 1));
        id
    }

    fn new_id(&mut self, group: &Group) -> u32 {
        let (kind, bits) = match group {
            Group::Interface { vlan, port, pop } => {
                return ofdpa::L2_INTERFACE << 28
                    | u32::from(*vlan) << 16
                    | u32::from(*pop) << 8
                    | u32::from(*port);
            }
            Group::Rewrite { .. } => (ofdpa::L2_REWRITE << 28, 0x0fff_ffff),
            Group::Flood(_) => (ofdpa::L2_FLOOD << 28 | u32::from(self.vlan) << 16, 0xffff),
        };
        // There are fewer groups than entries, and these are far fewer than IDs.
        loop {
            self.next = self.next.wrapping_add(1);
            let id = kind | self.next & bits;
            if !self.groups.contains_key(&id) {
                return id;
            }
        }
    }

    /// One user fewer. What nobody uses any more is removed by `commands`.
    pub(crate) fn release(&mut self, id: u32, commands: &mut Vec<Fields>) {
        let Some((_, users)) = self.groups.get_mut(&id) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        if let Some((group, _)) = self.groups.remove(&id) {
            let mut info = Fields::new();
            info.u32(ofdpa::GROUP_ID, id);
            commands.push(message(cmd::GROUP_DEL, &info));
            self.ids.remove(&group);
            for lower in lower_of(&group) {
                self.release(lower, commands);
            }
        }
    }
}

fn lower_of(group: &Group) -> SmallVec<[u32; 4]> {
    match group {
        Group::Interface { .. } => SmallVec::new(),
        Group::Rewrite { lower, .. } => SmallVec::from_iter([*lower]),
        Group::Flood(members) => members.clone(),
    }
}

/// A group as the device is told of it.
fn fields(id: u32, group: &Group) -> Fields {
    let mut f = Fields::new();
    f.u32(ofdpa::GROUP_ID, id);
    match group {
        Group::Interface { port, pop, .. } => {
            f.u32(ofdpa::OUT_PPORT, (*port).into()).u8(ofdpa::POP_VLAN, (*pop).into());
        }
        Group::Rewrite { lower, tci, src, dst } => {
            f.u32(ofdpa::GROUP_ID_LOWER, *lower);
            if let Some(src) = src {
                f.put(ofdpa::SRC_MAC, src);
            }
            if let Some(dst) = dst {
                f.put(ofdpa::DST_MAC, dst);
            }
            if let Some(tci) = tci {
                f.be16(ofdpa::VLAN_ID, *tci);
            }
        }
        Group::Flood(members) => {
            let mut list = Fields::new();
            for (n, id) in (1..).zip(members) {
                list.u32(n, *id);
            }
            f.u16(ofdpa::GROUP_COUNT, members.len() as u16).nest(ofdpa::GROUP_IDS, &list);
        }
    }
    f
}

/// Groups as their commands say, for reading these back.
#[derive(Default)]
pub(crate) struct Read {
    buckets: HashMap<u32, Buckets>,
}

impl Read {
    /// Takes note of the group that the fields of a command add. `None`: it is none that this driver makes.
    pub(crate) fn add(&mut self, info: &[u8]) -> Option<()> {
        use super::tlv::{exactly, find, number};
        let id = number::<4>(info, ofdpa::GROUP_ID)? as u32;
        let buckets = match id >> 28 {
            ofdpa::L2_INTERFACE => {
                let port = u16::try_from(number::<4>(info, ofdpa::OUT_PPORT)?).ok()?;
                let pop = number::<1>(info, ofdpa::POP_VLAN)? != 0;
                SmallVec::from_iter([Bucket { port, pop, tci: None, src: None, dst: None }])
            }
            ofdpa::L2_REWRITE => {
                let lower = number::<4>(info, ofdpa::GROUP_ID_LOWER)? as u32;
                let mut b = *self.get(lower)?.first()?;
                b.src = find(info, ofdpa::SRC_MAC).and_then(|_| exactly(info, ofdpa::SRC_MAC));
                b.dst = find(info, ofdpa::DST_MAC).and_then(|_| exactly(info, ofdpa::DST_MAC));
                b.tci = exactly(info, ofdpa::VLAN_ID).map(u16::from_be_bytes);
                SmallVec::from_iter([b])
            }
            ofdpa::L2_FLOOD => {
                let count = number::<2>(info, ofdpa::GROUP_COUNT)? as u32;
                let list = find(info, ofdpa::GROUP_IDS)?;
                let mut all = SmallVec::new();
                for n in 1..=count {
                    let member = number::<4>(list, n)? as u32;
                    all.push(*self.get(member)?.first()?);
                }
                all
            }
            _ => return None,
        };
        self.buckets.insert(id, buckets);
        Some(())
    }

    /// The outputs of a group.
    pub(crate) fn get(&self, id: u32) -> Option<&Buckets> {
        self.buckets.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(port: u16) -> Bucket {
        Bucket { port, pop: false, tci: None, src: None, dst: None }
    }

    fn kinds(commands: &[Fields]) -> Vec<(u64, u64)> {
        let of = |m: &Fields| {
            let info = super::super::tlv::find(m.bytes(), cmd::INFO).unwrap();
            let kind = super::super::tlv::number::<2>(m.bytes(), cmd::TYPE).unwrap();
            (kind, super::super::tlv::number::<4>(info, ofdpa::GROUP_ID).unwrap())
        };
        commands.iter().map(of).collect()
    }

    #[test]
    fn an_interface_group_is_golden() {
        let mut commands = vec![];
        let id = Groups::new(0xfff).acquire(&[bucket(2)], &mut commands);
        assert_eq!(id, 0x0fff_0002);
        let mut want = vec![1, 0, 0, 0, 10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        want.extend([2, 0, 0, 0, 56, 0, 0, 0]);
        want.extend([10, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0xff, 0x0f, 0, 0, 0, 0]);
        want.extend([8, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        want.extend([59, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(commands[0].bytes(), want);
    }

    #[test]
    fn groups_are_shared_and_go_with_their_last_user() {
        let mut g = Groups::new(0xfff);
        let mut commands = vec![];
        let pushed = Bucket { tci: Some(0xe007), ..bucket(3) };
        let a = g.acquire(&[bucket(2), pushed], &mut commands);
        let (two, three) = (0x0fff_0002, 0x0007_0003);
        let add = u64::from(cmd::GROUP_ADD);
        assert_eq!(kinds(&commands), [(add, two), (add, three), (add, 0x1000_0001), (add, 0x4fff_0002)]);
        commands.clear();
        assert_eq!(g.acquire(&[bucket(2), pushed], &mut commands), a);
        assert_eq!(g.acquire(&[bucket(2)], &mut commands), two as u32);
        assert!(commands.is_empty(), "{commands:?}");
        g.release(a, &mut commands);
        assert!(commands.is_empty(), "{commands:?}");
        g.release(a, &mut commands);
        let del = u64::from(cmd::GROUP_DEL);
        assert_eq!(kinds(&commands), [(del, 0x4fff_0002), (del, 0x1000_0001), (del, three)]);
        commands.clear();
        g.release(two as u32, &mut commands);
        assert_eq!(kinds(&commands), [(del, two)]);
        assert!(g.ids.is_empty() && g.groups.is_empty());
    }
}
