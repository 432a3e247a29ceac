//! Frames, flows and a recording sink for the tests of the whole softpath.
#![allow(dead_code, unreachable_pub, clippy::expect_used)]

use flowlift_flow::{Action, AttrSet, Flow, Key, Mask, Match, Metadata, PortNo, Ufid};
use flowlift_softpath::extract::extract_key;
use flowlift_softpath::{Dropped, FlowId, Packet, Sink, Upcall};

/// What became of packets, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Output(u32, Vec<u8>),
    Miss(Box<Key>, Vec<u8>),
    Action(Box<Key>, Vec<u8>),
    Dropped(Dropped),
}

/// Records everything; takes upcalls or loses them.
#[derive(Debug, Default)]
pub struct Recorder {
    pub events: Vec<Event>,
    pub matched: Vec<FlowId>,
    pub lose_upcalls: bool,
}

impl Sink for Recorder {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.events.push(Event::Output(port.0, packet.to_vec()));
    }

    fn upcall(&mut self, upcall: Upcall<'_>) -> bool {
        self.events.push(match upcall {
            Upcall::Miss { key, packet } => Event::Miss(Box::new(key.clone()), packet.bytes().to_vec()),
            Upcall::Action(a) => Event::Action(Box::new(a.key.clone()), a.packet.to_vec()),
        });
        !self.lose_upcalls
    }

    fn matched(&mut self, id: FlowId, _: &Key) {
        self.matched.push(id);
    }

    fn dropped(&mut self, why: Dropped) {
        self.events.push(Event::Dropped(why));
    }
}

impl Recorder {
    /// Ports of the outputs, in order.
    pub fn ports(&self) -> Vec<u32> {
        self.events.iter().filter_map(|e| if let Event::Output(p, _) = e { Some(*p) } else { None }).collect()
    }
}

/// A UDP or TCP frame; `n` goes into the addresses and ports.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub kind: u8,
    pub vlan: bool,
    pub n: u8,
    pub m: u8,
    pub flags: u8,
}

pub fn frame(s: Shape) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, s.n, 2, 0, 0, 0, 0, s.m];
    if s.vlan {
        f.extend([0x81, 0, 0, s.m]);
    }
    let l4: Vec<u8> = if s.kind.is_multiple_of(2) {
        [0x10, s.n, 0x20, s.m, 0, 8, 0, 0].into()
    } else {
        [0x10, s.n, 0x20, s.m, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, s.flags, 0, 0, 0, 0, 0, 0].into()
    };
    let proto = if s.kind.is_multiple_of(2) { 17 } else { 6 };
    match s.kind / 2 {
        0 => {
            f.extend([8, 0, 0x45, 0, 0, 20 + l4.len() as u8, 0, 1, 0, 0, 64, proto, 0, 0]);
            f.extend([10, 0, 0, s.n, 10, 0, 1, s.m]);
            f.extend(l4);
        }
        1 => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4.len() as u8, proto, 64]);
            f.extend([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, s.n]);
            f.extend([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, s.m]);
            f.extend(l4);
        }
        _ => {
            f.extend([
                8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, s.n, 10, 0, 0, s.n, 0, 0, 0, 0, 0, 0, 10, 0, 1,
                s.m,
            ]);
        }
    }
    f.resize(f.len().max(60), 0);
    f
}

/// A plain UDP frame.
pub fn udp(n: u8, m: u8) -> Vec<u8> {
    frame(Shape { kind: 0, vlan: false, n, m, flags: 0 })
}

pub fn metadata(in_port: u32) -> Metadata {
    Metadata { in_port, ..Default::default() }
}

pub fn packet(frame: &[u8], in_port: u32) -> Packet {
    let mut p = Packet::new();
    p.fill(frame, metadata(in_port));
    p
}

pub fn key(frame: &[u8], metadata: &Metadata) -> Key {
    extract_key(frame, metadata)
}

/// A mask with these fields exact, chosen by bits of `fields`.
pub fn mask(fields: u32) -> Mask {
    let mut m = Mask::default();
    let k = &mut m.0;
    let has = |n: u32| fields & (1 << n) != 0;
    // Without the recirculation ID, flows of one pass would also be those of the next.
    k.recirc_id = u32::MAX;
    if has(0) {
        k.in_port = u32::MAX;
    }
    if has(1) {
        k.eth_type.set(0xffff);
    }
    if has(2) {
        k.eth_dst = [0xff; 6];
    }
    if has(3) {
        k.ipv4_src.set(!0 << 1);
    }
    if has(4) {
        k.ipv4_dst.set(!0);
    }
    if has(5) {
        k.ip_proto = 0xff;
    }
    if has(6) {
        k.tp_dst.set(0xfffe);
    }
    if has(7) {
        k.ipv6_dst = [0xff; 16];
    }
    if has(8) {
        k.vlan[0].tci.set(0xffff);
    }
    if has(9) {
        k.nd_target = [0xff; 16];
        k.arp_tha = [0xff; 6];
    }
    m
}

/// A flow that matches packets like this key.
pub fn flow(key: &Key, mask: Mask, actions: Vec<Action>) -> Flow {
    Flow { ufid: None, matching: Match { key: key.clone(), mask, attrs: AttrSet::default() }, actions }
}

/// The flow that sends packets from port `in_port` to port `out`.
pub fn port_flow(in_port: u32, out: u32) -> Flow {
    let k = Key { in_port, ..Default::default() };
    flow(&k, mask(1), vec![Action::Output(PortNo(out))])
}

pub fn ufid(n: u8) -> Ufid {
    Ufid::new(&[n; 16]).expect("16 octets")
}
