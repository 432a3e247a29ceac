//! What bad input gets: exit code 2, a message with place and cause, nothing half-loaded.

use crate::common::{
    FLOW, Folder, MICROSECONDS, Ran, experiment, fixture, flowlift, json, number, pcap, refuses,
};
use serde_json::Value;

fn replay<'a>(flows: &'a str, pcap: &'a str) -> Vec<&'a str> {
    vec!["replay", "--flows", flows, "--pcap", pcap]
}

/// A good dump and a good capture.
fn good(folder: &Folder) -> (String, String) {
    let frames: Vec<_> = (0..3).map(experiment).collect();
    (folder.write("good.txt", FLOW), folder.write("good.pcap", pcap(MICROSECONDS, &frames)))
}

#[test]
fn packets_before_the_damage_of_a_capture_are_replayed_and_the_damage_is_told() {
    let folder = Folder::new();
    let (flows, whole) = good(&folder);
    let whole = std::fs::read(whole).expect("the capture");
    // A file header of 24 bytes; per packet 16 bytes and a frame of 60.
    for (length, packets, place) in [(whole.len() - 1, 2, "176"), (24 + 76 + 8, 1, "100")] {
        let cut = folder.write("cut.pcap", &whole[..length]);
        let Ran { code, out, err } = flowlift(&[&replay(&flows, &cut)[..], &["--json"]].concat());
        assert_eq!(code, 2, "{err}");
        let report: Value = serde_json::from_str(&out).expect("a report all the same");
        assert_eq!(number(&report, "/packets/total"), packets);
        assert_eq!(number(&report, "/packets/hardware"), packets);
        for text in [err.as_str(), report["damage"].as_str().expect("the damage")] {
            assert!(text.contains("cut.pcap") && text.contains(place), "place {place}: {text}");
        }
        assert!(err.contains(&format!("the {packets} packets before it were replayed")), "{err}");

        let key = flowlift(&["key", "--pcap", &cut]);
        assert_eq!((key.code, key.out.lines().count() as u64), (2, packets), "{}", key.err);
        assert!(key.err.contains(place), "{}", key.err);
    }
    for length in [24 + 15, 24 + 16 + 59] {
        let cut = folder.write("none.pcap", &whole[..length]);
        refuses(&replay(&flows, &cut), &["none.pcap", "24"]);
    }
}

#[test]
fn captures_that_are_none_are_refused() {
    let folder = Folder::new();
    let (flows, _) = good(&folder);
    let text = folder.write("text.pcap", "this is no capture, it is a letter");
    let empty = folder.write("empty.pcap", "");
    let header = folder.write("header.pcap", pcap(MICROSECONDS, &[]));
    let directory = folder.path("");
    for (path, want) in [
        (&text, "text.pcap"),
        (&empty, "empty"),
        (&header, "no packet"),
        (&folder.path("missing.pcap"), "No such file"),
        (&directory, "directory"),
    ] {
        refuses(&replay(&flows, path), &[want]);
    }
    for path in [&text, &empty, &folder.path("missing.pcap"), &directory] {
        refuses(&["key", "--pcap", path], &["flowlift: /"]);
    }
}

#[test]
fn dumps_that_are_none_are_refused() {
    let folder = Folder::new();
    let (_, pcap) = good(&folder);
    let empty = folder.write("empty.txt", "");
    let header = folder.write("header.txt", "flow-dump from the main thread:\n");
    let binary = folder.write("binary.txt", [0xff, 0xfe, 0, 1]);
    for (path, want) in [
        (empty, "no flow in it"),
        (header, "no flow in it"),
        (binary, "line 1, column 1: not UTF-8"),
        (folder.path("missing.txt"), "No such file"),
        (folder.path(""), "directory"),
    ] {
        refuses(&replay(&path, &pcap), &[want]);
        refuses(&["explain", "--flows", &path], &[want]);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let (flows, pcap) = good(&folder);
    for path in [&flows, &pcap] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).expect("permissions");
        if std::fs::File::open(path).is_ok() {
            eprintln!("skipped: root reads every file; tests/cli/run tries it as a plain user");
            return;
        }
        refuses(&replay(&flows, &pcap), &["Permission denied", path]);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    }
}

#[test]
fn a_wrong_flow_refuses_the_dump_with_line_column_and_cause() {
    let folder = Folder::new();
    let (_, pcap) = good(&folder);
    for (line, wanted) in [
        ("in_port(1),in_port(1),eth_type(0x0806), actions:1", "in_port stands twice"),
        (
            "in_port(1),eth_type(0x0800),ipv4(src=1.2.3.4/999.0.0.0,frag=no), actions:1",
            "column 46: a byte of an IPv4 address out of range",
        ),
        ("in_port(1),eth_type(0x0800),ipv4(src=1.2.3.4/33,frag=no), actions:1", "column"),
        ("in_port(1),eth(src=02:00:00:00:00:01/zz), actions:1", "column"),
        ("in_port(p7),eth_type(0x0806), actions:1", "--ports p7=NUMBER"),
        ("in_port(1),eth_type(0x0806), actions:p8", "p8"),
        ("in_port(1),eth_type(0x0806)", "column"),
        ("in_port(1),eth_type(0x0806", "column"),
        ("in_port(99999999999999999999),eth_type(0x0806), actions:1", "column"),
    ] {
        let flows = folder.write("bad.txt", format!("{FLOW}\n{line}\n"));
        refuses(&replay(&flows, &pcap), &["bad.txt", "line 2", wanted]);
        refuses(&["explain", "--flows", &flows], &["bad.txt", "line 2", wanted]);
    }
}

