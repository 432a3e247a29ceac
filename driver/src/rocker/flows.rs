//! An entry as flows of the device's ACL policy table, and back.
//!
//! The VLAN table, set up once, gives every untagged packet a tag of its own, with a VLAN ID that no tagged packet can
//! bring (see `bringup`); the ACL policy table sees that tag. So "untagged" is an exact match of it, and what is sent on
//! has it taken off, or gets another one in its place. An entry that does not look at tags is two flows, one for either
//! kind of packet.
//!
//! What a tag's TCI may be compared with: the device compares all 16 bits, of which bit 12 (drop eligible) is not part of
//! an entry's match, where it says "present". It takes no flow whose TCI is 0, mask or no mask, so bit 12 is always set in
//! the value of a flow for tagged packets, and never in its mask.

use super::groups::{self, Bucket, Buckets, Groups};
use super::tlv::{Fields, exactly, find, number, read};
use super::wire::{cmd, ofdpa};
use crate::nic::{
    ActionKind, ActionSet, CounterCaps, Entry, Field, FieldCaps, MatchKind, Miss, NicAction, NicPort, Stage,
    TableCaps, TableId, TableKind,
};
use smallvec::SmallVec;

/// Type of the only tags that the device knows.
const TPID: u16 = 0x8100;
/// "Present" in an entry's TCI.
const PRESENT: u16 = 0x1000;
/// Outputs of an entry.
const MAX_ACTIONS: u8 = 32;
/// Lowest priority of entries; those of the driver's own flows are below.
const PRIORITY: u32 = 16;

/// The entry's table: its ID on the device, too.
pub(crate) const TABLE: TableId = TableId(ofdpa::TABLE_ACL);
/// Flows that an entry can become.
pub(crate) const PARTS: usize = 2;
const KEY_LEN: u16 = 18;
const FIELDS: [(Field, u16, MatchKind); 5] = [
    (Field::InPort, 0, MatchKind::Exact),
    (Field::EthDst, 2, MatchKind::Any),
    (Field::EthSrc, 8, MatchKind::Any),
    (Field::EthType, 14, MatchKind::Exact),
    (Field::Vlan0Tci, 16, MatchKind::Any),
];

/// Capability record of the table.
pub(crate) fn table_caps(max_entries: u32) -> TableCaps {
    let actions = [ActionKind::Output, ActionKind::SetField, ActionKind::PushVlan, ActionKind::PopVlan];
    let field = |&(field, offset, kind): &(Field, u16, MatchKind)| FieldCaps {
        field,
        offset,
        width: field.width(),
        kind,
    };
    TableCaps {
        id: TABLE,
        kind: TableKind::Tcam,
        stage: Stage(0),
        fields: FIELDS.iter().map(field).collect(),
        key_len: KEY_LEN,
        actions: actions.into_iter().fold(ActionSet::default(), ActionSet::with),
        settable: vec![Field::EthDst, Field::EthSrc],
        set_bits: false,
        output_to_ingress: false,
        // The device has commands to read counters, but does not count.
        counters: CounterCaps::NONE,
        max_actions: MAX_ACTIONS,
        max_entries,
        goto: vec![],
        miss: Miss::SlowQueue,
    }
}

/// Which packets a flow is for, by their outer tag of type 0x8100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// There is none.
    Untagged,
    /// There is one, with these bits.
    Tagged { tci: u16, mask: u16 },
    /// Either; in a flow: one that another flow for untagged packets goes before.
    Any,
}

/// Key and mask of an entry, or of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    in_port: Option<u16>,
    dst: ([u8; 6], [u8; 6]),
    src: ([u8; 6], [u8; 6]),
    eth_type: Option<u16>,
    tag: Tag,
}

/// The driver's mistake, or the caller's.
type Words = Result<Match, &'static str>;

impl Match {
    fn of_entry(entry: &Entry) -> Words {
        let short = "a key or mask of another length";
        let key: &[u8; KEY_LEN as usize] = entry.key.as_slice().try_into().map_err(|_| short)?;
        let mask: &[u8; KEY_LEN as usize] = entry.mask.as_slice().try_into().map_err(|_| short)?;
        if key.iter().zip(mask).any(|(k, m)| k & !m != 0) {
            return Err("key bits outside the mask");
        }
        let be16 = |bytes: &[u8; 18], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let exact = |at: usize| match be16(mask, at) {
            0 => Ok(None),
            u16::MAX => Ok(Some(be16(key, at))),
            _ => Err("part of a field that is matched as a whole"),
        };
        let mac = |bytes: &[u8; 18], at: usize| {
            let mut mac = [0; 6];
            mac.copy_from_slice(&bytes[at..at + 6]);
            mac
        };
        let (tci, bits) = (be16(key, 16), be16(mask, 16));
        let tag = match (bits, tci & PRESENT) {
            (0, _) => Tag::Any,
            _ if bits & PRESENT == 0 => return Err("bits of a tag that may not be there cannot be matched"),
            (_, 0) if tci == 0 => Tag::Untagged,
            (_, 0) => return Err("bits of a tag that is not there cannot be matched"),
            _ => Tag::Tagged { tci: tci & !PRESENT, mask: bits & !PRESENT },
        };
        let eth_type = exact(14)?;
        if eth_type == Some(0) {
            return Err("Ethernet type 0 cannot be matched");
        }
        Ok(Self {
            in_port: exact(0)?,
            dst: (mac(key, 2), mac(mask, 2)),
            src: (mac(key, 8), mac(mask, 8)),
            eth_type,
            tag,
        })
    }

