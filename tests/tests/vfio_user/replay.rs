//! The `flowlift` program on a NIC in another process: `flowlift replay --nic`.

use crate::process::*;
use flowlift_port::capture::Resolution;
use flowlift_port::{Frame, FrameSink, PcapWriter};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ports of the bundled flows and capture.
const BUNDLED_PORTS: usize = 7;

/// A flow that the NIC takes, and one that it does not, both from port 1 to port 2.
const FLOWS: &str = "\
recirc_id(0),in_port(1),eth_type(0x88b5), packets:0, bytes:0, used:never, actions:2
recirc_id(0),in_port(1),eth_type(0x88b6), packets:0, bytes:0, used:never, actions:userspace(pid=0),2
";

fn json(args: &[String]) -> Value {
    let Output { status, stdout, stderr } =
        flowlift().arg("replay").arg("--json").args(args).output().unwrap();
    let error = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "flowlift replay {args:?}: {status}\n{error}");
    assert_eq!(error, "", "flowlift replay {args:?} complains");
    serde_json::from_slice(&stdout).unwrap()
}

fn number(report: &Value, pointer: &str) -> u64 {
    let value = report.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {report}"));
    value.as_u64().unwrap_or_else(|| panic!("{pointer} is {value}"))
}

/// What of a report says who did what with the packets and flows.
fn deeds(report: &Value, parts: &[&str]) -> Value {
    parts
        .iter()
        .map(|part| (part.to_string(), report[part].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// An Ethernet frame of this type with a number in it.
fn frame(kind: u16, number: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// Frames of both types in turn, `count` of them, as a capture; and the flows.
fn inputs(sim: &Simulator, count: u32) -> (PathBuf, PathBuf) {
    let (flows, pcap) = (sim.dir.path().join("flows"), sim.dir.path().join("pcap"));
    std::fs::write(&flows, FLOWS).unwrap();
    let mut writer = PcapWriter::new(File::create(&pcap).unwrap(), Resolution::Nano).unwrap();
    for n in 0..count {
        let data = frame(0x88b5 + (n % 2) as u16, n);
        writer.send(Frame { timestamp_ns: u64::from(n) * 1000, ..Frame::new(&data) }).unwrap();
    }
    writer.finish().unwrap();
    (flows, pcap)
}

#[test]
fn the_bundled_capture_runs_as_in_process() {
    let sim = Simulator::plugged(BUNDLED_PORTS, &[]);
    let mut args = sim.other_ends();
    args.push("--check".into());
    let outside = json(&args);
    let inside = json(&["--check".into()]);
    let parts = ["flows", "packets", "outputs", "digest", "reasons", "flow_table", "refused", "check"];
    assert_eq!(deeds(&outside, &parts), deeds(&inside, &parts));
    assert_eq!(number(&outside, "/check/differences"), 0);
    assert!(number(&outside, "/packets/hardware") > 2000, "{}", outside["packets"]);
    for nothing in ["/nic/violations", "/nic/resets", "/nic/outside/lost", "/nic/outside/unsent"] {
        assert_eq!(number(&outside, nothing), 0, "{nothing}");
    }
    let ports = outside["nic"]["outside"]["ports"].as_array().unwrap();
    assert_eq!(ports.len(), BUNDLED_PORTS);
    assert!(ports.iter().all(|port| port["seen"] == true), "{ports:?}");
    let log = sim.stop();
    assert!(log.contains("violations=0") && log.contains("dma_faults: 0"), "{log}");
    assert!(log.contains("frames_lost: 0"), "{log}");
}

#[test]
fn without_wires_packets_go_into_the_pipeline() {
    // The other ends of the wires are nobody's, so the NIC's frames wait there; the ports have link all the same.
    let sim = Simulator::plugged(BUNDLED_PORTS, &[]);
    let outside = json(&[sim.nic(), "--check".into()]);
    let inside = json(&["--check".into()]);
    let parts = ["flows", "packets", "reasons", "flow_table", "refused"];
    assert_eq!(deeds(&outside, &parts), deeds(&inside, &parts));
    assert_eq!(number(&outside, "/check/differences"), 0, "{}", outside["check"]);
    let to: Vec<&Value> = outside["outputs"].as_array().unwrap().iter().map(|output| &output["to"]).collect();
    assert_eq!(to, ["(userspace)"], "what leaves by the NIC's ports is not seen");
    let ports = outside["nic"]["outside"]["ports"].as_array().unwrap();
    assert!(ports.iter().all(|port| port["seen"] == false), "{ports:?}");
}

#[test]
fn nic_ports_are_those_that_the_user_names() {
    let sim = Simulator::plugged(3, &[]);
    let (flows, pcap) = inputs(&sim, 20);
    let mut args = sim.other_ends();
    args.extend(["--nic-ports=1=p2,2=p0".into(), format!("--flows={}", flows.display())]);
    args.extend([format!("--pcap={}", pcap.display()), "--check".into()]);
    let report = json(&args);
    assert_eq!(number(&report, "/check/differences"), 0, "{}", report["check"]);
    assert_eq!(number(&report, "/packets/hardware"), 10);
    let ports = report["nic"]["outside"]["ports"].to_string();
    assert_eq!(ports, r#"[{"nic":"p2","port":"1","seen":true},{"nic":"p0","port":"2","seen":true}]"#);
}

#[test]
fn a_simulator_that_is_killed_loses_no_flow_and_no_packet_that_is_known() {
    const PACKETS: u32 = 40_000;
    let mut sim = Simulator::plugged(2, &[]);
    let (flows, pcap) = inputs(&sim, PACKETS);
    let out = sim.dir.path().join("out");
    let mut replay = flowlift();
    replay.args(["replay", "--json", "--flows"]).arg(&flows).arg("--pcap").arg(&pcap).arg("--out").arg(&out);
    let replay = replay.args(sim.other_ends()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Frames are leaving: it is in the middle of its work.
    let start = Instant::now();
    while std::fs::metadata(out.join("2.pcap")).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < PATIENCE, "no frame leaves");
        std::thread::sleep(Duration::from_millis(1));
    }
    sim.kill();
    let Output { status, stdout, stderr } = finish(replay);
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    let report: Value = serde_json::from_slice(&stdout).unwrap();

    assert_eq!(report["nic"]["state"], "gone");
    assert_eq!((number(&report, "/flows/total"), number(&report, "/flows/software")), (2, 2));
    let hardware = number(&report, "/packets/hardware");
    assert!(hardware > 0 && hardware < u64::from(PACKETS) / 2, "{}", report["packets"]);
    assert_eq!(number(&report, "/packets/total"), u64::from(PACKETS));
    assert_eq!(
        number(&report, "/packets/hardware") + number(&report, "/packets/software"),
        u64::from(PACKETS)
    );
    for flow in report["flow_table"].as_array().unwrap() {
        let counted = number(flow, "/hardware/packets") + number(flow, "/software/packets");
        assert_eq!(counted, u64::from(PACKETS) / 2, "{flow}");
    }
    // The frame that the simulator had in its hands when it died was counted, and may not have left.
    let left = number(&report, "/outputs/0/packets");
    assert!((PACKETS - 1..=PACKETS).contains(&(left as u32)), "{left} of {PACKETS} frames left");
}

/// Waits for the end of a program, but not for ever.
fn finish(mut child: Child) -> Output {
    let start = Instant::now();
    let mut out = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut stdout = Vec::new();
        out.read_to_end(&mut stdout).unwrap();
        stdout
    });
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let (mut stderr, stdout) = (Vec::new(), reader.join().unwrap());
            child.stderr.take().map(|mut err| err.read_to_end(&mut stderr)).transpose().unwrap();
            return Output { status, stdout, stderr };
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("flowlift does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A live run that is ready.
fn live(sim: &Simulator, seconds: &str) -> Child {
    let (flows, _) = inputs(sim, 0);
    let mut live = flowlift();
    live.args(["replay", "--json", "--live", seconds, "--flows"]).arg(flows).arg(sim.nic());
    let mut live = live.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(live.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("ready, serving for"), "{line}");
    live
}

#[test]
fn live_packets_are_counted_to_the_last_one() {
    const EACH: u32 = 500;
    let mut sim = Simulator::start(&[]);
    let live = live(&sim, "60");
    let mut left = [0u64; 2];
    let start = Instant::now();
    for n in 0..EACH {
        for kind in [0x88b5, 0x88b6] {
            sim.inject(1, &frame(kind, n));
        }
        take(&mut sim, &mut left);
    }
    // Every flow says port 2, so what is to leave is known; then the run is told to end.
    while left.iter().sum::<u64>() < u64::from(2 * EACH) {
        take(&mut sim, &mut left);
        assert!(start.elapsed() < PATIENCE, "{left:?} frames left");
    }
    let ended = Command::new("kill").arg("-INT").arg(live.id().to_string()).status().unwrap();
    assert!(ended.success());
    let Output { status, stdout, .. } = finish(live);
    assert!(status.success(), "{status}");
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(left, [u64::from(EACH); 2]);
    assert_eq!(number(&report, "/packets/total"), u64::from(2 * EACH), "{}", report["packets"]);
    assert_eq!(number(&report, "/packets/hardware"), left[0]);
    assert_eq!(number(&report, "/packets/software"), left[1]);
    assert_eq!(number(&report, "/flow_table/0/hardware/packets"), left[0]);
    assert_eq!(number(&report, "/flow_table/1/software/packets"), left[1]);
    assert_eq!(number(&report, "/nic/violations"), 0);
    let log = sim.stop();
    assert!(log.contains("violations=0") && log.contains("frames_lost: 0"), "{log}");
}

/// Takes the frames that left by port 2, by their type.
fn take(sim: &mut Simulator, left: &mut [u64; 2]) {
    while let Some(frame) = sim.sent(2) {
        left[usize::from(frame[13] == 0xb6)] += 1;
    }
    assert_eq!(sim.sent(1), None, "nothing is sent back");
}

#[test]
fn a_live_run_ends_with_its_time_and_with_its_nic() {
    let sim = Simulator::start(&[]);
    let Output { status, .. } = finish(live(&sim, "0.2"));
    assert!(status.success(), "{status}");
    // The order to stop asks for the device, and takes it.
    let live = live(&sim, "600");
    sim.stop();
    let Output { status, stdout, .. } = finish(live);
    assert!(status.success(), "{status}");
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(number(&report, "/flows/total"), 2);
    assert!(
        report["nic"]["state"] == "gone" || report["nic"]["outside"]["given_back"] == true,
        "{}",
        report["nic"]
    );
}

#[test]
fn a_live_run_ends_though_packets_keep_coming() {
    let mut sim = Simulator::start(&[]);
    for (seconds, signal) in [("1.5", None), ("600", Some("-INT"))] {
        let mut live = live(&sim, seconds);
        let start = Instant::now();
        let mut told = signal.is_none();
        let mut n = 0;
        while live.try_wait().unwrap().is_none() {
            // All of them go through the softpath, which therefore never rests. What a full wire refuses is not missed.
            let _ = sim.wires[0].send(Frame::new(&frame(0x88b6, n)));
            n += 1;
            while sim.sent(2).is_some() {}
            if !told && start.elapsed() > Duration::from_millis(300) {
                told = true;
                let kill = Command::new("kill").args(signal).arg(live.id().to_string()).status().unwrap();
                assert!(kill.success());
            }
            if start.elapsed() > PATIENCE {
                live.kill().unwrap();
                panic!("it serves on though its end is {seconds} s, {signal:?}; {n} frames sent");
            }
        }
        let Output { status, stdout, .. } = finish(live);
        assert!(status.success(), "{seconds} s, {signal:?}: {status}");
        let report: Value = serde_json::from_slice(&stdout).unwrap();
        assert!(number(&report, "/packets/software") > 100, "{}", report["packets"]);
    }
    sim.assert_alive();
}

#[test]
fn what_cannot_be_is_told_by_its_cause() {
    let sim = Simulator::plugged(1, &[]);
    let nobody = sim.dir.path().join("nobody");
    let wire = format!("--wire=p0=unix:{0}.own,{0}", nobody.display());
    for (args, wanted) in [
        (&["--faults", "all"][..], "start flowlift-sim with --faults all"),
        (&["--wire=p99=unix:/tmp/flowlift-no-such-wire"], "has no port p99; it has p0 to p15"),
        (&["--nic-ports=p1=p0,p2=p0"], "stands twice"),
        (&["--nic-ports=p1=eth0"], "'eth0' is no port of a NIC"),
        (&["--nic-ports=p1=p0", &wire], "cannot send on the wire of port p0: No such file"),
        (&["--live", "soon"], "'soon' is no number of seconds"),
        (&["--live", "1", "--check"], "cannot be used with"),
    ] {
        let Output { status, stderr, .. } =
            flowlift().arg("replay").arg(sim.nic()).args(args).output().unwrap();
        let error = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(wanted), "{args:?}: expected {wanted:?} in: {error}");
    }
    let without_link = Simulator::plugged(0, &[]);
    let Output { status, stderr, .. } = flowlift().arg("replay").arg(without_link.nic()).output().unwrap();
    let error = String::from_utf8_lossy(&stderr);
    assert!(status.code() == Some(2) && error.contains("has link"), "{status}: {error}");
    let Output { stderr, .. } = flowlift().args(["replay", "--nic=vfio-user:/nonexistent"]).output().unwrap();
    let error = String::from_utf8_lossy(&stderr);
    assert_eq!(error.matches("No such file or directory").count(), 1, "the cause is told once: {error}");
}
