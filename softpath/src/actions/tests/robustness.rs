//! No list of actions does harm on any bytes: it neither panics nor reads past the packet, nested lists leave the
//! original as it was, and what is sent is what the buffer holds.

use super::frames::{L4, Spec};
use super::{Did, run};
use flowlift_flow::action::{HashAlg, NshHeader, Userspace};
use flowlift_flow::{Action, Header, PortNo};
use proptest::prelude::*;

fn simple() -> impl Strategy<Value = Action> {
    let types =
        prop::sample::select(vec![0x0800u16, 0x86dd, 0x8847, 0x8848, 0x0806, 0x6558, 0x894f, 0x8100, 5]);
    let mpls = prop::sample::select(vec![0x8847u16, 0x8848]);
    let context = prop::option::of(any::<[u32; 4]>());
    prop_oneof![
        any::<u8>().prop_map(|p| Action::Output(PortNo(p.into()))),
        Just(Action::Userspace(Userspace::default())),
        Just(Action::PopVlan),
        Just(Action::PopEth),
        Just(Action::PopNsh),
        any::<u16>().prop_map(|tci| Action::PushVlan { tpid: 0x8100, tci: tci | 0x1000 }),
        (any::<u32>(), mpls.clone()).prop_map(|(lse, eth_type)| Action::PushMpls { lse, eth_type }),
        (any::<u32>(), mpls, any::<bool>()).prop_map(|(lse, eth_type, l3)| Action::AddMpls {
            lse,
            eth_type,
            l3
        }),
        types.prop_map(|eth_type| Action::PopMpls { eth_type }),
        Just(Action::PushEth { src: [1; 6], dst: [2; 6] }),
        Just(Action::PushNsh(Box::new(NshHeader {
            flags: 0,
            ttl: 3,
            mdtype: 1,
            np: 0,
            path_hdr: 9,
            metadata: vec![5; 16]
        }))),
        (14..200u32).prop_map(|max_len| Action::Trunc { max_len }),
        any::<bool>()
            .prop_map(|l4| Action::Hash { alg: if l4 { HashAlg::L4 } else { HashAlg::SymL4 }, basis: 3 }),
        Just(Action::Recirc(4)),
        Just(Action::DecTtl { exception: vec![Action::Output(PortNo(99))] }),
        any::<u32>().prop_map(|lse| Action::Set(Header::Mpls(lse))),
        Just(Action::Set(Header::Ethernet { src: [3; 6], dst: [4; 6] })),
        any::<[u8; 4]>().prop_map(|a| Action::Set(Header::Ipv4 {
            src: a.into(),
            dst: a.into(),
            proto: 6,
            tos: 1,
            ttl: 2,
            frag: 0
        })),
        any::<[u8; 16]>().prop_map(|a| {
            Action::Set(Header::Ipv6 {
                src: a.into(),
                dst: a.into(),
                label: 1,
                proto: 6,
                tclass: 1,
                hlimit: 2,
                frag: 0,
            })
        }),
        any::<u16>().prop_map(|p| Action::Set(Header::Tcp { src: p, dst: p })),
        any::<u16>().prop_map(|p| Action::Set(Header::Udp { src: p, dst: p })),
        any::<u16>().prop_map(|p| Action::Set(Header::Sctp { src: p, dst: p })),
        any::<u8>().prop_map(|b| Action::Set(Header::Icmp { ty: b, code: b })),
        any::<u8>().prop_map(|b| Action::Set(Header::Icmpv6 { ty: b, code: b })),
        any::<[u8; 6]>().prop_map(|m| Action::Set(Header::Nd { target: [m[0]; 16].into(), sll: m, tll: m })),
        any::<[u8; 6]>().prop_map(|m| {
            Action::Set(Header::Arp { sip: [m[0]; 4].into(), tip: [m[1]; 4].into(), op: 2, sha: m, tha: m })
        }),
        context.prop_map(|context| Action::Set(Header::Nsh { flags: 1, ttl: 2, path_hdr: 3, context })),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    simple().prop_recursive(3, 12, 4, |inner| {
        let list = || prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            list().prop_map(Action::Clone),
            list().prop_map(|actions| Action::Sample { probability: u32::MAX / 2, actions }),
            (0..200u16, list(), list()).prop_map(|(pkt_len, greater, less_or_equal)| Action::CheckPktLen {
                pkt_len,
                greater,
                less_or_equal
            }),
        ]
    })
}

/// Well-formed frames, cut and flipped, and bytes that are no frame at all.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let l4 = prop::sample::select(vec![L4::Tcp, L4::Udp, L4::Sctp, L4::Icmp, L4::Nd]);
    let built =
        (0..3usize, any::<bool>(), l4, 0..3usize, 0..9usize).prop_map(|(tags, v6, l4, options, padding)| {
            Spec { tags, v6, l4, options, padding, payload: vec![1; 9] }.frame()
        });
    let damaged = (
        built,
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|(mut frame, cut, flips)| {
            for (at, value) in flips {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            frame.truncate(cut.index(2 * frame.len()).saturating_sub(1).min(frame.len()));
            frame
        });
    prop_oneof![4 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..80)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_actions_on_any_bytes(frame in frame(), actions in prop::collection::vec(action(), 0..8)) {
        run(&frame, &actions);
    }

    #[test]
    fn nested_lists_leave_the_original_alone(frame in frame(), actions in prop::collection::vec(action(), 0..6)) {
        let last = Action::Output(PortNo(1000));
        for nested in [
            Action::Clone(actions.clone()),
            Action::Sample { probability: u32::MAX, actions: actions.clone() },
            Action::CheckPktLen { pkt_len: 0, greater: actions.clone(), less_or_equal: actions.clone() },
        ] {
            let did = run(&frame, &[nested, last.clone()]);
            prop_assert_eq!(did.last(), Some(&Did::Output(1000, frame.clone())));
        }
    }
}
