//! `flowlift-sim` as a process of its own, with Unix datagrams as wires, and the driver on it.

use flowlift_bus::BusError;
use flowlift_driver::fl1::{Fl1, Fl1Config};
use flowlift_driver::nic::*;
use flowlift_driver::vfio_user::{VfioUser, VfioUserConfig};
use flowlift_port::{DatagramPort, Frame, FrameSink, FrameSource};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Longer than anything takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Builds a program as the tests were built, once. Cargo gives a test only the binaries of its own package.
fn built(package: &str, program: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let folder = exe.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", package, "--bin", program]);
    cargo.arg("--target-dir").arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let done = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(done.success(), "{program} does not build");
    folder.join(program)
}

/// The simulator.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built("flowlift-sim", "flowlift-sim"))
}

/// The `flowlift` program, ready to be given arguments.
pub(crate) fn flowlift() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BINARY.get_or_init(|| built("flowlift", "flowlift")));
    command.env_remove("FLOWLIFT_LOG");
    command
}

/// A running simulator; killed when dropped.
pub(crate) struct Simulator {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) wires: Vec<DatagramPort>,
    /// How many ports have wires.
    plugged: usize,
}

impl Simulator {
    /// Starts one whose first two ports have wires.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut sim = Self::plugged(2, args);
        let dir = &sim.dir;
        let host = |n| DatagramPort::bind(host(dir, n), Some(&wire(dir, n))).unwrap();
        sim.wires = (0..2).map(host).collect();
        sim
    }

    /// Starts one whose first `plugged` ports have wires, the other ends of which are somebody else's: see
    /// [`Simulator::other_ends`].
    pub(crate) fn plugged(plugged: usize, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(&dir, plugged, args);
        Self { child, dir, wires: Vec::new(), plugged }
    }

    /// Arguments of `flowlift replay` that drive this NIC by all of its wires.
    pub(crate) fn other_ends(&self) -> Vec<String> {
        let wire =
            |n| format!("--wire=p{n}=unix:{},{}", host(&self.dir, n).display(), wire(&self.dir, n).display());
        std::iter::once(self.nic()).chain((0..self.plugged).map(wire)).collect()
    }

    /// The argument of `flowlift` that names this NIC.
    pub(crate) fn nic(&self) -> String {
        format!("--nic=vfio-user:{}", self.socket().display())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("nic")
    }

    /// Connects as the driver does. A server takes one client at a time, and learns of the last one's end when it looks,
    /// so a busy one is asked again for a while.
    pub(crate) fn connect(&self) -> Arc<VfioUser> {
        let start = Instant::now();
        loop {
            match VfioUser::connect(self.socket(), VfioUserConfig::default()) {
                Err(BusError::Gone(_)) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                connected => break connected.unwrap(),
            }
        }
    }

    /// Kills the process without a warning and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after a kill, at the same places.
    pub(crate) fn restart(&mut self, args: &[&str]) {
        self.child = spawn(&self.dir, self.plugged, args);
    }

    /// Ends it in order; what it logged.
    pub(crate) fn stop(mut self) -> String {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success());
        let status = self.child.wait().unwrap();
        let log = log(&self.dir);
        assert!(status.success(), "{status}: {log}");
        assert!(!self.socket().exists(), "the socket is left behind");
        log
    }

    /// It is still there.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the simulator ended, {status}: {}", log(&self.dir));
        }
    }

    /// Puts a frame on the wire of port `port` (from 1).
    pub(crate) fn inject(&mut self, port: usize, frame: &[u8]) {
        let start = Instant::now();
        while let Err(e) = self.wires[port - 1].send(Frame::new(frame)) {
            assert!(start.elapsed() < PATIENCE, "the wire takes no frame: {e}");
            std::thread::yield_now();
        }
    }

    /// The next frame on the wire of port `port`, if there is one.
    pub(crate) fn sent(&mut self, port: usize) -> Option<Vec<u8>> {
        self.wires[port - 1].receive().unwrap().map(|f| f.data.to_vec())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wire(dir: &tempfile::TempDir, n: usize) -> PathBuf {
    dir.path().join(format!("p{n}"))
}

fn host(dir: &tempfile::TempDir, n: usize) -> PathBuf {
    dir.path().join(format!("host{n}"))
}

/// What the simulator logged. A file, since a pipe that nobody reads would stop it some day.
fn log(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("log")).unwrap()
}

