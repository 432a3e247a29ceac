//! The command line. Only definitions: what each command does is in `command/`.

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use flowlift_driver::bind::PciAddress;
use flowlift_port::HostSpec;
pub use flowlift_sim::cli::ProfileArg;
use flowlift_sim::server::{NamedWire, WireError, WireSpec};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// An Open vSwitch datapath in user space that lifts flows into NIC hardware.
#[derive(Debug, Parser)]
#[command(name = "flowlift", version, about, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_long_help = "Exit codes: 0 all is well; 1 the answer is no (a difference, too few flows); 2 bad input, with \
its place and cause.\n\nWith --json, what exit code 2 is about is one line of JSON on standard error: an \
object `error` with `what`, `where`, `why` and `what_to_do`.\n\nEnvironment: FLOWLIFT_LOG sets which log messages are printed, as in FLOWLIFT_LOG=debug."
)]
pub struct Cli {
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// What is asked for by a command line, whether it can be parsed or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The command's name, as in `flowlift nic show`.
    pub command: String,
    /// The answer shall be JSON.
    pub json: bool,
}

impl Asked {
    /// By this command line, the program first.
    pub fn of(arguments: &[OsString]) -> Self {
        let mut command = Cli::command();
        let mut asked = Self { command: command.get_name().to_owned(), json: false };
        // What follows `--` is another program's.
        for argument in arguments.iter().skip(1).take_while(|argument| *argument != "--") {
            if let Some(below) = command.find_subcommand(argument).cloned() {
                asked.command = format!("{} {}", asked.command, below.get_name());
                command = below;
            } else if argument == "--json" {
                asked.json = command.get_arguments().any(|known| known.get_long() == Some("json"));
            }
        }
        asked
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a capture through NIC and softpath, and tell who handled what, and why.
    Replay(ReplayArgs),
    /// Print each packet's flow key as Open vSwitch prints it.
    Key(KeyArgs),
    /// Tell for each flow of a file whether a NIC can take it, and if not, why not; or of a running daemon's flow where it is.
    Explain(ExplainArgs),
    /// Be the datapath of ovs-vswitchd, in the place of the kernel's module (root).
    Daemon(DaemonArgs),
    /// Keep devices of internal ports until the next daemon comes; daemons start it themselves.
    #[command(hide = true)]
    KeepDevices,
    /// Run a program of Open vSwitch so that it finds the daemon in the place of the kernel's datapath.
    OvsRun(OvsRunArgs),
    /// Show what a running daemon does: datapaths, NIC, counters.
    Status(AskArgs),
    /// Show the daemon's flows: where each is, why, and what each side counted.
    Flows(DaemonFlowArgs),
    /// Show the daemon's ports.
    Ports(AskArgs),
    /// Show rates by port and the busiest flows, again and again.
    Top(TopArgs),
    /// Look at NICs.
    #[command(subcommand)]
    Nic(NicCommand),
    /// Measure speed and memory on this machine.
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
    /// Write manual pages: those of flowlift, of each of its commands and of flowlift-sim into a folder, or that of flowlift
    /// to standard output.
    Man(ManArgs),
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
    /// Program that is completed.
    #[arg(value_enum, value_name = "PROGRAM", default_value = "flowlift")]
    pub program: Program,
}

/// The programs that users start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// This one.
    #[value(name = "flowlift")]
    Flowlift,
    /// The simulated NIC as a vfio-user server.
    #[value(name = "flowlift-sim")]
    Sim,
}

