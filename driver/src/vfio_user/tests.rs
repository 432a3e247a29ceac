//! The client against a server that is written here and lies on demand.

use super::*;
use flowlift_bus::vfio_user::{Capabilities, Endpoint, Header, ProtocolError, Version, flag};
use flowlift_bus::{BarAccess, DmaDirection};
use nix::errno::Errno;
use proptest::prelude::*;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Longer than an answer takes that comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is wrong with an answer.
#[derive(Debug, Clone)]
enum Lie {
    /// A byte of the payload is another one.
    Byte(usize, u8),
    /// The payload ends early.
    Cut(usize),
    NoDescriptor,
    /// A descriptor of something that is no memory.
    Pipe,
    /// The answer to another question.
    OtherId,
    Error(u32),
    /// The server asks something first: command and payload.
    Question(u16, Vec<u8>),
    /// The device has no reset.
    NoReset,
    Silence,
    Close,
    /// A header that promises more than any message has.
    Endless,
}

/// BAR 0 trapped, BAR 2 mapped, three vectors.
fn truth(command: u16, body: &[u8], bar2: &DmaMem, bell: &EventFd) -> (Vec<u8>, Option<OwnedFd>) {
    let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
    match command {
        command::VERSION => {
            let mut out = Version { major: 0, minor: 0 }.as_bytes().to_vec();
            out.extend_from_slice(&Capabilities { max_msg_fds: 2, ..Capabilities::ours() }.to_bytes());
            (out, None)
        }
        command::GET_INFO => {
            (DeviceInfo { argsz: 16, flags: 3, regions: 9, irqs: 5 }.as_bytes().to_vec(), None)
        }
        command::GET_REGION_INFO => {
            let index = word(8);
            let size = if index == 0 || index == 2 { 4096 } else { 0 };
            let (flags, cap_offset) = if index == 2 { (15, 32) } else { (3, 0) };
            let info = RegionInfo { argsz: 64, flags, index, cap_offset, size, offset: 0 };
            let mut out = info.as_bytes().to_vec();
            if index != 2 {
                return (out, None);
            }
            out.extend_from_slice(
                SparseMmap { id: 1, version: 1, next: 0, areas: 1, reserved: 0 }.as_bytes(),
            );
            out.extend_from_slice(SparseArea { offset: 0, size }.as_bytes());
            (out, Some(bar2.fd().try_clone_to_owned().unwrap()))
        }
        command::GET_REGION_IO_FDS => {
            let head = RegionIoFds { argsz: 56, flags: word(4), index: word(8), count: 1 };
            let mut out = head.as_bytes().to_vec();
            out.extend_from_slice(IoEventFd { size: 4096, ..IoEventFd::new_zeroed() }.as_bytes());
            (out, Some(bell.as_fd().try_clone_to_owned().unwrap()))
        }
        command::GET_IRQ_INFO => {
            let count = [0, 0, 3, 1, 1][word(8) as usize];
            (WireIrqInfo { argsz: 16, flags: 1, index: word(8), count }.as_bytes().to_vec(), None)
        }
        command::REGION_READ => {
            let mut out = body[..16].to_vec();
            out.extend((0..word(12)).map(|n| 0xa0 + n as u8));
            (out, None)
        }
        command::REGION_WRITE => (body[..16].to_vec(), None),
        command::DMA_UNMAP => (body.to_vec(), None),
        _ => (vec![], None),
    }
}

/// What the client answered to a question: flags, error, payload.
type Answered = (u32, u32, Vec<u8>);

