//! FL1 as a PCI function for other processes: a vfio-user server.
//!
//! The client is our own driver or QEMU's `vfio-user-pci`. One is served at a time; a second one is turned away. When a
//! client leaves or dies, the device forgets it, Bus Master first, and is as after a function level reset for the next.
//!
//! **One thread, one loop**: messages of the client, a step of the device, again. Doorbells are shared memory, and no store to
//! one wakes anybody, so the loop looks at them: all the time while there is work and for [`ServerConfig::spin`] after it.
//! Then it sleeps until the client or a wire has something. A client that asked for the doorbells' eventfd
//! (GET_REGION_IO_FDS) wakes it by that, if it sleeps, and the loop looks on only after a step with much work; for one that did
//! not, sleeps grow from 50 µs to 1 ms, so that its first ring waits
//! that long at most. Without a client, or while Bus Master is off, the loop sleeps until something comes.
//!
//! Maps of memory without a file descriptor are taken, as QEMU makes them for ROMs, but the device cannot reach them: they
//! count as blocked. Migration, INTx and masking are not offered.

mod dma;
mod function;
mod irq;
mod wire;

use crate::{Fl1, NoWire};
use flowlift_bus::BusError;
use flowlift_bus::vfio_user::{Endpoint, Header, Message, ProtocolError, flag, irq as irq_kind};
use flowlift_port::HostPort;
use function::Function;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::PlugsInbox;
pub use wire::{Cables, NamedWire, OpenHost, Plugs, PortName, ServerWire, WireError, WireKind, WireSpec};

/// Messages handled between two steps of the device.
const MESSAGES: usize = 64;
/// Turns of a busy loop between two looks at the stop descriptor and at new clients.
const LOOK: u32 = 256;
/// Shortest and longest sleep of a device that has nothing to do.
const NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// Longest sleep of a device that is woken when there is something: only its timers and its heartbeat wait for the end of it.
const REST: Duration = Duration::from_millis(100);
/// Work of a step after which the next is near, for a device that need not look at its doorbells.
const BURST: u32 = 8;
/// How long a client may leave a reply unread before it is given up. The device stands still meanwhile.
const SEND_DEADLINE: Duration = Duration::from_secs(1);

/// How the server serves.
#[derive(Debug, Clone, Copy)]
pub struct ServerConfig {
    /// How long the loop goes on looking at doorbells after the last work.
    pub spin: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { spin: Duration::from_micros(100) }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The socket cannot be made.
    #[error("{}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A wire cannot be plugged in.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The device cannot be made a PCI function.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Waiting failed.
    #[error("poll: {0}")]
    Poll(Errno),
}

/// What a server did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Clients served.
    pub clients: u64,
    /// Clients turned away while another one was served.
    pub turned_away: u64,
    /// Messages answered, errors included.
    pub messages: u64,
    /// Messages answered with an error.
    pub refused: u64,
    /// Connections ended because of what the client sent, or did not take.
    pub broken: u64,
    /// Accesses of the device to memory that was not mapped for it.
    pub dma_faults: u64,
    /// Frames lost on wires whose other end took none.
    pub frames_lost: u64,
}

/// A device, its wires, and the socket where clients come in.
pub struct Server {
    function: Function<Fl1>,
    /// By port, counted from 0.
    wires: BTreeMap<u16, ServerWire>,
    plugs: (Plugs, PlugsInbox),
    listener: UnixListener,
    path: PathBuf,
    client: Option<Endpoint>,
    config: ServerConfig,
    stats: ServerStats,
}

impl Server {
    /// Plugs wires into the device and opens the socket. A socket file that nobody serves any more is replaced.
    ///
    /// # Errors
    /// The socket or a wire cannot be opened.
    pub fn new(
        device: Fl1,
        wires: &[WireSpec],
        path: impl Into<PathBuf>,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        Self::with_hosts(device, wires, path, config, &mut HostPort::open)
    }

