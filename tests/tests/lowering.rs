//! Random flows with packets at the edges of their masks, through NIC (driver and simulator), softpath and the linear
//! reference: the same frames, in the same order per flow, and the same counters from all three (P1).
//!
//! A case is a seed. It makes frames, flows that match them more or less closely, and then sends each frame as it is,
//! with every single bit of its headers flipped, with boundary values in its fields, and cut at every byte. A flow that
//! is lowered too widely, or to other actions, shows as a difference; the planner's own comparison has no part in it.

#![allow(clippy::unwrap_used, clippy::panic)] // All of it is a test, helpers too.

use flowlift_agent::check::CheckReport;
use flowlift_agent::engine::{Arrival, NicRun, ReferenceRun, Run, SoftRun};
use flowlift_agent::ledger::Ledger;
use flowlift_agent::open;
use flowlift_flow::action::{self, Action, Header, TnlHeader, TnlPush, VxlanHeader};
use flowlift_flow::key::{Key, VLAN_CFI, eth_type, ip_proto};
use flowlift_flow::text::ActionsText;
use flowlift_flow::{AttrSet, Flow, Mask, Match, Metadata, PortNo};
use flowlift_offload::planner::State;
use flowlift_sim::{FaultPlan, Profile};
use flowlift_softpath::extract::extract_key;
use flowlift_softpath::{Config, Datapath};
use flowlift_tests::frames::{Ipv4, Ipv6, Message, Tag, arp, ethernet, icmp, sctp, tcp, udp};

/// Frames per case, each with flows of its own.
const FRAMES: usize = 3;
/// Bytes from a frame's start whose bits are flipped: all headers.
const HEADERS: usize = 86;
/// The NIC has the first four ports of the datapath; 9 is another one.
const PORTS: [PortNo; 4] = [PortNo(1), PortNo(2), PortNo(3), PortNo(4)];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.word() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn frame(r: &mut Random) -> Vec<u8> {
    let tags: Vec<Tag> = (0..r.below(3))
        .map(|_| (if r.one_in(2) { 0x8100 } else { 0x88a8 }, (r.below(4) << 13 | r.below(3)) as u16))
        .collect();
    let payload = [0x5a; 7];
    let message = match r.below(6) {
        0 | 1 => tcp(r.below(2) as usize, &payload),
        2 => udp(!r.one_in(3), &payload),
        3 => sctp(&payload),
        4 => Message::other(47, &payload),
        _ => icmp(false, 8, 0, &[0, 1, 0, 2, 9]),
    };
    let wrong = if r.one_in(4) { 0x1234 } else { 0 };
    match r.below(8) {
        0..4 => {
            ethernet(&tags, eth_type::IPV4, &Ipv4 { flip: (wrong, wrong), ..Ipv4::default() }.packet(message))
        }
        4 | 5 => {
            let message = if r.one_in(4) { icmp(true, 128, 0, &[0, 1, 0, 2, 9]) } else { message };
            ethernet(&tags, eth_type::IPV6, &Ipv6 { flip: wrong, ..Ipv6::default() }.packet(message))
        }
        6 => ethernet(&tags, eth_type::ARP, &arp(1 + r.below(2) as u16)),
        _ => ethernet(&tags, 0x1234, &payload),
    }
}

/// Clears bits of a field's mask: all, none, some, or the lower ones.
fn loosen(r: &mut Random, bytes: &mut [u8]) {
    match r.below(6) {
        0 | 1 => bytes.fill(0),
        2 => bytes.iter_mut().for_each(|b| *b &= r.word() as u8),
        3 => {
            let keep = r.below(8 * bytes.len() as u64 + 1) as usize;
            for (n, b) in bytes.iter_mut().enumerate() {
                *b &= !(0xff_u16 >> keep.saturating_sub(8 * n).min(8)) as u8;
            }
        }
        _ => {}
    }
}

fn loosen16(r: &mut Random, mask: u16) -> u16 {
    let mut bytes = mask.to_be_bytes();
    loosen(r, &mut bytes);
    u16::from_be_bytes(bytes)
}

fn loosen32(r: &mut Random, mask: u32) -> u32 {
    let mut bytes = mask.to_be_bytes();
    loosen(r, &mut bytes);
    u32::from_be_bytes(bytes)
}

