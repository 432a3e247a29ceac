//! Wires of a device that serves another process: `pN=KIND:...` on the command line.

use crate::{Profile, Wire};
use flowlift_port::capture::Resolution;
use flowlift_port::{
    CaptureReader, Frame, FrameSink, FrameSource, HostPort, HostSpec, PcapWriter, PortError,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames that wait for a peer who takes none now; beyond that they are lost, and counted.
const BACKLOG: usize = 4096;

/// What a port is plugged into, as text: `p0=tap:NAME`, `p0=packet:NETDEV`, `p0=unix:LOCAL[,PEER]`, `p0=pcap:IN[,OUT]`,
/// `p0=memory:CABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireSpec {
    /// Port, counted from 0: FL1's own number of it is one more.
    pub port: u16,
    /// The other end.
    pub kind: WireKind,
}

/// A port by its name: `pN` is the NIC's port N, `vfN` that of its virtual function N, both counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortName {
    /// See above.
    Port(u16),
    /// See above.
    VirtualFunction(u16),
}

impl PortName {
    /// The port's number from 0. Virtual functions' ports come after the physical ones.
    pub fn number(self, profile: &Profile) -> u16 {
        match self {
            Self::Port(n) => n,
            Self::VirtualFunction(n) => profile.physical_ports.saturating_add(n),
        }
    }
}

/// A wire as the command line names it: a [`WireSpec`] whose port is named by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedWire {
    /// Port.
    pub port: PortName,
    /// The other end.
    pub kind: WireKind,
}

impl NamedWire {
    /// The wire of a NIC of this profile.
    pub fn on(&self, profile: &Profile) -> WireSpec {
        WireSpec { port: self.port.number(profile), kind: self.kind.clone() }
    }
}

/// The other end of a wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireKind {
    /// A port of the host.
    Host(HostSpec),
    /// Capture files: frames to the device, and frames from it.
    Pcap(PathBuf, Option<PathBuf>),
    /// A cable in memory to the other port that names it.
    Memory(String),
}

impl fmt::Display for WireKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(spec) => spec.fmt(f),
            Self::Memory(cable) => write!(f, "memory:{cable}"),
            Self::Pcap(input, None) => write!(f, "pcap:{}", input.display()),
            Self::Pcap(input, Some(output)) => write!(f, "pcap:{},{}", input.display(), output.display()),
        }
    }
}

/// A wire that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The text is not of the form.
    #[error(
        "{0:?} is not a wire: pN=tap:NAME, pN=packet:NETDEV, pN=unix:LOCAL[,PEER], pN=pcap:IN[,OUT] or \
         pN=memory:CABLE, with vfN for the port of virtual function N"
    )]
    Spec(String),
    /// The device has fewer ports.
    #[error("p{port}: the device has ports p0 to p{last}")]
    NoPort {
        /// The port.
        port: u16,
        /// The last one there is.
        last: u16,
    },
    /// A cable has two ends.
    #[error("the cable {cable} has {ends} ends, not two")]
    Cable {
        /// Its name.
        cable: String,
        /// Ports that name it.
        ends: usize,
    },
    /// The port has a wire already.
    #[error("p{0} has two wires")]
    Twice(u16),
    /// The other end cannot be opened.
    #[error("p{port}, {what}")]
    Open {
        /// The port.
        port: u16,
        /// The other end.
        what: String,
        /// Why.
        source: PortError,
    },
}

impl WireSpec {
    fn error(&self, source: PortError) -> WireError {
        WireError::Open { port: self.port, what: self.kind.to_string(), source }
    }
}

impl FromStr for WireSpec {
    type Err = WireError;

    fn from_str(s: &str) -> Result<Self, WireError> {
        match s.parse()? {
            NamedWire { port: PortName::Port(port), kind } => Ok(Self { port, kind }),
            NamedWire { .. } => Err(WireError::Spec(s.to_owned())),
        }
    }
}

impl FromStr for NamedWire {
    type Err = WireError;

