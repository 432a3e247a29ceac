//! TAP and packet sockets against the kernel, in a network namespace of their own: no root, and the host is not touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod large;
mod namespace;

use flowlift_port::link::{LinkChange, LinkWatcher, Links};
use flowlift_port::{
    Burst, BurstSource, Frame, FrameSink, FrameSource, InternalConfig, InternalPort, LinkState, PacketPort,
    PortError, TapPort,
};
use large::{Shape, build};
use namespace::{in_a_namespace, ip, up};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The next frame for which `wanted` holds: the kernel sends some of its own.
fn next(port: &mut impl FrameSource, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
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
    in_a_namespace(|| {
        ip("link add v0 type veth peer name v1");
        // The kernel's own frames would come in between.
        ip("link set v0 addrgenmode none");
        ip("link set v1 addrgenmode none");
        up(&["v0", "v1"]);
        let (mut a, mut b) = (PacketPort::open("v0").unwrap(), PacketPort::open("v1").unwrap());
        let tags: [&[u8]; 4] = [
            &[],
            &[0x81, 0, 0xa0, 10],
            &[0x88, 0xa8, 0x10, 20],
            &[0x88, 0xa8, 0x00, 20, 0x81, 0x00, 0xe0, 30],
        ];
        for (n, tags) in tags.into_iter().enumerate() {
            let sent = frame(tags, n as u8);
            a.send(Frame::new(&sent)).unwrap();
            assert_eq!(
                next(&mut b, |f| f.last() == Some(&(n as u8)) && f.len() == 80),
                sent,
                "tags {tags:x?}"
            );
            b.send(Frame::new(&sent)).unwrap();
            assert_eq!(
                next(&mut a, |f| f.last() == Some(&(n as u8)) && f.len() == 80),
                sent,
                "tags {tags:x?}"
            );
        }
        // What was sent does not come back as received, and the port lives on when the device goes down.
        while let Ok(Some(f)) = a.receive() {
            assert_ne!(f.data.last(), Some(&0xee));
        }
        a.send(Frame::new(&frame(&[], 0xee))).unwrap();
        assert!(a.receive().unwrap().is_none_or(|f| f.data.last() != Some(&0xee)), "its own frame");
        ip("link set v0 down");
        assert!(matches!(a.send(Frame::new(&frame(&[], 1))), Err(PortError::Link(LinkState::Down))));
        assert!(matches!(a.receive(), Err(PortError::Link(LinkState::Down))), "told once");
        assert!(a.receive().unwrap().is_none());
        up(&["v0", "v1"]);
        a.send(Frame::new(&frame(&[], 0x44))).unwrap();
        next(&mut b, |f| f.last() == Some(&0x44));
        b.send(Frame::new(&frame(&[], 0x45))).unwrap();
        next(&mut a, |f| f.last() == Some(&0x45));
        // Too long for the device, and too short for any.
        let mut long = frame(&[], 0);
        long.resize(1519, 0);
        a.send(Frame::new(&long)).unwrap();
        assert_eq!(a.stats().tx_too_long, 1);
        assert!(a.device().unwrap().is_some());
        ip("link del v0");
        assert!(matches!(a.receive(), Err(PortError::Link(LinkState::Gone))));
        assert_eq!(a.device().unwrap(), None);
        assert!(matches!(a.send(Frame::new(&frame(&[], 1))), Err(PortError::Link(LinkState::Gone))));
        assert_eq!(a.stats().tx_errors, 2, "{:?}", a.stats());
        assert!(matches!(PacketPort::open("nosuch"), Err(PortError::Io(_))));
    });
}

#[test]
fn an_internal_port_follows_its_device_into_another_namespace_until_it_is_deleted() {
    in_a_namespace(|| {
        let port = InternalPort::open("t0", InternalConfig { persistent: true }).unwrap();
        ip("link set t0 up");
        let mut links = Links::new().unwrap();
        for carrier in [false, true] {
            port.set_carrier(carrier).unwrap();
            assert_eq!(links.find("t0").unwrap().carrier, carrier);
        }
        let mut other =
            std::process::Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let start = Instant::now();
        // Until the process is in its namespace, the device is moved to where it is.
        while links.find("t0").is_ok() && start.elapsed() < Duration::from_secs(60) {
            ip(&format!("link set t0 netns {}", other.id()));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(links.find("t0").is_err(), "it is still here");
        assert!(port.is_attached(), "moved is not deleted");
        other.kill().unwrap();
        other.wait().unwrap();
        // The namespace goes with its last process, and takes a while for it.
        while port.is_attached() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!port.is_attached(), "deleted with its namespace");
    });
}