/// A match of the packets with this key, exact in what the rest depends on and loose at random elsewhere.
fn matching(r: &mut Random, key: &Key) -> Match {
    let exact = Match::exact_in(key, AttrSet::of(key));
    let mut m = exact.mask.0;
    (m.in_port, m.recirc_id) = (u32::MAX, u32::MAX);
    loosen(r, &mut m.eth_src);
    loosen(r, &mut m.eth_dst);
    m.ipv4_src = loosen32(r, m.ipv4_src.get()).into();
    m.ipv4_dst = loosen32(r, m.ipv4_dst.get()).into();
    m.ipv6_label = loosen32(r, m.ipv6_label.get()).into();
    m.tp_src = loosen16(r, m.tp_src.get()).into();
    m.tp_dst = loosen16(r, m.tp_dst.get()).into();
    m.tcp_flags = loosen16(r, m.tcp_flags.get()).into();
    loosen(r, &mut m.ipv6_src);
    loosen(r, &mut m.ipv6_dst);
    loosen(r, &mut m.arp_sha);
    loosen(r, &mut m.arp_tha);
    loosen(r, std::slice::from_mut(&mut m.ip_tos));
    loosen(r, std::slice::from_mut(&mut m.ip_ttl));
    for tag in m.vlan.iter_mut().take(key.vlan_count()) {
        tag.tci = (loosen16(r, tag.tci.get()) | VLAN_CFI).into();
    }
    if r.one_in(6) && m.tp_src.get() == 0 && m.tp_dst.get() == 0 && m.tcp_flags.get() == 0 {
        m.ip_proto = 0;
    }
    Match { key: key.clone(), mask: Mask(m), attrs: exact.attrs }
}

fn bytes<const N: usize>(r: &mut Random) -> [u8; N] {
    std::array::from_fn(|_| r.word() as u8)
}

/// A set action that fits the match, whole or masked.
fn set(r: &mut Random, m: &Match) -> Option<Action> {
    let (ty, proto) = (m.key.eth_type.get(), m.key.ip_proto);
    let exact_proto = m.mask.0.ip_proto == 0xff;
    let mut header = |mask: bool| -> Option<Header> {
        let keep = |r: &mut Random| {
            if mask {
                [0u32, u32::MAX, 0xffff_0000, 0x0f0f_0f0f][r.below(4) as usize]
            } else {
                r.word() as u32
            }
        };
        let l4 = (keep(r) as u16, keep(r) as u16);
        Some(match (r.one_in(3), ty) {
            (true, _) | (_, eth_type::ARP | 0x1234) => {
                if mask {
                    let whole =
                        |r: &mut Random| if r.one_in(2) { [0xff; 6] } else { [0, 0, 0, 0xff, 0xff, 0xff] };
                    Header::Ethernet { src: whole(r), dst: whole(r) }
                } else {
                    Header::Ethernet { src: bytes(r), dst: bytes(r) }
                }
            }
            (_, eth_type::IPV4) if !exact_proto || r.one_in(2) => Header::Ipv4 {
                src: keep(r).into(),
                dst: keep(r).into(),
                proto: 0,
                tos: keep(r) as u8,
                ttl: keep(r) as u8,
                frag: 0,
            },
            (_, eth_type::IPV6) if !exact_proto || r.one_in(2) => Header::Ipv6 {
                src: (u128::from(keep(r)) << 64 | u128::from(keep(r))).into(),
                dst: u128::from(keep(r)).into(),
                label: keep(r) & 0xf_ffff,
                proto: 0,
                tclass: keep(r) as u8,
                hlimit: keep(r) as u8,
                frag: 0,
            },
            _ => match proto {
                ip_proto::TCP => Header::Tcp { src: l4.0, dst: l4.1 },
                ip_proto::UDP => Header::Udp { src: l4.0, dst: l4.1 },
                ip_proto::SCTP => Header::Sctp { src: l4.0, dst: l4.1 },
                _ => return None,
            },
        })
    };
    // Value and mask must be of one header; what differs is tried again by the caller's next draw.
    let (value, mask) = (header(false)?, header(true)?);
    and(&value, &mask).map(|value| Action::SetMasked { value, mask })
}

