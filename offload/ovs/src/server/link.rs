//! Tunnel devices, as Open vSwitch asks NETLINK_ROUTE for them: made before they become vports, looked at, and deleted.
//!
//! The datapath owns such a device, since it is the one that takes its packets; the host's stack does not know it. Only devices
//! without a remote end of their own are made ("collect metadata"), which is all that Open vSwitch wants.

use super::Context;
use super::message::{Failure, Header, begin_raw, end};
use crate::backend::{Refusal, TunnelDevice, TunnelKind};
use crate::nla::{Writer, attrs};
use crate::uapi::{link, nlmsg};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// What Open vSwitch's names of tunnel devices begin with; a UDP port follows where the protocol has one.
pub const TUNNEL_DEVICES: [&[u8]; 6] =
    [b"vxlan_sys", b"genev_sys", b"gre_sys", b"ip6gre_sys", b"erspan_sys", b"ip6erspan_sys"];
/// `IFF_UP` and `IFF_RUNNING`, as a device has them that works.
const UP: u32 = 0x41;
/// `ARPHRD_ETHER` and `ARPHRD_NONE`.
const ETHERNET: u16 = 1;
const NONE: u16 = 0xfffe;
/// `IFNAMSIZ`.
const NAME_MAX: usize = 16;
/// Largest MTU, as for the kernel's tunnel devices: what an IP packet has room for.
const MTU_MAX: u32 = 65_535;

/// True for the name of a device that Open vSwitch makes for a tunnel.
pub fn is_tunnel_device(name: &[u8]) -> bool {
    TUNNEL_DEVICES.iter().any(|prefix| {
        name.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"_"))
    })
}

/// Attributes by number.
type Found<'a> = BTreeMap<u16, &'a [u8]>;

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(Errno::EINVAL, problem)
}

fn read(bytes: &[u8]) -> Result<Found<'_>, Failure> {
    attrs(bytes).map(|item| item.map(|a| (a.kind, a.payload)).map_err(|e| invalid(e.to_string()))).collect()
}

/// A string's bytes up to its end.
fn text<'a>(found: &Found<'a>, kind: u16, what: &'static str) -> Result<&'a str, Failure> {
    let bytes = found.get(&kind).and_then(|payload| payload.split(|byte| *byte == 0).next());
    let bytes =
        bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(|| invalid(format!("{what} is missing")))?;
    std::str::from_utf8(bytes).map_err(|_| invalid(format!("{what} is not UTF-8")))
}

fn mtu(found: &Found<'_>) -> Result<Option<u32>, Failure> {
    let Some(payload) = found.get(&link::MTU) else { return Ok(None) };
    let bytes = <[u8; 4]>::try_from(*payload).map_err(|_| invalid("IFLA_MTU has 4 bytes"))?;
    match u32::from_ne_bytes(bytes) {
        mtu if mtu > MTU_MAX => Err(invalid(format!("a tunnel's MTU is at most {MTU_MAX}"))),
        mtu => Ok(Some(mtu)),
    }
}

/// Handles a request about a tunnel device.
pub(super) fn handle(
    port: u32,
    header: Header,
    message: &[u8],
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let start = nlmsg::HEADER_LEN + link::IFINFOMSG_LEN;
    let found =
        read(message.get(start..).ok_or_else(|| invalid("the message is too short for its headers"))?)?;
    let name = text(&found, link::IFNAME, "IFLA_IFNAME")?;
    if name.len() >= NAME_MAX || !is_tunnel_device(name.as_bytes()) {
        let problem = format!("{name} is no tunnel device of Open vSwitch");
        return Err(Failure::new(Errno::EOPNOTSUPP, problem));
    }
    match header.kind {
        link::NEWLINK => {
            if header.flags & nlmsg::F_CREATE == 0 {
                return set(name, &found, context);
            }
            let device =
                TunnelDevice { name: name.into(), kind: kind(&found)?, mtu: mtu(&found)?.unwrap_or(1500) };
            Ok(context.backend.tunnel_device_new(device)?)
        }
        link::SETLINK => set(name, &found, context),
        link::DELLINK => Ok(context.backend.tunnel_device_del(name)?),
        link::GETLINK if header.flags & nlmsg::F_DUMP == 0 => {
            let device = context.backend.tunnel_device(name).ok_or_else(|| Refusal::NoNetdev(name.into()))?;
            put(&device, header, port, &mut context.buffer);
            context.answer(port);
            Ok(())
        }
        _ => Err(Failure::new(
            Errno::EOPNOTSUPP,
            "tunnel devices are made, looked at, changed and deleted one by one",
        )),
    }
}

/// Changes what can change.
fn set(name: &str, found: &Found<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    if found.contains_key(&link::LINKINFO) {
        let problem = format!("the protocol and the port of {name} cannot change");
        return Err(Failure::new(Errno::EOPNOTSUPP, problem));
    }
    match mtu(found)? {
        Some(mtu) => Ok(context.backend.tunnel_device_set(name, mtu)?),
        None if context.backend.tunnel_device(name).is_none() => Err(Refusal::NoNetdev(name.into()).into()),
        None => Ok(()),
    }
}

