//! The two attributes that nest their own kind: TUNNEL and NSH.

use super::error::{InnerProblem, KeyError};
use super::{attr, tunnel_attr as tun};
use crate::nla::{Writer, attrs};
use flowlift_flow::key::{TUN_OPTS_MAX, tun_flags};
use flowlift_flow::{AttrSet, Key};

/// Number of tunnel attributes, 0 to 16.
const TUN_ATTRS: usize = 17;
/// `OVS_TUNNEL_KEY_ATTR_PAD`: says nothing.
const PAD: u8 = 14;
/// `OVS_NSH_KEY_ATTR_BASE` and `_MD1`.
const NSH_BASE: u16 = 1;
const NSH_MD1: u16 = 2;
/// `OVS_VXLAN_EXT_GBP`, within VXLAN_OPTS.
const VXLAN_GBP: u16 = 1;
/// Size of `struct erspan_metadata`.
const ERSPAN_LEN: usize = 12;

/// Writes TUNNEL for `key` with the values of `data`, the key or a mask. A value of zero is left out, as Open vSwitch
/// does, unless `only` names it.
pub(super) fn encode(key: &Key, data: &Key, is_mask: bool, only: Option<&AttrSet>, w: &mut Writer<'_>) {
    encode_as(attr::TUNNEL.into(), key, data, is_mask, only, w);
}

/// Writes the tunnel attributes of `key` within attribute `kind`: TUNNEL, or EGRESS_TUN_KEY of an upcall.
pub(crate) fn encode_tunnel_as(kind: u16, key: &Key, w: &mut Writer<'_>) {
    encode_as(kind, key, key, false, None, w);
}

fn encode_as(kind: u16, key: &Key, data: &Key, is_mask: bool, only: Option<&AttrSet>, w: &mut Writer<'_>) {
    let flags = data.tun_flags.get();
    let named = |kind| only.is_some_and(|set| set.has_tunnel(kind));
    let start = w.begin(kind);
    if flags & tun_flags::KEY != 0 || data.tun_id.get() != 0 {
        w.put(tun::ID, &data.tun_id.get().to_be_bytes());
    }
    for (kind, address) in [(tun::IPV4_SRC, data.tun_ipv4_src), (tun::IPV4_DST, data.tun_ipv4_dst)] {
        if address.get() != 0 || named(kind) {
            w.put(kind, &address.get().to_be_bytes());
        }
    }
    for (kind, address) in [(tun::IPV6_SRC, data.tun_ipv6_src), (tun::IPV6_DST, data.tun_ipv6_dst)] {
        if address != [0; 16] || named(kind) {
            w.put(kind, &address);
        }
    }
    if data.tun_tos != 0 || named(tun::TOS) {
        w.put(tun::TOS, &[data.tun_tos]);
    }
    w.put(tun::TTL, &[data.tun_ttl]);
    for (kind, flag) in [(tun::DONT_FRAGMENT, tun_flags::DF), (tun::CSUM, tun_flags::CSUM)] {
        if flags & flag != 0 {
            w.put(kind, &[]);
        }
    }
    for (kind, port) in [(tun::TP_SRC, data.tun_tp_src), (tun::TP_DST, data.tun_tp_dst)] {
        if port.get() != 0 || named(kind) {
            w.put(kind, &port.get().to_be_bytes());
        }
    }
    if flags & tun_flags::OAM != 0 {
        w.put(tun::OAM, &[]);
    }
    options(key, data, is_mask, w);
    w.end(start);
}

/// The options of the kinds of tunnels that have some. The key's flags say which it has.
fn options(key: &Key, data: &Key, is_mask: bool, w: &mut Writer<'_>) {
    let has = |flag| key.tun_flags.get() & data.tun_flags.get() & flag != 0;
    if has(tun_flags::GBP) || data.tun_gbp_flags != 0 || data.tun_gbp_id.get() != 0 {
        let raw = u32::from(data.tun_gbp_flags) << 16 | u32::from(data.tun_gbp_id.get());
        let start = w.begin(tun::VXLAN_OPTS);
        w.put(VXLAN_GBP, &raw.to_ne_bytes());
        w.end(start);
    }
    if has(tun_flags::GENEVE) {
        let length = usize::from(key.tun_opts_len);
        w.put(tun::GENEVE_OPTS, &data.tun_opts[..length.min(TUN_OPTS_MAX)]);
    }
    if has(tun_flags::ERSPAN) || (!is_mask && matches!(key.tun_erspan_ver, 1 | 2)) {
        let mut payload = [0; ERSPAN_LEN];
        let version =
            if is_mask && data.tun_erspan_ver == u8::MAX { u32::MAX } else { data.tun_erspan_ver.into() };
        payload[..4].copy_from_slice(&version.to_ne_bytes());
        if key.tun_erspan_ver == 1 {
            payload[4..8].copy_from_slice(&data.tun_erspan_idx.get().to_be_bytes());
        } else {
            // `struct erspan_md2`: timestamp, SGT, then p/ft/hwid_upper and hwid/dir/gra/o.
            payload[10] = data.tun_erspan_hwid >> 4 & 3;
            payload[11] = data.tun_erspan_hwid << 4 | (data.tun_erspan_dir & 1) << 3;
        }
        w.put(tun::ERSPAN_OPTS, &payload);
    }
    if has(tun_flags::GTPU) || (data.tun_gtpu_flags != 0 && data.tun_gtpu_msgtype != 0) {
        w.put(tun::GTPU_OPTS, &[data.tun_gtpu_flags, data.tun_gtpu_msgtype]);
    }
}

