//! The device against the spec's own files: register map and golden bytes.

use crate::host::*;
use flowlift_sim::{Opcode, decode_command};
use std::collections::BTreeSet;

#[derive(Debug)]
struct Reg {
    name: String,
    bar: i64,
    offset: u64,
    access: String,
    reset: Option<u32>,
    stride: u64,
    first: u64,
    count: Option<String>,
}

fn regmap() -> Vec<Reg> {
    let text = std::fs::read_to_string(device_dir().join("regmap.toml")).unwrap();
    let map: toml::Table = text.parse().unwrap();
    map["register"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| Reg {
            name: r["name"].as_str().unwrap().to_owned(),
            bar: r["bar"].as_integer().unwrap(),
            offset: r["offset"].as_integer().unwrap() as u64,
            access: r["access"].as_str().unwrap().to_owned(),
            reset: r["reset"].as_integer().map(|v| v as u32),
            stride: r.get("stride").map_or(0, |v| v.as_integer().unwrap() as u64),
            first: r.get("first").map_or(0, |v| v.as_integer().unwrap() as u64),
            count: r.get("count").map(|v| v.as_str().unwrap().to_owned()),
        })
        .collect()
}

/// Every register of BAR0 by name and offset, repeated ones for each block.
fn offsets(h: &mut Host) -> Vec<(String, u64, String, Option<u32>)> {
    let (slow, ports) = (u64::from(h.read(0x54)), u64::from(h.read(0x50)));
    let mut all = Vec::new();
    for r in regmap().into_iter().filter(|r| r.bar == 0) {
        let n = match r.count.as_deref() {
            None => 1,
            Some("NUM_SLOWQ") => slow,
            Some("NUM_PORTS") => ports,
            Some(other) => panic!("count {other}"),
        };
        for i in r.first..r.first + n {
            all.push((format!("{}[{i}]", r.name), r.offset + r.stride * i, r.access.clone(), r.reset));
        }
    }
    all
}

#[test]
fn every_register_of_the_map_is_there_with_its_reset_value_and_nothing_else_is() {
    for profile in ["tiny", "standard", "large"] {
        let mut h = Host::cold(profile, 0, Default::default());
        let regs = offsets(&mut h);
        for (name, offset, _, reset) in &regs {
            let v = h.read(*offset);
            if let Some(reset) = reset {
                assert_eq!(v, *reset, "{profile}: reset value of {name}");
            }
        }
        h.assert_clean();
        let known: BTreeSet<u64> = regs.iter().map(|r| r.1).collect();
        assert_eq!(known.len(), regs.len(), "two registers at one offset");
        for (violations, offset) in (0..0x4000).step_by(4).filter(|o| !known.contains(o)).enumerate() {
            h.read(offset);
            assert_eq!(h.dev.violations_total() as usize, violations + 1, "nothing may be at {offset:#x}");
        }
    }
}

#[test]
fn read_only_registers_of_the_map_refuse_writes() {
    let mut h = Host::cold("standard", 0, Default::default());
    for (name, offset, access, _) in offsets(&mut h) {
        let before = h.dev.violations_total();
        if access == "ro" {
            h.write(offset, 0);
            assert_eq!(h.dev.violations_total(), before + 1, "{name}");
        }
    }
}

#[test]
fn capability_blob_of_tiny_is_golden() {
    let mut h = Host::new("tiny");
    let len = h.read(0x64);
    let d = h.must(&buffer(9, 0, 0, 0, 0, SCRATCH, len));
    assert_eq!(d.result(), u64::from(len));
    assert_eq!(h.peek(SCRATCH, len as usize), golden("caps_tiny"));
    h.assert_clean();
}

