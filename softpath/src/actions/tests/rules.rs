//! Rules of the datapath's users that concern actions, each test named after its rule.

use super::frames::{L4, Spec};
use super::{Did, after, run};
use crate::actions::{DropReason, Unsupported, compile};
use flowlift_flow::action::Userspace;
use flowlift_flow::{Action, Header, PortNo};

const OUT: Action = Action::Output(PortNo(1));

fn ipv4(src: [u8; 4], proto: u8) -> Header {
    Header::Ipv4 { src: src.into(), dst: [0; 4].into(), proto, tos: 0, ttl: 0, frag: 0 }
}

#[test]
fn r31_actions_never_drop_a_malformed_packet() {
    let frame = Spec { tags: 2, ..Spec::tcp() }.frame();
    let actions = [
        Action::Set(Header::Ethernet { src: [1; 6], dst: [2; 6] }),
        Action::PopVlan,
        Action::Set(ipv4([9; 4], 6)),
        Action::Set(Header::Tcp { src: 1, dst: 2 }),
        Action::PushVlan { tpid: 0x8100, tci: 0x1005 },
        OUT,
    ];
    for len in 0..frame.len() {
        let did = run(&frame[..len], &actions);
        assert!(matches!(did[..], [Did::Output(1, _)]), "frame cut at {len}: {did:?}");
    }
}

#[test]
fn r34_a_header_that_is_cut_off_is_not_set() {
    let spec = Spec::tcp();
    let frame = spec.frame();
    for len in 34..54 {
        let cut = &frame[..len];
        assert_eq!(after(cut, &[Action::Set(Header::Tcp { src: 7, dst: 8 })]), cut, "cut at {len}");
    }
    // Whole again: it is set.
    assert_ne!(after(&frame, &[Action::Set(Header::Tcp { src: 7, dst: 8 })]), frame);
}

#[test]
fn r35_a_tag_that_is_cut_off_is_not_popped() {
    let frame = Spec { tags: 1, ..Spec::tcp() }.frame();
    for len in 0..18 {
        assert_eq!(after(&frame[..len], &[Action::PopVlan]), &frame[..len], "cut at {len}");
    }
    assert_eq!(after(&frame[..18], &[Action::PopVlan]), [&frame[..12], &frame[16..18]].concat());
}

#[test]
fn u7_push_vlan_needs_the_cfi_bit_and_a_parsed_tpid() {
    let push = |tpid, tci| compile(&[Action::PushVlan { tpid, tci }]).map(|_| ());
    assert_eq!(push(0x8100, 5), Err(Unsupported::VlanWithoutCfi(5)));
    assert_eq!(push(0x9100, 0x1005), Err(Unsupported::VlanTpid(0x9100)));
    assert_eq!((push(0x8100, 0x1005), push(0x88a8, 0x1000)), (Ok(()), Ok(())));
    // On the wire CFI is the drop-eligible bit; a pushed tag does not set it.
    let frame = Spec::tcp().frame();
    let tagged = after(&frame, &[Action::PushVlan { tpid: 0x88a8, tci: 0xb064 }]);
    assert_eq!(tagged[12..16], [0x88, 0xa8, 0xa0, 0x64]);
    assert_eq!((&tagged[..12], &tagged[16..]), (&frame[..12], &frame[12..]));
}

#[test]
fn u8_a_masked_set_stays_within_its_mask() {
    let masked = |value, mask| compile(&[Action::SetMasked { value, mask }]).map(|_| ());
    assert_eq!(
        masked(ipv4([10, 0, 0, 1], 0), ipv4([255, 255, 255, 0], 0)),
        Err(Unsupported::OutsideMask("ipv4"))
    );
    assert_eq!(
        masked(ipv4([10, 0, 0, 0], 0), ipv4([255, 255, 255, 0], 255)),
        Err(Unsupported::FixedField("ipv4"))
    );
    assert_eq!(masked(Header::Mpls(1), Header::SkbMark(1)), Err(Unsupported::OutsideMask("mpls")));
    let tunnel = Header::Tunnel(Box::default());
    assert!(compile(&[Action::Set(tunnel.clone())]).is_ok());
    let masked = Action::SetMasked { value: tunnel.clone(), mask: tunnel };
    assert!(matches!(compile(&[masked]), Err(Unsupported::Set(_))));
    let out = after(
        &Spec::tcp().frame(),
        &[Action::SetMasked { value: ipv4([99, 0, 0, 0], 0), mask: ipv4([255, 0, 0, 0], 0) }],
    );
    assert_eq!(out[26..30], [99, 0, 0, 1]);
}

