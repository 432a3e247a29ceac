//! The daemons, their ports, and frames in and out.

use super::Control;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Numbers of the datapath's ports: frames come in on 1, the others record what they send.
pub const PORTS: std::ops::RangeInclusive<u32> = 1..=4;
/// Frames that a dummy port's receive queue holds before it drops.
const QUEUE: usize = 100;
/// A frame of a local experimental Ethernet type (IEEE 802, clause 9.2.4) that every port sends between two frames under
/// test, so that each frame's own output can be told apart.
const MARKER: [u8; 60] = {
    let mut marker = [0; 60];
    (marker[12], marker[13]) = (0x88, 0xb6);
    let text = *b"flowlift marker";
    let mut i = 0;
    while i < text.len() {
        marker[14 + i] = text[i];
        i += 1;
    }
    marker
};
const MARKER_MATCH: &str = "recirc_id(0),in_port(1),eth(),eth_type(0x88b6)";
/// How long to wait for a socket or a frame, on a machine under heavy load.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(1);

/// What one frame made the ports send: port to frames, in order.
pub type Sent = BTreeMap<u32, Vec<Vec<u8>>>;

/// A running vswitchd with a dummy datapath.
pub struct Vswitch {
    control: Control,
    captures: BTreeMap<u32, Capture>,
    _daemon: Daemon,
    _database: Daemon,
    dir: TempDir,
}

