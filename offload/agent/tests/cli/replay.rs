//! `flowlift replay`.

use crate::common::{
    FLOW, Folder, MICROSECONDS, NANOSECONDS, command, experiment, fixture, json, number, pcap, pcapng,
    succeeds,
};
use flowlift_port::CaptureFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;

/// Everything but the times, which differ from run to run.
fn timeless(mut report: Value) -> Value {
    report.as_object_mut().expect("an object").remove("speed").expect("speeds");
    report
}

fn bundled_ports() -> String {
    std::fs::read_to_string(fixture("flows/bundled.ports")).expect("ports").trim().replace('\n', ",")
}

/// Frames of a capture that was written.
fn frames(path: &str) -> Vec<(u64, Vec<u8>)> {
    let capture = CaptureFile::open(path).expect("a capture");
    assert!(capture.damage().is_none());
    capture.frames().map(|frame| (frame.timestamp_ns, frame.data.to_vec())).collect()
}

#[test]
fn without_arguments_the_bundled_pair_runs_through_nic_and_softpath() {
    let text = succeeds(&["replay"]);
    for want in ["flows    85 in all", "packets  2455 in all", "0 missed", "0 violations", "speed ", "to p2 "]
    {
        assert!(text.contains(want), "'{want}' is not in\n{text}");
    }
    let summary = text.split("\n\n").last().expect("a summary");
    assert!(summary.lines().all(|line| line.chars().count() <= 120), "{summary}");
}

/// fixtures/README.md: each captured packet is counted by one flow of the dump, `packets` and the one that made the flow.
#[test]
fn each_flow_counts_the_packets_that_open_vswitch_counted() {
    let dump = std::fs::read_to_string(fixture("flows/bundled.txt")).expect("the dump");
    let lines: Vec<&str> = dump.lines().collect();
    for options in [&[][..], &["--no-nic"], &["--profile", "tiny"]] {
        let report = json(&[&["replay"], options].concat());
        let flows = report["flow_table"].as_array().expect("flows");
        assert_eq!(flows.len(), 85);
        let mut arrived = 0;
        for flow in flows {
            let line = lines[number(flow, "/line") as usize - 1];
            let counted = |name: &str| -> u64 {
                let (_, rest) = line.split_once(name).expect("a counter");
                rest.split(',').next().and_then(|n| n.parse().ok()).expect("a number")
            };
            let ours = |what: &str| {
                ["hardware", "software"].iter().filter_map(|side| flow[side][what].as_u64()).sum::<u64>()
            };
            if line.contains("recirc_id(0)") {
                assert_eq!(ours("packets"), counted("packets:") + 1, "{options:?}: {line}");
                // The bytes of the packet that made the flow are the difference: one Ethernet frame.
                let first = ours("bytes") - counted("bytes:");
                assert!((14..=1522).contains(&first), "{options:?}: {first} bytes: {line}");
                arrived += ours("packets");
            }
        }
        assert_eq!(arrived, 2455, "{options:?}: every packet of the capture");
    }
}

/// The number of outputs at the top level of an action list.
fn outputs(actions: &str) -> u64 {
    let mut depth = 0;
    let top: String = actions
        .chars()
        .filter(|c| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth == 0
        })
        .collect();
    top.split(',').filter(|action| action.parse::<u32>().is_ok()).count() as u64
}

#[test]
fn nothing_is_lost_on_the_way() {
    let captured = CaptureFile::open(fixture("packets/bundled.pcapng")).expect("the capture").len() as u64;
    for options in [&[][..], &["--no-nic"], &["--profile", "tiny"], &["--profile", "large"]] {
        let report = json(&[&["replay"], options].concat());
        let packets = |what: &str| number(&report, &format!("/packets/{what}"));
        assert_eq!(packets("total"), captured);
        assert_eq!(packets("hardware") + packets("software") + packets("missed"), captured, "{options:?}");
        let flows = |what: &str| number(&report, &format!("/flows/{what}"));
        assert_eq!(flows("hardware") + flows("software") + flows("refused"), flows("total"), "{options:?}");

        let (mut sent, mut to_user) = (0, 0);
        for flow in report["flow_table"].as_array().expect("flows") {
            let packets: u64 =
                ["hardware", "software"].iter().filter_map(|side| flow[side]["packets"].as_u64()).sum();
            let actions = flow["actions"].as_str().expect("actions");
            sent += packets * outputs(actions);
            to_user += packets * actions.matches("userspace(").count() as u64;
        }
        let mut left = BTreeMap::new();
        for output in report["outputs"].as_array().expect("outputs") {
            let to = output["to"].as_str().expect("a name");
            let kind = if to == "(userspace)" { "user" } else { "port" };
            *left.entry(kind).or_insert(0) += number(output, "/packets");
        }
        assert_eq!(
            left.get("port").copied(),
            Some(sent),
            "{options:?}: outputs of flows and frames that left"
        );
        assert_eq!(left.get("user").copied(), Some(to_user), "{options:?}: what went to the user");
    }
}

