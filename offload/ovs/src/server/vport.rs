//! The family ovs_vport.

use super::datapath::words;
use super::message::{Failure, Origin, Request, begin, end};
use super::{Context, header_dp};
use crate::backend::{Backend, DpIndex, NewVport, Refusal, VportChange, VportKind};
use crate::nla::{Writer, attrs};
use crate::uapi::{VPORT, vport};
use flowlift_flow::PortNo;
use nix::errno::Errno;

/// The kernel's `DP_MAX_PORTS`: numbers are below it.
const MAX_PORTS: u32 = 0xffff;
/// `OVSP_LOCAL`.
const LOCAL: PortNo = PortNo(0);

pub(super) fn handle(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    match request.cmd {
        vport::CMD_NEW => new(request, context),
        vport::CMD_DEL => {
            let (dp, port) = lookup(request, context.backend)?;
            if port == LOCAL {
                let problem = "the local port goes with its datapath";
                return Err(Failure::new(Errno::EINVAL, problem));
            }
            put(context.backend, request.origin(), 0, vport::CMD_DEL, (dp, port), &mut context.buffer)?;
            context.backend.vport_del(dp, port)?;
            context.notify(request);
            Ok(())
        }
        vport::CMD_SET => set(request, context),
        _ => {
            let at = lookup(request, context.backend)?;
            put(context.backend, request.origin(), 0, vport::CMD_GET, at, &mut context.buffer)?;
            context.reply(request);
            Ok(())
        }
    }
}

fn new(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let name = request.name(vport::NAME)?.ok_or_else(|| request.lacks(vport::NAME))?;
    let number = request.u32(vport::TYPE).ok_or_else(|| request.lacks(vport::TYPE))?;
    request.need(vport::UPCALL_PID)?;
    no_ifindex(request)?;
    let port = port_no(request)?.filter(|port| *port != LOCAL);
    let dp = header_dp(request, context.backend)?;
    let upcall_pids = request.pids(vport::UPCALL_PID)?.unwrap_or_default();
    let new = NewVport { name: name.to_owned(), kind: kind(number, request)?, port, upcall_pids };
    let port = context.backend.vport_new(dp, new)?;
    put(context.backend, request.origin(), 0, vport::CMD_NEW, (dp, port), &mut context.buffer)?;
    context.notify(request);
    Ok(())
}

fn set(request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let (dp, port) = lookup(request, context.backend)?;
    let now = context.backend.vport(dp, port).ok_or(Refusal::NoVport)?.kind;
    let number = type_number(now);
    if request.u32(vport::TYPE).is_some_and(|wanted| wanted != number) {
        return Err(request.invalid(vport::TYPE, "a vport keeps its type"));
    }
    let kind = match (request.has(vport::OPTIONS), now) {
        (false, _) => None,
        (true, VportKind::Netdev | VportKind::Internal | VportKind::Gre) => {
            let problem = "a vport of this type has no options";
            return Err(request.wrong(vport::OPTIONS, Errno::EOPNOTSUPP, problem));
        }
        (true, _) => Some(kind(number, request)?),
    };
    let change = VportChange { kind, upcall_pids: request.pids(vport::UPCALL_PID)? };
    context.backend.vport_set(dp, port, change)?;
    put(context.backend, request.origin(), 0, vport::CMD_SET, (dp, port), &mut context.buffer)?;
    context.notify(request);
    Ok(())
}

/// The vport that a name, or the OVS header and a number, names.
fn lookup(request: &Request<'_>, backend: &dyn Backend) -> Result<(DpIndex, PortNo), Failure> {
    no_ifindex(request)?;
    if let Some(name) = request.name(vport::NAME)? {
        let found = backend.vport_named(name).filter(|(dp, _)| request.dp == 0 || request.dp == dp.0);
        return found.ok_or_else(|| request.wrong(vport::NAME, Errno::ENODEV, Refusal::NoVport));
    }
    let port = port_no(request)?.ok_or_else(|| request.lacks(vport::PORT_NO))?;
    let dp = header_dp(request, backend)?;
    match backend.vport(dp, port) {
        Some(_) => Ok((dp, port)),
        None => Err(request.wrong(vport::PORT_NO, Errno::ENODEV, Refusal::NoVport)),
    }
}

fn no_ifindex(request: &Request<'_>) -> Result<(), Failure> {
    match request.has(vport::IFINDEX) {
        true => Err(request.wrong(vport::IFINDEX, Errno::EOPNOTSUPP, "a vport is named by name or number")),
        false => Ok(()),
    }
}

fn port_no(request: &Request<'_>) -> Result<Option<PortNo>, Failure> {
    match request.u32(vport::PORT_NO) {
        Some(number) if number >= MAX_PORTS => {
            Err(request.wrong(vport::PORT_NO, Errno::EFBIG, Refusal::PortNumbers))
        }
        number => Ok(number.map(PortNo)),
    }
}

