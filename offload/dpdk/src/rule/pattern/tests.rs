use super::*;

/// An item as text: kind, then `byte=value/mask` in hexadecimal.
fn item(kind: ItemKind, fields: &[(usize, &[u8], &[u8])]) -> (ItemKind, Vec<u8>, Vec<u8>) {
    let (mut spec, mut mask) = (vec![0; kind.size()], vec![0; kind.size()]);
    for (at, value, bits) in fields {
        spec[*at..at + value.len()].copy_from_slice(value);
        mask[*at..at + bits.len()].copy_from_slice(bits);
    }
    (kind, spec, mask)
}

fn translate(items: &[(ItemKind, Vec<u8>, Vec<u8>)]) -> Result<Match, Refusal> {
    let items: Vec<Item<'_>> = items
        .iter()
        .map(|(kind, spec, mask)| {
            let given = !spec.is_empty() && mask.iter().any(|b| *b != 0);
            Item {
                kind: *kind,
                spec: given.then_some(&spec[..]),
                last: None,
                mask: given.then_some(&mask[..]),
            }
        })
        .collect();
    to_match(&items, 1, 0).map(|(m, _)| m)
}

#[test]
fn headers_imply_the_types_that_lead_to_them() {
    let plain = |kinds: &[ItemKind]| {
        let items: Vec<_> = kinds.iter().map(|k| item(*k, &[])).collect();
        translate(&items).unwrap()
    };
    let m = plain(&[ItemKind::Eth, ItemKind::Ipv4, ItemKind::Udp]);
    assert_eq!((m.key.eth_type.get(), m.mask.0.eth_type.get()), (0x0800, 0xffff));
    assert_eq!((m.key.ip_proto, m.mask.0.ip_proto), (17, 0xff));
    assert_eq!((m.key.ip_frag, m.mask.0.ip_frag), (0, 0xff));
    assert_eq!((m.key.vlan[0].tci.get(), m.mask.0.vlan[0].tci.get()), (0, 0xffff), "untagged");
    assert_eq!((m.key.in_port, m.mask.0.in_port), (1, u32::MAX));

    let m = plain(&[ItemKind::Eth, ItemKind::Vlan, ItemKind::Vlan, ItemKind::Ipv6, ItemKind::Icmp6]);
    assert_eq!((m.key.vlan[1].tci.get(), m.mask.0.vlan[1].tci.get()), (0x1000, 0x1000));
    assert_eq!((m.key.eth_type.get(), m.key.ip_proto), (0x86dd, 58));

    let m = plain(&[ItemKind::Eth]);
    assert_eq!((m.mask.0.eth_type.get(), m.mask.0.vlan[0].tci.get()), (0, 0), "tagged or not");
    assert_eq!(plain(&[]).mask.0.eth_type.get(), 0);
}

#[test]
fn values_end_where_a_flow_has_them_and_dirty_bits_outside_the_mask_do_not() {
    let m = translate(&[
        item(ItemKind::Eth, &[(0, &[2, 0, 0, 0, 0, 9], &[0xff; 6]), (6, &[0xaa; 6], &[0; 6])]),
        item(
            ItemKind::Ipv4,
            &[(1, &[0xb8], &[0xfc]), (8, &[64], &[0xff]), (12, &[10, 1, 2, 3], &[0xff, 0xff, 0, 0])],
        ),
        item(ItemKind::Tcp, &[(2, &[0, 80], &[0xff, 0xff]), (12, &[0x51, 0x12], &[0x0f, 0xff])]),
    ])
    .unwrap();
    assert_eq!(m.key.eth_dst, [2, 0, 0, 0, 0, 9]);
    assert_eq!((m.key.eth_src, m.mask.0.eth_src), ([0; 6], [0; 6]));
    assert_eq!((m.key.ip_tos, m.mask.0.ip_tos, m.key.ip_ttl), (0xb8, 0xfc, 64));
    assert_eq!((m.key.ipv4_src.get(), m.mask.0.ipv4_src.get()), (0x0a01_0000, 0xffff_0000));
    assert_eq!((m.key.tp_dst.get(), m.mask.0.tp_src.get()), (80, 0));
    assert_eq!((m.key.tcp_flags.get(), m.mask.0.tcp_flags.get()), (0x112, 0xfff));
}

