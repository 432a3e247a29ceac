//! Every recorded dump, and OVS's own keys, parsed and printed: character by character what Open vSwitch printed.

use flowlift_flow::text::{
    DumpReader, NoNames, PortMap, PortNames, PrintOptions, key_text, parse_key, parse_match,
};
use flowlift_flow::{AttrSet, Match, PortNo};
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
            let names = std::fs::read_to_string(ports).unwrap_or_default();
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

fn oracle(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/oracle").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
