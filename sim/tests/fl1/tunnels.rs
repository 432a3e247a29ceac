//! VXLAN (FL1.md, section 7, "VXLAN") through the whole device. Frames and golden bytes were put together without its
//! code.

use crate::host::*;

const INNER_DST: [u8; 4] = [10, 0, 0, 2];
const OUTER_DST: [u8; 4] = [192, 0, 2, 9];
const OUTER: usize = 50;
const VNI: [u8; 3] = [0x12, 0x34, 0x56];

/// Stage 0 of profile large.
const TCAM: u16 = 2;
/// Stage 1 of profile large.
const TCAM_1: u16 = 4;

/// The golden frame, wrapped and not.
fn frames() -> (Vec<u8>, Vec<u8>) {
    let outer = golden("frame_vxlan");
    let inner = outer[OUTER..].to_vec();
    (outer, inner)
}

/// Any frame in the golden outer headers, with lengths and checksum of its own.
fn wrap(inner: &[u8]) -> Vec<u8> {
    let mut f = [&golden("frame_vxlan")[..OUTER], inner].concat();
    f[16..18].copy_from_slice(&(inner.len() as u16 + 36).to_be_bytes());
    f[38..40].copy_from_slice(&(inner.len() as u16 + 16).to_be_bytes());
    fix_ip(&mut f);
    f
}

fn fix_ip(f: &mut [u8]) {
    f[24..26].fill(0);
    let ip = sum(&f[14..34]);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
}

fn decap() -> Vec<u8> {
    unit(11, 0, &[])
}

fn goto(stage: u16) -> Vec<u8> {
    unit(9, stage, &[])
}

/// The golden template, and a record with it.
fn template() -> Vec<u8> {
    golden("insert_vxlan_encap_large")[144..194].to_vec()
}

fn encap(template: &[u8]) -> Vec<u8> {
    let mut u = unit(10, 0, &[]);
    u[1] = 5;
    u.extend_from_slice(template);
    u.resize(80, 0);
    u
}

/// Everything that is IPv4, in the TCAM of a stage.
fn any_ipv4(table: u16, actions: &[u8]) -> Vec<u8> {
    let keys = if table == TCAM { Keys::Full } else { Keys::FullTunnel };
    insert(table, 1, 1, &blobs(keys, &[(5, &[8, 0], &[0xff; 2])]), actions)
}

/// A device that wraps or unwraps all IPv4 as told.
fn with_actions(actions: &[u8]) -> Host {
    let mut h = Host::new("large");
    h.must(&any_ipv4(TCAM, actions));
    h
}

/// Sends one frame into port 1.
fn send(h: &mut Host, f: &[u8]) {
    h.inject(1, f);
    h.dev.step();
    h.assert_clean();
}

/// Sends a frame that must be given up as it came, by the entry of stage 0, without any effect.
#[track_caller]
fn given_up(h: &mut Host, f: &[u8], what: &str) {
    let before = counted(h, TCAM, 1);
    send(h, f);
    let s = h.slow();
    assert_eq!(s.len(), 1, "{what}: in the slow queue");
    assert!(s[0].frame == f, "{what}: not as it came: {:02x?}", s[0].frame);
    assert_eq!((s[0].reason(), s[0].stage(), s[0].table(), s[0].entry()), (4, 0, 2, 1), "{what}");
    assert!((1..=8).all(|p| h.out(p).is_empty()), "{what}: nothing may leave");
    assert_eq!(counted(h, TCAM, 1), before, "{what}: nothing may be counted");
}

/// Packets that an entry counted.
fn counted(h: &mut Host, table: u16, entry: u32) -> u64 {
    h.must(&buffer(5, table, entry, 1, 1, SCRATCH, 48));
    le(&h.peek(SCRATCH, 48), 0, 8)
}

#[test]
fn golden_encap_makes_the_golden_frame() {
    let mut h = Host::new("large");
    h.must(&golden("insert_vxlan_encap_large"));
    let (outer, inner) = frames();
    send(&mut h, &inner);
    assert_eq!(h.out(2), [outer]);
    let d = h.must(&header(3, 0, 4, 0, 0));
    assert_eq!((d.packets(), d.bytes()), (1, 60), "the bytes at the match");
}

#[test]
fn a_source_port_of_the_template_stays_and_outputs_before_send_the_inner_frame() {
    let mut t = template();
    t[34..36].copy_from_slice(&[0x27, 0x10]);
    let list = [output(3), encap(&t), output(2), unit(3, 0, &[0x81, 0, 0, 7]), output(4)].concat();
    let mut h = with_actions(&list);
    let (mut outer, inner) = frames();
    outer[34..36].copy_from_slice(&[0x27, 0x10]);
    send(&mut h, &inner);
    assert_eq!(h.out(3), [inner]);
    assert_eq!(h.out(2), [outer.clone()]);
    let tagged = [&outer[..12], &[0x81, 0, 0, 7], &outer[12..]].concat();
    assert_eq!(h.out(4), [tagged], "VLAN actions work on the outer frame");
}