    fn from_str(s: &str) -> Result<Self, WireError> {
        let wrong = || WireError::Spec(s.to_owned());
        let (port, kind) = s.split_once('=').ok_or_else(wrong)?;
        let port = match (port.strip_prefix("vf"), port.strip_prefix('p')) {
            (Some(n), _) => n.parse().map(PortName::VirtualFunction),
            (None, n) => n.unwrap_or_default().parse().map(PortName::Port),
        };
        let port = port.map_err(|_| wrong())?;
        if let Some(cable) = kind.strip_prefix("memory:").filter(|cable| !cable.is_empty()) {
            return Ok(Self { port, kind: WireKind::Memory(cable.to_owned()) });
        }
        let kind = match kind.strip_prefix("pcap:").filter(|files| !files.is_empty()) {
            None => WireKind::Host(kind.parse().map_err(|_| wrong())?),
            Some(files) => match files.split_once(',') {
                Some(("", _) | (_, "")) => return Err(wrong()),
                Some((input, output)) => WireKind::Pcap(input.into(), Some(output.into())),
                None => WireKind::Pcap(files.into(), None),
            },
        };
        Ok(Self { port, kind })
    }
}

/// One end of a cable in memory.
struct CableEnd {
    queues: Arc<Mutex<[VecDeque<Vec<u8>>; 2]>>,
    side: usize,
    /// The frame that was received last.
    frame: Vec<u8>,
}

impl CableEnd {
    fn queues(&self) -> MutexGuard<'_, [VecDeque<Vec<u8>>; 2]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&mut self) -> Option<Frame<'_>> {
        let next = self.queues()[self.side].pop_front();
        self.frame = next?;
        Some(Frame::new(&self.frame))
    }

    fn send(&self, frame: &[u8]) -> Result<(), PortError> {
        let other = &mut self.queues()[1 - self.side];
        if other.len() >= BACKLOG {
            return Err(PortError::Full);
        }
        other.push_back(frame.to_vec());
        Ok(())
    }
}

/// The cables of a server, or of whoever else plugs wires in: ends that wait for their other one.
#[derive(Default)]
pub struct Cables {
    open: HashMap<String, CableEnd>,
    whole: HashSet<String>,
}

impl Cables {
    fn end(&mut self, cable: &str) -> Result<CableEnd, WireError> {
        if let Some(other) = self.open.remove(cable) {
            self.whole.insert(cable.to_owned());
            return Ok(other);
        }
        if self.whole.contains(cable) {
            return Err(WireError::Cable { cable: cable.to_owned(), ends: 3 });
        }
        let queues = Arc::default();
        let end = |side| CableEnd { queues: Arc::clone(&queues), side, frame: Vec::new() };
        self.open.insert(cable.to_owned(), end(1));
        Ok(end(0))
    }

    /// All wires are plugged in: no end may hang loose.
    pub(super) fn check(&self) -> Result<(), WireError> {
        match self.open.keys().next() {
            Some(cable) => Err(WireError::Cable { cable: cable.clone(), ends: 1 }),
            None => Ok(()),
        }
    }
}

/// Opens a port of the host: [`HostPort::open`], or another way to come by one.
pub type OpenHost<'a> = &'a mut dyn FnMut(&HostSpec) -> Result<HostPort, PortError>;

/// An opened other end.
enum End {
    Host(HostPort),
    Memory(CableEnd),
    Pcap(Box<CaptureReader<File>>, Option<Box<PcapWriter<BufWriter<File>>>>),
}

impl End {
    fn open(spec: &WireSpec, cables: &mut Cables, host: OpenHost<'_>) -> Result<Self, WireError> {
        let opened = match &spec.kind {
            WireKind::Memory(cable) => return cables.end(cable).map(Self::Memory),
            WireKind::Host(port) => host(port).map(Self::Host),
            WireKind::Pcap(input, output) => Self::pcap(input, output.as_deref()),
        };
        opened.map_err(|source| spec.error(source))
    }