impl Program {
    /// Its command line.
    pub fn command_line(self) -> clap::Command {
        match self {
            Self::Flowlift => Cli::command(),
            Self::Sim => flowlift_sim::cli::Args::command(),
        }
    }
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder, made if it is not there.
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// Where the flows come from.
#[derive(Debug, Args)]
pub struct FlowArgs {
    /// Flows as `ovs-appctl dpctl/dump-flows` prints them, with or without -m and --names.
    #[arg(long, value_name = "FILE")]
    pub flows: Option<PathBuf>,
    /// Names of datapath ports, as in `--ports p1=1,p2=2`.
    #[arg(long, value_name = "NAME=NUMBER,...", value_delimiter = ',')]
    pub ports: Vec<String>,
    /// Treat a flow that cannot be used as fatal.
    #[arg(long)]
    pub strict: bool,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Flows.
    #[command(flatten)]
    pub flows: FlowArgs,
    /// Capture to replay: pcap, nanosecond pcap or pcapng. [default: the bundled one, with the bundled flows]
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Ingress port (name or number) of packets whose capture does not name their interface. [default: 1]
    #[arg(long, value_name = "PORT")]
    pub in_port: Option<String>,
    /// Profile of the simulated NIC.
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: ProfileArg,
    /// Softpath alone.
    #[arg(long, conflicts_with_all = ["faults", "profile"])]
    pub no_nic: bool,
    /// A NIC outside of this process: a PCI address as in 0000:03:00.0 (bound to vfio-pci), or vfio-user:SOCKET. [default: a
    /// simulated one]
    #[arg(long, value_name = "NIC", conflicts_with_all = ["no_nic", "profile"])]
    pub nic: Option<NicArg>,
    /// Where the wire of the NIC's port N (from 0) ends on this host: pN=tap:NAME, pN=packet:NETDEV, pN=unix:LOCAL[,PEER].
    /// Packets of the capture go in by it, and what leaves is taken from it. Without one, packets go into the NIC's pipeline
    /// as if received there, and what leaves is not seen.
    #[arg(long = "wire", value_name = "pN=KIND:...", requires = "nic", conflicts_with = "live")]
    pub wires: Vec<WireArg>,
    /// Datapath ports (names or numbers) that are the NIC's ports, counted from 0. [default: as many as it has ports with
    /// link, in the order of their numbers]
    #[arg(long, value_name = "PORT=pN,...", value_delimiter = ',', requires = "nic")]
    pub nic_ports: Vec<String>,
    /// Let flows into tables of the NIC that do not count packets. What it handles is then missing in the flows' counters;
    /// without this, such flows stay in software.
    #[arg(long, requires = "nic")]
    pub uncounted: bool,
    /// No capture: serve what arrives on the NIC's wires for so long, or until SIGINT or SIGTERM.
    #[arg(long, value_name = "SECONDS", requires = "nic", conflicts_with_all = ["pcap", "in_port", "check", "out"],
        value_parser = seconds)]
    pub live: Option<Duration>,
    /// Write a capture for each output port, DIR/NAME.pcap.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seed of everything random in the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Faults to inject into the NIC: `all`, or names with optional rates, as in `lost_completion=0.01,hang`.
    #[arg(long, value_name = "SPEC")]
    pub faults: Option<String>,
    /// Compare softpath, NIC + softpath, and a linear reference, and fail on any difference.
    #[arg(long)]
    pub check: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Capture.
    #[arg(long, value_name = "FILE")]
    pub pcap: PathBuf,
    /// Ingress port number.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub in_port: u32,
    /// Also print the key's Netlink attributes in hex.
    #[arg(long)]
    pub tlv: bool,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A flow of a running daemon, by its UFID, in place of a file.
    #[arg(value_name = "UFID", conflicts_with_all = ["flows", "ports", "strict", "profile", "require"])]
    pub ufid: Option<String>,
    /// The daemon's control socket. [default: flowlift.ctl in $FLOWLIFT_RUNDIR, or in /run/flowlift]
    #[arg(long, value_name = "PATH", requires = "ufid")]
    pub control: Option<PathBuf>,
    /// Flows.
    #[command(flatten)]
    pub flows: FlowArgs,
    /// Profile of the NIC to plan for.
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: ProfileArg,
    /// Exit with 1 if fewer than this percentage of the flows can be offloaded.
    #[arg(long, value_name = "PERCENT")]
    pub require: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands about NICs.
