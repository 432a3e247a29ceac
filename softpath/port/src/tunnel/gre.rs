//! The headers between IP and the frame: GRE's and ERSPAN's.
//!
//! GRE has flags and a protocol, then checksum, key and sequence number as the flags say (RFC 2784, section 2; RFC 2890, section 2).
//! ERSPAN is a protocol within GRE: version 1 (type II) has 8 bytes, version 2 (type III) 12, and 8 more if its last bit says so
//! (draft-foschiano-erspan-03, section 4). Its first word is version (4 bits), VLAN (12), class of service (3), encapsulation or size
//! (2), truncated (1), session (10).

use super::header::HeaderError;
use super::{ETHERNET, Erspan, TunnelInfo};
use crate::offload::segment::sum;

/// Longest header: GRE with checksum, key and sequence number, or ERSPAN version 2 behind one with a sequence number.
pub const MAX_LEN: usize = 20;

/// What a port carries in GRE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GreTunnel {
    /// Ethernet frames.
    Ethernet,
    /// Ethernet frames and packets without an Ethernet header: all but ERSPAN.
    Any,
    /// ERSPAN.
    Erspan,
}

/// What differs from packet to packet and is not the frame's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// ERSPAN: number of the packet.
    pub sequence: u32,
    /// ERSPAN: time in units of 100 microseconds.
    pub timestamp: u32,
}

/// ERSPAN of versions 1 and 2: protocols in GRE.
const ERSPAN_1: u16 = 0x88be;
const ERSPAN_2: u16 = 0x22eb;
/// Protocols of GRE are Ethernet types, and smaller numbers are none.
const ETH_TYPE_MIN: u16 = 0x0600;
/// VLAN tags, which stand behind the addresses of an Ethernet header or nowhere.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// GRE: fields that are there.
const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// GRE: what nobody sends any more (routing), and the version, which is 0.
const REFUSED: u16 = 0x4007;
/// ERSPAN version 1: the tag is in the frame still.
const TAG_IN_FRAME: u32 = 3;
/// ERSPAN version 2: the frame is shorter or longer than Ethernet's.
const SHORT: u32 = 1;
const OVERSIZED: u32 = 2;
/// Ethernet's shortest and longest frame, without frame check sequence and tag.
const FRAME_MIN: usize = 60;
const FRAME_MAX: usize = 1514;
/// Length of the platform's own part of ERSPAN version 2.
const PLATFORM: usize = 8;

/// Protocols of a port's packets; with `false`, those of all packets that are not the port's.
pub const fn protocols(kind: GreTunnel) -> (&'static [u16], bool) {
    match kind {
        GreTunnel::Ethernet => (&[ETHERNET], true),
        GreTunnel::Any => (&[ERSPAN_1, ERSPAN_2], false),
        GreTunnel::Erspan => (&[ERSPAN_1, ERSPAN_2], true),
    }
}

/// Refuses what is not a port's, or could be nothing but the beginning of a packet whose first header is not known.
fn check_protocol(kind: GreTunnel, protocol: u16) -> Result<(), HeaderError> {
    let (named, wanted) = protocols(kind);
    let is_type = protocol >= ETH_TYPE_MIN && !TAGS.contains(&protocol);
    if named.contains(&protocol) == wanted && is_type { Ok(()) } else { Err(HeaderError::Protocol(protocol)) }
}

/// Writes the header of `frame` for `info` to the front of `out`; gives its length.
///
/// # Errors
/// [`HeaderError::Protocol`].
pub fn encode(
    kind: GreTunnel,
    info: &TunnelInfo,
    moment: Moment,
    frame: &[u8],
    out: &mut [u8; MAX_LEN],
) -> Result<usize, HeaderError> {
    let is_frame = info.protocol == ETHERNET;
    match kind {
        GreTunnel::Any => check_protocol(kind, info.protocol)?,
        GreTunnel::Ethernet | GreTunnel::Erspan if is_frame => {}
        GreTunnel::Ethernet | GreTunnel::Erspan => return Err(HeaderError::Protocol(info.protocol)),
    }
    Ok(match kind {
        GreTunnel::Ethernet | GreTunnel::Any => plain(info, frame, out),
        GreTunnel::Erspan => erspan(info, moment, frame, out),
    })
}

