//! What each command does.

pub mod daemon;
pub mod explain;
pub mod generate;
pub mod key;
pub mod nic;
pub mod pci;
pub mod replay;

use crate::cli::{Cli, Command, NicCommand};
use anyhow::Result;
use std::io::{BufWriter, StdoutLock, Write};

/// Standard output as commands write it.
pub type Stdout = BufWriter<StdoutLock<'static>>;

/// What a command that could do its work says of the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is well: exit code 0.
    Good,
    /// The answer is no (a difference, too few flows): exit code 1.
    Bad,
}

/// Runs a command.
///
/// # Errors
/// Whatever kept it from its work, for a person to read.
pub fn run(cli: &Cli) -> Result<Outcome> {
    match &cli.command {
        Command::Replay(args) => replay::run(args),
        Command::Key(args) => key::run(args),
        Command::Explain(args) => match &args.ufid {
            Some(ufid) => daemon::explain(args, ufid),
            None => explain::run(args),
        },
        Command::Daemon(args) => daemon::run(args),
        Command::KeepDevices => crate::daemon::keeper::run().map(|()| Outcome::Good),
        Command::OvsRun(args) => daemon::ovs_run(args),
        Command::Status(args) => daemon::status(args),
        Command::Flows(args) => daemon::flows(args),
        Command::Ports(args) => daemon::ports(args),
        Command::Top(args) => daemon::top(args),
        Command::Nic(NicCommand::Show(args)) => nic::show(args),
        Command::Nic(NicCommand::List(args)) => pci::list(args),
        Command::Nic(NicCommand::Bind(args)) => pci::bind(args),
        Command::Nic(NicCommand::Unbind(args)) => pci::unbind(args),
        Command::Nic(NicCommand::Inspect(args)) => pci::inspect(args),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
        Command::Bench(command) => crate::bench::run(command).map(|()| Outcome::Good),
    }
}

/// Prints text that `print` writes, in large pieces; a reader that went away is an error that `main` knows.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_text(print: impl FnOnce(&mut Stdout) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    print(&mut out)?;
    out.flush()?;
    Ok(())
}

/// Prints `value` as JSON.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