impl Vswitch {
    /// Starts the daemons and adds the ports.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flowlift-ovs").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        finish(Command::new("ovsdb-tool").args(["create", &path(&at("conf.db")), schema]))
            .context("creating a database (is openvswitch-switch installed? tests/run ovs installs it)")?;
        let socket = format!("unix:{}", path(&at("db.sock")));
        let database = Daemon::start(
            dir.path(),
            "ovsdb-server",
            &[path(&at("conf.db")), format!("--remote=p{socket}")],
        )?;
        let vsctl = |args: &[&str]| {
            finish(Command::new("ovs-vsctl").args(["--timeout=120", &format!("--db={socket}")]).args(args))
        };
        vsctl(&[
            "--no-wait",
            "init",
            "--",
            "set",
            "Open_vSwitch",
            ".",
            // Flows stay until they are replaced.
            "other_config:max-idle=3600000",
            "other_config:max-revalidator=3600000",
            // All the tags that a key can hold.
            "other_config:vlan-limit=2",
        ])?;
        let daemon = Daemon::start(
            dir.path(),
            "ovs-vswitchd",
            &[socket.clone(), "--enable-dummy".into(), "--disable-system".into()],
        )?;
        vsctl(&["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=dummy", "fail_mode=secure"])?;
        for port in PORTS {
            let (name, capture) = (format!("p{port}"), at(&format!("p{port}.pcap")));
            vsctl(&[
                "add-port",
                "br0",
                &name,
                "--",
                "set",
                "Interface",
                &name,
                "type=dummy",
                "mtu_request=65535",
                &format!("ofport_request={port}"),
                &format!("options:tx_pcap={}", path(&capture)),
            ])?;
        }
        let mut control = Control::connect(&at("ovs-vswitchd.ctl"))?;
        let shown = control.run::<&str>("dpctl/show", &[])?;
        for port in PORTS {
            ensure!(
                shown.contains(&format!("port {port}: p{port} (dummy)")),
                "port {port} has another number:\n{shown}"
            );
        }
        // Flows that are entered as text are none that the daemon knows of: its revalidators would sweep them away.
        control.run::<&str>("revalidator/pause", &[])?;
        let captures = PORTS
            .map(|port| Ok((port, Capture::open(&at(&format!("p{port}.pcap")))?)))
            .collect::<Result<_>>()?;
        Ok(Self { control, captures, _daemon: daemon, _database: database, dir })
    }

    /// The control socket.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Replaces all flows by these pairs of match and actions.
    pub fn set_flows<'a>(&mut self, flows: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
        self.control.run::<&str>("dpctl/del-flows", &[])?;
        let all_ports: Vec<String> = PORTS.skip(1).map(|port| port.to_string()).collect();
        self.control.run("dpctl/add-flow", &[MARKER_MATCH, &all_ports.join(",")])?;
        for (matching, actions) in flows {
            self.control.run("dpctl/add-flow", &[matching, actions])?;
        }
        Ok(())
    }

    /// Replaces all flows by none, and has these OpenFlow rules, groups first, make the datapath's flows as packets come.
    pub fn set_rules(&mut self, groups: &[&str], rules: &[&str]) -> Result<()> {
        let ofctl = |args: &[&str]| {
            finish(
                Command::new("ovs-ofctl")
                    .args(["--timeout=120", "--protocols=OpenFlow15"])
                    .args(args)
                    .env("OVS_RUNDIR", self.dir.path()),
            )
        };
        ofctl(&["del-flows", "br0"])?;
        ofctl(&["del-groups", "br0"])?;
        for group in groups {
            ofctl(&["add-group", "br0", group])?;
        }
        let marker = "priority=65535,in_port=1,dl_type=0x88b6,actions=output:2,output:3,output:4";
        for rule in rules.iter().chain([&marker]) {
            ofctl(&["add-flow", "br0", rule])?;
        }
        self.control.run::<&str>("revalidator/purge", &[])?;
        self.control.run::<&str>("dpctl/del-flows", &[])?;
        Ok(())
    }

    /// The datapath's flows but the marker's, as pairs of match and actions.
    pub fn dump_flows(&mut self) -> Result<Vec<(String, String)>> {
        let dump = self.control.run::<&str>("dpctl/dump-flows", &[])?;
        let flow = |line: &str| {
            let (matching, rest) = line.split_once(", packets:")?;
            Some((matching.to_string(), rest.split_once(", actions:")?.1.to_string()))
        };
        Ok(dump
            .lines()
            .filter_map(flow)
            .filter(|(matching, _)| !matching.contains("eth_type(0x88b6)"))
            .collect())
    }

    /// Has port 1 receive each frame, of at least 14 bytes, and gives what the others sent for it.
    pub fn receive(&mut self, frames: &[&[u8]]) -> Result<Vec<Sent>> {
        let mut sent = Vec::with_capacity(frames.len());
        for chunk in frames.chunks(QUEUE / 2) {
            let marker = hex(&MARKER);
            let args = std::iter::once("p1".to_string())
                .chain(chunk.iter().flat_map(|frame| [hex(frame), marker.clone()]));
            self.control.run("netdev-dummy/receive", &args.collect::<Vec<_>>())?;
            for frame in chunk {
                let number = sent.len();
                let mut all = Sent::new();
                for (port, capture) in self.captures.iter_mut().filter(|(port, _)| **port != 1) {
                    let frames = capture.until(&MARKER).with_context(|| {
                        format!(
                            "port {port}, frame {number} ({}); logs in {}",
                            hex(frame),
                            self.dir.path().display()
                        )
                    })?;
                    if !frames.is_empty() {
                        all.insert(*port, frames);
                    }
                }
                sent.push(all);
            }
        }
        Ok(sent)
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a command to its end.
fn finish(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A daemon, killed with this value.
struct Daemon(Child);

impl Daemon {
    /// Starts `name` in the foreground, with control socket and log in `dir`, and waits until it answers.
    fn start(dir: &Path, name: &str, args: &[String]) -> Result<Self> {
        let control = dir.join(format!("{name}.ctl"));
        let mut command = Command::new(name);
        command
            .args(args)
            .arg(format!("--unixctl={}", path(&control)))
            .arg(format!("--log-file={}", path(&dir.join(format!("{name}.log")))))
            .arg("-vconsole:off")
            .env("OVS_RUNDIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut daemon = Self(command.spawn().with_context(|| format!("starting {name}"))?);
        let start = Instant::now();
        while Control::connect(&control).and_then(|mut c| c.run::<&str>("version", &[])).is_err() {
            if let Some(status) = daemon.0.try_wait()? {
                let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
                bail!("{name} ended with {status}:\n{log}");
            }
            ensure!(start.elapsed() < PATIENCE, "{name} does not answer");
            std::thread::sleep(POLL);
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either fails only if the daemon has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A capture file that a daemon appends to.
struct Capture {
    file: File,
    path: PathBuf,
    read: Vec<u8>,
}

/// Lengths of a pcap file's header and of each record's.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

impl Capture {
    fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        file.read_exact(&mut [0; FILE_HEADER]).context("a capture's header")?;
        Ok(Self { file, path: path.to_path_buf(), read: Vec::new() })
    }

    /// The frames up to the next marker, waiting for it.
    fn until(&mut self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (start, mut frames) = (Instant::now(), Vec::new());
        loop {
            match self.next() {
                Some(frame) if frame == marker => return Ok(frames),
                Some(frame) => frames.push(frame),
                None => {
                    ensure!(
                        start.elapsed() < PATIENCE,
                        "{} lacks a marker after {frames:02x?}",
                        self.path.display()
                    );
                    if self.file.read_to_end(&mut self.read)? == 0 {
                        std::thread::sleep(POLL);
                    }
                }
            }
        }
    }

    /// The next whole frame of those read.
    fn next(&mut self) -> Option<Vec<u8>> {
        // The daemon writes in the machine's byte order.
        let len = u32::from_ne_bytes(*self.read.get(8..12)?.first_chunk()?) as usize;
        let frame = self.read.get(RECORD_HEADER..RECORD_HEADER + len)?.to_vec();
        self.read.drain(..RECORD_HEADER + len);
        Some(frame)
    }
}
