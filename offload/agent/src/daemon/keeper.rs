//! The keeper: a process that keeps the files of ports' devices, and of wires, open while no daemon is there.
//!
//! A TAP device that nobody has open loses its carrier and what waits in it, or is gone; and of a device whose packet socket is closed
//! the kernel tells that it is promiscuous once less. ovs-vswitchd would hear of that, look for its ports, find nobody to ask, and give
//! up ports and flows that the next daemon has a moment later. So a child of the daemon has each file, too: it gives them to the next
//! daemon, with the packets that wait in them, or ends [`GRACE`] after the last one. It does nothing else.
//!
//! A keeper is for one network namespace, as its socket is ([`super::state_dir`]), which is that namespace's while the keeper lives.
//!
//! Messages are framed as vfio-user's are, whose endpoint passes file descriptors. Each is answered.

use crate::control;
use anyhow::{Context, Result, bail};
use flowlift_bus::vfio_user::{Endpoint, Header, Message, ProtocolError, flag};
use flowlift_port::link::Links;
use flowlift_port::{HostPort, HostSpec, InternalConfig, InternalPort, PacketPort, PortError, TapPort};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long devices are kept without a daemon.
const GRACE: Duration = Duration::from_secs(10);
/// Frames that wait in a TAP device at least: more than a busy port gets while the next daemon starts, and at most some tens of
/// megabytes. Linux's default is 500.
const WAITING: u32 = 8192;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The hidden command that is a keeper; its standard input is the socket.
pub const COMMAND: &str = "keep-devices";

/// Keep this device's file.
const KEEP: u16 = 1;
/// Give this device's file.
const FETCH: u16 = 2;
/// Close this device's file.
const CLOSE: u16 = 3;
/// Close every file that this daemon has neither fetched nor had kept.
const SETTLE: u16 = 4;

/// The daemon's side. Without a keeper all goes on, but for what the module's head says.
#[derive(Default)]
pub struct Keeper(Option<Endpoint>);

impl Keeper {
    /// The keeper whose socket this is; it is started if it is not there.
    pub fn find(path: &Path) -> Self {
        match connect(path) {
            Ok(endpoint) => Self(Some(endpoint)),
            Err(error) => {
                tracing::warn!(%error, "ports' devices change when the daemon ends, which ovs-vswitchd notices");
                Self(None)
            }
        }
    }

    /// Has a device's file kept.
    pub fn keep(&mut self, device: &str, file: BorrowedFd<'_>) {
        self.ask(KEEP, device, &[file]);
    }

    /// A device's file, if it was kept.
    pub fn fetch(&mut self, device: &str) -> Option<OwnedFd> {
        self.ask(FETCH, device, &[])?.fds.pop()
    }

    /// Has a device's file closed: it is to be deleted.
    pub fn close(&mut self, device: &str) {
        self.ask(CLOSE, device, &[]);
    }

    /// A packet socket on the device with this index, with the packets that came while no daemon was there. It is kept for the next
    /// one.
    ///
    /// # Errors
    /// No such device, or no rights.
    pub fn packet_port(&mut self, ifindex: u32) -> Result<PacketPort, PortError> {
        let kept = self.fetch(&kept_as(ifindex));
        let port = match kept.and_then(|socket| PacketPort::adopt(socket, ifindex).ok()) {
            Some(port) => port,
            None => PacketPort::open_index(ifindex)?,
        };
        self.keep(&kept_as(ifindex), port.as_fd());
        Ok(port)
    }

    /// The next daemon is not to have the packet socket on this device.
    pub fn close_packet_port(&mut self, ifindex: u32) {
        self.close(&kept_as(ifindex));
    }

    /// An internal port's or a representor's device, which outlives the daemon with its addresses and routes, and with the packets
    /// that the host sent while no daemon was there.
    ///
    /// # Errors
    /// See [`InternalPort::open`].
    pub fn internal_port(&mut self, name: &str) -> Result<InternalPort, PortError> {
        let config = InternalConfig { persistent: true };
        let kept = self.fetch(name).and_then(|file| InternalPort::adopt(file, name, config).ok());
        let port = match kept {
            Some(port) => port,
            None => {
                let port = InternalPort::open(name, config)?;
                make_room(name);
                port
            }
        };
        self.keep(name, port.as_fd());
        Ok(port)
    }

    /// The TAP device at the end of a wire, which lives as long as a daemon or a keeper does. A device that was moved to another
    /// namespace or renamed is found again.
    fn tap_port(&mut self, name: &str) -> Result<TapPort, PortError> {
        let kept_as = format!("tap:{name}");
        let kept = self.fetch(&kept_as).and_then(|file| TapPort::adopt(file).ok());
        let port = match kept {
            Some(port) => port,
            None => {
                let port = TapPort::open(name)?;
                make_room(name);
                port
            }
        };
        self.keep(&kept_as, port.as_fd());
        Ok(port)
    }

    /// This daemon has all that it wants: what else is kept has no user any more.
    pub fn settle(&mut self) {
        self.ask(SETTLE, "", &[]);
    }

