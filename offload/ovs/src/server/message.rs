//! Messages: reading requests without trust, and composing replies.

use crate::nla::{HEADER_LEN as ATTR_HEADER_LEN, NlaError, Writer, attrs};
use crate::uapi::{Family, Kind, err_attr, nlmsg};
use nix::errno::Errno;
use std::borrow::Cow;

/// Numbers of attributes that a request may have; larger ones are skipped, as an older kernel does.
const ATTRS: usize = 16;

/// A request that fails: what its sender gets in the ack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    pub(super) message: Cow<'static, str>,
    /// Offset of the attribute that is wrong, from the start of the message.
    pub(super) offset: Option<u32>,
    /// Number of the attribute that is missing.
    pub(super) missing: Option<u16>,
}

impl Failure {
    pub(super) fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, message: message.into(), offset: None, missing: None }
    }
}

impl From<crate::backend::Refusal> for Failure {
    fn from(refusal: crate::backend::Refusal) -> Self {
        Self::new(refusal.errno(), refusal.to_string())
    }
}

/// `struct nlmsghdr` without its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
}

/// Splits the first message from `datagram`: its header, its bytes, and what follows after the padding. `None` if the
/// bytes are not a message.
pub(super) fn split_message(datagram: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let &[l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, _, _, _, _] = datagram.first_chunk()?;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let message = datagram.get(..length).filter(|m| m.len() >= nlmsg::HEADER_LEN)?;
    let header = Header {
        kind: u16::from_ne_bytes([t0, t1]),
        flags: u16::from_ne_bytes([f0, f1]),
        seq: u32::from_ne_bytes([s0, s1, s2, s3]),
    };
    Some((header, message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Whose request a message answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) family: &'static Family,
    pub(super) seq: u32,
    pub(super) port: u32,
}

/// A request of a family: headers and attributes, of which every one has the payload that the family's policy asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) header: Header,
    /// Who asks.
    pub(super) port: u32,
    pub(super) cmd: u8,
    pub(super) version: u8,
    /// `dp_ifindex` of the OVS header; 0 for other families.
    pub(super) dp: i32,
    pub(super) family: &'static Family,
    /// Offset from the start of the message, and payload.
    by_number: [Option<(u32, &'a [u8])>; ATTRS],
}

impl<'a> Request<'a> {
    /// Reads headers alone; [`Self::read_attrs`] goes on.
    pub(super) fn parse(
        header: Header,
        message: &'a [u8],
        port: u32,
        family: &'static Family,
    ) -> Result<Self, Failure> {
        let too_short = || Failure::new(Errno::EINVAL, "the message is too short for its headers");
        let rest = message.get(nlmsg::HEADER_LEN..).ok_or_else(too_short)?;
        let (&[cmd, version, _, _], rest) = rest.split_first_chunk().ok_or_else(too_short)?;
        let dp = match family.header_len {
            0 => 0,
            _ => i32::from_ne_bytes(*rest.first_chunk().ok_or_else(too_short)?),
        };
        Ok(Self { header, port, cmd, version, dp, family, by_number: [None; ATTRS] })
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { family: self.family, seq: self.header.seq, port: self.port }
    }

    /// Reads the attributes and holds them against the family's policy.
    pub(super) fn read_attrs(&mut self, message: &'a [u8]) -> Result<(), Failure> {
        let mut offset = nlmsg::HEADER_LEN + nlmsg::GENL_HEADER_LEN + self.family.header_len;
        let bytes = message.get(offset..).unwrap_or_default();
        for item in attrs(bytes) {
            let at = offset as u32;
            let attr = item.map_err(|e| self.malformed(e))?;
            offset += (ATTR_HEADER_LEN + attr.payload.len()).next_multiple_of(4);
            let Some(policy) = self.family.attrs.iter().find(|p| p.0 == attr.kind) else { continue };
            if let Err((errno, problem)) = check(policy.2, attr.payload) {
                let message = format!("{} {problem}", policy.1);
                return Err(Failure { offset: Some(at), ..Failure::new(errno, message) });
            }
            let Some(slot) = self.by_number.get_mut(usize::from(attr.kind)) else { continue };
            if slot.replace((at, attr.payload)).is_some() {
                let message = format!("{} occurs twice", policy.1);
                return Err(Failure { offset: Some(at), ..Failure::new(Errno::EINVAL, message) });
            }
        }
        Ok(())
    }

    fn malformed(&self, e: NlaError) -> Failure {
        let start = nlmsg::HEADER_LEN + nlmsg::GENL_HEADER_LEN + self.family.header_len;
        let (NlaError::TruncatedHeader { offset, .. } | NlaError::Length { offset, .. }) = e;
        Failure {
            offset: Some((start + offset) as u32),
            ..Failure::new(Errno::EINVAL, format!("malformed attributes: {e}"))
        }
    }

    /// The payload of an attribute.
    pub(super) fn get(&self, attr: u16) -> Option<&'a [u8]> {
        self.by_number.get(usize::from(attr)).copied().flatten().map(|(_, payload)| payload)
    }

    pub(super) fn has(&self, attr: u16) -> bool {
        self.get(attr).is_some()
    }

    /// The payload of an attribute that must be there.
    pub(super) fn need(&self, attr: u16) -> Result<&'a [u8], Failure> {
        self.get(attr).ok_or_else(|| self.lacks(attr))
    }

    /// The failure of a request without `attr`.
    pub(super) fn lacks(&self, attr: u16) -> Failure {
        let message = format!("{} is missing", self.family.attr_name(attr));
        Failure { missing: Some(attr), ..Failure::new(Errno::EINVAL, message) }
    }

    /// A failure that names `attr`.
    pub(super) fn wrong(&self, attr: u16, errno: Errno, problem: impl std::fmt::Display) -> Failure {
        let offset = self.by_number.get(usize::from(attr)).copied().flatten().map(|(offset, _)| offset);
        let message = format!("{}: {problem}", self.family.attr_name(attr));
        Failure { offset, ..Failure::new(errno, message) }
    }

    /// `EINVAL` that names `attr`.
    pub(super) fn invalid(&self, attr: u16, problem: impl std::fmt::Display) -> Failure {
        self.wrong(attr, Errno::EINVAL, problem)
    }

    pub(super) fn u16(&self, attr: u16) -> Option<u16> {
        self.get(attr)?.first_chunk().copied().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, attr: u16) -> Option<u32> {
        self.get(attr)?.first_chunk().copied().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&self, attr: u16) -> Option<u64> {
        self.get(attr)?.first_chunk().copied().map(u64::from_ne_bytes)
    }

    /// The string of an attribute whose policy is [`Kind::NulString`].
    pub(super) fn string(&self, attr: u16) -> Result<Option<&'a str>, Failure> {
        let Some(payload) = self.get(attr) else { return Ok(None) };
        let bytes = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid(attr, "not UTF-8"))?;
        Ok(Some(text))
    }

    /// A network device's name: not empty, no blank, no slash, and neither of the folders' names.
    pub(super) fn name(&self, attr: u16) -> Result<Option<&'a str>, Failure> {
        let name = self.string(attr)?;
        let bad = |n: &str| {
            n.is_empty()
                || n == "."
                || n == ".."
                || n.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        };
        match name {
            Some(name) if bad(name) => Err(self.invalid(attr, "no name of a network device")),
            name => Ok(name),
        }
    }

    /// An array of port IDs.
    pub(super) fn pids(&self, attr: u16) -> Result<Option<Vec<u32>>, Failure> {
        let Some(payload) = self.get(attr) else { return Ok(None) };
        let (pids, odd) = payload.as_chunks::<4>();
        if pids.is_empty() || !odd.is_empty() {
            let problem = format!("{} bytes are no array of port IDs", payload.len());
            return Err(self.invalid(attr, problem));
        }
        Ok(Some(pids.iter().map(|pid| u32::from_ne_bytes(*pid)).collect()))
    }
}