/// Serves until the client leaves. The lie is told in the answer of its number.
fn serve(
    stream: UnixStream,
    lies: Vec<(usize, Lie)>,
    log: &mut Vec<(u16, usize)>,
    answers: &mut Vec<Answered>,
    bell: &EventFd,
) {
    let bar2 = DmaMem::new(4096).unwrap();
    bar2.store_u32(8, 0x1234, std::sync::atomic::Ordering::Release).unwrap();
    let mut e = Endpoint::new(stream).unwrap();
    let far = || Instant::now() + PATIENCE;
    for n in 0.. {
        let Ok(message) = e.receive(far()) else { return };
        log.push((message.header.command, message.fds.len()));
        let (mut body, mut fd) = truth(message.header.command, &message.body, &bar2, bell);
        let mut header = Header { flags: flag::REPLY, ..message.header };
        match lies.iter().find(|(at, _)| *at == n).map(|(_, lie)| lie) {
            None => {}
            Some(Lie::Byte(at, value)) => {
                let len = body.len().max(1);
                if let Some(b) = body.get_mut(at % len) {
                    *b = *value;
                }
            }
            Some(Lie::Cut(at)) => body.truncate(at % (body.len() + 1)),
            Some(Lie::NoDescriptor) => fd = None,
            Some(Lie::Pipe) => fd = Some(std::io::pipe().unwrap().0.into()),
            Some(Lie::OtherId) => header.id = header.id.wrapping_add(1),
            Some(Lie::Error(error)) => (header.flags, header.error) = (flag::REPLY | flag::ERROR, *error),
            Some(Lie::Question(command, body)) => {
                let ask = Header { id: 9, command: *command, ..Header::default() };
                let _ = e.send(ask, &[body], &[], far());
                if let Ok(answer) = e.receive(far()) {
                    answers.push((answer.header.flags, answer.header.error, answer.body));
                }
            }
            // Flags of the device are its answer's second word.
            Some(Lie::NoReset) => body.iter_mut().skip(4).take(1).for_each(|flags| *flags &= !1),
            Some(Lie::Silence) => continue,
            Some(Lie::Close) => return,
            Some(Lie::Endless) => {
                let header = Header { size: u32::MAX, ..header };
                let _ = std::io::Write::write_all(&mut e.stream(), header.as_bytes());
                continue;
            }
        }
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        if !matches!(e.send(header, &[&body], &fds, far()), Ok(()) | Err(ProtocolError::Closed)) {
            return;
        }
    }
}

/// Runs `f` with the outcome of connecting to such a server; then what the server was asked.
fn with_server(
    lies: Vec<(usize, Lie)>,
    deadline: Duration,
    f: impl FnOnce(Result<Arc<VfioUser>, BusError>),
) -> Vec<(u16, usize)> {
    questioned(lies, deadline, f).0
}

/// As [`with_server`]; then also what the client answered to questions.
fn questioned(
    lies: Vec<(usize, Lie)>,
    deadline: Duration,
    f: impl FnOnce(Result<Arc<VfioUser>, BusError>),
) -> (Vec<(u16, usize)>, Vec<Answered>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let (mut log, mut answers) = (vec![], vec![]);
        serve(theirs, lies, &mut log, &mut answers, &event().unwrap());
        (log, answers)
    });
    f(VfioUser::over(ours, "test".into(), VfioUserConfig { deadline }));
    server.join().unwrap()
}

#[test]
fn an_honest_server_is_driven() {
    let log = with_server(vec![], PATIENCE, |f| {
        let f = f.unwrap();
        assert_eq!(f.config_read(4, 2).unwrap(), 0xa1a0);
        let (bar0, bar2) = (f.bar(0).unwrap(), f.bar(2).unwrap());
        assert_eq!((bar0.access(), bar0.read::<u32>(16).unwrap()), (BarAccess::Trapped, 0xa3a2_a1a0));
        assert_eq!((bar2.access(), bar2.read::<u32>(8).unwrap()), (BarAccess::Mapped, 0x1234));
        for (offset, width) in [(4096, 4), (4095, 2), (0, 3), (u64::MAX, 8)] {
            assert!(matches!(bar0.read_width(offset, width), Err(BusError::OutOfRange { .. })));
            assert!(matches!(bar2.write_width(offset, width, 0), Err(BusError::OutOfRange { .. })));
        }
        let event = event().unwrap();
        let one = Some(event.as_fd());
        f.set_irqs(IrqKind::Msix, 0, &[one, one, one]).unwrap();
        f.set_irqs(IrqKind::Msix, 0, &[one, None, None]).unwrap();
        assert!(f.set_irqs(IrqKind::Msix, 2, &[one, one]).is_err());
        let mapping =
            f.dma().map(Arc::new(DmaMem::new(4096).unwrap()), 1 << 20, DmaDirection::Bidirectional).unwrap();
        mapping.unmap().unwrap();
        f.reset().unwrap();
    });
    let irqs: Vec<_> = log.iter().filter(|(c, _)| *c == command::SET_IRQS).map(|(_, fds)| *fds).collect();
    assert_eq!(
        irqs,
        [1, 1, 2, 1, 1, 0],
        "REQ, ERR, then no message with more descriptors than the server takes"
    );
    let tail: Vec<_> = log.iter().rev().take(3).rev().copied().collect();
    assert_eq!(tail, [(command::DMA_MAP, 1), (command::DMA_UNMAP, 0), (command::RESET, 0)]);
}