    /// Opens the host's port at the other end of a wire; a device's file is kept.
    ///
    /// # Errors
    /// See [`HostPort::open`].
    pub fn host_port(&mut self, spec: &HostSpec) -> Result<HostPort, PortError> {
        match spec {
            HostSpec::Packet(name) => {
                let ifindex = if_nametoindex(name.as_str()).map_err(io::Error::from)?;
                self.packet_port(ifindex).map(HostPort::Packet)
            }
            HostSpec::Tap(name) => self.tap_port(name).map(HostPort::Tap),
            HostSpec::Unix(..) => HostPort::open(spec),
        }
    }

    fn ask(&mut self, command: u16, device: &str, fds: &[BorrowedFd<'_>]) -> Option<Message> {
        let endpoint = self.0.as_mut()?;
        let deadline = Instant::now() + PATIENCE;
        let header = Header { command, ..Header::default() };
        let sent = endpoint.send(header, &[device.as_bytes()], fds, deadline);
        match sent.and_then(|()| endpoint.receive(deadline)) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(%error, "the keeper of devices is gone");
                self.0 = None;
                None
            }
        }
    }
}

/// Has a TAP device's queue hold what comes while no daemon is there. Without, the port works, and loses packets then.
fn make_room(name: &str) {
    let made = Links::new().and_then(|mut links| {
        let link = links.find(name)?;
        if link.queue_length < WAITING { links.set_queue_length(link.index, WAITING) } else { Ok(()) }
    });
    if let Err(error) = made {
        tracing::warn!(name, %error, "packets for this device are lost when the daemon ends, if they are many");
    }
}

/// What a packet socket is kept as: the device's name may change.
fn kept_as(ifindex: u32) -> String {
    format!("#{ifindex}")
}

fn connect(path: &Path) -> Result<Endpoint> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(_) => {
            spawn(path)?;
            UnixStream::connect(path)?
        }
    };
    if !control::is_trusted(&stream) {
        bail!("{}: another user's", path.display());
    }
    Ok(Endpoint::new(stream)?)
}

/// Starts a keeper.
fn spawn(path: &Path) -> Result<()> {
    let listener = control::listen(path)?;
    Command::new("/proc/self/exe")
        .arg(COMMAND)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What ends the daemon from a terminal does not end it.
        .process_group(0)
        .spawn()
        .context("cannot start a keeper of devices")?;
    Ok(())
}

/// Is the keeper: serves one daemon after the other, until none has come for [`GRACE`].
///
/// # Errors
/// Standard input is no socket, or the system refuses to wait.
pub fn run() -> Result<()> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut kept = BTreeMap::new();
    loop {
        let grace = PollTimeout::try_from(GRACE).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], grace) {
            Ok(0) => {
                // While it listens still: so it is no other keeper's.
                if let Some(path) = listener.local_addr()?.as_pathname() {
                    let _ = fs::remove_file(path);
                }
                return Ok(());
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let (stream, _) = listener.accept()?;
        if control::is_trusted(&stream) {
            // A daemon that ends, or talks nonsense, leaves its devices to the next one.
            let _ = serve(Endpoint::new(stream)?, &mut kept);
        }
    }
}

fn serve(mut daemon: Endpoint, kept: &mut BTreeMap<String, OwnedFd>) -> Result<(), ProtocolError> {
    let mut wanted = BTreeSet::new();
    loop {
        let Some(Message { header, body, mut fds }) = daemon.try_receive()? else {
            match poll(&mut [PollFd::new(daemon.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        let device = String::from_utf8_lossy(&body).into_owned();
        match (header.command, fds.pop()) {
            (KEEP, Some(file)) => drop(kept.insert(device.clone(), file)),
            (CLOSE, _) => drop(kept.remove(&device)),
            (SETTLE, _) => kept.retain(|device, _| wanted.contains(device)),
            _ => {}
        }
        if matches!(header.command, KEEP | FETCH) {
            wanted.insert(device.clone());
        }
        let file = kept.get(&device).filter(|_| header.command == FETCH);
        let fds: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
        let answer = Header { flags: flag::REPLY, ..header };
        daemon.send(answer, &[], &fds, Instant::now() + PATIENCE)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_file_outlives_the_daemon_that_left_it() {
        let folder = tempfile::tempdir().unwrap();
        let listener = control::listen(&folder.path().join("keeper.sock")).unwrap();
        let connect = || Keeper(Some(connect(&folder.path().join("keeper.sock")).unwrap()));
        let keeper = std::thread::spawn(move || {
            let mut kept = BTreeMap::new();
            for _ in 0..3 {
                let ended = serve(Endpoint::new(listener.accept().unwrap().0).unwrap(), &mut kept);
                assert!(matches!(ended, Err(ProtocolError::Closed)), "{ended:?}");
            }
            kept.len()
        });
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut first = connect();
        assert!(first.fetch("br0").is_none());
        first.keep("br0", theirs.as_fd());
        first.keep("br1", theirs.as_fd());
        drop((first, theirs));
        let mut second = connect();
        let mut again = UnixStream::from(second.fetch("br0").expect("it was kept"));
        again.write_all(b"x").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x", "the very file");
        second.close("br0");
        assert!(second.fetch("br0").is_none() && second.fetch("br1").is_some());
        drop(second);
        let mut third = connect();
        third.keep("br2", ours.as_fd());
        third.settle();
        assert!(third.fetch("br1").is_none(), "nobody wanted it");
        assert!(third.fetch("br2").is_some());
        drop(third);
        assert_eq!(keeper.join().unwrap(), 1);
    }
}