#[test]
fn tags_by_type_by_item_and_by_has_vlan() {
    let tagged = item(ItemKind::Eth, &[(12, &[0x88, 0xa8], &[0xff, 0xff])]);
    let vlan = item(ItemKind::Vlan, &[(0, &[0, 5], &[0x0f, 0xff])]);
    let m = translate(&[tagged.clone(), vlan.clone(), item(ItemKind::Ipv4, &[])]).unwrap();
    assert_eq!((m.key.vlan[0].tpid.get(), m.mask.0.vlan[0].tpid.get()), (0x88a8, 0xffff));
    assert_eq!((m.key.vlan[0].tci.get(), m.mask.0.vlan[0].tci.get()), (0x1005, 0x1fff));
    assert_eq!((m.key.eth_type.get(), m.mask.0.vlan[1].tci.get()), (0x0800, 0xffff));

    // Open vSwitch up to 3.1: the innermost type in ETH.
    let ovs = item(ItemKind::Eth, &[(12, &[8, 0], &[0xff, 0xff])]);
    let m2 = translate(&[ovs, vlan.clone(), item(ItemKind::Ipv4, &[])]).unwrap();
    assert_eq!((m2.key.eth_type.get(), m2.mask.0.vlan[0].tpid.get()), (0x0800, 0));

    let m = translate(&[tagged]).unwrap();
    assert_eq!((m.key.vlan[0].tpid.get(), m.mask.0.eth_type.get()), (0x88a8, 0), "any content");

    let has = |value| item(ItemKind::Eth, &[(14, &[value], &[1])]);
    let m = translate(&[has(1)]).unwrap();
    assert_eq!((m.key.vlan[0].tci.get(), m.mask.0.vlan[0].tci.get()), (0x1000, 0x1000));
    let m = translate(&[has(0)]).unwrap();
    assert_eq!((m.key.vlan[0].tci.get(), m.mask.0.vlan[0].tci.get()), (0, 0xffff));
    let m = translate(&[has(1), item(ItemKind::Ipv4, &[])]).unwrap();
    assert_eq!((m.mask.0.vlan[0].tci.get(), m.mask.0.vlan[1].tci.get()), (0x1000, 0xffff));
    assert_eq!(translate(&[has(0), vlan]).unwrap_err().culprit, Culprit::ItemSpec(0));
}

#[test]
fn open_vswitch_reads_the_match_as_the_pattern_says() {
    let m = translate(&[
        item(ItemKind::Eth, &[(0, &[2, 0, 0, 0, 0, 1], &[0xff; 6])]),
        item(ItemKind::Arp, &[(6, &[0, 1], &[0xff, 0xff]), (16, &[10, 0, 0, 1], &[0xff; 4])]),
    ])
    .unwrap();
    let text = "recirc_id(0),in_port(1),eth(dst=02:00:00:00:00:01),eth_type(0x0806),arp(sip=10.0.0.1,op=1)";
    let (theirs, _) = flowlift_flow::text::parse_match(text, &flowlift_flow::text::NoNames).unwrap();
    assert_eq!(m.mask, theirs.mask);
    assert_eq!(m.mask.apply(&m.key), theirs.mask.apply(&theirs.key));
}