#[test]
fn a_silent_server_is_gone_after_the_deadline_and_everything_says_so() {
    // The answers before: version, device, six regions, MSI-X, REQ twice, ERR twice, BAR 2's eventfd.
    let deadline = Duration::from_secs(2);
    with_server(vec![(14, Lie::Silence)], deadline, |f| {
        let f = f.unwrap();
        let start = Instant::now();
        assert!(matches!(f.config_read(0, 4), Err(BusError::Gone(_))));
        assert!((deadline..deadline * 10).contains(&start.elapsed()), "{:?}", start.elapsed());
        let start = Instant::now();
        assert!(matches!(f.bar(0).unwrap().read::<u32>(0), Err(BusError::Gone(_))));
        assert_eq!(f.bar(2).unwrap().read::<u32>(8).unwrap(), u32::MAX);
        assert!(matches!(f.reset(), Err(BusError::Gone(_))));
        assert!(start.elapsed() < deadline, "only the first one waits");
    });
}

#[test]
fn an_error_is_an_error_and_no_end() {
    with_server(vec![(14, Lie::Error(95))], PATIENCE, |f| {
        let f = f.unwrap();
        let e = f.reset().unwrap_err();
        assert!(matches!(&e, BusError::Io { cause, .. } if cause.raw_os_error() == Some(95)), "{e}");
        assert!(f.config_read(0, 4).is_ok());
    });
}

#[test]
fn a_device_without_a_reset_says_so_and_is_not_asked_for_one() {
    // Answer 1 is about the device.
    let log = with_server(vec![(1, Lie::NoReset)], PATIENCE, |f| {
        assert!(matches!(f.unwrap().reset(), Err(BusError::Unsupported(_))));
    });
    assert!(log.iter().all(|(c, _)| *c != command::RESET), "{log:?}");
}

#[test]
fn a_server_that_does_not_map_memory_gets_it_by_message_and_no_more_than_that() {
    let access = |address: u64, count: u64, data: &[u8]| {
        let mut body = [address.to_ne_bytes(), count.to_ne_bytes()].concat();
        body.extend_from_slice(data);
        body
    };
    let base = 1u64 << 20;
    let questions = [
        (command::DMA_WRITE, access(base + 8, 5, b"hello"), Ok(access(base + 8, 5, b""))),
        (command::DMA_READ, access(base + 6, 8, b""), Ok(access(base + 6, 8, b"\0\0hello\0"))),
        (command::DMA_READ, access(base + 4095, 2, b""), Err(Errno::EFAULT)),
        (command::DMA_READ, access(base - 1, 1, b""), Err(Errno::EFAULT)),
        (command::DMA_READ, access(0, 1, b""), Err(Errno::EFAULT)),
        (command::DMA_READ, access(base, u64::MAX, b""), Err(Errno::EINVAL)),
        (command::DMA_WRITE, access(base, 9, b"short"), Err(Errno::EINVAL)),
        (command::DMA_READ, b"cut off".to_vec(), Err(Errno::EINVAL)),
        // Mapped for reading alone.
        (command::DMA_WRITE, access(2 * base, 1, b"x"), Err(Errno::EFAULT)),
        (command::DMA_READ, access(2 * base, 1, b""), Ok(access(2 * base, 1, b"\0"))),
        (command::GET_INFO, vec![0; 16], Err(Errno::ENOTSUP)),
    ];
    // The answers before: version, device, six regions, MSI-X, REQ twice, ERR twice, BAR 2's eventfd, two maps.
    let lies = questions.iter().zip(16..).map(|((c, body, _), at)| (at, Lie::Question(*c, body.clone())));
    let (_, answers) = questioned(lies.collect(), PATIENCE, |f| {
        let f = f.unwrap();
        let mem = || Arc::new(DmaMem::new(4096).unwrap());
        let one = f.dma().map(mem(), base, DmaDirection::Bidirectional).unwrap();
        let _two = f.dma().map(mem(), 2 * base, DmaDirection::ToDevice).unwrap();
        for _ in 0..11 {
            f.config_read(0, 4).unwrap();
        }
        let mut text = [0; 5];
        one.mem().read_bytes(8, &mut text).unwrap();
        assert_eq!(&text, b"hello");
    });
    let want: Vec<Answered> = questions
        .into_iter()
        .map(|(_, _, answer)| match answer {
            Ok(body) => (flag::REPLY, 0, body),
            Err(e) => (flag::REPLY | flag::ERROR, e as u32, vec![]),
        })
        .collect();
    assert_eq!(answers, want);
}

