//! Capability records written by hand, and a NIC that misbehaves when told to.

use crate::pipeline::Pipeline;
use crate::ports::PortMap;
use flowlift_driver::nic::{
    ActionKind, ActionSet, CounterCaps, Entry, EntryCounters, EntryId, Field, FieldCaps, MatchKind, Miss,
    Nic, NicAction, NicCaps, NicError, NicEvent, NicPort, NicState, ParserCaps, PortCaps, SlowRx, SlowTx,
    Stage, TableCaps, TableId, TableKind, Update, UpdateResult, UpdateStatus,
};
use flowlift_flow::text::{NoNames, parse_actions, parse_match};
use flowlift_flow::{Flow, PortNo};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const COMMON: [(Field, u16, MatchKind); 12] = [
    (Field::InPort, 16, MatchKind::Exact),
    (Field::Metadata, 32, MatchKind::Exact),
    (Field::EthDst, 48, MatchKind::Any),
    (Field::EthSrc, 48, MatchKind::Any),
    (Field::EthType, 16, MatchKind::Exact),
    (Field::Vlan0Tpid, 16, MatchKind::Exact),
    (Field::Vlan0Tci, 16, MatchKind::Any),
    (Field::Vlan1Tpid, 16, MatchKind::Exact),
    (Field::Vlan1Tci, 16, MatchKind::Any),
    (Field::IpProto, 8, MatchKind::Exact),
    (Field::IpTos, 8, MatchKind::Any),
    (Field::IpTtl, 8, MatchKind::Any),
];
const V4: [(Field, u16, MatchKind); 2] =
    [(Field::Ipv4Src, 32, MatchKind::Prefix), (Field::Ipv4Dst, 32, MatchKind::Prefix)];
const V6: [(Field, u16, MatchKind); 3] = [
    (Field::Ipv6Src, 128, MatchKind::Prefix),
    (Field::Ipv6Dst, 128, MatchKind::Prefix),
    (Field::Ipv6Label, 20, MatchKind::Any),
];
const L4: [(Field, u16, MatchKind); 3] = [
    (Field::L4Src, 16, MatchKind::Any),
    (Field::L4Dst, 16, MatchKind::Any),
    (Field::TcpFlags, 12, MatchKind::Any),
];
const ARP: [(Field, u16, MatchKind); 5] = [
    (Field::ArpOp, 8, MatchKind::Exact),
    (Field::ArpSpa, 32, MatchKind::Any),
    (Field::ArpTpa, 32, MatchKind::Any),
    (Field::ArpSha, 48, MatchKind::Any),
    (Field::ArpTha, 48, MatchKind::Any),
];

fn table(
    id: u16,
    stage: u8,
    max_entries: u32,
    kind: TableKind,
    parts: &[&[(Field, u16, MatchKind)]],
) -> TableCaps {
    let mut offset = 0;
    let mut fields = Vec::new();
    for (field, width, kind_of_field) in parts.iter().flat_map(|p| p.iter().copied()) {
        let kind = match (kind, kind_of_field) {
            (TableKind::Tcam, MatchKind::Prefix) => MatchKind::Any,
            (_, k) => k,
        };
        fields.push(FieldCaps { field, offset, width, kind });
        offset += width.div_ceil(8);
    }
    let actions = [
        ActionKind::Output,
        ActionKind::SetField,
        ActionKind::PushVlan,
        ActionKind::PopVlan,
        ActionKind::DecTtl,
        ActionKind::Trunc,
        ActionKind::VxlanEncap,
        ActionKind::Trap,
        ActionKind::SetMetadata,
        ActionKind::Goto,
    ];
    TableCaps {
        id: TableId(id),
        kind,
        stage: Stage(stage),
        fields,
        key_len: offset.next_multiple_of(8),
        actions: actions.into_iter().fold(ActionSet::default(), ActionSet::with),
        settable: SETTABLE.to_vec(),
        set_bits: true,
        output_to_ingress: true,
        counters: CounterCaps::ALL,
        max_actions: 8,
        max_entries,
        goto: (stage + 1..3).map(Stage).collect(),
        miss: Miss::SlowQueue,
    }
}