#[test]
fn frames_cross_a_tap_device() {
    in_a_namespace(|| {
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
    });
}

#[test]
fn an_internal_port_outlives_its_program_if_it_should() {
    in_a_namespace(|| {
        let mut links = Links::new().unwrap();
        let persistent = InternalConfig { persistent: true };
        drop(InternalPort::open("i0", persistent).unwrap());
        let index = links.find("i0").unwrap().index;
        let port = InternalPort::open("i0", persistent).unwrap();
        assert_eq!(links.find("i0").unwrap().index, index, "found again");
        assert!(InternalPort::open("i0", persistent).is_err(), "one program at a time");
        // Another holder of the file, as of one in another process, is the device's as well.
        let file = port.as_fd().try_clone_to_owned().unwrap();
        drop(port);
        assert!(InternalPort::open("i0", persistent).is_err(), "the file is open still");
        assert!(
            InternalPort::adopt(file.try_clone().unwrap(), "i1", persistent).is_err(),
            "another device's"
        );
        let port = InternalPort::adopt(file, "i0", persistent).unwrap();
        let mut sender = port.sender();
        assert!(matches!(sender.send(Frame::new(&frame(&[], 1))), Err(PortError::Link(LinkState::Down))));
        links.set_mac(index, [2, 0, 0, 0, 0, 7]).unwrap();
        links.set_mtu(index, 1400).unwrap();
        links.set_up(index, true).unwrap();
        let link = links.get(index).unwrap();
        assert_eq!((link.mac, link.mtu, link.up), (Some([2, 0, 0, 0, 0, 7]), 1400, true));
        assert_eq!(link.kind.as_deref(), Some("tun"));
        let before = link.stats;
        sender.send(Frame::new(&frame(&[], 1))).unwrap();
        let after = links.find("i0").unwrap().stats;
        assert_eq!((after.rx_packets - before.rx_packets, after.rx_bytes - before.rx_bytes), (1, 80));
        // What the device's MTU does not allow, but for a tag.
        port.set_mtu(1400);
        for (len, tags, fits) in [
            (1414, &[][..], true),
            (1415, &[], false),
            (1418, &[0x81, 0, 0, 7], true),
            (1419, &[0x81, 0, 0, 7], false),
        ] {
            let mut long = frame(tags, 0);
            long.resize(len, 0);
            assert_eq!(sender.send(Frame::new(&long)).is_ok(), fits, "{len} bytes");
        }
        assert_eq!(port.stats().tx_too_long, 2);
        port.delete().unwrap();
        drop(sender);
        assert!(links.find("i0").is_err(), "deleted");
        // A device that somebody else deletes.
        let mut port = InternalPort::open("i1", InternalConfig::default()).unwrap();
        ip("link set i1 up");
        ip("link del i1");
        assert!(matches!(
            port.receive_burst(&mut Burst::new(), &mut |_| {}),
            Err(PortError::Link(LinkState::Gone))
        ));
        assert!(matches!(port.send(Frame::new(&frame(&[], 1))), Err(PortError::Link(LinkState::Gone))));
    });
}

