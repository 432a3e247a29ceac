//! One function per layer; each takes what it carries.

/// Destination and source of every frame.
pub const ADDRESSES: [u8; 12] = [0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01];

/// A VLAN tag: TPID and TCI.
pub type Tag = (u16, u16);

/// One's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low))).sum()
}

/// The checksum for which `bytes` and a pseudo-header of sum `pseudo` add up to all ones.
pub(super) fn checksum(bytes: &[u8], pseudo: u32) -> u16 {
    let mut total = sum(bytes) + pseudo;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// An Ethernet frame with tags, outermost first.
pub fn ethernet(tags: &[Tag], eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = ADDRESSES.to_vec();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(eth_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The same, cut to its first `len` bytes.
pub fn cut_ethernet(tags: &[Tag], eth_type: u16, payload: &[u8], len: usize) -> Vec<u8> {
    let mut frame = ethernet(tags, eth_type, payload);
    frame.truncate(len);
    frame
}

/// An 802.3 frame with LLC and SNAP headers.
pub fn llc_snap(eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0xaa, 0xaa, 3, 0, 0, 0];
    body.extend(eth_type.to_be_bytes());
    body.extend(payload);
    ethernet(&[], body.len() as u16, &body)
}

/// An L4 message whose checksum is not filled in: protocol number, bytes, and the checksum's offset if a pseudo-header
/// takes part in it.
#[derive(Debug, Clone)]
pub struct Message {
    pub(super) proto: u8,
    pub(super) bytes: Vec<u8>,
    checksum: Option<(usize, bool)>,
}

/// A TCP segment.
pub fn tcp(options: usize, payload: &[u8]) -> Message {
    let mut bytes =
        vec![0x30, 0x39, 0, 80, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, 0, 0x18, 0xfa, 0xf0, 0, 0, 0, 0];
    bytes[12] = (5 + options as u8) << 4;
    bytes.extend(vec![1; 4 * options]);
    bytes.extend(payload);
    Message { proto: 6, bytes, checksum: Some((16, true)) }
}

/// A UDP datagram, with or without checksum.
pub fn udp(with_checksum: bool, payload: &[u8]) -> Message {
    let mut bytes = vec![0x14, 0xe9, 0, 53, 0, 0, 0, 0];
    bytes[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    Message { proto: 17, bytes, checksum: with_checksum.then_some((6, true)) }
}

/// An SCTP packet with one chunk of data.
pub fn sctp(payload: &[u8]) -> Message {
    let mut bytes = vec![0x0b, 0x59, 0x0b, 0x5a, 1, 2, 3, 4, 0, 0, 0, 0];
    bytes.extend(payload);
    let crc = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&crc);
    Message { proto: 132, bytes, checksum: None }
}

/// An ICMP or ICMPv6 message: type, code, and what follows the checksum.
pub fn icmp(v6: bool, kind: u8, code: u8, body: &[u8]) -> Message {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(body);
    Message { proto: if v6 { 58 } else { 1 }, bytes, checksum: Some((2, v6)) }
}

/// A neighbour discovery message: target, then options as type, length in units of 8 bytes, and 6 bytes each.
pub fn nd(kind: u8, options: &[(u8, u8, [u8; 6])]) -> Message {
    let mut body = vec![0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
    for (option, units, data) in options {
        body.extend([*option, *units]);
        body.extend(data);
    }
    icmp(true, kind, 0, &body)
}

impl Message {
    /// A message of some protocol without checksum.
    pub fn other(proto: u8, bytes: &[u8]) -> Self {
        Self { proto, bytes: bytes.to_vec(), checksum: None }
    }

    /// With a checksum that is wrong by `flip`.
    pub fn fill(mut self, pseudo: u32, flip: u16) -> Self {
        if let Some((at, with_pseudo)) = self.checksum {
            let value = checksum(&self.bytes, if with_pseudo { pseudo } else { 0 });
            let value = if self.proto == 17 && value == 0 { 0xffff } else { value } ^ flip;
            self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        self
    }
}

/// An IPv4 packet to build.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ipv4 {
    /// Options, in units of 4 bytes.
    pub options: usize,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Added to the total length, to make it lie.
    pub longer: i16,
    /// By how much the header's and the message's checksums are wrong.
    pub flip: (u16, u16),
}

impl Ipv4 {
    /// The packet's bytes.
    pub fn packet(self, message: Message) -> Vec<u8> {
        let header = 20 + 4 * self.options;
        let total = (header + message.bytes.len()) as u16;
        let mut packet = vec![0x45 + self.options as u8, 0x28];
        packet.extend(total.wrapping_add_signed(self.longer).to_be_bytes());
        packet.extend([0xab, 0xcd]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, message.proto, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        packet.extend(vec![1; 4 * self.options]);
        let value = checksum(&packet, 0) ^ self.flip.0;
        packet[10..12].copy_from_slice(&value.to_be_bytes());
        let pseudo = sum(&packet[12..20]) + u32::from(message.proto) + message.bytes.len() as u32;
        packet.extend(message.fill(pseudo, self.flip.1).bytes);
        packet
    }
}

/// An IPv6 extension header: its number, and its bytes from the second on (the first names the next header).
pub type Extension<'a> = (u8, &'a [u8]);

/// An IPv6 packet to build.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ipv6<'a> {
    /// Extension headers.
    pub extensions: &'a [Extension<'a>],
    /// Added to the payload length, to make it lie.
    pub longer: i16,
    /// By how much the message's checksum is wrong.
    pub flip: u16,
}

/// The source and destination of every IPv6 packet.
const V6_ADDRESSES: [u8; 32] = [
    0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0x22,
];

impl Ipv6<'_> {
    /// The packet's bytes.
    pub fn packet(self, message: Message) -> Vec<u8> {
        let mut payload = Vec::new();
        for (i, (_, rest)) in self.extensions.iter().enumerate() {
            payload.push(self.extensions.get(i + 1).map_or(message.proto, |(number, _)| *number));
            payload.extend(*rest);
        }
        let pseudo = sum(&V6_ADDRESSES) + u32::from(message.proto) + message.bytes.len() as u32;
        let first = self.extensions.first().map_or(message.proto, |(number, _)| *number);
        payload.extend(message.fill(pseudo, self.flip).bytes);
        let mut packet = vec![0x6b, 0x81, 0x23, 0x45];
        packet.extend((payload.len() as u16).wrapping_add_signed(self.longer).to_be_bytes());
        packet.extend([first, 61]);
        packet.extend(V6_ADDRESSES);
        packet.extend(payload);
        packet
    }
}

/// ARP for IPv4 over Ethernet.
pub fn arp(operation: u16) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 198, 51, 100, 2]);
    packet
}

/// Label stack entries (label, TC, TTL; the last is marked as bottom) and what follows them.
pub fn label_stack(labels: &[(u32, u32, u32)], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    for (i, (label, tc, ttl)) in labels.iter().enumerate() {
        let bottom = u32::from(i + 1 == labels.len());
        packet.extend((label << 12 | tc << 9 | bottom << 8 | ttl).to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// An NSH header of metadata type 1, or of type 2 without metadata, and what follows it.
pub fn nsh(type1: bool, next: u8, payload: &[u8]) -> Vec<u8> {
    let units = if type1 { 6 } else { 2 };
    let mut packet = vec![0x0f, 0xc0 | units, if type1 { 1 } else { 2 }, next, 0, 0x12, 0x34, 0xff];
    if type1 {
        packet.extend((1..=16).collect::<Vec<u8>>());
    }
    packet.extend(payload);
    packet
}
