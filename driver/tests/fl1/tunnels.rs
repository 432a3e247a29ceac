//! VXLAN in profile large, from entry to packet.

use crate::harness::*;
use flowlift_driver::nic::*;
use flowlift_sim::Profile;

/// Outer headers for VNI 7 from 192.0.2.1 to 192.0.2.9, with the source port left to the NIC.
fn template() -> Vec<u8> {
    let mut t = vec![2, 0, 0, 0, 9, 9, 2, 0, 0, 0, 1, 1, 8, 0];
    t.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 9]);
    t.extend_from_slice(&[0, 0, 0x12, 0xb5, 0, 0, 0, 0]);
    t.extend_from_slice(&[8, 0, 0, 0, 0, 0, 7, 0]);
    t
}

fn any_ipv4() -> Vec<(Field, u128, u128)> {
    vec![(Field::EthType, 0x800, 0xffff)]
}

/// Matches the packets of VNI `vni` that 192.0.2.1 sent to 192.0.2.9.
fn from_tunnel(vni: u128) -> Vec<(Field, u128, u128)> {
    vec![
        (Field::EthType, 0x800, 0xffff),
        (Field::TunId, vni, 0xff_ffff),
        (Field::TunIpv4Src, 0xc000_0201, 0xffff_ffff),
        (Field::TunIpv4Dst, 0xc000_0209, 0xffff_ffff),
    ]
}

/// A NIC that wraps what is for 10.0.0.2, and unwraps what comes by VXLAN to look at it in stage 1.
fn bench() -> Bench {
    let mut b = Bench::new(Profile::large());
    let wrap = [NicAction::VxlanEncap(template().into()), NicAction::Output(NicPort(2))];
    let entry = b.entry(TableId(0), &to_host(2), &wrap);
    assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
    let vxlan = [any_ipv4(), vec![(Field::IpProto, 17, 0xff), (Field::L4Dst, 4789, 0xffff)]].concat();
    let entry = b.entry(TableId(0), &vxlan, &[NicAction::VxlanDecap, NicAction::Goto(Stage(1))]);
    assert_eq!(b.insert(at(0, 1), entry), UpdateStatus::Ok);
    b
}

/// Sends a frame through the entry that wraps.
fn wrapped(b: &mut Bench, frame: &[u8]) -> Vec<u8> {
    b.inject(1, frame);
    let mut out = b.sent(2);
    assert_eq!(out.len(), 1);
    out.remove(0)
}

#[test]
fn a_packet_through_the_tunnel_comes_out_as_it_went_in() {
    let mut b = bench();
    let inner = tcp(1, 2, 80);
    let outer = wrapped(&mut b, &inner);
    assert_eq!(outer.len(), inner.len() + 50);
    assert_eq!(outer[50..], inner);
    assert_eq!(u16::from_be_bytes([outer[16], outer[17]]) as usize, inner.len() + 36, "total length");
    assert_eq!(u16::from_be_bytes([outer[38], outer[39]]) as usize, inner.len() + 16, "UDP length");
    assert!(outer[34] >= 0xc0, "a dynamic source port");
    let entry = b.entry(TableId(3), &from_tunnel(7), &[NicAction::Output(NicPort(4))]);
    assert_eq!(b.insert(at(3, 0), entry), UpdateStatus::Ok);
    b.inject(3, &outer);
    assert_eq!(b.sent(4), std::slice::from_ref(&inner));
    assert_eq!(b.receive().len(), 0);
    let bytes = |b: &Bench, id| b.nic.counters(id).bytes as usize;
    let n = inner.len();
    assert_eq!([at(0, 0), at(0, 1), at(3, 0)].map(|id| bytes(&b, id)), [n, n + 50, n], "bytes at each match");
    b.finish();
}

#[test]
fn a_packet_that_stage_1_misses_comes_with_its_outer_headers() {
    let mut b = bench();
    let outer = wrapped(&mut b, &tcp(1, 2, 80));
    let entry = b.entry(TableId(4), &from_tunnel(8), &[NicAction::Output(NicPort(4))]);
    assert_eq!(b.insert(at(4, 0), entry), UpdateStatus::Ok);
    b.inject(3, &outer);
    let expected = SlowRx { port: NicPort(3), metadata: 0, stage: Stage(0), len: outer.len() as u32 };
    assert_eq!(b.receive(), [(expected, outer)]);
    assert_eq!((b.nic.counters(at(0, 1)).packets, b.sent(4).len()), (0, 0));
    b.finish();
}

#[test]
fn tunnel_entries_read_back_as_they_were_written() {
    let mut b = bench();
    let last =
        b.entry(TableId(4), &from_tunnel(0xfe_dcba), &[NicAction::PopVlan, NicAction::Output(NicPort(9))]);
    assert_eq!(b.insert(at(4, 7), last.clone()), UpdateStatus::Ok);
    assert_eq!(b.read(at(4, 7)), Some(last));
    for index in [0, 1] {
        let entry = b.read(at(0, index)).unwrap();
        assert_eq!(b.one(Update::Delete { cookie: 1, id: at(0, index) }).status, UpdateStatus::Ok);
        assert_eq!(b.insert(at(0, index), entry.clone()), UpdateStatus::Ok);
        assert_eq!(b.read(at(0, index)), Some(entry));
    }
    let mut other = template();
    other[48] = 9;
    let entry = b.entry(TableId(0), &to_host(2), &[NicAction::VxlanEncap(other.into()), NicAction::Trap]);
    let replace = Update::Replace { cookie: 1, id: at(0, 0), entry: entry.clone() };
    assert_eq!(b.one(replace).status, UpdateStatus::Ok);
    assert_eq!(b.read(at(0, 0)), Some(entry));
    b.finish();
}

#[test]
fn only_large_has_tunnels() {
    for profile in [Profile::tiny(), Profile::standard(), Profile::large()] {
        let large = profile.name == "large";
        let b = Bench::new(profile);
        for t in &b.nic.caps().tables {
            for kind in [ActionKind::VxlanEncap, ActionKind::VxlanDecap] {
                assert_eq!(t.actions.has(kind), large, "{kind:?} in table {}", t.id.0);
            }
            let widths: Vec<_> = [Field::TunId, Field::TunIpv4Src, Field::TunIpv4Dst]
                .iter()
                .filter_map(|f| t.fields.iter().find(|c| c.field == *f))
                .map(|c| c.width)
                .collect();
            let expected: &[u16] = if large && t.stage.0 > 0 { &[24, 32, 32] } else { &[] };
            assert_eq!(widths, expected, "table {}", t.id.0);
        }
        b.finish();
    }
}
