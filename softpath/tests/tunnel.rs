//! Packets out of tunnels and into them: what their keys say, and what is told to whoever sends them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod common;

use common::*;
use flowlift_flow::key::tun_flags;
use flowlift_flow::{Action, AttrSet, Flow, Header, Key, Mask, Match, Metadata, PortNo};
use flowlift_softpath::{Batch, Config, Datapath, Outgoing, Packet, Reference, Sink, Upcall};

/// A tunnel from 192.0.2.1 with options.
fn tunnel(id: u64) -> Key {
    let mut k = Key::default();
    (k.tun_id, k.tun_ipv4_src) = (id.into(), 0xc000_0201.into());
    k.tun_flags = (tun_flags::PRESENT | tun_flags::KEY | tun_flags::GENEVE).into();
    (k.tun_opts[3], k.tun_opts_len) = (9, 4);
    k
}

fn mask_of_tunnel() -> Mask {
    let mut m = mask(0);
    (m.0.tun_id, m.0.tun_flags) = (u64::MAX.into(), u16::MAX.into());
    (m.0.tun_opts, m.0.tun_opts_len) = ([0xff; 256], 0xff);
    m
}

/// Where packets go, with the ID of the tunnel that they were given.
#[derive(Debug, Default, PartialEq)]
struct Sent(Vec<(u32, Option<u64>, usize)>, Vec<(Key, Option<u64>)>);

impl Sink for Sent {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.0.push((port.0, None, packet.len()));
    }

    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        self.0.push((port.0, packet.tunnel.map(|tunnel| tunnel.tun_id.get()), packet.bytes.len()));
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        self.1.push(match upcall {
            Upcall::Miss { key, .. } => (key.clone(), None),
            Upcall::Action(action) => (action.key.clone(), action.egress_tunnel.map(|t| t.tun_id.get())),
        });
        true
    }
}

fn in_tunnel(frame: &[u8], tunnel: &Key) -> Packet {
    let mut p = packet(frame, 1);
    p.set_tunnel(tunnel);
    p
}

fn datapath(flows: &[Flow]) -> (Datapath, Reference) {
    let (mut dp, mut reference) = (Datapath::new(Config::default()), Reference::new(1));
    for flow in flows {
        dp.put(flow).unwrap();
        reference.put(flow).unwrap();
    }
    (dp, reference)
}

/// What becomes of packets, in the worker and in the linear reference.
fn process(flows: &[Flow], packets: &[Packet]) -> Sent {
    let (dp, mut reference) = datapath(flows);
    let (mut sent, mut expected) = (Sent::default(), Sent::default());
    let mut batch = Batch::new();
    let mut worker = dp.worker();
    for p in packets {
        batch.next_packet().unwrap().copy_from(p);
        reference.process(&mut p.clone(), 0, &mut expected);
    }
    worker.process(&mut batch, 0, &mut sent);
    assert_eq!(sent, expected);
    sent
}

fn flow_for(key: &Key, mask: Mask, actions: Vec<Action>) -> Flow {
    Flow { ufid: None, matching: Match { key: key.clone(), mask, attrs: AttrSet::default() }, actions }
}

#[test]
fn a_key_has_the_tunnel_that_its_packet_came_out_of() {
    let flows = [
        flow_for(&tunnel(7), mask_of_tunnel(), vec![Action::Output(PortNo(1))]),
        flow_for(&tunnel(8), mask_of_tunnel(), vec![Action::Output(PortNo(2))]),
        flow_for(&Key::default(), mask_of_tunnel(), vec![Action::Output(PortNo(3))]),
    ];
    let frame = udp(1, 1);
    let mut other_options = tunnel(7);
    other_options.tun_opts[3] = 8;
    // A packet without tunnel in a buffer, and behind a packet, that had one.
    let mut reused = in_tunnel(&frame, &tunnel(7));
    reused.fill(&frame, Metadata::default());
    let packets = [
        in_tunnel(&frame, &tunnel(7)),
        in_tunnel(&frame, &tunnel(8)),
        packet(&frame, 1),
        in_tunnel(&frame, &other_options),
        reused,
    ];
    let sent = process(&flows, &packets);
    assert_eq!(sent.0.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3, 3]);
    // Different options are a different key: a miss, whose key has them.
    assert_eq!(sent.1.len(), 1);
    let key = &sent.1[0].0;
    assert_eq!((key.tun_id.get(), key.tun_opts[3], key.eth_type.get()), (7, 8, 0x0800));
}

#[test]
fn a_set_tunnel_is_told_with_every_output_behind_it_and_leaves_the_key() {
    let set = |id| Action::Set(Header::Tunnel(Box::new(tunnel(id))));
    let to = |port| Action::Output(PortNo(port));
    let actions = vec![
        to(1),
        set(7),
        to(2),
        Action::Clone(vec![set(8), to(3), Action::Trunc { max_len: 20 }, to(4)]),
        Action::Userspace(Default::default()),
        to(5),
        set(9),
        Action::Recirc(1),
        to(6),
    ];
    let second = Key { recirc_id: 1, ..Key::default() };
    let flows = [
        flow_for(&Key::default(), mask_of_tunnel(), actions),
        // The recirculated packet's key has no tunnel, since it came without one; it leaves in the one that was set.
        flow_for(&second, mask_of_tunnel(), vec![to(10)]),
    ];
    let frame = udp(1, 1);
    let sent = process(&flows, &[packet(&frame, 1)]);
    let all = frame.len();
    let expected = [
        (1, None, all),
        (2, Some(7), all),
        (3, Some(8), all),
        (4, Some(8), 20),
        (5, Some(7), all),
        (10, Some(9), all),
        (6, Some(9), all),
    ];
    assert_eq!(sent.0, expected);
    assert_eq!(sent.1.len(), 1);
    assert_eq!((sent.1[0].0.has_tunnel(), sent.1[0].1), (false, Some(7)));
}