#[test]
fn links_are_followed_through_all_that_becomes_of_them() {
    in_a_namespace(|| {
        let mut watcher = LinkWatcher::new().unwrap();
        assert_eq!(watcher.links().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["lo"]);
        let mut changes = |what: &str| {
            ip(what);
            let mut changes = Vec::new();
            watcher.poll(|change| changes.push(change)).unwrap();
            changes
        };
        let added = changes("link add w0 type veth peer name w1");
        assert!(
            matches!(added.as_slice(), [LinkChange::Added(a), LinkChange::Added(b), ..]
            if a.name == "w1" && b.name == "w0" && b.kind.as_deref() == Some("veth") && !b.up && b.mac.is_some()),
            "{added:?}"
        );
        let last = |changes: Vec<LinkChange>| match changes.into_iter().next_back() {
            Some(LinkChange::Changed { old, new }) => (old, new),
            other => panic!("no change, but {other:?}"),
        };
        assert_eq!(last(changes("link set w0 mtu 9000")).1.mtu, 9000);
        assert_eq!(last(changes("link set w0 address 02:00:00:00:00:55")).1.mac, Some([2, 0, 0, 0, 0, 0x55]));
        assert!(last(changes("link set w0 up")).1.up);
        let (old, new) = last(changes("link set w0 name w9"));
        assert_eq!((old.name.as_str(), new.name.as_str()), ("w0", "w9"));
        let other = std::process::Command::new("unshare").args(["--net", "sleep", "600"]).spawn();
        let mut other = other.unwrap();
        // Until it is in its namespace.
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{}/ns/net", other.id())).unwrap() == own {
            std::thread::yield_now();
        }
        let moved = changes(&format!("link set w9 netns {}", other.id()));
        assert!(matches!(moved.last(), Some(LinkChange::Removed(l)) if l.name == "w9"), "{moved:?}");
        let gone = changes("link del w1");
        assert!(matches!(gone.last(), Some(LinkChange::Removed(l)) if l.name == "w1"), "{gone:?}");
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn a_tap_devices_file_is_taken_over_with_what_waits_in_it() {
    in_a_namespace(|| {
        let first = TapPort::open("t0").unwrap();
        let mut links = Links::new().unwrap();
        let device = links.find("t0").unwrap();
        links.set_queue_length(device.index, 2000).unwrap();
        assert_eq!(links.get(device.index).unwrap().queue_length, 2000);
        ip("link set t0 name t1");
        ip("link set t1 up");
        let kept = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let mut host = PacketPort::open("t1").unwrap();
        let sent = |n: u16| frame(&n.to_be_bytes(), 0x77);
        (0..1500).for_each(|n| host.send(Frame::new(&sent(n))).unwrap());
        host.flush().unwrap();
        let mut next_one = TapPort::adopt(kept).unwrap();
        for n in 0..1500 {
            assert_eq!(next(&mut next_one, |f| f.last() == Some(&0x77)), sent(n));
        }
        let after = links.get(device.index).unwrap();
        assert_eq!((after.name.as_str(), after.mac), ("t1", device.mac));
        ip("link del t1");
        let kept = next_one.as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(TapPort::adopt(kept), Err(PortError::Link(LinkState::Gone))));
    });
}

/// Linux finishes what a packet socket sends to a device without offloads, such as a TAP device that did not ask for any.
#[test]
fn segments_are_those_that_linux_makes() {
    in_a_namespace(|| {
        let mut wire = TapPort::open("t0").unwrap();
        ip("link set t0 mtu 65000");
        ip("link set t0 up");
        let mut host = PacketPort::open("t0").unwrap();
        let mut seed = 0;
        for (tags, ipv6, tcp, gso) in (0..24).map(|n| (n % 3, n & 4 != 0, n & 8 != 0, n >= 8 && n % 5 != 0)) {
            for (payload, size, flags) in [
                (40_000, 1448, 0x18),
                (2897, 1448, 0x99),
                (1449, 1448, 0x19),
                (3000, 1000, 0x90),
                (9000, 536, 0x10),
            ] {
                seed = (seed + 1) % 250;
                let shape = Shape {
                    tags,
                    ipv6,
                    tcp,
                    options: seed % 4,
                    flags,
                    id: 0xfff0,
                    seq: 0xffff_f000,
                    payload,
                    size,
                    seed: seed as u8,
                };
                let mut large = build(shape);
                if !gso {
                    large.offload.gso = None;
                }
                let mut ours = Vec::new();
                flowlift_port::offload::finish(&large.frame, &large.offload, &mut Vec::new(), &mut |f| {
                    ours.push(f.to_vec())
                })
                .unwrap();
                host.send(Frame { offload: Some(large.offload), ..Frame::new(&large.frame) }).unwrap();
                for (n, segment) in ours.iter().enumerate() {
                    // Linux' own neighbour discovery and multicast go to other addresses.
                    let theirs = next(&mut wire, |f| f[..12] == large.frame[..12]);
                    assert!(
                        theirs == *segment,
                        "segment {n} of {shape:?}:\n{theirs:02x?}\nby Linux, not\n{segment:02x?}"
                    );
                }
            }
        }
        assert_eq!(host.stats().tx_errors, 0);
    });
}
