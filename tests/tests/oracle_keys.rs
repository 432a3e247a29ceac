//! Keys against Open vSwitch 4.0's own: fixtures/packets/oracle holds frames, and for each the key that its
//! `flow_extract` and `odp_flow_key_from_flow` gave, as text and as Netlink attributes.

mod cut_off;

use cut_off::promised_beyond_end;
use flowlift_flow::text::{key_text, parse_key};
use flowlift_flow::{Key, Metadata};
use flowlift_ovs::key::{Form, decode_key, key_hex};
use flowlift_port::CaptureFile;
use flowlift_softpath::extract::extract_key;
use std::fmt::Write;
use std::path::PathBuf;

/// A frame and its key as Open vSwitch gives it.
struct Packet {
    number: usize,
    frame: Vec<u8>,
    text: String,
    tlv: String,
}

fn oracle(set: &str) -> Vec<Packet> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets/oracle");
    let capture = CaptureFile::open(directory.join(format!("{set}.pcap"))).expect("the oracle's capture");
    let keys = std::fs::read_to_string(directory.join(format!("{set}.keys"))).expect("the oracle's keys");
    assert_eq!(keys.lines().count(), capture.len(), "{set}: a key for each frame");
    let packet = |(line, frame): (&str, flowlift_port::Frame<'_>)| {
        let mut columns = line.split('\t').map(str::to_owned);
        let mut column = || columns.next().expect("three columns");
        let number = column().parse().expect("a packet number");
        Packet { number, frame: frame.data.to_vec(), text: column(), tlv: column() }
    };
    keys.lines().zip(capture.frames()).map(packet).collect()
}

fn extracted(packet: &Packet) -> Key {
    extract_key(&packet.frame, &Metadata { in_port: 1, ..Metadata::default() })
}

/// A line per packet whose key is not Open vSwitch's.
fn differences(packets: &[Packet]) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for packet in packets {
        let key = extracted(packet);
        let (text, tlv) = (key_text(&key).to_string(), key_hex(&key));
        let mut report = String::new();
        for (what, ours, theirs) in [("text", &text, &packet.text), ("attributes", &tlv, &packet.tlv)] {
            if ours != theirs {
                let _ = write!(report, "\n  {what} of OVS {theirs}\n  {what} of us  {ours}");
            }
        }
        if !report.is_empty() {
            out.push((packet.number, format!("packet {}:{report}", packet.number)));
        }
    }
    out
}

#[test]
fn well_formed_keys_are_those_of_open_vswitch_in_text_and_bytes() {
    let packets = oracle("well-formed");
    assert_eq!(packets.len(), 600);
    let found = differences(&packets);
    let reports: Vec<_> = found.iter().map(|(_, report)| report.as_str()).collect();
    assert!(found.is_empty(), "{} of 600 differ\n{}", found.len(), reports.join("\n"));
}

/// Damaged packets whose IPv4 total length is more than the frame has: [`cut_off`] says why their keys differ.
const IPV4_CUT_OFF: &[usize] = &[14, 19, 42, 60, 75, 77, 101, 104, 152, 187, 232, 239, 240, 271];
/// The same with the payload length of IPv6, for the same reason.
const IPV6_CUT_OFF: &[usize] =
    &[3, 22, 28, 38, 50, 92, 139, 154, 157, 172, 222, 231, 242, 254, 268, 275, 282];

#[test]
fn damaged_keys_differ_from_open_vswitch_only_where_a_packet_is_cut_off() {
    let packets = oracle("damaged");
    assert_eq!(packets.len(), 300);
    let found = differences(&packets);
    let mut explained: Vec<_> = IPV4_CUT_OFF.iter().chain(IPV6_CUT_OFF).copied().collect();
    explained.sort_unstable();
    let unexplained: Vec<_> =
        found.iter().filter(|(n, _)| !explained.contains(n)).map(|(_, r)| r.as_str()).collect();
    assert!(unexplained.is_empty(), "unexplained differences\n{}", unexplained.join("\n"));
    let differing: Vec<_> = found.iter().map(|(n, _)| *n).collect();
    assert_eq!(differing, explained, "the list of explained differences is not what differs");

    for packet in packets.iter().filter(|p| explained.contains(&p.number)) {
        assert!(promised_beyond_end(&packet.frame) > 0, "packet {} is not cut off", packet.number);
        // Nothing but L3 and what follows differs, and OVS's L3 is the empty one.
        let name = if IPV4_CUT_OFF.contains(&packet.number) { "ipv4(" } else { "ipv6(" };
        let (before, after) = packet.text.split_once(name).expect("an IP attribute");
        let ours = key_text(&extracted(packet)).to_string();
        assert!(ours.starts_with(&format!("{before}{name}")), "packet {}: {ours}", packet.number);
        assert!(
            after.starts_with("src=0.0.0.0,") || after.starts_with("src=::,"),
            "packet {}: {after}",
            packet.number
        );
    }
}

#[test]
fn r05_text_attributes_and_extraction_are_one_key() {
    for packet in oracle("well-formed").iter().chain(&oracle("damaged")) {
        let key = extracted(packet);
        let (from_text, _) = parse_key(&key_text(&key).to_string())
            .unwrap_or_else(|e| panic!("packet {}: {e}\n{}", packet.number, key_text(&key)));
        let bytes: Vec<u8> = (0..key_hex(&key).len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&key_hex(&key)[i..i + 2], 16).expect("hex"))
            .collect();
        let (from_bytes, _) =
            decode_key(&bytes, Form::UserSpace).unwrap_or_else(|e| panic!("packet {}: {e}", packet.number));
        // Neither form carries the bitmap of extension headers, nor tells an 802.2 frame from one without a type.
        let carried = Key { ipv6_exthdrs: 0, ..key };
        assert_eq!(
            key_text(&from_bytes).to_string(),
            key_text(&carried).to_string(),
            "packet {}",
            packet.number
        );
        assert_eq!(from_bytes, carried, "packet {}", packet.number);
        assert_eq!(key_hex(&from_text), key_hex(&carried), "packet {}", packet.number);
    }
}
