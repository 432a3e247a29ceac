//! Dumps: one datagram at a time, from where the last one stopped.

use super::flow::Shape;
use super::message::{Failure, Origin, Request, put_done};
use super::{DumpState, datapath, nlctrl, vport};
use crate::backend::{Backend, DpIndex, FlowCursor, FlowView, Refusal};
use crate::uapi::{self, FAMILIES, Family, ctrl, nlmsg};
use flowlift_flow::PortNo;
use std::ops::ControlFlow;

/// Bytes of a dump's datagram, but for a message that is longer alone.
const DATAGRAM: usize = 16 * 1024;
/// A flow's message longer than this goes without its actions, as in the kernel, so that a client's buffer holds it.
const FLOW_MAX: usize = 32 * 1024;

/// A client's dump.
#[derive(Debug)]
pub(super) struct Dump {
    origin: Origin,
    next: Next,
    /// Cookies of the markers that are due at the end: its own, and those of datagrams that came meanwhile, in order. A
    /// client that waits asks for signs of life, whose answers must not overtake the dump.
    pub(super) markers: Vec<[u8; 8]>,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// The `n`th family.
    Family(usize),
    /// The `n`th message about a family's policy.
    Policy(&'static Family, usize),
    /// The first datapath from this index on.
    Datapath(DpIndex),
    /// The first vport of a datapath from this number on.
    Vport(DpIndex, PortNo),
    /// The flows from here on.
    Flows(Shape, FlowCursor),
}

impl Dump {
    /// A dump that a request begins.
    pub(super) fn begin(request: &Request<'_>, backend: &dyn Backend) -> Result<Self, Failure> {
        let next = match request.family.id {
            id if id == uapi::DATAPATH.id => Next::Datapath(DpIndex(0)),
            id if id == uapi::VPORT.id => Next::Vport(DpIndex(request.dp), PortNo(0)),
            id if id == uapi::FLOW.id => Next::Flows(Shape::of(request, backend), FlowCursor::default()),
            _ if request.cmd == ctrl::CMD_GETPOLICY => Next::Policy(nlctrl::find(request)?, 0),
            _ => Next::Family(0),
        };
        Ok(Self { origin: request.origin(), next, markers: Vec::new() })
    }

    /// Appends the next datagram to `out`, which is empty.
    pub(super) fn fill(&mut self, backend: &dyn Backend, out: &mut Vec<u8>) -> DumpState {
        let Origin { seq, port, .. } = self.origin;
        match self.parts(backend, out) {
            Ok(Some(next)) => {
                self.next = next;
                return DumpState::More;
            }
            Ok(None) => put_done(out, seq, port, None),
            Err(refusal) => put_done(out, seq, port, Some(&refusal.into())),
        }
        DumpState::Done
    }

    /// Appends as many messages as fit, at least one, and gives what comes next; `None` at the end.
    fn parts(&self, backend: &dyn Backend, out: &mut Vec<u8>) -> Result<Option<Next>, Refusal> {
        let (origin, flags) = (self.origin, nlmsg::F_MULTI);
        match self.next {
            Next::Family(from) => {
                for (n, family) in FAMILIES.iter().enumerate().skip(from) {
                    if !fits(out, |out| nlctrl::put_family(origin, flags, family, out)) {
                        return Ok(Some(Next::Family(n)));
                    }
                }
            }
            Next::Policy(family, from) => {
                for n in from.. {
                    let mut more = false;
                    if !fits(out, |out| more = nlctrl::put_policy(origin, flags, family, n, out)) {
                        return Ok(Some(Next::Policy(family, n)));
                    }
                    if !more {
                        break;
                    }
                }
            }
            Next::Datapath(from) => {
                for dp in backend.datapaths().into_iter().filter(|dp| *dp >= from) {
                    let cmd = uapi::dp::CMD_GET;
                    // One that is gone by now is left out.
                    let put = |out: &mut _| drop(datapath::put(backend, origin, flags, cmd, dp, out));
                    if !fits(out, put) {
                        return Ok(Some(Next::Datapath(dp)));
                    }
                }
            }
            Next::Vport(dp, from) => {
                for port in backend.vports(dp, from)? {
                    let cmd = uapi::vport::CMD_GET;
                    let put = |out: &mut _| drop(vport::put(backend, origin, flags, cmd, (dp, port), out));
                    if !fits(out, put) {
                        return Ok(Some(Next::Vport(dp, port)));
                    }
                }
            }
            Next::Flows(shape, from) => {
                let next = flows(shape, from, backend, out)?;
                return Ok(next.map(|cursor| Next::Flows(shape, cursor)));
            }
        }
        Ok(None)
    }
}

/// Appends a message, and takes it back if it makes the datagram too long and is not alone in it.
fn fits(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) -> bool {
    let before = out.len();
    put(out);
    let fits = out.len() <= DATAGRAM || before == 0;
    if !fits {
        out.truncate(before);
    }
    fits
}

/// Appends flows up to the datagram's size.
fn flows(
    shape: Shape,
    from: FlowCursor,
    backend: &dyn Backend,
    out: &mut Vec<u8>,
) -> Result<Option<FlowCursor>, Refusal> {
    let (flags, cmd) = (nlmsg::F_MULTI, uapi::flow::CMD_GET);
    let mut show = |view: FlowView<'_>| {
        let put = |out: &mut Vec<u8>| {
            let before = out.len();
            shape.put(flags, cmd, view, true, out);
            if out.len() - before > FLOW_MAX {
                out.truncate(before);
                shape.put(flags, cmd, view, false, out);
            }
        };
        if fits(out, put) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    backend.flow_dump(shape.dp, from, &mut show)
}