/// The value without bits outside the mask (U8); `None` for two headers.
fn and(value: &Header, mask: &Header) -> Option<Header> {
    let mac = |a: &[u8; 6], b: &[u8; 6]| std::array::from_fn(|n| a[n] & b[n]);
    let v4 = |a: &std::net::Ipv4Addr, b: &std::net::Ipv4Addr| (u32::from(*a) & u32::from(*b)).into();
    let v6 = |a: &std::net::Ipv6Addr, b: &std::net::Ipv6Addr| (u128::from(*a) & u128::from(*b)).into();
    Some(match (value, mask) {
        (Header::Ethernet { src, dst }, Header::Ethernet { src: ms, dst: md }) => {
            Header::Ethernet { src: mac(src, ms), dst: mac(dst, md) }
        }
        (
            Header::Ipv4 { src, dst, tos, ttl, .. },
            Header::Ipv4 { src: ms, dst: md, tos: mt, ttl: ml, .. },
        ) => Header::Ipv4 {
            src: v4(src, ms),
            dst: v4(dst, md),
            proto: 0,
            tos: tos & mt,
            ttl: ttl & ml,
            frag: 0,
        },
        (
            Header::Ipv6 { src, dst, label, tclass, hlimit, .. },
            Header::Ipv6 { src: ms, dst: md, label: ml, tclass: mt, hlimit: mh, .. },
        ) => Header::Ipv6 {
            src: v6(src, ms),
            dst: v6(dst, md),
            label: label & ml,
            proto: 0,
            tclass: tclass & mt,
            hlimit: hlimit & mh,
            frag: 0,
        },
        (Header::Tcp { src, dst }, Header::Tcp { src: ms, dst: md }) => {
            Header::Tcp { src: src & ms, dst: dst & md }
        }
        (Header::Udp { src, dst }, Header::Udp { src: ms, dst: md }) => {
            Header::Udp { src: src & ms, dst: dst & md }
        }
        (Header::Sctp { src, dst }, Header::Sctp { src: ms, dst: md }) => {
            Header::Sctp { src: src & ms, dst: dst & md }
        }
        _ => return None,
    })
}

fn actions(r: &mut Random, m: &Match, recirc: Option<u32>) -> Vec<Action> {
    let mut list = Vec::new();
    for _ in 0..r.below(6) {
        match r.below(12) {
            0..4 => list.push(Action::Output(PORTS[r.below(4) as usize])),
            4..7 => list.extend(set(r, m)),
            7 => list.push(Action::PushVlan {
                tpid: if r.one_in(2) { eth_type::VLAN } else { eth_type::QINQ },
                tci: r.word() as u16 | VLAN_CFI,
            }),
            8 | 9 => list.push(Action::PopVlan),
            10 if m.key.is_ip() => list.push(Action::DecTtl { exception: vec![Action::Output(PORTS[3])] }),
            _ => list.extend([
                Action::Trunc { max_len: 14 + r.below(80) as u32 },
                Action::Output(PORTS[r.below(4) as usize]),
            ]),
        }
    }
    if r.one_in(12) {
        list.push(Action::Output(PortNo(9)));
    }
    match recirc {
        Some(id) => list.push(Action::Recirc(id)),
        None => {
            if r.one_in(4) {
                list.push(tnl_push(r));
                if r.one_in(2) {
                    list.push(Action::PushVlan { tpid: eth_type::VLAN, tci: r.word() as u16 | VLAN_CFI });
                }
            }
            list.push(Action::Output(PORTS[r.below(4) as usize]));
        }
    }
    list
}

/// Outer headers of VXLAN whose source port is fixed: software and NIC choose an open one differently.
fn tnl_push(r: &mut Random) -> Action {
    let mut header: [u8; VxlanHeader::LEN] = bytes(r);
    header[12..15].copy_from_slice(&[8, 0, 0x45]);
    for zero in [16..20, 21..22, 24..26, 38..42, 43..46, 49..50] {
        header[zero].fill(0);
    }
    (header[20], header[22], header[23], header[42]) = (0x40, header[22].max(1), 17, 8);
    header[34] |= 0x80;
    header[36] |= 0x10;
    let header = TnlHeader::Vxlan(VxlanHeader::new(&header).unwrap());
    Action::TnlPush(Box::new(TnlPush { tnl_port: PortNo(8), out_port: PORTS[0], header }))
}

/// Flows of one case, none overlapping another, all with actions that the softpath takes.
fn flows(r: &mut Random, frames: &[(PortNo, Vec<u8>)]) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    let mut add = |r: &mut Random, key: &Key, recirc| {
        let m = matching(r, key);
        if flows.iter().any(|f| f.matching.overlaps(&m)) {
            return false;
        }
        for _ in 0..20 {
            let actions = actions(r, &m, recirc);
            if action::validate(&actions, &m).is_ok() {
                flows.push(Flow { ufid: None, matching: m, actions });
                return true;
            }
        }
        false
    };
    for (n, (port, frame)) in frames.iter().enumerate() {
        let key = extract_key(frame, &Metadata { in_port: port.0, ..Metadata::default() });
        let id = 1 + n as u32;
        let recirc = r.one_in(3).then_some(id);
        if add(r, &key, recirc) && recirc.is_some() {
            // What comes back is as it was or was changed; both may be met.
            add(r, &Key { recirc_id: id, ..key }, None);
        }
    }
    flows
}

