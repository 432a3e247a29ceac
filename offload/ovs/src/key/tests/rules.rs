//! The rules of RULES.md that concern keys and masks as attributes, by number.

use super::*;

const ETHERNET: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
/// 10.0.0.1 to 10.0.0.2, TCP, TOS 4, TTL 64, no fragment.
const IPV4: &[u8] = &[10, 0, 0, 1, 10, 0, 0, 2, 6, 4, 64, 0];
const TCP: &[u8] = &[0x04, 0xd2, 0, 80];

/// The key of [`tcp_in_vlan_10`] from ETHERNET on.
fn headers_in_vlan_10() -> Vec<u8> {
    let inner = sequence(&[(6, &[8, 0]), (7, IPV4), (9, TCP), (18, &[0, 2])]);
    sequence(&[(4, ETHERNET), (6, &[0x81, 0]), (5, &[0x10, 0x0a]), (1, &inner)])
}

#[test]
fn r05_a_composed_key_reads_back_as_the_same_key() {
    let key = tcp_in_vlan_10();
    for form in [Form::UserSpace, Form::Datapath] {
        let bytes = composed(&key, form);
        assert_eq!(decode_key(&bytes, form).map(|(key, _)| key), Ok(key.clone()), "{form:?}");
    }
}

#[test]
fn r11_a_key_is_metadata_then_header_fields() {
    let key = Key { recirc_id: 3, skb_mark: 5, ct_zone: 7, ..tcp_in_vlan_10() };
    let metadata = sequence(&[
        (20, &3u32.to_ne_bytes()),
        (19, &[0; 4]),
        (2, &[0; 4]),
        (3, &1u32.to_ne_bytes()),
        (15, &5u32.to_ne_bytes()),
        (22, &[0; 4]),
        (23, &7u16.to_ne_bytes()),
        (24, &[0; 4]),
        (25, &[0; 16]),
    ]);
    let packet_type = sequence(&[(29, &[0; 4])]);
    let user_space = [metadata.clone(), packet_type, headers_in_vlan_10()].concat();
    assert_eq!(hex(&composed(&key, Form::UserSpace)), hex(&user_space));
    assert_eq!(hex(&composed(&key, Form::Datapath)), hex(&[metadata, headers_in_vlan_10()].concat()));
}

#[test]
fn r27_an_attribute_of_the_future_is_refused_by_number() {
    for number in [0, 30, 31, 33, 63, 64, 1000] {
        let bytes = [headers_in_vlan_10(), sequence(&[(number, &[0; 4])])].concat();
        assert_eq!(decode_key(&bytes, Form::UserSpace), Err(KeyError::Unknown { attr: number, level: 0 }));
    }
    let inner = sequence(&[(6, &[8, 0]), (40, &[])]);
    let bytes = sequence(&[(4, ETHERNET), (6, &[0x81, 0]), (5, &[0x10, 0x0a]), (1, &inner)]);
    assert_eq!(decode_key(&bytes, Form::UserSpace), Err(KeyError::Unknown { attr: 40, level: 1 }));
}

#[test]
fn r28_headers_behind_a_tag_are_only_visible_within_encap() {
    let bytes = composed(&tcp_in_vlan_10(), Form::Datapath);
    let outer = types(&bytes);
    assert_eq!(outer[outer.len() - 4..], [attr::ETHERNET, attr::ETHERTYPE, attr::VLAN, attr::ENCAP]);
    assert_eq!(
        types(payload(&bytes, attr::ENCAP)),
        [attr::ETHERTYPE, attr::IPV4, attr::TCP, attr::TCP_FLAGS]
    );
}

#[test]
fn r29_tcp_in_vlan_10() {
    let (key, named) = decode_key(&headers_in_vlan_10(), Form::Datapath).expect("a key");
    assert_eq!(key, Key { in_port: 0, ..tcp_in_vlan_10() });
    assert!(named.has(0, 1) && named.has(1, 7) && !named.has(0, 7), "{named:?}");
}