    fn entry(&self, priority: u16, actions: SmallVec<[NicAction; 2]>) -> Entry {
        let mut key = SmallVec::from_elem(0, KEY_LEN.into());
        let mut mask: SmallVec<[u8; 64]> = SmallVec::from_elem(0, KEY_LEN.into());
        let mut put = |at: usize, value: &[u8], bits: &[u8]| {
            for (n, (v, m)) in value.iter().zip(bits).enumerate() {
                (key[at + n], mask[at + n]) = (v & m, *m);
            }
        };
        if let Some(port) = self.in_port {
            put(0, &port.to_be_bytes(), &[0xff; 2]);
        }
        put(2, &self.dst.0, &self.dst.1);
        put(8, &self.src.0, &self.src.1);
        if let Some(ty) = self.eth_type {
            put(14, &ty.to_be_bytes(), &[0xff; 2]);
        }
        match self.tag {
            Tag::Any => {}
            Tag::Untagged => put(16, &[0; 2], &[0xff; 2]),
            Tag::Tagged { tci, mask } => {
                put(16, &(tci | PRESENT).to_be_bytes(), &(mask | PRESENT).to_be_bytes());
            }
        }
        Entry { priority, key, mask, actions }
    }

    /// The fields that a flow matches by.
    fn put(&self, vlan: u16, f: &mut Fields) {
        let (port, port_mask) = self.in_port.map_or((0, 0), |p| (u32::from(p), u32::MAX));
        f.u32(ofdpa::IN_PPORT, port).u32(ofdpa::IN_PPORT_MASK, port_mask);
        f.be16(ofdpa::ETHERTYPE, self.eth_type.unwrap_or(0));
        let (tci, mask) = match self.tag {
            Tag::Untagged => (vlan, u16::MAX),
            Tag::Tagged { tci, mask } => (tci | PRESENT, mask),
            Tag::Any => (PRESENT, 0),
        };
        f.be16(ofdpa::VLAN_ID, tci).be16(ofdpa::VLAN_ID_MASK, mask);
        f.put(ofdpa::SRC_MAC, &self.src.0).put(ofdpa::SRC_MAC_MASK, &self.src.1);
        f.put(ofdpa::DST_MAC, &self.dst.0).put(ofdpa::DST_MAC_MASK, &self.dst.1);
    }

    fn of_flow(info: &[u8], vlan: u16) -> Option<Self> {
        let in_port = match number::<4>(info, ofdpa::IN_PPORT_MASK)? as u32 {
            0 => None,
            _ => Some(u16::try_from(number::<4>(info, ofdpa::IN_PPORT)?).ok()?),
        };
        let tci = u16::from_be_bytes(exactly(info, ofdpa::VLAN_ID)?);
        let mask = u16::from_be_bytes(exactly(info, ofdpa::VLAN_ID_MASK)?);
        let tag = match mask {
            u16::MAX => Tag::Untagged,
            0 => Tag::Any,
            _ => Tag::Tagged { tci: tci & !PRESENT, mask },
        };
        if tag == Tag::Untagged && tci != vlan || mask != u16::MAX && mask & PRESENT != 0 {
            return None;
        }
        let ty = u16::from_be_bytes(exactly(info, ofdpa::ETHERTYPE)?);
        Some(Self {
            in_port,
            dst: (exactly(info, ofdpa::DST_MAC)?, exactly(info, ofdpa::DST_MAC_MASK)?),
            src: (exactly(info, ofdpa::SRC_MAC)?, exactly(info, ofdpa::SRC_MAC_MASK)?),
            eth_type: (ty != 0).then_some(ty),
            tag,
        })
    }
}

/// One flow of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    matching: Match,
    priority: u32,
    /// What it does.
    pub(crate) buckets: Buckets,
}

