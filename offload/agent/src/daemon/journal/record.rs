//! Records of the journal as bytes.
//!
//! A record is its length and the CRC32C of what follows, 4 bytes each, then its kind and its fields, all integers little-endian.
//! A flow is in there as ovs-vswitchd would install it: attributes of `OVS_FLOW_ATTR_*`.

use flowlift_flow::action::validate;
use flowlift_flow::{Flow, Ufid};
use flowlift_ovs::action::{decode_actions, encode_actions};
use flowlift_ovs::backend::DpIndex;
use flowlift_ovs::key::{Form, decode_match, encode_match};
use flowlift_ovs::nla::{Writer, attrs};
use flowlift_ovs::uapi::flow;
use flowlift_softpath::checksum::crc32c;
use flowlift_softpath::{FlowId, FlowStats, MeterBand, MeterConfig, MeterUnit};
use thiserror::Error;

/// Layout of the records; a daemon reads its own alone.
pub(super) const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"flowlift";
/// Bytes ahead of a record's kind.
pub(super) const FRAME: usize = 8;
/// Longest record.
const RECORD_MAX: usize = 1 << 20;
/// Bytes of one flow's counters, and how many flows a record has at most.
const COUNTED: usize = 4 + 4 + 8 + 8 + 8 + 2;
pub(super) const COUNTED_MAX: usize = 1024;
/// Stands for "never" as the time of last use.
const NEVER: u64 = u64::MAX;

mod kind {
    pub(super) const HEADER: u8 = 0;
    pub(super) const PUT: u8 = 1;
    pub(super) const DELETE: u8 = 2;
    pub(super) const FORGET: u8 = 3;
    pub(super) const COUNTED: u8 = 4;
    pub(super) const METER: u8 = 5;
    pub(super) const METER_GONE: u8 = 6;
    pub(super) const TOTALS: u8 = 7;
}

/// Why bytes are no journal, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Damage {
    /// The beginning is not that of a journal.
    #[error("it is no journal")]
    NoJournal,
    /// Another layout.
    #[error("its layout is version {0}, this daemon's is {VERSION}")]
    Version(u32),
    /// Ports, devices or clocks are others now.
    #[error("it is of another network namespace, or from before the host was restarted")]
    OtherOwner,
    /// A record is cut off, or has another checksum.
    #[error("the record at byte {0} is damaged")]
    Record(usize),
}

/// What happened, as far as the next daemon has to know.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// The beginning of a journal: whose it is.
    Header(String),
    /// A flow is there, or has new actions. The flow's bytes are those of [`encode_flow`].
    Put(DpIndex, FlowId, Vec<u8>),
    /// A flow is no more.
    Delete(DpIndex, FlowId),
    /// All flows of a datapath are no more.
    Forget(DpIndex),
    /// What flows have seen in all.
    Counted(DpIndex, Vec<(FlowId, FlowStats)>),
    /// A meter is set.
    Meter(DpIndex, u32, MeterConfig),
    /// A meter is no more.
    MeterGone(DpIndex, u32),
    /// What a subject has counted in all; nothing if it is no more.
    Totals(DpIndex, Subject, Vec<u64>),
}

/// What counts, but for flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The datapath.
    Datapath,
    /// The port of this number.
    Port(u32),
    /// The meter of this ID.
    Meter(u32),
}

impl Subject {
    /// What it is, and its number.
    fn code(self) -> (u8, u32) {
        match self {
            Self::Datapath => (0, 0),
            Self::Port(number) => (1, number),
            Self::Meter(id) => (2, id),
        }
    }

    fn of_code(what: u8, number: u32) -> Option<Self> {
        Some(match what {
            0 => Self::Datapath,
            1 => Self::Port(number),
            2 => Self::Meter(number),
            _ => return None,
        })
    }
}