fn type_number(kind: VportKind) -> u32 {
    match kind {
        VportKind::Netdev => vport::TYPE_NETDEV,
        VportKind::Internal => vport::TYPE_INTERNAL,
        VportKind::Gre => vport::TYPE_GRE,
        VportKind::Vxlan { .. } => vport::TYPE_VXLAN,
        VportKind::Geneve { .. } => vport::TYPE_GENEVE,
    }
}

/// The type with its options.
fn kind(number: u32, request: &Request<'_>) -> Result<VportKind, Failure> {
    let dst_port = |options: Options| {
        options.dst_port.ok_or_else(|| match request.has(vport::OPTIONS) {
            true => request.invalid(vport::OPTIONS, "OVS_TUNNEL_ATTR_DST_PORT is missing"),
            false => request.lacks(vport::OPTIONS),
        })
    };
    Ok(match number {
        vport::TYPE_NETDEV => VportKind::Netdev,
        vport::TYPE_INTERNAL => VportKind::Internal,
        vport::TYPE_GRE => VportKind::Gre,
        vport::TYPE_VXLAN => {
            let options = options(request)?;
            VportKind::Vxlan { dst_port: dst_port(options)?, gbp: options.gbp }
        }
        vport::TYPE_GENEVE => VportKind::Geneve { dst_port: dst_port(options(request)?)? },
        _ => return Err(request.wrong(vport::TYPE, Errno::EAFNOSUPPORT, format!("{number} is no type"))),
    })
}

/// `OVS_TUNNEL_ATTR_*`.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    dst_port: Option<u16>,
    gbp: bool,
}

fn options(request: &Request<'_>) -> Result<Options, Failure> {
    let wrong = |problem: &dyn std::fmt::Display| request.invalid(vport::OPTIONS, problem);
    let mut options = Options::default();
    for item in attrs(request.get(vport::OPTIONS).unwrap_or_default()) {
        let item = item.map_err(|e| wrong(&e))?;
        match item.kind {
            vport::TUNNEL_DST_PORT => {
                let port = <[u8; 2]>::try_from(item.payload).map(u16::from_ne_bytes);
                let port = port.map_err(|_| wrong(&"OVS_TUNNEL_ATTR_DST_PORT has 2 bytes"))?;
                if options.dst_port.replace(port).is_some() {
                    return Err(wrong(&"OVS_TUNNEL_ATTR_DST_PORT occurs twice"));
                }
            }
            vport::TUNNEL_EXTENSION => {
                for extension in attrs(item.payload) {
                    options.gbp |= extension.map_err(|e| wrong(&e))?.kind == vport::VXLAN_EXT_GBP;
                }
            }
            _ => {}
        }
    }
    Ok(options)
}

/// Appends the message that a vport is removed, without anybody's request.
pub(super) fn put_removal(
    backend: &dyn Backend,
    dp: DpIndex,
    port: PortNo,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let origin = Origin { family: &VPORT, seq: 0, port: 0 };
    put(backend, origin, 0, vport::CMD_DEL, (dp, port), out)
}

/// Appends the message about a vport.
pub(super) fn put(
    backend: &dyn Backend,
    origin: Origin,
    flags: u16,
    cmd: u8,
    (dp, port): (DpIndex, PortNo),
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let found = backend.vport(dp, port).ok_or(Refusal::NoVport)?;
    let start = begin(out, origin, flags, cmd, dp.0);
    let mut w = Writer::new(out);
    w.put(vport::PORT_NO, &port.0.to_ne_bytes());
    w.put(vport::TYPE, &type_number(found.kind).to_ne_bytes());
    w.put(vport::NAME, &[found.name.as_bytes(), &[0]].concat());
    if found.ifindex != 0 {
        w.put(vport::IFINDEX, &found.ifindex.to_ne_bytes());
    }
    let s = found.stats;
    let stats = [
        s.rx_packets,
        s.tx_packets,
        s.rx_bytes,
        s.tx_bytes,
        s.rx_errors,
        s.tx_errors,
        s.rx_dropped,
        s.tx_dropped,
    ];
    w.put(vport::STATS, &words(&stats));
    let upcalls = w.begin(vport::UPCALL_STATS);
    w.put(vport::UPCALL_SUCCESS, &found.upcalls.0.to_ne_bytes());
    w.put(vport::UPCALL_FAIL, &found.upcalls.1.to_ne_bytes());
    w.end(upcalls);
    let pids: Vec<u8> = found.upcall_pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
    w.put(vport::UPCALL_PID, &pids);
    if let VportKind::Vxlan { dst_port, .. } | VportKind::Geneve { dst_port } = found.kind {
        let options = w.begin(vport::OPTIONS);
        w.put(vport::TUNNEL_DST_PORT, &dst_port.to_ne_bytes());
        if matches!(found.kind, VportKind::Vxlan { gbp: true, .. }) {
            let extensions = w.begin(vport::TUNNEL_EXTENSION);
            w.put(vport::VXLAN_EXT_GBP, &[]);
            w.end(extensions);
        }
        w.end(options);
    }
    end(out, start);
    Ok(())
}
