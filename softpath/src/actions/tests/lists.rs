//! Lists of actions: what ends them, what they copy, and how a truncation wanders through them.

use super::frames::Spec;
use super::{Did, after, run};
use crate::actions::DropReason;
use flowlift_flow::action::{HashAlg, NshHeader, Userspace};
use flowlift_flow::{Action, Header, PortNo};

fn out(port: u32) -> Action {
    Action::Output(PortNo(port))
}

const PUSH: Action = Action::PushVlan { tpid: 0x8100, tci: 0x1001 };

fn frame() -> Vec<u8> {
    Spec::tcp().frame()
}

#[test]
fn trunc_applies_to_the_next_output_only() {
    let f = frame();
    let cut = Action::Trunc { max_len: 20 };
    assert_eq!(
        run(&f, &[cut.clone(), out(1), out(2)]),
        [Did::Output(1, f[..20].to_vec()), Did::Output(2, f.clone())]
    );
    assert_eq!(
        run(&f, &[cut.clone(), Action::Userspace(Userspace::default()), out(2)]),
        [Did::Upcall(f[..20].to_vec(), 0x1234), Did::Output(2, f.clone())]
    );
    // It cuts from the end: what is pushed later comes on top.
    let pushed = after(&f, &[PUSH]);
    assert_eq!(run(&f, &[cut.clone(), PUSH, out(1)]), [Did::Output(1, pushed[..24].to_vec())]);
    assert_eq!(run(&f, &[Action::Trunc { max_len: 9000 }, out(1)]), [Did::Output(1, f.clone())]);
    // A clone takes it along; a sample leaves it to the output behind.
    let short = Did::Output(1, f[..20].to_vec());
    assert_eq!(
        run(&f, &[cut.clone(), Action::Clone(vec![out(1)]), out(2)]),
        [short, Did::Output(2, f.clone())]
    );
    let sample = Action::Sample { probability: u32::MAX, actions: vec![out(1)] };
    assert_eq!(
        run(&f, &[cut, sample, out(2)]),
        [Did::Output(1, f.clone()), Did::Output(2, f[..20].to_vec())]
    );
}

#[test]
fn a_recirculated_packet_is_a_copy_unless_last() {
    let f = frame();
    assert_eq!(
        run(&f, &[Action::Recirc(5), out(1)]),
        [Did::Recirc(5, 0, f.clone()), Did::Output(1, f.clone())]
    );
    let hash = Action::Hash { alg: HashAlg::L4, basis: 0 };
    let [Did::Recirc(6, dp_hash, bytes)] = &run(&f, &[hash, Action::Recirc(6)])[..] else { panic!() };
    assert_eq!(bytes, &f);
    assert_ne!(*dp_hash, 0);
    // Within a nested list that is not last, nothing is handed over that the outer list needs.
    for nested in [
        Action::Clone(vec![Action::Recirc(5)]),
        Action::Sample { probability: u32::MAX, actions: vec![Action::Recirc(5)] },
        Action::CheckPktLen {
            pkt_len: 1,
            greater: vec![Action::Clone(vec![Action::Recirc(5)])],
            less_or_equal: vec![],
        },
    ] {
        assert_eq!(run(&f, &[nested, out(1)]), [Did::Recirc(5, 0, f.clone()), Did::Output(1, f.clone())]);
    }
}

#[test]
fn what_ends_a_list_ends_only_that_list() {
    let f = frame();
    assert_eq!(
        run(&f, &[Action::Clone(vec![Action::Drop(1), out(1)]), out(2)]),
        [Did::Dropped(DropReason::Explicit(1)), Did::Output(2, f)]
    );
}

#[test]
fn an_expired_ttl_takes_the_exception() {
    let mut f = frame();
    let dec = Action::DecTtl { exception: vec![out(7)] };
    let alive = run(&f, &[dec.clone(), out(1)]);
    let [Did::Output(1, bytes)] = &alive[..] else { panic!("{alive:?}") };
    assert_eq!(bytes[22], 63);
    for ttl in [0, 1] {
        f[22] = ttl;
        assert_eq!(run(&f, &[dec.clone(), out(1)]), [Did::Output(7, f.clone())]);
        assert_eq!(
            run(&f, &[Action::DecTtl { exception: vec![] }, out(1)]),
            [Did::Dropped(DropReason::TtlExpired)]
        );
    }
}

