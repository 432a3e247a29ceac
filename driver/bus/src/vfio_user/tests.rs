//! The messages against the layouts in the specification, and the socket against peers that misbehave.

use super::*;
use crate::DmaMem;
use proptest::prelude::*;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn pair() -> (Endpoint, Endpoint) {
    let (a, b) = UnixStream::pair().unwrap();
    (Endpoint::new(a).unwrap(), Endpoint::new(b).unwrap())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn structures_have_the_sizes_of_the_specification() {
    let sizes = [
        size_of::<Header>(),
        size_of::<Version>(),
        size_of::<DmaMap>(),
        size_of::<DmaUnmap>(),
        size_of::<DmaAccess>(),
        size_of::<DeviceInfo>(),
        size_of::<RegionInfo>(),
        size_of::<SparseMmap>(),
        size_of::<SparseArea>(),
        size_of::<RegionIoFds>(),
        size_of::<IoEventFd>(),
        size_of::<IrqInfo>(),
        size_of::<IrqSet>(),
        size_of::<RegionAccess>(),
    ];
    assert_eq!(sizes, [16, 4, 32, 24, 16, 16, 32, 16, 16, 16, 40, 16, 20, 16]);
}

#[test]
fn a_message_as_bytes() {
    let (mut a, b) = pair();
    let header =
        Header { id: 0x1234, command: command::REGION_READ, flags: flag::REPLY, ..Header::default() };
    let access = RegionAccess { offset: 0x1_0000_0002, region: 7, count: 4 };
    a.send(header, &[access.as_bytes(), &[1, 2, 3, 4]], &[], soon()).unwrap();
    let mut raw = [0; 36];
    std::io::Read::read_exact(&mut b.stream(), &mut raw).unwrap();
    let expected = [
        0x34, 0x12, 9, 0, 36, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // header
        2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, // access
        1, 2, 3, 4,
    ];
    assert_eq!(raw, expected);
}

#[test]
fn messages_come_whole_with_their_own_descriptors() {
    let (mut a, mut b) = pair();
    let mem = DmaMem::new(4096).unwrap();
    mem.write_bytes(0, b"shared").unwrap();
    for id in 0..3u16 {
        let fds = vec![mem.fd(); usize::from(id)];
        a.send(Header { id, ..Header::default() }, &[&vec![7; usize::from(id)]], &fds, soon()).unwrap();
    }
    for id in 0..3u16 {
        let m = b.receive(soon()).unwrap();
        assert_eq!((m.header.id, m.body.len(), m.fds.len()), (id, usize::from(id), usize::from(id)));
        for fd in m.fds {
            let peer = DmaMem::from_file(fd.into(), 4096).unwrap();
            let mut text = [0; 6];
            peer.read_bytes(0, &mut text).unwrap();
            assert_eq!(&text, b"shared");
        }
    }
    assert!(b.try_receive().unwrap().is_none());
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (a, mut b) = pair();
    let header = Header { id: 9, size: 20, ..Header::default() };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([1, 2, 3, 4]);
    for (n, byte) in bytes.iter().enumerate() {
        assert!(b.try_receive().unwrap().is_none(), "byte {n}");
        a.stream().write_all(&[*byte]).unwrap();
    }
    assert_eq!(b.try_receive().unwrap().map(|m| m.body), Some(vec![1, 2, 3, 4]));
}

#[test]
fn impossible_sizes_and_dead_peers_end_the_connection() {
    for size in [0, 15, MAX_MESSAGE + 1, u32::MAX] {
        let (a, mut b) = pair();
        a.stream().write_all(Header { size, ..Header::default() }.as_bytes()).unwrap();
        assert!(matches!(b.try_receive(), Err(ProtocolError::Size(s)) if s == size), "{size}");
    }
    let (a, mut b) = pair();
    drop(a);
    assert!(matches!(b.try_receive(), Err(ProtocolError::Closed)));
    assert!(matches!(b.send(Header::default(), &[], &[], soon()), Err(ProtocolError::Closed)));
}

#[test]
fn waiting_ends_at_the_deadline() {
    let (mut a, mut b) = pair();
    let start = Instant::now();
    let deadline = start + Duration::from_millis(20);
    assert!(matches!(b.receive(deadline), Err(ProtocolError::Timeout)));
    // Nobody reads: at some time the socket takes no more.
    let block = vec![0; MAX_DATA as usize];
    let refused = (0..64).find_map(|_| a.send(Header::default(), &[&block], &[], deadline).err());
    assert!(matches!(refused, Some(ProtocolError::Timeout)), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn capabilities_are_json_with_defaults() {
    let theirs =
        br#"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true},"migration":{"pgsize":4096}}}"#;
    let c = Capabilities::from_bytes(theirs).unwrap();
    assert_eq!((c.max_msg_fds, c.max_dma_maps, c.pgsizes), (8, 65_535, 4096));
    assert_eq!(Capabilities::from_bytes(b"\0"), Some(Capabilities::default()));
    assert_eq!(Capabilities::from_bytes(b"{}\0"), Some(Capabilities::default()));
    assert_eq!(Capabilities::from_bytes(&Capabilities::ours().to_bytes()), Some(Capabilities::ours()));
    let deep = "[".repeat(100_000);
    for bad in ["7", "{", r#"{"capabilities":7}"#, r#"{"capabilities":{"max_msg_fds":-1}}"#, &deep] {
        assert_eq!(Capabilities::from_bytes(bad.as_bytes()), None, "{:.40}", bad);
    }
}

proptest! {
    /// Any bytes from a peer, in any pieces: messages, or an error; never a panic.
    #[test]
    fn any_stream_is_harmless(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let (a, mut b) = pair();
        for piece in pieces {
            a.stream().write_all(&piece).unwrap();
            if b.try_receive().is_err() {
                return Ok(());
            }
        }
        prop_assert!(b.as_fd().try_clone_to_owned().is_ok());
    }

    #[test]
    fn any_capabilities_are_harmless(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Capabilities::from_bytes(&text);
    }
}
