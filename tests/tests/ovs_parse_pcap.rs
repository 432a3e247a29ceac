//! Keys against Debian's `ovs-ofctl parse-pcap`, a released Open vSwitch: it prints each packet of a capture as an
//! OpenFlow flow, which is read here field by field into a key. Needs the package openvswitch-common (tests/run ovs).

mod cut_off;

use cut_off::promised_beyond_end;
use flowlift_flow::key::{ETH_TYPE_NONE, eth_type, ip_proto};
use flowlift_flow::text::key_text;
use flowlift_flow::{Frag, Key, MacAddr, Metadata};
use flowlift_port::capture::Resolution;
use flowlift_port::{CaptureFile, PcapWriter};
use flowlift_softpath::extract::extract_key;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

fn packets_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets")
}

/// Ethernet type and IP protocol that the first word of a flow stands for.
fn shorthand(word: &str) -> Option<(u16, u8)> {
    let (v4, v6) = (eth_type::IPV4, eth_type::IPV6);
    Some(match word {
        "ip" => (v4, 0),
        "tcp" => (v4, ip_proto::TCP),
        "udp" => (v4, ip_proto::UDP),
        "sctp" => (v4, ip_proto::SCTP),
        "icmp" => (v4, ip_proto::ICMP),
        "ipv6" => (v6, 0),
        "tcp6" => (v6, ip_proto::TCP),
        "udp6" => (v6, ip_proto::UDP),
        "sctp6" => (v6, ip_proto::SCTP),
        "icmp6" => (v6, ip_proto::ICMPV6),
        "arp" => (eth_type::ARP, 0),
        "rarp" => (eth_type::RARP, 0),
        "mpls" => (eth_type::MPLS, 0),
        "mplsm" => (eth_type::MPLS_MCAST, 0),
        _ => return None,
    })
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn mac(text: &str) -> MacAddr {
    let mut bytes = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("a byte of a MAC address"));
    std::array::from_fn(|_| bytes.next().expect("six bytes of a MAC address"))
}

fn ipv4(text: &str) -> u32 {
    text.parse::<Ipv4Addr>().unwrap_or_else(|e| panic!("{text}: {e}")).to_bits()
}

fn ipv6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap_or_else(|e| panic!("{text}: {e}")).octets()
}

fn tcp_flags(text: &str) -> u16 {
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];
    let bit = |name| 1 << names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("TCP flag {name}"));
    if text == "0" { 0 } else { text.split('|').map(bit).sum() }
}

/// The key that a flow stands for. The text has no TPIDs: a tag's is 1.
fn key_of(flow: &str) -> Key {
    let mut key = Key { eth_type: ETH_TYPE_NONE.into(), ..Key::default() };
    for field in flow.split(',') {
        let Some((name, value)) = field.split_once('=') else {
            let (eth_type, proto) = shorthand(field).unwrap_or_else(|| panic!("{field} in {flow}"));
            key.eth_type = eth_type.into();
            key.ip_proto = proto;
            continue;
        };
        set(&mut key, name, value).unwrap_or_else(|| panic!("field {field} in {flow}"));
    }
    key
}

fn set(key: &mut Key, name: &str, value: &str) -> Option<()> {
    let bits = |key: &mut Key, entry: usize, shift: u32| {
        key.mpls[entry] = (key.mpls[entry].get() | (number(value) as u32) << shift).into();
    };
    let tag = |key: &mut Key, level: usize, tci: u16| {
        let vlan = &mut key.vlan[level];
        (vlan.tpid, vlan.tci) = (1.into(), (vlan.tci.get() | 0x1000 | tci).into());
    };
    match name {
        "in_port" => {}
        "dl_src" => key.eth_src = mac(value),
        "dl_dst" => key.eth_dst = mac(value),
        "dl_type" => key.eth_type = (number(value) as u16).into(),
        "vlan_tci" | "vlan_tci1" => assert_eq!(number(value), 0, "{name} is only printed without a tag"),
        "dl_vlan" => tag(key, 0, number(value) as u16),
        "dl_vlan_pcp" => tag(key, 0, (number(value) as u16) << 13),
        "dl_vlan1" => tag(key, 1, number(value) as u16),
        "dl_vlan_pcp1" => tag(key, 1, (number(value) as u16) << 13),
        "nw_src" | "arp_spa" => key.ipv4_src = ipv4(value).into(),
        "nw_dst" | "arp_tpa" => key.ipv4_dst = ipv4(value).into(),
        "ipv6_src" => key.ipv6_src = ipv6(value),
        "ipv6_dst" => key.ipv6_dst = ipv6(value),
        "ipv6_label" => key.ipv6_label = (number(value) as u32).into(),
        "nw_proto" | "arp_op" => key.ip_proto = number(value) as u8,
        "nw_tos" | "nw_ecn" => key.ip_tos |= number(value) as u8,
        "nw_ttl" => key.ip_ttl = number(value) as u8,
        "nw_frag" => {
            key.ip_frag = match value {
                "no" => Frag::No,
                "first" => Frag::First,
                "later" => Frag::Later,
                _ => return None,
            } as u8;
        }
        "tp_src" | "icmp_type" => key.tp_src = (number(value) as u16).into(),
        "tp_dst" | "icmp_code" => key.tp_dst = (number(value) as u16).into(),
        "tcp_flags" => key.tcp_flags = tcp_flags(value).into(),
        "arp_sha" | "nd_sll" => key.arp_sha = mac(value),
        "arp_tha" | "nd_tll" => key.arp_tha = mac(value),
        "nd_target" => key.nd_target = ipv6(value),
        "mpls_label" => bits(key, 0, 12),
        "mpls_tc" => bits(key, 0, 9),
        "mpls_bos" => bits(key, 0, 8),
        "mpls_ttl" => bits(key, 0, 0),
        "mpls_lse1" => bits(key, 1, 0),
        "mpls_lse2" => bits(key, 2, 0),
        "nsh_flags" => key.nsh_flags = number(value) as u8,
        "nsh_ttl" => key.nsh_ttl = number(value) as u8,
        "nsh_mdtype" => key.nsh_mdtype = number(value) as u8,
        "nsh_np" => key.nsh_np = number(value) as u8,
        "nsh_spi" => key.nsh_path_hdr = (key.nsh_path_hdr.get() | (number(value) as u32) << 8).into(),
        "nsh_si" => key.nsh_path_hdr = (key.nsh_path_hdr.get() | number(value) as u32).into(),
        "nsh_c1" | "nsh_c2" | "nsh_c3" | "nsh_c4" => {
            key.nsh_context[usize::from(name.as_bytes()[5] - b'1')] = (number(value) as u32).into();
        }
        _ => return None,
    }
    Some(())
}