#[test]
fn psample_gets_the_rate_of_its_sample() {
    let f = frame();
    let psample = Action::Psample { group: 3, cookie: vec![1] };
    let sample = Action::Sample { probability: u32::MAX, actions: vec![psample.clone()] };
    assert_eq!(
        run(&f, &[Action::Trunc { max_len: 15 }, psample]),
        [Did::Psample(u32::MAX, f[..15].to_vec(), f.len())]
    );
    assert_eq!(run(&f, &[sample]), [Did::Psample(u32::MAX, f.clone(), f.len())]);
}

#[test]
fn labels_are_pushed_behind_tags_and_popped_again() {
    let f = Spec { tags: 1, ..Spec::tcp() }.frame();
    let push = |lse, eth_type| Action::PushMpls { lse, eth_type };
    let one = after(&f, &[push(0x0001_0140, 0x8847)]);
    assert_eq!(one, [&f[..16], &[0x88, 0x47, 0, 1, 1, 0x40], &f[18..]].concat());
    let two = after(
        &one,
        &[
            push(0x0002_0040, 0x8847),
            Action::SetMasked { value: Header::Mpls(0x11), mask: Header::Mpls(0xff) },
        ],
    );
    assert_eq!(two, [&one[..18], &[0, 2, 0, 0x11], &one[18..]].concat());
    let pops = [
        Action::PopMpls { eth_type: 0x8847 },
        Action::PopMpls { eth_type: 0x0800 },
        Action::PopMpls { eth_type: 0x0800 },
    ];
    assert_eq!(after(&two, &pops), f);
    // Behind the last label the L3 header is in reach again.
    let src = Header::Ipv4 { src: [9; 4].into(), dst: [8; 4].into(), proto: 6, tos: 0, ttl: 9, frag: 0 };
    let popped = [Action::PopMpls { eth_type: 0x0800 }, Action::Set(src.clone())];
    assert_eq!(after(&one, &popped)[..38], after(&f, &[Action::Set(src)])[..38]);
}

#[test]
fn nsh_carries_a_frame_there_and_back() {
    let f = Spec { tags: 1, ..Spec::tcp() }.frame();
    let header =
        NshHeader { flags: 1, ttl: 63, mdtype: 1, np: 0, path_hdr: 0x0102_03ff, metadata: vec![7; 16] };
    let eth = Action::PushEth { src: [1; 6], dst: [2; 6] };
    let carried = after(&f, &[Action::PushNsh(Box::new(header)), eth]);
    let base = [0x1f, 0xc6, 1, 3, 1, 2, 3, 0xff];
    assert_eq!(carried, [&[2; 6][..], &[1; 6], &[0x89, 0x4f], &base, &[7; 16], &f].concat());
    assert_eq!(after(&carried, &[Action::PopEth, Action::PopNsh]), f);
    let set = Header::Nsh { flags: 2, ttl: 1, path_hdr: 5, context: Some([1, 2, 3, 4]) };
    let edited = after(&carried, &[Action::Set(set)]);
    assert_eq!(edited[14..26], [0x20, 0x46, 1, 3, 0, 0, 0, 5, 0, 0, 0, 1]);
    // An unknown next protocol, and a length past the packet, cannot be popped.
    for (at, value) in [(17, 9), (15, 0xff), (15, 0xc1)] {
        let mut odd = carried.clone();
        odd[at] = value;
        odd.truncate(60);
        assert_eq!(
            run(&odd, &[Action::PopEth, Action::PopNsh, out(1)]),
            [Did::Dropped(DropReason::PopNsh)],
            "byte {at} set to {value:#x}"
        );
    }
}

#[test]
fn a_label_ahead_of_the_frame_makes_it_a_payload() {
    let f = frame();
    let add = Action::AddMpls { lse: 0x0001_0140, eth_type: 0x8847, l3: false };
    let eth = Action::PushEth { src: [1; 6], dst: [2; 6] };
    let carried = after(&f, &[add, Action::Set(Header::Tcp { src: 1, dst: 1 }), eth]);
    assert_eq!(carried, [&[2; 6][..], &[1; 6], &[0x88, 0x47, 0, 1, 1, 0x40], &f].concat());
    assert_eq!(after(&carried, &[Action::PopEth, Action::PopMpls { eth_type: 0x6558 }]), f);
}