#[derive(Debug, Subcommand)]
pub enum NicCommand {
    /// Show the capability records as the driver reads them from the NIC.
    Show(NicShowArgs),
    /// List network functions and every device that flowlift has a driver for, and whether they can be used.
    List(NicListArgs),
    /// Hand a PCI function to vfio-pci (root).
    Bind(NicBindArgs),
    /// Give a PCI function back to the driver that it had (root).
    Unbind(NicUnbindArgs),
    /// Describe a PCI function: configuration space, capabilities, BARs, MSI-X.
    Inspect(NicInspectArgs),
}

/// Arguments of `nic list`.
#[derive(Debug, Args)]
pub struct NicListArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `nic bind`.
#[derive(Debug, Args)]
pub struct NicBindArgs {
    /// PCI address, as in 0000:03:00.0.
    pub address: String,
    /// Give the IOMMU group's node to this user (name or number), who can then drive the function without root.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Take the function although the host uses it.
    #[arg(long)]
    pub force: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `nic unbind`.
#[derive(Debug, Args)]
pub struct NicUnbindArgs {
    /// PCI address, as in 0000:03:00.0.
    pub address: String,
    /// Ask a process that drives the function for it, and wait.
    #[arg(long)]
    pub force: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `nic inspect`.
#[derive(Debug, Args)]
pub struct NicInspectArgs {
    /// PCI address, as in 0000:03:00.0.
    pub address: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where a NIC is: a PCI function bound to vfio-pci, or a vfio-user server such as flowlift-sim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicArg {
    /// PCI function.
    Pci(PciAddress),
    /// Socket of a vfio-user server.
    VfioUser(PathBuf),
}

impl FromStr for NicArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.strip_prefix("vfio-user:") {
            Some("") => Err("vfio-user: and the path of a socket".into()),
            Some(path) => Ok(Self::VfioUser(path.into())),
            None => s.parse().map(Self::Pci).map_err(|error| {
                format!("neither vfio-user:SOCKET nor a PCI address as in 0000:03:00.0: {error}")
            }),
        }
    }
}

impl fmt::Display for NicArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
        }
    }
}

/// A wire of a NIC's port and the port of this host at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireArg {
    /// The NIC's port, counted from 0.
    pub port: u16,
    /// Where the wire ends.
    pub spec: HostSpec,
}

impl FromStr for WireArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (port, spec) = s.split_once('=').ok_or("pN=KIND:... is wanted")?;
        Ok(Self { port: nic_port(port)?, spec: spec.parse().map_err(|error| format!("{error}"))? })
    }
}

/// A NIC's port as `pN`, counted from 0.
///
/// # Errors
/// Another text, with what is wanted.
pub fn nic_port(text: &str) -> Result<u16, String> {
    let number = text.strip_prefix('p').and_then(|number| number.parse().ok());
    number
        .filter(|number| *number < u16::MAX)
        .ok_or_else(|| format!("'{text}' is no port of a NIC: p0, p1, ... are"))
}

/// A time in seconds, with a fraction if need be.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Arguments of `nic show`.
#[derive(Debug, Args)]
pub struct NicShowArgs {
    /// The NIC: a PCI address as in 0000:03:00.0 (bound to vfio-pci), or vfio-user:SOCKET. [default: a simulated one]
    #[arg(long, value_name = "NIC", conflicts_with = "profile")]
    pub nic: Option<NicArg>,
    /// Profile of the simulated NIC.
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: ProfileArg,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The daemon's NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonNic {
    /// The softpath alone.
    None,
    /// The simulated NIC, in a thread of the daemon.
    Sim,
    /// One outside of this process.
    Real(NicArg),
}

impl FromStr for DaemonNic {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self::None),
            "sim" => Ok(Self::Sim),
            other => other.parse().map(Self::Real).map_err(|error| format!("neither sim nor none; {error}")),
        }
    }
}