/// What both keys can say: OpenFlow text has no metadata of ours, no TPIDs, no bitmap of extension headers, and gives
/// ports to protocols (IGMP, ICMP over IPv6) that have none in a datapath's key.
fn comparable(mut key: Key) -> Key {
    key.in_port = 0;
    key.ipv6_exthdrs = 0;
    key.vlan.iter_mut().filter(|tag| tag.tpid.get() != 0).for_each(|tag| tag.tpid = 1.into());
    let has_ports = match key.ip_proto {
        ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP => key.is_ip(),
        ip_proto::ICMP => key.eth_type.get() == eth_type::IPV4,
        ip_proto::ICMPV6 => key.eth_type.get() == eth_type::IPV6,
        _ => false,
    };
    if !has_ports {
        (key.tp_src, key.tp_dst) = (0.into(), 0.into());
    }
    key
}

/// The flows that parse-pcap prints for a capture, one per packet.
fn flows(capture: &Path) -> Vec<String> {
    let output = Command::new("ovs-ofctl")
        .arg("parse-pcap")
        .arg(capture)
        .output()
        .unwrap_or_else(|e| panic!("ovs-ofctl: {e}; install openvswitch-common (tests/run ovs does)"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ovs-ofctl parse-pcap {}: {err}", capture.display());
    out.lines().map(str::to_owned).collect()
}

/// Compares every packet of a capture; gives the number of packets, and how many of them are cut off.
fn compare(path: &Path) -> (usize, usize) {
    let capture = CaptureFile::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // parse-pcap reads classic pcap only, so that is what it gets.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let classic = directory.path().join("frames.pcap");
    let mut writer = PcapWriter::create(&classic, Resolution::Micro).expect("a capture to write");
    capture.frames().for_each(|frame| writer.write(frame).expect("a frame written"));
    writer.finish().expect("a capture written");

    let flows = flows(&classic);
    assert_eq!(flows.len(), capture.len(), "{}: a flow for each packet", path.display());
    let (mut wrong, mut cut_off) = (Vec::new(), 0);
    for ((number, frame), flow) in (1..).zip(capture.frames()).zip(&flows) {
        let ours = comparable(extract_key(frame.data, &Metadata::default()));
        let theirs = comparable(key_of(flow));
        if promised_beyond_end(frame.data) > 0 {
            // The kernel's way, not user space's: see `cut_off`. What OVS leaves empty is all that may differ.
            assert_eq!((theirs.ip_proto, theirs.ip_ttl), (0, 0), "packet {number}: {flow}");
            assert_eq!((ours.eth_type, ours.vlan), (theirs.eth_type, theirs.vlan), "packet {number}: {flow}");
            cut_off += 1;
        } else if ours != theirs {
            wrong.push(format!(
                "packet {number}: OVS says {flow}\n  of OVS {}\n  of us  {}",
                key_text(&theirs),
                key_text(&ours)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}: {} of {} differ\n{}",
        path.display(),
        wrong.len(),
        flows.len(),
        wrong.join("\n")
    );
    (flows.len(), cut_off)
}

#[test]
fn well_formed_oracle_frames_have_the_keys_of_a_released_ovs() {
    assert_eq!(compare(&packets_directory().join("oracle/well-formed.pcap")), (600, 0));
}

#[test]
fn recorded_captures_have_the_keys_of_a_released_ovs() {
    let mut compared = Vec::new();
    for entry in packets_directory().read_dir().expect("the fixtures' directory") {
        let path = entry.expect("a directory entry").path();
        if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng") {
            compared.push((compare(&path), path));
        }
    }
    assert!(compared.len() >= 10, "only {} captures in {}", compared.len(), packets_directory().display());
    let (packets, cut_off) =
        compared.iter().fold((0, 0), |(packets, cut_off), ((p, c), _)| (packets + p, cut_off + c));
    assert!(packets > 1_000, "only {packets} packets in {compared:?}");
    assert!(cut_off < packets / 50, "{cut_off} of {packets} packets are cut off: {compared:?}");
}
