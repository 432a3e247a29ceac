//! Composing: actions to attributes.

use super::{arg, attr, ct, header};
use crate::key::attr as key;
use crate::nla::{HEADER_LEN, Writer};
use flowlift_flow::Action;
use flowlift_flow::action::{HashAlg, NshHeader, Userspace};
use thiserror::Error;

/// Actions that have no attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// An action of OVS's user-space datapath, which never crosses this line.
    #[error("action {0} is one of the user-space datapath")]
    UserSpaceOnly(&'static str),
    /// More than an attribute can hold.
    #[error("the actions take {0} bytes, more than an attribute holds")]
    TooLong(usize),
}

/// Appends the attributes of `actions` to `out`, whose length is a multiple of 4. On an error `out` is as it was.
pub fn encode_actions(actions: &[Action], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let mut result = list(actions, &mut Writer::new(out));
    let length = out.len() - start;
    if result.is_ok() && length > usize::from(u16::MAX) - HEADER_LEN {
        result = Err(EncodeError::TooLong(length));
    }
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn list(actions: &[Action], w: &mut Writer<'_>) -> Result<(), EncodeError> {
    actions.iter().try_for_each(|action| put(action, w))
}

/// A list within attribute `kind`.
fn nested(kind: u16, actions: &[Action], w: &mut Writer<'_>) -> Result<(), EncodeError> {
    let start = w.begin(kind);
    list(actions, w)?;
    w.end(start);
    Ok(())
}

fn put(action: &Action, w: &mut Writer<'_>) -> Result<(), EncodeError> {
    match action {
        Action::Output(port) => w.put(attr::OUTPUT, &port.0.to_ne_bytes()),
        Action::Userspace(userspace) => put_userspace(userspace, w),
        Action::Set(value) => header::encode_set(value, w),
        Action::SetMasked { value, mask } => header::encode_set_masked(value, mask, w),
        Action::PushVlan { tpid, tci } => w.put(attr::PUSH_VLAN, &pair(*tpid, *tci)),
        Action::PopVlan => w.put(attr::POP_VLAN, &[]),
        Action::Sample { probability, actions } => {
            let start = w.begin(attr::SAMPLE);
            w.put(arg::SAMPLE_PROBABILITY, &probability.to_ne_bytes());
            nested(arg::SAMPLE_ACTIONS, actions, w)?;
            w.end(start);
        }
        Action::Recirc(id) => w.put(attr::RECIRC, &id.to_ne_bytes()),
        Action::Hash { alg, basis } => {
            let alg = match alg {
                HashAlg::L4 => arg::HASH_L4,
                HashAlg::SymL4 => arg::HASH_SYM_L4,
            };
            w.put(attr::HASH, &[alg.to_ne_bytes(), basis.to_ne_bytes()].concat());
        }
        Action::PushMpls { lse, eth_type } => w.put(attr::PUSH_MPLS, &mpls(*lse, *eth_type, 0)),
        Action::PopMpls { eth_type } => w.put(attr::POP_MPLS, &eth_type.to_be_bytes()),
        Action::Ct(args) => ct::encode(args, w),
        Action::Trunc { max_len } => w.put(attr::TRUNC, &max_len.to_ne_bytes()),
        Action::PushEth { src, dst } => w.put(attr::PUSH_ETH, &[*src, *dst].concat()),
        Action::PopEth => w.put(attr::POP_ETH, &[]),
        Action::CtClear => w.put(attr::CT_CLEAR, &[]),
        Action::PushNsh(nsh) => put_nsh(nsh, w),
        Action::PopNsh => w.put(attr::POP_NSH, &[]),
        Action::Meter(id) => w.put(attr::METER, &id.to_ne_bytes()),
        Action::Clone(actions) => nested(attr::CLONE, actions, w)?,
        Action::CheckPktLen { pkt_len, greater, less_or_equal } => {
            let start = w.begin(attr::CHECK_PKT_LEN);
            w.put(arg::CHECK_PKT_LEN, &pkt_len.to_ne_bytes());
            nested(arg::CHECK_GREATER, greater, w)?;
            nested(arg::CHECK_LESS_EQUAL, less_or_equal, w)?;
            w.end(start);
        }
        Action::AddMpls { lse, eth_type, l3 } => {
            let flags = if *l3 { arg::ADD_MPLS_L3 } else { 0 };
            w.put(attr::ADD_MPLS, &mpls(*lse, *eth_type, flags));
        }
        Action::DecTtl { exception } => {
            let start = w.begin(attr::DEC_TTL);
            nested(arg::DEC_TTL_ACTION, exception, w)?;
            w.end(start);
        }
        Action::Drop(reason) => w.put(attr::DROP, &reason.to_ne_bytes()),
        Action::Psample { group, cookie } => {
            let start = w.begin(attr::PSAMPLE);
            w.put(arg::PSAMPLE_GROUP, &group.to_ne_bytes());
            if !cookie.is_empty() {
                w.put(arg::PSAMPLE_COOKIE, cookie);
            }
            w.end(start);
        }
        Action::TnlPush(_) | Action::TnlPop(_) | Action::LbOutput(_) => {
            return Err(EncodeError::UserSpaceOnly(action.name()));
        }
    }
    Ok(())
}

/// Two numbers in network byte order.
fn pair(a: u16, b: u16) -> [u8; 4] {
    let ([a0, a1], [b0, b1]) = (a.to_be_bytes(), b.to_be_bytes());
    [a0, a1, b0, b1]
}

/// `struct ovs_action_push_mpls`, and `struct ovs_action_add_mpls` with `flags`.
fn mpls(lse: u32, eth_type: u16, flags: u16) -> [u8; 8] {
    let ([l0, l1, l2, l3], [t0, t1]) = (lse.to_be_bytes(), eth_type.to_be_bytes());
    let [f0, f1] = flags.to_ne_bytes();
    [l0, l1, l2, l3, t0, t1, f0, f1]
}

fn put_userspace(userspace: &Userspace, w: &mut Writer<'_>) {
    let start = w.begin(attr::USERSPACE);
    w.put(arg::USERSPACE_PID, &userspace.pid.to_ne_bytes());
    if let Some(userdata) = &userspace.userdata {
        w.put(arg::USERSPACE_USERDATA, userdata);
    }
    if let Some(port) = userspace.tunnel_out_port {
        w.put(arg::USERSPACE_EGRESS_TUN_PORT, &port.0.to_ne_bytes());
    }
    if userspace.actions {
        w.put(arg::USERSPACE_ACTIONS, &[]);
    }
    w.end(start);
}

fn put_nsh(nsh: &NshHeader, w: &mut Writer<'_>) {
    let start = w.begin(attr::PUSH_NSH);
    let header = w.begin(key::NSH);
    let [p0, p1, p2, p3] = nsh.path_hdr.to_be_bytes();
    w.put(arg::NSH_BASE, &[nsh.flags, nsh.ttl, nsh.mdtype, nsh.np, p0, p1, p2, p3]);
    w.put(if nsh.mdtype == 1 { arg::NSH_MD1 } else { arg::NSH_MD2 }, &nsh.metadata);
    w.end(header);
    w.end(start);
}