#[test]
fn what_is_unknown_refuses_its_flow_alone_unless_strict() {
    let folder = Folder::new();
    let (_, pcap) = good(&folder);
    for (line, wanted) in [
        ("in_port(2),colour(7), actions:1", "colour"),
        ("in_port(2),eth_type(0x0806), actions:teleport(3)", "teleport"),
        ("in_port(2),eth_type(0x0800),ipv4(frag=no), actions:ct(commit),3", "ct"),
    ] {
        let flows = folder.write("unknown.txt", format!("{line}\n{FLOW}\n"));
        let report = json(&replay(&flows, &pcap));
        assert_eq!((number(&report, "/flows/refused"), number(&report, "/flows/hardware")), (1, 1), "{line}");
        assert_eq!(number(&report, "/packets/hardware"), 3, "the rest works: {line}");
        let refused = &report["refused"][0];
        assert_eq!(number(refused, "/line"), 1);
        assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains(wanted)), "{refused}");
        let strict = [&replay(&flows, &pcap)[..], &["--strict"]].concat();
        refuses(&strict, &["unknown.txt", "line 1", wanted, "--strict"]);
        refuses(&["explain", "--strict", "--flows", &flows], &["line 1", wanted]);
    }
}

#[test]
fn r22_the_later_of_overlapping_flows_is_refused_unless_strict() {
    let folder = Folder::new();
    let (_, pcap) = good(&folder);
    for (line, wanted) in [
        ("in_port(1),eth(src=02:00:00:00:00:01),eth_type(0x88b5), actions:3", "overlaps the flow of line 1"),
        ("recirc_id(0),in_port(1),eth_type(0x88b5), actions:3", "the same match"),
    ] {
        let flows = folder.write("overlap.txt", format!("{FLOW}\n{line}\n"));
        let report = json(&[&replay(&flows, &pcap)[..], &["--check"]].concat());
        assert_eq!((number(&report, "/flows/total"), number(&report, "/flows/refused")), (2, 1), "{line}");
        assert_eq!(number(&report["refused"][0], "/line"), 2);
        assert!(report["refused"][0]["reason"].as_str().is_some_and(|r| r.contains(wanted)), "{report:#}");
        assert_eq!(report["outputs"][0]["to"], "2", "the earlier one has the packets");
        assert_eq!(number(&report, "/check/differences"), 0);
        refuses(&[&replay(&flows, &pcap)[..], &["--strict"]].concat(), &["line 2", wanted, "--strict"]);
    }
}

#[test]
fn unknown_ports_are_refused() {
    let folder = Folder::new();
    let (flows, pcap) = good(&folder);
    let with = |options: &[&'static str]| -> Vec<String> {
        replay(&flows, &pcap).iter().chain(options).map(|arg| (*arg).to_owned()).collect()
    };
    for (options, wanted) in [
        (&["--in-port", "p9"][..], "unknown port 'p9'"),
        (&["--in-port", "70000"], "70000"),
        (&["--ports", "p1"], "NAME=NUMBER"),
        (&["--ports", "p1=x"], "'x' is not a port number"),
        (&["--ports", "p1=1,p1=2"], "given twice"),
    ] {
        let args = with(options);
        refuses(&args.iter().map(String::as_str).collect::<Vec<_>>(), &[wanted]);
    }
    let capture = fixture("packets/bundled.pcapng");
    refuses(&replay(&flows, capture.to_str().expect("UTF-8")), &["unknown port 'p", "--in-port"]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let folder = Folder::new();
    let (flows, pcap) = good(&folder);
    refuses(&["replay", "--no-nic", "--faults", "all"], &["--no-nic", "--faults"]);
    refuses(&["replay", "--no-nic", "--profile", "tiny"], &["--no-nic", "--profile"]);
    refuses(&["replay", "--profile", "huge"], &["tiny", "standard", "large"]);
    refuses(&["replay", "--faults", "gremlins"], &["gremlins", "lost_completion"]);
    refuses(&["replay", "--faults", "hang=2"], &["hang"]);
    refuses(&["replay", "--flows", &flows], &["--pcap", "flowlift explain --flows"]);
    refuses(&["replay", "--pcap", &pcap], &["--flows", "dump-flows"]);
    refuses(&["replay", "--seed", "many"], &["many"]);
    refuses(&["teleport"], &["teleport"]);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let folder = Folder::new();
    let (flows, pcap) = good(&folder);
    let file = folder.write("file", "");
    for out in [&file, "/proc/nowhere"] {
        refuses(&[&replay(&flows, &pcap)[..], &["--out", out]].concat(), &[out]);
    }
    // A directory stands where a capture shall be.
    let out = folder.path("out");
    std::fs::create_dir_all(format!("{out}/2.pcap")).expect("a folder");
    refuses(&[&replay(&flows, &pcap)[..], &["--out", &out]].concat(), &["2.pcap"]);
}
