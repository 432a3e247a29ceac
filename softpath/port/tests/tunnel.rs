//! Tunnel ports against the kernel's sockets, in a network namespace of their own: no root, and the host is not touched.
//!
//! A port sends to itself, over the loopback device, and tells what was outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod namespace;

use flowlift_port::tunnel::{ETHERNET, Erspan, Gbp, HeaderError, IpVersion, Options};
use flowlift_port::{Burst, BurstSource, Frame, PacketPort, PortError, TunnelInfo, TunnelKind, TunnelPort};
use namespace::{in_a_namespace, ip};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Longer than what was sent over the loopback device takes to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn loopback(version: IpVersion) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::LOCALHOST.into(),
        IpVersion::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A broadcast frame of an experimental type.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5];
    frame.extend(number.to_be_bytes());
    frame.resize(len, 0xa5);
    frame
}

/// The next `count` frames with what was outside them.
fn take(port: &mut TunnelPort, count: usize) -> Vec<(TunnelInfo, Vec<u8>)> {
    let (mut burst, mut all, start) = (Burst::new(), Vec::new(), Instant::now());
    while all.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} frames came", all.len());
        port.receive(&mut burst, &mut |info, frame| all.push((info.clone(), frame.data.to_vec()))).unwrap();
    }
    all
}

/// Sends frames with `info` outside and looks at what comes.
fn there_and_back(port: &mut TunnelPort, info: &TunnelInfo) {
    let mut sender = port.sender();
    let before = port.stats();
    let frames: Vec<_> = (0..70).map(|n| frame(n, 60 + n as usize * 20)).collect();
    for frame in &frames {
        sender.send(info, Frame::new(frame)).unwrap();
    }
    sender.flush().unwrap();
    for (n, (got, data)) in take(port, frames.len()).into_iter().enumerate() {
        assert_eq!(data, frames[n], "frame {n} of {info:?}");
        let src_port = if info.dst_port == 0 { 0 } else { got.src_port };
        assert!(src_port == 0 || info.src_port == 0 || src_port == info.src_port, "{src_port}");
        assert_eq!(got, TunnelInfo { src_port: got.src_port, src: info.dst, ..info.clone() }, "frame {n}");
        assert!(info.dst_port == 0 || got.src_port >= 32_768, "a port for the flow: {}", got.src_port);
    }
    let after = port.stats();
    let count = frames.len() as u64;
    let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
    assert_eq!((after.rx_frames - before.rx_frames, after.tx_frames - before.tx_frames), (count, count));
    assert_eq!((after.rx_bytes - before.rx_bytes, after.tx_bytes - before.tx_bytes), (bytes, bytes));
}

/// All that differs in every tunnel: IP version, type of service, time to live, DF, checksum.
fn outsides(version: IpVersion) -> Vec<TunnelInfo> {
    let mut all = Vec::new();
    for (n, checksum) in [(0, false), (1, true)] {
        for dont_fragment in [false, true] {
            // Over IPv6 nobody is told: all packets are as if they had DF.
            if dont_fragment && version == IpVersion::V6 {
                continue;
            }
            let (tos, ttl) = (0x28 + n, 17 + n);
            all.push(TunnelInfo {
                dst: loopback(version),
                tos,
                ttl,
                checksum,
                dont_fragment,
                ..TunnelInfo::default()
            });
        }
    }
    all
}

#[test]
fn udp_tunnels_carry_frames_and_tell_what_was_outside() {
    in_a_namespace(|| {
        ip("link set lo up");
        let mut vxlan = TunnelPort::open(TunnelKind::Vxlan { port: 4789, gbp: true }).unwrap();
        let mut geneve = TunnelPort::open(TunnelKind::Geneve { port: 6081 }).unwrap();
        for outside in [IpVersion::V4, IpVersion::V6].into_iter().flat_map(outsides) {
            let info = TunnelInfo { id: Some(0x12_3456), dst_port: 4789, ..outside.clone() };
            there_and_back(&mut vxlan, &info);
            there_and_back(&mut vxlan, &TunnelInfo { gbp: Some(Gbp { id: 300, flags: 8 }), ..info });
            let options = Options::new(&[0xff, 0xff, 0x80, 1, 1, 2, 3, 4]).unwrap();
            let info = TunnelInfo { id: Some(7), dst_port: 6081, options, oam: true, ..outside };
            there_and_back(&mut geneve, &info);
        }
    });
}

