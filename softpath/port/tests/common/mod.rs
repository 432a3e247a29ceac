//! Captures put together byte by byte, apart from the crate's own writer.

/// A packet as it is put into a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) timestamp_ns: u64,
    pub(crate) orig_len: u32,
    pub(crate) data: Vec<u8>,
}

/// Numbers in the byte order of a capture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) big: bool,
}

impl Order {
    pub(crate) fn n16(self, n: u16) -> [u8; 2] {
        if self.big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    pub(crate) fn n32(self, n: u32) -> [u8; 4] {
        if self.big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    pub(crate) fn n64(self, n: u64) -> [u8; 8] {
        if self.big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    /// A pcap file's header.
    pub(crate) fn pcap_header(self, nano: bool, link_type: u32) -> Vec<u8> {
        let magic = if nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let words = [self.n32(0), self.n32(0), self.n32(65535), self.n32(link_type)];
        [&self.n32(magic)[..], &self.n16(2), &self.n16(4), words.as_flattened()].concat()
    }

    /// A packet of a pcap file.
    pub(crate) fn pcap_record(self, nano: bool, packet: &Packet) -> Vec<u8> {
        let seconds = (packet.timestamp_ns / 1_000_000_000) as u32;
        let fraction = (packet.timestamp_ns % 1_000_000_000) as u32 / if nano { 1 } else { 1000 };
        let words = [seconds, fraction, packet.data.len() as u32, packet.orig_len].map(|n| self.n32(n));
        [words.as_flattened(), &packet.data].concat()
    }

    /// A whole pcap file.
    pub(crate) fn pcap(self, nano: bool, packets: &[Packet]) -> Vec<u8> {
        let records = packets.iter().flat_map(|packet| self.pcap_record(nano, packet));
        self.pcap_header(nano, 1).into_iter().chain(records).collect()
    }

    /// A pcapng block.
    pub(crate) fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let body = padded(body);
        let size = self.n32(body.len() as u32 + 12);
        [&self.n32(kind)[..], &size, &body, &size].concat()
    }

    pub(crate) fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        [&self.n16(code)[..], &self.n16(value.len() as u16), &padded(value)].concat()
    }

    pub(crate) fn section(self) -> Vec<u8> {
        let body = [&self.n32(0x1a2b_3c4d)[..], &self.n16(1), &self.n16(0), &[0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    /// An interface description: link type, snapshot length, options.
    pub(crate) fn interface(self, link_type: u16, snap_len: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = [&self.n16(link_type)[..], &self.n16(0), &self.n32(snap_len)].concat();
        for (code, value) in options {
            body.extend(self.option(*code, value));
        }
        if !options.is_empty() {
            body.extend(self.option(0, &[]));
        }
        self.block(1, &body)
    }

    /// An enhanced packet of an interface, with its time in the interface's ticks.
    pub(crate) fn enhanced(self, interface: u32, ticks: u64, orig_len: u32, data: &[u8]) -> Vec<u8> {
        let words = [interface, (ticks >> 32) as u32, ticks as u32, data.len() as u32, orig_len];
        self.block(6, &[words.map(|n| self.n32(n)).as_flattened(), data].concat())
    }

    pub(crate) fn simple(self, orig_len: u32, data: &[u8]) -> Vec<u8> {
        self.block(3, &[&self.n32(orig_len)[..], data].concat())
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(crate) const LITTLE: Order = Order { big: false };
pub(crate) const BIG: Order = Order { big: true };
