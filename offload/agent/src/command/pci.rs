//! `flowlift nic list`, `bind`, `unbind` and `inspect`: PCI functions of this machine.

use super::{Outcome, print_json, print_text};
use crate::cli::{NicBindArgs, NicInspectArgs, NicListArgs, NicUnbindArgs};
use anyhow::{Context, Result};
use flowlift_driver::bind::{
    self, Bar, BindOptions, Capability, Detail, Function, Host, Inspection, Neighbour, Netdev, PciAddress,
    Verdict,
};
use flowlift_driver::vfio::VfioFunction;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;

/// Lists network functions and every device that flowlift has a driver for.
///
/// # Errors
/// The machine's PCI functions cannot be read.
pub fn list(args: &NicListArgs) -> Result<Outcome> {
    let functions = Host::default().list()?;
    if args.json {
        print_json(&functions.iter().map(function_json).collect::<Vec<_>>())?;
    } else {
        print_text(|out| Ok(out.write_all(list_text(&functions).as_bytes())?))?;
    }
    Ok(Outcome::Good)
}

/// Hands a function to vfio-pci.
///
/// # Errors
/// Why not; the function is then as it was.
pub fn bind(args: &NicBindArgs) -> Result<Outcome> {
    let address: PciAddress = args.address.parse()?;
    let uid = args.user.as_deref().map(bind::uid).transpose()?;
    let bound = Host::default().bind(address, &BindOptions { uid, force: args.force })?;
    if args.json {
        print_json(&json!({
            "address": address.to_string(),
            "iommu_group": bound.group,
            "node": bound.node,
            "device_node": bound.device_node,
            "former_driver": bound.former,
            "already_bound": bound.already,
            "user": uid,
        }))?;
        return Ok(Outcome::Good);
    }
    let before = match (&bound.former, bound.already) {
        (_, true) => "as it was before".into(),
        (Some(driver), _) => format!("before: {driver}"),
        (None, _) => "it had no driver before".into(),
    };
    let who = args.user.as_ref().map_or(String::new(), |user| format!(", which {user} owns now"));
    print_text(|out| {
        writeln!(out, "{address}: bound to vfio-pci ({before})")?;
        writeln!(out, "IOMMU group {}, node {}{who}", bound.group, bound.node.display())?;
        if let Some(node) = &bound.device_node {
            writeln!(out, "node of the function, by iommufd: {}{who}", node.display())?;
        }
        if args.user.is_some() {
            // What a driver maps depends on the device's tables, which are not known before it is opened.
            writeln!(
                out,
                "what the NIC can reach is locked memory: the user's limit (ulimit -l, LimitMEMLOCK=) has to cover it, \
                 8192 KiB for tens of thousands of entries, 32 bytes more for each one above"
            )?;
        }
        Ok(())
    })?;
    Ok(Outcome::Good)
}

/// Gives a function back to its former driver.
///
/// # Errors
/// It is not bound, is being driven, or a step failed.
pub fn unbind(args: &NicUnbindArgs) -> Result<Outcome> {
    let address: PciAddress = args.address.parse()?;
    let unbound = Host::default().unbind(address, args.force)?;
    if args.json {
        print_json(&json!({"address": address.to_string(), "driver": unbound.driver}))?;
    } else {
        let driver = unbound.driver.as_deref().unwrap_or("no driver, as it was");
        print_text(|out| Ok(writeln!(out, "{address}: given back to {driver}")?))?;
    }
    Ok(Outcome::Good)
}

/// Describes a function's configuration space.
///
/// # Errors
/// There is no such function, or it does not answer.
pub fn inspect(args: &NicInspectArgs) -> Result<Outcome> {
    let address: PciAddress = args.address.parse()?;
    let host = Host::default();
    let function = host.function(address)?;
    let mut found = host.inspect(address)?;
    // An ordinary user sees the header alone in sysfs; who may open the group sees the rest through VFIO.
    if found.bytes < 256 && function.verdict == Verdict::Ready {
        let opened = VfioFunction::open(&host, address).context("opening it to read its capabilities")?;
        let bytes = opened.config_bytes()?;
        found = bind::describe(&bytes, found.bars)?;
    }
    if args.json {
        print_json(&inspection_json(&function, &found))?;
    } else {
        print_text(|out| Ok(out.write_all(inspection_text(&function, &found).as_bytes())?))?;
    }
    Ok(if found.faults.is_empty() { Outcome::Good } else { Outcome::Bad })
}

fn verdict(verdict: &Verdict) -> (&str, Option<&str>) {
    match verdict {
        Verdict::Ready => ("ready", None),
        Verdict::Bindable => ("bindable", None),
        Verdict::No(why) => ("no", Some(why)),
    }
}

fn function_json(f: &Function) -> Value {
    let neighbour =
        |n: &Neighbour| json!({"address": n.address.to_string(), "driver": n.driver, "blocks": n.blocks()});
    let netdev = |n: &Netdev| {
        json!({
            "name": n.name,
            "up": n.up,
            "addresses": n.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "routes": n.routes,
            "upper": n.upper,
        })
    };
    let (usable, why) = verdict(&f.verdict);
    json!({
        "address": f.address.to_string(),
        "vendor": format!("{:04x}", f.vendor),
        "device": format!("{:04x}", f.device),
        "class": format!("{:06x}", f.class),
        "known": f.known,
        "driver": f.driver,
        "iommu_group": f.group,
        "shares_group_with": f.neighbours.iter().map(neighbour).collect::<Vec<_>>(),
        "netdevs": f.netdevs.iter().map(netdev).collect::<Vec<_>>(),
        "virtual_functions": f.virtual_functions,
        "usable": usable,
        "reason": why,
    })
}