#[test]
fn gre_and_erspan_carry_frames_and_tell_what_was_outside() {
    in_a_namespace(|| {
        ip("link set lo up");
        for version in [IpVersion::V4, IpVersion::V6] {
            // Both get GRE; each takes what is its own.
            let mut gre = TunnelPort::open(TunnelKind::Gre(version)).unwrap();
            let mut erspan = TunnelPort::open(TunnelKind::Erspan(version)).unwrap();
            for outside in outsides(version) {
                there_and_back(&mut gre, &outside);
                there_and_back(&mut gre, &TunnelInfo { id: Some(0xdead_beef), ..outside.clone() });
                // ERSPAN has no checksum.
                let outside = TunnelInfo { checksum: false, id: Some(1000), ..outside };
                for kind in [Erspan::V1 { index: 7 }, Erspan::V2 { egress: true, hwid: 63 }] {
                    there_and_back(&mut erspan, &TunnelInfo { erspan: Some(kind), ..outside.clone() });
                }
            }
            assert_eq!((gre.stats().rx_malformed, erspan.stats().rx_malformed), (0, 0));
        }
    });
}

#[test]
fn outer_ipv6_has_the_kernel_datapaths_header() {
    in_a_namespace(|| {
        ip("link set lo up");
        let kinds = [
            (TunnelKind::Geneve { port: 6081 }, 17),
            (TunnelKind::Vxlan { port: 4789, gbp: false }, 17),
            (TunnelKind::Gre(IpVersion::V6), 47),
        ];
        for (kind, protocol) in kinds {
            let port = TunnelPort::open(kind).unwrap();
            let mut wire = PacketPort::open("lo").unwrap();
            let info =
                TunnelInfo { dst: loopback(IpVersion::V6), tos: 0x28, ttl: 17, ..TunnelInfo::default() };
            let mut sender = port.sender();
            sender.send(&info, Frame::new(&frame(0, 60))).unwrap();
            sender.flush().unwrap();
            let (mut burst, mut seen, start) = (Burst::new(), Vec::new(), Instant::now());
            while seen.is_empty() && start.elapsed() < PATIENCE {
                wire.receive_burst(&mut burst, &mut |frame| seen.push(frame.data.to_vec())).unwrap();
            }
            let outer = seen.iter().find(|frame| frame[12..14] == [0x86, 0xdd] && frame[20] == protocol);
            let outer = outer.unwrap_or_else(|| panic!("{kind:?}: {seen:x?}"));
            // Version, traffic class, no flow label; next header and hop limit behind the length.
            assert_eq!((&outer[14..18], outer[21]), (&[0x62, 0x80, 0, 0][..], 17), "{kind:?}: {outer:x?}");
        }
    });
}

#[test]
fn packets_without_an_ethernet_header_come_with_their_protocol() {
    in_a_namespace(|| {
        ip("link set lo up");
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut gpe = TunnelPort::open(TunnelKind::VxlanGpe { port: 4790 }).unwrap();
            let mut gre = TunnelPort::open(TunnelKind::AnyGre(version)).unwrap();
            let mut erspan = TunnelPort::open(TunnelKind::Erspan(version)).unwrap();
            for outside in outsides(version) {
                for protocol in [ETHERNET, 0x0800, 0x86dd, 0x894f, 0x8847] {
                    let info = TunnelInfo { protocol, id: Some(9), ..outside.clone() };
                    there_and_back(&mut gre, &info);
                    there_and_back(&mut gpe, &TunnelInfo { dst_port: 4790, ..info });
                }
                // GRE has a number for everything.
                there_and_back(&mut gre, &TunnelInfo { protocol: 0x88b5, ..outside });
            }
            let to = TunnelInfo { dst: loopback(version), id: Some(9), ..TunnelInfo::default() };
            there_and_back(
                &mut erspan,
                &TunnelInfo { erspan: Some(Erspan::V1 { index: 7 }), ttl: 9, ..to.clone() },
            );
            for port in [&gpe, &gre, &erspan] {
                assert_eq!(port.stats().rx_malformed, 0, "{port:?}");
            }

            // What the protocol at hand has no number for, and what is too short for what it should be.
            let lldp = TunnelInfo { protocol: 0x88cc, ..to.clone() };
            let refused = gpe.sender().send(&lldp, Frame::new(&frame(0, 60)));
            assert!(
                matches!(refused, Err(PortError::NotCarried(HeaderError::Protocol(0x88cc)))),
                "{refused:?}"
            );
            assert_eq!(gpe.stats().tx_errors, 1);
            let mut sender = gre.sender();
            for (protocol, len) in [(ETHERNET, 13), (0x0800, 19), (0x86dd, 39), (0x8847, 0), (0x8847, 1)] {
                sender.send(&TunnelInfo { protocol, ..to.clone() }, Frame::new(&[0x11; 40][..len])).unwrap();
            }
            sender.flush().unwrap();
            let last = take(&mut gre, 1);
            assert_eq!((last[0].0.protocol, last[0].1.len()), (0x8847, 1));
            assert_eq!(gre.stats().rx_runts, 4);
        }
    });
}

