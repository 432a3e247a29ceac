//! What left the datapath: every output frame by port, so that runs can be compared and captures written.
//!
//! Two runs gave the same packets if each port sent the same frames, and in the same order within each flow. Order
//! across flows is free: hardware and software work side by side. A flow here is what the frame that left shows:
//! addresses, protocol and ports, whatever ingress port it came from.

use crate::failure::Tell;
use anyhow::Context;
use flowlift_flow::{Key, Metadata, PortNo};
use flowlift_port::capture::Resolution;
use flowlift_port::{Frame, FrameSink, PcapWriter};
use flowlift_softpath::extract::extract_key;
use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Where packets leave the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outlet {
    /// Through a port.
    Port(PortNo),
    /// To the user, by an action.
    Userspace,
    /// To the user, because no flow matched.
    Miss,
}

/// A flow among the frames that left by one outlet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    /// Outlet.
    pub outlet: Outlet,
    /// Hash of addresses, protocol and ports.
    pub flow: u64,
}

/// Frames of one stream in order, as hashes of their bytes.
pub type Stream = Vec<u64>;

/// Every frame that left.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: BTreeMap<StreamId, Stream>,
    frames: BTreeMap<Outlet, (u64, u64)>,
    keep_streams: bool,
    captures: Option<Captures>,
}

#[derive(Debug)]
struct Captures {
    folder: PathBuf,
    names: BTreeMap<PortNo, String>,
    writers: BTreeMap<PortNo, PcapWriter<BufWriter<File>>>,
    error: Option<anyhow::Error>,
}

impl Ledger {
    /// A ledger that only counts.
    pub fn counting() -> Self {
        Self::default()
    }

    /// A ledger that can be compared with another one.
    pub fn comparable() -> Self {
        Self { keep_streams: true, ..Self::default() }
    }

    /// Also writes a capture per port, `folder/NAME.pcap`.
    pub fn with_captures(mut self, folder: &Path, names: BTreeMap<PortNo, String>) -> Self {
        let folder = folder.to_path_buf();
        self.captures = Some(Captures { folder, names, writers: BTreeMap::new(), error: None });
        self
    }

    /// True if captures are written, in which every frame has its own time.
    pub fn has_captures(&self) -> bool {
        self.captures.is_some()
    }

    /// Records a frame that left at `now_ns`.
    pub fn record(&mut self, outlet: Outlet, frame: &[u8], now_ns: u64) {
        let count = self.frames.entry(outlet).or_default();
        count.0 += 1;
        count.1 += frame.len() as u64;
        if self.keep_streams {
            let stream = StreamId { outlet, flow: flow_of(frame) };
            self.streams.entry(stream).or_default().push(hash_of(frame));
        }
        if let (Outlet::Port(port), Some(captures)) = (outlet, &mut self.captures) {
            captures.write(port, frame, now_ns);
        }
    }

    /// Frames and bytes by outlet.
    pub fn outlets(&self) -> impl Iterator<Item = (Outlet, u64, u64)> + '_ {
        self.frames.iter().map(|(outlet, (frames, bytes))| (*outlet, *frames, *bytes))
    }

    /// The streams, if they were kept.
    pub fn streams(&self) -> &BTreeMap<StreamId, Stream> {
        &self.streams
    }

    /// A number that two runs share only if they sent the same frames in the same order per flow.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.frames.hash(&mut hasher);
        for (id, stream) in &self.streams {
            (id.outlet, id.flow, stream).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Finishes the captures; the first error that any of them met.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.captures.take().map_or(Ok(()), Captures::finish)
    }
}

impl Captures {
    fn write(&mut self, port: PortNo, frame: &[u8], now_ns: u64) {
        if self.error.is_some() {
            return;
        }
        if let Err(error) = self.try_write(port, frame, now_ns) {
            self.error = Some(error);
        }
    }

    fn try_write(&mut self, port: PortNo, frame: &[u8], now_ns: u64) -> anyhow::Result<()> {
        if !self.writers.contains_key(&port) {
            let name = self.names.get(&port).cloned().unwrap_or_else(|| port.0.to_string());
            let path = self.folder.join(format!("{}.pcap", name.replace('/', "_")));
            let file = File::create(&path).context("cannot write it").at(path.display())?;
            self.writers.insert(port, PcapWriter::new(BufWriter::new(file), Resolution::Nano)?);
        }
        let frame = Frame { timestamp_ns: now_ns, ..Frame::new(frame) };
        if let Some(writer) = self.writers.get_mut(&port) {
            writer.send(frame)?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for (_, writer) in self.writers {
            writer.finish()?;
        }
        Ok(())
    }
}

fn hash_of(value: impl Hash) -> u64 {
    // Its keys are fixed, so the same frames give the same number in every run.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn flow_of(frame: &[u8]) -> u64 {
    let key: Key = extract_key(frame, &Metadata::default());
    hash_of((
        (key.eth_src, key.eth_dst, key.eth_type),
        (key.ipv4_src, key.ipv4_dst, key.ipv6_src, key.ipv6_dst),
        (key.ip_proto, key.tp_src, key.tp_dst),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(sport: u8, payload: u8) -> Vec<u8> {
        let mut frame =
            vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, sport, 0, 9, 0, 9, 0, 0, payload]);
        frame
    }

    fn ledger(frames: &[Vec<u8>]) -> Ledger {
        let mut ledger = Ledger::comparable();
        frames.iter().for_each(|frame| ledger.record(Outlet::Port(PortNo(1)), frame, 0));
        ledger
    }

    #[test]
    fn order_matters_within_a_flow_and_not_across_flows() {
        let (a1, a2, b) = (udp(1, 1), udp(1, 2), udp(2, 1));
        let want = ledger(&[a1.clone(), a2.clone(), b.clone()]);
        let across = ledger(&[b.clone(), a1.clone(), a2.clone()]);
        let within = ledger(&[a2, a1, b]);
        assert_eq!(want.streams(), across.streams());
        assert_eq!(want.digest(), across.digest());
        assert_ne!(want.streams(), within.streams());
        assert_ne!(want.digest(), within.digest());
    }
}
