//! TAP and packet sockets against the kernel, in a network namespace of their own: no root, and the host is not touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

use flowlift_port::{Frame, FrameSink, FrameSource, PacketPort, PortError, TapPort};
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs the ignored test `name` of this file inside new user and network namespaces.
fn in_a_namespace(name: &str) {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .expect("unshare (util-linux) is needed");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}");
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) is needed");
    assert!(status.success(), "ip {arguments}");
}

/// The next frame for which `wanted` holds: the kernel sends some of its own.
fn next(port: &mut impl FrameSource, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        match port.receive().unwrap() {
            Some(frame) if wanted(frame.data) => return frame.data.to_vec(),
            Some(_) => {}
            None => std::thread::yield_now(),
        }
    }
    panic!("no such frame came");
}

/// A broadcast frame of an experimental type, with tags as given.
fn frame(tags: &[u8], payload: u8) -> Vec<u8> {
    let mut f = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
    f.extend_from_slice(tags);
    f.extend_from_slice(&[0x88, 0xb5]);
    f.resize(80, payload);
    f
}

#[test]
fn frames_cross_a_veth_pair_with_their_tags() {
    in_a_namespace("veth");
}

#[test]
fn frames_cross_a_tap_device() {
    in_a_namespace("tap");
}

#[test]
#[ignore = "runs in a namespace: frames_cross_a_veth_pair_with_their_tags"]
fn veth() {
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
    let (mut a, mut b) = (PacketPort::open("v0").unwrap(), PacketPort::open("v1").unwrap());
    let tags: [&[u8]; 4] =
        [&[], &[0x81, 0, 0xa0, 10], &[0x88, 0xa8, 0x10, 20], &[0x88, 0xa8, 0x00, 20, 0x81, 0x00, 0xe0, 30]];
    for (n, tags) in tags.into_iter().enumerate() {
        let sent = frame(tags, n as u8);
        a.send(Frame::new(&sent)).unwrap();
        assert_eq!(next(&mut b, |f| f.last() == Some(&(n as u8)) && f.len() == 80), sent, "tags {tags:x?}");
        b.send(Frame::new(&sent)).unwrap();
        assert_eq!(next(&mut a, |f| f.last() == Some(&(n as u8)) && f.len() == 80), sent, "tags {tags:x?}");
    }
    // What was sent does not come back as received, and the port lives on when the device goes down.
    while let Ok(Some(f)) = a.receive() {
        assert_ne!(f.data.last(), Some(&0xee));
    }
    a.send(Frame::new(&frame(&[], 0xee))).unwrap();
    assert!(a.receive().unwrap().is_none_or(|f| f.data.last() != Some(&0xee)), "its own frame");
    ip("link set v0 down");
    assert!(matches!(a.send(Frame::new(&frame(&[], 1))), Err(PortError::Io(_))));
    assert!(matches!(PacketPort::open("nosuch"), Err(PortError::Io(_))));
}

#[test]
#[ignore = "runs in a namespace: frames_cross_a_tap_device"]
fn tap() {
    let mut tap = TapPort::open("t0").unwrap();
    ip("link set t0 up");
    let mut host = PacketPort::open("t0").unwrap();
    let sent = frame(&[0x81, 0, 0, 7], 0x55);
    tap.send(Frame::new(&sent)).unwrap();
    assert_eq!(next(&mut host, |f| f.last() == Some(&0x55)), sent);
    let back = frame(&[], 0x66);
    host.send(Frame::new(&back)).unwrap();
    assert_eq!(next(&mut tap, |f| f.last() == Some(&0x66)), back);
    assert!(TapPort::open("t0").is_err(), "one program at a time");
}