    /// The same, with the wires' ports of the host opened by `host`.
    ///
    /// # Errors
    /// See there.
    pub fn with_hosts(
        mut device: Fl1,
        wires: &[WireSpec],
        path: impl Into<PathBuf>,
        config: ServerConfig,
        host: OpenHost<'_>,
    ) -> Result<Self, ServerError> {
        let path = path.into();
        let ports = device.profile().ports();
        let (mut opened, mut cables) = (BTreeMap::new(), Cables::default());
        for spec in wires {
            if spec.port >= ports {
                return Err(WireError::NoPort { port: spec.port, last: ports - 1 }.into());
            }
            if opened.contains_key(&spec.port) {
                return Err(WireError::Twice(spec.port).into());
            }
            let wire = ServerWire::open_by(spec, &mut cables, host)?;
            device.plug(spec.port + 1, Box::new(wire.clone()));
            opened.insert(spec.port, wire);
        }
        cables.check()?;
        let function = Function::new(device)?;
        let listener = listen(&path).map_err(|source| ServerError::Socket { path: path.clone(), source })?;
        Ok(Self {
            function,
            wires: opened,
            plugs: Plugs::new().map_err(ServerError::Poll)?,
            listener,
            path,
            client: None,
            config,
            stats: ServerStats::default(),
        })
    }