#[test]
fn memory_that_was_unmapped_is_not_given_by_message_either() {
    let body = [(1u64 << 20).to_ne_bytes(), 1u64.to_ne_bytes()].concat();
    let (_, answers) = questioned(vec![(16, Lie::Question(command::DMA_READ, body))], PATIENCE, |f| {
        let f = f.unwrap();
        let mem = Arc::new(DmaMem::new(4096).unwrap());
        f.dma().map(mem, 1 << 20, DmaDirection::Bidirectional).unwrap().unmap().unwrap();
        f.config_read(0, 4).unwrap();
    });
    assert_eq!(answers, [(flag::REPLY | flag::ERROR, Errno::EFAULT as u32, vec![])]);
}

#[test]
fn memory_of_a_bar_that_is_none_is_refused() {
    // Answer 4 is of BAR 2.
    for lie in [Lie::NoDescriptor, Lie::Pipe] {
        let what = format!("{lie:?}");
        with_server(vec![(4, lie)], PATIENCE, |f| assert!(f.is_err(), "{what}"));
    }
}

/// What the eventfd of BAR 2 says after `stores` to it, by a server that lies so.
fn rings(lies: Vec<(usize, Lie)>, stores: &[(u64, u32)]) -> u64 {
    let bell = event().unwrap();
    let rung = bell.as_fd().try_clone_to_owned().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || serve(theirs, lies, &mut vec![], &mut vec![], &bell));
    let f = VfioUser::over(ours, "test".into(), VfioUserConfig::default()).unwrap();
    let mut count = [0; 8];
    assert_eq!(nix::unistd::read(&rung, &mut count), Err(Errno::EAGAIN), "nothing was stored");
    let bar2 = f.bar(2).unwrap();
    for (at, value) in stores {
        bar2.write::<u32>(*at, *value).unwrap();
    }
    drop((f, bar2));
    server.join().unwrap();
    nix::unistd::read(&rung, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

#[test]
fn stores_to_a_mapped_bar_ring_the_servers_eventfd_if_it_has_one() {
    const ASLEEP: u64 = 4096 - RegionIoFds::ASLEEP_LEN;
    // Byte 7 of answer 13 has the flag by which a server that says when it sleeps is known.
    let says_nothing = || vec![(13, Lie::Byte(7, 0))];
    assert_eq!(rings(says_nothing(), &[(0, 1), (4, 1)]), 2);
    assert_eq!(rings(vec![], &[(0, 1), (4, 1)]), 0, "it is awake");
    assert_eq!(
        rings(vec![], &[(0, 1), (ASLEEP, 1), (4, 1), (ASLEEP, 0), (0, 2)]),
        2,
        "it slept for two stores"
    );
    // Answer 13 is the eventfd's. A server without one is served by memory alone; one that gives something else is not believed.
    with_server(vec![(13, Lie::Error(95))], PATIENCE, |f| {
        f.unwrap().bar(2).unwrap().write::<u32>(0, 1).unwrap();
    });
    for lie in [Lie::NoDescriptor, Lie::Pipe, Lie::Byte(16, 1), Lie::Byte(12, 2)] {
        let what = format!("{lie:?}");
        with_server(vec![(13, lie)], PATIENCE, |f| assert!(f.is_err(), "{what}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Lies in any answers: an error or another value, never a panic, and no wait past the deadlines.
    #[test]
    fn no_lie_harms(lies in prop::collection::vec((0usize..24, prop_oneof![
        8 => (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Lie::Byte(at, value)),
        2 => any::<usize>().prop_map(Lie::Cut),
        1 => Just(Lie::NoDescriptor),
        1 => Just(Lie::Pipe),
        1 => Just(Lie::OtherId),
        1 => any::<u32>().prop_map(Lie::Error),
        1 => (10u16..14, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(c, body)| Lie::Question(c, body)),
        1 => Just(Lie::NoReset),
        1 => Just(Lie::Silence),
        1 => Just(Lie::Close),
        1 => Just(Lie::Endless),
    ]), 0..4)) {
        let start = Instant::now();
        with_server(lies, Duration::from_millis(20), |f| {
            let Ok(f) = f else { return };
            for width in [1, 2, 4] {
                let _ = f.config_read(4, width);
            }
            for bar in [0, 2] {
                let Ok(window) = f.bar(bar) else { continue };
                let last = window.size() - 8;
                let _ = window.read_width(last, 8);
                let _ = window.write_width(last, 8, 5);
            }
            let event = event().unwrap();
            let _ = f.set_irqs(IrqKind::Msix, 0, &[Some(event.as_fd()); 3]);
            let mem = Arc::new(DmaMem::new(4096).unwrap());
            let _ = f.dma().map(mem, 1 << 20, DmaDirection::Bidirectional);
            let _ = f.reset();
        });
        prop_assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
}