/// Three stages: a hash table for IPv4 and a TCAM in the first two, a TCAM in the last. Four ports.
pub(crate) fn caps(hash_entries: u32, tcam_entries: u32) -> NicCaps {
    let hash = TableKind::Hash { max_masks: 4 };
    let all = [&COMMON[..], &V4, &V6, &L4, &ARP];
    NicCaps {
        device: "test".into(),
        model: "by hand".into(),
        ports: (1..=4)
            .map(|n| PortCaps { port: NicPort(n), virtual_function: false, max_frame: 1522 })
            .collect(),
        tables: vec![
            table(0, 0, hash_entries, hash, &[&COMMON, &V4, &L4]),
            table(1, 0, tcam_entries, TableKind::Tcam, &all),
            table(2, 1, hash_entries, hash, &[&COMMON, &V4, &L4]),
            table(3, 1, tcam_entries, TableKind::Tcam, &all),
            table(4, 2, tcam_entries, TableKind::Tcam, &all),
        ],
        slow_queues: 1,
        meters: 0,
        shared_meters: false,
        pipeline_tx: true,
        parser: ParserCaps { whole: true, tags: 2, service_tags: true },
        read_back: true,
        caveats: vec![],
    }
}

/// Datapath ports 1 to 4 are NIC ports 1 to 4; port 0 and those from 5 on are not on the NIC.
pub(crate) fn ports() -> PortMap {
    (1..=4).map(|n| (PortNo(n), NicPort(n as u16))).collect()
}

pub(crate) fn pipeline() -> Pipeline {
    Pipeline::new(&caps(64, 64), &ports())
}

/// A flow from its text form. A missing tag means that there is none, as in the Netlink form.
pub(crate) fn flow(matching: &str, actions: &str) -> Flow {
    let (mut matching, _) = parse_match(matching, &NoNames).unwrap_or_else(|e| panic!("{matching}: {e}"));
    let tags = matching.key.vlan_count();
    for tag in &mut matching.mask.0.vlan[tags..] {
        (tag.tpid, tag.tci) = (0xffff.into(), 0xffff.into());
    }
    let actions = parse_actions(actions, &NoNames).unwrap_or_else(|e| panic!("{actions}: {e}"));
    Flow { ufid: None, matching, actions }
}

fn put(out: &mut Vec<u8>, tag: u8, operands: &[u64]) {
    out.push(tag);
    out.push(operands.len() as u8);
    operands.iter().for_each(|v| out.extend(v.to_le_bytes()));
}

fn halves(v: &[u8; 16]) -> [u64; 2] {
    let v = u128::from_be_bytes(*v);
    [(v >> 64) as u64, v as u64]
}

const SETTABLE: [Field; 11] = [
    Field::EthDst,
    Field::EthSrc,
    Field::IpTos,
    Field::IpTtl,
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Label,
    Field::L4Src,
    Field::L4Dst,
];

/// [`encode`] and [`decode`].
pub(crate) struct TestCodec;

impl crate::raise::Codec for TestCodec {
    fn encode(&self, _: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        encode(entry, out);
        Ok(())
    }
    fn decode(&self, _: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        Ok(decode(bytes))
    }
}