#[test]
fn what_makes_no_sense_or_cannot_be_matched_names_its_item() {
    let eth = || item(ItemKind::Eth, &[]);
    let v4 = || item(ItemKind::Ipv4, &[]);
    let refused = |items: Vec<_>| translate(&items).unwrap_err();
    for (items, culprit, part) in [
        (vec![v4(), eth()], Culprit::Item(1), "after another header"),
        (vec![eth(), v4(), v4()], Culprit::Item(2), "after a network header"),
        (vec![eth(), item(ItemKind::Udp, &[])], Culprit::Item(1), "needs IPV4 or IPV6"),
        (vec![eth(), v4(), item(ItemKind::Icmp6, &[])], Culprit::Item(2), "needs IPV6"),
        (
            vec![eth(), v4(), item(ItemKind::Tcp, &[]), item(ItemKind::Udp, &[])],
            Culprit::Item(3),
            "transport",
        ),
        (vec![eth(), (ItemKind::Other(14), vec![], vec![])], Culprit::Item(1), "type 14"),
        (
            vec![item(ItemKind::Eth, &[(12, &[0x86, 0xdd], &[0xff, 0xff])]), v4()],
            Culprit::ItemSpec(0),
            "asks for type 0x86dd",
        ),
        (vec![item(ItemKind::Eth, &[(12, &[8, 0], &[0xff, 0])])], Culprit::ItemMask(0), "all its bits"),
        (
            vec![eth(), item(ItemKind::Ipv4, &[(2, &[0, 1], &[0xff, 0xff])])],
            Culprit::ItemMask(1),
            "byte 2 of IPV4",
        ),
        (
            vec![eth(), item(ItemKind::Ipv4, &[(0, &[0x46], &[0xff])])],
            Culprit::ItemSpec(1),
            "without options",
        ),
        (
            vec![eth(), item(ItemKind::Ipv4, &[(6, &[0x20, 0], &[0x3f, 0xff])])],
            Culprit::ItemSpec(1),
            "fragments",
        ),
        (vec![eth(), v4(), item(ItemKind::Tcp, &[(4, &[1], &[1])])], Culprit::ItemMask(2), "byte 4 of TCP"),
        (
            vec![item(ItemKind::Ipv4, &[(9, &[6], &[0xff])]), item(ItemKind::Udp, &[])],
            Culprit::Item(1),
            "means protocol 17",
        ),
        (vec![item(ItemKind::Vlan, &[(0, &[0x10, 0], &[0x10, 0])])], Culprit::ItemMask(0), "drop-eligible"),
        (
            vec![item(ItemKind::Vlan, &[]), item(ItemKind::Vlan, &[]), item(ItemKind::Vlan, &[])],
            Culprit::Item(2),
            "third VLAN",
        ),
    ] {
        let names: Vec<_> = items.iter().map(|(k, ..)| *k).collect();
        let refusal = refused(items);
        assert_eq!(refusal.culprit, culprit, "{names:?}: {refusal:?}");
        assert!(refusal.message.contains(part), "{names:?}: {refusal:?}");
    }
}

#[test]
fn spec_last_and_mask_are_as_documented() {
    let (spec, mask) = ([0u8; 8], [0xffu8, 0xff, 0, 0, 0, 0, 0, 0]);
    let udp = |spec, last, mask| {
        let v4 = Item { kind: ItemKind::Ipv4, spec: None, last: None, mask: None };
        to_match(&[v4, Item { kind: ItemKind::Udp, spec, last, mask }], 1, 0).map(|(m, _)| m)
    };
    assert_eq!(udp(None, None, Some(&mask)).unwrap_err().culprit, Culprit::ItemMask(1));
    assert_eq!(udp(None, Some(&spec), None).unwrap_err().culprit, Culprit::ItemLast(1));
    let m = udp(Some(&spec), None, None).unwrap();
    assert_eq!((m.mask.0.tp_src.get(), m.mask.0.tp_dst.get()), (0xffff, 0xffff), "the default mask");
    let first = [0, 10, 0, 0, 0, 0, 0, 0];
    assert!(udp(Some(&first), Some(&first), Some(&mask)).is_ok(), "from 10 to 10");
    assert!(udp(Some(&first), Some(&spec), Some(&mask)).is_ok(), "a last of 0 is none");
    let end = [0, 20, 0, 0, 0, 0, 0, 0];
    assert_eq!(udp(Some(&first), Some(&end), Some(&mask)).unwrap_err().culprit, Culprit::ItemLast(1));
}