/// Outputs for packets of one kind of tag. The error says what the device cannot do exactly.
fn buckets(entry: &Entry, tag: Tag, in_port: Option<u16>) -> Result<Buckets, &'static str> {
    let (mut src, mut dst) = (None, None);
    let (mut popped, mut pushed) = (false, None);
    let mut out = Buckets::new();
    for action in &entry.actions {
        match action {
            NicAction::Output(NicPort(port)) => {
                if in_port.is_none_or(|p| p == *port) {
                    return Err("an output that may be to the ingress port");
                }
                let pop = popped || tag == Tag::Untagged && pushed.is_none();
                out.push(Bucket { port: *port, pop, tci: pushed, src, dst });
            }
            NicAction::SetField { field, value, mask } => {
                let mac = |v: &[u8; 16]| {
                    let mut mac = [0; 6];
                    mac.copy_from_slice(&v[10..]);
                    mac
                };
                if mac(mask) != [0xff; 6] {
                    return Err("a part of an Ethernet address cannot be set");
                }
                if mac(value) == [0; 6] {
                    return Err("an Ethernet address of zeros would be left as it was");
                }
                match field {
                    Field::EthSrc => src = Some(mac(value)),
                    Field::EthDst => dst = Some(mac(value)),
                    _ => return Err("this field cannot be set"),
                }
            }
            NicAction::PopVlan if pushed.is_some() => pushed = None,
            NicAction::PopVlan if popped => return Err("a second tag cannot be taken off"),
            NicAction::PopVlan if matches!(tag, Tag::Tagged { .. }) => popped = true,
            NicAction::PopVlan => return Err("there is no tag to take off"),
            NicAction::PushVlan { tpid: TPID, tci } if tag == Tag::Untagged && pushed.is_none() => {
                if tci & PRESENT != 0 || *tci == 0 {
                    return Err(
                        "a tag without priority and VLAN ID, or a drop eligible one, cannot be put on",
                    );
                }
                pushed = Some(*tci);
            }
            NicAction::PushVlan { .. } => {
                return Err("a tag can be put on untagged packets only, and one of type 0x8100");
            }
            _ => return Err("no such action"),
        }
    }
    Ok(out)
}

/// The flows of an entry: one, or two where it does not look at tags.
pub(crate) fn compile(entry: &Entry, vlan: u16) -> Result<SmallVec<[Flow; PARTS]>, &'static str> {
    let matching = Match::of_entry(entry)?;
    let priority = PRIORITY + 2 * u32::from(entry.priority);
    let flow = |tag, priority| -> Result<Flow, &'static str> {
        let buckets = buckets(entry, tag, matching.in_port)?;
        Ok(Flow { matching: Match { tag, ..matching }, priority, buckets })
    };
    match matching.tag {
        Tag::Tagged { tci, mask } if (tci ^ vlan) & mask == 0 => {
            Err("the match includes the VLAN ID that stands for untagged packets inside the device")
        }
        Tag::Any => {
            let tags = |a: &NicAction| matches!(a, NicAction::PushVlan { .. } | NicAction::PopVlan);
            if entry.actions.iter().any(tags) {
                return Err("putting a tag on, or taking one off, takes a match of its presence");
            }
            // The flow for both kinds is found for tagged packets only: the other one goes before it.
            let both = [flow(Tag::Untagged, priority + 1)?, flow(Tag::Any, priority)?];
            Ok(SmallVec::from_iter(both))
        }
        tag => Ok(SmallVec::from_iter([flow(tag, priority)?])),
    }
}

/// A command that adds or changes a flow.
pub(crate) fn message(kind: u16, flow: &Flow, cookie: u64, group: u32, vlan: u16) -> Fields {
    let mut info = Fields::new();
    info.u16(ofdpa::TABLE_ID, ofdpa::TABLE_ACL).u32(ofdpa::PRIORITY, flow.priority).u32(ofdpa::HARDTIME, 0);
    info.u64(ofdpa::COOKIE, cookie);
    flow.matching.put(vlan, &mut info);
    info.u32(ofdpa::GROUP_ID, group);
    command(kind, &info)
}

/// A command with its fields.
pub(crate) fn command(kind: u16, info: &Fields) -> Fields {
    let mut m = Fields::new();
    m.u16(cmd::TYPE, kind).nest(cmd::INFO, info);
    m
}

/// A command that deletes a flow.
pub(crate) fn delete(cookie: u64) -> Fields {
    let mut info = Fields::new();
    info.u64(ofdpa::COOKIE, cookie);
    command(cmd::FLOW_DEL, &info)
}

/// The driver's own flows: a packet that no entry matches goes to the CPU.
pub(crate) fn misses() -> [Flow; 2] {
    let any = ([0; 6], [0; 6]);
    let flow = |tag, priority, pop| Flow {
        matching: Match { in_port: None, dst: any, src: any, eth_type: None, tag },
        priority,
        buckets: SmallVec::from_iter([Bucket { port: 0, pop, tci: None, src: None, dst: None }]),
    };
    [flow(Tag::Untagged, 2, true), flow(Tag::Any, 1, false)]
}

