//! Any datagram to the Netlink server: it answers or not, but it goes on, its dumps end, and its marker comes back.
//!
//! The input is the datagram, without the marker. There is a datapath, so that requests have something to act on; its index
//! stands in the requests of the corpus.
#![no_main]

use flowlift_ovs::backend::{Backend, Features, NewDatapath};
use flowlift_ovs::marker;
use flowlift_ovs::memory::Memory;
use flowlift_ovs::server::{DumpState, Peer, Server};
use libfuzzer_sys::fuzz_target;

const PEER: Peer = Peer { port_id: 0x0100_0001, uid: 0 };

fuzz_target!(|input: &[u8]| {
    let mut server = Server::default();
    let mut backend = Memory::default();
    backend.netdevs = vec!["v1".into(), "v2".into()];
    let made = backend.datapath_new(NewDatapath {
        name: "ovs-system".into(),
        features: Features(9),
        masks_cache_size: None,
        upcall_pid: 0,
        per_cpu_pids: vec![1, 2],
        index: None,
    });
    assert!(made.is_ok(), "a datapath can be made");

    let mut datagram = input.to_vec();
    datagram.resize(datagram.len().next_multiple_of(4), 0);
    datagram.extend_from_slice(&marker::marker([7; 8]));
    let mut last = Vec::new();
    let mut out = |reply: flowlift_ovs::server::Reply<'_>| {
        last.clear();
        last.extend_from_slice(reply.bytes);
    };
    server.handle(PEER, &datagram, &mut backend, &mut out);
    let mut steps = 0;
    while server.continue_dump(PEER.port_id, &mut backend, &mut out) == DumpState::More {
        steps += 1;
        assert!(steps < 1000, "a dump of few things ends");
    }
    assert_eq!(marker::cookie(&last), Some([7; 8]), "the marker comes last");
});
