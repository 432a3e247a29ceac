//! Every recorded dump, and OVS's own keys, parsed and printed: character by character what Open vSwitch printed.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which the lint takes for other code"
)]

use flowlift_flow::text::{
    DumpReader, MatchText, NoNames, PortMap, PortNames, PrintOptions, key_text, parse_key, parse_match,
};
use flowlift_flow::{AttrSet, PortNo, action};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/flows")
}

/// The recorded dumps: every text file, with the port names that belong to it.
fn dumps() -> Vec<(PathBuf, String, PortMap)> {
    let mut files: Vec<_> = std::fs::read_dir(fixtures())
        .expect("fixtures/flows exists")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 4, "fixtures/flows has the recorded dumps, but only {files:?}");
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a readable dump");
            let scenario = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next());
            let ports = fixtures().join(format!("{}.ports", scenario.expect("a file name")));
            // The dummy datapath's ports are called after their numbers.
            let dummy: String = (1..=9).map(|n| format!("p{n}={n}\n")).collect();
            let names = std::fs::read_to_string(ports).unwrap_or(dummy);
            let map = names
                .lines()
                .filter_map(|l| l.split_once('='))
                .map(|(name, number)| (name, PortNo(number.trim().parse().expect("a port number"))))
                .collect();
            (path, text, map)
        })
        .collect()
}

#[test]
fn r12_recorded_dumps_print_as_they_were_read() {
    let mut flows = 0;
    let mut wrong = Vec::new();
    for (path, text, map) in dumps() {
        let has_names = path.to_string_lossy().contains("names")
            && !path.to_string_lossy().contains("no-names")
            || path.to_string_lossy().ends_with(".m.txt");
        let mut reader = DumpReader::new(&map);
        for line in text.lines() {
            match reader.line(line) {
                Ok(Some(flow)) => {
                    flows += 1;
                    let names: Option<&dyn PortNames> = if has_names { Some(&map) } else { None };
                    let printed = flow.text(names).to_string();
                    if printed != line {
                        wrong.push(format!(
                            "{}:{}\n  read    {line}\n  printed {printed}",
                            path.display(),
                            reader.lines()
                        ));
                    }
                }
                Ok(None) => {}
                Err(error) => wrong.push(format!("{}: {error}\n  read    {line}", path.display())),
            }
        }
    }
    assert!(flows > 0, "the dumps hold flows");
    assert!(wrong.is_empty(), "{} of {flows} flows differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Keys of the packets in a capture, as Open vSwitch 4.0 extracted and printed them.
fn oracle(set: &str) -> Vec<String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/packets/oracle/{set}.keys"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let keys: Vec<String> =
        text.lines().filter_map(|line| Some(line.split('\t').nth(1)?.to_owned())).collect();
    assert!(keys.len() >= 300, "{}: only {} keys", path.display(), keys.len());
    keys
}

#[test]
fn r12_keys_of_open_vswitch_print_as_they_were_read() {
    for set in ["well-formed", "damaged"] {
        for text in oracle(set) {
            let (key, attrs) = parse_key(&text).unwrap_or_else(|e| panic!("{set}: {e}\n{text}"));
            assert_eq!(key_text(&key).to_string(), text, "{set}");
            let of = AttrSet::of(&key);
            assert_eq!(of, attrs, "{set}: the attributes of a key are those that OVS prints\n{text}");
        }
    }
}

#[test]
fn r39_attributes_in_any_order_compose_the_same_text() {
    for text in oracle("well-formed").iter().take(50) {
        let mut parts = split_top_level(text);
        parts.reverse();
        let (forwards, _) = parse_match(text, &NoNames).expect("a key");
        let (backwards, order) = parse_match(&parts.join(","), &NoNames).expect("a key in another order");
        assert_eq!(forwards, backwards, "R38: order does not matter\n{text}");
        let options = PrintOptions { names: None, verbose: true };
        let print = |order| MatchText { matching: &backwards, order, options }.to_string();
        assert_eq!(print(None), *text);
        assert_eq!(print(Some(&order)), parts.join(","));
    }
}

/// Attributes of the outermost level.
fn split_top_level(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[test]
fn u8_actions_that_ovs_vswitchd_installed_pass_validation() {
    let mut checked = 0;
    // The dummy datapath's flows were put in by hand, in every form that parses, sense or not.
    for (path, text, map) in dumps() {
        let by_hand = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("dummy-"));
        let mut reader = DumpReader::new(&map);
        for line in text.lines() {
            let Ok(Some(dump)) = reader.line(line) else { continue };
            let flow = &dump.flow;
            assert_eq!(flow.matching.validate(), Ok(()), "{}: {line}", path.display());
            if !by_hand {
                checked += 1;
                let result = action::validate(&flow.actions, &flow.matching);
                assert_eq!(result, Ok(()), "{}: {line}", path.display());
            }
        }
    }
    assert!(checked > 100, "only {checked} flows of ovs-vswitchd");
}
