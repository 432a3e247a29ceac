//! Reading: attributes to actions.

use super::{ActionAttrError, Args, arg, attr, ct, header};
use crate::nla::attrs;
use flowlift_flow::action::{HashAlg, MAX_NESTING, NshHeader, Userspace};
use flowlift_flow::{Action, PortNo};

/// Reads a list of actions.
pub fn decode_actions(bytes: &[u8]) -> Result<Vec<Action>, ActionAttrError> {
    list(bytes, 0)
}

fn list(bytes: &[u8], depth: usize) -> Result<Vec<Action>, ActionAttrError> {
    if depth > MAX_NESTING {
        return Err(ActionAttrError::TooDeep);
    }
    attrs(bytes).map(|item| item.map_err(Into::into).and_then(|a| action(a.kind, a.payload, depth))).collect()
}

/// A payload of exactly `N` bytes.
fn fixed<const N: usize>(action: u16, payload: &[u8]) -> Result<[u8; N], ActionAttrError> {
    let wrong = |_| ActionAttrError::Length { action, expected: N, actual: payload.len() };
    payload.try_into().map_err(wrong)
}

fn action(kind: u16, payload: &[u8], depth: usize) -> Result<Action, ActionAttrError> {
    let u32 = || fixed(kind, payload).map(u32::from_ne_bytes);
    let empty = |action| fixed::<0>(kind, payload).map(|_| action);
    Ok(match kind {
        attr::OUTPUT => Action::Output(PortNo(u32()?)),
        attr::USERSPACE => Action::Userspace(userspace(payload)?),
        attr::SET => header::decode_set(payload)?,
        attr::SET_MASKED => header::decode_set_masked(payload)?,
        attr::PUSH_VLAN => {
            let [p0, p1, t0, t1] = fixed(kind, payload)?;
            Action::PushVlan { tpid: u16::from_be_bytes([p0, p1]), tci: u16::from_be_bytes([t0, t1]) }
        }
        attr::POP_VLAN => empty(Action::PopVlan)?,
        attr::SAMPLE => {
            let args = Args::<3>::parse(kind, payload)?;
            let missing = ActionAttrError::Missing { action: kind, arg: arg::SAMPLE_PROBABILITY };
            let probability = args.u32(arg::SAMPLE_PROBABILITY)?.ok_or(missing)?;
            Action::Sample { probability, actions: list(args.need(arg::SAMPLE_ACTIONS)?, depth + 1)? }
        }
        attr::RECIRC => Action::Recirc(u32()?),
        attr::HASH => {
            let [a0, a1, a2, a3, b0, b1, b2, b3] = fixed(kind, payload)?;
            let alg = match u32::from_ne_bytes([a0, a1, a2, a3]) {
                arg::HASH_L4 => HashAlg::L4,
                arg::HASH_SYM_L4 => HashAlg::SymL4,
                other => {
                    return Err(ActionAttrError::Value {
                        action: kind,
                        field: "hash_alg",
                        value: other.into(),
                    });
                }
            };
            Action::Hash { alg, basis: u32::from_ne_bytes([b0, b1, b2, b3]) }
        }
        attr::PUSH_MPLS => {
            // 2 bytes of padding at the end of `struct ovs_action_push_mpls`.
            let [l0, l1, l2, l3, t0, t1, _, _] = fixed(kind, payload)?;
            Action::PushMpls {
                lse: u32::from_be_bytes([l0, l1, l2, l3]),
                eth_type: u16::from_be_bytes([t0, t1]),
            }
        }
        attr::POP_MPLS => Action::PopMpls { eth_type: u16::from_be_bytes(fixed(kind, payload)?) },
        attr::CT => Action::Ct(Box::new(ct::decode(payload)?)),
        attr::TRUNC => Action::Trunc { max_len: u32()? },
        attr::PUSH_ETH => {
            let [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5] = fixed(kind, payload)?;
            Action::PushEth { src: [s0, s1, s2, s3, s4, s5], dst: [d0, d1, d2, d3, d4, d5] }
        }
        attr::POP_ETH => empty(Action::PopEth)?,
        attr::CT_CLEAR => empty(Action::CtClear)?,
        attr::PUSH_NSH => Action::PushNsh(Box::new(push_nsh(payload)?)),
        attr::POP_NSH => empty(Action::PopNsh)?,
        attr::METER => Action::Meter(u32()?),
        attr::CLONE => Action::Clone(list(payload, depth + 1)?),
        attr::CHECK_PKT_LEN => {
            let args = Args::<4>::parse(kind, payload)?;
            let missing = ActionAttrError::Missing { action: kind, arg: arg::CHECK_PKT_LEN };
            Action::CheckPktLen {
                pkt_len: args.u16(arg::CHECK_PKT_LEN)?.ok_or(missing)?,
                greater: list(args.need(arg::CHECK_GREATER)?, depth + 1)?,
                less_or_equal: list(args.need(arg::CHECK_LESS_EQUAL)?, depth + 1)?,
            }
        }
        attr::ADD_MPLS => {
            let [l0, l1, l2, l3, t0, t1, f0, f1] = fixed(kind, payload)?;
            let flags = u16::from_ne_bytes([f0, f1]);
            if flags & !arg::ADD_MPLS_L3 != 0 {
                return Err(ActionAttrError::Value { action: kind, field: "tun_flags", value: flags.into() });
            }
            Action::AddMpls {
                lse: u32::from_be_bytes([l0, l1, l2, l3]),
                eth_type: u16::from_be_bytes([t0, t1]),
                l3: flags != 0,
            }
        }
        attr::DEC_TTL => {
            let args = Args::<2>::parse(kind, payload)?;
            Action::DecTtl { exception: list(args.need(arg::DEC_TTL_ACTION)?, depth + 1)? }
        }
        attr::DROP => Action::Drop(u32()?),
        attr::PSAMPLE => {
            let args = Args::<3>::parse(kind, payload)?;
            let missing = ActionAttrError::Missing { action: kind, arg: arg::PSAMPLE_GROUP };
            Action::Psample {
                group: args.u32(arg::PSAMPLE_GROUP)?.ok_or(missing)?,
                cookie: args.get(arg::PSAMPLE_COOKIE).unwrap_or_default().to_vec(),
            }
        }
        _ => return Err(ActionAttrError::Unknown(kind)),
    })
}