#[test]
fn r30_the_outer_eth_type_stays_the_tpid() {
    let mut key = tcp_in_vlan_10();
    key.vlan = [0x88a8, 0x8100].map(|tpid| VlanTag { tpid: tpid.into(), tci: 0x1001.into() });
    let bytes = composed(&key, Form::Datapath);
    assert_eq!(payload(&bytes, attr::ETHERTYPE), [0x88, 0xa8]);
    let first = payload(&bytes, attr::ENCAP);
    assert_eq!(payload(first, attr::ETHERTYPE), [0x81, 0]);
    assert_eq!(payload(payload(first, attr::ENCAP), attr::ETHERTYPE), [8, 0]);
}

#[test]
fn r32_a_header_that_is_missing_has_an_attribute_with_empty_content() {
    let cases: &[(u16, u8, usize)] =
        &[(0x0800, 7, 12), (0x86dd, 8, 40), (0x0806, 13, 24), (0x8035, 13, 24), (0x8847, 21, 0)];
    for (eth_type, attr, length) in cases {
        let key = Key { eth_type: (*eth_type).into(), ..Key::default() };
        let bytes = composed(&key, Form::UserSpace);
        assert_eq!(payload(&bytes, *attr), vec![0; *length], "Ethernet type {eth_type:#x}");
        assert_eq!(
            decode_key(&bytes, Form::UserSpace).map(|(k, _)| k),
            Ok(key),
            "Ethernet type {eth_type:#x}"
        );
    }
}

#[test]
fn r34_tcp_without_a_header_has_zero_ports_and_no_flags() {
    let key = Key { tp_src: 0.into(), tp_dst: 0.into(), tcp_flags: 0.into(), ..tcp_in_vlan_10() };
    let bytes = composed(&key, Form::UserSpace);
    assert_eq!(types(payload(&bytes, attr::ENCAP)), [attr::ETHERTYPE, attr::IPV4, attr::TCP]);
    assert_eq!(payload(payload(&bytes, attr::ENCAP), attr::TCP), [0; 4]);
}

#[test]
fn r35_a_tag_cut_off_is_a_zero_vlan_and_an_empty_encap() {
    let cut =
        Key { vlan: [VlanTag { tpid: 0x8100.into(), tci: 0.into() }, VlanTag::default()], ..Key::default() };
    let bytes = composed(&cut, Form::Datapath);
    let want = sequence(&[(4, &[0; 12]), (6, &[0x81, 0]), (5, &[0, 0]), (1, &[])]);
    assert!(bytes.ends_with(&want), "{}", hex(&bytes));
    assert_eq!(decode_key(&bytes, Form::Datapath).map(|(key, _)| key), Ok(cut));

    let not_empty = sequence(&[(6, &[8, 0])]);
    let bytes = sequence(&[(4, ETHERNET), (6, &[0x81, 0]), (5, &[0, 0]), (1, &not_empty)]);
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::VlanTci { tci: 0, level: 0 }));
}

#[test]
fn r36_a_tci_without_the_cfi_bit_is_refused() {
    let inner = sequence(&[(6, &[0x90, 0])]);
    let bytes = sequence(&[(4, ETHERNET), (6, &[0x81, 0]), (5, &[0, 0x0a]), (1, &inner)]);
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::VlanTci { tci: 10, level: 0 }));
}

#[test]
fn r37_no_attribute_twice_at_one_nesting_level() {
    let once = headers_in_vlan_10();
    let bytes = [once.clone(), sequence(&[(4, ETHERNET)])].concat();
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::Duplicate { attr: 4, level: 0 }));

    let inner = sequence(&[(6, &[8, 0]), (7, IPV4), (9, TCP), (7, IPV4)]);
    let bytes = sequence(&[(4, ETHERNET), (6, &[0x81, 0]), (5, &[0x10, 0x0a]), (1, &inner)]);
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::Duplicate { attr: 7, level: 1 }));

    let tunnel = sequence(&[(4, &[64]), (4, &[64])]);
    let bytes = [sequence(&[(16, &tunnel)]), once].concat();
    let problem = error::InnerProblem::Duplicate;
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::Inner { attr: 16, inner: 4, problem }));
}

