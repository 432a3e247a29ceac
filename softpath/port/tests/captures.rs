//! Reading captures, from bytes that the crate did not write: put together here, or recorded by tcpdump.

#![cfg(test)]

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};

use common::{BIG, LITTLE, Order, Packet};
use flowlift_port::capture::{Cause, Resolution};
use flowlift_port::{CaptureError, CaptureFile, CaptureReader, Frame, FrameSource, PcapWriter, PortError};

fn packets() -> Vec<Packet> {
    let packet = |timestamp_ns, orig_len, len| Packet {
        timestamp_ns,
        orig_len,
        data: (0..len).map(|n| n as u8 ^ len as u8).collect(),
    };
    vec![
        packet(1_700_000_000_123_456_000, 60, 60),
        packet(1_700_000_001_000_001_000, 1514, 96),
        packet(1_700_000_001_999_999_000, 0, 0),
        packet(0, 61, 61),
        packet(4_294_967_295_000_000_000, 14, 14),
    ]
}

fn contents(capture: &CaptureFile) -> Vec<Packet> {
    let packet = |frame: Frame<'_>| Packet {
        timestamp_ns: frame.timestamp_ns,
        orig_len: frame.orig_len,
        data: frame.data.to_vec(),
    };
    capture.frames().map(packet).collect()
}

fn read(bytes: &[u8]) -> Result<CaptureFile, CaptureError> {
    CaptureFile::read(bytes)
}

/// The error of a capture, whether its header or a later record is damaged.
fn damage(bytes: &[u8]) -> CaptureError {
    match CaptureReader::new(bytes) {
        Err(error) => error,
        Ok(mut reader) => loop {
            match reader.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no damage found"),
                Err(error) => break error,
            }
        },
    }
}

#[test]
fn pcap_of_both_resolutions_and_byte_orders() {
    for order in [LITTLE, BIG] {
        for nano in [false, true] {
            let capture = read(&order.pcap(nano, &packets())).unwrap();
            assert_eq!(contents(&capture), packets(), "{order:?}, nanoseconds {nano}");
            assert!(capture.damage().is_none());
            assert_eq!(capture.interfaces().len(), 1);
            assert_eq!(capture.interfaces()[0].name, None);
            assert_eq!(capture.interfaces()[0].snap_len, 65535);
        }
    }
}

#[test]
fn nanoseconds_are_kept() {
    let packet = Packet { timestamp_ns: 1_700_000_000_123_456_789, orig_len: 3, data: vec![1, 2, 3] };
    let capture = read(&LITTLE.pcap(true, std::slice::from_ref(&packet))).unwrap();
    assert_eq!(contents(&capture), [packet]);
}

/// Two sections, the second in the other byte order: names, resolutions, offsets, each kind of packet block, and blocks
/// and options that are to be skipped.
fn sections(first: Order, second: Order) -> Vec<u8> {
    let mut out = first.section();
    out.extend(first.interface(1, 0, &[(2, b"p1"), (9, &[9])]));
    out.extend(first.block(5, &[0; 16]));
    out.extend(first.interface(1, 4, &[]));
    out.extend(first.enhanced(0, 1_700_000_000_123_456_789, 64, b"first"));
    out.extend(first.enhanced(1, 1_700_000_000_123_456, 5, b"micro"));
    out.extend(first.simple(7, b"simple!"));
    out.extend(second.section());
    out.extend(second.interface(1, 4, &[(2, b"p2\0\0"), (9, &[0x80 | 20])]));
    out.extend(second.interface(1, 0, &[(3, b"described"), (9, &[3]), (14, &second.n64(1000))]));
    out.extend(second.block(0x0bad, b"unknown to all"));
    out.extend(second.enhanced(0, (3 << 20) + (1 << 19), 4, b"bits"));
    out.extend(second.enhanced(1, 2_500, 6, b"offset"));
    out.extend(second.simple(100, b"kept and padded"));
    let half = |n: u16| second.n16(n);
    let words = [0u32, 4_000_000, 3, 9].map(|n| second.n32(n));
    out.extend(second.block(2, &[&half(0)[..], &half(7), words.as_flattened(), b"old"].concat()));
    out
}

