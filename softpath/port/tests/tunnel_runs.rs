//! Runs of packets that pass the host's stack as one, in a network namespace of their own: no root, and the host is not touched.
//!
//! They must be the packets that would have been sent one by one, which is how they are sent where the flow's source port is
//! another's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod large;
mod namespace;

use flowlift_port::tunnel::inner::{ip_end, left_to_do};
use flowlift_port::tunnel::{ETHERNET, Options};
use flowlift_port::{Burst, BurstSource, Frame, PacketPort, TunnelInfo, TunnelKind, TunnelPort};
use large::{Large, Shape, build, verify_checksums};
use namespace::{in_a_namespace, ip};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape {
    tags: 0,
    ipv6: false,
    tcp: true,
    options: 3,
    flags: 0x18,
    id: 0xfff0,
    seq: 0xffff_f000,
    payload: 64_000,
    size: 1400,
    seed: 7,
};

/// A large frame whose segments are more than one run holds, and one whose last segment is as long as the others.
fn frames() -> [Large; 3] {
    [
        build(SHAPE),
        build(Shape { payload: 14_000, seq: 64_000 - 4096, ..SHAPE }),
        build(Shape { tcp: false, payload: 9001, ipv6: true, tags: 1, size: 1000, ..SHAPE }),
    ]
}

fn lent(large: &Large) -> Frame<'_> {
    Frame { offload: Some(large.offload), ..Frame::new(&large.frame) }
}

/// Whole packets on the wire from the IP header on, without what counts packets, and how many packets passed as one at most.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wire {
    packets: Vec<Vec<u8>>,
    longest: usize,
}

/// Takes `count` UDP packets to `dst_port` from the wire.
fn watch(wire: &mut PacketPort, dst_port: u16, count: usize) -> Wire {
    let (mut burst, start, mut seen) = (Burst::new(), Instant::now(), Wire::default());
    while seen.packets.len() < count {
        assert!(start.elapsed() < Duration::from_secs(10), "{} of {count} packets", seen.packets.len());
        wire.receive_burst(&mut burst, &mut |frame| {
            let l4 = if frame.data[12] == 8 { 34 } else { 54 };
            let protocol = frame.data[if l4 == 34 { 23 } else { 20 }];
            if protocol != 17 || frame.data[l4 + 2..l4 + 4] != dst_port.to_be_bytes() {
                return;
            }
            let before = seen.packets.len();
            frame
                .finish(|whole| {
                    verify_checksums(whole.data, 14, l4);
                    assert_ne!(whole.data[l4 + 6..l4 + 8], [0; 2], "a checksum");
                    let mut packet = whole.data[14..].to_vec();
                    if l4 == 34 {
                        packet[4..6].fill(0);
                        packet[10..12].fill(0);
                    }
                    seen.packets.push(packet);
                    Ok(())
                })
                .unwrap();
            seen.longest = seen.longest.max(seen.packets.len() - before);
        })
        .unwrap();
    }
    seen
}

/// What leaves for the frames, of which there are `count` segments.
fn sent(port: &TunnelPort, info: &TunnelInfo, count: usize) -> Wire {
    let mut wire = PacketPort::open("lo").unwrap();
    let mut sender = port.sender();
    for large in frames() {
        sender.send(info, lent(&large)).unwrap();
    }
    sender.flush().unwrap();
    watch(&mut wire, info.dst_port, count)
}

fn segments(large: &Large) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    lent(large)
        .finish(|frame| {
            all.push(frame.data.to_vec());
            Ok(())
        })
        .unwrap();
    all
}

/// Everything outside that a packet may have, with a checksum, by tunnel.
fn tunnels() -> Vec<(TunnelKind, TunnelInfo)> {
    let options = Options::new(&[0xff, 0xff, 0x80, 1, 1, 2, 3, 4]).unwrap();
    let mut all = Vec::new();
    for (dst, dont_fragment) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), false),
        (Ipv4Addr::LOCALHOST.into(), true),
        (Ipv6Addr::LOCALHOST.into(), false),
    ] {
        let info = TunnelInfo {
            dst,
            dont_fragment,
            tos: 0x2a,
            ttl: 33,
            checksum: true,
            id: Some(0x12_3456),
            ..TunnelInfo::default()
        };
        let vxlan = TunnelInfo { dst_port: 4789, ..info.clone() };
        all.push((TunnelKind::Vxlan { port: 4789, gbp: false }, vxlan.clone()));
        all.push((
            TunnelKind::Vxlan { port: 4789, gbp: false },
            TunnelInfo { src: dst, src_port: 40_000, ..vxlan },
        ));
        all.push((TunnelKind::VxlanGpe { port: 4790 }, TunnelInfo { dst_port: 4790, ..info.clone() }));
        all.push((
            TunnelKind::Geneve { port: 6081 },
            TunnelInfo { dst_port: 6081, options: options.clone(), oam: true, ..info },
        ));
    }
    all
}

