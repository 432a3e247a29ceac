//! ovs_meter and ovs_ct_limit.

use crate::raw::*;
use flowlift_ovs::uapi::{CT_LIMIT, METER};

fn band(kind: u32, rate: u32, burst: u32) -> Vec<u8> {
    attr(0, &[attr_u32(1, kind), attr_u32(2, rate), attr_u32(3, burst)].concat())
}

fn set(id: u32, bands: &[u8]) -> Vec<u8> {
    [attr_u32(1, id), attr(2, &[]), attr(4, bands)].concat()
}

#[test]
fn the_probe_of_meters_finds_two_that_are_not_confused() {
    let (mut client, dp) = Client::with_datapath();
    let features = client.ask(&METER, 0, 1, dp, &[]);
    assert_eq!((features.only().u32(7), features.only().u32(8)), (u32::MAX, 1));
    assert_eq!(attrs(&features.only().attr(4).unwrap()), [(0, attr_u32(1, 1))], "drop is the one band type");
    // The ids of OVS's probe.
    for id in [54_545_401, 54_545_402] {
        let reply = client.ask(&METER, ECHO, 2, dp, &set(id, &band(1, 1, 0)));
        assert_eq!((reply.only().cmd(), reply.only().u32(1)), (2, id));
        assert_eq!(reply.only().attr(3), None, "there was none before");
    }
    for id in [54_545_401, 54_545_402] {
        let reply = client.ask(&METER, 0, 4, dp, &attr_u32(1, id));
        assert_eq!((reply.only().u32(1), reply.only().attr(3).unwrap()), (id, vec![0; 16]));
        let again = client.ask(&METER, 0, 2, dp, &set(id, &band(1, 2, 0)));
        assert!(again.only().attr(3).is_some(), "counters of the one before");
        let gone = client.ask(&METER, 0, 3, dp, &attr_u32(1, id));
        assert!(gone.only().attr(3).is_some(), "last counters");
        assert_eq!(client.ask(&METER, 0, 4, dp, &attr_u32(1, id)).errno(), 2, "ENOENT");
        assert_eq!(client.ask(&METER, 0, 3, dp, &attr_u32(1, id)).only().attr(3), None);
    }
}

#[test]
fn meters_that_cannot_be_are_refused() {
    let (mut client, dp) = Client::with_datapath();
    let two = [band(1, 1, 0), band(1, 2, 0)].concat();
    let cases = [
        (set(1, &two), 22, "two bands"),
        (set(1, &band(2, 1, 0)), 22, "another type of band"),
        (set(1, &band(1, 0, 0)), 22, "no rate"),
        (set(1, &attr(0, &attr_u32(1, 1))), 22, "half a band"),
        (set(1, &[4, 0]), 34, "ERANGE: bytes that are no attribute"),
        (attr_u32(1, 1), 22, "no bands"),
        (attr(4, &band(1, 1, 0)), 19, "ENODEV: no id, as in the kernel"),
    ];
    for (attrs, errno, what) in cases {
        assert_eq!(client.ask(&METER, 0, 2, dp, &attrs).errno(), errno, "{what}");
    }
    assert_eq!(client.ask(&METER, 0, 2, dp + 1, &set(1, &band(1, 1, 0))).errno(), 19, "no such datapath");
    assert_eq!(client.ask(&METER, DUMP, 4, dp, &[]).errno(), 95, "EOPNOTSUPP: the kernel dumps none");
}

#[test]
fn zone_limits_are_set_got_and_deleted() {
    let (mut client, dp) = Client::with_datapath();
    let entry = |zone: i32, limit: u32| [zone.to_ne_bytes(), limit.to_ne_bytes(), [0; 4]].concat();
    let list = |entries: &[Vec<u8>]| attr(1, &entries.concat());
    let get =
        |client: &mut Client, attrs: &[u8]| client.ask(&CT_LIMIT, 0, 3, dp, attrs).only().attr(1).unwrap();
    assert_eq!(get(&mut client, &[]), entry(-1, 0));
    let limits = list(&[entry(-1, 10), entry(3, 5)]);
    assert_eq!(client.ask(&CT_LIMIT, ACK, 1, dp, &limits).messages.len(), 2, "reply and ack");
    assert_eq!(get(&mut client, &[]), [entry(-1, 10), entry(3, 5)].concat());
    assert_eq!(get(&mut client, &list(&[entry(4, 0), entry(3, 0)])), [entry(4, 10), entry(3, 5)].concat());
    client.ask(&CT_LIMIT, ACK, 2, dp, &list(&[entry(3, 0)]));
    assert_eq!(get(&mut client, &[]), entry(-1, 10));
    assert_eq!(client.ask(&CT_LIMIT, 0, 1, dp, &list(&[entry(70_000, 1)])).errno(), 22, "no such zone");
    assert_eq!(client.ask(&CT_LIMIT, 0, 1, dp, &attr(1, &[0; 13])).errno(), 22, "a byte too many");
    assert_eq!(client.ask(&CT_LIMIT, 0, 1, dp, &[]).only().reason().2, Some(1));
}
