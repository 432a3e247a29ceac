//! Packets that wait to be sent together.

use std::net::Ipv4Addr;
use std::ops::Range;

use super::run::{RUN_BYTES, RUN_MAX};
use crate::offload::segment::sum;

/// Length of UDP's header.
pub(super) const UDP_LEN: usize = 8;
/// Where its checksum is.
const CHECKSUM: Range<usize> = 6..8;
const UDP_PROTOCOL: u8 = 17;
/// Packets that wait at most: two large frames in segments.
pub(super) const WAITING_MAX: usize = 2 * RUN_MAX;

/// Packets in order, from behind the IP header on, which is to be the same for all.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Its bytes.
    at: Range<usize>,
    /// Length of the frame in it.
    frame: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes.clear();
    }

    /// Appends a packet: what is ahead of a frame, and the frame.
    pub(super) fn push(&mut self, headers: [&[u8]; 2], frame: &[u8]) {
        let start = self.bytes.len();
        for part in headers.into_iter().chain([frame]) {
            self.bytes.extend_from_slice(part);
        }
        self.waiting.push(Waiting { at: start..self.bytes.len(), frame: frame.len() });
    }

    fn packet(&self, n: usize) -> &[u8] {
        self.waiting.get(n).and_then(|w| self.bytes.get(w.at.clone())).unwrap_or_default()
    }

    /// Those packets.
    pub(super) fn packets(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> + Clone {
        range.map(|n| self.packet(n))
    }

    /// Length of the frame in a packet.
    pub(super) fn frame_len(&self, n: usize) -> usize {
        self.waiting.get(n).map_or(0, |w| w.frame)
    }

    /// Bytes of the frames in those packets.
    pub(super) fn frame_bytes(&self, range: Range<usize>) -> u64 {
        range.map(|n| self.frame_len(n) as u64).sum()
    }

    /// How many of the UDP packets from `first` on are a run: of the same ports and length, but for the last one, which may be
    /// shorter. At least 1.
    pub(super) fn run_at(&self, first: usize) -> usize {
        let head = self.packet(first);
        let (mut count, mut bytes) = (1, head.len());
        while count < RUN_MAX {
            let next = self.packet(first + count);
            bytes += next.len();
            let fits = next.len() <= head.len() && bytes <= RUN_BYTES;
            if next.len() < UDP_LEN || !fits || next.get(..4) != head.get(..4) {
                break;
            }
            count += 1;
            if next.len() < head.len() {
                break;
            }
        }
        count
    }

    /// Fills in the checksum of a UDP packet over IPv4, where there is none yet.
    pub(super) fn complete(&mut self, n: usize, src: Ipv4Addr, dst: Ipv4Addr) {
        let Some(packet) = self.waiting.get(n).and_then(|w| self.bytes.get_mut(w.at.clone())) else { return };
        // What is longer is not sent.
        let [hi, lo] = (packet.len() as u16).to_be_bytes();
        // All parts but the last are whole words.
        let parts = [&src.octets()[..], &dst.octets(), &[0, UDP_PROTOCOL, hi, lo], packet];
        let total: u32 = parts.into_iter().map(|part| u32::from(sum(part))).sum();
        let csum = !sum(&total.to_be_bytes());
        if let Some(field) = packet.get_mut(CHECKSUM) {
            field.copy_from_slice(&if csum == 0 { 0xffff } else { csum }.to_be_bytes());
        }
    }
}
