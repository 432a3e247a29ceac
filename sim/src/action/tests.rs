use super::*;
use crate::parser::parse;
use crate::profile::Profile;
use proptest::prelude::*;

fn unit(kind: u8, arg: u16, rest: &[u8]) -> Vec<u8> {
    let mut u = vec![kind, 1];
    u.extend_from_slice(&arg.to_le_bytes());
    u.extend_from_slice(rest);
    u.resize(UNIT, 0);
    u
}

fn set(field: Field, value: &[u8], mask: &[u8]) -> Vec<u8> {
    if field.bytes() == UNIT {
        let mut u = vec![SET_FIELD, 3];
        u.extend_from_slice(&field.id().to_le_bytes());
        u.resize(UNIT, 0);
        return [&u[..], value, mask].concat();
    }
    let mut rest = value.to_vec();
    rest.resize(6, 0);
    rest.extend_from_slice(mask);
    unit(SET_FIELD, field.id(), &rest)
}

/// Sum of 16-bit words, folded.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut s: u64 = 0;
    for part in parts {
        for w in part.chunks(2) {
            s += u64::from(w[0]) << 8 | u64::from(w.get(1).copied().unwrap_or(0));
        }
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    s as u16
}

/// Where the transport checksum of a protocol is.
fn checksum_at(proto: u8) -> usize {
    match proto {
        6 => 16,
        17 => 6,
        132 => 8,
        _ => 2,
    }
}

/// Checksums of a frame, computed anew: IPv4 header, transport. Each is the value that should stand there.
fn recomputed(f: &[u8]) -> (Option<u16>, u32) {
    let v4 = f[14] >> 4 == 4;
    let (l4, proto) = if v4 { (34, f[23]) } else { (54, f[20]) };
    let header = v4.then(|| {
        let mut h = f[14..34].to_vec();
        h[10..12].fill(0);
        !sum(&[&h])
    });
    let mut p = f[l4..].to_vec();
    let at = checksum_at(proto);
    if proto == 132 {
        p[8..12].fill(0);
        return (header, crate::checksum::crc32c(&p));
    }
    p[at..at + 2].fill(0);
    let addresses = if v4 { &f[26..34] } else { &f[22..54] };
    let tail = [&[0, proto][..], &(p.len() as u16).to_be_bytes()].concat();
    let pseudo: &[&[u8]] = if proto == 1 { &[&p] } else { &[addresses, &tail, &p] };
    let c = match !sum(pseudo) {
        0 if proto == 17 => 0xffff,
        c => c,
    };
    (header, u32::from(c))
}

fn transport_checksum(f: &[u8]) -> u32 {
    let v4 = f[14] >> 4 == 4;
    let (l4, proto) = if v4 { (34, f[23]) } else { (54, f[20]) };
    let at = l4 + checksum_at(proto);
    if proto == 132 { le32(f, at) } else { u32::from(be16(f, at)) }
}

/// A frame with right checksums.
fn frame(v4: bool, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut l4 = vec![0x12, 0x34, 0x56, 0x78];
    l4.resize(if proto == 6 { 20 } else { 12 }, 7);
    if proto == 6 {
        l4[12] = 0x50;
    }
    if proto == 58 || proto == 1 {
        l4[0] = 128;
    }
    l4.extend_from_slice(payload);
    let mut f = vec![2; 12];
    if v4 {
        f.extend_from_slice(&[8, 0, 0x45, 0x10]);
        f.extend_from_slice(&((20 + l4.len()) as u16).to_be_bytes());
        f.extend_from_slice(&[0, 1, 0, 0, 64, proto, 0, 0, 10, 1, 2, 3, 192, 168, 200, 7]);
    } else {
        f.extend_from_slice(&[0x86, 0xdd, 0x61, 0x23, 0x45, 0x67]);
        f.extend_from_slice(&(l4.len() as u16).to_be_bytes());
        f.extend_from_slice(&[proto, 64]);
        f.extend((0..32).map(|i| i * 5 + 1));
    }
    let at = f.len();
    f.extend_from_slice(&l4);
    let (header, transport) = recomputed(&f);
    if let Some(h) = header {
        f[24..26].copy_from_slice(&h.to_be_bytes());
    }
    let c = at + checksum_at(proto);
    if proto == 132 {
        f[c..c + 4].copy_from_slice(&transport.to_le_bytes());
    } else {
        f[c..c + 2].copy_from_slice(&(transport as u16).to_be_bytes());
    }
    f
}

