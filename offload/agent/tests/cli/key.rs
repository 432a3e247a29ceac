//! `flowlift key` against the keys that Open vSwitch itself extracted.

use crate::common::{fixture, succeeds};

/// Frames of the damaged set that are cut off, whose keys differ for the reasons that `tests/tests/oracle_keys.rs` checks.
const CUT_OFF: [usize; 31] = [
    3, 14, 19, 22, 28, 38, 42, 50, 60, 75, 77, 92, 101, 104, 139, 152, 154, 157, 172, 187, 222, 231, 232,
    239, 240, 242, 254, 268, 271, 275, 282,
];

/// Numbers of the packets whose line differs in any of the first `columns` columns.
fn differing(set: &str, options: &[&str], columns: usize) -> Vec<usize> {
    let pcap = fixture(&format!("packets/oracle/{set}.pcap"));
    let keys =
        std::fs::read_to_string(fixture(&format!("packets/oracle/{set}.keys"))).expect("the oracle's keys");
    let args: Vec<&str> =
        ["key", "--pcap", pcap.to_str().expect("UTF-8")].into_iter().chain(options.iter().copied()).collect();
    let printed = succeeds(&args);
    assert_eq!(printed.lines().count(), keys.lines().count(), "{set}: a line per packet");
    let mut out = Vec::new();
    for (n, (ours, theirs)) in printed.lines().zip(keys.lines()).enumerate() {
        let theirs: Vec<&str> = theirs.split('\t').take(columns).collect();
        assert_eq!(ours.split('\t').count(), columns, "{set}: columns of {ours}");
        assert_eq!(ours.split('\t').next(), Some((n + 1).to_string().as_str()));
        if ours != theirs.join("\t") {
            out.push(n + 1);
        }
    }
    out
}

#[test]
fn well_formed_keys_are_those_of_open_vswitch_to_the_letter() {
    assert_eq!(differing("well-formed", &[], 2), Vec::<usize>::new());
    assert_eq!(differing("well-formed", &["--in-port", "1", "--tlv"], 3), Vec::<usize>::new());
}

#[test]
fn damaged_keys_differ_only_where_a_packet_is_cut_off() {
    assert_eq!(differing("damaged", &["--tlv"], 3), CUT_OFF);
}

#[test]
fn in_port_is_part_of_the_key() {
    let pcap = fixture("packets/oracle/well-formed.pcap");
    let out = succeeds(&["key", "--pcap", pcap.to_str().expect("UTF-8"), "--in-port", "77"]);
    assert!(out.lines().all(|line| line.contains("in_port(77)")), "{out}");
}