fn list_text(functions: &[Function]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    if functions.is_empty() {
        out += "no network function, and no device that flowlift has a driver for\n";
        return out;
    }
    let row = |out: &mut String, columns: [&str; 7]| {
        let [address, id, known, driver, group, netdevs, usable] = columns;
        let _ =
            writeln!(out, "{address:<13} {id:<10} {known:<7} {driver:<12} {group:<6} {netdevs:<12} {usable}");
    };
    row(&mut out, ["ADDRESS", "ID", "DEVICE", "DRIVER", "GROUP", "NETDEVS", "USABLE"]);
    for f in functions {
        let netdevs: Vec<&str> = f.netdevs.iter().map(|n| n.name.as_str()).collect();
        let netdevs = if netdevs.is_empty() { "-".into() } else { netdevs.join(",") };
        let usable = match &f.verdict {
            Verdict::Ready => "ready".into(),
            Verdict::Bindable => "after `flowlift nic bind`".into(),
            Verdict::No(why) => format!("no: {why}"),
        };
        row(
            &mut out,
            [
                &f.address.to_string(),
                &format!("{:04x}:{:04x}", f.vendor, f.device),
                f.known.unwrap_or("-"),
                f.driver.as_deref().unwrap_or("-"),
                &f.group.map_or("-".into(), |g| g.to_string()),
                &netdevs,
                &usable,
            ],
        );
    }
    out
}

fn inspection_json(f: &Function, i: &Inspection) -> Value {
    let bar = |b: &Bar| {
        json!({
            "bar": b.index,
            "kind": if b.io { "io" } else { "memory" },
            "address": format!("{:#x}", b.address),
            "size": b.size,
            "bits": if b.wide { 64 } else { 32 },
            "prefetchable": b.prefetchable,
        })
    };
    let capability = |c: &Capability| {
        let mut value = json!({
            "id": format!("{:#04x}", c.id),
            "extended": c.extended,
            "offset": format!("{:#x}", c.offset),
            "name": c.name,
        });
        match c.detail {
            Detail::None => {}
            Detail::Msi { vectors, enabled } => {
                value["msi"] = json!({"vectors": vectors, "enabled": enabled})
            }
            Detail::Express { max_payload, flr } => {
                value["pci_express"] = json!({"max_payload": max_payload, "function_level_reset": flr});
            }
            Detail::Msix(m) => {
                value["msix"] = json!({
                    "vectors": m.vectors,
                    "enabled": m.enabled,
                    "masked": m.masked,
                    "table": {"bar": m.table.0, "offset": m.table.1},
                    "pending_bits": {"bar": m.pending.0, "offset": m.pending.1},
                });
            }
        }
        value
    };
    json!({
        "function": function_json(f),
        "config_bytes": i.bytes,
        "revision": i.revision,
        "subsystem": format!("{:04x}:{:04x}", i.subsystem.0, i.subsystem.1),
        "memory": i.memory,
        "bus_master": i.bus_master,
        "intx_disabled": i.intx_disabled,
        "bars": i.bars.iter().map(bar).collect::<Vec<_>>(),
        "capabilities": i.capabilities.iter().map(capability).collect::<Vec<_>>(),
        "faults": i.faults,
    })
}

fn inspection_text(f: &Function, i: &Inspection) -> String {
    let mut out = String::new();
    let on = |on: bool| if on { "on" } else { "off" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{}  {:04x}:{:04x} revision {:02x}, class {:06x}{}",
        f.address,
        i.vendor,
        i.device,
        i.revision,
        i.class,
        f.known.map_or(String::new(), |k| format!(", {k}"))
    );
    let _ = writeln!(out, "  driver        {}", f.driver.as_deref().unwrap_or("none"));
    let group = f.group.map_or("none".into(), |g| g.to_string());
    let shared: Vec<String> = f.neighbours.iter().map(|n| n.address.to_string()).collect();
    let shared =
        if shared.is_empty() { String::new() } else { format!(", shared with {}", shared.join(", ")) };
    let _ = writeln!(out, "  IOMMU group   {group}{shared}");
    let (memory, master, pin) = (on(i.memory), on(i.bus_master), on(!i.intx_disabled));
    let _ = writeln!(out, "  command       memory {memory}, bus master {master}, interrupt pin {pin}");
    for b in &i.bars {
        let kind =
            if b.io { "I/O ports".into() } else { format!("memory, {} bits", if b.wide { 64 } else { 32 }) };
        let prefetch = if b.prefetchable { ", prefetchable" } else { "" };
        let _ = writeln!(
            out,
            "  BAR {}         {:#x} bytes at {:#x}, {kind}{prefetch}",
            b.index, b.size, b.address
        );
    }
    if i.bytes < 256 {
        let _ = writeln!(
            out,
            "  capabilities  only root, or who may open the group of a bound function, can read them"
        );
    }
    for c in &i.capabilities {
        let detail = match c.detail {
            Detail::None => String::new(),
            Detail::Msi { vectors, enabled } => format!(": {vectors} vectors, {}", on(enabled)),
            Detail::Express { max_payload, flr } => {
                let flr = if flr { "function level reset" } else { "no function level reset" };
                format!(": payloads up to {max_payload} bytes, {flr}")
            }
            Detail::Msix(m) => format!(
                ": {} vectors, {}{}, table in BAR {} at {:#x}, pending bits in BAR {} at {:#x}",
                m.vectors,
                on(m.enabled),
                if m.masked { ", all masked" } else { "" },
                m.table.0,
                m.table.1,
                m.pending.0,
                m.pending.1
            ),
        };
        let extended = if c.extended { "extended " } else { "" };
        let _ = writeln!(out, "  {:#05x}         {extended}{}{detail}", c.offset, c.name);
    }
    for fault in &i.faults {
        let _ = writeln!(out, "  FAULT         {fault}");
    }
    out
}