#[test]
fn a_run_is_the_packets_that_are_sent_one_by_one() {
    in_a_namespace(|| {
        ip("link set lo up");
        let count = frames().iter().map(|large| segments(large).len()).sum();
        for (kind, info) in tunnels() {
            let port = TunnelPort::open(kind).unwrap();
            ip("link set lo gso_max_segs 65535");
            let run = sent(&port, &info, count);
            // Linux itself cuts the runs.
            ip("link set lo gso_max_segs 1");
            let cut = sent(&port, &info, count);
            // Others have the flows' source ports.
            let taken = frames().map(|large| {
                let mut info = info.clone();
                port.sender().complete(&mut info, &large.frame).unwrap();
                info.src_port
            });
            let any = if info.dst.is_ipv4() { "0.0.0.0" } else { "::" };
            let others = taken.map(|port| UdpSocket::bind((any, port)));
            assert!(others.iter().any(Result::is_ok), "{taken:?}: {others:?}");
            let single = sent(&port, &info, count);
            drop(others);
            assert_eq!((cut.longest, single.longest), (1, 1), "{kind:?}, {info:?}");
            assert!(run.longest >= 40, "{kind:?}, {info:?}: at most {} as one", run.longest);
            assert_eq!(run.packets, single.packets, "{kind:?}, {info:?}");
            assert_eq!(cut.packets, single.packets, "{kind:?}, {info:?}");
            let stats = port.stats();
            assert_eq!(
                (stats.tx_frames, stats.tx_errors, stats.tx_full),
                (3 * count as u64, 0, 0),
                "{stats:?}"
            );
            let bytes: usize = frames().iter().flat_map(segments).map(|frame| frame.len()).sum();
            assert_eq!(stats.tx_bytes, 3 * bytes as u64);
        }
    });
}

#[test]
fn a_run_that_is_received_as_one_gives_its_packets_in_order() {
    in_a_namespace(|| {
        ip("link set lo up");
        for (kind, info) in tunnels() {
            let mut port = TunnelPort::open(kind).unwrap();
            let mut sender = port.sender();
            for large in frames() {
                sender.send(&info, lent(&large)).unwrap();
            }
            sender.flush().unwrap();
            let expected: Vec<_> = frames().iter().flat_map(segments).collect();
            let (mut burst, mut got, mut reads, start) = (Burst::new(), Vec::new(), 0, Instant::now());
            while got.len() < expected.len() {
                assert!(start.elapsed() < Duration::from_secs(10), "{} of {}", got.len(), expected.len());
                reads += port
                    .receive(&mut burst, &mut |outside, frame| {
                        let outside =
                            (outside.tos, outside.ttl, outside.id, outside.checksum, outside.dont_fragment);
                        let sent = (info.tos, info.ttl, info.id, true, info.dont_fragment);
                        assert_eq!((outside, frame.offload), (sent, None), "{kind:?}");
                        got.push(frame.data.to_vec());
                    })
                    .unwrap();
            }
            assert_eq!(got, expected, "{kind:?}, {info:?}");
            assert!(reads * 4 < expected.len(), "{reads} reads for {} packets", expected.len());
            let stats = port.stats();
            assert_eq!((stats.rx_frames, stats.rx_malformed), (expected.len() as u64, 0), "{stats:?}");
        }
    });
}

#[test]
fn packets_without_a_checksum_stay_without() {
    in_a_namespace(|| {
        ip("link set lo up");
        let mut port = TunnelPort::open(TunnelKind::Vxlan { port: 4789, gbp: false }).unwrap();
        let mut sender = port.sender();
        let info = TunnelInfo { dst: Ipv4Addr::LOCALHOST.into(), dst_port: 4789, ..TunnelInfo::default() };
        let large = build(SHAPE);
        sender.send(&info, lent(&large)).unwrap();
        sender.flush().unwrap();
        let (mut burst, mut got, start, expected) =
            (Burst::new(), Vec::new(), Instant::now(), segments(&large));
        while got.len() < expected.len() {
            assert!(start.elapsed() < Duration::from_secs(10), "{} of {}", got.len(), expected.len());
            port.receive(&mut burst, &mut |outside, frame| {
                assert!(!outside.checksum);
                got.push(frame.data.to_vec());
            })
            .unwrap();
        }
        assert_eq!(got, expected);
    });
}

