//! The server of the OVS families, and of the tunnel devices that Open vSwitch makes by NETLINK_ROUTE, as a state machine without
//! sockets: datagrams in, datagrams out.
//!
//! Error numbers, reply flags and the order of attributes are those of the kernel's datapath, so that clients cannot tell
//! the two apart. Where the kernel passes over bytes that are no attributes, takes the last of two equal ones, or ignores a
//! UFID of more than 16 octets (and then empties the table, if nothing else names a flow), the server refuses.
//!
//! Each request is checked in the kernel's order: message, family, command, permission, attributes by policy, then what
//! the command itself asks for. A failure is an ack with error number, text, and the offset of the attribute at fault or
//! the number of the missing one.

mod ct_limit;
mod datapath;
mod dump;
mod flow;
mod link;
mod message;
mod meter;
mod nlctrl;
mod packet;
mod vport;

use crate::backend::{Backend, DpIndex, Refusal};
use crate::marker;
use crate::uapi::{self, FAMILIES, Group, Op, nlmsg};
use dump::Dump;
use flowlift_flow::PortNo;
pub use link::{TUNNEL_DEVICES, is_tunnel_device};
use message::{Failure, Header, Request, put_ack, split_message};
use nix::errno::Errno;
use std::collections::HashMap;

/// Most dumps at a time, over all clients.
const MAX_DUMPS: usize = 1024;
/// Markers that wait for the end of a dump.
const MARKERS_MAX: usize = 64;

/// A client, as the socket tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Port ID of its socket.
    pub port_id: u32,
    /// User ID that the kernel vouches for (`SCM_CREDENTIALS`).
    pub uid: u32,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// To the socket with this port ID.
    Unicast(u32),
    /// To every member of the group.
    Multicast(Group),
    /// To every member of the group, and to the socket with this port ID, which gets it once: a notification that its
    /// causer asked for (`NLM_F_ECHO`).
    Both(u32, Group),
}

/// A datagram to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Where it goes.
    pub to: To,
    /// One message, or several of a dump.
    pub bytes: &'a [u8],
}

/// What the server has seen. Each number only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams.
    pub datagrams: u64,
    /// Requests within them.
    pub requests: u64,
    /// Requests from a user who may not ask.
    pub refused_users: u64,
    /// Datagrams, or rests of them, that are no messages.
    pub malformed: u64,
    /// Requests that failed, those of refused users and feature probes not counted.
    pub failed: u64,
    /// Feature probes that failed: "not supported" (U6).
    pub failed_probes: u64,
    /// Dumps begun.
    pub dumps: u64,
    /// Messages other than requests, which nobody asked for.
    pub unexpected: u64,
}

/// Whether a dump goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpState {
    /// There is more.
    More,
    /// That was the end, or there is no dump.
    Done,
}

/// What a server answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Protocol {
    /// The OVS families of NETLINK_GENERIC.
    #[default]
    Generic,
    /// Messages of NETLINK_ROUTE about tunnel devices.
    Route,
}

/// The server. It knows its clients' dumps, and nothing of the datapaths: that is the [`Backend`]'s.
#[derive(Debug, Default)]
pub struct Server {
    protocol: Protocol,
    /// User IDs that may ask, besides root.
    allowed: Vec<u32>,
    dumps: HashMap<u32, Dump>,
    counters: Counters,
    /// Nobody is in the group that hears of changed flows.
    flows_unheard: bool,
    /// The datagram being composed.
    buffer: Vec<u8>,
}

impl Server {
    /// A server for root and the users `allowed`.
    pub fn new(allowed: Vec<u32>) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// A server of tunnel devices: of NETLINK_ROUTE, for root and the users `allowed`.
    pub fn of_devices(allowed: Vec<u32>) -> Self {
        Self { protocol: Protocol::Route, ..Self::new(allowed) }
    }

    /// Says whether anybody may be in the group that hears of changed flows ([`uapi::FLOW`]'s): so it is until it is denied.
    pub fn set_flows_heard(&mut self, heard: bool) {
        self.flows_unheard = !heard;
    }

