//! Clients that send anything: the simulator answers, or ends the connection, and serves the next client.

use crate::process::*;
use flowlift_bus::DmaMem;
use flowlift_bus::PciFunction;
use flowlift_bus::vfio_user::{
    Capabilities, Endpoint, Header, MAX_MESSAGE, ProtocolError, RegionAccess, Version, command, flag,
};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// A descriptor that a client sends along.
#[derive(Debug, Clone, Copy)]
enum Fd {
    Memory,
    SmallMemory,
    Pipe,
    Socket,
    Event,
    Directory,
}

impl Fd {
    fn open(self) -> OwnedFd {
        match self {
            Self::Memory => DmaMem::new(1 << 20).unwrap().fd().try_clone_to_owned().unwrap(),
            Self::SmallMemory => DmaMem::new(1).unwrap().fd().try_clone_to_owned().unwrap(),
            Self::Pipe => std::io::pipe().unwrap().1.into(),
            Self::Socket => UnixStream::pair().unwrap().0.into(),
            Self::Event => EventFd::new().unwrap().into(),
            Self::Directory => File::open("/").unwrap().into(),
        }
    }
}

/// What a client does.
#[derive(Debug, Clone)]
enum Act {
    /// Bytes without a thought.
    Bytes(Vec<u8>),
    /// A message of a right length with a body that may be anything.
    Message { command: u16, flags: u32, body: Vec<u8>, fds: Vec<Fd> },
    /// A message whose body is made of numbers that mean something.
    Numbers { command: u16, words: Vec<u32>, fds: Vec<Fd> },
    /// A header that promises more than comes.
    Promise(u32),
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..40,
        2 => prop::sample::select(vec![0x1000u32, 0x2000, 0x4000, 0x10_0000, 0xffff_f000, 0x7fff_ffff, u32::MAX]),
        1 => any::<u32>(),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let fds = || {
        let one = prop::sample::select(vec![
            Fd::Memory,
            Fd::SmallMemory,
            Fd::Pipe,
            Fd::Socket,
            Fd::Event,
            Fd::Directory,
        ]);
        prop::collection::vec(one, 0..4)
    };
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 1..64).prop_map(Act::Bytes),
        2 => (0u16..20, prop::sample::select(vec![0u32, 1, 0x10, 0x20, 0xffff_ffff]), prop::collection::vec(any::<u8>(), 0..64), fds())
            .prop_map(|(command, flags, body, fds)| Act::Message { command, flags, body, fds }),
        8 => (2u16..14, prop::collection::vec(number(), 0..12), fds())
            .prop_map(|(command, words, fds)| Act::Numbers { command, words, fds }),
        1 => (0u32..MAX_MESSAGE * 2).prop_map(Act::Promise),
    ]
}