/// A codec of its own, as simple as can be.
pub(crate) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    out.extend(entry.priority.to_le_bytes());
    out.push(entry.key.len() as u8);
    out.extend_from_slice(&entry.key);
    out.extend_from_slice(&entry.mask);
    for action in &entry.actions {
        match action {
            NicAction::Output(p) => put(out, 1, &[p.0.into()]),
            NicAction::SetField { field, value, mask } => {
                let id = SETTABLE.iter().position(|f| f == field).unwrap() as u64;
                let (v, m) = (halves(value), halves(mask));
                put(out, 2, &[id, v[0], v[1], m[0], m[1]]);
            }
            NicAction::PushVlan { tpid, tci } => put(out, 3, &[(*tpid).into(), (*tci).into()]),
            NicAction::PopVlan => put(out, 4, &[]),
            NicAction::DecTtl => put(out, 5, &[]),
            NicAction::Trunc(n) => put(out, 6, &[(*n).into()]),
            NicAction::SetMetadata(v) => put(out, 7, &[(*v).into()]),
            NicAction::Goto(s) => put(out, 8, &[s.0.into()]),
            NicAction::Trap => put(out, 10, &[]),
            NicAction::VxlanEncap(header) => {
                let mut padded = [0; 56];
                padded[..header.len()].copy_from_slice(header);
                let words: Vec<u64> =
                    padded.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
                put(out, 9, &words);
            }
            other => panic!("{other:?} is no action of the lowering"),
        }
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Entry {
    let len = usize::from(bytes[2]);
    let mut rest = &bytes[3 + 2 * len..];
    let mut actions = smallvec::SmallVec::new();
    while let [tag, n, tail @ ..] = rest {
        let (operands, after) = tail.split_at(8 * usize::from(*n));
        let v: Vec<u64> = operands.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        let wide = |hi: u64, lo: u64| (u128::from(hi) << 64 | u128::from(lo)).to_be_bytes();
        rest = after;
        actions.push(match tag {
            1 => NicAction::Output(NicPort(v[0] as u16)),
            2 => NicAction::SetField {
                field: SETTABLE[v[0] as usize],
                value: wide(v[1], v[2]),
                mask: wide(v[3], v[4]),
            },
            3 => NicAction::PushVlan { tpid: v[0] as u16, tci: v[1] as u16 },
            4 => NicAction::PopVlan,
            5 => NicAction::DecTtl,
            6 => NicAction::Trunc(v[0] as u32),
            7 => NicAction::SetMetadata(v[0] as u32),
            9 => NicAction::VxlanEncap(v.iter().flat_map(|v| v.to_le_bytes()).take(50).collect()),
            10 => NicAction::Trap,
            _ => NicAction::Goto(Stage(v[0] as u8)),
        });
    }
    Entry {
        priority: u16::from_le_bytes([bytes[0], bytes[1]]),
        key: bytes[3..3 + len].into(),
        mask: bytes[3 + len..3 + 2 * len].into(),
        actions,
    }
}

/// A NIC that is a table of entries, and does to updates what a test tells it to.
pub(crate) struct FakeNic {
    pub(crate) caps: NicCaps,
    pub(crate) entries: BTreeMap<EntryId, Entry>,
    /// Counters by place; they outlive the entry, as a counter page does.
    pub(crate) page: BTreeMap<EntryId, EntryCounters>,
    pub(crate) state: NicState,
    /// Answers for the next updates, in order, instead of carrying them out; `None`: carry it out.
    pub(crate) script: VecDeque<Option<UpdateStatus>>,
    /// Answers are kept back while this is set.
    pub(crate) hold: bool,
    /// Answers are given last first.
    pub(crate) reversed: bool,
    /// Room in the ring.
    pub(crate) ring: usize,
    pub(crate) resets: u32,
    /// Device clock, ns.
    clock: u64,
    /// Every update that was taken.
    pub(crate) log: Vec<Update>,
    /// What `encode` spoils, to prove that a lying codec is found out.
    pub(crate) spoil: Option<fn(&mut Entry)>,
    pub(crate) results: Vec<UpdateResult>,
    pub(crate) events: Vec<NicEvent>,
    read_backs: VecDeque<EntryId>,
}

impl FakeNic {
    pub(crate) fn new(caps: NicCaps) -> Self {
        Self {
            caps,
            entries: BTreeMap::new(),
            page: BTreeMap::new(),
            state: NicState::Ready,
            script: VecDeque::new(),
            hold: false,
            reversed: false,
            ring: 1000,
            resets: 0,
            clock: 0,
            log: Vec::new(),
            spoil: None,
            results: Vec::new(),
            events: Vec::new(),
            read_backs: VecDeque::new(),
        }
    }

    /// An entry was hit by a packet of 100 bytes.
    pub(crate) fn hit(&mut self, id: EntryId) {
        assert!(self.entries.contains_key(&id), "{id:?} is not installed");
        let c = self.page.entry(id).or_default();
        c.packets += 1;
        c.bytes += 100;
        self.clock += 7;
        c.used_ns = self.clock;
        c.tcp_flags |= 2;
    }

    fn carry_out(&mut self, update: &Update) -> (UpdateStatus, Option<EntryCounters>) {
        match update {
            Update::Insert { id, entry, .. } => {
                let table = self.caps.table(id.table).unwrap();
                assert!(id.index < table.max_entries && !self.entries.contains_key(id), "{id:?} is taken");
                let others = || self.entries.iter().filter(|(e, _)| e.table == id.table).map(|(_, e)| e);
                if others().any(|e| e.key == entry.key && e.mask == entry.mask) {
                    return (UpdateStatus::Duplicate, None);
                }
                if let TableKind::Hash { max_masks } = table.kind {
                    let masks: BTreeSet<_> = others().map(|e| &e.mask).chain([&entry.mask]).collect();
                    if masks.len() > max_masks as usize {
                        return (UpdateStatus::MasksFull, None);
                    }
                }
                self.entries.insert(*id, entry.clone());
                self.page.insert(*id, EntryCounters::default());
                (UpdateStatus::Ok, None)
            }
            Update::Replace { id, entry, .. } => match self.entries.get_mut(id) {
                Some(e) => {
                    assert_eq!((&e.key, &e.mask), (&entry.key, &entry.mask), "a replace keeps key and mask");
                    e.actions = entry.actions.clone();
                    (UpdateStatus::Ok, None)
                }
                None => (UpdateStatus::NotFound, None),
            },
            Update::Delete { id, .. } => match self.entries.remove(id) {
                Some(_) => (UpdateStatus::Ok, self.page.get(id).copied()),
                None => (UpdateStatus::NotFound, None),
            },
        }
    }
}

pub(crate) fn cookie_of(update: &Update) -> u64 {
    match update {
        Update::Insert { cookie, .. } | Update::Replace { cookie, .. } | Update::Delete { cookie, .. } => {
            *cookie
        }
    }
}

impl Nic for FakeNic {
    fn caps(&self) -> &NicCaps {
        &self.caps
    }
    fn state(&self) -> NicState {
        self.state
    }
    fn submit(&mut self, updates: &[Update]) -> Result<usize, NicError> {
        assert_eq!(self.state, NicState::Ready, "updates for a NIC that does not work");
        let taken = updates.len().min(self.ring);
        for update in &updates[..taken] {
            self.log.push(update.clone());
            let (status, counters) = match self.script.pop_front().flatten() {
                Some(status) => (status, None),
                None => self.carry_out(update),
            };
            self.results.push(UpdateResult { cookie: cookie_of(update), status, counters });
        }
        Ok(taken)
    }
    fn kick(&mut self) -> Result<(), NicError> {
        Ok(())
    }
    fn poll(&mut self, results: &mut Vec<UpdateResult>, events: &mut Vec<NicEvent>) -> Result<(), NicError> {
        if !self.hold {
            if self.reversed {
                self.results.reverse();
            }
            results.append(&mut self.results);
        }
        events.append(&mut self.events);
        Ok(())
    }
    fn counters(&self, id: EntryId) -> EntryCounters {
        self.page.get(&id).copied().unwrap_or_default()
    }
    fn read_back(&mut self, id: EntryId) -> Result<(), NicError> {
        self.read_backs.push_back(id);
        Ok(())
    }
    fn take_read_back(&mut self) -> Option<(EntryId, Option<Entry>)> {
        let id = self.read_backs.pop_front()?;
        Some((id, self.entries.get(&id).cloned()))
    }
    fn encode(&self, _: TableId, entry: &Entry, out: &mut Vec<u8>) -> Result<(), NicError> {
        let mut entry = entry.clone();
        if let Some(spoil) = self.spoil {
            spoil(&mut entry);
        }
        let limit = self.caps.tables.iter().map(|t| usize::from(t.max_actions) - 1).max();
        if Some(entry.actions.len()) > limit {
            return Err(NicError::Invalid(format!("{} actions", entry.actions.len())));
        }
        encode(&entry, out);
        Ok(())
    }
    fn decode(&self, _: TableId, bytes: &[u8]) -> Result<Entry, NicError> {
        Ok(decode(bytes))
    }
    fn rx(&mut self, _: usize, _: &mut dyn FnMut(SlowRx, &[u8])) -> Result<usize, NicError> {
        Ok(0)
    }
    fn tx(&mut self, _: SlowTx, _: &[u8]) -> Result<bool, NicError> {
        Ok(false)
    }
    fn tx_pending(&self) -> usize {
        0
    }
    fn take_unsent(&mut self) -> Vec<(SlowTx, Vec<u8>)> {
        Vec::new()
    }
    fn reset(&mut self) -> Result<(), NicError> {
        self.resets += 1;
        self.lose_tables();
        self.state = NicState::Ready;
        Ok(())
    }
    fn link(&self, _: NicPort) -> bool {
        true
    }
}

impl FakeNic {
    /// Loses all entries, as a reset does; what was not answered yet is answered by that.
    pub(crate) fn lose_tables(&mut self) {
        self.entries.clear();
        self.hold = false;
        self.results.iter_mut().for_each(|r| (r.status, r.counters) = (UpdateStatus::Aborted, None));
        self.events.push(NicEvent::TablesLost);
    }
}