#[test]
fn u9_pop_mpls_without_mpls_does_nothing() {
    let frame = Spec::tcp().frame();
    assert_eq!(after(&frame, &[Action::PopMpls { eth_type: 0x0800 }]), frame);
    // A label that is cut off is none either.
    let mut label = frame[..12].to_vec();
    label.extend([0x88, 0x47, 0, 1, 0x01]);
    assert_eq!(after(&label, &[Action::PopMpls { eth_type: 0x0800 }]), label);
}

#[test]
fn u10_clone_leaves_the_original_alone() {
    let frame = Spec::tcp().frame();
    let push = Action::PushVlan { tpid: 0x8100, tci: 0x1001 };
    let did = run(&frame, &[Action::Clone(vec![push.clone(), OUT]), OUT]);
    assert_eq!(did, [Did::Output(1, after(&frame, &[push])), Did::Output(1, frame)]);
}

#[test]
fn u10_sample_never_always_and_about_as_often_as_asked() {
    let frame = Spec::tcp().frame();
    let mut ctx = super::Context::new(7);
    let mut count = |probability| {
        let actions = [Action::Sample { probability, actions: vec![OUT] }];
        (0..4096).map(|_| super::run_in(&mut ctx, &frame, &actions).len()).sum::<usize>()
    };
    assert_eq!((count(0), count(u32::MAX)), (0, 4096));
    let quarter = count(u32::MAX / 4);
    assert!((900..1150).contains(&quarter), "{quarter} of 4096 at a probability of 1/4");
}

#[test]
fn u10_check_pkt_len_branches_on_longer_than() {
    let frame = Spec { padding: 6, ..Spec::tcp() }.frame();
    let len = frame.len() - 6;
    let branch = |pkt_len: usize| {
        let out = |port| vec![Action::Output(PortNo(port))];
        run(
            &frame,
            &[Action::CheckPktLen { pkt_len: pkt_len as u16, greater: out(1), less_or_equal: out(2) }],
        )
    };
    // Padding does not count, but is sent.
    assert_eq!(branch(len - 1), [Did::Output(1, frame.clone())]);
    assert_eq!(branch(len), [Did::Output(2, frame.clone())]);
}

#[test]
fn u11_an_action_upcall_shows_earlier_actions_but_the_key_received() {
    let frame = Spec::tcp().frame();
    let set = Action::Set(Header::Tcp { src: 1, dst: 2 });
    let did = run(&frame, &[set.clone(), Action::Userspace(Userspace::default()), OUT]);
    let edited = after(&frame, &[set]);
    assert_eq!(did, [Did::Upcall(edited.clone(), 0x1234), Did::Output(1, edited)]);
}

#[test]
fn u12_ct_is_refused_and_ct_clear_has_nothing_to_forget() {
    assert_eq!(compile(&[Action::Ct(Box::default())]), Err(Unsupported::Action("ct")));
    assert_eq!(compile(&[Action::CtClear, OUT]).unwrap().single_output(), Some(PortNo(1)));
}

#[test]
fn what_is_missing_is_refused_by_name_at_any_depth() {
    for (action, name) in [(Action::TnlPop(PortNo(1)), "tnl_pop"), (Action::LbOutput(1), "lb_output")] {
        let nested = Action::Clone(vec![Action::Sample { probability: 1, actions: vec![action] }]);
        assert_eq!(compile(&[OUT, nested]), Err(Unsupported::Action(name)));
    }
}

#[test]
fn later_fragments_have_no_l4_header() {
    for l4 in [L4::Tcp, L4::Udp, L4::Icmp, L4::Sctp] {
        let spec = Spec { l4, payload: vec![7; 40], ..Spec::tcp() };
        let mut frame = spec.frame();
        frame[20..22].copy_from_slice(&[0x20, 0x05]);
        let out = after(
            &frame,
            &[
                Action::Set(ipv4([9; 4], 6)),
                Action::Set(Header::Tcp { src: 1, dst: 2 }),
                Action::Set(Header::Udp { src: 1, dst: 2 }),
                Action::Set(Header::Sctp { src: 1, dst: 2 }),
                Action::Set(Header::Icmp { ty: 1, code: 2 }),
            ],
        );
        assert_eq!(out[34..], frame[34..], "{l4:?}");
        assert_eq!(out[26..30], [9; 4]);
    }
}

#[test]
fn nothing_to_do_is_a_drop() {
    let frame = Spec::tcp().frame();
    assert_eq!(run(&frame, &[]), [Did::Dropped(DropReason::NoActions)]);
    assert_eq!(run(&frame, &[Action::Drop(3), OUT]), [Did::Dropped(DropReason::Explicit(3))]);
}
