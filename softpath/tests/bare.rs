//! Packets that lose their Ethernet header and are looked up again without it, as Open vSwitch's packet-type-aware
//! pipeline has them: by the worker and by the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod common;

use common::*;
use flowlift_flow::text::{NoNames, key_text, parse_actions, parse_match};
use flowlift_flow::{Flow, Key, PortNo, key::eth_type};
use flowlift_softpath::packet::PacketType;
use flowlift_softpath::{Config, Datapath, Outgoing, Packet, Reference, Sink, Upcall};

fn flow_text(matching: &str, actions: &str) -> Flow {
    let (matching, _) = parse_match(matching, &NoNames).unwrap_or_else(|e| panic!("{matching}: {e}"));
    Flow { ufid: None, matching, actions: parse_actions(actions, &NoNames).expect("actions") }
}

/// What worker and reference make of a frame from port 1: they must agree.
fn run(flows: &[Flow], packet: &Packet) -> Vec<Event> {
    let mut dp = Datapath::new(Config { seed: Some(1), ..Config::default() });
    let mut reference = Reference::new(1);
    for flow in flows {
        dp.put(flow).unwrap();
        reference.put(flow).unwrap();
    }
    let (mut by_worker, mut by_reference) = (Recorder::default(), Recorder::default());
    dp.worker().process_one(&mut packet.clone(), 0, &mut by_worker);
    reference.process(&mut packet.clone(), 0, &mut by_reference);
    assert_eq!(by_worker.events, by_reference.events);
    by_worker.events
}

#[test]
fn a_packet_without_ethernet_is_looked_up_by_its_packet_type() {
    let frame = udp(3, 4);
    let flows = [
        flow_text("recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)", "pop_eth,recirc(1)"),
        flow_text(
            "recirc_id(1),in_port(1),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(dst=10.0.1.4,frag=no)",
            "set(ipv4(src=192.0.2.1)),push_eth(src=0a:00:00:00:00:01,dst=0a:00:00:00:00:02),2,pop_eth,recirc(2)",
        ),
    ];
    let events = run(&flows, &packet(&frame, 1));
    let [Event::Output(2, sent), Event::Miss(key, bare)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(sent[..14], [0x0a, 0, 0, 0, 0, 2, 0x0a, 0, 0, 0, 0, 1, 8, 0]);
    assert_eq!(sent[26..30], [192, 0, 2, 1]);
    assert_eq!((bare, &sent[30..]), (&sent[14..].to_vec(), &frame[30..]));
    assert_eq!((key.packet_type.get(), key.eth_type.get(), key.recirc_id), (0x1_0800, eth_type::IPV4, 2));
    let text = key_text(key).to_string();
    assert!(text.contains("packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(src=192.0.2.1,"), "{text}");
    assert!(!text.contains("eth("), "{text}");
}

/// A flow for Ethernet frames must not take a packet without Ethernet header, nor the other way round.
#[test]
fn packet_types_do_not_match_each_other() {
    let strip =
        flow_text("recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)", "pop_eth,recirc(1)");
    let ethernet =
        flow_text("recirc_id(1),in_port(1),packet_type(ns=0,id=0),eth(),eth_type(0x0800),ipv4(frag=no)", "2");
    let events = run(&[strip, ethernet], &packet(&udp(3, 4), 1));
    assert!(matches!(&events[..], [Event::Miss(..)]), "{events:?}");
}

#[test]
fn nsh_carries_bare_packets_too() {
    let flows = [
        flow_text(
            "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)",
            "pop_eth,push_nsh(flags=0,ttl=63,mdtype=1,np=1,spi=0x1,si=255,c1=0x1,c2=0x2,c3=0x3,c4=0x4),recirc(1)",
        ),
        flow_text(
            "recirc_id(1),in_port(1),packet_type(ns=1,id=0x894f),eth_type(0x894f),\
             nsh(flags=0,ttl=63,mdtype=1,np=1,spi=0x1,si=255,c1=0x1,c2=0x2,c3=0x3,c4=0x4)",
            "pop_nsh(),recirc(2)",
        ),
        flow_text(
            "recirc_id(2),in_port(1),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=8196)",
            "push_eth(src=0a:00:00:00:00:01,dst=0a:00:00:00:00:02),2",
        ),
    ];
    let frame = udp(3, 4);
    let events = run(&flows, &packet(&frame, 1));
    let [Event::Output(2, sent)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&sent[12..14], &sent[14..]), (&[8u8, 0][..], &frame[14..]));
}

/// A packet as it was told to whoever sends it: the port, what it begins with, its first byte.
#[derive(Debug, Default, PartialEq)]
struct Told {
    sent: Vec<(u32, PacketType, u8)>,
    upcalls: Vec<(Key, u8)>,
}

impl Sink for Told {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.sent.push((port.0, PacketType::ETHERNET, packet[0]));
    }

    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        let Outgoing { bytes, packet_type, tunnel, .. } = packet;
        assert!(tunnel.is_none_or(|tunnel| tunnel.tun_id.get() == 7));
        self.sent.push((port.0 + if tunnel.is_some() { 100 } else { 0 }, packet_type, bytes[0]));
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        let Upcall::Action(action) = upcall else { panic!("{upcall:?}") };
        self.upcalls.push((action.key.clone(), action.packet[0]));
        true
    }
}

#[test]
fn whoever_sends_a_packet_is_told_what_it_begins_with() {
    let frame = udp(3, 4);
    let flow = flow_text(
        "recirc_id(0),in_port(1),packet_type(ns=1,id=0x800),eth_type(0x0800),ipv4(frag=no)",
        "2,set(tunnel(tun_id=0x7,dst=192.0.2.1,ttl=64,flags(key))),3,userspace(pid=5),\
         push_eth(src=0a:00:00:00:00:01,dst=0a:00:00:00:00:02),userspace(pid=5)",
    );
    let other = flow_text(
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth(),eth_type(0x0800),ipv4(frag=no)",
        "4,pop_eth,5,userspace(pid=5)",
    );
    // As out of a tunnel that carries such packets, then a frame in the same buffer.
    let mut bare = packet(&frame[14..], 1);
    bare.packet_type = PacketType::IPV4;
    let mut again = bare.clone();
    again.fill(&frame, bare.metadata);
    let mut dp = Datapath::new(Config { seed: Some(1), ..Config::default() });
    let mut reference = Reference::new(1);
    for flow in [&flow, &other] {
        dp.put(flow).unwrap();
        reference.put(flow).unwrap();
    }
    let (mut told, mut by_reference) = (Told::default(), Told::default());
    let mut worker = dp.worker();
    for packet in [&bare, &again] {
        worker.process_one(&mut packet.clone(), 0, &mut told);
        reference.process(&mut packet.clone(), 0, &mut by_reference);
    }
    assert_eq!(told, by_reference);
    let (ethernet, ipv4) = (PacketType::ETHERNET, PacketType::IPV4);
    assert_eq!(told.sent, [(2, ipv4, 0x45), (103, ipv4, 0x45), (4, ethernet, 2), (5, ipv4, 0x45)]);
    // The user reads from the key whether there is an Ethernet header.
    let keys = told.upcalls.iter().map(|(key, first)| (PacketType(key.packet_type.get()), *first));
    assert_eq!(keys.collect::<Vec<_>>(), [(ipv4, 0x45), (ethernet, 0x0a), (ipv4, 0x45)]);
    assert!(told.upcalls.iter().all(|(key, _)| (key.eth_type.get(), key.ip_proto) == (eth_type::IPV4, 17)));
}