/// The protocol of a device to be.
fn kind(found: &Found<'_>) -> Result<TunnelKind, Failure> {
    let info = read(found.get(&link::LINKINFO).ok_or_else(|| invalid("IFLA_LINKINFO is missing"))?)?;
    let kind = text(&info, link::INFO_KIND, "IFLA_INFO_KIND")?;
    let data = read(info.get(&link::INFO_DATA).copied().unwrap_or_default())?;
    let unsupported = |problem: String| Failure::new(Errno::EOPNOTSUPP, problem);
    let flag = |kind: u16| data.contains_key(&kind);
    let on = |kind: u16| data.get(&kind).is_some_and(|payload| *payload != [0]);
    let port = |kind: u16| {
        let bytes = data.get(&kind).and_then(|payload| <[u8; 2]>::try_from(*payload).ok());
        bytes
            .map(u16::from_be_bytes)
            .filter(|port| *port != 0)
            .ok_or_else(|| invalid("the UDP port is missing"))
    };
    let (kind, known, metadata): (_, &[u16], _) = match kind {
        "vxlan" => {
            let known = &[
                link::VXLAN_LEARNING,
                link::VXLAN_PORT,
                link::VXLAN_UDP_ZERO_CSUM6_RX,
                link::VXLAN_GBP,
                link::VXLAN_COLLECT_METADATA,
                link::VXLAN_GPE,
            ];
            let dst_port = port(link::VXLAN_PORT)?;
            let learning = on(link::VXLAN_LEARNING);
            let kind = match (flag(link::VXLAN_GBP), flag(link::VXLAN_GPE)) {
                (true, true) => return Err(invalid("VXLAN-GPE has no group policy")),
                (false, true) => TunnelKind::VxlanGpe { dst_port },
                (gbp, false) => TunnelKind::Vxlan { dst_port, gbp },
            };
            (kind, known, on(link::VXLAN_COLLECT_METADATA) && !learning)
        }
        "geneve" => {
            let known = &[link::GENEVE_PORT, link::GENEVE_UDP_ZERO_CSUM6_RX, link::GENEVE_COLLECT_METADATA];
            let kind = TunnelKind::Geneve { dst_port: port(link::GENEVE_PORT)? };
            (kind, known, flag(link::GENEVE_COLLECT_METADATA))
        }
        gre => {
            let kind = match gre {
                "gre" => TunnelKind::Gre,
                "gretap" => TunnelKind::Gretap,
                "ip6gretap" => TunnelKind::Ip6gretap,
                "erspan" => TunnelKind::Erspan,
                "ip6erspan" => TunnelKind::Ip6erspan,
                other => return Err(unsupported(format!("the device type {other} is not supported"))),
            };
            (kind, &[link::GRE_COLLECT_METADATA], flag(link::GRE_COLLECT_METADATA))
        }
    };
    if let Some(other) = data.keys().find(|kind| !known.contains(kind)) {
        return Err(unsupported(format!("attribute {other} of IFLA_INFO_DATA is not supported")));
    }
    match metadata {
        true => Ok(kind),
        false => Err(unsupported("a tunnel device with a remote end of its own is not supported".into())),
    }
}

/// Appends the message about a device.
fn put(device: &TunnelDevice, header: Header, port: u32, out: &mut Vec<u8>) {
    let start = begin_raw(out, link::NEWLINK, 0, header.seq, port);
    out.extend_from_slice(&[0, 0]);
    let link_type = if device.kind.carries_bare() { NONE } else { ETHERNET };
    out.extend_from_slice(&link_type.to_ne_bytes());
    // No index: the host has no such device.
    out.extend_from_slice(&0i32.to_ne_bytes());
    out.extend_from_slice(&UP.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    let mut w = Writer::new(out);
    w.put(link::IFNAME, &[device.name.as_bytes(), &[0]].concat());
    w.put(link::MTU, &device.mtu.to_ne_bytes());
    let info = w.begin(link::LINKINFO);
    let kind = match device.kind {
        TunnelKind::Vxlan { .. } | TunnelKind::VxlanGpe { .. } => "vxlan",
        TunnelKind::Geneve { .. } => "geneve",
        TunnelKind::Gre => "gre",
        TunnelKind::Gretap => "gretap",
        TunnelKind::Ip6gretap => "ip6gretap",
        TunnelKind::Erspan => "erspan",
        TunnelKind::Ip6erspan => "ip6erspan",
    };
    w.put(link::INFO_KIND, &[kind.as_bytes(), &[0]].concat());
    let data = w.begin(link::INFO_DATA);
    match device.kind {
        TunnelKind::Vxlan { dst_port, .. } | TunnelKind::VxlanGpe { dst_port } => {
            w.put(link::VXLAN_LEARNING, &[0]);
            w.put(link::VXLAN_PORT, &dst_port.to_be_bytes());
            w.put(link::VXLAN_UDP_ZERO_CSUM6_RX, &[1]);
            match device.kind {
                TunnelKind::Vxlan { gbp: true, .. } => w.put(link::VXLAN_GBP, &[]),
                TunnelKind::VxlanGpe { .. } => w.put(link::VXLAN_GPE, &[]),
                _ => {}
            }
            w.put(link::VXLAN_COLLECT_METADATA, &[1]);
        }
        TunnelKind::Geneve { dst_port } => {
            w.put(link::GENEVE_PORT, &dst_port.to_be_bytes());
            w.put(link::GENEVE_COLLECT_METADATA, &[]);
            w.put(link::GENEVE_UDP_ZERO_CSUM6_RX, &[1]);
        }
        _ => w.put(link::GRE_COLLECT_METADATA, &[]),
    }
    w.end(data);
    w.end(info);
    end(out, start);
}