/// An error within `attr`.
fn inner(attr: u8, inner: impl Into<u16>, problem: InnerProblem) -> KeyError {
    KeyError::Inner { attr, inner: inner.into(), problem }
}

/// A payload of exactly `N` bytes.
fn exactly<const N: usize>(attr: u8, kind: impl Into<u16>, payload: &[u8]) -> Result<[u8; N], KeyError> {
    payload.try_into().map_err(|_| inner(attr, kind, InnerProblem::Length(payload.len())))
}

/// The attributes nested in `payload`, each at most once, by number.
fn nested<const N: usize>(attr: u8, payload: &[u8], level: usize) -> Result<[Option<&[u8]>; N], KeyError> {
    let mut found = [None; N];
    for item in attrs(payload) {
        let item = item.map_err(|source| KeyError::Malformed { level, source })?;
        let Some(slot) = found.get_mut(usize::from(item.kind)) else {
            return Err(inner(attr, item.kind, InnerProblem::Unknown));
        };
        if slot.replace(item.payload).is_some() {
            return Err(inner(attr, item.kind, InnerProblem::Duplicate));
        }
    }
    Ok(found)
}

/// Reads the payload of a TUNNEL that is set into the `tun_*` fields of `out`.
pub(crate) fn decode_tunnel(payload: &[u8], out: &mut Key) -> Result<(), KeyError> {
    decode(payload, None, out)
}

/// Reads TUNNEL into `out`; `key` is `None` for a key and the key for its mask.
pub(super) fn decode(payload: &[u8], key: Option<&Key>, out: &mut Key) -> Result<(), KeyError> {
    let found = nested::<TUN_ATTRS>(attr::TUNNEL, payload, 0)?;
    if key.is_none() {
        if found[usize::from(tun::TTL)].is_none() {
            return Err(inner(attr::TUNNEL, tun::TTL, InnerProblem::Missing));
        }
        let has = |kind: u8| found[usize::from(kind)].is_some();
        if (has(tun::IPV4_SRC) || has(tun::IPV4_DST)) && (has(tun::IPV6_SRC) || has(tun::IPV6_DST)) {
            return Err(inner(attr::TUNNEL, tun::IPV6_DST, InnerProblem::Conflict));
        }
    }
    let mut flags = tun_flags::PRESENT;
    for (kind, payload) in (0..).zip(found).filter_map(|(kind, payload)| Some((kind, payload?))) {
        flags |= field(kind, payload, key, out)?;
    }
    out.tun_flags = flags.into();
    Ok(())
}