    /// What was seen so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Handles a datagram of a client, and gives the replies to `out` in the order in which they must be sent.
    ///
    /// A dump is only begun: [`Self::continue_dump`] goes on with it, one datagram at a time. The marker at the end of the
    /// datagram ([`marker`]) comes back after everything else, a dump included, an earlier datagram's as well.
    pub fn handle(
        &mut self,
        peer: Peer,
        datagram: &[u8],
        backend: &mut dyn Backend,
        out: &mut dyn FnMut(Reply<'_>),
    ) {
        self.counters.datagrams += 1;
        let (mut rest, cookie) = marker::split(datagram);
        let mut dump_begun = false;
        while !rest.is_empty() {
            let Some((header, message, next)) = split_message(rest) else {
                self.counters.malformed += 1;
                break;
            };
            rest = next;
            if header.kind < nlmsg::MIN_TYPE || header.flags & nlmsg::F_REQUEST == 0 {
                self.counters.unexpected += 1;
                continue;
            }
            self.counters.requests += 1;
            self.buffer.clear();
            let mut context = Context {
                backend: &mut *backend,
                buffer: std::mem::take(&mut self.buffer),
                flows_unheard: self.flows_unheard,
                out: &mut *out,
            };
            let result = self.request(peer, header, message, &mut context);
            self.buffer = context.buffer;
            let failure = match result {
                // A dump's end is its ack.
                Ok(Outcome::DumpBegun) => {
                    dump_begun = true;
                    continue;
                }
                Ok(Outcome::Done) if header.flags & nlmsg::F_ACK == 0 => continue,
                Ok(Outcome::Done) => None,
                Err(failure) => Some(failure),
            };
            self.buffer.clear();
            put_ack(&mut self.buffer, header, message, peer.port_id, failure.as_ref());
            out(Reply { to: To::Unicast(peer.port_id), bytes: &self.buffer });
        }
        match (cookie, self.dumps.get_mut(&peer.port_id)) {
            (Some(cookie), Some(dump)) if dump_begun => dump.markers = vec![cookie],
            (Some(cookie), Some(dump)) if dump.markers.len() < MARKERS_MAX => dump.markers.push(cookie),
            // The newest stands for those before it.
            (Some(cookie), Some(dump)) => dump.markers[MARKERS_MAX - 1] = cookie,
            (Some(cookie), None) => {
                out(Reply { to: To::Unicast(peer.port_id), bytes: &marker::marker(cookie) });
            }
            (None, _) => {}
        }
        // The client goes on meanwhile.
        backend.settle();
    }

    /// Removes a vport whose device is gone, and tells the family's group as the kernel does: nobody asked for it.
    ///
    /// # Errors
    /// [`Backend::vport_del`]'s.
    pub fn remove_vport(
        &mut self,
        dp: DpIndex,
        port: PortNo,
        backend: &mut dyn Backend,
        out: &mut dyn FnMut(Reply<'_>),
    ) -> Result<(), Refusal> {
        self.buffer.clear();
        vport::put_removal(backend, dp, port, &mut self.buffer)?;
        backend.vport_del(dp, port)?;
        if let Some(group) = uapi::VPORT.group {
            out(Reply { to: To::Multicast(group), bytes: &self.buffer });
        }
        Ok(())
    }

    /// The clients with a dump that is not at its end.
    pub fn dumping(&self) -> Vec<u32> {
        self.dumps.keys().copied().collect()
    }

    /// Gives the next datagram of a client's dump to `out`; after the last, the markers, too.
    pub fn continue_dump(
        &mut self,
        port_id: u32,
        backend: &mut dyn Backend,
        out: &mut dyn FnMut(Reply<'_>),
    ) -> DumpState {
        let Some(dump) = self.dumps.get_mut(&port_id) else { return DumpState::Done };
        self.buffer.clear();
        let state = dump.fill(backend, &mut self.buffer);
        out(Reply { to: To::Unicast(port_id), bytes: &self.buffer });
        if state == DumpState::Done {
            let dump = self.dumps.remove(&port_id);
            for cookie in dump.into_iter().flat_map(|dump| dump.markers) {
                out(Reply { to: To::Unicast(port_id), bytes: &marker::marker(cookie) });
            }
        }
        state
    }

    /// Forgets a client that is gone.
    pub fn forget(&mut self, port_id: u32) {
        self.dumps.remove(&port_id);
    }

    fn request(
        &mut self,
        peer: Peer,
        header: Header,
        message: &[u8],
        context: &mut Context<'_>,
    ) -> Result<Outcome, Failure> {
        if peer.uid != 0 && !self.allowed.contains(&peer.uid) {
            self.counters.refused_users += 1;
            let message = format!("user {} may not use this datapath", peer.uid);
            return Err(Failure::new(Errno::EPERM, message));
        }
        let mut probe = false;
        let result = self.allowed_request(peer, header, message, context, &mut probe);
        if let Err(failure) = &result {
            if probe {
                self.counters.failed_probes += 1;
            } else {
                self.counters.failed += 1;
                tracing::debug!(
                    port_id = peer.port_id,
                    family = header.kind,
                    errno = %failure.errno,
                    "request refused: {}",
                    failure.message
                );
            }
        }
        result
    }

    fn allowed_request(
        &mut self,
        peer: Peer,
        header: Header,
        message: &[u8],
        context: &mut Context<'_>,
        probe: &mut bool,
    ) -> Result<Outcome, Failure> {
        if self.protocol == Protocol::Route {
            return link::handle(peer.port_id, header, message, context).map(|()| Outcome::Done);
        }
        let family = FAMILIES.iter().find(|family| family.id == header.kind);
        let family = family.ok_or_else(|| Failure::new(Errno::ENOENT, "there is no such family"))?;
        let mut request = Request::parse(header, message, peer.port_id, family)?;
        let dump = header.flags & nlmsg::F_DUMP == nlmsg::F_DUMP;
        let handled = |op: &&Op| op.cmd == request.cmd && if dump { op.dump } else { op.plain };
        if !family.ops.iter().any(|op| handled(&op)) {
            let message = format!("{} has no such command", family.name);
            return Err(Failure::new(Errno::EOPNOTSUPP, message));
        }
        let result = request.read_attrs(message);
        *probe = is_probe(&request);
        result?;
        if !dump {
            return context.dispatch(&request).map(|()| Outcome::Done);
        }
        if self.dumps.contains_key(&peer.port_id) {
            return Err(Failure::new(Errno::EBUSY, "a dump is running on this socket"));
        }
        if self.dumps.len() >= MAX_DUMPS {
            return Err(Failure::new(Errno::EBUSY, "too many dumps are running"));
        }
        let dump = Dump::begin(&request, context.backend)?;
        self.dumps.insert(peer.port_id, dump);
        self.counters.dumps += 1;
        Ok(Outcome::DumpBegun)
    }
}

/// What came of a request that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    DumpBegun,
}

/// True for a feature probe (U6).
fn is_probe(request: &Request<'_>) -> bool {
    match request.family.id {
        id if id == uapi::FLOW.id => request.has(uapi::flow::PROBE),
        id if id == uapi::PACKET.id => request.has(uapi::packet::PROBE),
        _ => false,
    }
}

/// What a command needs: the datapaths, and a way to answer.
struct Context<'a> {
    backend: &'a mut dyn Backend,
    /// Messages are composed here.
    buffer: Vec<u8>,
    /// See [`Server::set_flows_heard`].
    flows_unheard: bool,
    out: &'a mut dyn FnMut(Reply<'_>),
}