/// An entry as the device will see it: the commands that add it to an empty table, one after the other, each with its
/// length before it (u32, little-endian).
pub(crate) fn encode(entry: &Entry, vlan: u16, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut groups = Groups::new(vlan);
    let mut commands = Vec::new();
    for (n, flow) in (0..).zip(compile(entry, vlan)?) {
        let group = groups.acquire(&flow.buckets, &mut commands);
        commands.push(message(cmd::FLOW_ADD, &flow, n, group, vlan));
    }
    for c in commands {
        out.extend_from_slice(&(c.bytes().len() as u32).to_le_bytes());
        out.extend_from_slice(c.bytes());
    }
    Ok(())
}

/// The entry that such commands add. The error says what is wrong with them.
pub(crate) fn decode(mut bytes: &[u8], vlan: u16) -> Result<Entry, &'static str> {
    let mut groups = groups::Read::default();
    let mut flows: SmallVec<[Flow; PARTS]> = SmallVec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let command = rest.get(..len).ok_or("a command is cut off")?;
        bytes = rest.get(len..).unwrap_or_default();
        let info = find(command, cmd::INFO).ok_or("a command without fields")?;
        match number::<2>(command, cmd::TYPE).and_then(|n| u16::try_from(n).ok()) {
            Some(cmd::GROUP_ADD) => groups.add(info).ok_or("a group that this driver does not make")?,
            Some(cmd::FLOW_ADD) => {
                flows.push(read_flow(info, &groups, vlan).ok_or("a flow of another kind")?)
            }
            _ => return Err("a command of another kind"),
        }
    }
    let last = flows.last().ok_or("no flow")?;
    let priority = last.priority.checked_sub(PRIORITY).ok_or("a flow of the driver's own")? / 2;
    let priority = u16::try_from(priority).map_err(|_| "a priority too high")?;
    let entry = last.matching.entry(priority, actions(&last.buckets, last.matching.tag)?);
    // Whatever else the commands say has to follow from the entry.
    if compile(&entry, vlan)? == flows { Ok(entry) } else { Err("flows that do not belong together") }
}

fn read_flow(info: &[u8], groups: &groups::Read, vlan: u16) -> Option<Flow> {
    let group = number::<4>(info, ofdpa::GROUP_ID)? as u32;
    let other_table = number::<2>(info, ofdpa::TABLE_ID)? != u64::from(ofdpa::TABLE_ACL);
    // A flow with a time limit, or with a field that this driver does not send, would be another one.
    let known = |kind: u32| {
        matches!(kind, ofdpa::TABLE_ID | ofdpa::PRIORITY | ofdpa::COOKIE | ofdpa::GROUP_ID | ofdpa::ETHERTYPE)
            || (ofdpa::IN_PPORT..=ofdpa::IN_PPORT_MASK).contains(&kind)
            || (ofdpa::VLAN_ID..=ofdpa::VLAN_ID_MASK).contains(&kind)
            || (ofdpa::DST_MAC..=ofdpa::SRC_MAC_MASK).contains(&kind)
    };
    let stray = read(info).any(|f| !known(f.kind) && (f.kind != ofdpa::HARDTIME || f.value != [0; 4]));
    if other_table || stray {
        return None;
    }
    Some(Flow {
        matching: Match::of_flow(info, vlan)?,
        priority: number::<4>(info, ofdpa::PRIORITY)? as u32,
        buckets: if group == 0 { Buckets::new() } else { groups.get(group)?.clone() },
    })
}

/// The actions that outputs come from.
fn actions(buckets: &Buckets, tag: Tag) -> Result<SmallVec<[NicAction; 2]>, &'static str> {
    let mut out = SmallVec::new();
    let (mut src, mut dst, mut pushed, mut popped) = (None, None, None, false);
    for b in buckets {
        for (field, old, new) in [(Field::EthSrc, &mut src, b.src), (Field::EthDst, &mut dst, b.dst)] {
            let Some(mac) = new.filter(|_| *old != new) else { continue };
            let (mut value, mut mask) = ([0; 16], [0; 16]);
            value[10..].copy_from_slice(&mac);
            mask[10..].fill(0xff);
            out.push(NicAction::SetField { field, value, mask });
            *old = new;
        }
        if pushed != b.tci {
            if pushed.is_some() {
                out.push(NicAction::PopVlan);
            }
            out.extend(b.tci.map(|tci| NicAction::PushVlan { tpid: TPID, tci }));
            pushed = b.tci;
        }
        let pops = b.pop && tag != Tag::Untagged;
        if pops && !popped {
            out.push(NicAction::PopVlan);
            popped = true;
        }
        out.push(NicAction::Output(NicPort(b.port)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