#[test]
fn profiles_and_no_nic_differ_only_in_who_does_the_work() {
    let runs: Vec<Value> =
        [&["--no-nic"][..], &["--profile", "tiny"], &["--profile", "standard"], &["--profile", "large"]]
            .iter()
            .map(|options| json(&[&["replay"], *options].concat()))
            .collect();
    let hardware: Vec<u64> = runs.iter().map(|run| number(run, "/packets/hardware")).collect();
    assert_eq!(hardware[0], 0);
    assert!(0 < hardware[1] && hardware[1] < hardware[2] && hardware[2] <= hardware[3], "{hardware:?}");
    assert!(number(&runs[1], "/flows/hardware") <= 16, "tiny has 16 entries");
    for run in &runs[1..] {
        assert_eq!(run["outputs"], runs[0]["outputs"]);
        assert_eq!(run["digest"], runs[0]["digest"]);
        assert_eq!(number(run, "/nic/violations"), 0);
    }
    assert!(runs[0].get("nic").is_none());
}

#[test]
fn dumps_and_captures_of_every_form_run_alike() {
    let (ports, capture) = (bundled_ports(), fixture("packets/bundled.pcapng"));
    let capture = capture.to_str().expect("UTF-8");
    let run = |dump: &str| {
        let dump = fixture(&format!("flows/{dump}"));
        let report =
            json(&["replay", "--flows", dump.to_str().expect("UTF-8"), "--pcap", capture, "--ports", &ports]);
        (report["packets"].clone(), report["outputs"].clone(), report["flows"].clone())
    };
    let plain = run("bundled.txt");
    assert_eq!(plain.0, json(&["replay"])["packets"]);
    for dump in ["bundled.names.txt", "bundled.m.txt", "bundled.m-no-names.txt"] {
        assert_eq!(run(dump), plain, "{dump}");
    }
    // The same frames in three formats; only the time's resolution differs.
    let odd = |capture: &str| {
        let (dump, capture) = (fixture("flows/odd.txt"), fixture(&format!("packets/{capture}")));
        let args =
            ["replay", "--flows", dump.to_str().expect("UTF-8"), "--pcap", capture.to_str().expect("UTF-8")];
        timeless(json(&[&args[..], &["--in-port", "1", "--check"]].concat()))
    };
    let micro = odd("odd.pcap");
    assert_eq!(number(&micro, "/check/differences"), 0, "{micro:#}");
    assert_eq!(odd("odd.ns.pcap"), micro);
    assert_eq!(odd("odd.pcapng"), micro);
}

/// The dump and three frames: to port 2 as they are, then to port 3 with a tag.
fn two_outputs(folder: &Folder) -> (String, Vec<Vec<u8>>) {
    let flows = folder.write(
        "flows.txt",
        "in_port(1),eth_type(0x88b5), packets:0, bytes:0, used:never, actions:2,push_vlan(vid=10,pcp=3),3\n",
    );
    (flows, (1..=3).map(experiment).collect())
}

#[test]
fn out_has_a_capture_for_each_port_with_the_frames_that_left_by_it() {
    let folder = Folder::new();
    let (flows, sent) = two_outputs(&folder);
    let tagged: Vec<Vec<u8>> =
        sent.iter().map(|frame| [&frame[..12], &[0x81, 0x00, 0x60, 0x0a], &frame[12..]].concat()).collect();
    let pcap = folder.write("in.pcap", pcap(NANOSECONDS, &sent));
    for (n, options) in [&[][..], &["--no-nic"], &["--check"]].iter().enumerate() {
        let out = folder.path(&format!("new/out{n}"));
        let args = ["replay", "--flows", &flows, "--pcap", &pcap, "--ports", "p1=1,p2=2", "--out", &out];
        succeeds(&[&args[..], options].concat());
        let timed = |frames: &[Vec<u8>]| -> Vec<(u64, Vec<u8>)> {
            frames
                .iter()
                .enumerate()
                .map(|(n, frame)| (n as u64 * 1_000_000_000 + 7, frame.clone()))
                .collect()
        };
        assert_eq!(frames(&format!("{out}/p2.pcap")), timed(&sent), "{options:?}");
        // A port without a name gives its number.
        assert_eq!(frames(&format!("{out}/3.pcap")), timed(&tagged), "{options:?}");
        let mut names: Vec<_> = std::fs::read_dir(&out)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["3.pcap", "p2.pcap"]);
    }
}

#[test]
fn out_of_the_bundled_pair_is_what_the_report_counts_with_and_without_a_nic() {
    let folder = Folder::new();
    let (with, without) = (folder.path("nic"), folder.path("soft"));
    let report = json(&["replay", "--out", &with]);
    json(&["replay", "--no-nic", "--out", &without]);
    for output in report["outputs"].as_array().expect("outputs") {
        let port = output["to"].as_str().expect("a name");
        if port.starts_with('(') {
            continue;
        }
        let mut hard = frames(&format!("{with}/{port}.pcap"));
        let mut soft = frames(&format!("{without}/{port}.pcap"));
        assert_eq!(hard.len() as u64, number(output, "/packets"), "{port}");
        assert_eq!(
            hard.iter().map(|(_, frame)| frame.len() as u64).sum::<u64>(),
            number(output, "/bytes"),
            "{port}"
        );
        // Order across flows is free.
        hard.sort();
        soft.sort();
        assert_eq!(hard, soft, "{port}: the same frames at the same time");
    }
}