/// Reads one tunnel attribute and gives the flags that its presence sets.
fn field(kind: u8, payload: &[u8], key: Option<&Key>, out: &mut Key) -> Result<u16, KeyError> {
    let t = attr::TUNNEL;
    Ok(match kind {
        tun::ID => {
            out.tun_id = u64::from_be_bytes(exactly(t, kind, payload)?).into();
            tun_flags::KEY
        }
        tun::IPV4_SRC => {
            out.tun_ipv4_src = u32::from_be_bytes(exactly(t, kind, payload)?).into();
            0
        }
        tun::IPV4_DST => {
            out.tun_ipv4_dst = u32::from_be_bytes(exactly(t, kind, payload)?).into();
            0
        }
        tun::IPV6_SRC => {
            out.tun_ipv6_src = exactly(t, kind, payload)?;
            0
        }
        tun::IPV6_DST => {
            out.tun_ipv6_dst = exactly(t, kind, payload)?;
            0
        }
        tun::TOS => {
            [out.tun_tos] = exactly(t, kind, payload)?;
            0
        }
        tun::TTL => {
            [out.tun_ttl] = exactly(t, kind, payload)?;
            0
        }
        tun::TP_SRC => {
            out.tun_tp_src = u16::from_be_bytes(exactly(t, kind, payload)?).into();
            0
        }
        tun::TP_DST => {
            out.tun_tp_dst = u16::from_be_bytes(exactly(t, kind, payload)?).into();
            0
        }
        tun::DONT_FRAGMENT => exactly::<0>(t, kind, payload).map(|_| tun_flags::DF)?,
        tun::CSUM => exactly::<0>(t, kind, payload).map(|_| tun_flags::CSUM)?,
        tun::OAM => exactly::<0>(t, kind, payload).map(|_| tun_flags::OAM)?,
        PAD => 0,
        tun::GENEVE_OPTS => {
            let options = out.tun_opts.get_mut(..payload.len()).filter(|_| payload.len() <= TUN_OPTS_MAX);
            let Some(options) = options.filter(|options| options.len().is_multiple_of(4)) else {
                return Err(inner(t, kind, InnerProblem::Length(payload.len())));
            };
            options.copy_from_slice(payload);
            // The length is matched exactly: options that go on are other options.
            out.tun_opts_len = if key.is_some() { u8::MAX } else { payload.len() as u8 };
            tun_flags::GENEVE
        }
        tun::VXLAN_OPTS => {
            if let [_, Some(gbp)] = nested::<2>(t, payload, 0)? {
                let raw = u32::from_ne_bytes(exactly(t, kind, gbp)?);
                out.tun_gbp_id = (raw as u16).into();
                out.tun_gbp_flags = (raw >> 16) as u8;
                tun_flags::GBP
            } else {
                0
            }
        }
        tun::ERSPAN_OPTS => erspan(exactly(t, kind, payload)?, key, out)?,
        tun::GTPU_OPTS => {
            [out.tun_gtpu_flags, out.tun_gtpu_msgtype] = exactly(t, kind, payload)?;
            tun_flags::GTPU
        }
        _ => return Err(inner(t, kind, InnerProblem::Unknown)),
    })
}

fn erspan(metadata: [u8; ERSPAN_LEN], key: Option<&Key>, out: &mut Key) -> Result<u16, KeyError> {
    let [v0, v1, v2, v3, i0, i1, i2, i3, _, _, upper, lower] = metadata;
    let raw = u32::from_ne_bytes([v0, v1, v2, v3]);
    out.tun_erspan_ver = raw as u8;
    let version = key.map_or(raw, |key| key.tun_erspan_ver.into());
    match version {
        1 => out.tun_erspan_idx = u32::from_be_bytes([i0, i1, i2, i3]).into(),
        2 => {
            out.tun_erspan_dir = lower >> 3 & 1;
            out.tun_erspan_hwid = (upper & 3) << 4 | lower >> 4;
        }
        _ => return Err(inner(attr::TUNNEL, tun::ERSPAN_OPTS, InnerProblem::Value(version.into()))),
    }
    Ok(tun_flags::ERSPAN)
}

/// Writes NSH: the base header, and the context headers of metadata type 1.
pub(super) fn encode_nsh(key: &Key, data: &Key, is_mask: bool, w: &mut Writer<'_>) {
    let start = w.begin(attr::NSH);
    let [p0, p1, p2, p3] = data.nsh_path_hdr.get().to_be_bytes();
    w.put(NSH_BASE, &[data.nsh_flags, data.nsh_ttl, data.nsh_mdtype, data.nsh_np, p0, p1, p2, p3]);
    if is_mask || key.nsh_mdtype == 1 {
        let mut payload = [0; 16];
        for (to, from) in payload.as_chunks_mut().0.iter_mut().zip(&data.nsh_context) {
            *to = from.get().to_be_bytes();
        }
        w.put(NSH_MD1, &payload);
    }
    w.end(start);
}

/// Reads NSH into `out`.
pub(super) fn decode_nsh(payload: &[u8], is_mask: bool, level: usize, out: &mut Key) -> Result<(), KeyError> {
    let [unspec, base, md1] = nested::<3>(attr::NSH, payload, level)?;
    if unspec.is_some() {
        return Err(inner(attr::NSH, 0u16, InnerProblem::Unknown));
    }
    match base {
        Some(base) => {
            let [flags, ttl, mdtype, np, p0, p1, p2, p3] = exactly(attr::NSH, NSH_BASE, base)?;
            (out.nsh_flags, out.nsh_ttl, out.nsh_mdtype, out.nsh_np) = (flags, ttl, mdtype, np);
            out.nsh_path_hdr = u32::from_be_bytes([p0, p1, p2, p3]).into();
        }
        None if !is_mask => return Err(inner(attr::NSH, NSH_BASE, InnerProblem::Missing)),
        None => {}
    }
    if let Some(md1) = md1 {
        let words: [u8; 16] = exactly(attr::NSH, NSH_MD1, md1)?;
        if !is_mask && out.nsh_mdtype != 1 {
            return Err(inner(attr::NSH, NSH_MD1, InnerProblem::Conflict));
        }
        for (to, from) in out.nsh_context.iter_mut().zip(words.as_chunks().0) {
            *to = u32::from_be_bytes(*from).into();
        }
    }
    Ok(())
}