#[test]
fn a_run_whose_way_is_too_narrow_is_cut_into_fragments_or_told() {
    in_a_namespace(|| {
        ip("link set lo up mtu 1300");
        let mut port = TunnelPort::open(TunnelKind::Geneve { port: 6081 }).unwrap();
        let mut sender = port.sender();
        let info = TunnelInfo {
            dst: Ipv4Addr::LOCALHOST.into(),
            dst_port: 6081,
            checksum: true,
            ..TunnelInfo::default()
        };
        let large = build(SHAPE);
        let expected = segments(&large);
        sender.send(&info, lent(&large)).unwrap();
        sender.flush().unwrap();
        let (mut burst, mut got, start) = (Burst::new(), Vec::new(), Instant::now());
        while got.len() < expected.len() {
            assert!(start.elapsed() < Duration::from_secs(10), "{} of {}", got.len(), expected.len());
            port.receive(&mut burst, &mut |_, frame| got.push(frame.data.to_vec())).unwrap();
        }
        assert_eq!(got, expected);
        let _ = sender.send(&TunnelInfo { dont_fragment: true, ..info }, lent(&large));
        sender.flush().unwrap_err();
        let stats = port.stats();
        // The last segment is short enough.
        assert_eq!(stats.tx_too_long, expected.len() as u64 - 1, "{stats:?}");
        assert_eq!(stats.tx_frames, expected.len() as u64 + 1, "{stats:?}");
    });
}

#[test]
fn many_flows_send_runs_with_and_without_df() {
    in_a_namespace(|| {
        ip("link set lo up");
        let port = TunnelPort::open(TunnelKind::Vxlan { port: 4789, gbp: false }).unwrap();
        let (mut sender, mut wire) = (port.sender(), PacketPort::open("lo").unwrap());
        let large = build(Shape { payload: 14_000, ..SHAPE });
        let to = TunnelInfo {
            dst: Ipv4Addr::LOCALHOST.into(),
            dst_port: 4789,
            checksum: true,
            ..TunnelInfo::default()
        };
        // More flows than there are sockets, each twice.
        for round in 0..2 {
            for src_port in (40_000..40_150).flat_map(|port| [port, port]) {
                let dont_fragment = (src_port + round) % 2 == 0;
                sender.send(&TunnelInfo { src_port, dont_fragment, ..to.clone() }, lent(&large)).unwrap();
                sender
                    .send(&TunnelInfo { src_port, dont_fragment: !dont_fragment, ..to.clone() }, lent(&large))
                    .unwrap();
                sender.flush().unwrap();
                let seen = watch(&mut wire, 4789, 20);
                assert_eq!(seen.longest, 10, "port {src_port}");
                for (n, packet) in seen.packets.iter().enumerate() {
                    let df = packet[6] & 0x40 != 0;
                    assert_eq!(
                        (df, &packet[20..22]),
                        (dont_fragment == (n < 10), &src_port.to_be_bytes()[..])
                    );
                    // Behind IPv4, UDP, VXLAN and Ethernet: the frame's own IP packet, one for each segment.
                    assert_eq!(
                        u16::from_be_bytes([packet[54], packet[55]]),
                        SHAPE.id.wrapping_add(n as u16 % 10)
                    );
                }
            }
        }
        drop(sender);
        for src_port in 40_000..40_150 {
            UdpSocket::bind(("0.0.0.0", src_port)).unwrap();
        }
    });
}

#[test]
fn a_large_frame_within_is_told_from_a_run() {
    for (ipv6, tags, size) in [(false, 0, 1000), (true, 1, 1200), (false, 2, 1)] {
        let large = build(Shape { tcp: false, ipv6, tags, size, payload: 9001, ..SHAPE });
        let datagrams = NonZeroUsize::new(size.into());
        let left = left_to_do(&large.frame, ETHERNET, 1450, datagrams);
        assert_eq!(left, Some(large.offload), "IPv6 {ipv6}, {tags} tags");
        assert_eq!(ip_end(&large.frame, ETHERNET), Some(large.frame.len()));
        // One of a run ends where its own packet does, and others follow.
        let mut run = segments(&large).concat();
        let first = segments(&large)[0].len();
        assert_eq!(ip_end(&run, ETHERNET), Some(first));
        run.truncate(first);
        assert_eq!(left_to_do(&run, ETHERNET, 1450, None), None, "a whole datagram");
    }
    let tcp = build(SHAPE);
    let left = left_to_do(&tcp.frame, ETHERNET, 1400 + 20 + 32, None);
    assert_eq!(left, Some(tcp.offload));
    assert_eq!(ip_end(&[0; 60], ETHERNET), None);
    assert_eq!(ip_end(&tcp.frame[..16], ETHERNET), None);
}