fn put(out: &mut [u8; MAX_LEN], at: &mut usize, word: u32) {
    if let Some(field) = out.get_mut(*at..*at + 4) {
        field.copy_from_slice(&word.to_be_bytes());
        *at += 4;
    }
}

fn plain(info: &TunnelInfo, frame: &[u8], out: &mut [u8; MAX_LEN]) -> usize {
    let flag = |on: bool, flag: u16| if on { flag } else { 0 };
    let flags = flag(info.checksum, CHECKSUM) | flag(info.id.is_some(), KEY);
    let mut len = 0;
    put(out, &mut len, u32::from(flags) << 16 | u32::from(info.protocol));
    if info.checksum {
        put(out, &mut len, 0);
    }
    if let Some(key) = info.id {
        put(out, &mut len, key);
    }
    if info.checksum {
        let sums = u32::from(sum(&out[..len])) + u32::from(sum(frame));
        let csum = !sum(&sums.to_be_bytes());
        out[4..6].copy_from_slice(&csum.to_be_bytes());
    }
    len
}

fn erspan(info: &TunnelInfo, moment: Moment, frame: &[u8], out: &mut [u8; MAX_LEN]) -> usize {
    let tag = match frame.get(12..16) {
        Some(&[0x81, 0x00, hi, lo]) => Some(u16::from_be_bytes([hi, lo])),
        _ => None,
    };
    let erspan = info.erspan.unwrap_or(Erspan::V1 { index: 0 });
    let (version, protocol, bits) = match erspan {
        Erspan::V1 { .. } => (1, ERSPAN_1, if tag.is_some() { TAG_IN_FRAME } else { 0 }),
        Erspan::V2 { .. } if frame.len() < FRAME_MIN => (2, ERSPAN_2, SHORT),
        Erspan::V2 { .. } if frame.len() > FRAME_MAX => (2, ERSPAN_2, OVERSIZED),
        Erspan::V2 { .. } => (2, ERSPAN_2, 0),
    };
    let vlan = u32::from(tag.unwrap_or(0) & 0x0fff);
    // Class of service: the precedence of the IP packet within, which Linux takes.
    let cos = u32::from(precedence(frame));
    let session = info.id.unwrap_or(0) & 0x3ff;
    let mut len = 0;
    put(out, &mut len, u32::from(SEQUENCE) << 16 | u32::from(protocol));
    put(out, &mut len, moment.sequence);
    put(out, &mut len, version << 28 | vlan << 16 | cos << 13 | bits << 11 | session);
    match erspan {
        Erspan::V1 { index } => put(out, &mut len, index & 0xf_ffff),
        Erspan::V2 { egress, hwid } => {
            put(out, &mut len, moment.timestamp);
            // P: an Ethernet frame.
            put(out, &mut len, 0x8000 | u32::from(hwid & 0x3f) << 4 | u32::from(egress) << 3);
        }
    }
    len
}

/// The upper three bits of the type of service or traffic class of the IP packet in a frame.
fn precedence(frame: &[u8]) -> u8 {
    let Some(l3) = crate::offload::ip_header(frame) else { return 0 };
    match frame.get(l3..l3 + 2) {
        Some(&[first, second]) if first >> 4 == 4 => second >> 5,
        Some(&[first, _]) => (first & 0x0f) >> 1,
        _ => 0,
    }
}