#[test]
fn a_udp_port_belongs_to_one() {
    in_a_namespace(|| {
        ip("link set lo up");
        let taken = UdpSocket::bind("0.0.0.0:4789").unwrap();
        let vxlan = TunnelKind::Vxlan { port: 4789, gbp: false };
        let error = TunnelPort::open(vxlan).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(taken);
        let _port = TunnelPort::open(vxlan).unwrap();
        for kind in [vxlan, TunnelKind::Geneve { port: 4789 }] {
            let error = TunnelPort::open(kind).unwrap_err().to_string();
            assert!(error.contains("in use"), "{error}");
        }
        for address in ["0.0.0.0:4789", "[::]:4789"] {
            assert!(UdpSocket::bind(address).is_err(), "{address}");
        }
    });
}

#[test]
fn what_is_no_tunnel_packet_is_dropped_and_counted() {
    in_a_namespace(|| {
        ip("link set lo up");
        let mut port = TunnelPort::open(TunnelKind::Vxlan { port: 4789, gbp: false }).unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Cut off, without a VNI, with a policy that is not expected, with a frame of 13 bytes.
        let runt = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &[1; 13]].concat();
        for packet in [&[][..], &[8; 7], &[0; 60], &[0x88; 60], &runt] {
            stranger.send_to(packet, "127.0.0.1:4789").unwrap();
        }
        let (mut burst, start) = (Burst::new(), Instant::now());
        let mut taken = 0;
        while taken < 5 && start.elapsed() < PATIENCE {
            taken += port.receive(&mut burst, &mut |info, _| panic!("a frame: {info:?}")).unwrap();
        }
        let stats = port.stats();
        assert_eq!((stats.rx_malformed, stats.rx_runts, stats.rx_frames), (4, 1, 0), "{stats:?}");
    });
}

#[test]
fn what_cannot_leave_is_counted_and_told() {
    in_a_namespace(|| {
        ip("link set lo up");
        let port = TunnelPort::open(TunnelKind::Gre(IpVersion::V4)).unwrap();
        let mut sender = port.sender();
        let nowhere = TunnelInfo { dst: Ipv4Addr::new(192, 0, 2, 1).into(), ..TunnelInfo::default() };
        sender.send(&nowhere, Frame::new(&frame(0, 60))).unwrap();
        assert!(sender.flush().is_err(), "no route");
        let long = TunnelInfo { dst: loopback(IpVersion::V4), ..TunnelInfo::default() };
        sender.send(&long, Frame::new(&vec![0; 65_530])).unwrap_err();
        let stats = port.stats();
        assert_eq!((stats.tx_frames, stats.tx_errors, stats.tx_too_long), (0, 1, 1), "{stats:?}");
        let mut info = TunnelInfo { dst: loopback(IpVersion::V4), ..TunnelInfo::default() };
        sender.complete(&mut info, &frame(0, 60)).unwrap();
        assert_eq!((info.src, info.src_port), (loopback(IpVersion::V4), 0));
        let udp = TunnelPort::open(TunnelKind::Geneve { port: 6081 }).unwrap();
        udp.sender().complete(&mut info, &frame(0, 60)).unwrap();
        assert!(info.src_port >= 32_768 && info.dst_port == 6081, "{info:?}");
    });
}