/// A client's end, after the version was agreed on where `polite`.
fn raw(sim: &Simulator, polite: bool) -> Endpoint {
    let mut endpoint = Endpoint::new(UnixStream::connect(sim.socket()).unwrap()).unwrap();
    if polite {
        let version = Version { major: 0, minor: 0 };
        let header = Header { command: command::VERSION, ..Header::default() };
        let caps = Capabilities::ours().to_bytes();
        endpoint.send(header, &[version.as_bytes(), &caps], &[], soon()).unwrap();
        let reply = endpoint.receive(soon()).unwrap();
        assert_eq!(reply.header.flags, flag::REPLY, "{:?}", reply.header);
    }
    endpoint
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Does it; false when the server has ended the connection.
fn perform(endpoint: &mut Endpoint, act: &Act) -> bool {
    let send = |endpoint: &mut Endpoint, command: u16, flags: u32, body: &[u8], fds: &[Fd]| {
        let owned: Vec<OwnedFd> = fds.iter().map(|fd| fd.open()).collect();
        let fds: Vec<_> = owned.iter().map(|fd| fd.as_fd()).collect();
        let header = Header { id: 77, command, flags, ..Header::default() };
        endpoint.send(header, &[body], &fds, soon()).is_ok()
    };
    match act {
        Act::Bytes(bytes) => endpoint.stream().write_all(bytes).is_ok(),
        Act::Message { command, flags, body, fds } => send(endpoint, *command, *flags, body, fds),
        Act::Numbers { command, words, fds } => send(endpoint, *command, 0, words.as_bytes(), fds),
        Act::Promise(size) => {
            let header = Header { size: *size, ..Header::default() };
            endpoint.stream().write_all(header.as_bytes()).is_ok()
        }
    }
}

#[test]
fn no_client_brings_the_simulator_down() {
    let mut sim = Simulator::start(&["--profile", "tiny"]);
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let session = (any::<bool>(), prop::collection::vec(act(), 1..40));
    let outcome = runner.run(&session, |(polite, acts)| {
        let mut endpoint = raw(&sim, polite);
        for act in &acts {
            if !perform(&mut endpoint, act) {
                break;
            }
            // Replies are read now and then, so that the server is not stopped by a full socket alone.
            while let Ok(Some(_)) = endpoint.try_receive() {}
        }
        drop(endpoint);
        let next = sim.connect();
        prop_assert_eq!(next.config_read(0, 4).unwrap(), 0xf101_1d9b);
        prop_assert_eq!(next.config_read(4, 2).unwrap(), 0, "what one client did is gone for the next");
        Ok(())
    });
    sim.assert_alive();
    outcome.unwrap();
    let mut d = Driver::open(&sim);
    sim.inject(1, &tcp(2));
    assert_eq!(d.slow().1, tcp(2));
}

/// The errno of a reply, 0 for none.
fn errno(endpoint: &mut Endpoint, command: u16, body: &[u8]) -> u32 {
    let header = Header { id: 5, command, ..Header::default() };
    endpoint.send(header, &[body], &[], soon()).unwrap();
    let reply = endpoint.receive(soon()).unwrap();
    assert_eq!((reply.header.id, reply.header.command), (5, command));
    assert_eq!(reply.header.flags & flag::ERROR != 0, reply.header.error != 0);
    reply.header.error
}

#[test]
fn mistakes_get_an_errno_and_the_session_goes_on() {
    let sim = Simulator::start(&[]);
    let mut e = raw(&sim, false);
    assert_eq!(errno(&mut e, command::GET_INFO, &[0; 16]), Errno::EINVAL as u32, "before the version");
    let other = Version { major: 9, minor: 0 };
    assert_eq!(errno(&mut e, command::VERSION, other.as_bytes()), Errno::EINVAL as u32, "another protocol");
    drop(e);

    let mut e = raw(&sim, true);
    assert_eq!(errno(&mut e, command::VERSION, &[0; 4]), Errno::EINVAL as u32, "a second version");
    for unknown in [0, 14, 15, 16, 17, 18, 999, u16::MAX] {
        assert_eq!(errno(&mut e, unknown, &[0; 64]), Errno::ENOTSUP as u32, "command {unknown}");
    }
    for command in [2, 3, 4, 5, 6, 7, 8, 9, 10] {
        assert_eq!(errno(&mut e, command, &[0; 3]), Errno::EINVAL as u32, "command {command} cut off");
    }
    let access = |offset, region, count| RegionAccess { offset, region, count };
    for (wrong, why) in [
        (access(0, 9, 4), "no such region"),
        (access(0, 1, 4), "an empty region"),
        (access(256, 7, 1), "behind the end"),
        (access(u64::MAX, 7, 4), "wraps around"),
        (access(0, 7, 0), "nothing"),
        (access(0, 7, u32::MAX), "too much"),
    ] {
        assert_eq!(errno(&mut e, command::REGION_READ, wrong.as_bytes()), Errno::EINVAL as u32, "{why}");
    }
    let mut write = access(0, 7, 4).as_bytes().to_vec();
    write.extend([0; 3]);
    assert_eq!(errno(&mut e, command::REGION_WRITE, &write), Errno::EINVAL as u32, "a byte is missing");
    assert_eq!(errno(&mut e, command::GET_INFO, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
}

#[test]
fn a_command_without_reply_gets_none_even_if_it_fails() {
    let sim = Simulator::start(&[]);
    let mut e = raw(&sim, true);
    let silent = Header { id: 1, command: 999, flags: flag::NO_REPLY, ..Header::default() };
    e.send(silent, &[], &[], soon()).unwrap();
    assert_eq!(errno(&mut e, command::RESET, &[]), 0, "the next reply is the next command's");
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_message_does_not_stop_the_simulator() {
    let sim = Simulator::start(&[]);
    let mut e = raw(&sim, true);
    e.stream().write_all(&[1, 2, 3]).unwrap();
    assert!(matches!(e.receive(Instant::now() + Duration::from_millis(30)), Err(ProtocolError::Timeout)));
    drop(e);
    assert_eq!(sim.connect().config_read(0, 2).unwrap(), 0x1d9b);
    let log = sim.stop();
    assert!(log.contains("stopped"), "{log}");
}
