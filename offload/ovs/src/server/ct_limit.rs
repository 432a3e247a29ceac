//! The family ovs_ct_limit.

use super::message::{Failure, Request, begin, end};
use super::{Context, header_dp};
use crate::backend::ZoneLimit;
use crate::nla::Writer;
use crate::uapi::ct_limit;

pub(super) fn handle(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let mut limits = Vec::new();
    if request.cmd != ct_limit::CMD_GET {
        request.need(ct_limit::ZONE_LIMIT)?;
    }
    // Entries of `struct ovs_zone_limit` one behind the other, not attributes.
    let (entries, odd) = request.get(ct_limit::ZONE_LIMIT).unwrap_or_default().as_chunks::<12>();
    if !odd.is_empty() {
        return Err(request.invalid(ct_limit::ZONE_LIMIT, format!("{} bytes are left over", odd.len())));
    }
    for [z0, z1, z2, z3, l0, l1, l2, l3, ..] in entries.iter().copied() {
        let zone = match i32::from_ne_bytes([z0, z1, z2, z3]) {
            ct_limit::DEFAULT_ZONE => None,
            zone => match u16::try_from(zone) {
                Ok(zone) => Some(zone),
                Err(_) => return Err(request.invalid(ct_limit::ZONE_LIMIT, format!("{zone} is no zone"))),
            },
        };
        limits.push(ZoneLimit { zone, limit: u32::from_ne_bytes([l0, l1, l2, l3]), count: 0 });
    }
    let dp = header_dp(request, context.backend)?;
    let zones: Vec<_> = limits.iter().map(|limit| limit.zone).collect();
    let found = match request.cmd {
        ct_limit::CMD_SET => context.backend.ct_limit_set(dp, &limits).map(|()| None)?,
        ct_limit::CMD_DEL => context.backend.ct_limit_del(dp, &zones).map(|()| None)?,
        _ => Some(context.backend.ct_limit_get(dp, &zones)?),
    };
    let start = begin(&mut context.buffer, request.origin(), 0, request.cmd, dp.0);
    if let Some(found) = found {
        let mut payload = Vec::with_capacity(found.len() * 12);
        for limit in found {
            let zone = limit.zone.map_or(ct_limit::DEFAULT_ZONE, i32::from);
            payload.extend_from_slice(&zone.to_ne_bytes());
            payload.extend_from_slice(&limit.limit.to_ne_bytes());
            payload.extend_from_slice(&limit.count.to_ne_bytes());
        }
        Writer::new(&mut context.buffer).put(ct_limit::ZONE_LIMIT, &payload);
    }
    end(&mut context.buffer, start);
    context.reply(request);
    Ok(())
}