impl DaemonArgs {
    /// The wires that the command line names.
    pub fn wire_specs(&self) -> impl Iterator<Item = WireSpec> {
        let profile = self.profile.profile();
        self.wires.iter().filter_map(move |wire| match wire {
            DaemonWire::Spec(wire) => Some(wire.on(&profile)),
            DaemonWire::Auto => None,
        })
    }
}

/// A wire of the daemon's simulated NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonWire {
    /// One to each device that becomes a port of a datapath.
    Auto,
    /// This one.
    Spec(NamedWire),
}

impl FromStr for DaemonWire {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            other => other.parse().map(Self::Spec).map_err(|error: WireError| format!("{error}, or auto")),
        }
    }
}

/// A device of the host that stands for a port of the NIC: `NAME=pN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicPortArg {
    /// Name of the device.
    pub name: String,
    /// The NIC's port, counted from 0 in the order of its capability records.
    pub number: u16,
}

impl FromStr for NicPortArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not of the form NAME=pN");
        let (name, port) = s.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
        let number = port.strip_prefix('p').and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        Ok(Self { name: name.into(), number })
    }
}

/// Arguments of `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The NIC: a PCI address as in 0000:03:00.0 (bound to vfio-pci), vfio-user:SOCKET, sim, or none.
    #[arg(long, value_name = "NIC", default_value = "none")]
    pub nic: DaemonNic,
    /// Profile of the simulated NIC.
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: ProfileArg,
    /// Plugs port N (from 0) of the simulated NIC into something: pN=packet:NETDEV, pN=tap:NAME, pN=unix:LOCAL[,PEER],
    /// pN=pcap:IN[,OUT]; vfN is the port of virtual function N. The NETDEV of a wire stands for the NIC's port: a port of that name in a datapath is the NIC's. `auto` does so with each device that becomes a port of a datapath, on the NIC's next port without a wire.
    #[arg(long = "wire", value_name = "pN|vfN=KIND:...|auto")]
    pub wires: Vec<DaemonWire>,
    /// A device of this host that stands for port N (from 0) of the NIC.
    #[arg(long = "port", value_name = "NAME=pN")]
    pub ports: Vec<NicPortArg>,
    /// Representors: a device PREFIXpN is made for each physical port N of the NIC, and PREFIXvfN for the port of each virtual
    /// function N, unless another device stands for the port; for the simulated NIC, if the port has a wire.
    #[arg(long, value_name = "PREFIX", default_value = "fl0")]
    pub representors: String,
    /// Makes no representors.
    #[arg(long, conflicts_with = "representors")]
    pub no_representors: bool,
    /// Control socket. [default: flowlift.ctl in $FLOWLIFT_RUNDIR, or in /run/flowlift]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Arguments of `ovs-run`.
#[derive(Debug, Args)]
pub struct OvsRunArgs {
    /// The library to preload. [default: libflowlift_preload.so beside this program or in its lib folder]
    #[arg(long, value_name = "PATH")]
    pub library: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// Which daemon to ask, and how to print what it says.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The daemon's control socket. [default: flowlift.ctl in $FLOWLIFT_RUNDIR, or in /run/flowlift]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `flows`.
#[derive(Debug, Args)]
pub struct DaemonFlowArgs {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskArgs,
    /// Those in hardware alone.
    #[arg(long, conflicts_with = "software")]
    pub hardware: bool,
    /// Those that are not in hardware alone.
    #[arg(long)]
    pub software: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The daemon's control socket. [default: flowlift.ctl in $FLOWLIFT_RUNDIR, or in /run/flowlift]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    pub interval: f64,
    /// Looks until it ends. [default: no end]
    #[arg(long, value_name = "N")]
    pub rounds: Option<u64>,
    /// Flows shown.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
}

fn interval(s: &str) -> Result<f64, String> {
    let seconds = s.parse::<f64>().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "seconds from 0.01 to 3600".into())
}