impl Context<'_> {
    fn dispatch(&mut self, request: &Request<'_>) -> Result<(), Failure> {
        match request.family.id {
            id if id == uapi::FLOW.id => flow::handle(request, self),
            id if id == uapi::PACKET.id => packet::execute(request, self),
            id if id == uapi::VPORT.id => vport::handle(request, self),
            id if id == uapi::DATAPATH.id => datapath::handle(request, self),
            id if id == uapi::METER.id => meter::handle(request, self),
            id if id == uapi::CT_LIMIT.id => ct_limit::handle(request, self),
            _ => nlctrl::get_family(request, self),
        }
    }

    /// Answers the sender of `request` with what is in the buffer.
    fn reply(&mut self, request: &Request<'_>) {
        self.answer(request.port);
    }

    /// Sends what is in the buffer to a client.
    fn answer(&mut self, port: u32) {
        (self.out)(Reply { to: To::Unicast(port), bytes: &self.buffer });
    }

    /// Who hears of what `request` changes: the family's group, and the sender if it asked for that.
    fn audience(&self, request: &Request<'_>) -> Option<To> {
        let unheard = self.flows_unheard && request.family.id == uapi::FLOW.id;
        let echo = request.header.flags & nlmsg::F_ECHO != 0;
        match request.family.group.filter(|_| !unheard) {
            Some(group) if echo => Some(To::Both(request.port, group)),
            Some(group) => Some(To::Multicast(group)),
            None => echo.then_some(To::Unicast(request.port)),
        }
    }

    /// Tells those who hear of it what is in the buffer.
    fn notify(&mut self, request: &Request<'_>) {
        if let Some(to) = self.audience(request) {
            (self.out)(Reply { to, bytes: &self.buffer });
        }
    }
}

/// The datapath that the OVS header names.
fn header_dp(request: &Request<'_>, backend: &dyn Backend) -> Result<DpIndex, Failure> {
    let dp = DpIndex(request.dp);
    let found = request.dp > 0 && backend.datapath(dp).is_some();
    if found { Ok(dp) } else { Err(Refusal::NoDatapath.into()) }
}
