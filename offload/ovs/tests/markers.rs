//! Markers come back in order: behind their datagram's replies, a dump included, and behind those of earlier datagrams.

use flowlift_ovs::marker::{cookie, marker};
use flowlift_ovs::memory::Memory;
use flowlift_ovs::server::{DumpState, Peer, Server};

const CLIENT: Peer = Peer { port_id: 0x0100_0001, uid: 0 };

/// Asks nlctrl for every family: NLM_F_REQUEST | NLM_F_DUMP, GENL_ID_CTRL, CTRL_CMD_GETFAMILY (linux/genetlink.h).
fn dump_families() -> Vec<u8> {
    let mut m = 20u32.to_ne_bytes().to_vec();
    m.extend(16u16.to_ne_bytes());
    m.extend(0x301u16.to_ne_bytes());
    m.extend(7u32.to_ne_bytes());
    m.extend([0; 4]);
    m.extend([3, 1, 0, 0]);
    m
}

/// The cookies of the markers that `handle` or `continue_dump` gave.
fn cookies(replies: &[Vec<u8>]) -> Vec<u64> {
    replies.iter().filter_map(|bytes| cookie(bytes).map(u64::from_ne_bytes)).collect()
}

#[test]
fn a_sign_of_life_does_not_overtake_a_dump() {
    let (mut server, mut backend) = (Server::default(), Memory::default());
    let mut replies = Vec::new();
    let with = |mut message: Vec<u8>, cookie: u64| {
        message.extend(marker(cookie.to_ne_bytes()));
        message
    };
    let begin = with(dump_families(), 1);
    server.handle(CLIENT, &begin, &mut backend, &mut |reply| replies.push(reply.bytes.to_vec()));
    for probe in 2..100 {
        let probe = with(Vec::new(), probe);
        server.handle(CLIENT, &probe, &mut backend, &mut |reply| replies.push(reply.bytes.to_vec()));
    }
    assert_eq!(cookies(&replies), Vec::<u64>::new(), "the dump is not at its end");
    let mut out = |reply: flowlift_ovs::server::Reply<'_>| replies.push(reply.bytes.to_vec());
    while server.continue_dump(CLIENT.port_id, &mut backend, &mut out) == DumpState::More {}
    let got = cookies(&replies);
    assert_eq!((got.first(), got.last()), (Some(&1), Some(&99)), "the dump's own first, the newest last");
    assert!(got.is_sorted() && got.len() <= 64, "a bounded number, in order: {got:?}");
    replies.clear();
    let after = with(Vec::new(), 100);
    server.handle(CLIENT, &after, &mut backend, &mut |reply| replies.push(reply.bytes.to_vec()));
    assert_eq!(cookies(&replies), [100], "nothing to wait for");
}
