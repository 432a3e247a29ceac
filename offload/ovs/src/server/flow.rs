//! The family ovs_flow.

use super::Context;
use super::message::{Failure, Origin, Request, begin, end};
use crate::action::{ActionAttrError, decode_actions, encode_actions};
use crate::backend::{Backend, DpIndex, FlowId, FlowPut, FlowView};
use crate::key::{Form, all_attrs, attr as key_attr, decode_key, decode_match, encode_key_of, encode_mask};
use crate::nla::{Writer, attrs};
use crate::uapi::{flow, nlmsg};
use flowlift_flow::action::{ActionErrorKind, validate};
use flowlift_flow::{Action, Match, Ufid};
use nix::errno::Errno;

pub(super) fn handle(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    match request.cmd {
        flow::CMD_NEW => new(request, context),
        flow::CMD_SET => set(request, context),
        flow::CMD_DEL => del(request, context),
        _ => get(request, context),
    }
}

fn new(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    request.need(flow::KEY)?;
    request.need(flow::ACTIONS)?;
    let matching = matching(request, context.backend)?;
    let ufid = ufid(request)?;
    let actions = actions(request, flow::ACTIONS, context.backend)?;
    check(&actions, &matching, request)?;
    let put = FlowPut {
        ufid,
        matching,
        actions,
        exclusive: request.header.flags & (nlmsg::F_CREATE | nlmsg::F_EXCL) != 0,
        probe: request.has(flow::PROBE),
        shown: context.audience(request).is_some(),
    };
    let shape = Shape::of(request, context.backend);
    let (backend, buffer) = (&mut *context.backend, &mut context.buffer);
    backend.flow_put(shape.dp, put, &mut |view| shape.put(0, flow::CMD_NEW, view, true, buffer))?;
    context.notify(request);
    Ok(())
}

fn set(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let ufid = ufid(request)?;
    if ufid.is_none() {
        request.need(flow::KEY)?;
    }
    let matching = match request.has(flow::KEY) {
        true => Some(matching(request, context.backend)?),
        false => None,
    };
    let actions = match (request.has(flow::ACTIONS), &matching) {
        (false, _) => None,
        (true, None) => return Err(request.lacks(flow::KEY)),
        (true, Some(matching)) => {
            let actions = actions(request, flow::ACTIONS, context.backend)?;
            check(&actions, matching, request)?;
            Some(actions)
        }
    };
    let id = match (ufid, matching) {
        (Some(ufid), _) => FlowId::Ufid(ufid),
        (None, Some(matching)) => FlowId::Key(Box::new(matching.key)),
        (None, None) => return Err(request.lacks(flow::KEY)),
    };
    let clear = request.has(flow::CLEAR);
    let shape = Shape::of(request, context.backend);
    let (backend, buffer) = (&mut *context.backend, &mut context.buffer);
    backend.flow_set(shape.dp, &id, actions, clear, &mut |view| {
        shape.put(0, flow::CMD_SET, view, true, buffer);
    })?;
    context.notify(request);
    Ok(())
}

fn del(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let shape = Shape::of(request, context.backend);
    let Some(id) = id(request)? else {
        return Ok(context.backend.flow_flush(shape.dp)?);
    };
    let (backend, buffer) = (&mut *context.backend, &mut context.buffer);
    backend.flow_del(shape.dp, &id, &mut |view| shape.put(0, flow::CMD_DEL, view, true, buffer))?;
    context.notify(request);
    Ok(())
}

fn get(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let id = id(request)?.ok_or_else(|| request.lacks(flow::KEY))?;
    let shape = Shape::of(request, context.backend);
    let (backend, buffer) = (&*context.backend, &mut context.buffer);
    backend.flow_get(shape.dp, &id, &mut |view| shape.put(0, flow::CMD_GET, view, true, buffer))?;
    context.reply(request);
    Ok(())
}

/// Which flow is meant: that of the UFID, else that of the key. `None` with neither.
fn id(request: &Request<'_>) -> Result<Option<FlowId>, Failure> {
    let ufid = ufid(request)?;
    let key = match request.get(flow::KEY) {
        Some(key) => {
            let (key, _) = decode_key(key, Form::Datapath).map_err(|e| request.invalid(flow::KEY, e))?;
            Some(key)
        }
        None => None,
    };
    Ok(match (ufid, key) {
        (Some(ufid), _) => Some(FlowId::Ufid(ufid)),
        (None, Some(key)) => Some(FlowId::Key(Box::new(key))),
        (None, None) => None,
    })
}

fn ufid(request: &Request<'_>) -> Result<Option<Ufid>, Failure> {
    let Some(octets) = request.get(flow::UFID) else { return Ok(None) };
    match Ufid::new(octets) {
        Some(ufid) => Ok(Some(ufid)),
        None => {
            let problem = format!("{} octets instead of 1 to 16", octets.len());
            Err(request.invalid(flow::UFID, problem))
        }
    }
}