/// Holds a payload against what it must be, with the kernel's error numbers.
fn check(kind: Kind, payload: &[u8]) -> Result<(), (Errno, String)> {
    let length = payload.len();
    match kind {
        Kind::Flag if length > 0 => Err((Errno::ERANGE, format!("has {length} bytes instead of none"))),
        Kind::Uint(size) | Kind::Bytes(size) if length < size => {
            Err((Errno::ERANGE, format!("has {length} bytes instead of {size}")))
        }
        Kind::NulString(max) => match payload.iter().position(|byte| *byte == 0) {
            Some(end) if end <= max => Ok(()),
            None if length <= max => Err((Errno::EINVAL, "does not end in a zero byte".into())),
            _ => Err((Errno::EINVAL, format!("has more than {max} characters"))),
        },
        Kind::Nested if (1..ATTR_HEADER_LEN).contains(&length) => {
            Err((Errno::ERANGE, format!("has {length} bytes, too few for an attribute")))
        }
        _ => Ok(()),
    }
}

/// Begins a message of a family at the end of `out`; [`end`] takes the returned position.
pub(super) fn begin(out: &mut Vec<u8>, origin: Origin, flags: u16, cmd: u8, dp: i32) -> usize {
    let start = begin_raw(out, origin.family.id, flags, origin.seq, origin.port);
    out.extend_from_slice(&[cmd, origin.family.version, 0, 0]);
    if origin.family.header_len != 0 {
        out.extend_from_slice(&dp.to_ne_bytes());
    }
    start
}