#[test]
fn pcapng_sections_interfaces_and_blocks() {
    for (first, second) in [(LITTLE, BIG), (BIG, LITTLE), (LITTLE, LITTLE)] {
        let capture = read(&sections(first, second)).unwrap();
        assert!(capture.damage().is_none(), "{:?}", capture.damage());
        let names: Vec<_> = capture.interfaces().iter().map(|i| i.name.as_deref()).collect();
        assert_eq!(names, [Some("p1"), None, Some("p2"), None]);
        let seen: Vec<_> =
            capture.frames().map(|f| (f.timestamp_ns, f.interface, f.orig_len, f.data.to_vec())).collect();
        let expected: [(u64, u32, u32, &[u8]); 7] = [
            (1_700_000_000_123_456_789, 0, 64, b"first"),
            (1_700_000_000_123_456_000, 1, 5, b"micro"),
            (0, 0, 7, b"simple!"),
            (3_500_000_000, 2, 4, b"bits"),
            (1_002_500_000_000, 3, 6, b"offset"),
            (0, 2, 100, b"kept"),
            ((4_000_000 * 1_000_000_000u64) >> 20, 2, 9, b"old"),
        ];
        let expected = expected.map(|(t, i, o, data)| (t, i, o, data.to_vec()));
        assert_eq!(seen, expected, "{first:?}, {second:?}");
    }
}

#[test]
fn times_out_of_range_are_clamped() {
    for (resolution, offset, ticks, expected) in [
        (6, 0i64, u64::MAX, u64::MAX),
        (9, i64::MIN, 5, 0),
        (9, i64::MAX, 5, u64::MAX),
        (9, -1, 2_000_000_000, 1_000_000_000),
        (0x7f, 0, u64::MAX, 0),
        (0xff, 0, u64::MAX, 0),
        (0, 0, 7, 7_000_000_000),
        (0x80, 0, 7, 7_000_000_000),
    ] {
        let options: [(u16, &[u8]); 2] = [(9, &[resolution]), (14, &offset.to_le_bytes())];
        let capture =
            [LITTLE.section(), LITTLE.interface(1, 0, &options), LITTLE.enhanced(0, ticks, 1, b"x")];
        let capture = read(&capture.concat()).unwrap();
        assert_eq!(
            capture.get(0).map(|f| f.timestamp_ns),
            Some(expected),
            "resolution {resolution:#x}, offset {offset}, {ticks} ticks"
        );
    }
}

/// Every capture here that has several records, with the offsets at which its records begin and the number of packets
/// that are whole before each.
fn small_captures() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for order in [LITTLE, BIG] {
        for nano in [false, true] {
            all.push((format!("pcap {order:?} {nano}"), order.pcap(nano, &packets())));
        }
        all.push((format!("pcapng {order:?}"), sections(order, order)));
    }
    all.push(("pcapng mixed".into(), sections(BIG, LITTLE)));
    all
}

/// Where the records of a capture begin, its end included, worked out from the lengths alone.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let ng = bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]);
    let mut big = bytes[0] == 0xa1;
    let (mut at, mut all) = (if ng { 0 } else { 24 }, vec![0]);
    while at < bytes.len() {
        all.push(at);
        if bytes[at..].starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
            big = bytes[at + 8] == 0x1a;
        }
        let number = |at: usize| {
            let four: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            (if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }) as usize
        };
        at += if ng { number(at + 4) } else { 16 + number(at + 8) };
    }
    all.push(at);
    all.dedup();
    all
}

