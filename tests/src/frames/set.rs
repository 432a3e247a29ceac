//! A spread of frames: every header and combination that a datapath meets, and damage of every kind.

use super::build::*;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A frame and what it is.
#[derive(Debug, Clone)]
pub struct Named {
    /// What it is.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const MPLS: u16 = 0x8847;
const NSH: u16 = 0x894f;

/// All frames.
pub fn all() -> Vec<Named> {
    let mut set = Set(Vec::new());
    set.ipv4();
    set.ipv6();
    set.others();
    set.damaged();
    set.0
}

/// The frames of a classic pcap file of Ethernet frames in either byte order.
pub fn read_pcap(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let little = bytes.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]);
    ensure!(little || bytes.starts_with(&[0xa1, 0xb2, 0xc3, 0xd4]), "{} is no pcap file", path.display());
    let (mut frames, mut rest) = (Vec::new(), bytes.get(24..).unwrap_or_default());
    while let Some(&[a, b, c, d]) = rest.get(8..12).and_then(|len| len.first_chunk()) {
        let len =
            if little { u32::from_le_bytes([a, b, c, d]) } else { u32::from_be_bytes([a, b, c, d]) } as usize;
        frames
            .push(rest.get(16..16 + len).with_context(|| format!("{} is cut off", path.display()))?.to_vec());
        rest = &rest[16 + len..];
    }
    Ok(frames)
}

struct Set(Vec<Named>);

/// Tags by what they are called.
const TAGS: [(&str, &[Tag]); 3] = [
    ("untagged", &[]),
    ("tagged", &[(0x8100, 0x6005)]),
    ("double-tagged", &[(0x88a8, 0x0064), (0x8100, 0x2007)]),
];

fn messages() -> Vec<(&'static str, Message)> {
    vec![
        ("TCP", tcp(0, b"hello, world")),
        ("TCP with options", tcp(3, b"odd")),
        ("TCP without payload", tcp(0, b"")),
        ("UDP", udp(true, b"question")),
        ("UDP without checksum", udp(false, b"question")),
        ("SCTP", sctp(b"\0\x03\0\x10chunk of data")),
        ("protocol 47", Message::other(47, b"\0\0\x08\0whatever")),
    ]
}

impl Set {
    fn add(&mut self, name: impl Into<String>, bytes: Vec<u8>) {
        self.0.push(Named { name: name.into(), bytes });
    }

    fn ipv4(&mut self) {
        let echo = || icmp(false, 8, 0, b"\0\x01\0\x02echo data");
        for (tag, tags) in TAGS {
            for (name, message) in messages().into_iter().chain([("ICMP", echo())]) {
                let packet = |ip: Ipv4| ip.packet(message.clone());
                let mut add = |kind: &str, packet: Vec<u8>| {
                    self.add(format!("{tag} IPv4{kind} {name}"), ethernet(tags, IPV4, &packet));
                };
                add("", packet(Ipv4::default()));
                add(" with options", packet(Ipv4 { options: 3, ..Ipv4::default() }));
                add(" with wrong checksums", packet(Ipv4 { flip: (0x1111, 0x2222), ..Ipv4::default() }));
                add(" first fragment of", packet(Ipv4 { fragment: 0x2000, ..Ipv4::default() }));
                add(" later fragment of", packet(Ipv4 { fragment: 0x2010, ..Ipv4::default() }));
                add(" last fragment of", packet(Ipv4 { fragment: 0x0010, ..Ipv4::default() }));
                let mut padded = packet(Ipv4::default());
                padded.extend([0x55; 23]);
                add(" padded", padded);
            }
        }
        for len in [1400, 8900, 60_000] {
            let packet = Ipv4::default().packet(tcp(0, &vec![0x42; len]));
            self.add(format!("IPv4 TCP with {len} bytes"), ethernet(&[], IPV4, &packet));
        }
        // Zero in one's complement has two forms.
        for flip in [0, 0xffff] {
            for (name, message) in [("TCP", tcp(0, &[0; 6])), ("UDP", udp(true, &[0; 6]))] {
                for value in 0..4u16 {
                    let mut packet = Ipv4::default().packet(message.clone());
                    let at = if name == "TCP" { 36 } else { 26 };
                    packet[at..at + 2].copy_from_slice(&(value ^ flip).to_be_bytes());
                    self.add(
                        format!("IPv4 {name} with checksum {:#x}", value ^ flip),
                        ethernet(&[], IPV4, &packet),
                    );
                }
            }
        }
    }