fn userspace(payload: &[u8]) -> Result<Userspace, ActionAttrError> {
    let action = attr::USERSPACE;
    let args = Args::<5>::parse(action, payload)?;
    let pid = args.u32(arg::USERSPACE_PID)?;
    let pid = pid.ok_or(ActionAttrError::Missing { action, arg: arg::USERSPACE_PID })?;
    if pid == 0 {
        return Err(ActionAttrError::Value { action, field: "pid", value: 0 });
    }
    Ok(Userspace {
        pid,
        userdata: args.get(arg::USERSPACE_USERDATA).map(<[u8]>::to_vec),
        tunnel_out_port: args.u32(arg::USERSPACE_EGRESS_TUN_PORT)?.map(PortNo),
        actions: args.flag(arg::USERSPACE_ACTIONS)?,
    })
}

/// The header comes as an attribute of the key within the action's.
fn push_nsh(payload: &[u8]) -> Result<NshHeader, ActionAttrError> {
    let action = attr::PUSH_NSH;
    let (key, header) = header::only_attr(action, payload)?;
    if key != crate::key::attr::NSH {
        return Err(ActionAttrError::NotSettable { action, key: key.into() });
    }
    let args = Args::<4>::parse(action, header)?;
    let missing = ActionAttrError::Missing { action, arg: arg::NSH_BASE };
    let [flags, ttl, mdtype, np, p0, p1, p2, p3] = args.fixed(arg::NSH_BASE)?.ok_or(missing)?;
    let metadata = match mdtype {
        1 => args.fixed::<16>(arg::NSH_MD1)?.unwrap_or_default().to_vec(),
        _ => args.get(arg::NSH_MD2).unwrap_or_default().to_vec(),
    };
    // The metadata of the other type has no place.
    for (has, arg) in [(1, arg::NSH_MD1), (2, arg::NSH_MD2)] {
        if args.get(arg).is_some() != (has == mdtype) {
            return Err(ActionAttrError::Missing { action, arg });
        }
    }
    Ok(NshHeader { flags, ttl, mdtype, np, path_hdr: u32::from_be_bytes([p0, p1, p2, p3]), metadata })
}
