//! The ct action and its nat.

use super::{ActionAttrError, Args, attr};
use crate::nla::Writer;
use flowlift_flow::action::{Ct, Nat, NatDirection};
use std::net::IpAddr;

/// `enum ovs_ct_attr`.
mod arg {
    pub(super) const COMMIT: u16 = 1;
    pub(super) const ZONE: u16 = 2;
    pub(super) const MARK: u16 = 3;
    pub(super) const LABELS: u16 = 4;
    pub(super) const HELPER: u16 = 5;
    pub(super) const NAT: u16 = 6;
    pub(super) const FORCE_COMMIT: u16 = 7;
    pub(super) const EVENTMASK: u16 = 8;
    pub(super) const TIMEOUT: u16 = 9;
}

/// `enum ovs_nat_attr`.
mod nat_arg {
    pub(super) const SRC: u16 = 1;
    pub(super) const DST: u16 = 2;
    pub(super) const IP_MIN: u16 = 3;
    pub(super) const IP_MAX: u16 = 4;
    pub(super) const PROTO_MIN: u16 = 5;
    pub(super) const PROTO_MAX: u16 = 6;
    pub(super) const PERSISTENT: u16 = 7;
    pub(super) const PROTO_HASH: u16 = 8;
    pub(super) const PROTO_RANDOM: u16 = 9;
}

/// Reads CT.
pub(super) fn decode(payload: &[u8]) -> Result<Ct, ActionAttrError> {
    let args = Args::<10>::parse(attr::CT, payload)?;
    let mark = args.fixed::<8>(arg::MARK)?.map(|[v0, v1, v2, v3, m0, m1, m2, m3]| {
        (u32::from_ne_bytes([v0, v1, v2, v3]), u32::from_ne_bytes([m0, m1, m2, m3]))
    });
    let label = args.fixed::<32>(arg::LABELS)?.map(|both| {
        let (mut value, mut mask) = ([0; 16], [0; 16]);
        value.copy_from_slice(&both[..16]);
        mask.copy_from_slice(&both[16..]);
        (value, mask)
    });
    Ok(Ct {
        commit: args.flag(arg::COMMIT)?,
        force_commit: args.flag(arg::FORCE_COMMIT)?,
        zone: args.u16(arg::ZONE)?.unwrap_or_default(),
        mark,
        label,
        helper: args.string(arg::HELPER)?,
        nat: args.get(arg::NAT).map(decode_nat).transpose()?,
        eventmask: args.u32(arg::EVENTMASK)?,
        timeout: args.string(arg::TIMEOUT)?,
    })
}

fn decode_nat(payload: &[u8]) -> Result<Nat, ActionAttrError> {
    let action = attr::CT;
    let args = Args::<10>::parse(action, payload)?;
    let direction = match (args.flag(nat_arg::SRC)?, args.flag(nat_arg::DST)?) {
        (false, false) => None,
        (true, false) => Some(NatDirection::Src),
        (false, true) => Some(NatDirection::Dst),
        (true, true) => return Err(ActionAttrError::Value { action, field: "nat direction", value: 3 }),
    };
    let address = |arg| match args.get(arg) {
        None => Ok(None),
        Some(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            let wrong = |_| ActionAttrError::ArgLength { action, arg, actual: bytes.len() };
            address.map(Some).map_err(wrong)
        }
    };
    let addr = match (address(nat_arg::IP_MIN)?, address(nat_arg::IP_MAX)?) {
        (None, None) => None,
        (None, Some(_)) => return Err(ActionAttrError::Missing { action, arg: nat_arg::IP_MIN }),
        (Some(min), None) => Some((min, min)),
        (Some(min), Some(max)) if min.is_ipv4() == max.is_ipv4() => Some((min, max)),
        (Some(_), Some(_)) => {
            let field = "last nat address of another IP version, whose first";
            return Err(ActionAttrError::Value { action, field, value: 0 });
        }
    };
    let port = match (args.u16(nat_arg::PROTO_MIN)?, args.u16(nat_arg::PROTO_MAX)?) {
        (None, None) => None,
        (None, Some(_)) => return Err(ActionAttrError::Missing { action, arg: nat_arg::PROTO_MIN }),
        (Some(min), max) => Some((min, max.unwrap_or(min))),
    };
    Ok(Nat {
        direction,
        addr,
        port,
        persistent: args.flag(nat_arg::PERSISTENT)?,
        hash: args.flag(nat_arg::PROTO_HASH)?,
        random: args.flag(nat_arg::PROTO_RANDOM)?,
    })
}

/// Writes CT. ZONE is left out if it is 0, the ends of ranges if they are the beginnings, as Open vSwitch does.
pub(super) fn encode(ct: &Ct, w: &mut Writer<'_>) {
    let start = w.begin(attr::CT);
    let flag = |w: &mut Writer<'_>, arg, set: bool| {
        if set {
            w.put(arg, &[]);
        }
    };
    flag(w, arg::COMMIT, ct.commit);
    if ct.zone != 0 {
        w.put(arg::ZONE, &ct.zone.to_ne_bytes());
    }
    if let Some((value, mask)) = ct.mark {
        w.put(arg::MARK, &[value.to_ne_bytes(), mask.to_ne_bytes()].concat());
    }
    if let Some((value, mask)) = ct.label {
        w.put(arg::LABELS, &[value, mask].concat());
    }
    if let Some(helper) = &ct.helper {
        w.put(arg::HELPER, &[helper.as_bytes(), &[0]].concat());
    }
    if let Some(nat) = &ct.nat {
        encode_nat(nat, w);
    }
    flag(w, arg::FORCE_COMMIT, ct.force_commit);
    if let Some(mask) = ct.eventmask {
        w.put(arg::EVENTMASK, &mask.to_ne_bytes());
    }
    if let Some(timeout) = &ct.timeout {
        w.put(arg::TIMEOUT, &[timeout.as_bytes(), &[0]].concat());
    }
    w.end(start);
}

fn encode_nat(nat: &Nat, w: &mut Writer<'_>) {
    let start = w.begin(arg::NAT);
    match nat.direction {
        Some(NatDirection::Src) => w.put(nat_arg::SRC, &[]),
        Some(NatDirection::Dst) => w.put(nat_arg::DST, &[]),
        None => {}
    }
    let address = |w: &mut Writer<'_>, arg, address: IpAddr| match address {
        IpAddr::V4(v4) => w.put(arg, &v4.octets()),
        IpAddr::V6(v6) => w.put(arg, &v6.octets()),
    };
    if let Some((min, max)) = nat.addr {
        address(w, nat_arg::IP_MIN, min);
        if max != min {
            address(w, nat_arg::IP_MAX, max);
        }
    }
    if let Some((min, max)) = nat.port {
        w.put(nat_arg::PROTO_MIN, &min.to_ne_bytes());
        if max != min {
            w.put(nat_arg::PROTO_MAX, &max.to_ne_bytes());
        }
    }
    for (arg, set) in [
        (nat_arg::PERSISTENT, nat.persistent),
        (nat_arg::PROTO_HASH, nat.hash),
        (nat_arg::PROTO_RANDOM, nat.random),
    ] {
        if set {
            w.put(arg, &[]);
        }
    }
    w.end(start);
}
