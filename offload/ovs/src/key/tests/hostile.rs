//! Attributes that are not what a peer should send: each a typed error, never a panic (P4).

use super::*;
use error::InnerProblem;

fn refused(attrs: &[Attribute<'_>]) -> KeyError {
    decode_key(&sequence(attrs), Form::UserSpace).expect_err("must be refused")
}

const TYPE_IPV4: Attribute<'_> = (6, &[8, 0]);
const ETHERNET: Attribute<'_> = (4, &[0; 12]);

#[test]
fn every_attribute_of_a_wrong_length_is_refused() {
    // Number and length of `struct ovs_key_*` (linux/openvswitch.h), for all but the nested and MPLS.
    let lengths = [
        (2, 4),
        (3, 4),
        (4, 12),
        (5, 2),
        (6, 2),
        (7, 12),
        (8, 40),
        (9, 4),
        (10, 4),
        (11, 2),
        (12, 2),
        (13, 24),
        (14, 28),
        (15, 4),
        (17, 4),
        (18, 2),
        (19, 4),
        (20, 4),
        (22, 4),
        (23, 2),
        (24, 4),
        (25, 16),
        (26, 16),
        (27, 40),
        (29, 4),
        (32, 2),
    ];
    for (attr, expected) in lengths {
        for actual in [0, expected - 1, expected + 1, expected + 4] {
            let error = refused(&[(u16::from(attr), &vec![0; actual])]);
            assert_eq!(error, KeyError::Length { attr, level: 0, expected, actual });
        }
    }
}

#[test]
fn what_the_headers_call_for_must_be_there() {
    let cases: &[(&[Attribute<'_>], u8)] = &[
        (&[ETHERNET, TYPE_IPV4], 7),
        (&[ETHERNET, (6, &[0x86, 0xdd])], 8),
        (&[ETHERNET, (6, &[8, 6])], 13),
        (&[ETHERNET, (6, &[0x88, 0x47])], 21),
        (&[ETHERNET, (6, &[0x89, 0x4f])], 28),
        (&[ETHERNET, TYPE_IPV4, (7, &[0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0])], 9),
        (&[ETHERNET, TYPE_IPV4, (7, &[0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0])], 10),
        (&[ETHERNET, TYPE_IPV4, (7, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])], 11),
        (&[ETHERNET, TYPE_IPV4, (7, &[0, 0, 0, 0, 0, 0, 0, 0, 132, 0, 0, 1])], 17),
        (&[ETHERNET, (6, &[0x81, 0])], 5),
        (&[ETHERNET, (6, &[0x81, 0]), (5, &[0x10, 0])], 1),
    ];
    for (attrs, missing) in cases {
        assert_eq!(refused(attrs), KeyError::Missing { attr: *missing, level: 0 }, "{attrs:?}");
    }
}

#[test]
fn what_the_headers_leave_no_place_for_is_refused() {
    let later: Attribute<'_> = (7, &[0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 2]);
    let cases: &[(&[Attribute<'_>], u8)] = &[
        (&[ETHERNET, (7, &[0; 12])], 7),
        (&[ETHERNET, (6, &[0x90, 0]), (9, &[0; 4])], 9),
        (&[ETHERNET, TYPE_IPV4, later, (9, &[0; 4])], 9),
        (&[ETHERNET, TYPE_IPV4, (7, &[0; 12]), (8, &[0; 40])], 8),
        (&[ETHERNET, TYPE_IPV4, (7, &[0; 12]), (27, &[0; 40])], 27),
        (&[ETHERNET, TYPE_IPV4, (7, &[0; 12]), (5, &[0x10, 0])], 5),
        (&[ETHERNET, TYPE_IPV4, (7, &[0; 12]), (18, &[0, 0])], 18),
        (&[ETHERNET, TYPE_IPV4, (7, &[0; 12]), (1, &[])], 1),
    ];
    for (attrs, extra) in cases {
        assert_eq!(refused(attrs), KeyError::Misplaced { attr: *extra, level: 0 }, "{attrs:?}");
    }
    // Metadata within ENCAP.
    let inner = sequence(&[(6, &[0x90, 0]), (3, &[0; 4])]);
    let error = refused(&[ETHERNET, (6, &[0x81, 0]), (5, &[0x10, 0]), (1, &inner)]);
    assert_eq!(error, KeyError::Misplaced { attr: 3, level: 1 });
}

#[test]
fn fields_with_values_that_no_packet_has_are_refused() {
    let ipv6_label = [vec![0; 32], vec![0, 0x10, 0, 0], vec![59, 0, 0, 0]].concat();
    let arp = [vec![0; 8], vec![1, 0], vec![0; 14]].concat();
    let cases: &[(&[Attribute<'_>], u8)] = &[
        (&[ETHERNET, (6, &[0x05, 0xff])], 6),
        (&[ETHERNET, TYPE_IPV4, (7, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3])], 7),
        (&[ETHERNET, (6, &[0x86, 0xdd]), (8, &ipv6_label)], 8),
        (&[ETHERNET, (6, &[8, 6]), (13, &arp)], 13),
        (&[ETHERNET, (6, &[0x88, 0x47]), (21, &[0, 0, 1, 0, 0, 0, 1, 0])], 21),
        (&[ETHERNET, (22, &0x100u32.to_ne_bytes())], 22),
    ];
    for (attrs, number) in cases {
        let error = refused(attrs);
        assert!(matches!(error, KeyError::Value { attr, .. } if attr == *number), "{attrs:?}: {error}");
    }
}

#[test]
fn a_label_stack_has_whole_entries_and_at_most_three() {
    for actual in [3, 5, 16] {
        let error = refused(&[ETHERNET, (6, &[0x88, 0x47]), (21, &vec![0; actual])]);
        assert_eq!(error, KeyError::Length { attr: 21, level: 0, expected: 12, actual });
    }
}

#[test]
fn tunnel_attributes_are_checked_one_by_one() {
    let inner = |inner: u16, problem| KeyError::Inner { attr: 16, inner, problem };
    let cases: &[(&[Attribute<'_>], KeyError)] = &[
        (&[], inner(4, InnerProblem::Missing)),
        (&[(4, &[])], inner(4, InnerProblem::Length(0))),
        (&[(4, &[1]), (0, &[0; 4])], inner(0, InnerProblem::Length(4))),
        (&[(4, &[1]), (5, &[0])], inner(5, InnerProblem::Length(1))),
        (&[(4, &[1]), (17, &[])], inner(17, InnerProblem::Unknown)),
        (&[(4, &[1]), (8, &[0; 6])], inner(8, InnerProblem::Length(6))),
        (&[(4, &[1]), (8, &[0; 256])], inner(8, InnerProblem::Length(256))),
        (&[(4, &[1]), (1, &[1; 4]), (13, &[1; 16])], inner(13, InnerProblem::Conflict)),
        (&[(4, &[1]), (15, &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3])], inner(15, InnerProblem::Value(0))),
        (&[(4, &[1]), (16, &[])], inner(16, InnerProblem::Length(0))),
    ];
    for (attrs, want) in cases {
        let error = refused(&[(16, &sequence(attrs)), ETHERNET]);
        match (error, want) {
            // The version's bytes are in native order: which number it is does not matter here.
            (
                KeyError::Inner { inner: 15, problem: InnerProblem::Value(_), .. },
                KeyError::Inner { inner: 15, .. },
            ) => {}
            (error, want) => assert_eq!(error, *want, "{attrs:?}"),
        }
    }
}

#[test]
fn nsh_needs_its_base_header_and_context_only_of_type_1() {
    let base: Attribute<'_> = (1, &[0, 63, 2, 3, 0, 0, 1, 255]);
    let error = |attrs: &[Attribute<'_>]| refused(&[ETHERNET, (6, &[0x89, 0x4f]), (28, &sequence(attrs))]);
    let inner = |inner: u16, problem| KeyError::Inner { attr: 28, inner, problem };
    assert_eq!(error(&[]), inner(1, InnerProblem::Missing));
    assert_eq!(error(&[base, (2, &[0; 16])]), inner(2, InnerProblem::Conflict));
    assert_eq!(error(&[base, (2, &[0; 15])]), inner(2, InnerProblem::Length(15)));
    assert_eq!(error(&[base, (3, &[])]), inner(3, InnerProblem::Unknown));
}

#[test]
fn a_mask_that_looks_behind_a_wildcarded_type_is_refused() {
    let key = Key { vlan: Default::default(), ..tcp_in_vlan_10() };
    let mask = |attrs: &[Attribute<'_>]| decode_mask(&sequence(attrs), &key, Form::UserSpace);
    let exact_type: Attribute<'_> = (6, &[0xff; 2]);
    assert_eq!(mask(&[(7, &[1; 12])]), Err(KeyError::MaskWithout { attr: 7, needs: 6 }));
    assert_eq!(mask(&[(6, &[0xff, 0]), (7, &[1; 12])]), Err(KeyError::MaskWithout { attr: 7, needs: 6 }));
    assert_eq!(mask(&[exact_type, (9, &[1; 4])]), Err(KeyError::MaskWithout { attr: 9, needs: 7 }));
    assert_eq!(mask(&[exact_type, (18, &[0, 1])]), Err(KeyError::MaskWithout { attr: 9, needs: 7 }));
    assert_eq!(mask(&[exact_type, (8, &[1; 40])]), Err(KeyError::Misplaced { attr: 8, level: 0 }));
    assert!(mask(&[exact_type, (9, &[0; 4])]).is_ok());
}

#[test]
fn errors_name_the_attribute_and_the_place() {
    let text = KeyError::Duplicate { attr: 7, level: 1 }.to_string();
    assert_eq!(text, "attribute ipv4 occurs twice in ENCAP 1");
    let text = KeyError::Unknown { attr: 77, level: 0 }.to_string();
    assert_eq!(text, "attribute 77 is unknown");
    let error = KeyError::Inner { attr: 16, inner: 4, problem: InnerProblem::Missing };
    assert_eq!(error.to_string(), "attribute 4 within tunnel is missing");
}