    fn pcap(input: &Path, output: Option<&Path>) -> Result<Self, PortError> {
        let create = |p: &Path| PcapWriter::create(p, Resolution::Nano).map(Box::new);
        Ok(Self::Pcap(Box::new(CaptureReader::open(input)?), output.map(create).transpose()?))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Host(port) => Some(port.as_fd()),
            Self::Memory(_) | Self::Pcap(..) => None,
        }
    }

    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        match self {
            Self::Host(port) => port.receive(),
            Self::Memory(cable) => Ok(cable.receive()),
            Self::Pcap(reader, _) => reader.receive(),
        }
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        match self {
            Self::Host(port) => port.send(Frame::new(frame)),
            Self::Memory(cable) => cable.send(frame),
            Self::Pcap(_, Some(writer)) => {
                let now =
                    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                let timestamp_ns = u64::try_from(now.as_nanos()).unwrap_or(0);
                writer.send(Frame { timestamp_ns, ..Frame::new(frame) })
            }
            Self::Pcap(_, None) => Ok(()),
        }
    }
}

struct State {
    end: End,
    /// The frame at the head: taken from the other end, not done by the device.
    head: Option<Vec<u8>>,
    /// Frames that the other end would not take yet, oldest first.
    backlog: VecDeque<Vec<u8>>,
    lost: u64,
}

impl State {
    fn flush(&mut self) {
        while let Some(frame) = self.backlog.front() {
            match self.end.send(frame) {
                Err(PortError::Full) => return,
                Err(error) => self.lose(&error),
                Ok(()) => {}
            }
            self.backlog.pop_front();
        }
    }

    fn lose(&mut self, error: &PortError) {
        if self.lost == 0 {
            tracing::warn!(%error, "a wire loses frames");
        }
        self.lost += 1;
    }
}

/// A wire of a served device. Clones are the same wire: one goes to the device, the other stays with the server.
#[derive(Clone)]
pub struct ServerWire {
    state: Arc<Mutex<State>>,
    /// Readable when a frame comes, to wait for it without the lock; captures and cables have none.
    fd: Option<Arc<OwnedFd>>,
}

impl ServerWire {
    /// Opens the other end.
    ///
    /// # Errors
    /// It is not there, or not to be had.
    pub fn open(spec: &WireSpec, cables: &mut Cables) -> Result<Self, WireError> {
        Self::open_by(spec, cables, &mut HostPort::open)
    }

    /// The same, with ports of the host opened by `host`.
    ///
    /// # Errors
    /// See there.
    pub fn open_by(spec: &WireSpec, cables: &mut Cables, host: OpenHost<'_>) -> Result<Self, WireError> {
        let end = End::open(spec, cables, host)?;
        let fd = end.fd().map(|fd| fd.try_clone_to_owned()).transpose();
        let fd = fd.map_err(|e| spec.error(e.into()))?.map(Arc::new);
        let state = State { end, head: None, backlog: VecDeque::new(), lost: 0 };
        Ok(Self { state: Arc::new(Mutex::new(state)), fd })
    }

    /// Becomes readable when a frame comes; captures and cables have none.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }

    /// No frame waits for its other end to take it.
    pub(super) fn is_flushed(&self) -> bool {
        self.lock().backlog.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes out what is buffered; frames lost so far.
    pub(super) fn finish(&self) -> u64 {
        let mut state = self.lock();
        state.flush();
        let State { end, lost, .. } = &mut *state;
        if let End::Pcap(_, writer) = end
            && let Some(Err(error)) = writer.take().map(|w| w.finish())
        {
            tracing::warn!(%error, "a capture is not complete");
            *lost += 1;
        }
        *lost
    }
}

/// A port and the wire that it is to have; `None` unplugs it.
pub(super) type Change = (u16, Option<ServerWire>);

/// Plugs wires into a server's device and pulls them out while it serves, from any thread.
#[derive(Clone)]
pub struct Plugs {
    changes: Sender<Change>,
    wake: Arc<EventFd>,
}

/// The server's side of [`Plugs`].
pub(super) struct PlugsInbox {
    changes: Receiver<Change>,
    wake: Arc<EventFd>,
}

impl Plugs {
    pub(super) fn new() -> nix::Result<(Self, PlugsInbox)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (wake, (sender, receiver)) = (Arc::new(wake), channel());
        Ok((Self { changes: sender, wake: Arc::clone(&wake) }, PlugsInbox { changes: receiver, wake }))
    }

