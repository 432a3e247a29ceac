//! The family ovs_packet, as far as clients send it.

use super::Context;
use super::flow::actions;
use super::message::{Failure, Request};
use crate::backend::{DpIndex, Execute};
use crate::key::{Form, decode_metadata};
use crate::uapi::packet;
use nix::errno::Errno;

pub(super) fn execute(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let bytes = request.need(packet::PACKET)?;
    let key = request.need(packet::KEY)?;
    request.need(packet::ACTIONS)?;
    let metadata = decode_metadata(key, Form::Datapath).map_err(|e| request.invalid(packet::KEY, e))?;
    if !context.backend.capabilities().conntrack && metadata.ct_state != 0 {
        return Err(request.invalid(packet::KEY, "connection tracking is not supported"));
    }
    let actions = actions(request, packet::ACTIONS, context.backend)?;
    let execute = Execute {
        packet: bytes,
        metadata,
        actions,
        probe: request.has(packet::PROBE),
        mru: request.u16(packet::MRU),
        hash: request.u64(packet::HASH),
        upcall_pid: request.u32(packet::UPCALL_PID),
    };
    context.backend.execute(DpIndex(request.dp), execute).map_err(|refusal| match refusal.errno() {
        Errno::EINVAL | Errno::EOVERFLOW => request.wrong(packet::ACTIONS, refusal.errno(), &refusal),
        _ => refusal.into(),
    })
}
