//! Messages by hand: this file knows Netlink's format on its own, not through the code under test.

use flowlift_ovs::memory::Memory;
use flowlift_ovs::server::{DumpState, Peer, Server, To};
use flowlift_ovs::uapi::Family;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const ECHO: u16 = 8;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;

/// An attribute with padding.
pub(crate) fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = ((payload.len() + 4) as u16).to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub(crate) fn attr_u32(kind: u16, value: u32) -> Vec<u8> {
    attr(kind, &value.to_ne_bytes())
}

pub(crate) fn attr_name(kind: u16, name: &str) -> Vec<u8> {
    attr(kind, &[name.as_bytes(), &[0]].concat())
}

/// A whole message of a type.
pub(crate) fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let mut out = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out
}

/// What follows a message's header for the OVS families.
pub(crate) fn ovs(cmd: u8, version: u8, dp: i32, attrs: &[u8]) -> Vec<u8> {
    let mut body = vec![cmd, version, 0, 0];
    body.extend_from_slice(&dp.to_ne_bytes());
    body.extend_from_slice(attrs);
    body
}

/// A message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// All messages of a datagram.
    pub(crate) fn all(mut bytes: &[u8]) -> Vec<Self> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
            let len = word(0) as usize;
            assert!((16..=bytes.len()).contains(&len), "length {len} of {} bytes", bytes.len());
            let body = bytes[16..len].to_vec();
            out.push(Self { kind: half(4), flags: half(6), seq: word(8), port: word(12), body });
            bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        }
        out
    }

    pub(crate) fn cmd(&self) -> u8 {
        self.body[0]
    }

    pub(crate) fn dp(&self) -> i32 {
        i32::from_ne_bytes(self.body[4..8].try_into().unwrap())
    }

    /// The attributes behind the OVS header.
    pub(crate) fn attrs(&self) -> Vec<(u16, Vec<u8>)> {
        attrs(&self.body[8..])
    }

    pub(crate) fn attr(&self, kind: u16) -> Option<Vec<u8>> {
        self.attrs().into_iter().find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    pub(crate) fn u32(&self, kind: u16) -> u32 {
        let payload = self.attr(kind).unwrap_or_else(|| panic!("no attribute {kind} in {self:?}"));
        u32::from_ne_bytes(payload[..4].try_into().unwrap())
    }

    /// The error number of an ack or of a dump's end, positive.
    pub(crate) fn errno(&self) -> i32 {
        assert!(matches!(self.kind, 2 | 3), "{self:?} is no ack");
        -i32::from_ne_bytes(self.body[..4].try_into().unwrap())
    }

    /// The text, offset and missing attribute of a failure's ack.
    pub(crate) fn reason(&self) -> (String, Option<u32>, Option<u32>) {
        assert_eq!((self.kind, self.flags & 0x200), (2, 0x200), "an ack with attributes");
        // Error number, and the request with its own length.
        let len = u32::from_ne_bytes(self.body[4..8].try_into().unwrap()) as usize;
        let all = attrs(&self.body[4 + len.next_multiple_of(4)..]);
        let word = |kind: u16| {
            let found = all.iter().find(|(k, _)| *k == kind);
            found.map(|(_, payload)| u32::from_ne_bytes(payload[..4].try_into().unwrap()))
        };
        let text = all.iter().find(|(k, _)| *k == 1).map(|(_, text)| text.clone()).unwrap();
        (String::from_utf8(text).unwrap().trim_end_matches('\0').to_owned(), word(2), word(5))
    }
}

/// A sequence of attributes, each whole.
pub(crate) fn attrs(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]);
        out.push((kind & 0x3fff, bytes[4..len].to_vec()));
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    out
}

/// What came back for one datagram.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// To the client itself.
    pub(crate) messages: Vec<Message>,
    /// To groups.
    pub(crate) notified: Vec<(u8, Message)>,
    /// Sizes of the datagrams to the client.
    pub(crate) datagrams: Vec<usize>,
}

impl Answer {
    /// The one message.
    pub(crate) fn only(&self) -> &Message {
        assert_eq!(self.messages.len(), 1, "{self:?}");
        &self.messages[0]
    }

    /// The error number of the one message, an ack.
    pub(crate) fn errno(&self) -> i32 {
        self.only().errno()
    }
}

/// A client with a server of its own.
pub(crate) struct Client {
    pub(crate) server: Server,
    pub(crate) backend: Memory,
    pub(crate) peer: Peer,
    seq: u32,
}

impl Client {
    pub(crate) fn new() -> Self {
        let peer = Peer { port_id: 0x0100_0001, uid: 0 };
        Self { server: Server::default(), backend: Memory::default(), peer, seq: 100 }
    }

    /// With a datapath of per-CPU dispatch, and what it is called.
    pub(crate) fn with_datapath() -> (Self, i32) {
        let mut client = Self::new();
        let attrs = [attr_name(1, "ovs-system"), attr_u32(2, 0), attr_u32(5, 9)].concat();
        let dp = client.ask(&flowlift_ovs::uapi::DATAPATH, ECHO, 1, 0, &attrs).only().dp();
        (client, dp)
    }

    /// Sends a datagram and takes what comes back, dumps to their end.
    pub(crate) fn send(&mut self, datagram: &[u8]) -> Answer {
        let mut answer = Answer::default();
        let mut out = |reply: flowlift_ovs::server::Reply<'_>| {
            let messages = Message::all(reply.bytes);
            let (to_us, group) = match reply.to {
                To::Unicast(port) => (Some(port), None),
                To::Multicast(group) => (None, Some(group)),
                To::Both(port, group) => (Some(port), Some(group)),
            };
            if let Some(group) = group {
                answer.notified.extend(messages.iter().map(|m| (group.0, m.clone())));
            }
            if let Some(port) = to_us {
                assert_eq!(port, self.peer.port_id, "an answer goes to who asked");
                answer.datagrams.push(reply.bytes.len());
                answer.messages.extend(messages);
            }
        };
        self.server.handle(self.peer, datagram, &mut self.backend, &mut out);
        while !self.server.dumping().is_empty() {
            let state = self.server.continue_dump(self.peer.port_id, &mut self.backend, &mut out);
            assert!(state == DumpState::More || self.server.dumping().is_empty());
        }
        answer
    }

    /// Sends one request of an OVS family.
    pub(crate) fn ask(&mut self, family: &Family, flags: u16, cmd: u8, dp: i32, attrs: &[u8]) -> Answer {
        self.seq += 1;
        let body = ovs(cmd, family.version, dp, attrs);
        let answer = self.send(&message(family.id, REQUEST | flags, self.seq, &body));
        for m in answer.messages.iter().filter(|m| m.kind != flowlift_ovs::marker::TYPE) {
            assert_eq!(
                (m.seq, m.port),
                (self.seq, self.peer.port_id),
                "an answer carries what it answers: {m:?}"
            );
        }
        answer
    }
}