#[test]
fn golden_commands_decode() {
    let b = golden("insert_hash4_standard");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.slots, c.fence, c.table, c.priority), (Opcode::Insert, 4, true, 0, 0));
    assert_eq!((c.cookie, c.entry, c.generation, c.count), (1, 65_535, 1, 0));
    assert_eq!((c.key.len(), c.mask.len(), c.actions.len()), (48, 48, 80));
    assert_eq!(c.key[35..39], [10, 1, 2, 3]);
    let b = golden("replace");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.entry, c.generation, c.actions.len()), (Opcode::Replace, 3, 8, 64));
    let b = golden("delete");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.cookie, c.entry), (Opcode::Delete, 43, 3));
    let b = golden("counters");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.table, c.generation, c.count), (Opcode::Counters, 2, 9, 16));
    assert_eq!((c.iova, c.len), (0x1_0000_2000, 768));
    let b = golden("meter_page");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.iova, c.len), (Opcode::MeterPage, 0x1_0000_4000, 16384));
    let b = golden("meter_set");
    let c = decode_command(&b).unwrap();
    assert_eq!((c.opcode, c.entry, c.rate, c.burst, c.meter_packets), (Opcode::MeterSet, 5, 1000, 10, true));
}

#[test]
fn golden_insert_works_and_reads_back_golden() {
    let mut h = Host::new("tiny");
    let d = h.must(&golden("insert_tcam_tiny"));
    assert_eq!((d.cookie(), d.generation()), (0x1122_3344_5566_7788, 7));
    let d = h.must(&buffer(4, 0, 3, 11, 0, SCRATCH, 176));
    assert_eq!(d.result(), 176);
    assert_eq!(h.peek(SCRATCH, 176), golden("entry_record"));
    h.assert_clean();
}

#[test]
fn golden_counter_record_comes_from_two_packets() {
    let mut h = Host::new("tiny");
    h.must(&golden("insert_tcam_tiny"));
    // TCP with ACK to 10.0.0.9, 60 bytes, at clock 1000.
    let mut f = vec![0; 12];
    f.extend_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 1, 2, 3, 4, 10, 0, 0, 9]);
    f.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    f.resize(60, 0);
    h.inject(1, &f);
    h.inject(1, &f);
    h.dev.step();
    assert_eq!(h.out(2), [f.clone(), f]);
    h.must(&buffer(5, 0, 3, 9, 1, SCRATCH, 48));
    assert_eq!(h.peek(SCRATCH, 48), golden("counter_record"));
    h.assert_clean();
}

#[test]
fn golden_hash_insert_rewrites_and_tags() {
    let mut h = Host::new("standard");
    h.must(&golden("insert_hash4_standard"));
    let mut f = vec![0; 12];
    f.extend_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 168, 1, 2, 10, 1, 2, 3]);
    f.extend_from_slice(&[0x10, 0xe1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    let ip = sum(&f[14..34]);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    h.inject(1, &f);
    h.dev.step();
    let out = h.out(5);
    assert_eq!(out.len(), 1);
    let o = &out[0];
    assert_eq!(o[12..18], [0x81, 0, 0x60, 0x64, 8, 0]);
    assert_eq!((o[26], &o[34..38], &o[40..42]), (63, &[172, 16, 0, 9][..], &8080u16.to_be_bytes()[..]));
    assert_eq!(sum(&o[18..38]), 0, "IPv4 header checksum");
    h.assert_clean();
}

#[test]
fn golden_tx_descriptor_misses_into_the_golden_rx_buffer() {
    // The golden IOVAs are below this host's memory: move them, and keep the rest.
    let mut h = Host::new("standard");
    let mut b = golden("rx_buffer");
    b[..8].copy_from_slice(&RX_FRAMES.to_le_bytes());
    h.poke(RXB, &b);
    h.clock.set(1_000_000_000);
    let f = udp([10, 0, 0, 2], 1, 2);
    h.poke(TX_FRAMES, &f);
    let mut d = golden("tx_descriptor");
    d[..8].copy_from_slice(&TX_FRAMES.to_le_bytes());
    h.poke(TXD, &d);
    h.bell(0x440, 1);
    h.dev.step();
    let mut c = h.peek(RXC, 64);
    let mut want = golden("rx_completion");
    c[32..36].fill(0);
    want[32..36].fill(0);
    assert_eq!(c, want);
    assert_eq!(h.peek(RX_FRAMES, 60), f);
    assert_eq!(h.tx_consumed(), 1);
    h.assert_clean();
}
