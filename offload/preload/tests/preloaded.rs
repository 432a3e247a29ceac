//! The library as a program meets it: this test runs itself again, with the library preloaded, in a network namespace of its
//! own, where it may do what Open vSwitch does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

use flowlift_ovs::marker::{
    CLIENT_PORT_IDS, CLIENT_PORT_IDS_END, FAMILY_ID_MIN, SERVER_PORT_ID, cookie, marker, split,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, getsockname, recv,
    recvfrom, send, sendto, socket,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Set in the program that is this test's child.
const INSIDE: &str = "FLOWLIFT_PRELOAD_INSIDE";
/// Below the ten seconds that a caller waits for an agent, far above what an answer takes.
const AT_ONCE: Duration = Duration::from_secs(7);

/// Runs the test `name` again, inside.
fn inside(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let program = std::env::current_exe().unwrap();
    // target/debug/deps/preloaded-...: the library is beside the folder's parent, or in it.
    let library = [program.parent().unwrap().parent().unwrap(), program.parent().unwrap()]
        .map(|folder: &Path| folder.join("libflowlift_preload.so"))
        .into_iter()
        .find(|path| path.exists())
        .expect("cargo builds the library before its tests");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "env"])
        .arg(format!("LD_PRELOAD={}", library.display()))
        .arg(&program)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare, of util-linux");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// A socket as Open vSwitch makes it: connected to the kernel.
fn client() -> OwnedFd {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkGeneric)
        .unwrap();
    connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
    fd
}

/// A request, with attributes for nlctrl.
fn request(kind: u16, attribute: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    // CTRL_CMD_GETFAMILY, version 1.
    bytes.extend([3, 1, 0, 0]);
    if let Some(name) = attribute {
        bytes.extend((4 + name.len() as u16).to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6] = 1;
    bytes
}

fn now(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    recv(fd, buffer, MsgFlags::MSG_DONTWAIT)
}

/// An agent that does `answer` with each datagram and its sender, until that says no.
fn agent(mut answer: impl FnMut(&OwnedFd, u32, &[u8]) -> bool + Send + 'static) -> JoinHandle<()> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkGeneric)
        .unwrap();
    bind(fd.as_raw_fd(), &NetlinkAddr::new(SERVER_PORT_ID, 0)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (len, from) = recvfrom::<NetlinkAddr>(fd.as_raw_fd(), &mut buffer).unwrap();
            if !answer(&fd, from.unwrap().pid(), &buffer[..len]) {
                return;
            }
        }
    })
}

fn reply(fd: &OwnedFd, to: u32, bytes: &[u8]) {
    sendto(fd.as_raw_fd(), bytes, &NetlinkAddr::new(to, 0), MsgFlags::empty()).unwrap();
}

/// Answers what is not a marker alone with the same bytes, after a while, then sends the marker back.
fn echo(fd: &OwnedFd, from: u32, datagram: &[u8]) -> bool {
    let (messages, mark) = split(datagram);
    if !messages.is_empty() {
        std::thread::sleep(Duration::from_millis(40));
    }
    if messages.get(20..24) != Some(&b"none"[..]) && !messages.is_empty() {
        reply(fd, from, messages);
    }
    reply(fd, from, &marker(mark.expect("each datagram has a marker")));
    messages.get(20..24) != Some(&b"last"[..])
}

fn without_an_agent() {
    let fd = client();
    let mut buffer = [0; 4096];
    let own: NetlinkAddr = getsockname(fd.as_raw_fd()).unwrap();
    assert!((CLIENT_PORT_IDS..CLIENT_PORT_IDS_END).contains(&own.pid()), "{}", own.pid());
    let start = Instant::now();
    let asked = send(fd.as_raw_fd(), &request(16, Some(b"ovs_datapath\0")), MsgFlags::empty());
    assert_eq!(asked, Err(Errno::ENOENT), "as if the kernel's module were not loaded");
    assert_eq!(
        send(fd.as_raw_fd(), &request(FAMILY_ID_MIN, None), MsgFlags::empty()),
        Err(Errno::ECONNREFUSED)
    );
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::EAGAIN));
    let asked = request(16, Some(b"nlctrl\0"));
    assert_eq!(send(fd.as_raw_fd(), &asked, MsgFlags::empty()), Ok(asked.len()));
    let len = now(fd.as_raw_fd(), &mut buffer).expect("the kernel answers within the send");
    assert!(buffer[..len].windows(7).any(|w| w == b"nlctrl\0"), "{:?}", &buffer[..len]);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn without_an_agent_the_families_do_not_exist_and_others_work() {
    inside("without_an_agent_the_families_do_not_exist_and_others_work", without_an_agent);
}

fn with_an_agent() {
    let agent = agent(echo);
    let fd = client();
    let mut buffer = [0; 4096];
    let ask = |tag: &[u8; 4]| {
        let mut bytes = request(FAMILY_ID_MIN, None);
        bytes.extend(tag);
        bytes[..4].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(
            send(fd.as_raw_fd(), &bytes, MsgFlags::empty()),
            Ok(24),
            "the marker is no business of the program's"
        );
        bytes
    };
    // Without waiting, as Open vSwitch reads: the answer is waited for all the same.
    let asked = ask(b"some");
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Ok(24));
    assert_eq!(&buffer[..24], asked);
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::EAGAIN), "the marker is not seen");
    // Nothing is the answer, which is known when the agent has done its work.
    let start = Instant::now();
    ask(b"none");
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::EAGAIN));
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
    // A buffer of one byte, as Open vSwitch drains sockets with; and by another descriptor of the same socket.
    let other = nix::unistd::dup(&fd).unwrap();
    ask(b"some");
    assert_eq!(
        recv(other.as_raw_fd(), &mut buffer[..1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC),
        Ok(24)
    );
    ask(b"some");
    assert_eq!(recv(other.as_raw_fd(), &mut buffer[..0], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC), Ok(24));
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Ok(24), "it was only looked at");
    assert_eq!(now(other.as_raw_fd(), &mut buffer), Err(Errno::EAGAIN));
    ask(b"last");
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Ok(24));
    agent.join().unwrap();
}

#[test]
fn a_read_that_does_not_wait_waits_for_the_agents_answer() {
    inside("a_read_that_does_not_wait_waits_for_the_agents_answer", with_an_agent);
}

fn a_dead_agent() {
    // Dies with the request in its hands.
    let agent = agent(|_, _, _| false);
    let fd = client();
    let mut buffer = [0; 64];
    send(fd.as_raw_fd(), &request(FAMILY_ID_MIN, None), MsgFlags::empty()).unwrap();
    let start = Instant::now();
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::ECONNREFUSED));
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::EAGAIN), "told once");
    agent.join().unwrap();
    // Another one takes its place and owes nothing: what it says first is the marker of a sign of life.
    let mut seen = 0;
    let next = self::agent(move |fd, from, datagram| {
        seen += 1;
        if seen == 1 {
            // As if the one before had died with it.
            return true;
        }
        assert!(cookie(datagram).is_some(), "a marker alone");
        reply(fd, from, datagram);
        false
    });
    send(fd.as_raw_fd(), &request(FAMILY_ID_MIN, None), MsgFlags::empty()).unwrap();
    assert_eq!(now(fd.as_raw_fd(), &mut buffer), Err(Errno::ECONNREFUSED), "the answer is lost");
    next.join().unwrap();
}

#[test]
fn an_agent_that_dies_is_noticed_at_once() {
    inside("an_agent_that_dies_is_noticed_at_once", a_dead_agent);
}