/// A flow's bytes; `None` for actions that no message can carry.
pub(super) fn encode_flow(record: &Flow) -> Option<Vec<u8>> {
    let (key, mask) = encode_match(&record.matching, Form::Datapath);
    let mut out = Vec::with_capacity(64 + key.len() + mask.len());
    let mut w = Writer::new(&mut out);
    if let Some(ufid) = record.ufid {
        w.put(flow::UFID, ufid.as_bytes());
    }
    w.put(flow::KEY, &key);
    w.put(flow::MASK, &mask);
    let start = w.begin(flow::ACTIONS);
    encode_actions(&record.actions, &mut out).ok()?;
    Writer::new(&mut out).end(start);
    Some(out)
}

/// The flow of these bytes; an error for people if they are none.
pub(super) fn decode_flow(bytes: &[u8]) -> Result<Flow, String> {
    let (mut ufid, mut key, mut mask, mut actions) = (None, None, None, None);
    for attr in attrs(bytes) {
        let attr = attr.map_err(|error| error.to_string())?;
        match attr.kind {
            flow::UFID => ufid = Some(Ufid::new(attr.payload).ok_or("a UFID of a length that none has")?),
            flow::KEY => key = Some(attr.payload),
            flow::MASK => mask = Some(attr.payload),
            flow::ACTIONS => actions = Some(attr.payload),
            other => return Err(format!("attribute {other}")),
        }
    }
    let (Some(key), Some(actions)) = (key, actions) else { return Err("no key or no actions".into()) };
    let matching = decode_match(key, mask, Form::Datapath).map_err(|error| error.to_string())?;
    let actions = decode_actions(actions).map_err(|error| error.to_string())?;
    validate(&actions, &matching).map_err(|error| error.to_string())?;
    Ok(Flow { ufid, matching, actions })
}

impl Record {
    /// Bytes of memory that it takes, about.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Header(text) => text.len(),
                Self::Put(_, _, flow) => flow.capacity(),
                Self::Counted(_, all) => all.capacity() * size_of::<(FlowId, FlowStats)>(),
                Self::Meter(_, _, config) => config.bands.capacity() * size_of::<MeterBand>(),
                Self::Totals(_, _, all) => all.capacity() * size_of::<u64>(),
                Self::Delete(..) | Self::Forget(_) | Self::MeterGone(..) => 0,
            }
    }

    /// Appends the record's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME]);
        match self {
            Self::Header(owner) => {
                out.push(kind::HEADER);
                out.extend_from_slice(MAGIC);
                put_u32(out, VERSION);
                out.extend_from_slice(owner.as_bytes());
            }
            Self::Put(dp, id, flow) => {
                put_id(out, kind::PUT, *dp, *id);
                out.extend_from_slice(flow);
            }
            Self::Delete(dp, id) => put_id(out, kind::DELETE, *dp, *id),
            Self::Forget(dp) => put_dp(out, kind::FORGET, *dp),
            Self::Counted(dp, all) => {
                put_dp(out, kind::COUNTED, *dp);
                for (id, stats) in all {
                    put_u32(out, id.slot);
                    put_u32(out, id.generation);
                    for n in [stats.packets, stats.bytes, stats.used.unwrap_or(NEVER)] {
                        out.extend_from_slice(&n.to_le_bytes());
                    }
                    out.extend_from_slice(&stats.tcp_flags.to_le_bytes());
                }
            }
            Self::Meter(dp, id, config) => {
                put_dp(out, kind::METER, *dp);
                put_u32(out, *id);
                out.push(u8::from(config.unit == MeterUnit::Kbps));
                for band in &config.bands {
                    put_u32(out, band.rate);
                    put_u32(out, band.burst);
                }
            }
            Self::MeterGone(dp, id) => {
                put_dp(out, kind::METER_GONE, *dp);
                put_u32(out, *id);
            }
            Self::Totals(dp, subject, all) => {
                put_dp(out, kind::TOTALS, *dp);
                let (what, number) = subject.code();
                out.push(what);
                put_u32(out, number);
                all.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
            }
        }
        let (frame, body) = out[start..].split_at_mut(FRAME);
        frame[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        frame[4..].copy_from_slice(&crc32c(&[body]).to_le_bytes());
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut rest = Reader(body);
        let [kind] = rest.take()?;
        if kind == kind::HEADER {
            return None;
        }
        let dp = DpIndex(rest.u32()?.cast_signed());
        Some(match kind {
            kind::PUT => Self::Put(dp, rest.id()?, rest.0.to_vec()),
            kind::DELETE => Self::Delete(dp, rest.id()?),
            kind::FORGET => Self::Forget(dp),
            kind::COUNTED => {
                let mut all = Vec::with_capacity(rest.0.len() / COUNTED);
                while !rest.0.is_empty() {
                    let id = rest.id()?;
                    let (packets, bytes, used) = (rest.u64()?, rest.u64()?, rest.u64()?);
                    let tcp_flags = u16::from_le_bytes(rest.take()?);
                    let used = Some(used).filter(|used| *used != NEVER);
                    all.push((id, FlowStats { packets, bytes, used, tcp_flags }));
                }
                Self::Counted(dp, all)
            }
            kind::METER => {
                let id = rest.u32()?;
                let [kbps] = rest.take()?;
                let unit = if kbps != 0 { MeterUnit::Kbps } else { MeterUnit::Pktps };
                let mut bands = Vec::new();
                while !rest.0.is_empty() {
                    bands.push(MeterBand { rate: rest.u32()?, burst: rest.u32()? });
                }
                Self::Meter(dp, id, MeterConfig { unit, bands })
            }
            kind::METER_GONE => Self::MeterGone(dp, rest.u32()?),
            kind::TOTALS => {
                let [what] = rest.take()?;
                let subject = Subject::of_code(what, rest.u32()?)?;
                let mut all = Vec::with_capacity(rest.0.len() / size_of::<u64>());
                while !rest.0.is_empty() {
                    all.push(rest.u64()?);
                }
                Self::Totals(dp, subject, all)
            }
            _ => return None,
        })
    }
}