/// A frame that must parse, at a match.
fn packet(f: &[u8]) -> Packet {
    let headers = parse(f).expect("parses").headers;
    Packet { data: f.to_vec(), headers, port: 1, tunnel: Tunnel::default() }
}

/// Runs a list that must be valid on a frame that must parse; gives what one final OUTPUT sends.
fn apply(units: &[u8], f: &[u8]) -> Result<Vec<u8>, Exception> {
    let profile = Profile::standard();
    let list = [units, &unit(OUTPUT, 1, &[])].concat();
    validate(&list, &profile.tables[0], 16, |_| true).expect("valid");
    let mut p = packet(f);
    let mut out = Vec::new();
    run(&list, &mut p, &mut 0, |_, _| true, &mut out)?;
    Ok(out.pop().expect("one output").1)
}

const V4_FIELDS: [Field; 4] = [Field::Ipv4Src, Field::Ipv4Dst, Field::IpTos, Field::IpTtl];
const V6_FIELDS: [Field; 5] = [Field::Ipv6Src, Field::Ipv6Dst, Field::IpTos, Field::IpTtl, Field::Ipv6Label];

proptest! {
    /// Every settable field under any mask: the bytes change as told, and the checksums are those of a recomputation.
    #[test]
    fn set_field_keeps_checksums_right(
        v4: bool,
        proto in prop_oneof![Just(6u8), Just(17), Just(132), Just(1), Just(58)],
        which in 0usize..9,
        value in any::<[u8; 16]>(),
        mask in any::<[u8; 16]>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        prop_assume!(proto != if v4 { 58 } else { 1 });
        let mut fields = vec![Field::EthDst, Field::EthSrc];
        fields.extend_from_slice(if v4 { &V4_FIELDS } else { &V6_FIELDS });
        if matches!(proto, 6 | 17 | 132) {
            fields.extend([Field::L4Src, Field::L4Dst]);
        }
        let field = fields[which % fields.len()];
        let n = field.bytes();
        let mask: Vec<u8> = mask[..n].iter().zip(field.supported()).map(|(m, s)| m & s).collect();
        prop_assume!(mask.iter().any(|m| *m != 0));
        let value: Vec<u8> = value[..n].iter().zip(&mask).map(|(v, m)| v & m).collect();
        let f = frame(v4, proto, &payload);
        let before = parse(&f).expect("parses");
        let g = apply(&set(field, &value, &mask), &f).expect("no exception");
        let after = parse(&g).expect("parses");
        let mut key = before.key;
        let want: Vec<u8> = key.get(field).iter().zip(&value).zip(&mask).map(|((o, v), m)| o & !m | v).collect();
        key.set(field, &want);
        prop_assert_eq!(after.key, key, "the field, and nothing else of the key");
        let (header, transport) = recomputed(&g);
        prop_assert_eq!(header.unwrap_or(0), if v4 { be16(&g, 24) } else { 0 });
        prop_assert_eq!(transport_checksum(&g), transport, "{:?} proto {}", field, proto);
    }

    /// An SCTP checksum that was wrong stays wrong by the same difference.
    #[test]
    fn sctp_stays_wrong(err in 1u32.., port: u16) {
        let mut f = frame(true, 132, b"data");
        let wrong = transport_checksum(&f) ^ err;
        f[42..46].copy_from_slice(&wrong.to_le_bytes());
        prop_assume!(port != 0x1234);
        let g = apply(&set(Field::L4Src, &port.to_be_bytes(), &[0xff; 2]), &f).expect("no exception");
        prop_assert_eq!(transport_checksum(&g) ^ recomputed(&g).1, err);
    }

    #[test]
    fn any_units_are_validated_without_panic(
        mut units in proptest::collection::vec(any::<u8>(), 0..256), kind in 0u8..13, len in 0u8..7,
    ) {
        units.truncate(units.len() / UNIT * UNIT);
        if let Some(head) = units.first_chunk_mut::<2>() {
            *head = [kind, len];
        }
        for spec in Profile::standard().tables.iter().chain(&Profile::large().tables) {
            if validate(&units, spec, 16, |_| true).is_ok() {
                // What was let in runs on any frame without panic.
                let f = frame(true, 6, b"");
                let mut p = packet(&f);
                let _ = run(&units, &mut p, &mut 0, |_, _| true, &mut Vec::new());
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    for v4 in [true, false] {
        let mut f = frame(v4, 17, b"abc");
        let at = if v4 { 40 } else { 60 };
        f[at..at + 2].fill(0);
        let field = if v4 { Field::Ipv4Dst } else { Field::Ipv6Dst };
        let ones = vec![0xff; field.bytes()];
        let g = apply(&[set(field, &ones, &ones), set(Field::L4Dst, &[9, 9], &[0xff; 2])].concat(), &f);
        assert_eq!(g.expect("no exception")[at..at + 2], [0, 0]);
    }
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_ffff() {
    let f = frame(true, 17, b"");
    // The destination port that makes the sum all ones.
    let zero = (0..=u16::MAX)
        .find(|port| {
            let mut g = f.clone();
            g[36..38].copy_from_slice(&port.to_be_bytes());
            recomputed(&g).1 == 0xffff
        })
        .expect("there is one");
    let g = apply(&set(Field::L4Dst, &zero.to_be_bytes(), &[0xff; 2]), &f).expect("no exception");
    assert_eq!(g[40..42], [0xff, 0xff]);
}

#[test]
fn an_unchanged_field_leaves_the_checksum() {
    let mut f = frame(true, 6, b"");
    f[24..26].fill(0xff);
    f[50..52].fill(0xff);
    let g = apply(
        &[set(Field::Ipv4Src, &[10, 1, 2, 3], &[0xff; 4]), set(Field::IpTtl, &[64], &[0xff])].concat(),
        &f,
    );
    assert_eq!(g.expect("no exception"), f);
}

#[test]
fn dec_ttl_to_one_is_the_last() {
    for (v4, at) in [(true, 22), (false, 21)] {
        let mut f = frame(v4, 6, b"");
        f[at] = 2;
        let g = apply(&unit(DEC_TTL, 0, &[]), &f).expect("2 becomes 1");
        assert_eq!(g[at], 1);
        assert_eq!(apply(&unit(DEC_TTL, 0, &[]).repeat(2), &f), Err(Exception));
        f[at] = 0;
        assert_eq!(apply(&unit(DEC_TTL, 0, &[]), &f), Err(Exception));
    }
}

#[test]
fn tags_go_outside_and_come_off_outside() {
    let f = frame(true, 6, b"");
    let push = |tpid: [u8; 2], tci: [u8; 2]| unit(PUSH_VLAN, 0, &[tpid[0], tpid[1], tci[0], tci[1]]);
    let two = [push([0x81, 0], [0x10, 5]), push([0x88, 0xa8], [0xe0, 6])].concat();
    let g = apply(&two, &f).expect("no exception");
    assert_eq!(g[12..22], [0x88, 0xa8, 0xe0, 6, 0x81, 0, 0x10, 5, 8, 0]);
    assert_eq!(
        apply(&unit(POP_VLAN, 0, &[]).repeat(3), &g).expect("no exception"),
        f,
        "the third does nothing"
    );
    // A set behind a push finds the header where it moved to.
    let list = [push([0x81, 0], [0, 5]), set(Field::Ipv4Dst, &[1, 2, 3, 4], &[0xff; 4])].concat();
    assert_eq!(apply(&list, &f).expect("no exception")[34..38], [1, 2, 3, 4]);
}

#[test]
fn a_header_that_is_not_there_is_an_exception() {
    let v4 = frame(true, 1, b"");
    assert_eq!(apply(&set(Field::Ipv6Dst, &[1; 16], &[1; 16]), &v4), Err(Exception));
    assert_eq!(apply(&set(Field::L4Src, &[1; 2], &[1; 2]), &v4), Err(Exception), "ICMP has no ports");
    let mut l2 = vec![2; 60];
    l2[12..14].copy_from_slice(&[0x88, 0xcc]);
    for list in [set(Field::IpTos, &[4], &[4]), unit(DEC_TTL, 0, &[])] {
        assert_eq!(apply(&list, &l2), Err(Exception));
    }
}

#[test]
fn output_can_truncate() {
    let f = frame(true, 6, b"");
    let mut p = packet(&f);
    let list = [unit(OUTPUT, 1, &[20, 0, 0, 0]), unit(OUTPUT, 2, &[0xff, 0xff, 0, 0]), unit(OUTPUT, 3, &[])]
        .concat();
    let mut out = Vec::new();
    assert_eq!(run(&list, &mut p, &mut 0, |_, _| true, &mut out), Ok(End::Done));
    assert_eq!(out, [(1, f[..20].to_vec()), (2, f.clone()), (3, f)]);
}