#[test]
fn r37_the_same_attribute_at_two_levels_is_fine() {
    let bytes = headers_in_vlan_10();
    assert!(types(&bytes).contains(&6) && types(payload(&bytes, 1)).contains(&6));
    assert!(decode_key(&bytes, Form::Datapath).is_ok());
}

#[test]
fn r38_the_order_of_attributes_does_not_matter() {
    let inner = sequence(&[(18, &[0, 2]), (9, TCP), (7, IPV4), (6, &[8, 0])]);
    let backwards = sequence(&[(1, &inner), (5, &[0x10, 0x0a]), (6, &[0x81, 0]), (4, ETHERNET)]);
    assert_eq!(decode_key(&backwards, Form::Datapath), decode_key(&headers_in_vlan_10(), Form::Datapath));
}

#[test]
fn r39_a_key_is_always_composed_the_same_way() {
    let inner = sequence(&[(18, &[0, 2]), (9, TCP), (7, IPV4), (6, &[8, 0])]);
    let backwards = sequence(&[(1, &inner), (5, &[0x10, 0x0a]), (6, &[0x81, 0]), (4, ETHERNET)]);
    let (key, _) = decode_key(&backwards, Form::Datapath).expect("a key");
    assert!(composed(&key, Form::Datapath).ends_with(&headers_in_vlan_10()));
}

#[test]
fn r14_a_mask_bit_of_1_is_exact_and_of_0_is_not() {
    let key = tcp_in_vlan_10();
    let inner = sequence(&[
        (6, &[0xff, 0xff]),
        (7, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0xff, 0, 0, 0]),
        (9, &[0, 0, 0xff, 0xf0]),
    ]);
    let bytes = sequence(&[(6, &[0xff, 0xff]), (5, &[0x1f, 0xff]), (1, &inner)]);
    let (mask, _) = decode_mask(&bytes, &key, Form::Datapath).expect("a mask");
    let with = |change: fn(&mut Key)| {
        let mut packet = key.clone();
        change(&mut packet);
        mask.matches(&key, &packet)
    };
    assert!(with(|k| k.ipv4_src = 0x0a00_00ff.into()) && !with(|k| k.ipv4_src = 0x0a00_01ff.into()));
    assert!(with(|k| k.tp_dst = 95.into()) && !with(|k| k.tp_dst = 96.into()));
    assert!(with(|k| k.tp_src = 1.into()) && with(|k| k.in_port = 9) && with(|k| k.eth_src = [0; 6]));
    assert!(!with(|k| k.vlan[0].tci = 0x100b.into()) && with(|k| k.vlan[0].tci = 0xf00a.into()));
}

#[test]
fn r15_no_mask_means_every_attribute_of_the_key_is_exact() {
    let matching = decode_match(&headers_in_vlan_10(), None, Form::Datapath).expect("a match");
    let m = &matching.mask.0;
    assert_eq!((m.eth_src, m.ipv4_dst.get(), m.tp_src.get()), ([0xff; 6], u32::MAX, u16::MAX));
    assert_eq!((m.vlan[0].tci.get(), m.eth_type.get(), m.ip_frag), (u16::MAX, u16::MAX, u8::MAX));
    assert_eq!(m.in_port, 0, "IN_PORT was not named");
    assert_eq!(m.ipv6_src, [0; 16]);
}