/// Gives the records of a journal to `each`, up to the end or the first damaged one.
pub(super) fn read(bytes: &[u8], owner: &str, mut each: impl FnMut(Record)) -> Result<(), Damage> {
    let mut at = 0;
    let header = frame(bytes, &mut at).ok_or(Damage::NoJournal)?;
    let mut rest = Reader(header);
    match (rest.take(), rest.take::<8>(), rest.u32()) {
        (Some([kind::HEADER]), Some(magic), Some(VERSION)) if magic == *MAGIC => {}
        (Some([kind::HEADER]), Some(magic), Some(other)) if magic == *MAGIC => {
            return Err(Damage::Version(other));
        }
        _ => return Err(Damage::NoJournal),
    }
    if rest.0 != owner.as_bytes() {
        return Err(Damage::OtherOwner);
    }
    while at < bytes.len() {
        let start = at;
        each(frame(bytes, &mut at).and_then(Record::decode).ok_or(Damage::Record(start))?);
    }
    Ok(())
}

/// The body of the record at `at`, which moves behind it; `None` if it is damaged.
fn frame<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let mut rest = Reader(bytes.get(*at..)?);
    let (len, sum) = (rest.u32()? as usize, rest.u32()?);
    let body = rest.0.get(..len).filter(|_| len <= RECORD_MAX)?;
    *at += FRAME + len;
    (crc32c(&[body]) == sum).then_some(body)
}

fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn put_dp(out: &mut Vec<u8>, kind: u8, dp: DpIndex) {
    out.push(kind);
    out.extend_from_slice(&dp.0.to_le_bytes());
}

fn put_id(out: &mut Vec<u8>, kind: u8, dp: DpIndex, id: FlowId) {
    put_dp(out, kind, dp);
    put_u32(out, id.slot);
    put_u32(out, id.generation);
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<FlowId> {
        Some(FlowId { slot: self.u32()?, generation: self.u32()? })
    }
}
