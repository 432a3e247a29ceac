//! The family ovs_datapath.

use super::Context;
use super::message::{Failure, Origin, Request, begin, end};
use crate::backend::{Backend, DatapathChange, DpIndex, Features, NewDatapath, Refusal};
use crate::nla::Writer;
use crate::uapi::dp;
use nix::errno::Errno;

/// Most entries of the masks cache: what the kernel's fits into one page group per CPU.
const MASKS_CACHE_MAX: u32 = 4096;

pub(super) fn handle(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    match request.cmd {
        dp::CMD_NEW => new(request, context),
        dp::CMD_DEL => {
            let index = lookup(request, context.backend)?;
            put(context.backend, request.origin(), 0, dp::CMD_DEL, index, &mut context.buffer)?;
            context.backend.datapath_del(index)?;
            context.notify(request);
            Ok(())
        }
        dp::CMD_SET => set(request, context),
        _ => {
            let index = lookup(request, context.backend)?;
            put(context.backend, request.origin(), 0, dp::CMD_GET, index, &mut context.buffer)?;
            context.reply(request);
            Ok(())
        }
    }
}

fn new(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let name = request.name(dp::NAME)?.ok_or_else(|| request.lacks(dp::NAME))?;
    let upcall_pid = request.u32(dp::UPCALL_PID).ok_or_else(|| request.lacks(dp::UPCALL_PID))?;
    let features = features(request, context.backend)?.unwrap_or_default();
    let index = match request.u32(dp::IFINDEX).map(u32::cast_signed) {
        Some(index) if index < 0 => return Err(request.wrong(dp::IFINDEX, Errno::ERANGE, "negative")),
        index => index.filter(|index| *index != 0).map(DpIndex),
    };
    let per_cpu_pids = request.pids(dp::PER_CPU_PIDS)?;
    let new = NewDatapath {
        name: name.to_owned(),
        features,
        masks_cache_size: masks_cache_size(request)?,
        upcall_pid,
        per_cpu_pids: per_cpu_pids
            .filter(|_| features.has(Features::DISPATCH_UPCALL_PER_CPU))
            .unwrap_or_default(),
        index,
    };
    let index = context.backend.datapath_new(new).map_err(|refusal| {
        let exists = matches!(refusal, Refusal::Exists(_) | Refusal::Busy(_));
        // A user that does not know of features is about to use a datapath that has some.
        if exists
            && request.version < dp::VER_FEATURES
            && let Some(index) = context.backend.datapath_named(name)
        {
            let change = DatapathChange { features: Some(Features::default()), ..DatapathChange::default() };
            // It is only looked at, so nothing is lost if it went away meanwhile.
            let _ = context.backend.datapath_set(index, change);
        }
        if exists { request.wrong(dp::NAME, Errno::EEXIST, refusal) } else { refusal.into() }
    })?;
    put(context.backend, request.origin(), 0, dp::CMD_NEW, index, &mut context.buffer)?;
    context.notify(request);
    Ok(())
}

fn set(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let index = lookup(request, context.backend)?;
    let features = features(request, context.backend)?;
    let now = context.backend.datapath(index).ok_or(Refusal::NoDatapath)?.features;
    let per_cpu = features.unwrap_or(now).has(Features::DISPATCH_UPCALL_PER_CPU);
    let change = DatapathChange {
        features,
        masks_cache_size: masks_cache_size(request)?,
        per_cpu_pids: request.pids(dp::PER_CPU_PIDS)?.filter(|_| per_cpu),
    };
    context.backend.datapath_set(index, change)?;
    put(context.backend, request.origin(), 0, dp::CMD_SET, index, &mut context.buffer)?;
    context.notify(request);
    Ok(())
}

/// The datapath that a name or the OVS header names.
fn lookup(request: &Request<'_>, backend: &dyn Backend) -> Result<DpIndex, Failure> {
    match request.name(dp::NAME)? {
        None => super::header_dp(request, backend),
        Some(name) => {
            let wrong = || request.wrong(dp::NAME, Errno::ENODEV, Refusal::NoDatapath);
            backend.datapath_named(name).ok_or_else(wrong)
        }
    }
}

/// The wanted features; an unknown one is refused, so that a user can try.
fn features(request: &Request<'_>, backend: &dyn Backend) -> Result<Option<Features>, Failure> {
    let Some(features) = request.u32(dp::USER_FEATURES).map(Features) else { return Ok(None) };
    let supported = backend.capabilities().features;
    if supported.has(features) {
        return Ok(Some(features));
    }
    let problem = format!("features {:#x} are not supported", features.0 & !supported.0);
    Err(request.wrong(dp::USER_FEATURES, Errno::EOPNOTSUPP, problem))
}

/// 0, or a power of two.
fn masks_cache_size(request: &Request<'_>) -> Result<Option<u32>, Failure> {
    let attr = dp::MASKS_CACHE_SIZE;
    match request.u32(attr) {
        Some(size) if size > MASKS_CACHE_MAX => {
            Err(request.wrong(attr, Errno::ERANGE, format!("at most {MASKS_CACHE_MAX}")))
        }
        // The kernel finds out when it allocates the cache, and says so.
        Some(size) if size != 0 && !size.is_power_of_two() => {
            Err(request.wrong(attr, Errno::ENOMEM, "a cache has 0 or a power of two entries"))
        }
        size => Ok(size),
    }
}

/// Appends the message about a datapath.
pub(super) fn put(
    backend: &dyn Backend,
    origin: Origin,
    flags: u16,
    cmd: u8,
    index: DpIndex,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let datapath = backend.datapath(index).ok_or(Refusal::NoDatapath)?;
    let start = begin(out, origin, flags, cmd, index.0);
    let mut w = Writer::new(out);
    w.put(dp::NAME, &[datapath.name.as_bytes(), &[0]].concat());
    let (stats, megaflow) = (datapath.stats, datapath.megaflow);
    w.put(dp::STATS, &words(&[stats.hit, stats.missed, stats.lost, stats.flows]));
    let mut payload = words(&[megaflow.mask_hit, 0, megaflow.cache_hit, 0]);
    payload[8..12].copy_from_slice(&megaflow.masks.to_ne_bytes());
    w.put(dp::MEGAFLOW_STATS, &payload);
    w.put(dp::USER_FEATURES, &datapath.features.0.to_ne_bytes());
    w.put(dp::MASKS_CACHE_SIZE, &datapath.masks_cache_size.to_ne_bytes());
    if datapath.features.has(Features::DISPATCH_UPCALL_PER_CPU) && !datapath.per_cpu_pids.is_empty() {
        let pids: Vec<u8> = datapath.per_cpu_pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
        w.put(dp::PER_CPU_PIDS, &pids);
    }
    end(out, start);
    Ok(())
}

/// 64-bit numbers one behind the other, native.
pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