#[test]
fn encap_of_any_length_up_to_the_last() {
    let mut h = with_actions(&[encap(&template()), output(2)].concat());
    for len in [60, 61, 1500, 9001, 65499, 65500, 65550, 65600] {
        let mut f = frames().1;
        f.resize(len, 0x5a);
        if len > 65499 {
            given_up(&mut h, &f, &format!("{len} bytes"));
            continue;
        }
        send(&mut h, &f);
        // Only the source port comes from the hash.
        let mut want = wrap(&f);
        let out = h.out(2);
        want[34..36].copy_from_slice(&out[0][34..36]);
        assert!(out == [want], "{len} bytes: {:02x?}", &out[0][..OUTER]);
        assert_eq!(sum(&out[0][14..34]), 0, "{len} bytes: header checksum");
    }
}

#[test]
fn golden_decap_goes_on_with_the_tunnel_fields() {
    let mut h = Host::new("large");
    h.must(&golden("insert_vxlan_decap_large"));
    h.must(&golden("insert_tunnel_match_large"));
    let (outer, inner) = frames();
    send(&mut h, &outer);
    assert_eq!(h.out(3), [inner]);
    assert_eq!((counted(&mut h, 0, 5), counted(&mut h, 3, 6)), (1, 1));
    // Another VNI or source does not match there, and an unwrapped packet of the same inner addresses neither.
    for at in [46, 28] {
        let mut f = outer.clone();
        f[at] ^= 0x80;
        fix_ip(&mut f);
        send(&mut h, &f);
        assert!(h.out(3).is_empty());
        let s = h.slow();
        assert_eq!((s[0].reason(), s[0].stage(), s[0].table(), s[0].entry()), (4, 0, 0, 5), "byte {at}");
        assert_eq!(s[0].frame, f, "with its outer headers");
    }
    assert_eq!((counted(&mut h, 0, 5), counted(&mut h, 3, 6)), (1, 1));
    h.tx(&outer[OUTER..], 1, Some((1, 0)));
    h.dev.step();
    let s = h.slow();
    assert_eq!((s[0].reason(), s[0].stage(), s[0].frame.len()), (1, 1, 60), "a plain miss: tun_id is 0 here");
    h.assert_clean();
}

#[test]
fn tags_before_and_padding_behind_go_with_the_outer_headers() {
    let mut h = with_actions(&[decap(), output(2)].concat());
    let (outer, inner) = frames();
    let mut f = [&outer[..12], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5], &outer[12..]].concat();
    f.extend_from_slice(&[0xee; 9]);
    send(&mut h, &f);
    assert_eq!(h.out(2), [inner]);
}

#[test]
fn what_is_not_exactly_vxlan_is_an_exception() {
    let mut h = with_actions(&[output(3), decap(), output(2)].concat());
    let outer = frames().0;
    let mut check = |what: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut f = outer.clone();
        edit(&mut f);
        given_up(&mut h, &f, what);
    };
    check("TCP", &|f| {
        f[23] = 6;
        f[46] = 0x50;
        fix_ip(f);
    });
    check("another port", &|f| f[37] ^= 1);
    check("UDP length beyond IP's", &|f| f[39] += 1);
    check("UDP length short of IP's", &|f| f[39] -= 1);
    check("IPv4 header checksum", &|f| f[25] ^= 1);
    check("UDP checksum", &|f| f[41] = 1);
    check("congestion experienced", &|f| {
        f[15] = 3;
        fix_ip(f);
    });
    for bit in 0..32 {
        check("VXLAN flags", &|f| f[42 + bit / 8] ^= 1 << (bit % 8));
    }
    for bit in 0..8 {
        check("VXLAN reserved byte", &|f| f[49] ^= 1 << bit);
    }
    check("13 bytes of inner frame", &|f| *f = wrap(&f[OUTER..OUTER + 13]));
    check("half a VXLAN header", &|f| {
        *f = wrap(&[]);
        f.truncate(46);
        f[17] -= 4;
        f[39] -= 4;
        fix_ip(f);
    });
    // 14 bytes are a frame.
    send(&mut h, &wrap(&outer[OUTER..OUTER + 14]));
    assert_eq!(h.out(2), [outer[OUTER..OUTER + 14].to_vec()]);
}