/// Key and mask.
fn matching(request: &Request<'_>, backend: &dyn Backend) -> Result<Match, Failure> {
    let key = request.need(flow::KEY)?;
    let mask = request.get(flow::MASK);
    if !backend.capabilities().conntrack {
        for (attr, bytes) in [(flow::KEY, Some(key)), (flow::MASK, mask)] {
            if names_conntrack(bytes.unwrap_or_default()) {
                return Err(request.invalid(attr, "connection tracking is not supported"));
            }
        }
    }
    decode_match(key, mask, Form::Datapath).map_err(|e| {
        let at_key = decode_key(key, Form::Datapath).is_err();
        request.invalid(if at_key { flow::KEY } else { flow::MASK }, e)
    })
}

/// True if a key or a mask has an attribute of connection tracking.
fn names_conntrack(bytes: &[u8]) -> bool {
    let of =
        |kind: u16| (u16::from(key_attr::CT_STATE)..=u16::from(key_attr::CT_ORIG_TUPLE_IPV6)).contains(&kind);
    attrs(bytes).flatten().any(|item| of(item.kind))
}

/// The actions of attribute `attr`.
pub(super) fn actions(
    request: &Request<'_>,
    attr: u16,
    backend: &dyn Backend,
) -> Result<Vec<Action>, Failure> {
    let actions = decode_actions(request.need(attr)?).map_err(|e| {
        let errno = if e == ActionAttrError::TooDeep { Errno::EOVERFLOW } else { Errno::EINVAL };
        request.wrong(attr, errno, e)
    })?;
    if !backend.capabilities().conntrack && tracks_connections(&actions) {
        return Err(request.invalid(attr, "connection tracking is not supported"));
    }
    Ok(actions)
}

fn tracks_connections(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Ct(_) | Action::CtClear => true,
        Action::Sample { actions, .. } | Action::Clone(actions) | Action::DecTtl { exception: actions } => {
            tracks_connections(actions)
        }
        Action::CheckPktLen { greater, less_or_equal, .. } => {
            tracks_connections(greater) || tracks_connections(less_or_equal)
        }
        _ => false,
    })
}

/// Checks the actions of a flow against its match.
fn check(actions: &[Action], matching: &Match, request: &Request<'_>) -> Result<(), Failure> {
    validate(actions, matching).map_err(|e| {
        let errno = if e.kind == ActionErrorKind::TooDeep { Errno::EOVERFLOW } else { Errno::EINVAL };
        request.wrong(flow::ACTIONS, errno, e)
    })
}

/// How flows are told to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    origin: Origin,
    pub(super) dp: DpIndex,
    /// `OVS_UFID_F_*`: what to leave out (U5).
    ufid_flags: u32,
    conntrack: bool,
}

impl Shape {
    pub(super) fn of(request: &Request<'_>, backend: &dyn Backend) -> Self {
        Self {
            origin: request.origin(),
            dp: DpIndex(request.dp),
            ufid_flags: request.u32(flow::UFID_FLAGS).unwrap_or_default(),
            conntrack: backend.capabilities().conntrack,
        }
    }

    /// Appends the message about a flow.
    pub(super) fn put(&self, flags: u16, cmd: u8, view: FlowView<'_>, with_actions: bool, out: &mut Vec<u8>) {
        let wants = |omit| self.ufid_flags & omit == 0;
        let start = begin(out, self.origin, flags, cmd, self.dp.0);
        if let Some(ufid) = view.ufid {
            Writer::new(out).put(flow::UFID, ufid.as_bytes());
        }
        // Without a UFID, the key is the flow's handle.
        if view.ufid.is_none() || wants(flow::UFID_F_OMIT_KEY) {
            let attr = Writer::new(out).begin(flow::KEY);
            encode_key_of(&view.matching.key, Form::Datapath, &all_attrs(self.conntrack), out);
            Writer::new(out).end(attr);
        }
        if wants(flow::UFID_F_OMIT_MASK) {
            // Exact without being named (R21).
            let mut named = view.matching.attrs;
            named.insert(0, key_attr::RECIRC_ID);
            let attr = Writer::new(out).begin(flow::MASK);
            encode_mask(&view.matching.key, &view.matching.mask, Form::Datapath, Some(&named), out);
            Writer::new(out).end(attr);
        }
        let (stats, mut w) = (view.stats, Writer::new(out));
        if let Some(used) = stats.used_ms {
            w.put(flow::USED, &used.to_ne_bytes());
        }
        if stats.packets != 0 {
            w.put(flow::STATS, &super::datapath::words(&[stats.packets, stats.bytes]));
        }
        if stats.tcp_flags != 0 {
            w.put(flow::TCP_FLAGS, &[stats.tcp_flags]);
        }
        if with_actions && wants(flow::UFID_F_OMIT_ACTIONS) {
            put_actions(view.actions, out);
        }
        end(out, start);
    }
}

/// Writes ACTIONS; actions that no attribute can hold leave it out.
fn put_actions(actions: &[Action], out: &mut Vec<u8>) {
    let start = Writer::new(out).begin(flow::ACTIONS);
    match encode_actions(actions, out) {
        Ok(()) => Writer::new(out).end(start),
        Err(_) => out.truncate(start),
    }
}