fn spawn(dir: &tempfile::TempDir, plugged: usize, args: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.arg("--socket").arg(dir.path().join("nic")).args(args);
    for n in 0..plugged {
        let (wire, host) = (wire(dir, n), host(dir, n));
        command.arg("--wire").arg(format!("p{n}=unix:{},{}", wire.display(), host.display()));
    }
    let log_file = File::create(dir.path().join("log")).unwrap();
    let mut child = command.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.starts_with("listening on ") {
        panic!("flowlift-sim did not start: {}", log(dir));
    }
    child
}

/// The driver on a served device.
pub(crate) struct Driver {
    pub(crate) function: Arc<VfioUser>,
    pub(crate) nic: Fl1,
    pub(crate) results: Vec<UpdateResult>,
    pub(crate) events: Vec<NicEvent>,
}

impl Driver {
    pub(crate) fn open(sim: &Simulator) -> Self {
        let function = sim.connect();
        let nic = Fl1::open(function.clone(), Fl1Config::default()).unwrap();
        Self { function, nic, results: vec![], events: vec![] }
    }

    /// Polls until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let _ = self.nic.poll(&mut self.results, &mut self.events);
            if start.elapsed() > PATIENCE {
                panic!(
                    "{what} did not come: {:?}, {:?}, {:?}",
                    self.nic.state(),
                    self.nic.failure(),
                    self.nic.stats()
                );
            }
            std::thread::yield_now();
        }
    }

    /// Submits everything, in as many kicks as it takes, and waits for all results.
    pub(crate) fn run(&mut self, updates: &[Update]) -> Vec<UpdateResult> {
        let mut rest = updates;
        self.until("the results", |d| {
            let taken = d.nic.submit(rest).unwrap();
            rest = &rest[taken..];
            d.nic.kick().unwrap();
            d.results.len() >= updates.len()
        });
        std::mem::take(&mut self.results)
    }

    pub(crate) fn one(&mut self, update: Update) -> UpdateResult {
        self.run(std::slice::from_ref(&update))[0]
    }

    /// The next packet from the slow queues.
    pub(crate) fn slow(&mut self) -> (SlowRx, Vec<u8>) {
        let mut got = None;
        self.until("a packet in the slow queue", |d| {
            d.nic.rx(1, &mut |info, frame| got = Some((info, frame.to_vec()))).unwrap();
            got.is_some()
        });
        got.unwrap()
    }

    /// The next frame on a wire.
    pub(crate) fn sent(&mut self, sim: &mut Simulator, port: usize) -> Vec<u8> {
        let mut got = None;
        self.until("a frame on the wire", |_| {
            got = sim.sent(port);
            got.is_some()
        });
        got.unwrap()
    }

    /// An entry of table 0 for an IPv4 destination 10.0.x.y.
    pub(crate) fn entry(&self, host: u16, actions: &[NicAction]) -> Entry {
        let t = self.nic.caps().table(TableId(0)).unwrap();
        let n = usize::from(t.key_len);
        let (mut key, mut mask) = (vec![0; n], vec![0; n]);
        let dst = 0x0a00_0000 | u32::from(host);
        for (field, value, bits) in [
            (Field::EthType, &0x800u16.to_be_bytes()[..], &[0xff; 2][..]),
            (Field::Ipv4Dst, &dst.to_be_bytes()[..], &[0xff; 4][..]),
        ] {
            let at = usize::from(t.fields.iter().find(|f| f.field == field).unwrap().offset);
            key[at..at + value.len()].copy_from_slice(value);
            mask[at..at + bits.len()].copy_from_slice(bits);
        }
        Entry { priority: 0, key: key.into(), mask: mask.into(), actions: actions.iter().cloned().collect() }
    }

    /// The device noticed no breach of protocol.
    pub(crate) fn assert_lawful(&self) {
        let v = self.nic.violations().unwrap();
        assert_eq!(v.total, 0, "{v:?}");
    }
}

/// Place in table 0.
pub(crate) fn at(index: u32) -> EntryId {
    EntryId { table: TableId(0), index }
}

/// Ethernet, IPv4 and TCP from 10.0.0.1 to 10.0.x.y.
pub(crate) fn tcp(dst: u16) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    f.extend_from_slice(&[0x45, 0, 0, 44, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0]);
    f.extend_from_slice(&dst.to_be_bytes());
    f.extend_from_slice(&[0x10, 0xe1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    f.extend_from_slice(b"data");
    f
}