/// The frame, and what is next to it.
fn neighbours(r: &mut Random, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![frame.to_vec()];
    for bit in 0..8 * frame.len().min(HEADERS) {
        let mut f = frame.to_vec();
        f[bit / 8] ^= 1 << (bit % 8);
        all.push(f);
    }
    for at in 0..frame.len().min(HEADERS) {
        for value in [0, 1, 0xff] {
            let mut f = frame.to_vec();
            f[at] = value;
            all.push(f);
        }
    }
    all.extend((14..frame.len()).map(|len| frame[..len].to_vec()));
    // Padding behind the packet is not part of it.
    let mut padded = frame.to_vec();
    padded.extend(bytes::<20>(r));
    all.push(padded);
    all
}

#[derive(Default)]
struct Seen {
    flows: u64,
    hardware_flows: u64,
    packets: u64,
    hardware_packets: u64,
}

fn case(seed: u64, seen: &mut Seen) {
    let mut r = Random::new(seed);
    let frames: Vec<(PortNo, Vec<u8>)> =
        (0..FRAMES).map(|_| (PORTS[r.below(4) as usize], frame(&mut r))).collect();
    let flows = flows(&mut r, &frames);

    let datapath = || {
        let mut datapath = Datapath::new(Config { seed: Some(seed), ..Config::default() });
        let put = |f| datapath.put(f).map(|p| p.id).unwrap_or_else(|e| panic!("seed {seed}: {e}: {f:?}"));
        let ids = flows.iter().map(put).collect::<Vec<_>>();
        (datapath, ids)
    };
    // The large one wraps packets in outer headers.
    let profile = if seed.is_multiple_of(2) { Profile::standard() } else { Profile::large() };
    let setup = open::open(profile, seed, FaultPlan::default(), &PORTS, 1_000).unwrap();
    let (table, ids) = datapath();
    let mut nic = NicRun::new(setup.boxed(), table, ids, seed, Ledger::comparable(), |_| {}).unwrap();
    let (table, ids) = datapath();
    let mut soft = SoftRun::new(table, ids, seed, Ledger::comparable());
    let mut reference = ReferenceRun::new(flows.iter().cloned(), seed, Ledger::comparable()).unwrap();

    let packets: Vec<(PortNo, Vec<u8>)> = frames
        .iter()
        .flat_map(|(port, frame)| neighbours(&mut r, frame).into_iter().map(move |f| (*port, f)))
        .collect();
    let arrivals: Vec<Arrival<'_>> = packets
        .iter()
        .enumerate()
        .map(|(n, (port, frame))| Arrival { port: *port, frame, now_ns: 10_000_000 + 1_000_000 * n as u64 })
        .collect();
    nic.arrive(&arrivals).unwrap();
    soft.arrive(&arrivals).unwrap();
    reference.arrive(&arrivals).unwrap();

    let mut report = CheckReport::default();
    report.compare("softpath", &mut reference, &mut soft, flows.len());
    report.compare("NIC and softpath", &mut reference, &mut nic, flows.len());
    let told: Vec<String> = flows
        .iter()
        .enumerate()
        .map(|(n, f)| {
            let actions = ActionsText { actions: &f.actions, names: None };
            let (state, reason) = nic.state(n);
            let reason = reason.map_or(String::new(), |r| format!(" ({r})"));
            format!(
                "{n}: {:?} mask {:?}\n   actions:{actions} {state}{reason}",
                f.matching.key, f.matching.mask
            )
        })
        .collect();
    assert_eq!(report.differences, 0, "seed {seed}: {:#?}\n{}", report.details, told.join("\n"));
    let summary = nic.summary();
    assert_eq!(summary.violations, Some(0), "seed {seed}: protocol violations");
    assert_eq!(summary.planner.lowering_bugs, 0, "seed {seed}:\n{}", told.join("\n"));
    for n in 0..flows.len() {
        let (state, reason) = nic.state(n);
        assert!(
            state == State::Hardware || reason.is_some(),
            "seed {seed}: flow {n} is {state} without a reason"
        );
        seen.hardware_flows += u64::from(state == State::Hardware);
    }
    seen.flows += flows.len() as u64;
    seen.packets += nic.counts().total;
    seen.hardware_packets += nic.counts().hardware;
}

#[test]
fn r16_random_flows_give_the_same_answer_at_the_edges_of_their_masks() {
    let mut seen = Seen::default();
    (0..150).for_each(|seed| case(seed, &mut seen));
    // Otherwise nothing was compared.
    assert!(
        seen.hardware_flows * 2 > seen.flows,
        "{} of {} flows in hardware",
        seen.hardware_flows,
        seen.flows
    );
    assert!(
        seen.hardware_packets * 5 > seen.packets,
        "{} of {} packets by hardware",
        seen.hardware_packets,
        seen.packets
    );
}