#[test]
fn in_port_is_a_name_or_a_number_and_interfaces_of_a_capture_come_first() {
    let folder = Folder::new();
    let flows = folder.write("flows.txt", format!("{FLOW}\n{}\n", FLOW.replace("in_port(1)", "in_port(9)")));
    let plain = folder.write("plain.pcap", pcap(MICROSECONDS, &[experiment(1)]));
    let named =
        folder.write("named.pcapng", pcapng(&["eth9", "eth1"], &[(0, experiment(1)), (1, experiment(2))]));
    let hits = |pcap: &str, options: &[&str]| -> Vec<u64> {
        let report = json(&[&["replay", "--flows", &flows, "--pcap", pcap], options].concat());
        let flows = report["flow_table"].as_array().expect("flows");
        flows.iter().map(|f| number(f, "/hardware/packets") + number(f, "/software/packets")).collect()
    };
    assert_eq!(hits(&plain, &[]), [1, 0], "port 1 if nothing is said");
    assert_eq!(hits(&plain, &["--in-port", "9"]), [0, 1]);
    assert_eq!(hits(&plain, &["--in-port", "eth9", "--ports", "eth9=9"]), [0, 1]);
    assert_eq!(hits(&named, &["--ports", "eth9=9,eth1=1"]), [1, 1]);
    assert_eq!(
        hits(&named, &["--ports", "eth9=9", "--in-port", "9"]),
        [0, 2],
        "for interfaces that are no port"
    );
}

#[test]
fn check_compares_three_runs_and_faults_change_nothing() {
    let clean = json(&["replay", "--check"]);
    assert_eq!(number(&clean, "/check/packets"), 2455);
    assert_eq!(number(&clean, "/check/differences"), 0, "{:#}", clean["check"]);
    assert_eq!(clean["check"]["compared"], serde_json::json!(["softpath", "NIC and softpath"]));

    let faulty = |seed: &str| json(&["replay", "--check", "--faults", "all", "--seed", seed]);
    let (one, again, other) = (faulty("7"), faulty("7"), faulty("8"));
    for run in [&one, &other] {
        assert_eq!(number(run, "/check/differences"), 0, "{:#}", run["check"]);
        assert!(
            run["nic"]["faults"].as_object().is_some_and(|faults| !faults.is_empty()),
            "{:#}",
            run["nic"]
        );
    }
    assert_eq!(timeless(one.clone()), timeless(again), "the same seed gives the same run");
    assert_ne!(one["nic"]["faults"], other["nic"]["faults"], "another seed, other faults");
    assert_eq!(one["digest"], clean["digest"]);

    let some = json(&["replay", "--faults", "lost_completion=0.2,link_flap=0", "--seed", "3"]);
    let names: Vec<&String> = some["nic"]["faults"].as_object().expect("faults").keys().collect();
    assert_eq!(names, ["lost_completion"]);
}

#[test]
fn flows_that_repeat_count_once() {
    let folder = Folder::new();
    let flows = folder.write("flows.txt", format!("{FLOW}\n{FLOW}\n"));
    let pcap = folder.write("in.pcap", pcap(MICROSECONDS, &[experiment(1), experiment(2)]));
    let report = json(&["replay", "--flows", &flows, "--pcap", &pcap, "--check"]);
    assert_eq!((number(&report, "/flows/total"), number(&report, "/repeated")), (1, 1));
    assert_eq!(number(&report, "/packets/hardware"), 2);
}

#[test]
fn packets_without_a_flow_are_counted_as_missed() {
    let folder = Folder::new();
    let flows = folder.write("flows.txt", FLOW);
    let mut stranger = experiment(1);
    stranger[13] = 0xb6;
    let pcap = folder.write("in.pcap", pcap(MICROSECONDS, &[experiment(1), stranger]));
    let report = json(&["replay", "--flows", &flows, "--pcap", &pcap, "--check"]);
    assert_eq!(number(&report, "/packets/missed"), 1);
    assert_eq!(number(&report, "/check/differences"), 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["replay"][..],
        &["replay", "--json"],
        &["explain"],
        &["explain", "--json"],
        &["nic", "show", "--profile", "large"],
        &[
            "key",
            "--pcap",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/packets/oracle/well-formed.pcap"),
        ],
    ] {
        let mut child =
            command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        // Closes the pipe before anything is read.
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("UTF-8");
        assert_eq!(child.wait().expect("an end").code(), Some(0), "flowlift {args:?}: {err}");
        assert_eq!(err, "", "flowlift {args:?}");
    }
}
