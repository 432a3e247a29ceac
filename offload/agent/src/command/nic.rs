//! `flowlift nic show`.

use super::{Outcome, print_json};
use crate::cli::NicShowArgs;
use crate::open;
use anyhow::Result;
use flowlift_driver::nic::{
    ActionKind, FieldCaps, MatchKind, Miss, Nic, NicCaps, PortCaps, TableCaps, TableKind,
};
use flowlift_sim::FaultPlan;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;

/// Every action that a capability record can name.
const ACTIONS: [(ActionKind, &str); 12] = [
    (ActionKind::Output, "output"),
    (ActionKind::SetField, "set_field"),
    (ActionKind::PushVlan, "push_vlan"),
    (ActionKind::PopVlan, "pop_vlan"),
    (ActionKind::DecTtl, "dec_ttl"),
    (ActionKind::Trunc, "trunc"),
    (ActionKind::VxlanEncap, "vxlan_encap"),
    (ActionKind::VxlanDecap, "vxlan_decap"),
    (ActionKind::Meter, "meter"),
    (ActionKind::Trap, "trap"),
    (ActionKind::SetMetadata, "set_metadata"),
    (ActionKind::Goto, "goto"),
];

/// Prints what the driver read from the NIC.
///
/// # Errors
/// The driver cannot bring the NIC up.
pub fn show(args: &NicShowArgs) -> Result<Outcome> {
    let nic: Box<dyn Nic> = match &args.nic {
        Some(nic) => open::open_function(nic)?.nic,
        None => Box::new(open::open(args.profile.profile(), 0, FaultPlan::default(), &[], 0)?.nic),
    };
    let caps = nic.caps();
    if args.json {
        print_json(&to_json(caps))?;
    } else {
        super::print_text(|out| Ok(out.write_all(to_text(caps).as_bytes())?))?;
    }
    Ok(Outcome::Good)
}

fn actions(table: &TableCaps) -> Vec<&'static str> {
    ACTIONS.iter().filter(|(kind, _)| table.actions.has(*kind)).map(|(_, name)| *name).collect()
}

fn kind_name(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Tcam => "tcam",
        TableKind::Hash { .. } => "hash",
    }
}

fn match_name(kind: MatchKind) -> &'static str {
    match kind {
        MatchKind::Exact => "exact",
        MatchKind::Prefix => "prefix",
        MatchKind::Any => "any",
    }
}

fn to_json(caps: &NicCaps) -> Value {
    let port = |port: &PortCaps| json!({"port": port.port.0, "virtual_function": port.virtual_function, "max_frame": port.max_frame});
    let field = |field: &FieldCaps| json!({"field": field.field.name(), "bits": field.width, "mask": match_name(field.kind)});
    let table = |table: &TableCaps| {
        json!({
            "table": table.id.0,
            "kind": kind_name(table.kind),
            "stage": table.stage.0,
            "max_entries": table.max_entries,
            "max_masks": match table.kind { TableKind::Hash { max_masks } => Some(max_masks), TableKind::Tcam => None },
            "key_bytes": table.key_len,
            "fields": table.fields.iter().map(field).collect::<Vec<_>>(),
            "actions": actions(table),
            "max_actions": table.max_actions,
            "set_bits": table.set_bits,
            "output_to_ingress": table.output_to_ingress,
            "counters": {
                "traffic": table.counters.traffic,
                "used": table.counters.used,
                "tcp_flags": table.counters.tcp_flags,
            },
            "settable": table.settable.iter().map(|field| field.name()).collect::<Vec<_>>(),
            "goto": table.goto.iter().map(|stage| stage.0).collect::<Vec<_>>(),
            "miss": match table.miss { Miss::Next(next) => json!({"table": next.0}), Miss::SlowQueue => json!("slow_queue") },
        })
    };
    json!({
        "device": caps.device,
        "model": caps.model,
        "slow_queues": caps.slow_queues,
        "meters": caps.meters,
        "shared_meters": caps.shared_meters,
        "pipeline_tx": caps.pipeline_tx,
        "parser": {
            "whole": caps.parser.whole,
            "tags": caps.parser.tags,
            "service_tags": caps.parser.service_tags,
        },
        "read_back": caps.read_back,
        "caveats": caps.caveats,
        "ports": caps.ports.iter().map(port).collect::<Vec<_>>(),
        "tables": caps.tables.iter().map(table).collect::<Vec<_>>(),
    })
}

fn to_text(caps: &NicCaps) -> String {
    let mut out = String::new();
    let (virtual_functions, physical): (Vec<&PortCaps>, Vec<&PortCaps>) =
        caps.ports.iter().partition(|p| p.virtual_function);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{} ({})", caps.device, caps.model);
    let _ = writeln!(
        out,
        "  ports        {} physical, {} of virtual functions, frames up to {} bytes",
        physical.len(),
        virtual_functions.len(),
        caps.ports.iter().map(|port| port.max_frame).max().unwrap_or(0)
    );
    let _ = writeln!(out, "  slow queues  {}", caps.slow_queues);
    let _ = writeln!(out, "  meters       {}", caps.meters);
    if !caps.parser.whole {
        let _ =
            writeln!(out, "  parser       every packet gets to a table; nothing above its type is parsed");
    }
    for caveat in &caps.caveats {
        let _ = writeln!(out, "  caveat       {caveat}");
    }
    for table in &caps.tables {
        let masks = match table.kind {
            TableKind::Hash { max_masks } => format!("{max_masks} masks at once"),
            TableKind::Tcam => "a mask per entry".into(),
        };
        let _ = writeln!(
            out,
            "\ntable {}: {}, stage {}, {} entries, {masks}",
            table.id.0,
            kind_name(table.kind),
            table.stage.0,
            table.max_entries
        );
        let fields: Vec<String> = table
            .fields
            .iter()
            .map(|field| format!("{}/{} ({})", field.field.name(), field.width, match_name(field.kind)))
            .collect();
        wrapped(&mut out, "fields", &fields);
        wrapped(&mut out, "actions", &actions(table));
        let settable: Vec<&str> = table.settable.iter().map(|field| field.name()).collect();
        wrapped(&mut out, "settable", &settable);
        let miss = match table.miss {
            Miss::Next(next) => format!("table {}", next.0),
            Miss::SlowQueue => "slow queue".into(),
        };
        let goto: Vec<String> = table.goto.iter().map(|stage| format!("stage {}", stage.0)).collect();
        wrapped(&mut out, "goto", &goto);
        let counters = table.counters;
        if !counters.complete() {
            let kinds = [
                (counters.traffic, "packets and bytes"),
                (counters.used, "time of last use"),
                (counters.tcp_flags, "TCP flags"),
            ];
            let missing: Vec<&str> =
                kinds.iter().filter(|(there, _)| !there).map(|(_, name)| *name).collect();
            wrapped(&mut out, "uncounted", &missing);
        }
        let _ = writeln!(out, "  {:<10}{miss}; up to {} action units an entry", "miss", table.max_actions);
    }
    out
}

/// A label and a list, broken into lines of a terminal's width.
fn wrapped(out: &mut String, label: &str, items: &[impl AsRef<str>]) {
    if items.is_empty() {
        return;
    }
    let mut line = format!("  {label:<10}");
    for (n, item) in items.iter().enumerate() {
        let comma = if n + 1 < items.len() { ", " } else { "" };
        if line.len() + item.as_ref().len() > 110 {
            let _ = writeln!(out, "{}", line.trim_end());
            line = format!("  {:<10}", "");
        }
        line += item.as_ref();
        line += comma;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}
