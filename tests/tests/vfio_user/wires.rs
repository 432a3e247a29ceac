//! Every kind of wire of a served NIC, with frames both ways. TAP and network devices are in namespaces of the test's own: no
//! root, and the host is not touched.

use crate::namespace::{in_a_namespace, ip, up};
use crate::process::*;
use flowlift_driver::nic::*;
use flowlift_port::capture::Resolution;
use flowlift_port::{CaptureReader, Frame, FrameSink, FrameSource, PacketPort, PcapWriter};
use std::process::{Command, Output};
use std::time::Instant;

/// A frame of an experimental type, which no kernel sends by itself.
fn frame(payload: u8) -> Vec<u8> {
    let mut f = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5];
    f.resize(80, payload);
    f
}

fn is_ours(f: &[u8]) -> bool {
    f.len() == 80 && f[12..14] == [0x88, 0xb5]
}

/// The next frame of ours that comes up by a port of the NIC.
fn slow(d: &mut Driver) -> (NicPort, Vec<u8>) {
    loop {
        let (info, frame) = d.slow();
        if is_ours(&frame) {
            return (info.port, frame);
        }
    }
}

/// The next frame of ours at the other end of a wire.
fn came(d: &mut Driver, port: &mut PacketPort) -> Vec<u8> {
    let mut got = None;
    d.until("a frame at the other end", |_| {
        got = port.receive().unwrap().filter(|f| is_ours(f.data)).map(|f| f.data.to_vec());
        got.is_some()
    });
    got.unwrap()
}

/// Sends frames there and back over a wire, whose end on the host is `device`.
fn there_and_back(wire: &str, device: &str) {
    let sim = Simulator::start(&["--wire", wire]);
    up(&[device]);
    let mut end = PacketPort::open(device).unwrap();
    let mut d = Driver::open(&sim);
    for n in 0..20 {
        end.send(Frame::new(&frame(n))).unwrap();
        assert_eq!(slow(&mut d), (NicPort(3), frame(n)), "{wire}: to the NIC");
        assert!(d.nic.tx(SlowTx::Port(NicPort(3)), &frame(n + 100)).unwrap());
        assert_eq!(came(&mut d, &mut end), frame(n + 100), "{wire}: from the NIC");
    }
    // From the NIC's tables alone, without the driver.
    let insert = Update::Insert { cookie: 1, id: at(0), entry: d.entry(2, &[NicAction::Output(NicPort(3))]) };
    assert_eq!(d.one(insert).status, UpdateStatus::Ok);
    d.assert_lawful();
    drop(d);
    let log = sim.stop();
    assert!(log.contains("frames_lost: 0"), "{log}");
}

#[test]
fn a_tap_device() {
    in_a_namespace(|| {
        there_and_back("p2=tap:flowlift0", "flowlift0");
    });
}

#[test]
fn a_network_device_by_packet_socket() {
    in_a_namespace(|| {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        there_and_back("p2=packet:v0", "v1");
    });
}

#[test]
fn captures_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    let mut writer = PcapWriter::create(&input, Resolution::Nano).unwrap();
    (0..50).for_each(|n| writer.send(Frame::new(&frame(n))).unwrap());
    writer.finish().unwrap();
    let sim = Simulator::start(&["--wire", &format!("p2=pcap:{},{}", input.display(), output.display())]);
    let mut d = Driver::open(&sim);
    for n in 0..50 {
        assert_eq!(slow(&mut d), (NicPort(3), frame(n)), "the capture's frames, in its order");
        assert!(d.nic.tx(SlowTx::Port(NicPort(3)), &frame(n + 100)).unwrap());
    }
    d.until("the frames to be sent", |d| d.nic.tx_pending() == 0);
    d.assert_lawful();
    drop(d);
    sim.stop();
    let mut reader = CaptureReader::open(&output).unwrap();
    let mut out = Vec::new();
    while let Some(f) = reader.receive().unwrap() {
        out.push(f.data.to_vec());
    }
    assert_eq!(out, (100..150).map(frame).collect::<Vec<_>>());
}

#[test]
fn a_cable_in_memory_between_two_ports() {
    let sim = Simulator::start(&["--wire", "p2=memory:a", "--wire", "p7=memory:a"]);
    let mut d = Driver::open(&sim);
    for (n, (from, to)) in (0..).zip([(3, 8), (8, 3), (3, 8)]) {
        assert!(d.nic.tx(SlowTx::Port(NicPort(from)), &frame(n)).unwrap());
        assert_eq!(slow(&mut d), (NicPort(to), frame(n)));
    }
    d.assert_lawful();
    drop(d);
    sim.stop();
}

#[test]
fn a_wire_that_loses_its_device_leaves_the_nic_working() {
    in_a_namespace(|| {
        ip("link add v0 type veth peer name v1");
        up(&["v0", "v1"]);
        let mut sim = Simulator::start(&["--wire", "p2=packet:v0"]);
        let mut d = Driver::open(&sim);
        ip("link del v0");
        let _ = d.nic.tx(SlowTx::Port(NicPort(3)), &frame(1)).unwrap();
        // The other wires go on.
        sim.inject(1, &frame(2));
        assert_eq!(slow(&mut d), (NicPort(1), frame(2)));
        assert!(d.nic.tx(SlowTx::Port(NicPort(2)), &tcp(3)).unwrap());
        assert_eq!(d.sent(&mut sim, 2), tcp(3));
        sim.assert_alive();
    });
}

/// Runs the simulator with a wire that cannot be.
fn refused(wires: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.arg("--socket").arg(dir.path().join("nic"));
    for wire in wires {
        command.args(["--wire", wire]);
    }
    let start = Instant::now();
    let output = command.output().unwrap();
    assert!(start.elapsed() < PATIENCE && !output.status.success(), "{wires:?}: {output:?}");
    output
}

#[test]
fn wires_that_cannot_be_are_refused_with_port_and_cause() {
    for (wires, parts) in [
        (&["p99=unix:/nowhere/x"][..], &["p99", "p0 to p15"][..]),
        (&["p0=memory:a", "p0=memory:a"], &["p0 has two wires"]),
        (&["p0=memory:a"], &["cable a has 1 ends"]),
        (&["p0=memory:a", "p1=memory:a", "p2=memory:a"], &["cable a has 3 ends"]),
        (&["p0=pcap:/nonexistent/in"], &["p0, pcap:/nonexistent/in", "No such file"]),
        (&["p0=packet:no-such-device"], &["p0, packet:no-such-device"]),
        (&["p0=unix:/nonexistent/folder/socket"], &["p0, unix:/nonexistent/folder/socket"]),
        (&["p0=carrier-pigeon:x"], &["is not a wire", "pN=tap:NAME"]),
    ] {
        let output = refused(wires);
        let text = String::from_utf8_lossy(&output.stderr);
        for part in parts {
            assert!(text.contains(part), "{wires:?} does not say {part:?}: {text}");
        }
    }
}