    fn ipv6(&mut self) {
        let sll = [2, 0, 0, 0, 0, 0x11];
        let discovery: [(&str, Message); 6] = [
            ("neighbour solicitation", nd(135, &[(1, 1, sll)])),
            ("neighbour advertisement", nd(136, &[(2, 1, sll)])),
            ("neighbour solicitation without option", nd(135, &[])),
            ("neighbour solicitation with a nonce first", nd(135, &[(14, 1, [7; 6]), (1, 1, sll)])),
            ("neighbour advertisement with both options", nd(136, &[(2, 1, sll), (1, 1, [9; 6])])),
            ("router solicitation", icmp(true, 133, 0, &[0; 12])),
        ];
        let routing: &[u8] = &[0, 4, 0, 0, 0, 0, 0];
        let chains: [(&str, &[Extension]); 8] = [
            ("", &[]),
            (" with hop-by-hop options", &[(0, &[0, 1, 4, 0, 0, 0, 0])]),
            (" with destination options", &[(60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
            (" with a spent routing header", &[(43, routing)]),
            (" with authentication", &[(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2])]),
            (" first fragment", &[(44, &[0, 0, 1, 0, 0, 0, 5])]),
            (" later fragment", &[(44, &[0, 0x05, 0xc1, 0, 0, 0, 5])]),
            (" hop-by-hop and first fragment", &[(0, &[0, 1, 4, 0, 0, 0, 0]), (44, &[0, 0, 1, 0, 0, 0, 5])]),
        ];
        for (tag, tags) in TAGS {
            for (name, message) in
                messages().into_iter().chain([("ICMPv6", icmp(true, 128, 0, b"\0\x01\0\x02echo"))])
            {
                for (chain, extensions) in chains {
                    let packet = Ipv6 { extensions, ..Ipv6::default() }.packet(message.clone());
                    self.add(format!("{tag} IPv6{chain} {name}"), ethernet(tags, IPV6, &packet));
                }
                let mut packet = Ipv6 { flip: 0x2222, ..Ipv6::default() }.packet(message.clone());
                self.add(format!("{tag} IPv6 {name} with wrong checksum"), ethernet(tags, IPV6, &packet));
                packet.extend([0x55; 9]);
                self.add(
                    format!("{tag} IPv6 {name} padded, with wrong checksum"),
                    ethernet(tags, IPV6, &packet),
                );
            }
            for (name, message) in &discovery {
                let packet = Ipv6::default().packet(message.clone());
                self.add(format!("{tag} {name}"), ethernet(tags, IPV6, &packet));
            }
        }
        let active: &[u8] = &[2, 4, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x33];
        for (name, message) in messages() {
            let atomic: &[u8] = &[0, 0, 0, 0, 0, 0, 5];
            for (kind, extension) in
                [("an active routing header", (43, active)), ("an atomic fragment header", (44, atomic))]
            {
                let packet = Ipv6 { extensions: &[extension], ..Ipv6::default() }.packet(message.clone());
                self.add(format!("IPv6 with {kind} {name}"), ethernet(&[], IPV6, &packet));
            }
        }
    }

    fn others(&mut self) {
        let ip = Ipv4::default().packet(tcp(0, b"inside"));
        let ip6 = Ipv6::default().packet(udp(true, b"inside"));
        for (tag, tags) in TAGS {
            let mut add = |name: &str, eth_type, payload: &[u8]| {
                self.add(format!("{tag} {name}"), ethernet(tags, eth_type, payload));
            };
            add("ARP request", ARP, &arp(1));
            add("ARP reply, padded", ARP, &[arp(2), vec![0; 18]].concat());
            add("ARP with a large operation", ARP, &arp(0x1234));
            add("RARP", RARP, &arp(3));
            add("one label on IPv4", MPLS, &label_stack(&[(100, 1, 64)], &ip));
            add(
                "three labels on IPv4",
                MPLS,
                &label_stack(&[(100, 1, 64), (16, 0, 3), (1_048_575, 7, 255)], &ip),
            );
            add(
                "five labels on IPv6",
                MPLS,
                &label_stack(&[(1, 0, 64), (2, 0, 3), (3, 7, 2), (4, 0, 1), (5, 0, 9)], &ip6),
            );
            add("NSH on IPv4", NSH, &nsh(true, 1, &ip));
            add("NSH on Ethernet", NSH, &nsh(true, 3, &ethernet(&[], IPV4, &ip)));
            add("NSH of type 2 on IPv6", NSH, &nsh(false, 2, &ip6));
            add("LLDP", 0x88cc, b"\x02\x07\x04something");
        }
        self.add("SNAP with IPv4", llc_snap(IPV4, &ip));
        self.add("SNAP with ARP", llc_snap(ARP, &arp(1)));
    }

    fn damaged(&mut self) {
        let ip = Ipv4::default().packet(tcp(2, b"hello"));
        let ip6 = Ipv6::default().packet(udp(true, b"hello"));
        for len in 14..ip.len() + 14 {
            self.add(format!("IPv4 TCP cut at {len}"), cut_ethernet(&[], IPV4, &ip, len));
        }
        for len in 14..ip6.len() + 14 {
            self.add(format!("IPv6 UDP cut at {len}"), cut_ethernet(&[], IPV6, &ip6, len));
        }
        for len in 14..42 {
            self.add(format!("ARP cut at {len}"), cut_ethernet(&[], ARP, &arp(1), len));
        }
        for len in 14..26 {
            self.add(format!("double tag cut at {len}"), cut_ethernet(TAGS[2].1, IPV4, &ip, len));
            self.add(
                format!("label cut at {len}"),
                cut_ethernet(&[], MPLS, &label_stack(&[(9, 0, 9), (8, 0, 8)], &ip), len),
            );
        }
        for longer in [-1, -8, -30, 1, 100] {
            let packet = Ipv4 { longer, ..Ipv4::default() }.packet(tcp(0, b"hello"));
            self.add(format!("IPv4 total length off by {longer}"), ethernet(&[], IPV4, &packet));
            let packet = Ipv6 { longer, ..Ipv6::default() }.packet(tcp(0, b"hello"));
            self.add(format!("IPv6 payload length off by {longer}"), ethernet(&[], IPV6, &packet));
        }
        for ihl in [0u8, 4, 6, 15] {
            let mut packet = ip.clone();
            packet[0] = 0x40 | ihl;
            self.add(format!("IPv4 header length {ihl}"), ethernet(&[], IPV4, &packet));
        }
        for offset in [0u8, 4, 15] {
            let mut packet = ip.clone();
            packet[32] = offset << 4;
            self.add(format!("TCP data offset {offset}"), ethernet(&[], IPV4, &packet));
        }
    }
}