#[test]
fn every_truncation_gives_the_packets_before_it_and_the_place() {
    for (name, bytes) in small_captures() {
        let whole = contents(&read(&bytes).unwrap());
        let boundaries = boundaries(&bytes);
        assert_eq!(*boundaries.last().unwrap(), bytes.len());
        for cut in 0..bytes.len() {
            let record = boundaries.iter().rposition(|&at| at <= cut).unwrap();
            let (clean, place) = (boundaries[record] == cut && cut > 0, boundaries[record]);
            let context = format!("{name} cut at {cut}, record {record} at {place}");
            match read(&bytes[..cut]) {
                Err(error) => {
                    assert_eq!(record, 0, "{context}: {error}");
                    assert_eq!((error.offset, error.record), (0, 0), "{context}: {error}");
                }
                Ok(capture) => {
                    let got = contents(&capture);
                    assert!(whole.starts_with(&got), "{context}: {got:?}");
                    match capture.damage() {
                        None => assert!(clean, "{context}: the damage was not noticed"),
                        Some(error) => {
                            assert!(!clean, "{context}: {error}");
                            assert_eq!(
                                (error.offset, error.record),
                                (place as u64, record as u64),
                                "{context}"
                            );
                            let available = (cut - place) as u64;
                            let cut_off = |cause: &Cause| matches!(cause, Cause::CutOff { available: a, needed } if *a == available && *needed > available);
                            assert!(cut_off(&error.cause), "{context}: {error}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_slow_source_gives_the_same() {
    struct OneByte<'a>(&'a [u8]);
    impl Read for OneByte<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let len = buf.len().min(1);
            self.0.read(&mut buf[..len])
        }
    }
    for (name, bytes) in small_captures() {
        let slow = CaptureFile::read(OneByte(&bytes)).unwrap();
        assert_eq!(contents(&slow), contents(&read(&bytes).unwrap()), "{name}");
    }
}

#[test]
fn captures_larger_than_the_buffer() {
    let many: Vec<Packet> = (0..3000u64)
        .map(|n| Packet { timestamp_ns: n * 1_000, orig_len: 9000, data: vec![n as u8; n as usize % 1500] })
        .collect();
    let bytes = BIG.pcap(false, &many);
    assert!(bytes.len() > 2_000_000);
    assert_eq!(contents(&read(&bytes).unwrap()), many);
    let mut reader = CaptureReader::new(&bytes[..]).unwrap();
    for packet in &many {
        let frame = reader.receive().unwrap().unwrap();
        assert_eq!((frame.timestamp_ns, frame.data), (packet.timestamp_ns, &packet.data[..]));
    }
    assert!(reader.receive().unwrap().is_none());
    assert!(reader.receive().unwrap().is_none(), "the end stays the end");
}

#[test]
fn errors_name_the_place_and_the_cause() {
    let text = |bytes: &[u8]| damage(bytes).to_string();
    let header = LITTLE.pcap_header(false, 1);
    assert_eq!(text(b""), "record 0 at byte 0: the file is empty");
    assert_eq!(
        text(b"recirc_id(0),in_port(1)"),
        "record 0 at byte 0: not a pcap or pcapng capture: it begins with 72656369"
    );
    assert_eq!(
        text(&LITTLE.pcap_header(true, 101)),
        "record 0 at byte 0: interface 0 has link type 0x65, only Ethernet (1) is supported"
    );
    // Frames with a frame check sequence of 4 bytes: the bits are in the upper half of the link type.
    assert!(matches!(damage(&BIG.pcap_header(true, 0x2400_0001)).cause, Cause::LinkType { .. }));
    let mut old = header.clone();
    old[4..8].copy_from_slice(&[1, 0, 2, 0]);
    assert_eq!(text(&old), "record 0 at byte 0: version 1.2 of the format is not supported");
    assert_eq!(
        text(&header[..23]),
        "record 0 at byte 0: cut off: the record has 24 bytes or more, the file ends after 23 of them"
    );

    let good = LITTLE.pcap(false, &packets()[..2]);
    let long = [&good[..], &[0; 8], &[1, 0, 4, 0], &[0; 4]].concat();
    let at = good.len();
    assert_eq!(text(&long), format!("record 3 at byte {at}: a length of 262145 bytes, the limit is 262144"));

    let ng = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let at = ng.len();
    let with = |block: Vec<u8>| text(&[&ng[..], &block].concat());
    assert_eq!(
        with(LITTLE.enhanced(1, 0, 1, b"x")),
        format!("record 2 at byte {at}: a packet of interface 1, the section has described 1")
    );
    let block = |length: u32| [&LITTLE.n32(6)[..], &LITTLE.n32(length), &[0; 8]].concat();
    for length in [0, 8, 11, 13] {
        assert_eq!(
            with(block(length)),
            format!(
                "record 2 at byte {at}: a block length of {length} bytes, which is below 12 or no multiple of 4"
            )
        );
    }
    assert_eq!(
        with(block(0xffff_fffc)),
        format!("record 2 at byte {at}: a length of 4294967292 bytes, the limit is 16777216")
    );
    let mut trailer = LITTLE.enhanced(0, 0, 1, b"x");
    *trailer.last_mut().unwrap() = 1;
    assert_eq!(
        with(trailer),
        format!("record 2 at byte {at}: the block's length is 36 at its beginning and 16777252 at its end")
    );
    let mut caplen = LITTLE.enhanced(0, 0, 1, b"x");
    caplen[20] = 5;
    assert_eq!(
        with(caplen),
        format!("record 2 at byte {at}: a block of type 0x00000006 whose contents are malformed")
    );
    let mut magic = LITTLE.section();
    magic[8] = 0;
    assert_eq!(
        with(magic),
        format!("record 2 at byte {at}: byte-order magic 0x003c2b1a of a section header")
    );
    let mut version = BIG.section();
    version[13] = 9;
    assert_eq!(with(version), format!("record 2 at byte {at}: version 9.0 of the format is not supported"));
    let other = [LITTLE.section(), LITTLE.interface(113, 0, &[]), LITTLE.enhanced(0, 0, 1, b"x")].concat();
    assert!(matches!(damage(&other).cause, Cause::LinkType { interface: 0, link_type: 113 }));
    let simple = [LITTLE.section(), LITTLE.simple(1, b"x")].concat();
    assert!(matches!(damage(&simple).cause, Cause::UnknownInterface { interface: 0, described: 0 }));
}

#[test]
fn a_missing_file_is_an_error_of_the_system() {
    let error = CaptureFile::open("/nonexistent/capture.pcap").unwrap_err();
    assert!(matches!(error.cause, Cause::Io(_)), "{error}");
}

#[test]
fn what_is_written_is_what_the_format_says() {
    let mut writer = PcapWriter::new(Vec::new(), Resolution::Nano).unwrap();
    for packet in packets() {
        let Packet { timestamp_ns, orig_len, data } = &packet;
        let frame =
            Frame { timestamp_ns: *timestamp_ns, interface: 3, orig_len: *orig_len, ..Frame::new(data) };
        writer.write(frame).unwrap();
    }
    let mut expected = LITTLE.pcap(true, &packets());
    expected[16..20].copy_from_slice(&262_144u32.to_le_bytes());
    assert_eq!(writer.finish().unwrap(), expected);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let mut writer = PcapWriter::new(Vec::new(), Resolution::Micro).unwrap();
    let late = Frame { timestamp_ns: 4_294_967_296_000_000_000, ..Frame::new(b"late") };
    assert!(matches!(writer.write(late), Err(PortError::Time { .. })));
    assert!(matches!(writer.write(Frame::new(&vec![0; 262_145])), Err(PortError::TooLong { len: 262_145 })));
    assert_eq!(writer.finish().unwrap().len(), 24, "nothing was written of either");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/packets").join(name)
}

/// The recorder writes the same packets in three forms.
#[test]
fn recorded_captures_agree_in_all_forms() {
    let [micro, nano, ng] =
        ["odd.pcap", "odd.ns.pcap", "odd.pcapng"].map(|name| CaptureFile::open(fixture(name)).unwrap());
    assert!(micro.len() > 70, "{} packets", micro.len());
    assert_eq!(ng.interfaces().iter().map(|i| i.name.as_deref()).collect::<Vec<_>>(), [Some("p1")]);
    assert_eq!(contents(&nano), contents(&ng));
    let cut = |packet: Packet| Packet { timestamp_ns: packet.timestamp_ns / 1000 * 1000, ..packet };
    assert_eq!(contents(&micro), contents(&nano).into_iter().map(cut).collect::<Vec<_>>());
    assert!(micro.frames().all(|f| f.data.len() == f.orig_len as usize && f.data.len() >= 14));
}

/// The bundled capture names the port of each packet, in order of arrival.
#[test]
fn the_bundled_capture_names_its_ports() {
    let capture = CaptureFile::open(fixture("bundled.pcapng")).unwrap();
    assert!(capture.damage().is_none());
    let names: Vec<_> = capture.interfaces().iter().filter_map(|i| i.name.as_deref()).collect();
    assert_eq!(names, ["p1", "p2", "p3", "p4", "p5", "p6"]);
    assert!(capture.len() > 2000, "{} packets", capture.len());
    for interface in 0..6 {
        assert!(capture.frames().any(|f| f.interface == interface), "no packet on interface {interface}");
    }
    assert!(capture.frames().map(|f| f.timestamp_ns).is_sorted());
    assert_eq!(capture.total_bytes(), capture.frames().map(|f| f.data.len()).sum::<usize>());
}