    /// Opens the wire's other end, and plugs the wire into its port in place of what was there. A cable in memory cannot be
    /// plugged in this way, since its other end has to be named at the same time. Ports of the host are opened by `host`.
    ///
    /// # Errors
    /// The other end is not there, or not to be had.
    pub fn plug(&self, spec: &WireSpec, host: OpenHost<'_>) -> Result<(), WireError> {
        let mut cables = Cables::default();
        let wire = ServerWire::open_by(spec, &mut cables, host)?;
        cables.check()?;
        self.tell((spec.port, Some(wire)));
        Ok(())
    }

    /// Pulls the wire out of a port, counted from 0.
    pub fn unplug(&self, port: u16) {
        self.tell((port, None));
    }

    fn tell(&self, change: Change) {
        if self.changes.send(change).is_ok() {
            // A full counter wakes as well.
            let _ = self.wake.write(1);
        }
    }
}

impl PlugsInbox {
    /// What was plugged and unplugged since the last call.
    pub(super) fn take(&self) -> impl Iterator<Item = Change> {
        // It is only there to wake.
        let _ = self.wake.read();
        self.changes.try_iter()
    }
}

impl AsFd for PlugsInbox {
    /// Readable when there are changes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Wire for ServerWire {
    fn front(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let mut state = self.lock();
        state.flush();
        if state.head.is_none() {
            let State { end, head, .. } = &mut *state;
            match end.receive() {
                Ok(f) => *head = f.map(|f| f.data.to_vec()),
                Err(error) => tracing::debug!(%error, "a wire gives no frame"),
            }
        }
        match &state.head {
            Some(f) => {
                frame.extend_from_slice(f);
                true
            }
            None => false,
        }
    }
    fn pop(&mut self) {
        self.lock().head = None;
    }
    fn send(&mut self, frame: &[u8]) {
        let mut state = self.lock();
        state.flush();
        let outcome = if state.backlog.is_empty() { state.end.send(frame) } else { Err(PortError::Full) };
        match outcome {
            Ok(()) => {}
            Err(PortError::Full) if state.backlog.len() < BACKLOG => state.backlog.push_back(frame.to_vec()),
            Err(error) => state.lose(&error),
        }
    }
    fn link_up(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications() {
        let spec = |s: &str| s.parse::<WireSpec>().map(|w| (w.port, w.kind));
        let host = |s: &str| WireKind::Host(s.parse().unwrap());
        for (text, port, kind) in [
            ("p0=tap:tap0", 0, "tap:tap0"),
            ("p15=packet:eth0", 15, "packet:eth0"),
            ("p1=unix:/a,/b", 1, "unix:/a,/b"),
        ] {
            assert_eq!(spec(text).unwrap(), (port, host(kind)));
        }
        let named: NamedWire = "vf1=tap:t".parse().unwrap();
        assert_eq!(named.on(&Profile::standard()), WireSpec { port: 3, kind: host("tap:t") });
        assert_eq!("p1=tap:t".parse::<NamedWire>().unwrap().on(&Profile::tiny()).port, 1);
        assert!("vf=tap:t".parse::<NamedWire>().is_err() && "vf65536=tap:t".parse::<NamedWire>().is_err());
        assert_eq!(spec("p3=memory:c").unwrap(), (3, WireKind::Memory("c".into())));
        assert_eq!(spec("p2=pcap:i").unwrap(), (2, WireKind::Pcap("i".into(), None)));
        assert_eq!(spec("p2=pcap:i,o").unwrap(), (2, WireKind::Pcap("i".into(), Some("o".into()))));
        for bad in [
            "",
            "p0",
            "p0=",
            "p0=tap",
            "p0=tap:",
            "0=tap:x",
            "p=tap:x",
            "p65536=tap:x",
            "p0=udp:x",
            "p0=unix:,",
            "p0=pcap:",
            "p0=pcap:i,",
            "p0=memory:",
            "p0=memory",
        ] {
            assert!(matches!(spec(bad), Err(WireError::Spec(s)) if s == bad), "{bad}");
        }
    }
}