/// Reads the header at the front of `packet` into `info`; gives its length.
///
/// # Errors
/// See [`HeaderError`].
pub fn decode(kind: GreTunnel, packet: &[u8], info: &mut TunnelInfo) -> Result<usize, HeaderError> {
    let mut at = 0;
    let mut word = || {
        let word = packet.get(at..at + 4).and_then(<[u8]>::first_chunk).ok_or(HeaderError::CutOff);
        at += 4;
        word.map(|word| u32::from_be_bytes(*word))
    };
    let first = word()?;
    let (flags, protocol) = ((first >> 16) as u16, first as u16);
    if flags & REFUSED != 0 {
        return Err(HeaderError::Gre(flags));
    }
    check_protocol(kind, protocol)?;
    info.protocol = if kind == GreTunnel::Erspan { ETHERNET } else { protocol };
    info.checksum = flags & CHECKSUM != 0;
    if info.checksum {
        word()?;
        if sum(packet) != 0xffff {
            return Err(HeaderError::Checksum);
        }
    }
    info.id = if flags & KEY != 0 { Some(word()?) } else { None };
    if flags & SEQUENCE != 0 {
        word()?;
    }
    (info.gbp, info.erspan, info.oam) = (None, None, false);
    info.options.clear();
    if kind != GreTunnel::Erspan {
        return Ok(at);
    }
    // Type I has no header of its own, and so no session.
    if flags & SEQUENCE == 0 {
        return Err(HeaderError::Erspan);
    }
    let base = word()?;
    info.id = Some(base & 0x3ff);
    // Either protocol may be outside of either version: senders differ.
    info.erspan = Some(match base >> 28 {
        1 => Erspan::V1 { index: word()? & 0xf_ffff },
        2 => {
            word()?;
            let last = word()?;
            if last & 1 != 0 {
                at += PLATFORM;
            }
            Erspan::V2 { egress: last & 8 != 0, hwid: (last >> 4 & 0x3f) as u8 }
        }
        _ => return Err(HeaderError::Erspan),
    });
    if at > packet.len() { Err(HeaderError::CutOff) } else { Ok(at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ARP request, and a frame with a VLAN tag and an IPv4 packet of precedence 5 in it.
    const ARP: [u8; 42] = {
        let mut frame = [0xff; 42];
        frame[12] = 0x08;
        frame[13] = 0x06;
        frame
    };
    const TAGGED: [u8; 64] = {
        let mut frame = [0; 64];
        let head = [0x81, 0x00, 0xaa, 0xbc, 0x08, 0x00, 0x45, 0xb8];
        let mut n = 0;
        while n < head.len() {
            frame[12 + n] = head[n];
            n += 1;
        }
        frame
    };

    fn encoded(kind: GreTunnel, info: &TunnelInfo, frame: &[u8]) -> Vec<u8> {
        let mut out = [0xee; MAX_LEN];
        let moment = Moment { sequence: 6, timestamp: 0x6f54_b417 };
        let len = encode(kind, info, moment, frame, &mut out).unwrap();
        out[..len].to_vec()
    }

    fn decoded(kind: GreTunnel, packet: &[u8]) -> Result<(usize, TunnelInfo), HeaderError> {
        // What was there before does not matter.
        let mut info = TunnelInfo {
            id: Some(99),
            checksum: true,
            oam: true,
            erspan: Some(Erspan::V1 { index: 3 }),
            ..TunnelInfo::default()
        };
        decode(kind, packet, &mut info).map(|len| (len, info))
    }

    #[test]
    fn gre_headers_as_in_their_documents() {
        let plain = TunnelInfo::default();
        // RFC 2784, section 2.1; RFC 2890, section 2.1.
        assert_eq!(encoded(GreTunnel::Ethernet, &plain, &ARP), [0, 0, 0x65, 0x58]);
        let key = TunnelInfo { id: Some(0x1234_5678), ..plain.clone() };
        let bytes = [0x20, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0x78];
        assert_eq!(encoded(GreTunnel::Ethernet, &key, &ARP), bytes);
        // 0x8000 + 0x6558 and a frame of ones, whose sum is that of its type and of one odd byte more.
        let checksum = TunnelInfo { checksum: true, ..plain.clone() };
        let bytes = encoded(GreTunnel::Ethernet, &checksum, &ARP);
        let words = [0x8000u32, 0x6558, 0x0806].iter().sum::<u32>();
        let csum = !((words + (words >> 16)) as u16);
        assert_eq!(bytes, [[0x80, 0, 0x65, 0x58], [(csum >> 8) as u8, csum as u8, 0, 0]].concat());
        let mut packet = [&bytes[..], &ARP].concat();
        assert_eq!(decoded(GreTunnel::Ethernet, &packet), Ok((8, checksum)));
        packet[20] ^= 1;
        assert_eq!(decoded(GreTunnel::Ethernet, &packet), Err(HeaderError::Checksum));
        // Key and sequence number, of which the latter is passed over.
        let packet = [0x30, 0, 0x65, 0x58, 0, 0, 0, 7, 0, 0, 0, 1, 9, 9];
        assert_eq!(decoded(GreTunnel::Ethernet, &packet), Ok((12, TunnelInfo { id: Some(7), ..plain })));
    }

    #[test]
    fn erspan_headers_as_open_vswitchs_tests_have_them() {
        // `ping over erspan v1 tunnel by simulated packets`, and v2, of tests/system-traffic.at.
        let plain = TunnelInfo { id: Some(1), ..TunnelInfo::default() };
        let v1 = TunnelInfo { erspan: Some(Erspan::V1 { index: 7 }), ..plain.clone() };
        let bytes = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 6, 0x10, 0, 0, 1, 0, 0, 0, 7];
        assert_eq!(encoded(GreTunnel::Erspan, &v1, &ARP), bytes);
        assert_eq!(decoded(GreTunnel::Erspan, &bytes), Ok((16, v1)));
        let v2 = TunnelInfo { erspan: Some(Erspan::V2 { egress: true, hwid: 7 }), ..plain };
        let theirs =
            [0x10, 0, 0x88, 0xbe, 0, 0, 0, 6, 0x20, 0, 0, 1, 0x6f, 0x54, 0xb4, 0x17, 0, 0, 0x80, 0x78];
        assert_eq!(
            decoded(GreTunnel::Erspan, &theirs),
            Ok((20, v2.clone())),
            "version 2 in the protocol of 1"
        );
        // Ours is in its own protocol, and says that an ARP request is short.
        let mut ours = theirs;
        (ours[2], ours[3], ours[10]) = (0x22, 0xeb, 0x08);
        assert_eq!(encoded(GreTunnel::Erspan, &v2, &ARP), ours);
        assert_eq!(decoded(GreTunnel::Erspan, &ours), Ok((20, v2)));
    }

    #[test]
    fn erspan_tells_tag_and_precedence() {
        let info = TunnelInfo { id: Some(0x3ff), ..TunnelInfo::default() };
        // VLAN 0xabc, class 5, the tag is in the frame, session 0x3ff; index 0.
        let bytes = encoded(GreTunnel::Erspan, &info, &TAGGED);
        assert_eq!(bytes[8..], [0x1a, 0xbc, 0xa0 | 0x18 | 0x03, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let gre = GreTunnel::Ethernet;
        assert_eq!(decoded(gre, &[0x40, 0, 0x65, 0x58]), Err(HeaderError::Gre(0x4000)), "routing");
        assert_eq!(decoded(gre, &[0, 1, 0x65, 0x58]), Err(HeaderError::Gre(1)), "version 1 (PPTP)");
        assert_eq!(decoded(gre, &[0, 0, 8, 0]), Err(HeaderError::Protocol(0x800)), "IPv4");
        assert_eq!(decoded(gre, &[0x20, 0, 0x65, 0x58, 0]), Err(HeaderError::CutOff));
        let erspan = GreTunnel::Erspan;
        assert_eq!(decoded(erspan, &[0, 0, 0x88, 0xbe]), Err(HeaderError::Erspan), "type I");
        let v3 = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 6, 0x30, 0, 0, 1, 0, 0, 0, 7];
        assert_eq!(decoded(erspan, &v3), Err(HeaderError::Erspan));
        // Version 2 with a part of the platform's, whole and cut off.
        let mut v2 = vec![0x10, 0, 0x22, 0xeb, 0, 0, 0, 6, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0x01];
        assert_eq!(decoded(erspan, &v2), Err(HeaderError::CutOff));
        v2.extend([0; 8]);
        assert_eq!(decoded(erspan, &v2).unwrap().0, 28);
    }

    #[test]
    fn gre_carries_packets_without_an_ethernet_header() {
        let any = GreTunnel::Any;
        let ipv6 = TunnelInfo { protocol: 0x86dd, id: Some(5), ..TunnelInfo::default() };
        let bytes = [0x20, 0, 0x86, 0xdd, 0, 0, 0, 5];
        assert_eq!(encoded(any, &ipv6, &[0x60; 40]), bytes);
        assert_eq!(decoded(any, &bytes), Ok((8, ipv6.clone())));
        // A frame among them.
        assert_eq!(decoded(any, &[0, 0, 0x65, 0x58]), Ok((4, TunnelInfo::default())));
        // ERSPAN, tags, and numbers that are no types: neither taken nor sent.
        for protocol in [0x88be, 0x22eb, 0x8100, 0x88a8, 0, 0x05ff] {
            let [hi, lo] = u16::to_be_bytes(protocol);
            let refused = HeaderError::Protocol(protocol);
            assert_eq!(decoded(any, &[0, 0, hi, lo]), Err(refused));
            let info = TunnelInfo { protocol, ..TunnelInfo::default() };
            assert_eq!(encode(any, &info, Moment::default(), &ARP, &mut [0; MAX_LEN]), Err(refused));
        }
        for kind in [GreTunnel::Ethernet, GreTunnel::Erspan] {
            let sent = encode(kind, &ipv6, Moment::default(), &ARP, &mut [0; MAX_LEN]);
            assert_eq!(sent, Err(HeaderError::Protocol(0x86dd)));
        }
    }

    fn kinds() -> impl Strategy<Value = GreTunnel> {
        prop_oneof![Just(GreTunnel::Ethernet), Just(GreTunnel::Any), Just(GreTunnel::Erspan)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in kinds(),
            id: Option<u32>,
            checksum: bool,
            erspan in prop_oneof![
                (0..1u32 << 20).prop_map(|index| Erspan::V1 { index }),
                (any::<bool>(), 0..64u8).prop_map(|(egress, hwid)| Erspan::V2 { egress, hwid }),
            ],
            frame in prop::collection::vec(any::<u8>(), 14..200),
            protocol in prop::sample::select(&[ETHERNET, 0x0800, 0x86dd, 0x8847][..]),
        ) {
            let plain = TunnelInfo::default();
            let info = match kind {
                GreTunnel::Ethernet => TunnelInfo { id, checksum, ..plain },
                GreTunnel::Any => TunnelInfo { id, checksum, protocol, ..plain },
                GreTunnel::Erspan => TunnelInfo { id: Some(id.unwrap_or(0) & 0x3ff), erspan: Some(erspan), ..plain },
            };
            let mut packet = encoded(kind, &info, &frame);
            let len = packet.len();
            packet.extend(&frame);
            prop_assert_eq!(decoded(kind, &packet), Ok((len, info)));
        }

        #[test]
        fn no_packet_does_harm(kind in kinds(), mut packet in prop::collection::vec(any::<u8>(), 0..60), tame: bool) {
            if let (true, [flags, zero, p0, p1, ..]) = (tame, &mut packet[..]) {
                (*flags, *zero) = (*flags & 0xb0, 0);
                [*p0, *p1] = if kind == GreTunnel::Erspan { ERSPAN_1 } else { ETHERNET }.to_be_bytes();
            }
            if let Ok((len, _)) = decoded(kind, &packet) {
                prop_assert!((4..=packet.len()).contains(&len));
            }
        }
    }
}