#[test]
fn a_right_udp_checksum_is_taken() {
    let mut h = with_actions(&[decap(), output(2)].concat());
    for len in [60, 61] {
        let mut inner = frames().1;
        inner.resize(len, 0x77);
        let mut f = wrap(&inner);
        let c = udp_checksum(&f);
        f[40..42].copy_from_slice(&c.to_be_bytes());
        send(&mut h, &f);
        assert_eq!(h.out(2), [inner], "{len} bytes");
    }
}

#[test]
fn whatever_gives_up_a_packet_after_a_decap_gives_it_up_wrapped() {
    let (outer, inner) = frames();
    let metadata = unit(8, 0, &[7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let first = [output(3), metadata, decap(), output(4), goto(1)].concat();
    let mut h = with_actions(&first);
    given_up(&mut h, &outer, "a miss in stage 1");
    let mut options = inner.clone();
    options[14] = 0x46;
    given_up(&mut h, &wrap(&options), "an inner frame that is not parsed");
    for (actions, what) in [
        ([output(5), unit(7, 0, &[])].concat(), "a trap in stage 1"),
        ([output(5), goto(2)].concat(), "a miss in stage 2"),
        ([output(5), decap(), output(6)].concat(), "no VXLAN inside"),
    ] {
        h.must(&any_ipv4(TCAM_1, &actions));
        given_up(&mut h, &outer, what);
        assert_eq!(counted(&mut h, TCAM_1, 1), 0, "{what}");
        h.must(&header(3, TCAM_1, 1, 0, 0));
    }
    h.must(&any_ipv4(TCAM_1, &output(5)));
    send(&mut h, &outer);
    assert_eq!((h.out(3), h.out(4)), (vec![outer], vec![inner.clone()]));
    assert_eq!((h.out(5), h.slow().len()), (vec![inner], 0));
}

#[test]
fn meters_are_not_charged_for_what_is_given_up() {
    let mut h = Host::new("large");
    h.must(&golden("meter_set")); // meter 5: burst 10
    h.must(&any_ipv4(TCAM, &[unit(6, 0, &[5, 0, 0, 0]), decap(), goto(1)].concat()));
    let (outer, inner) = frames();
    for _ in 0..20 {
        given_up(&mut h, &outer, "a miss in stage 1");
    }
    h.must(&any_ipv4(TCAM_1, &output(2)));
    for _ in 0..12 {
        h.inject(1, &outer);
    }
    h.dev.step();
    assert_eq!(h.out(2), vec![inner; 10]);
}

#[test]
fn what_earlier_stages_did_stays() {
    let mut h = with_actions(&[output(3), unit(8, 0, &[9, 0, 0, 0, 0xff, 0, 0, 0]), goto(1)].concat());
    h.must(&any_ipv4(TCAM_1, &[output(4), decap(), goto(2)].concat()));
    let outer = frames().0;
    send(&mut h, &outer);
    let s = h.slow();
    assert_eq!((s[0].reason(), s[0].stage(), s[0].table(), s[0].metadata()), (4, 1, u64::from(TCAM_1), 9));
    assert_eq!((&s[0].frame, h.out(3), h.out(4).len()), (&outer, vec![outer.clone()], 0));
    assert_eq!((counted(&mut h, TCAM, 1), counted(&mut h, TCAM_1, 1)), (1, 0));
}

#[test]
fn a_tunnel_in_a_tunnel_is_unwrapped_twice_and_the_last_one_counts() {
    let (outer, inner) = frames();
    let mut twice = wrap(&outer);
    twice[46..49].copy_from_slice(&[0, 0, 1]);
    let mut h = with_actions(&[decap(), goto(1)].concat());
    let vni = blobs(Keys::FullTunnel, &[(26, &[0, 0, 1], &[0xff; 3])]);
    h.must(&insert(TCAM_1, 1, 1, &vni, &[decap(), goto(2)].concat()));
    given_up(&mut h, &twice, "a miss in stage 2: back before the first");
    let last = blobs(Keys::FullTunnel, &[(26, &VNI, &[0xff; 3]), (28, &OUTER_DST, &[0xff; 4])]);
    h.must(&insert(6, 1, 1, &last, &output(2)));
    send(&mut h, &twice);
    assert_eq!(h.out(2), [inner]);
}

#[test]
fn lists_that_the_spec_excludes_are_refused() {
    let mut h = Host::new("large");
    let key = blobs(Keys::Full, &[(14, &INNER_DST, &[0xff; 4])]);
    let mut refused = |list: &[u8], at: u64, what: &str| {
        let d = h.command(&insert(TCAM, 9, 1, &key, list));
        assert_eq!((d.status(), d.detail()), (11, at), "{what}");
    };
    refused(&decap(), 0, "nothing leaves");
    refused(&[output(1), decap()].concat(), 1, "nothing leaves behind it");
    refused(&[decap(), output(1), unit(7, 0, &[])].concat(), 2, "TRAP behind DECAP");
    refused(&[decap(), output(1), decap(), output(1)].concat(), 2, "two");
    refused(&[encap(&template()), decap(), output(1)].concat(), 5, "both");
    refused(&[decap(), encap(&template()), output(1)].concat(), 1, "both");
    refused(&[decap(), unit(5, 0, &[]), output(1)].concat(), 1, "DEC_TTL behind");
    refused(&[encap(&template()), set(14, &[1; 4]), output(1)].concat(), 5, "SET_FIELD behind");
    refused(&[unit(11, 1, &[]), output(1)].concat(), 0, "DECAP with an arg");
    refused(&[unit(11, 0, &[1]), output(1)].concat(), 0, "DECAP with an operand");
    refused(&encap(&template())[..64], 0, "cut off");
    for (byte, what) in [(1, "units"), (2, "arg"), (4, "operand"), (66, "reserved"), (79, "reserved")] {
        let mut list = encap(&template());
        list[byte] ^= 4;
        refused(&list, 0, what);
    }
    for (at, v) in [
        (12, 9),
        (13, 1),
        (14, 0x46),
        (16, 1),
        (17, 1),
        (18, 1),
        (19, 1),
        (20, 0x20),
        (20, 0x80),
        (21, 1),
        (22, 0),
        (23, 6),
        (24, 1),
        (25, 1),
        (38, 1),
        (39, 1),
        (40, 1),
        (41, 1),
        (42, 0x88),
        (42, 0),
        (43, 1),
        (45, 1),
        (49, 1),
    ] {
        let mut t = template();
        t[at] = v;
        refused(&encap(&t), 0, &format!("template byte {at} = {v}"));
    }
    let mut t = template();
    t[36..38].fill(0);
    refused(&encap(&t), 0, "destination port 0");
    // The other bytes are the host's to choose.
    let mut t = template();
    for at in (0..12).chain([15, 22]).chain(26..38).chain(46..49) {
        t[at] = 0xa5;
    }
    t[20] = 0;
    h.must(&insert(TCAM, 9, 1, &key, &[encap(&t), unit(7, 0, &[])].concat()));
    h.assert_clean();
}

#[test]
fn other_profiles_have_no_tunnels() {
    for (profile, table, keys) in [("tiny", 0, Keys::Tiny), ("standard", TCAM, Keys::Full)] {
        let mut h = Host::new(profile);
        let key = blobs(keys, &[(14, &INNER_DST, &[0xff; 4])]);
        for list in [[decap(), output(1)].concat(), encap(&template())] {
            assert_eq!(
                h.command(&insert(table, 0, 1, &key, &list[..list.len().min(64)])).status(),
                11,
                "{profile}"
            );
        }
        let len = h.read(0x64);
        h.must(&buffer(9, 0, 0, 0, 0, SCRATCH, len));
        let blob = h.peek(SCRATCH, len as usize);
        let mut at = 32;
        while at < blob.len() {
            assert_eq!(le(&blob, at + 16, 4) & 0xc00, 0, "{profile}");
            at += le(&blob, at + 40, 4) as usize;
        }
    }
}

#[test]
fn large_says_what_it_has() {
    let mut h = Host::new("large");
    let len = h.read(0x64);
    h.must(&buffer(9, 0, 0, 0, 0, SCRATCH, len));
    let blob = h.peek(SCRATCH, len as usize);
    let mut at = 32;
    let mut seen = Vec::new();
    while at < blob.len() {
        let n = le(&blob, at + 14, 2) as usize;
        let tunnel = (0..n)
            .map(|f| at + 64 + 32 * f)
            .filter(|f| le(&blob, *f, 2) >= 26)
            .map(|f| (le(&blob, f, 2), blob[f + 2], le(&blob, f + 4, 2), le(&blob, f + 6, 2)))
            .collect::<Vec<_>>();
        seen.push((blob[at + 3], le(&blob, at + 12, 2), le(&blob, at + 16, 4), tunnel));
        at += le(&blob, at + 40, 4) as usize;
    }
    let hash = vec![(26, 3, 360, 24), (27, 2, 384, 32), (28, 2, 416, 32)];
    let tcam = vec![(26, 3, 816, 24), (27, 3, 840, 32), (28, 3, 872, 32)];
    let want = [
        (0, 48, 0x1_0fff, vec![]),
        (0, 80, 0x1_0fff, vec![]),
        (0, 104, 0x1_0fff, vec![]),
        (1, 56, 0x1_0fff, hash.clone()),
        (1, 120, 0x1_0fff, tcam.clone()),
        (2, 56, 0x1_0dff, hash),
        (2, 120, 0x1_0dff, tcam),
    ];
    assert_eq!(seen, want);
}
