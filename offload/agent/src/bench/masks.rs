//! `flowlift bench masks`: the same packets, about as many megaflows, and more masks. The cost of a packet must not follow.
//!
//! The traffic is Zipf over connections in 512 classes (9 bits of the destination). All megaflows match the class. Those of
//! one class also match 4 of the source's lowest 16 bits, and which 4 these are depends on the class, in as many ways as
//! there are masks. So each class has 16 megaflows whatever the number of masks.

use super::args::Measure;
use super::forward::{Frames, Speed, forward};
use super::traffic::{IN_PORT, Random, Tuple, Zipf, flow, frame};
use crate::failure::Tell;
use anyhow::{Result, anyhow};
use clap::Args;
use flowlift_softpath::{Config, Datapath};
use serde::Serialize;
use std::collections::BTreeMap;

/// Destination networks, each with one mask.
const CLASSES: u32 = 512;
/// Connections.
const CONNECTIONS: usize = 100_000;
/// Packets in the circle.
const PACKETS: usize = 240_000;
/// Source bits that a megaflow matches.
const BITS: u32 = 4;

/// Arguments of `bench masks`.
#[derive(Debug, Args)]
pub struct MasksArgs {
    /// Numbers of masks, 1 to 512; the first is what the others are compared with.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "16,64,512")]
    masks: Vec<u32>,
    /// Rounds; the median of each figure counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(flatten)]
    measure: Measure,
}

/// What `bench masks` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Frames of the circle.
    frames: usize,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Case {
    masks: usize,
    flows: usize,
    /// Cost of a packet over that of the first case.
    cost_ratio: f64,
    #[serde(flatten)]
    speed: Speed,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Case { masks, flows, cost_ratio, speed } in &self.cases {
            writeln!(f, "{masks} masks, {flows} flows, {} frames: cost ratio {cost_ratio:.2}", self.frames)?;
            speed.fmt(f)?;
        }
        Ok(())
    }
}

/// The source bits that mask number `n` has: the `n`th number with [`BITS`] of 16 bits set.
fn source_bits(n: u32) -> u32 {
    (0u32..1 << 16).filter(|bits| bits.count_ones() == BITS).nth(n as usize * 3).unwrap_or_default()
}

fn traffic() -> (Vec<Tuple>, Frames) {
    let mut random = Random(1);
    let connections: Vec<Tuple> = (0..CONNECTIONS)
        .map(|_| {
            let r = random.next();
            let class = (r % u64::from(CLASSES)) as u32;
            Tuple {
                src: 0xc0a8_0000 | (r >> 16) as u32 & 0xffff,
                dst: 0x0a00_0000 | class << 15 | (r >> 32) as u32 & 0x7fff,
                sport: 1024 + (r >> 48) as u16 % 60_000,
                dport: 2000,
            }
        })
        .collect();
    let zipf = Zipf::new(CONNECTIONS);
    let mut frames = Frames::default();
    let mut seen = vec![false; CONNECTIONS];
    for _ in 0..PACKETS {
        let n = zipf.draw(&mut random);
        seen[n] = true;
        frames.push(&frame(connections[n]), 0);
    }
    let used = connections.into_iter().zip(seen).filter(|(_, seen)| *seen).map(|(t, _)| t).collect();
    (used, frames)
}

/// A datapath with the megaflows of all connections under this many masks.
fn datapath(connections: &[Tuple], masks: u32) -> Result<Datapath> {
    let mut datapath = Datapath::new(Config { seed: Some(1), ..Config::default() });
    let bits: Vec<Tuple> =
        (0..masks).map(|n| Tuple { src: source_bits(n), dst: 0xffff_8000, sport: 0, dport: 0 }).collect();
    let mut megaflows = BTreeMap::new();
    for t in connections {
        let class = t.dst >> 15 & (CLASSES - 1);
        let bits = bits[(class * masks / CLASSES) as usize];
        let masked = Tuple { src: t.src & bits.src, dst: t.dst & bits.dst, sport: 0, dport: 0 };
        megaflows.insert((bits, masked), *t);
    }
    for (number, ((bits, _), t)) in megaflows.into_iter().enumerate() {
        datapath.put(&flow(t, bits, number as u64))?;
    }
    Ok(datapath)
}

pub(super) fn run(args: &MasksArgs) -> Result<()> {
    let time = args.measure.time()?;
    let cores = args.measure.cores(1)?;
    if let Some(n) = args.masks.iter().find(|n| !(1..=CLASSES).contains(*n)) {
        return Err(anyhow!("not a number of masks"))
            .at(format_args!("--masks {n}"))
            .remedy(format_args!("expected is 1 to {CLASSES}"));
    }
    let (connections, frames) = traffic();
    let datapaths =
        args.masks.iter().map(|&n| datapath(&connections, n)).collect::<Result<Vec<Datapath>>>()?;
    let mut speeds = vec![Vec::new(); datapaths.len()];
    // In turn, so that a machine that slows down for a while slows all of them.
    for _ in 0..args.rounds {
        for (datapath, speeds) in datapaths.iter().zip(&mut speeds) {
            // A cache that has grown to its size takes many rounds of the traffic.
            speeds.push(forward(datapath, &frames, IN_PORT, &cores, time, time)?);
        }
    }
    let medians: Vec<Speed> = speeds
        .into_iter()
        .filter_map(|mut s| {
            s.sort_by(|a, b| a.mpps_cpu.total_cmp(&b.mpps_cpu));
            s.get(s.len() / 2).cloned()
        })
        .collect();
    let first = medians.first().map_or(f64::NAN, |s| s.mpps_cpu);
    let cases = datapaths
        .iter()
        .zip(medians)
        .map(|(datapath, speed)| Case {
            masks: datapath.mask_count(),
            flows: datapath.len(),
            cost_ratio: first / speed.mpps_cpu,
            speed,
        })
        .collect();
    args.measure.print(&Report { frames: frames.len(), cases })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn masks_differ_and_have_the_same_number_of_bits() {
        let all: BTreeSet<u32> = (0..CLASSES).map(source_bits).collect();
        assert_eq!(all.len(), CLASSES as usize);
        assert!(all.iter().all(|bits| bits.count_ones() == BITS && *bits < 1 << 16));
    }

    #[test]
    fn every_connection_has_its_megaflow_whatever_the_number_of_masks() {
        let (connections, _) = traffic();
        let mut counts = Vec::new();
        for masks in [16, 128] {
            let mut datapath = datapath(&connections, masks).unwrap();
            assert_eq!(datapath.mask_count(), masks as usize);
            assert!(datapath.find_overlaps(1).is_empty());
            counts.push(datapath.len());
        }
        assert!(counts[0].abs_diff(counts[1]) < counts[0] / 20, "{counts:?} megaflows");
    }
}