    /// Serves until `stop` is readable. The client is asked for the device (REQ), then it is gone.
    ///
    /// # Errors
    /// The system refuses to wait.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<ServerStats, ServerError> {
        let (mut last_work, mut nap, mut turn) = (Instant::now(), NAP, 0u32);
        // A wire whose frame the device cannot take now stays readable: it is not watched until the device took one.
        let mut watch_wires = true;
        // The client may have said something.
        let mut messages = true;
        loop {
            let mut worked = messages && self.serve_messages();
            // Looking at doorbells that ring pays only while they ring often.
            let is_woken = self.function.bell().is_some();
            let enough = if is_woken { BURST } else { 1 };
            let mut busy = worked && !is_woken;
            if self.function.memory().bus_master() {
                let report = self.function.model().step();
                let work = report.tx + report.frames + report.commands;
                (worked, busy) = (worked || work > 0, busy || work >= enough);
                watch_wires |= report.frames > 0;
            }
            turn = turn.wrapping_add(1);
            if busy {
                (last_work, nap) = (Instant::now(), NAP);
            }
            let spinning = self.function.memory().bus_master() && last_work.elapsed() < self.config.spin;
            if spinning && !turn.is_multiple_of(LOOK) {
                messages = true;
                std::hint::spin_loop();
                continue;
            }
            // Faults that are counted in steps, and frames that a peer did not take, wait for the next step.
            let may_rest = is_woken
                && !self.function.model().has_faults()
                && self.wires.values().all(ServerWire::is_flushed);
            let timeout = match (spinning || worked, self.function.memory().bus_master()) {
                (true, _) => Some(Duration::ZERO),
                (false, true) if may_rest => Some(REST),
                (false, true) => Some(nap),
                (false, false) => None,
            };
            let sleeps = is_woken && timeout != Some(Duration::ZERO) && self.function.memory().bus_master();
            if sleeps {
                self.function.set_asleep(true);
                // What was stored before the client could see that is rung by nobody.
                let report = self.function.model().step();
                watch_wires |= report.frames > 0;
                if !report.is_idle() {
                    self.function.set_asleep(false);
                    continue;
                }
            }
            let woken = self.wait(stop, timeout, watch_wires)?;
            if sleeps {
                self.function.set_asleep(false);
            }
            messages = woken.client || woken.listener;
            if woken.stop {
                break;
            }
            if woken.hangup {
                self.end_session();
            }
            if woken.listener {
                self.accept();
            }
            if woken.plugs {
                self.change_wires();
                watch_wires = true;
            } else {
                watch_wires &= !woken.wire;
            }
            if !spinning {
                nap = (nap * 2).min(LONGEST_NAP);
            }
        }
        self.function.irqs().signal_all(irq_kind::REQ);
        self.end_session();
        self.stats.dma_faults = self.function.memory().faults();
        self.stats.frames_lost += self.wires.values().map(ServerWire::finish).sum::<u64>();
        Ok(self.stats)
    }

    /// The device.
    pub fn device(&mut self) -> &mut Fl1 {
        self.function.model()
    }

    /// What changes the wires while the server runs.
    pub fn plugs(&self) -> Plugs {
        self.plugs.0.clone()
    }

    fn change_wires(&mut self) {
        for (port, wire) in self.plugs.1.take() {
            if port >= self.function.model().profile().ports() {
                tracing::warn!(port, "no such port to plug a wire into");
                continue;
            }
            let before = match wire {
                Some(wire) => {
                    self.function.model().plug(port + 1, Box::new(wire.clone()));
                    self.wires.insert(port, wire)
                }
                None => {
                    self.function.model().plug(port + 1, Box::new(NoWire));
                    self.wires.remove(&port)
                }
            };
            self.stats.frames_lost += before.map_or(0, |wire| wire.finish());
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.client.is_some() {
            tracing::warn!("a second client was turned away");
            self.stats.turned_away += 1;
            return;
        }
        match Endpoint::new(stream) {
            Ok(endpoint) => {
                self.client = Some(endpoint);
                self.stats.clients += 1;
                tracing::info!("a client came");
            }
            Err(error) => tracing::warn!(%error, "a client could not be served"),
        }
    }

    fn end_session(&mut self) {
        if self.client.take().is_some() {
            tracing::info!(maps = self.function.memory().maps(), "the client is gone");
            self.function.disconnect();
        }
    }

    /// Handles what the client sent. True: there was something.
    fn serve_messages(&mut self) -> bool {
        let mut any = false;
        for _ in 0..MESSAGES {
            let Some(client) = &mut self.client else { break };
            let outcome = match client.try_receive() {
                Ok(None) => break,
                Ok(Some(message)) => self.serve(message),
                Err(error) => Err(error),
            };
            any = true;
            if let Err(error) = outcome {
                if !matches!(error, ProtocolError::Closed) {
                    tracing::warn!(%error, "the client is given up");
                    self.stats.broken += 1;
                }
                self.end_session();
            }
        }
        any
    }

    fn serve(&mut self, message: Message) -> Result<(), ProtocolError> {
        let Message { header, body, fds } = message;
        if header.is_reply() {
            // This server asks for nothing, so nothing can be answered.
            return Ok(());
        }
        self.stats.messages += 1;
        let answer = self.function.answer(header.command, &body, fds);
        if let Err(error) = &answer {
            tracing::debug!(command = header.command, %error, "refused");
            self.stats.refused += 1;
        }
        if header.flags & flag::NO_REPLY != 0 {
            return Ok(());
        }
        let Some(client) = &mut self.client else { return Ok(()) };
        let reply = Header { flags: flag::REPLY, error: 0, ..header };
        let deadline = Instant::now() + SEND_DEADLINE;
        match answer {
            Ok(answer) => {
                let memory = answer.memory.iter().map(|memory| memory.fd());
                let fds: Vec<BorrowedFd<'_>> =
                    memory.chain(answer.bell.iter().map(|bell| bell.as_fd())).collect();
                client.send(reply, &[&answer.body], &fds, deadline)
            }
            Err(errno) => {
                let reply = Header { flags: flag::REPLY | flag::ERROR, error: errno as u32, ..reply };
                client.send(reply, &[], &[], deadline)
            }
        }
    }

    /// Sleeps until there is something to do, at most `timeout`.
    fn wait(
        &self,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
        wires: bool,
    ) -> Result<Woken, ServerError> {
        let mut fds = vec![
            PollFd::new(stop, PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.plugs.1.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(client) = &self.client {
            fds.push(PollFd::new(client.as_fd(), PollFlags::POLLIN));
        }
        let others = fds.len();
        let bell = self.function.bell();
        fds.extend(bell.map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)));
        let first_wire = fds.len();
        if wires && self.function.memory().bus_master() {
            fds.extend(
                self.wires.values().filter_map(|w| w.fd()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
            );
        }
        match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(ServerError::Poll(e)),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let hung_up = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLHUP));
        let woken = Woken {
            stop: ready(&fds[0]),
            listener: ready(&fds[1]),
            plugs: ready(&fds[2]),
            client: fds[3..others].iter().any(ready),
            hangup: fds[3..others].iter().any(hung_up),
            wire: fds[first_wire..].iter().any(ready),
        };
        if fds[others..first_wire].iter().any(ready)
            && let Some(bell) = bell
        {
            // It is only there to wake: the next step looks at all doorbells.
            let _ = bell.read();
        }
        Ok(woken)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why a sleep ended.
struct Woken {
    stop: bool,
    listener: bool,
    plugs: bool,
    /// The client has said something.
    client: bool,
    /// The client is gone; what it sent last does not matter, since the device is reset. Said together with a new client, so
    /// that one who comes after another's death is not turned away.
    hangup: bool,
    wire: bool,
}

/// Opens the listening socket; one that nobody serves any more is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = flowlift_port::unix::bind(path, UnixListener::bind)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
