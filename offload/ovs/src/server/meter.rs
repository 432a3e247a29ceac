//! The family ovs_meter.

use super::datapath::words;
use super::message::{Failure, Request, begin, end};
use super::{Context, header_dp};
use crate::backend::{MeterBand, MeterConfig, MeterStats};
use crate::nla::{Writer, attrs};
use crate::uapi::meter;
use nix::errno::Errno;

pub(super) fn handle(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    if request.cmd == meter::CMD_FEATURES {
        return features(request, context);
    }
    // The kernel's answer to a set without ID is ENODEV.
    let lacks = || match request.cmd {
        meter::CMD_SET => Failure { errno: Errno::ENODEV, ..request.lacks(meter::ID) },
        _ => request.lacks(meter::ID),
    };
    let id = request.u32(meter::ID).ok_or_else(lacks)?;
    let config = match request.cmd {
        meter::CMD_SET => Some(config(request, context.backend.capabilities().max_meter_bands)?),
        _ => None,
    };
    let dp = header_dp(request, context.backend)?;
    let stats = match (request.cmd, config) {
        (_, Some(config)) => context.backend.meter_set(dp, id, config)?,
        (meter::CMD_DEL, _) => context.backend.meter_del(dp, id)?,
        _ => Some(context.backend.meter_get(dp, id)?),
    };
    let start = begin(&mut context.buffer, request.origin(), 0, request.cmd, dp.0);
    let mut w = Writer::new(&mut context.buffer);
    w.put(meter::ID, &id.to_ne_bytes());
    if let Some(stats) = stats {
        put_stats(&stats, &mut w);
    }
    end(&mut context.buffer, start);
    context.reply(request);
    Ok(())
}

fn features(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let dp = header_dp(request, context.backend)?;
    let capabilities = context.backend.capabilities();
    let start = begin(&mut context.buffer, request.origin(), 0, request.cmd, dp.0);
    let mut w = Writer::new(&mut context.buffer);
    w.put(meter::MAX_METERS, &capabilities.max_meters.to_ne_bytes());
    w.put(meter::MAX_BANDS, &capabilities.max_meter_bands.to_ne_bytes());
    let bands = w.begin(meter::BANDS);
    let band = w.begin(0u16);
    w.put(meter::BAND_TYPE, &meter::BAND_TYPE_DROP.to_ne_bytes());
    w.end(band);
    w.end(bands);
    end(&mut context.buffer, start);
    context.reply(request);
    Ok(())
}

/// A meter as a request describes it.
fn config(request: &Request<'_>, max_bands: u32) -> Result<MeterConfig, Failure> {
    let payload = request.need(meter::BANDS)?;
    let wrong = |problem: &dyn std::fmt::Display| request.invalid(meter::BANDS, problem);
    let mut bands = Vec::new();
    for item in attrs(payload) {
        let item = item.map_err(|e| wrong(&e))?;
        if bands.len() as u64 >= u64::from(max_bands) {
            return Err(wrong(&format_args!("at most {max_bands} bands")));
        }
        bands.push(band(item.payload).map_err(|problem| wrong(&problem))?);
    }
    let clear = request.has(meter::CLEAR);
    let [packets, bytes] = request.get(meter::STATS).filter(|_| !clear).map_or([0; 2], two_words);
    Ok(MeterConfig { kbps: request.has(meter::KBPS), bands, packets, bytes, clear })
}

/// `struct ovs_flow_stats`; the policy saw to 16 bytes.
fn two_words(bytes: &[u8]) -> [u64; 2] {
    let word = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk()).copied().map(u64::from_ne_bytes);
    [word(0).unwrap_or_default(), word(8).unwrap_or_default()]
}

/// A band, which must drop.
fn band(payload: &[u8]) -> Result<MeterBand, String> {
    let mut found = [None; 5];
    for item in attrs(payload) {
        let item = item.map_err(|e| e.to_string())?;
        let Some(slot) = found.get_mut(usize::from(item.kind)) else { continue };
        let value = item.payload.first_chunk().copied().map(u32::from_ne_bytes);
        let value = value.ok_or_else(|| format!("band attribute {} is too short", item.kind))?;
        if slot.replace(value).is_some() {
            return Err(format!("band attribute {} occurs twice", item.kind));
        }
    }
    let need = |attr: u16, name: &str| {
        found.get(usize::from(attr)).copied().flatten().ok_or_else(|| format!("{name} is missing"))
    };
    let kind = need(meter::BAND_TYPE, "OVS_BAND_ATTR_TYPE")?;
    let rate = need(meter::BAND_RATE, "OVS_BAND_ATTR_RATE")?;
    let burst = need(meter::BAND_BURST, "OVS_BAND_ATTR_BURST")?;
    match (kind, rate) {
        (meter::BAND_TYPE_DROP, 1..) => Ok(MeterBand { rate, burst }),
        (meter::BAND_TYPE_DROP, 0) => Err("a rate of 0".into()),
        _ => Err(format!("band type {kind} is not supported")),
    }
}

fn put_stats(stats: &MeterStats, w: &mut Writer<'_>) {
    w.put(meter::STATS, &words(&[stats.packets, stats.bytes]));
    w.put(meter::USED, &stats.used_ms.to_ne_bytes());
    let bands = w.begin(meter::BANDS);
    for (packets, bytes) in &stats.bands {
        let band = w.begin(0u16);
        w.put(meter::BAND_STATS, &words(&[*packets, *bytes]));
        w.end(band);
    }
    w.end(bands);
}