#[test]
fn r16_a_key_without_a_tag_never_matches_a_tagged_packet() {
    let bytes = sequence(&[(4, ETHERNET), (6, &[8, 0]), (7, IPV4), (9, TCP)]);
    let any = sequence(&[(6, &[0xff, 0xff])]);
    let matching = decode_match(&bytes, Some(&any), Form::Datapath).expect("a match");
    let tagged = tcp_in_vlan_10();
    let untagged = Key { vlan: Default::default(), ..tagged.clone() };
    assert!(matching.mask.matches(&matching.key, &untagged));
    assert!(!matching.mask.matches(&matching.key, &tagged));
}

#[test]
fn r16_a_key_without_recirculation_never_matches_a_recirculated_packet() {
    let key = tcp_in_vlan_10();
    let (mask, _) = decode_mask(&[], &key, Form::Datapath).expect("a mask");
    assert!(!mask.matches(&key, &Key { recirc_id: 1, ..key.clone() }));
}

#[test]
fn r21_a_mask_composed_again_is_the_mask_that_was_read() {
    let key = tcp_in_vlan_10();
    let inner =
        sequence(&[(6, &[0xff, 0xff]), (7, &[0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0xff]), (9, &[0; 4])]);
    let bytes =
        sequence(&[(20, &[0xff; 4]), (3, &[0xff; 4]), (6, &[0xff, 0xff]), (5, &[0x1f, 0xff]), (1, &inner)]);
    let key_bytes = composed(&key, Form::Datapath);
    let matching = decode_match(&key_bytes, Some(&bytes), Form::Datapath).expect("a match");
    let (key_again, mask_again) = encode_match(&matching, Form::Datapath);
    assert_eq!(hex(&key_again), hex(&key_bytes));
    assert_eq!(hex(&mask_again), hex(&bytes));
}

#[test]
fn u04_a_missing_attribute_in_a_mask_is_wildcarded_whole() {
    let key = tcp_in_vlan_10();
    let (mask, named) = decode_mask(&sequence(&[(3, &[0xff; 4])]), &key, Form::Datapath).expect("a mask");
    let m = mask.0;
    assert_eq!((m.in_port, m.eth_src, m.ipv4_src.get(), m.tp_src.get()), (u32::MAX, [0; 6], 0, 0));
    assert_eq!(named, AttrSet([1 << 3, 0, 0]));
}

#[test]
fn u13_packet_type_never_crosses_to_a_datapath() {
    let key = tcp_in_vlan_10();
    assert!(!types(&composed(&key, Form::Datapath)).contains(&29));
    let bytes = composed(&key, Form::UserSpace);
    assert!(types(&bytes).contains(&29));
    assert_eq!(decode_key(&bytes, Form::Datapath), Err(KeyError::Unknown { attr: 29, level: 0 }));
}

#[test]
fn extension_headers_cross_to_a_datapath_and_are_not_in_user_space_keys() {
    let key = Key { eth_type: eth_type::IPV6.into(), ip_proto: 59, ipv6_exthdrs: 0x41, ..Key::default() };
    let bytes = composed(&key, Form::Datapath);
    assert_eq!(payload(&bytes, 32), 0x41u16.to_ne_bytes());
    assert_eq!(decode_key(&bytes, Form::Datapath).map(|(k, _)| k.ipv6_exthdrs), Ok(0x41));
    assert!(!types(&composed(&key, Form::UserSpace)).contains(&32));
}

#[test]
fn exact_masks_compose_as_open_vswitch_does() {
    let mut bytes = Vec::new();
    encode_mask(&tcp_in_vlan_10(), &Mask::exact(), Form::UserSpace, None, &mut bytes);
    let outer = [20, 19, 2, 16, 3, 15, 22, 23, 24, 25, 29, 4, 6, 5, 1];
    assert_eq!(types(&bytes), outer);
    assert_eq!(payload(&bytes, 6), [0xff, 0xff]);
    let inner = payload(&bytes, 1);
    assert_eq!(types(inner), [6, 7, 9, 18]);
    assert_eq!(payload(inner, 7), [0xff; 12]);
}