/// Begins a message with `struct nlmsghdr` alone.
pub(super) fn begin_raw(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, port: u32) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&port.to_ne_bytes());
    start
}

/// Ends the message begun at `start`: fills in its length.
pub(super) fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Appends the ack of a request. A failure's ack repeats the request and tells what is wrong (`struct nlmsgerr`).
pub(super) fn put_ack(
    out: &mut Vec<u8>,
    header: Header,
    message: &[u8],
    port: u32,
    failure: Option<&Failure>,
) {
    let flags = if failure.is_some() { nlmsg::F_ACK_TLVS } else { nlmsg::F_CAPPED };
    let start = begin_raw(out, nlmsg::ERROR, flags, header.seq, port);
    let errno = failure.map_or(0, |f| -(f.errno as i32));
    out.extend_from_slice(&errno.to_ne_bytes());
    match failure {
        None => out.extend_from_slice(message.get(..nlmsg::HEADER_LEN).unwrap_or(message)),
        Some(failure) => {
            out.extend_from_slice(message);
            out.resize(out.len().next_multiple_of(4), 0);
            put_reason(out, failure);
        }
    }
    end(out, start);
}

/// Appends the end of a dump, with the reason if it ends early.
pub(super) fn put_done(out: &mut Vec<u8>, seq: u32, port: u32, failure: Option<&Failure>) {
    let tlvs = if failure.is_some() { nlmsg::F_ACK_TLVS } else { 0 };
    let start = begin_raw(out, nlmsg::DONE, nlmsg::F_MULTI | tlvs, seq, port);
    out.extend_from_slice(&failure.map_or(0, |f| -(f.errno as i32)).to_ne_bytes());
    if let Some(failure) = failure {
        put_reason(out, failure);
    }
    end(out, start);
}

fn put_reason(out: &mut Vec<u8>, failure: &Failure) {
    let mut w = Writer::new(out);
    let text = [failure.message.as_bytes(), &[0]].concat();
    w.put(err_attr::MSG, &text);
    if let Some(offset) = failure.offset {
        w.put(err_attr::OFFS, &offset.to_ne_bytes());
    }
    if let Some(missing) = failure.missing {
        w.put(err_attr::MISS_TYPE, &u32::from(missing).to_ne_bytes());
    }
}
