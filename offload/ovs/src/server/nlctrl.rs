//! The controller of Generic Netlink: which families there are, and what they take.

use super::Context;
use super::message::{Failure, Origin, Request, begin, end};
use crate::nla::Writer;
use crate::uapi::{AttrPolicy, FAMILIES, Family, Kind, Op, ctrl, policy};
use nix::errno::Errno;

/// `GENL_ADMIN_PERM`, `GENL_CMD_CAP_DO`, `_DUMP` and `_HASPOL`.
const OP_ADMIN: u32 = 1;
const OP_DO: u32 = 2;
const OP_DUMP: u32 = 4;
const OP_POLICY: u32 = 8;

pub(super) fn get_family(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let family = find(request)?;
    put_family(request.origin(), 0, family, &mut context.buffer);
    context.reply(request);
    Ok(())
}

/// The family that a request names.
pub(super) fn find(request: &Request<'_>) -> Result<&'static Family, Failure> {
    let by_id = request.u16(ctrl::FAMILY_ID);
    let (attr, found) = match (request.string(ctrl::FAMILY_NAME)?, by_id) {
        (Some(name), _) => (ctrl::FAMILY_NAME, FAMILIES.iter().find(|family| family.name == name)),
        (None, Some(id)) => (ctrl::FAMILY_ID, FAMILIES.iter().find(|family| family.id == id)),
        (None, None) => return Err(request.lacks(ctrl::FAMILY_NAME)),
    };
    found.copied().ok_or_else(|| request.wrong(attr, Errno::ENOENT, "there is no such family"))
}

/// Appends the description of a family.
pub(super) fn put_family(origin: Origin, flags: u16, family: &Family, out: &mut Vec<u8>) {
    let start = begin(out, origin, flags, ctrl::CMD_NEWFAMILY, 0);
    let mut w = Writer::new(out);
    w.put(ctrl::FAMILY_NAME, &[family.name.as_bytes(), &[0]].concat());
    w.put(ctrl::FAMILY_ID, &family.id.to_ne_bytes());
    w.put(ctrl::VERSION, &u32::from(family.version).to_ne_bytes());
    w.put(ctrl::HDRSIZE, &(family.header_len as u32).to_ne_bytes());
    w.put(ctrl::MAXATTR, &u32::from(family.max_attr()).to_ne_bytes());
    let ops = w.begin(ctrl::OPS);
    for (i, op) in (1u16..).zip(family.ops) {
        let entry = w.begin(i);
        w.put(ctrl::OP_ID, &u32::from(op.cmd).to_ne_bytes());
        w.put(ctrl::OP_FLAGS, &op_flags(op).to_ne_bytes());
        w.end(entry);
    }
    w.end(ops);
    if let Some(group) = family.group {
        let groups = w.begin(ctrl::MCAST_GROUPS);
        let entry = w.begin(1u16);
        w.put(ctrl::GRP_ID, &u32::from(group.0).to_ne_bytes());
        w.put(ctrl::GRP_NAME, &[family.name.as_bytes(), &[0]].concat());
        w.end(entry);
        w.end(groups);
    }
    end(out, start);
}

fn op_flags(op: &Op) -> u32 {
    let flags = [(op.admin, OP_ADMIN), (op.plain, OP_DO), (op.dump, OP_DUMP), (true, OP_POLICY)];
    flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag)
}

/// Appends the `n`th message about a family's policy: first its commands, each with policy 0, then the policy's
/// attributes. False past the last.
pub(super) fn put_policy(origin: Origin, flags: u16, family: &Family, n: usize, out: &mut Vec<u8>) -> bool {
    let attr = n.checked_sub(family.ops.len());
    let (op, attr) = match attr {
        None => (family.ops.get(n), None),
        Some(attr) => (None, family.attrs.get(attr)),
    };
    if op.is_none() && attr.is_none() {
        return false;
    }
    let start = begin(out, origin, flags, ctrl::CMD_GETPOLICY, 0);
    let mut w = Writer::new(out);
    w.put(ctrl::FAMILY_ID, &family.id.to_ne_bytes());
    if let Some(op) = op {
        let all = w.begin(ctrl::OP_POLICY);
        let entry = w.begin(u16::from(op.cmd));
        for (has, attr) in [(op.plain, ctrl::POLICY_DO), (op.dump, ctrl::POLICY_DUMP)] {
            if has {
                w.put(attr, &0u32.to_ne_bytes());
            }
        }
        w.end(entry);
        w.end(all);
    }
    if let Some(attr) = attr {
        let all = w.begin(ctrl::POLICY);
        let index = w.begin(0u16);
        put_attr_policy(attr, &mut w);
        w.end(index);
        w.end(all);
    }
    end(out, start);
    true
}

fn put_attr_policy(attr: &AttrPolicy, w: &mut Writer<'_>) {
    let (kind, min, max) = match attr.2 {
        Kind::Flag => (policy::TYPE_FLAG, None, None),
        Kind::Uint(1) => (policy::TYPE_U8, None, None),
        Kind::Uint(2) => (policy::TYPE_U16, None, None),
        Kind::Uint(4) => (policy::TYPE_U32, None, None),
        Kind::Uint(_) => (policy::TYPE_U64, None, None),
        Kind::NulString(max) => (policy::TYPE_NUL_STRING, None, Some(max)),
        Kind::Bytes(min) => (policy::TYPE_BINARY, Some(min), None),
        Kind::Ignored => (policy::TYPE_BINARY, None, None),
        Kind::Nested => (policy::TYPE_NESTED, None, None),
    };
    let entry = w.begin(attr.0);
    w.put(policy::ATTR_TYPE, &kind.to_ne_bytes());
    for (attr, length) in [(policy::ATTR_MIN_LENGTH, min), (policy::ATTR_MAX_LENGTH, max)] {
        if let Some(length) = length {
            w.put(attr, &(length as u32).to_ne_bytes());
        }
    }
    w.end(entry);
}
