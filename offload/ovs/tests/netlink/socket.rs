//! The endpoint on real sockets, in a network namespace of its own: Netlink between processes takes CAP_NET_ADMIN.

use crate::namespace::in_a_namespace;
use crate::raw::*;
use flowlift_ovs::marker;
use flowlift_ovs::memory::Memory;
use flowlift_ovs::server::{Server, To};
use flowlift_ovs::socket::{Endpoint, Next, SendError, Socket};
use flowlift_ovs::uapi::{DATAPATH, FLOW};
use nix::errno::Errno;
use nix::sys::socket::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A client's socket, connected to the server.
struct Raw(OwnedFd);

impl Raw {
    fn connect(port_id: u32) -> Self {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkGeneric,
        );
        let fd = fd.unwrap();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(port_id, 0)).unwrap();
        connect(fd.as_raw_fd(), &NetlinkAddr::new(marker::SERVER_PORT_ID, 0)).unwrap();
        Self(fd)
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(send(self.0.as_raw_fd(), bytes, MsgFlags::empty()), Ok(bytes.len()));
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 17];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => Some(buffer[..len].to_vec()),
            Err(Errno::EAGAIN) => None,
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn serve() -> (Endpoint, Memory) {
    let socket = Socket::bind(marker::SERVER_PORT_ID).unwrap();
    (Endpoint::new(socket, Server::default()), Memory::default())
}

/// The request for a new datapath, with a marker.
fn new_datapath(name: &str, flags: u16) -> Vec<u8> {
    let attrs = [attr_name(1, name), attr_u32(2, 0), attr_u32(5, 9)].concat();
    let request = message(DATAPATH.id, REQUEST | flags, 5, &ovs(1, 2, 0, &attrs));
    [request, marker::marker(*b"whatever").to_vec()].concat()
}

#[test]
fn requests_notifications_and_upcalls() {
    in_a_namespace(|| {
        let (mut endpoint, mut backend) = serve();
        assert_eq!(Socket::bind(marker::SERVER_PORT_ID).unwrap_err().errno, Errno::EADDRINUSE);
        let client = Raw::connect(0x0100_0001);
        let listener = Raw::connect(0x0100_0002);
        // NETLINK_ADD_MEMBERSHIP is not to be had from here; groups are also joined when binding.
        let group = DATAPATH.group.unwrap().0;
        bind(listener.0.as_raw_fd(), &NetlinkAddr::new(0x0100_0002, 1 << (group - 1))).unwrap();

        client.send(&new_datapath("ovs-system", ECHO | ACK));
        assert_eq!(endpoint.pump(&mut backend, Instant::now()).unwrap(), Next::Readable);
        let kinds: Vec<u16> =
            std::iter::from_fn(|| client.receive()).map(|bytes| Message::all(&bytes)[0].kind).collect();
        assert_eq!(kinds, [DATAPATH.id, 2, marker::TYPE]);
        let heard = listener.receive().expect("the group hears of new datapaths");
        assert_eq!(Message::all(&heard)[0].kind, DATAPATH.id);
        assert_eq!(listener.receive(), None);

        let sender = endpoint.sender();
        sender.send(To::Unicast(0x0100_0001), &[&[1, 2], &[3], &[4]]).unwrap();
        assert_eq!(client.receive(), Some(vec![1, 2, 3, 4]), "parts make one datagram");
        assert_eq!(sender.send(To::Unicast(0x0100_0009), &[&[1]]), Err(SendError::Gone));
        let (server, socket) = endpoint.counters();
        assert_eq!((server.requests, server.failed), (1, 0));
        assert_eq!(socket, Default::default());
    });
}

#[test]
fn a_slow_reader_of_a_dump_blocks_nobody() {
    in_a_namespace(|| {
        let (mut endpoint, mut backend) = serve();
        let slow = Raw::connect(0x0100_0001);
        setsockopt(&slow.0, sockopt::RcvBuf, &4096).unwrap();
        let quick = Raw::connect(0x0100_0002);
        quick.send(&new_datapath("ovs-system", 0));
        endpoint.pump(&mut backend, Instant::now()).unwrap();
        assert_eq!(quick.receive().map(|m| m.len()), Some(marker::LEN));
        for n in 0..3000u16 {
            let [a, b] = n.to_be_bytes();
            let key =
                [attr_u32(3, 1), attr(4, &[2, 0, 0, 0, a, b, 2, 0, 0, 0, 0, 2]), attr(6, &[0x88, 0xcc])]
                    .concat();
            let attrs = [attr(1, &key), attr(2, &attr_u32(1, 2))].concat();
            quick.send(&message(FLOW.id, REQUEST | CREATE, 1, &ovs(1, 1, 1, &attrs)));
            endpoint.pump(&mut backend, Instant::now()).unwrap();
        }
        let dump = message(FLOW.id, REQUEST | DUMP, 2, &ovs(3, 1, 1, &[]));
        slow.send(&[dump, marker::marker([3; 8]).to_vec()].concat());
        let waits =
            (0..100).any(|_| matches!(endpoint.pump(&mut backend, Instant::now()).unwrap(), Next::Within(_)));
        assert!(waits, "the reader's buffer is full");
        quick.send(&new_datapath("another", ACK));
        endpoint.pump(&mut backend, Instant::now()).unwrap();
        assert_eq!(Message::all(&quick.receive().unwrap())[0].errno(), 0, "answered meanwhile");

        let (mut flows, mut now, start) = (0, Instant::now(), Instant::now());
        let end = loop {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{flows} flows so far: {:?}",
                endpoint.counters()
            );
            match slow.receive() {
                Some(bytes) if marker::cookie(&bytes).is_some() => break Message::all(&bytes),
                Some(bytes) => flows += Message::all(&bytes).iter().filter(|m| m.kind == FLOW.id).count(),
                None => {
                    now += Duration::from_millis(60);
                    endpoint.pump(&mut backend, now).unwrap();
                }
            }
        };
        assert_eq!((flows, end.len()), (3000, 1), "all of it came, and the marker last");
        assert_eq!(endpoint.counters().1.dropped, 0);
    });
}

#[test]
fn a_reader_that_never_comes_back_costs_a_bounded_amount() {
    in_a_namespace(|| {
        let (mut endpoint, mut backend) = serve();
        let client = Raw::connect(0x0100_0001);
        setsockopt(&client.0, sockopt::RcvBuf, &4096).unwrap();
        for _ in 0..20_000 {
            client.send(&new_datapath("ovs-system", ECHO));
            endpoint.pump(&mut backend, Instant::now()).unwrap();
        }
        let (_, socket) = endpoint.counters();
        assert!(socket.dropped > 0 && socket.delayed > 0, "{socket:?}");
        drop(client);
        endpoint.pump(&mut backend, Instant::now() + Duration::from_secs(1)).unwrap();
        assert_eq!(endpoint.counters().1.gone, 1);
        assert_eq!(endpoint.pump(&mut backend, Instant::now()).unwrap(), Next::Readable, "it is forgotten");
    });
}
