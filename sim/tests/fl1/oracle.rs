//! The parser against keys that Open vSwitch extracted (fixtures/packets/oracle): a packet that FL1 parses has exactly
//! the key that OVS gave it, because a false hit is the worst bug there is.

use flowlift_port::CaptureFile;
use flowlift_sim::{Field, Parsed, parse};
use std::path::PathBuf;

/// Frames with OVS's key from `eth(` on.
fn frames(set: &str) -> Vec<(Vec<u8>, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets/oracle");
    let capture = CaptureFile::open(dir.join(format!("{set}.pcap"))).unwrap();
    let keys = std::fs::read_to_string(dir.join(format!("{set}.keys"))).unwrap();
    let keys = keys.lines().map(|l| {
        let text = l.split('\t').nth(1).unwrap();
        text[text.find("eth(").unwrap()..].to_owned()
    });
    let frames: Vec<_> = capture.frames().map(|f| f.data.to_vec()).zip(keys).collect();
    assert_eq!(frames.len(), capture.len());
    frames
}

fn mac(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

fn v4(b: &[u8]) -> String {
    std::net::Ipv4Addr::new(b[0], b[1], b[2], b[3]).to_string()
}

fn v6(b: &[u8]) -> String {
    std::net::Ipv6Addr::from(<[u8; 16]>::try_from(b).unwrap()).to_string()
}

fn num(b: &[u8]) -> u64 {
    b.iter().fold(0, |v, b| v << 8 | u64::from(*b))
}

fn hex_or_0(v: u64) -> String {
    if v == 0 { "0".into() } else { format!("{v:#x}") }
}

/// OVS's names of the twelve TCP flags, bit 0 first.
const FLAGS: [&str; 12] =
    ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];

/// FL1's fields in OVS's text form.
fn text(p: &Parsed) -> String {
    let k = |f| p.key.get(f);
    let mut t = format!("eth(src={},dst={})", mac(k(Field::EthSrc)), mac(k(Field::EthDst)));
    let mut depth = 0;
    for (tpid, tci) in [(Field::Vlan0Tpid, Field::Vlan0Tci), (Field::Vlan1Tpid, Field::Vlan1Tci)] {
        if num(k(tpid)) != 0 {
            let tci = num(k(tci));
            assert_ne!(tci & 0x1000, 0, "a tag is there");
            t += &format!(
                ",eth_type(0x{:04x}),vlan(vid={},pcp={}),encap(",
                num(k(tpid)),
                tci & 0xfff,
                tci >> 13
            );
            depth += 1;
        }
    }
    let t = t.replace("encap(,", "encap(");
    let ty = num(k(Field::EthType));
    let sep = if t.ends_with('(') { "" } else { "," };
    let mut t = format!("{t}{sep}eth_type(0x{ty:04x})");
    let (proto, tos, ttl) = (num(k(Field::IpProto)), num(k(Field::IpTos)), num(k(Field::IpTtl)));
    match ty {
        0x0800 => {
            t += &format!(
                ",ipv4(src={},dst={},proto={proto},tos={},ttl={ttl},frag=no)",
                v4(k(Field::Ipv4Src)),
                v4(k(Field::Ipv4Dst)),
                hex_or_0(tos)
            );
        }
        0x86dd => {
            t += &format!(
                ",ipv6(src={},dst={},label={},proto={proto},tclass={},hlimit={ttl},frag=no)",
                v6(k(Field::Ipv6Src)),
                v6(k(Field::Ipv6Dst)),
                hex_or_0(num(k(Field::Ipv6Label))),
                hex_or_0(tos)
            );
        }
        0x0806 => {
            t += &format!(
                ",arp(sip={},tip={},op={},sha={},tha={})",
                v4(k(Field::ArpSpa)),
                v4(k(Field::ArpTpa)),
                num(k(Field::ArpOp)),
                mac(k(Field::ArpSha)),
                mac(k(Field::ArpTha))
            );
        }
        _ => {}
    }
    let (src, dst) = (num(k(Field::L4Src)), num(k(Field::L4Dst)));
    match (ty, proto) {
        (0x0800 | 0x86dd, 6) => {
            let flags = num(k(Field::TcpFlags));
            let names: Vec<_> = (0..12).filter(|b| flags >> b & 1 == 1).map(|b| FLAGS[b]).collect();
            let names = if names.is_empty() { "0".to_owned() } else { names.join("|") };
            t += &format!(",tcp(src={src},dst={dst}),tcp_flags({names})");
        }
        (0x0800 | 0x86dd, 17) => t += &format!(",udp(src={src},dst={dst})"),
        (0x0800 | 0x86dd, 132) => t += &format!(",sctp(src={src},dst={dst})"),
        (0x0800, 1) => t += &format!(",icmp(type={src},code={dst})"),
        (0x86dd, 58) => t += &format!(",icmpv6(type={src},code={dst})"),
        _ => {}
    }
    t + &")".repeat(depth)
}

#[test]
fn what_is_parsed_has_the_key_that_ovs_extracts() {
    for (set, at_least) in [("well-formed", 140), ("damaged", 20)] {
        let mut parsed = 0;
        for (i, (frame, key)) in frames(set).iter().enumerate() {
            if let Ok(p) = parse(frame) {
                parsed += 1;
                assert_eq!(&text(&p), key, "{set} frame {}", i + 1);
            }
        }
        assert!(parsed >= at_least, "{set}: only {parsed} frames were parsed at all");
    }
}

#[test]
fn frames_cut_at_every_byte_never_panic_and_never_gain_a_transport_header() {
    for (frame, _) in frames("well-formed").iter().chain(&frames("damaged")) {
        let whole = parse(frame);
        for cut in 0..frame.len() {
            if let Ok(p) = parse(&frame[..cut]) {
                let w = whole.as_ref().unwrap_or_else(|_| panic!("cut at {cut} parses, whole does not"));
                assert_eq!(p.key, w.key, "cut at {cut}: {frame:02x?}");
            }
        }
    }
}
